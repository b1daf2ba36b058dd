"""Whether the input of today is spread like that of a reference week.

Chi-squared on the bins of a feature, with effective numbers of records in place of counts (Rao and Scott 1981, first
order), and measured against how much the days of the reference differ among themselves: traffic is never the same two
days running, weekends least of all, and a test that takes every day for a draw from one urn would cry wolf daily.
docs/howto/signals.md says how to read it. Pure, no I/O, standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from assay.calibration.distributions import betainc
from assay.windows import DAY, HOUR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from assay.store import InputBin

#: Level of the critical PSI, and of the alerts that are made of it: features times days times apps are many looks.
ALPHA = 0.001

#: With fewer effective records there is nothing to say.
LEAST_CURRENT = 50.0
LEAST_DAY = 30.0
#: With fewer days in the reference nobody knows how much days differ.
LEAST_DAYS = 3

#: Bins in which fewer effective records than this would be expected are put together (Cochran 1954) ...
_LEAST_EXPECTED = 5.0
#: ... unless the current window has as many: what is new stands by itself.
_LEAST_NEW = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """Records by bin: (sum of w, sum of w²) of each bin, and how many records there are."""

    n: int
    sums: Mapping[int, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """How the current input of an app differs from the reference in one feature."""

    #: probability of a difference at least as large when nothing has changed, in [0, 1]
    p_value: float
    #: population stability index, Σ (a - e)·ln(a / e): how large the difference is
    psi: float
    #: PSI that p < 0.001 takes, about
    psi_critical: float
    #: effective records
    n_current: float
    n_reference: float
    #: bins compared, those that were put together as one
    bins: int
    #: how many times more than by chance the days of the reference differ, at least 1
    dispersion: float


def current_hours(now: float) -> tuple[int, int]:
    """[start, end) of the 24 whole hours before the running one, epoch seconds."""
    end = int(now // HOUR) * HOUR
    return end - DAY, end


def reference_days(now: float, first: date | None = None) -> tuple[int, int]:
    """[start, end) of the reference week, epoch seconds: seven whole days (UTC) from `first` on.

    Without it, the last seven that ended before the current 24 hours began.
    """
    if first is not None:
        start = int(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp())
        return start, start + 7 * DAY
    end = current_hours(now)[0] // DAY * DAY
    return end - 7 * DAY, end


def shifts(current: Iterable[InputBin], reference: Iterable[InputBin]) -> dict[tuple[str, str], Shift]:
    """The shift of each app and feature of which there is enough, see `shift`.

    Args:
        current: bins of the current window.
        reference: bins of the reference, by day.
    """
    days: dict[tuple[str, str], dict[int, list[InputBin]]] = {}
    for row in reference:
        days.setdefault((row.app, row.feature), {}).setdefault(row.start, []).append(row)
    present: dict[tuple[str, str], list[InputBin]] = {}
    for row in current:
        present.setdefault((row.app, row.feature), []).append(row)
    found = {
        key: shift(_bins(rows), [_bins(day) for _, day in sorted(days.get(key, {}).items())])
        for key, rows in sorted(present.items())
    }
    return {key: seen for key, seen in found.items() if seen is not None}


def shift(current: Bins, days: Sequence[Bins]) -> Shift | None:
    """Compare the current records with those of the reference's days; None where either is too few.

    Statistic: X²/df over D, where D = max(1, mean over days of X²/df of the day against the other days). Its
    distribution without a change is taken to be F with df and (days - 1)·df degrees of freedom, which is that of the
    ratio when days differ by chance alone, and holds when they differ more, as long as today differs no more than they.
    """
    usable = [day for day in days if day.n and _effective(day) >= LEAST_DAY]
    if len(usable) < LEAST_DAYS or not current.n or _effective(current) < LEAST_CURRENT:
        return None
    reference = _sum(usable)
    merged = _merge(current, reference)
    if len(merged) < 2:
        return None
    compared = [_collect(part, merged) for part in (current, reference)]
    df = len(merged) - 1
    collected = [_collect(day, merged) for day in usable]
    ratios = [
        _chi2(day, _sum([*collected[:index], *collected[index + 1 :]])) / df for index, day in enumerate(collected)
    ]
    dispersion = max(1.0, math.fsum(ratios) / len(ratios))
    df_below = (len(usable) - 1) * df
    n_current, n_reference = (_effective(part) for part in compared)
    scale = (1 / n_current + 1 / n_reference) * dispersion * df
    return Shift(
        p_value=_f_tail(_chi2(*compared) / df / dispersion, df, df_below),
        psi=_psi(compared[0], compared[1], n_current, n_reference),
        psi_critical=scale * _f_quantile(ALPHA, df, df_below),
        n_current=n_current,
        n_reference=n_reference,
        bins=len(merged),
        dispersion=dispersion,
    )


def _bins(rows: Iterable[InputBin]) -> Bins:
    sums: dict[int, tuple[float, float]] = {}
    n = 0
    for row in rows:
        w, w2 = sums.get(row.bin, (0.0, 0.0))
        sums[row.bin] = (w + row.sum_w, w2 + row.sum_w2)
        n += row.n
    return Bins(n=n, sums=sums)


def _sum(parts: Sequence[Bins]) -> Bins:
    sums: dict[int, tuple[float, float]] = {}
    for part in parts:
        for number, (w, w2) in part.sums.items():
            known = sums.get(number, (0.0, 0.0))
            sums[number] = (known[0] + w, known[1] + w2)
    return Bins(n=sum(part.n for part in parts), sums=sums)


def _shares(bins: Bins) -> dict[int, float]:
    total = math.fsum(w for w, _ in bins.sums.values())
    return {number: w / total for number, (w, _) in bins.sums.items()}


def _effective(bins: Bins) -> float:
    """Equally weighted records whose shares would vary as much: Σ(1 - q) over Σ v/q, v the variance of a share q.

    Never more than Kish's number allows: few heavy records hide their own spread, as in `assay.windows`.
    """
    total, squares = (math.fsum(sums[index] for sums in bins.sums.values()) for index in (0, 1))
    kish = max(1.0, min(float(bins.n), total * total / squares))
    shares = _shares(bins)
    if len(shares) < 2:
        return kish
    variances = (
        ((1 - q) ** 2 * bins.sums[number][1] + q * q * (squares - bins.sums[number][1])) / (total * total) / q
        for number, q in shares.items()
    )
    spread = math.fsum(variances)
    n_effective = (len(shares) - 1) / spread if spread > 0 else kish
    return max(1.0, min(float(bins.n), n_effective, kish * max(1.0, kish / 30.0)))


def _merge(current: Bins, reference: Bins) -> list[frozenset[int]]:
    """Bins to compare: those that hold enough records by themselves, and neighbours that do so together."""
    n, m = _effective(current), _effective(reference)
    here, there = _shares(current), _shares(reference)
    groups: list[frozenset[int]] = []
    waiting: list[int] = []
    expected = 0.0
    for number in sorted(here.keys() | there.keys()):
        seen, known = n * here.get(number, 0.0), m * there.get(number, 0.0)
        if seen >= _LEAST_NEW:
            groups.append(frozenset({number}))
            continue
        waiting.append(number)
        expected += (seen + known) / (n + m) * min(n, m)
        if expected >= _LEAST_EXPECTED:
            groups.append(frozenset(waiting))
            waiting, expected = [], 0.0
    if waiting and groups:
        groups[-1] |= frozenset(waiting)
    return groups


def _collect(bins: Bins, groups: Sequence[frozenset[int]]) -> Bins:
    """By group, numbered from 0. What the reference has of bins that only a day has is in a group as well."""
    sums: dict[int, tuple[float, float]] = {}
    for index, group in enumerate(groups):
        inside = [bins.sums[number] for number in group if number in bins.sums]
        if inside:
            sums[index] = (math.fsum(w for w, _ in inside), math.fsum(w2 for _, w2 in inside))
    return Bins(n=bins.n, sums=sums)


def _chi2(one: Bins, other: Bins) -> float:
    """Σ (p - q)² / (pooled · (1/n + 1/m)) of two samples, by effective numbers."""
    n, m = _effective(one), _effective(other)
    p, q = _shares(one), _shares(other)
    total = 0.0
    for number in p.keys() | q.keys():
        a, b = p.get(number, 0.0), q.get(number, 0.0)
        total += (a - b) ** 2 * (n + m) / (n * a + m * b)
    return total / (1 / n + 1 / m)


def _psi(current: Bins, reference: Bins, n: float, m: float) -> float:
    """Σ (a - e)·ln(a / e); an empty bin counts as half a record."""
    a, e = _shares(current), _shares(reference)
    total = 0.0
    for number in a.keys() | e.keys():
        here, there = a.get(number) or 0.5 / n, e.get(number) or 0.5 / m
        total += (here - there) * math.log(here / there)
    return total


def _f_tail(x: float, df: int, df_below: int) -> float:
    """Probability that an F variable is above `x`."""
    return betainc(df_below / 2, df / 2, df_below / (df_below + df * x)) if x > 0 else 1.0


@lru_cache
def _f_quantile(alpha: float, df: int, df_below: int) -> float:
    """What an F variable is above with probability `alpha`, to a millionth."""
    lower, upper = 0.0, 2.0
    while _f_tail(upper, df, df_below) > alpha:
        lower, upper = upper, 2 * upper
    while upper - lower > 1e-6 * upper:
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if _f_tail(middle, df, df_below) > alpha else (lower, middle)
    return upper
