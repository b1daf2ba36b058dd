"""MLflow as a source. The contract is `service.proto` of MLflow 3.17, which has no OpenAPI; tests run that server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from assay.errors import SettingsError
from assay.otlp import span_of_json
from assay.pull import Page
from assay.pull._http import Http, listed, rows

if TYPE_CHECKING:
    from datetime import datetime

    from assay.spans import Span

_PAGE: Final = 50
#: Traces to a look-up of spans.
_TRACES: Final = 10


class MLflow:
    """The traces of one experiment, by its id or name. `condition` is a filter in MLflow's language."""

    name = "mlflow"

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        basic_auth: tuple[str, str] | None = None,
        experiment: str = "0",
        condition: str | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = Http("mlflow", url, headers=headers, basic_auth=basic_auth)
        self._experiment = experiment
        self._condition = condition
        self._id: str | None = experiment if experiment.isascii() and experiment.isdigit() else None
        self.identity = "\0".join(["mlflow", url, experiment, condition or ""])

    def page(self, since: datetime, until: datetime, cursor: str | None) -> Page:
        """See `Source`."""
        conditions = [
            f"timestamp_ms >= {int(since.timestamp() * 1000)}",
            f"timestamp_ms < {int(until.timestamp() * 1000)}",
            *([self._condition] if self._condition else []),
        ]
        location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": self._experiment_id()}}
        body: dict[str, Any] = {
            "locations": [location],
            "max_results": _PAGE,
            "order_by": ["timestamp_ms ASC"],
            "filter": " AND ".join(conditions),
        }
        if cursor is not None:
            body["page_token"] = cursor
        found = self._http.call("POST", "/api/3.0/mlflow/traces/search", body=body)
        listing = listed(self.name, found, "traces", may_lack=True)  # empty lists are left out of protobuf's JSON
        ids = [str(row["trace_id"]) for row in listing if isinstance(row.get("trace_id"), str)]
        traces: list[tuple[list[Span], frozenset[str]]] = []
        for first in range(0, len(ids), _TRACES):
            got = self._http.get("/api/3.0/mlflow/traces/batchGet", {"trace_ids": ids[first : first + _TRACES]})
            traces += [_trace(row) for row in listed(self.name, got, "traces", may_lack=True)]
        following = found.get("next_page_token") if isinstance(found, dict) else None
        return Page(traces=traces, cursor=following if isinstance(following, str) and following and ids else None)

    def close(self) -> None:
        """See `Source`."""
        self._http.close()

    def _experiment_id(self) -> str:
        if self._id is None:
            found = self._http.call(
                "GET",
                "/api/2.0/mlflow/experiments/get-by-name",
                params={"experiment_name": self._experiment},
                known=404,
            )
            experiment = found.get("experiment") if isinstance(found, dict) else None
            identity = experiment.get("experiment_id") if isinstance(experiment, dict) else None
            if not isinstance(identity, str):
                raise SettingsError(f"mlflow: no experiment is called {self._experiment!r}: name it with --project")
            self._id = identity
        return self._id


def _trace(row: dict[str, Any]) -> tuple[list[Span], frozenset[str]]:
    info = row.get("trace_info")
    info = info if isinstance(info, dict) else {}
    metadata, tags = info.get("trace_metadata"), info.get("tags")
    resource = {
        name: value
        for source in (tags, metadata)
        if isinstance(source, dict)
        for name, value in source.items()
        if isinstance(value, str)
    }
    spans = [span for each in rows(row, "spans") if (span := span_of_json(each, resource)) is not None]
    return spans, frozenset(span.span_id for span in spans)
