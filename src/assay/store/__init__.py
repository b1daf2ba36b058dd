"""Where scores are kept: SQLite or PostgreSQL. The only package that knows SQL.

One commit stores what a batch came to and, in the same transaction, adds what was really new to sums by the minute and
the hour, to totals and to counters. A repeat adds nothing, so every number counts each evaluation once, whatever is
delivered twice. The time series are read from those sums alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from assay.errors import ConfigError
from assay.records import Evaluation, Record, Score, Usage, now
from assay.store import _migrate, _purge, _reads
from assay.store._commit import Batch
from assay.store._database import Database
from assay.store._labels import OTHER, Labels
from assay.store._rollups import Additions
from assay.store._rows import (
    SCORE_BOUNDS,
    Committed,
    Counts,
    DeadLetter,
    Exemplar,
    Finding,
    OutcomeName,
    Rollup,
    Stored,
    Total,
)
from assay.store._tables import dead_letters, evaluations, instruments, payloads, records, text

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

__all__ = [
    "OTHER",
    "SCORE_BOUNDS",
    "Committed",
    "Counts",
    "DeadLetter",
    "Exemplar",
    "Finding",
    "OutcomeName",
    "Rollup",
    "Store",
    "Stored",
    "Total",
]


class Store:
    """The score store at a database URL. Thread-safe; nothing is connected until it is used.

    Every method that touches the database raises StoreError when it is away, full, read-only or not migrated; nothing
    was changed then, and the same call may be made again.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://user@host/name`.
        cohort_labels: labels to keep sums by, besides the app: record fields (`route`, `model`, `prompt_version`) or
            keys of `record.cohort`.
        max_series: most label sets (app and cohort labels) to keep sums by, at least 2. What comes later counts as
            "other": first among the other cohorts of its app, then, when there are too many apps, of any app.

    Raises:
        SettingsError: the URL is not that of a supported database.
        MissingExtraError: PostgreSQL's driver is not installed.
    """

    def __init__(self, url: str, *, cohort_labels: Sequence[str] = (), max_series: int = 200) -> None:
        self._database = Database(url)
        self._labels = Labels(cohort_labels, max_series)
        self._names = _reads.Names(self._labels.names)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the schema

    def upgrade(self) -> None:
        """Bring the schema to this version's. Safe to run at any time, by several processes at once."""
        _migrate.upgrade(self._database)

    def check(self) -> None:
        """See that the database answers and has this version's schema.

        Raises:
            StoreError: it does not; the message says what to do.
        """
        _migrate.check(self._database)

    # -- what a worker does

    def existing(self, record_ids: Collection[str]) -> dict[uuid.UUID, Stored]:
        """Outcomes that are stored of these records, by evaluation id."""
        if not record_ids:
            return {}
        statement = sa.select(evaluations.c.evaluation_id, evaluations.c.outcome, evaluations.c.failure_kind).where(
            evaluations.c.record_id.in_(sorted({text(record_id) for record_id in record_ids}))
        )
        with self._database.read() as connection:
            return {key: Stored(outcome=outcome, kind=kind) for key, outcome, kind in connection.execute(statement)}

    def commit(
        self,
        records: Sequence[tuple[Record, str]],
        evaluations: Sequence[Evaluation],
        dead_letters: Sequence[DeadLetter] = (),
        *,
        duplicates: int = 0,
        replay: bool = False,
    ) -> Committed:
        """Store what a batch came to, all of it or nothing. The same call again changes nothing but counts duplicates.

        Args:
            records: each with its wire form (JSON), which is kept apart from it and purged earlier.
            evaluations: of those records. The first outcome of an evaluation stands.
            dead_letters: what could not be processed.
            duplicates: records that the caller found complete and left out; they are only counted.
            replay: a Score or NotApplicable takes the place of a stored Failure. It counts at the minute, in the label
                set and with the weight that the failure was stored with.

        Raises:
            ValueError: an evaluation of a record that is not among `records`.
        """
        if not (records or dead_letters or duplicates):
            if evaluations:
                raise ValueError("evaluations without their records")
            return Committed(inserted_records=0, inserted=0, duplicates=0, recovered=0)
        batch = Batch(records, evaluations, dead_letters, duplicates=duplicates, replay=replay)
        return batch.commit(self._database, self._labels)

    # -- what a scrape reads: its cost does not grow with what is stored

    def rollups(self, start: int, end: int) -> list[Rollup]:
        """Sums over the interactions that happened in [start, end), one for each label set that has any.

        `start` and `end` are epoch seconds on a minute. Minutes are kept for two days, hours longer.
        """
        with self._database.read() as connection:
            return _reads.read_rollups(connection, self._names, start, end)

    def totals(self) -> list[Total]:
        """Everything ever counted by label set; the numbers only grow."""
        with self._database.read() as connection:
            return _reads.read_totals(connection, self._names)

    def counts(self) -> Counts:
        """Everything else that is counted."""
        with self._database.read() as connection:
            return _reads.read_counts(connection)

    def ping(self) -> None:
        """See that the database answers.

        Raises:
            StoreError: it does not.
        """
        with self._database.read() as connection:
            connection.execute(sa.select(1))

    # -- what a person reads

    def worst(self, since: datetime, rubric: str | None = None, limit: int = 1) -> list[Finding]:
        """The lowest scores of the interactions since then (aware), lowest first; of one rubric, or of all."""
        key = (evaluations.c.record_id, evaluations.c.evaluation_id)
        order = (evaluations.c.value, evaluations.c.timestamp.desc())
        lowest = sa.select(*key).where(evaluations.c.timestamp >= since, evaluations.c.outcome == "scored")
        if rubric is not None:
            of_rubric = sa.select(instruments.c.instrument_id).where(instruments.c.rubric == rubric)
            lowest = lowest.where(evaluations.c.instrument_id.in_(of_rubric))
        # The few are found first and then joined: joining all of a day costs seconds.
        statement = (
            sa.select(evaluations, records.c.app, records.c.trace_id, payloads.c.payload, instruments)
            .join(records, records.c.record_id == evaluations.c.record_id)
            .join(instruments, instruments.c.instrument_id == evaluations.c.instrument_id)
            .outerjoin(payloads, payloads.c.record_id == evaluations.c.record_id)
            .where(sa.tuple_(*key).in_(lowest.order_by(*order).limit(limit)))
            .order_by(*order)
        )
        with self._database.read() as connection:
            return [_finding(row) for row in connection.execute(statement)]

    # -- dead letters

    def dead_letters(
        self, *, reason: str | None = None, limit: int = 100, include_replayed: bool = False, payloads: bool = True
    ) -> list[DeadLetter]:
        """Dead letters, newest first. Without `payloads` theirs are empty: one may be as large as ten megabytes."""
        columns = [column for column in dead_letters.c if payloads or column.name != "payload"]
        statement = sa.select(*columns).order_by(dead_letters.c.created_at.desc(), dead_letters.c.dead_id).limit(limit)
        if reason is not None:
            statement = statement.where(dead_letters.c.reason == reason)
        if not include_replayed:
            statement = statement.where(dead_letters.c.replayed_at.is_(None))
        with self._database.read() as connection:
            rows = connection.execute(statement).mappings()
            return [DeadLetter(**{"payload": b"", **row}) for row in rows]

    def dead_letter(self, dead_id: str) -> DeadLetter:
        """One dead letter, by its id or the beginning of it.

        Raises:
            ConfigError: there is none, or more than one.
        """
        statement = sa.select(dead_letters).where(dead_letters.c.dead_id.startswith(dead_id, autoescape=True)).limit(2)
        with self._database.read() as connection:
            found = [DeadLetter(**row) for row in connection.execute(statement).mappings()]
        if len(found) != 1:
            raise ConfigError(f"{'no' if not found else 'more than one'} dead letter has an id like {dead_id!r}")
        return found[0]

    def mark_replayed(self, dead_ids: Iterable[str]) -> int:
        """Note that these are back on the queue; returns how many were waiting until now."""
        wanted = sorted(set(dead_ids))

        def work(connection: sa.Connection) -> int:
            additions = Additions(now().timestamp())
            marked = 0
            for chunk in _purge.chunks(wanted):
                statement = (
                    sa.update(dead_letters)
                    .where(dead_letters.c.dead_id.in_(chunk), dead_letters.c.replayed_at.is_(None))
                    .values(replayed_at=now())
                    .returning(dead_letters.c.reason)
                )
                for reason in connection.execute(statement).scalars():
                    additions.count("dead_kept", reason, -1)
                    marked += 1
            additions.write(connection)
            return marked

        return self._database.write(work) if wanted else 0

    # -- retention

    def purge(self, *, payload_days: float, score_days: float, rollup_days: float, dead_days: float) -> dict[str, int]:
        """Delete what was stored longer ago, in small transactions between which others may write.

        Texts by `payload_days`, records with their scores by `score_days`, dead letters by `dead_days`. Hourly sums
        by the time of the interactions and `rollup_days` (minute sums after two days), totals of label sets that
        got nothing new for as long.

        Returns:
            Rows deleted, by table.
        """
        return _purge.purge(
            self._database,
            payload_days=payload_days,
            score_days=score_days,
            rollup_days=rollup_days,
            dead_days=dead_days,
        )

    def close(self) -> None:
        """Close the connections. The store may be used again: it opens new ones."""
        self._database.close()


def _finding(row: sa.Row[tuple[object, ...]]) -> Finding:
    return Finding(
        record_id=row.record_id,
        app=row.app,
        timestamp=row.timestamp,
        trace_id=row.trace_id,
        payload=row.payload,
        evaluation=Evaluation(
            record_id=row.record_id,
            rubric=row.rubric,
            rubric_version=row.rubric_version,
            rubric_hash=row.rubric_hash,
            judge=row.judge,
            judge_fingerprint=row.judge_fingerprint,
            outcome=Score(
                value=row.value,
                passed=row.passed,
                raw=row.raw,
                label=row.label,
                explanation=row.explanation or "",
                details=row.details or {},
                usage=Usage(
                    prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens, cost_usd=row.cost_usd
                ),
                latency_seconds=row.latency_seconds or 0.0,
                judge_model=row.judge_model,
            ),
        ),
    )
