"""Reads rows of JSON Lines and CSV files, as they stand or as records. A bad row is told of, never an exception."""

from __future__ import annotations

import csv
import json
import reprlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from assay.codec import decode_record
from assay.errors import RecordError
from assay.files import MOST_LINE_BYTES, bounded_lines
from assay.records import Record, now

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: How a file is written.
Form = Literal["jsonl", "csv"]

#: Names of the fields of a record.
RECORD_FIELDS = frozenset(f.name for f in fields(Record))
#: CSV cells of these columns are JSON; of all others, text
_JSON_COLUMNS = frozenset(
    {"contexts", "required_fields", "cohort", "sampling", "usage", "tool_events", "feedback", "metadata", "sink_refs"}
)
_NAMESPACE = uuid.UUID("b0d5f6c2-0d0b-5f0e-9a61-9a4d5f0f7b11")
# The standard library's bound, 128 kB, is below what a context may be.
csv.field_size_limit(MOST_LINE_BYTES)
_TOO_LONG = f"is longer than {MOST_LINE_BYTES:,} bytes: only its beginning is kept"


class RawRow(NamedTuple):
    """One row of a file as it stands: its 1-based line, its text, and its fields or what is wrong with it."""

    line: int
    raw: str
    fields: dict[str, Any] | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: its 1-based line, its text as it stood, and the record or what is wrong with it."""

    line: int
    raw: str
    record: Record | None
    error: str | None


def raw_rows(source: Iterable[bytes], form: Form) -> Iterator[RawRow]:
    """The rows of a file as they stand; blank lines are left out, and so are empty cells of CSV."""
    return _csv_rows(source) if form == "csv" else _json_rows(source)


def read_rows(
    source: Iterable[bytes],
    *,
    form: Form,
    rename: Mapping[str, str] | None = None,
    unknown: Literal["refuse", "metadata", "drop"] = "refuse",
    defaults: Mapping[str, Any] | None = None,
) -> Iterator[Row]:
    """Read records from a file, one row at a time; a bad row is a Row with an error, never an exception.

    `rename` maps columns to record fields. Columns that are no field are refused, put into `metadata`, or dropped.
    `defaults` fills absent fields. A row without `record_id` gets one derived from its text, so that the same file
    enqueued twice is scored once; a row without `timestamp` happened now.
    """
    for line, raw, data, error in raw_rows(source, form):
        if error is not None or data is None:
            yield Row(line, raw, None, error)
            continue
        try:
            yield Row(line, raw, _record(data, raw, rename or {}, unknown, defaults or {}), None)
        except RecordError as problem:
            yield Row(line, raw, None, str(problem))


def row_id(text: str) -> str:
    """A record id for a row that has none: the same text gives the same id."""
    # As UTF-8, which has no lone surrogates; JSON may escape one.
    return str(uuid.uuid5(_NAMESPACE, text.encode(errors="backslashreplace").decode()))


def record_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Record fields as a row may write them, as `decode_record` takes them: cells of JSON, contexts of plain text.

    Raises:
        RecordError: a cell that must hold JSON does not.
    """
    known = {name: _cell(name, value) for name, value in values.items()}
    if isinstance(known.get("contexts"), list):
        known["contexts"] = [{"text": item} if isinstance(item, str) else item for item in known["contexts"]]
    return known


def _json_rows(source: Iterable[bytes]) -> Iterator[RawRow]:
    for line, (raw, is_whole) in enumerate(bounded_lines(source), start=1):
        text = raw.decode("utf-8", errors="backslashreplace").rstrip("\r\n")
        if not is_whole:
            yield RawRow(line, text, None, _TOO_LONG)
            continue
        if not text.strip():
            continue
        try:
            data = json.loads(raw)
            if isinstance(data, dict) and data.keys() == {"line", "error", "row"} and isinstance(data["row"], str):
                # A row that was refused before, as `assay enqueue` keeps it, and has been mended since.
                text = data["row"]
                data = json.loads(text)
        except UnicodeDecodeError as error:
            yield RawRow(line, text, None, f"not UTF-8: byte {error.start}")
        except (ValueError, RecursionError) as error:
            yield RawRow(line, text, None, f"not JSON: {error}")
        else:
            if isinstance(data, dict):
                yield RawRow(line, text, data, None)
            else:
                yield RawRow(line, text, None, f"a JSON object is wanted, not {type(data).__name__}")


def _csv_rows(source: Iterable[bytes]) -> Iterator[RawRow]:
    read: list[str] = []
    size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        for number, (line, is_whole) in enumerate(bounded_lines(source)):
            size += len(line)
            if not is_whole or size > MOST_LINE_BYTES:
                # Where the next row begins is unknown: a quote may be open.
                read.append(line[: MOST_LINE_BYTES // 1000].decode("utf-8", errors="surrogateescape"))
                raise csv.Error(f"a row is longer than {MOST_LINE_BYTES:,} bytes: nothing after it was read")
            # A byte that is not UTF-8 becomes a lone surrogate, which is then found in the row that holds it.
            text = line.decode("utf-8", errors="surrogateescape")
            read.append(text.removeprefix("\ufeff") if number == 0 else text)
            yield read[-1]

    reader = csv.DictReader(lines(), strict=True)
    try:
        names = reader.fieldnames or ()
    except csv.Error as problem:
        yield RawRow(1, "".join(read).rstrip("\r\n"), None, f"the header is not CSV: {problem}")
        return
    seen = set[str]()
    twice = next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
    if twice is not None:
        problem_of = f"two columns are called {reprlib.repr(twice)}: rename one"
        yield RawRow(1, "".join(read).rstrip("\r\n"), None, problem_of)
        return
    while True:
        line = reader.line_num + 1
        read.clear()
        size = 0
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
        yield RawRow(line, raw, None if error else {key: value for key, value in row.items() if value != ""}, error)


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
        if name in RECORD_FIELDS:
            known[name] = value
        else:
            rest[name] = value
    known = record_values(known)
    if unknown == "metadata" and rest:
        metadata = known.get("metadata") or {}
        if not isinstance(metadata, Mapping):
            raise RecordError("must be an object", field="metadata")
        known["metadata"] = {**metadata, **rest}
    elif unknown == "refuse":
        known.update(rest)
    known.setdefault("record_id", row_id(raw))
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
