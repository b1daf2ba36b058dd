"""The fields of a rubric file, once: the JSON Schema that files are checked against, that editors complete by and that
the reference is made from.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, get_args

from assay.cascade import First
from assay.defects import ALL
from assay.scales import MAX_CLAIMS, MAX_LEVEL, MAX_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Dimension = Literal["faithfulness", "relevance", "safety", "completeness", "other"]
Ask = Literal["together", "alone"]
Engine = Literal["openai", "rules", "lexical", "ragas"]
Metric = Literal[
    "faithfulness",
    "answer_relevancy",
    "context_precision",
    "context_recall",
    "response_groundedness",
    "rubric_score",
    "aspect_critic",
]
#: Levels of a calibration (`assay.calibration.level`) that can be asked for, lowest first; none asks for nothing.
GateLevel = Literal["none", "trend_only", "calibrated", "human_like"]

DIMENSIONS = get_args(Dimension)
REQUIRABLE = ("input", "output", "contexts", "reference", "tool_events")

#: Fields whose change gives scores a new identity. `name` is among them because the judge is shown it.
HASHED = frozenset(
    {"name", "dimension", "requires", "instructions", "scale", "pass_threshold", "ask", "repeats", "defects"}
)

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
        "pattern": r"^[^\s\"\\]([^\r\n\t\"\\]{0,38}[^\s\"\\])?$",
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


def _entries(description: str, example: list[Any], least: int, most: int, **properties: Any) -> dict[str, Any]:
    required = [key for key, schema in properties.items() if "default" not in schema]
    entry = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {
        "type": "array",
        "minItems": least,
        "maxItems": most,
        "items": entry,
        "description": description,
        "examples": [example],
    }


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
        "Anchored whole levels; value = (level - lowest) / (highest - lowest). Judges and people agree best on few "
        "levels with clear anchors.",
        ["levels"],
        levels=_entries(
            "Two levels or more, from the lowest to the highest; a higher level is a better output.",
            [{"level": 1, "anchor": "Answers another question."}, {"level": 2, "anchor": "Answers the question."}],
            2,
            11,
            level={
                "type": "integer",
                "minimum": 0,
                "maximum": MAX_LEVEL,
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
            [{"id": "greets", "question": "Does it greet the user by name?"}],
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
                "maximum": MAX_WEIGHT,
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
        "Lists the claims of the output, each with a quote of its evidence; value = supported / claims. A quote that "
        "does not occur in the contexts supports nothing. Needs `contexts` in `requires`.",
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
    "examples": [{"engine": "openai", "model": "gpt-5-mini"}],
    "properties": {
        "engine": {
            "type": "string",
            "enum": list(get_args(Engine)),
            "description": "`openai` (any OpenAI-compatible endpoint), `rules`, `lexical`, or "
            "[`ragas`](../howto/ragas.md).",
            "examples": ["openai"],
        },
        "metric": {
            "type": "string",
            "enum": list(get_args(Metric)),
            "description": "The metric of ragas that scores; for the engine `ragas`, which needs it.",
            "examples": ["faithfulness"],
        },
        "model": _prose("Model to ask.", 200, "gpt-5-mini"),
        "embedding_model": _prose(
            "Model of the embeddings of `answer_relevancy`. Default: `text-embedding-3-small`.",
            200,
            "text-embedding-3-small",
        ),
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

_REPEATS = {
    "type": "object",
    "description": "Asks the judge for more than one verdict on a record: the value is their mean. Needs a judge at a "
    "temperature above 0. Default: one verdict.",
    "examples": [{"most": 5, "band": [0.4, 0.8]}],
    "properties": {
        "most": {
            "type": "integer",
            "minimum": 2,
            "maximum": 9,
            "description": "Verdicts at most, the first included.",
            "examples": [5],
        },
        "band": {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "maximum": 1, "examples": [0.4]},
            "minItems": 2,
            "maxItems": 2,
            "description": "Lowest and highest value that are in doubt; `pass_threshold` lies between them. More "
            "verdicts are asked for only while their mean lies there, and could still come to pass or to fail. A first "
            "verdict on a `binary` scale without token probabilities is always in doubt. Default: always `most`.",
            "examples": [[0.4, 0.8]],
        },
    },
    "required": ["most"],
    "additionalProperties": False,
}

_CASCADE = {
    "type": "object",
    "description": "Has a keyless judge look first; the judge is asked for what that leaves in doubt, and for a share "
    "of the rest. Gauges stay unbiased, since each of that share "
    "[weighs more](../howto/spend-less.md#let-a-free-judge-look-first). Default: it is asked for every record.",
    "examples": [{"first": "lexical", "share": 0.3}],
    "properties": {
        "first": {
            "type": "string",
            "enum": list(get_args(First)),
            "description": "The keyless judge that looks first. `lexical` knows the four dimensions, `rules` "
            "completeness and safety.",
            "examples": ["lexical"],
        },
        "share": {
            "type": "number",
            "minimum": 0.01,
            "exclusiveMaximum": 1,
            "description": "Share of the records outside the band that the judge is asked for all the same; each of "
            "them weighs 1 / share. Below 0.2 intervals grow faster than the cost falls.",
            "examples": [0.3],
        },
        "band": {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "maximum": 1, "examples": [0.9]},
            "minItems": 2,
            "maxItems": 2,
            "description": "Lowest and highest value of the keyless judge that leave a record in doubt, for which the "
            "judge is always asked. Default: the values that do not pass.",
            "examples": [[0, 0.9]],
        },
    },
    "required": ["first", "share"],
    "additionalProperties": False,
}

SCHEMA: dict[str, Any] = {
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
            "description": "What the keyless judges (`rules`, `lexical`) take it for. Default: the name, if it is "
            "one of the four, else `other`, which they do not judge.",
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
        },
        "pass_threshold": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": "A value at or above it passes. Set it between two levels: with token probabilities a value "
            "seldom lies on one.",
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
            "enum": list(get_args(Ask)),
            "default": "together",
            "description": "`together`: in one call with the other rubrics of its judge, which costs less. `alone`: in "
            "a call of its own, undisturbed by the others.",
            "examples": ["together"],
        },
        "repeats": _REPEATS,
        "cascade": _CASCADE,
        "defects": {
            "type": "array",
            "uniqueItems": True,
            "items": {"type": "string", "enum": list(ALL), "examples": ["off_topic"]},
            "default": list(ALL),
            "description": "[Classes](defects.md) that an output which does not pass can be put into. The judge "
            "chooses among them in the same call; one alone needs no choice, and `[]` asks for none.",
            "examples": [["retrieval_miss", "unsupported_generation"]],
        },
        "judge": _JUDGE,
        "cheaper_judge": _JUDGE
        | {
            "description": "Asked instead of the judge while a [budget](../howto/budgets.md) of it is spent; the same "
            "fields. Its scores are a series of their own. Default: ASSAY_BUDGET_JUDGE, or nobody.",
            "examples": [{"engine": "openai", "model": "gpt-5-nano"}],
        },
        "fallback_judge": _JUDGE
        | {
            "description": "Asked instead of the judge while its endpoint [is down](../howto/limits.md); the same "
            "fields. Its scores are a series of their own. Default: ASSAY_FALLBACK_JUDGE, or nobody: records wait.",
            "examples": [{"engine": "lexical"}],
        },
        "calibration": _prose("Calibration file that belongs to this rubric.", 500, "calibration/relevance.json"),
        "gate": {
            "type": "string",
            "enum": list(get_args(GateLevel)),
            "default": "none",
            "description": "Level that a calibration of this very question and judge must reach before production is "
            "scored with it. Until then the version before it goes on. `none`: scored at once.",
            "examples": ["calibrated"],
        },
    },
    "required": ["name", "version", "instructions", "scale", "pass_threshold"],
    "additionalProperties": False,
}


def rubric_fields_markdown() -> str:
    """The page docs/reference/rubric-fields.md."""
    lines = [
        "# Rubric fields",
        "",
        "One YAML file a rubric. The same as JSON Schema, for editors: [rubric.schema.json](rubric.schema.json). "
        "How to write one: [write a rubric](../howto/write-a-rubric.md).",
        "",
        "A change of a field marked ● gives the rubric a new hash, and its scores a new series: "
        "they are answers to another question.",
        "",
        *_table(SCHEMA, marked=HASHED),
        "",
        "## scale",
    ]
    for scale in _SCALES:
        lines += ["", f"### {scale['title']}", "", scale["description"], "", *_table(scale)]
        for name, schema in scale["properties"].items():
            if schema.get("type") == "array":
                lines += ["", f"An entry of `{name}`:", "", *_table(schema["items"])]
    lines += ["", "## repeats", "", str(_REPEATS["description"]), "", *_table(_REPEATS)]
    lines += ["", "## cascade", "", str(_CASCADE["description"]), "", *_table(_CASCADE)]
    lines += ["", "## judge", "", str(_JUDGE["description"]), "", *_table(_JUDGE)]
    return "\n".join(lines) + "\n"


def _table(schema: Mapping[str, Any], marked: frozenset[str] = frozenset()) -> Iterator[str]:
    yield "| field | | type | default | meaning |"
    yield "|---|---|---|---|---|"
    for name, field in schema["properties"].items():
        if name in schema["required"]:
            default = "required"
        else:
            default = f"`{json.dumps(field['default'])}`" if "default" in field else ""
        mark = "●" if name in marked else ""
        yield f"| `{name}` | {mark} | {_kind(field)} | {default} | {field['description']} |"


def _kind(field: Mapping[str, Any]) -> str:
    if "oneOf" in field:
        return "one of the [scales](#scale)"
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field["type"] == "array":
        of_entries = field["items"]["type"] == "object"
        return "list of entries" if of_entries else f"list of {_kind(field['items'])}"
    if field["type"] == "object":
        return "fields"
    kind = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}[field["type"]]
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum", field.get("exclusiveMaximum"))
    if low is not None:
        opening = "(" if "exclusiveMinimum" in field else "["
        closing = ")" if "exclusiveMaximum" in field else "]"
        kind += f" in {opening}{low}, {high}{closing}"
    return kind + (f", at most {field['maxLength']:,} characters" if "maxLength" in field else "")
