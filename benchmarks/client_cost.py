"""What `client.record()` costs the app's thread, with Redis up, down and stopped; and what importing assay costs.

    python benchmarks/client_cost.py [--seconds 8]

Records come at 500 a second, as from an app under load, not back to back: then the sender's thread works between
the calls, and the caches are as cold as in life. Two times are taken of each call: the wall clock's, into which falls
whatever else the machine does, and the processor time of the thread alone, which is what the call costs the app.
`json.dumps` of the same record, in the same loop, says how much of the wall clock's is the machine.

Exits with 1 when a bound is not met. Bounds are ratios, for machines differ: the thread's time at most 3 times that of
json.dumps at the median and 8 times at p99, and an import that adds no more than a bare interpreter takes to start, and
loads the standard library only.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from assay import Client
from assay.embedded import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable

RATE = 500
MEDIAN_RATIO, P99_RATIO = 3.0, 8.0
# Synthetic: a retrieval-augmented answer of usual size, about 4 kB.
QUESTION = "How do I change the delivery address of an order that has already been paid? " * 2
PASSAGES = ["Orders can be changed until they are handed to the carrier. " * 12 for _ in range(4)]
ANSWER = "Open the order, choose Change address and confirm it; this works until the parcel has left. " * 8


#: What the app does between two calls: under load it does not sleep, and a core that sleeps is slow to wake.
WORK = {"input": QUESTION, "output": ANSWER, "contexts": PASSAGES}


def interaction(number: int) -> dict[str, object]:
    return {
        "input": QUESTION,
        "output": ANSWER,
        "contexts": PASSAGES,
        "trace_id": f"{number:032x}",
        "route": "/ask",
        "model": "gpt-5-mini",
        "latency_seconds": 1.25,
        "cohort": {"tenant": "blue"},
        "usage": {"prompt_tokens": 900, "completion_tokens": 120},
        "metadata": {"deployment": "eu-1"},
    }


def call_seconds(
    call: Callable[[dict[str, object]], object], seconds: float, rate: float = RATE
) -> tuple[list[float], list[float]]:
    """Wall clock's and thread's time of each call, at so many calls a second."""
    durations, costs = [], []
    start = time.perf_counter()
    for number in range(int(seconds * RATE)):
        while time.perf_counter() < start + number / rate:
            json.loads(json.dumps(WORK))
        fields = interaction(number)
        used = time.thread_time_ns()
        before = time.perf_counter()
        call(fields)
        durations.append(time.perf_counter() - before)
        costs.append((time.thread_time_ns() - used) / 1e9)
    # Not the first ones: the thread starts and imports redis then.
    return durations[RATE // 2 :], costs[RATE // 2 :]


def quantiles(durations: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(durations, n=100)
    return cuts[49], cuts[98]


def _micros(*times: float) -> str:
    return " | ".join(f"{time * 1e6:.1f}" for time in times)


def import_seconds(statement: str) -> tuple[float, float]:
    """What a statement adds to a bare interpreter's start, and that start: medians, with the bytecode cached."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        subprocess.run([sys.executable, "-c", statement], env=environment, check=True)

        def start_seconds(code: str) -> float:
            before = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], env=environment, check=True)
            return time.perf_counter() - before

        pairs = [(start_seconds(statement), start_seconds("pass")) for _ in range(25)]
    start = statistics.median(bare for _, bare in pairs)
    return statistics.median(loaded for loaded, _ in pairs) - start, start


def foreign_modules(statement: str) -> list[str]:
    """Modules outside the standard library, other than assay's, that a statement loads."""
    code = (
        f"import sys; before = set(sys.modules); {statement}\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(names - set(sys.stdlib_module_names) - {'assay'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each case runs")
    seconds = parser.parse_args().seconds
    logging.disable()  # the client says that Redis is away: so it should be
    failed = False
    wall, cost = call_seconds(json.dumps, seconds)
    (json_p50, json_p99), (json_cpu_p50, json_cpu_p99) = quantiles(wall), quantiles(cost)
    print(
        "| microseconds in the app's thread | wall p50 | p99 | thread p50 | p99 | p50 / json.dumps | sent | dropped |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    print(f"| json.dumps of the record | {_micros(json_p50, json_p99, json_cpu_p50, json_cpu_p99)} | 1.0 | | |")
    with tempfile.TemporaryDirectory() as directory:
        for case in ("up", "down", "stopped (SIGSTOP)", "up, back to back"):
            server = RedisServer(Path(directory) / case.replace(" ", "-"))
            server.start()
            client = Client("bench", redis_url=server.url, buffer_records=1_000)
            if case == "down":
                server.stop()
            elif case != "up":
                client.record(input="connects the client")
                client.flush()
            if case.startswith("stopped"):
                server.pause()
            rate = math.inf if case.endswith("back to back") else RATE
            wall, cost = call_seconds(lambda fields: client.record(**fields), seconds, rate)  # type: ignore[arg-type]  # noqa: B023
            (p50, p99), (cpu_p50, cpu_p99) = quantiles(wall), quantiles(cost)
            stats = client.stats()
            client.close()
            server.stop()
            failed |= cpu_p50 > MEDIAN_RATIO * json_cpu_p50 or cpu_p99 > P99_RATIO * json_cpu_p99
            print(
                f"| record(), Redis {case} | {_micros(p50, p99, cpu_p50, cpu_p99)} | {p50 / json_p50:.1f} "
                f"| {stats.sent} | {sum(stats.dropped.values())} |"
            )
    print("\n| import | adds ms | modules outside the standard library |")
    print("|---|--:|---|")
    for statement in ("import assay", "from assay import Client"):
        (added, bare), foreign = import_seconds(statement), foreign_modules(statement)
        failed |= bool(foreign) or (statement == "import assay" and added >= bare)
        print(f"| `{statement}` | {added * 1e3:.1f} | {', '.join(foreign) or 'none'} |")
    print("\nA bound is not met." if failed else "\nEvery bound is met.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
