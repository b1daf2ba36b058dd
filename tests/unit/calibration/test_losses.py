"""Errors of scores and probabilities: docs examples, hand-made bins, plain means."""

from __future__ import annotations

import numpy as np
import pytest

from assay.calibration.bootstrap import Bootstrap
from assay.calibration.losses import (
    brier_score_loss,
    calibration_curve,
    expected_calibration_error,
    expected_calibration_error_ci,
    mean_absolute_error,
)

Y = [0, 0, 0, 1, 0, 1, 1, 1, 1, 1]
P = [0.05, 0.15, 0.15, 0.15, 0.35, 0.35, 0.65, 0.85, 0.85, 0.95]


def test_a9_brier_of_the_scikit_learn_docs():
    assert brier_score_loss([0, 1, 1, 0], [0.1, 0.9, 0.8, 0.3]) == pytest.approx(0.0375)


def test_a10_calibration_error_by_hand():
    assert expected_calibration_error(Y, P, n_bins=10, strategy="uniform") == pytest.approx(0.16)


def test_quantile_bins_by_hand():
    # Two bins of five: 0.05 to 0.35 below the median, 0.35 to 0.95 above; 0.35 is the median and goes up.
    low, high = (np.array(P) < 0.35), (np.array(P) >= 0.35)
    expected = sum(abs(np.mean(np.array(Y)[b]) - np.mean(np.array(P)[b])) * np.mean(b) for b in (low, high))
    assert expected_calibration_error(Y, P, n_bins=2) == pytest.approx(expected)


def test_perfectly_calibrated_probabilities_have_no_error():
    assert expected_calibration_error([0, 1, 0, 1], [0.5] * 4) == 0.0


def test_weights_are_copies():
    w = np.arange(1, 11)
    copies = np.repeat(Y, w), np.repeat(P, w)
    assert brier_score_loss(Y, P, sample_weight=w) == pytest.approx(brier_score_loss(*copies))
    assert mean_absolute_error(Y, P, sample_weight=w) == pytest.approx(mean_absolute_error(*copies))
    weighted = expected_calibration_error(Y, P, sample_weight=w, strategy="uniform")
    assert weighted == pytest.approx(expected_calibration_error(*copies, strategy="uniform"))


def test_curve_holds_every_record_once():
    rng = np.random.default_rng(0)
    p = rng.random(200)
    y = rng.random(200) < p
    for strategy in ("uniform", "quantile"):
        bins = calibration_curve(y, p, strategy=strategy)
        assert sum(part.n for part in bins) == 200
        assert sum(part.share for part in bins) == pytest.approx(1)
        assert sum(part.share * part.share_passed for part in bins) == pytest.approx(y.mean())
        error = sum(part.share * abs(part.share_passed - part.mean_predicted) for part in bins)
        assert error == pytest.approx(expected_calibration_error(y, p, strategy=strategy))
    assert {part.n for part in calibration_curve(y, p)} == {20}


def test_interval_holds_the_value_and_shrinks():
    rng = np.random.default_rng(0)
    widths = []
    for n in (100, 1600):
        p = rng.random(n)
        found = expected_calibration_error_ci(rng.random(n) < p**2, p, bootstrap=Bootstrap(n))
        assert found.lower <= found.value <= found.upper
        widths.append(found.half_width)
    assert widths[1] < widths[0] / 2


def test_no_records_no_number():
    assert brier_score_loss([], []) is None
    assert mean_absolute_error([], []) is None
    assert expected_calibration_error([], []) is None
    assert expected_calibration_error_ci([], []).reason
    assert calibration_curve([], []) == ()


def test_probabilities_must_be_some():
    with pytest.raises(ValueError, match=r"y_prob: value 0 is 1.2"):
        brier_score_loss([1], [1.2])
