"""An evaluation as one JSON object: what a webhook is sent, and what a line of the logs holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.sinks import Annotation

#: Of the object; a new one comes with fields that mean something else, never with further fields.
VERSION = 1


def document(annotation: Annotation) -> dict[str, Any]:
    """The object; what is not known, or may not leave, is left out of it. Times are RFC 3339 in UTC."""
    whole: dict[str, Any] = {
        "event": "evaluation",
        "version": VERSION,
        "evaluation_id": str(annotation.evaluation_id),
        "record_id": annotation.record_id,
        "app": annotation.app,
        "timestamp": rfc3339(annotation.timestamp),
        "evaluated_at": rfc3339(annotation.evaluated_at),
        "trace_id": annotation.trace_id,
        "span_id": annotation.span_id,
        "session_id": annotation.session_id,
        "rubric": annotation.rubric,
        "rubric_version": annotation.rubric_version,
        "rubric_hash": annotation.rubric_hash,
        "judge": annotation.judge,
        "judge_fingerprint": annotation.judge_fingerprint,
        "judge_model": annotation.judge_model,
        "outcome": annotation.outcome,
        "value": annotation.value,
        "raw": annotation.raw,
        "passed": annotation.passed,
        "label": annotation.label,
        "explanation": annotation.explanation or None,
        "failure_kind": annotation.failure_kind,
        "message": annotation.message,
        "reason": annotation.reason,
        "defect": annotation.defect,
        "injection_signs": list(annotation.injection_signs or ()) or None,
        "calibration_state": annotation.calibration_state,
        "probability": annotation.probability,
        "cohort": dict(annotation.cohort) or None,
        "sink_refs": dict(annotation.sink_refs) or None,
        "input": annotation.input,
        "output": annotation.output,
    }
    return {name: value for name, value in whole.items() if value is not None}


def rfc3339(moment: datetime) -> str:
    """Like `2026-01-31T12:00:00.123456Z`."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
