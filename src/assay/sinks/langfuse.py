"""Langfuse: a numeric score on the observation (the span), its trace or its session.

`POST /api/public/scores`, HTTP Basic. Since 2026 it takes a JSON array and answers 202, or 207 when it refused some;
servers before take one object a call and answer 200. Which of the two a server is, it is asked once. The same id with
the same timestamp and name replaces a score, so a repeat leaves one.
Source: langfuse/langfuse, web/public/generated/api/openapi.yml (4.16.0), and what its SDK 5.0.4 sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from assay.errors import SinkError
from assay.sinks import Annotation, Delivered, Delivery, Rejected, SinkSettings, Skipped
from assay.sinks._http import Http, Reply, refused, settled
from assay.sinks._sending import batched, clip, facts, one_by_one, understood

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATH = "/api/public/scores"
#: The API bounds a body to one megabyte.
_MOST_BYTES = 950_000


class Settings(SinkSettings):
    """Where Langfuse is, and the key pair of a project."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_LANGFUSE_")
    about: ClassVar[str] = "Numeric scores on Langfuse observations, traces or sessions."

    url: str = Field(
        "https://cloud.langfuse.com",
        description="`https://us.cloud.langfuse.com` in the US, or the URL of your own Langfuse.",
    )
    public_key: str = Field(min_length=1, description="Public key of the project, `pk-lf-…`.")
    secret_key: SecretStr = Field(description="Secret key of the project, `sk-lf-…`.")
    environment: str | None = Field(
        None,
        pattern=r"^[a-z0-9_-]{1,40}$",
        description="Langfuse environment of the scores. Default: Langfuse's own, `default`.",
    )

    @field_validator("environment")
    @classmethod
    def _not_reserved(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("langfuse"):
            raise ValueError("must not begin with langfuse, which is reserved")
        return value


def build(settings: Settings) -> Langfuse:
    """The sink; connects to nothing yet."""
    return Langfuse(settings)


class Langfuse:
    """See the module."""

    name = "langfuse"
    max_batch = 100
    #: A score without a value is none.
    takes_failures = False

    def __init__(self, settings: Settings) -> None:
        self._environment = settings.environment
        #: whether the server takes arrays; None: not known yet
        self._arrays: bool | None = None
        self._http = Http(
            self.name,
            settings.url,
            basic_auth=(settings.public_key.strip(), settings.secret_key.get_secret_value().strip()),
            timeout_seconds=settings.timeout_seconds,
        )

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink.deliver`."""
        return batched(annotations, self._score, self._send, most_bytes=_MOST_BYTES)

    def _score(self, annotation: Annotation) -> dict[str, Any] | Delivery:
        if annotation.value is None:
            return Skipped("no score")
        if annotation.trace_id is None and not annotation.session_id:
            return Skipped("no trace id and no session id")
        score: dict[str, Any] = {
            "id": str(annotation.evaluation_id),
            "name": annotation.rubric,
            "value": annotation.value,
            "dataType": "NUMERIC",
            # The API finds the score to replace by its id and the day of this.
            "timestamp": annotation.evaluated_at.isoformat(timespec="milliseconds"),
            "metadata": facts(annotation),
        }
        # Exactly one of trace and session may be named; an observation only with its trace.
        if annotation.trace_id is None:
            score["sessionId"] = clip(str(annotation.session_id), 200)
        else:
            score["traceId"] = annotation.trace_id
            if annotation.span_id is not None:
                score["observationId"] = annotation.span_id
        if annotation.explanation:
            score["comment"] = clip(annotation.explanation)
        if self._environment:
            score["environment"] = self._environment
        return score

    def _send(self, scores: list[dict[str, Any]]) -> Sequence[Delivery]:
        if self._arrays is not False:
            reply = understood(self.name, self._http.post(_PATH, json=scores), "message", "accepted")
            if reply.ok:
                self._arrays = True
                return _accepted(reply, len(scores))
            if self._arrays or reply.status != 400 or not self._takes_one(scores[0]):
                return settled(reply, len(scores))
            self._arrays = False
        return one_by_one(scores, self._send_one)

    def _takes_one(self, score: dict[str, Any]) -> bool:
        """Whether the server is one that takes objects; to send the score once more does no harm."""
        return isinstance(self._send_one(score), Delivered)

    def _send_one(self, score: dict[str, Any]) -> Delivery:
        (delivery,) = settled(understood(self.name, self._http.post(_PATH, json=score), "id"), 1)
        return delivery

    def close(self) -> None:
        """See `Sink.close`."""
        self._http.close()


def _accepted(reply: Reply, n: int) -> list[Delivery]:
    """What a 202 or a 207 says of `n` scores; a 207 does not name the ones that it refused."""
    said = reply.json()
    bad = said.get("rejected")
    if not bad:
        return [Delivered()] * n
    if n > 1:
        raise refused(reply, n)
    if not isinstance(bad, int):
        raise SinkError("langfuse: answers 207 but does not say how many it refused")
    return [Rejected(reply.said())]
