"""Stores for the contract tests: each runs on SQLite and on PostgreSQL, in a migrated, empty database of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assay.store import Store
from servers import PostgresServer


@pytest.fixture(scope="session")
def _migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "migrated.db"
    with Store(f"sqlite:///{path}") as store:
        store.upgrade()
    return path


@pytest.fixture(scope="session")
def _migrated_postgres(_shared_postgres: PostgresServer) -> str:
    url = _shared_postgres.create_database()
    with Store(url) as store:
        store.upgrade()
    return url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a migrated, empty database: a copy, since migrating each anew takes longer than most tests."""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("_shared_postgres")
        return server.create_database(template=request.getfixturevalue("_migrated_postgres"))
    path = tmp_path / "scores.db"
    shutil.copy(request.getfixturevalue("_migrated_sqlite"), path)
    return f"sqlite:///{path}"


@pytest.fixture
def open_store(url: str) -> Iterator[Callable[..., Store]]:
    """Opens the database again, as another process would."""
    opened: list[Store] = []

    def open_(**options: object) -> Store:
        opened.append(Store(url, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()
