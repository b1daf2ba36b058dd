"""What is kept of the canaries: their runs, who runs one, and the verdicts that they come to, by instrument."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from assay.records import now
from assay.store._insert import if_new, insert_rows
from assay.store._instruments import InstrumentName, instrument_columns, instrument_key_columns, is_of, key_of
from assay.store._tables import Moment, dumps, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from assay.store._database import Database

#: Whether the product or its judge has changed.
Verdict = Literal["none", "product", "judge", "unknown"]
#: Why a canary ran.
Trigger = Literal["baseline", "schedule", "alarm", "change", "command"]

_KEEP_RUNS = timedelta(days=400)
#: No canary is claimed for so long: a claim beyond it was made by a clock that was wrong.
_MOST_CLAIMED = timedelta(hours=2)
_BODY = (
    "trigger",
    "reason",
    "repeats",
    "scores",
    "passes",
    "items",
    "compared",
    "difference",
    "lower",
    "upper",
    "score_difference",
    "agreement",
    "calls",
    "failures",
)

#: The latest verdict on each instrument; `canary_until`: somebody runs its canary, and has it until then.
drift_verdicts = sa.Table(
    "drift_verdicts",
    metadata,
    *instrument_key_columns(),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since", Moment, nullable=False),
    sa.Column("canary_until", Moment),
    sa.CheckConstraint("verdict IN ('none', 'product', 'judge', 'unknown')", name="verdict"),
)

canary_runs = sa.Table(
    "canary_runs",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    *instrument_columns(),
    sa.Column("started_at", Moment, nullable=False),
    sa.Column("finished_at", Moment, nullable=False, index=True),
    sa.Column("cause", sa.Text, nullable=False),
    #: the one that later runs are compared with is the latest of these
    sa.Column("baseline", sa.Boolean, nullable=False),
    #: JSON, the rest of `CanaryRun`
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("spent_usd", sa.Double, nullable=False),
    sa.CheckConstraint("cause IN ('none', 'product', 'judge', 'unknown')", name="cause"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftVerdict:
    """Whether the product or the judge has changed, as far as is known; stands since `since`."""

    instrument: InstrumentName
    verdict: Verdict
    #: one sentence without its full stop
    reason: str
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRun:
    """One run of the canary of an instrument."""

    run_id: str
    instrument: InstrumentName
    trigger: Trigger
    started_at: datetime
    finished_at: datetime
    #: none: nothing to compare with. product: the judge reads what it read before
    cause: Verdict
    #: one sentence without its full stop
    reason: str
    baseline: bool
    repeats: int
    #: item -> score in [0, 1] of each repeat; items are named by a hash of what is judged
    scores: Mapping[str, Sequence[float]]
    #: item -> 1 passed, 0 not, of each repeat
    passes: Mapping[str, Sequence[float]]
    #: items of the label set, and those compared with the baseline
    items: int
    compared: int
    #: when those were first judged; None where there was nothing to compare with
    baseline_at: datetime | None = None
    #: pass ratio now less then, with its interval of confidence 0.99; None where there is none
    difference: float | None = None
    lower: float | None = None
    upper: float | None = None
    #: the same of the mean score
    score_difference: float | None = None
    #: share of the items on which judge and label agree
    agreement: float | None = None
    calls: int = 0
    failures: int = 0
    spent_usd: float = 0.0


def read_verdicts(database: Database) -> list[DriftVerdict]:
    """See `Store.drift_verdicts`."""
    with database.read() as connection:
        rows = connection.execute(sa.select(drift_verdicts).order_by(*drift_verdicts.primary_key)).all()
    return [
        DriftVerdict(instrument=InstrumentName.of(row), verdict=row.verdict, reason=row.reason, since=row.since)
        for row in rows
    ]


def claim_canary(database: Database, instrument: InstrumentName, seconds: float) -> bool:
    """See `Store.claim_canary`."""
    moment = now()
    until = drift_verdicts.c.canary_until
    free = sa.or_(until.is_(None), until < moment, until > moment + max(_MOST_CLAIMED, timedelta(seconds=seconds)))
    claim = (
        sa.update(drift_verdicts)
        .where(is_of(drift_verdicts, instrument), free)
        .values(canary_until=moment + timedelta(seconds=seconds))
    )

    def work(connection: sa.Connection) -> bool:
        insert_rows(connection, drift_verdicts, [verdict_row(instrument, moment)], if_new)
        return connection.execute(claim).rowcount == 1

    return database.write(work)


def save_canary(database: Database, run: CanaryRun) -> None:
    """See `Store.save_canary`."""
    body = {name: getattr(run, name) for name in _BODY}
    body["baseline_at"] = None if run.baseline_at is None else run.baseline_at.isoformat()
    row = {
        "run_id": run.run_id,
        **run.instrument._asdict(),
        **{name: getattr(run, name) for name in ("started_at", "finished_at", "cause", "baseline", "spent_usd")},
        "body": dumps(body),
    }
    old = sa.delete(canary_runs).where(
        canary_runs.c.finished_at < run.finished_at - _KEEP_RUNS, canary_runs.c.baseline.is_(sa.false())
    )
    free = sa.update(drift_verdicts).where(is_of(drift_verdicts, run.instrument)).values(canary_until=None)

    def work(connection: sa.Connection) -> None:
        insert_rows(connection, canary_runs, [row], if_new)
        connection.execute(free)
        connection.execute(old)

    database.write(work)


def free_canary(database: Database, instrument: InstrumentName) -> None:
    """See `Store.free_canary`."""
    statement = sa.update(drift_verdicts).where(is_of(drift_verdicts, instrument)).values(canary_until=None)
    database.write(lambda connection: connection.execute(statement))


def read_canaries(database: Database, *, baselines: bool, told: bool = False) -> list[CanaryRun]:
    """See `Store.canaries`."""
    order = (canary_runs.c.finished_at.desc(), canary_runs.c.run_id)
    ranked = sa.select(
        canary_runs, sa.func.row_number().over(partition_by=key_of(canary_runs), order_by=order).label("rank")
    )
    if baselines:
        ranked = ranked.where(canary_runs.c.baseline.is_(sa.true()))
    if told:
        ranked = ranked.where(canary_runs.c.cause != "unknown")
    latest = ranked.subquery()
    statement = sa.select(latest).where(latest.c.rank == 1).order_by(latest.c.finished_at)
    with database.read() as connection:
        return [_run(row) for row in connection.execute(statement)]


def read_runs(database: Database, since: datetime) -> list[CanaryRun]:
    """See `Store.canary_runs`."""
    statement = sa.select(canary_runs).where(canary_runs.c.finished_at >= since)
    with database.read() as connection:
        return [_run(row) for row in connection.execute(statement.order_by(canary_runs.c.finished_at))]


def canary_spent(database: Database, since: datetime) -> float:
    """See `Store.canary_spent`."""
    statement = sa.select(sa.func.sum(canary_runs.c.spent_usd)).where(canary_runs.c.finished_at >= since)
    with database.read() as connection:
        return float(connection.execute(statement).scalar() or 0.0)


def accept_canary(connection: sa.Connection, instrument: InstrumentName) -> None:
    """The latest run becomes the one to compare with."""
    own = is_of(canary_runs, instrument)
    order = (canary_runs.c.finished_at.desc(), canary_runs.c.run_id)
    latest = connection.execute(sa.select(canary_runs.c.run_id).where(own).order_by(*order).limit(1)).scalar()
    if latest is not None:
        statement = sa.update(canary_runs).where(canary_runs.c.run_id == latest)
        connection.execute(statement.values(baseline=True, cause="none"))


def _run(row: sa.Row[Any]) -> CanaryRun:
    names = ("run_id", "started_at", "finished_at", "cause", "baseline", "spent_usd")
    body = json.loads(row.body)
    compared_with = body.pop("baseline_at")
    return CanaryRun(
        instrument=InstrumentName.of(row),
        baseline_at=None if compared_with is None else datetime.fromisoformat(compared_with),
        **{name: getattr(row, name) for name in names},
        **body,
    )


def verdict_row(instrument: InstrumentName, moment: datetime) -> dict[str, Any]:
    nothing = {"verdict": "none", "reason": "nothing has changed", "since": moment, "canary_until": None}
    return instrument._asdict() | nothing
