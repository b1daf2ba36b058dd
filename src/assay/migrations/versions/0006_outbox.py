"""Scores on their way to sinks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Make the outbox, empty: what was scored before goes to no sink. Records keep the ids that sinks know them by."""
    op.add_column("records", sa.Column("sink_refs", _JSON))
    op.create_table(
        "outbox",
        sa.Column("record_id", sa.Text, nullable=False),
        sa.Column("evaluation_id", sa.Uuid, nullable=False),
        sa.Column("sink", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("due_at", _MOMENT, nullable=False),
        sa.Column("claim", sa.Text),
        sa.Column("claims", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("record_id", "evaluation_id", "sink", name="pk_outbox"),
        sa.ForeignKeyConstraint(
            ["record_id", "evaluation_id"],
            ["evaluations.record_id", "evaluations.evaluation_id"],
            name="fk_outbox_record_id",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("state IN ('waiting', 'rejected')", name=op.f("ck_outbox_state")),
    )
    op.create_index("ix_outbox_due", "outbox", ["sink", "state", "due_at"])
    op.create_index("ix_outbox_age", "outbox", ["sink", "state", "created_at"])


def downgrade() -> None:
    """Drop it, with what is in it."""
    op.drop_table("outbox")
    op.drop_column("records", "sink_refs")
