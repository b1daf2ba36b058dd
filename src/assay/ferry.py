"""RabbitMQ as the broker, for those who have it: it carries the doorbells, and Redis keeps the batches.

The app's client knows Redis alone and leaves each doorbell on the broker's list there. A worker's ferry takes it from
the list and publishes it to RabbitMQ, where the workers consume. Whatever is lost on the way, or in RabbitMQ, is
harmless: the batch is in Redis, and the sweep rings again. So nothing here must be exact, but two bounds must hold.
RabbitMQ never holds many doorbells, for the sweep judges by the list of Redis whether one was lost, and would ring for
a long backlog over and over if the list were empty; and nothing is taken from the list while RabbitMQ is away.
"""

from __future__ import annotations

import base64
import json
import logging
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit

from amqp.exceptions import AMQPError
from kombu.exceptions import OperationalError

from assay.errors import QueueError, SettingsError
from assay.queue import is_doorbell

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Connection
    from kombu import Queue as BrokerQueue

    from assay.queue import Queue

_log = logging.getLogger(__name__)

#: While so many doorbells wait in RabbitMQ, no more are brought there.
_MOST_WAITING: Final = 200
_TAKEN_AT_ONCE: Final = 50
_FULL_PAUSE_SECONDS: Final = 0.1
_AWAY_PAUSE_SECONDS: Final = 1.0
_CONFIRM_SECONDS: Final = 10.0
_CERT_REQS: Final = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_FILES: Final = {"ssl_ca_certs": "ca_certs", "ssl_certfile": "certfile", "ssl_keyfile": "keyfile"}


def broker_options(url: str) -> tuple[str, dict[str, Any]]:
    """The URL without its options, and what Celery calls `broker_use_ssl`; empty without TLS.

    The options are those of a Redis URL: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs`.

    Raises:
        SettingsError: one of them is wrong, or unknown.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    plain = parts._replace(query="").geturl()
    if parts.scheme != "amqps":
        if options:
            raise SettingsError("ASSAY_BROKER_URL: options in it are for amqps:// alone")
        return plain, {}
    # With a host name the certificate is checked for it.
    found: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": parts.hostname}
    for name, value in options.items():
        if name == "ssl_cert_reqs" and value in _CERT_REQS:
            found["cert_reqs"] = _CERT_REQS[value]
        elif name in _FILES:
            found[_FILES[name]] = value
        else:
            raise SettingsError(f"ASSAY_BROKER_URL: option {name}: known are ssl_cert_reqs and {', '.join(_FILES)}")
    if found["cert_reqs"] == ssl.CERT_NONE:
        found["server_hostname"] = None
    return plain, found


class Ferry:
    """Brings doorbells from the list of Redis to RabbitMQ, on a thread of its own. Any number may run at once.

    Args:
        queue: whose doorbells.
        connect: makes a connection to the broker.
        target: the broker's queue, as those who consume it declare it.
        ragas: the doorbells are those for workers that have ragas.
    """

    def __init__(
        self, queue: Queue, connect: Callable[[], Connection], target: BrokerQueue, *, ragas: bool = False
    ) -> None:
        self._queue = queue
        self._ragas = ragas
        self._connect = connect
        self._target = target
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="assay-ferry", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was taken is published or put back."""
        self._stopping.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        told = 0.0
        while not self._stopping.is_set():
            try:
                with self._connect() as connection:
                    self._carry(connection)
            except (OperationalError, AMQPError, OSError, QueueError) as error:
                if time.monotonic() - told >= 60:
                    told = time.monotonic()
                    _log.warning("RabbitMQ or Redis is away", extra={"error": str(error) or type(error).__name__})
                self._stopping.wait(_AWAY_PAUSE_SECONDS)
            except Exception:  # noqa: BLE001 - the thread must live on
                _log.exception("the ferry failed")
                self._stopping.wait(_AWAY_PAUSE_SECONDS)

    def _carry(self, connection: Connection) -> None:
        channel: Any = connection.channel()
        self._target.bind(channel).declare()
        while not self._stopping.is_set():
            # Of a broker that is away, it raises before anything is taken.
            there = channel.queue_declare(queue=self._target.name, passive=True)
            if there.message_count >= _MOST_WAITING:
                self._stopping.wait(_FULL_PAUSE_SECONDS)
                continue
            self._bring(channel, self._queue.take_bells(_TAKEN_AT_ONCE, wait_seconds=1.0, ragas=self._ragas))

    def _bring(self, channel: Any, bells: list[bytes]) -> None:
        left = list(bells)
        try:
            while left:
                if is_doorbell(left[0]):
                    _publish(channel, left[0], self._target.name)
                else:
                    self._queue.keep_unreadable(left[0])
                left.pop(0)
        finally:
            if left:
                with suppress(QueueError):  # else the sweep rings again
                    self._queue.put_back_bells(left, ragas=self._ragas)


def _publish(channel: Any, bell: bytes, name: str) -> None:
    """One doorbell, out of the envelope of kombu's Redis transport and into an AMQP message; waits for the broker."""
    envelope = json.loads(bell)
    properties = envelope["properties"]
    body = envelope["body"]
    message = channel.prepare_message(
        base64.b64decode(body) if properties.get("body_encoding") == "base64" else body,
        content_type=envelope["content-type"],
        content_encoding=envelope["content-encoding"],
        headers=envelope["headers"],
        properties={"correlation_id": properties["correlation_id"], "delivery_mode": 1},
    )
    channel.basic_publish_confirm(message, exchange="", routing_key=name, confirm_timeout=_CONFIRM_SECONDS)
