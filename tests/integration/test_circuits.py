"""An endpoint that goes down and comes back, on a real Redis, store and judge server: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from assay.circuits import CircuitPolicy
from assay.deliveries import DeliveryPolicy
from assay.enqueue import enqueue
from assay.errors import JudgeError
from assay.judges import JudgeSettings
from assay.limits import Limits
from assay.pipeline import Judges
from assay.queue import Queue
from assay.rubrics import JudgeSpec, load_rubrics
from assay.store import Store
from assay.testing import FakeJudgeServer
from assay.worker import Worker
from deployment import record

PROBE_SECONDS = 0.4
POLICY = DeliveryPolicy(
    retry_base_seconds=0.01, retry_max_seconds=1.0, lease_seconds=5, sweep_seconds=0.05, max_attempts=2
)


class Outage:
    """Two workers that know of each other only by Redis, and one endpoint."""

    def __init__(self, url: str, directory: Path, server: FakeJudgeServer) -> None:
        self.url, self.server = url, server
        self.queue = Queue.from_url(url)
        self.store = Store(f"sqlite:///{directory}/assay.db")
        self.store.upgrade()
        self.rubrics = load_rubrics()[:1]
        self.workers: list[Worker] = []
        self.pushed = 0

    def start(self, fallback: JudgeSpec | None = None) -> None:
        judge = JudgeSettings(engine="openai", model="m", base_url=self.server.base_url, max_in_flight=4)

        def judges() -> Judges:
            policy = CircuitPolicy(calls=6, probe_seconds=PROBE_SECONDS)
            return Judges.build(
                self.rubrics, judge, limits=Limits(url=self.url, queue="assay", circuit=policy), fallback=fallback
            )

        for _ in range(2):
            worker = Worker(queue=self.queue, store=self.store, rubrics=self.rubrics, judges=judges, policy=POLICY)
            worker.start()
            self.workers.append(worker)

    def is_down(self, down: bool) -> None:
        self.server._faults["503"] = 1.0 if down else 0.0

    def push(self, records: int) -> None:
        enqueue([record(i) for i in range(self.pushed, self.pushed + records)], self.queue)
        self.pushed += records

    def work(self) -> bool:
        """Everything in the queue once, by one worker after the other; whether anything is left."""
        for number, batch_id in enumerate(self.queue._redis.hkeys("assay:assay:batches")):
            self.workers[number % 2].work(batch_id.decode())
        time.sleep(0.01)
        return self.queue.depth().batches > 0

    def work_off(self) -> None:
        ends = time.monotonic() + 40
        while self.work():
            assert time.monotonic() < ends, "the queue does not empty"

    @property
    def is_open(self) -> bool:
        keys = self.queue._redis.keys("assay:assay:circuit:*")
        return any(self.queue._redis.hexists(key, "opened") for key in keys)

    def scored(self) -> Counter[str]:
        """By judge; every record must be in one of them, once."""
        assert self.store.dead_letters() == []
        found: Counter[str] = Counter()
        for total in self.store.totals():
            assert total.failed == 0
            found[total.judge] += total.scored
        return +found


@pytest.fixture
def outage(redis_url: str, tmp_path: Path) -> Iterator[Outage]:
    with FakeJudgeServer(faults={"503": 1.0}, bad_when="nothing is bad") as server:
        made = Outage(redis_url, tmp_path, server)
        yield made
        for worker in made.workers:
            worker.stop()
        made.queue.close()
        made.store.close()


def test_it_opens_for_all_probes_and_closes_and_nothing_is_lost(outage: Outage) -> None:
    outage.start()
    outage.push(40)
    ends = time.monotonic() + 20
    while not outage.is_open:
        outage.work()
        assert time.monotonic() < ends
    calls, began = outage.server.traffic.calls, time.monotonic()
    assert calls < 20, "it opened late"
    while time.monotonic() < began + 3 * PROBE_SECONDS:
        outage.work()
    # Redis grants one probe in PROBE_SECONDS, however many workers there are.
    probes = outage.server.traffic.calls - calls
    assert 1 <= probes <= (time.monotonic() - began) / PROBE_SECONDS + 1
    assert outage.is_open
    assert outage.store.dead_letters() == []  # in spite of two tries at most
    outage.is_down(False)
    outage.work_off()
    assert not outage.is_open
    assert outage.scored() == {"openai:m": 40}


def test_a_fallback_scores_all_meanwhile_and_nothing_is_judged_twice(outage: Outage) -> None:
    outage.start(JudgeSpec(engine="lexical"))
    outage.push(60)
    outage.work_off()
    assert outage.is_open
    assert outage.scored() == {"lexical": 60}
    outage.is_down(False)
    ends = time.monotonic() + 20
    while outage.is_open:
        assert time.monotonic() < ends
        outage.push(2)
        outage.work_off()
    outage.push(20)
    outage.work_off()
    scored = outage.scored()
    assert sum(scored.values()) == outage.pushed
    assert scored["openai:m"] >= 1
    # All of them once more, now that the first judge is there: they are known.
    enqueue([record(i) for i in range(outage.pushed)], outage.queue)
    outage.work_off()
    assert outage.scored() == scored


def test_one_process_opens_it_for_another(redis_url: str) -> None:
    async def run() -> None:
        policy = CircuitPolicy(calls=4, probe_seconds=600.0)
        first, second = (Limits(url=redis_url, queue="q", circuit=policy) for _ in range(2))
        clock = asyncio.get_running_loop().time
        for limits in (first, second) * 2:
            await limits.circuits.admit("e", "j", probe=True)
            await limits.circuits.ended("e", "j", clock(), "timeout")
            limits.circuits._seen["e"].fresh_until = 0.0
            await limits.circuits.ended("e", "j", clock(), "cancelled")
        for limits in (first, second):
            with pytest.raises(JudgeError, match="endpoint is down"):
                await limits.circuits.admit("e", "j", probe=True)
        await first.circuits.admit("another", "j", probe=True)
        await first.aclose()
        await second.aclose()

    asyncio.run(run())
