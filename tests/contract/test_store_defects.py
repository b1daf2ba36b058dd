"""What the store keeps of defects: each counted once, a person's class wins, and no count ever falls.

And what `assay compare` reads.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from assay.defects import ALL
from assay.errors import ConfigError
from assay.records import Score, Usage
from assay.store import DefectCount, Store
from assay.store import _tables as tables
from stores import A_FAILURE, HOUR_START, NOT_APPLICABLE, a_record, an_evaluation, commit, connected, with_payloads


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store(cohort_labels=["tier"])


def bad(defect: str | None, value: float = 0.2) -> Score:
    return Score(value=value, passed=False, defect=defect, explanation="because")  # type: ignore[arg-type]


GOOD = Score(value=0.9, passed=True)


def counts(store: Store) -> dict[str, tuple[int, float, int, float]]:
    found: dict[str, tuple[int, float, int, float]] = {}
    for count in store.defect_totals():
        assert count.defect not in found
        found[count.defect] = (count.n, count.sum_w, count.moved, count.moved_sum_w)
    return found


def in_force(store: Store) -> Counter[str]:
    """Plainly, from the rows."""
    with connected(store) as connection:
        rows = connection.execute(sa.select(tables.evaluations)).all()
    return Counter(row.person_defect or row.defect for row in rows if row.person_defect or row.defect)


# -- counting


def test_each_is_counted_once_with_its_weight_whatever_comes_twice(store: Store) -> None:
    one, two = a_record("one", probability=0.1), a_record("two", probability=0.5)
    for _ in range(3):
        commit(store, (one, bad("selection")), (two, bad("off_topic")), (a_record("three"), GOOD))
    assert counts(store) == {"selection": (1, 10.0, 0, 0.0), "off_topic": (1, 2.0, 0, 0.0)}


def test_the_first_outcome_stands_and_its_class_with_it(store: Store) -> None:
    commit(store, (a_record("one"), bad("selection")))
    commit(store, (a_record("one"), bad("off_topic")))
    assert counts(store) == {"selection": (1, 1.0, 0, 0.0)}
    assert in_force(store) == {"selection": 1}


def test_a_replay_counts_when_the_score_comes_and_with_the_weight_of_the_failure(store: Store) -> None:
    commit(store, (a_record("one", probability=0.25), A_FAILURE))
    assert counts(store) == {}
    for _ in range(2):
        commit(store, (a_record("one", probability=0.5), bad("truncated")), replay=True)
    assert counts(store) == {"truncated": (1, 4.0, 0, 0.0)}
    (finding,) = store.defects(HOUR_START)
    assert (finding.defect, finding.judge_defect, finding.by_person) == ("truncated", "truncated", False)


def test_a_replay_that_passes_has_none(store: Store) -> None:
    commit(store, (a_record("one"), A_FAILURE))
    commit(store, (a_record("one"), GOOD), replay=True)
    assert counts(store) == {}


@pytest.mark.parametrize("outcome", [GOOD, A_FAILURE, NOT_APPLICABLE, bad(None), bad("made up")])
def test_what_has_no_class_is_not_counted(store: Store, outcome: object) -> None:
    commit(store, (a_record("one"), outcome))
    assert counts(store) == {}
    assert store.defects(HOUR_START) == []


def test_a_class_on_what_passed_is_dropped(store: Store) -> None:
    commit(store, (a_record("one"), Score(value=0.9, passed=True, defect="selection")))
    assert in_force(store) == {}


def test_label_sets_and_instruments_are_apart(store: Store) -> None:
    gold, free = a_record("one", cohort={"tier": "gold"}), a_record("two", cohort={"tier": "free"}, app="other")
    commit(store, (gold, bad("selection")), (free, bad("selection")))
    commit(store, (gold, bad("selection")), rubric="safety")
    found = [(c.app, dict(c.cohort), c.rubric, c.rubric_version, c.judge, c.n) for c in store.defect_totals()]
    assert found == [
        ("other", {"tier": "free"}, "relevance", "1-0a1b2c3d", "lexical", 1),
        ("shop", {"tier": "gold"}, "relevance", "1-0a1b2c3d", "lexical", 1),
        ("shop", {"tier": "gold"}, "safety", "1-0a1b2c3d", "lexical", 1),
    ]


def test_two_judges_of_one_name_are_shown_as_one(store: Store) -> None:
    record = a_record("one")
    for fingerprint in ("f" * 64, "e" * 64):
        store.commit(with_payloads([record]), [an_evaluation(record, bad("selection"), judge_fingerprint=fingerprint)])
    assert counts(store) == {"selection": (2, 2.0, 0, 0.0)}


# -- what a person says


def test_a_persons_class_wins_is_marked_and_takes_nothing_away(store: Store) -> None:
    commit(store, (a_record("one", probability=0.1), bad("selection")), (a_record("two"), bad("selection")))
    assert store.set_defect("one", "relevance", "retrieval_miss") == 1
    assert counts(store) == {"selection": (2, 11.0, 1, 10.0), "retrieval_miss": (1, 10.0, 0, 0.0)}
    by_id = {finding.record_id: finding for finding in store.defects(HOUR_START)}
    assert (by_id["one"].defect, by_id["one"].judge_defect, by_id["one"].by_person) == (
        "retrieval_miss",
        "selection",
        True,
    )
    assert by_id["two"].by_person is False
    (worst,) = store.worst(HOUR_START, limit=1)
    assert worst.evaluation.outcome.defect in ("selection", "retrieval_miss")


def test_said_twice_it_counts_once(store: Store) -> None:
    commit(store, (a_record("one"), bad("selection")))
    assert store.set_defect("one", "relevance", "unsafe") == 1
    assert store.set_defect("one", "relevance", "unsafe") == 0
    assert counts(store) == {"selection": (1, 1.0, 1, 1.0), "unsafe": (1, 1.0, 0, 0.0)}


def test_back_and_forth_every_count_grows_and_the_rest_is_right(store: Store) -> None:
    commit(store, (a_record("one"), bad("selection")))
    for defect in ("unsafe", "selection", "unsafe"):
        store.set_defect("one", "relevance", defect)
    assert counts(store) == {"selection": (2, 2.0, 2, 2.0), "unsafe": (2, 2.0, 1, 1.0)}
    assert in_force(store) == {"unsafe": 1}


def test_the_judges_own_class_confirmed_is_marked_and_moves_nothing(store: Store) -> None:
    commit(store, (a_record("one"), bad("selection")))
    assert store.set_defect("one", "relevance", "selection") == 1
    assert counts(store) == {"selection": (1, 1.0, 0, 0.0)}
    (finding,) = store.defects(HOUR_START)
    assert finding.by_person


def test_where_no_class_was_asked_a_person_can_give_one(store: Store) -> None:
    commit(store, (a_record("one"), bad(None)))
    store.set_defect("one", "relevance", "unsafe")
    assert counts(store) == {"unsafe": (1, 1.0, 0, 0.0)}


def test_it_holds_for_every_score_of_the_record_under_the_rubric_and_for_those_to_come(store: Store) -> None:
    record = a_record("one")

    def judged(fingerprint: str, outcome: object, rubric: str = "relevance", *, replay: bool = False) -> None:
        evaluation = an_evaluation(record, outcome, rubric, judge_fingerprint=fingerprint * 64)
        store.commit(with_payloads([record]), [evaluation], replay=replay)

    judged("a", bad("selection"))
    judged("b", bad("off_topic"))
    judged("c", A_FAILURE)
    judged("d", GOOD)
    judged("a", bad("selection"), "safety")
    assert store.set_defect("one", "relevance", "truncated") == 2
    judged("e", bad("incomplete"))
    judged("c", bad("incomplete"), replay=True)
    judged("f", GOOD)
    assert in_force(store) == {"truncated": 4, "selection": 1}
    own = Counter(finding.judge_defect for finding in store.defects(HOUR_START))
    assert own == {"selection": 2, "off_topic": 1, "incomplete": 2}
    total = {defect: n - moved for defect, (n, _, moved, _) in counts_by_rubric(store)["relevance"].items()}
    assert total == {"truncated": 4, "selection": 0, "off_topic": 0}


def counts_by_rubric(store: Store) -> dict[str, dict[str, tuple[int, float, int, float]]]:
    found: dict[str, dict[str, tuple[int, float, int, float]]] = defaultdict(dict)
    for c in store.defect_totals():
        found[c.rubric][c.defect] = (c.n, c.sum_w, c.moved, c.moved_sum_w)
    return found


def test_a_record_is_found_by_its_trace_and_span_too(store: Store) -> None:
    commit(store, (a_record("one", trace_id="1" * 32, span_id="a" * 16), bad("selection")))
    assert store.set_defect("1" * 32, "relevance", "unsafe") == 1
    assert store.set_defect("a" * 16, "relevance", "selection") == 1


@pytest.mark.parametrize(
    ("name", "rubric", "defect", "message"),
    [
        ("none", "relevance", "unsafe", "no record is called 'none'"),
        ("one", "relevance", "made up", "no defect is called 'made up': there are retrieval_miss"),
        ("one", "relevance", "unclassified", "no defect is called"),
        ("one", "fluency", "unsafe", "has no score under 'fluency'"),
        ("good", "relevance", "unsafe", r"passed relevance, so it has no defect.*label it"),
        ("failed", "relevance", "unsafe", "has no score under"),
        ("7" * 32, "relevance", "unsafe", "more than one record"),
    ],
)
def test_mistakes_are_told_and_change_nothing(store: Store, name: str, rubric: str, defect: str, message: str) -> None:
    one, failed = a_record("one", trace_id="7" * 32), a_record("failed", trace_id="7" * 32)
    commit(store, (one, bad("selection")), (a_record("good"), GOOD), (failed, A_FAILURE))
    before = counts(store)
    with pytest.raises(ConfigError, match=message):
        store.set_defect(name, rubric, defect)
    assert counts(store) == before


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_in_whatever_order(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    last: dict[str, tuple[int, float, int, float]] = {}
    for _ in range(40):
        name = f"r{rng.randrange(5)}"
        record = a_record(name, probability=rng.choice([1.0, 0.5, 0.25]))
        if rng.random() < 0.4:
            try:
                store.set_defect(name, "relevance", rng.choice(ALL[:4]))
            except ConfigError:
                continue
        else:
            outcome = rng.choice([GOOD, A_FAILURE, NOT_APPLICABLE, bad(rng.choice(ALL[:4])), bad(None)])
            fingerprint = rng.choice("abc") * 64
            evaluation = an_evaluation(record, outcome, judge_fingerprint=fingerprint)
            store.commit(with_payloads([record]), [evaluation], replay=rng.random() < 0.5)
        now = counts(store)
        for defect, before in last.items():
            assert all(new >= old for new, old in zip(now[defect], before, strict=True)), "a counter fell"
        assert {d: n - moved for d, (n, _, moved, _) in now.items() if n - moved} == in_force(store)
        last = now


# -- reading


def test_the_mix_is_of_the_interactions_time_and_the_class_now(store: Store) -> None:
    early, late = a_record("early", probability=0.5), a_record("late", seconds=3600)
    commit(store, (early, bad("selection")), (late, bad("selection")), (a_record("good"), GOOD))
    store.set_defect("early", "relevance", "unsafe")
    hour = timedelta(hours=1)
    mix = store.defect_mix(HOUR_START, HOUR_START + hour)
    assert mix == [
        DefectCount(
            app="shop",
            cohort={"tier": ""},
            rubric="relevance",
            rubric_version="1-0a1b2c3d",
            judge="lexical",
            defect="unsafe",
            n=1,
            sum_w=2.0,
        )
    ]
    assert [c.defect for c in store.defect_mix(HOUR_START + hour, HOUR_START + 2 * hour)] == ["selection"]
    assert store.defect_mix(HOUR_START - hour, HOUR_START) == []


def test_the_list_is_newest_first_and_can_be_narrowed(store: Store, open_store: Callable[..., Store]) -> None:
    records = [
        a_record(f"r{i}", seconds=i, app="shop" if i % 2 else "blog", trace_id=f"{i + 1:032x}") for i in range(4)
    ]
    commit(store, *((r, bad("selection" if i < 3 else "unsafe")) for i, r in enumerate(records)))
    commit(store, (records[0], bad("unsafe")), rubric="safety")
    names = [(f.record_id, f.rubric) for f in store.defects(HOUR_START)]
    assert [name for name, _ in names] == ["r3", "r2", "r1", "r0", "r0"]
    assert [f.record_id for f in open_store(apps=["shop"]).defects(HOUR_START)] == ["r3", "r1"]
    assert [f.record_id for f in store.defects(HOUR_START, rubric="safety")] == ["r0"]
    assert [f.record_id for f in store.defects(HOUR_START, defect="unsafe")] == ["r3", "r0"]
    assert [f.record_id for f in store.defects(HOUR_START, limit=1)] == ["r3"]
    assert store.defects(HOUR_START + timedelta(seconds=10)) == []
    first = store.defects(HOUR_START, limit=1)[0]
    assert (first.trace_id, first.value, first.explanation, first.judge) == (f"{4:032x}", 0.2, "because", "lexical")


def test_a_purge_of_old_totals_takes_their_counts(store: Store) -> None:
    commit(store, (a_record("one"), bad("selection")))
    store.purge(payload_days=90, score_days=90, rollup_days=90, dead_days=90)
    assert counts(store) == {"selection": (1, 1.0, 0, 0.0)}
    store.purge(payload_days=0, score_days=0, rollup_days=0, dead_days=0)
    assert counts(store) == {}


# -- what is compared


@pytest.mark.parametrize(
    ("by", "group"),
    [
        ("prompt_version", "v2"),
        ("model", "gpt"),
        ("route", "chat"),
        ("rubric_version", "1-0a1b2c3d"),
        ("judge", "lexical"),
        ("tier", "gold"),
        ("language", "de"),
        ("no such key", None),
    ],
)
def test_every_evaluation_comes_with_its_group(store: Store, by: str, group: str | None) -> None:
    record = a_record(
        "one",
        probability=0.25,
        prompt_version="v2",
        model="gpt",
        route="chat",
        cohort={"tier": "gold", "language": "de"},
        usage=Usage(cost_usd=0.002),
    )
    commit(store, (record, bad("selection")))
    (row,) = store.compared_scores(by, HOUR_START, HOUR_START + timedelta(seconds=1))
    assert (row.record_id, row.group, row.outcome, row.weight) == ("one", group, "scored", 4.0)
    assert (row.value, row.passed, row.cost_usd, row.cost_weight) == (0.2, False, 0.002, 4.0)
    assert (row.rubric, row.rubric_version, row.judge) == ("relevance", "1-0a1b2c3d", "lexical")


def test_what_is_compared_can_be_narrowed(store: Store, open_store: Callable[..., Store]) -> None:
    shop, blog = a_record("shop"), a_record("blog", app="blog", seconds=60)
    commit(store, (shop, 0.9), (blog, A_FAILURE))
    commit(store, (shop, NOT_APPLICABLE), rubric="safety")

    def names(**narrowed: str) -> list[tuple[str, str]]:
        end = HOUR_START + timedelta(minutes=1, seconds=1)
        return sorted((r.record_id, r.outcome) for r in store.compared_scores("route", HOUR_START, end, **narrowed))

    assert names() == [("blog", "failed"), ("shop", "not_applicable"), ("shop", "scored")]
    assert names(rubric="safety") == [("shop", "not_applicable")]
    store = open_store(apps=["shop"])
    assert names(rubric="relevance") == [("shop", "scored")]
    assert list(store.compared_scores("route", HOUR_START, HOUR_START)) == []
