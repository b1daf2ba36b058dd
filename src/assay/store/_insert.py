"""INSERT of many rows at once, as each database does it best."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

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
    parameters: Any = rows
    if connection.dialect.name == "postgresql":
        parameters = {name: [_encoded(table.c[name], row[name]) for row in rows] for name in rows[0]}
    result = connection.execute(_statement(table, tuple(rows[0]), finish, connection.dialect.name), parameters)
    return list(result) if result.returns_rows else []


@lru_cache
def _statement(table: sa.Table, names: tuple[str, ...], finish: Finish, dialect: str) -> sa.Insert:
    if dialect == "sqlite":
        return finish(sqlite_insert(table))
    # One array a column: the same short statement for any number of rows, where a list of VALUES would be parsed anew
    # each time, which costs more than all the rest of a commit.
    columns = [table.c[name] for name in names]
    arrays = sa.func.unnest(
        *(sa.bindparam(column.name, type_=ARRAY(_sent_as(column))) for column in columns)
    ).table_valued(*(sa.column(column.name, _sent_as(column)) for column in columns), name="new").render_derived()
    selected = [
        sa.cast(arrays.c[column.name], column.type) if _is_json(column) else arrays.c[column.name] for column in columns
    ]
    return finish(pg_insert(table).from_select(names, sa.select(*selected)))


def _is_json(column: sa.Column[Any]) -> bool:
    return isinstance(column.type, sa.JSON)


def _sent_as(column: sa.Column[Any]) -> Any:
    return sa.Text() if _is_json(column) else column.type


def _encoded(column: sa.Column[Any], value: Any) -> Any:
    return dumps(value) if value is not None and _is_json(column) else value
