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

import base64
import json
import math
import re
import reprlib
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from assay.connections import connect
from assay.errors import QueueError, RecordError
from assay.records import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from redis import Redis

#: Name of the Celery task that a doorbell calls, with the batch id as its only argument.
TASK: Final = "assay.score_batch"
#: Name of the task that does a chore of the workers, with its name as the only argument.
CHORE_TASK: Final = "assay.chore"
#: The most records that one batch may hold.
MAX_BATCH_RECORDS: Final = 25
#: The most bytes of one record's JSON, and of a whole batch.
MAX_RECORD_BYTES: Final = 1_000_000
MAX_BATCH_BYTES: Final = 4_000_000

#: The fields of a batch beside its records.
_HEAD: Final = ("schema_version", "batch_id", "enqueued_at", "attempt", "replay", "probabilities", "rubrics")
_KEYS: Final = ("batches", "pending", "due", "sizes", "deliveries", "leases", "rings", "state", "counters")
#: What a batch id may look like. Scripts write it into the doorbell, so nothing that JSON would have to escape.
_BATCH_ID = re.compile(r"[A-Za-z0-9._:-]{1,200}", re.ASCII)
_QUEUE_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
#: Text of JSON: a string, a run of brackets that open or close, a value that is neither text nor has brackets.
_STRING = r'"(?:[^"\\]++|\\.)*+"'
_PARTS = re.compile(rf"{_STRING}|[\[{{]++|[\]}}]++|\"", re.DOTALL)
_PLAIN = re.compile(rf'{_STRING}|[^][{{}}",: \t\n\r]++', re.DOTALL)
#: The most items that are kept of what is no doorbell.
_MAX_UNREADABLE: Final = 10_000
#: How many batches one run of the sweep script looks at: a few milliseconds of Redis.
_SWEEP_CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class Batch:
    """What one payload holds.

    `enqueued_at` is in seconds since the epoch; `attempt` counts the judge retries of a single-record batch;
    `replay` means that stored failures of these records may be superseded. `records` are raw JSON, one each, just
    as they were received: `codec.decode_record` reads them one by one, so that a bad one never fails its mates.
    `probabilities` is what was decided of these records already: rubric hash -> with which probability, below 1, the
    record is judged under it. `rubrics` is all that the records still owe, rubric hash -> name, of a batch that waits
    for a worker that has ragas; empty: whatever a record owes.
    """

    batch_id: str
    enqueued_at: float
    attempt: int
    replay: bool
    records: tuple[bytes, ...]
    probabilities: Mapping[str, float] = field(default_factory=dict)
    rubrics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch that this process may work on until its lease ends.

    `deliveries` counts this claim too; `waited_seconds` is since the app enqueued it, by the server's clock.
    """

    batch_id: str
    payload: bytes
    deliveries: int
    waited_seconds: float = 0.0


class LastTry(Exception):  # noqa: N818 - no error: what the caller asked to be told
    """A record that one more death sets aside was not claimed: it is to be worked on alone."""


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


def encode_batch(
    records: Sequence[str | bytes],
    *,
    batch_id: str,
    enqueued_at: float,
    attempt: int = 0,
    replay: bool = False,
    probabilities: Mapping[str, float] | None = None,
    rubrics: Mapping[str, str] | None = None,
) -> bytes:
    """The payload of one batch, from the JSON of each of its records: `Record.to_json`, or `Batch.records` as it is.

    Lone surrogates in text, which UTF-8 cannot carry, become `?`.
    """
    head = json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "batch_id": batch_id,
            "enqueued_at": enqueued_at,
            "attempt": attempt,
            "replay": replay,
            # Only workers write it, and seldom.
            **({"probabilities": dict(probabilities)} if probabilities else {}),
            **({"rubrics": dict(rubrics)} if rubrics else {}),
        },
        separators=(",", ":"),
        allow_nan=False,
    )
    parts = [record.encode(errors="replace") if isinstance(record, str) else record for record in records]
    return b'%s,"records":[%s]}' % (head[:-1].encode(), b",".join(parts))


def decode_batch(payload: bytes) -> Batch:
    """The batch in a payload. Its records stay raw; fields it does not know are left aside, and neither is decoded.

    Raises:
        RecordError: `reason` is undecodable (not JSON), unknown_version, or invalid (a field is missing or wrong).
    """
    try:
        # Bad bytes inside a record must reach that record's own decoding, and only its.
        texts, records = _scan(payload.decode("utf-8", "surrogateescape"))
        fields = {name: json.loads(texts[name]) for name in _HEAD if name in texts}
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        raise RecordError(f"the batch is not a JSON object: {error}", reason="undecodable") from error
    version = fields.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise RecordError(
            f"version {reprlib.repr(version)} is not known (this assay knows {SCHEMA_VERSION}): upgrade the worker",
            field="schema_version",
            reason="unknown_version",
        )
    batch_id, enqueued_at = fields.get("batch_id"), fields.get("enqueued_at")
    attempt, replay = fields.get("attempt", 0), fields.get("replay", False)
    if not isinstance(batch_id, str) or not _BATCH_ID.fullmatch(batch_id):
        raise RecordError("must be 1 to 200 of the characters A-Z a-z 0-9 . _ : -", field="batch_id")
    if isinstance(enqueued_at, bool) or not isinstance(enqueued_at, int | float) or not _is_finite(enqueued_at):
        raise RecordError("must be a number: seconds since the epoch", field="enqueued_at")
    if type(attempt) is not int or attempt < 0:
        raise RecordError("must be a whole number, 0 or more", field="attempt")
    if not isinstance(replay, bool):
        raise RecordError("must be true or false", field="replay")
    probabilities = fields.get("probabilities", {})
    if not isinstance(probabilities, dict) or not all(
        isinstance(value, int | float) and 0 < value <= 1 for value in probabilities.values()
    ):
        raise RecordError("must be an object of numbers in (0, 1]", field="probabilities")
    rubrics = fields.get("rubrics", {})
    if not isinstance(rubrics, dict) or not all(isinstance(name, str) for name in rubrics.values()):
        raise RecordError("must be an object of texts", field="rubrics")
    if not records:
        raise RecordError("must be an array of one record or more", field="records")
    return Batch(batch_id, float(enqueued_at), attempt, replay, records, probabilities, rubrics)


def is_batch(payload: bytes) -> bool:
    """Whether a payload is meant as a batch, rather than as one record; `decode_batch` may refuse it all the same."""
    try:
        texts, _ = _scan(payload.decode("utf-8", "surrogateescape"))
    except (ValueError, TypeError, IndexError):
        return False
    return "records" in texts and "record_id" not in texts


def is_doorbell(item: bytes) -> bool:
    """Whether something from the broker's list is a message of ours that Celery can read."""
    try:
        message = json.loads(item)
        properties, body = message["properties"], message["body"]
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body, validate=True)
        args, kwargs = json.loads(body)[:2]
        delivery = properties["delivery_info"]
        readable = all(isinstance(delivery[name], str) for name in ("exchange", "routing_key"))
        readable &= isinstance(properties["delivery_tag"], str) and message["content-type"] == "application/json"
        headers = message["headers"]
        readable &= isinstance(headers["id"], str) and headers["task"] in (TASK, CHORE_TASK)
        readable &= kwargs == {} and len(args) == 1
        return bool(readable and all(isinstance(arg, str) for arg in args))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def ragas_bells(queue: str) -> str:
    """The broker's list of the doorbells that are for workers that have ragas."""
    return f"{queue}.ragas"


def doorbell(queue: str, batch_id: str) -> str:
    """The message that makes a Celery worker on `queue` score a batch: LPUSH it to the list `queue`.

    It is Celery's protocol 2 in JSON, in the envelope of kombu's Redis transport.
    """
    return _bell(queue).replace("@BATCH@", batch_id).replace("@RING@", f"{batch_id}.{uuid.uuid4().hex}")


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
        self, redis: Redis, name: str = "assay", *, max_batches: int = 20_000, ring_seconds: float = 10.0
    ) -> None:
        if not _QUEUE_NAME.fullmatch(name):
            raise ValueError(f"queue name {name!r}: use 1 to 100 of the characters A-Z a-z 0-9 . _ -")
        self.name = name
        self.max_batches = max_batches
        self.ring_seconds = ring_seconds
        self._redis: Any = redis
        self._prefix = f"assay:{name}:"
        self._keys = [name, *(self._prefix + key for key in _KEYS)]
        self._bell = _bell("@LIST@")
        self._scripts: dict[str, Any] = {key: redis.register_script(text) for key, text in _SCRIPTS.items()}
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
        max_batches: int = 20_000,
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
        _check_batch_id(batch_id)
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

    def claim(self, batch_id: str, *, lease_seconds: float, last_try: int = 0) -> Claim | None:
        """Take a batch for `lease_seconds`; None when it is gone, held by another, or waits for its time.

        Two doorbells for one batch are harmless: one caller gets it, the other None. With `last_try`, a batch of one
        record of which that would be the delivery of this number is left where it is.

        Raises:
            LastTry: it was left.
        """
        token = uuid.uuid4().hex
        reply = self._run("claim", [batch_id, token, lease_seconds, last_try])
        if reply is None:
            return None
        if not reply:
            raise LastTry
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
            _check_batch_id(retry.batch_id)
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
        if script in _OF_CLIENTS:
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


def _bell(queue: str) -> str:
    """A doorbell with the marks @BATCH@ (the batch's id) and @RING@ (an id of its own) still to be filled in.

    The scripts fill in @LIST@, where the name of the list stands.
    """
    headers = {
        "lang": "py",
        "task": TASK,
        "id": "@RING@",
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": "@RING@",
        "parent_id": None,
        "argsrepr": "['@BATCH@']",
        "kwargsrepr": "{}",
        "origin": "assay",
        "ignore_result": True,
    }
    properties = {
        "correlation_id": "@RING@",
        "reply_to": "",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "delivery_tag": "@RING@",
    }
    body = json.dumps([["@BATCH@"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    # Without body_encoding the body is plain text: no base64, which a Lua script could not write.
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": properties,
        }
    )


def _check_batch_id(batch_id: str) -> None:
    if not _BATCH_ID.fullmatch(batch_id):
        raise ValueError(f"batch id {batch_id!r}: use 1 to 200 of the characters A-Z a-z 0-9 . _ : -")


def _report_args(report: Report) -> list[Any]:
    return [report.reporter, report.number, *(part for pair in report.counters.items() for part in pair)]


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond any float
        return False


def _scan(text: str) -> tuple[dict[str, str], tuple[bytes, ...]]:
    """The raw text of each field of a JSON object, and of each element of its array `records`.

    No value is decoded: one that Python's json cannot read (a number of 5,000 digits, 3,000 arrays in each other)
    harms nothing beside it.
    """
    fields: dict[str, str] = {}
    records: tuple[bytes, ...] = ()
    at = _past(text, 0, "{")
    while True:
        if text[at] != '"':
            raise TypeError("a name in it is not text")
        key, at = _DECODER.raw_decode(text, at)
        at = _past(text, at, ":")
        start = at
        if key == "records" and text[at] == "[":
            records, at = _elements(text, at)
        else:
            at = _end(text, at)
        fields[key] = text[start:at]
        at = _skip(text, at)
        if text[at] == "}":
            break
        at = _past(text, at, ",")
    if _skip(text, at + 1) != len(text):
        raise ValueError("something follows the object")
    return fields, records


def _elements(text: str, at: int) -> tuple[tuple[bytes, ...], int]:
    """The raw text of each element of the array that begins at `at`, and where the text goes on after it."""
    found = []
    at = _past(text, at, "[")
    if text[at] == "]":
        return (), at + 1
    while True:
        end = _end(text, at)
        found.append(text[at:end].encode("utf-8", "surrogateescape"))
        at = _skip(text, end)
        if text[at] == "]":
            return tuple(found), at + 1
        at = _past(text, at, ",")


def _end(text: str, at: int) -> int:
    """Where the value that begins at `at` ends, by its quotes and brackets alone; what is in it may be no JSON."""
    if text[at] not in "[{":
        plain = _PLAIN.match(text, at)
        if plain is None:
            raise ValueError(f"a value expected at character {at}")
        return plain.end()
    depth = 0
    for part in _PARTS.finditer(text, at):
        mark = text[part.start()]
        length = part.end() - part.start()
        if mark in "[{":
            depth += length
        elif mark in "]}":
            if depth <= length:
                return part.start() + depth
            depth -= length
        elif length == 1:
            raise ValueError(f"the text that begins at character {part.start()} does not end")
    raise ValueError(f"the value that begins at character {at} does not end")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _past(text: str, at: int, mark: str) -> int:
    """Where the text goes on after `mark` and the space around it."""
    at = _skip(text, at)
    if text[at] != mark:
        raise ValueError(f"{mark!r} expected at character {at}")
    return _skip(text, at + 1)


# Lua. Every script gets the same keys, then one `report:` key if it is one of those that apps run and has one, else the
# two of ragas. Bells are built from a template, so that the message has one author, `_bell`.
_COMMON = """
local BELLS, BATCHES, PENDING, DUE, SIZES, DELIVERIES, LEASES, RINGS, STATE, COUNTERS = unpack(KEYS)
local REPORT, RAGAS, RAGAS_BELLS
if #KEYS == 12 then RAGAS, RAGAS_BELLS = KEYS[11], KEYS[12] else REPORT = KEYS[11] end

local function server_time()
  local parts = redis.call('TIME')
  return tonumber(parts[1]) + tonumber(parts[2]) / 1000000
end

-- On a server at its maxmemory only a script's first write is refused, and a deletion never is. Whatever empties
-- the queue begins with one, or a full Redis could not be drained.
local function begin_draining()
  redis.call('HDEL', LEASES, '')
end

-- The list that a batch's doorbells are rung on; the numbers of each list's doorbells are its own.
local function list_of(id)
  if RAGAS and redis.call('ZSCORE', RAGAS, id) then return RAGAS_BELLS, '.ragas' end
  return BELLS, ''
end

local function ring(template, id)
  -- An id that would break the message is left alone; it stays visible as pending.
  if not string.find(id, '^[%w%._:-]+$') then return 0 end
  local list, suffix = list_of(id)
  local number = redis.call('HINCRBY', STATE, 'rang' .. suffix, 1)
  redis.call('HSET', RINGS, id, number)
  local marks = { BATCH = id, RING = id .. '.' .. string.format('%d', number), LIST = list }
  redis.call('LPUSH', list, (string.gsub(template, '@(%u+)@', marks)))
  return 1
end

local function add(id, payload, records, enqueued_at)
  redis.call('HSET', BATCHES, id, payload)
  redis.call('HSET', SIZES, id, records)
  redis.call('HINCRBY', STATE, 'records', records)
  redis.call('ZADD', PENDING, enqueued_at, id)
end

local function remove(id)
  local there = redis.call('HDEL', BATCHES, id)
  local records = redis.call('HGET', SIZES, id)
  if records then redis.call('HINCRBY', STATE, 'records', -records) end
  for _, key in ipairs({ PENDING, DUE, RAGAS }) do redis.call('ZREM', key, id) end
  for _, key in ipairs({ SIZES, DELIVERIES, LEASES, RINGS }) do redis.call('HDEL', key, id) end
  return there
end

-- Free to claim now, or from a later time on; then the sweep rings.
local function schedule(template, id, delay, ring_seconds)
  if delay > 0 then
    redis.call('HSET', LEASES, id, '')
    redis.call('HDEL', RINGS, id)
    redis.call('ZADD', DUE, server_time() + delay, id)
  else
    redis.call('HDEL', LEASES, id)
    redis.call('ZADD', DUE, server_time() + ring_seconds, id)
    ring(template, id)
  end
end

local function count_report(first)
  if ARGV[first] == '' then return end
  local number, last = tonumber(ARGV[first + 1]), redis.call('HGET', REPORT, 'number')
  if last and tonumber(last) >= number then return end
  for i = first + 2, #ARGV, 2 do redis.call('HINCRBY', COUNTERS, ARGV[i], ARGV[i + 1]) end
  redis.call('HSET', REPORT, 'number', ARGV[first + 1])
  redis.call('EXPIRE', REPORT, 86400)
end
"""

#: Scripts that apps run, whose access rules (docs/howto/redis.md) know of no keys but these and their report.
_OF_CLIENTS: Final = frozenset({"push", "add_counters"})

_SCRIPTS: Final[dict[str, str]] = {
    "push": _COMMON
    + """
local template, id, payload, records, enqueued_at, ring_seconds, max_batches = unpack(ARGV, 1, 7)
local known = ARGV[8] ~= '' and redis.call('HGET', REPORT, 'batch') == id
count_report(8)
-- Known: stored before, perhaps even finished since; only the reply was lost.
local batches = redis.call('HLEN', BATCHES)
if known or redis.call('HEXISTS', BATCHES, id) == 1 then return { 1, batches } end
if batches >= tonumber(max_batches) then return { 0, batches } end
add(id, payload, records, enqueued_at)
schedule(template, id, 0, tonumber(ring_seconds))
redis.call('HINCRBY', COUNTERS, 'accepted', records)
if ARGV[8] ~= '' then
  redis.call('HSET', REPORT, 'batch', id)
  redis.call('EXPIRE', REPORT, 86400)
end
return { 1, batches + 1 }
""",
    "add_counters": _COMMON
    + """
count_report(1)
return redis.call('HLEN', BATCHES)
""",
    "claim": _COMMON
    + """
local id, token, lease_seconds, last_try = unpack(ARGV)
begin_draining()
local payload = redis.call('HGET', BATCHES, id)
if not payload then
  remove(id)
  return false
end
local holder, time = redis.call('HGET', LEASES, id), server_time()
if holder ~= token then
  if holder and tonumber(redis.call('ZSCORE', DUE, id) or 0) > time then return false end
  local deliveries = tonumber(redis.call('HGET', DELIVERIES, id) or 0)
  if deliveries + 1 == tonumber(last_try) and redis.call('HGET', SIZES, id) == '1' then return {} end
  redis.call('HINCRBY', DELIVERIES, id, 1)
  redis.call('HSET', LEASES, id, token)
end
redis.call('ZADD', DUE, time + tonumber(lease_seconds), id)
local number, _, suffix = tonumber(redis.call('HGET', RINGS, id) or 0), list_of(id)
local heard = 'heard' .. suffix
if number > tonumber(redis.call('HGET', STATE, heard) or 0) then redis.call('HSET', STATE, heard, number) end
return { payload, redis.call('HGET', DELIVERIES, id), tostring(time - (redis.call('ZSCORE', PENDING, id) or time)) }
""",
    "extend": _COMMON
    + """
begin_draining()
local due, lost = server_time() + tonumber(ARGV[1]), {}
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] ~= '' and redis.call('HGET', LEASES, ARGV[i]) == ARGV[i + 1] then
    redis.call('ZADD', DUE, due, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
""",
    "finish": _COMMON
    + """
local template, id, ring_seconds = unpack(ARGV, 1, 3)
if remove(id) == 0 then return 0 end
for i = 4, #ARGV, 7 do
  -- There already: its batch came and was finished twice.
  if redis.call('HEXISTS', BATCHES, ARGV[i]) == 0 then
    add(ARGV[i], ARGV[i + 1], ARGV[i + 5], ARGV[i + 2])
    if ARGV[i + 6] == '1' then redis.call('ZADD', RAGAS, ARGV[i + 2], ARGV[i]) end
    if ARGV[i + 4] ~= '' then
      redis.call('HSET', LEASES, ARGV[i], ARGV[i + 4])
      redis.call('HINCRBY', DELIVERIES, ARGV[i], 1)
      redis.call('ZADD', DUE, server_time() + tonumber(ARGV[i + 3]), ARGV[i])
    else
      schedule(template, ARGV[i], tonumber(ARGV[i + 3]), tonumber(ring_seconds))
    end
  end
end
return 1
""",
    "release": _COMMON
    + """
local template, id, ring_seconds, token, delay, count_delivery = unpack(ARGV)
begin_draining()
if token == '' or redis.call('HGET', LEASES, id) ~= token then return 0 end
if count_delivery == '0' then redis.call('HINCRBY', DELIVERIES, id, -1) end
schedule(template, id, tonumber(delay), tonumber(ring_seconds))
return 1
""",
    "sweep": _COMMON
    + """
local template, ring_seconds, time, limit = unpack(ARGV)
begin_draining()
time = tonumber(time) or server_time()
local silent, heard = {}, {}
for list, suffix in pairs({ [BELLS] = '', [RAGAS_BELLS] = '.ragas' }) do
  silent[list] = redis.call('LLEN', list) == 0
  heard[list] = tonumber(redis.call('HGET', STATE, 'heard' .. suffix) or 0)
end
local ids, rang = redis.call('ZRANGEBYSCORE', DUE, '-inf', time, 'LIMIT', 0, limit), 0
for _, id in ipairs(ids) do
  if redis.call('HEXISTS', BATCHES, id) == 0 then
    remove(id)
  else
    redis.call('HDEL', LEASES, id)
    redis.call('ZADD', DUE, time + tonumber(ring_seconds), id)
    local number, list = redis.call('HGET', RINGS, id), list_of(id)
    -- A list is first in, first out: a later bell was answered, so this one is no longer in it.
    if silent[list] or not number or tonumber(number) <= heard[list] then rang = rang + ring(template, id) end
  end
end
return { #ids, rang }
""",
    "depth": _COMMON
    + """
local oldest = redis.call('ZRANGE', PENDING, 0, 0, 'WITHSCORES')[2]
local records, since = 0, ''
for start = 0, redis.call('ZCARD', RAGAS) - 1, 1000 do
  local ids = redis.call('ZRANGE', RAGAS, start, start + 999)
  for i, size in ipairs(redis.call('HMGET', SIZES, unpack(ids))) do
    -- Without a size: a worker of a release that knew of one list alone has finished it.
    if size then
      records = records + tonumber(size)
      if since == '' then since = redis.call('ZSCORE', RAGAS, ids[i]) end
    end
  end
end
return { redis.call('ZCARD', PENDING), redis.call('HGET', STATE, 'records') or 0, oldest or '', records, since }
""",
    "pending_records": _COMMON
    + """
local total = tonumber(redis.call('HGET', STATE, 'records') or 0)
local before = redis.call('ZCOUNT', PENDING, '-inf', '(' .. ARGV[1])
if before == 0 then return total end
-- Add up the smaller side.
local after = redis.call('ZCARD', PENDING) - before
local first, last = 0, before - 1
if after < before then first, last = before, before + after - 1 end
local sum = 0
for start = first, last, 1000 do
  local ids = redis.call('ZRANGE', PENDING, start, math.min(start + 999, last))
  for _, records in ipairs(redis.call('HMGET', SIZES, unpack(ids))) do sum = sum + (tonumber(records) or 0) end
end
if after < before then return sum end
return total - sum
""",
}
