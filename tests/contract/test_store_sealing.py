"""Texts encrypted at rest: every test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from assay.errors import SettingsError, StoreError
from assay.records import Failure, Score, now
from assay.store import DeadLetter, Store, Subject, new_key
from stores import a_record, an_evaluation, connected, with_payloads

SECRET = "plantedplaintext"
Open = Callable[..., Store]


def fill(store: Store, n: int = 1) -> list[str]:
    records = [dataclasses.replace(a_record(), input=f"{SECRET} in", output=f"{SECRET} out") for _ in range(n)]
    score = Score(value=0.1, passed=False, explanation=f"{SECRET} why", details={"quote": f"{SECRET} quote"})
    failure = Failure(kind="timeout", message=f"{SECRET} said")
    evaluations = [an_evaluation(record, score) for record in records]
    evaluations += [an_evaluation(record, failure, "safety") for record in records]
    letters = [
        DeadLetter(
            dead_id=record.record_id, reason="invalid", message=f"{SECRET} bad", payload=SECRET.encode() + b"\xff"
        )
        for record in records
    ]
    store.commit(with_payloads(records), evaluations, letters)
    return [record.record_id for record in records]


def read_back(store: Store, ids: list[str]) -> None:
    texts = store.payloads(ids)
    assert set(texts) == set(ids)
    assert all(f"{SECRET} in" in payload for payload in texts.values())
    for key in ids:
        letter = store.dead_letter(key)
        assert (letter.payload, letter.message) == (SECRET.encode() + b"\xff", f"{SECRET} bad")
    found = store.worst(now() - timedelta(days=36500), limit=len(ids) + 1)
    assert {f.record_id for f in found} >= set(ids)
    for finding in found:
        assert isinstance(finding.evaluation.outcome, Score)
        assert finding.evaluation.outcome.explanation == f"{SECRET} why"
        assert finding.evaluation.outcome.details == {"quote": f"{SECRET} quote"}
        assert finding.payload is not None


def bytes_at_rest(store: Store, url: str) -> bytes:
    """Every column of every table, and on SQLite the files too."""
    with connected(store) as connection:
        names = sa.inspect(connection).get_table_names()
        rows = [tuple(row) for name in names for row in connection.exec_driver_sql(f'SELECT * FROM "{name}"')]
    found = b"".join(bytes(v) if isinstance(v, bytes | memoryview) else str(v).encode() for row in rows for v in row)
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        found += b"".join(file.read_bytes() for file in path.parent.glob(path.name + "*"))
    return found


def test_nothing_of_a_text_lies_in_the_database_in_plain(open_store: Open, url: str) -> None:
    store = open_store(payload_keys=[new_key()])
    ids = fill(store, 3)
    assert SECRET.encode() not in bytes_at_rest(store, url)
    read_back(store, ids)


def test_without_keys_they_do(open_store: Open, url: str) -> None:
    store = open_store()
    read_back(store, fill(store))
    assert SECRET.encode() in bytes_at_rest(store, url)


def test_rows_from_before_are_read_and_rekeyed(open_store: Open, url: str) -> None:
    plain = open_store()
    old = fill(plain, 7)
    plain.close()
    store = open_store(payload_keys=[new_key()])
    ids = old + fill(store, 2)
    read_back(store, ids)
    last = {table: (read, changed) for table, read, changed in store.rekey()}
    assert last == {"payloads": (9, 7), "evaluations": (18, 14), "dead_letters": (9, 7)}
    assert SECRET.encode() not in bytes_at_rest(store, url)
    read_back(store, ids)


def test_keys_rotate(open_store: Open) -> None:
    first, second = new_key(), new_key()
    ids = fill(open_store(payload_keys=[first]))
    both = open_store(payload_keys=[second, first])
    read_back(both, ids)
    ids += fill(both)
    list(both.rekey())
    read_back(open_store(payload_keys=[second]), ids)


def test_a_rekey_that_was_cut_off_goes_on(open_store: Open) -> None:
    first, second = new_key(), new_key()
    ids = fill(open_store(payload_keys=[first]), 12)
    both = open_store(payload_keys=[second, first])
    cut = both.rekey()
    while next(cut)[0] != "dead_letters":
        pass
    cut.close()
    read_back(both, ids)
    last = {table: changed for table, _, changed in both.rekey()}
    assert last == {"payloads": 0, "evaluations": 0, "dead_letters": 7}
    read_back(open_store(payload_keys=[second]), ids)


@pytest.mark.parametrize("keys", [[], [new_key()]])
def test_a_wrong_or_missing_key_is_one_clear_error(open_store: Open, keys: list[str]) -> None:
    right = new_key()
    ids = fill(open_store(payload_keys=[right]))
    store = open_store(payload_keys=keys)
    for read in (store.check_keys, lambda: store.payloads(ids), lambda: store.dead_letter(ids[0])):
        with pytest.raises(StoreError, match="ASSAY_PAYLOAD_KEYS"):
            read()
    with pytest.raises((StoreError, SettingsError), match="ASSAY_PAYLOAD_KEYS"):
        list(store.rekey())
    read_back(open_store(payload_keys=[right]), ids)


def test_what_is_no_key_is_refused_without_showing_it(open_store: Open) -> None:
    with pytest.raises(SettingsError, match="key 2 of 2") as raised:
        open_store(payload_keys=[new_key(), "hunter2"])
    assert "hunter2" not in str(raised.value)


def test_a_text_cannot_pass_for_a_sealed_one(open_store: Open) -> None:
    for store in (open_store(), open_store(payload_keys=[new_key()])):
        for hostile in (b"assay:sealed:1:x", b"assay:plain:1:assay:sealed:1:x"):
            letter = DeadLetter(dead_id=new_key(), reason="invalid", message=hostile.decode(), payload=hostile)
            store.commit([], [], [letter])
            kept = store.dead_letter(letter.dead_id)
            assert (kept.payload, kept.message) == (hostile, hostile.decode())


def test_texts_of_a_subject_are_deleted_though_encrypted(open_store: Open, url: str) -> None:
    store = open_store(payload_keys=[new_key()])
    gone, kept = fill(store, 2)
    deleted = store.erase(Subject(record_ids=frozenset({gone})))
    assert (deleted["payloads"], deleted["explanations"]) == (1, 2)
    assert store.payloads([gone, kept]).keys() == {kept}
    record = dataclasses.replace(a_record(), user_id="u1")
    letter = DeadLetter(dead_id="d1", reason="invalid", message="bad", payload=record.to_json().encode())
    store.commit([], [], [letter])
    assert store.erase(Subject(user_ids=frozenset({"u1"})))["dead_letters"] == 1
    assert "d1" not in {letter.dead_id for letter in store.dead_letters()}
