"""The OTLP receiver answers as the specification says, and is bounded."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from assay import Client, collect
from assay.catalogue import DOCUMENTED
from assay.collect import Collector, CollectorLimits, gunzip
from assay.errors import QueueError, SettingsError
from assay.listener import Guard
from assay.metrics import collector_families
from assay.otlp import OtlpError
from corpus import DIALECTS, EXPECTED, scenarios
from transports import MemoryTransport

PROTOBUF = "application/x-protobuf"
QUICK = CollectorLimits(settle_seconds=0.0, wait_seconds=0.2)


class Collecting:
    """A collector with clients that keep what they would send."""

    def __init__(self, **options: Any) -> None:
        self.transports: dict[str, MemoryTransport] = {}
        self.error: Exception | None = None
        options = {"limits": QUICK, **options}
        self.collector = Collector(self.client, port=0, **options)

    def client(self, app: str) -> Client:
        transport = self.transports[app] = MemoryTransport()
        transport.error = self.error
        return Client(app, transport=transport, flush_seconds=0.05, close_seconds=0.1 if self.error else 5)

    def post(self, body: bytes, path: str = "/v1/traces", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.collector.port, timeout=30)
        sent = {"content-type": PROTOBUF, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request("POST", path, body, sent)
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def get(self, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.collector.port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        found = answer.status, json.loads(answer.read())
        connection.close()
        return found

    def records(self, app: str = "synthetic-shop") -> list[Any]:
        return self.transports[app].records if app in self.transports else []

    def wait(self, count: int) -> list[Any]:
        ends = time.monotonic() + 20
        while len(self.records()) < count:
            assert time.monotonic() < ends, self.collector.counts()
            time.sleep(0.02)
        return self.records()


@contextmanager
def collecting(**options: Any) -> Iterator[Collecting]:
    it = Collecting(**options)
    with it.collector:
        yield it


def body_of(dialect: str, scenario: str = "rag") -> bytes:
    return ParseDict(scenarios(dialect)[scenario]["traces"], ExportTraceServiceRequest()).SerializeToString()


@pytest.mark.parametrize("form", ["protobuf", "json"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_corpus_becomes_records(form: str, packed: bool) -> None:
    expected = json.loads(EXPECTED.read_text())
    wanted = {
        fields["record_id"]: fields
        for dialect in DIALECTS
        for told in expected[dialect].values()
        for fields in told["interactions"]
    }
    with collecting() as it:
        for dialect in DIALECTS:
            for found in scenarios(dialect).values():
                for path, kind, request in (
                    ("/v1/logs", "logs", ExportLogsServiceRequest),
                    ("/v1/traces", "traces", ExportTraceServiceRequest),
                ):
                    if not found[kind]:
                        continue
                    body = json.dumps(found[kind]).encode()
                    headers = {"content_type": "application/json"}
                    if form == "protobuf":
                        body = ParseDict(found[kind], request()).SerializeToString()
                        headers = {}
                    if packed:
                        body, headers = gzip.compress(body), headers | {"content_encoding": "gzip"}
                    status, answered, content = it.post(body, path, **headers)
                    assert status == 200
                    assert content == (b"" if form == "protobuf" else b"{}")
                    assert answered["content-type"].startswith(PROTOBUF if form == "protobuf" else "application/json")
        records = it.wait(len(wanted))
        assert {record.record_id for record in records} == set(wanted)
        for record in records:
            fields = wanted[record.record_id]
            assert record.output == fields["output"]
            assert [context.text for context in record.contexts] == [c["text"] for c in fields.get("contexts", [])]
        # Records may come before the last trace without content has been looked at.
        ends = time.monotonic() + 20
        while (counts := it.collector.counts())["skipped"].get("no_content") != 6 or counts["waiting_spans"]:
            assert time.monotonic() < ends, counts
            time.sleep(0.02)
        assert counts["recorded"] == len(wanted)


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_opentelemetrys_own_exporter_delivers(compression: Compression) -> None:
    with collecting(guard=Guard(tokens=("secret",))) as it:
        provider = TracerProvider(resource=Resource({"service.name": "synthetic-shop"}))
        url = f"{it.collector.url}/v1/traces"
        headers = {"authorization": "Bearer secret"}
        provider.add_span_processor(
            SimpleSpanProcessor(OTLPSpanExporter(url, headers=headers, compression=compression))
        )
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "Why?"}]}]',
            "gen_ai.output.messages": '[{"role": "assistant", "parts": [{"type": "text", "content": "So."}]}]',
        }
        with provider.get_tracer("test").start_as_current_span("chat", attributes=attributes):
            pass
        provider.shutdown()
        (record,) = it.wait(1)
        assert record.output == "So."


def test_spans_of_one_trace_that_come_apart_are_joined() -> None:
    with collecting(limits=CollectorLimits(settle_seconds=1.0, wait_seconds=20)) as it:
        request = ParseDict(scenarios("openinference-openai")["rag"]["traces"], ExportTraceServiceRequest())
        for scope in request.resource_spans[0].scope_spans:
            alone = ExportTraceServiceRequest()
            group = alone.resource_spans.add()
            group.resource.CopyFrom(request.resource_spans[0].resource)
            group.scope_spans.add().CopyFrom(scope)
            assert it.post(alone.SerializeToString())[0] == 200
        (record,) = it.wait(1)
        assert len(record.contexts) == 2


def test_closing_sends_what_waits() -> None:
    with collecting(limits=CollectorLimits()) as it:
        assert it.post(body_of("openllmetry"))[0] == 200
        assert it.records() == []
    assert len(it.records()) == 1
    assert it.transports["synthetic-shop"].count("sent", "synthetic-shop") == 1


def test_an_app_of_ones_own() -> None:
    with collecting(app="support") as it:
        it.post(body_of("openllmetry"))
    assert [record.app for record in it.records("support")] == ["support"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"\x0a\xff", {}, 400),
        (b"{", {"content_type": "application/json"}, 400),
        (b"", {}, 200),
        (b"{}", {"content_type": "application/json"}, 200),
        (b"x", {"content_type": "text/plain"}, 415),
        (b"x", {"content_encoding": "br"}, 415),
        (b"no gzip", {"content_encoding": "gzip"}, 400),
        (gzip.compress(b"abc")[:-4], {"content_encoding": "gzip"}, 400),
        (b"x" * 1_000_001, {}, 413),
        (gzip.compress(b"\0" * 200_000_000, 1), {"content_encoding": "gzip"}, 413),
    ],
    ids=["bytes", "json", "empty", "empty json", "type", "brotli", "not gzip", "torn gzip", "large", "bomb"],
)
def test_what_cannot_be_taken_is_refused_for_good(body: bytes, headers: dict[str, str], status: int) -> None:
    with collecting(limits=CollectorLimits(body_bytes=1_000_000)) as it:
        found, answered, content = it.post(body, **headers)
        assert found == status
        if status != 200:
            assert "retry-after" not in answered
            if answered["content-type"].startswith(PROTOBUF):
                assert Status.FromString(content).message
            else:
                assert json.loads(content)["message"]
        assert it.get("/healthz")[0] == 200


def test_a_chunked_body_is_bounded_and_read() -> None:
    with collecting(limits=CollectorLimits(body_bytes=100_000, settle_seconds=0)) as it:
        body = body_of("openllmetry")
        pieces = [body[place : place + 500] for place in range(0, len(body), 500)]
        for chunks, status in ((pieces, 200), ([b"x" * 10_000] * 11, 413)):
            connection = http.client.HTTPConnection("127.0.0.1", it.collector.port, timeout=30)
            connection.request("POST", "/v1/traces", iter(chunks), {"content-type": PROTOBUF}, encode_chunked=True)
            with connection.getresponse() as answer:
                assert answer.status == status
            connection.close()
        it.wait(1)


def test_the_token() -> None:
    with collecting(guard=Guard(tokens=("s3cret",))) as it:
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}):
            status, answered, content = it.post(body_of("openllmetry"), **given)
            assert status == 401
            assert answered["www-authenticate"] == "Bearer"
            assert Status.FromString(content).code == 16
        assert it.post(body_of("openllmetry"), authorization="bearer s3cret")[0] == 200
        assert it.collector.requests == {"unauthorized": 3, "ok": 1}


def test_spans_that_cannot_be_taken_are_a_partial_success() -> None:
    with collecting() as it:
        request = ExportTraceServiceRequest.FromString(body_of("openllmetry"))
        request.resource_spans[0].scope_spans[0].spans[0].span_id = b"short"
        status, _, content = it.post(request.SerializeToString())
        assert status == 200
        partial = ExportTraceServiceResponse.FromString(content).partial_success
        assert partial.rejected_spans == 1
        assert partial.error_message


def test_without_room_senders_are_asked_to_come_again() -> None:
    limits = CollectorLimits(waiting_spans=4, wait_seconds=600, settle_seconds=600)
    with collecting(limits=limits) as it:
        assert it.post(body_of("openllmetry"))[0] == 200
        found = it.post(body_of("openinference-openai"))  # one of its three finds room
        assert found[0] == 200
        assert ExportTraceServiceResponse.FromString(found[2]).partial_success.rejected_spans == 2
        status, answered, content = it.post(body_of("otel-latest"))
        assert (status, answered["retry-after"]) == (503, "5")
        assert Status.FromString(content).code == 14
        assert it.get("/healthz")[0] == 503


def test_with_redis_away_nothing_grows() -> None:
    """The client fills, then the traces, then senders are asked to come again."""
    limits = CollectorLimits(waiting_bytes=4_000_000, settle_seconds=0, wait_seconds=0)
    it = Collecting(limits=limits)
    it.error = QueueError("Redis is away")
    whole = ExportTraceServiceRequest.FromString(body_of("openllmetry"))
    chat = next(s for scope in whole.resource_spans[0].scope_spans for s in scope.spans if s.name == "openai.chat")
    chat.ClearField("parent_span_id")
    with it.collector:
        posts, refused, buffered = 0, False, 0
        ends = time.monotonic() + 30
        while not (refused and buffered == 2_000):
            assert time.monotonic() < ends
            request = ExportTraceServiceRequest()
            group = request.resource_spans.add()
            group.resource.CopyFrom(whole.resource_spans[0].resource)
            scope = group.scope_spans.add()
            for number in range(500):
                chat.trace_id = (posts * 500 + number + 1).to_bytes(16)
                scope.spans.add().CopyFrom(chat)
            status, answered, _ = it.post(request.SerializeToString())
            refused = status == 503
            assert refused or status == 200
            assert ("retry-after" in answered) == refused
            posts += not refused
            counts = it.collector.counts()
            assert counts["waiting_bytes"] <= 4_000_000
            buffered = counts["clients"].get("synthetic-shop", {}).get("buffered", 0)
            assert buffered <= 2_000
            if refused:
                time.sleep(0.05)
        assert it.records() == []


def large_request(first: int, count: int, apps: int = 1) -> bytes:
    """Calls of 50 kB, each a trace of its own, of so many apps in turn."""
    request = ExportTraceServiceRequest()
    whole = ExportTraceServiceRequest.FromString(body_of("openllmetry"))
    chat = next(s for scope in whole.resource_spans[0].scope_spans for s in scope.spans if s.name == "openai.chat")
    chat.ClearField("parent_span_id")
    (output,) = [attribute.value for attribute in chat.attributes if attribute.key == "gen_ai.output.messages"]
    part = {"type": "text", "content": "synthetic " * 5_000}
    output.string_value = json.dumps([{"role": "assistant", "parts": [part]}])
    for number in range(first, first + count):
        group = request.resource_spans.add()
        group.resource.attributes.add(key="service.name").value.string_value = f"app-{number % apps}"
        chat.trace_id = number.to_bytes(16)
        group.scope_spans.add().spans.add().CopyFrom(chat)
    return request.SerializeToString()


def test_with_redis_away_large_records_of_many_apps_are_bounded_together_and_none_is_dropped() -> None:
    limits = CollectorLimits(waiting_bytes=2_000_000, buffered_bytes=1_000_000, settle_seconds=0, wait_seconds=0)
    it = Collecting(limits=limits)
    it.error = QueueError("Redis is away")
    with it.collector:
        accepted, status, buffered = 0, 200, 0
        ends = time.monotonic() + 60
        while status == 200 or buffered < 1_000_000:
            assert time.monotonic() < ends
            status, _, content = it.post(large_request(1 + accepted, 9, apps=3))
            assert status in (200, 503)
            if status == 503:
                time.sleep(0.05)
            else:
                accepted += 9 - ExportTraceServiceResponse.FromString(content).partial_success.rejected_spans
            counts = it.collector.counts()
            assert counts["waiting_bytes"] <= 2_000_000
            held = [client.stats() for client in list(it.collector._intake._clients.values())]
            buffered = sum(stats.buffered_bytes for stats in held)
            assert buffered < 1_100_000
            assert not any(stats.dropped for stats in held)
        # Each is counted where it is; one that waits to be handed to a client, as a span.
        while accepted != (counts := it.collector.counts())["waiting_spans"] + sum(
            client["buffered"] for client in counts["clients"].values()
        ):
            assert time.monotonic() < ends, (accepted, counts)
            time.sleep(0.05)
        for transport in it.transports.values():
            transport.error = None
        while sum(len(it.records(f"app-{number}")) for number in range(3)) < accepted:
            assert time.monotonic() < ends
            time.sleep(0.05)


def test_a_sender_that_stalls_does_not_keep_others_waiting() -> None:
    with collecting() as it:
        stalled = []
        for _ in range(31):
            client = socket.create_connection(("127.0.0.1", it.collector.port))
            client.sendall(b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n")
            client.sendall(b"Content-Length: 100\r\n\r\n")
            stalled.append(client)
        ends = time.monotonic() + 20
        while it.collector._reading < 31:
            assert time.monotonic() < ends
            time.sleep(0.01)
        assert it.post(body_of("openllmetry"))[0] == 200
        last = socket.create_connection(("127.0.0.1", it.collector.port))
        last.sendall(b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n")
        last.sendall(b"Content-Length: 100\r\n\r\n")
        while it.collector._reading < 32:
            assert time.monotonic() < ends
            time.sleep(0.01)
        status, answered, _ = it.post(body_of("openllmetry"))
        assert (status, answered["retry-after"]) == (429, "1")
        for client in (*stalled, last):
            client.close()


def test_many_apps_share_a_bounded_number_of_clients() -> None:
    with collecting() as it:
        for number in range(55):
            request = ExportTraceServiceRequest.FromString(body_of("openllmetry"))
            request.resource_spans[0].resource.attributes[0].value.string_value = f"app-{number}"
            for scope in request.resource_spans[0].scope_spans:
                for span in scope.spans:
                    span.trace_id = (number + 1).to_bytes(16)
            assert it.post(request.SerializeToString())[0] == 200
    assert len(it.transports) == 51
    assert len(it.records("other")) == 5


def test_a_taken_port_is_a_mistake_to_mend() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingsError, match="cannot listen"):
            Collector(Client, port=taken.getsockname()[1]).start()


def test_gunzip_reads_members_and_stops_at_the_bound() -> None:
    assert gunzip(gzip.compress(b"ab") + gzip.compress(b"cd"), 4) == b"abcd"
    assert gunzip(gzip.compress(b"ab") + gzip.compress(b"cd"), 3) is None
    with pytest.raises(OtlpError):
        gunzip(gzip.compress(b"ab") + b"rest", 100)


def test_its_time_series_are_the_documented_ones() -> None:
    with collecting(metrics=lambda counts, accept: (repr(sorted(counts)).encode(), "text/plain")) as it:
        it.post(body_of("openllmetry"))
        it.post(body_of("otel-without-content"))
        it.post(b"\xff")
        counts = it.collector.counts()
        connection = http.client.HTTPConnection("127.0.0.1", it.collector.port, timeout=30)
        connection.request("GET", "/metrics")
        with connection.getresponse() as answer:
            assert answer.status == 200
        connection.close()
    counts["skipped"] = {"no_content": 1}
    published = {family.name: family for family in collector_families(counts)}
    docs = {doc.family: doc for doc in DOCUMENTED if doc.process == "collector"}
    assert published.keys() == docs.keys()
    for name, family in published.items():
        assert (family.type, family.documentation) == (docs[name].type, docs[name].help)
        assert all(sample.labels.keys() == set(docs[name].labels) for sample in family.samples)
    requests = {s.labels["outcome"]: s.value for s in published["assay_collect_requests"].samples}
    assert requests == {"ok": 2, "bad": 1}


def a_heavy_request(number: int, light: int = 0, **heavy: Any) -> bytes:
    """A call whose trace never ends, with so many spans beside it that are whole, and forgotten at once."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    span = scope.spans.add(trace_id=number.to_bytes(16), span_id=b"12345678", parent_span_id=b"87654321", **heavy)
    span.attributes.add(key="gen_ai.system").value.string_value = "synthetic"
    for other in range(light):
        scope.spans.add(trace_id=(1_000_000 + other).to_bytes(16), span_id=b"12345678")
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("light", "heavy", "least"),
    [
        # A mean over the request would take the first for 700 bytes, and the wire for a hundredth of the second.
        (2_000, {"name": "x" * 500_000}, 500_000),
        (0, {"events": [{}] * 20_000}, 3_000_000),
    ],
)
def test_what_waits_is_counted_by_what_it_takes_in_memory(light: int, heavy: dict[str, Any], least: int) -> None:
    with collecting(limits=CollectorLimits(wait_seconds=600)) as it:
        assert it.post(a_heavy_request(1, light, **heavy))[0] == 200
        assert it.collector.counts()["waiting_spans"] == 1
        assert least <= it.collector.counts()["waiting_bytes"] < 10 * least


def test_a_heavy_resource_counts_for_each_span_that_holds_it() -> None:
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.add(key="k").value.string_value = "x" * 100_000
    scope = group.scope_spans.add()
    for number in range(1, 11):
        scope.spans.add(trace_id=number.to_bytes(16), span_id=b"12345678", parent_span_id=b"87654321")
    with collecting(limits=CollectorLimits(wait_seconds=600)) as it:
        assert it.post(request.SerializeToString())[0] == 200
        assert it.collector.counts()["waiting_bytes"] >= 1_000_000


def test_gzip_of_endless_members_is_refused() -> None:
    with pytest.raises(OtlpError, match="1,000 gzip members"):
        gunzip(gzip.compress(b"") * 1_001, 16_000_000)


def test_connections_that_say_nothing_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_HEAD_SECONDS", 0.5)
    with collecting() as it:
        kept = http.client.HTTPConnection("127.0.0.1", it.collector.port, timeout=20)
        kept.request("GET", "/healthz")
        assert kept.getresponse().read()
        for sent in (b"", b"POST /v1/traces HTTP/1.1\r\nX: "):
            with socket.create_connection(("127.0.0.1", it.collector.port), timeout=20) as silent:
                silent.sendall(sent)
                assert silent.recv(1) == b""
        # One that has spoken may pause.
        here = kept.sock
        kept.request("GET", "/healthz")
        assert kept.getresponse().status == 200
        assert kept.sock is here
        kept.close()


def test_clients_are_closed_at_once() -> None:
    """With Redis away each takes its ten seconds, and a sum of fifty would outlast any grace period."""
    together = threading.Barrier(3)

    class Waiting(Client):
        def close(self, *args: Any) -> None:
            together.wait(20)
            super().close(*args)

    it = Collector(lambda name: Waiting(name, transport=MemoryTransport(), flush_seconds=0.05), port=0)
    with it:
        for app in ("a", "b", "c"):
            it._intake._client(app)
    assert not together.broken


def test_a_trace_that_meets_a_bug_does_not_end_the_receiver() -> None:
    it = Collecting()
    real, made = it.collector._intake._make_client, list[str]()

    def fails_once(app: str) -> Client:
        made.append(app)
        if len(made) == 1:
            raise RuntimeError("synthetic")
        return real(app)

    it.collector._intake._make_client = fails_once
    with it.collector:
        assert it.post(body_of("openllmetry"))[0] == 200
        ends = time.monotonic() + 20
        while not made:
            assert time.monotonic() < ends
            time.sleep(0.01)
        assert it.post(body_of("openllmetry"))[0] == 200
        assert it.wait(1)
