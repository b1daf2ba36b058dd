"""The calibration report as one HTML file: no script, nothing from elsewhere, to look at, to print and to attach.

What to know comes first, in sentences; then the verdict and the plots, every number in a table, the worst disagreements
with both explanations, and where it all comes from. What is undefined says why. The texts of records are hostile:
`assay._markup` escapes them, and their length is bounded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from assay._markup import Markup, clipped, element, join
from assay.calibration import LEVELS
from assay.calibration_figures import Labels, figures
from assay.calibration_plots import Mark, interval_bar, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from assay._markup import Child
    from assay.calibration import AgreementReport, Level, Statistic
    from assay.calibration.artefact import Calibration
    from assay.calibration_figures import Figure
    from assay.records import Record, Score

#: Disagreements shown of each kind; characters of one text, and of a context; contexts of a record.
MOST_DISAGREEMENTS, MOST_TEXT, MOST_CONTEXT, MOST_CONTEXTS = 10, 1_500, 600, 4


class JudgedLabel(Protocol):
    """A labelled record with the judge's score."""

    item_id: str
    record: Record | None
    #: what each annotator says, 1 pass to 0 fail
    annotations: Mapping[str, float]
    label: float
    grade: float
    score: Score
    weight: float
    cluster: str
    stratum: str
    note: str


class Calibrated(Protocol):
    """A calibration, the report it was made from, and the labelled records."""

    calibration: Calibration
    report: AgreementReport
    items: Sequence[JudgedLabel]
    pass_threshold: float | None


def render_html(calibrated: Calibrated) -> str:
    """The report as a whole HTML document. The same calibration gives the same text."""
    made = calibrated.calibration
    words = _Words(made.annotator_kind)
    labels = _labels(calibrated, words)
    drawn = figures(
        labels,
        calibrated.report,
        score_map=made.score_map,
        thresholds=made.thresholds,
        pass_threshold=calibrated.pass_threshold,
    )
    title = f"{made.rubric} by {made.judge}: {_LEVELS[made.level].name}"
    page = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", title),
            element("style", _STYLE),
        ),
        element(
            "body",
            element(
                "main",
                _header(made),
                _warnings(made, words),
                element(
                    "div",
                    _summary(calibrated.report, words),
                    _verdict(made, calibrated.report, words),
                    class_="first",
                ),
                element("section", element("h2", "Plots"), element("div", *map(_figure, drawn), class_="figures")),
                _statistics(calibrated.report, words),
                _disagreements(calibrated, words),
                _provenance(made, words),
            ),
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n"


class _Words:
    """Who gave the labels: nobody is called human who is none."""

    def __init__(self, kind: str) -> None:
        self.human = kind == "human"
        self.who = {"human": "people", "author": "the authors", "model": "the labelling models"}.get(
            kind, "the labellers"
        )

    def __call__(self, sentence: str) -> str:
        """A sentence about people, about those who really labelled: with a capital and a full stop."""
        text = sentence
        if not self.human:
            text = re.sub(r"\bhuman (labels?)\b", r"\1", re.sub(r"\bpeople\b", self.who, text))
        return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


class _Allowed(NamedTuple):
    """A level in words: its name, and what it allows."""

    name: str
    allows: str


_LEVELS: Mapping[Level, _Allowed] = {
    "no_data": _Allowed("no data", "Too few labels to say anything. Its gauge is shown raw, and marked."),
    "unusable": _Allowed("unusable", "Do not alert on it: it may tell good answers from bad hardly better than chance."),
    "trend_only": _Allowed("trend only", "Alert on changes. Hold no level against an objective."),
    "calibrated": _Allowed("calibrated", "A level objective may stand on the corrected gauge, and alerts on changes."),
    "human_like": _Allowed(
        "human-like", "A level objective may stand on the corrected gauge; it may stand in for a second annotator."
    ),
}


def _labels(calibrated: Calibrated, words: _Words) -> Labels:
    items = calibrated.items
    records = [item.record for item in items]
    groups: dict[str, list[str]] = {"stratum": [item.stratum for item in items]}
    for name in ("app", "route", "model", "prompt_version"):
        groups[name] = ["" if record is None else getattr(record, name) or "" for record in records]
    keys = sorted({key for record in records if record is not None for key in record.cohort})
    for key in keys:
        groups[f"cohort {key}"] = ["" if record is None else record.cohort.get(key, "") for record in records]
    lengths = None
    if all(record is not None and record.output for record in records):
        lengths = np.array([len(record.output) for record in records if record is not None], dtype=np.float64)
    return Labels(
        y=np.array([item.label for item in items], dtype=np.float64),
        judged=np.array([item.score.passed for item in items], dtype=np.bool_),
        score=np.array([item.score.value for item in items], dtype=np.float64),
        grade=np.array([item.grade for item in items], dtype=np.float64),
        weight=np.array([item.weight for item in items], dtype=np.float64),
        clusters=[item.cluster for item in items] if any(item.cluster for item in items) else None,
        lengths=lengths,
        groups=groups,
        labeller=words.who,
    )


def _header(made: Calibration) -> Markup:
    counts = made.rates.counts
    facts = [
        f"rubric version {made.rubric_version}",
        f"{made.n:,} labels, {counts.fails:,} of them fail",
        f"{made.annotators:,} annotator{'' if made.annotators == 1 else 's'}",
        _dates(made.labelled_from, made.labelled_to),
    ]
    return element(
        "header",
        element("p", "Calibration report", class_="kicker"),
        element("h1", made.rubric, " ", element("span", f"by {made.judge}")),
        element("p", " · ".join(fact for fact in facts if fact), class_="facts"),
    )


def _warnings(made: Calibration, words: _Words) -> Markup | None:
    """What must be known before anything is read."""
    said = []
    if made.synthetic:
        said.append("The records are synthetic: written for this set, not taken from production.")
    if not words.human:
        who = {"author": "the authors of the set", "model": "a model"}.get(made.annotator_kind, made.annotator_kind)
        said.append(f"The labels are not human judgements of a product: they were given by {who}.")
    if not said:
        return None
    said.append("Read the numbers as a demonstration of the method, not as evidence about your traffic.")
    lead, *rest = said
    return element("aside", element("strong", lead), " ", " ".join(rest), class_="warning", role="note")


class _Sentence(NamedTuple):
    """A finding: the text with its number in the middle, the interval, and a bar."""

    before: str
    number: str
    after: str
    range: str
    bar: Markup | None = None


def _summary(report: AgreementReport, words: _Words) -> Markup:
    found = [
        _recall_sentence(report, words),
        _precision_sentence(report, words),
        _kappa_sentence(report, words),
        _bias_sentence(report, words),
    ]
    return element(
        "section",
        element("h2", "What to know"),
        element(
            "ul",
            *(
                element(
                    "li",
                    element("p", s.before, element("b", s.number) if s.number else None, s.after, class_="say"),
                    s.bar,
                    element("p", s.range, class_="range") if s.range else None,
                )
                for s in found
            ),
            class_="sentences",
        ),
        element("ul", *(element("li", words(note)) for note in report.notes), class_="notes") if report.notes else None,
        class_="card",
    )


def _recall_sentence(report: AgreementReport, words: _Words) -> _Sentence:
    found = report.fail_recall
    if found.value is None:
        return _Sentence(words(f"What it flags of bad answers is not known: {found.reason}"), "", "", "")
    return _Sentence(
        "It flags ", percent(found.value), f" of the answers {words.who} reject.", _spread(found), _bar(found)
    )


def _precision_sentence(report: AgreementReport, words: _Words) -> _Sentence:
    found = report.fail_precision
    if found.value is None:
        return _Sentence(words(f"What its flags are worth is not known: {found.reason}"), "", "", "")
    who = f"{words.who[:1].upper()}{words.who[1:]}"
    return _Sentence(f"{who} agree with ", percent(found.value), " of its flags.", _spread(found), _bar(found))


def _kappa_sentence(report: AgreementReport, words: _Words) -> _Sentence:
    found, ceiling = report.kappa, report.ceiling
    if found.value is None:
        return _Sentence(words(f"Its agreement beyond chance is not known: {found.reason}"), "", "", "")
    after, at = ", where 0 is chance and 1 is perfect.", None
    if ceiling is not None and ceiling.kappa.value is not None:
        at = ceiling.kappa.value
        after = f"; {words.who} among themselves reach {at:.2f}."
        if report.share_of_ceiling is not None:
            after = f"{after[:-1]}, so it is at {percent(report.share_of_ceiling)} of that ceiling."
    low = min(0.0, found.value if found.lower is None else found.lower)
    bar = interval_bar(_mark(found), low=low, reference=at, reference_name=f"{words.who} among themselves")
    return _Sentence("Its kappa is ", f"{found.value:.2f}", after, _numbers(found), bar)


def _bias_sentence(report: AgreementReport, words: _Words) -> _Sentence:
    rates, found = report.rates, report.rates.bias
    levels = f": judge {percent(rates.judge_pass.value)}, {words.who} {percent(rates.human_pass.value)}."
    if found.value is None:
        return _Sentence(words(f"Its bias is not known: {found.reason}"), "", "", "")
    spread = "" if found.lower is None or found.upper is None else (
        f"{_points(found.lower)} to {_points(found.upper)} points, 95% interval"
    )  # fmt: skip
    reach = max(0.1, *(abs(end) for end in (found.value, found.lower or 0.0, found.upper or 0.0)))
    bar = interval_bar(_mark(found), low=-reach, high=reach, reference=0.0, reference_name="no bias")
    if rates.bias_p < 0.05 and not found.holds(0.0):
        way = "high" if found.value > 0 else "low"
        points = f"{100 * abs(found.value):.0f} point{'' if round(100 * abs(found.value)) == 1 else 's'}"
        return _Sentence("Its pass ratio reads ", points, f" too {way}{levels}", spread, bar)
    return _Sentence("Its pass ratio shows ", "no clear bias", levels, spread, bar)


def _verdict(made: Calibration, report: AgreementReport, words: _Words) -> Markup:
    reached = LEVELS.index(made.level)
    steps = [
        element(
            "li",
            _LEVELS[level].name,
            class_="here" if index == reached else "below" if index < reached else None,
            aria_current="step" if index == reached else None,
        )
        for index, level in enumerate(LEVELS)
    ]
    width = report.level_half_width
    level = None if width is None else f"corrected by fresh labels like these, its level is known to ±{100 * width:.0f} points"
    return element(
        "section",
        element("h2", "Verdict"),
        element("p", _LEVELS[made.level].name, class_=f"level {'good' if reached >= 3 else 'bad' if reached < 2 else ''}"),
        element("ol", *steps, class_="ladder", aria_label="levels, lowest first"),
        element("p", _LEVELS[made.level].allows),
        element("h3", "Why"),
        element("ul", *(element("li", words(reason)) for reason in [*made.reasons, *([level] if level else [])])),
        element("h3", "What more labels would buy"),
        element("ul", *(element("li", words(need.sentence())) for need in report.needs))
        if report.needs
        else element("p", "Nothing that is missing."),
        class_="card verdict",
    )


def _figure(figure: Figure) -> Markup:
    legend = element(
        "ul", *(element("li", mark, element("span", text)) for mark, text in figure.legend), class_="legend"
    )
    return element(
        "figure",
        element("h3", figure.title),
        element("figcaption", figure.finding),
        figure.drawing,
        legend if figure.legend else None,
        element(
            "details", element("summary", "The numbers"), _table(figure.header, figure.rows, caption=figure.title)
        )
        if figure.rows
        else None,
        class_="card",
        id=figure.name,
    )


def _statistics(report: AgreementReport, words: _Words) -> Markup:
    header = ("measure", "judge", "95% interval", f"{words.who} among themselves", "labels", "what it says")
    return element(
        "section",
        element("h2", "All statistics"),
        element(
            "div",
            _table(header, [_measure(*row, words) for row in _measures(report)], caption="All statistics", wide=True),
            class_="card scroll",
            tabindex="0",
            role="region",
            aria_label="All statistics",
        ),
    )


class _Measure(NamedTuple):
    """A row of the table of statistics; a text in the place of a statistic is the reason why there is none."""

    name: str
    judge: Statistic | str
    people: Statistic | None
    says: str
    share: bool = False


def _measures(report: AgreementReport) -> list[_Measure]:
    """All statistics, in display order."""
    ceiling, rates = report.ceiling, report.rates
    no_levels = "only for an ordinal scale of at least 3 levels"
    no_map = "there is no score map"
    rows = [
        _Measure(
            "fail recall", report.fail_recall, ceiling and ceiling.fail_recall, "of what people fail, it flags so much", True
        ),
        _Measure("fail precision", report.fail_precision, None, "of what it flags, people fail so much", True),
        _Measure("kappa", report.kappa, ceiling and ceiling.kappa, "agreement beyond chance; 0 is chance"),
        _Measure(
            "weighted kappa",
            report.weighted_kappa or no_levels,
            ceiling and ceiling.weighted_kappa,
            "the same over the levels, far misses counting more",
        ),
        _Measure("Krippendorff's alpha", "people only", report.alpha, "agreement of the annotators; 0.8 is reliable"),
        _Measure("Youden's J", rates.youden, None, "slope of its pass ratio on the true one; 0 is blind"),
        _Measure("bias of pass ratio", rates.bias, None, f"judge less people, p = {_p(rates.bias_p)}"),
        _Measure("bias of score", report.score_bias, None, "judge less people, in score"),
        _Measure("AUC", report.auc, None, "whatever the threshold: how well the score ranks; 0.5 is chance"),
        _Measure("mean absolute error", report.mean_absolute_error, None, "distance of score and label"),
        _Measure("Spearman's rho", report.spearman, None, "correlation of ranks"),
        _Measure("Kendall's tau-b", report.kendall, None, "correlation of ranks, by pairs"),
        _Measure("Pearson's r", report.pearson, None, "correlation of values"),
        _Measure("Brier score", report.brier or no_map, None, "of the mapped score, out of fold; 0 is best"),
        _Measure("calibration error", report.calibration_error or no_map, None, "of the mapped score, out of fold"),
        _Measure("Gwet's AC1", report.ac1, None, "looks good wherever one class is rare: not for judging by"),
        _Measure("Gwet's AC2", report.ac2 or no_levels, None, "the same over the levels"),
        _Measure(
            "accuracy", report.accuracy, ceiling and ceiling.accuracy, "looks good wherever one class is rare", True
        ),
        _Measure("F1 of fail", report.f1_fail, None, "between fail precision and fail recall"),
        _Measure(
            "length correlation",
            report.length_correlation or "the judged answers are not at hand",
            None,
            "of judge less people with the log of the answer's length; 0 is unswayed",
        ),
    ]
    return rows


def _measure(row: _Measure, words: _Words) -> tuple[Child, ...]:
    found = row.judge
    write = percent if row.share else _decimal
    says = words(row.says)[:-1] if not words.human else row.says
    people = "" if row.people is None else _people(row.people, write)
    if isinstance(found, str):
        return row.name, element("span", found, class_="none"), "", people, "", says
    if found.value is None:
        return row.name, element("span", words(found.reason or "")[:-1], class_="none"), "", people, _count(found.n), says
    ends = "" if found.lower is None or found.upper is None else f"{write(found.lower)} to {write(found.upper)}"
    return row.name, write(found.value), ends, people, _count(found.n), says
