"""Ranks and correlations: the examples of scipy's and scikit-learn's docs, scipy on random data, and intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assay.calibration.bootstrap import Bootstrap
from assay.calibration.ranks import (
    kendalltau,
    kendalltau_ci,
    pearsonr,
    pearsonr_ci,
    roc_auc_ci,
    roc_auc_score,
    spearmanr,
    spearmanr_ci,
)

columns = st.integers(3, 40).flatmap(
    lambda n: st.tuples(*(st.lists(st.one_of(st.integers(0, 4), st.floats(0, 4)), min_size=n, max_size=n),) * 2)
)


def same(found, expected):
    return found is None if math.isnan(expected) else found == pytest.approx(expected, abs=1e-9)


def test_a8_spearman_and_kendall_of_the_scipy_docs():
    assert spearmanr([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207827, abs=5e-8)
    assert kendalltau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.4714045, abs=5e-8)


def test_a9_auc_of_the_scikit_learn_docs():
    assert roc_auc_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == pytest.approx(0.75)


@given(columns)
def test_rank_correlations_are_scipys(case):
    x, y = (np.array(column, dtype=float) for column in case)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert spearmanr(x, y) is None
        assert kendalltau(x, y) is None
        return
    assert same(spearmanr(x, y), stats.spearmanr(x, y).statistic)
    assert same(kendalltau(x, y), stats.kendalltau(x, y).statistic)


@given(st.integers(0, 10_000))
def test_pearson_is_scipys(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.choice([0, 1e6]), 1, 30)
    y = 0.4 * x + rng.normal(size=30)
    assert pearsonr(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-7)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=60))
def test_auc_is_mann_whitney(rows):
    y, score = np.array(rows).T
    if y.min() == y.max():
        assert roc_auc_score(y, score) is None
        return
    u = stats.mannwhitneyu(score[y == 1], score[y == 0]).statistic
    assert roc_auc_score(y, score) == pytest.approx(u / (y.sum() * (1 - y).sum()))


def test_kendall_in_blocks_is_scipys():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, 700).astype(float)
    y = x + rng.normal(0, 10, 700)
    assert kendalltau(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 4)), min_size=3, max_size=25))
def test_weights_are_copies(rows):
    x, y, w = np.array(rows).T
    many = np.repeat(x, w), np.repeat(y, w)
    for function in (spearmanr, pearsonr):
        once, copies = function(x, y, sample_weight=w), function(*many)
        assert once == (None if copies is None else pytest.approx(copies, abs=1e-9))
    label = x >= 2
    once, copies = roc_auc_score(label, y, sample_weight=w), roc_auc_score(np.repeat(label, w), many[1])
    assert once == (None if copies is None else pytest.approx(copies))


def test_undecided_labels_count_for_nothing_in_auc():
    assert roc_auc_score([0, 0, 0.5, 1, 1], [0.1, 0.4, 0.0, 0.35, 0.8]) == pytest.approx(0.75)


def test_a14_constant_columns_have_no_correlation_and_no_auc():
    ones, score = [1] * 40, np.linspace(0, 1, 40)
    for found in (
        roc_auc_ci(ones, score),
        spearmanr_ci(ones, score),
        pearsonr_ci(ones, score),
        kendalltau_ci(ones, score),
    ):
        assert found.value is None
        assert found.reason
    assert (roc_auc_score(ones, score), spearmanr(score, ones), pearsonr(ones, score)) == (None, None, None)
    assert (roc_auc_score([], []), spearmanr([], []), pearsonr([], []), kendalltau([], [])) == (None,) * 4


def plain_bootstrap(function, x, y, clusters=None, resamples=500):
    """Percentile interval by really drawing records, or clusters, and computing the statistic anew."""
    rng = np.random.default_rng(99)
    n = len(x)
    members = [np.flatnonzero(clusters == c) for c in np.unique(clusters)] if clusters is not None else None
    values = []
    for _ in range(resamples):
        if members is None:
            chosen = rng.integers(0, n, n)
        else:
            chosen = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        values.append(function(x[chosen], y[chosen]))
    return np.quantile(values, [0.025, 0.975])


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize(
    ("interval", "function"), [(roc_auc_ci, roc_auc_score), (spearmanr_ci, spearmanr), (pearsonr_ci, pearsonr)]
)
def test_bootstrap_is_that_of_resampled_records(interval, function, clustered):
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 30, 120)
    quality = rng.normal(size=120) + rng.normal(size=30)[clusters]
    score = np.round(quality + rng.normal(0, 1, 120), 1)
    truth = (quality > -0.3).astype(float) if function is roc_auc_score else quality
    groups = clusters if clustered else None
    found = interval(truth, score, bootstrap=Bootstrap(120, clusters=groups, n_resamples=2000, seed=5))
    lower, upper = plain_bootstrap(function, truth, score, groups)
    width = upper - lower
    assert found.value == pytest.approx(function(truth, score))
    assert (found.lower, found.upper) == pytest.approx((lower, upper), abs=width / 6)


def test_kendall_jackknife_covers():
    rng = np.random.default_rng(7)
    rho = 0.6
    truth = 2 / math.pi * math.asin(rho)
    held = []
    for _ in range(600):
        x = rng.normal(size=80)
        found = kendalltau_ci(x, rho * x + math.sqrt(1 - rho**2) * rng.normal(size=80))
        held.append(found.lower <= truth <= found.upper)
    assert 0.92 <= np.mean(held) <= 0.975


@pytest.mark.parametrize("n_clusters", [1, 4])
def test_few_clusters_have_a_value_and_no_interval(n_clusters):
    rng = np.random.default_rng(2)
    clusters = np.arange(60) % n_clusters
    y = np.tile([0.0, 1.0], 30)
    score, draws = y + rng.normal(size=60), Bootstrap(60, clusters=clusters)
    found = [f(y, score, bootstrap=draws) for f in (roc_auc_ci, pearsonr_ci, spearmanr_ci)]
    found += [roc_auc_ci(y, y, bootstrap=draws), kendalltau_ci(y, score, clusters=clusters)]
    for statistic in found:
        assert statistic.value is not None
        assert (statistic.lower, statistic.upper) == (None, None)
        assert statistic.reason.startswith(f"only {n_clusters} cluster")


def test_perfect_ranking_of_copies_is_known_no_better_than_of_their_clusters():
    y, clusters = np.repeat([0.0, 1.0], 60), np.arange(120) // 10
    alone, together = (roc_auc_ci(y, y, bootstrap=Bootstrap(120, clusters=c)) for c in (None, clusters))
    assert together.lower < alone.lower < 1.0


def test_kendall_with_clusters_is_wider():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(20), 10)
    x = rng.normal(size=20)[clusters] + 0.01 * rng.normal(size=200)
    y = x + rng.normal(size=20)[clusters]
    alone, together = kendalltau_ci(x, y), kendalltau_ci(x, y, clusters=clusters)
    assert together.half_width > 2 * alone.half_width
    assert kendalltau_ci([1, 2], [1, 2]).lower is None


def test_a_perfect_ranking_is_still_bounded():
    found = roc_auc_ci([0] * 12 + [1] * 50, np.linspace(0, 1, 62))
    assert (found.value, found.upper) == (1.0, 1.0)
    assert 0.6 < found.lower < 0.9


def test_same_seed_same_digits():
    rng = np.random.default_rng(1)
    y, score = rng.random(50) < 0.7, rng.random(50)
    first, second, other = (roc_auc_ci(y, score, bootstrap=Bootstrap(50, seed=seed)) for seed in (3, 3, 4))
    assert first == second
    assert first.lower != other.lower
