"""Puts records on the queue from outside an app: from JSON Lines and CSV files, and again from dead letters.

Whoever enqueues here waits while the queue is full, and keeps what cannot be a record.
"""

from __future__ import annotations

import csv
import json
import time
import uuid
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from assay.codec import decode_record
from assay.errors import RecordError
from assay.queue import decode_batch, encode_batch
from assay.records import Record, now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from assay.queue import Queue
    from assay.store import DeadLetter, Store

BATCH_RECORDS = 25
_BATCH_BYTES = 4_000_000
# The standard library's bound, 128 kB, is below what a context may be.
csv.field_size_limit(10_000_000)
_NAMESPACE = uuid.UUID("b0d5f6c2-0d0b-5f0e-9a61-9a4d5f0f7b11")
_FIELDS = frozenset(f.name for f in fields(Record))
#: CSV cells of these columns are JSON; of all others, text
_JSON_COLUMNS = frozenset(
    {"contexts", "required_fields", "cohort", "sampling", "usage", "tool_events", "feedback", "metadata", "sink_refs"}
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: its 1-based line, its text as it stood, and the record or what is wrong with it."""

    line: int
    raw: str
    record: Record | None
    error: str | None


@dataclass(slots=True)
class Replayed:
    """What came of a replay: how many letters are back on the queue, and (id, error) of those that are not."""

    replayed: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)


def read_rows(
    source: Iterable[bytes],
    *,
    form: Literal["jsonl", "csv"],
    rename: Mapping[str, str] | None = None,
    unknown: Literal["refuse", "metadata", "drop"] = "refuse",
    defaults: Mapping[str, Any] | None = None,
) -> Iterator[Row]:
    """Read records from a file, one row at a time; a bad row is a Row with an error, never an exception.

    `rename` maps columns to record fields. Columns that are no field are refused, put into `metadata`, or dropped.
    `defaults` fills absent fields. A row without `record_id` gets one derived from its text, so that the same file
    enqueued twice is scored once; a row without `timestamp` happened now.
    """
    rows = _csv_rows(source) if form == "csv" else _json_rows(source)
    for line, raw, data, error in rows:
        if error is not None or data is None:
            yield Row(line, raw, None, error)
            continue
        try:
            yield Row(line, raw, _record(data, raw, rename or {}, unknown, defaults or {}), None)
        except RecordError as problem:
            yield Row(line, raw, None, str(problem))


def enqueue(
    records: Iterable[Record], queue: Queue, *, on_sent: Callable[[int], None] = lambda _: None, replay: bool = False
) -> int:
    """Push records in batches; waits while the queue is full. Returns how many were pushed.

    Raises:
        QueueError: Redis is away; what was pushed before stays pushed.
    """
    sent = 0
    for batch in _batches(record.to_json() for record in records):
        _push(queue, batch, replay=replay)
        sent += len(batch)
        on_sent(len(batch))
    return sent


def replay(letters: Sequence[DeadLetter], *, queue: Queue, store: Store, mended: bytes | None = None) -> Replayed:
    """Put dead letters back on the queue, and note it in the store. `mended` stands in for the payload of the one.

    A letter whose payload is still no record stays as it is.

    Raises:
        QueueError: Redis is away. StoreError: the database is away.
    """
    result = Replayed()
    for letter in letters:
        try:
            records = list(_records_of(mended if mended is not None else letter.payload))
        except RecordError as error:
            result.refused.append((letter.dead_id, str(error)))
            continue
        for batch in _batches(record.to_json() for record in records):
            _push(queue, batch, replay=True)
        store.mark_replayed([letter.dead_id])
        result.replayed += 1
    return result


def _push(queue: Queue, batch: Sequence[str], *, replay: bool) -> None:
    batch_id, enqueued_at = str(uuid.uuid4()), time.time()
    payload = encode_batch(batch, batch_id=batch_id, enqueued_at=enqueued_at, replay=replay)
    while not queue.push(payload, batch_id=batch_id, records=len(batch), enqueued_at=enqueued_at):
        time.sleep(0.5)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == BATCH_RECORDS or size + len(text) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _records_of(payload: bytes) -> Iterator[Record]:
    """A dead letter holds one record, or a whole batch that could not be read."""
    try:
        data = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}", reason="undecodable") from None
    if isinstance(data, dict) and "records" in data and "record_id" not in data:
        for raw in decode_batch(payload).records:
            yield decode_record(raw)
    else:
        yield decode_record(payload)


def _json_rows(source: Iterable[bytes]) -> Iterator[tuple[int, str, dict[str, Any] | None, str | None]]:
    for line, raw in enumerate(source, start=1):
        text = raw.decode("utf-8", errors="backslashreplace").rstrip("\r\n")
        if not text.strip():
            continue
        try:
            data = json.loads(raw)
        except UnicodeDecodeError as error:
            yield line, text, None, f"not UTF-8: byte {error.start}"
        except (ValueError, RecursionError) as error:
            yield line, text, None, f"not JSON: {error}"
        else:
            if isinstance(data, dict):
                yield line, text, data, None
            else:
                yield line, text, None, f"a JSON object is wanted, not {type(data).__name__}"


def _csv_rows(source: Iterable[bytes]) -> Iterator[tuple[int, str, dict[str, Any] | None, str | None]]:
    read: list[str] = []

    def lines() -> Iterator[str]:
        for number, line in enumerate(source):
            # A byte that is not UTF-8 becomes a lone surrogate, which is then found in the row that holds it.
            text = line.decode("utf-8", errors="surrogateescape")
            read.append(text.removeprefix("\ufeff") if number == 0 else text)
            yield read[-1]

    reader = csv.DictReader(lines(), strict=True)
    try:
        names = reader.fieldnames or ()
    except csv.Error as problem:
        yield 1, "".join(read).rstrip("\r\n"), None, f"the header is not CSV: {problem}"
        return
    while True:
        line = reader.line_num + 1
        read.clear()
        error, row = None, {}
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            error = f"not CSV: {problem}"
        raw = "".join(read).rstrip("\r\n")
        if any("\udc80" <= character <= "\udcff" for character in raw):
            raw = raw.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            error = "not UTF-8"
        elif error is None and (None in row or None in row.values()):
            error = f"has not the {len(names)} columns of the header"
        yield line, raw, None if error else {key: value for key, value in row.items() if value != ""}, error


def _record(
    data: Mapping[str, Any],
    raw: str,
    rename: Mapping[str, str],
    unknown: Literal["refuse", "metadata", "drop"],
    defaults: Mapping[str, Any],
) -> Record:
    known: dict[str, Any] = dict(defaults)
    rest: dict[str, Any] = {}
    for key, value in data.items():
        name = rename.get(key, key)
        if name in _FIELDS:
            known[name] = _cell(name, value)
        else:
            rest[name] = value
    if unknown == "metadata" and rest:
        known["metadata"] = {**known.get("metadata", {}), **rest}
    elif unknown == "refuse":
        known.update(rest)
    if isinstance(known.get("contexts"), list):
        known["contexts"] = [{"text": item} if isinstance(item, str) else item for item in known["contexts"]]
    known.setdefault("record_id", str(uuid.uuid5(_NAMESPACE, raw)))
    known.setdefault("timestamp", now().isoformat())
    return decode_record(known)


def _cell(name: str, value: Any) -> Any:
    """A CSV cell of a structured field holds JSON; a plain text in `contexts` is one context."""
    if name not in _JSON_COLUMNS or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        if name == "contexts":
            return [value]
        raise RecordError("must hold JSON", field=name) from None
