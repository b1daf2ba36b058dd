"""Rule files: what they are made of, when they are out of date, and that every alert can be acted on."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from assay.alerts import Alert, AlertPolicy, Group, burn_threshold, differences, rule_files, rule_groups
from assay.catalogue import DOCUMENTED
from assay.rubrics import SHIPPED, Rubric, load_rubrics
from assay.settings import Settings

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
RUBRICS = load_rubrics([SHIPPED])
POLICY = AlertPolicy()
GROUPS = [group for groups in rule_groups(RUBRICS, POLICY).values() for group in groups]
ALERTS = [rule for group in GROUPS for rule in group.rules if isinstance(rule, Alert)]
SECTIONS = ["## What it means", "## Look at first", "## Usual causes", "## Mend"]


def rubric(name: str, **fields: Any) -> Rubric:
    return replace(next(r for r in RUBRICS if r.name == name), **fields)


def test_the_shipped_files_are_current() -> None:
    found = {path.name: path.read_text() for path in (ROOT / "deploy/prometheus/rules").glob("*.yml")}
    assert differences(rule_files(RUBRICS, AlertPolicy()), found) == {}


def test_the_policy_is_the_settings_defaults() -> None:
    from assay import wiring

    assert wiring.alert_policy(Settings(_env_file=None)) == AlertPolicy()  # type: ignore[call-arg]
    assert set(POLICY.windows) <= set(Settings.model_fields["windows"].default)


def test_one_group_a_rubric_and_one_for_each_part_of_the_service() -> None:
    names = [group.name for group in GROUPS]
    assert len(names) == len(set(names))
    expected = {f"assay-rubric-{r.name}{end}" for r in RUBRICS for end in ("", "-weekly")}
    assert set(names) == expected | {"assay-evaluator", "assay-cost", "assay-delivery"}


def test_the_files_are_yaml_that_says_the_same() -> None:
    for name, text in rule_files(RUBRICS, POLICY).items():
        read = YAML(typ="safe").load(text)
        groups = rule_groups(RUBRICS, POLICY)[name]
        assert [group["name"] for group in read["groups"]] == [group.name for group in groups]
        for group, written in zip(groups, read["groups"], strict=True):
            for rule, found in zip(group.rules, written["rules"], strict=True):
                assert found["expr"].split() == rule.expr.split()
                if isinstance(rule, Alert):
                    assert found["annotations"]["summary"] == rule.summary
                    assert found["labels"] == {"severity": rule.severity, "about": rule.about, **rule.labels}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.alert)
def test_an_alert_can_be_acted_on(alert: Alert) -> None:
    page = (ROOT / f"docs/runbooks/{alert.alert}.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")] == SECTIONS
    assert alert.severity in page.splitlines()[2]
    assert "humanize" not in alert.summary + alert.description
    # The value is printed to so many digits, never as Go prints it.
    assert not re.search(r"\{\{ *\$value *\}\}", alert.summary + alert.description)
    assert alert.alert in (ROOT / "docs/howto/alert.md").read_text()


def test_no_runbook_is_of_an_alert_that_is_gone() -> None:
    assert {path.stem for path in (ROOT / "docs/runbooks").glob("*.md")} == {alert.alert for alert in ALERTS}


def test_rules_read_only_series_that_there_are() -> None:
    known = {doc.name for doc in DOCUMENTED}
    recorded = {rule.record for group in GROUPS for rule in group.rules if not isinstance(rule, Alert)}
    for group in GROUPS:
        for rule in group.rules:
            expr = re.sub("|".join(map(re.escape, recorded)), "", rule.expr)
            for name in set(re.findall(r"\bassay_\w+", expr)):
                assert name in known, f"{group.name} reads {name}"


@pytest.mark.parametrize(
    "alert", [a for a in ALERTS if a.about == "quality"], ids=lambda a: "-".join([a.alert, *a.labels.values()])
)
def test_quality_is_guarded_by_a_least_sample_and_by_the_gate(alert: Alert) -> None:
    assert re.search(r"effective_records\S*\{.*\}( offset 7d)? >= (30|500)$", alert.expr, re.MULTILINE)
    assert 'state="waiting"' in alert.expr


def test_labels_of_an_alert_take_no_label_of_its_series() -> None:
    # `kind` of failures was overwritten so, and two kinds at once broke the rule.
    taken = {label for doc in DOCUMENTED for label in doc.labels}
    for alert in ALERTS:
        assert not {"severity", "about", *alert.labels} & taken


def test_a_loose_objective_keeps_a_burn_that_is_possible() -> None:
    assert burn_threshold(0.99, 14.4) == pytest.approx(0.856)
    assert burn_threshold(0.95, 3) == pytest.approx(0.85)
    # 14.4 times one in ten is more than all of them.
    assert burn_threshold(0.9, 14.4) == pytest.approx(0.45)
    for objective in (0.5, 0.9, 0.95, 0.99, 0.999):
        fast, slow = burn_threshold(objective, 14.4), burn_threshold(objective, 3)
        assert 0 < fast <= slow < objective


def test_a_rubric_without_objective_has_no_rule_that_needs_one() -> None:
    (file,) = [
        text for name, text in rule_files([rubric("safety", objective=None)], POLICY).items() if "rubric" in name
    ]
    assert "AssayQualityDrop" in file
    assert "AssayQualityBudgetBurn" not in file
    assert "AssayQualityBelowObjective" not in file


def test_the_pace_changes_lengths_of_time_and_nothing_else() -> None:
    def timeless(groups: list[Group]) -> str:
        exprs = [rule.expr for group in groups for rule in group.rules]
        return re.sub(r"\[[^\]]*\]|offset \w+|(?<=[<>] )\d+\b|window=\"\w+\"", "", " ".join(exprs))

    paced = [g for groups in rule_groups(RUBRICS, replace(POLICY, pace=1 / 60)).values() for g in groups]
    assert timeless(paced) == timeless(GROUPS)
    assert POLICY.span(1800) == "30m"
    assert POLICY.span(7 * 86_400) == "7d"
    assert replace(POLICY, pace=1 / 60).span(300) == "5s"
    assert replace(POLICY, pace=1e-6).span(60) == "1s"


def test_what_differs_is_told_apart() -> None:
    files = rule_files(RUBRICS, POLICY)
    assert differences(files, files) == {}
    one = "rubric-safety.yml"
    assert differences(files, {k: v for k, v in files.items() if k != one}) == {one: "is missing"}
    changed = rule_files([rubric("safety", objective=0.5)], POLICY)[one]
    assert differences(files, {**files, one: changed}) == {one: "is out of date"}
    by_hand = files[one].replace("severity: page", "severity: info")
    assert differences(files, {**files, one: by_hand}) == {one: "was changed by hand, or made by another assay"}
    gone = {"rubric-old.yml": changed, "own.yml": "groups: []\n"}
    assert differences(files, {**files, **gone}) == {"rubric-old.yml": "is of a rubric that is gone"}


def test_a_file_depends_on_what_its_rules_are_made_of_only() -> None:
    name = "rubric-safety.yml"
    before = rule_files([rubric("safety")], POLICY)[name]
    assert rule_files([rubric("safety", title="Other", pass_threshold=0.5)], POLICY)[name] == before
    for other in (
        rule_files([rubric("safety", objective=0.98)], POLICY),
        rule_files([rubric("safety")], replace(POLICY, min_records=31)),
    ):
        assert other[name].splitlines()[1] != before.splitlines()[1]


# -- the commands


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `assay alerts ...` in an empty directory; returns exit code, output and errors."""
    from assay.cli import run as main

    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("ASSAY_"):
            monkeypatch.delenv(name)

    def call(*words: str, **environment: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["assay", "alerts", *words])
            for name, value in environment.items():
                patch.setenv(name, value)
            code = main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_generate_then_check(tmp_path: Path, run: Run) -> None:
    code, out, err = run("check")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1

    code, out, err = run("generate", "--out", "rules")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 7
    (tmp_path / "rules/own.yml").write_text("groups: []\n")
    assert run("check", "--out", "rules") == (0, "", "")
    assert run("generate", "--out", "rules") == (0, "", "")

    code, out, _ = run("check", "--out", "rules", ASSAY_ALERT_MIN_RECORDS="50")
    assert code == 3
    assert "rules/rubric-safety.yml is out of date\n" in out
    assert out.splitlines()[-1] == "mend: assay alerts generate --out rules"

    (tmp_path / "one").mkdir()
    (tmp_path / "one/safety.yaml").write_text((SHIPPED / "safety.yaml").read_text())
    assert "removed rules/rubric-relevance.yml" in run("generate", "--out", "rules", ASSAY_RUBRICS="one")[1]
    names = {"own.yml", "cost.yml", "delivery.yml", "evaluator.yml", "rubric-safety.yml"}
    assert {path.name for path in (tmp_path / "rules").iterdir()} == names


def test_a_window_that_the_rules_read_must_be_there(tmp_path: Path, run: Run) -> None:
    error = "error: ASSAY_WINDOWS: the rules read the window 1h: add it\n"
    assert run("generate", ASSAY_WINDOWS="5m,24h") == (2, "", error)
    assert not (tmp_path / "deploy").exists()


def test_links_into_the_runbooks_that_are_set(tmp_path: Path, run: Run) -> None:
    code, _, err = run("generate", "--out", "rules", ASSAY_ALERT_RUNBOOK_URL="https://wiki.example/runbooks/")
    assert (code, err) == (0, "")
    text = (tmp_path / "rules/cost.yml").read_text()
    assert json.dumps("https://wiki.example/runbooks/AssayJudgeCostHigh.md") in text


# -- Alertmanager


def alertmanager(name: str) -> dict[str, Any]:
    config: dict[str, Any] = YAML(typ="safe").load((ROOT / "deploy/alertmanager" / name).read_text())
    return config


def test_the_example_differs_in_its_receivers_only() -> None:
    shipped, example = alertmanager("alertmanager.yml"), alertmanager("webhook.yml")
    assert {k: v for k, v in shipped.items() if k != "receivers"} == {
        k: v for k, v in example.items() if k != "receivers"
    }
    assert [r["name"] for r in shipped["receivers"]] == [r["name"] for r in example["receivers"]]
    assert all(receiver["webhook_configs"] for receiver in example["receivers"])


def test_a_changed_judge_inhibits_quality_of_the_same_instrument() -> None:
    rule = alertmanager("alertmanager.yml")["inhibit_rules"][0]
    assert rule == {
        "source_matchers": ['alertname="AssayJudgeChanged"'],
        "target_matchers": ['about="quality"'],
        "equal": ["rubric", "rubric_version", "judge"],
    }
    judge = next(a for a in ALERTS if a.alert == "AssayJudgeChanged")
    # It must not inhibit itself, and must be there before the page is.
    assert judge.about != "quality"
    assert not judge.for_
    assert all(a.for_ for a in ALERTS if a.about == "quality" and a.severity == "page")
