"""Asking again where a verdict is in doubt: when that ends, and what the verdicts come to.

The rule is a rubric's, and part of its hash: calibrations, gauges and gates are of verdicts that came about by it.
docs/explanation/cost.md says what it saves and how far its outcome can lie from that of always asking so often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from assay.records import TRANSIENT, Failure, Score, Usage

if TYPE_CHECKING:
    from assay.records import Outcome

#: `mean >= pass_threshold` forgives this much of binary rounding, as the scales do.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """How often a judge is asked for one verdict."""

    #: in all, the first included; 2 to 9
    most: int
    #: [low, high] within [0, 1]: asked on only while the mean of the verdicts lies in it; None: always `most` times
    band: tuple[float, float] | None = None


class Poll:
    """The verdicts of one rubric on one record, as they come in.

    Args:
        repeats: the rule.
        pass_threshold: of the rubric, in (0, 1].
        plain: whether the scale knows pass and fail only: a verdict on it without token probabilities does not tell
            how sure the judge is, so a first one is never enough.
        first: verdict.
    """

    def __init__(self, repeats: Repeats, *, pass_threshold: float, plain: bool, first: Score) -> None:
        self._repeats = repeats
        self._pass_threshold = pass_threshold
        self._tells_doubt = not plain or "distribution" in first.details
        self._scores = [first]
        #: calls that gave no score
        self._void: list[Outcome] = []

    @property
    def asks_again(self) -> bool:
        """Whether one more verdict is wanted."""
        left = self._repeats.most - len(self._scores) - len(self._void)
        if left <= 0 or (self._void and _ends(self._void[-1])):
            return False
        if self._repeats.band is None:
            return True
        low, high = self._repeats.band
        in_doubt = low - _ROUNDING <= self._mean <= high + _ROUNDING
        if not in_doubt and (len(self._scores) > 1 or self._tells_doubt):
            return False
        total, count = math.fsum(score.value for score in self._scores), len(self._scores) + left
        return self._passes(total / count) != self._passes((total + left) / count)

    def add(self, outcome: Outcome) -> None:
        """What came of asking once more. What is no score counts as asked, and as nothing else."""
        (self._scores if isinstance(outcome, Score) else self._void).append(outcome)  # type: ignore[arg-type]

    @property
    def outcome(self) -> Score:
        """Mean of the verdicts, with the words of the nearest to it among those that pass, or fail, as the mean does.

        Its details have all values, and the kind of failure that ended the asking; usage and seconds are of all calls.
        """
        if len(self._scores) + len(self._void) == 1:
            return self._scores[0]
        mean = self._mean
        passed = self._passes(mean)
        # At least one verdict lies on the mean's own side of any threshold.
        alike = [score for score in self._scores if self._passes(score.value) == passed]
        words = min(alike, key=lambda score: abs(score.value - mean))
        details = {**words.details, "verdicts": [round(score.value, 6) for score in self._scores]}
        if self._void and isinstance(self._void[-1], Failure) and _ends(self._void[-1]):
            details["ended_by"] = self._void[-1].kind
        calls = [*self._scores, *self._void]
        return replace(
            words,
            value=mean,
            passed=passed,
            details=details,
            usage=sum((call.usage for call in calls), Usage()),
            latency_seconds=math.fsum(call.latency_seconds for call in calls),
        )

    @property
    def _mean(self) -> float:
        return min(1.0, math.fsum(score.value for score in self._scores) / len(self._scores))

    def _passes(self, value: float) -> bool:
        return value + _ROUNDING >= self._pass_threshold


def verdicts_in(outcome: Outcome) -> int:
    """How many verdicts an outcome was made of; 0 for what is no score."""
    if not isinstance(outcome, Score):
        return 0
    verdicts = outcome.details.get("verdicts")
    return len(verdicts) if isinstance(verdicts, list) else 1


def _ends(outcome: Outcome) -> bool:
    """Whether asking on would only meet the same: the budget is spent, or the endpoint is away."""
    return isinstance(outcome, Failure) and (outcome.kind in TRANSIENT or outcome.kind == "budget")
