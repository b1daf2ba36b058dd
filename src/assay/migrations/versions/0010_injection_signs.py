"""Records say which signs of a prompt injection their texts have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column: not known of the records that are there already."""
    op.add_column("records", sa.Column("injection_signs", sa.Text))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("records", "injection_signs")
