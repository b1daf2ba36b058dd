"""Alerting rules for Prometheus, made of rubrics and settings. Pure: rubrics and a policy in, files out.

docs/explanation/alerts.md says why the rules are what they are, and how often they are wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING

from assay.alerts._quality import burn_threshold, rubric_groups
from assay.alerts._rules import Alert, AlertPolicy, Group, Recording, Rule, Severity, written
from assay.alerts._service import cost_group, delivery_group, evaluator_group

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from assay.rubrics import Rubric

__all__ = [
    "Alert",
    "AlertPolicy",
    "Group",
    "Recording",
    "Rule",
    "Severity",
    "burn_threshold",
    "differences",
    "rule_files",
    "rule_groups",
]

#: How a generated file begins; one that does not is somebody's own, and left alone.
_MARK = "# Made by `assay alerts generate`"
_SOURCE = re.compile(r"^# source: sha256 ([0-9a-f]{64})$", re.MULTILINE)

#: Raised when the rules change though rubrics and policy do not.
_RULES_VERSION = 1


def rule_groups(rubrics: Sequence[Rubric], policy: AlertPolicy) -> dict[str, list[Group]]:
    """Groups of rules by the name of their file, such as `rubric-safety.yml`."""
    files = {f"rubric-{rubric.name}.yml": rubric_groups(rubric, policy) for rubric in rubrics}
    files["evaluator.yml"] = [evaluator_group(policy)]
    files["cost.yml"] = [cost_group(policy)]
    files["delivery.yml"] = [delivery_group(policy)]
    return files


def rule_files(rubrics: Sequence[Rubric], policy: AlertPolicy) -> dict[str, str]:
    """Content of each rule file by its name. Each carries the hash of what it was made from."""
    by_file = {f"rubric-{rubric.name}.yml": rubric for rubric in rubrics}
    return {
        name: f"{_MARK}; change the rubric or the settings, not this file.\n"
        f"# source: sha256 {_source(by_file.get(name), policy)}\n{written(groups, policy)}"
        for name, groups in rule_groups(rubrics, policy).items()
    }


def _source(rubric: Rubric | None, policy: AlertPolicy) -> str:
    """Hash of all that a file depends on; of a rubric only what rules are made of."""
    parts = {"rules": _RULES_VERSION, "policy": asdict(policy)}
    if rubric is not None:
        parts["rubric"] = {"name": rubric.name, "objective": rubric.objective}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """Why each file that is not as it should be is not, by name; empty when all are current.

    Args:
        expected: content by name, see `rule_files`.
        found: content by name of the `*.yml` files that are there; others than assay's are left alone.
    """
    wrong = {}
    for name, content in expected.items():
        there = found.get(name)
        if there is None:
            wrong[name] = "is missing"
        elif there != content:
            source, made_from = _SOURCE.search(content), _SOURCE.search(there)
            same = source is not None and made_from is not None and source[1] == made_from[1]
            wrong[name] = "was changed by hand, or made by another assay" if same else "is out of date"
    for name, there in found.items():
        if name not in expected and there.startswith(_MARK):
            wrong[name] = "is of a rubric that is gone"
    return dict(sorted(wrong.items()))
