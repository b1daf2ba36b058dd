"""What any database must do for the store: every test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from assay.errors import ConfigError, StoreDataError, StoreError
from assay.records import Failure, NotApplicable, Record, Sampling, Score, Usage, evaluation_id, now
from assay.store import OTHER, SCORE_BOUNDS, Committed, DeadLetter, Store, Stored
from assay.store import _tables as tables
from stores import (
    A_FAILURE,
    EPOCH,
    HOUR_START,
    NOT_APPLICABLE,
    a_record,
    an_evaluation,
    assert_conserved,
    assert_sums_true,
    commit,
    connected,
    dump,
    statements,
    with_payloads,
)


def hour(store: Store) -> list:
    return store.rollups(EPOCH, EPOCH + 3600)


# -- commit


def test_what_is_committed_is_known(store: Store) -> None:
    first, second = a_record(), a_record()
    committed = store.commit(
        with_payloads([first, second]),
        [an_evaluation(first, 0.75), an_evaluation(first, A_FAILURE, "safety"), an_evaluation(second, NOT_APPLICABLE)],
    )
    assert committed == Committed(inserted_records=2, inserted=3, duplicates=0, recovered=0)
    ids = [
        evaluation_id(record.record_id, rubric, "0a1b2c3d" * 8, "f" * 64)
        for record, rubric in ((first, "relevance"), (first, "safety"), (second, "relevance"))
    ]
    assert store.existing([first.record_id, second.record_id, "unknown"]) == {
        ids[0]: Stored(outcome="scored"),
        ids[1]: Stored(outcome="failed", kind="timeout"),
        ids[2]: Stored(outcome="not_applicable"),
    }
    assert store.existing([second.record_id]).keys() == {ids[2]}
    assert store.existing([]) == {}


def test_more_records_than_a_statement_takes_are_looked_up(store: Store) -> None:
    first, last = a_record("00000"), a_record("69999")
    commit(store, (first, 0.5), (last, A_FAILURE))
    with statements(store) as seen:
        assert len(store.existing([f"{index:05}" for index in range(70_000)])) == 2
    assert len([statement for statement in seen if statement.startswith("SELECT evaluations")]) == 14


def test_the_same_commit_again_changes_nothing_but_a_count(store: Store) -> None:
    records = [a_record(seconds=i, trace_id=f"{i:032x}") for i in range(4)]
    outcomes = [
        0.25,
        A_FAILURE,
        NOT_APPLICABLE,
        Score(value=1.0, passed=True, usage=Usage(prompt_tokens=7, cost_usd=0.5)),
    ]
    batch = (
        with_payloads(records),
        [an_evaluation(record, outcome) for record, outcome in zip(records, outcomes, strict=True)],
        [DeadLetter(dead_id="d1", reason="invalid", message="no output", payload=b"{}")],
    )
    store.commit(*batch)
    before = dump(store)
    assert store.commit(*batch) == Committed(inserted_records=0, inserted=0, duplicates=4, recovered=0)
    after = dump(store)
    # A letter that waits has the time of its latest failure.
    for rows in (before, after):
        rows["dead_letters"] = [letter[:6] for letter in rows["dead_letters"]]
    assert [*before.pop("counters"), ("duplicates", "", 4)] == sorted(
        after.pop("counters"), key=lambda row: row[0] == "duplicates"
    )
    assert before == after
    assert store.counts().duplicates == 4
    assert_sums_true(store)


def test_only_what_is_new_of_an_overlapping_commit_counts(store: Store) -> None:
    old, new = a_record("old"), a_record("new")
    commit(store, (old, 0.0))
    committed = store.commit(
        with_payloads([old, new]),
        [an_evaluation(old, 1.0), an_evaluation(old, 1.0, "safety"), an_evaluation(new, 0.5)],
    )
    assert committed == Committed(inserted_records=1, inserted=2, duplicates=1, recovered=0)
    (relevance,) = [rollup for rollup in hour(store) if rollup.rubric == "relevance"]
    assert (relevance.n, relevance.sum_wy) == (2, 0.5), "the first outcome stands"
    assert store.counts().duplicates == 0, "both deliveries brought something new"
    assert_sums_true(store)
    assert_conserved(store)


def test_repeats_within_one_commit_count_once(store: Store) -> None:
    record = a_record("r")
    committed = store.commit(
        with_payloads([record, record]),
        [an_evaluation(record, 0.5), an_evaluation(record, 0.75), an_evaluation(record, 0.5)],
    )
    assert committed == Committed(inserted_records=1, inserted=1, duplicates=2, recovered=0)
    (rollup,) = hour(store)
    assert (rollup.n, rollup.sum_wy) == (1, 0.5)


def test_a_record_is_received_once_and_callers_report_their_duplicates(store: Store) -> None:
    store.commit(with_payloads([a_record("a"), a_record("b", app="desk")]), [])
    store.commit(with_payloads([a_record("a")]), [], duplicates=3)
    counts = store.counts()
    assert counts.received == {"shop": 1, "desk": 1}
    # "a" came again without an evaluation: a retry that failed again is no duplicate.
    assert counts.duplicates == 3


def test_an_evaluation_needs_its_record(store: Store) -> None:
    with pytest.raises(ValueError, match="'elsewhere', which is not in the commit"):
        store.commit(with_payloads([a_record()]), [an_evaluation("elsewhere", 1.0)])
    with pytest.raises(ValueError, match="without their records"):
        store.commit([], [an_evaluation("elsewhere", 1.0)])
    assert store.commit([], []) == Committed(inserted_records=0, inserted=0, duplicates=0, recovered=0)
    assert store.counts().received == {}


def test_a_commit_that_fails_leaves_nothing_but_its_labels(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["tier"])
    with connected(store) as connection:
        connection.execute(sa.text("ALTER TABLE counters RENAME TO elsewhere"))
    before = _dump_some(store)
    with pytest.raises(StoreError):
        commit(store, (a_record(cohort={"tier": "gold"}), 0.5))
    assert _dump_some(store) == before
    with connected(store) as connection:
        connection.execute(sa.text("ALTER TABLE elsewhere RENAME TO counters"))
    commit(open_store(cohort_labels=["tier"]), (a_record(cohort={"tier": "none"}), 0.5))
    commit(store, (a_record(cohort={"tier": "gold"}), 0.5))
    assert sorted(rollup.cohort["tier"] for rollup in hour(store)) == ["gold", "none"]
    assert_sums_true(store)


def _dump_some(store: Store) -> dict[str, int]:
    with connected(store) as connection:
        return {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in tables.metadata.sorted_tables
            if table.name not in {"counters", "series", "instruments"}
        }


def test_a_commit_costs_few_statements(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["tier"])
    rubrics = ("faithfulness", "relevance", "safety", "completeness")

    def batch() -> tuple[list, list]:
        records = [a_record(trace_id=uuid.uuid4().hex, cohort={"tier": str(i % 3)}) for i in range(25)]
        return with_payloads(records), [an_evaluation(record, 0.5, rubric) for record in records for rubric in rubrics]

    store.commit(*batch())
    with statements(store) as seen:
        store.commit(*batch())
    sent = [statement for statement in seen if not statement.startswith("BEGIN")]
    # records, payloads, evaluations, rollups, totals, exemplars, counters; signal_rollups, input_bins, signal_versions
    assert len(sent) == 10, sent


# -- replay


def test_a_verdict_takes_the_place_of_a_stored_failure_on_replay(store: Store) -> None:
    scored, skipped, stuck = (a_record(name, seconds=60 * i, probability=0.5) for i, name in enumerate("abc"))
    commit(store, (scored, A_FAILURE), (skipped, A_FAILURE), (stuck, Failure(kind="unavailable", message="502")))
    committed = commit(store, (scored, 1.0), (skipped, NOT_APPLICABLE), (stuck, A_FAILURE), replay=True)
    assert committed == Committed(inserted_records=0, inserted=0, duplicates=1, recovered=2)
    assert [known.outcome for _, known in sorted(store.existing("abc").items(), key=lambda item: item[1].outcome)] == [
        "failed",
        "not_applicable",
        "scored",
    ]
    (total,) = store.totals()
    assert (total.scored, total.failed, total.not_applicable, total.recovered) == (1, 3, 1, 2)
    assert total.failures == {"timeout": 2, "unavailable": 1}
    assert total.reasons == {"missing_contexts": 1}
    assert_sums_true(store)
    assert_conserved(store)
    # What was recovered stays as it is.
    again = commit(store, (scored, 0.0), (skipped, 0.0), replay=True)
    assert again == Committed(inserted_records=0, inserted=0, duplicates=2, recovered=0)
    assert_sums_true(store)


def test_without_replay_the_failure_stands(store: Store) -> None:
    record = a_record("a")
    commit(store, (record, A_FAILURE))
    assert commit(store, (record, 1.0)) == Committed(inserted_records=0, inserted=0, duplicates=1, recovered=0)
    assert [known.outcome for known in store.existing(["a"]).values()] == ["failed"]


def test_a_recovered_score_counts_where_the_failure_did(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["tier"])
    commit(store, (a_record("a", seconds=30, probability=0.25, cohort={"tier": "gold"}), A_FAILURE))
    changed = a_record("a", seconds=7200, probability=1.0, cohort={"tier": "free"})
    commit(store, (changed, 1.0), replay=True)
    (rollup,) = store.rollups(EPOCH, EPOCH + 60)
    assert (rollup.cohort, rollup.n, rollup.sum_w, rollup.failed, rollup.recovered) == ({"tier": "gold"}, 1, 4.0, 1, 1)
    assert store.rollups(EPOCH + 7200, EPOCH + 10800) == []
    assert_sums_true(store)


def test_a_replay_of_something_new_is_just_new(store: Store) -> None:
    assert commit(store, (a_record(), 0.5), replay=True) == Committed(
        inserted_records=1, inserted=1, duplicates=0, recovered=0
    )


# -- sums


def test_rollups_add_up_weights_and_values(store: Store) -> None:
    # P3 of the reference values: f = 1, 0 with w = 1, 3.
    records = [a_record(seconds=5, probability=1.0), a_record(seconds=59.999, probability=1 / 3)]
    commit(store, (records[0], Score(value=1.0, passed=True)), (records[1], Score(value=0.0, passed=False)))
    (rollup,) = hour(store)
    sums = [rollup.n, rollup.sum_w, rollup.sum_w2, rollup.sum_wy, rollup.sum_w2y, rollup.sum_w2y2]
    assert sums == pytest.approx([2, 4, 10, 1, 1, 1])
    assert [rollup.passes, rollup.sum_wp, rollup.sum_w2p] == [1, 1, 1]
    assert (rollup.app, rollup.rubric, rollup.rubric_version, rollup.judge) == (
        "shop",
        "relevance",
        "1-0a1b2c3d",
        "lexical",
    )
    assert rollup.scored == 2
    assert all(isinstance(value, int) for value in (rollup.n, rollup.passes, rollup.failed, rollup.recovered))


def test_windows_are_cut_at_the_minute(store: Store) -> None:
    commit(store, *((a_record(seconds=seconds), 1.0) for seconds in (-0.001, 0, 59.999, 60, 3599, 3600, 3 * 3600)))
    assert [rollup.n for rollup in store.rollups(EPOCH, EPOCH + 60)] == [2]
    assert [rollup.n for rollup in store.rollups(EPOCH, EPOCH + 3600)] == [4]
    assert [rollup.n for rollup in store.rollups(EPOCH - 60, EPOCH + 3660)] == [6]
    assert [rollup.n for rollup in store.rollups(EPOCH - 3600, EPOCH + 4 * 3600)] == [7]
    assert store.rollups(EPOCH + 120, EPOCH + 180) == []
    assert store.rollups(EPOCH, EPOCH) == []
    with pytest.raises(ValueError, match="whole minutes"):
        store.rollups(EPOCH + 1, EPOCH + 61)


def test_any_window_is_the_sum_of_its_minutes(store: Store) -> None:
    moments = [seconds * 97 % 14_400 for seconds in range(400)]
    commit(store, *((a_record(seconds=moment), (moment % 5) / 4) for moment in moments))
    for start, end in ((0, 240), (7, 61), (59, 121), (60, 120), (61, 179), (0, 7), (33, 200)):
        expected = [(m % 5) / 4 for m in moments if start * 60 <= m < end * 60]
        (rollup,) = store.rollups(EPOCH + start * 60, EPOCH + end * 60)
        assert (rollup.n, rollup.sum_wy) == (len(expected), pytest.approx(sum(expected))), (start, end)


def test_old_interactions_land_in_their_own_minutes(store: Store) -> None:
    old = Record(record_id="old", timestamp=datetime(1969, 12, 31, 23, 59, 30, tzinfo=UTC))
    commit(store, (old, 0.5))
    assert [rollup.n for rollup in store.rollups(-60, 0)] == [1]
    assert store.rollups(0, 60) == []


def test_totals_say_everything_that_was_counted(store: Store) -> None:
    started = time.time()
    usage = Usage(prompt_tokens=100, completion_tokens=20, cost_usd=0.25)
    outcomes = [Score(value=value, passed=value >= 0.5, usage=usage) for value in (0.0, 0.05, 0.1, 0.3, 0.95, 1.0)]
    records = [a_record(seconds=i, trace_id=f"{i:032x}") for i in range(8)]
    commit(store, *zip(records, [*outcomes, A_FAILURE, NOT_APPLICABLE], strict=True))
    (total,) = store.totals()
    assert (total.scored, total.failed, total.not_applicable, total.recovered) == (6, 1, 1, 0)
    assert total.value_sum == pytest.approx(2.4)
    assert total.buckets == (1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 2)
    assert len(total.buckets) == len(SCORE_BOUNDS)
    assert total.failures == {"timeout": 1}
    assert total.reasons == {"missing_contexts": 1}
    assert total.usage == Usage(prompt_tokens=600, completion_tokens=120, cost_usd=1.5)
    assert started <= total.last_scored_at <= time.time()
    assert {bucket: (shown.trace_id[-1], shown.value) for bucket, shown in total.exemplars.items()} == {
        0: ("0", 0.0),
        1: ("2", 0.1),
        3: ("3", 0.3),
        10: ("5", 1.0),
    }
    assert total.exemplars[10].timestamp == EPOCH + 5


def test_what_is_unknown_stays_unknown(store: Store) -> None:
    commit(store, (a_record(), A_FAILURE))
    (total,) = store.totals()
    assert total.last_scored_at is None, "nothing was scored yet"
    assert total.usage == Usage(), "unknown is not 0"
    assert total.exemplars == {}
    commit(store, (a_record(), Score(value=1.0, passed=True, usage=Usage(prompt_tokens=5))))
    commit(store, (a_record(), 1.0))
    (total,) = store.totals()
    assert total.usage == Usage(prompt_tokens=5)
    assert total.last_scored_at is not None


def test_the_latest_trace_of_a_bucket_is_shown(store: Store) -> None:
    for name, seconds in (("a", 60), ("b", 120), ("c", 0)):
        commit(
            store, (a_record(trace_id=name * 32, seconds=seconds), 0.5), (a_record(trace_id="d" * 32, seconds=-1), 0.5)
        )
    commit(store, (a_record(seconds=600), 0.5))
    (total,) = store.totals()
    assert total.exemplars[5].trace_id == "b" * 32


def test_two_judges_and_two_revisions_are_two_series(store: Store) -> None:
    record = a_record()
    store.commit(
        with_payloads([record]),
        [
            an_evaluation(record, 0.0),
            an_evaluation(record, 0.5, judge="openai:m", judge_fingerprint="a" * 64),
            an_evaluation(record, 1.0, rubric_version="2-ffffffff", rubric_hash="f" * 64),
        ],
    )
    assert {(total.judge, total.rubric_version, total.value_sum) for total in store.totals()} == {
        ("lexical", "1-0a1b2c3d", 0.0),
        ("openai:m", "1-0a1b2c3d", 0.5),
        ("lexical", "2-ffffffff", 1.0),
    }
    # Another temperature is another instrument under the same label.
    store.commit(with_payloads([record]), [an_evaluation(record, 0.5, judge="openai:m", judge_fingerprint="b" * 64)])
    assert [total.scored for total in store.totals() if total.judge == "openai:m"] == [2]
    # Sums are kept by instrument, for the calibrations that hold for one only.
    assert [(rollup.judge_fingerprint[0], rollup.n) for rollup in hour(store) if rollup.judge == "openai:m"] == [
        ("a", 1),
        ("b", 1),
    ]


def test_a_scrape_reads_sums_only(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["tier"])
    commit(store, (a_record(cohort={"tier": "gold"}, trace_id="a" * 32), 0.5), (a_record(), A_FAILURE))
    reader = open_store(cohort_labels=["tier"])
    with statements(reader) as seen:
        for window in (300, 3600, 86_400):
            reader.rollups(EPOCH + 3600 - window, EPOCH + 3660)
        reader.totals()
        reader.counts()
        reader.ping()
    assert len(seen) > 8
    for statement in seen:
        words = set(statement.lower().replace("(", " ").replace('"', " ").replace(".", " ").split())
        assert not words & {"evaluations", "records", "payloads", "dead_letters"}, statement
        assert not words & {"insert", "update", "delete"}, statement


# -- label sets


def test_labels_come_from_the_record_and_its_cohort(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["route", "tier", "model", "prompt_version"])
    full = a_record(
        route="chat", model="m-1", prompt_version="p7", cohort={"tier": "gold", "route": "ignored", "city": "Oslo"}
    )
    commit(store, (full, 0.5), (a_record(app="desk", cohort={"model": "from-cohort"}), 0.5))
    assert [(rollup.app, dict(rollup.cohort)) for rollup in hour(store)] == [
        ("desk", {"model": "from-cohort", "prompt_version": "", "route": "", "tier": ""}),
        ("shop", {"model": "m-1", "prompt_version": "p7", "route": "chat", "tier": "gold"}),
    ]


def test_label_values_are_short_and_printable(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["tier"])
    values = ["x" * 65, "x" * 80, "a\nb\tc\x00d\x1b[31m\u2028\u202e", "caf\u00e9 \U0001f600", "half \ud83d"]
    commit(store, *((a_record(cohort={"tier": value}), 0.5) for value in values))
    found = {rollup.cohort["tier"]: rollup.n for rollup in hour(store)}
    assert found == {
        "x" * 64: 2,
        "a\ufffdb\ufffdc\ufffdd\ufffd[31m\ufffd\ufffd": 1,
        "caf\u00e9 \U0001f600": 1,
        "half \ufffd": 1,
    }


def test_the_number_of_label_sets_is_bounded(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["user"], max_series=10)
    for first in range(0, 100, 25):
        commit(store, *((a_record(cohort={"user": f"u{i}"}), 1.0) for i in range(first, first + 25)))
    commit(store, *((a_record(app=f"app{i}", cohort={"user": "u"}), 1.0) for i in range(25)))
    counts = store.counts()
    assert counts.series == 10
    assert counts.series_overflow == 92 + 25
    found = {(rollup.app, rollup.cohort["user"]): rollup.n for rollup in hour(store)}
    assert len(found) == 10
    assert found["shop", OTHER] == 92
    assert found[OTHER, OTHER] == 25
    assert sum(found.values()) == 125, "nobody is lost"
    assert counts.received == {"shop": 100, OTHER: 25}
    # Who has a place keeps it.
    commit(store, (a_record(cohort={"user": "u0"}), 1.0))
    assert store.counts().series_overflow == 92 + 25
    assert_sums_true(store)


def test_an_app_finds_a_place_beside_a_flood_of_cohorts(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["user"], max_series=100)
    for first in range(0, 200, 50):
        commit(store, *((a_record(cohort={"user": f"u{i}"}), 1.0) for i in range(first, first + 50)))
    commit(store, (a_record(app="late", cohort={"user": "u"}), 1.0))
    assert {(total.app, total.cohort["user"]) for total in store.totals()} >= {("shop", OTHER), ("late", OTHER)}
    assert store.counts().series == 92


@pytest.mark.parametrize("labels", [[], ["user"]])
@pytest.mark.parametrize("cap", [2, 3])
def test_the_smallest_caps(open_store: Callable[..., Store], labels: list[str], cap: int) -> None:
    store = open_store(cohort_labels=labels, max_series=cap)
    commit(store, *((a_record(app=app, cohort={"user": app}), 1.0) for app in "abcdefgh"))
    assert store.counts().series == cap
    assert sum(total.scored for total in store.totals()) == 8
    assert [total.scored for total in store.totals() if total.app == OTHER] == [8 - (cap - 1)]
    with pytest.raises(ValueError, match="max_series 1"):
        open_store(max_series=1)


def test_other_is_a_value_like_any_other_until_the_cap_is_reached(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["user"], max_series=20)
    for app in (OTHER, "shop"):
        commit(store, (a_record(app=app, cohort={"user": OTHER}), 1.0))
    for app in ("shop", "desk"):
        commit(store, (a_record(app=app, cohort={"user": "u1"}), 1.0))
    assert {(total.app, total.cohort["user"]) for total in store.totals()} == {
        (OTHER, OTHER),
        ("shop", OTHER),
        ("shop", "u1"),
        ("desk", "u1"),
    }
    assert store.counts().series_overflow == 0
    without_labels = open_store(max_series=20)
    for app in (OTHER, "bank"):
        commit(without_labels, (a_record(app=app), 1.0))
    assert "bank" in {total.app for total in without_labels.totals()}


def test_overflow_is_counted_once_per_record(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["user"], max_series=2)
    commit(store, (a_record("a", cohort={"user": "x"}), 1.0))
    for rubric in ("relevance", "safety"):
        commit(store, (a_record("a", cohort={"user": "x"}), 1.0), rubric=rubric)
    assert store.counts().series_overflow == 1


def test_what_is_over_the_cap_costs_no_statement(open_store: Callable[..., Store]) -> None:
    writer = open_store(cohort_labels=["user"], max_series=10)
    commit(writer, *((a_record(cohort={"user": f"u{i}"}), 1.0) for i in range(50)))
    store = open_store(cohort_labels=["user"], max_series=10)
    commit(store, (a_record(cohort={"user": "first look"}), 1.0))
    with statements(store) as seen:
        commit(store, *((a_record(cohort={"user": f"new{i}"}), 1.0) for i in range(50)))
    assert not [statement for statement in seen if "series " in statement.split("ON CONFLICT")[0]], seen


def test_sums_of_other_labels_are_shown_under_the_declared_ones(open_store: Callable[..., Store]) -> None:
    by_tier = open_store(cohort_labels=["tier"])
    commit(
        by_tier,
        *((a_record(cohort={"tier": tier, "city": "Oslo"}, trace_id=tier * 8), 0.5) for tier in ("gold", "free")),
    )
    commit(by_tier, (a_record(cohort={"tier": "gold"}), A_FAILURE))
    by_city = open_store(cohort_labels=["city"])
    commit(by_city, (a_record(cohort={"tier": "gold", "city": "Oslo"}), 1.0))
    assert {(total.cohort["city"], total.scored, total.failed) for total in by_city.totals()} == {
        ("", 2, 1),
        ("Oslo", 1, 0),
    }
    assert {(rollup.cohort["city"], rollup.n) for rollup in hour(by_city)} == {("", 2), ("Oslo", 1)}
    (whole,) = open_store().totals()
    assert (whole.cohort, whole.scored, whole.failures) == ({}, 3, {"timeout": 1})
    assert whole.value_sum == 2.0
    assert whole.buckets[5] == 2
    (whole_hour,) = hour(open_store())
    assert (whole_hour.n, whole_hour.sum_wy, whole_hour.failed) == (3, 2.0, 1)


# -- what a database refuses


@pytest.mark.parametrize(
    "changes",
    [
        {"value": float("nan")},
        {"value": float("inf")},
        {"value": -0.001},
        {"value": 1.001},
        {"value": None},
        {"passed": None},
        {"outcome": "failed"},
        {"outcome": "failed", "failure_kind": "timeout"},
        {"outcome": "not_applicable", "reason": "no_claims"},
        {"outcome": "failed", "value": None, "passed": None},
        {"failure_kind": "timeout"},
        {"outcome": "great"},
        {"weight": 0.5},
        {"weight": float("nan")},
        {"weight": float("inf")},
    ],
)
def test_the_schema_refuses_a_score_that_is_none(store: Store, changes: dict[str, object]) -> None:
    commit(store, (a_record("a"), 0.5))
    with connected(store) as connection:
        row = dict(connection.execute(sa.select(tables.evaluations)).mappings().one())
        row["evaluation_id"] = uuid.uuid4()
        connection.execute(tables.evaluations.insert(), row)
    row["evaluation_id"] = uuid.uuid4()
    with pytest.raises(exc.IntegrityError), connected(store) as connection:
        connection.execute(tables.evaluations.insert(), row | changes)


@pytest.mark.parametrize("probability", [0.0, -0.5, 1.5, float("nan")])
def test_the_schema_refuses_a_probability_that_is_none(store: Store, probability: float) -> None:
    commit(store, (a_record("a"), 0.5))
    with pytest.raises(exc.IntegrityError), connected(store) as connection:
        connection.execute(tables.records.update(), {"probability": probability})


def test_texts_that_no_database_holds_are_stored_all_the_same(store: Store) -> None:
    nasty = "NUL \x00, half \ud83d, whole \U0001f600"
    clean = "NUL \ufffd, half \ufffd, whole \U0001f600"
    record = a_record(
        f"id {nasty}", input=nasty, route=nasty, trace_id=nasty, cohort={nasty: nasty}, app=f"app {nasty}"
    )
    score = Score(
        value=0.5,
        passed=True,
        raw=float("nan"),
        label=nasty,
        explanation=nasty,
        details={nasty: [nasty, float("inf"), {"deep": (nasty, 1.5)}], "fine": {"a": 1}},
        usage=Usage(prompt_tokens=10**30, completion_tokens=3, cost_usd=float("nan")),
        latency_seconds=float("inf"),
        judge_model=nasty,
    )
    batch = (
        [(record, record.to_json())],
        [
            an_evaluation(record, score),
            an_evaluation(record, Failure(kind="unparsable", message=nasty), "safety"),
            an_evaluation(record, NotApplicable(reason=nasty), "tone", judge=nasty),
        ],
        [DeadLetter(dead_id="d", reason=nasty, message=nasty, payload=b"\x00\xff\xfe", record_id=nasty)],
    )
    assert store.commit(*batch) == Committed(inserted_records=1, inserted=3, duplicates=0, recovered=0)
    assert store.commit(*batch).duplicates == 3
    assert len(store.existing([record.record_id])) == 3
    (finding,) = store.worst(HOUR_START)
    outcome = finding.evaluation.outcome
    assert (finding.record_id, finding.app, finding.trace_id) == (f"id {clean}", f"app {clean}", clean)
    assert outcome == Score(
        value=0.5,
        passed=True,
        label=clean,
        explanation=clean,
        details={clean: [clean, None, {"deep": [clean, 1.5]}], "fine": {"a": 1}},
        usage=Usage(completion_tokens=3),
        judge_model=clean,
    )
    assert store.dead_letter("d").payload == b"\x00\xff\xfe"
    assert_sums_true(store)


def test_what_the_database_refuses_for_good_is_told_from_a_database_that_is_away(store: Store) -> None:
    unfit = Failure(kind=None, message="a failure of no kind")  # type: ignore[arg-type]
    with pytest.raises(StoreDataError, match="kind_of_failure_only") as caught:
        commit(store, (a_record("a"), 0.5), (a_record("b"), unfit))
    assert not isinstance(caught.value, StoreError)
    assert store.counts().received == {}
    commit(store, (a_record("a"), 0.5))
    assert_sums_true(store)


@pytest.mark.parametrize("claimed", [2**63 - 1, 5 * 10**18, 2**40 + 1, -1])
def test_tokens_beyond_reason_are_unknown(store: Store, claimed: int) -> None:
    usage = Usage(prompt_tokens=claimed, completion_tokens=claimed, cost_usd=1.7e308 if claimed > 0 else -1.0)
    for _ in range(3):
        commit(store, (a_record(), Score(value=1.0, passed=True, usage=usage)), (a_record(), 0.5))
    commit(store, (a_record(), Score(value=1.0, passed=True, usage=Usage(prompt_tokens=2**40, cost_usd=2.0))))
    (total,) = store.totals()
    assert (total.scored, total.usage) == (7, Usage(prompt_tokens=2**40, cost_usd=2.0))
    assert_sums_true(store)


def test_a_total_that_is_full_stops_growing(store: Store) -> None:
    score = Score(value=1.0, passed=True, usage=Usage(prompt_tokens=7, completion_tokens=3))
    commit(store, (a_record(), score))
    with connected(store) as connection:
        connection.execute(sa.update(tables.totals).values(prompt_tokens=2**63 - 1))
    commit(store, (a_record(), score))
    (total,) = store.totals()
    assert (total.scored, total.usage) == (2, Usage(prompt_tokens=2**63 - 1, completion_tokens=6))


def test_extreme_numbers_stay_finite(store: Store) -> None:
    earliest = Record(record_id="first", timestamp=datetime.min.replace(tzinfo=UTC) + timedelta(days=2))
    offset = Record(record_id="before", timestamp=datetime.fromisoformat("0001-01-01T00:00:00+14:00"))
    rare = Record(record_id="rare", timestamp=HOUR_START, sampling=Sampling(probability=5e-324))
    store.commit(
        [(record, "{}") for record in (earliest, offset, rare)],
        [an_evaluation(record, 1) for record in (earliest, offset, rare)],
    )
    (rollup,) = hour(store)
    assert (rollup.sum_w, rollup.sum_w2) == (1e12, 1e24)
    assert_sums_true(store)


# -- what a person reads


def test_the_worst_scores_come_with_their_records(store: Store) -> None:
    records = [a_record(f"r{i}", seconds=60 * i, trace_id=f"{i:032x}") for i in range(5)]
    commit(store, *zip(records, [0.0, 0.25, 0.75, A_FAILURE, 0.5], strict=True))
    commit(store, (records[4], 0.0), rubric="safety")
    found = store.worst(HOUR_START + timedelta(minutes=1), limit=3)
    assert [(f.record_id, f.evaluation.rubric) for f in found] == [
        ("r4", "safety"),
        ("r1", "relevance"),
        ("r4", "relevance"),
    ]
    assert found[1].payload == records[1].to_json()
    assert found[1].timestamp == records[1].timestamp
    assert found[1].trace_id == records[1].trace_id
    assert found[1].evaluation == an_evaluation(records[1], 0.25)
    assert [f.record_id for f in store.worst(HOUR_START, "relevance")] == ["r0"]
    assert store.worst(HOUR_START, "unheard of") == []
    assert store.worst(HOUR_START + timedelta(hours=1)) == []


# -- dead letters


def a_letter(dead_id: str, reason: str = "invalid", **fields: object) -> DeadLetter:
    return DeadLetter(dead_id=dead_id, reason=reason, message="output: must be a string", payload=b"{", **fields)  # type: ignore[arg-type]


def test_a_dead_letter_is_kept_once_until_it_is_replayed(store: Store) -> None:
    store.commit([], [], [a_letter("abc1"), a_letter("abd2", "too_large"), a_letter("abc1")])
    store.commit([], [], [a_letter("abc1", attempts=2**40)])
    assert {letter.dead_id: letter.attempts for letter in store.dead_letters()} == {"abc1": 2**31 - 1, "abd2": 1}
    assert store.counts().dead_kept == {"invalid": 1, "too_large": 1}
    assert store.mark_replayed(["abc1", "abc1", "unknown"]) == 1
    assert store.mark_replayed(["abc1"]) == 0
    assert store.mark_replayed([]) == 0
    assert [letter.dead_id for letter in store.dead_letters()] == ["abd2"]
    assert {letter.dead_id for letter in store.dead_letters(include_replayed=True)} == {"abc1", "abd2"}
    assert store.dead_letter("abc1").replayed_at is not None
    counts = store.counts()
    assert (counts.dead_kept, counts.dead_total) == ({"invalid": 0, "too_large": 1}, {"invalid": 1, "too_large": 1})
    # It comes back dead.
    store.commit([], [], [a_letter("abc1", attempts=2)])
    assert store.dead_letter("abc1").replayed_at is None
    assert store.dead_letter("abc1").attempts == 2
    counts = store.counts()
    assert (counts.dead_kept, counts.dead_total) == ({"invalid": 1, "too_large": 1}, {"invalid": 2, "too_large": 1})


def test_a_dead_letter_that_fails_again_while_it_is_replayed_goes_on_waiting(store: Store) -> None:
    store.commit([], [], [a_letter("a"), a_letter("b"), a_letter("c")])
    read = {letter.dead_id: letter.created_at for letter in store.dead_letters()}
    store.commit([], [], [a_letter("a", attempts=3)])
    del read["c"]
    assert store.mark_replayed("abc", as_read=read) == 2, "b as it was read, and c whatever happened"
    (waiting,) = store.dead_letters()
    assert (waiting.dead_id, waiting.attempts) == ("a", 3)
    counts = store.counts()
    assert (counts.dead_kept, counts.dead_total) == ({"invalid": 1}, {"invalid": 3})
    assert store.mark_replayed(["a"], as_read={"a": waiting.created_at}) == 1
    assert store.counts().dead_kept == {"invalid": 0}


def test_dead_letters_are_listed_newest_first(store: Store) -> None:
    for index in range(4):
        store.commit([], [], [a_letter(f"d{index}", "invalid" if index else "crashed", record_id=f"r{index}")])
    assert [letter.dead_id for letter in store.dead_letters(limit=3)] == ["d3", "d2", "d1"]
    (only,) = store.dead_letters(reason="crashed")
    assert (only.dead_id, only.record_id, only.payload, only.message) == ("d0", "r0", b"{", "output: must be a string")
    assert abs(only.created_at - now()) < timedelta(minutes=1)
    assert store.dead_letters(reason="crashed", payloads=False)[0].payload == b""


def test_a_dead_letter_is_found_by_the_beginning_of_its_id(store: Store) -> None:
    store.commit([], [], [a_letter("abc1"), a_letter("abd2"), a_letter("100%_")])
    assert store.dead_letter("abc").dead_id == "abc1"
    assert store.dead_letter("100%").dead_id == "100%_"
    for vague, message in (
        ("ab", "more than one"),
        ("x", "no dead letter"),
        ("_", "no dead letter"),
        ("%", "no dead letter"),
    ):
        with pytest.raises(ConfigError, match=message):
            store.dead_letter(vague)


def test_a_whole_id_is_found_though_another_begins_with_it(store: Store) -> None:
    store.commit([], [], [a_letter("abc", record_id="short"), a_letter("abcd", record_id="long")])
    assert [store.dead_letter(dead_id).record_id for dead_id in ("abc", "abcd")] == ["short", "long"]
    with pytest.raises(ConfigError, match="more than one"):
        store.dead_letter("ab")


def test_any_bytes_are_kept(store: Store) -> None:
    payload = bytes(range(256)) * 4000
    store.commit([], [], [DeadLetter(dead_id="big", reason="undecodable", message="not UTF-8", payload=payload)])
    assert store.dead_letter("big").payload == payload


# -- retention


def age(store: Store, table: sa.Table, days: float, *, column: str = "created_at") -> None:
    with connected(store) as connection:
        for row in connection.execute(sa.select(table.c[column], *table.primary_key)).all():
            older = row[0] - timedelta(days=days) if isinstance(row[0], datetime) else row[0] - days * 86_400
            key = [column_ == value for column_, value in zip(table.primary_key, row[1:], strict=True)]
            connection.execute(table.update().where(*key), {column: older})


KEEP = {"payload_days": 14, "score_days": 90, "rollup_days": 400, "dead_days": 30}


def test_nothing_young_is_purged(store: Store) -> None:
    recent = Record(record_id="r", timestamp=now() - timedelta(minutes=5))
    commit(store, (recent, 0.5))
    store.commit([], [], [a_letter("d")])
    before = dump(store)
    assert not any(store.purge(**KEEP).values())
    assert dump(store) == before


def test_texts_go_first(store: Store) -> None:
    commit(store, (a_record("a"), 0.5))
    age(store, tables.payloads, 15)
    no_sums = dict.fromkeys(("rollups", "signal_rollups", "cost_rollups", "input_bins"), 0)
    assert store.purge(**KEEP) | no_sums == {
        **no_sums,
        "payloads": 1,
        "explanations": 1,
        "records": 0,
        "evaluations": 0,
        "rollups": 0,
        "totals": 0,
        "dead_letters": 0,
    }
    (finding,) = store.worst(HOUR_START)
    assert finding.payload is None
    # A repeat of it is still known as one.
    commit(store, (a_record("a"), 1.0))
    assert store.totals()[0].scored == 1


def test_records_go_with_their_scores_and_the_sums_stay(store: Store) -> None:
    commit(store, *((a_record(f"old{i}"), 0.5) for i in range(3)))
    age(store, tables.records, 91)
    commit(store, (a_record("young"), 0.5))
    gone = store.purge(**KEEP)
    assert (gone["records"], gone["evaluations"], gone["payloads"]) == (3, 3, 3)
    assert len(store.existing(["old0", "old1", "old2", "young"])) == 1
    assert store.totals()[0].scored == 4
    assert store.counts().received == {"shop": 4}


def test_many_are_purged_a_little_at_a_time(store: Store) -> None:
    for first in range(0, 1300, 100):
        commit(store, *((a_record(f"r{first + i}", seconds=first + i), 0.5) for i in range(100)))
    age_all = sa.update(tables.records).values(created_at=now() - timedelta(days=365))
    with connected(store) as connection:
        connection.execute(age_all)
    with statements(store) as seen:
        gone = store.purge(payload_days=400, score_days=90, rollup_days=4000, dead_days=30)
    assert (gone["records"], gone["evaluations"]) == (1300, 1300)
    assert sum(statement.startswith("DELETE FROM records") for statement in seen) == 3, "500, 500 and 300"


def test_minutes_go_after_two_days_and_hours_later(store: Store) -> None:
    moment = now().replace(minute=30, second=0, microsecond=0)
    hour_start = int(moment.timestamp()) - 1800
    ages = (0, 1, 3, 399, 402)
    commit(store, *((Record(record_id=f"r{days}", timestamp=moment - timedelta(days=days)), 1.0) for days in ages))
    assert store.purge(**KEEP)["rollups"] == 3 + 1

    def scored(days: int, start: int, end: int) -> int:
        first = hour_start - days * 86_400
        return sum(rollup.n for rollup in store.rollups(first + start, first + end))

    assert [scored(days, 1800, 1860) for days in ages] == [1, 1, 0, 0, 0]
    assert [scored(days, 0, 3600) for days in ages] == [1, 1, 1, 1, 0]


def test_totals_out_of_use_go_and_start_again(store: Store) -> None:
    commit(store, (a_record(trace_id="a" * 32), 0.5), (a_record(), A_FAILURE))
    age(store, tables.totals, 401, column="updated_at")
    commit(store, (a_record(), 0.5), rubric="safety")
    assert store.purge(**KEEP)["totals"] == 1
    (kept,) = store.totals()
    assert kept.rubric == "safety"
    commit(store, (a_record(), 1.0))
    (again,) = [total for total in store.totals() if total.rubric == "relevance"]
    assert (again.scored, again.failures, again.exemplars) == (1, {}, {})


def test_dead_letters_go_and_are_counted_off(store: Store) -> None:
    store.commit([], [], [a_letter("waits"), a_letter("replayed"), a_letter("other", "crashed")])
    store.mark_replayed(["replayed"])
    age(store, tables.dead_letters, 31)
    store.commit([], [], [a_letter("young")])
    assert store.purge(**KEEP)["dead_letters"] == 3
    assert [letter.dead_id for letter in store.dead_letters(include_replayed=True)] == ["young"]
    counts = store.counts()
    assert counts.dead_kept == {"invalid": 1, "crashed": 0}
    assert counts.dead_total == {"invalid": 3, "crashed": 1}


def test_zero_days_keep_nothing(store: Store) -> None:
    commit(store, (a_record(), 0.5))
    store.commit([], [], [a_letter("d")])
    store.purge(payload_days=0, score_days=0, rollup_days=0, dead_days=0)
    left = {name for name, rows in dump(store).items() if rows}
    assert left == {"series", "instruments", "counters", "schema_support"}
    commit(store, (a_record(), 0.5))
    assert_sums_true(store)


# -- life


def test_a_closed_store_opens_again(store: Store) -> None:
    commit(store, (a_record(), 0.5))
    store.close()
    assert store.counts().received == {"shop": 1}
    store.check()


def test_a_database_that_was_made_anew_is_noticed(store: Store) -> None:
    commit(store, (a_record(), 0.5))
    with connected(store) as connection:
        for table in reversed(tables.metadata.sorted_tables):
            connection.execute(table.delete())
    with pytest.raises(StoreError):
        commit(store, (a_record("a"), 0.5))
    assert commit(store, (a_record("a"), 0.5)) == Committed(inserted_records=1, inserted=1, duplicates=0, recovered=0)
    assert_sums_true(store)


def test_another_process_sees_what_was_committed(open_store: Callable[..., Store]) -> None:
    writer, reader = open_store(), open_store()
    assert reader.totals() == []
    for index in range(1, 4):
        commit(writer, (a_record(app=f"app{index}"), 0.5))
        assert len(reader.totals()) == index
        assert len(hour(reader)) == index
