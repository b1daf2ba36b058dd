"""SQLite's own ways: the file, its locks, its limits; and what the store says of each."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from assay.errors import MissingExtraError, SettingsError, StoreDataError, StoreError
from assay.records import Record
from assay.store import Store
from assay.store._database import Database
from assay.store._labels import Labels
from stores import (
    EPOCH,
    HOUR_START,
    a_record,
    an_evaluation,
    assert_sums_true,
    commit,
    connected,
    dump,
    statements,
    with_payloads,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.db"


@pytest.fixture
def store(path: Path) -> Store:
    store = Store(f"sqlite:///{path}")
    store.upgrade()
    yield store
    store.close()


# -- the URL


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("mysql://u:hunter2@h/d", "'mysql' is not supported"),
        ("postgresql+psycopg2://u:hunter2@h/d", r"'postgresql\+psycopg2' is not supported"),
        ("hunter2", "cannot be read"),
        ("postgresql+psycopg://u:hunter2@h:port/d", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_wrong_url_is_named_without_its_password(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        Store(url)
    assert "ASSAY_DATABASE_URL" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_has_one_driver(scheme: str) -> None:
    database = Database(f"{scheme}://user:hunter2@db.example:5433/scores?connect_timeout=9")
    assert database.url.drivername == "postgresql+psycopg"
    assert database.name == "db.example:5433/scores"
    assert "connect_timeout" not in database._keepalive(), "what the URL says wins"
    database.close()


def test_the_driver_of_postgresql_is_an_extra() -> None:
    script = """
import sys
sys.modules["psycopg"] = None
from assay.errors import MissingExtraError
from assay.store import Store
try:
    Store("postgresql+psycopg://u:hunter2@h/d")
except MissingExtraError as error:
    print(error.extra, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("postgres psycopg is not installed: pip install 'assay[postgres]'"), done.stderr
    assert issubclass(MissingExtraError, Exception)


# -- the file


def test_the_directory_is_made(tmp_path: Path) -> None:
    path = tmp_path / "some" / "where" / "scores.db"
    with Store(f"sqlite:///{path}") as store:
        store.upgrade()
        commit(store, (a_record(), 0.5))
    assert path.stat().st_size > 0


def test_nobody_but_the_owner_can_read_it(tmp_path: Path) -> None:
    """It holds texts of users, and so do the files that SQLite makes beside it."""
    path = tmp_path / "made" / "scores.db"
    with Store(f"sqlite:///{path}") as store:
        store.upgrade()
        commit(store, (a_record(), 0.5))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"scores.db": 0o600, "scores.db-wal": 0o600, "scores.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_nothing_but_an_upgrade_makes_a_file(path: Path) -> None:
    with Store(f"sqlite:///{path}") as store:
        for call in (store.check, store.ping, store.totals, lambda: commit(store, (a_record(), 0.5))):
            with pytest.raises(StoreError, match="there is no database yet: run `assay db upgrade`"):
                call()
            assert not path.exists()


def test_a_file_that_was_deleted_is_missed(store: Store, path: Path) -> None:
    commit(store, (a_record(), 0.5))
    path.unlink()
    with pytest.raises(StoreError, match="there is no database"):
        commit(store, (a_record(), 0.5))


def test_a_file_that_cannot_be_opened_is_named(path: Path) -> None:
    path.mkdir()
    with Store(f"sqlite:///{path}") as store:
        for call in (store.upgrade, store.ping):
            with pytest.raises(StoreError, match=f"{path}: unable to open database file: .* must be readable"):
                call()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        Store(f"sqlite:///{tmp_path}/file/sub/scores.db") as store,
        pytest.raises(StoreError, match="must be writable"),
    ):
        store.upgrade()


def test_a_file_that_is_something_else_is_left_alone(path: Path) -> None:
    path.write_text("not a database, whatever its name is\n" * 100)
    before = path.read_bytes()
    with Store(f"sqlite:///{path}") as store:
        for call in (store.upgrade, store.check, store.counts):
            with pytest.raises(StoreError, match="must name an SQLite file"):
                call()
    assert path.read_bytes() == before


def test_an_empty_database_says_what_to_do(path: Path) -> None:
    sqlite3.connect(path).close()
    path.write_bytes(b"")
    with Store(f"sqlite:///{path}") as store:
        for call in (store.check, store.counts, store.totals, lambda: store.existing(["a"])):
            with pytest.raises(StoreError, match="run `assay db upgrade`"):
                call()
        with pytest.raises(StoreError, match="run `assay db upgrade`"):
            commit(store, (a_record(), 0.5))


def test_a_read_only_database_can_be_read(store: Store, path: Path) -> None:
    commit(store, (a_record(), 0.5))
    with Store(f"sqlite:///file:{path}?mode=ro&uri=true") as readonly:
        readonly.check()
        assert readonly.totals()[0].scored == 1
        assert len(readonly.rollups(EPOCH, EPOCH + 60)) == 1
        for call in (lambda: commit(readonly, (a_record(), 0.5)), lambda: readonly.mark_replayed(["a"])):
            with pytest.raises(StoreError, match="must be writable"):
                call()
    assert store.totals()[0].scored == 1


def test_a_full_database_changes_nothing_and_recovers(store: Store) -> None:
    commit(store, (a_record("first"), 0.5))
    before = dump(store)
    with connected(store) as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()

    def limit(dbapi_connection: sqlite3.Connection, _: object) -> None:
        dbapi_connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    event.listen(store._database.engine, "connect", limit)
    store.close()
    records = [a_record(str(i), output="x" * 5000) for i in range(25)]
    batch = (with_payloads(records), [an_evaluation(record, 0.5) for record in records])
    for _ in range(3):
        with pytest.raises(StoreError, match=r"disk is full: free some disk space, then run `assay purge`"):
            store.commit(*batch)
        assert dump(store) == before
    assert store.totals()[0].scored == 1, "it can still be read"
    event.remove(store._database.engine, "connect", limit)
    store.close()
    assert store.commit(*batch).inserted == 25
    assert_sums_true(store)


def test_errors_quote_no_values(store: Store) -> None:
    with connected(store) as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON payloads BEGIN SELECT RAISE(ABORT, 'refused\nsecond line'); END"
        )
    with pytest.raises(StoreError) as caught:
        commit(store, (a_record(input="the user's own words"), 0.5))
    assert str(caught.value).endswith(": refused")
    error: BaseException | None = caught.value
    while error is not None:
        assert "own words" not in str(error)
        error = error.__cause__ or error.__context__


def test_what_sqlite_cannot_hold_is_no_fault_of_the_database(store: Store) -> None:
    with pytest.raises(StoreDataError, match="too large"):
        store.rollups(0, 3600 * 2**70)
    with pytest.raises(StoreDataError, match="not supported"), store._database.read() as connection:
        connection.exec_driver_sql("SELECT ?", (object(),))

    def limited(connection: sa.Connection) -> None:
        connection.connection.driver_connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000)
        connection.exec_driver_sql("SELECT ?", ("x" * 2_000,))

    with pytest.raises(StoreDataError, match="too big"):
        store._database.write(limited)
    store.close()


def test_a_commit_is_on_the_disk(store: Store, path: Path) -> None:
    with store._database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    # A process that ends without closing anything loses nothing.
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from assay.store import Store
from stores import a_record, commit
commit(Store("sqlite:///{path}"), (a_record("r"), 0.5))
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert store.totals()[0].scored == 1


# -- one writer at a time


def test_a_writer_waits_for_another_process(store: Store, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    done = threading.Event()
    thread = threading.Thread(target=lambda: (commit(store, (a_record(), 0.5)), done.set()))
    thread.start()
    assert not done.wait(0.3)
    assert store.totals() == [], "readers do not wait"
    other.execute("COMMIT")
    assert done.wait(20)
    thread.join()
    other.close()
    assert store.totals()[0].scored == 1


def test_a_writer_that_waited_too_long_says_so(store: Store, path: Path) -> None:
    database = Database(f"sqlite:///{path}", busy_seconds=0.2)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="database is locked: another process has been writing for too long"):
        database.write(lambda connection: None)
    other.close()
    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: database.write(lambda _: (entered.set(), leave.wait(20))))
    thread.start()
    assert entered.wait(20)
    with pytest.raises(StoreError, match=r"other threads have been writing for 0\.2 s"):
        database.write(lambda connection: None)
    leave.set()
    thread.join()
    database.close()


def test_threads_take_turns(store: Store) -> None:
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for index in range(10):
                commit(store, *((a_record(f"r{thread % 4}-{index}-{i}", seconds=i), 0.5) for i in range(5)))
                store.totals()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.totals()[0].scored == 4 * 10 * 5
    assert store.counts().received == {"shop": 200}
    assert_sums_true(store)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_fork_has_connections_of_its_own(store: Store) -> None:
    commit(store, (a_record(), 0.5))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            commit(store, (a_record(), 0.5))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    commit(store, (a_record(), 0.5))
    assert store.totals()[0].scored == 3


# -- the cap, at its full size


def test_a_million_cohort_values_are_as_many_label_sets_as_the_cap_lets(store: Store) -> None:
    labels = Labels(["user"], 200)

    with statements(store) as seen:
        overflow = 0
        for first in range(0, 1_000_000, 1000):
            records = (
                Record(record_id=str(n), timestamp=HOUR_START, cohort={"user": f"user {n}"})
                for n in range(first, first + 1000)
            )
            overflow += sum(place.overflow for place in labels.places(store._database, records).values())
    assert overflow == 1_000_000 - 180
    assert store.counts().series == 181, "180 cohorts and the others of the app; the rest is kept for other apps"
    assert len(labels._sets) == 181, "nor does the memory grow"
    assert len(seen) < 250, "over the cap, a batch costs no statement"
