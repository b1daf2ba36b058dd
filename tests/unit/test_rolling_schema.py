"""A release may be rolled out under load: the tables of the next one serve the workers of the one before."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command

from assay.store import Store, _migrate
from stores import a_record, commit, connected

DATA = Path(__file__).parents[1] / "data" / "schema"


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


def migrate(store: Store, revision: str) -> None:
    def work(connection: sa.Connection) -> None:
        config = _migrate.alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    store._database.create()
    store._database.write(work)


# -- migrations only add


def shape(connection: sa.Connection) -> dict[str, dict[str, Any]]:
    """What statements of an assay can depend on, or stumble over."""
    inspector = sa.inspect(connection)
    found = {}
    for table in inspector.get_table_names():
        if table == "alembic_version":
            continue
        found[table] = {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], column["default"] is not None)
                for column in inspector.get_columns(table)
            },
            "key": tuple(inspector.get_pk_constraint(table)["constrained_columns"]),
            "checks": {check["sqltext"] for check in inspector.get_check_constraints(table)},
            "unique": {tuple(sorted(unique["column_names"])) for unique in inspector.get_unique_constraints(table)}
            | {tuple(sorted(i["column_names"])) for i in inspector.get_indexes(table) if i["unique"]},
            "foreign": {tuple(key["constrained_columns"]) for key in inspector.get_foreign_keys(table)},
        }
    return found


def obstacles(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """Why an assay that knows the tables `old` cannot work on `new`."""
    found = [f"{table} is gone" for table in old if table not in new]
    for table in old.keys() & new.keys():
        before, after = old[table], new[table]
        for name, (kind, nullable, _) in before["columns"].items():
            if name not in after["columns"]:
                found.append(f"{table}.{name} is gone")
                continue
            now_kind, now_nullable, has_default = after["columns"][name]
            if now_kind != kind:
                found.append(f"{table}.{name} was {kind} and is {now_kind}")
            if nullable and not now_nullable and not has_default:
                found.append(f"{table}.{name} must not be null any more")
        for name in after["columns"].keys() - before["columns"].keys():
            _, nullable, has_default = after["columns"][name]
            if not nullable and not has_default:
                found.append(f"{table}.{name} is new, must not be null and has no default")
        if before["key"] != after["key"]:
            found.append(f"the key of {table} is another")
        found += [f"{table} has a new check: {check}" for check in after["checks"] - before["checks"]]
        found += [f"{table} has a new unique key: {columns}" for columns in after["unique"] - before["unique"]]
        found += [f"{table} has lost a unique key: {columns}" for columns in before["unique"] - after["unique"]]
        found += [f"{table} has a new foreign key: {columns}" for columns in after["foreign"] - before["foreign"]]
    return found


def test_every_revision_serves_the_assays_that_it_says(store: Store) -> None:
    """From 0007 on: what an older assay needs may go only when `schema_support` says that it is served no more."""
    shapes: dict[str, dict[str, dict[str, Any]]] = {}
    revisions = _migrate.revisions()[::-1]
    for revision in revisions:
        migrate(store, revision)
        with connected(store) as connection:
            shapes[revision] = shape(connection)
            if revision < "0007":
                continue
            oldest = connection.execute(sa.text("SELECT oldest_revision FROM schema_support")).scalar_one()
        served = revisions[revisions.index(oldest) : revisions.index(revision)]
        assert served, f"{revision} must serve the release before it"
        for older in served:
            assert obstacles(shapes[older], shapes[revision]) == [], f"{revision} does not serve {older}"


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        ("DROP TABLE exemplars", "exemplars is gone"),
        ("ALTER TABLE records DROP COLUMN route", "records.route is gone"),
        ("ALTER TABLE records RENAME COLUMN route TO path", "records.route is gone"),
        ("ALTER TABLE exemplars RENAME TO examples", "exemplars is gone"),
        ("CREATE UNIQUE INDEX once ON records (trace_id)", r"records has a new unique key: \('trace_id',\)"),
        ("ALTER TABLE totals ADD COLUMN x INTEGER NOT NULL CHECK (x > 0) DEFAULT 1", "totals has a new check"),
        pytest.param("ALTER TABLE records ALTER route SET NOT NULL", "route must not be null any more", id="pg"),
        pytest.param("ALTER TABLE records ALTER route TYPE varchar(9)", "route was TEXT and is VARCHAR", id="pg-type"),
        pytest.param("ALTER TABLE records ADD x integer NOT NULL", "x is new, must not be null", id="pg-new"),
    ],
)
def test_what_is_in_the_way_is_seen(store: Store, change: str, obstacle: str, request: pytest.FixtureRequest) -> None:
    if "pg" in request.node.callspec.id and store._database.is_sqlite:
        pytest.skip("SQLite has no such statement")
    migrate(store, "0007")
    with connected(store) as connection:
        before = shape(connection)
        connection.execute(sa.text(change))
        found = obstacles(before, shape(connection))
    assert len(found) >= 1
    assert any(re.search(obstacle, line) for line in found), found


def test_what_only_adds_is_in_nobodys_way(store: Store) -> None:
    migrate(store, "0007")
    with connected(store) as connection:
        before = shape(connection)
        for change in (
            "ALTER TABLE records ADD COLUMN x TEXT",
            "ALTER TABLE records ADD COLUMN y INTEGER NOT NULL DEFAULT 1",
            "CREATE INDEX quick ON records (trace_id)",
            "CREATE TABLE more (x INTEGER NOT NULL)",
        ):
            connection.execute(sa.text(change))
        assert obstacles(before, shape(connection)) == []


# -- what older assays write


def recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_schema", DATA / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("revision", sorted({file.name.split("-")[0] for file in DATA.glob("*.json")}))
def test_what_an_older_assay_writes_counts_alike(url: str, revision: str) -> None:
    """Statements recorded from it, on the tables of today; then this assay is given the same records again."""
    record = recorder()
    backend = "sqlite" if url.startswith("sqlite") else "postgresql"
    recording = json.loads((DATA / f"{revision}-{backend}.json").read_text())
    with Store(url, cohort_labels=["route"], sinks={"jsonl": ["scored"]}) as store:
        store.upgrade()
        with connected(store) as connection:
            for statement, many, parameters in recording["statements"]:
                values = record.decoded(parameters)
                if isinstance(values, list):
                    is_many = many and isinstance(values[0], list)
                    values = [tuple(row) for row in values] if is_many else tuple(values)
                connection.exec_driver_sql(statement, values)
        assert record.summary(store) == recording["summary"]
        assert record.commit_all(store) == [0, 0, 0, 0], "the same evaluations have the same identities"
        again = record.summary(store)
        assert again["totals"] == recording["summary"]["totals"]
        assert again["received"] == recording["summary"]["received"]


# -- an upgrade under load

NEXT = '''"""What a next release might add."""
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "9000", "HEAD", None, None
def upgrade():
    op.add_column("records", sa.Column("extra", sa.Text))
    op.add_column("rollups", sa.Column("more", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("evaluations", sa.Column("extra", sa.BigInteger, nullable=False, server_default="1"))
    op.create_index("ix_evaluations_extra", "evaluations", ["extra", "record_id"])
    op.add_column("totals", sa.Column("more", sa.Double))
    op.create_table("news", sa.Column("x", sa.Text, primary_key=True))
def downgrade():
    raise NotImplementedError
'''


@pytest.fixture
def next_release(tmp_path: Path) -> Callable[[], Any]:
    """A context in which this process is of the next release, as far as migrations go."""
    scripts = tmp_path / "next"
    shutil.copytree(Path(_migrate.__file__).parents[1] / "migrations", scripts)
    (scripts / "versions" / "9000_next.py").write_text(NEXT.replace("HEAD", _migrate.revisions()[0]))

    def patched() -> Any:
        patch = pytest.MonkeyPatch()
        original = _migrate.alembic_config

        def config() -> Any:
            found = original()
            found.set_main_option("script_location", str(scripts))
            return found

        known = ("9000", *_migrate.revisions())
        patch.setattr(_migrate, "alembic_config", config)
        patch.setattr(_migrate, "revisions", lambda: known)
        return patch

    return patched


def test_workers_go_on_while_the_tables_are_upgraded(
    url: str, store: Store, next_release: Callable[[], pytest.MonkeyPatch]
) -> None:
    store.upgrade()
    stop, problems, committed = threading.Event(), [], itertools.count()

    def work(app: str) -> None:
        with Store(url) as own:
            for index in itertools.count():
                try:
                    records = [a_record(f"{app}-{index}-{n}", seconds=index % 600, app=app) for n in range(5)]
                    commit(own, *((record, 1.0) for record in records))
                    # As when a doorbell is repeated.
                    commit(own, *((record, 1.0) for record in records[:1]))
                    own.existing([record.record_id for record in records])
                except Exception as error:  # noqa: BLE001
                    problems.append(error)
                    return
                next(committed)
                if stop.is_set():
                    expected[app] = 5 * (index + 1)
                    return

    expected: dict[str, int] = {}
    threads = [threading.Thread(target=work, args=(f"app-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    seen = next(committed)
    while next(committed) < seen + 20 and not problems:
        threading.Event().wait(0.02)
    patch = next_release()
    try:
        with Store(url) as newer:
            newer.upgrade()
            newer.check()
    finally:
        patch.undo()
    seen = next(committed)
    while next(committed) < seen + 20 and not problems:
        threading.Event().wait(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    with Store(url) as restarted:
        # An older worker that is started anew in the midst of it works on.
        restarted.check()
        restarted.upgrade()
        assert {total.app: total.scored for total in restarted.totals()} == expected
        assert dict(restarted.counts().received) == expected
    with connected(store) as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "9000"
        assert connection.execute(sa.text("SELECT count(*) FROM evaluations")).scalar() == sum(expected.values())
