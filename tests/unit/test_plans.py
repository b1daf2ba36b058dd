"""What a batch comes to, without Redis, a database or a judge that is asked."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay import plans
from assay.budgets import THINNED, is_thinned
from assay.cascade import PASSED_OVER, Cascade
from assay.deliveries import DeliveryPolicy
from assay.gate import Line, Roster
from assay.judges import JudgeSettings
from assay.pipeline import Judges
from assay.plans import Plan, Planner, Task, dead_letter
from assay.queue import Batch, decode_batch
from assay.records import Evaluation, Failure, NotApplicable, Outcome, Record, Score, evaluation_id
from assay.rubrics import JudgeSpec, Rubric
from assay.store import Stored
from judging import a_record, checklist, claims, ordinal

RUBRICS = [ordinal(), checklist()]
SETTINGS = JudgeSettings(engine="rules")
POLICY = DeliveryPolicy(max_attempts=3)
BUSY = Failure(kind="rate_limited", message="429", retry_after_seconds=2.0)
UNASKED = replace(BUSY, unasked=True)
WRONG_KEY = Failure(kind="auth", message="401")
SPENT = Failure(kind="budget", message="the day's budget is spent")
GOOD = Score(value=0.75, passed=True)


@dataclass
class Chance:
    """A ledger near a cap."""

    value: float

    def probability(self, *, app: str, rubric: str, judge: str) -> float:
        return self.value


def planner(
    rubrics: Sequence[Rubric] = RUBRICS,
    *,
    known: Mapping[uuid.UUID, Stored] | None = None,
    chance: float | None = None,
    settings: JudgeSettings = SETTINGS,
) -> Planner:
    return Planner(
        judges=Judges.build(rubrics, settings, elsewhere=["ragas"]),
        existing=lambda ids: known or {},
        policy=POLICY,
        budgets=None if chance is None else Chance(chance),  # type: ignore[arg-type]
    )


def a_batch(*records: Record | bytes, attempt: int = 0, replay: bool = False, **fields: object) -> Batch:
    raws = tuple(record if isinstance(record, bytes) else record.to_json().encode() for record in records)
    return Batch("b", 1.0, attempt, replay, raws, **fields)  # type: ignore[arg-type]


def stored(
    record: Record,
    rubric: Rubric,
    outcome: str,
    rubrics: Sequence[Rubric] = RUBRICS,
    settings: JudgeSettings = SETTINGS,
) -> dict[uuid.UUID, Stored]:
    judge = Judges.build(rubrics, settings).of(rubric)
    identity = evaluation_id(record.record_id, rubric.name, rubric.hash, judge.fingerprint)
    return {identity: Stored(outcome=outcome)}  # type: ignore[arg-type]


def planned(
    batch: Batch, rubrics: Sequence[Rubric] = RUBRICS, waited_seconds: float = 0.0, **options: object
) -> tuple[Planner, Plan, list[Task]]:
    made = planner(rubrics, **options)  # type: ignore[arg-type]
    return made, *made.plan(batch, Roster.of(rubrics), waited_seconds)


def judged(made: Planner, task: Task, *outcomes: Outcome) -> list[Evaluation]:
    """These outcomes of the task's rubrics."""
    pairs = zip(task.rubrics, outcomes, strict=True)
    return [e for rubric, outcome in pairs for e in made.alike(task.record, [rubric], outcome)]


def settled(batch: Batch, *outcomes: Outcome) -> Plan:
    """The plan of a batch of one record, once these came of its rubrics."""
    made, plan, (task,) = planned(batch)
    made.settle(batch, plan, task, judged(made, task, *outcomes))
    made.close(batch, plan)
    return plan


# -- what is judged


def test_each_record_is_judged_under_each_rubric() -> None:
    records = [a_record(record_id=f"r-{n}") for n in range(3)]
    _, plan, tasks = planned(a_batch(*records))
    assert [task.record.record_id for task in tasks] == ["r-0", "r-1", "r-2"]
    assert all(task.rubrics == RUBRICS and not task.probabilities for task in tasks)
    assert [record.record_id for record, _ in plan.records] == ["r-0", "r-1", "r-2"]
    assert plan.is_empty


def test_a_record_that_comes_twice_in_a_batch_is_counted_as_a_duplicate() -> None:
    _, plan, tasks = planned(a_batch(a_record(), a_record(output="another")))
    assert (len(tasks), plan.duplicates) == (1, 1)


def test_what_is_stored_is_not_judged_again() -> None:
    record = a_record()
    _, plan, (task,) = planned(a_batch(record), known=stored(record, RUBRICS[0], "scored"))
    assert task.rubrics == RUBRICS[1:]
    whole = stored(record, RUBRICS[0], "scored") | stored(record, RUBRICS[1], "failed")
    _, plan, tasks = planned(a_batch(record), known=whole)
    assert (tasks, plan.duplicates, plan.records) == ([], 1, [])


def test_a_replay_judges_what_failed_and_nothing_else() -> None:
    record = a_record()
    known = stored(record, RUBRICS[0], "scored") | stored(record, RUBRICS[1], "failed")
    _, _, (task,) = planned(a_batch(record, replay=True), known=known)
    assert task.rubrics == RUBRICS[1:]


def test_what_cannot_be_read_is_kept_as_it_came_and_its_mates_are_judged() -> None:
    _, plan, tasks = planned(a_batch(b'{"record_id": 5}', a_record(), b"\xff"))
    assert len(tasks) == 1
    assert [(letter.payload, letter.attempts) for letter in plan.dead_letters] == [
        (b'{"record_id": 5}', 1),
        (b"\xff", 1),
    ]
    assert {letter.reason for letter in plan.dead_letters} <= {"invalid", "undecodable"}


def test_what_a_newer_client_wrote_waits_for_a_newer_worker_but_not_for_ever() -> None:
    newer = a_record().to_json().replace('"schema_version":1', '"schema_version":9').encode()
    assert b'"schema_version":9' in newer
    _, plan, tasks = planned(a_batch(newer, attempt=1))
    assert not tasks
    assert not plan.dead_letters
    assert [(again.raw, again.attempt, again.failures) for again in plan.again] == [(newer, 1, ())]
    assert plan.again[0].delay_seconds > 0
    _, plan, _ = planned(a_batch(newer), waited_seconds=POLICY.newer_seconds)
    assert [letter.reason for letter in plan.dead_letters] == ["unknown_version"]
    assert not plan.again


def test_a_batch_is_judged_under_the_rubrics_that_it_is_confined_to() -> None:
    only = {RUBRICS[1].hash: RUBRICS[1].name}
    _, _, (task,) = planned(a_batch(a_record(), rubrics=only))
    assert task.rubrics == RUBRICS[1:]


def test_of_a_rubric_that_was_changed_since_the_version_of_now() -> None:
    _, _, (task,) = planned(a_batch(a_record(), rubrics={"an older hash": RUBRICS[0].name}))
    assert task.rubrics == RUBRICS[:1]


def test_what_ragas_judges_moves_on_with_all_that_is_owed_to_it() -> None:
    ragas = [claims("faithfulness", judge=JudgeSpec(engine="ragas", metric="faithfulness", model="m"))]
    batch = a_batch(a_record(record_id="r-1"), a_record(record_id="r-2"))
    made, plan, tasks = planned(batch, [*RUBRICS, *ragas])
    assert [task.rubrics for task in tasks] == [RUBRICS, RUBRICS]
    for task in tasks:
        made.settle(batch, plan, task, made.alike(task.record, task.rubrics, GOOD))
    made.close(batch, plan)
    (moved,) = plan.retries
    part = decode_batch(moved.payload)
    assert part.records == batch.records
    assert dict(part.rubrics) == {ragas[0].hash: "faithfulness"}


def test_what_is_tried_again_takes_along_what_it_owes_elsewhere() -> None:
    ragas = [claims("faithfulness", judge=JudgeSpec(engine="ragas", metric="faithfulness", model="m"))]
    batch = a_batch(a_record())
    made, plan, (task,) = planned(batch, [*RUBRICS, *ragas])
    made.settle(batch, plan, task, made.alike(task.record, task.rubrics, BUSY))
    made.close(batch, plan)
    (again,) = plan.retries
    assert not decode_batch(again.payload).rubrics


# -- near a budget's cap


def test_near_a_cap_fewer_are_judged_and_the_probability_is_kept() -> None:
    records = [a_record(record_id=f"r-{n}") for n in range(200)]
    _, plan, tasks = planned(a_batch(*records), chance=0.25)
    left_out = {record.record_id for record in records if is_thinned(record.record_id, 0.25)}
    assert 120 < len(left_out) < 180
    assert {task.record.record_id for task in tasks} == {record.record_id for record in records} - left_out
    assert all(task.probabilities == {rubric.hash: 0.25 for rubric in RUBRICS} for task in tasks)
    assert {e.record_id for e in plan.evaluations} == left_out
    assert {type(e.outcome) for e in plan.evaluations} == {NotApplicable}
    assert len(plan.evaluations) == len(RUBRICS) * len(left_out)


def test_that_a_record_was_taken_near_a_cap_is_a_decision_too() -> None:
    record = next(r for n in range(99) if not is_thinned((r := a_record(record_id=f"r-{n}")).record_id, 0.5))
    _, plan, _ = planned(a_batch(record), chance=0.5)
    assert not plan.is_empty


@pytest.mark.parametrize("fields", [{"attempt": 1}, {"probabilities": {rubric.hash: 0.5 for rubric in RUBRICS}}])
def test_what_was_taken_once_is_not_drawn_for_again(fields: dict[str, object]) -> None:
    records = [a_record(record_id=f"r-{n}") for n in range(25)]
    _, plan, tasks = planned(a_batch(*records, **fields), chance=0.001)  # type: ignore[arg-type]
    assert len(tasks) == 25
    assert plan.is_empty
    chances = fields.get("probabilities", {})
    assert all(task.probabilities == chances for task in tasks)


def test_a_score_has_the_probability_that_it_was_judged_with() -> None:
    record = next(r for n in range(99) if not is_thinned((r := a_record(record_id=f"r-{n}")).record_id, 0.5))
    batch = a_batch(record)
    made, plan, (task,) = planned(batch, chance=0.5)
    made.settle(batch, plan, task, made.alike(task.record, task.rubrics, GOOD))
    assert [e.probability for e in plan.evaluations] == [0.5, 0.5]


def test_where_a_rubric_does_not_apply_nothing_is_thinned() -> None:
    rubric = claims()
    _, _, tasks = planned(
        a_batch(*(a_record(record_id=f"r-{n}", contexts=()) for n in range(25))), [rubric], chance=0.001
    )
    assert len(tasks) == 25


# -- a free judge looks first

ASKING = JudgeSettings(engine="openai", model="m", api_key="synthetic")
CASCADED = claims(cascade=Cascade(first="lexical", share=0.25))
MADE_UP = "You can return an order within 400 days, and Mr. Smith in Madrid pays."
#: sure by its words, and in doubt
SURE, DOUBTED = [[a_record(record_id=f"{n}", **more) for n in range(200)] for more in ({}, {"output": MADE_UP})]


def ids(records: Sequence[Record], chance: float) -> set[str]:
    """Of those that are drawn with this chance."""
    return {record.record_id for record in records if not is_thinned(record.record_id, chance)}


def left_out(made: Planner, batch: Batch, plan: Plan) -> dict[str, Outcome]:
    """What is stored of records that nobody is asked for."""
    made.close(batch, plan)
    return {e.record_id: e.outcome for e in plan.evaluations}


def test_of_what_is_not_in_doubt_a_share_is_judged() -> None:
    batch = a_batch(*SURE)
    made, plan, tasks = planned(batch, [CASCADED], settings=ASKING)
    drawn = ids(SURE, 0.25)
    assert 20 < len(drawn) < 80
    assert {task.record.record_id for task in tasks} == drawn
    assert all(task.probabilities == {CASCADED.hash: 0.25} for task in tasks)
    rest = {record.record_id for record in SURE} - drawn
    assert left_out(made, batch, plan) == dict.fromkeys(rest, NotApplicable(reason=PASSED_OVER))
    assert {e.judge for e in plan.evaluations} == {"openai:m"}


def test_a_score_has_the_probability_of_its_draw() -> None:
    record = next(record for record in SURE if record.record_id in ids(SURE, 0.25))
    batch = a_batch(record)
    made, plan, (task,) = planned(batch, [CASCADED], settings=ASKING)
    made.settle(batch, plan, task, made.alike(task.record, task.rubrics, GOOD))
    assert [e.probability for e in plan.evaluations] == [0.25]


def test_what_is_in_doubt_is_always_judged() -> None:
    batch = a_batch(*DOUBTED)
    made, plan, tasks = planned(batch, [CASCADED], settings=ASKING)
    assert len(tasks) == 200
    assert all(task.probabilities == {} for task in tasks)
    assert left_out(made, batch, plan) == {}


def test_a_rubric_without_a_cascade_is_not_held_back_by_one_beside_it() -> None:
    batch = a_batch(*SURE)
    made, plan, tasks = planned(batch, [ordinal(), CASCADED], settings=ASKING)
    assert len(tasks) == 200
    assert {len(task.rubrics) for task in tasks} == {1, 2}
    made.close(batch, plan)
    assert {e.rubric for e in plan.evaluations} == {CASCADED.name}


def test_near_a_cap_both_probabilities_count_and_each_left_out_bears_its_reason() -> None:
    batch = a_batch(*SURE)
    made, plan, tasks = planned(batch, [CASCADED], settings=ASKING, chance=0.5)
    kept = ids(SURE, 0.125)
    assert {task.record.record_id for task in tasks} == kept
    assert all(task.probabilities == {CASCADED.hash: 0.125} for task in tasks)
    assert all(task.drawn == {CASCADED.hash: 0.5} for task in tasks), "what a budget said goes along"
    thinned = ids(SURE, 0.25) - kept
    reasons = left_out(made, batch, plan)
    assert thinned
    assert {i for i, outcome in reasons.items() if outcome == NotApplicable(reason=THINNED)} == thinned
    assert len(reasons) + len(kept) == 200
    _, _, doubted = planned(a_batch(*DOUBTED), [CASCADED], settings=ASKING, chance=0.5)
    assert all(task.probabilities == {CASCADED.hash: 0.5} for task in doubted)


def test_a_judge_that_is_free_is_asked_for_every_record() -> None:
    _, plan, tasks = planned(a_batch(*SURE), [CASCADED])
    assert len(tasks) == 200
    assert not plan.passed_over


@pytest.mark.parametrize("fields", [{}, {"attempt": 1}, {"probabilities": {CASCADED.hash: 0.5}, "attempt": 1}])
def test_it_is_drawn_alike_whenever_it_is_looked_at(fields: dict[str, Any]) -> None:
    """So batches need not tell of it, and one that was not asked for goes back as it came."""
    drawn_by_budget = fields.get("probabilities", {}).get(CASCADED.hash, 1.0)
    kept = [record for record in SURE if record.record_id in ids(SURE, 0.25 * drawn_by_budget)]
    batch = a_batch(*kept, **fields)
    made, plan, tasks = planned(batch, [CASCADED], settings=ASKING, chance=0.001 if fields else None)
    assert [task.record for task in tasks] == kept
    assert {task.probabilities[CASCADED.hash] for task in tasks} == {0.25 * drawn_by_budget}
    assert plan.is_empty
    for task in tasks:
        made.settle(batch, plan, task, made.alike(task.record, task.rubrics, BUSY))
    made.close(batch, plan)
    (again,) = plan.retries
    assert decode_batch(again.payload).probabilities == fields.get("probabilities", {})


def test_what_a_cascade_passed_over_is_no_reason_to_part_a_batch_that_waits() -> None:
    _, plan, tasks = planned(a_batch(*SURE), [ordinal(), CASCADED], settings=ASKING)
    assert plan.passed_over
    assert len(tasks) == 200
    assert plan.is_empty


def test_one_that_moves_out_takes_along_what_is_known_of_it() -> None:
    batch = a_batch(*SURE[:50])
    made, plan, tasks = planned(batch, [ordinal(), CASCADED], settings=ASKING)
    late = next(task for task in tasks if len(task.rubrics) == 1)
    retry, own = plan.move_out(batch, late)
    made.close(decode_batch(retry.payload), own)
    assert {e.record_id for e in own.evaluations} == {late.record.record_id}
    made.close(batch, plan)
    assert plan.evaluations
    assert late.record.record_id not in {e.record_id for e in plan.evaluations}
    assert {e.record_id for e in plan.evaluations} <= {record.record_id for record, _ in plan.records}


def test_a_replay_is_not_drawn_for() -> None:
    passed_over = next(record for record in SURE if record.record_id not in ids(SURE, 0.25))
    known = stored(passed_over, CASCADED, "failed", [CASCADED], ASKING)
    _, plan, (task,) = planned(a_batch(passed_over, replay=True), [CASCADED], settings=ASKING, known=known)
    assert task.probabilities == {}
    assert not plan.passed_over


@pytest.mark.parametrize("reason", ["crashed", "internal"])
def test_what_is_set_aside_was_drawn_too(reason: Any) -> None:
    drawn = next(record for record in SURE if record.record_id in ids(SURE, 0.25))
    over = next(record for record in SURE if record.record_id not in ids(SURE, 0.25))
    made, roster = planner([CASCADED], settings=ASKING), Roster.of([CASCADED])
    for record, chance, kind in ((drawn, 0.25, Failure), (DOUBTED[0], 1.0, Failure), (over, 1.0, NotApplicable)):
        plan, letter = made.set_aside(a_batch(record), roster, reason=reason, message="x", attempts=3)
        assert [(e.probability, type(e.outcome)) for e in plan.evaluations] == [(chance, kind)]
        assert letter.record_id == record.record_id


def test_one_rubric_by_two_judges_is_asked_of_both() -> None:
    """What is drawn is kept by the rubric's hash: the one must not get the other's weight."""
    before = replace(CASCADED, cascade=None, judge=JudgeSpec(engine="openai", model="old"))
    after = replace(CASCADED, judge=JudgeSpec(engine="openai", model="new"))
    made = planner([after, before], settings=ASKING)
    roster = Roster(lines=(Line(own=after, previous=before, is_open=False, bridged=True),), bridge_share=1.0)
    plan, tasks = made.plan(a_batch(*SURE[:20]), roster, 0.0)
    assert [len(task.rubrics) for task in tasks] == [2] * 20
    assert all(task.probabilities == {} for task in tasks)
    assert not plan.passed_over


def test_a_large_record_is_in_doubt_without_a_look() -> None:
    large = [replace(r, metadata={"note": "x" * 100_000}) for r in SURE]
    _, plan, tasks = planned(a_batch(*large), [CASCADED], settings=ASKING)
    assert len(tasks) == 200
    assert not plan.passed_over


def test_a_bug_of_the_first_look_costs_a_call_and_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Outcome:
        raise ZeroDivisionError

    monkeypatch.setattr(plans, "look", broken)
    _, plan, tasks = planned(a_batch(*SURE), [CASCADED], settings=ASKING)
    assert len(tasks) == 200
    assert not plan.passed_over


def test_where_a_rubric_does_not_apply_nobody_looks_first() -> None:
    records = [a_record(record_id=f"{n}", contexts=()) for n in range(25)]
    _, plan, tasks = planned(a_batch(*records), [CASCADED], settings=ASKING)
    assert len(tasks) == 25
    assert not plan.passed_over


# -- what becomes of an outcome


def test_a_verdict_and_a_lasting_failure_are_final() -> None:
    plan = settled(a_batch(a_record()), GOOD, WRONG_KEY)
    assert [e.outcome for e in plan.evaluations] == [GOOD, WRONG_KEY]
    assert not plan.retries
    assert not plan.dead_letters


def test_a_passing_failure_is_tried_again_and_the_verdict_beside_it_is_kept() -> None:
    plan = settled(a_batch(a_record(), attempt=1), GOOD, BUSY)
    assert [e.outcome for e in plan.evaluations] == [GOOD]
    assert [decode_batch(retry.payload).attempt for retry in plan.retries] == [2]
    assert not plan.dead_letters


def test_what_was_not_even_asked_uses_up_no_try() -> None:
    plan = settled(a_batch(a_record(), attempt=2), UNASKED, UNASKED)
    assert [decode_batch(retry.payload).attempt for retry in plan.retries] == [2]


def test_one_that_was_asked_uses_up_a_try_for_both() -> None:
    plan = settled(a_batch(a_record(), attempt=1), UNASKED, BUSY)
    assert [decode_batch(retry.payload).attempt for retry in plan.retries] == [2]


def test_the_last_try_ends_as_failures_and_one_dead_letter() -> None:
    plan = settled(a_batch(a_record(), attempt=2), BUSY, BUSY)
    assert [e.outcome for e in plan.evaluations] == [BUSY, BUSY]
    assert not plan.retries
    (letter,) = plan.dead_letters
    assert (letter.reason, letter.attempts, letter.record_id) == ("rate_limited", 3, "r-1")
    assert letter.message == "relevance: 429; safety: 429"


def test_a_spent_budget_is_final_at_once_and_can_be_replayed() -> None:
    plan = settled(a_batch(a_record()), GOOD, SPENT)
    assert [e.outcome for e in plan.evaluations] == [GOOD, SPENT]
    assert [(letter.reason, letter.message) for letter in plan.dead_letters] == [
        ("budget", "safety: the day's budget is spent")
    ]
    assert not plan.retries


def test_what_is_handed_back_comes_again_as_it_was() -> None:
    batch = a_batch(a_record(), attempt=2)
    made, plan, (task,) = planned(batch)
    plan.hand_back(batch, task)
    made.close(batch, plan)
    (retry,) = plan.retries
    part = decode_batch(retry.payload)
    assert (part.attempt, part.records) == (2, batch.records)


def test_a_record_whose_call_goes_on_leaves_the_plan() -> None:
    batch = a_batch(a_record(record_id="r-1"), a_record(record_id="r-2"))
    _, plan, (_, second) = planned(batch)
    retry, own = plan.move_out(batch, second)
    assert [record.record_id for record, _ in plan.records] == ["r-1"]
    assert [record.record_id for record, _ in own.records] == ["r-2"]
    assert decode_batch(retry.payload).records == (second.raw,)


# -- what cannot be worked on


def test_a_record_that_kills_is_set_aside_with_failures_for_all_that_is_left() -> None:
    record = a_record()
    made = planner(known=stored(record, RUBRICS[0], "scored"))
    plan, letter = made.set_aside(
        a_batch(record), Roster.of(RUBRICS), reason="crashed", message="the worker died", attempts=5
    )
    assert {e.rubric: e.outcome.kind for e in plan.evaluations if isinstance(e.outcome, Failure)} == {
        "safety": "crashed"
    }
    assert plan.dead_letters == [letter]
    assert (letter.reason, letter.record_id, letter.attempts) == ("crashed", "r-1", 5)


def test_a_record_that_a_stand_in_has_scored_is_set_aside_without_a_failure() -> None:
    rubric = ordinal(fallback_judge=JudgeSpec(engine="lexical"))
    record, (fallback,) = a_record(), Judges.build([rubric], SETTINGS).stand_ins(rubric).values()
    identity = evaluation_id(record.record_id, rubric.name, rubric.hash, fallback.fingerprint)
    made = planner([rubric], known={identity: Stored(outcome="scored")})
    plan, _ = made.set_aside(a_batch(record), Roster.of([rubric]), reason="crashed", message="", attempts=5)
    assert plan.evaluations == []


def test_what_was_taken_near_a_cap_is_set_aside_with_its_probability() -> None:
    """A score that takes the failure's place has its weight."""
    batch = a_batch(a_record(), probabilities={RUBRICS[0].hash: 0.1})
    plan, _ = planner().set_aside(batch, Roster.of(RUBRICS), reason="crashed", message="", attempts=5)
    assert [e.probability for e in plan.evaluations] == [0.1, 1.0]


def test_bytes_that_kill_are_kept_without_failures() -> None:
    plan, letter = planner().set_aside(
        a_batch(b"\xff"), Roster.of(RUBRICS), reason="internal", message="it broke", attempts=1
    )
    assert not plan.evaluations
    assert not plan.records
    assert letter.payload == b"\xff"
    assert letter.message.startswith("it broke; ")


def test_a_letter_is_the_same_for_the_same_bytes_and_reason_only() -> None:
    same = [dead_letter(b"x", reason="crashed", message=text, attempts=n).dead_id for n, text in enumerate("ab")]
    assert same[0] == same[1]
    assert dead_letter(b"x", reason="internal", message="a", attempts=0).dead_id != same[0]
    assert dead_letter(b"y", reason="crashed", message="a", attempts=0).dead_id != same[0]


# -- whatever comes

OUTCOMES = st.sampled_from([GOOD, NotApplicable(reason="no_claims"), BUSY, UNASKED, WRONG_KEY, SPENT])


@given(
    outcomes=st.lists(st.tuples(OUTCOMES, OUTCOMES, st.sampled_from(["settle", "hand back", "move out"])), max_size=6),
    attempt=st.integers(0, 3),
)
def test_nothing_that_a_record_owes_is_lost_or_doubled(
    outcomes: list[tuple[Outcome, Outcome, str]], attempt: int
) -> None:
    """Each owed outcome is final once, or its record is delivered again once; and never is a failure a score."""
    records = [a_record(record_id=f"r-{n}") for n in range(len(outcomes))]
    batch = a_batch(*records, attempt=attempt)
    made, plan, tasks = planned(batch)
    for task, (first, second, fate) in zip(tasks, outcomes, strict=True):
        if fate == "hand back":
            plan.hand_back(batch, task)
        elif fate == "move out":
            plan.retries.append(plan.move_out(batch, task)[0])
        else:
            made.settle(batch, plan, task, judged(made, task, first, second))
    made.close(batch, plan)
    delivered = [raw for retry in plan.retries for raw in decode_batch(retry.payload).records]
    assert len(delivered) == len(set(delivered))
    ended = [(e.record_id, e.rubric) for e in plan.evaluations]
    assert len(ended) == len(set(ended))
    lettered = {letter.record_id for letter in plan.dead_letters}
    assert len(lettered) == len(plan.dead_letters)
    for record, (first, second, fate) in zip(records, outcomes, strict=True):
        again = record.to_json().encode() in delivered
        final = {rubric for record_id, rubric in ended if record_id == record.record_id}
        if fate != "settle":
            assert (again, final) == (True, set())
            continue
        passing = [o for o in (first, second) if isinstance(o, Failure) and o.transient]
        assert again == (len(final) < 2)
        assert len(final) == 2 - (len(passing) if again else 0)
        # What ends as a failure that another day may mend can be replayed.
        mendable = any(isinstance(o, Failure) and (o.transient or o.kind == "budget") for o in (first, second))
        assert not (mendable and not again) or record.record_id in lettered
    for evaluation in plan.evaluations:
        first, second, _ = outcomes[int(evaluation.record_id.removeprefix("r-"))]
        assert evaluation.outcome == (first if evaluation.rubric == RUBRICS[0].name else second)
