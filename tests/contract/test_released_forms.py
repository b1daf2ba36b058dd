"""What any release ever wrote to Redis is read for ever, and two releases may work on one queue at once.

`tests/data/wire/` holds one of each form, as it was released: add to it, never change it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from assay.codec import decode_record
from assay.queue import Queue, QueueDepth, Retry, decode_batch, encode_batch, is_doorbell
from assay.records import evaluation_id

DATA = Path(__file__).parents[1] / "data" / "wire"
RECORD = (
    b'{"schema_version":1,"record_id":"r","timestamp":"2026-03-01T12:00:00Z","app":"shop","input":"a","output":"b"}'
)


@pytest.mark.parametrize("file", sorted(DATA.glob("record-*.json")), ids=lambda file: file.stem)
def test_records(file: Path) -> None:
    record = decode_record(file.read_bytes())
    assert (record.record_id, record.app, record.route, record.trace_id) == (
        "frozen-1",
        "shop",
        "chat",
        "0af7651916cd43dd8448eb211c80319c",
    )
    assert (record.sampling.probability, dict(record.cohort)) == (0.25, {"plan": "free"})
    assert record.contexts[0].text == "Parcels arrive on Monday."
    assert record.usage is not None
    assert (record.usage.prompt_tokens, record.latency_seconds) == (10, 1.5)


@pytest.mark.parametrize("file", sorted(DATA.glob("batch-*.json")), ids=lambda file: file.stem)
def test_batches(file: Path) -> None:
    batch = decode_batch(file.read_bytes())
    assert batch.batch_id.startswith("frozen")
    assert batch.enqueued_at == 1772366400.25
    assert [decode_record(raw).record_id for raw in batch.records][-1] == "frozen-2"
    assert batch.rubrics == ({"0a1b2c3d" * 8: "by_ragas"} if file.stem.endswith("ragas") else {})
    if file.stem.endswith("retried"):
        assert (batch.attempt, batch.replay, batch.probabilities) == (2, True, {"0a1b2c3d" * 8: 0.5})


@pytest.mark.parametrize("file", sorted(DATA.glob("doorbell-*.json")), ids=lambda file: file.stem)
def test_doorbells(file: Path) -> None:
    assert is_doorbell(file.read_bytes())


def test_what_a_newer_release_adds_to_a_batch_is_left_aside() -> None:
    payload = encode_batch([RECORD], batch_id="b", enqueued_at=1.0)
    assert decode_batch(payload[:-1] + b',"of_tomorrow":{"a":[1]}}') == decode_batch(payload)


class Older:
    """A queue with the scripts of an older release, on the keys of today."""

    def __init__(self, file: Path, queue: Queue) -> None:
        self._queue = queue
        self._scripts = {
            name: queue._redis.register_script(text) for name, text in json.loads(file.read_text()).items()
        }

    def run(self, name: str, *args: Any, report: str = "") -> Any:
        keys = [*self._queue._keys, f"assay:{self._queue.name}:report:{report}"]
        return self._scripts[name](keys=keys, args=list(args))

    def push(self, batch_id: str, records: int = 1) -> Any:
        payload = encode_batch([RECORD] * records, batch_id=batch_id, enqueued_at=time.time())
        return self.run("push", self._queue._bell, batch_id, payload, records, time.time(), 10, 100, "", 0)


@pytest.mark.parametrize("file", sorted(DATA.glob("scripts-*.json")), ids=lambda file: file.stem)
def test_two_releases_share_a_queue(redis_url: str, file: Path) -> None:
    newer = Queue.from_url(redis_url)
    older = Older(file, newer)
    with redis.Redis.from_url(redis_url) as client:

        def bells() -> int:
            return sum(is_doorbell(item) for item in client.lrange("assay", 0, -1))

        # Each works on what the other has stored.
        assert older.push("of-older", 3) == 1
        assert newer.push(
            encode_batch([RECORD], batch_id="of-newer", enqueued_at=1.0),
            batch_id="of-newer",
            records=1,
            enqueued_at=time.time(),
        )
        assert newer.depth().records == 4
        assert bells() == 2
        claim = newer.claim("of-older", lease_seconds=30)
        assert claim is not None
        assert claim.deliveries == 1
        taken = older.run("claim", "of-newer", "token-of-older", 30)
        assert taken[0] == encode_batch([RECORD], batch_id="of-newer", enqueued_at=1.0)
        # A lease of one is a lease to the other.
        assert older.run("claim", "of-older", "another", 30) is None
        assert newer.claim("of-newer", lease_seconds=30) is None
        assert newer.extend(["of-older"], lease_seconds=30) == []
        assert older.run("extend", 30, "of-newer", "token-of-older", "of-older", "another") == [b"of-older"]
        # One hands back, the other takes.
        assert older.run("release", newer._bell, "of-newer", 10, "token-of-older", -1, 0) == 1
        assert newer.claim("of-newer", lease_seconds=30) is not None
        assert newer.release("of-older", due_at=time.time() + 60)
        # One sweeps for the other.
        client.delete("assay")
        assert older.run("sweep", newer._bell, 10, time.time() + 120, 500)[1] == 2
        assert bells() == 2
        retry = Retry(payload=RECORD, batch_id="retry", due_at=time.time(), enqueued_at=time.time())
        assert newer.finish("of-newer", retries=[retry])
        assert older.run("finish", newer._bell, "of-newer", 10) == 0
        assert older.run("claim", "retry", "t", 30) is not None
        assert older.run("finish", newer._bell, "retry", 10) == 1
        assert older.run("finish", newer._bell, "of-older", 10) == 1
        assert newer.depth() == QueueDepth(0, 0, None)
        assert older.run("depth")[:2] == [0, b"0"]
        assert newer.counters()["accepted"] == 4
        assert set(client.keys("assay*")) <= {b"assay", b"assay:assay:state", b"assay:assay:counters"}
    newer.close()


@pytest.mark.parametrize(
    ("record_id", "evaluation"),
    [("frozen-1", "6528649b-9650-56f1-b121-936e3dcc7db4"), ('é"\\\n\ud800', "8ed20ec3-22af-59ff-815e-71e366565fd1")],
)
def test_an_evaluation_has_the_id_that_it_was_stored_with(record_id: str, evaluation: str) -> None:
    """Else what is judged again after an upgrade would count twice."""
    assert str(evaluation_id(record_id, "faithfulness", "0a1b2c3d" * 8, "9f" * 32)) == evaluation
