"""Arize Phoenix: annotations on the judged span, else on its trace, else on its session.

The contract is that of arize-phoenix 20.26 (`/openapi.json` of a running server), and the tests run that server. An
annotation is known by target, name and identifier: the same one again takes the place of the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from assay.sinks import Annotation, Delivered, Rejected, SinkSettings, Skipped, TryAgain, provenance
from assay.sinks._http import Http, refused
from assay.sinks._sending import understood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.sinks import Delivery

#: It keeps this name for its notes.
_RESERVED = "note"

#: By what an annotation is attached to: the path, and the field that names the target.
_TARGETS = {
    "span": ("/v1/span_annotations", "span_id"),
    "trace": ("/v1/trace_annotations", "trace_id"),
    "session": ("/v1/session_annotations", "session_id"),
}


class Settings(SinkSettings):
    """Where Phoenix is."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_PHOENIX_")
    about: ClassVar[str] = (
        "Annotations on the judged span, on the trace when the record names no span, on the session when it names no "
        "trace either. A repeat replaces the first. A failure is an annotation with the label `failed` and no score."
    )

    url: str = Field("http://localhost:6006", description="Where Phoenix is, without `/v1`.")
    api_key: SecretStr | None = Field(None, description="Key, where Phoenix asks for one.")


def build(settings: Settings) -> Phoenix:
    """The sink of these settings."""
    key = settings.api_key.get_secret_value().strip() if settings.api_key else ""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return Phoenix(Http("phoenix", settings.url, headers=headers, timeout_seconds=settings.timeout_seconds))


class Phoenix:
    """Writes annotations, one request for each kind of target."""

    name = "phoenix"
    max_batch = 200
    takes_failures = True

    def __init__(self, http: Http) -> None:
        self._http = http

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink`."""
        results: list[Delivery] = [Skipped("the record names no span, trace or session")] * len(annotations)
        for kind in _TARGETS:
            places = [place for place, annotation in enumerate(annotations) if _target(annotation) == kind]
            for place, result in zip(places, self._write(kind, [annotations[p] for p in places]), strict=True):
                results[place] = result
        return results

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _write(self, kind: str, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        if not annotations:
            return []
        path, field = _TARGETS[kind]
        # sync: without it everything is answered with 200, and what has no span within ten minutes is dropped.
        reply = self._http.post(path, json={"data": [_body(a, field) for a in annotations]}, params={"sync": "true"})
        if understood("phoenix", reply, "data").ok:
            return [Delivered()] * len(annotations)
        if reply.status != 404:
            if len(annotations) > 1:
                raise refused(reply, len(annotations))
            return [Rejected(reply.said())]
        # It takes nothing of the batch, and says which targets it does not know. The others may go now.
        said = reply.body.decode("utf-8", "replace")
        missing = [str(getattr(annotation, field)) in said for annotation in annotations]
        if not any(missing):
            if len(annotations) > 1:
                raise refused(reply, len(annotations))
            missing = [True]
        there = iter(self._write(kind, [a for a, gone in zip(annotations, missing, strict=True) if not gone]))
        return [TryAgain(f"404: no such {kind} (yet)", missing=True) if gone else next(there) for gone in missing]


def _target(annotation: Annotation) -> str | None:
    for kind, (_, field) in _TARGETS.items():
        if getattr(annotation, field):
            return kind
    return None


def _body(annotation: Annotation, field: str) -> dict[str, Any]:
    if annotation.outcome == "scored":
        result = {"score": annotation.value, "label": annotation.verdict, "explanation": annotation.explanation or None}
    else:
        said = annotation.message or annotation.reason
        result = {"score": None, "label": annotation.outcome, "explanation": said}
    return {
        field: getattr(annotation, field),
        "name": f"{annotation.rubric}_" if annotation.rubric == _RESERVED else annotation.rubric,
        "annotator_kind": "CODE" if annotation.judge in {"lexical", "rules"} else "LLM",
        "result": {name: value for name, value in result.items() if value is not None},
        "metadata": provenance(annotation),
        # Another judge, or another version of the rubric, is another annotation beside it.
        "identifier": f"assay:{annotation.rubric_version}:{annotation.judge}",
    }
