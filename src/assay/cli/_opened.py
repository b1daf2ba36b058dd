"""What a command opens, closed when it ends, however it ends."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from assay import wiring

if TYPE_CHECKING:
    from collections.abc import Iterator

    from assay.settings import Settings
    from assay.store import Store

_opened: ContextVar[ExitStack] = ContextVar("opened")


@contextmanager
def closing_opened() -> Iterator[None]:
    """Around a command: what it has opened is closed, however it ends."""
    with ExitStack() as stack:
        token = _opened.set(stack)
        try:
            yield
        finally:
            _opened.reset(token)


def open_store(settings: Settings, **given: Any) -> Store:
    """`wiring.open_store`, closed when the command ends."""
    store = wiring.open_store(settings, **given)
    _opened.get().callback(store.close)
    return store
