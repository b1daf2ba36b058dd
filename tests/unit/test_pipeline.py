"""The pure core: every rubric gets exactly one evaluation, whatever a judge does."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from assay.defects import ALL
from assay.errors import JudgeError, RubricError, SettingsError
from assay.judges import JudgeSettings, describe_judge
from assay.pipeline import Judges, balanced_orders, evaluate
from assay.records import Failure, NotApplicable, Score, Usage
from assay.rubrics import JudgeSpec
from assay.testing import ScriptedJudge
from judging import a_record, checklist, claims, ordinal


class Broken:
    """A judge that does one wrong thing."""

    name = "broken"
    fingerprint = "0" * 64

    def __init__(self, act) -> None:
        self.act = act
        self.closed = 0

    async def judge(self, record, rubrics):
        return self.act(record, rubrics)

    async def aclose(self) -> None:
        self.closed += 1


def evaluated(record, rubrics, judges):
    return asyncio.run(evaluate(record, rubrics, judges if isinstance(judges, Judges) else Judges(judges)))


def raising(error):
    def act(record, rubrics):
        raise error

    return act


def test_an_evaluation_says_who_judged_what_by_which_question():
    judge = ScriptedJudge(Score(value=0.5, passed=False))
    rubric = ordinal()
    (evaluation,) = evaluated(a_record(), [rubric], judge)
    assert evaluation.record_id == "r-1"
    assert (evaluation.rubric, evaluation.rubric_version) == ("relevance", rubric.revision)
    assert evaluation.rubric_hash == rubric.hash
    assert (evaluation.judge, evaluation.judge_fingerprint) == ("scripted", judge.fingerprint)
    assert evaluation.outcome == Score(value=0.5, passed=False, defect="unclassified")


@pytest.mark.parametrize(
    ("outcome", "defects", "kept"),
    [
        (Score(value=0.5, passed=False, defect="selection"), ALL, "selection"),
        (Score(value=0.5, passed=False), ALL, "unclassified"),
        (Score(value=0.5, passed=False, defect="my own"), ALL, "unclassified"),
        (Score(value=0.5, passed=False, defect="selection"), ("off_topic", "unsafe"), "unclassified"),
        (Score(value=0.5, passed=False), ("unsafe",), "unsafe"),
        (Score(value=0.5, passed=False, defect="selection"), (), None),
        (Score(value=0.5, passed=True, defect="selection"), ALL, None),
    ],
)
def test_whatever_a_judge_names_the_defect_is_one_of_the_rubrics(outcome, defects, kept):
    (evaluation,) = evaluated(a_record(), [ordinal(defects=defects)], ScriptedJudge(outcome))
    assert evaluation.outcome == replace(outcome, defect=kept)


def test_they_come_in_the_order_of_the_rubrics_with_their_own_outcomes():
    rubrics = [ordinal(f"rubric_{n}") for n in range(9)]
    scores = {rubric.name: Score(value=n / 10, passed=True) for n, rubric in enumerate(rubrics)}
    evaluations = evaluated(a_record(), rubrics, ScriptedJudge(scores))
    assert [evaluation.rubric for evaluation in evaluations] == [rubric.name for rubric in rubrics]
    assert [evaluation.outcome.value for evaluation in evaluations] == [n / 10 for n in range(9)]


def test_no_rubrics_are_no_evaluations():
    assert evaluated(a_record(), [], ScriptedJudge()) == []


def test_what_a_record_lacks_is_not_applicable_and_costs_no_call():
    judge = ScriptedJudge()
    without, with_input = evaluated(a_record(contexts=()), [claims(), ordinal()], judge)
    assert without.outcome == NotApplicable(reason="missing_contexts")
    assert isinstance(with_input.outcome, Score)
    assert judge.calls == [("r-1", ("relevance",))]


def test_a_record_that_lacks_everything_is_never_shown_to_the_judge():
    judge = ScriptedJudge()
    evaluated(a_record(contexts=()), [claims()], judge)
    assert judge.calls == []


class TestCalls:
    def test_rubrics_together_make_one_call_and_each_alone_its_own(self):
        judge = ScriptedJudge()
        rubrics = [ordinal("a"), ordinal("b", ask="alone"), ordinal("c"), ordinal("d", ask="alone")]
        evaluated(a_record(), rubrics, judge)
        assert sorted((len(names), set(names)) for _, names in judge.calls) == [(1, {"b"}), (1, {"d"}), (2, {"a", "c"})]

    def test_the_order_in_a_call_varies_with_the_record_and_only_with_it(self):
        rubrics = [ordinal(name) for name in "abcd"]

        def order(record_id, given):
            judge = ScriptedJudge()
            evaluated(a_record(record_id=record_id), given, judge)
            return judge.calls[0][1]

        orders = {order(f"r-{n}", rubrics) for n in range(200)}
        assert len(orders) == 4
        assert order("r-7", rubrics) == order("r-7", rubrics[::-1])

    @pytest.mark.parametrize("count", range(1, 10))
    def test_the_orders_are_balanced_by_place_and_by_neighbour(self, count):
        orders = balanced_orders(count)
        assert len(orders) == len(set(orders)) == (2 * count if count % 2 and count > 1 else count)
        places = Counter((place, thing) for order in orders for place, thing in enumerate(order))
        assert len(places) == count**2
        assert set(places.values()) == {len(orders) // count}
        neighbours = Counter(pair for order in orders for pair in pairwise(order))
        assert len(neighbours) == count * (count - 1)
        assert len(set(neighbours.values())) <= 1

    def test_each_order_is_used_as_often(self):
        rubrics, judge = [ordinal(name) for name in "abcd"], ScriptedJudge()
        for number in range(2_000):
            evaluated(a_record(record_id=f"r-{number}"), rubrics, judge)
        used = Counter(names for _, names in judge.calls)
        assert len(used) == 4
        assert all(400 < count < 600 for count in used.values())

    def test_rubrics_of_different_judges_are_different_calls(self):
        one, two = ScriptedJudge(name="one"), ScriptedJudge(name="two")
        judges = Judges(one, {"b": two})
        evaluations = evaluated(a_record(), [ordinal("a"), ordinal("b"), ordinal("c")], judges)
        assert [evaluation.judge for evaluation in evaluations] == ["one", "two", "one"]
        assert (len(one.calls), len(two.calls)) == (1, 1)

    def test_calls_run_at_once(self):
        # Each call waits for the other: one after the other would never end.
        meeting = asyncio.Barrier(2)

        class Meeting(ScriptedJudge):
            async def judge(self, record, rubrics):
                await meeting.wait()
                return await super().judge(record, rubrics)

        evaluations = evaluated(a_record(), [ordinal("a", ask="alone"), ordinal("b", ask="alone")], Meeting())
        assert len(evaluations) == 2


class TestFailures:
    def test_a_judge_error_fails_each_rubric_with_its_kind_and_its_share_of_the_cost(self):
        error = JudgeError(
            "rate_limited", "slow down " * 100, retry_after_seconds=7, usage=Usage(prompt_tokens=5, cost_usd=1.0)
        )
        evaluations = evaluated(a_record(), [ordinal("a"), ordinal("b")], Broken(raising(error)))
        outcomes = [evaluation.outcome for evaluation in evaluations]
        assert [outcome.kind for outcome in outcomes] == ["rate_limited"] * 2
        assert [outcome.retry_after_seconds for outcome in outcomes] == [7, 7]
        assert sorted(outcome.usage.prompt_tokens for outcome in outcomes) == [2, 3]
        assert all(outcome.usage.cost_usd == 0.5 and len(outcome.message) == 500 for outcome in outcomes)

    @pytest.mark.parametrize(
        "act",
        [
            raising(RuntimeError("bug")),
            raising(KeyError("bug")),
            lambda record, rubrics: [],
            lambda record, rubrics: None,
            lambda record, rubrics: [Score(value=1, passed=True)] * 3,
            lambda record, rubrics: [0.0, 0.0],
            lambda record, rubrics: [None, Score(value=1, passed=True)],
        ],
    )
    def test_a_bug_in_a_judge_is_a_failure_and_never_a_number(self, act, caplog):
        with caplog.at_level(logging.ERROR):
            evaluations = evaluated(a_record(), [ordinal("a"), ordinal("b")], Broken(act))
        assert [evaluation.outcome.kind for evaluation in evaluations] == ["internal", "internal"]
        assert [record.message for record in caplog.records] == ["judge failed"]
        assert caplog.records[0].record_id == "r-1"

    def test_one_judges_bug_costs_the_others_nothing(self):
        judges = Judges(ScriptedJudge(), {"b": Broken(raising(RuntimeError("bug")))})
        first, second = evaluated(a_record(), [ordinal("a"), ordinal("b")], judges)
        assert isinstance(first.outcome, Score)
        assert second.outcome.kind == "internal"

    def test_a_cancelled_evaluation_is_cancelled_and_no_failure(self):
        async def use():
            task = asyncio.create_task(evaluate(a_record(), [ordinal()], Judges(ScriptedJudge(delay_seconds=60))))
            await asyncio.sleep(0)
            task.cancel()
            await task

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(use())


class TestJudges:
    def test_rubrics_that_name_no_judge_share_the_default(self):
        judges = Judges.build([ordinal("a"), ordinal("b")], JudgeSettings())
        assert judges.of(ordinal("a")) is judges.of(ordinal("b")) is judges.of(ordinal("unheard_of"))
        assert [judge.name for judge in judges] == ["lexical"]

    def test_equal_wishes_share_a_judge_and_different_ones_do_not(self):
        settings = JudgeSettings(engine="openai", model="m", base_url="http://one.example/v1")
        rubrics = [
            ordinal("default"),
            ordinal("same", judge=JudgeSpec(model="m")),
            ordinal("other", judge=JudgeSpec(model="n")),
            ordinal("other_too", judge=JudgeSpec(model="n")),
            ordinal("longer", judge=JudgeSpec(model="n", max_tokens=9)),
            ordinal("elsewhere", judge=JudgeSpec(model="m", base_url="http://one.example:81/v1")),
            ordinal("free", judge=JudgeSpec(engine="rules")),
        ]
        judges = Judges.build(rubrics, settings)
        of = {rubric.name: judges.of(rubric) for rubric in rubrics}
        assert of["default"] is of["same"]
        assert of["other"] is of["other_too"]
        assert len({id(judge) for judge in of.values()}) == len(list(judges)) == 5
        assert of["free"].name == "rules"

    def test_settings_that_cannot_work_are_said_when_they_are_built(self):
        with pytest.raises(SettingsError):
            Judges.build([ordinal(judge=JudgeSpec(engine="openai", model="m"))], JudgeSettings())

    def test_what_is_asked_elsewhere_is_known_by_name_and_not_loaded(self):
        settings = JudgeSettings(engine="openai", model="m", base_url="http://one.example/v1")
        by_ragas = JudgeSpec(engine="ragas", metric="aspect_critic")
        rubrics = [
            ordinal("here"),
            ordinal("there", judge=by_ragas),
            ordinal("stands_in", judge=JudgeSpec(engine="rules"), fallback_judge=by_ragas),
        ]
        # ragas is not installed where this runs: to load it would be an error.
        judges = Judges.build(rubrics, settings, limits=None, elsewhere=("ragas",))
        assert [judges.serves(rubric) for rubric in rubrics] == [True, False, False]
        judge = judges.of(rubrics[1])
        assert (judge.name, judge.fingerprint) == describe_judge(by_ragas, settings)
        assert sorted(judge.name for judge in judges) == ["openai:m", "rules"], "those that this process asks"
        (evaluation,) = evaluated(a_record(), [rubrics[1]], judges)
        assert evaluation.outcome.kind == "internal", "never a score"

    def test_each_judge_is_closed_once(self):
        one, two = Broken(None), Broken(None)
        judges = Judges(one, {"a": two, "b": two, "c": one})
        asyncio.run(judges.aclose())
        assert (one.closed, two.closed) == (1, 1)


def test_an_error_of_configuration_is_not_swallowed_as_a_verdict():
    # It is raised where rubrics are read, long before a judge: were it raised in a judge, it is that judge's bug.
    (evaluation,) = evaluated(a_record(), [checklist()], Broken(raising(RubricError("x", path="r.yaml"))))
    assert evaluation.outcome.kind == "internal"


def test_outcomes_of_a_failure_say_whether_another_try_can_help():
    transient = evaluated(a_record(), [ordinal()], Broken(raising(JudgeError("timeout", "late"))))[0].outcome
    final = evaluated(a_record(), [ordinal()], Broken(raising(JudgeError("refused", "no"))))[0].outcome
    assert isinstance(transient, Failure)
    assert (transient.transient, final.transient) == (True, False)


def test_two_versions_of_a_rubric_are_asked_in_two_calls_and_both_are_scored():
    judge = ScriptedJudge(lambda _, rubric: Score(value=0.9 if rubric.version == "2" else 0.1, passed=True))
    old, new = ordinal(version="1"), ordinal(version="2", instructions="Judge it by the new question.")
    evaluations = evaluated(a_record(), [old, checklist(), new], judge)
    assert [(e.rubric, e.rubric_version, e.outcome.value) for e in evaluations] == [
        ("relevance", old.revision, 0.1),
        ("safety", checklist().revision, 0.1),
        ("relevance", new.revision, 0.9),
    ]
    assert {frozenset(names) for _, names in judge.calls} == {
        frozenset({"relevance", "safety"}),
        frozenset({"relevance"}),
    }
    assert len(judge.calls) == 2


def test_two_versions_of_a_rubric_may_have_two_judges():
    settings = JudgeSettings(engine="rules")
    by_default, by_lexical = ordinal(), ordinal(judge=JudgeSpec(engine="lexical"))
    judges = Judges.build([by_default, by_lexical, checklist()], settings)
    assert [judges.of(rubric).name for rubric in (by_default, by_lexical, checklist())] == ["rules", "lexical", "rules"]
    assert len(list(judges)) == 2
    assert [e.judge for e in evaluated(a_record(), [by_default, by_lexical], judges)] == ["rules", "lexical"]
