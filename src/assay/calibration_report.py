"""The calibration report as one HTML file: no script, nothing from elsewhere; to look at, to print and to attach.

What to know comes first, in sentences; then the verdict and the plots, every number in a table, the worst disagreements
with both explanations, and where it all comes from. What is undefined says why. The texts of records are hostile:
`assay._markup` escapes them, and their length is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from assay._markup import Markup, clipped, element
from assay.calibration import LEVELS
from assay.calibration.level import MIN_LABELS
from assay.calibration.statistic import MIN_CLUSTERS
from assay.calibration_figures import figures
from assay.calibration_plots import Mark, interval_bar, percent
from assay.calibration_summary import cost_sentence, statistics_table
from assay.spelling import many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from assay._markup import Child
    from assay.calibrate import Calibrated, CalibrationRow
    from assay.calibration import AgreementReport, Level, Statistic
    from assay.calibration_figures import Figure
    from assay.records import Record, Score

#: Disagreements shown of each kind; annotators, contexts and parts of a verdict shown of each record.
MOST_DISAGREEMENTS, MOST_ANNOTATORS, MOST_CONTEXTS, MOST_PARTS = 10, 8, 4, 8
#: Characters shown of a text, and of a context or part of a verdict.
MOST_TEXT, MOST_CONTEXT = 1_500, 600

#: Nothing may be loaded or run, whatever a record's text should come to.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class _Level(NamedTuple):
    name: str
    allows: str


_LEVELS: Mapping[Level, _Level] = {
    "no_data": _Level("no data", "Too few labels to say anything. The gauge is shown raw, and marked."),
    "unusable": _Level("unusable", "Build no alert on it."),
    "trend_only": _Level("trend only", "Alert on its changes, never on its level."),
    "calibrated": _Level("calibrated", "Alert on its changes, and on its level once corrected."),
    "human_like": _Level(
        "human-like", "Alert on its changes, and on its level once corrected. It may stand in for a second annotator."
    ),
}


def render_html(calibrated: Calibrated) -> str:
    """The report as a whole HTML document, UTF-8. The same calibration gives the same text."""
    made = calibrated.calibration
    page = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", f"{made.rubric} by {clipped(made.judge, 80)}: {_LEVELS[made.level].name}"),
            element("style", _style()),
        ),
        element(
            "body",
            element(
                "main",
                _header(calibrated),
                _warning(calibrated),
                element("div", _findings(calibrated), _verdict(calibrated), class_="first"),
                element(
                    "section",
                    element("h2", "Plots"),
                    element("div", *(_figure(figure) for figure in figures(calibrated)), class_="figures"),
                ),
                _statistics(calibrated),
                _disagreements(calibrated),
                _provenance(calibrated),
            ),
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n"


def _style() -> Markup:
    return Markup(files("assay").joinpath("data", "report.css").read_text(encoding="utf-8"))


# What to know.


def _header(calibrated: Calibrated) -> Markup:
    made = calibrated.calibration
    facts = [
        f"rubric version {made.rubric_version}",
        f"{many(made.n, 'label')}, {made.rates.counts.fails:,} of them fail",
        many(made.annotators, "annotator"),
        _days(made.labelled_from, made.labelled_to),
    ]
    return element(
        "header",
        element("p", "Calibration report", class_="kicker"),
        element("h1", made.rubric, " ", element("span", "by ", element("bdi", clipped(made.judge, 80)))),
        element("p", " · ".join(fact for fact in facts if fact), class_="facts"),
    )


def _warning(calibrated: Calibrated) -> Markup | None:
    """What must be known before anything is read: that nobody rated real records."""
    loud = _loud(calibrated)
    if not loud:
        return None
    return element("aside", *(element("p", _sentence(caution)) for caution in loud), class_="warning", role="note")


def _loud(calibrated: Calibrated) -> list[str]:
    """The cautions that there would not be if people had labelled real records."""
    labels = calibrated.label_set
    others = replace(labels, annotator_kind="human", synthetic=False).cautions
    return [caution for caution in labels.cautions if caution not in others]


class _Finding(NamedTuple):
    """A sentence with its number in the middle, the interval in words, and a bar."""

    before: str
    number: str = ""
    after: str = ""
    interval: str = ""
    bar: Markup | None = None


def _findings(calibrated: Calibrated) -> Markup:
    report, who = calibrated.report, calibrated.labellers
    found = (_recall(report, who), _precision(report, who), _kappa(report), _bias(report, who))
    return element(
        "section",
        element("h2", "What to know"),
        element("ul", *(_finding(finding) for finding in found), class_="sentences"),
        class_="card",
    )


def _finding(found: _Finding) -> Markup:
    number = element("b", found.number) if found.number else None
    return element(
        "li",
        element("p", found.before, number, found.after, class_="say"),
        found.bar,
        element("p", found.interval, class_="range") if found.interval else None,
    )


def _recall(report: AgreementReport, who: str) -> _Finding:
    found = report.fail_recall
    if found.value is None:
        return _Finding(_sentence(f"how many bad answers it flags is not known: {found.reason}"))
    after = f" of the answers that {who} reject."
    return _Finding("It flags ", percent(found.value), after, _interval(found), interval_bar(_mark(found)))


def _precision(report: AgreementReport, who: str) -> _Finding:
    found = report.fail_precision
    if found.value is None:
        return _Finding(_sentence(f"what its flags are worth is not known: {found.reason}"))
    before = f"{who[:1].upper()}{who[1:]} agree with "
    return _Finding(before, percent(found.value), " of its flags.", _interval(found), interval_bar(_mark(found)))


def _kappa(report: AgreementReport) -> _Finding:
    found, ceiling = report.kappa, report.ceiling
    if found.value is None:
        return _Finding(_sentence(f"its agreement beyond chance is not known: {found.reason}"))
    after, among = ", where 0 is chance and 1 is perfect.", None
    if ceiling is not None and ceiling.kappa.value is not None:
        among = ceiling.kappa.value
        after = f"; annotators among themselves reach {among:.2f}"
        after += (
            "."
            if report.share_of_ceiling is None
            else f": {percent(max(0.0, report.share_of_ceiling))} of that ceiling."
        )
    low = min(0.0, found.value if found.lower is None else found.lower)
    bar = interval_bar(_mark(found), low=low, reference=among, reference_name="annotators among themselves")
    return _Finding("Its kappa is ", f"{found.value:.2f}", after, _interval(found, _decimal), bar)


def _bias(report: AgreementReport, who: str) -> _Finding:
    rates, found = report.rates, report.rates.bias
    if found.value is None:
        return _Finding(_sentence(f"its bias is not known: {found.reason}"))
    after = f": judge {percent(rates.judge_pass.value)}, {who} {percent(rates.human_pass.value)}."
    interval = _interval(found, _points, unit=" points")
    reach = max(0.1, *(abs(end) for end in (found.value, found.lower, found.upper) if end is not None))
    bar = interval_bar(_mark(found), low=-reach, high=reach, reference=0.0, reference_name="no bias")
    if found.lower is None:
        return _Finding(
            _sentence(f"whether its pass ratio is right is not known{after[:-1]}"), interval=interval, bar=bar
        )
    if rates.bias_p >= 0.05 or found.holds(0.0):
        return _Finding("Its pass ratio shows ", "no clear bias", after, interval, bar)
    off = round(100 * abs(found.value))
    way = "high" if found.value > 0 else "low"
    return _Finding("Its pass ratio reads ", many(off, "point"), f" too {way}{after}", interval, bar)


def _verdict(calibrated: Calibrated) -> Markup:
    made, needs = calibrated.calibration, calibrated.report.needs
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
    loud = _loud(calibrated)
    notes = [note for note in calibrated.notes if note not in loud]
    mood = "good" if reached >= LEVELS.index("calibrated") else "bad" if reached < LEVELS.index("trend_only") else ""
    more = element("p", "Nothing: there are labels enough.")
    if needs:
        more = element("ul", *(element("li", _sentence(need.sentence())) for need in needs))
    elif made.level == "no_data":
        more = element("p", f"A word on the judge, once the labels come from at least {MIN_CLUSTERS} clusters.")
    return element(
        "section",
        element("h2", "Verdict"),
        element("p", _LEVELS[made.level].name, class_=f"level {mood}".strip()),
        element("ol", *steps, class_="ladder", aria_label="levels, lowest first"),
        element("p", _LEVELS[made.level].allows),
        element("h3", "Why"),
        element("ul", *(element("li", _sentence(reason)) for reason in made.reasons)),
        element("h3", "What more labels would buy"),
        more,
        element("h3", "Keep in mind") if notes else None,
        element("ul", *(element("li", _sentence(note)) for note in notes)) if notes else None,
        class_="card verdict",
    )


# Plots and numbers.


def _figure(figure: Figure) -> Markup:
    legend = numbers = None
    if figure.legend:
        entries = (element("li", mark, element("span", text)) for mark, text in figure.legend)
        legend = element("ul", *entries, class_="legend")
    if figure.rows:
        table = _table(figure.header, figure.rows, caption=figure.title)
        numbers = element("details", element("summary", "The numbers"), element("div", table, class_="numbers"))
    return element(
        "figure",
        element("h3", figure.title),
        element("figcaption", figure.finding),
        figure.drawing,
        legend,
        numbers,
        class_="card",
        id=figure.name,
    )


def _statistics(calibrated: Calibrated) -> Markup:
    rows = [(row.name, row.value, row.interval, row.note) for row in statistics_table(calibrated)]
    absent = _absent(calibrated.report)
    return element(
        "section",
        element("h2", "All statistics"),
        element(
            "div",
            _table(("statistic", "value", "95% interval", "how to read it"), rows, caption="All statistics", wide=True),
            element("p", f"Not measured: {'; '.join(absent)}.", class_="none") if absent else None,
            class_="card scroll",
            tabindex="0",
            role="region",
            aria_label="All statistics",
        ),
    )


def _absent(report: AgreementReport) -> list[str]:
    """What the table has no row for, and why."""
    absent = {
        "weighted kappa and AC2 (only for labels on an ordinal scale of 3 levels or more)": report.weighted_kappa,
        "agreement of annotators (no record has two)": report.ceiling,
        "alternative annotator test (it takes 3 annotators on 50 records)": report.alt_test,
        f"Brier score and calibration error (a score map takes {MIN_LABELS} labels)": report.brier,
        "correlation with length (the judged answers are not at hand)": report.length_correlation,
    }
    return [name for name, found in absent.items() if found is None]


def _table(header: Sequence[str], rows: Iterable[Sequence[Child]], *, caption: str, wide: bool = False) -> Markup:
    body = (
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in rows
    )
    return element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(element("th", name, scope="col") for name in header))),
        element("tbody", *body),
        class_="wide" if wide else None,
    )


# Disagreements.


def _disagreements(calibrated: Calibrated) -> Markup:
    who, apart = calibrated.labellers, calibrated.disagreements()
    missed = [row for row in apart if row.label < 0.5]
    flagged = [row for row in apart if row.label > 0.5]
    return element(
        "section",
        element("h2", "Worst disagreements"),
        element("p", "To mend the rubric by: where do the two explanations part?", class_="lead"),
        _worst("missed", f"Missed: {who} fail it, the judge passes it", missed, who),
        _worst("flagged", f"False flags: {who} pass it, the judge fails it", flagged, who),
        class_="disagreements",
    )


def _worst(name: str, title: str, rows: Sequence[CalibrationRow], who: str) -> Markup:
    shown = rows[:MOST_DISAGREEMENTS]
    many = f"{len(rows):,}" if len(shown) == len(rows) else f"the worst {len(shown)} of {len(rows):,}"
    return element(
        "section",
        element("h3", title, " ", element("span", many if rows else "none", class_="many")),
        *(_disagreement(row, row.score, who) for row in shown if row.score is not None),
        id=name,
    )


def _disagreement(row: CalibrationRow, score: Score, who: str) -> Markup:
    said = [f"{clipped(name, 40)} {_side(share)}" for name, share in row.item.passes.items()]
    if len(said) > MOST_ANNOTATORS:
        said[MOST_ANNOTATORS:] = [f"{len(said) - MOST_ANNOTATORS} more"]
    verdict = f"The judge: {clipped(score.label or _side(float(score.passed)), 40)}, score {_decimal(score.value)}"
    given = f"{who[:1].upper()}{who[1:]}: {_side(row.label)}"
    return element(
        "article",
        element("h4", element("bdi", clipped(row.item_id, 80))),
        *_record(row.record),
        _quoted(verdict, score.explanation, absent="It gave no explanation.", kind="judge", more=_parts(score)),
        _quoted(f"{given} ({', '.join(said)})", row.note, absent="No note.", kind="people"),
        class_="card",
    )


def _record(record: Record | None) -> tuple[Child, ...]:
    if record is None:
        return (element("p", "The record's texts are not in the label file.", class_="none"),)
    contexts = None
    if record.contexts:
        shown = record.contexts[:MOST_CONTEXTS]
        left = len(record.contexts) - len(shown)
        contexts = element(
            "details",
            element("summary", many(len(record.contexts), "context")),
            *(_quoted(f"{at}", context.text, most=MOST_CONTEXT) for at, context in enumerate(shown, start=1)),
            element("p", f"{left:,} more.", class_="none") if left else None,
            class_="contexts",
        )
    return _quoted("Input", record.input_text), contexts, _quoted("Answer", record.output)


def _parts(score: Score) -> Markup | None:
    """What the explanation leaves out of the verdict: claims that it took as supported, and items, the failed first."""
    claims, items = score.details.get("claims"), score.details.get("items")
    parts = [
        f"supported: {claim.get('claim')}"
        for claim in (claims if isinstance(claims, list | tuple) else ())
        if isinstance(claim, Mapping) and claim.get("verdict") == "supported" and claim.get("quote_found") is not False
    ]
    answers = items.items() if isinstance(items, Mapping) else ()
    parts += [f"{item}: {answer}" for item, answer in sorted(answers, key=lambda pair: pair[1] != "no")]
    if not parts:
        return None
    shown = [element("li", element("bdi", clipped(part, MOST_CONTEXT))) for part in parts[:MOST_PARTS]]
    if len(parts) > len(shown):
        shown.append(element("li", f"{len(parts) - len(shown):,} more", class_="none"))
    return element("ul", *shown, class_="parts")


def _quoted(
    title: str, text: str, *, absent: str = "Empty.", most: int = MOST_TEXT, kind: str = "", more: Markup | None = None
) -> Markup:
    """A text of a record, judge or annotator under its title: isolated from the page around it, and cut."""
    cut = len(text) - most
    if not text.strip():
        body = element("p", absent, class_="none")
    elif cut > 0:
        rest = element("span", f" … {cut:,} more characters", class_="none")
        body = element("blockquote", text[:most], rest, dir="auto")
    else:
        body = element("blockquote", text, dir="auto")
    return element("div", element("h5", element("bdi", title)), body, more, class_=f"quoted {kind}".strip())


# Where it comes from.

_GIVEN_BY: Mapping[str, str] = {
    "human": "people",
    "author": "the authors of the records",
    "model": "a model",
    "unknown": "the file does not say by whom",
}


def _provenance(calibrated: Calibrated) -> Markup:
    made, labels = calibrated.calibration, calibrated.label_set
    weighted = "which differ" if made.rates.weighted else "all alike"
    by_hand = made.selection == "curated"
    left_out = ", ".join(f"{count:,} {reason.replace(':', ': ')}" for reason, count in made.left_out.items())
    facts: list[tuple[str, Child]] = [
        ("Rubric", f"{made.rubric}, version {made.rubric_version}"),
        ("Rubric hash", element("code", made.rubric_hash)),
        ("Judge", made.judge),
        ("Judge fingerprint", element("code", made.judge_fingerprint)),
        ("Label file", labels.path.name),
        ("Labels hash", element("code", made.labels_sha256)),
        ("Description", clipped(labels.description, MOST_CONTEXT) or "none"),
        ("Labels given by", f"{_GIVEN_BY.get(made.annotator_kind, made.annotator_kind)}, {made.annotators:,} in all"),
        ("Labelled", _days(made.labelled_from, made.labelled_to) or "the labels carry no dates"),
        ("Records", "synthetic" if made.synthetic else "not synthetic, by what the file says"),
        ("Selection", "picked by hand" if by_hand else f"by known probabilities, {weighted}"),
        ("One label out of many", made.gold),
        ("Left out", left_out or "nothing: every labelled record has a score"),
        ("Judging a record", cost_sentence(made.cost)),
        ("Calibrated", f"{made.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"),
        ("Calibration id", element("code", made.calibration_id)),
    ]
    return element(
        "section",
        element("h2", "Where it comes from"),
        element(
            "dl",
            *(element("div", element("dt", name), element("dd", element("bdi", fact))) for name, fact in facts),
            class_="card facts-list",
        ),
        element(
            "p", "All intervals are 95% intervals. The level goes by their ends, never by the values.", class_="lead"
        ),
    )


# Words and numbers.


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _mark(found: Statistic) -> Mark:
    return Mark(title="", value=found.value or 0.0, lower=found.lower, upper=found.upper)


def _interval(found: Statistic, write: Callable[[float], str] = percent, *, unit: str = "") -> str:
    """Such as `57% to 86%, from 31 labels`."""
    if found.lower is None or found.upper is None:
        return f"no interval, from {many(found.n, 'label')}"
    return f"{write(found.lower)} to {write(found.upper)}{unit}, from {many(found.n, 'label')}"


def _points(value: float) -> str:
    return f"{100 * value:+z.0f}"


def _decimal(value: float) -> str:
    return f"{value:z.2f}"


def _side(share: float) -> str:
    return "undecided" if abs(share - 0.5) < 1e-9 else "pass" if share > 0.5 else "fail"


def _days(first: datetime | None, last: datetime | None) -> str:
    if first is None or last is None:
        return ""
    days = [f"{moment.astimezone(UTC):%Y-%m-%d}" for moment in (first, last)]
    return f"labelled {days[0]}" if days[0] == days[1] else f"labelled {days[0]} to {days[1]}"
