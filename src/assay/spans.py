"""Finished spans of an LLM application, in any dialect, and the interactions that they tell of.

Dialects: OpenTelemetry's GenAI conventions (content in attributes, or in events as until 1.36), OpenInference,
OpenLLMetry (flattened `gen_ai.prompt.0.content`, and its present form), and what MLflow and Langfuse add of their own.

Each span of a model call becomes one interaction; passages come from the retrieval spans of its trace. Attributes are
text of strangers, of any type, size and depth: what cannot be read is left out, and nothing here raises because of it.
Pure, standard library only.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from assay.loopguard import JUDGE_OPENING, MARK, SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Why a span of a model call became no interaction. no_content: its instrumentation captures no texts. no_answer: the
#: model only called tools, the answer comes with a later span. nested: the same call, seen by a second library.
#: judge: a judge's own call. unreadable: a bug of ours, met by values that nobody foresaw.
SkipReason = Literal["no_content", "no_answer", "nested", "judge", "unreadable"]

Kind = Literal["llm", "retrieval", "rerank", "tool", "evaluator", "other"]

#: Longer JSON in one attribute stays text.
_MOST_JSON: Final = 2_000_000
_MOST_MESSAGES: Final = 500
_MOST_DOCUMENTS: Final = 200
#: How deep, and how many values, of a structure are turned into text.
_MOST_DEPTH: Final = 24
_MOST_VALUES: Final = 50_000
_MOST_ANCESTORS: Final = 200
#: Spans before a call that are looked at for its passages and tools: the latest.
_MOST_BEFORE: Final = 200
_MOST_TOKENS: Final = 2**31

#: An attribute of one of these names makes a span one that `interactions` looks at. Kept few: the app's thread asks.
DISCRIMINATORS: Final = frozenset(
    {
        "gen_ai.operation.name",
        "gen_ai.system",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "openinference.span.kind",
        "traceloop.span.kind",
        "llm.request.type",
        "mlflow.spanType",
        "langfuse.observation.type",
        "db.system",
    }
)

_KINDS: Final[dict[str, Kind]] = {
    # OpenInference, MLflow and Langfuse, in lower case
    "llm": "llm",
    "chat_model": "llm",
    "generation": "llm",
    "retriever": "retrieval",
    "reranker": "rerank",
    "tool": "tool",
    "evaluator": "evaluator",
    # gen_ai.operation.name, llm.request.type
    "chat": "llm",
    "completion": "llm",
    "text_completion": "llm",
    "generate_content": "llm",
    "retrieval": "retrieval",
    "execute_tool": "tool",
}
_KIND_ATTRIBUTES: Final = (
    "openinference.span.kind",
    "langfuse.observation.type",
    "mlflow.spanType",
    "gen_ai.operation.name",
    "llm.request.type",
    "traceloop.span.kind",
)
_RESULT_EVENTS: Final = ("db.query.result", "db.search.result")
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
_TEXT_KEYS: Final = ("content", "text", "output", "answer", "result", "response", "output_text", "completion")
_INPUT_KEYS: Final = ("input", "question", "query", "prompt", "text", "content")
_DOCUMENT_KEYS: Final = ("content", "page_content", "text", "document", "body")
#: An attribute of this prefix becomes a cohort label.
COHORT_PREFIX: Final = "assay.cohort."
_REFS: Final = {
    "gen_ai.response.id": "response_id",
    "opik.trace_id": "opik_trace_id",
    "opik.span_id": "opik_span_id",
    "braintrust.row_id": "braintrust_row_id",
    "helicone.request_id": "helicone_request_id",
    "langsmith.run.id": "langsmith_run_id",
    "weave.call_id": "weave_call_id",
    "mlflow.traceRequestId": "mlflow_trace_id",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanEvent:
    """An event of a span, or a log record that was written in it; `body` is that of a log record."""

    name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A finished span, wherever it comes from. Ids are lower-case hex, times seconds since the epoch.

    Values of attributes are whatever the tracing library kept: texts, numbers, sequences, mappings.
    """

    trace_id: str
    span_id: str
    parent_id: str | None = None
    name: str = ""
    start_seconds: float = 0.0
    end_seconds: float = 0.0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[SpanEvent] = ()
    #: whether its status is an error
    failed: bool = False
    resource: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """What a trace tells of: (span, fields for `Client.record`), and how many model calls became none, by reason."""

    interactions: list[tuple[Span, dict[str, Any]]] = field(default_factory=list)
    skipped: Counter[SkipReason] = field(default_factory=Counter)


def kind_of(span: Span) -> Kind:
    """What the span is about; `other` for what is not of interest here."""
    attributes = span.attributes
    for name in _KIND_ATTRIBUTES:
        value = attributes.get(name)
        if isinstance(value, str) and value:
            # MLflow keeps its own attributes as JSON.
            kind = _KINDS.get(value.strip('"').lower())
            if kind is not None:
                return kind
            if name != "traceloop.span.kind" and value.strip('"').lower() != "unknown":
                return "other"
    if ("gen_ai.system" in attributes or "gen_ai.provider.name" in attributes) and "gen_ai.request.model" in attributes:
        return "llm"
    if any(event.name in _RESULT_EVENTS for event in span.events):
        return "retrieval"
    return "other"


def record_id_of(trace_id: str, span_id: str) -> str:
    """The record id of a span: the same whichever way it comes in, so that it is scored once."""
    return f"otel-{trace_id}-{span_id}"


def app_of(span: Span, default: str = "default") -> str:
    """The application that a span is of: its `service.name`, at most 100 characters."""
    for name in ("service.name", "openinference.project.name"):
        value = span.resource.get(name)
        if isinstance(value, str) and value.strip() and not value.startswith("unknown_service"):
            return value.strip()[:100]
    return default


def interactions(spans: Iterable[Span]) -> Found:
    """The interactions of one trace, in the order of their spans' start. Never raises because of what spans hold."""
    trace = _Trace(spans)
    found = Found()
    for span in trace.llm_spans():
        try:
            fields = _interaction(span, trace)
        except Exception:  # noqa: BLE001 - whatever strangers put into a span, the others of its trace are read
            fields = "unreadable"
        if isinstance(fields, str):
            found.skipped[fields] += 1
        else:
            found.interactions.append((span, fields))
    return found


class _Trace:
    """The spans of one trace, by what is asked of them."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.by_id: dict[str, Span] = {}
        self.kinds: dict[str, Kind] = {}
        for span in spans:
            self.by_id[span.span_id] = span  # the same span sent again takes the place of the first
        for span_id, span in self.by_id.items():
            try:
                self.kinds[span_id] = kind_of(span)
            except Exception:  # noqa: BLE001 - as in `interactions`
                self.kinds[span_id] = "other"
        # Made when asked for: a trace of thousands of calls must not be gone through for each of them.
        self._ended: dict[tuple[Kind, ...], tuple[_Ended, dict[str, _Ended]]] = {}
        self._documents: dict[str, list[dict[str, Any]]] = {}
        self._whole: dict[str, bool] = {}

    def llm_spans(self) -> list[Span]:
        found = [span for span_id, span in self.by_id.items() if self.kinds[span_id] == "llm"]
        return sorted(found, key=lambda span: (span.start_seconds, span.span_id))

    def ancestors(self, span: Span) -> Iterator[Span]:
        """Parents from the nearest on; ends at a cycle."""
        seen = {span.span_id}
        while span.parent_id is not None and span.parent_id not in seen and len(seen) < _MOST_ANCESTORS:
            seen.add(span.parent_id)
            parent = self.by_id.get(span.parent_id)
            if parent is None:
                return
            span = parent
            yield span

    def before(self, span: Span, kinds: tuple[Kind, ...]) -> list[Span]:
        """Spans of these kinds that ended before this one began, beneath the nearest ancestor that has any.

        By their start; of more than 200 the latest to end.
        """
        if kinds not in self._ended:
            self._ended[kinds] = self._by_end(kinds)
        everything, beneath = self._ended[kinds]
        for ancestor in self.ancestors(span):
            if ancestor.span_id in beneath and (found := beneath[ancestor.span_id].until(span.start_seconds)):
                return found
        # Their parents did not come with them: all that the trace has.
        return everything.until(span.start_seconds)

    def documents(self, span: Span) -> list[dict[str, Any]]:
        """The documents of a retrieval span that have a text."""
        if span.span_id not in self._documents:
            self._documents[span.span_id] = _documents(span)
        return self._documents[span.span_id]

    def is_whole(self, span: Span) -> bool:
        """Whether the span of a model call has both input and answer."""
        if span.span_id not in self._whole:
            self._whole[span.span_id] = bool(_input_turns(span) and _answer(span).text)
        return self._whole[span.span_id]

    def _by_end(self, kinds: tuple[Kind, ...]) -> tuple[_Ended, dict[str, _Ended]]:
        """The spans of these kinds, and those beneath each span that has any (and it itself)."""
        everything, beneath = _Ended(), dict[str, _Ended]()
        chosen = [span for span_id, span in self.by_id.items() if self.kinds[span_id] in kinds]
        for span in sorted(chosen, key=lambda each: each.end_seconds):
            everything.add(span)
            for above in (span, *self.ancestors(span)):
                beneath.setdefault(above.span_id, _Ended()).add(span)
        return everything, beneath


class _Ended:
    """Spans in the order of their ends."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._spans: list[Span] = []

    def add(self, span: Span) -> None:
        """Add one that ended last."""
        self._ends.append(span.end_seconds)
        self._spans.append(span)

    def until(self, seconds: float) -> list[Span]:
        """The latest that had ended by then, by their start."""
        place = bisect_right(self._ends, seconds)
        found = self._spans[max(0, place - _MOST_BEFORE) : place]
        return sorted(found, key=lambda span: (span.start_seconds, span.span_id))


def _interaction(span: Span, trace: _Trace) -> dict[str, Any] | SkipReason:
    line = [span, *trace.ancestors(span)]
    if any(_marked(each) or trace.kinds[each.span_id] == "evaluator" for each in line):
        return "judge"
    turns = _input_turns(span)
    if turns and turns[0].role == "system" and turns[0].text.lstrip().startswith(JUDGE_OPENING):
        return "judge"
    answer = _answer(span)
    failed = span.failed and not answer.text
    if not turns or not (answer.text or answer.calls or failed):
        return "no_content"
    if not answer.text and answer.calls and not failed:
        return "no_answer"
    outer = next((each for each in line[1:] if trace.kinds[each.span_id] == "llm"), None)
    if outer is not None and trace.is_whole(outer):
        return "nested"
    fields: dict[str, Any] = {
        "record_id": record_id_of(span.trace_id, span.span_id),
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "timestamp": span.start_seconds if span.start_seconds > 0 else None,
        "input": [{"role": turn.role, "content": turn.shown()} for turn in turns],
        "output": answer.text,
        "contexts": _contexts(span, trace),
        "model": _first(
            line[:1],
            "gen_ai.response.model",
            "gen_ai.request.model",
            "llm.model_name",
            "langfuse.observation.model.name",
            "mlflow.llm.model",
            "embedding.model_name",
        ),
        "usage": _usage(span),
        "finish_reason": "error" if failed else answer.reason,
        "tool_events": _tool_events(turns, span, trace),
        "session_id": _first(
            line,
            "gen_ai.conversation.id",
            "session.id",
            "langfuse.session.id",
            "mlflow.trace.session",
            "traceloop.association.properties.session_id",
        ),
        "user_id": _first(
            line,
            "user.id",
            "enduser.id",
            "langfuse.user.id",
            "mlflow.trace.user",
            "traceloop.association.properties.user_id",
        ),
        "route": _first(line, "assay.route", "http.route"),
        "prompt_version": _first(
            line[:1],
            "assay.prompt_version",
            "gen_ai.prompt.version",
            "llm.prompt_template.version",
            "langfuse.observation.prompt.version",
            "traceloop.prompt.version",
        ),
        "cohort": _cohort(line),
        "sink_refs": _sink_refs(line),
        "metadata": _metadata(span, failed),
    }
    seconds = span.end_seconds - span.start_seconds
    if span.start_seconds > 0 and 0 <= seconds < math.inf:
        fields["latency_seconds"] = seconds
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def _marked(span: Span) -> bool:
    """Whether the span is of a judge call, or of assay's own making."""
    attributes, resource = span.attributes, span.resource
    return (
        _true(attributes.get(MARK))
        or _true(resource.get(MARK))
        or _string(resource.get("service.name")) in SERVICES
        or "gen_ai.evaluation.name" in attributes
    )


def _true(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.lower() in ("true", "1"))


# -- messages


@dataclass(slots=True)
class _Call:
    name: str
    arguments: str | None = None
    id: str | None = None


@dataclass(slots=True)
class _Turn:
    """One message: its text, the tools that it calls, and the calls (by id) that it answers."""

    role: str
    text: str = ""
    calls: list[_Call] = field(default_factory=list)
    answers: list[tuple[str | None, str]] = field(default_factory=list)
    reason: str | None = None

    def shown(self) -> str:
        """The text, with the calls that it makes."""
        calls = (f"[calls {call.name}({call.arguments or ''})]" for call in self.calls)
        return "\n".join(part for part in (self.text, *calls) if part)


@dataclass(slots=True)
class _Answer:
    text: str = ""
    calls: list[_Call] = field(default_factory=list)
    reason: str | None = None


def _input_turns(span: Span) -> list[_Turn]:
    """The messages that the model was given."""
    attributes = span.attributes
    for source in (attributes, *(event.attributes for event in span.events)):
        if source.get("gen_ai.input.messages"):
            turns = _turns(source["gen_ai.input.messages"])
            if turns:
                told = _text(_read(source.get("gen_ai.system_instructions")))
                return [_Turn("system", told), *turns] if told else turns
    for prefix, inner in (("llm.input_messages.", "message."), ("gen_ai.prompt.", "")):
        if turns := _turns(_unflattened(attributes, prefix, inner)):
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


def _answer(span: Span) -> _Answer:
    """The model's answer: the text of the first choice, and the tools that it calls."""
    attributes = span.attributes
    turns: list[_Turn] = []
    for source in (attributes, *(event.attributes for event in span.events)):
        if not turns and source.get("gen_ai.output.messages"):
            turns = _turns(source["gen_ai.output.messages"])
    for prefix, inner in (("llm.output_messages.", "message."), ("gen_ai.completion.", "")):
        turns = turns or _turns(_unflattened(attributes, prefix, inner))
    turns = turns or _choices(span)
    answer = _Answer()
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
            if attributes.get(name) is not None and (text := _text(_read(attributes[name]))):
                answer.text = text
                break
    answer.reason = _reason(answer.reason, attributes)
    return answer


def _reason(said: str | None, attributes: Mapping[str, Any]) -> str | None:
    for value in (said, attributes.get("gen_ai.response.finish_reasons"), attributes.get("llm.finish_reason")):
        value = _read(value) if isinstance(value, str) and value.startswith("[") else value
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            value = value[0]
        if isinstance(value, str) and value:
            word = value[:100].replace("\0", "").lower().rpartition(".")[2]
            return _REASONS.get(word, word) or None
    return None


def _event_turns(span: Span) -> list[_Turn]:
    """Messages in events, as OpenTelemetry's conventions had them until 1.36."""
    turns: list[_Turn] = []
    for event in span.events[:_MOST_MESSAGES]:
        role, _, rest = event.name.removeprefix("gen_ai.").partition(".")
        if event.name.startswith("gen_ai.") and rest == "message" and role in ("system", "user", "assistant", "tool"):
            body = _read(event.body) if event.body is not None else _event_fields(event)
            turn = _turn(body if isinstance(body, Mapping) else {"content": body}, role)
            if turn is not None:
                turns.append(turn)
        elif event.name == "gen_ai.content.prompt":
            turns += _turns(event.attributes.get("gen_ai.prompt"))
    # An event without its body says that there was a message, not what it said.
    return turns if any(turn.text for turn in turns) else []


def _choices(span: Span) -> list[_Turn]:
    turns: list[_Turn] = []
    for event in span.events[:_MOST_MESSAGES]:
        if event.name == "gen_ai.choice":
            body = _read(event.body) if event.body is not None else _event_fields(event)
            if isinstance(body, Mapping):
                message = _read(body.get("message"))
                turn = _turn(message if isinstance(message, Mapping) else body, "assistant")
                if turn is not None:
                    turn.reason = turn.reason or _string(body.get("finish_reason"))
                    turns.append(turn)
        elif event.name == "gen_ai.content.completion":
            turns += _turns(event.attributes.get("gen_ai.completion"))
    return turns


def _event_fields(event: SpanEvent) -> dict[str, Any]:
    """The fields of an event on a span; some write them with a prefix."""
    return {str(name).removeprefix("gen_ai.event."): value for name, value in event.attributes.items()}


def _turns(value: object) -> list[_Turn]:
    """Messages in whatever form libraries write them."""
    value = _read(value)
    if isinstance(value, str):
        return [_Turn("user", value)] if value.strip() else []
    if isinstance(value, Mapping):
        if "messages" in value:
            return _turns(value["messages"])
        if _is_message(value):
            turn = _turn(value, "user")
            return [turn] if turn is not None else []
        text = next((_text(value[key]) for key in _INPUT_KEYS if value.get(key)), "") or _json(value)
        return [_Turn("user", text)] if text else []
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        if value and isinstance(value[0], Sequence) and not isinstance(value[0], str | bytes):
            return _turns(value[0])  # a batch: its first
        turns = []
        for item in value[:_MOST_MESSAGES]:
            item = _read(item)
            turn = _turn(item, "user") if isinstance(item, Mapping) else _Turn("user", _text(item))
            if turn is not None and (turn.text or turn.calls or turn.answers):
                turns.append(turn)
        return turns
    return [_Turn("user", _text(value))] if value is not None and _text(value) else []


def _is_message(value: Mapping[Any, Any]) -> bool:
    return "parts" in value or "role" in value or ("kwargs" in value and "lc" in value)


def _turn(value: Mapping[Any, Any], role: str) -> _Turn | None:
    """One message; None for what is none."""
    if isinstance(value.get("kwargs"), Mapping) and "lc" in value:  # LangChain's own serialisation
        value = value["kwargs"]
    elif isinstance(value.get("data"), Mapping) and "type" in value:
        value = {**value["data"], "type": value["type"]}
    said = _string(value.get("role")) or (_string(value.get("type")) if "content" in value else None) or role
    turn = _Turn(_ROLES.get(said.lower(), said.lower()[:50]), reason=_string(value.get("finish_reason")))
    texts = []
    parts = _read(value["parts"]) if "parts" in value else value.get("content", value.get("contents"))
    if isinstance(parts, Sequence) and not isinstance(parts, str | bytes | bytearray):
        for part in parts[:_MOST_MESSAGES]:
            part = _read(part)
            if isinstance(part, Mapping):
                texts.append(_part(part, turn))
            else:
                texts.append(_text(part))
    else:
        texts.append(_text(parts))
    calls = _read(value.get("tool_calls"))
    for call in calls[:_MOST_MESSAGES] if isinstance(calls, Sequence) and not isinstance(calls, str) else ():
        if isinstance(call, Mapping):
            turn.calls.append(_call(call))
    turn.text = "\n".join(text for text in texts if text)
    if turn.role == "tool" and not turn.answers:
        turn.answers.append((_string(value.get("tool_call_id", value.get("id"))), turn.text))
    return turn


def _part(part: Mapping[Any, Any], turn: _Turn) -> str:
    """The text of one part of a message; calls and their answers are noted with the turn."""
    part = part["message_content"] if isinstance(part.get("message_content"), Mapping) else part
    kind = _string(part.get("type")) or "text"
    if kind in ("tool_call", "tool_use", "function_call"):
        turn.calls.append(_call(part))
        return ""
    if kind in ("tool_call_response", "tool_result"):
        # The schema says `response`, the examples of the specification `result`.
        said = next((part[key] for key in ("response", "result", "content", "output") if part.get(key) is not None), "")
        turn.answers.append((_string(part.get("id", part.get("tool_use_id"))), _text(said)))
        return _text(said)
    if kind in ("reasoning", "thinking", "redacted_thinking"):
        return ""  # not said to anybody
    text = part.get("content", part.get("text"))
    return _text(text) if kind in ("text", "input_text", "output_text") and text is not None else f"[{kind[:50]}]"


def _call(call: Mapping[Any, Any]) -> _Call:
    function = _read(call.get("function"))
    inner = function if isinstance(function, Mapping) else call
    arguments = inner.get("arguments", inner.get("args", inner.get("input")))
    return _Call(
        name=_string(inner.get("name")) or "unknown",
        arguments=None if arguments is None else _text(arguments),
        id=_string(call.get("id")),
    )


def _unflattened(attributes: Mapping[str, Any], prefix: str, inner: str) -> list[dict[str, Any]]:
    """`prefix<i>.<inner><name>` attributes as a list of dicts; parts and tool calls of messages as lists in them."""
    rows: dict[int, dict[str, Any]] = {}
    for name, value in attributes.items():
        if not name.startswith(prefix):
            continue
        index, _, rest = name[len(prefix) :].partition(".")
        if not (index.isascii() and index.isdigit() and len(index) < 7 and rest.startswith(inner)):
            continue
        rows.setdefault(int(index), {})[rest[len(inner) :]] = value
    return [_row(rows[index]) for index in sorted(rows)[:_MOST_MESSAGES]]


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
    return [rows[index] for index in sorted(rows)[:_MOST_MESSAGES]]


# -- what else a span tells


def _contexts(span: Span, trace: _Trace) -> list[dict[str, Any]]:
    """The passages that were found before the call; where a reranker chose among them, those it chose."""
    before = trace.before(span, ("retrieval", "rerank"))
    ranked = [other for other in before if trace.kinds[other.span_id] == "rerank" and trace.documents(other)]
    found: list[dict[str, Any]] = []
    seen: set[tuple[str | None, str]] = set()
    # A retriever often wraps the query of a database, and both tell of the same passages.
    for other in ranked or before:
        if len(found) >= _MOST_DOCUMENTS:
            break
        for document in trace.documents(other):
            key = (document["id"], document["text"])
            known = key in seen or (None, document["text"]) in seen or (key[0] is None and _has(seen, key[1]))
            if not known and len(found) < _MOST_DOCUMENTS:
                seen.add(key)
                found.append({name: value for name, value in document.items() if value is not None})
    return found


def _has(seen: set[tuple[str | None, str]], text: str) -> bool:
    return any(text == known for _, known in seen)


def _documents(span: Span) -> list[dict[str, Any]]:
    """The documents of a retrieval span that have a text."""
    attributes = span.attributes
    rows: list[Any] = []
    for prefix in ("reranker.output_documents.", "retrieval.documents."):
        rows = rows or _unflattened(attributes, prefix, "document.")
    if not rows:
        rows = _list(attributes.get("gen_ai.retrieval.documents"))
    if not rows:
        for event in span.events[:_MOST_DOCUMENTS]:
            for prefix in _RESULT_EVENTS:
                if event.name == prefix:
                    named = {str(name).removeprefix(f"{prefix}."): v for name, v in event.attributes.items()}
                    rows.append(named)
    for name in ("langfuse.observation.output", "mlflow.spanOutputs", "output.value"):
        rows = rows or _list(attributes.get(name))
    documents = (_document(row) for row in rows[:_MOST_DOCUMENTS])
    return [document for document in documents if document is not None]


def _list(value: object) -> list[Any]:
    value = _read(value)
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("documents", "results", "matches") if key in value), None)
    return list(value[:_MOST_DOCUMENTS]) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def _document(row: object) -> dict[str, Any] | None:
    row = _read(row)
    if isinstance(row, str):
        return {"text": row, "id": None, "score": None} if row.strip() else None
    if not isinstance(row, Mapping):
        return None
    text = next((_text(row[key]) for key in _DOCUMENT_KEYS if row.get(key)), "")
    score = row.get("score")
    usable = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
    identity = _string(row.get("id"))
    if identity is None and isinstance(metadata := _read(row.get("metadata")), Mapping):
        identity = _string(metadata.get("chunk_id", metadata.get("doc_uri")))
    return {"text": text, "id": identity, "score": score if usable else None} if text else None


def _tool_events(turns: Sequence[_Turn], span: Span, trace: _Trace) -> list[dict[str, Any]]:
    """The tools called since the user last spoke: by the messages, with errors from the spans of the tools."""
    last = max((place for place, turn in enumerate(turns) if turn.role == "user"), default=-1)
    events: list[dict[str, Any]] = []
    by_id: dict[str, dict[str, Any]] = {}
    for turn in turns[last + 1 :]:
        for call in turn.calls:
            event: dict[str, Any] = {"name": call.name, "arguments": call.arguments}
            events.append(event)
            if call.id is not None:
                by_id[call.id] = event
        for identity, said in turn.answers:
            open_ = by_id.get(identity or "") or next((e for e in events if "result" not in e), None)
            if open_ is not None:
                open_["result"] = said
    spans = trace.before(span, ("tool",))
    if not events:
        events = [_tool_of(each) for each in spans]
    else:
        failed = {event["name"]: event for event in (_tool_of(each) for each in spans) if "error" in event}
        for event in events:
            if event["name"] in failed:
                event["error"] = failed[event["name"]]["error"]
    return [{name: value for name, value in event.items() if value is not None} for event in events[:_MOST_MESSAGES]]


def _tool_of(span: Span) -> dict[str, Any]:
    arguments = _text_of(
        span, "gen_ai.tool.call.arguments", "langfuse.observation.input", "input.value", "traceloop.entity.input"
    )
    result = _text_of(
        span, "gen_ai.tool.call.result", "langfuse.observation.output", "output.value", "traceloop.entity.output"
    )
    name = _text_of(span, "gen_ai.tool.name", "tool.name", "traceloop.entity.name") or _string(span.name)
    event: dict[str, Any] = {"name": name[:200] if name else "unknown", "arguments": arguments, "result": result}
    if span.failed:
        event["error"] = _text_of(span, "error.type") or "error"
    return event


def _usage(span: Span) -> dict[str, Any]:
    attributes = span.attributes
    told = _read(attributes.get("langfuse.observation.usage_details", attributes.get("mlflow.chat.tokenUsage")))
    details = told if isinstance(told, Mapping) else {}
    costs = _read(attributes.get("langfuse.observation.cost_details", attributes.get("mlflow.llm.cost")))
    costs = costs if isinstance(costs, Mapping) else {}

    def tokens(*names: str) -> int | None:
        values = (attributes.get(name, details.get(name)) for name in names)
        return next((n for value in values if (n := _count(value)) is not None), None)

    prompt = tokens(
        "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt", "input", "input_tokens"
    )
    completion = tokens(
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.completion_tokens",
        "llm.token_count.completion",
        "output",
        "output_tokens",
    )
    cost = next(
        (
            float(value)
            for value in (attributes.get("llm.cost.total"), attributes.get("gen_ai.usage.cost"), costs.get("total"))
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        ),
        None,
    )
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "cost_usd": cost}
    return {name: value for name, value in usage.items() if value is not None}


def _count(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS else None


def _cohort(line: Sequence[Span]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for span in line:
        for source in (span.attributes, span.resource):
            for name, value in source.items():
                label = _string(name[len(COHORT_PREFIX) :]) if name.startswith(COHORT_PREFIX) else None
                if label and (text := _string(value)):
                    labels.setdefault(label, text)
    return labels


def _sink_refs(line: Sequence[Span]) -> dict[str, str]:
    """Ids that other systems know the interaction by, where attributes give them. `response_id` is the call's own."""
    refs: dict[str, str] = {}
    for place, span in enumerate(line):
        for name, ref in _REFS.items():
            if (place == 0 or ref != "response_id") and (text := _string(span.attributes.get(name))):
                refs.setdefault(ref, text.strip('"'))
    return refs


def _metadata(span: Span, failed: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"span": span.name[:200]} if span.name else {}
    if failed:
        # Its type only: a message may hold anything.
        metadata["error"] = _text_of(span, "error.type") or _exception(span) or "error"
    return metadata


def _exception(span: Span) -> str | None:
    named = (event.attributes.get("exception.type") for event in span.events if event.name == "exception")
    return next((text for value in named if (text := _string(value))), None)


# -- values


def _first(line: Sequence[Span], *names: str) -> str | None:
    """The first of these attributes on the span, else on its nearest ancestor that has one."""
    found = (text for span in line if (text := _text_of(span, *names)))
    return next((name for text in found if (name := _string(text))), None)


def _text_of(span: Span, *names: str) -> str | None:
    for name in names:
        value = span.attributes.get(name)
        if value is not None and (text := value if isinstance(value, str) else _text(value)):
            return text
    return None


def _string(value: object) -> str | None:
    """A short text or number as text; anything else is none."""
    if isinstance(value, str):
        return value[:500].replace("\0", "") or None  # more than that, or a NUL, would cost the whole record
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _read(value: object) -> Any:
    """The value, with JSON in texts read; a text that is no JSON stays as it is."""
    if isinstance(value, bytes | bytearray):
        value = bytes(value[:_MOST_JSON]).decode("utf-8", "replace")
    if isinstance(value, str) and len(value) <= _MOST_JSON and value.lstrip()[:1] in ("{", "[", '"'):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _text(value: object) -> str:
    """The text in a value: of a message or a completion what it says, of other structures their JSON."""
    if isinstance(value, str):
        return str.__str__(value)
    if value is None:
        return ""
    if isinstance(value, bytes | bytearray):
        return bytes(value[:_MOST_JSON]).decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return _said(value) or _json(value)
    if isinstance(value, Sequence):
        return _all_said(value) or _json(value)
    return _json(value)


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
    for part in value[:_MOST_MESSAGES]:
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "output_text", "input_text"):
            return ""
        texts.append(_string_or_empty(part.get("text", part.get("content"))))
    return "\n".join(text for text in texts if text)


def _string_or_empty(value: object) -> str:
    return value if isinstance(value, str) else ""


def _json(value: object) -> str:
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
