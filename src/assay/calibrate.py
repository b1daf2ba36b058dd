"""Calibration of one judge by one set of labels: labels and outcomes in, the report and the frozen artefact out.

`assay.judging` brings the outcomes, `assay.calibration` has the statistics, `assay.calibration_summary` the words.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from assay.calibration import (
    AgreementReport,
    Calibration,
    Comparison,
    ErrorRates,
    JudgingCost,
    ScoreMap,
    agreement,
    choose_threshold,
    compare,
    cross_val_predict,
    error_rates,
    fit_score_map,
)
from assay.calibration.level import MIN_LABELS
from assay.errors import NoVerdictsError
from assay.records import Failure, NotApplicable, Score, now

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import numpy.typing as npt

    from assay.calibration import Purpose, Threshold
    from assay.labels import LabelColumns, Labelled, LabelSet
    from assay.records import Outcome, Record
    from assay.rubrics import Rubric

#: Why a row has no outcome: the budget or the judge ended before it, or only kept outcomes were asked for.
NOT_JUDGED = "not_judged"

#: Judges without a model put their cut on the rubric's own threshold: to move that moves their scores with it.
_KEYLESS = ("lexical", "rules")
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRow:
    """One labelled record: what the labels say, and what the judge says."""

    item: Labelled
    #: what the annotators say together: 1 pass, 0 fail, in between where they are split
    label: float
    #: mean of their grades in [0, 1]
    grade: float
    #: None where nobody has judged it
    outcome: Outcome | None

    @property
    def item_id(self) -> str:
        """Id of the labelled record."""
        return self.item.item_id

    @property
    def record(self) -> Record | None:
        """The record; None where the label file has scores in its place."""
        return self.item.record

    @property
    def note(self) -> str:
        """Why the label is what it is, in the annotator's words; "" where nobody said."""
        return self.item.note

    @property
    def weight(self) -> float:
        """1 / probability of selection."""
        return 1 / self.item.probability

    @property
    def cluster(self) -> str:
        """What the record came together with; "" when it stands alone."""
        return self.item.cluster

    @property
    def stratum(self) -> str:
        """What the mix of records may shift by; "" where the file has no strata."""
        return self.item.stratum

    @property
    def score(self) -> Score | None:
        """The judge's verdict; None without one."""
        return self.outcome if isinstance(self.outcome, Score) else None

    @property
    def left_out(self) -> str | None:
        """Why it is in no number: `failed:timeout`, `not_applicable:missing_contexts`, `not_judged`; else None."""
        if isinstance(self.outcome, Failure):
            return f"failed:{self.outcome.kind}"
        if isinstance(self.outcome, NotApplicable):
            return f"not_applicable:{self.outcome.reason}"
        return NOT_JUDGED if self.outcome is None else None

    @property
    def disagrees(self) -> bool:
        """Whether judge and labels are on different sides."""
        return self.score is not None and self.is_decided and self.score.passed != (self.label > 0.5)

    @property
    def is_decided(self) -> bool:
        """Whether the labels are more pass than fail, or the other way round."""
        return abs(self.label - 0.5) > _ROUNDING

    @property
    def distance(self) -> float:
        """How far the judge's score is from the label, in [0, 1]; 0.0 without a score."""
        return 0.0 if self.score is None else abs(self.score.value - self.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationColumns:
    """The rows with a verdict as arrays, shape (n,) each, in the order of the file: for statistics and plots."""

    item_ids: tuple[str, ...]
    #: label: 1 pass, 0 fail, in between where annotators are split
    y_true: npt.NDArray[np.float64]
    y_grade: npt.NDArray[np.float64]
    #: the judge passes it
    y_pred: npt.NDArray[np.bool_]
    #: the judge's score in [0, 1]
    y_score: npt.NDArray[np.float64]
    #: share that labels pass at that score, by a map that has not seen the record; None with too few labels
    y_prob: npt.NDArray[np.float64] | None
    #: 1 / probability of selection
    sample_weight: npt.NDArray[np.float64]
    #: None where every record stands alone
    clusters: tuple[str, ...] | None
    #: None where the file has no strata
    strata: tuple[str, ...] | None
    #: grades in [0, 1], shape (annotators, n), NaN where one gave none; None where no record has two
    annotations: npt.NDArray[np.float64] | None
    #: characters of the outputs; None where a text is not there
    lengths: npt.NDArray[np.float64] | None


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """One judge under one rubric on one set of labels: all that a report shows."""

    label_set: LabelSet
    rubric: Rubric
    calibration: Calibration
    report: AgreementReport
    #: every labelled record, in the order of the file
    rows: tuple[CalibrationRow, ...]
    columns: CalibrationColumns
    #: error rates in each stratum, in alphabetical order; empty where the file has no strata
    strata: Mapping[str, ErrorRates]

    @property
    def labellers(self) -> str:
        """What sentences call whoever gave the labels, in the plural; `people` only where people did."""
        return _labellers(self.label_set)

    @property
    def outcomes(self) -> tuple[Outcome | None, ...]:
        """What came of each labelled record, in the order of the file; None where nobody has judged it."""
        return tuple(row.outcome for row in self.rows)

    @property
    def pass_threshold(self) -> float:
        """A score passes from here on."""
        return self.rubric.pass_threshold

    @property
    def is_whole(self) -> bool:
        """Whether the judge was asked for every record."""
        return NOT_JUDGED not in self.calibration.left_out

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know beside the numbers, sentences without full stop; the bias is a number."""
        notes = (note for note in self.report.notes if not note.startswith(("it reads ", "its bias ")))
        return (*notes, *_left_out_notes(self.rows), *self.label_set.cautions)

    def disagreements(self, limit: int | None = None) -> tuple[CalibrationRow, ...]:
        """Rows on which judge and labels are on different sides, the farthest apart first."""
        # Ties in the order of the file, so that the same input prints the same rows.
        apart = sorted((row for row in self.rows if row.disagrees), key=lambda row: -row.distance)
        return tuple(apart[:limit])


def calibrate(
    label_set: LabelSet,
    rubric: Rubric,
    *,
    judge: str,
    judge_fingerprint: str,
    outcomes: Mapping[str, Outcome],
    min_fail_recall: float = 0.5,
    max_half_width: float = 0.05,
    created_at: datetime | None = None,
    seed: int = 0,
) -> Calibrated:
    """What the labels say of the judge. Failures, and records that the rubric does not apply to, are counted apart.

    Args:
        label_set: the labels.
        rubric: what the judge was asked.
        judge, judge_fingerprint: who was asked.
        outcomes: by item id; items without one count as not judged.
        min_fail_recall, max_half_width: what the team asks of a level, see `calibration.agreement`.
        created_at: of the artefact; now by default.
        seed: of everything random.

    Raises:
        NoVerdictsError: no record has a verdict.
    """
    labels = label_set.columns()
    rows = tuple(
        CalibrationRow(item=item, label=float(label), grade=float(grade), outcome=outcomes.get(item.item_id))
        for item, label, grade in zip(label_set.items, labels.y_true, labels.y_grade, strict=True)
    )
    left_out = Counter(row.left_out for row in rows if row.left_out is not None)
    if left_out.total() == len(rows):
        raise NoVerdictsError(f"nothing can be measured: {'; '.join(_left_out_notes(rows))}")
    columns, score_map = _columns(rows, labels, seed)
    report: AgreementReport = _reworded(
        agreement(
            columns.y_true,
            columns.y_pred,
            y_score=columns.y_score,
            y_grade=columns.y_grade,
            y_prob=columns.y_prob,
            levels=_levels(label_set, columns),
            annotations=columns.annotations,
            annotation_threshold=labels.annotation_threshold,
            lengths=columns.lengths,
            sample_weight=columns.sample_weight,
            clusters=columns.clusters,
            strata=columns.strata,
            selection=label_set.selection,
            min_fail_recall=min_fail_recall,
            max_half_width=max_half_width,
            seed=seed,
        ),
        _labellers(label_set),
    )
    if report.level == "human_like" and label_set.annotator_kind != "human":
        # Alike are it and whoever labelled; only people make that a likeness to people. It is the last of the reasons.
        report = dataclasses.replace(report, level="calibrated", reasons=report.reasons[:-1])
    calibration = Calibration(
        rubric=rubric.name,
        rubric_version=rubric.revision,
        rubric_hash=rubric.hash,
        judge=judge,
        judge_fingerprint=judge_fingerprint,
        created_at=created_at or now(),
        labelled_from=label_set.labelled_from,
        labelled_to=label_set.labelled_to,
        **_recorded([row.record for row in rows if row.left_out is None]),
        labels_sha256=label_set.sha256,
        annotator_kind=label_set.annotator_kind,
        annotators=len(label_set.annotators),
        synthetic=label_set.synthetic,
        selection=label_set.selection,
        gold=label_set.gold,
        n=len(columns.item_ids),
        left_out=dict(sorted(left_out.items())),
        rates=report.rates,
        score_map=score_map,
        thresholds={} if judge in _KEYLESS else _thresholds(columns, _labellers(label_set)),
        level=report.level,
        reasons=report.reasons,
        min_fail_recall=min_fail_recall,
        kappa=report.kappa,
        fail_recall=report.fail_recall,
        fail_precision=report.fail_precision,
        auc=report.auc,
        level_half_width=report.level_half_width,
        cost=_cost(rows),
    )
    return Calibrated(
        label_set=label_set,
        rubric=rubric,
        calibration=calibration,
        report=report,
        rows=rows,
        columns=columns,
        strata=_by_stratum(columns, label_set),
    )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two judges, rubrics or ways of asking, on the same records."""

    first: Calibrated
    second: Calibrated
    #: second less first
    comparison: Comparison
    #: (first, second) of records on which the two say pass and fail, those that the second gets wrong first
    changed: tuple[tuple[CalibrationRow, CalibrationRow], ...]

    @property
    def mended(self) -> int:
        """Records that the second gets right and the first does not."""
        return sum(not after.disagrees for _, after in self.changed)

    @property
    def broken(self) -> int:
        """Records that the first gets right and the second does not."""
        return sum(after.disagrees for _, after in self.changed)


def compare_calibrated(first: Calibrated, second: Calibrated, *, seed: int = 0) -> Compared:
    """Paired bootstrap on the records that both have a verdict on and that the labels have a side on.

    Both are of the same label set, read by one rubric, so that their labels are the same.

    Raises:
        ValueError: they are of different labels.
        NoVerdictsError: there is no such record.
    """
    if [(row.item_id, row.label) for row in first.rows] != [(row.item_id, row.label) for row in second.rows]:
        raise ValueError("both must be of the same labels")
    pairs = [
        (before, after)
        for before, after in zip(first.rows, second.rows, strict=True)
        if before.score is not None and after.score is not None and before.is_decided
    ]
    if not pairs:
        raise NoVerdictsError("nothing can be compared: no labelled record has a verdict of both")
    columns = first.columns
    cluster_of = dict(zip(columns.item_ids, columns.clusters or columns.item_ids, strict=True))
    scores = tuple([row.score for row in side if row.score is not None] for side in zip(*pairs, strict=True))
    found = compare(
        [before.label > 0.5 for before, _ in pairs],
        [score.value for score in scores[0]],
        [score.value for score in scores[1]],
        verdicts=([score.passed for score in scores[0]], [score.passed for score in scores[1]]),
        sample_weight=[before.weight for before, _ in pairs],
        clusters=[cluster_of[before.item_id] for before, _ in pairs] if columns.clusters else None,
        seed=seed,
    )
    changed = [(before, after) for before, after in pairs if before.disagrees != after.disagrees]
    changed.sort(key=lambda pair: not pair[1].disagrees)
    return Compared(
        first=first,
        second=second,
        comparison=_reworded(found, first.labellers),
        changed=tuple(changed),
    )


def _columns(
    rows: tuple[CalibrationRow, ...], labels: LabelColumns, seed: int
) -> tuple[CalibrationColumns, ScoreMap | None]:
    """The columns of the rows that have a verdict, and the map from scores to labels."""
    scored = [(at, row.outcome) for at, row in enumerate(rows) if isinstance(row.outcome, Score)]
    index = np.array([at for at, _ in scored], dtype=np.int64)
    y_true, weight = labels.y_true[index], labels.sample_weight[index]
    y_score = np.array([score.value for _, score in scored], dtype=np.float64)
    clusters = tuple(labels.clusters[at] for at in index)
    # Exact tests need to know that records stand alone.
    grouped = clusters if len(set(clusters)) < len(clusters) else None
    score_map = y_prob = None
    if len(scored) >= MIN_LABELS:
        score_map = fit_score_map(y_true, y_score, sample_weight=weight, clusters=grouped, seed=seed)
        y_prob = cross_val_predict(
            y_true, y_score, kind=score_map.kind, sample_weight=weight, clusters=grouped, seed=seed
        )
    several = bool(((~np.isnan(labels.annotations)).sum(axis=0) >= 2).any())
    columns = CalibrationColumns(
        item_ids=tuple(labels.item_ids[at] for at in index),
        y_true=y_true,
        y_grade=labels.y_grade[index],
        y_pred=np.array([score.passed for _, score in scored], dtype=np.bool_),
        y_score=y_score,
        y_prob=y_prob,
        sample_weight=weight,
        clusters=grouped,
        strata=None if labels.strata is None else tuple(labels.strata[at] for at in index),
        annotations=labels.annotations[:, index] if several else None,
        lengths=None if labels.lengths is None else labels.lengths[index],
    )
    return columns, score_map


def _levels(label_set: LabelSet, columns: CalibrationColumns) -> tuple[float, ...] | None:
    """The levels of the scale, where labels are on them: pass and fail alone are no levels."""
    return label_set.levels if len(np.unique(columns.y_grade)) > 2 else None


def _thresholds(columns: CalibrationColumns, labellers: str) -> dict[Purpose, Threshold]:
    decided = np.abs(columns.y_true - 0.5) > _ROUNDING
    if not decided.any():
        return {}
    shared: dict[str, Any] = {
        "sample_weight": columns.sample_weight[decided],
        "clusters": None
        if columns.clusters is None
        else [name for name, kept in zip(columns.clusters, decided, strict=True) if kept],
    }
    passed, score = columns.y_true[decided] > 0.5, columns.y_score[decided]
    chosen: dict[Purpose, Threshold] = {
        "gauge": choose_threshold(passed, score, purpose="gauge", **shared),
        # A bad answer that gets through costs more than a good one that is looked at.
        "triage": choose_threshold(passed, score, purpose="triage", cost=(1.0, 5.0), **shared),
        "block": choose_threshold(passed, score, purpose="block", **shared),
    }
    return {purpose: _reworded(threshold, labellers) for purpose, threshold in chosen.items()}


def _by_stratum(columns: CalibrationColumns, label_set: LabelSet) -> dict[str, ErrorRates]:
    if columns.strata is None:
        return {}
    names = np.array(columns.strata, dtype=object)
    found = {}
    for name in sorted(set(columns.strata)):
        inside = names == name
        clusters = columns.clusters
        rates = error_rates(
            columns.y_true[inside],
            columns.y_pred[inside],
            sample_weight=columns.sample_weight[inside],
            clusters=None if clusters is None else [c for c, kept in zip(clusters, inside, strict=True) if kept],
            selection=label_set.selection,
        )
        found[name] = _reworded(rates, _labellers(label_set))
    return found


def _recorded(records: Sequence[Record | None]) -> dict[str, Any]:
    """When and in which apps the labelled interactions happened; nothing where one of them does not say."""
    known = [record for record in records if record is not None]
    if len(known) < len(records):
        return {}
    moments = [record.timestamp for record in known]
    return {
        "recorded_from": min(moments),
        "recorded_to": max(moments),
        "apps": tuple(sorted({record.app for record in known})),
    }


def _cost(rows: tuple[CalibrationRow, ...]) -> JudgingCost:
    outcomes = [row.outcome for row in rows if isinstance(row.outcome, Score)]

    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    usages = [outcome.usage for outcome in outcomes]
    return JudgingCost(
        n=len(outcomes),
        prompt_tokens=mean([float(u.prompt_tokens) for u in usages if u.prompt_tokens is not None]),
        completion_tokens=mean([float(u.completion_tokens) for u in usages if u.completion_tokens is not None]),
        cost_usd=mean([u.cost_usd for u in usages if u.cost_usd is not None]),
        latency_seconds=mean([outcome.latency_seconds for outcome in outcomes if outcome.latency_seconds > 0]),
    )


def _left_out_notes(rows: tuple[CalibrationRow, ...]) -> tuple[str, ...]:
    reasons = Counter(row.left_out for row in rows if row.left_out is not None)
    said = {
        "failed": "the judge gave no verdict on {n} of {all} records ({why}): they are in no number, and a judge that "
        "fails on hard records looks better than it is",
        "not_applicable": "the rubric did not apply to {n} of {all} records ({why}): they are in no number",
        NOT_JUDGED: "{n} of {all} records were not judged: they are in no number",
    }
    notes = []
    for kind, sentence in said.items():
        found = {reason.partition(":")[2]: n for reason, n in reasons.items() if reason.partition(":")[0] == kind}
        if found:
            why = ", ".join(f"{name} {n}" for name, n in sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))
            notes.append(sentence.format(n=sum(found.values()), all=len(rows), why=why))
    return tuple(notes)


def _labellers(label_set: LabelSet) -> str:
    return "people" if label_set.annotator_kind == "human" else "the labels"


def _reworded(value: Any, labellers: str) -> Any:
    """The same report where its sentences say `people` only if people gave the labels."""
    if labellers == "people":
        return value
    if isinstance(value, str):
        return value.replace("people", labellers)
    if isinstance(value, tuple):
        return tuple(_reworded(member, labellers) for member in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: _reworded(getattr(value, f.name), labellers) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value
