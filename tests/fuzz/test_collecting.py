"""`assay collect`, started for real, and bodies that are none: each is answered or hung up on, the next is taken."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator

import pytest

from fuzz.hostile import WHOLE
from fuzz.targets import TARGETS

GOOD = TARGETS["traces"].seeds[0]
_HEAD = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    known = {name: value for name, value in os.environ.items() if not name.startswith("ASSAY_")}
    settings = {"ASSAY_COLLECT_PORT": str(port), "ASSAY_REDIS_URL": "redis://127.0.0.1:1/0"}
    with subprocess.Popen(
        [sys.executable, "-m", "assay", "collect"],
        env=known | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            ends = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 5).close()
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < ends
                    time.sleep(0.1)
            yield port
            assert process.poll() is None
        finally:
            process.kill()


def post(port: int, body: bytes, path: str = "/v1/traces", **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    kind = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request("POST", path, body, kind)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(GOOD), 200),
        ("GZIP", gzip.compress(GOOD), 200),
        ("identity", GOOD, 200),
        ("deflate", zlib.compress(GOOD), 415),
        ("br", GOOD, 415),
        ("gzip, gzip", gzip.compress(gzip.compress(GOOD)), 415),
        ("gzip", GOOD, 400),
        ("gzip", gzip.compress(GOOD)[:-9], 400),
        ("gzip", gzip.compress(b" " * 17_000_000), 413),
        ("gzip", gzip.compress(b"") * 5_000, 400),
    ],
)
def test_encodings(port: int, encoding: str, body: bytes, status: int) -> None:
    assert post(port, body, content_encoding=encoding) == status
    assert post(port, GOOD) == 200


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/logs"])
@pytest.mark.parametrize("kind", ["application/json", "application/x-protobuf"])
def test_hostile_bodies(port: int, path: str, kind: str) -> None:
    for name, body in WHOLE.items():
        assert post(port, body, path, content_type=kind) in (200, 400), name
    assert post(port, GOOD) == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"\0" * 10_000,
        b"\r\n" * 10_000,
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        _HEAD + b"content-length: many\r\n\r\n{}",
        _HEAD + b"content-length: -1\r\n\r\n{}",
        _HEAD + b"content-length: 5\r\ncontent-length: 7\r\n\r\n{}",
        _HEAD + b"content-length: 1000\r\n\r\n" + GOOD[:500],
        _HEAD + b"content-length: 99999999999999999999\r\n\r\n{}",
        _HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        _HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
        _HEAD + b"x: " + b"x" * 1_000_000 + b"\r\n\r\n",
        _HEAD + b"x: y\r\n" * 50_000 + b"\r\n",
    ],
)
def test_requests_that_are_none(port: int, request_: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        try:
            connection.sendall(request_)
            with contextlib.suppress(OSError):  # it is not connected any more
                connection.shutdown(socket.SHUT_WR)
            answered = b""
            while chunk := connection.recv(65536):
                answered += chunk
        except (ConnectionError, BrokenPipeError):
            answered = b""  # hung up on before all was sent
    assert answered == b"" or answered.split(b" ")[1].startswith(b"4"), answered[:100]
    assert b"Traceback" not in answered
    assert post(port, GOOD) == 200
