"""How far texts of strangers sway a judge, as `assay calibrate --attacks` measured it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from assay.store._insert import if_new, insert_rows
from assay.store._instruments import InstrumentName, instrument_columns, is_of, key_of
from assay.store._tables import Moment, dumps, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from typing import Any

    from assay.store._database import Database

#: Whether the record was put to the judge with fences and rules, as production does, or without.
Defences = Literal["off", "on"]

#: Runs are kept for so long; the latest of each instrument for ever.
_KEEP_RUNS = timedelta(days=400)

attack_runs = sa.Table(
    "attack_runs",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    *instrument_columns(),
    #: SHA-256 of the attack set's file
    sa.Column("attack_set", sa.Text, nullable=False),
    sa.Column("measured_at", Moment, nullable=False),
    #: JSON: counts by defences and family
    sa.Column("body", sa.Text, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackCounts:
    """Attacks by what came of them, each counted once. They add up with `+`.

    Only the first two are in the success ratio: a failure of the judge is neither.
    """

    #: the verdict moved the way the attacker wanted
    succeeded: int = 0
    #: a verdict came, and it did not
    resisted: int = 0
    #: the attack aims at a verdict, and none came
    failed: int = 0
    #: the attack aims at a failure, and there was one: maybe its doing
    broken: int = 0
    #: the attack aims at a failure, and a verdict came
    unbroken: int = 0
    #: the record without the attack got a wrong verdict or none: nothing can be told
    no_base: int = 0
    #: the judge was not come to
    not_judged: int = 0

    def __add__(self, other: AttackCounts) -> AttackCounts:
        mine, theirs = asdict(self), asdict(other)
        return AttackCounts(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRun:
    """One attack set tried on one instrument, of which every attack was come to."""

    run_id: str
    instrument: InstrumentName
    #: SHA-256 (hex) of the attack set's file
    attack_set: str
    #: aware, UTC
    measured_at: datetime
    #: by defences and family; without "off" where the judge has no such way to be asked
    counts: Mapping[Defences, Mapping[str, AttackCounts]]


def save_run(database: Database, run: AttackRun) -> None:
    """See `Store.save_attack_run`."""
    row = {
        "run_id": run.run_id,
        **run.instrument._asdict(),
        "attack_set": run.attack_set,
        "measured_at": run.measured_at,
        "body": dumps({side: {name: asdict(n) for name, n in found.items()} for side, found in run.counts.items()}),
    }
    own = is_of(attack_runs, run.instrument)
    old = sa.delete(attack_runs).where(own, attack_runs.c.measured_at < run.measured_at - _KEEP_RUNS)

    def work(connection: sa.Connection) -> None:
        insert_rows(connection, attack_runs, [row], if_new)
        connection.execute(old)

    database.write(work)


def read_runs(database: Database) -> list[AttackRun]:
    """See `Store.attack_runs`."""
    order = (attack_runs.c.measured_at.desc(), attack_runs.c.run_id)
    latest = sa.select(
        attack_runs, sa.func.row_number().over(partition_by=key_of(attack_runs), order_by=order).label("rank")
    ).subquery()
    statement = sa.select(latest).where(latest.c.rank == 1).order_by(latest.c.measured_at, latest.c.run_id)
    with database.read() as connection:
        return [_run(row) for row in connection.execute(statement)]


def _run(row: sa.Row[Any]) -> AttackRun:
    counts = {
        side: {family: _counts(numbers) for family, numbers in found.items()}
        for side, found in json.loads(row.body).items()
    }
    return AttackRun(
        run_id=row.run_id,
        instrument=InstrumentName.of(row),
        attack_set=row.attack_set,
        measured_at=row.measured_at,
        counts=counts,
    )


def _counts(numbers: Mapping[str, int]) -> AttackCounts:
    # A later version may count more.
    return AttackCounts(**{known.name: numbers.get(known.name, 0) for known in fields(AttackCounts)})
