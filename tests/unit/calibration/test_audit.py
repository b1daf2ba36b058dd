"""Transport audit: passes what holds, fails what does not, and says when it cannot tell."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from assay.calibration import audit, error_rates, predict_labels
from assay.calibration.correction import rogan_gladen


def rates_of(both_pass, false_fail, false_pass, both_fail, **options):
    counts = [both_pass, false_fail, false_pass, both_fail]
    return error_rates(np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts), **options)


RATES = rates_of(1440, 360, 20, 180)


def traffic(rng, n, truth, sensitivity=0.8, specificity=0.9):
    y = rng.random(n) < truth
    return y, np.where(y, rng.random(n) < sensitivity, rng.random(n) < 1 - specificity)


class TestPredictions:
    judged = np.array([1, 1, 1, 0])

    def test_their_mean_is_the_corrected_level(self):
        mean = self.judged.mean()
        level = rogan_gladen(mean, 4, sensitivity=0.8, n_pass=1800, specificity=0.9, n_fail=200).value
        assert predict_labels(self.judged, RATES, "rogan_gladen").mean() == pytest.approx(level)
        cell = RATES.cells[""]
        expected = mean * cell.given_pass.value + (1 - mean) * cell.given_fail.value
        assert predict_labels(self.judged, RATES, "post_stratified").mean() == pytest.approx(expected)
        assert predict_labels(self.judged, RATES, "offset").mean() == pytest.approx(mean - RATES.bias.value)
        assert predict_labels(self.judged, RATES, "none").mean() == mean

    @pytest.mark.parametrize("method", ["rogan_gladen", "post_stratified"])
    def test_what_the_labels_do_not_carry_is_refused(self, method):
        with pytest.raises(ValueError, match=method):
            predict_labels(self.judged, rates_of(30, 0, 0, 0), method)


class TestStates:
    def test_a_correction_that_holds_passes(self):
        y, judged = traffic(np.random.default_rng(0), 4000, 0.9)
        found = audit(y, predict_labels(judged, RATES, "rogan_gladen"))
        assert found.state == "passed"
        assert found.shift.lower < 0 < found.shift.upper

    def test_new_kinds_of_failures_fail_it(self):
        """The judge no longer sees what is wrong: Rogan-Gladen reads far too high."""
        y, judged = traffic(np.random.default_rng(1), 800, 0.7, specificity=0.2)
        found = audit(y, predict_labels(judged, RATES, "rogan_gladen"))
        assert found.state == "failed"
        assert found.shift.value < -0.1
        assert "outside ±3 points" in found.reason

    def test_a_drop_fails_post_stratification_but_not_rogan_gladen(self):
        y, judged = traffic(np.random.default_rng(2), 4000, 0.7)
        assert audit(y, predict_labels(judged, RATES, "post_stratified")).state == "failed"
        assert audit(y, predict_labels(judged, RATES, "rogan_gladen")).state != "failed"

    def test_few_labels_may_fail_but_never_pass(self):
        few = audit([0] * 12, [0.95] * 12)
        assert few.state == "failed"
        exact = audit(np.tile([0.2, 0.8], 5), np.tile([0.2, 0.8], 5) + np.tile([1e-4, -1e-4], 5))
        assert exact.state == "inconclusive"
        assert "10 independent records of 20" in exact.reason

    def test_passes_in_a_row_prove_little(self):
        """Twelve of twelve pass where 95 % were expected: no spread, but no evidence either."""
        found = audit([1] * 12, [0.95] * 12)
        assert found.state == "inconclusive"
        assert found.shift.lower < 0 < found.shift.upper

    def test_in_between_is_inconclusive(self):
        y, judged = traffic(np.random.default_rng(3), 120, 0.9)
        assert audit(y, predict_labels(judged, RATES, "rogan_gladen")).state == "inconclusive"

    def test_without_margin_or_labels(self):
        y, judged = traffic(np.random.default_rng(4), 100, 0.9)
        measured = audit(y, predict_labels(judged, RATES, "offset"), margin=None)
        assert (measured.state, measured.margin) == ("not_graded", None)
        assert measured.shift.value is not None
        nothing = audit([], [])
        assert nothing.state == "not_checked"
        json.dumps(asdict(nothing), allow_nan=False)

    def test_one_cluster_says_nothing(self):
        found = audit([1, 0, 1], [0.9, 0.9, 0.9], clusters=["a"] * 3)
        assert found.state == "inconclusive"
        assert found.shift.lower is None
        assert found.reason == "only 1 cluster: an interval takes at least 5"


def test_interval_is_the_t_interval_over_clusters():
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(30), 5)
    residual = rng.normal(0.02, 0.1, 30)[clusters] + rng.normal(0, 0.02, 150)
    guess = np.full(150, 0.5)
    found = audit(np.clip(guess + residual, 0, 1), guess, clusters=clusters, margin=0.2)
    means = np.clip(guess + residual, 0, 1).reshape(30, 5).mean(axis=1) - 0.5
    expected = stats.t.interval(0.95, 29, loc=means.mean(), scale=means.std(ddof=1) / np.sqrt(30))
    assert (found.shift.lower, found.shift.upper) == pytest.approx(expected)
    assert found.effective_clusters == pytest.approx(30)


def test_a_family_of_audits_is_wider():
    y, judged = traffic(np.random.default_rng(6), 500, 0.9)
    guess = predict_labels(judged, RATES, "post_stratified")
    alone, four = audit(y, guess), audit(y, guess, family=4)
    ratio = four.shift.half_width / alone.shift.half_width
    assert ratio == pytest.approx(stats.t.ppf(1 - 0.0125 / 2, 499) / stats.t.ppf(0.975, 499))


def test_weights_make_picked_labels_representative():
    rng = np.random.default_rng(7)
    y, judged = traffic(rng, 20_000, 0.9)
    picked = rng.random(20_000) < np.where(judged, 0.02, 0.3)
    weight = np.where(judged, 1 / 0.02, 1 / 0.3)[picked]
    guess = predict_labels(judged, RATES, "offset")[picked]
    weighted, plain = audit(y[picked], guess, sample_weight=weight), audit(y[picked], guess)
    assert weighted.state != "failed"
    assert weighted.shift.holds(0.0)
    assert plain.state == "failed"


def test_a_sound_correction_is_seldom_failed_and_a_bad_one_never_passed():
    """Off by nothing: failed in at most 1 of 100 audits. Off by twice the margin: passed in at most 1 of 40."""
    rng = np.random.default_rng(8)
    failed, passed = 0, 0
    for _ in range(400):
        y, judged = traffic(rng, 300, 0.9)
        failed += audit(y, predict_labels(judged, RATES, "post_stratified")).state == "failed"
        y, judged = traffic(rng, 1500, 0.9)
        passed += audit(y, predict_labels(judged, RATES, "post_stratified") - 0.06).state == "passed"
    assert failed <= 4
    assert passed <= 10


def test_bad_input():
    with pytest.raises(ValueError, match="1 values for 2"):
        audit([1, 0], [0.5])
    with pytest.raises(ValueError, match="not in"):
        audit([1, 2], [0.5, 0.5])
