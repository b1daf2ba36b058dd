"""Texts in values of any type, size and depth. Nothing here raises because of a value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from assay.spans._span import Span

#: Longer JSON in one attribute stays text.
MOST_JSON: Final = 2_000_000
MOST_MESSAGES: Final = 500
#: How deep, and how many values, of a structure are turned into text.
_MOST_DEPTH: Final = 24
_MOST_VALUES: Final = 50_000
_TEXT_KEYS: Final = ("content", "text", "output", "answer", "result", "response", "output_text", "completion")


def first_text(line: Sequence[Span], *names: str) -> str | None:
    """The first of these attributes on the span, else on its nearest ancestor that has one."""
    found = (text for span in line if (text := text_of(span, *names)))
    return next((name for text in found if (name := short_text(text))), None)


def text_of(span: Span, *names: str) -> str | None:
    for name in names:
        value = span.attributes.get(name)
        if value is not None and (text := value if isinstance(value, str) else text_in(value)):
            return text
    return None


def short_text(value: object) -> str | None:
    """A short text or number as text; anything else is none."""
    if isinstance(value, str):
        return value[:500].replace("\0", "") or None  # more than that, or a NUL, would cost the whole record
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def read(value: object) -> Any:
    """The value, with JSON in texts read; a text that is no JSON stays as it is."""
    if isinstance(value, bytes | bytearray):
        value = bytes(value[:MOST_JSON]).decode("utf-8", "replace")
    if isinstance(value, str) and len(value) <= MOST_JSON and value.lstrip()[:1] in ("{", "[", '"'):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def text_in(value: object) -> str:
    """The text in a value: of a message or a completion what it says, of other structures their JSON."""
    if isinstance(value, str):
        return str.__str__(value)
    if value is None:
        return ""
    if isinstance(value, bytes | bytearray):
        return bytes(value[:MOST_JSON]).decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return _said(value) or json_of(value)
    if isinstance(value, Sequence):
        return _all_said(value) or json_of(value)
    return json_of(value)


def _said(value: Mapping[Any, Any], depth: int = 0) -> str:
    """What a completion, a message or a result in one of the usual shapes says; empty for other shapes."""
    if depth > 6:
        return ""
    for key in ("choices", "generations", "messages", "parts"):
        inner = value.get(key)
        while isinstance(inner, Sequence) and not isinstance(inner, str | bytes) and inner and depth < 6:
            depth += 1
            inner = inner[-1] if key == "messages" else inner[0]
        if isinstance(inner, Mapping):
            return _said(inner, depth + 1)
    for key in ("message", "kwargs", *_TEXT_KEYS):
        inner = value.get(key)
        if isinstance(inner, str) and inner:
            return inner
        if isinstance(inner, Mapping) and (text := _said(inner, depth + 1)):
            return text
        if isinstance(inner, Sequence) and not isinstance(inner, str | bytes) and (text := _all_said(inner)):
            return text
    return ""


def _all_said(value: Sequence[Any]) -> str:
    """The text of parts `{"type": "text", ...}`; empty when it is another list."""
    texts = []
    for part in value[:MOST_MESSAGES]:
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "output_text", "input_text"):
            return ""
        texts.append(_string_or_empty(part.get("text", part.get("content"))))
    return "\n".join(text for text in texts if text)


def _string_or_empty(value: object) -> str:
    return value if isinstance(value, str) else ""


def json_of(value: object) -> str:
    """JSON of a structure, cut to a depth and a number of values; cycles end at that depth."""
    left = [_MOST_VALUES]
    return json.dumps(_bounded(value, 0, left), ensure_ascii=False)


def _bounded(value: object, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if value is None or isinstance(value, bool | int | str):
        return str.__str__(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= _MOST_DEPTH or left[0] <= 0:
        return "..."
    if isinstance(value, Mapping):
        items: dict[str, Any] = {}
        for key, item in value.items():
            if left[0] <= 0:
                break
            items[str(key)[:500]] = _bounded(item, depth + 1, left)
        return items
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        found = []
        for item in value:
            if left[0] <= 0:
                break
            found.append(_bounded(item, depth + 1, left))
        return found
    return f"[{type(value).__name__}]"
