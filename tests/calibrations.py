"""Calibrations for tests, made from the counts of labels that are synthetic."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from assay.calibration import Calibration, JudgingCost, agreement

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

#: (people pass and judge passes, only people, only the judge, neither)
GOOD = (85, 5, 6, 34)
#: tells good from bad, but on few labels
FEW = (22, 2, 2, 10)
#: hardly better than chance
WEAK = (50, 30, 25, 25)
#: too few fails to say anything
TOO_FEW = (30, 2, 3, 4)


def labels_of(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(what people say, what the judge says), 1 pass and 0 fail."""
    both_pass, false_fail, false_pass, both_fail = counts
    people = np.repeat([1.0, 1.0, 0.0, 0.0], counts)
    judge = np.repeat([1.0, 0.0, 1.0, 0.0], counts)
    assert len(people) == both_pass + false_fail + false_pass + both_fail
    return people, judge


def a_calibration(
    counts: Sequence[int] = GOOD,
    *,
    selection: str = "curated",
    weights: Sequence[float] | None = None,
    version: Any = None,
    **fields: Any,
) -> Calibration:
    """The calibration of a `gate.Version`, or of the instrument that `stores.an_evaluation` scores by."""
    people, judge = labels_of(counts)
    report = agreement(
        people,
        judge,
        y_score=judge,
        sample_weight=weights,
        selection=selection,
        n_resamples=50,  # type: ignore[arg-type]
    )
    instrument = {
        "rubric": "relevance",
        "rubric_version": "1-0a1b2c3d",
        "rubric_hash": "0a1b2c3d" * 8,
        "judge": "lexical",
        "judge_fingerprint": "f" * 64,
    }
    if version is not None:
        rubric = version.rubric
        instrument |= {
            "rubric": rubric.name,
            "rubric_version": rubric.revision,
            "rubric_hash": rubric.hash,
            "judge": version.judge,
            "judge_fingerprint": version.judge_fingerprint,
        }
    known: dict[str, Any] = {
        "created_at": NOON,
        "labelled_from": NOON - timedelta(days=5),
        "labelled_to": NOON - timedelta(days=2),
        "labels_sha256": "c" * 64,
        "annotator_kind": "author",
        "annotators": 1,
        "synthetic": True,
        "selection": selection,
        "gold": "majority",
        "n": len(people),
        "left_out": {},
        "rates": report.rates,
        "score_map": None,
        "thresholds": {},
        "level": report.level,
        "reasons": report.reasons,
        "min_fail_recall": 0.5,
        "kappa": report.kappa,
        "fail_recall": report.fail_recall,
        "fail_precision": report.fail_precision,
        "auc": report.auc,
        "level_half_width": report.level_half_width,
        "cost": JudgingCost(n=len(people)),
    }
    return Calibration(**(instrument | known | fields))
