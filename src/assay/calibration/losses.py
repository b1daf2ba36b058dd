"""How far scores and probabilities are from the labels: mean absolute error, Brier score, calibration error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from assay.calibration._columns import FloatArray, IntArray, floats, units, weights_or_ones
from assay.calibration.bootstrap import Bootstrap

if TYPE_CHECKING:
    import numpy.typing as npt

    from assay.calibration.statistic import Statistic

#: Bins of equal width over [0, 1], or bins that hold about equally many records.
Binning = Literal["uniform", "quantile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """One bin of a reliability diagram: what was said, what was found."""

    mean_predicted: float
    share_passed: float
    n: int
    #: its share of all weight
    share: float


def mean_absolute_error(
    y_true: npt.ArrayLike, y_pred: npt.ArrayLike, *, sample_weight: npt.ArrayLike | None = None
) -> float | None:
    """Weighted mean of |y_pred - y_true|; None without records."""
    y = floats(y_true, "y_true")
    error = np.abs(floats(y_pred, "y_pred", n=len(y)) - y)
    return float(np.average(error, weights=weights_or_ones(sample_weight, len(y)))) if len(y) else None


def brier_score_loss(
    y_true: npt.ArrayLike, y_prob: npt.ArrayLike, *, sample_weight: npt.ArrayLike | None = None
) -> float | None:
    """Weighted mean of (y_prob - y_true)², labels in [0, 1], soft ones allowed; None without records."""
    y = units(y_true, "y_true")
    error = (units(y_prob, "y_prob", n=len(y)) - y) ** 2
    return float(np.average(error, weights=weights_or_ones(sample_weight, len(y)))) if len(y) else None


def expected_calibration_error(
    y_true: npt.ArrayLike,
    y_prob: npt.ArrayLike,
    *,
    n_bins: int = 10,
    strategy: Binning = "quantile",
    sample_weight: npt.ArrayLike | None = None,
) -> float | None:
    """Weighted mean over bins of |mean label - mean probability|; None without records.

    Its value hangs on the bins and is biased upwards on few labels: compare, do not quote.
    """
    terms = _bin_terms(y_true, y_prob, n_bins, strategy, sample_weight)
    return float(_calibration_error(terms.sum(axis=0))) if len(terms) else None


def expected_calibration_error_ci(
    y_true: npt.ArrayLike,
    y_prob: npt.ArrayLike,
    *,
    n_bins: int = 10,
    strategy: Binning = "quantile",
    sample_weight: npt.ArrayLike | None = None,
    bootstrap: Bootstrap | None = None,
) -> Statistic:
    """Expected calibration error with its bootstrap interval; the bins stay those of all records."""
    terms = _bin_terms(y_true, y_prob, n_bins, strategy, sample_weight)
    return (bootstrap or Bootstrap(len(terms))).ci(terms, _calibration_error)


def calibration_curve(
    y_true: npt.ArrayLike,
    y_prob: npt.ArrayLike,
    *,
    n_bins: int = 10,
    strategy: Binning = "quantile",
    sample_weight: npt.ArrayLike | None = None,
) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram that hold records, in order."""
    y, p = units(y_true, "y_true"), units(y_prob, "y_prob")
    weights = weights_or_ones(sample_weight, len(y))
    bins = _bins(p, n_bins, strategy)
    return tuple(
        ReliabilityBin(
            mean_predicted=float(np.average(p[inside], weights=weights[inside])),
            share_passed=float(np.average(y[inside], weights=weights[inside])),
            n=int(inside.sum()),
            share=float(weights[inside].sum() / weights.sum()),
        )
        for inside in (bins == index for index in np.unique(bins))
    )


def _bins(p: FloatArray, n_bins: int, strategy: Binning) -> IntArray:
    if not len(p):
        return np.zeros(0, dtype=np.int64)
    inner = np.linspace(0.0, 1.0, n_bins + 1)[1:-1]
    edges = inner if strategy == "uniform" else np.unique(np.quantile(p, inner))
    return np.searchsorted(edges, p, side="right").astype(np.int64)


def _bin_terms(
    y_true: npt.ArrayLike,
    y_prob: npt.ArrayLike,
    n_bins: int,
    strategy: Binning,
    sample_weight: npt.ArrayLike | None,
) -> FloatArray:
    y = units(y_true, "y_true")
    p = units(y_prob, "y_prob", n=len(y))
    w = weights_or_ones(sample_weight, len(y))
    member = _bins(p, n_bins, strategy)[:, None] == np.arange(n_bins)[None, :]
    return np.column_stack([w, member * (w * (y - p))[:, None]])


def _calibration_error(sums: FloatArray) -> FloatArray:
    found: FloatArray = np.abs(sums[..., 1:]).sum(axis=-1) / sums[..., 0]
    return found
