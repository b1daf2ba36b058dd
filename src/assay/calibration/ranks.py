"""Correlation and ranking of scores: AUC, Pearson, Spearman, Kendall's tau-b. Names as in scikit-learn and scipy.stats.

Every function returns None where its statistic is undefined, such as when one column is constant. `*_ci` functions add
an interval; give them the same `Bootstrap` to have the same resamples.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from assay.calibration._columns import (
    ROUNDING,
    FloatArray,
    IntArray,
    floats,
    groups_or_rows,
    sums_by_group,
    units,
    weights_or_ones,
)
from assay.calibration.bootstrap import Bootstrap
from assay.calibration.distributions import t_ppf
from assay.calibration.proportions import wilson_interval
from assay.calibration.statistic import Statistic, too_few_for_interval

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from assay.calibration._columns import Clusters

_CONSTANT = "the labels or the judge's scores are all alike"
_ONE_CLASS = "all labels are of one class"

#: Rows of pairs compared at once.
_BLOCK = 256


def roc_auc_score(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike, *, sample_weight: npt.ArrayLike | None = None
) -> float | None:
    """Probability that a passing record scores above a failing one, ties counting half (Mann and Whitney).

    `y_true` is 1 for pass, 0 for fail; 0.5 is undecided and counts for nothing. None when all labels are of one class.
    """
    auc = auc_of_counts(y_true, y_score)
    return _number(auc(weights_or_ones(sample_weight, np.size(y_true))[None, :])[0])


def roc_auc_ci(
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    bootstrap: Bootstrap | None = None,
) -> Statistic:
    """AUC with its bootstrap interval; for a judge that ranks without a mistake, a bound on what was not seen."""
    y = units(y_true, "y_true")
    w = weights_or_ones(sample_weight, len(y))
    auc = auc_of_counts(y, y_score)
    draws = bootstrap or Bootstrap(len(y))
    found = draws.ci_of_counts(lambda counts: auc(counts * w), unless=_ONE_CLASS)
    if found.value in (0.0, 1.0) and draws.no_interval is None:
        # Resampling perfect order gives perfect order; the smaller class says how much was looked at.
        smaller = min(int((y > 0.5).sum()), int((y < 0.5).sum()), draws.n_independent)
        return Statistic.of(found.value, wilson_interval(found.value * smaller, smaller), n=len(y), method="wilson")
    return found


def auc_of_counts(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> Callable[[FloatArray], FloatArray]:
    """The AUC as a function of how much each record counts: shape (..., n) to (...), NaN without both classes."""
    y = units(y_true, "y_true")
    score = floats(y_score, "y_score", n=len(y))
    order = np.argsort(score, kind="stable")
    passes, fails = (y[order] > 0.5 + ROUNDING).astype(np.float64), (y[order] < 0.5 - ROUNDING).astype(np.float64)
    starts = _starts(score[order])

    def auc(counts: FloatArray) -> FloatArray:
        if not len(order):
            return np.full(counts.shape[:-1], np.nan)
        weights = counts[..., order]
        high = np.add.reduceat(weights * passes, starts, axis=-1)
        low = np.add.reduceat(weights * fails, starts, axis=-1)
        below = np.cumsum(low, axis=-1) - low / 2
        pairs = high.sum(axis=-1) * low.sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs > 0, (high * below).sum(axis=-1) / pairs, np.nan)

    return auc


def pearsonr(
    y_true: npt.ArrayLike, y_pred: npt.ArrayLike, *, sample_weight: npt.ArrayLike | None = None
) -> float | None:
    """Pearson's correlation; None when a column is constant."""
    return _number(_correlation(_moments(y_true, y_pred, sample_weight).sum(axis=0)))


def pearsonr_ci(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    bootstrap: Bootstrap | None = None,
) -> Statistic:
    """Pearson's correlation with its bootstrap interval."""
    terms = _moments(y_true, y_pred, sample_weight)
    return (bootstrap or Bootstrap(len(terms))).ci(terms, _correlation, unless=_CONSTANT)


def spearmanr(
    y_true: npt.ArrayLike, y_pred: npt.ArrayLike, *, sample_weight: npt.ArrayLike | None = None
) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None when a column is constant."""
    x = floats(y_true, "y_true")
    y = floats(y_pred, "y_pred", n=len(x))
    w = weights_or_ones(sample_weight, len(x))
    return _number(_spearman(x, y)(w[None, :])[0]) if len(x) else None


def spearmanr_ci(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    bootstrap: Bootstrap | None = None,
) -> Statistic:
    """Spearman's rank correlation with its bootstrap interval; every resample is ranked anew."""
    x = floats(y_true, "y_true")
    y = floats(y_pred, "y_pred", n=len(x))
    w = weights_or_ones(sample_weight, len(x))
    rho = _spearman(x, y)
    return (bootstrap or Bootstrap(len(x))).ci_of_counts(lambda counts: rho(counts * w), unless=_CONSTANT)


def kendalltau(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> float | None:
    """Kendall's tau-b; None when a column is constant."""
    x = floats(y_true, "y_true")
    y = floats(y_pred, "y_pred", n=len(x))
    return _number(_tau(_pair_sums(x, y).sum(axis=0)))


def kendalltau_ci(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    *,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
) -> Statistic:
    """Kendall's tau-b with a jackknife interval (linearised, Student's t): resampling pairs would take too long."""
    x = floats(y_true, "y_true")
    y = floats(y_pred, "y_pred", n=len(x))
    n = len(x)
    sums = _pair_sums(x, y)
    totals = sums.sum(axis=0)
    tau = _number(_tau(totals))
    if tau is None:
        return Statistic.undefined(_CONSTANT, n=n)
    group, n_groups = groups_or_rows(clusters, n)
    no_interval = too_few_for_interval(n_groups, clusters=clusters is not None)
    if no_interval is not None:
        return Statistic.of(tau, n=n, no_interval=no_interval)
    in_x, in_y = float(totals[1]), float(totals[2])
    # A record is in two of each of its pairs' orders: influence is twice its share of each sum.
    pull = 2 * (sums[:, 0] / math.sqrt(in_x * in_y) - tau / 2 * (sums[:, 1] / in_x + sums[:, 2] / in_y))
    pull = sums_by_group(pull, group, n_groups)
    half = t_ppf(0.5 + confidence / 2, n_groups - 1) * math.sqrt(float((pull**2).sum()) * n_groups / (n_groups - 1))
    return Statistic.of(tau, (max(-1.0, tau - half), min(1.0, tau + half)), n=n, method="jackknife")


def _spearman(x: FloatArray, y: FloatArray) -> Callable[[FloatArray], FloatArray]:
    _, in_x = np.unique(x, return_inverse=True)
    _, in_y = np.unique(y, return_inverse=True)

    def rho(counts: FloatArray) -> FloatArray:
        rank_x, rank_y = _weighted_ranks(counts, in_x), _weighted_ranks(counts, in_y)
        total = counts.sum(axis=-1, keepdims=True)
        # Mean ranks are (total + 1) / 2 by construction; half a rank less on both sides changes nothing.
        dx, dy = rank_x - total / 2, rank_y - total / 2
        xy, xx, yy = (counts * dx * dy).sum(axis=-1), (counts * dx * dx).sum(axis=-1), (counts * dy * dy).sum(axis=-1)
        floor = 1e-12 * total[..., 0] ** 3
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where((xx > floor) & (yy > floor), xy / np.sqrt(xx * yy), np.nan)

    return rho


def _weighted_ranks(counts: FloatArray, index: IntArray) -> FloatArray:
    """Mean rank of each record among records that count `counts` times, less one half: shape (..., n)."""
    order = np.argsort(index, kind="stable")
    of_value = np.add.reduceat(counts[..., order], _starts(index[order]), axis=-1)
    return (np.cumsum(of_value, axis=-1) - of_value / 2)[..., index]


def _starts(ordered: FloatArray | IntArray) -> IntArray:
    """Where each run of equal values starts."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])


def _moments(y_true: npt.ArrayLike, y_pred: npt.ArrayLike, sample_weight: npt.ArrayLike | None) -> FloatArray:
    x = floats(y_true, "y_true")
    y = floats(y_pred, "y_pred", n=len(x))
    w = weights_or_ones(sample_weight, len(x))
    if len(x):
        # Centred and scaled first, so that sums of squares do not cancel; correlation does not mind.
        x, y = x - x.mean(), y - y.mean()
        x, y = x / (np.abs(x).max() or 1.0), y / (np.abs(y).max() or 1.0)
    return w[:, None] * np.column_stack([np.ones(len(x)), x, y, x * x, y * y, x * y])


def _correlation(sums: FloatArray) -> FloatArray:
    w, x, y, xx, yy, xy = (sums[..., index] for index in range(6))
    in_x, in_y = w * xx - x * x, w * yy - y * y
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (w * xy - x * y) / np.sqrt(in_x * in_y)
        constant = (in_x <= 1e-12 * w * w) | (in_y <= 1e-12 * w * w)
        return np.where(constant, np.nan, np.clip(found, -1.0, 1.0))


def _pair_sums(x: FloatArray, y: FloatArray) -> FloatArray:
    """For each record, over all others: concordant less discordant, not tied in x, not tied in y. Shape (n, 3)."""
    n = len(x)
    _, x_rank = np.unique(x, return_inverse=True)
    _, y_rank = np.unique(y, return_inverse=True)
    sums = np.zeros((n, 3))
    for start in range(0, n, _BLOCK):
        stop = start + _BLOCK
        in_x = np.sign(x_rank[start:stop, None] - x_rank[None, :]).astype(np.int8)
        in_y = np.sign(y_rank[start:stop, None] - y_rank[None, :]).astype(np.int8)
        sums[start:stop, 0] = (in_x * in_y).sum(axis=1)
        sums[start:stop, 1] = np.count_nonzero(in_x, axis=1)
        sums[start:stop, 2] = np.count_nonzero(in_y, axis=1)
    return sums


def _tau(sums: FloatArray) -> FloatArray:
    both, in_x, in_y = sums[..., 0], sums[..., 1], sums[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(in_x * in_y > 0, both / np.sqrt(in_x * in_y), np.nan)


def _number(value: FloatArray | float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
