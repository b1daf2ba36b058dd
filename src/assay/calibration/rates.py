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
from assay.calibration.distributions import t_cdf
from assay.calibration.means import Mean, hajek_mean, hajek_ratio
from assay.calibration.proportions import mcnemar_exact, paired_difference_interval
from assay.calibration.statistic import Statistic
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
    #: judge less people, in pass ratio
    bias: Statistic
    #: p-value that the bias is none: McNemar's exact test, or a t-test when labels are weighted or in clusters
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
    labels = _Labels(y, judged, w, None if clusters is None else groups_or_rows(clusters, len(y))[0])
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
    bias = labels.mean(judged - y)
    exact = not weighted and clusters is None and bool(np.isin(y, (0.0, 1.0)).all())
    return ErrorRates(
        counts=counts,
        n=len(y),
        selection=selection,
        weighted=weighted,
        human_pass=labels.all_of(y),
        judge_pass=labels.all_of(judged.astype(np.float64)),
        sensitivity=sensitivity,
        specificity=specificity,
        youden=_youden(sensitivity, specificity, counts.n),
        bias=_bias(bias, labels),
        bias_p=mcnemar_exact(counts.false_fail, counts.false_pass) if exact else _p_zero(bias),
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


def _youden(sensitivity: Estimate | None, specificity: Estimate | None, n: int) -> Statistic:
    """Youden's J with the square-and-add interval of the two Wilson intervals."""
    if sensitivity is None or specificity is None:
        missing = "pass" if sensitivity is None else "fail"
        return Statistic.undefined(f"people {missing} none of the labelled records", n=n)
    value = sensitivity.value + specificity.value - 1
    below = math.hypot(sensitivity.value - sensitivity.lower, specificity.value - specificity.lower)
    above = math.hypot(sensitivity.upper - sensitivity.value, specificity.upper - specificity.value)
    return Statistic.of(value, (max(-1.0, value - below), min(1.0, value + above)), n=n, method="wilson")


def _bias(mean: Mean, labels: _Labels) -> Statistic:
    """Judge less people; Bonett and Price's interval on the effective number has a width even without disagreement."""
    more = labels.mean(np.maximum(labels.judged - labels.y, 0.0)).value
    less = labels.mean(np.maximum(labels.y - labels.judged, 0.0)).value
    interval = paired_difference_interval(more * mean.n_effective, less * mean.n_effective, mean.n_effective)
    return Statistic.of(mean.value, interval, n=mean.n, method="bonett-price")


def _p_zero(mean: Mean) -> float:
    """Two-sided t-test that the mean is zero."""
    if mean.clusters < 2 or mean.value == 0.0:
        return 1.0
    if mean.variance <= 0.0:
        return 0.0
    return 2 * t_cdf(-abs(mean.value) / math.sqrt(mean.variance), mean.clusters - 1)


def _some(found: _T | None) -> _T:
    if found is None:
        raise ValueError("y_true: there are no labels")
    return found


def _estimate(data: Mapping[str, Any] | None) -> Estimate | None:
    return None if data is None else Estimate(**data)
