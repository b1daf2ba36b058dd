"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make every table."""
    _make_records()
    _make_labels()
    _make_evaluations()
    _make_sums()
    op.create_table(
        "dead_letters",
        sa.Column("dead_id", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("record_id", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("replayed_at", _MOMENT),
        sa.PrimaryKeyConstraint("dead_id", name="pk_dead_letters"),
    )
    op.create_index("ix_dead_letters_created_at", "dead_letters", ["created_at"])


def downgrade() -> None:
    """Drop every table."""
    for table in (
        "dead_letters",
        "counters",
        "exemplars",
        "outcome_counts",
        "totals",
        "rollups",
        "evaluations",
        "instruments",
        "series",
        "payloads",
        "records",
    ):
        op.drop_table(table)


def _make_records() -> None:
    op.create_table(
        "records",
        sa.Column("record_id", sa.Text, nullable=False),
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("route", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("prompt_version", sa.Text),
        sa.Column("trace_id", sa.Text),
        sa.Column("span_id", sa.Text),
        sa.Column("session_id", sa.Text),
        sa.Column("cohort", _JSON, nullable=False),
        sa.Column("timestamp", _MOMENT, nullable=False),
        sa.Column("probability", sa.Double, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("finish_reason", sa.Text),
        sa.Column("prompt_tokens", sa.BigInteger),
        sa.Column("completion_tokens", sa.BigInteger),
        sa.Column("cost_usd", sa.Double),
        sa.Column("latency_seconds", sa.Double),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("record_id", name="pk_records"),
        sa.CheckConstraint("probability > 0 AND probability <= 1", name=op.f("ck_records_probability")),
    )
    op.create_index("ix_records_created_at", "records", ["created_at"])
    op.create_table(
        "payloads",
        sa.Column("record_id", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("record_id", name="pk_payloads"),
        sa.ForeignKeyConstraint(["record_id"], ["records.record_id"], name="fk_payloads_record_id", ondelete="CASCADE"),
    )
    op.create_index("ix_payloads_created_at", "payloads", ["created_at"])


def _make_labels() -> None:
    op.create_table(
        "series",
        sa.Column("series_id", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("names", sa.Text, nullable=False),
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("cohort", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("series_id", name="pk_series"),
        sa.UniqueConstraint("digest", name="uq_series_digest"),
    )
    op.create_table(
        "instruments",
        sa.Column("instrument_id", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("rubric", sa.Text, nullable=False),
        sa.Column("rubric_version", sa.Text, nullable=False),
        sa.Column("rubric_hash", sa.Text, nullable=False),
        sa.Column("judge", sa.Text, nullable=False),
        sa.Column("judge_fingerprint", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("instrument_id", name="pk_instruments"),
        sa.UniqueConstraint("digest", name="uq_instruments_digest"),
    )


def _make_evaluations() -> None:
    op.create_table(
        "evaluations",
        sa.Column("record_id", sa.Text, nullable=False),
        sa.Column("evaluation_id", sa.Uuid, nullable=False),
        sa.Column("instrument_id", sa.Integer, nullable=False),
        sa.Column("series_id", sa.Integer, nullable=False),
        sa.Column("timestamp", _MOMENT, nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("passed", sa.Boolean),
        sa.Column("raw", sa.Double),
        sa.Column("label", sa.Text),
        sa.Column("explanation", sa.Text),
        sa.Column("details", _JSON),
        sa.Column("failure_kind", sa.Text),
        sa.Column("message", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("recovered_from", sa.Text),
        sa.Column("prompt_tokens", sa.BigInteger),
        sa.Column("completion_tokens", sa.BigInteger),
        sa.Column("cost_usd", sa.Double),
        sa.Column("latency_seconds", sa.Double),
        sa.Column("judge_model", sa.Text),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("record_id", "evaluation_id", name="pk_evaluations"),
        sa.ForeignKeyConstraint(
            ["record_id"], ["records.record_id"], name="fk_evaluations_record_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["instrument_id"], ["instruments.instrument_id"], name="fk_evaluations_instrument_id"),
        sa.ForeignKeyConstraint(["series_id"], ["series.series_id"], name="fk_evaluations_series_id"),
        sa.CheckConstraint("outcome IN ('scored', 'failed', 'not_applicable')", name=op.f("ck_evaluations_outcome")),
        sa.CheckConstraint(
            "(outcome = 'scored') = (value IS NOT NULL)", name=op.f("ck_evaluations_value_of_score_only")
        ),
        sa.CheckConstraint(
            "(outcome = 'scored') = (passed IS NOT NULL)", name=op.f("ck_evaluations_passed_of_score_only")
        ),
        sa.CheckConstraint(
            "(outcome = 'failed') = (failure_kind IS NOT NULL)", name=op.f("ck_evaluations_kind_of_failure_only")
        ),
        sa.CheckConstraint(
            "(outcome = 'not_applicable') = (reason IS NOT NULL)",
            name=op.f("ck_evaluations_reason_of_not_applicable_only"),
        ),
        sa.CheckConstraint("value >= 0 AND value <= 1", name=op.f("ck_evaluations_value_in_range")),
        sa.CheckConstraint("weight >= 1 AND weight <= 1e12", name=op.f("ck_evaluations_weight_in_range")),
    )
    op.create_index("ix_evaluations_timestamp", "evaluations", ["timestamp"])


def _make_sums() -> None:
    op.create_table(
        "rollups",
        sa.Column("resolution_seconds", sa.Integer, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        *_label_ids(),
        *_counts("n"),
        *_sums("sum_w", "sum_w2", "sum_wy", "sum_w2y", "sum_w2y2"),
        *_counts("passes"),
        *_sums("sum_wp", "sum_w2p"),
        *_counts("failed", "not_applicable", "recovered"),
        sa.PrimaryKeyConstraint("resolution_seconds", "start", "series_id", "instrument_id", name="pk_rollups"),
        *_label_keys("rollups"),
    )
    op.create_table(
        "totals",
        *_label_ids(),
        *_counts("scored", "failed", "not_applicable", "recovered"),
        *_sums("value_sum"),
        *_counts(*(f"bucket_{index}" for index in range(11))),
        sa.Column("prompt_tokens", sa.BigInteger),
        sa.Column("completion_tokens", sa.BigInteger),
        sa.Column("cost_usd", sa.Double),
        sa.Column("last_scored_at", sa.Double),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("series_id", "instrument_id", name="pk_totals"),
        *_label_keys("totals"),
    )
    op.create_table(
        "outcome_counts",
        *_label_ids(),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        *_counts("n"),
        sa.PrimaryKeyConstraint("series_id", "instrument_id", "outcome", "reason", name="pk_outcome_counts"),
        *_label_keys("outcome_counts"),
    )
    op.create_table(
        "exemplars",
        *_label_ids(),
        sa.Column("bucket", sa.Integer, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        *_sums("value", "timestamp"),
        sa.PrimaryKeyConstraint("series_id", "instrument_id", "bucket", name="pk_exemplars"),
        *_label_keys("exemplars"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        *_counts("n"),
        sa.PrimaryKeyConstraint("name", "label", name="pk_counters"),
    )


def _label_ids() -> list[sa.Column[int]]:
    return [sa.Column(name, sa.Integer, nullable=False) for name in ("series_id", "instrument_id")]


def _label_keys(table: str) -> list[sa.ForeignKeyConstraint]:
    return [
        sa.ForeignKeyConstraint(["series_id"], ["series.series_id"], name=f"fk_{table}_series_id"),
        sa.ForeignKeyConstraint(["instrument_id"], ["instruments.instrument_id"], name=f"fk_{table}_instrument_id"),
    ]


def _counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _sums(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Double, nullable=False) for name in names]
