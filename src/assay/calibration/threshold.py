"""Where a score becomes a pass: a threshold for what it is to be used for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from assay.calibration._columns import ROUNDING, FloatArray, IntArray, flags, groups_or_rows, units, weights_or_ones
from assay.calibration.agreement import kappa_of_table
from assay.calibration.means import hajek_ratio
from assay.calibration.proportions import wilson_interval
from assay.calibration.statistic import Statistic

if TYPE_CHECKING:
    import numpy.typing as npt

    from assay.calibration._columns import Clusters

#: gauge: the pass ratio reads right at the mix of the labels. triage: errors cost least. block: what is flagged, or
#: missed, is bounded by confidence.
Purpose = Literal["gauge", "triage", "block"]

#: What a blocking threshold guarantees: people agree with so many of its flags, or it flags so many of the bad answers.
Guarantee = Literal["precision", "recall"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A record passes when its score is at or above `value`; None when no threshold does what was asked."""

    purpose: Purpose
    value: float | None
    #: judge less people, in pass ratio, at this threshold and the mix of the labels
    bias: float | None
    fail_recall: Statistic
    fail_precision: Statistic
    kappa: float | None
    reason: str

    @property
    def decimal(self) -> str | None:
        """The threshold as it is to be written down: few digits, and exactly the number that was chosen."""
        return None if self.value is None else repr(self.value)


def choose_threshold(
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
    *,
    purpose: Purpose = "gauge",
    sample_weight: npt.ArrayLike | None = None,
    clusters: Clusters | None = None,
    cost: tuple[float, float] = (1.0, 1.0),
    target: float = 0.9,
    guarantee: Guarantee = "precision",
    confidence: float = 0.95,
) -> Threshold:
    """The threshold that serves a purpose, out of those between two scores of the labels, or beyond them all.

    gauge: flags as large a share as people fail, so that the two pass ratios meet. It takes the two shares only, so it
    is the steadiest on few labels.

    triage: least total cost; the same as to flag where P(fail | score) > C_FP / (C_FP + C_FN) on an isotonic map.

    block: fixed-sequence testing, one-sided at `confidence`. For `precision` from few flags to many, as long as the
    lower Wilson bound of fail precision meets `target`, starting where a spotless record could meet it; the last
    threshold that meets it flags most. For `recall` from all flagged to fewer, the last that meets it flags least. The
    order is fixed before a label is looked at, so that trying many thresholds does not cost the guarantee.

    Args:
        y_true: human pass (1) or fail (0), shape (n,).
        y_score: the judge's scores, [0, 1].
        purpose: see above.
        sample_weight, clusters: as everywhere; they shrink the numbers that the bounds are made of.
        cost: of flagging what people pass, and of missing what they fail (triage).
        target, guarantee, confidence: of the bound (block).

    Raises:
        ValueError: shapes differ, a value is out of range, or a cost is not positive.
    """
    failed = ~flags(y_true, "y_true")
    s = units(y_score, "y_score", n=len(failed))
    w = weights_or_ones(sample_weight, len(failed))
    if min(cost) <= 0:
        raise ValueError(f"cost: {cost} must both be above 0")
    if not failed.any() or failed.all():
        return _nothing(purpose, "all labels are of one class", len(failed))
    group = None if clusters is None else groups_or_rows(clusters, len(failed))[0]
    cuts = _cuts(s)
    if purpose == "block":
        at = _blocking(failed, s, w, group, cuts, target, guarantee, confidence)
        if at is None:
            return _nothing(purpose, f"no threshold has a fail {guarantee} of {target:.0%} for sure", len(failed))
        reason = f"fail {guarantee} is at least {target:.0%} with {confidence:.0%} confidence"
    else:
        # The share, or the weight, of what each cut flags.
        order = np.argsort(s, kind="stable")
        below = np.searchsorted(s[order], cuts, side="left")
        fail_weight = np.concatenate([[0.0], np.cumsum((w * failed)[order])])[below]
        weight = np.concatenate([[0.0], np.cumsum(w[order])])[below]
        if purpose == "gauge":
            distance = np.abs(weight - float((w * failed).sum()))
            reason = "it flags as large a share as people fail"
        else:
            distance = cost[0] * (weight - fail_weight) + cost[1] * (float((w * failed).sum()) - fail_weight)
            reason = f"mistakes cost least at {cost[0]:g} for a false flag and {cost[1]:g} for a miss"
        at = float(cuts[int(np.argmin(np.round(distance, 9)))])
    return _measured(purpose, at, reason, failed, s, w, group)


def _cuts(s: FloatArray) -> FloatArray:
    """Thresholds that differ in what they flag, ascending: from nothing to everything, where that is possible."""
    at = np.unique(s)
    between = [_short(low, high) for low, high in zip(at[:-1].tolist(), at[1:].tolist(), strict=True)]
    # A score of 1 always passes: above it there is no threshold.
    beyond = [_short(float(at[-1]), 1.0)] if at[-1] < 1.0 else []
    return np.array([0.0, *between, *beyond])


def _short(low: float, high: float) -> float:
    """The number with the fewest digits in (low, high], as near the middle as it goes."""
    middle = (low + high) / 2
    for digits in range(1, 17):
        number = round(middle, digits)
        if low + ROUNDING < number <= high:
            return number
    return high


def _blocking(
    failed: npt.NDArray[np.bool_],
    s: FloatArray,
    w: FloatArray,
    group: IntArray | None,
    cuts: FloatArray,
    target: float,
    guarantee: Guarantee,
    confidence: float,
) -> float | None:
    best = None
    for cut in cuts if guarantee == "precision" else cuts[::-1]:
        flagged = s < cut - ROUNDING
        hits, among = (failed, flagged) if guarantee == "precision" else (flagged, failed)
        if guarantee == "precision":
            # Where even a spotless record of so many flags would not do, there is nothing to test.
            spotless = wilson_interval(int(flagged.sum()), int(flagged.sum()), confidence=2 * confidence - 1)[0]
            if not flagged.any() or spotless < target:
                continue
        share = _ratio(hits, among, w, group, confidence=2 * confidence - 1)
        if share.lower is None or share.lower < target:
            break
        best = float(cut)
    return best


def _measured(
    purpose: Purpose,
    at: float,
    reason: str,
    failed: npt.NDArray[np.bool_],
    s: FloatArray,
    w: FloatArray,
    group: IntArray | None,
) -> Threshold:
    flagged = s < at - ROUNDING
    table = np.zeros((2, 2))
    np.add.at(table, (failed.astype(np.int64), flagged.astype(np.int64)), w)
    kappa = float(kappa_of_table(table))
    return Threshold(
        purpose=purpose,
        value=at,
        bias=float(((failed.astype(np.float64) - flagged) * w).sum() / w.sum()),
        fail_recall=_ratio(flagged, failed, w, group),
        fail_precision=_ratio(failed, flagged, w, group),
        kappa=kappa if np.isfinite(kappa) else None,
        reason=reason,
    )


def _ratio(
    hits: npt.NDArray[np.bool_],
    among: npt.NDArray[np.bool_],
    w: FloatArray,
    group: IntArray | None,
    *,
    confidence: float = 0.95,
) -> Statistic:
    chosen = None if group is None else group[among]
    found = hajek_ratio(hits[among], sample_weight=w[among], clusters=chosen)
    if found is None:
        return Statistic.undefined("it flags nothing")
    interval = wilson_interval(found.value * found.n_effective, found.n_effective, confidence=confidence)
    return Statistic.of(found.value, interval, n=found.n, method="wilson")


def _nothing(purpose: Purpose, reason: str, n: int) -> Threshold:
    undefined = Statistic.undefined(reason, n=n)
    return Threshold(
        purpose=purpose,
        value=None,
        bias=None,
        fail_recall=undefined,
        fail_precision=undefined,
        kappa=None,
        reason=reason,
    )
