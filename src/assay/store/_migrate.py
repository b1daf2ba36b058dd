"""Brings a database to the schema of this version, and tells whether it is there."""

from __future__ import annotations

import threading
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import sqlalchemy as sa
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from assay.errors import SchemaError, StoreError
from assay.store._tables import schema_support

if TYPE_CHECKING:
    from alembic.config import Config

    from assay.store._database import Database

#: One process at a time changes the schema (PostgreSQL).
_LOCK = 0x617373_6179_02
#: And one thread of it: alembic's `op` belongs to the whole process.
_one_at_a_time = threading.Lock()
#: A change of a table waits this long for those that use it, and they behind it; then it lets them go on, and comes
#: again (PostgreSQL).
_LOCK_TIMEOUT_SECONDS = 2
_GIVE_UP_SECONDS = 300
#: Alembic's own.
_version = sa.table("alembic_version", sa.column("version_num", sa.Text))


def upgrade(database: Database) -> None:
    """See `Store.upgrade`. All of it is one transaction, so an interrupted upgrade leaves nothing behind."""
    from alembic import command

    def work(connection: sa.Connection) -> None:
        # SQLite: this transaction holds the write lock already, and the next process waits for it.
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_SECONDS}s'"))
        revision = current(connection)
        if revision is not None and revision not in revisions():
            _see_support(database, connection, revision)
            return
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    database.create()
    again = Retrying(
        retry=retry_if_exception(_is_lock_timeout),
        stop=stop_after_delay(_GIVE_UP_SECONDS),
        wait=wait_random(0.1, 1.0),
        reraise=True,
    )
    with _one_at_a_time:
        again(database.write, work)


def check(database: Database) -> None:
    """See `Store.check`."""
    known = revisions()
    with database.read() as connection:
        revision = current(connection)
        if revision is None:
            raise SchemaError(f"{database.name}: there are no tables yet: run `assay db upgrade`")
        if revision not in known:
            _see_support(database, connection, revision)
        elif revision != known[0]:
            raise SchemaError(f"{database.name}: the tables are those of an older assay: run `assay db upgrade`")


def _see_support(database: Database, connection: sa.Connection, revision: str) -> None:
    """A newer assay has been here: may this one go on? Its migrations only add, until one of them says otherwise."""
    oldest = None
    if sa.inspect(connection).has_table(schema_support.name):
        oldest = connection.execute(sa.select(schema_support.c.oldest_revision)).scalar()
    if oldest not in revisions():
        raise SchemaError(
            f"{database.name}: the tables are of revision {revision}, which this assay does not know: "
            "install a newer assay"
        )


def _is_lock_timeout(error: BaseException) -> bool:
    origin = getattr(error.__cause__, "orig", None) if isinstance(error, StoreError) else None
    return getattr(origin, "sqlstate", None) == "55P03"


def current(connection: sa.Connection) -> str | None:
    """The revision that the database is at, None when it has no tables."""
    if not sa.inspect(connection).has_table(_version.name):
        return None
    return connection.execute(sa.select(_version.c.version_num)).scalar()


@cache
def revisions() -> tuple[str, ...]:
    """Every revision that this version knows, newest first.

    A migration's file begins with it. Every command asks, and alembic, which would know too, takes a tenth of a second
    to import.
    """
    files = (resources.files("assay") / "migrations" / "versions").iterdir()
    numbers = (file.name.partition("_")[0] for file in files if file.name.endswith(".py"))
    return tuple(sorted((number for number in numbers if number.isdigit()), reverse=True))


def alembic_config() -> Config:
    """Alembic's configuration, without a file: the scripts are in the package."""
    from alembic.config import Config

    config = Config()
    where = str(resources.files("assay") / "migrations")
    config.set_main_option("script_location", where.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
