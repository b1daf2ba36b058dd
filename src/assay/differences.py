"""Differences between two groups of weighted records: of means in [0, 1], and of amounts.

A record that was sampled with probability p stands for w = 1/p interactions. Means are Hájek means, their variance is
the linearised one of sampling with independent inclusion (Särndal, Swensson and Wretman 1992, Model Assisted Survey
Sampling, 5.7 and 5.10), and a record that is in both groups carries its covariance. The interval of a difference of
means in [0, 1] is put together from the two Wilson intervals of the gauges (`assay.windows`) by the method of variance
recovery (Newcombe 1998, Statistics in Medicine 17, method 10; with correlation Zou 2007, Psychological Methods 12).
Arrays in, numbers out; no I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from assay.windows import Sums, pass_ratio, score_mean, wilson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from assay.windows import Estimate

#: Two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054
#: Beyond this many standard errors a p-value is 0 to every reader.
_MOST_Z = 38.0
_STEPS = 60


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What was seen of one group: three arrays of one length, each record once."""

    #: number of the record; the same record has the same number in every group
    records: NDArray[np.int64]
    #: 1 / sampling probability, at least 1
    weights: NDArray[np.float64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, records: Sequence[int], weights: Sequence[float], values: Sequence[float]) -> Sample:
        """The sample of these columns."""
        return cls(
            records=np.asarray(records, dtype=np.int64),
            weights=np.asarray(weights, dtype=np.float64),
            values=np.asarray(values, dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Group less baseline, in the unit of the values, with its 95 % interval."""

    value: float
    lower: float
    upper: float
    #: two-sided, of no difference; below 0.05 exactly where the interval leaves out 0
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Hájek mean of an amount, with its 95 % interval; None where a single record tells no spread."""

    value: float
    lower: float | None
    upper: float | None
    n: int


def pass_rate(sample: Sample) -> Estimate | None:
    """The gauge of values that are 0 or 1; None where there are none."""
    return pass_ratio(_sums(sample))


def mean_score(sample: Sample) -> Estimate | None:
    """The gauge of values in [0, 1]; None where there are none."""
    return score_mean(_sums(sample))


def mean_amount(sample: Sample) -> Amount | None:
    """Mean of any values; None where there are none."""
    if not len(sample):
        return None
    mean, influence = _hajek(sample)
    error = _error(influence)
    if error is None:
        return Amount(value=mean, lower=None, upper=None, n=1)
    return Amount(value=mean, lower=mean - _Z * error, upper=mean + _Z * error, n=len(sample))


def share_difference(group: Sample, baseline: Sample, *, passes: bool) -> Difference | None:
    """Difference of the means of values in [0, 1]; None where one of the two is empty.

    Args:
        group: one sample.
        baseline: the other, which is taken off.
        passes: whether the values are 0 or 1; the means are then those of `pass_rate`, else of `mean_score`.
    """
    estimate = pass_rate if passes else mean_score
    a, b = estimate(group), estimate(baseline)
    if a is None or b is None:
        return None
    correlation = _correlation(group, baseline)

    def interval(z: float) -> tuple[float, float]:
        (lower_a, upper_a), (lower_b, upper_b) = (wilson(e.value, e.n_effective, z) for e in (a, b))
        below = _joined(a.value - lower_a, upper_b - b.value, correlation)
        above = _joined(upper_a - a.value, b.value - lower_b, correlation)
        return a.value - b.value - below, a.value - b.value + above

    value = a.value - b.value
    lower, upper = interval(_Z)
    return Difference(value=value, lower=max(-1.0, lower), upper=min(1.0, upper), p_value=_p_value(value, interval))


def amount_difference(group: Sample, baseline: Sample) -> Difference | None:
    """Difference of the means of any values; None where one of the two has fewer than two records."""
    if len(group) < 2 or len(baseline) < 2:
        return None
    (mean_a, influence_a), (mean_b, influence_b) = _hajek(group), _hajek(baseline)
    error_a, error_b = _error(influence_a) or 0.0, _error(influence_b) or 0.0
    error = _joined(error_a, error_b, _correlation(group, baseline))
    value = mean_a - mean_b
    return Difference(
        value=value,
        lower=value - _Z * error,
        upper=value + _Z * error,
        p_value=_tails(abs(value) / error) if error > 0 else float(value == 0),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): those below 0.05 hold together, with an error in at most one family of twenty."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _sums(sample: Sample) -> Sums:
    w, y = sample.weights, sample.values
    passed = y >= 1.0
    return Sums(
        n=len(sample),
        sum_w=float(w.sum()),
        sum_w2=float((w * w).sum()),
        sum_wy=float((w * y).sum()),
        sum_w2y=float((w * w * y).sum()),
        sum_w2y2=float((w * w * y * y).sum()),
        passes=int(passed.sum()),
        sum_wp=float(w[passed].sum()),
        sum_w2p=float((w * w)[passed].sum()),
    )


def _hajek(sample: Sample) -> tuple[float, NDArray[np.float64]]:
    """The mean, and what each record moves it by: the sum of their squares estimates its variance."""
    total = float(sample.weights.sum())
    mean = float((sample.weights * sample.values).sum() / total)
    return mean, sample.weights * (sample.values - mean) / total


def _error(influence: NDArray[np.float64]) -> float | None:
    n = len(influence)
    return None if n < 2 else math.sqrt(float((influence * influence).sum()) * n / (n - 1))


def _correlation(a: Sample, b: Sample) -> float:
    """Of the two means, by the records that are in both; 0 where none is."""
    _, in_a, in_b = np.intersect1d(a.records, b.records, assume_unique=True, return_indices=True)
    if not len(in_a):
        return 0.0
    of_a, of_b = _hajek(a)[1], _hajek(b)[1]
    scale = math.sqrt(float((of_a * of_a).sum() * (of_b * of_b).sum()))
    return max(-1.0, min(1.0, float((of_a[in_a] * of_b[in_b]).sum()) / scale)) if scale > 0 else 0.0


def _joined(a: float, b: float, correlation: float) -> float:
    return math.sqrt(max(0.0, a * a + b * b - 2.0 * correlation * a * b))


def _p_value(value: float, interval: Any) -> float:
    """1 - the level of the widest interval that leaves out 0."""
    if value == 0.0:
        return 1.0
    low, high = 0.0, _MOST_Z
    for _ in range(_STEPS):
        z = (low + high) / 2.0
        lower, upper = interval(z)
        low, high = (z, high) if lower > 0.0 or upper < 0.0 else (low, z)
    return _tails(low)


def _tails(z: float) -> float:
    return math.erfc(z / math.sqrt(2.0))
