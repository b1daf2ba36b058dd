"""The agreement report: everything that labels say about a judge, in the order to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from assay.calibration._columns import (
    ROUNDING,
    BoolArray,
    FloatArray,
    IntArray,
    flags,
    floats,
    groups_or_rows,
    units,
    weights_or_ones,
)
from assay.calibration.agreement import Measurement, Weighting, gwet_ac_of_table, kappa_of_table, krippendorff_alpha_ci
from assay.calibration.annotators import AltTest, Ceiling, alt_test, human_ceiling, nearest_level
from assay.calibration.bootstrap import Bootstrap
from assay.calibration.level import (
    MIN_CLASS,
    MIN_LABELS,
    Level,
    Need,
    has_enough,
    judge_level,
    level_half_width,
    more_labels,
)
from assay.calibration.losses import expected_calibration_error_ci
from assay.calibration.means import hajek_mean, hajek_ratio
from assay.calibration.proportions import wilson_interval
from assay.calibration.ranks import kendalltau_ci, pearsonr_ci, roc_auc_ci, spearmanr_ci
from assay.calibration.rates import ErrorRates, Selection, error_rates
from assay.calibration.statistic import Statistic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from assay.calibration._columns import Clusters
    from assay.windows import Estimate

#: The alternative annotator test says nothing below these.
MIN_ANNOTATORS = 3
MIN_ALT_TEST_RECORDS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementReport:
    """How far a judge can be trusted, by human labels; fields are in the order to show them."""

    #: counts, sensitivity, specificity, Youden's J and bias in pass ratio
    rates: ErrorRates
    #: share of labels that are as much pass as fail
    undecided: float
    #: of what people fail, how much the judge flags
    fail_recall: Statistic
    #: of what the judge flags, how much people fail
    fail_precision: Statistic
    kappa: Statistic
    #: quadratic weights, over the levels of an ordinal scale
    weighted_kappa: Statistic | None
    #: Krippendorff's alpha of the annotators among themselves
    alpha: Statistic | None
    ceiling: Ceiling | None
    #: judge's kappa over people's, both in each annotator's place
    share_of_ceiling: float | None
    #: judge less people, in score
    score_bias: Statistic
    auc: Statistic
    mean_absolute_error: Statistic
    spearman: Statistic
    kendall: Statistic
    pearson: Statistic
    #: of the mapped score, out of fold; None without one
    brier: Statistic | None
    calibration_error: Statistic | None
    #: for the table only: both look good wherever one class is rare
    accuracy: Statistic
    ac1: Statistic
    #: over the levels of an ordinal scale, quadratic weights
    ac2: Statistic | None
    f1_fail: Statistic
    alt_test: AltTest | None
    #: of judge less people with the log of the answer's length
    length_correlation: Statistic | None
    #: half the interval of a corrected window of 1,000 records, by fresh labels like these
    level_half_width: float | None
    level: Level
    #: why this level, one sentence each, without full stop
    reasons: tuple[str, ...]
    #: what else to know before reading the numbers
    notes: tuple[str, ...]
    #: what more labels would buy, cheapest first
    needs: tuple[Need, ...]


def agreement(
    y_true: npt.ArrayLike,
    y_pred: npt.ArrayLike,
    *,
    y_score: npt.ArrayLike | None = None,
    y_grade: npt.ArrayLike | None = None,
    y_prob: npt.ArrayLike | None = None,
    levels: npt.ArrayLike | None = None,
    annotations: npt.ArrayLike | None = None,
    annotation_threshold: float = 0.5,
    epsilon: float = 0.2,
    lengths: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    clusters: Clusters | None = None,
    strata: Sequence[str] | None = None,
    selection: Selection = "probability",
    min_fail_recall: float = 0.5,
    max_half_width: float = 0.05,
    n_resamples: int = 2000,
    seed: int = 0,
) -> AgreementReport:
    """Everything that n >= 1 labels say about a judge.

    Args:
        y_true: human label, 1 pass to 0 fail, shape (n,); soft ones allowed, exactly 0.5 is undecided and left out of
            whatever needs a side.
        y_pred: the judge's pass (1) or fail (0).
        y_score: the judge's scores in [0, 1]; its pass or fail when there are none.
        y_grade: people's grades in [0, 1], to compare scores with; `y_true` when there are none.
        y_prob: scores mapped to probabilities out of fold (`cross_val_predict`), for Brier score and calibration error.
        levels: values of an ordinal scale, ascending, at least 3, for weighted kappa.
        annotations: shape (annotators, n), in [0, 1], NaN where missing.
        annotation_threshold: an annotation passes from here on.
        epsilon: of the alternative annotator test: 0.2 experts, 0.15 skilled, 0.1 crowd.
        lengths: of the judged answers, above 0, such as characters.
        sample_weight: 1 / (probability of judging x probability of labelling).
        clusters: records that came together, such as a session's or of one source text.
        strata: a name for each record of what it may shift by, for `rates`.
        selection: `curated` when people picked the records by hand.
        min_fail_recall, max_half_width: what the team asks of a level.
        n_resamples, seed: of the bootstrap.

    Raises:
        ValueError: no records, shapes differ, or a value out of range.
    """
    rates = error_rates(
        y_true, y_pred, sample_weight=sample_weight, strata=strata, clusters=clusters, selection=selection
    )
    y, judged = units(y_true, "y_true"), flags(y_pred, "y_pred")
    n = len(y)
    score = judged.astype(np.float64) if y_score is None else units(y_score, "y_score", n=n)
    grade = y if y_grade is None else units(y_grade, "y_grade", n=n)
    labels = _Labels(
        y,
        judged,
        score,
        grade,
        weights_or_ones(sample_weight, n),
        None if clusters is None else groups_or_rows(clusters, n)[0],
        Bootstrap(n, clusters=clusters, n_resamples=n_resamples, seed=seed),
        too_few=_too_few(rates),
    )
    ceiling = alpha = alternative = None
    if annotations is not None:
        scale = None if levels is None else _scale(levels)
        ceiling, alpha, alternative = labels.people(annotations, annotation_threshold, scale, epsilon)
    auc = labels.auc()
    half_width = level_half_width(rates, seed=seed)
    level, reasons = judge_level(
        rates,
        auc,
        half_width=half_width,
        alt_test=alternative,
        ceiling=ceiling,
        min_fail_recall=min_fail_recall,
        max_half_width=max_half_width,
    )
    length = None if lengths is None else labels.length_correlation(floats(lengths, "lengths", n=n))
    brier, calibration_error = (None, None) if y_prob is None else labels.probabilities(units(y_prob, "y_prob", n=n))
    weighted_kappa, ac2 = (None, None) if levels is None else labels.of_levels(_scale(levels))
    return AgreementReport(
        rates=rates,
        undecided=1 - rates.counts.n / n,
        fail_recall=_ratio(rates.specificity, "people fail none of the records"),
        fail_precision=labels.fail_precision(),
        kappa=labels.kappa(),
        weighted_kappa=weighted_kappa,
        alpha=alpha,
        ceiling=ceiling,
        share_of_ceiling=_share_of(ceiling),
        score_bias=labels.mean(score - grade),
        auc=auc,
        mean_absolute_error=labels.mean(np.abs(score - grade)),
        spearman=labels.correlation(spearmanr_ci),
        kendall=labels.kendall(),
        pearson=labels.correlation(pearsonr_ci),
        brier=brier,
        calibration_error=calibration_error,
        accuracy=labels.of_table(_accuracy),
        ac1=labels.of_table(gwet_ac_of_table),
        ac2=ac2,
        f1_fail=labels.of_table(_f1_fail),
        alt_test=alternative,
        length_correlation=length,
        level_half_width=half_width,
        level=level,
        reasons=reasons,
        notes=_notes(rates, length),
        needs=more_labels(rates, half_width=half_width, max_half_width=max_half_width),
    )


class _Labels:
    """The labelled records as columns, and each statistic of the report with its interval."""

    def __init__(
        self,
        y: FloatArray,
        judged: BoolArray,
        score: FloatArray,
        grade: FloatArray,
        w: FloatArray,
        group: IntArray | None,
        bootstrap: Bootstrap,
        *,
        too_few: str | None,
    ) -> None:
        self._y, self._judged, self._score, self._grade, self._w, self._group = y, judged, score, grade, w, group
        self._bootstrap, self._too_few = bootstrap, too_few
        self._decided = np.abs(y - 0.5) > ROUNDING
        cell = 2 * (y > 0.5).astype(np.int64) + judged
        #: terms of the table label by verdict, flattened, fail before pass
        self._terms = ((cell[:, None] == np.arange(4)) & self._decided[:, None]) * w[:, None]

    def of_table(self, statistic: Callable[[FloatArray], FloatArray]) -> Statistic:
        return self._ci(self._terms, lambda sums: statistic(sums.reshape(*sums.shape[:-1], 2, 2)))

    def kappa(self) -> Statistic:
        found = self.of_table(kappa_of_table)
        if found.value is None or found.value < 1 - ROUNDING or self._bootstrap.no_interval is not None:
            return found
        # Resampling perfect agreement gives perfect agreement: what it may hide is what Wilson says of n out of n.
        table = self._terms.sum(axis=0).reshape(2, 2)
        passes = table[1].sum() / table.sum()
        chance = passes**2 + (1 - passes) ** 2
        told = min(int(self._decided.sum()), self._bootstrap.n_independent)
        lowest = wilson_interval(told, told)[0]
        return Statistic.of(1.0, ((lowest - chance) / (1 - chance), 1.0), n=found.n, method="wilson")

    def fail_precision(self) -> Statistic:
        flagged = self._decided & ~self._judged
        found = hajek_ratio(
            self._y[flagged] < 0.5,
            sample_weight=self._w[flagged],
            clusters=None if self._group is None else self._group[flagged],
        )
        return _ratio(found, "the judge flags none of the records")

    def auc(self) -> Statistic:
        if self._too_few is not None:
            return self._undefined()
        return roc_auc_ci(self._y, self._score, sample_weight=self._w, bootstrap=self._bootstrap)

    def correlation(self, function: Callable[..., Statistic]) -> Statistic:
        if self._too_few is not None:
            return self._undefined()
        return function(
            self._grade,
            self._score,
            sample_weight=self._w,
            bootstrap=self._bootstrap,
        )

    def kendall(self) -> Statistic:
        if self._too_few is not None:
            return self._undefined()
        return kendalltau_ci(self._grade, self._score, clusters=self._group)

    def of_levels(self, scale: FloatArray) -> tuple[Statistic, Statistic]:
        """Weighted kappa and AC2 over the levels of an ordinal scale."""
        k = len(scale)
        cell = nearest_level(self._grade, scale) * k + nearest_level(self._score, scale)
        terms = (cell[:, None] == np.arange(k * k)) * self._w[:, None]

        def shaped(statistic: Callable[[FloatArray, Weighting], FloatArray]) -> Statistic:
            return self._ci(terms, lambda sums: statistic(sums.reshape(*sums.shape[:-1], k, k), "quadratic"))

        return shaped(kappa_of_table), shaped(gwet_ac_of_table)

    def probabilities(self, p: FloatArray) -> tuple[Statistic, Statistic]:
        """Brier score and expected calibration error of mapped scores."""
        error = expected_calibration_error_ci(
            self._y,
            p,
            sample_weight=self._w,
            bootstrap=self._bootstrap,
        )
        return self.mean((p - self._y) ** 2), error

    def length_correlation(self, lengths: FloatArray) -> Statistic:
        if (lengths <= 0).any():
            raise ValueError("lengths: the judged answers must have a length above 0")
        if self._too_few is not None:
            return self._undefined()
        return pearsonr_ci(
            np.log(lengths),
            self._score - self._grade,
            sample_weight=self._w,
            bootstrap=self._bootstrap,
        )

    def people(
        self, annotations: npt.ArrayLike, threshold: float, scale: FloatArray | None, epsilon: float
    ) -> tuple[Ceiling | None, Statistic, AltTest | None]:
        """The human ceiling, alpha among the annotators, and the alternative annotator test."""
        table = np.asarray(annotations, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != len(self._y):
            raise ValueError(f"annotations: shape {table.shape}; it takes (annotators, {len(self._y)})")
        ceiling = human_ceiling(
            table,
            self._judged,
            threshold=threshold,
            levels=scale,
            sample_weight=self._w,
            bootstrap=self._bootstrap,
        )
        values = np.unique(table[~np.isnan(table)])
        binary = len(values) <= 2
        level: Measurement = "nominal" if binary else "ordinal" if scale is not None else "interval"
        alpha = krippendorff_alpha_ci(table, level=level, bootstrap=self._bootstrap)
        enough = (~np.isnan(table)).sum(axis=0) >= 2
        if ceiling is None or ceiling.annotators < MIN_ANNOTATORS or enough.sum() < MIN_ALT_TEST_RECORDS:
            return ceiling, alpha, None
        judge = self._judged.astype(np.float64) if binary else self._score
        return ceiling, alpha, alt_test(table, judge, epsilon=epsilon, scoring="accuracy" if binary else "rmse")

    def mean(self, values: FloatArray) -> Statistic:
        found = hajek_mean(values, sample_weight=self._w, clusters=self._group)
        if found is None:
            return Statistic.undefined("there are no records")
        return Statistic.of(found.value, found.interval(), n=found.n, method="t", no_interval=found.no_interval)

    def _ci(self, terms: FloatArray, statistic: Callable[[FloatArray], FloatArray]) -> Statistic:
        if self._too_few is not None:
            return self._undefined()
        return self._bootstrap.ci(terms, statistic)

    def _undefined(self) -> Statistic:
        return Statistic.undefined(self._too_few or "", n=len(self._y))


def _scale(levels: npt.ArrayLike) -> FloatArray:
    scale = units(levels, "levels")
    if len(scale) < 3 or (np.diff(scale) <= 0).any():
        raise ValueError("levels: give at least 3, ascending")
    return scale


def _too_few(rates: ErrorRates) -> str | None:
    counts = rates.counts
    if has_enough(rates):
        return None
    return f"{counts.passes} pass and {counts.fails} fail labels: it takes {MIN_LABELS}, and {MIN_CLASS} of each"


def _ratio(estimate: Estimate | None, unless: str) -> Statistic:
    if estimate is None:
        return Statistic.undefined(unless)
    return Statistic.of(estimate.value, (estimate.lower, estimate.upper), n=estimate.n, method="wilson")


def _share_of(ceiling: Ceiling | None) -> float | None:
    if ceiling is None or ceiling.kappa.value is None or ceiling.judge_kappa.value is None:
        return None
    return ceiling.judge_kappa.value / ceiling.kappa.value if ceiling.kappa.value > 0 else None


def _accuracy(table: FloatArray) -> FloatArray:
    found: FloatArray = np.trace(table, axis1=-2, axis2=-1) / table.sum(axis=(-2, -1))
    return found


def _f1_fail(table: FloatArray) -> FloatArray:
    hit = 2 * table[..., 0, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = hit / (hit + table[..., 0, 1] + table[..., 1, 0])
    return found


def _notes(rates: ErrorRates, length: Statistic | None) -> tuple[str, ...]:
    notes = []
    bias = rates.bias
    if bias.value is not None and bias.lower is not None and bias.upper is not None:
        low, high = sorted((abs(bias.lower), abs(bias.upper)))
        if rates.bias_p < 0.05 and bias.lower * bias.upper > 0:
            way = "high" if bias.value > 0 else "low"
            notes.append(f"it reads {100 * abs(bias.value):.0f} points too {way} ({100 * low:.0f} to {100 * high:.0f})")
        else:
            notes.append(f"its bias may be none ({100 * bias.lower:+.0f} to {100 * bias.upper:+.0f} points)")
    if rates.weighted:
        notes.append(
            "the labels were not picked evenly: their plain counts are not representative, the shares are weighted"
        )
    if rates.selection == "curated":
        notes.append("the records were picked by hand: they tell how the judge errs, not what production is like")
    if length is not None and length.value is not None and not length.holds(0.0):
        kind = "long" if length.value > 0 else "short"
        notes.append(f"it is kinder than people to {kind} answers (correlation {length.value:+.2f})")
    return tuple(notes)
