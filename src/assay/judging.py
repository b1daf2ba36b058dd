"""Judging labelled records that are not judged yet: what it will cost, and doing it within a budget.

A rubric is asked as production asks it: one that is to be asked together goes with the other rubrics of its judge.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from assay.budgets import LocalPurse
from assay.errors import SettingsError
from assay.judged import JudgedOutcomes
from assay.judges import ASKING, describe_judge, models_of, preview, resolve
from assay.judges._prices import load_prices
from assay.pipeline import Judges, evaluate
from assay.records import Failure, NotApplicable, Usage
from assay.repeats import verdicts_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from assay.judged import OutcomeKey
    from assay.judges import JudgeSettings
    from assay.judges._prices import Price
    from assay.records import Evaluation, Outcome, Record
    from assay.rubrics import Rubric

#: For estimates; English text has about four characters to a token.
_CHARACTERS_PER_TOKEN = 4
#: Tokens of a verdict, where none of this judge are known: an explanation of 30 words, and the grade.
_VERDICT_TOKENS = 80
#: For bounds: no tokenizer makes more tokens than bytes, and a chat's frame is a few more.
_FRAME_TOKENS = 200
#: For bounds: what a repair adds to the prompt beside the first reply: what was wrong, by rubric.
_REPAIR_TOKENS = 4_000
#: So many records in a row without an answer, each tried several times, and the judge is away.
_GIVE_UP = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """How often a judge is asked again after a transient failure, and how long to wait in between."""

    attempts: int = 3
    base_seconds: float = 2.0
    max_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """A rubric and the judge that asks it."""

    rubric: Rubric
    #: the default judge; the rubric's own `judge` overrides it
    settings: JudgeSettings
    #: the rubrics that production asks; those that share call and judge with this one are asked along
    others: tuple[Rubric, ...] = ()

    @cached_property
    def asked(self) -> tuple[Rubric, ...]:
        """The rubrics of one call, this one first."""
        if self.rubric.ask != "together":
            return (self.rubric,)
        along = (
            other
            for other in self.others
            if other.ask == "together" and other.name != self.rubric.name and self._judge_of(other) == self.judge
        )
        return (self.rubric, *along)

    @cached_property
    def judge(self) -> JudgeSettings:
        """The judge, as the rubric's own `judge` and the settings come to."""
        return self._judge_of(self.rubric)

    @cached_property
    def price(self) -> Price | None:
        """Price of the model; None when it is not known. Free judges have none.

        Raises:
            SettingsError: the price table is broken.
        """
        return load_prices(self.judge.prices_path).of(self.judge.model)

    @property
    def is_free(self) -> bool:
        """Whether judging costs nothing: no model is asked."""
        return self.judge.engine not in ASKING

    def judges(self, purse: LocalPurse | None = None) -> Judges:
        """Built for the event loop that will use them; the purse, if there is one, pays for each request.

        Raises:
            ConfigError: see `build_judge`.
        """
        return Judges.build(self.asked, self.judge, purse=purse)

    def _judge_of(self, rubric: Rubric) -> JudgeSettings:
        return resolve(rubric.judge, self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What judging is about to take, in calls, tokens and money."""

    #: records in all, and those among them whose outcome is there already
    records: int
    known: int
    #: records to which the rubric does not apply, which costs nothing to tell
    not_applicable: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    #: None when the price of the model is not known; 0.0 for judges without a model
    cost_usd: float | None
    judge: str

    def sentence(self) -> str:
        """What is to be done, for people."""
        there = f"{self.known} of {self.records} records are judged already" if self.known else ""
        if not self.calls:
            return there or "there is nothing to judge"
        todo = f"{self.calls} to judge by {self.judge}"
        if self.cost_usd == 0.0 and not self.prompt_tokens:
            cost = "free"
        else:
            if not self.prompt_tokens:
                return "; ".join(part for part in (there, f"{todo}: what it takes is not known beforehand") if part)
            tokens = f"about {_rounded(self.prompt_tokens)} prompt and {_rounded(self.completion_tokens)} reply tokens"
            price = "price unknown" if self.cost_usd is None else f"about {_usd(self.cost_usd)}"
            cost = f"{tokens}, {price}"
        return "; ".join(part for part in (there, f"{todo}: {cost}") if part)


@dataclass(frozen=True, kw_only=True)
class JudgingPlan:
    """Which records are judged already, and which are to be."""

    instrument: Instrument
    judge: str
    judge_fingerprint: str
    #: item id -> outcome that is there
    known: Mapping[str, Outcome]
    #: one record for each distinct content that is to be judged, and the items that it stands for
    todo: tuple[tuple[Record, tuple[str, ...]], ...]
    forecast: Forecast
    directory: Path


@dataclass(slots=True, kw_only=True)
class JudgingResult:
    """What came of judging."""

    #: item id -> outcome; items that were not come to are not in it
    outcomes: dict[str, Outcome]
    #: calls made, the repeated ones included
    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    #: money gone, by what the endpoint says, else by the most that it can be; 0.0 where no price is known
    spent_usd: float = 0.0
    #: why it ended before its end, a sentence; None when it did not
    stopped: str | None = None


def plan_judging(records: Sequence[tuple[str, Record]], instrument: Instrument, directory: Path) -> JudgingPlan:
    """What is there and what is to be judged, of (item id, record); calls nobody.

    Args:
        records: item ids are distinct.
        instrument: rubric and judge.
        directory: of the outcomes that are kept.

    Raises:
        ConfigError: the judge is not configured rightly, or the kept outcomes cannot be read.
    """
    judge, fingerprint = describe_judge(instrument.rubric.judge, instrument.settings)
    known: dict[str, Outcome] = {}
    waiting: dict[OutcomeKey, tuple[Record, list[str]]] = {}
    with JudgedOutcomes(directory, instrument.rubric, fingerprint) as kept:
        for item_id, record in records:
            missing = instrument.rubric.missing(record)
            if missing is not None:
                known[item_id] = NotApplicable(reason=missing)
            else:
                waiting.setdefault(kept.key(record), (record, []))[1].append(item_id)
        found = kept.find(waiting)
    not_applicable = len(known)
    known |= {item_id: outcome for key, outcome in found.items() for item_id in waiting[key][1]}
    todo = tuple((record, tuple(ids)) for key, (record, ids) in waiting.items() if key not in found)
    return JudgingPlan(
        instrument=instrument,
        judge=judge,
        judge_fingerprint=fingerprint,
        known=known,
        todo=todo,
        forecast=_forecast(instrument, judge, todo, found.values(), len(records), not_applicable, len(known)),
        directory=directory,
    )


async def judge_items(
    plan: JudgingPlan,
    *,
    budget_usd: float | None = None,
    tries: Tries | None = None,
    on_progress: Callable[[int, float], None] = lambda _done, _spent: None,
) -> JudgingResult:
    """Judge what the plan says is to be judged, each plan once; every outcome is kept as soon as it is there.

    The budget is never passed: a call is made only if the most that it can cost is left, what is in flight counted at
    that. A record is begun only if the most is left that all its calls can cost, where that is known. Transient
    failures are tried again; when the key is refused, or the judge is away, the rest is left.

    Args:
        plan: see `plan_judging`.
        budget_usd: None for no bound.
        tries: of one record.
        on_progress: hears, after each record and each call that was cut off, how many of `plan.todo` are done and what
            is spent in USD.

    Raises:
        SettingsError: a budget without a price, or the kept outcomes cannot be written.
        ConfigError: the judge is not configured rightly.
    """
    run = _Run(plan, _purse(plan.instrument, budget_usd), tries or Tries(), on_progress)
    if plan.todo:
        await run.all()
    return run.result


class _Run:
    def __init__(
        self, plan: JudgingPlan, purse: LocalPurse, tries: Tries, on_progress: Callable[[int, float], None]
    ) -> None:
        self.result = JudgingResult(outcomes=dict(plan.known))
        self._plan, self._purse, self._tries, self._on_progress = plan, purse, tries, on_progress
        self._asked = plan.instrument.asked
        self._kept = [JudgedOutcomes(plan.directory, rubric, plan.judge_fingerprint) for rubric in self._asked]
        self._done = 0
        self._unanswered = 0

    async def all(self) -> None:
        queue = iter(self._plan.todo)
        judges = self._plan.instrument.judges(self._purse)
        workers = min(len(self._plan.todo), self._plan.instrument.judge.max_in_flight)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(queue, judges))
        except BaseExceptionGroup as errors:
            # Of one kind, met by whoever came first: the outcomes cannot be kept.
            raise errors.exceptions[0] from None
        finally:
            await judges.aclose()
            for kept in self._kept:
                kept.close()

    async def _work(self, queue: Iterator[tuple[Record, tuple[str, ...]]], judges: Judges) -> None:
        for record, items in queue:
            if self.result.stopped is not None:
                return
            outcome = await self._judge(record, judges)
            if outcome is None:
                return
            self.result.outcomes.update(dict.fromkeys(items, outcome))
            self._done += 1
            self._on_progress(self._done, self.result.spent_usd)
            self._watch(outcome)

    async def _judge(self, record: Record, judges: Judges) -> Outcome | None:
        """The outcome of one record, after as many tries as it takes; None when the budget does not allow it."""
        outcome: Outcome | None = None
        for attempt in range(self._tries.attempts):
            most = _most(self._plan.instrument, record)
            try:
                async with self._purse.allowance(most) as allowance:
                    if allowance is None:
                        self._stop_spent(most)
                    if allowance is None or self.result.stopped is not None:
                        return outcome
                    evaluations = await evaluate(record, self._asked, judges)
            except asyncio.CancelledError:
                # Its calls were cut off, and may be charged all the same.
                self._on_progress(self._done, self._purse.spent)
                raise
            finally:
                self.result.spent_usd = self._purse.spent
            if allowance.refused is not None:
                # An outcome for want of money, or one of fewer verdicts for it, is none to keep.
                self._count(evaluations)
                self._stop_spent(allowance.refused)
                return outcome
            outcome = self._take(record, evaluations)
            if not isinstance(outcome, Failure) or not outcome.transient or outcome.kind == "unauthorized":
                return outcome
            if attempt + 1 < self._tries.attempts and self.result.stopped is None:
                wanted = outcome.retry_after_seconds or self._tries.base_seconds * 2**attempt
                await asyncio.sleep(min(wanted, self._tries.max_seconds))
        return outcome

    def _count(self, evaluations: Sequence[Evaluation]) -> None:
        self.result.calls += max([1, *(verdicts_in(evaluation.outcome) for evaluation in evaluations)])
        for evaluation in evaluations:
            self.result.usage += evaluation.outcome.usage

    def _take(self, record: Record, evaluations: Sequence[Evaluation]) -> Outcome:
        self._count(evaluations)
        for kept, rubric, evaluation in zip(self._kept, self._asked, evaluations, strict=True):
            if rubric.missing(record) is None:
                kept.add(kept.key(record), evaluation.outcome)
        return evaluations[0].outcome

    def _watch(self, outcome: Outcome) -> None:
        """Stop when going on would only fail again."""
        if isinstance(outcome, Failure) and outcome.kind == "unauthorized":
            self._stop(f"the judge refuses to work: {outcome.message}")
        self._unanswered = self._unanswered + 1 if isinstance(outcome, Failure) and outcome.transient else 0
        if self._unanswered >= _GIVE_UP and isinstance(outcome, Failure):
            self._stop(f"the judge does not answer ({outcome.kind}: {outcome.message})")

    def _stop_spent(self, most: float) -> None:
        left = f"{_usd(self._purse.left)} of the budget of {_usd(self._purse.budget)} is left"
        self._stop(f"{left}, and a call may cost up to {_usd(most)}")

    def _stop(self, why: str) -> None:
        self.result.stopped = self.result.stopped or why


def _purse(instrument: Instrument, budget_usd: float | None) -> LocalPurse:
    if budget_usd is None:
        return LocalPurse()
    if not budget_usd >= 0:
        raise SettingsError(f"a budget of {budget_usd} is none: give USD, such as 0.50")
    prices = load_prices(instrument.judge.prices_path)
    if unknown := [model for model in models_of(instrument.judge) if prices.of(model) is None]:
        raise SettingsError(
            f"a budget needs prices, and that of {' and '.join(unknown)} is unknown: list it in a price table and "
            "point ASSAY_PRICES at it"
        )
    return LocalPurse(budget_usd)


def _most(instrument: Instrument, record: Record) -> float:
    """The most that judging a record can cost in USD, repairs and repeats included.

    How often a metric of ragas asks is not known beforehand: nothing is set aside for it, and each request reserves.
    """
    price = instrument.price
    if instrument.is_free or price is None or instrument.judge.engine == "ragas":
        return 0.0
    messages, schema = preview(instrument.asked, record, guarded=instrument.judge.guarded)
    prompt = _FRAME_TOKENS + len(json.dumps(schema))
    prompt += sum(len(message["content"].encode(errors="replace")) for message in messages)
    reply = instrument.judge.max_tokens
    first = price.cost_usd(prompt_tokens=prompt, completion_tokens=reply)
    repair = price.cost_usd(prompt_tokens=2 * prompt + reply + _REPAIR_TOKENS, completion_tokens=reply)
    return (first + repair) * _most_verdicts(instrument)


def _most_verdicts(instrument: Instrument) -> int:
    """Calls for one record at most, repairs aside."""
    return max([1, *(rubric.repeats.most for rubric in instrument.asked if rubric.repeats is not None)])


def _forecast(
    instrument: Instrument,
    judge: str,
    todo: Sequence[tuple[Record, tuple[str, ...]]],
    found: Iterable[Outcome],
    records: int,
    not_applicable: int,
    known: int,
) -> Forecast:
    prompt = completion = 0
    cost: float | None = 0.0
    if instrument.judge.engine == "ragas":
        cost = None if todo else 0.0
    elif todo and not instrument.is_free:
        asked = [o for o in found if o.usage.completion_tokens is not None]
        replies = [o.usage.completion_tokens or 0 for o in asked]
        # How many are in doubt is known from those that are there; before the first, all may be.
        often = sum(max(1, verdicts_in(o)) for o in asked) / len(asked) if asked else _most_verdicts(instrument)
        verdict = sum(replies) / len(replies) if replies else _VERDICT_TOKENS * often
        completion = round(len(todo) * len(instrument.asked) * verdict)
        sent = (preview(instrument.asked, record, guarded=instrument.judge.guarded)[0] for record, _ in todo)
        characters = (sum(len(message["content"]) for message in messages) for messages in sent)
        prompt = round(sum(-(-count // _CHARACTERS_PER_TOKEN) for count in characters) * often)
        price = instrument.price
        cost = None if price is None else price.cost_usd(prompt_tokens=prompt, completion_tokens=completion)
    return Forecast(
        records=records,
        known=known - not_applicable,
        not_applicable=not_applicable,
        calls=len(todo),
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_usd=cost,
        judge=judge,
    )


def _rounded(tokens: int) -> str:
    return f"{tokens:,}" if tokens < 1000 else f"{tokens / 1000:,.0f} k"


def _usd(amount: float) -> str:
    return f"{amount:.2f} USD" if amount >= 0.095 or not amount else f"{amount:.4f} USD"
