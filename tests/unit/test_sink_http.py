"""The HTTP client of sinks against a real server on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from assay.errors import SettingsError, SinkError
from assay.sinks import Delivered, Rejected, TryAgain
from assay.sinks._http import Http, Reply, json_bytes, settled
from sink_server import SinkServer, a_json


@pytest.fixture
def server() -> Iterator[SinkServer]:
    with SinkServer() as running:
        yield running


@pytest.fixture
def http(server: SinkServer) -> Iterator[Http]:
    client = Http("test", server.url + "/base/", headers={"x-key": "k"}, timeout_seconds=5)
    yield client
    client.close()


def test_a_request_is_sent_as_it_is_meant(server: SinkServer, http: Http) -> None:
    server.answer = lambda _: a_json(201, {"ok": True}, x_a="b")
    reply = http.post("/things", json={"é": 1.5}, params={"sync": "true"}, headers={"x-more": "m"})
    assert (reply.status, reply.ok, reply.json(), reply.headers["x-a"]) == (201, True, {"ok": True}, "b")
    (request,) = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/base/things?sync=true", '{"é":1.5}'.encode())
    assert (request.headers["x-key"], request.headers["x-more"]) == ("k", "m")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("assay/")


def test_basic_credentials(server: SinkServer) -> None:
    client = Http("test", server.url, basic_auth=("user", "pass"))
    client.post("")
    client.close()
    assert server.requests[0].headers["authorization"] == "Basic dXNlcjpwYXNz"


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (401, {}, {"unauthorized": True, "suspect": False, "after_seconds": None}),
        (403, {}, {"unauthorized": True, "suspect": False, "after_seconds": None}),
        (429, {"retry-after": "7"}, {"unauthorized": False, "suspect": False, "after_seconds": 7.0}),
        (429, {"retry-after": "soon"}, {"unauthorized": False, "suspect": False, "after_seconds": None}),
        (429, {"retry-after": "-3"}, {"unauthorized": False, "suspect": False, "after_seconds": 0.0}),
        (429, {"retry-after": "inf"}, {"unauthorized": False, "suspect": False, "after_seconds": None}),
        (429, {"retry-after": "nan"}, {"unauthorized": False, "suspect": False, "after_seconds": None}),
        (500, {}, {"unauthorized": False, "suspect": True, "after_seconds": None}),
        (503, {}, {"unauthorized": False, "suspect": False, "after_seconds": None}),
        (302, {"location": "http://elsewhere.invalid/"}, {"suspect": False}),
    ],
)
def test_what_a_sink_says_to_a_whole_batch(
    server: SinkServer, http: Http, status: int, headers: dict[str, str], expected: dict[str, object]
) -> None:
    server.answer = lambda _: (status, headers, b"no   \n such luck")
    with pytest.raises(SinkError) as caught:
        http.post("/x")
    assert {name: getattr(caught.value, name) for name in expected} == expected
    assert str(status) in str(caught.value)
    assert len(server.requests) == 1, "a redirect is not followed: headers hold secrets"


def test_a_date_to_wait_for(server: SinkServer, http: Http) -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    server.answer = lambda _: (503, {"retry-after": format_datetime(later, usegmt=True)}, b"")
    with pytest.raises(SinkError) as caught:
        http.post("/x")
    assert 90 < (caught.value.after_seconds or 0) <= 101


def test_an_answer_that_does_not_come_ends(server: SinkServer) -> None:
    server.answering.clear()
    client = Http("test", server.url, timeout_seconds=0.2)
    with pytest.raises(SinkError, match=r"no answer within 0\.2 s"):
        client.post("/x")
    client.close()


def test_an_answer_that_drips_in_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        client = Http("test", f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_seconds=0.3)
        with pytest.raises(SinkError, match=r"no full answer within 0\.3 s"):
            client.post("/x")
        stop.set()
        client.close()
        thread.join(5)


def test_a_huge_answer_is_not_read_to_its_end(server: SinkServer, http: Http) -> None:
    server.answer = lambda _: (200, {}, b"x" * 5_000_000)
    assert len(http.post("/x").body) < 1_200_000


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = Http("test", f"http://127.0.0.1:{port}", headers={"authorization": "Bearer very-secret"})
    with pytest.raises(SinkError, match="test: ConnectError") as caught:
        client.post("/x")
    assert "very-secret" not in str(caught.value)
    client.close()


@pytest.mark.parametrize("url", ["", "localhost:6006", "ftp://host", "http://", "http://[", "http:// x"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(SettingsError, match=r"ASSAY_SINK_TEST_URL"):
        Http("test", url)


def test_a_key_with_a_line_in_it_is_a_mistake_and_is_not_shown(server: SinkServer) -> None:
    for key in ("very\nsecret", "very-secret\u00e9"):
        with pytest.raises(SettingsError, match="header authorization must be printable ASCII") as caught:
            Http("test", server.url, headers={"authorization": f"Bearer {key}"})
        assert "secret" not in str(caught.value)


def test_a_request_that_cannot_be_sent_is_not_quoted(server: SinkServer, http: Http) -> None:
    with pytest.raises(SinkError, match="the request cannot be sent") as caught:
        http.post("/x", headers={"x-id": "very\nsecret"})
    assert "secret" not in str(caught.value)
    assert caught.value.suspect, "it may lie in one of the batch"
    assert server.requests == []


def a_reply(status: int) -> Reply:
    return Reply(status, {}, b"said")


def test_what_a_reply_means_for_a_batch() -> None:
    assert settled(a_reply(200), 2) == [Delivered(), Delivered()]
    assert settled(a_reply(422), 1) == [Rejected("422: said")]
    assert settled(a_reply(404), 1, missing=frozenset({404})) == [TryAgain("404: said", missing=True)]
    with pytest.raises(SinkError, match="refuses a batch of 2: 422: said") as caught:
        settled(a_reply(422), 2)
    assert caught.value.suspect


def test_json_that_any_sink_can_read() -> None:
    assert json_bytes({"a": "\ud800é"}) == b'{"a":"?\xc3\xa9"}'
    with pytest.raises(ValueError, match="JSON compliant"):
        json_bytes(float("nan"))
    assert a_reply(200).json() is None
    assert Reply(200, {}, b"[" * 100_000).json() is None
