"""The agreement report: every number is that of its own function, levels go by lower bounds, nothing is ever NaN."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.calibration import LEVELS, Statistic, agreement, cross_val_predict, human_ceiling
from assay.calibration.agreement import cohen_kappa_score, gwet_ac, krippendorff_alpha
from assay.calibration.level import judge_level
from assay.calibration.proportions import wilson_interval
from assay.calibration.ranks import kendalltau, pearsonr, roc_auc_score, spearmanr


def columns(both_pass, false_fail, false_pass, both_fail):
    counts = [both_pass, false_fail, false_pass, both_fail]
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


def world(seed, n=400, pass_rate=0.85, noise=0.12, annotators=0):
    """Labels, judge's scores of five levels, and annotators who each err now and then."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < pass_rate
    score = np.clip(np.round(4 * np.where(y, 0.85, 0.3) + rng.normal(0, 8 * noise, n)), 0, 4) / 4
    people = np.where(rng.random((annotators, n)) < 0.06, ~y, y).astype(float)
    return y.astype(float), (score >= 0.5).astype(float), score, people


def test_the_numbers_are_those_of_the_functions():
    y, judged, score, people = world(0, annotators=3)
    report = agreement(y, judged, y_score=score, annotations=people)
    bad, flagged = y == 0, judged == 0
    assert report.fail_recall.value == pytest.approx((bad & flagged).sum() / bad.sum())
    assert (report.fail_recall.lower, report.fail_recall.upper) == pytest.approx(
        wilson_interval((bad & flagged).sum(), bad.sum())
    )
    assert report.fail_precision.value == pytest.approx((bad & flagged).sum() / flagged.sum())
    assert report.kappa.value == pytest.approx(cohen_kappa_score(y, judged))
    assert report.auc.value == pytest.approx(roc_auc_score(y, score))
    assert report.spearman.value == pytest.approx(spearmanr(y, score))
    assert report.kendall.value == pytest.approx(kendalltau(y, score))
    assert report.pearson.value == pytest.approx(pearsonr(y, score))
    assert report.ac1.value == pytest.approx(gwet_ac([y, judged]))
    assert report.accuracy.value == pytest.approx((y == judged).mean())
    assert report.f1_fail.value == pytest.approx(2 * (bad & flagged).sum() / (bad.sum() + flagged.sum()))
    assert report.score_bias.value == pytest.approx((score - y).mean())
    assert report.mean_absolute_error.value == pytest.approx(np.abs(score - y).mean())
    assert report.alpha.value == pytest.approx(krippendorff_alpha(people))
    assert report.ceiling.kappa.value == pytest.approx(human_ceiling(people).kappa.value)
    assert report.share_of_ceiling == pytest.approx(report.ceiling.judge_kappa.value / report.ceiling.kappa.value)
    assert report.alt_test is not None
    for name in ("kappa", "auc", "spearman", "kendall", "pearson", "ac1", "accuracy", "f1_fail"):
        found = getattr(report, name)
        assert found.lower < found.value < found.upper, name


def test_ordinal_scales_add_weighted_kappa():
    rng = np.random.default_rng(0)
    levels = [0.0, 0.25, 0.5, 0.75, 1.0]
    grade = rng.integers(0, 5, 200)
    score = np.clip(grade + rng.integers(-1, 2, 200), 0, 4)
    people = np.clip(grade + rng.integers(-1, 2, (3, 200)), 0, 4) / 4
    report = agreement(grade >= 3, score >= 3, y_score=score / 4, y_grade=grade / 4, levels=levels, annotations=people)
    expected = cohen_kappa_score(grade, score, labels=range(5), weights="quadratic")
    assert report.weighted_kappa.value == pytest.approx(expected)
    assert report.ac2.value == pytest.approx(gwet_ac([grade, score], weights="quadratic"))
    assert report.alpha.value == pytest.approx(krippendorff_alpha(people, level="ordinal"))
    assert report.ceiling.weighted_kappa.value is not None
    assert report.spearman.value == pytest.approx(spearmanr(grade, score))
    # Grades are compared by distance.
    assert report.alt_test.advantage > 0.5
    with pytest.raises(ValueError, match="at least 3"):
        agreement(grade >= 3, score >= 3, levels=[0, 1])
    with pytest.raises(ValueError, match="ascending"):
        agreement(grade >= 3, score >= 3, levels=[0, 1, 0.5])


def test_probabilities_add_brier_and_calibration_error():
    y, judged, score, _ = world(1)
    p = cross_val_predict(y, score, kind="platt")
    report = agreement(y, judged, y_score=score, y_prob=p)
    assert report.brier.value == pytest.approx(np.mean((p - y) ** 2))
    assert report.brier.lower < report.brier.value < report.brier.upper
    assert report.calibration_error.value < 0.1
    plain = agreement(y, judged, y_score=score)
    assert (plain.brier, plain.calibration_error, plain.weighted_kappa, plain.alt_test) == (None,) * 4


class TestLevel:
    def test_a13_always_pass_is_unusable(self):
        report = agreement(*columns(90, 0, 10, 0))
        assert report.accuracy.value == pytest.approx(0.90)
        assert report.kappa.value == 0.0
        assert report.fail_recall.value == 0.0
        assert report.level == "unusable"
        assert report.fail_precision.reason == "the judge flags none of the records"
        # AC1 calls it nearly perfect, which is why it is no headline.
        assert report.ac1.value > 0.85

    @pytest.mark.parametrize("judged", [[1] * 100, [1] * 90 + [0] * 10, [0] * 100])
    @pytest.mark.parametrize("label", [1, 0])
    def test_a14_constant_labels(self, judged, label):
        report = agreement([label] * 100, judged)
        assert report.level == "no_data"
        assert (report.kappa.value, report.auc.value) == (None, None)
        assert report.kappa.reason
        assert "it takes 30, and 10 of each" in report.reasons[0]
        json.dumps(asdict(report), allow_nan=False)

    @pytest.mark.parametrize("counts", [(15, 1, 1, 10), (80, 5, 1, 8), (4, 4, 2, 40)])
    def test_too_few_labels_say_nothing(self, counts):
        report = agreement(*columns(*counts))
        assert report.level == "no_data"
        assert report.kappa.reason
        assert report.spearman.reason
        assert report.fail_recall.value is not None
        assert report.needs

    def test_a_good_judge_is_calibrated(self):
        report = agreement(*columns(320, 10, 5, 65))
        assert report.level == "calibrated"
        assert report.level_half_width < 0.05
        assert any("flags at least" in reason for reason in report.reasons)

    def test_wide_levels_are_for_trends_only(self):
        report = agreement(*columns(60, 10, 4, 30))
        assert report.level == "trend_only"
        assert any("points" in reason for reason in report.reasons)

    def test_missing_fails_are_for_trends_only(self):
        report = agreement(*columns(320, 10, 2, 13))
        assert report.level == "trend_only"
        assert any("15 fails" in reason for reason in report.reasons)

    def test_the_team_may_ask_for_more_fail_recall(self):
        counts = columns(320, 10, 15, 65)
        assert agreement(*counts).level == "calibrated"
        asked = agreement(*counts, min_fail_recall=0.8)
        assert asked.level == "trend_only"
        assert any("80%" in reason for reason in asked.reasons)

    def test_a_golden_set_is_judged_without_a_level(self):
        report = agreement(*columns(55, 5, 10, 50), selection="curated")
        assert report.level == "calibrated"
        assert report.level_half_width is None
        assert any("by hand" in note for note in report.notes)

    def test_the_lower_bound_counts_not_the_value(self):
        """The same shares on fewer labels."""
        many, few = agreement(*columns(150, 50, 75, 125)), agreement(*columns(18, 6, 9, 15))
        assert many.rates.youden.value == pytest.approx(few.rates.youden.value)
        assert many.level == "trend_only"
        assert few.level == "unusable"

    @pytest.mark.parametrize(("n_clusters", "said"), [(1, "only 1 cluster:"), (4, "only 4 clusters:")])
    def test_without_intervals_there_is_no_level(self, n_clusters, said):
        """The judge that is calibrated on independent labels; the values stay."""
        y, judged = columns(320, 10, 5, 65)
        people = np.tile(y, (3, 1)).astype(float)
        report = agreement(
            y, judged, clusters=np.arange(400) % n_clusters, annotations=people, y_prob=y * 0.5, lengths=1 + y + judged
        )
        assert report.level == "no_data"
        assert len(report.reasons) == 1
        assert said in report.reasons[0]
        assert report.needs == ()
        for name in ("kappa", "auc", "alpha", "score_bias", "mean_absolute_error", "spearman", "kendall", "pearson"):
            found = getattr(report, name)
            assert found.value is not None
            assert found.lower is None, name
            assert found.reason.startswith(said)
        assert report.ceiling.judge_kappa.reason.startswith(said)
        perfect = agreement(y, y, clusters=np.arange(400) % n_clusters)
        assert (perfect.kappa.value, perfect.kappa.lower, perfect.auc.lower) == (1.0, None, None)
        json.dumps(asdict(report), allow_nan=False)

    def test_an_auc_without_interval_is_for_trends_only(self):
        """Resampling can leave out a class that is in one cluster only."""
        y, judged = columns(320, 10, 5, 65)
        rates = agreement(y, judged).rates
        known = Statistic(value=0.95, lower=0.9, upper=0.97)
        assert judge_level(rates, known, half_width=0.03)[0] == "calibrated"
        level, reasons = judge_level(rates, Statistic(value=0.95, reason="one cluster has it all"), half_width=0.03)
        assert level == "trend_only"
        assert reasons == ("its AUC has no interval: one cluster has it all",)

    def test_one_is_one_label(self):
        report = agreement([1], [1])
        assert report.reasons == ("1 label, 1 pass and 0 fail: it takes 30, and 10 of each",)
        one_fail = agreement(*columns(380, 0, 0, 20)).rates
        rates = dataclasses.replace(one_fail, counts=dataclasses.replace(one_fail.counts, both_fail=10))
        known = Statistic(value=0.95, lower=0.9, upper=0.97)
        assert "390 labels with 10 fails: a level takes 100 with 20" in judge_level(rates, known, half_width=0.01)[1]

    def test_a_judge_like_people_is_human_like(self):
        rng = np.random.default_rng(4)
        y = rng.random(500) < 0.8
        people = np.where(rng.random((3, 500)) < 0.05, ~y, y).astype(float)
        judged = np.where(rng.random(500) < 0.04, ~y, y)
        report = agreement(y, judged, annotations=people)
        assert report.level == "human_like"
        assert any("annotators" in reason for reason in report.reasons)
        assert LEVELS.index(report.level) > LEVELS.index("calibrated")

    def test_perfect_agreement_keeps_a_width(self):
        report = agreement(*columns(150, 0, 0, 30))
        assert report.kappa.value == 1.0
        assert 0.8 < report.kappa.lower < 1.0
        assert report.auc.value == 1.0
        assert report.auc.lower < 0.95


class TestNotes:
    def test_bias_is_told_when_it_is_sure(self):
        biased = agreement(*columns(300, 60, 5, 35))
        assert any("points too low" in note for note in biased.notes)
        fair = agreement(*columns(300, 20, 18, 35))
        assert any("may be none" in note for note in fair.notes)

    def test_c16_picked_labels_are_not_representative(self):
        y, judged = columns(100, 40, 10, 50)
        report = agreement(y, judged, sample_weight=np.where(judged == 1, 8.0, 1.0))
        assert any("not representative" in note for note in report.notes)
        assert not any("not representative" in note for note in agreement(y, judged).notes)
        # The counts stay those that people can check; the shares are weighted.
        assert report.rates.counts.n == 200
        assert report.fail_recall.value == pytest.approx(50 / (50 + 80))

    def test_kindness_to_long_answers(self):
        rng = np.random.default_rng(0)
        y, judged, score, _ = world(2)
        length = np.exp(rng.normal(6, 1, len(y)))
        kind = np.clip(score + 0.15 * (np.log(length) - 6), 0, 1)
        found = agreement(y, judged, y_score=kind, lengths=length)
        assert found.length_correlation.value > 0.2
        assert any("long answers" in note for note in found.notes)
        none = agreement(y, judged, y_score=score, lengths=length)
        assert none.length_correlation.holds(0.0)
        assert not any("answers" in note for note in none.notes)
        with pytest.raises(ValueError, match="length above 0"):
            agreement(y, judged, lengths=np.zeros(len(y)))


class TestNeeds:
    def test_more_labels_are_told_in_sentences(self):
        report = agreement(*columns(75, 10, 5, 10))
        goals = {need.goal: need for need in report.needs}
        assert any("gate" in goal for goal in goals)
        assert all(need.labels > 0 for need in report.needs)
        assert [need.labels for need in report.needs] == sorted(need.labels for need in report.needs)
        assert "more labels" in report.needs[0].sentence()

    def test_picking_where_the_judge_says_fail_is_cheaper(self):
        report = agreement(*columns(170, 10, 8, 12))
        rank = next(need for need in report.needs if "apart" in need.goal)
        # 30 more fails: 10 % of even labels fail, about 30 % of those picked half by verdict.
        assert rank.labels == pytest.approx(300, abs=10)
        assert rank.picked == pytest.approx(102, abs=12)
        assert "half are picked" in rank.sentence()

    def test_what_is_there_is_not_asked_for(self):
        report = agreement(*columns(5000, 50, 40, 600))
        assert report.needs == ()

    def test_the_level_goes_with_the_root_of_the_labels(self):
        report = agreement(*columns(170, 10, 8, 12))
        level = next(need for need in report.needs if "±3" in need.goal)
        expected = 200 * ((report.level_half_width / 0.03) ** 2 - 1)
        assert level.labels == pytest.approx(expected, abs=10)

    @pytest.mark.parametrize(
        ("label", "n", "sentence"),
        [
            (1, 1, "to say anything: at least 29 more labels, at least 10 fail among them"),
            (0, 25, "to say anything: at least 10 more labels, at least 10 pass among them"),
            (0.5, 6, "to say anything: at least 30 more labels, at least 10 pass and at least 10 fail among them"),
        ],
    )
    def test_a_class_that_is_missing_is_asked_for(self, label, n, sentence):
        (need,) = agreement([label] * n, [1] * n).needs
        assert need.sentence() == sentence
        assert need.picked is None

    def test_without_any_fail_no_number_is_made_up(self):
        report = agreement([1] * 40, [1] * 40)
        assert report.level == "no_data"
        assert [need.sentence() for need in report.needs] == [
            "to say anything: at least 10 more labels, at least 10 fail among them"
        ]
        json.dumps(asdict(report), allow_nan=False)


def test_undecided_labels():
    y, judged, score, _ = world(3)
    y[:40] = 0.5
    report = agreement(y, judged, y_score=score)
    assert report.undecided == pytest.approx(0.1)
    decided = agreement(y[40:], judged[40:], y_score=score[40:])
    assert report.kappa.value == pytest.approx(decided.kappa.value)
    assert report.auc.value == pytest.approx(decided.auc.value)
    assert report.rates.n == 400


def test_equal_weights_and_own_clusters_change_nothing():
    y, judged, score, _ = world(5)
    plain = agreement(y, judged, y_score=score)
    same = agreement(y, judged, y_score=score, sample_weight=np.full(400, 3.0))
    assert same.fail_recall.value == pytest.approx(plain.fail_recall.value)
    assert same.fail_recall.lower == pytest.approx(plain.fail_recall.lower)
    assert same.kappa.value == pytest.approx(plain.kappa.value)
    assert same.level == plain.level
    own = agreement(y, judged, y_score=score, clusters=np.arange(400))
    assert own.fail_recall.lower == pytest.approx(plain.fail_recall.lower)


def test_clusters_widen():
    y, judged, score, _ = world(6)
    copies = np.repeat(np.arange(400), 4)
    alone = agreement(y[copies], judged[copies], y_score=score[copies])
    together = agreement(y[copies], judged[copies], y_score=score[copies], clusters=copies)
    for name in ("fail_recall", "fail_precision", "kappa", "auc", "spearman", "kendall", "pearson", "score_bias"):
        ratio = getattr(together, name).half_width / getattr(alone, name).half_width
        assert ratio == pytest.approx(2, rel=0.2), name
    # Copies are no labels.
    assert together.rates.counts.n == 1600


def test_same_seed_same_digits():
    y, judged, score, people = world(7, annotators=3)
    assert agreement(y, judged, y_score=score, annotations=people) == agreement(
        y, judged, y_score=score, annotations=people
    )
    assert agreement(y, judged, seed=1).kappa.lower != agreement(y, judged, seed=2).kappa.lower


cases = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=n, max_size=n),
        st.lists(st.sampled_from([1.0, 10.0]), min_size=n, max_size=n),
        st.lists(st.sampled_from("abc"), min_size=n, max_size=n),
        st.lists(st.lists(st.sampled_from([0.0, 1.0, float("nan")]), min_size=n, max_size=n), min_size=1, max_size=3),
        st.booleans(),
    )
)


@settings(max_examples=150, deadline=None)
@given(cases)
def test_any_labels_give_json_without_nan(case):
    y, score, weight, clusters, people, curated = case
    report = agreement(
        y,
        np.array(score) >= 0.5,
        y_score=score,
        y_prob=score,
        levels=[0.0, 0.25, 1.0],
        annotations=people,
        lengths=np.arange(1, len(y) + 1),
        sample_weight=weight,
        clusters=clusters,
        strata=clusters,
        selection="curated" if curated else "probability",
        n_resamples=50,
    )
    json.dumps(asdict(report), allow_nan=False)
    assert report.level in LEVELS
    assert report.reasons
    for found in (getattr(report, name) for name in report.__slots__):
        if isinstance(found, Statistic) and found.lower is not None:
            assert found.lower <= found.value <= found.upper


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y_score": [0.5]}, "y_score: 1 values for 2"),
        ({"y_score": [0.5, 1.5]}, "y_score: value 1"),
        ({"y_grade": [0.5, -1]}, "y_grade: value 1"),
        ({"y_prob": [0.5, 2]}, "y_prob"),
        ({"annotations": [[1, 0, 1]]}, "annotations"),
        ({"annotations": [1, 0]}, "annotations"),
        ({"sample_weight": [1, 0]}, "weight 1"),
        ({"clusters": ["a"]}, "clusters"),
        ({"strata": ["a"]}, "strata"),
        ({"lengths": [1]}, "lengths"),
    ],
)
def test_bad_input_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        agreement([1, 0], [1, 0], **options)


def test_no_labels():
    with pytest.raises(ValueError, match="there are no labels"):
        agreement([], [])
