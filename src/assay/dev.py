"""All of assay on one machine: an embedded Redis, SQLite, and real worker and exporter processes.

`assay dev` and `assay demo` stand on it. Production runs the same commands against servers of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pydantic import SecretStr

from assay import wiring
from assay.embedded import RedisServer, free_port
from assay.errors import ProcessError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from assay.settings import Settings


@contextmanager
def local_stack(settings: Settings, *, data_dir: Path) -> Iterator[Settings]:
    """An embedded Redis unless one is configured, and a migrated database. Yields settings that point at them."""
    with ExitStack() as stack:
        data_dir.mkdir(parents=True, exist_ok=True)
        overrides: dict[str, object] = {"data_dir": data_dir}
        if settings.redis_url is None:
            server = stack.enter_context(RedisServer(data_dir / "redis"))
            overrides["redis_url"] = SecretStr(server.url)
        chosen = settings.model_copy(update=overrides)
        store = wiring.open_store(chosen, check=False)
        store.upgrade()
        store.close()
        yield chosen


@contextmanager
def child(
    arguments: Sequence[str], settings: Settings, *, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `assay ARGUMENTS` on these settings; SIGTERM at the end, SIGKILL if it takes longer than a shutdown may.

    `log` takes its output; without it the output goes where this process's own goes.
    """
    environment = os.environ | {
        "ASSAY_REDIS_URL": settings.broker_url,
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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    host, port = settings.exporter_host, settings.exporter_port or free_port()
    with local_stack(settings, data_dir=settings.data_dir) as chosen, ExitStack() as stack:
        running = {
            name: stack.enter_context(child(arguments, chosen))
            for name, arguments in {
                "worker": ["worker"],
                "exporter": ["exporter", "--port", str(port), "--host", host],
            }.items()
        }
        say("assay is running; Ctrl-C ends it. In another terminal:")
        say(f"  export ASSAY_REDIS_URL='{chosen.broker_url}'")
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
