"""A statistic has a value or a reason, never NaN."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from assay.calibration import Statistic
from assay.calibration.statistic import too_few_for_interval


def test_undefined_carries_its_reason():
    found = Statistic.undefined("there are no labels", n=3)
    assert (found.value, found.lower, found.upper, found.n) == (None, None, None, 3)
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["reason"] == "there are no labels"


@pytest.mark.parametrize("field", ["value", "lower", "upper"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_refuses_numbers_that_are_none(field, number):
    with pytest.raises(ValueError, match=field):
        Statistic(**{"value": 0.5, "lower": 0.4, "upper": 0.6, field: number})


def test_has_a_value_or_a_reason():
    with pytest.raises(ValueError, match="reason"):
        Statistic(value=None)
    with pytest.raises(ValueError, match="reason"):
        Statistic(value=0.5, lower=0.4, upper=0.6, reason="because")


def test_a_value_may_say_why_it_has_no_interval():
    found = Statistic.of(0.5, n=3, method="t", no_interval="only 3 records")
    assert (found.value, found.lower, found.method, found.reason) == (0.5, None, "", "only 3 records")
    assert found.holds(0.0)
    assert Statistic.of(math.nan, n=3, unless="all alike", no_interval="only 3 records").reason == "all alike"


@pytest.mark.parametrize(
    ("n", "clusters", "reason"),
    [
        (1, True, "only 1 cluster: an interval takes at least 5"),
        (4, True, "only 4 clusters: an interval takes at least 5"),
        (2, False, "only 2 records: an interval takes at least 5"),
        (5, True, None),
        (5, False, None),
    ],
)
def test_too_few_for_an_interval(n, clusters, reason):
    assert too_few_for_interval(n, clusters=clusters) == reason


def test_of_turns_nan_into_a_reason():
    assert Statistic.of(math.nan, n=1, unless="all labels are alike").reason == "all labels are alike"
    assert Statistic.of(math.nan, n=1).reason


def test_of_widens_the_interval_to_hold_the_value():
    found = Statistic.of(0.5, (0.6, 0.7), n=10)
    assert (found.lower, found.upper) == (0.5, 0.7)
    assert found.half_width == pytest.approx(0.1)


def test_holds():
    assert Statistic.of(0.5, (0.4, 0.6), n=1).holds(0.4)
    assert not Statistic.of(0.5, (0.4, 0.6), n=1).holds(0.0)
    assert Statistic.of(0.5, n=1).holds(0.0)
    assert Statistic.of(0.5, n=1).half_width is None
