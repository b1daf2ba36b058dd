"""What any telemetry buffer owes its host: bounds, triggers, flush, shutdown, fork, garbage collection, no harm.

The list is that of OpenTelemetry's batch processors. What needs a fork or an exit runs in a process of its own.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from assay import Client
from assay.errors import QueueError
from transports import MemoryTransport

FOREVER = 3600.0

#: Begins every script: a client whose transport appends what it gets to a file, with the process id.
SCRIPT = """
import gc, json, os, sys, threading, time
from assay import Client
from assay.queue import decode_batch

class FileTransport:
    stall = 0.0

    def push(self, payload, *, batch_id, records, enqueued_at, report=None):
        time.sleep(self.stall)
        with open(sys.argv[1], "a") as file:
            for raw in decode_batch(payload).records:
                file.write(json.dumps([os.getpid(), json.loads(raw)["input"]]) + "\\n")
        return True

    def add_counters(self, report):
        pass

def client(**options):
    return Client(transport=FileTransport(), **{"flush_seconds": 0.05, "close_seconds": 10, **options})

def in_child(work):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, status
            return pid
        time.sleep(0.01)
    os.kill(pid, 9)
    raise SystemExit("the child hangs")
"""


def run(script: str, path: Path, *, timeout: float = 60) -> list[tuple[int, str]]:
    """Run a script to its end; the (process id, input) of every record that was sent."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT + script, str(path)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = path.read_text().splitlines() if path.exists() else []
    return [(pid, text) for pid, text in map(json.loads, lines)]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it comes true; how fast the machine is decides nothing."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


@pytest.fixture
def transport() -> MemoryTransport:
    return MemoryTransport()


def thread_of(client: Client) -> threading.Thread:
    thread = client._buffer._thread
    assert thread is not None
    return thread


# Triggers


def test_size_trigger(transport: MemoryTransport) -> None:
    with Client(transport=transport, flush_seconds=FOREVER, batch_records=5) as client:
        for _ in range(8 * 5 - 1):
            client.record(input="a")
        assert transport.pushes == 0
        client.record(input="a")
        assert until(lambda: client.stats().sent == 40)
        assert transport.sizes == [5] * 8
        assert not client.stats().buffered


def test_size_trigger_leaves_what_is_no_full_batch(transport: MemoryTransport) -> None:
    transport.answering.clear()
    with Client(transport=transport, flush_seconds=FOREVER, batch_records=5, close_seconds=10) as client:
        for _ in range(43):
            client.record(input="a")
        transport.answering.set()
        assert until(lambda: client.stats().sent == 40)
        assert client.stats().buffered == 3
    assert transport.sizes == [5] * 8 + [3]


def test_bytes_trigger(transport: MemoryTransport) -> None:
    with Client(transport=transport, flush_seconds=FOREVER, buffer_bytes=1_000_000, batch_records=2) as client:
        for _ in range(3):
            client.record(input="x" * 100_000)
        assert until(lambda: client.stats().sent == 2)


def test_time_trigger(transport: MemoryTransport) -> None:
    with Client(transport=transport, flush_seconds=0.02) as client:
        client.record(input="a")
        assert until(lambda: client.stats().sent == 1)
        client.record(input="b")
        assert until(lambda: client.stats().sent == 2)


def test_no_thread_before_the_first_record(transport: MemoryTransport) -> None:
    before = threading.active_count()
    with Client(transport=transport) as client:
        assert threading.active_count() == before
        client.record(input="a")
        assert thread_of(client).daemon
        assert thread_of(client).name == "assay-client"


def test_counts_are_reported_without_batches(transport: MemoryTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.buffer._REPORT_SECONDS", 0.05)
    with Client(transport=transport, sample_rate=0.0, flush_seconds=0.01) as client:
        client.record(input="a", finish_reason="error")  # starts the thread
        client.record(input="b")
        assert until(lambda: transport.count("sampled_out") == 1)
        assert until(lambda: transport.count("sent") == 1)


# Flush and close


def test_flush_sends_everything_at_once(transport: MemoryTransport) -> None:
    with Client(transport=transport, flush_seconds=FOREVER) as client:
        for number in range(30):
            client.record(input=str(number))
        assert client.flush(20)
        assert transport.sizes == [25, 5]


def test_flush_waits_for_what_is_under_way(transport: MemoryTransport) -> None:
    transport.answering.clear()
    with Client(transport=transport, flush_seconds=0.01) as client:
        client.record(input="a")
        assert transport.stalled.wait(20)
        assert not client.flush(0.05)
        transport.answering.set()
        assert client.flush(20)
        assert client.stats().sent == 1


def test_flush_does_not_wait_for_later_records(transport: MemoryTransport) -> None:
    stop = threading.Event()

    def go_on(client: Client) -> None:
        while not stop.is_set():
            client.record(input="a")

    with Client(transport=transport, buffer_records=100_000) as client:
        thread = threading.Thread(target=go_on, args=(client,))
        thread.start()
        try:
            assert client.flush(20)
        finally:
            stop.set()
            thread.join()


def test_flush_does_not_wait_out_a_back_off(transport: MemoryTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.buffer._BACKOFF_SECONDS", (FOREVER, FOREVER))
    transport.error = QueueError("away")
    with Client(transport=transport, flush_seconds=0.01) as client:
        client.record(input="a")
        assert until(lambda: transport.pushes > 0)
        transport.error = None
        assert client.flush(20)


def test_drop_after_shutdown(transport: MemoryTransport) -> None:
    client = Client(transport=transport)
    client.record(input="a")
    client.close(20)
    assert client.record(input="b") is None
    stats = client.stats()
    assert (stats.sent, stats.dropped, stats.buffered) == (1, {"closed": 1}, 0)
    assert not thread_of(client).is_alive()
    assert transport.sizes == [1]


def test_close_waits_no_longer_than_its_deadline_and_counts_what_is_lost(
    transport: MemoryTransport, caplog: pytest.LogCaptureFixture
) -> None:
    transport.answering.clear()
    client = Client(transport=transport, flush_seconds=0.01)
    for _ in range(30):
        client.record(input="a")
    assert transport.stalled.wait(20)
    before = time.monotonic()
    client.close(0.2)
    assert 0.15 < time.monotonic() - before < 5.0
    assert client.stats().dropped == {"transport_error": 30}
    assert client.stats().buffered == 0
    assert "30 records were not sent" in caplog.text
    transport.answering.set()
    thread_of(client).join(20)
    assert client.stats().dropped == {"transport_error": 30}, "what arrives after all is not counted twice"


def test_close_gives_up_on_a_transport_that_fails(transport: MemoryTransport) -> None:
    transport.error = QueueError("away")
    client = Client(transport=transport, flush_seconds=0.01)
    client.record(input="a")
    client.close(0.1)
    assert client.stats().dropped == {"transport_error": 1}
    thread_of(client).join(20)
    assert not thread_of(client).is_alive()


def test_close_twice_and_from_two_threads(transport: MemoryTransport) -> None:
    client = Client(transport=transport)
    client.record(input="a")
    closers = [threading.Thread(target=client.close, args=(20,)) for _ in range(2)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    assert client.stats().sent == 1


# Bounds


def test_buffer_bound_in_records_under_a_stalled_transport(transport: MemoryTransport) -> None:
    transport.answering.clear()
    client = Client(transport=transport, buffer_records=100, flush_seconds=0.01)
    client.record(input="first")
    assert transport.stalled.wait(20)
    taken = [client.record(input=str(number)) is not None for number in range(5_000)]
    assert taken == [True] * 100 + [False] * 4_900, "the newest are dropped"
    stats = client.stats()
    assert (stats.buffered, stats.dropped) == (101, {"buffer_full": 4_900})
    transport.answering.set()
    assert client.flush(20)
    assert client.stats().sent == 101
    client.close()
    assert transport.count("dropped:buffer_full") == 4_900


def test_buffer_bound_in_bytes_under_a_stalled_transport(transport: MemoryTransport) -> None:
    transport.answering.clear()
    client = Client(transport=transport, buffer_bytes=1_000_000, flush_seconds=0.01)
    client.record(input="first")
    assert transport.stalled.wait(20)
    taken = sum(client.record(input="x" * 10_000) is not None for _ in range(1_000))
    assert 80 <= taken <= 100
    assert client._buffer._bytes <= 1_000_000
    transport.answering.set()
    assert client.flush(20)
    assert client._buffer._bytes == 0
    assert client.record(input="x" * 10_000), "there is room again"
    client.close()


def test_memory_is_bounded_under_a_stalled_transport(tmp_path: Path) -> None:
    run(
        """
import resource
FileTransport.stall = 30
c = client(buffer_bytes=20_000_000, close_seconds=0)
def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)
for _ in range(100):
    c.record(input="x" * 10_000)
before = megabytes()
for number in range(100_000):
    c.record(input=str(number) * 2_000, contexts=["y" * 1_000])
assert c.stats().dropped["buffer_full"] > 90_000
assert megabytes() - before < 60, megabytes() - before
""",
        tmp_path / "out",
    )


# The transport


@pytest.mark.parametrize("error", [QueueError("away"), OSError("gone"), RuntimeError("a bug"), MemoryError()])
def test_records_wait_while_the_transport_fails(transport: MemoryTransport, error: Exception) -> None:
    transport.error = error
    with Client(transport=transport, flush_seconds=0.01) as client:
        client.record(input="a")
        assert until(lambda: transport.pushes >= 2)
        assert client.stats().buffered == 1
        transport.error = None
        assert client.flush(20)
        assert client.stats().sent == 1


def test_one_warning_for_an_outage_and_a_word_at_its_end(
    transport: MemoryTransport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "assay.client")
    transport.error = QueueError("away")
    with Client(transport=transport, flush_seconds=0.01) as client:
        client.record(input="a")
        assert until(lambda: transport.pushes >= 3)
        transport.error = None
        assert client.flush(20)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "records wait, the queue cannot be reached: away"),
        ("INFO", "the queue is reached again"),
    ]


def test_a_transport_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def no_queue(url: str, name: str, *, max_batches: int) -> None:
        tries.append(url)
        raise QueueError("the redis package cannot be imported")

    monkeypatch.setattr("assay.client.open_queue", no_queue)
    client = Client(redis_url="redis://nowhere:1", flush_seconds=0.01)
    client.record(input="a")
    assert until(lambda: len(tries) >= 2)
    client.close(0)
    assert client.stats().dropped == {"transport_error": 1}


def test_a_batch_is_sent_again_under_its_own_id(transport: MemoryTransport) -> None:
    transport.lost_replies = 3
    with Client(transport=transport, flush_seconds=0.01) as client:
        client.record(input="a")
        assert until(lambda: client.stats().sent == 1)
    assert transport.pushes == 4
    assert transport.sizes == [1]


# Threads


def test_conservation_with_many_threads(transport: MemoryTransport) -> None:
    client = Client(transport=transport, buffer_records=500, flush_seconds=0.01, sample_rate=0.5)

    def work() -> None:
        for number in range(2_000):
            client.record(input=str(number), latency_seconds=-1 if number % 10 == 0 else None)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.flush(60)
    stats = client.stats()
    assert stats.taken + stats.sampled_out == 16_000
    assert stats.taken == stats.sent + sum(stats.dropped.values())
    assert stats.sent == len(transport.records)
    assert len({record.record_id for record in transport.records}) == stats.sent
    client.close(20)
    assert transport.count("taken") == stats.taken
    assert transport.count("sent") == stats.sent
    assert transport.count("sampled_out") == stats.sampled_out


def test_a_dead_thread_is_started_again(transport: MemoryTransport, caplog: pytest.LogCaptureFixture) -> None:
    with Client(transport=transport, flush_seconds=0.01) as client:
        client.record(input="a")
        assert client.flush(20)
        first = thread_of(client)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client._buffer, "_send", None)  # a bug of ours
            client._buffer._wake.set()
            first.join(20)
        assert not first.is_alive()
        assert "thread ended" in caplog.text
        client.record(input="b")
        assert client.flush(20)
        assert thread_of(client) is not first
        assert client.stats().sent == 2


def test_a_bug_while_encoding_loses_no_count(transport: MemoryTransport) -> None:
    def broken(*args: object, **kwargs: object) -> bytes:
        raise ZeroDivisionError

    with Client(transport=transport, flush_seconds=0.01) as client:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("assay.buffer.encode_batch", broken)
            client.record(input="a")
            assert client.flush(20)
        client.record(input="b")
        assert client.flush(20)
        assert (client.stats().sent, client.stats().dropped) == (1, {"internal_error": 1})


def test_recording_from_a_signal_handler_that_interrupts_recording(tmp_path: Path) -> None:
    sent = run(
        """
import signal
c = client(buffer_records=1_000_000, batch_records=2)
signal.signal(signal.SIGALRM, lambda *_: c.record(input="handler"))
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for _ in range(3_000):
    c.record(input="main")
signal.setitimer(signal.ITIMER_REAL, 0)
assert c.flush(50)
stats = c.stats()
assert stats.sent == stats.taken > 3_000, stats
""",
        tmp_path / "out",
    )
    assert {text for _, text in sent} == {"main", "handler"}


# Garbage collection


def test_a_forgotten_client_is_collected_and_sends_what_it_has(transport: MemoryTransport) -> None:
    client = Client(transport=transport, flush_seconds=FOREVER, close_seconds=20)
    client.record(input="a")
    thread, alive = thread_of(client), weakref.ref(client)
    del client
    gc.collect()
    assert alive() is None
    thread.join(20)
    assert not thread.is_alive()
    assert transport.sizes == [1]


def test_collection_does_not_block(transport: MemoryTransport) -> None:
    transport.answering.clear()
    client = Client(transport=transport, flush_seconds=0.01, close_seconds=20)
    client.record(input="a")
    assert transport.stalled.wait(20)
    before = time.monotonic()
    del client
    gc.collect()
    assert time.monotonic() - before < 5.0
    transport.answering.set()


def test_many_clients_leave_nothing_behind(transport: MemoryTransport) -> None:
    import assay.buffer

    gc.collect()
    before = len(assay.buffer._buffers)
    for _ in range(20):
        Client(transport=transport).close()
    gc.collect()
    assert len(assay.buffer._buffers) <= before


# Fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
class TestFork:
    def test_the_child_sends_its_own_and_only_its_own(self, tmp_path: Path) -> None:
        sent = run(
            """
c = client(flush_seconds=3600)
c.record(input="before")
def work():
    assert c.stats().taken == c.stats().buffered == 0
    c.record(input="child")
    assert c.flush(20)
    assert c.stats().sent == 1
child = in_child(work)
c.record(input="parent")
assert c.flush(20)
assert c.stats().sent == 2
c.close()
""",
            tmp_path / "out",
        )
        assert sorted(text for _, text in sent) == ["before", "child", "parent"]
        by_text = {text: pid for pid, text in sent}
        assert by_text["before"] == by_text["parent"] != by_text["child"]

    def test_ids_of_parent_and_child_differ(self, tmp_path: Path) -> None:
        run(
            """
c = client()
c.record(input="x")
read, write = os.pipe()
in_child(lambda: os.write(write, c.record(input="x").encode()))
assert os.read(read, 100).decode()[:20] != c.record(input="x")[:20]
""",
            tmp_path / "out",
        )

    def test_while_another_thread_holds_the_lock(self, tmp_path: Path) -> None:
        sent = run(
            """
c = client()
held, release = threading.Event(), threading.Event()
def hold():
    with c._buffer._lock:
        held.set()
        release.wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
def work():
    c.record(input="child")
    assert c.flush(20)
in_child(work)
release.set()
""",
            tmp_path / "out",
        )
        assert [text for _, text in sent] == ["child"]

    def test_while_the_sender_is_sending(self, tmp_path: Path) -> None:
        sent = run(
            """
FileTransport.stall = 0.05
c = client(flush_seconds=0.001, batch_records=1)
for number in range(20):
    c.record(input=f"p{number}")
def work():
    FileTransport.stall = 0
    for number in range(20):
        c.record(input=f"c{number}")
    assert c.flush(20)
in_child(work)
assert c.flush(20)
""",
            tmp_path / "out",
        )
        assert sorted(text for _, text in sent) == sorted(f"{who}{n}" for who in "pc" for n in range(20))

    def test_while_the_sender_imports_redis(self, tmp_path: Path) -> None:
        """Without care the child would wait for ever for an import that no thread of its own goes on with."""
        slow = tmp_path / "slow" / "redis"
        slow.mkdir(parents=True)
        (slow / "__init__.py").write_text(
            "import os, time\nopen(os.environ['IMPORTING'], 'a').close()\ntime.sleep(0.5)\nclass Redis: pass\n"
        )
        run(
            f"""
sys.path.insert(0, {str(slow.parent)!r})
os.environ["IMPORTING"] = {str(tmp_path / "importing")!r}
c = Client(flush_seconds=0.001, close_seconds=0)
c.record(input="a")
while not os.path.exists(os.environ["IMPORTING"]):
    time.sleep(0.001)
def work():
    import redis
    assert redis.Redis
in_child(work)
""",
            tmp_path / "out",
        )

    def test_the_child_of_a_closed_client_stays_closed(self, tmp_path: Path) -> None:
        run(
            """
c = client()
c.record(input="a")
c.close()
def work():
    assert c.record(input="b") is None
    assert c.stats().dropped == {"closed": 1}
in_child(work)
""",
            tmp_path / "out",
        )

    def test_no_crash_on_fork_after_garbage_collection(self, tmp_path: Path) -> None:
        run(
            """
c = client()
c.record(input="a")
assert c.flush(20)
del c
gc.collect()
in_child(lambda: None)
in_child(lambda: gc.collect())
""",
            tmp_path / "out",
        )


# Exit


def test_what_is_buffered_is_sent_at_exit(tmp_path: Path) -> None:
    sent = run('c = client(flush_seconds=3600)\nc.record(input="a")\n', tmp_path / "out")
    assert [text for _, text in sent] == ["a"]


def test_what_is_buffered_is_sent_at_the_exit_of_a_forked_worker(tmp_path: Path) -> None:
    sent = run(
        """
c = client(flush_seconds=3600)
if os.fork():
    assert os.wait()[1] == 0
else:
    c.record(input="child")
    sys.exit(0)
""",
        tmp_path / "out",
    )
    assert [text for _, text in sent] == ["child"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_is_buffered_is_sent_at_the_exit_of_a_multiprocessing_child(tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT
        + f"""
import multiprocessing
c = client(flush_seconds=3600)
def work():
    c.record(input="child")
if __name__ == "__main__":
    process = multiprocessing.get_context("{method}").Process(target=work)
    process.start()
    process.join(30)
    assert process.exitcode == 0
"""
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-W", "ignore", str(script), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [text for _, text in map(json.loads, out.read_text().splitlines())] == ["child"]


def test_exit_waits_no_longer_than_the_deadline(tmp_path: Path) -> None:
    before = time.monotonic()
    sent = run(
        'FileTransport.stall = 60\nc = client(close_seconds=0.3)\nc.record(input="a")\ntime.sleep(0.2)\n',
        tmp_path / "out",
    )
    assert time.monotonic() - before < 20
    assert sent == []


def test_exit_with_many_clients_waits_for_the_slowest_only(tmp_path: Path) -> None:
    before = time.monotonic()
    run(
        "FileTransport.stall = 60\n"
        "cs = [client(close_seconds=1.5) for _ in range(12)]\n"
        'for c in cs: c.record(input="a")\n'
        "time.sleep(0.2)\n",
        tmp_path / "out",
    )
    assert time.monotonic() - before < 12 * 1.5


def test_exit_after_an_exception_of_the_app(tmp_path: Path) -> None:
    script = SCRIPT + 'c = client(flush_seconds=3600)\nc.record(input="a")\nraise SystemExit(3)\n'
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True)
    assert done.returncode == 3
    assert [text for _, text in map(json.loads, out.read_text().splitlines())] == ["a"]


def test_interrupted_while_it_waits_to_close(tmp_path: Path) -> None:
    """Ctrl-C a second time must not hang."""
    script = SCRIPT + 'FileTransport.stall = 60\nc = client(close_seconds=60)\nc.record(input="a")\nprint("ready")\n'
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_no_thread_to_be_had(transport: MemoryTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """RuntimeError: can't start new thread. The record waits for the next one that can."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Client(transport=transport, close_seconds=10) as client:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert client.record(input="a")
        assert client.flush(20)
        assert client.stats().sent == 1
