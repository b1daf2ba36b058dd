"""Each fault is planted for real, and `assay doctor` says what docs/howto/doctor.md says that it says."""

from __future__ import annotations

import asyncio
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from assay import doctor, wiring
from assay.budgets import Budgets, RedisPurse
from assay.doctor import _machine
from assay.embedded import RedisServer
from assay.exporter import serve
from assay.listener import Guard
from assay.metrics import ScoreCollector
from assay.queue import Queue, Retry, encode_batch
from assay.records import Usage, now
from assay.rubrics import load_rubrics
from assay.settings import load_settings
from assay.store import DeadLetter, Store
from assay.testing import FakeJudgeServer
from stores import a_record, an_evaluation, commit, with_payloads

pytestmark = pytest.mark.integration

PAGE = (Path(__file__).parents[2] / "docs/howto/doctor.md").read_text()
#: fault -> what it says
TABLE = {
    cells[0]: re.sub("\u200b", "", cells[1]).strip("`")
    for cells in (
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith("| fault")
    )
}


class Ward:
    """Settings of a deployment of this test's own, into which faults are planted."""

    def __init__(self, directory: Path, server: RedisServer, patch: pytest.MonkeyPatch) -> None:
        patch.chdir(directory)
        self.directory, self.server, self.patch = directory, server, patch
        for name in ("OPENAI_API_KEY",):
            patch.delenv(name, raising=False)
        self.set(REDIS_URL=server.url, DATA_DIR=str(directory / "data"), JUDGE="lexical", EXPORTER_PORT="1")
        self.store = Store(load_settings().store_url)
        self.store.upgrade()
        self.redis = redis.Redis.from_url(server.url)

    def set(self, **settings: str) -> None:
        for name, value in settings.items():
            self.patch.setenv(f"ASSAY_{name}", value)

    def findings(self, *, ask_judge: bool = False) -> list[doctor.Finding]:
        return list(doctor.examine(load_settings(), ask_judge=ask_judge))

    def close(self) -> None:
        self.store.close()
        self.redis.close()


@pytest.fixture
def ward(tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ward]:
    made = Ward(tmp_path, redis_server, monkeypatch)
    yield made
    made.close()


Plant = Callable[[Ward], Any]
PLANTS: dict[str, Plant] = {}
#: those whose fault is seen when the judge is asked
ASKED = {"wrong judge key", "judge away", "price unknown"}


def plants(fault: str) -> Callable[[Plant], Plant]:
    def keep(plant: Plant) -> Plant:
        PLANTS[fault] = plant
        return plant

    return keep


@plants("eviction policy on")
def _(ward: Ward) -> None:
    ward.redis.config_set("maxmemory-policy", "allkeys-lru")


@plants("append-only file off")
def _(ward: Ward) -> None:
    ward.redis.config_set("appendonly", "no")


@plants("Redis nearly full")
def _(ward: Ward) -> None:
    ward.redis.config_set("maxmemory", int(ward.redis.info()["used_memory"] * 1.05))


@plants("clock skew")
def _(ward: Ward) -> Any:
    proxy = ShiftedClock(ward.server.port, 3600)
    ward.set(REDIS_URL=re.sub(r":\d+/", f":{proxy.port}/", ward.server.url))
    return proxy


@plants("no worker")
def _(ward: Ward) -> None:
    with closing(Queue.from_url(ward.server.url)) as queue:
        enqueue_one(queue)


@plants("no worker has ragas")
def _(ward: Ward) -> None:
    with closing(Queue.from_url(ward.server.url)) as queue:
        moved = replace(enqueue_one(queue), batch_id="r" * 32, ragas=True)
        queue.finish("b" * 32, retries=[moved])


def enqueue_one(queue: Queue) -> Retry:
    """One record; what it is when it comes back."""
    at = now().timestamp()
    payload = encode_batch([a_record().to_json().encode()], batch_id="b" * 32, enqueued_at=at)
    queue.push(payload, batch_id="b" * 32, records=1, enqueued_at=at)
    return Retry(payload=payload, batch_id="b" * 32, due_at=0.0, enqueued_at=at)


@plants("migrations missing")
def _(ward: Ward) -> None:
    ward.set(DATABASE_URL=f"sqlite:///{ward.directory}/other.db")


@plants("dead letters wait")
def _(ward: Ward) -> None:
    ward.store.commit([], [], [DeadLetter(dead_id="d", reason="invalid", message="m", payload=b"{}")])


@plants("rubric without calibration")
def _(ward: Ward) -> None:
    pass


@plants("budget nearly spent")
def _(ward: Ward) -> None:
    file = ward.directory / "budgets.yaml"
    file.write_text("budgets:\n  - {name: total, per: day, tokens: 1000}\n")
    ward.set(BUDGETS=str(file))
    settings = load_settings()
    budgets = wiring.read_budgets(settings, load_rubrics())
    assert budgets is not None
    asyncio.run(spend(budgets, ward.server.url, settings.queue, 900))


@plants("wrong judge key")
def _(ward: Ward) -> Any:
    judge = FakeJudgeServer(api_key="right")
    judge.__enter__()
    ward.set(JUDGE="openai", JUDGE_BASE_URL=judge.base_url, JUDGE_API_KEY="wrong")
    return judge


@plants("judge away")
def _(ward: Ward) -> None:
    ward.set(JUDGE="openai", JUDGE_BASE_URL="http://127.0.0.1:1/v1", JUDGE_API_KEY="k")


@plants("price unknown")
def _(ward: Ward) -> Any:
    judge = FakeJudgeServer()
    judge.__enter__()
    ward.set(JUDGE="openai", JUDGE_BASE_URL=judge.base_url, JUDGE_API_KEY="k", JUDGE_MODEL="of-no-known-price")
    return judge


@plants("exporter not running")
def _(ward: Ward) -> None:
    pass


@contextmanager
def exporter_of(ward: Ward, store: Store, guard: Guard | None = None) -> Iterator[None]:
    queue = Queue.from_url(ward.server.url)
    with closing(queue), serve(ScoreCollector(store, queue), port=0, guard=guard) as server:
        ward.set(EXPORTER_URL=server.url)
        yield


@plants("exporter behind")
def _(ward: Ward) -> Any:
    commit(ward.store, (a_record(), 0.5))
    other = Store(f"sqlite:///{ward.directory}/another.db")
    other.upgrade()
    context = exporter_of(ward, other)
    context.__enter__()
    return context


@plants("exporter asks for another token")
def _(ward: Ward) -> Any:
    context = exporter_of(ward, ward.store, Guard(tokens=("right",)))
    context.__enter__()
    ward.set(METRICS_TOKEN="wrong")
    return context


@plants("misspelled variable")
def _(ward: Ward) -> None:
    ward.set(JUGDE_MODEL="m")


@plants("secrets that others can read")
def _(ward: Ward) -> None:
    file = ward.directory / ".env"
    file.write_text("ASSAY_LOG_LEVEL=info\n")
    file.chmod(0o644)


@plants("SQLite database that others can read")
def _(ward: Ward) -> None:
    (ward.directory / "data" / "assay.db").chmod(0o644)


@plants("canary of no rubric")
def _(ward: Ward) -> None:
    ward.set(CANARY="relevence=calibration/relevance.jsonl")


@plants("canary that never ran")
def _(ward: Ward) -> None:
    ward.set(CANARY="relevance=calibration/relevance.jsonl")
    commit(ward.store, (a_record(), 0.5))


@plants("listener open to the network")
def _(ward: Ward) -> None:
    ward.set(EXPORTER_HOST="0.0.0.0")


@plants("too few file descriptors")
def _(ward: Ward) -> None:
    ward.set(JUDGE_MAX_IN_FLIGHT="4096")
    ward.patch.setattr(resource, "getrlimit", lambda _: (1024, 1024))


@plants("disk nearly full")
def _(ward: Ward) -> None:
    ward.patch.setattr(_machine, "_DISK_TOLERANCE_BYTES", 2**62)


@plants("sink not configured")
def _(ward: Ward) -> None:
    ward.set(SINKS="webhook")


@plants("sink backlog")
def _(ward: Ward) -> None:
    record = a_record()
    with Store(load_settings().store_url, sinks={"webhook": {"scored"}}) as store:
        store.commit(with_payloads([record]), [an_evaluation(record, 0.5)])


RAGAS_RUBRIC = """\
name: polite
version: "1"
requires: [output]
instructions: Is the answer polite?
scale: {type: binary, pass_when: it is, fail_when: it is not}
pass_threshold: 0.5
judge: {engine: ragas, metric: aspect_critic}
"""

#: Planted by tests of their own, below.
APART = {"database role lacks rights", "calibration stale"}


@pytest.mark.parametrize("fault", sorted(PLANTS))
def test_each_fault_is_found_when_it_is_planted(ward: Ward, fault: str) -> None:
    planted = PLANTS[fault](ward)
    try:
        found = [f for f in ward.findings(ask_judge=fault in ASKED) if f.state != "ok" and TABLE[fault] in f.message]
    finally:
        if planted is not None:
            planted.__exit__(None, None, None)
    assert found, f"nothing says {TABLE[fault]!r}"
    assert all(one.mend for one in found)


def test_the_page_has_every_fault_and_no_other() -> None:
    assert set(TABLE) == set(PLANTS) | APART


def test_without_a_fault_none_of_them_is_said(ward: Ward) -> None:
    said = [finding.message for finding in ward.findings()]
    always = {"rubric without calibration", "exporter not running", "no worker"}
    for fault in set(TABLE) - always:
        assert not [message for message in said if TABLE[fault] in message], fault


def test_a_role_without_rights(ward: Ward, postgres_url: str) -> None:
    with Store(postgres_url) as store:
        store.upgrade()
    url = postgres_url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS a_doctor")
        connection.execute("CREATE ROLE a_doctor LOGIN")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO a_doctor")
    ward.set(DATABASE_URL=re.sub(r"//[^@]+@", "//a_doctor@", postgres_url))
    (found,) = [f for f in ward.findings() if TABLE["database role lacks rights"] in f.message]
    assert found.state == "wrong"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO a_doctor")
    assert not [f for f in ward.findings() if TABLE["database role lacks rights"] in f.message]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP OWNED BY a_doctor")
        connection.execute("DROP ROLE a_doctor")


def test_records_that_wait_without_a_worker_are_bad_not_a_warning(ward: Ward) -> None:
    assert {f.state for f in ward.findings() if f.check == "workers"} == {"warning"}
    PLANTS["no worker"](ward)
    assert {f.state for f in ward.findings() if f.check == "workers"} == {"wrong"}


def test_a_rubric_of_ragas_that_nobody_judges_is_a_warning_until_records_wait_for_it(ward: Ward) -> None:
    def states() -> set[str]:
        return {f.state for f in ward.findings() if f.check == "ragas"}

    assert states() == set(), "no rubric needs it"
    file = ward.directory / "polite.yaml"
    file.write_text(RAGAS_RUBRIC)
    ward.set(RUBRICS=str(file), JUDGE="openai", JUDGE_API_KEY="k")
    assert states() == {"warning"}
    PLANTS["no worker has ragas"](ward)
    assert states() == {"wrong"}


def test_file_systems_of_a_table() -> None:
    mounts = (
        "/dev/sda / ext4 rw 0 0\nhost:/x /srv nfs4 rw 0 0\ntmpfs /srv/local tmpfs rw 0 0\nh:/y /a\\040b nfs rw 0 0\n"
    )
    kinds = {
        where: _machine.file_system(Path(where), mounts) for where in ("/var", "/srv/db", "/srv/local/x", "/a b/c")
    }
    assert kinds == {"/var": "ext4", "/srv/db": "nfs4", "/srv/local/x": "tmpfs", "/a b/c": "nfs"}
    assert _machine.file_system(Path("/var"), "") == ""


async def spend(budgets: Budgets, url: str, queue: str, tokens: int) -> None:
    """Have so many tokens spent, as a judge call does."""
    purse = RedisPurse(budgets, url, queue, wait_seconds=1.0)
    used = Usage(prompt_tokens=tokens, completion_tokens=0)
    held = await purse.reserve(app="shop", rubrics=["relevance"], judge="openai:m", bound=used, lease_seconds=60.0)
    await purse.settle(held, used)
    await purse.aclose()


class ShiftedClock:
    """A proxy before a Redis whose clock is ahead: it adds to the seconds in what TIME answers."""

    def __init__(self, port: int, seconds: int) -> None:
        self._behind, self._seconds = port, seconds
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._opened = [self._listening]
        self._threads: list[threading.Thread] = []
        self.port = int(self._listening.getsockname()[1])
        self._start(self._accept)

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake who waits for it.
        for one in self._opened:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in self._opened:
            one.close()

    def _start(self, job: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=job, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._behind))
                self._opened += [client, server]
                asked = threading.Event()
                self._start(self._up, client, server, asked)
                self._start(self._down, client, server, asked)

    def _up(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        while data := _read(client):
            if b"TIME\r\n" in data:
                asked.set()
            with suppress(OSError):
                server.sendall(data)

    def _down(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        while data := _read(server):
            if asked.is_set() and (match := re.match(rb"\*2\r\n\$10\r\n(\d{10})\r\n", data)):
                data = data.replace(match[1], str(int(match[1]) + self._seconds).encode(), 1)
                asked.clear()
            with suppress(OSError):
                client.sendall(data)


def _read(source: socket.socket) -> bytes:
    try:
        return source.recv(65_536)
    except OSError:
        return b""
