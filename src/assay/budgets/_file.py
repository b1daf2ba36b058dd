"""The file of budgets, and every mistake in it by line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from assay import _yaml
from assay.budgets._limits import MOST_TOKENS, MOST_USD, Budget, Per
from assay.errors import FileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_NAME = "^[a-z][a-z0-9_]{0,62}$"
_ENTRY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {
            "type": "string",
            "pattern": _NAME,
            "patternErrorMessage": "use lower-case letters, digits and _, a letter first, at most 63",
            "examples": ["total"],
        },
        "per": {"type": "string", "enum": list(get_args(Per)), "examples": ["day"]},
        "usd": {"type": "number", "minimum": 0, "maximum": MOST_USD, "examples": [20]},
        "tokens": {"type": "integer", "minimum": 0, "maximum": MOST_TOKENS, "examples": [2_000_000]},
        "app": {"type": "string", "minLength": 1, "maxLength": 100, "examples": ["shop"]},
        "rubric": {"type": "string", "minLength": 1, "maxLength": 63, "examples": ["faithfulness"]},
        "judge": {"type": "string", "minLength": 1, "maxLength": 250, "examples": ["openai:gpt-5-mini"]},
    },
    "required": ["name", "per"],
    "additionalProperties": False,
}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "budgets": {
            "type": "array",
            "minItems": 1,
            "maxItems": 100,
            "items": _ENTRY,
            "examples": [[{"name": "total", "usd": 20, "per": "day"}]],
        }
    },
    "required": ["budgets"],
    "additionalProperties": False,
}


def load_budgets(
    path: Path, *, rubrics: Iterable[str] | None = None, judges: Iterable[str] | None = None
) -> tuple[Budget, ...]:
    """The budgets of a file.

    Args:
        path: a YAML file.
        rubrics: names that `rubric` may have; None: any.
        judges: names that `judge` may have; None: any.

    Raises:
        FileError: the first mistake, as `path:line: field: message`; `check_budgets_file` lists them all.
    """
    budgets, mistakes = _load(path, rubrics, judges)
    if mistakes:
        raise _error(path, mistakes[0])
    return budgets


def check_budgets_file(path: Path) -> list[FileError]:
    """Every mistake in a file, by line."""
    return [_error(path, mistake) for mistake in _load(path, None, None)[1]]


def _load(
    path: Path, rubrics: Iterable[str] | None, judges: Iterable[str] | None
) -> tuple[tuple[Budget, ...], list[_yaml.Mistake]]:
    node, mistakes = _yaml.read(path, what="list of budgets")
    if node is None:
        return (), mistakes
    mistakes += _yaml.check(node, _SCHEMA)
    listed = node.get("budgets")
    entries = listed.value if listed is not None and listed.kind == "array" else []
    mistakes += _check_entries([entry for entry in entries if entry.kind == "object"], rubrics, judges)
    mistakes.sort(key=lambda mistake: mistake.line or 0)
    if mistakes:
        return (), mistakes
    return tuple(Budget(**entry) for entry in node.plain()["budgets"]), []


def _check_entries(
    entries: Sequence[_yaml.Node], rubrics: Iterable[str] | None, judges: Iterable[str] | None
) -> Iterable[_yaml.Mistake]:
    seen: dict[object, int] = {}
    for entry in entries:
        name = entry.get("name")
        if name is not None and name.kind == "string":
            if name.value in seen:
                problem = f"{_yaml.shown(name.value)} is the name of the budget on line {seen[name.value]} too"
                yield _yaml.Mistake(name.line, name.field, f"{problem}: rename one")
            seen.setdefault(name.value, name.line)
        if entry.get("usd") is None and entry.get("tokens") is None:
            yield _yaml.Mistake(entry.line, entry.field or None, "has no limit: write `usd: 20`, or `tokens: 2000000`")
        for key, known in (("rubric", rubrics), ("judge", judges)):
            given = entry.get(key)
            # A name that is misspelled would limit nothing, and nobody would see it.
            if given is not None and known is not None and given.kind == "string" and given.value not in set(known):
                there = ", ".join(sorted(known)) or "none"
                problem = f"no {key} is called {_yaml.shown(given.value)}: there is {there}"
                yield _yaml.Mistake(given.line, given.field, problem)


def _error(path: Path, mistake: _yaml.Mistake) -> FileError:
    return FileError(mistake.message, path=path, line=mistake.line, field=mistake.field)
