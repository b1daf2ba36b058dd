"""Records whose texts have signs of a prompt injection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from assay.store._tables import records

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A stored record whose texts speak to their judge, or hide something, as prompt injections do."""

    record_id: str
    app: str
    timestamp: datetime
    trace_id: str | None
    #: `assay.injection.Sign`, at least one
    signs: tuple[str, ...]


def signs_in(stored: str | None) -> tuple[str, ...] | None:
    """Signs as they are stored with a record; None where nobody looked."""
    return None if stored is None else tuple(sign for sign in stored.split(",") if sign)


def read_suspects(connection: sa.Connection, since: datetime, limit: int) -> list[Suspect]:
    """See `Store.suspects`."""
    names = ("record_id", "app", "timestamp", "trace_id")
    statement = (
        sa.select(*(records.c[name] for name in names), records.c.injection_signs)
        .where(records.c.created_at >= since, records.c.injection_signs != "")
        .order_by(records.c.created_at.desc(), records.c.record_id)
        .limit(limit)
    )
    return [
        Suspect(**{name: getattr(row, name) for name in names}, signs=signs_in(row.injection_signs) or ())
        for row in connection.execute(statement)
    ]
