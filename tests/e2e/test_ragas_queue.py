"""Workers without ragas and workers with it share a queue, and die: each rubric scores each record once.

The worker with ragas runs in the environment that `make servers` makes for it, over the real ragas; the other one in
ours, where ragas is not installed. `ASSAY_E2E_RECORDS` sets the number of records.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from command import assay
from deployment import Deployment, end, total, wait_until
from servers import missing

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

RECORDS = min(int(os.environ.get("ASSAY_E2E_RECORDS", "300")), 4000)
PYTHON = Path(__file__).parents[2] / ".servers" / "ragas" / "bin" / "python"
RUBRICS = ("polite", "polite_by_ragas")
RUBRIC = """
name: {name}
version: "1"
requires: [input, output]
instructions: Is the answer polite?
scale: {{type: binary, pass_when: it is, fail_when: it is not}}
pass_threshold: 0.5
"""


def scored(deployment: Deployment, rubric: str) -> int:
    return sum(t.scored + t.failed + t.not_applicable for t in deployment.store.totals() if t.rubric == rubric)


def start(deployment: Deployment, ragas: str | None, python: Path | str = sys.executable) -> subprocess.Popen[bytes]:
    """A worker with this ASSAY_RAGAS, which is unset for None."""
    if ragas is not None:
        deployment.settings["ragas"] = ragas
    try:
        return deployment.start_worker(python=python)
    finally:
        deployment.settings.pop("ragas", None)


def test_both_halves_are_scored_once_though_workers_of_each_die(tmp_path: Path) -> None:
    if not PYTHON.exists():
        missing("ragas")
    for name, judge in zip(RUBRICS, ("", "judge: {engine: ragas, metric: aspect_critic}\n"), strict=True):
        (tmp_path / f"{name}.yaml").write_text(RUBRIC.format(name=name) + judge)
    paths = ",".join(str(tmp_path / f"{name}.yaml") for name in RUBRICS)
    settings = {"rubrics": paths, "lease_seconds": 3, "retry_base_seconds": 0.3, "retry_max_seconds": 2}
    with Deployment(tmp_path, f"sqlite:///{tmp_path}/assay.db", **settings) as deployment:
        deployment.start_judge("--latency", "0.2", "--faults", "429=0.02,500=0.02")
        assert find_spec("ragas") is None, "the ordinary worker runs where ragas cannot be imported"
        ordinary = start(deployment, None)
        metrics = deployment.start_exporter()
        first = RECORDS // 4
        deployment.enqueue(first)
        queue = deployment.queue
        # Nobody has ragas yet: what it is to judge waits, and `assay status` says so.
        wait_until(lambda: queue.depth().ragas_records == queue.depth().records == first, ordinary, seconds=90)
        assert scored(deployment, RUBRICS[0]) == first
        assert "no worker has it" in " ".join(deployment.run("status").stdout.decode().split())
        time.sleep(1.5)  # the exporter's scrape cache
        assert total(metrics, "assay_queue_ragas_records") == first
        assert total(metrics, "assay_records_total", outcome="received") == first

        with_ragas = start(deployment, "only", PYTHON)
        deployment.enqueue(RECORDS - first, first)
        wait_until(
            lambda: scored(deployment, RUBRICS[0]) > first + 0.3 * (RECORDS - first), ordinary, with_ragas, seconds=90
        )
        end(ordinary, signal.SIGKILL)
        ordinary = start(deployment, "never")
        wait_until(lambda: scored(deployment, RUBRICS[1]) > RECORDS * 0.4, ordinary, with_ragas, seconds=120)
        told = json.loads(deployment.run("status", "--json").stdout)
        assert (len(told["ragas_workers"]), len(told["workers"])) == (1, 1)
        end(with_ragas, signal.SIGKILL)
        # Without any setting a worker that has ragas serves both halves.
        both = start(deployment, None, PYTHON)
        deployment.drain(ordinary, both, seconds=180)

        outcomes = {rubric: sum(counts.values()) for rubric, counts in deployment.outcomes().items()}
        assert outcomes == dict.fromkeys(RUBRICS, RECORDS)
        assert deployment.record_rows() == RECORDS
        time.sleep(1.5)
        assert total(metrics, "assay_records_total", outcome="received") == RECORDS
        assert total(metrics, "assay_queue_records") == total(metrics, "assay_queue_ragas_records") == 0
        for rubric, counts in deployment.outcomes().items():
            assert total(metrics, "assay_score_count", rubric=rubric) == counts["scored"]
            assert total(metrics, "assay_evaluations_total", rubric=rubric) == RECORDS
            assert counts["scored"] >= 0.98 * RECORDS, "4 % faults, retried, leave few failures"


def test_a_worker_for_ragas_alone_that_has_no_ragas_says_so(tmp_path: Path) -> None:
    assert find_spec("ragas") is None
    settings = {"ASSAY_DATA_DIR": str(tmp_path), "ASSAY_REDIS_URL": "redis://127.0.0.1:1/0", "ASSAY_RAGAS": "only"}
    assay(tmp_path, "db", "upgrade", code=0, **settings)
    done = assay(tmp_path, "worker", code=2, **settings)
    assert "ragas is not installed: pip install 'assay[ragas]'" in done.stderr
