"""Chores on a real Redis: rung by the clock of every worker, done by one of them at a time."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery.beat import Scheduler, Service
from celery.contrib.testing.worker import start_worker

from assay import tasks
from assay.chores import Chore
from assay.errors import StoreError
from assay.queue import CHORE_TASK, Queue
from assay.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from assay.embedded import RedisServer

pytestmark = pytest.mark.integration


class _NoWorker:
    def work(self, batch_id: str) -> None:
        raise AssertionError(f"no batch was enqueued, yet {batch_id} was rung for")


@pytest.fixture
def running(redis_server: RedisServer) -> Iterator[Callable[..., Any]]:
    """Starts a worker with its clock, of these chores, on one Redis; returns its Celery app."""
    with ExitStack() as stack:

        def start(*chores: Chore, name: str = "q", clocks: int = 1) -> Any:
            settings = load_settings(redis_url=redis_server.url, queue=name)
            queue = Queue.from_url(redis_server.url, name)
            stack.callback(queue.close)
            app = tasks.build_app(settings, _NoWorker(), queue, chores)  # type: ignore[arg-type]
            queues = [name, tasks.chore_queue(name)]
            app.conf.worker_hijack_root_logger = False
            options = {"pool": "threads", "concurrency": 4, "perform_ping_check": False, "loglevel": "WARNING"}
            stack.enter_context(start_worker(app, queues=queues, **options))
            for _ in range(clocks):
                clock = Service(app, max_interval=1, scheduler_cls=Scheduler)
                threading.Thread(target=clock.start, daemon=True).start()
                stack.callback(clock.stop)
            return app

        yield start


def _wait(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_chore_is_done_again_and_again(running: Callable[..., Any]) -> None:
    often: list[float] = []
    running(Chore("often", 1.0, lambda: often.append(time.monotonic())))
    assert _wait(lambda: len(often) >= 3)


def test_a_chore_that_is_seldom_due_is_done_soon_after_the_start_and_once(running: Callable[..., Any]) -> None:
    done: list[int] = []
    running(Chore("seldom", 3600.0, lambda: done.append(1)), clocks=2)
    assert _wait(lambda: len(done) >= 1)
    time.sleep(2)
    assert done == [1]


def test_rung_for_by_two_clocks_it_is_done_once(running: Callable[..., Any]) -> None:
    done: list[float] = []
    started = time.monotonic()
    running(Chore("shared", 2.0, lambda: done.append(time.monotonic())), clocks=2)
    assert _wait(lambda: len(done) >= 3)
    # Each turn by both clocks would be six in the same time.
    assert len(done) <= (time.monotonic() - started) / 1.8 + 1


def test_a_chore_that_fails_has_its_next_turn(running: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def fail() -> None:
        tried.append(1)
        raise StoreError("the database is away")

    running(Chore("failing", 1.0, fail))
    assert _wait(lambda: len(tried) >= 2)
    assert any(
        record.message == "a chore waits" and record.error == "the database is away" for record in caplog.records
    )  # type: ignore[attr-defined]


def test_a_chore_of_another_version_is_passed_over(running: Callable[..., Any]) -> None:
    done: list[int] = []
    app = running(Chore("known", 1.0, lambda: done.append(1)))
    app.send_task(CHORE_TASK, ["unheard of"], queue=tasks.chore_queue("q"))
    assert _wait(lambda: len(done) >= 2)


def test_a_chore_for_ragas_is_rung_for_on_workers_that_have_it(running: Callable[..., Any], redis_server: Any) -> None:
    done: list[str] = []
    running(
        Chore("plain", 1.0, lambda: done.append("plain")), Chore("ragas", 1.0, lambda: done.append("r"), ragas=True)
    )
    assert _wait(lambda: done.count("plain") >= 2)
    assert "r" not in done, "this worker answers for the ordinary ones alone"
    with redis.Redis.from_url(redis_server.url) as client:
        assert _wait(lambda: client.llen(tasks.chore_queue("q.ragas")) > 0)


def test_more_often_than_the_clock_rings_is_refused() -> None:
    with pytest.raises(ValueError, match="more often than the clock can ring"):
        Chore("restless", 0.5, lambda: None)
