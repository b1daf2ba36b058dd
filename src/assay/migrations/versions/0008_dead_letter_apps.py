"""Dead letters say whose they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column. Of those that are kept already, it is filled from their records where those are stored."""
    op.add_column("dead_letters", sa.Column("app", sa.Text))
    op.execute(
        "UPDATE dead_letters SET app = (SELECT app FROM records WHERE records.record_id = dead_letters.record_id)"
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_column("dead_letters", "app")
