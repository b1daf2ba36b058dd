"""Everything that assay keeps in Redis: batches of records on their way from an app to a worker.

A batch stays here, under its id, until its scores are committed. The Celery message is only its doorbell: it carries
the id, may be lost or repeated without harm, and is rung again by `Queue.sweep`. Every change is one Lua script, so
it happens whole or not at all, and every script may be repeated (a reply was lost) with the same effect as once.

For a queue named Q the broker's list is Q itself, and Q.ragas for batches that wait for a worker that has ragas (see
docs/decisions/0019-ragas-queue.md); all else lies under `assay:Q:`

    batches     hash        id -> payload
    pending     sorted set  id -> when the app enqueued it; its oldest member is the oldest pending batch
    due         sorted set  id -> when the sweep looks at it again: end of a lease, time of a retry
    sizes       hash        id -> number of records
    deliveries  hash        id -> how often a worker claimed it
    leases      hash        id -> token of the worker that holds it; empty: nobody may claim it before it is due
    rings       hash        id -> number of its latest doorbell
    ragas       sorted set  id -> when the app enqueued it, of pending batches whose doorbells are rung on Q.ragas
    state       hash        records: pending records; rang: doorbells so far; heard: the latest one that was answered;
                            rang.ragas and heard.ragas: the same of Q.ragas
    counters    hash        accepted, and what clients report of themselves
    report:*    hash        per client: its latest report and batch, forgotten after a day
    unreadable  list        what was on the broker's list and is no doorbell, until a worker has made it a dead letter

Redis 6.2 or later, one primary (with replicas or Sentinel as you like). Redis Cluster is not supported: the scripts
touch several keys, and so does Celery's own Redis transport.

Standard library only at import; `redis` loads when a queue is opened.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from assay.connections import connect
from assay.errors import QueueError
from assay.queue._batch import (
    MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS,
    MAX_RECORD_BYTES,
    Batch,
    check_batch_id,
    decode_batch,
    encode_batch,
    is_batch,
)
from assay.queue._bells import CHORE_TASK, TASK, bell_template, doorbell, is_doorbell, ragas_bells
from assay.queue._scripts import KEYS, OF_CLIENTS, SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from redis import Redis

__all__ = [
    "CHORE_TASK",
    "MAX_BATCHES",
    "MAX_BATCH_BYTES",
    "MAX_BATCH_RECORDS",
    "MAX_RECORD_BYTES",
    "TASK",
    "Batch",
    "Claim",
    "Queue",
    "QueueDepth",
    "RedisInfo",
    "Report",
    "Retry",
    "Suspect",
    "client_counter",
    "decode_batch",
    "doorbell",
    "encode_batch",
    "is_batch",
    "is_doorbell",
    "part_of",
    "ragas_bells",
]

#: The most batches of a queue, unless it is told otherwise.
MAX_BATCHES: Final = 20_000
_NAMESPACE = uuid.UUID("0c9b9a5e-52f0-5d0c-8a57-1c1f8c0e9d42")
_QUEUE_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)
#: The most items that are kept of what is no doorbell.
_MAX_UNREADABLE: Final = 10_000
#: How many batches one run of the sweep script looks at: a few milliseconds of Redis.
_SWEEP_CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch that this process may work on until its lease ends.

    `deliveries` counts this claim too; `waited_seconds` is since the app enqueued it, by the server's clock.
    """

    batch_id: str
    payload: bytes
    deliveries: int
    waited_seconds: float = 0.0


class Suspect(Exception):  # noqa: N818 - no error: what the caller asked to be told
    """A record with which several workers have died was not claimed: it is to be worked on alone."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Records that go back to the queue as a batch of its own, due at `due_at` (epoch seconds, our clock).

    `enqueued_at` is that of the batch it came in, so that the age of the oldest pending record stays true.
    """

    payload: bytes
    batch_id: str
    due_at: float
    enqueued_at: float
    #: above 0: we hold it for so long from the start, as if claimed at once, and `due_at` does not count
    lease_seconds: float = 0.0
    records: int = 1
    #: its doorbells are for workers that have ragas
    ragas: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """How much a client's counters grew since its report before.

    Redis adds up a report once, however often it is sent: `reporter` names the client process, and `number` must
    grow from one of its reports to the next. Send the same report, unchanged, until a call succeeds.
    """

    reporter: str
    number: int
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """What is pending now. `oldest_enqueued_at` is in epoch seconds, None when nothing is.

    `ragas_records` of the records wait for a worker that has ragas, the oldest since `ragas_oldest_enqueued_at`.
    """

    batches: int
    records: int
    oldest_enqueued_at: float | None
    ragas_records: int = 0
    ragas_oldest_enqueued_at: float | None = None


@dataclass(frozen=True, slots=True)
class RedisInfo:
    """What `assay doctor` asks of the server; `maxmemory_bytes` is 0 without a limit.

    `clock_offset_seconds` is how far the server's clock is ahead of ours, as well as a round trip can tell.
    """

    version: str
    appendonly: bool
    maxmemory_policy: str
    maxmemory_bytes: int
    used_memory_bytes: int
    clock_offset_seconds: float


def part_of(
    batch: Batch,
    records: Sequence[bytes],
    name: str,
    *,
    due_at: float = 0.0,
    attempt: int = 0,
    probabilities: Mapping[str, float] | None = None,
    rubrics: Mapping[str, str] | None = None,
) -> Retry:
    """Some records of a batch as a batch of their own. Its id is derived, so that finishing twice adds it once.

    It is derived from the records too: two workers that have the same batch in hand may part it otherwise, and what one
    of them is done with must not be what the other still holds.

    Args:
        batch: what it is a part of.
        records: raw JSON, one each.
        name: what no other part of the batch that holds the same is called.
        due_at: epoch seconds, our clock.
        attempt: of the judge.
        probabilities: instead of the batch's own.
        rubrics: instead of the batch's own: what it is confined to, and then it waits for a worker that has ragas.
    """
    held = hashlib.sha256(b"\n".join(records)).hexdigest()
    batch_id = str(uuid.uuid5(_NAMESPACE, f"{batch.batch_id}/{name}/{held}"))
    rubrics = batch.rubrics if rubrics is None else rubrics
    payload = encode_batch(
        records,
        batch_id=batch_id,
        enqueued_at=batch.enqueued_at,
        attempt=attempt,
        replay=batch.replay,
        probabilities=batch.probabilities if probabilities is None else probabilities,
        rubrics=rubrics,
    )
    return Retry(
        payload=payload,
        batch_id=batch_id,
        due_at=due_at,
        enqueued_at=batch.enqueued_at,
        records=len(records),
        ragas=bool(rubrics),
    )


def client_counter(name: str) -> tuple[str, str] | None:
    """(app, outcome) of a counter that clients report; None for another, since whoever reaches Redis can write one."""
    try:
        match json.loads(name):
            case [str(app), str(outcome)]:
                return app, outcome
    except (ValueError, RecursionError):
        pass
    return None


class Queue:
    """The batches of one queue. Safe to share between threads.

    Every method raises QueueError when Redis is away, full, read-only or refuses the call; call again later.

    Args:
        redis: a `redis.Redis` with `decode_responses=False`.
        name: the Celery queue, 1 to 100 of the characters A-Z a-z 0-9 . _ -
        max_batches: `push` refuses more batches than this, so that a stuck worker cannot fill Redis.
        ring_seconds: how long a batch may lie unclaimed before the sweep asks whether its doorbell was lost.
    """

    def __init__(
        self, redis: Redis, name: str = "assay", *, max_batches: int = MAX_BATCHES, ring_seconds: float = 10.0
    ) -> None:
        if not _QUEUE_NAME.fullmatch(name):
            raise ValueError(f"queue name {name!r}: use 1 to 100 of the characters A-Z a-z 0-9 . _ -")
        self.name = name
        self.max_batches = max_batches
        self.ring_seconds = ring_seconds
        self._redis: Any = redis
        self._prefix = f"assay:{name}:"
        self._keys = [name, *(self._prefix + key for key in KEYS)]
        self._bell = bell_template("@LIST@")
        self._scripts: dict[str, Any] = {key: redis.register_script(text) for key, text in SCRIPTS.items()}
        #: the lease token of each batch that we hold
        self._held: dict[str, str] = {}
        self._lock = threading.Lock()
        #: how full the queue was when it last answered a client, as a share of `max_batches` in [0, 1]
        self.fill = 0.0

    @classmethod
    def from_url(
        cls,
        url: str,
        name: str = "assay",
        *,
        max_batches: int = MAX_BATCHES,
        ring_seconds: float = 10.0,
        timeout_seconds: float = 5.0,
        retries: int = 2,
    ) -> Queue:
        """Open the queue `name` on the server at `url` (see `assay.connections`); connects at the first call.

        `timeout_seconds` bounds each connect and each reply; `retries` is how often a call that met a broken
        connection or a timeout is repeated at once. Raises SettingsError for a URL that cannot be one.
        """
        with _queue_errors():
            redis = connect(url, timeout_seconds=timeout_seconds, retries=retries)
            return cls(redis, name, max_batches=max_batches, ring_seconds=ring_seconds)

    def push(
        self, payload: bytes, *, batch_id: str, records: int, enqueued_at: float, report: Report | None = None
    ) -> bool:
        """Store a batch and ring its doorbell; False when the queue is at its bound, and nothing is stored.

        The report is counted in either case. A batch that is there already is stored once and True.
        `records` is the number of records in the payload, `enqueued_at` when it left the app (epoch seconds).
        """
        check_batch_id(batch_id)
        report = report or Report("", 0)
        args = [
            self._bell,
            batch_id,
            payload,
            records,
            enqueued_at,
            self.ring_seconds,
            self.max_batches,
            *_report_args(report),
        ]
        stored, batches = self._run("push", args, report)
        self._note_fill(int(batches))
        return bool(stored)

    def add_counters(self, report: Report) -> None:
        """Add a report to the counters, without a batch."""
        self._note_fill(int(self._run("add_counters", _report_args(report), report)))

    def _note_fill(self, batches: int) -> None:
        self.fill = min(1.0, batches / self.max_batches) if self.max_batches > 0 else 1.0

    def claim(self, batch_id: str, *, lease_seconds: float, alone_from: int = 0) -> Claim | None:
        """Take a batch for `lease_seconds`; None when it is gone, held by another, or waits for its time.

        Two doorbells for one batch are harmless: one caller gets it, the other None. With `alone_from`, a batch of one
        record of which that would be the delivery of this number, or a later one, is left where it is.

        Raises:
            Suspect: it was left.
        """
        token = uuid.uuid4().hex
        reply = self._run("claim", [batch_id, token, lease_seconds, alone_from])
        if reply is None:
            return None
        if not reply:
            raise Suspect
        with self._lock:
            self._held[batch_id] = token
        return Claim(batch_id, reply[0], int(reply[1]), float(reply[2]))

    def extend(self, batch_ids: Iterable[str], *, lease_seconds: float) -> list[str]:
        """Make the leases of batches that we hold end `lease_seconds` from now; the ids that we no longer hold."""
        with self._lock:
            held = [(batch_id, self._held.get(batch_id, "")) for batch_id in batch_ids]
        if not held:
            return []
        reply = self._run("extend", [lease_seconds, *(part for pair in held for part in pair)])
        return [_text(batch_id) for batch_id in reply]

    def finish(self, batch_id: str, *, retries: Sequence[Retry] = ()) -> bool:
        """Remove a batch whose outcomes are committed, and add the records that go back, in one step.

        False when it was gone already, and then no retry is added: whoever removed it has added theirs. That the
        lease has meanwhile ended, or passed to another worker, does not matter: the outcomes are committed.
        """
        now = time.time()
        args: list[Any] = [self._bell, batch_id, self.ring_seconds]
        for retry in retries:
            check_batch_id(retry.batch_id)
            token = ""
            if retry.lease_seconds > 0:
                # Kept from try to try, for the reply of the first may be what was lost.
                with self._lock:
                    token = self._held.setdefault(retry.batch_id, uuid.uuid4().hex)
            # A delay, not a time: our clock may differ from the server's.
            delay = retry.lease_seconds if token else retry.due_at - now
            args += [retry.batch_id, retry.payload, retry.enqueued_at, delay, token, retry.records, int(retry.ragas)]
        done = bool(self._run("finish", args))
        self._forget(batch_id)
        return done

    def split(self, batch_id: str, parts: Sequence[Retry]) -> bool:
        """Replace a batch by single records, each with its own count of deliveries, and ring for them at once.

        False when the batch was gone already.
        """
        return self.finish(batch_id, retries=[replace(part, due_at=0.0, lease_seconds=0.0) for part in parts])

    def release(self, batch_id: str, *, due_at: float, count_delivery: bool = False) -> bool:
        """Hand back a batch that we hold, to be claimed again from `due_at` on (epoch seconds, our clock).

        A time that is past rings at once. Unless `count_delivery`, this delivery does not count. False when we no
        longer hold it.
        """
        with self._lock:
            token = self._held.get(batch_id, "")
        delay = due_at - time.time()
        done = bool(self._run("release", [self._bell, batch_id, self.ring_seconds, token, delay, int(count_delivery)]))
        self._forget(batch_id)
        return done

    def sweep(self, *, now: float | None = None, limit: int = 10_000) -> int:
        """Ring for due batches: retries whose time has come, ended leases, lost doorbells. How many it rang for.

        Looks at no more than `limit` batches, those due longest first, at the server's time unless `now` (epoch
        seconds) is given. Any number of processes may sweep at once: the script moves each batch's due time on, so
        one of them rings. A doorbell counts as lost when one rung after it was answered, or when the broker's list
        is empty; so a long backlog does not gather a doorbell for every batch and sweep.
        """
        rang = 0
        for start in range(0, limit, _SWEEP_CHUNK):
            chunk = min(_SWEEP_CHUNK, limit - start)
            reply = self._run("sweep", [self._bell, self.ring_seconds, "" if now is None else now, chunk])
            rang += int(reply[1])
            if int(reply[0]) < chunk:
                break
        return rang

    def take_bells(self, limit: int, *, wait_seconds: float, ragas: bool = False) -> list[bytes]:
        """Take the oldest doorbells off the broker's list, for another broker to carry; waits for the first of them.

        They may be lost from here on: the sweep rings again. What is no doorbell may be among them. With `ragas` they
        are those for workers that have it.
        """
        bells = ragas_bells(self.name) if ragas else self.name
        with _queue_errors():
            found = self._redis.brpop([bells], timeout=wait_seconds)
            if found is None:
                return []
            first: bytes = found[1]
            more: list[bytes] | None = self._redis.rpop(bells, limit - 1) if limit > 1 else None
        return [first, *(more or ())]

    def put_back_bells(self, bells: Sequence[bytes], *, ragas: bool = False) -> None:
        """Give back what `take_bells` took, to the place that it had."""
        with _queue_errors():
            self._redis.rpush(ragas_bells(self.name) if ragas else self.name, *reversed(bells))

    def keep_unreadable(self, item: bytes) -> None:
        """Put aside what was on the broker's list and is no doorbell.

        Of an item of more than 1 MB (`MAX_RECORD_BYTES`) only the first 1 MB is kept, so that none of them costs
        the workers more memory than a record does. Beyond ten thousand items, one more is let go.
        """
        key = self._prefix + "unreadable"
        with _queue_errors():
            if self._redis.llen(key) < _MAX_UNREADABLE:
                self._redis.rpush(key, item[:MAX_RECORD_BYTES])

    def unreadable(self, limit: int = 100) -> Iterator[bytes]:
        """The oldest of what was put aside, read one at a time; each may be forgotten before the next is read."""
        key, place = self._prefix + "unreadable", 0
        for _ in range(limit):
            with _queue_errors():
                item: bytes | None = self._redis.lindex(key, place)
            if item is None:
                return
            yield item
            with _queue_errors():
                # Unless it is gone, and the next one in its place.
                place += self._redis.lindex(key, place) == item

    def forget_unreadable(self, item: bytes) -> None:
        """Remove one such item, once it is kept elsewhere. Harmless when another has removed it."""
        with _queue_errors():
            self._redis.lrem(self._prefix + "unreadable", 1, item)

    def payloads(self) -> Iterator[bytes]:
        """Payloads of all pending batches, a few at a time; one may come twice. Changes nothing."""
        with _queue_errors():
            for _, payload in self._redis.hscan_iter(self._prefix + "batches", count=10):
                yield payload

    def depth(self) -> QueueDepth:
        """How much is pending: queued, claimed or waiting for a retry."""
        batches, records, oldest, ragas, ragas_oldest = self._run("depth", [])
        return QueueDepth(
            int(batches),
            int(records),
            float(oldest) if oldest else None,
            int(ragas),
            float(ragas_oldest) if ragas_oldest else None,
        )

    def pending_records(self, since: float | None = None) -> int:
        """How many records are pending that were enqueued at `since` (epoch seconds) or later; None: all."""
        return int(self._run("pending_records", ["-inf" if since is None else since]))

    def counters(self) -> dict[str, int]:
        """Counters since the queue began: `accepted` records, and the sums of the clients' reports."""
        with _queue_errors():
            reply = self._redis.hgetall(self._prefix + "counters")
        return {_text(name): int(value) for name, value in reply.items()}

    def client_counters(self) -> dict[tuple[str, str], int]:
        """What clients report, by (app, outcome): taken, sampled_out, thinned, sent, `dropped:<reason>`."""
        named = ((client_counter(name), count) for name, count in self.counters().items())
        return {key: count for key, count in named if key is not None}

    def ping(self) -> None:
        """Raise QueueError unless the server answers."""
        with _queue_errors():
            self._redis.ping()

    def info(self) -> RedisInfo:
        """Version, persistence, memory policy and clock of the server."""
        with _queue_errors():
            before = time.time()
            seconds, micros = self._redis.time()
            after = time.time()
            info = self._redis.info()
        return RedisInfo(
            version=str(info.get("redis_version", "")),
            appendonly=bool(info.get("aof_enabled", 0)),
            maxmemory_policy=str(info.get("maxmemory_policy", "")),
            maxmemory_bytes=int(info.get("maxmemory", 0)),
            used_memory_bytes=int(info.get("used_memory", 0)),
            clock_offset_seconds=seconds + micros / 1e6 - (before + after) / 2,
        )

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        with _queue_errors():
            self._redis.close()

    def _run(self, script: str, args: Sequence[Any], report: Report | None = None) -> Any:
        if script in OF_CLIENTS:
            more = [] if report is None else [f"{self._prefix}report:{report.reporter}"]
        else:
            more = [f"{self._prefix}ragas", ragas_bells(self.name)]
        with _queue_errors():
            return self._scripts[script](keys=[*self._keys, *more], args=args)

    def _forget(self, batch_id: str) -> None:
        with self._lock:
            self._held.pop(batch_id, None)


@contextmanager
def _queue_errors() -> Iterator[None]:
    """The one place where errors of redis become ours."""
    try:
        from redis.exceptions import RedisError
    except ImportError as error:
        raise QueueError(f"the redis package cannot be imported: {error}") from error
    try:
        yield
    except (RedisError, OSError) as error:
        raise QueueError(f"Redis: {str(error) or type(error).__name__}") from error


def _report_args(report: Report) -> list[Any]:
    return [report.reporter, report.number, *(part for pair in report.counters.items() for part in pair)]


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
