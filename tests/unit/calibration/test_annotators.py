"""Several annotators: one label from many, the human ceiling, the alternative annotator test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from assay.calibration import alt_test, benjamini_yekutieli, gold_labels, human_ceiling
from assay.calibration.agreement import cohen_kappa_score
from assay.calibration.annotators import nearest_level
from assay.calibration.bootstrap import Bootstrap

_ = float("nan")


# A11 needs the data of the alternative annotator test's authors, whose licences keep them out of this project.


@pytest.mark.parametrize(("epsilon", "omega"), [(0.0, 0.0), (0.1, 1 / 3), (0.2, 2 / 3)])
def test_a12_alt_test_of_the_authors_code(epsilon, omega):
    i = np.arange(60)
    g = i % 3
    annotators = [g, np.where(i % 5, g, (g + 1) % 3), np.where(i % 4, g, (g + 2) % 3)]
    found = alt_test(annotators, np.where(i % 6, g, (g + 1) % 3), epsilon=epsilon)
    assert found.winning_rate == pytest.approx(omega)
    assert found.advantage == pytest.approx(0.888889, abs=5e-7)
    assert found.passed is (omega >= 0.5)


def alt_test_by_loops(table, judge, epsilon, scoring):
    """The authors' procedure, one comparison at a time."""

    def score(value, others):
        if scoring == "accuracy":
            return np.mean([value == other for other in others])
        return -np.sqrt(np.mean([(value - other) ** 2 for other in others]))

    p_values, advantages = [], []
    for h, row in enumerate(table):
        judge_wins, person_wins = [], []
        for item, value in enumerate(row):
            others = [other for k, other in enumerate(table[:, item]) if k != h and not np.isnan(other)]
            if np.isnan(value) or not others:
                continue
            person, machine = score(value, others), score(judge[item], others)
            judge_wins.append(float(machine >= person - 1e-12))
            person_wins.append(float(person >= machine - 1e-12))
        if len(judge_wins) < 30:
            continue
        p_values.append(stats.ttest_1samp(np.subtract(person_wins, judge_wins), epsilon, alternative="less").pvalue)
        advantages.append(np.mean(judge_wins))
    rejected = multipletests(p_values, alpha=0.05, method="fdr_by")[0]
    return np.mean(rejected), np.mean(advantages), p_values


@pytest.mark.parametrize("scoring", ["accuracy", "rmse"])
@pytest.mark.parametrize("seed", range(6))
def test_alt_test_by_loops(seed, scoring):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, 90)
    table = np.where(rng.random((5, 90)) < 0.7, truth, rng.integers(0, 5, (5, 90))).astype(float)
    table[rng.random((5, 90)) < 0.2] = np.nan
    table[4, 20:] = np.nan  # too few records: skipped
    judge = np.where(rng.random(90) < 0.75, truth, rng.integers(0, 5, 90)).astype(float)
    found = alt_test(table, judge, epsilon=0.1, scoring=scoring)
    omega, rho, p_values = alt_test_by_loops(table, judge, 0.1, scoring)
    assert found.winning_rate == pytest.approx(omega)
    assert found.advantage == pytest.approx(rho)
    assert [p for p in found.p_values if p is not None] == pytest.approx(p_values, rel=1e-6)
    assert found.p_values[4] is None


def test_alt_test_without_spread_is_decided_by_the_mean():
    people, judge = np.ones((3, 40)), np.ones(40)
    assert alt_test(people, judge, epsilon=0.1).p_values == (0.0, 0.0, 0.0)
    assert alt_test(people, np.zeros(40), epsilon=0.1).p_values == (1.0, 1.0, 1.0)


def test_alt_test_takes_enough_records():
    assert alt_test(np.ones((3, 29)), np.ones(29)) is None
    assert alt_test([[1.0] * 40, [_] * 40], np.ones(40)) is None


def test_d8_benjamini_yekutieli():
    assert benjamini_yekutieli([0.001, 0.02, 0.03, 0.2], q=0.05) == {0}
    assert benjamini_yekutieli([0.2, 0.03, 0.001, 0.02], q=0.05) == {2}
    assert benjamini_yekutieli([]) == frozenset()


@given(st.lists(st.floats(0, 1) | st.sampled_from([1e-4, 1e-3, 0.01]), min_size=1, max_size=20))
def test_d8_benjamini_yekutieli_is_statsmodels(p_values):
    expected = np.flatnonzero(multipletests(p_values, alpha=0.05, method="fdr_by")[0])
    assert benjamini_yekutieli(p_values) == set(expected.tolist())


def test_gold_labels_by_hand():
    table = [[1, 1, 0, 0, 0.4], [1, 0, 0, _, 0.6], [1, 0, _, 1, _]]
    assert gold_labels(table).tolist() == [1, 0, 0, 0.5, 0.5]
    assert gold_labels(table, gold="any_fail").tolist() == [1, 0, 0, 0, 0]
    assert gold_labels(table, gold="mean") == pytest.approx([1, 1 / 3, 0, 0.5, 0.5])
    assert gold_labels([[0.6, 0.8]], threshold=0.7).tolist() == [0, 1]
    with pytest.raises(ValueError, match="nobody annotated record 1"):
        gold_labels([[1, _], [1, _]])


def ceiling_by_loops(table, threshold=0.5):
    """Each annotator beside the majority of the others, one at a time."""
    people, others, who = [], [], []
    for item in table.T:
        for h, value in enumerate(item):
            rest = [other >= threshold for k, other in enumerate(item) if k != h and not np.isnan(other)]
            if np.isnan(value) or not rest or np.mean(rest) == 0.5:
                continue
            people.append(value >= threshold)
            others.append(np.mean(rest) > 0.5)
            who.append(h)
    return np.array(others), np.array(people), np.array(who)


@pytest.mark.parametrize("seed", range(5))
def test_ceiling_by_loops(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random(150) < 0.7
    table = np.where(rng.random((4, 150)) < 0.12, ~truth, truth).astype(float)
    table[rng.random((4, 150)) < 0.3] = np.nan
    others, people, who = ceiling_by_loops(table)
    found = human_ceiling(table)
    assert found.annotators == 4
    assert found.comparisons == len(others)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(others, people))
    assert found.accuracy.value == pytest.approx(np.mean(others == people))
    assert found.fail_recall.value == pytest.approx(np.mean(~people[~others]))
    assert found.by_annotator == pytest.approx(
        [cohen_kappa_score(others[who == h], people[who == h]) for h in range(4)]
    )
    assert found.kappa.lower < found.kappa.value < found.kappa.upper
    assert found.weighted_kappa is None
    assert found.judge_kappa.reason


def test_judge_is_put_in_each_annotators_place():
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.7
    table = np.where(rng.random((3, 200)) < 0.15, ~truth, truth).astype(float)
    judge = np.where(rng.random(200) < 0.1, ~truth, truth)
    found = human_ceiling(table, judge)
    others, machine = [], []
    for h in range(3):
        rest = np.delete(table, h, axis=0).mean(axis=0)
        others.extend(rest[rest != 0.5] > 0.5)
        machine.extend(judge[rest != 0.5])
    assert found.judge_kappa.value == pytest.approx(cohen_kappa_score(others, machine))
    spread = np.std(found.by_annotator, ddof=1)
    assert found.z == pytest.approx((found.judge_kappa.value - np.mean(found.by_annotator)) / spread)
    # An annotator in the judge's seat is like the annotators.
    truth = rng.random(4000) < 0.7
    four = np.where(rng.random((4, 4000)) < 0.15, ~truth, truth).astype(float)
    alike = human_ceiling(four[:3], four[3])
    assert alike.judge_kappa.value == pytest.approx(alike.kappa.value, abs=0.04)


def test_ceiling_needs_two_annotators_who_take_sides():
    assert human_ceiling([[1, 0, 1]]) is None
    assert human_ceiling([[1, 0, 1], [_, _, _]]) is None
    two = human_ceiling([[1, 0, 1] * 20, [1, 0, 0] * 20])
    assert (two.annotators, two.comparisons, two.split) == (2, 120, 0)
    assert two.z is None  # two annotators beside each other have one kappa
    alike = human_ceiling(np.ones((3, 40)))
    assert alike.kappa.value is None
    assert alike.accuracy.value == 1.0


def test_ceiling_counts_the_split():
    table = np.array([[1, 1], [0, 1], [1, 1], [0, 1]], dtype=float)
    found = human_ceiling(table)
    # Two against two: without either one, the other three are 2 to 1; nobody is split.
    assert (found.comparisons, found.split) == (8, 0)
    three = human_ceiling(table[:3])
    assert (three.comparisons, three.split) == (4, 2)


def test_weighted_ceiling_over_levels():
    rng = np.random.default_rng(1)
    levels = [0.0, 0.25, 0.5, 0.75, 1.0]
    grade = rng.integers(0, 5, 120)
    table = np.clip(grade + rng.integers(-1, 2, (3, 120)), 0, 4) / 4
    found = human_ceiling(table, levels=levels)
    rest, own = [], []
    for h in range(3):
        mean = np.delete(table * 4, h, axis=0).mean(axis=0)
        rest.extend(np.floor(mean + 0.5).astype(int))
        own.extend((table[h] * 4).astype(int))
    assert found.weighted_kappa.value == pytest.approx(
        cohen_kappa_score(rest, own, labels=range(5), weights="quadratic")
    )


def test_ceiling_bootstrap_draws_records_with_all_their_annotators():
    """Three copies of one annotator make as many comparisons, but no more records."""
    rng = np.random.default_rng(2)
    truth = rng.random(100) < 0.7
    one, other = (np.where(rng.random(100) < 0.1, ~truth, truth).astype(float) for _ in range(2))
    few = human_ceiling([one, one, other], bootstrap=Bootstrap(100))
    many = human_ceiling([one, one, one, one, other, other], bootstrap=Bootstrap(100))
    assert many.comparisons >= 2 * few.comparisons
    assert many.accuracy.half_width > 0.6 * few.accuracy.half_width


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_nearest_level(values):
    levels = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    found = nearest_level(np.array(values), levels)
    assert (
        np.abs(levels[found] - values) <= np.abs(levels[None, :] - np.array(values)[:, None]).min(axis=1) + 1e-8
    ).all()


def test_half_way_is_the_higher_level():
    assert nearest_level(np.array([0.5]), np.array([0.0, 1.0])).tolist() == [1]


@pytest.mark.parametrize(
    ("table", "message"), [([1, 0], "shape"), ([[1, 2]], "not in"), ([[1, float("inf")]], "infinite")]
)
def test_bad_annotations(table, message):
    with pytest.raises(ValueError, match=message):
        human_ceiling(table)
