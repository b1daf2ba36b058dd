"""Datadog LLM Observability: a score metric joined to an OpenTelemetry span.

`POST /api/intake/llm-obs/v2/eval-metric` with an API key, or through a Datadog agent, which adds the key. Ids are
decimal, and the tag `source:otel` makes the intake wait for the span. It has no id for an evaluation: a repeat after
a lost answer leaves two, which share `metadata.evaluation_id`.
Source: what ddtrace 4.16.0 sends, and Datadog's page on external evaluations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from assay.sinks import Annotation, Delivery, SinkSettings, Skipped
from assay.sinks._http import Http, settled
from assay.sinks._sending import batched, clip, facts, understood

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATH = "/api/intake/llm-obs/v2/eval-metric"
#: Of the intake: 5 MB and 1,000 metrics a call.
_MOST_BYTES = 4_500_000


class Settings(SinkSettings):
    """The site and an API key, or an agent."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_DATADOG_")
    about: ClassVar[str] = "Score evaluations on Datadog LLM Observability spans that came by OpenTelemetry."

    site: str = Field(
        "datadoghq.com",
        pattern=r"^[A-Za-z0-9.-]+$",
        description="Datadog site, such as `datadoghq.eu` or `us5.datadoghq.com`.",
    )
    api_key: SecretStr | None = Field(None, description="API key; not needed with an agent.")
    agent_url: str | None = Field(
        None, description="URL of a Datadog agent to send through instead, such as `http://localhost:8126`."
    )
    url: str | None = Field(None, description="URL to send to instead of `https://api.<site>`.")
    ml_app: str | None = Field(None, description="Name of the LLM application. Default: the record's app.")

    @model_validator(mode="after")
    def _has_a_way_in(self) -> Settings:
        if self.api_key is None and self.agent_url is None:
            raise ValueError("ASSAY_SINK_DATADOG_API_KEY or ASSAY_SINK_DATADOG_AGENT_URL must be set")
        return self


def build(settings: Settings) -> Datadog:
    """The sink; connects to nothing yet."""
    return Datadog(settings)


class Datadog:
    """See the module."""

    name = "datadog"
    max_batch = 1000
    #: The metric has no field for an error.
    takes_failures = False

    def __init__(self, settings: Settings) -> None:
        self._ml_app = settings.ml_app
        if settings.agent_url is not None:
            self._path = f"/evp_proxy/v2{_PATH}"
            base, headers = settings.agent_url, {"x-datadog-evp-subdomain": "api"}
        else:
            self._path = _PATH
            base = settings.url or f"https://api.{settings.site}"
            headers = {"dd-api-key": settings.api_key.get_secret_value().strip() if settings.api_key else ""}
        self._http = Http(self.name, base, headers=headers, timeout_seconds=settings.timeout_seconds)

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink.deliver`."""
        return batched(annotations, self._metric, self._send, most_bytes=_MOST_BYTES)

    def _send(self, metrics: list[dict[str, Any]]) -> Sequence[Delivery]:
        body = {"data": {"type": "evaluation_metric", "attributes": {"metrics": metrics}}}
        return settled(understood(self.name, self._http.post(self._path, json=body)), len(metrics))

    def _metric(self, annotation: Annotation) -> dict[str, Any] | Delivery:
        if annotation.value is None:
            return Skipped("no score")
        if annotation.trace_id is None or annotation.span_id is None:
            return Skipped("no trace id and span id")
        app = clip(self._ml_app or annotation.app, 190)
        metric: dict[str, Any] = {
            "event_kind": "evaluation",
            "eval_scope": "span",
            "join_on": {
                "span": {"span_id": str(int(annotation.span_id, 16)), "trace_id": str(int(annotation.trace_id, 16))}
            },
            "label": annotation.rubric,
            "metric_type": "score",
            "score_value": annotation.value,
            "timestamp_ms": int(annotation.evaluated_at.timestamp() * 1000),
            "ml_app": app,
            "tags": [f"ml_app:{app}", "source:otel", f"rubric_version:{clip(annotation.rubric_version, 100)}"],
            "metadata": facts(annotation),
        }
        if annotation.passed is not None:
            metric["assessment"] = "pass" if annotation.passed else "fail"
        if annotation.explanation:
            metric["reasoning"] = clip(annotation.explanation)
        return metric

    def close(self) -> None:
        """See `Sink.close`."""
        self._http.close()
