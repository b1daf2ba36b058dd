"""Agreement coefficients: kappa of two raters, alpha, AC1/AC2 and Fleiss of many.

Ratings of many raters have the shape (raters, items), NaN where a rater gave none. Every function returns None where
its coefficient is undefined.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from assay.calibration._columns import FloatArray, weights_or_ones
from assay.calibration.bootstrap import Bootstrap

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import numpy.typing as npt

    from assay.calibration.statistic import Statistic

#: How far apart two different categories are, by their order: all alike, the steps between them, or steps squared.
Weighting = Literal["linear", "quadratic"]

#: Scale of measurement that Krippendorff's alpha takes differences on.
Measurement = Literal["nominal", "ordinal", "interval", "ratio"]

_FLAT = 1e-12


def confusion_matrix(
    y_true: Sequence[Hashable] | npt.NDArray[np.generic],
    y_pred: Sequence[Hashable] | npt.NDArray[np.generic],
    *,
    labels: Sequence[Hashable] | npt.NDArray[np.generic] | None = None,
    sample_weight: npt.ArrayLike | None = None,
) -> FloatArray:
    """Weights of each pair of categories, shape (k, k): rows are `y_true`, columns `y_pred`.

    `labels` are the k categories in order; without it, all that occur, sorted.

    Raises:
        ValueError: lengths differ, or a value is not one of `labels`.
    """
    true, pred = list(y_true), list(y_pred)
    if len(true) != len(pred):
        raise ValueError(f"y_pred: {len(pred)} values for {len(true)} records")
    # Sorting values of unlike types is the caller's mistake, and Python says so.
    names = list(labels) if labels is not None else sorted({*true, *pred})
    number = {name: index for index, name in enumerate(names)}
    unknown = next((value for value in (*true, *pred) if value not in number), None)
    if unknown is not None:
        raise ValueError(f"{unknown!r} is not one of the labels {names}")
    weights = weights_or_ones(sample_weight, len(true))
    table = np.zeros((len(names), len(names)))
    np.add.at(table, ([number[value] for value in true], [number[value] for value in pred]), weights)
    return table


def cohen_kappa_score(
    y_true: Sequence[Hashable] | npt.NDArray[np.generic],
    y_pred: Sequence[Hashable] | npt.NDArray[np.generic],
    *,
    labels: Sequence[Hashable] | npt.NDArray[np.generic] | None = None,
    weights: Weighting | None = None,
    sample_weight: npt.ArrayLike | None = None,
) -> float | None:
    """Cohen's kappa: 1 - Σ d·observed / Σ d·expected, d = 0 on the diagonal.

    d is 1 off the diagonal, or |i - j|, or (i - j)² by `weights`; give `labels` then, for the order and the levels that
    nobody used. None when `y_true` has one category only (agreement with a constant cannot be told from chance) or
    there is nothing to compare. 0.0 when `y_pred` is constant and `y_true` is not.
    """
    table = confusion_matrix(y_true, y_pred, labels=labels, sample_weight=sample_weight)
    return _number(kappa_of_table(table, weights))


def kappa_of_table(table: FloatArray, weights: Weighting | None = None) -> FloatArray:
    """Kappa of tables, shape (..., k, k), rows the humans: shape (...), NaN where it is undefined."""
    k = table.shape[-1]
    steps = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(np.float64)
    distance = {None: np.minimum(steps, 1.0), "linear": steps, "quadratic": steps**2}[weights]
    rows, columns, total = table.sum(axis=-1), table.sum(axis=-2), table.sum(axis=(-2, -1))
    observed = (table * distance).sum(axis=(-2, -1)) * total
    expected = np.einsum("...i,ij,...j->...", rows, distance, columns)
    one_class = (rows > _FLAT * total[..., None]).sum(axis=-1) < 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(one_class | (expected <= 0.0), np.nan, 1.0 - observed / expected)


def krippendorff_alpha(ratings: npt.ArrayLike, *, level: Measurement = "nominal") -> float | None:
    """Krippendorff's alpha, 1 - D_o / D_e, over all pairs of ratings of the same item; missing ratings allowed.

    `ratings` has the shape (raters, items), NaN where missing. Items with fewer than two ratings tell nothing. None
    when no item has two, or all ratings are alike. 0.80 is called reliable, 0.667 tentative. Krippendorff 2011.
    """
    terms, alpha = _alpha_terms(_ratings(ratings), level)
    return _number(alpha(terms.sum(axis=0)))


def krippendorff_alpha_ci(
    ratings: npt.ArrayLike,
    *,
    level: Measurement = "nominal",
    bootstrap: Bootstrap | None = None,
) -> Statistic:
    """Krippendorff's alpha with its bootstrap interval over items."""
    terms, alpha = _alpha_terms(_ratings(ratings), level)
    return (bootstrap or Bootstrap(len(terms))).ci(
        terms, alpha, unless="no two annotators rated the same record, or all ratings are alike"
    )


def gwet_ac(ratings: npt.ArrayLike, *, weights: Weighting | Literal["ordinal"] | None = None) -> float | None:
    """Gwet's AC1, or AC2 when `weights` are given, of two or more raters; missing ratings allowed.

    chance = T / (q(q-1)) · Σ π(1-π) over the q categories, T the sum of all weights. `ratings` has the shape
    (raters, items), NaN where missing; the categories are all values that occur, in order. None when no item has two
    ratings or there is one category. It stays high where one class is rare: never a headline. Gwet 2014.
    """
    table, agreement, shares = _agreement_of(_ratings(ratings), weights)
    q = len(shares)
    if agreement is None or q < 2:
        return None
    chance = float(table.sum() / (q * (q - 1)) * (shares * (1 - shares)).sum())
    return (agreement - chance) / (1 - chance) if chance < 1 else None


def fleiss_kappa(ratings: npt.ArrayLike) -> float | None:
    """Fleiss' kappa of two or more raters, chance = Σ π²; missing ratings allowed.

    `ratings` has the shape (raters, items), NaN where missing. None when no item has two ratings or all are alike.
    """
    _, agreement, shares = _agreement_of(_ratings(ratings), None)
    chance = float((shares**2).sum())
    if agreement is None or chance >= 1 - _FLAT:
        return None
    return (agreement - chance) / (1 - chance)


def gwet_ac_of_table(table: FloatArray, weights: Weighting | Literal["ordinal"] | None = None) -> FloatArray:
    """AC1, or AC2 with `weights`, of tables of two raters, shape (..., k, k): shape (...), NaN where undefined."""
    k, total = table.shape[-1], table.sum(axis=(-2, -1))
    similarity = _similarity(k, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = (table * similarity).sum(axis=(-2, -1)) / total
        shares = (table.sum(axis=-1) + table.sum(axis=-2)) / (2 * total[..., None])
        chance = similarity.sum() / (k * (k - 1)) * (shares * (1 - shares)).sum(axis=-1)
        found: FloatArray = (agreement - chance) / (1 - chance)
    return found


def _ratings(ratings: npt.ArrayLike) -> FloatArray:
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"ratings: give one row for each rater, not an array of shape {table.shape}")
    if np.isinf(table).any():
        raise ValueError("ratings: infinite values; write NaN where a rater gave none")
    return table


def _counts(ratings: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The values that occur, in order, and how many raters gave each item each of them, shape (items, values)."""
    given = ~np.isnan(ratings)
    values, index = np.unique(ratings[given], return_inverse=True)
    counts = np.zeros((ratings.shape[1], len(values)))
    np.add.at(counts, (np.nonzero(given)[1], index), 1.0)
    return values, counts


def _agreement_of(
    ratings: FloatArray, weighting: Weighting | Literal["ordinal"] | None
) -> tuple[FloatArray, float | None, FloatArray]:
    """Weights of category pairs, mean weighted agreement within items, and the mean share of each category."""
    values, counts = _counts(ratings)
    weights = _similarity(len(values), weighting)
    raters = counts.sum(axis=1)
    counts, raters = counts[raters > 0], raters[raters > 0]
    shares = (counts / raters[:, None]).mean(axis=0) if len(raters) else np.zeros(0)
    pairs = raters >= 2
    if not pairs.any():
        return weights, None, shares
    c, r = counts[pairs], raters[pairs]
    agreement = (c * (c @ weights - 1.0)).sum(axis=1) / (r * (r - 1))
    return weights, float(agreement.mean()), shares


def _similarity(k: int, weighting: Weighting | Literal["ordinal"] | None) -> FloatArray:
    steps = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(np.float64)
    if weighting is None or k < 2:
        return np.eye(k)
    distance = {"linear": steps, "quadratic": steps**2, "ordinal": steps * (steps + 1) / 2}[weighting]
    similarity: FloatArray = 1.0 - distance / distance.max()
    return similarity


def _alpha_terms(ratings: FloatArray, level: Measurement) -> tuple[FloatArray, Callable[[FloatArray], FloatArray]]:
    """Terms of each item, and the function that makes alpha of their sums, so that resampling items is a product.

    Only the ordinal distance hangs on how often each value occurs; it needs the coincidences of all pairs of values.
    For the others the disagreement within an item is one number.
    """
    values, counts = _counts(ratings)
    raters = counts.sum(axis=1)
    paired = raters >= 2
    counts = np.where(paired[:, None], counts, 0.0)
    scale = np.where(paired, 1.0 / np.maximum(raters - 1, 1.0), 0.0)
    k = len(values)
    if level == "ordinal":
        coincidences = (counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(k)) * scale[:, None, None]
        return coincidences.reshape(len(counts), k * k), lambda sums: _ordinal_alpha(
            sums.reshape(*sums.shape[:-1], k, k)
        )
    if level == "interval":
        # Both disagreements are variances, whatever the number of distinct values.
        centred = values - (values.mean() if k else 0.0)
        first, second = counts @ centred, counts @ centred**2
        within = 2 * (counts.sum(axis=1) * second - first**2) * scale
        return np.column_stack([within, counts.sum(axis=1), first, second]), _interval_alpha
    distance = _distance(values, level)
    within = np.einsum("ic,cd,id->i", counts, distance, counts) * scale
    return np.column_stack([within, counts]), lambda sums: _alpha(
        sums[..., 0], np.einsum("...c,cd,...d->...", sums[..., 1:], distance, sums[..., 1:]), sums[..., 1:].sum(axis=-1)
    )


def _distance(values: FloatArray, level: Measurement) -> FloatArray:
    difference = np.subtract.outer(values, values)
    if level == "nominal":
        unequal: FloatArray = (difference != 0).astype(np.float64)
        return unequal
    total = np.add.outer(values, values)
    ratio: FloatArray = np.divide(difference, total, out=np.zeros_like(difference), where=total != 0)
    squared: FloatArray = ratio**2
    return squared


def _alpha(observed: FloatArray, expected: FloatArray, n: FloatArray) -> FloatArray:
    """1 - D_o / D_e from sums over ordered pairs within items, over all ordered pairs, and the number of ratings."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > _FLAT, 1.0 - observed * (n - 1) / expected, np.nan)


def _interval_alpha(sums: FloatArray) -> FloatArray:
    within, n, first, second = (sums[..., index] for index in range(4))
    return _alpha(within, 2 * (n * second - first**2), n)


def _ordinal_alpha(coincidences: FloatArray) -> FloatArray:
    margins = coincidences.sum(axis=-1)
    # Half of each value itself and all between two values: the distance of their mean ranks.
    rank = np.cumsum(margins, axis=-1) - margins / 2
    distance = (rank[..., :, None] - rank[..., None, :]) ** 2
    expected = (margins[..., :, None] * margins[..., None, :] * distance).sum(axis=(-2, -1))
    return _alpha((coincidences * distance).sum(axis=(-2, -1)), expected, margins.sum(axis=-1))


def _number(value: FloatArray | float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
