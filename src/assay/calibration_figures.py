"""The figures of a calibration report: what each plot is drawn from, the finding in a sentence, and its numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from assay._markup import Markup, clipped
from assay.calibration.losses import calibration_curve
from assay.calibration.means import hajek_mean, hajek_ratio
from assay.calibration_plots import (
    Mark,
    Point,
    Row,
    Span,
    confusion_plot,
    histogram_plot,
    percent,
    plain,
    reliability_plot,
    residual_plot,
    roc_plot,
    rows_plot,
    symbol,
)
from assay.calibration_summary import threshold_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from assay.calibrate import Calibrated
    from assay.calibration import AgreementReport, Purpose, Statistic
    from assay.calibration_plots import Shape
    from assay.records import Record
    from assay.windows import Estimate

    BoolArray = npt.NDArray[np.bool_]
    FloatArray = npt.NDArray[np.float64]

#: Points of a curve, and single records in the plot of lengths: more cannot be told apart.
MOST_POINTS = 300
#: Groups shown of one kind, and kinds of cohorts.
MOST_GROUPS, MOST_COHORTS = 8, 4
#: Bins of lengths and of scores.
LENGTH_BINS, SCORE_BINS = 8, 20

#: Thresholds written in decimal may miss the score they mean by this much.
_ROUNDING = 1e-9

_SHAPES: Mapping[Purpose, Shape] = {"gauge": "diamond", "triage": "triangle", "block": "square"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot with its finding and its numbers; or, without a drawing, the reason why there is none."""

    name: str
    title: str
    #: the finding, a sentence
    finding: str
    drawing: Markup | None = None
    legend: tuple[tuple[Markup, str], ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


class Labels:
    """The labelled records that the judge gave a score, for shares and means over some of them."""

    def __init__(self, calibrated: Calibrated) -> None:
        columns = calibrated.columns
        self.y, self.grade, self.weight = columns.y_true, columns.y_grade, columns.sample_weight
        self.judged, self.score, self.mapped = columns.y_pred, columns.y_score, columns.y_prob
        self.lengths = columns.lengths
        #: an undecided label is neither
        self.failed: BoolArray = self.y < 0.5 - _ROUNDING
        self.passed: BoolArray = self.y > 0.5 + _ROUNDING
        #: who gave the labels, in the plural
        self.who = calibrated.labellers
        #: by kind, such as `route`: the group of each record
        self.groups = _group_columns([row.record for row in calibrated.rows if row.score is not None], columns.strata)
        self._clusters = None if columns.clusters is None else np.array(columns.clusters, dtype=object)

    def ratio(self, values: FloatArray | BoolArray, where: BoolArray) -> Estimate | None:
        """Weighted share of `values` among the records `where`; None when there are none."""
        return hajek_ratio(values[where], sample_weight=self.weight[where], clusters=self._clusters_of(where))

    def mean(self, values: FloatArray, where: BoolArray) -> tuple[float, float, float] | None:
        """Weighted mean with its interval, clipped to [-1, 1]; None below 5 records or clusters."""
        found = hajek_mean(values[where], sample_weight=self.weight[where], clusters=self._clusters_of(where))
        interval = None if found is None else found.interval()
        if found is None or interval is None:
            return None
        return found.value, max(-1.0, interval[0]), min(1.0, interval[1])

    def _clusters_of(self, where: BoolArray) -> Sequence[str] | None:
        return None if self._clusters is None else self._clusters[where].tolist()


def _group_columns(records: Sequence[Record | None], strata: Sequence[str] | None) -> dict[str, list[str]]:
    groups = {} if strata is None else {"stratum": list(strata)}
    for name in ("app", "route", "model", "prompt_version"):
        groups[name.replace("_", " ")] = ["" if r is None else getattr(r, name) or "" for r in records]
    # The keys that most records have.
    keys = Counter(key for record in records if record is not None for key in record.cohort)
    for key in sorted(keys, key=lambda key: (-keys[key], key))[:MOST_COHORTS]:
        groups[f"cohort {key}"] = ["" if record is None else record.cohort.get(key, "") for record in records]
    return groups


def figures(calibrated: Calibrated) -> list[Figure]:
    """All figures of a report, in the order to show them."""
    labels, report = Labels(calibrated), calibrated.report
    return [
        confusion_figure(labels, report),
        roc_figure(labels, calibrated),
        histogram_figure(labels, calibrated.pass_threshold),
        reliability_figure(labels, calibrated),
        ceiling_figure(report),
        groups_figure(labels),
        length_figure(labels, report),
    ]


def confusion_figure(labels: Labels, report: AgreementReport) -> Figure:
    """Labels by verdicts."""
    rates, counts, who = report.rates, report.rates.counts, labels.who
    fail_recall = None if rates.specificity is None else rates.specificity.value
    pass_recall = None if rates.sensitivity is None else rates.sensitivity.value
    finding = (
        f"It misses {counts.false_pass:,} of {counts.fails:,} that {who} fail, "
        f"and flags {counts.false_fail:,} of {counts.passes:,} that {who} pass."
    )
    if rates.weighted:
        finding += " Counts are plain; shares are weighted by how the labels were picked."
    if rates.n > counts.n:
        finding += f" Undecided labels are left out: {rates.n - counts.n:,}."
    return Figure(
        name="confusion",
        title="Labels by verdicts",
        finding=finding,
        drawing=confusion_plot(counts, fail_recall=fail_recall, pass_recall=pass_recall, labellers=who),
        header=("", "judge fails", "judge passes", "agreed, weighted" if rates.weighted else "agreed"),
        rows=(
            (f"{who} fail", f"{counts.both_fail:,}", f"{counts.false_pass:,}", _share(fail_recall)),
            (f"{who} pass", f"{counts.false_fail:,}", f"{counts.both_pass:,}", _share(pass_recall)),
        ),
    )


def roc_figure(labels: Labels, calibrated: Calibrated) -> Figure:
    """Fail recall against false alarms at every threshold, and where the judge and the thresholds by purpose stand."""
    title, auc = "What another threshold would do", calibrated.report.auc
    curve = roc_curve(labels)
    if not curve:
        return Figure(name="roc", title=title, finding=f"Nothing to draw: {_one_class(labels)}.")
    points, legend = [], []
    for purpose, threshold in calibrated.calibration.thresholds.items():
        shape = _SHAPES[purpose]
        if threshold.value is None:
            legend.append((symbol(shape, "plain", hollow=True), f"{purpose}: none; {threshold.reason}"))
            continue
        at = _flagged(labels, labels.score < threshold.value - _ROUNDING)
        name = f"{purpose}: passes from {threshold.decimal}; {threshold.reason}"
        points.append(Point(title=_at(name, at), x=at[0], y=at[1], kind="people", shape=shape, hollow=True))
        legend.append((symbol(shape, "people", hollow=True), name))
    at = _flagged(labels, ~labels.judged)
    points.append(Point(title=_at("as it is", at), x=at[0], y=at[1]))
    legend.insert(0, (symbol("circle", "judge"), f"as it is: passes from {calibrated.pass_threshold:g}"))
    if auc.value is None:
        finding = f"No AUC: {auc.reason}."
    else:
        finding = f"AUC {_interval(auc)}: how often it scores a passing answer above a failing one."
    return Figure(
        name="roc",
        title=title,
        finding=finding,
        drawing=roc_plot(_thinned(curve), points, description=f"{finding} The dashed line is chance."),
        legend=tuple(legend),
        header=("for", "passes from", "fail recall", "fail precision", "because"),
        rows=threshold_table(calibrated),
    )


def histogram_figure(labels: Labels, pass_threshold: float) -> Figure:
    """Scores of what passes and of what fails."""
    who, edges = labels.who, np.linspace(0.0, 1.0, SCORE_BINS + 1)
    passes, fails = (_histogram(labels, where) for where in (labels.passed, labels.failed))
    names = (f"{who} pass ({labels.passed.sum():,})", f"{who} fail ({labels.failed.sum():,})")
    medians = [
        f"median {plain(float(np.median(labels.score[where])))} where {who} {verb}"
        for where, verb in ((labels.passed, "pass"), (labels.failed, "fail"))
        if where.any()
    ]
    finding = f"Shares of each class: {'; '.join(medians)}." if medians else "No label is decided."
    shown = (passes + fails) > 0
    return Figure(
        name="histogram",
        title="Scores by label",
        finding=finding,
        drawing=histogram_plot(
            edges.tolist(), passes.tolist(), fails.tolist(), threshold=pass_threshold, names=names, description=finding
        ),
        header=("score", f"of what {who} pass", f"of what {who} fail"),
        rows=tuple(
            (f"{low:.2f} to {high:.2f}", percent(above), percent(below))
            for low, high, above, below in zip(
                edges[:-1][shown], edges[1:][shown], passes[shown], fails[shown], strict=True
            )
        ),
    )


def reliability_figure(labels: Labels, calibrated: Calibrated) -> Figure:
    """The mapped score, out of fold, against the share that passes."""
    title, score_map = "What a score is worth", calibrated.calibration.score_map
    if score_map is None or labels.mapped is None:
        return Figure(name="reliability", title=title, finding="Nothing to draw: too few labels for a score map.")
    who = labels.who
    spans, rows = [], []
    for said, found in _reliability(labels, labels.mapped):
        text = (percent(said), percent(found.value), _ends(found.lower, found.upper), f"{found.n:,}")
        spans.append(
            Span(
                title=f"mapped to {text[0]}: {who} pass {text[1]} ({text[2]}) of {text[3]}",
                x=said,
                y=found.value,
                lower=found.lower,
                upper=found.upper,
            )
        )
        rows.append(text)
    raw = [(said, found.value) for said, found in _reliability(labels, labels.score)]
    error = calibrated.report.calibration_error
    finding = f"Scores mapped to chances by {_MAPS[score_map.kind]}, each by labels that it was not fitted on"
    if error is not None and error.value is not None:
        finding += f"; off by {100 * error.value:.0f} points on average"
    finding += ". On the dashed line a score means what it says."
    return Figure(
        name="reliability",
        title=title,
        finding=finding,
        drawing=reliability_plot(spans, raw, description=finding, labellers=who),
        legend=(
            (symbol("circle", "judge"), "mapped score, with 95% interval"),
            (symbol("square", "plain", hollow=True), "score as it is"),
        ),
        header=("judge says", f"{who} pass", "95% interval", "labels"),
        rows=tuple(rows),
    )


_MAPS = {
    "offset": "a constant shift",
    "platt": "a logistic curve",
    "isotonic": "rising steps",
    "table": "a table of levels",
}


def ceiling_figure(report: AgreementReport) -> Figure:
    """How well annotators agree among themselves, and the judge in the place of each."""
    ceiling, title = report.ceiling, "The judge beside the annotators"
    if ceiling is None:
        return Figure(
            name="ceiling",
            title=title,
            finding=(
                "Nothing to draw: no record has two annotators, so how far they would agree is not known. "
                "A second annotator on 50 of the records would tell."
            ),
        )
    measured: list[tuple[str, Statistic, Statistic | None]] = [
        ("kappa", ceiling.judge_kappa, ceiling.kappa),
        ("fail recall", report.fail_recall, ceiling.fail_recall),
        ("accuracy", report.accuracy, ceiling.accuracy),
    ]
    if report.weighted_kappa is not None:
        measured.insert(1, ("weighted kappa", report.weighted_kappa, ceiling.weighted_kappa))
    rows, table = [], []
    for name, judge, people in measured:
        marks = []
        if people is not None and people.value is not None:
            marks.append(_statistic_mark(f"annotators, {name}", people, "people", "diamond"))
        if judge.value is not None:
            marks.append(_statistic_mark(f"judge, {name}", judge, "judge", "circle"))
        rows.append(Row(label=name, marks=tuple(marks), reason="" if marks else judge.reason or ""))
        table.append((name, _interval(judge), "" if people is None else _interval(people)))
    singles = [kappa for kappa in ceiling.by_annotator if kappa is not None]
    if len(singles) > 1:
        marks = [Mark(title=f"an annotator, kappa {kappa:z.2f}", value=kappa, kind="people") for kappa in singles]
        rows.append(Row(label="kappa of each annotator", marks=tuple(marks), together=True))
        table.append(("kappa of each annotator", "", ", ".join(f"{kappa:z.2f}" for kappa in singles)))
    if report.share_of_ceiling is not None:
        share = percent(max(0.0, report.share_of_ceiling))
        finding = f"The judge reaches {share} of the kappa that annotators reach with each other."
    else:
        finding = f"How the judge's kappa compares is not known: {ceiling.judge_kappa.reason or ceiling.kappa.reason}."
    lowest = min((mark.value if mark.lower is None else mark.lower for row in rows for mark in row.marks), default=0.0)
    return Figure(
        name="ceiling",
        title=title,
        finding=finding,
        drawing=rows_plot(
            "ceiling",
            title,
            rows,
            description=finding,
            axis="agreement with the other annotators",
            low=min(0.0, np.floor(4 * lowest) / 4),
            write=plain,
        ),
        legend=(
            (symbol("diamond", "people"), "annotators, each against the others"),
            (symbol("circle", "judge"), "the judge in their place"),
        ),
        header=("", "judge (95% interval)", "annotators (95% interval)"),
        rows=tuple(table),
    )


def groups_figure(labels: Labels) -> Figure:
    """Pass ratio by labels and by judge, for every group of records that there is."""
    who = labels.who
    rows: list[Row] = []
    table: list[tuple[str, ...]] = []
    apart: list[tuple[float, str]] = []
    everyone = np.ones(len(labels.y), dtype=np.bool_)
    for kind, name, where in [("", "all labels", everyone), *_groups(labels)]:
        if not name:
            rows.append(Row(label=kind))
            continue
        people, judge = labels.ratio(labels.y, where), labels.ratio(labels.judged, where)
        if people is None or judge is None:
            continue
        rows.append(
            Row(
                label=f"{clipped(name, 28)} ({where.sum():,})",
                marks=(_estimate_mark(who, people, "people", "diamond"), _estimate_mark("judge", judge)),
            )
        )
        cells = (_estimate(people), _estimate(judge), f"{where.sum():,}")
        table.append((f"{kind}: {name}" if kind else name, *cells))
        if kind and (judge.lower > people.upper or judge.upper < people.lower):
            apart.append(
                (judge.value - people.value, f"{clipped(name, 28)} ({100 * (judge.value - people.value):+z.0f})")
            )
    apart.sort(key=lambda found: -abs(found[0]))
    if len(table) == 1:
        finding = "The labels name no strata, routes or cohorts to tell apart."
    elif apart:
        finding = f"Furthest apart, in points of pass ratio: {', '.join(name for _, name in apart[:3])}."
    else:
        finding = f"In no group do the intervals of judge and {who} part."
    return Figure(
        name="groups",
        title="Pass ratio by group",
        finding=finding,
        drawing=rows_plot("groups", "Pass ratio by group", rows, description=finding, axis="share that passes"),
        legend=((symbol("diamond", "people"), who), (symbol("circle", "judge"), "judge")),
        header=("group", f"{who} (95% interval)", "judge (95% interval)", "labels"),
        rows=tuple(table),
    )


def length_figure(labels: Labels, report: AgreementReport) -> Figure:
    """Score less label over the length of the answer."""
    title, found = "Does length sway it?", report.length_correlation
    if labels.lengths is None or found is None:
        return Figure(name="length", title=title, finding="Nothing to draw: the judged answers are not at hand.")
    if found.value is None:
        return Figure(name="length", title=title, finding=f"Nothing to draw: {found.reason}.")
    less = labels.score - labels.grade
    who = labels.who
    spans, rows = [], []
    for where in _bins(labels.lengths, LENGTH_BINS):
        mean = labels.mean(less, where)
        if mean is None:
            continue
        middle = float(np.exp(np.log(labels.lengths[where]).mean()))
        value, lower, upper = mean
        reach = f"{labels.lengths[where].min():,.0f} to {labels.lengths[where].max():,.0f}"
        text = (reach, f"{value:+z.2f}", f"{lower:+z.2f} to {upper:+z.2f}", f"{where.sum():,}")
        title_ = f"{text[0]} characters: {text[1]} ({text[2]}), {text[3]} labels"
        spans.append(Span(title=title_, x=middle, y=value, lower=lower, upper=upper))
        rows.append(text)
    if found.lower is None:
        finding = f"Correlation of judge less {who} with log length {_interval(found)}."
    elif found.holds(0.0):
        finding = f"Correlation of judge less {who} with log length {_interval(found)}: it may be none."
    else:
        kind = "long" if found.value > 0 else "short"
        finding = f"It is kinder than {who} to {kind} answers: correlation with log length {_interval(found)}."
    # In the order of their lengths, so that what is left out is left out everywhere alike.
    order = np.argsort(labels.lengths, kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MOST_POINTS)).round().astype(np.int64))]
    points = list(zip(labels.lengths[shown].tolist(), less[shown].tolist(), strict=True))
    return Figure(
        name="length",
        title=title,
        finding=finding,
        drawing=residual_plot(spans, points, description=finding, labellers=who),
        header=("characters", f"judge less {who}", "95% interval", "labels"),
        rows=tuple(rows),
    )


def roc_curve(labels: Labels) -> list[tuple[float, float]]:
    """(share of passes flagged, share of fails flagged) at every threshold, from (0, 0) to (1, 1), weighted.

    Empty when all labels are of one class.
    """
    if not labels.failed.any() or not labels.passed.any():
        return []
    order = np.argsort(labels.score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(labels.score[order]) > 0, True))
    up = np.cumsum((labels.weight * labels.failed)[order])[last]
    along = np.cumsum((labels.weight * labels.passed)[order])[last]
    return [(0.0, 0.0), *zip((along / along[-1]).tolist(), (up / up[-1]).tolist(), strict=True)]


def _thinned(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The curve without points that lie closer together than can be told apart; its ends stay."""
    kept = [curve[0]]
    for point in curve[1:-1]:
        if max(abs(point[0] - kept[-1][0]), abs(point[1] - kept[-1][1])) >= 1 / MOST_POINTS:
            kept.append(point)
    return [*kept, curve[-1]]


def _flagged(labels: Labels, flagged: BoolArray) -> tuple[float, float]:
    """(share of passes flagged, share of fails flagged), weighted; both classes are there."""
    along, up = (
        float(np.average(flagged[where], weights=labels.weight[where])) for where in (labels.passed, labels.failed)
    )
    return along, up


def _histogram(labels: Labels, where: BoolArray) -> FloatArray:
    """Weighted share of the records `where` in each bin of scores; a score on an edge is in the bin above it."""
    found = np.zeros(SCORE_BINS)
    if where.any():
        bins = np.minimum((labels.score[where] * SCORE_BINS + _ROUNDING).astype(np.int64), SCORE_BINS - 1)
        np.add.at(found, bins, labels.weight[where])
        found /= found.sum()
    return found


def _reliability(labels: Labels, score: FloatArray) -> Iterator[tuple[float, Estimate]]:
    """Mean score and share that passes in each bin of a reliability diagram."""
    sizes = [part.n for part in calibration_curve(labels.y, score, sample_weight=labels.weight)]
    order = np.argsort(score, kind="stable")
    # The bins are stretches of the sorted scores.
    for part in np.split(order, np.cumsum(sizes)[:-1]):
        where = np.zeros(len(score), dtype=np.bool_)
        where[part] = True
        found = labels.ratio(labels.y, where)
        if found is not None:
            yield float(np.average(score[where], weights=labels.weight[where])), found


def _groups(labels: Labels) -> Iterator[tuple[str, str, BoolArray]]:
    """Every kind of group that tells records apart, as (kind, "", all) and then its largest as (kind, name, which)."""
    for kind, names in labels.groups.items():
        sizes = Counter(names)
        if len(sizes) < 2:
            continue
        column = np.array(names, dtype=object)
        largest = sorted(sizes, key=lambda name: (-sizes[name], name))
        shown = largest if len(largest) <= MOST_GROUPS + 1 else largest[:MOST_GROUPS]
        yield kind, "", np.ones(len(column), dtype=np.bool_)
        for name in shown:
            yield kind, name or "(none)", column == name
        if len(shown) < len(largest):
            rest = set(largest[MOST_GROUPS:])
            yield kind, f"{len(rest):,} others", np.array([name in rest for name in names])


def _bins(values: FloatArray, most: int) -> Iterator[BoolArray]:
    """Records by quantiles of `values`, about equally many in each."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, most + 1)[1:-1]))
    number = np.searchsorted(edges, values, side="right")
    for index in np.unique(number):
        yield number == index


def _one_class(labels: Labels) -> str:
    who = labels.who
    if labels.failed.any() or labels.passed.any():
        return f"{who} {'pass' if labels.passed.any() else 'fail'} all the records"
    return "no label is decided"


def _at(name: str, at: tuple[float, float]) -> str:
    return f"{name}: flags {percent(at[1])} of fails and {percent(at[0])} of passes"


def _share(value: float | None) -> str:
    return "none labelled" if value is None else percent(value)


def _ends(lower: float, upper: float) -> str:
    return f"{percent(lower)} to {percent(upper)}"


def _estimate(found: Estimate) -> str:
    return f"{percent(found.value)} ({_ends(found.lower, found.upper)})"


def _interval(found: Statistic) -> str:
    if found.value is None:
        return f"not defined: {found.reason}"
    if found.lower is None or found.upper is None:
        return f"{found.value:z.2f} (no interval{f': {found.reason}' if found.reason else ''})"
    return f"{found.value:z.2f} ({found.lower:z.2f} to {found.upper:z.2f})"


def _estimate_mark(who: str, found: Estimate, kind: str = "judge", shape: Shape = "circle") -> Mark:
    return Mark(
        title=f"{who}: {_estimate(found)}", value=found.value, lower=found.lower, upper=found.upper, kind=kind,
        shape=shape,
    )  # fmt: skip


def _statistic_mark(name: str, found: Statistic, kind: str, shape: Shape) -> Mark:
    value = found.value or 0.0
    return Mark(
        title=f"{name}: {_interval(found)}", value=value, lower=found.lower, upper=found.upper, kind=kind, shape=shape
    )
