"""Who is asked, asking with progress, and keeping what came of it: for the commands that judge many records."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from rich.markup import escape

from assay import wiring
from assay.cli._opened import open_store
from assay.cli._screen import Bar, errors
from assay.errors import ConfigError, StoreError
from assay.judges import ASKING
from assay.judging import Instrument, JudgingResult, Tries, judge_items, plan_judging

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from assay.judging import Forecast, JudgingPlan
    from assay.records import Record
    from assay.rubrics import Rubric
    from assay.settings import Settings
    from assay.store import Store

#: What `--judge` may name.
ENGINES = ("openai", "ragas", "lexical", "rules")


def instrument_of(settings: Settings, rubric: Rubric, judge: str | None) -> Instrument:
    """The rubric, asked of the judge that `--judge` names, else of its own.

    Raises:
        ConfigError: there is no such judge.
    """
    asked = wiring.judge_settings(settings)
    if judge is not None:
        engine, _, model = judge.partition(":")
        metric = None
        if engine == "ragas":
            metric, _, model = model.partition(":")
        if engine not in ENGINES or (model and engine not in ASKING) or metric == "":
            raise ConfigError(f"--judge {judge!r}: write lexical, rules, openai[:MODEL], or ragas:METRIC[:MODEL]")
        asked = replace(asked, engine=engine, metric=metric, model=model or asked.model)  # type: ignore[arg-type]
        # What the command line names wins over what the rubric names.
        rubric = replace(rubric, judge=None)
    return Instrument(rubric=rubric, settings=asked, others=tuple(wiring.read_rubrics(settings)))


class Judged(NamedTuple):
    """What came of asking for some records."""

    #: None: a dry run
    result: JudgingResult | None
    judge: str
    judge_fingerprint: str
    #: what it was to take
    forecast: Forecast


def judged(
    settings: Settings,
    records: Sequence[tuple[str, Record]],
    instrument: Instrument,
    *,
    budget: float | None,
    offline: bool,
    dry_run: bool,
    directory: Path | None = None,
    what: str = "",
) -> Judged:
    """The outcomes, or in a dry run only what they will take, which is said in any case.

    Args:
        settings: of the command.
        records: (item id, record).
        instrument: who is asked.
        budget: in USD.
        offline: ask nobody, use what is kept.
        dry_run: only say what it will take.
        directory: of the outcomes that are kept; by default that of all commands.
        what: is judged, said before what it takes.
    """
    plan = plan_judging(records, instrument, directory or settings.data_dir / "judged")
    if plan.forecast.calls or dry_run:
        errors.print(escape(f"{what}{plan.forecast.sentence()}."), soft_wrap=True, highlight=False)
    if dry_run:
        return Judged(None, plan.judge, plan.judge_fingerprint, plan.forecast)
    if offline:
        result = JudgingResult(outcomes=dict(plan.known))
    else:
        result = judge_plan(settings, plan, budget, records=len(records))
    return Judged(result, plan.judge, plan.judge_fingerprint, plan.forecast)


def keep(settings: Settings, what: str, save: Callable[[Store], None]) -> bool:
    """Save what came of it in the database; returns whether it is there.

    Raises:
        StoreError: a database is configured, and it is away or not migrated.
    """
    if settings.database_url is None and not (settings.data_dir / "assay.db").exists():
        # Nobody has set assay up here: a laptop on which a rubric is being tuned.
        return False
    try:
        save(open_store(settings))
    except StoreError as error:
        raise StoreError(f"{what} is not kept: {error}; --no-store does without") from None
    return True


def judge_plan(settings: Settings, plan: JudgingPlan, budget: float | None, *, records: int) -> JudgingResult:
    """Judge within a budget in USD; says on standard error what it took, and why it ended early if it did.

    `records` is how many there are in all.
    """
    tries = Tries(
        attempts=min(3, settings.max_attempts),
        base_seconds=settings.retry_base_seconds,
        max_seconds=min(60.0, settings.retry_max_seconds),
    )
    with Bar("judging", plan.forecast.calls) as bar:

        def show(done: int, spent: float) -> None:
            bar.reach(done, f"{spent:.4f} USD" if spent else "")

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
