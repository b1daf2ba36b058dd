"""One database: its connections, its transactions, and its errors as ours."""

from __future__ import annotations

import copy
import sqlite3
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from assay.echoes import Credentials
from assay.errors import MissingExtraError, SchemaError, SettingsError, StoreDataError, StoreError
from assay.store._scope import confine
from assay.store._sealing import Sealing, seal_engine
from assay.store._tables import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

    from assay.store._scope import Scope

T = TypeVar("T")

#: How long a writer waits for other writers before it gives up.
BUSY_SECONDS = 30.0

#: SQLSTATE of what a second try mends: serialization_failure, deadlock_detected, and foreign_key_violation, which means
#: that a record was purged while an evaluation of it was being stored.
_AGAIN = frozenset({"40001", "40P01", "23503"})

#: Classes of SQLSTATE that speak of the data alone: data exception, integrity constraint violation, and program limit
#: exceeded, such as a key that is too long for an index.
_DATA = ("22", "23", "54")

#: What else is refused for good: SQLite's limits, and values that a driver cannot hand over.
_UNFIT = ("Error binding parameter", "cannot adapt", "too big")

#: What SQLite calls a refusal that the data is not to blame for: a row that was deleted meanwhile, someone's trigger.
_BLAMELESS = frozenset({"SQLITE_CONSTRAINT_FOREIGNKEY", "SQLITE_CONSTRAINT_TRIGGER"})

_UPGRADE = "run `assay db upgrade`"

#: What PostgreSQL calls it (SQLSTATE), and what SQLite says: the mend.
_MENDS = (
    ("42P01", "no such table", _UPGRADE),
    ("42703", "no such column", _UPGRADE),
    ("53100", "disk is full", "free some disk space, then run `assay purge`"),
    ("25006", "readonly database", "the database, its file and its directory must be writable"),
    ("28P01", None, "check the user and the password in ASSAY_DATABASE_URL"),
    ("3D000", None, f"create the database, then {_UPGRADE}"),
    (None, "unable to open database file", "the file and its directory must be readable and writable"),
    ("53300", None, "raise max_connections, or run fewer workers"),
    (None, "file is not a database", "ASSAY_DATABASE_URL must name an SQLite file"),
    (None, "database is locked", "another process has been writing for too long"),
)


class Database:
    """An engine for a URL, and the only way to run statements on it.

    Raises:
        SettingsError: the URL is not one of a supported database.
        MissingExtraError: the driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        busy_seconds: float = BUSY_SECONDS,
        scope: Scope | None = None,
        sealing: Sealing | None = None,
    ) -> None:
        self.url = _parse(url)
        given = (self.url.password, *(self.url.query.get(name) for name in ("password", "sslpassword")))
        self._credentials = Credentials(*(str(value) for value in given if value))
        #: the apps that it is confined to; None: all
        self.scope = scope
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._busy_seconds = busy_seconds
        # SQLite has one writer at a time: threads queue here, where waiting is fair and costs nothing.
        self._writing = threading.Lock()
        options: dict[str, Any] = {} if self.is_sqlite else {"connect_args": self._keepalive(), "pool_pre_ping": True}
        # A connection for each thread of a worker, and some for bursts; the fewest possible are kept warm.
        options |= {"pool_size": 20, "max_overflow": 20, "pool_use_lifo": True}
        try:
            self.engine = sa.create_engine(self.url, hide_parameters=True, json_serializer=dumps, **options)
        except ImportError:
            raise MissingExtraError("postgres", "psycopg") from None
        if self.is_sqlite:
            event.listen(self.engine, "connect", self._set_up_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        confine(self.engine)
        seal_engine(self.engine, sealing or Sealing())

    def unconfined(self) -> Database:
        """The same database, over the same connections, of all apps."""
        whole = copy.copy(self)
        whole.scope = None
        return whole

    @property
    def name(self) -> str:
        """What to call it in messages: never with user or password."""
        if self.is_sqlite:
            return str(self.url.database).removeprefix("file:")
        port = f":{self.url.port}" if self.url.port else ""
        return f"{self.url.host or 'localhost'}{port}/{self.url.database or ''}"

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads, and sees one moment: commits are all in it or not at all.

        Raises:
            StoreError: the database is away or refuses.
            StoreDataError: it refuses what it was asked with.
        """
        self._see_file()
        with self._translated(), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            connection.execution_options(assay_scope=self.scope)
            with connection.begin():
                yield connection

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in one transaction and commit it; `work` runs again when the database says a second try helps.

        Raises:
            StoreError: the database is away or refuses; nothing was committed.
            StoreDataError: it refuses the data; nothing was committed, and the same call can never succeed.
        """
        again = Retrying(
            retry=retry_if_exception(_is_transient),
            stop=stop_after_attempt(6),
            wait=wait_random_exponential(multiplier=0.02, max=1.0),
            reraise=True,
        )
        self._see_file()
        with self._translated():
            result: T = again(self._write, work)
        return result

    def _write(self, work: Callable[[sa.Connection], T]) -> T:
        with self._turn(), self.engine.connect() as connection:
            connection.execution_options(assay_begin="BEGIN IMMEDIATE", assay_scope=self.scope)
            with connection.begin():
                return work(connection)

    def _see_file(self) -> None:
        # SQLite would make an empty file, or go on writing to one that was deleted.
        if self.is_sqlite and not Path(self.name).exists():
            raise SchemaError(f"{self.name}: there is no database yet: {_UPGRADE}")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        if not self._writing.acquire(timeout=self._busy_seconds):
            raise StoreError(f"{self.name}: other threads have been writing for {self._busy_seconds:g} s")
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (exc.DBAPIError, exc.TimeoutError) as error:
            kind = StoreDataError if _is_about_data(error) else StoreError
            raise kind(self._explain(error)) from error
        except (exc.StatementError, OverflowError, UnicodeEncodeError) as error:
            # The driver, or the type of a column, does not take a value: nothing was sent.
            raise StoreDataError(self._explain(error)) from error

    def _explain(self, error: Exception) -> str:
        origin = error.orig if isinstance(error, exc.StatementError) else error
        # The first line only: what follows may quote values.
        said = (str(origin).strip().splitlines() or [type(origin).__name__])[0]
        said = self._credentials.hidden(said)
        state = getattr(origin, "sqlstate", None)
        for code, words, mend in _MENDS:
            if (code is not None and code == state) or (words is not None and words in said):
                return f"{self.name}: {said}: {mend}"
        return f"{self.name}: {said}"

    def _keepalive(self) -> dict[str, Any]:
        """A server that vanished without a word is noticed in half a minute; what the URL says wins."""
        defaults = {
            "connect_timeout": 5,
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
            "application_name": "assay",
        }
        return {name: value for name, value in defaults.items() if name not in self.url.query}

    def _set_up_sqlite(self, connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # Transactions are begun by `_begin_sqlite` alone, not by the driver's guesses.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(self._busy_seconds * 1000)}")
        cursor.execute("PRAGMA foreign_keys = ON")
        # A commit is on the disk before its batch leaves Redis.
        cursor.execute("PRAGMA synchronous = FULL")
        # What is deleted is overwritten with zeros.
        cursor.execute("PRAGMA secure_delete = ON")
        # After a burst, such as a purge, the log's room is given back.
        cursor.execute(f"PRAGMA journal_size_limit = {64 * 1024 * 1024}")
        cursor.close()

    def create(self) -> None:
        """Make the SQLite file if there is none, and let it be read while it is written (write-ahead log).

        Raises:
            StoreError: it cannot be made.
        """
        if not self.is_sqlite:
            return
        directory = Path(self.name).parent
        try:
            # It holds texts of users: for its owner alone, and so are the files that SQLite makes beside it.
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not Path(self.name).exists():
                Path(self.name).touch(mode=0o600)
        except OSError as error:
            raise StoreError(f"{directory}: {error.strerror}: the directory must be writable") from error
        # Two processes that switch at once are refused without waiting, whatever the busy timeout.
        again = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, exc.OperationalError) and "locked" in str(error.orig)
            ),
            stop=stop_after_delay(self._busy_seconds),
            wait=wait_random_exponential(multiplier=0.02, max=0.5),
            reraise=True,
        )
        with self._translated():
            again(self._switch_to_wal)

    def _switch_to_wal(self) -> None:
        with self.engine.connect() as connection:
            connection.execution_options(assay_begin=None)
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")

    def empty_log(self) -> bool:
        """Empty SQLite's write-ahead log, which holds pages as they were; whether it could be done now.

        It waits for nobody: while others read or write, the log goes with the next call, or when the last one leaves.
        """
        if not self.is_sqlite:
            return True
        for _ in range(20):
            if self._empty_log():
                return True
            time.sleep(0.02)
        return False

    def _empty_log(self) -> bool:
        with self._turn(), self._translated(), self.engine.connect() as connection:
            connection.execution_options(assay_begin=None)
            connection.exec_driver_sql("PRAGMA busy_timeout = 0")
            try:
                busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
            except exc.OperationalError:
                busy = 1
            finally:
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(self._busy_seconds * 1000)}")
        return not busy

    def close(self) -> None:
        """Close every idle connection."""
        self.engine.dispose()


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        # Without the URL: what cannot be read cannot be cleared of its password.
        raise SettingsError(
            "ASSAY_DATABASE_URL cannot be read: write it like sqlite:///scores.db or postgresql+psycopg://user@host/name"
        ) from None
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        raise SettingsError(
            f"ASSAY_DATABASE_URL: {parsed.drivername!r} is not supported: use sqlite:/// or postgresql+psycopg://"
        )
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in {None, "", ":memory:"}:
            raise SettingsError("ASSAY_DATABASE_URL: scores must outlive the process: name a file, sqlite:///scores.db")
        if sqlite3.sqlite_version_info < (3, 35):
            raise SettingsError(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 is needed, or use PostgreSQL")
    return parsed


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that will write takes the write lock at once: one that finds out later cannot wait for it.
    begin = connection.get_execution_options().get("assay_begin", "BEGIN")
    if begin is not None:
        connection.exec_driver_sql(begin)


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, exc.DBAPIError) and getattr(error.orig, "sqlstate", None) in _AGAIN


def _is_about_data(error: exc.DBAPIError | exc.TimeoutError) -> bool:
    """Whether the database refuses what it was given, and would refuse it again."""
    if not isinstance(error, exc.DBAPIError):
        return False
    state: str | None = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return state.startswith(_DATA) and state not in _AGAIN
    if isinstance(error, exc.IntegrityError):
        return getattr(error.orig, "sqlite_errorname", None) not in _BLAMELESS
    return isinstance(error, exc.DataError) or any(words in str(error.orig) for words in _UNFIT)
