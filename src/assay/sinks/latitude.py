"""Latitude: a custom score on a trace.

`POST /v1/projects/{slug}/scores`, bearer key, one a call, 201. It has no id for a score: a repeat after a lost answer
leaves two, which share `metadata.evaluation_id`.
Source: latitude-dev/latitude-llm, apps/api/openapi.json (`CreateCustomScoreBody`), and what its SDK 9.15.0 sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from assay.sinks import Annotation, Delivery, SinkSettings, Skipped
from assay.sinks._http import Http, settled
from assay.sinks._sending import clip, facts, one_by_one, understood

if TYPE_CHECKING:
    from collections.abc import Sequence

#: No such trace (yet), or no such project.
_MISSING = frozenset({404})


class Settings(SinkSettings):
    """A key and a project."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_LATITUDE_")
    about: ClassVar[str] = "Custom scores on Latitude traces."

    url: str = Field("https://api.latitude.so", description="URL of the API.")
    api_key: SecretStr = Field(description="API key of the organisation.")
    project: str = Field(pattern=r"^[A-Za-z0-9_-]{1,200}$", description="Slug of the project.")


def build(settings: Settings) -> Latitude:
    """The sink; connects to nothing yet."""
    return Latitude(settings)


class Latitude:
    """See the module."""

    name = "latitude"
    max_batch = 50
    #: It has a field for an error, but demands a score and a verdict beside it.
    takes_failures = False

    def __init__(self, settings: Settings) -> None:
        self._path = f"/v1/projects/{settings.project}/scores"
        self._http = Http(
            self.name,
            settings.url,
            headers={"authorization": f"Bearer {settings.api_key.get_secret_value().strip()}"},
            timeout_seconds=settings.timeout_seconds,
        )

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink.deliver`."""
        return one_by_one(annotations, self._send)

    def _send(self, annotation: Annotation) -> Delivery:
        if annotation.value is None or annotation.passed is None:
            return Skipped("no score")
        if annotation.trace_id is None:
            return Skipped("no trace id")
        score: dict[str, Any] = {
            "value": annotation.value,
            "passed": annotation.passed,
            "feedback": clip(annotation.explanation or annotation.verdict or ""),
            "trace": {"by": "id", "id": annotation.trace_id},
            "sourceId": clip(f"assay/{annotation.rubric}/{annotation.rubric_version}", 128),
            "metadata": facts(annotation),
        }
        reply = understood(self.name, self._http.post(self._path, json=score), "id", "value")
        (delivery,) = settled(reply, 1, missing=_MISSING)
        return delivery

    def close(self) -> None:
        """See `Sink.close`."""
        self._http.close()
