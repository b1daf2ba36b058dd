"""What is let in, held against both servers: the one of the metrics and the one of the traces."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from assay import Client, collect, wiring
from assay.collect import Collector
from assay.errors import SettingsError
from assay.exporter import serve_worker
from assay.listener import Certificate, Guard, Peers, is_loopback, split_tokens
from assay.metrics import WorkerMetrics, collector_families, encode
from assay.settings import Settings, load_settings
from servers import make_certificate
from transports import MemoryTransport

Kind = Literal["metrics", "traces"]
KINDS: tuple[Kind, ...] = ("metrics", "traces")


@contextmanager
def listening(kind: Kind, guard: Guard) -> Iterator[Any]:
    """A server of one of the two kinds behind a guard; `.host`, `.port`, `.url`."""
    if kind == "metrics":
        with serve_worker(WorkerMetrics(), port=0, guard=guard) as server:
            yield server
        return
    collector = Collector(
        lambda app: Client(app, transport=MemoryTransport()),
        port=0,
        guard=guard,
        scrape_guard=guard,
        metrics=lambda counts, _: encode(collector_families(counts), openmetrics=False),
    )
    with collector:
        yield collector


def ask(
    port: int, path: str = "/metrics", *, method: str = "GET", tls: ssl.SSLContext | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection: http.client.HTTPConnection
    if tls is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=tls)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


# -- tokens


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_token_nothing_is_shown(kind: Kind) -> None:
    with listening(kind, Guard(tokens=("s3cret", "n3xt"))) as server:
        wrong = ("", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "s3cret", "Bearer S3CRET")
        for given in wrong:
            status, headers, body = ask(server.port, Authorization=given)
            assert (status, headers["www-authenticate"]) == (401, "Bearer"), given
            assert b"assay_" not in body
        assert ask(server.port)[0] == 401
        for given in ("Bearer s3cret", "bearer n3xt"):
            status, _, body = ask(server.port, Authorization=given)
            assert status == 200
            assert b"assay_" in body
        # A probe has no token: it learns whether all is well, and no more.
        status, _, body = ask(server.port, "/healthz")
        assert (status, body.replace(b" ", b"").strip()) == (200, b'{"status":"ok"}')


def test_a_token_that_is_no_text_is_refused_not_an_error() -> None:
    assert not Guard(tokens=("s3cret",)).admits("Bearer s3cr\udcc3t")
    assert Guard(tokens=("schlüssel",)).admits("Bearer schlüssel")
    assert Guard().admits(None)


def test_tokens_are_compared_as_secrets_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with `hmac.compare_digest`, also after a match: the time says neither how much nor which."""
    from assay import listener

    compared = []
    real = listener.hmac.compare_digest
    monkeypatch.setattr(listener.hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    assert Guard(tokens=("one", "two", "three")).admits("Bearer one")
    assert compared == [b"one", b"two", b"three"]


def test_a_guard_does_not_print_its_tokens() -> None:
    assert "s3cret" not in repr(Guard(tokens=("s3cret",)))


def test_tokens_of_a_setting() -> None:
    assert split_tokens("one\n") == ("one",)
    assert split_tokens(" one , two,") == ("one", "two")
    with pytest.raises(SettingsError, match="ASSAY_METRICS_TOKEN is blank"):
        wiring.build_guards(load_settings(metrics_token=" , "))
    scrapes, traces = wiring.build_guards(load_settings(metrics_token="m", collect_token="c", peer_connections=3))
    assert (scrapes.tokens, traces.tokens, traces.peer_connections) == (("m",), ("c",), 3)


# -- TLS


@pytest.mark.parametrize("kind", KINDS)
def test_tls(kind: Kind, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with listening(kind, Guard(certificate=Certificate(certificate, key))) as server:
        assert server.url.startswith("https://")
        assert ask(server.port, tls=trusting(certificate))[0] == 200
        # Neither plain HTTP nor what came before TLS 1.2.
        with pytest.raises((ConnectionError, http.client.HTTPException, TimeoutError)):
            ask(server.port)
        old = trusting(certificate)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with contextlib.suppress(ssl.SSLError):
            old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(server.port, tls=old)
        assert ask(server.port, tls=trusting(certificate))[0] == 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_handshake_that_never_comes_holds_nobody_up(kind: Kind, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with listening(kind, Guard(certificate=Certificate(certificate, key))) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        assert ask(server.port, tls=trusting(certificate))[0] == 200
        for one in silent:
            one.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_certificate_is_used_without_a_restart(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("assay.listener._LOOK_SECONDS", 0.0)
    certificate, key = make_certificate(tmp_path)
    first = trusting(certificate)
    (tmp_path / "new").mkdir()
    new_certificate, new_key = make_certificate(tmp_path / "new")
    with listening(kind, Guard(certificate=Certificate(certificate, key))) as server:
        assert ask(server.port, tls=first)[0] == 200
        # One file after the other: between them the pair does not fit, and the old one goes on.
        shutil.copy(new_certificate, certificate)
        with caplog.at_level(logging.WARNING, "assay.listener"):
            assert ask(server.port, tls=first)[0] == 200
        assert "the one before stays in use" in caplog.text
        shutil.copy(new_key, key)
        os.utime(key)
        assert ask(server.port, tls=trusting(new_certificate))[0] == 200
        with pytest.raises(ssl.SSLError):
            ask(server.port, tls=first)


def test_a_certificate_that_cannot_be_used_is_a_mistake_to_mend(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    other, _ = make_certificate(tmp_path, "other")
    locked = tmp_path / "locked.key"
    os.system(f"openssl ec -aes256 -passout pass:word -in {key} -out {locked} 2>/dev/null")
    for pair in ((tmp_path / "none.pem", key), (other, key), (key, key), (certificate, locked)):
        with pytest.raises(SettingsError, match="ASSAY_TLS_CERTIFICATE and ASSAY_TLS_KEY") as caught:
            Certificate(*pair)
        assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="belong together"):
        load_settings(tls_certificate=certificate)


# -- connections


def test_peers_are_counted_apart_and_together() -> None:
    peers = Peers(each=2, most=3)
    assert [peers.enter("a"), peers.enter("a"), peers.enter("a")] == [True, True, False]
    assert [peers.enter("b"), peers.enter("c")] == [True, False]
    assert len(peers) == 3
    peers.leave("a")
    assert peers.enter("c")
    assert peers.refused == {"peer": 1, "all": 1}
    for one in ("a", "b", "c"):
        peers.leave(one)
    assert len(peers) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("over_tls", [False, True])
def test_one_peer_has_a_bounded_number_of_connections(kind: Kind, over_tls: bool, tmp_path: Path) -> None:
    pair = make_certificate(tmp_path) if over_tls else None
    guard = Guard(peer_connections=3, certificate=Certificate(*pair) if pair else None)
    tls = trusting(pair[0]) if pair else None
    with listening(kind, guard) as server:
        held = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(3)]
        peers = server._server._peers if kind == "metrics" else server._peers
        until(lambda: len(peers) == 3)
        # The fourth is turned away, before any handshake.
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as fourth:
            said = b""
            with contextlib.suppress(ConnectionError):
                while chunk := fourth.recv(1000):
                    said += chunk
        assert said == b"" or b" 503 " in said
        held.pop().close()
        until(lambda: len(peers) == 2)
        assert ask(server.port, tls=tls)[0] == 200
        for one in held:
            one.close()
        until(lambda: len(peers) == 0)
        assert peers.refused["peer"] == 1


# -- what strangers send


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {400, 414}),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", {400, 431}),
        (b"BREW /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 405}),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", {200, 400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
    ],
)
def test_what_is_no_request_is_refused(kind: Kind, sent: bytes, statuses: set[int]) -> None:
    with listening(kind, Guard()) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            said = b""
            with contextlib.suppress(ConnectionError):
                client.sendall(sent)
                while b"\r\n\r\n" not in said and b"Error code" not in said and (chunk := client.recv(65_536)):
                    said += chunk
        found = {
            status for status in statuses if f" {status} ".encode() in said[:60] or f"code: {status}".encode() in said
        }
        assert found or said == b"", said[:200]
        assert ask(server.port)[0] == 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/nothing"])
def test_answers_do_not_say_what_runs_here(kind: Kind, path: str) -> None:
    with listening(kind, Guard()) as server:
        _, headers, body = ask(server.port, path)
        assert headers["server"] == "assay"
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(b"NONSENSE\r\n\r\n")
            refused = client.recv(65_536)
        for said in (str(headers).encode(), body if path != "/metrics" else b"", refused):
            assert not any(word in said.lower() for word in (b"python", b"aiohttp", b"wsgi"))


def _is_cut_off(client: socket.socket) -> bool:
    try:
        client.sendall(b"x")
        return client.recv(1000) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("head", [b"", b"GE", b"GET /metrics HTTP/1.1\r\nX: "])
def test_a_request_that_dribbles_is_cut_off(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver of traces; `test_exporter` has the same of the metrics."""
    monkeypatch.setattr(collect, "_HEAD_SECONDS", 0.3)
    with listening("traces", Guard()) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.settimeout(20)
        slow.settimeout(0.05)
        slow.sendall(head)
        until(lambda: _is_cut_off(slow))
        assert ask(server.port)[0] == 200


# -- addresses


def test_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com", "127.example.com", "")))


def test_every_listener_is_on_loopback_unless_told_otherwise() -> None:
    hosts = {name: field.default for name, field in Settings.model_fields.items() if name.endswith("_host")}
    assert hosts == {"exporter_host": "127.0.0.1", "worker_metrics_host": "127.0.0.1", "collect_host": "127.0.0.1"}
    assert wiring.exposures(load_settings()) == []


def test_an_address_that_others_reach_is_told_of(tmp_path: Path) -> None:
    open_ = Guard().exposure("0.0.0.0", "ASSAY_METRICS_TOKEN")
    assert open_ == "whoever reaches 0.0.0.0 is answered: set ASSAY_METRICS_TOKEN, or listen on 127.0.0.1"
    clear = Guard(tokens=("t",)).exposure("0.0.0.0", "ASSAY_METRICS_TOKEN")
    assert clear is not None
    assert "in the clear" in clear
    assert Guard(tokens=("t",), certificate=Certificate(*make_certificate(tmp_path))).exposure("::", "X") is None
    settings = load_settings(
        exporter_host="0.0.0.0", worker_metrics_host="::", worker_metrics_port=0, collect_host="10.0.0.1"
    )
    assert [line.split(":")[0] for line in wiring.exposures(settings)] == [
        "whoever reaches 0.0.0.0 is answered",
        "whoever reaches ",
        "whoever reaches 10.0.0.1 is answered",
    ]
