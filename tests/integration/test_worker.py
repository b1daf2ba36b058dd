"""The worker on a real Redis and SQLite, with a judge that follows a script."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import bench as bench_of_workers
from assay.budgets import is_thinned
from assay.codec import decode_record
from assay.deliveries import DeliveryPolicy
from assay.enqueue import replay
from assay.errors import StoreDataError
from assay.judges import Judge
from assay.pipeline import Judges, Refusal
from assay.queue import Queue, Suspect, decode_batch, encode_batch
from assay.records import Failure, FailureKind, Outcome, Record, Score
from assay.rubrics import Rubric, load_rubrics
from assay.store import Store
from assay.testing import ScriptedJudge
from assay.worker import Worker
from deployment import record, wait_until

RUBRICS = load_rubrics()
QUICK = DeliveryPolicy(retry_base_seconds=0.01, retry_max_seconds=0.05, lease_seconds=5, max_attempts=3)


class Bench(bench_of_workers.Bench):
    def worker(
        self, script: object = None, *, policy: DeliveryPolicy = QUICK, budgets: object = None, **options: object
    ) -> Worker:
        self.judge = ScriptedJudge(script, **options)  # type: ignore[arg-type]
        return self.start(self.judge, rubrics=RUBRICS, policy=policy, budgets=budgets)

    def push_raw(self, payload: bytes, batch_id: str, records: int = 1) -> None:
        assert self.queue.push(payload, batch_id=batch_id, records=records, enqueued_at=time.time())

    def outcomes(self) -> dict[str, tuple[int, int, int]]:
        return {t.rubric: (t.scored, t.failed - t.recovered, t.not_applicable) for t in self.store.totals()}


@pytest.fixture
def bench(redis_url: str, tmp_path: Path) -> Iterator[Bench]:
    with Bench.opened(redis_url, tmp_path) as made:
        yield made


def by_rubric(**outcomes: Outcome) -> Callable[[Record, Rubric], Outcome]:
    return lambda _, rubric: outcomes.get(rubric.name, Score(value=1.0, passed=True))


def test_scores_a_batch_and_clears_the_queue(bench: Bench) -> None:
    worker = bench.worker()
    bench.push(*(record(i) for i in range(30)))
    bench.work_off(worker)
    assert bench.outcomes() == {rubric.name: (30, 0, 0) for rubric in RUBRICS}
    assert bench.queue.depth().records == 0


def test_a_second_doorbell_asks_no_judge(bench: Bench) -> None:
    worker = bench.worker()
    bench.push(record(1))
    (batch_id,) = bench.ids
    worker.work(batch_id)
    worker.work(batch_id)
    assert len(bench.judge.calls) == 1


def test_a_record_that_comes_again_is_counted_as_duplicate_and_not_judged(bench: Bench) -> None:
    worker = bench.worker()
    bench.push(record(1))
    bench.work_off(worker)
    bench.push(record(1), record(1), record(2))
    bench.work_off(worker)
    assert [call[0] for call in bench.judge.calls] == ["record-1", "record-2"]
    assert bench.store.counts().duplicates == 2
    assert bench.outcomes()["safety"] == (2, 0, 0)


def test_missing_contexts_are_not_applicable_and_cost_no_verdict(bench: Bench) -> None:
    worker = bench.worker()
    bench.push(record(1, contexts=()))
    bench.work_off(worker)
    assert bench.outcomes()["faithfulness"] == (0, 0, 1)
    assert all("faithfulness" not in rubrics for _, rubrics in bench.judge.calls)


def test_a_transient_failure_is_tried_again_for_that_rubric_alone(bench: Bench) -> None:
    tries: list[str] = []

    def script(rec: Record, rubric: Rubric) -> Outcome:
        if rubric.name == "safety":
            tries.append(rubric.name)
            if len(tries) < 3:
                return Failure(kind="unavailable", message="down")
        return Score(value=1.0, passed=True)

    worker = bench.worker(script)
    bench.push(record(1), record(2))
    # Only record 1 comes to a third try: the script counts over both.
    bench.work_off(worker)
    assert bench.outcomes() == {rubric.name: (2, 0, 0) for rubric in RUBRICS}
    assert [rubrics for _, rubrics in bench.judge.calls[2:]] == [("safety",)] * (len(bench.judge.calls) - 2)
    assert bench.store.counts().received == {"shop": 2}


def test_what_fails_alike_is_tried_again_in_one_batch(bench: Bench) -> None:
    """A batch of one record each would take a thread each, and a transaction."""
    asked = {4: 40.0, 5: 60.0, 6: 200.0}

    def script(rec: Record, _: Rubric) -> Outcome:
        number = int(rec.record_id.removeprefix("record-"))
        if number == 0:
            return Score(value=1.0, passed=True)
        return Failure(kind="unavailable", message="down", retry_after_seconds=asked.get(number))

    worker = bench.worker(script, policy=replace(QUICK, retry_max_seconds=300.0))
    bench.push(*(record(number) for number in range(7)))
    (batch_id,) = bench.ids
    before = time.time()
    worker.work(batch_id)
    again = [decode_batch(bench.queue._redis.hget("assay:assay:batches", key)) for key in bench.ids]
    held = {tuple(sorted(decode_record(raw).record_id for raw in batch.records)): batch for batch in again}
    assert set(held) == {("record-1", "record-2", "record-3"), ("record-4", "record-5"), ("record-6",)}
    assert {batch.attempt for batch in again} == {1}
    assert bench.outcomes() == {rubric.name: (1, 0, 0) for rubric in RUBRICS}
    assert bench.queue.depth().records == 6
    due = bench.queue._redis.zscore("assay:assay:due", held["record-4", "record-5"].batch_id)
    assert due - before == pytest.approx(60.0, abs=2.0), "as long as the more patient of the two asks for"


def test_what_fails_alike_may_fail_apart_later(bench: Bench) -> None:
    seen: Counter[str] = Counter()

    def script(rec: Record, rubric: Rubric) -> Outcome:
        seen[rec.record_id] += rubric.name == "safety"
        down = rubric.name == "safety" and seen[rec.record_id] <= int(rec.record_id.removeprefix("record-"))
        return Failure(kind="unavailable", message="down") if down else Score(value=1.0, passed=True)

    worker = bench.worker(script)
    bench.push(*(record(number) for number in range(5)))
    bench.work_off(worker)
    assert seen == {f"record-{number}": min(number + 1, QUICK.max_attempts) for number in range(5)}
    assert bench.outcomes()["safety"] == (3, 2, 0)
    assert {letter.record_id: letter.attempts for letter in bench.store.dead_letters()} == {
        "record-3": 3,
        "record-4": 3,
    }


def test_used_up_tries_become_a_failure_and_a_dead_letter_that_can_be_replayed(bench: Bench) -> None:
    down = bench.worker(by_rubric(safety=Failure(kind="unavailable", message="down")))
    bench.push(record(1))
    bench.work_off(down)
    assert bench.outcomes()["safety"] == (0, 1, 0)
    assert bench.outcomes()["relevance"] == (1, 0, 0)
    (letter,) = bench.store.dead_letters()
    assert (letter.reason, letter.record_id, letter.attempts) == ("unavailable", "record-1", 3)
    assert "safety: down" in letter.message

    up = bench.worker()
    up_calls = bench.judge.calls
    assert replay([letter], queue=bench.queue, store=bench.store).replayed == 1
    bench.work_off(up)
    assert [rubrics for _, rubrics in up_calls] == [("safety",)]
    assert bench.outcomes() == {rubric.name: (1, 0, 0) for rubric in RUBRICS}
    (total,) = [t for t in bench.store.totals() if t.rubric == "safety"]
    assert (total.scored, total.failed, total.recovered) == (1, 1, 1)
    assert bench.store.dead_letters() == []


def test_what_was_too_large_can_be_replayed_under_a_raised_bound(bench: Bench) -> None:
    large = record(1, output="x" * 1_500_000).to_json()
    bench.push_raw(encode_batch([large], batch_id="b", enqueued_at=time.time()), "b")
    bench.work_off(bench.worker())
    (letter,) = bench.store.dead_letters(reason="too_large")
    refused = replay([letter], queue=bench.queue, store=bench.store).refused
    assert [dead_id for dead_id, _ in refused] == [letter.dead_id]
    worker = bench.worker(policy=replace(QUICK, max_record_bytes=2_000_000))
    assert replay([letter], queue=bench.queue, store=bench.store, max_record_bytes=2_000_000).replayed == 1
    bench.work_off(worker)
    assert bench.outcomes() == {rubric.name: (1, 0, 0) for rubric in RUBRICS}


class StoodInFor(Judges):
    """A judge, and who is asked while its circuit is open."""

    def __init__(self, judge: ScriptedJudge, fallback: ScriptedJudge) -> None:
        super().__init__(judge)
        self._fallback = fallback

    def stand_ins(self, rubric: Rubric) -> dict[Refusal, Judge]:
        return {"circuit": self._fallback}


DOWN = Failure(kind="unavailable", message="the circuit is open", unasked=True, retry_after_seconds=0.01)


@pytest.mark.parametrize("kind", ["rate_limited", "refused"])
def test_a_failure_of_a_stand_in_is_recovered_by_the_judge_itself(bench: Bench, kind: FailureKind) -> None:
    is_down = [True]
    first = ScriptedJudge(lambda *_: DOWN if is_down else Score(value=1.0, passed=True), name="first")
    second = ScriptedJudge(Failure(kind=kind, message="no"), name="second")
    worker = bench.start(first, rubrics=RUBRICS, policy=QUICK, judges=lambda: StoodInFor(first, second))
    bench.push(record(1))
    bench.work_off(worker)
    assert len(second.calls) == QUICK.max_attempts, "each time it was asked is a try"
    assert bench.outcomes() == {rubric.name: (0, 1, 0) for rubric in RUBRICS}
    (letter,) = bench.store.dead_letters()
    assert "the circuit is open; second in its place: no" in letter.message

    is_down.clear()
    assert replay([letter], queue=bench.queue, store=bench.store).replayed == 1
    bench.work_off(worker)
    assert bench.outcomes() == {rubric.name: (1, 0, 0) for rubric in RUBRICS}
    assert {total.judge for total in bench.store.totals()} == {"first"}


def test_a_replay_that_fails_again_is_a_waiting_dead_letter_again(bench: Bench) -> None:
    worker = bench.worker(by_rubric(safety=Failure(kind="timeout", message="slow")))
    bench.push(record(1))
    bench.work_off(worker)
    replay(bench.store.dead_letters(), queue=bench.queue, store=bench.store)
    bench.work_off(worker)
    assert [letter.reason for letter in bench.store.dead_letters()] == ["timeout"]
    assert bench.outcomes()["safety"] == (0, 1, 0)
    assert bench.store.counts().duplicates == 0, "it came again because somebody asked for it"


def test_a_final_failure_is_stored_at_once_and_is_no_dead_letter(bench: Bench) -> None:
    worker = bench.worker(by_rubric(safety=Failure(kind="refused", message="no")))
    bench.push(record(1))
    bench.work_off(worker)
    assert bench.outcomes()["safety"] == (0, 1, 0)
    assert len(bench.judge.calls) == 1
    assert bench.store.dead_letters() == []


def test_a_bad_record_is_kept_and_its_mates_are_scored(bench: Bench) -> None:
    worker = bench.worker()
    records = [record(1).to_json(), '{"record_id": "x", "timestamp": "now"}', '"text"', record(2).to_json()]
    bench.push_raw(encode_batch(records, batch_id="b", enqueued_at=time.time()), "b", 4)
    bench.work_off(worker)
    assert bench.outcomes()["safety"] == (2, 0, 0)
    letters = {letter.payload: letter for letter in bench.store.dead_letters()}
    assert set(letters) == {b'{"record_id": "x", "timestamp": "now"}', b'"text"'}
    assert "timestamp" in letters[b'{"record_id": "x", "timestamp": "now"}'].message


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"not json", "undecodable"),
        (b"\xff\xfe{}", "undecodable"),
        (b'{"schema_version": 99, "batch_id": "b", "enqueued_at": 1, "records": [{}]}', "unknown_version"),
        (b'{"schema_version": 1, "batch_id": "b", "enqueued_at": 1, "records": "x"}', "invalid"),
        (
            b'{"schema_version": 1, "batch_id": "b", "enqueued_at": 1, "records": [{"schema_version": 7}]}',
            "unknown_version",
        ),
        (b"[" * 100_000, "undecodable"),
    ],
)
def test_what_is_no_batch_is_kept_with_its_reason(bench: Bench, payload: bytes, reason: str) -> None:
    worker = bench.worker(policy=replace(QUICK, newer_seconds=0))
    bench.push_raw(payload, "b")
    bench.work_off(worker)
    (letter,) = bench.store.dead_letters()
    assert letter.reason == reason
    assert letter.payload in payload


def test_a_batch_of_a_newer_client_waits_for_a_newer_worker(bench: Bench) -> None:
    worker = bench.worker()
    payload = encode_batch([record(1).to_json()], batch_id="b", enqueued_at=time.time())
    newer = payload.replace(b'"schema_version":1,"batch_id"', b'"schema_version":2,"batch_id"')
    bench.push_raw(newer, "b")
    for _ in range(10):
        worker.work("b")
        # Its time to wait is over: the sweep rings.
        bench.queue.sweep(now=time.time() + 60)
    assert bench.store.dead_letters() == []
    claim = bench.queue.claim("b", lease_seconds=30)
    assert claim is not None
    assert (claim.payload, claim.deliveries) == (newer, 1), "ten looks are no deliveries"
    bench.queue.release("b", due_at=time.time())
    # A newer worker comes, which can read it.
    bench.queue._redis.hset("assay:assay:batches", "b", payload)
    bench.work_off(worker)
    assert bench.outcomes()["safety"] == (1, 0, 0)


def test_a_record_of_a_newer_client_waits_and_its_mates_do_not(bench: Bench) -> None:
    worker = bench.worker()
    newer = record(1).to_json().replace('"schema_version":1', '"schema_version":2', 1)
    bench.push_raw(encode_batch([newer, record(2).to_json()], batch_id="b", enqueued_at=time.time()), "b", 2)
    worker.work("b")
    assert bench.outcomes()["safety"] == (1, 0, 0)
    assert bench.store.dead_letters() == []
    for _ in range(3):
        bench.queue.sweep(now=time.time() + 60)
        (batch_id,) = bench.ids
        worker.work(batch_id)
    (batch_id,) = bench.ids
    payload = bench.queue._redis.hget("assay:assay:batches", batch_id)
    assert decode_batch(payload).records == (newer.encode(),)
    patient = bench.worker(policy=replace(QUICK, newer_seconds=0))
    bench.queue.sweep(now=time.time() + 60)
    bench.work_off(patient)
    (letter,) = bench.store.dead_letters()
    assert (letter.reason, letter.payload) == ("unknown_version", newer.encode())


def test_a_record_of_ten_megabytes_is_set_aside(bench: Bench) -> None:
    worker = bench.worker()
    big = record(1, output="x" * 10_000_000).to_json()
    bench.push_raw(encode_batch([big, record(2).to_json()], batch_id="b", enqueued_at=time.time()), "b", 2)
    bench.work_off(worker)
    (letter,) = bench.store.dead_letters()
    assert (letter.reason, letter.payload) == ("too_large", big.encode())
    assert bench.outcomes()["safety"] == (1, 0, 0)


def test_a_record_with_which_workers_die_is_isolated_and_set_aside(bench: Bench) -> None:
    worker = bench.worker()
    bench.push(*(record(i) for i in range(4)))
    (batch_id,) = bench.ids
    for _ in range(2):
        assert bench.queue.claim(batch_id, lease_seconds=0.01)  # a worker that dies
        time.sleep(0.02)
    worker.work(batch_id)
    singles = bench.ids
    assert len(singles) == 4
    assert batch_id not in singles
    assert bench.judge.calls == []
    killer = next(i for i in singles if b'"record-2"' in bench.queue._redis.hget("assay:assay:batches", i))
    for _ in range(QUICK.max_deliveries):
        assert bench.queue.claim(killer, lease_seconds=0.01)
        time.sleep(0.02)
    bench.work_off(worker)
    assert bench.outcomes() == {rubric.name: (3, 1, 0) for rubric in RUBRICS}
    (letter,) = bench.store.dead_letters()
    assert (letter.reason, letter.record_id) == ("crashed", "record-2")


def test_a_record_on_its_last_tries_is_judged_alone_and_to_the_end(bench: Bench) -> None:
    """Else, whatever kills the process meanwhile, it is set aside in its neighbour's place."""
    events: list[tuple[str, str]] = []

    class Watched(ScriptedJudge):
        async def judge(self, record: Record, rubrics: Sequence[Rubric]) -> list[Outcome]:
            events.append(("begins", record.record_id))
            outcomes = await super().judge(record, rubrics)
            events.append(("ends", record.record_id))
            return outcomes

    judge = Watched(delay_seconds=0.3)
    policy = replace(QUICK, patience_seconds=5.0)
    worker = Worker(queue=bench.queue, store=bench.store, rubrics=RUBRICS, judges=lambda: Judges(judge), policy=policy)
    bench.workers.append(worker)
    worker.start()
    bench.push(record(0))
    (suspect,) = bench.ids
    for _ in range(policy.max_deliveries - 1):
        assert bench.queue.claim(suspect, lease_seconds=0.01)  # a worker that dies
        time.sleep(0.02)
    for index in range(1, 7):
        bench.push(record(index))
    others = [batch_id for batch_id in bench.ids if batch_id != suspect]
    names = [*others[:3], suspect, *others[3:]]
    threads = [threading.Thread(target=worker.work, args=(batch_id,)) for batch_id in names]
    for thread in threads:
        thread.start()
        if thread is threads[2]:
            wait_until(lambda: len(events) >= 3)
    for thread in threads:
        thread.join(20)
    bench.work_off(worker)
    where = events.index(("begins", "record-0"))
    assert events[where + 1] == ("ends", "record-0")
    assert Counter(name for _, name in events[:where]).most_common(1)[0][1] == 2, "it came while others were in hand"
    assert set(Counter(name for _, name in events[:where]).values()) == {2}, "what was in hand had ended"
    assert bench.outcomes() == {rubric.name: (7, 0, 0) for rubric in RUBRICS}
    assert bench.store.dead_letters() == []


@pytest.mark.parametrize(("most", "alone"), [(2, [2]), (3, [3]), (4, [3, 4]), (6, [5, 6])])
def test_the_last_tries_of_a_record_are_made_alone(bench: Bench, most: int, alone: list[int]) -> None:
    """With one of them, a worker that somebody kills just then would blame the record."""
    policy = replace(QUICK, max_deliveries=most)
    bench.push(record(1))
    (suspect,) = bench.ids
    found = []
    for delivery in range(1, most + 1):
        try:
            assert bench.queue.claim(suspect, lease_seconds=0.01, alone_from=policy.alone_from)
        except Suspect:
            found.append(delivery)
            claim = bench.queue.claim(suspect, lease_seconds=0.01)  # and its worker dies again
            assert claim is not None
            assert claim.deliveries == delivery
        time.sleep(0.02)
    assert found == alone
    worker = bench.worker(policy=policy)
    worker.work(suspect)
    assert bench.store.counts().dead_kept == {"crashed": 1}
    assert bench.judge.calls == []


def test_a_record_on_its_last_tries_keeps_its_thread_though_it_hangs(bench: Bench) -> None:
    """A call that goes on without its thread would be beside others again."""
    policy = replace(QUICK, patience_seconds=0.05)
    worker = bench.worker(policy=policy, delay_seconds=0.6)
    for index in range(2):
        bench.push(record(index))
    first, suspect = sorted(bench.ids, key=lambda i: b'"record-1"' in bench.queue._redis.hget("assay:assay:batches", i))
    for _ in range(policy.max_deliveries - 1):
        assert bench.queue.claim(suspect, lease_seconds=0.01)
        time.sleep(0.02)
    worker.work(suspect)
    assert bench.ids == [first], "it is scored when `work` returns"
    bench.work_off(worker)
    assert bench.outcomes() == {rubric.name: (2, 0, 0) for rubric in RUBRICS}


def test_hand_back_keeps_what_is_scored_and_returns_the_rest_uncounted(bench: Bench) -> None:
    judged = threading.Event()

    def script(rec: Record, rubric: Rubric) -> Outcome:
        judged.set()
        return Score(value=1.0, passed=True)

    slow = bench.worker(script, delay_seconds=60.0)
    bench.push(record(1), record(2))
    (batch_id,) = bench.ids
    thread = threading.Thread(target=slow.work, args=(batch_id,))
    thread.start()
    deadline = time.monotonic() + 10
    while len(bench.judge.calls) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    slow.hand_back()
    thread.join(10)
    assert not thread.is_alive()
    assert not judged.is_set()
    assert bench.queue.depth().records == 2
    claims = [bench.queue.claim(i, lease_seconds=5) for i in bench.ids]
    assert [claim.deliveries for claim in claims if claim] == [1]
    assert bench.store.counts().received == {"shop": 2}
    assert bench.outcomes() == {}


def test_a_lease_is_renewed_while_the_worker_lives(bench: Bench) -> None:
    policy = DeliveryPolicy(lease_seconds=0.6, sweep_seconds=0.05)
    worker = bench.worker(delay_seconds=1.5, policy=policy)
    bench.push(record(1))
    (batch_id,) = bench.ids
    thread = threading.Thread(target=worker.work, args=(batch_id,))
    thread.start()
    for _ in range(12):
        time.sleep(0.1)
        assert bench.queue.claim(batch_id, lease_seconds=5) is None
    thread.join(10)
    assert bench.outcomes()["safety"] == (1, 0, 0)


def test_the_sweep_rings_for_a_batch_whose_worker_died(bench: Bench) -> None:
    bench.push(record(1))
    (batch_id,) = bench.ids
    bench.queue._redis.delete("assay")
    assert bench.queue.claim(batch_id, lease_seconds=0.05)
    bench.worker(policy=DeliveryPolicy(sweep_seconds=0.05))
    deadline = time.monotonic() + 10
    while not bench.queue._redis.llen("assay"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@dataclass
class Chance:
    """A ledger near a cap."""

    value: float

    def probability(self, *, app: str, rubric: str, judge: str) -> float:
        return self.value


def test_what_was_taken_near_a_cap_keeps_its_probability_though_its_turn_was_far_off(bench: Bench) -> None:
    """Else it is taken anew at the chance of then, beside neighbours that were left out at the chance of before."""
    unasked = Failure(kind="rate_limited", message="not its turn", unasked=True, retry_after_seconds=0.01)
    budget = Chance(0.5)
    limited = bench.worker(unasked, budgets=budget)
    for index in range(40):
        bench.push(record(index))
    left_out = {f"record-{index}" for index in range(40) if is_thinned(f"record-{index}", 0.5)}
    bench.work_once(limited)
    assert len(bench.ids) == 40 - len(left_out) > 10
    assert bench.outcomes() == {rubric.name: (0, 0, len(left_out)) for rubric in RUBRICS}
    budget.value = 1.0
    bench.work_off(bench.worker(budgets=budget))
    assert bench.outcomes() == {rubric.name: (40 - len(left_out), 0, len(left_out)) for rubric in RUBRICS}
    with bench.store._database.read() as connection:
        weights = connection.execute(sa.text("SELECT weight FROM evaluations WHERE outcome = 'scored'")).scalars()
        assert set(weights) == {2.0}


def test_delay_honours_retry_after_and_is_bounded() -> None:
    policy = DeliveryPolicy(retry_base_seconds=2, retry_max_seconds=60)
    plain = [policy.delay([Failure(kind="timeout", message="")], attempt) for attempt in range(8)]
    assert all(1 <= delay <= 60 for delay in plain)
    assert 1 <= plain[0] <= 2
    asked = policy.delay([Failure(kind="rate_limited", message="", retry_after_seconds=30)], 0)
    assert asked == 30
    assert policy.delay([Failure(kind="rate_limited", message="", retry_after_seconds=1e9)], 0) == 60


def test_what_may_not_be_asked_for_long_is_looked_at_again_within_the_longest_wait(bench: Bench) -> None:
    unasked = Failure(kind="rate_limited", message="not its turn", unasked=True, retry_after_seconds=80_000)
    worker = bench.worker(unasked, policy=replace(QUICK, retry_max_seconds=300))
    bench.push(record(1))
    (batch_id,) = bench.ids
    worker.work(batch_id)
    assert bench.ids == [batch_id]
    assert bench.queue._redis.zscore("assay:assay:due", batch_id) - time.time() <= 301


def test_a_batch_id_of_a_retry_is_derived_so_that_finishing_twice_adds_it_once(bench: Bench) -> None:
    worker = bench.worker(by_rubric(safety=Failure(kind="unavailable", message="down")), policy=DeliveryPolicy())
    bench.push(record(1))
    (batch_id,) = bench.ids
    worker.work(batch_id)
    (retry,) = bench.ids
    assert retry != batch_id
    assert uuid.UUID(retry).version == 5
    assert bench.queue.depth().records == 1


def test_a_payload_under_another_id_than_its_own_touches_no_other_batch(bench: Bench) -> None:
    worker = bench.worker()
    bench.push_raw(encode_batch([record(1).to_json()], batch_id="victim", enqueued_at=time.time()), "victim")
    bench.push_raw(encode_batch([record(2).to_json()], batch_id="victim", enqueued_at=time.time()), "other")
    worker.work("other")
    assert bench.ids == ["victim"]
    bench.work_off(worker)
    assert bench.outcomes()["safety"] == (2, 0, 0)
    assert bench.store.dead_letters() == []


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, RuntimeError])
def test_a_judge_that_breaks_out_is_a_failure_of_its_record_alone(bench: Bench, error: type[BaseException]) -> None:
    def script(rec: Record, rubric: Rubric) -> Outcome:
        if rec.record_id == "record-1":
            raise error
        return Score(value=1.0, passed=True)

    worker = bench.worker(script)
    bench.push(*(record(i) for i in range(4)))
    bench.work_off(worker)
    assert bench.outcomes() == {rubric.name: (3, 1, 0) for rubric in RUBRICS}
    failures = [t.failures for t in bench.store.totals()]
    assert failures == [{"internal": 1}] * len(RUBRICS)
    bench.push(record(9))
    bench.work_off(worker)
    assert bench.outcomes()["safety"] == (4, 1, 0)


def test_a_judge_that_never_returns_is_a_timeout_in_the_end(bench: Bench) -> None:
    policy = DeliveryPolicy(judge_deadline_seconds=0.2, max_attempts=1)
    worker = bench.worker(delay_seconds=3600.0, policy=policy)
    bench.push(record(1))
    bench.work_off(worker)
    assert bench.outcomes()["safety"] == (0, 1, 0)
    assert [letter.reason for letter in bench.store.dead_letters()] == ["timeout"]


class RefusingStore(Store):
    """Refuses one record, as a database does whose columns cannot hold it."""

    refused = "record-2"

    def commit(self, records: Any, evaluations: Any, dead_letters: Any = (), **options: Any) -> Any:
        if any(rec.record_id == self.refused for rec, _ in records):
            raise StoreDataError("value out of range")
        return super().commit(records, evaluations, dead_letters, **options)


def test_a_record_that_the_database_refuses_is_set_aside_and_its_mates_are_scored(
    redis_url: str, tmp_path: Path
) -> None:
    queue = Queue.from_url(redis_url)
    with RefusingStore(f"sqlite:///{tmp_path}/assay.db") as store:
        store.upgrade()
        bench = Bench(queue, store)
        worker = bench.worker()
        bench.push(*(record(i) for i in range(4)))
        bench.work_off(worker)
        assert bench.outcomes()["safety"] == (3, 0, 0)
        (letter,) = store.dead_letters()
        assert (letter.reason, letter.record_id) == ("internal", "record-2")
        assert "out of range" in letter.message
        worker.stop()
    queue.close()
