"""docs/reference/wire-format.md, followed to the letter by a producer that knows nothing else."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kombu
import pytest
import redis

from assay.codec import decode_record, record_schema
from assay.queue import (
    MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS,
    MAX_RECORD_BYTES,
    Queue,
    QueueDepth,
    decode_batch,
    doorbell,
)

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "wire-format.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(lua|redis|json \w+)\n(.*?)```", PAGE, re.DOTALL))
RECORD: dict[str, Any] = json.loads(BLOCKS["json record"])
BATCH: dict[str, Any] = {**json.loads(BLOCKS["json batch"]), "records": [RECORD, {**RECORD, "record_id": "2"}]}
ID: str = BATCH["batch_id"]
ENQUEUED_AT: float = BATCH["enqueued_at"]
#: of the table under Enqueue
KEYS = re.findall(r"`([^`]+)`", next(line for line in PAGE.splitlines() if line.startswith("| `KEYS`")))[1:]


def test_the_record_is_one() -> None:
    assert decode_record(json.dumps(RECORD)).app == "support"
    jsonschema.validate(RECORD, record_schema())


def test_the_batch_is_one() -> None:
    batch = decode_batch(json.dumps(BATCH).encode())
    assert (batch.batch_id, batch.enqueued_at, batch.attempt, batch.replay) == (ID, ENQUEUED_AT, 0, False)
    assert [decode_record(raw).record_id for raw in batch.records] == [RECORD["record_id"], "2"]


def test_the_limits_are_those_of_the_code() -> None:
    assert f"Up to {MAX_BATCH_RECORDS} records and {MAX_BATCH_BYTES // 10**6} MB" in PAGE
    assert f"a record of {MAX_RECORD_BYTES // 10**6} MB at most" in PAGE


def test_the_doorbell_is_ours_but_for_its_own_id_and_origin() -> None:
    documented, ours = json.loads(BLOCKS["json doorbell"]), json.loads(doorbell("assay", ID))
    ring = ours["headers"]["id"]
    expected = json.loads(json.dumps(ours).replace(ring, f"{ID}.1"))
    expected["headers"]["origin"] = "my-app"
    assert documented == expected


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = Queue.from_url(redis_url)
    yield queue
    queue.close()


def by_script(raw: redis.Redis, bound: int = 20_000) -> Any:
    arguments = [ID, json.dumps(BATCH), len(BATCH["records"]), ENQUEUED_AT, BLOCKS["json doorbell"], bound]
    return raw.eval(BLOCKS["lua"], len(KEYS), *KEYS, *arguments)


def by_commands(raw: redis.Redis) -> Any:
    values = {
        "<batch_id>": ID,
        "<batch>": json.dumps(BATCH),
        "<records>": str(len(BATCH["records"])),
        "<enqueued_at>": str(ENQUEUED_AT),
        "<doorbell>": BLOCKS["json doorbell"],
    }
    lines = [line.split() for line in BLOCKS["redis"].strip().splitlines()]
    assert (lines[0], lines[-1]) == (["MULTI"], ["EXEC"])
    with raw.pipeline(transaction=True) as pipe:
        for words in lines[1:-1]:
            pipe.execute_command(*(values.get(word, word) for word in words))
        pipe.execute()
    return 1


@pytest.mark.integration
@pytest.mark.parametrize("enqueue", [by_script, by_commands])
def test_a_worker_finds_what_was_enqueued(
    raw: redis.Redis, queue: Queue, redis_url: str, enqueue: Callable[[redis.Redis], Any]
) -> None:
    assert enqueue(raw) == 1
    assert queue.depth() == QueueDepth(batches=1, records=2, oldest_enqueued_at=ENQUEUED_AT)
    assert queue.counters() == {"accepted": 2}
    with kombu.Connection(redis_url) as connection:
        message = connection.SimpleQueue("assay").get(timeout=5)
        (batch_id,), _, _ = message.payload
        message.ack()
    claim = queue.claim(batch_id, lease_seconds=30)
    assert claim is not None
    assert len(decode_batch(claim.payload).records) == 2
    assert queue.finish(batch_id)
    assert queue.depth() == QueueDepth(0, 0, None)
    assert {key.decode() for key in raw.keys("assay:assay:*")} == {"assay:assay:state", "assay:assay:counters"}


@pytest.mark.integration
@pytest.mark.parametrize("enqueue", [by_script, by_commands])
def test_its_lost_doorbell_is_rung_again(raw: redis.Redis, queue: Queue, enqueue: Callable[[redis.Redis], Any]) -> None:
    enqueue(raw)
    raw.delete("assay")
    assert queue.sweep(now=time.time() + 11) == 1
    assert raw.llen("assay") == 1


@pytest.mark.integration
def test_the_script_may_be_repeated_and_keeps_to_the_bound(raw: redis.Redis, queue: Queue) -> None:
    assert by_script(raw, bound=0) == 0
    assert queue.depth().batches == 0
    assert by_script(raw) == 1
    assert by_script(raw) == 1
    assert queue.depth() == QueueDepth(1, 2, ENQUEUED_AT)
    assert raw.llen("assay") == 1
