"""Error rates by labels: counts by hand, weights that undo how labels were picked."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assay.calibration import ErrorRates, error_rates
from assay.calibration.proportions import mcnemar_exact, wilson_interval


def labels(both_pass, false_fail, false_pass, both_fail):
    """Columns y_true, y_pred with these counts."""
    counts = [both_pass, false_fail, false_pass, both_fail]
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


def test_counts_and_shares_by_hand():
    rates = error_rates(*labels(70, 10, 5, 15))
    assert (rates.counts.both_pass, rates.counts.false_fail) == (70, 10)
    assert (rates.counts.false_pass, rates.counts.both_fail) == (5, 15)
    assert (rates.counts.passes, rates.counts.fails, rates.n) == (80, 20, 100)
    assert rates.sensitivity.value == pytest.approx(70 / 80)
    assert rates.specificity.value == pytest.approx(15 / 20)
    assert (rates.specificity.lower, rates.specificity.upper) == pytest.approx(wilson_interval(15, 20))
    assert rates.youden.value == pytest.approx(0.625)
    assert rates.bias.value == pytest.approx(-0.05)
    assert rates.bias_p == mcnemar_exact(10, 5)
    assert rates.disagreement == pytest.approx(0.15)
    assert rates.human_pass.value == pytest.approx(0.8)
    assert rates.judge_pass.value == pytest.approx(0.75)
    cell = rates.cells[""]
    assert cell.given_pass.value == pytest.approx(70 / 75)
    assert cell.given_fail.value == pytest.approx(10 / 25)
    assert not rates.weighted


def test_one_class_only():
    rates = error_rates([1] * 20, [1] * 15 + [0] * 5)
    assert rates.specificity is None
    assert rates.youden.value is None
    assert "fail none" in rates.youden.reason
    assert error_rates([0] * 20, [1] * 20).sensitivity is None
    never_flags = error_rates(*labels(10, 0, 10, 0))
    assert never_flags.cells[""].given_fail is None
    assert never_flags.cells[""].is_thin


def test_bias_has_a_width_without_disagreement():
    rates = error_rates(*labels(40, 0, 0, 10))
    assert rates.bias.value == 0.0
    assert rates.bias.lower < 0 < rates.bias.upper
    assert rates.bias_p == 1.0


def test_a_judge_that_is_always_wrong_is_biased_for_sure():
    weights = np.linspace(1, 2, 30)
    rates = error_rates([0] * 30, [1] * 30, sample_weight=weights)
    assert rates.bias.value == 1.0
    assert rates.bias_p < 1e-15
    assert 0.8 < rates.bias.lower < rates.bias.upper == 1.0


def clustered(rng, clusters, size, bias=0.0):
    """Columns y_true, y_pred and clusters of `size` records, alike within clusters; the judge is `bias` kinder."""
    which = np.repeat(np.arange(clusters), size)
    kind, harsh = rng.beta(2, 4, clusters)[which] + bias / 2, rng.beta(2, 4, clusters)[which] - bias / 2
    draw = rng.random(clusters * size)
    more, less = draw < np.clip(kind, 0, 1) / 2, draw > 1 - np.clip(harsh, 0, 1) / 2
    y = np.where(more, 0, np.where(less, 1, rng.random(draw.size) < 0.7)).astype(float)
    return y, np.where(more, 1.0, np.where(less, 0.0, y)), which


def test_labels_balanced_in_each_cluster_have_an_interval_as_sharp_as_their_test():
    """A pass and a fail of the same text: the shares of people do not vary between clusters at all."""
    rng = np.random.default_rng(8)
    y, which = np.tile([1.0, 0.0], 60), np.repeat(np.arange(60), 2)
    judged = np.where(rng.random(120) < 0.8, 1.0, 0.0)
    rates = error_rates(y, judged, clusters=which)
    per_cluster = (judged - y).reshape(60, 2).mean(axis=1)
    test = stats.ttest_1samp(per_cluster, 0.0)
    assert rates.bias.value == pytest.approx(per_cluster.mean())
    assert rates.bias_p == pytest.approx(test.pvalue)
    interval = test.confidence_interval()
    assert (rates.bias.lower, rates.bias.upper) == pytest.approx((interval.low, interval.high))
    assert rates.bias.method == "t"


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.integers(0, 11), st.floats(1, 20)), min_size=1, max_size=60),
    st.sampled_from(["clusters", "weights", "both", "soft"]),
)
def test_the_interval_of_the_bias_leaves_out_none_exactly_when_its_p_is_below_5_percent(rows, case):
    y, judged, which, weight = np.array(rows, dtype=float).T
    y = y if case == "soft" else y.round()
    options = {
        "clusters": which if case in ("clusters", "both") else None,
        "sample_weight": weight if case in ("weights", "both") else None,
    }
    rates = error_rates(y, judged, **options)
    if rates.bias.lower is None:
        assert rates.bias_p == 1.0
        assert "an interval takes at least 5" in rates.bias.reason
        return
    assert rates.bias.lower < rates.bias.upper
    if rates.bias.method == "t" and abs(rates.bias_p - 0.05) > 1e-9:
        assert (not rates.bias.holds(0.0)) == (rates.bias_p < 0.05)


@pytest.mark.parametrize(("clusters", "size", "bias"), [(60, 2, 0.0), (20, 8, 0.15), (12, 10, 0.0)])
def test_the_interval_of_the_bias_covers_with_clusters(clusters, size, bias):
    rng = np.random.default_rng(31)
    y, judged, _ = clustered(rng, 200_000, 1, bias)
    truth = float((judged - y).mean())
    held, rejected = [], []
    for _ in range(600):
        y, judged, which = clustered(rng, clusters, size, bias)
        found = error_rates(y, judged, clusters=which)
        held.append(found.bias.lower <= truth <= found.bias.upper)
        rejected.append(found.bias_p < 0.05)
    assert 0.925 <= np.mean(held) <= 0.985
    if bias == 0.0:
        assert np.mean(rejected) <= 0.075


def test_clusters_that_all_agree_keep_a_width():
    y, which = np.repeat([1.0, 0.0], 40), np.arange(80) // 4
    rates = error_rates(y, y, clusters=which)
    assert rates.bias.value == 0.0
    assert rates.bias.lower < -0.05 < 0.05 < rates.bias.upper
    assert rates.bias_p == 1.0


@pytest.mark.parametrize("n_clusters", [1, 4])
def test_few_clusters_have_no_interval(n_clusters):
    y, judged = labels(40, 10, 2, 28)
    rates = error_rates(y, judged, clusters=np.arange(80) % n_clusters)
    for statistic in (rates.bias, rates.youden):
        assert statistic.value is not None
        assert statistic.lower is None
        assert statistic.reason.startswith(f"only {n_clusters} cluster")
    assert rates.bias_p == 1.0
    assert ErrorRates.from_dict(json.loads(json.dumps(rates.to_dict(), allow_nan=False))) == rates


def test_clusters_of_one_are_no_clusters():
    y, judged = labels(30, 10, 4, 16)
    assert error_rates(y, judged, clusters=np.arange(60)) == error_rates(y, judged)


def test_undecided_labels_take_no_side_but_count_in_the_level():
    rates = error_rates([1, 1, 0, 0.5, 0.5, 0.8], [1, 0, 0, 1, 0, 1])
    assert rates.counts.n == 4
    assert rates.n == 6
    assert rates.sensitivity.value == pytest.approx(2 / 3)
    assert rates.human_pass.value == pytest.approx(3.8 / 6)
    assert rates.cells[""].given_pass.value == pytest.approx((1 + 0.5 + 0.8) / 3)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 5)), min_size=2, max_size=40),
)
def test_weights_are_copies_in_value(rows):
    y, judged, w = np.array(rows).T
    once, copies = error_rates(y, judged, sample_weight=w), error_rates(np.repeat(y, w), np.repeat(judged, w))
    for name in ("sensitivity", "specificity", "human_pass", "judge_pass"):
        one, many = getattr(once, name), getattr(copies, name)
        assert (one is None) == (many is None)
        assert one is None or one.value == pytest.approx(many.value)
    assert once.bias.value == pytest.approx(copies.bias.value)


def test_strata_have_cells_of_their_own():
    y, judged = labels(30, 10, 10, 30)
    strata = ["a", "b"] * 40
    rates = error_rates(y, judged, strata=strata)
    assert set(rates.cells) == {"", "a", "b"}
    chosen = np.array(strata) == "a"
    assert rates.cells["a"] == error_rates(y[chosen], judged[chosen]).cells[""]
    with pytest.raises(ValueError, match="strata: 1 values for 80"):
        error_rates(y, judged, strata=["a"])


def test_clusters_widen_every_interval():
    y, judged = labels(200, 40, 20, 40)
    order = np.random.default_rng(0).permutation(300)
    y, judged = y[order], judged[order]
    copies, which = np.repeat(np.arange(300), 4), np.repeat(np.arange(300), 4)
    alone, together = error_rates(y[copies], judged[copies]), error_rates(y[copies], judged[copies], clusters=which)
    for name in ("sensitivity", "specificity", "human_pass"):
        one, many = getattr(alone, name), getattr(together, name)
        assert many.value == pytest.approx(one.value)
        assert many.upper - many.lower == pytest.approx(2 * (one.upper - one.lower), rel=0.15)


def test_survives_json():
    rates = error_rates(*labels(30, 10, 10, 30), strata=["a", "b"] * 40, sample_weight=[1.0, 2.0] * 40)
    assert ErrorRates.from_dict(json.loads(json.dumps(rates.to_dict(), allow_nan=False))) == rates
    one_class = error_rates([1] * 5, [1] * 5)
    assert ErrorRates.from_dict(json.loads(json.dumps(one_class.to_dict(), allow_nan=False))) == one_class


@pytest.mark.parametrize(
    ("y", "judged", "options", "message"),
    [
        ([], [], {}, "there are no labels"),
        ([1, 0], [1], {}, "1 values for 2 records"),
        ([1, 2], [1, 0], {}, "not in"),
        ([1, 0], [1, 0.5], {}, "neither pass"),
        ([1, float("nan")], [1, 0], {}, "nan"),
        ([1, 0], [1, 0], {"sample_weight": [1, 0]}, "above 0"),
    ],
)
def test_bad_labels(y, judged, options, message):
    with pytest.raises(ValueError, match=message):
        error_rates(y, judged, **options)


def test_c16_labels_picked_by_verdict_are_undone_by_their_weights():
    """70 % of the labels where the judge says fail: weighted sensitivity is right, the plain one nonsense."""
    rng = np.random.default_rng(0)
    y = rng.random(400_000) < 0.9
    judged = np.where(y, rng.random(y.size) < 0.8, rng.random(y.size) < 0.1)
    picked, weights = [], []
    for verdict, share in ((False, 0.7), (True, 0.3)):
        where = np.flatnonzero(judged == verdict)
        chosen = rng.choice(where, int(20_000 * share), replace=False)
        picked.append(chosen)
        weights.append(np.full(len(chosen), len(where) / len(chosen)))
    chosen, weight = np.concatenate(picked), np.concatenate(weights)
    weighted, plain = (
        error_rates(y[chosen], judged[chosen], sample_weight=weight),
        error_rates(y[chosen], judged[chosen]),
    )
    assert weighted.human_pass.value == pytest.approx(0.9, abs=0.01)
    assert weighted.sensitivity.value == pytest.approx(0.8, abs=0.01)
    assert weighted.specificity.value == pytest.approx(0.9, abs=0.02)
    assert plain.sensitivity.value < 0.45
    assert weighted.weighted
    assert not plain.weighted
