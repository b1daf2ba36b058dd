"""What a batch comes to: which records are judged under which rubrics, and what becomes of each outcome.

It asks no judge but the free one that looks first, writes nothing and knows no Redis. The worker carries out what a
plan says.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from assay.budgets import FREE_JUDGES, THINNED, is_thinned
from assay.cascade import PASSED_OVER
from assay.codec import app_named, decode_record
from assay.deliveries import Again, for_ragas, single
from assay.errors import RecordError
from assay.judges import look
from assay.records import Evaluation, Failure, NotApplicable, Record, evaluation_id
from assay.store import DeadLetter

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from assay.budgets import Ledger
    from assay.deliveries import DeliveryPolicy
    from assay.gate import Roster
    from assay.pipeline import Judges
    from assay.queue import Batch, Retry
    from assay.records import Outcome
    from assay.rubrics import Rubric
    from assay.store import Stored

_log = logging.getLogger(__name__)

#: How often an older worker looks at what a newer client wrote, in seconds.
NEWER_PAUSE_SECONDS = 5.0
#: A first look at a larger record would take too long, with other records waiting: it is in doubt.
_MOST_LOOKED_AT_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Task:
    """A record, and the rubrics to judge it under."""

    record: Record
    #: its bytes as they came
    raw: bytes
    rubrics: list[Rubric]
    #: rubric hash -> the probability of judging it, where that is below 1
    probabilities: dict[str, float] = field(default_factory=dict)
    #: the part of it that budgets drew, which goes along with the record
    drawn: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """What one batch comes to: filled while it is worked on, committed at its end."""

    records: list[tuple[Record, str]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    #: outcomes that come out alike whenever they are looked at: they are kept with the others, and need not be before
    passed_over: list[Evaluation] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    #: what is to be tried again; and batches that this worker goes on with
    again: list[Again] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)
    duplicates: int = 0
    #: whether budgets drew a record with a probability that its batch, as it came, does not tell of
    drawn: bool = False
    #: what records owe that this process does not ask, by their raw form; they move on once they are done with here
    elsewhere: dict[bytes, list[Rubric]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the batch is decided."""
        return not (self.evaluations or self.dead_letters or self.again or self.retries or self.drawn)

    def hand_back(self, batch: Batch, task: Task) -> None:
        """Nobody judged this record: it comes again as it was, and that counts as no try."""
        self._try_again(Again(raw=task.raw, attempt=batch.attempt, probabilities=task.drawn))

    def _try_again(self, again: Again) -> None:
        self.again.append(again)
        # It brings along what it owes elsewhere.
        self.elsewhere.pop(again.raw, None)

    def move_out(self, batch: Batch, task: Task) -> tuple[Retry, Plan]:
        """Take one record out of this plan: a batch of it alone, and the plan of that."""
        entry = (task.record, task.raw.decode())
        self.records.remove(entry)
        own, record_id = Plan(records=[entry]), task.record.record_id
        for whole, part in ((self.evaluations, own.evaluations), (self.passed_over, own.passed_over)):
            part += [evaluation for evaluation in whole if evaluation.record_id == record_id]
            whole[:] = [evaluation for evaluation in whole if evaluation.record_id != record_id]
        if (others := self.elsewhere.pop(task.raw, None)) is not None:
            own.elsewhere[task.raw] = others
        return single(batch, task.raw, "late", probabilities=task.drawn), own


class Planner:
    """Says what a batch comes to. Thread-safe.

    Args:
        judges: who judges under which rubric.
        existing: record ids -> what is stored of these records, by the id of the evaluation.
        policy: how often and when a record is tried again.
        budgets: near a cap of these fewer records are judged, with the probability kept.
    """

    def __init__(
        self,
        *,
        judges: Judges,
        existing: Callable[[Sequence[str]], Mapping[uuid.UUID, Stored]],
        policy: DeliveryPolicy,
        budgets: Ledger | None = None,
    ) -> None:
        self._judges = judges
        self._existing = existing
        self._policy = policy
        self._budgets = budgets

    def plan(self, batch: Batch, roster: Roster, waited_seconds: float) -> tuple[Plan, list[Task]]:
        """Decode the batch and ask what is known of it; also what is left to judge.

        Raises:
            StoreError: what is known cannot be read.
        """
        plan, decoded = Plan(), dict[str, tuple[Record, bytes]]()
        for raw in batch.records:
            try:
                record = decode_record(raw, max_bytes=self._policy.max_record_bytes)
            except RecordError as error:
                if error.reason == "unknown_version" and waited_seconds < self._policy.newer_seconds:
                    chances, delay = batch.probabilities, NEWER_PAUSE_SECONDS
                    plan.again.append(Again(raw=raw, attempt=batch.attempt, probabilities=chances, delay_seconds=delay))
                    continue
                plan.dead_letters.append(dead_letter(raw, reason=error.reason, message=str(error), attempts=1))
                continue
            if record.record_id in decoded:
                plan.duplicates += 1
                continue
            decoded[record.record_id] = (record, raw)
        known = self._existing(list(decoded)) if decoded else {}
        tasks = []
        for record, raw in decoded.values():
            owed = self._owed(batch, record, known, roster)
            todo = self._left_to_judge(record, known, owed, replay=batch.replay)
            if todo or not owed:
                plan.records.append((record, raw.decode()))
            if todo:
                ours = [rubric for rubric in todo if self._judges.serves(rubric)]
                if len(ours) < len(todo):
                    plan.elsewhere[raw] = [rubric for rubric in todo if not self._judges.serves(rubric)]
                task, left_out = self._thin(batch, Task(record, raw, ours), known)
                self._leave_out(plan, record, left_out)
                plan.drawn |= not task.drawn.items() <= batch.probabilities.items()
                if task.rubrics:
                    tasks.append(task)
            elif owed:
                plan.duplicates += 1
        return plan, tasks

    def settle(self, batch: Batch, plan: Plan, task: Task, evaluations: Iterable[Evaluation]) -> None:
        """Into the plan: what is final, what is tried again, and dead letters of what has had its tries."""
        evaluations = _weighed(evaluations, task.probabilities)
        failed = [(e, e.outcome) for e in evaluations if isinstance(e.outcome, Failure)]
        # Final, and to be replayed: another try in a minute would find the budget spent as well.
        spent = [(e, failure) for e, failure in failed if failure.kind == "budget"]
        passing = [(e, failure) for e, failure in failed if failure.transient]
        is_unasked = bool(passing) and all(failure.unasked for _, failure in passing)
        if passing and (is_unasked or batch.attempt + 1 < self._policy.max_attempts):
            failures = [failure for _, failure in passing]
            attempt = batch.attempt if is_unasked else batch.attempt + 1
            plan._try_again(Again(raw=task.raw, attempt=attempt, probabilities=task.drawn, failures=failures))
            left_open = {id(e) for e, _ in passing}
            evaluations = [e for e in evaluations if id(e) not in left_open]
        else:
            spent += passing
        plan.evaluations.extend(evaluations)
        if spent:
            letter = dead_letter(
                task.raw,
                reason=spent[0][1].kind,
                message="; ".join(f"{e.rubric}: {failure.message}" for e, failure in spent),
                attempts=batch.attempt + 1,
                record_id=task.record.record_id,
            )
            plan.dead_letters.append(letter)

    def close(self, batch: Batch, plan: Plan) -> None:
        """Into the plan: the batches of what is tried again, of what is owed elsewhere, and what was passed over."""
        plan.evaluations.extend(plan.passed_over)
        plan.retries.extend(self._policy.retries(batch, plan.again))
        if plan.elsewhere:
            plan.retries.append(for_ragas(batch, plan.elsewhere))

    def set_aside(
        self, batch: Batch, roster: Roster, *, reason: Literal["crashed", "internal"], message: str, attempts: int
    ) -> tuple[Plan, DeadLetter]:
        """For a record, alone in its batch, that cannot be worked on: such failures for the rest, and a dead letter.

        Raises:
            StoreError: what is known cannot be read.
        """
        plan, raw, record_id = Plan(), batch.records[0], None
        try:
            record = decode_record(raw, max_bytes=self._policy.max_record_bytes)
        except RecordError as error:
            message = f"{message}; {error}"
        else:
            record_id = record.record_id
            plan.records.append((record, raw.decode()))
            known = self._existing([record_id])
            todo = self._left_to_judge(record, known, self._owed(batch, record, known, roster), replay=False)
            # A replay's score takes a failure's place with the weight of that.
            task, left_out = self._thin(batch, Task(record, raw, todo), known)
            self._leave_out(plan, record, left_out)
            failures = self.alike(record, task.rubrics, Failure(kind=reason, message=message[:500]))
            plan.evaluations.extend(_weighed(failures, task.probabilities))
            plan.evaluations.extend(plan.passed_over)
        letter = dead_letter(raw, reason=reason, message=message, attempts=attempts, record_id=record_id)
        plan.dead_letters.append(letter)
        return plan, letter

    def alike(self, record: Record, rubrics: Iterable[Rubric], outcome: Outcome) -> Iterator[Evaluation]:
        """The same outcome under each of these."""
        for rubric in rubrics:
            judge = self._judges.of(rubric)
            yield Evaluation(
                record_id=record.record_id,
                rubric=rubric.name,
                rubric_version=rubric.revision,
                rubric_hash=rubric.hash,
                judge=judge.name,
                judge_fingerprint=judge.fingerprint,
                outcome=outcome,
            )

    def _leave_out(self, plan: Plan, record: Record, left_out: Mapping[str, Sequence[Rubric]]) -> None:
        for reason, rubrics in left_out.items():
            into = plan.passed_over if reason == PASSED_OVER else plan.evaluations
            into.extend(self.alike(record, rubrics, NotApplicable(reason=reason)))

    def _thin(self, batch: Batch, task: Task, known: Collection[uuid.UUID]) -> tuple[Task, dict[str, list[Rubric]]]:
        """What of the task is judged, and what is not, by the reason: the one counts for the other.

        What a cascade says of a record it says each time. What a budget says depends on the moment, so it is asked
        once, before the first try, and goes along with the record.
        """
        if self._budgets is None and not batch.probabilities and not any(rubric.cascade for rubric in task.rubrics):
            return task, {}
        kept = replace(task, rubrics=[], probabilities={}, drawn=dict(batch.probabilities))
        left_out: dict[str, list[Rubric]] = {}
        record, versions = task.record, Counter(rubric.hash for rubric in task.rubrics)
        for rubric in task.rubrics:
            first, drawn = 1.0, batch.probabilities.get(rubric.hash, 1.0)
            # Where the rubric does not apply, there is nothing to be saved; a replay's score has the weight of what is
            # there; and the same rubric by two judges is asked of both, since what is drawn is kept by its hash.
            draws = self._identity(record, rubric) not in known and rubric.missing(record) is None
            if draws and versions[rubric.hash] == 1:
                first = self._first_look(task, rubric)
                # One number decides both, so what is left after both is a part of what is left after one.
                if first < 1.0 and is_thinned(record.record_id, first * drawn):
                    left_out.setdefault(PASSED_OVER, []).append(rubric)
                    continue
                if self._budgets is not None and drawn == 1.0 and batch.attempt == 0:
                    judge = self._judges.of(rubric).name
                    drawn = self._budgets.probability(app=record.app, rubric=rubric.name, judge=judge)
                    if is_thinned(record.record_id, first * drawn):
                        left_out.setdefault(THINNED, []).append(rubric)
                        continue
            kept.rubrics.append(rubric)
            if drawn < 1.0:
                kept.drawn[rubric.hash] = drawn
            if first * drawn < 1.0:
                kept.probabilities[rubric.hash] = first * drawn
        return kept, left_out

    def _first_look(self, task: Task, rubric: Rubric) -> float:
        """The probability, by the rubric's cascade, that its judge is asked for the record."""
        cascade = rubric.cascade
        if cascade is None or self._judges.of(rubric).name in FREE_JUDGES or len(task.raw) > _MOST_LOOKED_AT_BYTES:
            return 1.0
        try:
            return cascade.probability(look(cascade.first, task.record, rubric))
        except Exception:  # noqa: BLE001 - a bug in the first look costs a call, and no record
            _log.exception("the first look failed", extra={"record_id": task.record.record_id, "rubric": rubric.name})
            return 1.0

    def _owed(self, batch: Batch, record: Record, known: Collection[uuid.UUID], roster: Roster) -> list[Rubric]:
        """The rubrics that the record owes an outcome to; none while all of them wait for their calibrations."""
        owed = roster.owed(record.record_id, lambda rubric: self._identity(record, rubric) in known)
        return _confined(owed, batch.rubrics) if batch.rubrics else owed

    def _identity(self, record: Record, rubric: Rubric) -> uuid.UUID:
        return evaluation_id(record.record_id, rubric.name, rubric.hash, self._judges.of(rubric).fingerprint)

    def _left_to_judge(
        self, record: Record, known: Mapping[uuid.UUID, Stored], owed: Sequence[Rubric], *, replay: bool
    ) -> list[Rubric]:
        """The rubrics without an outcome; in a replay also those without a verdict."""
        if not known:
            return list(owed)
        stored = ((rubric, self._found(record, rubric, known)) for rubric in owed)
        return [rubric for rubric, found in stored if found is None or (replay and found.outcome == "failed")]

    def _found(self, record: Record, rubric: Rubric, known: Mapping[uuid.UUID, Stored]) -> Stored | None:
        """What is stored of the record under the rubric, by its judge or by one that stood in for it."""
        found = known.get(self._identity(record, rubric))
        for judge in self._judges.stand_ins(rubric).values():
            found = found or known.get(evaluation_id(record.record_id, rubric.name, rubric.hash, judge.fingerprint))
        return found


def dead_letter(
    payload: bytes, *, reason: str, message: str, attempts: int, record_id: str | None = None
) -> DeadLetter:
    """Identity is the content and the reason, so that a repeat is kept once."""
    digest = hashlib.sha256(reason.encode() + b"\0" + payload).hexdigest()[:32]
    return DeadLetter(
        dead_id=digest,
        reason=reason,
        message=message[:1000],
        payload=payload,
        record_id=record_id,
        attempts=attempts,
        app=app_named(payload),
    )


def _weighed(evaluations: Iterable[Evaluation], probabilities: Mapping[str, float]) -> list[Evaluation]:
    chances = ((e, probabilities.get(e.rubric_hash, 1.0)) for e in evaluations)
    return [e if e.probability == chance else replace(e, probability=chance) for e, chance in chances]


def _confined(owed: Sequence[Rubric], rubrics: Mapping[str, str]) -> list[Rubric]:
    """Those of the rubrics that a batch is confined to; of one that was changed since, the version of now."""
    hashes = {rubric.hash for rubric in owed}
    changed = {name for digest, name in rubrics.items() if digest not in hashes}
    return [rubric for rubric in owed if rubric.hash in rubrics or rubric.name in changed]
