"""Options that several commands read the same way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from assay import wiring
from assay.errors import ConfigError
from assay.rubrics import load_rubrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.rubrics import Rubric
    from assay.settings import Settings


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str] | None:
    """What a repeatable `NAME=VALUE` option was given, None when it was not.

    Raises:
        ConfigError: one of them is no such pair.
    """
    if not given:
        return None
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{option} {text!r}: write NAME=VALUE")
        found[name] = value
    return found


def is_file(name: str) -> bool:
    """Whether a rubric is named by its file."""
    return name.endswith((".yaml", ".yml"))


def one_rubric(settings: Settings, name: str) -> Rubric:
    """The rubric of a name or a file.

    Raises:
        ConfigError: there is none, or the file is wrong.
    """
    if is_file(name):
        return load_rubrics([Path(name)])[0]
    known = {rubric.name: rubric for rubric in wiring.read_rubrics(settings)}
    if name not in known:
        raise ConfigError(f"no rubric is called {name!r}: there are {', '.join(known)}, or name a rubric file")
    return known[name]
