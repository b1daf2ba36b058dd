"""Hájek means of labels: by hand, against the windows' sums, and with clusters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import WLS

from assay.calibration.means import hajek_mean, hajek_ratio
from assay.calibration.proportions import wilson_interval
from assay.windows import Sums, pass_ratio, score_mean


def sums_of(values, weights):
    total = Sums()
    for value, weight in zip(values, weights, strict=True):
        total += Sums.of(weight=float(weight), value=float(value), passed=value >= 0.5)
    return total


def test_p3_hajek_by_hand():
    two = hajek_mean([1, 0], sample_weight=[1, 3])
    assert two.value == pytest.approx(0.25)
    assert two.effective_clusters == pytest.approx(1.6)
    six = hajek_mean([1, 1, 0, 1, 0, 1], sample_weight=[1, 1, 1, 20, 20, 20])
    assert six.value == pytest.approx(2 / 3, abs=1e-4)
    assert six.variance == pytest.approx(0.0808264, abs=5e-8)
    assert six.effective_clusters == pytest.approx(3.29925, abs=5e-6)
    assert six.value * (1 - six.value) / six.variance == pytest.approx(2.74938, abs=5e-6)


@given(st.lists(st.booleans(), min_size=2, max_size=80), st.floats(0.5, 50))
def test_p4_equal_weights_are_no_weights(values, weight):
    plain, weighted = hajek_ratio(values), hajek_ratio(values, sample_weight=[weight] * len(values))
    assert weighted.value == pytest.approx(np.mean(values))
    assert weighted.n_effective == pytest.approx(len(values))
    assert (weighted.lower, weighted.upper) == pytest.approx(wilson_interval(sum(values), len(values)), abs=1e-9)
    assert (plain.value, plain.lower, plain.upper) == pytest.approx((weighted.value, weighted.lower, weighted.upper))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1, 100)), min_size=2, max_size=60))
def test_p4_scaling_the_weights_changes_nothing(rows):
    values, weights = np.array(rows).T
    one, seven = (hajek_ratio(values, sample_weight=weights * factor) for factor in (1, 7))
    assert seven.value == pytest.approx(one.value, rel=1e-9)
    assert seven.n_effective == pytest.approx(one.n_effective, rel=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.floats(1, 30)), min_size=5, max_size=200))
def test_ratio_agrees_with_the_windows(rows):
    values, weights = np.array(rows, dtype=float).T
    found, window = hajek_ratio(values, sample_weight=weights), pass_ratio(sums_of(values, weights))
    assert found.value == pytest.approx(window.value)
    # Labels are not docked the one degree of freedom that windows are.
    n = len(rows)
    assert window.n_effective - 1e-6 <= found.n_effective <= window.n_effective * n / (n - 1) + 1e-6


def test_soft_values_may_tell_more_than_yes_and_no():
    values = np.random.default_rng(1).uniform(0.4, 0.6, 200)
    found, window = hajek_ratio(values), score_mean(sums_of(values, np.ones(200)))
    assert found.n_effective > 200
    assert found.n_effective == pytest.approx(window.n_effective, rel=0.01)


def test_equal_values_keep_the_width_that_the_number_gives():
    found = hajek_ratio([1.0] * 20)
    assert (found.value, found.upper) == (1.0, 1.0)
    assert found.lower == pytest.approx(wilson_interval(20, 20)[0])
    assert hajek_mean([0.3] * 5).variance == 0.0


def test_variance_by_clusters_is_the_sandwich_of_statsmodels():
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 25, 300)
    values = rng.random(300) + rng.random(25)[clusters]
    weights = rng.uniform(1, 10, 300)
    fit = WLS(values, np.ones(300), weights=weights).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    found = hajek_mean(values, sample_weight=weights, clusters=clusters)
    assert found.value == pytest.approx(fit.params[0])
    assert found.variance == pytest.approx(float(fit.cov_params()[0, 0]) * 25 / 24)
    assert found.clusters == 25


def test_records_of_one_cluster_count_as_one():
    values, clusters = np.repeat([1, 0, 1, 1, 0, 1, 1, 1, 0, 1], 10), np.repeat(np.arange(10), 10)
    copies, once = hajek_ratio(values, clusters=clusters), hajek_ratio(values[::10])
    assert copies.value == once.value
    assert copies.n_effective == pytest.approx(once.n_effective, rel=0.15)
    assert hajek_ratio(values).n_effective == pytest.approx(100)
    # 100 records over their design effect, 11: clusters of 10 alike, on 9 degrees of freedom instead of 99.
    mean = hajek_mean(values, clusters=clusters)
    assert mean.n_effective == pytest.approx(0.7 * 0.3 / mean.variance * 100 / 99)
    assert mean.n_effective == pytest.approx(100 / 11)


def test_t_interval_is_scipys():
    values = np.random.default_rng(4).normal(size=30)
    expected = stats.t.interval(0.95, 29, loc=values.mean(), scale=stats.sem(values))
    assert hajek_mean(values).interval() == pytest.approx(expected)
    assert hajek_mean([1.0]).interval() is None


def test_few_clusters_have_no_interval():
    values, clusters = np.linspace(0, 1, 40), np.arange(40) % 5
    five = hajek_mean(values, clusters=clusters)
    assert five.interval() is not None
    assert five.no_interval is None
    four = hajek_mean(values, clusters=np.minimum(clusters, 3))
    assert (four.interval(), four.value) == (None, pytest.approx(0.5))
    assert four.no_interval == "only 4 clusters: an interval takes at least 5"
    assert hajek_mean(values[:3]).no_interval == "only 3 records: an interval takes at least 5"


def test_nothing_gives_none():
    assert hajek_mean([]) is None
    assert hajek_ratio([]) is None


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1, float("nan")], {}, "value 1 is nan"),
        ([1, 2], {}, "value 1 is 2.0, not in"),
        ([1, 0], {"sample_weight": [1]}, "1 values for 2 records"),
        ([1, 0], {"sample_weight": [1, 0]}, "weight 1 is 0.0"),
        ([1, 0], {"sample_weight": [1, -2]}, "weight 1 is -2.0"),
        ([1, 0], {"sample_weight": [1, float("inf")]}, "not a finite number"),
        ([[1, 0]], {}, "shape"),
        ([1, 0], {"clusters": ["a"]}, "1 values for 2 records"),
    ],
)
def test_bad_columns_are_told_apart(values, options, message):
    with pytest.raises(ValueError, match=message):
        hajek_ratio(values, **options)


def test_weighted_interval_covers_two_rate_sampling():
    """Half of the traffic taken whole and passing 0.9, half taken at 5 % and passing 0.7: the truth is 0.8."""
    rng = np.random.default_rng(11)
    held, plain = [], []
    for _ in range(1500):
        often, rare = rng.random(1000) < 0.9, rng.random(50) < 0.7
        values, weights = np.concatenate([often, rare]), np.repeat([1.0, 20.0], [1000, 50])
        found = hajek_ratio(values, sample_weight=weights)
        held.append(found.lower <= 0.8 <= found.upper)
        naive = hajek_ratio(values)
        plain.append(naive.lower <= 0.8 <= naive.upper)
    assert 0.93 <= np.mean(held) <= 0.985
    assert np.mean(plain) < 0.01
