"""What a worker does with a batch: claim, decode, judge, commit, finish. It knows no Celery.

The batch stays in Redis until its scores are committed, so a worker may die anywhere and lose nothing; every step may
be repeated, because evaluations have deterministic ids and the store takes each once. Judge calls run on one event
loop per process; each batch occupies one thread, which waits for the calls, but not long for the last of them: those
that hang go on as batches of their own, without a thread (docs/decisions/0012-limits.md).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading
import time
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from anyio.from_thread import start_blocking_portal
from tenacity import AttemptManager, Retrying, retry_if_exception_type, wait_exponential

from assay.deliveries import DeliveryPolicy, single
from assay.errors import AssayError, ProcessError, QueueError, RecordError, StoreDataError, StoreError
from assay.gate import Roster
from assay.isolation import Isolation
from assay.late_calls import LateCall, LateCalls, most_ended
from assay.limits import Turn
from assay.pipeline import evaluate
from assay.plans import NEWER_PAUSE_SECONDS, Plan, Planner, dead_letter
from assay.queue import Batch, Claim, Suspect, decode_batch
from assay.records import Evaluation, Failure, Record, now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anyio.from_thread import BlockingPortal

    from assay.budgets import Ledger
    from assay.gate import Gate
    from assay.metrics import WorkerMetrics
    from assay.outbox import Outbox
    from assay.pipeline import Judges
    from assay.plans import Task
    from assay.queue import Queue, Retry
    from assay.rubrics import Rubric
    from assay.store import Store

    #: judging one record
    _Call = asyncio.Task[list[Evaluation]]

_log = logging.getLogger(__name__)

#: No thread waits for batches of so few records: what is tried again would leave the others too few.
_FEW = 8


class Worker:
    """Works on batches of one queue until it is stopped. Thread-safe: `work` runs on as many threads as one likes.

    `judges` is called once, on the worker's event loop, because the connections of a judge belong to a loop. The worker
    starts and stops `outbox`, and rings it when it has stored something. With a `gate`, which the worker starts,
    `rubrics` are those of the gate and are not looked at here. With `budgets` it judges fewer records near a cap; the
    cap itself is kept by the judges.
    """

    def __init__(
        self,
        *,
        queue: Queue,
        store: Store,
        rubrics: Sequence[Rubric],
        judges: Callable[[], Judges],
        gate: Gate | None = None,
        metrics: WorkerMetrics | None = None,
        outbox: Outbox | None = None,
        budgets: Ledger | None = None,
        policy: DeliveryPolicy | None = None,
    ) -> None:
        self._queue = queue
        self._store = store
        self._fixed = Roster.of(rubrics)
        self._gate = gate
        self._build_judges = judges
        self._metrics = metrics
        self._outbox = outbox
        self._budgets = budgets
        self._policy = policy or DeliveryPolicy()
        self._leases: set[str] = set()
        self._judging: set[_Call] = set()
        self._lock = threading.Lock()
        self._isolation = Isolation()
        self._stops_at = 0.0
        self._told: dict[tuple[str, str], float] = {}
        self._stopping = threading.Event()
        self._handing_back = threading.Event()
        #: errors of the sides that were away while this worker handed back: they are not asked again
        self._away: set[type[Exception]] = set()

    # -- life

    def start(self) -> None:
        """Start the gate, the event loop, the judges, and the thread that renews leases and rings what is due.

        Raises:
            StoreError: the gate cannot decide, because the store is away.
        """
        if self._gate is not None:
            self._gate.start()
        options = {"use_uvloop": find_spec("uvloop") is not None}
        self._portal_context = start_blocking_portal(backend_options=options)
        self._portal: BlockingPortal = self._portal_context.__enter__()
        self._judges = self._portal.call(self._make_judges)
        self._planner = Planner(
            judges=self._judges, existing=self._store.existing, policy=self._policy, budgets=self._budgets
        )
        self._late = LateCalls()
        if self._metrics is not None:
            for judge in self._judges:
                self._metrics.judge(judge.name, judge.fingerprint)
        self._threads = [
            threading.Thread(target=self._keep, name="assay-keeper", daemon=True),
            threading.Thread(target=self._clear, name="assay-clearing", daemon=True),
        ]
        if self._gate is not None:
            # On a thread of its own: a database that hangs must not cost the leases of what is in hand.
            watch = partial(self._watch, self._gate)
            self._threads.append(threading.Thread(target=watch, name="assay-gate", daemon=True))
        for thread in self._threads:
            thread.start()
        if self._outbox is not None:
            self._outbox.start()

    def begin_stop(self) -> None:
        """Call at SIGTERM: what is in flight may finish for `shutdown_seconds`, then it is handed back."""
        if self._outbox is not None:
            self._outbox.begin_stop()
        self._stops_at = time.monotonic() + self._policy.shutdown_seconds
        timer = threading.Timer(self._policy.shutdown_seconds, self.hand_back)
        timer.daemon = True
        timer.start()

    def hand_back(self) -> None:
        """Cancel the judge calls in flight; the records that have no verdict yet go back to the queue, uncounted."""
        self._handing_back.set()
        with self._lock:
            tasks = list(self._judging)
        if tasks:
            _log.info("handing back what is in flight", extra={"records": len(tasks)})
        for task in tasks:
            task.get_loop().call_soon_threadsafe(task.cancel)

    def stop(self) -> None:
        """Hand back what is left and end the threads. The store and the queue stay open: they are the caller's.

        After `begin_stop`, calls that go on without a thread have what is left of `shutdown_seconds`.
        """
        self._late.wait(self._stops_at - time.monotonic())
        self.hand_back()
        self._late.wait(10.0)
        self._late.close()
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=10)
        if self._outbox is not None:
            self._outbox.stop()
        self._portal.call(self._judges.aclose)
        self._portal_context.__exit__(None, None, None)

    async def _make_judges(self) -> Judges:
        return self._build_judges()

    # -- one batch

    def work(self, batch_id: str) -> None:
        """Take one batch through to its end. Returns at once when it is done already or in other hands.

        Raises:
            QueueError: Redis is away before anything was done; the sweep rings again.
        """
        try:
            with self._isolation.beside_others():
                self._take(batch_id, self._policy.alone_from)
        except Suspect:
            # A process has many batches in hand, and when a record kills it all of them were delivered once more. This
            # one would be set aside after the next death, so it must not be its neighbour's.
            with self._isolation.alone():
                self._take(batch_id, 0)

    def _take(self, batch_id: str, alone_from: int) -> None:
        if self._handing_back.is_set():
            return  # not claimed: the sweep of another worker rings for it again
        claim = self._queue.claim(batch_id, lease_seconds=self._policy.lease_seconds, alone_from=alone_from)
        if claim is None:
            self._count("skipped")
            return
        with self._leased(batch_id):
            came_to = self._hold(batch_id, partial(self._work, batch_id, claim))
        if came_to == "limited":
            # The next would not be asked either.
            self._pause(min(1.0, self._policy.sweep_seconds))

    def _hold(self, batch_id: str, work: Callable[[], str]) -> str:
        """Do this with a batch that is ours, or give it back; what it came to."""
        try:
            came_to = work()
        except (StoreError, QueueError, ProcessError) as error:
            # Nothing is lost: the batch is still in Redis. Come back when the other side may be up again.
            _log.warning("batch waits", extra={"batch_id": batch_id, "error": str(error)})
            if QueueError not in self._away:
                self._queue.release(batch_id, due_at=time.time() + self._policy.sweep_seconds * 5)
            came_to = "released"
            if isinstance(error, ProcessError):
                # This process can judge no more; whoever runs it starts another.
                os.kill(os.getpid(), signal.SIGTERM)
        self._count(came_to)
        return came_to

    def _work(self, batch_id: str, claim: Claim) -> str:
        if claim.deliveries > self._policy.max_deliveries + 2:
            # Even reading it ends workers: keep the bytes without looking at them.
            message = f"the worker died {claim.deliveries - 1} times while it had this batch in hand"
            return self._keep_whole(claim, "crashed", message)
        try:
            # A producer may have written another id than the one that it is stored under, which is the one that counts.
            batch = replace(decode_batch(claim.payload), batch_id=batch_id)
        except RecordError as error:
            if error.reason == "unknown_version" and claim.waited_seconds < self._policy.newer_seconds:
                # Not counted as a delivery: another worker, that is newer, may be there already.
                self._queue.release(claim.batch_id, due_at=time.time() + NEWER_PAUSE_SECONDS)
                return "released"
            return self._keep_whole(claim, error.reason, str(error))
        if len(batch.records) == 1 and claim.deliveries > self._policy.max_deliveries:
            message = f"the worker died {claim.deliveries - 1} times while it had this record in hand"
            return self._set_aside(batch, claim, "crashed", message)
        if len(batch.records) > 1 and claim.deliveries > 2:
            # More than one worker died with it: find the record that kills, spare its mates.
            return self._split(batch)
        return self._contain(batch, claim, partial(self._evaluate_batch, batch, claim))

    def _contain(self, batch: Batch, claim: Claim, work: Callable[[], str]) -> str:
        """Do this with a batch; what can never succeed ends here."""
        try:
            return work()
        except AssayError as error:
            if not isinstance(error, StoreDataError):
                raise
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - see below
            # A bug, here or in a library, over this very batch: it must neither be lost nor tried for ever.
            _log.exception("batch failed", extra={"batch_id": batch.batch_id})
            problem = f"{type(error).__name__}: {error}"
        return self._split(batch) if len(batch.records) > 1 else self._set_aside(batch, claim, "internal", problem)

    def _split(self, batch: Batch) -> str:
        # By its place, since the same bytes may be in it twice: each is counted.
        parts = [single(batch, raw, f"split {index}") for index, raw in enumerate(batch.records)]
        self._queue.split(batch.batch_id, parts)
        return "split"

    def _keep_whole(self, claim: Claim, reason: str, message: str) -> str:
        letter = dead_letter(claim.payload, reason=reason, message=message, attempts=claim.deliveries)
        self._commit(Plan(dead_letters=[letter]), replay=False)
        self._finish(claim.batch_id, ())
        _log.error("batch set aside", extra={"batch_id": claim.batch_id, "reason": reason, "error": message})
        return "undecodable"

    def _evaluate_batch(self, batch: Batch, claim: Claim) -> str:
        # Once for the whole batch: a switch in its midst does not split it.
        plan, tasks = self._planner.plan(batch, self._roster, claim.waited_seconds)
        # A record that is judged alone is judged to the end.
        goes_on = len(batch.records) > 1 or claim.deliveries < self._policy.alone_from
        if not tasks:
            return self._conclude(batch, plan, ())
        has_room = goes_on and len(batch.records) <= _FEW and self._has_room([task.record for task in tasks])
        judged = self._judge(tasks, replay=batch.replay, goes_on=goes_on)
        end = partial(self._end, batch, claim, plan, tasks, judged)
        if has_room:
            end = partial(_and_then, end, self._isolation.stay())
            self._late.take([self._late_call(batch, claim, judged, end)])
            return "late"
        return end()

    def _end(self, batch: Batch, claim: Claim, plan: Plan, tasks: Sequence[Task], judged: Future[list[_Call]]) -> str:
        """Wait for the calls, and conclude those that have ended; the others go on."""
        calls: Sequence[_Call | None]
        try:
            calls = judged.result()
        except CancelledError:
            calls = [None] * len(tasks)
        try:
            # Looked at once: a call may end at any moment.
            ended = [call is None or call.done() for call in calls]
            made = list(zip(tasks, calls, strict=True))
            if len(batch.records) == 1 and not all(ended):
                end = partial(self._conclude, batch, plan, made)
                self._late.take([self._late_call(batch, claim, _running(calls[0]), end)])
                return "late"
            ready = [part for part, is_over in zip(made, ended, strict=True) if is_over]
            left = [(task, _running(call)) for (task, call), is_over in zip(made, ended, strict=True) if not is_over]
            late = self._part(batch, plan, left)
            return self._conclude(batch, plan, ready, late)
        except BaseException:
            # The batch comes again as it was, and so do these.
            for call in calls:
                if call is not None:
                    call.get_loop().call_soon_threadsafe(call.cancel)
            raise

    def _part(self, batch: Batch, plan: Plan, late: Sequence[tuple[Task, _Call]]) -> list[LateCall]:
        """Takes the records whose calls go on out of their batch's plan: each is a batch of its own, held by us."""
        found = []
        for task, call in late:
            alone, own = plan.move_out(batch, task)
            plan.retries.append(replace(alone, lease_seconds=self._policy.lease_seconds))
            claim, part = Claim(alone.batch_id, alone.payload, 1), decode_batch(alone.payload)
            end = partial(self._conclude, part, own, [(task, call)])
            found.append(self._late_call(part, claim, call, end))
        return found

    def _late_call(
        self, batch: Batch, claim: Claim, call: _Call | Future[list[_Call]], end: Callable[[], str]
    ) -> LateCall:
        """A batch whose calls go on without a thread. Its claim is ours."""
        work = partial(self._contain, batch, claim, end)
        return LateCall(
            batch_id=batch.batch_id,
            size_bytes=len(claim.payload),
            call=call,
            conclude=partial(self._hold, batch.batch_id, work),
        )

    def _conclude(
        self,
        batch: Batch,
        plan: Plan,
        ready: Sequence[tuple[Task, _Call | None]],
        late: Sequence[LateCall] = (),
    ) -> str:
        """Commit what is judged, and finish the batch."""
        delays = [_unasked_for(call) for _, call in ready]
        is_limited = bool(delays) and all(delays) and not late
        if is_limited and plan.is_empty:
            # Nothing of it was asked: as it came it goes back.
            delay = min(max(delays), self._policy.retry_max_seconds)
            self._queue.release(batch.batch_id, due_at=time.time() + delay)
            return "limited"
        handed_back = 0
        for task, call in ready:
            if call is None or call.cancelled():
                plan.hand_back(batch, task)
                handed_back += 1
            else:
                evaluations = call.result()
                self._tell(evaluations)
                self._planner.settle(batch, plan, task, evaluations)
        self._planner.close(batch, plan)
        inserted = self._commit(plan, replay=batch.replay)
        self._finish(batch.batch_id, plan.retries)
        self._late.take(late)
        if self._metrics is not None:
            for failure in (failure for again in plan.again for failure in again.failures):
                self._metrics.retry(failure.kind)
            moment = now()
            for record, _ in plan.records if inserted else ():
                self._metrics.lag((moment - record.timestamp).total_seconds(), record.trace_id)
        return "handed_back" if handed_back else "limited" if is_limited else "done"

    def _set_aside(self, batch: Batch, claim: Claim, reason: Literal["crashed", "internal"], message: str) -> str:
        """A record that cannot be worked on: failures of that kind for what is left, and a dead letter."""
        plan, letter = self._planner.set_aside(
            batch, self._roster, reason=reason, message=message, attempts=claim.deliveries
        )
        try:
            self._commit(plan, replay=False)
        except StoreDataError:
            # The record itself is what the database refuses: its bytes at least are kept.
            self._commit(Plan(dead_letters=[letter]), replay=False)
        self._finish(batch.batch_id, ())
        _log.error("record set aside", extra={"record_id": letter.record_id, "reason": reason, "error": letter.message})
        return "crashed"

    def _tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Log a judge's failures, one of a kind in a minute: a wrong key must not be silent, nor fill the disk."""
        moment = time.monotonic()
        for judge, failure in ((e.judge, e.outcome) for e in evaluations if isinstance(e.outcome, Failure)):
            if moment - self._told.get((judge, failure.kind), -math.inf) >= 60:
                self._told[judge, failure.kind] = moment
                _log.warning("judge fails", extra={"judge": judge, "kind": failure.kind, "error": failure.message})

    # -- judging, on the event loop

    def _has_room(self, records: Sequence[Record]) -> bool:
        """Whether calls for these may be made without a thread."""
        with self._lock:
            in_hand = len(self._judging)
        return in_hand < self._policy.in_hand_records and self._late.has_room(records)

    def _judge(self, work: Sequence[Task], *, replay: bool, goes_on: bool) -> Future[list[_Call]]:
        """The calls for these, most of them ended, or all where none `goes_on`; cancelled: they were handed back."""
        try:
            return self._portal.start_task_soon(self._judge_all, work, replay, goes_on)
        except RuntimeError as error:
            raise ProcessError(f"the event loop of this worker has ended: {error}") from error

    async def _judge_all(self, work: Sequence[Task], replay: bool, goes_on: bool) -> list[_Call]:
        turns = [Turn() for _ in work]
        calls = [
            asyncio.create_task(self._judge_one(task.record, task.rubrics, replay, turn))
            for task, turn in zip(work, turns, strict=True)
        ]
        with self._lock:
            self._judging.update(calls)
        for call in calls:
            call.add_done_callback(self._judged)
        if self._handing_back.is_set():
            for call in calls:
                call.cancel()
        if goes_on:
            await most_ended(
                calls,
                turns,
                patience_seconds=self._policy.patience_seconds,
                may_go_on=lambda places: self._late.has_room([work[place].record for place in places]),
            )
        else:
            await asyncio.wait(calls)
        return calls

    def _judged(self, call: _Call) -> None:
        with self._lock:
            self._judging.discard(call)

    async def _judge_one(self, record: Record, rubrics: list[Rubric], replay: bool, turn: Turn) -> list[Evaluation]:
        """`evaluate`, with an end, and without what a judge may do to the event loop that all records share."""
        turn.attach()
        seconds = self._policy.judge_deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                # A replay is for the judge itself: its score takes the place, and has the weight, of the failure.
                return await evaluate(record, rubrics, self._judges, stand_in=not replay)
        except TimeoutError:
            failure = Failure(kind="timeout", message=f"judging took longer than {seconds:g} s")
        except asyncio.CancelledError:
            if self._handing_back.is_set():
                raise
            failure = Failure(kind="internal", message="the judge cancelled its own call")
        return list(self._planner.alike(record, rubrics, failure))

    # -- commit and finish: repeated until they succeed, since the verdicts are paid for

    def _commit(self, plan: Plan, *, replay: bool) -> int:
        for attempt in self._until_handed_back(StoreError):
            with attempt:
                started = time.monotonic()
                committed = self._store.commit(
                    plan.records, plan.evaluations, plan.dead_letters, duplicates=plan.duplicates, replay=replay
                )
                if self._metrics is not None:
                    self._metrics.commit(time.monotonic() - started)
                if self._outbox is not None and committed.inserted + committed.recovered:
                    self._outbox.ring()
                return committed.inserted
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _finish(self, batch_id: str, retries: Sequence[Retry]) -> None:
        for attempt in self._until_handed_back(QueueError):
            with attempt:
                self._queue.finish(batch_id, retries=retries)

    def _until_handed_back(self, error: type[Exception]) -> Iterator[AttemptManager]:
        if error in self._away:
            # One wait for all that is in hand, and not one for each: a stop has an end.
            raise error("it was away when this worker began to hand back")

        def gives_up(_: object) -> bool:
            if self._handing_back.is_set():
                self._away.add(error)
            return error in self._away

        yield from Retrying(
            retry=retry_if_exception_type(error),
            wait=wait_exponential(multiplier=0.2, max=5.0),
            stop=gives_up,
            sleep=self._pause,
            before_sleep=lambda state: _log.warning(
                "waiting for the other side", extra={"error": str(state.outcome and state.outcome.exception())}
            ),
            reraise=True,
        )

    def _pause(self, seconds: float) -> None:
        self._handing_back.wait(seconds)

    # -- leases

    @contextmanager
    def _leased(self, batch_id: str) -> Iterator[None]:
        with self._lock:
            self._leases.add(batch_id)
        try:
            yield
        finally:
            with self._lock:
                self._leases.discard(batch_id)

    def _keep(self) -> None:
        """Renew the leases of what is in hand, and ring what is due: every worker does, one at a time sweeps."""
        renew_at = 0.0
        while not self._stopping.wait(self._policy.sweep_seconds):
            try:
                if time.monotonic() >= renew_at:
                    with self._lock:
                        held = [*self._leases]
                    # After them: a batch whose call goes on is there before it leaves them.
                    held += self._late.batch_ids()
                    if held:
                        self._queue.extend(held, lease_seconds=self._policy.lease_seconds)
                    renew_at = time.monotonic() + self._policy.lease_seconds / 4
                if not self._handing_back.is_set():
                    self._queue.sweep()
            except QueueError as error:
                _log.warning("Redis is away", extra={"error": str(error)})
                self._stopping.wait(min(5.0, self._policy.lease_seconds / 4))
            except Exception:  # noqa: BLE001 - the thread must live on
                # Without this thread leases end and lost doorbells stay lost: whatever happens, it goes on.
                _log.exception("the keeper failed")

    def _clear(self) -> None:
        """Keep what is no doorbell; on a thread of its own, for a database that hangs must not cost the leases."""
        while not self._stopping.wait(self._policy.sweep_seconds):
            try:
                self._keep_unreadable()
            except (QueueError, StoreError, StoreDataError) as error:
                _log.debug("unreadable items wait", extra={"error": str(error)})
            except Exception:  # noqa: BLE001 - the thread must live on
                _log.exception("unreadable items wait")

    @property
    def _roster(self) -> Roster:
        return self._fixed if self._gate is None else self._gate.roster

    def _watch(self, gate: Gate) -> None:
        """Let rubrics that waited go on once their calibration is there."""
        while not self._stopping.wait(self._policy.gate_seconds):
            try:
                gate.refresh()
            except StoreError as error:
                _log.warning("the gate waits", extra={"error": str(error)})

    def _keep_unreadable(self) -> None:
        """Make dead letters of what lies on the broker's list and is no doorbell."""
        for item in self._queue.unreadable():
            message = "found on the broker's list, and no doorbell: enqueue as docs/reference/wire-format.md says"
            letter = dead_letter(item, reason="undecodable", message=message, attempts=1)
            self._store.commit([], [], [letter])
            self._queue.forget_unreadable(item)

    def _count(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.batch(outcome)


def _unasked_for(call: _Call | None) -> float:
    """Seconds until this record may be asked for, where neither limit nor circuit let a call be made; else 0."""
    if call is None or call.cancelled():
        return 0.0
    outcomes = [evaluation.outcome for evaluation in call.result()]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure) and outcome.unasked]
    if len(failures) < len(outcomes):
        return 0.0
    return max((failure.retry_after_seconds or 0.0 for failure in failures), default=0.0)


def _and_then(end: Callable[[], str], leave: Callable[[], None]) -> str:
    try:
        return end()
    finally:
        leave()


def _running(call: _Call | None) -> _Call:
    assert call is not None  # noqa: S101 - what was handed back has ended
    return call
