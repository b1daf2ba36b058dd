"""Statistics of a time window, from sums alone: what the rollups add up is all that an estimate needs.

A record that was sampled with probability p stands for w = 1/p interactions. Means are Hájek means (sum of w*x over sum
of w), their variance is the linearised one, and the interval is Wilson's on an effective number of records.
docs/explanation/estimates.md says why. Standard library only, no I/O.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

from assay.errors import SettingsError

MINUTE = 60
HOUR = 3600
DAY = 86_400

#: Two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054

#: With fewer records' worth of weight than this, the spread seen is not trusted to be the spread there is.
_TRUSTED = 30.0

#: A spread of scores below 1e-6 is rounding: sums of squares in doubles cannot tell it from none.
_ROUNDING = 1e-12

_UNITS = {"s": 1, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Sums over scored records: weight w >= 1, score y in [0, 1], p = 1 if it passed, else 0. They add up with `+`."""

    n: int = 0
    sum_w: float = 0.0
    sum_w2: float = 0.0
    sum_wy: float = 0.0
    sum_w2y: float = 0.0
    sum_w2y2: float = 0.0
    #: how many passed, unweighted
    passes: int = 0
    sum_wp: float = 0.0
    #: also the sum of w²p², because p is 0 or 1
    sum_w2p: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            n=self.n + other.n,
            sum_w=self.sum_w + other.sum_w,
            sum_w2=self.sum_w2 + other.sum_w2,
            sum_wy=self.sum_wy + other.sum_wy,
            sum_w2y=self.sum_w2y + other.sum_w2y,
            sum_w2y2=self.sum_w2y2 + other.sum_w2y2,
            passes=self.passes + other.passes,
            sum_wp=self.sum_wp + other.sum_wp,
            sum_w2p=self.sum_w2p + other.sum_w2p,
        )

    @classmethod
    def of(cls, *, weight: float, value: float, passed: bool) -> Sums:
        """The sums of one score: `weight` >= 1, `value` in [0, 1]."""
        square = weight * weight
        return cls(
            n=1,
            sum_w=weight,
            sum_w2=square,
            sum_wy=weight * value,
            sum_w2y=square * value,
            sum_w2y2=square * value * value,
            passes=int(passed),
            sum_wp=weight if passed else 0.0,
            sum_w2p=square if passed else 0.0,
        )

    @classmethod
    def from_row(cls, row: object) -> Sums:
        """The sums that `row` carries as attributes of the same names, such as a rollup of the store."""
        return cls(**{name: getattr(row, name) for name in SUM_FIELDS})


#: Names of the sums, in order: attributes of `Sums` and columns of the rollups.
SUM_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Sums))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A ratio or mean in [0, 1] with its 95 % interval: 0 <= lower <= value <= upper <= 1."""

    value: float
    lower: float
    upper: float
    #: scored records behind it, at least 1
    n: int
    #: equally weighted yes/no records that would tell as much; what the interval was computed with
    n_effective: float


@dataclass(frozen=True, slots=True)
class Span:
    """Rollup rows to read: those of one resolution that start in [start, end). Epoch seconds."""

    resolution_seconds: int
    start: int
    end: int


def parse_window(text: str) -> int:
    """Seconds of a window such as `5m`, `1h` or `7d`: whole minutes, at least one.

    Raises:
        SettingsError: not a number with a unit, or not whole minutes.
    """
    found = re.fullmatch(r"([0-9]{1,7})([smhdw])", text.strip())
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if seconds < MINUTE or seconds % MINUTE:
        raise SettingsError(f"window {text!r}: write whole minutes, hours or days, such as 5m, 1h or 7d")
    return seconds


def window_bounds(now: float, seconds: int) -> tuple[int, int]:
    """[start, end) of the window of that many `seconds` that ends with the minute of `now`. Epoch seconds.

    The start is on a minute, and the running minute comes on top, so the window is up to a minute longer than its name.
    Above one day it starts on an hour, because sums by the minute are not kept that long.
    """
    minute = math.floor(now / MINUTE) * MINUTE
    step = MINUTE if seconds <= DAY else HOUR
    return (minute - seconds) // step * step, minute + MINUTE


def cover(start: int, end: int) -> list[Span]:
    """The fewest rollup spans that make up [start, end): whole hours by the hour, the edges by the minute, in order.

    Raises:
        ValueError: `start` or `end` is not on a minute (epoch seconds).
    """
    if start % MINUTE or end % MINUTE:
        raise ValueError(f"[{start}, {end}) is not on whole minutes")
    first = -(-start // HOUR) * HOUR
    last = end // HOUR * HOUR
    if first >= last:
        return [Span(MINUTE, start, end)] if start < end else []
    spans = [Span(MINUTE, start, first), Span(HOUR, first, last), Span(MINUTE, last, end)]
    return [span for span in spans if span.start < span.end]


def wilson(ratio: float, n: float, z: float = _Z) -> tuple[float, float]:
    """Wilson's score interval of `ratio` in [0, 1] seen in `n` > 0 trials; `n` need not be whole.

    `z` is the two-sided quantile of the normal distribution, that of 95 % by default.
    """
    z2 = z * z
    centre = (ratio + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(ratio * (1 - ratio) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # An interval always contains its point; at 0 and 1 only rounding can say otherwise.
    return max(0.0, min(ratio, centre - half)), min(1.0, max(ratio, centre + half))


def kish(sums: Sums) -> float:
    """Kish's effective number of records, (sum of w)² / sum of w², in [1, n]; 0 if there are none."""
    if sums.n == 0:
        return 0.0
    return max(1.0, min(float(sums.n), sums.sum_w * sums.sum_w / sums.sum_w2))


def pass_ratio(sums: Sums) -> Estimate | None:
    """Estimated share of all interactions that would pass, or None when nothing was scored."""
    if sums.n == 0:
        return None
    ratio = _clip(sums.sum_wp / sums.sum_w)
    if 0 < sums.passes < sums.n:
        # Σ w²(p - ratio)², taken apart by outcome so that nothing cancels.
        squares = (1 - ratio) ** 2 * sums.sum_w2p + ratio**2 * (sums.sum_w2 - sums.sum_w2p)
    else:
        # Counts say exactly that all are alike, whatever the rounding of the sums.
        ratio, squares = float(sums.passes > 0), 0.0
    return _estimate(ratio, squares, sums, ceiling=float(sums.n))


def score_mean(sums: Sums) -> Estimate | None:
    """Estimated mean score over all interactions, or None when nothing was scored."""
    if sums.n == 0:
        return None
    mean = _clip(sums.sum_wy / sums.sum_w)
    squares = sums.sum_w2y2 - 2 * mean * sums.sum_w2y + mean * mean * sums.sum_w2
    # Scores between 0 and 1 spread less than passes and fails: they may tell more than n yes/no records would.
    return _estimate(mean, squares, sums, ceiling=math.inf)


def _estimate(mean: float, squares: float, sums: Sums, *, ceiling: float) -> Estimate:
    """Wilson's interval on the number of yes/no records whose mean would vary as much as this one.

    `squares` is Σ w²(x - mean)², `ceiling` the most records that it may count for.
    """
    by_weight = kish(sums)
    n_effective = by_weight
    if sums.n > 1 and 0.0 < mean < 1.0 and squares > _ROUNDING * sums.sum_w2:
        variance = squares / (sums.sum_w * sums.sum_w) * sums.n / (sums.n - 1)
        # Few heavy records among many light ones all but fix the mean and so hide their own spread: 5 of 5 ordinary
        # records passed says little. So the spread counts only as far as the weights carry it.
        trusted = by_weight * max(1.0, by_weight / _TRUSTED)
        n_effective = min(ceiling, trusted, mean * (1.0 - mean) / variance)
    lower, upper = wilson(mean, n_effective)
    return Estimate(value=mean, lower=lower, upper=upper, n=sums.n, n_effective=n_effective)


def _clip(ratio: float) -> float:
    return min(1.0, max(0.0, ratio))
