"""The messages that a model was given, and its answer, in whatever form libraries write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from assay.spans._values import MOST_MESSAGES, json_of, read, short_text, text_in

if TYPE_CHECKING:
    from assay.spans._span import Span, SpanEvent

_ROLES: Final = {"human": "user", "ai": "assistant", "model": "assistant", "function": "tool", "developer": "system"}
_REASONS: Final = {
    "tool_calls": "tool_call",
    "function_call": "tool_call",
    "tool_use": "tool_call",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "completed": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "incomplete": "length",
    "safety": "content_filter",
}
_INPUT_KEYS: Final = ("input", "question", "query", "prompt", "text", "content")


@dataclass(slots=True)
class Call:
    name: str
    arguments: str | None = None
    id: str | None = None


@dataclass(slots=True)
class Turn:
    """One message: its text, the tools that it calls, and the calls (by id) that it answers."""

    role: str
    text: str = ""
    calls: list[Call] = field(default_factory=list)
    answers: list[tuple[str | None, str]] = field(default_factory=list)
    reason: str | None = None

    def shown(self) -> str:
        """The text, with the calls that it makes."""
        calls = (f"[calls {call.name}({call.arguments or ''})]" for call in self.calls)
        return "\n".join(part for part in (self.text, *calls) if part)


@dataclass(slots=True)
class Answer:
    text: str = ""
    calls: list[Call] = field(default_factory=list)
    reason: str | None = None


def input_turns(span: Span) -> list[Turn]:
    """The messages that the model was given."""
    attributes = span.attributes
    for source in (attributes, *(event.attributes for event in span.events)):
        if source.get("gen_ai.input.messages"):
            turns = _turns(source["gen_ai.input.messages"])
            if turns:
                told = text_in(read(source.get("gen_ai.system_instructions")))
                return [Turn("system", told), *turns] if told else turns
    for prefix, inner in (("llm.input_messages.", "message."), ("gen_ai.prompt.", "")):
        if turns := _turns(unflattened(attributes, prefix, inner)):
            return turns
    if turns := _event_turns(span):
        return turns
    for name in (
        "langfuse.observation.input",
        "mlflow.spanInputs",
        "input.value",
        "gen_ai.prompt",
        "llm.prompts",
        "traceloop.entity.input",
    ):
        if (value := attributes.get(name)) is not None and (turns := _turns(value)):
            return turns
    return []


def answer_of(span: Span) -> Answer:
    """The model's answer: the text of the first choice, and the tools that it calls."""
    attributes = span.attributes
    turns: list[Turn] = []
    for source in (attributes, *(event.attributes for event in span.events)):
        if not turns and source.get("gen_ai.output.messages"):
            turns = _turns(source["gen_ai.output.messages"])
    for prefix, inner in (("llm.output_messages.", "message."), ("gen_ai.completion.", "")):
        turns = turns or _turns(unflattened(attributes, prefix, inner))
    turns = turns or _choices(span)
    answer = Answer()
    if turns:
        # Of several choices the first; what the model said in several messages, together.
        answer.text = turns[0].text
        answer.calls, answer.reason = turns[0].calls, turns[0].reason
    if not answer.text and not answer.calls:
        for name in (
            "langfuse.observation.output",
            "mlflow.spanOutputs",
            "output.value",
            "gen_ai.completion",
            "traceloop.entity.output",
        ):
            if attributes.get(name) is not None and (text := text_in(read(attributes[name]))):
                answer.text = text
                break
    answer.reason = _reason(answer.reason, attributes)
    return answer


def _reason(said: str | None, attributes: Mapping[str, Any]) -> str | None:
    for value in (said, attributes.get("gen_ai.response.finish_reasons"), attributes.get("llm.finish_reason")):
        value = read(value) if isinstance(value, str) and value.startswith("[") else value
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            value = value[0]
        if isinstance(value, str) and value:
            word = value[:100].replace("\0", "").lower().rpartition(".")[2]
            return _REASONS.get(word, word) or None
    return None


def _event_turns(span: Span) -> list[Turn]:
    """Messages in events, as OpenTelemetry's conventions had them until 1.36."""
    turns: list[Turn] = []
    for event in span.events[:MOST_MESSAGES]:
        role, _, rest = event.name.removeprefix("gen_ai.").partition(".")
        if event.name.startswith("gen_ai.") and rest == "message" and role in ("system", "user", "assistant", "tool"):
            body = read(event.body) if event.body is not None else _event_fields(event)
            turn = _turn(body if isinstance(body, Mapping) else {"content": body}, role)
            if turn is not None:
                turns.append(turn)
        elif event.name == "gen_ai.content.prompt":
            turns += _turns(event.attributes.get("gen_ai.prompt"))
    # An event without its body says that there was a message, not what it said.
    return turns if any(turn.text for turn in turns) else []


def _choices(span: Span) -> list[Turn]:
    turns: list[Turn] = []
    for event in span.events[:MOST_MESSAGES]:
        if event.name == "gen_ai.choice":
            body = read(event.body) if event.body is not None else _event_fields(event)
            if isinstance(body, Mapping):
                message = read(body.get("message"))
                turn = _turn(message if isinstance(message, Mapping) else body, "assistant")
                if turn is not None:
                    turn.reason = turn.reason or short_text(body.get("finish_reason"))
                    turns.append(turn)
        elif event.name == "gen_ai.content.completion":
            turns += _turns(event.attributes.get("gen_ai.completion"))
    return turns


def _event_fields(event: SpanEvent) -> dict[str, Any]:
    """The fields of an event on a span; some write them with a prefix."""
    return {str(name).removeprefix("gen_ai.event."): value for name, value in event.attributes.items()}


def _turns(value: object) -> list[Turn]:
    """Messages in whatever form libraries write them."""
    value = read(value)
    if isinstance(value, str):
        return [Turn("user", value)] if value.strip() else []
    if isinstance(value, Mapping):
        if "messages" in value:
            return _turns(value["messages"])
        if _is_message(value):
            turn = _turn(value, "user")
            return [turn] if turn is not None else []
        text = next((text_in(value[key]) for key in _INPUT_KEYS if value.get(key)), "") or json_of(value)
        return [Turn("user", text)] if text else []
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        if value and isinstance(value[0], Sequence) and not isinstance(value[0], str | bytes):
            return _turns(value[0])  # a batch: its first
        turns = []
        for item in value[:MOST_MESSAGES]:
            item = read(item)
            turn = _turn(item, "user") if isinstance(item, Mapping) else Turn("user", text_in(item))
            if turn is not None and (turn.text or turn.calls or turn.answers):
                turns.append(turn)
        return turns
    return [Turn("user", text_in(value))] if value is not None and text_in(value) else []


def _is_message(value: Mapping[Any, Any]) -> bool:
    return "parts" in value or "role" in value or ("kwargs" in value and "lc" in value)


def _turn(value: Mapping[Any, Any], role: str) -> Turn | None:
    """One message; None for what is none."""
    if isinstance(value.get("kwargs"), Mapping) and "lc" in value:  # LangChain's own serialisation
        value = value["kwargs"]
    elif isinstance(value.get("data"), Mapping) and "type" in value:
        value = {**value["data"], "type": value["type"]}
    said = short_text(value.get("role")) or (short_text(value.get("type")) if "content" in value else None) or role
    turn = Turn(_ROLES.get(said.lower(), said.lower()[:50]), reason=short_text(value.get("finish_reason")))
    texts = []
    parts = read(value["parts"]) if "parts" in value else value.get("content", value.get("contents"))
    if isinstance(parts, Sequence) and not isinstance(parts, str | bytes | bytearray):
        for part in parts[:MOST_MESSAGES]:
            part = read(part)
            if isinstance(part, Mapping):
                texts.append(_part(part, turn))
            else:
                texts.append(text_in(part))
    else:
        texts.append(text_in(parts))
    calls = read(value.get("tool_calls"))
    for call in calls[:MOST_MESSAGES] if isinstance(calls, Sequence) and not isinstance(calls, str) else ():
        if isinstance(call, Mapping):
            turn.calls.append(_call(call))
    turn.text = "\n".join(text for text in texts if text)
    if turn.role == "tool" and not turn.answers:
        turn.answers.append((short_text(value.get("tool_call_id", value.get("id"))), turn.text))
    return turn


def _part(part: Mapping[Any, Any], turn: Turn) -> str:
    """The text of one part of a message; calls and their answers are noted with the turn."""
    part = part["message_content"] if isinstance(part.get("message_content"), Mapping) else part
    kind = short_text(part.get("type")) or "text"
    if kind in ("tool_call", "tool_use", "function_call"):
        turn.calls.append(_call(part))
        return ""
    if kind in ("tool_call_response", "tool_result"):
        # The schema says `response`, the examples of the specification `result`.
        said = next((part[key] for key in ("response", "result", "content", "output") if part.get(key) is not None), "")
        turn.answers.append((short_text(part.get("id", part.get("tool_use_id"))), text_in(said)))
        return text_in(said)
    if kind in ("reasoning", "thinking", "redacted_thinking"):
        return ""  # not said to anybody
    text = part.get("content", part.get("text"))
    return text_in(text) if kind in ("text", "input_text", "output_text") and text is not None else f"[{kind[:50]}]"


def _call(call: Mapping[Any, Any]) -> Call:
    function = read(call.get("function"))
    inner = function if isinstance(function, Mapping) else call
    arguments = inner.get("arguments", inner.get("args", inner.get("input")))
    return Call(
        name=short_text(inner.get("name")) or "unknown",
        arguments=None if arguments is None else text_in(arguments),
        id=short_text(call.get("id")),
    )


def unflattened(attributes: Mapping[str, Any], prefix: str, inner: str) -> list[dict[str, Any]]:
    """`prefix<i>.<inner><name>` attributes as a list of dicts; parts and tool calls of messages as lists in them."""
    rows: dict[int, dict[str, Any]] = {}
    for name, value in attributes.items():
        if not name.startswith(prefix):
            continue
        index, _, rest = name[len(prefix) :].partition(".")
        if not (index.isascii() and index.isdigit() and len(index) < 7 and rest.startswith(inner)):
            continue
        rows.setdefault(int(index), {})[rest[len(inner) :]] = value
    return [_row(rows[index]) for index in sorted(rows)[:MOST_MESSAGES]]


def _row(flat: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in flat.items() if "." not in name}
    for name, inner in (("contents", "message_content."), ("tool_calls", "tool_call.")):
        if parts := _unflattened_once(flat, f"{name}.", inner):
            row["parts" if name == "contents" else name] = parts
    return row


def _unflattened_once(flat: Mapping[str, Any], prefix: str, inner: str) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for name, value in flat.items():
        index, _, rest = name[len(prefix) :].partition(".") if name.startswith(prefix) else ("", "", "")
        if index.isascii() and index.isdigit() and len(index) < 7:
            # OpenLLMetry leaves the inner name out.
            rest = rest.removeprefix(inner)
            outer, _, last = rest.rpartition(".")
            row = rows.setdefault(int(index), {})
            if outer == "function":
                row.setdefault("function", {})[last] = value
            else:
                row[rest] = value
    return [rows[index] for index in sorted(rows)[:MOST_MESSAGES]]
