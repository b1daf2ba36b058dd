"""Helicone: scores of a request, in percent.

`POST /v1/request/{request}/score`, bearer key. Of several calls for one request in a short time Helicone may keep
the last alone, so all criteria of a request that are in a batch go out in one call. A score is kept by request and
name, so a repeat leaves one. A record must name its request in `sink_refs.helicone_request_id` (the response header
`helicone-id`, or what the app sent as `Helicone-Request-Id`).
Source: docs.helicone.ai, REST reference `AddScores`; Helicone/helicone, valhalla/jawn/…/score/ScoreManager.ts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from assay.sinks import Annotation, Delivery, Rejected, SinkSettings, Skipped, TryAgain
from assay.sinks._http import Http, settled
from assay.sinks._sending import clip, one_by_one, plain_id, understood

if TYPE_CHECKING:
    from collections.abc import Sequence

_MISSING = frozenset({404})


class Settings(SinkSettings):
    """A key."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_HELICONE_")
    about: ClassVar[str] = "Scores of Helicone requests, in percent."

    url: str = Field(
        "https://api.helicone.ai", description="`https://eu.api.helicone.ai` in the EU, or the URL of your own."
    )
    api_key: SecretStr = Field(description="API key that may write.")


def build(settings: Settings) -> Helicone:
    """The sink; connects to nothing yet."""
    return Helicone(settings)


class Helicone:
    """See the module."""

    name = "helicone"
    max_batch = 100
    #: Scores are whole numbers or booleans, and nothing else.
    takes_failures = False

    def __init__(self, settings: Settings) -> None:
        self._http = Http(
            self.name,
            settings.url,
            headers={"authorization": f"Bearer {settings.api_key.get_secret_value().strip()}"},
            timeout_seconds=settings.timeout_seconds,
        )

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink.deliver`."""
        done: dict[int, Delivery] = {}
        requests: dict[str, list[int]] = {}
        for position, annotation in enumerate(annotations):
            request = plain_id(annotation, "helicone_request_id")
            if annotation.value is None:
                done[position] = Skipped("no score")
            elif not 0 <= annotation.value <= 1:
                done[position] = Rejected(f"a value of {annotation.value} is no share")
            elif request is None:
                done[position] = Skipped("no sink_refs.helicone_request_id")
            elif isinstance(request, str):
                requests.setdefault(request, []).append(position)
            else:
                done[position] = request
        said = one_by_one(
            list(requests), lambda request: self._send(request, [annotations[i] for i in requests[request]])
        )
        for positions, delivery in zip(requests.values(), said, strict=True):
            done.update(dict.fromkeys(positions, delivery))
        return [done[position] for position in range(len(annotations))]

    def _send(self, request: str, annotations: Sequence[Annotation]) -> Delivery:
        scores = {a.rubric: round(a.value * 100) for a in annotations if a.value is not None}
        reply = understood(
            self.name, self._http.post(f"/v1/request/{request}/score", json={"scores": scores}), "data", "error"
        )
        if reply.ok and (error := reply.json().get("error")):
            return TryAgain(clip(reply.credentials.hidden(str(error)), 300))
        (delivery,) = settled(reply, 1, missing=_MISSING)
        return delivery

    def close(self) -> None:
        """See `Sink.close`."""
        self._http.close()
