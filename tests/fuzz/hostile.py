"""Hostile documents, and mutations of valid ones."""

import gzip
import json
import re
from typing import Final

from hypothesis import strategies as st

DEEP: Final = 30_000
#: What is put in the place of a part of a document.
PIECES: Final = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc0\xaf", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\xe2\x80\xae",
    b"NaN", b"-Infinity", b"1e999", b"1e-999", b"-0", b"9" * 400, b"9" * 5_000, b"1" + b"0" * 100_000, b"null", b"true",
    b"[]", b"{}", b'""', b"-1", b"18446744073709551616", b"[" * 500, b'{"a":' * 500, b"\n", b"\t", b"\r", b'"', b"'",
    b"&a [*a]", b"*a", b"<<: {a: 1}", b"!!python/object/apply:os.system [x]", b"---\n", b"%YAML 9.9\n", b"? ", b"|\n",
    b"\x1b[31m", b"{{", b"%s", b"\xf0\x9f\x92\xa9", b"2026-01-31T12:00:00Z", b"0001-01-01T00:00:00+23:59",
    b"9999-12-31T23:59:59-23:59", b'"\\ud800"', b'["\\ud800"]',
)  # fmt: skip
_PARTS: Final = re.compile(rb'"[^"\n]*"|-?[0-9.]+|[A-Za-z_]+|[^\sA-Za-z_0-9"]|\s+')

#: Whole documents that no reader may choke on.
WHOLE: Final = {
    "nothing": b"",
    "NUL": b"\0" * 1000,
    "deep arrays": b"[" * DEEP,
    "deep closed": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep member": b'{"records":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "huge integer": b'{"schema_version":' + b"9" * DEEP + b"}",
    "huge exponent": b'{"enqueued_at":1e99999999}',
    "infinite calibration": b'{"calibration_version":1,"calibration_id":"x","auc":1e999}',
    "UTF-16": '{"records":[]}'.encode("utf-16"),
    "UTF-32": '{"records":[]}'.encode("utf-32"),
    "BOM": b'\xef\xbb\xbf{"records":[]}',
    "one name": b"{" + b'"a":1,' * 5_000 + b'"a":1}',
    "quotes": b'"' * 50_001,
    "backslashes": b'{"a":"' + b"\\" * 50_001,
    "open braces": b"{" * 5_000,
    "half objects": b'{"a' * 20_000,
    "surrogate": json.dumps({"record_id": "\ud800", "app": "\udfff", "records": ["\ud800"]}).encode(),
    "laughs": b"a: &a [x,x]\n" + b"".join(b"%c: &%c [*%c,*%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 120)),
    "merge": b"a: &a {b: 1}\nc:\n  <<: *a\n  <<: *a\n",
    "object": b"!!python/object/apply:os.system ['true']\n",
    "tabs": b"\t" * 10_000 + b"a:\t1\n",
    "flow": b"{a: " * 500 + b"}" * 500,
    "question marks": b"? " * 5_000,
    "commas": b"," * 50_000 + b"\n" + b"," * 50_000,
    "open quote": b'a,b\n"' + b"x,\n" * 4_000,
    "varints": b"\xff" * 10_000,
    "gzip bomb": gzip.compress(b"\0" * 10_000_000, mtime=0),
}


@st.composite
def mutated(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A valid document with a few of its parts replaced, repeated, dropped or swapped; sometimes torn."""
    parts = _PARTS.findall(draw(st.sampled_from(seeds))) or [b""]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(parts) - 1))
        match draw(st.sampled_from(("replace", "replace", "insert", "drop", "repeat", "swap", "bytes", "tear"))):
            case "replace":
                parts[at] = draw(st.sampled_from(PIECES))
            case "insert":
                parts.insert(at, draw(st.sampled_from(PIECES)))
            case "drop":
                parts[at] = b""
            case "repeat":
                end = draw(st.integers(at, min(len(parts), at + 30)))
                parts[at:at] = parts[at:end] * draw(st.integers(1, 3))
            case "swap":
                other = draw(st.integers(0, len(parts) - 1))
                parts[at], parts[other] = parts[other], parts[at]
            case "bytes":
                parts[at] = draw(st.binary(max_size=12))
            case _:
                parts = parts[: at + 1]
    return b"".join(parts)
