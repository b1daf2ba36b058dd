"""Window statistics against direct computation, other libraries, published values and simulation."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from assay.errors import SettingsError
from assay.windows import (
    DAY,
    HOUR,
    MINUTE,
    SUM_FIELDS,
    Span,
    Sums,
    cover,
    kish,
    parse_window,
    pass_ratio,
    score_mean,
    wilson,
    window_bounds,
)


def sums_of(weights, values, passed):
    total = Sums()
    for weight, value, ok in zip(weights, values, passed, strict=True):
        total += Sums.of(weight=float(weight), value=float(value), passed=bool(ok))
    return total


def binary(passed, weights):
    return sums_of(weights, passed, passed)


#: (weight, value, passed): weights over six decades, as one run of heavily different sampling rates may have
scored = st.tuples(
    st.one_of(st.sampled_from([1.0, 2.0, 20.0, 100.0, 1e6]), st.floats(1.0, 1e6)),
    st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0.0, 1.0)),
    st.booleans(),
)
windows = st.lists(scored, min_size=1, max_size=60)


class TestSums:
    @given(windows)
    def test_match_direct_computation(self, rows):
        w, y, p = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
        total = sums_of(w, y, p)
        assert total.n == len(rows)
        assert total.passes == int(p.sum())
        for name, expected in {
            "sum_w": w.sum(),
            "sum_w2": (w**2).sum(),
            "sum_wy": (w * y).sum(),
            "sum_w2y": (w**2 * y).sum(),
            "sum_w2y2": (w**2 * y**2).sum(),
            "sum_wp": (w * p).sum(),
            "sum_w2p": (w**2 * p).sum(),
        }.items():
            assert getattr(total, name) == pytest.approx(expected, rel=1e-12), name

    @given(windows, windows)
    def test_adding_is_pooling(self, first, second):
        both = sums_of(*zip(*first, strict=True)) + sums_of(*zip(*second, strict=True))
        pooled = sums_of(*zip(*first, *second, strict=True))
        for name in SUM_FIELDS:
            assert getattr(both, name) == pytest.approx(getattr(pooled, name), rel=1e-12), name

    def test_the_empty_sum_adds_nothing(self):
        one = Sums.of(weight=4.0, value=0.25, passed=True)
        assert one + Sums() == one == Sums() + one

    def test_of_one_score(self):
        assert Sums.of(weight=4.0, value=0.5, passed=True) == Sums(
            n=1, sum_w=4, sum_w2=16, sum_wy=2, sum_w2y=8, sum_w2y2=4, passes=1, sum_wp=4, sum_w2p=16
        )
        assert Sums.of(weight=4.0, value=0.5, passed=False) == Sums(
            n=1, sum_w=4, sum_w2=16, sum_wy=2, sum_w2y=8, sum_w2y2=4
        )

    def test_from_row_reads_every_field(self):
        row = SimpleNamespace(**{name: index + 1 for index, name in enumerate(SUM_FIELDS)}, failed=99)
        got = Sums.from_row(row)
        assert [getattr(got, name) for name in SUM_FIELDS] == list(range(1, 10))

    def test_cannot_be_changed(self):
        with pytest.raises(FrozenInstanceError):
            Sums().n = 1  # type: ignore[misc]


class TestWilson:
    @pytest.mark.parametrize(
        ("k", "n", "lower", "upper"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_newcombe_1998_method_3(self, k, n, lower, upper):
        assert wilson(k / n, n) == (pytest.approx(lower, abs=5e-5), pytest.approx(upper, abs=5e-5))

    @given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_is_statsmodels(self, case):
        k, n = case
        assert wilson(k / n, n) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)

    @given(st.floats(0, 1), st.floats(1e-3, 1e12))
    def test_is_an_interval_around_the_ratio_inside_0_and_1(self, ratio, n):
        lower, upper = wilson(ratio, n)
        assert 0.0 <= lower <= ratio <= upper <= 1.0
        assert lower < upper

    @given(st.floats(0.01, 0.99), st.floats(1, 1e6))
    def test_more_records_never_widen_it(self, ratio, n):
        few, many = wilson(ratio, n), wilson(ratio, n * 2)
        assert many[1] - many[0] < few[1] - few[0]

    def test_all_passed_and_none_passed_mirror_each_other(self):
        low, high = wilson(0.0, 17), wilson(1.0, 17)
        assert low[0] == 0.0
        assert high[1] == 1.0
        assert high[0] == pytest.approx(1 - low[1], abs=1e-15)


class TestPassRatio:
    def test_nothing_scored_is_no_estimate(self):
        assert pass_ratio(Sums()) is None
        assert score_mean(Sums()) is None
        assert kish(Sums()) == 0.0

    def test_published_two_records(self):
        sums = binary([1, 0], [1, 3])
        assert pass_ratio(sums).value == 0.25
        assert kish(sums) == pytest.approx(1.6)

    def test_published_six_records(self):
        sums = binary([1, 1, 0, 1, 0, 1], [1, 1, 1, 20, 20, 20])
        got = pass_ratio(sums)
        assert got.value == pytest.approx(42 / 63)
        assert got.n == 6
        assert kish(sums) == pytest.approx(3.29925, abs=5e-6)
        assert got.n_effective == pytest.approx(2.74938, abs=5e-6)
        # the variance behind it
        assert got.value * (1 - got.value) / got.n_effective == pytest.approx(0.0808264, abs=5e-8)
        assert (got.lower, got.upper) == wilson(got.value, got.n_effective)

    @given(st.lists(st.booleans(), min_size=2, max_size=500), st.sampled_from([1.0, 7.0, 1e6]))
    def test_equal_weights_are_the_plain_ratio_and_their_size_means_nothing(self, passed, weight):
        got = pass_ratio(binary(passed, [weight] * len(passed)))
        plain = pass_ratio(binary(passed, [1.0] * len(passed)))
        assert got.value == pytest.approx(sum(passed) / len(passed), abs=1e-12)
        for name in ("value", "lower", "upper", "n", "n_effective"):
            assert getattr(got, name) == pytest.approx(getattr(plain, name), rel=1e-9, abs=1e-12)

    @given(windows, st.sampled_from([7.0, 0.5, 1e3]))
    def test_scaling_every_weight_changes_nothing(self, rows, factor):
        weights, values, passed = zip(*rows, strict=True)
        one, other = sums_of(weights, values, passed), sums_of([w * factor for w in weights], values, passed)
        for estimate in (pass_ratio, score_mean):
            a, b = estimate(one), estimate(other)
            assert a.value == pytest.approx(b.value, abs=1e-9)
            assert a.lower == pytest.approx(b.lower, abs=1e-6)
            assert a.upper == pytest.approx(b.upper, abs=1e-6)

    @given(windows)
    def test_matches_numpy(self, rows):
        w, _, p = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
        got = pass_ratio(sums_of(w, p, p))
        mean = (w * p).sum() / w.sum()
        assert got.value == pytest.approx(mean, abs=1e-9)
        by_weight = w.sum() ** 2 / (w**2).sum()
        n = len(rows)
        if p.all() or not p.any() or n < 2:
            expected = by_weight
        else:
            variance = n / (n - 1) * (w**2 * (p - mean) ** 2).sum() / w.sum() ** 2
            expected = min(n, mean * (1 - mean) / variance, by_weight * max(1, by_weight / 30))
        assert got.n_effective == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("ok", [True, False])
    @pytest.mark.parametrize("n", [1, 2, 40, 10_000])
    def test_alike_outcomes_give_wilson_never_a_point(self, ok, n):
        got = pass_ratio(binary([ok] * n, [1.0] * n))
        assert got.value == float(ok)
        assert got.n_effective == n
        assert (got.lower, got.upper) == pytest.approx(proportion_confint(n * ok, n, method="wilson"), abs=1e-12)
        assert got.upper - got.lower > 3 / (n + 4)

    def test_alike_outcomes_under_unequal_weights_use_kish(self):
        got = pass_ratio(binary([1, 1, 1, 1], [1, 1, 1, 97]))
        assert got.n_effective == pytest.approx(100**2 / (3 + 97**2))
        assert got.lower == wilson(1.0, got.n_effective)[0]
        assert got.lower < 0.3

    def test_few_heavy_records_do_not_hide_behind_many_light_ones(self):
        """Five ordinary records at 1 %, all passed, and a hundred thumbs-down taken always: five records' worth."""
        got = pass_ratio(binary([1] * 5 + [0] * 100, [100.0] * 5 + [1.0] * 100))
        assert got.n == 105
        assert got.n_effective < 10
        assert got.lower < 0.55

    @pytest.mark.parametrize("sum_wp", [29.999999999999996, 30.000000000000004])
    def test_a_rounded_sum_of_passes_is_still_all(self, sum_wp):
        """Sums added up in another order may differ in the last digit; the counts decide."""
        sums = Sums(n=3, sum_w=30.0, sum_w2=300.0, passes=3, sum_wp=sum_wp, sum_w2p=sum_wp * 10)
        assert pass_ratio(sums).value == 1.0
        assert pass_ratio(sums).n_effective == 3.0


class TestScoreMean:
    @given(windows)
    def test_matches_numpy(self, rows):
        w, y, _ = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
        got = score_mean(sums_of(w, y, y > 0.5))
        mean = (w * y).sum() / w.sum()
        assert got.value == pytest.approx(mean, abs=1e-9)
        squares = (w**2 * (y - mean) ** 2).sum()
        n, by_weight = len(rows), w.sum() ** 2 / (w**2).sum()
        assume(squares == 0 or squares > 1e-9 * (w**2).sum())
        assume(mean in (0.0, 1.0) or 1e-9 < mean < 1 - 1e-9)
        if squares == 0 or n < 2:
            expected = by_weight
        else:
            variance = n / (n - 1) * squares / w.sum() ** 2
            expected = min(mean * (1 - mean) / variance, by_weight * max(1, by_weight / 30))
        assert got.n_effective == pytest.approx(expected, rel=1e-4)

    def test_many_records_give_the_usual_standard_error(self):
        rng = np.random.default_rng(7)
        y = rng.beta(8, 2, 20_000)
        got = score_mean(sums_of(np.ones_like(y), y, y > 0.5))
        half = 1.959963984540054 * y.std(ddof=1) / math.sqrt(len(y))
        assert got.value == pytest.approx(y.mean(), abs=1e-12)
        assert got.value - got.lower == pytest.approx(half, rel=0.01)
        assert got.upper - got.value == pytest.approx(half, rel=0.01)

    @pytest.mark.parametrize("value", [0.0, 0.7, 1.0])
    def test_equal_scores_are_not_certainty(self, value):
        got = score_mean(sums_of([1.0] * 10, [value] * 10, [True] * 10))
        assert got.value == pytest.approx(value)
        assert got.upper - got.lower > 0.2

    @pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1 / 3, 0.9])
    @pytest.mark.parametrize("weights", [[1.0] * 1000, [1.0, 1 / 3, 1e6] * 300, [20.0, 0.1 + 0.2] * 500])
    def test_rounding_is_not_taken_for_spread(self, value, weights):
        sums = sums_of(weights, [value] * len(weights), [True] * len(weights))
        assert score_mean(sums).n_effective == pytest.approx(kish(sums))

    def test_one_record(self):
        got = score_mean(Sums.of(weight=50.0, value=0.4, passed=False))
        assert (got.value, got.n, got.n_effective) == (pytest.approx(0.4), 1, 1.0)
        assert got.upper - got.lower > 0.7


class TestNumbers:
    """Whatever the weights: real numbers, in order, inside [0, 1]."""

    @settings(max_examples=500)
    @given(windows)
    @example([(1e6, 1.0, True)] * 59 + [(1.0, 0.0, False)])
    @example([(1.0, 1.0, True)] * 59 + [(1e6, 0.0, False)])
    @example([(1e6, 0.1 + 0.2, True), (1e6, 0.3, True)])
    @example([(1 / 3 * 1e6, 0.1, True)] * 60)
    def test_estimates_are_ordered_and_finite(self, rows):
        sums = sums_of(*zip(*rows, strict=True))
        assert 1.0 <= kish(sums) <= sums.n
        for got in (pass_ratio(sums), score_mean(sums)):
            assert 0.0 <= got.lower <= got.value <= got.upper <= 1.0
            assert got.lower < got.upper
            assert math.isfinite(got.n_effective)
            assert got.n_effective > 0
            assert got.n == len(rows)

    @given(
        st.integers(2, 10**7),
        st.floats(1.0, 1e6),
        st.floats(0.0, 1.0),
        st.sampled_from([-1e-9, -1e-12, 0.0, 1e-12]),
    )
    def test_variance_is_never_negative_where_the_squares_cancel(self, n, weight, value, error):
        """Equal scores: Σw²y² - 2mΣw²y + m²Σw² is a difference of equal numbers, and each carries rounding."""
        square = weight * weight * n
        sums = Sums(
            n=n,
            sum_w=weight * n,
            sum_w2=square,
            sum_wy=weight * n * value,
            sum_w2y=square * value,
            sum_w2y2=square * value * value * (1 + error),
            passes=n,
            sum_wp=weight * n * (1 + error),
            sum_w2p=square * (1 + error),
        )
        for got in (pass_ratio(sums), score_mean(sums)):
            assert 0.0 <= got.lower <= got.value <= got.upper <= 1.0
            assert got.n_effective > 0

    def test_one_light_fail_among_a_million_heavy_passes(self):
        """Σw² - Σw²p loses the light record to rounding; the estimate stays sound."""
        n = 1_000_000
        sums = Sums(
            n=n + 1,
            sum_w=1e6 * n + 1,
            sum_w2=1e12 * n + 1,
            passes=n,
            sum_wp=1e6 * n,
            sum_w2p=1e12 * n,
        )
        got = pass_ratio(sums)
        assert got.value == pytest.approx(1 - 1e-12)
        assert got.lower > 0.99999
        assert got.n_effective <= n + 1


def two_rate_windows(*, repetitions, ordinary, bad, rates, population, share, seed):
    """Repeated windows: `share` of the traffic is the bad cohort, and each cohort has its sampling rate."""
    rng = np.random.default_rng(seed)
    for _ in range(repetitions):
        of_bad = rng.binomial(population, share)
        taken = rng.binomial([population - of_bad, of_bad], rates)
        passed = rng.binomial(taken, [ordinary, bad])
        yield sum(
            (
                Sums(
                    n=int(count),
                    sum_w=count / rate,
                    sum_w2=count / rate**2,
                    sum_wy=ok / rate,
                    sum_w2y=ok / rate**2,
                    sum_w2y2=ok / rate**2,
                    passes=int(ok),
                    sum_wp=ok / rate,
                    sum_w2p=ok / rate**2,
                )
                for count, ok, rate in zip(taken, passed, rates, strict=True)
            ),
            Sums(),
        )


class TestCoverage:
    """Fixed seeds, so these always give the same answer; the Monte Carlo error of 2,000 windows is ±1 point."""

    @pytest.mark.parametrize(
        ("ordinary", "population", "rates"),
        [
            (0.95, 10_000, (0.05, 1.0)),
            (0.90, 3_000, (0.05, 1.0)),
            (0.70, 3_000, (0.05, 1.0)),
            # few ordinary records in the window: where the linearised variance alone covers 74, 91 and 90 %
            (0.90, 1_000, (0.01, 1.0)),
            (0.70, 1_000, (0.01, 1.0)),
            (0.90, 3_000, (0.01, 1.0)),
            # rare fails
            (0.98, 3_000, (0.05, 1.0)),
            (0.995, 2_000, (0.2, 1.0)),
        ],
    )
    def test_the_weighted_interval_covers_and_the_unweighted_does_not(self, ordinary, population, rates):
        share, bad = 0.05, 0.30
        truth = (1 - share) * ordinary + share * bad
        weighted = unweighted = count = 0
        for sums in two_rate_windows(
            repetitions=2_000, ordinary=ordinary, bad=bad, rates=rates, population=population, share=share, seed=20
        ):
            got = pass_ratio(sums)
            lower, upper = wilson(sums.passes / sums.n, sums.n)
            weighted += got.lower <= truth <= got.upper
            unweighted += lower <= truth <= upper
            count += 1
        assert weighted / count >= 0.93
        # 0.35: the mildest oversampling of the list; the others are under 0.05
        assert unweighted / count <= (0.35 if rates[0] == 0.2 else 0.05)

    @pytest.mark.parametrize(("ordinary", "bad"), [((8, 2), (2, 8)), ((30, 1.5), (1, 4))])
    @pytest.mark.parametrize("population", [1_500, 10_000])
    def test_the_mean_score_covers(self, ordinary, bad, population):
        rng = np.random.default_rng(3)
        share, rate = 0.05, 0.05
        truth = (1 - share) * ordinary[0] / sum(ordinary) + share * bad[0] / sum(bad)
        covered = 0
        for _ in range(1_000):
            of_bad = rng.binomial(population, share)
            many = rng.beta(*ordinary, rng.binomial(population - of_bad, rate))
            y = np.concatenate([many, rng.beta(*bad, of_bad)])
            w = np.concatenate([np.full(len(many), 1 / rate), np.ones(of_bad)])
            got = score_mean(
                Sums(
                    n=len(y),
                    sum_w=w.sum(),
                    sum_w2=(w**2).sum(),
                    sum_wy=(w * y).sum(),
                    sum_w2y=(w**2 * y).sum(),
                    sum_w2y2=(w**2 * y**2).sum(),
                )
            )
            covered += got.lower <= truth <= got.upper
        assert covered / 1_000 >= 0.93

    def test_it_is_not_covered_by_being_wide(self):
        """At 20,000 interactions the interval is no wider than a plain sample of the same variance would give."""
        share, ordinary, bad, rate, population = 0.05, 0.95, 0.4, 0.05, 20_000
        truth = (1 - share) * ordinary + share * bad
        windows_ = two_rate_windows(
            repetitions=500,
            ordinary=ordinary,
            bad=bad,
            rates=(rate, 1.0),
            population=population,
            share=share,
            seed=4,
        )
        got = [pass_ratio(sums) for sums in windows_]
        spread = np.std([estimate.value for estimate in got])
        half = np.mean([estimate.upper - estimate.lower for estimate in got]) / 2
        assert abs(np.mean([estimate.value for estimate in got]) - truth) < 0.002
        assert half == pytest.approx(1.96 * spread, rel=0.1)


class TestParseWindow:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("5m", 300), ("1h", 3600), ("24h", 86_400), ("60s", 60), ("7d", 604_800), ("2w", 1_209_600), (" 5m ", 300)],
    )
    def test_accepts(self, text, seconds):
        assert parse_window(text) == seconds

    @pytest.mark.parametrize(
        "text", ["", "5", "m", "5 m", "1.5h", "-5m", "0m", "30s", "90s", "5M", "1h30m", "nan", "\u0665m"]
    )
    def test_refuses_with_the_mend(self, text):
        with pytest.raises(SettingsError, match="5m, 1h or 7d"):
            parse_window(text)


minutes = st.integers(-(10**6), 10**8).map(lambda minute: minute * MINUTE)


class TestWindowBounds:
    @given(st.floats(0, 4e9), st.integers(1, 1440).map(lambda minute: minute * MINUTE))
    def test_ends_with_the_running_minute(self, now, seconds):
        start, end = window_bounds(now, seconds)
        assert end - MINUTE <= now < end
        assert end - start == seconds + MINUTE
        assert start % MINUTE == 0

    def test_example(self):
        assert window_bounds(1_000_000_030.5, 300) == (999_999_720, 1_000_000_080)

    @given(st.floats(1e6, 4e9), st.integers(1441, 100_000).map(lambda minute: minute * MINUTE))
    def test_long_windows_start_on_an_hour(self, now, seconds):
        start, end = window_bounds(now, seconds)
        assert start % HOUR == 0
        assert seconds <= end - start < seconds + HOUR + MINUTE
        assert not any(span.resolution_seconds == MINUTE and span.start == start for span in cover(start, end)) or (
            end - start < HOUR
        )


class TestCover:
    @given(minutes, st.integers(0, 5000).map(lambda minute: minute * MINUTE))
    @example(0, 0)
    @example(0, HOUR)
    @example(HOUR - MINUTE, HOUR + MINUTE)
    @example(HOUR - MINUTE, 2 * MINUTE)
    @example(-DAY, DAY)
    def test_is_exact_disjoint_and_coarse_where_it_can_be(self, start, length):
        end = start + length
        spans = cover(start, end)
        # in order, end to end, without a gap or an overlap
        edges = [start, *(span.end for span in spans)]
        assert [span.start for span in spans] == edges[:-1]
        assert edges[-1] == end if spans else start == end
        assert len(spans) <= 3
        for span in spans:
            assert span.start < span.end
            assert span.start % span.resolution_seconds == 0 == span.end % span.resolution_seconds
            assert span.resolution_seconds in (MINUTE, HOUR)
            if span.resolution_seconds == MINUTE:
                # no whole hour is read by the minute
                assert -(-span.start // HOUR) >= span.end // HOUR
        by_minute = sum(span.end - span.start for span in spans if span.resolution_seconds == MINUTE)
        assert by_minute <= 2 * (HOUR - MINUTE)

    def test_of_nothing_and_backwards(self):
        assert cover(HOUR, HOUR) == []
        assert cover(2 * HOUR, HOUR) == []

    def test_example(self):
        assert cover(HOUR - 120, 3 * HOUR + 60) == [
            Span(MINUTE, HOUR - 120, HOUR),
            Span(HOUR, HOUR, 3 * HOUR),
            Span(MINUTE, 3 * HOUR, 3 * HOUR + 60),
        ]

    @pytest.mark.parametrize(("start", "end"), [(1, 60), (0, 61), (30, 30)])
    def test_refuses_what_is_off_the_minute(self, start, end):
        with pytest.raises(ValueError, match="whole minutes"):
            cover(start, end)
