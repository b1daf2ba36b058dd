"""Reads records from the wire: the one place where a record is validated in full.

`Record.to_json` writes them. The same rules are published as a JSON Schema, see `record_schema`.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from assay.errors import RecordError
from assay.queue import MAX_RECORD_BYTES
from assay.records import SCHEMA_VERSION, Context, Feedback, Message, Record, Sampling, ToolEvent, Usage, now
from assay.spelling import closest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails

#: How far a record's timestamp may lie ahead of our clock.
MAX_AHEAD: Final = timedelta(minutes=10)
#: The most characters of a field that is a name or an id.
MAX_NAME: Final = 500

_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MAX_TOKENS: Final = 2**53 - 1
_ADAPTER = TypeAdapter(Record)


def _failing_fast(schema: Any) -> Any:
    """The same schema, but of an array only the first mistake: all of `[1,1,1,...]` take a thousand times its size."""
    if isinstance(schema, Mapping):
        failing = {name: _failing_fast(part) for name, part in schema.items()}
        return failing | {"fail_fast": True} if schema.get("type") in ("tuple", "list") else failing
    return [_failing_fast(part) for part in schema] if isinstance(schema, list) else schema


_VALIDATOR = SchemaValidator(_failing_fast(_ADAPTER.core_schema))
#: Fields that end up in columns, indexes and labels: bounded, and without the NUL that PostgreSQL refuses.
_NAMES: Final = (
    "record_id",
    "app",
    "trace_id",
    "span_id",
    "session_id",
    "user_id",
    "route",
    "model",
    "prompt_version",
    "finish_reason",
)
#: pydantic's error types in our words, where its own would not help.
_WORDS: Final = {
    "missing": "is missing",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "datetime_type": "must be a time like 2026-01-31T12:00:00Z",
    "datetime_parsing": "must be a time like 2026-01-31T12:00:00Z",
    "datetime_from_date_parsing": "must be a time like 2026-01-31T12:00:00Z",
    "tuple_type": "must be an array",
    "mapping_type": "must be an object",
    "dict_type": "must be an object",
    "dataclass_type": "must be an object",
    "dataclass_exact_type": "must be an object",
}


def app_named(raw: bytes) -> str | None:
    """The app that a record names, even one that is otherwise no record; None where it names none."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    app = found.get("app") if isinstance(found, dict) else None
    return app[:100] if isinstance(app, str) and app else None


def decode_record(
    raw: bytes | str | Mapping[str, Any], *, max_bytes: int = MAX_RECORD_BYTES, at: datetime | None = None
) -> Record:
    """The record in `raw`: JSON, or the object that such JSON stands for.

    Nothing is converted or guessed: a number in quotes is not a number, an unknown field is a mistake.

    Args:
        raw: JSON in UTF-8, JSON text, or a mapping of JSON values (datetimes may stand for their ISO text).
        max_bytes: the most bytes that the JSON may have.
        at: the present, for timestamps in the future; now by default.

    Raises:
        RecordError: `field` is the dotted path of what is wrong, `reason` one of too_large, undecodable (not UTF-8,
            not JSON, not an object), unknown_version and invalid.
    """
    text = _as_bytes(raw)
    if len(text) > max_bytes:
        raise RecordError(f"the record has {len(text):,} bytes, more than {max_bytes:,}", reason="too_large")
    try:
        record: Record = _VALIDATOR.validate_json(text, strict=True)
    except ValidationError as error:
        raise _as_record_error(error, text) from error
    except RecursionError as error:
        raise RecordError("the record is nested too deeply", reason="undecodable") from error
    _check_names(record)
    _check_numbers(record)
    if record.timestamp > (at or now()) + MAX_AHEAD:
        raise RecordError(
            f"{record.timestamp.isoformat()} is in the future: check the clock of the app", field="timestamp"
        )
    if record.timestamp < _EARLIEST:
        raise RecordError(f"{record.timestamp.isoformat()} is before the year 2000", field="timestamp")
    return record


def record_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a record, as published in `docs/reference/record.schema.json`.

    It says all that a schema can: types, bounds, required fields. What `decode_record` refuses beyond it: timestamps
    far in the future, NUL characters in names, and records of too many bytes.
    """
    schema = _ADAPTER.json_schema(mode="validation")
    definitions: dict[str, Any] = schema["$defs"]
    for kind, described in _DESCRIPTIONS.items():
        target = schema if kind is Record else definitions[kind.__name__]
        target["description"] = str(kind.__doc__).split("\n", maxsplit=1)[0]
        for name, description in described.items():
            target["properties"][name]["description"] = description
    properties = schema["properties"]
    for owner in (schema, *definitions.values()):
        for name, item in owner["properties"].items():
            item.pop("title", None)
            # Absent means unknown: a default of null, or of an object of nulls, says nothing more.
            if item.get("default", 0) is None or "$ref" in item:
                item.pop("default", None)
            if owner is schema and name in _NAMES:
                _string_of(item).update(maxLength=MAX_NAME)
    properties["schema_version"] = {
        "const": SCHEMA_VERSION,
        "default": SCHEMA_VERSION,
        "description": _DESCRIPTIONS[Record]["schema_version"],
    }
    properties["record_id"].update(minLength=1, maxLength=200)
    properties["app"].update(minLength=1, maxLength=100)
    _number_of(properties["latency_seconds"]).update(minimum=0)
    cohort = properties["cohort"]
    cohort["propertyNames"] = {"maxLength": MAX_NAME}
    cohort["additionalProperties"]["maxLength"] = MAX_NAME
    definitions["Sampling"]["properties"]["probability"].update(exclusiveMinimum=0, maximum=1)
    definitions["Sampling"]["properties"]["rule"].update(maxLength=MAX_NAME)
    usage = definitions["Usage"]["properties"]
    for name in ("prompt_tokens", "completion_tokens", "cached_prompt_tokens"):
        _number_of(usage[name]).update(minimum=0, maximum=_MAX_TOKENS)
    _number_of(usage["cost_usd"]).update(minimum=0)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "assay record, version 1"}


def _string_of(item: dict[str, Any]) -> dict[str, Any]:
    """The string branch of a property that may also be null."""
    return next((branch for branch in item.get("anyOf", ()) if branch.get("type") == "string"), item)


def _number_of(item: dict[str, Any]) -> dict[str, Any]:
    """The number branch of a property that may also be null."""
    return next(branch for branch in item["anyOf"] if branch.get("type") in {"number", "integer"})


def _as_bytes(raw: bytes | str | Mapping[str, Any]) -> bytes:
    if isinstance(raw, Mapping):
        try:
            # NaN passes here on purpose: it is refused below, by field.
            raw = json.dumps(raw, ensure_ascii=False, default=_as_json)
        except (TypeError, ValueError, RecursionError) as error:
            raise RecordError(f"not a JSON value: {error}", reason="undecodable") from error
    if isinstance(raw, str):
        try:
            return raw.encode()
        except UnicodeEncodeError as error:
            raise RecordError(f"not text that UTF-8 can carry: {error}", reason="undecodable") from error
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8: {error}", reason="undecodable") from error
    return raw


def _as_json(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def _as_record_error(error: ValidationError, text: bytes) -> RecordError:
    """What is wrong, in one line; the first mistake by name, the number of the others."""
    mistakes = _meant(error.errors(include_url=False))
    first = mistakes[0]
    if first["type"] == "json_invalid":
        return RecordError(f"not JSON: {first['ctx']['error']}", reason="undecodable")
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as unread:
        # pydantic reads more than Python's json does, and knows what is wrong beside.
        return RecordError(f"not JSON that Python can read: {unread}", reason="undecodable")
    if not isinstance(given, dict):
        return RecordError("a record must be a JSON object", reason="undecodable")
    version = given.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION or isinstance(version, bool):
        # Said before anything else: another version may well have other fields.
        return RecordError(
            f"version {reprlib.repr(version)} is not known (this assay knows {SCHEMA_VERSION}): upgrade the worker",
            field="schema_version",
            reason="unknown_version",
        )
    own = first.get("ctx", {}).get("error")
    if isinstance(own, RecordError):
        return own
    message = _WORDS.get(first["type"], first["msg"].replace("Input should be", "must be"))
    path = _path(first["loc"])
    if path == "input":
        message = "must be text, or an array of messages"
    elif first["type"] == "unexpected_keyword_argument":
        message = "is not a field of a record" + _did_you_mean(first["loc"])
    others = len({_path(mistake["loc"]) for mistake in mistakes} - {path})
    return RecordError(message + (f" (and {others} more)" if others else ""), field=path or None)


def _meant(mistakes: list[ErrorDetails]) -> list[ErrorDetails]:
    """The mistakes without those of the reading of `input` (text, or messages) that was not meant."""
    deeper = [mistake for mistake in mistakes if mistake["loc"][:1] != ("input",) or len(mistake["loc"]) != 2]
    return deeper or mistakes


def _path(location: Sequence[str | int]) -> str:
    """`contexts[0].text`, without the names that pydantic gives to the branches of a union."""
    path = ""
    for place, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (place == 1 and location[0] == "input"):
            path += f".{part}" if path else part
    return path


def _did_you_mean(location: Sequence[str | int]) -> str:
    known = {item.name for item in fields(_OWNERS.get(str(location[0]), Record) if len(location) > 1 else Record)}
    near = closest(str(location[-1]), sorted(known))
    return "" if near is None else f": did you mean {near}?"


def _check_names(record: Record) -> None:
    named = [(name, getattr(record, name)) for name in _NAMES]
    named.append(("sampling.rule", record.sampling.rule))
    for label, value in record.cohort.items():
        named += [("cohort", label), (f"cohort.{label}", value)]
    for key, value in record.sink_refs.items():
        named += [("sink_refs", key), (f"sink_refs.{key}", value)]
    for path, value in named:
        if value is None:
            continue
        if len(value) > MAX_NAME:
            raise RecordError(f"has {len(value)} characters, more than {MAX_NAME}", field=path[:MAX_NAME])
        if "\0" in value:
            raise RecordError("must not contain a NUL character", field=path.replace("\0", "\\0"))


def _check_numbers(record: Record) -> None:
    if not _is_finite(record):
        path, value = next((path, value) for path, value in _floats(record, "") if not math.isfinite(value))
        raise RecordError(f"{value} is not a number that JSON knows", field=path)
    for name in ("prompt_tokens", "completion_tokens", "cached_prompt_tokens"):
        tokens = getattr(record.usage, name)
        if tokens is not None and not 0 <= tokens <= _MAX_TOKENS:
            raise RecordError("must be 0 or more, and less than 2 to the 53rd", field=f"usage.{name}")
    if record.usage.cost_usd is not None and record.usage.cost_usd < 0:
        raise RecordError("must not be negative", field="usage.cost_usd")


def _is_finite(value: Any) -> bool:
    """Whether every floating-point number in a record is: `_floats` without the paths, which nearly none needs."""
    if isinstance(value, float):
        return math.isfinite(value)
    inner: Iterable[Any]
    if names := getattr(value, "__dataclass_fields__", None):
        inner = [getattr(value, name) for name in names]
    elif isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        inner = value
    else:
        return True
    # A loop, since a generator for each of them takes half as long again.
    for item in inner:  # noqa: SIM110
        if not isinstance(item, _NO_FLOATS) and not _is_finite(item):
            return False
    return True


def _floats(value: Any, path: str) -> list[tuple[str, float]]:
    """Every floating-point number in a record, with its path."""
    if isinstance(value, float):
        return [(path, value)]
    if names := getattr(value, "__dataclass_fields__", None):
        inner = [(f"{path}.{name}" if path else name, getattr(value, name)) for name in names]
    elif isinstance(value, Mapping):
        inner = [(f"{path}.{key}", item) for key, item in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        inner = [(f"{path}[{place}]", item) for place, item in enumerate(value)]
    else:
        return []
    return [
        found for inner_path, item in inner if not isinstance(item, _NO_FLOATS) for found in _floats(item, inner_path)
    ]


#: Nearly all that a record holds. To pass them over here takes half the time of asking for each.
_NO_FLOATS: Final = (str, int, datetime, type(None))


#: Class of what each nested field holds, to suggest the right names.
_OWNERS: Final[dict[str, Any]] = {
    "contexts": Context,
    "input": Message,
    "sampling": Sampling,
    "usage": Usage,
    "tool_events": ToolEvent,
    "feedback": Feedback,
}

_DESCRIPTIONS: Final[dict[type[Any], dict[str, str]]] = {
    Record: {
        "schema_version": "Version of this format.",
        "record_id": "Identity: the same id enqueued twice is scored once. A UUID is fine.",
        "timestamp": "When the interaction happened: RFC 3339 with a time zone. Its scores belong to this minute.",
        "app": "The application that answered.",
        "input": "What the application was asked: text, or the messages of the conversation.",
        "output": "What the application answered.",
        "contexts": "The passages that were retrieved and given to the model, in that order.",
        "reference": "A known good answer, where there is one.",
        "required_fields": "Keys that a structured output (a JSON object) must have.",
        "trace_id": "W3C trace id: 32 lower-case hex digits. Other ids are kept, but link to no trace.",
        "span_id": "W3C span id: 16 lower-case hex digits.",
        "session_id": "Conversation or session.",
        "user_id": "The user, hashed before it leaves the application.",
        "route": "Endpoint, feature or agent that answered.",
        "model": "Model that answered.",
        "prompt_version": "Version of the application's prompt.",
        "cohort": "Labels to slice by. Those that the worker's settings declare become metric labels.",
        "sampling": "How the record got in.",
        "usage": "Tokens and money that the answer cost.",
        "latency_seconds": "How long the answer took.",
        "finish_reason": "Why the model stopped: stop, length, content_filter, tool_call or error.",
        "tool_events": "Tool calls on the way to the answer.",
        "feedback": "What the user said of the answer.",
        "metadata": "Anything else. Kept with the record, not read.",
        "sink_refs": "Ids that other systems know this interaction by.",
    },
    Context: {
        "text": "The passage.",
        "id": "Its id in the application's index.",
        "score": "The retriever's score, in its own units.",
    },
    Message: {"role": "system, user, assistant or tool.", "content": "What was said."},
    ToolEvent: {
        "name": "The tool.",
        "arguments": "What it was called with.",
        "result": "What it gave back.",
        "error": "Why it failed, if it did.",
    },
    Feedback: {
        "thumb": "up or down.",
        "rating": "The user's rating, in the application's own units.",
        "comment": "The user's words.",
    },
    Usage: {
        "prompt_tokens": "Tokens read.",
        "completion_tokens": "Tokens written.",
        "cost_usd": "Price in US dollars.",
        "cached_prompt_tokens": "Those of the tokens read that the provider took from its cache.",
    },
    Sampling: {
        "probability": "Probability with which this record was taken. Gauges weight it by the inverse.",
        "rule": "Name of the rule that set it.",
    },
}
