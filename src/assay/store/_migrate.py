"""Brings a database to the schema of this version, and tells whether it is there."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import sqlalchemy as sa

from assay.errors import SchemaError

if TYPE_CHECKING:
    from alembic.config import Config

    from assay.store._database import Database

#: One process at a time changes the schema (PostgreSQL).
_LOCK = 0x617373_6179_02


def upgrade(database: Database) -> None:
    """See `Store.upgrade`. All of it is one transaction, so an interrupted upgrade leaves nothing behind."""
    from alembic import command

    def work(connection: sa.Connection) -> None:
        # SQLite: this transaction holds the write lock already, and the next process waits for it.
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        revision = current(connection)
        if revision is not None and revision not in revisions():
            raise _too_new(database, revision)
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    database.create()
    database.write(work)


def check(database: Database) -> None:
    """See `Store.check`."""
    with database.read() as connection:
        revision = current(connection)
    known = revisions()
    if revision is None:
        raise SchemaError(f"{database.name}: there are no tables yet: run `assay db upgrade`")
    if revision not in known:
        raise _too_new(database, revision)
    if revision != known[0]:
        raise SchemaError(f"{database.name}: the tables are those of an older assay: run `assay db upgrade`")


def current(connection: sa.Connection) -> str | None:
    """The revision that the database is at, None when it has no tables."""
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


@cache
def revisions() -> tuple[str, ...]:
    """Every revision that this version knows, newest first."""
    from alembic.script import ScriptDirectory

    return tuple(script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions())


def alembic_config() -> Config:
    """Alembic's configuration, without a file: the scripts are in the package."""
    from alembic.config import Config

    config = Config()
    where = str(resources.files("assay") / "migrations")
    config.set_main_option("script_location", where.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _too_new(database: Database, revision: str) -> SchemaError:
    return SchemaError(
        f"{database.name}: the tables are of revision {revision}, which this assay does not know: install a newer assay"
    )
