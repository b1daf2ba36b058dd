"""A rule of Prometheus, and how a file of them is written."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: page: somebody gets up. ticket: somebody looks in working hours. info: it is written down.
Severity = Literal["page", "ticket", "info"]

#: What an alert is about; Alertmanager inhibits by it. Not `kind`, which failures have.
Topic = Literal["quality", "judge", "evaluator", "cost", "delivery"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertPolicy:
    """What the rules are made of besides the rubrics; the settings `ASSAY_ALERT_...` say what each is for."""

    runbook_url: str = "docs/runbooks"
    #: least effective records in a window before its ratio may alert
    min_records: int = 30
    #: period of the error budget
    budget_days: float = 30.0
    #: age of labels above which a calibration is stale
    calibration_days: float = 90.0
    #: age of the oldest waiting record above which the evaluator is blind
    pending_seconds: float = 900.0
    #: hours between two runs of a canary
    canary_hours: float = 24.0
    #: three of the exporter's windows, from short to long; the budget shares are of an hour and of a day
    windows: tuple[str, str, str] = ("5m", "1h", "24h")
    #: factor on every range and wait; below 1 only where tests compress time
    pace: float = 1.0

    def span(self, seconds: float) -> str:
        """A length of time as Prometheus writes it, at the pace; at least a second."""
        rest = max(1, round(seconds * self.pace))
        for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
            if rest % length == 0 and not (unit == "d" and rest == 86_400):
                return f"{rest // length}{unit}"
        return f"{rest}s"

    def seconds(self, seconds: float) -> str:
        """A number of seconds at the pace."""
        return number(max(1.0, seconds * self.pace))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A series that Prometheus computes."""

    record: str
    expr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert; `alert` is the name of its runbook. Durations as Prometheus writes them, empty for none."""

    alert: str
    expr: str
    severity: Severity
    about: Topic
    summary: str
    description: str
    for_: str = ""
    keep_firing_for: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


Rule = Recording | Alert


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rules that are evaluated one after the other."""

    name: str
    rules: Sequence[Rule]
    #: empty: as often as Prometheus evaluates by default
    interval: str = ""


def number(value: float) -> str:
    """A number as people write it in a rule: at most six digits."""
    return f"{value:.6g}"


def written(groups: Sequence[Group], policy: AlertPolicy) -> str:
    """The YAML of a rule file."""
    lines = ["groups:"]
    for group in groups:
        lines.append(f"  - name: {group.name}")
        if group.interval:
            lines.append(f"    interval: {group.interval}")
        lines.append("    rules:")
        for rule in group.rules:
            lines += _rule(rule, policy)
    return "\n".join(lines) + "\n"


def _rule(rule: Rule, policy: AlertPolicy) -> Iterator[str]:
    name = f"record: {rule.record}" if isinstance(rule, Recording) else f"alert: {rule.alert}"
    yield f"      - {name}"
    yield "        expr: |-"
    yield textwrap.indent(textwrap.dedent(rule.expr).strip(), " " * 10)
    if isinstance(rule, Recording):
        return
    if rule.for_:
        yield f"        for: {rule.for_}"
    if rule.keep_firing_for:
        yield f"        keep_firing_for: {rule.keep_firing_for}"
    yield "        labels:"
    for name, value in {"severity": rule.severity, "about": rule.about, **rule.labels}.items():
        yield f"          {name}: {value}"
    yield "        annotations:"
    runbook = f"{policy.runbook_url.rstrip('/')}/{rule.alert}.md"
    for name, text in (("summary", rule.summary), ("description", rule.description), ("runbook_url", runbook)):
        # JSON is YAML, and quotes what templates have in them.
        yield f"          {name}: {json.dumps(text, ensure_ascii=False)}"
