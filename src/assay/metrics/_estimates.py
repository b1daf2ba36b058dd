"""The estimates of `assay.windows` and `assay.signals`, of whole columns at once: a scrape has thousands of them.

Each array holds one of the sums, an element for each label set and signal, as float64. The formulas, and what they are
taken from, stand with the functions named; tests hold the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Column = NDArray[np.float64]

#: As in `assay.windows` and `assay.signals`.
_Z = 1.959963984540054
_TRUSTED = 30.0
_ROUNDING = 1e-12
_LEAST = 5


@dataclass(frozen=True, slots=True)
class Estimates:
    """Values with the bounds of their 95 % intervals. NaN, which is never published: there is none."""

    value: Column
    lower: Column
    upper: Column
    n_effective: Column


def share_columns(sums: Sequence[Column]) -> Estimates:
    """`assay.windows.pass_ratio` of n, sum_w, sum_w2, passes, sum_wp and sum_w2p; where n is 0 there is no value."""
    n, sum_w, sum_w2, passes, sum_wp, sum_w2p = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        mixed = (passes > 0) & (passes < n)
        ratio = np.where(mixed, np.clip(sum_wp / sum_w, 0.0, 1.0), passes > 0)
        squares = np.where(mixed, (1 - ratio) ** 2 * sum_w2p + ratio**2 * (sum_w2 - sum_w2p), 0.0)
        kish = _kish(n, sum_w, sum_w2)
        variance = squares / (sum_w * sum_w) * n / (n - 1)
        spread = (n > 1) & (ratio > 0) & (ratio < 1) & (squares > _ROUNDING * sum_w2)
        told = np.minimum(np.minimum(n, _trusted(kish)), ratio * (1 - ratio) / variance)
        n_effective = np.where(spread, told, kish)
        # Wilson's interval; it always contains its point.
        z2 = _Z * _Z
        whole = 1 + z2 / n_effective
        centre = (ratio + z2 / (2 * n_effective)) / whole
        half = _Z * np.sqrt(ratio * (1 - ratio) / n_effective + z2 / (4 * n_effective * n_effective)) / whole
        lower = np.maximum(0.0, np.minimum(ratio, centre - half))
        upper = np.minimum(1.0, np.maximum(ratio, centre + half))
    return _where(n > 0, ratio, lower, upper, n_effective)


def mean_columns(sums: Sequence[Column]) -> Estimates:
    """`assay.signals.mean_of` of the eight `SIGNAL_SUMS`; where n is 0 there is no value."""
    n, _, sum_w, sum_w2, sum_wx, sum_wx2, sum_w2x, sum_w2x2 = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sum_wx / sum_w
        squares = sum_w2x2 - 2 * mean * sum_w2x + mean * mean * sum_w2
        spread = sum_wx2 / sum_w - mean * mean
        kish = _kish(n, sum_w, sum_w2)
        told = (n > 1) & (squares > _ROUNDING * sum_w2x2) & (spread > _ROUNDING * sum_wx2 / sum_w)
        variance = squares / (sum_w * sum_w) * n / (n - 1)
        unbiased = spread * n / (n - 1)
        n_effective = np.where(told, np.minimum(np.minimum(n, _trusted(kish)), unbiased / variance), kish)
        variance = np.where(told, unbiased / n_effective, 0.0)
    return _average(n > 0, mean, variance, n_effective, kish, n)


def cost_columns(sums: Sequence[Column]) -> Estimates:
    """`assay.signals.cost_per_pass` of the nine `COST_SUMS`; where none passed there is no value."""
    n, passes, sum_w, sum_w2, sum_wc, sum_w2c2, sum_wp, sum_w2p, sum_w2cp = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = sum_wc / sum_wp
        squares = np.maximum(0.0, sum_w2c2 - 2 * ratio * sum_w2cp + ratio * ratio * sum_w2p)
        variance = squares / (sum_wp * sum_wp) * n / np.maximum(1.0, n - 1)
        kish = _kish(n, sum_w, sum_w2)
    return _average(passes > 0, ratio, variance, kish, kish, passes)


def _average(
    there: NDArray[np.bool_], value: Column, variance: Column, n_effective: Column, kish: Column, enough: Column
) -> Estimates:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        half = np.where((enough >= _LEAST) & (kish >= _LEAST), _t_quantile(kish - 1) * np.sqrt(variance), np.nan)
    return _where(there, value, value - half, value + half, n_effective)


def _where(there: NDArray[np.bool_], *columns: Column) -> Estimates:
    return Estimates(*(np.where(there, column, np.nan) for column in columns))


def _kish(n: Column, sum_w: Column, sum_w2: Column) -> Column:
    return np.maximum(1.0, np.minimum(n, sum_w * sum_w / sum_w2))


def _trusted(kish: Column) -> Column:
    return kish * np.maximum(1.0, kish / _TRUSTED)


def _t_quantile(df: Column) -> Column:
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * df)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    )
