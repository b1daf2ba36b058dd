"""The weekly report: numbers out of a real store, what fell, where it is worst, and how it is written down."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.records import Score
from assay.report import (
    ENOUGH,
    AnswerCost,
    Change,
    Cluster,
    DefectShare,
    Fall,
    JudgingCost,
    LabelNeed,
    Point,
    Report,
    Series,
    Trend,
    difference,
    find_clusters,
    find_falls,
    read_report,
)
from assay.report_page import render_html
from assay.report_text import as_json, render_markdown, slack_message
from assay.store import Group, LabelRequest, Store
from assay.windows import Estimate, Sums, pass_ratio, wilson
from calibrations import a_calibration
from seeded import COHORT_LABELS, HASH, commit, judged, place, seconds_of, some_records
from stores import A_FAILURE, a_record, an_evaluation

END = datetime(2026, 5, 4, 7, tzinfo=UTC)
HOSTILE = '<img src=x onerror="alert(1)">`|*_~ <!channel> &amp; \u202e\x00 @here' + "x" * 5000
SHOP = Series("shop", "relevance", "1-0a1b2c3d", "lexical")


def estimate(passed: int, n: int) -> Estimate:
    lower, upper = wilson(passed / n, n)
    return Estimate(value=passed / n, lower=lower, upper=upper, n=n, n_effective=float(n))


def point(passed: int, n: int, **fields: Any) -> Point:
    found = estimate(passed, n)
    known = {"corrected": None, "state": "no_calibration", "reason": "no_calibration", "failed": 0}
    return Point(pass_ratio=found, score_mean=found, interactions=float(n), **(known | fields))


def trend(*points: Point | None, series: Series = SHOP) -> Trend:
    return Trend(series=series, points=points, objective=0.9)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path}/scores.db", cohort_labels=COHORT_LABELS) as made:
        made.upgrade()
        yield made


def fill(store: Store, *, week: int, passing: float, n: int = 200, weeks: int = 3, **fields: str) -> None:
    """Records of the middle of one week of `weeks` that end with END."""
    moment = END - timedelta(days=7 * (weeks - week) - 3)
    records = some_records(n, moment, seed=week)
    commit(store, records, judged(records, passing=passing, rubrics=("relevance",), seed=week, **fields))


# -- what is read


def test_each_week_has_the_estimate_of_the_gauges(store: Store) -> None:
    for week in (0, 2):
        fill(store, week=week, passing=0.9)
    place(store)
    report = read_report(store, until=END, weeks=3)
    assert [bound.isoformat() for bound in report.bounds] == [
        f"2026-{day}T07:00:00+00:00" for day in ("04-13", "04-20", "04-27", "05-04")
    ]
    (found,) = report.trends
    assert found.series == SHOP
    assert found.objective == 0.9
    assert found.points[1] is None, "nothing was scored: no number, never 0"
    for week in (0, 2):
        rows = store.rollups(int(report.bounds[week].timestamp()), int(report.bounds[week + 1].timestamp()))
        whole = sum((Sums.from_row(row) for row in rows), Sums())
        got = found.points[week]
        assert got is not None
        assert got.pass_ratio == pass_ratio(whole)
        assert got.interactions == whole.sum_w
        assert got.pass_ratio.n == 200


def test_the_running_hour_is_in_and_what_comes_later_is_not(store: Store) -> None:
    moments = (END - timedelta(minutes=30), END + timedelta(minutes=30), END - timedelta(days=14, seconds=1))
    for moment in moments:
        record = a_record(seconds=seconds_of(moment))
        commit(store, [record], [an_evaluation(record, 0.9)])
    report = read_report(store, until=END - timedelta(minutes=20), weeks=2)
    assert report.bounds[-1] == END
    (found,) = report.trends
    assert [None if p is None else p.pass_ratio.n for p in found.points] == [None, 1]


def test_versions_and_judges_are_series_of_their_own(store: Store) -> None:
    fill(store, week=1, passing=0.95)
    fill(store, week=2, passing=0.3, rubric_version="2-bbbbbbbb", rubric_hash="b" * 64)
    report = read_report(store, until=END, weeks=3)
    assert [(t.series.rubric_version, [p is not None for p in t.points]) for t in report.trends] == [
        ("1-0a1b2c3d", [False, True, False]),
        ("2-bbbbbbbb", [False, False, True]),
    ]
    assert report.falls == (), "two versions are never compared"
    assert any(change.kind == "new series" and "2-bbbbbbbb" in change.text for change in report.changes)


def test_a_calibrated_series_is_corrected_and_another_says_why_not(store: Store) -> None:
    fill(store, week=2, passing=0.9)
    raw = read_report(store, until=END, weeks=3).trends[0].points[2]
    assert raw is not None
    assert (raw.corrected, raw.reason) == (None, "no_calibration")
    store.save_calibration(a_calibration())
    corrected = read_report(store, until=END, weeks=3).trends[0].points[2]
    assert corrected is not None
    assert corrected.corrected is not None
    assert corrected.state in ("ok", "too_wide")
    assert corrected.corrected.upper - corrected.corrected.lower > raw.pass_ratio.upper - raw.pass_ratio.lower


def test_clusters_of_the_last_week_are_found(store: Store) -> None:
    fill(store, week=2, passing=0.95, n=400)
    report = read_report(store, until=END, weeks=2, fields=("tier",))
    assert {(one.field, one.value) for one in report.clusters} == {("route", "checkout"), ("model", "small")}
    assert report.compared == 6, "two routes, two models, two prompt versions"
    worst = report.clusters[0]
    assert worst.inside.upper < worst.outside.lower
    assert worst.gap_lower <= worst.gap <= worst.gap_upper
    assert 0.4 < worst.share < 0.6


def test_what_was_wrong_and_what_it_cost(store: Store) -> None:
    fill(store, week=1, passing=0.6)
    fill(store, week=2, passing=0.6)
    report = read_report(store, until=END, weeks=2)
    assert {one.defect for one in report.defects} == {"incomplete", "retrieval_miss"}
    assert sum(one.share for one in report.defects) == pytest.approx(1)
    assert all(one.before is not None and 0 < one.before < 1 for one in report.defects)
    assert [(one.week, one.evaluations, one.priced) for one in report.judging] == [(0, 200, 200), (1, 200, 200)]
    assert report.judging[0].cost_usd == pytest.approx(200 * 0.0004)
    (answer,) = report.answers
    assert 0.002 < answer.per_interaction < 0.004
    assert answer.per_passed is not None
    assert answer.per_passed > answer.per_interaction


def test_labels_are_wanted_where_there_are_none_or_old_ones(store: Store) -> None:
    fill(store, week=2, passing=0.9)
    (none,) = read_report(store, until=END, weeks=2).needs
    assert (none.level, none.labels, none.age_days) == (None, 0, None)
    assert "nobody has labelled" in none.wanted
    store.request_labels(
        [
            LabelRequest(record_id=record.record_id, rubric="relevance", probability=0.5)
            for record in some_records(3, END - timedelta(days=4), seed=2)
        ]
    )
    long_ago = datetime.now(UTC) - timedelta(days=200)
    store.save_calibration(a_calibration((850, 50, 60, 340), created_at=long_ago, labelled_to=long_ago))
    (old,) = read_report(store, until=END, weeks=2).needs
    assert old.labels == 1300
    assert old.age_days == pytest.approx(200, abs=0.1)
    assert "200 days old" in old.wanted
    assert (old.waiting, old.out) == (3, 0)


def test_what_changed_is_in_order_and_of_its_time(store: Store) -> None:
    fill(store, week=2, passing=0.9)
    place(store)
    place(store, rubric_version="2-bbbbbbbb", rubric_hash="b" * 64)
    long_ago = datetime.now(UTC) - timedelta(days=400)
    store.save_calibration(a_calibration(created_at=long_ago))
    report = read_report(store, until=datetime.now(UTC), weeks=2)
    assert [change.kind for change in report.changes] == ["rubric", "rubric"]
    assert "2-bbbbbbbb took its place" in " ".join(change.text for change in report.changes)
    assert list(report.changes) == sorted(report.changes, key=lambda c: (c.at, c.kind, c.text), reverse=True)


def test_an_empty_store_has_an_empty_report(store: Store) -> None:
    report = read_report(store, until=END, weeks=2)
    assert report.trends == report.falls == report.clusters == report.needs == ()
    for text in (render_html(report), render_markdown(report), json.dumps(slack_message(report))):
        assert "othing was scored" in text or "Nothing." in text
    with pytest.raises(ValueError, match="2 or more"):
        read_report(store, until=END, weeks=1)


def test_the_first_version_of_a_rubric_is_no_change(store: Store) -> None:
    for week in (0, 1, 2):
        fill(store, week=week, passing=0.9)
    assert read_report(store, until=END, weeks=3).changes == ()


def test_failures_are_counted_and_those_that_were_mended_are_not(store: Store) -> None:
    moment = END - timedelta(days=2)
    records = some_records(5, moment)
    commit(store, records, [an_evaluation(record, 0.9 if n > 2 else A_FAILURE) for n, record in enumerate(records)])
    commit(store, records[:1], [an_evaluation(records[0], 0.9)], replay=True)
    last = read_report(store, until=END, weeks=2).trends[0].points[1]
    assert last is not None
    assert (last.failed, last.pass_ratio.n) == (2, 3)


def test_a_defect_that_a_person_set_counts_where_they_put_it(store: Store) -> None:
    moment = END - timedelta(days=2)
    records = some_records(40, moment)
    wrong = Score(value=0.1, passed=False, defect="incomplete")
    commit(store, records, [an_evaluation(record, wrong) for record in records])
    for record in records[:10]:
        store.set_defect(record.record_id, "relevance", "off_topic")
    found = {one.defect: one.n for one in read_report(store, until=END, weeks=2).defects}
    assert found == {"incomplete": 30, "off_topic": 10}


# -- what fell


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((900, 1000), (800, 1000), [True, True]),
        ((90, 100), (84, 100), [False, False]),
        ((900, 1000), (860, 1000), []),  # 4.4 % of itself
        ((900, 1000), (950, 1000), []),
        ((29, 29), (5, 29), []),  # too few
    ],
)
def test_a_fall_is_of_more_than_a_twentieth_and_says_whether_it_is_chance(
    before: tuple[int, int], after: tuple[int, int], expected: list[bool]
) -> None:
    falls = find_falls([trend(point(*before), point(*after))])
    assert [fall.clear for fall in falls] == expected
    assert {fall.measure for fall in falls} == ({"pass rate", "mean score"} if expected else set())


def test_only_the_last_two_weeks_are_compared() -> None:
    assert find_falls([trend(point(900, 1000), point(100, 1000), point(100, 1000))]) == ()
    assert find_falls([trend(point(900, 1000), None, point(100, 1000))]) == ()
    assert find_falls([trend(point(900, 1000), point(100, 1000), None)]) == ()


def test_clear_falls_come_first() -> None:
    maybe = trend(point(90, 100), point(84, 100), series=SHOP._replace(app="a"))
    clear = trend(point(900, 1000), point(800, 1000), series=SHOP._replace(app="b"))
    assert [fall.series.app for fall in find_falls([maybe, clear])] == ["b", "b", "a", "a"]


def test_the_interval_of_a_difference_is_newcombes() -> None:
    # His table II, method 10: (a) 56/70 less 48/80, (b) 9/10 less 3/10
    assert difference(estimate(56, 70), estimate(48, 80)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference(estimate(9, 10), estimate(3, 10)) == pytest.approx((0.1705, 0.8090), abs=5e-5)


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 50), st.integers(1, 50))
def test_a_difference_lies_in_its_interval_and_turns_round(a: int, n: int, b: int, m: int) -> None:
    one, two = estimate(min(a, n), n), estimate(min(b, m), m)
    lower, upper = difference(one, two)
    assert -1 <= lower <= one.value - two.value <= upper <= 1
    assert difference(two, one) == pytest.approx((-upper, -lower))


# -- clusters


def group(field: str, value: str, passed: int, n: int, **fields: str) -> Group:
    sums = Sums(
        n=n,
        sum_w=n,
        sum_w2=n,
        sum_wy=passed,
        sum_w2y=passed,
        sum_w2y2=passed,
        passes=passed,
        sum_wp=passed,
        sum_w2p=passed,
    )
    known = {"app": "shop", "rubric": "relevance", "rubric_version": "1-0a1b2c3d", "judge": "lexical"}
    known |= {"rubric_hash": HASH, "judge_fingerprint": "f" * 64}
    return Group(**(known | fields), field=field, value=value, sums=sums)


def test_a_cluster_is_clearly_below_its_rest_and_both_have_enough() -> None:
    whole = group("", "", 1000, 1400)
    groups = [
        whole,
        group("route", "bad", 100, 300),
        group("route", "alike", 70, 100),
        group("route", "better", 95, 100),
        group("route", "few", 0, ENOUGH - 1),
        group("route", "nearly all", 990, 1400 - ENOUGH + 1),
    ]
    found, compared = find_clusters(groups)
    assert [cluster.value for cluster in found] == ["bad"]
    assert compared == 3
    (bad,) = found
    assert bad.outside.value == pytest.approx(900 / 1100)
    assert bad.outside.n == 1100
    assert bad.gap == pytest.approx(900 / 1100 - 1 / 3)


def test_worst_is_where_most_is_surely_lost() -> None:
    groups = [group("", "", 800, 1000), group("route", "large", 250, 400), group("model", "small", 10, 50)]
    found, _ = find_clusters(groups)
    assert [cluster.value for cluster in found] == ["large", "small"], "a small cluster is not worse for being bad"


def test_groups_are_held_against_their_own_app_and_instrument() -> None:
    groups = [group("", "", 90, 100, app="other"), group("route", "bad", 10, 60), group("", "", 70, 160)]
    (found,), _ = find_clusters(groups)
    assert found.outside.n == 100
    assert found.outside.value == pytest.approx(0.6)


@settings(max_examples=25)
@given(st.integers(0, 2**32))
def test_chance_alone_brings_few_clusters(seed: int) -> None:
    chance = random.Random(seed)
    parts = [(sum(chance.random() < 0.8 for _ in range(200)), 200) for _ in range(20)]
    groups = [group("", "", sum(p for p, _ in parts), 4000)]
    groups += [group("route", str(index), p, n) for index, (p, n) in enumerate(parts)]
    found, compared = find_clusters(groups)
    assert compared == 20
    assert len(found) <= 5, "about 1 in 40 of them is to be expected"


# -- how it is written


def a_report(name: str = "shop", **fields: Any) -> Report:
    """Everything there can be, under a name."""
    series = Series(name, name, name, name)
    bounds = tuple(END - timedelta(days=7 * back) for back in (2, 1, 0))
    corrected = estimate(60, 100)
    trends = (
        trend(point(90, 100), point(60, 100, corrected=corrected, state="ok", reason=""), series=series),
        trend(None, point(0, 4), series=series._replace(rubric_version="2")),
    )
    inside, outside = estimate(20, 60), estimate(900, 1000)
    cluster = Cluster(
        series=series,
        field="route",
        value=name,
        inside=inside,
        outside=outside,
        share=0.1,
        gap=0.5,
        gap_lower=0.4,
        gap_upper=0.6,
    )
    known: dict[str, Any] = {
        "made_at": END,
        "bounds": bounds,
        "trends": trends,
        "falls": find_falls(trends),
        "clusters": (cluster,),
        "compared": 40,
        "defects": (DefectShare(series=series, defect="incomplete", n=30, share=0.7, before=0.5),),
        "judging": tuple(
            JudgingCost(week=week, app=name, judge=name, evaluations=10, priced=5, cost_usd=0.5, tokens=100)
            for week in (0, 1)
        ),
        "answers": (AnswerCost(app=name, rubric=name, per_interaction=0.01, per_passed=None),),
        "needs": (
            LabelNeed(
                rubric=name,
                rubric_version=name,
                judge=name,
                level=None,
                labels=0,
                age_days=None,
                wanted="label",
                waiting=1,
                out=2,
            ),
        ),
        "changes": (Change(at=END - timedelta(days=1), kind="rubric", text=f"{name} is active"),),
    }
    return Report(**(known | fields))


class _Page(HTMLParser):
    """What a browser would make of it: elements, and attributes that could run or load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.unsafe: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.unsafe += [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        if tag not in ("meta", "br", "col", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_loads_and_runs_nothing() -> None:
    page = _Page(render_html(a_report()))
    assert page.open == []
    assert page.unsafe == []
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert "default-src &#x27;none&#x27;" in render_html(a_report())


def test_hostile_names_are_text_on_the_page() -> None:
    text = render_html(a_report(HOSTILE))
    page = _Page(text)
    assert page.open == []
    assert page.unsafe == []
    assert set(page.tags) == set(_Page(render_html(a_report())).tags)
    assert "&lt;img src=x" in text
    assert "\u202e" not in text
    assert "\x00" not in text
    assert "x" * 500 not in text, "names are cut"


def test_the_same_report_gives_the_same_text() -> None:
    assert render_html(a_report()) == render_html(a_report())
    ids = re.findall(r'\bid="([^"]*)"', render_html(a_report()))
    assert len(set(ids)) == len(ids)


def test_the_page_says_what_fell_first() -> None:
    fell = render_html(a_report())
    assert fell.index("Fell this week") < fell.index("The last week")
    assert "90% → 60%" in fell
    calm = render_html(a_report(falls=()))
    assert "No weekly average fell" in calm
    chance = Fall(series=SHOP, measure="pass rate", before=estimate(90, 100), after=estimate(84, 100), clear=False)
    assert "within what chance does" in render_html(a_report(falls=(chance,)))
    assert "Fell this week" not in render_html(a_report(falls=(chance,)))


def test_page_and_text_both_say_where_too_few_are_wrong_to_be_told_apart() -> None:
    assert "No rubric has 30 answers that did not pass" in render_html(a_report(defects=()))
    assert "No rubric has 30 answers that did not pass" in render_markdown(a_report(defects=()))
    assert "No rubric has" not in render_html(a_report())


def test_few_records_are_marked_and_not_called_below_the_objective() -> None:
    text = render_html(a_report(falls=()))
    row = next(row for row in re.findall(r"<tr>.*?</tr>", text) if "too few" in row)
    assert 'class="fell"' not in row
    assert 'class="fell"' in text, "60 of 100 is below 90 %"


def test_markdown_tables_hold_and_names_cannot_break_them() -> None:
    for report in (a_report(), a_report(HOSTILE)):
        text = render_markdown(report)
        tables = [block for block in text.split("\n\n") if block.startswith("|")]
        assert len(tables) == 6
        for table in tables:
            rows = table.splitlines()
            assert len({row.count("|") for row in rows}) == 1, table
        for line in text.splitlines():
            assert line.count("`") % 2 == 0
        # Outside of code there is no markup of theirs.
        bare = re.sub(r"`[^`]*`", "", text)
        assert "<" not in bare
        assert "@here" not in bare
    assert "**fell**" in render_markdown(a_report())


def test_a_message_for_slack_calls_nobody_and_keeps_its_limits() -> None:
    falls = tuple(
        find_falls([trend(point(90, 100), point(60, 100), series=Series(HOSTILE, str(n), "", ""))])[0]
        for n in range(60)
    )
    many = tuple(Change(at=END, kind="rubric", text=HOSTILE) for _ in range(60))
    message = slack_message(a_report(HOSTILE, falls=falls, changes=many))
    assert json.loads(json.dumps(message)) == message
    assert len(message["blocks"]) <= 50
    for block in message["blocks"][1:]:
        text = block["text"]["text"]
        assert 0 < len(text) <= 3000
        assert text.count("`") % 2 == 0
        assert not re.search(r"<[!@#h]", text), "no call, no link"
        bare = re.sub(r"`[^`]*`", "", text)
        assert "onerror" not in bare
    assert len(message["blocks"][0]["text"]["text"]) <= 150


def test_a_message_says_in_its_first_line_whether_something_fell() -> None:
    assert "rotating_light" in slack_message(a_report())["text"]
    assert "2 weekly averages fell" in slack_message(a_report())["text"]
    assert "no weekly average fell clearly" in slack_message(a_report(falls=()))["text"]


def test_the_json_is_plain_and_whole() -> None:
    plain = as_json(a_report())
    assert json.loads(json.dumps(plain)) == plain
    assert plain["trends"][0]["series"] == {"app": "shop", "rubric": "shop", "rubric_version": "shop", "judge": "shop"}
    assert plain["trends"][1]["points"][0] is None
    assert plain["bounds"][-1] == END.isoformat()
    assert plain["falls"][0]["clear"] is True


def test_a_score_that_is_perfect_draws_too() -> None:
    full = trend(point(100, 100), point(100, 100))
    empty = trend(point(0, 100), point(0, 100))
    for one in (full, empty, replace(full, objective=None)):
        assert "<svg" in render_html(a_report(trends=(one,), falls=()))
