"""Limits of endpoints: who waits for its turn to be asked."""

from __future__ import annotations

import contextlib
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_turn: ContextVar[Turn | None] = ContextVar("assay_turn", default=None)


class Turn:
    """Whether a record's calls wait for their turn, for whoever must tell that from a call that hangs."""

    def __init__(self) -> None:
        #: how many of the record's calls wait, as of now
        self.waiting = 0
        #: when one of them last had its turn, by `time.monotonic`; 0: none had to wait
        self.since = 0.0

    def attach(self) -> None:
        """Take note of the calls that this task, and the tasks it starts, will make."""
        _turn.set(self)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """What happens within is waiting for a turn."""
    turn = _turn.get()
    if turn is None:
        yield
        return
    turn.waiting += 1
    try:
        yield
    finally:
        turn.waiting -= 1
        turn.since = time.monotonic()
