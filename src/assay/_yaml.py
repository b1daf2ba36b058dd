"""YAML that people write, read so that every mistake can be told with its line.

ruamel.yaml's event stream becomes a tree of nodes that know where they stand and how they were written; nothing is
constructed, so no tag, alias or merge key does anything. `check` holds a tree against a JSON Schema and finds all its
mistakes at once. Whatever a file holds, the outcome is a tree or mistakes, in bounded time.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 100_000
#: A file nested deeper is an attack or an accident.
MAX_DEPTH = 20
#: As many mistakes of one file as anyone mends in one go.
MAX_MISTAKES = 50

_TRUTH = {"true": True, "false": False}
#: What YAML 1.1 readers take for booleans beside these.
_TRAP_BOOLEANS = {"yes", "no", "on", "off", "y", "n"}
_NULLS = {"", "~", "null"}
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
#: What some reader or other takes for a number: octal, hexadecimal, 1_000, 1:30, .5, +1, .inf, .nan
_NUMBER_LIKE = re.compile(
    r"[-+]?(0x[0-9a-f_]+|0o?[0-9_]+|0b[01_]+|[0-9][0-9_:]*\.?[0-9_]*|\.[0-9_]+)(e[-+]?[0-9]+)?", re.I
)
_NOT_FINITE = re.compile(r"[-+]?\.?(inf|nan|infinity)", re.I)
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?")
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Kind = Literal["string", "number", "boolean", "null", "date", "array", "object", "refused"]


class Mistake(NamedTuple):
    """What is wrong, where, and the mend; `line` is 1-based, `field` a dotted path."""

    line: int | None
    field: str | None
    message: str


@dataclass(slots=True, kw_only=True)
class Node:
    """A value of the file. `written` is a scalar as it stands there; `refused` ones have been reported already."""

    kind: Kind
    line: int
    value: Any = None
    written: str = ""

    def get(self, key: str) -> Node | None:
        """The member of an object, or None."""
        return self.value.get(key) if self.kind == "object" else None

    def plain(self) -> Any:
        """The value as Python has it."""
        if self.kind == "object":
            return {key: node.plain() for key, node in self.value.items()}
        if self.kind == "array":
            return [node.plain() for node in self.value]
        return self.value


def read(path: Path) -> tuple[Node | None, list[Mistake]]:
    """The tree of a file, or None, and what is wrong with its YAML. Reads no more than MAX_BYTES."""
    try:
        if not path.is_file():
            return None, [Mistake(None, None, "is not a file" if path.exists() else "does not exist")]
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        return None, [Mistake(None, None, f"cannot be read: {getattr(error, 'strerror', None) or error}")]
    if len(raw) > MAX_BYTES:
        return None, [Mistake(None, None, f"is larger than {MAX_BYTES:,} bytes: keep data out of it")]
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return None, [Mistake(line, None, f"is not UTF-8 (byte 0x{raw[error.start]:02x}): save it as UTF-8")]
    return parse(text)


def parse(text: str) -> tuple[Node | None, list[Mistake]]:
    """The tree of one YAML document, or None, and its mistakes; see `read`."""
    control = _CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        return None, [Mistake(line, None, f"holds the control character {control[0]!a}: is it a text file?")]
    builder = _Builder()
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.take(event)
    except _TooDeepError as error:
        return None, [Mistake(error.line, None, f"is nested deeper than {MAX_DEPTH} levels")]
    except MarkedYAMLError as error:
        return None, [*builder.mistakes, _syntax(error)]
    # ruamel.yaml lets these through for escapes beyond Unicode and the like.
    except (YAMLError, ValueError, OverflowError) as error:
        return None, [*builder.mistakes, Mistake(None, None, f"is not YAML: {_one_line(error)}")]
    if builder.root is None or builder.root.kind == "null":
        return None, [*builder.mistakes, Mistake(None, None, "is empty")]
    return builder.root, builder.mistakes


class _TooDeepError(Exception):
    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class _Builder:
    """Builds nodes from events, without recursion; what is refused is noted and replaced by a refused node."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.mistakes: list[Mistake] = []
        self._open: list[Node] = []
        self._keys: list[Node | None] = []
        self._documents = 0

    def take(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if isinstance(event, DocumentStartEvent):
            self._documents += 1
            if self._documents == 2:
                self._note(line, "a second document starts here: one rubric a file")
        elif isinstance(event, SequenceEndEvent | MappingEndEvent):
            self._open.pop()
            self._keys.pop()
        elif isinstance(event, AliasEvent):
            self._note(line, f"aliases (*{event.anchor}) are not used in these files: write the value out")
            self._add(Node(kind="refused", line=line))
        elif isinstance(event, ScalarEvent):
            self._add(self._tagged(event, line) or _scalar(event, line))
        elif isinstance(event, SequenceStartEvent | MappingStartEvent):
            self._start(event, line)

    def _start(self, event: Any, line: int) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise _TooDeepError(line)
        is_list = isinstance(event, SequenceStartEvent)
        node = Node(kind="array", line=line, value=[]) if is_list else Node(kind="object", line=line, value={})
        refused = self._tagged(event, line)
        self._add(refused or node)
        # The inside of what is refused is read all the same, for its own mistakes.
        self._open.append(node)
        self._keys.append(None)

    def _tagged(self, event: Any, line: int) -> Node | None:
        if event.tag is None:
            return None
        self._note(line, f"tags ({event.tag}) are not used in these files: quote a text, remove the tag")
        return Node(kind="refused", line=line)

    def _note(self, line: int, message: str) -> None:
        if len(self.mistakes) < MAX_MISTAKES:
            self.mistakes.append(Mistake(line, None, message))

    def _add(self, node: Node) -> None:
        if self._documents > 1:
            return
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if parent.kind == "array":
            parent.value.append(node)
            return
        key = self._keys[-1]
        if key is None:
            self._keys[-1] = node
            return
        self._keys[-1] = None
        self._put(parent, key, node)

    def _put(self, parent: Node, key: Node, node: Node) -> None:
        if key.kind in ("array", "object", "refused"):
            if key.kind != "refused":
                self._note(key.line, "a key must be a plain word")
        elif key.written == "<<":
            self._note(key.line, "merge keys (<<) are not used in these files: write the fields out")
        elif key.written in parent.value:
            first = parent.value[key.written].line
            self._note(key.line, f"`{key.written[:60]}` stands here twice (first on line {first}): keep one")
        else:
            # A mistake in a value is best shown where its key stands.
            node.line = key.line
            parent.value[key.written] = node


def _scalar(event: Any, line: int) -> Node:
    text: str = event.value
    if event.style is not None:
        return Node(kind="string", line=line, value=text, written=text)
    folded = text.lower()
    if folded in _NULLS:
        return Node(kind="null", line=line, written=text)
    if folded in _TRUTH:
        return Node(kind="boolean", line=line, value=_TRUTH[folded], written=text)
    if folded in _TRAP_BOOLEANS:
        return Node(kind="boolean", line=line, written=text)
    if len(text) <= 40 and _DECIMAL.fullmatch(text):
        number = float(text)
        whole = number.is_integer() and not set(text) & set(".eE")
        return Node(kind="number", line=line, value=int(text) if whole else number, written=text)
    if _DATE.fullmatch(text):
        return Node(kind="date", line=line, written=text)
    if _NUMBER_LIKE.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        return Node(kind="number", line=line, value=math.nan, written=text)
    return Node(kind="string", line=line, value=text, written=text)


def _syntax(error: MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    problem = " ".join(str(error.problem or error.context or "").split())
    if "'\\t'" in problem:
        problem = "a tab: indent with spaces"
    elif "mapping values are not allowed" in problem:
        problem = "a `:` where no field can start: quote the text, or write it as a block after `|`"
    return Mistake(mark.line + 1 if mark else None, None, f"is not YAML: {problem[:200]}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# Holding a tree against a schema. Of JSON Schema: type, const, enum, pattern (with patternErrorMessage), minLength,
# maxLength, minimum, maximum, exclusiveMinimum, exclusiveMaximum, items, minItems, maxItems, uniqueItems, properties,
# required, additionalProperties false, and oneOf as a choice by the constant in the property `type`.


def check(node: Node, schema: Mapping[str, Any], field: str = "") -> Iterator[Mistake]:
    """Every mistake of the tree against the schema; recursion is bounded by MAX_DEPTH."""
    if node.kind == "refused":
        return
    if "oneOf" in schema:
        yield from _check_choice(node, schema["oneOf"], field)
        return
    wanted = schema["type"]
    problem = _wrong_kind(node, wanted, schema)
    if problem:
        yield Mistake(node.line, field or None, problem)
    elif wanted == "object":
        yield from _check_object(node, schema, field)
    elif wanted == "array":
        yield from _check_array(node, schema, field)
    else:
        problem = _wrong_text(node.value, schema) if wanted == "string" else _wrong_number(node.value, schema)
        if problem:
            yield Mistake(node.line, field or None, problem)


def _wrong_kind(node: Node, wanted: str, schema: Mapping[str, Any]) -> str | None:
    if node.kind == "null":
        return f"is empty: {_mend(schema)}, or remove the line"
    if wanted == "string":
        return _wrong_string_kind(node)
    if wanted in ("number", "integer"):
        if node.kind == "number" and not math.isfinite(node.value):
            return f"{node.written} is not a plain decimal number: {_mend(schema)}"
        if node.kind != "number" or (wanted == "integer" and not isinstance(node.value, int)):
            return f"must be {'a whole number' if wanted == 'integer' else 'a number'}, not {_named(node)}: {_mend(schema)}"
        return None
    if wanted == "boolean":
        if node.kind == "boolean" and node.value is not None:
            return None
        return f"must be true or false, not {_named(node)}"
    if node.kind != wanted:
        name = {"object": "fields (`key: value` lines)", "array": "a list"}[wanted]
        return f"must be {name}, not {_named(node)}"
    return None


def _wrong_string_kind(node: Node) -> str | None:
    if node.kind == "string":
        return "has half of a surrogate pair: write the character itself" if _broken(node.value) else None
    if node.kind in ("array", "object"):
        return f"must be text, not {_named(node)}"
    also = {"boolean": "a boolean", "number": "a number", "date": "a date"}[node.kind]
    return f'{node.written} without quotes is {also} to YAML readers: write "{node.written}"'


def _broken(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


def _named(node: Node) -> str:
    names = {
        "array": "a list",
        "object": "fields",
        "string": "the text",
        "boolean": "",
        "number": "",
        "date": "the date",
    }
    shown = "" if node.kind in ("array", "object") else f" {_cut(node.written)}"
    return f"{names[node.kind]}{shown}".strip()


def _cut(text: str) -> str:
    return ascii(text[:40])[1:-1] + ("…" if len(text) > 40 else "")


def _mend(schema: Mapping[str, Any]) -> str:
    example = schema.get("examples", [None])[0]
    return f"write, for example, {_shown(example)}" if example is not None else "give a value"


def _shown(example: object) -> str:
    return json.dumps(example, ensure_ascii=False)


def _wrong_text(text: str, schema: Mapping[str, Any]) -> str | None:
    if "enum" in schema or "const" in schema:
        known = schema.get("enum", [schema.get("const")])
        return None if text in known else f"{_cut(text)} is not known: {_suggest(text, known)}"
    if not text.strip() and schema.get("minLength", 0) > 0:
        return f"is empty: {_mend(schema)}"
    longest = schema.get("maxLength", math.inf)
    if len(text) > longest:
        return f"has {len(text):,} characters, more than {longest:,}: shorten it"
    if "pattern" in schema and not re.search(schema["pattern"], text):
        return f"{_cut(text)} will not do: {schema.get('patternErrorMessage', schema['pattern'])}"
    return None


def _wrong_number(number: float, schema: Mapping[str, Any]) -> str | None:
    bounds = {
        "minimum": (lambda bound: number >= bound, "at least"),
        "maximum": (lambda bound: number <= bound, "at most"),
        "exclusiveMinimum": (lambda bound: number > bound, "above"),
        "exclusiveMaximum": (lambda bound: number < bound, "below"),
    }
    present = [(holds, words, schema[key]) for key, (holds, words) in bounds.items() if key in schema]
    if all(holds(bound) for holds, _, bound in present):
        return None
    return f"{number} is out of range: it must be " + " and ".join(f"{words} {bound}" for _, words, bound in present)


def _check_object(node: Node, schema: Mapping[str, Any], field: str) -> Iterator[Mistake]:
    properties = schema["properties"]
    for key, member in node.value.items():
        name = f"{field}.{key}" if field else key
        if key in properties:
            yield from check(member, properties[key], name)
        else:
            yield Mistake(member.line, _cut(name), f"is not a field: {_suggest(key, list(properties))}")
    for key in schema.get("required", ()):
        if key not in node.value:
            name = f"{field}.{key}" if field else key
            yield Mistake(node.line, name, f"is missing: {_mend(properties[key])}")


def _check_array(node: Node, schema: Mapping[str, Any], field: str) -> Iterator[Mistake]:
    count, least, most = len(node.value), schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if not least <= count <= most:
        bound = f"at least {least}" if count < least else f"at most {most}"
        yield Mistake(node.line, field or None, f"has {count} entries, {bound} are needed")
    seen: set[str] = set()
    for index, item in enumerate(node.value):
        name = f"{field}[{index}]"
        yield from check(item, schema["items"], name)
        if schema.get("uniqueItems") and item.kind == "string":
            if item.value in seen:
                yield Mistake(item.line, name, f"{_cut(item.value)} stands here twice: keep one")
            seen.add(item.value)


def _check_choice(node: Node, choices: Sequence[Mapping[str, Any]], field: str) -> Iterator[Mistake]:
    by_type = {choice["properties"]["type"]["const"]: choice for choice in choices}
    problem = _wrong_kind(node, "object", {})
    if problem:
        yield Mistake(node.line, field or None, problem)
        return
    chosen = node.get("type")
    if chosen is None:
        yield Mistake(node.line, f"{field}.type", f"is missing: one of {', '.join(by_type)}")
    elif chosen.kind == "string" and chosen.value in by_type:
        yield from check(node, by_type[chosen.value], field)
    elif chosen.kind != "refused":
        yield Mistake(
            chosen.line, f"{field}.type", f"{_named(chosen)} is not known: {_suggest(chosen.written, list(by_type))}"
        )


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word[:60].lower(), known, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
