"""What a receiver of traces does, counted by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from assay.metrics._families import Families

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from assay.metrics._exposition import Family


def collector_families(counts: Mapping[str, Any]) -> Iterator[Family]:
    """The metrics of a receiver, from `Collector.counts`."""
    families = Families(())
    for outcome, count in counts["requests"].items():
        families.add("assay_collect_requests_total", (outcome,), count)
    for outcome in ("kept", "rejected"):
        families.add("assay_collect_spans_total", (outcome,), counts.get(f"spans_{outcome}", 0))
    families.add("assay_collect_calls_total", ("recorded",), counts.get("recorded", 0))
    for reason, count in counts["skipped"].items():
        families.add("assay_collect_calls_total", (reason,), count)
    families.add("assay_collect_waiting_spans", (), counts["waiting_spans"])
    families.add("assay_collect_waiting_bytes", (), counts["waiting_bytes"])
    return families.families()
