"""The few distribution functions that intervals and tests need; names and arguments as in scipy.special.

scipy has them all, for 171 MB and more than a second of import; these agree with it to 1e-10 and cost nothing.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_TINY = 1e-300
_STEPS = 100_000


def norm_ppf(p: float) -> float:
    """Quantile of the standard normal distribution, 0 < p < 1."""
    return NormalDist().inv_cdf(p)


def betainc(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function: the probability that Beta(a, b) is below `x`; a, b > 0."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    # The continued fraction converges fast on this side of the mean; the other side is its mirror image.
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def betaincinv(a: float, b: float, p: float) -> float:
    """Quantile of Beta(a, b), 0 <= p <= 1."""
    return _inverse(lambda x: betainc(a, b, x), p, 0.0, 1.0)


def gammainc(a: float, x: float) -> float:
    """Regularised lower incomplete gamma function: the probability that Gamma(a) is below `x`; a > 0."""
    if x <= 0.0:
        return 0.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1.0:
        term = total = 1.0 / a
        for step in range(1, _STEPS):
            term *= x / (a + step)
            total += term
            if term < total * 1e-17:
                break
        return front * total
    return 1.0 - front * _gamma_fraction(a, x)


def chi2_cdf(x: float, df: float) -> float:
    """Probability that a chi-squared variable with `df` degrees of freedom is below `x`."""
    return gammainc(df / 2.0, x / 2.0)


def chi2_ppf(p: float, df: float) -> float:
    """Quantile of the chi-squared distribution, 0 <= p < 1."""
    upper = max(1.0, df)
    while chi2_cdf(upper, df) < p:
        upper *= 2.0
    return _inverse(lambda x: chi2_cdf(x, df), p, 0.0, upper)


def t_cdf(t: float, df: float) -> float:
    """Probability that Student's t with `df` degrees of freedom is below `t`."""
    tail = 0.5 * betainc(df / 2.0, 0.5, df / (df + t * t))
    return 1.0 - tail if t > 0.0 else tail


def t_ppf(p: float, df: float) -> float:
    """Quantile of Student's t, 0 < p < 1."""
    if p < 0.5:
        return -t_ppf(1.0 - p, df)
    # Solved in 1 - x, which is small: x itself would lose the digits.
    rest = betaincinv(0.5, df / 2.0, 2.0 * p - 1.0)
    return math.sqrt(df * rest / (1.0 - rest)) if rest < 1.0 else math.inf


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Lentz's continued fraction of the incomplete beta function."""
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    value = d
    for m in range(1, _STEPS):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + factor * d
            c = 1.0 + factor / c
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = c if abs(c) > _TINY else _TINY
            value *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return value


def _gamma_fraction(a: float, x: float) -> float:
    """Lentz's continued fraction of the upper incomplete gamma function."""
    b = x + 1.0 - a
    c, d = 1.0 / _TINY, 1.0 / b
    value = d
    for m in range(1, _STEPS):
        factor = -m * (m - a)
        b += 2.0
        d = factor * d + b
        d = 1.0 / (d if abs(d) > _TINY else _TINY)
        c = b + factor / c
        c = c if abs(c) > _TINY else _TINY
        value *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return value


def _inverse(cdf: Callable[[float], float], p: float, lower: float, upper: float) -> float:
    """Where a rising `cdf` reaches `p`, by bisection to the last digit."""
    if p <= 0.0:
        return lower
    if p >= 1.0:
        return upper
    while True:
        middle = (lower + upper) / 2.0
        if not lower < middle < upper:
            return middle
        if cdf(middle) < p:
            lower = middle
        else:
            upper = middle
