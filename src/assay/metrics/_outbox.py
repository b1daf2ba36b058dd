"""Series of what is owed and written to sinks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.metrics._exposition import label

if TYPE_CHECKING:
    from assay.metrics._families import Families
    from assay.store import Store


def add_outbox(families: Families, store: Store, now: float) -> None:
    """Add the gauges and the counter of every sink that anything was ever owed to. `now` is in epoch seconds."""
    for sink, depth in store.outbox_depths().items():
        name = label(sink)
        oldest = 0.0 if depth.oldest_at is None else max(0.0, now - depth.oldest_at.timestamp())
        families.add("assay_outbox_waiting", (name,), depth.waiting)
        families.add("assay_outbox_oldest_seconds", (name,), oldest)
        families.add("assay_outbox_rejected", (name,), depth.rejected)
        for outcome, n in depth.writes.items():
            families.add("assay_sink_writes_total", (name, outcome), n)
