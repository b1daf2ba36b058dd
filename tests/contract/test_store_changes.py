"""Detectors, events, verdicts and canaries in the store: every test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pytest
import sqlalchemy as sa

from assay.changes import ChangePolicy, Stream, step, watch
from assay.errors import ConfigError
from assay.records import Failure, Outcome, Record
from assay.rubrics import Rubric
from assay.store import (
    CanaryRun,
    ChangeEvent,
    ChangeStream,
    DriftVerdict,
    InstrumentName,
    Resolution,
    RubricVersion,
    Store,
)
from assay.verdicts import settle_verdicts
from judging import binary
from stores import EPOCH, HOUR_START, a_record, an_evaluation, commit, connected, with_payloads

#: A judge that scores 1 or 0; `an_evaluation` passes from 0.5 up.
POLICY = ChangePolicy(reference_records=200, settle_seconds=60, false_alarm_days=1, recovery_records=100)
NAME = InstrumentName("relevance", "1-0a1b2c3d", "0a1b2c3d" * 8, "lexical", "f" * 64)
OTHER = NAME._replace(judge="other", judge_fingerprint="e" * 64)


@pytest.fixture
def open_store(open_store: Callable[..., Store]) -> Callable[[], Store]:
    return partial(open_store, cohort_labels=["route"])


def at(seconds: float) -> Callable[[], datetime]:
    """A clock that stands."""
    return lambda: HOUR_START + timedelta(seconds=seconds)


def traffic(
    store: Store, passes: object, start: float = 0.0, *, step: float = 6.0, prefix: str = "r", **fields: object
) -> float:
    """Commit records, one every `step` seconds of interaction time; returns the second after the last."""
    pairs: list[tuple[Record, Outcome | float]] = []
    for index, passed in enumerate(passes):  # type: ignore[arg-type, var-annotated]
        seconds = start + index * step
        pairs.append((a_record(f"{prefix}{seconds:09.1f}", seconds=seconds, **fields), float(passed)))  # type: ignore[arg-type]
    for first in range(0, len(pairs), 500):
        commit(store, *pairs[first : first + 500])
    return start + len(pairs) * step


def look(store: Store, seconds: float, policy: ChangePolicy = POLICY, **options: object) -> object:
    return watch(store, RUBRICS, policy, clock=at(seconds + 120), **options)  # type: ignore[arg-type]


#: Its hash is not that of the scores here; see `objective`.
RUBRICS: list[Rubric] = [binary("relevance", objective=0.9)]


def rates(*parts: tuple[int, float], seed: int = 0) -> list[bool]:
    rng = np.random.default_rng(seed)
    return [bool(passed) for n, rate in parts for passed in rng.random(n) < rate]


def only(store: Store) -> ChangeStream:
    (stream,) = store.change_streams()
    return stream


# -- the watch


def test_the_store_path_is_the_detector(store: Store) -> None:
    """What comes of committed records is what a stream says that is fed by hand."""
    passes = rates((400, 0.95), (150, 0.6), (400, 0.97))
    end = traffic(store, passes)
    look(store, end)
    reading = store.read_changes(EPOCH + 1)
    (stored,) = reading.streams.values()
    by_hand = Stream()
    for index, passed in enumerate(passes):
        given = a_record(f"r{index * 6.0:09.1f}", seconds=index * 6.0)
        score = _watched(given, passed)
        happening = by_hand.take(score, None, POLICY)
        if happening is not None and happening.kind == "learned":
            by_hand.expect(None, POLICY, 1)
        if happening is not None:
            by_hand.alarm = None
    assert (stored.phase, stored.records) == ("watching", 950)
    assert stored.evidence == pytest.approx(by_hand.evidence)
    assert Stream(stored.phase, stored.state).state() == by_hand.state()


def _watched(record: Record, passed: bool) -> object:
    from assay.store import WatchedScore

    return WatchedScore(
        key=(1, 1), record_id=record.record_id, timestamp=record.timestamp, weight=1.0, passed=passed, judge_model=None
    )


def test_a_drop_is_an_event_and_a_recovery_ends_it(store: Store) -> None:
    end = traffic(store, rates((500, 0.95), (200, 0.6)))
    look(store, end)
    (event,) = store.change_events(kinds=["drop"])
    assert (event.app, event.cohort, event.instrument, event.resolved_at) == ("shop", {"route": ""}, NAME, None)
    assert event.noted_at is not None
    assert event.details["against"] == "reference"
    assert store.change_events(open_only=True) == [event]
    assert store.change_event(event.event_id[:6]) == event
    assert only(store).phase == "alarmed"
    end = traffic(store, rates((600, 0.97)), end)
    look(store, end)
    (over,) = store.change_events(kinds=["drop"])
    assert (over.event_id, over.resolution) == (event.event_id, "recovered")
    assert over.resolved_at is not None
    assert HOUR_START < over.resolved_at < HOUR_START + timedelta(seconds=end)
    assert store.change_events(open_only=True) == []
    assert only(store).phase == "watching"


def test_steps_of_any_size_and_a_restart_between_them_come_to_the_same(open_store: Callable[[], Store]) -> None:
    store = open_store()
    store.upgrade()
    passes = rates((500, 0.95), (200, 0.6))
    seconds = 0.0
    for first in range(0, len(passes), 70):
        seconds = traffic(store, passes[first : first + 70], seconds)
        store.close()
        store = open_store()
        look(store, seconds - 30, limit=37, max_steps=1 + first % 3)
        assert (store.change_position() or 0) % 60 == 0
        assert only(store).late == 0
    look(store, seconds)
    look(store, seconds)
    stream = only(store)
    assert (stream.phase, stream.records, stream.late) == ("alarmed", 700, 0)
    (event,) = store.change_events(kinds=["drop"])
    assert event.details["records"] >= POLICY.min_records


def test_two_that_watch_at_once_count_each_score_once(open_store: Callable[[], Store]) -> None:
    stores = [open_store() for _ in range(4)]
    stores[0].upgrade()
    end = traffic(stores[0], rates((500, 0.95), (300, 0.6)))

    def work(store: Store) -> None:
        for _ in range(30):
            look(store, end, limit=50, max_steps=3)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, stores))
    look(stores[0], end)
    stream = only(stores[0])
    assert (stream.records, stream.late, stream.phase) == (800, 0, "alarmed")
    assert len(stores[0].change_events(kinds=["drop"])) == 1


def test_the_slower_of_two_saves_nothing(store: Store) -> None:
    end = traffic(store, rates((500, 0.95), (200, 0.6)))
    until = EPOCH + int(end)
    # Before the first step ever, and after it.
    for _ in range(2):
        slow, fast = store.read_changes(until, limit=300), store.read_changes(until, limit=300)
        for reading, saved in ((fast, True), (slow, False)):
            done = step(reading, POLICY, {})
            assert store.save_changes(reading, done.streams, done.events, done.resolutions) is saved
    assert only(store).records == 2 * 300


def test_a_step_that_was_not_saved_is_made_again(store: Store) -> None:
    end = traffic(store, rates((500, 0.95), (200, 0.6)))
    step(store.read_changes(EPOCH + int(end)), POLICY, {})  # and here it crashed
    assert store.change_position() is None
    assert store.change_streams() == []
    look(store, end)
    assert only(store).records == 700


def test_one_minute_with_more_than_the_limit_is_read_whole(store: Store) -> None:
    traffic(store, rates((300, 0.95)), step=0.1)
    look(store, 300, limit=50)
    assert only(store).records == 300
    assert store.change_position() == EPOCH + 300 + 60


def test_a_minute_stays_open_until_it_has_settled(store: Store) -> None:
    traffic(store, [True] * 20)  # two minutes
    watch(store, [], POLICY, clock=at(119 + 60))
    assert (only(store).records, store.change_position()) == (10, EPOCH + 60)
    watch(store, [], POLICY, clock=at(120 + 60))
    assert only(store).records == 20


def test_records_that_wait_in_the_queue_are_waited_for_a_while(store: Store) -> None:
    traffic(store, [True] * 100)
    policy = ChangePolicy(settle_seconds=60, wait_seconds=600)
    look(store, 500, policy, oldest_pending=EPOCH + 240.0)
    assert store.change_position() == EPOCH + 180
    look(store, 2000, policy, oldest_pending=EPOCH + 240.0)
    assert store.change_position() == EPOCH + 1440, "a record that is stuck holds nothing up for ever"


# -- what comes late


def test_a_backfill_moves_nothing_and_is_counted(store: Store) -> None:
    end = traffic(store, rates((500, 0.97)))
    look(store, end)
    before = only(store)
    traffic(store, [False] * 400, -80_000, prefix="old")
    traffic(store, [False] * 100, 1, prefix="also-old")
    look(store, end)
    after = only(store)
    assert after.late == 500
    assert (after.phase, after.evidence, after.records) == ("watching", before.evidence, 500)
    assert store.change_events() == []
    # And it goes on where it was.
    look(store, traffic(store, rates((100, 0.97)), end + 60))
    assert (only(store).records, only(store).late) == (600, 500)


def test_a_backfill_of_something_new_is_late_too(store: Store) -> None:
    look(store, traffic(store, [True] * 50))
    traffic(store, [False] * 30, -50_000, prefix="new", app="other-shop")
    look(store, 400)
    late = {stream.name.app: (stream.records, stream.late) for stream in store.change_streams()}
    assert late == {"shop": (50, 0), "other-shop": (0, 30)}


def test_what_was_there_before_the_watch_is_not_late(store: Store) -> None:
    traffic(store, [True] * 30, -3 * 86_400)
    traffic(store, [True] * 40)
    look(store, 300)
    assert (only(store).records, only(store).late) == (40, 0)
    look(store, 400)
    assert only(store).late == 0


def test_what_lies_ahead_is_not_late(store: Store) -> None:
    traffic(store, [True] * 10)
    traffic(store, [True] * 10, 7200)
    look(store, 600)
    look(store, 700)
    assert (only(store).records, only(store).late) == (10, 0)
    look(store, 7400)
    assert (only(store).records, only(store).late) == (20, 0)


def test_a_failure_that_is_replayed_later_is_late(store: Store) -> None:
    pairs = [(a_record(f"f{n}", seconds=n), Failure(kind="timeout", message="none")) for n in range(5)]
    commit(store, *pairs)
    traffic(store, [True] * 20)
    look(store, 300)
    commit(store, *((record, 1.0) for record, _ in pairs), replay=True)
    look(store, 300)
    assert (only(store).records, only(store).late) == (20, 5)


def test_a_commit_beside_a_step_is_seen_or_late_and_never_both(open_store: Callable[[], Store]) -> None:
    first, second = open_store(), open_store()
    first.upgrade()
    look(first, 0)
    stop = threading.Event()

    def work() -> None:
        n = 0
        while not stop.is_set():
            traffic(second, [True] * 20, n % 600, step=1.0, prefix=f"w{n}-")
            n += 7

    thread = threading.Thread(target=work)
    thread.start()
    for seconds in range(0, 660, 20):
        look(first, seconds, limit=100, max_steps=5)
    stop.set()
    thread.join()
    look(first, 800)
    stream, (total,) = only(first), first.totals()
    assert stream.records + stream.late == total.scored
    assert stream.late > 0, "else it shows nothing"


# -- instruments


def version(name: InstrumentName, state: str, objective: float | None = None) -> RubricVersion:
    body = "{}" if objective is None else f'{{"objective": {objective}}}'
    return RubricVersion(
        rubric=name.rubric,
        rubric_version=name.rubric_version,
        rubric_hash=name.rubric_hash,
        judge=name.judge,
        judge_fingerprint=name.judge_fingerprint,
        body=body,
        state=state,  # type: ignore[arg-type]
        reason="why",
    )


def test_the_objective_of_a_placed_version_counts(store: Store) -> None:
    store.place_rubric(version(NAME, "active", 0.8))
    look(store, traffic(store, rates((250, 0.95))))
    assert only(store).reference == 0.8


def test_a_new_judge_is_an_event_once_and_ends_the_old_alarm(store: Store) -> None:
    store.place_rubric(version(NAME, "active"))
    end = traffic(store, rates((500, 0.95), (200, 0.6)))
    look(store, end)
    store.place_rubric(version(OTHER, "active"))
    for _ in range(2):
        look(store, end + 60)
    (changed,) = store.change_events(kinds=["judge_changed"])
    assert (changed.instrument, changed.message) == (OTHER, "other took the place of lexical")
    (drop,) = store.change_events(kinds=["drop"])
    assert drop.resolution == "replaced"
    verdicts = {verdict.instrument: verdict.verdict for verdict in store.drift_verdicts()}
    # The moment is the real clock's, far from that of the records here.
    assert verdicts[NAME] == "none"
    settle_verdicts(store)
    assert {v.instrument.judge: v.verdict for v in store.drift_verdicts()} == {"lexical": "none", "other": "judge"}
    assert store.acknowledge_change(changed)
    settle_verdicts(store)
    assert {v.verdict for v in store.drift_verdicts()} == {"none"}
    # Its scores are a stream of its own.
    records = [a_record(f"n{n}", seconds=end + 600 + n) for n in range(10)]
    fields = {"judge": OTHER.judge, "judge_fingerprint": OTHER.judge_fingerprint}
    store.commit(with_payloads(records), [an_evaluation(record, 0.0, **fields) for record in records])
    look(store, end + 660)
    streams = {stream.name.instrument: (stream.phase, stream.records) for stream in store.change_streams()}
    assert streams == {NAME: ("ended", 700), OTHER: ("learning", 10)}


def test_cohorts_have_streams_of_their_own(store: Store) -> None:
    traffic(store, rates((500, 0.97)), prefix="a", route="/a")
    end = traffic(store, rates((300, 0.97), (200, 0.5)), prefix="b", route="/b")
    look(store, end)
    (event,) = store.change_events(kinds=["drop"])
    assert event.cohort == {"route": "/b"}
    assert {s.name.cohort["route"]: s.phase for s in store.change_streams()} == {"/a": "watching", "/b": "alarmed"}


# -- acknowledging


def test_acknowledging_notes_it_and_leaves_the_alarm_on(store: Store) -> None:
    look(store, traffic(store, rates((500, 0.95), (200, 0.6))))
    (event,) = store.change_events(open_only=True)
    assert store.acknowledge_change(event, note="the new prompt")
    (seen,) = store.change_events(open_only=True)
    assert (seen.note, seen.acknowledged_at is not None) == ("the new prompt", True)
    assert only(store).phase == "alarmed"


def test_accepting_a_drop_makes_the_present_the_reference(store: Store) -> None:
    end = traffic(store, rates((500, 0.95), (200, 0.6)))
    look(store, end)
    (event,) = store.change_events(open_only=True)
    slow = store.read_changes(EPOCH + int(end) + 600)
    store.acknowledge_change(event, accept=True)
    # A step that was computed from the old detector must not bring it back.
    done = step(slow, POLICY, {})
    assert not store.save_changes(slow, done.streams)
    assert only(store).phase == "learning"
    assert store.change_events(kinds=["drop"])[0].resolution == "accepted"
    end = traffic(store, rates((1000, 0.6)), end)
    look(store, end)
    assert (only(store).phase, len(store.change_events(kinds=["drop"]))) == ("watching", 1)
    assert 0.45 < (only(store).reference or 0) < 0.6


def test_an_event_that_is_not_there_or_not_one(store: Store) -> None:
    with pytest.raises(ConfigError, match="no event has an id like 'x'"):
        store.change_event("x")
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    event = ChangeEvent(event_id="aa1", kind="drop", instrument=NAME, happened_at=moment, message="m")
    assert not store.acknowledge_change(event)
    reading = store.read_changes(EPOCH)
    other = ChangeEvent(event_id="aa2", kind="drop", instrument=NAME, happened_at=moment, message="m\0\ud800")
    assert store.save_changes(reading, [], [event, other, event])
    with pytest.raises(ConfigError, match="more than one event"):
        store.change_event("aa")
    assert store.change_event("aa2").message == "m\ufffd\ufffd"
    assert [e.event_id for e in store.change_events(limit=1, rubric="relevance")] == ["aa1"]
    assert store.change_events(rubric="safety") == []


def test_an_event_is_resolved_once(store: Store) -> None:
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    event = ChangeEvent(event_id="e", kind="drop", instrument=NAME, happened_at=moment, message="m")
    for resolution in (None, "recovered", "ended"):
        reading = store.read_changes(EPOCH)
        over = [Resolution(event_id="e", resolved_at=moment, resolution=resolution)] if resolution else []
        assert store.save_changes(reading, [], [event], over)
    assert store.change_event("e").resolution == "recovered"


# -- verdicts


def a_verdict(verdict: str) -> tuple[DriftVerdict, ChangeEvent]:
    found = DriftVerdict(instrument=NAME, verdict=verdict, reason=f"why {verdict}")  # type: ignore[arg-type]
    moment = datetime.now(UTC)
    event = ChangeEvent(
        event_id=f"{verdict}{moment.timestamp()}",
        kind="verdict",
        instrument=NAME,
        happened_at=moment,
        message=found.reason,
        verdict=found.verdict,
    )
    return found, event


def test_verdicts_have_a_history_and_drops_get_them(store: Store) -> None:
    look(store, traffic(store, rates((500, 0.95), (200, 0.6))))
    # `watch` has said what can be said without a canary.
    (verdict,) = store.drift_verdicts()
    assert (verdict.verdict, verdict.instrument) == ("unknown", NAME)
    assert "no canary has run" in verdict.reason
    assert not store.save_verdict(*a_verdict("unknown")), "it is the same"
    assert store.save_verdict(*a_verdict("product"))
    (drop,) = store.change_events(open_only=True)
    assert drop.verdict == "product"
    assert [event.verdict for event in store.change_events(kinds=["verdict"])] == ["product", "unknown"]


def test_of_two_that_say_the_same_at_once_one_is_noted(open_store: Callable[[], Store]) -> None:
    stores = [open_store() for _ in range(4)]
    stores[0].upgrade()
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda store: store.save_verdict(*a_verdict("judge")), stores))
    assert sorted(said) == [False, False, False, True]
    assert len(stores[0].change_events(kinds=["verdict"])) == 1


# -- canaries


def a_run(run_id: str, days: float = 0.0, **fields: object) -> CanaryRun:
    moment = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=days)
    known: dict[str, object] = {
        "run_id": run_id,
        "instrument": NAME,
        "trigger": "schedule",
        "started_at": moment,
        "finished_at": moment + timedelta(seconds=30),
        "cause": "product",
        "reason": "as before",
        "baseline": False,
        "repeats": 3,
        "scores": {"a": [0.25, 0.5, 1.0]},
        "passes": {"a": [0.0, 1.0, 1.0]},
        "items": 2,
        "compared": 1,
        "baseline_at": moment,
        "difference": -0.1,
        "lower": -0.2,
        "upper": 0.0,
        "spent_usd": 0.25,
    }
    return CanaryRun(**(known | fields))  # type: ignore[arg-type]


def test_canary_runs_come_back_and_the_latest_counts(store: Store) -> None:
    first = a_run("first", baseline=True, baseline_at=None, difference=None, lower=None, upper=None, cause="none")
    latest = a_run("latest", 1, agreement=0.9, calls=6, failures=1)
    other = a_run("other", 2, instrument=OTHER)
    for run in (latest, first, other, latest):
        store.save_canary(run)
    assert store.canaries() == [latest, other]
    assert store.canaries(baselines=True) == [first]
    assert store.canary_runs(datetime(2026, 3, 2, tzinfo=UTC)) == [latest, other]
    assert store.canary_spent(datetime(2026, 3, 1, 12, tzinfo=UTC)) == 0.5
    assert store.canary_spent(datetime(2027, 1, 1, tzinfo=UTC)) == 0.0


def test_old_runs_go_but_not_what_is_compared_with(store: Store) -> None:
    for run in (a_run("baseline", baseline=True), a_run("old", 1), a_run("new", 500)):
        store.save_canary(run)
    with connected(store) as connection:
        kept = connection.execute(sa.text("SELECT run_id FROM canary_runs ORDER BY run_id")).scalars().all()
    assert kept == ["baseline", "new"]


def test_a_canary_is_claimed_by_one(open_store: Callable[[], Store]) -> None:
    stores = [open_store() for _ in range(4)]
    stores[0].upgrade()
    with ThreadPoolExecutor(4) as pool:
        claimed = list(pool.map(lambda store: store.claim_canary(NAME, 60), stores))
    assert sorted(claimed) == [False, False, False, True]
    assert stores[0].claim_canary(OTHER, 60), "another instrument's is another"
    stores[0].save_canary(a_run("done"))
    assert stores[1].claim_canary(NAME, 0)
    assert stores[2].claim_canary(NAME, 60), "whoever had it died"
    stores[3].free_canary(NAME)
    assert stores[0].claim_canary(NAME, 60)


def test_accepting_a_verdict_makes_the_latest_run_the_baseline(store: Store) -> None:
    store.save_canary(a_run("first", baseline=True, baseline_at=None))
    store.save_canary(a_run("latest", 1, cause="judge", reason="the judge reads otherwise"))
    assert settle_verdicts(store) == 1
    (event,) = store.change_events(kinds=["verdict"])
    assert (event.verdict, event.message) == ("judge", "the judge reads otherwise")
    store.acknowledge_change(event, accept=True)
    assert store.canaries(baselines=True)[0].run_id == "latest"
    assert settle_verdicts(store) == 1
    assert store.drift_verdicts()[0].verdict == "none"
    assert settle_verdicts(store) == 0


# -- what goes wrong, and what is over


def test_a_clock_that_ran_ahead_does_not_blind_the_watch(store: Store) -> None:
    end = traffic(store, rates((500, 0.95)))
    look(store, end)
    look(store, 365 * 86_400)
    assert store.change_position() == EPOCH + 365 * 86_400 + 60
    # Put right, it goes back once, and what comes from then on is read.
    look(store, end)
    assert store.change_position() == EPOCH + int(end) + 60
    end = traffic(store, rates((100, 0.95), (300, 0.5)), end + 60)
    look(store, end)
    assert only(store).records == 900
    assert (only(store).phase, len(store.change_events(open_only=True))) == ("alarmed", 1)


def test_a_clock_that_differs_by_a_little_never_reads_twice(store: Store) -> None:
    end = traffic(store, [True] * 100)
    look(store, end + 1800)
    look(store, end)
    assert store.change_position() == EPOCH + int(end) + 1800 + 60
    assert only(store).records == 100


def test_accepting_an_old_drop_ends_the_one_that_is_on(store: Store) -> None:
    """Its detector learns anew, so nobody else would ever end it."""
    end = traffic(store, rates((500, 0.95), (200, 0.5), (600, 0.99)))
    look(store, end)
    look(store, traffic(store, rates((300, 0.4)), end))
    on, over = store.change_events(kinds=["drop"])
    assert (on.resolution, over.resolution) == (None, "recovered")
    assert store.acknowledge_change(over, accept=True)
    assert only(store).phase == "learning"
    assert [event.resolution for event in store.change_events(kinds=["drop"])] == ["accepted", "recovered"]
    assert store.change_events(open_only=True) == []


def test_streams_that_were_only_ever_late_are_forgotten_with_their_totals(store: Store) -> None:
    look(store, traffic(store, [True] * 50))
    traffic(store, [False] * 30, -50_000, prefix="old", app="old-shop")
    look(store, 400)
    assert {stream.name.app for stream in store.change_streams()} == {"shop", "old-shop"}
    with connected(store) as connection:
        connection.execute(
            sa.text("DELETE FROM totals WHERE series_id IN (SELECT series_id FROM series WHERE app = 'old-shop')")
        )
    look(store, 460)
    assert {stream.name.app for stream in store.change_streams()} == {"shop"}


def test_a_drop_that_comes_after_the_verdict_gets_it_and_reasons_are_renewed(store: Store) -> None:
    moment = datetime.now(UTC)
    for name in ("first", "second"):
        drop = ChangeEvent(
            event_id=name, kind="drop", instrument=NAME, happened_at=moment, message="m", verdict="unknown"
        )
        assert store.save_changes(store.read_changes(EPOCH), [], [drop])
        store.save_verdict(*a_verdict("product"))
        if name == "first":
            continue
        with connected(store) as connection:
            connection.execute(sa.text("UPDATE change_events SET verdict = 'unknown' WHERE event_id = 'second'"))
    # It ran after the drops, and clears the judge.
    later = datetime.now(UTC) + timedelta(seconds=1)
    store.save_canary(a_run("c", started_at=later, finished_at=later, baseline_at=HOUR_START, compared=100))
    assert settle_verdicts(store) == 0, "it is product still"
    assert {event.verdict for event in store.change_events(open_only=True)} == {"product"}
    assert store.drift_verdicts()[0].reason == "as before", "and why is said anew"


def test_a_judge_that_was_found_changed_stays_so_while_it_cannot_be_asked(store: Store) -> None:
    store.save_canary(a_run("first", baseline=True, baseline_at=None))
    store.save_canary(a_run("moved", 1, cause="judge", reason="the judge reads otherwise", compared=40))
    settle_verdicts(store)
    store.save_canary(a_run("away", 2, cause="unknown", reason="the judge does not answer", compared=0))
    assert settle_verdicts(store) == 0
    assert store.drift_verdicts()[0].verdict == "judge"
    store.save_canary(a_run("back", 3, compared=40))
    assert settle_verdicts(store) == 1
    assert store.drift_verdicts()[0].verdict == "none"


def test_a_judge_that_was_cleared_stays_so_when_the_canary_runs_again(store: Store) -> None:
    moment = datetime.now(UTC)
    hours = timedelta(hours=1)
    taken = ChangeEvent(
        event_id="swap", kind="judge_changed", instrument=NAME, happened_at=moment - 6 * hours, message="B for A"
    )
    assert store.save_changes(store.read_changes(EPOCH), [], [taken])

    def verdict() -> str:
        settle_verdicts(store)
        return store.drift_verdicts()[0].verdict

    def ran(run_id: str, at: datetime, **fields: object) -> None:
        store.save_canary(a_run(run_id, started_at=at, finished_at=at, compared=100, **fields))

    assert verdict() == "judge"
    ran("swapped", moment - 5 * hours, trigger="change", baseline=True, baseline_at=moment - 72 * hours)
    assert verdict() == "none", "it reads as the one before did"
    ran("scheduled", moment - 3 * hours, baseline_at=moment - 5 * hours)
    assert verdict() == "none"
    drop = ChangeEvent(event_id="d", kind="drop", instrument=NAME, happened_at=moment, message="m", verdict="unknown")
    assert store.save_changes(store.read_changes(EPOCH), [], [drop])
    assert verdict() == "unknown", "the canary has not run since"
    ran("alarmed", datetime.now(UTC) + timedelta(seconds=1), trigger="alarm", baseline_at=moment - 5 * hours)
    assert verdict() == "product"


@pytest.mark.parametrize("cause", ["product", "judge"])
def test_a_judge_whose_run_was_accepted_is_not_blamed_for_having_come(store: Store, cause: str) -> None:
    moment, hours = datetime.now(UTC), timedelta(hours=1)
    swapped = ChangeEvent(
        event_id="swap", kind="judge_changed", instrument=NAME, happened_at=moment - 6 * hours, message="B for A"
    )
    assert store.save_changes(store.read_changes(EPOCH), [], [swapped])
    assert settle_verdicts(store) == 1
    given = {"trigger": "change", "cause": cause, "baseline": True, "baseline_at": moment - 72 * hours, "compared": 100}
    store.save_canary(a_run("swapped", started_at=moment - hours, finished_at=moment - hours, **given))
    (blamed,) = store.change_events(kinds=["verdict"])
    assert store.acknowledge_change(blamed, note="", accept=True)
    settle_verdicts(store)
    assert store.drift_verdicts()[0].verdict == "none"


def test_events_that_are_over_are_kept_for_so_long(store: Store) -> None:
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    kinds = ("drop", "judge_changed", "rubric_changed", "model_changed", "verdict")
    events = [ChangeEvent(event_id=k, kind=k, instrument=NAME, happened_at=moment, message="m") for k in kinds]
    events.append(ChangeEvent(event_id="open", kind="drop", instrument=NAME, happened_at=moment, message="m"))
    over = [Resolution(event_id="drop", resolved_at=moment, resolution="recovered")]
    assert store.save_changes(store.read_changes(EPOCH), [], events, over)
    assert len(store.change_events()) == 6
    long_ago = datetime.now(UTC) - timedelta(days=401)
    with connected(store) as connection:
        connection.execute(sa.text("UPDATE change_events SET noted_at = :moment"), {"moment": str(long_ago)})
    assert store.save_changes(store.read_changes(EPOCH), [])
    assert {event.event_id for event in store.change_events()} == {"open", "judge_changed", "rubric_changed"}


def test_a_claim_of_a_clock_that_ran_ahead_holds_nobody_up(store: Store) -> None:
    assert store.claim_canary(NAME, 365 * 86_400)
    assert store.claim_canary(NAME, 960)
    assert not store.claim_canary(NAME, 960)


def test_what_a_shell_may_pass_is_looked_for_and_not_found(store: Store) -> None:
    """Bytes that are no UTF-8, and numbers that no database takes."""
    assert store.change_events(rubric="\udcff", limit=10**30) == []
    with pytest.raises(ConfigError, match="no event has an id like"):
        store.change_event("\udcff")
    assert store.defects(HOUR_START, rubric="\udcff", defect="\udcff", limit=10**30) == []
    commit(store, (a_record("r"), 0.1))
    with pytest.raises(ConfigError, match="no score under"):
        store.set_defect("r", "\udcff", "incomplete")
    rows = store.compared_scores("\udcff", HOUR_START, HOUR_START, rubric="\udcff")
    assert list(rows) == []
