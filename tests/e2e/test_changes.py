"""Whose fault is it? A product that drops, and a judge that becomes harsher: real judge server, store and workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from assay.canary import CanaryPolicy, run_due
from assay.changes import ChangePolicy, watch
from assay.enqueue import enqueue
from assay.judges import JudgeSettings
from assay.pipeline import Judges, evaluate
from assay.records import Record, now
from assay.rubrics import Rubric, load_rubrics
from assay.store import Store
from assay.testing import Ask, FakeJudgeServer
from assay.verdicts import settle_verdicts
from deployment import Deployment, end, total, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

RUBRIC = """\
name: manners
version: "1"
title: Manners
instructions: Is the answer polite?
scale:
  type: binary
  pass_when: It is polite.
  fail_when: It is not.
pass_threshold: 1.0
objective: 0.9
"""


class Judge:
    """Fails what is rude; once it is harsher, also what is curt."""

    harsher = False

    def __call__(self, ask: Ask) -> dict[str, str]:
        bad = "rude" in ask.text or (self.harsher and "curt" in ask.text)
        return {"explanation": "synthetic", "verdict": "fail" if bad else "pass"}


def files(directory: Path) -> tuple[Path, Path]:
    """A rubric, and a canary for it. All synthetic."""
    rubric, canary = directory / "manners.yaml", directory / "canary.jsonl"
    rubric.write_text(RUBRIC)
    lines: list[dict[str, Any]] = [{"label_file": 1, "rubric": "manners", "annotators": "author", "synthetic": True}]
    for n in range(60):
        manner = "rude" if n % 4 == 0 else "curt" if n % 4 == 1 else "kind"
        record = {"record_id": f"c{n}", "timestamp": "2026-01-15T12:00:00Z", "input": "?", "output": f"A {manner} {n}."}
        lines.append({"record": record, "label": "fail" if manner == "rude" else "pass"})
    canary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return rubric, canary


def answers(hours: float, start: datetime, *, worse: str | None = None) -> list[Record]:
    """One every half a minute: one in twenty is rude, one in four curt; or one in four is what `worse` says."""

    def manner(n: int) -> str:
        return "rude" if n % 20 == 1 else (worse or "curt") if n % 4 == 0 else "kind"

    return [
        Record(
            record_id=f"{start:%H%M%S%f}-{n}",
            timestamp=start + timedelta(seconds=30 * n),
            app="shop",
            input=f"Question {n}?",
            output=f"A {manner(n)} answer.",
        )
        for n in range(int(hours * 120))
    ]


class Service:
    """What a worker does, with a clock that one can set: scores, looks, runs the canary."""

    def __init__(self, directory: Path, server: FakeJudgeServer) -> None:
        rubric, canary = files(directory)
        self.rubrics: list[Rubric] = load_rubrics([rubric])
        self.settings = JudgeSettings(
            engine="openai", model="fake", base_url=server.base_url, api_key="synthetic", logprobs=False
        )
        self.canary = CanaryPolicy(files=(str(canary),), repeats=2)
        self.store = Store(f"sqlite:///{directory}/scores.db")
        self.store.upgrade()
        # Ahead of the real time: canaries run in that, and have run before what is to be explained.
        self.present = now() + timedelta(hours=1)

    def serve(self, hours: float, *, worse: str | None = None) -> None:
        records = answers(hours, self.present, worse=worse)

        async def score() -> list[Any]:
            judges = Judges.build(self.rubrics, self.settings)
            try:
                return await asyncio.gather(*(evaluate(record, self.rubrics, judges) for record in records))
            finally:
                await judges.aclose()

        scored = asyncio.run(score())
        self.store.commit([(r, r.to_json()) for r in records], [e for found in scored for e in found])
        self.present += timedelta(hours=hours)
        policy = ChangePolicy(reference_records=300, settle_seconds=0, recovery_records=100)
        watch(self.store, self.rubrics, policy, clock=lambda: self.present)

    def run_canaries(self) -> list[str]:
        runs = run_due(self.store, self.rubrics, self.settings, self.canary)
        settle_verdicts(self.store)
        return [run.trigger for run in runs]

    @property
    def verdict(self) -> str:
        (found,) = self.store.drift_verdicts()
        return found.verdict

    @property
    def alarmed(self) -> bool:
        (stream,) = self.store.change_streams()
        return stream.phase == "alarmed"


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def service(tmp_path: Path, judge: Judge) -> Iterator[Service]:
    with FakeJudgeServer(verdict=judge) as server:
        service = Service(tmp_path, server)
        with service.store:
            yield service


def test_a_product_that_drops_is_told_from_its_judge_and_mended(service: Service) -> None:
    assert service.run_canaries() == ["baseline"]
    service.serve(5)
    assert (service.alarmed, service.verdict) == (False, "none")
    service.serve(2, worse="rude")
    assert service.alarmed
    assert service.verdict == "unknown", "nobody has asked the canary yet"
    assert service.run_canaries() == ["alarm"]
    assert service.verdict == "product"
    (drop,) = service.store.change_events(open_only=True)
    assert drop.verdict == "product"
    assert service.run_canaries() == [], "once for each alarm"
    service.serve(5)
    assert (service.alarmed, service.verdict) == (False, "none")
    assert service.store.change_event(drop.event_id).resolution == "recovered"
    history = sorted(
        service.store.change_events(kinds=["verdict"]), key=lambda event: event.noted_at or event.happened_at
    )
    assert [event.verdict for event in history] == ["unknown", "product", "none"]


def test_a_judge_that_becomes_harsher_is_the_judge(service: Service, judge: Judge) -> None:
    service.run_canaries()
    service.serve(5)
    judge.harsher = True  # under the same name and settings: nothing but its verdicts tells
    service.serve(2)
    assert service.alarmed
    assert service.run_canaries() == ["alarm"]
    assert service.verdict == "judge"
    (run,) = service.store.canaries()
    assert run.difference == -0.25
    judge.harsher = False
    service.serve(5)
    assert not service.alarmed
    assert service.verdict == "judge", "until a canary says otherwise"
    version = run_due(
        service.store,
        service.rubrics,
        service.settings,
        service.canary,
        clock=lambda: now() + timedelta(hours=25),
    )
    settle_verdicts(service.store)
    assert [found.difference for found in version] == [0.0]
    assert service.verdict == "none"


def test_without_a_labelled_set_it_is_unknown_never_the_product(service: Service) -> None:
    service.canary = CanaryPolicy()
    service.serve(5)
    service.serve(2, worse="rude")
    assert service.run_canaries() == []
    assert (service.alarmed, service.verdict) == (True, "unknown")
    (found,) = service.store.drift_verdicts()
    assert "ASSAY_CANARY" in found.reason


def test_a_canary_that_was_first_run_after_the_change_does_not_know(service: Service) -> None:
    service.present = now() - timedelta(hours=8)
    service.serve(5)
    service.serve(2, worse="rude")
    assert service.run_canaries() == ["change" if service.verdict == "judge" else "baseline"]
    assert (service.alarmed, service.verdict) == (True, "unknown")


def test_workers_watch_by_themselves_and_the_exporter_and_the_commands_say_so(tmp_path: Path) -> None:
    rubric, canary = files(tmp_path)
    settings: dict[str, Any] = {
        "rubrics": rubric,
        "judge": "openai",
        "judge_api_key": "synthetic",
        "judge_model": "fake",
        "judge_logprobs": "false",
        "change_reference_records": 300,
        "change_seconds": 1,
        # What the first worker scores lies in the past, and must not come late: every minute stays open for a day.
        "change_settle_seconds": 86_400,
    }
    with (
        FakeJudgeServer(verdict=Judge()) as server,
        Deployment(tmp_path, f"sqlite:///{tmp_path}/assay.db", judge_base_url=server.base_url, **settings) as running,
    ):
        worker = running.start_worker()
        records = answers(5, now() - timedelta(hours=9))
        records += answers(2, now() - timedelta(hours=4), worse="rude")
        enqueue(records, running.queue)
        running.drain(worker)
        assert end(worker) == 0
        running.settings |= {"change_settle_seconds": 0, "canary": canary, "canary_repeats": 2}
        workers = [running.start_worker(), running.start_worker()]
        wait_until(lambda: running.store.change_events(open_only=True), *workers)
        wait_until(running.store.canaries, *workers)
        metrics = running.start_exporter()
        wait_until(lambda: total(metrics, "assay_change_alarm", rubric="manners") == 1)
        assert total(metrics, "assay_change_records_total") == len(records)
        assert total(metrics, "assay_change_late_records_total") == 0
        evidence, threshold = (total(metrics, f"assay_change_{name}") for name in ("evidence", "threshold"))
        assert evidence >= threshold > 0
        assert total(metrics, "assay_change_reference_ratio") == 0.9
        wait_until(lambda: total(metrics, "assay_drift_verdict", verdict="unknown") == 1)
        assert total(metrics, "assay_drift_verdict") == 1
        assert total(metrics, "assay_canary_records") == 60
        assert len(running.store.change_events(kinds=["drop"])) == 1

        listed = json.loads(running.run("changes", "list", "--open", "--json").stdout)
        (drop,) = listed["events"]
        assert (drop["kind"], drop["app"], drop["verdict"]) == ("drop", "shop", "unknown")
        assert listed["verdicts"][0]["verdict"] == "unknown"
        shown = running.run("changes", "show", drop["event_id"][:8]).stdout.decode()
        assert "are its objective" in shown
        table = running.run("changes", "list").stdout.decode()
        assert "manners" in table
        assert "unknown" in table
        ran = json.loads(running.run("canary", "run", "--json").stdout)
        assert [(run["trigger"], run["cause"], run["scored"]) for run in ran] == [("command", "unknown", 60)]
        running.run("changes", "acknowledge", drop["event_id"], "--note", "a new prompt", "--accept")
        (seen,) = json.loads(running.run("changes", "list", "--json", "--rubric", "manners").stdout)["events"][-1:]
        assert (seen["resolution"], seen["note"]) == ("accepted", "a new prompt")
        assert running.run("changes", "show", "no-such", check=False).returncode == 2
        del running.settings["canary"]
        refused = running.run("canary", "run", check=False)
        assert refused.returncode == 2
        assert b"there is no canary: point ASSAY_CANARY at label files" in refused.stderr
