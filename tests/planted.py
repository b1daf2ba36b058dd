"""Secrets to plant, and the search for them, in whichever form they came out.

All of them are synthetic.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from urllib.parse import quote


def secret(name: str, prefix: str = "") -> str:
    """A secret like no other, with characters that URLs and HTML write otherwise."""
    digest = hashlib.sha256(f"planted {name}".encode()).hexdigest()
    return f"{prefix}{digest[:14]}!{digest[14:28]}"


@dataclass(frozen=True)
class Planted:
    """One text that must be found nowhere but where `allowed` says, and the forms that it may come out in."""

    name: str
    value: str
    #: kinds of places (see `Search.look`) in which it has to be
    allowed: frozenset[str] = frozenset()

    @property
    def needles(self) -> frozenset[str]:
        """Texts that give it away: itself, either half of it, and both as others write them."""
        halves = [half for half in self.value.split("!") if len(half) >= 12]
        found = {self.value, *halves}
        for text in (self.value, self.value.swapcase()):
            found |= {text, quote(text, safe=""), escape(text), json.dumps(text)[1:-1]}
        # Within something else, such as user:password, the groups of three bytes may begin at any of three places.
        for offset in range(3):
            encoded = b64encode(b"\0" * offset + self.value.encode()).decode()
            inner = encoded[-(-offset * 8 // 6) : len(encoded) - 4]
            found |= {inner, inner.replace("+", "-").replace("/", "_")}
        return frozenset(needle for needle in found if len(needle) >= 8)


@dataclass
class Search:
    """Looks for everything planted in whatever it is shown, and keeps what was where it must not be."""

    planted: Iterable[Planted]
    leaks: list[str] = field(default_factory=list)
    #: how many places of each kind were looked at
    looked: Counter[str] = field(default_factory=Counter)
    #: (kind of place, name) of what was found where it is allowed
    found: set[tuple[str, str]] = field(default_factory=set)
    _told: set[tuple[str, str, str]] = field(default_factory=set)

    def look(self, kind: str, where: str, shown: str | bytes) -> None:
        """One output: what kind of place it is, which one, and all that is in it."""
        text = shown.decode(errors="backslashreplace") if isinstance(shown, bytes) else shown
        self.looked[kind] += 1
        for one in self.planted:
            for needle in one.needles:
                if (place := text.find(needle)) < 0:
                    continue
                self.found.add((kind, one.name))
                if kind not in one.allowed and (kind, where, one.name) not in self._told:
                    self._told.add((kind, where, one.name))
                    around = text[max(0, place - 150) : place + len(needle) + 60]
                    self.leaks.append(f"{one.name} in {kind} {where}: …{around}…")
                break

    def missing(self) -> set[tuple[str, str]]:
        """What is allowed in a place but was not there: the exception is not needed, or the search does not see."""
        return {(kind, one.name) for one in self.planted for kind in one.allowed} - self.found


def planted(values: Mapping[str, str], allowed: Mapping[str, Iterable[str]]) -> list[Planted]:
    """Of names and values; `allowed` says by kind of place which names have to be there."""
    assert not {name for names in allowed.values() for name in names} - set(values)
    return [
        Planted(name, value, frozenset(kind for kind, names in allowed.items() if name in names))
        for name, value in values.items()
    ]
