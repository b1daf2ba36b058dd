"""What the exporter and a worker publish: names, labels, values; and what they leave out."""

from __future__ import annotations

import logging
import math
import random
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder

from assay.budgets import THINNED, Balance, Budget
from assay.calibration import State
from assay.catalogue import DOCUMENTED, MetricDoc, metrics_markdown
from assay.changes import ChangePolicy, watch
from assay.corrections import Reason
from assay.errors import QueueError, SettingsError
from assay.metrics import (
    ScoreCollector,
    WorkerMetrics,
    check_cohort_labels,
    encode,
    wants_openmetrics,
)
from assay.queue import QueueDepth
from assay.records import NotApplicable, Score, Usage
from assay.rubrics import load_rubrics
from assay.store import AttackCounts, AttackRun, CanaryRun, DeadLetter, InstrumentName, RubricVersion, Settled, Store
from assay.windows import Sums, parse_window, pass_ratio, score_mean, window_bounds
from calibrations import a_calibration
from exposition import Exposition
from servers import missing
from stores import A_FAILURE, EPOCH, NOT_APPLICABLE, a_record, an_evaluation, commit, with_payloads

TRACE = "0af7651916cd43dd8448eb211c80319c"
#: two and a half hours after the hour that the records of the tests count from
NOW = EPOCH + 2.5 * 3600 + 17
MINUTES = 60.0


class ScriptedQueue:
    """The parts of a Queue that a scrape reads, without a Redis. `away` makes it fail as a Queue does."""

    def __init__(self) -> None:
        self.pending: list[float] = []
        self.counted: dict[str, int] = {}
        self.away = False

    def _check(self) -> None:
        if self.away:
            raise QueueError("redis: connection refused")

    def depth(self) -> QueueDepth:
        self._check()
        return QueueDepth(math.ceil(len(self.pending) / 25), len(self.pending), min(self.pending, default=None))

    def pending_records(self, since: float | None = None) -> int:
        self._check()
        return sum(moment >= (since or 0) for moment in self.pending)

    def counters(self) -> dict[str, int]:
        self._check()
        return dict(self.counted)

    def ping(self) -> None:
        self._check()


class ScriptedLedger:
    """What a Ledger tells a scrape, without a Redis: a budget in both units, four fifths of its dollars spent."""

    def balances(self) -> list[Balance]:
        start, end = (datetime.fromtimestamp(EPOCH + hours * 3600, UTC) for hours in (-12, 12))
        parts = {"usd": (10.0, 8.0, 0.5), "tokens": (1000.0, 100.0, 0.0)}
        return [
            Balance(meter=meter, limit=limit, spent=spent, reserved=reserved, window_start=start, resets_at=end)
            for meter in Budget(name="total", per="day", usd=10.0, tokens=1000).meters
            for limit, spent, reserved in [parts[meter.unit]]
        ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{path}", cohort_labels=["tier"]) as store:
        store.upgrade()
        yield store


@pytest.fixture
def queue() -> ScriptedQueue:
    return ScriptedQueue()


@pytest.fixture
def collector(store: Store, queue: ScriptedQueue) -> ScoreCollector:
    return a_collector(store, queue)


def a_collector(store: Store, queue: ScriptedQueue, **options: object) -> ScoreCollector:
    return ScoreCollector(store, queue, **{"cohort_labels": ["tier"], "clock": lambda: NOW} | options)  # type: ignore[arg-type]


def ago(seconds: float) -> float:
    """`a_record`'s seconds of a moment that long before NOW."""
    return NOW - EPOCH - seconds


def fill(store: Store) -> None:
    """Some of everything that the store keeps."""
    traced = a_record(seconds=ago(10), cohort={"tier": "gold"}, trace_id=TRACE, probability=0.5)
    used = Usage(prompt_tokens=900, completion_tokens=50, cost_usd=0.002)
    commit(store, (traced, Score(value=0.3, passed=False, usage=used, defect="selection")))
    commit(store, (a_record(seconds=ago(20), cohort={"tier": "gold"}), 0.8))
    failed = a_record("again", seconds=ago(30))
    commit(store, (failed, A_FAILURE), (a_record(seconds=ago(30)), NOT_APPLICABLE))
    commit(store, (failed, 1.0), replay=True)
    letters = [DeadLetter(dead_id=str(n), reason="invalid", message="no timestamp", payload=b"{}") for n in range(2)]
    store.commit([], [], letters, duplicates=3)
    store.mark_replayed(["0"])


def with_signals(store: Store) -> None:
    """Records with a cost, and enough on each day for the input to be compared with that of the days before."""
    priced = Usage(cost_usd=0.01)
    commit(store, *((a_record(seconds=ago(60), finish_reason="stop", usage=priced), 0.9) for _ in range(6)))
    for day in range(9):
        questions = ("Where is my parcel?", "How do I change the address of my order?")
        moment = ago(86_400 * day + 2 * 3_600)
        store.commit(with_payloads([a_record(seconds=moment, input=questions[n % 2]) for n in range(60)]), [])


def with_outbox(store: Store) -> None:
    """Something that is owed to a sink, and something that it refused."""
    url = store._database.url.render_as_string(hide_password=False)
    with Store(url, cohort_labels=["tier"], sinks={"phoenix": {"scored"}}) as owing:
        commit(owing, (a_record("owed-1"), 0.5), (a_record("owed-2"), 0.5))
        claimed = owing.claim_outbox("phoenix", "c", limit=1, until=datetime.now(UTC))
        keys = [(one.annotation.record_id, one.annotation.evaluation_id) for one in claimed]
        owing.settle_outbox("phoenix", "c", {key: Settled(outcome="rejected", reason="422") for key in keys})


def with_changes(store: Store) -> None:
    """A detector that has learned, and a canary that has run twice."""
    policy = ChangePolicy(reference_records=50, settle_seconds=0)
    watch(store, (), policy, clock=lambda: datetime.fromtimestamp(NOW, UTC))
    (*_, stream) = store.change_streams()
    store.save_canary(
        CanaryRun(
            run_id="c",
            instrument=stream.name.instrument,
            trigger="schedule",
            started_at=datetime.fromtimestamp(NOW - 60, UTC),
            finished_at=datetime.fromtimestamp(NOW, UTC),
            cause="product",
            reason="as before",
            baseline=False,
            repeats=1,
            scores={"a": [1.0]},
            passes={"a": [1.0]},
            items=1,
            compared=1,
            difference=0.0,
            lower=-0.01,
            upper=0.01,
        )
    )


def calibrated(store: Store) -> None:
    """Enough records for a correction, a calibration to correct by, and the version that it is of."""
    commit(store, *((a_record(seconds=ago(100)), float(n % 4 > 0)) for n in range(80)))
    made = a_calibration()
    store.save_calibration(made)
    store.place_rubric(
        RubricVersion(
            rubric=made.rubric,
            rubric_version=made.rubric_version,
            rubric_hash=made.rubric_hash,
            judge=made.judge,
            judge_fingerprint=made.judge_fingerprint,
            body="{}",
            state="active",
            reason="its gate asks for nothing",
        )
    )
    instrument = InstrumentName(made.rubric, made.rubric_version, made.rubric_hash, made.judge, made.judge_fingerprint)
    counts = {"x": AttackCounts(succeeded=1, resisted=1)}
    run = AttackRun(
        run_id="r", instrument=instrument, attack_set="d", measured_at=datetime.now(UTC), counts={"on": counts}
    )
    store.save_attack_run(run)


# -- names


def test_every_name_is_documented_once_and_valid() -> None:
    names = [(doc.process, doc.name) for doc in DOCUMENTED]
    assert len(set(names)) == len(names)
    families = [(doc.process, doc.family) for doc in DOCUMENTED]
    assert len(set(families)) == len(families), "OpenMetrics leaves out the suffix: two families would be one"
    for doc in DOCUMENTED:
        assert re.fullmatch(r"assay_[a-z0-9_]+", doc.name)
        assert doc.name.endswith("_total") == (doc.type == "counter"), doc.name
        assert doc.name.endswith("_info") == (doc.type == "info"), doc.name
        assert not doc.name.endswith(("_bucket", "_count", "_sum", "_created"))
        assert doc.help.endswith("."), doc.name
        assert "\n" not in doc.help


def test_budgets_and_what_was_left_out_for_them(store: Store, queue: ScriptedQueue) -> None:
    commit(store, *((a_record(seconds=ago(30)), NotApplicable(reason=THINNED)) for _ in range(3)))
    exposition = Exposition.of(a_collector(store, queue, ledger=ScriptedLedger()).collect())
    total = {"budget": "total"}
    assert exposition.value("assay_budget_limit_usd", **total) == 10
    assert exposition.value("assay_budget_remaining_usd", **total) == 1.5
    assert exposition.value("assay_budget_reserved_usd", **total) == 0.5
    assert exposition.value("assay_budget_remaining_tokens", **total) == 900
    assert exposition.value("assay_budget_used_ratio", **total) == 0.8
    assert exposition.value("assay_budget_reset_timestamp_seconds", **total) == EPOCH + 12 * 3600
    assert exposition.value("assay_budget_thinned_total", app="shop", rubric="relevance") == 3


def test_a_cohort_label_stands_after_the_labels_of_scores() -> None:
    doc = MetricDoc(
        name="assay_x",
        type="gauge",
        help="X.",
        labels=("app", "rubric", "rubric_version", "judge", "window"),
        cohort=True,
    )
    assert doc.label_names(["tier"]) == ("app", "rubric", "rubric_version", "judge", "tier", "window")


def test_everything_published_is_documented_and_everything_documented_is_published(
    store: Store, queue: ScriptedQueue
) -> None:
    fill(store)
    calibrated(store)
    with_signals(store)
    with_changes(store)
    with_outbox(store)
    commit(store, (a_record(seconds=ago(30)), NotApplicable(reason=THINNED)))
    queue.counted = {"accepted": 9, '["shop","taken"]': 9, '["shop","dropped:buffer_full"]': 1}
    exporter = a_collector(store, queue, rubrics=[load_rubrics()[0]], ledger=ScriptedLedger())
    for process, families in (("exporter", exporter.collect()), ("worker", a_busy_worker().collect())):
        docs = {doc.family: doc for doc in DOCUMENTED if doc.process == process}
        published = {family.name: family for family in families if not family.name.startswith("process_")}
        shared = {"assay_build"} if process == "worker" else set()
        assert published.keys() == docs.keys() | shared
        for name in published.keys() & docs.keys():
            family, doc = published[name], docs[name]
            assert (family.type, family.documentation) == (doc.type, doc.help)
            for sample in family.samples:
                assert sample.labels.keys() - {"le"} == set(doc.label_names(["tier"])), sample


def test_the_reference_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
    assert page.read_text() == metrics_markdown(), "write metrics_markdown() to it: make docs"


def test_the_reference_names_every_state_and_reason() -> None:
    section = metrics_markdown().partition("### States and reasons")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)? ?\|", section, re.MULTILINE)
    assert {reason for _, reason in rows} == set(get_args(Reason))
    assert {state for state, _ in rows} == set(get_args(State))


def test_the_reference_names_every_metric_and_label() -> None:
    text = metrics_markdown()
    for doc in DOCUMENTED:
        assert f"| `{doc.name}` | {doc.type} |" in text
    assert "`judge`, *cohort*, `window`" in text


@pytest.mark.parametrize("name", ["1tier", "ti-er", "", "__tier", "tïer", "tier ", "a.b"])
def test_a_cohort_label_must_be_a_label_name(name: str) -> None:
    with pytest.raises(SettingsError, match="letters, digits and _"):
        check_cohort_labels([name])


@pytest.mark.parametrize("name", ["app", "rubric", "judge", "window", "outcome", "kind", "le", "job", "instance"])
def test_a_cohort_label_must_not_be_taken(name: str) -> None:
    with pytest.raises(SettingsError, match="choose another name"):
        check_cohort_labels(["tier", name])


def test_a_cohort_label_is_declared_once() -> None:
    with pytest.raises(SettingsError, match="'tier' is declared twice"):
        check_cohort_labels(["tier", "route", "tier"])
    assert check_cohort_labels(["tier", "route", "model", "prompt_version"]) == (
        "tier",
        "route",
        "model",
        "prompt_version",
    )


def test_a_window_that_is_none_is_refused_at_once(store: Store, queue: ScriptedQueue) -> None:
    with pytest.raises(SettingsError, match="90s"):
        a_collector(store, queue, windows=["5m", "90s"])


# -- windows


def test_a_score_belongs_to_the_minute_of_its_interaction(store: Store, collector: ScoreCollector) -> None:
    commit(store, (a_record(seconds=ago(2 * MINUTES)), 1.0))
    commit(store, (a_record(seconds=ago(40 * MINUTES)), 0.0))
    commit(store, (a_record(seconds=ago(20 * 60 * MINUTES)), 0.0))
    got = Exposition.of(collector.collect())
    assert {w: got.value("assay_window_records", window=w) for w in ("5m", "1h", "24h")} == {"5m": 1, "1h": 2, "24h": 3}
    assert got.value("assay_pass_ratio", window="5m") == 1.0
    assert got.value("assay_pass_ratio", window="1h") == 0.5
    assert got.value("assay_pass_ratio", window="24h") == pytest.approx(1 / 3)


def test_an_empty_window_has_no_sample_never_0(store: Store, collector: ScoreCollector) -> None:
    commit(store, (a_record(seconds=ago(40 * MINUTES)), 0.9))
    commit(store, (a_record(seconds=ago(1 * MINUTES)), A_FAILURE), (a_record(seconds=ago(1 * MINUTES)), NOT_APPLICABLE))
    got = Exposition.of(collector.collect())
    assert {sample.name for sample in got.find("assay_window_records", window="5m")} == {"assay_window_records"}
    shown = {name for (name, labels) in got.samples if ("window", "5m") in labels}
    # What shows without a verdict is shown without one.
    shown = {name for name in shown if not name.startswith("assay_signal_")}
    assert shown == {
        "assay_window_records",
        "assay_window_interactions",
        "assay_app_window_records",
        "assay_app_window_interactions",
        "assay_window_pending_records",
    }
    for name in shown:
        assert got.value(name, window="5m") == 0
    assert got.value("assay_score_mean", window="1h") == pytest.approx(0.9)


def test_nothing_stored_is_nothing_shown(collector: ScoreCollector) -> None:
    names = Exposition.of(collector.collect()).names()
    assert not {name for name in names if "ratio" in name or "score" in name or "window_records" in name}
    assert {"assay_up", "assay_queue_records", "assay_series"} <= names


def test_gauges_are_the_weighted_estimates(store: Store, collector: ScoreCollector) -> None:
    rows = [(1.0, 0.9), (1.0, 0.2), (0.05, 0.95), (0.05, 0.4), (0.25, 0.7)]
    commit(store, *((a_record(seconds=ago(30 + i), probability=p), y) for i, (p, y) in enumerate(rows)))
    sums = sum((Sums.of(weight=1 / p, value=y, passed=y >= 0.5) for p, y in rows), Sums())
    got = Exposition.of(collector.collect())
    for prefix in ("assay_", "assay_app_"):
        shown = {
            name: got.value(f"{prefix}{name}", app="shop", rubric="relevance", judge="lexical", window="5m")
            for name in (
                "pass_ratio",
                "pass_ratio_ci_lower",
                "pass_ratio_ci_upper",
                "pass_ratio_unweighted",
                "score_mean",
                "score_mean_ci_lower",
                "score_mean_ci_upper",
                "window_records",
                "window_effective_records",
                "window_interactions",
            )
        }
        passing, mean = pass_ratio(sums), score_mean(sums)
        assert shown == pytest.approx(
            {
                "pass_ratio": passing.value,
                "pass_ratio_ci_lower": passing.lower,
                "pass_ratio_ci_upper": passing.upper,
                "pass_ratio_unweighted": 3 / 5,
                "score_mean": mean.value,
                "score_mean_ci_lower": mean.lower,
                "score_mean_ci_upper": mean.upper,
                "window_records": 5,
                "window_effective_records": passing.n_effective,
                "window_interactions": 46,
            }
        )
    assert shown["pass_ratio"] == pytest.approx((1 + 20 + 4) / 46)


def test_the_gauges_of_an_app_pool_its_cohorts(store: Store, collector: ScoreCollector) -> None:
    """The mean of the cohorts' ratios is not the app's ratio; the app has gauges of its own, which sums do not meet."""
    gold = [(a_record(seconds=ago(30), cohort={"tier": "gold"}), 1.0) for _ in range(9)]
    free = [(a_record(seconds=ago(30), cohort={"tier": "free"}, probability=0.01), 0.0)]
    other = [(a_record(seconds=ago(30), app="search", cohort={"tier": "gold"}), 0.0)]
    commit(store, *gold, *free, *other)
    got = Exposition.of(collector.collect())
    assert got.value("assay_pass_ratio", app="shop", tier="gold", window="5m") == 1.0
    assert got.value("assay_pass_ratio", app="shop", tier="free", window="5m") == 0.0
    whole = next(got.find("assay_app_pass_ratio", app="shop", window="5m"))
    assert whole.value == pytest.approx(9 / 109)
    assert "tier" not in whole.labels
    assert got.value("assay_app_window_records", app="shop", window="5m") == 10
    # No label set stands for the others: summing over the cohorts counts every record once.
    assert got.sum("assay_window_records", app="shop", window="5m") == 10
    # and ratios can be pooled in PromQL, with the interactions as weights
    weights = {s.labels["tier"]: s.value for s in got.find("assay_window_interactions", app="shop", window="5m")}
    pooled = sum(got.value("assay_pass_ratio", app="shop", tier=tier, window="5m") * w for tier, w in weights.items())
    assert pooled / sum(weights.values()) == pytest.approx(whole.value)


def test_without_cohort_labels_both_say_the_same(path: Path, queue: ScriptedQueue) -> None:
    with Store(f"sqlite:///{path}") as store:
        store.upgrade()
        commit(store, (a_record(seconds=ago(30), cohort={"tier": "gold"}), 1.0))
        got = Exposition.of(a_collector(store, queue, cohort_labels=()).collect())
    (sample,) = got.find("assay_pass_ratio", window="5m")
    assert sample.labels == {
        "app": "shop",
        "rubric": "relevance",
        "rubric_version": "1-0a1b2c3d",
        "judge": "lexical",
        "window": "5m",
    }
    assert got.value("assay_app_pass_ratio", window="5m") == sample.value


def test_versions_and_judges_are_kept_apart(store: Store, collector: ScoreCollector) -> None:
    record = a_record(seconds=ago(30))
    store.commit(
        with_payloads([record]),
        [
            an_evaluation(record, 1.0),
            an_evaluation(record, 0.0, rubric_version="2-99", rubric_hash="99"),
            an_evaluation(record, 0.0, judge="openai:m", judge_fingerprint="1"),
        ],
    )
    got = Exposition.of(collector.collect())
    assert got.value("assay_pass_ratio", rubric_version="1-0a1b2c3d", judge="lexical", window="5m") == 1.0
    assert got.value("assay_pass_ratio", rubric_version="2-99", judge="lexical", window="5m") == 0.0
    assert got.value("assay_pass_ratio", rubric_version="1-0a1b2c3d", judge="openai:m", window="5m") == 0.0


# A database for each example: on a busy machine that is slow.
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(st.floats(-60, 9 * 86_400), min_size=1, max_size=40),
    st.lists(st.sampled_from(["1m", "5m", "59m", "1h", "61m", "6h", "24h", "25h", "7d"]), min_size=1, unique=True),
    st.integers(0, 7200),
)
def test_every_window_counts_what_lies_in_it(
    tmp_path_factory: pytest.TempPathFactory, ages: list[float], names: list[str], later: int
) -> None:
    """Rollups of several windows are read together, each once: any mix gives what each alone would."""
    now = NOW + later
    with Store(f"sqlite:///{tmp_path_factory.mktemp('windows')}/scores.db") as store:
        store.upgrade()
        commit(store, *((a_record(seconds=ago(age) + later), 1.0) for age in ages))
        collector = ScoreCollector(store, ScriptedQueue(), windows=names, clock=lambda: now)  # type: ignore[arg-type]
        got = Exposition.of(collector.collect())
    for name in names:
        start, end = window_bounds(now, parse_window(name))
        expected = sum(start <= EPOCH + ago(age) + later < end for age in ages)
        assert got.sum("assay_window_records", window=name) == expected, name


# -- counters and histograms


def test_counters_come_from_the_store(store: Store, collector: ScoreCollector) -> None:
    fill(store)
    got = Exposition.of(collector.collect())
    assert got.sum("assay_evaluations_total", outcome="scored") == 3
    assert got.sum("assay_evaluations_total", outcome="failed") == 1
    assert got.sum("assay_evaluations_total", outcome="not_applicable") == 1
    assert got.sum("assay_recovered_total") == 1
    assert got.sum("assay_failures_total", kind="timeout") == 1
    assert got.sum("assay_not_applicable_total", reason="missing_contexts") == 1
    assert got.value("assay_records_total", app="shop", outcome="received") == 4
    # the second delivery of "again", and the three of the batch
    assert got.value("assay_records_total", outcome="duplicate") == store.counts().duplicates >= 3
    assert got.value("assay_dead_letters_waiting", reason="invalid") == 1
    assert got.value("assay_dead_letters_total", reason="invalid") == 2
    assert got.value("assay_series") == 2
    assert got.value("assay_series_overflow_total") == 0
    assert got.value("assay_evaluation_tokens_total", tier="gold", direction="prompt") == 900
    assert got.value("assay_evaluation_tokens_total", tier="gold", direction="completion") == 50
    assert got.value("assay_evaluation_cost_usd_total", tier="gold") == pytest.approx(0.002)


def test_unknown_cost_is_not_0(store: Store, collector: ScoreCollector) -> None:
    commit(store, (a_record(seconds=ago(30)), 1.0))
    got = Exposition.of(collector.collect())
    assert not {"assay_evaluation_cost_usd_total", "assay_evaluation_tokens_total"} & got.names()


def test_the_three_outcomes_begin_at_0(store: Store, collector: ScoreCollector) -> None:
    """A counter that first appears at 1 has no increase that PromQL could see."""
    commit(store, (a_record(seconds=ago(30)), 1.0))
    got = Exposition.of(collector.collect())
    assert got.value("assay_evaluations_total", outcome="failed") == 0
    assert got.value("assay_evaluations_total", outcome="not_applicable") == 0


def test_the_latest_score_has_a_time_and_a_failure_is_none(store: Store, collector: ScoreCollector) -> None:
    commit(store, (a_record(seconds=ago(30), app="bad"), A_FAILURE))
    commit(store, (a_record(seconds=ago(30), app="good"), 1.0))
    got = Exposition.of(collector.collect())
    assert got.value("assay_last_score_timestamp_seconds", app="bad") is None
    # when it was stored, which is now by the wall clock
    assert got.value("assay_last_score_timestamp_seconds", app="good") > NOW


def test_the_histogram_is_cumulative_with_the_bounds_in_it(store: Store, collector: ScoreCollector) -> None:
    values = [0.0, 0.05, 0.1, 0.3, 0.30000000000000004, 0.95, 1.0, 1.0]
    commit(store, *((a_record(seconds=ago(30)), value) for value in values))
    got = Exposition.of(collector.collect())
    buckets = {sample.labels["le"]: sample.value for sample in got.find("assay_score_bucket")}
    bounds = ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0"]
    assert buckets == {le: sum(v <= float(le) for v in values) for le in bounds} | {"+Inf": 8}
    assert got.value("assay_score_count") == 8
    assert got.value("assay_score_sum") == pytest.approx(sum(values))


def test_exemplars_lead_to_the_trace(store: Store, collector: ScoreCollector) -> None:
    commit(store, (a_record(seconds=ago(30), trace_id=TRACE), 0.25), (a_record(seconds=ago(30)), 0.75))
    got = Exposition.of(collector.collect())
    shown = {s.labels["le"]: s.exemplar for s in got.find("assay_score_bucket") if s.exemplar}
    assert list(shown) == ["0.3"]
    assert shown["0.3"].labels == {"trace_id": TRACE}
    assert shown["0.3"].value == 0.25
    assert float(shown["0.3"].timestamp) == pytest.approx(NOW - 30)
    plain, _ = encode(collector.collect(), openmetrics=False)
    assert TRACE.encode() not in plain


@pytest.mark.parametrize("trace_id", ["t" * 65, "t" * 500])
def test_a_trace_id_too_long_for_an_exemplar_is_left_out(
    store: Store, collector: ScoreCollector, trace_id: str
) -> None:
    commit(store, (a_record(seconds=ago(30), trace_id=trace_id), 0.25))
    got = Exposition.of(collector.collect())
    assert not [s for s in got.find("assay_score_bucket") if s.exemplar]
    assert got.value("assay_score_count") == 1


def test_rubrics_and_their_objectives(store: Store, queue: ScriptedQueue) -> None:
    rubrics = load_rubrics()
    got = Exposition.of(a_collector(store, queue, rubrics=rubrics).collect())
    for rubric in rubrics:
        labels = {"rubric": rubric.name, "rubric_version": rubric.revision}
        assert got.value("assay_rubric_info", **labels, title=rubric.title) == 1
        assert got.value("assay_pass_threshold_ratio", **labels) == rubric.pass_threshold
        assert got.value("assay_objective_ratio", **labels) == rubric.objective


# -- the queue and its clients


def test_the_queue(collector: ScoreCollector, queue: ScriptedQueue) -> None:
    queue.pending = [NOW - 7200, NOW - 600, NOW - 10]
    queue.counted = {"accepted": 1234}
    got = Exposition.of(collector.collect())
    assert got.value("assay_queue_records") == 3
    assert got.value("assay_queue_batches") == 1
    assert got.value("assay_oldest_pending_seconds") == pytest.approx(7200)
    assert got.value("assay_queue_accepted_total") == 1234
    pending = {w: got.value("assay_window_pending_records", window=w) for w in ("5m", "1h", "24h")}
    assert pending == {"5m": 1, "1h": 2, "24h": 3}


def test_an_empty_queue_has_waited_0_seconds(collector: ScoreCollector) -> None:
    assert Exposition.of(collector.collect()).value("assay_oldest_pending_seconds") == 0


def test_a_client_whose_clock_is_ahead_has_waited_0_seconds(collector: ScoreCollector, queue: ScriptedQueue) -> None:
    queue.pending = [NOW + 30]
    assert Exposition.of(collector.collect()).value("assay_oldest_pending_seconds") == 0


def test_what_clients_report(collector: ScoreCollector, queue: ScriptedQueue) -> None:
    queue.counted = {
        "accepted": 90,
        '["shop","taken"]': 100,
        '["shop","sampled_out"]': 900,
        '["shop","sent"]': 90,
        '["shop","dropped:buffer_full"]': 7,
        '["search","dropped:queue_full"]': 3,
    }
    got = Exposition.of(collector.collect())
    assert {s.labels["outcome"]: s.value for s in got.find("assay_client_records_total", app="shop")} == {
        "taken": 100,
        "sampled_out": 900,
        "sent": 90,
    }
    assert got.value("assay_client_dropped_total", app="shop", reason="buffer_full") == 7
    assert got.value("assay_client_dropped_total", app="search", reason="queue_full") == 3


@pytest.mark.parametrize(
    "name",
    ["", "{", "null", "5", '["shop"]', '["shop","taken","x"]', '["shop",5]', '[["shop"],"taken"]', "[" * 100_000],
)
def test_what_is_no_client_counter_is_passed_over(collector: ScoreCollector, queue: ScriptedQueue, name: str) -> None:
    queue.counted = {name: 1, '["shop","taken"]': 2}
    got = Exposition.of(collector.collect())
    assert [s.value for s in got.find("assay_client_records_total")] == [2]


def test_the_apps_that_clients_name_are_bounded_and_no_counter_goes_back(
    collector: ScoreCollector, queue: ScriptedQueue
) -> None:
    queue.counted = {f'["app-{n:04}","taken"]': 1 for n in range(150, 350)}
    first = Exposition.of(collector.collect())
    queue.counted |= {f'["app-{n:04}","taken"]': 1 for n in range(2000)}
    second = Exposition.of(collector.collect())
    apps = {s.labels["app"]: s.value for s in second.find("assay_client_records_total")}
    assert len(apps) == 201
    assert apps["other"] == 1800
    for sample in first.find("assay_client_records_total"):
        assert apps[sample.labels["app"]] >= sample.value


# -- parts that are away


def test_without_the_database_there_is_no_score_and_no_stale_one(
    store: Store, path: Path, collector: ScoreCollector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="assay.metrics")
    commit(store, (a_record(seconds=ago(30)), 1.0))
    assert Exposition.of(collector.collect()).value("assay_app_pass_ratio", window="5m") == 1.0
    with sqlite3.connect(path) as behind:
        behind.execute("ALTER TABLE counters RENAME TO hidden")
    behind.close()
    for errors in (1, 2):
        # Windows and totals could still be read, counters not: all of the database's is left out.
        got = Exposition.of(collector.collect())
        assert got.value("assay_up", component="database") == 0
        assert got.value("assay_up", component="redis") == 1
        assert got.value("assay_exporter_errors_total", component="database") == errors
        assert got.value("assay_exporter_errors_total", component="redis") == 0
        assert got.value("assay_queue_records") == 0
        assert not {name for name in got.names() if "ratio" in name or "score" in name or "evaluations" in name}
    assert collector.health()["redis"] is True
    with sqlite3.connect(path) as behind:
        behind.execute("ALTER TABLE hidden RENAME TO counters")
    behind.close()
    got = Exposition.of(collector.collect())
    assert got.value("assay_app_pass_ratio", window="5m") == 1.0
    assert got.value("assay_up", component="database") == 1
    said = [record.message for record in caplog.records]
    assert len(said) == 2, "said when it goes and when it comes back, not at each scrape"
    assert said[0].startswith("database is away: ")
    assert said[1] == "database is back"


def test_without_redis_the_scores_remain(store: Store, collector: ScoreCollector, queue: ScriptedQueue) -> None:
    commit(store, (a_record(seconds=ago(30)), 1.0))
    queue.away = True
    got = Exposition.of(collector.collect())
    assert got.value("assay_pass_ratio", window="5m") == 1.0
    assert got.value("assay_up", component="redis") == 0
    assert got.value("assay_exporter_errors_total", component="redis") == 1
    names = {"assay_window_pending_records", "assay_oldest_pending_seconds", "assay_queue_accepted_total"}
    assert not {n for n in got.names() if n.startswith(("assay_queue", "assay_client")) or n in names}
    assert collector.health() == {"database": True, "redis": False}


def test_a_database_without_tables_is_away(tmp_path: Path, queue: ScriptedQueue) -> None:
    with Store(f"sqlite:///{tmp_path}/new.db") as store:
        collector = a_collector(store, queue)
        assert collector.health() == {"database": False, "redis": True}
        assert Exposition.of(collector.collect()).value("assay_up", component="database") == 0
        store.upgrade()
        assert collector.health() == {"database": True, "redis": True}


def test_a_bug_is_not_taken_for_a_part_that_is_away(store: Store) -> None:
    with pytest.raises(AttributeError):
        ScoreCollector(store, object()).collect()  # type: ignore[arg-type]


# -- the exposition


HOSTILE = ['quote"', "back\\slash", "new\nline", "nul\x00", "escape\x1b[31m", "ünï😀", "{}=,# EOF", "\u2028", "a" * 500]


@pytest.mark.parametrize("openmetrics", [True, False])
def test_hostile_label_values_do_not_spoil_the_scrape(
    store: Store, collector: ScoreCollector, queue: ScriptedQueue, *, openmetrics: bool
) -> None:
    for value in HOSTILE:
        app = value[:100]
        commit(store, (a_record(seconds=ago(30), app=app, cohort={"tier": value}), 1.0))
        queue.counted[f'["{len(queue.counted)}\\ud800\\u0000","taken"]'] = 1
    got = Exposition.of(collector.collect(), openmetrics=openmetrics)
    assert len(list(got.find("assay_pass_ratio", window="5m"))) == len(HOSTILE)
    assert len(list(got.find("assay_client_records_total"))) == len(HOSTILE)
    assert {'quote"', "back\\slash", "ünï😀", "{}=,# EOF"} <= {s.labels["tier"] for s in got.find("assay_pass_ratio")}


@pytest.mark.parametrize("openmetrics", [True, False])
def test_the_encoder_says_what_that_of_prometheus_client_says(
    store: Store, queue: ScriptedQueue, *, openmetrics: bool
) -> None:
    fill(store)
    calibrated(store)
    for value in HOSTILE:
        commit(store, (a_record(seconds=ago(30), cohort={"tier": value}, trace_id=TRACE), 1 / 3))
    odd = Metric("odd", 'Quote ", backslash \\ and\nline break.', "gauge")
    for value in (math.inf, -math.inf, 0, -0.0, 5, 10**18, 1e300, 5e-324, 0.1 + 0.2):
        odd.add_sample("odd", {"value": repr(value), "hostile": 'a"b\\c\nd'}, value)
    families = [*a_collector(store, queue, rubrics=load_rubrics()).collect(), *a_busy_worker().collect(), odd]
    families = list({family.name: family for family in families}.values())
    ours, content_type = encode(families, openmetrics=openmetrics)
    encoder, their_type = choose_encoder("application/openmetrics-text; version=1.0.0" if openmetrics else "")
    theirs = encoder(SimpleNamespace(collect=lambda: families))
    assert their_type.startswith(content_type)
    got, expected = Exposition.read(ours), Exposition.read(theirs)
    assert got.samples == expected.samples
    assert {f.name: (f.type, f.documentation) for f in got.families.values()} == {
        f.name: (f.type, f.documentation) for f in expected.families.values()
    }
    assert any(sample.exemplar for sample in got.samples.values()) is openmetrics


@pytest.mark.parametrize("openmetrics", [True, False])
def test_no_value_is_nan(store: Store, collector: ScoreCollector, *, openmetrics: bool) -> None:
    fill(store)
    calibrated(store)
    for sample in Exposition.of(collector.collect(), openmetrics=openmetrics).samples.values():
        assert math.isfinite(sample.value), sample


def test_promtool_finds_nothing_to_mend(store: Store, queue: ScriptedQueue) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        missing("promtool")
    fill(store)
    calibrated(store)
    queue.counted = {"accepted": 9, '["shop","taken"]': 9, '["shop","dropped:buffer_full"]': 1}
    exporter = a_collector(store, queue, rubrics=load_rubrics())
    for source in (exporter, a_busy_worker()):
        body, _ = encode(source.collect(), openmetrics=False)
        done = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ("application/openmetrics-text", True),
        # Prometheus 2.42, then 3
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            True,
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=1.0.0;q=0.3,*/*;q=0.2",
            True,
        ),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited", False),
        ("application/openmetrics-text;version=2.0.0,text/plain;version=0.0.4;q=0.5", False),
        ("application/openmetrics-text;version=bogus", False),
        ("application/openmetrics-text;q=0", False),
        (";;;=,=;,application/openmetrics-text;;version=1.0.0", True),
    ],
)
def test_the_accept_header_decides_the_format(accept: str, *, openmetrics: bool) -> None:
    assert wants_openmetrics(accept) is openmetrics


def test_content_types(collector: ScoreCollector) -> None:
    body, content_type = encode(collector.collect(), openmetrics=True)
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert body.endswith(b"# EOF\n")
    body, content_type = encode(collector.collect(), openmetrics=False)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b"# EOF" not in body


# -- a worker


def a_busy_worker() -> WorkerMetrics:
    """A worker that has done some of everything."""
    metrics = WorkerMetrics()
    metrics.judge("openai:m", "f" * 64)
    metrics.call_started("openai:m")
    metrics.call_started("openai:m")
    metrics.circuit("openai:m", is_open=True)
    used = Usage(prompt_tokens=1000, completion_tokens=100, cost_usd=0.25, cached_prompt_tokens=640)
    metrics.call_ended("openai:m", 0.3, "ok", used, TRACE)
    metrics.call_started("local:m")
    metrics.call_ended("local:m", 3.0, "rate_limited", Usage(prompt_tokens=5), None)
    metrics.batch("done")
    metrics.retry("rate_limited")
    metrics.reused("openai:m")
    metrics.repeated("openai:m", "ok")
    metrics.repeated("openai:m", "budget")
    metrics.lag(12.5, TRACE)
    metrics.commit(0.004)
    return metrics


def test_what_a_worker_did() -> None:
    got = Exposition.of(a_busy_worker().collect())
    assert got.value("assay_judge_in_flight", judge="openai:m") == 1
    assert got.value("assay_judge_in_flight", judge="local:m") == 0
    assert got.value("assay_judge_request_seconds_count", judge="openai:m", outcome="ok") == 1
    assert got.value("assay_judge_request_seconds_sum", judge="local:m", outcome="rate_limited") == 3.0
    assert got.value("assay_judge_tokens_total", judge="openai:m", direction="prompt") == 1000
    assert got.value("assay_judge_tokens_total", judge="openai:m", direction="completion") == 100
    assert got.value("assay_judge_cached_tokens_total", judge="openai:m") == 640
    assert got.value("assay_judge_cached_tokens_total", judge="local:m") is None
    assert got.value("assay_judge_cost_usd_total", judge="openai:m") == 0.25
    assert got.value("assay_judge_cost_usd_total", judge="local:m") is None
    assert got.value("assay_judge_unpriced_calls_total", judge="local:m") == 1
    assert got.value("assay_judge_unpriced_calls_total", judge="openai:m") is None
    assert got.value("assay_judge_info", judge="openai:m", judge_fingerprint="f" * 64) == 1
    assert got.value("assay_judge_repeats_total", judge="openai:m", outcome="ok") == 1
    assert got.value("assay_judge_repeats_total", judge="openai:m", outcome="budget") == 1
    assert got.value("assay_judge_circuit_open", judge="openai:m") == 1
    assert got.value("assay_batches_total", outcome="done") == 1
    assert got.value("assay_retries_total", kind="rate_limited") == 1
    assert got.value("assay_score_lag_seconds_sum") == 12.5
    assert got.value("assay_commit_seconds_count") == 1
    assert got.sum("assay_build_info") == 1
    assert got.value("process_resident_memory_bytes") > 0


def test_a_worker_has_exemplars_and_no_creation_times() -> None:
    got = Exposition.of(a_busy_worker().collect())
    exemplars = {s.name: (s.labels["le"], s.exemplar.labels) for s in got.samples.values() if s.exemplar}
    assert exemplars == {
        "assay_judge_request_seconds_bucket": ("0.5", {"trace_id": TRACE}),
        "assay_score_lag_seconds_bucket": ("30.0", {"trace_id": TRACE}),
    }
    assert not [name for name in got.names() if name.endswith("_created")]


@pytest.mark.parametrize(
    "usage",
    [
        Usage(),
        Usage(prompt_tokens=-5, completion_tokens=-1, cost_usd=-0.5, cached_prompt_tokens=-3),
        Usage(prompt_tokens=0, completion_tokens=0, cost_usd=0.0),
        Usage(cost_usd=math.nan),
        Usage(cost_usd=math.inf),
    ],
)
def test_a_counter_only_grows_whatever_an_endpoint_says_it_used(usage: Usage) -> None:
    metrics = WorkerMetrics()
    metrics.call_started("j")
    metrics.call_ended("j", 0.1, "ok", usage, None)
    got = Exposition.of(metrics.collect())
    assert got.sum("assay_judge_tokens_total") == 0
    assert got.sum("assay_judge_cached_tokens_total") == 0
    assert got.sum("assay_judge_cost_usd_total") == 0
    assert got.sum("assay_judge_unpriced_calls_total") == 0


def test_clocks_that_disagree_do_not_make_times_negative() -> None:
    metrics = WorkerMetrics()
    metrics.lag(-30.0)
    metrics.commit(-0.1)
    metrics.call_ended("j", -1.0, "ok", Usage(), None)
    got = Exposition.of(metrics.collect())
    for name in ("assay_score_lag_seconds_sum", "assay_commit_seconds_sum", "assay_judge_request_seconds_sum"):
        assert got.sum(name) == 0


@pytest.mark.parametrize("trace_id", ["", "t" * 65, "t" * 10_000, "line\nbreak", "lone \ud800"])
def test_an_odd_trace_id_does_not_fail_the_work(trace_id: str) -> None:
    metrics = WorkerMetrics()
    metrics.lag(1.0, trace_id)
    metrics.call_ended("j", 1.0, "ok", Usage(), trace_id)
    assert Exposition.of(metrics.collect()).value("assay_score_lag_seconds_count") == 1


def test_workers_in_one_process_do_not_share_counters() -> None:
    first, second = WorkerMetrics(), WorkerMetrics()
    first.batch("done")
    assert Exposition.of(second.collect()).sum("assay_batches_total") == 0


def test_the_collector_and_the_parser_agree_on_random_data(store: Store, collector: ScoreCollector) -> None:
    """The pass ratio, end to end, on a hundred records with random weights and outcomes."""
    rng = random.Random(5)
    rows = [(rng.choice([1.0, 0.5, 0.01]), rng.random()) for _ in range(100)]
    commit(store, *((a_record(seconds=ago(rng.random() * 280), probability=p), y) for p, y in rows))
    got = Exposition.of(collector.collect())
    weight = sum(1 / p for p, _ in rows)
    assert got.value("assay_pass_ratio", window="5m") == pytest.approx(sum((y >= 0.5) / p for p, y in rows) / weight)
    assert got.value("assay_score_mean", window="5m") == pytest.approx(sum(y / p for p, y in rows) / weight)
    assert got.value("assay_pass_ratio_unweighted", window="5m") == sum(y >= 0.5 for _, y in rows) / 100


def test_what_is_owed_to_sinks_is_published(store: Store, queue: ScriptedQueue) -> None:
    with_outbox(store)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in a_collector(store, queue).collect()
        if "outbox" in family.name or "sink" in family.name
        for sample in family.samples
    }
    oldest = found.pop(("assay_outbox_oldest_seconds", "phoenix"))
    assert oldest >= 0
    assert found == {
        ("assay_outbox_waiting", "phoenix"): 1,
        ("assay_outbox_rejected", "phoenix"): 1,
        ("assay_sink_writes_total", "phoenix", "rejected"): 1,
    }
