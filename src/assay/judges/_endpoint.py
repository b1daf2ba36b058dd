"""One OpenAI-compatible endpoint: sends a request, learns what the endpoint understands, and names its failures.

Endpoints differ in the parameters they accept. The first refusals teach a `Dialect`, which is kept for later calls.
All that an endpoint can do wrong ends here, as a `JudgeError`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from assay.circuits import DOWN
from assay.echoes import Credentials
from assay.errors import JudgeError, SettingsError
from assay.judges import OPENAI_BASE_URL, lacks_key
from assay.judges._dialect import FORMAT, Dialect
from assay.judges._errors import kind_of, presentable, read_retry_after, told
from assay.judges._identity import identify
from assay.judges._prices import load_prices
from assay.judges._prompt import sendable
from assay.judges._slots import OVERTIME
from assay.judges._wire import MAX_BODY_BYTES, OversizedError, UnreachableError, connect
from assay.limits import endpoint_id, waiting
from assay.records import Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from assay.judges import JudgeObserver, JudgeSettings
    from assay.judges._wire import Wire
    from assay.limits import Limits
    from assay.records import FailureKind

_log = logging.getLogger(__name__)

#: No tokenizer packs more characters into a token, runs of one character aside.
_MOST_CHARACTERS_PER_TOKEN = 8.0
_TOP_LOGPROBS = 5
#: No call reads or writes more: an endpoint that says so has miscounted.
_MOST_TOKENS = 2**31
#: Of an embedding, so that its length is finite.
_MOST_COMPONENT = 1e100
#: For bounds: no tokenizer makes more tokens than bytes, and a chat's frame is a few more.
_FRAME_TOKENS = 200
#: Error statuses behind which a model may have run all the same: somebody on the way gave up waiting for it.
_PERHAPS_CHARGED = frozenset({408, 499, 502, 504, 520, 522, 524})

_RUN = re.compile(r"([^\w])\1+|(\w)\2{3,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A complete reply of the judge model."""

    content: str
    #: `choices[0].logprobs.content` as it came
    logprobs: object
    usage: Usage
    model: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Embeddings, one for each text, in their order."""

    vectors: list[list[float]]
    usage: Usage


_Reply = TypeVar("_Reply", Answer, Vectors)


class _Refusal(Exception):  # noqa: N818 - not an error yet: the endpoint may take the request in another dialect
    """An error, without a charge, that another dialect may avoid; `failure` is what it is otherwise."""

    def __init__(self, failure: JudgeError, message: str, parameter: str | None, *, guess: bool) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message
        self.parameter = parameter
        self.guess = guess


class Endpoint:
    """Asks one model at one base URL. Its connections belong to the event loop of the first call."""

    def __init__(self, settings: JudgeSettings, observer: JudgeObserver | None, limits: Limits | None) -> None:
        """Raises SettingsError: see `identify`; no key where one is needed, or a broken price table."""
        #: of the judge whose endpoint it is
        self.identity = identify(settings)
        judge, _, model = self.identity
        if lacks_key(settings):
            raise SettingsError(
                f"the judge `{settings.engine}` needs a key: set ASSAY_JUDGE_API_KEY or OPENAI_API_KEY, "
                "or ASSAY_JUDGE_BASE_URL for an endpoint of your own"
            )
        self._limits = limits
        #: by which limits know it
        self._id = endpoint_id(settings.base_url or OPENAI_BASE_URL, model)
        self._settings = settings
        self._credentials = Credentials(settings.api_key, url=settings.base_url)
        self._model = model
        self._prices = load_prices(settings.prices_path)
        self._judge = judge
        self._observer = observer
        self._dialect = Dialect()
        #: whether the dialect has been understood: only then is a vague refusal the record's own fault
        self._proven = False
        self._wire: Wire | None = None

    async def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any],
        *,
        logprobs: bool,
        deadline: float,
        spelled_out: str = "",
        seeded: bool = True,
        trace_id: str | None = None,
    ) -> Answer:
        """One reply to `messages`, before `deadline` (in the event loop's time), in whatever dialect it takes.

        `spelled_out` is the schema in words, which an endpoint that takes none is told at the end of the first message.

        Raises:
            JudgeError: of every kind but `unparsable` and `off_scale`; the reply is not looked into here.
        """
        await self._admit(probe=True)
        # What a model replied is sent again in a repair, whatever it was.
        messages = [{**message, "content": sendable(message["content"])} for message in messages]
        dialect = self._dialect
        tried: set[Dialect] = set()
        while True:
            tried.add(dialect)
            body = self._body(messages, schema, dialect, spelled_out=spelled_out, logprobs=logprobs, seeded=seeded)
            read = partial(self._read, messages=body["messages"])
            try:
                answer = await self._observed(self._within("/chat/completions", body, deadline, read), trace_id)
            except _Refusal as refusal:
                # Another call may have learned it meanwhile.
                candidates = (self._dialect, dialect.after(refusal.message, refusal.parameter, guess=refusal.guess))
                untried = next((other for other in candidates if other is not None and other not in tried), None)
                if untried is None:
                    raise refusal.failure from None
                dialect = untried
                continue
            if len(tried) > 1 and dialect != self._dialect:
                _log.warning("judge endpoint lacks parameters", extra={"judge": self._judge, "uses": str(dialect)})
                self._dialect = dialect
            self._proven = self._proven or dialect == self._dialect
            return answer

    async def embed(self, texts: Sequence[str], model: str, *, deadline: float, trace_id: str | None = None) -> Vectors:
        """An embedding of each text by `model` of the same endpoint, before `deadline` (in the event loop's time).

        Raises:
            JudgeError: as `ask` does.
        """
        await self._admit(probe=True)
        body = {"model": model, "input": [sendable(text) for text in texts], "encoding_format": "float"}
        read = partial(self._read_vectors, count=len(texts), model=model)
        try:
            return await self._observed(self._within("/embeddings", body, deadline, read), trace_id)
        except _Refusal as refusal:
            raise refusal.failure from None

    async def take_turn(self, tokens: float, *, wait_seconds: float | None = None) -> float:
        """Wait until the rate limit lets a request be sent; the tokens that were counted, for `settle`.

        Args:
            tokens: a guess of what the request will take.
            wait_seconds: instead of the longest wait of the settings.

        Raises:
            JudgeError: nothing was asked: the turn is too far off, or the endpoint is down.
        """
        if self._limits is None:
            return tokens
        await self._admit(probe=False)
        with waiting():
            return await self._limits.take(self._id, tokens, wait_seconds=wait_seconds)

    async def settle(self, counted: float, used: Usage) -> None:
        """A request took so much, where so many tokens were counted for it."""
        if self._limits is not None:
            total = (used.prompt_tokens or 0) + (used.completion_tokens or 0)
            await self._limits.settle(self._id, counted, total or None)

    def bound(self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any]) -> Usage:
        """The most that one reply to these messages can take; its cost is None where the price is not known."""
        # A schema is longer than the words for it, and only one of them is sent.
        prompt = _FRAME_TOKENS + len(json.dumps(schema))
        prompt += sum(len(message["content"].encode(errors="replace")) for message in messages)
        reply = self._settings.max_tokens
        price = self._prices.of(self._model)
        cost = None if price is None else price.cost_usd(prompt_tokens=prompt, completion_tokens=reply)
        return Usage(prompt_tokens=prompt, completion_tokens=reply, cost_usd=cost)

    def bound_of_vectors(self, texts: Sequence[str], model: str) -> Usage:
        """The same of embeddings of these texts."""
        prompt = _FRAME_TOKENS + sum(len(text.encode(errors="replace")) for text in texts)
        price = self._prices.of(model)
        cost = None if price is None else price.cost_usd(prompt_tokens=prompt, completion_tokens=0)
        return Usage(prompt_tokens=prompt, completion_tokens=0, cost_usd=cost)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._wire is not None:
            await self._wire.aclose()

    def _body(
        self,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any],
        dialect: Dialect,
        *,
        spelled_out: str,
        logprobs: bool,
        seeded: bool,
    ) -> dict[str, Any]:
        if spelled_out and dialect.format != "json_schema":
            first = messages[0]
            messages = [{**first, "content": f"{first['content']}\n\n{spelled_out}"}, *messages[1:]]
        body: dict[str, Any] = {"model": self._model, "messages": messages}
        if dialect.format == "json_schema":
            wanted = {"name": "verdicts", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif dialect.format == "json_object":
            body["response_format"] = {"type": "json_object"}
        temperature = self._settings.temperature
        if temperature is not None and "temperature" not in dialect.without:
            body["temperature"] = temperature
        if temperature and seeded and "seed" not in dialect.without:
            body["seed"] = 0
        if logprobs and "logprobs" not in dialect.without:
            body |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        if dialect.limit is not None:
            body[dialect.limit] = self._settings.max_tokens
        return body

    async def _admit(self, *, probe: bool) -> None:
        if self._limits is not None:
            try:
                await self._limits.circuits.admit(self._id, self._judge, probe=probe)
            finally:
                self._show_circuit()

    def _show_circuit(self) -> None:
        # Always: others of the same name tell of it too, and may have seen it last when it was otherwise.
        if self._observer is not None and self._limits is not None:
            self._observer.circuit(self._judge, is_open=self._limits.circuits.is_open(self._id))

    async def _tell_circuit(self, started: float, outcome: str, failure: JudgeError | None) -> None:
        if self._limits is None:
            return
        circuits = self._limits.circuits
        await circuits.ended(self._id, self._judge, started, outcome)
        self._show_circuit()
        if failure is not None and outcome in DOWN and circuits.is_open(self._id):
            # It says nothing of the record.
            refusal = circuits.refusal(self._id)
            failure.unasked, failure.retry_after_seconds = True, refusal.retry_after_seconds

    async def _observed(self, call: Awaitable[_Reply], trace_id: str | None) -> _Reply:
        clock = asyncio.get_running_loop().time
        started = clock()
        outcome, usage = "cancelled", Usage()
        failure: JudgeError | None = None
        if self._observer is not None:
            self._observer.call_started(self._judge)
        try:
            reply = await call
        except JudgeError as error:
            outcome, usage, failure = error.kind, error.usage or usage, error
            raise
        except _Refusal as refusal:
            outcome = refusal.failure.kind
            raise
        else:
            outcome, usage = "ok", reply.usage
            return reply
        finally:
            if self._observer is not None:
                self._observer.call_ended(self._judge, clock() - started, outcome, usage, trace_id)
            await self._tell_circuit(started, outcome, failure)

    async def _within(
        self, path: str, body: Mapping[str, Any], deadline: float, read: Callable[[bytes, bool], _Reply]
    ) -> _Reply:
        try:
            async with asyncio.timeout_at(deadline):
                content, is_json = await self._send(path, body)
        except TimeoutError:
            seconds = self._settings.timeout_seconds
            raise JudgeError("timeout", f"no complete answer within {seconds:g} s") from None
        return read(content, is_json)

    async def _send(self, path: str, body: Mapping[str, Any]) -> tuple[bytes, bool]:
        """The body of a 2xx, and whether it says that it is JSON."""
        if self._wire is None:
            base_url = self._settings.base_url or OPENAI_BASE_URL
            # Those that hang have no slot, but a connection; one that was given up may take a moment to close.
            most = self._settings.max_in_flight * (1 + OVERTIME) + 8
            self._wire = connect(base_url, self._settings.api_key, connections=most)
        try:
            response = await self._wire.post(path, body)
        except OversizedError:
            raise self._error("unavailable", f"an answer of more than {MAX_BODY_BYTES} bytes") from None
        except UnreachableError as error:
            raise self._error("unavailable", f"no connection: {error}", free=error.never_sent) from None
        if self._limits is not None:
            await self._limits.learn(self._id, response.headers)
            if response.status == 429:
                await self._limits.limited(self._id, read_retry_after(response.headers))
        if not 200 <= response.status < 300:
            raise self._status_failure(response.status, response.headers, response.content)
        return response.content, "html" not in response.headers.get("content-type", "")

    # -- what went wrong

    def _error(
        self,
        kind: FailureKind,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        usage: Usage | None = None,
        free: bool = False,
    ) -> JudgeError:
        shown = presentable(message, self._credentials)
        return JudgeError(kind, shown, retry_after_seconds=retry_after_seconds, usage=usage, free=free)

    def _status_failure(self, status: int, headers: Mapping[str, str], content: bytes) -> JudgeError | _Refusal:
        """Names what an error status means."""
        said, parameter = told(content)
        message = f"HTTP {status}: {said}" if said else f"HTTP {status}"
        if status < 400:
            target = headers.get("location", "nowhere").partition("?")[0]
            return self._error("unauthorized", f"{message}: redirected to {target}: correct the base URL", free=True)
        kind = kind_of(status, said)
        retry_after = read_retry_after(headers) if kind in ("rate_limited", "unavailable") else None
        free = status not in _PERHAPS_CHARGED
        failure = self._error(kind, message, retry_after_seconds=retry_after, free=free)
        # Some servers answer 500 to a schema that they cannot use. What may be charged is not followed by another
        # request: one is what was reserved.
        if free and ((kind == "rejected" and status in (400, 422)) or (kind == "unavailable" and FORMAT.search(said))):
            return _Refusal(failure, said, parameter, guess=kind == "rejected" and not self._proven)
        return failure

    # -- what came back

    def _decode(self, content: bytes, is_json: bool) -> dict[str, Any]:
        """The JSON object of a reply that says of no error."""
        try:
            reply = json.loads(content.decode())
        except (ValueError, RecursionError):
            what = "a body that is not JSON" if is_json else "a web page: correct the base URL"
            raise self._error("unavailable", f"the endpoint answered with {what}") from None
        if not isinstance(reply, dict):
            raise self._error("unavailable", "the endpoint answered with JSON that is no completion")
        if isinstance(reply.get("error"), dict):
            code = reply["error"].get("code")
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
            raise self._status_failure(status, {}, content)
        return reply

    def _read_vectors(self, content: bytes, is_json: bool, *, count: int, model: str) -> Vectors:
        reply = self._decode(content, is_json)
        data = reply.get("data")
        entries = data if isinstance(data, list) and all(isinstance(entry, dict) for entry in data) else []
        entries = sorted(entries, key=lambda entry: entry.get("index") if isinstance(entry.get("index"), int) else 0)
        vectors = [entry.get("embedding") for entry in entries]
        if len(vectors) != count or not all(_is_vector(vector) for vector in vectors):
            raise self._error("unparsable", f"the endpoint answered with no embeddings of {count} texts")
        counted = reply.get("usage")
        # Embeddings have no completion, and most endpoints do not say so.
        counted = {**counted, "completion_tokens": 0} if isinstance(counted, dict) else None
        return Vectors(vectors=vectors, usage=self._usage(counted, model, model))

    def _read(self, content: bytes, is_json: bool, *, messages: Sequence[Mapping[str, str]]) -> Answer:
        reply = self._decode(content, is_json)
        choices = reply.get("choices")
        if not isinstance(choices, list):
            raise self._error("unavailable", "the endpoint answered with JSON that is no completion")
        model = reply["model"][:200] if isinstance(reply.get("model"), str) else None
        usage = self._usage(reply.get("usage"), self._model, model)
        self._check_uncut(reply.get("usage"), messages, usage)
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        message = choice["message"] if isinstance(choice.get("message"), dict) else {}
        self._check_finished(choice.get("finish_reason"), message, usage)
        logprobs = choice.get("logprobs")
        return Answer(
            content=_text(message.get("content")),
            logprobs=logprobs.get("content") if isinstance(logprobs, dict) else None,
            usage=usage,
            model=model,
        )

    def _check_finished(self, reason: object, message: Mapping[str, Any], usage: Usage) -> None:
        if reason == "content_filter":
            raise self._error("refused", "the endpoint's content filter stopped the reply", usage=usage)
        refusal = message.get("refusal")
        if isinstance(refusal, str) and refusal.strip():
            raise self._error("refused", f"the judge declined: {refusal}", usage=usage)
        if reason == "length":
            most = self._settings.max_tokens
            problem = f"the reply was cut at {usage.completion_tokens or most} tokens (bound: {most})"
            raise self._error("truncated", problem, usage=usage)
        if reason == "error":
            raise self._error("unavailable", "the endpoint failed during the reply", usage=usage)

    def _check_uncut(self, counted: object, messages: Sequence[Mapping[str, str]], usage: Usage) -> None:
        """Some servers (Ollama) cut a prompt that is too long and say nothing: their own count gives them away."""
        if usage.prompt_tokens is None or not isinstance(counted, dict):
            return
        characters = sum(len(message["content"]) for message in messages)
        # Some count what was cached beside the prompt and not in it: the more of both is held against it.
        tokens = (_count(counted.get("prompt_tokens")) or 0) + (_cached(counted) or 0) + _written(counted)
        if characters <= tokens * _MOST_CHARACTERS_PER_TOKEN:
            return
        characters = sum(len(_RUN.sub(" ", message["content"])) for message in messages)
        if characters > tokens * _MOST_CHARACTERS_PER_TOKEN:
            problem = (
                f"the endpoint counted {tokens} tokens in {characters} characters: it cut the prompt to its context"
            )
            raise self._error(
                "context_overflow", f"{problem}; give the model a larger one (Ollama: num_ctx)", usage=usage
            )

    def _usage(self, counted: object, asked: str, model: str | None) -> Usage:
        if not isinstance(counted, dict):
            return Usage()
        prompt, completion = _count(counted.get("prompt_tokens")), _count(counted.get("completion_tokens"))
        # A prompt of no tokens is a server that does not count.
        prompt = prompt or None
        cached = _cached(counted)
        of_cache = (cached or 0) + _written(counted)
        if prompt is not None and of_cache > prompt:
            # It counts what was cached beside the prompt, and not in it.
            prompt += of_cache
        price = self._prices.of(asked, model)
        cost = None
        if price is not None and prompt is not None and completion is not None:
            cost = price.cost_usd(prompt_tokens=prompt, completion_tokens=completion, cached_prompt_tokens=cached or 0)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost_usd=cost,
            cached_prompt_tokens=None if prompt is None else cached,
        )


def _text(content: object) -> str:
    """The text of a message; some servers send it in parts."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _is_vector(value: object) -> bool:
    """Whether this is a list of finite numbers, not all of them 0."""
    if not isinstance(value, list) or not value:
        return False
    # False for NaN, and for whole numbers that are too large to be made floats.
    return all(isinstance(x, int | float) and abs(x) <= _MOST_COMPONENT for x in value) and any(value)


def _count(value: object) -> int | None:
    """A number of tokens; None when it is none, or beyond reason."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS else None


def _written(counted: Mapping[str, Any]) -> int:
    """Prompt tokens that were put into the provider's cache; 0 where it does not say."""
    details = counted.get("prompt_tokens_details")
    named = [counted.get("cache_creation_input_tokens")]
    if isinstance(details, dict):
        named += [details.get("cache_creation_tokens"), details.get("cache_write_tokens")]
    return max((count for count in map(_count, named) if count is not None), default=0)


def _cached(counted: Mapping[str, Any]) -> int | None:
    """Prompt tokens from the provider's cache, by the names that endpoints have for them; None: it does not say."""
    details = counted.get("prompt_tokens_details")
    named = [details.get("cached_tokens")] if isinstance(details, dict) else []
    named += [counted.get("prompt_cache_hit_tokens"), counted.get("cache_read_input_tokens")]
    counts = [count for count in map(_count, named) if count is not None]
    # An adapter may fill in one of them and leave 0 in another.
    return max(counts, default=None)
