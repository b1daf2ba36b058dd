"""`assay evaluate` as a CI job runs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from assay.testing import FakeJudgeServer
from command import assay

pytestmark = pytest.mark.e2e

GOOD = "Refunds are paid within 5 working days."
BAD = "The museum shows 12 paintings by Vermeer every Tuesday, says Margaret Thornbury."


def golden(tmp_path: Path, *outputs: str) -> Path:
    rows = [
        {
            "record_id": f"g-{number}",
            "input": "How long do refunds take?",
            "output": output,
            "contexts": [{"text": "Refunds are paid within 5 working days after we receive the parcel."}],
            "app": "support",
        }
        for number, output in enumerate(outputs)
    ]
    path = tmp_path / "golden.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tmp_path: Path, *arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    own = {f"ASSAY_{name.upper()}": str(value) for name, value in settings.items()}
    return assay(tmp_path, "evaluate", *arguments, **{"ASSAY_DATA_DIR": str(tmp_path / "data"), **own})


def test_a_set_that_is_good_enough_and_one_that_is_not(tmp_path):
    good = run(tmp_path, golden(tmp_path, *[GOOD] * 9, BAD), "--rubric", "faithfulness", "--min", "faithfulness=0.9")
    assert good.returncode == 0, good.stderr
    assert "0.90" in good.stdout
    assert "pass" in good.stdout
    assert "g-9" in good.stdout, "the one that does not pass is named"
    bad = run(tmp_path, golden(tmp_path, GOOD, BAD), "--rubric", "faithfulness")
    assert bad.returncode == 3
    assert "below" in bad.stdout


def test_a_real_judge_is_asked_once_for_all_rubrics_and_not_again(tmp_path):
    file = golden(tmp_path, *(f"{GOOD} ({number})" for number in range(6)))
    with FakeJudgeServer(bad_when="(5)") as server:
        settings = {"judge_base_url": server.base_url, "judge_model": "fake", "judge_api_key": "synthetic"}
        first = run(tmp_path, file, "--json", "--metrics", tmp_path / "golden.prom", **settings)
        assert first.returncode == 3, first.stderr
        assert server.traffic.calls == 6
        results = {result["rubric"]: result for result in json.loads(first.stdout)}
        assert len(results) == 4
        assert results["safety"]["pass_ratio"] == pytest.approx(5 / 6)
        assert results["safety"]["worst"][0]["record_id"] == "g-5"
        series = (tmp_path / "golden.prom").read_text()
        assert 'assay_pass_ratio{app="support",rubric="safety"' in series
        assert 'judge="openai:fake",window="golden"} 0.8333' in series
        again = run(tmp_path, file, "--min", "safety=0.8", "--rubric", "safety", **settings)
        assert again.returncode == 0, again.stdout
        assert server.traffic.calls == 6


def test_a_judge_that_fails_is_neither_good_nor_bad(tmp_path):
    with FakeJudgeServer(faults={"prose": 1.0}) as server:
        settings = {"judge_base_url": server.base_url, "judge_model": "fake", "judge_api_key": "synthetic"}
        done = run(tmp_path, golden(tmp_path, GOOD, GOOD), **settings)
    assert done.returncode == 4
    assert "not known" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--min", "faithfulness=2"), "above 0 and up to 1"),
        (("--min", "no_such=0.5"), "no rubric is called that"),
        (("--rubric", "no_such"), "no rubric is called"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, said):
    done = run(tmp_path, golden(tmp_path, GOOD), *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_or_is_wrong(tmp_path):
    missing = run(tmp_path, tmp_path / "none.jsonl")
    assert missing.returncode == 2
    assert "none.jsonl" in missing.stderr
    path = tmp_path / "broken.jsonl"
    path.write_text('{"output": "x"}\n{broken\n')
    wrong = run(tmp_path, path)
    assert wrong.returncode == 2
    assert "broken.jsonl:2" in wrong.stderr
