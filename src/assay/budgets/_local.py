"""What one command may spend, in its own memory: for judging that has a budget of its own."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from assay.budgets._purse import Reservation
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
    """A `Purse` within one event loop, in US dollars.

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
            allowance.under_way.clear()
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
        wait_seconds: float | None = None,
    ) -> Reservation:
        """See `Purse.reserve`: of the allowance, or of what is left where that is not enough."""
        allowance, most = _allowance.get(), bound.cost_usd or 0.0
        if not self._has(allowance, most):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds), self._changed:
                    # Requests end; what others hold for those that they have yet to make may be waiting for ours.
                    await self._changed.wait_for(lambda: self._has(allowance, most) or not self._is_asking)
            if not self._has(allowance, most):
                allowance.refused = most
                raise BudgetSpentError(f"one request may cost {most:.6f} USD, more than is left", rubrics=rubrics)
        reservation = Reservation(id=uuid.uuid4().hex, shares=(), bound=bound)
        allowance.left = max(0.0, allowance.left - most)
        allowance.under_way[reservation.id] = most
        return reservation

    async def settle(self, reservation: Reservation | None, used: Usage | None) -> None:
        """See `Purse.settle`. What outlived its allowance was counted at its end."""
        most = None if reservation is None else _allowance.get().under_way.pop(reservation.id, None)
        if most is None:
            return
        self.spent += most if used is None or used.cost_usd is None else used.cost_usd
        async with self._changed:
            self._changed.notify_all()

    async def aclose(self) -> None:
        """Nothing is to be closed."""

    def _has(self, allowance: Allowance, amount: float) -> bool:
        """Whether a request of it may cost so much."""
        return allowance in self._open and (amount <= allowance.left or self._fits(amount - allowance.left))

    @property
    def _is_asking(self) -> bool:
        return any(allowance.under_way for allowance in self._open)

    def _fits(self, amount: float) -> bool:
        return self.spent + math.fsum(allowance.held for allowance in self._open) + amount <= self.budget
