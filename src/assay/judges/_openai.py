"""The judge that asks a model behind any OpenAI-compatible endpoint.

One call for all rubrics it is given; what of the reply is no valid verdict is asked for once more, by itself.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from assay._text import declines
from assay.defects import settled
from assay.errors import BudgetSpentError, JudgeError, VerdictError
from assay.judges._account import Account
from assay.judges._endpoint import Endpoint
from assay.judges._prompt import DEFECTS, render, repair, schema, spelled_out
from assay.judges._reply import Verdicts, find_verdicts, grade_distribution, read_defects
from assay.judges._slots import Slots
from assay.records import TRANSIENT, Failure, Score, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.budgets import Purse, Reservation
    from assay.judges import JudgeObserver, JudgeSettings
    from assay.judges._endpoint import Answer
    from assay.limits import Limits
    from assay.records import FailureKind, NotApplicable, Outcome, Record
    from assay.rubrics import Rubric

_log = logging.getLogger(__name__)

#: How much of a reply is shown to the model again when it is asked to repair it.
_SHOWN_CHARACTERS = 8_000
_MESSAGE_CHARACTERS = 500
#: About what a rubric adds to the tokens of a request and its reply.
_RUBRIC_TOKENS = 400


class OpenAIJudge:
    """Judges by an OpenAI-compatible endpoint. Build it anywhere; its calls belong to one event loop."""

    def __init__(
        self,
        settings: JudgeSettings,
        observer: JudgeObserver | None = None,
        purse: Purse | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Raises SettingsError: no model, a base URL that is none, no key for OpenAI's own, a broken price table."""
        self._endpoint = Endpoint(settings, observer, limits)
        self.name, self.fingerprint, _ = self._endpoint.identity
        #: whether it may be taken to say the same of the same texts again: a verdict of it may be reused
        self.repeatable = settings.temperature == 0
        #: whether it may say something else when it is asked again: only then are repeats asked for
        self.varies = not self.repeatable
        self._settings = settings
        self._purse = purse
        self._slots = Slots(settings.max_in_flight)

    async def judge(self, record: Record, rubrics: Sequence[Rubric]) -> list[Outcome]:
        """One outcome for each rubric, in their order, from one call and at most one repair."""
        seconds = self._settings.timeout_seconds
        account = Account(self._purse, record, self.name, seconds)
        exchange = _Exchange(self._endpoint, account, record, rubrics, self._settings)
        await exchange.take_turn()
        async with self._slots.hold():
            started = asyncio.get_running_loop().time()
            if await exchange.run(seconds):
                self._slots.answered(asyncio.get_running_loop().time() - started)
        return [exchange.outcomes[rubric.name] for rubric in rubrics]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()


class _Exchange:
    """One record's call and repair: collects outcomes, and what each of them cost."""

    def __init__(
        self,
        endpoint: Endpoint,
        account: Account,
        record: Record,
        rubrics: Sequence[Rubric],
        settings: JudgeSettings,
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._endpoint = endpoint
        self._account = account
        self._record = record
        self._rubrics = rubrics
        self._logprobs = settings.logprobs
        self._guarded = settings.guarded
        #: tokens that the turn of the next request was taken for
        self._turn_tokens = 0.0
        self._usage = {rubric.name: Usage() for rubric in rubrics}
        self._seconds = dict.fromkeys(self._usage, 0.0)

    async def take_turn(self, *, wait_seconds: float | None = None) -> None:
        """Wait until the rate limit lets the next request be sent. Raises JudgeError: that takes too long."""
        # Rendering is not worth it for a guess that is scaled by how good the guesses before were.
        guess = sum(map(len, self._record.texts())) / 4 + _RUBRIC_TOKENS * len(self._rubrics)
        self._turn_tokens = await self._endpoint.take_turn(guess, wait_seconds=wait_seconds)

    async def run(self, timeout_seconds: float) -> bool:
        """Ask, read, and ask once more for what was no verdict. Whether the first request was answered."""
        rubrics, messages, held = await self._admit()
        if not rubrics:
            return False
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_seconds
        try:
            answer = await self._ask(messages, rubrics, deadline, held)
        except JudgeError as error:
            for rubric in rubrics:
                after, unasked = error.retry_after_seconds, error.unasked
                self._fail(rubric, error.kind, str(error), retry_after_seconds=after, unasked=unasked)
            return False
        try:
            await self._conclude(answer, messages, rubrics, deadline)
        except Exception as error:  # noqa: BLE001 - whatever it is, verdicts that are there are paid for
            self._break([rubric for rubric in rubrics if rubric.name not in self.outcomes], error)
        return True

    async def _conclude(
        self, answer: Answer, messages: list[dict[str, str]], rubrics: Sequence[Rubric], deadline: float
    ) -> None:
        """Read the first answer, and ask once more for what of it is no verdict."""
        faults = self._read(answer, rubrics)
        again = [rubric for rubric in rubrics if rubric.name in faults]
        if not again:
            return
        if declines(answer.content):
            for rubric in again:
                self._fail(rubric, "refused", f"the judge declined: {answer.content}", model=answer.model)
            return
        clock = asyncio.get_running_loop().time
        shown = answer.content[:_SHOWN_CHARACTERS].strip() or "(nothing)"
        said = repair(again, {name: str(fault) for name, fault in faults.items()})
        messages = [*messages, {"role": "assistant", "content": shown}, {"role": "user", "content": said}]
        try:
            await self.take_turn(wait_seconds=max(0.0, deadline - clock()) / 2)
            held = await self._reserve(messages, again, wait_seconds=max(0.0, deadline - clock()))
            answer = await self._ask(messages, again, deadline, held)
        except JudgeError as error:
            self._fail_repair(again, faults, error)
            return
        faults = self._read(answer, again)
        for rubric in again:
            if rubric.name in faults:
                fault = faults[rubric.name]
                self._fail(rubric, fault.kind, f"{fault} (after one repair)", model=answer.model)

    async def _admit(self) -> tuple[Sequence[Rubric], list[dict[str, str]], Reservation | None]:
        """The rubrics that may be asked, the messages for them, and what is held; a spent budget fails only its own."""
        rubrics = self._rubrics
        while rubrics:
            messages = render(self._record, rubrics, guarded=self._guarded)
            try:
                return rubrics, messages, await self._reserve(messages, rubrics)
            except JudgeError as error:
                refused = error.rubrics if isinstance(error, BudgetSpentError) else [r.name for r in rubrics]
                for rubric in rubrics:
                    if rubric.name in refused:
                        self._fail(rubric, error.kind, str(error))
                rubrics = [rubric for rubric in rubrics if rubric.name not in refused]
        return [], [], None

    async def _reserve(
        self, messages: list[dict[str, str]], rubrics: Sequence[Rubric], *, wait_seconds: float | None = None
    ) -> Reservation | None:
        return await self._account.reserve(
            lambda: self._endpoint.bound(messages, schema(rubrics)), rubrics, wait_seconds=wait_seconds
        )

    async def _ask(
        self,
        messages: list[dict[str, str]],
        rubrics: Sequence[Rubric],
        deadline: float,
        held: Reservation | None,
    ) -> Answer:
        clock = asyncio.get_running_loop().time
        started = clock()
        usage = Usage()
        try:
            answer = await self._endpoint.ask(
                messages,
                schema(rubrics),
                logprobs=self._logprobs and any(rubric.scale.grade_field for rubric in rubrics),
                # One seed would be one verdict, however often it is asked for.
                seeded=all(rubric.repeats is None for rubric in rubrics),
                deadline=deadline,
                spelled_out=spelled_out(rubrics),
                trace_id=self._record.trace_id,
            )
            usage = answer.usage
        except JudgeError as error:
            usage = error.usage or usage
            await self._account.settle(held, error)
            raise
        except Exception:
            # Nobody knows whether it was sent.
            await self._account.settle(held, JudgeError("internal", "a fault of the judge"))
            raise
        finally:
            for rubric, share in zip(rubrics, usage.split(len(rubrics)), strict=True):
                self._usage[rubric.name] += share
                self._seconds[rubric.name] += clock() - started
        await self._account.settle(held, answer)
        await self._endpoint.settle(self._turn_tokens, usage)
        return answer

    def _read(self, answer: Answer, rubrics: Sequence[Rubric]) -> dict[str, VerdictError]:
        """Keeps the outcome of every valid verdict; returns what is wrong with the others, by rubric."""
        # Asked for one verdict, models without structured output often leave its name out.
        unnamed = rubrics[0].scale.schema()["required"] if len(rubrics) == 1 else ()
        try:
            verdicts = find_verdicts(answer.content, [rubric.name for rubric in rubrics], unnamed)
        except VerdictError as error:
            return {rubric.name: error for rubric in rubrics}
        faults: dict[str, VerdictError] = {}
        named = read_defects(verdicts.members.get(DEFECTS))
        for rubric in rubrics:
            try:
                outcome = self._parse(rubric, verdicts, answer, unnamed)
            except VerdictError as error:
                faults[rubric.name] = error
            except Exception as error:  # noqa: BLE001 - a bug in reading one verdict costs no other
                self._break([rubric], error)
            else:
                told: dict[str, Any] = {
                    "usage": self._usage[rubric.name],
                    "latency_seconds": self._seconds[rubric.name],
                    "judge_model": answer.model,
                }
                if isinstance(outcome, Score):
                    told["defect"] = settled(outcome.passed, named.get(rubric.name), rubric.defects)
                self.outcomes[rubric.name] = replace(outcome, **told)
        return faults

    def _parse(
        self, rubric: Rubric, verdicts: Verdicts, answer: Answer, unnamed: Sequence[str]
    ) -> Score | NotApplicable:
        path: tuple[str, ...] = (rubric.name,)
        if rubric.name in verdicts.members:
            verdict = verdicts.members[rubric.name]
        elif unnamed and all(name in verdicts.members for name in unnamed):
            verdict, path = verdicts.members, ()
        else:
            raise VerdictError("unparsable", f"the reply has no `{rubric.name}`")
        return rubric.scale.parse(
            verdict,
            self._record,
            pass_threshold=rubric.pass_threshold,
            distribution=_distribution(rubric, verdicts, path, answer.logprobs),
        )

    def _break(self, rubrics: Sequence[Rubric], error: Exception) -> None:
        """A bug of ours ended it for these."""
        _log.error("judge failed", exc_info=error, extra={"record_id": self._record.record_id})
        for rubric in rubrics:
            self._fail(rubric, "internal", f"{type(error).__name__}: {error}")

    def _fail_repair(self, rubrics: Sequence[Rubric], faults: dict[str, VerdictError], error: JudgeError) -> None:
        """A repair that got no answer: what may pass is tried again later, all else leaves the first fault standing."""
        for rubric in rubrics:
            fault = faults[rubric.name]
            message = f"{fault}; its repair failed: {error}"
            if error.kind in TRANSIENT or error.kind == "budget":
                self._fail(rubric, error.kind, message, retry_after_seconds=error.retry_after_seconds)
            else:
                self._fail(rubric, fault.kind, message)

    def _fail(
        self,
        rubric: Rubric,
        kind: FailureKind,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        model: str | None = None,
        unasked: bool = False,
    ) -> None:
        self.outcomes[rubric.name] = Failure(
            kind=kind,
            message=message[:_MESSAGE_CHARACTERS],
            retry_after_seconds=retry_after_seconds,
            usage=self._usage[rubric.name],
            latency_seconds=self._seconds[rubric.name],
            judge_model=model,
            unasked=unasked,
        )


def _distribution(
    rubric: Rubric, verdicts: Verdicts, path: tuple[str, ...], logprobs: object
) -> dict[str, float] | None:
    """How sure the model was of each grade, where the endpoint tells and one token carries it."""
    field = rubric.scale.grade_field
    if field is None or not logprobs:
        return None
    span = verdicts.span(*path, field)
    if span is None:
        return None
    grades = [str(grade) for grade in rubric.scale.schema()["properties"][field]["enum"]]
    return grade_distribution(logprobs, verdicts.text, span, grades)
