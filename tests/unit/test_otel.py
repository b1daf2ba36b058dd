"""The span processor, in a real tracer provider."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from typing import Any, ClassVar

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from assay import Client
from assay.loopguard import MARK, judging
from assay.otel import RecordingSpanProcessor
from assay.records import Context
from transports import MemoryTransport, one_record

ASKED = [{"role": "user", "parts": [{"type": "text", "content": "What is the price?"}]}]
ANSWERED = [{"role": "assistant", "parts": [{"type": "text", "content": "4 euros."}], "finish_reason": "stop"}]
CALL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "synthetic-1",
    "gen_ai.input.messages": json.dumps(ASKED),
    "gen_ai.output.messages": json.dumps(ANSWERED),
}


class App:
    """An app with a provider and our processor in it."""

    def __init__(self, **options: Any) -> None:
        self.transport = MemoryTransport()
        self.processor = RecordingSpanProcessor(app="shop", transport=self.transport, flush_seconds=0.05, **options)
        self.provider = TracerProvider(resource=Resource({"service.name": "shop"}))
        self.provider.add_span_processor(self.processor)
        self.tracer = self.provider.get_tracer("test")

    def ask(self, **attributes: Any) -> None:
        with self.tracer.start_as_current_span("chat", attributes={**CALL, **attributes}):
            pass

    def wait(self, records: int) -> None:
        """Until so many were recorded, by the processor's own thread."""
        ends = time.monotonic() + 20
        while len(self.transport.records) < records:
            assert time.monotonic() < ends, self.processor.stats()
            time.sleep(0.01)


def test_a_trace_becomes_a_record_once_its_root_has_ended() -> None:
    app = App()
    with app.tracer.start_as_current_span("GET /ask", attributes={"http.route": "/ask"}) as root:
        with app.tracer.start_as_current_span("retrieval") as span:
            span.set_attribute("gen_ai.operation.name", "retrieval")
            span.set_attribute("gen_ai.retrieval.documents", [{"id": "d", "score": 0.5, "content": "A passage."}])
        app.ask()
        assert app.processor.stats().waiting == 2
    app.wait(1)
    record = one_record(app.transport)
    assert (record.app, record.route, record.output) == ("shop", "/ask", "4 euros.")
    assert record.contexts == (Context(text="A passage.", id="d", score=0.5),)
    ids = root.get_span_context()
    assert record.trace_id == f"{ids.trace_id:032x}"
    assert record.record_id == f"otel-{record.trace_id}-{record.span_id}"
    stats = app.processor.stats()
    assert (stats.recorded, stats.skipped, stats.dropped, stats.waiting) == (1, {}, 0, 0)
    app.provider.shutdown()


def test_after_idling_the_next_trace_is_taken_too() -> None:
    app = App()
    for count in range(1, 4):
        app.ask()
        app.wait(count)
        time.sleep(0.3)  # the thread has gone idle
    app.provider.shutdown()


def test_spans_of_other_kinds_are_not_kept() -> None:
    app = App()
    for _ in range(5):
        with app.tracer.start_as_current_span("GET /"), app.tracer.start_as_current_span("SELECT"):
            pass
    assert app.processor.stats().waiting == 0
    app.provider.shutdown()
    assert app.transport.records == []


def test_force_flush_records_what_is_unfinished_and_shutdown_too() -> None:
    app = App(wait_seconds=600)
    parent = trace.set_span_in_context(
        trace.NonRecordingSpan(trace.SpanContext(7, 8, is_remote=False, trace_flags=trace.TraceFlags(1)))
    )
    with app.tracer.start_as_current_span("chat", context=parent, attributes=CALL):
        pass
    assert app.transport.records == []
    assert app.provider.force_flush()
    assert len(app.transport.records) == 1
    with app.tracer.start_as_current_span("chat", context=parent, attributes=CALL):
        pass
    app.provider.shutdown()
    assert len(app.transport.records) == 2
    app.ask()  # after the end: dropped, and counted
    assert app.processor.stats().dropped == 1


def test_content_that_is_not_captured_is_counted() -> None:
    app = App()
    with app.tracer.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
        pass
    app.provider.force_flush()
    assert app.processor.stats().skipped == {"no_content": 1}
    app.provider.shutdown()


def test_the_client_samples() -> None:
    app = App(sample_rate=0.0)
    app.ask()
    app.provider.force_flush()
    assert app.processor.stats().recorded == 1
    assert app.transport.records == []
    app.provider.shutdown()


def test_a_client_that_was_given_stays_open() -> None:
    transport = MemoryTransport()
    with Client(app="shop", transport=transport) as client:
        provider = TracerProvider()
        provider.add_span_processor(RecordingSpanProcessor(client))
        with provider.get_tracer("test").start_as_current_span("chat", attributes=CALL):
            pass
        provider.shutdown()
        assert len(transport.records) == 1
        client.record(input="still", output="open")
    assert len(transport.records) == 2


def test_there_is_room_for_so_many_spans() -> None:
    app = App(most_spans=3, wait_seconds=600)
    with app.tracer.start_as_current_span("root"):
        for _ in range(10):
            app.ask()
    assert app.processor.stats().dropped == 8  # seven, and the root
    app.provider.shutdown()
    assert len(app.transport.records) == 3


def test_texts_in_log_events_come_to_their_span() -> None:
    app = App()
    logs = LoggerProvider()
    logs.add_log_record_processor(app.processor.log_processor())
    logger = logs.get_logger("test")
    with app.tracer.start_as_current_span("chat") as span:
        span.set_attributes({"gen_ai.system": "openai", "gen_ai.request.model": "synthetic-1"})
        for name, body in (
            ("gen_ai.user.message", {"content": "What is the price?"}),
            ("gen_ai.choice", {"finish_reason": "stop", "message": {"content": "4 euros."}}),
            ("another.event", {"content": "x"}),
        ):
            logger.emit(LogRecord(event_name=name, body=body, context=context.get_current()))
    app.provider.force_flush()
    record = one_record(app.transport)
    assert (record.input[0].content, record.output) == ("What is the price?", "4 euros.")
    logs.shutdown()
    app.provider.shutdown()


def test_spans_within_a_judge_call_are_marked_and_passed_over() -> None:
    app = App()
    exported = InMemorySpanExporter()
    app.provider.add_span_processor(SimpleSpanProcessor(exported))
    with judging():
        app.ask()
    app.provider.force_flush()
    assert app.processor.stats().skipped == {"judge": 1}
    # Other exporters get the mark too: behind a collector the span is still known.
    (span,) = exported.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes[MARK] is True
    assert baggage.get_baggage(MARK) is None
    app.ask()
    app.provider.force_flush()
    assert len(app.transport.records) == 1
    app.provider.shutdown()


def test_a_hostile_span_does_not_reach_the_app() -> None:
    app = App()

    class Broken:
        attributes: ClassVar[dict[str, str]] = {"gen_ai.operation.name": "chat"}
        parent = None

        @property
        def context(self) -> object:
            raise RuntimeError("broken")

    app.processor.on_end(Broken())  # type: ignore[arg-type]
    assert app.processor.stats().dropped == 1
    app.provider.shutdown()


def test_a_span_ends_at_once_while_the_queue_stalls() -> None:
    app = App()
    app.transport.answering.clear()
    app.ask()
    assert app.transport.stalled.wait(20)
    for _ in range(100):
        app.ask()  # would hang here
    app.transport.answering.set()
    app.wait(101)
    app.provider.shutdown()


def test_a_forgotten_processor_ends_its_thread() -> None:
    app = App()
    app.ask()
    app.wait(1)
    thread, known = app.processor._thread, weakref.ref(app.processor)
    app.provider.shutdown()
    del app
    gc.collect()
    assert known() is None
    assert thread is not None
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_records_its_own() -> None:
    code = """
import os, sys, json
sys.path.insert(0, "tests")
from unit_otel_app import App
app = App()
app.ask()
app.wait(1)
pid = os.fork()
if pid == 0:
    app.ask()
    app.wait(2)
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0
"""
    # The module under another name: pytest's own is not importable there.
    setup = (
        "import sys, importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('unit_otel_app', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); sys.path.insert(0, 'tests')\n"
        "sys.modules['unit_otel_app'] = module; spec.loader.exec_module(module)\n"
    )
    done = subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_module_loads_without_opentelemetry() -> None:
    code = (
        "import sys\n"
        "import assay.otel\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
        "sys.modules['opentelemetry'] = None\n"
        "try:\n    assay.otel.RecordingSpanProcessor()\n"
        "except assay.AssayError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'assay[otel]'" in done.stdout


def test_threads_that_end_spans_at_once_lose_none() -> None:
    app = App()
    threads = [threading.Thread(target=lambda: [app.ask() for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    app.provider.force_flush()
    assert len({record.record_id for record in app.transport.records}) == 200
    app.provider.shutdown()


def test_spans_of_other_kinds_and_events_take_room_too() -> None:
    app = App(most_bytes=1_000_000, wait_seconds=600)
    with app.tracer.start_as_current_span("root"):
        for _ in range(10):
            with app.tracer.start_as_current_span("query", attributes={"db.statement": "x" * 300_000}):
                pass
            with app.tracer.start_as_current_span("event") as span:
                span.add_event("said", {"text": "x" * 300_000})
    assert app.processor.stats().dropped >= 16
    app.provider.shutdown()
