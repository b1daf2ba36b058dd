"""Delivers what is owed to sinks, on threads of its own: a sink that hangs holds up neither scoring nor another sink.

What is owed is in the store, put there by the transaction that stored the score, so that delivery may stop anywhere and
lose nothing. Any number of workers share it: each takes a batch in hand for the length of a lease that it renews while
it lives. A worker that dies between the sink's yes and the note of it has the batch delivered again: sinks make of that
what their ids allow (`docs/howto/sinks.md`).
"""

from __future__ import annotations

import dataclasses
import logging
import random
import re
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Literal

from assay.codec import decode_record
from assay.echoes import Texts
from assay.errors import AssayError, RecordError, SettingsError, SinkError, StoreError
from assay.records import now
from assay.redaction import Redactor
from assay.sinks import Annotation, Delivered, Rejected, Skipped, TryAgain
from assay.store import Settled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from assay.sinks import Delivery, Sink
    from assay.store import Claimed, OutcomeName, Store

_log = logging.getLogger(__name__)

#: What may be let out besides identity, value and verdict; `input` and `output` are texts of the interaction.
FIELDS = (
    "raw", "label", "explanation", "message", "judge_model", "defect", "injection", "calibration", "probability",
    "cohort", "session", "input", "output",
)  # fmt: skip

#: A longer text is cut: sinks bound what they take, and a trace store is no archive.
_MOST_TEXT = 20_000

#: Most that is in hand at once, whatever a sink would take.
_MOST_IN_HAND = 1_000

#: As long as a sink may ask us to wait.
_MOST_AFTER_SECONDS = 3600.0

_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}")

_Key = tuple[str, uuid.UUID]


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkPolicy:
    """Bounds of delivery; the settings of the same names say what each is for. Times in seconds."""

    lease_seconds: float = 60.0
    retry_base_seconds: float = 1.0
    retry_max_seconds: float = 300.0
    #: a sink that is away is tried again this often at least, so that its return is noticed
    away_max_seconds: float = 60.0
    deadline_seconds: float = 86_400.0
    missing_seconds: float = 3_600.0
    #: batches of one sink in delivery at once, in one process
    threads: int = 2
    #: after a ring, what else comes is waited for this long: fewer and larger batches
    linger_seconds: float = 0.2
    #: without any ring, so often a look is taken
    idle_seconds: float = 30.0

    def delay(self, attempts: int, asked: float | None = None) -> float:
        """Seconds until the next try, after `attempts` of them: half fixed, half random, or what the sink asked for."""
        ceiling = min(self.retry_max_seconds, self.retry_base_seconds * 2.0 ** min(attempts, 60))
        return max(min(asked or 0.0, _MOST_AFTER_SECONDS), ceiling * (0.5 + 0.5 * random.random()))  # noqa: S311


class Selection:
    """Makes of what is stored what leaves: only the fields that the settings let out, texts redacted. Thread-safe.

    Raises:
        SettingsError: a field that there is not, or a kind of redaction that there is not.
    """

    def __init__(self, store: Store, fields: Sequence[str], redact: Sequence[str]) -> None:
        if unknown := sorted(set(fields) - set(FIELDS)):
            raise SettingsError(f"ASSAY_SINK_FIELDS: {unknown[0]!r} is not one of {', '.join(FIELDS)}")
        self._store = store
        self._hidden = frozenset(FIELDS) - frozenset(fields)
        self._redactor = Redactor([kind for kind in redact if kind != "none"])  # type: ignore[misc]  # it checks them
        self._lock = threading.Lock()
        self._calibrations: Mapping[tuple[str, str], str] = {}
        self._read_at = -float("inf")

    def __call__(self, claimed: Sequence[Claimed]) -> list[Annotation]:
        """What leaves of these, in the same order.

        Raises:
            StoreError: the database is away.
        """
        states = {} if "calibration" in self._hidden else self._states()
        return [self._select(one, states) for one in claimed]

    def _select(self, claimed: Claimed, states: Mapping[tuple[str, str], str]) -> Annotation:
        whole = claimed.annotation
        text_in, text_out = self._texts(claimed.payload)
        state = states.get((whole.rubric_hash, whole.judge_fingerprint), "none")
        shown = dataclasses.replace(
            whole,
            trace_id=_id(whole.trace_id, _TRACE_ID),
            span_id=_id(whole.span_id, _SPAN_ID),
            explanation=self._text(whole.explanation) or "",
            message=self._text(whole.message),
            cohort={name: self._redactor.text(value) for name, value in whole.cohort.items()},
            calibration_state=state,
            input=self._text(text_in),
            output=self._text(text_out),
        )
        nothing = {_ATTRIBUTES.get(name, name): _NOTHING.get(name) for name in self._hidden}
        return dataclasses.replace(shown, **nothing)  # type: ignore[arg-type]  # names of its fields, by FIELDS

    def _text(self, text: str | None) -> str | None:
        if text is None:
            return None
        # In this order: half a secret would not be known as one.
        return self._redactor.text(text)[:_MOST_TEXT]

    def _texts(self, payload: str | None) -> tuple[str | None, str | None]:
        if payload is None or {"input", "output"} <= self._hidden:
            return None, None
        try:
            record = decode_record(payload, max_bytes=len(payload.encode()))
        except RecordError:
            return None, None  # of a version that this one does not read
        return record.input_text, record.output

    def _states(self) -> Mapping[tuple[str, str], str]:
        with self._lock:
            if time.monotonic() - self._read_at > 60:
                stored = self._store.calibrations(bodies=False)
                self._calibrations = {(one.rubric_hash, one.judge_fingerprint): one.state for one in stored}
                self._read_at = time.monotonic()
            return self._calibrations


#: Where a field of the settings has another name than that of `Annotation`.
_ATTRIBUTES = {"calibration": "calibration_state", "injection": "injection_signs", "session": "session_id"}
#: What stands for a hidden one where that is not None.
_NOTHING: dict[str, object] = {"explanation": "", "cohort": {}}


def _id(given: str | None, form: re.Pattern[str]) -> str | None:
    lower = (given or "").lower()
    return lower if form.fullmatch(lower) else None


class Outbox:
    """Delivers what is owed to these sinks, from `start` to `stop`. Thread-safe."""

    def __init__(
        self,
        store: Store,
        sinks: Sequence[Sink],
        *,
        select: Callable[[Sequence[Claimed]], Sequence[Annotation]],
        policy: SinkPolicy | None = None,
    ) -> None:
        self._policy = policy or SinkPolicy()
        self._stopping = threading.Event()
        self._stopped_at = 0.0
        self._lanes = [_Lane(store, sink, select, self._policy, self._stopping) for sink in sinks]
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads: some for each sink, and one that renews the leases of all."""
        for lane in self._lanes:
            for number in range(self._policy.threads):
                name = f"assay-sink-{lane.name}-{number}"
                self._threads.append(threading.Thread(target=lane.run, name=name, daemon=True))
        if self._lanes:
            self._threads.append(threading.Thread(target=self._keep, name="assay-sink-keeper", daemon=True))
        for thread in self._threads:
            thread.start()
        self.ring()

    def ring(self) -> None:
        """Say that something may be due. Returns at once."""
        for lane in self._lanes:
            lane.ring()

    def begin_stop(self) -> None:
        """Begin nothing more. Returns at once."""
        if not self._stopping.is_set():
            self._stopped_at = time.monotonic()
            self._stopping.set()
        for lane in self._lanes:
            lane.wake()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Begin nothing more, wait until `timeout_seconds` after that was first said, and close the sinks.

        What is not done by then goes on on its own threads, which do not keep the process alive; where it is not
        settled, its lease ends and another worker delivers it.
        """
        self.begin_stop()
        ends = self._stopped_at + timeout_seconds
        for thread in self._threads:
            thread.join(timeout=max(0.0, ends - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            for lane in self._lanes:
                lane.close()

    def _keep(self) -> None:
        while not self._stopping.wait(self._policy.lease_seconds / 3):
            for lane in self._lanes:
                lane.renew()


class _Lane:
    """One sink, with what is known of how it fares. Its threads have nothing to do with those of another sink."""

    def __init__(
        self,
        store: Store,
        sink: Sink,
        select: Callable[[Sequence[Claimed]], Sequence[Annotation]],
        policy: SinkPolicy,
        stopping: threading.Event,
    ) -> None:
        self._store, self._sink, self._select = store, sink, select
        self._policy, self._stopping = policy, stopping
        self.name = sink.name
        self._bell = threading.Condition()
        self._rung = 0
        self._lock = threading.Lock()
        self._held: dict[str, list[_Key]] = {}
        #: in a row, until something goes through
        self._failures = 0
        self._away_until = 0.0
        self._told_at = -float("inf")

    # -- threads

    def ring(self) -> None:
        """Wake one thread."""
        with self._bell:
            self._rung = min(self._rung + 1, self._policy.threads)
            self._bell.notify()

    def wake(self) -> None:
        """Wake all of them, to see that they are to stop."""
        with self._bell:
            self._bell.notify_all()

    def run(self) -> None:
        """Deliver until told to stop."""
        while not self._stopping.is_set():
            try:
                self._stopping.wait(max(0.0, self._away_until - time.monotonic()))
                if self._stopping.is_set() or self.step():
                    continue
                self._sleep()
            except AssayError as error:
                _log.warning("what is owed to a sink waits", extra={"sink": self.name, "error": str(error)})
                self._stopping.wait(5.0)
            except Exception:  # noqa: BLE001 - the thread must live on
                # A bug of ours: what is in hand goes back when its lease ends, and what comes later may go well.
                _log.exception("delivery failed", extra={"sink": self.name})
                self._stopping.wait(5.0)

    def _sleep(self) -> None:
        with self._bell:
            if not self._rung and not self._stopping.is_set():
                self._bell.wait(self._policy.idle_seconds)
            rung, self._rung = self._rung > 0, max(0, self._rung - 1)
        if rung:
            self._stopping.wait(self._policy.linger_seconds)

    def renew(self) -> None:
        """Put off the ends of the leases of what is in hand."""
        until = now() + timedelta(seconds=self._policy.lease_seconds)
        with self._lock:
            held = list(self._held.items())
        try:
            for claim, keys in held:
                self._store.renew_outbox(self.name, claim, keys, until)
        except AssayError as error:
            _log.warning("a lease was not renewed", extra={"sink": self.name, "error": str(error)})

    def close(self) -> None:
        """Close the sink."""
        try:
            self._sink.close()
        except Exception:  # noqa: BLE001 - a sink of anybody's: the others are closed too
            _log.exception("a sink did not close", extra={"sink": self.name})

    # -- one batch

    def step(self) -> bool:
        """Take a batch in hand and deliver it; False when nothing is due."""
        claim = uuid.uuid4().hex
        limit = max(1, min(self._sink.max_batch, _MOST_IN_HAND))
        until = now() + timedelta(seconds=self._policy.lease_seconds)
        claimed = self._store.claim_outbox(self.name, claim, limit=limit, until=until)
        if not claimed:
            return False
        if len(claimed) == limit:
            self.ring()  # there is more: another thread may begin
        keys = [_key(one) for one in claimed]
        with self._lock:
            self._held[claim] = keys
        try:
            results = self._deliver(self._select(claimed))
            settled = {key: self._settled(one, result) for key, one, result in zip(keys, claimed, results, strict=True)}
            self._settle(claim, settled)
        finally:
            with self._lock:
                del self._held[claim]
        return True

    def _deliver(self, annotations: Sequence[Annotation]) -> list[Delivery]:
        """What became of each. Where one may be what the sink stumbles over, it is found by halving."""
        results: list[Delivery | None] = [None] * len(annotations)
        parts = [range(len(annotations))]
        through, fell_alone = False, 0
        while parts:
            part = parts.pop()
            try:
                done = self._call([annotations[index] for index in part])
            except SinkError as error:
                if error.suspect and len(part) > 1 and not self._stopping.is_set():
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                    continue
                fell_alone += error.suspect
                again = TryAgain(str(error), error.after_seconds)
                for index in part:
                    results[index] = again
                # It does not lie in one of them when two fall alone and nothing goes through.
                if not error.suspect or (fell_alone > 1 and not through) or self._stopping.is_set():
                    self._fell(error)
                    return [again if result is None else result for result in results]
                continue
            for index, result in zip(part, done, strict=True):
                results[index] = result
            through = through or any(not isinstance(result, TryAgain) for result in done)
        if through:
            self._went_through()
        elif fell_alone:
            self._fell(SinkError(next(r.reason for r in results if isinstance(r, TryAgain))))
        return [result for result in results if result is not None]

    def _call(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """What became of each; no reason quotes the texts, for reasons are logged, and stored in plain."""
        hidden = cache(Texts(_texts(annotations)).hidden)
        try:
            results = self._hand_over(annotations)
        except SinkError as error:
            error.args = (hidden(str(error)),)
            raise
        return [r if isinstance(r, Delivered) else dataclasses.replace(r, reason=hidden(r.reason)) for r in results]

    def _hand_over(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        try:
            results = self._sink.deliver(annotations)
            if len(results) != len(annotations):
                raise ValueError(f"{len(results)} results of {len(annotations)}")
        except SinkError:
            raise
        except Exception as error:
            # A bug of the sink, over one of these: the others must get out, and that one is for a person to see.
            message = f"{type(error).__name__}: {error}"
            if len(annotations) > 1:
                raise SinkError(message, suspect=True) from error
            _log.exception("a sink failed", extra={"sink": self.name})
            return [Rejected(message)]
        return results

    def _fell(self, error: SinkError) -> None:
        with self._lock:
            self._failures += 1
            ceiling = min(self._policy.away_max_seconds, self._policy.delay(self._failures))
            asked = min(error.after_seconds or 0.0, _MOST_AFTER_SECONDS)
            self._away_until = time.monotonic() + max(ceiling, asked)
            tell = time.monotonic() - self._told_at >= 60
            self._told_at = time.monotonic() if tell else self._told_at
        if tell:
            _log.warning("a sink does not take what it is owed", extra={"sink": self.name, "error": str(error)})

    def _went_through(self) -> None:
        with self._lock:
            if self._failures:
                _log.info("a sink takes what it is owed again", extra={"sink": self.name})
            self._failures, self._away_until, self._told_at = 0, 0.0, -float("inf")

    def _settled(self, claimed: Claimed, result: Delivery) -> Settled:
        if isinstance(result, Delivered):
            return Settled(outcome="delivered")
        if isinstance(result, Skipped):
            return Settled(outcome="skipped", reason=result.reason)
        if isinstance(result, Rejected):
            return Settled(outcome="rejected", reason=result.reason)
        limit = self._policy.missing_seconds if result.missing else self._policy.deadline_seconds
        if (now() - claimed.created_at).total_seconds() >= limit:
            return Settled(outcome="expired", reason=f"{gave_up(limit)}{result.reason}")
        # While the sink is away its return is waited for, by all alike; else by how often this one was tried.
        away = self._away_until - time.monotonic()
        delay = away if away > 0 else self._policy.delay(claimed.attempts, result.after_seconds)
        return Settled(outcome="retried", reason=result.reason, due_at=now() + timedelta(seconds=delay))

    def _settle(self, claim: str, settled: Mapping[_Key, Settled]) -> None:
        """Note it, again and again while the database is away: the sink has it, and need not be told twice."""
        for _ in self._while_running():
            try:
                self._store.settle_outbox(self.name, claim, settled)
            except StoreError as error:
                _log.warning("what a sink took is not noted yet", extra={"sink": self.name, "error": str(error)})
            else:
                return

    def _while_running(self) -> Iterator[None]:
        """At least once, then until told to stop, with some time between."""
        yield
        pause = 0.2
        while not self._stopping.wait(pause):
            yield
            pause = min(5.0, pause * 2)


def gave_up(seconds: float) -> str:
    """What a reason begins with when a deadline of that many seconds is over."""
    return f"given up after {seconds / 3600:g} h: "


def owed_outcomes(sink: Sink, wanted: Sequence[str]) -> frozenset[OutcomeName]:
    """Which outcomes are owed to a sink, of those that the settings want to go out."""
    names: tuple[Literal["scored", "failed", "not_applicable"], ...] = ("scored", "failed", "not_applicable")
    return frozenset(name for name in names if name in wanted and (name == "scored" or sink.takes_failures))


def _texts(annotations: Sequence[Annotation]) -> Iterator[str | None]:
    for one in annotations:
        yield from (one.explanation, one.message, one.input, one.output)


def _key(claimed: Claimed) -> _Key:
    return claimed.annotation.record_id, claimed.annotation.evaluation_id
