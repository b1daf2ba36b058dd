"""The judge `ragas`, over the real ragas: runs where it is installed, which tests/integration/test_ragas.py sees to."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("ragas", reason="ragas is not installed: pip install 'assay[ragas]'")

from assay.budgets import Budget, Budgets, RedisPurse
from assay.errors import SettingsError
from assay.judges import JudgeSettings, build_judge, describe_judge
from assay.judges._prices import load_prices
from assay.judging import Instrument, judge_items, plan_judging
from assay.limits import Limits
from assay.records import Failure, NotApplicable, Score
from assay.rubrics import JudgeSpec
from assay.testing import FakeJudgeServer, Reply
from judging import a_record, binary, claims, ordinal

#: What a judge of good answers says, by the member of the form that ragas asks for.
GOOD = {
    "statements": None,
    "classifications": [{"statement": "It takes 5 days.", "reason": "context 1", "attributed": 1}],
    "question": "How long do refunds take?",
    "noncommittal": 0,
    "verdict": 1,
    "reason": "all of it is backed",
    "rating": 2,
    "feedback": "answers in full",
    "score": 5,
}
BAD = GOOD | {
    "classifications": [{"statement": "It takes 5 days.", "reason": "nowhere", "attributed": 0}],
    "question": "Which paintings did Vermeer make?",
    "verdict": 0,
    "rating": 0,
    "score": 1,
}


def replies(values, *, statements=("It takes 5 days.", "It is free."), faithful=(1, 0)):
    """A `verdict` of the fake judge: faithfulness asks for statements twice, first as texts, then judged."""

    def verdict(ask):
        if ask.rubric != "statements":
            return values.get(ask.rubric)
        if ask.schema["items"].get("type") == "string":
            return list(statements)
        pairs = zip(statements, faithful, strict=False)
        return [{"statement": text, "reason": "as context 1 says", "verdict": yes} for text, yes in pairs]

    return verdict


@pytest.fixture
def server():
    with FakeJudgeServer(verdict=replies(GOOD)) as running:
        yield running


RECORD = a_record(
    input="How long do refunds take?",
    output="Refunds take 5 days, and they are free.",
    contexts=("Refunds take 5 days.", "The shop is closed on Sunday."),
    reference="5 days.",
)
METRICS = {
    "faithfulness": claims(pass_threshold=0.9),
    "answer_relevancy": binary(),
    "context_precision": binary(),
    "context_recall": binary(),
    "response_groundedness": binary(),
    "rubric_score": ordinal(),
    "aspect_critic": binary(instructions="Is the output polite?"),
}


def judged(server, metric, record=RECORD, rubric=None, purse=None, limits=None, **settings):
    async def run():
        given = JudgeSettings(engine="openai", model="fake", base_url=server.base_url, **settings)
        judge = build_judge(JudgeSpec(engine="ragas", metric=metric), given, None, purse, limits)
        try:
            (outcome,) = await judge.judge(record, [rubric or METRICS[metric]])
            return outcome
        finally:
            await judge.aclose()
            for shared in (purse, limits):
                if shared is not None:
                    await shared.aclose()

    return asyncio.run(run())


class TestScores:
    @pytest.mark.parametrize(
        ("metric", "value", "calls"),
        [
            ("faithfulness", 0.5, 2),
            ("answer_relevancy", 1.0, 5),
            ("context_precision", 1.0, 2),
            ("context_recall", 1.0, 1),
            ("response_groundedness", 1.0, 2),
            ("rubric_score", 1.0, 1),
            ("aspect_critic", 1.0, 1),
        ],
    )
    def test_each_metric_of_a_good_answer(self, server, metric, value, calls):
        outcome = judged(server, metric)
        assert isinstance(outcome, Score), outcome
        assert outcome.value == pytest.approx(value)
        assert outcome.passed == (metric != "faithfulness")
        assert outcome.explanation
        assert server.traffic.calls == calls
        assert outcome.usage.prompt_tokens == server.traffic.prompt_tokens
        assert outcome.usage.completion_tokens == server.traffic.completion_tokens

    @pytest.mark.parametrize("metric", [m for m in METRICS if m != "faithfulness"])
    def test_each_metric_of_a_bad_answer(self, metric):
        with FakeJudgeServer(verdict=replies(BAD)) as server:
            outcome = judged(server, metric)
        assert isinstance(outcome, Score), outcome
        assert outcome.value < 0.5
        assert not outcome.passed

    def test_the_levels_are_those_of_the_rubric_and_the_aspect_its_instructions(self, server):
        judged(server, "rubric_score")
        scale = METRICS["rubric_score"].scale
        assert all(level.anchor in str(server.requests[-1]["messages"]) for level in scale.levels)
        judged(server, "aspect_critic")
        assert "Is the output polite?" in str(server.requests[-1]["messages"])

    def test_precision_without_a_reference_asks_of_the_output(self, server):
        record = a_record(input="How long?", output="Five days, I think.", contexts=("Refunds take 5 days.",))
        assert judged(server, "context_precision", record).value == pytest.approx(1.0)
        assert "Five days, I think." in str(server.requests[-1]["messages"])

    def test_what_was_said_on_the_way_is_kept(self, server):
        details = judged(server, "faithfulness").details
        assert details["replies"][1]["statements"][1] == {
            "statement": "It is free.",
            "reason": "as context 1 says",
            "verdict": 0,
        }


class TestNoScore:
    """ragas gives NaN, 0 or the mean of the rest for these; none of it may become a score."""

    def test_an_output_without_statements_has_no_claims(self):
        with FakeJudgeServer(verdict=replies(GOOD, statements=())) as server:
            assert judged(server, "faithfulness") == NotApplicable(
                reason="no_claims",
                usage=judged(server, "faithfulness").usage,
                latency_seconds=pytest.approx(0, abs=10),
                judge_model="fake",
            )

    def test_statements_that_nobody_judged_are_no_score(self):
        with FakeJudgeServer(verdict=replies(GOOD, faithful=())) as server:
            outcome = judged(server, "faithfulness")
        assert not isinstance(outcome, Score)

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize(
        ("fault", "kind"), [("429", "rate_limited"), ("500", "unavailable"), ("401", "unauthorized")]
    )
    def test_a_failed_request_is_a_failure_of_its_kind(self, metric, fault, kind):
        with FakeJudgeServer(faults={fault: 1.0}) as server:
            outcome = judged(server, metric)
        assert isinstance(outcome, Failure)
        assert outcome.kind == kind

    def test_one_of_two_ratings_is_not_their_mean(self, server):
        server.script("ok", "500")
        outcome = judged(server, "response_groundedness")
        assert isinstance(outcome, Failure)
        assert outcome.kind == "unavailable"

    def test_embeddings_that_fail(self, server):
        server.script("ok", "ok", "ok", "500")
        assert judged(server, "answer_relevancy").kind == "unavailable"

    @pytest.mark.parametrize("broken", [[], [[0.0, 0.0]], [["x"]], [[float("nan")]], [[10**400]]])
    def test_embeddings_that_are_none(self, server, broken):
        data = [{"index": 0, "embedding": vector} for vector in broken]
        server.script("ok", "ok", "ok", Reply(body={"data": data, "model": "e"}))
        assert judged(server, "answer_relevancy").kind == "unparsable"

    def test_no_question_is_not_a_zero(self):
        with FakeJudgeServer(verdict=replies(GOOD | {"question": ""})) as server:
            assert judged(server, "answer_relevancy").kind == "unparsable"

    @pytest.mark.parametrize(("metric", "member"), [("rubric_score", "score"), ("response_groundedness", "rating")])
    def test_a_grade_off_the_scale(self, metric, member):
        with FakeJudgeServer(verdict=replies(GOOD | {member: 99})) as server:
            assert judged(server, metric).kind == "off_scale"

    def test_a_form_that_is_not_kept_is_repaired_once(self, server):
        server.script(Reply(content='{"verdict": "maybe"}'))
        assert isinstance(judged(server, "aspect_critic"), Score)
        server.script(Reply(content='{"verdict": "maybe"}'), Reply(content="no JSON at all"))
        assert judged(server, "aspect_critic").kind == "unparsable"

    def test_half_a_character_in_a_reply_does_not_keep_it_from_being_repaired(self, server):
        server.script(Reply(content="no form \ud83d"), "ok")
        assert isinstance(judged(server, "aspect_critic"), Score)
        assert server.requests[-1]["messages"][-2]["content"] == "no form ?"

    def test_a_hung_call_ends(self, server):
        server.script("hang")
        assert judged(server, "aspect_critic", timeout_seconds=0.3).kind == "timeout"

    def test_a_wrong_scale_is_a_failure_that_says_so(self, server):
        outcome = judged(server, "rubric_score", rubric=binary())
        assert outcome.kind == "internal"
        assert "ordinal" in outcome.message

    @pytest.mark.parametrize(
        ("metric", "record", "reason"),
        [
            ("faithfulness", a_record(contexts=()), "missing_contexts"),
            ("context_recall", a_record(reference=None), "missing_reference"),
            ("answer_relevancy", a_record(input=""), "missing_input"),
            ("aspect_critic", a_record(output=" "), "missing_output"),
        ],
    )
    def test_what_a_record_lacks(self, server, metric, record, reason):
        assert judged(server, metric, record) == NotApplicable(reason=reason)
        assert server.traffic.calls == 0


def test_records_are_judged_at_once(server):
    server.latency_seconds = 0.2

    async def run():
        given = JudgeSettings(engine="openai", model="fake", base_url=server.base_url, max_in_flight=5)
        judge = build_judge(JudgeSpec(engine="ragas", metric="aspect_critic"), given)
        try:
            records = [a_record(record_id=f"r-{n}") for n in range(20)]
            await asyncio.gather(*(judge.judge(record, [METRICS["aspect_critic"]]) for record in records))
        finally:
            await judge.aclose()

    asyncio.run(run())
    assert server.traffic.max_in_flight == 5


def test_a_spent_budget_stops_it(server, redis_url):
    budgets = Budgets(budgets=(Budget(name="total", per="day", tokens=10),))
    outcome = judged(server, "aspect_critic", purse=RedisPurse(budgets, redis_url, "assay"))
    assert outcome.kind == "budget"
    assert server.traffic.calls == 0


def budgeted(server, metric, directory, usd, records=60, **settings):
    """What `assay calibrate --budget` does, by gpt-5-mini's prices."""
    given = JudgeSettings(engine="openai", model="gpt-5-mini", base_url=server.base_url, max_tokens=256, **settings)
    rubric = replace(METRICS[metric], judge=JudgeSpec(engine="ragas", metric=metric))
    items = [(str(n), replace(RECORD, record_id=str(n), output=f"{RECORD.output} {n}")) for n in range(records)]
    plan = plan_judging(items, Instrument(rubric=rubric, settings=given), directory)
    return asyncio.run(judge_items(plan, budget_usd=usd))


@pytest.mark.parametrize("metric", ["faithfulness", "answer_relevancy"])
def test_a_budget_of_judging_by_hand_is_never_passed(server, tmp_path, metric):
    result = budgeted(server, metric, tmp_path, 0.02, max_in_flight=4)
    traffic = server.traffic
    price = load_prices(None).of("gpt-5-mini")
    # As if embeddings, of which one of the two asks for, cost as much as replies.
    most = price.cost_usd(prompt_tokens=traffic.prompt_tokens, completion_tokens=traffic.completion_tokens)
    assert 0.95 * most < result.spent_usd <= most + 1e-9
    assert most <= 0.02
    assert "budget" in result.stopped
    assert 0 < len(result.outcomes) < 60
    assert all(isinstance(outcome, Score) for outcome in result.outcomes.values())
    # It ends for want of a request's bound, not before.
    assert result.spent_usd > 0.02 - 0.006


def test_a_budget_that_is_enough_is_not_felt(server, tmp_path):
    result = budgeted(server, "faithfulness", tmp_path, 1.0, records=5)
    assert (result.stopped, len(result.outcomes)) == (None, 5)


def test_a_budget_needs_the_price_of_each_model(server, tmp_path):
    with pytest.raises(SettingsError, match=r"my-vectors is unknown.*ASSAY_PRICES"):
        budgeted(server, "answer_relevancy", tmp_path, 1.0, embedding_model="my-vectors")
    assert server.traffic.calls == 0


def test_waiting_for_a_turn_between_its_requests_is_not_the_judges_timeout(server, redis_url):
    # The turn of the second request is further off than the whole timeout.
    limits = Limits(url=redis_url, queue="assay", requests_per_minute=10)
    outcome = judged(server, "faithfulness", limits=limits, timeout_seconds=5.0)
    assert isinstance(outcome, Score), outcome
    assert server.traffic.calls == 2


@pytest.mark.parametrize("mode", ["never", "auto"])
def test_a_worker_loads_ragas_only_where_it_judges_by_it(server, redis_url, tmp_path, mode):
    (tmp_path / "polite.yaml").write_text(POLITE)
    (tmp_path / "run.py").write_text(WORKER)
    settings = {
        "REDIS_URL": redis_url,
        "DATABASE_URL": f"sqlite:///{tmp_path}/assay.db",
        "RUBRICS": str(tmp_path / "polite.yaml"),
        "JUDGE": "openai",
        "JUDGE_BASE_URL": server.base_url,
        "JUDGE_API_KEY": "synthetic",
        "JUDGE_MODEL": "fake",
        "RAGAS": mode,
    }
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py"],
        env=os.environ | {f"ASSAY_{name}": value for name, value in settings.items()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = {"never": "False ['polite']", "auto": "True []"}
    assert done.stdout.split("\n")[-2] == expected[mode]


POLITE = """
name: polite
version: "1"
requires: [output]
instructions: Is the answer polite?
scale: {type: binary, pass_when: it is, fail_when: it is not}
pass_threshold: 0.5
judge: {engine: ragas, metric: aspect_critic}
"""
#: Starts a worker, and has it judge a batch; then says whether ragas was loaded, and which rubrics wait for it.
WORKER = """
import sys
from assay import tasks, wiring
from assay.enqueue import enqueue
from assay.queue import decode_batch
from assay.records import Record, now
from assay.settings import load_settings

settings = load_settings()
store, queue = wiring.open_store(settings, check=False), wiring.open_queue(settings)
store.upgrade()
worker = wiring.build_worker(settings, queue=queue, store=store, metrics=None)
worker.start()
enqueue([Record(record_id="r", timestamp=now(), input="a", output="b")], queue)
for payload in list(queue.payloads()):
    worker.work(decode_batch(payload).batch_id)
worker.stop()
waiting = [name for payload in queue.payloads() for name in decode_batch(payload).rubrics.values()]
print("ragas" in sys.modules, waiting)
"""


def test_its_name_and_fingerprint_are_those_told_without_ragas(server):
    given = JudgeSettings(engine="openai", model="fake", base_url=server.base_url)
    spec = JudgeSpec(engine="ragas", metric="faithfulness")
    judge = build_judge(spec, given)
    assert (judge.name, judge.fingerprint) == describe_judge(spec, given)
    assert judge.name == "ragas:faithfulness:fake"
