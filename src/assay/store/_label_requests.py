"""Which records people are asked to label, and how far each request has come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from assay.records import now
from assay.store._insert import if_new, insert_rows
from assay.store._purge import chunks
from assay.store._rows import LabelCandidate, LabelRequest, StoredVerdict
from assay.store._tables import evaluations, instruments, label_requests, payloads, records, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from assay.store._database import Database

#: What is done with a request, in this order.
Step = Literal["exported", "labelled"]


def read_candidates(
    database: Database,
    rubric: str,
    start: datetime,
    end: datetime,
    *,
    instrument: tuple[str, str] | None,
    with_payload: bool,
) -> list[LabelCandidate]:
    """See `Store.label_candidates`."""
    measured_by = sa.select(instruments.c.instrument_id).where(instruments.c.rubric == rubric)
    if instrument is not None:
        measured_by = measured_by.where(
            instruments.c.rubric_hash == instrument[0], instruments.c.judge_fingerprint == instrument[1]
        )
    # Of several evaluations of one record under the rubric, the latest.
    latest_first = (evaluations.c.created_at.desc(), evaluations.c.evaluation_id)
    scored = (
        sa.select(
            evaluations.c.record_id,
            evaluations.c.instrument_id,
            evaluations.c.timestamp,
            evaluations.c.weight,
            evaluations.c.value,
            evaluations.c.passed,
            evaluations.c.explanation,
            sa.func.row_number().over(partition_by=evaluations.c.record_id, order_by=latest_first).label("rank"),
        )
        .where(
            evaluations.c.timestamp >= start,
            evaluations.c.timestamp < end,
            evaluations.c.outcome == "scored",
            evaluations.c.instrument_id.in_(measured_by),
        )
        .subquery()
    )
    picked = sa.and_(label_requests.c.record_id == scored.c.record_id, label_requests.c.rubric == rubric)
    statement = (
        sa.select(
            scored.c.record_id,
            records.c.app,
            records.c.session_id,
            scored.c.timestamp,
            records.c.probability,
            _judged_with(scored.c.weight).label("judged_with"),
            instruments.c.rubric_version,
            instruments.c.rubric_hash,
            instruments.c.judge,
            instruments.c.judge_fingerprint,
            scored.c.value,
            scored.c.passed,
            sa.func.coalesce(scored.c.explanation, "").label("explanation"),
            (payloads.c.payload if with_payload else sa.literal("")).label("payload"),
            label_requests.c.probability.label("picked_with"),
        )
        .join(records, records.c.record_id == scored.c.record_id)
        .join(instruments, instruments.c.instrument_id == scored.c.instrument_id)
        .join(payloads, payloads.c.record_id == scored.c.record_id)
        .outerjoin(label_requests, picked)
        .where(scored.c.rank == 1)
        .order_by(scored.c.timestamp, scored.c.record_id)
    )
    with database.read() as connection:
        return [LabelCandidate(**row) for row in connection.execute(statement).mappings()]


def _judged_with(weight: sa.ColumnElement[float]) -> sa.ColumnElement[Any]:
    """The probability of judging a record, once it was sampled, out of its score's weight."""
    # A score's weight is 1 / (sampling x judging); rounding, and the least that a weight knows, may take it above 1.
    value = 1.0 / (weight * records.c.probability)
    return sa.case((value > 1.0, 1.0), else_=value)


def request_labels(database: Database, requests: Sequence[LabelRequest]) -> int:
    """See `Store.request_labels`."""
    wanted = {(text(request.record_id), request.rubric): request for request in reversed(requests)}
    keys = sorted(wanted)

    def work(connection: sa.Connection) -> int:
        moment, made = now(), 0
        for chunk in chunks(keys):
            # One that was purged since it was chosen cannot be labelled.
            ids = sa.select(records.c.record_id).where(records.c.record_id.in_([key[0] for key in chunk]))
            kept = set(connection.execute(ids).scalars())
            rows = [
                {
                    "record_id": key[0],
                    "rubric": key[1],
                    "probability": wanted[key].probability,
                    "twice": wanted[key].twice,
                    "picked_at": moment,
                }
                for key in chunk
                if key[0] in kept
            ]
            made += len(insert_rows(connection, label_requests, rows, if_new))
        return made

    return database.write(work) if keys else 0


def read_requests(database: Database, rubric: str | None) -> list[LabelRequest]:
    """See `Store.label_requests`."""
    statement = sa.select(label_requests).order_by(
        label_requests.c.rubric, label_requests.c.picked_at, label_requests.c.record_id
    )
    if rubric is not None:
        statement = statement.where(label_requests.c.rubric == rubric)
    with database.read() as connection:
        return [LabelRequest(**row) for row in connection.execute(statement).mappings()]


def mark_step(database: Database, rubric: str, record_ids: Iterable[str], step: Step) -> int:
    """See `Store.mark_labels`."""
    wanted = sorted({text(record_id) for record_id in record_ids})
    column = label_requests.c[f"{step}_at"]

    def work(connection: sa.Connection) -> int:
        moment, marked = now(), 0
        for chunk in chunks(wanted):
            statement = (
                sa.update(label_requests)
                .where(label_requests.c.rubric == rubric, label_requests.c.record_id.in_(chunk), column.is_(None))
                .values({column.name: moment})
            )
            marked += connection.execute(statement).rowcount
        return marked

    return database.write(work) if wanted else 0


def read_payloads(database: Database, record_ids: Iterable[str]) -> dict[str, str]:
    """See `Store.payloads`."""
    found: dict[str, str] = {}
    with database.read() as connection:
        for chunk in chunks(sorted({text(record_id) for record_id in record_ids})):
            statement = sa.select(payloads.c.record_id, payloads.c.payload).where(payloads.c.record_id.in_(chunk))
            found.update((record_id, payload) for record_id, payload in connection.execute(statement))
    return found


def read_payloads_called(database: Database, names: Iterable[str]) -> dict[str, str]:
    """See `Store.records_called`."""
    found: dict[str, str] = {}
    with database.read() as connection:
        for chunk in chunks(sorted({text(name) for name in names})):
            called = [column.in_(chunk) for column in (records.c.record_id, records.c.span_id, records.c.trace_id)]
            statement = (
                sa.select(payloads.c.record_id, payloads.c.payload)
                .join(records, records.c.record_id == payloads.c.record_id)
                .where(sa.or_(*called))
            )
            found.update((record_id, payload) for record_id, payload in connection.execute(statement))
    return found


def read_verdicts(
    database: Database, record_ids: Iterable[str], rubric_hash: str, judge_fingerprint: str
) -> dict[str, StoredVerdict]:
    """See `Store.verdicts`."""
    found: dict[str, StoredVerdict] = {}
    with database.read() as connection:
        for chunk in chunks(sorted({text(record_id) for record_id in record_ids})):
            statement = (
                sa.select(evaluations.c.record_id, evaluations.c.passed, _judged_with(evaluations.c.weight))
                .join(records, records.c.record_id == evaluations.c.record_id)
                .join(instruments, instruments.c.instrument_id == evaluations.c.instrument_id)
                .where(
                    evaluations.c.record_id.in_(chunk),
                    evaluations.c.outcome == "scored",
                    instruments.c.rubric_hash == rubric_hash,
                    instruments.c.judge_fingerprint == judge_fingerprint,
                )
            )
            rows = connection.execute(statement)
            found |= {record_id: StoredVerdict(passed, judged_with) for record_id, passed, judged_with in rows}
    return found
