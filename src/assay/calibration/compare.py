"""Two judges, rubrics or prompts on the same labelled records: what differs, and whether that is more than luck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from assay.calibration._columns import BoolArray, FloatArray, flags, floats, weights_or_ones
from assay.calibration.agreement import kappa_of_table
from assay.calibration.bootstrap import Bootstrap
from assay.calibration.ranks import auc_of_counts

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from assay.calibration._columns import Clusters
    from assay.calibration.statistic import Statistic


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One statistic of both judges, and the second less the first."""

    name: str
    first: float | None
    second: float | None
    difference: Statistic

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        return not self.difference.holds(0.0)

    def sentence(self) -> str:
        """Such as `fail recall +9 points (2 to 16)`."""
        found = self.difference
        if found.value is None:
            return f"{self.name}: {found.reason}"
        in_points = self.name not in _PLAIN
        change = f"{100 * found.value:+.0f} points" if in_points else f"{found.value:+.2f}"
        if found.lower is None or found.upper is None:
            return f"{self.name} {change}" + (f" (no interval: {found.reason})" if found.reason else "")
        ends = (f"{100 * end:.0f}" if in_points else f"{end:.2f}" for end in (found.lower, found.upper))
        return f"{self.name} {change} ({' to '.join(ends)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Differences between two judges on the same records, in the order to show them."""

    n: int
    fails: int
    #: records on which the two say pass and fail
    changed: int
    fail_recall: Difference
    fail_precision: Difference
    kappa: Difference
    bias: Difference
    auc: Difference

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All of them, in the order to show them."""
        return self.fail_recall, self.fail_precision, self.kappa, self.bias, self.auc


#: Differences that are not shares, and so not shown in points.
_PLAIN = frozenset({"kappa", "AUC"})


def compare(
    y_true: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    thresholds: tuple[float, float] = (0.5, 0.5),
    verdicts: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    sample_weight: npt.ArrayLike | None = None,
    clusters: Clusters | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap of two judges on the same records: each resample draws records with both judges' scores.

    What both judges find hard drops out of the difference, so it is far sharper than two intervals side by side.

    Args:
        y_true: human pass (1) or fail (0), shape (n,).
        first, second: scores of the two judges, higher better.
        thresholds: a score passes from here on, for each judge.
        verdicts: pass (1) or fail (0) of both judges, instead of the thresholds.
        sample_weight: 1 / probability of selection.
        clusters: records that came together; drawn together.
        n_resamples, seed: of the bootstrap.

    Raises:
        ValueError: no records, shapes differ, or a value out of range.
    """
    passed = flags(y_true, "y_true")
    n = len(passed)
    if not n:
        raise ValueError("y_true: there are no labels")
    scores = floats(first, "first", n=n), floats(second, "second", n=n)
    w = weights_or_ones(sample_weight, n)
    if verdicts is None:
        judged = tuple(score >= at - 1e-9 for score, at in zip(scores, thresholds, strict=True))
    else:
        judged = flags(verdicts[0], "verdicts[0]", n=n), flags(verdicts[1], "verdicts[1]", n=n)
    # Eight patterns, label by first by second: all five shares are functions of their sums.
    pattern = 4 * passed + 2 * judged[0] + judged[1]
    terms = (pattern[:, None] == np.arange(8)) * w[:, None]
    draws = Bootstrap(n, clusters=clusters, n_resamples=n_resamples, seed=seed)

    def paired(name: str, statistic: Callable[[FloatArray], FloatArray], unless: str) -> Difference:
        def difference(sums: FloatArray) -> FloatArray:
            return statistic(_table(sums, 1)) - statistic(_table(sums, 0))

        total = terms.sum(axis=0)
        found = draws.ci(terms, difference, unless=unless)
        values = [float(statistic(_table(total, judge))) for judge in (0, 1)]
        return Difference(name=name, first=_defined(values[0]), second=_defined(values[1]), difference=found)

    one_class = "all labels are of one class"
    return Comparison(
        n=n,
        fails=int((~passed).sum()),
        changed=int((judged[0] != judged[1]).sum()),
        fail_recall=paired("fail recall", _fail_recall, "people fail none of the records"),
        fail_precision=paired("fail precision", _fail_precision, "one of the judges flags nothing"),
        kappa=paired("kappa", kappa_of_table, one_class),
        bias=paired("bias", _bias, ""),
        auc=_auc_difference(passed, scores, w, draws),
    )


def _table(sums: FloatArray, judge: int) -> FloatArray:
    """The table label by verdict of one judge, out of sums by pattern: shape (..., 2, 2), fail before pass."""
    cube = sums.reshape(*sums.shape[:-1], 2, 2, 2)
    table: FloatArray = cube.sum(axis=-1 if judge == 0 else -2)
    return table


def _fail_recall(table: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = table[..., 0, 0] / table[..., 0, :].sum(axis=-1)
    return found


def _fail_precision(table: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = table[..., 0, 0] / table[..., :, 0].sum(axis=-1)
    return found


def _bias(table: FloatArray) -> FloatArray:
    found: FloatArray = (table[..., 0, 1] - table[..., 1, 0]) / table.sum(axis=(-2, -1))
    return found


def _auc_difference(
    passed: BoolArray, scores: tuple[FloatArray, FloatArray], w: FloatArray, draws: Bootstrap
) -> Difference:
    first, second = (auc_of_counts(passed, score) for score in scores)
    found = draws.ci_of_counts(
        lambda counts: second(counts * w) - first(counts * w), unless="all labels are of one class"
    )
    values = [_defined(float(auc(w[None, :])[0])) for auc in (first, second)]
    return Difference(name="AUC", first=values[0], second=values[1], difference=found)


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None
