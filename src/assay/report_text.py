"""The weekly report in words: Markdown for a file or a wiki, a message for Slack, and plain data for machines.

Names of apps, routes and versions come from records. In Markdown they stand in code, in a message for Slack too, with
whatever could end it or call somebody taken out.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from assay._markup import clipped, visible
from assay.calibration_plots import percent
from assay.report import FALL
from assay.report_page import NO_DEFECTS, cluster_sentence, day, interval, money, points
from assay.spelling import many

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from assay.report import Fall, Report

#: Characters of a name, and of a section of a message: Slack takes 3,000.
_MOST, _MOST_SECTION = 60, 2_900
#: Lines of one section of a message.
_MOST_LINES = 20


def as_json(report: Report) -> Any:
    """The report as plain data: lists, mappings, numbers and text; moments in ISO 8601."""
    return _plain(asdict(report))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


# Markdown.


def render_markdown(report: Report) -> str:
    """The report as Markdown (GitHub's, for its tables)."""
    first, last = report.bounds[0], report.bounds[-1]
    parts = [
        f"# Quality, {day(first)} to {day(last)} {last.year}",
        _markdown_falls(report),
        "## The last week",
        _rows(
            ("app", "rubric", "pass rate", "95%", "a week before", "people would pass", "scored", "version", "judge"),
            (
                (
                    _code(trend.series.app),
                    _code(trend.series.rubric),
                    percent(point.pass_ratio.value),
                    interval(point.pass_ratio),
                    "–"
                    if (before := trend.points[-2]) is None
                    else f"{points(point.pass_ratio.value - before.pass_ratio.value)} points",
                    point.state.replace("_", " ")
                    if point.corrected is None
                    else f"{percent(point.corrected.value)} ({interval(point.corrected)})",
                    f"{point.pass_ratio.n:,}",
                    _code(trend.series.rubric_version),
                    _code(trend.series.judge),
                )
                for trend in report.trends
                if (point := trend.points[-1]) is not None
            ),
        ),
        "## Trends",
        _rows(
            ("app", "rubric", "version", *(day(start) for start in report.bounds[:-1])),
            (
                (
                    _code(trend.series.app),
                    _code(trend.series.rubric),
                    _code(trend.series.rubric_version),
                    *("–" if point is None else percent(point.pass_ratio.value) for point in trend.points),
                )
                for trend in report.trends
            ),
        ),
        "## Worst clusters",
        cluster_sentence(report),
        _rows(
            ("where", "app", "rubric", "pass rate", "the rest", "gap, points", "of interactions"),
            (
                (
                    f"{one.field} {_code(one.value)}",
                    _code(one.series.app),
                    _code(one.series.rubric),
                    f"{percent(one.inside.value)} ({interval(one.inside)})",
                    percent(one.outside.value),
                    f"{100 * one.gap:.0f} ({100 * one.gap_lower:.0f} to {100 * one.gap_upper:.0f})",
                    percent(one.share),
                )
                for one in report.clusters
            ),
        ),
        *_markdown_rest(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_rest(report: Report) -> list[str]:
    return [
        "## What was wrong",
        _rows(
            ("app", "rubric", "defect", "of what did not pass", "a week before", "answers"),
            (
                (
                    _code(one.series.app),
                    _code(one.series.rubric),
                    one.defect.replace("_", " "),
                    percent(one.share),
                    "–" if one.before is None else percent(one.before),
                    f"{one.n:,}",
                )
                for one in report.defects
            ),
            none=NO_DEFECTS,
        ),
        "## Cost",
        _rows(
            ("app", "judge", "evaluations", "US dollars", "of them priced"),
            (
                (
                    _code(one.app),
                    _code(one.judge),
                    f"{one.evaluations:,}",
                    money(one.cost_usd) if one.priced else "not known",
                    percent(one.priced / one.evaluations),
                )
                for one in report.judging
                if one.week == report.weeks - 1
            ),
        ),
        "## Labels",
        _rows(
            ("rubric", "judge", "level", "labels", "wanted"),
            (
                (
                    f"{_code(one.rubric)} {_code(one.rubric_version)}",
                    _code(one.judge),
                    (one.level or "no labels").replace("_", " "),
                    f"{one.labels:,}",
                    one.wanted or "nothing",
                )
                for one in report.needs
            ),
        ),
        "## What changed",
        "\n".join(f"- {day(change.at)}, {change.kind}: {_code(change.text, 400)}" for change in report.changes)
        or "Nothing that is known of.",
    ]


def _markdown_falls(report: Report) -> str:
    if not report.falls:
        return f"No weekly average fell by more than {percent(FALL)} of itself."
    return "\n".join(f"- {_fall(fall, _code)}" for fall in report.falls)


def _fall(fall: Fall, write: Any) -> str:
    series = fall.series
    verb = "**fell**" if write is _code else "fell"
    said = f"{write(series.app)} {write(series.rubric)}: {fall.measure} {verb if fall.clear else 'is lower'}, "
    said += f"{percent(fall.before.value)} → {percent(fall.after.value)} ({interval(fall.after)})"
    return said if fall.clear else f"{said}, within what chance does"


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]], *, none: str = "Nothing.") -> str:
    body = [f"| {' | '.join(row)} |" for row in rows]
    if not body:
        return none
    return "\n".join([f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *body])


def _code(text: str, most: int = _MOST) -> str:
    """A name as inline code: no markup in it works, and it cannot end the code or the cell of a table."""
    shown = " ".join(visible(clipped(text, most)).split()).replace("`", "'").replace("|", "¦")
    return f"`{shown}`" if shown else "–"


# Slack.


def slack_message(report: Report) -> dict[str, Any]:
    """The message for an incoming webhook: blocks, and the first line again as the text of notifications."""
    last = report.bounds[-1]
    clear = [fall for fall in report.falls if fall.clear]
    head = f"Quality, week to {day(last)} {last.year}"
    if clear:
        text = f":rotating_light: {head}: {many(len(clear), 'weekly average')} fell"
    else:
        text = f"{head}: no weekly average fell clearly"
    sections = [
        ("", [f":small_red_triangle_down: {_fall(fall, _slack)}" for fall in report.falls]),
        ("Pass rate, last week", _slack_trends(report)),
        (
            "Worst clusters",
            [
                f"{one.field} {_slack(one.value)}: {_slack(one.series.app)} {_slack(one.series.rubric)} "
                f"{percent(one.inside.value)}, the rest {percent(one.outside.value)}"
                for one in report.clusters
            ],
        ),
        ("Cost of judging", [_slack_cost(report)]),
        (
            "Labels wanted",
            [f"{_slack(one.rubric)} by {_slack(one.judge)}: {one.wanted}" for one in report.needs if one.wanted],
        ),
        ("What changed", [f"{day(one.at)}, {one.kind}: {_slack(one.text, 200)}" for one in report.changes]),
    ]
    blocks: list[dict[str, Any]] = [{"type": "header", "text": {"type": "plain_text", "text": head, "emoji": True}}]
    for title, lines in sections:
        if lines:
            shown = [f"*{title}*"] * bool(title) + lines[:_MOST_LINES]
            if len(lines) > _MOST_LINES:
                shown.append(f"and {len(lines) - _MOST_LINES} more")
            blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": _fitted(shown)}})
    return {"text": text, "blocks": blocks}


def _slack_trends(report: Report) -> list[str]:
    lines = []
    for trend in report.trends:
        if (point := trend.points[-1]) is None:
            continue
        before = trend.points[-2]
        moved = "" if before is None else f", {points(point.pass_ratio.value - before.pass_ratio.value)} points"
        lines.append(
            f"{_slack(trend.series.app)} {_slack(trend.series.rubric)}: *{percent(point.pass_ratio.value)}* "
            f"({interval(point.pass_ratio)}){moved}"
        )
    return lines or ["nothing was scored"]


def _slack_cost(report: Report) -> str:
    spent = [sum(one.cost_usd for one in report.judging if one.week == report.weeks - back) for back in (1, 2)]
    return f"{money(spent[0])} US dollars, {money(spent[1])} the week before"


def _fitted(lines: Sequence[str]) -> str:
    """As many whole lines as a section takes."""
    kept: list[str] = []
    room = _MOST_SECTION
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line)
    return "\n".join(kept)


def _slack(text: str, most: int = _MOST) -> str:
    """A name as code: `&`, `<` and `>` are what Slack reads links and calls of people from."""
    shown = " ".join(visible(clipped(text, most)).split()).replace("`", "'")
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"`{shown}`" if shown else "–"
