"""Bootstrap: the products are what resampling gives, the intervals cover, the seeds hold."""

from __future__ import annotations

import numpy as np
import pytest

from assay.calibration.agreement import kappa_of_table
from assay.calibration.bootstrap import Bootstrap, percentile_interval


def kappa(sums):
    return kappa_of_table(sums.reshape(*sums.shape[:-1], 2, 2))


def one_hot(cell):
    return (np.asarray(cell)[:, None] == np.arange(4)).astype(float)


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def test_interval_of_a_mean_is_the_normal_one():
    x = np.random.default_rng(0).normal(5, 2, 400)
    found = Bootstrap(400, n_resamples=4000).ci(np.column_stack([x, np.ones(400)]), mean)
    half = 1.96 * x.std() / 20
    assert found.value == pytest.approx(x.mean())
    assert (found.lower, found.upper) == pytest.approx((x.mean() - half, x.mean() + half), abs=half / 10)


@pytest.mark.parametrize("n", [60, 600])
def test_few_and_many_distinct_records_give_the_same_interval(n):
    """Drawing kinds of records is the same as drawing records: a tiny jitter makes all of them distinct."""
    x = np.random.default_rng(0).integers(0, 3, n).astype(float)
    jitter = np.linspace(0, 1e-9, n)
    kinds, records = (
        Bootstrap(n, n_resamples=6000).ci(np.column_stack([column, np.ones(n)]), mean) for column in (x, x + jitter)
    )
    assert kinds.half_width == pytest.approx(records.half_width, rel=0.08)


def test_every_resample_has_as_many_records():
    terms = np.column_stack([np.ones(150), np.arange(150)])
    sums = Bootstrap(150, n_resamples=300).sums(terms)
    assert (sums[:, 0] == 150).all()
    assert sums[:, 1].std() > 0
    few = Bootstrap(150, n_resamples=300).sums(terms[:, :1])
    assert (few == 150).all()


def test_clusters_are_drawn_whole():
    clusters = np.repeat(np.arange(10), 6)
    terms = np.random.default_rng(0).random((60, 2))
    by_cluster = np.add.reduceat(terms, np.arange(0, 60, 6))
    sums = Bootstrap(60, clusters=clusters, n_resamples=200).sums(terms)
    for row in sums[:20]:
        # Ten clusters drawn: a whole-number combination of the ten sums.
        counts = np.linalg.lstsq(by_cluster.T, row, rcond=None)[0]
        assert np.isfinite(counts).all()
    counted = Bootstrap(60, clusters=clusters, n_resamples=50).ci_of_counts(
        lambda counts: np.abs(counts.reshape(-1, 10, 6) - counts.reshape(-1, 10, 6)[:, :, :1]).sum(axis=(1, 2))
    )
    assert (counted.value, counted.lower, counted.upper) == (0.0, 0.0, 0.0)


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 10)
    x = rng.normal(size=40)[clusters]
    terms = np.column_stack([x, np.ones(400)])
    alone, together = (Bootstrap(400, clusters=groups).ci(terms, mean) for groups in (None, clusters))
    assert together.half_width == pytest.approx(alone.half_width * np.sqrt(10), rel=0.1)


def test_what_is_too_much_to_keep_is_drawn_again_alike(monkeypatch):
    terms = np.column_stack([np.random.default_rng(0).random(500), np.ones(500)])
    kept = Bootstrap(500, n_resamples=64, seed=2)
    first = kept.sums(terms)
    assert first.shape == (64, 2)
    assert np.array_equal(kept.sums(terms), first)
    monkeypatch.setattr("assay.calibration.bootstrap._KEPT", 0)
    again = Bootstrap(500, n_resamples=64, seed=2)
    assert np.array_equal(again.sums(terms), first)
    assert np.array_equal(again.sums(terms), first)
    monkeypatch.setattr("assay.calibration.bootstrap._BLOCK", 500 * 7)
    blocks = Bootstrap(500, n_resamples=64, seed=2).sums(terms)
    assert blocks.shape == (64, 2)
    assert (blocks[:, 1] == 500).all()


def test_statistics_of_one_bootstrap_share_their_resamples():
    x = np.random.default_rng(0).random(200)
    draws = Bootstrap(200)
    by_sums = draws.sums(np.column_stack([x]))[:, 0]
    by_counts = []
    draws.ci_of_counts(lambda counts: by_counts.append(counts @ x) or counts @ x)
    assert np.concatenate(by_counts[1:]) == pytest.approx(by_sums)


@pytest.mark.parametrize("n_clusters", [1, 2, 4, 5])
def test_few_clusters_have_a_value_and_no_interval(n_clusters):
    terms = np.column_stack([np.random.default_rng(0).random(40), np.ones(40)])
    draws = Bootstrap(40, clusters=np.arange(40) % n_clusters)
    for found in (draws.ci(terms, mean), draws.ci_of_counts(lambda counts: counts @ terms[:, 0] / 40)):
        assert found.value == pytest.approx(terms[:, 0].mean())
        if n_clusters < 5:
            assert (found.lower, found.upper) == (None, None)
            assert found.reason.startswith(f"only {n_clusters} cluster")
        else:
            assert found.lower < found.value < found.upper
    assert Bootstrap(4).ci(terms[:4], mean).reason == "only 4 records: an interval takes at least 5"


def test_undefined_statistics_have_no_interval_or_no_value():
    terms = one_hot([0] * 30)
    assert Bootstrap(30).ci(terms, kappa, unless="one class").reason == "one class"
    rare = Bootstrap(30).ci(one_hot([3] * 29 + [0]), kappa)
    # A third of the resamples leave out the one failing record.
    assert rare.value == 1.0
    assert rare.lower is None
    assert "undefined" in rare.reason
    assert Bootstrap(0).ci(np.zeros((0, 2)), mean).reason
    assert Bootstrap(0).ci_of_counts(lambda counts: counts.sum(axis=-1)).reason


def test_percentile_interval_leaves_out_what_is_undefined():
    values = np.concatenate([np.linspace(0, 1, 95), np.full(5, np.nan)])
    assert percentile_interval(values) == pytest.approx((0.025, 0.975))
    assert percentile_interval(np.concatenate([values, np.full(20, np.nan)])) is None


@pytest.mark.parametrize(("pass_rate", "n"), [(0.7, 100), (0.9, 100), (0.9, 200)])
def test_kappa_interval_covers(pass_rate, n):
    """Judge with sensitivity 0.95 and fail recall 0.75: 94 to 96 % in the study, less than 2 points of Monte Carlo."""
    rng = np.random.default_rng(17)
    cells = np.array([pass_rate * 0.95, pass_rate * 0.05, (1 - pass_rate) * 0.25, (1 - pass_rate) * 0.75])
    order = [3, 2, 1, 0]
    truth = float(kappa(cells[order]))
    held = []
    for seed in range(500):
        counts = rng.multinomial(n, cells)[order]
        found = Bootstrap(n, n_resamples=500, seed=seed).ci(one_hot(np.repeat(np.arange(4), counts)), kappa)
        held.append(found.lower is not None and found.lower <= truth <= found.upper)
    assert 0.91 <= np.mean(held) <= 0.98
