"""What sinks of trace stores share: texts that any of them takes, batches within a size, and calls of one at a time."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, TypeVar

from assay.errors import SinkError
from assay.sinks import Annotation, Delivery, Rejected, Skipped, TryAgain, provenance
from assay.sinks._http import Reply, json_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_Item = TypeVar("_Item")

#: An id that may stand in a URL as it is.
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
#: Control characters, which several stores refuse (PostgreSQL any NUL); tabs and ends of lines stay.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
#: Characters of an explanation or a message: more than any judge is asked for.
MOST_TEXT = 10_000
#: Seconds that calls of one at a time may take for a batch, so that it is over before its lease is.
_BATCH_SECONDS = 20.0
#: 500s one after the other, by which not the annotation but the sink is taken to be at fault.
_BROKEN = 3


def clip(text: str, most: int = MOST_TEXT) -> str:
    """The text without control characters and half characters, and at most `most` characters long."""
    # Clipped first: the text may be huge.
    clean = _CONTROLS.sub("\ufffd", text[:most])
    return clean if len(text) <= most else clean[:-1] + "…"


def facts(annotation: Annotation) -> dict[str, str | float | bool]:
    """`provenance` with its texts clipped to 500 characters each: for a sink's metadata."""
    return {
        clip(key, 200): clip(value, 500) if isinstance(value, str) else value
        for key, value in provenance(annotation).items()
    }


def plain_id(annotation: Annotation, name: str) -> str | Rejected | None:
    """What `sink_refs` has under the name, if anything; rejected when it could not stand in a URL."""
    given = annotation.sink_refs.get(name)
    if not given or _PLAIN_ID.fullmatch(given):
        return given or None
    return Rejected(f"sink_refs.{name} is no id: letters, digits, - and _, at most 128 of them")


def batched(
    annotations: Sequence[Annotation],
    make: Callable[[Annotation], dict[str, Any] | Delivery],
    send: Callable[[list[dict[str, Any]]], Sequence[Delivery]],
    *,
    most_bytes: int,
) -> list[Delivery]:
    """What became of each, for an API that takes a list: `make` gives its item, or why there is none.

    The JSON of the items of one call is at most `most_bytes` long; an item that is larger alone is rejected.

    Raises:
        SinkError: as `send` does on its first call. On a later one its items are to be tried again, because what went
            out before must not go out once more.
    """
    done: dict[int, Delivery] = {}
    runs: list[dict[int, dict[str, Any]]] = []
    room = 0
    for position, annotation in enumerate(annotations):
        item = make(annotation)
        if not isinstance(item, dict):
            done[position] = item
            continue
        try:
            size = len(json_bytes(item)) + 1
        except ValueError as error:
            done[position] = Rejected(f"no JSON: {error}")
            continue
        if size > most_bytes:
            done[position] = Rejected(f"{size} bytes, of at most {most_bytes}")
        else:
            if size > room:
                runs.append({})
                room = most_bytes
            runs[-1][position] = item
            room -= size
    for number, run in enumerate(runs):
        items = list(run.values())
        try:
            said = send(items)
        except SinkError as error:
            if number == 0:
                raise
            said = _each_alone(items, send, error)
        done.update(zip(run, said, strict=True))
    return [done[position] for position in range(len(annotations))]


def _each_alone(
    items: list[dict[str, Any]], send: Callable[[list[dict[str, Any]]], Sequence[Delivery]], error: SinkError
) -> Sequence[Delivery]:
    """What becomes of items that a call failed with: one by one, if one of them is suspected, else later."""
    if error.suspect and len(items) > 1:
        try:
            return one_by_one(items, lambda item: send([item])[0])
        except SinkError as away:
            error = away
    return [TryAgain(str(error), error.after_seconds)] * len(items)


def understood(sink: str, reply: Reply, *names: str) -> Reply:
    """The reply, if it is not a 2xx, or one whose JSON object has one of `names` (without names: no page of HTML).

    Raises:
        SinkError: something else answers at the URL, such as a proxy or the pages of an app.
    """
    if not reply.ok:
        return reply
    said = reply.json()
    if (isinstance(said, dict) and any(name in said for name in names)) if names else not _is_page(reply):
        return reply
    raise SinkError(f"{sink}: answers {reply.status} but not as its API does: check the URL")


def _is_page(reply: Reply) -> bool:
    return "html" in reply.headers.get("content-type", "") or reply.body.lstrip()[:1] == b"<"


def one_by_one(items: Sequence[_Item], send: Callable[[_Item], Delivery]) -> list[Delivery]:
    """What became of each, for an API that takes one a call.

    A call that fails is tried again alone. Where the sink is away, the rest are not tried now, so that what has
    already been delivered is known as such.

    Raises:
        SinkError: the first call already failed, and not by what it carried; or the only one.
    """
    done: list[Delivery] = []
    ends = time.monotonic() + _BATCH_SECONDS
    broken = 0
    for item in items:
        if time.monotonic() > ends:
            return _rest_later(done, len(items), "the sink is slow: left for the next batch", 0.0)
        try:
            done.append(send(item))
            broken = broken if isinstance(done[-1], Skipped) else 0
        except ValueError as error:
            done.append(Rejected(f"no JSON: {error}"))
        except SinkError as error:
            broken += error.suspect
            if len(items) == 1 or (not error.suspect and all(isinstance(one, Skipped) for one in done)):
                raise
            if not error.suspect or broken == _BROKEN:
                return _rest_later(done, len(items), str(error), error.after_seconds)
            done.append(TryAgain(str(error), error.after_seconds))
    return done


def _rest_later(done: list[Delivery], n: int, reason: str, after_seconds: float | None) -> list[Delivery]:
    return done + [TryAgain(reason, after_seconds)] * (n - len(done))
