"""A judge whose calls are traced judges no call of its own: an instrumented OpenAI client makes the judge call."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from openinference.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from assay import Client
from assay.collect import Collector, CollectorLimits
from assay.loopguard import JUDGE_OPENING, MARK
from assay.otel import RecordingSpanProcessor
from assay.records import Score
from assay.testing import FakeJudgeServer, Reply
from judging import a_record, ordinal, with_judge
from transports import MemoryTransport

pytestmark = pytest.mark.e2e


class Tracing:
    """A process in which every OpenAI client is instrumented."""

    def __init__(self) -> None:
        self.spans = InMemorySpanExporter()
        self.provider = TracerProvider()
        OpenAIInstrumentor().instrument(tracer_provider=self.provider)

    def model_calls(self) -> list[ReadableSpan]:
        return [
            span
            for span in self.spans.get_finished_spans()
            if (span.attributes or {}).get("openinference.span.kind") == "LLM"
        ]


@pytest.fixture
def tracing() -> Iterator[Tracing]:
    it = Tracing()
    yield it
    OpenAIInstrumentor().uninstrument()
    it.provider.shutdown()


@pytest.fixture
def judge_server() -> Iterator[FakeJudgeServer]:
    with FakeJudgeServer() as server:
        yield server


def judge_once(base_url: str) -> None:
    outcomes = with_judge(base_url, lambda judge: judge.judge(a_record(), [ordinal()]))
    assert [type(outcome) for outcome in outcomes] == [Score]


def answer_once(server: FakeJudgeServer) -> None:
    """The app's own call, by the same instrumented library."""
    server.script(Reply(content="4 euros."))
    with openai.OpenAI(base_url=server.base_url, api_key="synthetic", max_retries=0) as client:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "What is the price?"}])


def test_in_one_process_the_judges_spans_are_passed_over(tracing: Tracing, judge_server: FakeJudgeServer) -> None:
    transport = MemoryTransport()
    processor = RecordingSpanProcessor(app="shop", transport=transport)
    tracing.provider.add_span_processor(processor)
    tracing.provider.add_span_processor(SimpleSpanProcessor(tracing.spans))
    judge_once(judge_server.base_url)
    (traced,) = tracing.model_calls()  # or this test would prove nothing
    assert traced.attributes is not None
    assert traced.attributes[MARK] is True
    assert JUDGE_OPENING in str(traced.attributes["input.value"])
    assert processor.force_flush()
    assert transport.records == []
    assert processor.stats().skipped == {"judge": 1}
    answer_once(judge_server)
    assert processor.force_flush()
    assert [record.input_text for record in transport.records] == ["user: What is the price?"]


def test_behind_a_collector_they_are_known_without_the_mark(tracing: Tracing, judge_server: FakeJudgeServer) -> None:
    """The worker is traced by others, who have no processor of ours: its prompt gives the judge away."""
    transport = MemoryTransport()
    limits = CollectorLimits(settle_seconds=0)
    with Collector(lambda app: Client(app, transport=transport), port=0, limits=limits) as collector:
        tracing.provider.add_span_processor(SimpleSpanProcessor(tracing.spans))
        tracing.provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{collector.url}/v1/traces")))
        judge_once(judge_server.base_url)
        answer_once(judge_server)
        judged, answered = tracing.model_calls()
        assert MARK not in (judged.attributes or {})
        assert answered is not None
    assert [record.input_text for record in transport.records] == ["user: What is the price?"]
    assert collector.counts()["skipped"] == {"judge": 1}


def test_a_gateway_that_traces_is_told_by_a_header() -> None:
    seen: list[str | None] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers.get("baggage"))
            body = json.dumps({"error": {"message": "synthetic"}}).encode()
            self.send_response(403)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with_judge(f"http://127.0.0.1:{server.server_port}/v1", lambda judge: judge.judge(a_record(), [ordinal()]))
        server.shutdown()
    assert seen == ["assay.judge=true"]
