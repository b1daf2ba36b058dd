"""The gauges of signals, costs and shifts: names, labels, values, and when there are none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from assay.metrics import ScoreCollector
from assay.records import Feedback, Record, Score, Usage
from assay.settings import load_settings
from assay.signals import YES_NO
from assay.store import Store
from assay.windows import wilson
from exposition import Exposition
from stores import EPOCH, HOUR_START, a_record, commit, connected, with_payloads

NOW = EPOCH + 2.5 * 3600
DAY = 86_400.0


class EmptyQueue:
    """A queue with nothing in it."""

    def depth(self) -> object:
        from assay.queue import QueueDepth

        return QueueDepth(0, 0, None)

    def pending_records(self, _since: float | None = None) -> int:
        return 0

    def counters(self) -> dict[str, int]:
        return {}

    def ping(self) -> None:
        return None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path}/scores.db", cohort_labels=["model"]) as store:
        store.upgrade()
        yield store


def shown(store: Store, now: float = NOW, **options: object) -> Exposition:
    collector = ScoreCollector(store, EmptyQueue(), clock=lambda: now, **{"cohort_labels": ["model"]} | options)  # type: ignore[arg-type]
    return Exposition.of(collector.collect())


def ago(seconds: float) -> float:
    return NOW - EPOCH - seconds


def test_a_share_has_an_interval_and_the_records_behind_it(store: Store) -> None:
    records = [a_record(str(n), seconds=ago(60), model="small", finish_reason="stop") for n in range(15)]
    cut = [a_record(f"cut{n}", seconds=ago(60), model="small", finish_reason="length") for n in range(5)]
    store.commit(with_payloads([*records, *cut]), [])
    got = shown(store)
    where = {"app": "shop", "model": "small", "signal": "finish_length", "window": "5m"}
    assert got.value("assay_signal_share", **where) == pytest.approx(0.25)
    assert got.value("assay_signal_share_ci_lower", **where) == pytest.approx(wilson(0.25, 19)[0])
    assert got.value("assay_signal_share_ci_upper", **where) == pytest.approx(wilson(0.25, 19)[1])
    assert got.value("assay_signal_effective_records", **where) == pytest.approx(19)
    assert got.value("assay_signal_share", **where | {"signal": "refusal"}) == 0.0


def test_shares_are_of_all_interactions_not_of_the_sample(store: Store) -> None:
    down = [
        a_record(f"d{n}", seconds=ago(60), feedback=Feedback(thumb="down"), output="I'm sorry, but I can't help.")
        for n in range(10)
    ]
    rest = [a_record(f"r{n}", seconds=ago(60), probability=0.1) for n in range(10)]
    store.commit(with_payloads([*down, *rest]), [])
    assert shown(store).value("assay_signal_share", signal="refusal", window="1h") == pytest.approx(10 / 110)


def test_windows_take_the_interactions_of_their_time(store: Store) -> None:
    for name, seconds in (("new", 60), ("hour", 30 * 60), ("day", 20 * 3600), ("old", 30 * 3600)):
        store.commit(with_payloads([a_record(name, seconds=ago(seconds), output="x" * 10)]), [])
    got = shown(store)
    n = {w: got.value("assay_signal_effective_records", signal="output_length", window=w) for w in ("5m", "1h", "24h")}
    assert n == {"5m": 1, "1h": 2, "24h": 3}


def test_an_empty_window_has_no_sample(store: Store) -> None:
    store.commit(with_payloads([a_record("r", seconds=ago(40 * 60))]), [])
    got = shown(store)
    assert not list(got.find("assay_signal_share", window="5m"))
    assert not list(got.find("assay_signal_mean", window="5m"))
    assert list(got.find("assay_signal_share", window="1h"))
    # What no record tells is not there either.
    assert not list(got.find("assay_signal_share", signal="tool_failure"))
    assert not list(got.find("assay_cost_per_interaction_usd"))


def test_nothing_is_said_of_nothing(store: Store) -> None:
    got = shown(store)
    assert not {name for name, _ in got.samples if name.startswith(("assay_signal", "assay_cost_per", "assay_input"))}


def test_cost_of_an_interaction_and_of_one_that_passes(store: Store) -> None:
    def one(n: int, passed: bool) -> tuple[Record, Score]:
        record = a_record(f"{n}-{passed}", seconds=ago(60), model="large", usage=Usage(cost_usd=0.02))
        return record, Score(value=float(passed), passed=passed)

    commit(store, *(one(n, passed=n % 4 > 0) for n in range(40)))
    got = shown(store)
    where = {"app": "shop", "model": "large", "window": "1h"}
    assert got.value("assay_cost_per_interaction_usd", **where) == pytest.approx(0.02)
    assert got.value("assay_cost_per_passed_interaction_usd", **where, rubric="relevance") == pytest.approx(0.02 / 0.75)
    lower = got.value("assay_cost_per_passed_interaction_usd_ci_lower", **where)
    upper = got.value("assay_cost_per_passed_interaction_usd_ci_upper", **where)
    assert lower < 0.02 / 0.75 < upper
    assert not list(got.find("assay_signal_mean", signal="cost_usd")), "it has a name of its own"


def test_few_records_have_a_mean_without_an_interval(store: Store) -> None:
    store.commit(with_payloads([a_record("r", seconds=ago(60))]), [])
    got = shown(store)
    assert got.value("assay_signal_mean", signal="output_length", window="5m") == 21.0
    assert not list(got.find("assay_signal_mean_ci_lower"))


def test_label_values_are_bounded_and_clean(store: Store) -> None:
    flood = [
        a_record(str(n), seconds=ago(60), model="a\nb", finish_reason=f"r{n}", input="¿Qué?", output="x")
        for n in range(50)
    ]
    store.commit(with_payloads(flood), [])
    got = shown(store)
    assert {dict(labels)["model"] for name, labels in got.samples if name == "assay_signal_share"} == {"a\ufffdb"}
    names = {dict(labels)["signal"] for name, labels in got.samples if name == "assay_signal_share"}
    assert names <= {*YES_NO, "finish_other", "finish_length", "finish_content_filter", "finish_error"} | {
        name for name in names if name.startswith(("input_language_", "output_language_"))
    }


# -- the input


def fill(store: Store, now: float, today: str, *, usual: str = "Where is my parcel?", days: int = 9) -> None:
    """A hundred records a day at the same hour; today's half of another text."""
    for day in range(days):
        start = datetime.fromtimestamp(now, UTC) - timedelta(days=day, hours=2)
        texts = [usual, "How can I change the address of my order, please?", usual, today if day == 0 else usual]
        records = [
            Record(record_id=f"{day}-{n}", timestamp=start, app="shop", input=texts[n % 4], output="Monday.")
            for n in range(100)
        ]
        store.commit(with_payloads(records), [])


def test_an_input_like_that_of_the_week_before(store: Store) -> None:
    fill(store, NOW, "Where is my parcel?")
    got = shown(store)
    assert got.value("assay_input_shift_p_value", app="shop", feature="length") == pytest.approx(1.0)
    assert got.value("assay_input_shift_psi", feature="length") < got.value(
        "assay_input_shift_psi_critical", feature="length"
    )


def test_an_input_that_has_shifted(store: Store) -> None:
    fill(store, NOW, "Wo ist mein Paket, auf das ich seit Montag warte, und warum ist es nicht da?")
    got = shown(store)
    for feature in ("length", "language"):
        assert got.value("assay_input_shift_p_value", app="shop", feature=feature) < 1e-4
        assert got.value("assay_input_shift_psi", feature=feature) > got.value(
            "assay_input_shift_psi_critical", feature=feature
        )


def test_a_pinned_week_is_the_reference(store: Store) -> None:
    later = NOW + 30 * DAY
    fill(store, later, "Wo ist mein Paket?", usual="Wo ist mein Paket?")
    fill_of_march = HOUR_START.timestamp() - 2 * DAY
    for day in range(7):
        moment = datetime.fromtimestamp(fill_of_march, UTC) + timedelta(days=day)
        records = [
            Record(record_id=f"m{day}-{n}", timestamp=moment, app="shop", input="Where is my parcel?", output="x")
            for n in range(100)
        ]
        store.commit(with_payloads(records), [])
    assert shown(store, later).value("assay_input_shift_p_value", feature="length") > 0.01
    pinned = shown(store, later, reference_week=datetime.fromtimestamp(fill_of_march, UTC).date())
    assert pinned.value("assay_input_shift_p_value", feature="language") < 1e-4


def test_without_a_reference_there_is_no_shift(store: Store) -> None:
    fill(store, NOW, "Wo ist mein Paket?", days=1)
    assert not list(shown(store).find("assay_input_shift_p_value"))


def test_a_backfill_of_old_records_moves_no_gauge_of_today(store: Store) -> None:
    fill(store, NOW, "Where is my parcel?")
    before = shown(store)
    old = [
        Record(
            record_id=f"old{n}",
            timestamp=HOUR_START - timedelta(days=60),
            app="shop",
            input="Wo?",
            output="I'm sorry, but I can't help with that.",
            finish_reason="length",
            usage=Usage(cost_usd=9.0),
        )
        for n in range(200)
    ]
    commit(store, *((record, 0.0) for record in old))
    after = shown(store)
    for (name, labels), sample in before.samples.items():
        if name.startswith(("assay_signal", "assay_cost_per", "assay_input")):
            assert after.samples[name, labels].value == sample.value


def test_comparisons_are_remembered_for_minutes_and_the_rest_for_nothing(store: Store) -> None:
    fill(store, NOW, "Where is my parcel?")
    moment = [NOW]
    collector = ScoreCollector(store, EmptyQueue(), clock=lambda: moment[0], cohort_labels=["model"])  # type: ignore[arg-type]

    def features() -> int:
        return len(list(Exposition.of(collector.collect()).find("assay_input_shift_psi")))

    known = features()
    assert known > 0
    with connected(store) as connection:
        connection.exec_driver_sql("DELETE FROM input_bins")
        connection.exec_driver_sql("DELETE FROM signal_rollups")
    assert features() == known
    assert not list(Exposition.of(collector.collect()).find("assay_signal_share"))
    moment[0] += 301
    assert features() == 0


def test_the_reference_week_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().reference_week is None
    monkeypatch.setenv("ASSAY_REFERENCE_WEEK", "2026-03-02")
    assert load_settings().reference_week == date(2026, 3, 2)
