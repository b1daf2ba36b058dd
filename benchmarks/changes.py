"""How long the detectors take to find a drop, to tell that it is over, and how often they are wrong: simulated streams.

`python benchmarks/changes.py` prints the tables of docs/explanation/changes.md. It feeds `assay.changes.Stream`, as the
service does, with synthetic passes and fails; the seed makes the same streams each time.
"""

from __future__ import annotations

import argparse
import statistics
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from assay.calibration.drift import EDetector
from assay.changes import ChangePolicy, Happening, Stream
from assay.store import WatchedScore

if TYPE_CHECKING:
    from collections.abc import Iterator

START = datetime(2026, 3, 2, tzinfo=UTC)
PER_HOUR = 200
POLICY = ChangePolicy()


def scores(passes: np.ndarray, start: int) -> Iterator[WatchedScore]:
    for index, passed in enumerate(passes.tolist(), start):
        moment = START + timedelta(seconds=index * 3600 / PER_HOUR)
        yield WatchedScore(
            key=(1, 1), record_id=f"r{index}", timestamp=moment, weight=1.0, passed=passed, judge_model=None
        )


def first(stream: Stream, passes: np.ndarray, start: int, objective: float | None) -> tuple[int, Happening] | None:
    """The first thing that happens, and after how many records."""
    for n, score in enumerate(scores(passes, start), 1):
        _, happening = stream.take(score, objective, POLICY)
        if happening is not None:
            stream.expect(objective, POLICY, 1)
            return n, happening
    return None


def run_lengths(streams: int, seed: int) -> None:
    print("| pass rate = target | promised | least 1 record | least 30 records (shipped) |\n|---|--:|--:|--:|")
    for target in (0.9, 0.5):
        for promised in (300, 1000, 3000):
            means = []
            for least in (1, 30):
                lengths = []
                # The same streams with both guards.
                for rng in np.random.default_rng(seed).spawn(streams * 300 // promised + 50):
                    reference = dict.fromkeys(("mean", "lower", "upper", "objective", "target"), target) | {"n": 500}
                    state = {"reference": reference, "detector": EDetector(target, promised).state()}
                    stream = Stream("watching", state | {"onset": {"bet": 0.1 / (1 - target)}})
                    policy, n = ChangePolicy(min_records=least), 0
                    while stream.phase == "watching":
                        for score in scores(rng.random(1000) < target, n):
                            n += 1
                            if stream.take(score, target, policy)[1] is not None:
                                break
                    lengths.append(n)
                means.append(statistics.fmean(lengths))
            print(f"| {target} | {promised:,} | {means[0]:,.0f} | {means[1]:,.0f} |")


def delays(streams: int, rng: np.random.Generator) -> None:
    head = "usual | objective | drop to | found within a week | median | 9 in 10 within | over after, median"
    print(f"\n| {head} |\n|--:|--:|--:|--:|--:|--:|--:|")
    week = PER_HOUR * 24 * 7
    for usual, objective in ((0.9, 0.9), (0.93, 0.9), (0.97, 0.95), (0.93, None)):
        for drop in (0.05, 0.10, 0.20):
            found: list[float] = []
            over = []
            for _ in range(streams):
                stream = Stream()
                first(stream, rng.random(500) < usual, 0, objective)
                if first(stream, rng.random(1500) < usual, 500, objective) is not None:
                    continue
                alarm = first(stream, rng.random(week) < usual - drop, 2000, objective)
                found.append(float("inf") if alarm is None else alarm[0])
                if alarm is not None:
                    recovered = first(stream, rng.random(week) < usual, 2000 + alarm[0], objective)
                    over.append(float("inf") if recovered is None else recovered[0])
            share = sum(n < float("inf") for n in found) / len(found)
            late = sorted(found)[int(0.9 * len(found))]
            within = "not" if late == float("inf") else f"{late:,.0f}"
            shown = f"{statistics.median(found):,.0f} | {within} | {statistics.median(over):,.0f}"
            print(f"| {usual} | {objective or 'none'} | {usual - drop:.2f} | {share:.0%} | {shown} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    generator = np.random.default_rng(given.seed)
    run_lengths(5 * given.streams, given.seed)
    delays(given.streams, generator)
