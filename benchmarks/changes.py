"""How long the detectors take to find a drop, to tell that it is over, and how often they are wrong: simulated streams.

`python benchmarks/changes.py` prints the tables of docs/explanation/changes.md. It feeds `assay.changes.Stream`, as the
service does, with synthetic passes and fails; the seed makes the same streams each time.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
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
        happening = stream.take(score, objective, POLICY)
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
                            if stream.take(score, target, policy) is not None:
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


#: Of the interactions that fail, and of those that pass: how many a first judge doubts, as on RAGTruth's questions.
DOUBTED = {False: 0.76, True: 0.24}


class Sampled:
    """A stream of interactions, of which some are judged, each with the weight that makes up for it.

    `thinned`: of those, some are left out again, until all weigh the same, as another way to keep the promise.
    """

    def __init__(self, rng: np.random.Generator, share: float, *, cascade: bool, thinned: bool = False) -> None:
        self._rng, self._share, self._cascade, self._thinned = rng, share, cascade, thinned
        self.stream = Stream()
        self.interactions = self.judged = 0

    def until(self, pass_ratio: float, objective: float, most: int) -> Happening | None:
        """The first thing that happens within so many interactions."""
        for _ in range(most):
            index, passed = self.interactions, bool(self._rng.random() < pass_ratio)
            self.interactions += 1
            is_doubted = self._cascade and self._rng.random() < DOUBTED[passed]
            probability = 1.0 if is_doubted else self._share
            if self._rng.random() >= probability:
                continue
            self.judged += 1
            if self._thinned and self._rng.random() >= self._share / probability:
                continue
            (score,) = scores(np.array([passed]), index)
            weight = 1.0 if self._thinned else 1.0 / probability
            happening = self.stream.take(replace(score, weight=weight), objective, POLICY)
            if happening is not None:
                self.stream.expect(objective, POLICY, 1)
                return happening
        return None


def behind_a_cascade(streams: int, seed: int) -> None:
    """How soon a drop is found where what is in doubt is judged more often, beside plain sampling at the same cost."""
    head = "judged | share of it | streams | found after, median | 9 in 10 within | of them judged | over after, median"
    print(f"\n| {head} |\n|---|--:|--:|--:|--:|--:|--:|")
    usual, drop, objective, most = 0.82, 0.70, 0.80, 100_000
    doubted = usual * DOUBTED[True] + (1 - usual) * DOUBTED[False]
    rows = [("all", 1.0, False, False)]
    for share in (0.3, 0.2, 0.1):
        in_doubt = f"what is in doubt, and of the rest {share}"
        rows += [(in_doubt, share, True, False), (f"{in_doubt}; thinned", share, True, True)]
        rows += [("plainly, as much", doubted + share * (1 - doubted), False, False)]
    for name, share, cascade, thinned in rows:
        found, over = [], []
        for rng in np.random.default_rng(seed).spawn(streams):
            one = Sampled(rng, share, cascade=cascade, thinned=thinned)
            while one.stream.phase == "learning":
                one.until(usual, objective, 1)
            if one.until(usual, objective, 1500) is not None:
                continue
            before, judged = one.interactions, one.judged
            assert one.until(drop, objective, most) is not None
            found.append((one.interactions - before, one.judged - judged))
            before = one.interactions
            assert one.until(usual, objective, most) is not None
            over.append(one.interactions - before)
        delays = sorted(n for n, _ in found)
        of_all = share if not cascade else doubted + share * (1 - doubted)
        shown = f"{statistics.median(delays):,.0f} | {delays[int(0.9 * len(delays))]:,.0f}"
        asked = statistics.median(n for _, n in found)
        print(f"| {name} | {of_all:.0%} | {len(found)} | {shown} | {asked:,.0f} | {statistics.median(over):,.0f} |")


def weighted_run_lengths(streams: int, seed: int) -> None:
    """The shares to a false alarm at exactly the target, where one outcome is judged more often."""
    print("\n| pass rate = target | judged more often | promised | shares to a false alarm |\n|--:|---|--:|--:|")
    for target in (0.5, 0.8, 0.9):
        for often, named in ((False, "what fails"), (True, "what passes")):
            sums = []
            for rng in np.random.default_rng(seed).spawn(streams):
                detector, shares = EDetector(target, 500), 0.0
                while detector.alarmed_at is None:
                    for passed in (rng.random(1000) < target).tolist():
                        probability = 0.9 if rng.random() < (0.8 if passed is often else 0.2) else 0.15
                        if rng.random() < probability:
                            shares += 0.15 / probability
                            if detector.update(float(passed), 0.15 / probability):
                                break
                sums.append(shares)
            print(f"| {target} | {named} | 500 | {statistics.fmean(sums):,.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    generator = np.random.default_rng(given.seed)
    run_lengths(5 * given.streams, given.seed)
    delays(given.streams, generator)
    behind_a_cascade(2 * given.streams, given.seed)
    weighted_run_lengths(10 * given.streams, given.seed)
