"""Sealing again, with the first key, whatever is stored in plain or was sealed with another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from assay.errors import SettingsError
from assay.store._sealing import sealed_columns, sealing_of
from assay.store._tables import dead_letters, evaluations, payloads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from assay.store._database import Database

#: Rows of one transaction: a dead letter may have ten megabytes.
_TABLES = ((payloads, 100), (evaluations, 300), (dead_letters, 5))


def rekey(database: Database) -> Iterator[tuple[str, int, int]]:
    """See `Store.rekey`."""
    if not sealing_of(database.engine.dialect).on:
        raise SettingsError("ASSAY_PAYLOAD_KEYS is not set: make a key with `assay db new-key`")
    for table, size in _TABLES:
        seen = changed = 0
        after: tuple[Any, ...] | None = None
        while True:
            last, read, sealed = database.write(lambda c, t=table, a=after, n=size: _batch(c, t, a, n))  # type: ignore[misc]
            seen, changed = seen + read, changed + sealed
            yield table.name, seen, changed
            if read < size:
                break
            after = last
    database.empty_log()


def _batch(
    connection: sa.Connection, table: sa.Table, after: tuple[Any, ...] | None, size: int
) -> tuple[tuple[Any, ...] | None, int, int]:
    """The key of the last row, how many rows were read, and how many were changed."""
    sealing = sealing_of(connection.dialect)
    keys = list(table.primary_key)
    columns = sealed_columns(table)
    raw = [
        sa.cast(column, sa.LargeBinary if isinstance(column.type.impl, sa.LargeBinary) else sa.Text).label(  # type: ignore[attr-defined]
            f"raw_{column.name}"
        )
        for column in columns
    ]
    # Locked: a worker that writes the same row waits, and nothing it wrote is overwritten.
    statement = sa.select(*keys, *columns, *raw).order_by(*keys).limit(size).with_for_update()
    if after is not None:
        bound = [sa.literal(value, key.type) for key, value in zip(keys, after, strict=True)]
        statement = statement.where(sa.tuple_(*keys) > sa.tuple_(*bound))
    rows = connection.execute(statement).all()
    changed = 0
    for row in rows:
        values = {
            column: row._mapping[column.name]
            for column in columns
            if (stored := row._mapping[f"raw_{column.name}"]) is not None and not sealing.is_current(_bytes(stored))
        }
        if values:
            key = [column == row._mapping[column.name] for column in keys]
            connection.execute(sa.update(table).where(*key).values(values))
            changed += 1
    return (tuple(rows[-1][: len(keys)]) if rows else None), len(rows), changed


def _bytes(stored: str | bytes) -> bytes:
    # A sealed JSON column holds a string, in quotes.
    return stored if isinstance(stored, bytes) else stored.encode().removeprefix(b'"').removesuffix(b'"')
