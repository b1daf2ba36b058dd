"""Several processes with many threads each on one database: nothing is refused, lost or counted twice."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from assay.store import Store
from assay.store import _tables as tables
from stores import assert_conserved, assert_sums_true, connected

pytestmark = pytest.mark.integration

COMMITTER = Path(__file__).with_name("store_committer.py")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    else:
        url = f"sqlite:///{tmp_path}/scores.db"
    with Store(url) as store:
        store.upgrade()
    return url


def committers(url: str, *, processes: int, threads: int, batches: int, cohorts: int) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, str(COMMITTER), url, str(seed), str(threads), str(batches), str(cohorts)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(processes)
    ]


def results(processes: list[subprocess.Popen[str]]) -> list[dict]:
    return [json.loads(process.communicate(timeout=240)[0]) for process in processes]


def test_two_processes_of_sixteen_threads_commit_the_same_batches(url: str) -> None:
    batches = 96
    found = results(committers(url, processes=2, threads=16, batches=batches, cohorts=500))
    print(found)
    assert [result["errors"] for result in found] == [[], []]
    distinct = batches * 15 + 5
    with Store(url, cohort_labels=["user"], max_series=20) as store:
        assert sum(result["inserted"] for result in found) == distinct * 4, "each by one of them"
        assert sum(store.counts().received.values()) == distinct
        assert store.counts().dead_total == {"invalid": batches // 2}
        with connected(store) as connection:
            assert (
                connection.execute(sa.select(sa.func.count()).select_from(tables.evaluations)).scalar_one()
                == distinct * 4
            )
        assert_sums_true(store)
        assert_conserved(store)
        # The cap is exact, whoever made the label sets.
        assert store.counts().series == 19, "18 cohorts, and the others"
        overflow = store.counts().series_overflow
        others = {total.rubric: total for total in store.totals() if total.cohort["user"] == "other"}
        assert {t.scored + t.failed + t.not_applicable - t.recovered for t in others.values()} == {overflow}
        assert overflow > distinct / 2


def test_a_purge_beside_commits_loses_and_refuses_nothing(url: str) -> None:
    with Store(url, cohort_labels=["user"], max_series=20) as store:
        processes = committers(url, processes=2, threads=4, batches=60, cohorts=5)
        stop = threading.Event()
        purged: list[dict[str, int]] = []

        def purge() -> None:
            while not stop.is_set():
                # Everything that is committed is old at once: the committers keep storing what is being deleted.
                purged.append(store.purge(payload_days=0, score_days=0, rollup_days=400, dead_days=30))
                time.sleep(0.01)

        purger = threading.Thread(target=purge)
        purger.start()
        try:
            found = results(processes)
        finally:
            stop.set()
            purger.join()
        assert [result["errors"] for result in found] == [[], []]
        gone = sum(result["evaluations"] for result in purged)
        assert gone > 0
        with connected(store) as connection:
            left = connection.execute(sa.select(sa.func.count()).select_from(tables.evaluations)).scalar_one()
        # With cascades the purger may not count every row that it deletes, but no row is counted that was not stored.
        inserted = sum(result["inserted"] for result in found)
        assert gone + left <= inserted
        counted = sum(t.scored + t.failed + t.not_applicable - t.recovered for t in store.totals())
        assert counted == inserted


def test_scrapes_are_not_held_up_by_commits(url: str) -> None:
    with Store(url, cohort_labels=["user"], max_series=20) as store:
        processes = committers(url, processes=1, threads=8, batches=60, cohorts=5)
        seen = [0]
        while any(process.poll() is None for process in processes):
            # Every read is of a moment between two commits: totals and their parts agree.
            for total in store.totals():
                assert sum(total.buckets) == total.scored
                assert sum(total.failures.values()) == total.failed
                assert sum(total.reasons.values()) == total.not_applicable
            seen.append(sum(total.scored for total in store.totals()))
            time.sleep(0.02)
        assert results(processes)[0]["errors"] == []
        assert seen == sorted(seen), "counters only grow"
