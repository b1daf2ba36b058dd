"""Calls that hang hold nothing else up, and nothing of them is lost or counted twice: on a real Redis and SQLite."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bench as bench_of_workers
from assay import late_calls
from assay.cascade import Cascade
from assay.deliveries import DeliveryPolicy
from assay.errors import JudgeError, StoreError
from assay.limits import waiting
from assay.queue import Queue
from assay.records import Failure, Outcome, Record, Score
from assay.rubrics import Rubric, load_rubrics
from assay.store import Store
from assay.worker import Worker
from bench import until
from deployment import record

RUBRICS = load_rubrics()
POLICY = DeliveryPolicy(
    patience_seconds=0.3,
    lease_seconds=2,
    sweep_seconds=0.05,
    retry_base_seconds=0.01,
    retry_max_seconds=0.05,
    max_attempts=3,
)


class Hanging:
    """A judge of which some calls end only when they are told to, or wait for a turn until then."""

    name = "hanging"
    fingerprint = "f" * 64

    def __init__(self, *ids: str, outcome: Outcome | None = None, queues: bool = False) -> None:
        self.ids = set(ids)
        self.outcome = outcome or Score(value=1.0, passed=True)
        self.queues = queues
        self.calls: list[str] = []
        self._events: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def judge(self, record: Record, rubrics: Sequence[Rubric]) -> list[Outcome]:
        self.calls.append(record.record_id)
        if record.record_id not in self.ids:
            return [Score(value=1.0, passed=True) for _ in rubrics]
        event = asyncio.Event()
        self._events.append((asyncio.get_running_loop(), event))
        if self.queues:
            with waiting():
                await event.wait()
        else:
            await event.wait()
        return [self.outcome for _ in rubrics]

    def release(self) -> None:
        self.ids = set()
        for loop, event in self._events:
            loop.call_soon_threadsafe(event.set)

    async def aclose(self) -> None:
        pass


class Bench(bench_of_workers.Bench):
    def worker(self, judge: Hanging, policy: DeliveryPolicy = POLICY) -> Worker:
        return self.start(judge, rubrics=RUBRICS, policy=policy)

    def push_batch(self, records: int) -> str:
        self.push(*(record(i) for i in range(records)))
        (batch_id,) = self.ids
        return batch_id

    def end(self, judge: Hanging, records: int) -> None:
        """Let what hangs end; then all is scored."""
        judge.release()
        until(lambda: not self.ids)
        self.assert_all_scored_once(records)

    def scored(self) -> Counter[str]:
        return Counter({total.rubric: total.scored for total in self.store.totals()})

    def assert_all_scored_once(self, records: int) -> None:
        assert self.scored() == {rubric.name: records for rubric in RUBRICS}
        assert self.store.counts().received == {"shop": records}
        assert self.store.dead_letters() == []


@pytest.fixture
def bench(redis_url: str, tmp_path: Path) -> Iterator[Bench]:
    with Bench.opened(redis_url, tmp_path) as made:
        yield made


def test_what_is_judged_is_committed_while_a_mate_hangs(bench: Bench) -> None:
    judge = Hanging("record-3", "record-7")
    worker = bench.worker(judge)
    batch_id = bench.push_batch(25)
    worker.work(batch_id)  # returns, although two calls hang
    assert bench.scored() == {rubric.name: 23 for rubric in RUBRICS}
    assert bench.store.counts().received == {"shop": 23}
    assert len(bench.ids) == bench.queue.depth().records == 2
    assert batch_id not in bench.ids

    # Another worker finds them held, for longer than a lease lasts.
    other = bench.worker(Hanging())
    time.sleep(POLICY.lease_seconds * 1.5)
    for single in bench.ids:
        other.work(single)
    assert len(judge.calls) == 25

    bench.end(judge, 25)
    assert Counter(judge.calls) == Counter(f"record-{i}" for i in range(25))


def test_one_that_hangs_takes_along_what_a_cascade_passed_over_of_it(bench: Bench) -> None:
    """Else the batch that it leaves speaks of a record that it has not, and is made once more as a whole."""
    cascade = Cascade(first="lexical", share=0.3)
    rubrics = [replace(rubric, cascade=cascade) if rubric.name == "relevance" else rubric for rubric in load_rubrics()]
    judge = Hanging(*(f"record-{index}" for index in range(3)))
    worker = bench.start(judge, rubrics=rubrics, policy=POLICY)
    worker.work(bench.push_batch(25))
    assert len(judge.calls) == 25
    judge.release()
    bench.work_off(worker)
    until(lambda: not bench.ids)
    assert len(judge.calls) == 25
    totals = {total.rubric: total for total in bench.store.totals()}
    assert totals["relevance"].scored + totals["relevance"].not_applicable == 25 == totals["safety"].scored
    assert 0 < totals["relevance"].scored < 25
    assert not bench.store.dead_letters()


def test_a_single_record_that_hangs_holds_no_thread(bench: Bench) -> None:
    judge = Hanging("record-0")
    worker = bench.worker(judge)
    batch_id = bench.push_batch(1)
    worker.work(batch_id)
    assert bench.ids == [batch_id]
    assert bench.queue.claim(batch_id, lease_seconds=5) is None
    bench.end(judge, 1)
    assert judge.calls == ["record-0"]


def test_when_all_calls_hang_the_thread_is_free_after_its_patience(bench: Bench) -> None:
    judge = Hanging(*(f"record-{i}" for i in range(6)))
    worker = bench.worker(judge)
    worker.work(bench.push_batch(6))
    assert len(bench.ids) == 6
    assert bench.scored() == {}
    bench.end(judge, 6)


def test_a_worker_that_dies_meanwhile_loses_nothing(bench: Bench) -> None:
    judge = Hanging("record-1")
    dead = bench.worker(judge)
    dead.work(bench.push_batch(8))
    (single,) = bench.ids
    with dead._lock:
        dead._late._held.pop(single)  # as a process that is gone, it renews no lease
    other = bench.worker(Hanging())
    until(lambda: bench.queue._redis.hget("assay:assay:leases", single) is None)
    bench.work_off(other)
    bench.assert_all_scored_once(8)
    # Its answer comes after all: it is stored once.
    judge.release()
    dead._late._threads.shutdown(wait=False)
    time.sleep(0.2)
    bench.assert_all_scored_once(8)


def test_an_answer_after_the_record_was_judged_by_another_is_not_counted_again(bench: Bench) -> None:
    judge = Hanging("record-1")
    first = bench.worker(judge)
    first.work(bench.push_batch(8))
    (single,) = bench.ids
    bench.queue._redis.hdel("assay:assay:leases", single)  # the lease was lost
    second = bench.worker(Hanging())
    second._judges._default.fingerprint = judge.fingerprint
    bench.work_off(second)
    judge.release()
    until(lambda: not first._late.batch_ids())
    bench.assert_all_scored_once(8)


def test_what_hangs_with_each_of_two_workers_that_have_the_same_batch_is_never_lost(bench: Bench) -> None:
    """The first lost its lease meanwhile, and with the second other calls hang: neither ends what the other holds."""

    class Times(Hanging):
        async def judge(self, record: Record, rubrics: Sequence[Rubric]) -> list[Outcome]:
            if record.record_id == "record-3":
                return [Failure(kind="timeout", message="slow") for _ in rubrics]
            return await super().judge(record, rubrics)

    first, second = Hanging("record-3", outcome=Failure(kind="timeout", message="slow")), Times("record-5")
    patient = replace(POLICY, patience_seconds=2, lease_seconds=30)
    one, other = bench.worker(first, patient), bench.worker(second, replace(patient, patience_seconds=6))
    batch_id = bench.push_batch(8)
    threads = [threading.Thread(target=worker.work, args=(batch_id,)) for worker in (one, other)]
    threads[0].start()
    until(lambda: len(first.calls) == 8)
    bench.queue._redis.hdel("assay:assay:leases", batch_id)
    threads[1].start()
    for thread in threads:
        thread.join(20)
    assert bench.ids == one._late.batch_ids()
    assert len(other._late.batch_ids()) == 1
    second.release()
    until(lambda: not other._late.batch_ids())
    assert bench.ids == one._late.batch_ids(), "record-3 is held still"
    first.release()
    until(lambda: not one._late.batch_ids())
    bench.work_off(bench.worker(Hanging()))
    bench.assert_all_scored_once(8)


def test_hand_back_returns_a_call_that_hangs_uncounted(bench: Bench) -> None:
    judge = Hanging("record-1", "record-2")
    worker = bench.worker(judge)
    worker.work(bench.push_batch(12))
    worker.hand_back()
    until(lambda: not worker._late.batch_ids())
    assert bench.queue.depth().records == 2
    claims = [bench.queue.claim(single, lease_seconds=0.01) for single in bench.ids]
    assert [claim.deliveries for claim in claims if claim] == [1, 1]
    time.sleep(0.05)
    bench.work_off(bench.worker(Hanging()))
    bench.assert_all_scored_once(12)


def test_a_worker_that_stops_waits_for_its_calls_as_long_as_it_may(bench: Bench) -> None:
    judge = Hanging("record-1")
    worker = bench.worker(judge)
    worker.work(bench.push_batch(8))
    worker.begin_stop()
    threading.Timer(0.3, judge.release).start()
    worker.stop()
    bench.workers.remove(worker)
    bench.assert_all_scored_once(8)
    assert bench.ids == []
    assert len(judge.calls) == 8


def test_a_late_failure_is_tried_again_like_any(bench: Bench) -> None:
    judge = Hanging("record-1", outcome=Failure(kind="timeout", message="slow"))
    worker = bench.worker(judge)
    worker.work(bench.push_batch(8))
    judge.release()
    until(lambda: not worker._late.batch_ids())
    assert len(bench.ids) == 1
    bench.work_off(worker)
    bench.assert_all_scored_once(8)
    assert Counter(judge.calls)["record-1"] == 2


ROOMY = replace(POLICY, in_hand_records=10)


def test_a_batch_of_few_records_takes_no_thread_and_its_lease_is_renewed(bench: Bench) -> None:
    judge = Hanging("record-0", "record-1")
    worker = bench.worker(judge, replace(ROOMY, patience_seconds=60.0))
    batch_id = bench.push_batch(3)
    started = time.monotonic()
    worker.work(batch_id)
    assert time.monotonic() - started < 10
    until(lambda: len(judge.calls) == 3)
    assert bench.scored() == {}
    time.sleep(POLICY.lease_seconds * 1.5)
    bench.worker(Hanging(), ROOMY).work(batch_id)
    assert len(judge.calls) == 3, "it is in other hands"
    bench.end(judge, 3)


def test_of_a_batch_of_few_records_too_those_that_hang_go_on_alone(bench: Bench) -> None:
    judge = Hanging("record-2")
    worker = bench.worker(judge, ROOMY)
    worker.work(bench.push_batch(5))
    until(lambda: bench.scored() == {rubric.name: 4 for rubric in RUBRICS})
    assert bench.queue.depth().records == 1
    bench.end(judge, 5)


def test_a_single_record_that_hangs_is_held_for_as_long_as_it_does(bench: Bench) -> None:
    judge = Hanging("record-0")
    worker = bench.worker(judge, ROOMY)
    batch_id = bench.push_batch(1)
    worker.work(batch_id)
    time.sleep(ROOMY.patience_seconds + POLICY.lease_seconds * 1.5)
    assert bench.ids == [batch_id]
    bench.worker(Hanging(), ROOMY).work(batch_id)
    assert judge.calls == ["record-0"]
    assert bench.scored() == {}
    bench.end(judge, 1)


@pytest.mark.parametrize(("records", "in_hand"), [(9, 100), (3, 0)])
def test_a_larger_batch_or_one_without_room_takes_its_thread(bench: Bench, records: int, in_hand: int) -> None:
    judge = Hanging("record-0")
    worker = bench.worker(judge, replace(POLICY, in_hand_records=in_hand, patience_seconds=60.0))
    thread = threading.Thread(target=worker.work, args=(bench.push_batch(records),))
    thread.start()
    until(lambda: len(judge.calls) == records)
    thread.join(0.3)
    assert thread.is_alive()
    judge.release()
    thread.join(10)
    assert not thread.is_alive()
    bench.assert_all_scored_once(records)


def test_what_is_in_hand_without_a_thread_is_bounded(bench: Bench) -> None:
    judge = Hanging(*(f"record-{number}" for number in range(20)))
    worker = bench.worker(judge, replace(ROOMY, in_hand_records=4, patience_seconds=60.0))
    for number in range(6):
        bench.push(record(number))
    threads = [threading.Thread(target=worker.work, args=(batch_id,)) for batch_id in bench.ids]
    for number, thread in enumerate(threads, 1):
        thread.start()
        until(lambda number=number: len(judge.calls) == number)
        thread.join(0.3)
    assert [thread.is_alive() for thread in threads] == [False] * 4 + [True] * 2
    judge.release()
    for thread in threads:
        thread.join(10)
    until(lambda: not bench.ids)
    bench.assert_all_scored_once(6)


def test_hand_back_returns_a_batch_of_few_records_uncounted(bench: Bench) -> None:
    judge = Hanging("record-0", "record-1")
    worker = bench.worker(judge, replace(ROOMY, patience_seconds=60.0))
    worker.work(bench.push_batch(2))
    until(lambda: len(judge.calls) == 2)
    worker.hand_back()
    until(lambda: [bench.queue.depth().records] == [2] and bool(bench.ids))
    worker.stop()
    bench.workers.remove(worker)
    bench.work_off(bench.worker(Hanging()))
    bench.assert_all_scored_once(2)


class AwayStore(Store):
    """A database that may go away."""

    is_away = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.refused: set[str] = set()

    def commit(self, records: Any, evaluations: Any, dead_letters: Any = (), **options: Any) -> Any:
        if self.is_away:
            self.refused |= {record.record_id for record, _ in records}
            raise StoreError("connection timed out")
        return super().commit(records, evaluations, dead_letters, **options)


def test_a_worker_that_stops_finds_out_once_that_the_database_is_away(redis_url: str, tmp_path: Path) -> None:
    """A connection takes seconds to time out, and a process may have hundreds of batches in hand."""
    queue = Queue.from_url(redis_url)
    with AwayStore(f"sqlite:///{tmp_path}/assay.db") as store:
        store.upgrade()
        bench = Bench(queue, store)
        judge = Hanging(*(f"record-{number}" for number in range(24)))
        policy = replace(POLICY, in_hand_records=100, patience_seconds=60.0, shutdown_seconds=0.2)
        worker = bench.worker(judge, policy)
        for number in range(24):
            bench.push(record(number))
        ids = bench.ids
        for batch_id in ids:
            worker.work(batch_id)
        until(lambda: len(judge.calls) == 24)
        store.is_away = True
        judge.release()
        until(lambda: len(store.refused) == late_calls._THREADS)
        worker.begin_stop()
        worker.stop()
        bench.workers.remove(worker)
        assert len(store.refused) == late_calls._THREADS
        # What was in hand is nobody's, and this delivery did not count.
        assert bench.ids == ids
        assert not any(queue._redis.hvals("assay:assay:leases"))
        assert set(queue._redis.hvals("assay:assay:deliveries")) == {b"0"}
        store.is_away = False
        queue.sweep(now=time.time() + 60)
        bench.work_off(bench.worker(Hanging()))
        bench.assert_all_scored_once(24)
        bench.stop()
    queue.close()


def test_who_must_be_alone_waits_for_what_has_no_thread(bench: Bench) -> None:
    """Else a record that ends the process there would be taken for the one that is judged alone."""
    judge = Hanging("record-0")
    worker = bench.worker(judge, replace(ROOMY, patience_seconds=60.0))
    worker.work(bench.push_batch(1))
    until(lambda: len(judge.calls) == 1)
    bench.push(record(1))
    (suspect,) = [
        batch_id for batch_id in bench.ids if bench.queue._redis.hget("assay:assay:deliveries", batch_id) is None
    ]
    for _ in range(POLICY.max_deliveries - 1):
        assert bench.queue.claim(suspect, lease_seconds=0.01)
        time.sleep(0.02)
    thread = threading.Thread(target=worker.work, args=(suspect,))
    thread.start()
    time.sleep(0.5)
    assert judge.calls == ["record-0"]
    judge.release()
    thread.join(10)
    until(lambda: not bench.ids)
    assert judge.calls == ["record-0", "record-1"]
    bench.assert_all_scored_once(2)


def test_what_waits_for_its_turn_does_not_hang(bench: Bench) -> None:
    judge = Hanging("record-1", queues=True)
    worker = bench.worker(judge)
    thread = threading.Thread(target=worker.work, args=(bench.push_batch(8),))
    thread.start()
    thread.join(POLICY.patience_seconds * 4)
    assert thread.is_alive()
    assert not worker._late.batch_ids()
    judge.release()
    thread.join(20)
    assert not thread.is_alive()
    assert not worker._late.batch_ids()
    bench.assert_all_scored_once(8)


def test_calls_without_a_thread_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_calls, "_MOST_CALLS", 1)
    judge = Hanging("record-1", "record-2")
    worker = bench.worker(judge)
    thread = threading.Thread(target=worker.work, args=(bench.push_batch(12),))
    thread.start()
    thread.join(POLICY.patience_seconds * 4)
    assert thread.is_alive()
    judge.release()
    thread.join(20)
    bench.assert_all_scored_once(12)


def test_what_no_rate_limit_let_be_asked_goes_back_whole_and_uses_up_no_try(bench: Bench) -> None:
    class Limited(Hanging):
        async def judge(self, record: Record, rubrics: Sequence[Rubric]) -> list[Outcome]:
            if len(self.calls) < 8 * 4:
                self.calls.append(record.record_id)
                raise JudgeError("rate_limited", "not its turn", retry_after_seconds=0.01, free=True, unasked=True)
            return await super().judge(record, rubrics)

    judge = Limited()
    worker = bench.worker(judge)
    batch_id = bench.push_batch(8)
    worker.work(batch_id)
    assert bench.ids == [batch_id]  # as it came
    bench.work_off(worker)
    # Four refusals of each, where a record has three tries; and it is one delivery for each claim that was worked on.
    bench.assert_all_scored_once(8)
    assert Counter(judge.calls) == {f"record-{i}": 5 for i in range(8)}
