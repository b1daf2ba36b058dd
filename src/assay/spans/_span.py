"""A finished span, and what it is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Kind = Literal["llm", "retrieval", "rerank", "tool", "evaluator", "other"]

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
RESULT_EVENTS: Final = ("db.query.result", "db.search.result")


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
    if any(event.name in RESULT_EVENTS for event in span.events):
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
