"""Alarms, canaries and shapes: known answers, false alarms at the promised rate, changes found."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assay.calibration import EDetector, attribute, canary_compare
from assay.calibration.drift import (
    betting_martingale,
    population_stability_index,
    psi_critical,
    psi_p_value,
)


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        # confseq's betting_mart(theta=1/2, trunc_scale=1/2), after 10, 50, 100 and 200 values.
        (0.8, (0.721627, 3.131003, 18.64628, 294.845566)),
        (0.85, (0.535113, 0.702015, 1.135706, 3.329719)),
        (0.9, (0.406696, 0.17802, 0.078395, 0.041359)),
        (0.95, (0.315841, 0.546674, 1.218901, 4.216414)),
        (0.98, (0.921769, 6.29327, 30.403009, 288.4524)),
    ],
)
def test_d1_betting_martingale(mean, expected):
    capital = betting_martingale(([1] * 9 + [0]) * 20, mean)
    assert capital[[9, 49, 99, 199]] == pytest.approx(expected, rel=1e-5)


def test_betting_martingale_seldom_reaches_1_over_alpha():
    rng = np.random.default_rng(0)
    reached = [betting_martingale(rng.random(400) < 0.9, 0.9).max() >= 20 for _ in range(1000)]
    assert np.mean(reached) <= 0.05
    assert betting_martingale([], 0.5).shape == (0,)
    with pytest.raises(ValueError, match="between 0 and 1"):
        betting_martingale([1, 0], 1.0)


def by_definition(values, objective, run_length, bets=8):
    """The six lines of the paper, in numpy; the number of the record that alarms, from 1."""
    bet = np.linspace(0.05, 0.95, bets) * 0.5 / (1 - objective)
    total = np.zeros(bets)
    for number, x in enumerate(values, start=1):
        total = (total + 1) * (1 + bet * (objective - x))
        if total.mean() >= run_length:
            return number
    return None


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.9, 0.95]), st.sampled_from([50, 1000]), st.floats(0.3, 1.0))
def test_detector_is_the_definition(seed, objective, run_length, rate):
    values = np.random.default_rng(seed).random(600) < rate
    detector = EDetector(objective, run_length)
    detector.extend(values)
    assert detector.alarmed_at == by_definition(values, objective, run_length)


@pytest.mark.parametrize(("objective", "seed"), [(0.9, 1), (0.95, 2), (0.5, 3)])
def test_d2_mean_run_length_to_a_false_alarm(objective, seed):
    """Mean exactly at the objective, 400 streams: at least 1,000 records to the alarm, and few soon after the start."""
    rng = np.random.default_rng(seed)
    lengths = []
    for _ in range(400):
        detector = EDetector(objective, 1000)
        while not detector.alarmed_at:
            for x in (rng.random(500) < objective).tolist():
                if detector.update(x):
                    break
        lengths.append(detector.alarmed_at)
    print(f"objective {objective}: mean run length {np.mean(lengths):.0f}")
    assert np.mean(lengths) >= 1000
    assert np.mean(np.array(lengths) < 100) <= 0.05


@given(st.integers(0, 2**32 - 1), st.integers(0, 400))
def test_d3_saved_and_restored_it_alarms_at_the_same_record(seed, cut):
    rng = np.random.default_rng(seed)
    given = list(zip((rng.random(400) < 0.8).tolist(), rng.uniform(0.1, 1.0, 400).tolist(), strict=True))
    whole, first = EDetector(0.9, 300), EDetector(0.9, 300)
    for x, share in given:
        whole.update(x, share)
    for x, share in given[:cut]:
        first.update(x, share)
    second = EDetector.from_state(json.loads(json.dumps(first.state(), allow_nan=False)))
    for x, share in given[cut:]:
        second.update(x, share)
    assert second.alarmed_at == whole.alarmed_at
    assert second.state() == whole.state()
    assert second.log_e == whole.log_e


def test_a_drop_is_found_in_time():
    rng = np.random.default_rng(4)
    delays = []
    for _ in range(40):
        detector = EDetector(0.9, 34_000)  # 200 an hour, a false alarm a week
        detector.extend(rng.random(2000) < 0.93)
        if detector.alarmed_at:
            continue
        detector.extend(rng.random(3000) < 0.80)
        delays.append(detector.alarmed_at - 2000)
    assert len(delays) >= 38
    assert 80 < np.mean(delays) < 250


def test_above_its_objective_it_is_silent():
    detector = EDetector(0.9, 1000)
    detector.extend(np.random.default_rng(0).random(50_000) < 0.95)
    assert detector.alarmed_at is None
    assert detector.log_e < detector.log_threshold


def test_a_very_long_alarm_stays_finite():
    detector = EDetector(0.9, 1000)
    assert detector.log_e is None
    assert detector.extend([0.0] * 5000)
    assert detector.alarmed_at < 20
    json.dumps(detector.state(), allow_nan=False)
    assert detector.log_e > detector.log_threshold
    assert detector.update(1.0)
    detector.reset()
    assert (detector.n, detector.alarmed_at, detector.log_e) == (0, None, None)
    assert not detector.update(1.0)


@pytest.mark.parametrize("x", [-0.1, 1.1, float("nan")])
def test_detector_refuses_what_is_no_score(x):
    with pytest.raises(ValueError, match="not in"):
        EDetector(0.9, 100).update(x)


@pytest.mark.parametrize(
    ("objective", "run_length", "bets"), [(0, 100, 8), (1, 100, 8), (float("nan"), 100, 8), (0.9, 1, 8), (0.9, 100, 0)]
)
def test_detector_refuses_what_it_cannot_guarantee(objective, run_length, bets):
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own words
        EDetector(objective, run_length, bets=bets)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_detector_refuses_what_is_no_share(share):
    detector = EDetector(0.9, 100)
    with pytest.raises(ValueError, match="share"):
        detector.update(1.0, share)
    assert detector.n == 0


def test_shares_by_hand():
    detector = EDetector(0.9, 100, bets=1)
    bet = 0.25 / 0.1
    detector.update(0.0, 0.2)
    first = (0.0 + 1.0) * (1 + bet * 0.2 * 0.9)
    assert detector.log_e == pytest.approx(np.log(first))
    detector.update(1.0, 0.5)
    second = (first + 0.2) * (1 + bet * 0.5 * (0.9 - 1.0))
    assert detector.log_e == pytest.approx(np.log(second))
    detector.update(0.5)
    assert detector.log_e == pytest.approx(np.log((second + 0.5) * (1 + bet * 0.4)))


@pytest.mark.parametrize("objective", [0.8, 0.9])
@pytest.mark.parametrize("often", [0.0, 1.0], ids=["fails", "passes"])
def test_d2_the_shares_to_a_false_alarm_are_as_promised_when_weights_hang_on_the_outcome(objective, often):
    """Interactions exactly at the objective; those of one outcome are sampled two and a half times as often."""
    rng = np.random.default_rng(23)
    sums = []
    for _ in range(200):
        detector, shares = EDetector(objective, 500), 0.0
        while detector.alarmed_at is None:
            for x in (rng.random(500) < objective).tolist():
                probability = 0.9 if rng.random() < (0.8 if x == often else 0.2) else 0.15
                if rng.random() < probability:
                    share = 0.15 / probability
                    shares += share
                    if detector.update(float(x), share):
                        break
        sums.append(shares)
    print(f"objective {objective}, {often}: {np.mean(sums):.0f}")
    assert np.mean(sums) >= 500
    assert np.mean(np.array(sums) < 50) <= 0.08


def test_another_objective_holds_from_the_next_record_on_saved_or_not():
    detector = EDetector(0.5, 300)
    detector.extend([1.0, 0.0])
    detector.objective = 0.8
    again = EDetector.from_state(json.loads(json.dumps(detector.state(), allow_nan=False)))
    assert again.extend([0.0] * 3) == detector.extend([0.0] * 3)
    assert again.state() == detector.state()
    with pytest.raises(ValueError, match="objective"):
        detector.objective = 1.0


def judged(rng, propensity, repeats, harsher=1.0):
    """Scores of each canary, pass 1 or fail 0, at each repeat."""
    scores = rng.random((len(propensity), repeats)) < (propensity * harsher)[:, None]
    return {f"canary-{index}": row.astype(float).tolist() for index, row in enumerate(scores)}


def canaries(n=100, pass_rate=0.75, flip=0.05):
    """Propensities to pass such that two runs disagree on a share `flip` of the records."""
    sure = (1 + np.sqrt(1 - 2 * flip)) / 2
    return np.where(np.arange(n) < pass_rate * n, sure, 1 - sure)


def test_d6_canary_of_100_by_3():
    """Flip rate 5 %, alpha 0.01: an unchanged judge alarms in at most 2 % of runs, a harsher one in at least 85 %."""
    rng = np.random.default_rng(6)
    propensity = canaries()
    false, found = [], []
    for _ in range(500):
        baseline = judged(rng, propensity, 3)
        false.append(canary_compare(baseline, judged(rng, propensity, 3)).cause == "judge")
        found.append(canary_compare(baseline, judged(rng, propensity, 3, 0.9)).cause == "judge")
    print(f"false alarms {np.mean(false):.3f}, power {np.mean(found):.3f}")
    assert np.mean(false) <= 0.02
    assert np.mean(found) >= 0.85


def test_canary_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    baseline, now = judged(rng, canaries(), 3), judged(rng, canaries(), 2)
    found = canary_compare(baseline, now)
    before, after = ([np.mean(run[name]) for name in baseline] for run in (baseline, now))
    expected = stats.ttest_rel(after, before)
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.99)
    # It leans a little to the side that the differences are skewed to.
    assert interval.low - 0.01 < found.shift.lower <= interval.low + 1e-9
    assert interval.high - 1e-9 <= found.shift.upper < interval.high + 0.01
    assert interval.low == pytest.approx(found.shift.lower) or interval.high == pytest.approx(found.shift.upper)
    assert (found.n, found.missing) == (100, 0)


def test_canary_of_a_judge_that_repeats_itself():
    same = {f"canary-{index}": [0.8, 0.8] for index in range(175)}
    unmoved = canary_compare(same, same)
    assert (unmoved.cause, unmoved.shift.value, unmoved.p_value) == ("product", 0.0, 1.0)
    moved = canary_compare(same, {name: [0.7] for name in same})
    assert (moved.cause, moved.p_value) == ("judge", 0.0)
    assert moved.shift.value == pytest.approx(-0.1)


@pytest.mark.parametrize(("n", "open_points"), [(30, 0.17), (60, 0.09), (100, 0.06)])
def test_few_records_that_are_read_alike_leave_something_open(n, open_points):
    """The rule of three at 99 %: what nobody has seen in n records may still be in 5.3 of n of them."""
    same = {f"canary-{index}": [1.0, 1.0, 1.0] for index in range(n)}
    found = canary_compare(same, same)
    assert found.cause == "unknown"
    assert found.shift.upper == -found.shift.lower == pytest.approx(1 - 0.005 ** (1 / n))
    assert found.shift.upper <= open_points


@pytest.mark.parametrize("n", [30, 40, 60, 100, 175, 250, 400, 800])
def test_a_harsher_judge_is_hardly_ever_acquitted(n):
    """A judge that repeats itself and fails what it passed, so often: called unchanged in at most 0.5 % of the runs."""

    def acquitted_with(fails):
        before = {str(at): [1.0] * 3 for at in range(n)}
        after = {name: [float(at >= fails)] * 3 for at, name in enumerate(before)}
        return canary_compare(before, after).cause == "product"

    fails = [k for k in range(n // 10) if acquitted_with(k)]
    for harsher in (0.03, 0.05, 0.08):
        assert stats.binom.pmf(fails, n, harsher).sum() <= 0.005, (harsher, fails)


def test_a_noisy_harsher_judge_is_hardly_ever_acquitted():
    rng = np.random.default_rng(5)
    propensity = canaries(200)
    causes = [canary_compare(judged(rng, propensity, 3), judged(rng, propensity, 3, 0.95)).cause for _ in range(400)]
    assert causes.count("product") <= 2


def test_canary_says_what_it_could_not_compare():
    found = canary_compare({"a": [1], "b": [0], "c": []}, {"a": [1], "d": [1]})
    assert (found.n, found.missing, found.cause) == (1, 3, "unknown")
    assert found.shift.reason
    assert canary_compare({}, {}).cause == "unknown"
    json.dumps(asdict(found), allow_nan=False)
    with pytest.raises(ValueError, match=r"now\[a\]: value 0 is 3.0"):
        canary_compare({"a": [1]}, {"a": [3]})


def test_too_few_canaries_cannot_tell():
    rng = np.random.default_rng(1)
    propensity = canaries(12, flip=0.2)
    assert canary_compare(judged(rng, propensity, 1), judged(rng, propensity, 1)).cause == "unknown"


class TestD7:
    """A production stream with an alarm, and a canary run that the alarm triggers."""

    def replay(self, rng, *, product, harsher):
        propensity = np.repeat([0.99, 0.01], [150, 50])
        baseline = judged(rng, propensity, 3)
        detector = EDetector(0.85, 20_000)
        for truth, factor in ((0.93, 1.0), (product, harsher)):
            y = rng.random(3000) < truth
            detector.extend(np.where(y, rng.random(3000) < 0.97 * factor, rng.random(3000) < 0.2 * factor))
            if detector.alarmed_at:
                break
        canary = canary_compare(baseline, judged(rng, propensity, 3, harsher))
        return attribute(alarm=detector.alarmed_at is not None, canary=canary)

    def test_d7_a_worse_product_is_the_system(self):
        rng = np.random.default_rng(7)
        assert [self.replay(rng, product=0.78, harsher=1.0) for _ in range(10)].count("product") >= 9

    def test_d7_a_swapped_judge_is_the_judge(self):
        rng = np.random.default_rng(8)
        assert [self.replay(rng, product=0.93, harsher=0.8) for _ in range(10)] == ["judge"] * 10

    def test_d7_nothing_is_nothing(self):
        rng = np.random.default_rng(9)
        assert [self.replay(rng, product=0.93, harsher=1.0) for _ in range(10)].count("none") >= 9

    def test_an_alarm_without_a_canary_is_unknown(self):
        assert attribute(alarm=True, canary=None) == "unknown"
        assert attribute(alarm=False, canary=None) == "none"


def test_d4_population_stability_index():
    assert population_stability_index([25, 25, 25, 25], [10, 20, 30, 40]) == pytest.approx(0.228217, abs=5e-7)
    assert psi_critical(10, 100, 2000) == pytest.approx(0.177649, abs=5e-7)
    assert psi_p_value(0.1, 10, 100, 2000) == pytest.approx(0.390391, abs=5e-7)
    assert psi_p_value(psi_critical(10, 100, 2000, alpha=0.01), 10, 100, 2000) == pytest.approx(0.01)


def test_psi_alarms_as_often_as_it_says():
    rng = np.random.default_rng(0)
    share = np.full(10, 0.1)
    critical = psi_critical(10, 400, 2000)
    values = [
        population_stability_index(rng.multinomial(2000, share), rng.multinomial(400, share)) for _ in range(2000)
    ]
    assert 0.03 <= np.mean(np.array(values) > critical) <= 0.08


def test_psi_with_empty_bins_is_finite():
    assert np.isfinite(population_stability_index([50, 50, 0], [50, 0, 50]))
    assert population_stability_index([10, 20], [30, 60]) == pytest.approx(0.0)
    for expected, actual in (([1, 2], [1]), ([0, 0], [1, 1]), ([1, -1], [1, 1]), ([1, 1], [0, 0])):
        with pytest.raises(ValueError):  # noqa: PT011 - each has its own words
            population_stability_index(expected, actual)
