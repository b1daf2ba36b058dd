"""How often the test of the input's shift cries wolf, and how often it finds what is there: the table of its how-to.

Synthetic traffic, seeded. `python benchmarks/input_shift.py [runs]` prints Markdown; 500 runs take about a minute.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence

from assay.shift import ALPHA, Bins, shift

Shares = Sequence[float]
Case = Callable[[random.Random], tuple[Bins, list[Bins]]]


def zipf(bins: int) -> list[float]:
    """Shares that fall like 1 / rank."""
    shares = [1 / (index + 2) for index in range(bins)]
    return [share / sum(shares) for share in shares]


def moved(shares: Shares, part: float) -> list[float]:
    """`part` of the traffic is now spread over every third bin."""
    new = [float((index - len(shares) // 2) % 3 == 0) for index in range(len(shares))]
    return [(1 - part) * old + part * more / sum(new) for old, more in zip(shares, new, strict=True)]


def day(rng: random.Random, shares: Shares, n: int, weights: Sequence[float] = (1.0,)) -> Bins:
    """One day of `n` records, each with one of the weights."""
    sums: dict[int, tuple[float, float]] = {}
    for number in rng.choices(range(len(shares)), shares, k=n):
        weight = rng.choice(weights)
        w, w2 = sums.get(number, (0.0, 0.0))
        sums[number] = (w + weight, w2 + weight * weight)
    return Bins(n=n, sums=sums)


def steady(bins: int, n: int, weights: Sequence[float] = (1.0,), part: float = 0.0) -> Case:
    """A week of days that are alike, and a day of which `part` is new."""
    usual = zipf(bins)
    today = moved(usual, part)
    return lambda rng: (day(rng, today, n, weights), [day(rng, usual, n, weights) for _ in range(7)])


def weekly(bins: int, n: int, *, weekend: bool) -> Case:
    """Weekends differ in a fifth of their traffic; today is one of the days that there always are."""
    usual, other = zipf(bins), moved(zipf(bins), 0.2)
    today = other if weekend else usual
    return lambda rng: (day(rng, today, n), [day(rng, other if index > 4 else usual, n) for index in range(7)])


_HEAVY = (1.0, 1.0, 1.0, 20.0)
CASES: list[tuple[str, Case]] = [
    ("no change, 14 bins, 300 a day", steady(14, 300)),
    ("no change, 14 bins, 300 a day, a quarter weighs 20", steady(14, 300, _HEAVY)),
    ("no change, 64 bins, 500 a day", steady(64, 500)),
    ("no change, 64 bins, 500 a day, a quarter weighs 20", steady(64, 500, _HEAVY)),
    ("no change, 3 bins, 200 a day", steady(3, 200)),
    ("weekends differ, today is a weekday", weekly(14, 600, weekend=False)),
    ("weekends differ, today is a weekend", weekly(14, 600, weekend=True)),
    ("10 % new, 14 bins, 300 a day", steady(14, 300, part=0.1)),
    ("10 % new, 14 bins, 2,000 a day", steady(14, 2000, part=0.1)),
    ("20 % new, 14 bins, 500 a day", steady(14, 500, part=0.2)),
    ("20 % new, 64 bins, 500 a day", steady(64, 500, part=0.2)),
    ("10 % new, 64 bins, 2,000 a day", steady(64, 2000, part=0.1)),
]


def main(runs: int) -> None:
    """Print the table."""
    print(f"| traffic ({runs} runs each) | p < 0.05 | p < {ALPHA} | PSI above critical | PSI > 0.1 |")
    print("|---|--:|--:|--:|--:|")
    for name, case in CASES:
        rng = random.Random(20261120)
        found = [seen for _ in range(runs) if (seen := shift(*case(rng))) is not None]
        shown = (
            sum(seen.p_value < 0.05 for seen in found),
            sum(seen.p_value < ALPHA for seen in found),
            sum(seen.psi > seen.psi_critical for seen in found),
            sum(seen.psi > 0.1 for seen in found),
        )
        print(f"| {name} | " + " | ".join(f"{100 * n / len(found):.1f} %" for n in shown) + " |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
