"""Opik: a feedback score on a trace or a span of its own numbering.

`PUT /v1/private/{traces|spans}/feedback-scores`, up to 1,000 a call, 204. Opik makes up its own ids (UUIDs of version
7), which nobody can work out from OpenTelemetry's, so a record must name one in its `sink_refs`: `opik_span_id`, or
`opik_trace_id`. A score is kept by entity and name, so a repeat leaves one.
Source: comet-ml/opik, sdks/code_generation/fern/openapi/openapi.yaml, and what its SDK 2.2.122 sends.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from assay.errors import SinkError
from assay.sinks import Annotation, Delivery, Rejected, SinkSettings, Skipped
from assay.sinks._http import Http, Reply, settled
from assay.sinks._sending import batched, clip, facts, understood

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_BYTES = 4_000_000
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
#: Which kind of entity a reference names, the closest one first.
_KINDS = (("opik_span_id", "spans"), ("opik_trace_id", "traces"))


class Settings(SinkSettings):
    """Where Opik is; a key and a workspace for the cloud."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_OPIK_")
    about: ClassVar[str] = "Feedback scores on Opik traces and spans."

    url: str = Field(
        "https://www.comet.com/opik/api",
        description="URL of the API; self-hosted it ends in `/api`, such as `http://localhost:5173/api`.",
    )
    api_key: SecretStr | None = Field(None, description="API key; a self-hosted Opik needs none.")
    workspace: str | None = Field(None, description="Workspace of the key.")
    project: str | None = Field(None, description="Project of the traces. Default: Opik's own, `Default Project`.")


def build(settings: Settings) -> Opik:
    """The sink; connects to nothing yet."""
    return Opik(settings)


class Opik:
    """See the module."""

    name = "opik"
    max_batch = 500
    #: A feedback score must have a value.
    takes_failures = False

    def __init__(self, settings: Settings) -> None:
        self._project = settings.project
        headers = {}
        if settings.api_key is not None:
            headers["authorization"] = settings.api_key.get_secret_value().strip()  # without `Bearer`
        if settings.workspace:
            headers["comet-workspace"] = settings.workspace
        self._http = Http(self.name, settings.url, headers=headers, timeout_seconds=settings.timeout_seconds)

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink.deliver`."""
        return batched(annotations, self._score, self._send, most_bytes=_MOST_BYTES)

    def _score(self, annotation: Annotation) -> dict[str, Any] | Delivery:
        if annotation.value is None:
            return Skipped("no score")
        kind, entity = next(
            ((k, annotation.sink_refs[name]) for name, k in _KINDS if annotation.sink_refs.get(name)), ("", "")
        )
        if not entity:
            return Skipped("no sink_refs.opik_trace_id and no sink_refs.opik_span_id")
        if not _UUID7.fullmatch(entity):
            # For one such id Opik refuses the whole batch.
            return Rejected("sink_refs.opik_trace_id or sink_refs.opik_span_id is no UUID of version 7")
        score: dict[str, Any] = {
            "kind": kind,
            "id": entity.lower(),
            "name": annotation.rubric,
            # Opik keeps nine decimals.
            "value": round(annotation.value, 9),
            "source": "sdk",
            "reason": _reason(annotation),
        }
        if self._project:
            score["project_name"] = self._project
        if annotation.verdict:
            score["category_name"] = clip(annotation.verdict, 100)
        return score

    def _send(self, scores: list[dict[str, Any]]) -> Sequence[Delivery]:
        done: list[Delivery] = [Skipped("")] * len(scores)
        for kind in ("traces", "spans"):
            at = [i for i, score in enumerate(scores) if score["kind"] == kind]
            if not at:
                continue
            batch = [{name: value for name, value in scores[i].items() if name != "kind"} for i in at]
            reply = self._put(f"/v1/private/{kind}/feedback-scores", {"scores": batch})
            for i, delivery in zip(at, settled(understood(self.name, reply), len(at)), strict=True):
                done[i] = delivery
        return done

    def _put(self, path: str, body: dict[str, Any]) -> Reply:
        reply = self._http.call("PUT", path, json=body)
        if reply.status == 429 and reply.retry_after_seconds is None:
            # Opik says it in a header of its own.
            reset = reply.headers.get("ratelimit-reset", "")
            raise SinkError(f"opik: {reply.said()}", after_seconds=float(reset) if reset.isdecimal() else None)
        return self._http.check(reply)

    def close(self) -> None:
        """See `Sink.close`."""
        self._http.close()


def _reason(annotation: Annotation) -> str:
    """The explanation, with where it comes from behind it: a feedback score has no metadata."""
    known = facts(annotation)
    parts = [
        f"{name}={known[name]}" for name in ("rubric_version", "judge", "judge_model", "evaluation_id") if name in known
    ]
    source = f"[{' '.join(parts)}]"
    return f"{clip(annotation.explanation)} {source}" if annotation.explanation else source
