"""What the watch over the pass stream keeps: how far it has read, its detectors and events.

A step of the watch reads (`read_changes`), computes outside any transaction, and saves (`save_changes`) all or nothing,
and only if nobody has saved since it read: so each score counts once, whatever crashes and however many watch at once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from assay.errors import ConfigError
from assay.records import now
from assay.store._canary import (
    DriftVerdict,
    Verdict,
    accept_canary,
    drift_verdicts,
    verdict_row,
)
from assay.store._insert import if_new, insert_rows
from assay.store._instruments import InstrumentName, instrument_columns, is_of
from assay.store._rows import RubricVersion
from assay.store._tables import (
    Moment,
    dumps,
    evaluations,
    metadata,
    rollups,
    rubric_versions,
    text,
    totals,
)
from assay.windows import HOUR, MINUTE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from assay.store._database import Database
    from assay.store._reads import Names

#: learning: it has no reference yet. watching, alarmed. ended: its judge or rubric was replaced, or nothing comes.
StreamPhase = Literal["learning", "watching", "alarmed", "ended"]
#: drop: the detector's alarm. judge_changed, rubric_changed: another version became active. model_changed: the endpoint
#: names another model under the same configuration. verdict: whose fault a change is was said anew.
ChangeKind = Literal["drop", "judge_changed", "rubric_changed", "model_changed", "verdict"]
#: Minute sums are kept for two days; only what is well inside can be compared with them.
_COUNTED = 36 * HOUR
#: How long before the first step ever the watch begins.
_FIRST_SPAN = 24 * HOUR
#: Events that are over are kept as long. Those of changed instruments stay: a step would note them anew.
_KEEP_EVENTS = timedelta(days=400)
#: A position so far ahead of the present was reached by a clock that was wrong.
_AHEAD = HOUR
#: What a database takes for a limit.
_MOST_ROWS = 2**31 - 1

#: One row: interactions before `position` (epoch seconds, a whole minute) are read. `revision` grows with every change.
change_watch = sa.Table(
    "change_watch",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("started_at", Moment, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
)

#: One detector for each label set and instrument. `records` = those that it was shown, `late` = scored after the watch
#: had passed their minute, `earlier` = scored before there was a watch. `kept` is of releases that left some out.
change_streams = sa.Table(
    "change_streams",
    metadata,
    sa.Column("series_id", sa.Integer, sa.ForeignKey("series.series_id"), primary_key=True, autoincrement=False),
    sa.Column(
        "instrument_id", sa.Integer, sa.ForeignKey("instruments.instrument_id"), primary_key=True, autoincrement=False
    ),
    sa.Column("phase", sa.Text, nullable=False),
    #: JSON, of `assay.changes.Stream`
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("evidence", sa.Double),
    sa.Column("threshold", sa.Double),
    sa.Column("reference", sa.Double),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("records", "kept", "late", "earlier")),
    #: latest interaction that it was shown
    sa.Column("last_at", Moment),
    sa.CheckConstraint("phase IN ('learning', 'watching', 'alarmed', 'ended')", name="phase"),
)

change_events = sa.Table(
    "change_events",
    metadata,
    #: made from what happened, so that the same is noted once
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    *instrument_columns(),
    #: of drops and changed models, which are of one stream
    sa.Column("series_id", sa.Integer),
    sa.Column("instrument_id", sa.Integer),
    sa.Column("app", sa.Text, nullable=False),
    #: JSON
    sa.Column("cohort", sa.Text, nullable=False),
    sa.Column("happened_at", Moment, nullable=False),
    sa.Column("noted_at", Moment, nullable=False, index=True),
    sa.Column("message", sa.Text, nullable=False),
    #: JSON
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text),
    sa.Column("resolved_at", Moment),
    sa.Column("resolution", sa.Text),
    sa.Column("acknowledged_at", Moment),
    sa.Column("note", sa.Text),
    sa.CheckConstraint("(resolved_at IS NULL) = (resolution IS NULL)", name="resolution_of_resolved_only"),
)


#: series and instrument, by their numbers
StreamKey = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedScore:
    """One stored score, as a detector takes it."""

    key: StreamKey
    record_id: str
    #: of the interaction; aware, UTC
    timestamp: datetime
    #: 1 / probability of sampling, at least 1
    weight: float
    passed: bool
    #: the model that the endpoint says answered
    judge_model: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamName:
    """What a stream is of."""

    app: str
    cohort: Mapping[str, str]
    instrument: InstrumentName


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeStream:
    """A detector as it is stored."""

    key: StreamKey
    name: StreamName
    phase: StreamPhase
    #: JSON-ready, of `assay.changes.Stream`
    state: Mapping[str, Any]
    #: log of the e-value; None while there is nothing to say
    evidence: float | None = None
    #: log of the run length; alarm when the evidence reaches it
    threshold: float | None = None
    #: pass ratio in (0, 1) that the stream must keep
    reference: float | None = None
    #: scores shown to it; those that came after their minute was read
    records: int = 0
    late: int = 0
    #: latest interaction shown to it
    last_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEvent:
    """Something that changed, and what became of it. Moments are aware, UTC."""

    event_id: str
    kind: ChangeKind
    instrument: InstrumentName
    happened_at: datetime
    message: str
    #: "" and empty where it is of no single label set
    app: str = ""
    cohort: Mapping[str, str] = field(default_factory=dict)
    key: StreamKey | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    #: set by the store
    noted_at: datetime | None = None
    resolved_at: datetime | None = None
    #: recovered, accepted, replaced or ended
    resolution: str | None = None
    acknowledged_at: datetime | None = None
    note: str | None = None

    @staticmethod
    def id_of(*parts: str) -> str:
        """An id made from what happened, so that the same is noted once."""
        return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """An open event that is over."""

    event_id: str
    resolved_at: datetime
    resolution: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeReading:
    """What one step of the watch starts from: the scores of interactions in [position, end), epoch seconds."""

    #: None before the first step ever
    revision: int | None
    started_at: datetime
    position: int
    end: int
    #: how far it was to go
    until: int
    #: ordered by time and record id
    scores: Sequence[WatchedScore]
    streams: Mapping[StreamKey, ChangeStream]
    #: of the streams and of the scores
    names: Mapping[StreamKey, StreamName]
    versions: Sequence[RubricVersion]


# -- a step of the watch


def read_changes(
    database: Database, names: Names, until: int, limit: int, *, present: int | None = None
) -> ChangeReading:
    """See `Store.read_changes`."""
    columns = (
        evaluations.c.series_id,
        evaluations.c.instrument_id,
        evaluations.c.record_id,
        evaluations.c.timestamp,
        evaluations.c.weight,
        evaluations.c.passed,
        evaluations.c.judge_model,
    )
    order = (evaluations.c.timestamp, evaluations.c.record_id, evaluations.c.evaluation_id)
    with database.read() as connection:
        watch = connection.execute(sa.select(change_watch)).first()
        position = (until - _FIRST_SPAN) // MINUTE * MINUTE if watch is None else watch.position
        if watch is not None and present is not None and position > present + _AHEAD:
            # A clock that ran ahead took the watch along; else all that comes would be late until then.
            position = until // MINUTE * MINUTE
        end = max(position, until // MINUTE * MINUTE)

        def scores(stop: int, most: int | None) -> list[sa.Row[Any]]:
            span = (evaluations.c.timestamp >= _moment(position), evaluations.c.timestamp < _moment(stop))
            found = sa.select(*columns).where(*span, evaluations.c.outcome == "scored").order_by(*order)
            return list(connection.execute(found if most is None else found.limit(most)))

        rows = scores(end, limit + 1)
        if len(rows) > limit:
            # Whole minutes only; a minute that holds more than the limit is read whole.
            end = int(rows[-1].timestamp.timestamp()) // MINUTE * MINUTE
            if end == position:
                end = position + MINUTE
                rows = scores(end, None)
            rows = [row for row in rows if row.timestamp.timestamp() < end]
        stored = connection.execute(sa.select(change_streams)).all()
        pairs = {(row.series_id, row.instrument_id) for row in (*stored, *rows)}
        named = _named(connection, names, pairs)
        versions = connection.execute(sa.select(rubric_versions).where(rubric_versions.c.activated_at.is_not(None)))
        return ChangeReading(
            revision=None if watch is None else watch.revision,
            started_at=_moment(position) if watch is None else watch.started_at,
            position=position,
            end=end,
            until=until,
            scores=[
                WatchedScore(
                    key=(row.series_id, row.instrument_id),
                    record_id=row.record_id,
                    timestamp=row.timestamp,
                    weight=row.weight,
                    passed=row.passed,
                    judge_model=row.judge_model,
                )
                for row in rows
            ],
            streams={(row.series_id, row.instrument_id): _stream(row, named) for row in stored},
            names=named,
            versions=[RubricVersion(**row) for row in versions.mappings()],
        )


def save_changes(
    database: Database,
    reading: ChangeReading,
    streams: Collection[ChangeStream],
    events: Collection[ChangeEvent],
    resolutions: Collection[Resolution],
) -> bool:
    """See `Store.save_changes`."""
    moment = now()
    rows = [_stream_row(stream) for stream in sorted(streams, key=lambda stream: stream.key)]

    def work(connection: sa.Connection) -> bool:
        if not _move(connection, reading, moment):
            return False
        insert_rows(connection, change_streams, rows, _or_stream)
        if reading.end >= reading.until - _COUNTED:
            _count_late(connection, reading)
        _note(connection, events, moment)
        for resolution in resolutions:
            _resolve(connection, resolution)
        _forget_events(connection, moment)
        return True

    return database.write(work)


def _move(connection: sa.Connection, reading: ChangeReading, moment: datetime) -> bool:
    """Whether the position could be moved: nobody has changed anything since it was read."""
    if reading.revision is None:
        row = {
            "name": "interactions",
            "position": reading.end,
            "revision": 1,
            "started_at": reading.started_at,
            "updated_at": moment,
        }
        return bool(insert_rows(connection, change_watch, [row], if_new))
    statement = (
        sa.update(change_watch)
        .where(change_watch.c.revision == reading.revision)
        .values(position=reading.end, revision=reading.revision + 1, updated_at=moment)
    )
    return connection.execute(statement).rowcount == 1


def _count_late(connection: sa.Connection, reading: ChangeReading) -> None:
    """Late = all that was ever scored, less what is still ahead, less what was shown, less what was before the watch.

    All and ahead come from one statement, which sees one moment: a commit is in both or in neither.
    """
    first = reading.revision is None
    keys = (rollups.c.series_id, rollups.c.instrument_id)
    ahead = (
        sa.select(*keys, sa.cast(sa.func.sum(rollups.c.n), sa.BigInteger).label("n"))
        .where(rollups.c.resolution_seconds == MINUTE, rollups.c.start >= reading.end)
        .group_by(*keys)
        .subquery()
    )
    behind = (totals.c.scored - sa.func.coalesce(ahead.c.n, 0)).label("behind")
    same = sa.and_(totals.c.series_id == ahead.c.series_id, totals.c.instrument_id == ahead.c.instrument_id)
    counted = connection.execute(
        sa.select(totals.c.series_id, totals.c.instrument_id, behind).select_from(totals.outerjoin(ahead, same))
    ).all()
    known = {
        (row.series_id, row.instrument_id): row
        for row in connection.execute(
            sa.select(
                *(change_streams.c[name] for name in ("series_id", "instrument_id", "records", "late", "earlier"))
            )
        )
    }
    new, changed = [], []
    for series_id, instrument_id, n in counted:
        row = known.get((series_id, instrument_id))
        place = {"series_id": series_id, "instrument_id": instrument_id}
        if row is None:
            if n > 0:
                unseen = {"earlier": n, "late": 0} if first else {"earlier": 0, "late": n}
                new.append(place | _UNSEEN | unseen)
        elif first:
            changed.append({"key_1": series_id, "key_2": instrument_id, "late": 0, "earlier": n - row.records})
        elif (late := n - row.records - row.earlier) > row.late:
            changed.append({"key_1": series_id, "key_2": instrument_id, "late": late, "earlier": row.earlier})
    insert_rows(connection, change_streams, new, if_new)
    if changed:
        statement = sa.update(change_streams).where(
            change_streams.c.series_id == sa.bindparam("key_1"),
            change_streams.c.instrument_id == sa.bindparam("key_2"),
        )
        connection.execute(statement, changed)
    # Of label sets whose totals were purged nothing will come; kept, they would be taken for late when it does. Those
    # that were never shown a score do not end.
    connection.execute(
        sa.delete(change_streams).where(
            sa.or_(change_streams.c.phase == "ended", change_streams.c.last_at.is_(None)),
            ~sa.exists().where(
                totals.c.series_id == change_streams.c.series_id,
                totals.c.instrument_id == change_streams.c.instrument_id,
            ),
        )
    )


_UNSEEN: dict[str, Any] = {
    "phase": "learning",
    "state": "{}",
    "evidence": None,
    "threshold": None,
    "reference": None,
    "records": 0,
    "kept": 0,
    "last_at": None,
}


def read_streams(database: Database, names: Names) -> list[ChangeStream]:
    """See `Store.change_streams`."""
    columns = [column for column in change_streams.c if column.name != "state"]
    with database.read() as connection:
        rows = connection.execute(sa.select(*columns).order_by(change_streams.c.last_at)).all()
        named = _named(connection, names, {(row.series_id, row.instrument_id) for row in rows})
        return [_stream(row, named) for row in rows]


def read_position(database: Database) -> int | None:
    """See `Store.change_position`."""
    with database.read() as connection:
        position: int | None = connection.execute(sa.select(change_watch.c.position)).scalar()
        return position


# -- events


def read_events(
    database: Database,
    *,
    kinds: Collection[ChangeKind] | None,
    open_only: bool,
    rubric: str | None,
    limit: int,
) -> list[ChangeEvent]:
    """See `Store.change_events`."""
    statement = sa.select(change_events).order_by(
        change_events.c.happened_at.desc(), change_events.c.noted_at.desc(), change_events.c.event_id
    )
    if kinds is not None:
        statement = statement.where(change_events.c.kind.in_(kinds))
    if open_only:
        statement = statement.where(change_events.c.resolved_at.is_(None), change_events.c.kind == "drop")
    if rubric is not None:
        statement = statement.where(change_events.c.rubric == text(rubric))
    with database.read() as connection:
        return [_event(row) for row in connection.execute(statement.limit(min(limit, _MOST_ROWS)))]


def read_event(database: Database, event_id: str) -> ChangeEvent:
    """See `Store.change_event`."""
    found = sa.select(change_events).where(change_events.c.event_id.startswith(text(event_id), autoescape=True))
    with database.read() as connection:
        rows = connection.execute(found.limit(2)).all()
    if len(rows) != 1:
        raise ConfigError(
            f"{'no' if not rows else 'more than one'} event has an id like {event_id!r}: see `assay changes list`"
        )
    return _event(rows[0])


def acknowledge(database: Database, event: ChangeEvent, *, note: str, accept: bool) -> bool:
    """See `Store.acknowledge_change`."""
    moment = now()

    def work(connection: sa.Connection) -> bool:
        acknowledged = (
            sa.update(change_events)
            .where(change_events.c.event_id == event.event_id)
            .values(acknowledged_at=moment, note=text(note) if note else change_events.c.note)
        )
        if connection.execute(acknowledged).rowcount != 1:
            return False
        if accept and event.kind == "drop" and event.key is not None:
            _relearn(connection, event.key)
            # Also a later one of the same stream, whose detector is gone: nobody else would ever end it.
            own = (change_events.c.series_id == event.key[0], change_events.c.instrument_id == event.key[1])
            connection.execute(
                sa.update(change_events)
                .where(*own, change_events.c.kind == "drop", change_events.c.resolved_at.is_(None))
                .values(resolved_at=moment, resolution="accepted")
            )
            # A step that was computed meanwhile knows the old detector: it must be computed again.
            connection.execute(sa.update(change_watch).values(revision=change_watch.c.revision + 1))
        if accept and event.kind == "verdict":
            accept_canary(connection, event.instrument)
        return True

    return database.write(work)


def _relearn(connection: sa.Connection, key: StreamKey) -> None:
    blank = {"phase": "learning", "state": "{}", "evidence": None, "threshold": None, "reference": None}
    connection.execute(
        sa.update(change_streams)
        .where(change_streams.c.series_id == key[0], change_streams.c.instrument_id == key[1])
        .values(**blank)
    )


def _note(connection: sa.Connection, events: Collection[ChangeEvent], moment: datetime) -> None:
    rows = [
        {
            "event_id": event.event_id,
            "kind": event.kind,
            **event.instrument._asdict(),
            "series_id": None if event.key is None else event.key[0],
            "instrument_id": None if event.key is None else event.key[1],
            "app": event.app,
            "cohort": dumps(event.cohort),
            "happened_at": event.happened_at,
            "noted_at": moment,
            "message": text(event.message),
            "details": dumps(event.details),
            "verdict": event.verdict,
            "resolved_at": None,
            "resolution": None,
            "acknowledged_at": None,
            "note": None,
        }
        for event in events
    ]
    insert_rows(connection, change_events, rows, if_new)


def _forget_events(connection: sa.Connection, moment: datetime) -> None:
    over = sa.or_(
        change_events.c.kind.in_(("verdict", "model_changed")),
        sa.and_(change_events.c.kind == "drop", change_events.c.resolved_at.is_not(None)),
    )
    connection.execute(sa.delete(change_events).where(change_events.c.noted_at < moment - _KEEP_EVENTS, over))


def _resolve(connection: sa.Connection, resolution: Resolution) -> None:
    connection.execute(
        sa.update(change_events)
        .where(change_events.c.event_id == resolution.event_id, change_events.c.resolved_at.is_(None))
        .values(resolved_at=resolution.resolved_at, resolution=resolution.resolution)
    )


def save_verdict(database: Database, verdict: DriftVerdict, event: ChangeEvent) -> bool:
    """See `Store.save_verdict`."""
    moment = now()
    own = is_of(drift_verdicts, verdict.instrument)

    def work(connection: sa.Connection) -> bool:
        insert_rows(connection, drift_verdicts, [verdict_row(verdict.instrument, moment)], if_new)
        changed = (
            sa.update(drift_verdicts)
            .where(own, drift_verdicts.c.verdict != verdict.verdict)
            .values(verdict=verdict.verdict, reason=text(verdict.reason), since=moment)
        )
        is_new = bool(connection.execute(changed).rowcount)
        if is_new:
            _note(connection, [event], moment)
        else:
            connection.execute(sa.update(drift_verdicts).where(own).values(reason=text(verdict.reason)))
        open_drops = sa.update(change_events).where(
            is_of(change_events, verdict.instrument),
            change_events.c.kind == "drop",
            change_events.c.resolved_at.is_(None),
        )
        connection.execute(open_drops.values(verdict=verdict.verdict))
        return is_new

    return database.write(work)


# -- rows


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _named(connection: sa.Connection, names: Names, pairs: set[StreamKey]) -> dict[StreamKey, StreamName]:
    found = names.keys(connection, pairs)
    return {
        pair: StreamName(
            app=key.app,
            cohort=names.cohort(key),
            instrument=InstrumentName.of(key),
        )
        for pair, key in found.items()
    }


def _stream(row: sa.Row[Any], named: Mapping[StreamKey, StreamName]) -> ChangeStream:
    key = (row.series_id, row.instrument_id)
    known = ("phase", "evidence", "threshold", "reference", "records", "late", "last_at")
    state = getattr(row, "state", None)
    return ChangeStream(
        key=key,
        name=named[key],
        state={} if state is None else json.loads(state),
        **{name: getattr(row, name) for name in known},
    )


def _stream_row(stream: ChangeStream) -> dict[str, Any]:
    known = ("phase", "evidence", "threshold", "reference", "records", "last_at")
    return {
        "series_id": stream.key[0],
        "instrument_id": stream.key[1],
        "state": dumps(stream.state),
        **{name: getattr(stream, name) for name in known},
        "kept": 0,
        "late": 0,
        "earlier": 0,
    }


def _event(row: sa.Row[Any]) -> ChangeEvent:
    same = ("event_id", "kind", "app", "happened_at", "message", "verdict", "noted_at")
    after = ("resolved_at", "resolution", "acknowledged_at", "note")
    return ChangeEvent(
        instrument=InstrumentName.of(row),
        key=None if row.series_id is None else (row.series_id, row.instrument_id),
        cohort=json.loads(row.cohort),
        details=json.loads(row.details),
        **{name: getattr(row, name) for name in (*same, *after)},
    )


def _or_stream(insert: Any) -> sa.Insert:
    # What was counted late, or was there before, is not the detector's to say.
    changed = ("phase", "state", "evidence", "threshold", "reference", "records", "last_at")
    kept: sa.Insert = insert.on_conflict_do_update(
        index_elements=list(change_streams.primary_key), set_={name: insert.excluded[name] for name in changed}
    )
    return kept
