"""OpenTelemetry: each evaluation as a `gen_ai.evaluation.result` event, and as a span that links to the judged one.

Over OTLP/HTTP, in protobuf or JSON (opentelemetry-proto 1.x; in JSON ids are hex and 64-bit numbers text). The
event is that of the GenAI conventions (semantic-conventions v1.41, `model/gen-ai/events.yaml`; all of it is marked
Development). The span is also a carrier as OpenInference's `spec/annotations.md` has it: kind EVALUATOR, one link.
"""

from __future__ import annotations

import gzip
import hashlib
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

import assay
from assay.errors import SinkError
from assay.sinks import Annotation, Delivered, Rejected, SinkSettings, Skipped, provenance
from assay.sinks._http import Http, Reply, json_bytes, refused
from assay.sinks._otlp import partial_success, protobuf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from assay.sinks import Delivery

_EVENT = "gen_ai.evaluation.result"
_SCOPE = "assay.sinks.otel"
#: Of OTLP: SEVERITY_NUMBER_INFO and SEVERITY_NUMBER_WARN.
_INFO, _WARN = 9, 13
#: Of OTLP: SPAN_KIND_INTERNAL, and STATUS_CODE_ERROR.
_INTERNAL, _ERROR = 1, 2
#: The W3C flag "sampled": what the event belongs to was recorded.
_SAMPLED = 1

_TYPES = {"protobuf": "application/x-protobuf", "json": "application/json"}

_Attributes = dict[str, "str | bool | float"]


class Settings(SinkSettings):
    """Where the OTLP receiver is, and what it is sent."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_OTEL_")
    about: ClassVar[str] = (
        "`gen_ai.evaluation.result` events at `/v1/logs`, parented to the judged span, and evaluation spans at "
        "`/v1/traces`. Stores append events: a worker that dies at the wrong moment leaves one twice, with the same "
        "`assay.evaluation_id`; a repeated span has the same ids."
    )

    url: str = Field("http://localhost:4318", description="Base URL of an OTLP/HTTP receiver, without `/v1/logs`.")
    headers: SecretStr | None = Field(
        None, description="Headers such as `authorization=Bearer abc,x-tenant=7`, for a receiver that asks for them."
    )
    events: bool = Field(True, description="Send events. Off for receivers that take traces only (Jaeger, Tempo).")
    spans: Literal["linked", "child", "none"] = Field(
        "linked",
        description="`linked`: a trace of its own with a link to the judged span; `child`: in the judged trace, under "
        "that span; `none`: no spans.",
    )
    encoding: Literal["protobuf", "json"] = Field(
        "protobuf", description="How OTLP is encoded: every receiver takes `protobuf`; `json` is for looking at."
    )
    service_name: str = Field("assay", min_length=1, description="`service.name` of the resource.")

    @field_validator("headers")
    @classmethod
    def _readable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _headers(value.get_secret_value())
        return value


def build(settings: Settings) -> OpenTelemetry:
    """The sink of these settings."""
    headers = _headers(settings.headers.get_secret_value()) if settings.headers else {}
    http = Http("otel", settings.url, headers=headers, timeout_seconds=settings.timeout_seconds)
    return OpenTelemetry(
        http,
        events=settings.events,
        spans=settings.spans,
        encoding=settings.encoding,
        service_name=settings.service_name,
    )


class OpenTelemetry:
    """Sends a batch as one request of spans and one of events."""

    name = "otel"
    max_batch = 200
    takes_failures = True

    def __init__(
        self,
        http: Http,
        *,
        events: bool = True,
        spans: Literal["linked", "child", "none"] = "linked",
        encoding: Literal["protobuf", "json"] = "protobuf",
        service_name: str = "assay",
    ) -> None:
        self._http = http
        self._events = events
        self._spans = spans
        self._encoding = encoding
        self._resource = {"attributes": _encoded({"service.name": service_name, "service.version": assay.__version__})}
        self._scope = {"name": _SCOPE, "version": assay.__version__}

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink`."""
        spans = [span for a in annotations if (span := _span(a, self._spans)) is not None]
        results: list[Delivery] = [Delivered()] * len(annotations)
        # The spans first: when the events fail, what is repeated is what has ids of its own.
        if spans:
            results = self._send("traces", "Spans", spans, len(annotations))
        if self._events and all(isinstance(result, Delivered) for result in results):
            results = self._send("logs", "LogRecords", [_event(a) for a in annotations], len(annotations))
        if not self._events:
            nowhere = Skipped("the record names no span, and events are off")
            return [r if _linkable(a) else nowhere for a, r in zip(annotations, results, strict=True)]
        return results

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _send(self, signal: Literal["traces", "logs"], what: str, items: list[Any], n: int) -> list[Delivery]:
        several, item = ("Spans", "spans") if signal == "traces" else ("Logs", "logRecords")
        scoped = {"scope": self._scope, item: items}
        body = {f"resource{several}": [{"resource": self._resource, f"scope{several}": [scoped]}]}
        reply = self._http.post(
            f"/v1/{signal}",
            content=gzip.compress(protobuf(body) if self._encoding == "protobuf" else json_bytes(body), 1),
            headers={"content-type": _TYPES[self._encoding], "content-encoding": "gzip"},
        )
        if reply.ok:
            return _partly(reply, what, n)
        if reply.status in {404, 405}:
            setting = "ASSAY_SINK_OTEL_EVENTS=false" if signal == "logs" else "ASSAY_SINK_OTEL_SPANS=none"
            raise SinkError(f"otel: {reply.status}: there is no /v1/{signal}: check the URL, or set {setting}")
        if n > 1:
            raise refused(reply, n)
        return [Rejected(reply.said())]


def _partly(reply: Reply, what: str, n: int) -> list[Delivery]:
    """The receiver may have refused some, and must not be sent them again: it does not say which."""
    if "json" in reply.headers.get("content-type", ""):
        said = reply.json()
        partial = (said.get("partialSuccess") if isinstance(said, dict) else None) or {}
        known = partial if isinstance(partial, dict) else {}
        gone, why = known.get(f"rejected{what}"), known.get("errorMessage")
    else:
        gone, why = partial_success(reply.body)
    if str(gone) in {"0", "None"}:
        return [Delivered()] * n
    said = reply.credentials.hidden(str(why))[:300] if why else "no reason given"
    return [Rejected(f"{gone} of a batch of {n} refused: {said}")] * n


def _event(annotation: Annotation) -> dict[str, Any]:
    moment = _nanoseconds(annotation.evaluated_at)
    failed = annotation.outcome == "failed"
    event: dict[str, Any] = {
        "eventName": _EVENT,
        "timeUnixNano": moment,
        "observedTimeUnixNano": moment,
        "severityNumber": _WARN if failed else _INFO,
        "severityText": "WARN" if failed else "INFO",
        "attributes": _encoded(_attributes(annotation)),
    }
    if annotation.trace_id:
        event |= {"traceId": annotation.trace_id, "flags": _SAMPLED}
        if annotation.span_id:
            event["spanId"] = annotation.span_id
    return event


def _span(annotation: Annotation, kind: Literal["linked", "child", "none"]) -> dict[str, Any] | None:
    if kind == "none" or not _linkable(annotation):
        return None
    moment = _nanoseconds(annotation.evaluated_at)
    judged = {"traceId": annotation.trace_id, "spanId": annotation.span_id}
    span: dict[str, Any] = {
        # Derived, so that a repeat is the same span.
        "traceId": annotation.evaluation_id.hex if kind == "linked" else annotation.trace_id,
        "spanId": hashlib.sha256(annotation.evaluation_id.bytes).hexdigest()[:16],
        "name": f"evaluate {annotation.rubric}",
        "kind": _INTERNAL,
        "flags": _SAMPLED,
        "startTimeUnixNano": moment,
        "endTimeUnixNano": moment,
        "attributes": _encoded(_attributes(annotation) | _carrier(annotation)),
        "links": [{**judged, "flags": _SAMPLED}],
    }
    if kind == "child":
        span["parentSpanId"] = annotation.span_id
    if annotation.outcome == "failed":
        span["status"] = {"code": _ERROR, "message": annotation.message or annotation.failure_kind or ""}
    return span


def _linkable(annotation: Annotation) -> bool:
    return bool(annotation.trace_id and annotation.span_id)


def _attributes(annotation: Annotation) -> _Attributes:
    """Of the conventions; what they have no word for is `assay.*`."""
    refs = annotation.sink_refs
    known: dict[str, str | bool | float | None] = {
        "gen_ai.evaluation.name": annotation.rubric,
        "gen_ai.evaluation.score.value": annotation.value,
        "gen_ai.evaluation.score.label": annotation.verdict,
        "gen_ai.evaluation.explanation": annotation.explanation or annotation.message or annotation.reason,
        "gen_ai.response.id": refs.get("gen_ai.response.id") or refs.get("response_id"),
        "gen_ai.conversation.id": annotation.session_id,
        "error.type": annotation.failure_kind,
        **{f"assay.{name}": value for name, value in provenance(annotation).items()},
        "assay.input": annotation.input,
        "assay.output": annotation.output,
    }
    return {name: value for name, value in known.items() if value is not None}


def _carrier(annotation: Annotation) -> _Attributes:
    """What OpenInference reads of a span that carries an evaluation."""
    prefix = "evaluations.0.evaluation."
    known: dict[str, str | float | None] = {
        "openinference.span.kind": "EVALUATOR",
        f"{prefix}name": annotation.rubric,
        f"{prefix}score": annotation.value,
        f"{prefix}label": annotation.verdict if annotation.outcome == "scored" else annotation.outcome,
        f"{prefix}explanation": annotation.explanation or annotation.message or annotation.reason,
        f"{prefix}annotator_kind": "CODE" if annotation.judge in {"lexical", "rules"} else "LLM",
        f"{prefix}identifier": f"assay:{annotation.rubric_version}:{annotation.judge}",
    }
    return {name: value for name, value in known.items() if value is not None}


def _encoded(attributes: Mapping[str, str | bool | float]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in attributes.items()]


def _value(value: str | bool | float) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"stringValue": value} if isinstance(value, str) else {"doubleValue": float(value)}


def _nanoseconds(moment: datetime) -> str:
    """Since the epoch, as text; in whole microseconds, which are all that a moment holds."""
    return str(round(moment.timestamp() * 1_000_000) * 1_000)


def _headers(text: str) -> dict[str, str]:
    """`name=value,name=value`, as OTEL_EXPORTER_OTLP_HEADERS has it."""
    found = {}
    for part in text.split(","):
        name, sign, value = part.strip().partition("=")
        if not part.strip():
            continue
        if not sign or not name.strip():
            raise ValueError("must be name=value, separated by commas")
        found[name.strip().lower()] = value.strip()
    return found
