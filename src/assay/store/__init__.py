"""Where scores are kept: SQLite or PostgreSQL. The only package that knows SQL.

One commit stores what a batch came to and, in the same transaction, adds what was really new to sums by the minute and
the hour, to totals and to counters. A repeat adds nothing, so every number counts each evaluation once, whatever is
delivered twice. The time series are read from those sums alone.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from assay.codec import decode_record
from assay.errors import ConfigError
from assay.records import Evaluation, Record, Score, Usage, now
from assay.store import (
    _attacks,
    _calibrations,
    _canary,
    _changes,
    _comparisons,
    _defects,
    _label_requests,
    _migrate,
    _outbox,
    _purge,
    _reads,
    _rekey,
    _signals,
    _subjects,
    _trends,
)
from assay.store._attacks import AttackCounts, AttackRun, Defences
from assay.store._canary import CanaryRun, DriftVerdict, Trigger, Verdict
from assay.store._changes import (
    ChangeEvent,
    ChangeKind,
    ChangeReading,
    ChangeStream,
    Resolution,
    StreamKey,
    StreamName,
    StreamPhase,
    WatchedScore,
)
from assay.store._commit import Batch
from assay.store._comparisons import ComparedScore
from assay.store._database import Database
from assay.store._defects import DefectCount, DefectFinding
from assay.store._instruments import InstrumentName
from assay.store._labels import OTHER, Labels
from assay.store._rollups import Additions
from assay.store._rows import (
    SCORE_BOUNDS,
    CalibrationState,
    Claimed,
    Committed,
    Counts,
    DeadLetter,
    Exemplar,
    Finding,
    LabelCandidate,
    LabelRequest,
    OutboxDepth,
    OutboxRow,
    OutcomeName,
    Rollup,
    RubricVersion,
    Settled,
    Stored,
    StoredCalibration,
    StoredVerdict,
    Total,
    VersionState,
    WriteOutcome,
)
from assay.store._scope import Scope
from assay.store._sealing import Sealing, new_key
from assay.store._signals import CostRollup, InputBin, SignalRollup, Slot, SlotReading, SlotSums
from assay.store._subjects import Subject
from assay.store._suspects import Suspect, read_suspects
from assay.store._tables import dead_letters, evaluations, instruments, payloads, records, text
from assay.store._trends import Group, Spending

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from assay.calibration import Calibration
    from assay.windows import Span

__all__ = [
    "OTHER",
    "SCORE_BOUNDS",
    "AttackCounts",
    "AttackRun",
    "CalibrationState",
    "CanaryRun",
    "ChangeEvent",
    "ChangeKind",
    "ChangeReading",
    "ChangeStream",
    "Claimed",
    "Committed",
    "ComparedScore",
    "CostRollup",
    "Counts",
    "DeadLetter",
    "DefectCount",
    "DefectFinding",
    "Defences",
    "DriftVerdict",
    "Exemplar",
    "Finding",
    "Group",
    "InputBin",
    "InstrumentName",
    "LabelCandidate",
    "LabelRequest",
    "OutboxDepth",
    "OutboxRow",
    "OutcomeName",
    "Resolution",
    "Rollup",
    "RubricVersion",
    "Settled",
    "SignalRollup",
    "Slot",
    "SlotReading",
    "SlotSums",
    "Spending",
    "Store",
    "Stored",
    "StoredCalibration",
    "StoredVerdict",
    "StreamKey",
    "StreamName",
    "StreamPhase",
    "Subject",
    "Suspect",
    "Total",
    "Trigger",
    "Verdict",
    "VersionState",
    "WatchedScore",
    "WriteOutcome",
    "new_key",
]


class Store:
    """The score store at a database URL. Thread-safe; nothing is connected until it is used.

    Every method that touches the database raises StoreError when it is away, full, read-only or not migrated; nothing
    was changed then, and the same call may be made again. It raises StoreDataError when the database refuses what it
    was given: nothing was changed either, and the same call can never succeed.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://user@host/name`.
        cohort_labels: labels to keep sums by, besides the app: record fields (`route`, `model`, `prompt_version`) or
            keys of `record.cohort`.
        max_series: most label sets (app and cohort labels) to keep sums by, at least 2. What comes later counts as
            "other": first among the other cohorts of its app, then, when there are too many apps, of any app.
        sinks: to which sinks what is committed from now on is owed, and which outcomes each of them takes.
        apps: confines every method to the rows of these; empty: all. What is of no app (rubrics, judges, calibrations,
            canaries) stays in sight, and what is counted of all apps together is not.
        payload_keys: Fernet keys that texts are sealed at rest with: the first seals, all open. Empty: in plain.

    Raises:
        SettingsError: the URL is not that of a supported database, or a key is not one.
        MissingExtraError: PostgreSQL's driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        cohort_labels: Sequence[str] = (),
        max_series: int = 200,
        sinks: Mapping[str, Collection[OutcomeName]] | None = None,
        apps: Collection[str] = (),
        payload_keys: Sequence[str] = (),
    ) -> None:
        self._sinks = dict(sinks or {})
        self._database = Database(url, scope=Scope(apps) if apps else None, sealing=Sealing(payload_keys))
        self._labels = Labels(cohort_labels, max_series)
        self._names = _reads.Names(self._labels.names)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the apps that it is confined to

    def shows(self, app: str) -> bool:
        """Whether an app is in sight."""
        scope = self._database.scope
        return scope is None or app in scope.apps

    def of_all_apps(self) -> Store:
        """The same store without a filter, over the same connections."""
        whole = copy.copy(self)
        whole._database = self._database.unconfined()
        whole._names = _reads.Names(self._labels.names)
        return whole

    # -- the schema

    def upgrade(self) -> None:
        """Bring the schema to this version's, while workers of the version before go on.

        Safe to run at any time, by several processes and threads at once. The schema of a newer version that serves
        this one is left as it is.

        Raises:
            SchemaError: the schema is of a newer version that does not serve this one.
        """
        _migrate.upgrade(self._database)

    def check(self) -> None:
        """See that the database answers and has this version's schema, or a newer one that serves this version too.

        Raises:
            StoreError: it does not; the message says what to do.
        """
        _migrate.check(self._database)

    def check_writable(self) -> None:
        """See that rows may be inserted, changed and deleted; none is.

        Raises:
            StoreError: the database, or the rights of its role, forbid it.
        """

        def work(connection: sa.Connection) -> None:
            never = sa.literal(1) == 0
            for table in (records, dead_letters):
                key = next(iter(table.primary_key))
                names = [column.name for column in table.c]
                connection.execute(sa.insert(table).from_select(names, sa.select(table).where(never)))
                connection.execute(sa.update(table).where(never).values({key.name: key}))
                connection.execute(sa.delete(table).where(never))

        self._database.write(work)

    def check_keys(self) -> None:
        """See that the keys open what was stored last.

        Raises:
            StoreError: they do not.
        """
        with self._database.read() as connection:
            for table in (payloads, dead_letters):
                latest = sa.select(table.c.payload).order_by(table.c.created_at.desc()).limit(1)
                connection.execute(latest).all()

    def rekey(self) -> Iterator[tuple[str, int, int]]:
        """Seal with the first key whatever is in plain or sealed with another, in small transactions.

        Safe beside workers, and after being cut off: what is sealed with the first key is passed over.

        Yields:
            After each transaction: the table, its rows read so far, and how many of them were changed.

        Raises:
            SettingsError: there are no keys.
            StoreError: no key opens a text; it stays as it is.
        """
        return _rekey.rekey(self._database.unconfined())

    # -- what a worker does

    def existing(self, record_ids: Collection[str]) -> dict[uuid.UUID, Stored]:
        """Outcomes that are stored of these records, by evaluation id."""
        if not record_ids:
            return {}
        columns = (evaluations.c.evaluation_id, evaluations.c.outcome, evaluations.c.failure_kind)
        found: dict[uuid.UUID, Stored] = {}
        with self._database.read() as connection:
            for chunk in _purge.chunks(sorted({text(record_id) for record_id in record_ids}), _purge.LOOKUP_CHUNK):
                rows = connection.execute(sa.select(*columns).where(evaluations.c.record_id.in_(chunk)))
                found.update((key, Stored(outcome=outcome, kind=kind)) for key, outcome, kind in rows)
        return found

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
            dead_letters: what could not be processed. One that waits already has the latest message, attempts and
                time; one that was replayed waits again.
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
        batch = Batch(records, evaluations, dead_letters, duplicates=duplicates, replay=replay, sinks=self._sinks)
        return batch.commit(self._database, self._labels)

    # -- what a scrape reads: its cost does not grow with what is stored

    def rollups(self, start: int, end: int) -> list[Rollup]:
        """Sums over the interactions that happened in [start, end), for each label set and instrument that has any.

        `start` and `end` are epoch seconds on a minute. Minutes are kept for two days, hours longer.
        """
        with self._database.read() as connection:
            return _reads.read_rollups(connection, self._names, start, end)

    def signals(self, start: int, end: int) -> list[SignalRollup]:
        """Sums of signals over the interactions of [start, end), as `rollups` does, each record counted once."""
        with self._database.read() as connection:
            return _signals.read_signals(connection, self._names, start, end)

    def costs(self, start: int, end: int) -> list[CostRollup]:
        """What the scored interactions of [start, end) cost, and whether they passed, by label set and rubric."""
        with self._database.read() as connection:
            return _signals.read_costs(connection, self._names, start, end)

    def signal_slots(self, spans: Sequence[Span], known: Mapping[Slot, int]) -> SlotReading:
        """The sums of `rollups`, `signals` and `costs` by minute and hour, as of one moment, but those the caller has.

        Args:
            spans: the minutes and hours to read.
            known: versions of those that were read before; what has another version by now is read again.
        """
        with self._database.read() as connection:
            return _signals.read_slots(connection, self._names, spans, known)

    def inputs(self, start: int, end: int, *, by_day: bool = False) -> list[InputBin]:
        """How the inputs of [start, end) are spread over the bins of each feature, by app; epoch seconds on an hour.

        With `by_day`, for each day (UTC) that starts in it. Hours are kept for two days, days as long as hourly sums.
        """
        with self._database.read() as connection:
            return _signals.read_inputs(connection, start, end, by_day=by_day)

    def totals(self) -> list[Total]:
        """Everything ever counted by label set; the numbers only grow."""
        with self._database.read() as connection:
            return _reads.read_totals(connection, self._names)

    def counts(self) -> Counts:
        """Everything else that is counted."""
        with self._database.read() as connection:
            return _reads.read_counts(connection, confined=self._database.scope is not None)

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

    def suspects(self, since: datetime, limit: int = 20) -> list[Suspect]:
        """Records stored since then (aware) with signs of a prompt injection, the latest stored first."""
        with self._database.read() as connection:
            return read_suspects(connection, since, limit)

    # -- what the weekly report reads: it goes through the evaluations of its time

    def groups(self, start: datetime, end: datetime, fields: Sequence[str], *, least: int = 30) -> list[Group]:
        """Scored records of the interactions in [start, end), added up by the values of each field, and by app.

        A group is of one app, one value and one instrument, and has `least` records or more. `fields` are `route`,
        `model`, `prompt_version` or keys of the cohort; the whole of an app comes first, as the field "".
        """
        return _trends.read_groups(self._database, start, end, fields, least=least)

    def spending(self, start: datetime, end: datetime) -> list[Spending]:
        """What judging the interactions in [start, end) took, by app and judge."""
        return _trends.read_spending(self._database, start, end)

    def claim_report(self, due: int, *, now: float, lease_seconds: float = 600.0) -> bool:
        """Take it on to send the report that was due at `due` (epoch seconds); True for one caller while the lease
        lasts, and for none once `settle_report` has said that it was sent.
        """
        return _trends.claim_report(self._database, due, now=now, lease_seconds=lease_seconds)

    def settle_report(self, due: int) -> None:
        """Note that the claimed report was sent."""
        _trends.settle_report(self._database, due)

    # -- calibrations, and the rubrics that wait for one

    def save_calibration(self, calibration: Calibration) -> None:
        """Keep a calibration, which from now on is the latest of its rubric hash and judge fingerprint.

        One that was saved before stays as it was first saved, and stale if it was marked so.
        """
        _calibrations.save_calibration(
            self._database,
            StoredCalibration(
                calibration_id=calibration.calibration_id,
                rubric=calibration.rubric,
                rubric_version=calibration.rubric_version,
                rubric_hash=calibration.rubric_hash,
                judge=calibration.judge,
                judge_fingerprint=calibration.judge_fingerprint,
                created_at=calibration.created_at,
                body=calibration.to_json(),
            ),
        )

    def calibrations(self, rubric: str | None = None, *, bodies: bool = True) -> list[StoredCalibration]:
        """The latest calibration of each rubric hash and judge fingerprint; of one rubric name, or of all.

        Without `bodies` theirs are empty: see `calibration_bodies`.
        """
        return _calibrations.read_calibrations(self._database, rubric=rubric, bodies=bodies)

    def calibration_bodies(self, calibration_ids: Collection[str]) -> dict[str, str]:
        """The bodies of those that are stored, by id. A body never changes."""
        return _calibrations.read_bodies(self._database, calibration_ids) if calibration_ids else {}

    def mark_calibration_stale(self, calibration_id: str, reason: str) -> bool:
        """Note that an audit failed, and why (one sentence). False when it was stale already, or is not stored."""
        return _calibrations.mark_stale(self._database, calibration_id, reason)

    def save_attack_run(self, run: AttackRun) -> None:
        """Keep what attacks on a judge came to. The latest of an instrument is the one that counts."""
        _attacks.save_run(self._database, run)

    def attack_runs(self) -> list[AttackRun]:
        """The latest run of attacks on each instrument, the oldest first."""
        return _attacks.read_runs(self._database)

    def rubric_versions(self, rubric: str | None = None, *, retired: bool = True) -> list[RubricVersion]:
        """The versions that ever were placed, of one rubric or of all; by rubric, the latest change first.

        Without `retired`, only those that are active or wait.
        """
        return _calibrations.read_versions(self._database, rubric=rubric, retired=retired)

    def has_scores(self, rubric_hash: str, judge_fingerprint: str) -> bool:
        """Whether any record was ever scored under this question by this judge."""
        return _calibrations.has_scores(self._database, rubric_hash, judge_fingerprint)

    def place_rubric(self, version: RubricVersion) -> None:
        """Make a version active, or let it wait. Any number of processes may place the same one, in any order.

        A new active version retires the one before it, and every version that waits; a waiting one retires those
        that wait, but not the active one. What is active does not begin to wait.
        """
        _calibrations.place_version(self._database, version)

    # -- labels

    def label_candidates(
        self,
        rubric: str,
        start: datetime,
        end: datetime,
        *,
        instrument: tuple[str, str] | None = None,
        payloads: bool = True,
    ) -> list[LabelCandidate]:
        """Records scored under a rubric that people can label, by time of the interaction in [start, end), in order.

        Each record once, with its latest score; those whose text was purged are left out.

        Args:
            rubric: its name.
            instrument: (rubric hash, judge fingerprint): only scores of this one.
            payloads: without it, texts are left out: ask for those of the few that were picked.
        """
        return _label_requests.read_candidates(
            self._database, rubric, start, end, instrument=instrument, with_payload=payloads
        )

    def request_labels(self, requests: Sequence[LabelRequest]) -> int:
        """Note which records were picked for people to label; returns how many were not picked before.

        A record that was picked under the rubric already keeps the probability it was picked with first. One that is
        not stored is left out.
        """
        return _label_requests.request_labels(self._database, requests)

    def label_requests(self, rubric: str | None = None) -> list[LabelRequest]:
        """Every request whose record is still stored; by rubric and time."""
        return _label_requests.read_requests(self._database, rubric)

    def mark_labels(self, rubric: str, record_ids: Iterable[str], step: Literal["exported", "labelled"]) -> int:
        """Note that requests were handed to people, or came back; returns how many had not come so far until now."""
        return _label_requests.mark_step(self._database, rubric, record_ids, step)

    def payloads(self, record_ids: Iterable[str]) -> dict[str, str]:
        """The wire forms of these records, by record id; without those that are not stored, or no more."""
        return _label_requests.read_payloads(self._database, record_ids)

    def records(self, record_ids: Iterable[str]) -> list[Record]:
        """These records, in order of their ids; without those that are not stored, or no more."""
        return _decoded(self.payloads(record_ids))

    def records_called(self, names: Iterable[str]) -> list[Record]:
        """Records by id, span id or trace id, in order of their ids; without those that are not stored, or no more.

        It reads through the records: for what a person does once, not for a worker.
        """
        return _decoded(_label_requests.read_payloads_called(self._database, names))

    def verdicts(
        self, record_ids: Iterable[str], *, rubric_hash: str, judge_fingerprint: str
    ) -> dict[str, StoredVerdict]:
        """What this judge made of these records, by record id; without those that it has not scored."""
        return _label_requests.read_verdicts(self._database, record_ids, rubric_hash, judge_fingerprint)

    # -- changes: what `assay.changes` and `assay.canary` keep

    def read_changes(self, until: int, *, limit: int = 20_000, present: int | None = None) -> ChangeReading:
        """What the next step of the watch starts from: scores from its position up to `until` (epoch seconds).

        About `limit` scores at most, in whole minutes; `end` of the reading says how far it goes. A position more than
        an hour after `present` (epoch seconds) was reached by a clock that ran ahead: it goes back to `until`.
        """
        return _changes.read_changes(self._database, self._names, until, limit, present=present)

    def save_changes(
        self,
        reading: ChangeReading,
        streams: Collection[ChangeStream],
        events: Collection[ChangeEvent] = (),
        resolutions: Collection[Resolution] = (),
    ) -> bool:
        """Save what a step came to, all of it or nothing, and move the position to `reading.end`.

        Also counts what was scored after its minute was read. False, and nothing is saved, when somebody else has
        changed anything since the reading.
        """
        return _changes.save_changes(self._database, reading, streams, events, resolutions)

    def change_streams(self) -> list[ChangeStream]:
        """Every detector, without its state; the one that was shown something last comes last."""
        return _changes.read_streams(self._database, self._names)

    def change_position(self) -> int | None:
        """How far the watch has read, epoch seconds of interactions; None before its first step."""
        return _changes.read_position(self._database)

    def change_events(
        self,
        *,
        kinds: Collection[ChangeKind] | None = None,
        open_only: bool = False,
        rubric: str | None = None,
        limit: int = 100,
    ) -> list[ChangeEvent]:
        """Events, newest first; with `open_only` those drops that are not over."""
        return _changes.read_events(self._database, kinds=kinds, open_only=open_only, rubric=rubric, limit=limit)

    def change_event(self, event_id: str) -> ChangeEvent:
        """One event, by its id or the beginning of it.

        Raises:
            ConfigError: there is none, or more than one.
        """
        return _changes.read_event(self._database, event_id)

    def acknowledge_change(self, event: ChangeEvent, *, note: str = "", accept: bool = False) -> bool:
        """Note that a person has seen it; False when it is not stored.

        With `accept` the present becomes the reference: the detector of a drop learns anew, and what the latest canary
        read is what later ones are compared with.
        """
        return _changes.acknowledge(self._database, event, note=note, accept=accept)

    def drift_verdicts(self) -> list[DriftVerdict]:
        """The latest verdict on each instrument that ever had one."""
        return _canary.read_verdicts(self._database)

    def save_verdict(self, verdict: DriftVerdict, event: ChangeEvent) -> bool:
        """Note a verdict, with its event if it is another than the latest; open drops of the instrument get it too.

        False when it is the same; its reason is kept all the same.
        """
        return _changes.save_verdict(self._database, verdict, event)

    def claim_canary(self, instrument: InstrumentName, seconds: float) -> bool:
        """Have the canary of an instrument for so long, or until it is saved or freed; False when somebody has it."""
        return _canary.claim_canary(self._database, instrument, seconds)

    def save_canary(self, run: CanaryRun) -> None:
        """Keep a run, and free the canary. Runs that are no baseline go after 400 days."""
        _canary.save_canary(self._database, run)

    def free_canary(self, instrument: InstrumentName) -> None:
        """Give a claim back."""
        _canary.free_canary(self._database, instrument)

    def canaries(self, *, baselines: bool = False, told: bool = False) -> list[CanaryRun]:
        """The latest run of each instrument, or the one that its next run is compared with.

        With `told`, the latest of those that could tell: whose cause is not unknown.
        """
        return _canary.read_canaries(self._database, baselines=baselines, told=told)

    def canary_runs(self, since: datetime) -> list[CanaryRun]:
        """Every run that ended since then, the oldest first."""
        return _canary.read_runs(self._database, since)

    def canary_spent(self, since: datetime) -> float:
        """What the canaries that ended since then cost, in USD."""
        return _canary.canary_spent(self._database, since)

    # -- the outbox: what is owed to sinks

    def claim_outbox(
        self, sink: str, claim: str, *, limit: int, until: datetime, alone_after: int = 3
    ) -> list[Claimed]:
        """Take up to `limit` (at most 1,000) of what is due to a sink in hand, the longest due first.

        Nobody else gets it before `until` (aware), which `renew_outbox` puts off. What was in hand `alone_after` times
        without a word of what came of it comes alone.

        Args:
            sink: name of the sink.
            claim: a name for this claim that no other has, 1 to 64 characters.
            limit: most to take.
            until: when the claim ends.
            alone_after: see above.
        """
        return _outbox.claim(self._database, sink, claim, limit=limit, until=until, alone_after=alone_after)

    def renew_outbox(self, sink: str, claim: str, keys: Sequence[tuple[str, uuid.UUID]], until: datetime) -> None:
        """Put off the end of a claim on what it still holds; keys are record id and evaluation id."""
        _outbox.renew(self._database, sink, claim, keys, until)

    def settle_outbox(self, sink: str, claim: str, settled: Mapping[tuple[str, uuid.UUID], Settled]) -> int:
        """Note what came of a claim, and count it; returns how many were still held.

        What somebody else has claimed meanwhile, or what has another outcome by now, stays as it is.
        """
        return _outbox.settle(self._database, sink, claim, settled)

    def expire_outbox(self, before: datetime, reason: str) -> int:
        """Set aside what has waited since before then and is in nobody's hands; returns how many.

        The latest reason that it waited for is put behind `reason`.
        """
        return _outbox.expire(self._database, before, reason)

    def outbox_depths(self) -> dict[str, OutboxDepth]:
        """What is owed to each sink that anything was ever owed to; its cost does not grow with what is owed."""
        return _outbox.depths(self._database)

    def outbox(
        self,
        *,
        sink: str | None = None,
        state: Literal["waiting", "rejected"] | None = None,
        reason: str | None = None,
        limit: int = 100,
    ) -> list[OutboxRow]:
        """What is owed, newest first; only of a sink, in a state, or with `reason` in its reason."""
        return _outbox.list_rows(self._database, sink=sink, state=state, reason=reason, limit=limit)

    def outbox_rows(self, evaluation_id: str) -> list[OutboxRow]:
        """What is owed of one evaluation, by its id or the beginning of it (4 characters or more).

        Raises:
            ConfigError: nothing is owed of any such, or of more than one.
        """
        return _outbox.find_rows(self._database, evaluation_id)

    def retry_outbox(
        self, *, sink: str | None = None, reason: str | None = None, evaluation_id: uuid.UUID | None = None
    ) -> int:
        """Let what was set aside wait again, with a new deadline; of all of it, what fits. Returns how many."""
        return _outbox.retry(self._database, sink=sink, reason=reason, evaluation_id=evaluation_id)

    # -- defects: what is wrong with answers that did not pass

    def defect_totals(self) -> list[DefectCount]:
        """Everything ever counted by label set and class; the numbers only grow. `n` less `moved` are of it now.

        Its cost does not grow with what is stored.
        """
        with self._database.read() as connection:
            return _defects.read_totals(connection, self._names)

    def defect_mix(self, since: datetime, until: datetime) -> list[DefectCount]:
        """The classes in force of the interactions of [since, until) (aware), by label set; it reads their scores."""
        with self._database.read() as connection:
            return _defects.read_mix(connection, self._names, since, until)

    def defects(
        self,
        since: datetime,
        *,
        rubric: str | None = None,
        defect: str | None = None,
        limit: int = 50,
    ) -> list[DefectFinding]:
        """Scores with a class of the interactions since then (aware), newest first."""
        with self._database.read() as connection:
            return _defects.read_findings(connection, since=since, rubric=rubric, defect=defect, limit=limit)

    def set_defect(self, record: str, rubric: str, defect: str) -> int:
        """Note which class a person puts a record into that did not pass; returns how many of its scores it is new to.

        It holds for every score of the record under a rubric of this name, those to come included, and wins over
        what their judges named.

        Args:
            record: record, trace or span id.
            rubric: name of the rubric.
            defect: a class of `assay.defects.CLASSES`.

        Raises:
            ConfigError: there is no such record, score or class, or it passed.
        """
        return _defects.set_defect(self._database, record, rubric, defect)

    # -- comparing what happened under one version with another

    def compared_scores(
        self,
        by: str,
        since: datetime,
        until: datetime,
        *,
        rubric: str | None = None,
    ) -> Iterator[ComparedScore]:
        """Every evaluation of the interactions of [since, until) (aware), with the group that it falls into.

        Args:
            by: `prompt_version`, `model`, `route`, `rubric_version`, `judge`, or a key of `record.cohort`.
            since: first moment.
            until: first moment that is out of it.
            rubric: only of this name.
        """
        with self._database.read() as connection:
            yield from _comparisons.read_scores(connection, by, since, until, rubric=rubric)

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

        An id is found at once; for a beginning all are looked through.

        Raises:
            ConfigError: there is none, or more than one.
        """
        exact = dead_letters.c.dead_id == dead_id
        begins = dead_letters.c.dead_id.startswith(dead_id, autoescape=True)
        found: list[DeadLetter] = []
        with self._database.read() as connection:
            # The whole id first: no index helps to find a beginning.
            for condition in (exact, begins):
                if not found:
                    rows = connection.execute(sa.select(dead_letters).where(condition).limit(2)).mappings()
                    found = [DeadLetter(**row) for row in rows]
        if len(found) != 1:
            raise ConfigError(f"{'no' if not found else 'more than one'} dead letter has an id like {dead_id!r}")
        return found[0]

    def mark_replayed(self, dead_ids: Iterable[str], *, as_read: Mapping[str, datetime | None] | None = None) -> int:
        """Note that these are back on the queue; returns how many were waiting until now.

        Args:
            dead_ids: ids of dead letters.
            as_read: `created_at` by id, as the letters were read. One that has failed again since then has another,
                and goes on waiting. An id that is not in it is marked whatever happened.
        """
        wanted = sorted(set(dead_ids))
        read = {key: moment for key, moment in (as_read or {}).items() if moment is not None}

        def work(connection: sa.Connection) -> int:
            additions = Additions(now().timestamp())
            marked = 0
            for chunk in _purge.chunks(wanted):
                unchanged = sa.or_(
                    dead_letters.c.dead_id.in_([key for key in chunk if key not in read]),
                    sa.tuple_(dead_letters.c.dead_id, dead_letters.c.created_at).in_(
                        [(key, read[key]) for key in chunk if key in read]
                    ),
                )
                statement = (
                    sa.update(dead_letters)
                    .where(unchanged, dead_letters.c.replayed_at.is_(None))
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

        Texts by `payload_days`, and with them what judges and sinks said of the record (`explanations`: evaluations
        that had any); records with their scores by `score_days`, dead letters by `dead_days`. Hourly sums by the time
        of the interactions and `rollup_days` (minute sums after two days), totals of label sets that got nothing new
        for as long.

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

    def erase(self, subject: Subject, *, dry_run: bool = False) -> dict[str, int]:
        """Delete the texts of a subject's records, in small transactions; scores and everything counted stay.

        Gone are the texts of the records, of their verdicts and of their dead letters, what is owed to sinks, and the
        ids of traces, spans, sessions and interactions elsewhere. The records and evaluations themselves stay under
        their ids: one that is delivered again is known, counts nothing and brings no text back.

        Args:
            subject: whose records. Those of a user are known by their texts, as long as these are kept.
            dry_run: count only.

        Returns:
            How many: `records` found, `payloads`, `explanations` (evaluations with texts), `dead_letters`,
            `dead_letters_rewritten` (batches with records of others, which stay), `outbox`, `links` (records with ids
            of elsewhere) and `exemplars`.
        """
        return _subjects.erase(self._database, subject, dry_run=dry_run)

    def close(self) -> None:
        """Close the connections. The store may be used again: it opens new ones."""
        self._database.close()


def _decoded(payloads: Mapping[str, str]) -> list[Record]:
    # As large as it was when it was stored.
    return [decode_record(payload, max_bytes=len(payload.encode())) for _, payload in sorted(payloads.items())]


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
                defect=row.person_defect or row.defect,
            ),
        ),
    )
