"""The OTLP/HTTP receiver: spans of applications in any language in, records out.

    requests     at most so many at once, each bounded in time and size, decompressed too
    traces       spans wait until their trace is whole, bounded in number and bytes; no room: 503 and Retry-After
    clients      one `assay.Client` for each app, which samples, redacts and enqueues

While Redis is away the clients fill, together to a bound in number and bytes, then the traces, then senders are asked
to come again: nothing grows, and nothing is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientError, web

from assay.errors import SettingsError
from assay.listener import SERVER_NAME, Guard
from assay.otlp import OtlpError, read_logs, read_logs_json, read_traces, read_traces_json, response, status
from assay.spans import DISCRIMINATORS, Span, SpanEvent, app_of, interactions
from assay.traces import Traces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from assay.client import Client
    from assay.otlp import Request

_log = logging.getLogger(__name__)

_PROTOBUF, _JSON = "application/x-protobuf", "application/json"
#: How long a body may take to come, and how many requests are read at once.
_BODY_SECONDS: Final = 10.0
#: How long a connection may take to its first whole request head: aiohttp bounds only the pauses between requests.
_HEAD_SECONDS: Final = 10.0
_MOST_REQUESTS: Final = 32
#: Threads that decode.
_THREADS: Final = 2
_RETRY_SECONDS: Final = 5
#: How often the thread looks for traces that are whole.
_LOOK_SECONDS: Final = 0.25
#: Clients; what comes of further apps is of the app `other`.
_MOST_APPS: Final = 50
#: Records that may wait in the clients before traces wait instead.
_MOST_BUFFERED: Final = 2_000
_UNAVAILABLE, _INVALID, _UNAUTHENTICATED = 14, 3, 16
_GZIP: Final = 16 + zlib.MAX_WBITS
#: Of one body: a member costs twenty bytes on the wire, and the copy of what is behind it.
_MOST_MEMBERS: Final = 1_000
#: What a resource may weigh to be shared by the spans of its request.
_SMALL_RESOURCE: Final = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorLimits:
    """The bounds of a collector."""

    #: of one request's body, before and after decompression
    body_bytes: int = 16_000_000
    #: of all spans that wait for their trace, about
    waiting_bytes: int = 256_000_000
    waiting_spans: int = 100_000
    #: of all records that wait in the clients, about; each client has room for them and a record more
    buffered_bytes: int = 60_000_000
    #: how long a trace is waited for since its latest span came; after its root has come, `settle_seconds`
    wait_seconds: float = 30.0
    settle_seconds: float = 6.0
    longest_seconds: float = 300.0


class Collector:
    """Receives OTLP over HTTP on threads of its own; use it as a context manager, or `start` and `close` it.

    Args:
        make_client: makes the client of an app; it is closed with the collector.
        app: the app of all records; None takes each resource's `service.name`.
        guard: what senders must show and speak.
        scrape_guard: what those who read `/metrics`, or all of `/healthz`, must show.
        host, port: where to listen; port 0 takes a free one.
        metrics: makes the body and content type of `/metrics` of `counts()` and an Accept header.
    """

    def __init__(
        self,
        make_client: Callable[[str], Client],
        *,
        app: str | None = None,
        guard: Guard | None = None,
        scrape_guard: Guard | None = None,
        host: str = "127.0.0.1",
        port: int = 4318,
        limits: CollectorLimits | None = None,
        metrics: Callable[[dict[str, Any], str], tuple[bytes, str]] | None = None,
    ) -> None:
        self._limits = limits or CollectorLimits()
        self._guard, self._scrape_guard = guard or Guard(), scrape_guard or Guard()
        self._peers = self._guard.peers()
        self._metrics = metrics
        self._host, self.port = host, port
        self._intake = _Intake(make_client, app, self._limits)
        self._reading = 0
        self.requests: Counter[str] = Counter()

    # -- life

    def start(self) -> Self:
        """Listen.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        ready, failure = threading.Event(), list[BaseException]()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="assay-collect")

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            try:
                self._loop.run_until_complete(self._serve(ready))
            except (OSError, OverflowError) as error:
                failure.append(error)
            finally:
                self._loop.close()
                ready.set()

        self._thread = threading.Thread(target=run, name="assay-collect-http", daemon=True)
        self._thread.start()
        ready.wait()
        if failure:
            self._executor.shutdown()
            reason = getattr(failure[0], "strerror", None) or "no such port"
            raise SettingsError(f"cannot listen on {self._host}:{self.port}: {reason}; choose another address or port")
        self._intake.start()
        return self

    def close(self) -> None:
        """Listen no more, then record and send what is kept. May be called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=15)
            self._executor.shutdown(wait=True)
            self._intake.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """`http://host:port` (or https), without a path."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._guard.scheme}://{host}:{self.port}"

    async def _serve(self, ready: threading.Event) -> None:
        spoke = set[Any]()

        @web.middleware
        async def note(request: web.Request, handler: Any) -> web.StreamResponse:
            spoke.add(request.protocol)
            answer: web.StreamResponse = await handler(request)
            return answer

        async def sign(_: web.Request, answer: web.StreamResponse) -> None:
            answer.headers["Server"] = SERVER_NAME

        app = web.Application(middlewares=[note])
        app.on_response_prepare.append(sign)
        app.router.add_post("/v1/traces", self._receive_traces)
        app.router.add_post("/v1/logs", self._receive_logs)
        app.router.add_get("/healthz", self._health)
        if self._metrics is not None:
            app.router.add_get("/metrics", self._show_metrics)
        runner = web.AppRunner(app, shutdown_timeout=5.0)
        await runner.setup()
        try:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            with socket.create_server((self._host, self.port), family=family, backlog=256) as listening:
                listening.setblocking(False)
                self.port = int(listening.getsockname()[1])
                ready.set()
                assert runner.server is not None  # noqa: S101 - set up above
                silent = asyncio.ensure_future(_close_silent(runner.server, spoke))
                accepting = asyncio.ensure_future(self._accept(listening, runner.server))
                await self._stop.wait()
                silent.cancel()
                accepting.cancel()
        finally:
            await runner.cleanup()

    async def _accept(self, listening: socket.socket, server: web.Server) -> None:
        """Let connections in, as many of one peer as it may have: counted before the handshake, not after it."""
        tasks = set[asyncio.Task[None]]()
        while True:
            try:
                connection, address = await self._loop.sock_accept(listening)
            except OSError as error:
                # No file descriptor is left, for the moment.
                _log.warning("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(0.5)
                continue
            if not self._peers.enter(address[0]):
                self.requests["refused"] += 1
                connection.close()
                continue
            task = self._loop.create_task(self._admit(connection, address[0], server))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _admit(self, connection: socket.socket, peer: str, server: web.Server) -> None:
        certificate = self._guard.certificate
        over_tls: dict[str, Any] = {}
        if certificate is not None:
            over_tls = {"ssl": certificate.context(), "ssl_handshake_timeout": _HEAD_SECONDS}
        # Bodies are decompressed by us, within bounds.
        handler = _Handler(server, loop=self._loop, access_log=None, auto_decompress=False)  # type: ignore[arg-type]
        counted = _Counted(handler, lambda: self._peers.leave(peer))
        try:
            await self._loop.connect_accepted_socket(lambda: counted, connection, **over_tls)
        except OSError as error:
            _log.debug("no handshake: %s", error)
            connection.close()
            counted.left()
        except BaseException:
            connection.close()
            counted.left()
            raise

    # -- requests

    async def _receive_traces(self, request: web.Request) -> web.Response:
        return await self._receive(request, logs=False)

    async def _receive_logs(self, request: web.Request) -> web.Response:
        return await self._receive(request, logs=True)

    async def _receive(self, request: web.Request, *, logs: bool) -> web.Response:
        as_json = request.content_type == _JSON
        outcome, answer = await self._answer(request, as_json=as_json, logs=logs)
        self.requests[outcome] += 1
        return answer

    async def _answer(self, request: web.Request, *, as_json: bool, logs: bool) -> tuple[str, web.Response]:
        if not self._guard.admits(request.headers.get("authorization")):
            return "unauthorized", _error(401, "the bearer token is missing or wrong", as_json, code=_UNAUTHENTICATED)
        if request.content_type not in (_PROTOBUF, _JSON):
            return "bad", _error(415, f"content-type must be {_PROTOBUF} or {_JSON}", as_json)
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding not in ("gzip", "identity", ""):
            return "bad", _error(415, "content-encoding must be gzip or none", as_json)
        most = self._limits.body_bytes
        if (request.content_length or 0) > most:
            return "too_large", _error(413, f"more than {most:,} bytes: send smaller batches", as_json)
        if self._reading >= _MOST_REQUESTS:
            return "busy", _error(429, "too many requests at once", as_json, code=_UNAVAILABLE, retry=1)
        if not self._intake.has_room(request.content_length or 0):
            why = "no room for more spans: is Redis away?"
            return "busy", _error(503, why, as_json, code=_UNAVAILABLE, retry=_RETRY_SECONDS)
        self._reading += 1
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await _read_body(request, most)
            if body is None:
                return "too_large", _error(413, f"more than {most:,} bytes: send smaller batches", as_json)
            work = self._executor
            return await self._loop.run_in_executor(work, self._take, body, encoding == "gzip", as_json, logs)
        except (ConnectionError, ClientError):
            return "bad", _error(400, "the connection was lost", as_json)
        except TimeoutError:
            return "bad", _error(408, f"the body did not come within {_BODY_SECONDS:g} s", as_json)
        finally:
            self._reading -= 1

    def _take(self, body: bytes, packed: bool, as_json: bool, logs: bool) -> tuple[str, web.Response]:
        """Decode a body and keep what it brings. Runs on a thread."""
        try:
            if packed:
                unpacked = gunzip(body, self._limits.body_bytes)
                if unpacked is None:
                    why = f"more than {self._limits.body_bytes:,} bytes when decompressed: send smaller batches"
                    return "too_large", _error(413, why, as_json)
                body = unpacked
            if logs:
                read = (read_logs_json if as_json else read_logs)(body)
            else:
                read = (read_traces_json if as_json else read_traces)(body)
        except OtlpError as error:
            return "bad", _error(400, str(error), as_json)
        except Exception:  # noqa: BLE001 - whatever a stranger sends, the next request is answered
            _log.exception("a request could not be read")
            return "bad", _error(400, "the body could not be read", as_json)
        total = len(read.spans) + len(read.events)
        kept = self._intake.keep(read)
        if total and not kept:
            why = "no room for more spans: is Redis away?"
            return "busy", _error(503, why, as_json, code=_UNAVAILABLE, retry=_RETRY_SECONDS)
        if total > kept:
            read.reject("no room for more spans", total - kept)
        answer = response(read.rejected, read.reason, as_json=as_json, logs=logs)
        outcome = "partial" if read.rejected else "ok"
        return outcome, web.Response(body=answer, content_type=_JSON if as_json else _PROTOBUF)

    async def _health(self, request: web.Request) -> web.Response:
        counts = self.counts()
        if not self._scrape_guard.admits(request.headers.get("authorization")):
            # Names of apps are nobody's business who has no token.
            counts = {"status": counts["status"]}
        return web.json_response(counts, status=200 if self._intake.has_room(0) else 503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        assert self._metrics is not None  # noqa: S101 - the route exists only with it
        if not self._scrape_guard.admits(request.headers.get("authorization")):
            return web.Response(
                status=401, text="the bearer token is missing or wrong\n", headers={"WWW-Authenticate": "Bearer"}
            )
        body, content_type = self._metrics(self.counts(), request.headers.get("accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    def counts(self) -> dict[str, Any]:
        """What became of requests, spans and interactions so far; what waits; the clients' counts by app."""
        return {
            "status": "ok" if self._intake.has_room(0) else "full",
            "requests": dict(self.requests),
            **self._intake.counts(),
        }


class _Handler(web.RequestHandler):
    """One connection; what is no HTTP is refused in a few words, none of which say what runs here."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what failed or could not be read; only the former is worth a line in the log."""
        if status == 500 or request.writer.output_size > 0:
            answer = super().handle_error(request, status, exc, message)
        else:
            answer = web.Response(status=status, text="this is no request that can be read\n")
        answer.headers["Server"] = SERVER_NAME
        answer.force_close()
        return answer


class _Counted(asyncio.Protocol):
    """Hands all that happens on a connection to another protocol, and says once that it is over."""

    def __init__(self, inner: asyncio.Protocol, leave: Callable[[], None]) -> None:
        self._inner = inner
        self._leave: Callable[[], None] | None = leave
        self.data_received = inner.data_received  # type: ignore[method-assign]
        self.eof_received = inner.eof_received  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]
        self.connection_made = inner.connection_made  # type: ignore[method-assign]

    def left(self) -> None:
        if self._leave is not None:
            self._leave()
            self._leave = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.left()
        self._inner.connection_lost(exc)


class _Intake:
    """Keeps spans by trace, and gives the interactions of whole traces to the clients, on a thread of its own."""

    def __init__(self, make_client: Callable[[str], Client], app: str | None, limits: CollectorLimits) -> None:
        self._make_client = make_client
        self._app = app
        self._buffered_bytes = limits.buffered_bytes
        self._traces: Traces[Span | tuple[str, SpanEvent]] = Traces(
            wait_seconds=limits.wait_seconds,
            settle_seconds=limits.settle_seconds,
            longest_seconds=limits.longest_seconds,
            most_items=limits.waiting_spans,
            most_bytes=limits.waiting_bytes,
        )
        self._clients: dict[str, Client] = {}
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="assay-collect-traces", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=30)
        # At once: each may wait for Redis as long as it is allowed to, and whoever stops us does not wait for the sum.
        with ThreadPoolExecutor(max(1, len(self._clients)), thread_name_prefix="assay-collect-close") as pool:
            for _ in pool.map(lambda client: client.close(), self._clients.values()):
                pass

    def has_room(self, size: int) -> bool:
        return self._traces.has_room(size)

    def keep(self, read: Request) -> int:
        """Keep spans and events; how many found room."""
        # Each by what it takes itself: a mean over the request would hide a heavy span among light ones.
        resources: dict[int, int] = {}
        kept = 0
        for span in read.spans:
            wanted = not DISCRIMINATORS.isdisjoint(span.attributes)
            of_resource = resources.get(id(span.resource))
            if of_resource is None:
                of_resource = resources[id(span.resource)] = weight(span.resource)
            if of_resource < _SMALL_RESOURCE:
                of_resource //= len(read.spans)
            size = 500 + of_resource + sys.getsizeof(span.name) + weight(span.attributes)
            size += sum(_weight_of_event(event) for event in span.events)
            kept += self._traces.add(span.trace_id, span, size=size, is_root=span.parent_id is None, is_wanted=wanted)
        for trace_id, span_id, event in read.events:
            kept += self._traces.add(trace_id, (span_id, event), size=400 + _weight_of_event(event), is_wanted=False)
        with self._counting:
            self._counts["spans_kept"] += kept
            self._counts["spans_rejected"] += len(read.spans) + len(read.events) - kept + read.rejected
        return kept

    def counts(self) -> dict[str, Any]:
        clients = {app: client.stats() for app, client in list(self._clients.items())}
        return {
            **{name: count for name, count in self._counts.items() if not name.startswith("skipped_")},
            "skipped": {n.removeprefix("skipped_"): c for n, c in self._counts.items() if n.startswith("skipped_")},
            "waiting_spans": len(self._traces),
            "waiting_bytes": self._traces.bytes,
            "clients": {
                app: {"sampled_out": stats.sampled_out, "sent": stats.sent, "buffered": stats.buffered}
                | {f"dropped_{reason}": count for reason, count in stats.dropped.items()}
                for app, stats in clients.items()
            },
        }

    def _run(self) -> None:
        while True:
            closing = self._closing.wait(_LOOK_SECONDS)
            if not self._is_full() or closing:
                for items in self._traces.due(everything=closing):
                    try:
                        self._convert(items)
                    except Exception:  # noqa: BLE001 - a bug met in one trace must not end the thread
                        _log.exception("a trace was dropped")
            if closing:
                return

    def _is_full(self) -> bool:
        """Whether records have to wait as traces: a client drops what it has no room for."""
        stats = [client.stats() for client in self._clients.values()]
        return (
            sum(each.buffered for each in stats) >= _MOST_BUFFERED
            or sum(each.buffered_bytes for each in stats) >= self._buffered_bytes
        )

    def _convert(self, items: Sequence[Span | tuple[str, SpanEvent]]) -> None:
        found = interactions(joined(items))
        with self._counting:
            self._counts.update({f"skipped_{reason}": count for reason, count in found.skipped.items()})
            self._counts["recorded"] += len(found.interactions)
        for span, fields in found.interactions:
            while self._is_full() and not self._closing.is_set():
                time.sleep(0.05)
            self._client(self._app or app_of(span)).record(**fields)

    def _client(self, app: str) -> Client:
        if app not in self._clients and len(self._clients) >= _MOST_APPS:
            app = "other"
        client = self._clients.get(app)
        if client is None:
            client = self._clients[app] = self._make_client(app)
        return client


def joined(items: Sequence[Span | tuple[str, SpanEvent]]) -> list[Span]:
    """Spans with the events that came apart from them."""
    from dataclasses import replace

    events: dict[str, list[SpanEvent]] = {}
    for item in items:
        if isinstance(item, tuple):
            events.setdefault(item[0], []).append(item[1])
    return [
        replace(item, events=[*item.events, *events[item.span_id]]) if item.span_id in events else item
        for item in items
        if isinstance(item, Span)
    ]


def weight(value: object) -> int:
    """About how many bytes a value of JSON's kinds takes in memory."""
    size = sys.getsizeof(value)
    if isinstance(value, Mapping):
        return size + sum(sys.getsizeof(name) + weight(inner) for name, inner in value.items())
    if isinstance(value, list):
        return size + sum(weight(inner) for inner in value)
    return size


def _weight_of_event(event: SpanEvent) -> int:
    return 100 + sys.getsizeof(event.name) + weight(event.attributes) + weight(event.body)


def gunzip(body: bytes, most: int) -> bytes | None:
    """The decompressed body, of one or more gzip members; None when it is longer than `most` bytes.

    Raises:
        OtlpError: it is not gzip, or torn, or has more than a thousand members.
    """
    out = bytearray()
    members = 0
    try:
        while body:
            members += 1
            if members > _MOST_MEMBERS:
                raise OtlpError(f"more than {_MOST_MEMBERS:,} gzip members")
            member = zlib.decompressobj(_GZIP)
            out += member.decompress(body, most - len(out) + 1)
            if len(out) > most:
                return None
            if not member.eof:
                raise OtlpError("the gzip body is torn")
            body = member.unused_data
    except zlib.error:
        raise OtlpError("the body is not gzip") from None
    return bytes(out)


async def _close_silent(server: web.Server, spoke: set[Any]) -> None:
    """Close connections that send no request: each holds a file descriptor, and those are few."""
    since: dict[Any, float] = {}
    while True:
        await asyncio.sleep(_HEAD_SECONDS / 10)
        open_, now = set(server.connections), time.monotonic()
        spoke &= open_
        since = {connection: since.get(connection, now) for connection in open_ - spoke}
        for connection, began in since.items():
            if now - began > _HEAD_SECONDS:
                connection.force_close()


async def _read_body(request: web.Request, most: int) -> bytes | None:
    """The body as it came; None when it is longer than `most` bytes."""
    body = bytearray()
    async for chunk in request.content.iter_chunked(65_536):
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


def _error(
    http_status: int, message: str, as_json: bool, *, code: int = _INVALID, retry: int | None = None
) -> web.Response:
    headers = {} if retry is None else {"Retry-After": str(retry)}
    if http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        status=http_status,
        body=status(message, as_json=as_json, code=code),
        content_type=_JSON if as_json else _PROTOBUF,
        headers=headers,
    )
