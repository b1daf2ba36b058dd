"""INSERT of many rows at once, as each database does it best."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from assay.store._sealing import sealed_columns, stored_value
from assay.store._tables import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    #: Adds ON CONFLICT and RETURNING to an INSERT. The two databases' have the same methods, but no common type.
    Finish = Callable[[Any], sa.Insert]


def insert_rows(
    connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]], finish: Finish
) -> list[sa.Row[Any]]:
    """Insert `rows`, all with the same columns, in their order. Returns what the statement returns.

    `finish` is a module-level function: the statement is built once for each.
    """
    if not rows:
        return []
    postgresql = connection.dialect.name == "postgresql"
    statement = _statement(table, tuple(rows[0]), finish, postgresql=postgresql)
    if not postgresql:
        result = connection.execute(statement, rows)
    else:
        sealed = [column for column in sealed_columns(table) if column.name in rows[0]]
        stored = [
            row | {column.name: stored_value(column, row[column.name], connection.dialect) for column in sealed}
            for row in rows
        ]
        result = connection.execute(statement, {"rows": dumps(stored)})
    return list(result) if result.returns_rows else []


def if_new(insert: Any) -> sa.Insert:
    """For `insert_rows`: what is there already stays as it is; the keys of the others are returned."""
    new: sa.Insert = insert.on_conflict_do_nothing().returning(*insert.table.primary_key)
    return new


@lru_cache
def _statement(table: sa.Table, names: tuple[str, ...], finish: Finish, *, postgresql: bool) -> sa.Insert:
    if not postgresql:
        return finish(sqlite_insert(table))
    # All rows in one parameter: the same short statement for any number of them. A list of VALUES is parsed anew each
    # time, by the driver and by the server, and that costs more than all the rest of a commit.
    rows = (
        sa.func.json_to_recordset(sa.cast(sa.bindparam("rows", type_=sa.Text), sa.JSON))
        .table_valued(*(sa.column(name, table.c[name].type) for name in names), name="new")
        .render_derived(with_types=True)
    )
    return finish(pg_insert(table).from_select(names, sa.select(*(rows.c[name] for name in names))))
