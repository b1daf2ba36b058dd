"""Bootstrap intervals over records, or over clusters of records.

A statistic that is a function of sums over records needs no resampled records, only resampled sums: a matrix product of
how often each record was drawn and what it adds. Records that add the same are drawn together, as one number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from assay.calibration._columns import FloatArray, groups_or_rows, sums_by_group
from assay.calibration.statistic import Statistic, too_few_for_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from assay.calibration._columns import Clusters

#: An interval is given only if at most this share of the resamples leaves the statistic undefined.
MAX_UNDEFINED = 0.1

_OFTEN_UNDEFINED = "too many resamples leave it undefined: too few labels of one kind, or in too few clusters"

#: Draws are kept for the next statistic up to so many numbers (a byte each), and drawn again beyond.
_KEPT = 32_000_000
#: Numbers drawn at once.
_BLOCK = 1_000_000
#: Numbers worked on at once: ranking is bound by memory, and these fit a processor's cache.
_PIECE = 32_000
#: Up to so many distinct records are drawn as one multinomial variable.
_DISTINCT = 100

_Counts = npt.NDArray[np.uint8]


class Bootstrap:
    """Resamples of n records, the same ones for every statistic that is asked for.

    Below 5 records, or clusters, resamples are too much alike: statistics have their value and no interval.

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
        self._kept: list[_Counts] | None = None
        #: why there are no intervals; None when there are
        self.no_interval = too_few_for_interval(self._n_groups, clusters=self._is_clustered)

    @property
    def n_independent(self) -> int:
        """Records, or clusters of records, that are drawn."""
        return self._n_groups

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
        if self.no_interval is not None:
            return Statistic.of(value, n=self.n, no_interval=self.no_interval)
        return self._with_interval(value, statistic(self.sums(terms)))

    def ci_of_counts(self, statistic: Callable[[FloatArray], FloatArray], *, unless: str = "") -> Statistic:
        """As `ci`, for a statistic of how often each record counts: shape (..., n) to shape (...). For ranks."""
        if not self.n:
            return Statistic.undefined("there are no records")
        value = float(statistic(np.ones((1, self.n)))[0])
        if not np.isfinite(value):
            return Statistic.of(value, n=self.n, unless=unless)
        if self.no_interval is not None:
            return Statistic.of(value, n=self.n, no_interval=self.no_interval)
        pieces = [statistic(drawn[:, self._group] if self._is_clustered else drawn) for drawn in self._draws()]
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
        """How often each record or cluster is drawn, in pieces of shape (some resamples, records or clusters)."""
        if self._kept is None and self._n_resamples * self._n_groups <= _KEPT:
            self._kept = list(self._blocks())
        rows = max(1, _PIECE // self._n_groups)
        for block in self._kept if self._kept is not None else self._blocks():
            for start in range(0, len(block), rows):
                yield block[start : start + rows].astype(np.float64)

    def _blocks(self) -> Iterator[_Counts]:
        rng, size = np.random.default_rng(self._seed), self._n_groups
        most = max(1, _BLOCK // size)
        for start in range(0, self._n_resamples, most):
            rows = min(most, self._n_resamples - start)
            index = rng.integers(size, size=(rows, size))
            index += np.arange(rows)[:, None] * size
            # Of one record, a resample holds a few; a byte is plenty.
            yield np.bincount(index.ravel(), minlength=rows * size).reshape(rows, size).astype(np.uint8)

    def _with_interval(self, value: float, replicates: FloatArray) -> Statistic:
        interval = percentile_interval(replicates, confidence=self._confidence)
        return Statistic.of(
            value, interval, n=self.n, method="bootstrap", no_interval=None if interval else _OFTEN_UNDEFINED
        )


def percentile_interval(replicates: FloatArray, *, confidence: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of resampled statistics; None when too many of them are undefined (NaN)."""
    defined = replicates[np.isfinite(replicates)]
    if defined.size == 0 or defined.size < (1 - MAX_UNDEFINED) * replicates.size:
        return None
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(defined, [tail, 1 - tail])
    return float(lower), float(upper)
