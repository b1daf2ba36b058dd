"""How often the judge is right, as labels tell it: all that correcting a production window needs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from assay.calibration._columns import (
    ROUNDING,
    BoolArray,
    FloatArray,
    IntArray,
    are_equal,
    flags,
    groups_or_rows,
    units,
    weights_or_ones,
)
from assay.calibration.distributions import t_cdf, t_ppf
from assay.calibration.means import Mean, hajek_mean, hajek_ratio
from assay.calibration.proportions import mcnemar_exact, paired_difference_interval
from assay.calibration.statistic import MIN_CLUSTERS, Statistic
from assay.windows import Estimate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from assay.calibration._columns import Clusters

#: How the labelled records were chosen: by known probabilities out of production, or by hand (a golden set).
Selection = Literal["probability", "curated"]

_T = TypeVar("_T")

#: A post-stratified correction needs so many labels of each verdict of the judge, in each stratum.
MIN_CELL = 5

#: Name of the stratum of all labels together.
ALL = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Labels by human and judge, unweighted. Labels that are as much pass as fail are in none of them."""

    both_pass: int
    #: people pass it, the judge fails it
    false_fail: int
    #: people fail it, the judge passes it
    false_pass: int
    both_fail: int

    @property
    def passes(self) -> int:
        """Records that people pass."""
        return self.both_pass + self.false_fail

    @property
    def fails(self) -> int:
        """Records that people fail."""
        return self.false_pass + self.both_fail

    @property
    def n(self) -> int:
        """All of them."""
        return self.passes + self.fails


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Share that people pass, among what the judge fails and among what it passes; None where nothing is labelled."""

    given_fail: Estimate | None
    given_pass: Estimate | None

    @property
    def is_thin(self) -> bool:
        """Whether it has fewer labels of one of the verdicts than a correction can stand on."""
        return any(part is None or part.n < MIN_CELL for part in (self.given_fail, self.given_pass))


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRates:
    """A judge's error rates by labels, weighted by 1 / probability of selection where it is known."""

    counts: Counts
    #: all labels, those that are as much pass as fail included
    n: int
    selection: Selection
    #: whether weights differ, so that the counts alone are not representative
    weighted: bool
    #: share that people pass, and share that the judge passes
    human_pass: Estimate
    judge_pass: Estimate
    #: P(judge passes | people pass) and P(judge fails | people fail); None without labels of that class
    sensitivity: Estimate | None
    specificity: Estimate | None
    #: sensitivity + specificity - 1: the slope of the judge's pass ratio on the true one
    youden: Statistic
    #: judge less people, in pass ratio; no interval below 5 clusters
    bias: Statistic
    #: p-value that the bias is none: McNemar's exact test; when labels are weighted, soft or in clusters, the t-test of
    #: the interval of `bias`, and 1 without an interval
    bias_p: float
    #: P(judge and people disagree)
    disagreement: float
    #: by stratum; all labels together under ""
    cells: Mapping[str, Cell]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` takes it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ErrorRates:
        """The rates that `to_dict` gave.

        Raises:
            TypeError, KeyError: it is not such a form.
        """
        estimates = {name: _estimate(data[name]) for name in ("human_pass", "judge_pass", "sensitivity", "specificity")}
        return cls(
            **{
                **data,
                **estimates,
                "counts": Counts(**data["counts"]),
                "youden": Statistic(**data["youden"]),
                "bias": Statistic(**data["bias"]),
                "cells": {
                    stratum: Cell(given_fail=_estimate(cell["given_fail"]), given_pass=_estimate(cell["given_pass"]))
                    for stratum, cell in data["cells"].items()
                },
            }
        )


def error_rates(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    strata: Sequence[str] | None = None,
    clusters: Clusters | None = None,
    selection: Selection = "probability",
) -> ErrorRates:
    """Error rates of a judge from n >= 1 labelled records.

    Labels chosen by the judge's verdict or score make plain shares nonsense; with their weights every share here is a
    Hájek mean, which for labels chosen by verdict is the correction of Begg and Greenes.

    Args:
        y_true: human label, 1 pass to 0 fail, shape (n,). Soft labels count as pass above 0.5 and as fail below it for
            sensitivity and specificity, which leave out 0.5 itself, and as they are for everything else.
        y_pred: the judge's pass (1) or fail (0).
        sample_weight: 1 / (probability that the record was judged x probability that it was labelled).
        strata: a name for each record of what it may shift by, such as its route.
        clusters: records that came together, such as a session's.
        selection: `curated` when people picked the records by hand.

    Raises:
        ValueError: no records, shapes differ, a value out of range, or a weight that is not positive.
    """
    y = units(y_true, "y_true")
    judged = flags(y_pred, "y_pred", n=len(y))
    w = weights_or_ones(sample_weight, len(y))
    group, n_groups = groups_or_rows(clusters, len(y))
    labels = _Labels(y, judged, w, group if n_groups < len(y) else None)
    decided = np.abs(y - 0.5) > ROUNDING
    passed = y > 0.5
    sensitivity = labels.ratio(judged, decided & passed)
    specificity = labels.ratio(~judged, decided & ~passed)
    counts = Counts(
        both_pass=int((decided & passed & judged).sum()),
        false_fail=int((decided & passed & ~judged).sum()),
        false_pass=int((decided & ~passed & judged).sum()),
        both_fail=int((decided & ~passed & ~judged).sum()),
    )
    weighted = not are_equal(w)
    mean = labels.mean(judged - y)
    exact = not weighted and n_groups == len(y) and bool(np.isin(y, (0.0, 1.0)).all())
    bias, bias_p = _exact_bias(mean, counts) if exact else _t_bias(mean, labels.unlike_clusters(judged - y))
    return ErrorRates(
        counts=counts,
        n=len(y),
        selection=selection,
        weighted=weighted,
        human_pass=labels.all_of(y),
        judge_pass=labels.all_of(judged.astype(np.float64)),
        sensitivity=sensitivity,
        specificity=specificity,
        youden=_youden(sensitivity, specificity, counts.n, mean.no_interval if n_groups < len(y) else None),
        bias=bias,
        bias_p=bias_p,
        disagreement=labels.mean(np.abs(judged - y)).value,
        cells=labels.cells(strata),
    )


class _Labels:
    """The labelled records as columns, for means over subsets of them."""

    def __init__(self, y: FloatArray, judged: BoolArray, w: FloatArray, group: IntArray | None) -> None:
        self.y, self.judged, self.w, self._group = y, judged, w, group

    def ratio(self, values: FloatArray | BoolArray, where: BoolArray) -> Estimate | None:
        chosen = None if self._group is None else self._group[where]
        return hajek_ratio(values[where], sample_weight=self.w[where], clusters=chosen)

    def all_of(self, values: FloatArray) -> Estimate:
        return _some(hajek_ratio(values, sample_weight=self.w, clusters=self._group))

    def mean(self, values: FloatArray) -> Mean:
        return _some(hajek_mean(values, sample_weight=self.w, clusters=self._group))

    def unlike_clusters(self, values: FloatArray) -> int:
        """Clusters (records, when there are none) whose mean is not the most frequent one."""
        group = np.arange(len(values)) if self._group is None else self._group
        pull, weight = (np.bincount(group, weights=terms) for terms in (self.w * values, self.w))
        _, counts = np.unique(np.round(pull / weight, 9), return_counts=True)
        return int(counts.sum() - counts.max())

    def cells(self, strata: Sequence[str] | None) -> dict[str, Cell]:
        everywhere = np.ones(len(self.y), dtype=np.bool_)
        found = {ALL: self._cell(everywhere)}
        if strata is not None:
            if len(strata) != len(self.y):
                raise ValueError(f"strata: {len(strata)} values for {len(self.y)} records")
            names = np.asarray(strata, dtype=object)
            found |= {name: self._cell(names == name) for name in sorted(set(strata) - {ALL})}
        return found

    def _cell(self, inside: BoolArray) -> Cell:
        return Cell(
            given_fail=self.ratio(self.y, inside & ~self.judged), given_pass=self.ratio(self.y, inside & self.judged)
        )


def _youden(sensitivity: Estimate | None, specificity: Estimate | None, n: int, no_interval: str | None) -> Statistic:
    """Youden's J with the square-and-add interval of the two Wilson intervals."""
    if sensitivity is None or specificity is None:
        missing = "pass" if sensitivity is None else "fail"
        return Statistic.undefined(f"people {missing} none of the labelled records", n=n)
    value = sensitivity.value + specificity.value - 1
    if no_interval is not None:
        return Statistic.of(value, n=n, no_interval=no_interval)
    below = math.hypot(sensitivity.value - sensitivity.lower, specificity.value - specificity.lower)
    above = math.hypot(sensitivity.upper - sensitivity.value, specificity.upper - specificity.value)
    return Statistic.of(value, (max(-1.0, value - below), min(1.0, value + above)), n=n, method="wilson")


def _exact_bias(mean: Mean, counts: Counts) -> tuple[Statistic, float]:
    """Bias of independent yes/no labels, Bonett and Price's interval, and McNemar's exact p-value."""
    interval = paired_difference_interval(counts.false_pass, counts.false_fail, mean.n)
    bias = Statistic.of(mean.value, interval, n=mean.n, method="bonett-price")
    return bias, mcnemar_exact(counts.false_fail, counts.false_pass)


def _t_bias(mean: Mean, unlike: int) -> tuple[Statistic, float]:
    """Bias with its t interval over clusters and the p-value of that same t-test; no interval and 1 on too few.

    Clusters that are (nearly) all alike have hardly a spread, yet prove little. Where fewer than 5 are `unlike` the
    rest, the variance is at least that of two more clusters of the usual weight, one that the judge passes and people
    fail and one the other way round, as Bonett and Price add.
    """
    if mean.no_interval is not None:
        return Statistic.of(mean.value, n=mean.n, no_interval=mean.no_interval), 1.0
    df = mean.clusters - 1
    least = 2.0 / (mean.effective_clusters + 2.0) ** 2 if unlike < MIN_CLUSTERS else 0.0
    error = math.sqrt(max(mean.variance, least))
    half = t_ppf(0.975, df) * error
    interval = max(-1.0, mean.value - half), min(1.0, mean.value + half)
    return Statistic.of(mean.value, interval, n=mean.n, method="t"), 2 * t_cdf(-abs(mean.value) / error, df)


def _some(found: _T | None) -> _T:
    if found is None:
        raise ValueError("y_true: there are no labels")
    return found


def _estimate(data: Mapping[str, Any] | None) -> Estimate | None:
    return None if data is None else Estimate(**data)
