"""A quiet weekend, ten records an hour, through store, detectors, exporter, and the shipped rules by promtool.

The clock is ours, so that two days pass in seconds: every few minutes records are stored, the watch looks, the exporter
is read; then promtool evaluates the shipped rule files, with their waits as they are, over all that was read.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from assay.changes import ChangePolicy, watch
from assay.metrics import ScoreCollector
from assay.queue import Queue
from assay.records import Evaluation, Record, Score
from assay.rubrics import SHIPPED, Rubric, load_rubrics
from assay.store import Store
from rule_cases import run_tests

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

RULES = Path(__file__).parents[2] / "deploy/prometheus/rules"
SATURDAY = datetime(2026, 3, 7, tzinfo=UTC)
STEP = 4
STEPS = 48 * 60 // STEP
PER_HOUR = 10
LEARNED = 520
#: Of two shipped rubrics: what passes on average, as much above the objective as a team would have it.
USUAL = {"completeness": 0.03, "safety": 0.005}
#: The one app that is not quiet: half of what it says on Sunday is bad. It shows that a page can come of this.
BROKEN = "broken"
#: Apps with ordinary luck, and those with the worst day among so many.
ORDINARY, UNLUCKY, AMONG = 2, 3, 60


class Weekend:
    """Which records an app has, and which of them pass: drawn once, by its seed."""

    def __init__(self, app: str, seed: int, rubrics: dict[str, Rubric]) -> None:
        self.app = app
        chance = random.Random(seed)
        self.arrivals = [sum(chance.random() < PER_HOUR / 60 for _ in range(STEP)) for _ in range(STEPS)]
        self.shares = {name: (rubric.objective or 0.0) + USUAL[name] for name, rubric in rubrics.items()}
        self.passes = [
            [
                {
                    name: chance.random() < (0.5 if app == BROKEN and step >= STEPS / 2 else share)
                    for name, share in self.shares.items()
                }
                for _ in range(n)
            ]
            for step, n in enumerate(self.arrivals)
        ]
        self.past = [{name: chance.random() < share for name, share in self.shares.items()} for _ in range(LEARNED)]

    def worst_hours(self, hours: int = 8) -> float:
        """Least share of completeness that passes in any stretch of so many hours."""
        width = hours * 60 // STEP
        fails = [sum(not passed["completeness"] for passed in step) for step in self.passes]
        return min(
            1 - sum(fails[at : at + width]) / max(1, sum(self.arrivals[at : at + width]))
            for at in range(0, STEPS - width, 15)
        )


def weekends(rubrics: dict[str, Rubric]) -> list[Weekend]:
    drawn = [Weekend(f"app-{seed}", seed, rubrics) for seed in range(AMONG)]
    unlucky = sorted(drawn[ORDINARY:], key=Weekend.worst_hours)[:UNLUCKY]
    return [*drawn[:ORDINARY], *unlucky, Weekend(BROKEN, AMONG, rubrics)]


def scored(
    app: str, at: datetime, passes: dict[str, bool], rubrics: dict[str, Rubric]
) -> tuple[Record, list[Evaluation]]:
    record = Record(record_id=f"{app}-{at:%d%H%M%S%f}", timestamp=at, app=app, input="A question?", output="An answer.")
    return record, [
        Evaluation(
            record_id=record.record_id,
            rubric=name,
            rubric_version=rubrics[name].revision,
            rubric_hash=rubrics[name].hash,
            judge="synthetic",
            judge_fingerprint="f" * 64,
            outcome=Score(value=float(passed), passed=passed),
        )
        for name, passed in passes.items()
    ]


class Service:
    """Store, queue, watch and exporter with a clock of their own; keeps what the exporter shows."""

    def __init__(self, store: Store, queue: Queue, rubrics: dict[str, Rubric], read: frozenset[str]) -> None:
        self.store, self.queue, self.rubrics, self.read = store, queue, rubrics, read
        self.present = SATURDAY
        self.last_scored = SATURDAY
        self.collector = ScoreCollector(
            store,
            queue,
            clock=lambda: self.present.timestamp(),  # noqa: PLW0108 - the present moves
            rubrics=list(rubrics.values()),
        )
        self.shown: dict[str, list[str]] = {}

    def commit(self, pairs: list[tuple[Record, list[Evaluation]]]) -> None:
        self.store.commit([(r, r.to_json()) for r, _ in pairs], [e for _, found in pairs for e in found])

    def learn(self, weekend: Weekend) -> None:
        gap = timedelta(hours=1) / PER_HOUR
        self.commit(
            [
                scored(weekend.app, SATURDAY - gap * (LEARNED - n), passes, self.rubrics)
                for n, passes in enumerate(weekend.past)
            ]
        )

    def look(self) -> None:
        watch(self.store, self.rubrics.values(), ChangePolicy(), clock=lambda: self.present, oldest_pending=None)

    def live(self, step: int, all_of: list[Weekend]) -> None:
        """A step of the clock: what came in it is scored, looked at, and shown."""
        self.present = SATURDAY + timedelta(minutes=STEP * (step + 1))
        pairs = [
            scored(one.app, self.present - timedelta(seconds=5 + 3 * n), passes, self.rubrics)
            for one in all_of
            for n, passes in enumerate(one.passes[step])
        ]
        if pairs:
            # Through the queue they came: it counts them.
            batch_id = f"{step:032x}"
            self.queue.push(b"{}", batch_id=batch_id, records=len(pairs), enqueued_at=self.present.timestamp())
            self.queue.finish(batch_id)
            self.commit(pairs)
            self.last_scored = self.present
        self.look()
        self._show(step)

    def _show(self, step: int) -> None:
        seen = set()
        for family in self.collector.collect():
            for sample in family.samples:
                if sample.name not in self.read:
                    continue
                value = sample.value
                if sample.name == "assay_last_score_timestamp_seconds":
                    # The store dates it by its own clock; promtool's begins at 0.
                    value = (self.last_scored - SATURDAY).total_seconds()
                labels = ", ".join(f"{name}={json.dumps(text)}" for name, text in sample.labels.items())
                series = f"{sample.name}{{{labels}}}"
                values = self.shown.setdefault(series, ["_"] * step)
                values.append(repr(value))
                seen.add(series)
        for series in self.shown.keys() - seen:
            values = self.shown[series]
            # What the exporter shows no more ends; it does not stay as it was.
            values.append("_" if values[-1] in ("_", "stale") else "stale")


def names_in(files: list[Path]) -> frozenset[str]:
    """Names of the exporter's series that the rules read."""
    return frozenset(re.findall(r"(?<![:\w])assay_[a-z0-9_]+", "".join(path.read_text() for path in files)))


def compressed(values: list[str]) -> Iterator[str]:
    """In promtool's notation: what repeats is written once."""
    at = 0
    while at < len(values):
        end = at
        while end < len(values) and values[end] == values[at]:
            end += 1
        times, value = end - at, values[at]
        yield value if times == 1 else f"_x{times}" if value == "_" else f"{value}x{times - 1}"
        at = end


PLAIN = """\
groups:
  - name: plain
    rules:
      - alert: Plain
        expr: assay_app_pass_ratio{rubric="completeness", window="1h"} < 0.9
        for: 15m
"""


def test_a_quiet_weekend_pages_nobody_however_bad_its_luck(tmp_path: Path, redis_url: str) -> None:
    rubrics = {rubric.name: rubric for rubric in load_rubrics([SHIPPED]) if rubric.name in USUAL}
    assert rubrics.keys() == USUAL.keys()
    rules = [*(RULES / f"rubric-{name}.yml" for name in rubrics), RULES / "evaluator.yml"]
    all_of = weekends(rubrics)
    queue = Queue.from_url(redis_url)
    with Store(f"sqlite:///{tmp_path}/assay.db") as store:
        store.upgrade()
        service = Service(store, queue, rubrics, names_in(rules))
        service.present = SATURDAY - timedelta(hours=LEARNED / PER_HOUR + 1)
        service.look()
        for weekend in all_of:
            service.learn(weekend)
        service.present = SATURDAY
        service.look()
        assert {stream.phase for stream in store.change_streams()} == {"watching"}
        for step in range(STEPS):
            service.live(step, all_of)
        drops = store.change_events(kinds=["drop"])
    queue.close()
    assert {drop.app for drop in drops} == {BROKEN}

    plain = tmp_path / "plain.yml"
    plain.write_text(PLAIN)
    unlucky = [weekend.app for weekend in all_of if weekend.app != BROKEN]
    end = f"{STEP * (STEPS - 1)}m"
    paged = 'count by (app, alertname) (count_over_time(ALERTS{severity="page", alertstate="firing"}[3d]))'
    cried = 'count by (app) (count_over_time(ALERTS{alertname="Plain", alertstate="firing", app!="broken"}[3d]))'
    expected = [
        {
            "expr": f"{paged} > 0",
            "eval_time": end,
            "exp_samples": [{"labels": f'{{alertname="AssayQualityDrop", app="{BROKEN}"}}', "value": len(rubrics)}],
        },
        # What one writes first would have paged for most of the same apps.
        {"expr": f"count({cried}) >= {len(unlucky) - 1}", "eval_time": end, "exp_samples": [{"value": len(unlucky)}]},
    ]
    series = [{"series": name, "values": " ".join(compressed(values))} for name, values in service.shown.items()]
    shown = {name.partition("{")[0] for name in service.shown}
    assert {"assay_app_pass_ratio", "assay_change_alarm", "assay_queue_accepted_total", "assay_up"} <= shown
    tests = {
        "rule_files": [*map(str, rules), str(plain)],
        "evaluation_interval": "2m",
        "tests": [{"interval": f"{STEP}m", "input_series": series, "promql_expr_test": expected}],
    }
    file = tmp_path / "weekend.json"
    file.write_text(json.dumps(tests))
    assert run_tests([file]) == {file: ""}
