"""The client's bounded buffer, the daemon thread that empties it, and the counts of both.

    app's threads     sample, append                                 about 10 microseconds
    sender's thread   build, redact, encode, push batches            with a back-off while the queue is away

While the queue is away the oldest records wait, and new ones are dropped once the buffer is full. Every record is
counted: taken = sent + dropped, by reason, + buffered. Standard library only at import; the sender's thread imports
redis.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import logging
import math
import os
import queue
import sys
import threading
import time
import uuid
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from assay.errors import RecordError
from assay.interactions import as_record, copy_and_size, trace_id_text
from assay.queue import MAX_BATCH_BYTES, Queue, Report, encode_batch
from assay.records import Record
from assay.redaction import hash_user_id
from assay.sampling import share_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from assay.sampling import Sampler

#: buffer_full: Redis is away or slower than the app. queue_full: the workers are behind. too_large: over
#: `max_record_bytes`. invalid: not a record. redaction_error: the redact hook failed, so nothing was sent.
#: transport_error: not sent before the client closed. closed: recorded after that. internal_error: a bug of ours.
DropReason = Literal[
    "buffer_full",
    "queue_full",
    "too_large",
    "invalid",
    "redaction_error",
    "transport_error",
    "closed",
    "internal_error",
]

_LOG = logging.getLogger("assay.client")
#: First and longest pause between two tries to push a batch.
_BACKOFF_SECONDS: Final = (0.1, 5.0)
#: Counters travel with the batches; when none goes out, they are sent this often.
_REPORT_SECONDS: Final = 10.0
#: One warning of a kind in this time.
_WARN_SECONDS: Final = 60.0
#: The thread is woken for so many full batches: each wake-up costs the app's thread more than the rest of `take`.
_WAKE_BATCHES: Final = 8
#: Pause after so many records, so that the app's threads get the interpreter soon and not when Python next switches
#: threads, which takes 5 ms. Not after each: every switch may fall into a call of `record`. Left out when the buffer
#: fills, when somebody waits for it, and at the end.
_YIELD_RECORDS: Final = 5
_YIELD_SECONDS: Final = 0.0002
#: Room in a batch for its own fields.
_BATCH_HEAD_BYTES: Final = 1_000


class Transport(Protocol):
    """Where a client sends its batches; `assay.queue.Queue` is one. A method raises to be called again later.

    It may have an attribute `fill`: how full it was at its latest reply, 0 to 1. Near 1 the client takes fewer records.
    """

    def push(
        self, payload: bytes, *, batch_id: str, records: int, enqueued_at: float, report: Report | None = None
    ) -> bool:
        """Store a batch; False when there is no room for it. The same batch may come twice."""
        ...

    def add_counters(self, report: Report) -> None:
        """Count a report that has no batch to travel with. The same report may come twice."""
        ...


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of the interactions so far, in this process: taken = sent + dropped + buffered.

    `taken` are those that sampling let in. `thinned` were left out beyond that, because the queue was nearly full. A
    batch whose reply was lost when the client closed counts as dropped
    (`transport_error`), though the queue may have stored it. `rule_errors` is how often the
    function of a sampling rule raised. `buffered_bytes` is about how many bytes the buffered take.
    """

    taken: int
    sampled_out: int
    sent: int
    dropped: dict[DropReason, int]
    buffered: int
    rule_errors: int
    thinned: int = 0
    buffered_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of a buffer, see `Client`."""

    buffer_records: int
    buffer_bytes: int
    batch_records: int
    flush_seconds: float
    max_record_bytes: int
    close_seconds: float
    thin_above: float = 0.8


class Buffer:
    """The records of one client on their way out. It outlives the client until it has sent what it can.

    One lock guards records and counts; it is held for about a microsecond. It is re-entrant, so that recording from a
    signal handler or a finalizer that interrupts `take` does not deadlock.
    """

    def __init__(
        self,
        app: str,
        *,
        limits: Limits,
        sampler: Sampler,
        redact: Callable[[Record], Record] | None,
        salt: str | bytes | None,
        cohort: Mapping[str, str],
        connect: Callable[[], AbstractContextManager[Transport]],
    ) -> None:
        self._app = app
        self._limits = limits
        self._sampler = sampler
        self._redact = redact
        self._salt = salt
        self._cohort = dict(cohort)
        self._connect = connect
        self._wake_records = min(limits.batch_records * _WAKE_BATCHES, limits.buffer_records)
        self._closed = False
        self.restart()
        _buffers.add(self)

    def restart(self) -> None:
        """Start from nothing: when new, and in a forked child, whose parent keeps what was buffered and counted."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._wake = _Signal()  # there is something to send
        self._hurry = _Signal()  # do not wait out a back-off
        self._flushing = False
        self._flushers = 0  # threads that wait in `flush`
        self._running = False
        self._thread: threading.Thread | None = None
        self._deadline = math.inf
        self._abandoned = False
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque()
        self._bytes = 0
        self._sending = 0  # bytes of those that the sender's thread has taken out and not resolved
        self._appended = 0  # records that ever entered the buffer
        self._resolved = 0  # those of them that were sent or dropped: first in, first out
        self._id_prefix = os.urandom(10).hex()
        self._ids = itertools.count()
        self._taken = 0
        self._sampled_out = 0
        self._thinned = 0
        self._share = 1.0  # of what sampling takes; less while the queue is nearly full
        self._sent = 0
        self._dropped: dict[DropReason, int] = {}
        self._warned: dict[str, float] = {}
        # From here on, the sender's thread alone.
        self._transport: Transport | None = None
        self._opened = contextlib.ExitStack()
        self._carried: tuple[str, int] | None = None  # a record that did not fit its batch, and its bytes
        self._failing = False
        self._built = 0
        self._reports = _Reports(self._app)

    # The app's threads.

    def take(self, interaction: dict[str, Any]) -> str | None:
        """Sample an interaction and append it; its record id, or None when it is not taken. Never raises."""
        try:
            given = interaction.get("record_id")
            # Unique without a system call: random for the process, then counted.
            record_id = f"{self._id_prefix}{next(self._ids):012x}" if given is None else str(given)
            key = record_id
            if (trace_id := interaction.get("trace_id")) is not None:
                interaction["trace_id"] = trace_id = trace_id_text(trace_id)
                key = trace_id or record_id
            if self._cohort:
                interaction["cohort"] = {**self._cohort, **(interaction.get("cohort") or {})}
            sampling = self._sampler.decide(key, interaction)
            if sampling is None:
                with self._lock:
                    self._sampled_out += 1
                return None
            if self._share < 1.0 and (sampling := self._sampler.thin(key, sampling, self._share)) is None:
                with self._lock:
                    self._thinned += 1
                return None
            interaction["record_id"] = record_id
            interaction["sampling"] = sampling
            if interaction.get("timestamp") is None:
                interaction["timestamp"] = time.time()
            size = copy_and_size(interaction)
        except Exception as error:  # noqa: BLE001 - nothing may reach the app
            self.warn("take", "an interaction was dropped: %s", type(error).__name__)
            self.refuse("internal_error")
            return None
        return record_id if self._append(size, interaction) else None

    def refuse(self, reason: DropReason) -> None:
        """Count an interaction that is dropped before it enters the buffer."""
        with self._lock:
            self._taken += 1
            self._dropped[reason] = self._dropped.get(reason, 0) + 1

    def stats(self) -> Stats:
        """The counts, all of one moment."""
        with self._lock:
            dropped = dict(self._dropped)
            buffered = self._taken - self._sent - sum(dropped.values())
            errors = self._sampler.errors
            size = self._bytes + self._sending
            return Stats(self._taken, self._sampled_out, self._sent, dropped, buffered, errors, self._thinned, size)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until what is buffered now is sent or dropped; False when time runs out first."""
        with self._changed:
            target = self._appended
            self._flushing = True
            if self._waiting and not self._running and not self._closed:
                self._start()
            self._wake.set()
            self._hurry.set()
            self._flushers += 1
            try:
                return self._changed.wait_for(lambda: self._resolved >= target, timeout_seconds)
            finally:
                self._flushers -= 1

    def begin_close(self, timeout_seconds: float | None = None) -> None:
        """Take no more; the thread has so long (`close_seconds` by default) to send what there is. Does not wait."""
        with self._lock:
            if not self._closed:
                self._closed = True
                seconds = self._limits.close_seconds if timeout_seconds is None else timeout_seconds
                self._deadline = time.monotonic() + seconds
            self._wake.set()
            self._hurry.set()

    def close(self, timeout_seconds: float | None = None) -> None:
        """As `begin_close`, and wait for it; what is left then, or was stored without a reply, counts as dropped."""
        self.begin_close(timeout_seconds)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, self._deadline - time.monotonic()))
        self._abandon()

    def warn(self, kind: str, message: str, *args: object) -> None:
        """Log a warning, one of a kind in a minute."""
        now = time.monotonic()
        if now - self._warned.get(kind, -math.inf) >= _WARN_SECONDS:
            self._warned[kind] = now
            _LOG.warning(message, *args)

    def _append(self, size: int, interaction: dict[str, Any]) -> bool:
        limits = self._limits
        with self._lock:
            waiting = len(self._waiting)
            reason: DropReason | None = None
            if self._closed:
                reason = "closed"
            elif size > 2 * limits.max_record_bytes:  # beyond doubt; the JSON's bytes are counted later
                reason = "too_large"
            elif waiting >= limits.buffer_records or self._bytes + size > limits.buffer_bytes:
                reason = "buffer_full"
            if reason is not None:
                self.refuse(reason)
                return False
            self._taken += 1
            self._appended += 1
            self._bytes += size
            self._waiting.append((size, interaction))
            if not self._running:
                self._start()
        if waiting + 1 == self._wake_records or self._bytes > limits.buffer_bytes // 4:
            self._wake.set()
        return True

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="assay-client", daemon=True)
        self._running = True
        try:
            self._thread.start()
        except RuntimeError:  # no thread to be had just now, or the interpreter is going down
            self._running = False
            self._thread = None
            return
        _close_with_multiprocessing()

    def _abandon(self) -> None:
        """Count what was not sent in time, and let the thread's later news of it count no more."""
        with self._changed:
            left = self._appended - self._resolved
            self._abandoned = True
            self._waiting.clear()
            self._bytes = self._sending = 0
            self._resolved = self._appended
            if left:
                self._dropped["transport_error"] = self._dropped.get("transport_error", 0) + left
            self._changed.notify_all()
        if left:
            self.warn("close", "%d records were not sent before the client closed", left)

    # The sender's thread.

    def _run(self) -> None:
        try:
            last = time.monotonic()
            while not self._closed:
                self._wake.wait(last + self._limits.flush_seconds - time.monotonic())
                with self._lock:
                    due, self._flushing = self._flushing, False
                now = time.monotonic()
                if due or now >= last + self._limits.flush_seconds:
                    due, last = True, now
                self._send(partial=due)
                if now - self._reports.sent_at >= _REPORT_SECONDS:
                    self._report()
            self._send(partial=True)
            self._report()
        except Exception as error:  # noqa: BLE001 - the next record starts a new thread
            self.warn("run", "the sender's thread ended: %s", type(error).__name__)
        finally:
            self._disconnect()
            self._running = False
            if self._closed:
                self._abandon()

    def _disconnect(self) -> None:
        self._transport = None
        try:
            self._opened.close()
        except Exception as error:  # noqa: BLE001 - what was to be sent was sent, or counted as dropped
            _LOG.debug("closing the connection failed: %s", type(error).__name__)

    def _send(self, *, partial: bool) -> None:
        """Send all that is buffered in full batches, and with `partial` the rest too."""
        while (waiting := len(self._waiting)) or self._carried:
            if not partial and waiting < self._limits.batch_records:
                return
            texts = self._next_texts()
            try:
                if texts:
                    self._deliver(texts)
            except Exception as error:  # noqa: BLE001 - a bug must not lose count of the batch
                self.warn("deliver", "%d records were dropped: %s", len(texts), type(error).__name__)
                self._resolve(len(texts), "internal_error")
            with self._lock:
                self._sending = self._carried[1] if self._carried else 0

    def _next_texts(self) -> list[str]:
        """The JSON of the records of the next batch: as many as it may hold, in number and bytes."""
        texts: list[str] = []
        size = _BATCH_HEAD_BYTES
        while len(texts) < self._limits.batch_records:
            encoded, self._carried = self._carried or self._next_text(), None
            if encoded is None:
                break
            text, length = encoded
            if texts and size + length > MAX_BATCH_BYTES:
                self._carried = encoded
                break
            texts.append(text)
            size += length + 1
        return texts

    def _next_text(self) -> tuple[str, int] | None:
        """JSON and bytes of the next buffered record that can be sent, or None when there is none."""
        limits = self._limits
        while True:
            with self._lock:
                if not self._waiting:
                    self._bytes = 0
                    return None
                size, interaction = self._waiting.popleft()
                self._bytes -= size
                self._sending += size
            reason: DropReason = "invalid"
            try:
                record = as_record(self._app, interaction, self._hashed(interaction.get("user_id")))
                if self._redact is not None:
                    reason = "redaction_error"
                    record = _redacted(record, self._redact)
                    reason = "invalid"
                text = record.to_json()
            except Exception as error:  # noqa: BLE001 - a hook, or values that are not what they should be
                # Of another error only the name: its message may quote the record.
                what = str(error) if isinstance(error, RecordError) else type(error).__name__
                self.warn(reason, "a record was dropped (%s): %s", reason, what)
                self._resolve(1, reason)
                continue
            length = len(text.encode(errors="replace"))
            self._built += 1
            calm = len(self._waiting) < limits.buffer_records // 4 and not self._closed and not self._flushers
            if calm and self._built % _YIELD_RECORDS == 0:
                time.sleep(_YIELD_SECONDS)
            if length <= limits.max_record_bytes:
                return text, length
            self._resolve(1, "too_large")

    def _hashed(self, user_id: object) -> str | None:
        if user_id is None:
            return None
        if self._salt is None:
            self.warn("user_id", "user ids are not sent: set user_id_salt (ASSAY_USER_ID_SALT)")
            return None
        return hash_user_id(str(user_id), self._salt)

    def _deliver(self, texts: list[str]) -> None:
        """Push one batch, again and again until it is stored, refused, or the client has closed."""
        batch_id, enqueued_at, records = uuid.uuid4().hex, time.time(), len(texts)
        payload = encode_batch(texts, batch_id=batch_id, enqueued_at=enqueued_at)
        delay, longest = _BACKOFF_SECONDS
        while not self._abandoned:
            report = self._reports.next(self.stats())
            try:
                stored = self._connected().push(
                    payload, batch_id=batch_id, records=records, enqueued_at=enqueued_at, report=report
                )
            except Exception as error:  # noqa: BLE001 - Redis is away, or a transport of the app's own failed
                self._failing = True
                self.warn("push", "records wait, the queue cannot be reached: %s", error)
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self._abandon()
                    return
                # Apart from each other, so that many processes do not come back all at once.
                self._hurry.wait(min(left, delay * (0.5 + os.urandom(1)[0] / 256)))
                delay = min(delay * 2, longest)
                continue
            self._reports.done()
            self._heed_fill()
            if self._failing:
                self._failing = False
                self._warned.pop("push", None)
                _LOG.info("the queue is reached again")
            if not stored:
                self.warn("queue_full", "the queue is full, records are dropped: are the workers running?")
            self._resolve(records, None if stored else "queue_full")
            return

    def _report(self) -> None:
        """Send counts that no batch will carry: now and then, and before the end."""
        report = self._reports.next(self.stats())
        if report.counters:
            try:
                self._connected().add_counters(report)
            except Exception as error:  # noqa: BLE001 - as in _deliver
                self.warn("push", "counts wait, the queue cannot be reached: %s", error)
                self._reports.sent_at = time.monotonic()
                return
            self._heed_fill()
        self._reports.done()

    def _heed_fill(self) -> None:
        """Take fewer records while the queue is nearly full, and all of them again as it empties."""
        share = share_at(float(getattr(self._transport, "fill", 0.0)), self._limits.thin_above)
        if share < 1.0:
            self.warn(
                "thinned", "the queue is nearly full, %.3g of the records are taken: are the workers running?", share
            )
        self._share = share

    def _connected(self) -> Transport:
        if self._transport is None:
            self._transport = self._opened.enter_context(self._connect())
        return self._transport

    def _resolve(self, records: int, reason: DropReason | None) -> None:
        """Count buffered records as sent, or as dropped for a reason."""
        with self._changed:
            if self._abandoned:
                return
            if reason is None:
                self._sent += records
            else:
                self._dropped[reason] = self._dropped.get(reason, 0) + records
            self._resolved += records
            self._changed.notify_all()


class _Signal:
    """Like threading.Event, but may be set from a signal handler or finalizer that interrupts `set` or `wait` itself.

    An Event would deadlock then; putting into a SimpleQueue is re-entrant.
    """

    def __init__(self) -> None:
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        self._tokens.put(None)

    def wait(self, timeout_seconds: float) -> None:
        """Until it is set, or was since the last wait."""
        with contextlib.suppress(queue.Empty):
            self._tokens.get(timeout=max(0.0, timeout_seconds))
            while True:
                self._tokens.get_nowait()


class _Reports:
    """What the workers are told of a buffer's counts: how much they grew since the report before."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._reporter = uuid.uuid4().hex
        self._number = 0
        self._under_way: Report | None = None
        self._totals: dict[str, int] = {}
        self._reported: dict[str, int] = {}
        #: when a report was last acknowledged or given up for a while (monotonic)
        self.sent_at = time.monotonic()

    def next(self, stats: Stats) -> Report:
        """The report that is under way, unchanged until it is done, else a new one."""
        if self._under_way is None:
            totals = {"taken": stats.taken, "sampled_out": stats.sampled_out, "sent": stats.sent}
            totals |= {"thinned": stats.thinned}
            totals |= {f"dropped:{reason}": count for reason, count in stats.dropped.items()}
            growth = {
                json.dumps([self._app, name]): total - self._reported.get(name, 0)
                for name, total in totals.items()
                if total > self._reported.get(name, 0)
            }
            self._number += 1
            self._under_way, self._totals = Report(self._reporter, self._number, growth), totals
        return self._under_way

    def done(self) -> None:
        """The report was acknowledged."""
        self._reported, self._under_way, self.sent_at = self._totals, None, time.monotonic()


def open_queue(url: str, name: str, *, max_batches: int) -> Queue:
    """The client's transport. Imports redis, and keeps forks waiting meanwhile."""
    # Forked in the middle of an import, a child would keep a lock that no thread of its own releases.
    with _importing:
        # One try at a time: the sender has a back-off of its own.
        return Queue.from_url(url, name, max_batches=max_batches, timeout_seconds=3.0, retries=0)


def _redacted(record: Record, redact: Callable[[Record], Record]) -> Record:
    redacted: object = redact(record)
    if not isinstance(redacted, Record):
        raise TypeError("the redact hook gave back something other than a record")
    return redacted


_buffers: weakref.WeakSet[Buffer] = weakref.WeakSet()
_importing = threading.RLock()
_closes_with_multiprocessing: set[int] = set()


def _close_all() -> None:
    """At exit: all at once, so that it takes as long as the slowest."""
    buffers = list(_buffers)
    for buffer in buffers:
        buffer.begin_close()
    for buffer in buffers:
        buffer.close()


def _close_with_multiprocessing() -> None:
    """A multiprocessing child ends without the exit handlers, but runs multiprocessing's own."""
    process, util = sys.modules.get("multiprocessing.process"), sys.modules.get("multiprocessing.util")
    if process is None or util is None or process.parent_process() is None:
        return
    if os.getpid() not in _closes_with_multiprocessing:
        _closes_with_multiprocessing.add(os.getpid())
        util.Finalize(None, _close_all, exitpriority=0)


def _before_fork() -> None:
    _importing.acquire()


def _after_fork_in_parent() -> None:
    _importing.release()


def _after_fork_in_child() -> None:
    global _importing  # noqa: PLW0603 - a lock is the process's own
    _importing = threading.RLock()
    for buffer in list(_buffers):
        buffer.restart()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_close_all)
