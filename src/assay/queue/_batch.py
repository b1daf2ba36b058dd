"""The wire form of a batch: JSON around records that stay as raw as they came (docs/reference/wire-format.md)."""

from __future__ import annotations

import json
import math
import re
import reprlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from assay.errors import RecordError
from assay.records import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The most records that one batch may hold.
MAX_BATCH_RECORDS: Final = 25
#: The most bytes of one record's JSON, and of a whole batch.
MAX_RECORD_BYTES: Final = 1_000_000
MAX_BATCH_BYTES: Final = 4_000_000

#: The fields of a batch beside its records.
_HEAD: Final = ("schema_version", "batch_id", "enqueued_at", "attempt", "replay", "probabilities", "rubrics")
#: What a batch id may look like. Scripts write it into the doorbell, so nothing that JSON would have to escape.
_BATCH_ID = re.compile(r"[A-Za-z0-9._:-]{1,200}", re.ASCII)
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
#: Text of JSON: a string, a run of brackets that open or close, a value that is neither text nor has brackets.
_STRING = r'"(?>(?:[^"\\]++|\\.)*)"'
#: What is neither bracket nor the beginning of a text without an end, as far as it is looked through at once, and what
#: comes then.
_PARTS = re.compile(rf'(?>(?:[^"\[\]{{}}]++|{_STRING}){{0,500}})([\[{{]++|[\]}}]++|")?', re.DOTALL)
_PLAIN = re.compile(rf'{_STRING}|[^][{{}}",: \t\n\r]++', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one payload holds.

    `enqueued_at` is in seconds since the epoch; `attempt` counts the judge retries of all its records;
    `replay` means that stored failures of these records may be superseded. `records` are raw JSON, one each, just
    as they were received: `codec.decode_record` reads them one by one, so that a bad one never fails its mates.
    `probabilities` is what budgets have drawn of these records already: rubric hash -> with which probability, below 1,
    the record is judged under it. `rubrics` is all that the records still owe, rubric hash -> name, of a batch that
    waits for a worker that has ragas; empty: whatever a record owes.
    """

    batch_id: str
    enqueued_at: float
    attempt: int
    replay: bool
    records: tuple[bytes, ...]
    probabilities: Mapping[str, float] = field(default_factory=dict)
    rubrics: Mapping[str, str] = field(default_factory=dict)


def encode_batch(
    records: Sequence[str | bytes],
    *,
    batch_id: str,
    enqueued_at: float,
    attempt: int = 0,
    replay: bool = False,
    probabilities: Mapping[str, float] | None = None,
    rubrics: Mapping[str, str] | None = None,
) -> bytes:
    """The payload of one batch, from the JSON of each of its records: `Record.to_json`, or `Batch.records` as it is.

    Lone surrogates in text, which UTF-8 cannot carry, become `?`.
    """
    head = json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "batch_id": batch_id,
            "enqueued_at": enqueued_at,
            "attempt": attempt,
            "replay": replay,
            # Only workers write it, and seldom.
            **({"probabilities": dict(probabilities)} if probabilities else {}),
            **({"rubrics": dict(rubrics)} if rubrics else {}),
        },
        separators=(",", ":"),
        allow_nan=False,
    )
    parts = [record.encode(errors="replace") if isinstance(record, str) else record for record in records]
    return b'%s,"records":[%s]}' % (head[:-1].encode(), b",".join(parts))


def decode_batch(payload: bytes) -> Batch:
    """The batch in a payload. Its records stay raw; fields it does not know are left aside, and neither is decoded.

    Raises:
        RecordError: `reason` is undecodable (not JSON), unknown_version, or invalid (a field is missing or wrong).
    """
    try:
        # Bad bytes inside a record must reach that record's own decoding, and only its.
        texts, records = _scan(payload.decode("utf-8", "surrogateescape"))
        fields = {name: json.loads(texts[name]) for name in _HEAD if name in texts}
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        raise RecordError(f"the batch is not a JSON object: {error}", reason="undecodable") from error
    version = fields.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise RecordError(
            f"version {reprlib.repr(version)} is not known (this assay knows {SCHEMA_VERSION}): upgrade the worker",
            field="schema_version",
            reason="unknown_version",
        )
    batch_id, enqueued_at = fields.get("batch_id"), fields.get("enqueued_at")
    attempt, replay = fields.get("attempt", 0), fields.get("replay", False)
    if not isinstance(batch_id, str) or not _BATCH_ID.fullmatch(batch_id):
        raise RecordError("must be 1 to 200 of the characters A-Z a-z 0-9 . _ : -", field="batch_id")
    if isinstance(enqueued_at, bool) or not isinstance(enqueued_at, int | float) or not _is_finite(enqueued_at):
        raise RecordError("must be a number: seconds since the epoch", field="enqueued_at")
    if type(attempt) is not int or attempt < 0:
        raise RecordError("must be a whole number, 0 or more", field="attempt")
    if not isinstance(replay, bool):
        raise RecordError("must be true or false", field="replay")
    probabilities = fields.get("probabilities", {})
    if not isinstance(probabilities, dict) or not all(
        isinstance(value, int | float) and 0 < value <= 1 for value in probabilities.values()
    ):
        raise RecordError("must be an object of numbers in (0, 1]", field="probabilities")
    rubrics = fields.get("rubrics", {})
    if not isinstance(rubrics, dict) or not all(isinstance(name, str) for name in rubrics.values()):
        raise RecordError("must be an object of texts", field="rubrics")
    if not records:
        raise RecordError("must be an array of one record or more", field="records")
    return Batch(batch_id, float(enqueued_at), attempt, replay, records, probabilities, rubrics)


def is_batch(payload: bytes) -> bool:
    """Whether a payload is meant as a batch, rather than as one record; `decode_batch` may refuse it all the same."""
    try:
        texts, _ = _scan(payload.decode("utf-8", "surrogateescape"))
    except (ValueError, TypeError, IndexError):
        return False
    return "records" in texts and "record_id" not in texts


def check_batch_id(batch_id: str) -> None:
    """Raises ValueError: it cannot be one."""
    if not _BATCH_ID.fullmatch(batch_id):
        raise ValueError(f"batch id {batch_id!r}: use 1 to 200 of the characters A-Z a-z 0-9 . _ : -")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond any float
        return False


def _scan(text: str) -> tuple[dict[str, str], tuple[bytes, ...]]:
    """The raw text of each field of a JSON object, and of each element of its array `records`.

    No value is decoded: one that Python's json cannot read (a number of 5,000 digits, 3,000 arrays in each other)
    harms nothing beside it.
    """
    fields: dict[str, str] = {}
    records: tuple[bytes, ...] = ()
    at = _past(text, 0, "{")
    while True:
        if text[at] != '"':
            raise TypeError("a name in it is not text")
        key, at = _DECODER.raw_decode(text, at)
        at = _past(text, at, ":")
        start = at
        if key == "records" and text[at] == "[":
            records, at = _elements(text, at)
        else:
            at = _end(text, at)
        fields[key] = text[start:at]
        at = _skip(text, at)
        if text[at] == "}":
            break
        at = _past(text, at, ",")
    if _skip(text, at + 1) != len(text):
        raise ValueError("something follows the object")
    return fields, records


def _elements(text: str, at: int) -> tuple[tuple[bytes, ...], int]:
    """The raw text of each element of the array that begins at `at`, and where the text goes on after it."""
    found = []
    at = _past(text, at, "[")
    if text[at] == "]":
        return (), at + 1
    while True:
        end = _end(text, at)
        found.append(text[at:end].encode("utf-8", "surrogateescape"))
        at = _skip(text, end)
        if text[at] == "]":
            return tuple(found), at + 1
        at = _past(text, at, ",")


def _end(text: str, at: int) -> int:
    """Where the value that begins at `at` ends, by its quotes and brackets alone; what is in it may be no JSON."""
    if text[at] not in "[{":
        plain = _PLAIN.match(text, at)
        if plain is None:
            raise ValueError(f"a value expected at character {at}")
        return plain.end()
    depth = 0
    end = at
    while (part := _PARTS.match(text, end)) is not None and part.end() > end:
        start, end = part.start(1), part.end()
        if start < 0:
            continue
        mark, length = text[start], end - start
        if mark in "[{":
            depth += length
        elif mark == '"':
            raise ValueError(f"the text that begins at character {start} does not end")
        elif depth <= length:
            return start + depth
        else:
            depth -= length
    raise ValueError(f"the value that begins at character {at} does not end")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _past(text: str, at: int, mark: str) -> int:
    """Where the text goes on after `mark` and the space around it."""
    at = _skip(text, at)
    if text[at] != mark:
        raise ValueError(f"{mark!r} expected at character {at}")
    return _skip(text, at + 1)
