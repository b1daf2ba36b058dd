"""A worker bench: a real Redis queue, a SQLite store, workers in the test's own process, and the hands of Celery."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from assay.enqueue import enqueue
from assay.pipeline import Judges
from assay.queue import Queue
from assay.records import Record
from assay.store import Store
from assay.worker import Worker


def until(met: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.01)


class Bench:
    def __init__(self, queue: Queue, store: Store) -> None:
        self.queue, self.store = queue, store
        self.workers: list[Worker] = []

    @classmethod
    @contextmanager
    def opened(cls, redis_url: str, directory: Path) -> Iterator[Self]:
        queue = Queue.from_url(redis_url)
        with Store(f"sqlite:///{directory}/assay.db") as store:
            store.upgrade()
            made = cls(queue, store)
            try:
                yield made
            finally:
                made.stop()
                queue.close()

    def start(self, judge: Any, **options: Any) -> Worker:
        """A worker whose records this judge scores; it is stopped with the bench."""
        worker = Worker(**{"queue": self.queue, "store": self.store, "judges": lambda: Judges(judge)} | options)
        worker.start()
        self.workers.append(worker)
        return worker

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.workers.clear()

    def push(self, *records: Record) -> None:
        enqueue(records, self.queue)

    @property
    def ids(self) -> list[str]:
        """Of the batches in the queue."""
        return sorted(key.decode() for key in self.queue._redis.hkeys("assay:assay:batches"))

    def work_once(self, worker: Worker) -> None:
        for batch_id in self.ids:
            worker.work(batch_id)

    def work_off(self, worker: Worker, seconds: float = 20.0) -> None:
        """Deliver every doorbell until the queue is empty."""

        def is_empty() -> bool:
            self.work_once(worker)
            return not self.ids

        until(is_empty, seconds)
