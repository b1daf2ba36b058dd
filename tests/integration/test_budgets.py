"""Budgets on a real Redis: the scripts, any order of events, many processes that are killed, and a worker's own use."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spender
from assay.budgets import THINNED, Budget, Budgets, Ledger, RedisPurse
from assay.deliveries import DeliveryPolicy
from assay.embedded import RedisServer
from assay.enqueue import enqueue, replay
from assay.errors import BudgetSpentError, QueueError
from assay.judges import JudgeSettings
from assay.pipeline import Judges, evaluate
from assay.queue import Queue
from assay.records import Failure, Record, Score, Usage
from assay.repeats import Repeats
from assay.rubrics import JudgeSpec, Rubric, load_rubrics
from assay.store import Store
from assay.testing import FakeJudgeServer, Reply
from assay.worker import Worker
from deployment import record
from judging import a_record, ordinal

T = TypeVar("T")
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
ALL = Budget(name="total", per="day", tokens=1000)


def tokens(n: int, usd: float | None = None) -> Usage:
    return Usage(prompt_tokens=n, completion_tokens=0, cost_usd=usd)


class Till:
    """A purse and a ledger on one Redis, on an event loop of their own; `now` is their clock."""

    def __init__(self, url: str, *budgets: Budget, **options: Any) -> None:
        self.now = NOON
        self.budgets = Budgets(budgets=budgets)
        self.runner = asyncio.Runner()
        self.purse = RedisPurse(self.budgets, url, "q", clock=lambda: self.now, **({"wait_seconds": 0.0} | options))
        self.ledger = Ledger.from_url(self.budgets, url, "q")

    def __enter__(self) -> Till:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.purse.aclose())
        self.runner.close()
        self.ledger.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def reserve(self, bound: Usage, **fields: Any) -> Any:
        call = {"app": "shop", "rubrics": ["relevance"], "judge": "openai:m", "lease_seconds": 60.0}
        return self.run(self.purse.reserve(bound=bound, **(call | fields)))

    def settle(self, held: Any, used: Usage | None) -> None:
        self.run(self.purse.settle(held, used))

    def state(self) -> list[tuple[float, float]]:
        return [(balance.spent, balance.reserved) for balance in self.ledger.balances(at=self.now)]


# -- one reservation


def test_what_is_reserved_is_held_and_what_was_used_is_spent(redis_url: str) -> None:
    with Till(redis_url, ALL) as till:
        held = till.reserve(tokens(400))
        assert till.state() == [(0, 400)]
        till.settle(held, tokens(150))
        assert till.state() == [(150, 0)]
        (balance,) = till.ledger.balances(at=NOON)
        assert (balance.left, balance.used) == (850, 0.15)


def test_a_call_that_took_nothing_gives_everything_back(redis_url: str) -> None:
    with Till(redis_url, ALL) as till:
        till.settle(till.reserve(tokens(400)), tokens(0))
        assert till.state() == [(0, 0)]


@pytest.mark.parametrize("used", [None, Usage(), Usage(prompt_tokens=3)])
def test_what_is_not_known_counts_at_its_bound(redis_url: str, used: Usage | None) -> None:
    with Till(redis_url, ALL) as till:
        till.settle(till.reserve(tokens(400)), used)
        assert till.state() == [(400, 0)]


def test_a_call_that_does_not_fit_is_refused_and_holds_nothing(redis_url: str) -> None:
    with Till(redis_url, ALL, Budget(name="money", per="day", usd=1.0)) as till:
        till.settle(till.reserve(tokens(700, usd=0.1)), None)
        with pytest.raises(BudgetSpentError, match=r"budget total \(1,000 tokens a day\): 700 tokens spent") as refusal:
            till.reserve(tokens(301, usd=0.1))
        assert refusal.value.kind == "budget"
        assert "anew at 2026-02-01 00:00 UTC" in str(refusal.value)
        assert till.state() == [(700, 0), (0.1, 0)], "neither of the two holds it"
        till.reserve(tokens(300, usd=0.1))


def test_a_call_that_never_fits_says_so(redis_url: str) -> None:
    with Till(redis_url, ALL) as till, pytest.raises(BudgetSpentError, match="more than all of it: lower"):
        till.reserve(tokens(1001))


def test_a_budget_of_nothing_allows_nothing(redis_url: str) -> None:
    with Till(redis_url, Budget(name="none", per="day", tokens=0)) as till, pytest.raises(BudgetSpentError):
        till.reserve(tokens(1))


def test_dollars_need_a_price_even_if_nobody_looked_at_the_start(redis_url: str) -> None:
    unknown = pytest.raises(BudgetSpentError, match="price of the judge's model is not known")
    with Till(redis_url, Budget(name="money", per="day", usd=1.0)) as till, unknown:
        till.reserve(tokens(1))


def test_a_budget_covers_its_app_rubric_and_judge_and_a_share_of_a_joint_call(redis_url: str) -> None:
    till = Till(
        redis_url,
        Budget(name="app", per="day", tokens=1000, app="shop"),
        Budget(name="other_app", per="day", tokens=1000, app="bank"),
        Budget(name="rubric", per="day", tokens=1000, rubric="safety"),
        Budget(name="judge", per="day", tokens=1000, judge="openai:m"),
        Budget(name="other_judge", per="day", tokens=1000, judge="openai:n"),
    )
    with till:
        held = till.reserve(tokens(301), rubrics=["safety", "relevance", "completeness"])
        assert till.state() == [(0, 301), (0, 0), (0, 101), (0, 301), (0, 0)]
        till.settle(held, tokens(10))
        assert till.state() == [(10, 0), (0, 0), (4, 0), (10, 0), (0, 0)]
        assert till.reserve(tokens(1), app="x", rubrics=["r"], judge="openai:o") is None
        with pytest.raises(BudgetSpentError) as refusal:
            till.reserve(tokens(2991), rubrics=["safety", "relevance", "completeness"], app="x", judge="openai:o")
        assert refusal.value.rubrics == ("safety",)


def test_the_reply_of_a_reservation_may_be_lost(redis_url: str) -> None:
    """The client sends the script again: the same id is held once."""
    with Till(redis_url, ALL) as till:
        held = till.reserve(tokens(400))
        args = [held.id, 60.0, "day", 1000, 400]
        assert till.run(till.purse._ask("reserve", till.budgets.meters, args)) == [1]
        assert till.state() == [(0, 400)]


def test_a_redis_that_lost_the_reservation_still_counts_what_was_used(redis_url: str) -> None:
    with Till(redis_url, ALL) as till:
        held = till.reserve(tokens(400))
        redis.Redis.from_url(redis_url).flushall()
        till.settle(held, tokens(120))
        assert till.state() == [(120, 0)]


def test_a_full_redis_still_counts(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    with Till(redis_url, ALL) as till:
        client.config_set("maxmemory", 1)
        try:
            till.settle(till.reserve(tokens(400)), tokens(100))
        finally:
            client.config_set("maxmemory", 0)
        assert till.state() == [(100, 0)]


# -- leases


def test_the_reservation_of_a_dead_worker_counts_as_spent_and_may_still_be_settled(redis_url: str) -> None:
    with Till(redis_url, ALL) as till:
        dead = till.reserve(tokens(600))
        slow = till.reserve(tokens(400))
        till.now += 61
        with pytest.raises(BudgetSpentError):
            till.reserve(tokens(1))
        assert till.state() == [(1000, 0)]
        till.settle(slow, tokens(100))
        assert till.state() == [(700, 0)], "it lived after all, and said what it took"
        till.now += 86_401 * 2
        till.reserve(tokens(1))
        till.settle(dead, tokens(1))
        assert till.state()[0][0] <= 1, "of another day"
        client = redis.Redis.from_url(redis_url)
        till.now += 86_401 * 3
        till.reserve(tokens(1))
        assert client.hlen("assay:q:budget:reservations") <= 2, "what lapsed is not kept for ever"


def test_a_call_waits_for_what_others_hold_and_not_for_what_is_spent(redis_url: str) -> None:
    with Till(redis_url, ALL, wait_seconds=20.0) as till:
        held = till.reserve(tokens(800))

        async def settle_meanwhile() -> None:
            await asyncio.sleep(0.2)
            await till.purse.settle(held, tokens(10))

        async def both() -> Any:
            asking = till.purse.reserve(
                app="shop", rubrics=["r"], judge="j", bound=tokens(900), lease_seconds=60, wait_seconds=None
            )
            return (await asyncio.gather(asking, settle_meanwhile()))[0]

        assert till.run(both()) is not None
        started = time.monotonic()
        with pytest.raises(BudgetSpentError):
            till.reserve(tokens(991))
        assert time.monotonic() - started < 10, "what is spent does not come back: no wait"


# -- windows


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moment=st.datetimes(datetime(1970, 1, 2), datetime(2299, 12, 31)))  # noqa: DTZ001 - UTC is put on below
def test_windows_are_those_of_the_calendar(redis_url: str, moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    budgets = tuple(Budget(name=per, per=per, tokens=1) for per in ("hour", "day", "month"))  # type: ignore[arg-type]
    with Till(redis_url, *budgets) as till:
        hour, day, month = till.ledger.balances(at=moment.timestamp())
    start = moment.replace(minute=0, second=0, microsecond=0)
    assert hour.window_start == start
    start = start.replace(hour=0)
    assert day.window_start == start
    start = start.replace(day=1)
    assert month.window_start == start
    assert (hour.resets_at - hour.window_start).total_seconds() == 3600
    assert (day.resets_at - day.window_start).total_seconds() == 86_400
    ends = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    assert month.resets_at == ends


@pytest.mark.parametrize(("per", "seconds"), [("hour", 3600), ("day", 86_400), ("month", 86_400 * 28)])
def test_a_new_window_starts_with_nothing_spent(redis_url: str, per: Any, seconds: float) -> None:
    with Till(redis_url, Budget(name="b", per=per, tokens=1000)) as till:
        till.settle(till.reserve(tokens(900)), None)
        held = till.reserve(tokens(100))
        till.now += seconds
        assert till.state() == [(0, 0)]
        till.reserve(tokens(1000))
        till.settle(held, tokens(50))
        assert till.state() == [(0, 1000)], "a call counts in the window that it began in"


@pytest.mark.parametrize("back", [3600, 86_400 * 40])
def test_a_clock_that_steps_back_gives_nothing_back(redis_url: str, back: float) -> None:
    with Till(redis_url, Budget(name="b", per="hour", tokens=1000)) as till:
        till.settle(till.reserve(tokens(900)), None)
        till.now -= back
        with pytest.raises(BudgetSpentError):
            till.reserve(tokens(101))
        till.now += 3600 if back == 3600 else 0
        assert till.state() == [(900, 0)]


def test_another_period_is_another_counter_and_another_limit_is_not(redis_url: str) -> None:
    with Till(redis_url, ALL) as till:
        till.settle(till.reserve(tokens(900)), None)
    with Till(redis_url, Budget(name="total", per="day", tokens=500)) as till:
        assert till.state() == [(900, 0)]
        (balance,) = till.ledger.balances(at=NOON)
        assert (balance.left, balance.used) == (0, 1.8)
        with pytest.raises(BudgetSpentError):
            till.reserve(tokens(1))
    with Till(redis_url, Budget(name="total", per="month", tokens=500)) as till:
        assert till.state() == [(0, 0)]


# -- any order of events

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 600)),
        st.tuples(st.just("settle"), st.integers(0, 100)),
        st.tuples(st.just("unknown"), st.integers(0, 100)),
        st.tuples(st.just("crash"), st.integers(0, 100)),
        st.tuples(st.just("again"), st.integers(0, 100)),
        st.tuples(st.just("tick"), st.sampled_from([0, 1, 30, 59, 61, 1800, 3600, 90_000])),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, seed=st.integers(0, 2**32))
def test_no_order_of_events_spends_more_than_the_limit(redis_url: str, events: Any, seed: int) -> None:
    """Calls begin, end, end unknown, end twice or never, in any order, over windows; the provider may charge each.

    `bills` is what the provider has charged at the most, by window: of a call that did not say, all of its bound.
    """
    redis.Redis.from_url(redis_url).flushall()
    draw = random.Random(seed)
    with Till(redis_url, Budget(name="b", per="hour", tokens=1000)) as till:
        bills: dict[int, int] = {}
        under_way: list[tuple[Any, int, int]] = []
        ended: list[tuple[Any, int, int]] = []
        for event, number in events:
            window = int(till.now // 3600)
            if event == "reserve":
                try:
                    held = till.reserve(tokens(number))
                except BudgetSpentError:
                    spent, reserved = till.state()[0]
                    assert spent + reserved + number > 1000, "refused though it fits"
                    continue
                under_way.append((held, number, window))
                # The worst: it is charged in full at once, until it says otherwise.
                bills[window] = bills.get(window, 0) + number
            elif event == "tick":
                till.now += number
            elif event == "again" and ended:
                # A second settlement may count it twice, never take anything away.
                held, used, _ = draw.choice(ended)
                before = sum(till.state()[0])
                till.settle(held, tokens(used))
                assert sum(till.state()[0]) >= before
            elif event != "again" and under_way:
                held, bound, began = under_way.pop(draw.randrange(len(under_way)))
                if event == "crash":
                    continue
                used = bound * number // 100
                till.settle(held, tokens(used) if event == "settle" else None)
                ended.append((held, used, began))
                if event == "settle":
                    bills[began] -= bound - used
            spent, reserved = till.state()[0]
            assert min(spent, reserved) >= 0
            # Only what was settled twice may count beyond the limit, and that was never charged.
            repeats = any(name == "again" for name, _ in events)
            assert spent + reserved <= 1000 or repeats
            assert spent + reserved >= bills.get(int(till.now // 3600), 0), "charged, and not counted"
        assert all(bill <= 1000 for bill in bills.values())


# -- many processes


@pytest.mark.integration
def test_fifty_processes_never_spend_more_than_the_limit_even_when_killed(redis_url: str) -> None:
    limit, seed = 60_000, 7
    client = redis.Redis.from_url(redis_url)
    ledger = Ledger.from_url(spender.budgets(limit), redis_url, spender.QUEUE)
    parent = subprocess.Popen(
        [sys.executable, spender.__file__, redis_url, str(limit), "50", str(seed)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        children = [int(child) for child in parent.stdout.readline().split()]
        assert len(children) == 50
        victims = random.Random(seed).sample(children, 15)
        while parent.poll() is None:
            billed = sum(map(int, client.lrange("bill", 0, -1)))
            assert billed <= limit
            for balance in ledger.balances():
                assert balance.spent + balance.reserved <= balance.limit + 1e-9
            # All in the first part of it, so that none has ended by itself where this loop gets too little of a core.
            while victims and billed > limit * (16 - len(victims)) / 40:
                os.kill(victims.pop(), signal.SIGKILL)
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.communicate()
    bill = list(map(int, client.lrange("bill", 0, -1)))
    assert not victims, "some were to die"
    assert sum(bill) <= limit
    assert len(bill) > 500
    in_dollars, in_tokens = ledger.balances()
    assert in_tokens.reserved == 0, "what the dead had held has lapsed"
    assert in_tokens.spent >= sum(bill)
    # Not to the last token: who is slower than its lease gets money back when the others have given up.
    assert in_tokens.limit - in_tokens.spent < 0.02 * limit, "the budget was used to its end"
    assert in_dollars.spent == pytest.approx(in_tokens.spent / 1000)


# -- the judge


PRICES = "as_of: '2026-01-31'\nmodels:\n  gpt-5-mini: {prompt: 1.0, completion: 10.0}\n"


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES)
    return path


def ask(url: str, budgets: Budgets, server: FakeJudgeServer, rubrics: list[Rubric], **fields: Any) -> list[Any]:
    """The evaluations of one record, asked of the server within these budgets."""

    async def run() -> list[Any]:
        purse = RedisPurse(budgets, url, "q", wait_seconds=0.0, timeout_seconds=1.0)
        judge = JudgeSettings(engine="openai", model="gpt-5-mini", base_url=server.base_url, **fields)
        judges = Judges.build(rubrics, judge, purse=purse)
        try:
            return await evaluate(a_record(app="shop"), rubrics, judges)
        finally:
            await judges.aclose()

    return asyncio.run(run())


def spent(url: str, budgets: Budgets) -> tuple[float, float]:
    (balance,) = Ledger.from_url(budgets, url, "q").balances()
    return balance.spent, balance.reserved


def tokens_of(evaluations: list[Any]) -> int:
    used = sum((e.outcome.usage for e in evaluations), Usage())
    return (used.prompt_tokens or 0) + (used.completion_tokens or 0)


MANY = Budgets(budgets=(Budget(name="total", per="month", tokens=10**9),))


def test_each_repeat_is_reserved_and_a_budget_that_is_spent_leaves_the_score_of_what_there_is(
    redis_url: str, prices: Path
) -> None:
    rubric = ordinal("relevance", ask="alone", repeats=Repeats(most=5))
    model: dict[str, Any] = {"prices_path": prices, "temperature": 0.7, "max_tokens": 100}
    with FakeJudgeServer() as server:
        (whole,) = ask(redis_url, MANY, server, [rubric], **model)
        assert server.traffic.calls == 5
        assert spent(redis_url, MANY) == (tokens_of([whole]), 0)
        assert whole.outcome.details["verdicts"] == [whole.outcome.value] * 5
        each = tokens_of([whole]) // 5
        # The bound of a call is bytes, not tokens: some five times what it takes.
        few = Budgets(budgets=(Budget(name="few", per="month", tokens=9 * each),))
        (cut,) = ask(redis_url, few, server, [rubric], **model)
        used, reserved = spent(redis_url, few)
        assert isinstance(cut.outcome, Score)
        verdicts = cut.outcome.details["verdicts"]
        assert 1 <= len(verdicts) < 5
        assert cut.outcome.details["ended_by"] == "budget"
        assert (used, reserved) == (tokens_of([cut]), 0)
        assert used <= 9 * each
        assert server.traffic.calls == 5 + len(verdicts)
        none = Budgets(budgets=(Budget(name="none", per="month", tokens=each),))
        (refused,) = ask(redis_url, none, server, [rubric], **model)
    assert isinstance(refused.outcome, Failure)
    assert refused.outcome.kind == "budget"


def test_a_call_costs_what_the_endpoint_counted(redis_url: str, prices: Path) -> None:
    with FakeJudgeServer() as server:
        evaluations = ask(redis_url, MANY, server, [ordinal("relevance"), ordinal("completeness")])
    assert all(isinstance(e.outcome, Score) for e in evaluations)
    assert spent(redis_url, MANY) == (tokens_of(evaluations), 0)
    money = Budgets(budgets=(Budget(name="money", per="month", usd=5.0),))
    with FakeJudgeServer() as server:
        (evaluation,) = ask(redis_url, money, server, [ordinal("relevance")], prices_path=prices)
    assert spent(redis_url, money)[0] == pytest.approx(evaluation.outcome.usage.cost_usd, abs=1e-9)


def test_a_repair_is_reserved_and_counted_too(redis_url: str) -> None:
    with FakeJudgeServer() as server:
        server.script(Reply(content="no verdict at all"), "ok")
        evaluations = ask(redis_url, MANY, server, [ordinal("relevance")])
        assert server.traffic.calls == 2
    assert isinstance(evaluations[0].outcome, Score)
    assert spent(redis_url, MANY) == (tokens_of(evaluations), 0)


@pytest.mark.parametrize("fault", ["429", "500"])
def test_a_call_that_no_model_ran_for_costs_nothing(redis_url: str, fault: str) -> None:
    with FakeJudgeServer() as server:
        server.script(fault)
        (evaluation,) = ask(redis_url, MANY, server, [ordinal("relevance")])
    assert isinstance(evaluation.outcome, Failure)
    assert spent(redis_url, MANY) == (0, 0)


@pytest.mark.parametrize("fault", ["hang", "disconnect", Reply(status=504, body=b"upstream"), Reply(body=b"no JSON")])
def test_a_call_that_may_have_been_charged_counts_at_its_bound(redis_url: str, fault: Any) -> None:
    with FakeJudgeServer() as server:
        server.script(fault)
        (evaluation,) = ask(redis_url, MANY, server, [ordinal("relevance")], timeout_seconds=0.5)
    assert isinstance(evaluation.outcome, Failure)
    used, held = spent(redis_url, MANY)
    assert used > JudgeSettings().max_tokens
    assert held == 0


def test_an_endpoint_that_is_not_there_costs_nothing(redis_url: str) -> None:
    with FakeJudgeServer() as server:
        pass
    (evaluation,) = ask(redis_url, MANY, server, [ordinal("relevance")])
    assert evaluation.outcome.kind == "unavailable"
    assert spent(redis_url, MANY) == (0, 0)


def test_without_redis_no_judge_is_asked(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "gone") as gone:
        url = gone.url
    with FakeJudgeServer() as server:
        (evaluation,) = ask(url, MANY, server, [ordinal("relevance")])
        assert server.traffic.calls == 0
    assert evaluation.outcome.kind == "unavailable"
    assert evaluation.outcome.transient
    assert "the budget cannot be asked" in evaluation.outcome.message
    with pytest.raises(QueueError):
        Ledger.from_url(MANY, url, "q").probability(app="shop", rubric="relevance", judge="openai:gpt-5-mini")


def test_a_spent_budget_of_one_rubric_leaves_the_others_of_the_call(redis_url: str) -> None:
    budgets = Budgets(budgets=(Budget(name="few", per="month", tokens=10, rubric="completeness"),))
    with FakeJudgeServer() as server:
        relevance, completeness = ask(redis_url, budgets, server, [ordinal("relevance"), ordinal("completeness")])
        assert server.traffic.calls == 1
    assert isinstance(relevance.outcome, Score)
    assert completeness.outcome.kind == "budget"
    assert not completeness.outcome.transient


def test_a_spent_budget_goes_over_to_the_cheaper_judge_and_the_score_says_so(redis_url: str) -> None:
    budgets = Budgets(budgets=(Budget(name="few", per="month", tokens=10, judge="openai:gpt-5-mini"),))
    cheaper = ordinal("relevance", cheaper_judge=JudgeSpec(engine="openai", model="gpt-5-nano"))
    with FakeJudgeServer() as server:
        first, second = ask(redis_url, budgets, server, [cheaper, ordinal("completeness")])
        assert [request["model"] for request in server.requests] == ["gpt-5-nano"]
    assert isinstance(first.outcome, Score)
    assert first.judge == "openai:gpt-5-nano"
    assert first.judge_fingerprint != second.judge_fingerprint
    assert (second.judge, second.outcome.kind) == ("openai:gpt-5-mini", "budget")


def test_a_cheaper_judge_that_is_refused_too_leaves_the_refusal_of_the_first(redis_url: str) -> None:
    budgets = Budgets(budgets=(Budget(name="few", per="month", tokens=10),))
    cheaper = ordinal("relevance", cheaper_judge=JudgeSpec(engine="openai", model="gpt-5-nano"))
    with FakeJudgeServer() as server:
        (evaluation,) = ask(redis_url, budgets, server, [cheaper])
        assert server.traffic.calls == 0
    assert (evaluation.judge, evaluation.outcome.kind) == ("openai:gpt-5-mini", "budget")


# -- the worker


class Works:
    """A worker on a real queue, store and judge server, with these budgets."""

    def __init__(self, url: str, directory: Path, server: FakeJudgeServer) -> None:
        self.url, self.server = url, server
        self.queue = Queue.from_url(url)
        self.store = Store(f"sqlite:///{directory}/assay.db")
        self.store.upgrade()
        self.rubrics = load_rubrics()[:1]

    def run(self, budgets: Budgets, *, cheaper: JudgeSpec | None = None) -> None:
        """Work the queue off."""
        ledger = Ledger.from_url(budgets, self.url, self.queue.name)
        purse = RedisPurse(budgets, self.url, self.queue.name, wait_seconds=5.0)
        judge = JudgeSettings(engine="openai", model="gpt-5-mini", base_url=self.server.base_url, max_tokens=200)
        worker = Worker(
            queue=self.queue,
            store=self.store,
            rubrics=self.rubrics,
            judges=lambda: Judges.build(self.rubrics, judge, purse=purse, cheaper=cheaper),
            budgets=ledger,
            policy=DeliveryPolicy(retry_base_seconds=0.01, retry_max_seconds=0.05, lease_seconds=5),
        )
        worker.start()
        try:
            deadline = time.monotonic() + 30
            while self.queue.depth().batches:
                assert time.monotonic() < deadline, "the queue does not empty"
                for batch_id in self.queue._redis.hkeys("assay:assay:batches"):
                    worker.work(batch_id.decode())
                time.sleep(0.01)
        finally:
            worker.stop()
            ledger.close()

    def push(self, *records: Record) -> None:
        enqueue(records, self.queue)

    def counted(self) -> dict[str, int]:
        """What became of the records, over all judges; each is in one of them."""
        found = {"scored": 0, "failed": 0, "thinned": 0}
        for total in self.store.totals():
            found["scored"] += total.scored
            found["failed"] += total.failed - total.recovered
            found["thinned"] += total.reasons.get(THINNED, 0)
            assert set(total.reasons) <= {THINNED}
        return found

    def weights(self) -> list[float]:
        import sqlalchemy as sa

        with self.store._database.read() as connection:
            rows = connection.execute(sa.text("SELECT weight FROM evaluations WHERE outcome = 'scored'"))
            return [row.weight for row in rows]


@pytest.fixture
def works(redis_url: str, tmp_path: Path) -> Iterator[Works]:
    with FakeJudgeServer(bad_when="nothing is bad") as server:
        made = Works(redis_url, tmp_path, server)
        yield made
        made.queue.close()
        made.store.close()


def billed(works: Works) -> int:
    return works.server.traffic.prompt_tokens + works.server.traffic.completion_tokens


def test_judging_stops_at_the_cap_and_what_it_refused_can_be_replayed(works: Works) -> None:
    tight = Budgets(budgets=(Budget(name="total", per="month", tokens=20_000),), thin_from=1.0)
    works.push(*(record(i) for i in range(60)))
    works.run(tight)
    counted = works.counted()
    assert billed(works) <= 20_000
    assert counted["scored"] > 5
    assert counted["failed"] > 5
    assert counted["scored"] + counted["failed"] == 60
    letters = works.store.dead_letters(reason="budget", limit=100)
    assert len(letters) == counted["failed"]
    assert {letter.attempts for letter in letters} == {1}, "no try was burnt"
    calls = works.server.traffic.calls
    assert replay(letters, queue=works.queue, store=works.store).replayed == len(letters)
    works.run(Budgets(budgets=(Budget(name="total", per="month", tokens=10**8),), thin_from=1.0))
    assert works.counted() == {"scored": 60, "failed": 0, "thinned": 0}
    assert works.server.traffic.calls == calls + len(letters), "each was judged once"


def test_near_the_cap_fewer_records_are_judged_and_those_stand_for_the_others(works: Works) -> None:
    budgets = Budgets(budgets=(Budget(name="total", per="month", tokens=60_000),), thin_from=0.2, thin_least=0.25)
    for start in range(0, 300, 25):
        works.push(*(record(i) for i in range(start, start + 25)))
        works.run(budgets)
    counted = works.counted()
    assert sum(counted.values()) == 300, "each record is accounted for"
    assert counted["thinned"] > 50
    weights = works.weights()
    assert min(weights) == 1.0
    assert 1.0 < max(weights) <= 4.0
    if not counted["failed"]:
        # Its standard deviation is about 20.
        assert 220 < sum(weights) < 380
    works.push(*(record(i) for i in range(300)))
    calls = works.server.traffic.calls
    works.run(Budgets(budgets=(Budget(name="total", per="month", tokens=10**8),)))
    assert works.server.traffic.calls == calls, "what was left out stays left out, whatever there is to spend later"


def test_a_retry_keeps_the_probability_that_the_record_came_in_with(works: Works) -> None:
    """Decided anew, with more to spend, it would count for too little; with less, it would be left out twice."""
    budgets = Budgets(budgets=(Budget(name="total", per="month", tokens=10**6),), thin_from=0.05, thin_least=0.5)
    ledger = redis.Redis.from_url(works.url)
    key = f"assay:{works.queue.name}:budget:total:month:tokens"
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
    ledger.hset(key, mapping={"window": int(month), "spent": 99_000, "reserved": 0})
    works.server.script(*["500"] * 40)
    works.push(*(record(i) for i in range(40)))
    works.run(budgets)
    counted = works.counted()
    assert counted["failed"] == 0
    assert counted["thinned"] + counted["scored"] == 40
    assert counted["thinned"] > 2
    assert set(works.weights()) <= {w for w in works.weights() if w > 1.0}, "no retry has forgotten it"


def test_a_cheaper_judge_goes_on_and_nothing_is_judged_twice(works: Works) -> None:
    tight = Budgets(budgets=(Budget(name="total", per="month", tokens=8_000),), thin_from=1.0)
    works.push(*(record(i) for i in range(50)))
    works.run(tight, cheaper=JudgeSpec(engine="lexical"))
    by_judge = {total.judge: total.scored for total in works.store.totals() if total.scored}
    assert set(by_judge) == {"openai:gpt-5-mini", "lexical"}
    assert sum(by_judge.values()) == 50
    assert works.counted()["failed"] == 0
    works.push(*(record(i) for i in range(50)))
    works.run(tight, cheaper=JudgeSpec(engine="lexical"))
    assert {total.judge: total.scored for total in works.store.totals() if total.scored} == by_judge
