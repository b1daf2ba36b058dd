"""Sampling must not move the headline, and cohort labels must not flood Prometheus: sampler, store and gauges together.

Of a million cohort values, `ASSAY_TEST_COHORT_VALUES` (20,000 unless set) are committed with a record and a score each;
the others take the same way to their label set, without the rows.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from assay.metrics import ScoreCollector
from assay.queue import QueueDepth
from assay.records import Evaluation, Record, Score
from assay.sampling import Rule, Sampler
from assay.store import OTHER, Store
from assay.windows import wilson
from exposition import Exposition
from stores import EPOCH, a_record, an_evaluation, with_payloads

pytestmark = pytest.mark.integration

NOW = EPOCH + 3600.0
MILLION = 1_000_000
COMMITTED = min(MILLION, int(os.environ.get("ASSAY_TEST_COHORT_VALUES", "20000")))
CAP = 200
RUBRICS = ("faithfulness", "relevance")
#: share of the traffic, and pass rates of the ordinary and the bad cohort
BAD_SHARE, GOOD_PASS, BAD_PASS = 0.06, 0.95, 0.30
TRAFFIC = 12_000


def scrape(store: Store, cohort_labels: tuple[str, ...] = ()) -> Exposition:
    """What the exporter shows of the store; the queue is empty."""
    queue: Any = SimpleNamespace(
        depth=lambda: QueueDepth(0, 0, None), pending_records=lambda _: 0, counters=dict, ping=lambda: None
    )
    return Exposition.of(ScoreCollector(store, queue, cohort_labels=cohort_labels, clock=lambda: NOW).collect())


def traffic(seed: int) -> Iterator[tuple[Record, list[Evaluation]]]:
    """An hour of synthetic interactions with a cohort that goes wrong, and what a judge would say of each."""
    rng = random.Random(seed)
    for number in range(TRAFFIC):
        bad = rng.random() < BAD_SHARE
        record = a_record(
            f"{seed}-{number}", seconds=rng.random() * 3590, cohort={"release": "canary" if bad else "stable"}
        )
        evaluations = []
        for rubric in RUBRICS:
            passed = rng.random() < (BAD_PASS if bad else GOOD_PASS)
            value = rng.uniform(0.5, 1.0) if passed else rng.uniform(0.0, 0.5)
            evaluations.append(an_evaluation(record, Score(value=value, passed=passed), rubric))
        yield record, evaluations


def keep(path: Path, taken: list[tuple[Record, list[Evaluation]]]) -> Store:
    store = Store(f"sqlite:///{path}")
    store.upgrade()
    records = with_payloads([record for record, _ in taken])
    store.commit(records, [evaluation for _, evaluations in taken for evaluation in evaluations])
    return store


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_oversampling_a_bad_cohort_20_times_does_not_move_the_gauge(tmp_path: Path, seed: int) -> None:
    sampler = Sampler(0.05, [Rule("canary", rate=1.0, cohort={"release": "canary"})])
    everything, sample = [], []
    for record, evaluations in traffic(seed):
        everything.append((record, evaluations))
        decision = sampler.decide(record.record_id, {"cohort": record.cohort})
        if decision is not None:
            weighted = a_record(
                record.record_id, seconds=record.timestamp.timestamp() - EPOCH, probability=decision.probability
            )
            sample.append((weighted, evaluations))
    with keep(tmp_path / "census.db", everything) as census, keep(tmp_path / "sample.db", sample) as sampled:
        truth, got = scrape(census), scrape(sampled)

    for rubric in RUBRICS:
        labels = {"rubric": rubric, "window": "1h"}
        for gauge in ("pass_ratio", "score_mean"):
            known = truth.value(f"assay_{gauge}", **labels)
            lower, value, upper = (got.value(f"assay_{gauge}{end}", **labels) for end in ("_ci_lower", "", "_ci_upper"))
            assert lower <= known <= upper, gauge
            assert abs(value - known) < 0.03
            assert upper - lower < 0.08, "it is not right by being vague"
        known, n = truth.value("assay_pass_ratio", **labels), got.value("assay_window_records", **labels)
        unweighted = got.value("assay_pass_ratio_unweighted", **labels)
        assert known - unweighted > 0.25, "half of the sample is the bad cohort"
        assert wilson(unweighted, n)[1] < known - 0.2, "and its own interval does not say so"
        # what the sample stands for, and how much it tells
        assert got.value("assay_window_interactions", **labels) == pytest.approx(TRAFFIC, rel=0.1)
        assert truth.value("assay_window_interactions", **labels) == TRAFFIC
        assert 500 < got.value("assay_window_effective_records", **labels) <= n < 1500


def test_equal_sampling_leaves_the_ratio_as_it_is(tmp_path: Path) -> None:
    taken = [
        (a_record(record.record_id, seconds=record.timestamp.timestamp() - EPOCH, probability=0.1), evaluations)
        for record, evaluations in list(traffic(4))[:2000]
    ]
    with keep(tmp_path / "scores.db", taken) as store:
        got = scrape(store)
    for rubric in RUBRICS:
        weighted = got.value("assay_pass_ratio", rubric=rubric, window="1h")
        assert weighted == pytest.approx(got.value("assay_pass_ratio_unweighted", rubric=rubric, window="1h"))


def flood(store: Store, start: int, end: int) -> None:
    """A record with a score for each cohort value."""
    for first in range(start, end, 5000):
        numbers = range(first, min(first + 5000, end))
        records = [a_record(f"r{n}", seconds=n % 3500, cohort={"tier": f"v{n}"}) for n in numbers]
        store.commit([(record, "{}") for record in records], [an_evaluation(record, 1.0) for record in records])


def place(store: Store, start: int, end: int) -> set[int]:
    """The label sets of records with these cohort values, made as a commit makes them."""
    places: set[int] = set()
    for first in range(start, end, 100_000):
        records: list[Any] = [
            SimpleNamespace(record_id=str(n), app="shop", cohort={"tier": f"v{n}"})
            for n in range(first, min(first + 100_000, end))
        ]
        placed = store._labels.places(store._database, records)
        places |= {found.series_id for found in placed.values()}
    return places


@pytest.mark.timeout(1800)
def test_a_million_cohort_values_stay_under_the_cap(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/scores.db", cohort_labels=["tier"], max_series=CAP) as store:
        store.upgrade()
        flood(store, 0, COMMITTED)
        before = scrape(store, ("tier",))
        assert len(place(store, COMMITTED, MILLION)) <= 1
        # Other apps still find room after the flood, with their own cohort values folded.
        late = a_record("late", app="search", cohort={"tier": "gold"}, seconds=5)
        store.commit([(late, "{}")], [an_evaluation(late, 0.0)])
        after = scrape(store, ("tier",))

    for got in (before, after):
        series = {(s.labels["app"], s.labels["tier"]) for s in got.find("assay_evaluations_total")}
        assert got.value("assay_series") == len(series) <= CAP
        for name in ("assay_pass_ratio", "assay_score_count", "assay_window_records"):
            assert len(list(got.find(name, window="24h") if name != "assay_score_count" else got.find(name))) <= CAP
        # Nothing is lost: what has no label set of its own counts as `other`, and the app's gauge is over all of it.
        assert got.sum("assay_evaluations_total", app="shop", outcome="scored") == COMMITTED
        assert got.value("assay_app_window_records", app="shop", window="24h") == COMMITTED
        shown = len({tier for app, tier in series if app == "shop"} - {OTHER})
        others = got.value("assay_evaluations_total", app="shop", tier=OTHER, outcome="scored")
        assert shown + others == COMMITTED
    assert before.value("assay_series_overflow_total") == others
    assert after.value("assay_series_overflow_total") == others + 1
    assert after.value("assay_pass_ratio", app="search", tier=OTHER, window="24h") == 0.0
    assert len(after.samples) - len(before.samples) < 200, "one more label set, not a million"
