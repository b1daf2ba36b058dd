"""What a weekly report reads beside the rollups: groups of records, what judging cost, and who sends the report.

Groups are of any field of a record, so they are added up from the evaluations themselves: seconds for a week of many
records, for once a week.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from assay.store._insert import if_new, insert_rows
from assay.store._tables import counters, evaluations, instruments, records, series
from assay.windows import Sums

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from assay.store._database import Database

#: Fields of a record that are columns; what else is asked for is a key of its cohort.
_COLUMNS = {"route": records.c.route, "model": records.c.model, "prompt_version": records.c.prompt_version}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Sums over the scored records of one app that have one value in one field, by what measured."""

    app: str
    rubric: str
    rubric_version: str
    judge: str
    rubric_hash: str
    judge_fingerprint: str
    #: the field and its value; both "" for all records of the app
    field: str
    value: str
    sums: Sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What judging the interactions of some time took, of one app by one judge."""

    app: str
    judge: str
    evaluations: int
    #: evaluations whose price is known
    priced: int
    cost_usd: float
    prompt_tokens: int
    completion_tokens: int


def read_groups(
    database: Database, start: datetime, end: datetime, fields: Iterable[str], *, least: int
) -> list[Group]:
    """Groups of at least `least` records by each of `fields`, and the whole of each app under the field ""."""
    with database.read() as connection:
        return [
            Group(
                app=row.app,
                rubric=row.rubric,
                rubric_version=row.rubric_version,
                judge=row.judge,
                rubric_hash=row.rubric_hash,
                judge_fingerprint=row.judge_fingerprint,
                field=field,
                value=row.part,
                sums=Sums.from_row(row),
            )
            for field in ("", *fields)
            for row in connection.execute(_grouped(field, start, end, least))
        ]


def _grouped(field: str, start: datetime, end: datetime, least: int) -> sa.Select[Any]:
    part: Any = sa.literal("")
    keys: list[Any] = [records.c.app, evaluations.c.instrument_id]
    if field:
        column = _COLUMNS.get(field)
        part = records.c.cohort[field].as_string() if column is None else column
        keys.append(part)
    w, y = evaluations.c.weight, evaluations.c.value
    p = sa.case((evaluations.c.passed, 1.0), else_=0.0)
    inner = (
        sa.select(
            records.c.app,
            part.label("part"),
            evaluations.c.instrument_id,
            sa.func.count().label("n"),
            sa.func.sum(w).label("sum_w"),
            sa.func.sum(w * w).label("sum_w2"),
            sa.func.sum(w * y).label("sum_wy"),
            sa.func.sum(w * w * y).label("sum_w2y"),
            sa.func.sum(w * w * y * y).label("sum_w2y2"),
            sa.cast(sa.func.sum(p), sa.BigInteger).label("passes"),
            sa.func.sum(w * p).label("sum_wp"),
            sa.func.sum(w * w * p).label("sum_w2p"),
        )
        .join(records, records.c.record_id == evaluations.c.record_id)
        .where(evaluations.c.timestamp >= start, evaluations.c.timestamp < end, evaluations.c.outcome == "scored")
        .group_by(*keys)
        .having(sa.func.count() >= least)
        .subquery()
    )
    names = ("rubric", "rubric_version", "judge", "rubric_hash", "judge_fingerprint")
    return (
        sa.select(inner, *(instruments.c[name] for name in names))
        .join(instruments, instruments.c.instrument_id == inner.c.instrument_id)
        .where(inner.c.part.is_not(None))
        .order_by(inner.c.app, instruments.c.rubric, inner.c.part, inner.c.instrument_id)
    )


def read_spending(database: Database, start: datetime, end: datetime) -> list[Spending]:
    """What judging the interactions of [start, end) took, by app and judge."""
    e = evaluations.c
    statement = (
        sa.select(
            series.c.app,
            instruments.c.judge,
            sa.func.count().label("evaluations"),
            sa.func.count(e.cost_usd).label("priced"),
            sa.func.coalesce(sa.func.sum(e.cost_usd), 0.0).label("cost_usd"),
            # PostgreSQL adds up integers as numeric: cast back.
            sa.cast(sa.func.coalesce(sa.func.sum(e.prompt_tokens), 0), sa.BigInteger).label("prompt_tokens"),
            sa.cast(sa.func.coalesce(sa.func.sum(e.completion_tokens), 0), sa.BigInteger).label("completion_tokens"),
        )
        .select_from(evaluations)
        .join(series, series.c.series_id == e.series_id)
        .join(instruments, instruments.c.instrument_id == e.instrument_id)
        .where(e.timestamp >= start, e.timestamp < end)
        # Of what nobody was asked for, since it does not apply or to spend less, no price is missing.
        .where(sa.or_(e.outcome != "not_applicable", e.cost_usd.is_not(None), e.prompt_tokens.is_not(None)))
        .group_by(series.c.app, instruments.c.judge)
        .order_by(series.c.app, instruments.c.judge)
    )
    with database.read() as connection:
        return [Spending(**row) for row in connection.execute(statement).mappings()]


# Who sends the report: rows of `counters`, whose numbers are epoch seconds here.

_SENT, _LEASE = "report_sent", "report_lease"


def claim_report(database: Database, due: int, *, now: float, lease_seconds: float) -> bool:
    """Take it on to send the report that was due then, unless it was sent or another worker is at it."""
    sent = sa.select(counters.c.n).where(counters.c.name == _SENT, counters.c.label == "")
    with database.read() as connection:
        # Asked for often, and nearly always sent already: then nothing is written.
        if (connection.execute(sent).scalar() or 0) >= due:
            return False

    def work(connection: sa.Connection) -> bool:
        rows = [{"name": name, "label": "", "n": 0} for name in (_LEASE, _SENT)]
        insert_rows(connection, counters, rows, if_new)
        claimed = connection.execute(
            sa.update(counters)
            .where(
                counters.c.name == _LEASE,
                counters.c.label == "",
                counters.c.n <= int(now),
                sent.scalar_subquery() < due,
            )
            .values(n=int(now + lease_seconds))
        )
        return claimed.rowcount == 1

    return database.write(work)


def settle_report(database: Database, due: int) -> None:
    """Note that the report that was due then was sent.

    The lease is left to end by itself: whoever waits for it must not see it free before this is seen.
    """

    def work(connection: sa.Connection) -> None:
        of = (counters.c.name == _SENT, counters.c.label == "")
        connection.execute(sa.update(counters).where(*of).values(n=due))

    database.write(work)
