from __future__ import annotations

import hashlib
import itertools
import math
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import SettingsError
from assay.records import Feedback, Sampling
from assay.sampling import ALWAYS_TAKE, Rule, Sampler, sample_unit, share_at

UNIT_OF_A_TRACE = 0.10795383468468478
UNIT_OF_NOTHING = 0.21549632904154115
UNIT_OF_E = 0.05916869571995653
KEYS = [hashlib.md5(str(n).encode()).hexdigest() for n in range(20_000)]  # synthetic trace ids


def taken(rate: float, keys: list[str], rules: tuple[Rule, ...] = (), **fields: Any) -> set[str]:
    sampler = Sampler(rate, rules)
    return {key for key in keys if sampler.decide(key, fields) is not None}


def test_unit_by_its_definition() -> None:
    digest = hashlib.sha256(b"assay:v1\x00" + b"0af7651916cd43dd8448eb211c80319c").hexdigest()
    # The first 53 bits are the first 13 hex digits and one bit of the fourteenth.
    expected = int(digest[:14], 16) >> 3
    assert sample_unit("0af7651916cd43dd8448eb211c80319c") == expected / 2**53


def test_unit_never_changes() -> None:
    """Services of different releases must decide alike for one trace."""
    assert sample_unit("0af7651916cd43dd8448eb211c80319c") == UNIT_OF_A_TRACE
    assert sample_unit("") == UNIT_OF_NOTHING
    assert sample_unit("\u00e9") == UNIT_OF_E


@given(st.text())
def test_unit_is_in_range(key: str) -> None:
    assert 0.0 <= sample_unit(key) < 1.0


def test_unit_takes_lone_surrogates() -> None:
    assert 0.0 <= sample_unit("\ud800") < 1.0


def test_unit_is_uniform() -> None:
    """Chi-square over 20 cells: 43.8 is the 0.999 quantile of 19 degrees of freedom. The keys are fixed, so no luck."""
    cells = [0] * 20
    for key in KEYS:
        cells[int(sample_unit(key) * 20)] += 1
    expected = len(KEYS) / 20
    assert sum((count - expected) ** 2 / expected for count in cells) < 43.8


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.5, 0.9])
def test_share_taken(rate: float) -> None:
    share = len(taken(rate, KEYS)) / len(KEYS)
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / len(KEYS))


def test_a_lower_rate_is_a_subset() -> None:
    sets = [taken(rate, KEYS) for rate in (0.0, 0.01, 0.1, 0.5, 1.0)]
    assert all(lower < higher for lower, higher in itertools.pairwise(sets))
    assert sets[0] == set()
    assert sets[-1] == set(KEYS)


def test_another_process_decides_alike() -> None:
    code = "from assay.sampling import sample_unit; print([sample_unit(str(n)) for n in range(50)])"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str([sample_unit(str(n)) for n in range(50)])


def test_probability_and_rule_of_the_decision() -> None:
    sampler = Sampler(0.25, [Rule("canary", 0.5, route="/new")])
    key = next(key for key in KEYS if sample_unit(key) < 0.25)
    assert sampler.decide(key, {}) == Sampling(probability=0.25, rule="default")
    assert sampler.decide(key, {"route": "/new"}) == Sampling(probability=0.5, rule="canary")


def test_a_rule_takes_more_than_the_default_and_by_the_same_hash() -> None:
    rules = (Rule("canary", 0.5, route="/new"),)
    assert taken(0.1, KEYS, rules, route="/new") == taken(0.5, KEYS)
    assert taken(0.1, KEYS, rules, route="/old") == taken(0.1, KEYS)


def test_the_first_rule_that_matches_decides() -> None:
    rules = (Rule("none", 0.0, route="/health*"), Rule("all", 1.0, route="/*"))
    assert taken(1.0, KEYS[:50], rules, route="/healthz") == set()
    assert taken(0.0, KEYS[:50], rules, route="/ask") == set(KEYS[:50])


@pytest.mark.parametrize(
    ("rule", "fields", "matches"),
    [
        (Rule("r", 1.0), {}, True),
        (Rule("r", 1.0, route="/ask"), {"route": "/ask"}, True),
        (Rule("r", 1.0, route="/ask"), {"route": "/ask/more"}, False),
        (Rule("r", 1.0, route="/ask"), {}, False),
        (Rule("r", 1.0, route="/ask"), {"route": None}, False),
        (Rule("r", 1.0, route="/ask*"), {"route": "/ask/more"}, True),
        (Rule("r", 1.0, route="/v[12]/*"), {"route": "/v2/x"}, True),
        (Rule("r", 1.0, route="/v[12]/*"), {"route": "/v3/x"}, False),
        (Rule("r", 1.0, route="*"), {"route": "/a\nb"}, True),
        (Rule("r", 1.0, route="/ASK"), {"route": "/ask"}, False),
        (Rule("r", 1.0, cohort={"tenant": "a"}), {"cohort": {"tenant": "a", "plan": "x"}}, True),
        (Rule("r", 1.0, cohort={"tenant": "a"}), {"cohort": {"tenant": "b"}}, False),
        (Rule("r", 1.0, cohort={"tenant": "a"}), {"cohort": None}, False),
        (Rule("r", 1.0, cohort={"tenant": "a"}), {}, False),
        (Rule("r", 1.0, when="error"), {"finish_reason": "error"}, True),
        (Rule("r", 1.0, when="error"), {"finish_reason": "stop"}, False),
        (Rule("r", 1.0, when="length"), {"finish_reason": "length"}, True),
        (Rule("r", 1.0, when="length"), {}, False),
        (Rule("r", 1.0, when="thumbs_down"), {"feedback": Feedback(thumb="down")}, True),
        (Rule("r", 1.0, when="thumbs_down"), {"feedback": {"thumb": "down"}}, True),
        (Rule("r", 1.0, when="thumbs_down"), {"feedback": {"thumb": "up"}}, False),
        (Rule("r", 1.0, when="thumbs_down"), {"feedback": {"rating": 1}}, False),
        (Rule("r", 1.0, when="thumbs_down"), {"feedback": None}, False),
        (Rule("r", 1.0, route="/ask", when="error"), {"route": "/ask", "finish_reason": "error"}, True),
        (Rule("r", 1.0, route="/ask", when="error"), {"route": "/x", "finish_reason": "error"}, False),
        (Rule("r", 1.0, route="/ask", when="error"), {"finish_reason": "error"}, False),
        (Rule("r", 1.0, route="/ask", when="error"), {"route": "/ask"}, False),
        (Rule("r", 1.0, route="/a", cohort={"t": "1"}), {"route": "/a", "cohort": {"t": "1"}}, True),
        (Rule("r", 1.0, when=lambda fields: len(fields["output"]) > 3), {"output": "long"}, True),
        (Rule("r", 1.0, when=lambda fields: len(fields["output"]) > 3), {"output": "no"}, False),
        (Rule("r", 1.0, when=lambda fields: 1, cohort={"t": "1"}), {"cohort": {"t": "1"}}, True),  # type: ignore[arg-type,return-value]
    ],
)
def test_what_a_rule_matches(rule: Rule, fields: dict[str, Any], matches: bool) -> None:
    sampler = Sampler(0.0, [rule])
    assert (sampler.decide("key", fields) is not None) is matches
    assert sampler.errors == 0


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"feedback": Feedback(thumb="down")}, "thumbs_down"),
        ({"finish_reason": "error"}, "error"),
        ({"finish_reason": "length"}, "length"),
    ],
)
def test_default_rules_always_take(fields: dict[str, Any], rule: str) -> None:
    assert Sampler(0.0, ALWAYS_TAKE).decide("key", fields) == Sampling(probability=1.0, rule=rule)
    assert Sampler(0.0, ALWAYS_TAKE).decide("key", {}) is None


def test_a_rule_whose_function_raises_is_passed_over_and_counted() -> None:
    sampler = Sampler(1.0, [Rule("bad", 0.0, when=lambda fields: fields["missing"]), Rule("next", 1.0, route="/a")])
    assert sampler.decide("key", {"route": "/a"}) == Sampling(probability=1.0, rule="next")
    assert sampler.decide("key", {}) == Sampling(probability=1.0, rule="default")
    assert sampler.errors == 2


def test_strange_fields_do_not_raise() -> None:
    sampler = Sampler(0.0, [*ALWAYS_TAKE, Rule("r", 1.0, route="/a", cohort={"a": "b"})])
    assert sampler.decide("key", {"feedback": 5, "route": "/a", "cohort": 7, "finish_reason": []}) is None
    assert sampler.errors == 2


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), float("inf")])
def test_rates_out_of_range(rate: float) -> None:
    with pytest.raises(SettingsError, match=r"not in \[0, 1\]"):
        Sampler(rate)
    with pytest.raises(SettingsError, match="sampling rule r"):
        Rule("r", rate)


def test_rules_that_make_no_sense() -> None:
    with pytest.raises(SettingsError, match="thumbs_down, error, length"):
        Rule("r", 1.0, when="thumb_down")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="name"):
        Rule("", 1.0)


@pytest.mark.parametrize(("rate", "share"), [(1.0, 0.5), (1.0, 0.03), (0.3, 0.4), (0.7, 1.0)])
def test_the_probability_of_a_thinned_record_is_that_with_which_it_is_included(rate: float, share: float) -> None:
    sampler, ids = Sampler(rate), [f"record {n}" for n in range(20_000)]
    first = {key: decision for key in ids if (decision := sampler.decide(key, {})) is not None}
    taken = {key: thin for key, decision in first.items() if (thin := sampler.thin(key, decision, share)) is not None}
    assert {decision.probability for decision in taken.values()} == {rate * share}
    deviation = (rate * share * (1 - rate * share) / len(ids)) ** 0.5
    assert abs(len(taken) / len(ids) - rate * share) < 3.5 * deviation
    fewer = {key for key, decision in first.items() if sampler.thin(key, decision, share / 2) is not None}
    assert fewer < set(taken), "a lower share takes a subset"
    assert all(Sampler(rate * share).decide(key, {}) is not None for key in taken), "nested with sampling itself"


def test_thinning_leaves_what_a_rule_always_takes() -> None:
    sampler = Sampler(1.0, [Rule("all", 1.0, route="/a"), Rule("half", 0.5, route="/b")])
    for n in range(200):
        decision = sampler.decide(f"{n}", {"route": "/a"})
        assert decision is not None
        assert sampler.thin(f"{n}", decision, 0.01) == decision
    halves = [(f"{n}", sampler.decide(f"{n}", {"route": "/b"})) for n in range(2000)]
    thinned = [sampler.thin(key, decision, 0.5) for key, decision in halves if decision is not None]
    assert {(t.probability, t.rule) for t in thinned if t is not None} == {(0.25, "half")}


def test_the_share_falls_evenly_from_the_threshold_to_a_hundredth() -> None:
    assert [share_at(fill, 0.8) for fill in (0.0, 0.8, 0.9, 1.0)] == pytest.approx([1.0, 1.0, 0.1, 0.01])
    assert share_at(1.0, 1.0) == 1.0
    assert share_at(1.0, 0.0) == pytest.approx(0.01)
