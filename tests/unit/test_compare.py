"""`assay compare`: which scores are compared with which, and what may be said of them. All data are synthetic."""

from __future__ import annotations

import random

import pytest

from assay.compare import LEAST_EFFECTIVE, MOST_GROUPS, compare
from assay.errors import ConfigError
from assay.store import ComparedScore


def rows(group: str | None, n: int, passing: float, *, first: int = 0, **fields: object) -> list[ComparedScore]:
    """`n` scores of which that share passes, evenly spread; equal weights unless they are given."""
    known = {
        "group": group,
        "rubric": "relevance",
        "rubric_version": "1-0a1b2c3d",
        "rubric_hash": "0a" * 32,
        "judge": "lexical",
        "judge_fingerprint": "f" * 64,
        "outcome": "scored",
        "weight": 1.0,
        "cost_usd": None,
        "cost_weight": 1.0,
    }
    passes = [int((i + 1) * passing) > int(i * passing) for i in range(n)]
    return [
        ComparedScore(**{"record_id": f"r{first + i}", "value": 0.9 if p else 0.2, "passed": p} | known | fields)
        for i, p in enumerate(passes)
    ]


def only(report):
    (comparison,) = report.comparisons
    return comparison


def verdicts(report) -> dict[str, tuple[str, str]]:
    return {group.group: (group.conclusion, group.verdict) for group in only(report).groups}


def test_a_clear_drop_is_told_in_points() -> None:
    report = compare(rows("a", 1000, 0.95) + rows("b", 900, 0.85, first=5000), "prompt_version")
    assert verdicts(report) == {"a": ("baseline", "the baseline"), "b": ("worse", "worse by 7 to 13 points")}
    worse = only(report).groups[1]
    assert worse.pass_difference is not None
    assert worse.pass_difference.value == pytest.approx(-0.10, abs=0.002)
    assert worse.score_difference is not None
    assert worse.score_difference.value == pytest.approx(0.7 * worse.pass_difference.value)
    assert worse.cost_usd is worse.cost_difference is None
    assert report.notes == ()


def test_a_rise_too_and_the_baseline_is_mine_to_choose() -> None:
    report = compare(rows("a", 1000, 0.95) + rows("b", 900, 0.85, first=5000), "prompt_version", baseline="b")
    assert only(report).baseline == "b"
    assert verdicts(report)["a"] == ("better", "better by 7 to 13 points")


def test_no_difference_shown_is_not_equality() -> None:
    report = compare(rows("a", 200, 0.9) + rows("b", 200, 0.9, first=5000), "model")
    conclusion, said = verdicts(report)["b"]
    assert conclusion == "same"
    assert said == "no difference shown (6 points worse to 6 points better)"


@pytest.mark.parametrize(("n", "enough"), [(29, False), (31, True)])
def test_few_records_allow_no_conclusion_on_either_side(n: int, enough: bool) -> None:
    for small in ("a", "b"):
        sizes = {"a": 500, "b": 500} | {small: n}
        both = rows("a", sizes["a"], 1.0) + rows("b", sizes["b"], 1.0, first=5000)
        group = only(compare(both, "route", baseline="a")).groups[1]
        assert (group.pass_difference is not None) is enough
        assert (group.conclusion == "too_few") is not enough
        if not enough:
            assert group.verdict == f"too few records to tell (29 effective, {LEAST_EFFECTIVE:.0f} needed)"


def test_it_is_the_effective_number_that_counts() -> None:
    heavy = rows("b", 10, 0.5, first=5000, weight=1000.0) + rows("b", 400, 1.0, first=6000)
    report = compare(rows("a", 500, 0.95) + heavy, "route")
    assert verdicts(report)["b"][0] == "too_few"


def test_weights_decide() -> None:
    # As sampled, b passes as often as a; weighted, its many light failures hardly count.
    light = rows("b", 200, 0.0, first=5000) + rows("b", 1800, 1.0, first=6000, weight=10.0)
    report = compare(rows("a", 2000, 0.9) + light, "route", baseline="a")
    assert verdicts(report)["b"][0] == "better"


def test_one_of_many_is_not_enough() -> None:
    rng = random.Random(5)
    sizes = {f"v{i:02}": 0.9 for i in range(15)}
    data = rows("base", 1500, 0.9)
    for i, name in enumerate(sizes):
        # One is three points off: clear alone, not among fifteen.
        share = 0.872 if i == 7 else 0.9 + rng.uniform(-0.003, 0.003)
        data += rows(name, 1500, share, first=10_000 * (i + 1))
    report = compare(data, "prompt_version")
    conclusion, said = verdicts(report)["v07"]
    assert conclusion == "unclear"
    assert said.startswith("maybe worse by 0.")
    assert report.tests == 15
    assert "15 pass rates are compared at once" in report.notes[0]
    alone = [row for row in data if row.group in ("base", "v07")]
    assert verdicts(compare(alone, "prompt_version"))["v07"][0] == "worse"


def test_instruments_are_kept_apart() -> None:
    data = rows("a", 100, 0.9) + rows("b", 100, 0.9, first=1000)
    other = {"rubric_version": "2-ffffffff", "rubric_hash": "ff" * 32}
    report = compare(data + rows("a", 100, 0.5, **other) + rows("b", 90, 0.5, first=1000, **other), "prompt_version")
    assert [(c.rubric_version, c.judge, [g.n for g in c.groups]) for c in report.comparisons] == [
        ("1-0a1b2c3d", "lexical", [100, 100]),
        ("2-ffffffff", "lexical", [100, 90]),
    ]


def test_two_rubric_versions_on_the_same_records_are_compared_by_record() -> None:
    newer = {"rubric_version": "2-ffffffff", "rubric_hash": "ff" * 32}
    old = rows("1-0a1b2c3d", 400, 0.9)
    same = rows("2-ffffffff", 400, 0.87, **newer)
    apart = rows("2-ffffffff", 400, 0.87, first=1000, **newer)
    paired, unpaired = (only(compare(old + new, "rubric_version")).groups[1].pass_difference for new in (same, apart))
    assert paired is not None
    assert unpaired is not None
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.upper - paired.lower < unpaired.upper - unpaired.lower
    assert only(compare(old + same, "rubric_version")).rubric_version == ""


def test_two_configurations_of_one_judge_are_two_groups() -> None:
    data = rows("lexical", 100, 0.9) + rows("lexical", 80, 0.8, judge_fingerprint="e" * 64)
    assert [g.group for g in only(compare(data, "judge")).groups] == ["lexical@ffffffff", "lexical@eeeeeeee"]
    assert [g.group for g in only(compare(rows("lexical", 100, 0.9), "judge")).groups] == ["lexical"]


def test_what_an_interaction_cost_is_known_whether_it_was_judged_or_not() -> None:
    """Where a cascade judges a tenth of the cheap and all of the dear, those left out are there too."""
    cheap, dear = ({"cost_usd": cost, "cost_weight": 2.0} for cost in (0.01, 0.04))
    drawn = rows("a", 30, 0.9, weight=20.0, **cheap)
    over = rows("a", 270, 0.0, first=1000, weight=2.0, outcome="not_applicable", value=None, passed=None, **cheap)
    (group,) = only(compare(drawn + over + rows("a", 100, 0.5, first=5000, weight=2.0, **dear), "model")).groups
    assert group.cost_usd is not None
    assert group.cost_usd.value == pytest.approx(0.0175)
    assert group.pass_rate.value == pytest.approx((300 * 0.9 + 100 * 0.5) / 400)


def test_cost_is_of_every_interaction_that_has_one() -> None:
    rng = random.Random(6)
    data = []
    for group, cost, first in (("a", 0.002, 0), ("b", 0.003, 5000)):
        scored = rows(group, 300, 0.9, first=first)
        data += [row._replace(cost_usd=cost * rng.uniform(0.5, 1.5)) for row in scored[:200]] + scored[200:]
        data += rows(
            group, 50, 0.0, first=first + 1000, outcome="not_applicable", value=None, passed=None, cost_usd=cost
        )
    base, other = only(compare(data, "model")).groups
    assert base.cost_usd is not None
    assert (base.cost_usd.n, base.n) == (250, 300)
    assert other.cost_difference is not None
    assert other.cost_difference.lower < 0.001 < other.cost_difference.upper
    assert other.cost_p_adjusted is not None
    assert other.cost_p_adjusted < 1e-6
    assert other.cost_verdict.startswith("costs 0.0008")
    assert other.cost_verdict.endswith("USD more an interaction")
    back = only(compare(data, "model", baseline="b")).groups[1]
    assert back.cost_verdict.endswith("USD less an interaction")
    same = [row if row.cost_usd is None else row._replace(cost_usd=1 + int(row.record_id[1:]) % 7) for row in data]
    assert only(compare(same, "model")).groups[1].cost_verdict == "no difference in cost shown"


def test_failures_that_differ_are_pointed_at() -> None:
    failed = rows("b", 60, 0.0, first=9000, outcome="failed", value=None, passed=None)
    report = compare(rows("a", 300, 0.9) + rows("b", 300, 0.9, first=5000) + failed, "route")
    assert only(report).groups[1].failed == 60
    assert any("The judge failed on another share" in note for note in report.notes)


def test_a_record_without_the_key_is_a_group_of_its_own() -> None:
    report = compare(rows("a", 100, 0.9) + rows(None, 50, 0.9, first=1000), "tier")
    assert [group.group for group in only(report).groups] == ["a", "(none)"]


def test_one_group_alone_is_said_to_be() -> None:
    report = compare(rows("a", 100, 0.9), "tier")
    assert report.notes == ("Where there is one group only, there is nothing to compare it with.",)


def test_too_many_groups_are_cut_and_said_to_be() -> None:
    data = [row for i in range(30) for row in rows(f"g{i:02}", 100 - i, 0.9, first=1000 * i)]
    report = compare(data, "route", baseline="g29")
    comparison = only(report)
    assert (len(comparison.groups), comparison.left_out, comparison.groups[0].group) == (MOST_GROUPS, 10, "g29")
    assert any("10 groups with the fewest records are left out" in note for note in report.notes)


@pytest.mark.parametrize(
    ("data", "baseline", "message"),
    [
        ([], None, "nothing was judged in this span"),
        (rows(None, 5, 0.9), None, "no record of this span has a 'tier'"),
        (rows("a", 5, 0.9), "z", "--baseline 'z' is no tier of this span: there are a"),
    ],
)
def test_mistakes_are_told_with_the_mend(data, baseline, message) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(data, "tier", baseline=baseline)


def test_what_only_failed_is_no_comparison() -> None:
    failed = rows("a", 5, 0.0, outcome="failed", value=None, passed=None)
    report = compare(failed, "route")
    assert report.comparisons == ()
    assert report.notes[0].startswith("Nothing was scored in this span")
