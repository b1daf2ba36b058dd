"""What the tests of the store share: synthetic records and evaluations, and the sums computed plainly from the rows."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import event

from assay.records import Evaluation, Failure, NotApplicable, Outcome, Record, Sampling, Score
from assay.store import SCORE_BOUNDS, Store
from assay.store import _tables as tables

#: A moment on the hour; the minutes and hours of the tests count from here.
HOUR_START = datetime(2026, 3, 1, 12, tzinfo=UTC)
EPOCH = int(HOUR_START.timestamp())

SUMS = ("n", "sum_w", "sum_w2", "sum_wy", "sum_w2y", "sum_w2y2", "passes", "sum_wp", "sum_w2p")
COUNTS = ("failed", "not_applicable", "recovered")


def a_record(
    record_id: str | None = None, *, seconds: float = 0.0, probability: float = 1.0, app: str = "shop", **fields: object
) -> Record:
    """A synthetic record of `seconds` after HOUR_START."""
    return Record(
        record_id=record_id or str(uuid.uuid4()),
        timestamp=HOUR_START + timedelta(seconds=seconds),
        app=app,
        input=str(fields.pop("input", "Where is my parcel?")),
        output=str(fields.pop("output", "It arrives on Monday.")),
        sampling=Sampling(probability=probability),
        **fields,  # type: ignore[arg-type]
    )


def an_evaluation(
    record: Record | str, outcome: Outcome | float, rubric: str = "relevance", **fields: str
) -> Evaluation:
    """Of that record; a number stands for a Score that passes from 0.5 up."""
    if isinstance(outcome, int | float):
        outcome = Score(value=outcome, passed=outcome >= 0.5)
    return Evaluation(
        record_id=record if isinstance(record, str) else record.record_id,
        rubric=rubric,
        rubric_version=fields.get("rubric_version", "1-0a1b2c3d"),
        rubric_hash=fields.get("rubric_hash", "0a1b2c3d" * 8),
        judge=fields.get("judge", "lexical"),
        judge_fingerprint=fields.get("judge_fingerprint", "f" * 64),
        outcome=outcome,
    )


def with_payloads(records: Sequence[Record]) -> list[tuple[Record, str]]:
    return [(record, record.to_json()) for record in records]


def commit(
    store: Store, *pairs: tuple[Record, Outcome | float], rubric: str = "relevance", replay: bool = False
) -> object:
    """Commit one evaluation of each record."""
    return store.commit(
        with_payloads([record for record, _ in pairs]),
        [an_evaluation(record, outcome, rubric) for record, outcome in pairs],
        replay=replay,
    )


@contextmanager
def connected(store: Store) -> Iterator[sa.Connection]:
    """A look behind the store's back, on a connection of its own."""
    engine = sa.create_engine(store._database.url)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Every SQL statement that the store runs meanwhile."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(store._database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(store._database.engine, "before_cursor_execute", note)


def dump(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, for comparison."""
    with connected(store) as connection:
        return {
            table.name: sorted((tuple(map(_plain, row)) for row in connection.execute(sa.select(table))), key=repr)
            for table in tables.metadata.sorted_tables
        }


def _plain(value: object) -> object:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def stored_sums(store: Store) -> dict[str, dict[tuple[object, ...], dict[str, float]]]:
    """The sums as the store keeps them; rows of nothing but zeros left out."""
    shown = {}
    with connected(store) as connection:
        for table in (tables.rollups, tables.totals, tables.outcome_counts):
            names = [column.name for column in table.c if not column.primary_key]
            for skipped in ("last_scored_at", "updated_at"):
                if skipped in names:
                    names.remove(skipped)
            keys = [column.name for column in table.primary_key]
            shown[table.name] = {
                tuple(row[key] for key in keys): {name: row[name] for name in names if row[name] is not None}
                for row in connection.execute(sa.select(table)).mappings()
            }
    return shown


def recomputed_sums(store: Store) -> dict[str, dict[tuple[object, ...], dict[str, float]]]:
    """The same sums, plainly, from the evaluations that are stored: nothing of the store's own arithmetic is used."""
    rollups: dict[tuple[object, ...], dict[str, float]] = defaultdict(lambda: dict.fromkeys((*SUMS, *COUNTS), 0))
    buckets = [f"bucket_{index}" for index in range(len(SCORE_BOUNDS))]
    totals: dict[tuple[object, ...], dict[str, float]] = defaultdict(
        lambda: dict.fromkeys(("scored", *COUNTS, "value_sum", *buckets), 0)
    )
    reasons: dict[tuple[object, ...], dict[str, float]] = defaultdict(lambda: {"n": 0})
    with connected(store) as connection:
        rows = connection.execute(sa.select(tables.evaluations)).all()
    for row in rows:
        labels = (row.series_id, row.instrument_id)
        seconds = row.timestamp.timestamp()
        places = [rollups[size, int(seconds // size * size), *labels] for size in (60, 3600)]
        total = totals[labels]
        for place in (*places, total):
            place["recovered"] += row.recovered_from is not None
            place["failed"] += row.outcome == "failed" or row.recovered_from is not None
            place["not_applicable"] += row.outcome == "not_applicable"
        if row.outcome == "scored":
            w, y, p = row.weight, row.value, float(row.passed)
            terms = (1, w, w**2, w * y, w**2 * y, w**2 * y**2, p, w * p, w**2 * p)
            for place in places:
                for name, term in zip(SUMS, terms, strict=True):
                    place[name] += term
            total["scored"] += 1
            total["value_sum"] += y
            total[buckets[next(i for i, bound in enumerate(SCORE_BOUNDS) if y <= bound)]] += 1
        for name in ("prompt_tokens", "completion_tokens", "cost_usd"):
            spent = getattr(row, name)
            if spent is not None:
                total[name] = total.get(name, 0) + spent
        for kind in (row.failure_kind, row.recovered_from):
            if kind is not None:
                reasons[*labels, "failed", kind]["n"] += 1
        if row.reason is not None:
            reasons[*labels, "not_applicable", row.reason]["n"] += 1
    return {"rollups": dict(rollups), "totals": dict(totals), "outcome_counts": dict(reasons)}


def assert_sums_true(store: Store) -> None:
    """The sums that are stored are those of the evaluations that are stored."""
    stored, plain = stored_sums(store), recomputed_sums(store)
    for table, rows in plain.items():
        assert stored[table].keys() == rows.keys(), table
        for key, sums in rows.items():
            known = stored[table][key]
            assert known.keys() == sums.keys(), (table, key)
            for name, value in sums.items():
                assert abs(known[name] - value) <= 1e-9 * max(1.0, abs(value)), (table, key, name, known[name], value)


def assert_conserved(store: Store) -> None:
    """For each rubric: stored evaluations = scored + failed + not_applicable - recovered."""
    with connected(store) as connection:
        rows = connection.execute(
            sa.select(tables.instruments.c.rubric, sa.func.count())
            .join(tables.evaluations, tables.evaluations.c.instrument_id == tables.instruments.c.instrument_id)
            .group_by(tables.instruments.c.rubric)
        ).all()
    counted: dict[str, int] = defaultdict(int)
    for total in store.totals():
        counted[total.rubric] += total.scored + total.failed + total.not_applicable - total.recovered
    assert dict(counted) == dict(map(tuple, rows))


A_FAILURE = Failure(kind="timeout", message="no answer within 60 s")
NOT_APPLICABLE = NotApplicable(reason="missing_contexts")
