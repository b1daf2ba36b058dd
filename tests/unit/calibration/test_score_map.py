"""Score maps: scikit-learn's answers, exact means, cross-fitting, the rule that chooses."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.calibration import ScoreMap, cross_val_predict, fit_score_map
from assay.calibration.score_map import conformal_radius, isotonic_regression

labelled = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1), st.integers(0, 8), st.floats(0.1, 20)),
    min_size=2,
    max_size=60,
)


def test_c17_isotonic_by_hand():
    assert isotonic_regression([1, 0, 1, 0, 1, 1], [1, 2, 3, 4, 5, 6]) == pytest.approx([0.5, 0.5, 0.5, 0.5, 1, 1])
    found = isotonic_regression([0, 1, 0, 0, 1, 1], [0.1, 0.1, 0.5, 0.5, 0.9, 0.9])
    assert found == pytest.approx([0.25, 0.25, 0.25, 0.25, 1, 1])


@given(labelled)
def test_c17_isotonic_keeps_the_mean_and_rises(rows):
    y, s, w = np.array(rows).T
    fitted = isotonic_regression(y, s, sample_weight=w)
    assert np.average(fitted, weights=w) == pytest.approx(np.average(y, weights=w), abs=1e-12)
    order = np.argsort(s, kind="stable")
    assert (np.diff(fitted[order]) >= -1e-12).all()


@given(labelled)
def test_c17_offset_keeps_the_mean(rows):
    y, s, w = np.array(rows).T
    s = s / 8
    fitted = fit_score_map(y, s, kind="offset", sample_weight=w)
    moved = s + fitted.parameters[0]
    assert np.average(moved, weights=w) == pytest.approx(np.average(y, weights=w), abs=1e-12)
    assert fitted.predict(s) == pytest.approx(np.clip(moved, 0, 1))


@pytest.mark.parametrize(
    ("n", "alpha", "expected"), [(99, 0.1, 90.0), (19, 0.05, 19.0), (18, 0.05, None), (0, 0.1, None)]
)
def test_c18_conformal_radius(n, alpha, expected):
    assert conformal_radius(-np.arange(1, n + 1), alpha=alpha) == expected


def test_conformal_radius_covers():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(3000):
        residuals = rng.normal(size=41)
        held.append(abs(residuals[0]) <= conformal_radius(residuals[1:], alpha=0.1))
    assert 0.885 <= np.mean(held) <= 0.925


def test_platt_is_the_minimum():
    """The gradient of the smoothed likelihood is 0 at the answer, which no other answer has."""
    rng = np.random.default_rng(0)
    s = rng.random(120)
    y = (rng.random(120) < s).astype(float)
    fitted = fit_score_map(y, s, kind="platt")
    passes, fails = y.sum(), (1 - y).sum()
    target = np.where(y == 1, (passes + 1) / (passes + 2), 1 / (fails + 2))
    residual = fitted.predict(s) - target
    assert abs(residual.sum()) < 1e-8
    assert abs((residual * s).sum()) < 1e-8


@pytest.mark.parametrize(
    ("y", "s"),
    [
        ([0] * 30 + [1] * 30, [0.0] * 30 + [1.0] * 30),  # separable
        ([1] * 40, list(np.linspace(0, 1, 40))),  # one class
        ([0, 1] * 20, [0.5] * 40),  # constant score
        ([0, 1] * 20, [0.5, 0.5 + 1e-9] * 20),  # all but constant
        ([1, 0] * 20, [0.0, 1.0] * 20),  # upside down
    ],
)
@pytest.mark.parametrize("kind", ["auto", "offset", "platt", "isotonic", "table"])
def test_degenerate_labels_still_give_probabilities(y, s, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit_score_map(y, s, kind=kind)
    predicted = fitted.predict([0.0, 0.3, 0.5, 1.0])
    assert ((predicted >= 0) & (predicted <= 1)).all()
    json.dumps(asdict(fitted), allow_nan=False)


def test_table_is_drawn_towards_the_overall_share():
    y, s = [0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 2, 2, 3, 3, 3, 3]
    fitted = fit_score_map(y, s, kind="table")
    overall = 5 / 8
    expected = [(0 + 2 * overall) / 4, (1 + 2 * overall) / 4, (4 + 2 * overall) / 6]
    assert [score for score, _ in fitted.knots] == [1, 2, 3]
    assert [share for _, share in fitted.knots] == pytest.approx(expected)


def test_soft_labels_are_taken_as_they_are():
    s = np.linspace(0, 1, 80)
    fitted = fit_score_map(0.2 + 0.6 * s, s, kind="isotonic")
    assert fitted.predict(s) == pytest.approx(0.2 + 0.6 * s)


class TestAuto:
    def curve(self, n, seed=0):
        """Labels with a step that a logistic cannot follow."""
        rng = np.random.default_rng(seed)
        s = rng.integers(0, 11, n) / 10
        return (rng.random(n) < np.where(s < 0.35, 0.5, np.where(s < 0.85, 0.55, 0.98))).astype(float), s

    def logistic(self, n, seed=0):
        rng = np.random.default_rng(seed)
        s = rng.random(n)
        return (rng.random(n) < 1 / (1 + np.exp(3 - 7 * s))).astype(float), s

    @pytest.mark.parametrize(("n", "kind"), [(30, "offset"), (49, "offset"), (50, "platt"), (199, "platt")])
    def test_by_number_of_labels(self, n, kind):
        assert fit_score_map(*self.curve(n)).kind == kind

    def test_isotonic_only_when_it_wins_for_sure(self):
        assert fit_score_map(*self.curve(3000)).kind == "isotonic"
        chosen = [fit_score_map(*self.logistic(400, seed)).kind for seed in range(10)]
        assert chosen.count("platt") >= 9

    def test_a_constant_score_gets_an_offset(self):
        fitted = fit_score_map([1, 1, 1, 0] * 30, [0.9] * 120)
        assert fitted.kind == "offset"
        assert fitted.predict([0.9]) == pytest.approx([0.75])

    def test_tells_how_each_did(self):
        fitted = fit_score_map(*self.curve(600))
        assert set(fitted.brier) == {"raw", "platt", "isotonic"}
        y, s = self.curve(600)
        predicted = cross_val_predict(y, s, kind=fitted.kind)
        assert fitted.brier[fitted.kind] == pytest.approx(np.mean((predicted - y) ** 2))

    def test_a_map_beats_none(self):
        y, s = self.logistic(200)
        fitted = fit_score_map(y, s * 0.4 + 0.6)
        assert fitted.brier[fitted.kind] < fitted.brier["raw"]


class TestCrossFit:
    def test_no_record_sees_its_own_label(self):
        """Flipping one label changes predictions of the other folds, never of its own."""
        rng = np.random.default_rng(0)
        s = rng.random(60)
        y = (rng.random(60) < s).astype(float)
        before = cross_val_predict(y, s, kind="platt")
        y[7] = 1 - y[7]
        after = cross_val_predict(y, s, kind="platt")
        assert after[7] == before[7]
        assert (after != before).mean() > 0.7

    def test_clusters_stay_on_one_side(self):
        rng = np.random.default_rng(0)
        clusters = np.repeat(np.arange(12), 10)
        s = rng.random(120)
        y = (rng.random(120) < s).astype(float)
        before = cross_val_predict(y, s, kind="isotonic", clusters=clusters)
        y[clusters == 3] = 1 - y[clusters == 3]
        after = cross_val_predict(y, s, kind="isotonic", clusters=clusters)
        assert (after[clusters == 3] == before[clusters == 3]).all()

    def test_leaked_clusters_look_better_than_they_are(self):
        """Scores that name their cluster: folds across clusters are fooled, folds by cluster are not."""
        rng = np.random.default_rng(1)
        clusters = np.repeat(np.arange(40), 10)
        s = np.repeat(rng.permutation(40) / 40, 10)
        y = np.repeat((rng.random(40) < 0.5).astype(float), 10)
        honest, fooled = (
            np.mean((cross_val_predict(y, s, kind="isotonic", clusters=groups) - y) ** 2) for groups in (clusters, None)
        )
        assert honest > fooled + 0.01

    def test_same_seed_same_folds(self):
        y, s = [0, 1, 1, 1, 0] * 12, list(np.linspace(0, 1, 60))
        first, again, other = (cross_val_predict(y, s, kind="platt", seed=seed) for seed in (1, 1, 2))
        assert (first == again).all()
        assert (first != other).any()

    def test_a_single_cluster_has_no_other_side(self):
        y, s = [0, 1] * 10, list(np.linspace(0, 1, 20))
        assert np.isfinite(cross_val_predict(y, s, kind="platt", clusters=["a"] * 20)).all()


def test_support():
    fitted = fit_score_map([0, 1, 1], [0.3, 0.5, 0.8])
    assert fitted.support == (0.3, 0.8)
    assert fitted.outside_support([0.3, 0.8, 0.2, 0.9]) == pytest.approx(0.5)
    assert fitted.outside_support([0.3, 0.2], sample_weight=[3, 1]) == pytest.approx(0.25)
    assert fitted.outside_support([]) == 0.0


@pytest.mark.parametrize("kind", ["offset", "platt", "isotonic", "table"])
def test_survives_json(kind):
    rng = np.random.default_rng(0)
    s = rng.random(40)
    fitted = fit_score_map(rng.random(40) < s, s, kind=kind)
    again = ScoreMap.from_dict(json.loads(json.dumps(asdict(fitted), allow_nan=False)))
    assert again == fitted
    grid = np.linspace(0, 1, 11)
    assert (again.predict(grid) == fitted.predict(grid)).all()


@pytest.mark.parametrize(
    ("y", "s", "message"),
    [
        ([1], [0.5], "at least 2"),
        ([1, 0], [0.5], "1 values for 2"),
        ([1, 3], [0, 1], "not in"),
        ([1, 0], [0, np.nan], "nan"),
    ],
)
def test_bad_labels(y, s, message):
    with pytest.raises(ValueError, match=message):
        fit_score_map(y, s)
