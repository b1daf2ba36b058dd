"""What may be in hand at once within one process, so that a record that kills it is told from those beside it."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Isolation:
    """Many beside each other, or one alone. Whoever wants to be alone goes before those that come later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._beside = 0
        self._alone = False
        self._waiting = 0

    @contextlib.contextmanager
    def beside_others(self) -> Iterator[None]:
        """Waits while one is alone, or wants to be."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._beside += 1
        try:
            yield
        finally:
            self._leave()

    def stay(self) -> Callable[[], None]:
        """Within `beside_others`: remain there after it has ended, until what is returned is called, on any thread."""
        with self._changed:
            self._beside += 1
        return self._leave

    def _leave(self) -> None:
        with self._changed:
            self._beside -= 1
            self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until all others have ended. Never within `beside_others`: it would wait for itself."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._alone and not self._beside)
                self._alone = True
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
