"""MLflow 3: feedback on the trace of the judged span.

The contract is `mlflow/protos/assessments.proto` and `service.proto` of mlflow 3.17, and the tests run that server. It
takes an id of ours, and answers a second creation with 500: then the assessment is looked up, and changed where it
differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from assay.sinks import Annotation, Delivered, Rejected, SinkSettings, Skipped, TryAgain, provenance
from assay.sinks._http import Http
from assay.sinks._sending import one_by_one, plain_id, understood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.sinks import Delivery


class Settings(SinkSettings):
    """Where MLflow is."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_MLFLOW_")
    about: ClassVar[str] = (
        "Feedback on the trace `tr-<trace id>`, or on the one that `sink_refs.mlflow_trace_id` names, at the judged "
        "span. A repeat leaves one. A failure is feedback with an error. MLflow takes one at a time."
    )

    url: str = Field("http://localhost:5000", description="Where the tracking server is.")
    username: str | None = Field(None, description="User, where the server asks for one.")
    password: SecretStr | None = Field(None, description="Password of that user.")
    token: SecretStr | None = Field(None, description="Bearer token, where the server asks for one.")


def build(settings: Settings) -> MLflow:
    """The sink of these settings."""
    token = settings.token.get_secret_value().strip() if settings.token else ""
    password = settings.password.get_secret_value() if settings.password else ""
    http = Http(
        "mlflow",
        settings.url,
        headers={"authorization": f"Bearer {token}"} if token else {},
        basic_auth=(settings.username, password) if settings.username and not token else None,
        timeout_seconds=settings.timeout_seconds,
    )
    return MLflow(http)


class MLflow:
    """Writes assessments, one request each."""

    name = "mlflow"
    # They go one by one: as many as are soon done, so that others may take the rest.
    max_batch = 50
    takes_failures = True

    def __init__(self, http: Http) -> None:
        self._http = http

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink`."""
        return one_by_one(annotations, self._write)

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _write(self, annotation: Annotation) -> Delivery:
        given = plain_id(annotation, "mlflow_trace_id")
        if isinstance(given, Rejected):
            return given
        trace = given or (annotation.trace_id and f"tr-{annotation.trace_id}")
        if not trace:
            return Skipped("the record names no trace")
        path = f"/api/3.0/mlflow/traces/{trace}/assessments"
        wanted = _assessment(annotation, trace)
        reply = self._http.call("POST", path, json={"assessment": wanted})
        if reply.status == 500:
            # A second creation breaks its constraint. Anything else that is a 500 is told by the look-up.
            one = f"{path}/{wanted['assessment_id']}"
            known = self._http.call("GET", one)
            if known.ok:
                return self._update(one, wanted, known.json())
        self._http.check(reply)
        if understood("mlflow", reply, "assessment").ok:
            return Delivered()
        if reply.status == 404:
            return TryAgain(f"{reply.status}: no trace {trace} (yet)", missing=True)
        return Rejected(reply.said())

    def _update(self, path: str, wanted: dict[str, Any], reply: Any) -> Delivery:
        """Change what is there, if it differs: it was a failure first, or was written with other settings."""
        stored = reply.get("assessment", {}) if isinstance(reply, dict) else {}
        changed = [name for name in ("feedback", "rationale", "metadata") if stored.get(name) != wanted.get(name)]
        if not changed:
            return Delivered()
        body = {"assessment": wanted, "update_mask": ",".join(changed)}
        done = self._http.check(self._http.call("PATCH", path, json=body))
        return Delivered() if done.ok else Rejected(done.said())


def _assessment(annotation: Annotation, trace: str) -> dict[str, Any]:
    said = annotation.explanation if annotation.outcome == "scored" else annotation.message or annotation.reason
    if annotation.outcome == "scored":
        feedback: dict[str, Any] = {"value": annotation.value}
    else:
        code = annotation.failure_kind or annotation.outcome
        feedback = {"error": {"error_code": code.upper(), "error_message": said or code}}
    # Its metadata is a map of texts.
    metadata = {name: _text(value) for name, value in provenance(annotation).items()}
    body: dict[str, Any] = {
        "assessment_id": f"a-{annotation.evaluation_id.hex}",
        "assessment_name": annotation.rubric,
        "trace_id": trace,
        "source": {
            "source_type": "CODE" if annotation.judge in {"lexical", "rules"} else "LLM_JUDGE",
            "source_id": annotation.judge,
        },
        "feedback": feedback,
        "rationale": said or "",
        "metadata": metadata,
    }
    if annotation.span_id:
        body["span_id"] = annotation.span_id
    return body


def _text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
