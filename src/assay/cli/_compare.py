"""`assay compare`: quality, score and cost by version."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from assay.cli._opened import open_store
from assay.cli._options import Apps, settings_of
from assay.cli._screen import Json, output, print_json, print_table, ratio
from assay.errors import ConfigError
from assay.records import now
from assay.windows import parse_window

if TYPE_CHECKING:
    from assay.compare import Comparison, GroupResult
    from assay.differences import Difference


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("compare")(compare_versions)


def compare_versions(
    by: Annotated[
        str,
        typer.Option(
            help="`prompt_version`, `model`, `route`, `rubric_version`, `judge`, or a key of the records' `cohort`."
        ),
    ],
    apps: Apps = None,
    rubric: Annotated[str | None, typer.Option(help="Only the rubric of this name.")] = None,
    since: Annotated[
        str,
        typer.Option(help="How far back, such as `24h` or `7d`, or a time: `2026-01-31` or `2026-01-31T12:00:00Z`."),
    ] = "7d",
    until: Annotated[str | None, typer.Option(help="Up to when, likewise. Default: now.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="What the others are compared with. Default: what has most records.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare pass rate, score and cost per interaction between versions, each with its 95 % interval.

    Every record counts as 1 / its sampling probability. Interactions are taken by their own time, and rubrics and
    judges are kept apart: only scores of the same question by the same judge are compared.
    """
    moment = now()
    start, end = _moment("--since", since, moment), moment if until is None else _moment("--until", until, moment)
    if start >= end:
        raise ConfigError(f"--since {since} is not before --until {until or 'now'}: nothing lies between")
    store = open_store(settings_of(apps))
    from assay.compare import compare  # numpy

    report = compare(store.compared_scores(by, start, end, rubric=rubric), by, baseline=baseline)
    if as_json:
        print_json({"since": start.isoformat(), "until": end.isoformat(), **dataclasses.asdict(report)})
        return
    for comparison in report.comparisons:
        _print(comparison, by)
    for note in report.notes:
        output.print(note, markup=False, highlight=False, soft_wrap=True)


def _moment(option: str, text: str, present: datetime) -> datetime:
    """A time, or a length of time before the present. A time without a zone is UTC."""
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        return given.replace(tzinfo=UTC) if given.tzinfo is None else given
    try:
        return present - timedelta(seconds=parse_window(text))
    except (ConfigError, OverflowError):
        raise ConfigError(f"{option} {text!r}: write 24h, 7d, 2026-01-31 or 2026-01-31T12:00:00Z") from None


def _print(comparison: Comparison, by: str) -> None:
    parts = (("version", comparison.rubric_version), ("judge", comparison.judge))
    title = ", ".join([comparison.rubric, *(f"{name} {value}" for name, value in parts if value)])
    has_cost = any(group.cost_usd is not None for group in comparison.groups)
    columns = [by, "n>", "effective>", "pass rate", "difference", "score", "difference"]
    columns += ["USD each", "difference"] if has_cost else []
    print_table(title, columns, (_cells(group, has_cost=has_cost) for group in comparison.groups))
    for group in comparison.groups:
        if group.conclusion != "baseline":
            said = "; ".join(filter(None, (group.verdict, group.cost_verdict)))
            output.print(f"{group.group}: {said}", markup=False, highlight=False, soft_wrap=True)
    output.print()


def _cells(group: GroupResult, *, has_cost: bool) -> list[object]:
    cells: list[object] = [
        group.group,
        group.n,
        "–" if group.pass_rate is None else f"{group.pass_rate.n_effective:.0f}",
        ratio(group.pass_rate),
        _difference(group.pass_difference, ".2f"),
        ratio(group.score),
        _difference(group.score_difference, ".2f"),
    ]
    if has_cost:
        cells += [
            "–" if group.cost_usd is None else f"{group.cost_usd.value:.3g}",
            _difference(group.cost_difference, ".2g"),
        ]
    return cells


def _difference(difference: Difference | None, form: str) -> str:
    if difference is None:
        return "–"
    value, lower, upper = (f"{part:+{form}}" for part in (difference.value, difference.lower, difference.upper))
    return f"{value} ({lower} to {upper})"
