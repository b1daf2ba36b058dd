"""The detector of one stream and one step of all: false alarms as rare as promised, drops found, recoveries told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from assay.calibration.drift import EDetector
from assay.changes import ChangePolicy, Happening, Stream, step
from assay.store import (
    CanaryRun,
    ChangeEvent,
    ChangeReading,
    ChangeStream,
    InstrumentName,
    RubricVersion,
    StreamName,
    WatchedScore,
)
from assay.verdicts import clears, judge_verdict

START = datetime(2026, 3, 2, tzinfo=UTC)
KEY = (1, 1)
PER_HOUR = 200
POLICY = ChangePolicy()
OWN = InstrumentName("relevance", "1-aaaaaaaa", "a" * 64, "openai:fake", "1" * 64)
OTHER = InstrumentName("relevance", "1-aaaaaaaa", "a" * 64, "openai:other", "2" * 64)


def scores(
    passes: Iterable[Any], start: int = 0, *, weight: float = 1.0, key: tuple[int, int] = KEY, model: str | None = None
) -> Iterator[WatchedScore]:
    """200 an hour."""
    for index, passed in enumerate(passes, start):
        yield WatchedScore(
            key=key,
            record_id=f"r{index}",
            timestamp=START + timedelta(seconds=index * 3600 / PER_HOUR),
            weight=weight,
            passed=bool(passed),
            judge_model=model,
        )


def watching(target: float, run_length: float) -> Stream:
    """A stream that has learned."""
    reference = {"n": 500, "mean": target, "lower": target, "upper": target, "objective": target, "target": target}
    detector = EDetector(target, run_length).state()
    onset = {"bet": 0.1 / (1 - target)}
    return Stream("watching", {"reference": reference, "detector": detector, "onset": onset})


def feed(
    stream: Stream, given: Iterable[WatchedScore], objective: float | None = None, policy: ChangePolicy = POLICY
) -> list[Happening]:
    happenings = []
    for score in given:
        happening = stream.take(score, objective, policy)
        if happening is not None:
            happenings.append(happening)
            stream.expect(objective, policy, 1)
    return happenings


def learned(mean: float, objective: float | None, *, seed: int = 0, policy: ChangePolicy = POLICY) -> Stream:
    stream = Stream()
    (happening,) = feed(stream, scores(np.random.default_rng(seed).random(500) < mean), objective, policy)
    assert happening.kind == "learned"
    return stream


# -- false alarms: statistics.md 3.7


@pytest.mark.parametrize(
    ("target", "run_length", "streams", "published"),
    [(0.9, 300, 300, 409), (0.9, 1000, 150, 1403), (0.9, 3000, 60, 4765), (0.5, 300, 300, 336), (0.5, 1000, 150, 1133)],
)
def test_the_run_length_to_a_false_alarm_is_the_published_one(target, run_length, streams, published):
    """Pass ratio exactly at the target; 300 to 60 streams, so the mean is known within 6 to 13 %."""
    rng = np.random.default_rng(int(1000 * target) + run_length)
    policy = ChangePolicy(min_records=1)
    lengths = []
    for _ in range(streams):
        stream, n = watching(target, run_length), 0
        while stream.phase == "watching":
            for score in scores(rng.random(500) < target, n):
                n += 1
                if stream.take(score, target, policy) is not None:
                    break
        lengths.append(n)
    print(f"target {target}, run length {run_length}: {np.mean(lengths):.0f} (published {published})")
    assert np.mean(lengths) >= run_length
    assert np.mean(lengths) == pytest.approx(published, rel=0.25)
    assert np.mean(np.array(lengths) < run_length / 10) <= 0.1


def test_the_guard_of_least_records_only_makes_false_alarms_rarer():
    rng = np.random.default_rng(5)
    passes = [(rng.random(20_000) < 0.9).tolist() for _ in range(20)]

    def first_alarm(one: list[bool], least: int) -> float:
        stream = watching(0.9, 300)
        for n, score in enumerate(scores(one)):
            if stream.take(score, 0.9, ChangePolicy(min_records=least)) is not None:
                return n
        return float("inf")

    assert all(first_alarm(one, 30) >= first_alarm(one, 1) for one in passes)


def test_a_quiet_weekend_pages_nobody():
    """Ten records an hour at the objective for a weekend, however they fall: 50 weekends."""
    for seed in range(50):
        stream = learned(0.95, 0.95, seed=seed)
        assert feed(stream, scores(np.random.default_rng(1000 + seed).random(480) < 0.95, 500), 0.95) == []


def test_eight_fails_in_a_row_are_no_alarm_and_thirty_are():
    stream = learned(0.95, 0.9)
    assert feed(stream, scores([False] * 8, 500), 0.9) == []
    assert stream.evidence > 5
    (alarm,) = feed(stream, scores([False] * 40, 508), 0.9)
    assert alarm.kind == "alarm"
    assert alarm.details["records"] >= POLICY.min_records


# -- drops: found in time


@pytest.mark.parametrize(
    ("usual", "objective", "drop", "most"),
    [
        (0.90, 0.90, 0.05, 1100),
        (0.90, 0.90, 0.10, 320),
        (0.90, 0.90, 0.20, 110),
        (0.97, 0.95, 0.05, 1200),
        (0.97, 0.95, 0.10, 300),
        (0.97, 0.95, 0.20, 80),
        (0.93, None, 0.10, 600),
        (0.93, None, 0.20, 150),
    ],
)
def test_a_drop_is_found(usual, objective, drop, most):
    """One stream of 200 records an hour, a false alarm a month: median records to the alarm over 12 streams."""
    delays = []
    for seed in range(12):
        stream = learned(usual, objective, seed=seed)
        rng = np.random.default_rng(100 + seed)
        before = feed(stream, scores(rng.random(2000) < usual, 500), objective)
        assert before == [], "a false alarm a month is none in half a day"
        happenings = feed(stream, scores(rng.random(8000) < usual - drop, 2500), objective)
        if not happenings:
            # One reference in a hundred says that the objective was never reached.
            assert stream.target < objective
        for alarm in happenings[:1]:
            delays.append((alarm.at - START) / timedelta(hours=1) * PER_HOUR - 2500)
            assert alarm.details["pass_ratio"] < alarm.details["target"]
    print(f"{usual} - {drop} against {objective}: {np.median(delays):.0f} records")
    assert len(delays) >= 11
    assert 0 < np.median(delays) < most


def test_an_alarm_says_since_when():
    stream = learned(0.95, 0.9)
    rng = np.random.default_rng(1)
    feed(stream, scores(rng.random(2000) < 0.95, 500), 0.9)
    (alarm,) = feed(stream, scores(rng.random(200) < 0.7, 2500), 0.9)
    changed = START + timedelta(hours=2500 / PER_HOUR)
    assert abs(datetime.fromisoformat(alarm.details["since"]) - changed) < timedelta(minutes=15)
    assert alarm.message.endswith("90.0% are its objective")
    assert alarm.details["evidence"] >= alarm.details["threshold"]


def test_a_rise_is_no_alarm():
    stream = learned(0.8, 0.75)
    assert feed(stream, scores([True] * 5000, 500), 0.75) == []
    assert stream.evidence < stream.threshold


# -- what a stream is held to


def test_it_is_held_to_the_objective_where_that_was_reached():
    assert learned(0.97, 0.9).target == 0.9
    assert learned(0.9, 0.9).target == 0.9


def test_it_is_held_to_what_was_usual_where_the_objective_never_was_reached():
    # A harsh judge, or a product that never met its objective: no alarm for ever, but one when it gets worse.
    stream = learned(0.7, 0.95)
    assert 0.60 < stream.target < 0.70
    rng = np.random.default_rng(3)
    assert feed(stream, scores(rng.random(5000) < 0.7, 500), 0.95) == []
    (alarm,) = feed(stream, scores(rng.random(1500) < 0.5, 5500), 0.95)
    assert alarm.message.endswith("or more did before")


def test_the_reference_is_a_lower_bound_of_one_in_a_hundred():
    below = [learned(0.9, None, seed=seed).target < 0.9 for seed in range(150)]
    assert np.mean(below) >= 0.97


def test_the_setting_against_reference_leaves_the_objective_out():
    policy = ChangePolicy(against="reference")
    assert 0.9 < learned(0.97, 0.9, policy=policy).target < 0.97


def test_a_new_objective_takes_effect_without_learning_anew():
    stream = learned(0.97, 0.9)
    feed(stream, scores([False] * 5, 500), 0.9)
    stream.expect(0.95, POLICY, 1)
    assert (stream.phase, stream.target, stream.evidence) == ("watching", 0.95, None)


def test_what_passes_hardly_ever_cannot_get_worse():
    stream = Stream()
    assert feed(stream, scores([index % 50 == 0 for index in range(3000)]), None) == []
    assert (stream.phase, stream.target, stream.evidence) == ("learning", None, None)


def test_all_passes_can_be_learned_from():
    stream = Stream()
    feed(stream, scores([True] * 500), None)
    assert 0.99 < stream.target < 1.0
    (alarm,) = feed(stream, scores([False, True] * 40, 500), None)
    assert alarm.kind == "alarm"


def test_more_streams_and_more_traffic_take_more_evidence():
    stream = learned(0.95, 0.9)
    one = stream.threshold
    stream.expect(0.9, POLICY, 10)
    assert stream.threshold == pytest.approx(one + np.log(10))
    # 200 an hour, 30 days.
    assert one == pytest.approx(np.log(200 * 24 * 30), abs=0.01)
    stream.expect(0.9, ChangePolicy(false_alarm_days=3000), 10)
    assert stream.threshold == pytest.approx(one + np.log(1000))


def test_the_rate_follows_whole_days():
    stream = learned(0.95, 0.9)
    # Two days at a tenth of the traffic, then a look.
    slow = (
        WatchedScore(
            key=KEY,
            record_id=f"s{n}",
            timestamp=START + timedelta(days=1, seconds=180 * n),
            weight=1.0,
            passed=True,
            judge_model=None,
        )
        for n in range(480 * 3)
    )
    feed(stream, slow, 0.9)
    stream.expect(0.9, POLICY, 1)
    assert stream.threshold == pytest.approx(np.log(480 * 30), abs=0.05)


# -- weights


def sampled(
    rng: np.random.Generator, n: int, pass_ratio: float, start: int, probability: Callable[[np.ndarray], np.ndarray]
) -> Iterator[WatchedScore]:
    """Those of `n` interactions that were taken, with the probability that each has."""
    passes = rng.random(n) < pass_ratio
    taken = probability(passes)
    for index in np.flatnonzero(rng.random(n) < taken):
        yield next(scores([passes[index]], start + int(index), weight=1.0 / taken[index]))


def cascaded(
    rng: np.random.Generator, share: float, *, doubted: tuple[float, float] = (0.25, 0.75)
) -> Callable[[np.ndarray], np.ndarray]:
    """All that a first judge doubts, of what passes and of what fails, and a share of the rest."""

    def probability(passes: np.ndarray) -> np.ndarray:
        is_doubted = rng.random(len(passes)) < np.where(passes, *doubted)
        return np.where(is_doubted, 1.0, share)

    return probability


def test_weights_give_every_interaction_the_same_say():
    """Most of what is taken failed: a plain mean says 0.76, the traffic's is 0.94."""
    rng = np.random.default_rng(8)
    stream = Stream()

    def probability(passes: np.ndarray) -> np.ndarray:
        return np.where(passes & (rng.random(len(passes)) < 0.957), 0.1, 1.0)

    given = list(sampled(rng, 40_000, 0.94, 0, probability))
    happenings = feed(stream, given, 0.9)
    assert np.mean([score.passed for score in given]) < 0.8
    assert [happening.kind for happening in happenings] == ["learned"], "the traffic meets its objective"
    assert stream.reference["mean"] == pytest.approx(0.94, abs=0.03)


@pytest.mark.parametrize("doubted", [(0.25, 0.75), (0.75, 0.25)], ids=["fails", "passes"])
def test_what_is_judged_more_often_brings_no_false_alarms(doubted):
    """Exactly at the target, and weights hang on the outcome: the shares to an alarm are what was promised."""
    run_length, rng = 300, np.random.default_rng(300)
    policy = ChangePolicy(min_records=1)
    sums = []
    for _ in range(120):
        stream, shares, start = watching(0.9, run_length), 0.0, 0
        # The heaviest weight must be known beforehand.
        stream.take(next(scores([True], weight=10.0)), 0.9, policy)
        while stream.phase == "watching":
            for score in sampled(rng, 500, 0.9, start, cascaded(rng, 0.1, doubted=doubted)):
                shares += score.weight / 10.0
                if stream.take(score, 0.9, policy) is not None:
                    break
            start += 500
        sums.append(shares)
    print(f"{doubted}: {np.mean(sums):.0f}")
    assert np.mean(sums) >= run_length
    assert np.mean(np.array(sums) < run_length / 10) <= 0.1


def test_a_drop_behind_a_cascade_is_found_earlier_than_by_thinning():
    """Thinning to equal weights keeps the same promise, and most of what is in doubt would be left out by it."""
    delays: dict[str, list[float]] = {"weighted": [], "thinned": []}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        usual = list(sampled(rng, 4000, 0.85, 0, cascaded(rng, 0.1)))
        bad = list(sampled(rng, 12_000, 0.7, 4000, cascaded(rng, 0.1)))
        kept = {score.record_id for score in (*usual, *bad) if rng.random() < score.weight / 10.0}
        for name, found in delays.items():
            stream = Stream()
            shown = [s if name == "weighted" else replace(s, weight=1.0) for s in (*usual, *bad)]
            happenings = feed(stream, (s for s in shown if name == "weighted" or s.record_id in kept), 0.8)
            alarms = [h for h in happenings if h.kind == "alarm"]
            assert alarms
            found.append((alarms[0].at - START) / timedelta(hours=1) * PER_HOUR - 4000)
    print({name: np.median(found) for name, found in delays.items()})
    assert min(delays["weighted"]) > 0
    assert np.median(delays["weighted"]) < 0.6 * np.median(delays["thinned"])


def test_what_passes_again_behind_a_cascade_ends_the_alarm():
    rng = np.random.default_rng(3)
    stream = Stream()
    feed(stream, sampled(rng, 4000, 0.85, 0, cascaded(rng, 0.1)), 0.8)
    bad = list(sampled(rng, 3000, 0.6, 4000, cascaded(rng, 0.1)))
    happenings = feed(stream, bad, 0.8)
    assert [happening.kind for happening in happenings] == ["alarm"]
    assert np.mean([score.passed for score in bad]) < 0.42
    assert happenings[0].details["pass_ratio"] == pytest.approx(0.6, abs=0.1)
    (recovered,) = feed(stream, sampled(rng, 8000, 0.85, 7000, cascaded(rng, 0.1)), 0.8)
    assert recovered.kind == "recovered"
    assert f"{recovered.details['pass_ratio']:.1%} pass since about" in recovered.message
    # 200 effective records are more than 200 judged ones where these weigh so differently.
    assert recovered.details["records"] > 1.2 * POLICY.recovery_records


def test_what_stays_bad_behind_a_cascade_stays_an_alarm():
    """6,000 interactions ten points below the objective, 10 streams, what passes judged more often: none is over."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        passes_more = cascaded(rng, 0.1, doubted=(0.75, 0.25))
        stream = Stream()
        happenings = feed(stream, sampled(rng, 4000, 0.92, 0, passes_more), 0.9)
        happenings += feed(stream, sampled(rng, 6000, 0.8, 4000, passes_more), 0.9)
        assert [happening.kind for happening in happenings] == ["learned", "alarm"]


@pytest.mark.parametrize("passed", [True, False])
def test_one_heavy_record_blinds_the_detector_for_two_days_at_most(passed):
    stream = learned(0.95, 0.9)
    (stray,) = scores([passed], 500, weight=1e6)
    stream.take(stray, 0.9, POLICY)
    day = PER_HOUR * 24
    assert feed(stream, scores([False] * (day - 501), 501), 0.9) == []
    (alarm,) = feed(stream, scores([False] * (day + 200), 2 * day - 200), 0.9)
    assert alarm.kind == "alarm"
    assert alarm.at < START + timedelta(days=2, hours=1)


def test_after_days_without_records_the_heaviest_weight_is_still_known():
    """Else what a first judge doubts, which comes first, would count in full: a false alarm each Monday."""
    rng = np.random.default_rng(6)
    stream = Stream()
    feed(stream, sampled(rng, 20_000, 0.85, 0, cascaded(rng, 0.05)), 0.8)
    assert stream.phase == "watching"
    before = stream.evidence
    monday = PER_HOUR * 24 * 12
    assert feed(stream, scores([False] * 12, monday, weight=1.0), 0.8) == []
    assert stream.evidence < before + 1.0


def test_a_day_that_was_blinded_is_not_taken_for_quiet_traffic():
    stream = learned(0.95, 0.9)
    day = PER_HOUR * 24
    feed(stream, scores([True] * (day - 500), 500), 0.9)
    (stray,) = scores([True], day, weight=1e9)
    stream.take(stray, 0.9, POLICY)
    feed(stream, scores([True] * 2 * day, day + 1), 0.9)
    feed(stream, scores([True] * day, 3 * day + 1), 0.9)
    feed(stream, scores([True], 4 * day + 1), 0.9)
    assert stream.threshold == pytest.approx(np.log(day * 30), abs=0.2)


def test_the_states_of_the_release_before_and_of_this_one_go_both_ways():
    """It left out records until all weighed the same: to it, as many as there are shares."""
    stream = Stream()
    rng = np.random.default_rng(12)
    feed(stream, sampled(rng, 3000, 0.85, 0, cascaded(rng, 0.3)), 0.8)
    given = list(sampled(rng, 100, 0.7, 3000, cascaded(rng, 0.3)))
    assert feed(stream, given, 0.8) == []
    state = json.loads(json.dumps(stream.state(), allow_nan=False))
    assert Stream(stream.phase, state).state() == stream.state()
    onset = state["onset"]
    assert set(onset) == {"bet", "weight", "n", "passes", "at"}
    assert onset["n"] == round(state["weighed"]["onset"]["sum_w"]) < state["weighed"]["onset"]["n"]
    assert onset["passes"] == round(state["weighed"]["onset"]["sum_wp"])
    # What it saves of that knows no sums and no share.
    old = {name: part for name, part in state.items() if name != "weighed"}
    old["detector"] = {name: part for name, part in state["detector"].items() if name != "share"}
    gone_on = Stream(stream.phase, old)
    assert gone_on.evidence == stream.evidence
    more = list(sampled(rng, 2000, 0.5, 3100, cascaded(rng, 0.3)))
    alarms = [next(h for h in feed(one, more, 0.8) if h.kind == "alarm") for one in (stream, gone_on)]
    assert abs(alarms[0].at - alarms[1].at) < timedelta(minutes=20)
    assert alarms[0].details["pass_ratio"] == pytest.approx(alarms[1].details["pass_ratio"], abs=0.05)


def test_effective_records_count_in_learning():
    stream = Stream()
    given = [next(scores([True], n, weight=100.0 if n % 50 == 0 else 1.0)) for n in range(1000)]
    assert feed(stream, given, 0.9) == []
    assert stream.phase == "learning"


# -- recovery


@pytest.mark.parametrize(("bad", "usual", "objective", "most"), [(0.7, 0.95, 0.9, 300), (0.8, 0.93, None, 700)])
def test_a_mended_product_ends_the_alarm(bad, usual, objective, most):
    delays = []
    for seed in range(10):
        stream = learned(usual, objective, seed=seed)
        rng = np.random.default_rng(50 + seed)
        (alarm, *rest) = feed(stream, scores(rng.random(1500) < bad, 500), objective)
        assert (alarm.kind, rest, stream.phase) == ("alarm", [], "alarmed")
        (recovered, *_) = feed(stream, scores(rng.random(3000) < usual, 2000), objective)
        assert (recovered.kind, stream.phase) == ("recovered", "watching")
        assert recovered.details["records"] >= POLICY.recovery_records
        assert recovered.details["pass_ratio"] >= recovered.details["target"]
        delays.append((recovered.at - START) / timedelta(hours=1) * PER_HOUR - 2000)
    assert np.mean(delays) < most


def test_what_stays_bad_stays_an_alarm():
    """4,000 records ten points below the objective, 20 streams: no false recovery."""
    for seed in range(20):
        stream = learned(0.95, 0.9, seed=seed)
        happenings = feed(stream, scores(np.random.default_rng(seed).random(4000) < 0.8, 500), 0.9)
        assert [happening.kind for happening in happenings] == ["alarm"]
        assert stream.evidence >= stream.threshold


def test_half_a_mend_does_not_end_it():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        stream = learned(0.97, 0.95, seed=seed)
        happenings = feed(stream, scores(rng.random(500) < 0.7, 500), 0.95)
        happenings += feed(stream, scores(rng.random(1500) < 0.88, 1000), 0.95)
        assert [happening.kind for happening in happenings] == ["alarm"]


def mended_by_halves(seed: int) -> tuple[Stream, np.random.Generator, list[Happening]]:
    """5,000 records between half the way back and the target, after an alarm."""
    rng = np.random.default_rng(seed)
    stream = learned(0.95, 0.9, seed=seed)
    happenings = feed(stream, scores(rng.random(500) < 0.6, 500), 0.9)
    happenings += feed(stream, scores(rng.random(5000) < 0.83, 1000), 0.9)
    return stream, rng, happenings


def test_the_second_half_of_a_mend_ends_it_however_long_the_first_half_was():
    delays = []
    for seed in range(10):
        stream, rng, happenings = mended_by_halves(seed)
        assert [happening.kind for happening in happenings] == ["alarm"]
        (recovered, *_) = feed(stream, scores(rng.random(3000) < 0.95, 6000), 0.9)
        assert (recovered.kind, stream.phase) == ("recovered", "watching")
        assert recovered.details["records"] >= POLICY.recovery_records
        assert recovered.details["pass_ratio"] >= 0.9
        delays.append((recovered.at - START) / timedelta(hours=1) * PER_HOUR - 6000)
    assert np.mean(delays) < 600


def test_an_alarm_that_an_older_worker_stored_ends_as_well():
    stream, rng, _ = mended_by_halves(0)
    state = stream.state()
    assert state.pop("reached")
    older = Stream("alarmed", state)
    (recovered, *_) = feed(older, scores(rng.random(3000) < 0.95, 6000), 0.9)
    assert recovered.kind == "recovered"


def test_a_few_good_records_do_not_end_it():
    stream = learned(0.95, 0.9)
    feed(stream, scores([False] * 60, 500), 0.9)
    assert stream.phase == "alarmed"
    assert feed(stream, scores([True] * (POLICY.recovery_records - 1), 560), 0.9) == []
    (recovered,) = feed(stream, scores([True] * 10, 700), 0.9)
    assert recovered.kind == "recovered"


def test_after_a_recovery_it_alarms_again():
    stream = learned(0.95, 0.9)
    kinds = []
    for start, rate in ((500, 0.6), (1000, 0.97), (2000, 0.6), (2500, 0.97)):
        passes = np.random.default_rng(start).random(500) < rate
        kinds += [happening.kind for happening in feed(stream, scores(passes, start), 0.9)]
    assert kinds == ["alarm", "recovered"] * 2


# -- state


@pytest.mark.parametrize("cut", [1, 250, 499, 500, 501, 700, 950, 1400, 1999])
def test_a_stored_state_goes_on_as_if_it_had_never_stopped(cut):
    """Through learning, alarm and recovery, weights and all."""
    rng = np.random.default_rng(2)
    passes = [*(rng.random(800) < 0.95), *(rng.random(300) < 0.6), *(rng.random(900) < 0.97)]
    given = [next(scores([p], n, weight=1.0 + n % 2)) for n, p in enumerate(passes)]
    whole, first = Stream(), Stream()
    policy = ChangePolicy(reference_records=300)
    feed(whole, given, 0.9, policy)
    feed(first, given[:cut], 0.9, policy)
    second = Stream(first.phase, json.loads(json.dumps(first.state(), allow_nan=False)))
    feed(second, given[cut:], 0.9, policy)
    assert (second.phase, second.state()) == (whole.phase, whole.state())
    assert second.evidence == whole.evidence


# -- one step of all streams


def a_reading(
    given: Iterable[WatchedScore],
    *,
    streams: Iterable[ChangeStream] = (),
    instruments: dict[tuple[int, int], InstrumentName] | None = None,
    versions: Iterable[RubricVersion] = (),
) -> ChangeReading:
    given = list(given)
    stored = {stream.key: stream for stream in streams}
    known = instruments or {KEY: OWN}
    end = max([score.timestamp for score in given], default=START)
    return ChangeReading(
        revision=1,
        started_at=START - timedelta(days=1),
        position=int(START.timestamp()),
        end=int(end.timestamp()) + 60,
        until=int(end.timestamp()) + 60,
        scores=given,
        streams=stored,
        names={key: StreamName(app="shop", cohort={}, instrument=name) for key, name in known.items()},
        versions=list(versions),
    )


def a_version(name: InstrumentName, state: str, minutes: float) -> RubricVersion:
    return RubricVersion(
        rubric=name.rubric,
        rubric_version=name.rubric_version,
        rubric_hash=name.rubric_hash,
        judge=name.judge,
        judge_fingerprint=name.judge_fingerprint,
        body="{}",
        state=state,  # type: ignore[arg-type]
        reason="why",
        activated_at=START + timedelta(minutes=minutes),
    )


def test_a_step_is_pure():
    reading = a_reading(scores(np.random.default_rng(0).random(2000) < 0.8))
    assert step(reading, POLICY, {OWN.rubric_hash: 0.75}) == step(reading, POLICY, {OWN.rubric_hash: 0.75})


def test_steps_of_any_size_come_to_the_same():
    rng = np.random.default_rng(4)
    given = list(scores([*(rng.random(900) < 0.95), *(rng.random(400) < 0.7)]))
    (whole,) = step(a_reading(given), POLICY, {OWN.rubric_hash: 0.9}).streams
    streams: list[ChangeStream] = []
    for first in range(0, len(given), 130):
        streams = list(
            step(a_reading(given[first : first + 130], streams=streams), POLICY, {OWN.rubric_hash: 0.9}).streams
        )
    (pieces,) = streams
    # Only the threshold may differ, because the rate is looked at between steps.
    assert (pieces.phase, pieces.records, pieces.evidence) == (
        whole.phase,
        whole.records,
        whole.evidence,
    )


def test_the_same_alarm_has_the_same_id_and_another_has_another():
    rng = np.random.default_rng(4)
    given = list(scores([*(rng.random(600) < 0.95), *(rng.random(400) < 0.6)]))
    first, again = (step(a_reading(given), POLICY, {OWN.rubric_hash: 0.9}) for _ in range(2))
    (event,) = first.events
    assert event.event_id == again.events[0].event_id
    assert (event.kind, event.verdict, event.app, event.instrument) == ("drop", "unknown", "shop", OWN)
    assert first.streams[0].state["alarm"] == event.event_id
    (elsewhere,) = step(
        a_reading((WatchedScore(**{**_fields(s), "key": (2, 1)}) for s in given), instruments={(2, 1): OWN}),
        POLICY,
        {OWN.rubric_hash: 0.9},
    ).events
    assert elsewhere.event_id != event.event_id


def _fields(score: WatchedScore) -> dict[str, Any]:
    return {name: getattr(score, name) for name in WatchedScore.__slots__}


def test_each_judge_has_a_stream_of_its_own():
    # The new judge passes half as much: nothing has dropped, another ruler is used.
    given = [*scores([True] * 600), *scores([True, False] * 300, 600, key=(1, 2))]
    done = step(a_reading(given, instruments={KEY: OWN, (1, 2): OTHER}), POLICY, {})
    assert {stream.key: stream.phase for stream in done.streams} == {KEY: "watching", (1, 2): "watching"}
    assert [event for event in done.events if event.kind == "drop"] == []


def test_a_replaced_judge_ends_its_stream_and_its_alarm_and_is_an_event():
    rng = np.random.default_rng(4)
    given = scores([*(rng.random(600) < 0.95), *(rng.random(400) < 0.6)])
    alarmed = step(a_reading(given), POLICY, {OWN.rubric_hash: 0.9})
    versions = [a_version(OWN, "retired", -600), a_version(OTHER, "active", 310)]
    reading = a_reading(
        scores([True] * 5, 1001, key=(1, 2)),
        streams=alarmed.streams,
        instruments={KEY: OWN, (1, 2): OTHER},
        versions=versions,
    )
    done = step(reading, POLICY, {OWN.rubric_hash: 0.9})
    (event,) = done.events
    assert (event.kind, event.instrument) == ("judge_changed", OTHER)
    assert event.message == "openai:other took the place of openai:fake"
    (over,) = done.resolutions
    assert (over.event_id, over.resolution) == (alarmed.events[0].event_id, "replaced")
    assert {stream.key: stream.phase for stream in done.streams} == {KEY: "ended", (1, 2): "learning"}
    # A bridge goes on scoring with it: counted, and not watched. When it is taken back it goes on where it was.
    ended = next(stream for stream in done.streams if stream.key == KEY)
    bridged = step(a_reading(scores([False] * 60, 1010), streams=[ended], versions=versions), POLICY, {})
    assert (bridged.streams[0].phase, bridged.streams[0].records) == ("ended", ended.records + 60)
    back = [a_version(OWN, "active", 400), a_version(OTHER, "retired", 310)]
    revived = step(a_reading(scores([True] * 5, 1100), streams=[ended], versions=back), POLICY, {OWN.rubric_hash: 0.9})
    assert (revived.streams[0].phase, revived.streams[0].reference) == ("watching", 0.9)


def test_a_changed_rubric_and_changed_settings_are_called_so():
    rubric = OWN._replace(rubric_version="2-bbbbbbbb", rubric_hash="b" * 64)
    settings = OWN._replace(judge_fingerprint="3" * 64)
    for after, kind, message in (
        (rubric, "rubric_changed", "relevance 2-bbbbbbbb took the place of 1-aaaaaaaa"),
        (settings, "judge_changed", "openai:fake took the place of other settings of openai:fake"),
    ):
        versions = [a_version(OWN, "retired", -600), a_version(after, "active", 5)]
        (event,) = step(a_reading([], versions=versions), POLICY, {}).events
        assert (event.kind, event.message, event.details["before"]["rubric_hash"]) == (kind, message, OWN.rubric_hash)


def test_what_changed_before_there_was_a_watch_is_no_event():
    versions = [a_version(OWN, "retired", -60 * 24 * 9), a_version(OTHER, "active", -60 * 24 * 8)]
    assert step(a_reading([], versions=versions), POLICY, {}).events == []
    assert step(a_reading([], versions=versions[1:]), POLICY, {}).events == [], "the first version is no change"


def test_a_judge_that_no_gate_placed_is_noticed_by_its_first_score():
    before = step(a_reading(scores([True] * 10)), POLICY, {}).streams
    reading = a_reading(scores([True] * 3, 10, key=(1, 2)), streams=before, instruments={KEY: OWN, (1, 2): OTHER})
    (event,) = step(reading, POLICY, {}).events
    assert (event.kind, event.happened_at) == ("judge_changed", reading.scores[0].timestamp)


def test_a_model_that_changes_behind_its_name_is_an_event():
    given = [*scores([True] * 3, model="fake-2026-01"), *scores([True] * 3, 3, model="fake-2026-06")]
    done = step(a_reading(given), POLICY, {})
    (event,) = done.events
    assert event.kind == "model_changed"
    assert event.message == "fake-2026-06 answers in place of fake-2026-01, under the same settings"
    # Two that take turns are two, once.
    again = step(a_reading(scores([True] * 3, 6, model="fake-2026-01"), streams=done.streams), POLICY, {})
    assert again.events == []


def test_a_stream_that_falls_silent_ends_and_so_does_its_alarm():
    rng = np.random.default_rng(4)
    alarmed = step(a_reading(scores([*(rng.random(600) < 0.95), *([False] * 60)])), POLICY, {OWN.rubric_hash: 0.9})
    assert alarmed.streams[0].phase == "alarmed"
    later = scores([True], PER_HOUR * 24 * 8, key=(2, 1))
    done = step(a_reading(later, streams=alarmed.streams, instruments={KEY: OWN, (2, 1): OWN}), POLICY, {})
    assert done.resolutions[0].resolution == "ended"
    assert next(stream for stream in done.streams if stream.key == KEY).phase == "ended"


# -- verdicts


def a_drop(pass_ratio: float = 0.8, since: datetime | None = None) -> ChangeEvent:
    return ChangeEvent(
        event_id="e",
        kind="drop",
        instrument=OWN,
        happened_at=START,
        noted_at=START,
        message="it dropped",
        details={"target": 0.9, "pass_ratio": pass_ratio} | ({} if since is None else {"since": since.isoformat()}),
    )


def a_canary(
    cause: str,
    minutes: float = 10,
    *,
    trigger: str = "alarm",
    baseline_at: datetime | None = START,
    lower: float | None = None,
) -> CanaryRun:
    moment = START + timedelta(minutes=minutes)
    return CanaryRun(
        run_id="c",
        instrument=OWN,
        trigger=trigger,  # type: ignore[arg-type]
        started_at=moment,
        finished_at=moment,
        cause=cause,  # type: ignore[arg-type]
        reason=f"because {cause}",
        baseline=False,
        repeats=3,
        scores={},
        passes={},
        items=100,
        compared=100,
        baseline_at=None if baseline_at is None else baseline_at - timedelta(days=3),
        lower=lower,
    )


CHANGED = ChangeEvent(event_id="j", kind="judge_changed", instrument=OWN, happened_at=START, message="B for A")


@pytest.mark.parametrize(
    ("drops", "canary", "changed", "verdict"),
    [
        ([], None, None, "none"),
        ([], a_canary("product"), None, "none"),
        ([a_drop()], None, None, "unknown"),
        ([a_drop()], a_canary("product"), None, "product"),
        ([a_drop()], a_canary("product", -10), None, "unknown"),  # it ran before
        ([a_drop()], a_canary("unknown"), None, "unknown"),
        ([a_drop()], a_canary("none", baseline_at=None), None, "unknown"),  # its first run
        ([a_drop()], a_canary("product", baseline_at=START + timedelta(days=4)), None, "unknown"),
        # Its first run was between the onset and the alarm: it compares the changed judge with itself.
        ([a_drop(since=START - timedelta(days=4))], a_canary("product"), None, "unknown"),
        ([a_drop(), a_drop(since=START - timedelta(days=4))], a_canary("product"), None, "unknown"),
        ([a_drop(since=START - timedelta(days=2))], a_canary("product"), None, "product"),
        # It cannot tell whether it moved by four points: enough for ten, not for five.
        ([a_drop(0.8)], a_canary("unknown", lower=-0.04), None, "product"),
        ([a_drop(0.85)], a_canary("unknown", lower=-0.04), None, "unknown"),
        ([a_drop(0.85), a_drop(0.7)], a_canary("unknown", lower=-0.04), None, "product"),
        ([a_drop(0.5)], a_canary("judge", lower=-0.04), None, "judge"),
        ([a_drop()], a_canary("judge"), None, "judge"),
        ([], a_canary("judge"), None, "judge"),
        ([a_drop()], a_canary("product"), CHANGED, "judge"),
        ([], None, CHANGED, "judge"),
    ],
)
def test_whose_fault_it_is(drops, canary, changed, verdict):
    found, reason = judge_verdict(drops=drops, canary=canary, changed=changed)
    assert found == verdict
    assert reason
    assert not reason.endswith(".")
    assert judge_verdict(drops=drops, canary=canary, changed=changed, retired=True)[0] == "none"


@pytest.mark.parametrize(
    ("canary", "cleared"),
    [
        (a_canary("product", trigger="change"), True),
        (a_canary("product", trigger="command"), True),  # whoever asked
        (a_canary("none", trigger="change"), True),  # accepted since
        (a_canary("judge", trigger="change"), False),
        (a_canary("unknown", trigger="change"), False),
        (a_canary("product", -10), False),  # it ran before
        (a_canary("product", baseline_at=START + timedelta(days=4)), False),  # it reads as it first did itself
        (a_canary("none", baseline_at=None), False),
    ],
)
def test_a_new_judge_is_cleared_by_a_run_that_reads_as_was_read_before_it(canary, cleared):
    assert clears(canary, CHANGED) is cleared
