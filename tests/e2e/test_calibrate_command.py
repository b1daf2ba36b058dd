"""`assay calibrate` as people run it: real processes, a real HTTP judge, real files."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assay.calibration import Calibration
from assay.labels import read_labels
from assay.rubrics import SHIPPED, load_rubrics
from assay.store import Store
from assay.testing import Ask, FakeJudgeServer
from command import assay, clean_environment

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).parents[2]
SETS = REPOSITORY / "calibration"
RUBRICS = ("completeness", "faithfulness", "relevance", "safety")


@pytest.fixture
def server() -> Iterator[FakeJudgeServer]:
    """Answers that say WRONG get the worst verdicts, all others the best."""
    with FakeJudgeServer(bad_when="WRONG") as running:
        yield running


class Shell:
    """Runs `assay calibrate` in a directory, with ASSAY_ variables."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.variables: dict[str, str] = {"ASSAY_RETRY_BASE_SECONDS": "0.01"}

    def judge(self, server: FakeJudgeServer, **variables: str) -> Shell:
        self.variables |= {"ASSAY_JUDGE_BASE_URL": server.base_url, "ASSAY_JUDGE": "openai"} | variables
        return self

    def __call__(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        return assay(self.directory, "calibrate", *arguments, code=code, **self.variables)

    def json(self, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        done = self(*arguments, "--json", code=code)
        told: dict[str, Any] = json.loads(done.stdout, parse_constant=pytest.fail)
        return told


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


RUBRIC = """\
name: tone
version: "1"
instructions: Is the answer polite?
scale:
  type: binary
  pass_when: It is polite.
  fail_when: It is not.
pass_threshold: 1
ask: alone
"""


def rubric(directory: Path, name: str = "tone.yaml", **changes: str) -> Path:
    text = RUBRIC
    for key, value in changes.items():
        text = re.sub(rf"^{key}: .*$", f"{key}: {value}", text, flags=re.MULTILINE)
    path = directory / name
    path.write_text(text)
    return path


def label_file(
    directory: Path, passes: int = 80, fails: int = 40, *, missed: int = 0, flagged: int = 0, **header: Any
) -> Path:
    """Synthetic labels: the fake judge misses some of the fails and flags some of the passes."""
    head = {"label_file": 1, "rubric": "tone", "annotators": "author", "synthetic": True, "selection": "curated"}
    rows: list[dict[str, Any]] = [head | header]
    for n in range(passes + fails):
        is_pass = n < passes
        worst = n < flagged if is_pass else n - passes >= missed
        record = {
            "record_id": f"r{n}",
            "timestamp": "2026-01-31T12:00:00Z",
            "input": f"Question {n}?",
            "output": f"{'WRONG' if worst else 'Good'} answer {n}.",
        }
        rows.append({"record": record, "label": "pass" if is_pass else "fail", "note": f"note {n}"})
    path = directory / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Exit codes, and what is told.


def test_a_good_judge_is_calibrated(shell: Shell, server: FakeJudgeServer, tmp_path: Path) -> None:
    labels, asked = label_file(tmp_path, missed=4, flagged=6), rubric(tmp_path)
    done = shell.judge(server)(labels, "--rubric", asked)
    assert server.traffic.calls == 120
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tone · judge openai:gpt-5-mini · rubric 1-")
    assert "120 labels (40 fail) · 1 annotator, the records' authors · synthetic records" in lines[0]
    assert re.match(r"  flags 90% of the answers that the labels reject +77–96%$", lines[1])
    assert re.match(r"  the labels agree with 86% of its flags +72–93%$", lines[2])
    assert "verdict: CALIBRATED" in done.stdout
    assert "USD per 1,000 records" in done.stdout
    table = done.stdout.split("Agreement, in the order to read it")[1]
    places = [table.index(name) for name in ("fail recall", "fail precision", "kappa", "AUC", "Brier", "accuracy")]
    assert places == sorted(places)
    # What the cost will be is told before, what it was after; both apart from the results.
    assert "120 to judge by openai:gpt-5-mini: about" in done.stderr
    assert re.search(r"Spent 0\.\d+ USD on 120 calls", done.stderr)
    # The worst disagreements with both explanations.
    worst = done.stdout.split("Worst disagreements (5 of 10)")[1]
    assert "r0, line 2: labelled pass, judged FAIL (0.00)" in worst
    assert "judge:  synthetic text of a fake judge" in worst
    assert "label:  note 0" in worst


def test_a_judge_that_passes_all_is_unusable(shell: Shell, server: FakeJudgeServer, tmp_path: Path) -> None:
    labels, asked = label_file(tmp_path, missed=40), rubric(tmp_path)
    told = shell.judge(server).json(labels, "--rubric", asked, code=3)
    assert told["level"] == "unusable"
    assert told["statistics"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert told["reasons"]


def test_too_few_labels_are_not_enough(shell: Shell, server: FakeJudgeServer, tmp_path: Path) -> None:
    labels, asked = label_file(tmp_path, passes=30, fails=4), rubric(tmp_path)
    done = shell.judge(server)(labels, "--rubric", asked, code=4)
    assert "verdict: NOT ENOUGH LABELS" in done.stdout
    assert "34 labels, 30 pass and 4 fail: it takes 30, and 10 of each" in done.stdout
    assert re.search(r"to say anything: about \d+ more labels", done.stdout)
    # No kappa from nothing.
    assert not re.search(r"kappa +-?\d", done.stdout)


@pytest.mark.parametrize("passes", [60, 0])
def test_labels_of_one_class_are_not_enough_and_say_so(
    shell: Shell, server: FakeJudgeServer, tmp_path: Path, passes: int
) -> None:
    labels, asked = label_file(tmp_path, passes=passes, fails=60 - passes), rubric(tmp_path)
    done = shell.judge(server)(labels, "--rubric", asked, code=4)
    assert "every label is the same" in done.stdout


def test_mistakes_are_told_with_file_line_and_mend(shell: Shell, tmp_path: Path) -> None:
    asked, labels = rubric(tmp_path), label_file(tmp_path)
    rows = labels.read_text().splitlines()
    rows[3] = rows[3].replace('"label": "pass"', '"label": "perhaps"')
    rows[5] = rows[4]
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join(rows) + "\n")
    told = shell(broken, "--rubric", asked, code=2).stderr
    assert f"{broken}:4: label:" in told
    assert f"{broken}:6:" in told
    other = tmp_path / "other.jsonl"
    other.write_text(labels.read_text().replace('"rubric": "tone"', '"rubric": "taste"'))
    assert "tone" in shell(other, "--rubric", asked, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.jsonl", "--rubric", "safety"], "nowhere.jsonl"),
        (["labels.jsonl"], "no rubric is called 'tone'"),
        (["labels.jsonl", "--rubric", "nothing"], "no rubric is called 'nothing'"),
        (["labels.jsonl", "--rubric", "tone.yaml", "--judge", "oracle"], "--judge 'oracle'"),
        (["labels.jsonl", "--rubric", "tone.yaml", "--judge", "lexical:7"], "--judge 'lexical:7'"),
        (["labels.jsonl", "--rubric", "tone.yaml", "--judge", "openai:a", "--model", "b"], "leave --model out"),
        (["labels.jsonl", "--rubric", "tone.yaml", "--columns", "x"], "--columns 'x'"),
        (["labels.jsonl", "--rubric", "tone.yaml", "--compare", "a", "b"], "--compare 'a'"),
        (["labels.jsonl", "--rubric", "tone.yaml", "--compare", "lexical", "rules", "--html", "x"], "leave --compare"),
        (["labels.jsonl", "--rubric", "tone.yaml", "--budget", "nan"], "a budget of nan is none"),
        (["labels.jsonl", "--rubric", "tone.yaml", "--gold", "expert:nobody"], "gold"),
        (["labels.jsonl", "--rubric", "tone.yaml", "--passes-from", "2"], "passes_from"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(
    shell: Shell, server: FakeJudgeServer, tmp_path: Path, arguments: list[str], said: str
) -> None:
    label_file(tmp_path)
    rubric(tmp_path)
    told = shell.judge(server)(*arguments, code=2).stderr
    assert said in told
    assert server.traffic.calls == 0


# The loop: edit, run again.


def test_after_an_edit_only_what_changed_is_judged_again(shell: Shell, server: FakeJudgeServer, tmp_path: Path) -> None:
    labels, asked = label_file(tmp_path, missed=4), rubric(tmp_path)
    run = shell.judge(server).json
    first = run(labels, "--rubric", asked)
    assert server.traffic.calls == 120
    assert run(labels, "--rubric", asked) == first
    assert server.traffic.calls == 120
    # One line of the rubric: everything is another question.
    rubric(tmp_path, instructions="Is the answer polite, and to the point?")
    edited = run(labels, "--rubric", asked)
    assert server.traffic.calls == 240
    assert edited["rubric_hash"] != first["rubric_hash"]
    # The edit taken back: nothing.
    rubric(tmp_path)
    assert run(labels, "--rubric", asked) == first
    # A title, a version: nothing. One record: one call.
    rubric(tmp_path, version='"2"')
    assert run(labels, "--rubric", asked)["statistics"] == first["statistics"]
    labels.write_text(labels.read_text().replace("Good answer 7.", "Good answer 7, indeed."))
    run(labels, "--rubric", asked)
    assert server.traffic.calls == 241
    # A label: nothing, and another result.
    labels.write_text(labels.read_text().replace('"label": "pass", "note": "note 7"', '"label": "fail", "note": ""'))
    relabelled = run(labels, "--rubric", asked)
    assert server.traffic.calls == 241
    assert relabelled["rates"]["counts"]["false_pass"] == first["rates"]["counts"]["false_pass"] + 1
    # Offline there is all that is needed.
    server.__exit__(None, None, None)
    assert run(labels, "--rubric", asked, "--offline") == relabelled


def test_a_threshold_is_tuned_without_a_call(shell: Shell, tmp_path: Path) -> None:
    levels = "\n".join(f"    - level: {n}\n      anchor: Anchor {n}." for n in range(1, 6))
    head = 'name: tone\nversion: "1"\ninstructions: How polite?\nask: alone\n'
    text = f"{head}scale:\n  type: ordinal\n  levels:\n{levels}\n"
    asked = tmp_path / "tone.yaml"
    asked.write_text(text + "pass_threshold: 0.75\n")
    labels = label_file(tmp_path)

    def grade(ask: Ask) -> dict[str, Any]:
        return {"explanation": "x", "level": 3 if "WRONG" in ask.text else 4}

    with FakeJudgeServer(verdict=grade) as server:
        right = shell.judge(server).json(labels, "--rubric", asked)
        assert right["statistics"]["fail_recall"]["value"] == 1.0
        assert server.traffic.calls == 120
        asked.write_text(text + "pass_threshold: 0.25\n")
        loose = shell.json(labels, "--rubric", asked, code=3)
        assert loose["statistics"]["fail_recall"]["value"] == 0.0
        assert loose["thresholds"]["gauge"]["value"] == pytest.approx(0.6)
        assert server.traffic.calls == 120


# Budget, cost, dry runs.


def test_the_budget_stops_before_the_cap_and_the_rest_is_done_later(
    shell: Shell, server: FakeJudgeServer, tmp_path: Path
) -> None:
    labels, asked = label_file(tmp_path), rubric(tmp_path)
    shell.judge(server, ASSAY_JUDGE_MAX_TOKENS="256")
    done = shell(labels, "--rubric", asked, "--budget", "0.008", "--save", "kept", "--worst", "0", code=4)
    calls = server.traffic.calls
    assert 0 < calls < 120
    spent = re.search(r"Spent (0\.\d+) USD", done.stderr)
    assert spent is not None
    assert float(spent[1]) <= 0.008
    assert "Stopped: " in done.stderr
    assert f"{120 - calls} of 120 records are not judged; run it again to go on" in " ".join(done.stderr.split())
    assert f"{120 - calls} of 120 records were not judged" in done.stdout
    # A part of the labels is no calibration to keep.
    assert not (tmp_path / "kept").exists()
    shell(labels, "--rubric", asked, "--budget", "1", "--save", "kept")
    assert server.traffic.calls == 120
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_dry_run_tells_the_cost_and_asks_nobody(shell: Shell, server: FakeJudgeServer, tmp_path: Path) -> None:
    done = shell.judge(server)(label_file(tmp_path), "--rubric", rubric(tmp_path), "--dry-run")
    assert "120 to judge by openai:gpt-5-mini: about" in done.stderr
    assert done.stdout == ""
    told = json.loads(shell(label_file(tmp_path), "--rubric", rubric(tmp_path), "--dry-run", "--json").stdout)
    assert (told["dry_run"], told["calls"], told["judge"]) == (True, 120, "openai:gpt-5-mini")
    assert told["prompt_tokens"] > 120
    assert told["cost_usd"] > 0
    both = shell(
        label_file(tmp_path), "--rubric", rubric(tmp_path), "--compare", "ask=alone", "lexical", "--dry-run", "--json"
    )
    assert [(one["name"], one["calls"]) for one in json.loads(both.stdout)] == [("ask=alone", 120), ("lexical", 120)]
    assert server.traffic.calls == 0


def test_a_budget_without_a_price_asks_nobody(shell: Shell, server: FakeJudgeServer, tmp_path: Path) -> None:
    arguments = (label_file(tmp_path), "--rubric", rubric(tmp_path), "--judge", "openai:my-model")
    told = shell.judge(server)(*arguments, "--budget", "1", code=2)
    assert "ASSAY_PRICES" in told.stderr
    assert server.traffic.calls == 0
    prices = tmp_path / "prices.yaml"
    prices.write_text('as_of: "2026-01-31"\nmodels:\n  my-model: {prompt: 0, completion: 0}\n')
    shell.variables["ASSAY_PRICES"] = str(prices)
    shell(*arguments, "--budget", "0")
    assert server.traffic.calls == 120


# A judge that fails.


def test_failures_are_counted_and_left_out_with_a_sentence(shell: Shell, tmp_path: Path) -> None:
    labels, asked = label_file(tmp_path), rubric(tmp_path)
    with FakeJudgeServer(bad_when="WRONG", seed=2, faults={"refusal": 0.1, "503": 0.05}) as server:
        told = shell.judge(server).json(labels, "--rubric", asked)
        left_out = told["labels"]["left_out"]
        assert set(left_out) == {"failed:refused"}
        assert told["labels"]["judged"] == 120 - left_out["failed:refused"]
        assert sum(told["rates"]["counts"].values()) == told["labels"]["judged"]
        sentence = f"no verdict on {left_out['failed:refused']} of 120 records (refused {left_out['failed:refused']})"
        assert any(sentence in note for note in told["notes"])
        # Right on all that it answered: a failure is not a fail.
        assert told["statistics"]["fail_recall"]["value"] == 1.0
        assert told["statistics"]["fail_precision"]["value"] == 1.0


@pytest.mark.parametrize(("fault", "said"), [("401", "the judge refuses to work"), ("503", "does not answer")])
def test_no_verdict_left_is_exit_code_4(shell: Shell, tmp_path: Path, fault: str, said: str) -> None:
    labels, asked = label_file(tmp_path), rubric(tmp_path)
    with FakeJudgeServer(faults={fault: 1.0}) as server:
        done = shell.judge(server)(labels, "--rubric", asked, code=4)
    assert "nothing can be measured" in done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert shell.json(labels, "--rubric", asked, "--offline", code=4)["level"] == "no_data"


def test_a_missing_key_is_a_mistake_that_a_person_can_mend(shell: Shell, tmp_path: Path) -> None:
    shell.variables["ASSAY_JUDGE"] = "openai"
    told = shell(label_file(tmp_path), "--rubric", rubric(tmp_path), code=2).stderr
    assert "ASSAY_JUDGE_API_KEY" in told


# Comparing.


def test_two_rubric_files_are_compared_on_the_same_records(shell: Shell, tmp_path: Path) -> None:
    """B tells two more of the ten answers apart that A lets through, in every ten."""
    labels = label_file(tmp_path, passes=120, fails=60)
    a, b = rubric(tmp_path, "a.yaml"), rubric(tmp_path, "b.yaml", instructions="Look twice.")

    def verdict(ask: Ask) -> dict[str, Any]:
        number = int(re.findall(r"answer (\d+)", ask.text)[-1])
        wrong = "WRONG" in ask.text
        seen = wrong and (number % 10 < 6 or ("Look twice." in ask.text and number % 10 < 8))
        return {"explanation": f"looked at {number}", "verdict": "fail" if seen else "pass"}

    with FakeJudgeServer(verdict=verdict) as server:
        done = shell.judge(server)(labels, "--compare", a, b)
        assert server.traffic.calls == 360
        told = shell.json(labels, "--compare", a, b)
        assert server.traffic.calls == 360
    assert re.search(r"fail recall \+20 points \(1[0-2] to (29|30|31)\) +0\.60 → 0\.80", done.stdout)
    assert "12 records change sides: 12 mended, 0 broken" in done.stdout
    assert "mended: r" in done.stdout
    assert told["differences"]["fail_recall"]["difference"]["value"] == pytest.approx(0.2)
    assert (told["mended"], told["broken"]) == (12, 0)
    assert told["first"]["rubric_hash"] != told["second"]["rubric_hash"]


def test_judges_and_ways_of_asking_are_compared(shell: Shell, server: FakeJudgeServer, tmp_path: Path) -> None:
    labels = label_file(tmp_path, rubric="relevance")
    shell.judge(server)
    told = shell.json(labels, "--compare", "openai:gpt-5-mini", "lexical")
    assert (told["first"]["judge"], told["second"]["judge"]) == ("openai:gpt-5-mini", "lexical")
    assert server.traffic.calls == 120
    # Relevance is asked together with the shipped others, and then alone.
    assert {len(sections(request)) for request in server.requests} == {3}
    told = shell.json(labels, "--compare", "ask=together", "ask=alone")
    assert server.traffic.calls == 240
    assert len(sections(server.requests[-1])) == 1
    assert told["differences"]["fail_recall"]["difference"]["value"] == 0.0


def sections(request: dict[str, Any]) -> set[str]:
    """The rubrics that it asks about."""
    return set(request["response_format"]["json_schema"]["schema"]["properties"]) - {"_defects"}


def test_a_comparison_of_too_few_is_exit_code_4(shell: Shell, server: FakeJudgeServer, tmp_path: Path) -> None:
    labels = label_file(tmp_path, passes=12, fails=4)
    a, b = rubric(tmp_path, "a.yaml"), rubric(tmp_path, "b.yaml", instructions="Look twice.")
    shell.judge(server)(labels, "--compare", a, b, code=4)


# What is written.


def test_the_calibration_is_saved_and_kept_in_the_database(
    shell: Shell, server: FakeJudgeServer, tmp_path: Path
) -> None:
    labels, asked = label_file(tmp_path, missed=4), rubric(tmp_path)
    url = f"sqlite:///{tmp_path}/scores.db"
    shell.judge(server, ASSAY_DATABASE_URL=url)
    # A database that is not there is told, after the report: exit code 1, as everywhere.
    told = shell(labels, "--rubric", asked, code=1)
    assert "verdict: CALIBRATED" in told.stdout
    assert "--no-store" in told.stderr
    shell(labels, "--rubric", asked, "--no-store")
    with Store(url) as store:
        store.upgrade()
    first = shell.json(labels, "--rubric", asked, "--save", "kept")
    assert first["stored"] is True
    again = shell.json(labels, "--rubric", asked, "--save", "kept")
    assert again["calibration_id"] == first["calibration_id"]
    (file,) = (tmp_path / "kept").iterdir()
    assert first["saved"] == str(Path("kept") / file.name)
    saved = Calibration.read(file)
    assert saved.calibration_id == first["calibration_id"]
    assert saved.synthetic
    with Store(url) as store:
        (stored,) = store.calibrations("tone")
    assert stored.calibration_id == saved.calibration_id
    assert Calibration.from_json(stored.body).rates == saved.rates


def test_without_a_database_nothing_is_missing(shell: Shell, server: FakeJudgeServer, tmp_path: Path) -> None:
    told = shell.judge(server).json(label_file(tmp_path), "--rubric", rubric(tmp_path))
    assert told["stored"] is False
    assert not (tmp_path / ".assay" / "assay.db").exists()


def test_the_report_is_written_as_html(shell: Shell, server: FakeJudgeServer, tmp_path: Path) -> None:
    pytest.importorskip("assay.calibration_report")
    done = shell.judge(server)(label_file(tmp_path, missed=4), "--rubric", rubric(tmp_path), "--html", "report.html")
    assert "verdict" in done.stdout
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html")
    assert "tone" in page
    assert "<script" not in page


def test_scores_in_a_table_need_no_judge(shell: Shell, server: FakeJudgeServer, tmp_path: Path) -> None:
    rows = ["id,mark,machine"]
    rows += [f"p{n},good,{1 if n % 10 else 0}" for n in range(80)] + [
        f"f{n},bad,{1 if n % 5 == 0 else 0}" for n in range(40)
    ]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    told = shell.judge(server).json(
        "table.csv",
        "--rubric",
        rubric(tmp_path),
        "--columns",
        "id=record_id",
        "--columns",
        "mark=label",
        "--columns",
        "machine=judge_score",
        "--values",
        "good=pass",
        "--values",
        "bad=fail",
    )
    assert server.traffic.calls == 0
    counts = told["rates"]["counts"]
    assert counts == {"both_pass": 72, "false_fail": 8, "false_pass": 8, "both_fail": 32}
    assert told["judge"] == "table"
    assert told["stored"] is False


def test_labels_of_records_in_the_store_are_judged_by_their_texts(
    shell: Shell, server: FakeJudgeServer, tmp_path: Path
) -> None:
    made = read_labels(label_file(tmp_path), load_rubrics([rubric(tmp_path)])[0])
    url = f"sqlite:///{tmp_path}/scores.db"
    records = [item.record for item in made.items if item.record is not None]
    # As large as workers with a raised ASSAY_MAX_RECORD_BYTES take.
    records[0] = replace(records[0], metadata={"synthetic": "x" * 1_100_000})
    with Store(url) as store:
        store.upgrade()
        store.commit([(record, record.to_json()) for record in records], [])
    rows = [{"label_file": 1, "rubric": "tone", "annotators": "human"}]
    rows += [{"record_id": item.item_id, "label": "pass" if i < 80 else "fail"} for i, item in enumerate(made.items)]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shell.judge(server, ASSAY_DATABASE_URL=url)
    told = shell.json(bare, "--rubric", "tone.yaml")
    assert told["statistics"]["fail_recall"]["value"] == 1.0
    assert server.traffic.calls == 120
    bare.write_text(bare.read_text() + '{"record_id": "unknown-one", "label": "pass"}\n')
    said = shell(bare, "--rubric", "tone.yaml", code=2).stderr
    assert "unknown-one" in said
    assert "bare.jsonl:122" in said


# Hostile text.


def test_texts_of_records_are_printed_as_data(shell: Shell, tmp_path: Path) -> None:
    labels = label_file(tmp_path, missed=3)
    hostile = "[bold]WRONGLESS[/] \x1b[31mred\x1b]0;title\x07 </td><script>alert(1)</script> \u202e \r over"
    text = labels.read_text().replace("Good answer 80.", json.dumps(hostile)[1:-1])
    labels.write_text(text.replace('"note": "note 80"', json.dumps({"note": hostile})[1:-1]))

    def verdict(ask: Ask) -> dict[str, Any]:
        return {"explanation": hostile, "verdict": "fail" if "WRONG answer" in ask.text else "pass"}

    with FakeJudgeServer(verdict=verdict) as server:
        done = shell.judge(server)(labels, "--rubric", rubric(tmp_path))
    assert "[bold]WRONGLESS[/]" in done.stdout
    assert not [character for character in done.stdout if not (character.isprintable() or character == "\n")]


# What is shipped.


@pytest.mark.parametrize("name", RUBRICS)
def test_the_shipped_sets_are_read_and_judged_without_a_key(shell: Shell, name: str) -> None:
    """The keyless judge is unusable on them: they are written so that words do not tell."""
    report = shell.json("--judge", "lexical", SETS / f"{name}.jsonl", code=3)
    assert report["level"] == "unusable"
    assert report["rubric"] == name
    assert report["judge"] == "lexical"
    assert report["labels"]["annotator_kind"] == "author"
    assert report["labels"]["synthetic"] is True
    assert report["rates"]["counts"]["both_fail"] + report["rates"]["counts"]["false_pass"] >= 30
    assert "human" not in " ".join([*report["notes"], *report["reasons"], *report["first_screen"]])


def test_a_judge_that_knows_the_answers_is_calibrated_on_a_shipped_set(shell: Shell) -> None:
    """Asked together with the other shipped rubrics, as in production; the fake one knows the labels."""
    items = read_labels(SETS / "safety.jsonl", load_rubrics([SHIPPED / "safety.yaml"])[0]).items
    bad = {item.record.output for item in items if item.record is not None and item.passes["author"] == 0.0}

    def verdict(ask: Ask) -> dict[str, Any] | None:
        if ask.rubric != "safety":
            return None
        answer = "no" if any(f"output ===\n{output}\n===" in ask.text for output in bad) else "yes"
        return {
            "explanation": "looked",
            "items": dict.fromkeys(ask.schema["properties"]["items"]["properties"], answer),
        }

    with FakeJudgeServer(verdict=verdict) as server:
        report = shell.judge(server).json(SETS / "safety.jsonl")
        assert server.traffic.calls == 120
        assert report["level"] == "calibrated"
        assert report["statistics"]["kappa"]["value"] == pytest.approx(1.0)


def test_an_interrupted_run_loses_nothing_that_was_judged(shell: Shell, tmp_path: Path) -> None:
    labels, asked = label_file(tmp_path), rubric(tmp_path)
    with FakeJudgeServer(latency_seconds=0.05, bad_when="WRONG") as server:
        shell.judge(server, ASSAY_JUDGE_MAX_IN_FLIGHT="2")
        process = subprocess.Popen(
            [sys.executable, "-m", "assay", "calibrate", str(labels), "--rubric", str(asked)],
            env=clean_environment(**shell.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
        )
        while server.traffic.calls < 20 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode not in (0, 3, 4)
        assert "Traceback" not in said
        before = server.traffic.calls
        assert before < 120
        shell(labels, "--rubric", asked)
        # At most what was in flight is asked twice.
        assert 120 <= server.traffic.calls <= 122
