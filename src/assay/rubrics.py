"""Rubrics: what a judge is asked, as data. One YAML file a rubric, read strictly, identified by what it really asks.

`load_rubrics` reads files or directories, `check_rubrics` lists every mistake in them, `rubric_schema` is the JSON
Schema that editors complete files by. The scales are `assay.scales`'.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from assay import _yaml
from assay._yaml import Mistake, Node
from assay.errors import RubricError
from assay.records import Record
from assay.scales import MAX_CLAIMS, VERDICT_VERSION, Binary, Checklist, Claims, Item, Level, Ordinal, Scale

Dimension = Literal["faithfulness", "relevance", "safety", "completeness", "other"]
Ask = Literal["together", "alone"]

DIMENSIONS: tuple[Dimension, ...] = ("faithfulness", "relevance", "safety", "completeness", "other")
REQUIRABLE = ("input", "output", "contexts", "reference", "tool_events")


def _shipped() -> Path:
    packaged = Path(__file__).parent / "data" / "rubrics"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "rubrics"


#: Directory of the four shipped rubrics: package data, or `rubrics/` of a source checkout.
SHIPPED: Path = _shipped()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSpec:
    """The judge a rubric asks for; what is None is taken from the settings."""

    engine: Literal["openai", "rules", "lexical"] | None = None
    model: str | None = None
    base_url: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """One question to a judge: what to look at, the scale of the answer, and what passes."""

    name: str
    version: str
    instructions: str
    scale: Scale
    pass_threshold: float
    title: str = ""
    description: str = ""
    #: what the keyless judges know the rubric as
    dimension: Dimension = "other"
    #: fields a record must have; without them the rubric is not applicable
    requires: tuple[str, ...] = ()
    #: share of interactions that should pass, in (0, 1)
    objective: float | None = None
    #: in one call with the other rubrics of the same judge, or in a call of its own
    ask: Ask = "together"
    judge: JudgeSpec | None = None
    #: calibration file that belongs to it
    calibration: str | None = None
    #: the file it was read from
    path: Path | None = None

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of all that changes the question or the verdict, the scale's own wording included.

        Not in it: title, description, version, objective, calibration and path, which change no verdict, and the
        judge, which has a fingerprint of its own.
        """
        asked = {key: value for key, value in self.to_dict().items() if key in _HASHED}
        asked |= {"prompt": self.scale.prompt(), "schema": self.scale.schema(), "verdict_version": VERDICT_VERSION}
        canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def revision(self) -> str:
        """Version and hash in short, such as `2-1f3a09bc`: the value of the label `rubric_version`."""
        return f"{self.version}-{self.hash[:8]}"

    def missing(self, record: Record) -> str | None:
        """`missing_contexts` and the like when the record lacks what the rubric requires, else None."""
        return next((f"missing_{name}" for name in self.requires if not _present(record, name)), None)

    def to_dict(self) -> dict[str, Any]:
        """The rubric as its file writes it, defaults included, in the order of the documented fields."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _SCHEMA["properties"]}
        values["requires"] = list(self.requires)
        values["scale"] = self.scale.to_dict()
        if self.judge is not None:
            values["judge"] = {f.name: getattr(self.judge, f.name) for f in fields(JudgeSpec)}
        return values


def _present(record: Record, name: str) -> bool:
    if name == "contexts":
        return any(context.text.strip() for context in record.contexts)
    if name == "input" and not isinstance(record.input, str):
        return any(message.content.strip() for message in record.input)
    value = getattr(record, name)
    return bool(value.strip() if isinstance(value, str) else value)


class Change(NamedTuple):
    """A field in which two rubrics differ; None where one lacks it."""

    field: str
    old: object
    new: object
    #: whether a change of this field alone gives scores a new identity
    changes_hash: bool


def load_rubrics(paths: Sequence[Path] | None = None) -> list[Rubric]:
    """The rubrics of files, and of the `*.yaml` and `*.yml` files of directories (not below them); None: the shipped.

    Raises:
        RubricError: the first mistake found. `check_rubrics` lists them all.
    """
    rubrics, errors = _load(paths)
    if errors:
        raise errors[0]
    return rubrics


def check_rubrics(paths: Sequence[Path] | None = None) -> list[RubricError]:
    """Every mistake in the same files, in the order of files and lines, each with the mend in its message."""
    return _load(paths)[1]


def diff_rubrics(old: Rubric, new: Rubric) -> list[Change]:
    """The fields in which two rubrics differ, items and levels by their id and number instead of their place."""
    before, after = dict(_flat(old.to_dict())), dict(_flat(new.to_dict()))
    names = [*before, *(name for name in after if name not in before)]
    return [
        Change(name, before.get(name), after.get(name), re.split(r"[.\[]", name, maxsplit=1)[0] in _HASHED)
        for name in names
        if before.get(name) != after.get(name)
    ]


def _flat(value: object, field: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield from _flat(member, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for member in value:
            key = member.get("id", member.get("level"))
            rest = {name: part for name, part in member.items() if part is not key}
            yield from _flat(rest, f"{field}[{key}]")
    else:
        yield field, value


# Reading files.


def _load(paths: Sequence[Path] | None) -> tuple[list[Rubric], list[RubricError]]:
    rubrics: list[Rubric] = []
    errors: list[RubricError] = []
    named: dict[str, Path] = {}
    for path in [SHIPPED] if paths is None else paths:
        files = _files(path)
        if isinstance(files, RubricError):
            errors.append(files)
            continue
        for file in files:
            rubric, mistakes, name = _read(file)
            if name is not None and name.value in named and named[name.value] != file:
                first = named[name.value]
                mistakes.append(Mistake(name.line, "name", f"{name.value} is also the name in {first}: rename one"))
            elif name is not None:
                named[name.value] = file
            errors += [
                RubricError(m.message, path=file, line=m.line, field=m.field)
                for m in sorted(mistakes, key=lambda m: m.line or 0)
            ]
            if rubric is not None and not mistakes:
                rubrics.append(rubric)
    return rubrics, errors


def _files(path: Path) -> list[Path] | RubricError:
    try:
        if not path.is_dir():
            return [path]
        found = sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml") and file.is_file())
    except (OSError, ValueError) as error:
        return RubricError(f"cannot be read: {getattr(error, 'strerror', None) or error}", path=path)
    return found or RubricError("holds no .yaml file: name a rubric file, or the directory of some", path=path)


def _read(path: Path) -> tuple[Rubric | None, list[Mistake], Node | None]:
    """The rubric of a file or its mistakes, and the node of its name if that is a good one."""
    node, mistakes = _yaml.read(path)
    if node is None:
        return None, mistakes, None
    mistakes += _yaml.check(node, _SCHEMA)
    mistakes += _check_meaning(node)
    name = node.get("name")
    usable = name if name is not None and name.kind == "string" else None
    return (None if mistakes else _build(node.plain(), path)), mistakes[: _yaml.MAX_MISTAKES], usable


def _build(data: dict[str, Any], path: Path) -> Rubric:
    """The rubric of data that passed every check."""
    scale = _scale(data.pop("scale"))
    requires = tuple(data.pop("requires", ()))
    judge = JudgeSpec(**data.pop("judge")) if "judge" in data else None
    dimension = data.pop("dimension", data["name"] if data["name"] in DIMENSIONS else "other")
    for key in ("instructions", "title", "description"):
        data[key] = data.get(key, "").strip()
    data["pass_threshold"] = float(data["pass_threshold"])
    return Rubric(**data, scale=scale, requires=requires, judge=judge, dimension=dimension, path=path)


def _scale(data: dict[str, Any]) -> Scale:
    kind = data.pop("type")
    if kind == "binary":
        return Binary(**{key: text.strip() for key, text in data.items()})
    if kind == "ordinal":
        return Ordinal(levels=tuple(Level(level=e["level"], anchor=e["anchor"].strip()) for e in data["levels"]))
    if kind == "checklist":
        items = [Item(**(item | {"question": item["question"].strip()})) for item in data.pop("items")]
        return Checklist(items=tuple(items), **data)
    return Claims(**data)


# What a schema cannot say.

_PLACEHOLDER = re.compile(
    r"\{\{.{0,60}?\}\}|\{(input|output|contexts?|question|answer|response|reference|query)\}", re.I
)


def _check_meaning(node: Node) -> Iterator[Mistake]:
    instructions, scale, judge = node.get("instructions"), node.get("scale"), node.get("judge")
    if instructions is not None and instructions.kind == "string":
        slot = _PLACEHOLDER.search(instructions.value)
        if slot:
            yield Mistake(
                instructions.line,
                "instructions",
                f"{slot[0][:40]} is not filled in: the judge is given the whole record, so name its parts in words "
                "(input, output, context, reference)",
            )
    if scale is not None and scale.kind == "object":
        yield from _check_scale(node, scale)
    engine = judge.get("engine") if judge is not None else None
    if judge is not None and engine is not None and engine.value in ("rules", "lexical"):
        for key, member in judge.value.items():
            if key in ("model", "base_url", "temperature", "max_tokens"):
                yield Mistake(member.line, f"judge.{key}", f"the engine {engine.value} has none: remove the line")


def _check_scale(node: Node, scale: Node) -> Iterator[Mistake]:
    kind = scale.get("type")
    wanted = kind.value if kind is not None else None
    if wanted == "binary":
        yield from _check_labels(scale)
    elif wanted == "ordinal":
        yield from _check_levels(scale)
    elif wanted == "checklist":
        yield from _check_distinct(scale, "items", "id")
        yield from _check_distinct(scale, "items", "question")
    elif wanted == "claims":
        requires = node.get("requires")
        names = [item.value for item in requires.value] if requires is not None and requires.kind == "array" else []
        if "contexts" not in names:
            line = requires.line if requires is not None else scale.line
            yield Mistake(line, "requires", "a claims scale looks quotes up in the contexts: add `contexts`")


def _check_labels(scale: Node) -> Iterator[Mistake]:
    labels = []
    for key, default in (("pass_label", "pass"), ("fail_label", "fail")):
        node = scale.get(key)
        labels.append(default if node is None else str(node.value).strip())
    if labels[0].casefold() == labels[1].casefold():
        node = scale.get("fail_label") or scale.get("pass_label") or scale
        yield Mistake(node.line, "scale.fail_label", f"pass_label and fail_label are both {labels[0][:40]}: rename one")


def _check_levels(scale: Node) -> Iterator[Mistake]:
    yield from _check_distinct(scale, "levels", "anchor")
    levels = [(i, level) for i, level in _members(scale, "levels", "level") if isinstance(level.value, int)]
    for (_, before), (index, level) in pairwise(levels):
        if level.value <= before.value:
            yield Mistake(
                level.line,
                f"scale.levels[{index}].level",
                f"{level.value} comes after {before.value}: list each level once, from the lowest to the highest",
            )


def _check_distinct(scale: Node, key: str, member: str) -> Iterator[Mistake]:
    seen: dict[str, int] = {}
    for index, node in _members(scale, key, member):
        if node.kind == "string" and node.value.strip():
            first = seen.setdefault(node.value.strip(), node.line)
            if first != node.line:
                field = f"scale.{key}[{index}].{member}"
                yield Mistake(node.line, field, f"is the same as on line {first}: each {member} must differ")


def _members(scale: Node, key: str, member: str) -> Iterator[tuple[int, Node]]:
    entries = scale.get(key)
    for index, entry in enumerate(entries.value if entries is not None and entries.kind == "array" else []):
        node = entry.get(member)
        if node is not None:
            yield index, node


# The fields, in the order in which files and documentation give them.

_NAME = {
    "type": "string",
    "pattern": "^[a-z][a-z0-9_]{0,62}$",
    "patternErrorMessage": "use lower-case letters, digits and _, a letter first, at most 63",
}


def _prose(description: str, longest: int, example: str) -> dict[str, Any]:
    return {
        "type": "string",
        "minLength": 1,
        "maxLength": longest,
        "description": description,
        "examples": [example],
    }


def _label(word: str) -> dict[str, Any]:
    return {
        "type": "string",
        "pattern": r"^[^\s\"\\](.{0,38}[^\s\"\\])?$",
        "patternErrorMessage": "use 1 to 40 characters without quotes and backslashes",
        "default": word,
        "description": f"The word that the judge answers with for {word}. Quote it if it is yes, no, on or off.",
        "examples": [word],
    }


def _scale_schema(kind: str, description: str, required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "title": kind,
        "description": description,
        "properties": {"type": {"type": "string", "const": kind, "description": f"`{kind}`"}} | properties,
        "required": ["type", *required],
        "additionalProperties": False,
    }


def _entries(description: str, least: int, most: int, **properties: Any) -> dict[str, Any]:
    required = [key for key, schema in properties.items() if "default" not in schema]
    entry = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "array", "minItems": least, "maxItems": most, "items": entry, "description": description}


_SCALES = [
    _scale_schema(
        "binary",
        "Pass (1) or fail (0).",
        ["pass_when", "fail_when"],
        pass_when=_prose("When an output passes.", 2000, "It names the deadline that the context gives."),
        fail_when=_prose("When it fails.", 2000, "It names none, or another one."),
        pass_label=_label("pass"),
        fail_label=_label("fail"),
    ),
    _scale_schema(
        "ordinal",
        "Anchored whole levels; value = (level - lowest) / (highest - lowest). Few levels with clear anchors agree best "
        "with people.",
        ["levels"],
        levels=_entries(
            "Two levels or more, from the lowest to the highest; a higher level is a better output.",
            2,
            11,
            level={
                "type": "integer",
                "minimum": 0,
                "maximum": 10,
                "description": "The number that the judge answers with.",
                "examples": [1],
            },
            anchor=_prose("What an output on this level looks like.", 1000, "Answers another question."),
        ),
    ),
    _scale_schema(
        "checklist",
        "Yes/no questions in one call; value = weight of the yes / weight of the yes and no.",
        ["items"],
        items=_entries(
            "The questions, put so that yes is good. Three to seven work best.",
            1,
            20,
            id=_NAME
            | {
                "description": "Name of the item in verdicts. Quote it if it is yes, no, on or off.",
                "examples": ["greets"],
            },
            question=_prose("The question.", 1000, "Does it greet the user by name?"),
            weight={
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1000,
                "default": 1,
                "description": "How much the item counts against the others.",
                "examples": [1],
            },
        ),
        allow_na={
            "type": "boolean",
            "default": True,
            "description": "Whether `na` (does not apply) is an answer. An output with `na` everywhere has no score.",
        },
    ),
    _scale_schema(
        "claims",
        "Lists the claims of the output, each with a quote of its evidence; value = supported / claims. A quote that does "
        "not occur in the contexts supports nothing. Needs `contexts` in `requires`.",
        [],
        max_claims={
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_CLAIMS,
            "default": 20,
            "description": "As many claims as the judge is asked for at most.",
            "examples": [20],
        },
    ),
]

_JUDGE = {
    "type": "object",
    "description": "The judge of this rubric; what it leaves out is taken from the settings.",
    "properties": {
        "engine": {
            "type": "string",
            "enum": ["openai", "rules", "lexical"],
            "description": "`openai` (any OpenAI-compatible endpoint), `rules` or `lexical`.",
            "examples": ["openai"],
        },
        "model": _prose("Model to ask.", 200, "gpt-5-mini"),
        "base_url": {
            "type": "string",
            "pattern": r"^https?://[^\s@/]+(/[^\s@]*)?$",
            "patternErrorMessage": "write http(s)://host/path, without a user or password: keys belong in settings",
            "description": "Endpoint, up to and without `/chat/completions`.",
            "examples": ["http://localhost:11434/v1"],
        },
        "temperature": {
            "type": "number",
            "minimum": 0,
            "maximum": 2,
            "description": "Sampling temperature.",
            "examples": [0],
        },
        "max_tokens": {
            "type": "integer",
            "minimum": 1,
            "maximum": 1000000,
            "description": "Bound of one reply, in tokens.",
            "examples": [2000],
        },
    },
    "required": [],
    "additionalProperties": False,
}

_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "assay rubric",
    "description": "One question to a judge: what to look at, the scale of the answer, and what passes.",
    "type": "object",
    "properties": {
        "name": _NAME
        | {"description": "Name of the rubric; a label of its time series.", "examples": ["faithfulness"]},
        "version": {
            "type": "string",
            "pattern": "^[0-9A-Za-z][0-9A-Za-z._+-]{0,19}$",
            "patternErrorMessage": "use 1 to 20 letters, digits and . _ + -",
            "description": "Version for people, always quoted. Raise it with every change of meaning.",
            "examples": ["1"],
        },
        "title": _prose("Short title for people. Not shown to the judge.", 100, "Answer relevance"),
        "description": _prose("What it is for. Not shown to the judge.", 4000, "Does the output answer the input?"),
        "dimension": {
            "type": "string",
            "enum": list(DIMENSIONS),
            "description": "What the keyless judges (`rules`, `lexical`) take it for. Default: the name, if it is one of "
            "the four, else `other`, which they do not judge.",
            "examples": ["relevance"],
        },
        "requires": {
            "type": "array",
            "uniqueItems": True,
            "items": {"type": "string", "enum": list(REQUIRABLE), "examples": ["contexts"]},
            "default": [],
            "description": "What a record must have. Without it the rubric is not applicable, no judge is asked and no "
            "score made.",
            "examples": [["contexts"]],
        },
        "instructions": _prose(
            "What to judge, for the judge. It is shown the whole record, in parts called input, context, reference, "
            "tool and output.",
            20000,
            "Judge whether the output answers the input.",
        ),
        "scale": {
            "oneOf": _SCALES,
            "description": "How the judge answers and what the answer is worth.",
            "examples": [{"type": "binary"}],
        },
        "pass_threshold": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": "A value at or above it passes. Between two levels is safest: token probabilities make values "
            "between the levels.",
            "examples": [0.7],
        },
        "objective": {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
            "description": "Share of interactions that should pass (SLO).",
            "examples": [0.95],
        },
        "ask": {
            "type": "string",
            "enum": ["together", "alone"],
            "default": "together",
            "description": "`together`: in one call with the other rubrics of its judge, cheaper. `alone`: in a call of its "
            "own, undisturbed by the others.",
            "examples": ["together"],
        },
        "judge": _JUDGE,
        "calibration": _prose("Calibration file that belongs to this rubric.", 500, "calibration/relevance.json"),
    },
    "required": ["name", "version", "instructions", "scale", "pass_threshold"],
    "additionalProperties": False,
}

#: Fields whose change gives scores a new identity. `name` is among them because the judge is shown it.
_HASHED = frozenset({"name", "dimension", "requires", "instructions", "scale", "pass_threshold", "ask"})


def rubric_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a rubric file, for editors: docs/reference/rubric.schema.json."""
    schema: dict[str, Any] = json.loads(json.dumps(_SCHEMA))
    return schema
