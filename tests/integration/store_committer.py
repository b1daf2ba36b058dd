"""A process that commits from many threads at once; run by test_store_concurrency.py. Prints one JSON line.

    store_committer.py URL SEED THREADS BATCHES COHORTS

Every process commits the same batches (so each is delivered to all of them), in an order of its own, replays included.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from assay.records import Evaluation, Record
from assay.store import DeadLetter, Store
from stores import A_FAILURE, NOT_APPLICABLE, a_record, an_evaluation, with_payloads

RUBRICS = ("faithfulness", "relevance", "safety", "completeness")


def batch(number: int, cohorts: int) -> tuple[list[tuple[Record, str]], list[Evaluation], list[DeadLetter]]:
    """Batch `number`, the same in every process; a quarter of it is also part of the batch before."""
    chance = random.Random(number)
    records = []
    for index in range(number * 15, number * 15 + 20):
        of_record = random.Random(index)
        records.append(
            a_record(
                f"record-{index}",
                seconds=of_record.randrange(600),
                probability=of_record.choice([1.0, 0.5, 0.25]),
                cohort={"user": f"user-{of_record.randrange(cohorts)}"},
                trace_id=f"{index:032x}",
            )
        )
    chance.shuffle(records)
    evaluations = [
        an_evaluation(record, chance.choice([0.0, 0.25, 1.0, 1.0, A_FAILURE, NOT_APPLICABLE]), rubric)
        for record in records
        for rubric in RUBRICS
    ]
    letters = [DeadLetter(dead_id=f"dead-{number // 2}", reason="invalid", message="synthetic", payload=b"{}")]
    return with_payloads(records), evaluations, letters


def main(url: str, seed: int, threads: int, batches: int, cohorts: int) -> None:
    """Commit all of it."""
    store = Store(url, cohort_labels=["user"], max_series=20)
    numbers = list(range(batches))
    random.Random(seed).shuffle(numbers)
    errors: list[str] = []
    inserted = [0] * threads
    took: list[float] = []
    ready = threading.Barrier(threads)

    def work(thread: int) -> None:
        ready.wait()
        for number in numbers[thread::threads]:
            records, evaluations, letters = batch(number, cohorts)
            started = time.perf_counter()
            try:
                done = store.commit(records, evaluations, letters, replay=number % 3 == 0)
            except Exception as error:  # noqa: BLE001
                errors.append(f"{type(error).__name__}: {error}")
                continue
            took.append(time.perf_counter() - started)
            inserted[thread] += done.inserted

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took.sort()
    shown = {name: took[int(len(took) * share)] if took else 0.0 for name, share in (("p50", 0.5), ("p95", 0.95))}
    print(json.dumps({"errors": errors, "inserted": sum(inserted), "seconds": shown}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
