"""The figures of a calibration report: what each plot is drawn from, the finding in a sentence, and its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from assay._markup import Markup, clipped
from assay.calibration import cross_val_predict
from assay.calibration._columns import ROUNDING, groups_or_rows
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from assay.calibration import AgreementReport, Purpose, ScoreMap, Statistic, Threshold
    from assay.calibration._columns import BoolArray, Clusters, FloatArray
    from assay.calibration_plots import Shape
    from assay.windows import Estimate

#: Points of a curve, and single records in the plot of lengths: more cannot be told apart.
MOST_POINTS = 300
#: Groups shown of one kind, and bins of lengths and of mapped scores.
MOST_GROUPS, LENGTH_BINS, SCORE_BINS = 8, 8, 20

_SHAPES: Mapping[Purpose, Shape] = {"gauge": "diamond", "triage": "triangle", "block": "square"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The labelled records that the judge gave a score, as columns of one length n >= 1."""

    #: labels, 1 pass to 0 fail
    y: FloatArray
    #: whether the judge passes it
    judged: BoolArray
    score: FloatArray
    #: labels as grades in [0, 1], to compare scores with
    grade: FloatArray
    #: 1 / probability of selection
    weight: FloatArray
    clusters: Clusters | None = None
    #: characters of the judged answers; None when the records are not there
    lengths: FloatArray | None = None
    #: kinds of groups, such as `stratum` or `cohort region`: the group of each record
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: who gave the labels, in the plural
    labeller: str = "people"

    @property
    def failed(self) -> BoolArray:
        """Records that people fail; an undecided label is neither failed nor passed."""
        found: BoolArray = self.y < 0.5 - ROUNDING
        return found

    @property
    def passed(self) -> BoolArray:
        """Records that people pass."""
        found: BoolArray = self.y > 0.5 + ROUNDING
        return found

    def ratio(self, values: FloatArray | BoolArray, where: BoolArray) -> Estimate | None:
        """Weighted share of `values` among the records `where`; None when there are none."""
        return hajek_ratio(values[where], sample_weight=self.weight[where], clusters=self._clusters(where))

    def mean(self, values: FloatArray, where: BoolArray) -> tuple[float, float, float] | None:
        """Weighted mean with its interval, clipped to [-1, 1]; None below two clusters."""
        found = hajek_mean(values[where], sample_weight=self.weight[where], clusters=self._clusters(where))
        interval = None if found is None else found.interval()
        if found is None or interval is None:
            return None
        return found.value, max(-1.0, interval[0]), min(1.0, interval[1])

    def _clusters(self, where: BoolArray) -> Clusters | None:
        return None if self.clusters is None else groups_or_rows(self.clusters, len(self.y))[0][where]


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


def figures(
    labels: Labels,
    report: AgreementReport,
    *,
    score_map: ScoreMap | None,
    thresholds: Mapping[Purpose, Threshold],
    pass_threshold: float | None,
) -> list[Figure]:
    """All figures of a report, in the order to show them.

    Args:
        labels: the records that have a score.
        report: what the labels say of the judge.
        score_map: from score to share that passes; None without one.
        thresholds: by purpose.
        pass_threshold: a score passes from here on; None where it is not the score that decides.
    """
    return [
        confusion_figure(labels, report),
        roc_figure(labels, report, thresholds),
        histogram_figure(labels, pass_threshold),
        reliability_figure(labels, report, score_map),
        ceiling_figure(labels, report),
        groups_figure(labels),
        length_figure(labels, report),
    ]


def confusion_figure(labels: Labels, report: AgreementReport) -> Figure:
    """Labels by verdicts."""
    rates, counts, who = report.rates, report.rates.counts, labels.labeller
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
        drawing=confusion_plot(counts, fail_recall=fail_recall, pass_recall=pass_recall, labeller=who),
        header=("", "judge fails", "judge passes", "agreed, weighted" if rates.weighted else "agreed"),
        rows=(
            (f"{who} fail", f"{counts.both_fail:,}", f"{counts.false_pass:,}", _share(fail_recall)),
            (f"{who} pass", f"{counts.false_fail:,}", f"{counts.both_pass:,}", _share(pass_recall)),
        ),
    )


def roc_figure(labels: Labels, report: AgreementReport, thresholds: Mapping[Purpose, Threshold]) -> Figure:
    """Fail recall against false alarms at every threshold, and where the judge and the thresholds by purpose stand."""
    title = "What another threshold would do"
    curve = roc_curve(labels)
    if not curve:
        return Figure(name="roc", title=title, finding=f"Nothing to draw: {_one_class(labels)}.")
    points, legend, rows = [], [], []
    for purpose, threshold in thresholds.items():
        if threshold.value is None:
            legend.append((symbol(_SHAPES[purpose], "plain", hollow=True), f"{purpose}: none; {threshold.reason}"))
            continue
        at = _flagged(labels, labels.score < threshold.value - ROUNDING)
        name = f"{purpose}: score from {threshold.decimal}; {threshold.reason}"
        points.append(Point(title=_at(name, at), x=at[0], y=at[1], kind="people", shape=_SHAPES[purpose], hollow=True))
        legend.append((symbol(_SHAPES[purpose], "people", hollow=True), name))
        rows.append((f"{purpose}, from {threshold.decimal}", percent(at[1]), percent(at[0])))
    at = _flagged(labels, ~labels.judged)
    points.append(Point(title=_at("the judge as it is", at), x=at[0], y=at[1]))
    legend.insert(0, (symbol("circle", "judge"), "the judge as it is"))
    rows.insert(0, ("as it is", percent(at[1]), percent(at[0])))
    auc = report.auc
    finding = (
        f"AUC {_interval(auc)}: how often it scores a passing answer above a failing one."
        if auc.value is not None
        else f"No AUC: {auc.reason}."
    )
    return Figure(
        name="roc",
        title=title,
        finding=finding,
        drawing=roc_plot(_thinned(curve), points, description=f"{finding} The dashed line is chance."),
        legend=tuple(legend),
        header=("threshold", "of fails flagged", "of passes flagged"),
        rows=tuple(rows),
    )


def histogram_figure(labels: Labels, pass_threshold: float | None) -> Figure:
    """Scores of what passes and of what fails."""
    who, edges = labels.labeller, np.linspace(0.0, 1.0, SCORE_BINS + 1)
    passes, fails = (_histogram(labels, where) for where in (labels.passed, labels.failed))
    names = (f"{who} pass ({labels.passed.sum():,})", f"{who} fail ({labels.failed.sum():,})")
    medians = [
        f"median {plain(float(np.median(labels.score[where])))} where {who} {verb}"
        for where, verb in ((labels.passed, "pass"), (labels.failed, "fail"))
        if where.any()
    ]
    if pass_threshold is None:
        medians.append("what passes is not decided by the score alone, so there is no threshold to draw")
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


def reliability_figure(labels: Labels, report: AgreementReport, score_map: ScoreMap | None) -> Figure:
    """The mapped score, out of fold, against the share that passes."""
    title = "What a score is worth"
    if score_map is None or len(labels.y) < 2:
        return Figure(name="reliability", title=title, finding="Nothing to draw: too few labels for a score map.")
    mapped = cross_val_predict(
        labels.y, labels.score, kind=score_map.kind, sample_weight=labels.weight, clusters=labels.clusters
    )
    who = labels.labeller
    spans, rows = [], []
    for said, found in _reliability(labels, mapped):
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
    error = report.calibration_error
    finding = f"Scores mapped to chances by {_MAPS[score_map.kind]}, each by labels that it was not fitted on"
    if error is not None and error.value is not None:
        finding += f"; off by {100 * error.value:.0f} points on average"
    finding += ". On the dashed line a score means what it says."
    return Figure(
        name="reliability",
        title=title,
        finding=finding,
        drawing=reliability_plot(spans, raw, description=finding, labeller=who),
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


def ceiling_figure(labels: Labels, report: AgreementReport) -> Figure:
    """How well annotators agree among themselves, and the judge in the place of each."""
    who, ceiling = labels.labeller, report.ceiling
    title = f"The judge beside {who}"
    if ceiling is None:
        return Figure(
            name="ceiling",
            title=title,
            finding=(
                "Nothing to draw: no record has two annotators, so how far people agree among themselves is not known. "
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
            marks.append(_statistic_mark(f"{who}, {name}", people, "people", "diamond"))
        if judge.value is not None:
            marks.append(_statistic_mark(f"judge, {name}", judge, "judge", "circle"))
        rows.append(Row(label=name, marks=tuple(marks), reason="" if marks else judge.reason or ""))
        table.append((name, _interval(judge), "" if people is None else _interval(people)))
    singles = [kappa for kappa in ceiling.by_annotator if kappa is not None]
    if len(singles) > 1:
        marks = [Mark(title=f"an annotator, kappa {kappa:.2f}", value=kappa, kind="people") for kappa in singles]
        rows.append(Row(label="kappa of each annotator", marks=tuple(marks), together=True))
        table.append(("kappa of each annotator", "", ", ".join(f"{kappa:.2f}" for kappa in singles)))
    if report.share_of_ceiling is not None:
        finding = f"The judge reaches {percent(report.share_of_ceiling)} of the kappa that {who} reach with each other."
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
            (symbol("diamond", "people"), f"{who}, each against the others"),
            (symbol("circle", "judge"), "the judge in their place"),
        ),
        header=("", "judge (95% interval)", f"{who} (95% interval)"),
        rows=tuple(table),
    )


def groups_figure(labels: Labels) -> Figure:
    """Pass ratio by labels and by judge, for every group of records that there is."""
    who = labels.labeller
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
                label=f"{name} ({where.sum():,})",
                marks=(_estimate_mark(who, people, "people", "diamond"), _estimate_mark("judge", judge)),
            )
        )
        cells = (_estimate(people), _estimate(judge), f"{where.sum():,}")
        table.append((f"{kind}: {name}" if kind else name, *cells))
        if kind and (judge.lower > people.upper or judge.upper < people.lower):
            apart.append(
                (judge.value - people.value, f"{clipped(name, 40)} ({100 * (judge.value - people.value):+.0f})")
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
    who = labels.labeller
    spans, rows = [], []
    for where in _bins(labels.lengths, LENGTH_BINS):
        mean = labels.mean(less, where)
        if mean is None:
            continue
        middle = float(np.exp(np.log(labels.lengths[where]).mean()))
        value, lower, upper = mean
        reach = f"{labels.lengths[where].min():,.0f} to {labels.lengths[where].max():,.0f}"
        text = (reach, f"{value:+.2f}", f"{lower:+.2f} to {upper:+.2f}", f"{where.sum():,}")
        title_ = f"{text[0]} characters: {text[1]} ({text[2]}), {text[3]} labels"
        spans.append(Span(title=title_, x=middle, y=value, lower=lower, upper=upper))
        rows.append(text)
    if found.holds(0.0):
        finding = f"Correlation of judge less {who} with log length {_interval(found)}: it may be none."
    else:
        kind = "long" if found.value > 0 else "short"
        finding = f"It is kinder than {who} to {kind} answers: correlation with log length {_interval(found)}."
    step = max(1, -(-len(less) // MOST_POINTS))
    points = [(float(length), float(rest)) for length, rest in zip(labels.lengths[::step], less[::step], strict=True)]
    return Figure(
        name="length",
        title=title,
        finding=finding,
        drawing=residual_plot(spans, points, description=finding, labeller=who),
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
        bins = np.minimum((labels.score[where] * SCORE_BINS + 1e-9).astype(np.int64), SCORE_BINS - 1)
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
        column = np.asarray(names, dtype=object)
        sizes = {name: int((column == name).sum()) for name in dict.fromkeys(names)}
        if len(sizes) < 2:
            continue
        largest = sorted(sizes, key=lambda name: (-sizes[name], name))
        shown = largest if len(largest) <= MOST_GROUPS + 1 else largest[:MOST_GROUPS]
        yield kind, "", np.ones(len(column), dtype=np.bool_)
        for name in shown:
            yield kind, name or "(none)", column == name
        if len(shown) < len(largest):
            yield kind, f"{len(largest) - len(shown)} others", ~np.isin(column, shown)


def _bins(values: FloatArray, most: int) -> Iterator[BoolArray]:
    """Records by quantiles of `values`, about equally many in each."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, most + 1)[1:-1]))
    number = np.searchsorted(edges, values, side="right")
    for index in np.unique(number):
        yield number == index


def _one_class(labels: Labels) -> str:
    who = labels.labeller
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
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.lower:.2f} to {found.upper:.2f})"


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
