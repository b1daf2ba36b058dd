"""Langfuse as a source: observations by `GET /api/public/v2/observations`, and by the older API where there is none.

The contract is Langfuse's OpenAPI as its Python SDK 5.0 has it. Trace ids are W3C trace ids, observation ids span ids.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from assay.errors import SettingsError
from assay.pull import Page
from assay.pull._http import Http, listed, rows
from assay.spans import Span

if TYPE_CHECKING:
    from collections.abc import Sequence

_V2, _V1 = "/api/public/v2/observations", "/api/public/observations"
_FIELDS: Final = "core,basic,io,model,usage,prompt,metrics"
_PAGE: Final = 50
_MOST_PAGES: Final = 20


class Langfuse:
    """The generations of one project. `condition` is a filter as Langfuse has it: a JSON list of conditions.

    Beside a filter Langfuse ignores its other parameters, so the range and the type are put into it.

    Raises:
        SettingsError: the filter is no JSON list.
    """

    name = "langfuse"

    def __init__(self, url: str, *, public_key: str, secret_key: str, condition: str | None = None) -> None:
        self._http = Http("langfuse", url, basic_auth=(public_key, secret_key))
        self._condition = _conditions(condition)
        self._older = False
        self.identity = "\0".join(["langfuse", url, public_key, condition or ""])

    def page(self, since: datetime, until: datetime, cursor: str | None) -> Page:
        """See `Source`."""
        found, following = self._generations(since, until, cursor)
        by_trace: dict[str, list[dict[str, Any]]] = {}
        for row in found:
            by_trace.setdefault(str(row.get("traceId") or ""), []).append(row)
        ids = frozenset(str(row.get("id")) for row in found)
        traces = []
        for trace_id, generations in by_trace.items():
            observed = {str(row.get("id")): row for row in (*generations, *self._observations(trace_id))}
            traces.append(([_span(row) for row in observed.values()], ids))
        return Page(traces=traces, cursor=following)

    def close(self) -> None:
        """See `Source`."""
        self._http.close()

    def _generations(
        self, since: datetime, until: datetime, cursor: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        span = {"fromStartTime": _iso(since), "toStartTime": _iso(until)}
        if not self._older and not (cursor or "").startswith("page "):
            params: dict[str, Any] = {"fields": _FIELDS, "type": "GENERATION", "limit": _PAGE, **span}
            if self._condition:
                params["filter"] = json.dumps([*_range(since, until), *self._condition])
            if cursor is not None:
                params["cursor"] = cursor
            found = self._http.call("GET", _V2, params=params, known=404)
            if found is not None:
                meta = found.get("meta") if isinstance(found, dict) else None
                following = meta.get("cursor") if isinstance(meta, dict) else None
                got = listed(self.name, found, "data")
                return got, following if isinstance(following, str) and following and got else None
            self._older = True
        number = int(cursor.removeprefix("page ")) if cursor else 1
        params = {"type": "GENERATION", "limit": _PAGE, "page": number, **span}
        if self._condition:
            params["filter"] = json.dumps([*_range(since, until), *self._condition])
        found = self._http.get(_V1, params)
        got = listed(self.name, found, "data")
        meta = found.get("meta") if isinstance(found, dict) else None
        pages = meta.get("totalPages") if isinstance(meta, dict) else None
        more = isinstance(pages, int) and number < pages and bool(got)
        return got, f"page {number + 1}" if more else None

    def _observations(self, trace_id: str) -> list[dict[str, Any]]:
        """All observations of a trace; of the older API with the trace's session and user."""
        if not trace_id:
            return []
        if self._older:
            trace = self._http.call("GET", f"/api/public/traces/{trace_id}", known=404)
            if not isinstance(trace, dict):
                return []
            shared = {name: trace[name] for name in ("sessionId", "userId") if trace.get(name) is not None}
            return [{**row, **shared} for row in rows(trace, "observations")]
        observed: list[dict[str, Any]] = []
        params: dict[str, Any] = {"fields": _FIELDS, "traceId": trace_id, "limit": 1000}
        for _ in range(_MOST_PAGES):
            found = self._http.get(_V2, params)
            observed += listed(self.name, found, "data")
            meta = found.get("meta") if isinstance(found, dict) else None
            following = meta.get("cursor") if isinstance(meta, dict) else None
            if not following:
                break
            params["cursor"] = following
        return observed


def _conditions(text: str | None) -> list[Any]:
    try:
        found = json.loads(text) if text else []
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise SettingsError("langfuse: --filter must be a JSON list of conditions")
    return found


def _range(since: datetime, until: datetime) -> Sequence[dict[str, str]]:
    return (
        {"type": "string", "column": "type", "operator": "=", "value": "GENERATION"},
        {"type": "datetime", "column": "startTime", "operator": ">=", "value": _iso(since)},
        {"type": "datetime", "column": "startTime", "operator": "<", "value": _iso(until)},
    )


def _span(row: dict[str, Any]) -> Span:
    """An observation as a span with Langfuse's own attributes."""
    attributes = {
        "langfuse.observation.type": str(row.get("type") or "").lower(),
        "langfuse.observation.input": row.get("input"),
        "langfuse.observation.output": row.get("output"),
        "langfuse.observation.model.name": row.get("providedModelName", row.get("model")),
        "langfuse.observation.usage_details": row.get("usageDetails"),
        "langfuse.observation.cost_details": row.get("costDetails"),
        "langfuse.observation.prompt.version": row.get("promptVersion"),
        "langfuse.session.id": row.get("sessionId"),
        "langfuse.user.id": row.get("userId"),
    }
    parent = row.get("parentObservationId")
    return Span(
        trace_id=str(row.get("traceId") or ""),
        span_id=str(row.get("id") or ""),
        parent_id=parent if isinstance(parent, str) and parent else None,
        name=str(row.get("name") or ""),
        start_seconds=_seconds(row.get("startTime")),
        end_seconds=_seconds(row.get("endTime")),
        attributes={name: value for name, value in attributes.items() if value is not None},
        failed=row.get("level") == "ERROR",
    )


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _seconds(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
