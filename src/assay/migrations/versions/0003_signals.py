"""Sums of signals, and distributions of the input."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make four tables; the others stay as they are."""
    op.create_table(
        "signal_rollups",
        *_keys(resolution_seconds=sa.Integer, start=sa.BigInteger, series_id=sa.Integer, signal=sa.Text, word=sa.Text),
        *_counts("n", "n_x"),
        *_sums("sum_w", "sum_w2", "sum_wx", "sum_wx2", "sum_w2x", "sum_w2x2"),
        sa.PrimaryKeyConstraint("resolution_seconds", "start", "series_id", "signal", "word", name="pk_signal_rollups"),
        sa.ForeignKeyConstraint(["series_id"], ["series.series_id"], name="fk_signal_rollups_series_id"),
    )
    op.create_table(
        "cost_rollups",
        *_keys(resolution_seconds=sa.Integer, start=sa.BigInteger, series_id=sa.Integer, instrument_id=sa.Integer),
        *_counts("n", "passes"),
        *_sums("sum_w", "sum_w2", "sum_wc", "sum_w2c2", "sum_wp", "sum_w2p", "sum_w2cp"),
        sa.PrimaryKeyConstraint("resolution_seconds", "start", "series_id", "instrument_id", name="pk_cost_rollups"),
        sa.ForeignKeyConstraint(["series_id"], ["series.series_id"], name="fk_cost_rollups_series_id"),
        sa.ForeignKeyConstraint(["instrument_id"], ["instruments.instrument_id"], name="fk_cost_rollups_instrument_id"),
    )
    op.create_table(
        "signal_versions",
        *_keys(resolution_seconds=sa.Integer, start=sa.BigInteger),
        *_counts("version"),
        sa.PrimaryKeyConstraint("resolution_seconds", "start", name="pk_signal_versions"),
    )
    op.execute("INSERT INTO signal_versions SELECT DISTINCT resolution_seconds, start, 1 FROM rollups")
    op.create_table(
        "input_bins",
        *_keys(resolution_seconds=sa.Integer, start=sa.BigInteger, app=sa.Text, feature=sa.Text, bin=sa.Integer),
        *_counts("n"),
        *_sums("sum_w", "sum_w2"),
        sa.PrimaryKeyConstraint("resolution_seconds", "start", "app", "feature", "bin", name="pk_input_bins"),
    )


def downgrade() -> None:
    """Drop them, with what is in them."""
    for table in ("input_bins", "signal_versions", "cost_rollups", "signal_rollups"):
        op.drop_table(table)


def _keys(**kinds: Any) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, autoincrement=False, nullable=False) for name, kind in kinds.items()]


def _counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _sums(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Double, nullable=False) for name in names]
