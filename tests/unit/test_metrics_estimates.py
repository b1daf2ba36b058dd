"""Estimates of columns are those of `assay.windows` and `assay.signals`, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.metrics._estimates import Estimates, cost_columns, mean_columns, share_columns
from assay.signals import COST_SUMS, SIGNAL_SUMS, Average, CostSums, SignalSums, cost_per_pass, mean_of
from assay.windows import Estimate, Sums, pass_ratio

#: weight, number, passed
Seen = tuple[float, float, bool]

SEEN: st.SearchStrategy[list[list[Seen]]] = st.lists(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from([1.0, 1.0, 4.0, 1e3, 1e12]), st.floats(1.0, 1e6)),
            st.one_of(st.sampled_from([0.0, 1.0, 1.0, 0.25, 640.0]), st.floats(-1e9, 1e9)),
            st.booleans(),
        ),
        max_size=40,
    ),
    max_size=6,
)


def columns(rows: Sequence[object], names: Sequence[str]) -> list[np.ndarray]:
    return [np.array([float(getattr(row, name)) for row in rows]) for name in names]


def check(got: Estimates, expected: Sequence[Estimate | Average | None]) -> None:
    for index, one in enumerate(expected):
        shown = [float(column[index]) for column in (got.value, got.lower, got.upper, got.n_effective)]
        if one is None:
            assert np.isnan(shown).all()
            continue
        ends = [np.nan if end is None else end for end in (one.lower, one.upper)]
        assert shown == pytest.approx([one.value, *ends, one.n_effective], rel=1e-9, abs=1e-12, nan_ok=True)


def added(seen: Sequence[Seen], of: Callable[[Seen], object], nothing: object) -> object:
    total = nothing
    for one in seen:
        total = total + of(one)  # type: ignore[operator]
    return total


@given(SEEN)
def test_shares(groups: list[list[Seen]]) -> None:
    rows = [added(seen, lambda s: Sums.of(weight=s[0], value=0.5, passed=s[2]), Sums()) for seen in groups]
    got = share_columns(columns(rows, ("n", "sum_w", "sum_w2", "passes", "sum_wp", "sum_w2p")))
    check(got, [pass_ratio(row) for row in rows])  # type: ignore[arg-type]


@given(SEEN)
def test_means(groups: list[list[Seen]]) -> None:
    rows = [added(seen, lambda s: SignalSums.of(weight=s[0], x=s[1]), SignalSums()) for seen in groups]
    check(mean_columns(columns(rows, SIGNAL_SUMS)), [mean_of(row) for row in rows])  # type: ignore[arg-type]


@given(SEEN)
def test_costs(groups: list[list[Seen]]) -> None:
    rows = [added(seen, lambda s: CostSums.of(weight=s[0], cost=abs(s[1]), passed=s[2]), CostSums()) for seen in groups]
    check(cost_columns(columns(rows, COST_SUMS)), [cost_per_pass(row) for row in rows])  # type: ignore[arg-type]


def test_of_nothing_nothing() -> None:
    assert share_columns([np.zeros(0)] * 6).value.size == 0
    assert mean_columns([np.zeros(0)] * 8).value.size == 0
    assert cost_columns([np.zeros(0)] * 9).value.size == 0
