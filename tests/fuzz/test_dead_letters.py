# ruff: noqa: PT017 - the error and the outcome are looked at alike
"""Dead letters are whatever came: what is still no record stays, refused in one line; the others go back whole."""

from __future__ import annotations

import contextlib
from pathlib import Path

from assay.codec import decode_record
from assay.enqueue import replay
from assay.errors import RecordError
from assay.queue import MAX_RECORD_BYTES, Queue
from assay.store import DeadLetter, Store
from fuzz.hostile import PIECES, WHOLE
from fuzz.targets import AT, TARGETS


def test_hostile_payloads_are_kept_and_refused_and_the_others_replayed(redis_url: str, tmp_path: Path) -> None:
    payloads = [*WHOLE.values(), *PIECES, *TARGETS["dead_letter"].seeds]
    letters = [
        DeadLetter(dead_id=f"d{place:03d}", reason="invalid", message="synthetic", payload=payload)
        for place, payload in enumerate(payloads)
    ]
    readable = {letter.dead_id for letter in letters if TARGETS["dead_letter"].read(letter.payload)}
    assert len(readable) == len(TARGETS["dead_letter"].seeds)
    with (
        contextlib.closing(Store(f"sqlite:///{tmp_path}/assay.db")) as store,
        contextlib.closing(Queue.from_url(redis_url)) as queue,
    ):
        store.upgrade()
        store.commit([], [], letters)
        kept = {letter.dead_id: letter.payload for letter in store.dead_letters(limit=1_000)}
        assert kept == {letter.dead_id: letter.payload for letter in letters}
        done = replay((store.dead_letter(letter.dead_id) for letter in letters), queue=queue, store=store)
        assert done.replayed == len(readable)
        assert {dead_id for dead_id, _ in done.refused} == set(kept) - readable
        assert all(len(told.splitlines()) == 1 and len(told) < 1_000 for _, told in done.refused)
        waiting = {letter.dead_id for letter in store.dead_letters(limit=1_000) if letter.replayed_at is None}
        assert waiting == set(kept) - readable


def test_a_record_of_exactly_the_bound_is_taken_and_one_byte_more_is_not() -> None:
    seed = TARGETS["record"].seeds[0]
    exact = seed[:-1] + b" " * (MAX_RECORD_BYTES - len(seed)) + b"}"
    assert len(exact) == MAX_RECORD_BYTES
    assert decode_record(exact, at=AT) == decode_record(seed, at=AT)
    try:
        decode_record(exact[:-1] + b" }", at=AT)
    except RecordError as error:
        assert error.reason == "too_large"
    else:
        raise AssertionError("one byte over the bound was taken")
