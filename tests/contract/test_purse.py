"""What every `Purse` keeps: nothing beyond its limit is spent or held, whatever comes of the requests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import pytest

from assay.budgets import Budget, Budgets, LocalPurse, Purse, RedisPurse, Reservation
from assay.errors import BudgetSpentError
from assay.records import Usage

LIMIT_USD = 1.0

#: A purse of `LIMIT_USD`, and within what a record's requests are made.
Made = tuple[Purse, Callable[[], AbstractAsyncContextManager[object]]]


@pytest.fixture(params=["redis", "local"])
def made(request: pytest.FixtureRequest) -> Iterator[Callable[[], Made]]:
    if request.param == "local":

        def local() -> Made:
            purse = LocalPurse(LIMIT_USD)
            return purse, lambda: purse.allowance(0.0)

        yield local
        return
    url: str = request.getfixturevalue("redis_url")
    limits = Budgets(budgets=(Budget(name="total", per="month", usd=LIMIT_USD),))
    yield lambda: (RedisPurse(limits, url, "assay", wait_seconds=10.0), nullcontext)


def usd(amount: float | None) -> Usage:
    return Usage(prompt_tokens=1, completion_tokens=1, cost_usd=amount)


async def reserve(purse: Purse, amount: float, **fields: Any) -> Reservation | None:
    call = {"app": "shop", "rubrics": ["relevance"], "judge": "openai:m", "lease_seconds": 60.0}
    return await purse.reserve(bound=usd(amount), **(call | fields))


def run(made: Callable[[], Made], work: Callable[[Purse], Awaitable[None]]) -> None:
    async def whole() -> None:
        purse, record = made()
        try:
            async with record():
                await work(purse)
        finally:
            await purse.aclose()

    asyncio.run(whole())


def test_more_than_the_limit_is_refused_with_the_names_of_the_rubrics(made: Callable[[], Made]) -> None:
    async def work(purse: Purse) -> None:
        with pytest.raises(BudgetSpentError) as refused:
            await reserve(purse, 1.01, rubrics=["relevance", "safety"])
        assert refused.value.rubrics == ("relevance", "safety")
        assert await reserve(purse, 1.0) is not None

    run(made, work)


def test_what_a_request_did_not_take_is_there_for_the_next(made: Callable[[], Made]) -> None:
    async def work(purse: Purse) -> None:
        for _ in range(5):
            await purse.settle(await reserve(purse, 0.8), usd(0.05))
        with pytest.raises(BudgetSpentError):
            await reserve(purse, 0.8)
        assert await reserve(purse, 0.75) is not None

    run(made, work)


@pytest.mark.parametrize("used", [None, usd(None)])
def test_what_nobody_knows_counts_at_its_bound(made: Callable[[], Made], used: Usage | None) -> None:
    async def work(purse: Purse) -> None:
        await purse.settle(await reserve(purse, 0.6), used)
        with pytest.raises(BudgetSpentError):
            await reserve(purse, 0.5, wait_seconds=0.0)

    run(made, work)


def test_what_took_more_than_was_held_counts_as_it_was(made: Callable[[], Made]) -> None:
    async def work(purse: Purse) -> None:
        await purse.settle(await reserve(purse, 0.1), usd(0.95))
        with pytest.raises(BudgetSpentError):
            await reserve(purse, 0.1)

    run(made, work)


def test_nothing_held_is_nothing_to_settle(made: Callable[[], Made]) -> None:
    async def work(purse: Purse) -> None:
        await purse.settle(None, usd(0.5))
        assert await reserve(purse, 1.0) is not None

    run(made, work)


def test_it_waits_for_what_is_under_way_and_only_as_long_as_it_is_told_to(made: Callable[[], Made]) -> None:
    async def work(purse: Purse) -> None:
        first = await reserve(purse, 0.7)
        with pytest.raises(BudgetSpentError):
            await reserve(purse, 0.7, wait_seconds=0.0)
        second = asyncio.create_task(reserve(purse, 0.7))
        await asyncio.sleep(0.2)
        assert not second.done()
        await purse.settle(first, usd(0.1))
        assert await second is not None

    run(made, work)


@pytest.mark.parametrize("seed", range(4))
def test_the_limit_is_never_passed(made: Callable[[], Made], seed: int) -> None:
    """Many records at once, each of which makes requests one after the other until it is refused."""
    draw, spent, under_way, refused = random.Random(seed), 0.0, 0.0, 0

    async def ask_all() -> None:
        nonlocal refused
        purse, record = made()

        async def ask(bounds: list[float]) -> None:
            nonlocal spent, under_way, refused
            async with record():
                for bound in bounds:
                    try:
                        held = await reserve(purse, bound)
                    except BudgetSpentError:
                        refused += 1
                        return
                    under_way += bound
                    assert spent + under_way <= LIMIT_USD + 1e-9
                    await asyncio.sleep(draw.random() / 100)
                    took = draw.choice([0.0, bound / 3, bound, None])
                    under_way -= bound
                    spent += bound if took is None else took
                    await purse.settle(held, usd(took))

        work = [[draw.random() * 0.1 for _ in range(6)] for _ in range(12)]
        try:
            await asyncio.gather(*map(ask, work))
        finally:
            await purse.aclose()

    asyncio.run(ask_all())
    assert refused
    # None is refused while there is enough for it.
    assert 0.9 < spent <= LIMIT_USD + 1e-9
