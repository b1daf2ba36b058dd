"""The simulation behind docs/explanation/alerts.md, in small: what the page claims, and that promtool agrees."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from assay.rubrics import SHIPPED, Rubric, load_rubrics
from rule_cases import promtool

pytestmark = pytest.mark.integration
RUBRICS = {rubric.name: rubric for rubric in load_rubrics([SHIPPED])}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/alerts.py"
    spec = importlib.util.spec_from_file_location("benchmark_alerts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def completeness() -> Rubric:
    return RUBRICS["completeness"]


@pytest.mark.parametrize(("name", "drop"), [("completeness", 0.6), ("safety", 0.2)])
def test_promtool_says_the_same_of_the_shipped_rules(bench: ModuleType, name: str, drop: float) -> None:
    promtool()
    # Every minute at which something changes is among them.
    assert bench.against_promtool(RUBRICS[name], hours=36, per_hour=200, seed=1, drop=drop) > 60


def test_the_plain_rule_cries_wolf_and_the_shipped_ones_do_not(bench: ModuleType, completeness: Rubric) -> None:
    found = bench.false_pages(completeness, weeks=3, per_hour=200, seed=2)
    assert found["plain"] > 20
    assert found["drop"] + found["fast"] <= 1
    assert found["slow"] <= 1


def test_a_large_drop_is_noticed_within_hours(bench: ModuleType, completeness: Rubric) -> None:
    found = bench.delays(completeness, points=20, above=0.03, runs=3, per_hour=200, seed=2, limit=1440)
    assert len(found["drop"]) == 3
    assert max(found["drop"]) < 180


def test_an_outage_pages_by_the_burn_rate(bench: ModuleType, completeness: Rubric) -> None:
    found = bench.delays(completeness, points=80, above=0.03, runs=2, per_hour=200, seed=2, limit=600)
    assert max(found["fast"]) < 120


def test_ten_records_an_hour_on_a_quiet_weekend_page_nobody(bench: ModuleType, completeness: Rubric) -> None:
    found = bench.false_pages(completeness, weeks=3, per_hour=10, seed=3)
    assert found["plain"] > 5
    assert found["drop"] == found["fast"] == 0


def test_gauges_are_those_of_the_exporter(bench: ModuleType) -> None:
    from assay.windows import Sums, pass_ratio

    share = np.full(200, 0.8)
    seen = bench.traffic(np.random.default_rng(5), minutes=200, per_hour=300, share=share)
    of = bench.gauges(seen)
    for minute in (0, 30, 100, 199):
        for window, width in bench.WINDOWS.items():
            begin = max(0, minute + 1 - width)
            n, k = int(seen.records[begin : minute + 1].sum()), int(seen.passes[begin : minute + 1].sum())
            sums = Sums(n=n, sum_w=n, sum_w2=n, sum_wy=k, sum_w2y=k, sum_w2y2=k, passes=k, sum_wp=k, sum_w2p=k)
            estimate = pass_ratio(sums)
            if estimate is None:
                assert math.isnan(of[window]["ratio"][minute])
                continue
            assert of[window]["ratio"][minute] == pytest.approx(estimate.value)
            # The exporter takes one record off for the unbiased variance.
            assert of[window]["upper"][minute] == pytest.approx(estimate.upper, abs=0.02)
