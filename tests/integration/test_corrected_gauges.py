"""Corrected gauges: scores and calibrations in a store, and what the exporter makes of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.calibration import LEVELS, Calibration, correct, error_rates
from assay.corrections import Place, is_fresh
from assay.exporter import serve
from assay.judges import JudgeSettings
from assay.metrics import ScoreCollector, encode
from assay.pipeline import Judges, evaluate
from assay.queue import QueueDepth
from assay.records import Record, now
from assay.rubrics import load_rubrics
from assay.store import RubricVersion, Store
from assay.windows import Sums, pass_ratio, window_bounds
from calibrations import FEW, GOOD, TOO_FEW, WEAK, a_calibration, labels_of
from exposition import Exposition
from stores import EPOCH, a_record, an_evaluation, with_payloads

pytestmark = pytest.mark.integration

NOW = EPOCH + 2.5 * 3600
STATES = ("ok", "too_wide", "stale", "no_calibration", "refused")
HOUR = {"window": "1h", "app": "shop"}


class EmptyQueue:
    """The parts of a Queue that a scrape reads."""

    def depth(self) -> QueueDepth:
        return QueueDepth(0, 0, None)

    def pending_records(self, since: float | None = None) -> int:
        return 0

    def counters(self) -> dict[str, int]:
        return {}

    def ping(self) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path}/scores.db", cohort_labels=["tier"]) as store:
        store.upgrade()
        yield store


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of either kind, for what the database has a say in."""
    url = f"sqlite:///{tmp_path}/scores.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    with Store(url, cohort_labels=["tier"]) as store:
        store.upgrade()
        yield store


def a_collector(store: Store, **options: Any) -> ScoreCollector:
    known = {"windows": ["1h"], "cohort_labels": ["tier"], "clock": lambda: NOW}
    return ScoreCollector(store, EmptyQueue(), **(known | options))  # type: ignore[arg-type]


def scrape(collector: ScoreCollector) -> Exposition:
    return Exposition.of(collector.collect())


def score(store: Store, passes: int, fails: int, *, minutes_ago: float = 30, **fields: Any) -> None:
    """Score records of half an hour ago, unless told otherwise."""
    measured = {
        key: fields.pop(key) for key in ("rubric_version", "rubric_hash", "judge", "judge_fingerprint") if key in fields
    }
    records = [a_record(seconds=NOW - EPOCH - 60 * minutes_ago, **fields) for _ in range(passes + fails)]
    evaluations = [an_evaluation(record, float(index < passes), **measured) for index, record in enumerate(records)]
    store.commit(with_payloads(records), evaluations)


def state(seen: Exposition, prefix: str = "assay_", **labels: str) -> str | None:
    """The one state that is 1; each of the others is there and is 0."""
    values = {name: seen.value(f"{prefix}calibration_state", state=name, **(HOUR | labels)) for name in STATES}
    if set(values.values()) == {None}:
        return None
    assert sorted(values.values()) == [0, 0, 0, 0, 1], values  # type: ignore[type-var]
    return next(name for name, value in values.items() if value == 1)


def info(seen: Exposition, prefix: str = "assay_", **labels: str) -> tuple[str, str]:
    """(method, reason)"""
    (sample,) = seen.find(f"{prefix}correction_info", **(HOUR | labels))
    return sample.labels["method"], sample.labels["reason"]


CORRECTED = ("", "_ci_lower", "_ci_upper", "_window_ci_lower", "_window_ci_upper")


def corrected(seen: Exposition, prefix: str = "assay_", **labels: str) -> dict[str, float | None]:
    return {end: seen.value(f"{prefix}pass_ratio_corrected{end}", **(HOUR | labels)) for end in CORRECTED}


# -- the whole path


def test_from_labels_to_the_corrected_gauge_without_a_restart(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/scores.db"
    answers = {
        True: "You can return an order for item {n} within 30 days of delivery; the refund takes 5 business days.",
        False: "I'm sorry, but I cannot help with number {n}.",
    }
    people = [n % 4 > 0 for n in range(160)]
    records = [
        Record(
            record_id=f"r{n}",
            timestamp=now() - timedelta(minutes=5),
            app="shop",
            input=f"How do I return an order for item {n}, and how long does the refund take?",
            output=answers[good].format(n=n),
        )
        for n, good in enumerate(people)
    ]
    labels = tmp_path / "labels.jsonl"
    header = {"label_file": 1, "rubric": "relevance", "annotators": "author", "synthetic": True, "selection": "curated"}
    lines = [header] + [
        {
            "record": json.loads(record.to_json()),
            "labels": {"author": "pass" if good else "fail"},
            "cluster": record.record_id,
        }
        for record, good in zip(records, people, strict=True)
    ]
    labels.write_text("\n".join(map(json.dumps, lines)) + "\n")
    (rubric,) = [rubric for rubric in load_rubrics() if rubric.name == "relevance"]
    judges = Judges.build([rubric], JudgeSettings(engine="lexical"))

    async def judged() -> list[Any]:
        return [evaluation for record in records for evaluation in await evaluate(record, [rubric], judges)]

    with Store(database) as store:
        store.upgrade()
        store.commit(with_payloads(records), asyncio.run(judged()))
        collector = ScoreCollector(store, EmptyQueue(), windows=["1h"], rubrics=[rubric])  # type: ignore[arg-type]
        with serve(collector, port=0) as server:

            def seen() -> Exposition:
                time.sleep(1.1)  # scrapes within a second share one read
                with urllib.request.urlopen(f"{server.url}/metrics") as answer:
                    return Exposition.read(answer.read())

            before = seen()
            assert state(before) == "no_calibration"
            assert info(before) == ("none", "no_calibration")
            assert set(corrected(before).values()) == {None}
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("ASSAY_", "OPENAI_"))}
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "assay",
                    "calibrate",
                    str(labels),
                    "--rubric",
                    "relevance",
                    "--judge",
                    "lexical",
                ],
                env=environment | {"ASSAY_DATABASE_URL": database, "ASSAY_DATA_DIR": str(tmp_path)},
                capture_output=True,
                text=True,
                cwd=tmp_path,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            after = seen()
        (stored,) = store.calibrations()
    made = Calibration.from_json(stored.body)
    assert made.apps == ("shop",)
    assert made.recorded_from == min(record.timestamp for record in records)
    assert state(after) == "ok"
    assert info(after) == ("rogan_gladen", "")
    found = corrected(after)
    assert found["_ci_lower"] < found[""] < found["_ci_upper"]  # type: ignore[operator]
    assert found["_ci_lower"] <= 0.75 <= found["_ci_upper"]  # type: ignore[operator]
    assert after.value("assay_calibration_level", rubric="relevance", level=made.level) == 1
    (described,) = after.find("assay_calibration_info")
    assert described.labels["rubric_hash"] == rubric.hash
    assert described.labels["calibration"] == made.calibration_id
    assert (described.labels["annotators"], described.labels["synthetic"]) == ("author", "true")


# -- which calibration counts


def test_the_gauge_says_what_the_rule_says(either: Store) -> None:
    score(either, 240, 60, cohort={"tier": "gold"})
    made = a_calibration(GOOD)
    either.save_calibration(made)
    seen = scrape(a_collector(either))
    window = sum((Sums.of(weight=1.0, value=float(n < 240), passed=n < 240) for n in range(300)), Sums())
    expected = correct(window, made.rates)
    assert expected.estimate is not None
    assert state(seen, tier="gold") == expected.state == "ok"
    for prefix, tier in (("assay_", "gold"), ("assay_app_", "")):
        assert corrected(seen, prefix, tier=tier) == pytest.approx(
            {
                "": expected.estimate.value,
                "_ci_lower": expected.estimate.lower,
                "_ci_upper": expected.estimate.upper,
                "_window_ci_lower": expected.window_lower,
                "_window_ci_upper": expected.window_upper,
            }
        )
        assert info(seen, prefix, tier=tier) == ("rogan_gladen", "")
    # The raw gauge stands beside it, untouched.
    raw = pass_ratio(window)
    assert raw is not None
    assert seen.value("assay_pass_ratio", **HOUR, tier="gold") == raw.value
    found = corrected(seen, tier="gold")
    assert found["_ci_lower"] < found["_window_ci_lower"] < found[""] < found["_window_ci_upper"] < found["_ci_upper"]  # type: ignore[operator]


@pytest.mark.parametrize("other", [{"judge_fingerprint": "e" * 64}, {"rubric_hash": "1" * 64}])
def test_a_calibration_of_another_judge_or_question_is_never_used(store: Store, other: dict[str, str]) -> None:
    score(store, 240, 60)
    store.save_calibration(a_calibration(GOOD, **other))
    seen = scrape(a_collector(store))
    assert state(seen) == "no_calibration"
    assert info(seen) == ("none", "no_calibration")
    assert set(corrected(seen).values()) == {None}
    assert list(seen.find("assay_calibration_info")) == []


def test_a_calibration_saved_while_the_exporter_runs_shows_at_its_next_scrape(either: Store) -> None:
    score(either, 240, 60)
    collector = a_collector(either)
    assert state(scrape(collector)) == "no_calibration"
    either.save_calibration(a_calibration(WEAK))
    assert info(scrape(collector)) == ("none", "weak_judge")
    made = a_calibration(GOOD)
    either.save_calibration(made)
    seen = scrape(collector)
    assert state(seen) == "ok"
    # The older one again, which is the latest now.
    either.save_calibration(a_calibration(WEAK))
    assert state(scrape(collector)) == "no_calibration"
    either.save_calibration(made)
    either.mark_calibration_stale(made.calibration_id, "labels less predictions: +6 points")
    stale = scrape(collector)
    assert (state(stale), info(stale)) == ("stale", ("rogan_gladen", "failed_audit"))
    assert corrected(stale) == corrected(seen), "greyed, not hidden: people still look at it"


def test_two_judges_of_one_name_in_one_window_are_not_corrected(either: Store) -> None:
    # The temperature was changed: the labels are the same, the fingerprint is not.
    either.save_calibration(a_calibration(GOOD))
    score(either, 240, 60, minutes_ago=20)
    score(either, 1, 0, minutes_ago=40, judge_fingerprint="e" * 64)
    seen = scrape(a_collector(either))
    assert (state(seen), info(seen)) == ("refused", ("none", "mixed_judges"))
    assert set(corrected(seen).values()) == {None}
    assert seen.value("assay_window_records", **HOUR) == 301
    # Once the old one has left the window it is.
    assert state(scrape(a_collector(either, clock=lambda: NOW + 25 * 60))) == "ok"


def test_versions_of_a_rubric_are_corrected_each_by_its_own(store: Store) -> None:
    store.save_calibration(a_calibration(GOOD))
    score(store, 240, 60)
    score(store, 240, 60, rubric_version="2-11111111", rubric_hash="1" * 64)
    seen = scrape(a_collector(store))
    assert state(seen, rubric_version="1-0a1b2c3d") == "ok"
    assert state(seen, rubric_version="2-11111111") == "no_calibration"


# -- where it refuses


@pytest.mark.parametrize(
    ("counts", "window", "expected"),
    [
        (GOOD, (240, 60), ("ok", "rogan_gladen", "")),
        (GOOD, (20, 5), ("refused", "none", "small_window")),
        (GOOD, (30, 10), ("too_wide", "rogan_gladen", "wide_interval")),
        (TOO_FEW, (240, 60), ("no_calibration", "none", "few_labels")),
        (WEAK, (240, 60), ("no_calibration", "none", "weak_judge")),
        (FEW, (240, 60), ("too_wide", "rogan_gladen", "wide_interval")),
        (None, (240, 60), ("no_calibration", "none", "no_calibration")),
        (None, (3, 1), ("no_calibration", "none", "no_calibration")),
    ],
)
def test_a_state_and_its_reason(
    store: Store, counts: tuple[int, ...] | None, window: tuple[int, int], expected: tuple[str, str, str]
) -> None:
    score(store, *window)
    if counts is not None:
        store.save_calibration(a_calibration(counts))
    seen = scrape(a_collector(store))
    assert (state(seen), *info(seen)) == expected
    shown = [value is not None for value in corrected(seen).values()]
    assert shown == [expected[1] != "none"] * 5


def test_what_the_calibration_cannot_explain_is_refused(store: Store) -> None:
    # This judge fails a tenth of what people pass: one that passes everything has become another.
    people, judge = labels_of((900, 100, 10, 990))
    rates = error_rates(people, judge, selection="curated")
    store.save_calibration(replace(a_calibration(GOOD), rates=rates, n=rates.n))
    score(store, 3000, 0)
    seen = scrape(a_collector(store))
    assert (state(seen), info(seen)) == ("refused", ("none", "judge_changed"))
    assert set(corrected(seen).values()) == {None}


def test_an_empty_window_has_neither_a_gauge_nor_a_state(store: Store) -> None:
    store.save_calibration(a_calibration(GOOD))
    score(store, 240, 60, minutes_ago=90)
    seen = scrape(a_collector(store, windows=["1h", "24h"]))
    assert state(seen) is None
    assert list(seen.find("assay_correction_info", **HOUR)) == []
    assert seen.value("assay_pass_ratio_corrected", app="shop", window="24h") is not None


def test_an_unreadable_calibration_counts_as_none(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    made = a_calibration(GOOD)

    class Forged:
        def __getattr__(self, name: str) -> Any:
            return getattr(made, name)

        def to_json(self) -> str:
            return made.to_json().replace('"level": "calibrated"', '"level": "human_like"')

    store.save_calibration(Forged())  # type: ignore[arg-type]
    score(store, 240, 60)
    collector = a_collector(store)
    assert state(scrape(collector)) == "no_calibration"
    assert state(scrape(collector)) == "no_calibration"
    assert len([record for record in caplog.records if "cannot be used" in record.message]) == 1, "said once"


# -- fresh labels


def fresh(**fields: Any) -> Calibration:
    """By labels of the last hour's own traffic, picked by known probabilities."""
    known = {
        "selection": "probability",
        "synthetic": False,
        "annotator_kind": "human",
        "apps": ("shop",),
        "recorded_from": datetime.fromtimestamp(NOW - 3300, UTC),
        "recorded_to": datetime.fromtimestamp(NOW - 600, UTC),
    }
    return a_calibration(GOOD, **(known | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"selection": "curated"},
        {"synthetic": True},
        {"apps": ("shop", "web")},
        {"apps": ("web",)},
        {"apps": ()},
        {"recorded_from": None},
        {"recorded_from": datetime.fromtimestamp(NOW - 3 * 3600, UTC)},
        {"recorded_to": datetime.fromtimestamp(NOW + 3600, UTC)},
        # All of one quarter of an hour: they say nothing of the rest.
        {"recorded_from": datetime.fromtimestamp(NOW - 1500, UTC)},
    ],
)
def test_only_a_probability_sample_of_the_windows_own_traffic_is_post_stratified(
    store: Store, fields: dict[str, Any]
) -> None:
    score(store, 240, 60)
    store.save_calibration(fresh())
    assert info(scrape(a_collector(store)), "assay_app_") == ("post_stratified", "")
    store.save_calibration(fresh(**fields))
    assert info(scrape(a_collector(store)), "assay_app_") == ("rogan_gladen", "")


def test_a_cohort_is_not_corrected_by_labels_of_the_whole_app(store: Store) -> None:
    score(store, 240, 60, cohort={"tier": "gold"})
    store.save_calibration(fresh())
    seen = scrape(a_collector(store))
    assert info(seen, "assay_app_") == ("post_stratified", "")
    assert info(seen, tier="gold") == ("rogan_gladen", "")


def test_without_cohort_labels_a_label_set_is_the_app(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/scores.db") as store:
        store.upgrade()
        score(store, 240, 60)
        store.save_calibration(fresh())
        seen = scrape(a_collector(store, cohort_labels=[]))
    assert info(seen) == info(seen, "assay_app_") == ("post_stratified", "")
    assert corrected(seen) == corrected(seen, "assay_app_")


def test_the_same_window_gives_the_same_digits_at_every_scrape_and_in_every_exporter(store: Store) -> None:
    score(store, 240, 60)
    store.save_calibration(fresh())
    first, other = a_collector(store), a_collector(store)
    found = corrected(scrape(first), "assay_app_")
    assert corrected(scrape(first), "assay_app_") == found
    assert corrected(scrape(other), "assay_app_") == found
    score(store, 1, 0)
    assert corrected(scrape(first), "assay_app_") != found


def test_fresh_is_told_by_the_window_alone() -> None:
    made = fresh()
    start, end = window_bounds(NOW, 3600)
    place = Place(app="shop", is_whole_app=True, start=start, end=end)
    assert is_fresh(made, place)
    assert not is_fresh(made, replace(place, is_whole_app=False))
    assert not is_fresh(made, replace(place, app="web"))
    # An hour later the labels are of another window.
    assert not is_fresh(made, replace(place, start=start + 3600, end=end + 3600))
    # Of a day they are too small a part.
    assert not is_fresh(made, replace(place, start=start - 23 * 3600))


# -- what is known of the judge


def test_what_labels_say_of_the_judge(store: Store) -> None:
    score(store, 240, 60)
    made = a_calibration(GOOD)
    store.save_calibration(made)
    seen = scrape(a_collector(store))
    key = {"rubric": "relevance", "rubric_version": "1-0a1b2c3d", "judge": "lexical"}
    for name, statistic in (
        ("bias_ratio", made.bias),
        ("kappa", made.kappa),
        ("fail_recall", made.fail_recall),
        ("fail_precision", made.fail_precision),
        ("youden", made.youden),
    ):
        assert seen.value(f"assay_judge_{name}", **key) == statistic.value
        assert seen.value(f"assay_judge_{name}_ci_lower", **key) == statistic.lower
        assert seen.value(f"assay_judge_{name}_ci_upper", **key) == statistic.upper
    assert {level: seen.value("assay_calibration_level", **key, level=level) for level in LEVELS} == {
        level: float(level == "calibrated") for level in LEVELS
    }
    assert seen.value("assay_calibration_labels", **key, **{"class": "pass"}) == 90
    assert seen.value("assay_calibration_labels", **key, **{"class": "fail"}) == 40
    assert made.labelled_to is not None
    assert seen.value("assay_calibration_age_seconds", **key) == NOW - made.labelled_to.timestamp()


def test_labels_without_a_date_are_as_old_as_the_calibration(store: Store) -> None:
    score(store, 240, 60)
    store.save_calibration(a_calibration(GOOD, labelled_to=None, created_at=datetime.fromtimestamp(NOW - 100, UTC)))
    assert scrape(a_collector(store)).value("assay_calibration_age_seconds", rubric="relevance") == 100


def test_what_is_undefined_has_no_sample(store: Store) -> None:
    score(store, 240, 60)
    store.save_calibration(a_calibration((40, 5, 0, 0)))
    seen = scrape(a_collector(store))
    assert seen.value("assay_judge_youden", rubric="relevance") is None
    assert seen.value("assay_judge_fail_recall", rubric="relevance") is None
    assert b"NaN" not in encode(a_collector(store).collect(), openmetrics=False)[0]


def test_calibrations_that_nobody_uses_are_not_published(either: Store) -> None:
    # As a rubric is tuned, every edit leaves one behind.
    score(either, 240, 60)
    for n in range(5):
        either.save_calibration(a_calibration(GOOD, rubric_hash=f"{n}" * 64, rubric_version=f"{n}-{n}{n}"))
    either.save_calibration(a_calibration(GOOD))
    waiting = RubricVersion(
        rubric="relevance",
        rubric_version="3-33",
        rubric_hash="3" * 64,
        judge="lexical",
        judge_fingerprint="f" * 64,
        body=json.dumps({"title": "Relevance", "pass_threshold": 0.6, "objective": 0.9}),
        state="waiting",
        reason="its calibration is trend_only",
    )
    either.place_rubric(replace(waiting, rubric_version="1-11", rubric_hash="1" * 64, state="active"))
    either.place_rubric(replace(waiting, rubric_version="2-22", rubric_hash="2" * 64, state="active"))
    either.place_rubric(waiting)
    seen = scrape(a_collector(either, rubrics=load_rubrics()))
    shown = {sample.labels["rubric_version"] for sample in seen.find("assay_calibration_info")}
    assert shown == {"1-0a1b2c3d", "2-22", "3-33"}
    states = {
        (sample.labels["rubric_version"], sample.labels["state"])
        for sample in seen.find("assay_rubric_state")
        if sample.value
    }
    assert states == {("2-22", "active"), ("3-33", "waiting")}
    assert seen.value("assay_rubric_state", rubric_version="3-33", state="active") == 0
    # What a rule compares a version with is there for the versions of the workers, too.
    assert seen.value("assay_objective_ratio", rubric="relevance", rubric_version="3-33") == 0.9
    assert seen.value("assay_pass_threshold_ratio", rubric="relevance", rubric_version="2-22") == 0.6
    assert [s.labels["title"] for s in seen.find("assay_rubric_info", rubric_version="3-33")] == ["Relevance"]


def test_judges_of_one_name_show_the_newest_calibration(store: Store) -> None:
    score(store, 240, 60)
    score(store, 240, 60, judge_fingerprint="e" * 64, minutes_ago=50)
    later = datetime(2026, 6, 1, tzinfo=UTC)
    store.save_calibration(a_calibration(GOOD, created_at=later))
    store.save_calibration(a_calibration(FEW, judge_fingerprint="e" * 64))
    seen = scrape(a_collector(store))
    assert [sample.labels["judge_fingerprint"] for sample in seen.find("assay_calibration_info")] == ["f" * 64]
    assert seen.value("assay_calibration_labels", rubric="relevance", **{"class": "pass"}) == 90


def test_a_judge_that_waits_under_the_labels_of_the_active_one_leaves_its_gauges_alone(either: Store) -> None:
    # Another temperature: name and rubric are the same, the fingerprint is not. The bridge scores some with it.
    active = RubricVersion(
        rubric="relevance",
        rubric_version="1-0a1b2c3d",
        rubric_hash="0a1b2c3d" * 8,
        judge="lexical",
        judge_fingerprint="f" * 64,
        body="{}",
        state="active",
        reason="synthetic",
    )
    either.place_rubric(active)
    either.save_calibration(a_calibration(GOOD))
    score(either, 240, 60)
    either.place_rubric(replace(active, judge_fingerprint="e" * 64, state="waiting"))
    either.save_calibration(a_calibration(FEW, judge_fingerprint="e" * 64, created_at=datetime(2026, 6, 1, tzinfo=UTC)))
    score(either, 0, 15, minutes_ago=20, judge_fingerprint="e" * 64)
    seen = scrape(a_collector(either))
    states = {sample.labels["state"]: sample.value for sample in seen.find("assay_rubric_state")}
    assert states == {"active": 1, "waiting": 0}
    for prefix in ("assay_", "assay_app_"):
        assert seen.value(f"{prefix}window_records", **HOUR) == 300
        assert seen.value(f"{prefix}pass_ratio", **HOUR) == 0.8
        assert state(seen, prefix) == "ok"
    assert [sample.labels["judge_fingerprint"] for sample in seen.find("assay_calibration_info")] == ["f" * 64]


# -- coverage


REPETITIONS, WINDOW, LABELS = 600, 60, 200
SENSITIVITY, SPECIFICITY, TRUTH = 0.80, 0.90, 0.90


def judged(rng: np.random.Generator, people: np.ndarray) -> np.ndarray:
    chance = np.where(people == 1.0, SENSITIVITY, 1 - SPECIFICITY)
    return (rng.random(len(people)) < chance).astype(float)


@pytest.mark.parametrize("method", ["rogan_gladen", "post_stratified"])
def test_the_gauges_cover_the_truth_as_often_as_they_say(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every repetition is an app with an instrument, labels and a window of its own; one scrape reads them all."""
    rng = np.random.default_rng(20260301)
    template = fresh() if method == "post_stratified" else a_calibration(GOOD)
    with Store(f"sqlite:///{tmp_path}/scores.db", max_series=10_000) as store:
        store.upgrade()
        # The last but one hour had the truth of the labels; Rogan-Gladen has to stand a drop since then.
        truth = TRUTH if method == "post_stratified" else TRUTH - 0.10
        for first in range(0, REPETITIONS, 20):
            records, evaluations = [], []
            for number in range(first, min(first + 20, REPETITIONS)):
                instrument = {"rubric_version": f"1-{number}", "rubric_hash": f"{number:064x}"}
                people = (rng.random(LABELS) < TRUTH).astype(float)
                rates = error_rates(people, judged(rng, people), selection=template.selection)
                app = f"app-{number}"
                made = replace(template, rates=rates, n=rates.n, **instrument)
                store.save_calibration(replace(made, apps=(app,)) if made.apps else made)
                verdicts = judged(rng, (rng.random(WINDOW) < truth).astype(float))
                for n, value in enumerate(verdicts):
                    record = a_record(f"{number}-{n}", seconds=NOW - EPOCH - 1800, app=app)
                    records.append(record)
                    evaluations.append(an_evaluation(record, float(value), **instrument))
            store.commit(with_payloads(records), evaluations)
        seen = Exposition.of(a_collector(store, cohort_labels=[]).collect())
    gauges: dict[str, dict[str, float]] = defaultdict(dict)
    for sample in seen.samples.values():
        if sample.labels.get("window") == "1h" and sample.name.startswith("assay_app_"):
            gauges[sample.labels["app"]][sample.name.removeprefix("assay_app_")] = sample.value
            if sample.name == "assay_app_correction_info":
                assert sample.labels["method"] in (method, "none")
    shown = [gauge for gauge in gauges.values() if "pass_ratio_corrected" in gauge]

    def covering(name: str) -> float:
        return sum(gauge[f"{name}_ci_lower"] <= truth <= gauge[f"{name}_ci_upper"] for gauge in shown) / len(shown)

    covered, naive = covering("pass_ratio_corrected"), covering("pass_ratio")
    with capsys.disabled():
        print(f"\n{method}: {len(shown)} gauges at nominal 95 % cover {covered:.1%}, uncorrected {naive:.1%}")
    # Labels with too few fails, or that leave the judge in doubt, allow none.
    assert len(shown) > 0.94 * REPETITIONS
    assert 0.93 <= covered <= 0.97
    assert naive < covered / 2
