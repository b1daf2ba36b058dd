"""What goes into the store and what comes out of it, as plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping
    from datetime import datetime

    from assay.records import Evaluation, FailureKind, Usage
    from assay.sinks import Annotation

OutcomeName = Literal["scored", "failed", "not_applicable"]

#: stale: an audit has found that it holds no more.
CalibrationState = Literal["active", "stale"]

#: waiting: no record is scored with it, a bridge's share aside. retired: another took its place.
VersionState = Literal["waiting", "active", "retired"]

#: Upper bounds (inclusive) of the histogram of score values; the last one holds every value, as values end at 1.
SCORE_BOUNDS: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is known of one evaluation; `kind` only when it failed."""

    outcome: OutcomeName
    kind: FailureKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What one commit changed."""

    #: records not stored before
    inserted_records: int
    #: evaluations not stored before
    inserted: int
    #: evaluations stored already, left as they were
    duplicates: int
    #: stored failures that a later verdict took the place of
    recovered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """Something that could not be processed, kept as it came. The same `dead_id` is kept once."""

    #: chosen by the caller, 1 to 64 characters; derived from the content, so that a repeat is known as one
    dead_id: str
    #: `invalid`, `too_large`, ..., a failure kind, or `crashed`
    reason: str
    message: str
    #: the bytes that came, whatever they are
    payload: bytes
    record_id: str | None = None
    attempts: int = 1
    #: set by the store; aware, UTC
    created_at: datetime | None = None
    #: when it was put back on the queue, None while it waits
    replayed_at: datetime | None = None
    #: the app that it names, where it names one
    app: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollup:
    """Sums over the scored records of a window, for one label set and instrument (rubric hash, judge fingerprint).

    Weight w, value y in [0, 1], p = 1 if passed.

    The sums have the names that `assay.windows.Sums` takes.
    """

    app: str
    #: exactly the declared cohort labels; "" where the record had none, "other" over the cap
    cohort: Mapping[str, str]
    rubric: str
    rubric_version: str
    judge: str
    #: two judges of one name have two fingerprints; so label sets may come more than once
    rubric_hash: str
    judge_fingerprint: str
    n: int
    sum_w: float
    sum_w2: float
    sum_wy: float
    sum_w2y: float
    sum_w2y2: float
    passes: int
    sum_wp: float
    sum_w2p: float
    #: failures stored, those that were recovered later included
    failed: int
    not_applicable: int
    #: failures that a later verdict took the place of; it is counted in `scored` or `not_applicable` as well
    recovered: int

    @property
    def scored(self) -> int:
        """Scored evaluations, unweighted; the same as `n`."""
        return self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplar:
    """The latest traced record of one bucket of the histogram."""

    trace_id: str
    #: score value in [0, 1]
    value: float
    #: time of the interaction, epoch seconds
    timestamp: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Everything ever counted for one label set: these numbers only grow.

    Stored evaluations = scored + failed + not_applicable - recovered.
    """

    app: str
    cohort: Mapping[str, str]
    rubric: str
    rubric_version: str
    judge: str
    scored: int
    failed: int
    not_applicable: int
    recovered: int
    #: sum of the score values
    value_sum: float
    #: scored evaluations per bucket of `SCORE_BOUNDS`, each counted in one bucket only
    buckets: tuple[int, ...]
    #: `failed` by kind
    failures: Mapping[str, int]
    #: `not_applicable` by reason
    reasons: Mapping[str, int]
    #: by index of the bucket
    exemplars: Mapping[int, Exemplar]
    #: what the stored evaluations cost
    usage: Usage
    #: when the last score was committed, epoch seconds; None before the first
    last_scored_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Everything else that is counted."""

    #: distinct records stored ever, by app
    received: Mapping[str, int] = field(default_factory=dict)
    #: deliveries of records that brought nothing new
    duplicates: int = 0
    #: label sets made (app and cohort labels): at most `max_series` for each set of declared labels
    series: int = 0
    #: records that came after the cap was reached and count as "other"
    series_overflow: int = 0
    #: dead letters that wait, by reason
    dead_kept: Mapping[str, int] = field(default_factory=dict)
    #: dead letters ever, by reason
    dead_total: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A stored score with the record it is of."""

    record_id: str
    app: str
    timestamp: datetime
    trace_id: str | None
    #: the record's wire form, None once its text was purged
    payload: str | None
    evaluation: Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCalibration:
    """What labels said about a judge under a rubric, as it was saved. `assay.calibration.Calibration` reads `body`."""

    calibration_id: str
    rubric: str
    rubric_version: str
    rubric_hash: str
    judge: str
    judge_fingerprint: str
    #: when it was first made; aware, UTC
    created_at: datetime
    #: JSON text; "" where only the rest was asked for
    body: str
    state: CalibrationState = "active"
    #: why it is stale
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricVersion:
    """A rubric as it was asked of a judge, and whether it is asked now."""

    rubric: str
    rubric_version: str
    rubric_hash: str
    judge: str
    judge_fingerprint: str
    #: JSON text: the fields of the rubric file, with the judge written out
    body: str
    state: VersionState
    #: why it is in that state, one sentence
    reason: str
    #: in that state since then; set by the store; aware, UTC
    since: datetime | None = None
    #: when it last became active, None if it never was; set by the store; aware, UTC
    activated_at: datetime | None = None


class StoredVerdict(NamedTuple):
    """What a judge made of a record."""

    passed: bool
    #: with which it was judged, once it was sampled, in (0, 1]
    judged_with: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCandidate:
    """A scored record whose text is still there, so that people can label it."""

    record_id: str
    app: str
    session_id: str | None
    timestamp: datetime
    #: with which it was sampled for judging, in (0, 1]
    probability: float
    #: with which it was judged, once it was sampled, in (0, 1]: below 1 behind a cascade, or near a budget's cap
    judged_with: float
    rubric_version: str
    rubric_hash: str
    judge: str
    judge_fingerprint: str
    #: the judge's score in [0, 1]
    value: float
    passed: bool
    explanation: str
    #: the record's wire form; "" where only the rest was asked for
    payload: str
    #: with which it was picked for labelling, None when it was not
    picked_with: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRequest:
    """A record that was picked for people to label under a rubric."""

    record_id: str
    rubric: str
    #: with which it was judged and picked, in (0, 1]: the label weighs 1 / (this x the record's own)
    probability: float
    #: a second person should label it too
    twice: bool = False
    #: these are set by the store; aware, UTC
    picked_at: datetime | None = None
    exported_at: datetime | None = None
    labelled_at: datetime | None = None


#: What came of trying a sink. skipped: there is nothing to attach it to. rejected, expired: set aside.
WriteOutcome = Literal["delivered", "retried", "rejected", "expired", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """Something that is owed to a sink, in the hands of the caller until the claim ends."""

    #: all that is stored of it, without calibration state and texts
    annotation: Annotation
    #: the record's wire form, None once its text was purged
    payload: str | None
    #: times that the sink was tried so far
    attempts: int
    #: when it was owed first; aware, UTC
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What came of something claimed."""

    outcome: WriteOutcome
    reason: str = ""
    #: of a retried one: when it may be tried again; aware
    due_at: datetime | None = None
    #: whether the sink was tried, which is counted
    counts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """Something that is owed to a sink, for a person to look at. Times are aware and in UTC."""

    evaluation_id: uuid.UUID
    record_id: str
    sink: str
    state: Literal["waiting", "rejected"]
    #: of a waiting one: when it is tried (again), or the claim on it ends; of one set aside: since when
    due_at: datetime
    attempts: int
    reason: str | None
    created_at: datetime
    app: str
    rubric: str
    judge: str
    outcome: OutcomeName
    value: float | None
    trace_id: str | None
    span_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxDepth:
    """What is owed to one sink, and everything that was ever written to it."""

    waiting: int
    #: set aside: refused, or over the deadline
    rejected: int
    #: when the oldest waiting one was owed first; aware, UTC
    oldest_at: datetime | None
    #: evaluations by what came of each try, ever
    writes: Mapping[WriteOutcome, int] = field(default_factory=dict)
