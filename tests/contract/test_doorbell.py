"""Our doorbell against the installed Celery and kombu: equal in meaning to what they write, and read by them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker

from assay.queue import CHORE_TASK, TASK, Queue, doorbell, encode_batch, is_doorbell

pytestmark = pytest.mark.integration

#: What each message has of its own.
OWN = {"id", "root_id", "origin", "correlation_id", "delivery_tag", "reply_to"}
#: Fields of Celery's own messages that say nothing to a consumer: what it would print, and stamps nobody set.
SILENT = {"replaced_task_nesting", "stamped_headers", "stamps", "body_encoding"}


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    app = Celery("contract", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_default_queue="q", task_serializer="json", accept_content=["json"], task_ignore_result=True, timezone="UTC"
    )
    yield app
    app.close()


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def batch(batch_id: str) -> bytes:
    return encode_batch(['{"n":1}'], batch_id=batch_id, enqueued_at=1.0)


def theirs(app: Celery, raw: redis.Redis) -> dict[str, Any]:
    """The message that Celery itself writes for the same call."""
    app.send_task(TASK, args=["b1"], queue="q", ignore_result=True)
    message = json.loads(raw.lpop("q"))
    message["body"] = kombu.transport.virtual.base.Base64().decode(message["body"]).decode()
    return message


def test_equal_in_meaning_to_celerys_own(app: Celery, raw: redis.Redis) -> None:
    own, celerys = json.loads(doorbell("q", "b1")), theirs(app, raw)
    assert json.loads(own["body"]) == json.loads(celerys["body"])
    assert own["content-type"] == celerys["content-type"]
    assert own["content-encoding"] == celerys["content-encoding"]
    for part in ("headers", "properties"):
        assert set(own[part]) | SILENT == set(celerys[part]) | SILENT, part
        differing = {
            name: (value, celerys[part][name]) for name, value in own[part].items() if value != celerys[part][name]
        }
        # argsrepr is for people; the exchange is Celery's direct one, and the anonymous one goes to the same queue.
        assert set(differing) <= OWN | {"argsrepr", "delivery_info"}, differing
    assert own["headers"]["id"] == own["headers"]["root_id"] == own["properties"]["correlation_id"]
    assert own["properties"]["delivery_info"]["routing_key"] == celerys["properties"]["delivery_info"]["routing_key"]


@pytest.mark.parametrize("rung_by", ["doorbell", "push", "sweep"])
def test_kombu_reads_it(app: Celery, redis_url: str, raw: redis.Redis, rung_by: str) -> None:
    queue = Queue.from_url(redis_url, "q")
    if rung_by == "doorbell":
        raw.lpush("q", doorbell("q", "b1"))
    else:
        queue.push(batch("b1"), batch_id="b1", records=1, enqueued_at=1.0)
    if rung_by == "sweep":
        raw.delete("q")
        assert queue.sweep(now=time.time() + 100) == 1
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("q").get(timeout=5)
        args, kwargs, embedded = message.payload
        assert (args, kwargs) == (["b1"], {})
        assert embedded == {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        assert message.headers["task"] == TASK
        assert message.content_type == "application/json"
        message.ack()
    assert raw.hlen("unacked") == 0
    queue.close()


def test_kombu_restores_it_to_its_list(app: Celery, raw: redis.Redis) -> None:
    """What a worker does with messages in hand when it ends; and what the visibility timeout does."""
    raw.lpush("q", doorbell("q", "b1"))
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("q").get(timeout=5)
        assert raw.llen("q") == 0
        message.requeue()
        again = connection.SimpleQueue("q").get(timeout=5)
        assert again.payload[0] == ["b1"]
        again.ack()


def test_a_celery_worker_runs_the_task(app: Celery, redis_url: str, raw: redis.Redis) -> None:
    """The whole way, on the thread pool that assay's workers use; repeated and stale doorbells do no harm."""
    queue = Queue.from_url(redis_url, "q")
    claimed: list[tuple[str, bool]] = []

    @app.task(name=TASK, shared=False, acks_late=True)
    def score_batch(batch_id: str) -> None:
        claim = queue.claim(batch_id, lease_seconds=30)
        claimed.append((batch_id, claim is not None))
        if claim is not None:
            queue.finish(batch_id)

    names = [f"b{n}" for n in range(20)]
    for name in names:
        queue.push(batch(name), batch_id=name, records=1, enqueued_at=1.0)
    raw.lpush("q", doorbell("q", "b3"), doorbell("q", "gone"))
    with start_worker(app, pool="threads", concurrency=4, perform_ping_check=False, loglevel="WARNING"):
        deadline = time.monotonic() + 30
        while len(claimed) < 22 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert sorted(name for name, won in claimed if won) == sorted(names)
    assert sorted(name for name, won in claimed if not won) == ["b3", "gone"]
    assert queue.depth().batches == 0
    queue.close()


def test_ours_and_celerys_own_are_told_from_the_rest(app: Celery, raw: redis.Redis) -> None:
    assert is_doorbell(doorbell("assay", "b").encode())
    for task in (TASK, CHORE_TASK):
        raw.delete("assay")
        app.send_task(task, ["b"], queue="assay")
        assert is_doorbell(raw.rpop("assay")), task
    for task, args, kwargs in ((TASK, [], {}), (TASK, [5], {}), (TASK, ["b"], {"x": 1}), ("other.task", ["b"], {})):
        raw.delete("assay")
        app.send_task(task, args, kwargs, queue="assay")
        assert not is_doorbell(raw.rpop("assay")), (task, args, kwargs)
