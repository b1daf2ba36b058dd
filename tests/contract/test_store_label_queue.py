"""What labels need of the store: records by the names that other systems use, verdicts by record; on both databases."""

from __future__ import annotations

from assay.records import Record
from assay.store import Store
from stores import A_FAILURE, a_record, an_evaluation, commit, with_payloads

HASH, FINGERPRINT = "0a1b2c3d" * 8, "f" * 64


def kept(store: Store, *records: Record) -> None:
    commit(store, *((record, 1.0) for record in records))


def test_records_are_found_by_id_span_or_trace(store: Store) -> None:
    one = a_record("one", trace_id="1" * 32, span_id="a" * 16)
    two = a_record("two", trace_id="2" * 32, span_id="b" * 16)
    three = a_record("three", trace_id="2" * 32)
    kept(store, one, two, three)
    assert store.records_called(["one"]) == [one]
    assert store.records_called(["a" * 16]) == [one]
    assert store.records_called(["2" * 32]) == [three, two]
    assert store.records_called(["one", "1" * 32, "b" * 16]) == [one, two]
    assert store.records_called(["none", "\0", ""]) == []
    assert store.records_called([]) == []


def test_records_whose_text_is_gone_are_not_found(store: Store) -> None:
    kept(store, a_record("one"))
    store.purge(payload_days=0, score_days=90, rollup_days=90, dead_days=90)
    assert store.records_called(["one"]) == []


def test_thousands_of_names_are_one_question(store: Store) -> None:
    records = [a_record(f"r{number:04d}", trace_id=f"{number:032x}") for number in range(1, 1201)]
    kept(store, *records)
    assert store.records_called(record.trace_id or "" for record in records) == records


def test_verdicts_are_those_of_one_judge_under_one_question(store: Store) -> None:
    good, bad, failed = a_record("good"), a_record("bad"), a_record("failed")
    commit(store, (good, 0.9), (bad, 0.1), (failed, A_FAILURE))
    other = an_evaluation(good, 0.1, judge_fingerprint="e" * 64)
    store.commit(with_payloads([good]), [other])
    ids = ["good", "bad", "failed", "none"]
    asked = {"rubric_hash": HASH, "judge_fingerprint": FINGERPRINT}
    assert store.verdicts(ids, **asked) == {"good": (True, 1.0), "bad": (False, 1.0)}
    assert store.verdicts(ids, **asked | {"judge_fingerprint": "e" * 64}) == {"good": (False, 1.0)}
    assert store.verdicts(ids, **asked | {"rubric_hash": "c" * 64}) == {}
    assert store.verdicts([], **asked) == {}
