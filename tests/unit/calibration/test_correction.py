"""Correction formulas: published examples, ppi-python's numbers, algebra, and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest

from assay.calibration.correction import (
    begg_greenes,
    generalised_rogan_gladen,
    label_multiplier,
    labels_to_beat_raw,
    post_stratified,
    ppi_mean,
    rogan_gladen,
)

#: 20 labels and 200 judged records, answers by ppi-python 0.2.3.
Y = np.array([1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1], dtype=float)
F = np.array([1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1], dtype=float)
WINDOW = np.repeat([1.0, 0.0], [148, 52])


def lang_reiczigel(p, n, se, n_pass, sp, n_fail):
    found = rogan_gladen(p, n, sensitivity=se, n_pass=n_pass, specificity=sp, n_fail=n_fail)
    return found.value, (found.lower, found.upper)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # Lang and Reiczigel 2014, examples in the manual of R package asht.
        pytest.param((4060 / 11284, 11284, 178 / 179, 179, 358 / 359, 359), (0.3487, 0.3721), id="c1"),
        pytest.param((51 / 2971, 2971, 32 / 33, 33, 1.0, 20), (0.0, 0.0533), id="c2"),
        pytest.param((0.06, 11862, 0.8, 10, 1.0, 12), (0.0, 0.1467), id="c3"),
        pytest.param((259 / 509, 509, 84 / 127, 127, 96 / 109, 109), (0.5849, 0.8665), id="c4"),
        pytest.param((51 / 509, 509, 23 / 41, 41, 187 / 195, 195), (0.0366, 0.1947), id="c5"),
    ],
)
def test_c1_to_c5_lang_reiczigel(arguments, expected):
    value, interval = lang_reiczigel(*arguments)
    assert interval == pytest.approx(expected, abs=5e-5)
    assert interval[0] <= value <= interval[1]


def test_c6_example_of_lee_et_al():
    # Their q0 is the specificity, q1 the sensitivity.
    value, interval = lang_reiczigel(0.4, 1000, 0.9, 200, 0.7, 200)
    assert value == pytest.approx(0.166667, abs=5e-7)
    assert interval == pytest.approx((0.056351, 0.262733), abs=5e-7)


@pytest.mark.parametrize(("se", "sp"), [(0.5, 0.5), (0.3, 0.6), (0.0, 1.0), (0.0, 0.0)])
def test_c7_a_judge_no_better_than_chance_gives_no_estimate(se, sp):
    found = rogan_gladen(0.7, 500, sensitivity=se, n_pass=50, specificity=sp, n_fail=50)
    assert found.value is None
    assert (found.lower, found.upper) == (0.0, 1.0)
    assert found.reason


def test_rogan_gladen_is_exact_for_exact_rates():
    for truth in (0.0, 0.3, 0.95, 1.0):
        seen = truth * 0.8 + (1 - truth) * 0.1
        value, (lower, upper) = lang_reiczigel(seen, 1e9, 0.8, 1e9, 0.9, 1e9)
        assert value == pytest.approx(truth, abs=1e-9)
        assert upper - lower < 1e-3


def test_rogan_gladen_never_leaves_0_and_1_and_holds_its_value():
    rng = np.random.default_rng(0)
    for _ in range(500):
        p, se, sp = rng.random(3)
        n, m1, m0 = rng.integers(1, 60, 3)
        found = rogan_gladen(p, n, sensitivity=se, n_pass=m1, specificity=sp, n_fail=m0)
        assert 0.0 <= found.lower <= found.upper <= 1.0
        assert found.value is None or found.lower <= found.value <= found.upper


def test_c8_ppi_is_right_for_a_judge_that_is_off_by_a_constant():
    y = np.random.default_rng(0).normal(size=50)
    found = ppi_mean(y, y + 2, np.full(300, 2.0))
    assert found.estimate.value == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("tuning", "expected_tuning", "value", "interval"),
    [
        (0.0, 0.0, 0.8, (0.624695, 0.975305)),
        (1.0, 1.0, 0.79, (0.611041, 0.968959)),
        (None, 0.471424, 0.795286, (0.648837, 0.941734)),
    ],
)
def test_c9_ppi_of_ppi_python(tuning, expected_tuning, value, interval):
    found = ppi_mean(Y, F, WINDOW, tuning=tuning)
    assert found.tuning == pytest.approx(expected_tuning, abs=5e-7)
    assert found.estimate.value == pytest.approx(value, abs=5e-7)
    assert (found.estimate.lower, found.estimate.upper) == pytest.approx(interval, abs=1e-6)


def spread(n, start):
    """An even spread over [0, 1) that no random generator can change."""
    return (start + np.arange(n) * 0.6180339887498949) % 1.0


@pytest.mark.parametrize(
    ("n", "others", "soft", "tuning", "value", "lower", "upper"),
    [
        # ppi_mean_pointestimate and ppi_mean_ci(alpha=0.05, lam=tuning) of ppi-python 0.2.3 on these very columns.
        (30, 200, False, 0.0, 0.8, 0.656864469, 0.943135531),
        (30, 200, False, 1.0, 0.911666667, 0.765265037, 1.058068297),
        (30, 200, False, None, 0.862194274, 0.749160453, 0.975228095),
        (60, 1000, True, 0.0, 0.8, 0.698787895, 0.901212105),
        (60, 1000, True, 1.0, 0.579326597, 0.541097466, 0.617555727),
        (60, 1000, True, None, 0.579326597, 0.541097466, 0.617555727),
        (150, 90, True, 0.0, 0.8, 0.735987844, 0.864012156),
        (150, 90, True, 1.0, 0.582465979, 0.518862123, 0.646069835),
        (150, 90, True, None, 0.708294583, 0.658288729, 0.758300437),
        (40, 40, False, 0.0, 0.8, 0.676040994, 0.923959006),
        (40, 40, False, 1.0, 0.875, 0.697822345, 1.052177655),
        (40, 40, False, None, 0.822407273, 0.71486605, 0.929948495),
    ],
)
def test_ppi_is_ppi_pythons(n, others, soft, tuning, value, lower, upper):
    y = (spread(n, 0.1) < 0.8).astype(float)
    f = (
        np.clip(0.6 * y + 0.5 * spread(n, 0.37), 0, 1)
        if soft
        else np.where(spread(n, 0.53) * 0.7 + 0.3 * spread(n, 0.2) < 0.72, y, 1 - y)
    )
    window = spread(others, 0.9) if soft else (spread(others, 0.9) < 0.75).astype(float)
    found = ppi_mean(y, f, window, tuning=tuning).estimate
    assert (found.value, found.lower, found.upper) == pytest.approx((value, lower, upper), abs=1e-8)


def test_weighted_ppi_undoes_how_labels_were_picked():
    """Active inference: labels picked where the score is unsure; the weighted offset is unbiased and covers."""
    rng = np.random.default_rng(0)
    held, values = [], []
    for _ in range(600):
        g = rng.beta(4, 1, 1000)
        y = rng.random(1000) < 0.1 + 0.8 * g
        chance = np.clip(0.15 * (0.8 * np.sqrt(g * (1 - g)) / 0.34 + 0.2), 0.02, 1)
        picked = rng.random(1000) < chance
        found = ppi_mean(y[picked], g[picked], g, sample_weight=1 / chance[picked]).estimate
        values.append(found.value)
        held.append(found.lower <= 0.1 + 0.8 * 0.8 <= found.upper)
    assert np.mean(values) == pytest.approx(0.74, abs=0.005)
    assert 0.92 <= np.mean(held) <= 0.98


def test_ppi_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="two labels"):
        ppi_mean([1.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="one record"):
        ppi_mean(Y, F, [])
    with pytest.raises(ValueError, match="unweighted"):
        ppi_mean(Y, F, WINDOW, tuning=None, sample_weight=np.ones(20))
    assert ppi_mean(Y, np.ones(20), np.ones(50), tuning=None).tuning == 0.0


def test_c10_post_stratified():
    # Among the labels: judge fails 5, people pass 2 of them; judge passes 15, people pass 14.
    found, window_only = post_stratified([0.26, 0.74], 200, [2 / 5, 14 / 15], [5, 15], draws=200_000, seed=1)
    assert found.value == pytest.approx(0.794667, abs=5e-7)
    assert (found.lower, found.upper) == pytest.approx((0.620, 0.908), abs=0.003)
    assert found.lower < window_only[0] < found.value < window_only[1] < found.upper
    usual, _ = post_stratified([0.26, 0.74], 200, [2 / 5, 14 / 15], [5, 15])
    assert (usual.lower, usual.upper) == pytest.approx((0.620, 0.908), abs=0.012)


def test_post_stratified_same_seed_same_digits():
    arguments = [0.26, 0.74], 200, [2 / 5, 14 / 15], [5, 15]
    assert post_stratified(*arguments, seed=3) == post_stratified(*arguments, seed=3)
    assert post_stratified(*arguments, seed=3) != post_stratified(*arguments, seed=4)


def test_post_stratified_by_more_cells_is_their_sum():
    found, _ = post_stratified([0.1, 0.4, 0.2, 0.3], 500, [0.3, 0.9, 0.5, 0.95], [20, 80, 20, 80])
    assert found.value == pytest.approx(0.1 * 0.3 + 0.4 * 0.9 + 0.2 * 0.5 + 0.3 * 0.95)
    assert found.lower < found.value < found.upper


def test_post_stratified_window_only_is_wilsons_for_known_rates():
    _, (lower, upper) = post_stratified([0.3, 0.7], 400, [0.0, 1.0], [1e6, 1e6], draws=100_000)
    assert (lower, upper) == pytest.approx((0.6534, 0.7429), abs=0.003)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.3, 0.6], 10, [0.5, 0.5], [5, 5]), "sum to"),
        (([0.3, 0.7], 10, [0.5, 0.5], [0, 5]), "without labels"),
        (([0.3, 0.7], 10, [0.5], [5, 5]), "1 values for 2"),
        (([0.3, 0.7], 10, [0.5, 1.5], [5, 5]), "not in"),
    ],
)
def test_post_stratified_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        post_stratified(*arguments)


def test_c11_begg_greenes():
    assert begg_greenes(0.73, 0.98630137, 0.66666667) == pytest.approx((0.8, 0.9), abs=1e-7)
    assert begg_greenes(1.0, 1.0, 0.5) is None
    assert begg_greenes(0.5, 0.0, 0.0) is None


@pytest.mark.parametrize(("disagreement", "bias", "expected"), [(0.10, 0.05, 39), (0.10, 0.02, 249), (0.20, 0.05, 79)])
def test_c12_labels_to_beat_raw(disagreement, bias, expected):
    assert labels_to_beat_raw(disagreement, bias) == pytest.approx(expected)
    assert labels_to_beat_raw(disagreement, -bias) == pytest.approx(expected)
    assert labels_to_beat_raw(disagreement, 0.0) is None


@pytest.mark.parametrize(("rho", "expected"), [(0.5, 1.333), (0.7, 1.961), (0.8, 2.778), (0.9, 5.263)])
def test_c13_label_multiplier(rho, expected):
    assert label_multiplier(rho) == pytest.approx(expected, abs=5e-4)
    assert label_multiplier(-rho) == label_multiplier(rho)
    assert label_multiplier(1.0) is None


class TestGeneralisedRoganGladen:
    def test_of_yes_and_no_scores_is_rogan_gladen(self):
        y = np.repeat([1, 0], [80, 40])
        judged = np.concatenate([np.arange(80) < 64, np.arange(40) < 6])
        found = generalised_rogan_gladen(0.6, 0.6 * 0.4 / 500, y, judged)
        assert found.value == pytest.approx((0.6 + 0.85 - 1) / (0.8 + 0.85 - 1))

    def test_covers_under_label_shift_and_is_narrower(self):
        """Scores Beta by class; labels at 0.9, window at 0.7."""
        rng = np.random.default_rng(3)
        held, widths, plain = [], [], []
        for _ in range(1500):
            y = rng.random(200) < 0.9
            score = np.where(y, rng.beta(6, 2, 200), rng.beta(2, 5, 200))
            truth = rng.random(1000) < 0.7
            window = np.where(truth, rng.beta(6, 2, 1000), rng.beta(2, 5, 1000))
            found = generalised_rogan_gladen(window.mean(), window.var() / 1000, y, score)
            held.append(found.lower <= 0.7 <= found.upper)
            widths.append(found.upper - found.lower)
            passed, judged = y, score >= 0.5
            lower, upper = lang_reiczigel(
                (window >= 0.5).mean(),
                1000,
                judged[passed].mean(),
                passed.sum(),
                (~judged[~passed]).mean(),
                (~passed).sum(),
            )[1]
            plain.append(upper - lower)
        assert 0.92 <= np.mean(held) <= 0.975
        assert np.mean(widths) < 0.95 * np.mean(plain)

    def test_undefined(self):
        assert generalised_rogan_gladen(0.5, 0.01, [1, 1, 0], [0.9, 0.8, 0.1]).reason
        assert "as high" in generalised_rogan_gladen(0.5, 0.01, [1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9]).reason
