"""RabbitMQ as the broker: it carries the doorbells, may die at any time, and nothing is lost or doubled."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from assay.ferry import Ferry
from assay.queue import Queue, Retry, encode_batch
from deployment import Deployment, end, total, wait_until
from servers import RabbitServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def waiting(rabbit: RabbitServer, name: str) -> int:
    """Messages that are ready in a queue of RabbitMQ."""
    from kombu import Connection

    with Connection(rabbit.url) as connection:
        return int(connection.default_channel.queue_declare(queue=name, passive=True).message_count)


def test_doorbells_for_ragas_have_a_queue_of_their_own_there(redis_url: str, rabbit: RabbitServer) -> None:
    from kombu import Connection
    from kombu import Queue as BrokerQueue

    queue = Queue.from_url(redis_url)
    payload = encode_batch(["{}"], batch_id="b", enqueued_at=time.time())
    assert queue.push(payload, batch_id="b", records=1, enqueued_at=time.time())
    moved = encode_batch(["{}"], batch_id="r", enqueued_at=time.time(), rubrics={"hash": "polite"})
    assert queue.finish("b", retries=[Retry(moved, "r", 0.0, time.time(), ragas=True)])
    ferry = Ferry(queue, lambda: Connection(rabbit.url), BrokerQueue("assay.ragas"), ragas=True)
    ferry.start()
    try:
        with Connection(rabbit.url) as connection:
            waits = connection.SimpleQueue("assay.ragas")
            message = waits.get(timeout=30)
            assert message.payload[0] == ["r"]
            message.ack()
            waits.close()
    finally:
        ferry.stop()
    assert queue._redis.llen("assay.ragas") == 0
    assert queue._redis.llen("assay") == 1, "those of the other list are left to its ferry"
    queue.close()


def test_rabbitmq_dies_and_comes_back(tmp_path: Path, rabbit: RabbitServer) -> None:
    settings = {"broker_url": rabbit.url, "lease_seconds": 5, "shutdown_seconds": 1}
    with Deployment(tmp_path, f"sqlite:///{tmp_path}/assay.db", **settings) as deployment:
        deployment.start_judge("--latency", "0.3")
        # Before any worker: the client knows Redis alone, and there are more batches than RabbitMQ is to hold.
        for index in range(400):
            deployment.enqueue(1, index)
        first, second = (deployment.start_worker("--concurrency", "8") for _ in range(2))
        metrics = deployment.start_exporter()
        wait_until(lambda: deployment.record_rows() > 100, first, second, seconds=60)
        assert waiting(rabbit, "assay") <= 200 + 2 * 50
        assert len(json.loads(deployment.run("status", "--json").stdout)["workers"]) == 2
        rabbit.kill()
        deployment.enqueue(100, 400)
        done: subprocess.CompletedProcess[bytes] = deployment.run("doctor", "--no-judge", check=False)
        assert b"RabbitMQ is away" in done.stdout
        # What is no doorbell is put aside on this way too.
        deployment.queue._redis.rpush("assay", b"not a doorbell")
        rabbit.start()
        deployment.drain(first, second, seconds=120)
        wait_until(lambda: len(deployment.store.dead_letters()) == 1, first, second)
        assert {r: sum(c.values()) for r, c in deployment.outcomes().items()} == dict.fromkeys(
            deployment.outcomes(), 500
        )
        time.sleep(1.5)  # the exporter's scrape cache
        assert total(metrics, "assay_records_total", outcome="received") == 500
        # Workers without RabbitMQ take over: the same records, and no switch of all at once.
        del deployment.settings["broker_url"]
        third = deployment.start_worker()
        assert [end(first), end(second)] == [0, 0]
        deployment.enqueue(50, 500)
        deployment.drain(third, seconds=60)
        assert deployment.record_rows() == 550
