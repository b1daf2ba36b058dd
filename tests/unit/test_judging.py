"""Judging labelled records: what it costs, that it stays within a budget, and that nothing is judged twice."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assay.defects import settled
from assay.errors import ConfigError, SettingsError
from assay.judges import JudgeSettings
from assay.judges._prices import load_prices
from assay.judges._prompt import DEFECTS
from assay.judging import Forecast, Instrument, JudgingPlan, JudgingResult, Tries, judge_items, plan_judging
from assay.records import Failure, NotApplicable, Record, Score
from assay.repeats import Repeats
from assay.rubrics import JudgeSpec, Rubric, load_rubrics
from assay.testing import FakeJudgeServer, Reply
from judging import a_record, binary, checklist, claims, ordinal

ONCE = Tries(attempts=1)
QUICK = Tries(attempts=3, base_seconds=0.01, max_seconds=0.02)
PRICE = load_prices().of("gpt-5-mini")


@pytest.fixture
def server() -> Iterator[FakeJudgeServer]:
    with FakeJudgeServer() as running:
        yield running


def openai(server: FakeJudgeServer, **fields: Any) -> JudgeSettings:
    known: dict[str, Any] = {"engine": "openai", "model": "gpt-5-mini", "base_url": server.base_url, "max_in_flight": 4}
    return JudgeSettings(**(known | fields))


def records(count: int, **fields: Any) -> list[tuple[str, Record]]:
    return [
        (f"r{n}", a_record(record_id=f"r{n}", output=f"You can return order {n} within 30 days.", **fields))
        for n in range(count)
    ]


def plan(items: list[tuple[str, Record]], directory: Path, settings: JudgeSettings, **fields: Any) -> JudgingPlan:
    known: dict[str, Any] = {"rubric": ordinal(ask="alone"), "settings": settings}
    return plan_judging(items, Instrument(**(known | fields)), directory)


def judge(made: JudgingPlan, **options: Any) -> JudgingResult:
    return asyncio.run(judge_items(made, **({"tries": QUICK} | options)))


def paid(server: FakeJudgeServer) -> float:
    """What the server has charged, in USD."""
    assert PRICE is not None
    return PRICE.cost_usd(
        prompt_tokens=server.traffic.prompt_tokens, completion_tokens=server.traffic.completion_tokens
    )


# What is judged, and what is judged already.


def test_everything_is_judged_once_and_known_afterwards(server: FakeJudgeServer, tmp_path: Path) -> None:
    items = records(20)
    first = plan(items, tmp_path, openai(server))
    assert first.forecast.calls == 20
    assert server.traffic.calls == 0
    result = judge(first)
    assert set(result.outcomes) == {name for name, _ in items}
    assert all(isinstance(outcome, Score) for outcome in result.outcomes.values())
    assert result.stopped is None
    assert result.calls == server.traffic.calls == 20
    second = plan(items, tmp_path, openai(server))
    assert second.forecast == replace(second.forecast, calls=0, known=20, prompt_tokens=0, cost_usd=0.0)
    again = judge(second)
    assert again.outcomes == result.outcomes
    assert (again.calls, again.spent_usd) == (0, 0.0)
    assert server.traffic.calls == 20


def test_only_what_changed_is_judged_again(server: FakeJudgeServer, tmp_path: Path) -> None:
    items = records(10)
    judge(plan(items, tmp_path, openai(server)))
    changed = [*items[:7], *((name, replace(record, output="Something else.")) for name, record in items[7:9])]
    judge(plan([*changed, *records(12)[10:]], tmp_path, openai(server)))
    # Two records with the same new content are one question; two are new.
    assert server.traffic.calls == 10 + 1 + 2


def test_an_edit_of_the_rubric_asks_again_and_taking_it_back_does_not(server: FakeJudgeServer, tmp_path: Path) -> None:
    items = records(6)
    before, after = ordinal(ask="alone"), ordinal(ask="alone", instructions="Judge it otherwise.")
    for rubric, calls in ((before, 6), (after, 12), (before, 12), (after, 12)):
        judge(plan(items, tmp_path, openai(server), rubric=rubric))
        assert server.traffic.calls == calls


def test_repeats_are_forecast_counted_and_bounded(server: FakeJudgeServer, tmp_path: Path) -> None:
    rubric = ordinal(ask="alone", repeats=Repeats(most=3))
    settings = openai(server, temperature=0.7, max_tokens=200)
    once = plan(records(8), tmp_path, settings).forecast
    made = plan(records(8), tmp_path, settings, rubric=rubric)
    assert made.forecast.prompt_tokens == pytest.approx(3 * once.prompt_tokens, abs=1)
    assert made.forecast.cost_usd == pytest.approx(3 * (once.cost_usd or 0), rel=0.01)
    result = judge(made, tries=ONCE)
    assert result.calls == server.traffic.calls == 24
    assert result.spent_usd == pytest.approx(paid(server))
    # Of what is known, a forecast learns how many are in doubt.
    later = plan(records(12), tmp_path, settings, rubric=rubric).forecast
    assert (later.known, later.calls) == (8, 4)
    assert later.prompt_tokens == pytest.approx(made.forecast.prompt_tokens / 2, rel=0.02)
    budget = result.spent_usd / 2
    other = plan(records(8), tmp_path / "other", settings, rubric=rubric)
    before = paid(server)
    assert judge(other, tries=ONCE, budget_usd=budget).stopped is not None
    assert paid(server) - before <= budget


def test_an_edit_of_the_threshold_asks_nobody(server: FakeJudgeServer, tmp_path: Path) -> None:
    items = records(12)
    first = judge(plan(items, tmp_path, openai(server)))
    for threshold in (0.1, 0.5, 1.0):
        rubric = ordinal(ask="alone", pass_threshold=threshold)
        result = judge(plan(items, tmp_path, openai(server), rubric=rubric))
        for name, outcome in result.outcomes.items():
            known = first.outcomes[name]
            assert isinstance(outcome, Score)
            assert isinstance(known, Score)
            passed = known.value >= threshold
            defect = settled(passed, known.defect, rubric.defects)
            assert outcome == replace(known, passed=passed, defect=defect)
    assert server.traffic.calls == 12


def test_another_model_is_asked_anew(server: FakeJudgeServer, tmp_path: Path) -> None:
    judge(plan(records(3), tmp_path, openai(server)))
    judge(plan(records(3), tmp_path, openai(server, model="gpt-5-nano")))
    judge(plan(records(3), tmp_path, openai(server, temperature=1.0)))
    assert server.traffic.calls == 9


def test_records_of_the_same_content_are_one_question(server: FakeJudgeServer, tmp_path: Path) -> None:
    record = a_record()
    items = [(f"r{n}", replace(record, record_id=f"r{n}")) for n in range(5)]
    made = plan(items, tmp_path, openai(server))
    assert (made.forecast.calls, made.forecast.records) == (1, 5)
    result = judge(made)
    assert len({id(outcome) for outcome in result.outcomes.values()}) == 1
    assert server.traffic.calls == 1
    assert plan(items, tmp_path, openai(server)).forecast.known == 5


def test_records_that_the_rubric_does_not_apply_to_cost_no_call(server: FakeJudgeServer, tmp_path: Path) -> None:
    items = [*records(2), ("bare", a_record(contexts=()))]
    made = plan(items, tmp_path, openai(server), rubric=claims(ask="alone"))
    assert (made.forecast.calls, made.forecast.not_applicable, made.forecast.known) == (2, 1, 0)
    result = judge(made)
    assert result.outcomes["bare"] == NotApplicable(reason="missing_contexts")
    assert server.traffic.calls == 2


def test_nothing_to_judge_is_no_mistake(server: FakeJudgeServer, tmp_path: Path) -> None:
    made = plan([], tmp_path, openai(server))
    assert judge(made) == JudgingResult(outcomes={})
    assert made.forecast.sentence() == "there is nothing to judge"


def test_the_keyless_judge_is_free_and_kept_too(tmp_path: Path) -> None:
    made = plan(records(5), tmp_path, JudgeSettings(), rubric=load_rubrics()[1])
    assert made.forecast.cost_usd == 0.0
    assert made.forecast.sentence() == "5 to judge by lexical: free"
    result = judge(made, budget_usd=0.0)
    assert all(isinstance(outcome, Score) for outcome in result.outcomes.values())
    assert plan(records(5), tmp_path, JudgeSettings(), rubric=load_rubrics()[1]).forecast.known == 5


# Together and alone.


def test_what_is_asked_together_goes_with_its_companions_and_keeps_their_outcomes(
    server: FakeJudgeServer, tmp_path: Path
) -> None:
    together = (ordinal(), checklist(), binary())
    alone = binary("alone_one", ask="alone")
    elsewhere = binary("elsewhere", judge=JudgeSpec(model="gpt-5-nano"))
    others = (*together, alone, elsewhere)
    for at, rubric in enumerate(together):
        made = plan(records(3), tmp_path, openai(server), rubric=rubric, others=others)
        assert {asked.name for asked in made.instrument.asked} == {"relevance", "safety", "verdicts"}
        assert made.instrument.asked[0] is rubric
        assert made.forecast.calls == (3 if at == 0 else 0)
        result = judge(made)
        assert all(isinstance(outcome, Score | NotApplicable) for outcome in result.outcomes.values())
    assert server.traffic.calls == 3
    assert all({"relevance", "safety", "verdicts", DEFECTS} == asked(request) for request in server.requests)


def asked(request: dict[str, Any]) -> set[str]:
    return set(request["response_format"]["json_schema"]["schema"]["properties"])


def test_alone_is_another_question_in_a_call_of_its_own(server: FakeJudgeServer, tmp_path: Path) -> None:
    others = (ordinal(), checklist())
    judge(plan(records(2), tmp_path, openai(server), rubric=ordinal(), others=others))
    judge(plan(records(2), tmp_path, openai(server), rubric=ordinal(ask="alone"), others=others))
    assert server.traffic.calls == 4
    assert [len(asked(request)) for request in server.requests] == [3, 3, 2, 2]


def test_an_edited_rubric_takes_the_place_of_the_one_of_its_name(server: FakeJudgeServer, tmp_path: Path) -> None:
    edited = ordinal(instructions="Judge it otherwise.")
    made = plan(records(1), tmp_path, openai(server), rubric=edited, others=(ordinal(), checklist()))
    assert [rubric.name for rubric in made.instrument.asked] == ["relevance", "safety"]
    judge(made)
    assert "Judge it otherwise." in server.requests[0]["messages"][0]["content"]


def test_companions_do_not_change_the_identity(server: FakeJudgeServer, tmp_path: Path) -> None:
    judge(plan(records(2), tmp_path, openai(server), rubric=ordinal(), others=(checklist(),)))
    made = plan(records(2), tmp_path, openai(server), rubric=ordinal(), others=(binary(),))
    assert made.forecast.calls == 0


# The forecast.


def test_the_forecast_is_what_comes(server: FakeJudgeServer, tmp_path: Path) -> None:
    made = plan(records(30), tmp_path, openai(server))
    judge(made)
    # The fake counts characters / 4, as the forecast does.
    assert made.forecast.prompt_tokens == pytest.approx(server.traffic.prompt_tokens, rel=0.01)
    assert made.forecast.cost_usd is not None
    assert 0.5 * paid(server) < made.forecast.cost_usd < 10 * paid(server)


def test_known_verdicts_make_the_forecast_better(server: FakeJudgeServer, tmp_path: Path) -> None:
    judge(plan(records(30), tmp_path, openai(server)))
    made = plan(records(60), tmp_path, openai(server))
    before = server.traffic.completion_tokens
    judge(made)
    assert made.forecast.completion_tokens == pytest.approx(server.traffic.completion_tokens - before, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "120 to judge by openai:m: about 98 k prompt and 950 reply tokens, about 0.37 USD"),
        ({"cost_usd": 0.00312}, "120 to judge by openai:m: about 98 k prompt and 950 reply tokens, about 0.0031 USD"),
        ({"cost_usd": None}, "120 to judge by openai:m: about 98 k prompt and 950 reply tokens, price unknown"),
        ({"known": 30}, "30 of 150 records are judged already; 120 to judge by openai:m: about 98 k prompt"),
        ({"known": 150, "calls": 0}, "150 of 150 records are judged already"),
    ],
)
def test_the_forecast_is_told_in_a_sentence(changes: dict[str, Any], said: str) -> None:
    known: dict[str, Any] = {
        "records": 150,
        "known": 0,
        "not_applicable": 0,
        "calls": 120,
        "prompt_tokens": 98_100,
        "completion_tokens": 950,
        "cost_usd": 0.3712,
        "judge": "openai:m",
    }
    assert Forecast(**(known | changes)).sentence().startswith(said)


def test_a_model_without_a_price_has_no_forecast_cost_and_no_budget(server: FakeJudgeServer, tmp_path: Path) -> None:
    made = plan(records(2), tmp_path, openai(server, model="my-own-model"))
    assert made.forecast.cost_usd is None
    assert made.forecast.prompt_tokens > 0
    with pytest.raises(SettingsError, match=r"my-own-model is unknown.*ASSAY_PRICES"):
        judge(made, budget_usd=1.0)
    assert server.traffic.calls == 0
    assert len(judge(made).outcomes) == 2


def test_planning_needs_no_key_and_judging_says_that_it_does(tmp_path: Path) -> None:
    settings = JudgeSettings(engine="openai", model="gpt-5-mini")
    made = plan(records(2), tmp_path, settings)
    assert made.judge == "openai:gpt-5-mini"
    with pytest.raises(SettingsError, match="ASSAY_JUDGE_API_KEY"):
        judge(made)


def test_who_judges_is_who_the_worker_would_have_judge(server: FakeJudgeServer, tmp_path: Path) -> None:
    for rubric in (ordinal(), ordinal(judge=JudgeSpec(engine="lexical")), ordinal(judge=JudgeSpec(model="gpt-5-nano"))):
        instrument = Instrument(rubric=rubric, settings=openai(server))
        built = instrument.judges().of(rubric)
        made = plan_judging(records(1), instrument, tmp_path)
        assert (made.judge, made.judge_fingerprint) == (built.name, built.fingerprint)


# The budget.


@pytest.mark.parametrize("budget", [0.0, 0.001, 0.006, 0.012, 0.018])
@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_the_budget_is_never_passed(tmp_path: Path, budget: float, max_in_flight: int) -> None:
    with FakeJudgeServer(seed=1, latency_seconds=0.002, faults={"500": 0.1, "prose": 0.1}) as server:
        made = plan(records(200), tmp_path, openai(server, max_in_flight=max_in_flight, max_tokens=256))
        result = judge(made, budget_usd=budget, tries=Tries(attempts=3, base_seconds=0.0))
        assert paid(server) <= budget
        assert result.spent_usd <= budget + 1e-12
        assert result.spent_usd >= paid(server) - 1e-12
        assert result.stopped is not None
        assert "budget" in result.stopped
        assert len(result.outcomes) < 200
        # It is not stingy either: what is left would not have paid for the most that a call can cost.
        assert result.spent_usd > budget - 0.004


def test_a_budget_that_is_enough_is_not_felt(server: FakeJudgeServer, tmp_path: Path) -> None:
    result = judge(plan(records(20), tmp_path, openai(server)), budget_usd=1.0)
    assert result.stopped is None
    assert len(result.outcomes) == 20
    assert result.spent_usd == pytest.approx(paid(server))


def test_what_a_budget_cut_off_goes_on_where_it_ended(server: FakeJudgeServer, tmp_path: Path) -> None:
    settings = openai(server, max_tokens=256)
    done, runs = 0, 0
    while done < 150:
        result = judge(plan(records(150), tmp_path, settings), budget_usd=0.012)
        assert len(result.outcomes) > done
        done, runs = len(result.outcomes), runs + 1
    assert runs > 1
    assert server.traffic.calls == 150


@pytest.mark.parametrize("budget", [-1.0, math.nan])
def test_a_budget_that_is_none_is_refused(server: FakeJudgeServer, tmp_path: Path, budget: float) -> None:
    with pytest.raises(SettingsError, match="is none"):
        judge(plan(records(1), tmp_path, openai(server)), budget_usd=budget)
    assert server.traffic.calls == 0


def test_a_call_that_may_have_been_charged_counts_at_its_most(tmp_path: Path) -> None:
    with FakeJudgeServer(faults={"hang": 1.0}) as server:
        settings = openai(server, timeout_seconds=0.05, max_in_flight=1, max_tokens=256)
        result = judge(plan(records(30), tmp_path, settings), budget_usd=0.006, tries=ONCE)
    assert 0 < result.spent_usd <= 0.006
    assert result.stopped is not None
    assert "budget" in result.stopped
    assert {outcome.kind for outcome in result.outcomes.values() if isinstance(outcome, Failure)} == {"timeout"}


@pytest.mark.parametrize("status", [502, 504, 524])
def test_an_error_behind_which_a_model_may_have_run_counts_at_its_most(tmp_path: Path, status: int) -> None:
    with FakeJudgeServer() as server:
        server.script(*[Reply(status=status, body={"error": {"message": "upstream timed out"}})] * 600)
        settings = openai(server, max_in_flight=1, max_tokens=2048)
        result = judge(plan(records(200), tmp_path, settings), budget_usd=0.03, tries=Tries(base_seconds=0.0))
        calls = server.traffic.calls
    assert PRICE is not None
    assert PRICE.cost_usd(prompt_tokens=0, completion_tokens=2048) * calls <= result.spent_usd <= 0.03
    assert calls > 2
    assert "budget" in (result.stopped or "")


def test_a_repair_that_hangs_counts_at_its_most_beside_the_reply_before_it(tmp_path: Path) -> None:
    with FakeJudgeServer() as server:
        server.script(*["prose", "hang"] * 200)
        settings = openai(server, max_in_flight=1, max_tokens=2048, timeout_seconds=0.3)
        result = judge(plan(records(200), tmp_path, settings), budget_usd=0.03, tries=ONCE)
        calls = server.traffic.calls
    assert PRICE is not None
    assert calls >= 4
    assert PRICE.cost_usd(prompt_tokens=0, completion_tokens=2048) * (calls // 2) <= result.spent_usd <= 0.03
    assert "budget" in (result.stopped or "")


def test_what_a_verdict_took_before_its_money_ended_is_not_kept(tmp_path: Path) -> None:
    with FakeJudgeServer() as server:
        # The most that a repair is thought to take is less than one that shows a reply of long characters.
        server.script(Reply(content="\U00010348" * 8000))
        settings = openai(server, max_in_flight=1, max_tokens=2048)
        made = plan(records(3), tmp_path, settings)
        result = judge(made, budget_usd=0.014)
        assert (server.traffic.calls, result.outcomes) == (1, {})
    assert "a call may cost up to" in (result.stopped or "")
    assert 0 < result.spent_usd <= 0.014
    assert plan(records(3), tmp_path, settings).forecast.calls == 3


def test_calls_that_nobody_charges_cost_nothing(tmp_path: Path) -> None:
    with FakeJudgeServer(faults={"503": 1.0}) as server:
        result = judge(plan(records(5), tmp_path, openai(server)), budget_usd=0.02, tries=ONCE)
    assert result.spent_usd == 0.0
    assert len(result.outcomes) == 5


# Failures.


def test_transient_failures_are_tried_again(server: FakeJudgeServer, tmp_path: Path) -> None:
    server.script("429", "500")
    result = judge(plan(records(1), tmp_path, openai(server)), tries=replace(QUICK, max_seconds=0.01))
    assert isinstance(result.outcomes["r0"], Score)
    assert (result.calls, server.traffic.calls) == (3, 3)


def test_a_wait_that_the_judge_asks_for_is_bounded(server: FakeJudgeServer, tmp_path: Path) -> None:
    server.script(Reply(status=429, headers={"retry-after": "3600"}, body={"error": {"message": "slow down"}}))

    async def quickly() -> JudgingResult:
        made = plan(records(1), tmp_path, openai(server))
        return await asyncio.wait_for(judge_items(made, tries=Tries(max_seconds=0.01)), 20)

    assert isinstance(asyncio.run(quickly()).outcomes["r0"], Score)


def test_failures_that_stay_are_counted_and_tried_again_only_if_that_may_help(tmp_path: Path) -> None:
    with FakeJudgeServer(faults={"refusal": 1.0}) as server:
        for _ in range(2):
            result = judge(plan(records(4), tmp_path, openai(server)))
            assert [outcome.kind for outcome in result.outcomes.values() if isinstance(outcome, Failure)] == (
                ["refused"] * 4
            )
        assert server.traffic.calls == 4
    with FakeJudgeServer(faults={"503": 1.0}) as server:
        settings = openai(server)
        judge(plan(records(2), tmp_path / "away", settings), tries=ONCE)
        assert plan(records(2), tmp_path / "away", settings).forecast.calls == 2


def test_a_key_that_is_refused_ends_it_at_once(tmp_path: Path) -> None:
    with FakeJudgeServer(faults={"401": 1.0}) as server:
        result = judge(plan(records(100), tmp_path, openai(server)))
        assert result.stopped is not None
        assert result.stopped.startswith("the judge refuses to work")
        assert server.traffic.calls <= 4
        assert len(result.outcomes) <= 4


def test_a_judge_that_is_away_is_given_up(tmp_path: Path) -> None:
    with FakeJudgeServer(faults={"503": 1.0}) as server:
        result = judge(plan(records(100), tmp_path, openai(server)), tries=ONCE)
        assert result.stopped is not None
        assert result.stopped.startswith("the judge does not answer (unavailable: ")
        assert 10 <= server.traffic.calls <= 13


def test_a_judge_that_is_away_now_and_then_is_not(tmp_path: Path) -> None:
    with FakeJudgeServer(seed=3, faults={"503": 0.3}) as server:
        result = judge(plan(records(60), tmp_path, openai(server)), tries=ONCE)
    assert result.stopped is None
    assert len(result.outcomes) == 60
    failed = sum(isinstance(outcome, Failure) for outcome in result.outcomes.values())
    assert 5 < failed < 35


# Concurrency, progress, and being cut off.


def test_no_more_are_in_flight_than_allowed(tmp_path: Path) -> None:
    with FakeJudgeServer(latency_seconds=0.01) as server:
        judge(plan(records(40), tmp_path, openai(server, max_in_flight=5)))
        assert 1 < server.traffic.max_in_flight <= 5


def test_progress_is_told_after_each_record(server: FakeJudgeServer, tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    result = judge(plan(records(8), tmp_path, openai(server)), on_progress=lambda *now: told.append(now))
    assert [done for done, _ in told] == list(range(1, 9))
    assert [spent for _, spent in told] == sorted(spent for _, spent in told)
    assert told[-1][1] == result.spent_usd > 0


def test_what_was_judged_before_it_was_cut_off_is_kept(server: FakeJudgeServer, tmp_path: Path) -> None:
    settings = openai(server, max_in_flight=1)

    async def interrupted() -> None:
        made = plan(records(30), tmp_path, settings)
        task: asyncio.Task[JudgingResult] | None = None

        def stop(done: int, _: float) -> None:
            if done == 7 and task is not None:
                task.cancel()

        task = asyncio.create_task(judge_items(made, on_progress=stop))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert plan(records(30), tmp_path, settings).forecast.known == 7


def test_a_place_that_cannot_be_written_is_one_error(server: FakeJudgeServer, tmp_path: Path) -> None:
    made = plan(records(5), tmp_path / "judged", openai(server))
    (tmp_path / "judged").write_text("")
    with pytest.raises(ConfigError, match="ASSAY_DATA_DIR"):
        judge(made)


@pytest.mark.parametrize("make", [binary, ordinal, checklist, claims])
def test_every_scale_can_be_judged(server: FakeJudgeServer, tmp_path: Path, make: Callable[..., Rubric]) -> None:
    result = judge(plan(records(3), tmp_path, openai(server), rubric=make()))
    assert all(isinstance(outcome, Score | NotApplicable) for outcome in result.outcomes.values())
