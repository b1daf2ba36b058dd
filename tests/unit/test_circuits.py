"""Circuits of one process alone, and who stands in for a judge whose endpoint is down: nothing listens at port 1."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from assay.circuits import CircuitPolicy, Circuits
from assay.errors import JudgeError, SettingsError
from assay.judges import JudgeSettings
from assay.limits import Limits
from assay.metrics import WorkerMetrics
from assay.pipeline import Judges, evaluate
from assay.records import Evaluation, Failure, Score
from assay.rubrics import JudgeSpec, Rubric
from assay.settings import Settings
from assay.testing import FakeJudgeServer, Reply
from assay.wiring import fallback_judge
from judging import a_record, ordinal

SETTINGS = JudgeSettings(engine="openai", model="m", base_url="http://127.0.0.1:1/v1")


def away(**fields: Any) -> Limits:
    """Limits whose Redis is away."""
    return Limits(url="redis://127.0.0.1:1/0", queue="q", timeout_seconds=1.0, circuit=CircuitPolicy(**fields))


def judged(
    rubric: Rubric, times: int, *, stand_in: bool = True, fallback: JudgeSpec | None = None, **fields: Any
) -> tuple[list[Evaluation], WorkerMetrics]:
    """The same record so many times, one after another; in a circuit that opens at three failures."""
    metrics = WorkerMetrics()

    async def run() -> list[Evaluation]:
        limits = away(calls=3, probe_seconds=fields.get("probe_seconds", 600.0))
        judges = Judges.build([rubric], SETTINGS, metrics, limits=limits, fallback=fallback)
        found = [(await evaluate(a_record(), [rubric], judges, stand_in=stand_in))[0] for _ in range(times)]
        await judges.aclose()
        return found

    return asyncio.run(run()), metrics


def test_without_a_fallback_nothing_is_asked_and_no_try_used_up() -> None:
    found, metrics = judged(ordinal(), 5)
    failures = [evaluation.outcome for evaluation in found]
    assert all(isinstance(failure, Failure) and failure.kind == "unavailable" for failure in failures)
    assert [failure.unasked for failure in failures] == [False, False, True, True, True]  # type: ignore[union-attr]
    assert all(evaluation.judge == "openai:m" for evaluation in found)
    assert "circuit has been open" in failures[-1].message  # type: ignore[union-attr]
    assert sample(metrics, "assay_judge_request_seconds_count") == 3
    assert sample(metrics, "assay_judge_circuit_open") == 1


def sample(metrics: WorkerMetrics, name: str) -> float:
    return sum(s.value for family in metrics.collect() for s in family.samples if s.name == name)


@pytest.mark.parametrize("own", [True, False])
def test_a_fallback_scores_meanwhile_and_the_score_says_so(own: bool) -> None:
    spec = JudgeSpec(engine="lexical")
    rubric = ordinal(fallback_judge=spec) if own else ordinal()
    found, _ = judged(rubric, 4, fallback=JudgeSpec(engine="rules") if own else spec)
    assert [evaluation.judge for evaluation in found] == ["openai:m", "openai:m", "lexical", "lexical"]
    assert all(isinstance(evaluation.outcome, Score) for evaluation in found[2:])
    assert found[0].judge_fingerprint != found[2].judge_fingerprint


def test_a_replay_waits_for_the_judge_itself() -> None:
    found, _ = judged(ordinal(), 4, stand_in=False, fallback=JudgeSpec(engine="lexical"))
    assert [evaluation.judge for evaluation in found] == ["openai:m"] * 4
    assert isinstance(found[-1].outcome, Failure)


def test_a_fallback_at_an_endpoint_that_is_down_leaves_the_first_refusal() -> None:
    found, _ = judged(ordinal(), 8, fallback=JudgeSpec(engine="openai", model="other"))
    assert found[-1].judge == "openai:m"
    assert isinstance(found[-1].outcome, Failure)
    assert found[-1].outcome.unasked


@pytest.mark.parametrize(("reply", "kind"), [("429", "rate_limited"), (Reply(status=400, body=b"no"), "unavailable")])
def test_a_fallback_that_fails_leaves_a_failure_of_the_first_that_is_tried_again(reply: Any, kind: str) -> None:
    with FakeJudgeServer() as server:
        server.script(*[reply] * 8)
        found, _ = judged(ordinal(), 4, fallback=JudgeSpec(engine="openai", model="other", base_url=server.base_url))
        assert server.traffic.calls
    first, last = found[0], found[2]
    assert (last.judge, last.judge_fingerprint) == (first.judge, first.judge_fingerprint)
    assert isinstance(last.outcome, Failure)
    assert (last.outcome.kind, last.outcome.transient, last.outcome.unasked) == (kind, True, False)
    assert "openai:other in its place: " in last.outcome.message


def test_a_budget_and_a_circuit_may_have_stand_ins_of_their_own() -> None:
    rubric = ordinal(cheaper_judge=JudgeSpec(engine="rules"), fallback_judge=JudgeSpec(engine="lexical"))
    judges = Judges.build([rubric], SETTINGS)
    assert {why: judge.name for why, judge in judges.stand_ins(rubric).items()} == {
        "budget": "rules",
        "circuit": "lexical",
    }
    assert rubric.hash == ordinal().hash
    assert Rubric.from_dict(rubric.to_dict()).fallback_judge == JudgeSpec(engine="lexical")


async def play(events: str, **fields: Any) -> str:
    """Calls that end so, one after another: `o`k, `l`imited, `f`ailed, `x` cancelled; what was refused is a `-`."""
    limits = away(**fields)
    names = {"o": "ok", "l": "rate_limited", "f": "unavailable", "t": "timeout", "x": "cancelled"}
    found = ""
    for event in events:
        try:
            await limits.circuits.admit("e", "j", probe=True)
        except JudgeError:
            found += "-"
            continue
        await limits.circuits.ended("e", "j", asyncio.get_running_loop().time(), names[event])
        found += event
    await limits.aclose()
    return found


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ("fffff", "fff--"),
        ("ftft", "ftf-"),
        ("oof" * 4, "oof" * 4),
        ("lllll", "lllll"),
        ("xxxff", "xxxff"),
        ("offffff", "offff--"),  # four of five
    ],
)
def test_it_opens_when_most_calls_found_the_endpoint_away(events: str, found: str) -> None:
    assert asyncio.run(play(events, calls=3, share=0.8, probe_seconds=600.0)) == found


def test_an_answered_probe_closes_it_and_a_failed_one_does_not() -> None:
    # Each call may probe.
    assert asyncio.run(play("ffff", calls=3, probe_seconds=1e-9)) == "ffff"

    async def run() -> list[bool]:
        limits = away(calls=3, probe_seconds=1e-9)
        clock, found = asyncio.get_running_loop().time, []
        before = clock()
        for outcome, began in (("timeout", 0.0), ("timeout", 0.0), ("timeout", 0.0), ("ok", before)):
            await limits.circuits.admit("e", "j", probe=outcome != "ok")
            await limits.circuits.ended("e", "j", began or clock(), outcome)
            found.append(limits.circuits.is_open("e"))
        await limits.circuits.admit("e", "j", probe=True)
        await limits.circuits.ended("e", "j", clock(), "ok")
        found.append(limits.circuits.is_open("e"))
        await limits.aclose()
        return found

    # The fourth is an answer to a call from before it opened.
    assert asyncio.run(run()) == [False, False, True, True, False]


def test_a_probe_that_is_answered_after_the_next_was_let_go_closes_it_all_the_same() -> None:
    async def run() -> list[bool]:
        limits = away(calls=3, probe_seconds=1e-9)
        clock, found = asyncio.get_running_loop().time, []

        async def call() -> float:
            await limits.circuits.admit("e", "j", probe=True)
            return clock()

        for _ in range(3):
            await limits.circuits.ended("e", "j", await call(), "timeout")
        slow, slower, lost = [await call() for _ in range(3)]
        for began, outcome in ((lost, "timeout"), (slow, "ok")):
            await limits.circuits.ended("e", "j", began, outcome)
            found.append(limits.circuits.is_open("e"))
        # It goes down anew: what is answered late was asked before.
        for _ in range(3):
            await limits.circuits.ended("e", "j", await call(), "timeout")
        await call()
        await limits.circuits.ended("e", "j", slower, "ok")
        found.append(limits.circuits.is_open("e"))
        await limits.aclose()
        return found

    assert asyncio.run(run()) == [True, False, True]


@pytest.mark.parametrize(
    "given",
    [
        {"fallback_judge": "openai"},
        {"fallback_judge_model": "m"},
        {"fallback_judge": "rules", "fallback_judge_model": "m"},
    ],
)
def test_a_fallback_judge_is_named_whole(tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises((SettingsError, ValueError), match="ASSAY_FALLBACK_JUDGE"):
        Settings(data_dir=tmp_path, **given)  # type: ignore[arg-type]


def test_the_fallback_judge_of_the_settings(tmp_path: Path) -> None:
    assert fallback_judge(Settings(data_dir=tmp_path)) is None
    given = Settings(data_dir=tmp_path, fallback_judge="openai", fallback_judge_model="m2")
    assert fallback_judge(given) == JudgeSpec(engine="openai", model="m2")


def test_one_call_of_many_asks_whether_the_circuit_is_still_closed() -> None:
    told: list[list[float]] = []

    async def share(_: str, given: list[float]) -> list[float]:
        told.append(given)
        await asyncio.sleep(0.05)
        return [float(state), 5.0, 1.0, 0.0]

    async def run() -> tuple[int, int, int]:
        nonlocal state
        circuits, clock = Circuits(share, CircuitPolicy()), asyncio.get_running_loop().time
        # Of an endpoint that nothing is known of, nobody is let through unasked.
        await asyncio.gather(*(circuits.admit("e", "j", probe=True) for _ in range(20)))
        first = len(told)
        circuits._seen["e"].fresh_until = clock()
        await asyncio.gather(*(circuits.admit("e", "j", probe=True) for _ in range(20)))
        second = len(told)
        # It has opened: the one that asks is refused, and so is everybody after it.
        state = 1
        circuits._seen["e"].fresh_until = clock()
        with pytest.raises(JudgeError):
            await circuits.admit("e", "j", probe=True)
        refused = await asyncio.gather(
            *(circuits.admit("e", "j", probe=True) for _ in range(20)), return_exceptions=True
        )
        assert all(isinstance(error, JudgeError) for error in refused)
        return first, second - first, len(told) - second

    state = 0
    assert asyncio.run(run()) == (20, 1, 1)
