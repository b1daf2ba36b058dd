from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from assay.errors import SettingsError, SinkError, StoreError
from assay.outbox import FIELDS, Outbox, Selection, SinkPolicy, _Lane, gave_up, owed_outcomes
from assay.records import Message, Record, Score, now
from assay.settings import load_settings
from assay.sinks import Annotation, Delivered, Delivery, Rejected, Skipped, TryAgain
from assay.store import Store
from assay.store import _outbox as part
from calibrations import a_calibration
from sink_server import ScriptedSink
from stores import A_FAILURE, a_record, an_evaluation, commit, connected, with_payloads

#: Nothing waits for long, and no thread but the test's own does anything.
POLICY = SinkPolicy(retry_base_seconds=0.001, retry_max_seconds=0.002, away_max_seconds=0.002, linger_seconds=0)


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    opened: list[Store] = []

    def open_(*sinks: ScriptedSink) -> Store:
        taken = {sink.name: owed_outcomes(sink, ("scored", "failed")) for sink in sinks}
        opened.append(Store(f"sqlite:///{tmp_path}/s.db", sinks=taken))
        opened[-1].upgrade()
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


def a_lane(store: Store, sink: ScriptedSink, policy: SinkPolicy = POLICY, **fields: Any) -> _Lane:
    select = Selection(store, fields.get("fields", FIELDS), ("none",))
    return _Lane(store, sink, select, policy, fields.get("stopping", threading.Event()))


def steps(lane: _Lane, store: Store, limit: int = 100) -> int:
    """Step until nothing is owed that is not set aside; what waits for its time is due at once."""
    n = 0
    while any(row.state == "waiting" for row in store.outbox(limit=1000)):
        with connected(store) as connection:
            waiting = sa.update(part.outbox).where(part.outbox.c.state == "waiting", part.outbox.c.claim.is_(None))
            connection.execute(waiting.values(due_at=now() - timedelta(seconds=1)))
        lane.step()
        n += 1
        assert n < limit, store.outbox(limit=5)
    return n


def commit_many(store: Store, n: int) -> list[str]:
    records = [a_record(f"r{index:03}") for index in range(n)]
    commit(store, *[(record, 0.5) for record in records])
    return [record.record_id for record in records]


# -- batches


def test_what_is_owed_goes_out_in_batches_once(open_store: Callable[..., Store]) -> None:
    sink = ScriptedSink(max_batch=10)
    store = open_store(sink)
    ids = commit_many(store, 25)
    lane = a_lane(store, sink)
    assert [lane.step() for _ in range(4)] == [True, True, True, False]
    assert sink.sizes == [10, 10, 5]
    assert sorted(sink.record_ids) == ids
    assert store.outbox() == []
    assert store.outbox_depths()["scripted"].writes == {"delivered": 25}


def test_what_becomes_of_each_is_noted(open_store: Callable[..., Store]) -> None:
    fates = {
        "r000": Delivered(),
        "r001": TryAgain("404: not yet", missing=True),
        "r002": Rejected("422: no"),
        "r003": Skipped("no trace id"),
    }
    sink = ScriptedSink(respond=lambda annotations: [fates[a.record_id] for a in annotations])
    store = open_store(sink)
    commit_many(store, 4)
    a_lane(store, sink).step()
    rows = {row.record_id: (row.state, row.reason, row.attempts) for row in store.outbox()}
    assert rows == {"r001": ("waiting", "404: not yet", 1), "r002": ("rejected", "422: no", 1)}
    assert store.outbox_depths()["scripted"].writes == {"delivered": 1, "retried": 1, "rejected": 1, "skipped": 1}


# -- a sink that stumbles


def poisoned(bad: set[str], error: Callable[[], Exception]) -> Callable[[Sequence[Annotation]], Sequence[Delivery]]:
    def respond(annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        if any(annotation.record_id in bad for annotation in annotations):
            if len(annotations) == 1 and isinstance(error(), SinkError):
                return [Rejected("400: that one")]
            raise error()
        return [Delivered()] * len(annotations)

    return respond


@pytest.mark.parametrize("bad", [{"r000"}, {"r007"}, {"r015"}, {"r003", "r004"}, {"r000", "r001", "r002", "r014"}])
@pytest.mark.parametrize(
    "error", [lambda: SinkError("400", suspect=True), lambda: ValueError("a bug of the sink")], ids=["refused", "bug"]
)
def test_a_poison_is_set_aside_and_its_mates_are_delivered(
    open_store: Callable[..., Store], bad: set[str], error: Callable[[], Exception]
) -> None:
    sink = ScriptedSink(respond=poisoned(bad, error), max_batch=16)
    store = open_store(sink)
    ids = set(commit_many(store, 16))
    a_lane(store, sink).step()
    assert {row.record_id for row in store.outbox(state="rejected")} == bad
    assert store.outbox(state="waiting") == []
    assert store.outbox_depths()["scripted"].writes["delivered"] == len(ids - bad)
    reasons = {row.reason for row in store.outbox()}
    assert reasons <= {"400: that one", "ValueError: a bug of the sink"}


def test_a_record_that_the_sink_answers_with_500_is_found_and_tried_until_the_deadline(
    open_store: Callable[..., Store],
) -> None:
    def respond(annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        if any(annotation.record_id == "r005" for annotation in annotations):
            raise SinkError("500: oops", suspect=True)
        return [Delivered()] * len(annotations)

    sink = ScriptedSink(respond=respond, max_batch=16)
    store = open_store(sink)
    commit_many(store, 16)
    lane = a_lane(store, sink)
    lane.step()
    assert [(row.record_id, row.state) for row in store.outbox()] == [("r005", "waiting")]
    with connected(store) as connection:
        old = now() - timedelta(days=2)
        connection.execute(sa.update(part.outbox).values(created_at=old, due_at=old))
    lane.step()
    (row,) = store.outbox()
    assert (row.state, row.reason) == ("rejected", "given up after 24 h: 500: oops")
    assert store.outbox_depths()["scripted"].writes["expired"] == 1


def test_a_sink_that_answers_everything_with_500_is_not_called_for_each(open_store: Callable[..., Store]) -> None:
    def respond(_: Sequence[Annotation]) -> Sequence[Delivery]:
        raise SinkError("500: all of it", suspect=True)

    sink = ScriptedSink(respond=respond, max_batch=64)
    store = open_store(sink)
    commit_many(store, 64)
    a_lane(store, sink).step()
    # Halving down to two that fall alone: 64, 32, 16, 8, 4, 2, 1, 1.
    assert sink.sizes == [64, 32, 16, 8, 4, 2, 1, 1]
    assert {row.state for row in store.outbox()} == {"waiting"}
    assert len(store.outbox()) == 64


def test_a_sink_that_is_away_gets_all_of_it_when_it_is_back(open_store: Callable[..., Store]) -> None:
    away = [True]

    def respond(annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        if away[0]:
            raise SinkError("503: closed")
        return [Delivered()] * len(annotations)

    sink = ScriptedSink(respond=respond)
    store = open_store(sink)
    ids = commit_many(store, 30)
    lane = a_lane(store, sink)
    for _ in range(3):
        lane.step()
    assert {row.reason for row in store.outbox()} == {"503: closed"}
    assert sink.sizes == [10, 10, 10], "one call a batch, no halving"
    away[0] = False
    steps(lane, store)
    assert sorted(a.record_id for call in sink.calls[3:] for a in call) == ids


def test_a_sink_that_returns_another_number_of_results_is_a_bug_that_loses_nothing(
    open_store: Callable[..., Store],
) -> None:
    sink = ScriptedSink(respond=lambda annotations: [Delivered()] * (len(annotations) - 1))
    store = open_store(sink)
    commit_many(store, 4)
    a_lane(store, sink).step()
    assert {row.reason for row in store.outbox(state="rejected")} == {"ValueError: 0 results of 1"}
    assert len(store.outbox(state="rejected")) == 4


def test_a_span_that_is_not_there_is_waited_for_less_long_than_a_sink(open_store: Callable[..., Store]) -> None:
    fates: dict[str, Delivery] = {"r000": TryAgain("404: no span", missing=True), "r001": TryAgain("429: slow down")}
    sink = ScriptedSink(respond=lambda annotations: [fates[a.record_id] for a in annotations])
    store = open_store(sink)
    commit_many(store, 2)
    old = now() - timedelta(hours=2)
    with connected(store) as connection:
        connection.execute(sa.update(part.outbox).values(created_at=old))
    a_lane(store, sink).step()
    rows = {row.record_id: (row.state, row.reason) for row in store.outbox()}
    assert rows == {"r000": ("rejected", "given up after 1 h: 404: no span"), "r001": ("waiting", "429: slow down")}


def test_what_a_sink_asks_to_wait_is_waited(open_store: Callable[..., Store]) -> None:
    sink = ScriptedSink(respond=lambda annotations: [TryAgain("429", after_seconds=600.0)] * len(annotations))
    store = open_store(sink)
    commit_many(store, 1)
    before = now()
    a_lane(store, sink).step()
    (row,) = store.outbox()
    assert timedelta(seconds=599) < row.due_at - before < timedelta(seconds=660)


def test_delays_grow_with_the_tries_within_bounds() -> None:
    policy = SinkPolicy(retry_base_seconds=1.0, retry_max_seconds=60.0)
    for attempts, most in ((0, 1.0), (3, 8.0), (6, 60.0), (10_000, 60.0)):
        delays = [policy.delay(attempts) for _ in range(50)]
        assert most / 2 <= min(delays) <= max(delays) <= most
        assert len(set(delays)) > 1, "not all at once"
    assert policy.delay(0, 30.0) == 30.0
    assert policy.delay(0, 1e9) == 3600.0


def test_a_database_that_goes_away_after_the_sink_took_it_is_waited_for(
    open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = ScriptedSink()
    store = open_store(sink)
    commit_many(store, 3)
    real, fails = store.settle_outbox, [StoreError("away")] * 2

    def settle(*arguments: Any) -> int:
        if fails:
            raise fails.pop()
        return real(*arguments)

    monkeypatch.setattr(store, "settle_outbox", settle)
    a_lane(store, sink).step()
    assert (sink.sizes, store.outbox()) == ([3], [])


# -- threads


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    done = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("not in time")


def an_outbox(store: Store, *sinks: ScriptedSink, policy: SinkPolicy = POLICY) -> Outbox:
    return Outbox(store, sinks, select=Selection(store, FIELDS, ("none",)), policy=policy)


def test_a_sink_that_hangs_holds_up_no_other(open_store: Callable[..., Store]) -> None:
    release = threading.Event()

    def hang(annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        release.wait(60)
        return [Delivered()] * len(annotations)

    stuck, quick = ScriptedSink("stuck", hang, max_batch=2), ScriptedSink("quick", max_batch=2)
    store = open_store(stuck, quick)
    ids = commit_many(store, 20)
    outbox = an_outbox(store, stuck, quick)
    outbox.start()
    try:
        wait_for(lambda: store.outbox(sink="quick") == [])
        assert sorted(quick.record_ids) == ids
        assert len(store.outbox(sink="stuck", limit=100)) == 20, "while the other has nothing yet"
        release.set()
        outbox.ring()
        wait_for(lambda: store.outbox(sink="stuck") == [])
        assert sorted(stuck.record_ids) == ids
    finally:
        release.set()
        outbox.stop()
    assert (stuck.closed, quick.closed) == (1, 1)


def test_a_ring_begins_delivery_and_leases_are_renewed(open_store: Callable[..., Store]) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        entered.set()
        release.wait(60)
        return [Delivered()] * len(annotations)

    sink = ScriptedSink(respond=slow)
    store = open_store(sink)
    outbox = an_outbox(store, sink, policy=SinkPolicy(lease_seconds=0.3, linger_seconds=0, idle_seconds=3600))
    outbox.start()
    try:
        commit_many(store, 3)
        assert not entered.is_set()
        outbox.ring()
        assert entered.wait(20)
        first = store.outbox()[0].due_at
        wait_for(lambda: store.outbox()[0].due_at > first + timedelta(seconds=0.25))
        release.set()
        wait_for(lambda: store.outbox() == [])
    finally:
        release.set()
        outbox.stop()
    assert sink.sizes == [3], "nobody else had it meanwhile"


def test_stopping_finishes_what_is_in_hand_and_begins_nothing(open_store: Callable[..., Store]) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        entered.set()
        release.wait(60)
        return [Delivered()] * len(annotations)

    sink = ScriptedSink(respond=slow, max_batch=5)
    store = open_store(sink)
    commit_many(store, 20)
    outbox = an_outbox(store, sink, policy=SinkPolicy(threads=1, linger_seconds=0))
    outbox.start()
    assert entered.wait(20)
    stopper = threading.Thread(target=outbox.stop)
    stopper.start()
    release.set()
    stopper.join(20)
    assert sink.sizes == [5]
    assert len(store.outbox(limit=100)) == 15
    assert sink.closed == 1


def test_stopping_does_not_wait_for_ever(open_store: Callable[..., Store]) -> None:
    release = threading.Event()
    entered = threading.Event()

    def hang(annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        entered.set()
        release.wait(60)
        return [Delivered()] * len(annotations)

    sink = ScriptedSink(respond=hang)
    store = open_store(sink)
    commit_many(store, 1)
    outbox = an_outbox(store, sink)
    outbox.start()
    try:
        assert entered.wait(20)
        outbox.stop(timeout_seconds=0.05)
        assert sink.closed == 0, "it is in use still"
    finally:
        release.set()
        wait_for(lambda: store.outbox() == [])


def test_a_delivery_that_fails_by_a_bug_of_ours_ends_no_thread(open_store: Callable[..., Store]) -> None:
    sink = ScriptedSink()
    store = open_store(sink)
    commit_many(store, 1)
    lane = a_lane(store, sink)
    lane._select = lambda claimed: 1 // 0  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        lane.step()
    assert lane._held == {}, "its lease is renewed no more"


# -- what goes out


TEXT = "Write to jane.doe@example.com, key sk-abcdefghijklmnopqrstuvwx"


def selected(store: Store, record: Record, outcome: Any, fields: Sequence[str], redact: Sequence[str]) -> Annotation:
    commit(store, (record, outcome))
    claimed = store.claim_outbox("scripted", "c", limit=1, until=now() + timedelta(minutes=1))
    (annotation,) = Selection(store, fields, redact)(claimed)
    return annotation


def test_texts_stay_here_unless_they_are_named(open_store: Callable[..., Store]) -> None:
    settings = load_settings()
    record = a_record(input=TEXT, output=TEXT)
    score = Score(value=0.25, passed=False, explanation=TEXT)
    found = selected(open_store(ScriptedSink()), record, score, settings.sink_fields, settings.sink_redact)
    assert (found.input, found.output) == (None, None)
    assert found.explanation == "Write to [email], key [secret]"


def test_texts_that_are_named_go_out_redacted(open_store: Callable[..., Store]) -> None:
    record = Record(
        record_id="r", timestamp=now(), input=(Message(role="user", content=TEXT),), output=TEXT, cohort={"mail": TEXT}
    )
    found = selected(open_store(ScriptedSink()), record, 0.5, ("input", "output", "cohort"), ("email",))
    assert found.input == "user: Write to [email], key sk-abcdefghijklmnopqrstuvwx"
    assert found.output == "Write to [email], key sk-abcdefghijklmnopqrstuvwx"
    assert found.cohort == {"mail": "Write to [email], key sk-abcdefghijklmnopqrstuvwx"}


def test_nothing_but_what_is_named_goes_out(open_store: Callable[..., Store]) -> None:
    record = a_record(session_id="s", cohort={"tier": "gold"})
    score = Score(value=0.25, passed=False, raw=2.0, label="poor", explanation="why", judge_model="m")
    found = selected(open_store(ScriptedSink()), record, score, (), ("none",))
    assert (found.value, found.passed, found.rubric) == (0.25, False, "relevance")
    hidden = (found.raw, found.label, found.judge_model, found.calibration_state, found.probability, found.session_id)
    assert set(hidden) == {None}
    assert (found.explanation, dict(found.cohort), found.message) == ("", {}, None)


def test_a_failures_message_goes_out_redacted(open_store: Callable[..., Store]) -> None:
    failure = dataclasses.replace(A_FAILURE, message="401 for key sk-abcdefghijklmnopqrstuvwx")
    found = selected(open_store(ScriptedSink()), a_record(), failure, ("message",), ("secret",))
    assert (found.outcome, found.failure_kind, found.message) == ("failed", "timeout", "401 for key [secret]")


def test_a_huge_text_is_cut(open_store: Callable[..., Store]) -> None:
    found = selected(open_store(ScriptedSink()), a_record(output="x" * 500_000), 0.5, ("output",), ("email",))
    assert len(found.output or "") == 20_000


@pytest.mark.parametrize(
    ("given", "expected"),
    [("A" * 32, "a" * 32), ("0" * 32, None), ("tr-" + "a" * 32, None), ("a" * 31, None), ("", None), (None, None)],
)
def test_trace_ids_that_are_none_do_not_go_out(
    open_store: Callable[..., Store], given: str | None, expected: str | None
) -> None:
    found = selected(open_store(ScriptedSink()), a_record(trace_id=given), 0.5, (), ("none",))
    assert found.trace_id == expected


def test_the_calibration_behind_a_score_goes_with_it(open_store: Callable[..., Store]) -> None:
    store = open_store(ScriptedSink())
    calibration = a_calibration()
    store.save_calibration(calibration)
    record = a_record()
    behind = an_evaluation(
        record, 0.5, rubric_hash=calibration.rubric_hash, judge_fingerprint=calibration.judge_fingerprint
    )
    store.commit(with_payloads([record]), [behind, an_evaluation(record, 0.5, "other", rubric_hash="1" * 64)])
    claimed = store.claim_outbox("scripted", "c", limit=9, until=now())
    found = Selection(store, ("calibration",), ("none",))(claimed)
    assert {a.rubric: a.calibration_state for a in found} == {"relevance": "active", "other": "none"}


def test_fields_and_kinds_of_redaction_that_there_are_not(open_store: Callable[..., Store]) -> None:
    store = open_store()
    with pytest.raises(SettingsError, match="ASSAY_SINK_FIELDS: 'inputs' is not one of raw, label"):
        Selection(store, ("raw", "inputs"), ())
    with pytest.raises(SettingsError, match="names"):
        Selection(store, (), ("names",))


def test_which_outcomes_are_owed_to_a_sink() -> None:
    whole, scores_only = ScriptedSink(takes_failures=True), ScriptedSink(takes_failures=False)
    assert owed_outcomes(whole, ("scored", "failed")) == {"scored", "failed"}
    assert owed_outcomes(whole, ("scored", "failed", "not_applicable")) == {"scored", "failed", "not_applicable"}
    assert owed_outcomes(scores_only, ("scored", "failed", "not_applicable")) == {"scored"}
    assert owed_outcomes(whole, ("failed",)) == {"failed"}
    assert gave_up(5400) == "given up after 1.5 h: "
