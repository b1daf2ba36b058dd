"""A real Prometheus scrapes the exporter and a worker: what it stores is what the store says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from assay.exporter import serve, serve_worker
from assay.metrics import ScoreCollector, WorkerMetrics
from assay.queue import Queue
from assay.records import Usage
from assay.rubrics import load_rubrics
from assay.store import Store
from prometheus import Prometheus, wait_for
from stores import HOUR_START, a_record, commit

pytestmark = pytest.mark.integration

TRACE = "0af7651916cd43dd8448eb211c80319c"
HOSTILE = ['quote"', "back\\slash", "new\nline", "nul\x00", "ünï😀", "{}=,# EOF"]


class Deployment:
    """A store with scores of the last minutes, a queue, a worker's metrics, and a Prometheus that scrapes them."""

    def __init__(self, directory: Path, redis_url: str, stack: ExitStack) -> None:
        self.store = Store(f"sqlite:///{directory}/scores.db", cohort_labels=["tier"])
        stack.callback(self.store.close)
        self.queue = Queue.from_url(redis_url)
        stack.callback(self.queue.close)
        self.collector = ScoreCollector(self.store, self.queue, cohort_labels=["tier"], rubrics=load_rubrics())
        self.worker = WorkerMetrics()
        exporter = stack.enter_context(serve(self.collector, port=0))
        worker = stack.enter_context(serve_worker(self.worker, port=0))
        self.prometheus = Prometheus(directory / "prometheus", {"exporter": exporter, "worker": worker})
        stack.callback(self.prometheus.close)


@pytest.fixture
def deployment(tmp_path: Path, redis_url: str) -> Iterator[Deployment]:
    with ExitStack() as stack:
        yield Deployment(tmp_path, redis_url, stack)


def a_minute_ago() -> float:
    """`a_record`'s seconds of a moment a minute before the present."""
    return (datetime.now(UTC) - HOUR_START).total_seconds() - 60


def fill(store: Store) -> None:
    seconds = a_minute_ago()
    gold = [(a_record(seconds=seconds, cohort={"tier": "gold"}, trace_id=TRACE), 0.95) for _ in range(8)]
    free = [(a_record(seconds=seconds, cohort={"tier": "free"}, probability=0.01), y) for y in (0.1, 0.9)]
    odd = [(a_record(seconds=seconds, app="odd", cohort={"tier": tier}), 1.0) for tier in HOSTILE]
    store.upgrade()
    commit(store, *gold, *free, *odd)


def test_gauges_counters_and_exemplars_arrive(deployment: Deployment) -> None:
    fill(deployment.store)
    prometheus = deployment.prometheus
    labels, ratio = wait_for(lambda: prometheus.query('assay_pass_ratio{app="shop",tier="gold",window="1h"}'))[0]
    assert ratio == 1.0
    assert labels["rubric_version"] == "1-0a1b2c3d"
    lower = prometheus.query('assay_pass_ratio_ci_lower{app="shop",tier="gold",window="1h"}')[0][1]
    assert 0.6 < lower < 0.7, "Wilson's bound for 8 of 8"
    assert prometheus.query('assay_app_pass_ratio{app="shop",window="1h"}')[0][1] == pytest.approx(108 / 208)
    # what docs/explanation/estimates.md says of pooling
    pooled = (
        'sum by (app) (assay_pass_ratio{window="1h"} * assay_window_interactions)'
        ' / sum by (app) (assay_window_interactions{window="1h"})'
    )
    assert {m["app"]: v for m, v in prometheus.query(pooled)}["shop"] == pytest.approx(108 / 208)
    assert prometheus.query("sum(assay_evaluations_total)")[0][1] == 10 + len(HOSTILE)
    assert prometheus.query('assay_pass_ratio{window="5m"} < assay_pass_ratio_ci_lower') == []
    assert len(prometheus.query('assay_pass_ratio{app="odd",window="1h"}')) == len(HOSTILE)
    assert {m["component"]: v for m, v in prometheus.query("assay_up")} == {"database": 1, "redis": 1}

    now = time.time()
    found = wait_for(
        lambda: prometheus.get(
            "query_exemplars", query='assay_score_bucket{app="shop"}', start=str(now - 3600), end=str(now + 60)
        )
    )
    (exemplar,) = found[0]["exemplars"]
    assert exemplar["labels"] == {"trace_id": TRACE}
    assert float(exemplar["value"]) == 0.95


def test_a_worker_arrives_with_its_exemplars(deployment: Deployment) -> None:
    worker, prometheus = deployment.worker, deployment.prometheus
    worker.call_started("openai:m")
    worker.call_ended("openai:m", 0.4, "ok", Usage(prompt_tokens=9, completion_tokens=1, cost_usd=0.5), TRACE)
    _, cost = wait_for(lambda: prometheus.query('assay_judge_cost_usd_total{job="worker"}'))[0]
    assert cost == 0.5
    now = time.time()
    found = wait_for(
        lambda: prometheus.get(
            "query_exemplars", query="assay_judge_request_seconds_bucket", start=str(now - 60), end=str(now + 60)
        )
    )
    assert found[0]["exemplars"][0]["labels"] == {"trace_id": TRACE}
    assert wait_for(lambda: prometheus.query('process_resident_memory_bytes{job="worker"}'))[0][1] > 0


def test_gauges_go_when_the_database_goes_and_come_back_with_it(deployment: Deployment) -> None:
    """Not migrated, migrated, gone, back: the score gauges are there only while the database is."""
    store, prometheus = deployment.store, deployment.prometheus
    wait_for(lambda: prometheus.query('assay_up{component="database"} == 0'))
    assert prometheus.query('up{job="exporter"}')[0][1] == 1, "the scrape itself answers"
    assert prometheus.query("assay_pass_ratio") == []
    fill(store)
    wait_for(lambda: prometheus.query("assay_pass_ratio"))
    path = Path(str(store._database.url.database))
    store.close()
    away = path.with_suffix(".away")
    for suffix in ("", "-wal", "-shm"):
        file = Path(f"{path}{suffix}")
        if file.exists():
            file.rename(f"{away}{suffix}")
    path.mkdir()
    wait_for(lambda: prometheus.query('assay_up{component="database"} == 0'))
    assert prometheus.query("assay_pass_ratio") == [], "absent at the first scrape without it, not frozen"
    assert prometheus.query("absent(assay_app_pass_ratio)")[0][1] == 1
    assert prometheus.query('assay_exporter_errors_total{component="database"}')[0][1] > 0
    assert prometheus.query("assay_queue_records") != []
    path.rmdir()
    for suffix in ("", "-wal", "-shm"):
        file = Path(f"{away}{suffix}")
        if file.exists():
            file.rename(f"{path}{suffix}")
    wait_for(lambda: prometheus.query("assay_pass_ratio"))


def test_prometheus_takes_every_line_it_is_given(deployment: Deployment) -> None:
    fill(deployment.store)
    prometheus = deployment.prometheus
    wait_for(lambda: prometheus.query("count_over_time(assay_app_pass_ratio[1m]) > 3"))
    for target in prometheus.get("targets")["activeTargets"]:
        assert (target["health"], target["lastError"]) == ("up", "")
    added = {m["job"]: v for m, v in prometheus.query("scrape_samples_post_metric_relabeling")}
    scraped = {m["job"]: v for m, v in prometheus.query("scrape_samples_scraped")}
    assert added == scraped
    log = prometheus.log().lower()
    assert "duplicate" not in log
    assert "out of order" not in log
    assert "out-of-order" not in log
    metadata = prometheus.get("metadata")
    assert metadata["assay_score"][0]["type"] == "histogram"
    assert metadata["assay_pass_ratio"][0]["help"].startswith("Estimated share of interactions")
