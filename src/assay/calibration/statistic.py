"""A measured number with its interval, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Fewer independent records, or clusters of them, hide how far they spread: too few for an interval.
MIN_CLUSTERS = 5


def too_few_for_interval(n: int, *, clusters: bool) -> str | None:
    """Why `n` independent records, or clusters, carry no interval; None when they do."""
    if n >= MIN_CLUSTERS:
        return None
    unit = "cluster" if clusters else "record"
    return f"only {n} {unit}{'' if n == 1 else 's'}: an interval takes at least {MIN_CLUSTERS}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """One statistic. Undefined is `value` None with a `reason`, never NaN.

    `lower` and `upper` are None where no interval was made, with a `reason` where one could not be made; when there is
    an interval, it holds the value.
    """

    value: float | None
    lower: float | None = None
    upper: float | None = None
    #: how many records it was computed from
    n: int = 0
    #: how the interval was made: wilson, bootstrap, jackknife, t, ...
    method: str = ""
    #: why the value, or its interval, is undefined; None when both are defined, or no interval was asked for
    reason: str | None = None

    def __post_init__(self) -> None:
        for name in ("value", "lower", "upper"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} is {number}: an undefined statistic is None with a reason")
        if self.value is None and self.reason is None:
            raise ValueError("a statistic has either a value or a reason why it has none")
        if self.value is not None and self.lower is not None and self.reason is not None:
            raise ValueError("a statistic with a value and an interval needs no reason")

    @classmethod
    def undefined(cls, reason: str, *, n: int = 0) -> Statistic:
        """No value, because of `reason`: a sentence without its full stop."""
        return cls(value=None, n=n, reason=reason)

    @classmethod
    def of(
        cls,
        value: float,
        interval: tuple[float, float] | None = None,
        *,
        n: int,
        method: str = "",
        unless: str = "",
        no_interval: str | None = None,
    ) -> Statistic:
        """A value with its interval, widened by rounding to hold it; undefined, with `unless` as reason, if NaN.

        `no_interval` is the reason to give when there is a value and no interval.
        """
        if not math.isfinite(value):
            return cls.undefined(unless or "it is not defined for these labels", n=n)
        value = float(value)
        if interval is None:
            return cls(value=value, n=n, method="" if no_interval else method, reason=no_interval)
        lower, upper = min(value, float(interval[0])), max(value, float(interval[1]))
        return cls(value=value, lower=lower, upper=upper, n=n, method=method)

    def holds(self, value: float) -> bool:
        """Whether the interval does not rule out `value`; without one, nothing is ruled out."""
        return self.lower is None or self.upper is None or self.lower <= value <= self.upper

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval; None without one."""
        if self.lower is None or self.upper is None:
            return None
        return (self.upper - self.lower) / 2
