"""Marks the judge's own calls, so that spans of them are never taken for answers of an application.

A judge that is traced, or that sits behind a gateway that traces, makes spans like those of any application. Judged,
each would make the next. So a judge call carries the mark in three places, and one of them outlives any way that a span
may take: baggage of the OpenTelemetry context (where OpenTelemetry is loaded), the `baggage` header of the request, and
the first words of its prompt. Standard library only.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Key of the baggage entry, and name of the attribute of spans and resources, that mark a judge's own.
MARK: Final = "assay.judge"
#: A request header that says the same to whatever traces behind the endpoint (W3C Baggage).
HEADERS: Final = {"baggage": f"{MARK}=true"}
#: The system message of every judge call begins so; a test holds the judge's prompt to it.
JUDGE_OPENING: Final = "Grade one interaction with an AI application by each criterion"
#: `service.name` of assay's own processes, where whoever traces them says it.
SERVICES: Final = frozenset({"assay", "assay-worker", "assay-judge"})


def judging() -> contextlib.AbstractContextManager[None]:
    """Mark the spans that start within, in this thread or task."""
    # Where OpenTelemetry is not loaded nothing traces, and it need not be imported for this.
    return _marked() if "opentelemetry.context" in sys.modules else _UNTRACED


_UNTRACED = contextlib.nullcontext()


@contextlib.contextmanager
def _marked() -> Iterator[None]:
    from opentelemetry import baggage, context

    token = context.attach(baggage.set_baggage(MARK, "true"))
    try:
        yield
    finally:
        context.detach(token)
