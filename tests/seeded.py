"""A store, a queue and a worker's metrics with something in every family that a dashboard shows. All synthetic."""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from assay.budgets import THINNED, Budget, Budgets, Ledger, RedisPurse
from assay.changes import ChangePolicy, watch
from assay.client import Client
from assay.collect import Collector, CollectorLimits
from assay.metrics import WorkerMetrics, collector_families, encode, wants_openmetrics
from assay.queue import Queue, Report, encode_batch
from assay.records import Evaluation, Failure, NotApplicable, Outcome, Record, Score, Usage
from assay.store import AttackCounts, AttackRun, CanaryRun, DeadLetter, InstrumentName, RubricVersion, Settled, Store
from calibrations import a_calibration
from stores import HOUR_START, a_record, an_evaluation, with_payloads
from trace_servers import a_span, otlp_json

#: What the store must be opened with.
COHORT_LABELS = ("route", "model", "prompt_version")
RUBRICS = ("relevance", "faithfulness", "correctness", "helpfulness")
#: What `calibrations.a_calibration` and `stores.an_evaluation` are of.
VERSION, HASH, JUDGE, FINGERPRINT = "1-0a1b2c3d", "0a1b2c3d" * 8, "lexical", "f" * 64
INSTRUMENT = InstrumentName("relevance", VERSION, HASH, JUDGE, FINGERPRINT)
TRACE = "0af7651916cd43dd8448eb211c80319c"


def seconds_of(moment: datetime) -> float:
    """`a_record`'s seconds of a moment."""
    return (moment - HOUR_START).total_seconds()


def some_records(count: int, moment: datetime, *, app: str = "shop", seed: int = 0, **fields: Any) -> list[Record]:
    """Records within the minute before `moment`, on two routes and models and by two prompt versions."""
    chance = random.Random(seed)
    return [
        a_record(
            f"{app}-{seed}-{moment:%Y%m%d%H%M%S}-{index}",
            seconds=seconds_of(moment) - chance.uniform(0, 59),
            app=app,
            probability=chance.choice((1.0, 0.25)),
            route=("search", "checkout")[index % 2],
            model=("large", "small")[index % 4 > 1],
            prompt_version=("v1", "v2")[index % 8 > 3],
            trace_id=TRACE,
            finish_reason=("stop", "stop", "length")[index % 3],
            usage=Usage(cost_usd=0.002 + 0.001 * (index % 3)),
            **fields,
        )
        for index in range(count)
    ]


def judged(
    records: Sequence[Record], *, passing: float = 0.8, rubrics: Sequence[str] = RUBRICS, seed: int = 0, **fields: str
) -> list[Evaluation]:
    """An evaluation of each record by each rubric: that share passes, but a third of it at `checkout` by `small`."""
    chance = random.Random(seed)
    found = []
    for record in records:
        share = passing / 3 if (record.route, record.model) == ("checkout", "small") else passing
        for rubric in rubrics:
            passed = chance.random() < share
            value = chance.uniform(0.6, 1.0) if passed else chance.uniform(0.0, 0.4)
            usage = Usage(prompt_tokens=900, completion_tokens=60, cost_usd=0.0004)
            defect = None if passed else chance.choice(("incomplete", "retrieval_miss"))
            outcome: Outcome = Score(value=value, passed=passed, defect=defect, usage=usage)
            found.append(an_evaluation(record, outcome, rubric, **fields))
    return found


def commit(store: Store, records: Sequence[Record], evaluations: Sequence[Evaluation], **more: Any) -> None:
    """Store them."""
    store.commit(with_payloads(records), evaluations, **more)


def place(store: Store, rubric: str = "relevance", **fields: Any) -> None:
    """Make a rubric's version active, with an objective."""
    body = {"title": rubric.title(), "pass_threshold": 0.5, "objective": 0.9}
    known = {
        "rubric": rubric,
        "rubric_version": VERSION,
        "rubric_hash": HASH,
        "judge": JUDGE,
        "judge_fingerprint": FINGERPRINT,
        "body": json.dumps(body),
        "state": "active",
        "reason": "its gate asks for nothing",
    }
    store.place_rubric(RubricVersion(**(known | fields)))


def seed_store(store: Store, moment: datetime, *, part: int = 0) -> None:
    """Scores of every rubric, failures, what is not applicable, a dead letter, a duplicate, a calibration."""
    records = some_records(320, moment, seed=part)
    commit(store, records, judged(records, seed=part))
    rest = some_records(4, moment, app="support", seed=part)
    failure = Failure(kind="timeout", message="no answer within 60 s")
    commit(
        store,
        rest,
        [
            an_evaluation(rest[0], failure),
            an_evaluation(rest[1], NotApplicable(reason="missing_contexts")),
            *judged(rest[2:]),
        ],
        dead_letters=[DeadLetter(dead_id=f"dead-{part}", reason="invalid", message="no output", payload=b"{}")],
        duplicates=1,
    )
    if part == 0:
        for rubric in RUBRICS:
            place(store, rubric)
        store.save_calibration(a_calibration())


def seed_changes(store: Store, moment: datetime) -> None:
    """A detector that has learned what is usual, and raised an alarm: everything passed, then nothing does."""
    policy = ChangePolicy(reference_records=120, settle_seconds=1.0, against="reference")
    names = {"route": "search", "model": "large", "prompt_version": "v1"}
    watch(store, [], policy, clock=lambda: moment - timedelta(minutes=12))
    for minute, passed in enumerate([True] * 6 + [False] * 4):
        at = seconds_of(moment - timedelta(minutes=11 - minute))
        records = [a_record(f"watched-{minute}-{n}", seconds=at + n / 100, app="watched", **names) for n in range(60)]
        commit(store, records, [an_evaluation(record, float(passed), "relevance") for record in records])
    watch(store, [], policy, clock=lambda: moment + timedelta(minutes=1))


def seed_canary(store: Store, moment: datetime) -> None:
    """A run of the canary of the relevance judge, which reads less than it did."""
    store.save_canary(
        CanaryRun(
            run_id="run-1",
            instrument=INSTRUMENT,
            trigger="schedule",
            started_at=moment - timedelta(seconds=30),
            finished_at=moment,
            cause="product",
            reason="the judge reads what it read before",
            baseline=False,
            repeats=1,
            scores={"a": (0.9,), "b": (0.2,)},
            passes={"a": (1.0,), "b": (0.0,)},
            items=2,
            compared=2,
            baseline_at=moment - timedelta(days=7),
            difference=-0.02,
            lower=-0.05,
            upper=0.01,
        )
    )


def seed_attacks(store: Store, moment: datetime) -> None:
    """A run of attacks on the relevance judge, two of twenty of which sway it."""
    counts = {"override": AttackCounts(succeeded=2, resisted=18)}
    store.save_attack_run(
        AttackRun(run_id="run-1", instrument=INSTRUMENT, attack_set="a" * 64, measured_at=moment, counts={"on": counts})
    )


def seed_outbox(store: Store, moment: datetime, *, part: int = 0) -> None:
    """Some of what is owed to the sink `jsonl` is delivered; one is refused for good, and the rest waits."""
    claimed = store.claim_outbox("jsonl", f"claim-{part}", limit=5, until=moment + timedelta(hours=1))
    keys = [(one.annotation.record_id, one.annotation.evaluation_id) for one in claimed]
    settled = dict.fromkeys(keys, Settled(outcome="delivered"))
    settled[keys[0]] = Settled(outcome="rejected", reason="it has no span")
    store.settle_outbox("jsonl", f"claim-{part}", settled)


def seed_budget(url: str) -> Ledger:
    """A budget of 10 USD a month, a quarter of it spent."""
    budgets = Budgets(budgets=(Budget(name="total", per="month", usd=10.0),))

    async def spend() -> None:
        purse, used = RedisPurse(budgets, url, "assay"), Usage(cost_usd=2.5)
        held = await purse.reserve(app="shop", rubrics=["relevance"], judge="m", bound=used, lease_seconds=60)
        await purse.settle(held, used)
        await purse.aclose()

    asyncio.run(spend())
    return Ledger.from_url(budgets, url, "assay")


def seed_left_out(store: Store, moment: datetime) -> None:
    """A record that was not judged for want of money."""
    (record,) = some_records(1, moment, seed=99)
    (left_out,) = judged([record], rubrics=RUBRICS[:1])
    commit(store, [record], [replace(left_out, outcome=NotApplicable(reason=THINNED))])


def seed_inputs(store: Store, moment: datetime) -> None:
    """Questions of the last two weeks, an hour apart; those of the last day are longer and about something else."""
    records: list[Record] = []
    for hours in range(2, 24 * 15):
        at = moment - timedelta(hours=hours)
        asked = "Where is my parcel?" if hours > 30 else "Why was my card charged twice for one order last week? " * 4
        records += some_records(6, at, seed=hours, input=asked)
    commit(store, records, judged(records, rubrics=("relevance",)))


def seed_queue(queue: Queue, *, part: int = 0) -> None:
    """A batch that waits, and what a client reports."""
    payload = encode_batch(
        [a_record(f"waiting-{part}").to_json()], batch_id=f"waiting-{part}", enqueued_at=time.time() - 5
    )
    counters = {json.dumps(["shop", name]): 3 for name in ("taken", "sampled_out", "sent", "dropped:buffer_full")}
    queue.push(payload, batch_id=f"waiting-{part}", records=1, enqueued_at=time.time() - 5)
    queue.add_counters(Report(reporter="seed", number=part + 1, counters=counters))


def seed_worker(metrics: WorkerMetrics) -> None:
    """What a worker counts."""
    usage = Usage(prompt_tokens=900, cached_prompt_tokens=300, completion_tokens=60, cost_usd=0.0004)
    for seconds, outcome in ((0.4, "ok"), (0.7, "ok"), (60.0, "timeout")):
        metrics.call_started("openai:m")
        metrics.call_ended("openai:m", seconds, outcome, usage if outcome == "ok" else Usage(), TRACE)
    metrics.call_started("openai:unpriced")
    metrics.call_ended("openai:unpriced", 0.3, "ok", Usage(prompt_tokens=9, completion_tokens=1), None)
    metrics.judge("openai:m", FINGERPRINT)
    metrics.circuit("openai:m", is_open=False)
    metrics.batch("done")
    metrics.retry("timeout")
    metrics.lag(3.0, TRACE)
    metrics.commit(0.01)


def start_receiver(redis_url: str) -> Collector:
    """`assay collect` on a free port; close it."""
    return Collector(
        lambda app: Client(app, redis_url=redis_url, queue="of-the-receiver"),
        port=0,
        limits=CollectorLimits(wait_seconds=0.2, settle_seconds=0.1),
        metrics=lambda counts, accept: encode(collector_families(counts), openmetrics=wants_openmetrics(accept)),
    ).start()


def seed_receiver(receiver: Collector, *, part: int = 0) -> None:
    """One model call with its texts, and one without."""
    texts = {"gen_ai.input.messages": _messages("user", "hi"), "gen_ai.output.messages": _messages("assistant", "ho")}
    spans = (a_span(f"{part:031x}1", "1" * 16, **texts), a_span(f"{part:031x}2", "2" * 16))
    request = urllib.request.Request(
        f"http://127.0.0.1:{receiver.port}/v1/traces",
        data=json.dumps(otlp_json(*spans)).encode(),
        headers={"content-type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


def _messages(role: str, text: str) -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])


def a_minute_ago() -> datetime:
    """A minute before the present."""
    return datetime.now(UTC) - timedelta(minutes=1)
