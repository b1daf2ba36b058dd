"""`RecordingSpanProcessor`: the spans that an app makes already become records, with nothing else to instrument.

    from opentelemetry.sdk.trace import TracerProvider
    from assay.otel import RecordingSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(RecordingSpanProcessor(app="support", sample_rate=0.05))

In the app's thread a span is only kept; all else happens on a thread of its own. Needs `pip install assay[otel]`;
opentelemetry-sdk is never imported here: whoever has a tracer provider has it.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from assay.client import Client
from assay.errors import MissingExtraError
from assay.loopguard import MARK
from assay.spans import DISCRIMINATORS, SkipReason, Span, SpanEvent, interactions
from assay.traces import Traces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
else:
    SpanProcessor = object  # the SDK asks for the methods, not for the class

_LOG = logging.getLogger("assay.otel")
#: How often the thread looks for traces that are whole.
_LOOK_SECONDS: Final = 0.25
#: Pause after each interaction, so that the app's threads get the interpreter at once.
_YIELD_SECONDS: Final = 0.0002
#: How long `shutdown` waits for what is left to be sent.
_SHUTDOWN_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class SpanStats:
    """What became of the spans so far, in this process.

    `recorded` interactions were given to the client, which samples them and has `Client.stats` of its own. `skipped`
    are spans of model calls that tell of no interaction, by `assay.spans.SkipReason`. `dropped` spans found no room,
    or came after the shutdown. `waiting` are kept until their trace is whole.
    """

    recorded: int
    skipped: dict[SkipReason, int]
    dropped: int
    waiting: int


@dataclass(frozen=True, slots=True)
class _Event:
    span_id: int
    event: SpanEvent


class RecordingSpanProcessor(SpanProcessor):
    """Turns finished spans of model calls into records: one for each that has its texts.

    Reads OpenTelemetry's GenAI conventions, OpenInference and OpenLLMetry. Passages come from retrieval spans of the
    same trace. Spans of a judge's own calls are passed over. Nothing that it does blocks the app or raises into it.

    Args:
        client: what records; closing it stays yours. None makes one with `client_options`, which `shutdown` closes.
        wait_seconds: how long a trace whose root has not ended here is waited for, from its latest span on.
        longest_seconds: how long a trace is kept in any case.
        most_spans: spans that are kept; what is over it is dropped and counted.
        most_bytes: about how many bytes they may take.
        client_options: arguments of `Client`, such as `app` and `sample_rate`.

    Raises:
        SettingsError: as `Client`.
        MissingExtraError: opentelemetry is not installed.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        wait_seconds: float = 30.0,
        longest_seconds: float = 300.0,
        most_spans: int = 20_000,
        most_bytes: int = 64_000_000,
        **client_options: Any,
    ) -> None:
        try:
            from opentelemetry import baggage
        except ImportError as error:
            raise MissingExtraError("otel", error.name or "opentelemetry") from None
        self._baggage = baggage
        self._owned = client is None
        self._client = Client(**client_options) if client is None else client
        self._limits: dict[str, Any] = {
            "wait_seconds": wait_seconds,
            "longest_seconds": longest_seconds,
            "most_items": most_spans,
            "most_bytes": most_bytes,
        }
        self._closed = False
        self._restart()
        _processors.add(self)

    def _restart(self) -> None:
        """Start from nothing: when new, and in a forked child, whose parent keeps what it had."""
        self._traces: Traces[Any] = Traces(**self._limits)
        self._wake = threading.Event()
        self._idle = False  # the thread waits for the first span
        weakref.finalize(self, self._wake.set).atexit = False
        self._turn = threading.Lock()  # one conversion at a time: the thread's, or a flush's
        self._thread: threading.Thread | None = None
        self._recorded = 0
        self._skipped: Counter[SkipReason] = Counter()
        self._dropped = 0

    # -- what the SDK calls, in the app's threads

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """Marks the span when it starts within a judge's call."""
        if self._baggage.get_baggage(MARK, parent_context) is not None:
            span.set_attribute(MARK, True)

    def on_end(self, span: ReadableSpan) -> None:
        """Keeps the span."""
        try:
            attributes = span.attributes or {}
            wanted = not DISCRIMINATORS.isdisjoint(attributes)
            parent = span.parent
            # Others are kept too, until their trace is whole, and may be as heavy: a query, a page.
            size = 500
            for value in attributes.values():
                size += len(value) if type(value) is str or type(value) is tuple else 50
            for event in span.events:
                size += 300
                for value in (event.attributes or {}).values():
                    size += len(value) if type(value) is str or type(value) is tuple else 50
            self._keep(
                span.context.trace_id,
                span,
                size=size,
                is_root=parent is None or parent.is_remote,
                is_wanted=wanted,
            )
        except Exception as error:  # noqa: BLE001 - nothing may reach the app
            self._dropped += 1
            _LOG.debug("a span was dropped: %s", type(error).__name__)

    def _on_ending(self, span: Any) -> None:
        """Part of the SDK's interface."""

    def shutdown(self) -> None:
        """Record what is kept, and wait for a moment until it is sent. The provider calls this at exit."""
        self._closed = True
        self._wake.set()
        self._convert(everything=True)
        if self._owned:
            self._client.close()
        else:
            self._client.flush(_SHUTDOWN_SECONDS)

    def force_flush(self, timeout_millis: int = 5_000) -> bool:
        """Record what is kept, whole or not, and send it; False when that takes longer than `timeout_millis`."""
        self._convert(everything=True)
        return self._client.flush(timeout_millis / 1000)

    # -- events

    def log_processor(self) -> EventProcessor:
        """For `LoggerProvider.add_log_record_processor`: some instrumentations write texts as log events."""
        return EventProcessor(self)

    # -- what became of them

    def stats(self) -> SpanStats:
        """The counts so far."""
        return SpanStats(self._recorded, dict(self._skipped), self._dropped, len(self._traces))

    def _keep(self, trace_id: int, item: Any, *, size: int, is_root: bool, is_wanted: bool) -> None:
        if self._closed or not self._traces.add(trace_id, item, size=size, is_root=is_root, is_wanted=is_wanted):
            self._dropped += 1
        elif self._thread is None:
            self._start()
        elif self._idle:
            self._idle = False
            self._wake.set()

    def _start(self) -> None:
        thread = threading.Thread(target=_run, args=(weakref.ref(self), self._wake), name="assay-otel", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # no thread to be had just now, or the interpreter is going down
            self._thread = None

    def _convert(self, *, everything: bool = False) -> None:
        import time

        with self._turn:
            for items in self._traces.due(everything=everything):
                try:
                    found = interactions(_spans(items))
                except Exception as error:  # noqa: BLE001 - a bug must not end the thread
                    _LOG.warning("a trace was dropped: %s", type(error).__name__)
                    self._dropped += len(items)
                    continue
                self._skipped.update(found.skipped)
                for _, fields in found.interactions:
                    self._recorded += 1
                    self._client.record(**fields)
                    if not everything:
                        time.sleep(_YIELD_SECONDS)


class EventProcessor:
    """Brings log events of GenAI calls (`gen_ai.user.message` and such) to their spans. A log record processor."""

    def __init__(self, processor: RecordingSpanProcessor) -> None:
        self._processor = processor

    def on_emit(self, log_record: Any) -> None:
        """Keeps the event, if it is one of a model call."""
        try:
            record = getattr(log_record, "log_record", log_record)
            attributes = record.attributes or {}
            name = getattr(record, "event_name", None) or attributes.get("event.name")
            if name and name.startswith("gen_ai.") and record.trace_id and record.span_id:
                event = _Event(record.span_id, SpanEvent(name=name, attributes=attributes, body=record.body))
                size = 500 + len(str(record.body)) if isinstance(record.body, str | dict) else 500
                self._processor._keep(record.trace_id, event, size=size, is_root=False, is_wanted=False)
        except Exception as error:  # noqa: BLE001 - nothing may reach the app
            _LOG.debug("an event was dropped: %s", type(error).__name__)

    def shutdown(self) -> None:
        """Nothing is kept here."""

    def force_flush(self, timeout_millis: int = 5_000) -> bool:
        """Nothing is kept here: flush the span processor."""
        del timeout_millis
        return True


def _run(processor: weakref.ref[RecordingSpanProcessor], wake: threading.Event) -> None:
    """The thread: holds no processor while it waits, so that a forgotten one goes."""
    while True:
        wake.wait(_LOOK_SECONDS)
        current = processor()
        if current is None or current._closed or current._wake is not wake:
            return
        try:
            current._convert()
            wake.clear()
            current._idle = not len(current._traces)
            if current._idle and not len(current._traces):  # what came before it was idle did not wake it
                del current
                wake.wait()
                wake.clear()
        except Exception as error:  # noqa: BLE001 - the thread goes on
            _LOG.warning("%s", type(error).__name__)


def _spans(items: Sequence[Any]) -> list[Span]:
    """What was kept of one trace, in the plain form."""
    events: dict[int, list[SpanEvent]] = {}
    for item in items:
        if isinstance(item, _Event):
            events.setdefault(item.span_id, []).append(item.event)
    return [_span(item, events.get(item.context.span_id, [])) for item in items if not isinstance(item, _Event)]


def _span(span: ReadableSpan, more: list[SpanEvent]) -> Span:
    context: Any = span.context
    attributes: Mapping[str, Any] = span.attributes or {}
    return Span(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=None if span.parent is None else f"{span.parent.span_id:016x}",
        name=span.name,
        start_seconds=(span.start_time or 0) / 1e9,
        end_seconds=(span.end_time or 0) / 1e9,
        attributes=attributes,
        events=[*(SpanEvent(name=event.name, attributes=event.attributes or {}) for event in span.events), *more],
        failed=span.status.status_code.name == "ERROR",
        resource=span.resource.attributes,
    )


_processors: weakref.WeakSet[RecordingSpanProcessor] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for processor in list(_processors):
        processor._restart()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
