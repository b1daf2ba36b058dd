"""Which older assays the tables still serve."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One row: an assay whose newest revision is this one or a later one may go on with the tables as they are."""
    op.create_table(
        "schema_support",
        sa.Column("oldest_revision", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("oldest_revision", name="pk_schema_support"),
    )
    op.execute("INSERT INTO schema_support (oldest_revision) VALUES ('0006')")


def downgrade() -> None:
    """Drop it: older assays did not ask."""
    op.drop_table("schema_support")
