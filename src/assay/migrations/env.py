"""Run by alembic for each upgrade. The connection and its transaction are the caller's."""

from __future__ import annotations

from alembic import context

from assay.store._tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
context.run_migrations()
