"""Agreement coefficients: published examples, and plain loops over random ratings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.calibration.agreement import (
    cohen_kappa_score,
    confusion_matrix,
    fleiss_kappa,
    gwet_ac,
    gwet_ac_of_table,
    kappa_of_table,
    krippendorff_alpha,
    krippendorff_alpha_ci,
)
from assay.calibration.bootstrap import Bootstrap

_ = float("nan")
#: Krippendorff 2011, "Computing Krippendorff's alpha-reliability": 4 observers, 12 units.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]
#: Wikipedia, "Krippendorff's alpha": 3 coders, 15 units.
THREE_CODERS = [
    [_, _, _, _, _, 3, 4, 1, 2, 1, 1, 3, 3, _, 3],
    [1, _, 2, 1, 3, 3, 4, 3, _, _, _, _, _, _, _],
    [_, _, 2, 1, 3, 4, 4, _, 2, 1, 1, 3, 3, _, 4],
]
#: R package irr, data set anxiety, raters 1 and 2.
ANXIETY = (
    [3, 3, 3, 4, 5, 5, 2, 3, 5, 2, 2, 6, 1, 5, 2, 2, 1, 2, 4, 3],
    [3, 6, 4, 6, 2, 4, 2, 4, 3, 3, 2, 3, 3, 3, 2, 2, 1, 3, 3, 4],
)


def pairs(table):
    """Two raters whose table this is."""
    cells = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return tuple(zip(*cells, strict=True))


def test_a1_kappa_of_the_scikit_learn_docs():
    first, second = ["neg", "pos", "neg", "neu", "pos"], ["neg", "pos", "neg", "neu", "neg"]
    assert cohen_kappa_score(first, second) == pytest.approx(0.6875)


@pytest.mark.parametrize(
    ("table", "expected"),
    [([[20, 5], [10, 15]], 0.4), ([[45, 15], [25, 15]], 0.1304348), ([[25, 35], [5, 35]], 0.2592593)],
)
def test_a2_kappa_of_wikipedia(table, expected):
    assert cohen_kappa_score(*pairs(table)) == pytest.approx(expected, abs=5e-8)
    assert float(kappa_of_table(np.array(table, dtype=float))) == pytest.approx(expected, abs=5e-8)


@pytest.mark.parametrize(("weights", "expected"), [(None, 0.1195), ("linear", 0.1892), ("quadratic", 0.2968)])
def test_a3_weighted_kappa_of_irr(weights, expected):
    found = cohen_kappa_score(*ANXIETY, labels=range(1, 7), weights=weights)
    assert found == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("level", "expected"), [("nominal", 0.7434), ("ordinal", 0.8154), ("interval", 0.8491), ("ratio", 0.7974)]
)
def test_a4_alpha_of_krippendorff_2011(level, expected):
    assert krippendorff_alpha(KRIPPENDORFF, level=level) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.6914), ("interval", 0.8108)])
def test_a5_alpha_of_three_coders(level, expected):
    assert krippendorff_alpha(THREE_CODERS, level=level) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(None, 0.77544), ("quadratic", 0.91400), ("ordinal", 0.89894), ("linear", 0.85874)],
)
def test_a6_gwet_of_irrcac(weights, expected):
    assert gwet_ac(KRIPPENDORFF, weights=weights) == pytest.approx(expected, abs=5e-6)


def test_a6_fleiss_of_irrcac():
    assert fleiss_kappa(KRIPPENDORFF) == pytest.approx(0.76117, abs=5e-6)


@pytest.mark.parametrize(
    ("table", "kappa", "ac1", "accuracy"),
    [
        ([[80, 10], [5, 5]], 0.31818, 0.80800, 0.85),
        ([[118, 5], [2, 0]], -0.02339, 0.94078, 0.944),
        ([[40, 9], [6, 45]], 0.69952, 0.70075, 0.85),
    ],
)
def test_a7_paradox_tables(table, kappa, ac1, accuracy):
    raters = pairs(table)
    assert cohen_kappa_score(*raters) == pytest.approx(kappa, abs=5e-6)
    assert gwet_ac(raters) == pytest.approx(ac1, abs=5e-6)
    assert float(gwet_ac_of_table(np.array(table, dtype=float))) == pytest.approx(ac1, abs=5e-6)
    assert np.mean(np.equal(*raters)) == pytest.approx(accuracy)


def test_a13_a_constant_judge_has_no_kappa_above_chance():
    assert cohen_kappa_score([1] * 90 + [0] * 10, [1] * 100) == 0.0


@pytest.mark.parametrize("judge", [[1] * 20, [1] * 15 + [0] * 5])
def test_a14_constant_labels_have_no_kappa(judge):
    assert cohen_kappa_score([1] * 20, judge) is None
    assert krippendorff_alpha([[1] * 20, [1] * 20]) is None
    assert gwet_ac([[1] * 20, [1] * 20]) is None
    assert fleiss_kappa([[1] * 20, [1] * 20]) is None


def test_nothing_to_compare():
    assert cohen_kappa_score([], []) is None
    alone = [[1, 2, _], [_, _, 3]]
    assert krippendorff_alpha(alone) is None
    assert gwet_ac(alone) is None
    assert fleiss_kappa(alone) is None
    assert krippendorff_alpha_ci(alone).reason


def test_confusion_matrix_is_humans_by_rows():
    table = confusion_matrix(["fail", "fail", "pass"], ["fail", "pass", "pass"], labels=["fail", "pass"])
    assert table.tolist() == [[1, 1], [0, 1]]
    weighted = confusion_matrix([0, 1], [1, 1], sample_weight=[2, 3])
    assert weighted.tolist() == [[0, 2], [0, 3]]
    with pytest.raises(ValueError, match="'maybe' is not one of the labels"):
        confusion_matrix(["fail"], ["maybe"], labels=["fail", "pass"])
    with pytest.raises(ValueError, match="2 values for 1 records"):
        confusion_matrix(["fail"], ["fail", "pass"])


ratings = st.integers(2, 4).flatmap(
    lambda raters: st.lists(
        st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=raters, max_size=raters), min_size=2, max_size=12
    )
)


def agreement_by_loops(items, similarity, chance_of):
    """Mean weighted agreement over pairs of raters within items, corrected by a chance made of category shares."""
    items = [[value for value in item if value is not None] for item in items]
    rated = [item for item in items if item]
    values = sorted({value for item in rated for value in item})
    paired = [item for item in rated if len(item) >= 2]
    if not paired or len(values) < 2:
        return None
    agreement = np.mean(
        [
            np.mean(
                [similarity(values.index(a), values.index(b), len(values)) for a, b in itertools.permutations(item, 2)]
            )
            for item in paired
        ]
    )
    shares = [np.mean([item.count(value) / len(item) for item in rated]) for value in values]
    chance = chance_of(
        shares, sum(similarity(i, j, len(values)) for i in range(len(values)) for j in range(len(values)))
    )
    return (agreement - chance) / (1 - chance)


def identity(i, j, k):
    return float(i == j)


def quadratic(i, j, k):
    return 1 - (i - j) ** 2 / (k - 1) ** 2


def gwet_chance(shares, total):
    return total / (len(shares) * (len(shares) - 1)) * sum(share * (1 - share) for share in shares)


def as_columns(items):
    return np.array(items, dtype=float).T


@given(ratings)
def test_gwet_and_fleiss_by_loops(items):
    columns = as_columns(items)
    for weights, similarity in ((None, identity), ("quadratic", quadratic)):
        expected = agreement_by_loops(items, similarity, gwet_chance)
        found = gwet_ac(columns, weights=weights)
        assert found == (None if expected is None else pytest.approx(expected, abs=1e-9))
    expected = agreement_by_loops(items, identity, lambda shares, total: sum(share**2 for share in shares))
    assert fleiss_kappa(columns) == (None if expected is None else pytest.approx(expected, abs=1e-9))


def alpha_by_loops(items, distance):
    paired = [[v for v in item if v is not None] for item in items]
    paired = [item for item in paired if len(item) >= 2]
    pooled = [value for item in paired for value in item]
    if len(set(pooled)) < 2:
        return None
    observed = sum(
        distance(a, b, pooled) / (len(item) - 1) for item in paired for a, b in itertools.permutations(item, 2)
    )
    expected = sum(distance(a, b, pooled) for a, b in itertools.permutations(pooled, 2)) / (len(pooled) - 1)
    return 1 - observed / expected


def ordinal_distance(a, b, pooled):
    low, high = min(a, b), max(a, b)
    between = sum(low <= value <= high for value in pooled)
    return (between - (pooled.count(a) + pooled.count(b)) / 2) ** 2 if a != b else 0.0


DISTANCES = {
    "nominal": lambda a, b, pooled: float(a != b),
    "ordinal": ordinal_distance,
    "interval": lambda a, b, pooled: (a - b) ** 2,
    "ratio": lambda a, b, pooled: ((a - b) / (a + b)) ** 2,
}


@given(ratings, st.sampled_from(sorted(DISTANCES)))
def test_alpha_by_loops(items, level):
    expected = alpha_by_loops(items, DISTANCES[level])
    found = krippendorff_alpha(as_columns(items), level=level)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-9))


def test_alpha_of_grades_between_the_levels():
    rng = np.random.default_rng(2)
    truth = rng.random(60)
    grades = np.clip(truth + rng.normal(0, 0.1, (3, 60)), 0, 1)
    items = grades.T.tolist()
    assert krippendorff_alpha(grades, level="interval") == pytest.approx(alpha_by_loops(items, DISTANCES["interval"]))
    assert krippendorff_alpha(grades + 1e6, level="interval") == pytest.approx(
        krippendorff_alpha(grades, level="interval"), abs=1e-6
    )


@pytest.mark.parametrize("level", sorted(DISTANCES))
def test_alpha_bootstrap_is_that_of_resampled_items(level):
    """The interval from products of sums is what resampling the items themselves gives, but for the draws."""
    rng = np.random.default_rng(8)
    truth = rng.integers(1, 5, 80)
    table = np.where(rng.random((3, 80)) < 0.75, truth, rng.integers(1, 5, (3, 80))).astype(float)
    table[rng.random((3, 80)) < 0.1] = np.nan
    found = krippendorff_alpha_ci(table, level=level, bootstrap=Bootstrap(80, n_resamples=1500, seed=1))
    plain = [krippendorff_alpha(table[:, rng.integers(0, 80, 80)], level=level) for _ in range(600)]
    lower, upper = np.quantile(plain, [0.025, 0.975])
    assert found.value == krippendorff_alpha(table, level=level)
    width = upper - lower
    assert found.lower == pytest.approx(lower, abs=width / 6)
    assert found.upper == pytest.approx(upper, abs=width / 6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=30))
def test_weights_of_kappa_are_copies(rows):
    first, second, weight = map(list, zip(*rows, strict=True))
    copies = [(a, b) for a, b, w in rows for _ in range(w)]
    for kind in (None, "linear", "quadratic"):
        once = cohen_kappa_score(first, second, labels=range(4), weights=kind, sample_weight=weight)
        many = cohen_kappa_score(*zip(*copies, strict=True), labels=range(4), weights=kind)
        assert once == (None if many is None else pytest.approx(many, abs=1e-12))
