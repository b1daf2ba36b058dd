"""A golden set run through rubrics: what a release gate decides by.

The same prompts, judges, weights and intervals as production has, and series of the same names, so that what was
measured before a release and what is seen after it can stand in one graph.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from assay.errors import FileError
from assay.records import Failure, NotApplicable, Score
from assay.rows import read_rows
from assay.scales import ROUNDING
from assay.windows import Sums, pass_ratio, score_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from assay.records import Outcome, Record
    from assay.rubrics import Rubric
    from assay.windows import Estimate

Verdict = Literal["pass", "fail", "unknown", "no_threshold"]

#: Value of the label `window` of the series of a golden set.
WINDOW: Final = "golden"


@dataclass(frozen=True, kw_only=True)
class GoldenResult:
    """One rubric over a golden set: counts, estimates, and whether that is good enough."""

    rubric: Rubric
    judge: str
    #: least share of scored records that must pass, in (0, 1]; None: nothing is asked
    threshold: float | None
    #: failures that are put up with
    max_failed: int
    #: app -> sums over its scored records
    sums: Mapping[str, Sums] = field(default_factory=dict)
    #: kind -> n
    failed: Mapping[str, int] = field(default_factory=dict)
    #: reason -> n
    not_applicable: Mapping[str, int] = field(default_factory=dict)
    #: records that the judge was not asked about
    not_judged: int = 0
    #: those that do not pass, and those without a verdict, the lowest score first
    worst: tuple[tuple[Record, Outcome], ...] = ()

    @property
    def scored(self) -> int:
        """Records with a score."""
        return self._all.n

    @property
    def pass_ratio(self) -> Estimate | None:
        """Share that passes, weighted by 1 / sampling probability; None when nothing is scored."""
        return pass_ratio(self._all)

    @property
    def score_mean(self) -> Estimate | None:
        """Mean score, weighted alike."""
        return score_mean(self._all)

    @property
    def verdict(self) -> Verdict:
        """Whether the share that passes reaches the threshold. Too many failures, or no score: nobody knows.

        By the share itself, not by a bound of it: the set is all that is asked about, not a sample of something.
        """
        if self.threshold is None:
            return "no_threshold"
        if self.pass_ratio is None or sum(self.failed.values()) + self.not_judged > self.max_failed:
            return "unknown"
        return "pass" if self.pass_ratio.value >= self.threshold - ROUNDING else "fail"

    @property
    def _all(self) -> Sums:
        return sum(self.sums.values(), Sums())

    def as_json(self, *, worst: int) -> dict[str, Any]:
        """For machines; `worst` bounds the records that are named."""
        passing, mean = self.pass_ratio, self.score_mean
        return {
            "rubric": self.rubric.name,
            "rubric_version": self.rubric.revision,
            "judge": self.judge,
            "scored": self.scored,
            "failed": dict(self.failed),
            "not_applicable": dict(self.not_applicable),
            "not_judged": self.not_judged,
            "pass_ratio": None if passing is None else passing.value,
            "pass_ratio_ci": None if passing is None else [passing.lower, passing.upper],
            "score_mean": None if mean is None else mean.value,
            "threshold": self.threshold,
            "verdict": self.verdict,
            "worst": [{"record_id": record.record_id, **describe(outcome)} for record, outcome in self.worst[:worst]],
        }


def describe(outcome: Outcome) -> dict[str, Any]:
    """Why an outcome is among the worst."""
    match outcome:
        case Score():
            return {"value": outcome.value, "explanation": outcome.explanation, "defect": outcome.defect}
        case Failure():
            return {"failure": outcome.kind, "message": outcome.message}
        case NotApplicable():
            return {"not_applicable": outcome.reason}


def read_golden(path: Path, source: Iterable[bytes]) -> list[Record]:
    """The records of a golden set, JSON Lines in the form that `assay enqueue` takes; ids are distinct.

    Raises:
        FileError: the first row that is no record, an id that comes twice, or no row at all.
    """
    records: dict[str, Record] = {}
    for row in read_rows(source, form="jsonl"):
        if row.record is None:
            raise FileError(row.error or "no record", path=path, line=row.line)
        if row.record.record_id in records:
            raise FileError(f"record_id {row.record.record_id!r} comes twice", path=path, line=row.line)
        records[row.record.record_id] = row.record
    if not records:
        raise FileError("has no record", path=path)
    return list(records.values())


def summarise(
    records: Sequence[Record],
    rubric: Rubric,
    judge: str,
    outcomes: Mapping[str, Outcome],
    *,
    threshold: float | None,
    max_failed: int = 0,
) -> GoldenResult:
    """What the outcomes, by record id, come to."""
    sums: dict[str, Sums] = {}
    failed: Counter[str] = Counter()
    not_applicable: Counter[str] = Counter()
    bad: list[tuple[float, Record, Outcome]] = []
    for record in records:
        match outcome := outcomes.get(record.record_id):
            case Score():
                one = Sums.of(weight=record.weight, value=outcome.value, passed=outcome.passed)
                sums[record.app] = sums.get(record.app, Sums()) + one
                if not outcome.passed:
                    bad.append((outcome.value, record, outcome))
            case Failure():
                failed[outcome.kind] += 1
                bad.append((1.0, record, outcome))
            case NotApplicable():
                not_applicable[outcome.reason] += 1
    bad.sort(key=lambda entry: entry[0])
    return GoldenResult(
        rubric=rubric,
        judge=judge,
        threshold=threshold,
        max_failed=max_failed,
        sums=sums,
        failed=failed,
        not_applicable=not_applicable,
        not_judged=sum(1 for record in records if record.record_id not in outcomes),
        worst=tuple((record, outcome) for _, record, outcome in bad),
    )
