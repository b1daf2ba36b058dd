"""What `deploy/postgresql/*.sql` grants is enough, and no more: a real server, real roles, real processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from assay import Client
from assay.errors import StoreError
from assay.records import now
from assay.store import Store, _scope
from prometheus import wait_for
from stores import a_record, an_evaluation, with_payloads

pytestmark = pytest.mark.integration

SQL = Path(__file__).parents[2] / "deploy" / "postgresql"
TENANTS = ("alphazon", "bravonet")


class Roles:
    """A migrated database with the roles of the files, and a URL for each."""

    def __init__(self, url: str) -> None:
        self.owner = url
        with Store(url) as store:
            store.upgrade()
        self.execute((SQL / "roles.sql").read_text())
        self.execute((SQL / "tenants.sql").read_text())
        # Again: both may be run at any time.
        self.execute((SQL / "roles.sql").read_text())
        self.execute((SQL / "tenants.sql").read_text())
        for name, group in (("a_worker", "worker"), ("a_reader", "reader"), ("alpha", "tenant_reader")):
            self.execute(f"DROP ROLE IF EXISTS {name}; CREATE ROLE {name} LOGIN IN ROLE assay_{group}")
        self.execute(f"INSERT INTO assay_tenants VALUES ('alpha', '{TENANTS[0]}')")

    def execute(self, text: str, role: str | None = None) -> list[Any]:
        url = (self.owner if role is None else self.url(role)).replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            cursor = connection.execute(text)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def url(self, role: str) -> str:
        return re.sub(r"//[^@]+@", f"//{role}@", self.owner)


@pytest.fixture
def roles(postgres_url: str) -> Iterator[Roles]:
    made = Roles(postgres_url)
    yield made
    for name in ("a_worker", "a_reader", "alpha"):
        made.execute(f"DROP ROLE IF EXISTS {name}")


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ASSAY_", "OPENAI_"))}
    return {**kept, **{f"ASSAY_{name}": value for name, value in settings.items()}}


def assay(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "assay", *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=120,
    )


def commit(url: str, app: str) -> None:
    seconds = (now() - a_record().timestamp).total_seconds() - 60
    record = a_record(f"record-of-{app}", app=app, seconds=seconds, input=f"input-of-{app}", route=f"route-of-{app}")
    with Store(url, sinks={"webhook": {"scored"}}) as store:
        store.commit(with_payloads([record]), [an_evaluation(record, 0.2)])


def test_a_worker_and_the_commands_need_no_right_to_change_tables(roles: Roles, redis_url: str, tmp_path: Path) -> None:
    own = {"DATABASE_URL": roles.url("a_worker"), "REDIS_URL": redis_url, "JUDGE": "lexical", "DATA_DIR": str(tmp_path)}
    worker = subprocess.Popen(
        [sys.executable, "-m", "assay", "worker"], env=environment(**own), stderr=subprocess.PIPE, text=True
    )
    try:
        client = Client("shop", redis_url=redis_url)
        for _ in range(5):
            client.record(
                route="shelf", input="Where is it?", output="It is on the shelf.", contexts=["It is on the shelf."]
            )
        client.close()
        with Store(roles.owner) as store:
            wait_for(lambda: sum(total.scored for total in store.totals()) >= 5, 60)
    finally:
        worker.terminate()
        _, log = worker.communicate(timeout=60)
    assert "permission denied" not in log
    for command in (
        ("status",),
        ("signals",),
        ("report", "--weeks", "2"),
        ("compare", "--by", "route"),
        ("defects", "list"),
        ("dead", "list"),
        ("outbox", "list"),
        ("outbox", "retry", "--all"),
        ("changes", "list"),
        ("labels", "pick", "--rubric", "relevance"),
        ("rubrics", "status"),
        ("purge",),
    ):
        done = assay(*command, **own)
        assert done.returncode == 0, (command, done.stderr)
    refused = assay("db", "upgrade", **own)
    assert "Traceback" not in refused.stderr
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.execute("CREATE TABLE more (x int)", "a_worker")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.execute("ALTER TABLE records ADD COLUMN more int", "a_worker")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.execute("UPDATE alembic_version SET version_num = 'x'", "a_worker")


def test_an_exporter_needs_only_to_read(roles: Roles, redis_url: str) -> None:
    commit(roles.url("a_worker"), "shop")
    own = {"DATABASE_URL": roles.url("a_reader"), "REDIS_URL": redis_url}
    exporter = subprocess.Popen(
        [sys.executable, "-m", "assay", "exporter", "--port", "0"],
        env=environment(**own),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert exporter.stderr is not None
        line = ""
        while "metrics at " not in line:
            line = exporter.stderr.readline()
            assert line, "it has ended"
        import urllib.request

        with urllib.request.urlopen(line.split("metrics at ")[1].strip(), timeout=60) as answer:
            body = answer.read().decode()
    finally:
        exporter.terminate()
        exporter.wait(30)
        exporter.stderr.close()
    assert 'assay_up{component="database"} 1' in body
    assert any(line.startswith("assay_pass_ratio") and 'app="shop"' in line for line in body.splitlines())
    assert assay("status", **own).returncode == 0
    with Store(roles.url("a_reader")) as store, pytest.raises(StoreError, match="permission denied"):
        store.purge(payload_days=0, score_days=0, rollup_days=0, dead_days=0)


def test_row_level_security_holds_a_tenant_whatever_it_asks(roles: Roles, redis_url: str) -> None:
    """No ASSAY_APPS here: the database alone keeps them apart."""
    for app in TENANTS:
        commit(roles.url("a_worker"), app)
    own = {"DATABASE_URL": roles.url("alpha"), "REDIS_URL": redis_url}
    for command in (("status",), ("report", "--weeks", "2"), ("compare", "--by", "route"), ("outbox", "list")):
        done = assay(*command, "--json", **own)
        assert done.returncode == 0, done.stderr
        assert TENANTS[1] not in done.stdout
        assert TENANTS[0] in done.stdout, command
    # Every table, as plainly as SQL can ask.
    for table in (*_scope.BY_APP, *_scope.BY_RECORD, *_scope.BY_SERIES, *_scope.OTHERS):
        rows = roles.execute(f"SELECT to_jsonb(t)::text FROM {table} t", "alpha")
        assert not [row for row in rows if TENANTS[1] in row[0]], table
    for table in ("records", "payloads", "evaluations", "outbox", "rollups", "totals"):
        mine, every = (roles.execute(f"SELECT count(*) FROM {table}", role)[0][0] for role in ("alpha", None))
        assert 0 < mine < every, table
    for attempt in (
        f"SELECT * FROM assay_tenants WHERE app = '{TENANTS[1]}'",
        "SET ROLE assay_reader",
        f"INSERT INTO assay_tenants VALUES ('alpha', '{TENANTS[1]}')",
        "DELETE FROM records",
    ):
        try:
            assert roles.execute(attempt, "alpha") == []
        except psycopg.errors.InsufficientPrivilege:
            continue
        assert attempt.startswith("SELECT"), attempt


def test_the_files_place_every_table() -> None:
    ruled = set(re.findall(r"(?m)^ +\('(\w+)', '", (SQL / "tenants.sql").read_text()))
    assert ruled == _scope.BY_APP | _scope.BY_RECORD | _scope.BY_SERIES | _scope.OTHERS
