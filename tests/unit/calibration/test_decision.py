"""The decision rule: which correction, in which world; its coverage; and when it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from assay.calibration import Statistic, correct, error_rates
from assay.calibration.correction import rogan_gladen
from assay.windows import Sums, pass_ratio


def window_of(passes, fails, weight=1.0):
    """Sums of so many passing and failing records."""
    n, square = passes + fails, weight * weight
    return Sums(
        n=n,
        sum_w=weight * n,
        sum_w2=square * n,
        sum_wy=weight * passes,
        sum_w2y=square * passes,
        sum_w2y2=square * passes,
        passes=passes,
        sum_wp=weight * passes,
        sum_w2p=square * passes,
    )


def rates_of(both_pass, false_fail, false_pass, both_fail, **options):
    counts = [both_pass, false_fail, false_pass, both_fail]
    return error_rates(np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts), **options)


GOOD = rates_of(144, 36, 2, 18)  # sensitivity 0.8, specificity 0.9, 200 labels
WINDOW = window_of(700, 300)


def simulate(rng, labels_at, truth, n_labels, n, sensitivity=0.8, specificity=0.9):
    """Error rates by labels of one time, and the sums of a window of another."""

    def traffic(size, share):
        y = rng.random(size) < share
        return y, np.where(y, rng.random(size) < sensitivity, rng.random(size) < 1 - specificity)

    y, judged = traffic(n_labels, labels_at)
    passes = int(traffic(n, truth)[1].sum())
    return error_rates(y, judged), window_of(passes, n - passes)


def covers(estimate, truth):
    return estimate is not None and estimate.lower <= truth <= estimate.upper


def test_c14_coverage_with_fresh_labels():
    """Sensitivity 0.8, specificity 0.9, pass 0.95, 100 labels, 1,000 records: 95 % intervals cover 93 to 97 %."""
    rng = np.random.default_rng(14)
    naive, fresh, chosen = [], [], set()
    for _ in range(2000):
        rates, window = simulate(rng, 0.95, 0.95, 100, 1000)
        found = correct(window, rates, fresh=True)
        chosen.add(found.method)
        naive.append(covers(pass_ratio(window), 0.95))
        fresh.append(covers(found.estimate, 0.95))
    print(f"coverage: naive {np.mean(naive):.3f}, post-stratified {np.mean(fresh):.3f}")
    assert chosen == {"post_stratified"}
    assert 0.93 <= np.mean(fresh) <= 0.97
    assert np.mean(naive) < 0.01


def test_c14_coverage_of_rogan_gladen():
    """The same world by Rogan-Gladen, which 100 labels with 5 fails are too few to be chosen for."""
    rng = np.random.default_rng(41)
    held = []
    for _ in range(2000):
        passes = rng.binomial(100, 0.95)
        fails = 100 - passes
        if not fails:
            continue
        seen = rng.binomial(1000, 0.95 * 0.8 + 0.05 * 0.1) / 1000
        found = rogan_gladen(
            seen,
            1000,
            sensitivity=rng.binomial(passes, 0.8) / passes,
            n_pass=passes,
            specificity=rng.binomial(fails, 0.9) / fails,
            n_fail=fails,
        )
        held.append(found.lower <= 0.95 <= found.upper)
    print(f"coverage: Rogan-Gladen {np.mean(held):.3f}")
    assert 0.93 <= np.mean(held) <= 0.97


def test_c15_labels_of_a_better_time():
    """Labels at 0.90, truth now 0.70: Rogan-Gladen is chosen and covers; post-stratification nearly always misses."""
    rng = np.random.default_rng(15)
    stale, as_if_fresh = [], []
    for _ in range(1200):
        rates, window = simulate(rng, 0.90, 0.70, 200, 1000)
        found = correct(window, rates, fresh=False)
        assert found.method != "post_stratified"
        # The few label sets with hardly a fail fall back on the offset.
        if found.method == "rogan_gladen":
            stale.append(covers(found.estimate, 0.70))
        as_if_fresh.append(covers(correct(window, rates, fresh=True).estimate, 0.70))
    print(f"coverage after a drop: Rogan-Gladen {np.mean(stale):.3f}, post-stratified {np.mean(as_if_fresh):.3f}")
    assert len(stale) > 1140
    assert np.mean(stale) >= 0.93
    assert np.mean(as_if_fresh) < 0.05


def test_c16_labels_picked_by_verdict():
    """70 % of the labels where the judge says fail. Weighted, the level is right; unweighted it is refused."""
    rng = np.random.default_rng(16)
    weighted, plain, held = [], [], []
    for _ in range(600):
        y = rng.random(3000) < 0.9
        judged = np.where(y, rng.random(3000) < 0.8, rng.random(3000) < 0.1)
        chosen = np.concatenate(
            [
                rng.choice(np.flatnonzero(judged == verdict), size, replace=False)
                for verdict, size in ((False, 210), (True, 90))
            ]
        )
        weight = np.where(judged[chosen], judged.sum() / 90, (~judged).sum() / 210)
        window = window_of(int(judged.sum()), int((~judged).sum()))
        good = correct(window, error_rates(y[chosen], judged[chosen], sample_weight=weight))
        unweighted = error_rates(y[chosen], judged[chosen])
        se, sp = unweighted.sensitivity, unweighted.specificity
        plain.append(
            rogan_gladen(
                pass_ratio(window).value, 3000, sensitivity=se.value, n_pass=se.n, specificity=sp.value, n_fail=sp.n
            )
        )
        # A judge that passes 40 % of the good answers cannot pass 73 % of all.
        assert correct(window, unweighted, max_half_width=1.0).state == "refused"
        weighted.append(good.estimate.value)
        held.append(covers(good.estimate, 0.9))
    assert np.mean(weighted) == pytest.approx(0.90, abs=0.01)
    assert np.mean(held) >= 0.93
    assert {found.value for found in plain} == {1.0}
    assert not any(found.lower <= 0.9 for found in plain)


def test_c16_the_whole_path_with_fresh_labels():
    """Two-rate sampling of production, labels half by verdict, all probabilities recorded: post-stratified covers."""
    rng = np.random.default_rng(61)
    held = []
    for _ in range(400):
        heavy = rng.random(600) < 0.5
        weight = np.where(heavy, 10.0, 1.0)
        y = rng.random(600) < np.where(heavy, 0.92, 0.84)
        judged = np.where(y, rng.random(600) < 0.92, rng.random(600) < 0.25)
        chance = np.where(judged, 0.5 * 150 / judged.sum(), np.minimum(1.0, 0.5 * 150 / (~judged).sum()))
        picked = rng.random(600) < chance
        rates = error_rates(y[picked], judged[picked], sample_weight=(weight / chance)[picked])
        window = Sums()
        for w, p in ((10.0, True), (10.0, False), (1.0, True), (1.0, False)):
            k = int(((weight == w) & (judged == p)).sum())
            window += window_of(k, 0, w) if p else window_of(0, k, w)
        held.append(covers(correct(window, rates, fresh=True).estimate, (10 * 0.92 + 0.84) / 11))
    assert 0.92 <= np.mean(held) <= 0.985


class TestChoice:
    def test_fresh_labels_give_the_narrow_level(self):
        fresh, old = (correct(WINDOW, GOOD, fresh=fresh) for fresh in (True, False))
        assert (fresh.method, old.method) == ("post_stratified", "rogan_gladen")
        assert fresh.estimate.upper - fresh.estimate.lower < old.estimate.upper - old.estimate.lower

    def test_a_golden_set_supports_rogan_gladen_only(self):
        curated = rates_of(40, 10, 5, 45, selection="curated")
        assert correct(WINDOW, curated, fresh=True).method == "rogan_gladen"
        weak = rates_of(50, 0, 40, 10, selection="curated")
        found = correct(WINDOW, weak, fresh=True)
        assert (found.method, found.state) == ("none", "no_calibration")

    def test_a_thin_cell_of_fresh_labels_falls_back(self):
        # Four labels where the judge says fail.
        rates = rates_of(190, 2, 12, 2)
        assert correct(WINDOW, rates, fresh=True).method != "post_stratified"

    def test_a_weak_but_biased_judge_gets_an_offset(self):
        rates = rates_of(100, 60, 15, 25)
        assert rates.youden.lower < 0.3
        found = correct(WINDOW, rates)
        assert found.method == "offset"
        assert found.estimate.value == pytest.approx(0.7 - rates.bias.value)
        assert found.estimate.lower < found.window_lower < found.estimate.value < found.window_upper

    def test_a_weak_judge_without_bias_is_left_alone(self):
        rates = rates_of(100, 30, 30, 40)
        found = correct(WINDOW, rates)
        assert (found.method, found.state, found.estimate) == ("none", "no_calibration", None)
        assert found.bias == rates.bias
        assert "may be none" in found.reason

    def test_too_few_of_a_class(self):
        found = correct(WINDOW, rates_of(20, 1, 0, 5))
        assert found.state == "no_calibration"
        assert "failed 5" in found.reason

    def test_c7_no_better_than_chance_is_no_calibration(self):
        found = correct(WINDOW, rates_of(50, 50, 50, 50))
        assert (found.state, found.method, found.estimate) == ("no_calibration", "none", None)


class TestState:
    def test_ok_says_what_it_did(self):
        found = correct(WINDOW, GOOD)
        assert found.state == "ok"
        assert found.raw == pass_ratio(WINDOW)
        assert "sensitivity" in found.reason
        assert found.estimate.n == 1000
        assert found.window_lower <= found.estimate.value <= found.window_upper

    def test_too_wide_is_published_but_marked(self):
        found = correct(WINDOW, rates_of(30, 6, 2, 12))
        assert found.state == "too_wide"
        assert found.estimate is not None
        assert "points only" in found.reason
        assert correct(WINDOW, GOOD, max_half_width=0.01).state == "too_wide"

    def test_stale_beats_too_wide(self):
        found = correct(WINDOW, GOOD, stale=True, max_half_width=0.01)
        assert (found.state, found.estimate is not None) == ("stale", True)

    def test_few_records_are_refused(self):
        few = correct(window_of(20, 5), GOOD)
        assert (few.state, few.estimate) == ("refused", None)
        assert few.raw is not None
        heavy = correct(window_of(20, 5) + window_of(5, 1, 1000.0), GOOD)
        assert heavy.state == "refused"

    def test_an_empty_window_has_nothing(self):
        found = correct(Sums(), GOOD)
        assert (found.state, found.raw, found.estimate) == ("refused", None, None)

    def test_scores_outside_the_calibrated_ones_are_refused(self):
        assert correct(WINDOW, GOOD, outside_support=0.06).state == "refused"
        assert correct(WINDOW, GOOD, outside_support=0.05).state == "ok"

    @pytest.mark.parametrize(
        ("rates", "window"), [(GOOD, window_of(990, 10)), (rates_of(100, 60, 15, 25), window_of(99, 1))]
    )
    def test_a_reading_that_the_calibration_rules_out_is_refused(self, rates, window):
        """It passed 80 % of the good answers; now it passes 99 % of all."""
        found = correct(window, rates)
        assert (found.state, found.estimate) == ("refused", None)
        assert "cannot explain" in found.reason
        assert found.raw is not None

    def test_no_calibration(self):
        found = correct(WINDOW, None)
        assert (found.state, found.method) == ("no_calibration", "none")
        assert found.bias.value is None

    @pytest.mark.parametrize(
        "window", [window_of(1000, 0), window_of(0, 1000), window_of(500, 500), window_of(31, 0), Sums()]
    )
    @pytest.mark.parametrize(
        "rates", [GOOD, rates_of(100, 60, 15, 25), rates_of(60, 0, 0, 40), rates_of(30, 0, 0, 0), None]
    )
    @pytest.mark.parametrize("fresh", [True, False])
    def test_never_nan_never_outside_never_without_width(self, window, rates, fresh):
        found = correct(window, rates, fresh=fresh)
        json.dumps(asdict(found), allow_nan=False)
        if found.estimate is not None:
            assert 0 <= found.estimate.lower <= found.estimate.value <= found.estimate.upper <= 1
            # A point would say that the level is known exactly.
            assert found.estimate.lower < found.estimate.upper
        assert found.reason
        assert isinstance(found.bias, Statistic)


def test_same_seed_same_digits():
    assert correct(WINDOW, GOOD, fresh=True, seed=1) == correct(WINDOW, GOOD, fresh=True, seed=1)
    assert correct(WINDOW, GOOD, fresh=True, seed=1) != correct(WINDOW, GOOD, fresh=True, seed=2)


class TestStrata:
    def topics(self, rng, n, mix):
        """Two topics that pass, and are judged, differently; the share `mix` is of the first."""
        topic = np.where(rng.random(n) < mix, "easy", "hard")
        easy = topic == "easy"
        y = rng.random(n) < np.where(easy, 0.95, 0.55)
        judged = np.where(y, rng.random(n) < 0.9, rng.random(n) < 0.4)
        return topic, y, judged

    def test_by_topic_it_survives_a_change_of_the_mix(self):
        """Labels at a mix of 80 to 20, window at 40 to 60: pooled cells are off, cells by topic are right."""
        rng = np.random.default_rng(1)
        truth, pooled, by_topic = 0.4 * 0.95 + 0.6 * 0.55, [], []
        for _ in range(300):
            topic, y, judged = self.topics(rng, 500, 0.8)
            rates = error_rates(y, judged, strata=topic.tolist())
            topic, _, judged = self.topics(rng, 1000, 0.4)
            strata = {
                name: window_of(int((judged & (topic == name)).sum()), int((~judged & (topic == name)).sum()))
                for name in ("easy", "hard")
            }
            window = strata["easy"] + strata["hard"]
            pooled.append(covers(correct(window, rates, fresh=True).estimate, truth))
            by_topic.append(covers(correct(window, rates, fresh=True, strata=strata).estimate, truth))
        print(f"coverage: pooled {np.mean(pooled):.3f}, by topic {np.mean(by_topic):.3f}")
        assert np.mean(by_topic) >= 0.91
        assert np.mean(pooled) < 0.2

    def test_one_stratum_is_none(self):
        whole = correct(WINDOW, GOOD, fresh=True)
        same = correct(WINDOW, GOOD, fresh=True, strata={"": WINDOW})
        assert same.estimate == whole.estimate

    def test_thin_strata_are_taken_together(self):
        rng = np.random.default_rng(2)
        topic, y, judged = self.topics(rng, 300, 0.98)
        rates = error_rates(y, judged, strata=topic.tolist())
        assert rates.cells["hard"].is_thin
        strata = {"easy": window_of(700, 100), "hard": window_of(100, 60), "new": window_of(30, 10), "none": Sums()}
        found = correct(sum(strata.values(), Sums()), rates, fresh=True, strata=strata)
        assert "2 strata" in found.reason
        assert found.estimate is not None
