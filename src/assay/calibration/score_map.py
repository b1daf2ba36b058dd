"""Maps from a judge's score to the share that people pass at that score.

The map is fitted on labels and holds for the mix of records they came from. Its mean over a window of another time
hides a change in quality: never read a level from it there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from assay.calibration._columns import (
    FloatArray,
    IntArray,
    floats,
    groups_or_rows,
    sums_by_group,
    units,
    weights_or_ones,
)
from assay.calibration.means import hajek_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from assay.calibration._columns import Clusters

#: offset: score plus a constant. platt: logistic in the score. isotonic: the best rising steps. table: rising steps
#: over few levels, each drawn towards the overall share, to be read by people.
Kind = Literal["offset", "platt", "isotonic", "table"]

#: Below so many labels a constant is all that they can tell; from the second number on, steps may beat a logistic.
MIN_PLATT = 50
MIN_ISOTONIC = 200

_NEWTON_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreMap:
    """A fitted map; `predict` applies it. Everything in it is a plain number, ready for JSON."""

    kind: Kind
    #: offset: (shift,). platt: (slope, intercept). Otherwise empty.
    parameters: tuple[float, ...]
    #: isotonic and table: (score, share that people pass), scores ascending
    knots: tuple[tuple[float, float], ...]
    #: lowest and highest score among the labels
    support: tuple[float, float]
    n: int
    #: cross-validated Brier score of each kind that was tried, and of the score as it is
    brier: Mapping[str, float]

    def predict(self, scores: npt.ArrayLike) -> FloatArray:
        """Share that people pass at each score, in [0, 1], shape (n,).

        Between two knots the map goes straight from one to the other; beyond the last it stays.
        """
        s = floats(scores, "scores")
        if self.kind == "offset":
            moved: FloatArray = np.clip(s + self.parameters[0], 0.0, 1.0)
            return moved
        if self.kind == "platt":
            slope, intercept = self.parameters
            return _sigmoid(slope * s + intercept)
        at, value = np.array(self.knots).T
        stepped: FloatArray = np.interp(s, at, value)
        return stepped

    def outside_support(self, scores: npt.ArrayLike, *, sample_weight: npt.ArrayLike | None = None) -> float:
        """Weighted share of `scores` below the lowest or above the highest that was labelled; 0.0 of no scores."""
        s = floats(scores, "scores")
        low, high = self.support
        mean = hajek_mean((s < low - 1e-9) | (s > high + 1e-9), sample_weight=sample_weight)
        return mean.value if mean is not None else 0.0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ScoreMap:
        """The map whose `dataclasses.asdict`, or JSON of it, this is.

        Raises:
            TypeError, KeyError, ValueError: it is not.
        """
        low, high = data["support"]
        return cls(
            **{
                **data,
                "parameters": tuple(data["parameters"]),
                "knots": tuple((float(score), float(share)) for score, share in data["knots"]),
                "support": (float(low), float(high)),
                "brier": dict(data["brier"]),
            }
        )


def fit_score_map(
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
    *,
    kind: Kind | Literal["auto"] = "auto",
    sample_weight: npt.ArrayLike | None = None,
    clusters: Clusters | None = None,
    folds: int = 5,
    seed: int = 0,
) -> ScoreMap:
    """A map fitted on all labels; `brier` says how maps of its kind do on labels they have not seen.

    `auto`: offset below 50 labels, Platt below 200, and then Platt unless isotonic has the lower cross-validated Brier
    score by more than one standard error of the difference. A judge that always gives the same score gets an offset.

    Args:
        y_true: human label in [0, 1], soft ones allowed, shape (n,), n >= 2.
        y_score: the judge's scores, [0, 1].
        kind: which map, or `auto`.
        sample_weight: 1 / probability of selection.
        clusters: records of one cluster are never on both sides of a fold.
        folds, seed: of the cross-validation.

    Raises:
        ValueError: fewer than two labels, shapes differ, or a value out of range.
    """
    y, s, w = _columns(y_true, y_score, sample_weight)
    fold = _folds(len(y), clusters, folds, seed)
    brier = {"raw": float(np.average((s - y) ** 2, weights=w))}
    chosen: Kind
    if kind != "auto":
        chosen = kind
    elif len(y) < MIN_PLATT or np.ptp(s) == 0.0:
        chosen = "offset"
    else:
        chosen = "platt"
    losses = {chosen: (_out_of_fold(y, s, w, chosen, fold) - y) ** 2}
    if kind == "auto" and chosen == "platt" and len(y) >= MIN_ISOTONIC:
        losses["isotonic"] = (_out_of_fold(y, s, w, "isotonic", fold) - y) ** 2
        gain = hajek_mean(losses["platt"] - losses["isotonic"], sample_weight=w, clusters=clusters)
        if gain is not None and gain.value > math.sqrt(gain.variance):
            chosen = "isotonic"
    brier |= {name: float(np.average(loss, weights=w)) for name, loss in losses.items()}
    parameters, knots = _fit(y, s, w, chosen)
    return ScoreMap(
        kind=chosen,
        parameters=parameters,
        knots=knots,
        support=(float(s.min()), float(s.max())),
        n=len(y),
        brier=brier,
    )


def cross_val_predict(
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
    *,
    kind: Kind,
    sample_weight: npt.ArrayLike | None = None,
    clusters: Clusters | None = None,
    folds: int = 5,
    seed: int = 0,
) -> FloatArray:
    """For each record, the prediction of a map fitted on the other folds, shape (n,): what a report may be made of.

    Arguments and errors as for `fit_score_map`; the same seed makes the same folds.
    """
    y, s, w = _columns(y_true, y_score, sample_weight)
    return _out_of_fold(y, s, w, kind, _folds(len(y), clusters, folds, seed))


def isotonic_regression(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike, *, sample_weight: npt.ArrayLike | None = None
) -> FloatArray:
    """The rising function of `y_score` nearest to `y_true` (pool adjacent violators), at each record, shape (n,).

    Its weighted mean is that of `y_true`; equal scores get equal values.
    """
    y, s, w = _columns(y_true, y_score, sample_weight, at_least=1)
    at, value = _isotonic(y, s, w)
    return value[np.searchsorted(at, s)]


def conformal_radius(residuals: npt.ArrayLike, *, alpha: float = 0.05) -> float | None:
    """Half width of a split-conformal interval: the ceil((n+1)(1-alpha))-th smallest |residual|.

    A new record's label lies within it of its prediction with probability 1 - alpha, over labels and record together,
    as long as both come from the same mix. None when there are too few residuals for that (no finite radius).
    """
    distance = np.sort(np.abs(floats(residuals, "residuals")))
    # Rounded first: (1 + 19) * (1 - 0.05) is 19, not a little more.
    rank = math.ceil(round((len(distance) + 1) * (1 - alpha), 9))
    return float(distance[rank - 1]) if 1 <= rank <= len(distance) else None


def _columns(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike, sample_weight: npt.ArrayLike | None, *, at_least: int = 2
) -> tuple[FloatArray, FloatArray, FloatArray]:
    y = units(y_true, "y_true")
    if len(y) < at_least:
        raise ValueError(f"y_true: {len(y)} labels; a score map takes at least {at_least}")
    w = weights_or_ones(sample_weight, len(y))
    return y, floats(y_score, "y_score", n=len(y)), w * (len(y) / w.sum())


def _folds(n: int, clusters: Clusters | None, folds: int, seed: int) -> IntArray:
    """The fold of each record: clusters shuffled, then each put where there are fewest records yet."""
    group, n_groups = groups_or_rows(clusters, n)
    folds = max(2, min(folds, n_groups))
    sizes = sums_by_group(np.ones(n), group, n_groups)
    order = np.random.default_rng(seed).permutation(n_groups)
    if clusters is None:
        fold_of_group = np.empty(n_groups, dtype=np.int64)
        fold_of_group[order] = np.arange(n_groups) % folds
        return fold_of_group
    filled = [0.0] * folds
    fold_of = np.empty(n_groups, dtype=np.int64)
    for index in order[np.argsort(-sizes[order], kind="stable")]:
        emptiest = filled.index(min(filled))
        fold_of[index] = emptiest
        filled[emptiest] += float(sizes[index])
    return fold_of[group]


def _out_of_fold(y: FloatArray, s: FloatArray, w: FloatArray, kind: Kind, fold: IntArray) -> FloatArray:
    predicted = np.empty_like(y)
    for index in np.unique(fold):
        held = fold == index
        if held.all():
            # One cluster only: there is nothing to hold out from.
            return _predict(kind, _fit(y, s, w, kind), s)
        predicted[held] = _predict(kind, _fit(y[~held], s[~held], w[~held], kind), s[held])
    return predicted


_Fitted = tuple[tuple[float, ...], tuple[tuple[float, float], ...]]


def _fit(y: FloatArray, s: FloatArray, w: FloatArray, kind: Kind) -> _Fitted:
    if kind == "offset":
        return (float(np.average(y - s, weights=w)),), ()
    if kind == "platt":
        return _platt(y, s, w), ()
    at, value = _isotonic(y, s, w) if kind == "isotonic" else _table(y, s, w)
    return (), tuple(zip(at.tolist(), value.tolist(), strict=True))


def _predict(kind: Kind, fitted: _Fitted, s: FloatArray) -> FloatArray:
    parameters, knots = fitted
    return ScoreMap(kind=kind, parameters=parameters, knots=knots, support=(0.0, 1.0), n=0, brier={}).predict(s)


def _platt(y: FloatArray, s: FloatArray, w: FloatArray) -> tuple[float, float]:
    """Slope and intercept of P(pass) = sigmoid(slope·s + intercept), targets smoothed as Lin, Lin and Weng 2007 do."""
    passes, fails = float((w * y).sum()), float((w * (1 - y)).sum())
    target = y * (passes + 1) / (passes + 2) + (1 - y) / (fails + 2)
    # Centred and scaled, so that Newton's matrix is well conditioned whatever the scores.
    centre, scale = float(np.average(s, weights=w)), float(s.std())
    if scale <= 1e-12:
        share = float(np.average(target, weights=w))
        return 0.0, math.log(share / (1 - share))
    x = np.column_stack([(s - centre) / scale, np.ones_like(s)])
    beta = np.array([0.0, math.log((passes + 1) / (fails + 1))])
    loss = _logistic_loss(x @ beta, target, w)
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(x @ beta)
        gradient = x.T @ (w * (p - target))
        if float(np.abs(gradient).max()) < 1e-10 * len(y):
            break
        hessian = (x * (w * p * (1 - p))[:, None]).T @ x + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while (trial := _logistic_loss(x @ (beta - size * step), target, w)) > loss and size > 1e-10:
            size /= 2
        if trial > loss:
            break
        beta, loss = beta - size * step, trial
    slope = float(beta[0]) / scale
    return slope, float(beta[1]) - slope * centre


def _logistic_loss(eta: FloatArray, target: FloatArray, w: FloatArray) -> float:
    return float((w * (np.logaddexp(0.0, eta) - target * eta)).sum())


def _sigmoid(eta: FloatArray) -> FloatArray:
    found: FloatArray = np.exp(-np.logaddexp(0.0, -eta))
    return found


def _isotonic(y: FloatArray, s: FloatArray, w: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Distinct scores and the rising step function at them."""
    at, index = np.unique(s, return_inverse=True)
    weight = sums_by_group(w, index, len(at))
    mean = sums_by_group(w * y, index, len(at)) / weight
    return at, _pool(mean, weight)


def _table(y: FloatArray, s: FloatArray, w: FloatArray) -> tuple[FloatArray, FloatArray]:
    """As `_isotonic`, each level first drawn towards the overall share by two records' worth (Laplace)."""
    at, index = np.unique(s, return_inverse=True)
    weight = sums_by_group(w, index, len(at))
    overall = float(np.average(y, weights=w))
    mean = (sums_by_group(w * y, index, len(at)) + 2 * overall) / (weight + 2)
    return at, _pool(mean, weight)


def _pool(mean: FloatArray, weight: FloatArray) -> FloatArray:
    """Pool adjacent violators: the nearest rising sequence in weighted squares."""
    values: list[float] = []
    weights: list[float] = []
    sizes: list[int] = []
    for value, heft in zip(mean.tolist(), weight.tolist(), strict=True):
        values.append(value)
        weights.append(heft)
        sizes.append(1)
        while len(values) > 1 and values[-2] >= values[-1]:
            last, heavy, size = values.pop(), weights.pop(), sizes.pop()
            values[-1] = (values[-1] * weights[-1] + last * heavy) / (weights[-1] + heavy)
            weights[-1] += heavy
            sizes[-1] += size
    return np.repeat(np.array(values), sizes)
