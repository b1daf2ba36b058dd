"""A worker with a gate, on a real Redis and SQLite: a changed rubric waits, the old one goes on, none counts twice."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import bench as bench_of_workers
from assay import wiring
from assay.deliveries import DeliveryPolicy
from assay.enqueue import replay
from assay.errors import StoreError
from assay.gate import Gate, Version
from assay.judges import JudgeSettings, describe_judge
from assay.queue import Queue
from assay.records import Failure, Outcome, Record, Score
from assay.rubrics import Rubric, load_rubrics
from assay.settings import Settings
from assay.store import Store
from assay.store import _tables as tables
from assay.testing import ScriptedJudge
from assay.worker import Worker
from bench import until
from calibrations import GOOD, a_calibration
from deployment import record
from judging import checklist, ordinal
from stores import assert_conserved, assert_sums_true, connected

pytestmark = pytest.mark.integration

LEXICAL = JudgeSettings(engine="lexical")
QUICK = DeliveryPolicy(
    retry_base_seconds=0.01, retry_max_seconds=0.05, lease_seconds=5, max_attempts=3, gate_seconds=0.05
)
DOWN = Failure(kind="unavailable", message="down")
GOOD_SCORE = Score(value=1.0, passed=True)

OLD = ordinal(version="1")
NEW = ordinal(version="2", instructions="Judge it by a better question.", gate="calibrated")
SAFETY = checklist()

Script = Callable[[Record, Rubric], Outcome]


class Bench(bench_of_workers.Bench):
    """Workers one after the other, as of a deployment that is rolled out, and the hands of Celery."""

    def __init__(self, queue: Queue, store: Store) -> None:
        super().__init__(queue, store)
        self.judges: list[ScriptedJudge] = []

    def worker(
        self,
        *rubrics: Rubric,
        script: Script | Outcome | None = None,
        bridge_share: float = 0.0,
        policy: DeliveryPolicy = QUICK,
    ) -> Worker:
        judge = ScriptedJudge(script)
        # Who it says it is must be who the gate takes it for.
        judge.name, judge.fingerprint = describe_judge(None, LEXICAL)
        self.judges.append(judge)
        gate = Gate(self.store, rubrics, LEXICAL, bridge_share=bridge_share)
        return self.start(judge, rubrics=(), gate=gate, policy=policy)

    def roll_out(self, *rubrics: Rubric, **options: Any) -> Worker:
        """A worker on new files, after those on old ones have ended."""
        self.stop()
        return self.worker(*rubrics, **options)

    def calibrate(self, rubric: Rubric) -> None:
        self.store.save_calibration(a_calibration(GOOD, version=Version.of(rubric, LEXICAL)))

    def switch(self, worker: Worker) -> None:
        """Calibrate the new version and wait until the worker has seen it."""
        self.calibrate(NEW)
        until(lambda: all(line.is_open for line in worker._roster.lines))

    def outcomes(self) -> dict[str, list[tuple[str, str]]]:
        """Of each record: (version of relevance, or safety, and how it ended), in order."""
        with connected(self.store) as connection:
            rows = connection.execute(
                sa.select(
                    tables.evaluations.c.record_id,
                    tables.instruments.c.rubric,
                    tables.instruments.c.rubric_version,
                    tables.evaluations.c.outcome,
                ).join(tables.instruments, tables.instruments.c.instrument_id == tables.evaluations.c.instrument_id)
            ).all()
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for record_id, rubric, version, outcome in rows:
            found[record_id].append((rubric if rubric == "safety" else version.split("-")[0], outcome))
        return {record_id: sorted(outcomes) for record_id, outcomes in found.items()}


@pytest.fixture
def bench(redis_url: str, tmp_path: Path) -> Iterator[Bench]:
    with Bench.opened(redis_url, tmp_path) as made:
        yield made
        made.stop()
        assert_sums_true(made.store)
        assert_conserved(made.store)


def scored(*versions: str) -> list[tuple[str, str]]:
    return [(version, "scored") for version in versions]


def test_a_changed_rubric_waits_and_becomes_active_without_a_restart(bench: Bench) -> None:
    bench.work_off(bench.worker(OLD, SAFETY))
    worker = bench.roll_out(NEW, SAFETY)
    bench.push(record(1))
    bench.work_off(worker)
    bench.switch(worker)
    bench.push(record(2))
    bench.work_off(worker)
    assert bench.outcomes() == {"record-1": scored("1", "safety"), "record-2": scored("2", "safety")}
    assert {v.rubric_version: v.state for v in bench.store.rubric_versions("relevance")} == {
        OLD.revision: "retired",
        NEW.revision: "active",
    }
    # The safety rubric has nothing to do with it, and is asked in the same call before and after.
    assert {frozenset(rubrics) for _, rubrics in bench.judges[-1].calls} == {frozenset({"relevance", "safety"})}


def test_two_workers_switch_each_by_itself(bench: Bench) -> None:
    bench.worker(OLD)
    first = bench.roll_out(NEW)
    second = bench.worker(NEW)
    bench.calibrate(NEW)
    for worker in (first, second):
        until(lambda worker=worker: worker._roster.lines[0].is_open)  # type: ignore[misc]
    assert [v.state for v in bench.store.rubric_versions()] == ["active", "retired"]


def test_the_bridge_scores_both_for_its_share(bench: Bench) -> None:
    bench.worker(OLD, SAFETY)
    worker = bench.roll_out(NEW, SAFETY, bridge_share=0.5)
    bench.push(*(record(i) for i in range(60)))
    bench.work_off(worker)
    outcomes = bench.outcomes()
    both = {record_id for record_id, found in outcomes.items() if found == scored("1", "2", "safety")}
    assert len(outcomes) == 60
    assert all(found == scored("1", "safety") for record_id, found in outcomes.items() if record_id not in both)
    assert 15 < len(both) < 45
    # The same records again, by another worker: no call, nothing new.
    bench.push(*(record(i) for i in range(60)))
    again = bench.roll_out(NEW, SAFETY, bridge_share=0.5)
    bench.work_off(again)
    assert bench.judges[-1].calls == []
    assert bench.outcomes() == outcomes
    # After the switch the bridge goes on for a while, with the old one beside.
    bench.switch(again)
    bench.push(*(record(i) for i in range(60, 120)))
    bench.work_off(again)
    later = {record_id: found for record_id, found in bench.outcomes().items() if record_id not in outcomes}
    assert {tuple(found) for found in later.values()} == {
        tuple(scored("1", "2", "safety")),
        tuple(scored("2", "safety")),
    }


def test_a_first_version_that_waits_costs_no_call_and_the_records_are_kept(bench: Bench) -> None:
    worker = bench.worker(NEW)
    bench.push(record(1), record(2))
    bench.work_off(worker)
    assert bench.judges[-1].calls == []
    assert bench.outcomes() == {}
    assert bench.store.counts().received == {"shop": 2}
    assert bench.store.counts().duplicates == 0
    assert bench.queue.depth().records == 0
    bench.switch(worker)
    bench.push(record(2), record(3))
    bench.work_off(worker)
    assert bench.outcomes() == {"record-2": scored("2"), "record-3": scored("2")}
    assert bench.store.counts().received == {"shop": 3}


# -- across a switch: one outcome of a rubric for a record, whichever version it is


def test_a_retry_across_a_switch_owes_the_new_version(bench: Bench) -> None:
    bench.worker(OLD)

    def down_by_the_old_one(_: Record, rubric: Rubric) -> Outcome:
        return DOWN if rubric.version == "1" else GOOD_SCORE

    worker = bench.roll_out(NEW, script=down_by_the_old_one)
    bench.push(record(1))
    bench.work_once(worker)
    assert bench.outcomes() == {}
    bench.switch(worker)
    bench.work_off(worker)
    assert bench.outcomes() == {"record-1": scored("2")}
    assert bench.store.counts().dead_kept == {}


def test_a_retry_for_another_rubric_is_not_judged_by_both_versions(bench: Bench) -> None:
    bench.worker(OLD, SAFETY)
    tries: list[str] = []

    def unsafe_once(_: Record, rubric: Rubric) -> Outcome:
        tries.append(rubric.name)
        return DOWN if rubric.name == "safety" and tries.count("safety") == 1 else GOOD_SCORE

    worker = bench.roll_out(NEW, SAFETY, script=unsafe_once)
    bench.push(record(1))
    bench.work_once(worker)
    assert bench.outcomes() == {"record-1": scored("1")}
    bench.switch(worker)
    bench.work_off(worker)
    assert bench.outcomes() == {"record-1": scored("1", "safety")}


def test_a_second_delivery_across_a_switch_is_a_duplicate(bench: Bench) -> None:
    bench.worker(OLD)
    worker = bench.roll_out(NEW)
    bench.push(record(1))
    bench.work_off(worker)
    bench.switch(worker)
    bench.push(record(1))
    bench.work_off(worker)
    assert bench.outcomes() == {"record-1": scored("1")}
    assert bench.store.counts().duplicates == 1
    assert len(bench.judges[-1].calls) == 1
    # Nor after a restart.
    restarted = bench.roll_out(NEW)
    bench.push(record(1))
    bench.work_off(restarted)
    assert bench.judges[-1].calls == []
    assert bench.outcomes() == {"record-1": scored("1")}


def test_a_replay_across_a_switch_asks_the_version_that_failed(bench: Bench) -> None:
    bench.worker(OLD)
    worker = bench.roll_out(NEW, script=DOWN)
    bench.push(record(1))
    bench.work_off(worker)
    assert bench.outcomes() == {"record-1": [("1", "failed")]}
    bench.calibrate(NEW)
    bench.roll_out(NEW)
    replay(bench.store.dead_letters(), queue=bench.queue, store=bench.store)
    bench.work_off(bench.workers[-1])
    assert bench.outcomes() == {"record-1": scored("1")}
    (total,) = bench.store.totals()
    assert (total.rubric_version, total.scored, total.failed, total.recovered) == (OLD.revision, 1, 1, 1)


def test_a_replay_of_a_version_that_nobody_knows_any_more_is_scored_by_the_active_one(bench: Bench) -> None:
    bench.work_off(bench.worker(OLD, script=DOWN))
    bench.push(record(1))
    bench.work_off(bench.workers[-1])
    for version in ("2", "3"):
        rubric = ordinal(version=version, instructions=f"Judge it by question {version}.", gate="calibrated")
        bench.calibrate(rubric)
        worker = bench.roll_out(rubric)
    replay(bench.store.dead_letters(), queue=bench.queue, store=bench.store)
    bench.work_off(worker)
    assert bench.outcomes() == {"record-1": [("1", "failed"), ("3", "scored")]}


def test_a_record_that_kills_workers_across_a_switch_fails_under_what_it_owes(bench: Bench) -> None:
    bench.worker(OLD, SAFETY)

    def safety_is_down(_: Record, rubric: Rubric) -> Outcome:
        return DOWN if rubric.name == "safety" else GOOD_SCORE

    worker = bench.roll_out(NEW, SAFETY, script=safety_is_down)
    bench.push(record(1))
    bench.work_once(worker)
    bench.switch(worker)
    # The retry's worker dies again and again: as the queue sees it, it is claimed and never finished.
    (batch_id,) = bench.ids
    bench.queue._redis.hset("assay:assay:deliveries", batch_id, QUICK.max_deliveries)
    bench.work_off(worker)
    assert bench.outcomes() == {"record-1": [("1", "scored"), ("safety", "failed")]}
    assert bench.store.counts().dead_kept == {"crashed": 1}


def test_a_switch_in_the_midst_of_much_work_counts_each_record_once(bench: Bench) -> None:
    bench.worker(OLD, SAFETY)
    seen = threading.Event()

    def flaky(rec: Record, rubric: Rubric) -> Outcome:
        if int(rec.record_id.split("-")[1]) > 100:
            seen.set()
        # Every seventh call of each record, more or less, is lost on the way.
        return DOWN if hash((rec.record_id, rubric.name, time.monotonic_ns())) % 7 == 0 else GOOD_SCORE

    patient = DeliveryPolicy(
        retry_base_seconds=0.01, retry_max_seconds=0.05, lease_seconds=5, max_attempts=30, gate_seconds=0.05
    )
    worker = bench.roll_out(NEW, SAFETY, script=flaky, policy=patient)
    count = 300
    bench.push(*(record(i) for i in range(count)))
    hands = [threading.Thread(target=lambda: bench.work_off(worker)) for _ in range(4)]
    for hand in hands:
        hand.start()
    seen.wait(10)
    bench.calibrate(NEW)
    # Meanwhile clients send some of them again.
    bench.push(*(record(i) for i in range(0, count, 3)))
    for hand in hands:
        hand.join()
    until(lambda: worker._roster.lines[0].is_open)
    bench.push(*(record(i) for i in range(count + 20)))
    bench.work_off(worker)
    outcomes = bench.outcomes()
    assert len(outcomes) == count + 20
    # Of two copies that were in hand at once one may have been planned before the switch and one after it.
    both = {record_id for record_id, found in outcomes.items() if found == scored("1", "2", "safety")}
    assert both <= {f"record-{i}" for i in range(0, count, 3)}
    assert {tuple(found) for record_id, found in outcomes.items() if record_id not in both} <= {
        tuple(scored("1", "safety")),
        tuple(scored("2", "safety")),
    }
    by_new = [record_id for record_id, found in outcomes.items() if ("2", "scored") in found]
    assert len(by_new) >= 20
    assert bench.store.counts().received == {"shop": count + 20}


def test_a_database_that_is_away_for_a_while_only_delays_the_switch(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.worker(OLD)
    worker = bench.roll_out(NEW)
    with connected(bench.store) as connection:
        connection.execute(sa.text("ALTER TABLE calibrations RENAME TO gone"))
    until(lambda: any(r.message == "the gate waits" for r in caplog.records))
    assert not worker._roster.lines[0].is_open
    with connected(bench.store) as connection:
        connection.execute(sa.text("ALTER TABLE gone RENAME TO calibrations"))
    bench.switch(worker)


# -- from settings and files


def test_a_worker_built_from_settings_has_the_gates_of_its_files(bench: Bench, tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "relevance.yaml"
    text = load_text()
    settings = Settings(  # type: ignore[call-arg]
        redis_url=redis_url,  # type: ignore[arg-type]
        rubrics=str(file),  # type: ignore[arg-type]
        data_dir=tmp_path,
        bridge_share=1.0,
        _env_file=None,
    )

    def built() -> Worker:
        bench.stop()
        worker = wiring.build_worker(settings, queue=bench.queue, store=bench.store, metrics=None)
        worker.start()
        bench.workers.append(worker)
        return worker

    file.write_text(text)
    built()
    file.write_text(text.replace("instructions: |", "gate: trend_only\ninstructions: |\n  Be strict.", 1))
    worker = built()
    old, new = bench.store.rubric_versions()[1], bench.store.rubric_versions()[0]
    assert (old.state, new.state) == ("active", "waiting")
    bench.push(record(1))
    bench.work_off(worker)
    versions = {total.rubric_version: total.scored for total in bench.store.totals()}
    assert versions == {old.rubric_version: 1, new.rubric_version: 1}, "the bridge carries every record"
    rubric = load_rubrics([file])[0]
    bench.store.save_calibration(a_calibration(GOOD, version=Version.of(rubric, wiring.judge_settings(settings))))
    assert worker._gate is not None
    worker._gate.refresh()
    # Both changed at once, so neither is the later one.
    states = {version.rubric_hash: version.state for version in bench.store.rubric_versions()}
    assert states == {old.rubric_hash: "retired", new.rubric_hash: "active"}


def load_text() -> str:
    return (Path(__file__).parents[2] / "rubrics" / "relevance.yaml").read_text()


def test_without_its_store_a_worker_does_not_start(redis_url: str, tmp_path: Path) -> None:
    queue = Queue.from_url(redis_url)
    settings = Settings(redis_url=redis_url, rubrics=(), data_dir=tmp_path, _env_file=None)  # type: ignore[call-arg]
    with Store(f"sqlite:///{tmp_path}/nothing.db") as store:
        worker = wiring.build_worker(settings, queue=queue, store=store, metrics=None)
        before = threading.active_count()
        with pytest.raises(StoreError):
            worker.start()
        assert threading.active_count() == before
    queue.close()
