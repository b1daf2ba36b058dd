"""The HTTP side of the time series: `/metrics` and `/healthz`, on the standard library's WSGI server.

A fixed number of threads, a bounded queue before them, a deadline for every connection, and one read of the store for
all scrapes of the same second: however many clients there are, and however slow, the load stays bounded.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import queue
import re
import socket
import threading
import time
from http import HTTPStatus
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Protocol, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from assay.errors import SettingsError
from assay.listener import SERVER_NAME, Guard
from assay.metrics import encode, wants_openmetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from assay.metrics import Family, ScoreCollector, WorkerMetrics

_log = logging.getLogger(__name__)

#: Threads that answer, connections that may wait for one, and how long a connection may last in all.
_THREADS = 8
_WAITING = 64
_CONNECTION_SECONDS = 30.0
#: Bound of one read from, or write to, a client.
_SOCKET_SECONDS = 5.0
#: Scrapes within this time of each other share one read.
_CACHE_SECONDS = 1.0
#: How long closing waits for what is being answered.
_CLOSE_SECONDS = 1.0

_QUERY = re.compile(r"\?\S*")
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


class Source(Protocol):
    """Where the metrics come from: `assay.metrics.ScoreCollector` and `WorkerMetrics` are ones."""

    def collect(self) -> Iterable[Family]:
        """All metric families as of now. What cannot be read is left out, and said so by a metric."""

    def health(self) -> Mapping[str, bool]:
        """Whether each part that the source depends on answers, by name."""


def serve(
    collector: ScoreCollector, *, host: str = "127.0.0.1", port: int = 9464, guard: Guard | None = None
) -> MetricsServer:
    """Serve the exporter's time series on a thread of its own; port 0 takes a free one.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    return MetricsServer(make_app(collector, guard=guard), host=host, port=port, guard=guard)


def serve_worker(
    metrics: WorkerMetrics, *, host: str = "127.0.0.1", port: int = 9465, guard: Guard | None = None
) -> MetricsServer:
    """Serve what one worker process measures of itself, as `serve` does.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    return MetricsServer(make_app(metrics, guard=guard), host=host, port=port, guard=guard)


def make_app(
    source: Source, *, clock: Callable[[], float] = time.monotonic, guard: Guard | None = None
) -> WSGIApplication:
    """A WSGI app with `/metrics` (OpenMetrics or Prometheus text, as Accept asks) and `/healthz` (200 or 503, JSON).

    Only GET and HEAD. Thread-safe. Without the guard's token `/metrics` is 401, and `/healthz` says no more than
    whether all is well, as probes seldom have a token.
    """
    scrapes, health, gate = _Scrapes(source, clock), _Health(source, clock), guard or Guard()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status, headers, body = _answer(scrapes, health, gate, environ)
        start_response(
            f"{status.value} {status.phrase}",
            [
                *headers,
                ("Content-Length", str(len(body))),
                ("X-Content-Type-Options", "nosniff"),
                ("Server", SERVER_NAME),
            ],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return app


_Answer = tuple[HTTPStatus, list[tuple[str, str]], bytes]


def _answer(scrapes: _Scrapes, health: _Health, guard: Guard, environ: WSGIEnvironment) -> _Answer:
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return _text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD\n", ("Allow", "GET, HEAD"))
    path = environ.get("PATH_INFO", "")
    admitted = guard.admits(environ.get("HTTP_AUTHORIZATION"))
    try:
        if path == "/metrics" and not admitted:
            return _text(
                HTTPStatus.UNAUTHORIZED, "the bearer token is missing or wrong\n", ("WWW-Authenticate", "Bearer")
            )
        if path == "/metrics":
            accepts_gzip = "gzip" in environ.get("HTTP_ACCEPT_ENCODING", "").lower()
            body, content_type = scrapes.get(environ.get("HTTP_ACCEPT", ""), compress=accepts_gzip)
            headers = [("Content-Type", content_type), ("Vary", "Accept, Accept-Encoding")]
            return HTTPStatus.OK, [*headers, ("Content-Encoding", "gzip")] if accepts_gzip else headers, body
        if path == "/healthz":
            parts = health.get()
            ok = all(parts.values())
            answer = {"status": "ok" if ok else "degraded"}
            if admitted:
                answer |= {name: "ok" if up else "away" for name, up in parts.items()}
            status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
            return status, [("Content-Type", "application/json")], json.dumps(answer).encode() + b"\n"
    except Exception:  # noqa: BLE001 - the boundary: a bug must not show a client its traceback
        _log.exception("%s failed", path)
        return _text(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error, see the log of this process\n")
    if path == "/":
        return _text(HTTPStatus.OK, "assay: /metrics and /healthz\n")
    return _text(HTTPStatus.NOT_FOUND, "not found: try /metrics or /healthz\n")


def _text(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> _Answer:
    return status, [("Content-Type", "text/plain; charset=utf-8"), *headers], text.encode()


class _Scrapes:
    """One collection for all scrapes within `_CACHE_SECONDS`, encoded at most once for each format."""

    def __init__(self, source: Source, clock: Callable[[], float]) -> None:
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._fresh_until = float("-inf")
        self._families: list[Family] = []
        self._bodies: dict[tuple[bool, bool], tuple[bytes, str]] = {}

    def get(self, accept: str, *, compress: bool) -> tuple[bytes, str]:
        """Body and content type."""
        openmetrics = wants_openmetrics(accept)
        # Held while reading: whoever comes meanwhile waits for this read and shares it.
        with self._lock:
            if self._clock() >= self._fresh_until:
                self._fresh_until = float("-inf")
                self._families = list(self._source.collect())
                self._bodies = {}
                # From the end of the read: a slow one is not repeated at once.
                self._fresh_until = self._clock() + _CACHE_SECONDS
            if (openmetrics, compress) not in self._bodies:
                body, content_type = encode(self._families, openmetrics=openmetrics)
                if compress:
                    body = gzip.compress(body, compresslevel=1, mtime=0)
                self._bodies[openmetrics, compress] = body, content_type
            return self._bodies[openmetrics, compress]


class _Health:
    """One check for all probes within `_CACHE_SECONDS`."""

    def __init__(self, source: Source, clock: Callable[[], float]) -> None:
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._fresh_until = float("-inf")
        self._parts: Mapping[str, bool] = {}

    def get(self) -> Mapping[str, bool]:
        with self._lock:
            if self._clock() >= self._fresh_until:
                self._parts = self._source.health()
                self._fresh_until = self._clock() + _CACHE_SECONDS
            return self._parts


class _Handler(WSGIRequestHandler):
    """One request, then the connection closes (HTTP/1.0)."""

    timeout = _SOCKET_SECONDS

    def version_string(self) -> str:
        """The `Server` header of what is refused before the app sees it."""
        return SERVER_NAME

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the standard library's
        # Without the query: some put their token there, where it does not belong.
        _log.debug(format, *(_QUERY.sub("?…", arg) if isinstance(arg, str) else arg for arg in args))

    def get_stderr(self) -> Any:
        # The app logs its own errors; what wsgiref would print here is about clients that went away.
        return io.StringIO()


class _Server(WSGIServer):
    """A WSGI server with `threads` threads; more than `waiting` connections without one are turned away with 503.

    So are those of an address that has more than its share.
    """

    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], *, threads: int, waiting: int, connection_seconds: float, guard: Guard
    ) -> None:
        # Brackets a colon only in IPv6 addresses.
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._connection_seconds = connection_seconds
        self._waiting: queue.Queue[tuple[Any, Any] | None] = queue.Queue(maxsize=waiting)
        self._guard, self._peers = guard, guard.peers()
        self._open: dict[Any, tuple[float, str]] = {}
        self._open_lock = threading.Lock()
        self._workers: list[threading.Thread] = []
        super().__init__(address, _Handler)
        self._workers = [
            threading.Thread(target=self._work, name=f"assay-http-{index}", daemon=True) for index in range(threads)
        ]
        for worker in self._workers:
            worker.start()

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks the resolver for this machine's full name, which can hang.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        request, address = super().get_request()
        if self._guard.certificate is not None:
            # The handshake comes with the first read, on a thread of its own and within its time.
            request = self._guard.certificate.context().wrap_socket(
                request, server_side=True, do_handshake_on_connect=False
            )
        return request, address

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._peers.enter(client_address[0]):
            self._turn_away(request)
            return
        with self._open_lock:
            self._open[request] = time.monotonic(), client_address[0]
        try:
            self._waiting.put_nowait((request, client_address))
        except queue.Full:
            self._turn_away(request)

    def _turn_away(self, request: Any) -> None:
        # Over TLS there is nobody to tell before the handshake, which this thread has no time for.
        if self._guard.certificate is None:
            try:
                request.settimeout(0.1)
                request.sendall(_BUSY)
            except OSError:
                _log.debug("turned away a client that had gone")
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            known = self._open.pop(request, None)
        if known is not None:
            self._peers.leave(known[1])
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called by `serve_forever` at each poll: a client that dribbles must not hold a thread for ever."""
        limit = time.monotonic() - self._connection_seconds
        with self._open_lock:
            late = [request for request, (since, _) in self._open.items() if since < limit]
            for request in late:
                try:
                    # Of the connection below TLS: a thread may be reading from the layer above.
                    socket.socket.shutdown(request, socket.SHUT_RDWR)
                except OSError:
                    _log.debug("a late connection had closed already")

    def server_close(self) -> None:
        super().server_close()
        with contextlib.suppress(queue.Empty):
            while (item := self._waiting.get_nowait()) is not None:
                self.shutdown_request(item[0])
        for _ in self._workers:
            self._waiting.put(None)
        # The threads are daemons: one that is busy for longer does not keep the process.
        limit = time.monotonic() + _CLOSE_SECONDS
        for worker in self._workers:
            worker.join(timeout=max(0.0, limit - time.monotonic()))

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            request, client_address = item
            try:
                self.finish_request(request, client_address)
            except OSError as error:
                _log.debug("client went away: %s", error)
            except Exception:  # noqa: BLE001 - the thread is one of a fixed few: whatever a request does, it lives on
                _log.exception("request failed")
            finally:
                self.shutdown_request(request)


class MetricsServer:
    """A running server; `close` stops it. Also a context manager."""

    def __init__(
        self,
        app: WSGIApplication,
        *,
        host: str,
        port: int,
        threads: int = _THREADS,
        waiting: int = _WAITING,
        connection_seconds: float = _CONNECTION_SECONDS,
        guard: Guard | None = None,
    ) -> None:
        self._scheme = (guard or Guard()).scheme
        try:
            self._server = _Server(
                (host, port),
                threads=threads,
                waiting=waiting,
                connection_seconds=connection_seconds,
                guard=guard or Guard(),
            )
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such port"
            raise SettingsError(f"cannot listen on {host}:{port}: {reason}; choose another address or port") from None
        self._server.set_app(app)
        # The poll interval is also how long `close` may take.
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="assay-http", daemon=True
        )
        self._thread.start()

    @property
    def host(self) -> str:
        """Address it listens on."""
        return self._server.server_name

    @property
    def port(self) -> int:
        """Port it listens on."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """`http://host:port` (or https), without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{self.port}"

    def close(self) -> None:
        """Stop listening and answer no more; waits a moment for what is being answered. May be called twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
