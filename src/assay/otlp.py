"""OTLP as it comes over HTTP: traces, and the log events that belong to them, as protobuf or JSON, and the answers.

Read by hand, within a budget: a generated parser makes a hundred bytes of memory of each two bytes of an empty span,
so that a small body could fill it. Standard library only. The messages are those of opentelemetry-proto 1.x
(`trace_service.proto`, `logs_service.proto`); JSON may be in camel or snake case, ids in hex (OTLP) or base64 (MLflow).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from assay.spans import Span, SpanEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of one request: spans and log records, and values of attributes; how deep these may be nested.
MOST_SPANS: Final = 20_000
_MOST_VALUES: Final = 500_000
_MOST_DEPTH: Final = 32
#: Texts, commas and opened brackets of one request in JSON, each of which stands for up to fifty bytes of memory: so
#: many always, and above that one for so many bytes. An attribute such as `http.status_code` has nine in 55 bytes.
_FREE_PARTS: Final = 1_500_000
_PART_BYTES: Final = 5
_PARTS: Final = re.compile(r'"(?>(?:[^"\\]++|\\.)*)"|[\[{,]', re.DOTALL)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ERROR: Final = 2  # Status.StatusCode
_HEX: Final = frozenset("0123456789abcdef")


class OtlpError(ValueError):
    """The body is no OTLP request; `str()` says why."""


@dataclass(slots=True)
class Request:
    """What a request brought. Events are (trace id, span id, event). `rejected` spans or records could not be taken."""

    spans: list[Span] = field(default_factory=list)
    events: list[tuple[str, str, SpanEvent]] = field(default_factory=list)
    rejected: int = 0
    reason: str = ""

    def reject(self, reason: str, count: int = 1) -> None:
        """Leave something out."""
        self.rejected += count
        self.reason = self.reason or reason


class _Budget:
    """What may still be read of one request."""

    def __init__(self) -> None:
        self.values = _MOST_VALUES
        self.spans = MOST_SPANS

    def value(self, depth: int) -> None:
        self.values -= 1
        if self.values < 0:
            raise OtlpError(f"more than {_MOST_VALUES:,} attribute values in one request: send smaller batches")
        if depth > _MOST_DEPTH:
            raise OtlpError(f"values nested more than {_MOST_DEPTH} deep")


# -- protobuf


def read_traces(body: bytes) -> Request:
    """The spans of an `ExportTraceServiceRequest` in protobuf.

    Raises:
        OtlpError: it is none, or over a bound.
    """
    return _read_protobuf(body, _read_span)


def read_logs(body: bytes) -> Request:
    """The GenAI events of an `ExportLogsServiceRequest` in protobuf; other log records are passed over.

    Raises:
        OtlpError: it is none, or over a bound.
    """
    return _read_protobuf(body, _read_log)


def _read_protobuf(body: bytes, read: Any) -> Request:
    request, budget = Request(), _Budget()
    try:
        for number, resource_group in _messages(memoryview(body)):
            if number == 1:
                _read_group(resource_group, request, budget, read)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise OtlpError(f"no OTLP protobuf: {type(error).__name__}") from None
    return request


def _read_group(data: memoryview, request: Request, budget: _Budget, read: Any) -> None:
    """ResourceSpans or ResourceLogs: resource 1, scopes 2; in a scope the spans or records are 2."""
    resource: dict[str, Any] = {}
    scopes = []
    for number, value in _messages(data):
        if number == 1:
            resource = _attributes(value, 1, budget)
        elif number == 2:
            scopes.append(value)
    for scope in scopes:
        for number, value in _messages(scope):
            if number == 2:
                budget.spans -= 1
                if budget.spans < 0:
                    request.reject(f"more than {MOST_SPANS:,} in one request: send smaller batches")
                else:
                    read(value, resource, request, budget)


def _read_span(data: memoryview, resource: Mapping[str, Any], request: Request, budget: _Budget) -> None:
    ids = {1: b"", 2: b"", 4: b""}
    name, start, end, failed = "", 0, 0, False
    attributes: dict[str, Any] = {}
    events: list[SpanEvent] = []
    for number, wire, value in _fields(data):
        if number in ids and wire == _BYTES:
            ids[number] = bytes(value)
        elif number == 5 and wire == _BYTES:
            name = _utf8(value)
        elif number == 7 and wire == _FIXED64:
            start = value
        elif number == 8 and wire == _FIXED64:
            end = value
        elif number == 9 and wire == _BYTES:
            _pair(value, attributes, budget, 0)
        elif number == 11 and wire == _BYTES:
            budget.value(0)
            events.append(_read_event(value, budget))
        elif number == 15 and wire == _BYTES:
            failed = any(n == 3 and w == _VARINT and v == _ERROR for n, w, v in _fields(value))
    if not _right_ids(ids[1], ids[2]):
        return request.reject("a span without a trace id of 16 bytes or a span id of 8")
    request.spans.append(
        Span(
            trace_id=ids[1].hex(),
            span_id=ids[2].hex(),
            parent_id=ids[4].hex() if len(ids[4]) == 8 and any(ids[4]) else None,
            name=name,
            start_seconds=start / 1e9,
            end_seconds=end / 1e9,
            attributes=attributes,
            events=events,
            failed=failed,
            resource=resource,
        )
    )
    return None


def _read_event(data: memoryview, budget: _Budget) -> SpanEvent:
    name, attributes = "", dict[str, Any]()
    for number, wire, value in _fields(data):
        if number == 2 and wire == _BYTES:
            name = _utf8(value)
        elif number == 3 and wire == _BYTES:
            _pair(value, attributes, budget, 0)
    return SpanEvent(name=name, attributes=attributes)


def _read_log(data: memoryview, resource: Mapping[str, Any], request: Request, budget: _Budget) -> None:
    del resource
    ids = {9: b"", 10: b""}
    name, body = "", None
    attributes: dict[str, Any] = {}
    for number, wire, value in _fields(data):
        if wire != _BYTES:
            continue
        if number in ids:
            ids[number] = bytes(value)
        elif number == 5:
            body = _value(value, budget, 0)
        elif number == 6:
            _pair(value, attributes, budget, 0)
        elif number == 12:
            name = _utf8(value)
    _take_log(ids[9], ids[10], name, attributes, body, request)


def _take_log(
    trace_id: bytes, span_id: bytes, name: str, attributes: Mapping[str, Any], body: Any, request: Request
) -> None:
    # Until it had a field of its own, the name was an attribute.
    name = name or str(attributes.get("event.name") or "")
    if name.startswith("gen_ai.") and _right_ids(trace_id, span_id):
        request.events.append((trace_id.hex(), span_id.hex(), SpanEvent(name=name, attributes=attributes, body=body)))


def _right_ids(trace_id: bytes, span_id: bytes) -> bool:
    return len(trace_id) == 16 and len(span_id) == 8 and any(trace_id) and any(span_id)


def _attributes(data: memoryview, wanted: int, budget: _Budget) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, value in _messages(data):
        if number == wanted:
            _pair(value, found, budget, 0)
    return found


def _pair(data: memoryview, into: dict[str, Any], budget: _Budget, depth: int) -> None:
    key, found = "", None
    budget.value(depth)
    for number, wire, value in _fields(data):
        if number == 1 and wire == _BYTES:
            key = _utf8(value)
        elif number == 2 and wire == _BYTES:
            found = _value(value, budget, depth + 1)
    into[key] = found


def _value(data: memoryview, budget: _Budget, depth: int) -> Any:
    """An AnyValue."""
    budget.value(depth)
    found: Any = None
    for number, wire, value in _fields(data):
        if wire == _BYTES:
            if number == 1:
                found = _utf8(value)
            elif number == 5:
                found = [_value(item, budget, depth + 1) for n, item in _messages(value) if n == 1]
            elif number == 6:
                found = {}
                for n, item in _messages(value):
                    if n == 1:
                        _pair(item, found, budget, depth + 1)
            elif number == 7:
                found = bytes(value)
        elif number == 2 and wire == _VARINT:
            found = bool(value)
        elif number == 3 and wire == _VARINT:
            found = value - (1 << 64) if value >= 1 << 63 else value
        elif number == 4 and wire == _FIXED64:
            found = struct.unpack("<d", struct.pack("<Q", value))[0]
    return found


def _utf8(data: memoryview) -> str:
    # The specification forbids other bytes; a broken text is still worth more than a lost batch.
    return str(data, "utf-8", "replace")


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message."""
    for number, wire, value in _fields(data):
        if wire == _BYTES:
            yield number, value


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) of each field of a message.

    Raises:
        OtlpError: it is no protobuf.
    """
    place, size = 0, len(data)
    while place < size:
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise OtlpError("no OTLP protobuf: a field with the number 0")
        if wire == _BYTES:
            length, place = _varint(data, place)
            if length > size - place:
                raise OtlpError("no OTLP protobuf: a field is longer than its message")
            yield number, wire, data[place : place + length]
            place += length
        elif wire == _VARINT:
            value, place = _varint(data, place)
            yield number, wire, value
        elif wire == _FIXED64:
            yield number, wire, struct.unpack_from("<Q", data, place)[0]
            place += 8
        elif wire == _FIXED32:
            yield number, wire, struct.unpack_from("<I", data, place)[0]
            place += 4
        else:
            raise OtlpError(f"no OTLP protobuf: wire type {wire}")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    byte = data[place]
    if byte < 0x80:
        return byte, place + 1
    value, shift = byte & 0x7F, 7
    while True:
        place += 1
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place + 1
        shift += 7
        if shift > 63:
            raise OtlpError("no OTLP protobuf: a number of more than ten bytes")


# -- JSON


def read_traces_json(body: bytes) -> Request:
    """The spans of an `ExportTraceServiceRequest` in JSON.

    Raises:
        OtlpError: it is none, or over a bound.
    """
    request, budget = Request(), _Budget()
    for resource, span in _json_items(_parse(body), "Spans", "spans", request, budget):
        _take_json_span(span, resource, request, budget)
    return request


def read_logs_json(body: bytes) -> Request:
    """The GenAI events of an `ExportLogsServiceRequest` in JSON.

    Raises:
        OtlpError: it is none, or over a bound.
    """
    request, budget = Request(), _Budget()
    for _, log in _json_items(_parse(body), "Logs", "logRecords", request, budget):
        if isinstance(log, Mapping):
            body_value = _get(log, "body")
            _take_log(
                _id(_get(log, "traceId"), 16),
                _id(_get(log, "spanId"), 8),
                str(_get(log, "eventName") or ""),
                _json_attributes(_get(log, "attributes"), budget),
                _json_value(body_value, budget, 0) if isinstance(body_value, Mapping) else None,
                request,
            )
    return request


def span_of_json(span: Mapping[str, Any], resource: Mapping[str, Any] | None = None) -> Span | None:
    """One span in the JSON of OTLP, as trace stores give it back; None when its ids are none."""
    request = Request()
    _take_json_span(span, resource or {}, request, _Budget())
    return request.spans[0] if request.spans else None


def _parse(body: bytes) -> Any:
    try:
        # Always UTF-8, as OTLP has it; from bytes, `json` would take UTF-16 and UTF-32 too.
        text = body.decode("utf-8-sig", "surrogatepass")
        most = max(_FREE_PARTS, len(text) // _PART_BYTES)
        if sum(text.count(mark) for mark in '"[{,') > most and _is_over(text, most):
            raise OtlpError(f"more than {most:,} texts and values in one request: send smaller batches")
        value = json.loads(text)
    except OtlpError:
        raise
    except (ValueError, RecursionError) as error:
        raise OtlpError(f"no JSON: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise OtlpError("no OTLP JSON: an object is wanted")
    return value


def _is_over(text: str, most: int) -> bool:
    """Whether JSON has too many parts to be decoded: `{},{},...` takes thirty times its size.

    What stands inside texts is free.
    """
    return next(islice(_PARTS.finditer(text), most, None), None) is not None


def _json_items(
    value: Any, kind: str, name: str, request: Request, budget: _Budget
) -> Iterator[tuple[dict[str, Any], Any]]:
    for group in _rows(_get(value, f"resource{kind}")):
        resource = _get(group, "resource")
        attributes = _json_attributes(_get(resource, "attributes") if isinstance(resource, Mapping) else None, budget)
        for scope in _rows(_get(group, f"scope{kind}")):
            for item in _rows(_get(scope, name)):
                budget.spans -= 1
                if budget.spans < 0:
                    request.reject(f"more than {MOST_SPANS:,} in one request: send smaller batches")
                else:
                    yield attributes, item


def _take_json_span(span: Any, resource: Mapping[str, Any], request: Request, budget: _Budget) -> None:
    if not isinstance(span, Mapping):
        return request.reject("a span that is no object")
    trace_id, span_id = _id(_get(span, "traceId"), 16), _id(_get(span, "spanId"), 8)
    if not _right_ids(trace_id, span_id):
        return request.reject("a span without a trace id of 16 bytes or a span id of 8")
    parent = _id(_get(span, "parentSpanId"), 8)
    status = _get(span, "status")
    code = _get(status, "code") if isinstance(status, Mapping) else None
    request.spans.append(
        Span(
            trace_id=trace_id.hex(),
            span_id=span_id.hex(),
            parent_id=parent.hex() if any(parent) else None,
            name=str(_get(span, "name") or ""),
            start_seconds=_nanoseconds(_get(span, "startTimeUnixNano")),
            end_seconds=_nanoseconds(_get(span, "endTimeUnixNano")),
            attributes=_json_attributes(_get(span, "attributes"), budget),
            events=[_json_event(event, budget) for event in _rows(_get(span, "events"))],
            failed=code in (_ERROR, "STATUS_CODE_ERROR", "ERROR"),
            resource=resource,
        )
    )
    return None


def _json_event(event: Mapping[str, Any], budget: _Budget) -> SpanEvent:
    budget.value(0)
    attributes = _json_attributes(_get(event, "attributes"), budget)
    return SpanEvent(name=str(_get(event, "name") or ""), attributes=attributes)


def _rows(value: object) -> list[Any]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _get(value: Mapping[str, Any], name: str) -> Any:
    """A field by its JSON name, or by its name in protobuf."""
    if name in value:
        return value[name]
    return value.get("".join(f"_{c.lower()}" if c.isupper() else c for c in name))


def _id(value: object, size: int) -> bytes:
    if isinstance(value, str):
        lower = value.lower()
        if len(lower) == 2 * size and _HEX.issuperset(lower):
            return bytes.fromhex(lower)
        if len(value) <= 2 * size:
            try:
                return base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                return b""
    return b""


def _nanoseconds(value: object) -> float:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 21:
        value = int(value)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**64
    return float(value) / 1e9 if usable else 0.0  # type: ignore[arg-type]  # as `usable` says


def _json_attributes(value: object, budget: _Budget) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in _rows(value):
        inner = row.get("value")
        # Trace stores give scalars bare; structures in no AnyValue would pass by the budget.
        bare = inner if isinstance(inner, str | int | float) else None
        found[str(row.get("key", ""))] = _json_value(inner, budget, 0) if isinstance(inner, Mapping) else bare
    return found


def _json_value(value: Mapping[str, Any], budget: _Budget, depth: int) -> Any:
    """An AnyValue; 64-bit integers come as texts."""
    budget.value(depth)
    for name in ("stringValue", "boolValue", "doubleValue"):
        if isinstance(found := _get(value, name), str | int | float):
            return found
    if (found := _get(value, "intValue")) is not None:
        try:
            return int(found) if len(str(found)) < 21 else str(found)
        except (ValueError, TypeError, OverflowError):
            return str(found)
    array = _get(value, "arrayValue")
    if isinstance(array, Mapping):
        return [_json_value(item, budget, depth + 1) for item in _rows(array.get("values"))]
    pairs = _get(value, "kvlistValue")
    if isinstance(pairs, Mapping):
        return {
            str(row.get("key", "")): _json_value(row["value"], budget, depth + 1)
            for row in _rows(pairs.get("values"))
            if isinstance(row.get("value"), Mapping)
        }
    if isinstance(data := _get(value, "bytesValue"), str):
        try:
            return base64.b64decode(data)
        except (binascii.Error, ValueError):
            return data
    return None


# -- answers


def response(rejected: int, reason: str, *, as_json: bool, logs: bool = False) -> bytes:
    """An `ExportTraceServiceResponse` (or that of logs): empty for full success, else with `partial_success`."""
    if as_json:
        field_name = "rejectedLogRecords" if logs else "rejectedSpans"
        # 64-bit integers are texts in the JSON of protobuf.
        partial = {"partialSuccess": {field_name: str(rejected), "errorMessage": reason}} if rejected else {}
        return json.dumps(partial).encode()
    if not rejected:
        return b""
    partial_success = b"\x08" + _encoded(rejected) + _delimited(2, reason.encode())
    return _delimited(1, partial_success)


def status(message: str, *, as_json: bool, code: int = 3) -> bytes:
    """A `google.rpc.Status`, the body of every error; 3 is INVALID_ARGUMENT, 14 UNAVAILABLE, 16 UNAUTHENTICATED."""
    if as_json:
        return json.dumps({"code": code, "message": message}).encode()
    return b"\x08" + _encoded(code) + _delimited(2, message.encode())


def _delimited(number: int, data: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(data)) + data


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
