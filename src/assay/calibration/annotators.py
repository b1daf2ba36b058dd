"""Several annotators: one label from many, the human ceiling, and the alternative annotator test.

Annotations have the shape (annotators, records), values in [0, 1] with higher better, NaN where an annotator gave none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from assay.calibration._columns import ROUNDING, BoolArray, FloatArray, floats, units, weights_or_ones
from assay.calibration.agreement import kappa_of_table
from assay.calibration.bootstrap import Bootstrap
from assay.calibration.distributions import t_cdf
from assay.calibration.statistic import Statistic

if TYPE_CHECKING:
    from collections.abc import Sequence


#: What many annotators say together: their majority on pass or fail (0.5 when they are split), their mean, or fail as
#: soon as one says fail. These are different targets: declare which one is meant.
Gold = Literal["majority", "mean", "any_fail"]

#: How the alternative annotator test compares one annotation with the others': equal or not, or by distance.
Scoring = Literal["accuracy", "rmse"]

#: An annotator with fewer records is left out of comparisons of single annotators: the t-test's own rule of thumb.
MIN_RECORDS = 30


def gold_labels(annotations: npt.ArrayLike, *, gold: Gold = "majority", threshold: float = 0.5) -> FloatArray:
    """One label for each record, shape (records,).

    Args:
        annotations: shape (annotators, records).
        gold: what to make of them; `majority` and `any_fail` give 0, 0.5 or 1.
        threshold: an annotation passes from here on.

    Raises:
        ValueError: a record that nobody annotated, or an annotation out of [0, 1].
    """
    table = _annotations(annotations)
    given = ~np.isnan(table)
    raters = given.sum(axis=0)
    if (raters == 0).any():
        raise ValueError(f"annotations: nobody annotated record {int(np.flatnonzero(raters == 0)[0])}")
    share = (given & (table >= threshold - ROUNDING)).sum(axis=0) / raters
    label: FloatArray
    if gold == "mean":
        label = np.where(given, table, 0.0).sum(axis=0) / raters
    elif gold == "majority":
        label = (np.sign(share - 0.5) + 1) / 2
    else:
        label = (share == 1.0).astype(np.float64)
    return label


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """How well people agree among themselves: each annotator against the majority of the others, all pooled."""

    annotators: int
    #: comparisons of one annotator with the others
    comparisons: int
    #: comparisons left out because the others were split
    split: int
    kappa: Statistic
    accuracy: Statistic
    fail_recall: Statistic
    #: with ordinal levels: quadratic weights, against the mean level of the others
    weighted_kappa: Statistic | None
    #: the judge in each annotator's place, against the same others: what to compare the ceiling with
    judge_kappa: Statistic
    #: kappa of each annotator against the others, None where undefined or below 30 comparisons
    by_annotator: tuple[float | None, ...]
    #: (judge - mean of annotators) / their standard deviation, in kappa; within 1 of 0 is human-like
    z: float | None


def human_ceiling(
    annotations: npt.ArrayLike,
    y_pred: npt.ArrayLike | None = None,
    *,
    threshold: float = 0.5,
    levels: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    bootstrap: Bootstrap | None = None,
) -> Ceiling | None:
    """Leave-one-out agreement of annotators; None when no record has two.

    Each annotator is compared with the majority of the others, pass or fail; where those are split, there is nothing to
    compare with. All comparisons are pooled, so that annotators with few records do not shake the number.

    Args:
        annotations: shape (annotators, records).
        y_pred: the judge's pass (1) or fail (0), shape (records,), to put in each annotator's place.
        threshold: an annotation passes from here on.
        levels: the values of an ordinal scale, ascending, for the weighted kappa.
        sample_weight: 1 / probability of selection of each record.
        bootstrap: resamples of the records.
    """
    table = _annotations(annotations)
    n = table.shape[1]
    given = ~np.isnan(table)
    passed = given & (table >= threshold - ROUNDING)
    others = given.sum(axis=0) - given
    balance = 2 * (passed.sum(axis=0) - passed) - others
    compared = given & (others > 0) & (balance != 0)
    if not compared.any():
        return None
    w = weights_or_ones(sample_weight, n)
    majority = balance > 0
    people = _two_by_two(majority, passed, compared, w)
    judge = None
    if y_pred is not None:
        verdict = np.broadcast_to(floats(y_pred, "y_pred", n=n) >= 0.5, passed.shape)
        judge = _two_by_two(majority, verdict, compared, w)

    draws = bootstrap or Bootstrap(n)

    def interval(terms: FloatArray, statistic: str) -> Statistic:
        return draws.ci(terms, _OF_TABLE[statistic], unless="the others' majorities are all of one class")

    by_annotator = tuple(
        _number(kappa_of_table(row.sum(axis=0).reshape(2, 2))) if seen.sum() >= MIN_RECORDS else None
        for row, seen in zip(people, compared, strict=True)
    )
    # One row of terms for each record: its comparisons come and go together.
    pooled = people.sum(axis=0)
    judge_kappa = interval(judge.sum(axis=0), "kappa") if judge is not None else Statistic.undefined("no judge given")
    return Ceiling(
        annotators=int(compared.any(axis=1).sum()),
        comparisons=int(compared.sum()),
        split=int((given & (others > 0) & (balance == 0)).sum()),
        kappa=interval(pooled, "kappa"),
        accuracy=interval(pooled, "accuracy"),
        fail_recall=interval(pooled, "fail_recall"),
        weighted_kappa=_ceiling_of_levels(table, levels, w, draws),
        judge_kappa=judge_kappa,
        by_annotator=by_annotator,
        z=_z(judge_kappa.value, by_annotator),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AltTest:
    """The alternative annotator test: may the judge stand in for one of the annotators?"""

    #: share of annotators whom the judge beats by less than `epsilon`, after correction for many tests
    winning_rate: float
    #: mean over annotators of how often the judge is at least as close to the others; ties count for both
    advantage: float
    epsilon: float
    #: one for each annotator, None for those with too few records
    p_values: tuple[float | None, ...]

    @property
    def passed(self) -> bool:
        """Whether the judge wins against at least half of the annotators."""
        return self.winning_rate >= 0.5


def alt_test(
    annotations: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    *,
    epsilon: float = 0.2,
    scoring: Scoring = "accuracy",
    q: float = 0.05,
    min_records: int = MIN_RECORDS,
) -> AltTest | None:
    """Alternative annotator test of Calderon, Reichart and Dror 2025; None when no annotator has enough records.

    Each annotator in turn is compared with the judge by how close both are to the remaining annotators of the same
    records; one-sided t-test that the annotator is better by less than `epsilon`; Benjamini and Yekutieli over the
    annotators at false discovery rate `q`.

    Args:
        annotations: shape (annotators, records); records with a single annotation are left out.
        y_pred: the judge's annotation of each record, on the annotators' scale.
        epsilon: what a judge's lower cost may make up for: 0.2 for experts, 0.15 skilled, 0.1 crowd.
        scoring: `accuracy` for categories, `rmse` for grades.
        q: false discovery rate.
        min_records: annotators with fewer are skipped.
    """
    table = np.asarray(annotations, dtype=np.float64)
    judge = floats(y_pred, "y_pred", n=table.shape[1] if table.ndim == 2 else None)
    table = _annotations(annotations, bounded=False)
    given = ~np.isnan(table)
    given &= given.sum(axis=0) >= 2
    p_values: list[float | None] = []
    advantages: list[float] = []
    for row in range(len(table)):
        items = given[row]
        if items.sum() < min_records:
            p_values.append(None)
            continue
        rest, there = np.delete(table, row, axis=0)[:, items], np.delete(given, row, axis=0)[:, items]
        person = _closeness(table[row, items], rest, there, scoring)
        machine = _closeness(judge[items], rest, there, scoring)
        judge_wins, person_wins = machine >= person - ROUNDING, person >= machine - ROUNDING
        p_values.append(_p_below(person_wins.astype(np.float64) - judge_wins, epsilon))
        advantages.append(float(judge_wins.mean()))
    tested = [p for p in p_values if p is not None]
    if not tested:
        return None
    return AltTest(
        winning_rate=len(benjamini_yekutieli(tested, q=q)) / len(tested),
        advantage=float(np.mean(advantages)),
        epsilon=epsilon,
        p_values=tuple(p_values),
    )


def benjamini_yekutieli(p_values: Sequence[float], *, q: float = 0.05) -> frozenset[int]:
    """Which hypotheses are rejected at false discovery rate `q`, whatever the dependence: positions in `p_values`."""
    m = len(p_values)
    order = sorted(range(m), key=lambda index: p_values[index])
    harmonic = math.fsum(1 / rank for rank in range(1, m + 1))
    last = max((rank for rank in range(1, m + 1) if p_values[order[rank - 1]] <= rank / m * q / harmonic), default=0)
    return frozenset(order[:last])


def _annotations(annotations: npt.ArrayLike, *, bounded: bool = True) -> FloatArray:
    table = np.asarray(annotations, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"annotations: give one row for each annotator, not an array of shape {table.shape}")
    seen = table[~np.isnan(table)]
    if np.isinf(seen).any():
        raise ValueError("annotations: infinite values; write NaN where an annotator gave none")
    if bounded and seen.size:
        units(seen, "annotations")
    return table


def _two_by_two(truth: BoolArray, said: BoolArray, compared: BoolArray, w: FloatArray) -> FloatArray:
    """Terms of the table truth by said, flattened, rows fail then pass: shape (annotators, records, 4)."""
    cell = 2 * truth.astype(np.int64) + said
    terms: FloatArray = (cell[:, :, None] == np.arange(4)) * (compared * w)[:, :, None]
    return terms


def _kappa(sums: FloatArray) -> FloatArray:
    return kappa_of_table(sums.reshape(*sums.shape[:-1], 2, 2))


def _accuracy(sums: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = (sums[..., 0] + sums[..., 3]) / sums.sum(axis=-1)
    return found


def _fail_recall(sums: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = sums[..., 0] / (sums[..., 0] + sums[..., 1])
    return found


_OF_TABLE = {"kappa": _kappa, "accuracy": _accuracy, "fail_recall": _fail_recall}


def _ceiling_of_levels(
    table: FloatArray, levels: npt.ArrayLike | None, w: FloatArray, draws: Bootstrap
) -> Statistic | None:
    if levels is None:
        return None
    scale = floats(levels, "levels")
    k = len(scale)
    given = ~np.isnan(table)
    grade = nearest_level(np.where(given, table, 0.0), scale)
    others = given.sum(axis=0) - given
    total = np.where(given, grade, 0).sum(axis=0) - np.where(given, grade, 0)
    compared = given & (others > 0)
    rest = np.floor(total / np.maximum(others, 1) + 0.5).astype(np.int64)
    terms = np.zeros((table.shape[1], k * k))
    rows, items = np.nonzero(compared)
    np.add.at(terms, (items, rest[rows, items] * k + grade[rows, items]), w[items])
    return draws.ci(
        terms,
        lambda sums: kappa_of_table(sums.reshape(*sums.shape[:-1], k, k), "quadratic"),
        unless="the annotators give one level only",
    )


def nearest_level(values: FloatArray, levels: FloatArray) -> npt.NDArray[np.int64]:
    """Position of the level nearest to each value; half way counts as the higher one. `levels` ascend."""
    middles = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(middles - ROUNDING, values, side="right").astype(np.int64)


def _z(judge: float | None, by_annotator: tuple[float | None, ...]) -> float | None:
    kappas = [kappa for kappa in by_annotator if kappa is not None]
    spread = float(np.std(kappas, ddof=1)) if len(kappas) >= 2 else 0.0
    if judge is None or spread <= ROUNDING:
        return None
    return (judge - float(np.mean(kappas))) / spread


def _closeness(one: FloatArray, rest: FloatArray, there: BoolArray, scoring: Scoring) -> FloatArray:
    """How close `one` is to the rest's annotations: minus the share that differ, or the root mean square distance."""
    filled = np.where(there, rest, 0.0)
    if scoring == "accuracy":
        apart = there & (np.abs(filled - one) > ROUNDING)
        far: FloatArray = apart.sum(axis=0) / there.sum(axis=0)
    else:
        far = np.sqrt(np.where(there, (filled - one) ** 2, 0.0).sum(axis=0) / there.sum(axis=0))
    return -far


def _p_below(values: FloatArray, bound: float) -> float:
    """One-sided p-value of the t-test that the mean of `values` is not below `bound`."""
    n, mean, spread = len(values), float(values.mean()), float(values.std(ddof=1))
    if spread == 0.0:
        return 0.0 if mean < bound else 1.0
    return t_cdf((mean - bound) / (spread / math.sqrt(n)), n - 1)


def _number(value: FloatArray | float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
