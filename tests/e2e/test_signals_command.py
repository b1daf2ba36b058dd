"""`assay signals`, run as a person or a script runs it."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from assay.records import Evaluation, Record, Score, Usage, now
from assay.store import Store
from command import assay

pytestmark = pytest.mark.e2e


def run(directory: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return assay(directory, *arguments, ASSAY_DATA_DIR=str(directory), **settings)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """Nine days of synthetic records; today half of them are in German."""
    with Store(f"sqlite:///{tmp_path}/assay.db", cohort_labels=["model"]) as store:
        store.upgrade()
        for day in range(9):
            asked = ["Where is my parcel?", "Wo ist mein Paket?" if day == 0 else "Do you ship to the islands?"]
            records = [
                Record(
                    record_id=f"{day}-{n}",
                    timestamp=now() - timedelta(days=day, hours=2),
                    app="shop",
                    model="[red]small" if n % 2 else "large",
                    input=asked[n % 2],
                    output="It arrives on Monday.",
                    finish_reason="length" if n % 10 == 0 else "stop",
                    usage=Usage(cost_usd=0.01),
                )
                for n in range(80)
            ]
            scores = [
                Evaluation(
                    record_id=record.record_id,
                    rubric="relevance",
                    rubric_version="1-ab",
                    rubric_hash="ab",
                    judge="rules",
                    judge_fingerprint="f",
                    outcome=Score(value=1.0, passed=True),
                )
                for record in records
            ]
            store.commit([(record, record.to_json()) for record in records], scores)
    return tmp_path


def test_a_person_sees_signals_costs_and_shifts(filled: Path) -> None:
    done = run(filled, "signals")
    assert (done.returncode, done.stderr) == (0, "")
    lines = {tuple(line.split()[:2]): line for line in done.stdout.splitlines() if line.strip()}
    assert "0.1" in lines["finish_length", "0.1"]
    assert "0.01" in done.stdout.partition("cost_usd per pass: relevance")[2].splitlines()[0]
    assert "has shifted" in lines["shop", "language"]


def test_cohorts_stand_apart_and_their_values_are_data(filled: Path) -> None:
    done = run(filled, "signals", ASSAY_COHORT_LABELS="model")
    assert "shop model=[red]small" in done.stdout
    assert "shop model=large" in done.stdout


def test_a_script_reads_json(filled: Path) -> None:
    done = run(filled, "signals", "--window", "7d", "--json", ASSAY_COHORT_LABELS="model")
    read = json.loads(done.stdout)
    assert [one["cohort"] for one in read["signals"]] == [{"model": "[red]small"}, {"model": "large"}]
    share = read["signals"][1]["signals"]["finish_length"]
    assert share["value"] == pytest.approx(0.2)
    assert share["lower"] < 0.2 < share["upper"]
    assert read["signals"][1]["cost_usd_per_pass"]["relevance"]["value"] == pytest.approx(0.01)
    (language,) = [one for one in read["input_shift"] if one["feature"] == "language"]
    assert language["p_value"] < 0.001


def test_nothing_and_nonsense(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/assay.db") as store:
        store.upgrade()
    assert run(tmp_path, "signals").stdout == "No records in the last 24h.\n"
    empty = json.loads(run(tmp_path, "signals", "--json").stdout)
    assert empty == {"signals": [], "input_shift": []}
    wrong = run(tmp_path, "signals", "--window", "7x")
    assert wrong.returncode == 2
    assert "window '7x': write whole minutes" in wrong.stderr
