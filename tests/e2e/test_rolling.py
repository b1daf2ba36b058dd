"""A release is rolled out under load: workers are replaced one by one, and nothing is lost or doubled."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from deployment import Deployment, end, total, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

RECORDS = int(os.environ.get("ASSAY_E2E_ROLLING_RECORDS", "400"))


def test_workers_are_replaced_one_by_one(tmp_path: Path) -> None:
    settings = {"lease_seconds": 10, "shutdown_seconds": 1, "judge_max_in_flight": 32}
    with Deployment(tmp_path, f"sqlite:///{tmp_path}/assay.db", **settings) as deployment:
        # Longer than a shutdown may take: what is in flight is handed back each time.
        deployment.start_judge("--latency", "2")
        workers = [deployment.start_worker("--concurrency", "4") for _ in range(3)]
        metrics = deployment.start_exporter()
        deployment.enqueue(RECORDS)
        for index in range(3):
            wait_until(lambda done=RECORDS * index // 4: deployment.record_rows() > done, *workers, seconds=120)
            deployment.run("db", "upgrade")
            assert end(workers[index]) == 0
            # Nobody died: no delivery counts but those in hand.
            deliveries = [int(n) for n in deployment.queue._redis.hvals("assay:assay:deliveries")]
            assert max(deliveries, default=0) <= 1
            workers[index] = deployment.start_worker("--concurrency", "4")
        deployment.drain(*workers, seconds=180)
        outcomes = deployment.outcomes()
        assert {rubric: sum(counts.values()) for rubric, counts in outcomes.items()} == dict.fromkeys(outcomes, RECORDS)
        assert not any(counts["failed"] for counts in outcomes.values())
        assert deployment.store.dead_letters() == []
        time.sleep(1.5)  # the exporter's scrape cache
        assert total(metrics, "assay_records_total", outcome="received") == RECORDS
        assert total(metrics, "assay_evaluations_total", outcome="scored") + total(
            metrics, "assay_evaluations_total", outcome="not_applicable"
        ) == RECORDS * len(outcomes)
