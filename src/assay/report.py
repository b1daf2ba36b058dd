"""The weekly report: trends, what fell, where it is worst, what it cost, which labels are wanted and what changed.

Numbers only; `assay.report_page` draws them and `assay.report_text` writes them down. A week is seven days that end at
the same hour as the last one; estimates and their intervals are those of the gauges (`assay.windows`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

from assay.corrections import Corrections, Place, body_of
from assay.windows import HOUR, SUM_FIELDS, Estimate, Sums, pass_ratio, score_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from assay.corrections import Correction, Instrument
    from assay.store import Group, LabelRequest, Store

#: A number from fewer equally weighted records is not compared with another.
ENOUGH = 30
#: A fall of a weekly average by more than this share of it is reported as one.
FALL = 0.05
#: Clusters, defects and changes shown at most.
MOST_CLUSTERS, MOST_DEFECTS, MOST_CHANGES = 12, 30, 40
#: Labels older than this say little of a judge and its traffic now.
OLD_DAYS = 90

_WEEK = timedelta(days=7)

Measure = Literal["pass rate", "mean score"]


class Series(NamedTuple):
    """What one line is of: an app, and what measured it."""

    app: str
    rubric: str
    rubric_version: str
    judge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One week of a series."""

    pass_ratio: Estimate
    score_mean: Estimate
    #: interactions that the scored records stand for
    interactions: float
    #: evaluations that came to no verdict, of the week
    failed: int
    #: what people would pass; None where no calibration can say
    corrected: Estimate | None
    #: of the correction, and why it is in it
    state: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A series over the weeks, oldest first; None where nothing was scored."""

    series: Series
    points: tuple[Point | None, ...]
    #: pass ratio that the rubric sets as its objective
    objective: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """A weekly average that is more than `FALL` below that of the week before."""

    series: Series
    measure: Measure
    before: Estimate
    after: Estimate
    #: the interval of the difference leaves out no change at all
    clear: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Records with one value in one field that pass clearly less often than the rest of their app."""

    series: Series
    field: str
    value: str
    inside: Estimate
    outside: Estimate
    #: of the app's interactions
    share: float
    #: pass ratio of the rest less that inside, and its 95 % interval
    gap: float
    gap_lower: float
    gap_upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DefectShare:
    """How many of the answers that did not pass in the last week have this defect."""

    series: Series
    defect: str
    n: int
    #: weighted share of the answers that did not pass, now and in the week before (None without any)
    share: float
    before: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingCost:
    """What judging the interactions of one week took."""

    week: int
    app: str
    judge: str
    evaluations: int
    #: evaluations whose price is known
    priced: int
    cost_usd: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCost:
    """What an answer cost in the last week, by what the records say; US dollars."""

    app: str
    rubric: str
    per_interaction: float
    #: None when nothing passed
    per_passed: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelNeed:
    """What is known of a judge that scored in the last week, and what labels it wants."""

    rubric: str
    rubric_version: str
    judge: str
    #: None without a calibration
    level: str | None
    labels: int
    #: age of the newest label in days, None when that is not known
    age_days: float | None
    #: one sentence, "" when nothing is wanted
    wanted: str
    #: picked for people: not handed out yet, and out with them
    waiting: int
    out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that changed what the numbers mean, or a detector's word that they changed."""

    at: datetime
    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it. Weeks are numbered from 0, the oldest."""

    made_at: datetime
    #: start of each week and the end of the last, aware, UTC
    bounds: tuple[datetime, ...]
    trends: tuple[Trend, ...]
    falls: tuple[Fall, ...]
    clusters: tuple[Cluster, ...]
    #: groups that were compared with their rest to find the clusters
    compared: int
    defects: tuple[DefectShare, ...]
    judging: tuple[JudgingCost, ...]
    answers: tuple[AnswerCost, ...]
    needs: tuple[LabelNeed, ...]
    changes: tuple[Change, ...]

    @property
    def weeks(self) -> int:
        """How many weeks there are."""
        return len(self.bounds) - 1


def read_report(store: Store, *, until: datetime, weeks: int = 8, fields: Sequence[str] = ()) -> Report:
    """The report over `weeks` weeks that end with the hour of `until` (aware).

    Args:
        store: where everything is read; evaluations of the last week are gone through, so it takes seconds.
        until: usually the present. The running hour is in.
        weeks: at least 2, because the last is compared with the one before.
        fields: where clusters are looked for, besides route, model and prompt version: keys of the cohort.

    Raises:
        StoreError: the database is away.
        ValueError: fewer than 2 weeks.
    """
    if weeks < 2:
        raise ValueError(f"{weeks} weeks: a trend takes 2 or more")
    end = datetime.fromtimestamp(math.ceil(until.timestamp() / HOUR) * HOUR, UTC)
    bounds = tuple(end - (weeks - index) * _WEEK for index in range(weeks + 1))
    corrections = Corrections().following(store)
    parts = [_read_week(store, *span) for span in _spans(bounds)]
    trends = _trends(parts, bounds, corrections)
    groups = store.groups(bounds[-2], end, tuple(dict.fromkeys(("route", "model", "prompt_version", *fields))))
    clusters, compared = find_clusters(groups)
    return Report(
        made_at=datetime.now(UTC),
        bounds=bounds,
        trends=trends,
        falls=find_falls(trends),
        clusters=tuple(clusters[:MOST_CLUSTERS]),
        compared=compared,
        defects=_defects(store, bounds),
        judging=_judging(store, bounds),
        answers=_answers(store, bounds),
        needs=_needs(store, parts[-1], trends, corrections),
        changes=_changes(store, parts, bounds),
    )


def _spans(bounds: Sequence[datetime]) -> list[tuple[datetime, datetime]]:
    return list(pairwise(bounds))


# Trends.


class _Part(NamedTuple):
    """One instrument's share in a week of a series."""

    sums: Sums
    failed: int


_Week = dict[Series, dict["Instrument", _Part]]


def _read_week(store: Store, start: datetime, end: datetime) -> _Week:
    found: _Week = defaultdict(dict)
    for row in store.rollups(int(start.timestamp()), int(end.timestamp())):
        series = Series(row.app, row.rubric, row.rubric_version, row.judge)
        instrument = row.rubric_hash, row.judge_fingerprint
        known = found[series].get(instrument, _Part(Sums(), 0))
        found[series][instrument] = _Part(known.sums + Sums.from_row(row), known.failed + row.failed - row.recovered)
    return dict(found)


def _trends(parts: Sequence[_Week], bounds: Sequence[datetime], corrections: Corrections) -> tuple[Trend, ...]:
    objectives = {
        (version.rubric, version.rubric_version): body_of(version).get("objective") for version in corrections.versions
    }
    every = sorted({series for week in parts for series in week})
    trends = []
    for series in every:
        points = tuple(
            _point(series, week.get(series, {}), span, corrections)
            for week, span in zip(parts, _spans(bounds), strict=True)
        )
        objective = objectives.get((series.rubric, series.rubric_version))
        if any(points):
            known = float(objective) if isinstance(objective, int | float) else None
            trends.append(Trend(series=series, points=points, objective=known))
    return tuple(trends)


def _point(
    series: Series,
    parts: Mapping[Instrument, _Part],
    span: tuple[datetime, datetime],
    corrections: Corrections,
) -> Point | None:
    sums = sum((part.sums for part in parts.values()), Sums())
    passing, mean = pass_ratio(sums), score_mean(sums)
    if passing is None or mean is None:
        return None
    start, end = (moment.timestamp() for moment in span)
    place = Place(app=series.app, is_whole_app=True, start=start, end=end)
    correction: Correction | None = corrections.correct({key: part.sums for key, part in parts.items()}, place)
    return Point(
        pass_ratio=passing,
        score_mean=mean,
        interactions=sums.sum_w,
        failed=sum(part.failed for part in parts.values()),
        corrected=correction.estimate if correction is not None else None,
        state=correction.state if correction is not None else "no_calibration",
        reason=correction.reason if correction is not None else "no_calibration",
    )


def find_falls(trends: Iterable[Trend]) -> tuple[Fall, ...]:
    """Where the last week's average is more than `FALL` below that of the week before; the clear ones first.

    Weeks of different versions or judges are never compared: each is a series of its own.
    """
    found = []
    for trend in trends:
        before, after = trend.points[-2], trend.points[-1]
        if before is None or after is None:
            continue
        if min(before.pass_ratio.n_effective, after.pass_ratio.n_effective) < ENOUGH:
            continue
        pairs: tuple[tuple[Measure, Estimate, Estimate], ...] = (
            ("pass rate", before.pass_ratio, after.pass_ratio),
            ("mean score", before.score_mean, after.score_mean),
        )
        for measure, old, new in pairs:
            if new.value < (1 - FALL) * old.value:
                clear = difference(old, new)[0] > 0
                found.append(Fall(series=trend.series, measure=measure, before=old, after=new, clear=clear))
    found.sort(key=lambda fall: (not fall.clear, fall.after.value - fall.before.value, fall.series))
    return tuple(found)


def difference(a: Estimate, b: Estimate) -> tuple[float, float]:
    """The 95 % interval of `a` less `b`, two independent estimates, out of their own intervals.

    Method 10 of Newcombe, "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17 (1998), 873-890.
    """
    less = a.value - b.value
    lower = less - math.hypot(a.value - a.lower, b.upper - b.value)
    upper = less + math.hypot(a.upper - a.value, b.value - b.lower)
    return max(-1.0, lower), min(1.0, upper)


# Clusters and defects.


def find_clusters(groups: Sequence[Group]) -> tuple[list[Cluster], int]:
    """Groups that pass clearly less often than the rest of their app, the worst first; and how many were compared.

    Worst is where most is surely lost: the lower end of the gap, times the share of the app's interactions.
    """
    wholes = {_key(group): group.sums for group in groups if not group.field}
    found: list[Cluster] = []
    compared = 0
    for group in groups:
        whole = wholes.get(_key(group))
        if not group.field or whole is None:
            continue
        rest = _less(whole, group.sums)
        inside, outside = pass_ratio(group.sums), pass_ratio(rest)
        if inside is None or outside is None or min(inside.n_effective, outside.n_effective) < ENOUGH:
            continue
        compared += 1
        lower, upper = difference(outside, inside)
        if lower > 0:
            found.append(
                Cluster(
                    series=_series(group),
                    field=group.field,
                    value=group.value,
                    inside=inside,
                    outside=outside,
                    share=group.sums.sum_w / whole.sum_w,
                    gap=outside.value - inside.value,
                    gap_lower=lower,
                    gap_upper=upper,
                )
            )
    found.sort(key=lambda cluster: (-cluster.gap_lower * cluster.share, cluster.series, cluster.field, cluster.value))
    return found, compared


def _series(group: Group) -> Series:
    return Series(group.app, group.rubric, group.rubric_version, group.judge)


def _key(group: Group) -> tuple[str, str, str]:
    return group.app, group.rubric_hash, group.judge_fingerprint


def _less(whole: Sums, part: Sums) -> Sums:
    """What is left of `whole`; sums that only rounding made negative are 0."""
    return Sums(**{name: max(0, getattr(whole, name) - getattr(part, name)) for name in SUM_FIELDS})


def _defects(store: Store, bounds: Sequence[datetime]) -> tuple[DefectShare, ...]:
    now, before = (_defect_shares(store, *span) for span in (bounds[-2:], bounds[-3:-1]))
    found = []
    for series, mix in now.items():
        if sum(n for n, _ in mix.values()) < ENOUGH:
            continue
        earlier = before.get(series, {})
        known = sum(n for n, _ in earlier.values()) >= ENOUGH
        found += [
            DefectShare(
                series=series,
                defect=defect,
                n=n,
                share=share,
                before=earlier.get(defect, (0, 0.0))[1] if known else None,
            )
            for defect, (n, share) in mix.items()
        ]
    found.sort(key=lambda one: (one.series, -one.share, one.defect))
    return tuple(found[:MOST_DEFECTS])


def _defect_shares(store: Store, start: datetime, end: datetime) -> dict[Series, dict[str, tuple[int, float]]]:
    """By series and defect: how many, and the weighted share of all that did not pass."""
    counts: dict[Series, dict[str, tuple[int, float]]] = defaultdict(dict)
    for row in store.defect_mix(start, end):
        series = Series(row.app, row.rubric, row.rubric_version, row.judge)
        n, weight = counts[series].get(row.defect, (0, 0.0))
        counts[series][row.defect] = (n + row.n, weight + row.sum_w)
    shares = {}
    for series, mix in counts.items():
        total = sum(weight for _, weight in mix.values())
        shares[series] = {defect: (n, weight / total) for defect, (n, weight) in mix.items()}
    return shares


# Cost.


def _judging(store: Store, bounds: Sequence[datetime]) -> tuple[JudgingCost, ...]:
    return tuple(
        JudgingCost(
            week=week,
            app=row.app,
            judge=row.judge,
            evaluations=row.evaluations,
            priced=row.priced,
            cost_usd=row.cost_usd,
            tokens=row.prompt_tokens + row.completion_tokens,
        )
        for week, (start, end) in enumerate(_spans(bounds))
        for row in store.spending(start, end)
    )


def _answers(store: Store, bounds: Sequence[datetime]) -> tuple[AnswerCost, ...]:
    sums: dict[tuple[str, str], tuple[float, float, float]] = defaultdict(lambda: (0.0, 0.0, 0.0))
    for row in store.costs(int(bounds[-2].timestamp()), int(bounds[-1].timestamp())):
        weight, cost, passed = sums[row.app, row.rubric]
        sums[row.app, row.rubric] = (weight + row.sums.sum_w, cost + row.sums.sum_wc, passed + row.sums.sum_wp)
    return tuple(
        AnswerCost(
            app=app, rubric=rubric, per_interaction=cost / weight, per_passed=cost / passed if passed > 0 else None
        )
        for (app, rubric), (weight, cost, passed) in sorted(sums.items())
        if weight > 0
    )


# Labels.

_WANTED: Mapping[str, str] = {
    "no_calibration": "nobody has labelled for it: pick 100 records, of which 20 should fail",
    "few_labels": "people passed, or failed, fewer than 10 of the labelled records: label more of the rarer kind",
    "weak_judge": "it tells good from bad too weakly to correct by: mend the rubric, then label again",
    "wide_interval": "its labels are too few to know the level to 10 points: label more",
    "failed_audit": "fresh labels say that its calibration holds no more: calibrate again",
    "mixed_judges": "two configurations of the judge scored under one name: each wants its own calibration",
    "judge_changed": "it reads what its calibration cannot explain: label records of this week, and calibrate again",
}


def _needs(store: Store, week: _Week, trends: Iterable[Trend], corrections: Corrections) -> tuple[LabelNeed, ...]:
    requests: dict[str, list[LabelRequest]] = defaultdict(list)
    for request in store.label_requests():
        requests[request.rubric].append(request)
    # The worst state of any app says what is wanted.
    reasons: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for trend in trends:
        if (last := trend.points[-1]) is not None:
            reasons[trend.series[1:]].add(last.reason)
    found = []
    for rubric, version, judge in sorted({series[1:] for series in week}):
        instruments = {key for series, parts in week.items() if series[1:] == (rubric, version, judge) for key in parts}
        known = next((known for key in sorted(instruments) if (known := corrections.of(key)) is not None), None)
        made = known.calibration if known is not None else None
        labelled = (made.labelled_to or made.created_at) if made is not None else None
        age = max(0.0, (datetime.now(UTC) - labelled).total_seconds() / 86_400) if labelled is not None else None
        wanted = next((text for reason, text in _WANTED.items() if reason in reasons[rubric, version, judge]), "")
        if not wanted and age is not None and age > OLD_DAYS:
            wanted = f"its newest label is {age:.0f} days old: audit it with fresh ones"
        picked = requests[rubric]
        found.append(
            LabelNeed(
                rubric=rubric,
                rubric_version=version,
                judge=judge,
                level=made.level if made is not None else None,
                labels=made.n if made is not None else 0,
                age_days=age,
                wanted=wanted,
                waiting=sum(one.exported_at is None and one.labelled_at is None for one in picked),
                out=sum(one.exported_at is not None and one.labelled_at is None for one in picked),
            )
        )
    return tuple(found)


# What changed.


def _changes(store: Store, parts: Sequence[_Week], bounds: Sequence[datetime]) -> tuple[Change, ...]:
    first, end = bounds[0], bounds[-1]
    found = [*_new_instruments(parts, bounds)]
    for version in store.rubric_versions():
        if version.since is not None:
            text = f"{version.rubric} {version.rubric_version} by {version.judge} is {version.state}: {version.reason}"
            found.append(Change(at=version.since, kind="rubric", text=text))
    for made in store.calibrations(bodies=False):
        text = f"{made.rubric} {made.rubric_version} by {made.judge} was calibrated"
        if made.state == "stale":
            text += f", and is stale now: {made.reason}"
        found.append(Change(at=made.created_at, kind="calibration", text=text))
    for event in store.change_events(limit=1_000):
        name = event.instrument
        where = f"{event.app}, " if event.app else ""
        text = f"{where}{name.rubric} {name.rubric_version} by {name.judge}: {event.message}"
        if event.resolved_at is not None:
            text += f" ({event.resolution} {event.resolved_at:%b} {event.resolved_at.day})"
        found.append(Change(at=event.happened_at, kind=event.kind.replace("_", " "), text=text))
    shown = [change for change in found if first <= change.at < end]
    shown.sort(key=lambda change: (change.at, change.kind, change.text), reverse=True)
    return tuple(shown[:MOST_CHANGES])


def _new_instruments(parts: Sequence[_Week], bounds: Sequence[datetime]) -> list[Change]:
    """Judges and versions that began to score after the first week in which their rubric scored."""
    seen: set[tuple[Series, Instrument]] = set()
    rubrics: set[tuple[str, str]] = set()
    found = []
    for index, week in enumerate(parts):
        now = {(series, instrument) for series, parts_ in week.items() for instrument in parts_}
        for series, instrument in sorted(now - seen):
            if (series.app, series.rubric) in rubrics:
                text = (
                    f"{series.app}: {series.rubric} {series.rubric_version} by {series.judge} "
                    f"({instrument[1][:8]}) began to score: its level is not that of the series before"
                )
                found.append(Change(at=bounds[index], kind="new series", text=text))
        seen |= now
        rubrics |= {(series.app, series.rubric) for series, _ in now}
    return found
