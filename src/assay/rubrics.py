"""Rubrics: what a judge is asked, as data. One YAML file a rubric, read strictly, identified by what it really asks.

`load_rubrics` reads files or directories, `check_rubrics` lists every mistake in them, `rubric_schema` is the JSON
Schema that editors complete files by. How a judge answers, and what that is worth, is `assay.scales`'.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from assay import _yaml
from assay._rubric_fields import DIMENSIONS, HASHED, SCHEMA, Engine, rubric_fields_markdown
from assay._yaml import Mistake
from assay.cascade import Cascade, First
from assay.defects import ALL
from assay.errors import RubricError
from assay.repeats import Repeats
from assay.scales import VERDICT_VERSION, Binary, Checklist, Claims, Item, Level, Ordinal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from assay._rubric_fields import Ask, Dimension, GateLevel, Metric
    from assay._yaml import Node
    from assay.defects import Defect
    from assay.records import Record
    from assay.scales import Scale

__all__ = [
    "SHIPPED",
    "Change",
    "JudgeSpec",
    "Rubric",
    "check_rubrics",
    "diff_rubrics",
    "load_rubrics",
    "rubric_fields_markdown",
    "rubric_schema",
]


def _shipped() -> Path:
    packaged = Path(__file__).parent / "data" / "rubrics"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "rubrics"


#: Directory of the four shipped rubrics: package data, or `rubrics/` of a source checkout.
SHIPPED: Path = _shipped()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSpec:
    """The judge a rubric asks for; what is None is taken from the settings."""

    engine: Engine | None = None
    #: of ragas, for its engine
    metric: Metric | None = None
    model: str | None = None
    #: of the metric `answer_relevancy`
    embedding_model: str | None = None
    #: OpenAI-compatible endpoint, up to and without `/chat/completions`
    base_url: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """One question to a judge: what to look at, the scale of the answer, and what passes."""

    #: lower-case letters, digits and _; the label `rubric` of its time series
    name: str
    #: for people; the hash says what really changed
    version: str
    instructions: str
    scale: Scale
    #: a value at or above it passes; in (0, 1]
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
    #: asked for more than one verdict; None: for one
    repeats: Repeats | None = None
    #: a keyless judge looks first; None: the judge is asked for every record
    cascade: Cascade | None = None
    judge: JudgeSpec | None = None
    #: asked instead while the budget of the judge is spent
    cheaper_judge: JudgeSpec | None = None
    #: asked instead while the endpoint of the judge is down
    fallback_judge: JudgeSpec | None = None
    #: calibration file that belongs to it
    calibration: str | None = None
    #: level that a calibration must reach before production is scored with it
    gate: GateLevel = "none"
    #: classes that an output which does not pass can be put into; none asks for no class
    defects: tuple[Defect, ...] = ALL
    #: the file it was read from
    path: Path | None = None

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of all that changes the question or the verdict, the scale's own wording included.

        Not in it: title, description, version, objective, cascade, calibration, gate and path, which change no verdict,
        and the judge, which has a fingerprint of its own.
        """
        asked = {key: value for key, value in self.to_dict().items() if key in HASHED}
        asked["requires"] = sorted(self.requires)
        # All of them is what every rubric asks, as the judge's fingerprint says already.
        if set(self.defects) == set(ALL):
            del asked["defects"]
        # As a text: the order of a schema's properties is the order in which a judge writes.
        asked["schema"] = json.dumps(self.scale.schema())
        asked |= {"prompt": self.scale.prompt(), "verdict_version": VERDICT_VERSION}
        canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def __hash__(self) -> int:
        # Of all that is kept by rubrics, one is looked for at every record: the fields' own hashes would take a while.
        return hash((self.name, self.hash))

    @property
    def revision(self) -> str:
        """Version and hash in short, such as `2-1f3a09bc`: the value of the label `rubric_version`."""
        return f"{self.version}-{self.hash[:8]}"

    def missing(self, record: Record) -> str | None:
        """`missing_contexts` and the like when the record lacks what the rubric requires, else None."""
        return next((f"missing_{name}" for name in self.requires if not _present(record, name)), None)

    def to_dict(self) -> dict[str, Any]:
        """The rubric as its file writes it, defaults included, in the order of the documented fields."""
        values: dict[str, Any] = {name: getattr(self, name) for name in SCHEMA["properties"]}
        values["requires"] = list(self.requires)
        values["defects"] = list(self.defects)
        values["scale"] = self.scale.to_dict()
        values["pass_threshold"] = float(self.pass_threshold)
        for name in ("repeats", "cascade"):
            part = values[name]
            if part is None:
                # Workers of a release before read this out of the store, and know no such field.
                del values[name]
            else:
                values[name] = _given({k: [*v] if isinstance(v, tuple) else v for k, v in asdict(part).items()})
        for name in ("judge", "cheaper_judge", "fallback_judge"):
            values[name] = None if values[name] is None else _given(asdict(values[name]))
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rubric:
        """The rubric whose `to_dict`, or JSON of it, this is.

        Raises:
            ValueError: it is not, or not one of this version of assay.
        """
        try:
            data = {name: _given(value) if isinstance(value, dict) else value for name, value in data.items()}
            rubric = _build(_given(data), None)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a rubric: {type(error).__name__}: {error}") from None
        # What this version does not know would be lost silently.
        if rubric.to_dict() != {**rubric.to_dict(), **data}:
            raise ValueError("not a rubric of this version: its fields differ")
        return rubric


def _given(data: Mapping[str, Any]) -> dict[str, Any]:
    """What is not None: an earlier version wrote the fields of a judge that it knew, None or not."""
    return {name: value for name, value in data.items() if value is not None}


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
    #: whether a change of this field gives scores a new identity
    changes_hash: bool


def load_rubrics(paths: Sequence[Path] | None = None) -> list[Rubric]:
    """The rubrics of files, and of the `*.yaml` and `*.yml` files of directories (not below them); None: the shipped.

    A path `shipped` stands for the shipped ones too.
    A file that is named twice is read once.

    Raises:
        RubricError: the first mistake found; `check_rubrics` lists them all.
    """
    rubrics, errors = _load(paths)
    if errors:
        raise errors[0]
    return rubrics


def check_rubrics(paths: Sequence[Path] | None = None) -> list[RubricError]:
    """Every mistake in the same files, in the order of files and lines, each with the mend in its message."""
    return _load(paths)[1]


def diff_rubrics(old: Rubric, new: Rubric) -> list[Change]:
    """The fields in which two rubrics differ; items and levels go by their id and number, not by their place."""
    before, after = dict(_flat(old.to_dict())), dict(_flat(new.to_dict()))
    names = [*before, *(name for name in after if name not in before)]
    return [
        Change(name, before.get(name), after.get(name), re.split(r"[.\[]", name, maxsplit=1)[0] in HASHED)
        for name in names
        if before.get(name) != after.get(name)
    ]


def rubric_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a rubric file, for editors: docs/reference/rubric.schema.json."""
    schema: dict[str, Any] = json.loads(json.dumps(SCHEMA))
    return schema


def _flat(value: object, field: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _flat(member, f"{field}.{key}" if field else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        # Their order is part of the question too.
        keys = [member.get("id", member.get("level")) for member in value]
        yield f"{field}.order", keys
        for key, member in zip(keys, value, strict=True):
            yield from _flat({n: part for n, part in member.items() if n not in ("id", "level")}, f"{field}[{key}]")
    else:
        yield field, value


# Reading files.

#: As many mistakes of one file as anyone mends in one go.
_MOST_MISTAKES = 100


def _load(paths: Sequence[Path] | None) -> tuple[list[Rubric], list[RubricError]]:
    rubrics: list[Rubric] = []
    errors: list[RubricError] = []
    named: dict[str, Path] = {}
    files = list(_files([SHIPPED] if paths is None else paths))
    for file in dict.fromkeys(f for f in files if not isinstance(f, RubricError)):
        rubric, mistakes, name = _read(file)
        if name is not None:
            first = named.setdefault(name.value, file)
            if first != file:
                mistakes.append(Mistake(name.line, "name", f"{name.value} is also the name in {first}: rename one"))
        mistakes.sort(key=lambda mistake: mistake.line or 0)
        rest = len(mistakes) - _MOST_MISTAKES
        if rest > 0:
            mistakes[_MOST_MISTAKES:] = [Mistake(None, None, f"has {rest} more mistakes: mend those above first")]
        errors += [RubricError(m.message, path=file, line=m.line, field=m.field) for m in mistakes]
        if rubric is not None and not mistakes:
            rubrics.append(rubric)
    return rubrics, [f for f in files if isinstance(f, RubricError)] + errors


def _files(paths: Sequence[Path]) -> Iterator[Path | RubricError]:
    for given in paths:
        # A word for them, since nobody knows where a package lies; a file of that name is written ./shipped.
        path = SHIPPED if str(given) == "shipped" else given
        try:
            if not path.is_dir():
                yield path
                continue
            found = sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml") and file.is_file())
        except OSError as error:
            yield RubricError(f"cannot be read: {error.strerror}", path=path)
            continue
        if not found:
            yield RubricError("holds no .yaml file: name a rubric file, or the directory of some", path=path)
        yield from found


def _read(path: Path) -> tuple[Rubric | None, list[Mistake], Node | None]:
    """The rubric of a file or its mistakes, and the node of its name if that is a text."""
    node, mistakes = _yaml.read(path)
    if node is None:
        return None, mistakes, None
    mistakes += _yaml.check(node, SCHEMA)
    mistakes += _check_meaning(node)
    name = node.get("name")
    usable = name if name is not None and name.kind == "string" else None
    return (None if mistakes else _build(node.plain(), path)), mistakes, usable


def _build(data: Mapping[str, Any], path: Path | None) -> Rubric:
    """The rubric of data that passed every check."""
    own_dimension = data["name"] if data["name"] in DIMENSIONS else "other"
    return Rubric(
        name=data["name"],
        version=data["version"],
        instructions=data["instructions"].strip(),
        scale=_scale(data["scale"]),
        pass_threshold=float(data["pass_threshold"]),
        title=data.get("title", "").strip(),
        description=data.get("description", "").strip(),
        dimension=data.get("dimension", own_dimension),
        requires=tuple(data.get("requires", ())),
        objective=data.get("objective"),
        ask=data.get("ask", "together"),
        repeats=_repeats(data["repeats"]) if "repeats" in data else None,
        cascade=_cascade(data["cascade"]) if "cascade" in data else None,
        judge=JudgeSpec(**data["judge"]) if "judge" in data else None,
        cheaper_judge=JudgeSpec(**data["cheaper_judge"]) if "cheaper_judge" in data else None,
        fallback_judge=JudgeSpec(**data["fallback_judge"]) if "fallback_judge" in data else None,
        calibration=data.get("calibration"),
        gate=data.get("gate", "none"),
        defects=tuple(defect for defect in ALL if defect in data.get("defects", ALL)),
        path=path,
    )


def _repeats(data: Mapping[str, Any]) -> Repeats:
    return Repeats(most=data["most"], band=_band(data))


def _cascade(data: Mapping[str, Any]) -> Cascade:
    return Cascade(first=data["first"], share=float(data["share"]), band=_band(data))


def _band(data: Mapping[str, Any]) -> tuple[float, float] | None:
    band = data.get("band")
    return None if band is None else (float(band[0]), float(band[1]))


def _scale(data: Mapping[str, Any]) -> Scale:
    given = {key: _one_line(value) for key, value in data.items() if key != "type"}
    match data["type"]:
        case "binary":
            return Binary(**given)
        case "ordinal":
            return Ordinal(levels=tuple(Level(**level) for level in given.pop("levels")))
        case "checklist":
            return Checklist(items=tuple(Item(**item) for item in given.pop("items")), **given)
        case _:
            return Claims(**given)


def _one_line(value: Any) -> Any:
    """The value with each of its texts on one line, as prompts list them."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list):
        return [{key: _one_line(member) for key, member in entry.items()} for entry in value]
    return value


# What a schema cannot say.

_PLACEHOLDER = re.compile(
    r"\{\{.{0,60}?\}\}|\{(input|output|contexts?|question|answer|response|reference|query)\}", re.IGNORECASE
)
_SLOT = (
    "is not filled in: the judge is given the whole record, so name its parts in words (input, output, context, "
    "reference, tool)"
)


def _check_meaning(node: Node) -> Iterator[Mistake]:
    instructions, scale = node.get("instructions"), node.get("scale")
    if instructions is not None:
        yield from _check_slots(instructions)
    if scale is not None and scale.kind == "object":
        yield from _check_scale(node, scale)
    yield from _check_repeats(node)
    yield from _check_cascade(node)
    for judge in (node.get("judge"), node.get("cheaper_judge"), node.get("fallback_judge")):
        if judge is not None and judge.kind == "object":
            yield from _check_judge(judge)


def _check_repeats(node: Node) -> Iterator[Mistake]:
    repeats, threshold, judge = node.get("repeats"), node.get("pass_threshold"), node.get("judge")
    if repeats is None or repeats.kind != "object":
        return
    band = repeats.get("band")
    edges = _edges(band)
    yield from _check_band(band)
    if band is not None and len(edges) == 2 and threshold is not None and threshold.kind == "number":
        low, high = edges
        if low < high and not low <= threshold.value <= high:
            message = f"{threshold.value}, the pass_threshold, lies outside: what is near it is what is in doubt"
            yield Mistake(band.line, band.field, message)
    if judge is None or judge.kind != "object":
        return
    engine, temperature = judge.get("engine"), judge.get("temperature")
    if engine is not None and engine.value in get_args(Engine) and engine.value != "openai":
        message = f"the engine {engine.value} is asked once: remove repeats, or write `engine: openai`"
        yield Mistake(repeats.line, "repeats", message)
    elif temperature is not None and temperature.kind == "number" and temperature.value == 0:
        message = "at temperature 0 a judge says the same again: raise it, to 0.7 say, or remove repeats"
        yield Mistake(temperature.line, "judge.temperature", message)


def _edges(band: Node | None) -> list[float]:
    """The numbers of a band."""
    return [edge.value for edge in band.value if edge.kind == "number"] if band and band.kind == "array" else []


def _check_band(band: Node | None) -> Iterator[Mistake]:
    edges = _edges(band)
    if band is not None and len(edges) == 2 and not edges[0] < edges[1]:
        message = f"{edges[0]} is not below {edges[1]}: write the lowest value in doubt first"
        yield Mistake(band.line, band.field, message)


#: The dimensions that a keyless judge knows.
_KNOWN_TO = {"lexical": DIMENSIONS[:-1], "rules": ("safety", "completeness")}


def _check_cascade(node: Node) -> Iterator[Mistake]:
    cascade, dimension, judge = node.get("cascade"), node.get("dimension"), node.get("judge")
    if cascade is None or cascade.kind != "object":
        return
    yield from _check_band(cascade.get("band"))
    first, own = cascade.get("first"), dimension or node.get("name")
    if (
        first is not None
        and first.kind == "string"
        and first.value in _KNOWN_TO
        and own is not None
        and own.value not in _KNOWN_TO[first.value]
    ):
        known = ", ".join(_KNOWN_TO[first.value])
        message = f"{first.value} knows nothing of this rubric: write `dimension:` with one of {known}, or no cascade"
        yield Mistake(first.line, first.field, message)
    engine = judge.get("engine") if judge is not None and judge.kind == "object" else None
    if engine is not None and engine.kind == "string" and engine.value in get_args(First):
        message = f"{engine.value} is free, and is asked for every record: remove cascade, or name a judge that costs"
        yield Mistake(cascade.line, "cascade", message)


#: Fields of a judge that these engines alone know.
_OF_ENGINES = {
    "metric": ("ragas",),
    "embedding_model": ("ragas",),
    **dict.fromkeys(("model", "base_url", "temperature", "max_tokens"), ("openai", "ragas")),
}


def _check_judge(judge: Node) -> Iterator[Mistake]:
    engine = judge.get("engine")
    if engine is not None:
        for key, member in judge.value.items():
            if engine.value not in _OF_ENGINES.get(key, (engine.value,)):
                yield Mistake(member.line, member.field, f"the engine {engine.value} has none: remove the line")
        if engine.value == "ragas" and judge.get("metric") is None:
            yield Mistake(engine.line, engine.field, "ragas needs a metric beside it, such as `metric: faithfulness`")
    elif judge.get("metric") is not None:
        metric = judge.value["metric"]
        yield Mistake(metric.line, metric.field, "only ragas has metrics: write `engine: ragas` beside it")


def _check_slots(node: Node) -> Iterator[Mistake]:
    slot = _PLACEHOLDER.search(node.value) if node.kind == "string" else None
    if slot:
        yield Mistake(node.line, node.field, f"{_yaml.shown(slot[0])} {_SLOT}")


def _check_scale(node: Node, scale: Node) -> Iterator[Mistake]:
    kind = scale.get("type")
    match kind.value if kind is not None else None:
        case "binary":
            for key in ("pass_when", "fail_when"):
                text = scale.get(key)
                if text is not None:
                    yield from _check_slots(text)
            yield from _check_labels(scale)
        case "ordinal":
            yield from _check_texts(scale, "levels", "anchor")
            yield from _check_levels(scale)
        case "checklist":
            yield from _check_texts(scale, "items", "id")
            yield from _check_texts(scale, "items", "question")
        case "claims":
            yield from _check_claims(node, scale)


def _check_claims(node: Node, scale: Node) -> Iterator[Mistake]:
    requires = node.get("requires")
    names = [item.value for item in requires.value] if requires is not None and requires.kind == "array" else []
    if "contexts" not in names:
        line = requires.line if requires is not None else scale.line
        message = "a claims scale looks quotes up in the contexts: write requires: [contexts, output]"
        yield Mistake(line, "requires", message)


def _check_labels(scale: Node) -> Iterator[Mistake]:
    nodes = [scale.get("pass_label"), scale.get("fail_label")]
    labels = [default if n is None else _one_line(n.value) for n, default in zip(nodes, ("pass", "fail"), strict=True)]
    if all(isinstance(label, str) for label in labels) and labels[0].casefold() == labels[1].casefold():
        last = nodes[1] or nodes[0] or scale
        message = f"the labels of pass and fail are both {_yaml.shown(labels[0])}: rename one"
        yield Mistake(last.line, "scale.fail_label", message)


def _check_levels(scale: Node) -> Iterator[Mistake]:
    levels = [level for level in _members(scale, "levels", "level") if isinstance(level.value, int)]
    for before, level in pairwise(levels):
        if level.value <= before.value:
            message = f"{level.value} comes after {before.value}: list each level once, from the lowest to the highest"
            yield Mistake(level.line, level.field, message)


def _check_texts(scale: Node, key: str, member: str) -> Iterator[Mistake]:
    seen: dict[str, int] = {}
    for node in _members(scale, key, member):
        yield from _check_slots(node)
        text = _one_line(node.value) if node.kind == "string" else ""
        if text and text in seen:
            message = f"{_yaml.shown(text)} is that of line {seen[text]} too: each {member} must differ"
            yield Mistake(node.line, node.field, message)
        seen.setdefault(text, node.line)


def _members(scale: Node, key: str, member: str) -> Iterator[Node]:
    entries = scale.get(key)
    for entry in entries.value if entries is not None and entries.kind == "array" else []:
        node = entry.get(member)
        if node is not None:
            yield node
