"""Calibrations, rubric versions and label requests: every test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from alembic import command

from assay.errors import StoreDataError, StoreError
from assay.store import LabelRequest, RubricVersion, Store, StoredCalibration, _migrate
from assay.store import _tables as tables
from stores import A_FAILURE, HOUR_START, a_record, an_evaluation, commit, connected, with_payloads

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HASH, OTHER_HASH = "a" * 64, "b" * 64
JUDGE, OTHER_JUDGE = "1" * 64, "2" * 64


# -- calibrations


def save(store: Store, calibration_id: str, *, body: str | None = None, **fields: object) -> None:
    """Save something with the attributes of a Calibration; the store looks at nothing else."""
    known = {
        "calibration_id": calibration_id,
        "rubric": "relevance",
        "rubric_version": "1-aaaaaaaa",
        "rubric_hash": HASH,
        "judge": "lexical",
        "judge_fingerprint": JUDGE,
        "created_at": NOON,
        "to_json": lambda: json.dumps({"id": calibration_id}) if body is None else body,
    }
    store.save_calibration(SimpleNamespace(**(known | fields)))  # type: ignore[arg-type]


def ids(store: Store, rubric: str | None = None) -> list[str]:
    return [calibration.calibration_id for calibration in store.calibrations(rubric)]


def test_a_calibration_comes_back_as_it_was_saved(store: Store) -> None:
    assert store.calibrations() == []
    save(store, "c1", created_at=NOON.astimezone())
    assert store.calibrations() == [
        StoredCalibration(
            calibration_id="c1",
            rubric="relevance",
            rubric_version="1-aaaaaaaa",
            rubric_hash=HASH,
            judge="lexical",
            judge_fingerprint=JUDGE,
            created_at=NOON,
            body='{"id": "c1"}',
        )
    ]


def test_the_latest_of_each_rubric_hash_and_judge_counts(store: Store) -> None:
    save(store, "first")
    save(store, "second")
    save(store, "of another question", rubric_hash=OTHER_HASH)
    save(store, "by another judge", judge_fingerprint=OTHER_JUDGE)
    save(store, "of another rubric", rubric="safety", rubric_hash="c" * 64)
    assert set(ids(store)) == {"second", "of another question", "by another judge", "of another rubric"}
    assert ids(store, "safety") == ["of another rubric"]


def test_one_that_is_saved_again_is_the_latest_again(store: Store) -> None:
    save(store, "old")
    save(store, "new", created_at=NOON + timedelta(days=1))
    assert ids(store) == ["new"]
    # Someone found that the new labels were worse, and ran it on the old ones again.
    save(store, "old", body="another body under the same id is not taken", created_at=NOON + timedelta(days=9))
    (latest,) = store.calibrations()
    assert (latest.calibration_id, latest.body, latest.created_at) == ("old", '{"id": "old"}', NOON)


def test_bodies_can_be_left_out_and_read_later(store: Store) -> None:
    save(store, "c1")
    save(store, "c2", rubric_hash=OTHER_HASH)
    assert [calibration.body for calibration in store.calibrations(bodies=False)] == ["", ""]
    assert store.calibration_bodies(["c2", "unknown"]) == {"c2": '{"id": "c2"}'}
    assert store.calibration_bodies([]) == {}


def test_a_stale_calibration_stays_so_when_it_is_saved_again(store: Store) -> None:
    save(store, "c1")
    assert store.mark_calibration_stale("c1", "labels less predictions: +6 points, outside ±3 points")
    assert not store.mark_calibration_stale("c1", "again"), "the first audit's reason stands"
    assert not store.mark_calibration_stale("unknown", "why")
    save(store, "c1")
    (calibration,) = store.calibrations()
    assert (calibration.state, calibration.reason) == (
        "stale",
        "labels less predictions: +6 points, outside ±3 points",
    )
    save(store, "c2")
    assert [(c.calibration_id, c.state, c.reason) for c in store.calibrations()] == [("c2", "active", None)]


def test_a_body_that_no_database_holds_is_kept_as_the_same_json(store: Store) -> None:
    meant = {"stratum": "half a character: \ud83d"}
    save(store, "c1", body=json.dumps(meant, ensure_ascii=False))
    assert json.loads(store.calibrations()[0].body) == meant


def test_a_database_of_the_first_revision_says_what_to_do(open_store: Callable[[], Store]) -> None:
    store = open_store()
    store.upgrade()
    to_revision(store, "0001")
    with pytest.raises(StoreError, match="run `assay db upgrade`"):
        store.calibrations()
    with pytest.raises(StoreError, match="of an older assay: run `assay db upgrade`"):
        store.check()


# -- rubric versions


def version(name: str = "v1", state: str = "active", **fields: str) -> RubricVersion:
    return RubricVersion(
        **(
            {
                "rubric": "relevance",
                "rubric_version": name,
                "rubric_hash": name * 8,
                "judge": "lexical",
                "judge_fingerprint": JUDGE,
                "body": "{}",
                "state": state,
                "reason": "because",
            }
            | fields
        )  # type: ignore[arg-type]
    )


def states(store: Store, rubric: str = "relevance") -> dict[str, str]:
    return {found.rubric_version: found.state for found in store.rubric_versions(rubric)}


def test_a_version_comes_back_as_it_was_placed(store: Store) -> None:
    assert store.rubric_versions() == []
    store.place_rubric(version(body='{"name": "relevance"}', reason="its gate asks for nothing"))
    (found,) = store.rubric_versions()
    assert found.since is not None
    assert abs((found.since - datetime.now(UTC)).total_seconds()) < 60
    assert (found.body, found.state, found.reason) == (
        '{"name": "relevance"}',
        "active",
        "its gate asks for nothing",
    )


def test_a_waiting_version_leaves_the_active_one_and_an_active_one_takes_its_place(store: Store) -> None:
    store.place_rubric(version("v1"))
    store.place_rubric(version("s1", rubric="safety"))
    store.place_rubric(version("v2", "waiting"))
    assert states(store) == {"v1": "active", "v2": "waiting"}
    store.place_rubric(version("v2", "active"))
    assert states(store) == {"v1": "retired", "v2": "active"}
    assert states(store, "safety") == {"s1": "active"}, "another rubric is not touched"
    (retired,) = [found for found in store.rubric_versions() if found.state == "retired"]
    assert retired.reason == "v2 took its place"


def test_only_the_latest_of_those_that_wait_waits(store: Store) -> None:
    for name, state in (("v1", "active"), ("v2", "waiting"), ("v3", "waiting")):
        store.place_rubric(version(name, state))
    assert states(store) == {"v1": "active", "v2": "retired", "v3": "waiting"}
    # Back to the active one: nothing waits any more.
    store.place_rubric(version("v1"))
    assert states(store) == {"v1": "active", "v2": "retired", "v3": "retired"}


def test_one_question_to_two_judges_is_two_versions(store: Store) -> None:
    store.place_rubric(version("v1"))
    store.place_rubric(version("v1", "waiting", judge="openai:gpt-5-mini", judge_fingerprint=OTHER_JUDGE))
    assert {(found.judge, found.state) for found in store.rubric_versions()} == {
        ("lexical", "active"),
        ("openai:gpt-5-mini", "waiting"),
    }


def test_what_is_active_does_not_begin_to_wait(store: Store) -> None:
    # Two workers start together; one of them has not seen the calibration that the other has seen.
    store.place_rubric(version("v1"))
    (before,) = store.rubric_versions()
    store.place_rubric(version("v1", "waiting"))
    assert store.rubric_versions() == [before]


def test_a_state_keeps_the_moment_it_began_and_takes_what_else_is_new(store: Store) -> None:
    for state in ("waiting", "active"):
        store.place_rubric(version("v1", state, reason="first"))
        (before,) = store.rubric_versions()
        store.place_rubric(version("v1", state, reason="second", body='{"objective": 0.9}', rubric_hash="v1" * 8))
        (after,) = store.rubric_versions()
        assert (after.since, after.reason, after.body) == (before.since, "second", '{"objective": 0.9}')


def test_when_a_version_was_last_active_is_remembered(store: Store) -> None:
    store.place_rubric(version("v1"))
    store.place_rubric(version("v2", "waiting"))
    store.place_rubric(version("v3", "active"))
    found = {version.rubric_version: version for version in store.rubric_versions()}
    assert found["v1"].activated_at is not None
    assert found["v2"].activated_at is None, "it was given up before it was ever active"
    assert found["v3"].activated_at == found["v3"].since
    # Back again: first it waits, then it is active once more.
    store.place_rubric(version("v1", "waiting"))
    (waiting,) = [version for version in store.rubric_versions() if version.rubric_version == "v1"]
    assert (waiting.state, waiting.activated_at) == ("waiting", found["v1"].activated_at)
    store.place_rubric(version("v1"))
    (active,) = [version for version in store.rubric_versions() if version.state == "active"]
    assert (active.rubric_version, active.activated_at) == ("v1", active.since)
    assert active.activated_at > found["v3"].activated_at


def test_whether_anything_was_scored(store: Store) -> None:
    commit(store, (a_record(), A_FAILURE))
    assert not store.has_scores("0a1b2c3d" * 8, "f" * 64), "a failure is no score"
    commit(store, (a_record(), 0.5))
    assert store.has_scores("0a1b2c3d" * 8, "f" * 64)
    assert not store.has_scores("0a1b2c3d" * 8, JUDGE)
    assert not store.has_scores(HASH, "f" * 64)


def test_workers_that_place_versions_at_once_leave_one_active(open_store: Callable[[], Store], store: Store) -> None:
    def place(name: str) -> None:
        own = open_store()
        for state in ("waiting", "active"):
            own.place_rubric(version(name, state))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(place, [f"v{n}" for n in range(6)]))
    assert sorted(states(store).values()) == ["active", *["retired"] * 5]


# -- labels


def candidates(store: Store, **options: object) -> list[str]:
    found = store.label_candidates("relevance", HOUR_START, HOUR_START + timedelta(hours=1), **options)  # type: ignore[arg-type]
    return [candidate.record_id for candidate in found]


def test_candidates_are_the_scored_records_of_a_time_with_their_texts(store: Store) -> None:
    record = a_record("in", seconds=60, probability=0.25, session_id="s-1")
    commit(store, (record, 0.75))
    commit(store, (a_record("before", seconds=-1), 1.0), (a_record("at the end", seconds=3600), 1.0))
    commit(store, (a_record("failed", seconds=60), A_FAILURE))
    commit(store, (a_record("of safety", seconds=60), 1.0), rubric="safety")
    commit(store, (a_record("at the start"), 0.0))
    (first, found) = store.label_candidates("relevance", HOUR_START, HOUR_START + timedelta(hours=1))
    assert (first.record_id, first.passed) == ("at the start", False)
    assert found.record_id == "in"
    assert (found.value, found.passed, found.probability, found.judged_with) == (0.75, True, 0.25, 1.0)
    assert (found.app, found.session_id, found.timestamp) == ("shop", "s-1", record.timestamp)
    assert (found.rubric_hash, found.judge_fingerprint, found.judge) == ("0a1b2c3d" * 8, "f" * 64, "lexical")
    assert found.payload == record.to_json()
    assert found.picked_with is None
    assert [c.payload for c in store.label_candidates("relevance", HOUR_START, record.timestamp, payloads=False)] == [
        ""
    ]


def test_a_record_scored_twice_is_one_candidate_with_the_latest_score(store: Store) -> None:
    record = a_record("r")
    for value, judge in ((0.2, JUDGE), (0.9, OTHER_JUDGE)):
        evaluation = an_evaluation(record, value, judge_fingerprint=judge)
        store.commit(with_payloads([record]), [evaluation])
    hour = (HOUR_START, HOUR_START + timedelta(hours=1))
    assert [c.value for c in store.label_candidates("relevance", *hour)] == [0.9]
    by_first = store.label_candidates("relevance", *hour, instrument=("0a1b2c3d" * 8, JUDGE))
    assert [c.value for c in by_first] == [0.2]


def test_a_candidate_knows_with_what_chance_a_budget_let_it_be_judged(store: Store) -> None:
    for record_id, sampled, judged in (("a", 0.3, 1.0), ("b", 0.25, 0.5), ("c", 1.0, 0.1), ("d", 1e-15, 1.0)):
        record = a_record(record_id, probability=sampled)
        store.commit(with_payloads([record]), [replace(an_evaluation(record, 1.0), probability=judged)])
    found = store.label_candidates("relevance", HOUR_START, HOUR_START + timedelta(hours=1))
    assert {c.record_id: c.judged_with for c in found} == pytest.approx({"a": 1.0, "b": 0.5, "c": 0.1, "d": 1.0})
    assert all(candidate.judged_with <= 1.0 for candidate in found)


def test_a_record_without_its_text_is_no_candidate(store: Store) -> None:
    commit(store, (a_record("r"), 1.0))
    assert candidates(store) == ["r"]
    store.purge(payload_days=0, score_days=90, rollup_days=400, dead_days=30)
    assert candidates(store) == []
    assert store.payloads(["r"]) == {}


def test_records_come_back_whole(store: Store) -> None:
    stored = [a_record(f"r{n}", cohort={"tier": "gold"}, output="Ümläut \U0001f600 and a NUL: \0") for n in range(3)]
    commit(store, *((record, 1.0) for record in stored))
    assert store.records(["r2", "r0", "unknown"]) == [stored[0], stored[2]]
    assert store.records([]) == []
    assert store.payloads(["r1"]) == {"r1": stored[1].to_json()}


def test_picking_twice_keeps_the_first_probability(store: Store) -> None:
    commit(store, *((a_record(f"r{n}"), 1.0) for n in range(3)))
    first = [LabelRequest(record_id=f"r{n}", rubric="relevance", probability=0.5, twice=n == 0) for n in range(2)]
    assert store.request_labels(first) == 2
    assert store.request_labels(first) == 0
    again = [LabelRequest(record_id=f"r{n}", rubric="relevance", probability=0.9) for n in range(3)]
    assert store.request_labels(again) == 1
    assert {(r.record_id, r.probability, r.twice) for r in store.label_requests("relevance")} == {
        ("r0", 0.5, True),
        ("r1", 0.5, False),
        ("r2", 0.9, False),
    }
    assert store.request_labels([]) == 0
    hour = (HOUR_START, HOUR_START + timedelta(hours=1))
    picked = {c.record_id: c.picked_with for c in store.label_candidates("relevance", *hour)}
    assert picked == {"r0": 0.5, "r1": 0.5, "r2": 0.9}


def test_one_record_is_picked_for_each_rubric_by_itself(store: Store) -> None:
    commit(store, (a_record("r"), 1.0))
    both = [LabelRequest(record_id="r", rubric=rubric, probability=0.5) for rubric in ("relevance", "safety")]
    assert store.request_labels(both) == 2
    assert [request.rubric for request in store.label_requests()] == ["relevance", "safety"]
    assert store.mark_labels("safety", ["r"], "exported") == 1
    assert [request.exported_at is not None for request in store.label_requests()] == [False, True]


def test_a_record_that_is_not_stored_is_not_picked(store: Store) -> None:
    assert store.request_labels([LabelRequest(record_id="gone", rubric="relevance", probability=0.5)]) == 0
    assert store.label_requests() == []


@pytest.mark.parametrize("probability", [0.0, 1.5, -0.1])
def test_a_probability_that_is_none_is_refused(store: Store, probability: float) -> None:
    commit(store, (a_record("r"), 1.0))
    with pytest.raises(StoreDataError, match="probability"):
        store.request_labels([LabelRequest(record_id="r", rubric="relevance", probability=probability)])


def test_requests_go_out_and_come_back_once(store: Store) -> None:
    commit(store, (a_record("r1"), 1.0), (a_record("r2"), 1.0))
    store.request_labels([LabelRequest(record_id=r, rubric="relevance", probability=0.5) for r in ("r1", "r2")])
    assert store.mark_labels("relevance", ["r1", "r2", "unknown"], "exported") == 2
    before = {request.record_id: request for request in store.label_requests()}
    assert all(request.exported_at is not None and request.labelled_at is None for request in before.values())
    assert store.mark_labels("relevance", ["r1"], "labelled") == 1
    assert store.mark_labels("relevance", ["r1"], "labelled") == 0
    assert store.mark_labels("relevance", ["r1", "r2"], "exported") == 0
    assert store.mark_labels("relevance", [], "exported") == 0
    after = {request.record_id: request for request in store.label_requests()}
    assert after["r1"].labelled_at is not None
    assert after["r1"].exported_at == before["r1"].exported_at
    assert after["r2"] == before["r2"]


def test_requests_go_with_their_records(store: Store) -> None:
    commit(store, (a_record("r"), 1.0))
    store.request_labels([LabelRequest(record_id="r", rubric="relevance", probability=0.5)])
    store.purge(payload_days=0, score_days=0, rollup_days=400, dead_days=30)
    assert store.label_requests() == []


def test_ten_thousand_are_picked_and_read(store: Store) -> None:
    count = 10_000
    for first in range(0, count, 2500):
        commit(store, *((a_record(f"r{n}", seconds=n / 10), n % 2) for n in range(first, first + 2500)))
    hour = (HOUR_START, HOUR_START + timedelta(hours=1))
    found = store.label_candidates("relevance", *hour, payloads=False)
    assert len(found) == count
    assert [candidate.record_id for candidate in found] == [f"r{n}" for n in range(count)]
    requests = [LabelRequest(record_id=c.record_id, rubric="relevance", probability=0.01) for c in found]
    assert store.request_labels(requests) == count
    assert len(store.payloads(c.record_id for c in found[:600])) == 600
    assert store.mark_labels("relevance", (c.record_id for c in found), "exported") == count


# -- the migration


def to_revision(store: Store, revision: str) -> None:
    with connected(store) as connection:
        config = _migrate.alembic_config()
        config.attributes["connection"] = connection
        move = command.upgrade if revision > (_migrate.current(connection) or "") else command.downgrade
        move(config, revision)


#: What the first version had.
FIRST_TABLES = {
    "counters",
    "dead_letters",
    "evaluations",
    "exemplars",
    "instruments",
    "outcome_counts",
    "payloads",
    "records",
    "rollups",
    "series",
    "totals",
}


def rows_of_first_tables(store: Store) -> dict[str, list[str]]:
    with connected(store) as connection:
        return {
            name: sorted(repr(tuple(row)) for row in connection.execute(sa.select(tables.metadata.tables[name])))
            for name in FIRST_TABLES
        }


def test_down_to_the_first_version_and_up_again_with_data(store: Store) -> None:
    commit(store, (a_record("r1", probability=0.5), 0.75), (a_record("r2"), A_FAILURE))
    with connected(store) as connection:
        # The one column that came later and has a value in these rows: of rows from before, it is not known.
        connection.execute(sa.text("UPDATE records SET injection_signs = NULL"))
    first = rows_of_first_tables(store)
    save(store, "c1")
    store.place_rubric(version())
    store.request_labels([LabelRequest(record_id="r1", rubric="relevance", probability=0.5)])
    assert [c.record_id for c in store.label_candidates("relevance", HOUR_START, HOUR_START + timedelta(hours=1))]
    to_revision(store, "0001")
    with connected(store) as connection:
        assert set(sa.inspect(connection).get_table_names()) == FIRST_TABLES | {"alembic_version"}
    store.upgrade()
    # Nothing else that came later has a value in these rows.
    assert rows_of_first_tables(store) == first
    assert (store.calibrations(), store.rubric_versions(), store.label_requests()) == ([], [], [])
    store.check()
