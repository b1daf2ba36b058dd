"""The series of attacks on judges, out of a real store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from assay.metrics._attacks import add_attacks
from assay.metrics._families import Families
from assay.records import now
from assay.store import AttackCounts, AttackRun, Defences, InstrumentName, Store
from assay.windows import wilson

NAME = InstrumentName("safety", "1-aaaaaaaa", "a" * 64, "openai:m", "f" * 64)
OTHER = NAME._replace(judge_fingerprint="e" * 64)
LABELS = {"rubric": "safety", "rubric_version": "1-aaaaaaaa", "judge": "openai:m"}
MOMENT = now().replace(microsecond=0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path}/scores.db") as store:
        store.upgrade()
        yield store


def a_run(run_id: str, succeeded: int, *, days: float = 0, instrument: InstrumentName = NAME) -> AttackRun:
    on = {
        "base64": AttackCounts(succeeded=succeeded, resisted=10, failed=3),
        "denial": AttackCounts(broken=1, unbroken=2, no_base=4),
    }
    counts: dict[Defences, dict[str, AttackCounts]] = {"off": {"base64": AttackCounts(succeeded=20)}, "on": on}
    return AttackRun(
        run_id=run_id,
        instrument=instrument,
        attack_set="d" * 64,
        measured_at=MOMENT - timedelta(days=days),
        counts=counts,
    )


def shown(store: Store, *in_use: InstrumentName, **labels: str) -> dict[str, float]:
    families = Families([])
    add_attacks(families, store, {(name.rubric_hash, name.judge_fingerprint) for name in in_use}, MOMENT.timestamp())
    samples = [sample for family in families.families() for sample in family.samples]
    assert len({(sample.name, *sorted(sample.labels.items())) for sample in samples}) == len(samples)
    return {sample.name: sample.value for sample in samples if sample.labels == {**LABELS, **labels}}


def test_the_latest_run_is_shown_with_its_interval_and_what_came_of_each_attack(store: Store) -> None:
    store.save_attack_run(a_run("new", 5, days=2))
    store.save_attack_run(a_run("old", 1, days=9))
    assert [run.run_id for run in store.attack_runs()] == ["new"]
    lower, upper = wilson(5 / 15, 15)
    assert shown(store, NAME, defences="on") == {
        "assay_judge_attack_success_ratio": pytest.approx(5 / 15),
        "assay_judge_attack_success_ratio_ci_lower": pytest.approx(lower),
        "assay_judge_attack_success_ratio_ci_upper": pytest.approx(upper),
    }
    assert shown(store, NAME, defences="off")["assay_judge_attack_success_ratio"] == 1.0
    assert shown(store, NAME) == {"assay_judge_attack_age_seconds": 2 * 86_400}
    wanted = dict(succeeded=5, resisted=10, failed=3, broken=1, unbroken=2, no_base=4, not_judged=0)  # noqa: C408
    found = {name: shown(store, NAME, defences="on", outcome=name)["assay_judge_attacks"] for name in wanted}
    assert found == wanted


def test_what_is_not_in_use_is_not_shown_and_of_two_judges_of_one_name_the_later_run_is(store: Store) -> None:
    store.save_attack_run(a_run("mine", 5, days=2))
    store.save_attack_run(a_run("other", 0, days=1, instrument=OTHER))
    assert shown(store, defences="on") == {}
    assert shown(store, NAME, defences="on")["assay_judge_attack_success_ratio"] == pytest.approx(5 / 15)
    assert shown(store, NAME, OTHER, defences="on")["assay_judge_attack_success_ratio"] == 0.0
