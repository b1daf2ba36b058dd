"""INSERT of many rows at once, as each database does it best."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from assay.store._sealing import sealed_columns, stored_value
from assay.store._tables import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    #: Adds ON CONFLICT and RETURNING to an INSERT. The two databases' have the same methods, but no common type.
    Finish = Callable[[Any], sa.Insert]

#: Rows of one statement of SQLite, which keeps those that it has read: each number of rows is another one.
_ROWS = 100


def insert_rows(
    connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]], finish: Finish
) -> list[tuple[Any, ...]]:
    """Insert `rows`, all with the same columns, in their order. Returns what the statement returns.

    `finish` is a module-level function: the statement is built once for each.
    """
    if not rows:
        return []
    names = tuple(rows[0])
    if connection.dialect.name == "sqlite":
        values = [tuple(row.values()) for row in rows] if len(names) == 1 else list(map(itemgetter(*names), rows))
        return _into_sqlite(connection, table, names, values, finish)
    # What is left out is NULL.
    stored = [{name: value for name in names if (value := row[name]) is not None} for row in rows]
    return _into_postgresql(connection, table, names, stored, finish)


def insert_values(
    connection: sa.Connection, table: sa.Table, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]], finish: Finish
) -> list[tuple[Any, ...]]:
    """The same of rows that are values of the columns `names`, in that order."""
    if not rows:
        return []
    if connection.dialect.name == "sqlite":
        return _into_sqlite(connection, table, names, rows, finish)
    return _into_postgresql(connection, table, names, [dict(zip(names, row, strict=True)) for row in rows], finish)


def _into_postgresql(
    connection: sa.Connection, table: sa.Table, names: tuple[str, ...], stored: list[dict[str, Any]], finish: Finish
) -> list[tuple[Any, ...]]:
    for column in sealed_columns(table):
        for row in stored:
            if column.name in row:
                row[column.name] = stored_value(column, row[column.name], connection.dialect)
    result = connection.execute(_of_json(table, names, finish), {"rows": dumps(stored)})
    return [tuple(row) for row in result] if result.returns_rows else []


def if_new(insert: Any) -> sa.Insert:
    """For `insert_rows`: what is there already stays as it is; the keys of the others are returned."""
    new: sa.Insert = insert.on_conflict_do_nothing().returning(*insert.table.primary_key)
    return new


@lru_cache
def _of_json(table: sa.Table, names: tuple[str, ...], finish: Finish) -> sa.Insert:
    # All rows in one parameter: the same short statement for any number of them. A list of VALUES is parsed anew each
    # time, by the driver and by the server, and that costs more than all the rest of a commit.
    rows = (
        sa.func.json_to_recordset(sa.cast(sa.bindparam("rows", type_=sa.Text), sa.JSON))
        .table_valued(*(sa.column(name, table.c[name].type) for name in names), name="new")
        .render_derived(with_types=True)
    )
    return finish(pg_insert(table).from_select(names, sa.select(*(rows.c[name] for name in names))))


class _Text(NamedTuple):
    """A statement in SQLite's words, about the values of one row."""

    before: str
    row: str
    after: str
    #: of each value of a row, which column it is of
    order: tuple[str, ...]
    #: parameters that come after those of the rows
    constants: tuple[Any, ...]
    returned: tuple[sa.ColumnElement[Any], ...]


@lru_cache
def _sqlite_text(table: sa.Table, names: tuple[str, ...], finish: Finish) -> _Text:
    statement = finish(sqlite_insert(table))
    compiled = statement.compile(dialect=sqlite.dialect(paramstyle="qmark"), column_keys=list(names))
    order = tuple(compiled.positiontup or ())
    row = f"({', '.join('?' * len(names))})"
    before, _, after = str(compiled).partition(row)
    constants = tuple(compiled.params[name] for name in order[len(names) :])
    return _Text(before, row, after, order[: len(names)], constants, tuple(statement.exported_columns))


def _into_sqlite(
    connection: sa.Connection, table: sa.Table, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]], finish: Finish
) -> list[tuple[Any, ...]]:
    """By columns and in statements of our own: what SQLAlchemy does to each value takes longer than SQLite does."""
    text, dialect = _sqlite_text(table, names, finish), connection.dialect
    by_name = dict(zip(names, zip(*rows, strict=True), strict=True))
    try:
        stored = list(zip(*(_stored(table.c[name], by_name[name], dialect) for name in text.order), strict=True))
    except Exception as error:
        # As SQLAlchemy has it: what a column does not take.
        raise sa.exc.StatementError(str(error), f"INSERT INTO {table.name}", None, error) from error
    found: list[Any] = []
    for start in range(0, len(stored), _ROWS):
        some = stored[start : start + _ROWS]
        words = text.before + ", ".join([text.row] * len(some)) + text.after
        result = connection.exec_driver_sql(words, (*chain.from_iterable(some), *text.constants))
        if text.returned:
            found += result.all()
    if not found:
        return []
    columns = zip(text.returned, zip(*found, strict=True), strict=True)
    return list(zip(*(_read(column, values, dialect) for column, values in columns), strict=True))


def _stored(column: sa.Column[Any], values: Sequence[Any], dialect: sa.Dialect) -> Sequence[Any]:
    """What SQLite is given for these."""
    process = column.type.dialect_impl(dialect).bind_processor(dialect)
    if process is None:
        return values
    found, value, stored = [], None, process(None)
    for given in values:
        # Moments, above all, are of many rows.
        if given is not value:
            value, stored = given, process(given)
        found.append(stored)
    return found


def _read(column: sa.ColumnElement[Any], values: Sequence[Any], dialect: sa.Dialect) -> Sequence[Any]:
    process = column.type.dialect_impl(dialect).result_processor(dialect, None)
    return values if process is None else list(map(process, values))
