"""`assay signals`: what records show without a judge, and whether the input is like that of the reference week."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.cli._opened import open_store
from assay.cli._options import Apps, settings_of
from assay.cli._screen import Json, output, print_json, print_table
from assay.signals import CostSums, SignalSums, cost_per_pass, means, shares
from assay.windows import parse_window, window_bounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.shift import Shift
    from assay.signals import Average
    from assay.store import Store, Suspect
    from assay.windows import Estimate

#: app, and the declared cohort labels with their values
_Place = tuple[str, tuple[tuple[str, str], ...]]


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(signals)


def signals(
    window: Annotated[str, typer.Option(help="How far back, such as `1h`, `24h` or `7d`.")] = "24h",
    suspects: Annotated[
        int, typer.Option(min=0, help="Records with signs of a prompt injection to list, the latest first.")
    ] = 0,
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Show what records say without a judge: refusals, failed tools, languages, cost, shifts of the input.

    All of it is weighted, with 95 % intervals. The input of the last 24 hours is compared with a reference week.
    """
    settings = settings_of(apps)
    store, now = open_store(settings), time.time()
    start, end = window_bounds(now, parse_window(window))
    shown = _signals(store, start, end)
    costs = _costs(store, start, end)
    from assay.shift import current_hours, reference_days, shifts  # numpy

    current = store.inputs(*current_hours(now))
    moved = shifts(current, store.inputs(*reference_days(now, settings.reference_week), by_day=True))
    found = store.suspects(datetime.fromtimestamp(start, UTC), suspects) if suspects else []
    if as_json:
        listed = {"suspects": [dataclasses.asdict(one) for one in found]} if suspects else {}
        print_json(_as_json(shown, costs, moved) | listed)
        return
    if not shown:
        output.print(f"No records in the last {window}.")
        return
    _print_signals(window, shown, costs)
    _print_shifts(moved)
    if suspects:
        _print_suspects(found)


def _print_suspects(found: Sequence[Suspect]) -> None:
    if not found:
        output.print("No record has signs of a prompt injection.")
        return
    print_table(
        f"The latest {len(found)} with signs of a prompt injection",
        ("record", "app", "when", "trace", "signs"),
        (
            (one.record_id, one.app, f"{one.timestamp:%Y-%m-%d %H:%M}", one.trace_id or "", ", ".join(one.signs))
            for one in found
        ),
    )


def _signals(store: Store, start: int, end: int) -> dict[_Place, dict[str, Estimate | Average]]:
    sums: dict[_Place, dict[tuple[str, str], SignalSums]] = {}
    for row in store.signals(start, end):
        place = (row.app, tuple(row.cohort.items()))
        sums.setdefault(place, {})[row.signal, row.word] = row.sums
    return {place: {**shares(known), **means(known)} for place, known in sums.items()}


def _costs(store: Store, start: int, end: int) -> dict[_Place, dict[str, Average]]:
    sums: dict[_Place, dict[str, CostSums]] = {}
    for row in store.costs(start, end):
        sums.setdefault((row.app, tuple(row.cohort.items())), {})[row.rubric] = row.sums
    found: dict[_Place, dict[str, Average]] = {}
    for place, known in sums.items():
        for rubric, paid in known.items():
            if (average := cost_per_pass(paid)) is not None:
                found.setdefault(place, {})[rubric] = average
    return found


def _print_signals(
    window: str, shown: dict[_Place, dict[str, Estimate | Average]], costs: dict[_Place, dict[str, Average]]
) -> None:
    several = len(shown) > 1
    rows: list[tuple[object, ...]] = []
    for place, known in shown.items():
        cohort = (f"{name}={value}" for name, value in place[1])
        label = (" ".join((place[0], *cohort)),) if several else ()
        rows += [(*label, name, *_cells(seen)) for name, seen in known.items()]
        rows += [(*label, f"cost_usd per pass: {rubric}", *_cells(s)) for rubric, s in costs.get(place, {}).items()]
    title = f"Signals of the last {window}" + ("" if several else f": app {next(iter(shown))[0]}")
    print_table(title, (*(("where",) if several else ()), "signal", "value>", "95 % interval", "effective>"), rows)


def _cells(seen: Estimate | Average) -> tuple[str, str, str]:
    interval = "–" if seen.lower is None or seen.upper is None else f"{_number(seen.lower)} – {_number(seen.upper)}"
    return _number(seen.value), interval, f"{seen.n_effective:.0f}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def _print_shifts(moved: dict[tuple[str, str], Shift]) -> None:
    from assay.shift import ALPHA

    if not moved:
        output.print("Shift of the input: no reference week yet (it takes 3 days), or too few records in 24 hours.")
        return
    print_table(
        "Input, last 24 h",
        ("app", "feature", "p>", "psi>", "critical>", ""),
        (
            (
                app,
                feature,
                "< 0.0001" if seen.p_value < 1e-4 else f"{seen.p_value:.4f}",
                f"{seen.psi:.3f}",
                f"{seen.psi_critical:.3f}",
                "has shifted" if seen.p_value < ALPHA else "",
            )
            for (app, feature), seen in moved.items()
        ),
    )


def _as_json(
    shown: dict[_Place, dict[str, Estimate | Average]],
    costs: dict[_Place, dict[str, Average]],
    moved: dict[tuple[str, str], Shift],
) -> dict[str, Any]:
    return {
        "signals": [
            {
                "app": app,
                "cohort": dict(cohort),
                "signals": {name: dataclasses.asdict(seen) for name, seen in known.items()},
                "cost_usd_per_pass": {
                    rubric: dataclasses.asdict(seen) for rubric, seen in costs.get((app, cohort), {}).items()
                },
            }
            for (app, cohort), known in shown.items()
        ],
        "input_shift": [
            {"app": app, "feature": feature, **dataclasses.asdict(seen)} for (app, feature), seen in moved.items()
        ],
    }
