"""The shipped alerting rules by Debian's own promtool and amtool, and that breaking any of them is noticed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

from assay.alerts import Alert, AlertPolicy, Group, Recording, Rule, rule_groups
from assay.alerts._rules import written
from assay.rubrics import SHIPPED, load_rubrics
from rule_cases import WEEKLY_PACE, Case, promtool, rubric_cases, run_tests, service_cases, weekly_cases, write_tests
from servers import missing

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
RUBRICS = {rubric.name: rubric for rubric in load_rubrics([SHIPPED])}
POLICY = AlertPolicy()
WEEKLY = AlertPolicy(pace=WEEKLY_PACE)
#: One of them is mutated: the rules of all come from the same lines.
CHOSEN = RUBRICS["faithfulness"]


def cases_of(name: str) -> list[Case]:
    return list(rubric_cases(RUBRICS[name], POLICY))


def in_minutes(group: Group) -> Group:
    """A group that a test evaluates by the minute."""
    return replace(group, interval="") if group.interval else group


def test_promtool_takes_the_shipped_files() -> None:
    assert {path.name for path in RULES} >= {f"rubric-{name}.yml" for name in RUBRICS}
    done = subprocess.run([promtool(), "check", "rules", *map(str, RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    config = str(ROOT / "deploy/prometheus/prometheus.yml")
    done = subprocess.run([promtool(), "check", "config", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["alertmanager.yml", "webhook.yml"])
def test_amtool_takes_the_shipped_files(name: str) -> None:
    amtool = shutil.which("amtool")
    if amtool is None:
        missing("Alertmanager")
    file = str(ROOT / "deploy/alertmanager" / name)
    done = subprocess.run([str(amtool), "check-config", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [("severity=page about=quality", "pages"), ("severity=ticket about=cost", "tickets"), ("severity=info", "notes")],
)
def test_alerts_go_where_their_severity_says(labels: str, receiver: str) -> None:
    amtool = shutil.which("amtool")
    if amtool is None:
        missing("Alertmanager")
    file = str(ROOT / "deploy/alertmanager/webhook.yml")
    words = [str(amtool), "config", "routes", "test", f"--config.file={file}", *labels.split()]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == receiver


def test_the_shipped_rules_do_as_the_cases_say(tmp_path: Path) -> None:
    paths = []
    for name in RUBRICS:
        text = (ROOT / f"deploy/prometheus/rules/rubric-{name}.yml").read_text()
        paths += write_tests(tmp_path / name, text, cases_of(name))
    service = "".join(
        (ROOT / f"deploy/prometheus/rules/{name}.yml").read_text().split("groups:\n")[1]
        for name in ("evaluator", "cost", "delivery")
    )
    paths += write_tests(tmp_path / "service", f"groups:\n{service}", service_cases())
    assert {path: said for path, said in run_tests(paths).items() if said} == {}


def test_what_an_alert_says(tmp_path: Path) -> None:
    who = {"app": "shop", "rubric": "faithfulness", "rubric_version": "1-a", "judge": "m"}
    braces = ", ".join(f'{name}="{value}"' for name, value in who.items())
    series = {
        f"assay_change_alarm{{{braces}}}": "1x90",
        f'assay_app_window_effective_records{{{braces}, window="24h"}}': "99x90",
        f'assay_defects_weighted_total{{{braces}, defect="retrieval_miss"}}': "0+1x90",
        f'assay_defects_weighted_total{{{braces}, defect="incomplete"}}': "0+0.5x90",
        f'assay_defects_weighted_total{{{braces}, defect="unsafe"}}': "7x90",
    }
    alert = {
        "exp_labels": {**who, "severity": "page", "about": "quality"},
        "exp_annotations": {
            "summary": "shop: faithfulness (1-a, m): the pass ratio has dropped",
            "description": "The change detector is sure that fewer answers pass than must. `assay changes list` says "
            "since when and how many. Defects of the last hour, in interactions: retrieval_miss 60; incomplete 30; ",
            "runbook_url": "docs/runbooks/AssayQualityDrop.md",
        },
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": "70m", "alertname": "AssayQualityDrop", "exp_alerts": [alert]}],
    }

    rule_file = ROOT / "deploy/prometheus/rules/rubric-faithfulness.yml"
    file = tmp_path / "told.json"
    file.write_text(json.dumps({"rule_files": [str(rule_file)], "evaluation_interval": "1m", "tests": [test]}))
    assert run_tests([file]) == {file: ""}


def test_nothing_is_recorded_where_there_is_nothing_to_divide_by(tmp_path: Path) -> None:
    who = 'rubric="faithfulness", rubric_version="1-a", judge="m"'
    series = {
        f'assay_evaluation_cost_usd_total{{{who}, app="shop"}}': "5x90",
        f'assay_evaluations_total{{{who}, app="shop", outcome="scored"}}': "9x90",
        f'assay_app_score_mean{{{who}, app="shop", window="24h"}}': "0.5x90",
        f'assay_app_window_interactions{{{who}, app="shop", window="24h"}}': "0x90",
    }
    names = [f"rubric_judge:assay_evaluation_cost_usd:mean{name}" for name in ("1h", "7d")]
    expected = [{"expr": name, "eval_time": "80m"} for name in (*names, "app_rubric:assay_score_mean:weekly")]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": inputs, "promql_expr_test": expected}
    rules = [str(ROOT / f"deploy/prometheus/rules/{name}.yml") for name in ("cost", "rubric-faithfulness")]
    file = tmp_path / "nothing.json"
    file.write_text(json.dumps({"rule_files": rules, "evaluation_interval": "1m", "tests": [test]}))
    assert run_tests([file]) == {file: ""}


# -- breaking them

_OPERATORS = (
    (" >= ", " < "),
    (" == ", " != "),
    (" > ", " < "),
    (" < ", " > "),
    ("and on ", "or on "),
    ("unless ", "and "),
)
_NUMBER = re.compile(r'(?<![\w.":\[])\d+(?:\.\d+)?(?![\w"\]:.])')


def broken(expr: str) -> Iterator[str]:
    """The expression with one thing wrong: a number, a label, an operator, or a clause left out."""
    for found in _NUMBER.finditer(expr):
        if re.match(r"\s*\)$", expr[found.end() :]) and expr[: found.start()].endswith("> "):
            # It keeps a division by nothing out of a recorded series, see the test of that.
            continue
        value = float(found[0])
        whole = value == int(value) and value < 60
        for other in (value + 1, value - 1) if whole else (value * 1.1, value * 0.9):
            if other >= 0:
                yield f"{expr[: found.start()]}{other:.6g}{expr[found.end() :]}"
    for found in re.finditer(r'="([a-z0-9_]+)"', expr):
        yield f'{expr[: found.start()]}="{found[1]}x"{expr[found.end() :]}'
    for found in re.finditer(r'=~"([a-z_|]+)"', expr):
        for part in found[1].split("|"):
            yield expr.replace(found[1], "|".join(name for name in found[1].split("|") if name != part))
    for old, new in _OPERATORS:
        for found in re.finditer(re.escape(old), expr):
            yield expr[: found.start()] + new + expr[found.end() :]
    lines = expr.strip().splitlines()
    for index, line in enumerate(lines):
        if index and re.match(r"\s*(and|unless) on ", line) and not line.rstrip().endswith(")"):
            yield "\n".join(lines[:index] + lines[index + 1 :])


def mutants(rule: Rule) -> Iterator[Rule]:
    """The rule with one thing wrong."""
    for expr in broken(rule.expr):
        yield replace(rule, expr=expr)
    if isinstance(rule, Recording):
        return
    yield replace(rule, severity="info" if rule.severity != "info" else "page")
    yield replace(rule, about="cost" if rule.about != "cost" else "judge")
    yield replace(rule, alert=f"{rule.alert}s")
    for name in rule.labels:
        yield replace(rule, labels={key: value for key, value in rule.labels.items() if key != name})
    for field in ("for_", "keep_firing_for"):
        given = getattr(rule, field)
        if given:
            yield replace(rule, **{field: ""})
            yield replace(rule, **{field: "3h"})


def alert_groups() -> list[tuple[Group, list[Case]]]:
    """Each alert of the chosen rubric and of the service with the series that it takes, and its cases."""
    (group, _), (_, weekly) = (rule_groups([CHOSEN], policy)["rubric-faithfulness.yml"] for policy in (POLICY, WEEKLY))
    files = rule_groups([CHOSEN], POLICY)
    of_service = [files[f"{name}.yml"][0] for name in ("evaluator", "cost", "delivery")]
    cases = [*cases_of(CHOSEN.name), *service_cases(), *weekly_cases(CHOSEN.name)]
    found = []
    for whole in (group, in_minutes(weekly), *of_service):
        recordings = [rule for rule in whole.rules if isinstance(rule, Recording)]
        for alert in whole.rules:
            if isinstance(alert, Alert):
                own = [
                    case for case in cases if case.alert == alert.alert and case.rule.items() <= alert.labels.items()
                ]
                needed = [recorded for recorded in recordings if recorded.record in alert.expr]
                found.append((replace(whole, rules=[*needed, alert]), own))
    return found


GROUPS = alert_groups()
NAMES = ["-".join([alert.alert, *alert.labels.values()]) for group, _ in GROUPS for alert in [group.rules[-1]]]  # type: ignore[union-attr]


def test_every_alert_has_cases_in_which_it_fires_and_does_not() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 24
    for (_, cases), name in zip(GROUPS, NAMES, strict=True):
        assert any(labels for case in cases for labels in case.at.values()), name
        assert any(not labels for case in cases for labels in case.at.values()), name


@pytest.mark.parametrize(("group", "cases"), GROUPS, ids=NAMES)
def test_a_broken_rule_fails_its_cases(group: Group, cases: list[Case], tmp_path: Path) -> None:
    tests = {}
    for place, rule in enumerate(group.rules):
        for number, mutant in enumerate(mutants(rule)):
            rules = [*group.rules[:place], mutant, *group.rules[place + 1 :]]
            text = written([replace(group, rules=rules)], POLICY)
            for path in write_tests(tmp_path / f"{place}-{number}", text, cases):
                tests[path] = f"{place}-{number}", mutant
    sound = write_tests(tmp_path / "sound", written([group], POLICY), cases)
    said = run_tests([*tests, *sound])
    assert {path.name: said[path] for path in sound if said[path]} == {}
    alive = []
    for name, paths in groupby(tests, key=lambda path: tests[path][0]):
        files = list(paths)
        if not any(said[path] for path in files):
            mutant = tests[files[0]][1]
            alive.append(f"{name}: {mutant}")
    assert len(tests) >= 5
    assert not alive, "\n".join(alive)
