"""Transport audit: does a correction still hold, by fresh labels that it has not seen?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from assay.calibration._columns import FloatArray, flags, floats, units
from assay.calibration.distributions import t_ppf
from assay.calibration.means import Mean, hajek_mean
from assay.calibration.rates import ALL, ErrorRates
from assay.calibration.statistic import Statistic

if TYPE_CHECKING:
    import numpy.typing as npt

    from assay.calibration._columns import Clusters
    from assay.calibration.decision import Method

#: passed: off by less than the margin, for sure. failed: off by more, for sure. inconclusive: neither can be said.
#: not_graded: no margin was declared. not_checked: there are no fresh labels.
AuditState = Literal["passed", "failed", "inconclusive", "not_graded", "not_checked"]

#: To pass an audit takes as many independent sessions or records; to fail one does not.
MIN_CLUSTERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The verdict of an audit. `shift` is labels less predictions: above 0, people pass more than was predicted."""

    state: AuditState
    shift: Statistic
    margin: float | None
    effective_clusters: float
    reason: str


def predict_labels(y_pred: npt.ArrayLike, rates: ErrorRates, method: Method) -> FloatArray:
    """What a correction makes of each record, shape (n,); their mean is the corrected level.

    Rogan-Gladen's and the offset's may lie outside [0, 1] for a single record.

    Args:
        y_pred: the judge's pass (1) or fail (0).
        rates: of the calibration.
        method: which correction.

    Raises:
        ValueError: the rates do not carry this method.
    """
    judged = flags(y_pred, "y_pred").astype(np.float64)
    if method == "none":
        return judged
    if method == "offset" and rates.bias.value is not None:
        return judged - rates.bias.value
    if method == "rogan_gladen" and rates.sensitivity and rates.specificity and (rates.youden.value or 0) > 0:
        specificity, slope = rates.specificity.value, rates.sensitivity.value + rates.specificity.value - 1
        return (judged + specificity - 1) / slope
    cell = rates.cells[ALL]
    if method == "post_stratified" and cell.given_fail is not None and cell.given_pass is not None:
        return np.where(judged == 1.0, cell.given_pass.value, cell.given_fail.value)
    raise ValueError(f"the labels do not allow the correction {method}")


def audit(
    y_true: npt.ArrayLike,
    predicted: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
    clusters: Clusters | None = None,
    margin: float | None = 0.03,
    family: int = 1,
    confidence: float = 0.95,
) -> Audit:
    """Mean of labels less predictions on fresh labels, with a t interval over clusters, against a declared margin.

    Args:
        y_true: fresh human labels in [0, 1], shape (n,), not used for the calibration.
        predicted: what the correction makes of the same records, see `predict_labels`.
        sample_weight: 1 / probability of selection.
        clusters: records that came together, such as a session's.
        margin: how far off a correction may be; declared beforehand. None: only measured.
        family: how many audits are made together (apps, dimensions): Bonferroni.
        confidence: of the interval, before that.

    Raises:
        ValueError: shapes differ, a value is out of range, or a weight is not positive.
    """
    y = units(y_true, "y_true")
    guess = floats(predicted, "predicted", n=len(y))
    mean = hajek_mean(y - guess, sample_weight=sample_weight, clusters=clusters)
    if mean is None:
        missing = Statistic.undefined("there are no fresh labels")
        return Audit(
            state="not_checked", shift=missing, margin=margin, effective_clusters=0.0, reason="no fresh labels"
        )
    shift = _shift(mean, y, guess, 1 - (1 - confidence) / family)
    state, reason = _graded(shift, mean.effective_clusters, margin)
    return Audit(state=state, shift=shift, margin=margin, effective_clusters=mean.effective_clusters, reason=reason)


def _shift(mean: Mean, y: FloatArray, guess: FloatArray, confidence: float) -> Statistic:
    if mean.no_interval is not None:
        return Statistic.of(mean.value, n=mean.n, no_interval=mean.no_interval)
    variance = mean.variance
    if np.isin(y, (0.0, 1.0)).all():
        # Ten passes in a row have no spread, yet prove little: a pass of probability g spreads by g(1 - g).
        expected = (mean.n * np.clip(guess, 0.0, 1.0) + 1) / (mean.n + 2)
        variance = max(variance, float((expected * (1 - expected)).mean()) / mean.effective_clusters)
    half = t_ppf(0.5 + confidence / 2, mean.clusters - 1) * math.sqrt(variance)
    return Statistic.of(mean.value, (mean.value - half, mean.value + half), n=mean.n, method="t")


def _graded(shift: Statistic, effective_clusters: float, margin: float | None) -> tuple[AuditState, str]:
    if shift.value is None or shift.lower is None or shift.upper is None:
        return "inconclusive", shift.reason or "there is no interval"
    found = f"{100 * shift.value:+.1f} points ({100 * shift.lower:+.1f} to {100 * shift.upper:+.1f})"
    if margin is None:
        return "not_graded", f"labels less predictions: {found}; no margin was declared"
    allowed = f"±{100 * margin:g} points"
    if shift.lower > margin or shift.upper < -margin:
        return "failed", f"labels less predictions: {found}, outside {allowed}"
    if -margin <= shift.lower and shift.upper <= margin:
        if effective_clusters >= MIN_CLUSTERS:
            return "passed", f"labels less predictions: {found}, inside {allowed}"
        return (
            "inconclusive",
            f"inside {allowed}, but on {effective_clusters:.0f} independent records of {MIN_CLUSTERS}",
        )
    return "inconclusive", f"labels less predictions: {found}, neither inside nor outside {allowed}"
