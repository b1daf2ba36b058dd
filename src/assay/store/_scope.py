"""Some apps only: every statement of a store that is confined to them sees, and changes, their rows alone.

A table in a statement is replaced by the rows of it that are in scope, wherever it stands. No reader has a condition of
its own to forget, and a table that nobody has placed here is a mistake that a test finds. It is a filter against
oversight: whoever has the database's password is not held by it; see `deploy/postgresql/tenants.sql` for what is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.sql import visitors

from assay.store._tables import metadata, records, series, text

if TYPE_CHECKING:
    from collections.abc import Collection

#: Where a row says whose it is: in a column of its own, through its record, or through its label set.
BY_APP = frozenset({"records", "series", "input_bins", "dead_letters"})
BY_RECORD = frozenset({"payloads", "evaluations", "outbox", "label_requests"})
BY_SERIES = frozenset(
    {
        *("rollups", "totals", "outcome_counts", "exemplars", "signal_rollups", "cost_rollups", "defect_counts"),
        "change_streams",
    }
)
#: Of the whole deployment: what measured, how well, and how far the watch has come. They hold nothing of an app.
SHARED = frozenset(
    {
        *("instruments", "calibrations", "rubric_versions", "signal_versions", "schema_support"),
        *("change_watch", "canary_runs", "drift_verdicts", "attack_runs"),
    }
)
#: With a condition of their own, see `Scope`.
OTHERS = frozenset({"counters", "change_events"})


class Scope:
    """The rows of some apps, at least one."""

    #: what an UPDATE or a DELETE is held to
    _conditions: dict[str, sa.ColumnElement[bool]]
    #: what a SELECT reads in place of each table
    _rows: dict[str, sa.Subquery]

    def __init__(self, apps: Collection[str]) -> None:
        self.apps = frozenset(apps)
        # Label sets hold the name cut to their length: see `_labels`.
        names = sorted({text(app) for app in apps} | {text(app)[:100] for app in apps})
        mine = sa.select(records.c.record_id).where(records.c.app.in_(names))
        sets = sa.select(series.c.series_id).where(series.c.app.in_(names))
        self._conditions, self._rows = {}, {}
        for table in metadata.tables.values():
            if table.name in BY_APP:
                condition: sa.ColumnElement[bool] = table.c.app.in_(names)
            elif table.name in BY_RECORD:
                condition = table.c.record_id.in_(mine)
            elif table.name in BY_SERIES:
                condition = table.c.series_id.in_(sets)
            elif table.name == "counters":
                # The others are of all apps together.
                condition = sa.and_(table.c.name == "received", table.c.label.in_(names))
            elif table.name == "change_events":
                # Those of a judge or a rubric are of no app: to be seen, not to be settled by one of many.
                self._conditions[table.name] = table.c.app.in_(names)
                self._rows[table.name] = sa.select(table).where(table.c.app.in_([*names, ""])).subquery(table.name)
                continue
            else:
                continue
            self._conditions[table.name] = condition
            self._rows[table.name] = sa.select(table).where(condition).subquery(table.name)

    def confine(self, statement: Any) -> Any:
        """The statement over the rows in scope; what it inserts it inserts as it is."""
        if isinstance(statement, sa.Update | sa.Delete):
            condition = self._conditions.get(str(statement.table.description))
            return statement if condition is None else statement.where(condition)
        if isinstance(statement, sa.Select | sa.CompoundSelect):
            return visitors.replacement_traverse(statement, {}, self._replace)
        return statement

    def _replace(self, element: Any, **_: Any) -> Any:
        if isinstance(element, sa.Table):
            return self._rows.get(element.name)
        if isinstance(element, sa.Column) and isinstance(element.table, sa.Table):
            rows = self._rows.get(element.table.name)
            return None if rows is None else rows.c[element.key]
        return None


def confine(engine: sa.Engine) -> None:
    """Confine what is executed on connections that have a scope among their options."""

    def before(connection: sa.Connection, statement: Any, many: Any, parameters: Any, _: Any) -> tuple[Any, Any, Any]:
        scope: Scope | None = connection.get_execution_options().get("assay_scope")
        return (statement if scope is None else scope.confine(statement)), many, parameters

    event.listen(engine, "before_execute", before, retval=True)
