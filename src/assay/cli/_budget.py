"""`assay budget`: what judging may still take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from assay import wiring
from assay.budgets import thinning
from assay.cli._options import Apps, settings_of
from assay.cli._screen import Json, ago, output, print_json, print_table
from assay.records import now

if TYPE_CHECKING:
    from assay.budgets import Balance, Budget, Budgets


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(budget)


def budget(apps: Apps = None, as_json: Json = False) -> None:
    """Show what is spent, held and left of every budget, and when it starts anew."""
    settings = settings_of(apps)
    budgets = wiring.read_budgets(settings, wiring.read_rubrics(settings))
    if budgets is None:
        if as_json:
            print_json([])
        else:
            output.print("There are no budgets: set ASSAY_BUDGET_USD_PER_DAY, or ASSAY_BUDGETS to a file of them.")
        return
    balances = [
        balance
        for balance in wiring.open_ledger(settings, budgets).balances()
        # Those of all apps bind each of them.
        if not settings.apps or balance.meter.budget.app in (None, *settings.apps)
    ]
    if as_json:
        print_json([_plain(balance, budgets) for balance in balances])
        return
    moment = now()
    print_table(
        "Budgets",
        ("budget", "of", "per", "spent>", "held>", "cap>", "left>", "used>", "judged>", "anew in>"),
        (
            (
                balance.meter.budget.name,
                _of(balance.meter.budget),
                balance.meter.budget.per,
                *(_amount(balance, value) for value in (balance.spent, balance.reserved, balance.limit, balance.left)),
                f"{100 * balance.used:.0f} %",
                f"{100 * _judged(balance, budgets):.0f} %",
                ago((balance.resets_at - moment).total_seconds()),
            )
            for balance in balances
        ),
    )


def _of(budget: Budget) -> str:
    """What it covers."""
    parts = (("app", budget.app), ("rubric", budget.rubric), ("judge", budget.judge))
    return ", ".join(f"{name} {value}" for name, value in parts if value is not None) or "all"


def _amount(balance: Balance, value: float) -> str:
    if balance.meter.unit == "tokens":
        return f"{value:,.0f} tokens"
    return f"{value:,.2f} USD" if value >= 0.095 or not value else f"{value:.4f} USD"


def _judged(balance: Balance, budgets: Budgets) -> float:
    """Share of the records that is judged now, as far as this limit goes."""
    if not balance.left:
        return 0.0
    return thinning(balance.used, start=budgets.thin_from, least=budgets.thin_least)


def _plain(balance: Balance, budgets: Budgets) -> dict[str, Any]:
    budget = balance.meter.budget
    return {
        "budget": budget.name,
        "per": budget.per,
        "unit": balance.meter.unit,
        "app": budget.app,
        "rubric": budget.rubric,
        "judge": budget.judge,
        "spent": balance.spent,
        "reserved": balance.reserved,
        "cap": balance.limit,
        "left": balance.left,
        "used_ratio": balance.used,
        "judged_ratio": _judged(balance, budgets),
        "window_start": balance.window_start.isoformat(),
        "resets_at": balance.resets_at.isoformat(),
    }
