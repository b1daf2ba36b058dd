"""All of assay on one machine: an embedded Redis, SQLite, and real worker and exporter processes.

`assay dev` and `assay demo` stand on it. Production runs the same commands against servers of its own.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pydantic import SecretStr

from assay import wiring
from assay.embedded import RedisServer, free_port
from assay.errors import ConfigError, ProcessError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from assay.settings import Settings


@contextmanager
def local_stack(settings: Settings, *, data_dir: Path) -> Iterator[Settings]:
    """An embedded Redis and a migrated SQLite database in `data_dir`. Yields settings that point at them.

    Never a Redis or database that the environment names: those may be somebody's production.

    Raises:
        ConfigError: the directory cannot be used, or another such stack is using it.
    """
    with ExitStack() as stack:
        stack.enter_context(_alone_in(data_dir))
        server = stack.enter_context(RedisServer.kept(data_dir / "redis"))
        private = {"data_dir": data_dir, "redis_url": SecretStr(server.url), "database_url": None}
        chosen = settings.model_copy(update=private)
        store = wiring.open_store(chosen, check=False, apps=())
        store.upgrade()
        store.close()
        yield chosen


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Two servers on one append-only file would break it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (directory / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}: the directory must be writable") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise ConfigError(
                f"{directory} is in use by process {holder}: end that one, or name another --data-dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def child(
    arguments: Sequence[str], settings: Settings, *, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `assay ARGUMENTS` on these settings; SIGTERM at the end, SIGKILL if it takes longer than a shutdown may.

    `log` takes its output; without it the output goes where this process's own goes.
    """
    environment = os.environ | {
        "ASSAY_REDIS_URL": settings.queue_url,
        "ASSAY_DATABASE_URL": settings.store_url,
        "ASSAY_DATA_DIR": str(settings.data_dir),
        "ASSAY_QUEUE": settings.queue,
    }
    with ExitStack() as stack:
        sink = stack.enter_context(log.open("ab")) if log else None
        # A session of its own: Ctrl-C reaches this process alone, which then ends its children in order.
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "assay", *arguments],
            env=environment,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(settings.shutdown_seconds + 10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_dev(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Run Redis, a worker and an exporter until a signal comes.

    Raises:
        ProcessError: one of them ended by itself.
    """
    stop = threading.Event()
    # A closed terminal (SIGHUP) must not leave the children behind.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    host, port = settings.exporter_host, settings.exporter_port or free_port()
    _check_free(host, port)
    with local_stack(settings, data_dir=settings.data_dir) as chosen, ExitStack() as stack:
        running = {
            name: stack.enter_context(child(arguments, chosen))
            for name, arguments in {
                "worker": ["worker"],
                "exporter": ["exporter", "--port", str(port), "--host", host],
            }.items()
        }
        if settings.redis_url is not None or settings.database_url is not None:
            say("ASSAY_REDIS_URL and ASSAY_DATABASE_URL are passed over: assay dev uses its own.")
        say("Starting; Ctrl-C ends it. In another terminal:")
        say(f"  export ASSAY_REDIS_URL='{chosen.queue_url}'")
        say(f"  export ASSAY_DATABASE_URL='{chosen.store_url}'")
        say("  assay enqueue records.jsonl      # or Client().record(...) in your app")
        say("  assay status")
        say(f"  curl http://{host}:{port}/metrics")
        while not stop.wait(0.5):
            for name, process in running.items():
                if process.poll() is not None:
                    raise ProcessError(
                        f"the {name} ended with exit code {process.returncode}: its output above says why"
                    )


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of {host} cannot be used ({error.strerror}): choose another with --port; "
                "perhaps an older `assay dev` still runs"
            ) from None
