"""What a command opens, closed when it ends, however it ends."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from assay import wiring
from assay.cli._screen import errors
from assay.settings import load_settings
from assay.spelling import closest

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
    """`wiring.open_store`, closed when the command ends.

    Says on standard error which of the apps that it is confined to it has no record of: that nothing is found of a
    misspelt one must not read as if all were well.
    """
    store = wiring.open_store(settings, **given)
    _opened.get().callback(store.close)
    if settings.apps and not given:
        unheard = sorted(set(settings.apps) - set(store.counts().received))
        # What other apps there are is told to those who may see them.
        others = store.of_all_apps().counts().received if unheard and not load_settings().apps else ()
        for app in unheard:
            near = closest(app, others)
            mend = f"did you mean {near}?" if near else "is it spelt as the client names it?"
            line = f"no record of the app {app!r} has come in so far: {mend}"
            errors.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True)
    return store
