"""What a fake model writes: an instance of a JSON Schema, or of the shape that assay's prompt shows."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping
from typing import Any

from assay.judges._prompt import REPLY

_GOOD = ("pass", "supported", "yes")
_BAD = ("fail", "unsupported", "no")


def resolved(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The schema with every `$ref` to a definition replaced by what it names; they may not be recursive."""
    if isinstance(schema, list):
        return [resolved(part, definitions) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    if "$ref" in schema:
        return resolved(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: resolved(part, definitions) for name, part in schema.items() if name != "$defs"}


def vector(text: str) -> list[float]:
    """Of words: texts that share many of them lie close together."""
    counts = [0.0] * 64
    for word in re.findall(r"\w+", text.lower()) or [""]:
        counts[hashlib.sha256(word.encode()).digest()[0] % 64] += 1.0
    return counts


def walk(schema: Mapping[str, Any], draw: random.Random, good: bool | None, quote: str) -> Any:
    """An instance of the schema: the best grades, or the worst, or (None) any; what is a quote is this one."""
    if "enum" in schema:
        return _grade(list(schema["enum"]), draw, good)
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: quote if name == "quote" else walk(part, draw, good, quote) for name, part in properties.items()}
    if kind == "array":
        return [walk(schema["items"], draw, good, quote) for _ in range(max(1, schema.get("minItems", 1)))]
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    return draw.random() < 0.5 if kind == "boolean" else "synthetic text of a fake judge"


def _grade(choices: list[Any], draw: random.Random, good: bool | None) -> Any:
    if good is None:
        return draw.choice(choices)
    if all(isinstance(choice, int) for choice in choices):
        return max(choices) if good else min(choices)
    wanted = _GOOD if good else _BAD
    return next((choice for choice in choices if choice in wanted), choices[0 if good else -1])


def off_scale(value: Any, broken: float) -> Any:
    """Every number, and every grade word, replaced by what no scale has."""
    if isinstance(value, dict):
        return {
            key: item if key in ("explanation", "quote") else off_scale(item, broken) for key, item in value.items()
        }
    if isinstance(value, list):
        return [off_scale(item, broken) for item in value]
    return broken if isinstance(value, int) or value in (*_GOOD, *_BAD, "na", "contradicted") else value


def quotable(text: str) -> str:
    """A few words of the first context of a prompt, else a phrase that no context has."""
    found = re.search(r"^=== (\w+) context 1 ===\n(.*?)\n=== \1 ", text, re.MULTILINE | re.DOTALL)
    return " ".join(found[2].split()[:6]) if found else "no context to quote"


def shape_in(body: Mapping[str, Any]) -> Any:
    """JSON Schema of the reply, read from the shape that assay's prompt shows."""
    messages = body["messages"]
    for message in (messages[-1], messages[0]) if len(messages) > 2 else (messages[0],):
        _, found, rest = str(message["content"]).rpartition(REPLY)
        if found:
            return _Shape(rest.strip()).value()
    raise ValueError("the request has neither a schema nor the shape of a reply")


class _Shape:
    """Reads what `assay.judges._prompt.shape` writes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def value(self) -> dict[str, Any]:
        if self._take("{"):
            properties: dict[str, Any] = {}
            names: list[str] = []
            while not self._take("}"):
                names.append(str(self._literal()))
                if self._take(":"):
                    # Names without a type have that of the next.
                    properties |= dict.fromkeys(names, self.value())
                    names = []
                self._take(",")
            return {"type": "object", "properties": properties}
        if self._take("["):
            items = self.value()
            self._take(",...]")
            return {"type": "array", "items": items}
        for kind in ("string", "integer", "number", "boolean", "any"):
            if self._take(kind):
                return {"type": kind}
        choices = [self._literal()]
        while self._take("|"):
            choices.append(self._literal())
        return {"enum": choices}

    def _literal(self) -> Any:
        value, self._at = json.JSONDecoder().raw_decode(self._text, self._at)
        return value

    def _take(self, token: str) -> bool:
        found = self._text.startswith(token, self._at)
        self._at += len(token) if found else 0
        return found


def logprobs(content: str) -> dict[str, Any]:
    """Each token at 0.9, and beside each digit the one below it, at 0.1."""
    entries = []
    for token in re.findall(r"[A-Za-z_]+|[0-9]|\s+|[^\sA-Za-z_0-9]+", content):
        top = [{"token": token, "logprob": -0.105, "bytes": list(token.encode())}]
        if token.isdigit() and int(token):
            below = str(int(token) - 1)
            top.append({"token": below, "logprob": -2.303, "bytes": list(below.encode())})
        entries.append({**top[0], "top_logprobs": top})
    return {"content": entries}


def seeded(*parts: object) -> random.Random:
    """Draws that the parts alone decide."""
    # Not for secrets; hashed so that it is the same in every process.
    return random.Random(hashlib.sha256(repr(parts).encode()).digest())  # noqa: S311
