"""What is asked before each request to a judge, and told after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.budgets._limits import Meter
    from assay.records import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What is held for one request: to be settled once."""

    id: str
    #: each limit that covers it, and which share of the request it covers
    shares: tuple[tuple[Meter, float], ...]
    bound: Usage


class Purse(Protocol):
    """Holds the most that a request can take before it is made, so that what is spent never passes the limit."""

    async def reserve(
        self,
        *,
        app: str,
        rubrics: Sequence[str],
        judge: str,
        bound: Usage,
        lease_seconds: float,
        wait_seconds: float | None = None,
    ) -> Reservation | None:
        """Hold the most that one request for these rubrics can take; None where nothing limits it.

        While only requests under way stand in the way, it waits for them.

        Args:
            app: of the record.
            rubrics: names; each has an equal share of the request.
            judge: its name.
            bound: the most tokens, and dollars.
            lease_seconds: after which it counts as spent unless it was settled: longer than the request can take.
            wait_seconds: instead of the purse's own.

        Raises:
            BudgetSpentError: a budget does not allow it; the error names the rubrics that it is about.
            JudgeError: what keeps the budgets is away (kind `unavailable`): nothing is judged without asking.
        """

    async def settle(self, reservation: Reservation | None, used: Usage | None) -> None:
        """The request ended and took this much; None, or a part that is None: not known, and counted at its bound."""

    async def aclose(self) -> None:
        """Close the connections."""
