"""What somebody meant who wrote a name that there is not."""

from __future__ import annotations

import pytest

from assay.spelling import closest, suggestion

KNOWN = ["title", "version", "instructions"]


@pytest.mark.parametrize(
    ("name", "meant"), [("titel", "title"), ("instruction", "instructions"), ("zzz", None), ("", None), ("v", None)]
)
def test_the_name_that_is_most_alike_is_meant(name: str, meant: str | None) -> None:
    assert closest(name, KNOWN) == meant


def test_how_alike_is_asked_for() -> None:
    assert closest("tile_x", KNOWN, likeness=0.6) == "title"
    assert closest("tile_x", KNOWN, likeness=0.9) is None


def test_where_none_is_alike_all_are_named() -> None:
    assert suggestion("titel", KNOWN) == "did you mean title?"
    assert suggestion("zzz", (name for name in KNOWN)) == "known are title, version, instructions"


def test_of_a_name_without_end_only_the_beginning_is_compared() -> None:
    assert closest("title" + "x" * 10_000_000, ["title" + "x" * 55]) == "title" + "x" * 55
