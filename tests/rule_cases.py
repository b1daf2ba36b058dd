"""When each generated alert fires and when it does not, as promtool test files. All numbers are made up.

Every bound has a case right below and one right above it, so that whoever moves a bound, a label or a guard finds one
of them failing.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from assay.alerts import AlertPolicy, burn_threshold
from assay.rubrics import Rubric
from servers import missing

#: Seven hours in minutes.
LONG = 420
#: Two weeks and two hours at a 60th of their length, in minutes: promtool takes minutes over the real ones.
WEEKLY_PACE = 1 / 60
TWO_WEEKS = 14 * 24 + 2
VERSION, JUDGE = "1-0a1b2c3d", "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Series as promtool writes them, and which label sets of an alert fire when (in steps)."""

    alert: str
    #: of the rule, where several share the name
    rule: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[str, str]
    #: steps -> label sets that fire then
    at: Mapping[int, Sequence[Mapping[str, str]]]
    step: str = "1m"

    def expectations(self, **of: str) -> list[dict[str, object]]:
        """The entries under `promql_expr_test`, looking at alerts with these labels besides the rule's own."""
        only = "".join(f', {name}="{value}"' for name, value in {**self.rule, **of}.items())
        minutes = int(self.step.removesuffix("m"))
        return [
            {
                "expr": f'ALERTS{{alertname="{self.alert}", alertstate="firing"{only}}}',
                "eval_time": f"{steps * minutes}m",
                "exp_samples": [{"labels": _series(self.alert, labels), "value": 1} for labels in firing],
            }
            for steps, firing in self.at.items()
        ]

    def apart(self, number: int) -> Case:
        """The same of an app, a version and a judge of its own, so that many can stand in one test."""

        def own(text: str) -> str:
            for name in ("shop", VERSION, JUDGE):
                text = text.replace(f'"{name}"', f'"{name}-{number}"')
            return text

        at = {
            steps: [{name: own(f'"{value}"')[1:-1] for name, value in labels.items()} for labels in firing]
            for steps, firing in self.at.items()
        }
        return replace(self, series={own(name): values for name, values in self.series.items()}, at=at)


def _tests(cases: Sequence[Case]) -> Iterator[dict[str, object]]:
    """The entries under `tests` of a promtool file. One takes long to set up, so cases share one if they can."""
    shared: list[dict[str, object]] = []
    series: dict[str, str] = {}
    for number, case in enumerate(cases):
        if all(f'"{JUDGE}"' in name for name in case.series):
            case = case.apart(number)
            series |= case.series
            shared += case.expectations(judge=f"{JUDGE}-{number}")
        else:
            yield _test(case.step, case.series, case.expectations())
    if shared:
        yield _test(cases[0].step, series, shared)


def _test(step: str, series: Mapping[str, str], expectations: Sequence[dict[str, object]]) -> dict[str, object]:
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": step, "input_series": inputs, "promql_expr_test": expectations}


def _series(alert: str, labels: Mapping[str, str]) -> str:
    given = {"alertname": alert, "alertstate": "firing", **labels}
    return "ALERTS{" + ", ".join(f'{name}="{value}"' for name, value in given.items()) + "}"


def steady(values: Mapping[str, float | str], steps: int = LONG) -> dict[str, str]:
    """Series that stay as they are; a text is taken as promtool writes values."""
    return {name: value if isinstance(value, str) else f"{value!r}x{steps}" for name, value in values.items()}


# -- of one rubric


def rubric_cases(rubric: Rubric, policy: AlertPolicy) -> Iterator[Case]:
    """Of every alert of the rubric but the weekly one."""
    yield from _drop(rubric.name)
    yield from _judge(rubric.name)
    yield from _failing(rubric.name)
    if rubric.objective is not None:
        fast, slow = (burn_threshold(rubric.objective, burn) for burn in (0.02 * 30 * 24, 0.1 * 30))
        yield from _burn(rubric.name, "fast", "1h", "5m", round(fast, 4), wait=2, keep=10)
        yield from _burn(rubric.name, "slow", "24h", "1h", round(slow, 4), wait=15, keep=60)
        yield from _level(rubric.name, rubric.objective)


def _who(rubric: str) -> dict[str, str]:
    return {"app": "shop", "rubric": rubric, "rubric_version": VERSION, "judge": JUDGE}


def _of(rubric: str, **more: str) -> str:
    return "{" + ", ".join(f'{k}="{v}"' for k, v in (_who(rubric) | more).items()) + "}"


def _instrument(rubric: str, **more: str) -> str:
    labels = {"rubric": rubric, "rubric_version": VERSION, "judge": JUDGE} | more
    return "{" + ", ".join(f'{k}="{v}"' for k, v in labels.items()) + "}"


def _windows(rubric: str, metric: str, values: Mapping[str, float | str], **more: str) -> dict[str, float | str]:
    return {f"{metric}{_of(rubric, window=window, **more)}": value for window, value in values.items()}


def _guards(rubric: str, window: str, records: float) -> dict[str, float | str]:
    """So many effective records in that window alone, and a version that does not wait."""
    others = dict.fromkeys(("5m", "1h", "24h"), 0.0)
    return {
        **_windows(rubric, "assay_app_window_effective_records", others | {window: records}),
        f"assay_rubric_state{_instrument(rubric, state='waiting')}": 0.0,
        f"assay_rubric_state{_instrument(rubric, state='active')}": 1.0,
    }


def _unguarded(rubric: str, window: str, base: Mapping[str, float | str]) -> Iterator[dict[str, float | str]]:
    """The same with too few records, and with a version that waits at its gate."""
    yield {**base, **_guards(rubric, window, 29.0)}
    yield {**base, f"assay_rubric_state{_instrument(rubric, state='waiting')}": 1.0}


def _drop(rubric: str) -> Iterator[Case]:
    alert, alarm = "AssayQualityDrop", f"assay_change_alarm{_of(rubric, route='search')}"
    fires = {**_who(rubric), "route": "search", "severity": "page", "about": "quality"}
    base = {alarm: 1.0, **_guards(rubric, "24h", 30.0)}
    yield Case(alert=alert, series=steady(base), at={4: [], 5: [fires]})
    for other in ({**base, alarm: 0.0}, *_unguarded(rubric, "24h", base)):
        yield Case(alert=alert, series=steady(other), at={30: []})
    other = {
        **base,
        alarm: 0.0,
        f"assay_change_alarm{_of('other', route='search')}": 1.0,
        **_guards("other", "24h", 99),
    }
    yield Case(alert=alert, series=steady(other), at={30: []})


def _burn(rubric: str, burn: str, long: str, short: str, bound: float, *, wait: int, keep: int) -> Iterator[Case]:
    alert, rule = "AssayQualityBudgetBurn", {"burn": burn}
    severity = "page" if burn == "fast" else "ticket"
    fires = {**_who(rubric), "window": long, "severity": severity, "about": "quality", "burn": burn}

    def base(upper: float | str, now: float | str) -> dict[str, float | str]:
        healthy = dict.fromkeys(("5m", "1h", "24h"), 0.999)
        return {
            **_windows(rubric, "assay_app_pass_ratio_ci_upper", healthy | {long: upper}),
            **_windows(rubric, "assay_app_pass_ratio", healthy | {short: now}),
            **_guards(rubric, long, 30.0),
        }

    low, high = bound - 0.0005, bound + 0.0005
    yield Case(alert=alert, rule=rule, series=steady(base(low, low)), at={wait - 1: [], wait: [fires]})
    others = (base(high, low), base(low, high), *_unguarded(rubric, long, base(low, low)))
    for other in others:
        yield Case(alert=alert, rule=rule, series=steady(other), at={90: []})
    mended = base(f"{low!r}x29 {high!r}x{LONG}", low)
    yield Case(alert=alert, rule=rule, series=steady(mended), at={29: [fires], 29 + keep: [fires], 31 + keep: []})


def _level(rubric: str, objective: float) -> Iterator[Case]:
    alert = "AssayQualityBelowObjective"
    fires = {**_who(rubric), "window": "24h", "severity": "ticket", "about": "quality"}

    def base(upper: float | str, ok: float = 1.0) -> dict[str, float | str]:
        return {
            **_windows(rubric, "assay_app_pass_ratio_corrected_ci_upper", {"1h": 0.999, "24h": upper}),
            **_windows(rubric, "assay_app_calibration_state", {"1h": 0.0, "24h": ok}, state="ok"),
            **_windows(rubric, "assay_app_calibration_state", {"1h": 0.0, "24h": 1.0 - ok}, state="too_wide"),
            **_guards(rubric, "24h", 30.0),
        }

    low, high = objective - 0.0005, objective + 0.0005
    yield Case(alert=alert, series=steady(base(low)), at={14: [], 15: [fires]})
    for other in (base(high), base(low, 0.0), *_unguarded(rubric, "24h", base(low))):
        yield Case(alert=alert, series=steady(other), at={90: []})
    mended = base(f"{low!r}x29 {high!r}x{LONG}")
    yield Case(alert=alert, series=steady(mended), at={29: [fires], 89: [fires], 91: []})


def _judge(rubric: str) -> Iterator[Case]:
    labels = {"rubric": rubric, "rubric_version": VERSION, "judge": JUDGE}
    changed = {f"assay_drift_verdict{_instrument(rubric, verdict='judge')}": 1.0}
    fires = {**labels, "verdict": "judge", "severity": "ticket", "about": "judge"}
    yield Case(alert="AssayJudgeChanged", series=steady(changed), at={1: [fires]})
    for verdict, of in (("product", rubric), ("unknown", rubric), ("judge", "other")):
        none = {
            **dict.fromkeys(changed, 0.0),
            f"assay_drift_verdict{_instrument(of, verdict=verdict)}": 1.0,
        }
        yield Case(alert="AssayJudgeChanged", series=steady(none), at={30: []})

    days, series = 90 * 86_400, f"assay_calibration_age_seconds{_instrument(rubric)}"
    old = {**labels, "severity": "ticket", "about": "judge", "cause": "age"}
    stale, rule = "AssayCalibrationStale", {"cause": "age"}
    yield Case(alert=stale, rule=rule, series=steady({series: days + 1.0}), at={59: [], 60: [old]})
    yield Case(alert=stale, rule=rule, series=steady({series: days - 1.0}), at={90: []})

    state = _windows(rubric, "assay_app_calibration_state", {"1h": 0.0, "24h": 1.0}, state="stale")
    refuted = {**_who(rubric), "window": "24h", "state": "stale", "severity": "ticket", "about": "judge"}
    refuted, rule = {**refuted, "cause": "audit"}, {"cause": "audit"}
    base = {**state, **_guards(rubric, "24h", 30.0)}
    yield Case(alert=stale, rule=rule, series=steady(base), at={59: [], 60: [refuted]})
    sound = {**dict.fromkeys(base, 0.0), **_guards(rubric, "24h", 30.0)}
    for other in ({**base, **_guards(rubric, "24h", 29.0)}, sound):
        yield Case(alert=stale, rule=rule, series=steady(other), at={90: []})


def _failing(rubric: str) -> Iterator[Case]:
    alert = "AssayJudgeFailing"
    labels = {"rubric": rubric, "judge": JUDGE, "kind": "timeout"}
    fires = {**labels, "severity": "ticket", "about": "evaluator"}

    def counted(shares: Sequence[tuple[int, float]], rate: float, other: float = 0.0) -> dict[str, str]:
        """So many evaluations a step, of which so many time out; `other` more of them fail in another way."""

        def grown(per_minute: Iterable[tuple[int, float]]) -> str:
            value, parts = 0.0, []
            for minutes, each in per_minute:
                parts.append(f"{value!r}+{each!r}x{minutes}")
                value += each * (minutes + 1)
            return " ".join(parts)

        steps = sum(n + 1 for n, _ in shares)
        return {
            f"assay_failures_total{_of(rubric, kind='timeout')}": grown([(n, rate * share) for n, share in shares]),
            f"assay_failures_total{_of(rubric, kind='refused')}": grown([(steps, rate * other)]),
            f"assay_evaluations_total{_of(rubric, outcome='failed')}": grown(
                [(n, rate * (share + other)) for n, share in shares]
            ),
            f"assay_evaluations_total{_of(rubric, outcome='scored')}": grown(
                [(n, rate * (1 - share - other)) for n, share in shares]
            ),
            f"assay_evaluations_total{_of(rubric, outcome='not_applicable')}": f"0+7x{LONG}",
        }

    yield Case(alert=alert, series=counted([(90, 0.102)], 5), at={9: [], 50: [fires]})
    yield Case(alert=alert, series=counted([(90, 0.098)], 5), at={80: []})
    yield Case(alert=alert, series=counted([(60, 0.0), (60, 0.102)], 5), at={75: []})
    yield Case(alert=alert, series=counted([(90, 0.5)], 1.01), at={80: [fires]})
    yield Case(alert=alert, series=counted([(90, 0.5)], 0.98), at={80: []})
    # Four times as many as over the day, and at least 2 %; 40 minutes after a day, in steps of ten.
    for before, now, over in ((0.0125, 0.06, True), (0.0125, 0.045, False), (0.0, 0.0207, True), (0.0, 0.0193, False)):
        series = counted([(143, before), (6, now)], 50)
        yield Case(alert=alert, series=series, at={148: [fires] if over else []}, step="10m")
    refused = {**fires, "kind": "refused"}
    mixed = counted([(143, 0.0125), (6, 0.06)], 50, other=0.5)
    yield Case(alert=alert, series=mixed, at={148: [refused, fires]}, step="10m")


def weekly_cases(rubric: str) -> Iterator[Case]:
    """Of the weekly average, by rules of the pace `WEEKLY_PACE`."""
    alert = "AssayWeeklyAverageDown"
    fires = {**_who(rubric), "window": "24h", "severity": "ticket", "about": "quality"}
    half = TWO_WEEKS // 2

    def base(now: float | str, records: float | str = 72.0) -> dict[str, float | str]:
        return {
            **_windows(rubric, "assay_app_score_mean", {"24h": f"0.9x{half} {now}x{half}", "1h": 0.9}),
            **_windows(rubric, "assay_app_window_interactions", {"24h": 100.0, "1h": 3.0}),
            **_guards(rubric, "24h", 0.0),
            **_windows(rubric, "assay_app_window_effective_records", {"24h": records, "1h": 1.0}),
        }

    end = {TWO_WEEKS - 1: [fires]}
    none: dict[int, list[dict[str, str]]] = {TWO_WEEKS - 1: []}
    few, enough = f"70.0x{half}", f"72.0x{half}"
    quiet = {
        **base("0.5"),
        **_windows(rubric, "assay_app_window_interactions", {"24h": f"100.0x{half} 0.0x{half - 20} 100.0x20"}),
        **_windows(rubric, "assay_app_score_mean", {"24h": f"0.9x{half} 0.5x{half - 20} 0.9x20"}),
    }
    waiting = {f"assay_rubric_state{_instrument(rubric, state='waiting')}": 1.0}
    for series, at in (
        (base("0.85"), end),
        (base("0.86"), none),
        (base("0.85", f"{few} {enough}"), none),
        (base("0.85", f"{enough} {few}"), none),
        (quiet, none),
        ({**base("0.85"), **waiting}, none),
    ):
        yield Case(alert=alert, series=steady(series, TWO_WEEKS), at=at)
    # Active from the last minute but one, and true all along.
    active = {next(iter(waiting)): f"1x{TWO_WEEKS - 4} 0x10"}
    at = {TWO_WEEKS - 3: [], TWO_WEEKS - 2: [fires]}
    yield Case(alert=alert, series=steady({**base("0.84"), **active}, TWO_WEEKS), at=at)


# -- of the service


def service_cases() -> Iterator[Case]:
    """Of every alert that is of no rubric."""
    yield from _blind()
    yield from _evaluator()
    yield from _cost()
    yield from _delivery()


_ACCEPTED, _LAST = "assay_queue_accepted_total", 'assay_last_score_timestamp_seconds{rubric="r"}'
_SCORED, _NOT_APPLICABLE, _FAILED = (
    f'assay_evaluations_total{{rubric="r", judge="j", outcome="{outcome}"}}'
    for outcome in ("scored", "not_applicable", "failed")
)
_SLOW = f"0+0.02x{LONG}"


def _blind() -> Iterator[Case]:
    alert = "AssayEvaluatorBlind"

    def fires(cause: str, **labels: str) -> dict[str, str]:
        return {**labels, "severity": "page", "about": "evaluator", "cause": cause}

    rule = {"cause": "no_scores"}
    inapplicable, over, thinned = (
        f'assay_not_applicable_total{{rubric="r", judge="j", reason="{reason}"}}'
        for reason in ("missing_contexts", "passed_over_by_cascade", "thinned_by_budget")
    )
    base = {_ACCEPTED: _SLOW, _SCORED: 5.0, inapplicable: 5.0, _FAILED: _SLOW, _LAST: 0.0}
    # Nobody was asked for these, so they tell of no judge that lives.
    base |= {over: _SLOW, thinned: _SLOW, _NOT_APPLICABLE: _SLOW}
    yield Case(alert=alert, rule=rule, series=steady(base), at={39: [], 40: [fires("no_scores")]})
    for other in ({_ACCEPTED: 5.0}, {_SCORED: _SLOW}, {inapplicable: _SLOW}, {_LAST: 1e6}):
        yield Case(alert=alert, rule=rule, series=steady({**base, **other}), at={90: []})

    rule, oldest = {"cause": "backlog"}, "assay_oldest_pending_seconds"
    yield Case(alert=alert, rule=rule, series=steady({oldest: 901.0}), at={4: [], 5: [fires("backlog")]})
    yield Case(alert=alert, rule=rule, series=steady({oldest: 899.0}), at={30: []})

    rule, judge = {"cause": "worker_gone"}, 'assay_judge_info{judge="j", judge_fingerprint="f"}'
    gone: dict[str, float | str] = {judge: f"1x10 stale _x{LONG}", "assay_queue_records": 1.0}
    yield Case(alert=alert, rule=rule, series=steady(gone), at={15: [], 16: [fires("worker_gone")], 380: []})
    for other in ({judge: 1.0}, {"assay_queue_records": 0.0}, {judge: f"_x{LONG}"}):
        yield Case(alert=alert, rule=rule, series=steady({**gone, **other}), at={16: [], 60: []})

    rule, store, queue = {"cause": "exporter_gone"}, 'assay_up{component="store"}', 'assay_up{component="queue"}'
    yield Case(alert=alert, rule=rule, series=steady({"x": 1.0}), at={4: [], 5: [fires("exporter_gone")]})
    yield Case(alert=alert, rule=rule, series=steady({store: 0.0}), at={30: []})
    rule = {"cause": "component_away"}
    away = [fires("component_away", component="store")]
    yield Case(alert=alert, rule=rule, series=steady({store: 0.0, queue: 1.0}), at={4: [], 5: away})
    yield Case(alert=alert, rule=rule, series=steady({store: 1.0, queue: 1.0}), at={30: []})


def _evaluator() -> Iterator[Case]:
    alert, oldest, records = "AssayEvaluatorBehind", "assay_oldest_pending_seconds", "assay_queue_records"
    fires = {"severity": "ticket", "about": "evaluator"}
    behind = {oldest: 301.0, records: f"0+1x{LONG}"}
    yield Case(alert=alert, series=steady(behind), at={15: [], 16: [fires]})
    for other in ({oldest: 299.0}, {records: 50.0}):
        yield Case(alert=alert, series=steady({**behind, **other}), at={60: []})

    alert, old, new = (
        "AssayJudgeReplaced",
        'assay_judge_info{judge="j", judge_fingerprint="old"}',
        'assay_judge_info{judge="j", judge_fingerprint="new"}',
    )
    fires = {"judge": "j", "judge_fingerprint": "new", "severity": "info", "about": "judge"}
    replaced = {old: f"1x100 stale _x{LONG}", new: f"_x100 1x{LONG}"}
    yield Case(alert=alert, series=steady(replaced), at={99: [], 102: [fires], 150: [fires], 165: []})
    yield Case(alert=alert, series=steady({new: 1.0}), at={1: [], 30: [], 90: []})
    other = 'assay_judge_info{judge="other", judge_fingerprint="x"}'
    yield Case(alert=alert, series=steady({old: 1.0, other: f"_x100 1x{LONG}"}), at={102: []})

    age = 'assay_canary_age_seconds{rubric="r", rubric_version="v", judge="j"}'
    fires = {"rubric": "r", "rubric_version": "v", "judge": "j", "severity": "ticket", "about": "judge"}
    bound = 3 * 24 * 3600
    yield Case(alert="AssayCanaryStale", series=steady({age: bound + 1.0}), at={59: [], 60: [fires]})
    yield Case(alert="AssayCanaryStale", series=steady({age: bound - 1.0}), at={90: []})

    alert, overflow = "AssaySeriesOverflow", "assay_series_overflow_total"
    fires = {"severity": "info", "about": "evaluator"}
    yield Case(alert=alert, series=steady({overflow: f"0+0.01x{LONG}"}), at={60: [fires]})
    yield Case(alert=alert, series=steady({overflow: 5.0}), at={90: []})
    ended = {overflow: f"0x60 0.5x{LONG}"}
    yield Case(alert=alert, series=steady(ended), at={59: [], 62: [fires], 178: [fires], 183: []})


def _cost() -> Iterator[Case]:
    alert = "AssayJudgeCostHigh"
    fires = {"rubric": "r", "judge": "j", "severity": "ticket", "about": "cost"}

    def spent(each: float, rate: float) -> dict[str, float | str]:
        before, now = rate * 0.01, rate * 10 * each
        return {
            'assay_evaluation_cost_usd_total{rubric="r", judge="j"}': (f"0+{before!r}x100 {101 * before!r}+{now!r}x20"),
            _SCORED: f"0+{rate * 5!r}x120",
            _FAILED: f"0+{rate * 5!r}x120",
            _NOT_APPLICABLE: "0+90x120",
        }

    # An hour and a half later the mean of it all is (100 + 9 x) / 109 of what it was. In steps of ten minutes.
    for each, rate, over in ((0.0025, 1.0, True), (0.0021, 1.0, False), (0.0025, 0.505, True), (0.0025, 0.49, False)):
        at = {106: [], 109: [fires] if over else []}
        yield Case(alert=alert, series=spent(each, rate), at=at, step="10m")

    alert, used = "AssayBudgetNearlySpent", 'assay_budget_used_ratio{budget="day"}'
    fires = {"budget": "day", "severity": "ticket", "about": "cost"}
    yield Case(alert=alert, series=steady({used: 0.901}), at={1: [fires]})
    yield Case(alert=alert, series=steady({used: 0.899}), at={1: []})
    twice = [used.replace("{", f'{{instance="{n}", ') for n in (1, 2)]
    yield Case(alert=alert, series=steady(dict.fromkeys(twice, 0.901)), at={1: [fires]})


def _delivery() -> Iterator[Case]:
    oldest = 'assay_outbox_oldest_seconds{sink="phoenix"}'
    fires = {"sink": "phoenix", "severity": "ticket", "about": "delivery"}
    yield Case(alert="AssaySinkBacklog", series=steady({oldest: 1801.0}), at={14: [], 15: [fires]})
    yield Case(alert="AssaySinkBacklog", series=steady({oldest: 1799.0}), at={60: []})

    written = 'assay_sink_writes_total{{sink="phoenix", outcome="{}"}}'
    for outcome in ("rejected", "expired"):
        fires = {"sink": "phoenix", "outcome": outcome, "severity": "ticket", "about": "delivery"}
        yield from _appears("AssaySinkRejects", written.format(outcome), fires, 60, component="database", wait=5)
    yield Case(alert="AssaySinkRejects", series=steady({written.format("delivered"): f"0+1x{LONG}"}), at={90: []})

    dropped = 'assay_client_dropped_total{app="shop", reason="full"}'
    fires = {"app": "shop", "reason": "full", "severity": "ticket", "about": "delivery"}
    yield from _appears("AssayClientDrops", dropped, fires, 15, component="redis")
    ended = steady({dropped: f"0x60 0.5x{LONG}"})
    yield Case(alert="AssayClientDrops", series=ended, at={59: [], 62: [fires], 88: [fires], 93: []})

    fires = {"reason": "invalid", "severity": "ticket", "about": "delivery"}
    yield from _appears(
        "AssayDeadLetters", 'assay_dead_letters_total{reason="invalid"}', fires, 60, component="database"
    )


def _appears(
    alert: str, series: str, fires: Mapping[str, str], minutes: int, *, component: str, wait: int = 0
) -> Iterator[Case]:
    """A counter that grows, one that is born, and those that have long been what they are."""
    up = f'assay_up{{component="{component}"}}'
    born = 2 * minutes
    at = {born + 1 + max(0, wait - 2): [], born + 1 + wait: [fires]} if wait else {born - 1: [], born + 1: [fires]}
    yield Case(alert=alert, series=steady({series: f"0+{0.6 / minutes!r}x{LONG}"}), at={2 * minutes: [fires]})
    yield Case(alert=alert, series=steady({up: 1.0, series: f"_x{born} 0.5x{LONG}"}), at=at)
    yield Case(alert=alert, series=steady({up: 1.0, series: 5.0}), at={2 * minutes: []})
    new = steady({up: f"_x{born} 1x{LONG}", series: f"_x{born} 5x{LONG}"})
    yield Case(alert=alert, series=new, at={born + 1 + wait: []})
    # One that was there, and could not be read for a while before.
    blind = steady({up: f"0x{born} 1x{LONG}", series: f"_x{born} 5x{LONG}"})
    yield Case(alert=alert, series=blind, at={born + 1 + wait: []})
    gap = steady({up: f"1x{born} 0x9 1x{LONG}", series: f"5x{born} stale _x8 5x{LONG}"})
    yield Case(
        alert=alert, series=gap, at={born + step: [] for step in (5, 12, minutes + 3, minutes + 8, minutes + 15)}
    )
    # An exporter takes another's place; two stand side by side.
    one, two = (series.replace("{", f'{{instance="{n}", ') for n in (1, 2))
    moved = steady({up: 1.0, one: f"5x{born} stale", two: f"_x{born} 5x{LONG}"})
    yield Case(alert=alert, series=moved, at={born + 1 + wait: [], born + minutes: []})
    both = steady({up: 1.0, one: f"0+{0.6 / minutes!r}x{LONG}", two: f"0+{0.6 / minutes!r}x{LONG}"})
    yield Case(alert=alert, series=both, at={2 * minutes: [fires]})


# -- running them


def promtool() -> str:
    """The binary; skips or fails where there is none."""
    binary = shutil.which("promtool")
    if binary is None:
        missing("promtool")
    return str(binary)


def write_tests(stem: Path, rules: str, cases: Iterable[Case]) -> list[Path]:
    """A test file for each step of the cases, with their rule file beside them."""
    rule_file = stem.with_name(f"{stem.name}.rules.yml")
    rule_file.write_text(rules)
    by_step: dict[str, list[Case]] = {}
    for case in cases:
        by_step.setdefault(case.step, []).append(case)
    paths = []
    for step, of_step in by_step.items():
        path = stem.with_name(f"{stem.name}.{step}.json")
        tests = {"rule_files": [rule_file.name], "evaluation_interval": step, "tests": list(_tests(of_step))}
        path.write_text(json.dumps(tests))
        paths.append(path)
    return paths


def run_tests(paths: Sequence[Path]) -> dict[Path, str]:
    """What promtool says of each test file: empty where all is as expected."""
    done = subprocess.run(
        [promtool(), "test", "rules", *map(str, paths)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    # What fails is said on standard error, what does not on standard output.
    said = re.split(r"^Unit Testing: +(.+)$", done.stdout, flags=re.MULTILINE)
    found = {Path(name): text.strip() for name, text in zip(said[1::2], said[2::2], strict=True)}
    assert set(found) == set(paths), done.stdout
    assert bool(done.returncode) == any(not text.startswith("SUCCESS") for text in found.values())
    return {path: "" if text.startswith("SUCCESS") else text for path, text in found.items()}
