"""Judge calls that hang: how long a batch waits for its calls, and those that go on without the thread that made them.

Those are for a batch of few records, or of the one whose call hangs, that this process holds; its lease is renewed
until they have ended and what they came to is concluded. docs/decisions/0012-limits.md says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from assay.limits import Turn
    from assay.records import Record

_log = logging.getLogger(__name__)

#: Share of a batch's records whose end shows how long a call takes now.
_MOST_OF_A_BATCH = 0.75
#: How many calls, and how many bytes of their records, a process has at most.
_MOST_CALLS = 1_000
_MOST_BYTES = 64_000_000
#: Threads that conclude what the calls come to.
_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LateCall:
    """A call that goes on, and the batch that it is for."""

    batch_id: str
    #: of the batch
    size_bytes: int
    call: asyncio.Task[Any] | Future[Any]
    #: called on a thread of `LateCalls` once the call has ended
    conclude: Callable[[], object]


class LateCalls:
    """The calls of one process that go on without a thread. Thread-safe; `close` it."""

    def __init__(self) -> None:
        self._held: dict[str, LateCall] = {}
        self._changed = threading.Condition()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="assay-late")

    def take(self, late: Sequence[LateCall]) -> None:
        """Conclude each of these once its call ends."""
        with self._changed:
            self._held.update((item.batch_id, item) for item in late)
        for item in late:
            ended = partial(self._ended, item)
            if isinstance(item.call, Future):
                item.call.add_done_callback(ended)
            else:
                item.call.get_loop().call_soon_threadsafe(item.call.add_done_callback, ended)

    def batch_ids(self) -> list[str]:
        """The batches that are held: their leases have to be renewed."""
        with self._changed:
            return list(self._held)

    def has_room(self, records: Sequence[Record]) -> bool:
        """Whether the calls for these may go on too: the records stay in memory."""
        with self._changed:
            late = list(self._held.values())
        held = sum(item.size_bytes for item in late)
        wanted = sum(len(record.to_json()) for record in records)
        return len(late) + len(records) <= _MOST_CALLS and held + wanted <= _MOST_BYTES

    def wait(self, seconds: float) -> None:
        """Until there are none, or for so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held, timeout=max(0.0, seconds))

    def close(self) -> None:
        """End the threads, when those have concluded what had ended."""
        self._threads.shutdown()

    def _ended(self, late: LateCall, _: object) -> None:
        self._threads.submit(self._end, late)

    def _end(self, late: LateCall) -> None:
        try:
            late.conclude()
        except Exception as error:  # noqa: BLE001 - nobody waits for this thread
            # The lease ends, and another worker takes it.
            _log.warning("batch waits", extra={"batch_id": late.batch_id, "error": str(error)})
        finally:
            with self._changed:
                # What it came to may be that its call still goes on.
                if self._held.get(late.batch_id) is late:
                    del self._held[late.batch_id]
                self._changed.notify_all()


async def most_ended(
    calls: Sequence[asyncio.Task[Any]],
    turns: Sequence[Turn],
    *,
    patience_seconds: float,
    may_go_on: Callable[[Sequence[int]], bool],
) -> None:
    """Return when all calls have ended, or most have and the others hang, or none of them has ended for long.

    Args:
        calls: of one batch.
        turns: of the same calls: what still waits for its turn does not hang.
        patience_seconds: how long the calls are waited for; a tenth of it, at least, once most have ended.
        may_go_on: whether those of these places may be left running.
    """
    clock = asyncio.get_running_loop().time
    started, patience = clock(), patience_seconds
    most, left = asyncio.Event(), math.ceil(len(calls) * _MOST_OF_A_BATCH)

    def count(_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            most.set()

    for call in calls:
        call.add_done_callback(count)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            await most.wait()
        # As fast as judging is now, the rest should have ended by then.
        patience = min(patience, max(patience / 10, (clock() - started) / 2))
        await asyncio.wait(calls, timeout=patience)
    while True:
        pending = [index for index, call in enumerate(calls) if not call.done()]
        # To take more work in while these wait for their turn would only make them wait longer.
        waits = [turns[index] for index in pending]
        is_free = not any(turn.waiting or time.monotonic() - turn.since < patience for turn in waits)
        if not pending or (is_free and may_go_on(pending)):
            return
        await asyncio.wait(calls, timeout=patience)
