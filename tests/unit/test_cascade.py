"""Who is asked for when a free judge looks first, and that estimates stay unbiased however wrong it is."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.budgets import is_thinned
from assay.cascade import Cascade
from assay.records import Failure, NotApplicable, Score
from assay.windows import Sums, pass_ratio

THIRD = Cascade(first="lexical", share=0.3)


def a_score(value: float) -> Score:
    return Score(value=value, passed=value >= 0.9)


@pytest.mark.parametrize(
    ("band", "value", "asked"),
    [
        (None, 0.0, 1.0),
        (None, 0.899, 1.0),
        (None, 0.9, 0.3),
        (None, 1.0, 0.3),
        ((0.2, 0.95), 0.1999, 0.3),
        ((0.2, 0.95), 0.2, 1.0),
        ((0.2, 0.95), 0.95, 1.0),
        ((0.2, 0.95), 0.96, 0.3),
    ],
)
def test_what_is_in_doubt_is_asked_for_and_a_share_of_the_rest(
    band: tuple[float, float] | None, value: float, asked: float
) -> None:
    cascade = Cascade(first="lexical", share=0.3, band=band)
    assert cascade.probability(a_score(value)) == asked


@pytest.mark.parametrize("outcome", [NotApplicable(reason="no_claims"), Failure(kind="internal", message="broke")])
def test_of_what_the_first_judge_says_nothing_the_model_is_asked(outcome: NotApplicable | Failure) -> None:
    assert THIRD.probability(outcome) == 1.0


@given(st.floats(0, 1), st.floats(0.01, 0.99))
def test_the_probability_is_never_nothing(value: float, share: float) -> None:
    cascade = Cascade(first="rules", share=share)
    assert cascade.probability(a_score(value)) in (share, 1.0)


@pytest.mark.parametrize("first_is", ["useful", "useless", "wrong"])
def test_the_weighted_ratio_is_unbiased_and_its_interval_covers_the_truth(first_is: str) -> None:
    """400 samples of 600 records; the first judge finds most of what fails, nothing of it, or the opposite of it."""
    sees = {"useful": 0.8, "useless": 0.3, "wrong": 0.1}[first_is]
    truth, draw = 0.85, random.Random(first_is)
    found, plain, covered = [], [], 0
    for sample in range(400):
        sums, passes = Sums(), []
        for number in range(600):
            passed = draw.random() < truth
            doubts = draw.random() < (0.3 if passed else sees)
            chance = THIRD.probability(a_score(0.5 if doubts else 1.0))
            if not is_thinned(f"{sample}-{number}", chance):
                sums += Sums.of(weight=1.0 / chance, value=float(passed), passed=passed)
                passes.append(passed)
        ratio = pass_ratio(sums)
        assert ratio is not None
        found.append(ratio.value)
        plain.append(statistics.fmean(passes))
        covered += ratio.lower <= truth <= ratio.upper
    error = statistics.stdev(found) / len(found) ** 0.5
    assert abs(statistics.fmean(found) - truth) < 4 * error
    assert covered / 400 > 0.92
    if first_is != "useless":
        assert abs(statistics.fmean(plain) - truth) > 10 * error, "without the weights it is not"
