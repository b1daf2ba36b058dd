"""Columns of numbers as the public functions take them: checked once, with a sentence that says what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

#: What came together: a name or number for each record.
Clusters: TypeAlias = "Sequence[Hashable] | npt.NDArray[np.generic]"

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: Thresholds and levels written in decimal may miss the score they mean by this much.
ROUNDING = 1e-9


def floats(values: npt.ArrayLike, name: str, *, n: int | None = None) -> FloatArray:
    """`values` as finite floats, shape (n,).

    Raises:
        ValueError: another shape, or a value that is not a finite number.
    """
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise ValueError(f"{name}: give one value for each record, not an array of shape {column.shape}")
    if n is not None and len(column) != n:
        raise ValueError(f"{name}: {len(column)} values for {n} records")
    if not np.isfinite(column).all():
        at = int(np.flatnonzero(~np.isfinite(column))[0])
        raise ValueError(f"{name}: value {at} is {column[at]}, not a finite number")
    return column


def units(values: npt.ArrayLike, name: str, *, n: int | None = None) -> FloatArray:
    """`values` as floats in [0, 1], shape (n,).

    Raises:
        ValueError: another shape, or a value out of [0, 1].
    """
    column = floats(values, name, n=n)
    outside = np.flatnonzero((column < 0.0) | (column > 1.0))
    if outside.size:
        raise ValueError(f"{name}: value {outside[0]} is {column[outside[0]]}, not in [0, 1]")
    return column


def flags(values: npt.ArrayLike, name: str, *, n: int | None = None) -> BoolArray:
    """`values` as booleans, shape (n,); numbers must be 0 or 1.

    Raises:
        ValueError: another shape, or a value that is neither true nor false.
    """
    column = floats(values, name, n=n)
    odd = np.flatnonzero((column != 0.0) & (column != 1.0))
    if odd.size:
        raise ValueError(f"{name}: value {odd[0]} is {column[odd[0]]}, neither pass (1) nor fail (0)")
    true: BoolArray = column == 1.0
    return true


def weights_or_ones(values: npt.ArrayLike | None, n: int) -> FloatArray:
    """Positive finite weights, shape (n,); ones when there are none.

    Raises:
        ValueError: another shape, or a weight that is not positive: no record can stand for none.
    """
    if values is None:
        return np.ones(n)
    column = floats(values, "sample_weight", n=n)
    bad = np.flatnonzero(column <= 0.0)
    if bad.size:
        raise ValueError(f"sample_weight: weight {bad[0]} is {column[bad[0]]}: weights are 1 / probability, above 0")
    return column


def are_equal(weights: FloatArray) -> bool:
    """Whether all weights are the same, so that counts speak for themselves."""
    return bool(weights.size == 0 or np.ptp(weights) <= ROUNDING * float(weights.max()))


def groups_or_rows(clusters: Clusters | None, n: int) -> tuple[IntArray, int]:
    """The group of each row, numbered from 0, and how many groups there are; each row its own when there are none.

    Raises:
        ValueError: not one cluster for each row.
    """
    if clusters is None:
        return np.arange(n), n
    if len(clusters) != n:
        raise ValueError(f"clusters: {len(clusters)} values for {n} records")
    numbers: dict[Hashable, int] = {}
    group = np.fromiter((numbers.setdefault(name, len(numbers)) for name in clusters), dtype=np.int64, count=n)
    return group, len(numbers)


def sums_by_group(terms: FloatArray, group: IntArray, n_groups: int) -> FloatArray:
    """Rows of `terms`, shape (n, m) or (n,), added up by group: shape (n_groups, m) or (n_groups,)."""
    sums = np.zeros((n_groups, *terms.shape[1:]))
    np.add.at(sums, group, terms)
    return sums
