"""A transport for tests of the client: keeps what it gets, and fails, refuses or stalls when told to."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

from assay.codec import decode_record
from assay.errors import QueueError
from assay.queue import Batch, Report, decode_batch
from assay.records import Record


class MemoryTransport:
    def __init__(self) -> None:
        self.batches: list[Batch] = []
        #: counted as Redis counts them: a report once, however often it is sent
        self.counters: Counter[str] = Counter()
        self.pushes = 0
        self.error: Exception | None = None
        self.full = False
        #: cleared: push stalls, as on a server that was stopped
        self.answering = threading.Event()
        self.answering.set()
        self.stalled = threading.Event()
        #: the reply of so many pushes is lost, though the batch is stored
        self.lost_replies = 0
        self._reports: dict[str, int] = {}
        self._ids: set[str] = set()

    def push(
        self, payload: bytes, *, batch_id: str, records: int, enqueued_at: float, report: Report | None = None
    ) -> bool:
        self.pushes += 1
        if not self.answering.is_set():
            self.stalled.set()
            self.answering.wait(30)
        if self.error is not None:
            raise self.error
        if report is not None:
            self.add_counters(report)
        if self.full:
            return False
        if batch_id not in self._ids:
            self._ids.add(batch_id)
            batch = decode_batch(payload)
            assert (batch.batch_id, batch.enqueued_at, len(batch.records)) == (batch_id, enqueued_at, records)
            self.batches.append(batch)
        if self.lost_replies:
            self.lost_replies -= 1
            raise QueueError("the reply was lost")
        return True

    def add_counters(self, report: Report) -> None:
        if self.error is not None:
            raise self.error
        if self._reports.get(report.reporter, 0) < report.number:
            self._reports[report.reporter] = report.number
            self.counters.update(report.counters)

    @property
    def records(self) -> list[Record]:
        """Every record, decoded as a worker decodes it."""
        return [decode_record(raw) for batch in self.batches for raw in batch.records]

    @property
    def sizes(self) -> list[int]:
        return [len(batch.records) for batch in self.batches]

    def count(self, name: str, app: str = "default") -> int:
        return self.counters[json.dumps([app, name])]


def one_record(transport: MemoryTransport) -> Any:
    """The only record that was sent. Any: tests look into it freely."""
    (record,) = transport.records
    return record
