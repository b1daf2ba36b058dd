"""Bootstrap intervals over records, or over clusters of records.

A statistic that is a function of sums over records needs no resampled records, only resampled sums: a matrix product of
how often each record was drawn and what it adds. Records that add the same are drawn together, as one number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from assay.calibration._columns import FloatArray, groups_or_rows, sums_by_group
from assay.calibration.statistic import Statistic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from assay.calibration._columns import Clusters

#: An interval is given only if at most this share of the resamples leaves the statistic undefined.
MAX_UNDEFINED = 0.1

#: Numbers held at once while resampling: 32 MB.
_BLOCK = 4_000_000
#: Numbers that a processor's cache takes: ranking is bound by memory.
_CACHED = 32_000
#: Up to so many distinct records are drawn as one multinomial variable.
_DISTINCT = 100


class Bootstrap:
    """Resamples of n records, the same ones for every statistic that is asked for.

    Args:
        n: number of records.
        clusters: a name for each record of what it came with; clusters are drawn whole.
        n_resamples: how many resamples.
        seed: the same seed gives the same resamples.
        confidence: of the percentile intervals.
    """

    def __init__(
        self,
        n: int,
        *,
        clusters: Clusters | None = None,
        n_resamples: int = 2000,
        seed: int = 0,
        confidence: float = 0.95,
    ) -> None:
        self.n = n
        self._is_clustered = clusters is not None
        self._group, self._n_groups = groups_or_rows(clusters, n)
        self._n_resamples, self._seed, self._confidence = n_resamples, seed, confidence
        self._kept: list[FloatArray] | None = None

    def ci(self, terms: FloatArray, statistic: Callable[[FloatArray], FloatArray], *, unless: str = "") -> Statistic:
        """A statistic of sums over records, with its percentile interval.

        `terms` has the shape (n, m); `statistic` takes sums of shape (..., m) to values of shape (...), NaN where it is
        undefined; `unless` is the reason to give when it is undefined for the records themselves.
        """
        if not self.n:
            return Statistic.undefined("there are no records")
        value = float(statistic(terms.sum(axis=0)))
        if not np.isfinite(value):
            return Statistic.of(value, n=self.n, unless=unless)
        return self._with_interval(value, statistic(self.sums(terms)))

    def ci_of_counts(self, statistic: Callable[[FloatArray], FloatArray], *, unless: str = "") -> Statistic:
        """As `ci`, for a statistic of how often each record counts: shape (..., n) to shape (...). For ranks."""
        if not self.n:
            return Statistic.undefined("there are no records")
        value = float(statistic(np.ones((1, self.n)))[0])
        if not np.isfinite(value):
            return Statistic.of(value, n=self.n, unless=unless)
        rows = max(1, _CACHED // self.n)
        pieces = [
            statistic(piece[:, self._group] if self._is_clustered else piece)
            for drawn in self._draws()
            for piece in (drawn[start : start + rows] for start in range(0, len(drawn), rows))
        ]
        return self._with_interval(value, np.concatenate(pieces))

    def sums(self, terms: FloatArray) -> FloatArray:
        """Sums of the rows of `terms`, shape (n, m), over each resample: shape (n_resamples, m)."""
        by_group = sums_by_group(terms, self._group, self._n_groups) if self._is_clustered else terms
        rows, count = np.unique(by_group, axis=0, return_counts=True)
        if len(rows) <= _DISTINCT:
            rng = np.random.default_rng(self._seed)
            drawn = rng.multinomial(self._n_groups, count / self._n_groups, size=self._n_resamples)
            sums: FloatArray = drawn @ rows
            return sums
        return np.concatenate([drawn @ by_group for drawn in self._draws()])

    def _draws(self) -> Iterator[FloatArray]:
        """How often each record or cluster is drawn, in blocks of shape (some resamples, records or clusters)."""
        if self._kept is not None:
            yield from self._kept
            return
        rng, size = np.random.default_rng(self._seed), self._n_groups
        most = max(1, _BLOCK // size)
        if self._n_resamples <= most:
            self._kept = [_drawn(rng, self._n_resamples, size)]
            yield from self._kept
            return
        for start in range(0, self._n_resamples, most):
            yield _drawn(rng, min(most, self._n_resamples - start), size)

    def _with_interval(self, value: float, replicates: FloatArray) -> Statistic:
        interval = percentile_interval(replicates, confidence=self._confidence)
        return Statistic.of(value, interval, n=self.n, method="bootstrap")


def percentile_interval(replicates: FloatArray, *, confidence: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of resampled statistics; None when too many of them are undefined (NaN)."""
    defined = replicates[np.isfinite(replicates)]
    if defined.size == 0 or defined.size < (1 - MAX_UNDEFINED) * replicates.size:
        return None
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(defined, [tail, 1 - tail])
    return float(lower), float(upper)


def _drawn(rng: np.random.Generator, resamples: int, size: int) -> FloatArray:
    index = rng.integers(size, size=(resamples, size))
    index += np.arange(resamples)[:, None] * size
    return np.bincount(index.ravel(), minlength=resamples * size).reshape(resamples, size).astype(np.float64)
