"""The half of the queue that waits for workers with ragas: on a real Redis and SQLite, with judges that follow scripts.

The judge that stands for ragas here is a scripted one; the real one is in tests/ragas_engine and tests/e2e.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from assay.deliveries import DeliveryPolicy
from assay.enqueue import replay
from assay.errors import QueueError
from assay.judges import Elsewhere
from assay.pipeline import Judges
from assay.queue import Queue, QueueDepth, Retry, decode_batch, encode_batch, is_doorbell
from assay.records import Failure, Record, Score
from assay.rubrics import Rubric
from assay.testing import ScriptedJudge
from assay.worker import Worker
from bench import Bench, until
from deployment import record
from judging import binary

pytestmark = pytest.mark.integration

PLAIN, OTHER = binary("plain"), binary("other")
#: by ragas, as far as these workers know
RAGAS = binary("by_ragas")
RUBRICS = (PLAIN, RAGAS)
QUICK = DeliveryPolicy(retry_base_seconds=0.01, retry_max_seconds=0.05, lease_seconds=5, max_attempts=3)
GOOD = Score(value=1.0, passed=True)
DOWN = Failure(kind="unavailable", message="away")


# -- the queue


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    opened = Queue.from_url(redis_url, "q")
    yield opened
    opened.close()


def payload(batch_id: str, records: int = 1) -> bytes:
    texts = [f'{{"n":{n}}}' for n in range(records)]
    return encode_batch(texts, batch_id=batch_id, enqueued_at=100.0, rubrics={"hash": "by_ragas"})


def part(batch_id: str, records: int = 1, *, due_at: float = 0.0) -> Retry:
    return Retry(payload(batch_id, records), batch_id, due_at, 100.0, records=records, ragas=True)


def push(queue: Queue, batch_id: str, records: int = 1) -> None:
    texts = [f'{{"n":{n}}}' for n in range(records)]
    plain = encode_batch(texts, batch_id=batch_id, enqueued_at=100.0)
    assert queue.push(plain, batch_id=batch_id, records=records, enqueued_at=100.0)


def bells(raw: redis.Redis, name: str) -> list[str]:
    """The batches that were rung for on a list, oldest bell first; each bell is one that Celery reads, of this list."""
    found = []
    for bell in reversed(raw.lrange(name, 0, -1)):
        assert is_doorbell(bell)
        message = json.loads(bell)
        assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": name}
        found.append(json.loads(message["body"])[0][0])
    return found


def test_the_half_for_ragas_has_doorbells_of_its_own(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b", 3)
    assert queue.claim("b", lease_seconds=30) is not None
    assert queue.finish("b", retries=[part("b.r", 3)])
    assert (bells(raw, "q"), bells(raw, "q.ragas")) == (["b"], ["b.r"])
    assert queue.depth() == QueueDepth(1, 3, 100.0, ragas_records=3, ragas_oldest_enqueued_at=100.0)
    assert queue.pending_records() == 3, "the bound, the gauges and the oldest record are those of one queue"
    claim = queue.claim("b.r", lease_seconds=30)
    assert claim is not None
    assert decode_batch(claim.payload).rubrics == {"hash": "by_ragas"}
    assert queue.finish("b.r")
    assert queue.depth() == QueueDepth(0, 0, None)
    left = {key.decode() for key in raw.keys("assay:q:*")}
    assert left <= {"assay:q:state", "assay:q:counters"}, "nothing of it is left behind"


def test_the_same_batch_finished_twice_is_there_once(queue: Queue, redis_url: str, raw: redis.Redis) -> None:
    push(queue, "b", 2)
    other = Queue.from_url(redis_url, "q")
    assert queue.claim("b", lease_seconds=30) is not None
    assert queue.finish("b", retries=[part("b.r", 2)])
    assert not other.finish("b", retries=[part("b.r", 2)]), "another worker, whose lease had ended"
    assert queue.depth().ragas_records == 2
    # The app sends the batch again, which was finished meanwhile: what it comes to has the same id.
    push(queue, "b", 2)
    assert queue.finish("b", retries=[part("b.r", 2)])
    assert queue.depth() == QueueDepth(1, 2, 100.0, 2, 100.0)
    assert bells(raw, "q.ragas") == ["b.r"]
    other.close()


def test_doorbells_of_one_half_say_nothing_of_those_of_the_other(queue: Queue, raw: redis.Redis) -> None:
    for number in range(3):
        push(queue, f"b{number}")
        assert queue.finish(f"b{number}", retries=[part(f"r{number}")])
    push(queue, "plain")
    assert bells(raw, "q.ragas") == ["r0", "r1", "r2"]
    # Many doorbells of the ordinary half are answered, none of these: they wait, and are not rung again.
    for number in range(10):
        push(queue, f"more{number}")
        assert queue.claim(f"more{number}", lease_seconds=30) is not None
        queue.finish(f"more{number}")
    assert queue.claim("plain", lease_seconds=30) is not None
    assert queue.sweep(now=time.time() + 1_000) == 1, "the lease of the plain one has ended"
    assert bells(raw, "q.ragas") == ["r0", "r1", "r2"]
    # The first is lost: that a later one was answered tells.
    raw.rpop("q.ragas")
    assert queue.claim("r1", lease_seconds=3_000) is not None
    assert queue.sweep(now=time.time() + 2_000) == 1, "the second doorbell of the plain one waits still"
    assert bells(raw, "q.ragas") == ["r1", "r2", "r0"]
    # All are lost.
    raw.delete("q.ragas")
    queue.sweep(now=time.time() + 2_500)
    assert sorted(bells(raw, "q.ragas")) == ["r0", "r2"]


def test_leases_delays_and_splits_stay_in_their_half(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b", 2)
    assert queue.finish("b", retries=[part("r", 2, due_at=time.time() + 60)])
    assert bells(raw, "q.ragas") == []
    assert queue.claim("r", lease_seconds=5) is None, "not before its time"
    queue.sweep(now=time.time() + 61)
    assert bells(raw, "q.ragas") == ["r"]
    raw.delete("q", "q.ragas")
    assert queue.claim("r", lease_seconds=0.01) is not None
    queue.sweep(now=time.time() + 62)
    assert bells(raw, "q.ragas") == ["r"], "its worker died"
    claim = queue.claim("r", lease_seconds=30)
    assert claim is not None
    assert claim.deliveries == 2
    raw.delete("q.ragas")
    assert queue.split("r", [part("r.0"), part("r.1")])
    assert (bells(raw, "q"), bells(raw, "q.ragas")) == ([], ["r.0", "r.1"])
    assert queue.claim("r.0", lease_seconds=30) is not None
    assert queue.release("r.0", due_at=time.time())
    assert bells(raw, "q.ragas") == ["r.0", "r.1", "r.0"]


def test_what_an_older_worker_finished_is_not_counted(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b", 2)
    assert queue.finish("b", retries=[part("r0", 2), part("r1", 1)])
    # It knows nothing of the set: everything else of the batch is gone.
    for key in ("batches", "sizes", "deliveries", "leases", "rings"):
        raw.hdel(f"assay:q:{key}", "r0")
    for key in ("pending", "due"):
        raw.zrem(f"assay:q:{key}", "r0")
    raw.hincrby("assay:q:state", "records", -2)
    assert queue.depth() == QueueDepth(1, 1, 100.0, 1, 100.0)


def test_many_batches_for_ragas_are_counted_right(queue: Queue) -> None:
    push(queue, "b")
    assert queue.finish("b", retries=[part(f"r{number}", 1 + number % 3) for number in range(2_500)])
    assert queue.depth().ragas_records == sum(1 + number % 3 for number in range(2_500)) == queue.depth().records


# -- the workers


class Halves:
    """A worker that has no ragas, and one that has, on one queue."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.plain_judge, self.ragas_judge = ScriptedJudge(), ScriptedJudge(name="ragas")

    def start(
        self,
        *,
        ragas: bool,
        rubrics: Sequence[Rubric] = RUBRICS,
        by_ragas: Sequence[str] = (RAGAS.name,),
        **options: Any,
    ) -> Worker:
        who = self.ragas_judge
        asked = who if ragas else Elsewhere(who.name, who.fingerprint)
        queue, policy = options.pop("queue", self.bench.queue), options.pop("policy", QUICK)
        worker = Worker(
            queue=queue,
            store=self.bench.store,
            rubrics=rubrics,
            judges=lambda: Judges(self.plain_judge, dict.fromkeys(by_ragas, asked)),
            policy=policy,
            **options,
        )
        worker.start()
        self.bench.workers.append(worker)
        return worker

    @property
    def waiting(self) -> list[str]:
        """The batches for ragas."""
        return sorted(key.decode() for key in self.bench.queue._redis.zrange("assay:assay:ragas", 0, -1))

    def work_off(self, ordinary: Worker, with_ragas: Worker | None = None) -> None:
        """Every doorbell goes to the worker that it is for, until nothing is left, or only what waits for ragas."""

        def is_done() -> bool:
            waiting = self.waiting
            for batch_id in self.bench.ids:
                if batch_id not in waiting:
                    ordinary.work(batch_id)
                elif with_ragas is not None:
                    with_ragas.work(batch_id)
            return self.bench.ids == ([] if with_ragas is not None else self.waiting)

        until(is_done)

    def outcomes(self) -> dict[str, tuple[int, int, int]]:
        return {t.rubric: (t.scored, t.failed - t.recovered, t.not_applicable) for t in self.bench.store.totals()}

    @property
    def received(self) -> int:
        return sum(self.bench.store.counts().received.values())


@pytest.fixture
def halves(redis_url: str, tmp_path: Path) -> Iterator[Halves]:
    with Bench.opened(redis_url, tmp_path) as bench:
        yield Halves(bench)


def asked(judge: ScriptedJudge) -> list[tuple[str, str]]:
    return sorted((record_id, name) for record_id, names in judge.calls for name in names)


def script(judge: ScriptedJudge, answer: Callable[[Record, Rubric], Any]) -> None:
    judge._script = answer


def test_each_half_is_scored_once_by_who_can(halves: Halves) -> None:
    ordinary = halves.start(ragas=False)
    halves.bench.push(*(record(i) for i in range(30)))
    halves.work_off(ordinary)
    assert halves.outcomes() == {PLAIN.name: (30, 0, 0)}
    assert halves.received == 30, "the records are counted where they first come"
    assert halves.bench.queue.depth().ragas_records == halves.bench.queue.depth().records == 30
    assert len(halves.waiting) == 2, "batches stay batches"
    with_ragas = halves.start(ragas=True)
    halves.work_off(ordinary, with_ragas)
    assert halves.outcomes() == {PLAIN.name: (30, 0, 0), RAGAS.name: (30, 0, 0)}
    assert asked(halves.ragas_judge) == sorted((f"record-{i}", RAGAS.name) for i in range(30))
    assert asked(halves.plain_judge) == sorted((f"record-{i}", PLAIN.name) for i in range(30))
    counts = halves.bench.store.counts()
    assert (halves.received, counts.duplicates, counts.dead_total) == (30, 0, {})


def test_a_worker_that_has_ragas_judges_all_of_a_batch_at_once(halves: Halves) -> None:
    worker = halves.start(ragas=True)
    halves.bench.push(record(1))
    halves.bench.work_once(worker)
    assert halves.bench.ids == []
    assert halves.outcomes() == {PLAIN.name: (1, 0, 0), RAGAS.name: (1, 0, 0)}


def test_what_owes_nothing_else_moves_on_without_a_call(halves: Halves) -> None:
    ordinary, with_ragas = halves.start(ragas=False, rubrics=[RAGAS]), halves.start(ragas=True, rubrics=[RAGAS])
    halves.bench.push(record(1), record(2))
    halves.work_off(ordinary)
    assert halves.plain_judge.calls == []
    assert halves.received == 2
    halves.work_off(ordinary, with_ragas)
    assert halves.outcomes() == {RAGAS.name: (2, 0, 0)}


class Dying(Queue):
    """A queue whose connection is lost at the finish: what was committed is there, and the batch too."""

    lost = True

    def finish(self, batch_id: str, *, retries: Sequence[Retry] = ()) -> bool:
        if self.lost:
            raise QueueError("lost")
        return super().finish(batch_id, retries=retries)


def test_a_death_between_the_scores_and_the_move_neither_loses_nor_doubles(halves: Halves, redis_url: str) -> None:
    dying = Dying.from_url(redis_url)
    first = halves.start(ragas=False, queue=dying)
    halves.bench.push(*(record(i) for i in range(5)))
    (batch_id,) = halves.bench.ids
    thread = threading.Thread(target=first.work, args=(batch_id,))
    thread.start()
    until(lambda: halves.outcomes() == {PLAIN.name: (5, 0, 0)})
    first.hand_back()  # as one that dies: it never gets to the finish
    thread.join(20)
    assert halves.waiting == []
    second, with_ragas = halves.start(ragas=False), halves.start(ragas=True)
    until(lambda: bool(halves.bench.queue.sweep(now=time.time() + 60)) or halves.bench.ids != [])
    halves.work_off(second, with_ragas)
    assert halves.outcomes() == {PLAIN.name: (5, 0, 0), RAGAS.name: (5, 0, 0)}
    assert len(asked(halves.plain_judge)) == len(asked(halves.ragas_judge)) == 5, "nothing was paid for twice"
    assert halves.bench.store.counts().duplicates == 0
    dying.close()


def test_a_record_moves_once_it_is_done_with_here(halves: Halves) -> None:
    tries = []

    def away_twice(item: Record, _: Rubric) -> Any:
        tries.append(item.record_id)
        return DOWN if item.record_id == "record-1" and tries.count("record-1") < 3 else GOOD

    script(halves.plain_judge, away_twice)
    ordinary, with_ragas = halves.start(ragas=False), halves.start(ragas=True)
    halves.bench.push(record(1), record(2))
    (batch_id,) = halves.bench.ids
    ordinary.work(batch_id)
    payloads = [halves.bench.queue._redis.hget("assay:assay:batches", batch_id) for batch_id in halves.waiting]
    assert [decode_batch(payload).rubrics for payload in payloads] == [{RAGAS.hash: RAGAS.name}]
    assert halves.bench.queue.depth().ragas_records == 1, "the other is tried again first, and is nowhere twice"
    assert halves.bench.queue.depth().records == 2
    halves.work_off(ordinary, with_ragas)
    assert halves.outcomes() == {PLAIN.name: (2, 0, 0), RAGAS.name: (2, 0, 0)}
    assert asked(halves.ragas_judge) == [("record-1", RAGAS.name), ("record-2", RAGAS.name)]


def test_failures_of_ragas_are_tried_again_there_and_replayed(halves: Halves) -> None:
    script(halves.ragas_judge, lambda *_: DOWN)
    ordinary, with_ragas = halves.start(ragas=False), halves.start(ragas=True)
    halves.bench.push(record(1), record(2))
    halves.work_off(ordinary, with_ragas)
    assert len(halves.ragas_judge.calls) == 2 * QUICK.max_attempts
    assert halves.outcomes() == {PLAIN.name: (2, 0, 0), RAGAS.name: (0, 2, 0)}
    letters = halves.bench.store.dead_letters()
    assert {(letter.record_id, letter.reason) for letter in letters} == {
        ("record-1", "unavailable"),
        ("record-2", "unavailable"),
    }
    assert len(halves.plain_judge.calls) == 2
    script(halves.ragas_judge, lambda *_: GOOD)
    assert replay(letters, queue=halves.bench.queue, store=halves.bench.store).replayed == 2
    halves.work_off(ordinary, with_ragas)
    assert halves.outcomes() == {PLAIN.name: (2, 0, 0), RAGAS.name: (2, 0, 0)}
    assert len(halves.plain_judge.calls) == 2, "a replay asks again for what failed alone"
    assert halves.received == 2


@pytest.mark.parametrize("change", ["to another question", "to ragas", "from ragas", "away"])
def test_a_rubric_that_changes_on_the_way_is_scored_once(halves: Halves, change: str) -> None:
    """Neither twice, under its old version in one half and the new one in the other, nor never."""
    ordinary = halves.start(ragas=False, rubrics=[PLAIN, OTHER, RAGAS])
    halves.bench.push(record(1))
    halves.work_off(ordinary)
    assert halves.outcomes() == {PLAIN.name: (1, 0, 0), OTHER.name: (1, 0, 0)}
    changed = {
        "to another question": ([PLAIN, OTHER, replace(RAGAS, instructions="Another.")], ["by_ragas"]),
        "to ragas": ([replace(PLAIN, instructions="Another."), OTHER, RAGAS], ["by_ragas", "plain"]),
        "from ragas": ([PLAIN, OTHER, replace(RAGAS, instructions="Another.")], []),
        "away": ([PLAIN, OTHER], []),
    }
    rubrics, by_ragas = changed[change]
    with_ragas = halves.start(ragas=True, rubrics=rubrics, by_ragas=by_ragas)
    halves.work_off(ordinary, with_ragas)
    expected = {PLAIN.name: (1, 0, 0), OTHER.name: (1, 0, 0), RAGAS.name: (1, 0, 0)}
    if change == "away":
        del expected[RAGAS.name]
    assert halves.outcomes() == expected


def test_undecodable_records_and_duplicates_stay_in_the_ordinary_half(halves: Halves) -> None:
    ordinary, with_ragas = halves.start(ragas=False), halves.start(ragas=True)
    good = record(1).to_json()
    texts = [good, '{"record_id":5}', good, record(2).to_json()]
    mixed = encode_batch(texts, batch_id="b", enqueued_at=time.time())
    assert halves.bench.queue.push(mixed, batch_id="b", records=4, enqueued_at=time.time())
    ordinary.work("b")
    assert halves.bench.queue.depth().ragas_records == 2
    halves.work_off(ordinary, with_ragas)
    assert halves.outcomes() == {PLAIN.name: (2, 0, 0), RAGAS.name: (2, 0, 0)}
    counts = halves.bench.store.counts()
    assert (halves.received, counts.duplicates, sum(counts.dead_total.values())) == (2, 1, 1)
    # One that comes again while its other half waits is a duplicate once.
    halves.bench.push(record(3))
    halves.work_off(ordinary)
    halves.bench.push(record(3))
    halves.work_off(ordinary, with_ragas)
    assert (halves.received, halves.bench.store.counts().duplicates) == (3, 2)
    assert halves.outcomes() == {PLAIN.name: (3, 0, 0), RAGAS.name: (3, 0, 0)}


def test_a_record_that_kills_workers_with_ragas_is_set_aside_there(halves: Halves) -> None:
    ordinary, with_ragas = halves.start(ragas=False), halves.start(ragas=True)
    halves.bench.push(record(1), record(2))
    halves.work_off(ordinary)
    (batch_id,) = halves.waiting
    for _ in range(2):  # two workers die with it in hand
        assert halves.bench.queue.claim(batch_id, lease_seconds=0.01) is not None
        time.sleep(0.05)
    with_ragas.work(batch_id)
    singles = halves.waiting
    assert len(singles) == 2, "it was split, and its parts wait for the same workers"
    for _ in range(DeliveryPolicy().max_deliveries):
        assert halves.bench.queue.claim(singles[0], lease_seconds=0.01) is not None
        time.sleep(0.05)
    halves.work_off(ordinary, with_ragas)
    assert halves.outcomes() == {PLAIN.name: (2, 0, 0), RAGAS.name: (1, 1, 0)}
    (letter,) = halves.bench.store.dead_letters()
    assert letter.reason == "crashed"


def test_what_is_handed_back_owes_both_halves_still(halves: Halves) -> None:
    halves.plain_judge._delay_seconds = 30.0
    slow = halves.start(ragas=False)
    halves.bench.push(record(1), record(2))
    (batch_id,) = halves.bench.ids
    thread = threading.Thread(target=slow.work, args=(batch_id,))
    thread.start()
    until(lambda: len(halves.plain_judge.calls) == 2)
    slow.hand_back()
    thread.join(20)
    assert (halves.waiting, halves.bench.queue.depth().records) == ([], 2)
    halves.plain_judge._delay_seconds = 0.0
    halves.work_off(halves.start(ragas=False), halves.start(ragas=True))
    assert halves.outcomes() == {PLAIN.name: (2, 0, 0), RAGAS.name: (2, 0, 0)}


def test_a_record_whose_call_hangs_moves_on_when_the_call_has_ended(halves: Halves) -> None:
    free = threading.Event()

    class Hanging(ScriptedJudge):
        async def judge(self, item: Record, rubrics: Sequence[Rubric]) -> list[Any]:
            if item.record_id == "record-1":
                await asyncio.to_thread(free.wait, 20)
            return await super().judge(item, rubrics)

    halves.plain_judge = Hanging()
    policy = replace(QUICK, patience_seconds=0.05)
    ordinary, with_ragas = halves.start(ragas=False, policy=policy), halves.start(ragas=True)
    halves.bench.push(*(record(i) for i in range(4)))
    (batch_id,) = halves.bench.ids
    ordinary.work(batch_id)
    assert halves.bench.queue.depth().ragas_records == 3
    free.set()
    until(lambda: halves.bench.queue.depth().ragas_records == 4)
    halves.work_off(ordinary, with_ragas)
    assert halves.outcomes() == {PLAIN.name: (4, 0, 0), RAGAS.name: (4, 0, 0)}


def test_a_full_queue_still_moves_on_and_takes_nothing_new(halves: Halves, redis_url: str) -> None:
    """The halves share one bound: a move leaves their sum as it was, and a backlog of ragas pushes back on clients."""
    full = Queue.from_url(redis_url, max_batches=2)
    ordinary = halves.start(ragas=False, queue=full)
    for index in range(2):
        halves.bench.push(record(index))
    halves.work_off(ordinary)
    assert len(halves.waiting) == 2
    text = record(9).to_json()
    late = encode_batch([text], batch_id="late", enqueued_at=time.time())
    assert not full.push(late, batch_id="late", records=1, enqueued_at=time.time())
    assert full.fill == 1.0, "which is what clients thin by"
    halves.work_off(ordinary, halves.start(ragas=True))
    assert halves.outcomes() == {PLAIN.name: (2, 0, 0), RAGAS.name: (2, 0, 0)}
    full.close()
