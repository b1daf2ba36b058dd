"""W&B Weave: feedback on a call.

`POST /feedback/batch/create`, HTTP Basic as user `api`. A span that came by OpenTelemetry is a call whose id is the
span's; for a span of the agents view the setting `ref` says so; a record's `sink_refs.weave_call_id` goes before both.
The id of the feedback is the evaluation's. The payload is ours to choose, so failures go out as errors.
Source: what the SDK 0.54.0 sends; wandb/weave, weave/trace_server/opentelemetry/python_spans.py (`id=self.span_id`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from assay.sinks import Annotation, Delivery, SinkSettings, Skipped
from assay.sinks._http import Http, settled
from assay.sinks._sending import batched, clip, facts, plain_id, understood

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_BYTES = 3_000_000


class Settings(SinkSettings):
    """A key and a project."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_WEAVE_")
    about: ClassVar[str] = "Feedback on W&B Weave calls."

    url: str = Field(
        "https://trace.wandb.ai",
        description="URL of the trace server; `https://<host>/traces` with a W&B of your own.",
    )
    api_key: SecretStr = Field(description="W&B API key.")
    project: str = Field(
        pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$", description="Entity and project, such as `team/helpdesk`."
    )
    ref: Literal["call", "agent_span"] = Field(
        "call", description="What a span id names: a call (`/otel/v1/traces`) or a span of the agents view."
    )


def build(settings: Settings) -> Weave:
    """The sink; connects to nothing yet."""
    return Weave(settings)


class Weave:
    """See the module."""

    name = "weave"
    max_batch = 100
    takes_failures = True

    def __init__(self, settings: Settings) -> None:
        self._project = settings.project
        self._ref = settings.ref
        self._http = Http(
            self.name,
            settings.url,
            basic_auth=("api", settings.api_key.get_secret_value().strip()),
            timeout_seconds=settings.timeout_seconds,
        )

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink.deliver`."""
        return batched(annotations, self._feedback, self._send, most_bytes=_MOST_BYTES)

    def _feedback(self, annotation: Annotation) -> dict[str, Any] | Delivery:
        if annotation.value is None and annotation.outcome != "failed":
            return Skipped("no score")
        target = plain_id(annotation, "weave_call_id") or annotation.span_id
        if target is None:
            return Skipped("no span id and no sink_refs.weave_call_id")
        if not isinstance(target, str):
            return target
        kind = "call" if annotation.sink_refs.get("weave_call_id") else self._ref
        feedback: dict[str, Any] = {
            "id": str(annotation.evaluation_id),
            "project_id": self._project,
            "weave_ref": f"weave:///{self._project}/{kind}/{target}",
            # What begins with `wandb.` is reserved.
            "feedback_type": f"assay.{annotation.rubric}",
            "creator": "assay",
            "payload": facts(annotation),
        }
        if annotation.trace_id is not None:
            feedback["span_trace_id"] = annotation.trace_id
        if annotation.value is None:
            feedback["payload"]["error"] = annotation.failure_kind or "failed"
            feedback["payload"]["message"] = clip(annotation.message or "")
            return feedback
        feedback["payload"] |= {"value": annotation.value, "explanation": clip(annotation.explanation)}
        feedback["scorer_ratings"] = {annotation.rubric: annotation.value}
        if annotation.explanation:
            feedback["scorer_rating_reasons"] = {annotation.rubric: clip(annotation.explanation)}
        return feedback

    def _send(self, feedback: list[dict[str, Any]]) -> Sequence[Delivery]:
        reply = self._http.post("/feedback/batch/create", json={"batch": feedback})
        return settled(understood(self.name, reply, "res"), len(feedback))

    def close(self) -> None:
        """See `Sink.close`."""
        self._http.close()
