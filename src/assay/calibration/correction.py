"""Estimates of what people would pass, from what a judge passes: the formulas.

Which one holds depends on what stays the same between the labels and the window. Rogan-Gladen: how the judge treats
good and bad answers. Post-stratification: what its verdicts are worth, so only for labels of the same time. Offset: how
many points it is off. `assay.calibration.decision` chooses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from assay.calibration._columns import FloatArray, flags, floats, units, weights_or_ones
from assay.calibration.distributions import norm_ppf
from assay.calibration.means import hajek_mean
from assay.calibration.statistic import Statistic

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

_Z95 = norm_ppf(0.975)

#: Monte Carlo draws of a post-stratified interval: its ends are good to about a thirtieth of its width.
DRAWS = 4000


def rogan_gladen(
    pass_ratio: float,
    n: float,
    *,
    sensitivity: float,
    n_pass: float,
    specificity: float,
    n_fail: float,
    confidence: float = 0.95,
) -> Statistic:
    """Share that people would pass: (p + Sp - 1) / (Se + Sp - 1), with the interval of Lang and Reiczigel 2014.

    Args:
        pass_ratio: share that the judge passes in the window.
        n: how many records the window has; the effective number if they are weighted.
        sensitivity: P(judge passes | people pass), from `n_pass` labels (effective number).
        specificity: P(judge fails | people fail), from `n_fail` labels (effective number).

    Returns:
        Clipped to [0, 1]. Without a value, and with the interval [0, 1], when Se + Sp <= 1: such a judge tells nothing.
        The interval of the paper holds the value but for rounding; where it does not, it is widened to.
    """
    z = norm_ppf(0.5 + confidence / 2)
    slope = sensitivity + specificity - 1
    p, n1 = (n * pass_ratio + z * z / 2) / (n + z * z), n + z * z
    s1, m1 = (n_pass * sensitivity + 1) / (n_pass + 2), n_pass + 2
    s0, m0 = (n_fail * specificity + 1) / (n_fail + 2), n_fail + 2
    shrunk = s1 + s0 - 1
    size = round(n)
    if slope <= 0.0:
        reason = "the judge passes what people fail as often as what they pass"
        return Statistic(value=None, lower=0.0, upper=1.0, n=size, method="lang-reiczigel", reason=reason)
    value = _clip((pass_ratio + specificity - 1) / slope)
    if shrunk <= 0.0:
        return Statistic.of(value, (0.0, 1.0), n=size, method="lang-reiczigel")
    theta = (p + s0 - 1) / shrunk
    var1, var0 = s1 * (1 - s1) / m1, s0 * (1 - s0) / m0
    shift = 2 * z * z * (theta * var1 - (1 - theta) * var0)
    half = z * math.sqrt(p * (1 - p) / n1 + (1 - theta) ** 2 * var0 + theta**2 * var1) / shrunk
    interval = _clip(theta + shift - half), _clip(theta + shift + half)
    return Statistic.of(value, interval, n=size, method="lang-reiczigel")


def generalised_rogan_gladen(
    mean: float,
    variance: float,
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
) -> Statistic:
    """Share that people would pass, from the window's mean score: (mean - μ0) / (μ1 - μ0), delta-method interval.

    μ1 and μ0 are the mean scores of the labelled records that people pass and fail. It assumes what Rogan-Gladen does
    and uses more than the pass or fail of each score.

    Args:
        mean, variance: the window's mean score and the variance of that mean.
        y_true: human pass (1) or fail (0) of the labelled records.
        y_score: the judge's scores of the same records.
        sample_weight: of the labelled records.
    """
    passed = flags(y_true, "y_true")
    score = floats(y_score, "y_score", n=len(passed))
    w = weights_or_ones(sample_weight, len(passed))
    high, low = (
        hajek_mean(score[where], sample_weight=w[where]) if where.sum() >= 2 else None for where in (passed, ~passed)
    )
    n = len(passed)
    if high is None or low is None:
        return Statistic.undefined("it needs two labels of each class", n=n)
    slope = high.value - low.value
    if slope <= 0.0:
        return Statistic.undefined("the judge scores what people fail as high as what they pass", n=n)
    theta = (mean - low.value) / slope
    half = _Z95 * math.sqrt(variance + (1 - theta) ** 2 * low.variance + theta**2 * high.variance) / slope
    return Statistic.of(_clip(theta), (_clip(theta - half), _clip(theta + half)), n=n, method="delta")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionPowered:
    """A prediction-powered estimate, and how much of the judge's scores went into it."""

    estimate: Statistic
    #: 0 labels only, 1 the judge's offset corrected
    tuning: float


def ppi_mean(
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
    window: npt.ArrayLike,
    *,
    tuning: float | None = 1.0,
    sample_weight: npt.ArrayLike | None = None,
    window_weight: npt.ArrayLike | None = None,
    confidence: float = 0.95,
) -> PredictionPowered:
    """Mean label of the window: λ·mean(window) + mean(y_true - λ·y_score), Angelopoulos et al. 2023.

    With `tuning` 1 it is the judge's mean with its offset corrected; with unequal weights, and scores from a map fitted
    on other labels, the estimator of active inference. With None, PPI++: λ = cov(y, f) / ((1 + n/N) var f),
    in [0, 1]. A tuned λ hides a change between the labels and the window: only for labels of the window itself.

    Args:
        y_true, y_score: label and judge's score of each of n >= 2 labelled records.
        window: the judge's scores of the N >= 1 records to estimate.
        tuning: λ, or None to choose it (PPI++, unweighted only).
        sample_weight, window_weight: 1 / probability of selection; means are Hájek means then.

    Raises:
        ValueError: too few records, shapes differ, or PPI++ with weights.
    """
    y = floats(y_true, "y_true")
    f = floats(y_score, "y_score", n=len(y))
    others = floats(window, "window")
    if tuning is None:
        if sample_weight is not None or window_weight is not None:
            raise ValueError("PPI++ is for unweighted labels and windows: give a tuning")
        tuning = _ppi_tuning(y, f, others) if len(others) else 0.0
    judged = hajek_mean(tuning * others, sample_weight=window_weight)
    rest = hajek_mean(y - tuning * f, sample_weight=sample_weight)
    if judged is None or rest is None or rest.n < 2:
        raise ValueError("it needs two labels and one record in the window")
    # Divided by n, not n - 1, as in the paper's code.
    variance = judged.variance * (judged.n - 1) / judged.n + rest.variance * (rest.n - 1) / rest.n
    value = judged.value + rest.value
    half = norm_ppf(0.5 + confidence / 2) * math.sqrt(variance)
    return PredictionPowered(
        estimate=Statistic.of(value, (value - half, value + half), n=len(y), method="ppi"), tuning=tuning
    )


def post_stratified(
    shares: Sequence[float],
    n_effective: float,
    pass_shares: Sequence[float],
    label_counts: Sequence[float],
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Statistic, tuple[float, float]]:
    """Share that people would pass: Σ share · pass share over cells, with Jeffreys posteriors by Monte Carlo.

    For two cells, what the judge fails and what it passes, p ~ Beta(½, ½) as in the usual formula; for more, the same
    prior weight is spread over all cells (Dirichlet).

    Args:
        shares: share of the window in each of the K cells; they sum to 1.
        n_effective: effective number of records in the window.
        pass_shares: share of the labels in each cell that people pass.
        label_counts: effective number of labels in each cell, above 0.
        draws, seed: of the Monte Carlo.

    Returns:
        The estimate, and the interval that the window alone would give it if the labels were without error.
    """
    q, mu, m = (
        units(shares, "shares"),
        units(pass_shares, "pass_shares", n=len(shares)),
        floats(label_counts, "label_counts", n=len(shares)),
    )
    if abs(float(q.sum()) - 1) > 1e-6:
        raise ValueError(f"shares: they sum to {float(q.sum())}, not to 1")
    if (m <= 0).any():
        raise ValueError("label_counts: a cell without labels has no pass share")
    rng = np.random.default_rng(seed)
    window = rng.dirichlet(n_effective * q + 1.0 / len(q), draws)
    rates = rng.beta(m * mu + 0.5, m * (1 - mu) + 0.5, (draws, len(q)))
    value = float(q @ mu)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    lower, upper = np.quantile((window * rates).sum(axis=1), tails)
    low, high = np.quantile(window @ mu, tails)
    estimate = Statistic.of(value, (float(lower), float(upper)), n=round(n_effective), method="jeffreys")
    return estimate, (min(value, float(low)), max(value, float(high)))


def begg_greenes(pass_ratio: float, pass_given_pass: float, pass_given_fail: float) -> tuple[float, float] | None:
    """Sensitivity and specificity over all traffic, from labels chosen by the judge's verdict.

    Args:
        pass_ratio: share that the judge passes in all traffic.
        pass_given_pass, pass_given_fail: share that people pass among labels of each verdict of the judge.

    Returns:
        (sensitivity, specificity), or None when people would pass, or fail, everything.
    """
    true_pass, false_fail = pass_ratio * pass_given_pass, (1 - pass_ratio) * pass_given_fail
    false_pass, true_fail = pass_ratio * (1 - pass_given_pass), (1 - pass_ratio) * (1 - pass_given_fail)
    if true_pass + false_fail <= 0.0 or true_fail + false_pass <= 0.0:
        return None
    return true_pass / (true_pass + false_fail), true_fail / (true_fail + false_pass)


def labels_to_beat_raw(disagreement: float, bias: float) -> float | None:
    """n* = D/B² - 1: with more labels than this the offset is nearer the truth than the raw number; None without bias.

    `disagreement` is the share of records on which judge and people disagree, `bias` their difference in pass ratio.
    """
    return disagreement / bias**2 - 1 if bias != 0.0 else None


def label_multiplier(correlation: float) -> float | None:
    """How many labels one label is worth beside a judge: 1 / (1 - ρ²); None for a perfect judge.

    `correlation` is that of label and score on the same records, PPI++ with unlimited traffic.
    """
    return 1 / (1 - correlation**2) if abs(correlation) < 1 else None


def _ppi_tuning(y: FloatArray, f: FloatArray, window: FloatArray) -> float:
    spread = float(np.var(np.concatenate([f, window]), ddof=1))
    if spread <= 0.0:
        return 0.0
    return _clip(float(np.mean((y - y.mean()) * (f - f.mean()))) / ((1 + len(y) / len(window)) * spread))


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
