"""What is wrong with answers that did not pass."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_COLUMNS = ("defect", "person_defect")


def upgrade() -> None:
    """Two columns and the counts. Scores that are stored already have no class, and are not counted."""
    for name in _COLUMNS:
        op.add_column("evaluations", sa.Column(name, sa.Text))
    op.create_table(
        "defect_counts",
        sa.Column("series_id", sa.Integer, nullable=False),
        sa.Column("instrument_id", sa.Integer, nullable=False),
        sa.Column("defect", sa.Text, nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("sum_w", sa.Double, nullable=False),
        sa.Column("moved", sa.BigInteger, nullable=False),
        sa.Column("moved_sum_w", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("series_id", "instrument_id", "defect", name="pk_defect_counts"),
        sa.ForeignKeyConstraint(["series_id"], ["series.series_id"], name="fk_defect_counts_series_id"),
        sa.ForeignKeyConstraint(
            ["instrument_id"], ["instruments.instrument_id"], name="fk_defect_counts_instrument_id"
        ),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("defect_counts")
    for name in _COLUMNS:
        op.drop_column("evaluations", name)
