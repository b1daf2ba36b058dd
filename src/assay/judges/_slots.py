"""How many verdicts one judge may be asked for at once, and what becomes of the slot of a call that hangs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from assay.limits import waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: A call hangs when it takes so many times as long as answers usually do, and at least so many seconds.
_TIMES_AS_LONG = 4.0
_LEAST_SECONDS = 1.0
#: Weight of the newest answer in what is usual.
_NEWEST = 0.05
#: Calls that hang, without a slot, for each slot that there is.
OVERTIME = 8


class Slots:
    """A bound of calls that are under way; those that hang do not count, up to a bound of their own.

    Belongs to one event loop.
    """

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)
        self._overtime_left = most * OVERTIME
        self._usual_seconds: float | None = None

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Waits for a slot, and gives it back at the end, or earlier if the call hangs."""
        with waiting():
            await self._free.acquire()
        loop = asyncio.get_running_loop()
        lent = False

        def lend() -> None:
            nonlocal lent
            if self._overtime_left:
                self._overtime_left -= 1
                lent = True
                self._free.release()

        # Before the first answer nobody can tell a slow endpoint from one that hangs.
        usual = self._usual_seconds
        timer = None if usual is None else loop.call_later(max(_LEAST_SECONDS, usual * _TIMES_AS_LONG), lend)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            if lent:
                self._overtime_left += 1
            else:
                self._free.release()

    def answered(self, seconds: float) -> None:
        """A call took so long and was answered: this is how long answers take."""
        usual = self._usual_seconds
        self._usual_seconds = seconds if usual is None else usual + _NEWEST * (seconds - usual)
