"""Records a second through the whole of assay, beside the floor that no client of the same judge can pass, in one run.

Synthetic RAG records (a question, four passages and an answer of about 120 words each), four shipped rubrics in one
call, a local judge that takes 600 ms, 128 calls in flight. Floors: the same request bodies sent by bare asyncio, by
aiohttp, and by AsyncOpenAI over aiohttp, which decode the reply's JSON and do nothing else. assay: a worker process
as it ships, with Redis, Celery, the judge, SQL, rollups and signals, on SQLite and on PostgreSQL, from the first
enqueue until nothing is pending. Rounds are interleaved; shown are medians. CPU is that of the client process alone.

    python benchmarks/throughput.py                                 # 3,000 records, 3 rounds
    python benchmarks/throughput.py --records 1000 --rounds 1 --only raw,sqlite
    python benchmarks/throughput.py --processes 1,2,4,8 --latency 2.4 --only postgresql
    python benchmarks/throughput.py --saturate                      # a judge that costs nothing: what is the limit
    python benchmarks/throughput.py --lag 25,50,100                 # seconds from the enqueue to the gauge, by load
    python benchmarks/throughput.py --json results.json             # what docs/performance.md is made of
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from performance_page import LABELS
from performance_page import throughput as table

from assay.enqueue import enqueue
from assay.judges._prompt import render, schema
from assay.records import Context, Record, now
from assay.rubrics import load_rubrics
from deployment import Deployment, samples, wait_until
from servers import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
FLOORS = ("raw", "aiohttp", "openai")
SYSTEMS = ("sqlite", "postgresql")
_TICK = os.sysconf("SC_CLK_TCK")
_VOCABULARY = (
    "the warranty covers every part of the pump for two years after delivery unless the seal was opened by somebody "
    "other than a certified technician in which case repairs cost 45 euros an hour plus material and shipping returns "
    "are accepted within 30 days when the box is unbroken and the invoice is attached customers outside the union pay "
    "customs duty on arrival our service desk answers on weekdays from nine to five and keeps a record of each call"
)
_WORDS = _VOCABULARY.split()


def _prose(draw: random.Random, words: int) -> str:
    sentences, left = [], words
    while left > 0:
        length = min(left, draw.randint(8, 16))
        sentences.append(" ".join(draw.choices(_WORDS, k=length)).capitalize() + ".")
        left -= length
    return " ".join(sentences)


def rag_record(index: int, **fields: Any) -> Record:
    """A synthetic record: a question, four passages of about 120 words, an answer of about 120 words."""
    draw = random.Random(index)
    given: dict[str, Any] = {
        "record_id": f"synthetic-{index}",
        "timestamp": now(),
        "app": "shop",
        "input": f"What does the warranty cover for {' '.join(draw.choices(_WORDS, k=8))}?",
        "output": _prose(draw, 120),
        "contexts": tuple(Context(text=_prose(draw, 120), score=draw.random()) for _ in range(4)),
        "trace_id": f"{index + 1:032x}",
        "model": "synthetic-model",
        "finish_reason": "stop",
    }
    return Record(**{**given, **fields})


def bodies(count: int) -> list[bytes]:
    """Request bodies as assay's judge sends them, made beforehand."""
    rubrics = [rubric for rubric in load_rubrics() if rubric.ask == "together"]
    wanted = {"name": "verdicts", "strict": True, "schema": schema(rubrics)}
    return [
        json.dumps(
            {
                "model": "benchmark",
                "messages": render(rag_record(index), rubrics),
                "response_format": {"type": "json_schema", "json_schema": wanted},
                "temperature": 0.0,
                "max_tokens": 4096,
            }
        ).encode()
        for index in range(count)
    ]


# -- floors


async def _each(sent: Sequence[bytes], in_flight: int, ask: Any) -> float:
    """Seconds until all are answered, `in_flight` at a time, always."""
    waiting = iter(sent)

    async def lane() -> None:
        for body in waiting:
            await ask(body)

    begun = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(in_flight)))
    return time.perf_counter() - begun


async def raw_floor(url: str, sent: Sequence[bytes], in_flight: int) -> float:
    """Bare asyncio streams, one connection a lane."""
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(body: bytes) -> None:
        reader, writer = idle.pop() if idle else await asyncio.open_connection(host, int(port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        json.loads(json.loads(await reader.readexactly(length))["choices"][0]["message"]["content"])
        idle.append((reader, writer))

    try:
        return await _each(sent, in_flight, ask)
    finally:
        for _, writer in idle:
            writer.close()


async def aiohttp_floor(url: str, sent: Sequence[bytes], in_flight: int) -> float:
    """One aiohttp session."""
    import aiohttp

    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight + 8)) as session:

        async def ask(body: bytes) -> None:
            async with session.post(f"{url}/chat/completions", data=body, headers=headers) as answer:
                json.loads(json.loads(await answer.read())["choices"][0]["message"]["content"])

        return await _each(sent, in_flight, ask)


async def openai_floor(url: str, sent: Sequence[bytes], in_flight: int) -> float:
    """AsyncOpenAI over aiohttp, the way its documentation shows, with limits that do not bind."""
    import openai

    kind = type(openai.DEFAULT_CONNECTION_LIMITS)
    limits = kind(max_connections=in_flight + 8, max_keepalive_connections=in_flight + 8)
    http = openai.DefaultAioHttpClient(limits=limits, timeout=None)
    async with openai.AsyncOpenAI(base_url=url, api_key="synthetic", max_retries=0, http_client=http) as client:

        async def ask(body: bytes) -> None:
            completion = await client.chat.completions.create(**json.loads(body))
            json.loads(completion.choices[0].message.content or "")

        return await _each(sent, in_flight, ask)


def floor_in_this_process(name: str, url: str, records: int, in_flight: int) -> dict[str, float]:
    """Seconds and CPU of one floor, its request bodies not counted."""
    run = {"raw": raw_floor, "aiohttp": aiohttp_floor, "openai": openai_floor}[name]
    sent = bodies(records)
    asyncio.run(run(url, sent[: min(records, in_flight)], in_flight))
    before = _own_cpu()
    seconds = asyncio.run(run(url, sent, in_flight))
    used = _own_cpu() - before
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_seconds": used, "rss_mb": rss_mb}


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def floor(name: str, url: str, given: argparse.Namespace) -> dict[str, float]:
    """One floor in a process of its own."""
    size = ["--records", str(given.records), "--in-flight", str(given.in_flight)]
    command = [sys.executable, __file__, "--floor", name, "--url", url, *size]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# -- assay


@contextlib.contextmanager
def judge_server(*arguments: str) -> Iterator[str]:
    """A judge server of its own; its base URL."""
    server = subprocess.Popen(
        [sys.executable, str(HERE / "judge_server.py"), *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def traffic(url: str) -> dict[str, Any]:
    """The server's own counts."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/traffic", timeout=10) as answer:
        return json.load(answer)


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process and its threads have taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def cpu_below(pid: int) -> float:
    """CPU of a process and those that it started and that live."""
    total = 0.0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(entry.parent.name) == pid or int(fields[1]) == pid:
                total += (int(fields[11]) + int(fields[12])) / _TICK
    return total


def rss_of(pid: int) -> float:
    """The most memory that a process has had, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def deployed(
    directory: Path, database: str, postgres: PostgresServer | None, url: str | None, in_flight: int, **settings: Any
) -> Deployment:
    """A deployment on an empty database; without a URL the keyless judge `rules`."""
    if database == "postgresql":
        assert postgres is not None, "PostgreSQL is not installed"
        place = postgres.create_database()
    else:
        place = f"sqlite:///{directory}/assay.db"
    deployment = Deployment(directory, place, judge_max_in_flight=in_flight, **settings)
    deployment.settings |= {"judge": "rules"} if url is None else _judge_settings(url)
    return deployment


def _judge_settings(url: str) -> dict[str, object]:
    return {"judge": "openai", "judge_base_url": url, "judge_api_key": "synthetic", "judge_model": "benchmark"}


def system(
    database: str,
    postgres: PostgresServer | None,
    url: str | None,
    given: argparse.Namespace,
    *,
    processes: int = 1,
    records: int | None = None,
) -> dict[str, Any]:
    """`records` through `processes` workers: seconds, CPU of the workers, of Redis and of the database, memory."""
    count = records or given.records
    with (
        tempfile.TemporaryDirectory() as directory,
        deployed(Path(directory), database, postgres, url, given.in_flight) as deployment,
    ):
        begun = time.perf_counter()
        workers = [deployment.start_worker()]
        cold_seconds = time.perf_counter() - begun
        workers += [deployment.start_worker() for _ in range(processes - 1)]
        push(
            deployment, range(1_000_000, 1_000_000 + max(200, 100 * processes))
        )  # what is loaded once is loaded by now
        drained(deployment, workers)
        made = [rag_record(index) for index in range(count)]
        server_pids = {"redis": deployment.redis.pid, "postgresql": postgres.pid if postgres else None}
        before = [cpu_of(worker.pid) for worker in workers]
        servers = {server: cpu_below(pid) for server, pid in server_pids.items() if pid}
        begun = time.perf_counter()
        enqueue(made, deployment.queue)
        enqueued = time.perf_counter() - begun
        drained(deployment, workers, left=count // 100)
        most = time.perf_counter() - begun
        drained(deployment, workers)
        seconds = time.perf_counter() - begun
        cpu = [cpu_of(worker.pid) - earlier for worker, earlier in zip(workers, before, strict=True)]
        found = {
            "seconds": seconds,
            "enqueue_seconds": enqueued,
            "most_seconds": most,
            "cpu_seconds": sum(cpu),
            "rss_mb": statistics.mean(rss_of(worker.pid) for worker in workers),
            "cold_start_seconds": cold_seconds,
            **{f"{name}_cpu_seconds": cpu_below(server_pids[name]) - earlier for name, earlier in servers.items()},
        }
        failed = sum(counts["failed"] for counts in deployment.outcomes().values())
        assert deployment.record_rows() >= count, "not every record is stored"
        assert not failed, f"{failed} evaluations failed"
    return found


def push(deployment: Deployment, indexes: Sequence[int] | range, **fields: Any) -> None:
    enqueue((rag_record(index, **fields) for index in indexes), deployment.queue)


def drained(deployment: Deployment, workers: Sequence[Any], left: int = 0) -> None:
    """Wait until no more than so many records are left."""
    deadline = time.monotonic() + 900
    while deployment.queue.depth().records > left:
        assert time.monotonic() < deadline, "the queue does not drain"
        assert all(worker.poll() is None for worker in workers), "a worker has ended"
        time.sleep(0.02)


# -- what is measured


def compare(given: argparse.Namespace, postgres: PostgresServer | None) -> list[dict[str, Any]]:
    """Floors and the whole system in turn; medians."""
    rows: dict[str, list[dict[str, Any]]] = {}
    options = ["--latency", str(given.latency), "--sigma", str(given.sigma), "--faults", given.faults]
    with judge_server(*options, *(["--o200k"] if given.o200k else [])) as url:
        for number in range(given.rounds):
            for name in given.only:
                before = traffic(url)
                if name in FLOORS:
                    found, processes = floor(name, url, given), 1
                    extra = min(given.records, given.in_flight)
                    rows.setdefault(name, []).append(
                        measured_row(name, found, given.records, processes, extra, url, before)
                    )
                    _say(number, rows[name][-1])
                    continue
                for processes in given.processes:
                    before = traffic(url)
                    records = given.records * processes
                    found = system(name, postgres, url, given, processes=processes, records=records)
                    warm = max(200, 100 * processes)
                    key = f"{name} x{processes}"
                    rows.setdefault(key, []).append(measured_row(name, found, records, processes, warm, url, before))
                    _say(number, rows[key][-1])
    return [medians(several) for several in rows.values()]


def measured_row(
    name: str,
    found: dict[str, Any],
    records: int,
    processes: int,
    extra: int,
    url: str,
    before: dict[str, Any],
) -> dict[str, Any]:
    after = traffic(url)
    calls = after["calls"] - before["calls"]
    names = [key for key in after if key.endswith("_tokens")]
    return {
        "name": name,
        "processes": processes,
        "records": records,
        "records_per_second": records / found["seconds"],
        "cpu_ms_per_record": 1000 * found["cpu_seconds"] / records,
        "calls_per_record": calls / (records + extra),
        **{f"{key}_per_record": (after[key] - before[key]) / (records + extra) for key in names},
        **{
            key.replace("_cpu_seconds", "_cpu_ms_per_record"): 1000 * value / records
            for key, value in found.items()
            if key.endswith("_cpu_seconds")
        },
        **{key: found[key] for key in _SECONDS if key in found},
        "most_in_flight": after["max_in_flight"],
    }


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    words = {key: value for key, value in first.items() if key in _KEYS or isinstance(value, str)}
    numbers = {key: statistics.median(row[key] for row in rows) for key in first if key not in words}
    rates = [row["records_per_second"] for row in rows]
    return {**words, **numbers, "rounds": len(rows), "rates": rates}


_KEYS = ("name", "processes", "records")
_SECONDS = ("seconds", "most_seconds", "enqueue_seconds", "rss_mb", "cold_start_seconds")


def _say(number: int, row: dict[str, Any]) -> None:
    print(
        f"round {number + 1}: {row['name']:11}x{row['processes']} {row['records_per_second']:8.1f} records/s "
        f"{row['cpu_ms_per_record']:6.2f} ms CPU a record, load {os.getloadavg()[0]:.1f}",
        file=sys.stderr,
        flush=True,
    )


def saturate(given: argparse.Namespace, postgres: PostgresServer | None) -> list[dict[str, Any]]:
    """The keyless judge, which answers at once: how many records a second the rest can take, and who uses the CPU."""
    rows = []
    for name in (one for one in given.only if one in SYSTEMS):
        for processes in given.processes:
            found = system(name, postgres, None, given, processes=processes)
            rate = given.records / found["seconds"]
            shares = {key: value / found["seconds"] for key, value in found.items() if key.endswith("cpu_seconds")}
            row = {"name": name, "processes": processes, "records": given.records, "records_per_second": rate}
            row |= {f"{key.removesuffix('cpu_seconds') or 'worker_'}cores": value for key, value in shares.items()}
            row["cpu_ms_per_record"] = 1000 * found["cpu_seconds"] / given.records
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def lag(given: argparse.Namespace, postgres: PostgresServer | None) -> list[dict[str, Any]]:
    """Seconds from the enqueue of a record until the exporter shows its app's first score, at several loads."""
    rows = []
    database = next(name for name in given.only if name in SYSTEMS)
    with (
        judge_server("--latency", str(given.latency), "--sigma", str(given.sigma)) as url,
        tempfile.TemporaryDirectory() as directory,
        deployed(Path(directory), database, postgres, url, given.in_flight) as deployment,
    ):
        workers = [deployment.start_worker()]
        metrics = deployment.start_exporter()
        push(deployment, range(1_000_000, 1_000_200))
        drained(deployment, workers)
        for load in given.lag:
            seen = _probe(deployment, metrics, load, given.probes)
            row = {"records_per_second": load, "probes": len(seen), "median_seconds": statistics.median(seen)}
            row["worst_seconds"] = max(seen)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            drained(deployment, workers)
    return rows


def _probe(deployment: Deployment, metrics: str, load: float, probes: int) -> list[float]:
    """At a steady load, time single records that have an app of their own."""
    import threading

    stop = threading.Event()

    def pace() -> None:
        from assay.queue import Queue

        queue = Queue.from_url(deployment.environment["ASSAY_REDIS_URL"])
        begun, sent = time.monotonic(), 0
        while not stop.wait(0.1):
            due = int((time.monotonic() - begun) * load)
            base = int(load * 1_000_000)
            enqueue((rag_record(base + index) for index in range(sent, due)), queue)
            sent = due
        queue.close()

    thread = threading.Thread(target=pace)
    thread.start()
    seen = []
    try:
        time.sleep(3.0)
        for number in range(probes):
            app = f"probe-{int(load)}-{number}"
            begun = time.perf_counter()
            push(deployment, [int(load * 10_000_000) + number], app=app)
            wait_until(partial(_shows, metrics, app), seconds=60)
            seen.append(time.perf_counter() - begun)
    finally:
        stop.set()
        thread.join()
    return seen


def _shows(metrics: str, app: str) -> bool:
    return any(labels.get("app") == app for name, labels, _ in samples(metrics) if name == "assay_score_mean")


# -- what is said


def conditions(given: argparse.Namespace) -> dict[str, Any]:
    """When, on what, and of which versions."""
    packages = ("aiohttp", "celery", "kombu", "openai", "psycopg", "pydantic", "redis", "SQLAlchemy")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "latency_seconds": given.latency,
        "sigma": given.sigma,
        "in_flight": given.in_flight,
        "limit_records_per_second": given.in_flight / given.latency,
        "versions": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=3000, help="for each worker process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.6, help="of the judge, in seconds")
    parser.add_argument("--sigma", type=float, default=0.0, help="of the logarithm of the latency")
    parser.add_argument("--faults", default="", help="shares of the judge's answers, such as 429=0.05,500=0.05")
    parser.add_argument("--in-flight", type=int, default=128, help="judge calls in flight in one process")
    parser.add_argument("--processes", default="1", help="such as 1,2,4,8")
    parser.add_argument("--only", default=",".join((*FLOORS, *SYSTEMS)))
    parser.add_argument("--o200k", action="store_true", help="count tokens with tiktoken as well")
    parser.add_argument("--saturate", action="store_true")
    parser.add_argument("--lag", help="loads in records/s, such as 25,50,100")
    parser.add_argument("--probes", type=int, default=10, help="records timed at each load")
    parser.add_argument("--json", type=Path, help="add the results to this file, under the name of what was measured")
    parser.add_argument("--floor", choices=FLOORS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.floor:
        print(json.dumps(floor_in_this_process(given.floor, given.url, given.records, given.in_flight)))
        return
    given.only = given.only.split(",")
    given.processes = [int(part) for part in given.processes.split(",")]
    if given.faults and set(given.only) & set(FLOORS):
        parser.error("--faults: a floor does not try again; choose --only sqlite,postgresql")
    if unknown := sorted(set(given.only) - set(LABELS)):
        parser.error(f"--only: {unknown[0]} is not one of {', '.join(LABELS)}")
    postgres = PostgresServer() if "postgresql" in given.only else None
    try:
        if given.saturate:
            kind, rows = "saturation", saturate(given, postgres)
        elif given.lag:
            given.lag = [float(part) for part in given.lag.split(",")]
            kind, rows = "lag", lag(given, postgres)
        else:
            kind = "throughput" if given.processes == [1] else "processes"
            kind += "_spread" if given.sigma else ""
            rows = compare(given, postgres)
            print(table(rows))
    finally:
        if postgres is not None:
            postgres.close()
    if given.json:
        known = json.loads(given.json.read_text()) if given.json.exists() else {}
        known[kind] = {"conditions": conditions(given), "rows": rows}
        given.json.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
