"""How often the shipped alerting rules page for nothing, and how soon they notice a drop, beside the plain rule.

    .venv/bin/python benchmarks/alerts.py            the table of docs/explanation/alerts.md, some minutes
    .venv/bin/python benchmarks/alerts.py --check    also that promtool, with the shipped rules, says the same

Traffic is simulated: records come as a Poisson stream with a daily rhythm and pass at random at the objective; a drop
lowers that share by so many points at once. Seeded, so that the same numbers come out. The detector is
`assay.changes.Stream` itself, shown every record in order. The gauges are those of `assay.windows`, minute by minute.
The rules are evaluated by the minute, as Prometheus does it: an expression must hold for the time of `for`, and an
alert goes on firing for `keep_firing_for`.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from assay.alerts import Alert, AlertPolicy, burn_threshold, rule_files, rule_groups
from assay.changes import ChangePolicy, Stream
from assay.rubrics import SHIPPED, Rubric, load_rubrics
from assay.store import WatchedScore

WEEK = 7 * 24 * 60
#: for the windows and the detector to fill; not counted
WARM_UP = 7 * 24 * 60
#: minutes of the gauges' windows, which take in the running minute besides
WINDOWS = {"5m": 6, "1h": 61, "24h": 1441}
#: the detector reads a minute when it has closed and settled, and Prometheus sees that one scrape later
SETTLE = 4
Z = 1.959963984540054
EPOCH = datetime(2026, 1, 5, tzinfo=UTC).timestamp()


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What happened in each minute."""

    records: np.ndarray
    passes: np.ndarray
    #: minute and verdict of each record, in order
    minute: np.ndarray
    passed: np.ndarray


def traffic(rng: np.random.Generator, *, minutes: int, per_hour: float, share: np.ndarray) -> Traffic:
    """Records of so many minutes; `share` of those of each minute pass."""
    day = np.arange(minutes) % 1440 / 1440
    rate = per_hour / 60 * (1 + 0.7 * np.sin(2 * np.pi * (day - 0.25)))
    records = rng.poisson(rate)
    minute = np.repeat(np.arange(minutes), records)
    passed = rng.random(len(minute)) < share[minute]
    passes = np.bincount(minute, weights=passed, minlength=minutes)
    return Traffic(records=records, passes=passes, minute=minute, passed=passed)


def rolling(values: np.ndarray, width: int) -> np.ndarray:
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    return total[end] - total[np.maximum(end - width, 0)]


def wilson_upper(ratio: np.ndarray, n: np.ndarray) -> np.ndarray:
    n = np.maximum(n, 1)
    centre = (ratio + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * np.sqrt(ratio * (1 - ratio) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return np.minimum(1.0, np.maximum(ratio, centre + half))


def gauges(seen: Traffic) -> dict[str, dict[str, np.ndarray]]:
    """Of each window: n, ratio and upper, NaN where there is no sample. All records weigh the same."""
    found = {}
    for window, width in WINDOWS.items():
        n = rolling(seen.records, width)
        ratio = np.divide(rolling(seen.passes, width), n, out=np.full(len(n), np.nan), where=n > 0)
        found[window] = {"n": n, "ratio": ratio, "upper": np.where(n > 0, wilson_upper(ratio, n), np.nan)}
    return found


def firing(holds: np.ndarray, wait: int, keep: int) -> np.ndarray:
    """When an alert fires whose expression holds so: after `wait` minutes of it, until `keep` minutes after it."""
    found = np.zeros(len(holds), bool)
    pending_since = gone_since = None
    fires = False
    for minute, true in enumerate(holds.tolist()):
        if true:
            pending_since = minute if pending_since is None else pending_since
            gone_since = None
            fires = fires or minute - pending_since >= wait
        else:
            gone_since = minute if gone_since is None else gone_since
            fires = fires and minute - gone_since < keep
            pending_since = pending_since if fires else None
        found[minute] = fires
    return found


def drop_alarm(seen: Traffic, minutes: int, objective: float, policy: ChangePolicy) -> np.ndarray:
    """`assay_change_alarm` of each minute: the detector of the service, told every record."""
    stream = Stream()
    alarm = np.zeros(minutes, np.int8)
    stream.expect(objective, policy, 1)
    key: Any = None
    # The service takes the policy anew whenever it reads on; the run length follows the rate of records.
    for number, (minute, passed) in enumerate(zip(seen.minute.tolist(), seen.passed.tolist(), strict=True)):
        if number % 50 == 0:
            stream.expect(objective, policy, 1)
        at = datetime.fromtimestamp(EPOCH + minute * 60, UTC)
        score = WatchedScore(
            key=key, record_id=str(number), timestamp=at, weight=1.0, passed=bool(passed), judge_model=None
        )
        happening = stream.take(score, objective, policy)
        if happening is not None and happening.kind in ("alarm", "recovered"):
            alarm[minute + SETTLE :] = happening.kind == "alarm"
    return alarm


def evaluate(seen: Traffic, minutes: int, rubric: Rubric, policy: AlertPolicy) -> dict[str, np.ndarray]:
    """When each rule on the pass ratio fires, and the plain rule, by minute."""
    objective = rubric.objective or 0.0
    of = gauges(seen)
    fast = round(burn_threshold(objective, 0.02 * policy.budget_days * 24), 4)
    slow = round(burn_threshold(objective, 0.1 * policy.budget_days), 4)
    enough = {window: of[window]["n"] >= policy.min_records for window in WINDOWS}
    with np.errstate(invalid="ignore"):
        return {
            "plain": firing(of["1h"]["ratio"] < objective, 15, 0),
            "drop": firing((drop_alarm(seen, minutes, objective, ChangePolicy()) == 1) & enough["24h"], 5, 0),
            "fast": firing((of["1h"]["upper"] < fast) & (of["5m"]["ratio"] < fast) & enough["1h"], 2, 10),
            "slow": firing((of["24h"]["upper"] < slow) & (of["1h"]["ratio"] < slow) & enough["24h"], 15, 60),
        }


def starts(on: np.ndarray) -> np.ndarray:
    return np.flatnonzero(on & ~np.concatenate([[False], on[:-1]]))


def false_pages(rubric: Rubric, *, weeks: int, per_hour: float, seed: int) -> dict[str, float]:
    """Alerts a week, by rule, of traffic that passes exactly at the objective."""
    minutes = WARM_UP + weeks * WEEK
    share = np.full(minutes, rubric.objective or 0.0)
    seen = traffic(np.random.default_rng(seed), minutes=minutes, per_hour=per_hour, share=share)
    return {
        name: float((starts(on) >= WARM_UP).sum() / weeks)
        for name, on in evaluate(seen, minutes, rubric, AlertPolicy()).items()
    }


def delays(
    rubric: Rubric, *, points: int, above: float, runs: int, per_hour: float, seed: int, limit: int = 7 * 1440
) -> dict[str, list[float]]:
    """Minutes to the first alert after a drop of so many points, by rule; infinite where none came in the limit.

    Before it, `above` more than the objective passes. A run in which the rule fired as the drop began is left out.
    """
    found: dict[str, list[float]] = {name: [] for name in ("plain", "drop", "fast", "slow")}
    before = min(0.999, (rubric.objective or 0.0) + above)
    for run in range(runs):
        rng = np.random.default_rng([seed, points, run])
        start = WARM_UP + int(rng.integers(1440))
        minutes = start + limit
        share = np.where(np.arange(minutes) < start, before, before - points / 100)
        seen = traffic(rng, minutes=minutes, per_hour=per_hour, share=share)
        for name, on in evaluate(seen, minutes, rubric, AlertPolicy()).items():
            if on[start]:
                continue
            after = starts(on)
            after = after[after >= start]
            found[name].append(float(after[0] - start) if len(after) else math.inf)
    return found


# -- against promtool


def against_promtool(rubric: Rubric, *, hours: int, per_hour: float, seed: int, drop: float) -> int:
    """Compare with the shipped rules, run by promtool on the same gauges; returns how many minutes were compared.

    Raises:
        AssertionError: in some minute they do not agree; the message is promtool's.
    """
    minutes = hours * 60
    share = np.full(minutes, rubric.objective or 0.0)
    share[minutes // 3 : 2 * minutes // 3] -= drop
    seen = traffic(np.random.default_rng(seed), minutes=minutes, per_hour=per_hour, share=share)
    ours, of = evaluate(seen, minutes, rubric, AlertPolicy()), gauges(seen)
    alarm = drop_alarm(seen, minutes, rubric.objective or 0.0, ChangePolicy())
    who = f'app="a", rubric="{rubric.name}", rubric_version="v", judge="j"'
    series = {f"assay_change_alarm{{{who}}}": alarm.astype(float)}
    for window, values in of.items():
        labels = f'{{{who}, window="{window}"}}'
        series[f"assay_app_window_effective_records{labels}"] = np.where(values["n"] > 0, values["n"], np.nan)
        series[f"assay_app_pass_ratio{labels}"] = values["ratio"]
        series[f"assay_app_pass_ratio_ci_upper{labels}"] = values["upper"]
    rules = rule_files([rubric], AlertPolicy())[f"rubric-{rubric.name}.yml"]
    (group, _) = rule_groups([rubric], AlertPolicy())[f"rubric-{rubric.name}.yml"]
    alerts = {
        ("drop" if rule.alert == "AssayQualityDrop" else rule.labels.get("burn", "")): rule
        for rule in group.rules
        if isinstance(rule, Alert) and rule.alert in ("AssayQualityDrop", "AssayQualityBudgetBurn")
    }
    tests = []
    for name, rule in alerts.items():
        only = "".join(f', {label}="{value}"' for label, value in rule.labels.items())
        count = f'count(ALERTS{{alertname="{rule.alert}", alertstate="firing"{only}}}) or vector(0)'
        changes = np.flatnonzero(np.diff(ours[name].astype(int)))
        at = sorted({*range(0, minutes, 97), *changes.tolist(), *(changes + 1).tolist()})
        tests += [
            {"expr": count, "eval_time": f"{m}m", "exp_samples": [{"labels": "{}", "value": int(ours[name][m])}]}
            for m in at
        ]
    inputs = [
        {"series": name, "values": " ".join("stale" if np.isnan(v) else f"{float(v)!r}" for v in values)}
        for name, values in series.items()
    ]
    test = {"interval": "1m", "input_series": inputs, "promql_expr_test": tests}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "rules.yml").write_text(rules)
        file = place / "test.json"
        file.write_text(json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}))
        done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[:3000]
    return len(tests)


# -- the table


def span(minutes: float) -> str:
    if math.isinf(minutes):
        return "–"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def told(found: list[float]) -> str:
    """Median, and the share that was noticed where that is not all."""
    if not found:
        return "already on"
    share = sum(map(math.isfinite, found)) / len(found)
    median = float(np.median(found))
    return span(median) + (f" ({share:.0%} in a week)" if share < 1 else "")


NAMES = {
    "plain": "`gauge < objective` for 15 m (plain)",
    "drop": "`AssayQualityDrop` (page)",
    "fast": "`AssayQualityBudgetBurn` fast (page)",
    "slow": "`AssayQualityBudgetBurn` slow (ticket)",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weeks", type=int, default=20)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rubrics = {rubric.name: rubric for rubric in load_rubrics([SHIPPED])}
    if options.check:
        for name, drop in (("completeness", 0.6), ("safety", 0.2)):
            compared = against_promtool(rubrics[name], hours=60, per_hour=200, seed=options.seed, drop=drop)
            print(f"promtool agrees on {name} in {compared} samples")
    print("| objective | records/h | rule | false a week | drop of 5 points | 10 points | 20 points |")
    print("|---|---|---|---|---|---|---|")
    for name, per_hour in (("completeness", 200.0), ("completeness", 20.0), ("safety", 200.0)):
        rubric = rubrics[name]
        false = false_pages(rubric, weeks=options.weeks, per_hour=per_hour, seed=options.seed)
        # A product that is a little better than its objective, as most are.
        above = 0.03 if name == "completeness" else 0.005
        by_points = {
            points: delays(rubric, points=points, above=above, runs=options.runs, per_hour=per_hour, seed=options.seed)
            for points in (5, 10, 20)
        }
        for rule, title in NAMES.items():
            cells = [told(by_points[points][rule]) for points in (5, 10, 20)]
            print(f"| {rubric.objective} | {per_hour:.0f} | {title} | {false[rule]:.2f} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
