"""When a judge is asked again, what its verdicts come to, and how far that lies from always asking so often."""

from __future__ import annotations

import asyncio
import json
import math
import random
from dataclasses import replace
from itertools import product

import pytest

from assay.errors import SettingsError
from assay.judges import JudgeSettings
from assay.metrics import WorkerMetrics
from assay.pipeline import Judges, evaluate
from assay.records import Failure, NotApplicable, Score, Usage
from assay.repeats import Poll, Repeats, verdicts_in
from assay.rubrics import JudgeSpec
from assay.testing import FakeJudgeServer, Reply
from exposition import Exposition
from judging import a_record, binary, ordinal

ADAPTIVE = Repeats(most=5, band=(0.3, 0.7))
FIXED = Repeats(most=5)


def a_score(value: float, threshold: float = 0.5, **fields) -> Score:
    return Score(value=value, passed=value >= threshold, **fields)


def polled(repeats: Repeats, values, threshold: float = 0.5, *, plain: bool = False):
    """The outcome of a judge that would say these, and how many of them it was asked for."""
    said = iter(values)
    poll = Poll(repeats, pass_threshold=threshold, plain=plain, first=a_score(next(said), threshold))
    asked = 1
    while poll.asks_again:
        outcome = next(said)
        poll.add(outcome if isinstance(outcome, Failure | NotApplicable) else a_score(outcome, threshold))
        asked += 1
    return poll.outcome, asked


class TestRule:
    @pytest.mark.parametrize(
        ("values", "asked"),
        [
            ((0.9,), 1),
            ((0.1,), 1),
            ((0.7, 0.8), 2),  # an edge is in doubt; the mean left the band
            ((0.5, 0.5, 0.5, 0.5, 0.5), 5),
            ((0.5, 0.2, 0.1), 3),
            ((0.4, 0.6, 0.3, 0.7, 0.5), 5),
        ],
    )
    def test_only_a_mean_within_the_band_is_asked_about_again(self, values, asked):
        outcome, seen = polled(ADAPTIVE, values)
        assert seen == asked
        assert outcome.value == pytest.approx(sum(values) / len(values))
        assert outcome.passed == (outcome.value >= 0.5)

    def test_it_ends_when_no_verdict_that_is_left_could_change_whether_it_passes(self):
        # 2.1 of 3: two more of 0 would make 0.42, above the threshold.
        assert polled(Repeats(most=5, band=(0.2, 0.8)), (0.7, 0.7, 0.7), 0.4)[1] == 3
        assert polled(Repeats(most=5, band=(0.2, 0.8)), (0.7, 0.7, 0.7, 0.7), 0.5)[1] == 4

    def test_without_a_band_all_are_asked_for(self):
        outcome, seen = polled(FIXED, (1.0, 1.0, 1.0, 1.0, 0.0))
        assert (seen, outcome.value) == (5, 0.8)

    def test_a_plain_verdict_says_nothing_of_doubt_unless_its_probability_is_known(self):
        assert polled(ADAPTIVE, (1.0, 1.0), plain=True)[1] == 2
        assert polled(ADAPTIVE, (1.0, 0.0, 0.0, 0.0), plain=True)[1] == 4
        sure = a_score(0.98, details={"distribution": {"pass": 0.98, "fail": 0.02}})
        assert not Poll(ADAPTIVE, pass_threshold=0.5, plain=True, first=sure).asks_again

    def test_the_words_are_those_of_a_verdict_on_the_side_of_the_mean(self):
        scores = [a_score(v, label=str(v), explanation=f"because {v}") for v in (0.45, 0.6, 0.4, 0.55, 0.45)]
        poll = Poll(FIXED, pass_threshold=0.5, plain=False, first=scores[0])
        for score in scores[1:]:
            poll.add(score)
        assert poll.outcome.value == pytest.approx(0.49)
        assert (poll.outcome.passed, poll.outcome.label) == (False, "0.45")
        assert poll.outcome.details["verdicts"] == [0.45, 0.6, 0.4, 0.55, 0.45]
        assert verdicts_in(poll.outcome) == 5

    def test_one_verdict_stays_as_it_is(self):
        score = a_score(0.9, details={"items": {}})
        poll = Poll(ADAPTIVE, pass_threshold=0.5, plain=False, first=score)
        assert poll.outcome is score
        assert verdicts_in(score) == 1
        assert verdicts_in(Failure(kind="budget", message="spent")) == 0

    @pytest.mark.parametrize("kind", ["budget", "rate_limited", "timeout", "unavailable"])
    def test_what_ends_the_asking_leaves_the_score_of_what_there_is(self, kind):
        failure = Failure(kind=kind, message="no", usage=Usage(prompt_tokens=3), latency_seconds=1.0)
        outcome, seen = polled(ADAPTIVE, (0.5, 0.6, failure))
        assert (seen, outcome.value, outcome.passed) == (3, pytest.approx(0.55), True)
        assert outcome.details == {"verdicts": [0.5, 0.6], "ended_by": kind}
        assert (outcome.usage.prompt_tokens, outcome.latency_seconds) == (3, 1.0)

    @pytest.mark.parametrize("void", [Failure(kind="unparsable", message="?"), NotApplicable(reason="no_claims")])
    def test_what_is_no_verdict_is_no_score_and_is_not_asked_for_ever(self, void):
        outcome, seen = polled(ADAPTIVE, (0.5, void, void, void, void))
        assert (seen, outcome.value, outcome.details) == (5, 0.5, {"verdicts": [0.5]})
        outcome, seen = polled(ADAPTIVE, (0.5, void, 0.6, void, 0.4))
        assert (seen, outcome.value) == (5, pytest.approx(0.5))

    @pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 1.0])
    def test_some_verdict_is_always_on_the_side_of_the_mean(self, threshold):
        draw = random.Random(1)
        for _ in range(500):
            outcome, _ = polled(FIXED, [draw.choice((0.0, 1 / 3, 0.1, 0.7, 1.0)) for _ in range(5)], threshold)
            assert outcome.passed == (outcome.value + 1e-9 >= threshold)


class TestError:
    """The bounds that docs/explanation/cost.md states, against always asking five times."""

    def exactly(self, p: float, repeats: Repeats) -> tuple[float, float, float, float]:
        """Of a judge that says pass with probability p: P(pass), P(another outcome than of five), calls, mean value."""
        passes = differs = calls = values = 0.0
        for said in product((1.0, 0.0), repeat=5):
            weight = math.prod(p if value else 1 - p for value in said)
            outcome, asked = polled(repeats, said, plain=True)
            passes += weight * outcome.passed
            differs += weight * (outcome.passed != (sum(said) >= 3))
            calls += weight * asked
            values += weight * outcome.value
        return passes, differs, calls, values

    @pytest.mark.parametrize("p", [0.0, 0.05, 0.2, 0.2764, 0.4, 0.5, 0.7236, 0.9, 1.0])
    def test_a_record_passes_as_often_as_with_five_within_the_bound(self, p):
        adaptive, differs, calls, value = self.exactly(p, ADAPTIVE)
        fixed, _, five, unbiased = self.exactly(p, FIXED)
        assert five == pytest.approx(5)
        assert unbiased == pytest.approx(p)
        assert abs(value - p) <= 0.055
        assert differs == pytest.approx((p * (1 - p)) ** 2)
        assert differs <= 1 / 16
        assert adaptive - fixed == pytest.approx((p * (1 - p)) ** 2 * (1 - 2 * p))
        assert abs(adaptive - fixed) <= 0.0179
        assert 2 - 1e-9 <= calls <= 3.25 + 1e-9

    def test_ending_early_because_nothing_can_change_changes_nothing(self):
        curtailed = Repeats(most=5, band=(0.0, 1.0))
        for p in (0.1, 0.5, 0.8):
            passes, differs, calls, _ = self.exactly(p, curtailed)
            assert differs == 0
            assert passes == pytest.approx(self.exactly(p, FIXED)[0])
            assert 3 <= calls < 4.2

    def test_over_a_population_the_pass_ratio_moves_less_than_the_bound_and_calls_are_saved(self):
        draw, count = random.Random(20), 4_000
        passes = {ADAPTIVE: 0, FIXED: 0}
        values = {ADAPTIVE: 0.0, FIXED: 0.0}
        calls = 0
        for _ in range(count):
            p = draw.betavariate(1.2, 0.4)
            said = [float(draw.random() < p) for _ in range(5)]
            for repeats in (ADAPTIVE, FIXED):
                outcome, asked = polled(repeats, said, plain=True)
                passes[repeats] += outcome.passed
                values[repeats] += outcome.value
                calls += asked if repeats is ADAPTIVE else 0
        assert abs(passes[ADAPTIVE] - passes[FIXED]) / count < 0.0179
        assert abs(values[ADAPTIVE] - values[FIXED]) / count < 0.05
        assert calls / count < 0.55 * 5

    def test_graded_verdicts_differ_from_five_only_where_the_first_was_out_of_the_band_by_chance(self):
        draw, count, band = random.Random(21), 4_000, Repeats(most=5, band=(0.5, 0.9))
        differs = moved = calls = 0.0
        for _ in range(count):
            centre = draw.betavariate(2.0, 0.8)
            # Five levels, as of an ordinal scale: 0, 0.25, ... 1.
            said = [min(1.0, max(0.0, round(4 * draw.gauss(centre, 0.12)) / 4)) for _ in range(5)]
            one, asked = polled(band, said, 0.7)
            five, _ = polled(FIXED, said, 0.7)
            differs += one.passed != five.passed
            moved += one.passed - five.passed
            calls += asked
        assert differs / count < 0.02
        assert abs(moved) / count < 0.01
        assert calls / count < 0.6 * 5


def doubting(**by_rubric):
    """A verdict function of a server: for each rubric the levels or words to answer with, in their order."""
    left = {name: iter(values) for name, values in by_rubric.items()}

    def verdict(ask):
        value = next(left[ask.rubric])
        return {"explanation": f"said {value}", "level" if isinstance(value, int) else "verdict": value}

    return verdict


def judged(server, rubrics, temperature: float | None = 0.7, observer=None, **settings):
    """The outcomes of one record by rubric name, through the pipeline."""
    given = {"engine": "openai", "model": "gpt-5-mini", "base_url": server.base_url, "logprobs": False}

    async def run():
        judges = Judges.build(rubrics, JudgeSettings(**given, temperature=temperature, **settings), observer)
        try:
            return await evaluate(a_record(), rubrics, judges)
        finally:
            await judges.aclose()

    return {evaluation.rubric: evaluation.outcome for evaluation in asyncio.run(run())}


def asked_for(server):
    """The rubrics of each request, in its order."""
    wanted = (request["response_format"]["json_schema"]["schema"] for request in server.requests)
    return [sorted(name for name in schema["properties"] if not name.startswith("_")) for schema in wanted]


ORDINAL = Repeats(most=5, band=(0.5, 0.9))


class TestJudge:
    def test_together_only_those_in_doubt_are_asked_again(self):
        says = doubting(relevance=[4, 3, 1], sure=[5], single=[4], other=[4, 5, 5, 5])
        rubrics = [
            ordinal(repeats=ORDINAL),
            ordinal("sure", repeats=ORDINAL),
            ordinal("single"),
            ordinal("other", repeats=replace(ORDINAL, band=(0.6, 0.89))),
        ]
        with FakeJudgeServer(verdict=says) as server:
            outcomes = judged(server, rubrics)
            requests = asked_for(server)
        assert requests[0] == ["other", "relevance", "single", "sure"]
        assert requests[1:] == [["other", "relevance"], ["other", "relevance"]]
        assert outcomes["relevance"].details["verdicts"] == [0.75, 0.5, 0.0]
        assert (outcomes["relevance"].value, outcomes["relevance"].passed) == (pytest.approx(1.25 / 3), False)
        assert outcomes["relevance"].explanation == "said 3"
        assert outcomes["sure"].value == 1.0
        assert "verdicts" not in outcomes["sure"].details
        assert "verdicts" not in outcomes["single"].details
        # (0.75 + 1) / 2 = 0.875 is in its band, (0.75 + 1 + 1) / 3 = 0.92 is not.
        assert outcomes["other"].details["verdicts"] == [0.75, 1.0, 1.0]

    def test_alone_and_in_words_it_is_a_majority(self):
        says = doubting(verdicts=["pass", "fail", "fail", "fail"])
        rubric = binary(ask="alone", pass_threshold=0.5, repeats=ADAPTIVE)
        with FakeJudgeServer(verdict=says) as server:
            outcome = judged(server, [rubric])["verdicts"]
        assert (outcome.value, outcome.passed, outcome.label) == (0.25, False, "fail")

    def test_tokens_cost_and_seconds_are_of_all_calls(self):
        says = doubting(relevance=[4, 3, 4, 3, 4], other=[5])
        with FakeJudgeServer(verdict=says) as server:
            outcomes = judged(server, [ordinal(repeats=Repeats(most=5)), ordinal("other")])
        traffic = server.traffic
        assert traffic.calls == 5
        used = sum((outcome.usage for outcome in outcomes.values()), Usage())
        assert (used.prompt_tokens, used.completion_tokens) == (traffic.prompt_tokens, traffic.completion_tokens)
        assert used.cost_usd == pytest.approx((used.prompt_tokens * 0.25 + used.completion_tokens * 2.0) / 1e6)
        assert outcomes["relevance"].latency_seconds > outcomes["other"].latency_seconds > 0

    def test_no_two_requests_have_one_seed(self):
        says = doubting(relevance=[4, 3, 2], plain=[4])
        with FakeJudgeServer(verdict=says) as server:
            judged(server, [ordinal(repeats=ORDINAL)])
            assert not any("seed" in request for request in server.requests)
            judged(server, [ordinal("plain")])
            assert server.requests[-1]["seed"] == 0

    def test_a_repeat_that_fails_is_no_score_and_costs_what_it_took(self):
        good = json.dumps({"relevance": {"explanation": "x", "level": 4}})
        usage = {"prompt_tokens": 1000, "completion_tokens": 10}
        with FakeJudgeServer() as server:
            server.script(
                Reply(content=good, usage=usage),
                Reply(content="no idea", usage=usage),
                Reply(content="no idea either", usage=usage),
                Reply(content=good, usage=usage),
                "500",
            )
            seen = WorkerMetrics()
            outcome = judged(server, [ordinal(repeats=Repeats(most=5))], observer=seen)["relevance"]
        counted = Exposition.of(seen.collect())
        for kind in ("ok", "unparsable", "unavailable"):
            assert counted.value("assay_judge_repeats_total", judge="openai:gpt-5-mini", outcome=kind) == 1
        assert counted.sum("assay_judge_repeats_total") == 3
        assert (outcome.value, outcome.details) == (0.75, {"verdicts": [0.75, 0.75], "ended_by": "unavailable"})
        assert outcome.usage.prompt_tokens == 4000

    def test_a_first_verdict_that_fails_is_the_failure_as_ever(self):
        with FakeJudgeServer() as server:
            server.script("500")
            outcome = judged(server, [ordinal(repeats=ORDINAL)])["relevance"]
        assert (outcome.kind, server.traffic.calls) == ("unavailable", 1)

    def test_a_judge_that_does_not_vary_is_refused_or_asked_once(self):
        rubric = ordinal(repeats=Repeats(most=5))
        with FakeJudgeServer() as server:
            with pytest.raises(SettingsError, match="rubric relevance: at temperature 0"):
                judged(server, [rubric], temperature=0.0)
            with pytest.raises(SettingsError, match="ragas is asked once"):
                judged(server, [replace(rubric, judge=JudgeSpec(engine="ragas", metric="faithfulness"))])
            outcome = judged(server, [replace(rubric, judge=JudgeSpec(engine="lexical"))])["relevance"]
            assert isinstance(outcome, Score)
            assert server.traffic.calls == 0
            assert judged(server, [rubric], temperature=None)["relevance"].details["verdicts"]
            assert server.traffic.calls == 5
