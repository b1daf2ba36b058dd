"""The migrations make what the models say, from nothing, any number of times, from an installed package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import assay
from assay.errors import StoreError
from assay.store import Store, _migrate
from assay.store import _tables as tables
from stores import a_record, commit, connected, dump


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database with nothing in it."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path}/scores.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url) as store:
        yield store


def test_from_nothing_to_the_newest(store: Store) -> None:
    with pytest.raises(StoreError, match="run `assay db upgrade`"):
        store.check()
    store.upgrade()
    store.check()
    commit(store, (a_record(), 0.5))


def test_an_upgrade_of_the_newest_changes_nothing(store: Store) -> None:
    store.upgrade()
    commit(store, (a_record(), 0.5))
    before = dump(store)
    store.upgrade()
    assert dump(store) == before


def test_the_models_are_what_the_migrations_make(store: Store) -> None:
    store.upgrade()
    with connected(store) as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": tables.metadata}
        )
        assert compare_metadata(context, tables.metadata) == []


def test_constraints_and_keys_are_those_of_the_models_too(
    url: str, store: Store, request: pytest.FixtureRequest
) -> None:
    # What alembic does not compare: checks, keys, their names and what a delete does.
    store.upgrade()
    with connected(store) as connection:
        migrated = _constraints(connection)
        connection.execute(sa.text("DROP TABLE alembic_version"))
        tables.metadata.drop_all(connection)
        tables.metadata.create_all(connection)
        modelled = _constraints(connection)
    assert migrated == modelled
    assert len(migrated["evaluations"]["checks"]) == 7


def _constraints(connection: sa.Connection) -> dict[str, dict[str, object]]:
    inspector = sa.inspect(connection)
    return {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)],
            "checks": sorted((c["name"], c["sqltext"]) for c in inspector.get_check_constraints(table)),
            "key": inspector.get_pk_constraint(table),
            "foreign": sorted(map(repr, inspector.get_foreign_keys(table))),
            "unique": sorted(map(repr, inspector.get_unique_constraints(table))),
            "indexes": sorted(map(repr, inspector.get_indexes(table))),
        }
        for table in tables.metadata.tables
    }


def test_down_and_up_again(store: Store) -> None:
    store.upgrade()
    with connected(store) as connection:
        config = _migrate.alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(sa.inspect(connection).get_table_names()) <= {"alembic_version"}
    with pytest.raises(StoreError, match="there are no tables yet"):
        store.check()
    store.upgrade()
    store.check()


def test_an_interrupted_upgrade_leaves_nothing(store: Store) -> None:
    store._database.create()
    with connected(store) as connection:
        # The last table that the migration makes is there already: everything before it must go back.
        connection.execute(sa.text("CREATE TABLE dead_letters (x INTEGER)"))
    with pytest.raises(StoreError, match="already exists"):
        store.upgrade()
    with connected(store) as connection:
        assert sa.inspect(connection).get_table_names() == ["dead_letters"]
        connection.execute(sa.text("DROP TABLE dead_letters"))
    store.upgrade()
    store.check()


def test_a_database_of_a_newer_assay_is_left_alone(store: Store) -> None:
    store.upgrade()
    with connected(store) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(sa.text("UPDATE schema_support SET oldest_revision = '9998'"))
    for call in (store.check, store.upgrade):
        with pytest.raises(StoreError, match="revision 9999, which this assay does not know: install a newer assay"):
            call()


@pytest.mark.parametrize("table", [False, True])
def test_a_database_of_who_knows_what_is_left_alone(store: Store, table: bool) -> None:
    store.upgrade()
    with connected(store) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(sa.text("DELETE FROM schema_support" if table else "DROP TABLE schema_support"))
    for call in (store.check, store.upgrade):
        with pytest.raises(StoreError, match="revision 9999, which this assay does not know: install a newer assay"):
            call()


def test_a_database_of_a_newer_assay_that_serves_this_one_is_used_as_it_is(store: Store) -> None:
    store.upgrade()
    with connected(store) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    before = dump(store)
    store.check()
    store.upgrade()
    assert dump(store) == before
    commit(store, (a_record(), 0.5))


def test_a_database_of_an_older_assay_says_what_to_do(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.upgrade()
    newer = ("9999", *_migrate.revisions())
    monkeypatch.setattr(_migrate, "revisions", lambda: newer)
    with pytest.raises(StoreError, match="of an older assay: run `assay db upgrade`"):
        store.check()


def test_processes_that_upgrade_at_once_wait_for_each_other(url: str) -> None:
    script = "import sys; from assay.store import Store; s = Store(sys.argv[1]); s.upgrade(); s.check()"
    processes = [
        subprocess.Popen([sys.executable, "-c", script, url], stderr=subprocess.PIPE, text=True) for _ in range(5)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, "\n".join(errors)
    with Store(url) as store:
        store.check()
        commit(store, (a_record(), 0.5))


def test_threads_that_upgrade_at_once_wait_for_each_other(url: str) -> None:
    with Store(url) as first, Store(url) as second, ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(store.upgrade) for store in (first, second) * 4]:
            done.result(timeout=120)
        first.check()
        commit(second, (a_record(), 0.5))


def test_an_upgrade_beside_a_running_worker_disturbs_nothing(store: Store, url: str) -> None:
    store.upgrade()
    stop = threading.Event()
    committed = 0

    def work() -> None:
        nonlocal committed
        while not stop.is_set():
            commit(store, (a_record(), 0.5))
            committed += 1

    thread = threading.Thread(target=work)
    thread.start()
    with Store(url) as other:
        for _ in range(5):
            other.upgrade()
    stop.set()
    thread.join()
    commit(store, (a_record(), 0.5))
    assert store.totals()[0].scored == committed + 1


# -- the package


def test_every_revision_follows_another_and_can_be_taken_back() -> None:
    scripts = list(ScriptDirectory.from_config(_migrate.alembic_config()).walk_revisions())
    assert [script.revision for script in scripts] == list(_migrate.revisions())
    assert scripts[-1].down_revision is None
    for script in scripts:
        assert script.doc, script.path
        assert callable(script.module.upgrade)
        assert callable(script.module.downgrade)


def test_a_copy_of_the_package_upgrades_anywhere(tmp_path: Path) -> None:
    # As a wheel does: only the package's own files, somewhere else, with a % in the path.
    package = Path(assay.__file__).parent
    site = tmp_path / "100% site"
    shutil.copytree(package, site / "assay", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import assay, assay.store as a; s = a.Store('sqlite:///x.db'); s.upgrade(); s.check(); print(assay.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": ""},
    )
    assert done.stdout.strip() == str(site / "assay" / "__init__.py"), done.stderr
    assert (tmp_path / "x.db").exists()
