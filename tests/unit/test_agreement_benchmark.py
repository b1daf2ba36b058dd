"""What `benchmarks/agreement.py` says of two ways of asking: against scikit-learn, and on a judge that is known."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import agreement
from benchmarks.agreement import Measured, Verdicts, difference, table
from sklearn.metrics import cohen_kappa_score

from assay.rubrics import load_rubrics
from assay.testing import Ask, FakeJudgeServer

ROOT = Path(__file__).parents[2]


def made(name: str, seed: int, *, alone: float, together: float, records: int = 80) -> Measured:
    """A set whose judge is right so often, alone and together."""
    draw, verdicts = random.Random(seed), []
    for record in range(records):
        label = draw.random() < 0.5
        says = [label if draw.random() < right else not label for right in (alone, together)]
        verdicts.append(Verdicts(f"{name}/{record // 4}", label, *says))
    tokens: dict[str, tuple[float, float] | None] = {"alone": (450.0, 90.0), "together": None}
    return Measured(name, verdicts, records, tokens)


def kappa(one: Measured, way: str) -> float:
    return float(cohen_kappa_score([v.label for v in one.verdicts], [getattr(v, way) for v in one.verdicts]))


def test_its_numbers_are_those_of_scikit_learn() -> None:
    sets = [made(str(seed), seed, alone=0.8, together=0.7) for seed in range(4)]
    for one in sets:
        assert one.kappa("alone") == pytest.approx(kappa(one, "alone"))
        assert one.kappa("together") == pytest.approx(kappa(one, "together"))
        assert one.alike == sum(v.alone == v.together for v in one.verdicts) / 80
    expected = sum(kappa(one, "together") - kappa(one, "alone") for one in sets) / 4
    assert difference(sets).value == pytest.approx(expected)


def test_its_interval_holds_the_truth_as_often_as_it_says() -> None:
    # Of a judge that is right with chance p and of labels that are even, kappa is 2p - 1.
    held = 0
    for seed in range(60):
        sets = [made(str(n), 100 * seed + n, alone=0.85, together=0.75) for n in range(3)]
        found = difference(sets)
        assert found.lower is not None
        assert found.upper is not None
        held += found.lower <= -0.2 <= found.upper
    assert held >= 52


def test_a_set_without_one_class_has_no_kappa_and_no_mean() -> None:
    sets = [made("a", 1, alone=0.8, together=0.8), made("b", 2, alone=0.8, together=0.8)]
    sets[1].verdicts[:] = [v for v in sets[1].verdicts if v.label]
    last = table(sets).splitlines()[-1]
    assert last.startswith("| all, mean | 160 |")
    assert "| none | none |" in last
    assert table(sets).splitlines()[2].endswith("| 450 + 90 | unknown |")


def test_where_hardly_a_verdict_differs_no_interval_is_claimed() -> None:
    def shown(differ: int) -> list[str]:
        one = made("a", 1, alone=0.8, together=0.8)
        one.verdicts[:] = [
            Verdicts(v.situation, v.label, v.alone, v.alone is not (at < differ)) for at, v in enumerate(one.verdicts)
        ]
        return [line.split(" | ")[5] for line in table([one]).splitlines()[2:]]

    assert shown(0) == ["+0.000 (0 differ)"] * 2
    assert all(text.endswith(" (1 differs)") for text in shown(1))
    assert all(re.fullmatch(r"[-+]0\.\d{3} \([-+]0\.\d\d to [-+]0\.\d\d\)", text) for text in shown(5))


def test_what_is_saved_of_a_run_gives_the_same_table() -> None:
    sets = [made("a", 1, alone=0.9, together=0.8), made("b", 2, alone=0.7, together=0.7, records=9)]
    saved = json.loads(json.dumps([one.as_json() for one in sets]))
    assert table([Measured.of_json(one) for one in saved]) == table(sets)


def test_the_page_shows_the_runs_that_are_saved() -> None:
    runs = agreement.saved()
    page = agreement.PAGE.read_text()
    assert agreement.written(page, runs) == page
    assert all(f"*{run['name']}* ({run['date']}):" in page for run in runs)
    assert agreement.written(page, runs[:1]) != page


def test_a_run_of_the_same_name_takes_the_place_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "SAVED", tmp_path / "agreement.json")
    assert agreement.saved() == []
    for name, seed in (("small", 1), ("large", 2), ("small", 3)):
        agreement.save(name, [made("a", seed, alone=0.9, together=0.8)])
    assert [run["name"] for run in agreement.saved()] == ["small", "large"]
    assert agreement.saved()[0]["sets"] == [made("a", 3, alone=0.9, together=0.8).as_json()]
    page = "before\n<!-- agreement -->\nold\n<!-- end of agreement -->\nafter\n"
    written = agreement.written(page, agreement.saved())
    assert written.startswith("before\n<!-- agreement -->\n\n*small* (")
    assert "\n\n*large* (" in written
    assert "old" not in written
    assert written.endswith("\n<!-- end of agreement -->\nafter\n")
    assert agreement.written(written, agreement.saved()) == written


def test_of_a_public_set_as_many_fail_as_pass_and_answers_to_one_input_stay_together(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"synthetic-{number}",
            "input": f"question {number % 7}",
            "contexts": ["a passage"] if number % 2 else [],
            "output": f"answer {number}",
            "human_label": 0.0 if number % 5 == 0 else 0.5,
        }
        for number in range(60)
    ]
    path = tmp_path / "synthetic.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    rubric = next(rubric for rubric in load_rubrics() if rubric.name == "relevance")
    found = agreement.by_people(path, rubric, 16)
    assert found.annotator_kind == "human"
    passes = found.columns().y_true
    assert (len(passes), passes.sum()) == (16, 8)
    of_input: dict[object, set[str]] = {}
    for item in found.items:
        assert item.record is not None
        of_input.setdefault(item.record.input, set()).add(item.cluster)
        number = int(item.item_id.removeprefix("synthetic-"))
        assert [context.text for context in item.record.contexts] == rows[number]["contexts"]
    assert all(len(situations) == 1 for situations in of_input.values())
    assert len(of_input) == len(set.union(*of_input.values()))
    with pytest.raises(ValueError, match="48 that pass and 12 that fail"):
        agreement.by_people(path, rubric, 26)
    # The same records, whatever the order of the file.
    path.write_text("\n".join(map(json.dumps, reversed(rows))))
    assert [item.item_id for item in agreement.by_people(path, rubric, 16).items] == [i.item_id for i in found.items]


@pytest.mark.parametrize(
    "mistake",
    ["--sets=safty", "--every=0", "--each=1", "--people=tests/unit", "--every=2 --people=.", "--write --save=a"],
)
def test_a_mistake_is_told_and_nobody_is_asked(mistake: str) -> None:
    command = [sys.executable, "benchmarks/agreement.py", *mistake.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"agreement.py: error: {re.split('[= ]', mistake)[0]}: ")


def test_it_asks_each_record_once_in_both_ways_and_tells_them_apart(tmp_path: Path) -> None:
    def verdict(ask: Ask) -> object:
        if ask.rubric != "relevance":
            return None
        # The best level along with others, the worst alone.
        asked = ask.request["response_format"]["json_schema"]["schema"]["properties"]
        return {"explanation": "as it is asked", "level": "5" if "safety" in asked else "1"}

    with FakeJudgeServer(verdict=verdict) as server:
        settings = {
            "ASSAY_JUDGE": "openai",
            "ASSAY_JUDGE_MODEL": "fake",
            "ASSAY_JUDGE_BASE_URL": server.base_url,
            "ASSAY_JUDGE_API_KEY": "synthetic",
            "ASSAY_DATA_DIR": str(tmp_path),
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ASSAY_")} | settings
        command = [sys.executable, "benchmarks/agreement.py", "--every", "5"]
        first = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert first.returncode == 0, first.stderr
        calls = server.traffic.calls
        again = subprocess.run(
            [*command, "--offline"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
    assert again.stdout == first.stdout
    assert server.traffic.calls == calls
    rows = [re.split(r" *\| *", line)[1:-1] for line in first.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["completeness", "faithfulness", "relevance", "safety", "all, mean"]
    records = [int(row[1]) for row in rows]
    assert sum(records[:4]) == records[4]
    # All rubrics together in one call.
    assert calls == 2 * records[4]
    relevance = dict(zip(first.stdout.splitlines()[0].split(" | "), rows[2], strict=False))
    assert relevance["say the same"] == "0%"
