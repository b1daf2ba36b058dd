"""Evaluations on their way to sinks: a row each, from the transaction that stores them until the sink has them."""

from __future__ import annotations

import uuid
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from assay.errors import ConfigError
from assay.records import now
from assay.sinks import Annotation
from assay.store._insert import insert_rows
from assay.store._rollups import Additions
from assay.store._rows import Claimed, OutboxDepth, OutboxRow, Settled
from assay.store._suspects import signs_in
from assay.store._tables import Moment, counters, evaluations, instruments, metadata, payloads, records, text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from assay.store._database import Database
    from assay.store._rows import OutcomeName, WriteOutcome

#: record id and evaluation id, as stored
_Key = tuple[str, uuid.UUID]

#: What is owed to sinks. A row goes when its sink has it; it stays, set aside, when the sink never will.
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("record_id", sa.Text, primary_key=True),
    sa.Column("evaluation_id", sa.Uuid, primary_key=True),
    sa.Column("sink", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    #: when it may be tried (again); while it is claimed, when the claim ends unless it is renewed; of one set aside,
    #: since when it is
    sa.Column("due_at", Moment, nullable=False),
    #: who has it in hand, and may settle it
    sa.Column("claim", sa.Text),
    #: times that it was claimed since somebody last said what came of it
    sa.Column("claims", sa.Integer, nullable=False),
    #: times that the sink was tried
    sa.Column("attempts", sa.Integer, nullable=False),
    #: why it waits still, or was set aside
    sa.Column("reason", sa.Text),
    #: the deadline counts from here
    sa.Column("created_at", Moment, nullable=False),
    sa.ForeignKeyConstraint(
        ["record_id", "evaluation_id"], ["evaluations.record_id", "evaluations.evaluation_id"], ondelete="CASCADE"
    ),
    sa.CheckConstraint("state IN ('waiting', 'rejected')", name="state"),
    sa.Index("ix_outbox_due", "sink", "state", "due_at"),
    sa.Index("ix_outbox_age", "sink", "state", "created_at"),
)

#: Most keys in one statement, far below what a database takes.
MOST_KEYS = 1000

_KEY = (outbox.c.record_id, outbox.c.evaluation_id)

#: What a reason is cut to: sinks answer with whole pages.
_MOST_REASON = 1000


# -- in the transaction that stores a batch


def owe(
    connection: sa.Connection,
    additions: Additions,
    outcomes: Mapping[_Key, OutcomeName],
    sinks: Mapping[str, Collection[OutcomeName]],
    moment: datetime,
    *,
    recovered: Sequence[_Key] = (),
) -> None:
    """Owe these to every sink that takes their outcome. What was owed of a `recovered` one is owed no more."""
    for first in range(0, len(recovered), MOST_KEYS):
        # Also when it is being delivered right now: its row is another one then, and is delivered in its turn.
        _forget(connection, additions, recovered[first : first + MOST_KEYS])
    rows = [
        {
            "record_id": key[0],
            "evaluation_id": key[1],
            "sink": sink,
            "state": "waiting",
            "due_at": moment,
            "claims": 0,
            "attempts": 0,
            "created_at": moment,
        }
        for key, outcome in sorted(outcomes.items())
        for sink, taken in sorted(sinks.items())
        if outcome in taken
    ]
    insert_rows(connection, outbox, rows, _plainly)
    for sink, n in Counter(str(row["sink"]) for row in rows).items():
        additions.count("outbox_waiting", sink, n)


def forget_records(connection: sa.Connection, additions: Additions, record_ids: Sequence[str]) -> int:
    """Owe nothing of these records any more; returns rows deleted. Before their evaluations are deleted."""
    gone = sa.delete(outbox).where(outbox.c.record_id.in_(record_ids)).returning(outbox.c.sink, outbox.c.state)
    return _uncount(additions, connection.execute(gone).all())


def _forget(connection: sa.Connection, additions: Additions, keys: Sequence[_Key]) -> None:
    gone = sa.delete(outbox).where(sa.tuple_(*_KEY).in_(keys)).returning(outbox.c.sink, outbox.c.state)
    _uncount(additions, connection.execute(gone).all())


def _uncount(additions: Additions, rows: Sequence[Any]) -> int:
    for (sink, state), n in Counter((row.sink, row.state) for row in rows).items():
        additions.count(f"outbox_{state}", sink, -n)
    return len(rows)


def _plainly(insert: sa.Insert) -> sa.Insert:
    return insert


# -- delivery


def claim(
    database: Database, sink: str, claim_id: str, *, limit: int, until: datetime, alone_after: int
) -> list[Claimed]:
    """See `Store.claim_outbox`."""
    moment = now()
    due = (outbox.c.sink == sink, outbox.c.state == "waiting", outbox.c.due_at <= moment)
    with database.read() as connection:
        # Most of the time there is nothing: that must not cost a write.
        if connection.execute(sa.select(outbox.c.sink).where(*due).limit(1)).first() is None:
            return []

    def work(connection: sa.Connection) -> list[_Key]:
        rows = connection.execute(
            sa.select(*_KEY, outbox.c.claims)
            .where(*due)
            .order_by(outbox.c.due_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        # What was in hand when workers died is taken without mates, so that it harms none.
        alone = [row for row in rows if row.claims >= alone_after]
        keys: list[_Key] = [(row.record_id, row.evaluation_id) for row in alone[:1] or rows]
        connection.execute(
            sa.update(outbox)
            .where(outbox.c.sink == sink, sa.tuple_(*_KEY).in_(keys))
            .values(claim=claim_id, due_at=until, claims=outbox.c.claims + 1)
        )
        return keys

    keys = database.write(work)
    return _read(database, sink, claim_id, keys)


def _read(database: Database, sink: str, claim_id: str, keys: Sequence[_Key]) -> list[Claimed]:
    on_key = sa.and_(
        evaluations.c.record_id == outbox.c.record_id, evaluations.c.evaluation_id == outbox.c.evaluation_id
    )
    statement = (
        sa.select(outbox, evaluations, records, instruments, payloads.c.payload)
        .select_from(outbox)
        .join(evaluations, on_key)
        .join(records, records.c.record_id == outbox.c.record_id)
        .join(instruments, instruments.c.instrument_id == evaluations.c.instrument_id)
        .outerjoin(payloads, payloads.c.record_id == outbox.c.record_id)
        .where(outbox.c.sink == sink, outbox.c.claim == claim_id)
        .order_by(*_KEY)
        .set_label_style(sa.LABEL_STYLE_TABLENAME_PLUS_COL)
    )
    with database.read() as connection:
        return [
            Claimed(
                annotation=_annotation(row),
                payload=row["payloads_payload"],
                attempts=row["outbox_attempts"],
                created_at=row["outbox_created_at"],
            )
            for row in connection.execute(statement.where(sa.tuple_(*_KEY).in_(keys))).mappings()
        ]


def _annotation(row: sa.RowMapping) -> Annotation:
    """All that is stored of it, as it is: what may leave is `assay.outbox`'s to choose."""
    return Annotation(
        evaluation_id=row["evaluations_evaluation_id"],
        record_id=row["evaluations_record_id"],
        app=row["records_app"],
        trace_id=row["records_trace_id"],
        span_id=row["records_span_id"],
        session_id=row["records_session_id"],
        sink_refs=row["records_sink_refs"] or {},
        timestamp=row["evaluations_timestamp"],
        evaluated_at=row["evaluations_created_at"],
        **{f"{name}": row[f"instruments_{name}"] for name in _INSTRUMENT},
        **{f"{name}": row[f"evaluations_{name}"] for name in _OUTCOME},
        explanation=row["evaluations_explanation"] or "",
        # A person's class wins.
        defect=row.get("evaluations_person_defect") or row.get("evaluations_defect"),
        injection_signs=signs_in(row["records_injection_signs"]),
        probability=_probability(row["records_probability"], row["evaluations_weight"]),
        cohort={
            **{name: row[f"records_{name}"] for name in _SLICES if row[f"records_{name}"]},
            **row["records_cohort"],
        },
    )


def _probability(sampled: float, weight: float) -> float:
    """That of the evaluation: lower than the record's where records were left out near the cap of a budget."""
    return 1.0 / weight if weight * sampled > 1.0 + 1e-9 else sampled


_SLICES = ("route", "model", "prompt_version")
_INSTRUMENT = ("rubric", "rubric_version", "rubric_hash", "judge", "judge_fingerprint")
_OUTCOME = ("judge_model", "outcome", "value", "raw", "passed", "label", "failure_kind", "message", "reason")


def renew(database: Database, sink: str, claim_id: str, keys: Sequence[_Key], until: datetime) -> None:
    """See `Store.renew_outbox`."""

    def work(connection: sa.Connection) -> None:
        held = (outbox.c.sink == sink, outbox.c.claim == claim_id, sa.tuple_(*_KEY).in_(keys))
        connection.execute(sa.update(outbox).where(*held).values(due_at=until))

    database.write(work)


def settle(database: Database, sink: str, claim_id: str, settled: Mapping[_Key, Settled]) -> int:
    """See `Store.settle_outbox`."""

    def work(connection: sa.Connection) -> int:
        additions = Additions(now().timestamp())
        # Not those that were taken over meanwhile, or that stand for another outcome by now.
        held = (outbox.c.sink == sink, outbox.c.claim == claim_id, sa.tuple_(*_KEY).in_(sorted(settled)))
        found = connection.execute(sa.select(*_KEY).where(*held).order_by(*_KEY).with_for_update())
        ours: list[_Key] = [(row.record_id, row.evaluation_id) for row in found]
        # What the sink did is counted whether or not the row is still ours: it was called.
        for outcome, n in Counter(done.outcome for done in settled.values() if done.counts).items():
            additions.count(f"sink_{outcome}", sink, n)
        over = [key for key in ours if settled[key].outcome in {"delivered", "skipped"}]
        if over:
            connection.execute(sa.delete(outbox).where(outbox.c.sink == sink, sa.tuple_(*_KEY).in_(over)))
        aside = sum(settled[key].outcome in {"rejected", "expired"} for key in ours)
        additions.count("outbox_waiting", sink, -len(over) - aside)
        additions.count("outbox_rejected", sink, aside)
        _write_back(connection, sink, {key: settled[key] for key in ours if key not in set(over)})
        additions.write(connection)
        return len(ours)

    return database.write(work) if settled else 0


def _write_back(connection: sa.Connection, sink: str, kept: Mapping[_Key, Settled]) -> None:
    """Those that are tried again, and those that are set aside."""
    if not kept:
        return
    moment = now()
    statement = (
        sa.update(outbox)
        .where(
            outbox.c.sink == sink,
            outbox.c.record_id == sa.bindparam("key_1"),
            outbox.c.evaluation_id == sa.bindparam("key_2"),
        )
        .values(
            state=sa.bindparam("new_state"),
            due_at=sa.bindparam("new_due_at", type_=Moment()),
            reason=sa.bindparam("new_reason"),
            attempts=outbox.c.attempts + sa.bindparam("tries"),
            claim=None,
            claims=0,
        )
    )
    connection.execute(
        statement,
        [
            {
                "key_1": key[0],
                "key_2": key[1],
                "new_state": "waiting" if done.outcome == "retried" else "rejected",
                "new_due_at": done.due_at or moment,
                "new_reason": text(done.reason)[:_MOST_REASON],
                "tries": int(done.counts),
            }
            for key, done in sorted(kept.items())
        ],
    )


def expire(database: Database, before: datetime, reason: str) -> int:
    """See `Store.expire_outbox`."""

    def work(connection: sa.Connection, sink: str) -> int:
        old = (outbox.c.sink == sink, outbox.c.state == "waiting", outbox.c.created_at < before)
        free = sa.or_(outbox.c.claim.is_(None), outbox.c.due_at <= now())
        rows = connection.execute(
            sa.select(*_KEY, outbox.c.reason).where(*old, free).limit(500).with_for_update(skip_locked=True)
        ).all()
        additions = Additions(now().timestamp())
        additions.count("outbox_waiting", sink, -len(rows))
        additions.count("outbox_rejected", sink, len(rows))
        additions.count("sink_expired", sink, len(rows))
        _write_back(
            connection,
            sink,
            {
                (row.record_id, row.evaluation_id): Settled(
                    outcome="expired", reason=f"{reason}{row.reason or 'never tried'}", counts=False
                )
                for row in rows
            },
        )
        additions.write(connection)
        return len(rows)

    n = 0
    for sink in _owed_to(database, before):
        while (done := database.write(partial(work, sink=sink))) > 0:
            n += done
    return n


def _owed_to(database: Database, before: datetime) -> list[str]:
    """Sinks to which something older than that is owed."""
    with database.read() as connection:
        found = []
        for sink in _sinks(connection):
            old = (outbox.c.sink == sink, outbox.c.state == "waiting", outbox.c.created_at < before)
            if connection.execute(sa.select(outbox.c.sink).where(*old).limit(1)).first() is not None:
                found.append(sink)
        return found


def _sinks(connection: sa.Connection) -> list[str]:
    """Every sink that anything was ever owed to."""
    return list(
        connection.execute(
            sa.select(counters.c.label).where(counters.c.name == "outbox_waiting").order_by(counters.c.label)
        ).scalars()
    )


# -- what a scrape and a person read


def depths(database: Database) -> dict[str, OutboxDepth]:
    """See `Store.outbox_depths`."""
    if database.scope is not None:
        return _depths_of_rows(database)
    with database.read() as connection:
        names = ("outbox_waiting", "outbox_rejected", *(f"sink_{outcome}" for outcome in _COUNTED))
        counted: dict[str, dict[str, int]] = {}
        for name, label, n in connection.execute(sa.select(counters).where(counters.c.name.in_(names))):
            counted.setdefault(label, {})[name] = n
        found = {}
        for sink, numbers in sorted(counted.items()):
            waiting = numbers.get("outbox_waiting", 0)
            oldest = sa.select(sa.func.min(outbox.c.created_at)).where(
                outbox.c.sink == sink, outbox.c.state == "waiting"
            )
            found[sink] = OutboxDepth(
                waiting=waiting,
                rejected=numbers.get("outbox_rejected", 0),
                oldest_at=connection.execute(oldest).scalar_one() if waiting else None,
                writes={outcome: numbers[f"sink_{outcome}"] for outcome in _COUNTED if f"sink_{outcome}" in numbers},
            )
        return found


def _depths_of_rows(database: Database) -> dict[str, OutboxDepth]:
    """The same of some apps, counted row by row: what was delivered is counted for all apps together, not for each."""
    waits = sa.case((outbox.c.state == "waiting", 1), else_=0)
    oldest = sa.func.min(sa.case((outbox.c.state == "waiting", outbox.c.created_at)))
    columns = (outbox.c.sink, sa.func.sum(waits), sa.func.count(), sa.type_coerce(oldest, Moment()))
    with database.read() as connection:
        rows = connection.execute(sa.select(*columns).group_by(outbox.c.sink).order_by(outbox.c.sink))
        return {
            sink: OutboxDepth(waiting=int(waiting), rejected=n - int(waiting), oldest_at=since)
            for sink, waiting, n, since in rows
        }


_COUNTED: tuple[WriteOutcome, ...] = ("delivered", "retried", "rejected", "expired", "skipped")


def list_rows(
    database: Database, *, sink: str | None, state: str | None, reason: str | None, limit: int
) -> list[OutboxRow]:
    """See `Store.outbox`."""
    statement = _listing().order_by(outbox.c.created_at.desc(), *_KEY, outbox.c.sink).limit(limit)
    with database.read() as connection:
        return [_row(found) for found in connection.execute(statement.where(*_matching(sink, state, reason)))]


def find_rows(database: Database, evaluation_id: str) -> list[OutboxRow]:
    """See `Store.outbox_rows`."""
    # By range: how a database writes an id differs.
    first, last = _range(evaluation_id)
    statement = _listing().where(outbox.c.evaluation_id.between(first, last)).order_by(*_KEY, outbox.c.sink).limit(200)
    with database.read() as connection:
        found = [_row(one) for one in connection.execute(statement)]
    if len({one.evaluation_id for one in found}) != 1:
        raise ConfigError(
            f"{'nothing in the outbox' if not found else 'more than one evaluation'} has an id like {evaluation_id!r}"
        )
    return found


def retry(database: Database, *, sink: str | None, reason: str | None, evaluation_id: uuid.UUID | None) -> int:
    """See `Store.retry_outbox`."""
    wanted = _matching(sink, "rejected", reason)
    if evaluation_id is not None:
        wanted.append(outbox.c.evaluation_id == evaluation_id)

    def work(connection: sa.Connection) -> int:
        moment = now()
        additions = Additions(moment.timestamp())
        some = sa.select(*_KEY, outbox.c.sink).where(*wanted).limit(500).with_for_update(skip_locked=True)
        found = connection.execute(some).all()
        for sink_, n in Counter(one.sink for one in found).items():
            keys = [(one.record_id, one.evaluation_id) for one in found if one.sink == sink_]
            connection.execute(
                sa.update(outbox)
                .where(outbox.c.sink == sink_, sa.tuple_(*_KEY).in_(keys))
                .values(state="waiting", due_at=moment, created_at=moment, attempts=0, claims=0, claim=None)
            )
            additions.count("outbox_waiting", sink_, n)
            additions.count("outbox_rejected", sink_, -n)
        additions.write(connection)
        return len(found)

    n = 0
    while (done := database.write(work)) > 0:
        n += done
    return n


def _listing() -> sa.Select[Any]:
    return (
        sa.select(
            outbox,
            evaluations.c.outcome,
            evaluations.c.value,
            instruments.c.rubric,
            instruments.c.judge,
            records.c.app,
            records.c.trace_id,
            records.c.span_id,
        )
        .select_from(outbox)
        .join(
            evaluations,
            sa.and_(
                evaluations.c.record_id == outbox.c.record_id, evaluations.c.evaluation_id == outbox.c.evaluation_id
            ),
        )
        .join(records, records.c.record_id == outbox.c.record_id)
        .join(instruments, instruments.c.instrument_id == evaluations.c.instrument_id)
    )


def _matching(sink: str | None, state: str | None, reason: str | None) -> list[sa.ColumnElement[bool]]:
    given = []
    if sink is not None:
        given.append(outbox.c.sink == sink)
    if state is not None:
        given.append(outbox.c.state == state)
    if reason is not None:
        given.append(outbox.c.reason.contains(reason, autoescape=True))
    return given


def _row(found: sa.Row[Any]) -> OutboxRow:
    return OutboxRow(**{name: value for name, value in found._mapping.items() if name not in {"claim", "claims"}})


def _range(prefix: str) -> tuple[uuid.UUID, uuid.UUID]:
    """The first and the last id that begins so.

    Raises:
        ConfigError: no id begins so.
    """
    digits = prefix.replace("-", "").lower()
    if not 4 <= len(digits) <= 32 or set(digits) - set("0123456789abcdef"):
        raise ConfigError(f"{prefix!r} is not an evaluation id, nor 4 or more characters of its beginning")
    return uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))
