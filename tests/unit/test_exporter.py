"""The HTTP server of the time series: what it answers, and that no client can make it stop answering."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from wsgiref.validate import validator

import pytest
from prometheus_client import Metric

from assay.errors import SettingsError
from assay.exporter import MetricsServer, make_app, serve, serve_worker
from assay.metrics import ScoreCollector, WorkerMetrics
from assay.queue import Queue
from assay.store import Store
from exposition import Exposition

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


class Counted(Metric):
    """A family that counts how often it was encoded."""

    encoded = 0

    def __getattribute__(self, name: str) -> object:
        if name == "documentation":
            Counted.encoded += 1
        return super().__getattribute__(name)


class Source:
    """Metrics that say how often they were read."""

    def __init__(self) -> None:
        self.reads = 0
        self.checks = 0
        self.parts = {"database": True, "redis": True}
        self.error: Exception | None = None
        self.reading = threading.Event()
        self.may_read = threading.Event()
        self.may_read.set()

    def collect(self) -> list[Metric]:
        self.reads += 1
        self.reading.set()
        assert self.may_read.wait(30)
        if self.error is not None:
            raise self.error
        family = Counted("reads", "How often.", "gauge")
        family.add_sample("reads", {}, float(self.reads))
        return [family]

    def health(self) -> dict[str, bool]:
        self.checks += 1
        if self.error is not None:
            raise self.error
        return self.parts


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(source: Source, clock: Clock) -> Iterator[MetricsServer]:
    # The validator fails a request that breaks the WSGI contract.
    with a_server(source, clock) as server:
        yield server


def a_server(source: Source, clock: Callable[[], float] = time.monotonic, **options: float) -> MetricsServer:
    return MetricsServer(validator(make_app(source, clock=clock)), host="127.0.0.1", port=0, **options)  # type: ignore[arg-type]


def ask(
    server: MetricsServer, path: str = "/metrics", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def open_connections(server: MetricsServer) -> int:
    return len(server._server._open)


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


# -- answers


def test_metrics_in_the_format_that_is_asked_for(server: MetricsServer) -> None:
    status, headers, body = ask(server, Accept=OPENMETRICS)
    assert status == 200
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body == b"# HELP reads How often.\n# TYPE reads gauge\nreads 1.0\n# EOF\n"
    status, headers, body = ask(server)
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert body == b"# HELP reads How often.\n# TYPE reads gauge\nreads 1.0\n"
    assert headers["vary"] == "Accept, Accept-Encoding"


def test_gzip_when_it_is_asked_for(server: MetricsServer) -> None:
    _, headers, plain = ask(server)
    assert "content-encoding" not in headers
    _, headers, packed = ask(server, Accept_Encoding="gzip")
    assert headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed) == plain


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/", "/nothing"])
def test_head_is_get_without_the_body(server: MetricsServer, path: str) -> None:
    status, headers, body = ask(server, path)
    assert ask(server, path, "HEAD") == (status, headers | {"date": ask(server, path, "HEAD")[1]["date"]}, b"")
    assert int(headers["content-length"]) == len(body) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_nothing_but_get_and_head(server: MetricsServer, source: Source, method: str) -> None:
    status, headers, _ = ask(server, "/metrics", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert source.reads == 0


@pytest.mark.parametrize("method", ["CONNECT", "BREW"])
def test_methods_that_wsgi_does_not_know(source: Source, method: str) -> None:
    with MetricsServer(make_app(source), host="127.0.0.1", port=0) as server:
        assert ask(server, "/metrics", method)[0] == 405


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/metrics/../etc/passwd", "/%2fmetrics", "/%e9"])
def test_other_paths_are_not_found(server: MetricsServer, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_the_root_says_where_to_go(server: MetricsServer) -> None:
    status, _, body = ask(server, "/")
    assert (status, body) == (200, b"assay: /metrics and /healthz\n")


def test_a_query_changes_nothing(server: MetricsServer) -> None:
    assert ask(server, "/metrics?name[]=other")[2] == ask(server)[2]


def test_healthy(server: MetricsServer) -> None:
    status, headers, body = ask(server, "/healthz")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body) == {"status": "ok", "database": "ok", "redis": "ok"}


def test_not_healthy(server: MetricsServer, source: Source) -> None:
    source.parts["database"] = False
    status, _, body = ask(server, "/healthz")
    assert status == 503
    assert json.loads(body) == {"status": "degraded", "database": "away", "redis": "ok"}
    assert ask(server)[0] == 200, "a scrape still answers"


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_a_bug_is_logged_not_shown(
    server: MetricsServer, source: Source, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    source.error = RuntimeError("secret in the message")
    status, _, body = ask(server, path)
    assert (status, body) == (500, b"internal error, see the log of this process\n")
    (logged,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert logged.exc_info is not None
    source.error = None
    assert ask(server, path)[0] == 200, "an error is not remembered"


# -- the cache


def test_scrapes_of_the_same_second_share_a_read(server: MetricsServer, source: Source, clock: Clock) -> None:
    for _ in range(3):
        assert b"reads 1.0" in ask(server)[2]
        assert b"reads 1.0" in ask(server, Accept=OPENMETRICS)[2]
        assert b"reads 1.0" in gzip.decompress(ask(server, Accept_Encoding="gzip")[2])
    clock.now += 0.99
    assert b"reads 1.0" in ask(server)[2]
    clock.now += 0.01
    assert b"reads 2.0" in ask(server, Accept=OPENMETRICS)[2]
    assert b"reads 2.0" in ask(server)[2]
    assert source.reads == 2


def test_each_format_is_encoded_once(server: MetricsServer) -> None:
    before = Counted.encoded
    for _ in range(3):
        ask(server)
        ask(server, Accept=OPENMETRICS)
    assert Counted.encoded - before == 2


def test_a_stampede_makes_one_read(server: MetricsServer, source: Source) -> None:
    source.may_read.clear()
    with ThreadPoolExecutor(40) as clients:
        answers = [clients.submit(ask, server) for _ in range(40)]
        wait_until(lambda: open_connections(server) == 40)
        source.may_read.set()
        assert {(status, body) for status, _, body in (answer.result() for answer in answers)} == {
            (200, b"# HELP reads How often.\n# TYPE reads gauge\nreads 1.0\n")
        }
    assert source.reads == 1


def test_probes_of_the_same_second_share_a_check(server: MetricsServer, source: Source, clock: Clock) -> None:
    for _ in range(3):
        ask(server, "/healthz")
    assert source.checks == 1
    clock.now += 1
    ask(server, "/healthz")
    assert source.checks == 2


def test_a_probe_does_not_wait_for_a_scrape(server: MetricsServer, source: Source) -> None:
    source.may_read.clear()
    with ThreadPoolExecutor(1) as clients:
        scrape = clients.submit(ask, server)
        assert source.reading.wait(20)
        assert ask(server, "/healthz")[0] == 200
        source.may_read.set()
        assert scrape.result()[0] == 200


# -- bounds


def test_threads_are_few_and_what_is_over_the_bound_is_turned_away(source: Source) -> None:
    source.may_read.clear()
    with a_server(source, threads=2, waiting=3) as server, ThreadPoolExecutor(5) as clients:
        answers = []
        for number in range(5):
            # One at a time: the two threads must have taken theirs before three can wait.
            answers.append(clients.submit(ask, server))
            wait_until(lambda n=number: open_connections(server) == n + 1)
            if number < 2:
                wait_until(server._server._waiting.empty)
        status, headers, _ = ask(server)
        assert (status, headers["retry-after"]) == (503, "1")
        serving = [thread for thread in threading.enumerate() if thread in server._server._workers]
        assert len(serving) == 2
        source.may_read.set()
        assert [answer.result()[0] for answer in answers] == [200] * 5
        assert ask(server)[0] == 200


def test_a_silent_client_is_cut_off(source: Source) -> None:
    with a_server(source, connection_seconds=0.1) as server:
        with socket.create_connection((server.host, server.port), timeout=20) as silent:
            assert silent.recv(100) == b""
        wait_until(lambda: open_connections(server) == 0)


def test_clients_that_dribble_cannot_hold_every_thread(source: Source) -> None:
    with a_server(source, threads=2, connection_seconds=0.2) as server:
        slow = [socket.create_connection((server.host, server.port), timeout=20) for _ in range(2)]
        ended = set()
        while len(ended) < 2:
            for client in slow:
                try:
                    client.sendall(b"G")
                except OSError:
                    ended.add(client)
            time.sleep(0.02)
        for client in slow:
            client.close()
        assert ask(server)[0] == 200


def test_a_client_that_leaves_early_costs_nothing(server: MetricsServer, source: Source) -> None:
    source.may_read.clear()
    for _ in range(12):
        with socket.create_connection((server.host, server.port), timeout=20) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    source.may_read.set()
    assert ask(server)[0] == 200
    wait_until(lambda: open_connections(server) == 0)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(300)) + b"\r\n", b"431"),
    ],
)
def test_what_is_no_request_is_refused_and_forgotten(
    server: MetricsServer, capfd: pytest.CaptureFixture[str], request_bytes: bytes, status: bytes
) -> None:
    with socket.create_connection((server.host, server.port), timeout=20) as client:
        client.sendall(request_bytes)
        answer = b""
        while chunk := client.recv(65_536):
            answer += chunk
            if b"\r\n\r\n" in answer or b"</html>" in answer:
                break
    assert status in answer[:400]
    assert ask(server)[0] == 200
    assert capfd.readouterr() == ("", ""), "nothing is printed: this process logs"


# -- life


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    with serve_worker(WorkerMetrics(), port=0) as server:
        assert server.host == "127.0.0.1"
        assert server.url == f"http://127.0.0.1:{server.port}"


def test_ipv6() -> None:
    try:
        server = serve_worker(WorkerMetrics(), host="::1", port=0)
    except SettingsError:
        pytest.skip("no IPv6 on this machine")
    with server:
        assert server.url == f"http://[::1]:{server.port}"
        assert ask(server)[0] == 200


def test_a_taken_port_is_a_setting_to_mend(server: MetricsServer, source: Source) -> None:
    with pytest.raises(SettingsError, match=rf"cannot listen on 127.0.0.1:{server.port}: .*choose another"):
        MetricsServer(make_app(source), host="127.0.0.1", port=server.port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("256.0.0.1", 0), ("no.such.host.invalid", 0)])
def test_an_address_that_is_none_is_a_setting_to_mend(source: Source, host: str, port: int) -> None:
    with pytest.raises(SettingsError, match="cannot listen on"):
        MetricsServer(make_app(source), host=host, port=port)


def test_close_frees_the_port_and_the_threads(source: Source) -> None:
    server = a_server(source)
    port = server.port
    assert ask(server)[0] == 200
    server.close()
    server.close()
    assert not [thread for thread in server._server._workers if thread.is_alive()]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    MetricsServer(make_app(source), host="127.0.0.1", port=port).close()


def test_close_does_not_wait_for_a_read_that_hangs(source: Source) -> None:
    source.may_read.clear()
    server = a_server(source, threads=1, waiting=2)
    clients = [socket.create_connection((server.host, server.port), timeout=20) for _ in range(3)]
    for client in clients:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert source.reading.wait(20)
    server.close()
    source.may_read.set()
    for client in clients:
        client.close()


# -- the real sources


def test_the_exporter_without_its_database_and_redis(tmp_path: Path) -> None:
    """A wrong path and a closed port: real drivers, real errors."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        queue = Queue.from_url(f"redis://127.0.0.1:{closed.getsockname()[1]}/0", timeout_seconds=1, retries=0)
        store = Store(f"sqlite:///{tmp_path}/missing/scores.db")
        with serve(ScoreCollector(store, queue), port=0) as server:
            status, _, body = ask(server, Accept=OPENMETRICS)
            assert status == 200
            got = Exposition.read(body)
            assert {s.labels["component"]: s.value for s in got.find("assay_up")} == {"database": 0, "redis": 0}
            assert got.sum("assay_exporter_errors_total") == 2
            assert {name for name in got.names() if not name.startswith("process_")} == {
                "assay_up",
                "assay_exporter_errors_total",
                "assay_exporter_read_seconds",
                "assay_build_info",
            }
            status, _, body = ask(server, "/healthz")
            assert (status, json.loads(body)) == (503, {"status": "degraded", "database": "away", "redis": "away"})
        store.close()
        queue.close()


def test_a_worker() -> None:
    metrics = WorkerMetrics()
    metrics.batch("done")
    with serve_worker(metrics, port=0) as server:
        status, _, body = ask(server, Accept=OPENMETRICS)
        assert status == 200
        assert Exposition.read(body).value("assay_batches_total", outcome="done") == 1
        assert ask(server, "/healthz")[::2] == (200, b'{"status": "ok"}\n')
