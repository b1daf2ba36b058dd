"""What a scrape costs with few and with many scores stored: it must not grow with them.

    python benchmarks/scrape.py [--scores 1000000] [--database postgresql+psycopg://user@host/empty] [--keep DIRECTORY]

Fills two fresh databases with synthetic scores at the same rate: one with the last `--days` of them, `--scores` in
all, one with the last tenth of that time. Then it times the store's reads and a whole `/metrics` answer on each: the
fastest of many on the clock, and CPU time of this process (which leaves out a PostgreSQL server).
With `--database`, PostgreSQL: that database must be empty; the two sizes are filled into it one after the other.
Every score is by a judge that has a calibration, so every window is corrected.
Exits with 1 when the answer at full size takes 100 ms or more, or half as long again as at a tenth of it (CPU time).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from assay.calibration import Calibration, JudgingCost, agreement
from assay.embedded import RedisServer
from assay.metrics import ScoreCollector, encode
from assay.queue import Queue
from assay.records import Evaluation, NotApplicable, Record, now
from assay.store import Store
from assay.store import _tables as tables
from assay.store._labels import instrument_of
from assay.store._rollups import BUCKETS
from assay.windows import DAY, HOUR, MINUTE

if TYPE_CHECKING:
    from collections.abc import Callable

RUBRICS = ("faithfulness", "relevance", "safety", "completeness")
BOUND_SECONDS = 0.100
BOUND_RATIO = 1.5


def fill(store: Store, records: int, *, label_sets: int, days: float) -> None:
    """Store that many records of the last `days` with four scores each, evenly spread, and every sum of them.

    All of it is made by the database itself, and the sums are a plain GROUP BY of the same formulas.
    """
    store.upgrade()
    series, instruments = _labels(store, label_sets)
    end = int(time.time()) // MINUTE * MINUTE + MINUTE
    sqlite = store._database.is_sqlite
    made = {
        "records": records,
        "start": end - int(days * DAY),
        "span": int(days * DAY),
        "series": series[0],
        "label_sets": len(series),
        "instrument": instruments[0],
        "now": time.time(),
    }
    numbers = (
        "(WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < :records - 1) SELECT i FROM n)"
        if sqlite
        else "(SELECT generate_series(0, cast(:records AS bigint) - 1) AS i)"
    )
    moment = "strftime('%Y-%m-%d %H:%M:%S.000000', at, 'unixepoch')" if sqlite else "to_timestamp(at)"
    record_id = "printf('record-%010d', i)" if sqlite else "'record-' || lpad(i::text, 10, '0')"
    new_id = "lower(hex(randomblob(16)))" if sqlite else "gen_random_uuid()"
    rows = (
        f"(SELECT i, {record_id} AS record_id, :start + (i * :span) / :records AS at, "
        f":series + i % :label_sets AS series_id, 1 + i % 3 AS w FROM {numbers} AS n)"
    )
    scores = (
        "(SELECT r.*, :instrument + j AS instrument_id, ((i * 7 + j * 3) % 11) / 10.0 AS y FROM "
        f"{rows} AS r, (SELECT 0 AS j UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3) AS js)"
    )
    passed = "CASE WHEN y >= 0.5 THEN 1 ELSE 0 END"
    sums = (
        f"count(*), sum(w * 1.0), sum(w * w * 1.0), sum(w * y), sum(w * w * y), sum(w * w * y * y), sum({passed}), "
        f"sum({passed} * w * 1.0), sum({passed} * w * w * 1.0), 0, 0, 0"
    )
    buckets = ", ".join(f"sum(CASE WHEN round(y * 10) = {index} THEN 1 ELSE 0 END)" for index in range(len(BUCKETS)))
    statements = [
        "INSERT INTO records (record_id, app, route, cohort, timestamp, probability, rule, created_at) "
        f"SELECT record_id, 'shop', 'chat', '{{}}', {moment}, 1.0 / w, 'default', {moment} FROM {rows} AS r",
        "INSERT INTO evaluations (record_id, evaluation_id, instrument_id, series_id, timestamp, weight, outcome, "
        "value, passed, raw, explanation, details, prompt_tokens, completion_tokens, cost_usd, latency_seconds, "
        "created_at) "
        f"SELECT record_id, {new_id}, instrument_id, series_id, {moment}, w, 'scored', y, y >= 0.5, y, "
        "'Two of the three claims are in the contexts; the third one, on the delivery time, is in none of them.', "
        f"'{{\"claims\":[]}}', 1400, 240, 0.0004, 0.6, {moment} FROM {scores} AS s",
        *(
            f"INSERT INTO rollups SELECT {size}, (at / {size}) * {size}, series_id, instrument_id, {sums} "
            f"FROM {scores} AS s WHERE at >= :start + :span - {keep} GROUP BY 2, 3, 4"
            for size, keep in ((MINUTE, int(min(days, 2) * DAY)), (HOUR, int(days * DAY)))
        ),
        f"INSERT INTO totals SELECT series_id, instrument_id, count(*), 0, 0, 0, sum(y), {buckets}, "
        f"count(*) * 1400, count(*) * 240, count(*) * 0.0004, :now, :now FROM {scores} AS s GROUP BY 1, 2",
        "INSERT INTO exemplars SELECT series_id, instrument_id, b, '0123456789abcdef0123456789abcdef', b / 10.0, :now "
        f"FROM totals, (SELECT 0 AS b {' '.join(f'UNION ALL SELECT {b}' for b in range(1, 11))}) AS bs",
        "INSERT INTO counters SELECT 'received', 'shop', :records",
    ]

    def work(connection: sa.Connection) -> None:
        for statement in statements:
            started = time.perf_counter()
            text = sa.text(statement)
            connection.execute(text, {name: made[name] for name in text.compile().params})
            print(f"  {statement.split()[2]:15} {time.perf_counter() - started:7.1f} s", flush=True)

    store._database.write(work)
    with store._database.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT", assay_begin=None)
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)" if sqlite else "VACUUM ANALYZE")


def _labels(store: Store, label_sets: int) -> tuple[list[int], list[int]]:
    records = [
        Record(record_id=str(n), timestamp=now(), app="shop", cohort={"tier": f"t{n:03}"}) for n in range(label_sets)
    ]
    evaluations = [
        Evaluation(
            record_id="0",
            rubric=rubric,
            rubric_version="1-0a1b2c3d",
            rubric_hash="0a1b2c3d" * 8,
            judge="openai:gpt-5-mini",
            judge_fingerprint="f" * 64,
            outcome=NotApplicable(reason="synthetic"),
        )
        for rubric in RUBRICS
    ]

    places = store._labels.places(store._database, records)
    numbers = store._labels.instruments(store._database, evaluations)
    return (
        sorted({place.series_id for place in places.values()}),
        sorted(numbers[instrument_of(evaluation)] for evaluation in evaluations),
    )


def calibration() -> Calibration:
    """Of the judge that all synthetic scores are by, from synthetic labels."""
    people = [1.0] * 90 + [0.0] * 40
    judge = [1.0] * 85 + [0.0] * 5 + [1.0] * 6 + [0.0] * 34
    report = agreement(people, judge, selection="curated", n_resamples=100)
    return Calibration(
        rubric=RUBRICS[0],
        rubric_version="1-0a1b2c3d",
        rubric_hash="0a1b2c3d" * 8,
        judge="openai:gpt-5-mini",
        judge_fingerprint="f" * 64,
        created_at=now(),
        labelled_from=None,
        labelled_to=None,
        labels_sha256="c" * 64,
        annotator_kind="author",
        annotators=1,
        synthetic=True,
        selection="curated",
        gold="majority",
        n=report.rates.n,
        left_out={},
        rates=report.rates,
        score_map=None,
        thresholds={},
        level=report.level,
        reasons=report.reasons,
        min_fail_recall=0.5,
        kappa=report.kappa,
        fail_recall=report.fail_recall,
        fail_precision=report.fail_precision,
        auc=report.auc,
        level_half_width=report.level_half_width,
        cost=JudgingCost(n=report.rates.n),
    )


def empty(store: Store) -> None:
    """Make room for the next size."""
    with store._database.engine.begin() as connection:
        names = ", ".join(table.name for table in tables.metadata.sorted_tables)
        connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")


def cost(call: Callable[[], object], repeats: int = 15) -> tuple[float, float]:
    """Fastest on the clock, and median CPU time of this process; seconds."""
    call()
    took, used = [], []
    for _ in range(repeats):
        started, cpu = time.perf_counter(), time.process_time()
        call()
        took.append(time.perf_counter() - started)
        used.append(time.process_time() - cpu)
    return min(took), statistics.median(used)


def measure(url: str, queue: Queue) -> dict[str, tuple[float, float]]:
    """Cost of each read, by name."""
    with Store(url, cohort_labels=["tier"]) as store:
        end = int(time.time()) // MINUTE * MINUTE + MINUTE
        collector = ScoreCollector(store, queue, cohort_labels=["tier"])
        # As `assay exporter` does.
        gc.freeze()
        size = len(encode(collector.collect(), openmetrics=True)[0])
        found = {
            f"rollups {name}": cost(lambda seconds=seconds: store.rollups(end - seconds, end))  # type: ignore[misc]
            for name, seconds in (("5m", 300), ("1h", HOUR), ("24h", DAY))
        }
        found["totals"] = cost(store.totals)
        found["counts"] = cost(store.counts)
        found["/metrics"] = cost(lambda: encode(collector.collect(), openmetrics=True))
        print(f"  /metrics is {size / 1000:.0f} kB")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=int, default=1_000_000)
    parser.add_argument("--label-sets", type=int, default=20, help="distinct (app, cohort), four rubrics each")
    parser.add_argument("--days", type=float, default=30, help="how long a time the scores are spread over")
    parser.add_argument("--database", help="URL of an empty PostgreSQL database; default: SQLite")
    parser.add_argument("--keep", type=Path, help="keep the SQLite files here")
    options = parser.parse_args()
    results: dict[int, dict[str, tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch, RedisServer(Path(scratch) / "redis") as redis:
        directory = options.keep or Path(scratch)
        queue = Queue.from_url(redis.url)
        for part in (10, 1):
            scores, days = options.scores // part, options.days / part
            url = options.database or f"sqlite:///{directory}/scores-{scores}.db"
            print(f"{scores:,} scores of {days:g} days, {options.label_sets} label sets")
            with Store(url, cohort_labels=["tier"], max_series=1000) as store:
                fill(store, scores // len(RUBRICS), label_sets=options.label_sets, days=days)
                store.save_calibration(calibration())
            results[scores] = measure(url, queue)
            if options.database:
                with Store(url) as store:
                    empty(store)
    few, many = results.values()
    heads = [f"{scores:,} {kind}" for scores in results for kind in ("ms", "CPU ms")]
    print("\n" + " " * 12 + "".join(f"{head:>20}" for head in heads))
    for name in many:
        print(f"{name:12}" + "".join(f"{seconds * 1e3:20.1f}" for seconds in (*few[name], *many[name])))
    (took, used), (_, used_by_few) = many["/metrics"], few["/metrics"]
    print(f"/metrics: {took * 1e3:.0f} ms; {used / used_by_few:.2f} times the CPU time of a tenth of the scores")
    good = took < BOUND_SECONDS and used < BOUND_RATIO * used_by_few
    print("bound held" if good else f"BOUND NOT HELD: {BOUND_SECONDS * 1e3:.0f} ms, ratio {BOUND_RATIO:g}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
