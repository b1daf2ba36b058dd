"""What the requests of one record may take of the budgets: asked for before each, settled after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.errors import JudgeError
from assay.records import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from assay.budgets import Purse, Reservation
    from assay.judges._endpoint import Answer, Vectors
    from assay.records import Record
    from assay.rubrics import Rubric

#: A reservation outlives the bound of its request by so much, for a busy event loop. Too short would do no harm.
_LEASE_MARGIN_SECONDS = 5.0
_NOTHING = Usage(prompt_tokens=0, completion_tokens=0, cost_usd=0.0)


class Account:
    """The requests for one record, by one judge. Without a purse nothing limits what they may take."""

    def __init__(self, purse: Purse | None, record: Record, judge: str, timeout_seconds: float) -> None:
        self._purse = purse
        self._record = record
        self._judge = judge
        self._lease_seconds = timeout_seconds + _LEASE_MARGIN_SECONDS

    async def reserve(
        self, bound: Callable[[], Usage], rubrics: Sequence[Rubric], *, wait_seconds: float | None = None
    ) -> Reservation | None:
        """Hold `bound`, the most that a request for these rubrics can take; see `Purse.reserve`."""
        if self._purse is None:
            return None
        return await self._purse.reserve(
            app=self._record.app,
            rubrics=[rubric.name for rubric in rubrics],
            judge=self._judge,
            bound=bound(),
            lease_seconds=self._lease_seconds,
            wait_seconds=wait_seconds,
        )

    async def settle(self, held: Reservation | None, ended: Answer | Vectors | JudgeError) -> None:
        """What the request took, as far as anyone knows.

        What was cancelled is not settled: it lapses, and counts at its bound, for it may have been charged.
        """
        if self._purse is None:
            return
        if isinstance(ended, JudgeError) and ended.usage is None:
            used = _NOTHING if ended.free else None
        else:
            used = ended.usage
        await self._purse.settle(held, used)
