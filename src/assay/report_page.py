"""The weekly report as one HTML file: no script, nothing from elsewhere; to look at, to print and to attach.

Names of apps, routes and versions come from records and are hostile: `assay._markup` escapes them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.resources import files
from itertools import groupby
from math import floor
from typing import TYPE_CHECKING

from assay._markup import Markup, clipped, element, join, number
from assay.calibration_plots import WIDTH, Mark, Row, Scale, drawing, percent, rows_plot, symbol
from assay.report import ENOUGH, FALL
from assay.spelling import many

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from assay._markup import Child
    from assay.report import AnswerCost, Fall, JudgingCost, Point, Report, Trend
    from assay.windows import Estimate

#: Nothing may be loaded or run, whatever a name should come to.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
#: Characters shown of a name.
_MOST = 60

_STYLE = """
.falls { list-style: none; display: grid; gap: 0.35rem; }
.falls .maybe { color: var(--muted); }
.warning h2 { margin: 0 0 0.4rem; }
.calm { border-color: var(--line); background: var(--surface); }
h3 span { font-weight: 400; color: var(--muted); }
.week { fill: var(--judge); fill-opacity: 0.16; }
.line { fill: none; stroke: var(--judge); stroke-width: 2; stroke-linejoin: round; }
.cost { fill: var(--pass); }
.mark.fail { fill: var(--fail); } .whisker.fail { stroke: var(--fail); } .whisker.plain { stroke: var(--plain); }
.scroll td { white-space: nowrap; }
.scroll tbody th { min-width: 9rem; }
.narrow { max-width: 34rem; margin-top: 1rem; }
.lead + .legend { margin-bottom: 0.75rem; }
.card > h3:not(:first-child) { margin-top: 1.25rem; }
.fell { color: var(--fail); font-weight: 600; }
.wanted { display: block; white-space: normal; text-align: left; min-width: 18rem; }
.changes { list-style: none; display: grid; gap: 0.6rem; }
.changes li { display: grid; grid-template-columns: 6.5rem 7rem 1fr; gap: 0.75rem; overflow-wrap: anywhere; }
.changes time, .changes b { color: var(--muted); font-weight: 400; font-variant-numeric: tabular-nums; }
@media (max-width: 34rem) { .changes li { grid-template-columns: 1fr; gap: 0; } }
"""


def render_html(report: Report) -> str:
    """The report as a whole HTML document, UTF-8. The same report gives the same text."""
    title = f"Quality, {_span(report)}"
    page = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", title),
            element("style", _style()),
        ),
        element(
            "body",
            element(
                "main",
                element(
                    "header",
                    element("p", "assay, weekly report", class_="kicker"),
                    element("h1", "Quality ", element("span", _span(report))),
                    element("p", _facts(report), class_="facts"),
                ),
                _falls(report),
                _now(report),
                _trends(report),
                _clusters(report),
                _defects(report),
                _cost(report),
                _needs(report),
                _changes(report),
                element(
                    "p",
                    "All numbers are of all interactions, weighted by 1 / sampling probability; intervals are 95 % "
                    "intervals. A version of a rubric, or a judge, is a series of its own: levels of two are not "
                    "comparable.",
                    class_="facts",
                ),
            ),
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n"


def _style() -> Markup:
    return Markup(files("assay").joinpath("data", "report.css").read_text(encoding="utf-8") + _STYLE)


def _span(report: Report) -> str:
    first, last = report.bounds[0], report.bounds[-1]
    return f"{day(first)} to {day(last)} {last.year}"


def _facts(report: Report) -> str:
    last = [point for trend in report.trends if (point := trend.points[-1]) is not None]
    scored = sum(point.pass_ratio.n for point in last)
    made = f"{report.made_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{report.weeks} weeks · {scored:,} scores in the last · made {made}"


def day(moment: datetime) -> str:
    """Such as `Nov 3`, in UTC."""
    moment = moment.astimezone(UTC)
    return f"{moment:%b} {moment.day}"


def _name(text: str) -> Markup:
    return element("bdi", clipped(text, _MOST) or "–")


# What fell, and where it stands.


def _falls(report: Report) -> Markup:
    clear = [fall for fall in report.falls if fall.clear]
    if not report.falls:
        text = f"No weekly average fell by more than {percent(FALL)} of itself."
        return element("aside", element("p", text), class_="warning calm", role="note")
    heading = "Fell this week" if clear else "Lower this week, maybe by chance"
    return element(
        "aside",
        element("h2", heading),
        element("ul", *(_fall(fall) for fall in report.falls), class_="falls"),
        class_="warning" if clear else "warning calm",
        role="note",
    )


def _fall(fall: Fall) -> Markup:
    series = fall.series
    return element(
        "li",
        element("b", _name(series.app), ", ", _name(series.rubric)),
        f": {fall.measure} {percent(fall.before.value)} → {percent(fall.after.value)} ({interval(fall.after)})",
        "" if fall.clear else ", within what chance does",
        class_=None if fall.clear else "maybe",
    )


def interval(found: Estimate) -> str:
    """Such as `84% to 91%`."""
    return f"{percent(found.lower)} to {percent(found.upper)}"


def points(value: float) -> str:
    """A difference of shares in points, such as `+3`."""
    return f"{100 * value:+z.0f}"


def _now(report: Report) -> Markup:
    header = (
        "app and rubric",
        "pass rate",
        "95%",
        "a week before",
        "people would pass",
        "95%",
        "objective",
        "effective records",
        "failed",
        "version, judge",
    )
    rows = [_now_row(trend, point) for trend in report.trends if (point := trend.points[-1]) is not None]
    body: Child = _table(header, rows, caption="The last week") if rows else element("p", "Nothing was scored.")
    return element(
        "section",
        element("h2", "The last week"),
        element("div", body, class_="card scroll", tabindex="0", role="region", aria_label="The last week"),
    )


def _now_row(trend: Trend, point: Point) -> tuple[Child, ...]:
    before = trend.points[-2]
    below = trend.objective is not None and point.pass_ratio.upper < trend.objective
    corrected = point.corrected
    enough = point.pass_ratio.n_effective >= ENOUGH
    return (
        join(_name(trend.series.app), ", ", _name(trend.series.rubric)),
        element("span", percent(point.pass_ratio.value), class_="fell" if below and enough else None),
        interval(point.pass_ratio),
        "–" if before is None else f"{points(point.pass_ratio.value - before.pass_ratio.value)} points",
        "–" if corrected is None else percent(corrected.value),
        point.state.replace("_", " ") if corrected is None else interval(corrected),
        "–" if trend.objective is None else percent(trend.objective),
        f"{point.pass_ratio.n_effective:,.0f}" + ("" if enough else ", too few"),
        f"{point.failed:,}",
        join(_name(trend.series.rubric_version), ", ", _name(trend.series.judge)),
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[Child]], *, caption: str) -> Markup:
    return element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(element("th", name, scope="col") for name in header))),
        element(
            "tbody",
            *(
                element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
                for first, *rest in rows
            ),
        ),
    )


# Trends.


def _trends(report: Report) -> Markup:
    figures = [
        _trend_figure(report, index, app, rubric, list(trends))
        for index, ((app, rubric), trends) in enumerate(
            groupby(report.trends, key=lambda trend: (trend.series.app, trend.series.rubric))
        )
    ]
    legend = element(
        "ul",
        element("li", symbol("circle", "judge"), element("span", "what the judge passes, with its interval")),
        element("li", symbol("diamond", "people"), element("span", "what people would pass, where that can be said")),
        class_="legend",
    )
    return element(
        "section",
        element("h2", "Trends"),
        element("p", "Pass rate by week. A break in the line is another version or judge.", class_="lead"),
        legend,
        element("div", *figures, class_="figures"),
    )


def _trend_figure(report: Report, index: int, app: str, rubric: str, trends: Sequence[Trend]) -> Markup:
    title = f"{clipped(rubric, _MOST)}, {clipped(app, _MOST)}"
    rows = [
        (
            f"{day(report.bounds[week])}",
            percent(point.pass_ratio.value),
            interval(point.pass_ratio),
            "–" if point.corrected is None else f"{percent(point.corrected.value)} ({interval(point.corrected)})",
            f"{point.score_mean.value:.2f}",
            f"{point.pass_ratio.n:,}",
            _name(trend.series.rubric_version),
        )
        for trend in trends
        for week, point in enumerate(trend.points)
        if point is not None
    ]
    header = ("week from", "pass rate", "95%", "people would pass", "mean score", "scored", "version")
    return element(
        "figure",
        element("h3", _name(rubric), " ", element("span", _name(app))),
        trend_plot(f"trend-{index}", title, trends, report.bounds),
        element(
            "details",
            element("summary", "The numbers"),
            element("div", _table(header, rows, caption=title), class_="numbers"),
        ),
        class_="card",
    )


def trend_plot(name: str, title: str, trends: Sequence[Trend], bounds: Sequence[datetime]) -> Markup:
    """Pass rate over weeks, with intervals; `name` is unique on the page. What people would pass beside it."""
    known = [point for trend in trends for point in trend.points if point is not None]
    floors = [point.pass_ratio.lower for point in known]
    floors += [point.corrected.lower for point in known if point.corrected is not None]
    objective = next((trend.objective for trend in reversed(trends) if trend.objective is not None), None)
    bottom = floor(10 * min([*floors, objective if objective is not None else 1.0, 0.9])) / 10
    height, weeks = 210.0, len(bounds) - 1
    x = Scale(0, max(1, weeks - 1), 58, 336)
    y = Scale(bottom, 1.0, height - 44, 14)
    parts: list[Markup | None] = _frame(x, y, bounds)
    if objective is not None:
        parts.append(
            element(
                "line",
                element("title", f"objective {percent(objective)}"),
                x1=44,
                y1=y(objective),
                x2=348,
                y2=y(objective),
                class_="threshold",
            )
        )
    for trend in trends:
        parts += _series(trend, x, y, bounds)
    last = known[-1] if known else None
    said = f"In the last week {percent(last.pass_ratio.value)}, {interval(last.pass_ratio)}." if last else ""
    return drawing(name, title, f"Pass rate by week. {said}", height, *parts)


def _frame(x: Scale, y: Scale, bounds: Sequence[datetime]) -> list[Markup | None]:
    parts: list[Markup | None] = []
    room = y.high - y.low
    step = 0.1 if room <= 0.45 else 0.25 if room > 0.6 else 0.2
    tick = 1.0
    while tick >= y.low - 1e-9:
        parts.append(element("line", x1=44, y1=y(tick), x2=348, y2=y(tick), class_="grid"))
        parts.append(element("text", percent(tick), x=38, y=y(tick) + 4, class_="tick end"))
        tick = round(tick - step, 6)
    weeks = len(bounds) - 1
    every = max(1, -(-weeks // 6))
    parts += [
        element("text", day(bounds[week]), x=x(week), y=y.start + 18, class_="tick middle")
        for week in range(weeks - 1, -1, -every)
    ]
    parts.append(element("text", "week from", x=(x.start + x.end) / 2, y=y.start + 36, class_="label middle"))
    return parts


def _series(trend: Trend, x: Scale, y: Scale, bounds: Sequence[datetime]) -> list[Markup | None]:
    parts: list[Markup | None] = []
    for run in _runs(trend.points):
        upper = [(x(week), y(point.pass_ratio.upper)) for week, point in run]
        lower = [(x(week), y(point.pass_ratio.lower)) for week, point in reversed(run)]
        if len(run) > 1:
            parts.append(element("path", d=_path([*upper, *lower]) + "Z", class_="week"))
            middle = [(x(week), y(point.pass_ratio.value)) for week, point in run]
            parts.append(element("path", d=_path(middle), class_="line"))
        else:
            ((at, high), (_, low)) = upper[0], lower[0]
            parts.append(element("line", x1=at, y1=low, x2=at, y2=high, class_="whisker judge"))
        for week, point in run:
            parts += _dot(trend, point, x(week), y, day(bounds[week]))
    return parts


def _runs(points_: Sequence[Point | None]) -> list[list[tuple[int, Point]]]:
    """Weeks one after the other that were scored."""
    runs: list[list[tuple[int, Point]]] = []
    for week, point in enumerate(points_):
        if point is None:
            continue
        if runs and runs[-1][-1][0] == week - 1:
            runs[-1].append((week, point))
        else:
            runs.append([(week, point)])
    return runs


def _dot(trend: Trend, point: Point, at: float, y: Scale, week: str) -> list[Markup | None]:
    said = f"week from {week}: {percent(point.pass_ratio.value)}, {interval(point.pass_ratio)}, "
    version, judge = (clipped(name, _MOST) for name in (trend.series.rubric_version, trend.series.judge))
    said += f"{point.pass_ratio.n:,} scored, {version} by {judge}"
    dot = element("circle", element("title", said), cx=at, cy=y(point.pass_ratio.value), r=4, class_="mark judge")
    found = point.corrected
    if found is None:
        return [dot]
    middle, side = y(found.value), 5.0
    corners = [(at + 6, middle - side), (at + 6 + side, middle), (at + 6, middle + side), (at + 6 - side, middle)]
    words = f"people would pass {percent(found.value)}, {interval(found)}: {point.state.replace('_', ' ')}"
    return [
        dot,
        element("line", x1=at + 6, y1=y(found.lower), x2=at + 6, y2=y(found.upper), class_="whisker people"),
        element("path", element("title", words), d=_path(corners) + "Z", class_="mark people"),
    ]


def _path(corners: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if index else 'M'}{number(x)} {number(y)}" for index, (x, y) in enumerate(corners))


# Where it is worst.


def _clusters(report: Report) -> Markup:
    if not report.clusters:
        return element(
            "section",
            element("h2", "Worst clusters"),
            element(
                "p",
                f"Of {many(report.compared, 'group')} none passes clearly less often than the rest of its app.",
                class_="card",
            ),
        )
    rows = [
        Row(
            label=clipped(f"{one.field} {one.value}: {one.series.rubric}", 40),
            marks=(
                Mark(
                    title=f"inside: {percent(one.inside.value)}, {interval(one.inside)}",
                    value=one.inside.value,
                    lower=one.inside.lower,
                    upper=one.inside.upper,
                    kind="fail",
                ),
                Mark(
                    title=f"the rest of its app: {percent(one.outside.value)}, {interval(one.outside)}",
                    value=one.outside.value,
                    lower=one.outside.lower,
                    upper=one.outside.upper,
                    kind="plain",
                    shape="diamond",
                ),
            ),
        )
        for one in report.clusters
    ]
    header = ("where", "app and rubric", "pass rate", "the rest", "gap, points", "95%", "of interactions", "scored")
    table = _table(
        header,
        [
            (
                join(f"{one.field} ", _name(one.value)),
                join(_name(one.series.app), ", ", _name(one.series.rubric)),
                percent(one.inside.value),
                percent(one.outside.value),
                f"{100 * one.gap:.0f}",
                f"{100 * one.gap_lower:.0f} to {100 * one.gap_upper:.0f}",
                percent(one.share),
                f"{one.inside.n:,}",
            )
            for one in report.clusters
        ],
        caption="Worst clusters",
    )
    return element(
        "section",
        element("h2", "Worst clusters"),
        element("p", cluster_sentence(report), class_="lead"),
        element("div", table, class_="card scroll", tabindex="0", role="region", aria_label="Worst clusters"),
        element(
            "figure",
            element(
                "ul",
                element("li", symbol("circle", "fail"), element("span", "inside")),
                element("li", symbol("diamond", "plain"), element("span", "the rest of the app")),
                class_="legend",
            ),
            rows_plot(
                "clusters",
                "Worst clusters",
                rows,
                description="Pass rate inside each cluster and in the rest of its app.",
                axis="pass rate",
            ),
            class_="card narrow",
        ),
    )


#: Where no rubric has enough of them.
NO_DEFECTS = f"No rubric has {ENOUGH} answers that did not pass. The command assay defects list shows those there are."


def cluster_sentence(report: Report) -> str:
    """How the clusters were found, and how many of them chance would bring."""
    return (
        f"Of the last week: groups of {ENOUGH} effective records or more that pass clearly less often than the rest of "
        f"their app. {many(report.compared, 'group')} were compared; chance alone would bring about "
        f"{report.compared / 40:.0f}."
    )


def _defects(report: Report) -> Markup:
    title = element("h2", "What was wrong")
    if not report.defects:
        return element("section", title, element("p", NO_DEFECTS))
    rows = [
        (
            join(_name(one.series.app), ", ", _name(one.series.rubric)),
            one.defect.replace("_", " "),
            percent(one.share),
            "–" if one.before is None else percent(one.before),
            f"{one.n:,}",
        )
        for one in report.defects
    ]
    header = ("app and rubric", "defect", "of what did not pass", "a week before", "answers")
    return element(
        "section",
        title,
        element("div", _table(header, rows, caption="Defects"), class_="card scroll", tabindex="0"),
    )


# Cost.


def _cost(report: Report) -> Markup:
    spent = [sum(one.cost_usd for one in report.judging if one.week == week) for week in range(report.weeks)]
    last = [one for one in report.judging if one.week == report.weeks - 1]
    header = ("app", "judge", "evaluations", "US dollars", "of them priced", "tokens")
    table = _table(header, [_judging_row(one) for one in last], caption="Judging, last week")
    answers = _table(
        ("app and rubric", "an answer, US dollars", "an answer that passes"),
        [_answer_row(one) for one in report.answers],
        caption="Answers, last week",
    )
    return element(
        "section",
        element("h2", "Cost"),
        element(
            "div",
            element(
                "figure",
                element("h3", "Judging, by week"),
                _cost_plot(spent, report.bounds),
                class_="card cost-figure",
            ),
            element(
                "div",
                element("h3", "Judging, last week"),
                table if last else element("p", "Nothing was judged.", class_="none"),
                element("h3", "Answers, last week") if report.answers else None,
                answers if report.answers else None,
                class_="card scroll",
                tabindex="0",
            ),
            class_="first",
        ),
    )


def _judging_row(one: JudgingCost) -> tuple[Child, ...]:
    return (
        _name(one.app),
        _name(one.judge),
        f"{one.evaluations:,}",
        money(one.cost_usd) if one.priced else "not known",
        percent(one.priced / one.evaluations),
        f"{one.tokens:,}",
    )


def _answer_row(one: AnswerCost) -> tuple[Child, ...]:
    passed = "nothing passed" if one.per_passed is None else money(one.per_passed)
    return join(_name(one.app), ", ", _name(one.rubric)), money(one.per_interaction), passed


def money(value: float) -> str:
    """US dollars, with more digits the smaller they are."""
    return f"{value:,.2f}" if value >= 10 else f"{value:.3f}" if value >= 0.1 else f"{value:.5f}"


def _cost_plot(spent: Sequence[float], bounds: Sequence[datetime]) -> Markup:
    height, weeks = 190.0, len(spent)
    y = Scale(0, max([*spent, 1e-9]), height - 44, 22)
    wide = 300 / weeks
    parts: list[Markup | None] = [element("line", x1=40, y1=y.start, x2=348, y2=y.start, class_="axis")]
    every = max(1, -(-weeks // 6))
    for week, cost in enumerate(spent):
        left = 44 + week * wide
        title = element("title", f"week from {day(bounds[week])}: {money(cost)} US dollars")
        parts.append(
            element(
                "rect",
                title,
                x=left + 0.12 * wide,
                y=y(cost),
                width=0.76 * wide,
                height=y.start - y(cost),
                rx=2,
                class_="cost",
            )
        )
        if (weeks - 1 - week) % every == 0:
            parts.append(element("text", day(bounds[week]), x=left + wide / 2, y=y.start + 18, class_="tick middle"))
    # The last is labelled, the others are in the table or under the pointer.
    parts.append(
        element(
            "text",
            money(spent[-1]),
            x=min(WIDTH - 26, 44 + (weeks - 0.5) * wide),
            y=y(spent[-1]) - 6,
            class_="label middle",
        )
    )
    parts.append(element("text", "week from, US dollars", x=196, y=y.start + 36, class_="label middle"))
    return drawing("cost", "Judging by week", f"The last week cost {money(spent[-1])} US dollars.", height, *parts)


# Labels and changes.


def _needs(report: Report) -> Markup:
    rows = [
        (
            join(_name(one.rubric), " ", _name(one.rubric_version)),
            _name(one.judge),
            (one.level or "no labels").replace("_", " "),
            f"{one.labels:,}",
            "–" if one.age_days is None else f"{one.age_days:.0f} days",
            f"{one.waiting:,} / {one.out:,}",
            element("span", one.wanted or "nothing", class_="wanted"),
        )
        for one in report.needs
    ]
    header = ("rubric", "judge", "level", "labels", "newest", "picked / out", "wanted")
    body: Child = _table(header, rows, caption="Labels") if rows else element("p", "Nothing was scored.")
    return element(
        "section",
        element("h2", "Labels"),
        element(
            "p",
            "Picked: waits to be handed to people (",
            element("code", "assay labels export"),
            "). Out: with people.",
            class_="lead",
        ),
        element("div", body, class_="card scroll", tabindex="0", role="region", aria_label="Labels"),
    )


def _changes(report: Report) -> Markup:
    rows = [
        element(
            "li",
            element("time", day(change.at), datetime=change.at.astimezone(UTC).isoformat(timespec="minutes")),
            element("b", change.kind),
            element("span", element("bdi", clipped(change.text, 400))),
        )
        for change in report.changes
    ]
    body = element("ul", *rows, class_="changes") if rows else element("p", "Nothing that is known of.", class_="none")
    return element("section", element("h2", "What changed"), element("div", body, class_="card"))
