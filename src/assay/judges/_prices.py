"""What judge calls cost: a table of prices per model, from a YAML file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from assay import _yaml
from assay.errors import SettingsError
from assay.spelling import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable
    from pathlib import Path

#: Of a table: some ten thousand models.
_MOST_BYTES = 1_000_000
_PER_MILLION = 1_000_000
_DATED = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8})$")
_FIELDS = ("prompt", "cached_prompt", "completion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Price of one model, in USD per million tokens."""

    prompt: float
    completion: float
    cached_prompt: float | None = None

    def cost_usd(self, *, prompt_tokens: int, completion_tokens: int, cached_prompt_tokens: int = 0) -> float:
        """Cost of one call in USD; the cached tokens are some of the prompt's."""
        cached = min(cached_prompt_tokens, prompt_tokens)
        cached_price = self.prompt if self.cached_prompt is None else self.cached_prompt
        total = (prompt_tokens - cached) * self.prompt + cached * cached_price + completion_tokens * self.completion
        return total / _PER_MILLION


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Prices by model name, as they stood on one day."""

    as_of: date
    models: Mapping[str, Price]

    def of(self, *models: str | None) -> Price | None:
        """Price of the first of these names that is listed, with or without its date; None: unknown, not free."""
        for model in models:
            if model is not None:
                price = self.models.get(model) or self.models.get(_DATED.sub("", model))
                if price is not None:
                    return price
        return None


def load_prices(path: Path | None = None) -> Prices:
    """Read a price table; None is the shipped one.

    Raises:
        SettingsError: the file cannot be read, has an alias or more than a megabyte,
            or one line `path:line: field: what is wrong`.
    """
    source: Path | Traversable = path or files("assay").joinpath("data", "prices.yaml")
    if path is not None:
        # Bounds first: of size, depth and aliases.
        _, mistakes = _yaml.read(path, "price table", _MOST_BYTES)
        if mistakes:
            first = mistakes[0]
            where = f"{path}:{first.line}" if first.line else f"price table {path}"
            raise SettingsError(f"{where}: {first.field + ': ' if first.field else ''}{first.message}")
    try:
        document = YAML().load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"price table {source}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"price table {source}: {error}") from None
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = (error.problem if isinstance(error, MarkedYAMLError) else None) or "is not YAML"
        raise SettingsError(f"{source}{line}: {problem.splitlines()[0]}") from None
    return _Reader(str(source)).prices(document)


class _Reader:
    """Turns a YAML document into prices; every error names the file, the line and the field."""

    def __init__(self, source: str) -> None:
        self._source = source

    def prices(self, document: Any) -> Prices:
        if not isinstance(document, CommentedMap):
            raise SettingsError(f"{self._source}: must be a mapping with `as_of` and `models`")
        self._only(document, ("as_of", "models"), "")
        models = document.get("models")
        if not isinstance(models, CommentedMap) or not models:
            raise self._error(document, "models", "models", "must list at least one model, such as `my-model: {...}`")
        return Prices(
            as_of=self._day(document),
            models={str(name): self._price(models, name, f"models.{name}") for name in models},
        )

    def _day(self, document: CommentedMap) -> date:
        value = document.get("as_of")
        if isinstance(value, date):
            return value
        try:
            return date.fromisoformat(value)
        except (TypeError, ValueError):
            problem = 'must be the day of the prices, such as "2026-01-31"'
            raise self._error(document, "as_of", "as_of", problem) from None

    def _price(self, models: CommentedMap, name: Any, field: str) -> Price:
        entry = models[name]
        if not isinstance(entry, CommentedMap):
            raise self._error(models, name, field, "must be a mapping, such as `{prompt: 0.25, completion: 2.00}`")
        self._only(entry, _FIELDS, f"{field}.")
        for required in ("prompt", "completion"):
            if required not in entry:
                raise self._error(models, name, f"{field}.{required}", "is missing: give USD per million tokens")
        return Price(**{key: self._number(entry, key, f"{field}.{key}") for key in entry})

    def _number(self, entry: CommentedMap, key: str, field: str) -> float:
        value = entry[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise self._error(entry, key, field, f"{value!r} is not a number of USD per million tokens, 0 or above")
        return float(value)

    def _only(self, mapping: CommentedMap, known: tuple[str, ...], prefix: str) -> None:
        for key in mapping:
            if key not in known:
                raise self._error(mapping, key, f"{prefix}{key}", f"is not known: {suggestion(str(key), known)}")

    def _error(self, mapping: CommentedMap, key: Any, field: str, problem: str) -> SettingsError:
        line = mapping.lc.data[key][0] if key in (mapping.lc.data or {}) else mapping.lc.line
        return SettingsError(f"{self._source}:{line + 1}: {field}: {problem}")
