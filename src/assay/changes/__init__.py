"""The watch over pass ratios: when did the product get worse, and is it over?

Each label set and instrument (revision of a rubric, configuration of a judge) has a `Stream`: it learns what is usual,
then watches by an e-detector, alarms, and watches for the recovery by the detector's mirror image. `step` moves all of
them over the scores of closed minutes, in order of the interactions; it is pure, and `watch` reads and saves around it.
docs/explanation/changes.md says how it works, docs/decisions/0008-changes.md why.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from assay.changes._stream import ChangePolicy, Happening, Stream
from assay.records import now
from assay.store import ChangeEvent, ChangeStream, InstrumentName, Resolution
from assay.verdicts import settle_verdicts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from assay.rubrics import Rubric
    from assay.store import (
        ChangeKind,
        ChangeReading,
        RubricVersion,
        Store,
        StreamKey,
        StreamName,
        WatchedScore,
    )

__all__ = ["ChangePolicy", "Happening", "Step", "Stream", "Watched", "step", "watch"]

_log = logging.getLogger(__name__)

#: A stream without a record for so long is over, and so is its alarm.
_SILENT = timedelta(days=7)
_MOST_MODELS = 50

# -- one step of all streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a step came to."""

    #: those that changed
    streams: Sequence[ChangeStream]
    events: Sequence[ChangeEvent]
    resolutions: Sequence[Resolution]


def step(reading: ChangeReading, policy: ChangePolicy, objectives: Mapping[str, float]) -> Step:
    """Move the streams over what was read. Pure: the same reading gives the same step.

    Args:
        reading: see `Store.read_changes`.
        policy: how to decide.
        objectives: of rubrics, by rubric hash.
    """
    return _Step(reading, policy, objectives).run()


class _Step:
    def __init__(self, reading: ChangeReading, policy: ChangePolicy, objectives: Mapping[str, float]) -> None:
        self._reading, self._policy, self._objectives = reading, policy, objectives
        self._stored = dict(reading.streams)
        self._live: dict[StreamKey, Stream] = {}
        self._shown: dict[StreamKey, int] = {}
        self._last: dict[StreamKey, datetime] = {}
        self._events: dict[str, ChangeEvent] = {}
        self._resolutions: list[Resolution] = []
        #: instruments whose first score was looked at
        self._seen: set[tuple[str, str, str]] = set()
        self._retired = {InstrumentName.of(v).key for v in reading.versions if v.state == "retired"}
        self._placed = {InstrumentName.of(v).key for v in reading.versions}
        counted = sum(1 for stream in self._stored.values() if stream.phase in ("watching", "alarmed"))
        self._streams = policy.streams or max(1, counted)

    def run(self) -> Step:
        self._note_versions()
        self._end_replaced()
        for score in self._reading.scores:
            self._take(score)
        self._end_silent()
        return Step(
            streams=[self._row(key, stream) for key, stream in self._live.items()],
            events=list(self._events.values()),
            resolutions=self._resolutions,
        )

    def _take(self, score: WatchedScore) -> None:
        key = score.key
        name = self._reading.names[key]
        known = key in self._live
        stream = self._open(key)
        if not known and (key not in self._stored or not self._stored[key].records):
            self._note_unplaced(name, score)
        self._shown[key] = self._shown.get(key, 0) + 1
        self._last[key] = score.timestamp
        if stream.phase == "ended":
            if name.instrument.key in self._retired:
                return
            stream.revive()
            self._expect(key, stream)
        self._note_model(name, stream, score)
        happening = stream.take(score, self._objectives.get(name.instrument.rubric_hash), self._policy)
        if happening is not None:
            self._note(key, name, stream, happening)

    def _open(self, key: StreamKey) -> Stream:
        stream = self._live.get(key)
        if stream is None:
            stored = self._stored.get(key)
            stream = Stream() if stored is None else Stream(stored.phase, stored.state)
            self._live[key] = stream
            if stream.phase != "ended":
                self._expect(key, stream)
        return stream

    def _expect(self, key: StreamKey, stream: Stream) -> None:
        rubric_hash = self._reading.names[key].instrument.rubric_hash
        stream.expect(self._objectives.get(rubric_hash), self._policy, self._streams)

    def _note(self, key: StreamKey, name: StreamName, stream: Stream, happening: Happening) -> None:
        said = {"app": name.app, "rubric": name.instrument.rubric, "judge": name.instrument.judge}
        if happening.kind == "learned":
            self._expect(key, stream)
            _log.info("the usual pass ratio is learned", extra=said | {"what": happening.message})
            return
        if happening.kind == "recovered":
            if stream.alarm is not None:
                self._resolve(stream.alarm, happening.at, "recovered")
            stream.alarm = None
            _log.info("the pass ratio has recovered", extra=said | {"what": happening.message})
            return
        _log.warning("the pass ratio has dropped", extra=said | {"what": happening.message})
        event = ChangeEvent(
            event_id=ChangeEvent.id_of("drop", *map(str, key), happening.record_id),
            kind="drop",
            instrument=name.instrument,
            app=name.app,
            cohort=name.cohort,
            key=key,
            happened_at=happening.at,
            message=happening.message,
            details=happening.details,
            verdict="unknown",
        )
        stream.alarm = event.event_id
        self._events[event.event_id] = event

    def _resolve(self, event_id: str, at: datetime, resolution: str) -> None:
        self._resolutions.append(Resolution(event_id=event_id, resolved_at=at, resolution=resolution))

    # -- instruments that change

    def _note_versions(self) -> None:
        """An event for the latest version of each rubric that took another's place while somebody watched."""
        by_rubric: dict[str, list[RubricVersion]] = {}
        for version in self._reading.versions:
            by_rubric.setdefault(version.rubric, []).append(version)
        for versions in by_rubric.values():
            versions.sort(key=_activated)
            if len(versions) < 2 or _activated(versions[-1]) < self._reading.started_at:
                continue
            before, after = versions[-2:]
            self._note_instrument(InstrumentName.of(before), InstrumentName.of(after), _activated(after))

    def _note_unplaced(self, name: StreamName, score: WatchedScore) -> None:
        """The same for instruments that no gate has placed: the first score of a new one beside an older one."""
        own = name.instrument
        if own.key in self._seen:
            return
        self._seen.add(own.key)
        if own.key in self._placed or own.key in {s.name.instrument.key for s in self._stored.values() if s.records}:
            return
        others = [s for s in self._stored.values() if s.name.instrument.rubric == own.rubric and s.last_at is not None]
        if others:
            latest = max(others, key=lambda stream: stream.last_at or score.timestamp)
            self._note_instrument(latest.name.instrument, own, None, happened_at=score.timestamp)

    def _note_instrument(
        self,
        before: InstrumentName,
        after: InstrumentName,
        activated_at: datetime | None,
        happened_at: datetime | None = None,
    ) -> None:
        kind: ChangeKind = "rubric_changed"
        what = f"{before.rubric} {after.rubric_version} took the place of {before.rubric_version}"
        if before.judge_fingerprint != after.judge_fingerprint:
            kind = "judge_changed"
            was = before.judge if before.judge != after.judge else f"other settings of {before.judge}"
            what = f"{after.judge} took the place of {was}"
        moment = activated_at or happened_at
        if moment is None:
            return
        said = "first" if activated_at is None else activated_at.isoformat()
        event = ChangeEvent(
            event_id=ChangeEvent.id_of("instrument", *after.key, said),
            kind=kind,
            instrument=after,
            happened_at=moment,
            message=what,
            details={"before": before._asdict()},
        )
        self._events[event.event_id] = event

    def _note_model(self, name: StreamName, stream: Stream, score: WatchedScore) -> None:
        model = score.judge_model
        if model is None or model in stream.models or len(stream.models) >= _MOST_MODELS:
            return
        if stream.models:
            event = ChangeEvent(
                event_id=ChangeEvent.id_of("model", *name.instrument.key, model),
                kind="model_changed",
                instrument=name.instrument,
                happened_at=score.timestamp,
                message=f"{model} answers in place of {stream.models[-1]}, under the same settings",
                details={"before": stream.models[-1], "after": model},
            )
            self._events[event.event_id] = event
        stream.models.append(model)

    # -- streams that end

    def _end_replaced(self) -> None:
        for key, stored in self._stored.items():
            if stored.phase != "ended" and stored.name.instrument.key in self._retired:
                self._end(key, "replaced")

    def _end_silent(self) -> None:
        end = datetime.fromtimestamp(self._reading.end, UTC)
        for key, stored in self._stored.items():
            seen = self._last.get(key) or stored.last_at
            if stored.phase != "ended" and seen is not None and seen < end - _SILENT:
                self._end(key, "ended")

    def _end(self, key: StreamKey, resolution: str) -> None:
        stream = self._open(key)
        if stream.alarm is not None:
            self._resolve(stream.alarm, datetime.fromtimestamp(self._reading.end, UTC), resolution)
        stream.end()

    def _row(self, key: StreamKey, stream: Stream) -> ChangeStream:
        stored = self._stored.get(key)
        return ChangeStream(
            key=key,
            name=self._reading.names[key],
            phase=stream.phase,
            state=stream.state(),
            evidence=stream.evidence,
            threshold=stream.threshold,
            reference=stream.target,
            records=(stored.records if stored else 0) + self._shown.get(key, 0),
            last_at=self._last.get(key, stored.last_at if stored else None),
        )


# -- the watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What one call of `watch` did."""

    #: interactions before it are read, epoch seconds
    position: int
    scores: int
    events: int
    #: there is more to read at once
    behind: bool


def watch(
    store: Store,
    rubrics: Iterable[Rubric],
    policy: ChangePolicy,
    *,
    clock: Callable[[], datetime] = now,
    oldest_pending: float | None = None,
    limit: int = 20_000,
    max_steps: int = 20,
) -> Watched:
    """Move the watch over what has settled, a step at a time, and note verdicts. Safe to run twice at once.

    Args:
        store: of the scores.
        rubrics: of the rubric files: their objectives.
        policy: how to decide.
        clock: the present, aware.
        oldest_pending: when the oldest record on the queue was enqueued, epoch seconds: its minute is waited for.
        limit: scores of one step.
        max_steps: of one call, so that it ends.

    Raises:
        StoreError: the store is away; what was saved stands.
    """
    present = clock().timestamp()
    until = present - policy.settle_seconds
    if oldest_pending is not None:
        until = min(until, max(oldest_pending - policy.settle_seconds, until - policy.wait_seconds))
    scores = events = 0
    behind = True
    position = int(until)
    for _ in range(max_steps):
        reading = store.read_changes(int(until), limit=limit, present=int(present))
        position = reading.end
        done = step(reading, policy, _objectives(rubrics, reading.versions))
        if not store.save_changes(reading, done.streams, done.events, done.resolutions):
            # Another worker was faster: the rest is its.
            break
        scores += len(reading.scores)
        events += len(done.events)
        behind = reading.end + 60 <= until
        if not behind:
            break
    settle_verdicts(store, clock=clock)
    return Watched(position=position, scores=scores, events=events, behind=behind)


def _objectives(rubrics: Iterable[Rubric], versions: Iterable[RubricVersion]) -> dict[str, float]:
    """Objectives by rubric hash; those of the files win over those that were placed once."""
    found: dict[str, float] = {}
    for version in versions:
        try:
            objective = json.loads(version.body).get("objective")
        except (ValueError, AttributeError):
            continue
        if isinstance(objective, int | float) and 0.0 < objective < 1.0:
            found[version.rubric_hash] = float(objective)
    for rubric in rubrics:
        found.pop(rubric.hash, None)
        if rubric.objective is not None:
            found[rubric.hash] = rubric.objective
    return found


def _activated(version: RubricVersion) -> datetime:
    return version.activated_at or datetime.min.replace(tzinfo=UTC)
