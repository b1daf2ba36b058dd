"""Words of messages: what somebody meant who wrote a name that there is not, and how many there are of a thing."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: More of a name is not compared: it takes time with the square of its length.
_MOST_CHARACTERS = 60


def closest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """The known name that is most like this one; None where none is, by a likeness in [0, 1] (difflib's ratio)."""
    found = difflib.get_close_matches(name[:_MOST_CHARACTERS], list(known), n=1, cutoff=likeness)
    return found[0] if found else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """For the end of a message: `did you mean title?`, or else what names there are."""
    known = list(known)
    near = closest(name, known)
    return f"known are {', '.join(known)}" if near is None else f"did you mean {near}?"


def many(count: int, thing: str) -> str:
    """`1 record`, `2,000 records`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
