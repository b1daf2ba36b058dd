"""A queue that fills up: the client takes fewer records, and what gets through still estimates the truth."""

from __future__ import annotations

import json
import math

import pytest

from assay import Client
from assay.queue import Queue, decode_batch
from assay.sampling import Rule, sample_unit

pytestmark = pytest.mark.integration

BATCHES = 100


@pytest.fixture
def queue(redis_url: str):
    opened = Queue.from_url(redis_url, "stuck", max_batches=BATCHES)
    yield opened
    opened.close()


def passes(index: int, *, loaded: bool) -> bool:
    return sample_unit(f"verdict {index}") < (0.5 if loaded else 0.95)


def stored(queue: Queue) -> list[tuple[int, float]]:
    """(index, probability) of every record that the queue holds."""
    found = []
    for payload in queue._redis.hvals(f"assay:{queue.name}:batches"):
        for raw in decode_batch(payload).records:
            read = json.loads(raw)
            found.append((int(read["input"]), read.get("sampling", {}).get("probability", 1.0)))
    return found


def offer(client: Client, indexes: range, **fields: object) -> None:
    for index in indexes:
        client.record(input=str(index), output="x", record_id=f"r{index}", **fields)
        if index % 10 == 0:
            assert client.flush(30)
    assert client.flush(30)


def test_the_weighted_estimate_holds_while_the_workers_are_stuck_and_the_plain_one_does_not(queue: Queue) -> None:
    """A rush with a lower pass rate meets a queue that nobody empties: most of what is thinned belongs to the rush."""
    calm, rush = 760, 400
    with Client("shop", transport=queue, flush_seconds=60) as client:
        offer(client, range(calm))
        assert client.stats().thinned == 0
        offer(client, range(calm, calm + rush))
        stats = client.stats()
        assert not stats.dropped
        assert stats.thinned > rush / 2
        assert stats.taken + stats.thinned == calm + rush
    verdicts = [(passes(index, loaded=index >= calm), p) for index, p in stored(queue)]
    assert len(verdicts) == stats.sent
    truth = sum(passes(index, loaded=index >= calm) for index in range(calm + rush)) / (calm + rush)
    # Hajek's ratio with its linearised variance under Poisson sampling (Sarndal, Swensson and Wretman 1992, 5.7).
    total = sum(1 / p for _, p in verdicts)
    weighted = sum(good / p for good, p in verdicts) / total
    error = math.sqrt(sum((1 - p) * ((good - weighted) / p) ** 2 for good, p in verdicts)) / total
    assert abs(weighted - truth) < 1.96 * error
    plain = sum(good for good, _ in verdicts) / len(verdicts)
    assert plain - truth > 1.96 * math.sqrt(plain * (1 - plain) / len(verdicts))
    assert abs(weighted - truth) < abs(plain - truth) / 3
    counters = queue.client_counters()
    assert counters["shop", "thinned"] == stats.thinned


def test_all_are_taken_again_when_the_queue_has_emptied(queue: Queue) -> None:
    with Client("shop", transport=queue, flush_seconds=60) as client:
        offer(client, range(1000))
        thinned = client.stats().thinned
        assert thinned
        for batch_id in list(queue._redis.hkeys(f"assay:{queue.name}:batches")):
            queue.finish(batch_id.decode())
        offer(client, range(1000, 1600))  # the first of them that is taken brings the news
        before = client.stats().thinned
        offer(client, range(1600, 1800))
        assert client.stats().thinned == before


def test_what_a_rule_always_takes_is_taken_from_a_full_queue_on_too(queue: Queue) -> None:
    rules = [Rule("vip", 1.0, route="/vip"), Rule("half", 0.5, route="/half")]
    with Client("shop", transport=queue, flush_seconds=60, rules=rules) as client:
        offer(client, range(900))
        assert queue.fill > 0.8
        before = client.stats()
        offer(client, range(900, 920), route="/vip")
        offer(client, range(920, 940), feedback={"thumb": "down"})
        assert client.stats().taken == before.taken + 40
    kept = dict(stored(queue))
    assert all(kept[index] == 1.0 for index in range(900, 940) if index in kept)


def test_thin_above_one_never_thins_and_the_bound_drops(queue: Queue) -> None:
    with Client("shop", transport=queue, flush_seconds=60, thin_above=1.0) as client:
        for index in range(BATCHES * 25 + 100):
            client.record(input=str(index), output="x")
        assert client.flush(30)
        stats = client.stats()
    assert stats.thinned == 0
    assert stats.dropped == {"queue_full": 100}
