"""The purse of one command: what is set aside for a record, and what outlives it; the rest is in tests/contract."""

from __future__ import annotations

import asyncio

import pytest

from assay.budgets import LocalPurse, Reservation
from assay.errors import BudgetSpentError
from assay.records import Usage


async def reserve(purse: LocalPurse, usd: float) -> Reservation:
    bound = Usage(cost_usd=usd)
    return await purse.reserve(app="shop", rubrics=["relevance"], judge="openai:m", bound=bound, lease_seconds=60.0)


def test_what_is_set_aside_for_a_record_is_not_given_to_another() -> None:
    async def work() -> None:
        purse = LocalPurse(1.0)
        async with purse.allowance(0.7):

            async def other() -> None:
                async with purse.allowance(0.0) as none:
                    assert none is not None
                    # Nothing is under way, so nothing is waited for: the two would wait for each other.
                    with pytest.raises(BudgetSpentError):
                        await reserve(purse, 0.4)
                    assert none.refused == 0.4

            await asyncio.create_task(other())
            await purse.settle(await reserve(purse, 0.7), Usage(cost_usd=0.2))
        assert purse.spent == 0.2

    asyncio.run(work())


def test_a_record_waits_for_what_others_have_set_aside_and_has_none_where_that_is_not_enough() -> None:
    async def work() -> None:
        purse, order = LocalPurse(1.0), []

        async def record(most: float, name: str) -> None:
            async with purse.allowance(most) as allowance:
                order.append((name, allowance is not None))
                await asyncio.sleep(0.05)

        await asyncio.gather(record(0.8, "first"), record(0.8, "second"), record(1.1, "too much"))
        assert order == [("first", True), ("second", True), ("too much", False)]

    asyncio.run(work())


def test_a_request_that_is_cut_off_counts_at_its_bound_once() -> None:
    async def work() -> None:
        purse, held = LocalPurse(1.0), []
        settled = asyncio.Event()

        async def orphan() -> None:
            await settled.wait()
            # It outlived its record, and was counted at the end of that.
            await purse.settle(held[0], Usage(cost_usd=0.1))
            with pytest.raises(BudgetSpentError):
                await reserve(purse, 0.1)

        async with purse.allowance(0.5):
            held.append(await reserve(purse, 0.4))
            task = asyncio.create_task(orphan())
        assert purse.spent == 0.4
        settled.set()
        await task
        assert purse.spent == 0.4
        assert purse.left == pytest.approx(0.6)

    asyncio.run(work())
