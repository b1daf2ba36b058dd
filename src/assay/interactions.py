"""Interactions as apps have them, and the records they become. Standard library only."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypedDict

from assay.errors import RecordError
from assay.records import Context, Feedback, Message, Record, Sampling, ToolEvent, Usage

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence


class InteractionFields(TypedDict, total=False):
    """What `Client.record` takes: the fields of `Record`, in the forms that apps have them in.

    Lists and dicts are copied when they are given, what is in them is not: do not change it afterwards.
    """

    #: text, or messages: `Message` or {"role": ..., "content": ...}, one or a list
    input: str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]]
    #: text; anything else becomes JSON
    output: object
    #: passages: text, `Context` or {"text": ..., "id": ..., "score": ...}, one or a list
    contexts: str | Context | Mapping[str, Any] | Sequence[str | Context | Mapping[str, Any]]
    reference: str | None
    #: names, one or a list
    required_fields: str | Sequence[str]
    #: W3C hex; an int or a UUID is converted. Decides the sampling.
    trace_id: str | int | uuid.UUID | None
    span_id: str | int | None
    session_id: str | None
    #: hashed with the client's salt; without a salt it is not sent
    user_id: str | None
    route: str | None
    model: str | None
    prompt_version: str | None
    #: added to the client's own cohort
    cohort: Mapping[str, str]
    usage: Usage | Mapping[str, Any]
    latency_seconds: float | None
    finish_reason: str | None
    #: one or a list
    tool_events: ToolEvent | Mapping[str, Any] | Sequence[ToolEvent | Mapping[str, Any]]
    feedback: Feedback | Mapping[str, Any] | None
    metadata: Mapping[str, Any]
    sink_refs: Mapping[str, str]
    #: aware, or seconds since the epoch; now by default
    timestamp: datetime | float | None
    #: a new one by default; the same id twice is scored once
    record_id: str | None


#: The names of an interaction's fields.
FIELDS: Final = frozenset(InteractionFields.__annotations__)

_NO_TRACE: Final = frozenset({"", "0" * 32})
_W3C_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_LISTS: Final = (list, tuple)
_COLLECTIONS: Final = (list, tuple, set, frozenset)
_STRUCTURES: Final = (Mapping, *_COLLECTIONS)
_TEXTS: Final = (str, bytes, bytearray)
#: Plain values that take few bytes.
_SMALL: Final = frozenset({type(None), bool, int, float, datetime, Usage, Sampling})
#: Of our own objects, what may be long.
_PARTS: Final[dict[type, tuple[str, ...]]] = {
    Context: ("text", "id"),
    Message: ("role", "content"),
    ToolEvent: ("name", "arguments", "result", "error"),
    Feedback: ("comment",),
}
#: So many nested values of an interaction are looked at for its size, which is the app's time; the rest is estimated.
_SIZED_ITEMS: Final = 2_000
#: What any other object counts. It becomes text on the sender's thread; finding out how long would cost the app's.
_OBJECT_BYTES: Final = 1_000


def trace_id_text(value: object) -> str | None:
    """A W3C trace id in lower-case hex, from whatever form it came in; other ids unchanged.

    None for what stands for no trace: nothing, or zero.
    """
    if isinstance(value, int):
        return f"{value:032x}" if value else None
    text = "" if value is None else str(value)
    lower = text.lower()
    if lower != text or len(text) == 36:
        plain = lower.replace("-", "") if len(text) == 36 else lower
        text = plain if _W3C_TRACE_ID.fullmatch(plain) else text
    return None if text in _NO_TRACE else text


def copy_and_size(interaction: dict[str, Any]) -> int:
    """Copy the lists and dicts of an interaction, which the app may go on changing; about how many bytes it takes.

    The size counts a character as one byte, so the JSON of the record is seldom smaller. Of messages, what no record
    holds is left behind: images, for one.
    """
    size = 500
    nested: list[object] = []
    for name, value in interaction.items():
        # Plain types first: this runs in the app's thread.
        kind = type(value)
        if kind is str:
            size += len(value)
            continue
        if kind in _SMALL:
            continue
        if kind is not list and kind is not tuple and (kind is dict or isinstance(value, Mapping)):
            interaction[name] = items = dict(value)
            if name == "input" and _is_message(items):
                interaction[name] = items = _sent_of_message(items)
            for key, item in items.items():
                size += 50 + len(key) if type(key) is str else 50
                if type(item) is str:
                    size += len(item)
                else:
                    nested.append(item)
        elif isinstance(value, _COLLECTIONS):
            values = tuple(value)
            interaction[name] = values = _sent_of_messages(values) if name == "input" else values
            for item in values:
                if type(item) is str:
                    size += 50 + len(item)
                else:
                    nested.append(item)
        else:
            nested.append(value)
    return size + _size(nested) if nested else size


def as_list(value: Any) -> Any:
    """A single text, mapping, passage or event, given where a list is wanted, as the list of that one."""
    if isinstance(value, (*_TEXTS, Mapping)):
        return [value] if value else []
    return [value] if isinstance(value, Context | ToolEvent) else value


def as_record(app: str, interaction: Mapping[str, Any], user_id: str | None) -> Record:
    """The record of an interaction that has `record_id`, `timestamp` and `sampling`; its `user_id` is left aside.

    Raises whatever its values raise when they are not what they should be; RecordError where it can say more.
    """
    given = {name: value for name, value in interaction.items() if value is not None}
    if unknown := given.keys() - FIELDS - {"sampling"}:
        raise RecordError("is not a field of a record", field=min(unknown))
    timestamp = given["timestamp"]
    return Record(
        record_id=str(given["record_id"]),
        timestamp=timestamp if isinstance(timestamp, datetime) else datetime.fromtimestamp(timestamp, UTC),
        app=app,
        input=_input(given.get("input", "")),
        output=as_text(given.get("output", "")),
        contexts=tuple(_context(item) for item in as_list(given.get("contexts", ()))),
        reference=_optional(given.get("reference")),
        required_fields=tuple(as_text(name) for name in _names(given.get("required_fields", ()))),
        trace_id=given.get("trace_id"),
        span_id=_span_id(given.get("span_id")),
        session_id=_optional(given.get("session_id")),
        user_id=user_id,
        route=_optional(given.get("route")),
        model=_optional(given.get("model")),
        prompt_version=_optional(given.get("prompt_version")),
        cohort=_labels(given.get("cohort", {})),
        sampling=given["sampling"],
        usage=_usage(given.get("usage", {})),
        latency_seconds=_number(given.get("latency_seconds")),
        finish_reason=_optional(given.get("finish_reason")),
        tool_events=tuple(_tool_event(item) for item in as_list(given.get("tool_events", ()))),
        feedback=_feedback(given.get("feedback")),
        metadata={as_text(key): _json_ready(item) for key, item in given.get("metadata", {}).items()},
        sink_refs=_labels(given.get("sink_refs", {})),
    )


def as_text(value: object) -> str:
    """Text as it is, None as no text, structures as JSON, the rest as Python prints it."""
    if isinstance(value, str):
        return str.__str__(value)  # of an enumeration, its value
    if value is None:
        return ""
    if isinstance(value, _STRUCTURES):
        return json.dumps(_json_ready(value), ensure_ascii=False)
    return str(value)


def _optional(value: object) -> str | None:
    return None if value is None else as_text(value)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _labels(value: Mapping[Any, Any]) -> dict[str, str]:
    return {as_text(label): as_text(item) for label, item in value.items() if item is not None}


def _span_id(value: object) -> str | None:
    if not value:
        return None
    return f"{value:016x}" if isinstance(value, int) else as_text(value)


def _names(value: Any) -> Any:
    return value if isinstance(value, Mapping) else as_list(value)  # of a mapping, its keys


def _input(value: object) -> str | tuple[Message, ...]:
    if isinstance(value, Message) or (isinstance(value, Mapping) and _is_message(value)):
        value = (value,)
    if isinstance(value, _LISTS) and value and all(isinstance(turn, Message | Mapping) for turn in value):
        return tuple(turn if isinstance(turn, Message) else _message(turn) for turn in value)
    return as_text(value)


def _message(turn: Mapping[str, Any]) -> Message:
    """A chat message; of content in parts the text, and the names of the other parts."""
    content = turn.get("content")
    if isinstance(content, _LISTS):
        parts = (part if isinstance(part, Mapping) else {"text": part} for part in content)
        content = "\n".join(str(part.get("text") or f"[{part.get('type', 'part')}]") for part in parts)
    return Message(role=as_text(turn.get("role", "user")), content=as_text(content))


def _context(value: object) -> Context:
    if isinstance(value, Context):
        return value
    if not isinstance(value, Mapping):
        return Context(text=as_text(value))
    _check_keys("contexts", value, {"text", "id", "score"})
    return Context(text=as_text(value["text"]), id=_optional(value.get("id")), score=_number(value.get("score")))


def _usage(value: Usage | Mapping[str, Any]) -> Usage:
    if isinstance(value, Usage):
        return value
    _check_keys("usage", value, {"prompt_tokens", "completion_tokens", "cost_usd"})
    prompt_tokens, completion_tokens = value.get("prompt_tokens"), value.get("completion_tokens")
    return Usage(
        prompt_tokens=None if prompt_tokens is None else int(prompt_tokens),
        completion_tokens=None if completion_tokens is None else int(completion_tokens),
        cost_usd=_number(value.get("cost_usd")),
    )


def _tool_event(value: ToolEvent | Mapping[str, Any]) -> ToolEvent:
    if isinstance(value, ToolEvent):
        return value
    _check_keys("tool_events", value, {"name", "arguments", "result", "error"})
    return ToolEvent(
        name=as_text(value["name"]),
        arguments=_optional(value.get("arguments")),
        result=_optional(value.get("result")),
        error=_optional(value.get("error")),
    )


def _feedback(value: Feedback | Mapping[str, Any] | None) -> Feedback | None:
    if isinstance(value, Mapping):
        _check_keys("feedback", value, {"thumb", "rating", "comment"})
        value = Feedback(
            thumb=value.get("thumb"), rating=_number(value.get("rating")), comment=_optional(value.get("comment"))
        )
    if value is not None and value.thumb not in {None, "up", "down"}:
        raise RecordError("must be up or down", field="feedback.thumb")
    return value


def _check_keys(field: str, value: Mapping[str, Any], known: set[str]) -> None:
    if unknown := value.keys() - known:
        raise RecordError(f"is not one of {', '.join(sorted(known))}", field=f"{field}.{min(unknown)}")


def _json_ready(value: Any) -> Any:
    """The value with everything that JSON lacks as text, and NaN and infinity as null."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {as_text(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, _COLLECTIONS):
        return [_json_ready(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else as_text(value)


def _is_message(value: Mapping[Any, Any]) -> bool:
    return "role" in value and "content" in value


def _sent_of_messages(turns: tuple[Any, ...]) -> tuple[Any, ...]:
    """Messages without what no record holds; anything else unchanged."""
    for turn in turns:
        if type(turn) is not dict or len(turn) > 2 or type(turn.get("content")) is not str:
            break
    else:
        return turns
    if not all(isinstance(turn, Message | Mapping) for turn in turns):
        return turns
    return tuple(turn if isinstance(turn, Message) else _sent_of_message(turn) for turn in turns)


def _sent_of_message(turn: Mapping[str, Any]) -> dict[str, Any]:
    """What `_message` reads of a message."""
    message = {key: turn[key] for key in ("role", "content") if key in turn}
    if isinstance(content := message.get("content"), _LISTS):
        message["content"] = [
            {key: part[key] for key in ("type", "text") if key in part} if isinstance(part, Mapping) else part
            for part in content
        ]
    return message


def _size(stack: list[Any]) -> int:
    """About how many bytes these values take, with all that is in them; empties the list."""
    size = seen = skipped = 0
    containers: set[int] = set()
    while stack and seen < _SIZED_ITEMS:
        value = stack.pop()
        seen += 1
        kind = type(value)
        if kind is str or isinstance(value, str):
            size += 50 + str.__len__(value)
        elif kind in _SMALL:
            size += 50
        elif kind is dict or isinstance(value, _STRUCTURES):
            if id(value) in containers:
                continue  # in itself, or here for the second time
            containers.add(id(value))
            size += 50
            room = _SIZED_ITEMS - seen
            skipped += max(0, len(value) - room)
            try:
                if isinstance(value, Mapping):
                    size += sum([str.__len__(key) for key in islice(value, room) if isinstance(key, str)])
                    stack.extend(islice(value.values(), room))
                else:
                    stack.extend(islice(value, room))
            except RuntimeError:  # another thread changes it
                size += _OBJECT_BYTES
        elif kind in _PARTS:
            stack.extend([getattr(value, part) for part in _PARTS[kind]])
        else:
            size += 50 + len(value) if isinstance(value, bytes | bytearray) else _OBJECT_BYTES
    skipped += len(stack)
    return size + skipped * (size // seen) if skipped else size
