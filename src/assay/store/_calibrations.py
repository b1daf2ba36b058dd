"""Calibrations and rubric versions: what the gate decides by, and what it decided."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from assay.records import now
from assay.store._insert import insert_rows
from assay.store._purge import chunks
from assay.store._rows import RubricVersion, StoredCalibration
from assay.store._tables import calibrations, instruments, rubric_versions, text, totals

if TYPE_CHECKING:
    from collections.abc import Collection

    from assay.store._database import Database

#: One process at a time changes which version of a rubric is active (PostgreSQL; SQLite has one writer anyway).
_LOCK = 0x617373_6179_03


def save_calibration(database: Database, calibration: StoredCalibration) -> None:
    """See `Store.save_calibration`."""
    row = asdict(calibration) | {"saved_at": now(), "body": _storable(calibration.body)}
    database.write(lambda connection: insert_rows(connection, calibrations, [row], _or_saved_again))


def _or_saved_again(insert: Any) -> sa.Insert:
    # The same labels and verdicts once more: the latest again, and as stale as it was.
    kept: sa.Insert = insert.on_conflict_do_update(
        index_elements=[calibrations.c.calibration_id], set_={"saved_at": insert.excluded.saved_at}
    )
    return kept


def _storable(body: str) -> str:
    """The same JSON; with escapes, where it holds characters that a database does not."""
    return body if text(body) == body else json.dumps(json.loads(body))


def read_calibrations(database: Database, *, rubric: str | None, bodies: bool) -> list[StoredCalibration]:
    """See `Store.calibrations`."""
    order = (calibrations.c.saved_at.desc(), calibrations.c.created_at.desc(), calibrations.c.calibration_id)
    rank = sa.func.row_number().over(
        partition_by=(calibrations.c.rubric_hash, calibrations.c.judge_fingerprint), order_by=order
    )
    columns = [c for c in calibrations.c if c.name != "saved_at" and (bodies or c.name != "body")]
    ranked = sa.select(*columns, rank.label("rank"))
    if rubric is not None:
        ranked = ranked.where(calibrations.c.rubric == rubric)
    latest = ranked.subquery()
    key = (latest.c.rubric, latest.c.rubric_version, latest.c.rubric_hash, latest.c.judge_fingerprint)
    statement = sa.select(*(latest.c[c.name] for c in columns)).where(latest.c.rank == 1).order_by(*key)
    with database.read() as connection:
        return [StoredCalibration(**{"body": "", **row}) for row in connection.execute(statement).mappings()]


def read_bodies(database: Database, calibration_ids: Collection[str]) -> dict[str, str]:
    """See `Store.calibration_bodies`."""
    found: dict[str, str] = {}
    with database.read() as connection:
        for chunk in chunks(sorted(set(calibration_ids))):
            statement = sa.select(calibrations.c.calibration_id, calibrations.c.body).where(
                calibrations.c.calibration_id.in_(chunk)
            )
            found.update((key, body) for key, body in connection.execute(statement))
    return found


def mark_stale(database: Database, calibration_id: str, reason: str) -> bool:
    """See `Store.mark_calibration_stale`."""
    statement = (
        sa.update(calibrations)
        .where(calibrations.c.calibration_id == calibration_id, calibrations.c.state == "active")
        .values(state="stale", reason=text(reason))
    )
    return database.write(lambda connection: connection.execute(statement).rowcount > 0)


def read_versions(database: Database, *, rubric: str | None, retired: bool) -> list[RubricVersion]:
    """See `Store.rubric_versions`."""
    table = rubric_versions
    statement = sa.select(table).order_by(table.c.rubric, table.c.since.desc(), table.c.rubric_hash)
    if not retired:
        statement = statement.where(table.c.state != "retired")
    if rubric is not None:
        statement = statement.where(table.c.rubric == rubric)
    with database.read() as connection:
        return [RubricVersion(**row) for row in connection.execute(statement).mappings()]


def has_scores(database: Database, rubric_hash: str, judge_fingerprint: str) -> bool:
    """See `Store.has_scores`."""
    statement = (
        sa.select(totals.c.series_id)
        .join(instruments, instruments.c.instrument_id == totals.c.instrument_id)
        .where(
            instruments.c.rubric_hash == rubric_hash,
            instruments.c.judge_fingerprint == judge_fingerprint,
            totals.c.scored > 0,
        )
        .limit(1)
    )
    with database.read() as connection:
        return connection.execute(statement).first() is not None


def place_version(database: Database, version: RubricVersion) -> None:
    """See `Store.place_rubric`."""
    table = rubric_versions
    moment, active = now(), version.state == "active"
    row = asdict(version) | {
        "body": _storable(version.body),
        "reason": text(version.reason),
        "since": moment,
        "activated_at": moment if active else None,
    }
    finish = _or_activated if active else _or_waiting
    # It takes the place of every other that is in that state, and a new active version that of those waiting, too.
    replaced = ("active", "waiting") if active else ("waiting",)
    others = (
        sa.update(table)
        .where(
            table.c.rubric == version.rubric,
            table.c.state.in_(replaced),
            sa.or_(table.c.rubric_hash != version.rubric_hash, table.c.judge_fingerprint != version.judge_fingerprint),
        )
        .values(state="retired", since=moment, reason=f"{version.rubric_version} took its place")
    )

    def work(connection: sa.Connection) -> None:
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        insert_rows(connection, table, [row], finish)
        connection.execute(others)

    database.write(work)


def _or_activated(insert: Any) -> sa.Insert:
    activated: sa.Insert = _placed(insert)
    return activated


def _or_waiting(insert: Any) -> sa.Insert:
    # An active version does not wait: another process has seen its calibration by now.
    waiting: sa.Insert = _placed(insert, where=rubric_versions.c.state != "active")
    return waiting


def _placed(insert: Any, **condition: Any) -> Any:
    """What it says now, in the same state since the same moment."""
    table, new = rubric_versions, insert.excluded
    changes = {name: new[name] for name in ("rubric_version", "judge", "body", "state", "reason")}
    unchanged = table.c.state == new.state
    changes["since"] = sa.case((unchanged, table.c.since), else_=new.since)
    changes["activated_at"] = sa.case(
        (unchanged, table.c.activated_at), else_=sa.func.coalesce(new.activated_at, table.c.activated_at)
    )
    return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes, **condition)
