"""A whole deployment for end-to-end tests: real redis-server, database, judge server, worker and exporter processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from assay.embedded import RedisServer
from assay.enqueue import enqueue
from assay.queue import Queue
from assay.records import Context, Record, now
from assay.store import Store


def record(index: int, **fields: Any) -> Record:
    """A synthetic record with a context, good for all four shipped rubrics."""
    defaults: dict[str, Any] = {
        "record_id": f"record-{index}",
        "timestamp": now(),
        "app": "shop",
        "input": f"What does item {index} cost?",
        "output": f"Item {index} costs {index} euros.",
        "contexts": (Context(text=f"Item {index} costs {index} euros and weighs 2 kilograms."),),
        "trace_id": uuid.uuid5(uuid.NAMESPACE_OID, str(index)).hex,
    }
    return Record(**{**defaults, **fields})


class Deployment:
    """Starts and ends processes; `settings` become ASSAY_ variables of every process."""

    def __init__(self, directory: Path, database_url: str, **settings: object) -> None:
        self.directory = directory
        self.database_url = database_url
        self.redis = RedisServer(directory / "redis")
        self.settings = settings
        self._stack = contextlib.ExitStack()
        self._processes = 0

    def __enter__(self) -> Deployment:
        if "redis_url" not in self.settings:
            self._stack.enter_context(self.redis)
        self.store = self._stack.enter_context(Store(self.database_url, cohort_labels=self.labels))
        self.store.upgrade()
        self.queue = Queue.from_url(self.environment["ASSAY_REDIS_URL"])
        self._stack.callback(self.queue.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def labels(self) -> list[str]:
        given = str(self.settings.get("cohort_labels", ""))
        return [label for label in given.split(",") if label]

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("ASSAY_", "OPENAI_"))}
        own = {f"ASSAY_{name.upper()}": str(value) for name, value in self.settings.items()}
        return clean | {
            "ASSAY_REDIS_URL": self.redis.url,
            "ASSAY_DATABASE_URL": self.database_url,
            "ASSAY_DATA_DIR": str(self.directory),
            **own,
        }

    def run(
        self, *arguments: str, check: bool = True, stdin: bytes = b"", timeout_seconds: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """One `assay` command, to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "assay", *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            cwd=self.directory,
            timeout=timeout_seconds,
        )
        if check:
            assert done.returncode == 0, done.stderr.decode()
        return done

    def start(
        self, *arguments: str, module: str = "assay", python: Path | str = sys.executable
    ) -> subprocess.Popen[bytes]:
        """A process that is ended with the deployment; its output is in `log(process)`."""
        self._processes += 1
        log = self.directory / f"{self._processes}-{(arguments or (module,))[0]}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [python, "-m", module, *arguments],
                env=self.environment,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
            )
        process.log = log  # type: ignore[attr-defined]
        self._stack.callback(end, process)
        return process

    def start_worker(self, *arguments: str, python: Path | str = sys.executable) -> subprocess.Popen[bytes]:
        worker = self.start("worker", *arguments, python=python)
        wait_until(lambda: b"worker ready" in worker.log.read_bytes(), worker, seconds=90)  # type: ignore[attr-defined]
        return worker

    def start_judge(self, *arguments: str) -> str:
        """The fake judge server; returns its base URL and makes it the judge of what is started later."""
        server = self.start(*arguments, module="assay.testing")
        log: Path = server.log  # type: ignore[attr-defined]
        wait_until(lambda: b"http://" in log.read_bytes() and b"\n" in log.read_bytes(), server, seconds=90)
        url = next(word for word in log.read_text().split() if word.startswith("http://"))
        self.settings |= {"judge": "openai", "judge_base_url": url, "judge_api_key": "synthetic", "judge_model": "fake"}
        return url

    def start_exporter(self) -> str:
        self.exporter = exporter = self.start("exporter", "--port", "0")
        log: Path = exporter.log  # type: ignore[attr-defined]
        wait_until(lambda: b"/metrics" in log.read_bytes(), exporter, seconds=90)
        return next(word for word in log.read_text().split() if word.endswith("/metrics"))

    def enqueue(self, count: int, start: int = 0) -> None:
        assert enqueue((record(index) for index in range(start, start + count)), self.queue) == count

    def drain(self, *processes: subprocess.Popen[bytes], seconds: float = 120) -> None:
        """Wait until nothing is pending."""
        wait_until(lambda: self.queue.depth().records == 0, *processes, seconds=seconds)

    def outcomes(self) -> dict[str, Counter[str]]:
        """Distinct stored evaluations, counted from the rows themselves: rubric -> outcome -> n."""
        import sqlalchemy as sa

        engine = sa.create_engine(self.database_url)
        with engine.connect() as connection:
            rows = connection.execute(
                sa.text(
                    "SELECT i.rubric, e.outcome, count(*), count(DISTINCT e.record_id) FROM evaluations e "
                    "JOIN instruments i ON i.instrument_id = e.instrument_id GROUP BY i.rubric, e.outcome"
                )
            ).all()
        engine.dispose()
        found: dict[str, Counter[str]] = {}
        for rubric, outcome, rows_count, distinct in rows:
            assert rows_count == distinct, f"{rubric}: a record is {outcome} twice"
            found.setdefault(rubric, Counter())[outcome] += rows_count
        return found

    def record_rows(self) -> int:
        return sum(self.store.counts().received.values())


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


def resident_bytes(process: subprocess.Popen[bytes]) -> int:
    """Memory that it has now."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def wait_until(condition: Any, *processes: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    """Wait for a condition; a process that ends meanwhile, or the time, fails the test with its log."""
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            if process.poll() is not None:
                log = process.log.read_text()  # type: ignore[attr-defined]
                raise AssertionError(f"the process ended with {process.returncode}:\n{log[-3000:]}")
        if time.monotonic() > deadline:
            logs = "\n".join(p.log.read_text()[-2000:] for p in processes)  # type: ignore[attr-defined]
            raise AssertionError(f"not within {seconds} s; logs:\n{logs}")
        time.sleep(0.1)


def samples(url: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of everything at a /metrics URL."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def total(url: str, name: str, **labels: str) -> float:
    """Sum of the samples of this name that have these labels."""
    return sum(v for n, have, v in samples(url) if n == name and all(have.get(k) == x for k, x in labels.items()))


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)
