"""What is left of the budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from assay.budgets import Ledger
    from assay.metrics._families import Families


def add_budgets(families: Families, ledger: Ledger, shows: Callable[[str], bool]) -> None:
    """Limit, rest and use of every budget in its present window, but those of apps that are not shown.

    Raises:
        QueueError: Redis is away.
    """
    for balance in ledger.balances():
        app = balance.meter.budget.app
        if app is not None and not shows(app):
            continue
        labels, unit = (balance.meter.budget.name,), balance.meter.unit
        families.add(f"assay_budget_limit_{unit}", labels, balance.limit)
        families.add(f"assay_budget_remaining_{unit}", labels, balance.left)
        families.add(f"assay_budget_reserved_{unit}", labels, balance.reserved)
        # A budget of both units is as near its end as the fuller of the two.
        families.most("assay_budget_used_ratio", labels, balance.used)
        families.most("assay_budget_reset_timestamp_seconds", labels, balance.resets_at.timestamp())
