"""Processes that spend from budgets, for `test_budgets.py`: `python spender.py URL LIMIT PROCESSES SEED`.

Forks the processes and prints their ids. Each reserves, writes what the call costs to the list `bill` (the provider's
own count, which nobody can take back), and settles, until its budget is spent. Whoever starts it may kill any of them.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys

import redis
import redis.asyncio  # before the fork: once for all

from assay.budgets import Budget, Budgets, RedisPurse
from assay.errors import BudgetSpentError
from assay.records import Usage

QUEUE = "spenders"
BOUND = 100
LEASE_SECONDS = 3.0


def budgets(limit: int) -> Budgets:
    return Budgets(budgets=(Budget(name="all", per="month", tokens=limit, usd=limit / 1000),))


def usage(tokens: int) -> Usage:
    return Usage(prompt_tokens=tokens, completion_tokens=0, cost_usd=tokens / 1000)


async def spend(url: str, limit: int, draw: random.Random) -> None:
    purse = RedisPurse(budgets(limit), url, QUEUE, wait_seconds=2 * LEASE_SECONDS)
    provider = redis.asyncio.Redis.from_url(url)

    async def one_line() -> None:
        while True:
            try:
                held = await purse.reserve(
                    app="shop", rubrics=["relevance"], judge="m", bound=usage(BOUND), lease_seconds=LEASE_SECONDS
                )
            except BudgetSpentError:
                return
            # The provider charges when it likes: before the answer, or a while after the request.
            cost = draw.randint(0, BOUND)
            await asyncio.sleep(draw.random() * 0.02)
            await provider.rpush("bill", cost)
            await asyncio.sleep(draw.random() * 0.02)
            await purse.settle(held, draw.choice([usage(cost), None]) if cost > BOUND // 2 else usage(cost))

    await asyncio.gather(one_line(), one_line())
    await purse.aclose()
    await provider.aclose()


def main(url: str, limit: int, processes: int, seed: int) -> None:
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            asyncio.run(spend(url, limit, random.Random(f"{seed}/{number}")))
            os._exit(0)
        children.append(child)
    print(*children, flush=True)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
