"""Retention: deletes what is old, a little at a time."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from assay.records import now
from assay.store._rollups import Additions
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
from assay.windows import HOUR, MINUTE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from assay.store._database import Database

T = TypeVar("T")

#: Sums by the minute are for windows of up to a day; what is older is read by the hour.
MINUTE_DAYS = 2.0

#: Rows, or records with all that is of them, in one transaction: some milliseconds, during which commits wait.
_CHUNK = 500

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
    deleted = dict.fromkeys(("payloads", "records", "evaluations", "rollups", "totals", "dead_letters"), 0)

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
    repeat(_totals, rollup_days)
    return deleted


def _payloads(connection: sa.Connection, before: datetime) -> dict[str, int]:
    old = sa.select(payloads.c.record_id).where(payloads.c.created_at < before).limit(_CHUNK)
    return {"payloads": _delete(connection, payloads, payloads.c.record_id.in_(old.scalar_subquery()))}


def _records(connection: sa.Connection, before: datetime) -> dict[str, int]:
    old = sa.select(records.c.record_id).where(records.c.created_at < before).limit(_CHUNK)
    ids = connection.execute(old).scalars().all()
    # The records last: they are what the others refer to. An evaluation that comes in between goes with its record.
    return {
        table.name: _delete(connection, table, table.c.record_id.in_(ids)) for table in (evaluations, payloads, records)
    }


def _dead_letters(connection: sa.Connection, before: datetime) -> dict[str, int]:
    old = sa.select(dead_letters.c.dead_id).where(dead_letters.c.created_at < before).limit(_CHUNK)
    statement = (
        sa.delete(dead_letters)
        .where(dead_letters.c.dead_id.in_(old.scalar_subquery()))
        .returning(dead_letters.c.reason, dead_letters.c.replayed_at)
    )
    gone = connection.execute(statement).all()
    additions = Additions(before.timestamp())
    for reason, replayed_at in gone:
        additions.count("dead_kept", reason, 0 if replayed_at else -1)
    additions.write(connection)
    return {"dead_letters": len(gone)}


def _minutes(connection: sa.Connection, before: datetime) -> dict[str, int]:
    return _rollups(connection, MINUTE, before)


def _hours(connection: sa.Connection, before: datetime) -> dict[str, int]:
    return _rollups(connection, HOUR, before)


def _rollups(connection: sa.Connection, resolution: int, before: datetime) -> dict[str, int]:
    key = sa.tuple_(*rollups.primary_key)
    old = (
        sa.select(*rollups.primary_key)
        .where(rollups.c.resolution_seconds == resolution, rollups.c.start < int(before.timestamp()) - resolution)
        .limit(_CHUNK)
    )
    return {"rollups": _delete(connection, rollups, key.in_(old))}


def _totals(connection: sa.Connection, before: datetime) -> dict[str, int]:
    """Totals of what is out of use, such as an old revision of a rubric; they would be exported for ever."""
    idle = sa.select(totals.c.series_id, totals.c.instrument_id).where(totals.c.updated_at < before.timestamp())
    statement = (
        sa.delete(totals)
        .where(
            sa.tuple_(totals.c.series_id, totals.c.instrument_id).in_(idle.limit(_CHUNK)),
            totals.c.updated_at < before.timestamp(),
        )
        .returning(totals.c.series_id, totals.c.instrument_id)
    )
    gone = [tuple(row) for row in connection.execute(statement)]
    for table in (outcome_counts, exemplars):
        _delete(connection, table, sa.tuple_(table.c.series_id, table.c.instrument_id).in_(gone))
    return {"totals": len(gone)}


def _delete(connection: sa.Connection, table: sa.Table, condition: sa.ColumnElement[bool]) -> int:
    return connection.execute(sa.delete(table).where(condition)).rowcount
