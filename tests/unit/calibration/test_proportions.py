"""Intervals and tests of counts: published values, statsmodels and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from assay.calibration.proportions import (
    clopper_pearson_interval,
    jeffreys_interval,
    mcnemar_exact,
    paired_difference_interval,
    wilson_interval,
)

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
levels = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_p1_wilson_newcombe_1998(count, total, expected):
    assert wilson_interval(count, total) == pytest.approx(expected, abs=5e-5)


def test_p2_clopper_pearson_and_jeffreys():
    assert clopper_pearson_interval(1, 29) == pytest.approx((0.000873, 0.177644), abs=1e-6)
    assert jeffreys_interval(1, 29) == pytest.approx((0.003746, 0.150077), abs=1e-6)
    assert jeffreys_interval(15, 148) == pytest.approx((0.060449, 0.157643), abs=1e-6)


@pytest.mark.parametrize(("b", "c", "expected"), [(86, 150, 3.716e-05), (6, 16, 0.05248), (1, 9, 0.02148), (0, 0, 1.0)])
def test_p5_mcnemar_exact(b, c, expected):
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=5e-4)
    assert mcnemar_exact(c, b) == mcnemar_exact(b, c)


@given(counts, levels)
def test_wilson_is_statsmodels(case, confidence):
    expected = proportion_confint(*case, alpha=1 - confidence, method="wilson")
    assert wilson_interval(*case, confidence=confidence) == pytest.approx(expected, abs=1e-9)


@given(counts, levels)
def test_clopper_pearson_is_statsmodels(case, confidence):
    expected = proportion_confint(*case, alpha=1 - confidence, method="beta")
    assert clopper_pearson_interval(*case, confidence=confidence) == pytest.approx(expected, abs=1e-8)


@given(counts, levels)
def test_jeffreys_is_statsmodels_inside_and_reaches_the_ends(case, confidence):
    count, total = case
    lower, upper = jeffreys_interval(count, total, confidence=confidence)
    expected = proportion_confint(count, total, alpha=1 - confidence, method="jeffreys")
    assert lower == (0.0 if count == 0 else pytest.approx(expected[0], abs=1e-8))
    assert upper == (1.0 if count == total else pytest.approx(expected[1], abs=1e-8))


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_statsmodels(b, c):
    expected = mcnemar([[0, b], [c, 0]], exact=True).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-7)


def test_mcnemar_of_very_many_pairs():
    assert mcnemar_exact(5000, 5300) == pytest.approx(stats.binomtest(5000, 10300).pvalue, rel=1e-7)


def test_nothing_seen_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert jeffreys_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [(-1, 5), (6, 5), (float("nan"), 5), (1, float("nan"))])
def test_refuses_what_is_no_proportion(bad):
    for interval in (wilson_interval, clopper_pearson_interval, jeffreys_interval):
        with pytest.raises(ValueError, match="proportion"):
            interval(*bad)


def test_paired_difference_has_a_width_without_disagreement():
    lower, upper = paired_difference_interval(0, 0, 50)
    assert lower < 0 < upper
    assert upper == pytest.approx(-lower)


def test_paired_difference_covers():
    rng = np.random.default_rng(5)
    more, less = rng.multinomial(60, [0.15, 0.05, 0.8], size=4000)[:, :2].T
    held = [low <= 0.1 <= high for low, high in map(paired_difference_interval, more, less, [60] * 4000)]
    assert 0.94 <= np.mean(held) <= 0.975
