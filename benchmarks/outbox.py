"""Scoring with and without sinks that are bad, in one run: what delivery costs scoring, and whether everything arrives.

A judge that takes 0.3 s, one worker process, PostgreSQL if it is installed (else SQLite). The same records are scored
without any sink, then with a webhook that fails 20 % of its calls, hangs, and is down for a while, next to a sink that
never answers; again and again, in turn. What counts is the ratio of the times until everything is scored.

    python benchmarks/outbox.py                     # 2,500 records, four evaluations each
    python benchmarks/outbox.py --records 500 --rounds 1
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from deployment import Deployment, wait_until
from servers import PostgresServer
from sink_server import FlakyReceiver, SinkServer


def scored_within(directory: Path, url: str, records: int, **settings: object) -> tuple[float, Deployment]:
    """Seconds from the enqueue until nothing is pending; the deployment is left open."""
    deployment = Deployment(directory, url, judge_max_in_flight=64, **settings).__enter__()
    deployment.start_judge("--latency", "0.3")
    worker = deployment.start_worker()
    deployment.enqueue(100, start=1_000_000)  # what is loaded once is loaded by now
    deployment.drain(worker)
    begun = time.perf_counter()
    deployment.enqueue(records)
    deployment.drain(worker, seconds=600)
    return time.perf_counter() - begun, deployment


def with_bad_sinks(directory: Path, url: str, records: int) -> float:
    """Seconds of scoring; then waits until everything has arrived, and checks that it has."""
    receiver, stuck = FlakyReceiver(hang_seconds=3.0), SinkServer()
    stuck.answering.clear()
    outage = [threading.Timer(3.0, receiver.go_down), threading.Timer(9.0, receiver.come_up)]
    with stuck:
        settings: dict[str, object] = {
            "sinks": "webhook,otel",
            "sink_webhook_url": receiver.url,
            "sink_webhook_secret": "synthetic-secret-of-a-benchmark",
            "sink_webhook_timeout_seconds": 1,
            "sink_retry_max_seconds": 5,
            "sink_otel_url": stuck.url,
            "sink_otel_timeout_seconds": 30,
        }
        for timer in outage:
            timer.start()
        seconds, deployment = scored_within(directory, url, records, **settings)
        try:
            for timer in outage:
                timer.join()
            begun = time.perf_counter()
            wait_until(lambda: deployment.store.outbox_depths()["webhook"].waiting == 0, seconds=600)
            later = time.perf_counter() - begun
            outcomes = [count for counts in deployment.outcomes().values() for count in counts.items()]
            expected = sum(n for outcome, n in outcomes if outcome != "not_applicable")
            depths = deployment.store.outbox_depths()
            assert len(receiver.kept) == expected, f"{len(receiver.kept)} of {expected} arrived"
            assert depths["webhook"].rejected == depths["otel"].rejected == 0
            print(
                f"   {expected:,} scores owed, {len(receiver.kept):,} arrived, each known once by its id; "
                f"{receiver.calls:,} calls, {receiver.repeats:,} kept again; all there {later:.1f} s later; "
                f"{depths['otel'].waiting:,} wait for the sink that hangs"
            )
        finally:
            deployment.__exit__()
            receiver.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2500, help="four evaluations each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sqlite", action="store_true", help="instead of PostgreSQL")
    given = parser.parse_args()
    postgres = None if given.sqlite else PostgresServer()
    without, with_ = [], []
    try:
        for _ in range(given.rounds):
            for times, bad in ((without, False), (with_, True)):
                with tempfile.TemporaryDirectory() as name:
                    directory = Path(name)
                    url = postgres.create_database() if postgres else f"sqlite:///{directory}/assay.db"
                    if bad:
                        times.append(with_bad_sinks(directory, url, given.records))
                    else:
                        seconds, deployment = scored_within(directory, url, given.records)
                        deployment.__exit__()
                        times.append(seconds)
                print(f"{'bad sinks' if bad else 'no sinks':10}{given.records / times[-1]:8.0f} records/s", flush=True)
    finally:
        if postgres:
            postgres.close()
    ratio = statistics.median(with_) / statistics.median(without)
    print(f"time to score with bad sinks / without: {ratio:.2f} (median of {given.rounds})")


if __name__ == "__main__":
    main()
