"""YAML that people write, read so that every mistake can be told with its line.

ruamel.yaml's event stream becomes a tree of nodes that know where they stand and how they were written. Nothing is
constructed, so no tag, alias or merge key does anything. `check` holds a tree against a JSON Schema and finds all its
mistakes at once. Whatever a file holds, the outcome is a tree or mistakes, within seconds.
"""

from __future__ import annotations

import json
import math
import re
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

from assay.files import open_file
from assay.spelling import closest, suggestion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MAX_BYTES = 100_000
#: A file that is nested deeper is an accident or an attack.
MAX_DEPTH = 20

_BOOLEANS = {"true": True, "false": False}
#: Booleans of YAML 1.1, which many readers still speak.
_TRAPS = frozenset({"yes", "no", "on", "off", "y", "n"})
_NULLS = frozenset({"", "~", "null"})
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
#: What some reader or other takes for a number: 0x1F, 0o17, 010, 1_000, 1:30, .5, +1, .inf, .nan
_NUMBER_LIKE = re.compile(
    r"[-+]?(0x[0-9a-f_]+|0o[0-9_]+|0b[01_]+|[0-9][0-9_:]*\.?[0-9_]*(e[-+]?[0-9]+)?|\.[0-9_]+(e[-+]?[0-9]+)?|\.?(inf|nan))",
    re.IGNORECASE,
)
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ][-+:.Zz0-9 ]*)?")
#: No number or date is longer, and the patterns above take quadratic time.
_LONGEST_NUMBER = 60
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CREDENTIALS = re.compile(r"//[^/@\s]*@")
_SURROGATE = re.compile("[\ud800-\udfff]")

Kind = Literal["string", "number", "boolean", "null", "date", "array", "object", "refused"]


class Mistake(NamedTuple):
    """What is wrong, where, and the mend; `line` is 1-based, `field` a dotted path."""

    line: int | None
    field: str | None
    message: str


@dataclass(slots=True, kw_only=True)
class Node:
    """A value of the file.

    `value` is a str, int, float, bool, None, list of nodes or dict of nodes by key; NaN is a number that is not
    written plainly, None a boolean written `yes` or `no`. `written` is a scalar as it stands in the file. What is
    `refused` has been reported already.
    """

    kind: Kind
    line: int
    #: dotted path, empty for the whole
    field: str
    value: Any = None
    written: str = ""

    def get(self, key: str) -> Node | None:
        """The member of an object; None where there is none."""
        node: Node | None = self.value.get(key) if self.kind == "object" else None
        return node

    def plain(self) -> Any:
        """The value as JSON has it."""
        if self.kind == "object":
            return {key: node.plain() for key, node in self.value.items()}
        if self.kind == "array":
            return [node.plain() for node in self.value]
        return self.value


def read(path: Path, what: str = "rubric", most: int = MAX_BYTES) -> tuple[Node | None, list[Mistake]]:
    """The tree of a file that holds a `what`, or None, and what is wrong with its YAML. Reads at most `most` bytes."""
    try:
        if not path.is_file():
            return None, [Mistake(None, None, "is not a file" if path.exists() else "does not exist: check the path")]
        with open_file(path) as file:
            raw = file.read(most + 1)
    except OSError as error:
        return None, [Mistake(None, None, f"cannot be read: {error.strerror}")]
    if len(raw) > most:
        return None, [Mistake(None, None, f"is larger than {most:,} bytes: no {what} needs that much, shorten it")]
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return None, [Mistake(line, None, f"is not UTF-8 (byte 0x{raw[error.start]:02x}): save it as UTF-8")]
    return parse(text, what)


def parse(text: str, what: str = "rubric") -> tuple[Node | None, list[Mistake]]:
    """The tree of one YAML document, or None, and its mistakes; see `read`."""
    control = _CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        return None, [Mistake(line, None, f"holds the control character {control[0]!a}: remove it")]
    builder = _Builder(what)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.take(event)
    except _TooDeepError as error:
        builder.note(error.line, f"is nested deeper than {MAX_DEPTH} levels: a {what} needs four")
    except MarkedYAMLError as error:
        builder.note(*_syntax(error))
    except (YAMLError, ValueError, OverflowError, AssertionError) as error:
        # ruamel.yaml lets the latter three through, for numbers in escapes and directives.
        builder.note(None, f"is not YAML: {' '.join(str(error).split())[:200]}")
    else:
        if builder.root is not None and builder.root.kind != "null":
            return builder.root, builder.mistakes
        builder.note(None, f"is empty: write the fields of a {what}")
    return None, builder.mistakes


class _TooDeepError(Exception):
    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class _Builder:
    """Builds the tree from events, without recursion; what is refused is noted and stands in it as refused."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.root: Node | None = None
        self.mistakes: list[Mistake] = []
        #: the collections that are open, and of each the key that waits for its value
        self._open: list[tuple[Node, list[Node]]] = []
        self._documents = 0

    def note(self, line: int | None, message: str, field: str = "") -> None:
        self.mistakes.append(Mistake(line, field or None, message))

    def take(self, event: Any) -> None:
        line, field = event.start_mark.line + 1, self._field()
        if isinstance(event, DocumentStartEvent):
            self._documents += 1
            if self._documents == 2:
                self.note(line, f"a second document starts here: write one {self._what} a file")
        elif isinstance(event, SequenceEndEvent | MappingEndEvent):
            self._open.pop()
        elif isinstance(event, AliasEvent):
            self.note(line, f"aliases (*{shown(event.anchor)}) are not used here: write the value out", field)
            self._add(Node(kind="refused", line=line, field=field))
        elif isinstance(event, ScalarEvent):
            kind, value = _resolve(event.value) if event.style is None else ("string", event.value)
            node = Node(kind=kind, line=line, field=field, value=value, written=event.value)
            self._add(self._tagged(event, node))
        elif isinstance(event, SequenceStartEvent | MappingStartEvent):
            self._start(event, line, field)

    def _start(self, event: SequenceStartEvent | MappingStartEvent, line: int, field: str) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise _TooDeepError(line)
        if isinstance(event, SequenceStartEvent):
            node = Node(kind="array", line=line, field=field, value=[])
        else:
            node = Node(kind="object", line=line, field=field, value={})
        # The inside of what is refused is read all the same, for its own mistakes.
        self._add(self._tagged(event, node))
        self._open.append((node, []))

    def _tagged(self, event: Any, node: Node) -> Node:
        if event.tag is None:
            return node
        message = f"tags ({shown(str(event.tag))}) are not used here: remove it; quotes make a text"
        self.note(node.line, message, node.field)
        return Node(kind="refused", line=node.line, field=node.field)

    def _field(self) -> str:
        """Path of what comes next."""
        if not self._open:
            return ""
        parent, waiting = self._open[-1]
        if parent.kind == "array":
            return f"{parent.field}[{len(parent.value)}]"
        return _join(parent.field, waiting[0].written) if waiting else parent.field

    def _add(self, node: Node) -> None:
        if self._documents > 1:
            return
        if not self._open:
            self.root = node
            return
        parent, waiting = self._open[-1]
        if parent.kind == "array":
            parent.value.append(node)
        elif waiting:
            self._put(parent, waiting.pop(), node)
        else:
            waiting.append(node)

    def _put(self, parent: Node, key: Node, node: Node) -> None:
        if key.kind in ("array", "object"):
            self.note(key.line, "a key is a word: write `key: value`", parent.field)
        elif key.written == "<<":
            self.note(key.line, "merge keys (<<) are not used here: write the fields out", parent.field)
        elif key.written in parent.value:
            first = parent.value[key.written].line
            self.note(key.line, f"stands on line {first} already: keep one of the two", node.field)
        elif key.kind != "refused":
            # A mistake in a value is best shown where its key stands.
            node.line = key.line
            parent.value[key.written] = node


def _join(field: str, key: str) -> str:
    key = shown(key)
    return f"{field}.{key}" if field else key


def _resolve(text: str) -> tuple[Kind, Any]:
    """What a scalar without quotes is: what any YAML reader would make of it counts."""
    word = text.lower() if len(text) <= _LONGEST_NUMBER else text
    if word in _NULLS:
        return "null", None
    if word in _BOOLEANS or word in _TRAPS:
        return "boolean", _BOOLEANS.get(word)
    if len(text) > _LONGEST_NUMBER:
        return "string", text
    if _DECIMAL.fullmatch(text):
        return "number", float(text) if set(text) & set(".eE") else int(text)
    if _DATE.fullmatch(text):
        return "date", None
    return ("number", math.nan) if _NUMBER_LIKE.fullmatch(text) else ("string", text)


def _syntax(error: MarkedYAMLError) -> tuple[int | None, str]:
    problem = " ".join(str(error.problem or error.context or "").split())
    if r"'\t'" in problem:
        mend = "a tab where spaces belong: indent with spaces"
    elif "mapping values are not allowed" in problem:
        mend = "a `:` where no field can start: quote the text, or write it as a block after `|`"
    elif "could not find expected ':'" in problem:
        mend = "a line that is no field: is its `:` missing, or its indentation wrong?"
    else:
        mend = f"{problem[:200]}: look for an open quote or bracket, or a wrong indentation"
    # Quotes, brackets and keys are best mended where they begin, the rest where reading stopped.
    context = str(error.context)
    begins = context.startswith("while parsing a flow") or "scalar" in context or "key" in context
    mark = (error.context_mark if begins else None) or error.problem_mark or error.context_mark
    return (mark.line + 1 if mark else None), f"is not YAML: {mend}"


# Holding a tree against a schema. Of JSON Schema: type, const, enum, pattern (with patternErrorMessage), minLength,
# maxLength, minimum, maximum, exclusiveMinimum, exclusiveMaximum, items, minItems, maxItems, uniqueItems, properties,
# required, additionalProperties false, and oneOf as a choice by the constant in the property `type`.


def check(node: Node, schema: Mapping[str, Any]) -> Iterator[Mistake]:
    """Every mistake of the tree against the schema; the tree is no deeper than MAX_DEPTH."""
    if node.kind == "refused":
        return
    if "oneOf" in schema:
        yield from _check_choice(node, schema)
        return
    problem = _wrong_kind(node, schema)
    if problem is None and node.kind == "string":
        problem = _wrong_text(node.value, schema)
    elif problem is None and node.kind == "number":
        problem = _wrong_number(node.value, schema)
    if problem is not None:
        yield Mistake(node.line, node.field or None, problem)
    elif node.kind == "object":
        yield from _check_object(node, schema)
    elif node.kind == "array":
        yield from _check_array(node, schema)


def _wrong_kind(node: Node, schema: Mapping[str, Any]) -> str | None:
    wanted = schema["type"]
    if node.kind == "null":
        return f"is empty: {_mend(schema)}"
    if wanted == "string":
        if node.kind in ("boolean", "number", "date"):
            return f'{shown(node.written)} without quotes is a {node.kind} to YAML readers: write "{node.written}"'
        if node.kind == "string" and _SURROGATE.search(node.value):
            return "has half of a surrogate pair: write the character itself"
    elif wanted in ("number", "integer") and node.kind == "number":
        if not math.isfinite(node.value):
            return f"{node.written} is not a plain decimal number: {_mend(schema)}"
        wrong = wanted == "integer" and not isinstance(node.value, int)
        return f"must be a whole number, not {node.written}: {_mend(schema)}" if wrong else None
    elif wanted == "boolean" and node.kind == "boolean" and node.value is None:
        return f"{node.written} is not true or false to every YAML reader: write {_mend_boolean(node.written)}"
    return None if node.kind == wanted else f"must be {_KINDS[wanted]}, not {_named(node)}: {_mend(schema)}"


_KINDS = {
    "string": "a text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "array": "a list",
    "object": "fields (`key: value` lines)",
}


def _named(node: Node) -> str:
    """What stands there, for a message."""
    names = {"array": "a list", "object": "fields", "string": "the text ", "date": "the date "}
    return names.get(node.kind, "") + shown(node.written)


def shown(text: str) -> str:
    """A text as a message shows it: printable, never long, and without the password of a URL."""
    text = _CREDENTIALS.sub("//***@", text[:1000])
    return repr(text[:40])[1:-1] + ("…" if len(text) > 40 else "")


def _mend(schema: Mapping[str, Any]) -> str:
    if "oneOf" in schema:
        return f"give it a type: {_or(_choices(schema))}"
    if "examples" not in schema and "default" not in schema:
        return "write its fields, each `key: value`"
    example = schema.get("examples", [schema.get("default")])[0]
    return f"write, for example, {json.dumps(example, ensure_ascii=False)}"


def _mend_boolean(written: str) -> str:
    return "true" if written.lower() in ("yes", "on", "y") else "false"


def _or(words: Sequence[str] | Mapping[str, Any]) -> str:
    *rest, last = words
    return f"{', '.join(rest)} or {last}" if rest else last


def _wrong_text(text: str, schema: Mapping[str, Any]) -> str | None:
    known = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if known is not None:
        return None if text in known else f"{shown(text)} is not known: {suggestion(text.lower(), known)}"
    if not text.strip() and schema.get("minLength"):
        return f"is empty: {_mend(schema)}"
    longest = schema.get("maxLength", math.inf)
    if len(text) > longest:
        return f"has {len(text):,} characters, more than {longest:,}: shorten it"
    if "pattern" in schema and not re.fullmatch(schema["pattern"], text):
        return f"{shown(text) or 'an empty text'} will not do: {schema['patternErrorMessage']}"
    return None


def _wrong_number(number: float, schema: Mapping[str, Any]) -> str | None:
    bounds = [
        ("at least", "minimum", number >= schema.get("minimum", -math.inf)),
        ("above", "exclusiveMinimum", number > schema.get("exclusiveMinimum", -math.inf)),
        ("at most", "maximum", number <= schema.get("maximum", math.inf)),
        ("below", "exclusiveMaximum", number < schema.get("exclusiveMaximum", math.inf)),
    ]
    if all(holds for _, _, holds in bounds):
        return None
    range_ = " and ".join(f"{words} {schema[key]}" for words, key, _ in bounds if key in schema)
    return f"{number} is out of range: it must be {range_}"


def _check_object(node: Node, schema: Mapping[str, Any]) -> Iterator[Mistake]:
    properties = schema["properties"]
    meant = set()
    for key, member in node.value.items():
        if key in properties:
            yield from check(member, properties[key])
        else:
            meant.add(closest(key.lower(), properties))
            yield Mistake(member.line, member.field, f"is not a field: {suggestion(key.lower(), properties)}")
    for key in schema["required"]:
        # Under another spelling it is there, and told of already.
        if key not in node.value and key not in meant:
            yield Mistake(node.line, _join(node.field, key), f"is missing: {_mend(properties[key])}")


def _check_array(node: Node, schema: Mapping[str, Any]) -> Iterator[Mistake]:
    count, least, most = len(node.value), schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if not least <= count <= most:
        bound = f"at least {least}, add some" if count < least else f"at most {most}, remove some"
        yield Mistake(node.line, node.field, f"has {count} entries: there must be {bound}")
    seen: set[str] = set()
    for item in node.value:
        yield from check(item, schema["items"])
        if schema.get("uniqueItems") and item.kind == "string":
            if item.value in seen:
                yield Mistake(item.line, item.field, f"{shown(item.value)} stands here twice: keep one")
            seen.add(item.value)


def _check_choice(node: Node, schema: Mapping[str, Any]) -> Iterator[Mistake]:
    choices = _choices(schema)
    chosen = node.get("type")
    if node.kind != "object":
        message = f"must be {_KINDS['object']}, not {_named(node) or 'empty'}: {_mend(schema)}"
        yield Mistake(node.line, node.field, message)
    elif chosen is None:
        yield Mistake(node.line, _join(node.field, "type"), f"is missing: write {_or(choices)}")
    elif chosen.kind == "string" and chosen.value in choices:
        yield from check(node, choices[chosen.value])
    elif chosen.kind != "refused":
        message = f"{_named(chosen) or 'an empty type'} is not known: {suggestion(chosen.written.lower(), choices)}"
        yield Mistake(chosen.line, chosen.field, message)


def _choices(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {choice["properties"]["type"]["const"]: choice for choice in schema["oneOf"]}
