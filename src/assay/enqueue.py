"""Puts records on the queue from outside an app: those of files, and dead letters again.

Whoever enqueues here waits while the queue is full.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from assay.codec import decode_record
from assay.errors import RecordError
from assay.queue import MAX_RECORD_BYTES, Report, decode_batch, encode_batch, is_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from assay.queue import Queue
    from assay.records import Record
    from assay.store import DeadLetter, Store

BATCH_RECORDS = 25
_BATCH_BYTES = 4_000_000


@dataclass(slots=True)
class Replayed:
    """What came of a replay: how many letters are back on the queue, and (id, error) of those that are not."""

    replayed: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)


def enqueue(
    records: Iterable[Record], queue: Queue, *, on_sent: Callable[[int], None] = lambda _: None, replay: bool = False
) -> int:
    """Push records in batches; waits while the queue is full. Returns how many were pushed.

    Raises:
        QueueError: Redis is away; what was pushed before stays pushed.
    """
    sent, push = 0, _Pusher(queue)
    for batch in _batches(record.to_json() for record in records):
        push(batch, replay=replay)
        sent += len(batch)
        on_sent(len(batch))
    return sent


def replay(
    letters: Iterable[DeadLetter],
    *,
    queue: Queue,
    store: Store,
    max_record_bytes: int = MAX_RECORD_BYTES,
    mended: bytes | None = None,
    on_read: Callable[[int], None] = lambda _: None,
) -> Replayed:
    """Put dead letters back on the queue, and note it in the store. `mended` stands in for the payload of the one.

    A letter whose payload is still no record stays as it is. Letters share batches, but what is thought to have killed
    workers goes alone. `on_read` is told after each letter, with 1. `max_record_bytes` is what workers take.

    Raises:
        QueueError: Redis is away. StoreError: the database is away.
    """
    result, push = Replayed(), _Pusher(queue)
    read_at: dict[str, datetime | None] = {}
    texts: list[str] = []

    def send() -> None:
        for batch in _batches(texts):
            push(batch, replay=True)
        if read_at:
            store.mark_replayed(read_at, as_read=read_at)
        result.replayed += len(read_at)
        read_at.clear()
        texts.clear()

    for letter in letters:
        try:
            payload = mended if mended is not None else letter.payload
            records = [record.to_json() for record in _records_of(payload, max_record_bytes)]
        except RecordError as error:
            result.refused.append((letter.dead_id, str(error)))
        else:
            alone = letter.reason == "crashed"
            if alone or len(texts) + len(records) > BATCH_RECORDS or sum(map(len, texts)) > _BATCH_BYTES:
                send()
            read_at[letter.dead_id] = letter.created_at
            texts += records
            if alone:
                send()
        on_read(1)
    send()
    return result


class _Pusher:
    """Pushes the batches of one run.

    Each goes with a report, which counts nothing: by it Redis knows a batch whose push is repeated because the reply
    was lost, even when a worker has finished it since.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._reporter = f"enqueue-{uuid.uuid4().hex}"
        self._number = 0

    def __call__(self, batch: Sequence[str], *, replay: bool) -> None:
        self._number += 1
        report = Report(self._reporter, self._number)
        batch_id, enqueued_at = str(uuid.uuid4()), time.time()
        payload = encode_batch(batch, batch_id=batch_id, enqueued_at=enqueued_at, replay=replay)
        while not self._queue.push(
            payload, batch_id=batch_id, records=len(batch), enqueued_at=enqueued_at, report=report
        ):
            time.sleep(0.5)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == BATCH_RECORDS or size + len(text) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _records_of(payload: bytes, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Record]:
    """A dead letter holds one record, or a whole batch that could not be read."""
    if is_batch(payload):
        for raw in decode_batch(payload).records:
            yield decode_record(raw, max_bytes=max_bytes)
    else:
        yield decode_record(payload, max_bytes=max_bytes)
