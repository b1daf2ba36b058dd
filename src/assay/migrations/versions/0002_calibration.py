"""Calibrations, rubric versions and label requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make three tables; the others stay as they are."""
    op.create_table(
        "calibrations",
        sa.Column("calibration_id", sa.Text, nullable=False),
        *_texts("rubric", "rubric_version", "rubric_hash", "judge", "judge_fingerprint"),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("saved_at", _MOMENT, nullable=False),
        *_texts("body", "state"),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("calibration_id", name="pk_calibrations"),
        sa.CheckConstraint("state IN ('active', 'stale')", name=op.f("ck_calibrations_state")),
        sa.CheckConstraint(
            "(state = 'stale') = (reason IS NOT NULL)", name=op.f("ck_calibrations_reason_of_stale_only")
        ),
    )
    op.create_table(
        "rubric_versions",
        *_texts("rubric", "rubric_hash", "judge_fingerprint", "rubric_version", "judge", "body", "state", "reason"),
        sa.Column("since", _MOMENT, nullable=False),
        sa.Column("activated_at", _MOMENT),
        sa.PrimaryKeyConstraint("rubric", "rubric_hash", "judge_fingerprint", name="pk_rubric_versions"),
        sa.CheckConstraint("state IN ('waiting', 'active', 'retired')", name=op.f("ck_rubric_versions_state")),
    )
    op.create_table(
        "label_requests",
        *_texts("record_id", "rubric"),
        sa.Column("probability", sa.Double, nullable=False),
        sa.Column("twice", sa.Boolean, nullable=False),
        sa.Column("picked_at", _MOMENT, nullable=False),
        sa.Column("exported_at", _MOMENT),
        sa.Column("labelled_at", _MOMENT),
        sa.PrimaryKeyConstraint("record_id", "rubric", name="pk_label_requests"),
        sa.ForeignKeyConstraint(
            ["record_id"], ["records.record_id"], name="fk_label_requests_record_id", ondelete="CASCADE"
        ),
        sa.CheckConstraint("probability > 0 AND probability <= 1", name=op.f("ck_label_requests_probability")),
    )


def downgrade() -> None:
    """Drop them, with what is in them."""
    for table in ("label_requests", "rubric_versions", "calibrations"):
        op.drop_table(table)


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]
