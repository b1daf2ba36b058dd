"""Intervals and tests of plain counts."""

from __future__ import annotations

import math

from assay.calibration.distributions import betaincinv, norm_ppf
from assay.windows import wilson

_Z95 = norm_ppf(0.975)


def wilson_interval(count: float, total: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of `count` out of `total`; neither need be whole (effective numbers are not).

    Newcombe's method 3, two-sided. `total` 0 gives (0, 1). A one-sided bound at level 1 - a is the end of the two-sided
    interval of confidence 1 - 2a.
    """
    _check(count, total)
    if total == 0:
        return 0.0, 1.0
    # The interval hangs on z and total only through z²/total.
    z = norm_ppf(0.5 + confidence / 2)
    return wilson(min(1.0, count / total), total * (_Z95 / z) ** 2)


def clopper_pearson_interval(count: float, total: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval; never covers less than it says, mostly more."""
    _check(count, total)
    tail = (1 - confidence) / 2
    lower = betaincinv(count, total - count + 1, tail) if count > 0 else 0.0
    upper = betaincinv(count + 1, total - count, 1 - tail) if count < total else 1.0
    return lower, upper


def jeffreys_interval(count: float, total: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Equal-tailed posterior interval under Beta(½, ½); 0 and 1 are ends when none or all were counted."""
    _check(count, total)
    tail = (1 - confidence) / 2
    a, b = count + 0.5, total - count + 0.5
    lower = betaincinv(a, b, tail) if count > 0 else 0.0
    upper = betaincinv(a, b, 1 - tail) if count < total else 1.0
    return lower, upper


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p-value that `b` and `c` discordant pairs are as likely: 2·P(Binomial(b + c, ½) <= min), at most 1."""
    if b < 0 or c < 0:
        raise ValueError("discordant pairs are counts, not negative")
    n, smaller = b + c, min(b, c)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(smaller + 1)]
    return min(1.0, 2.0 * math.fsum(math.exp(value - n * math.log(2)) for value in logs))


def paired_difference_interval(more: float, less: float, total: float) -> tuple[float, float]:
    """95 % interval of (more - less) / total for paired yes/no answers: Bonett and Price 2012, adjusted Wald.

    `more` and `less` are the discordant pairs of each direction. It has a width even when there are none.
    """
    _check(more + less, total)
    p, q = (more + 1) / (total + 2), (less + 1) / (total + 2)
    half = _Z95 * math.sqrt(max(0.0, p + q - (p - q) ** 2) / (total + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def _check(count: float, total: float) -> None:
    # The comparison also refuses NaN. Effective numbers are rounded products.
    if not 0 <= count <= total * (1 + 1e-9):
        raise ValueError(f"{count} of {total} is not a proportion")
