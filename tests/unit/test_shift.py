"""Is today's input like that of the reference week: how often the test cries wolf, and what it finds."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime

import pytest

from assay.shift import ALPHA, Bins, Shift, _f_quantile, _f_tail, current_hours, reference_days, shift, shifts
from assay.store import InputBin
from assay.windows import DAY, HOUR


def zipf(bins: int) -> list[float]:
    shares = [1 / (index + 2) for index in range(bins)]
    return [share / sum(shares) for share in shares]


def draw(rng: random.Random, shares: list[float], n: int, weights: tuple[float, ...] = (1.0,)) -> Bins:
    sums: dict[int, tuple[float, float]] = {}
    for number in rng.choices(range(len(shares)), shares, k=n):
        weight = rng.choice(weights)
        w, w2 = sums.get(number, (0.0, 0.0))
        sums[number] = (w + weight, w2 + weight * weight)
    return Bins(n=n, sums=sums)


def week(rng: random.Random, shares: list[float], n: int, weights: tuple[float, ...] = (1.0,)) -> list[Bins]:
    return [draw(rng, shares, n, weights) for _ in range(7)]


def moved(shares: list[float], share: float) -> list[float]:
    """That share of the traffic is spread over every third bin from the middle on."""
    bins = len(shares)
    new = [float((index - bins // 2) % 3 == 0) for index in range(bins)]
    return [(1 - share) * old + share * added / sum(new) for old, added in zip(shares, new, strict=True)]


@pytest.mark.parametrize(
    ("bins", "n", "weights"),
    [
        (14, 300, (1.0,)),
        (14, 300, (1.0, 1.0, 1.0, 20.0)),
        (64, 500, (1.0,)),
        (64, 500, (1.0, 1.0, 1.0, 20.0)),
        (3, 200, (1.0,)),
    ],
)
def test_without_a_change_it_is_quiet(bins: int, n: int, weights: tuple[float, ...]) -> None:
    rng = random.Random(7)
    shares = zipf(bins)
    found = [shift(draw(rng, shares, n, weights), week(rng, shares, n, weights)) for _ in range(200)]
    p_values = [seen.p_value for seen in found if seen is not None]
    assert len(p_values) == 200
    # At level 0.05 no more than 0.05 and what chance adds to 200 runs; at 0.001 nothing.
    assert sum(p < 0.05 for p in p_values) <= 18
    assert sum(p < 0.001 for p in p_values) <= 1
    # And it is alive: p-values are spread, not all near 1.
    assert sum(p < 0.5 for p in p_values) >= 40
    assert sum(seen.psi > seen.psi_critical for seen in found if seen is not None) <= 3


def test_weights_are_not_taken_for_records() -> None:
    """Plain chi-squared on sums of weights would take each heavy record for twenty."""
    rng = random.Random(3)
    seen = shift(draw(rng, zipf(14), 300, (1.0, 1.0, 1.0, 20.0)), week(rng, zipf(14), 300, (1.0, 1.0, 1.0, 20.0)))
    assert seen is not None
    assert 50 < seen.n_current < 150


@pytest.mark.parametrize(
    ("bins", "n", "share", "least"),
    [(14, 2000, 0.1, 0.8), (14, 500, 0.2, 0.8), (64, 2000, 0.1, 0.8), (64, 500, 0.2, 0.6)],
)
def test_it_finds_a_change_at_the_level_of_the_alerts(bins: int, n: int, share: float, least: float) -> None:
    rng = random.Random(19)
    shares = zipf(bins)
    found = [shift(draw(rng, moved(shares, share), n), week(rng, shares, n)) for _ in range(40)]
    assert sum(seen is not None and seen.p_value < ALPHA for seen in found) >= least * 40


def test_weekends_are_no_shift() -> None:
    rng = random.Random(23)
    weekday = zipf(14)
    weekend = moved(weekday, 0.2)
    reference = [draw(rng, weekday, 600) for _ in range(5)] + [draw(rng, weekend, 600) for _ in range(2)]
    alarms = {}
    for name, today in (("weekday", weekday), ("weekend", weekend), ("new", moved(list(reversed(weekday)), 0.2))):
        seen = [shift(draw(rng, today, 600), reference) for _ in range(50)]
        alarms[name] = sum(one is not None and one.p_value < ALPHA for one in seen)
    assert (alarms["weekday"], alarms["weekend"]) == (0, 0)
    assert alarms["new"] == 50
    one = shift(draw(rng, weekend, 600), reference)
    assert one is not None
    assert one.dispersion > 1.3, "the days differ by more than chance, and the test knows it"


def test_a_bin_that_is_new_is_seen_even_where_little_would_be_expected() -> None:
    rng = random.Random(1)
    seen = shift(draw(rng, [0.8, 0.2], 150), week(rng, [1.0], 400))
    assert seen is not None
    assert seen.p_value < 1e-6
    assert seen.psi > seen.psi_critical


def test_the_same_shares_are_no_shift() -> None:
    day = Bins(n=100, sums={0: (50.0, 50.0), 1: (50.0, 50.0)})
    seen = shift(day, [day] * 7)
    assert seen == Shift(
        p_value=1.0,
        psi=0.0,
        psi_critical=seen.psi_critical if seen else 0.0,
        n_current=pytest.approx(100),
        n_reference=pytest.approx(700),
        bins=2,
        dispersion=1.0,
    )


def test_with_too_little_nothing_is_said() -> None:
    rng = random.Random(1)
    shares = zipf(14)
    full = week(rng, shares, 200)
    assert shift(draw(rng, shares, 200), full) is not None
    assert shift(draw(rng, shares, 20), full) is None, "few records today"
    assert shift(draw(rng, shares, 200), full[:2]) is None, "two days"
    assert shift(draw(rng, shares, 200), week(rng, shares, 10)) is None, "days of ten records"
    assert shift(draw(rng, shares, 200), []) is None
    assert shift(Bins(n=0, sums={}), full) is None
    assert shift(draw(rng, [1.0], 200), week(rng, [1.0], 200)) is None, "one bin has no shares to compare"
    # Many records, all weight on one.
    heavy = Bins(n=200, sums={0: (199.0, 199.0), 1: (1e9, 1e18)})
    assert shift(heavy, full) is None


def test_extreme_weights_are_harmless() -> None:
    rng = random.Random(1)
    seen = shift(draw(rng, zipf(14), 3000, (1.0, 1e12)), week(rng, zipf(14), 3000, (1.0, 1e12)))
    assert seen is not None
    assert 0.0 <= seen.p_value <= 1.0
    assert seen.psi >= 0.0


def test_f_is_f() -> None:
    # scipy.stats.f.sf and .isf
    assert _f_tail(2.5, 9, 54) == pytest.approx(0.0180806958, rel=1e-8)
    assert _f_tail(0.0, 9, 54) == 1.0
    assert _f_quantile(0.001, 9, 54) == pytest.approx(3.7595807, rel=1e-5)
    assert _f_tail(_f_quantile(0.001, 2, 12), 2, 12) == pytest.approx(0.001, rel=1e-4)


# -- which records are compared


def test_today_is_24_whole_hours_and_the_week_ends_before_them() -> None:
    now = datetime(2026, 3, 12, 15, 20, tzinfo=UTC).timestamp()
    start, end = current_hours(now)
    assert (end - start, end % HOUR, now - end) == (DAY, 0, 20 * 60)
    first, last = reference_days(now)
    assert datetime.fromtimestamp(first, UTC) == datetime(2026, 3, 4, tzinfo=UTC)
    assert datetime.fromtimestamp(last, UTC) == datetime(2026, 3, 11, tzinfo=UTC)
    assert last <= start


def test_a_week_that_is_pinned_stays() -> None:
    first, last = reference_days(1e9, date(2026, 3, 2))
    assert (first, last - first) == (int(datetime(2026, 3, 2, tzinfo=UTC).timestamp()), 7 * DAY)


def test_apps_and_features_are_compared_apart() -> None:
    def rows(app: str, feature: str, start: int, counts: dict[int, int]) -> list[InputBin]:
        return [
            InputBin(app=app, feature=feature, bin=number, start=start, n=n, sum_w=float(n), sum_w2=float(n))
            for number, n in counts.items()
        ]

    same, other = {1: 60, 2: 60}, {1: 110, 2: 10}
    current = [*rows("shop", "length", 0, same), *rows("desk", "length", 0, other), *rows("new", "length", 0, same)]
    reference = [
        row for day in range(7) for app in ("shop", "desk") for row in rows(app, "length", -DAY * (day + 1), same)
    ]
    found = shifts(current, reference)
    assert found.keys() == {("shop", "length"), ("desk", "length")}
    assert found["shop", "length"].p_value == 1.0
    assert found["desk", "length"].p_value < ALPHA
    assert shifts([], reference) == {}
