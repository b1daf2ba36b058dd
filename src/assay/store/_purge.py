"""Retention: deletes what is old, a little at a time."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from assay.records import now
from assay.store._defects import defect_counts
from assay.store._outbox import forget_records, outbox
from assay.store._rollups import Additions
from assay.store._signals import cost_rollups, input_bins, signal_rollups, signal_versions
from assay.store._tables import (
    dead_letters,
    evaluations,
    exemplars,
    outcome_counts,
    payloads,
    records,
    rollups,
    totals,
)
from assay.windows import DAY, HOUR, MINUTE

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from assay.store._database import Database

T = TypeVar("T")

#: What a judge, or the server that it runs on, said of a record: it quotes the record.
VERDICT_TEXTS = ("explanation", "details", "message")

#: Sums by the minute are for windows of up to a day; what is older is read by the hour.
MINUTE_DAYS = 2.0

#: Rows, or records with all that is of them, in one transaction: some milliseconds, during which commits wait.
_CHUNK = 500

#: Keys in one question: a database takes only so many parameters (PostgreSQL 65,535, SQLite 32,766).
LOOKUP_CHUNK = 5_000

#: Between two chunks; others write meanwhile.
_PAUSE_SECONDS = 0.005


def chunks(items: Sequence[T], size: int = _CHUNK) -> Iterator[Sequence[T]]:
    """The items, at most `size` at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def purge(
    database: Database, *, payload_days: float, score_days: float, rollup_days: float, dead_days: float
) -> dict[str, int]:
    """See `Store.purge`."""
    moment = now()
    sums = ("rollups", "signal_rollups", "cost_rollups", "input_bins", "totals")
    deleted = dict.fromkeys(("payloads", "explanations", "records", "evaluations", *sums, "dead_letters"), 0)

    def repeat(delete: Callable[[sa.Connection, datetime], dict[str, int]], days: float) -> None:
        before = moment - timedelta(days=days)
        while any((gone := database.write(lambda connection: delete(connection, before))).values()):
            for name, n in gone.items():
                deleted[name] += n
            time.sleep(_PAUSE_SECONDS)

    repeat(_payloads, payload_days)
    repeat(_records, score_days)
    repeat(_dead_letters, dead_days)
    repeat(_minutes, min(rollup_days, MINUTE_DAYS))
    repeat(_hours, rollup_days)
    repeat(_input_hours, min(rollup_days, MINUTE_DAYS))
    repeat(_input_days, rollup_days)
    repeat(_totals, rollup_days)
    if any(deleted.values()):
        database.empty_log()
    return deleted


def _payloads(connection: sa.Connection, before: datetime) -> dict[str, int]:
    ids = _old(connection, payloads, payloads.c.created_at < before)
    return {
        "explanations": forget_verdict_texts(connection, [key[0] for key in ids]),
        "payloads": _delete(connection, payloads, ids),
    }


def forget_verdict_texts(connection: sa.Connection, record_ids: Sequence[str]) -> int:
    """Clear what was said of these records; verdicts and all that is counted stay. Returns evaluations cleared."""
    if not record_ids:
        return 0
    said = sa.or_(*(evaluations.c[name].is_not(sa.null()) for name in VERDICT_TEXTS))
    cleared = sa.update(evaluations).where(evaluations.c.record_id.in_(record_ids), said)
    # A sink that refuses an annotation may quote it.
    answered = sa.update(outbox).where(outbox.c.record_id.in_(record_ids), outbox.c.reason.is_not(None))
    connection.execute(answered.values(reason=None))
    return connection.execute(cleared.values(dict.fromkeys(VERDICT_TEXTS, sa.null()))).rowcount


def without_texts(
    connection: sa.Connection, rows: Mapping[tuple[str, uuid.UUID], dict[str, Any]], new_records: set[str]
) -> Mapping[tuple[str, uuid.UUID], dict[str, Any]]:
    """Rows of evaluations, without texts where those of the record were deleted already: they do not come back.

    The texts that are there stay until the transaction ends.
    """
    again = sorted({record_id for record_id, _ in rows} - new_records)
    kept: set[str] = set()
    for chunk in chunks(again, LOOKUP_CHUNK):
        there = sa.select(payloads.c.record_id).where(payloads.c.record_id.in_(chunk)).order_by(payloads.c.record_id)
        kept.update(connection.execute(there.with_for_update(read=True)).scalars())
    gone = set(again) - kept
    nothing = dict.fromkeys(VERDICT_TEXTS)
    return {key: row | nothing if key[0] in gone else row for key, row in rows.items()} if gone else rows


def _records(connection: sa.Connection, before: datetime) -> dict[str, int]:
    ids = _old(connection, records, records.c.created_at < before)
    additions = Additions(before.timestamp())
    forget_records(connection, additions, [key[0] for key in ids])
    additions.write(connection)
    # The records last: they are what the others refer to.
    return {table.name: _delete(connection, table, ids) for table in (evaluations, payloads, records)}


def _dead_letters(connection: sa.Connection, before: datetime) -> dict[str, int]:
    ids = _old(connection, dead_letters, dead_letters.c.created_at < before)
    additions = Additions(before.timestamp())
    waiting = sa.select(dead_letters.c.reason).where(_has_key(dead_letters, ids), dead_letters.c.replayed_at.is_(None))
    for reason in connection.execute(waiting).scalars():
        additions.count("dead_kept", reason, -1)
    gone = _delete(connection, dead_letters, ids)
    additions.write(connection)
    return {"dead_letters": gone}


def _minutes(connection: sa.Connection, before: datetime) -> dict[str, int]:
    return _rollups(connection, MINUTE, before)


def _hours(connection: sa.Connection, before: datetime) -> dict[str, int]:
    return _rollups(connection, HOUR, before)


def _rollups(connection: sa.Connection, resolution: int, before: datetime) -> dict[str, int]:
    # First, so that nobody remembers what is being deleted.
    _ended(connection, signal_versions, resolution, before)
    return {
        table.name: _ended(connection, table, resolution, before) for table in (rollups, signal_rollups, cost_rollups)
    }


def _input_hours(connection: sa.Connection, before: datetime) -> dict[str, int]:
    return {input_bins.name: _ended(connection, input_bins, HOUR, before)}


def _input_days(connection: sa.Connection, before: datetime) -> dict[str, int]:
    return {input_bins.name: _ended(connection, input_bins, DAY, before)}


def _ended(connection: sa.Connection, table: sa.Table, resolution: int, before: datetime) -> int:
    ended = table.c.start < int(before.timestamp()) - resolution
    keys = _old(connection, table, sa.and_(table.c.resolution_seconds == resolution, ended))
    return _delete(connection, table, keys)


def _totals(connection: sa.Connection, before: datetime) -> dict[str, int]:
    """Totals of what is out of use, such as an old revision of a rubric; they would be exported for ever."""
    keys = _old(connection, totals, totals.c.updated_at < before.timestamp())
    for table in (outcome_counts, exemplars, defect_counts):
        _delete(connection, table, keys)
    return {"totals": _delete(connection, totals, keys)}


def _old(connection: sa.Connection, table: sa.Table, condition: sa.ColumnElement[bool]) -> list[tuple[Any, ...]]:
    """Keys of some rows that go, locked. Those that a commit has in hand are left for the next time.

    So a purge never waits for a commit while commits wait for it.
    """
    rows = sa.select(*table.primary_key).where(condition).limit(_CHUNK).with_for_update(skip_locked=True)
    return [tuple(row) for row in connection.execute(rows)]


def _has_key(table: sa.Table, keys: Sequence[tuple[Any, ...]]) -> sa.ColumnElement[bool]:
    """Rows whose key begins with one of `keys`."""
    columns = list(table.primary_key)[: len(keys[0])] if keys else list(table.primary_key)
    if len(columns) == 1:
        return columns[0].in_([key[0] for key in keys])
    return sa.tuple_(*columns).in_(keys)


def _delete(connection: sa.Connection, table: sa.Table, keys: Sequence[tuple[Any, ...]]) -> int:
    return connection.execute(sa.delete(table).where(_has_key(table, keys))).rowcount if keys else 0
