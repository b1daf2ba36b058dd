"""The schema. `assay.migrations` brings a database to it; a test keeps the two the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from assay.store._instruments import instrument_key_columns
from assay.store._rows import SCORE_BOUNDS
from assay.store._sealing import SealedBytes, SealedJson, SealedText

#: A record sampled with a lower probability counts as if it had this one: sums of squared weights stay finite.
LEAST_PROBABILITY = 1e-12


class Moment(sa.types.TypeDecorator[datetime]):
    """An aware time, kept in UTC; SQLite has no time zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """To UTC."""
        return None if value is None else utc(value)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """To aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


def utc(moment: datetime) -> datetime:
    """`moment` in UTC; the first or last representable moment where UTC has no such year."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return _FIRST if moment.year == 1 else _LAST


def text(value: str) -> str:
    """`value` without what a database cannot hold: NUL and half characters (lone surrogates) become U+FFFD."""
    if value.isascii():
        return value.replace("\0", "\ufffd") if "\0" in value else value
    return value.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def number(value: float | None) -> float | None:
    """`value` as a float, or None when it is not a finite number."""
    return float(value) if value is not None and math.isfinite(value) else None


def integer(value: int | None) -> int | None:
    """`value`, or None when it does not fit 64 bits."""
    return value if value is not None and -(2**63) <= value < 2**63 else None


def dumps(value: object) -> str:
    """JSON that any database takes: no NaN, no NUL, no half characters; moments and ids as text, bytes as in SQL."""
    try:
        encoded = _encode(value)
        encoded.encode()
    except ValueError:  # NaN or infinity; a lone surrogate raises its subclass UnicodeEncodeError
        return _encode(_plain(value))
    # The escape of NUL, or a text that only looks like it: then the second pass changes nothing.
    return _encode(_plain(value)) if "\\u0000" in encoded else encoded


#: Moments above all are of many rows. In UTC alone: elsewhere two that are equal may be an hour apart.
_worded = lru_cache(maxsize=1024)(str)


def _as_text(value: object) -> object:
    if isinstance(value, datetime):
        return _worded(value) if value.tzinfo is UTC else str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)


#: One for all: to make it takes longer than most of what it encodes.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_as_text).encode


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return {text(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(item) for item in value]
    return value


_Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

records = sa.Table(
    "records",
    metadata,
    sa.Column("record_id", sa.Text, primary_key=True),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("route", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("prompt_version", sa.Text),
    sa.Column("trace_id", sa.Text),
    sa.Column("span_id", sa.Text),
    sa.Column("session_id", sa.Text),
    sa.Column("cohort", _Json, nullable=False),
    sa.Column("timestamp", Moment, nullable=False),
    sa.Column("probability", sa.Double, nullable=False),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("finish_reason", sa.Text),
    sa.Column("prompt_tokens", sa.BigInteger),
    sa.Column("completion_tokens", sa.BigInteger),
    sa.Column("cost_usd", sa.Double),
    sa.Column("latency_seconds", sa.Double),
    sa.Column("created_at", Moment, nullable=False, index=True),
    #: ids that other systems know the interaction by; their texts may be purged before it is written to all sinks
    sa.Column("sink_refs", _Json),
    #: signs of a prompt injection in its texts, joined by commas; "" for none, NULL where nobody looked (before 0010)
    sa.Column("injection_signs", sa.Text),
    sa.CheckConstraint("probability > 0 AND probability <= 1", name="probability"),
)

#: The texts, apart from all else because they are purged first.
payloads = sa.Table(
    "payloads",
    metadata,
    sa.Column(
        "record_id", sa.Text, sa.ForeignKey("records.record_id", ondelete="CASCADE"), primary_key=True, nullable=False
    ),
    sa.Column("payload", SealedText, nullable=False),
    sa.Column("created_at", Moment, nullable=False, index=True),
)

#: Label sets: an app and the declared cohort labels. `digest` is of both, `names` says which labels were declared.
series = sa.Table(
    "series",
    metadata,
    sa.Column("series_id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("names", sa.Text, nullable=False),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("cohort", _Json, nullable=False),
)

#: What measured: one revision of a rubric, asked of one configuration of a judge.
instruments = sa.Table(
    "instruments",
    metadata,
    sa.Column("instrument_id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("rubric", sa.Text, nullable=False),
    sa.Column("rubric_version", sa.Text, nullable=False),
    sa.Column("rubric_hash", sa.Text, nullable=False),
    sa.Column("judge", sa.Text, nullable=False),
    sa.Column("judge_fingerprint", sa.Text, nullable=False),
)

#: The record comes first in the key so that the evaluations of one record lie together. `timestamp`, `weight` and
#: `series_id` are what they counted with: the rollups can be made again from this table alone.
evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("record_id", sa.Text, sa.ForeignKey("records.record_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("evaluation_id", sa.Uuid, primary_key=True),
    sa.Column("instrument_id", sa.Integer, sa.ForeignKey("instruments.instrument_id"), nullable=False),
    sa.Column("series_id", sa.Integer, sa.ForeignKey("series.series_id"), nullable=False),
    sa.Column("timestamp", Moment, nullable=False),
    sa.Column("weight", sa.Double, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("value", sa.Double),
    sa.Column("passed", sa.Boolean),
    sa.Column("raw", sa.Double),
    sa.Column("label", sa.Text),
    sa.Column("explanation", SealedText),
    sa.Column("details", SealedJson),
    sa.Column("failure_kind", sa.Text),
    sa.Column("message", SealedText),
    sa.Column("reason", sa.Text),
    #: kind of the stored failure that this outcome took the place of
    sa.Column("recovered_from", sa.Text),
    sa.Column("prompt_tokens", sa.BigInteger),
    sa.Column("completion_tokens", sa.BigInteger),
    sa.Column("cost_usd", sa.Double),
    sa.Column("latency_seconds", sa.Double),
    sa.Column("judge_model", sa.Text),
    sa.Column("created_at", Moment, nullable=False),
    #: what is wrong with an answer that did not pass, as its judge named it
    sa.Column("defect", sa.Text),
    #: the same, as a person set it: it wins
    sa.Column("person_defect", sa.Text),
    sa.CheckConstraint("outcome IN ('scored', 'failed', 'not_applicable')", name="outcome"),
    sa.CheckConstraint("(outcome = 'scored') = (value IS NOT NULL)", name="value_of_score_only"),
    sa.CheckConstraint("(outcome = 'scored') = (passed IS NOT NULL)", name="passed_of_score_only"),
    sa.CheckConstraint("(outcome = 'failed') = (failure_kind IS NOT NULL)", name="kind_of_failure_only"),
    sa.CheckConstraint("(outcome = 'not_applicable') = (reason IS NOT NULL)", name="reason_of_not_applicable_only"),
    # PostgreSQL holds NaN above every number, so this refuses it too; SQLite makes it NULL.
    sa.CheckConstraint("value >= 0 AND value <= 1", name="value_in_range"),
    sa.CheckConstraint("weight >= 1 AND weight <= 1e12", name="weight_in_range"),
    # For the worst scores of a time span.
    sa.Index("ix_evaluations_timestamp", "timestamp"),
)


def _sum(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _key(name: str, target: str | None = None, kind: Any = sa.Integer) -> sa.Column[Any]:
    # Never numbered by the database, whatever the column's place in the key.
    extra = [sa.ForeignKey(target)] if target else []
    return sa.Column(name, kind, *extra, primary_key=True, autoincrement=False)


#: Sums of one minute (resolution 60) or one hour (3600) of the interactions' own time; `start` is epoch seconds.
rollups = sa.Table(
    "rollups",
    metadata,
    _key("resolution_seconds"),
    _key("start", kind=sa.BigInteger),
    _key("series_id", "series.series_id"),
    _key("instrument_id", "instruments.instrument_id"),
    _count("n"),
    _sum("sum_w"),
    _sum("sum_w2"),
    _sum("sum_wy"),
    _sum("sum_w2y"),
    _sum("sum_w2y2"),
    _count("passes"),
    _sum("sum_wp"),
    _sum("sum_w2p"),
    _count("failed"),
    _count("not_applicable"),
    _count("recovered"),
)

#: Sums since ever: the exporter's counters and histograms.
totals = sa.Table(
    "totals",
    metadata,
    _key("series_id", "series.series_id"),
    _key("instrument_id", "instruments.instrument_id"),
    _count("scored"),
    _count("failed"),
    _count("not_applicable"),
    _count("recovered"),
    _sum("value_sum"),
    *(_count(f"bucket_{index}") for index in range(len(SCORE_BOUNDS))),
    sa.Column("prompt_tokens", sa.BigInteger),
    sa.Column("completion_tokens", sa.BigInteger),
    sa.Column("cost_usd", sa.Double),
    # epoch seconds
    sa.Column("last_scored_at", sa.Double),
    sa.Column("updated_at", sa.Double, nullable=False),
)

#: `totals.failed` by kind and `totals.not_applicable` by reason.
outcome_counts = sa.Table(
    "outcome_counts",
    metadata,
    _key("series_id", "series.series_id"),
    _key("instrument_id", "instruments.instrument_id"),
    _key("outcome", kind=sa.Text),
    _key("reason", kind=sa.Text),
    _count("n"),
)

#: The latest traced record of each bucket.
exemplars = sa.Table(
    "exemplars",
    metadata,
    _key("series_id", "series.series_id"),
    _key("instrument_id", "instruments.instrument_id"),
    _key("bucket"),
    sa.Column("trace_id", sa.Text, nullable=False),
    sa.Column("value", sa.Double, nullable=False),
    # epoch seconds
    sa.Column("timestamp", sa.Double, nullable=False),
)

#: Every other counter: (received, app), (duplicates, ""), (series_overflow, ""), (dead_kept | dead_total, reason).
counters = sa.Table(
    "counters",
    metadata,
    _key("name", kind=sa.Text),
    _key("label", kind=sa.Text),
    _count("n"),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("dead_id", sa.Text, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("message", SealedText, nullable=False),
    sa.Column("payload", SealedBytes, nullable=False),
    sa.Column("record_id", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at", Moment, nullable=False, index=True),
    sa.Column("replayed_at", Moment),
    #: the app that it names, where it names one
    sa.Column("app", sa.Text),
)

#: What labels said about a judge under a rubric: `body` is the text of `assay.calibration.Calibration`, whose own id is
#: the key. `saved_at` is when it was last saved: the latest of a rubric hash and a fingerprint is the one that counts.
calibrations = sa.Table(
    "calibrations",
    metadata,
    sa.Column("calibration_id", sa.Text, primary_key=True),
    sa.Column("rubric", sa.Text, nullable=False),
    sa.Column("rubric_version", sa.Text, nullable=False),
    sa.Column("rubric_hash", sa.Text, nullable=False),
    sa.Column("judge", sa.Text, nullable=False),
    sa.Column("judge_fingerprint", sa.Text, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("saved_at", Moment, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    #: why it is stale
    sa.Column("reason", sa.Text),
    sa.CheckConstraint("state IN ('active', 'stale')", name="state"),
    sa.CheckConstraint("(state = 'stale') = (reason IS NOT NULL)", name="reason_of_stale_only"),
)

#: Rubrics as they were asked of a judge, so that an old one can go on while a new one waits for its calibration.
rubric_versions = sa.Table(
    "rubric_versions",
    metadata,
    *instrument_key_columns(),
    #: JSON: the fields of the rubric file, with the judge written out
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    #: why it is in that state
    sa.Column("reason", sa.Text, nullable=False),
    #: in that state since then
    sa.Column("since", Moment, nullable=False),
    #: when it last became active
    sa.Column("activated_at", Moment),
    sa.CheckConstraint("state IN ('waiting', 'active', 'retired')", name="state"),
)

#: Records picked for people to label under a rubric, with the probability that they were picked with.
label_requests = sa.Table(
    "label_requests",
    metadata,
    sa.Column("record_id", sa.Text, sa.ForeignKey("records.record_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("rubric", sa.Text, primary_key=True),
    sa.Column("probability", sa.Double, nullable=False),
    #: a second person should label it too
    sa.Column("twice", sa.Boolean, nullable=False),
    sa.Column("picked_at", Moment, nullable=False),
    sa.Column("exported_at", Moment),
    sa.Column("labelled_at", Moment),
    sa.CheckConstraint("probability > 0 AND probability <= 1", name="probability"),
)

#: One row: the oldest assay, named by its newest revision, that these tables serve. A migration that takes away what
#: older ones need moves it on.
schema_support = sa.Table("schema_support", metadata, sa.Column("oldest_revision", sa.Text, primary_key=True))
