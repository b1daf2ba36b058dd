"""What a scrape costs with few and with many scores stored, and with few and with many label sets.

    python benchmarks/scrape.py [--scores 1000000] [--label-sets 20 5 40 200] [--database URL] [--keep DIRECTORY]

Fills fresh databases with synthetic scores at the same rate: one with the last `--days` of them, `--scores` in all, one
with the last tenth of that time; then one of a tenth for each further number of label sets. Everything that a scrape
reads is there: sums of scores, signals and costs, the input by hour and day, detectors and canaries, defects, what is
owed to two sinks, and a calibration of the judge, so that every window is corrected.

Then it takes scrapes as an exporter does that is scraped every 15 seconds while batches come in: each scrape is 15
seconds after the one before, with a batch of 25 records committed in between, so that nothing is the same twice. Shown
are p50 and the longest of the whole answer and of its parts (`store`: inside the store's methods; `computing`: the rest
of `collect`; `encoding`), and the CPU time of this process, which leaves out a PostgreSQL server.
With `--database`, PostgreSQL: that database must be empty; the sizes are filled into it one after the other.
Exits with 1 when the answer at full size takes half as much CPU time again as at a tenth. It should take under 100 ms
(p50), which is told and not asserted: machines differ.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from assay.calibration import Calibration, JudgingCost, agreement
from assay.embedded import RedisServer
from assay.metrics import ScoreCollector, encode
from assay.queue import Queue
from assay.records import Evaluation, Failure, NotApplicable, Record, Score, Usage, now
from assay.store import CanaryRun, InstrumentName, Store
from assay.store import _tables as tables
from assay.store._labels import instrument_of
from assay.store._rollups import BUCKETS
from assay.windows import DAY, HOUR, MINUTE

if TYPE_CHECKING:
    from collections.abc import Iterator

RUBRICS = ("faithfulness", "relevance", "safety", "completeness")
BOUND_RATIO = 1.5
SCRAPES = 40
SCRAPE_SECONDS = 15
BATCH = 25
JUDGE = ("1-0a1b2c3d", "0a1b2c3d" * 8, "openai:gpt-5-mini", "f" * 64)

#: Signal, word, share of the records, mean of the number: what an ordinary app that retrieves passages shows.
SIGNALS = (
    *((name, "", 1.0, share) for name, share in (("refusal", 0.02), ("no_answer", 0.05), ("empty_output", 0.001))),
    *((name, "", 1.0, share) for name, share in (("retrieved", 0.9), ("feedback", 0.05), ("language_mismatch", 0.01))),
    *(("finish", word, share, 1.0) for word, share in (("stop", 0.96), ("length", 0.03), ("content_filter", 0.01))),
    *(
        (f"{end}_language", word, share, 1.0)
        for end in ("input", "output")
        for word, share in (("en", 0.8), ("de", 0.2))
    ),
    *(("output_length", "", 1.0, 640.0), ("retrieval_score", "", 0.9, 0.61), ("retrieval_best_score", "", 0.9, 0.78)),
    ("cost_usd", "", 1.0, 0.004),
)
#: Feature and its bins in use.
INPUTS = (("length", 12), ("language", 3), ("topic", 64), ("retrieval_score", 10))
DEFECTS = ("retrieval_miss", "unsupported_generation", "incomplete", "off_topic")
SINKS = ("phoenix", "langfuse")
WAITING = 1_000


def fill(store: Store, records: int, *, label_sets: int, days: float) -> int:
    """Store that many records of the last `days` with four scores each, evenly spread, and every sum of them.

    All of it is made by the database itself, and the sums are a plain GROUP BY of the same formulas. Returns the end of
    the last minute that is filled, epoch seconds.
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
        *_further(end),
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
    return end


def _further(end: int) -> list[str]:
    """Statements that fill what is summed of signals, costs, the input, defects and sinks, from the sums of scores."""
    kinds = " UNION ALL ".join(
        f"SELECT '{name}' AS signal, '{word}' AS word, {share} AS share, {mean} AS x"
        for name, word, share, mean in SIGNALS
    )
    seen = "CAST(round(r.n * s.share) AS bigint)"
    bins = " UNION ALL ".join(
        f"SELECT '{feature}' AS feature, {number} AS bin, {n} AS bins" for feature, n in INPUTS for number in range(n)
    )
    cost = "0.004"
    classes = " UNION ALL ".join(f"SELECT '{name}' AS defect" for name in DEFECTS)
    sinks = " UNION ALL ".join(f"SELECT '{name}' AS sink" for name in SINKS)
    return [
        "INSERT INTO signal_rollups SELECT r.resolution_seconds, r.start, r.series_id, s.signal, s.word, "
        f"{seen}, {seen}, r.sum_w * s.share, r.sum_w2 * s.share, r.sum_w * s.share * s.x, "
        "r.sum_w * s.share * s.x * s.x * 1.2, r.sum_w2 * s.share * s.x, r.sum_w2 * s.share * s.x * s.x * 1.2 "
        f"FROM rollups AS r, ({kinds}) AS s WHERE r.instrument_id = :instrument AND {seen} > 0",
        "INSERT INTO cost_rollups SELECT resolution_seconds, start, series_id, instrument_id, n, passes, sum_w, "
        f"sum_w2, sum_w * {cost}, sum_w2 * {cost} * {cost} * 1.2, sum_wp, sum_w2p, sum_w2p * {cost} FROM rollups",
        "INSERT INTO signal_versions SELECT DISTINCT resolution_seconds, start, 1 FROM rollups",
        *(
            f"INSERT INTO input_bins SELECT {size}, r.start / {size} * {size}, 'shop', b.feature, b.bin, "
            "CAST(sum(r.n) / max(b.bins) AS bigint), sum(r.sum_w) / max(b.bins), sum(r.sum_w2) / max(b.bins) "
            f"FROM rollups AS r, ({bins}) AS b WHERE r.instrument_id = :instrument AND r.resolution_seconds = {HOUR} "
            f"AND r.start >= {end - keep * DAY} GROUP BY 2, 4, 5"
            for size, keep in ((HOUR, 2), (DAY, 30))
        ),
        "INSERT INTO change_streams SELECT series_id, instrument_id, 'watching', '{}', -3.2, 9.9, 0.9, scored, scored, "
        "0, 0, CURRENT_TIMESTAMP FROM totals",
        "INSERT INTO defect_counts SELECT series_id, instrument_id, defect, scored / 10, scored / 5.0, 3, 6.0 "
        f"FROM totals, ({classes}) AS d",
        "INSERT INTO outbox (record_id, evaluation_id, sink, state, due_at, claims, attempts, created_at) "
        f"SELECT record_id, evaluation_id, sink, 'waiting', created_at, 0, 0, created_at FROM "
        f"(SELECT * FROM evaluations ORDER BY record_id DESC LIMIT {WAITING}) AS e, ({sinks}) AS s",
        *(
            f"INSERT INTO counters SELECT '{name}', sink, {n} FROM ({sinks}) AS s"
            for name, n in (("outbox_waiting", WAITING), ("sink_delivered", 10**6), ("sink_retried", 12))
        ),
    ]


def watch_over(store: Store) -> None:
    """A verdict and a canary of each instrument, with 50 items judged three times."""
    moment = now()
    for rubric in RUBRICS:
        version, digest, judge, fingerprint = JUDGE
        instrument = InstrumentName(rubric, version, digest, judge, fingerprint)
        readings = {f"{n:032x}": (0.8, 0.9, 0.8) for n in range(50)}
        store.save_canary(
            CanaryRun(
                run_id=f"canary-{rubric}",
                instrument=instrument,
                trigger="schedule",
                started_at=moment,
                finished_at=moment,
                cause="none",
                reason="synthetic",
                baseline=True,
                repeats=3,
                scores=readings,
                passes=dict.fromkeys(readings, (1.0, 1.0, 1.0)),
                items=50,
                compared=50,
                baseline_at=moment,
                difference=0.0,
                lower=-0.02,
                upper=0.02,
            )
        )


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


class Time(NamedTuple):
    """Seconds on the clock, and of this process's CPU."""

    clock: float = 0.0
    cpu: float = 0.0

    @classmethod
    def now(cls) -> Time:
        """Only differences mean something."""
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: Time) -> Time:  # type: ignore[override]
        return Time(self.clock + other.clock, self.cpu + other.cpu)

    def __sub__(self, other: Time) -> Time:
        return Time(self.clock - other.clock, self.cpu - other.cpu)


@dataclass
class Timed:
    """A store whose methods add up the time spent in them, by the method's name."""

    store: Store
    spent: dict[str, Time] = field(default_factory=lambda: defaultdict(Time))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def timed(*args: Any, **options: Any) -> Any:
            with self.taking(name):
                return method(*args, **options)

        return timed

    @contextmanager
    def taking(self, name: str) -> Iterator[None]:
        """Add the time of the block."""
        started = Time.now()
        try:
            yield
        finally:
            self.spent[name] += Time.now() - started

    def take(self) -> dict[str, Time]:
        """What was spent, by name; from here on it counts anew."""
        spent, self.spent = dict(self.spent), defaultdict(Time)
        return spent


@dataclass
class Costs:
    """What each scrape took, by part."""

    size: int
    samples: int
    parts: dict[str, list[Time]]

    def p50(self, part: str) -> Time:
        """Of one part, clock and CPU each by itself."""
        return Time(*map(statistics.median, zip(*self.parts[part], strict=True)))

    def show(self) -> None:
        """Print them, milliseconds."""
        print(f"  /metrics is {self.size / 1000:.0f} kB, {self.samples:,} lines; {SCRAPES} scrapes, ms:")
        print(f"    {'':24}{'p50':>8}{'max':>8}{'CPU p50':>10}")
        for name, times in self.parts.items():
            p50, most = self.p50(name), max(taken.clock for taken in times)
            print(f"    {name:24}{p50.clock * 1e3:8.1f}{most * 1e3:8.1f}{p50.cpu * 1e3:10.1f}", flush=True)


def a_batch(number: int, moment: float, label_sets: int) -> tuple[list[tuple[Record, str]], list[Evaluation]]:
    """Records of the label sets in turn, as a worker commits them, each with four scores."""
    version, digest, judge, fingerprint = JUDGE
    records = [
        Record(
            record_id=f"live-{number}-{n}",
            timestamp=datetime.fromtimestamp(moment, UTC),
            app="shop",
            cohort={"tier": f"t{(number * BATCH + n) % label_sets:03}"},
            input="Where is my parcel, and when does it arrive?",
            output="It left our warehouse on Monday and is with you on Wednesday.",
            finish_reason="stop",
            usage=Usage(cost_usd=0.004),
        )
        for n in range(BATCH)
    ]
    evaluations = [
        Evaluation(
            record_id=record.record_id,
            rubric=rubric,
            rubric_version=version,
            rubric_hash=digest,
            judge=judge,
            judge_fingerprint=fingerprint,
            outcome=Score(value=0.9, passed=True) if n % 9 else Failure(kind="timeout", message="synthetic"),
        )
        for n, record in enumerate(records)
        for rubric in RUBRICS
    ]
    return [(record, record.to_json()) for record in records], evaluations


def measure(url: str, queue: Queue, label_sets: int, end: int) -> Costs:
    """Scrapes of a store that is being written to."""
    with Store(url, cohort_labels=["tier"], max_series=1000) as store:
        timed = Timed(store)
        moment = float(end - (SCRAPES + 2) * SCRAPE_SECONDS)
        collector = ScoreCollector(timed, queue, cohort_labels=["tier"], clock=lambda: moment)  # type: ignore[arg-type]
        parts: dict[str, list[Time]] = defaultdict(list)
        size = samples = 0
        for number in range(SCRAPES + 2):
            moment += SCRAPE_SECONDS
            store.commit(*a_batch(number, moment, label_sets))
            timed.take()
            started = Time.now()
            families = list(collector.collect())
            collected = Time.now()
            body, _ = encode(families, openmetrics=True)
            done = Time.now()
            spent = timed.take()
            if number < 2:
                # As `assay exporter` does.
                gc.freeze()
                continue
            size, samples = len(body), body.count(b"\n")
            reading = sum(spent.values(), Time())
            parts["/metrics"].append(done - started)
            parts["store"].append(reading)
            parts["computing"].append(collected - started - reading)
            parts["encoding"].append(done - collected)
            for name, taken in sorted(spent.items(), key=lambda item: -item[1].cpu):
                parts[f"store.{name}"].append(taken)
    return Costs(size, samples, parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=int, default=1_000_000)
    parser.add_argument(
        "--label-sets", type=int, nargs="+", default=[20, 5, 40, 200], help="distinct (app, cohort), four rubrics each"
    )
    parser.add_argument("--days", type=float, default=30, help="how long a time the scores are spread over")
    parser.add_argument("--database", help="URL of an empty PostgreSQL database; default: SQLite")
    parser.add_argument("--keep", type=Path, help="keep the SQLite files here")
    options = parser.parse_args()
    most, *others = options.label_sets
    results: list[Costs] = []
    with tempfile.TemporaryDirectory() as scratch, RedisServer(Path(scratch) / "redis") as redis:
        directory = options.keep or Path(scratch)
        queue = Queue.from_url(redis.url)
        for label_sets, part in ((most, 10), (most, 1), *((n, 10) for n in others)):
            scores, days = options.scores // part, options.days / part
            url = options.database or f"sqlite:///{directory}/scores-{scores}-{label_sets}.db"
            print(f"{scores:,} scores of {days:g} days, {label_sets} label sets", flush=True)
            with Store(url, cohort_labels=["tier"], max_series=1000) as store:
                end = fill(store, scores // len(RUBRICS), label_sets=label_sets, days=days)
                store.save_calibration(calibration())
                watch_over(store)
            results.append(measure(url, queue, label_sets, end))
            results[-1].show()
            if options.database:
                with Store(url) as store:
                    empty(store)
    few, many = results[:2]
    took, used, used_by_few = many.p50("/metrics").clock, many.p50("/metrics").cpu, few.p50("/metrics").cpu
    print(f"/metrics: {took * 1e3:.0f} ms; {used / used_by_few:.2f} times the CPU time of a tenth of the scores")
    good = used < BOUND_RATIO * used_by_few
    print("bound held" if good else f"BOUND NOT HELD: ratio {BOUND_RATIO:g}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
