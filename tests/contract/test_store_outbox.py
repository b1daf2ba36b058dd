"""What any database must do for the outbox: every test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from assay.errors import ConfigError
from assay.records import Score, now
from assay.store import Claimed, Settled, Store
from assay.store import _outbox as part
from stores import A_FAILURE, NOT_APPLICABLE, a_record, an_evaluation, commit, connected, statements, with_payloads

#: phoenix takes failures, latitude does not; nothing takes what is not applicable
SINKS = {"phoenix": {"scored", "failed"}, "latitude": {"scored"}}
LATER = timedelta(minutes=1)


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store(sinks=SINKS)


def owed(store: Store) -> list[tuple[str, str, str]]:
    return sorted((row.sink, row.record_id, row.state) for row in store.outbox())


def take(store: Store, sink: str = "phoenix", *, claim: str = "c", limit: int = 100, seconds: float = 60) -> list:
    return store.claim_outbox(sink, claim, limit=limit, until=now() + timedelta(seconds=seconds))


def key(claimed: Claimed) -> tuple[str, uuid.UUID]:
    return claimed.annotation.record_id, claimed.annotation.evaluation_id


def settle(
    store: Store, claimed: list[Claimed], outcome: str, *, sink: str = "phoenix", claim: str = "c", **more
) -> int:
    settled = Settled(outcome=outcome, **more)  # type: ignore[arg-type]
    return store.settle_outbox("phoenix", claim, {key(one): settled for one in claimed})


def assert_counted(store: Store) -> None:
    """The counters are those of the rows."""
    with connected(store) as connection:
        counted = sa.select(part.outbox.c.sink, part.outbox.c.state, sa.func.count()).group_by(
            part.outbox.c.sink, part.outbox.c.state
        )
        rows = {(sink, state): n for sink, state, n in connection.execute(counted)}
    depths = store.outbox_depths()
    shown = {(sink, "waiting"): depth.waiting for sink, depth in depths.items()}
    shown |= {(sink, "rejected"): depth.rejected for sink, depth in depths.items()}
    assert {place: n for place, n in shown.items() if n} == rows


# -- what is owed


def test_what_is_stored_is_owed_to_every_sink_that_takes_its_outcome(store: Store) -> None:
    commit(store, (a_record("good"), 0.9), (a_record("bad"), A_FAILURE), (a_record("other"), NOT_APPLICABLE))
    assert owed(store) == [
        ("latitude", "good", "waiting"),
        ("phoenix", "bad", "waiting"),
        ("phoenix", "good", "waiting"),
    ]
    assert_counted(store)


def test_a_repeat_is_not_owed_again(store: Store) -> None:
    record = a_record("r")
    commit(store, (record, 0.9))
    settle(store, take(store), "delivered")
    commit(store, (record, 0.2))
    commit(store, (record, 0.9), rubric="safety")
    assert owed(store) == [("latitude", "r", "waiting"), ("latitude", "r", "waiting"), ("phoenix", "r", "waiting")]
    assert [row.rubric for row in store.outbox(sink="phoenix")] == ["safety"]
    assert_counted(store)


def test_without_sinks_nothing_is_owed_and_the_table_is_not_even_asked(open_store: Callable[..., Store]) -> None:
    store = open_store()
    with statements(store) as seen:
        commit(store, (a_record(), 0.9))
    assert not [statement for statement in seen if "outbox" in statement]
    assert store.outbox() == []


def test_nothing_is_owed_of_a_transaction_that_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the process ends here")

    monkeypatch.setattr("assay.store._rollups.Additions.write", fail)
    with pytest.raises(RuntimeError):
        commit(store, (a_record(), 0.9))
    monkeypatch.undo()
    assert store.outbox() == []
    assert store.outbox_depths() == {}


def test_a_verdict_that_replaces_a_failure_is_owed_in_its_place(store: Store) -> None:
    record = a_record("r")
    commit(store, (record, A_FAILURE))
    (failure,) = take(store)
    assert failure.annotation.outcome == "failed"
    commit(store, (record, 0.75), replay=True)
    assert owed(store) == [("latitude", "r", "waiting"), ("phoenix", "r", "waiting")]
    assert settle(store, [failure], "delivered") == 0, "what was in hand is not what is owed now"
    (score,) = take(store, claim="d")
    assert (score.annotation.outcome, score.annotation.value) == ("scored", 0.75)
    assert settle(store, [score], "delivered", claim="d") == 1
    assert store.outbox_depths()["phoenix"].writes == {"delivered": 2}, "the sink was called twice"
    assert_counted(store)


def test_a_failure_that_was_delivered_already_is_followed_by_the_verdict(store: Store) -> None:
    record = a_record("r")
    commit(store, (record, A_FAILURE))
    settle(store, take(store), "delivered")
    commit(store, (record, 0.75), replay=True)
    commit(store, (record, 0.75), replay=True)
    assert [one.annotation.value for one in take(store)] == [0.75]
    assert_counted(store)


# -- what comes out


def test_all_that_is_stored_comes_out(store: Store) -> None:
    record = a_record(
        "r",
        trace_id="a" * 32,
        span_id="b" * 16,
        session_id="s-1",
        route="/ask",
        model="m-1",
        prompt_version="p-2",
        cohort={"tier": "gold"},
        sink_refs={"mlflow_trace_id": "tr-1"},
        probability=0.25,
    )
    score = Score(value=0.75, passed=True, raw=4.0, label="good", explanation="It says so.", judge_model="m-judge")
    commit(store, (record, score))
    (claimed,) = take(store)
    found = claimed.annotation
    evaluation = an_evaluation(record, score)
    assert found.evaluation_id == evaluation.evaluation_id
    assert (found.record_id, found.app, found.trace_id, found.span_id) == ("r", "shop", "a" * 32, "b" * 16)
    assert (found.session_id, dict(found.sink_refs)) == ("s-1", {"mlflow_trace_id": "tr-1"})
    assert dict(found.cohort) == {"tier": "gold", "route": "/ask", "model": "m-1", "prompt_version": "p-2"}
    assert (found.rubric, found.rubric_version, found.rubric_hash) == ("relevance", "1-0a1b2c3d", "0a1b2c3d" * 8)
    assert (found.judge, found.judge_fingerprint, found.judge_model) == ("lexical", "f" * 64, "m-judge")
    assert (found.outcome, found.value, found.raw, found.passed, found.label) == ("scored", 0.75, 4.0, True, "good")
    assert (found.explanation, found.probability, found.timestamp) == ("It says so.", 0.25, record.timestamp)
    assert timedelta(0) <= now() - found.evaluated_at < LATER
    assert found.evaluated_at.tzinfo is not None
    assert claimed.payload == record.to_json()
    assert (claimed.attempts, claimed.created_at) == (0, found.evaluated_at)


def test_it_comes_out_without_its_text_once_that_was_purged(store: Store) -> None:
    commit(store, (a_record("r", sink_refs={"x": "1"}), 0.5))
    store.purge(payload_days=0, score_days=90, rollup_days=400, dead_days=30)
    (claimed,) = take(store)
    assert (claimed.payload, dict(claimed.annotation.sink_refs)) == (None, {"x": "1"})


def test_what_is_purged_is_owed_no_more(store: Store) -> None:
    commit(store, (a_record("r"), 0.5), (a_record("s"), 0.5))
    settle(store, take(store, limit=1), "rejected", reason="no")
    store.purge(payload_days=0, score_days=0, rollup_days=400, dead_days=30)
    assert store.outbox() == []
    assert {depth.waiting + depth.rejected for depth in store.outbox_depths().values()} == {0}
    assert_counted(store)


# -- claims


def test_what_is_in_hand_is_nobody_elses(store: Store) -> None:
    commit(store, *[(a_record(f"r{n}"), 0.5) for n in range(5)])
    first, second = take(store, limit=3), take(store, claim="d")
    assert (len(first), len(second)) == (3, 2)
    assert not {key(one) for one in first} & {key(one) for one in second}
    assert take(store, claim="e") == []


def test_the_longest_due_comes_first(store: Store) -> None:
    for n in range(3):
        commit(store, (a_record(f"r{n}"), 0.5))
    assert [one.annotation.record_id for one in take(store, limit=2)] == ["r0", "r1"]


def test_a_claim_that_ends_is_given_to_another_and_may_settle_no_more(store: Store) -> None:
    commit(store, (a_record("r"), 0.5))
    first = take(store, seconds=-1)
    second = take(store, claim="d")
    assert [key(one) for one in first] == [key(one) for one in second]
    assert settle(store, first, "rejected", reason="late") == 0
    assert [row.state for row in store.outbox(sink="phoenix")] == ["waiting"]
    assert settle(store, second, "delivered", claim="d") == 1
    assert store.outbox(sink="phoenix") == []
    assert_counted(store)


def test_a_claim_that_is_renewed_goes_on(store: Store) -> None:
    commit(store, (a_record("r"), 0.5))
    claimed = take(store, seconds=-1)
    store.renew_outbox("phoenix", "c", [key(one) for one in claimed], now() + LATER)
    assert take(store, claim="d") == []


def test_what_was_in_hand_when_workers_died_comes_alone(store: Store) -> None:
    commit(store, *[(a_record(f"r{n}"), 0.5) for n in range(4)])
    for _ in range(3):
        assert len(take(store, seconds=-1, limit=2)) == 2
    assert [len(take(store, claim=f"d{n}", limit=4)) for n in range(3)] == [1, 1, 2]


def test_a_word_of_what_came_of_it_makes_it_a_mate_again(store: Store) -> None:
    commit(store, *[(a_record(f"r{n}"), 0.5) for n in range(2)])
    for _ in range(5):
        claimed = take(store, seconds=-1)
        assert len(claimed) == 2
        settle(store, claimed, "retried", reason="503", due_at=now())


def test_threads_that_claim_at_once_get_different_ones(url: str, open_store: Callable[..., Store]) -> None:
    commit(open_store(sinks=SINKS), *[(a_record(f"r{n}"), 0.5) for n in range(60)])
    stores = [open_store() for _ in range(4)]
    taken: list[tuple[str, uuid.UUID]] = []

    def work(index: int) -> None:
        while claimed := take(stores[index], claim=uuid.uuid4().hex, limit=7):
            taken.extend(key(one) for one in claimed)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # PostgreSQL skips what another has locked, and what is skipped by all is there for the next time.
    taken += [key(one) for one in take(stores[0], claim="rest")]
    assert len(taken) == len(set(taken)) == 60


def test_looking_when_nothing_is_due_writes_nothing(store: Store) -> None:
    commit(store, (a_record(), 0.5))
    take(store)
    with statements(store) as seen:
        assert take(store, claim="d") == []
    assert [statement.split()[0] for statement in seen if statement.split()[0] != "BEGIN"] == ["SELECT"]


# -- what came of it


def test_what_is_tried_again_waits_until_it_is_due(store: Store) -> None:
    commit(store, (a_record("r"), 0.5))
    settle(store, take(store), "retried", reason="503: busy", due_at=now() + LATER)
    assert take(store, claim="d") == []
    (row,) = store.outbox(sink="phoenix")
    assert (row.state, row.attempts, row.reason) == ("waiting", 1, "503: busy")
    with connected(store) as connection:
        connection.execute(sa.update(part.outbox).values(due_at=now()))
    (claimed,) = take(store, claim="d")
    assert claimed.attempts == 1


def test_what_is_refused_is_set_aside_with_its_reason_until_it_is_retried(store: Store) -> None:
    commit(store, (a_record("r"), 0.5), (a_record("s"), 0.5))
    settle(store, take(store), "rejected", reason="422: \x00 no\ud800")
    assert take(store, claim="d") == []
    assert {row.reason for row in store.outbox(state="rejected")} == {"422: \ufffd no\ufffd"}
    assert store.outbox(state="rejected", reason="422") == store.outbox(sink="phoenix")
    assert store.outbox(reason="4%2") == [], "what is looked for is no pattern"
    depth = store.outbox_depths()["phoenix"]
    assert (depth.waiting, depth.rejected, depth.oldest_at, depth.writes) == (0, 2, None, {"rejected": 2})
    before = now()
    one = store.outbox(state="rejected")[0].evaluation_id
    assert store.retry_outbox(evaluation_id=one) == 1
    assert store.retry_outbox(sink="latitude") == 0
    assert store.retry_outbox(sink="phoenix", reason="422") == 1
    rows = store.outbox(sink="phoenix")
    assert {(row.state, row.attempts) for row in rows} == {("waiting", 0)}
    assert all(row.created_at >= before for row in rows), "the deadline begins anew"
    assert len(take(store)) == 2
    assert_counted(store)


def test_what_has_nothing_to_be_attached_to_goes_and_is_counted(store: Store) -> None:
    commit(store, (a_record("r"), 0.5))
    settle(store, take(store), "skipped", reason="no trace id")
    assert store.outbox(sink="phoenix") == []
    assert store.outbox_depths()["phoenix"].writes == {"skipped": 1}
    assert_counted(store)


def test_a_very_long_reason_is_cut(store: Store) -> None:
    commit(store, (a_record("r"), 0.5))
    settle(store, take(store), "rejected", reason="x" * 100_000)
    (row,) = store.outbox(sink="phoenix")
    assert len(row.reason or "") == 1000


def test_what_waited_too_long_is_set_aside_whether_or_not_the_sink_is_configured_still(store: Store) -> None:
    commit(store, *[(a_record(f"r{n}"), 0.5) for n in range(3)])
    (first, *_) = settled = take(store, limit=1)
    settle(store, settled, "retried", reason="503", due_at=now() + LATER)
    held = take(store, claim="d", limit=1)
    assert store.expire_outbox(now() - LATER, "given up: ") == 0
    assert store.expire_outbox(now() + LATER, "given up: ") == 5, "but for the one in hand"
    reasons = {(row.sink, row.record_id): row.reason for row in store.outbox(state="rejected")}
    assert reasons["phoenix", first.annotation.record_id] == "given up: 503"
    assert reasons["latitude", "r0"] == "given up: never tried"
    assert [row.record_id for row in store.outbox(state="waiting")] == [held[0].annotation.record_id]
    assert store.outbox_depths()["latitude"].writes == {"expired": 3}
    assert_counted(store)


def test_the_oldest_is_told(store: Store) -> None:
    before = now()
    commit(store, (a_record("r"), 0.5))
    time.sleep(0.01)
    between = now()
    commit(store, (a_record("s"), 0.5))
    oldest = store.outbox_depths()["phoenix"].oldest_at
    assert oldest is not None
    assert before - timedelta(seconds=1) <= oldest <= between


def test_one_evaluation_is_found_by_the_beginning_of_its_id(store: Store) -> None:
    commit(store, (a_record("r"), 0.5), (a_record("s"), 0.25))
    wanted = an_evaluation("s", 0.25).evaluation_id
    for name in (str(wanted), str(wanted)[:13], wanted.hex[:8].upper()):
        assert [(row.sink, row.record_id, row.value) for row in store.outbox_rows(name)] == [
            ("latitude", "s", 0.25),
            ("phoenix", "s", 0.25),
        ]
    for name in ("0000", "not an id", "abc"):
        with pytest.raises(ConfigError):
            store.outbox_rows(name)


def test_a_batch_of_a_thousand_is_claimed_and_settled_at_once(store: Store) -> None:
    records = [a_record(f"r{n}") for n in range(1000)]
    store.commit(with_payloads(records), [an_evaluation(record, 0.5) for record in records])
    claimed = take(store, limit=1000)
    assert len(claimed) == 1000
    store.renew_outbox("phoenix", "c", [key(one) for one in claimed], now() + LATER)
    outcomes = {
        key(one): Settled(outcome=("delivered", "rejected", "retried")[n % 3], reason=f"{n}", due_at=now())  # type: ignore[arg-type]
        for n, one in enumerate(claimed)
    }
    assert store.settle_outbox("phoenix", "c", outcomes) == 1000
    assert store.outbox_depths()["phoenix"].writes == {"delivered": 334, "rejected": 333, "retried": 333}
    assert_counted(store)
