"""The client against a real redis-server that is up, down, stopped, restarted, full or protected."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from assay import Client
from assay.codec import decode_record
from assay.embedded import RedisServer
from assay.queue import Queue, decode_batch
from assay.records import Record

pytestmark = pytest.mark.integration

#: No call may take as long as any timeout or back-off; a busy machine may still be slow.
BLOCKED_SECONDS = 0.5


def until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def record_many(client: Client, count: int, prefix: str = "r") -> float:
    """Record, and the longest time that a call took."""
    longest = 0.0
    for number in range(count):
        before = time.perf_counter()
        client.record(input=f"{prefix}{number}", output="x" * 500)
        longest = max(longest, time.perf_counter() - before)
    return longest


def pending(url: str, queue: str = "assay") -> list[Record]:
    """Every record that is in Redis, decoded as a worker decodes it."""
    with redis.Redis.from_url(url) as raw:
        payloads = list(raw.hgetall(f"assay:{queue}:batches").values())
    return [decode_record(record) for payload in payloads for record in decode_batch(payload).records]


def inputs(records: list[Record]) -> set[str]:
    return {record.input_text for record in records}


def test_up(redis_url: str) -> None:
    with Client("shop", redis_url=redis_url, queue="q", flush_seconds=0.05) as client:
        assert record_many(client, 1_000) < BLOCKED_SECONDS
        assert client.flush(30)
        stats = client.stats()
        assert (stats.taken, stats.sent, stats.dropped, stats.buffered) == (1_000, 1_000, {}, 0)
        client.close(10)
    queue = Queue.from_url(redis_url, "q")
    assert queue.depth().records == 1_000
    assert queue.counters()["accepted"] == 1_000
    assert queue.client_counters() == {("shop", "taken"): 1_000, ("shop", "sent"): 1_000}
    assert inputs(pending(redis_url, "q")) == {f"r{number}" for number in range(1_000)}
    queue.close()


def test_closed_it_leaves_no_connection(redis_server: RedisServer) -> None:
    def connections() -> int:
        return len(raw.client_list(_type="normal"))

    with redis.Redis.from_url(redis_server.url) as raw:
        before = connections()
        client = Client(redis_url=redis_server.url, flush_seconds=0.02)
        record_many(client, 10)
        assert client.flush(30)
        assert connections() > before
        client.close(10)
        # Redis may hear of it a moment later.
        assert until(lambda: connections() == before)


def test_an_apps_own_transport_is_not_closed(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as raw:
        client = Client(transport=Queue(raw, "q"), flush_seconds=0.02)
        record_many(client, 10)
        client.close(10)
        (connection,) = raw.connection_pool._available_connections
        assert connection._sock is not None


def test_down_then_up(redis_server: RedisServer) -> None:
    redis_server.stop()
    client = Client(redis_url=redis_server.url, flush_seconds=0.02, buffer_records=100)
    assert record_many(client, 500) < BLOCKED_SECONDS
    assert not client.flush(0.2)
    stats = client.stats()
    assert stats.sent == 0
    assert stats.buffered + stats.dropped["buffer_full"] == 500
    assert 100 <= stats.buffered <= 125
    redis_server.start()
    assert client.flush(30)
    assert client.stats().sent == stats.buffered
    client.close(10)
    queue = Queue.from_url(redis_server.url)
    assert queue.depth().records == stats.buffered
    assert queue.client_counters()["default", "dropped:buffer_full"] == stats.dropped["buffer_full"]
    queue.close()


def test_down_until_close(redis_server: RedisServer) -> None:
    redis_server.stop()
    client = Client(redis_url=redis_server.url, flush_seconds=0.02, close_seconds=0.3)
    record_many(client, 50)
    before = time.monotonic()
    client.close()
    assert time.monotonic() - before < 5
    assert client.stats().dropped == {"transport_error": 50}


def test_stopped_and_resumed(redis_server: RedisServer) -> None:
    """SIGSTOP: connections stay open and nothing answers. What was written meanwhile counts once."""
    client = Client(redis_url=redis_server.url, flush_seconds=0.02, buffer_records=200)
    client.record(input="before")
    assert client.flush(30)
    redis_server.pause()
    try:
        assert record_many(client, 1_000) < BLOCKED_SECONDS
        time.sleep(4.5)  # longer than the socket's timeout: the push is tried again on a new connection
        assert record_many(client, 10, "late") < BLOCKED_SECONDS
        stats = client.stats()
        assert stats.sent == 1
        assert stats.buffered <= 225
    finally:
        redis_server.resume()
    assert client.flush(30)
    sent = client.stats().sent
    client.close(10)
    records = pending(redis_server.url)
    assert len(records) == len({record.record_id for record in records}) == sent
    queue = Queue.from_url(redis_server.url)
    assert queue.counters()["accepted"] == sent
    assert queue.depth().records == sent
    assert queue.client_counters()["default", "sent"] == sent
    queue.close()


def test_close_while_stopped(redis_server: RedisServer) -> None:
    client = Client(redis_url=redis_server.url, flush_seconds=0.02, close_seconds=0.3)
    client.record(input="a")
    assert client.flush(30)
    redis_server.pause()
    try:
        record_many(client, 10)
        before = time.monotonic()
        client.close()
        assert time.monotonic() - before < 2
        assert client.stats().dropped == {"transport_error": 10}
    finally:
        redis_server.resume()


def test_restart_in_the_middle(redis_server: RedisServer) -> None:
    client = Client(redis_url=redis_server.url, flush_seconds=0.02)
    record_many(client, 300, "a")
    assert client.flush(30)
    redis_server.stop()
    assert record_many(client, 300, "b") < BLOCKED_SECONDS
    time.sleep(0.3)
    redis_server.start()
    record_many(client, 300, "c")
    assert client.flush(30)
    assert client.stats().sent == 900
    client.close(10)
    names = {f"{prefix}{number}" for prefix in "abc" for number in range(300)}
    assert inputs(pending(redis_server.url)) == names, "none lost, and the append-only file kept the first third"
    queue = Queue.from_url(redis_server.url)
    assert queue.counters()["accepted"] == 900
    assert queue.client_counters()["default", "taken"] == 900
    queue.close()


def test_restarts_while_recording_goes_on(redis_server: RedisServer) -> None:
    """Everything is either in Redis or counted as dropped, and nothing is in Redis twice."""
    client = Client(redis_url=redis_server.url, flush_seconds=0.01, batch_records=5)
    for round_ in range(3):
        record_many(client, 200, f"{round_}-")
        redis_server.stop()
        record_many(client, 50, f"{round_}+")
        redis_server.start()
    assert client.flush(30)
    stats = client.stats()
    client.close(10)
    assert stats.taken == 750 == stats.sent + sum(stats.dropped.values())
    records = pending(redis_server.url)
    assert len(records) == len(inputs(records)) == stats.sent


def test_queue_at_its_bound(redis_url: str) -> None:
    transport = Queue.from_url(redis_url, max_batches=2)
    with Client(transport=transport, flush_seconds=0.01, thin_above=1.0) as client:
        for number in range(3):
            client.record(input=str(number))
            assert client.flush(30)
        assert (client.stats().sent, client.stats().dropped) == (2, {"queue_full": 1})
        client.close(10)
    assert transport.client_counters()["default", "dropped:queue_full"] == 1
    assert transport.depth().batches == 2
    transport.close()


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_the_bound_of_the_queue_is_an_argument_or_in_the_environment(
    given: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"max_batches": 2} if given == "argument" else {}
    monkeypatch.setenv("ASSAY_MAX_BATCHES", "2" if given == "environment" else "1")
    with Client(redis_url=redis_url, batch_records=1, thin_above=1.0, **options) as client:
        for number in range(5):
            client.record(input=str(number))
        assert client.flush(30)
        assert (client.stats().sent, client.stats().dropped) == (2, {"queue_full": 3})


def test_full_server(redis_server: RedisServer) -> None:
    """`noeviction`: Redis refuses, the records wait, and nothing that is there is lost."""
    with redis.Redis.from_url(redis_server.url) as raw:
        client = Client(redis_url=redis_server.url, flush_seconds=0.02)
        client.record(input="a")
        assert client.flush(30)
        raw.config_set("maxmemory", 1)
        client.record(input="b")
        assert not client.flush(0.3)
        assert client.stats().buffered == 1
        raw.config_set("maxmemory", 0)
        assert client.flush(30)
        assert inputs(pending(redis_server.url)) == {"a", "b"}
        client.close(10)


def test_wrong_password_is_warned_of_without_the_password(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(redis_url=f"redis://:topsecret@127.0.0.1:{redis_server.port}/0", flush_seconds=0.01)
    client.record(input="a")
    assert until(lambda: "cannot be reached" in caplog.text)
    client.close(0.1)
    assert client.stats().dropped == {"transport_error": 1}
    assert "topsecret" not in caplog.text


def test_a_short_script_sends_its_records_at_exit(redis_url: str) -> None:
    """It ends while the sender's thread still imports redis."""
    script = (
        "import sys; from assay import Client; client = Client(redis_url=sys.argv[1], close_seconds=20); "
        "client.record(input='a', output='b')"
    )
    done = subprocess.run([sys.executable, "-c", script, redis_url], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert inputs(pending(redis_url)) == {"a"}
    queue = Queue.from_url(redis_url)
    assert queue.client_counters() == {("default", "taken"): 1, ("default", "sent"): 1}
    queue.close()


def test_many_processes_count_together(redis_url: str) -> None:
    script = (
        "import sys; from assay import Client\n"
        "with Client('shop', redis_url=sys.argv[1], close_seconds=30, sample_rate=0.5) as client:\n"
        "    for number in range(1, 201): client.record(input='a', trace_id=number)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, redis_url]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    queue = Queue.from_url(redis_url)
    counters = queue.client_counters()
    assert counters["shop", "taken"] == counters["shop", "sent"] == queue.depth().records
    assert counters["shop", "taken"] % 3 == 0, "every process takes the same traces"
    assert counters["shop", "taken"] + counters["shop", "sampled_out"] == 600
    queue.close()
