"""Regular expressions mean the same on every Python that assay runs on."""

from __future__ import annotations

import re
from pathlib import Path

SOURCES = sorted((Path(__file__).parents[2] / "src" / "assay").rglob("*.py"))
#: `(...){1,4}+`, `(...)*+`: before Python 3.11.5 they miss what they should find (CPython issue 106052).
POSSESSIVE_GROUP = re.compile(r"(?<!\\)\)(?:\{[0-9]*,?[0-9]*\}|[*+?])\+")


def test_the_search_knows_a_possessive_group() -> None:
    for pattern in (r"(?:a|b){1,4}+", r"(a)*+", r"(?:a)++", r"(a)?+"):
        assert POSSESSIVE_GROUP.search(pattern)
    for pattern in (r"(?>(?:a|b){1,4})", r"[0-9]++", r"\)?+", r"(?:a)+"):
        assert not POSSESSIVE_GROUP.search(pattern)


def test_no_group_is_possessive() -> None:
    found = [
        f"{path.name}:{number}: write (?>(...)*) instead"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if POSSESSIVE_GROUP.search(line)
    ]
    assert not found
