"""Picking records for people: the probabilities are kept, the budget too, and estimates come out right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.calibration import error_rates, label_probabilities, pick_for_humans


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.floats(0.1, 400), st.floats(0.05, 1), st.floats(0, 0.2))
def test_probabilities_sum_to_the_budget(predicted, budget, mix, floor):
    found = label_probabilities(predicted, budget, mix=mix, floor=floor)
    assert found.sum() == pytest.approx(min(budget, len(predicted)), rel=1e-6)
    assert (found > 0).all()
    assert (found <= 1).all()
    assert found.min() >= min(floor, budget / len(predicted)) - 1e-12


def test_doubt_is_looked_at_more_and_nothing_never():
    found = label_probabilities([0.5, 0.9, 0.999, 1.0] * 100, 40)
    assert found[0] > found[1] > found[2] > found[3] > 0
    assert found[0] == pytest.approx(found[4])
    sure = label_probabilities([1.0] * 50, 10)
    assert sure == pytest.approx(np.full(50, 0.2))


def ids(n, day=0):
    return [f"{day}-{index}" for index in range(n)]


def test_a_repeat_picks_the_same_and_another_salt_others():
    g = np.random.default_rng(0).random(2000)
    first, again, other = (pick_for_humans(ids(2000), g, 100, salt=salt) for salt in ("mon", "mon", "tue"))
    assert first == again
    chosen = {pick.record_id for pick in first}
    assert chosen != {pick.record_id for pick in other}
    assert len(chosen) == len(first) == pytest.approx(100, abs=30)
    # In another order, each record meets the same fate.
    order = np.random.default_rng(1).permutation(2000)
    shuffled = pick_for_humans([ids(2000)[i] for i in order], g[order], 100, salt="mon")
    assert {pick.record_id for pick in shuffled} == chosen


def test_picks_are_as_frequent_as_they_say():
    g = np.random.default_rng(0).beta(5, 1, 30_000)
    chance = label_probabilities(g, 3000)
    picks = {pick.record_id: pick for pick in pick_for_humans(ids(30_000), g, 3000)}
    assert len(picks) == pytest.approx(3000, abs=160)
    for index, record_id in enumerate(ids(30_000)):
        if record_id in picks:
            assert picks[record_id].probability == pytest.approx(chance[index])
    # Horvitz-Thompson: the weights of the picks add up to all records.
    assert sum(1 / pick.probability for pick in picks.values()) == pytest.approx(30_000, rel=0.05)
    assert np.mean([pick.twice for pick in picks.values()]) == pytest.approx(0.1, abs=0.02)


def test_picking_is_independent_of_the_sampling_of_records():
    """Records that came in by a hash of the same id are picked no more often than others."""
    from assay.sampling import sample_unit

    taken = [name for name in ids(40_000) if sample_unit(name) < 0.25]
    picks = pick_for_humans(taken, np.full(len(taken), 0.5), len(taken) / 10)
    assert len(picks) == pytest.approx(len(taken) / 10, rel=0.12)


def test_labels_of_picked_records_give_the_right_level_and_more_fails():
    """The weighted pass ratio is that of all traffic, the plain one is far off, and more of the fails are found."""
    rng = np.random.default_rng(3)
    g = np.where(rng.random(4000) < 0.85, rng.beta(60, 1, 4000), rng.beta(2, 2, 4000))
    y = rng.random(4000) < g
    truth, held, values, plain, fails = y.mean(), [], [], [], []
    for day in range(60):
        picks = pick_for_humans(ids(4000), g, 300, salt=str(day))
        number = [int(pick.record_id.split("-")[1]) for pick in picks]
        weight = [1 / pick.probability for pick in picks]
        found = error_rates(y[number], g[number] > 0.8, sample_weight=weight).human_pass
        held.append(found.lower <= truth <= found.upper)
        values.append(found.value)
        plain.append(y[number].mean())
        fails.append((~y[number]).sum())
    assert np.mean(held) >= 0.93
    assert np.mean(values) == pytest.approx(truth, abs=0.006)
    assert np.mean(plain) < truth - 0.04
    assert np.mean(fails) > 1.6 * 300 * (1 - truth)


def test_more_budget_than_records_picks_all():
    picks = pick_for_humans(ids(20), np.linspace(0, 1, 20), 50)
    assert len(picks) == 20
    assert {pick.probability for pick in picks} == {1.0}
    assert pick_for_humans([], [], 50) == []


@pytest.mark.parametrize(
    ("record_ids", "predicted", "budget", "options", "message"),
    [
        (["a", "a"], [0.5, 0.5], 1, {}, "occurs twice"),
        (["a"], [0.5, 0.5], 1, {}, "2 values for 1"),
        (["a"], [1.5], 1, {}, "not in"),
        (["a"], [0.5], 0, {}, "budget"),
        (["a"], [0.5], float("nan"), {}, "budget"),
        (["a"], [0.5], 0.5, {"mix": 0}, "mix"),
        (["a"], [0.5], 0.5, {"floor": 2}, "floor"),
    ],
)
def test_bad_input(record_ids, predicted, budget, options, message):
    with pytest.raises(ValueError, match=message):
        pick_for_humans(record_ids, predicted, budget, **options)
