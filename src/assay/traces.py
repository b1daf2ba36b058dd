"""Spans by trace, until it is whole or has waited long enough; bounded in spans and bytes. Standard library only."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")


@dataclass(slots=True)
class _Trace(Generic[_T]):
    items: list[_T] = field(default_factory=list)
    bytes: int = 0
    since: float = 0.0
    last: float = 0.0
    ended: bool = False
    wanted: bool = False


class Traces(Generic[_T]):
    """Keeps what belongs to one trace together.

    A trace is given out `settle_seconds` after its root has ended, `wait_seconds` after anything last came of it, and
    `longest_seconds` after its first in any case. One in which nothing was wanted is forgotten instead. What comes
    later makes the trace anew. Any thread may call it; `add` takes about a microsecond and never waits for `due`.
    """

    def __init__(
        self,
        *,
        wait_seconds: float = 10.0,
        settle_seconds: float = 0.0,
        longest_seconds: float = 300.0,
        most_items: int = 20_000,
        most_bytes: int = 64_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wait = wait_seconds
        self._settle = settle_seconds
        self._longest = longest_seconds
        self._most_items = most_items
        self._most_bytes = most_bytes
        self._clock = clock
        # Re-entrant: a signal handler or a finalizer that interrupts `add` may end a span itself.
        self._lock = threading.RLock()
        self._traces: dict[str | int, _Trace[_T]] = {}
        self._items = 0
        self._bytes = 0

    def add(
        self, trace_id: str | int, item: _T, *, size: int = 0, is_root: bool = False, is_wanted: bool = True
    ) -> bool:
        """Keep an item of about `size` bytes; False when there is no room for it."""
        now = self._clock()
        with self._lock:
            if self._items >= self._most_items or self._bytes + size > self._most_bytes:
                return False
            trace = self._traces.get(trace_id)
            if trace is None:
                if is_root and not is_wanted:
                    return True  # a trace of one span, and not of interest: most of them, in most apps
                trace = self._traces[trace_id] = _Trace(since=now)
            trace.items.append(item)
            trace.last = now
            trace.ended = trace.ended or is_root
            trace.wanted = trace.wanted or is_wanted
            trace.bytes += size
            self._items += 1
            self._bytes += size
            if trace.ended and not trace.wanted and not self._settle:
                self._free(self._traces.pop(trace_id))
        return True

    def due(self, *, everything: bool = False) -> Iterator[list[_T]]:
        """Take out the traces that are whole or have waited long enough, or all of them: the items of each.

        One at a time: its room is free when the next is asked for, so that whoever must wait holds up `add` as well.
        """
        now = self._clock()
        # A copy made at once, so that `add` waits for no scan.
        late = [trace_id for trace_id, trace in list(self._traces.items()) if everything or self._is_due(trace, now)]
        for trace_id in late:
            with self._lock:
                trace = self._traces.pop(trace_id, None)
            if trace is None:
                continue
            try:
                if trace.wanted:
                    yield trace.items
            finally:
                with self._lock:
                    self._free(trace)

    def has_room(self, size: int) -> bool:
        """Whether an item of this size would be kept."""
        return self._items < self._most_items and self._bytes + size <= self._most_bytes

    def __len__(self) -> int:
        return self._items

    @property
    def bytes(self) -> int:
        """About how many bytes the items take."""
        return self._bytes

    def _is_due(self, trace: _Trace[_T], now: float) -> bool:
        quiet = self._settle if trace.ended else self._wait
        return now >= trace.last + quiet or now >= trace.since + self._longest

    def _free(self, trace: _Trace[_T]) -> None:
        self._items -= len(trace.items)
        self._bytes -= trace.bytes
