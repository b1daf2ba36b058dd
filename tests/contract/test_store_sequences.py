"""Whatever is committed, in whatever order and however often: the sums are those of the rows, and the rows are right.

The rows are compared to a model of a few lines, the sums to a plain recomputation from the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from assay.records import Evaluation, Failure, NotApplicable, Outcome, Score, Usage
from assay.store import Committed, Store
from assay.store import _tables as tables
from stores import HOUR_START, a_record, an_evaluation, assert_conserved, assert_sums_true, connected, with_payloads

MAX_SERIES = 5

outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(
        Score,
        value=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.999, 1.0]),
        passed=st.booleans(),
        usage=st.sampled_from([Usage(), Usage(prompt_tokens=10, completion_tokens=2, cost_usd=0.25)]),
    ),
    st.builds(Failure, kind=st.sampled_from(["timeout", "unparsable"]), message=st.just("no verdict")),
    st.builds(NotApplicable, reason=st.sampled_from(["missing_contexts", "no_claims"])),
)

#: Deliveries of the same record may differ in everything but its id.
evaluations = st.tuples(
    st.sampled_from("abcdef"),
    st.sampled_from(["relevance", "safety"]),
    outcomes,
)
records = st.tuples(
    st.integers(-7200, 7200),
    st.sampled_from([1.0, 0.5, 0.25, 0.125]),
    st.sampled_from(["shop", "desk"]),
    st.sampled_from(["gold", "free", "", "x" * 70, "other", "bad\n"]),
    st.sampled_from([None, "0" * 31 + "1"]),
)
commits = st.tuples(
    st.lists(evaluations, max_size=8),
    st.fixed_dictionaries(dict.fromkeys("abcdef", records)),
    st.booleans(),  # replay
    st.booleans(),  # by another process than the one before
    st.booleans(),  # delivered twice
)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path}/scores.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url) as store:
        store.upgrade()
        yield store


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(sequence=st.lists(commits, max_size=8))
def test_any_sequence_of_commits_adds_up(store: Store, url: str, sequence: list) -> None:
    _empty(store)
    processes = [Store(url, cohort_labels=["tier"], max_series=MAX_SERIES) for _ in range(2)]
    model: dict[tuple[str, str], Outcome] = {}
    received: set[str] = set()
    active = 0
    for judged, content, replay, switch, twice in sequence:
        active = (active + switch) % 2
        batch = [
            a_record(name, seconds=seconds, probability=probability, app=app, cohort={"tier": tier}, trace_id=trace_id)
            for name, (seconds, probability, app, tier, trace_id) in content.items()
            if any(name == record_id for record_id, _, _ in judged)
        ]
        offered = [an_evaluation(record_id, outcome, rubric) for record_id, rubric, outcome in judged]
        for _ in range(1 + twice):
            expected = _model(model, received, offered, replay=replay)
            assert processes[active].commit(with_payloads(batch), offered, replay=replay) == expected
    _check(processes[0], model, received)
    for process in processes:
        process.close()


def _model(
    model: dict[tuple[str, str], Outcome], received: set[str], offered: list[Evaluation], *, replay: bool
) -> Committed:
    """What the store must do, said as plainly as possible."""
    came = {evaluation.record_id for evaluation in offered}
    new_records, inserted, recovered = len(came - received), 0, 0
    received |= came
    stored_before = set(model)
    seen: set[tuple[str, str]] = set()
    for evaluation in offered:
        key = (evaluation.record_id, evaluation.rubric)
        if key in seen:
            continue
        seen.add(key)
        if key not in stored_before:
            model[key] = evaluation.outcome
            inserted += 1
        elif replay and isinstance(model[key], Failure) and not isinstance(evaluation.outcome, Failure):
            model[key] = evaluation.outcome
            recovered += 1
    return Committed(
        inserted_records=new_records,
        inserted=inserted,
        duplicates=len(offered) - inserted - recovered,
        recovered=recovered,
    )


def _check(store: Store, model: dict[tuple[str, str], Outcome], received: set[str]) -> None:
    with connected(store) as connection:
        rows = connection.execute(
            sa.select(tables.evaluations, tables.instruments.c.rubric).join(tables.instruments)
        ).all()
        series = connection.execute(sa.select(sa.func.count()).select_from(tables.series)).scalar_one()
    assert {(row.record_id, row.rubric): (row.outcome, row.value, row.failure_kind, row.reason) for row in rows} == {
        key: _columns(outcome) for key, outcome in model.items()
    }
    assert series <= MAX_SERIES
    assert_sums_true(store)
    assert_conserved(store)
    assert sum(store.counts().received.values()) == len(received)
    # A day's window has everything in it, whichever rows it is read from.
    start = int(HOUR_START.timestamp()) - 3 * 3600 + 60
    read = store.rollups(start, start + 6 * 3600)
    scores = [outcome for outcome in model.values() if isinstance(outcome, Score)]
    assert sum(rollup.n for rollup in read) == len(scores)
    assert sum(rollup.passes for rollup in read) == sum(score.passed for score in scores)
    totals = store.totals()
    assert sum(total.value_sum for total in totals) == pytest.approx(sum(score.value for score in scores))
    labels = [(total.app, *total.cohort.items(), total.rubric) for total in totals]
    assert len(set(labels)) == len(labels), "one row for each label set"
    assert {(rollup.app, *rollup.cohort.items(), rollup.rubric) for rollup in read} == set(labels)


def _columns(outcome: Outcome) -> tuple[object, ...]:
    if isinstance(outcome, Score):
        return "scored", outcome.value, None, None
    if isinstance(outcome, Failure):
        return "failed", None, outcome.kind, None
    return "not_applicable", None, None, outcome.reason


def _empty(store: Store) -> None:
    with connected(store) as connection:
        for table in reversed(tables.metadata.sorted_tables):
            connection.execute(table.delete())
