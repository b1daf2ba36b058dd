"""Braintrust: a score and a comment on a row of a project's logs.

`POST /v1/project_logs/{project}/feedback`, bearer key, a list. A row is named by its own id, which is not the span's:
it is the record's `sink_refs.braintrust_row_id`, else it is looked up by span id (`POST /btql`), because feedback for
an id that is not there makes a stray row. Scores are merged into the row by name, so a repeat leaves one; a
comment is not, and after a lost answer stands there twice.
Source: braintrustdata/braintrust-openapi (openapi/spec.json), and Braintrust's page on queries.
"""

from __future__ import annotations

import uuid  # noqa: TC003 - pydantic reads it at run time
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from assay.errors import SinkError
from assay.sinks import Annotation, Delivery, SinkSettings, Skipped, TryAgain
from assay.sinks._http import Http, refused, settled
from assay.sinks._sending import batched, clip, facts, understood

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The service takes 6 MB.
_MOST_BYTES = 5_000_000


class Settings(SinkSettings):
    """A key and a project."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_BRAINTRUST_")
    about: ClassVar[str] = "Scores and comments on rows of a Braintrust project's logs."

    url: str = Field(
        "https://api.braintrust.dev",
        description="`https://api-eu.braintrust.dev` in the EU, or the URL of your own data plane.",
    )
    api_key: SecretStr = Field(description="API key.")
    project_id: uuid.UUID = Field(description="Id of the project whose logs the rows are in.")
    find_rows: bool = Field(
        True,
        description="Look rows up by span id where a record names none: one query a batch. Small plans allow about 20 "
        "queries a minute.",
    )
    comments: bool = Field(True, description="Whether the judge's explanation goes out as a comment.")


def build(settings: Settings) -> Braintrust:
    """The sink; connects to nothing yet."""
    return Braintrust(settings)


class Braintrust:
    """See the module."""

    name = "braintrust"
    max_batch = 100
    #: Scores are numbers from 0 to 1, and nothing else.
    takes_failures = False

    def __init__(self, settings: Settings) -> None:
        self._project = str(settings.project_id)
        self._find_rows = settings.find_rows
        self._comments = settings.comments
        self._http = Http(
            self.name,
            settings.url,
            headers={"authorization": f"Bearer {settings.api_key.get_secret_value().strip()}"},
            timeout_seconds=settings.timeout_seconds,
        )

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink.deliver`."""
        rows = self._rows(annotations)
        return batched(annotations, lambda a: self._feedback(a, rows), self._send, most_bytes=_MOST_BYTES)

    def _rows(self, annotations: Sequence[Annotation]) -> Mapping[str, str]:
        """Row ids by span id, of the records that name no row."""
        spans = sorted(
            {
                a.span_id
                for a in annotations
                if a.span_id and a.value is not None and not a.sink_refs.get("braintrust_row_id")
            }
        )
        if not spans or not self._find_rows:
            return {}
        wanted = ", ".join(f"'{span}'" for span in spans)  # hexadecimal digits, by what an Annotation is
        query = (
            f"SELECT id, span_id FROM project_logs('{self._project}') WHERE span_id IN ({wanted}) LIMIT {len(spans)}"
        )
        reply = understood(self.name, self._http.post("/btql", json={"query": query, "fmt": "json"}), "data")
        if not reply.ok:
            raise refused(reply, len(annotations))
        found = reply.json()["data"]
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise SinkError("braintrust: answers a query, but not with rows")
        return {str(row.get("span_id")): str(row["id"]) for row in found if row.get("id")}

    def _feedback(self, annotation: Annotation, rows: Mapping[str, str]) -> dict[str, Any] | Delivery:
        if annotation.value is None:
            return Skipped("no score")
        row = clip(annotation.sink_refs.get("braintrust_row_id", ""), 500)
        if not row:
            if annotation.span_id is None or not self._find_rows:
                return Skipped("no sink_refs.braintrust_row_id, and no span id to find the row by")
            if annotation.span_id not in rows:
                return TryAgain("no row with this span id (yet)", missing=True)
            row = rows[annotation.span_id]
        feedback: dict[str, Any] = {
            "id": row,
            "scores": {annotation.rubric: annotation.value},
            "metadata": facts(annotation),
            "source": "api",
        }
        if self._comments and annotation.explanation:
            feedback["comment"] = clip(annotation.explanation)
        return feedback

    def _send(self, feedback: list[dict[str, Any]]) -> Sequence[Delivery]:
        path = f"/v1/project_logs/{self._project}/feedback"
        reply = understood(self.name, self._http.post(path, json={"feedback": feedback}), "status")
        return settled(reply, len(feedback))

    def close(self) -> None:
        """See `Sink.close`."""
        self._http.close()
