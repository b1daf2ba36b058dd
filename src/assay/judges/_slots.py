"""How many verdicts one judge may be asked for at once, and what becomes of the slot of a call that hangs."""

from __future__ import annotations

import asyncio

from assay.limits import waiting

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

    def hold(self) -> _Slot:
        """Waits for a slot, and gives it back at the end, or earlier if the call hangs."""
        return _Slot(self)

    def answered(self, seconds: float) -> None:
        """A call took so long and was answered: this is how long answers take."""
        usual = self._usual_seconds
        self._usual_seconds = seconds if usual is None else usual + _NEWEST * (seconds - usual)


class _Slot:
    """One call's; a generator would take longer than all the rest of it."""

    __slots__ = ("_is_lent", "_slots", "_timer")

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._timer: asyncio.TimerHandle | None = None
        self._is_lent = False

    async def __aenter__(self) -> None:
        slots = self._slots
        if slots._free.locked():
            with waiting():
                await slots._free.acquire()
        else:
            await slots._free.acquire()
        # Before the first answer nobody can tell a slow endpoint from one that hangs.
        if (usual := slots._usual_seconds) is not None:
            seconds = max(_LEAST_SECONDS, usual * _TIMES_AS_LONG)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._lend)

    def _lend(self) -> None:
        if self._slots._overtime_left:
            self._slots._overtime_left -= 1
            self._is_lent = True
            self._slots._free.release()

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._is_lent:
            self._slots._overtime_left += 1
        else:
            self._slots._free.release()
