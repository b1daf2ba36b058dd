"""Quality by version: what `assay compare` says of two prompts, models, routes, rubric versions, judges or cohorts.

Every group is compared with one of them, the baseline, under one rubric version and judge at a time: scores of
different instruments are no comparison of answers.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from assay.differences import (
    Sample,
    amount_difference,
    holm,
    mean_amount,
    mean_score,
    pass_rate,
    share_difference,
)
from assay.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from assay.differences import Amount, Difference
    from assay.store import ComparedScore
    from assay.windows import Estimate

#: Fewer effective records in a group, or in the baseline, allow no conclusion.
LEAST_EFFECTIVE = 30.0
#: Groups beyond these, by their records, are left out: nobody reads so long a table, and each costs the others power.
MOST_GROUPS = 20
_ERROR = 0.05
_NONE = "(none)"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """One group under one instrument. Differences are group less baseline; the baseline itself has none."""

    group: str
    #: records scored
    n: int
    #: evaluations without a verdict: where groups differ in them, the scored ones may be another mix
    failed: int
    #: interactions that the scored records stand for
    interactions: float
    pass_rate: Estimate | None
    score: Estimate | None
    #: what an interaction costs its app, in USD, where records say it
    cost_usd: Amount | None
    pass_difference: Difference | None = None
    score_difference: Difference | None = None
    cost_difference: Difference | None = None
    #: p-values after Holm's correction, over all groups of all instruments
    pass_p_adjusted: float | None = None
    score_p_adjusted: float | None = None
    cost_p_adjusted: float | None = None
    #: better, worse, unclear (one of many), same (no difference shown), too_few, baseline
    conclusion: str = "baseline"
    #: the same in words
    verdict: str = "the baseline"
    #: of the cost, in words; "" where nothing can be said
    cost_verdict: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The groups under one instrument, the baseline first, then by their records."""

    rubric: str
    #: "" where it is what is compared
    rubric_version: str
    judge: str
    baseline: str
    groups: tuple[GroupResult, ...]
    #: groups that were left out because there were too many
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it; `notes` are for people."""

    by: str
    comparisons: tuple[Comparison, ...]
    #: differences of pass rates that were tested
    tests: int
    notes: tuple[str, ...] = field(default=())


class _Instrument(NamedTuple):
    rubric: str
    rubric_version: str
    rubric_hash: str
    judge: str
    judge_fingerprint: str


class _Columns:
    """The evaluations of one group under one instrument."""

    def __init__(self) -> None:
        self.records, self.weights = array("q"), array("d")
        self.values, self.passes = array("d"), array("d")
        self.cost_records, self.cost_weights, self.costs = array("q"), array("d"), array("d")
        self.failed = 0

    def add(self, number: int, row: ComparedScore) -> None:
        if row.value is not None:
            self.records.append(number)
            self.weights.append(row.weight)
            self.values.append(row.value)
            self.passes.append(float(bool(row.passed)))
        elif row.outcome == "failed":
            self.failed += 1
        if row.cost_usd is not None:
            self.cost_records.append(number)
            self.cost_weights.append(row.cost_weight)
            self.costs.append(row.cost_usd)

    @property
    def scores(self) -> Sample:
        return Sample.of(self.records, self.weights, self.values)

    @property
    def passed(self) -> Sample:
        return Sample.of(self.records, self.weights, self.passes)

    @property
    def cost(self) -> Sample:
        return Sample.of(self.cost_records, self.cost_weights, self.costs)


def compare(rows: Iterable[ComparedScore], by: str, *, baseline: str | None = None) -> Report:
    """What the evaluations say of the groups that they fall into.

    Args:
        rows: evaluations of a span of time, each once (`Store.compared_scores`).
        by: what the groups are of.
        baseline: the group that the others are compared with; None is the one with most records.

    Raises:
        ConfigError: there is nothing to compare, or no such baseline.
    """
    parts = _parts(rows, by)
    if not parts:
        raise ConfigError("nothing was judged in this span: look further back with --since")
    names = {name for groups in parts.values() for name in groups}
    if names == {_NONE}:
        raise ConfigError(f"no record of this span has a {by!r}: set it where the app records, or compare --by another")
    if baseline is not None and baseline not in names:
        raise ConfigError(f"--baseline {baseline!r} is no {by} of this span: there are {', '.join(sorted(names)[:20])}")
    comparisons = [
        _comparison(instrument, groups, baseline)
        for instrument, groups in sorted(parts.items())
        if any(len(columns.records) for columns in groups.values()) and (baseline is None or baseline in groups)
    ]
    return _concluded(by, comparisons)


def _parts(rows: Iterable[ComparedScore], by: str) -> dict[_Instrument, dict[str, _Columns]]:
    """Columns by what is the same, and by group."""
    numbers: dict[str, int] = {}
    found: dict[tuple[_Instrument, str], _Columns] = defaultdict(_Columns)
    fingerprints: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        instrument, group = _Instrument(*row[2:7]), row.group or _NONE
        if by == "rubric_version":
            instrument = instrument._replace(rubric_version="", rubric_hash="")
        elif by == "judge":
            fingerprints[row.judge].add(row.judge_fingerprint)
            group = f"{row.judge} {row.judge_fingerprint}"
            instrument = instrument._replace(judge="", judge_fingerprint="")
        found[instrument, group].add(numbers.setdefault(row.record_id, len(numbers)), row)
    parts: dict[_Instrument, dict[str, _Columns]] = defaultdict(dict)
    for (instrument, group), columns in found.items():
        name = group
        if by == "judge":
            # Two configurations of one judge are two judges; its name alone says which only where there is one.
            judge, _, fingerprint = group.rpartition(" ")
            name = judge if len(fingerprints[judge]) == 1 else f"{judge}@{fingerprint[:8]}"
        parts[instrument][name] = columns
    return dict(parts)


def _comparison(instrument: _Instrument, groups: dict[str, _Columns], baseline: str | None) -> Comparison:
    ordered = sorted(groups, key=lambda name: (-len(groups[name].records), name))
    base = ordered[0] if baseline is None else baseline
    others = [name for name in ordered if name != base]
    shown = [base, *others[: MOST_GROUPS - 1]]
    return Comparison(
        rubric=instrument.rubric,
        rubric_version=instrument.rubric_version,
        judge=instrument.judge,
        baseline=base,
        groups=tuple(_result(name, groups[name], None if name == base else groups[base]) for name in shown),
        left_out=len(ordered) - len(shown),
    )


def _result(name: str, columns: _Columns, base: _Columns | None) -> GroupResult:
    rate = pass_rate(columns.passed)
    result = GroupResult(
        group=name,
        n=len(columns.records),
        failed=columns.failed,
        interactions=sum(columns.weights),
        pass_rate=rate,
        score=mean_score(columns.scores),
        cost_usd=mean_amount(columns.cost),
    )
    if base is None:
        return result
    if _enough(rate) and _enough(pass_rate(base.passed)):
        result = replace(
            result,
            pass_difference=share_difference(columns.passed, base.passed, passes=True),
            score_difference=share_difference(columns.scores, base.scores, passes=False),
        )
    if min(len(columns.costs), len(base.costs)) >= LEAST_EFFECTIVE:
        result = replace(result, cost_difference=amount_difference(columns.cost, base.cost))
    return result


def _enough(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.n_effective >= LEAST_EFFECTIVE


# What may be concluded.


def _concluded(by: str, comparisons: list[Comparison]) -> Report:
    """The same with adjusted p-values and verdicts, and what a reader must know."""
    passes, scores, costs = (
        _adjusted([[getattr(group, name) for group in comparison.groups] for comparison in comparisons])
        for name in ("pass_difference", "score_difference", "cost_difference")
    )
    done = []
    for row, comparison in enumerate(comparisons):
        groups = []
        for column, group in enumerate(comparison.groups):
            place = (row, column)
            result = replace(
                group,
                pass_p_adjusted=passes.get(place),
                score_p_adjusted=scores.get(place),
                cost_p_adjusted=costs.get(place),
            )
            if column:
                conclusion, verdict = _verdict(result, comparison.groups[0])
                result = replace(result, conclusion=conclusion, verdict=verdict, cost_verdict=_cost_verdict(result))
            groups.append(result)
        done.append(replace(comparison, groups=tuple(groups)))
    return Report(by=by, comparisons=tuple(done), tests=len(passes), notes=tuple(_notes(done, len(passes))))


def _adjusted(differences: list[list[Difference | None]]) -> dict[tuple[int, int], float]:
    """Holm's p-values of all of them, by row and column."""
    found = {
        (row, column): difference.p_value
        for row, line in enumerate(differences)
        for column, difference in enumerate(line)
        if difference is not None
    }
    return dict(zip(found, holm(list(found.values())), strict=True))


def _verdict(group: GroupResult, base: GroupResult) -> tuple[str, str]:
    difference, adjusted = group.pass_difference, group.pass_p_adjusted
    if difference is None or adjusted is None:
        fewest = min(0.0 if g.pass_rate is None else g.pass_rate.n_effective for g in (group, base))
        return "too_few", f"too few records to tell ({int(fewest)} effective, {LEAST_EFFECTIVE:.0f} needed)"
    if difference.lower <= 0.0 <= difference.upper:
        return "same", f"no difference shown ({_points(-difference.lower)} worse to {_points(difference.upper)} better)"
    low, high = sorted((abs(difference.lower), abs(difference.upper)))
    word = "better" if difference.value > 0 else "worse"
    said = f"{word} by {_points(low, unit=False)} to {_points(high)}"
    if adjusted > _ERROR:
        return "unclear", f"maybe {said}: one of several comparisons, and not clear enough for that"
    return word, said


def _cost_verdict(group: GroupResult) -> str:
    difference, adjusted = group.cost_difference, group.cost_p_adjusted
    if difference is None or adjusted is None:
        return ""
    if difference.lower <= 0.0 <= difference.upper or adjusted > _ERROR:
        return "no difference in cost shown"
    low, high = sorted((abs(difference.lower), abs(difference.upper)))
    return f"costs {low:.2g} to {high:.2g} USD {'more' if difference.value > 0 else 'less'} an interaction"


def _points(share: float, *, unit: bool = True) -> str:
    """A share as percentage points; below one point with a decimal, so that it is not 0."""
    points = 100.0 * share
    text = f"{points:.0f}" if points >= 0.95 or points == 0.0 else f"{points:.1f}"
    return f"{text} point{'' if text == '1' else 's'}" if unit else text


def _notes(comparisons: list[Comparison], tests: int) -> list[str]:
    notes = []
    if not comparisons:
        notes.append("Nothing was scored in this span: every evaluation failed, or its rubric did not apply.")
    if tests > 1:
        notes.append(
            f"{tests} pass rates are compared at once. Intervals are of one comparison each; the verdicts hold "
            "together (Holm's correction at 5 %)."
        )
    if any(len(comparison.groups) == 1 for comparison in comparisons):
        notes.append("Where there is one group only, there is nothing to compare it with.")
    left_out = sum(comparison.left_out for comparison in comparisons)
    if left_out:
        notes.append(
            f"{left_out} groups with the fewest records are left out: {MOST_GROUPS} are shown for each rubric."
        )
    if any(_fails_apart(comparison) for comparison in comparisons):
        notes.append(
            "The judge failed on another share of the records in one group than in the baseline: those that it scored "
            "may not be alike. See `assay dead list`."
        )
    return notes


def _fails_apart(comparison: Comparison) -> bool:
    """Whether the shares of failures differ by more than 5 points."""
    shares = [group.failed / (group.n + group.failed) for group in comparison.groups if group.n + group.failed]
    return bool(shares) and max(shares) - min(shares) > 0.05
