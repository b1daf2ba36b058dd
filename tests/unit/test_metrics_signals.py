"""The gauges of signals, costs and shifts: names, labels, values, and when there are none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from assay.metrics import ScoreCollector
from assay.records import Feedback, Record, Score, Usage
from assay.settings import load_settings
from assay.signals import YES_NO, cost_per_pass, means, shares
from assay.store import SlotReading, Store
from assay.windows import wilson, window_bounds
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


# -- what is remembered from one scrape to the next


class Looking:
    """A store that notes which minutes and hours are read from it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fresh: list[set[tuple[int, int]]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def signal_slots(self, *args: object) -> SlotReading:
        reading = self._store.signal_slots(*args)  # type: ignore[arg-type]
        self.fresh.append(set(reading.fresh))
        return reading


def priced(name: str, seconds: float, **fields: object) -> Record:
    return a_record(name, seconds=ago(seconds), usage=Usage(cost_usd=0.01), **fields)  # type: ignore[arg-type]


def gauges(exposition: Exposition) -> dict[object, float]:
    return {
        key: sample.value
        for key, sample in exposition.samples.items()
        if key[0].startswith(("assay_signal", "assay_cost_per"))
    }


def test_a_scrape_reads_again_only_what_was_added_to(store: Store) -> None:
    moment = [NOW]
    looking = Looking(store)
    collector = ScoreCollector(looking, EmptyQueue(), clock=lambda: moment[0], cohort_labels=["model"])  # type: ignore[arg-type]
    commit(store, *((priced(f"{minutes}", minutes * 60), 1.0) for minutes in range(0, 26 * 60, 7)))
    collector.collect()
    collector.collect()
    assert len(looking.fresh[0]) > 20
    assert looking.fresh[1] == set()
    commit(store, (priced("late", 40 * 60), 0.0), (priced("now", 0), 1.0))
    collector.collect()
    minute = int(NOW // 60) * 60
    hours = {(3600, start) for start in (int(NOW // 3600) * 3600, int((NOW - 2400) // 3600) * 3600)}
    assert looking.fresh[2] <= {(60, minute), (60, minute - 2400)} | hours
    assert looking.fresh[2] >= {(60, minute), (60, minute - 2400)}
    # As time goes on, never much at once, though the long window is cut at another minute each time.
    for _ in range(150):
        moment[0] += 60
        collector.collect()
    assert sum(map(len, looking.fresh[3:])) > 2
    assert max(map(len, looking.fresh[3:])) <= 2


def test_what_is_remembered_says_what_a_new_exporter_says(store: Store) -> None:
    random = Random(7)
    moment = [NOW]
    collector = ScoreCollector(store, EmptyQueue(), clock=lambda: moment[0], cohort_labels=["model"])  # type: ignore[arg-type]
    for step in range(25):
        pairs = [
            (
                priced(
                    f"{step}-{n}",
                    random.choice([0.0, 30.0, 400.0, 3_000.0, 20_000.0, 80_000.0]) - (moment[0] - NOW),
                    model=random.choice(["small", "large", "a\nb"]),
                    finish_reason=random.choice(["stop", "length", "odd"]),
                    probability=random.choice([1.0, 0.1]),
                    input=random.choice(["Where is my parcel?", "Wo ist mein Paket?"]),
                ),
                random.random(),
            )
            for n in range(random.randrange(4))
        ]
        commit(store, *pairs)
        known = gauges(Exposition.of(collector.collect()))
        anew = gauges(shown(store, moment[0]))
        assert known.keys() == anew.keys()
        assert list(known.values()) == pytest.approx([anew[key] for key in known])
        moment[0] += random.choice([15.0, 15.0, 60.0, 4_000.0])
    assert known


def test_gauges_are_the_estimates_of_the_sums_in_the_store(store: Store) -> None:
    random = Random(3)
    commit(
        store,
        *(
            (
                priced(str(n), random.uniform(0, 3_500), finish_reason=random.choice(["stop", "length"])),
                random.random(),
            )
            for n in range(80)
        ),
    )
    start, end = window_bounds(NOW, 3_600)
    sums = {(row.signal, row.word): row.sums for row in store.signals(start, end)}
    got = shown(store)
    for signal, estimate in {**shares(sums), **means(sums)}.items():
        name = "assay_signal_share" if signal in shares(sums) else "assay_signal_mean"
        if signal == "cost_usd":
            name, where = "assay_cost_per_interaction_usd", {"window": "1h"}
        else:
            where = {"signal": signal, "window": "1h"}
        assert got.value(name, **where) == pytest.approx(estimate.value)
        assert got.value(f"{name}_ci_lower", **where) == pytest.approx(estimate.lower)
        assert got.value(f"{name}_ci_upper", **where) == pytest.approx(estimate.upper)
        n = got.value("assay_signal_effective_records", signal=signal, window="1h")
        assert n == pytest.approx(estimate.n_effective)
    (cost,) = store.costs(start, end)
    expected = cost_per_pass(cost.sums)
    assert expected is not None
    assert got.value("assay_cost_per_passed_interaction_usd", window="1h") == pytest.approx(expected.value)
    assert {dict(labels)["signal"] for name, labels in got.samples if name == "assay_signal_share"} == set(shares(sums))


def test_while_the_store_is_away_nothing_is_said_and_then_all_of_it(store: Store, tmp_path: Path) -> None:
    collector = ScoreCollector(store, EmptyQueue(), clock=lambda: NOW, cohort_labels=["model"])  # type: ignore[arg-type]
    commit(store, *((priced(str(n), 60), 1.0) for n in range(8)))
    before = gauges(Exposition.of(collector.collect()))
    assert before
    (tmp_path / "scores.db").rename(tmp_path / "away.db")
    assert not gauges(Exposition.of(collector.collect()))
    (tmp_path / "away.db").rename(tmp_path / "scores.db")
    assert gauges(Exposition.of(collector.collect())) == before


def test_another_database_in_its_place_is_read_anew(tmp_path: Path) -> None:
    stores = [Store(f"sqlite:///{tmp_path}/{name}.db", cohort_labels=["model"]) for name in ("scores", "other")]
    for index, one in enumerate(stores):
        one.upgrade()
        commit(one, *((priced(str(n), 60, finish_reason="length" if index else "stop"), 1.0) for n in range(8)))
        one.close()
    with Store(f"sqlite:///{tmp_path}/scores.db", cohort_labels=["model"]) as store:
        collector = ScoreCollector(store, EmptyQueue(), clock=lambda: NOW, cohort_labels=["model"])  # type: ignore[arg-type]
        where = {"signal": "finish_length", "window": "1h"}
        assert Exposition.of(collector.collect()).value("assay_signal_share", **where) == 0.0
        store.close()
        for name in ("scores.db-wal", "scores.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / "other.db").replace(tmp_path / "scores.db")
        assert Exposition.of(collector.collect()).value("assay_signal_share", **where) == 1.0


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
    assert list(Exposition.of(collector.collect()).find("assay_signal_share"))
    with connected(store) as connection:
        connection.exec_driver_sql("DELETE FROM input_bins")
    # All of it is older than that.
    assert store.purge(payload_days=1, score_days=1, rollup_days=1, dead_days=1)["signal_rollups"]
    assert features() == known
    assert not list(Exposition.of(collector.collect()).find("assay_signal_share"))
    moment[0] += 301
    assert features() == 0


def test_the_reference_week_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().reference_week is None
    monkeypatch.setenv("ASSAY_REFERENCE_WEEK", "2026-03-02")
    assert load_settings().reference_week == date(2026, 3, 2)
