"""Every query of every dashboard, and the console page, on a real Prometheus that scrapes a seeded exporter."""

from __future__ import annotations

import math
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from assay.embedded import RedisServer
from assay.exporter import serve, serve_worker
from assay.metrics import ScoreCollector, WorkerMetrics
from assay.queue import Queue
from assay.store import Store
from dashboards import FILES, ROOT, Asked, load, queries, substituted
from prometheus import Prometheus, wait_for
from seeded import (
    COHORT_LABELS,
    a_minute_ago,
    commit,
    judged,
    seed_attacks,
    seed_budget,
    seed_canary,
    seed_changes,
    seed_inputs,
    seed_left_out,
    seed_outbox,
    seed_queue,
    seed_receiver,
    seed_store,
    seed_worker,
    some_records,
    start_receiver,
)

pytestmark = pytest.mark.integration

CONSOLES = ROOT / "deploy" / "prometheus" / "consoles"
HOSTILE = '<script>alert(1)</script>"}) or vector(1)'


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has scraped an exporter and a worker before and after their counters grew."""
    directory = tmp_path_factory.mktemp("dashboards")
    with ExitStack() as stack:
        store = Store(f"sqlite:///{directory}/scores.db", cohort_labels=COHORT_LABELS, sinks={"jsonl": ["scored"]})
        stack.callback(store.close)
        redis_url = stack.enter_context(RedisServer(directory / "redis")).url
        queue = Queue.from_url(redis_url)
        stack.callback(queue.close)
        ledger = seed_budget(redis_url)
        stack.callback(ledger.close)
        store.upgrade()
        worker = WorkerMetrics()
        collector = ScoreCollector(store, queue, cohort_labels=COHORT_LABELS, ledger=ledger)
        receiver = start_receiver(redis_url)
        stack.callback(receiver.close)
        targets = {
            "assay-collect": SimpleNamespace(host="127.0.0.1", port=receiver.port),
            "assay-exporter": stack.enter_context(serve(collector, port=0)),
            "assay-worker": stack.enter_context(serve_worker(worker, port=0)),
        }

        def seed(part: int) -> None:
            seed_store(store, a_minute_ago(), part=part)
            seed_queue(queue, part=part)
            seed_worker(worker)
            seed_receiver(receiver, part=part)
            seed_outbox(store, a_minute_ago(), part=part)

        seed(0)
        seed_left_out(store, a_minute_ago())
        seed_inputs(store, a_minute_ago())
        seed_changes(store, a_minute_ago())
        seed_canary(store, a_minute_ago())
        seed_attacks(store, a_minute_ago())
        odd = some_records(2, a_minute_ago(), app=HOSTILE)
        commit(store, odd, judged(odd))
        # Not before: what the exporter finds out about the input it remembers for minutes.
        server = Prometheus(directory / "prometheus", targets, consoles=CONSOLES)
        stack.callback(server.close)
        wait_for(lambda: server.query("assay_evaluations_total") and server.query("assay_batches_total"))
        seed(1)
        grown = ("assay_dead_letters_total", "assay_batches_total")
        wait_for(lambda: all(server.query(f"sum(increase({name}[5m])) > 0") for name in grown))
        yield server


def answers(prometheus: Prometheus, asked: Asked) -> list[float]:
    """The finite values that a query gives."""
    return [value for _, value in prometheus.query(substituted(asked.expr)) if math.isfinite(value)]


def test_a_query_without_data_would_be_noticed(prometheus: Prometheus) -> None:
    for expr in ('assay_pass_ratio{app="nobody"}', "assay_pass_rate", "0 / sum(assay_window_records * 0)"):
        assert answers(prometheus, Asked("", "", expr)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_query_returns_data(prometheus: Prometheus, path: Path) -> None:
    empty = [asked for asked in queries(load(path)) if not answers(prometheus, asked)]
    assert empty == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("by", ["route", "model", "prompt_version", "rubric_version", "judge"])
def test_every_choice_returns_data(prometheus: Prometheus, path: Path, by: str) -> None:
    for asked in queries(load(path)):
        if "$by" in asked.expr:
            for app in ("shop", ".*"):
                found = prometheus.query(substituted(asked.expr, by=by, app=app))
                assert found, asked
                assert all(labels.get(by) for labels, _ in found if "app" not in labels or labels["app"] == "shop")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variable_has_values(prometheus: Prometheus, path: Path) -> None:
    for variable in load(path)["templating"]["list"]:
        if variable["type"] != "query":
            continue
        query = variable["query"]["query"]
        if found := re.fullmatch(r"label_values\((.*), (\w+)\)", query):
            matched = {"match[]": substituted(found[1])}
            values = prometheus.get(f"label/{found[2]}/values", **matched)
        else:
            (selector,) = re.fullmatch(r"label_names\((.*)\)", query).groups()  # type: ignore[union-attr]
            values = prometheus.get("labels", **{"match[]": selector})
        if regex := variable["regex"]:
            values = [value for value in values if re.search(regex.strip("/"), value)]
            assert set(values) == {*COHORT_LABELS, "rubric_version", "judge"}
        assert values, variable["name"]


def test_an_annotation_can_be_asked(prometheus: Prometheus) -> None:
    for path in FILES:
        for annotation in load(path)["annotations"]["list"]:
            prometheus.query(substituted(annotation["expr"]))


def test_a_pooled_ratio_is_that_of_all_interactions(prometheus: Prometheus) -> None:
    (expr,) = {
        asked.expr
        for asked in queries(load(ROOT / "deploy/grafana/dashboards/cohorts.json"))
        if asked.panel == "Pass rate by $by" and "assay_pass_ratio" in asked.expr
    }
    by_judge = {
        labels["rubric"]: value for labels, value in prometheus.query(substituted(expr, app="shop", by="judge"))
    }
    whole = {
        labels["rubric"]: value for labels, value in prometheus.query('assay_app_pass_ratio{app="shop", window="1h"}')
    }
    assert by_judge == pytest.approx(whole)
    assert len(whole) == 4


# -- the console page


def console(prometheus: Prometheus, **parameters: str) -> str:
    url = f"{prometheus.url}/consoles/assay.html?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


def rows(page: str, table: str) -> list[list[str]]:
    """The cells of a table as text."""
    body = re.search(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]  # type: ignore[index]
    return [
        [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]


def test_the_console_page_shows_what_the_gauges_say(prometheus: Prometheus) -> None:
    page = console(prometheus)
    shown = {(row[0], row[1]): row for row in rows(page, "scores")}
    assert len([1 for app, _ in shown if app == "shop"]) == 4
    row = shown["shop", "relevance"]
    (_, ratio), *_ = prometheus.query('assay_app_pass_ratio{app="shop",rubric="relevance",window="1h"}')
    (_, corrected), *_ = prometheus.query('assay_app_pass_ratio_corrected{app="shop",rubric="relevance",window="1h"}')
    assert float(row[4].rstrip("%")) == pytest.approx(100 * ratio, abs=0.1)
    assert float(row[8].rstrip("%")) == pytest.approx(100 * corrected, abs=0.1)
    assert row[7] == "90%"
    assert row[11] in {"ok", "too_wide"}
    health = dict(rows(page, "evaluator"))
    assert health["database"] == health["redis"] == "up"
    assert health["records on the queue"] == "2"
    assert int(health["failures in the last hour: timeout"]) >= 1
    assert "No label set has 30" not in page
    weakest = rows(page, "weakest")
    assert any("route checkout" in row[0] and "model small" in row[0] for row in weakest)


def test_the_console_page_takes_another_window_and_one_app(prometheus: Prometheus) -> None:
    day = console(prometheus, window="24h", app="shop")
    assert "<strong>24h</strong>" in day
    assert {row[0] for row in rows(day, "scores")} == {"shop"}
    assert "There is no score in this window" in console(prometheus, window="7d")


def test_hostile_names_stay_text_on_the_console_page(prometheus: Prometheus) -> None:
    page = console(prometheus)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    only = console(prometheus, app=HOSTILE)
    assert len(rows(only, "scores")) == 4, "the name is data in the query too"
    assert "<strong>1h</strong>" in console(prometheus, window='1h"} or vector(1)')


def test_compose_starts_prometheus_with_the_console_page() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert "--web.console.templates=/etc/prometheus/consoles" in text
    assert "./deploy/prometheus:/etc/prometheus:ro" in text
