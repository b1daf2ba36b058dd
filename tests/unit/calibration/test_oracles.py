"""Every statistic that scikit-learn or krippendorff has, against it, on random labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.calibration import error_rates, fit_score_map
from assay.calibration.agreement import cohen_kappa_score, confusion_matrix, krippendorff_alpha
from assay.calibration.losses import brier_score_loss, calibration_curve, mean_absolute_error
from assay.calibration.ranks import roc_auc_score

metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is in the test group")
krippendorff = pytest.importorskip("krippendorff", reason="krippendorff is in the test group")

from sklearn.calibration import _SigmoidCalibration  # noqa: E402
from sklearn.calibration import calibration_curve as curve_of_scikit_learn  # noqa: E402
from sklearn.isotonic import IsotonicRegression  # noqa: E402

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0.1, 20)), min_size=1, max_size=60)


@given(pairs, st.sampled_from([None, "linear", "quadratic"]))
def test_kappa_and_confusion_matrix(rows, weights):
    y, judged, w = np.array(rows).T
    y, judged, levels = y.astype(int), judged.astype(int), list(range(5))
    ours = confusion_matrix(y, judged, labels=levels, sample_weight=w)
    assert ours == pytest.approx(metrics.confusion_matrix(y, judged, labels=levels, sample_weight=w))
    found = cohen_kappa_score(y, judged, labels=levels, weights=weights, sample_weight=w)
    if len(set(y)) < 2:
        assert found is None
    else:
        theirs = metrics.cohen_kappa_score(y, judged, labels=levels, weights=weights, sample_weight=w)
        assert found == pytest.approx(theirs, abs=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.floats(0.1, 20)), min_size=2, max_size=80))
def test_auc_brier_and_absolute_error(rows):
    y, score, w = np.array(rows).T
    score = score / 9
    assert brier_score_loss(y, score, sample_weight=w) == pytest.approx(
        metrics.mean_squared_error(y, score, sample_weight=w)
    )
    assert mean_absolute_error(y, score, sample_weight=w) == pytest.approx(
        metrics.mean_absolute_error(y, score, sample_weight=w)
    )
    if y.min() == y.max():
        assert roc_auc_score(y, score, sample_weight=w) is None
        return
    assert brier_score_loss(y, score) == pytest.approx(metrics.brier_score_loss(y, score))
    assert roc_auc_score(y, score, sample_weight=w) == pytest.approx(
        metrics.roc_auc_score(y, score, sample_weight=w), abs=1e-9
    )


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_counts_of_error_rates(rows):
    y, judged = np.array(rows).T
    counts = error_rates(y, judged).counts
    expected = metrics.confusion_matrix(y, judged, labels=[False, True])
    assert [[counts.both_fail, counts.false_pass], [counts.false_fail, counts.both_pass]] == expected.tolist()


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("seed", range(5))
def test_calibration_curve(seed, strategy):
    rng = np.random.default_rng(seed)
    p = rng.random(150)
    y = rng.random(150) < p
    share, mean = curve_of_scikit_learn(y, p, n_bins=10, strategy=strategy)
    found = calibration_curve(y, p, n_bins=10, strategy=strategy)
    # A record just on an edge may fall to either side.
    assert [part.mean_predicted for part in found] == pytest.approx(mean, abs=0.01)
    assert [part.share_passed for part in found] == pytest.approx(share, abs=0.07)


@given(
    st.integers(2, 5).flatmap(
        lambda raters: st.lists(
            st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=raters, max_size=raters),
            min_size=2,
            max_size=30,
        )
    ),
    st.sampled_from(["nominal", "ordinal", "interval", "ratio"]),
)
def test_alpha(items, level):
    table = np.array(items, dtype=float).T
    found = krippendorff_alpha(table, level=level)
    paired = [row for row in np.array(items, dtype=float) if np.isfinite(row).sum() >= 2]
    values = np.unique([value for row in paired for value in row[np.isfinite(row)]])
    if len(values) < 2:
        assert found is None
        return
    theirs = krippendorff.alpha(reliability_data=table, level_of_measurement=level)
    assert found == (None if math.isnan(theirs) else pytest.approx(theirs, abs=1e-9))


#: Thousandths: scikit-learn takes scores as equal that differ by less than a float's precision at 1.
labelled = st.lists(st.tuples(st.booleans(), st.integers(0, 1000), st.integers(1, 200)), min_size=2, max_size=60).map(
    lambda rows: np.array(rows) / [1, 1000, 10]
)


@given(labelled)
def test_isotonic(rows):
    y, s, w = rows.T
    theirs = IsotonicRegression(out_of_bounds="clip").fit(s, y, sample_weight=w)
    ours = fit_score_map(y, s, kind="isotonic", sample_weight=w)
    grid = np.concatenate([s, np.linspace(-0.5, 1.5, 41)])
    assert ours.predict(grid) == pytest.approx(theirs.predict(grid), abs=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_platt(seed):
    rng = np.random.default_rng(seed)
    n = rng.integers(20, 300)
    s = rng.random(n) if seed % 2 else rng.integers(0, 5, n) / 4
    y = (rng.random(n) < 0.2 + 0.7 * s).astype(float)
    y[:2] = [0, 1]
    w = rng.uniform(0.5, 5, n)
    w *= n / w.sum()
    theirs = _SigmoidCalibration().fit(s, y, sample_weight=w)
    # Weights of any scale mean the same here; theirs must sum to n.
    ours = fit_score_map(y, s, kind="platt", sample_weight=w * 7)
    assert ours.predict(s) == pytest.approx(theirs.predict(s), abs=1e-4)
