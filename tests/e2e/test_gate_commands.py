"""`assay rubrics check --gate` and `assay rubrics status`, run as a person or a CI job runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assay.gate import Gate, Version
from assay.judges import JudgeSettings
from assay.rubrics import Rubric, load_rubrics
from assay.store import Store
from calibrations import FEW, GOOD, a_calibration
from command import assay

pytestmark = pytest.mark.e2e

LEXICAL = JudgeSettings(engine="lexical")


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    """A rubric file with a gate."""
    shipped = Path(__file__).parents[2] / "rubrics" / "relevance.yaml"
    file = tmp_path / "relevance.yaml"
    file.write_text(shipped.read_text() + "\ngate: calibrated\n")
    return file


def calibrate(file: Path, directory: Path, counts: tuple[int, ...] = GOOD) -> None:
    a_calibration(counts, version=Version.of(load_rubrics([file])[0], LEXICAL)).save(directory)


def changed(file: Path) -> Rubric:
    file.write_text(file.read_text().replace("instructions: |", "instructions: |\n  Be strict.", 1))
    return load_rubrics([file])[0]


def test_in_ci_a_rubric_needs_a_calibration_file(gated: Path, tmp_path: Path) -> None:
    done = assay(tmp_path, "rubrics", "check", "--gate", str(gated))
    assert done.returncode == 3, done.stdout + done.stderr
    assert "HOLDS" in done.stdout
    assert "there is no calibration of this question by this judge" in done.stdout
    (tmp_path / "files").mkdir()
    calibrate(gated, tmp_path / "files", FEW)
    check = ("rubrics", "check", "--gate", "--calibrations", "files", str(gated))
    done = assay(tmp_path, *check)
    assert done.returncode == 3
    assert "its calibration is trend_only, and its gate asks for calibrated" in done.stdout
    calibrate(gated, tmp_path / "files", GOOD)
    done = assay(tmp_path, *check)
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = json.loads(assay(tmp_path, *check, "--json").stdout)
    assert (found["rubric"], found["judge"], found["gate"], found["opens"]) == (
        "relevance",
        "lexical",
        "calibrated",
        True,
    )
    # One word more, and it is another question.
    changed(gated)
    assert assay(tmp_path, *check).returncode == 3
    assert assay(tmp_path, "rubrics", "check", str(gated)).returncode == 0, "without --gate only mistakes count"


def test_another_judge_is_another_instrument_and_no_key_is_needed_to_tell(gated: Path, tmp_path: Path) -> None:
    calibrate(gated, tmp_path)
    check = ("rubrics", "check", "--gate", "--calibrations", ".", str(gated))
    assert assay(tmp_path, *check).returncode == 0
    done = assay(tmp_path, *check, ASSAY_JUDGE="openai", ASSAY_JUDGE_MODEL="judge-a")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "openai:judge-a" in done.stdout


def test_a_mistake_in_a_file_comes_first(gated: Path, tmp_path: Path) -> None:
    gated.write_text(gated.read_text().replace("gate: calibrated", "gate: calibratd"))
    done = assay(tmp_path, "rubrics", "check", "--gate", "--json", str(gated))
    assert done.returncode == 2
    (mistake,) = json.loads(done.stdout)
    assert mistake["field"] == "gate"
    assert "calibrated" in mistake["message"]
    (tmp_path / "x.json").write_text("{}")
    done = assay(tmp_path, "rubrics", "check", "--gate", "--calibrations", ".", "--json")
    assert done.returncode == 2
    assert "x.json: is no calibration" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_a_database_what_production_uses_is_no_change(gated: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/scores.db"
    database = {"ASSAY_DATABASE_URL": url, "ASSAY_RUBRICS": str(gated)}
    rubric = load_rubrics([gated])[0]
    with Store(url) as store:
        store.upgrade()
        assert assay(tmp_path, "rubrics", "check", "--gate", **database).returncode == 3
        store.save_calibration(a_calibration(GOOD, version=Version.of(rubric, LEXICAL)))
        assert assay(tmp_path, "rubrics", "check", "--gate", **database).returncode == 0
        Gate(store, [rubric], LEXICAL).start()
        store.mark_calibration_stale(store.calibrations()[0].calibration_id, "an audit failed")
        assert assay(tmp_path, "rubrics", "check", "--gate", **database).returncode == 0, "it is in use"
        # The same file, come with the repository, is no better than what the audit found.
        new = changed(gated)
        store.save_calibration(a_calibration(GOOD, version=Version.of(new, LEXICAL)))
        store.mark_calibration_stale(store.calibrations()[-1].calibration_id, "an audit failed")
        for made in store.calibrations():
            store.mark_calibration_stale(made.calibration_id, "an audit failed")
        calibrate(gated, tmp_path)
        done = assay(tmp_path, "rubrics", "check", "--gate", "--calibrations", str(tmp_path), **database)
        assert done.returncode == 3
        assert "its calibration is stale: an audit failed" in done.stdout


def test_status_says_what_is_asked_what_waits_and_why(gated: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/scores.db"
    database = {"ASSAY_DATABASE_URL": url, "ASSAY_RUBRICS": str(gated)}
    old = load_rubrics([gated])[0]
    with Store(url) as store:
        store.upgrade()
        done = assay(tmp_path, "rubrics", "status", **database)
        assert "no worker has read this file yet" in done.stdout
        store.save_calibration(a_calibration(GOOD, version=Version.of(old, LEXICAL)))
        Gate(store, [old], LEXICAL).start()
        new = changed(gated)
        Gate(store, [new], LEXICAL).start()
    done = assay(tmp_path, "rubrics", "status", **database)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("relevance")}
    assert "active" in lines[old.revision]
    assert "waiting" in lines[new.revision]
    assert "there is no calibration of this question by this judge" in lines[new.revision]
    found = json.loads(assay(tmp_path, "rubrics", "status", "--json", **database).stdout)
    assert {(version["rubric_version"], version["state"]) for version in found} == {
        (old.revision, "active"),
        (new.revision, "waiting"),
    }
    assert all("body" not in version for version in found)
    done = assay(tmp_path, "rubrics", "status", ASSAY_DATABASE_URL=f"sqlite:///{tmp_path}/none.db")
    assert (done.returncode, "run `assay db upgrade`" in done.stderr) == (1, True)
