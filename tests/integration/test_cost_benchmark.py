"""What `benchmarks/cost.py` counts: in ratios that hold whatever the prompts say."""

from benchmarks.cost import BANDS, all_orders, few_orders, modes, one_order, prefixes, repeated
from throughput import rag_record


def test_each_mode_costs_what_it_sends() -> None:
    together, alone, repeated, twice, reused, cascaded = modes(16)
    assert (together.calls, alone.calls, twice.calls, reused.calls) == (16, 64, 16, 8)
    assert alone.prompt_tokens > 2 * together.prompt_tokens
    # A passage is about 180 tokens.
    assert 100 < (together.prompt_tokens - repeated.prompt_tokens) / 16 < 250
    assert abs(reused.cost_usd / twice.cost_usd - 0.5) < 0.02
    # Six records are in doubt under one rubric; of the other ten, and under the other rubrics, a share is asked for.
    assert 6 <= cascaded.calls < 16
    assert cascaded.cost_usd < 0.8 * together.cost_usd
    for mode in (together, alone, reused, cascaded):
        assert abs(mode.cost_usd - (mode.prompt_tokens * 0.15 + mode.completion_tokens * 0.60) / 1e6) < 1e-9


def test_adaptive_repeats_cost_less_than_fixed_ones_and_decide_nearly_as_they_do() -> None:
    once, adaptive, always = repeated(40)
    assert (once.mode.calls, always.mode.calls) == (40, 200)
    assert 40 < adaptive.mode.calls < 200
    assert once.mode.cost_usd < adaptive.mode.cost_usd < 0.75 * always.mode.cost_usd
    unlike = {
        way.mode.name: sum(
            own != other for name in BANDS for own, other in zip(way.passes[name], always.passes[name], strict=True)
        )
        for way in (once, adaptive)
    }
    assert unlike[adaptive.mode.name] < 0.6 * unlike[once.mode.name]
    # What is not repeated is the first verdict in each of them.
    assert once.passes["safety"] == adaptive.passes["safety"] == always.passes["safety"]


def test_few_orders_share_nearly_as_much_as_one() -> None:
    records = [rag_record(index) for index in range(60)]
    shared = {}
    for order in (all_orders, few_orders, one_order):
        cells = prefixes("x", records, order).replace(",", "").split("|")
        shared[order] = (int(cells[2]), int(cells[3]), int(cells[4]))
    assert [shared[order][0] for order in (few_orders, one_order)] == [4, 1]
    assert shared[all_orders][0] > 15
    assert shared[one_order][1] > 2 * shared[few_orders][1] > 2 * shared[all_orders][1]
    assert shared[few_orders][2] > 0.9 * shared[one_order][2]
    assert shared[all_orders][2] < 0.8 * shared[one_order][2]
