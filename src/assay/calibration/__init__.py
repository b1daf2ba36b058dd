"""Statistics of calibration: how far a judge can be trusted by human labels, and what its gauge reads once corrected.

numpy only. Arrays in, small frozen dataclasses out; labels come before scores (`y_true` first). What is undefined is
None with a reason, never NaN. Every random step takes a seed, so the same input gives the same digits. No I/O but the
artefact's own file.
docs/explanation/calibration.md says why it is done this way.
"""

from __future__ import annotations

from assay.calibration.annotators import (
    AltTest,
    Ceiling,
    Gold,
    alt_test,
    benjamini_yekutieli,
    gold_labels,
    human_ceiling,
)
from assay.calibration.artefact import CALIBRATION_VERSION, Calibration, JudgingCost
from assay.calibration.audit import Audit, audit, predict_labels
from assay.calibration.compare import Comparison, Difference, compare
from assay.calibration.decision import Corrected, Method, State, correct
from assay.calibration.drift import CanaryResult, Cause, EDetector, attribute, canary_compare
from assay.calibration.label_sampling import Pick, label_probabilities, pick_for_humans
from assay.calibration.level import LEVELS, Level, Need
from assay.calibration.rates import Cell, Counts, ErrorRates, Selection, error_rates
from assay.calibration.report import AgreementReport, agreement
from assay.calibration.score_map import ScoreMap, cross_val_predict, fit_score_map
from assay.calibration.statistic import Statistic
from assay.calibration.threshold import Purpose, Threshold, choose_threshold

__all__ = [
    "CALIBRATION_VERSION",
    "LEVELS",
    "AgreementReport",
    "AltTest",
    "Audit",
    "Calibration",
    "CanaryResult",
    "Cause",
    "Ceiling",
    "Cell",
    "Comparison",
    "Corrected",
    "Counts",
    "Difference",
    "EDetector",
    "ErrorRates",
    "Gold",
    "JudgingCost",
    "Level",
    "Method",
    "Need",
    "Pick",
    "Purpose",
    "ScoreMap",
    "Selection",
    "State",
    "Statistic",
    "Threshold",
    "agreement",
    "alt_test",
    "attribute",
    "audit",
    "benjamini_yekutieli",
    "canary_compare",
    "choose_threshold",
    "compare",
    "correct",
    "cross_val_predict",
    "error_rates",
    "fit_score_map",
    "gold_labels",
    "human_ceiling",
    "label_probabilities",
    "pick_for_humans",
    "predict_labels",
]
