"""Differences between weighted groups: against the survey formula, the bootstrap and a seeded simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.differences import Sample, amount_difference, holm, mean_amount, mean_score, pass_rate, share_difference
from assay.windows import Sums, pass_ratio, score_mean, wilson


def sample(records, weights, values) -> Sample:
    return Sample.of(list(records), list(weights), list(values))


def drawn(rng: np.random.Generator, n: int, pass_probability: float, first: int = 0) -> Sample:
    """Records of which every fourth is of a kind that is sampled with 0.1 and passes 20 points less often."""
    rare = rng.random(n) < 0.25
    kept = rng.random(n) < np.where(rare, 1.0, 0.1)
    passes = rng.random(n) < pass_probability - 0.2 * rare
    return sample(first + np.flatnonzero(kept), np.where(rare, 1.0, 10.0)[kept], passes[kept].astype(float))


def linearised(group: Sample, baseline: Sample) -> tuple[float, float]:
    """Difference of two Hájek means and its standard error, record by record: Särndal et al. 1992, 5.5 to 5.7.

    One residual for each record of the population that was sampled, zero where it is in neither group.
    """
    means = [float(np.average(s.values, weights=s.weights)) for s in (group, baseline)]
    residuals: dict[int, float] = {}
    for sign, mean, s in ((1, means[0], group), (-1, means[1], baseline)):
        for record, w, y in zip(s.records, s.weights, s.values, strict=True):
            residuals[int(record)] = residuals.get(int(record), 0.0) + sign * w * (y - mean) / s.weights.sum()
    return means[0] - means[1], math.sqrt(sum(r * r for r in residuals.values()))


def test_the_estimates_are_the_gauges() -> None:
    rng = np.random.default_rng(1)
    one = drawn(rng, 2000, 0.9)
    sums = sum(
        (Sums.of(weight=w, value=y, passed=y >= 1) for w, y in zip(one.weights, one.values, strict=True)), Sums()
    )
    for ours, gauge in ((pass_rate(one), pass_ratio(sums)), (mean_score(one), score_mean(sums))):
        assert ours is not None
        assert gauge is not None
        for name in ("value", "lower", "upper", "n_effective"):
            assert getattr(ours, name) == pytest.approx(getattr(gauge, name))


@pytest.mark.parametrize("overlap", [0.0, 0.6, 1.0])
def test_amounts_agree_with_the_survey_formula(overlap: float) -> None:
    rng = np.random.default_rng(2)
    n = 400
    numbers = np.arange(n)
    moved = numbers + round(n * (1 - overlap))
    cost, w = rng.gamma(2.0, 0.01, 2 * n), rng.choice([1.0, 5.0, 20.0], 2 * n)
    group = sample(moved, w[moved], cost[moved] * 1.3)
    baseline = sample(numbers, w[numbers], cost[numbers])
    found = amount_difference(group, baseline)
    value, error = linearised(group, baseline)
    assert found is not None
    assert found.value == pytest.approx(value)
    # The survey formula has no small-sample factor of n / (n - 1) for each group.
    assert (found.upper - found.lower) / (2 * 1.96) == pytest.approx(error, rel=0.003)


def test_shares_agree_with_the_survey_formula_where_there_is_much() -> None:
    rng = np.random.default_rng(3)
    group, baseline = drawn(rng, 40_000, 0.8), drawn(rng, 40_000, 0.85, first=40_000)
    found = share_difference(group, baseline, passes=True)
    value, error = linearised(group, baseline)
    assert found is not None
    assert found.value == pytest.approx(value)
    assert (found.upper - found.lower) / (2 * 1.96) == pytest.approx(error, rel=0.02)
    assert found.p_value == pytest.approx(math.erfc(abs(value) / error / math.sqrt(2)), rel=0.2)


def test_shares_agree_with_the_bootstrap_where_records_are_in_both() -> None:
    rng = np.random.default_rng(4)
    n = 600
    hard, w = rng.random(n), rng.choice([1.0, 4.0], n)
    old, new = (hard < 0.75).astype(float), (hard + 0.1 * rng.standard_normal(n) < 0.82).astype(float)
    found = share_difference(sample(range(n), w, new), sample(range(n), w, old), passes=True)
    picks = rng.integers(0, n, (4000, n))
    seen = ((new - old)[picks] * w[picks]).sum(axis=1) / w[picks].sum(axis=1)
    assert found is not None
    assert found.value == pytest.approx(np.average(new - old, weights=w))
    assert found.lower == pytest.approx(np.quantile(seen, 0.025), abs=0.012)
    assert found.upper == pytest.approx(np.quantile(seen, 0.975), abs=0.012)
    apart = share_difference(sample(range(n), w, new), sample(range(n, 2 * n), w, old), passes=True)
    assert apart is not None
    assert apart.upper - apart.lower > 1.4 * (found.upper - found.lower)


def test_without_weights_it_is_newcombes_interval() -> None:
    # Newcombe 1998, table II, example (a): 56/70 against 48/80, method 10.
    group = sample(range(70), [1.0] * 70, [1.0] * 56 + [0.0] * 14)
    baseline = sample(range(70, 150), [1.0] * 80, [1.0] * 48 + [0.0] * 32)
    found = share_difference(group, baseline, passes=True)
    assert found is not None
    assert found.value == pytest.approx(0.2)
    # Ours count n - 1, as the gauges do.
    assert (found.lower, found.upper) == pytest.approx((0.0524, 0.3339), abs=0.002)
    assert wilson(0.8, 70) == pytest.approx((0.6918, 0.8769), abs=1e-3)


@pytest.mark.parametrize(("n", "passing"), [(600, (0.9, 0.9)), (600, (0.95, 0.85)), (2500, (0.97, 0.97))])
def test_the_interval_covers_19_times_in_20(n: int, passing: tuple[float, float]) -> None:
    rng = np.random.default_rng(20260301)
    truth, covered, runs = passing[0] - passing[1], 0, 1000
    for _ in range(runs):
        group, baseline = drawn(rng, n, passing[0]), drawn(rng, n, passing[1], first=n)
        found = share_difference(group, baseline, passes=True)
        assert found is not None
        covered += found.lower <= truth <= found.upper
        assert (found.p_value < 0.05) == (not found.lower <= 0 <= found.upper)
    # Three standard errors of the simulation are 2 points.
    assert 0.93 <= covered / runs <= 0.985


def test_the_interval_of_a_cost_covers_19_times_in_20() -> None:
    rng = np.random.default_rng(20260302)
    covered, runs = 0, 1000
    for _ in range(runs):
        parts = []
        for first in (0, 1000):
            w = rng.choice([1.0, 10.0], 300)
            parts.append(sample(range(first, first + 300), w, rng.gamma(2.0, 0.01, 300)))
        found = amount_difference(*parts)
        assert found is not None
        covered += found.lower <= 0 <= found.upper
    assert 0.92 <= covered / runs <= 0.97


def test_nothing_is_said_of_nothing() -> None:
    empty, one = sample([], [], []), sample([1], [2.0], [1.0])
    assert share_difference(empty, one, passes=True) is None
    assert share_difference(one, empty, passes=False) is None
    assert amount_difference(one, one) is None
    assert mean_amount(empty) is None
    amount = mean_amount(one)
    assert amount is not None
    assert (amount.value, amount.lower, amount.upper) == (1.0, None, None)
    assert pass_rate(empty) is mean_score(empty) is None


def test_all_alike_is_no_certainty() -> None:
    group, baseline = sample(range(40), [1.0] * 40, [1.0] * 40), sample(range(40, 90), [3.0] * 50, [1.0] * 50)
    found = share_difference(group, baseline, passes=True)
    assert found is not None
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert found.lower < -0.05 < 0.05 < found.upper
    same = amount_difference(group, baseline)
    assert same is not None
    assert (same.value, same.lower, same.upper, same.p_value) == (0.0, 0.0, 0.0, 1.0)


@given(
    st.lists(st.tuples(st.floats(1, 1e6), st.booleans()), min_size=1, max_size=60),
    st.lists(st.tuples(st.floats(1, 1e6), st.booleans()), min_size=1, max_size=60),
    st.integers(0, 60),
)
def test_an_interval_holds_its_value_and_turns_with_the_sides(a, b, shift) -> None:
    group = sample(range(len(a)), [w for w, _ in a], [float(p) for _, p in a])
    baseline = sample(range(shift, shift + len(b)), [w for w, _ in b], [float(p) for _, p in b])
    there, back = share_difference(group, baseline, passes=True), share_difference(baseline, group, passes=True)
    assert there is not None
    assert back is not None
    assert -1 <= there.lower <= there.value <= there.upper <= 1
    assert (back.value, back.lower, back.upper) == pytest.approx((-there.value, -there.upper, -there.lower), abs=1e-9)
    assert 0 <= there.p_value <= 1


def test_holm_is_holm() -> None:
    # The example of R's p.adjust documentation, by hand: (m - rank) p, never below the one before.
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, 0.01]) == pytest.approx([0.04, 0.02])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
