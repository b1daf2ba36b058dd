"""Judging what a plan says is to be judged, with progress: for the commands that ask judges about many records."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from assay.cli._screen import errors
from assay.judging import Tries, judge_items

if TYPE_CHECKING:
    from assay.judging import JudgingPlan, JudgingResult
    from assay.settings import Settings


def judge_plan(settings: Settings, plan: JudgingPlan, budget: float | None, *, records: int) -> JudgingResult:
    """Judge within a budget in USD; says on standard error what it took, and why it ended early if it did.

    `records` is how many there are in all.
    """
    tries = Tries(
        attempts=min(3, settings.max_attempts),
        base_seconds=settings.retry_base_seconds,
        max_seconds=min(60.0, settings.retry_max_seconds),
    )
    progress = Progress(
        TextColumn("judging"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[spent]}"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
    with progress:
        task = progress.add_task("judging", total=plan.forecast.calls, spent="")

        def show(done: int, spent: float) -> None:
            progress.update(task, completed=done, spent=f"{spent:.4f} USD" if spent else "")

        result = asyncio.run(judge_items(plan, budget_usd=budget, tries=tries, on_progress=show))
    if result.spent_usd:
        errors.print(f"Spent {result.spent_usd:.4f} USD on {result.calls} calls.", highlight=False)
    if result.stopped is not None:
        left = records - len(result.outcomes)
        errors.print(
            escape(f"Stopped: {result.stopped}. {left} of {records} records are not judged; run it again to go on."),
            soft_wrap=True,
            highlight=False,
        )
    return result
