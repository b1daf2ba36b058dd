"""Real servers for tests: fixtures `redis_server`, `redis_url`, `postgres_server`, `postgres_url`."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from assay.embedded import RedisServer, redis_executable


def missing(service: str) -> None:
    """Skip on a laptop, fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{service} is not installed, and CI is set: .ci/run must install it")
    pytest.skip(f"{service} is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_certificate(directory: Path, name: str = "server") -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and localhost, and its key, as PEM files."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    if shutil.which("openssl") is None:
        missing("openssl")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server of this test's own: .url .port .pid .stop() .start() .pause() .resume()."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def _shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(_shared_redis: RedisServer) -> str:
    """A flushed database on a server that the session's tests share; do not stop that server."""
    import redis

    client = redis.Redis.from_url(_shared_redis.url)
    client.flushall()
    client.close()
    return _shared_redis.url


class Sentinels:
    """A redis-server, a replica of it, and three sentinels that watch them; `url` is for ASSAY_REDIS_URL."""

    master = "assay-primary"

    def __init__(self, directory: Path, *, extra: str = "", sentinel_extra: str = "", url: str = "") -> None:
        self._directory, self._extra, self._sentinel_extra = directory, extra, sentinel_extra
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.ports = [free_port(), free_port()]
        self.sentinel_ports = [free_port() for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        self.url = url or f"redis+sentinel://:a-password@{hosts}/{self.master}/0?sentinel_password=another"

    def __enter__(self) -> Sentinels:
        first, second = self.ports
        for port in self.ports:
            of = f"replicaof 127.0.0.1 {first}\n" if port == second else ""
            common = 'appendonly yes\nmaxmemory-policy noeviction\nrepl-diskless-sync-delay 0\nsave ""\n'
            login = "requirepass a-password\nmasterauth a-password\n"
            self._start(port, f"{login}{common}{of}{self._extra}")
        for port in self.sentinel_ports:
            self._start(
                port,
                "requirepass another\nsentinel sentinel-pass another\n"
                f"sentinel monitor {self.master} 127.0.0.1 {first} 2\nsentinel auth-pass {self.master} a-password\n"
                f"sentinel down-after-milliseconds {self.master} 1000\nsentinel failover-timeout {self.master} 5000\n"
                + self._sentinel_extra,
                "--sentinel",
            )
        return self

    def _start(self, port: int, config: str, *arguments: str) -> None:
        directory = self._directory / str(port)
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "redis.conf"
        if not file.exists():  # a sentinel keeps there what it has learnt
            file.write_text(f"bind 127.0.0.1\nport {port}\ndir {directory}\nlogfile {directory}/log\n{config}")
        self._processes[port] = subprocess.Popen([redis_executable(), str(file), *arguments])

    def kill(self, port: int) -> None:
        process = self._processes.pop(port)
        process.kill()
        process.wait()

    def primary(self) -> int:
        """Port of the primary, as the sentinels see it."""
        import redis

        with redis.Redis(port=self.sentinel_ports[0], password="another", decode_responses=True) as client:
            return int(client.sentinel_get_master_addr_by_name(self.master)[1])

    def wait_until_ready(self, replicas: int = 1) -> None:
        """Until all sentinels know each other and the replica, and it follows."""
        import redis

        deadline = time.monotonic() + 60
        while True:
            try:
                states = []
                for port in self.sentinel_ports:
                    with redis.Redis(port=port, password="another", decode_responses=True) as client:
                        states.append(client.sentinel_master(self.master))
                if all(int(s["num-slaves"]) >= replicas and int(s["num-other-sentinels"]) == 2 for s in states):
                    with redis.Redis(port=self.primary(), password="a-password") as client:
                        if client.wait(replicas, 1000) >= replicas:
                            return
            except redis.RedisError:
                pass
            assert time.monotonic() < deadline, "the sentinels do not find each other"
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    with Sentinels(tmp_path / "sentinels") as running:
        running.wait_until_ready()
        yield running


class PostgresServer:
    """One PostgreSQL cluster in a temporary directory, trust authentication on loopback."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        on_path = shutil.which("pg_ctl")
        if not found and not on_path:
            missing("PostgreSQL")
        self._bin = found[-1].parent if found else Path(str(on_path)).parent
        # initdb refuses root, and its user must reach the directory.
        self._directory = Path(tempfile.mkdtemp(prefix="assay-pg-"))
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(self._directory, entry.pw_uid, entry.pw_gid)
        self.port = free_port()
        self._count = itertools.count()
        self._run("initdb", "-D", str(self._data), "-U", "assay", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _run(self, program: str, *arguments: str) -> None:
        kwargs = {"user": self._user, "group": self._user, "extra_groups": []} if self._user else {}
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            capture_output=True,
            text=True,
            cwd=self._directory,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self._directory)},
            **kwargs,
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}\n{done.stderr}")

    def start(self) -> None:
        options = (
            f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= "
            "-c fsync=off -c max_connections=200 -c shared_buffers=64MB"
        )
        log = str(self._directory / "log")
        self._run("pg_ctl", "-D", str(self._data), "-l", log, "-w", "-t", "60", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "stop")

    @property
    def pid(self) -> int:
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def create_database(self, template: str | None = None) -> str:
        """URL of a new database: empty, or a copy of that of a URL, to which nobody is connected."""
        import psycopg

        name = f"assay_{next(self._count)}_{time.monotonic_ns()}"
        dsn = f"host=127.0.0.1 port={self.port} user=assay dbname=postgres"
        with psycopg.connect(dsn, autocommit=True) as connection:
            copied = f' TEMPLATE "{template.rpartition("/")[2]}"' if template else ""
            connection.execute(f'CREATE DATABASE "{name}"{copied}')  # type: ignore[call-overload]
        return f"postgresql+psycopg://assay@127.0.0.1:{self.port}/{name}"

    def require_password(self, url: str, password: str) -> str:
        """The URL again, with a new user in it who owns the database and must show this password."""
        import psycopg
        from psycopg import sql

        user, name = f"with_password_{next(self._count)}", url.rpartition("/")[2]
        rules = self._data / "pg_hba.conf"
        rules.write_text(f"host all {user} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        dsn = f"host=127.0.0.1 port={self.port} user=assay dbname=postgres"
        with psycopg.connect(dsn, autocommit=True) as connection:
            role, database = sql.Identifier(user), sql.Identifier(name)
            create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password))
            connection.execute(create)
            connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, role))
            connection.execute("SELECT pg_reload_conf()")
            # It is done when the rules are read again, which takes a moment.
            rule = "SELECT count(*) FROM pg_hba_file_rules WHERE %s = ANY (user_name)"
            assert connection.execute(rule, [user]).fetchone() == (1,)
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(f"host=127.0.0.1 port={self.port} user={user} password=wrong dbname={name}").close()
            except psycopg.OperationalError as error:
                if "password authentication failed" in str(error):
                    break
            assert time.monotonic() < deadline, "any password is taken"
            time.sleep(0.05)
        return url.replace("assay@", f"{user}:{password}@")

    @property
    def log(self) -> Path:
        """What it has logged."""
        return self._directory / "log"

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)


@pytest.fixture(scope="session")
def _shared_postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres_url(_shared_postgres: PostgresServer) -> str:
    """`postgresql+psycopg://` URL of a fresh database on a server that the session's tests share."""
    return _shared_postgres.create_database()


@pytest.fixture
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test's own: .create_database() .stop() .start() .pause() .resume()."""
    server = PostgresServer()
    yield server
    server.close()


class RabbitServer:
    """A RabbitMQ server of one test's own, on loopback. `url` is for ASSAY_BROKER_URL."""

    def __init__(self, directory: Path) -> None:
        found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
        if not found:
            missing("RabbitMQ")
        self._program, self._directory = found[-1], directory
        self.port, self._distribution, self._epmd = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)
        (directory / "plugins").write_text("[].")
        (directory / "rabbitmq.conf").write_text("log.console = false\n")

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._directory),
            "LC_ALL": "C.UTF-8",
            "RABBITMQ_NODENAME": "assay-test@localhost",
            "RABBITMQ_MNESIA_BASE": str(self._directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(self._directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self._directory / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._directory / "plugins"),
            "RABBITMQ_PID_FILE": str(self._directory / "pid"),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd),
        }

    def start(self) -> None:
        log = (self._directory / "out").open("ab")
        with log:
            self._process = subprocess.Popen(
                [self._program], env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None, (self._directory / "out").read_text()
            assert time.monotonic() < deadline, (self._directory / "out").read_text()
            time.sleep(0.2)

    def _answers(self) -> bool:
        from kombu import Connection

        try:
            with Connection(self.url, connect_timeout=2) as connection:
                connection.connect()
        except Exception:  # noqa: BLE001
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to all of it, at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        # What maps Erlang's names to ports goes on by itself, and does not end before it has missed its last node.
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            done = subprocess.run(["epmd", "-kill"], env=self._environment, capture_output=True, text=True)
            if "Killed" in done.stdout or "Cannot connect" in done.stdout + done.stderr:
                return
            time.sleep(0.2)


@pytest.fixture
def rabbit(tmp_path: Path) -> Iterator[RabbitServer]:
    """A RabbitMQ server of this test's own: .url .start() .kill()."""
    server = RabbitServer(tmp_path / "rabbit")
    try:
        server.start()
        yield server
    finally:
        server.close()
