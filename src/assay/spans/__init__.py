"""Finished spans of an LLM application, in any dialect, and the interactions that they tell of.

Dialects: OpenTelemetry's GenAI conventions (content in attributes, or in events as until 1.36), OpenInference,
OpenLLMetry (flattened `gen_ai.prompt.0.content`, and its present form), and what MLflow and Langfuse add of their own.

Each span of a model call becomes one interaction; passages come from the retrieval spans of its trace. Attributes are
text of strangers, of any type, size and depth: what cannot be read is left out, and nothing here raises because of it.
Pure, standard library only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from assay.loopguard import JUDGE_OPENING, MARK, SERVICES
from assay.spans._documents import MOST_DOCUMENTS
from assay.spans._messages import Turn, answer_of, input_turns
from assay.spans._span import DISCRIMINATORS, Kind, Span, SpanEvent, app_of, kind_of, record_id_of
from assay.spans._trace import Trace
from assay.spans._values import MOST_MESSAGES, first_text, read, short_text, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "COHORT_PREFIX",
    "DISCRIMINATORS",
    "Found",
    "Kind",
    "SkipReason",
    "Span",
    "SpanEvent",
    "app_of",
    "interactions",
    "kind_of",
    "record_id_of",
]

#: Why a span of a model call became no interaction. no_content: its instrumentation captures no texts. no_answer: the
#: model only called tools, the answer comes with a later span. nested: the same call, seen by a second library.
#: judge: a judge's own call. unreadable: a bug of ours, met by values that nobody foresaw.
SkipReason = Literal["no_content", "no_answer", "nested", "judge", "unreadable"]

_MOST_TOKENS: Final = 2**31
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


@dataclass(frozen=True, slots=True)
class Found:
    """What a trace tells of: (span, fields for `Client.record`), and how many model calls became none, by reason."""

    interactions: list[tuple[Span, dict[str, Any]]] = field(default_factory=list)
    skipped: Counter[SkipReason] = field(default_factory=Counter)


def interactions(spans: Iterable[Span]) -> Found:
    """The interactions of one trace, in the order of their spans' start. Never raises because of what spans hold."""
    trace = Trace(spans)
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


def _interaction(span: Span, trace: Trace) -> dict[str, Any] | SkipReason:
    line = [span, *trace.ancestors(span)]
    if any(_marked(each) or trace.kinds[each.span_id] == "evaluator" for each in line):
        return "judge"
    turns = input_turns(span)
    if turns and turns[0].role == "system" and turns[0].text.lstrip().startswith(JUDGE_OPENING):
        return "judge"
    answer = answer_of(span)
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
        "model": first_text(
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
        "session_id": first_text(
            line,
            "gen_ai.conversation.id",
            "session.id",
            "langfuse.session.id",
            "mlflow.trace.session",
            "traceloop.association.properties.session_id",
        ),
        "user_id": first_text(
            line,
            "user.id",
            "enduser.id",
            "langfuse.user.id",
            "mlflow.trace.user",
            "traceloop.association.properties.user_id",
        ),
        "route": first_text(line, "assay.route", "http.route"),
        "prompt_version": first_text(
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
        or short_text(resource.get("service.name")) in SERVICES
        or "gen_ai.evaluation.name" in attributes
    )


def _true(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.lower() in ("true", "1"))


def _contexts(span: Span, trace: Trace) -> list[dict[str, Any]]:
    """The passages that were found before the call; where a reranker chose among them, those it chose."""
    before = trace.before(span, ("retrieval", "rerank"))
    ranked = [other for other in before if trace.kinds[other.span_id] == "rerank" and trace.documents(other)]
    found: list[dict[str, Any]] = []
    seen: set[tuple[str | None, str]] = set()
    # A retriever often wraps the query of a database, and both tell of the same passages.
    for other in ranked or before:
        if len(found) >= MOST_DOCUMENTS:
            break
        for document in trace.documents(other):
            key = (document["id"], document["text"])
            known = key in seen or (None, document["text"]) in seen or (key[0] is None and _has(seen, key[1]))
            if not known and len(found) < MOST_DOCUMENTS:
                seen.add(key)
                found.append({name: value for name, value in document.items() if value is not None})
    return found


def _has(seen: set[tuple[str | None, str]], text: str) -> bool:
    return any(text == known for _, known in seen)


def _tool_events(turns: Sequence[Turn], span: Span, trace: Trace) -> list[dict[str, Any]]:
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
    return [{name: value for name, value in event.items() if value is not None} for event in events[:MOST_MESSAGES]]


def _tool_of(span: Span) -> dict[str, Any]:
    arguments = text_of(
        span, "gen_ai.tool.call.arguments", "langfuse.observation.input", "input.value", "traceloop.entity.input"
    )
    result = text_of(
        span, "gen_ai.tool.call.result", "langfuse.observation.output", "output.value", "traceloop.entity.output"
    )
    name = text_of(span, "gen_ai.tool.name", "tool.name", "traceloop.entity.name") or short_text(span.name)
    event: dict[str, Any] = {"name": name[:200] if name else "unknown", "arguments": arguments, "result": result}
    if span.failed:
        event["error"] = text_of(span, "error.type") or "error"
    return event


def _usage(span: Span) -> dict[str, Any]:
    attributes = span.attributes
    told = read(attributes.get("langfuse.observation.usage_details", attributes.get("mlflow.chat.tokenUsage")))
    details = told if isinstance(told, Mapping) else {}
    costs = read(attributes.get("langfuse.observation.cost_details", attributes.get("mlflow.llm.cost")))
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
                label = short_text(name[len(COHORT_PREFIX) :]) if name.startswith(COHORT_PREFIX) else None
                if label and (text := short_text(value)):
                    labels.setdefault(label, text)
    return labels


def _sink_refs(line: Sequence[Span]) -> dict[str, str]:
    """Ids that other systems know the interaction by, where attributes give them. `response_id` is the call's own."""
    refs: dict[str, str] = {}
    for place, span in enumerate(line):
        for name, ref in _REFS.items():
            if (place == 0 or ref != "response_id") and (text := short_text(span.attributes.get(name))):
                refs.setdefault(ref, text.strip('"'))
    return refs


def _metadata(span: Span, failed: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"span": span.name[:200]} if span.name else {}
    if failed:
        # Its type only: a message may hold anything.
        metadata["error"] = text_of(span, "error.type") or _exception(span) or "error"
    return metadata


def _exception(span: Span) -> str | None:
    named = (event.attributes.get("exception.type") for event in span.events if event.name == "exception")
    return next((text for value in named if (text := short_text(value))), None)
