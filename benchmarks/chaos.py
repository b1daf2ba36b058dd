"""Nothing lost and nothing doubled while everything fails: a whole deployment under a seeded storm of faults.

Real Redis (append-only), a real database, real `assay worker` processes, an exporter, and a local judge of whose
answers 20 % are 429, 500, hung, cut, disconnected or garbage. Records come through the client and through
`assay.enqueue`. Meanwhile workers are killed with -9 every few seconds, Redis is stopped and restarted and stopped
with SIGSTOP, the database is taken away and brought back, and doorbells and whole batches are delivered twice. Then
all is left to drain, dead letters are replayed, and everything is counted. Exit code 1 when a check fails.

    python benchmarks/chaos.py                                  # 500 records on each configuration
    python benchmarks/chaos.py --records 100000                 # the full claim; takes an hour or more
    python benchmarks/chaos.py --only postgresql --workers 3 --seed 7 --json results.json

docs/howto/chaos.md says what each fault is and how to read the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from assay import Client
from assay.enqueue import enqueue
from assay.errors import AssayError, QueueError
from assay.queue import doorbell
from assay.rubrics import load_rubrics
from deployment import Deployment, record, samples
from servers import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DATABASES = ("sqlite", "postgresql")
#: Shares of the judge's answers: 20 % in all.
JUDGE_FAULTS = {"429": 0.05, "500": 0.05, "hang": 0.03, "cut": 0.03, "disconnect": 0.02, "garbage": 0.02}
FAULTS = ("redis restarted", "redis stopped", "database away")
SETTINGS: dict[str, object] = {
    "retry_base_seconds": 0.5,
    "retry_max_seconds": 5,
    "judge_timeout_seconds": 3,
    "lease_seconds": 4,
    "concurrency": 4,
    # Few tries, so that some records end as dead letters and there is something to replay.
    "max_attempts": 2,
}
_CHUNK = 25


@dataclass(slots=True, kw_only=True)
class Plan:
    """One run. Times are in seconds."""

    database: str
    workers: int
    records: int
    seed: int = 0
    #: how long Redis is stopped with SIGSTOP, and how long Redis and the database are away
    stopped_seconds: float = 20.0
    away_seconds: float = 4.0
    #: between one fault's end and the next one's beginning
    pause_seconds: float = 4.0
    #: a worker lives about as long once all are ready; five times that while nothing is stored, or a slow machine would
    #: never come to an end
    kill_seconds: float = 5.0
    #: the most records that wait in the queue while more are enqueued
    backlog: int = 2_000
    drain_seconds: float = 300.0

    @property
    def cycle_seconds(self) -> float:
        """What one round of all faults takes."""
        return self.stopped_seconds + 2 * self.away_seconds + (len(FAULTS) + 1) * self.pause_seconds


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one run came to; `violations` is empty when every check held."""

    database: str
    workers: int
    records: int
    lost: int = 0
    duplicate_scores: int = 0
    failed: int = 0
    #: kind of the stored failure -> how many, of all rubrics
    failure_kinds: dict[str, int] = field(default_factory=dict)
    recovered: int = 0
    set_aside: int = 0
    judge_calls: int = 0
    judge_faults: int = 0
    repeated_calls: int = 0
    kills: int = 0
    worker_exits: int = 0
    doorbells_doubled: int = 0
    batches_doubled: int = 0
    seconds: float = 0.0
    #: fault -> seconds from each one's end to the first commit after it
    recovery_seconds: dict[str, list[float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    @property
    def records_per_second(self) -> float:
        """Over the whole run, faults included."""
        return self.records / self.seconds if self.seconds else 0.0

    @property
    def repeated_share(self) -> float:
        """Judge calls that were made again though the first one was not at fault."""
        return self.repeated_calls / self.judge_calls if self.judge_calls else 0.0


class Storm:
    """The threads that feed a deployment and hurt it. `errors` are those of the harness itself."""

    def __init__(self, deployment: Deployment, plan: Plan, postgres: PostgresServer | None) -> None:
        self.deployment = deployment
        self.plan = plan
        self.postgres = postgres
        self.workers: list[subprocess.Popen[bytes]] = []
        self.outcome = Outcome(database=plan.database, workers=plan.workers, records=plan.records)
        self.errors: list[str] = []
        self.ended: list[tuple[str, float]] = []
        #: (when, records stored) for as long as the database answers
        self.progress: list[tuple[float, int]] = []
        self.fed = threading.Event()
        #: all workers are up for the first time
        self.ready = threading.Event()
        self._calm = threading.Event()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for number, part in enumerate((self._feed_client, self._feed_enqueue, self._supervise, self._double)):
            self._run(part, random.Random(f"{self.plan.seed}/{number}"))
        self._run(self._watch, None)

    def calm(self) -> None:
        """No more faults; the workers live on."""
        self._calm.set()

    def stop(self) -> None:
        for event in (self._calm, self._over, self.ready):
            event.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, part: Callable[..., None], draw: random.Random | None) -> None:
        def run() -> None:
            try:
                part(draw)
            except Exception as error:  # noqa: BLE001 - told in the outcome
                self.errors.append(f"{part.__name__}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=run, name=part.__name__, daemon=True)
        thread.start()
        self._threads.append(thread)

    # -- records

    def _pace(self, start: int, stop: int) -> Iterator[range]:
        """Chunks of indexes, over one cycle at least, and never far ahead of the workers."""
        self.ready.wait()
        began, plan = time.monotonic(), self.plan
        whole = stop - start
        while start < stop and not self._over.is_set():
            due = whole * (time.monotonic() - began) / (0.9 * plan.cycle_seconds)
            ahead = self._pending() > plan.backlog
            if ahead or whole - (stop - start) > due:
                self._over.wait(0.05)
                continue
            yield range(start, min(stop, start + _CHUNK))
            start += _CHUNK

    def _pending(self) -> int:
        try:
            return self.deployment.queue.depth().records
        except QueueError:
            return 0

    def _feed_client(self, _: random.Random) -> None:
        """The first half goes through the client, as an app would send it; its buffer bridges the outages."""
        half = self.plan.records // 2
        client = Client("shop", redis_url=self.deployment.redis.url, flush_seconds=0.2, buffer_records=max(half, 1000))
        for indexes in self._pace(0, half):
            for index in indexes:
                made = record(index)
                client.record(
                    record_id=made.record_id,
                    input=made.input,
                    output=made.output,
                    contexts=[context.text for context in made.contexts],
                    trace_id=made.trace_id,
                )
        client.flush(self.plan.drain_seconds)
        stats = client.stats()
        client.close()
        if stats.sent != half or stats.dropped:
            self.errors.append(f"the client sent {stats.sent} of {half}, dropped {stats.dropped}")
        self._fed_one()

    def _feed_enqueue(self, _: random.Random) -> None:
        """The rest through `assay.enqueue`; a chunk whose push failed is enqueued again, as a script would."""
        for indexes in self._pace(self.plan.records // 2, self.plan.records):
            while not self._over.is_set():
                try:
                    enqueue((record(index) for index in indexes), self.deployment.queue)
                    break
                except QueueError:
                    self._over.wait(0.5)
        self._fed_one()

    def _fed_one(self) -> None:
        if hasattr(self, "_one_fed"):
            self.fed.set()
        self._one_fed = True

    # -- faults

    def _supervise(self, draw: random.Random) -> None:
        """Keep the wanted number of workers alive, as an orchestrator does, and kill one now and then."""
        plan, kill_at, stored = self.plan, 0.0, 0
        for _ in range(plan.workers):
            self.workers.append(self.deployment.start("worker"))
        while not self._over.is_set():
            for place, worker in enumerate(self.workers):
                if worker.poll() is not None:
                    self.outcome.worker_exits += worker.returncode != -signal.SIGKILL
                    self.workers[place] = self.deployment.start("worker")
            ready = [worker for worker in self.workers if is_ready(worker)]
            if len(ready) == len(self.workers):
                self.ready.set()
            if self._calm.is_set() or len(ready) < len(self.workers):
                kill_at = 0.0
            elif not kill_at:
                kill_at, stored = time.monotonic() + plan.kill_seconds * draw.uniform(0.6, 1.4), self._stored()
            elif time.monotonic() >= kill_at + (0 if self._stored() > stored else 4 * plan.kill_seconds):
                draw.choice(ready).kill()
                self.ended.append(("worker killed", time.monotonic()))
                self.outcome.kills += 1
                kill_at = 0.0
            self._over.wait(0.1)

    def _stored(self) -> int:
        """Records stored when the database last answered."""
        return self.progress[-1][1] if self.progress else 0

    def _double(self, draw: random.Random) -> None:
        """Ring again for batches that are pending or in hand, and store some a second time under another id."""
        queue = self.deployment.queue
        raw, number = queue._redis, 0
        while not self._calm.wait(0.5):
            with contextlib.suppress(QueueError, OSError, redis_errors()):
                ids = [name.decode() for name in raw.hrandfield(f"assay:{queue.name}:batches", 2) or []]
                for batch_id in sorted(ids):
                    raw.lpush(queue.name, doorbell(queue.name, batch_id))
                    self.outcome.doorbells_doubled += 1
                    payload = raw.hget(f"assay:{queue.name}:batches", batch_id)
                    size = raw.hget(f"assay:{queue.name}:sizes", batch_id)
                    if payload and size and not batch_id.startswith("twice-") and draw.random() < 0.1:
                        number += 1
                        copy = f"twice-{number}"
                        queue.push(payload, batch_id=copy, records=int(size), enqueued_at=time.time())
                        self.outcome.batches_doubled += 1

    def _watch(self, _: None) -> None:
        while not self._over.wait(0.1):
            with contextlib.suppress(AssayError):
                self.progress.append((time.monotonic(), self.deployment.record_rows()))

    def hurt(self, tell: Callable[[str], None]) -> None:
        """Rounds of all faults in a drawn order until everything is enqueued, one round at least."""
        draw = random.Random(f"{self.plan.seed}/faults")
        while True:
            for fault in draw.sample(FAULTS, len(FAULTS)):
                time.sleep(self.plan.pause_seconds)
                tell(fault)
                self._fault(fault)
                self.ended.append((fault, time.monotonic()))
            if self.fed.wait(self.plan.pause_seconds) or self.errors:
                return

    def _fault(self, fault: str) -> None:
        redis = self.deployment.redis
        if fault == "redis stopped":
            redis.pause()
            time.sleep(self.plan.stopped_seconds)
            redis.resume()
        elif fault == "redis restarted":
            redis.stop()
            time.sleep(self.plan.away_seconds)
            redis.start()
        elif self.postgres is not None:
            self.postgres.stop()
            time.sleep(self.plan.away_seconds)
            self.postgres.start()
        else:
            with lock_of(self.deployment.directory / "assay.db"):
                time.sleep(self.plan.away_seconds)

    def recoveries(self) -> dict[str, list[float]]:
        """Fault -> seconds from each one's end to the first commit seen after it; without one, nothing."""
        found: dict[str, list[float]] = {}
        for fault, end in self.ended:
            before = max((stored for at, stored in self.progress if at <= end), default=0)
            after = next((at for at, stored in self.progress if at > end and stored > before), None)
            if after is not None:
                found.setdefault(fault, []).append(after - end)
        return found


def redis_errors() -> type[Exception]:
    import redis

    return redis.RedisError


@contextlib.contextmanager
def lock_of(file: Path) -> Iterator[None]:
    """Hold the only write lock of a SQLite database."""
    connection = sqlite3.connect(file, timeout=30, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def is_ready(worker: subprocess.Popen[bytes]) -> bool:
    return b"worker ready" in worker.log.read_bytes()  # type: ignore[attr-defined]


def run(plan: Plan, postgres: PostgresServer | None, tell: Callable[[str], None] = lambda _: None) -> Outcome:
    """One configuration from its first record to the last check."""
    with tempfile.TemporaryDirectory(prefix="assay-chaos-") as place:
        directory = Path(place)
        url = postgres.create_database() if postgres is not None else f"sqlite:///{directory}/assay.db"
        with Deployment(directory, url, **SETTINGS) as deployment:
            faults = ",".join(f"{name}={share}" for name, share in JUDGE_FAULTS.items())
            judge = deployment.start_judge("--latency", "0.1", "--faults", faults, "--seed", str(plan.seed))
            metrics = deployment.start_exporter()
            storm = Storm(deployment, plan, postgres)
            told = Progress(deployment, plan, tell)
            began = time.monotonic()
            try:
                storm.start()
                if not storm.ready.wait(120):
                    raise RuntimeError("the workers are not ready after two minutes; is the machine overloaded?")
                began = time.monotonic()
                storm.hurt(told)
                storm.calm()
                if drain(storm, told, "draining"):
                    replay(storm)
                    drain(storm, told, "replaying")
                storm.outcome.seconds = time.monotonic() - began
            finally:
                storm.stop()
            time.sleep(1.5)  # the exporter keeps a scrape for a second
            storm.outcome.recovery_seconds = storm.recoveries()
            storm.outcome.violations += storm.errors
            count(storm.outcome, deployment, metrics, judge)
            return storm.outcome


def replay(storm: Storm) -> None:
    """Put every dead letter on the queue again; a violation, and a table all the same, when the command cannot."""
    try:
        done = storm.deployment.run("dead", "replay", "--all", check=False, timeout_seconds=600)
    except subprocess.TimeoutExpired as error:
        storm.errors.append(f"assay dead replay --all is not through after {error.timeout:g} s")
        return
    if done.returncode:
        storm.errors.append(f"assay dead replay --all: {done.stderr.decode(errors='replace').strip()}")


class Progress:
    """One line of where a run stands, whenever something happens."""

    def __init__(self, deployment: Deployment, plan: Plan, tell: Callable[[str], None]) -> None:
        self._deployment, self._plan, self._tell = deployment, plan, tell
        self._began = time.monotonic()

    def __call__(self, what: str) -> None:
        stored: int | str = "?"
        with contextlib.suppress(AssayError):
            stored = self._deployment.record_rows()
        seconds = time.monotonic() - self._began
        name = f"{self._plan.database} x {self._plan.workers}"
        self._tell(
            f"{name:<15} {seconds:6.1f} s  {what:<16} stored {stored:,} of {self._plan.records:,}"
            if isinstance(stored, int)
            else f"{name:<15} {seconds:6.1f} s  {what:<16} stored ?"
        )


def drain(storm: Storm, told: Progress, what: str) -> bool:
    """Wait until nothing is pending; a violation when that takes too long without any progress."""
    seen, moved, spoke = -1, time.monotonic(), 0.0
    while True:
        pending = storm._pending() if storm.fed.is_set() else -2
        if pending == 0:
            return True
        now = time.monotonic()
        if pending != seen:
            seen, moved = pending, now
        if now - moved > storm.plan.drain_seconds:
            storm.errors.append(f"{what}: {pending} records pending, and none less for {storm.plan.drain_seconds:g} s")
            return False
        if now - spoke > 5:
            told(what)
            spoke = now
        time.sleep(0.1)


def count(outcome: Outcome, deployment: Deployment, metrics: str, judge: str) -> None:
    """Hold what is stored against what was enqueued, what the exporter says, and what the judge was asked."""
    import sqlalchemy as sa

    rubrics = {rubric.name for rubric in load_rubrics()}
    engine = sa.create_engine(deployment.database_url)
    with engine.connect() as connection:
        records = {row[0] for row in connection.execute(sa.text("SELECT record_id FROM records"))}
        rows = connection.execute(
            sa.text(
                "SELECT i.rubric, e.record_id, e.outcome, e.failure_kind FROM evaluations e "
                "JOIN instruments i ON i.instrument_id = e.instrument_id"
            )
        ).all()
    engine.dispose()
    wrong = outcome.violations
    enqueued = {f"record-{index}" for index in range(outcome.records)}
    per_rubric = {rubric: Counter[str]() for rubric in rubrics}
    stored: dict[str, Counter[str]] = {rubric: Counter() for rubric in rubrics}
    outcome.failure_kinds = dict(Counter(failure for *_, failure in rows if failure).most_common())
    for rubric, record_id, kind, _ in rows:
        per_rubric.setdefault(rubric, Counter())[record_id] += 1
        stored.setdefault(rubric, Counter())[kind] += 1
    complete = set.intersection(*(set(per_rubric[rubric]) for rubric in rubrics)) & records
    outcome.lost = len(enqueued - complete)
    outcome.duplicate_scores = sum(n - 1 for counted in per_rubric.values() for n in counted.values())
    outcome.failed = sum(kinds["failed"] for kinds in stored.values())
    counts = deployment.store.counts()
    outcome.set_aside = counts.dead_total.get("crashed", 0)
    if outcome.lost:
        wrong.append(f"{outcome.lost} records lost, such as {sorted(enqueued - complete)[:3]}")
    if outcome.duplicate_scores:
        wrong.append(f"{outcome.duplicate_scores} scores are stored twice")
    if records - enqueued:
        wrong.append(f"{len(records - enqueued)} records stored that nobody enqueued")
    if outcome.set_aside:
        wrong.append(f"{outcome.set_aside} records set aside as crashed, though none of them crashes anything")

    wrong += compare(outcome, stored, metrics)
    with urllib.request.urlopen(judge.removesuffix("/v1") + "/traffic", timeout=10) as answer:
        traffic: dict[str, Any] = json.load(answer)
    outcome.judge_calls = traffic["calls"]
    outcome.judge_faults = sum(n for name, n in traffic["played"].items() if name != "ok")
    answered = max((kinds["scored"] + kinds["not_applicable"] for kinds in stored.values()), default=0)
    outcome.repeated_calls = max(0, outcome.judge_calls - outcome.judge_faults - answered)


def compare(outcome: Outcome, stored: dict[str, Counter[str]], metrics: str) -> list[str]:
    """What the exporter says that the rows do not: rubric -> outcome -> n must be the same, and conserved."""
    wrong: list[str] = []
    exported: dict[str, Counter[str]] = {rubric: Counter() for rubric in stored}
    received = 0
    for name, labels, value in samples(metrics):
        if name == "assay_evaluations_total":
            exported.setdefault(labels["rubric"], Counter())[labels["outcome"]] += int(value)
        elif name == "assay_recovered_total":
            exported.setdefault(labels["rubric"], Counter())["recovered"] += int(value)
        elif name == "assay_score_count":
            exported.setdefault(labels["rubric"], Counter())["scores"] += int(value)
        elif name == "assay_records_total" and labels["outcome"] == "received":
            received += int(value)
    if received != outcome.records:
        wrong.append(f"the exporter says {received} records received, {outcome.records} were enqueued")
    for rubric in sorted(exported):
        said = exported[rubric]
        outcome.recovered += said["recovered"]
        ends = said["scored"] + said["failed"] + said["not_applicable"] - said["recovered"]
        if ends != received:
            wrong.append(f"{rubric}: received {received}, but scored + failed + n/a - recovered = {ends}")
        now = Counter(scored=said["scored"], failed=said["failed"] - said["recovered"], n_a=said["not_applicable"])
        have = stored.get(rubric, Counter())
        if +now != +Counter(scored=have["scored"], failed=have["failed"], n_a=have["not_applicable"]):
            wrong.append(f"{rubric}: the exporter says {dict(said)}, stored are {dict(have)}")
        if said["scores"] != have["scored"]:
            wrong.append(f"{rubric}: assay_score_count is {said['scores']}, stored are {have['scored']} scores")
    return wrong


def table(outcomes: Sequence[Outcome]) -> str:
    """What the runs came to, a column each."""
    kinds = sorted({kind for o in outcomes for kind in o.failure_kinds})
    names = ["redis restarted", "redis stopped", "database away", "worker killed"]
    rows: list[list[str]] = [
        ["", *(f"{o.database} x {o.workers}" for o in outcomes)],
        ["records", *(f"{o.records:,}" for o in outcomes)],
        ["lost", *(f"{o.lost:,}" for o in outcomes)],
        ["duplicate scores", *(f"{o.duplicate_scores:,}" for o in outcomes)],
        ["failed at the end", *(f"{o.failed:,}" for o in outcomes)],
        *([f"  {kind}", *(f"{o.failure_kinds.get(kind, 0):,}" for o in outcomes)] for kind in kinds),
        ["recovered by replay", *(f"{o.recovered:,}" for o in outcomes)],
        ["set aside as crashed", *(f"{o.set_aside:,}" for o in outcomes)],
        ["workers killed", *(f"{o.kills:,}" for o in outcomes)],
        ["workers that exited", *(f"{o.worker_exits:,}" for o in outcomes)],
        ["doorbells rung twice", *(f"{o.doorbells_doubled:,}" for o in outcomes)],
        ["batches stored twice", *(f"{o.batches_doubled:,}" for o in outcomes)],
        ["judge calls", *(f"{o.judge_calls:,}" for o in outcomes)],
        ["  met by a fault", *(f"{o.judge_faults:,}" for o in outcomes)],
        ["  repeated", *(f"{o.repeated_calls:,} ({o.repeated_share:.1%})" for o in outcomes)],
        *([f"recovery, {name}", *(_seconds(o.recovery_seconds.get(name, [])) for o in outcomes)] for name in names),
        ["records/s, faults included", *(f"{o.records_per_second:.1f}" for o in outcomes)],
        ["verdict", *("VIOLATED" if o.violations else "holds" for o in outcomes)],
    ]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if not p else c.rjust(w) for p, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    problems = [f"{o.database} x {o.workers}: {text}" for o in outcomes for text in o.violations]
    return "\n".join(
        [*lines, "", "Recovery: seconds from a fault's end to the next commit, median (longest).", *problems]
    )


def _seconds(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{sorted(values)[len(values) // 2]:.1f} ({max(values):.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Nothing lost and nothing doubled while everything fails.")
    parser.add_argument("--records", type=int, default=500, help="on each configuration (default 500)")
    parser.add_argument("--only", default=",".join(DATABASES), help="databases, of sqlite,postgresql")
    parser.add_argument("--workers", default="1,3", help="numbers of worker processes, such as 1,3")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule and the judge (default 0)")
    parser.add_argument("--stopped-seconds", type=float, default=20.0, help="how long Redis is held by SIGSTOP")
    parser.add_argument("--kill-seconds", type=float, default=5.0, help="about how long a worker lives once all are up")
    parser.add_argument("--json", type=Path, help="write what was found here too")
    given = parser.parse_args(arguments)
    databases = [name for name in given.only.split(",") if name]
    if unknown := set(databases) - set(DATABASES):
        parser.error(f"--only: {', '.join(sorted(unknown))}: use sqlite, postgresql")
    outcomes = []
    for database in databases:
        with contextlib.ExitStack() as stack:
            postgres = PostgresServer() if database == "postgresql" else None
            if postgres is not None:
                stack.callback(postgres.close)
            for workers in (int(number) for number in given.workers.split(",")):
                plan = Plan(
                    database=database,
                    workers=workers,
                    records=given.records,
                    seed=given.seed,
                    stopped_seconds=given.stopped_seconds,
                    kill_seconds=given.kill_seconds,
                )
                outcomes.append(run(plan, postgres, lambda line: print(line, file=sys.stderr, flush=True)))
    print(table(outcomes))
    if given.json:
        found = [asdict(o) | {"records_per_second": o.records_per_second} for o in outcomes]
        given.json.write_text(json.dumps({"seed": given.seed, "runs": found}, indent=2) + "\n")
    return int(any(outcome.violations for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
