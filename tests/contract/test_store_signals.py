"""Signals in the store: each record once, weighted, bounded, purged. Every test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from assay.errors import StoreError
from assay.records import Context, Feedback, Record, Sampling, Score, ToolEvent, Usage, now
from assay.signals import COST_SUMS, SIGNAL_SUMS, CostSums, SignalSums, shares
from assay.store import CostRollup, InputBin, SignalRollup, SlotReading, Store
from assay.store._signals import cost_rollups, input_bins, signal_rollups
from assay.windows import DAY, HOUR, MINUTE, SUM_FIELDS, Span, Sums, cover
from stores import (
    A_FAILURE,
    EPOCH,
    HOUR_START,
    NOT_APPLICABLE,
    a_record,
    an_evaluation,
    commit,
    connected,
    dump,
    statements,
    with_payloads,
)

TABLES = ("signal_rollups", "cost_rollups", "signal_versions", "input_bins")
KEEP = {"payload_days": 14, "score_days": 90, "rollup_days": 400, "dead_days": 30}


def hour(store: Store) -> list[SignalRollup]:
    return store.signals(EPOCH, EPOCH + HOUR)


def of(rows: list[SignalRollup], signal: str, word: str = "") -> SignalSums | None:
    found = [row.sums for row in rows if (row.signal, row.word) == (signal, word)]
    assert len(found) <= 1
    return found[0] if found else None


def stored(store: Store) -> dict[str, list[tuple[object, ...]]]:
    everything = dump(store)
    return {name: everything[name] for name in TABLES}


def priced(record_id: str, cost: float | None, **fields: object) -> Record:
    return a_record(record_id, usage=Usage(cost_usd=cost), **fields)  # type: ignore[arg-type]


# -- what is counted


def test_records_are_summed_by_signal_with_their_weights(store: Store) -> None:
    cut = a_record("a", seconds=10, finish_reason="length", probability=0.25)
    whole = a_record("b", seconds=70, finish_reason="stop")
    store.commit(with_payloads([cut, whole]), [])
    rows = hour(store)
    assert {(row.app, *row.cohort) for row in rows} == {("shop",)}
    assert of(rows, "finish", "length") == SignalSums.of(weight=4.0, x=1.0)
    assert of(rows, "finish", "stop") == SignalSums.of(weight=1.0, x=1.0)
    refusal = of(rows, "refusal")
    assert refusal is not None
    assert (refusal.n, refusal.n_x, refusal.sum_w, refusal.sum_w2, refusal.sum_wx) == (2, 0, 5.0, 17.0, 0.0)
    sums = {(row.signal, row.word): row.sums for row in rows}
    assert shares(sums)["finish_length"].value == pytest.approx(0.8)


def test_minutes_and_hours_say_the_same(store: Store) -> None:
    store.commit(with_payloads([a_record(str(n), seconds=n * 300, finish_reason="stop") for n in range(12)]), [])
    whole = of(hour(store), "finish", "stop")
    parts = [of(store.signals(EPOCH + n * 300, EPOCH + n * 300 + 60), "finish", "stop") for n in range(12)]
    assert whole == sum(filter(None, parts), SignalSums())
    assert whole is not None
    assert whole.n == 12
    assert store.signals(EPOCH - HOUR, EPOCH) == []
    assert store.signals(EPOCH, EPOCH) == []


def test_signals_need_no_verdict(store: Store) -> None:
    commit(store, (a_record("failed"), A_FAILURE), (a_record("none"), NOT_APPLICABLE))
    retrieved = of(hour(store), "retrieved")
    assert retrieved is not None
    assert retrieved.n == 2


def test_cost_is_summed_by_rubric_where_it_is_known_and_scored(store: Store) -> None:
    records = [
        priced("a", 0.01, probability=0.5),
        priced("b", 0.04),
        priced("c", None),
        priced("failed", 0.05),
    ]
    passed, not_passed = Score(value=1.0, passed=True), Score(value=0.0, passed=False)
    outcomes = [passed, not_passed, passed, A_FAILURE]
    store.commit(
        with_payloads(records),
        [an_evaluation(record, outcome) for record, outcome in zip(records, outcomes, strict=True)]
        + [an_evaluation(records[0], passed, "safety")],
    )
    first = CostSums.of(weight=2.0, cost=0.01, passed=True)
    assert store.costs(EPOCH, EPOCH + HOUR) == [
        CostRollup(
            app="shop", cohort={}, rubric="relevance", sums=first + CostSums.of(weight=1.0, cost=0.04, passed=False)
        ),
        CostRollup(app="shop", cohort={}, rubric="safety", sums=first),
    ]
    mean = of(hour(store), "cost_usd")
    assert mean is not None
    assert mean.n == 3, "what an interaction cost needs no verdict"


def test_a_failure_that_a_replay_recovers_counts_its_cost_then(store: Store) -> None:
    record = priced("r", 0.02, probability=0.5)
    commit(store, (record, A_FAILURE))
    assert store.costs(EPOCH, EPOCH + HOUR) == []
    before = hour(store)
    for _ in range(2):
        commit(store, (record, Score(value=1.0, passed=True)), replay=True)
    (row,) = store.costs(EPOCH, EPOCH + HOUR)
    assert row.sums == CostSums.of(weight=2.0, cost=0.02, passed=True)
    assert hour(store) == before, "the record was there already"


def test_inputs_are_counted_by_hour_and_day(store: Store) -> None:
    day_start = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    asked = ["Where is my parcel?", "Where is my parcel?", "Wo ist mein Paket?"]
    records = [a_record(str(n), seconds=n * HOUR, input=text, probability=0.5) for n, text in enumerate(asked)]
    store.commit(with_payloads(records), [])
    hours = [row for row in store.inputs(EPOCH, EPOCH + 3 * HOUR) if row.feature == "language"]
    assert hours == [
        InputBin(app="shop", feature="language", bin=1, start=EPOCH, n=2, sum_w=4.0, sum_w2=8.0),
        InputBin(app="shop", feature="language", bin=2, start=EPOCH, n=1, sum_w=2.0, sum_w2=4.0),
    ]
    assert [row.n for row in store.inputs(EPOCH, EPOCH + HOUR) if row.feature == "language"] == [1]
    days = [row for row in store.inputs(int(day_start), int(day_start) + DAY, by_day=True) if row.feature == "length"]
    assert {row.start for row in days} == {int(day_start)}
    assert sum(row.n for row in days) == 3


# -- exactly once


def test_a_redelivery_changes_nothing(store: Store) -> None:
    records = [priced(str(n), 0.01, seconds=n, finish_reason="length") for n in range(5)]
    batch = (with_payloads(records), [an_evaluation(record, 1.0) for record in records])
    store.commit(*batch)
    before = stored(store)
    assert all(before.values())
    for _ in range(3):
        store.commit(*batch)
    store.commit(with_payloads(records), [])
    commit(store, *((record, 0.0) for record in records), replay=True)
    assert stored(store) == before


def test_only_what_is_new_of_an_overlapping_batch_counts(store: Store) -> None:
    store.commit(with_payloads([a_record("old")]), [])
    store.commit(with_payloads([a_record("old"), a_record("new"), a_record("new")]), [])
    retrieved = of(hour(store), "retrieved")
    assert retrieved is not None
    assert retrieved.n == 2


def test_a_second_rubric_adds_its_costs_and_no_signals(store: Store) -> None:
    record = priced("r", 0.02)
    commit(store, (record, 1.0))
    signals = hour(store)
    commit(store, (record, 1.0), rubric="safety")
    assert hour(store) == signals
    assert [row.rubric for row in store.costs(EPOCH, EPOCH + HOUR)] == ["relevance", "safety"]


def test_many_who_deliver_the_same_at_once_count_it_once(open_store: Callable[..., Store]) -> None:
    records = [priced(str(n), 0.01, seconds=n * 20) for n in range(30)]
    batch = (with_payloads(records), [an_evaluation(record, 1.0) for record in records])
    errors: list[BaseException] = []

    def deliver(store: Store, first: int) -> None:
        try:
            for start in range(0, 30, 10):
                chosen = records[(start + first) % 30 :][:10]
                store.commit(with_payloads(chosen), [an_evaluation(record, 1.0) for record in chosen])
            store.commit(*batch)
        except BaseException as error:  # noqa: BLE001 - shown by the test, not lost in a thread
            errors.append(error)

    threads = [threading.Thread(target=deliver, args=(open_store(), n * 7)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store = open_store()
    retrieved = of(hour(store), "retrieved")
    (cost,) = store.costs(EPOCH, EPOCH + HOUR)
    assert retrieved is not None
    assert (retrieved.n, cost.sums.n) == (30, 30)
    assert cost.sums.sum_wc == pytest.approx(0.3)
    assert sum(row.n for row in store.inputs(EPOCH, EPOCH + HOUR) if row.feature == "length") == 30


def test_a_commit_that_fails_adds_nothing(store: Store) -> None:
    with connected(store) as connection:
        connection.execute(sa.text("ALTER TABLE input_bins RENAME TO elsewhere"))
    with pytest.raises(StoreError):
        commit(store, (priced("r", 0.01), 1.0))
    with connected(store) as connection:
        connection.execute(sa.text("ALTER TABLE elsewhere RENAME TO input_bins"))
    assert not any(stored(store).values())
    commit(store, (priced("r", 0.01), 1.0))
    assert all(stored(store).values())


# -- minutes and hours by themselves


def slots(store: Store, known: dict[tuple[int, int], int] | None = None) -> SlotReading:
    """Of one hour, by the minute and by the hour."""
    both = [Span(MINUTE, EPOCH, EPOCH + HOUR), Span(HOUR, EPOCH, EPOCH + HOUR)]
    return store.signal_slots(both, known or {})


def test_slots_are_what_the_window_is_made_of(store: Store) -> None:
    store.commit(
        with_payloads([priced(str(n), 0.01 * n, seconds=n * 90, finish_reason="stop") for n in range(60)]),
        [an_evaluation(str(n), 1.0) for n in range(60)],
    )
    start, end = EPOCH + 5 * MINUTE, EPOCH + HOUR + 20 * MINUTE
    reading = store.signal_slots(cover(start, end), {})
    sums: dict[tuple[str, str], SignalSums] = {}
    costs, scores = CostSums(), Sums()
    for slot in reading.fresh.values():
        for series, signal, word, *terms in slot.signals:
            assert reading.series[series] == ("shop", {})
            row = SignalSums(**dict(zip(SIGNAL_SUMS, terms, strict=True)))
            sums[signal, word] = sums.get((signal, word), SignalSums()) + row
        for _, instrument, *terms in slot.costs:
            assert reading.instruments[instrument][:1] == ("relevance",)
            costs += CostSums(**dict(zip(COST_SUMS, terms, strict=True)))
        for _, _, *terms in slot.scores:
            scores += Sums(**dict(zip(SUM_FIELDS, terms, strict=True)))
    (rollup,) = store.rollups(start, end)
    assert [getattr(scores, name) for name in SUM_FIELDS] == pytest.approx([getattr(rollup, n) for n in SUM_FIELDS])
    expected = {(row.signal, row.word): row.sums for row in store.signals(start, end)}
    assert sums.keys() == expected.keys()
    for key, row in expected.items():
        assert [getattr(sums[key], name) for name in SIGNAL_SUMS] == pytest.approx(
            [getattr(row, name) for name in SIGNAL_SUMS]
        )
    (cost,) = store.costs(start, end)
    assert [getattr(costs, name) for name in COST_SUMS] == pytest.approx(
        [getattr(cost.sums, name) for name in COST_SUMS]
    )


def test_what_is_known_is_not_read_again_until_it_is_added_to(store: Store) -> None:
    commit(store, *((priced(f"a{minute}", 0.01, seconds=minute * 60), 1.0) for minute in range(10)))
    first = slots(store)
    assert (
        set(first.fresh) == set(first.versions) == {(MINUTE, EPOCH + n * MINUTE) for n in range(10)} | {(HOUR, EPOCH)}
    )
    again = slots(store, dict(first.versions))
    assert (again.versions, again.fresh) == (first.versions, {})
    # A late record changes its minute and its hour, and nothing else.
    store.commit(with_payloads([a_record("late", seconds=3 * 60 + 5)]), [])
    late = slots(store, dict(first.versions))
    assert set(late.fresh) == {(MINUTE, EPOCH + 3 * MINUTE), (HOUR, EPOCH)}
    assert sum(row[3] for row in late.fresh[HOUR, EPOCH].signals if row[1] == "retrieved") == 11
    # So does a verdict that comes later than its record.
    before = dict(late.versions)
    commit(store, (priced("a7", None, seconds=7 * 60), 0.0), rubric="safety")
    later = slots(store, before)
    assert set(later.fresh) == {(MINUTE, EPOCH + 7 * MINUTE), (HOUR, EPOCH)}
    # And what is no verdict is counted too, and one that a replay puts in its place.
    for replay, outcome in ((False, A_FAILURE), (True, Score(value=1.0, passed=True))):
        known = dict(slots(store).versions)
        commit(store, (priced("a5", 0.01, seconds=5 * 60), outcome), rubric="completeness", replay=replay)
        assert set(slots(store, known).fresh) == {(MINUTE, EPOCH + 5 * MINUTE), (HOUR, EPOCH)}


def test_a_version_never_comes_again(store: Store) -> None:
    seen = set()
    for n in range(20):
        store.commit(with_payloads([a_record(str(n))]), [])
        seen.add(slots(store).versions[MINUTE, EPOCH])
    assert len(seen) == 20


def test_what_is_purged_is_known_to_be_gone(store: Store) -> None:
    commit(store, (priced("r", 0.01), 1.0))
    known = dict(slots(store).versions)
    assert len(known) == 2
    store.purge(**KEEP | {"rollup_days": 30})
    gone = slots(store, known)
    assert (gone.versions, gone.fresh) == ({}, {})


# -- label sets and bounds


def test_signals_have_the_declared_cohort_labels(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["model"])
    store.commit(with_payloads([a_record("a", model="small"), a_record("b", model="large"), a_record("c")]), [])
    found = {row.cohort["model"]: row.sums.n for row in hour(store) if row.signal == "retrieved"}
    assert found == {"small": 1, "large": 1, "": 1}
    # Under other declared labels they are one.
    merged = of(open_store().signals(EPOCH, EPOCH + HOUR), "retrieved")
    assert merged is not None
    assert merged.n == 3


def test_a_flood_of_names_makes_no_flood_of_rows(open_store: Callable[..., Store]) -> None:
    store = open_store(cohort_labels=["model"], max_series=10)
    flood = [
        a_record(
            str(n),
            app=f"app-{n}",
            model=f"model-{n}",
            finish_reason=f"reason-{n}",
            input=f"word{n} of " * 5,
            output="é" * n,
        )
        for n in range(200)
    ]
    for first in range(0, 200, 25):
        store.commit(with_payloads(flood[first : first + 25]), [])
    rows = hour(store)
    assert len({(row.app, row.cohort["model"]) for row in rows}) <= 10
    assert {row.word for row in rows if row.signal == "finish"} == {"other"}
    bins = store.inputs(EPOCH, EPOCH + HOUR)
    assert len({row.app for row in bins}) <= 10
    assert len({row.bin for row in bins if row.feature == "topic"}) <= 64
    assert sum(row.n for row in bins if row.feature == "length") == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"output": "\x00\ud800" * 100, "input": "\ud800"},
        {"usage": Usage(cost_usd=float("inf"))},
        {"usage": Usage(cost_usd=1e308)},
        {"usage": Usage(cost_usd=1e9), "probability": 1e-300},
        {"contexts": (Context(text="x", score=float("nan")), Context(text="y", score=-1e9))},
        {"feedback": Feedback(rating=1e308), "probability": 1e-12},
        {"required_fields": ("a",), "output": "[" * 200_000},
        {"finish_reason": "\x00'; DROP TABLE records; --"},
        {"tool_events": (ToolEvent(name="x", error=""),) * 1000},
        {"app": "\x00\u202eapp"},
    ],
)
def test_a_hostile_record_is_only_a_record(store: Store, fields: dict[str, object]) -> None:
    records = [a_record("good"), a_record("hostile", **fields)]  # type: ignore[arg-type]
    # Not all of these have a wire form, but an app may write one by hand.
    store.commit([(record, "{}") for record in records], [an_evaluation(record, 1.0) for record in records])
    assert sum(row.sums.n for row in hour(store) if row.signal == "retrieved") == 2
    for row in hour(store):
        assert all(abs(value) < 1e60 for value in (row.sums.sum_w2x2, row.sums.sum_wx2, row.sums.sum_w2))
    store.inputs(EPOCH, EPOCH + HOUR)
    store.costs(EPOCH, EPOCH + HOUR)


@pytest.mark.parametrize("moment", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)])
def test_any_time_is_a_time(store: Store, moment: datetime) -> None:
    commit(store, (Record(record_id="r", timestamp=moment, output="x"), 1.0))
    assert hour(store) == []
    assert all(rows for name, rows in stored(store).items() if name != "cost_rollups")


# -- what it costs


def test_reading_costs_the_same_statements_and_rows_however_many_records(store: Store) -> None:
    def read() -> tuple[int, int]:
        with statements(store) as seen:
            rows = hour(store), store.costs(EPOCH, EPOCH + HOUR), store.inputs(EPOCH, EPOCH + HOUR)
        return len(seen), sum(map(len, rows))

    def batch(first: int) -> None:
        fields = {"input": "parcel", "finish_reason": "stop"}
        commit(store, *((priced(str(n), 0.01, seconds=n % 60, **fields), 1.0) for n in range(first, first + 25)))

    batch(0)
    read()
    few = read()
    for first in range(25, 500, 25):
        batch(first)
    assert read() == few
    with connected(store) as connection:
        for table in (signal_rollups, cost_rollups, input_bins):
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() < 60


# -- retention


def test_minutes_go_after_two_days_and_hours_by_the_retention_of_rollups(store: Store) -> None:
    moment = now().replace(minute=30, second=0, microsecond=0)
    hour_start = int(moment.timestamp()) - 1800
    ages = (0, 1, 3, 399, 402)
    records = [
        Record(record_id=str(days), timestamp=moment - timedelta(days=days), output="x", usage=Usage(cost_usd=0.1))
        for days in ages
    ]
    commit(store, *((record, 1.0) for record in records))
    gone = store.purge(**KEEP)
    # Of minutes three and of hours one; of the input hours three and days one.
    assert gone["cost_rollups"] == 3 + 1
    assert gone["signal_rollups"] == (3 + 1) * len({row.signal for row in store.signals(hour_start, hour_start + HOUR)})
    features = len({row.feature for row in store.inputs(hour_start, hour_start + HOUR)})
    assert gone["input_bins"] == (3 + 1) * features

    def kept(days: int, start: int, end: int) -> bool:
        first = hour_start - days * DAY
        return bool(store.signals(first + start, first + end))

    assert [kept(days, 1800, 1860) for days in ages] == [True, True, False, False, False]
    assert [kept(days, 0, 3600) for days in ages] == [True, True, True, True, False]
    assert not any(store.purge(**KEEP).values())


def test_the_texts_that_were_purged_are_in_no_table(store: Store) -> None:
    secret = "zebrasecretword"
    store.commit(with_payloads([a_record("r", input=secret, output=secret)]), [])
    assert secret not in repr(stored(store))


def test_weights_are_bounded_like_those_of_scores(store: Store) -> None:
    record = Record(record_id="r", timestamp=HOUR_START, output="x", sampling=Sampling(probability=1e-300))
    store.commit(with_payloads([record]), [])
    retrieved = of(hour(store), "retrieved")
    assert retrieved is not None
    assert retrieved.sum_w == pytest.approx(1e12)
