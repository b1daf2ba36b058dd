"""Weighted means of labelled records, with the variance that weights and clusters really give them.

`assay.windows` does the same from sums, for production windows. Labels come as columns and may come in clusters
(records of one session, summaries of one article), which sums cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from assay.calibration._columns import FloatArray, floats, groups_or_rows, sums_by_group, units, weights_or_ones
from assay.calibration.distributions import t_ppf
from assay.calibration.statistic import MIN_CLUSTERS, too_few_for_interval
from assay.windows import Estimate, wilson

if TYPE_CHECKING:
    import numpy.typing as npt

    from assay.calibration._columns import Clusters

#: As in `assay.windows`: few heavy records hide their own spread, so it is trusted only as far as the weights carry it.
_TRUSTED = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A Hájek mean: Σwx / Σw, with its linearised variance."""

    value: float
    #: of the mean, not of the values; between clusters when there are some; 0.0 when all values are alike
    variance: float
    n: int
    #: equally weighted independent records that would tell as much, at most n
    n_effective: float
    clusters: int
    #: clusters of equal weight that would tell as much: Kish's number over cluster weights
    effective_clusters: float

    def interval(self, *, confidence: float = 0.95) -> tuple[float, float] | None:
        """Student's t interval on clusters - 1 degrees of freedom; None below 5 clusters."""
        if self.clusters < MIN_CLUSTERS:
            return None
        half = t_ppf(0.5 + confidence / 2, self.clusters - 1) * self.variance**0.5
        return self.value - half, self.value + half

    @property
    def no_interval(self) -> str | None:
        """Why there is no interval; None when there is one."""
        return too_few_for_interval(self.clusters, clusters=self.clusters < self.n)


def hajek_mean(
    values: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    clusters: Clusters | None = None,
) -> Mean | None:
    """Hájek mean of `values`, shape (n,), any finite numbers; None when there are none.

    variance = C/(C-1) · Σ_c (Σ_{i in c} w_i (x_i - mean))² / (Σw)² over the C clusters. `n_effective` is n divided by
    the design effect; when all values are alike, Kish's number over cluster weights.

    Raises:
        ValueError: shapes differ, a value is not finite, or a weight is not positive.
    """
    x = floats(values, "values")
    if x.size == 0:
        return None
    return _hajek(x, sample_weight, clusters)


def hajek_ratio(
    values: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    clusters: Clusters | None = None,
) -> Estimate | None:
    """Hájek mean of `values` in [0, 1] with Wilson's 95 % interval on the effective number; None when there are none.

    With equal weights, no clusters and values 0 or 1, `n_effective` is exactly n, so this is Wilson of the counts.

    Raises:
        ValueError: shapes differ, a value is out of [0, 1], or a weight is not positive.
    """
    x = units(values, "values")
    if x.size == 0:
        return None
    mean = _hajek(x, sample_weight, clusters)
    ratio, n_effective = min(1.0, max(0.0, mean.value)), mean.n_effective
    if mean.variance > 0.0 and not np.isin(x, (0.0, 1.0)).all():
        # Values between 0 and 1 spread less than yes and no: they may tell more than n yes/no records would.
        trusted = mean.effective_clusters * max(1.0, mean.effective_clusters / _TRUSTED)
        n_effective = min(trusted, ratio * (1 - ratio) / mean.variance)
    lower, upper = wilson(ratio, n_effective)
    return Estimate(value=ratio, lower=lower, upper=upper, n=x.size, n_effective=n_effective)


def _hajek(
    x: FloatArray,
    sample_weight: npt.ArrayLike | None,
    clusters: Clusters | None,
) -> Mean:
    n = x.size
    w = weights_or_ones(sample_weight, n)
    total = float(w.sum())
    mean = float((w * x).sum() / total)
    spread = float((w * (x - mean) ** 2).sum() / total)
    weight_of_group, pull_of_group, n_groups = w, w * (x - mean), n
    if clusters is not None:
        group, n_groups = groups_or_rows(clusters, n)
        weight_of_group, pull_of_group = (sums_by_group(terms, group, n_groups) for terms in (w, pull_of_group))
    kish = total**2 / float((weight_of_group**2).sum())
    squares = float((pull_of_group**2).sum()) / total**2
    scale = float(np.abs(x).max()) or 1.0
    if n_groups < 2 or spread <= 1e-24 * scale**2 or squares <= 0.0:
        variance, n_effective = 0.0, kish
    else:
        variance = squares * n_groups / (n_groups - 1)
        trusted = kish * max(1.0, kish / _TRUSTED)
        # With equal weights and no clusters this is n, whatever the values.
        n_effective = min(float(n), trusted, spread / squares * (n_groups - 1) / n_groups * n / (n - 1))
    return Mean(
        value=mean,
        variance=variance,
        n=n,
        n_effective=n_effective,
        clusters=n_groups,
        effective_clusters=kish,
    )
