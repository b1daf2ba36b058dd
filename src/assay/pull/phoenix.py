"""Arize Phoenix as a source. The contract is that of arize-phoenix 20.26 (`/openapi.json`); tests run that server."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from assay.pull import Page
from assay.pull._http import Http, listed, rows
from assay.spans import Span, SpanEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Spans of model calls to a page, and traces whose spans are asked for at once.
_PAGE: Final = 100
_TRACES: Final = 25
#: Of one look-up of traces: pages of a thousand spans.
_MOST_PAGES: Final = 50


class Phoenix:
    """Spans of the kind LLM in one project. `attribute` filters are `key:value`, as Phoenix has them."""

    name = "phoenix"

    def __init__(
        self, url: str, *, api_key: str | None = None, project: str = "default", filters: Sequence[str] = ()
    ) -> None:
        self._http = Http("phoenix", url, headers={"authorization": f"Bearer {api_key}"} if api_key else {})
        self._path = f"/v1/projects/{quote(project, safe='')}/spans"
        self._project = project
        self._filters = list(filters)
        self.identity = "\0".join(["phoenix", url, project, *filters])

    def page(self, since: datetime, until: datetime, cursor: str | None) -> Page:
        """See `Source`."""
        params: dict[str, Any] = {
            "span_kind": "LLM",
            "sort": "start_time",
            "order": "asc",
            "limit": _PAGE,
            "start_time": since.isoformat(),
            "end_time": until.isoformat(),
        }
        if self._filters:
            params["attribute"] = self._filters
        if cursor is not None:
            params["cursor"] = cursor
        found = self._http.get(self._path, params)
        wanted = [_span(row, self._project) for row in listed(self.name, found, "data")]
        by_trace: dict[str, dict[str, Span]] = {}
        for span in wanted:
            by_trace.setdefault(span.trace_id, {})
        trace_ids = list(by_trace)
        for first in range(0, len(trace_ids), _TRACES):
            for span in self._spans_of(trace_ids[first : first + _TRACES]):
                if span.trace_id in by_trace:
                    by_trace[span.trace_id][span.span_id] = span
        ids = frozenset(span.span_id for span in wanted)
        following = found.get("next_cursor") if isinstance(found, dict) else None
        return Page(
            traces=[(list(spans.values()), ids) for spans in by_trace.values()],
            cursor=following if isinstance(following, str) and following and wanted else None,
        )

    def close(self) -> None:
        """See `Source`."""
        self._http.close()

    def _spans_of(self, trace_ids: Sequence[str]) -> list[Span]:
        spans: list[Span] = []
        params: dict[str, Any] = {"trace_id": list(trace_ids), "limit": 1000}
        for _ in range(_MOST_PAGES):
            found = self._http.get(self._path, params)
            spans += [_span(row, self._project) for row in listed(self.name, found, "data")]
            following = found.get("next_cursor")
            if not following:
                break
            params["cursor"] = following
        return spans


def _span(row: dict[str, Any], project: str) -> Span:
    context = row.get("context")
    ids = context if isinstance(context, dict) else {}
    given = row.get("attributes")
    attributes = dict(given) if isinstance(given, dict) else {}
    if isinstance(row.get("span_kind"), str) and row["span_kind"] != "UNKNOWN":
        attributes.setdefault("openinference.span.kind", row["span_kind"])
    parent = row.get("parent_id")
    return Span(
        trace_id=str(ids.get("trace_id", "")),
        span_id=str(ids.get("span_id", "")),
        parent_id=parent if isinstance(parent, str) else None,
        name=str(row.get("name") or ""),
        start_seconds=_seconds(row.get("start_time")),
        end_seconds=_seconds(row.get("end_time")),
        attributes=attributes,
        events=[
            SpanEvent(name=str(event.get("name") or ""), attributes=event.get("attributes") or {})
            for event in rows(row, "events")
        ],
        failed=row.get("status_code") == "ERROR",
        resource={"openinference.project.name": project},
    )


def _seconds(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
