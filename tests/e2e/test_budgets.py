"""Workers with budgets, as processes: never over the cap, whatever dies, and every record accounted for."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from deployment import Deployment, end, get_json, total, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CAP = 40_000
RECORDS = 150
#: enqueued when the budget is nearly spent
LATE = 50
PRICES = "as_of: '2026-01-31'\nmodels:\n  fake: {prompt: 1.0, completion: 1.0}\n"
BUDGETS = f"""\
budgets:
  - name: all
    tokens: {CAP}
    usd: {CAP / 1_000_000}
    per: month
  - name: shop_safety
    app: shop
    rubric: safety
    judge: openai:fake
    tokens: 1000000
    per: hour
"""


def used_tokens(base_url: str) -> int:
    """By the judge server's own count."""
    traffic = get_json(base_url.removesuffix("/v1") + "/traffic")
    return int(traffic["prompt_tokens"]) + int(traffic["completion_tokens"])


def test_workers_that_die_never_spend_more_than_the_cap(tmp_path: Path, postgres_url: str) -> None:
    prices, budgets = tmp_path / "prices.yaml", tmp_path / "budgets.yaml"
    prices.write_text(PRICES)
    budgets.write_text(BUDGETS)
    settings = {
        "lease_seconds": 3,
        "judge_timeout_seconds": 2,
        "judge_max_tokens": 150,
        "prices": prices,
        "budgets": budgets,
        "budget_thin_from": 0.5,
        "budget_thin_least": 0.5,
    }
    with Deployment(tmp_path, postgres_url, **settings) as deployment:
        server = deployment.start_judge("--latency", "0.05")
        first, second = deployment.start_worker(), deployment.start_worker()
        deployment.enqueue(RECORDS)
        wait_until(lambda: used_tokens(server) > CAP / 8, first, second)
        os.kill(first.pid, signal.SIGKILL)
        third = deployment.start_worker()
        deployment.drain(second, third)
        deployment.enqueue(LATE, start=RECORDS)
        deployment.drain(second, third)
        # What the killed one had reserved counts as spent in full: how much that was is chance.
        assert CAP / 8 < used_tokens(server) <= CAP
        outcomes = deployment.outcomes()
        for rubric, counted in outcomes.items():
            assert counted["failed"] > 0, (rubric, counted)
            assert counted.total() == RECORDS + LATE, "every record is in one of scored, failed and left out"
        shown = {(row["budget"], row["unit"]): row for row in json.loads(deployment.run("budget", "--json").stdout)}
        spent = shown["all", "tokens"]
        # What died with the first worker counts as spent, charged or not; it may lapse only later.
        assert used_tokens(server) <= spent["spent"] + spent["reserved"] <= CAP
        assert shown["all", "usd"]["cap"] == CAP / 1_000_000
        assert shown["all", "tokens"]["resets_at"].endswith("-01T00:00:00+00:00")
        table = deployment.run("budget").stdout.decode()
        assert "app shop, rubric safety, judge openai:fake" in table
        metrics = deployment.start_exporter()
        assert total(metrics, "assay_budget_limit_tokens", budget="all") == CAP
        left = spent["left"]
        assert total(metrics, "assay_budget_remaining_tokens", budget="all") == pytest.approx(left, abs=10_000)
        assert 0.3 < total(metrics, "assay_budget_used_ratio", budget="all") <= 1
        thinned = total(metrics, "assay_budget_thinned_total", app="shop", rubric="safety")
        assert thinned == outcomes["safety"]["not_applicable"] > 0
        failed = total(metrics, "assay_failures_total", rubric="safety", kind="budget")
        assert failed == outcomes["safety"]["failed"]
        dead = json.loads(deployment.run("dead", "list", "--reason", "budget", "--json", "--limit", "1000").stdout)
        assert dead, "what was refused can be replayed"
        assert end(second) == end(third) == 0


def test_what_would_limit_nothing_is_refused_at_the_start(tmp_path: Path, postgres_url: str) -> None:
    settings = {"judge": "openai", "judge_api_key": "synthetic", "judge_model": "nobody-knows"}
    with Deployment(tmp_path, postgres_url, budget_usd_per_day=1.5, **settings) as deployment:
        for command in ("worker", "exporter", "budget"):
            refused = deployment.run(command, check=False)
            assert refused.returncode == 2
            assert b"the price of nobody-knows is not known: list it in a price table" in refused.stderr
        del deployment.settings["budget_usd_per_day"]
        assert b"There are no budgets" in deployment.run("budget").stdout
        assert json.loads(deployment.run("budget", "--json").stdout) == []
        budgets = tmp_path / "budgets.yaml"
        budgets.write_text("budgets:\n  - {name: a, tokens: 5, per: day, rubric: safty}\n")
        deployment.settings["budgets"] = budgets
        refused = deployment.run("worker", check=False)
        assert refused.returncode == 2
        assert b"budgets.yaml:2: budgets[0].rubric: no rubric is called safty: there is completeness" in refused.stderr
