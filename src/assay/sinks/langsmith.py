"""LangSmith: feedback on a run.

`POST /feedback`, header `x-api-key`, one a call. The run of a span that came by OpenTelemetry has the span's id behind
eight zero bytes. The id of the feedback is the evaluation's, so a repeat leaves one.
Source: what the SDK 0.14.17 sends, and LangSmith's OpenAPI file (`FeedbackCreateSchema`).
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from assay.sinks import Annotation, Delivered, Delivery, Rejected, SinkSettings, Skipped
from assay.sinks._http import Http, settled
from assay.sinks._sending import clip, facts, one_by_one, understood

if TYPE_CHECKING:
    from collections.abc import Sequence

#: No such run or project (yet).
_MISSING = frozenset({404})


class Settings(SinkSettings):
    """A key, and the project that the runs are in."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_LANGSMITH_")
    about: ClassVar[str] = "Feedback on LangSmith runs."

    url: str = Field(
        "https://api.smith.langchain.com",
        description="`https://eu.api.smith.langchain.com` in the EU, `https://<host>/api/v1` self-hosted.",
    )
    api_key: SecretStr = Field(description="API key of the workspace.")
    workspace_id: uuid.UUID | None = Field(None, description="Workspace, for a key that opens several.")
    project_id: uuid.UUID = Field(
        description="Id of the tracing project (its page shows it); a record's `sink_refs` may name another one as "
        "`langsmith_project_id`. LangSmith is about to refuse feedback without it."
    )
    extend_retention: bool = Field(
        False, description="Whether feedback moves its trace to the long, dearer retention, as the SDK does."
    )


def build(settings: Settings) -> LangSmith:
    """The sink; connects to nothing yet."""
    return LangSmith(settings)


class LangSmith:
    """See the module."""

    name = "langsmith"
    max_batch = 50
    #: Feedback has a flag for an error.
    takes_failures = True

    def __init__(self, settings: Settings) -> None:
        self._project = settings.project_id
        self._extend = settings.extend_retention
        headers = {"x-api-key": settings.api_key.get_secret_value().strip()}
        if settings.workspace_id is not None:
            headers["x-tenant-id"] = str(settings.workspace_id)
        self._http = Http(self.name, settings.url, headers=headers, timeout_seconds=settings.timeout_seconds)

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink.deliver`."""
        return one_by_one(annotations, self._send)

    def _send(self, annotation: Annotation) -> Delivery:
        feedback = self._feedback(annotation)
        if not isinstance(feedback, dict):
            return feedback
        reply = understood(self.name, self._http.post("/feedback", json=feedback), "id")
        if reply.status == 409:  # it is there, from a call whose answer was lost
            return Delivered()
        (delivery,) = settled(reply, 1, missing=_MISSING)
        return delivery

    def _feedback(self, annotation: Annotation) -> dict[str, Any] | Delivery:
        if annotation.value is None and annotation.outcome != "failed":
            return Skipped("no score")
        run = _run_id(annotation)
        if not isinstance(run, uuid.UUID):
            return run
        project = annotation.sink_refs.get("langsmith_project_id")
        at = annotation.evaluated_at.isoformat()
        feedback: dict[str, Any] = {
            "id": str(annotation.evaluation_id),
            "run_id": str(run),
            "session_id": project if project and _as_uuid(project) else str(self._project),
            "key": annotation.rubric,
            "created_at": at,
            "modified_at": at,
            "feedback_source": {"type": "model", "metadata": facts(annotation)},
            "extend_trace_retention": self._extend,
        }
        if annotation.value is None:
            said = f"{annotation.failure_kind or 'failed'}: {annotation.message or ''}"
            return feedback | {"error": True, "comment": clip(said)}
        feedback["score"] = annotation.value
        if annotation.verdict is not None:
            feedback["value"] = clip(annotation.verdict, 200)
        if annotation.explanation:
            feedback["comment"] = clip(annotation.explanation)
        return feedback

    def close(self) -> None:
        """See `Sink.close`."""
        self._http.close()


def _run_id(annotation: Annotation) -> uuid.UUID | Delivery:
    named = annotation.sink_refs.get("langsmith_run_id")
    if named:
        return _as_uuid(named) or Rejected("sink_refs.langsmith_run_id is no run id (a UUID)")
    if annotation.span_id is None:
        return Skipped("no span id and no sink_refs.langsmith_run_id")
    return uuid.UUID(int=int(annotation.span_id, 16))


def _as_uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
