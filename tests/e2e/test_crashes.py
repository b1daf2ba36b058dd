"""Records that kill the process which judges them: real workers that really die, under a supervisor that restarts them.

The judge that dies is planted by `PLANT`, which the worker runs under; nothing in the product knows of it.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from assay.enqueue import enqueue
from assay.records import Record
from assay.rubrics import load_rubrics
from deployment import Deployment, end, record, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

RUBRICS = [rubric.name for rubric in load_rubrics()]
BATCH = 25
PLANT = '''
"""`assay`, with a lexical judge that dies over what is marked, and takes a while over everything else."""

import asyncio, ctypes, os, resource
from pathlib import Path
from assay.__main__ import main
from assay.judges._lexical import LexicalJudge

libc, honest = ctypes.CDLL(None), LexicalJudge.judge
libc.malloc.restype = ctypes.c_void_p
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


async def judge(self, record, rubrics):
    if "ABORT" in record.input:
        os.abort()
    if "SEGFAULT" in record.input:
        ctypes.memset(8, 0, 1)
    if "MEMORY" in record.input:
        # A library in C that does not look at what malloc returns.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, resource.RLIM_INFINITY))
        ctypes.memset(libc.malloc(ctypes.c_size_t(2**34)) or 8, 1, 2**34)
    await asyncio.sleep(0.3)
    return await honest(self, record, rubrics)


LexicalJudge.judge = judge
main()
'''


class Supervisor:
    """Keeps `count` workers running, as an orchestrator does, and takes down how each of them ended."""

    def __init__(self, deployment: Deployment, count: int) -> None:
        self._deployment = deployment
        (deployment.directory / "planted.py").write_text(PLANT)
        self._workers = [self._start() for _ in range(count)]
        self.ends: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)
        for worker in self._workers:
            end(worker)

    def astray(self) -> bool:
        """Whether a worker ended otherwise than by what was planted."""
        return not set(self.ends) <= {-signal.SIGABRT, -signal.SIGSEGV}

    def _start(self) -> subprocess.Popen[bytes]:
        return self._deployment.start("worker", module="planted")

    def _run(self) -> None:
        while not self._over.wait(0.05):
            for place, worker in enumerate(self._workers):
                if worker.poll() is not None:
                    self.ends.append(worker.returncode)
                    self._workers[place] = self._start()


def test_records_that_kill_workers_are_set_aside_and_all_others_are_scored(tmp_path: Path) -> None:
    marks = {3: "ABORT", 9: "SEGFAULT", 12: "MEMORY"}
    count, deliveries = 4 * BATCH, 2
    settings = {"judge": "lexical", "lease_seconds": 2, "sweep_seconds": 0.3, "max_deliveries": deliveries}

    def made(index: int) -> Record:
        return record(index, input=f"{marks[index]} {index}") if index in marks else record(index)

    with Deployment(tmp_path, f"sqlite:///{tmp_path}/assay.db", **settings) as deployment:
        assert enqueue((made(index) for index in range(count)), deployment.queue) == count
        assert deployment.queue.depth().batches == count // BATCH
        with Supervisor(deployment, 2) as supervisor:
            wait_until(lambda: deployment.queue.depth().records == 0 or supervisor.astray(), seconds=240)
            ends = list(supervisor.ends)
            assert not supervisor.astray(), ends
        letters = deployment.store.dead_letters()
        outcomes = deployment.outcomes()  # which looks at each record being there once, too
        received = deployment.record_rows()
    assert Counter(letter.record_id for letter in letters) == Counter(f"record-{index}" for index in marks)
    assert {letter.reason for letter in letters} == {"crashed"}
    expected = Counter(scored=count - len(marks), failed=len(marks))
    assert outcomes == dict.fromkeys(RUBRICS, expected)
    assert received == count
    # A batch is split when two workers have died with it; then each record has its own deliveries.
    bad_batches = len({index // BATCH for index in marks})
    assert deliveries <= len(ends) <= 2 * bad_batches + deliveries * len(marks)
