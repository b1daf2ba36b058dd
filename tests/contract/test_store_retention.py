"""What is deleted is in no table, nor in the file; what is counted stays. On SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from assay.errors import AssayError
from assay.metrics import ScoreCollector, encode
from assay.queue import Queue, encode_batch
from assay.records import Failure, Record, Score, now
from assay.store import DeadLetter, LabelRequest, Settled, Store, Subject
from assay.store import _tables as tables
from stores import (
    a_record,
    an_evaluation,
    assert_conserved,
    assert_sums_true,
    commit,
    connected,
    dump,
    recomputed_sums,
    stored_sums,
    with_payloads,
)

#: A word of the synthetic record's text; wherever it is, the text is.
SECRET = "zebrasecretword"
NEVER = {"payload_days": 400, "score_days": 400, "rollup_days": 40_000, "dead_days": 400}


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store(sinks={"webhook": {"scored", "failed"}})


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = Queue.from_url(redis_url)
    yield queue
    queue.close()


def quoting(secret: str) -> tuple[Score, Failure]:
    """What judges say of a record, which quotes it."""
    details = {"claims": [{"quote": f"it says {secret}", "supported": False}]}
    return (
        Score(value=0.25, passed=False, explanation=f"it says {secret}", details=details, defect="incomplete"),
        Failure(kind="invalid_output", message=f"no verdict in {secret}"),
    )


def a_letter(name: str, payload: bytes, record_id: str | None = None, *, message: str = SECRET) -> DeadLetter:
    return DeadLetter(
        dead_id=name, reason="invalid", message=f"not this: {message}", payload=payload, record_id=record_id, app="shop"
    )


def fill(store: Store, secret: str = SECRET, *, n: int = 3, prefix: str = "r", **fields: object) -> list[Record]:
    """Records whose text is in every place where a text can be."""
    records = [
        a_record(f"{prefix}{i}", input=f"{secret} asks", output=f"{secret} {i}", contexts=(), **fields)
        for i in range(n)
    ]
    score, failure = quoting(secret)
    store.commit(
        with_payloads(records),
        [an_evaluation(record, score) for record in records] + [an_evaluation(r, failure, "safety") for r in records],
        [a_letter(f"{prefix}-letter", records[0].to_json().encode(), records[0].record_id, message=secret)],
    )
    # One is refused by its sink, which quotes what it got.
    (claimed, *_) = store.claim_outbox("webhook", "c", limit=99, until=now() + timedelta(hours=1))
    key = (claimed.annotation.record_id, claimed.annotation.evaluation_id)
    store.settle_outbox("webhook", "c", {key: Settled(outcome="rejected", reason=f"422: {secret}")})
    store.request_labels([LabelRequest(record_id=records[0].record_id, rubric="relevance", probability=0.5)])
    return records


def tables_with(store: Store, word: str = SECRET) -> set[str]:
    """Tables that have the word in any column of any row."""
    found = {name for name, rows in dump(store).items() if word in repr(rows)}
    with connected(store) as connection:
        letters = connection.execute(sa.select(tables.dead_letters.c.payload)).scalars()
        return found | {"dead_letters" for payload in letters if word.encode() in bytes(payload)}


def in_files(store: Store, word: str = SECRET) -> list[str]:
    """Files of an SQLite database that hold the word, in whatever is left of it."""
    if not store._database.is_sqlite:
        return []
    path = Path(store._database.name)
    return [p.name for p in sorted(path.parent.glob(f"{path.name}*")) if word.encode() in p.read_bytes()]


def exported(store: Store, queue: Queue) -> list[str]:
    """The series of the exporter that come from sums, without those that count what waits."""
    body = encode(ScoreCollector(store, queue, rubrics=()).collect(), openmetrics=False)[0].decode()
    names = ("assay_evaluations", "assay_score", "assay_records", "assay_judge", "assay_pass", "assay_failures")
    lines = [line for line in body.splitlines() if line.startswith(names)]
    assert any('rubric="relevance"' in line for line in lines), "else it shows nothing"
    return lines


def assert_hours_true(store: Store) -> None:
    """The sums that are kept are those of the evaluations; minutes as old as these are not."""
    stored, plain = stored_sums(store), recomputed_sums(store)
    for name, rows in plain.items():
        kept, known = (
            {key: row for key, row in some.items() if name != "rollups" or key[0] == 3600}
            for some in (rows, stored[name])
        )
        assert known.keys() == kept.keys(), name
        for key, row in kept.items():
            assert stored[name][key] == pytest.approx(row), (name, key)


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        ({}, {"payloads", "evaluations", "outbox", "dead_letters"}),
        ({"dead_days": 10}, {"payloads", "evaluations", "outbox"}),
        ({"payload_days": 10}, {"dead_letters"}),
        ({"payload_days": 10, "dead_days": 10}, set()),
        ({"score_days": 10}, {"dead_letters"}),
        ({"score_days": 10, "dead_days": 10}, set()),
    ],
)
def test_no_text_outlives_its_setting(
    store: Store, queue: Queue, monkeypatch: pytest.MonkeyPatch, kept: dict[str, float], left: set[str]
) -> None:
    fill(store)
    assert tables_with(store) == {"payloads", "evaluations", "outbox", "dead_letters"}
    before = exported(store, queue), store.totals(), store.counts().received
    later = now() + timedelta(days=11)
    with monkeypatch.context() as patch:
        patch.setattr("assay.store._purge.now", lambda: later)
        gone = store.purge(**NEVER | {"score_days": 400} | kept)
    assert tables_with(store) == left
    assert (exported(store, queue), store.totals(), store.counts().received) == before
    if "score_days" not in kept:
        assert_hours_true(store)
        assert gone["explanations"] == (6 if "payload_days" in kept else 0)
        assert len(store.existing(["r0", "r1", "r2"])) == 6
    assert_depths(store)
    if not left:
        assert in_files(store) == []
    # And again: there is nothing left to do.
    monkeypatch.setattr("assay.store._purge.now", lambda: later)
    assert not any(store.purge(**NEVER | kept).values())


def assert_depths(store: Store) -> None:
    rows = [row.state for row in store.outbox()]
    depth = store.outbox_depths().get("webhook")
    assert depth is not None
    assert (depth.waiting, depth.rejected) == (rows.count("waiting"), rows.count("rejected"))


def test_no_text_is_left_in_the_file_of_many_records(store: Store) -> None:
    """Long and short texts, on pages of their own and among what stays, which other pages have been split from."""
    for first in range(0, 600, 100):
        texts = [a_record(f"{i}", output=f"{SECRET} " * (i % 40), seconds=i) for i in range(first, first + 100)]
        score, _ = quoting(SECRET * (first % 7 + 1))
        store.commit(with_payloads(texts), [an_evaluation(record, score) for record in texts])
    store.purge(**NEVER | {"payload_days": 0})
    assert tables_with(store) == set()
    assert in_files(store) == []
    assert_hours_true(store)


def test_texts_that_went_do_not_come_back(store: Store) -> None:
    records = fill(store)
    store.purge(**NEVER | {"payload_days": 0, "dead_days": 0})
    counted = store.totals()
    score, failure = quoting(SECRET)
    store.commit(with_payloads(records), [an_evaluation(record, score) for record in records])
    assert [t.scored for t in store.totals()] == [t.scored for t in counted], "delivered again, counted once"
    done = store.commit(with_payloads(records), [an_evaluation(r, score, "safety") for r in records], replay=True)
    assert done.recovered == 3, "the failures were replayed"
    store.commit(with_payloads(records), [an_evaluation(record, failure, "other") for record in records])
    assert tables_with(store) == set()
    assert_conserved(store)
    assert_hours_true(store)


# -- one subject


def subject(**ids: str) -> Subject:
    return Subject(**{name: frozenset([value]) for name, value in ids.items()})


BY = {
    "record": (subject(record_ids="mine0"), 1),
    "trace": (subject(trace_ids="a" * 32), 3),
    "user": (subject(user_ids="u1"), 3),
}


@pytest.mark.parametrize("by", BY)
def test_the_texts_of_one_subject_are_deleted(store: Store, queue: Queue, by: str) -> None:
    whose, n = BY[by]
    other = fill(store, "giraffe", prefix="other", trace_id="b" * 32, user_id="u2")
    mine = fill(store, prefix="mine", n=n, trace_id="a" * 32, user_id="u1")
    store.commit(
        [],
        [],
        [
            a_letter("broken", f'{{"record_id":"mine0","trace_id":"{"a" * 32}","user_id":"u1","x":'.encode()),
            a_letter("whole", encode_batch([mine[0].to_json()], batch_id="b", enqueued_at=1.0)),
            a_letter("stays", other[0].to_json().encode(), other[0].record_id, message="giraffe"),
        ],
    )
    mixed = encode_batch([mine[0].to_json(), other[1].to_json()], batch_id="m", enqueued_at=1.0, replay=True)
    store.commit([], [], [a_letter("mixed", mixed)])
    store.mark_replayed(["whole"])
    before = dump(store)
    counted = exported(store, queue), store.totals(), store.counts().received
    found = store.erase(whose, dry_run=True)
    assert dump(store) == before, "only counted"
    gone = store.erase(whose)
    assert gone == found
    assert gone == {
        "records": n,
        "payloads": n,
        "explanations": 2 * n,
        "dead_letters": 3,
        "dead_letters_rewritten": 1,
        "outbox": 2 * n,
        "links": n,
        "exemplars": gone["exemplars"],
    }
    assert tables_with(store) == set()
    assert in_files(store) == []
    assert [t.scored for t in store.totals()] == [t.scored for t in counted[1]]
    assert store.counts().received == counted[2]
    assert sums(exported(store, queue)) == sums(counted[0])
    assert_sums_true(store)
    assert_depths(store)
    assert {row.record_id for row in store.outbox()} == {record.record_id for record in other}
    assert tables_with(store, "giraffe") == {"payloads", "evaluations", "outbox", "dead_letters"}
    assert "a" * 32 not in repr(dump(store))
    letters = {letter.dead_id: letter for letter in store.dead_letters()}
    assert set(letters) == {"stays", "other-letter", "mixed"}
    assert letters["mixed"].payload == encode_batch([other[1].to_json()], batch_id="m", enqueued_at=1.0, replay=True)
    assert store.counts().dead_kept == {"invalid": 3}
    # Delivered again it is known: it counts nothing, and brings no text back.
    score, _ = quoting(SECRET)
    store.commit(with_payloads(mine), [an_evaluation(record, score) for record in mine])
    assert [t.scored for t in store.totals()] == [t.scored for t in counted[1]]
    assert tables_with(store) == set()
    assert not any(n for name, n in store.erase(whose).items() if name != "records")


def sums(lines: list[str]) -> list[str]:
    """Without exemplars and without what shows a moment."""
    return [line for line in lines if "timestamp" not in line]


def test_a_dead_letter_tells_whose_it_was_when_the_text_is_gone(store: Store) -> None:
    fill(store, n=1, user_id="u1", session_id="s1")
    store.purge(**NEVER | {"payload_days": 0})
    gone = store.erase(subject(user_ids="u1"))
    assert (gone["dead_letters"], gone["records"], gone["links"], gone["outbox"]) == (1, 1, 1, 2)
    assert tables_with(store) == set()
    assert "s1" not in repr(dump(store))


def test_ids_are_ids_not_patterns_nor_parts(store: Store) -> None:
    fill(store, n=2, user_id="user")
    for whose in (subject(user_ids="use"), subject(user_ids="%"), subject(record_ids="r"), subject(trace_ids="")):
        assert not any(store.erase(whose).values())


def test_a_subject_is_deleted_a_little_at_a_time_beside_commits(store: Store) -> None:
    for first in range(0, 900, 300):
        records = [a_record(f"r{i}", user_id="u1", output=SECRET, seconds=i) for i in range(first, first + 300)]
        score, _ = quoting(SECRET)
        store.commit(with_payloads(records), [an_evaluation(record, score) for record in records])
    errors: list[AssayError] = []
    under_way, done = threading.Event(), threading.Event()

    def committing() -> None:
        n = 0
        try:
            while not done.is_set() or n < 5:
                commit(store, (a_record(f"new{n}", user_id="u2", output="giraffe", seconds=n), 0.5))
                # One of the subject's, delivered again.
                record = a_record(f"r{n % 900}", user_id="u1", output=SECRET, seconds=n % 900)
                store.commit(with_payloads([record]), [an_evaluation(record, score, "safety")])
                n += 1
                under_way.set()
        except AssayError as error:
            errors.append(error)
            under_way.set()

    worker = threading.Thread(target=committing)
    worker.start()
    assert under_way.wait(60)
    sizes: list[int] = []
    write = store._database.write

    def noted(work: Callable[[sa.Connection], object]) -> object:
        sizes.append(1)
        return write(work)

    store._database.write = noted  # type: ignore[method-assign]
    try:
        gone = store.erase(subject(user_ids="u1"))
    finally:
        store._database.write = write  # type: ignore[method-assign]
        done.set()
        worker.join(60)
    assert errors == []
    assert gone["payloads"] == 900
    assert len(sizes) >= 5, "of 200 records each"
    assert tables_with(store) == set(), "nor what was judged while they were being deleted"
    assert_sums_true(store)
    assert_conserved(store)
