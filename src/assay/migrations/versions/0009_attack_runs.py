"""What attacks on judges came to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_TEXTS = ("run_id", "rubric", "rubric_version", "rubric_hash", "judge", "judge_fingerprint", "attack_set")


def upgrade() -> None:
    """Make a table; the others stay as they are."""
    op.create_table(
        "attack_runs",
        *(sa.Column(name, sa.Text, nullable=False) for name in _TEXTS),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_attack_runs"),
    )


def downgrade() -> None:
    """Drop it, with what is in it."""
    op.drop_table("attack_runs")
