"""Nothing is paid for twice: a worker on a real Redis and SQLite, and a judge server that counts its calls."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assay.deliveries import DeliveryPolicy
from assay.enqueue import enqueue
from assay.judges import JudgeSettings
from assay.pipeline import Judges, evaluate
from assay.queue import Queue
from assay.records import Context, Failure, NotApplicable, Outcome, Record, Score, Usage
from assay.reuse import Reuse, keys_of
from assay.rubrics import Rubric, load_rubrics
from assay.store import Store
from assay.testing import FakeJudgeServer, ScriptedJudge
from assay.worker import Worker
from deployment import record
from judging import ordinal

pytestmark = pytest.mark.integration

RUBRICS = load_rubrics()
QUICK = DeliveryPolicy(retry_base_seconds=0.01, retry_max_seconds=0.05, lease_seconds=5, max_attempts=3)
PAID = Usage(prompt_tokens=100, completion_tokens=10, cost_usd=0.001)


class Repeatable(ScriptedJudge):
    repeatable = True


def traffic(count: int, copies: int) -> list[Record]:
    """So many records, each content `copies` times under ids of their own; every third content is bad."""
    return [
        replace(
            record(number, record_id=f"copy-{copy}-of-{number}"),
            output="Say WRONG things." if number % 3 == 0 else f"Item {number} costs {number} euros.",
        )
        for copy in range(copies)
        for number in range(count // copies)
    ]


def run(path: Path, redis_url: str, records: Sequence[Record], *, seconds: float) -> tuple[Store, int, list[str]]:
    """The store after a worker has judged all, the calls that it took, and who was told of reused verdicts."""
    told: list[str] = []
    store = Store(f"sqlite:///{path}")
    store.upgrade()
    queue = Queue.from_url(redis_url, path.stem)
    with FakeJudgeServer(bad_when="WRONG", latency_seconds=0.02) as server:
        settings = JudgeSettings(engine="openai", model="gpt-4o-mini", base_url=server.base_url, api_key="k")
        worker = Worker(
            queue=queue,
            store=store,
            rubrics=RUBRICS,
            judges=lambda: Judges.build(
                RUBRICS,
                settings,
                reuse=Reuse(redis_url, path.stem, seconds=seconds, on_reused=told.append) if seconds else None,
            ),
            policy=QUICK,
        )
        worker.start()
        try:
            enqueue(records, queue)
            deadline = time.monotonic() + 60
            while queue.depth().batches:
                assert time.monotonic() < deadline, "the queue does not empty"
                for key in queue._redis.hkeys(f"assay:{path.stem}:batches"):
                    worker.work(key.decode())
                time.sleep(0.01)
        finally:
            worker.stop()
            queue.close()
        return store, server.traffic.calls, told


def test_equal_contents_are_asked_once_and_count_as_often_as_they_came(redis_url: str, tmp_path: Path) -> None:
    records = traffic(120, copies=2)
    plain, calls, _ = run(tmp_path / "plain.db", redis_url, records, seconds=0)
    reused, fewer, told = run(tmp_path / "reused.db", redis_url, records, seconds=60)
    with plain, reused:
        assert (calls, fewer) == (120, 60)
        assert len(told) == 60 * len(RUBRICS)

        def figures(store: Store) -> list[tuple[Any, ...]]:
            return sorted(
                (t.rubric, t.scored, t.failed, t.not_applicable, round(t.value_sum, 9), t.buckets)
                for t in store.totals()
            )

        assert figures(reused) == figures(plain)
        assert all(scored == 120 for _, scored, *_ in figures(reused))
        verdicts = {}
        for store in (plain, reused):
            found = store.existing([r.record_id for r in records])
            verdicts[store] = {identity: stored.outcome for identity, stored in found.items()}
        assert verdicts[plain] == verdicts[reused]
        costs = {store: sum(total.usage.cost_usd or 0.0 for total in store.totals()) for store in (plain, reused)}
        assert 0.45 < costs[reused] / costs[plain] < 0.55


def judged(judge: object, reuse: Reuse, *records: Record, rubrics: Sequence[Rubric] = (ordinal(),)) -> list[Outcome]:
    """All at once, then the connections are closed."""

    async def work() -> list[Outcome]:
        judges = Judges(judge, reuse=reuse)  # type: ignore[arg-type]
        try:
            made = await asyncio.gather(*(evaluate(each, list(rubrics), judges) for each in records))
        finally:
            await reuse.aclose()
        return [evaluation.outcome for evaluations in made for evaluation in evaluations]

    return asyncio.run(work())


def copies(count: int, **fields: object) -> list[Record]:
    return [replace(record(1), record_id=f"r-{number}", **fields) for number in range(count)]  # type: ignore[arg-type]


def test_those_that_come_while_it_is_judged_wait_for_it(redis_url: str) -> None:
    judge = Repeatable(Score(value=0.5, passed=True, usage=PAID), delay_seconds=0.05)
    first, *others = judged(judge, Reuse(redis_url, "q", seconds=60), *copies(5))
    assert len(judge.calls) == 1
    assert isinstance(first, Score)
    assert first.usage == PAID
    assert "reused" not in first.details
    for other in others:
        assert isinstance(other, Score)
        assert (other.value, other.usage.cost_usd, other.details["reused"]) == (0.5, 0.0, True)


def test_whoever_paid_gets_its_own_back_with_what_it_cost(redis_url: str) -> None:
    judge = Repeatable(Score(value=0.5, passed=True, usage=PAID, details={"why": "x"}))
    told: list[str] = []
    once = judged(judge, Reuse(redis_url, "q", seconds=60, on_reused=told.append), record(1))
    # As after a worker that died before it had stored it.
    again = judged(judge, Reuse(redis_url, "q", seconds=60, on_reused=told.append), record(1))
    assert again == once
    assert (len(judge.calls), told) == (1, [])


def test_what_does_not_apply_is_kept_too(redis_url: str) -> None:
    judge = Repeatable(NotApplicable(reason="no_claims", usage=PAID))
    outcomes = judged(judge, Reuse(redis_url, "q", seconds=60), *copies(2))
    assert [outcome.usage.cost_usd for outcome in outcomes] == [0.001, 0.0]
    assert len(judge.calls) == 1


def test_a_failure_is_nobodys_but_its_own(redis_url: str) -> None:
    left = [Failure(kind="unavailable", message="down")]

    def script(_: Record, __: Rubric) -> Outcome:
        return left.pop() if left else Score(value=1.0, passed=True)

    outcomes = judged(Repeatable(script, delay_seconds=0.02), Reuse(redis_url, "q", seconds=60), *copies(3))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Failure", "Score", "Score"]


def test_only_what_is_not_known_is_asked(redis_url: str) -> None:
    judge, rubrics = Repeatable(), [ordinal("a"), ordinal("b"), ordinal("c")]
    judged(judge, Reuse(redis_url, "q", seconds=60), record(1), rubrics=rubrics[:1])
    judged(judge, Reuse(redis_url, "q", seconds=60), replace(record(1), record_id="other"), rubrics=rubrics)
    assert [sorted(names) for _, names in judge.calls] == [["a"], ["b", "c"]]


def test_a_verdict_is_kept_for_so_long_and_no_longer(redis_url: str) -> None:
    judge = Repeatable()
    one, two = copies(2)
    judged(judge, Reuse(redis_url, "q", seconds=0.05), one)
    time.sleep(0.1)
    judged(judge, Reuse(redis_url, "q", seconds=0.05), two)
    assert len(judge.calls) == 2


def test_a_judge_that_would_not_say_the_same_again_is_asked_again(redis_url: str) -> None:
    judge = ScriptedJudge()
    judged(judge, Reuse(redis_url, "q", seconds=60), *copies(2))
    assert len(judge.calls) == 2


@pytest.mark.parametrize(("temperature", "repeatable"), [(0.0, True), (0.7, False), (None, False)])
def test_only_at_temperature_0_does_a_model_say_the_same_again(temperature: float | None, repeatable: bool) -> None:
    settings = JudgeSettings(
        engine="openai", model="m", base_url="http://127.0.0.1:9/v1", api_key="k", temperature=temperature
    )
    (judge,) = Judges.build([ordinal()], settings)
    assert judge.repeatable is repeatable  # type: ignore[attr-defined]


def test_without_redis_all_are_asked() -> None:
    judge = Repeatable()
    outcomes = judged(judge, Reuse("redis://127.0.0.1:9/0", "q", seconds=60), record(1), record(2))
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    assert len(judge.calls) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"app": "another"},
        {"output": "another"},
        {"input": "another"},
        {"reference": "another"},
        {"contexts": (Context(text="another"),)},
    ],
)
def test_whatever_a_judge_sees_and_the_app_make_another_question(fields: dict[str, object]) -> None:
    other = replace(record(1), **fields)  # type: ignore[arg-type]
    assert not keys_of(record(1), [ordinal()], "f").keys() & keys_of(other, [ordinal()], "f").keys()


def test_rubric_and_judge_make_another_question_and_the_id_does_not() -> None:
    asked = keys_of(record(1), [ordinal()], "f").keys()
    assert keys_of(replace(record(1), record_id="x", trace_id=None), [ordinal()], "f").keys() == asked
    assert not keys_of(record(1), [ordinal()], "g").keys() & asked
    assert not keys_of(record(1), [ordinal(pass_threshold=0.9)], "f").keys() & asked


def test_what_cannot_be_read_is_asked(redis_url: str) -> None:
    import redis

    judge = Repeatable()
    one, two = copies(2)
    judged(judge, Reuse(redis_url, "q", seconds=60), one)
    with redis.Redis.from_url(redis_url) as client:
        (key,) = client.keys("assay:q:verdict:*")
        assert 0 < client.pttl(key) <= 60_000
        client.set(key, b'{"record_id": "r", "outcome": {"value": 7}}')
    (outcome,) = judged(judge, Reuse(redis_url, "q", seconds=60), two)
    assert isinstance(outcome, Score)
    assert math.isclose(outcome.value, 1.0)
    assert len(judge.calls) == 2
