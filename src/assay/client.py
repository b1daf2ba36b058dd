"""The app's side: `Client` samples, redacts and enqueues interactions, and never hurts the app.

Recording costs the app's thread about 10 microseconds; it cannot block and cannot raise. All else happens in
`assay.buffer`, on a thread of its own. Standard library only at import.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import time
import weakref
from collections.abc import Generator, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from assay.buffer import Buffer, DropReason, Limits, Stats, Transport, open_queue
from assay.connections import parse
from assay.errors import SettingsError
from assay.interactions import FIELDS, InteractionFields, as_list, as_text
from assay.queue import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_BATCHES, MAX_RECORD_BYTES
from assay.redaction import Redactor
from assay.sampling import ALWAYS_TAKE, Rule, Sampler

if TYPE_CHECKING:
    import uuid
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Self, Unpack

    from assay.records import Context, Feedback, Message, Record, ToolEvent, Usage

__all__ = ["Client", "DropReason", "Interaction", "InteractionFields", "Stats", "Transport"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_DEFAULT_REDACTOR = Redactor()
_LIST_FIELDS = frozenset({"contexts", "tool_events"})


class Client:
    """Enqueues the interactions of one application for scoring. Any thread and any event loop may use it.

    Nothing that is recorded can block the app or raise into it. Records wait in a bounded buffer for one daemon
    thread, which a forked child starts anew. When the client is closed, and at exit, it waits `close_seconds` at most.

    Args:
        app: the application, 1 to 100 characters; a label of its metrics.
        redis_url: where the queue is; `ASSAY_REDIS_URL`, else redis://localhost:6379/0.
        queue: its name; `ASSAY_QUEUE`, else assay.
        sample_rate: share of the interactions to take, 0 to 1, where no rule says otherwise; `ASSAY_SAMPLE_RATE`,
            else 1.
        rules: sampling rules, the first that matches decides.
        always_take: rules that come before those: every thumbs-down, error and answer cut by length. `()` for none.
        redact: called with every record, on the sender's thread, before it leaves; None sends records as they are.
            When it raises, the record is dropped.
        user_id_salt: secret for hashing user ids; `ASSAY_USER_ID_SALT`. Without one, user ids are not sent.
        cohort: labels of every interaction.
        buffer_records: the most records that wait.
        buffer_bytes: about the most bytes that they take.
        batch_records: records to a batch, 1 to 25; eight full ones are sent at once.
        flush_seconds: how long a record waits for that.
        max_record_bytes: larger records are dropped; the workers refuse them too. `ASSAY_MAX_RECORD_BYTES`, else
            1,000,000.
        close_seconds: how long closing waits for what is still in the buffer.
        thin_above: when the queue is fuller than this, 0 to 1, fewer records are taken, down to one in a hundred, with
            their probabilities recorded; what a rule takes at rate 1 is taken still. 1: never.
        max_batches: the most batches in the queue, those of all clients; what is over it is dropped;
            `ASSAY_MAX_BATCHES`, else 20,000.
        transport: something other than the queue at `redis_url`, or a `Queue` with limits of your own.
        enabled: False records nothing; `ASSAY_ENABLED` (0, false, no, off), else True.

    Raises:
        SettingsError: an argument or environment variable is out of range.
    """

    def __init__(
        self,
        app: str = "default",
        *,
        redis_url: str | None = None,
        queue: str | None = None,
        sample_rate: float | None = None,
        rules: Sequence[Rule] = (),
        always_take: Sequence[Rule] = ALWAYS_TAKE,
        redact: Callable[[Record], Record] | None = _DEFAULT_REDACTOR,
        user_id_salt: str | bytes | None = None,
        cohort: Mapping[str, str] | None = None,
        buffer_records: int = 10_000,
        buffer_bytes: int = 64_000_000,
        batch_records: int = MAX_BATCH_RECORDS,
        flush_seconds: float = 1.0,
        max_record_bytes: int | None = None,
        close_seconds: float = 2.0,
        thin_above: float = 0.8,
        max_batches: int | None = None,
        transport: Transport | None = None,
        enabled: bool | None = None,
    ) -> None:
        _check(1 <= len(app) <= 100, "app: must be 1 to 100 characters")
        _check(1 <= batch_records <= MAX_BATCH_RECORDS, f"batch_records: must be 1 to {MAX_BATCH_RECORDS}")
        _check(buffer_records >= batch_records, "buffer_records: must be batch_records or more")
        _check(0 < flush_seconds < math.inf, "flush_seconds: must be more than 0")
        _check(0 <= close_seconds < math.inf, "close_seconds: must be 0 or more")
        _check(0 <= thin_above <= 1, "thin_above: must be 0 to 1")
        largest = max_record_bytes
        if largest is None:
            # Workers may take larger ones than fit into a batch, out of files.
            largest = min(_environment_number("ASSAY_MAX_RECORD_BYTES", MAX_RECORD_BYTES), MAX_BATCH_BYTES // 2)
        _check(0 < largest <= MAX_BATCH_BYTES // 2, f"max_record_bytes: must be 1 to {MAX_BATCH_BYTES // 2:,}")
        url = redis_url or (os.environ.get("ASSAY_REDIS_URL") or "").strip() or "redis://localhost:6379/0"
        if transport is None:
            parse(url)
        name = queue or os.environ.get("ASSAY_QUEUE") or "assay"
        bound = _environment_number("ASSAY_MAX_BATCHES", MAX_BATCHES) if max_batches is None else max_batches
        _check(bound >= 1, "max_batches: must be 1 or more")
        self._buffer = Buffer(
            app,
            limits=Limits(
                buffer_records=buffer_records,
                buffer_bytes=buffer_bytes,
                batch_records=batch_records,
                flush_seconds=flush_seconds,
                max_record_bytes=largest,
                close_seconds=close_seconds,
                thin_above=thin_above,
            ),
            sampler=Sampler(_environment_rate() if sample_rate is None else sample_rate, [*always_take, *rules]),
            redact=redact,
            salt=user_id_salt or os.environ.get("ASSAY_USER_ID_SALT"),
            cohort=cohort or {},
            # A transport of the app's own is the app's to close.
            connect=(
                (lambda: closing(open_queue(url, name, max_batches=bound)))
                if transport is None
                else (lambda: nullcontext(transport))
            ),
        )
        self._enabled = _environment_enabled() if enabled is None else enabled
        if self._enabled and transport is None:
            # redis loads this, and on the sender's thread it could not any more once the interpreter goes down: a
            # script that ends right after it recorded would lose its records.
            import concurrent.futures.thread  # noqa: F401
        # A client that is forgotten sends what it has, and nobody waits for it.
        weakref.finalize(self, self._buffer.begin_close).atexit = False

    def record(self, **interaction: Unpack[InteractionFields]) -> str | None:
        """Record one interaction: `client.record(input=question, output=answer, contexts=passages)`.

        Takes the fields of `InteractionFields` by name. Returns the record's id, or None when it was not taken:
        sampled out or thinned, dropped (see `stats`), or the client is disabled.
        """
        fields: Any = interaction
        return self._buffer.take(fields) if self._enabled else None

    def interaction(self, **known: Unpack[InteractionFields]) -> Interaction:
        """Record what happens in a `with` or `async with` block, with its latency.

            with client.interaction(input=question, route="/ask") as it:
                it.contexts = search(question)
                it.output = answer(question, it.contexts)

        An exception is recorded with `finish_reason="error"` and goes on; a cancelled block is not recorded.
        """
        it = Interaction(_client=self)
        for name, value in known.items():
            if name in FIELDS:
                setattr(it, name, _own(as_list(value) if name in _LIST_FIELDS else value))
            else:
                self._buffer.warn("fields", "%s is not a field of an interaction", name)
        return it

    @overload
    def observe(self, function: Callable[_P, _R], /) -> Callable[_P, _R]: ...

    @overload
    def observe(
        self,
        *,
        input_from: str | None = None,
        contexts_from: str | None = None,
        capture: Callable[[Any], Mapping[str, Any]] | None = None,
        **known: Unpack[InteractionFields],
    ) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]: ...

    def observe(  # type: ignore[misc]  # mypy does not see that **Any takes what Unpack names
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        input_from: str | None = None,
        contexts_from: str | None = None,
        capture: Callable[[Any], Mapping[str, Any]] | None = None,
        **known: Any,
    ) -> Any:
        """Record every call of a function, coroutine function, generator or asynchronous generator.

        Args:
            function: what is decorated; its return value is the output, the chunks of a generator are joined.
            input_from: name of the parameter that is the input; the first one by default (after self or cls).
            contexts_from: name of the parameter that holds the contexts.
            capture: given the return value (of a generator the list of its chunks), the fields that it holds, such
                as `lambda reply: {"output": reply.text, "model": reply.model}`.
            known: fields that are the same for every call, such as `route`.

        An exception is recorded with `finish_reason="error"` and goes on. A call that is cancelled is not recorded;
        a stream that its reader leaves early is, with `finish_reason="cancelled"`.

        Raises:
            SettingsError: when decorating, if the function has no parameter of that name.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            parameters = inspect.signature(function).parameters
            for name in (input_from, contexts_from):
                _check(name is None or name in parameters, f"observe: the function has no parameter {name}")
            return _wrap(function, _Calls(self, list(parameters.values()), input_from, contexts_from, capture, known))

        return decorate if function is None else decorate(function)

    def stats(self) -> Stats:
        """What became of the interactions so far, in this process."""
        return self._buffer.stats()

    def flush(self, timeout_seconds: float = 5.0) -> bool:
        """Wait until all that is buffered now has been sent, or dropped and counted; False when time runs out.

        Blocks: in a coroutine, `await asyncio.to_thread(client.flush)`.
        """
        return self._buffer.flush(timeout_seconds)

    def close(self, timeout_seconds: float | None = None) -> None:
        """Send what is buffered, for `close_seconds` at most, and stop; what is left is dropped and counted.

        A batch whose reply had not come by then counts as dropped, though the queue may have stored it.
        """
        self._buffer.close(timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _capture_failed(self, error: Exception) -> None:
        self._buffer.warn("capture", "a call was not recorded: capture raised %s", type(error).__name__)
        self._buffer.refuse("invalid")


@dataclass(slots=True, kw_only=True, eq=False)
class Interaction:
    """One interaction under way, from `Client.interaction`. Set what is known, when it is known.

    The fields are those of `InteractionFields`. `record_id` is set when the block ends: to the record's id, or to
    None when it was not taken.
    """

    input: str | Sequence[Message | Mapping[str, Any]] = ""
    output: object = ""
    contexts: list[str | Context | Mapping[str, Any]] = field(default_factory=list)
    reference: str | None = None
    required_fields: Sequence[str] = ()
    trace_id: str | int | uuid.UUID | None = None
    span_id: str | int | None = None
    session_id: str | None = None
    user_id: str | None = None
    route: str | None = None
    model: str | None = None
    prompt_version: str | None = None
    cohort: dict[str, str] = field(default_factory=dict)
    usage: Usage | Mapping[str, Any] | None = None
    #: measured when not set
    latency_seconds: float | None = None
    finish_reason: str | None = None
    tool_events: list[ToolEvent | Mapping[str, Any]] = field(default_factory=list)
    feedback: Feedback | Mapping[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    sink_refs: dict[str, str] = field(default_factory=dict)
    timestamp: datetime | float | None = None
    record_id: str | None = None
    _client: Client
    _started: float = field(default=0.0, repr=False)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            return  # cancelled or interrupted: there is no answer to judge
        given = {name: getattr(self, name) for name in FIELDS}
        if self.latency_seconds is None:
            given["latency_seconds"] = time.perf_counter() - self._started
        if error is not None:
            given |= _failed(error, self.metadata)
        self.record_id = self._client.record(**cast("InteractionFields", given))

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


class _Calls:
    """How the calls of one observed function become interactions."""

    def __init__(
        self,
        client: Client,
        parameters: list[inspect.Parameter],
        input_from: str | None,
        contexts_from: str | None,
        capture: Callable[[Any], Mapping[str, Any]] | None,
        known: dict[str, Any],
    ) -> None:
        names = [parameter.name for parameter in parameters if parameter.name not in {"self", "cls"}]
        self._client = client
        self._parameters = parameters
        self._input_from = input_from or (names[0] if names else None)
        self._contexts_from = contexts_from
        self._capture = capture
        self._known = known

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        interaction = {"input": self._argument(self._input_from, args, kwargs), **self._known}
        if self._contexts_from is not None:
            interaction["contexts"] = self._argument(self._contexts_from, args, kwargs)
        return _Call(self._client, interaction, self._capture)

    def _argument(self, name: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in kwargs:
            return kwargs[name]
        for place, parameter in enumerate(self._parameters):
            if parameter.name == name:
                if parameter.kind is parameter.VAR_POSITIONAL:
                    return args[place:]
                if place < len(args):
                    return args[place]
                return None if parameter.default is parameter.empty else parameter.default
        return None


class _Call:
    """One call of an observed function, recorded when it ends."""

    def __init__(
        self, client: Client, interaction: dict[str, Any], capture: Callable[[Any], Mapping[str, Any]] | None
    ) -> None:
        self._client = client
        self._interaction = interaction
        self._capture = capture
        self._started = time.perf_counter()
        #: what a generator has given so far
        self.chunks: list[Any] = []

    def returned(self, result: object) -> None:
        self._end(result, output=result)

    def streamed(self, finish_reason: str | None = None) -> None:
        if finish_reason is not None:
            self._interaction["finish_reason"] = finish_reason
        self._end(self.chunks, output=None)

    def raised(self, error: Exception) -> None:
        self._interaction |= _failed(error, self._interaction.get("metadata"))
        self._capture = None
        self._end(None, output=None)

    def _end(self, result: object, *, output: object) -> None:
        interaction = self._interaction
        interaction.setdefault("latency_seconds", time.perf_counter() - self._started)
        try:
            interaction["output"] = "".join(as_text(chunk) for chunk in self.chunks) if self.chunks else output
            if self._capture is not None:
                interaction.update(self._capture(result))
        except Exception as error:  # noqa: BLE001 - capture is the app's code, and so is what as_text may call
            self._client._capture_failed(error)
            return
        self._client.record(**cast("InteractionFields", interaction))


def _wrap(function: Callable[..., Any], calls: _Calls) -> Callable[..., Any]:
    """The function, recording its calls, in its own kind."""
    if inspect.iscoroutinefunction(function):
        return _wrap_coroutine(function, calls)
    if inspect.isasyncgenfunction(function):
        return _wrap_async_generator(function, calls)
    if inspect.isgeneratorfunction(function):
        return _wrap_generator(function, calls)

    @functools.wraps(function)
    def observed(*args: Any, **kwargs: Any) -> Any:
        call = calls.begin(args, kwargs)
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            call.raised(error)
            raise
        call.returned(result)
        return result

    return observed


def _wrap_coroutine(function: Callable[..., Awaitable[Any]], calls: _Calls) -> Callable[..., Any]:
    @functools.wraps(function)
    async def observed(*args: Any, **kwargs: Any) -> Any:
        call = calls.begin(args, kwargs)
        try:
            result = await function(*args, **kwargs)
        except Exception as error:
            call.raised(error)
            raise
        call.returned(result)
        return result

    return observed


def _wrap_generator(function: Callable[..., Generator[Any, Any, Any]], calls: _Calls) -> Callable[..., Any]:
    @functools.wraps(function)
    def observed(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        call = calls.begin(args, kwargs)
        try:
            result = yield from _Tee(function(*args, **kwargs), call.chunks)
        except GeneratorExit:
            call.streamed("cancelled")
            raise
        except Exception as error:
            call.raised(error)
            raise
        call.streamed()
        return result

    return observed


def _wrap_async_generator(function: Callable[..., AsyncGenerator[Any, Any]], calls: _Calls) -> Callable[..., Any]:
    @functools.wraps(function)
    async def observed(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        call = calls.begin(args, kwargs)
        inner = function(*args, **kwargs)
        step: Awaitable[Any] = inner.__anext__()
        try:
            while True:
                chunk = await step
                call.chunks.append(chunk)
                try:
                    step = inner.asend((yield chunk))
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the reader: the generator's own to handle
                    step = inner.athrow(error)
        except StopAsyncIteration:
            call.streamed()
        except GeneratorExit:
            call.streamed("cancelled")
            raise
        except Exception as error:
            call.raised(error)
            raise

    return observed


class _Tee(Generator[Any, Any, Any]):
    """A generator that keeps what it gives; for `yield from`, which passes on what its reader sends and throws."""

    def __init__(self, inner: Generator[Any, Any, Any], chunks: list[Any]) -> None:
        self._inner = inner
        self._chunks = chunks

    def send(self, value: Any) -> Any:
        return self._kept(self._inner.send(value))

    def throw(self, *error: Any) -> Any:
        return self._kept(self._inner.throw(*error))

    def _kept(self, chunk: Any) -> Any:
        self._chunks.append(chunk)
        return chunk


def _failed(error: BaseException, metadata: Any) -> dict[str, Any]:
    failed: dict[str, Any] = {"finish_reason": "error"}
    # What is no mapping stays as it is, to be dropped as invalid: the app is to hear of its own error.
    with suppress(Exception):
        # The name only: the message may hold anything.
        failed["metadata"] = {**({} if metadata is None else metadata), "error": type(error).__name__}
    return failed


def _own(value: Any) -> Any:
    """A list or dict of one's own, to add to."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, list | tuple) else value


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise SettingsError(message)


def _environment_rate() -> float:
    text = os.environ.get("ASSAY_SAMPLE_RATE") or "1"
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"ASSAY_SAMPLE_RATE: {text!r} is not a number") from None


def _environment_number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise SettingsError(f"{name}: {text!r} is not a whole number") from None


def _environment_enabled() -> bool:
    return os.environ.get("ASSAY_ENABLED", "").strip().lower() not in {"0", "false", "no", "off"}
