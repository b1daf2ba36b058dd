"""The recorded corpus of spans, `tests/data/spans`: made by `make.py` there with real instrumentation libraries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from assay.otlp import read_logs_json, read_traces_json
from assay.spans import Span, SpanEvent, interactions

SPANS = Path(__file__).parent / "data" / "spans"
EXPECTED = SPANS / "expected" / "interactions.json"
DIALECTS = sorted(path.stem for path in SPANS.glob("*.json"))


def scenarios(dialect: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SPANS / f"{dialect}.json").read_text())["scenarios"]
    return found


def trace(dialect: str, scenario: str) -> list[Span]:
    """The spans of one scenario, with the log events that belong to them."""
    found = scenarios(dialect)[scenario]
    read = read_traces_json(json.dumps(found["traces"]).encode())
    assert not read.rejected
    events: dict[str, list[SpanEvent]] = {}
    if found["logs"]:
        for _, span_id, event in read_logs_json(json.dumps(found["logs"]).encode()).events:
            events.setdefault(span_id, []).append(event)
    return [replace(span, events=[*span.events, *events.get(span.span_id, [])]) for span in read.spans]


def told(dialect: str, scenario: str) -> dict[str, Any]:
    """What the scenario comes to, without times."""
    found = interactions(trace(dialect, scenario))
    fields = [
        {name: value for name, value in fields.items() if name not in {"timestamp", "latency_seconds"}}
        for _, fields in found.interactions
    ]
    return {"interactions": fields, "skipped": dict(found.skipped)}


def write_expected() -> None:
    """After a deliberate change: `python tests/corpus.py`, and read the difference."""
    EXPECTED.parent.mkdir(exist_ok=True)
    expected = {dialect: {name: told(dialect, name) for name in scenarios(dialect)} for dialect in DIALECTS}
    EXPECTED.write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_expected()
