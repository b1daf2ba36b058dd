"""OTLP as protobuf, without a protobuf library: what this package sends, and the answer to it.

By the field numbers of opentelemetry-proto 1.x (`trace/v1/trace.proto`, `logs/v1/logs.proto`, `common/v1/common.proto`,
`collector/*/v1/*_service.proto`) and the wire format of protobuf.dev ("Encoding"). A test has an independent receiver
decode it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Kind = Literal["text", "hex", "nanoseconds", "flags", "number", "attributes", "link", "status", "scope", "resource"]

#: Of each message, by the name of a field in OTLP's JSON: its number and its kind.
_LINK: dict[str, tuple[int, _Kind]] = {"traceId": (1, "hex"), "spanId": (2, "hex"), "flags": (6, "flags")}
_STATUS: dict[str, tuple[int, _Kind]] = {"message": (2, "text"), "code": (3, "number")}
_SCOPE: dict[str, tuple[int, _Kind]] = {"name": (1, "text"), "version": (2, "text")}
_RESOURCE: dict[str, tuple[int, _Kind]] = {"attributes": (1, "attributes")}
_SPAN: dict[str, tuple[int, _Kind]] = {
    "traceId": (1, "hex"),
    "spanId": (2, "hex"),
    "parentSpanId": (4, "hex"),
    "name": (5, "text"),
    "kind": (6, "number"),
    "startTimeUnixNano": (7, "nanoseconds"),
    "endTimeUnixNano": (8, "nanoseconds"),
    "attributes": (9, "attributes"),
    "links": (13, "link"),
    "status": (15, "status"),
    "flags": (16, "flags"),
}
_LOG_RECORD: dict[str, tuple[int, _Kind]] = {
    "timeUnixNano": (1, "nanoseconds"),
    "severityNumber": (2, "number"),
    "severityText": (3, "text"),
    "attributes": (6, "attributes"),
    "flags": (8, "flags"),
    "traceId": (9, "hex"),
    "spanId": (10, "hex"),
    "observedTimeUnixNano": (11, "nanoseconds"),
    "eventName": (12, "text"),
}


def protobuf(document: Mapping[str, Any]) -> bytes:
    """A request to export spans or log records, from its form in OTLP's JSON; of what this package sends only."""
    encoded = b""
    for several, item, fields in (("Spans", "spans", _SPAN), ("Logs", "logRecords", _LOG_RECORD)):
        for resource in document.get(f"resource{several}", ()):
            inner = _nested(1, _message(resource["resource"], _RESOURCE))
            for scoped in resource[f"scope{several}"]:
                items = b"".join(_nested(2, _message(one, fields)) for one in scoped[item])
                inner += _nested(2, _nested(1, _message(scoped["scope"], _SCOPE)) + items)
            encoded += _nested(1, inner)
    return encoded


def partial_success(body: bytes) -> tuple[int, str]:
    """How many a receiver says that it refused, and why; (0, "") when it says nothing, or nothing that can be read."""
    try:
        said = _fields(_fields(body).get(1, b""))
        refused, why = said.get(1, 0), said.get(2, b"")
    except (IndexError, ValueError):
        return 0, ""
    return (refused if isinstance(refused, int) else 0), (
        why.decode("utf-8", "replace") if isinstance(why, bytes) else ""
    )


def _message(values: Mapping[str, Any], fields: Mapping[str, tuple[int, _Kind]]) -> bytes:
    return b"".join(_ENCODE[fields[name][1]](fields[name][0], value) for name, value in values.items())


def _text(number: int, value: str) -> bytes:
    return _nested(number, value.encode("utf-8", "replace"))


def _attributes(number: int, pairs: list[dict[str, Any]]) -> bytes:
    return b"".join(_nested(number, _text(1, pair["key"]) + _nested(2, _any_value(pair["value"]))) for pair in pairs)


def _any_value(value: Mapping[str, Any]) -> bytes:
    if "stringValue" in value:
        return _text(1, value["stringValue"])
    if "boolValue" in value:
        return _varint(2 << 3) + _varint(int(value["boolValue"]))
    return _varint(4 << 3 | 1) + struct.pack("<d", value["doubleValue"])


def _nested(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_ENCODE: dict[_Kind, Callable[[int, Any], bytes]] = {
    "text": _text,
    "hex": lambda number, value: _nested(number, bytes.fromhex(value)),
    "nanoseconds": lambda number, value: _varint(number << 3 | 1) + struct.pack("<Q", int(value)),
    "flags": lambda number, value: _varint(number << 3 | 5) + struct.pack("<I", value),
    "number": lambda number, value: _varint(number << 3) + _varint(value),
    "attributes": _attributes,
    "link": lambda number, links: b"".join(_nested(number, _message(link, _LINK)) for link in links),
    "status": lambda number, value: _nested(number, _message(value, _STATUS)),
}


def _fields(data: int | bytes) -> dict[int, int | bytes]:
    """The latest value of each field of a message: numbers of varints, bytes of what has a length."""
    found: dict[int, int | bytes] = {}
    if isinstance(data, int):
        return found
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        if key & 7 == 0:
            found[key >> 3], place = _read_varint(data, place)
        elif key & 7 == 2:
            length, place = _read_varint(data, place)
            found[key >> 3], place = data[place : place + length], place + length
        else:
            raise ValueError("a field that no answer has")
    return found


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number of more than 64 bits")
