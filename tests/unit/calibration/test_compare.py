"""Paired comparison of two judges: exact values, sharper than unpaired, covers."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from assay.calibration import compare
from assay.calibration.agreement import cohen_kappa_score
from assay.calibration.ranks import roc_auc_score


def two_judges(rng, n, pass_rate=0.8, better=0.1):
    """A judge and a better one that errs on much the same records."""
    y = rng.random(n) < pass_rate
    hard = rng.normal(size=n)
    first = np.clip(np.where(y, 0.75, 0.45) + 0.12 * hard + rng.normal(0, 0.05, n), 0, 1)
    second = np.clip(np.where(y, 0.75, 0.45 - better) + 0.12 * hard + rng.normal(0, 0.05, n), 0, 1)
    return y, first, second


def test_values_are_those_of_each_judge():
    y, first, second = two_judges(np.random.default_rng(0), 300)
    found = compare(y, first, second)
    bad = ~y
    for judge, score in (("first", first), ("second", second)):
        flagged = score < 0.5
        assert getattr(found.fail_recall, judge) == pytest.approx((bad & flagged).sum() / bad.sum())
        assert getattr(found.fail_precision, judge) == pytest.approx((bad & flagged).sum() / flagged.sum())
        assert getattr(found.kappa, judge) == pytest.approx(cohen_kappa_score(y, ~flagged))
        assert getattr(found.bias, judge) == pytest.approx((~flagged).mean() - y.mean())
        assert getattr(found.auc, judge) == pytest.approx(roc_auc_score(y, score))
    for difference in found.differences:
        assert difference.difference.value == pytest.approx(difference.second - difference.first)
    assert (found.n, found.fails) == (300, bad.sum())
    assert found.changed == ((first < 0.5) != (second < 0.5)).sum()


def test_a_better_judge_is_told_in_a_sentence():
    found = compare(*two_judges(np.random.default_rng(1), 800))
    assert found.fail_recall.is_clear
    assert found.auc.is_clear
    value, low, high = (
        round(100 * part)
        for part in (
            found.fail_recall.difference.value,
            found.fail_recall.difference.lower,
            found.fail_recall.difference.upper,
        )
    )
    assert found.fail_recall.sentence() == f"fail recall +{value} points ({low} to {high})"
    assert found.kappa.sentence().startswith("kappa +0.")


def test_a_judge_beside_itself_does_not_differ():
    y, first, _ = two_judges(np.random.default_rng(2), 200)
    found = compare(y, first, first)
    assert found.changed == 0
    for difference in found.differences:
        assert (difference.difference.value, difference.difference.lower, difference.difference.upper) == (0, 0, 0)
        assert not difference.is_clear


def test_swapping_the_judges_swaps_the_signs():
    y, first, second = two_judges(np.random.default_rng(3), 250)
    there, back = compare(y, first, second), compare(y, second, first)
    for one, other in zip(there.differences, back.differences, strict=True):
        assert one.difference.value == pytest.approx(-other.difference.value)
        assert one.difference.lower == pytest.approx(-other.difference.upper, abs=0.03)


def test_pairing_is_sharper_than_two_intervals():
    y, first, second = two_judges(np.random.default_rng(4), 400, better=0.03)
    paired = compare(y, first, second).fail_recall.difference.half_width
    recalls = [(score < 0.5)[~y].mean() for score in (first, second)]
    unpaired = 1.96 * np.sqrt(sum(r * (1 - r) / (~y).sum() for r in recalls))
    assert paired < 0.7 * unpaired


def test_interval_covers():
    rng = np.random.default_rng(5)
    y, first, second = two_judges(rng, 400_000)
    truth = ((second < 0.5)[~y]).mean() - ((first < 0.5)[~y]).mean()
    held = []
    for seed in range(300):
        sample = two_judges(rng, 250)
        found = compare(*sample, n_resamples=400, seed=seed).fail_recall.difference
        held.append(found.lower <= truth <= found.upper)
    assert 0.91 <= np.mean(held) <= 0.985


def test_thresholds_verdicts_weights_and_clusters():
    y, first, second = two_judges(np.random.default_rng(6), 300)
    by_threshold = compare(y, first, second, thresholds=(0.5, 0.6))
    by_verdict = compare(y, first, second, verdicts=(first >= 0.5, second >= 0.6))
    assert by_threshold == by_verdict
    weight = np.where(y, 3.0, 1.0)
    weighted = compare(y, first, second, sample_weight=weight)
    copies = np.repeat(np.arange(300), weight.astype(int))
    plain = compare(y[copies], first[copies], second[copies])
    for one, many in zip(weighted.differences, plain.differences, strict=True):
        assert one.difference.value == pytest.approx(many.difference.value)
    fourfold = np.repeat(np.arange(300), 4)
    alone = compare(y[fourfold], first[fourfold], second[fourfold])
    together = compare(y[fourfold], first[fourfold], second[fourfold], clusters=fourfold)
    for one, many in zip(together.differences, alone.differences, strict=True):
        assert one.difference.half_width == pytest.approx(2 * many.difference.half_width, rel=0.25)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_told(label):
    found = compare([label] * 40, np.linspace(0, 1, 40), np.linspace(1, 0, 40))
    assert found.auc.difference.value is None
    assert "one class" in found.auc.sentence()
    assert found.kappa.difference.reason
    assert (found.fail_recall.difference.value is None) == (label == 1)
    json.dumps(asdict(found), allow_nan=False)


def test_a_judge_that_flags_nothing_has_no_precision_to_compare():
    y, first, _ = two_judges(np.random.default_rng(7), 100)
    found = compare(y, first, np.ones(100))
    assert found.fail_precision.difference.value is None
    assert found.fail_precision.second is None
    assert found.fail_precision.first is not None
    assert "flags nothing" in found.fail_precision.sentence()


def test_bad_input():
    with pytest.raises(ValueError, match="no labels"):
        compare([], [], [])
    with pytest.raises(ValueError, match="second: 1 values for 2"):
        compare([1, 0], [0.1, 0.2], [0.3])
    with pytest.raises(ValueError, match="neither pass"):
        compare([1, 0.5], [0.1, 0.2], [0.3, 0.4])
