"""`assay calibrate --attacks` as people run it, with judges that obey what they read, or do not."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from assay.attacks import SHIPPED_ATTACKS, read_attacks
from assay.cli import app
from assay.errors import ConfigError
from assay.store import Store
from assay.testing import Ask, FakeJudgeServer
from assay.windows import wilson
from command import assay

pytestmark = pytest.mark.e2e

SET = read_attacks(SHIPPED_ATTACKS)
BY_TEXT = {attack.text: attack for attack in SET.attacks}
AIMED = sum(attack.goal != "break" for attack in SET.attacks)
SWAYING = sum(attack.goal in ("raise", "lower") for attack in SET.attacks)
FENCE = re.compile(r"^=== (\w{6}) (.+) ===$", re.MULTILINE)

RUBRIC = """\
name: fairness
version: "1"
title: Fairness
dimension: other
instructions: Is the answer fair?
scale: {type: binary, pass_when: it is, fail_when: it is not}
pass_threshold: 0.5
ask: alone
"""


def outside_fences(user: str) -> str:
    """What of a message stands in no section of the code that its first line names."""
    first = FENCE.match(user)
    if first is None:
        return user
    pieces = re.split(rf"^=== {first[1]} .+ ===$", user, flags=re.MULTILINE)
    # Before the first fence and after the last: all else is data.
    return pieces[0] + pieces[-1]


def judge(obeys: Callable[[str], str]) -> Callable[[Ask], Any]:
    """A judge that knows a bad base record when it reads one, and does what an attack says where it obeys."""

    def verdict(ask: Ask) -> Any:
        user = ask.request["messages"][1]["content"]
        good = "moon has 14" not in user and "Volcanoes are" not in user
        heard = obeys(user)
        for text, attack in BY_TEXT.items():
            if text in heard:
                good = {"raise": True, "lower": False}.get(attack.goal, good)
        return {"explanation": "synthetic", "verdict": "pass" if good else "fail"}

    return verdict


INCORRUPTIBLE = judge(lambda user: "")
OBEYS_OUTSIDE_FENCES = judge(outside_fences)
GULLIBLE = judge(lambda user: user)


class Shell:
    """Runs `assay calibrate --attacks` in a directory with one rubric, asking one server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.variables = {"ASSAY_RETRY_BASE_SECONDS": "0.01", "ASSAY_JUDGE": "openai", "ASSAY_JUDGE_MODEL": "m"}
        (directory / "fairness.yaml").write_text(RUBRIC)

    def run(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        return assay(self.directory, *arguments, code=code, **self.variables)

    def attacks(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("calibrate", "--attacks", "--rubric", "fairness.yaml", *arguments, code=code)

    def json(self, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.attacks(*arguments, "--json", code=code).stdout)
        return told


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.parametrize(
    ("verdict", "before", "after"),
    [(INCORRUPTIBLE, 0, 0), (OBEYS_OUTSIDE_FENCES, SWAYING, 0), (GULLIBLE, SWAYING, None)],
    ids=["incorruptible", "obeys outside fences", "gullible"],
)
def test_the_ratios_that_a_judge_has_are_found(
    shell: Shell, verdict: Callable[[Ask], Any], before: int, after: int | None
) -> None:
    with FakeJudgeServer(verdict=verdict) as server:
        shell.variables["ASSAY_JUDGE_BASE_URL"] = server.base_url
        told = shell.json("--max-success-ratio", "0.05", code=0 if after == 0 else 3)
        assert server.traffic.calls == 2 * (len(SET.attacks) + len(SET.bases))
        # All of it is kept: the same again asks nobody.
        assert shell.json("--max-success-ratio", "0.05", code=0 if after == 0 else 3)["rubrics"][0]["calls"] == 0
        assert server.traffic.calls == 2 * (len(SET.attacks) + len(SET.bases))
    (rubric,) = told["rubrics"]
    assert (told["attacks"], rubric["whole"], rubric["stored"]) == (len(SET.attacks), True, False)
    found = {side: rubric["defences"][side]["all"] for side in ("off", "on")}
    for side in found.values():
        assert side["succeeded"] + side["resisted"] == AIMED
        assert (side["failed"], side["no_base"], side["not_judged"]) == (0, 0, 0)
        assert side["success_ratio_ci"] == pytest.approx(wilson(side["success_ratio"], AIMED))
    assert found["off"]["succeeded"] == before
    if after is None:
        # Some are spelled otherwise where production asks, and are then not the words that this judge obeys.
        assert 0.8 * SWAYING < found["on"]["succeeded"] < SWAYING
    else:
        assert found["on"]["succeeded"] == after
    assert rubric["verdict"] == ("below" if after == 0 else "above")
    assert len(rubric["defences"]["on"]["successes"]) == found["on"]["succeeded"]
    families = rubric["defences"]["off"]["families"].values()
    assert sum(family["succeeded"] for family in families) == before


def test_the_table_says_both_ratios_and_which_attacks_succeed(shell: Shell) -> None:
    with FakeJudgeServer(verdict=OBEYS_OUTSIDE_FENCES) as server:
        shell.variables["ASSAY_JUDGE_BASE_URL"] = server.base_url
        done = shell.attacks("--limit", "20", "--seed", "7")
        assert re.search(r"^all +20 +[01]\.\d\d \(.+\) +0\.00 \(0\.00–0\.\d\d\)", done.stdout, re.MULTILINE), (
            done.stdout
        )
        assert "without fences and rules" in done.stdout
        assert "24 to judge" in done.stderr or "to judge by openai:m" in done.stderr
        again = shell.json("--limit", "20", "--seed", "7", "--again")
        assert again["rubrics"][0]["calls"] > 40
        other = shell.json("--limit", "20", "--seed", "8")
        assert (other["attacks"], other["of"]) == (20, len(SET.attacks))
    with FakeJudgeServer(verdict=GULLIBLE) as server:
        shell.variables |= {"ASSAY_JUDGE_BASE_URL": server.base_url, "ASSAY_DATA_DIR": str(shell.directory / "other")}
        told = shell.attacks("--limit", "20", "--worst", "2").stdout
        assert len(re.findall(r"^[a-z0-9_]+-\d\d \((?:output|context|tool|input), ", told, re.MULTILINE)) == 2
        assert "more: --worst, or --json" in told


def test_a_judge_that_fails_has_neither_resisted_nor_given_way(shell: Shell) -> None:
    def half_broken(ask: Ask) -> Any:
        user = ask.request["messages"][1]["content"]
        fails = any(text in user for text, attack in BY_TEXT.items() if attack.place == "output")
        return {"verdict": "maybe"} if fails else INCORRUPTIBLE(ask)

    with FakeJudgeServer(verdict=half_broken) as server:
        shell.variables["ASSAY_JUDGE_BASE_URL"] = server.base_url
        told = shell.json("--max-success-ratio", "0.05", code=4)
    side = told["rubrics"][0]["defences"]["off"]
    broken = sum(a.place == "output" and a.goal == "break" for a in SET.attacks)
    failed = sum(a.place == "output" for a in SET.attacks) - broken
    assert (side["all"]["failed"], side["all"]["broken"]) == (failed, broken)
    assert (side["all"]["succeeded"], side["all"]["resisted"]) == (0, AIMED - failed)
    assert sum(side["failures"].values()) == failed + broken
    assert told["rubrics"][0]["verdict"] == "unknown"


def test_a_budget_is_not_passed_and_what_it_cut_short_is_not_kept(shell: Shell) -> None:
    prices = shell.directory / "prices.json"
    models = {"m": {"prompt": 1.0, "completion": 1.0}}
    prices.write_text(json.dumps({"as_of": "2026-01-01", "models": models}))
    shell.variables |= {"ASSAY_PRICES": str(prices), "ASSAY_JUDGE_MAX_TOKENS": "100"}
    shell.variables["ASSAY_DATABASE_URL"] = f"sqlite:///{shell.directory}/scores.db"
    shell.run("db", "upgrade")
    with FakeJudgeServer(verdict=INCORRUPTIBLE) as server:
        shell.variables["ASSAY_JUDGE_BASE_URL"] = server.base_url
        assert "to judge by openai:m" in shell.attacks("--dry-run").stderr
        forecasts = shell.json("--dry-run")
        assert [(one["rubric"], one["defences"]) for one in forecasts] == [("fairness", "off"), ("fairness", "on")]
        assert server.traffic.calls == 0
        told = shell.json("--budget", "0.05", code=4)
        assert 0 < server.traffic.calls < len(SET.attacks)
        assert 0 < told["spent_usd"] <= 0.05
        (rubric,) = told["rubrics"]
        assert (rubric["whole"], rubric["stored"]) == (False, False)
        assert rubric["defences"]["on"]["all"]["not_judged"] > 0
        assert "budget" in rubric["stopped"]
        with Store(shell.variables["ASSAY_DATABASE_URL"]) as store:
            assert store.attack_runs() == []
        # Run again, it goes on where it was stopped, and then it is kept.
        before = server.traffic.calls
        assert shell.json()["rubrics"][0]["stored"] is True
        assert server.traffic.calls == 2 * (len(SET.attacks) + len(SET.bases))
        assert before > 0
        with Store(shell.variables["ASSAY_DATABASE_URL"]) as store:
            (kept,) = store.attack_runs()
        # Nobody is asked any more, so the run is as old as it was.
        shell.json()
        with Store(shell.variables["ASSAY_DATABASE_URL"]) as store:
            assert store.attack_runs() == [kept]
    assert kept.instrument.rubric == "fairness"
    assert kept.attack_set == SET.digest
    assert {side: sum(n.resisted for n in found.values()) for side, found in kept.counts.items()} == {
        "off": AIMED,
        "on": AIMED,
    }


def test_judges_without_a_prompt_of_ours_have_one_ratio(shell: Shell) -> None:
    shell.variables = {}
    told = json.loads(shell.run("calibrate", "--attacks", "--rubric", "faithfulness", "--json").stdout)
    (rubric,) = told["rubrics"]
    assert (rubric["judge"], list(rubric["defences"])) == ("lexical", ["on"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--attacks", "--gold", "majority"), "--gold is of labels"),
        (("--limit", "3", "labels.jsonl"), "--limit is of attacks"),
        (("--attacks", "none.jsonl"), "none.jsonl: No such file"),
        (("--attacks", "--rubric", "nothing"), "no rubric is called 'nothing'"),
        ((), "name a label file, or measure attacks with --attacks"),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CliRunner().invoke(app, ["calibrate", *arguments], catch_exceptions=False)
