"""What one command may spend, in its own memory: for judging that has a budget of its own."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from assay.budgets._redis import Reservation
from assay.errors import BudgetSpentError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from assay.records import Usage


@dataclass(slots=True, eq=False)
class Allowance:
    """Money that is set aside for all requests of one task and of those that it starts."""

    #: for requests that are still to be made
    left: float
    #: the most that each request under way can cost, by its reservation
    under_way: dict[str, float] = field(default_factory=dict)
    #: what a request could have cost that it did not reach for; None: it reached
    refused: float | None = None

    @property
    def held(self) -> float:
        """What may still be spent of it."""
        return math.fsum((self.left, *self.under_way.values()))


_allowance: ContextVar[Allowance] = ContextVar("assay_allowance")


class LocalPurse:
    """Reserves before a request and settles after it, as `Purse` does, within one event loop; amounts are in USD.

    Requests are made within an `allowance` only. The budget bounds what is spent and what is held together; a request
    of which nobody knows the price costs nothing here.
    """

    def __init__(self, budget: float = math.inf) -> None:
        self.budget = budget
        #: what requests have cost, those of unknown cost at their bound
        self.spent = 0.0
        self._open: set[Allowance] = set()
        self._changed = asyncio.Condition()

    @property
    def left(self) -> float:
        """What is not spent."""
        return self.budget - self.spent

    @contextlib.asynccontextmanager
    async def allowance(self, most: float) -> AsyncIterator[Allowance | None]:
        """Sets `most` aside for the requests that are made within; waits while only what others hold is in the way.

        None: it is more than is left. What was not settled at the end was cut off, and is spent.
        """
        async with self._changed:
            while self._open and not self._fits(most):
                await self._changed.wait()
            allowance = Allowance(most) if self._fits(most) else None
            if allowance is not None:
                self._open.add(allowance)
        if allowance is None:
            yield None
            return
        token = _allowance.set(allowance)
        try:
            yield allowance
        finally:
            _allowance.reset(token)
            self._open.discard(allowance)
            self.spent += math.fsum(allowance.under_way.values())
            async with self._changed:
                self._changed.notify_all()

    async def reserve(
        self,
        *,
        app: str,  # noqa: ARG002 - it covers all
        rubrics: Sequence[str],
        judge: str,  # noqa: ARG002
        bound: Usage,
        lease_seconds: float,  # noqa: ARG002 - nothing outlives its allowance
        wait_seconds: float | None = None,  # noqa: ARG002 - what there is to wait for was waited for
    ) -> Reservation:
        """Hold the most that one request can take, of the allowance, or of what is left where that is not enough.

        Raises:
            BudgetSpentError: it is more than that.
        """
        allowance, most = _allowance.get(), bound.cost_usd or 0.0
        if most > allowance.left and not self._fits(most - allowance.left):
            allowance.refused = most
            raise BudgetSpentError(f"one request may cost {most:.6f} USD, more than is left", rubrics=rubrics)
        reservation = Reservation(id=uuid.uuid4().hex, shares=(), bound=bound)
        allowance.left = max(0.0, allowance.left - most)
        allowance.under_way[reservation.id] = most
        return reservation

    async def settle(self, reservation: Reservation | None, used: Usage | None) -> None:
        """The request ended and cost this much; None, or a cost that is None: not known, and counted at its bound."""
        if reservation is None:
            return
        most = _allowance.get().under_way.pop(reservation.id)
        self.spent += most if used is None or used.cost_usd is None else used.cost_usd

    async def aclose(self) -> None:
        """Nothing is to be closed."""

    def _fits(self, amount: float) -> bool:
        return self.spent + math.fsum(allowance.held for allowance in self._open) + amount <= self.budget
