"""The judge that has a metric of ragas score: its prompts and its arithmetic, our requests.

ragas is given a model of our making, so every request goes through `Endpoint`: bounded, counted, paid from the budgets,
and every failure keeps its kind. What ragas would make of one (NaN, a 0, the mean of what is left) never gets out.

Records are not fenced in these prompts, which are ragas's own: see docs/howto/ragas.md.

The only module that knows ragas, whose import takes seconds and some hundred megabytes.
"""

from __future__ import annotations

import asyncio
import math
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from openai import pydantic_function_tool
from pydantic import BaseModel, ValidationError

# Before its import: it reports its use to its makers otherwise.
os.environ["RAGAS_DO_NOT_TRACK"] = "true"

from ragas.dataset_schema import SingleTurnSample
from ragas.embeddings.base import BaseRagasEmbedding
from ragas.llms.base import InstructorBaseRagasLLM
from ragas.metrics._aspect_critic import AspectCritic
from ragas.metrics.collections import (
    AnswerRelevancy,
    ContextPrecisionWithoutReference,
    ContextPrecisionWithReference,
    ContextRecall,
    DomainSpecificRubrics,
    Faithfulness,
    ResponseGroundedness,
)

from assay.errors import JudgeError, SettingsError, VerdictError
from assay.judges._account import Account
from assay.judges._endpoint import Endpoint
from assay.judges._identity import RAGAS
from assay.judges._reply import find_verdicts
from assay.judges._slots import Slots
from assay.records import Failure, NotApplicable, Score, Usage
from assay.scales import Ordinal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from assay.budgets import Purse
    from assay.judges import JudgeObserver, JudgeSettings
    from assay.judges._endpoint import Answer, Vectors
    from assay.limits import Limits
    from assay.records import Outcome, Record
    from assay.rubrics import Rubric

_MESSAGE_CHARACTERS = 500
#: What is kept of what the model said on the way to a score.
_SHOWN_REPLIES = 20
_SHOWN_CHARACTERS = 2_000
#: Floating-point dust beyond the ends of a scale.
_ROUNDING = 1e-6


class _Metric(NamedTuple):
    """How a metric is asked, and what it needs of a record: any field of each tuple."""

    needs: tuple[tuple[str, ...], ...]
    ask: Callable[[_Exchange], Awaitable[object]]
    #: the lowest and the highest value that it gives
    least: float = 0.0
    most: float = 1.0


class RagasJudge:
    """Judges by one metric of ragas. Build it anywhere; its calls belong to one event loop."""

    def __init__(
        self,
        settings: JudgeSettings,
        observer: JudgeObserver | None = None,
        purse: Purse | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Raises SettingsError: no model or metric, a base URL that is none, no key, another ragas than we know."""
        self._endpoint = Endpoint(settings, observer, limits)
        self.name, self.fingerprint, _ = self._endpoint.identity
        if settings.metric not in _METRICS:
            raise SettingsError(f"ragas metric: {settings.metric!r} is not one of {', '.join(_METRICS)}")
        installed = version("ragas")
        if not installed.startswith(f"{RAGAS}."):
            raise SettingsError(f"ragas {installed} is installed, and {RAGAS} is wanted: pip install 'assay[ragas]'")
        self._metric = _METRICS[settings.metric]
        self._settings = settings
        self._purse = purse
        self._slots = Slots(settings.max_in_flight)

    async def judge(self, record: Record, rubrics: Sequence[Rubric]) -> list[Outcome]:
        """One outcome for each rubric, in their order; all are asked at once."""
        return list(await asyncio.gather(*(self._judge(record, rubric) for rubric in rubrics)))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()

    async def _judge(self, record: Record, rubric: Rubric) -> Outcome:
        for names in self._metric.needs:
            if not any(_value(record, name) for name in names):
                return NotApplicable(reason=f"missing_{names[0]}")
        account = Account(self._purse, record, self.name, self._settings.timeout_seconds)
        exchange = _Exchange(self._endpoint, self._slots, self._settings, account, record, rubric)
        try:
            value = await self._metric.ask(exchange)
            return exchange.outcome(value, self._metric.least, self._metric.most)
        except JudgeError as error:
            return exchange.failed(error)
        except Exception as error:  # noqa: BLE001 - whatever ragas makes of a reply, that verdict alone is lost
            # A request that failed is behind it, as a rule.
            return exchange.failed(JudgeError("internal", f"ragas: {type(error).__name__}: {error}"))


class _Exchange:
    """What one score of one record takes: requests, their sum, and the first that failed."""

    def __init__(
        self,
        endpoint: Endpoint,
        slots: Slots,
        settings: JudgeSettings,
        account: Account,
        record: Record,
        rubric: Rubric,
    ) -> None:
        self.record = record
        self.rubric = rubric
        self.replies: list[BaseModel] = []
        self.model = _Model(self)
        self.embeddings = _Embeddings(self)
        self.embedding_model = settings.embedding_model
        self._endpoint = endpoint
        self._slots = slots
        self._account = account
        self._metric = settings.metric or ""
        self._timeout_seconds = settings.timeout_seconds
        #: requests under way, since when there is one, and how long there was one before
        self._asking = 0
        self._asking_since = 0.0
        self._asked_seconds = 0.0
        self._usage = Usage()
        self._seconds = 0.0
        self._answered_by: str | None = None
        self._error: JudgeError | None = None
        #: one of its requests was answered
        self._was_asked = False

    # -- what it comes to

    def outcome(self, value: object, least: float, most: float) -> Outcome:
        """The score that ragas's number is.

        Raises:
            JudgeError: a request failed, whatever ragas made of that, or it is no number of the scale.
        """
        if self._error is not None:
            raise self._error
        if not isinstance(value, int | float) or math.isnan(value):
            if any(getattr(reply, "statements", None) == [] for reply in self.replies):
                return NotApplicable(reason="no_claims", **self._spent)
            raise JudgeError("unparsable", "ragas found no number in what the model said")
        share = (value - least) / (most - least)
        if not -_ROUNDING <= share <= 1 + _ROUNDING:
            raise JudgeError("off_scale", f"ragas gave {value:g}, off its scale of {least:g} to {most:g}")
        share = min(1.0, max(0.0, share))
        passed = share >= self.rubric.pass_threshold
        return Score(
            value=share,
            passed=passed,
            label="pass" if passed else "fail",
            explanation=self._explanation(value),
            details={"replies": [_shown(reply) for reply in self.replies[:_SHOWN_REPLIES]]},
            **self._spent,
        )

    def failed(self, error: JudgeError) -> Failure:
        """The failure that this is, or the request's that is behind it."""
        cause = self._error or error
        return Failure(
            kind=cause.kind,
            message=str(cause)[:_MESSAGE_CHARACTERS],
            retry_after_seconds=cause.retry_after_seconds,
            unasked=cause.unasked and not self._was_asked,
            **self._spent,
        )

    @property
    def _spent(self) -> dict[str, Any]:
        return {"usage": self._usage, "latency_seconds": self._seconds, "judge_model": self._answered_by}

    def _explanation(self, value: float) -> str:
        for reply in reversed(self.replies):
            said = getattr(reply, "feedback", None) or getattr(reply, "reason", None)
            if isinstance(said, str) and said.strip():
                return said[:_SHOWN_CHARACTERS]
        return f"{self._metric.replace('_', ' ')} by ragas: {value:.2f}"

    # -- requests

    async def ask(self, prompt: str, form: type[BaseModel]) -> BaseModel:
        """The model's reply in the form that ragas wants, after one repair at most.

        Raises:
            JudgeError: there is none.
        """
        messages = [{"role": "user", "content": prompt}]
        try:
            said, reply = await self._reply(messages, form)
            if isinstance(reply, VerdictError):
                messages += [
                    {"role": "assistant", "content": said.strip() or "(nothing)"},
                    {"role": "user", "content": f"That reply cannot be used: {reply}. Answer again, in JSON only."},
                ]
                _, reply = await self._reply(messages, form)
            if isinstance(reply, VerdictError):
                raise JudgeError(reply.kind, f"{reply} (after one repair)")
        except JudgeError as error:
            self._error = self._error or error
            raise
        self.replies.append(reply)
        return reply

    async def _reply(
        self, messages: list[dict[str, str]], form: type[BaseModel]
    ) -> tuple[str, BaseModel | VerdictError]:
        schema: Any = pydantic_function_tool(form)["function"]["parameters"]
        answer: Answer = await self._paid(
            self._endpoint.bound(messages, schema),
            lambda deadline: self._endpoint.ask(
                messages, schema, logprobs=False, deadline=deadline, trace_id=self.record.trace_id
            ),
        )
        self._answered_by = answer.model
        try:
            return answer.content, form.model_validate(dict(find_verdicts(answer.content, form.model_fields).members))
        except VerdictError as error:
            return answer.content, error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return answer.content, VerdictError("unparsable", f"{where}: {first['msg']}")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Embeddings of these texts.

        Raises:
            JudgeError: there are none.
        """
        model = self.embedding_model
        try:
            found: Vectors = await self._paid(
                self._endpoint.bound_of_vectors(texts, model),
                lambda deadline: self._endpoint.embed(texts, model, deadline=deadline, trace_id=self.record.trace_id),
            )
        except JudgeError as error:
            self._error = self._error or error
            raise
        return found.vectors

    async def _paid(self, bound: Usage, call: Callable[[float], Awaitable[Any]]) -> Any:
        """A request within budget, slots and time; what it took is added up."""
        clock = asyncio.get_running_loop().time
        # A token is about four bytes of a prompt; how good that is scales the next guess.
        turn_tokens = await self._endpoint.take_turn((bound.prompt_tokens or 0) / 4)
        async with self._slots.hold():
            held = await self._account.reserve(lambda: bound, [self.rubric])
            started = clock()
            deadline = self._start(started)
            try:
                answer = await call(deadline)
            except JudgeError as error:
                self._usage += error.usage or Usage()
                await self._account.settle(held, error)
                raise
            except Exception:
                # Nobody knows whether it was sent.
                await self._account.settle(held, JudgeError("internal", "a fault of the judge"))
                raise
            finally:
                self._stop(clock())
                self._seconds += clock() - started
            self._slots.answered(clock() - started)
            self._usage += answer.usage
            await self._account.settle(held, answer)
        await self._endpoint.settle(turn_tokens, answer.usage)
        self._was_asked = True
        return answer

    def _start(self, moment: float) -> float:
        """A request begins; its deadline.

        The bound is of all requests for one score together. While none is under way, for all of them wait for a turn,
        a slot or a budget, no time is used up.
        """
        if not self._asking:
            self._asking_since = moment
        self._asking += 1
        return self._asking_since + self._timeout_seconds - self._asked_seconds

    def _stop(self, moment: float) -> None:
        """A request has ended."""
        self._asking -= 1
        if not self._asking:
            self._asked_seconds += moment - self._asking_since


class _Model(InstructorBaseRagasLLM):  # type: ignore[misc]  # ragas is untyped here
    """The model that a metric of ragas asks."""

    is_async = True

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def generate(self, prompt: str, response_model: type[BaseModel]) -> NoReturn:
        raise NotImplementedError("the worker's event loop asks asynchronously")

    async def agenerate(self, prompt: str, response_model: type[BaseModel]) -> BaseModel:
        return await self._exchange.ask(prompt, response_model)


class _Embeddings(BaseRagasEmbedding):  # type: ignore[misc]
    """The embeddings that a metric of ragas asks for."""

    def __init__(self, exchange: _Exchange) -> None:
        super().__init__()
        self._exchange = exchange

    def embed_text(self, text: str, **_: Any) -> NoReturn:
        raise NotImplementedError("the worker's event loop asks asynchronously")

    async def aembed_text(self, text: str, **_: Any) -> list[float]:
        return (await self._exchange.embed([text]))[0]

    async def aembed_texts(self, texts: list[str], **_: Any) -> list[list[float]]:
        return await self._exchange.embed(texts)


# -- the metrics


def _value(record: Record, name: str) -> Any:
    if name == "input":
        return record.input_text.strip()
    if name == "contexts":
        return [context.text for context in record.contexts if context.text.strip()]
    value = getattr(record, name)
    return value.strip() if isinstance(value, str) else value


async def _faithfulness(exchange: _Exchange) -> object:
    record = exchange.record
    metric = Faithfulness(llm=exchange.model)
    result = await metric.ascore(
        user_input=record.input_text, response=record.output, retrieved_contexts=_value(record, "contexts")
    )
    return result.value


async def _answer_relevancy(exchange: _Exchange) -> object:
    record = exchange.record
    metric = AnswerRelevancy(llm=exchange.model, embeddings=exchange.embeddings)
    result = await metric.ascore(user_input=record.input_text, response=record.output)
    if not any(getattr(reply, "question", None) for reply in exchange.replies):
        return None  # ragas makes a 0 of it
    # A cosine; questions that point the other way are not less relevant than those with nothing in common.
    return max(0.0, float(result.value))


async def _context_precision(exchange: _Exchange) -> object:
    record = exchange.record
    contexts = _value(record, "contexts")
    if _value(record, "reference"):
        metric = ContextPrecisionWithReference(llm=exchange.model)
        result = await metric.ascore(
            user_input=record.input_text, reference=record.reference, retrieved_contexts=contexts
        )
    else:
        metric = ContextPrecisionWithoutReference(llm=exchange.model)
        result = await metric.ascore(user_input=record.input_text, response=record.output, retrieved_contexts=contexts)
    return result.value


async def _context_recall(exchange: _Exchange) -> object:
    record = exchange.record
    result = await ContextRecall(llm=exchange.model).ascore(
        user_input=record.input_text, retrieved_contexts=_value(record, "contexts"), reference=record.reference
    )
    return result.value


async def _response_groundedness(exchange: _Exchange) -> object:
    # Tries again are the queue's: one that failed here fails the score.
    metric = ResponseGroundedness(llm=exchange.model, max_retries=1)
    result = await metric.ascore(
        response=exchange.record.output, retrieved_contexts=_value(exchange.record, "contexts")
    )
    ratings = [getattr(reply, "rating", None) for reply in exchange.replies]
    if any(rating not in (0, 1, 2) for rating in ratings):
        raise JudgeError("off_scale", f"the model rated {ratings}, and the scale is 0, 1, 2")
    return result.value


async def _rubric_score(exchange: _Exchange) -> object:
    record, scale = exchange.record, exchange.rubric.scale
    if not isinstance(scale, Ordinal):
        raise JudgeError("internal", "ragas's rubric_score takes its levels from a scale of type `ordinal`")
    levels = {f"score{level.level}_description": level.anchor for level in scale.levels}
    metric = DomainSpecificRubrics(llm=exchange.model, rubrics=levels, with_reference=record.reference is not None)
    result = await metric.ascore(
        user_input=record.input_text or None,
        response=record.output,
        retrieved_contexts=_value(record, "contexts") or None,
        reference=record.reference,
    )
    known = [level.level for level in scale.levels]
    if result.value not in known:
        raise JudgeError("off_scale", f"the model gave level {result.value:g}, and the scale has {known}")
    return (result.value - known[0]) / (known[-1] - known[0])


async def _aspect_critic(exchange: _Exchange) -> object:
    record = exchange.record
    critic = AspectCritic(name=exchange.rubric.name, definition=exchange.rubric.instructions, llm=exchange.model)
    sample = SingleTurnSample(
        user_input=record.input_text or None,
        response=record.output,
        retrieved_contexts=_value(record, "contexts") or None,
        reference=record.reference,
    )
    return await critic.single_turn_ascore(sample)


_METRICS = {
    "faithfulness": _Metric((("contexts",), ("input",), ("output",)), _faithfulness),
    "answer_relevancy": _Metric((("input",), ("output",)), _answer_relevancy),
    "context_precision": _Metric((("input",), ("contexts",), ("reference", "output")), _context_precision),
    "context_recall": _Metric((("input",), ("contexts",), ("reference",)), _context_recall),
    "response_groundedness": _Metric((("contexts",), ("output",)), _response_groundedness),
    "rubric_score": _Metric((("output",),), _rubric_score),
    "aspect_critic": _Metric((("output",),), _aspect_critic),
}


def _shown(reply: BaseModel) -> Any:
    """A reply in short, for those who want to know why."""
    return _cut(reply.model_dump(mode="json"))


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[:_SHOWN_CHARACTERS]
    if isinstance(value, list):
        return [_cut(item) for item in value[:_SHOWN_REPLIES]]
    if isinstance(value, dict):
        return {name: _cut(item) for name, item in value.items()}
    return value
