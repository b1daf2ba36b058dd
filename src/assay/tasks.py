"""The only module that knows Celery: the app, its tasks and the worker's life (`ferry` knows its RabbitMQ).

A Celery message here is a doorbell that carries a batch id. What must not be lost is in Redis under `assay.queue`, so
Celery's own delivery may fail in any way it likes: the sweep rings again.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import redis
from amqp.exceptions import AMQPError
from celery import Celery, signals
from celery.beat import Scheduler, Service
from celery.exceptions import CPendingDeprecationWarning
from celery.schedules import schedule
from kombu.exceptions import OperationalError
from kombu.transport.redis import Channel, Transport

from assay import logs
from assay.connections import connect, connection_pool, parse
from assay.errors import AssayError, QueueError
from assay.ferry import Ferry, broker_options
from assay.queue import CHORE_TASK, TASK, is_doorbell, ragas_bells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.chores import Chore
    from assay.queue import Queue
    from assay.settings import Settings
    from assay.worker import Worker

_log = logging.getLogger(__name__)


def chore_queue(bells: str) -> str:
    """Where chores are rung for: apart from the doorbells, so that a backlog of records does not hold them up."""
    return f"{bells}.chores"


def doorbell_lists(settings: Settings) -> list[str]:
    """The lists whose doorbells a worker on these settings answers."""
    lists = [] if settings.ragas == "only" else [settings.queue]
    return [*lists, ragas_bells(settings.queue)] if settings.serves_ragas else lists


def build_app(settings: Settings, worker: Worker, queue: Queue, chores: Sequence[Chore] = ()) -> Celery:
    """A Celery app that consumes the `doorbell_lists`, where records are rung for, and a `chore_queue` beside each."""
    app = _connected(settings, queue)
    app.conf.beat_schedule = {chore.name: _ring(settings, chore) for chore in chores}
    by_name = {chore.name: chore for chore in chores}

    @app.task(name=TASK, shared=False, acks_late=True, reject_on_worker_lost=True)
    def score_batch(batch_id: str) -> None:
        worker.work(batch_id)

    @app.task(name=CHORE_TASK, shared=False, acks_late=False)
    def do_chore(name: str) -> None:
        # Of another version of assay, while one takes over from the other: its own workers do it.
        if (chore := by_name.get(name)) is not None:
            _do(chore, settings)

    return app


def _ring(settings: Settings, chore: Chore) -> dict[str, Any]:
    return {
        "task": CHORE_TASK,
        "args": (chore.name,),
        "schedule": schedule(chore.every_seconds),
        "options": {
            "queue": chore_queue(ragas_bells(settings.queue) if chore.ragas else settings.queue),
            "expires": max(chore.every_seconds, 10.0),
        },
        # At once, not after a whole period: a worker may not live that long. The lock outlives it.
        "last_run_at": datetime.now(UTC) - timedelta(seconds=chore.every_seconds),
    }


def _do(chore: Chore, settings: Settings) -> None:
    """Do a chore, unless a worker has done it within the time that it is due in."""
    try:
        with connect(settings.queue_url, timeout_seconds=5.0) as client:
            # A little less than the time between two rings: clocks do not beat alike.
            held = int(chore.every_seconds * 900)
            if not client.set(f"assay:{settings.queue}:chore:{chore.name}", socket.gethostname(), nx=True, px=held):
                return
        chore.run()
    except (AssayError, redis.RedisError) as error:
        _log.warning("a chore waits", extra={"chore": chore.name, "error": str(error)})


def _connected(settings: Settings, queue: Queue | None = None) -> Celery:
    """A Celery app on the broker, without tasks."""
    if settings.broker_url is not None:
        url, tls = broker_options(settings.broker_url.get_secret_value())
        app = Celery("assay", broker=url, set_as_current=False)
        app.conf.update(_configuration(settings))
        app.conf.broker_transport_options = {"confirm_publish": True}
        if tls:
            app.conf.broker_use_ssl = tls
        return app
    # The URL only says what to call the server, for the transport makes its connections of the real one.
    app = Celery("assay", broker=parse(settings.queue_url).shown, set_as_current=False)
    app.conf.update(_configuration(settings))
    app.conf.broker_transport = _transport(settings.queue_url, queue)
    return app


def _transport(url: str, queue: Queue | None) -> type[Transport]:
    """kombu's Redis transport, over our connections: sentinels, TLS and sockets are the same for all of assay.

    What is no doorbell is put aside on the way: kombu's own would end the worker over it.
    """
    database = parse(url).database

    class Client(redis.Redis):
        def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
            reply = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
            if command_name == "BRPOP" and queue is not None and reply and not is_doorbell(reply[1]):
                _log.warning("not a doorbell: put aside", extra={"bytes": len(reply[1])})
                queue.keep_unreadable(reply[1])
                return None  # as if nothing had come in time
            return reply

    class DoorbellChannel(Channel):
        _shared: Client | None = None

        def _get_client(self) -> type[Client]:
            return Client

        def _get_pool(self, asynchronous: bool = False) -> redis.ConnectionPool:
            self.keyprefix_fanout = self.keyprefix_fanout.format(db=database)
            pool = connection_pool(
                url,
                timeout_seconds=self.socket_connect_timeout or 5.0,
                socket_timeout=self.socket_timeout,
                health_check_interval=self.health_check_interval,
                max_connections=self.max_connections,
            )
            if asynchronous:
                pool.connection_class = _told_of_its_end(pool.connection_class, self)
            return pool

        def _create_client(self, asynchronous: bool = False) -> Client:
            if asynchronous:
                return cast("Client", super()._create_client(asynchronous=True))  # type: ignore[misc]
            # kombu makes one for every message that comes and for every one that is done with. It is but a pool and a
            # table, which takes longer to fill than the message.
            if self._shared is None or self._shared.connection_pool is not self.pool:
                self._shared = cast("Client", super()._create_client())  # type: ignore[misc]
            return self._shared

    class DoorbellTransport(Transport):
        Channel = DoorbellChannel

    return DoorbellTransport


def _told_of_its_end(connection_class: type[Any], channel: Any) -> type[Any]:
    """Connections that the channel waits on: its poller must forget the socket of one that is closed."""

    class Connection(connection_class):  # type: ignore[misc]
        def disconnect(self, *args: Any, **kwargs: Any) -> None:
            super().disconnect(*args, **kwargs)
            if channel._registered:
                channel._on_connection_disconnect(self)

    return Connection


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        "task_default_queue": settings.queue,
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_serializer": "json",
        "result_accept_content": ["json"],
        "event_serializer": "json",
        "task_ignore_result": True,
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
        "worker_enable_remote_control": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # After a lost connection Celery would raise the count again from the threads of the pool, which then read
        # from RabbitMQ's socket beside the main thread: both wait for ever for what the other took.
        "worker_enable_prefetch_count_reduction": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_pool_limit": 4,
        "broker_transport_options": {
            # A batch's lease is in Redis beside it; an unacknowledged doorbell that comes back later is harmless.
            "visibility_timeout": 3600,
            "socket_timeout": 15.0,
            "socket_connect_timeout": 5.0,
            "health_check_interval": 10,
        },
        "timezone": "UTC",
    }


def run(app: Celery, settings: Settings, worker: Worker, queue: Queue) -> int:
    """Consume until SIGTERM or SIGINT; returns the exit code. The first signal finishes what is in flight."""
    lists = doorbell_lists(settings)
    # Whoever answers any doorbell does the chores that need nothing.
    chores = {chore_queue(settings.queue), *(chore_queue(bells) for bells in lists)}
    ferries = []
    if settings.broker_url is not None:
        ferries = [
            Ferry(queue, app.connection_for_write, app.amqp.queues[bells], ragas=bells != settings.queue)
            for bells in lists
        ]
    signals.setup_logging.connect(lambda **_: logs.configure(settings), weak=False)
    signals.worker_ready.connect(lambda **_: _ready(settings), weak=False)
    signals.worker_shutting_down.connect(lambda **_: worker.begin_stop(), weak=False)
    clock = Service(app, max_interval=5, scheduler_cls=Scheduler)
    worker.start()
    for ferry in ferries:
        ferry.start()
    threading.Thread(target=clock.start, name="assay-clock", daemon=True).start()
    try:
        consumer = app.Worker(
            # Two workers on one machine must not have one name.
            hostname=f"assay-{os.getpid()}@{socket.gethostname()}",
            pool="threads",
            concurrency=settings.concurrency,
            queues=[*lists, *sorted(chores)],
            loglevel=settings.log_level.upper(),
            without_gossip=True,
            without_mingle=True,
            quiet=True,
        )
        consumer.start()
        return int(consumer.exitcode or 0)
    finally:
        clock.stop()
        for ferry in ferries:
            ferry.stop()
        worker.stop()


def _ready(settings: Settings) -> None:
    # At every lost connection it says what a setting will default to in Celery 6; we set it ourselves.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    _log.info("worker ready", extra={"queue": ", ".join(doorbell_lists(settings))})


class Workers(NamedTuple):
    """Names of the workers that answer: those that take what apps enqueue, and those that judge what ragas is to."""

    ordinary: list[str]
    ragas: list[str]


def ping_workers(settings: Settings, *, timeout_seconds: float = 1.0) -> Workers:
    """The workers of this queue that answer in time; those of other queues on the same broker are not among them.

    Raises:
        QueueError: the broker is away.
    """
    with _connected(settings) as app:
        app.conf.broker_transport_options |= {"max_retries": 1}
        try:
            answers = app.control.inspect(timeout=timeout_seconds).active_queues()
        except (OperationalError, AMQPError, OSError, redis.RedisError) as error:
            broker = "Redis" if settings.broker_url is None else "RabbitMQ"
            raise QueueError(f"cannot ask for workers: {broker} is away: {type(error).__name__}") from error
    consumed = {name: {queue["name"] for queue in queues} for name, queues in sorted((answers or {}).items())}
    ordinary, ragas = (
        [name for name, queues in consumed.items() if bells in queues]
        for bells in (settings.queue, ragas_bells(settings.queue))
    )
    return Workers(ordinary, ragas)
