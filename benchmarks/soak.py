"""A soak: assay at full rate for half an hour, and whether memory, descriptors and connections stay flat.

Real Redis, database, worker and exporter processes and a local judge; a feeder keeps the queue filled and the exporter
is scraped every five seconds. Sampled are RSS, file descriptors, threads and the connections to Redis and to the
database, of worker and exporter. After the first third, each is fitted by a line. `flat` means that the line's growth
over the rest, with its 95 % interval, is below the allowance; `grows` that the interval lies above it; `unclear` is
between. Exit code 1 when anything grows.

    python benchmarks/soak.py                                    # 30 minutes on SQLite
    python benchmarks/soak.py --minutes 5 --database postgresql --svg soak.svg --json soak.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from throughput import deployed, judge_server, rag_record

from assay._markup import element, number
from assay.enqueue import enqueue
from assay.errors import QueueError
from deployment import Deployment, samples
from servers import PostgresServer

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

    from assay._markup import Markup
    from assay.records import Record

#: What may be gained after warm-up and still be called flat: a share of the level for memory, a number for the rest.
ALLOWED_MEMORY_SHARE = 0.05
ALLOWED_COUNT = 1.0
_BLOCKS = 12
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Trend:
    """The line through one series after warm-up, and what it says. Growth is over the time fitted, in its unit."""

    name: str
    unit: str
    level: float
    growth: float
    low: float
    high: float
    allowed: float
    verdict: str


def status_of(pid: int) -> tuple[float, float]:
    """Memory in use now, in MB, and the number of threads."""
    text = Path(f"/proc/{pid}/status").read_text()
    rss, threads = (int(text.partition(f"{name}:")[2].split()[0]) for name in ("VmRSS", "Threads"))
    return rss / 1024, float(threads)


def descriptors(pid: int) -> list[str]:
    """What each open file descriptor of a process leads to."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(entry.readlink()))
    return found


def connections(pid: int, links: Sequence[str], port: int) -> int:
    """How many of a process's sockets are connected to a port, over IPv4."""
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = (line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:])
    return sum(row[9] in inodes and int(row[2].rpartition(":")[2], 16) == port for row in rows)


def sample(pid: int, redis_port: int, database: int | Path) -> dict[str, float]:
    """One reading of one process. `database` is PostgreSQL's port, or SQLite's file."""
    rss, threads = status_of(pid)
    links = descriptors(pid)
    to_database = (
        connections(pid, links, database) if isinstance(database, int) else sum(link == str(database) for link in links)
    )
    return {
        "memory MB": rss,
        "descriptors": float(len(links)),
        "threads": threads,
        "Redis connections": float(connections(pid, links, redis_port)),
        "database connections": float(to_database),
    }


def trend(name: str, unit: str, times: Sequence[float], values: Sequence[float]) -> Trend:
    """Least squares through the means of blocks after the first third: blocks, for neighbours are alike."""
    begin = times[0] + (times[-1] - times[0]) / 3
    kept = [(at, value) for at, value in zip(times, values, strict=True) if at >= begin]
    blocks = min(_BLOCKS, len(kept) // 2)
    level = statistics.fmean(value for _, value in kept)
    allowed = ALLOWED_MEMORY_SHARE * level if unit == "MB" else ALLOWED_COUNT
    if blocks < 4:
        return Trend(name, unit, level, math.nan, math.nan, math.nan, allowed, "unclear")
    cut = [kept[i * len(kept) // blocks : (i + 1) * len(kept) // blocks] for i in range(blocks)]
    x = [statistics.fmean(at for at, _ in block) for block in cut]
    y = [statistics.fmean(value for _, value in block) for block in cut]
    slope, intercept = statistics.linear_regression(x, y)
    rest = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    spread = sum((a - statistics.fmean(x)) ** 2 for a in x)
    half = float(student.ppf(0.975, blocks - 2)) * math.sqrt(rest / (blocks - 2) / spread)
    span = kept[-1][0] - kept[0][0]
    low, high = (slope - half) * span, (slope + half) * span
    verdict = "flat" if high <= allowed else "grows" if low > allowed else "unclear"
    return Trend(name, unit, level, slope * span, low, high, allowed, verdict)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The series as one line of text, from 0 to its greatest value."""
    width = min(width, len(values))
    means = [statistics.fmean(values[i * len(values) // width : (i + 1) * len(values) // width]) for i in range(width)]
    top = max(means) or 1.0
    return "".join(_BARS[min(7, int(value / top * 7.999))] for value in means)


def plot(times: Sequence[float], series: dict[str, list[float]], trends: Sequence[Trend]) -> Markup:
    """Small plots of every series from 0 up, over minutes, with the fitted part shaded."""
    wide, high, gap = 380.0, 110.0, 46.0
    panels: list[Markup] = []
    last = times[-1] or 1.0
    for place, found in enumerate(trends):
        values = series[found.name]
        left, top = 40 + (place % 2) * (wide + 60), 40 + (place // 2) * (high + gap)
        most = max(values) * 1.1 or 1.0
        points = " ".join(
            f"{number(left + wide * at / last)},{number(top + high - high * value / most)}"
            for at, value in zip(times, values, strict=True)
        )
        colour = {"flat": "#2a7f3f", "grows": "#b3261e"}.get(found.verdict, "#8a6d00")
        panels += [
            element(
                "rect",
                x=number(left + wide / 3),
                y=number(top),
                width=number(wide * 2 / 3),
                height=number(high),
                fill="#f1f3f4",
            ),
            element(
                "rect",
                x=number(left),
                y=number(top),
                width=number(wide),
                height=number(high),
                fill="none",
                stroke="#9aa0a6",
            ),
            element("polyline", points=points, fill="none", stroke=colour, stroke_width="1.5"),
            element("text", f"{found.name}: {found.verdict}", x=number(left), y=number(top - 6), font_size="13"),
            element("text", f"{most:.3g}", x=number(left - 4), y=number(top + 10), font_size="10", text_anchor="end"),
            element("text", "0", x=number(left - 4), y=number(top + high), font_size="10", text_anchor="end"),
            element(
                "text",
                f"{last / 60:.3g} min",
                x=number(left + wide),
                y=number(top + high + 14),
                font_size="10",
                text_anchor="end",
            ),
        ]
    height = 40 + math.ceil(len(trends) / 2) * (high + gap)
    return element(
        "svg",
        element("title", "Soak: resources over time"),
        element("rect", width="100%", height="100%", fill="#fff"),
        *panels,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {number(2 * wide + 120)} {number(height)}",
        font_family="sans-serif",
    )


class Feeder:
    """Keeps the queue filled on a thread of its own."""

    def __init__(self, deployment: Deployment, backlog: int) -> None:
        self._deployment, self._backlog = deployment, backlog
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.fed = 0
        self.error: Exception | None = None

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        try:
            enqueue(self._records(), self._deployment.queue)
        except Exception as error:  # noqa: BLE001 - told by `check`
            self.error = error

    def _records(self) -> Iterator[Record]:
        while not self._over.is_set():
            if self.fed % 25 == 0:
                while self._deployment.queue.depth().records > self._backlog and not self._over.wait(0.05):
                    pass
            yield rag_record(self.fed)
            self.fed += 1

    def check(self) -> None:
        if self.error is not None:
            raise QueueError(f"the feeder ended: {self.error}")


def soak(given: argparse.Namespace, postgres: PostgresServer | None) -> dict[str, Any]:
    """Run it; times in seconds since the start, series by name, trends, records."""
    with (
        tempfile.TemporaryDirectory(prefix="assay-soak-") as place,
        judge_server("--latency", str(given.latency)) as url,
        deployed(Path(place), given.database, postgres, url, 128) as deployment,
    ):
        processes: dict[str, subprocess.Popen[bytes]] = {"worker": deployment.start_worker()}
        metrics = deployment.start_exporter()
        processes["exporter"] = deployment.exporter
        database = postgres.port if postgres is not None else (Path(place) / "assay.db").resolve()
        times: list[float] = []
        series: dict[str, list[float]] = {}
        with Feeder(deployment, given.backlog) as feeder:
            began, end = time.monotonic(), 60 * given.minutes
            while (at := time.monotonic() - began) < end:
                feeder.check()
                for _ in samples(metrics):
                    pass
                times.append(at)
                for process, running in processes.items():
                    if running.poll() is not None:
                        raise RuntimeError(f"the {process} ended:\n{running.log.read_text()[-2000:]}")  # type: ignore[attr-defined]
                    for name, value in sample(running.pid, deployment.redis.port, database).items():
                        series.setdefault(f"{process} {name}", []).append(value)
                series.setdefault("Redis memory MB", []).append(deployment.queue.info().used_memory_bytes / 1e6)
                stored = deployment.record_rows()
                say = "  ".join(f"{p} {series[f'{p} memory MB'][-1]:.0f} MB" for p in processes)
                print(f"{at / 60:6.1f} min  {stored:>9,} records  {say}", file=sys.stderr, flush=True)
                time.sleep(max(0.0, began + at + given.every - time.monotonic()))
            seconds, records = time.monotonic() - began, deployment.record_rows()
    trends = [trend(name, "MB" if name.endswith("MB") else "", times, values) for name, values in series.items()]
    return {"times": times, "series": series, "trends": trends, "records": records, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Full rate for half an hour: does anything grow?")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--latency", type=float, default=0.6, help="seconds that the judge takes (default 0.6)")
    parser.add_argument("--backlog", type=int, default=500, help="records that wait in the queue (default 500)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples (default 5)")
    parser.add_argument("--svg", type=Path, help="write the plot here")
    parser.add_argument("--json", type=Path, help="write series and trends here")
    given = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        postgres = PostgresServer() if given.database == "postgresql" else None
        if postgres is not None:
            stack.callback(postgres.close)
        found = soak(given, postgres)
    times, series, trends = found["times"], found["series"], found["trends"]
    rate = found["records"] / found["seconds"]
    print(f"{found['records']:,} records in {found['seconds'] / 60:.1f} minutes, {rate:.0f} a second; {given.database}")
    print(f"{'':<30} {'level':>8} {'growth after warm-up':>26}  {'verdict':<8}")
    for t in trends:
        grown = f"{t.growth:+.2f} [{t.low:+.2f}, {t.high:+.2f}]"
        print(f"{t.name:<30} {t.level:8.1f} {grown:>26}  {t.verdict:<8} {sparkline(series[t.name])}")
    if given.svg:
        given.svg.write_text(str(plot(times, series, trends)))
    if given.json:
        result = found | {"database": given.database, "trends": [asdict(t) for t in trends]}
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(t.verdict == "grows" for t in trends))


if __name__ == "__main__":
    sys.exit(main())
