"""Alarms that may be looked at after every record, and whether it is the product or the judge that has changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from assay.calibration._columns import FloatArray, floats, units
from assay.calibration.distributions import chi2_cdf, chi2_ppf, t_cdf, t_ppf
from assay.calibration.means import hajek_mean
from assay.calibration.statistic import Statistic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from assay.calibration.means import Mean

#: none: no alarm. product: the product has changed, the judge has not. judge: the judge has. unknown: cannot be said.
Cause = Literal["none", "product", "judge", "unknown"]

#: Fewer differences that are unlike the usual one do not show how unlike others may be.
_FEW_UNLIKE = 10
#: A detector that has long since alarmed need not count further; keeps its numbers finite.
_MOST = 1e300


class EDetector:
    """Shiryaev-Roberts e-detector: alarms when the mean of a stream falls below an objective.

    S ← (S + 1)·(1 + λ(objective - x)) for each bet λ of a grid; alarm when their mean reaches `run_length`. As long as
    each x, in [0, 1], has a mean of at least `objective` given what came before, the expected number of records to a
    false alarm is at least `run_length`, whatever the distribution. So take records a day, times days for each false
    alarm one can live with, times the number of streams. Put the objective at the service level, not at yesterday's
    mean.

    Records that were sampled with different probabilities have a `share`, weight / heaviest weight, and it is
    S ← (S + share of the record before)·(1 + λ·share·(objective - x)), 1 before the first. Where the interactions that
    were sampled from keep the objective, and the heaviest weight is known beforehand, the mean of share·(objective - x)
    over those that were taken is at most 0, whatever the weight has to do with x. So S less the shares so far is a
    supermartingale, and 1 and the shares before a false alarm are expected to add up to at least `run_length`. Thinning
    to equal weights promises the same and is slower: log(1 + λ·share·gap) ≥ share·log(1 + λ·gap).

    Shin, Ramdas and Rinaldo, E-detectors. It needs a few hundred bytes and no numpy.
    """

    __slots__ = ("_bets", "_objective", "_parts", "_share", "_values", "alarmed_at", "n", "run_length")

    def __init__(self, objective: float, run_length: float, *, bets: int = 8) -> None:
        """Start afresh.

        Args:
            objective: mean that the stream must keep, in (0, 1).
            run_length: expected records to a false alarm, each counted by its share, above 1.
            bets: size of the grid.
        """
        if not run_length > 1:
            raise ValueError(f"run_length: {run_length} is not above 1")
        if bets < 1:
            raise ValueError("bets: it takes one")
        # From 0.05 to 0.95.
        self._parts = tuple(0.05 + 0.9 * index / (bets - 1) for index in range(bets)) if bets > 1 else (0.5,)
        self.objective = objective
        self.run_length = run_length
        #: records seen
        self.n = 0
        #: number of the record that raised the alarm, from 1; None as long as none did
        self.alarmed_at: int | None = None
        self._values = [0.0] * bets
        #: of the record before
        self._share = 1.0

    @property
    def objective(self) -> float:
        """The mean that the stream must keep. Another one holds from the next record on."""
        return self._objective

    @objective.setter
    def objective(self, objective: float) -> None:
        if not 0.0 < objective < 1.0:
            raise ValueError(f"objective: {objective} is not between 0 and 1")
        self._objective = objective
        # Of half the largest bet that cannot be ruined by one perfect record.
        self._bets = [0.5 * part / (1 - objective) for part in self._parts]

    def update(self, x: float, share: float = 1.0) -> bool:
        """Take one value in [0, 1] with its share in (0, 1]; whether the alarm is on, now or since earlier."""
        if not 0.0 <= x <= 1.0:
            raise ValueError(f"{x} is not in [0, 1]")
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share: {share} is not in (0, 1]")
        self.n += 1
        gap, before = share * (self.objective - x), self._share
        self._values = [
            min(_MOST, (value + before) * (1.0 + bet * gap))
            for value, bet in zip(self._values, self._bets, strict=True)
        ]
        self._share = share
        if self.alarmed_at is None and sum(self._values) >= self.run_length * len(self._values):
            self.alarmed_at = self.n
        return self.alarmed_at is not None

    def extend(self, values: Iterable[float]) -> bool:
        """Take many values; whether the alarm is on."""
        for x in values:
            self.update(x)
        return self.alarmed_at is not None

    def reset(self) -> None:
        """Start afresh after an alarm that was dealt with."""
        self.n, self.alarmed_at, self._values, self._share = 0, None, [0.0] * len(self._values), 1.0

    @property
    def log_e(self) -> float | None:
        """Log of the evidence; the alarm goes on at `log_threshold`. None before the first record."""
        total = sum(self._values) / len(self._values)
        return math.log(total) if total > 0.0 else None

    @property
    def log_threshold(self) -> float:
        """Log of the run length."""
        return math.log(self.run_length)

    def state(self) -> dict[str, Any]:
        """All of it as JSON-ready numbers."""
        return {
            "objective": self.objective,
            "run_length": self.run_length,
            "n": self.n,
            "alarmed_at": self.alarmed_at,
            "values": list(self._values),
            "share": self._share,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> EDetector:
        """The detector that `state` was taken of; it goes on as if it had never stopped."""
        detector = cls(state["objective"], state["run_length"], bets=len(state["values"]))
        detector.n, detector.alarmed_at = state["n"], state["alarmed_at"]
        detector._values = [float(value) for value in state["values"]]
        detector._share = float(state.get("share", 1.0))
        return detector


def betting_martingale(values: npt.ArrayLike, mean: float, *, alpha: float = 0.05) -> FloatArray:
    """Evidence after each value, shape (n,), that the mean of a stream in [0, 1] is not `mean`.

    Hedged capital process of Waudby-Smith and Ramdas, max of two half stakes, predictable bets cut at half of what
    ruins. Under the hypothesis it reaches 1 / alpha with probability at most `alpha`, however often one looks.
    """
    x = units(values, "values")
    if not 0.0 < mean < 1.0:
        raise ValueError(f"mean: {mean} is not between 0 and 1")
    if not len(x):
        return np.zeros(0)
    t = np.arange(1, len(x) + 1)
    running = (0.5 + np.cumsum(x)) / (t + 1)
    spread = (0.25 + np.cumsum((x - running) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], spread[:-1]])
    bet = np.sqrt(2 * math.log(2 / alpha) / (t * np.log(1 + t) * before))
    up = np.cumprod(1 + np.minimum(bet, 0.5 / mean) * (x - mean))
    down = np.cumprod(1 - np.minimum(bet, 0.5 / (1 - mean)) * (x - mean))
    capital: FloatArray = np.maximum(up, down) / 2
    return capital


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """Fixed records, judged again: has the judge itself moved?"""

    #: now less baseline, in score
    shift: Statistic
    p_value: float | None
    #: records compared
    n: int
    #: records that one of the two runs has no score of
    missing: int
    #: judge: its scores have moved. product: they have not, by more than the margin. unknown: too few to say
    cause: Cause


def canary_compare(
    baseline: Mapping[str, Sequence[float]],
    now: Mapping[str, Sequence[float]],
    *,
    margin: float = 0.03,
    alpha: float = 0.01,
) -> CanaryResult:
    """Compare a judge with itself on the same records: paired t-test of each record's mean over repeats.

    100 records judged 3 times find a judge that is 10 % harsher nine times in ten; judged once, three times in ten.
    Voting before comparing throws the signal away: the repeats are averaged.

    The test says whether the judge has moved, the interval by how much it may have. Where hardly a record is read
    otherwise the interval is wider than that of t: 30 of 30 read alike leave 16 points open, 175 of 175 leave 3.

    Args:
        baseline, now: scores in [0, 1] of each record id, one for each repeat.
        margin: a shift within it is none.
        alpha: of the two-sided test; the interval has confidence 1 - alpha.
    """
    both = sorted(name for name in baseline.keys() & now.keys() if len(baseline[name]) and len(now[name]))
    missing = len(baseline.keys() | now.keys()) - len(both)
    before = np.array([units(baseline[name], f"baseline[{name}]").mean() for name in both])
    after = np.array([units(now[name], f"now[{name}]").mean() for name in both])
    mean = hajek_mean(after - before)
    if mean is None or mean.no_interval is not None:
        shift = Statistic.undefined("it takes two records judged in both runs", n=len(both))
        return CanaryResult(shift=shift, p_value=None, n=len(both), missing=missing, cause="unknown")
    p_value = _p_zero(mean.value, mean.variance, mean.n)
    lower, upper = _reach(after - before, mean, alpha)
    cause: Cause = "unknown"
    if p_value < alpha:
        cause = "judge"
    elif -margin <= lower and upper <= margin:
        cause = "product"
    shift = Statistic.of(mean.value, (lower, upper), n=mean.n, method="t")
    return CanaryResult(shift=shift, p_value=p_value, n=mean.n, missing=missing, cause=cause)


def _reach(differences: FloatArray, mean: Mean, alpha: float) -> tuple[float, float]:
    """Interval of confidence 1 - alpha for a shift, by differences in [-1, 1].

    Student's t, with each end as much further out as the score interval of a Poisson rate is for its skewness: a judge
    that fails some more records and passes none more looks closer than it is. Where fewer than ten differences are
    unlike the usual one, at least what so many records leave open of a change by 1 that none of them shows.
    """
    n, z = mean.n, t_ppf(1 - alpha / 2, mean.n - 1)
    usual = float(np.median(differences))
    pulls = differences - usual
    squares = float((pulls**2).sum())
    skew = float((pulls**3).sum()) / squares if squares > 0.0 else 0.0
    reach = []
    for side in (-1.0, 1.0):
        lean = max(0.0, side * skew) * z**2 / (2 * n)
        reach.append(mean.value + side * (lean + math.sqrt(z**2 * mean.variance + lean**2)))
    if np.count_nonzero(pulls) < _FEW_UNLIKE:
        unseen = 1 - (alpha / 2) ** (1 / n)
        reach = [min(reach[0], usual - unseen), max(reach[1], usual + unseen)]
    return max(-1.0, reach[0]), min(1.0, reach[1])


def attribute(*, alarm: bool, canary: CanaryResult | None) -> Cause:
    """What an alarm of the score stream is due to, by the canary run that it triggered; none without an alarm.

    A canary that has moved says `judge` even without an alarm.
    """
    if canary is not None and canary.cause == "judge":
        return "judge"
    if not alarm:
        return "none"
    return canary.cause if canary is not None else "unknown"


def population_stability_index(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """PSI = Σ (a - e)·ln(a / e) over the shares of k bins, from counts; empty bins count as half a record.

    Read it against `psi_critical`, not against 0.1 and 0.25, and only as a sign of a changed shape.

    Raises:
        ValueError: shapes differ, a count is negative, or there are no records.
    """
    e, a = floats(expected, "expected"), floats(actual, "actual")
    if len(e) != len(a):
        raise ValueError(f"actual: {len(a)} bins for {len(e)}")
    if (e < 0).any() or (a < 0).any() or not e.sum() or not a.sum():
        raise ValueError("counts must not be negative, nor all 0")
    e, a = np.where(e > 0, e, 0.5), np.where(a > 0, a, 0.5)
    e, a = e / e.sum(), a / a.sum()
    return float(((a - e) * np.log(a / e)).sum())


def psi_critical(bins: int, n: int, m: int, *, alpha: float = 0.05) -> float:
    """PSI above which `n` and `m` records in `bins` bins differ, at level `alpha`: (1/n + 1/m)·χ² of bins - 1."""
    return (1 / n + 1 / m) * chi2_ppf(1 - alpha, bins - 1)


def psi_p_value(psi: float, bins: int, n: int, m: int) -> float:
    """Probability of a PSI at least as large when nothing has changed."""
    return 1.0 - chi2_cdf(psi / (1 / n + 1 / m), bins - 1)


def _p_zero(mean: float, variance: float, n: int) -> float:
    if variance <= 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return 2 * t_cdf(-abs(mean) / math.sqrt(variance), n - 1)
