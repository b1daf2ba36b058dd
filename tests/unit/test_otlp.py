"""OTLP is read as the generated classes of opentelemetry-proto write it, and within bounds."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from assay.otlp import (
    MOST_SPANS,
    OtlpError,
    read_logs,
    read_logs_json,
    read_traces,
    read_traces_json,
    response,
    span_of_json,
    status,
)
from corpus import DIALECTS, scenarios


def any_value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=[any_value(item) for item in value]))
    if isinstance(value, dict):
        return AnyValue(kvlist_value=KeyValueList(values=pairs(value)))
    return AnyValue(string_value=value)


def pairs(value: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(item)) for key, item in value.items()]


def a_request(attributes: dict[str, Any] | None = None, spans: int = 1, **fields: Any) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.extend(pairs({"service.name": "shop"}))
    scope = resource.scope_spans.add()
    for number in range(spans):
        known = {"trace_id": b"t" * 16, "span_id": (number + 1).to_bytes(8), "name": "chat", **fields}
        scope.spans.add(attributes=pairs(attributes or {}), **known)
    return request


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.binary(max_size=20) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=5), st.integers(0, 2**63), st.binary(min_size=8, max_size=8))
def test_protobuf_is_read_as_it_was_written(attributes: dict[str, Any], nanoseconds: int, parent: bytes) -> None:
    request = a_request(attributes, start_time_unix_nano=nanoseconds, parent_span_id=parent)
    event = request.resource_spans[0].scope_spans[0].spans[0].events.add(name="happened", time_unix_nano=1)
    event.attributes.extend(pairs(attributes))
    (span,) = read_traces(request.SerializeToString()).spans
    assert span.attributes == attributes
    assert span.events[0].attributes == attributes
    assert span.resource == {"service.name": "shop"}
    assert span.start_seconds == nanoseconds / 1e9
    assert span.parent_id == (parent.hex() if any(parent) else None)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_json_is_read_as_protobuf_is(attributes: dict[str, Any]) -> None:
    request = a_request(attributes)
    as_json = json.dumps(MessageToDict(request)).encode()
    (one,) = read_traces(request.SerializeToString()).spans
    (other,) = read_traces_json(as_json).spans
    infinite = any(isinstance(v, float) and math.isinf(v) for v in attributes.values())
    assert (one.trace_id, one.span_id, one.name) == (other.trace_id, other.span_id, other.name)
    if not infinite and "inf" not in repr(attributes):
        assert other.attributes == one.attributes


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_corpus_is_the_same_as_protobuf_and_as_json(dialect: str) -> None:
    for found in scenarios(dialect).values():
        request = ParseDict(found["traces"], ExportTraceServiceRequest())
        by_json = read_traces_json(json.dumps(found["traces"]).encode())
        assert read_traces(request.SerializeToString()) == by_json
        assert by_json.spans
        if found["logs"]:
            logs = ParseDict(found["logs"], ExportLogsServiceRequest())
            events = read_logs(logs.SerializeToString()).events
            assert events == read_logs_json(json.dumps(found["logs"]).encode()).events
            assert events


def test_ids_in_hex_and_in_base64_and_fields_in_snake_case() -> None:
    plain = {"name": "x", "startTimeUnixNano": "1500000000", "status": {"code": 2}}
    ids = {"traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "EEE19B7EC3C1B174"}
    span = span_of_json(plain | ids)
    assert span is not None
    assert (span.trace_id, span.span_id) == ("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174")
    assert span.failed
    assert span.start_seconds == 1.5
    packed = {
        "trace_id": base64.b64encode(bytes.fromhex(span.trace_id)).decode(),
        "span_id": base64.b64encode(bytes.fromhex(span.span_id)).decode(),
        "start_time_unix_nano": 1_500_000_000,
        "attributes": [{"key": "k", "value": {"array_value": {"values": [{"int_value": 3}, {"string_value": "s"}]}}}],
        "status": {"code": "STATUS_CODE_ERROR"},
    }
    other = span_of_json(packed)
    assert other is not None
    assert (other.trace_id, other.span_id, other.failed) == (span.trace_id, span.span_id, True)
    assert other.attributes == {"k": [3, "s"]}


@pytest.mark.parametrize(
    "ids", [{"trace_id": b""}, {"span_id": b"123"}, {"trace_id": bytes(16)}, {"span_id": bytes(8)}]
)
def test_spans_without_ids_are_rejected_and_the_others_kept(ids: dict[str, bytes]) -> None:
    request = a_request(spans=2)
    broken = request.resource_spans[0].scope_spans[0].spans[0]
    for name, value in ids.items():
        setattr(broken, name, value)
    for read in (
        read_traces(request.SerializeToString()),
        read_traces_json(json.dumps(MessageToDict(request)).encode()),
    ):
        assert (len(read.spans), read.rejected) == (1, 1)
        assert "trace id" in read.reason


def test_of_too_many_spans_the_first_are_kept() -> None:
    scope = b"\x12\x00" * (MOST_SPANS + 3)
    size = len(scope)
    head = b"\x12" + _varint(size) + scope
    read = read_traces(b"\x0a" + _varint(len(head)) + head)
    # Empty ones have no ids: rejected all the same, and never more than the bound at work.
    assert read.rejected == MOST_SPANS + 3
    assert not read.spans


def test_values_nested_too_deep_or_too_many_end_the_request() -> None:
    nested = AnyValue(string_value="x")
    for _ in range(40):
        nested = AnyValue(array_value=ArrayValue(values=[nested]))
    request = a_request()
    request.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="k", value=nested)
    with pytest.raises(OtlpError, match="deep"):
        read_traces(request.SerializeToString())
    with pytest.raises(OtlpError, match="deep"):
        read_traces_json(json.dumps(MessageToDict(request, preserving_proto_field_name=True)).encode())
    many = a_request()
    empty = AnyValue(array_value=ArrayValue(values=[AnyValue()] * 600_000))
    many.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="k", value=empty)
    with pytest.raises(OtlpError, match="attribute values"):
        read_traces(many.SerializeToString())


@pytest.mark.parametrize(
    "body", [b"\x0a\xff", b"\x00", b"\x0a\x05abc", b"\x0b", b"\xff" * 20, b"<html>", b"\x0a\x80\x80\x80\x80\x80"]
)
def test_what_is_no_protobuf_is_said_so(body: bytes) -> None:
    with pytest.raises(OtlpError, match="protobuf"):
        read_traces(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (read_traces, read_logs, read_traces_json, read_logs_json):
        try:
            read(body)
        except OtlpError:
            continue


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255))
def test_a_torn_or_flipped_request_is_read_or_refused(place: int, byte: int) -> None:
    body = bytearray(a_request({"a": [1, {"b": "text"}]}, spans=3).SerializeToString())
    body[place % len(body)] = byte
    for torn in (bytes(body), bytes(body[: place % len(body)])):
        try:
            read_traces(torn)
        except OtlpError:
            continue


@pytest.mark.parametrize(
    "body",
    ["[]", "7", "{", "[" * 100_000, '{"resourceSpans": 3}', '{"resourceSpans": [{"scopeSpans": [{"spans": [3]}]}]}',
     '{"resourceSpans": [{"resource": 3, "scopeSpans": [{"spans": [{"traceId": 3, "attributes": {"a": 1}}]}]}]}'],
)  # fmt: skip
def test_json_of_wrong_shapes_is_refused_or_rejected(body: str) -> None:
    if body.startswith('{"'):
        assert read_traces_json(body.encode()).spans == []
        return
    with pytest.raises(OtlpError, match="JSON"):
        read_traces_json(body.encode())


def test_answers_are_what_the_generated_classes_read() -> None:
    assert response(0, "", as_json=False) == b""
    assert json.loads(response(0, "", as_json=True)) == {}
    partial = ExportTraceServiceResponse.FromString(response(300, "no room é", as_json=False)).partial_success
    assert (partial.rejected_spans, partial.error_message) == (300, "no room é")
    by_json = ParseDict(json.loads(response(300, "no room", as_json=True)), ExportTraceServiceResponse())
    assert by_json.partial_success.rejected_spans == 300
    logs = ParseDict(json.loads(response(2, "x", as_json=True, logs=True)), ExportLogsServiceResponse())
    assert logs.partial_success.rejected_log_records == 2
    told = Status.FromString(status("broken", as_json=False))
    assert (told.code, told.message) == (3, "broken")
    assert json.loads(status("broken", as_json=True, code=14)) == {"code": 14, "message": "broken"}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_json_that_is_no_value_is_not_kept_and_events_are_counted() -> None:
    ids = {"traceId": "ab" * 16, "spanId": "cd" * 8}
    attributes = [{"key": "a", "value": {"stringValue": [{}] * 9}}, {"key": "b", "value": [[]] * 9}]
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [{**ids, "attributes": attributes}]}]}]}
    (span,) = read_traces_json(json.dumps(body).encode()).spans
    assert span.attributes == {"a": None, "b": None}
    body["resourceSpans"][0]["scopeSpans"][0]["spans"] = [{**ids, "events": [{}] * 500_001}]
    with pytest.raises(OtlpError, match="500,000"):
        read_traces_json(json.dumps(body).encode())
