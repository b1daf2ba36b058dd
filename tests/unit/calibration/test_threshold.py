"""Thresholds by purpose: what each promises, it keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.calibration import choose_threshold
from assay.calibration.proportions import wilson_interval
from assay.calibration.score_map import isotonic_regression

scored = st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=4, max_size=80).filter(
    lambda rows: len({passed for passed, _ in rows}) == 2
)


def judge(rng, n, pass_rate=0.85, levels=None):
    y = rng.random(n) < pass_rate
    s = np.clip(rng.normal(np.where(y, 0.75, 0.45), 0.15), 0, 1)
    return y, np.round(s * levels) / levels if levels else s


def flagged(s, threshold):
    return np.asarray(s) < threshold - 1e-9


@given(scored)
def test_gauge_reads_as_near_the_truth_as_any_threshold(rows):
    y, s = np.array(rows).T
    s = s / 10
    found = choose_threshold(y, s, purpose="gauge")
    fails = (y == 0).sum()
    off = abs(flagged(s, found.value).sum() - fails)
    assert off == min(abs(flagged(s, cut).sum() - fails) for cut in np.arange(0, 1.01, 0.05))
    assert found.bias == pytest.approx((fails - flagged(s, found.value).sum()) / len(y))


@given(scored, st.sampled_from([(1.0, 1.0), (1.0, 5.0), (3.0, 1.0)]))
def test_triage_costs_least_which_is_the_rule_on_the_isotonic_map(rows, cost):
    y, s = np.array(rows).T
    s = s / 10

    def total(flags):
        return cost[0] * (flags & (y == 1)).sum() + cost[1] * (~flags & (y == 0)).sum()

    found = choose_threshold(y, s, purpose="triage", cost=cost)
    spent = total(flagged(s, found.value))
    assert spent == min(total(flagged(s, cut)) for cut in np.arange(0, 1.01, 0.05))
    # Fail where P(fail | score) > C_FP / (C_FP + C_FN). A score of 1 cannot be flagged.
    by_map = (1 - isotonic_regression(y, s) > cost[0] / sum(cost) + 1e-12) & (s < 1)
    assert spent <= total(by_map) + 1e-9
    if not (s == 1).any():
        assert spent == pytest.approx(total(by_map))


def test_a_miss_that_costs_more_flags_more():
    y, s = judge(np.random.default_rng(0), 400)
    thresholds = [choose_threshold(y, s, purpose="triage", cost=(1, miss)).value for miss in (0.2, 1, 5, 25)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] < thresholds[-1]


def test_block_by_precision_flags_as_much_as_it_may():
    y, s = judge(np.random.default_rng(0), 2000)
    found = choose_threshold(y, s, purpose="block", target=0.8)
    chosen = flagged(s, found.value)
    lower = wilson_interval((chosen & ~y).sum(), chosen.sum(), confidence=0.9)[0]
    assert lower >= 0.8
    assert chosen.sum() > 100
    assert found.fail_precision.value == pytest.approx((chosen & ~y).sum() / chosen.sum())
    strict = choose_threshold(y, s, purpose="block", target=0.95)
    assert strict.value is None or strict.value < found.value


def test_block_keeps_its_promise_though_it_looked_for_the_best():
    """One threshold is just below the target in truth: chosen in 5 % of label sets, and Wilson's slack on top."""
    rng = np.random.default_rng(2)
    target = 0.755
    big_y, big_s = judge(rng, 400_000, levels=20)
    precision = {cut: (~big_y[flagged(big_s, cut)]).mean() for cut in np.arange(0.125, 1, 0.05)}
    assert any(target - 0.015 < value < target for value in precision.values())

    def misses(at):
        return at is not None and (~big_y[flagged(big_s, at)]).mean() < target

    careful, greedy = [], []
    for _ in range(600):
        y, s = judge(rng, 600, levels=20)
        careful.append(misses(choose_threshold(y, s, purpose="block", target=target).value))
        seen = [cut for cut in precision if flagged(s, cut).any() and (~y[flagged(s, cut)]).mean() >= target]
        greedy.append(misses(max(seen, default=None)))
    assert 0.0 < np.mean(careful) <= 0.075
    # Taking the point value at its word is wrong half of the time.
    assert np.mean(greedy) > 0.35


def test_block_stops_at_the_first_threshold_that_fails():
    """Going on to look for one that does better later would be picking the luckiest."""
    s = np.repeat([0.1, 0.3, 0.5, 0.9], [60, 60, 600, 100])
    y = np.repeat([0, 1, 0, 1], [60, 60, 600, 100])
    found = choose_threshold(y, s, purpose="block", target=0.8)
    assert 0.1 < found.value <= 0.3
    # Flagging all below 0.9 would have a precision of 92 %.
    assert found.fail_recall.value == pytest.approx(60 / 660)


def test_block_by_recall_flags_as_little_as_it_may():
    y, s = judge(np.random.default_rng(0), 2000)
    found = choose_threshold(y, s, purpose="block", target=0.9, guarantee="recall")
    chosen = flagged(s, found.value)
    assert wilson_interval((chosen & ~y).sum(), (~y).sum(), confidence=0.9)[0] >= 0.9
    assert chosen.mean() < 0.6
    surer = choose_threshold(y, s, purpose="block", target=0.97, guarantee="recall")
    assert surer.value > found.value


def test_block_says_when_it_cannot():
    y, s = judge(np.random.default_rng(0), 60)
    found = choose_threshold(y, s, purpose="block", target=0.99)
    assert found.value is None
    assert found.decimal is None
    assert "99%" in found.reason
    assert found.fail_recall.value is None


def test_the_rank_of_the_weights_moves_the_gauge():
    y, s = judge(np.random.default_rng(1), 500)
    weight = np.where(y, 1.0, 4.0)
    even, weighted = choose_threshold(y, s), choose_threshold(y, s, sample_weight=weight)
    assert weighted.value > even.value
    assert abs(weighted.bias) < 0.02
    assert choose_threshold(y, s, sample_weight=weight * 7) == weighted


def test_clusters_make_block_more_careful():
    y, s = judge(np.random.default_rng(3), 300)
    copies = np.repeat(np.arange(300), 8)
    alone = choose_threshold(y[copies], s[copies], purpose="block", target=0.8)
    together = choose_threshold(y[copies], s[copies], purpose="block", target=0.8, clusters=copies)
    assert alone.value is not None
    assert together.value is None or together.value < alone.value


@given(scored, st.sampled_from(["gauge", "triage"]))
def test_the_decimal_is_the_number_and_short(rows, purpose):
    y, s = np.array(rows).T
    found = choose_threshold(y, s / 10, purpose=purpose)
    assert float(found.decimal) == found.value
    assert len(found.decimal) <= 4
    assert 0.0 <= found.value <= 1.0


def test_it_lies_between_two_scores():
    y = [0] * 10 + [1] * 10
    s = [0.2] * 10 + [0.25] * 10
    found = choose_threshold(y, s)
    assert 0.2 < found.value <= 0.25
    assert (found.fail_recall.value, found.fail_precision.value, found.kappa, found.bias) == (1.0, 1.0, 1.0, 0.0)
    close = choose_threshold(y, [0.2] * 10 + [0.2000001] * 10)
    assert flagged([0.2], close.value).all()
    assert not flagged([0.2000001], close.value).any()


@pytest.mark.parametrize("labels", [[1] * 10, [0] * 10])
def test_one_class_has_no_threshold(labels):
    for purpose in ("gauge", "triage", "block"):
        found = choose_threshold(labels, np.linspace(0, 1, 10), purpose=purpose)
        assert (found.value, found.kappa, found.bias) == (None, None, None)
        assert "one class" in found.reason


def test_a_constant_score_passes_or_fails_all():
    found = choose_threshold([1, 1, 1, 0], [0.7] * 4)
    assert found.value == 0.0
    assert found.fail_precision.reason == "it flags nothing"
    costly = choose_threshold([1, 1, 1, 0], [0.7] * 4, purpose="triage", cost=(1, 10))
    assert flagged([0.7], costly.value).all()


def test_bad_input():
    with pytest.raises(ValueError, match="above 0"):
        choose_threshold([1, 0], [0.1, 0.9], cost=(0, 1))
    with pytest.raises(ValueError, match="not in"):
        choose_threshold([1, 0], [0.1, 1.9])
