"""Redis Sentinel: the primary dies in the middle of a run, and all parts follow to the new one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from assay import Client
from assay.budgets import Budget, Budgets, Ledger, RedisPurse
from assay.connections import connect
from assay.errors import JudgeError, QueueError
from assay.queue import Queue
from assay.records import Usage
from deployment import Deployment, total, wait_until
from servers import Sentinels

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_a_run_outlives_its_primary(tmp_path: Path, sentinels: Sentinels) -> None:
    settings = {"redis_url": sentinels.url, "lease_seconds": 5, "retry_base_seconds": 0.5}
    with asyncio.Runner() as runner, Deployment(tmp_path, f"sqlite:///{tmp_path}/assay.db", **settings) as deployment:
        deployment.start_judge("--latency", "0.1")
        worker = deployment.start_worker("--concurrency", "2")
        metrics = deployment.start_exporter()
        budgets = Budgets(budgets=(Budget(name="all", per="day", tokens=100_000),))
        purse = RedisPurse(budgets, sentinels.url, "assay", wait_seconds=1.0, timeout_seconds=2.0)
        ledger = Ledger.from_url(budgets, sentinels.url, "assay")
        runner.run(spend(purse, 40))
        client = Client(app="shop", redis_url=sentinels.url, sample_rate=1.0)
        deployment.enqueue(300)
        # What the replica has is not lost with the primary: `WAIT` asks for it.
        assert deployment.queue._redis.wait(1, 10_000) == 1
        wait_until(lambda: deployment.record_rows() > 50, worker)
        before = sentinels.primary()
        sentinels.kill(before)
        for index in range(50):
            client.record(input=f"question {index}", output="answer", contexts=["context"], record_id=f"late-{index}")
        wait_until(lambda: sentinels.primary() != before, worker, seconds=60)
        runner.run(spend(purse, 40))
        runner.run(purse.aclose())
        assert ledger.balances()[0].spent == 800
        ledger.close()
        client.flush(60)
        client.close()
        assert client.stats().sent == 50
        deployment.drain(worker, seconds=120)
        wait_until(lambda: deployment.record_rows() == 350, worker, seconds=60)
        assert {rubric: sum(counts.values()) for rubric, counts in deployment.outcomes().items()} == dict.fromkeys(
            deployment.outcomes(), 350
        )
        time.sleep(1.5)  # the exporter's scrape cache
        assert total(metrics, "assay_records_total", outcome="received") == 350
        assert total(metrics, "assay_up", component="redis") == 1
        assert not deployment.store.dead_letters()
        # Doctor and the workers' own control messages go the same way.
        status = deployment.run("status").stdout.decode()
        assert "none answers" not in status
        assert "Redis is away" not in status


async def spend(purse: RedisPurse, requests: int) -> None:
    """More at once than there are connections; while Redis is away, each tries again."""

    async def one() -> None:
        asked = {"app": "shop", "rubrics": ["safety"], "judge": "openai:fake", "lease_seconds": 60}
        bound, deadline = Usage(prompt_tokens=5, completion_tokens=5), time.monotonic() + 60
        while True:
            try:
                reservation = await purse.reserve(bound=bound, **asked)
            except JudgeError as error:
                if error.kind != "unavailable" or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)
            else:
                return await purse.settle(reservation, bound)

    await asyncio.gather(*(one() for _ in range(requests)))


def test_no_sentinel_is_an_error_in_one_line() -> None:
    with connect("redis+sentinel://127.0.0.1:1,127.0.0.1:2/main", timeout_seconds=1) as client:
        with pytest.raises(QueueError, match="No master found") as away:
            Queue(client).ping()
        assert "\n" not in str(away.value)
