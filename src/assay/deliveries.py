"""What of a batch is delivered again: when, in which batches, and how often. It knows no Redis and makes no call."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from assay.queue import part_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from assay.queue import Batch, Retry
    from assay.records import Failure
    from assay.rubrics import Rubric


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A record to be tried again, after what its failures ask for, or after so many seconds."""

    raw: bytes
    attempt: int
    probabilities: Mapping[str, float]
    failures: Sequence[Failure] = ()
    delay_seconds: float = 0.0

    def company(self) -> tuple[object, ...]:
        """What is alike here is tried again in one batch: none waits more than twice as long as it is asked to."""
        asked = max((failure.retry_after_seconds or 0.0 for failure in self.failures), default=0.0)
        chances = tuple(sorted(self.probabilities.items()))
        return self.attempt, chances, math.frexp(asked)[1], bool(self.failures), self.delay_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """Bounds of delivery; the settings of the same names say what each is for. All times in seconds."""

    lease_seconds: float = 30.0
    sweep_seconds: float = 1.0
    max_deliveries: int = 4
    max_attempts: int = 6
    retry_base_seconds: float = 2.0
    retry_max_seconds: float = 300.0
    shutdown_seconds: float = 25.0
    max_record_bytes: int = 1_000_000
    #: bound of everything that judging one record may take, whatever a judge does
    judge_deadline_seconds: float = 900.0
    #: how long what a newer client wrote waits for a newer worker, while a release is rolled out
    newer_seconds: float = 600.0
    #: how long calls that are under way may hold a thread; a tenth of it, at least, a batch whose most part is judged
    patience_seconds: float = 10.0
    #: while a process has fewer records in hand, batches of a few take no thread; 0: each takes one
    in_hand_records: int = 0
    #: how often to look whether a rubric that waits may go on
    gate_seconds: float = 60.0

    @property
    def alone_from(self) -> int:
        """The delivery from which on a record is judged alone: the last but one, where it has had two before that."""
        return min(self.max_deliveries, max(3, self.max_deliveries - 1))

    def delay(self, failures: Sequence[Failure], attempt: int) -> float:
        """Seconds until the next try: what the endpoint asked for, else exponential with full jitter."""
        asked = max((f.retry_after_seconds or 0.0 for f in failures), default=0.0)
        ceiling = min(self.retry_max_seconds, self.retry_base_seconds * 2.0 ** min(attempt, 60))
        # Half fixed, half random: neither a thundering herd nor a retry at once.
        backoff = ceiling * (0.5 + 0.5 * random.random())  # noqa: S311
        return min(self.retry_max_seconds, max(asked, backoff))

    def retries(self, batch: Batch, again: Sequence[Again]) -> Iterator[Retry]:
        """Batches of what is to be tried again: one for each record would take a thread for each."""
        groups: dict[tuple[object, ...], list[Again]] = {}
        for one in again:
            groups.setdefault(one.company(), []).append(one)
        for members in groups.values():
            first, failures = members[0], [failure for one in members for failure in one.failures]
            delay = self.delay(failures, batch.attempt) if failures else first.delay_seconds
            raws, due_at = [one.raw for one in members], time.time() + delay
            yield part_of(batch, raws, "again", due_at=due_at, attempt=first.attempt, probabilities=first.probabilities)


def single(batch: Batch, raw: bytes, name: str, *, probabilities: Mapping[str, float] | None = None) -> Retry:
    """A batch of this one record; `name` is that of no other part of `batch` that holds the same."""
    return part_of(batch, [raw], name, attempt=batch.attempt, probabilities=probabilities)


def for_ragas(batch: Batch, owed: Mapping[bytes, Sequence[Rubric]]) -> Retry:
    """A batch of these records for workers that have ragas, of what they still owe."""
    confined = {rubric.hash: rubric.name for rubrics in owed.values() for rubric in rubrics}
    return part_of(batch, list(owed), "ragas", attempt=0, rubrics=confined)
