"""The decision rule: how a production window is corrected, and when it is better not to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from assay.calibration.correction import post_stratified, rogan_gladen
from assay.calibration.rates import ALL, Cell, ErrorRates
from assay.calibration.statistic import Statistic
from assay.windows import Estimate, Sums, pass_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

Method = Literal["post_stratified", "rogan_gladen", "offset", "none"]

#: ok: alert on it. too_wide: true, but too vague for a level. stale: an audit says that the correction holds no more.
#: no_calibration: nothing to correct with. refused: a number here would mislead.
State = Literal["ok", "too_wide", "stale", "no_calibration", "refused"]

#: A window below this many effective records gives counts only.
MIN_WINDOW = 30
#: Labels that a post-stratified level or an offset needs.
MIN_LABELS = 30
#: Labels of each class that Rogan-Gladen needs, and the lower bound of Youden's J.
MIN_CLASS = 10
MIN_YOUDEN = 0.30
#: Largest share of scores outside those that were calibrated.
MAX_OUTSIDE = 0.05

_ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """A window as the judge reads it and as people would; `estimate` is None where that cannot be said."""

    state: State
    method: Method
    #: what the judge says, None for an empty window
    raw: Estimate | None
    estimate: Estimate | None
    #: 95 % interval from the window alone, calibration taken as exact: for comparing windows, which share its error
    window_lower: float | None
    window_upper: float | None
    #: judge less people, in pass ratio, when the labels were made
    bias: Statistic
    #: one sentence, without its full stop
    reason: str


def correct(
    window: Sums,
    rates: ErrorRates | None,
    *,
    fresh: bool = False,
    strata: Mapping[str, Sums] | None = None,
    max_half_width: float = 0.10,
    stale: bool = False,
    outside_support: float = 0.0,
    seed: int = 0,
) -> Corrected:
    """What people would pass in a window, by the method that its labels allow.

    Post-stratified when the labels are a probability sample of this very window's traffic; else Rogan-Gladen when the
    judge tells good from bad well enough; else the offset when its bias is significant; else none.

    Args:
        window: sums of the window (`assay.windows`).
        rates: of the same rubric and judge fingerprint; None when there are none.
        fresh: the labels come from this window's own traffic, not from an earlier time.
        strata: the same window by stratum, named as in `rates.cells`. Strata with too few labels are taken together.
        max_half_width: half the interval above which the state is `too_wide`.
        stale: an audit has failed.
        outside_support: share of the window's scores that lie outside the calibrated ones.
        seed: of the Monte Carlo.
    """
    raw = pass_ratio(window)
    bias = rates.bias if rates is not None else Statistic.undefined("there are no labels")

    def nothing(state: State, reason: str) -> Corrected:
        return Corrected(
            state=state,
            method="none",
            raw=raw,
            estimate=None,
            window_lower=None,
            window_upper=None,
            bias=bias,
            reason=reason,
        )

    if raw is None:
        return nothing("refused", "nothing was scored in the window")
    if raw.n_effective < MIN_WINDOW:
        return nothing("refused", f"the window tells as much as {raw.n_effective:.0f} records; it takes {MIN_WINDOW}")
    if outside_support > MAX_OUTSIDE:
        return nothing("refused", f"{outside_support:.0%} of the scores lie outside those that were calibrated")
    if rates is None:
        return nothing("no_calibration", "there is no calibration of this rubric with this judge")
    found = _corrected(raw, rates, fresh=fresh, strata=strata, seed=seed)
    if found is None:
        return nothing("no_calibration", _why_not(rates))
    if found.lower >= found.upper:
        # Clipped to a point: no true level could read like this.
        return nothing(
            "refused", f"the judge passes {raw.value:.0%}, which its calibration cannot explain: it has changed"
        )
    state: State = "ok"
    reason, half = found.reason, (found.upper - found.lower) / 2
    if stale:
        state, reason = "stale", "an audit with fresh labels says that the correction holds no more"
    elif half > max_half_width:
        state, reason = "too_wide", f"known to ±{100 * half:.0f} points only; more labels would narrow it"
    return Corrected(
        state=state,
        method=found.method,
        raw=raw,
        estimate=Estimate(
            value=found.value, lower=found.lower, upper=found.upper, n=raw.n, n_effective=raw.n_effective
        ),
        window_lower=min(found.value, found.window_lower),
        window_upper=max(found.value, found.window_upper),
        bias=bias,
        reason=reason,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Correction:
    method: Method
    value: float
    lower: float
    upper: float
    window_lower: float
    window_upper: float
    reason: str


def _corrected(
    raw: Estimate, rates: ErrorRates, *, fresh: bool, strata: Mapping[str, Sums] | None, seed: int
) -> _Correction | None:
    if fresh and rates.selection == "probability" and rates.n >= MIN_LABELS and not rates.cells[ALL].is_thin:
        return _post_stratified(raw, rates, strata, seed)
    return _rogan_gladen(raw, rates) or _offset(raw, rates)


def _rogan_gladen(raw: Estimate, rates: ErrorRates) -> _Correction | None:
    se, sp, slope = rates.sensitivity, rates.specificity, rates.youden
    if se is None or sp is None or slope.lower is None or slope.lower < MIN_YOUDEN:
        return None
    if min(rates.counts.passes, rates.counts.fails) < MIN_CLASS:
        return None
    found = rogan_gladen(
        raw.value,
        raw.n_effective,
        sensitivity=se.value,
        n_pass=se.n_effective,
        specificity=sp.value,
        n_fail=sp.n_effective,
    )
    low, high = (_clip((end + sp.value - 1) / (se.value + sp.value - 1)) for end in (raw.lower, raw.upper))
    return _correction("rogan_gladen", found, (low, high), "by the judge's sensitivity and specificity")


def _offset(raw: Estimate, rates: ErrorRates) -> _Correction | None:
    bias = rates.bias
    if rates.selection != "probability" or rates.n < MIN_LABELS or rates.bias_p >= _ALPHA:
        return None
    if bias.value is None or bias.lower is None or bias.upper is None:
        return None
    value = raw.value - bias.value
    return _Correction(
        method="offset",
        value=_clip(value),
        # Square and add the two intervals: a Wald interval would lose the width of a window where all passed.
        lower=_clip(value - math.hypot(raw.value - raw.lower, bias.upper - bias.value)),
        upper=_clip(value + math.hypot(raw.upper - raw.value, bias.value - bias.lower)),
        window_lower=_clip(raw.lower - bias.value),
        window_upper=_clip(raw.upper - bias.value),
        reason="by the judge's mean bias",
    )


def _post_stratified(
    raw: Estimate, rates: ErrorRates, strata: Mapping[str, Sums] | None, seed: int
) -> _Correction | None:
    parts = _parts(raw, rates, strata)
    cells = [
        (share * verdict_share, part)
        for share, passed, cell in parts
        for verdict_share, part in ((1 - passed, cell.given_fail), (passed, cell.given_pass))
        if part is not None
    ]
    total = math.fsum(share for share, _ in cells)
    estimate, window_only = post_stratified(
        [share / total for share, _ in cells],
        raw.n_effective,
        [part.value for _, part in cells],
        [part.n_effective for _, part in cells],
        seed=seed,
    )
    by = f" in each of {len(parts)} strata" if len(parts) > 1 else ""
    return _correction("post_stratified", estimate, window_only, f"by fresh labels of each verdict of the judge{by}")


def _correction(method: Method, found: Statistic, window_only: tuple[float, float], reason: str) -> _Correction | None:
    if found.value is None or found.lower is None or found.upper is None:
        return None
    return _Correction(
        method=method,
        value=found.value,
        lower=found.lower,
        upper=found.upper,
        window_lower=window_only[0],
        window_upper=window_only[1],
        reason=reason,
    )


def _parts(raw: Estimate, rates: ErrorRates, strata: Mapping[str, Sums] | None) -> list[tuple[float, float, Cell]]:
    """(share of the window, share that the judge passes, labels) by stratum, none of them with thin labels."""
    whole = [(1.0, raw.value, rates.cells[ALL])]
    if not strata:
        return whole
    total = math.fsum(sums.sum_w for sums in strata.values())
    parts: list[tuple[float, float, Cell]] = []
    rest = Sums()
    for name, sums in strata.items():
        cell, ratio = rates.cells.get(name), pass_ratio(sums)
        if cell is None or cell.is_thin or ratio is None:
            rest += sums
        else:
            parts.append((sums.sum_w / total, ratio.value, cell))
    ratio = pass_ratio(rest)
    if ratio is not None:
        # Labels of all strata stand in for those that have too few of their own.
        parts.append((rest.sum_w / total, ratio.value, rates.cells[ALL]))
    return parts or whole


def _why_not(rates: ErrorRates) -> str:
    counts, slope = rates.counts, rates.youden
    if min(counts.passes, counts.fails) < MIN_CLASS:
        return (
            f"people passed {counts.passes} and failed {counts.fails} of the labelled records; "
            f"it takes {MIN_CLASS} of each"
        )
    if slope.lower is not None and slope.lower < MIN_YOUDEN:
        bias = rates.bias
        known = f", and its bias ({_points(bias)}) may be none" if rates.selection == "probability" else ""
        return (
            f"the judge tells good from bad too weakly to correct by "
            f"(Youden's J may be {slope.lower:.2f}; it takes {MIN_YOUDEN:.2f}){known}"
        )
    if slope.value is not None and slope.lower is None and slope.reason:
        return f"how well the judge tells good from bad has no interval: {slope.reason}"
    return "the labels do not allow a correction"


def _points(bias: Statistic) -> str:
    if bias.lower is None or bias.upper is None:
        return "unknown"
    return f"{100 * bias.lower:+.0f} to {100 * bias.upper:+.0f} points"


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
