"""The series of detectors, verdicts and canaries, as a scrape shows them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from assay.changes import ChangePolicy, watch
from assay.metrics._changes import add_changes
from assay.metrics._families import Families
from assay.store import CanaryRun, InstrumentName, RubricVersion, Store, VersionState
from assay.verdicts import settle_verdicts
from stores import EPOCH, HOUR_START, a_record, an_evaluation, commit, with_payloads

POLICY = ChangePolicy(reference_records=200, settle_seconds=0, false_alarm_days=1)
NAME = InstrumentName("relevance", "1-0a1b2c3d", "0a1b2c3d" * 8, "lexical", "f" * 64)
OWN = {"app": "shop", "rubric": "relevance", "rubric_version": "1-0a1b2c3d", "judge": "lexical"}
JUDGE = {name: OWN[name] for name in ("rubric", "rubric_version", "judge")}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path}/scores.db", cohort_labels=["route"]) as store:
        store.upgrade()
        yield store


def scrape(store: Store, now: float = EPOCH) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = Families(["route"])
    add_changes(families, store, ["route"], store.rubric_versions(retired=False), now)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.families()
        for sample in family.samples
    }


def value(store: Store, name: str, now: float = EPOCH, **labels: str) -> float | None:
    return scrape(store, now).get((name, tuple(sorted(labels.items()))))


def served(store: Store, n: int, rate: float, start: int = 0, *, fingerprint: str = "f" * 64) -> None:
    passes = np.random.default_rng(start).random(n) < rate
    records = [a_record(f"{fingerprint[0]}{start + i}", seconds=6.0 * (start + i)) for i in range(n)]
    evaluations = [
        an_evaluation(r, float(p), judge_fingerprint=fingerprint) for r, p in zip(records, passes, strict=True)
    ]
    store.commit(with_payloads(records), evaluations)


def look(store: Store, seconds: float) -> None:
    watch(store, [], POLICY, clock=lambda: HOUR_START + timedelta(seconds=seconds + 60))


def test_nothing_is_shown_before_there_is_something(store: Store) -> None:
    assert scrape(store) == {}


def test_a_detector_that_learns_has_counters_and_no_evidence(store: Store) -> None:
    served(store, 100, 0.9)
    look(store, 600)
    labels = {**OWN, "route": ""}
    shown = {name for name, _ in scrape(store)}
    assert not shown & {"assay_change_evidence", "assay_change_threshold", "assay_change_reference_ratio"}
    assert value(store, "assay_change_records_total", **labels) == 100
    assert value(store, "assay_change_late_records_total", **labels) == 0
    assert value(store, "assay_change_alarm", **labels) == 0
    assert value(store, "assay_change_position_timestamp_seconds") == EPOCH + 660


def test_an_alarm_is_1_until_it_is_over(store: Store) -> None:
    labels = {**OWN, "route": ""}
    served(store, 500, 0.97)
    look(store, 3000)
    assert value(store, "assay_change_alarm", **labels) == 0
    assert 0.9 < (value(store, "assay_change_reference_ratio", **labels) or 0) < 0.97
    served(store, 200, 0.5, 520)
    look(store, 4320)
    evidence, threshold = (value(store, f"assay_change_{name}", **labels) for name in ("evidence", "threshold"))
    assert evidence is not None
    assert threshold is not None
    assert evidence >= threshold
    assert value(store, "assay_change_alarm", **labels) == 1
    assert value(store, "assay_drift_verdict", **JUDGE, verdict="unknown") == 1
    (event,) = store.change_events(open_only=True)
    store.acknowledge_change(event, accept=True)
    settle_verdicts(store)
    assert value(store, "assay_change_alarm", **labels) == 0
    assert value(store, "assay_change_evidence", **labels) is None
    assert value(store, "assay_drift_verdict", **JUDGE, verdict="none") == 1


def test_verdicts_are_one_hot(store: Store) -> None:
    served(store, 100, 0.9)
    look(store, 600)
    verdicts = {
        v: value(store, "assay_drift_verdict", **JUDGE, verdict=v) for v in ("none", "product", "judge", "unknown")
    }
    assert verdicts == {"none": 1, "product": 0, "judge": 0, "unknown": 0}


def test_two_judges_of_one_name_share_the_labels_and_the_one_that_scored_last_is_meant(store: Store) -> None:
    labels = {**OWN, "route": ""}
    served(store, 300, 0.97)
    served(store, 100, 0.5, 320, fingerprint="e" * 64)
    look(store, 2520)
    assert value(store, "assay_change_records_total", **labels) == 400
    assert value(store, "assay_change_evidence", **labels) is None, "the newer one still learns"


def place(store: Store, fingerprint: str, state: VersionState) -> None:
    named = NAME._replace(judge_fingerprint=fingerprint)._asdict()
    store.place_rubric(RubricVersion(**named, body="{}", state=state, reason="synthetic"))


def test_a_judge_that_waits_under_the_labels_of_the_active_one_does_not_hide_its_alarm(store: Store) -> None:
    # Another temperature waits at its gate, and its share of the bridge keeps it the one that scored last.
    labels = {**OWN, "route": ""}
    place(store, "f" * 64, "active")
    served(store, 500, 0.97)
    look(store, 3000)
    place(store, "e" * 64, "waiting")
    served(store, 200, 0.5, 520)
    served(store, 40, 0.97, 700, fingerprint="e" * 64)
    store.save_canary(a_run(instrument=NAME._replace(judge_fingerprint="e" * 64)))
    look(store, 4500)
    settle_verdicts(store)
    assert value(store, "assay_change_alarm", **labels) == 1
    assert value(store, "assay_change_reference_ratio", **labels) is not None
    assert value(store, "assay_change_records_total", **labels) == 740, "a counter counts both"
    assert value(store, "assay_drift_verdict", **JUDGE, verdict="judge") == 0
    assert value(store, "assay_canary_difference", **JUDGE) is None


def test_a_judge_that_waits_under_labels_of_its_own_is_shown(store: Store) -> None:
    place(store, "f" * 64, "waiting")
    served(store, 500, 0.97)
    look(store, 3000)
    assert value(store, "assay_change_reference_ratio", **OWN, route="") is not None


def a_run(**fields: object) -> CanaryRun:
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    known: dict[str, object] = {
        "run_id": "c",
        "instrument": NAME,
        "trigger": "schedule",
        "started_at": moment,
        "finished_at": moment,
        "cause": "judge",
        "reason": "otherwise",
        "baseline": False,
        "repeats": 1,
        "scores": {"a": [1.0], "b": [0.0]},
        "passes": {"a": [1.0], "b": [0.0]},
        "items": 2,
        "compared": 2,
        "difference": -0.2,
        "lower": -0.3,
        "upper": -0.1,
    }
    return CanaryRun(**(known | fields))  # type: ignore[arg-type]


def test_a_canary_has_an_age_and_a_difference_with_its_interval(store: Store) -> None:
    commit(store, (a_record("r", seconds=1), 1.0))
    look(store, 60)
    store.save_canary(a_run())
    settle_verdicts(store)
    assert value(store, "assay_canary_age_seconds", EPOCH + 90.0, **JUDGE) == 90
    assert value(store, "assay_canary_records", **JUDGE) == 2
    found = [value(store, f"assay_canary_difference{end}", **JUDGE) for end in ("_ci_lower", "", "_ci_upper")]
    assert found == [-0.3, -0.2, -0.1]
    assert value(store, "assay_drift_verdict", **JUDGE, verdict="judge") == 1


def test_a_first_run_has_no_difference(store: Store) -> None:
    commit(store, (a_record("r", seconds=1), 1.0))
    look(store, 60)
    store.save_canary(a_run(cause="none", difference=None, lower=None, upper=None))
    assert value(store, "assay_canary_difference", **JUDGE) is None
    assert value(store, "assay_canary_age_seconds", **JUDGE) == 0


def test_what_is_used_no_more_is_not_shown(store: Store) -> None:
    store.save_canary(a_run())
    settle_verdicts(store)
    assert scrape(store) == {}
