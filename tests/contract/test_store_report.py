"""What the weekly report reads and keeps in the store: on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from assay.records import NotApplicable, Score, Usage
from assay.store import Store
from assay.windows import Sums
from stores import A_FAILURE, HOUR_START, a_record, an_evaluation, commit, with_payloads

END = HOUR_START + timedelta(days=7)
DUE, NOW = 1_000_000, 1_000_100.0


def test_groups_are_added_up_by_column_and_by_cohort_key(store: Store) -> None:
    values = [
        (0.9, 1.0, "search", "gold"),
        (0.2, 0.5, "search", "free"),
        (0.7, 0.1, "pay", "gold"),
        (0.1, 1.0, None, None),
    ]
    pairs = [
        (a_record(seconds=at, probability=p, route=route, cohort={"tier": tier} if tier else {}), value)
        for at, (value, p, route, tier) in enumerate(values)
    ]
    commit(store, *pairs)
    groups = {(group.field, group.value): group for group in store.groups(HOUR_START, END, ["route", "tier"], least=1)}
    assert set(groups) == {("", ""), ("route", "search"), ("route", "pay"), ("tier", "gold"), ("tier", "free")}

    def sums(*picked: int) -> Sums:
        found = Sums()
        for index in picked:
            value, p, *_ = values[index]
            found += Sums.of(weight=1 / p, value=value, passed=value >= 0.5)
        return found

    for key, picked in {
        ("", ""): (0, 1, 2, 3),
        ("route", "search"): (0, 1),
        ("route", "pay"): (2,),
        ("tier", "gold"): (0, 2),
        ("tier", "free"): (1,),
    }.items():
        got, wanted = groups[key].sums, sums(*picked)
        assert (got.n, got.passes) == (wanted.n, wanted.passes), key
        assert isinstance(got.n, int)
        assert isinstance(got.passes, int)
        for name in ("sum_w", "sum_w2", "sum_wy", "sum_w2y", "sum_w2y2", "sum_wp", "sum_w2p"):
            assert getattr(got, name) == pytest.approx(getattr(wanted, name)), (key, name)


def test_groups_are_of_their_time_their_instrument_and_scores_alone(store: Store) -> None:
    inside, before, after = (a_record(seconds=at) for at in (0, -1, 7 * 86_400))
    commit(store, (inside, 0.9), (before, 0.9), (after, 0.9))
    commit(store, (a_record(seconds=1), A_FAILURE), (a_record(seconds=1), NotApplicable(reason="missing_contexts")))
    other = a_record(seconds=2, app="desk")
    store.commit(with_payloads([other]), [an_evaluation(other, 0.1, judge_fingerprint="e" * 64)])
    groups = store.groups(HOUR_START, END, [], least=1)
    assert [(group.app, group.judge_fingerprint, group.sums.n) for group in groups] == [
        ("desk", "e" * 64, 1),
        ("shop", "f" * 64, 1),
    ]


def test_small_groups_are_left_out(store: Store) -> None:
    commit(store, *((a_record(seconds=n, route="many" if n else "one"), 0.9) for n in range(4)))
    assert {group.value for group in store.groups(HOUR_START, END, ["route"], least=3)} == {"", "many"}


@pytest.mark.parametrize("field", ['a"b', "a'b", "a.b", "a$b", "ünï", "%(x)s"])
def test_a_field_is_data_in_the_query(store: Store, field: str) -> None:
    commit(store, (a_record(seconds=1, cohort={field: "here"}), 0.9), (a_record(seconds=2, cohort={"b": "there"}), 0.9))
    found = [group.value for group in store.groups(HOUR_START, END, [field], least=1) if group.field]
    assert found in (["here"], []), "SQLite cannot name every key; never another one"
    if '"' not in field:
        assert found == ["here"]


def test_spending_is_by_app_and_judge_and_counts_what_is_priced(store: Store) -> None:
    records = [a_record(seconds=n) for n in range(3)]
    usages = [Usage(prompt_tokens=100, completion_tokens=10, cost_usd=0.25), Usage(prompt_tokens=50), Usage()]
    store.commit(
        with_payloads(records),
        [
            an_evaluation(record, Score(value=1.0, passed=True, usage=usage))
            for record, usage in zip(records, usages, strict=True)
        ],
    )
    # Nobody was asked for the one; the other is what a judge said of it.
    asked = NotApplicable(reason="no_claims", usage=Usage(prompt_tokens=7, completion_tokens=1))
    commit(store, (a_record(seconds=8), NotApplicable(reason="passed_over_by_cascade")), (a_record(seconds=9), asked))
    (spent,) = store.spending(HOUR_START, END)
    assert (spent.app, spent.judge, spent.evaluations, spent.priced) == ("shop", "lexical", 4, 1)
    assert spent.cost_usd == pytest.approx(0.25)
    assert (spent.prompt_tokens, spent.completion_tokens) == (157, 11)
    assert isinstance(spent.prompt_tokens, int)
    assert store.spending(END, END + timedelta(days=7)) == []


# -- who sends the report


def test_one_of_many_claims_a_report(open_store: Callable[..., Store]) -> None:
    stores = [open_store() for _ in range(6)]
    claimed: list[bool] = []
    together = threading.Barrier(len(stores))

    def claim(store: Store) -> None:
        together.wait()
        claimed.append(store.claim_report(DUE, now=NOW))

    threads = [threading.Thread(target=claim, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == [False] * 5 + [True]


def test_a_report_that_was_sent_is_not_claimed_again_and_the_next_one_is(store: Store) -> None:
    assert store.claim_report(DUE, now=NOW)
    store.settle_report(DUE)
    assert not store.claim_report(DUE, now=NOW + 10_000)
    assert store.claim_report(DUE + 604_800, now=NOW + 604_800)


def test_the_claim_of_a_worker_that_died_or_failed_ends_by_itself(store: Store) -> None:
    assert store.claim_report(DUE, now=NOW, lease_seconds=60)
    assert not store.claim_report(DUE, now=NOW + 59, lease_seconds=60)
    assert store.claim_report(DUE, now=NOW + 61, lease_seconds=60)


def test_the_notes_of_it_are_no_counter_of_a_scrape(store: Store) -> None:
    before = store.counts()
    store.claim_report(DUE, now=NOW)
    store.settle_report(DUE)
    assert store.counts() == before
