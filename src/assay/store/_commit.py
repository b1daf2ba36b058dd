"""The one transaction that stores what a batch came to, and everything that is counted of it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from assay.errors import StoreDataError, StoreError
from assay.records import Evaluation, Failure, Record, Score, now
from assay.store import _defects, _outbox, _signals
from assay.store._insert import if_new, insert_rows
from assay.store._labels import Labels, Place, instrument_of
from assay.store._purge import LOOKUP_CHUNK, chunks, without_texts
from assay.store._rollups import Additions, usage_value
from assay.store._rows import Committed, DeadLetter
from assay.store._tables import (
    LEAST_PROBABILITY,
    dead_letters,
    evaluations,
    integer,
    number,
    payloads,
    records,
    text,
    utc,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from assay.store._database import Database
    from assay.store._rows import OutcomeName

_Row = dict[str, Any]
#: What a letter that comes again has of its latest failure.
_RENEWED = ("message", "attempts", "created_at")
#: What the column holds.
_MOST_ATTEMPTS = 2**31 - 1
#: record id and evaluation id, as stored
_Key = tuple[str, uuid.UUID]


class Batch:
    """What a caller wants committed, brought into order: each record and each evaluation once, sorted by its key.

    Sorted, because two transactions that insert the same keys then wait for each other in one direction only.

    Raises:
        ValueError: an evaluation of a record that is not among `offered`.
    """

    def __init__(
        self,
        offered: Sequence[tuple[Record, str]],
        judged: Sequence[Evaluation],
        dead: Sequence[DeadLetter],
        *,
        duplicates: int,
        replay: bool,
        sinks: Mapping[str, Collection[OutcomeName]] | None = None,
    ) -> None:
        self._sinks = sinks or {}
        first: dict[str, tuple[Record, str]] = {}
        for record, payload in offered:
            first.setdefault(text(record.record_id), (record, payload))
        self._records = dict(sorted(first.items()))
        outcomes: dict[_Key, Evaluation] = {}
        for evaluation in judged:
            key = (text(evaluation.record_id), evaluation.evaluation_id)
            if key[0] not in self._records:
                raise ValueError(f"evaluation of record {evaluation.record_id!r}, which is not in the commit")
            outcomes.setdefault(key, evaluation)
        self._evaluations = dict(sorted(outcomes.items()))
        self._repeats = len(judged) - len(outcomes)
        self._dead = {letter.dead_id: letter for letter in sorted(dead, key=lambda letter: letter.dead_id)}
        self._duplicates = duplicates
        self._replay = replay

    def commit(self, database: Database, labels: Labels) -> Committed:
        """Store it, or raise StoreError or StoreDataError and store nothing."""
        try:
            return self._commit(database, labels, now())
        except (StoreError, StoreDataError):
            labels.forget()
            raise

    def _commit(self, database: Database, labels: Labels, moment: datetime) -> Committed:
        by_id = {record_id: record for record_id, (record, _) in self._records.items()}
        placed = labels.places(database, by_id.values())
        places = {record_id: placed[record.record_id] for record_id, record in by_id.items()}
        numbers = labels.instruments(database, self._evaluations.values())
        readings = {record_id: _signals.read(record) for record_id, record in by_id.items()}
        rows: dict[_Key, _Row] = {}
        for key, evaluation in self._evaluations.items():
            place, instrument_id = places[key[0]], numbers[instrument_of(evaluation)]
            rows[key] = _evaluation_row(evaluation, by_id[key[0]], place, instrument_id, key, moment)
        return database.write(lambda connection: self._store(connection, places, rows, readings, moment))

    def _store(
        self,
        connection: sa.Connection,
        places: Mapping[str, Place],
        rows: Mapping[_Key, _Row],
        readings: Mapping[str, _signals.Reading],
        moment: datetime,
    ) -> Committed:
        additions = Additions(moment.timestamp())
        new_records = self._insert_records(connection, readings, moment)
        for record_id in new_records:
            additions.count("received", places[record_id].app)
            additions.count("series_overflow", n=int(places[record_id].overflow))
            place = places[record_id]
            additions.signals.record(readings[record_id], series_id=place.series_id, app=place.app)
        rows = without_texts(connection, rows, new_records)
        _defects.inherit(connection, rows, new_records)
        inserted = _insert_new(connection, evaluations, list(rows.values()))
        for key in sorted(inserted):
            self._count(additions, rows[key], key, recovered=False)
        recovered = self._supersede(connection, rows, inserted, additions) if self._replay else set()
        self._insert_dead(connection, additions, moment)
        self._owe(connection, additions, rows, inserted, recovered, moment)
        # A record none of whose evaluations is new was delivered twice, unless it was replayed and fails still.
        # One without any came for nothing but itself.
        came_again = {record_id for record_id, _ in rows} - {record_id for record_id, _ in inserted | recovered}
        again = set() if self._replay else came_again - new_records
        additions.count("duplicates", n=self._duplicates + len(again))
        additions.write(connection)
        return Committed(
            inserted_records=len(new_records),
            inserted=len(inserted),
            duplicates=len(rows) - len(inserted) - len(recovered) + self._repeats,
            recovered=len(recovered),
        )

    def _owe(
        self,
        connection: sa.Connection,
        additions: Additions,
        rows: Mapping[_Key, _Row],
        inserted: set[_Key],
        recovered: set[_Key],
        moment: datetime,
    ) -> None:
        """Owe to the sinks what is really new: a repeat was owed already."""
        outcomes = {key: rows[key]["outcome"] for key in inserted | recovered}
        _outbox.owe(connection, additions, outcomes, self._sinks, moment, recovered=sorted(recovered))

    def _insert_records(
        self, connection: sa.Connection, readings: Mapping[str, _signals.Reading], moment: datetime
    ) -> set[str]:
        rows = [_record_row(record, readings[key], moment) for key, (record, _) in self._records.items()]
        new = {key[0] for key in _insert_new(connection, records, rows)}
        texts = [
            {"record_id": record_id, "payload": text(payload), "created_at": moment}
            for record_id, (_, payload) in self._records.items()
            if record_id in new
        ]
        insert_rows(connection, payloads, texts, _plainly)
        return new

    def _supersede(
        self, connection: sa.Connection, rows: Mapping[_Key, _Row], inserted: Collection[_Key], additions: Additions
    ) -> set[_Key]:
        """Verdicts take the place of stored failures. They count where and with the weight that the failure did."""
        better = [
            key
            for key, evaluation in self._evaluations.items()
            if key not in inserted and not isinstance(evaluation.outcome, Failure)
        ]
        if not better:
            return set()
        columns = ("record_id", "evaluation_id", "series_id", "instrument_id", "timestamp", "weight", "failure_kind")
        key_columns = (evaluations.c.record_id, evaluations.c.evaluation_id)
        stored: list[sa.Row[Any]] = []
        for chunk in chunks(better, LOOKUP_CHUNK):
            stored += connection.execute(
                sa.select(*(evaluations.c[name] for name in columns))
                .where(sa.tuple_(*key_columns).in_(chunk), evaluations.c.outcome == "failed")
                .order_by(*key_columns)
                .with_for_update()
            ).all()
        if not stored:
            return set()
        changes = []
        for failure in stored:
            key = (failure.record_id, failure.evaluation_id)
            row = {**rows[key], **{name: getattr(failure, name) for name in columns[2:6]}}
            self._count(additions, row, key, recovered=True)
            change = {name: value for name, value in row.items() if name not in columns and name != "created_at"}
            changes.append(
                {
                    **change,
                    "key_1": key[0],
                    "key_2": key[1],
                    "failure_kind": None,
                    "recovered_from": failure.failure_kind,
                }
            )
        connection.execute(
            sa.update(evaluations).where(
                evaluations.c.record_id == sa.bindparam("key_1"), evaluations.c.evaluation_id == sa.bindparam("key_2")
            ),
            changes,
        )
        return {(failure.record_id, failure.evaluation_id) for failure in stored}

    def _count(self, additions: Additions, row: _Row, key: _Key, *, recovered: bool) -> None:
        record, outcome = self._records[key[0]][0], self._evaluations[key].outcome
        where = {name: row[name] for name in ("series_id", "instrument_id", "timestamp", "weight")}
        additions.signals.outcome(outcome, record, **where)
        additions.defects.score(row)
        trace_id = record.trace_id
        additions.evaluation(
            outcome,
            series_id=row["series_id"],
            instrument_id=row["instrument_id"],
            timestamp=row["timestamp"],
            weight=row["weight"],
            recovered=recovered,
            trace_id=None if trace_id is None else text(trace_id),
        )

    def _insert_dead(self, connection: sa.Connection, additions: Additions, moment: datetime) -> None:
        """New letters are kept; one that was replayed and came back waits again.

        One that waits already is renewed, but not counted: whoever has read it, and is replaying it, must see that it
        has failed again.
        """
        if not self._dead:
            return
        rows = [
            {
                "dead_id": letter.dead_id,
                "reason": text(letter.reason),
                "message": text(letter.message),
                "payload": letter.payload,
                "record_id": None if letter.record_id is None else text(letter.record_id),
                "attempts": min(letter.attempts, _MOST_ATTEMPTS),
                "created_at": moment,
                "replayed_at": None,
                "app": None if letter.app is None else text(letter.app),
            }
            for letter in self._dead.values()
        ]
        counted = insert_rows(connection, dead_letters, rows, _again)
        for _, reason in counted:
            additions.count("dead_total", reason)
            additions.count("dead_kept", reason)
        known = {dead_id for dead_id, _ in counted}
        # The statement before has locked these rows, so they wait still.
        renewed = [
            {"key": row["dead_id"], **{name: row[name] for name in _RENEWED}}
            for row in rows
            if row["dead_id"] not in known
        ]
        if renewed:
            waiting = sa.update(dead_letters).where(
                dead_letters.c.dead_id == sa.bindparam("key"), dead_letters.c.replayed_at.is_(None)
            )
            connection.execute(waiting, renewed)


def _insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[_Row]) -> set[Any]:
    """Insert those rows whose key is not stored, and return their keys."""
    return set(insert_rows(connection, table, rows, if_new))


def _plainly(insert: sa.Insert) -> sa.Insert:
    return insert


def _again(insert: Any) -> sa.Insert:
    again = (*_RENEWED, "replayed_at")
    kept: sa.Insert = insert.on_conflict_do_update(
        index_elements=[dead_letters.c.dead_id],
        set_={name: insert.excluded[name] for name in again},
        where=dead_letters.c.replayed_at.is_not(None),
    ).returning(dead_letters.c.dead_id, dead_letters.c.reason)
    return kept


def _record_row(record: Record, reading: _signals.Reading, moment: datetime) -> _Row:
    return {
        "record_id": text(record.record_id),
        "app": text(record.app),
        **{name: _text(getattr(record, name)) for name in _TEXTS},
        "cohort": dict(record.cohort),
        "timestamp": utc(record.timestamp),
        "probability": record.sampling.probability,
        "rule": text(record.sampling.rule),
        "prompt_tokens": integer(record.usage.prompt_tokens),
        "completion_tokens": integer(record.usage.completion_tokens),
        "cost_usd": number(record.usage.cost_usd),
        "latency_seconds": number(record.latency_seconds),
        "sink_refs": dict(record.sink_refs) or None,
        "injection_signs": ",".join(sorted(reading.injection_signs)),
        "created_at": moment,
    }


_TEXTS = ("route", "model", "prompt_version", "trace_id", "span_id", "session_id", "finish_reason")


def _evaluation_row(
    evaluation: Evaluation, record: Record, place: Place, instrument_id: int, key: _Key, moment: datetime
) -> _Row:
    outcome = evaluation.outcome
    row: _Row = {
        "record_id": key[0],
        "evaluation_id": key[1],
        "instrument_id": instrument_id,
        "series_id": place.series_id,
        "timestamp": utc(record.timestamp),
        "weight": 1.0 / max(record.sampling.probability * evaluation.probability, LEAST_PROBABILITY),
        **_NOTHING,
        "prompt_tokens": usage_value(outcome, "prompt_tokens"),
        "completion_tokens": usage_value(outcome, "completion_tokens"),
        "cost_usd": usage_value(outcome, "cost_usd"),
        "latency_seconds": number(outcome.latency_seconds),
        "judge_model": _text(outcome.judge_model),
        "created_at": moment,
    }
    if isinstance(outcome, Score):
        return row | {
            "outcome": "scored",
            "value": float(outcome.value),
            "passed": outcome.passed,
            "raw": number(outcome.raw),
            "label": _text(outcome.label),
            "explanation": text(outcome.explanation),
            "details": dict(outcome.details),
            "defect": _defects.stored_defect(outcome.defect, passed=outcome.passed),
        }
    if isinstance(outcome, Failure):
        return row | {"outcome": "failed", "failure_kind": outcome.kind, "message": text(outcome.message)}
    return row | {"outcome": "not_applicable", "reason": text(outcome.reason)}


_NOTHING: _Row = dict.fromkeys(
    (
        "outcome",
        "value",
        "passed",
        "raw",
        "label",
        "explanation",
        "details",
        "failure_kind",
        "message",
        "reason",
        "recovered_from",
        "defect",
        "person_defect",
    )
)


def _text(value: str | None) -> str | None:
    return None if value is None else text(value)
