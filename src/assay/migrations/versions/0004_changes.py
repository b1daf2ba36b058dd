"""Change detectors, canary runs and their events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_INSTRUMENT = ("rubric", "rubric_version", "rubric_hash", "judge", "judge_fingerprint")
_VERDICTS = "('none', 'product', 'judge', 'unknown')"


def upgrade() -> None:
    """Make five tables; the others stay as they are."""
    _make_detectors()
    op.create_table(
        "change_events",
        *_texts("event_id", "kind", *_INSTRUMENT),
        sa.Column("series_id", sa.Integer),
        sa.Column("instrument_id", sa.Integer),
        *_texts("app", "cohort"),
        sa.Column("happened_at", _MOMENT, nullable=False),
        sa.Column("noted_at", _MOMENT, nullable=False),
        *_texts("message", "details"),
        sa.Column("verdict", sa.Text),
        sa.Column("resolved_at", _MOMENT),
        sa.Column("resolution", sa.Text),
        sa.Column("acknowledged_at", _MOMENT),
        sa.Column("note", sa.Text),
        sa.PrimaryKeyConstraint("event_id", name="pk_change_events"),
        sa.CheckConstraint(
            "(resolved_at IS NULL) = (resolution IS NULL)", name=op.f("ck_change_events_resolution_of_resolved_only")
        ),
    )
    op.create_index("ix_change_events_noted_at", "change_events", ["noted_at"])
    op.create_table(
        "drift_verdicts",
        *_texts("rubric", "rubric_hash", "judge_fingerprint", "rubric_version", "judge", "verdict", "reason"),
        sa.Column("since", _MOMENT, nullable=False),
        sa.Column("canary_until", _MOMENT),
        sa.PrimaryKeyConstraint("rubric", "rubric_hash", "judge_fingerprint", name="pk_drift_verdicts"),
        sa.CheckConstraint(f"verdict IN {_VERDICTS}", name=op.f("ck_drift_verdicts_verdict")),
    )
    op.create_table(
        "canary_runs",
        *_texts("run_id", *_INSTRUMENT),
        sa.Column("started_at", _MOMENT, nullable=False),
        sa.Column("finished_at", _MOMENT, nullable=False),
        *_texts("cause"),
        sa.Column("baseline", sa.Boolean, nullable=False),
        *_texts("body"),
        sa.Column("spent_usd", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_canary_runs"),
        sa.CheckConstraint(f"cause IN {_VERDICTS}", name=op.f("ck_canary_runs_cause")),
    )
    op.create_index("ix_canary_runs_finished_at", "canary_runs", ["finished_at"])


def _make_detectors() -> None:
    op.create_table(
        "change_watch",
        *_texts("name"),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("started_at", _MOMENT, nullable=False),
        sa.Column("updated_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_change_watch"),
    )
    op.create_table(
        "change_streams",
        sa.Column("series_id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("instrument_id", sa.Integer, nullable=False, autoincrement=False),
        *_texts("phase", "state"),
        *(sa.Column(name, sa.Double) for name in ("evidence", "threshold", "reference")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("records", "kept", "late", "earlier")),
        sa.Column("last_at", _MOMENT),
        sa.PrimaryKeyConstraint("series_id", "instrument_id", name="pk_change_streams"),
        sa.ForeignKeyConstraint(["series_id"], ["series.series_id"], name="fk_change_streams_series_id"),
        sa.ForeignKeyConstraint(
            ["instrument_id"], ["instruments.instrument_id"], name="fk_change_streams_instrument_id"
        ),
        sa.CheckConstraint(
            "phase IN ('learning', 'watching', 'alarmed', 'ended')", name=op.f("ck_change_streams_phase")
        ),
    )


def downgrade() -> None:
    """Drop them, with what is in them."""
    for table in ("canary_runs", "drift_verdicts", "change_events", "change_streams", "change_watch"):
        op.drop_table(table)


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]
