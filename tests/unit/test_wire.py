"""Both ways to an endpoint, bare and through an instrumented client, against a real server: they must not differ."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest

from assay.judges import _wire
from assay.judges._wire import MAX_BODY_BYTES, OversizedError, Response, UnreachableError, connect
from assay.testing import FakeJudgeServer, Reply

OURS = ("authorization", "openai-organization", "openai-project", "baggage", "accept-encoding")
BODY = {"model": "m", "messages": [{"role": "user", "content": "gr\u00fc\u00df dich"}]}


class Around:
    """What an instrumenting library puts in the place of the client's method."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self.calls = 0

    def __get__(self, instance: Any, _: Any) -> Any:
        if instance is None:
            return self

        async def request(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return await self.wrapped(instance, *args, **kwargs)

        return request


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)


def without_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nobody has imported it."""
    monkeypatch.setattr(_wire, "_TRACERS", ())
    monkeypatch.setitem(sys.modules, "assay.judges._client", None)


@pytest.fixture(params=["plain", "direct", "traced"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    around = Around(openai.AsyncOpenAI.request)
    if request.param == "plain":
        without_client(monkeypatch)
    if request.param == "traced":
        monkeypatch.setattr(openai.AsyncOpenAI, "request", around)
    yield request.param
    assert (around.calls > 0) == (request.param == "traced")


@pytest.fixture
def server() -> Iterator[FakeJudgeServer]:
    with FakeJudgeServer() as it:
        yield it


def with_wire(base_url: str, use: Callable[[_wire.Wire], Awaitable[Any]], key: str | None = "synthetic") -> Any:
    async def run() -> Any:
        wire = connect(base_url, key, connections=4)
        try:
            return await use(wire)
        finally:
            await wire.aclose()

    return asyncio.run(run())


def post(base_url: str, key: str | None = "synthetic") -> Response:
    return with_wire(base_url, lambda wire: wire.post("/chat/completions", BODY), key)


class Recorder:
    """A server that keeps the headers and bodies it was sent."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.paths.append(self.path)
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                outer.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("set-cookie", "seen=1")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    it = Recorder()
    yield it
    it.close()


def test_the_answer_comes_as_it_is(way, server):
    server.script(Reply(status=429, headers={"retry-after": "7"}, body={"error": {"message": "slow down"}}))
    answer = post(server.base_url)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
    assert json.loads(answer.content) == {"error": {"message": "slow down"}}


def test_what_is_sent_is_the_same_either_way(recorder, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-synthetic")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-synthetic")

    async def twice(wire):
        await wire.post("/chat/completions", BODY)
        await wire.post("/chat/completions", BODY)

    with_wire(f"{recorder.address}/some/v1/", twice)
    monkeypatch.setattr(openai.AsyncOpenAI, "request", Around(openai.AsyncOpenAI.request))
    with_wire(f"{recorder.address}/some/v1/", twice)
    assert recorder.paths == ["/some/v1/chat/completions"] * 4
    assert len(set(recorder.bodies)) == 1
    assert json.loads(recorder.bodies[0]) == BODY
    direct, again, traced, _ = recorder.headers
    without_client(monkeypatch)
    with_wire(f"{recorder.address}/some/v1/", twice)
    plain = recorder.headers[-1]
    assert recorder.paths[-1] == recorder.paths[0]
    assert recorder.bodies[-1] == recorder.bodies[0]
    assert plain.keys() == {name for name in direct if not name.startswith("x-stainless-")}
    for name in (*OURS, "accept", "content-type", "user-agent"):
        assert direct[name] == traced[name] == plain[name], name
    assert direct["authorization"] == "Bearer synthetic"
    assert direct["baggage"] == "assay.judge=true"
    assert "cookie" not in again


def test_what_only_the_client_knows_of_the_environment_is_asked_of_it(recorder, monkeypatch):
    monkeypatch.setattr(_wire, "_TRACERS", ())
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-team: synthetic")
    post(recorder.address)
    assert recorder.headers[-1]["x-team"] == "synthetic"


@pytest.mark.parametrize(("before", "loaded"), [("", False), ("import wrapt; ", True)])
def test_the_client_is_loaded_where_something_may_trace_it_and_else_not(server, before, loaded):
    """In a process of its own, as a worker would judge."""
    script = (
        f"{before}import asyncio, sys; from assay.judges import JudgeSettings, build_judge; "
        "from assay.records import Record, now; from assay.rubrics import load_rubrics; "
        f"judge = build_judge(None, JudgeSettings(engine='openai', model='m', base_url={server.base_url!r})); "
        "record = Record(record_id='1', timestamp=now(), input='a', output='b'); "
        "rubric = next(r for r in load_rubrics() if r.name == 'relevance'); "
        "(outcome,) = asyncio.run(judge.judge(record, [rubric])); "
        "print(type(outcome).__name__, 'openai' in sys.modules)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    done = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["Score", str(loaded)], done.stderr


def test_a_redirect_is_not_followed(way, server):
    server.script(Reply(status=307, headers={"location": f"{server.base_url}/chat/completions"}, body={}))
    assert post(server.base_url).status == 307
    assert server.traffic.calls == 1


def test_a_body_over_the_bound_is_not_read_to_its_end(way, server):
    server.script(Reply(body=b"x" * (MAX_BODY_BYTES + 1)))
    with pytest.raises(OversizedError):
        post(server.base_url)


@pytest.mark.parametrize("size", [60_000_000, 3_000_000])
def test_a_packed_body_cannot_fill_the_memory(server, size):
    packed = gzip.compress(b" " * size, compresslevel=9)
    server.script(Reply(body=packed, headers={"content-encoding": "gzip"}))
    with pytest.raises(OversizedError):
        post(server.base_url)


def test_a_packed_body_of_a_usual_size_is_read(way, server):
    server.script(Reply(body=gzip.compress(b'{"a":1}' + b" " * 9000), headers={"content-encoding": "gzip"}))
    assert json.loads(post(server.base_url).content) == {"a": 1}


@pytest.mark.parametrize(("encoding", "body"), [("gzip", b"not packed at all"), ("br", b"\x0b\x02\x80{}\x03")])
def test_a_packed_body_that_cannot_be_read(server, encoding, body):
    server.script(Reply(body=body, headers={"content-encoding": encoding}))
    with pytest.raises(UnreachableError) as caught:
        post(server.base_url)
    assert not caught.value.never_sent


def test_nobody_listens(way):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(UnreachableError) as caught:
            post(f"http://127.0.0.1:{held.getsockname()[1]}/v1")
    assert caught.value.never_sent


def test_a_server_that_hangs_up_may_have_charged(way, server):
    server.script("disconnect")
    with pytest.raises(UnreachableError) as caught:
        post(server.base_url)
    assert not caught.value.never_sent


def test_a_proxy_of_the_environment_is_used_unless_it_is_told_not_to(recorder, server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", recorder.address)
    assert post("http://judge.invalid/v1").content == b"{}"
    assert recorder.paths == ["http://judge.invalid/v1/chat/completions"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.script(Reply(body={}))
    assert post(server.base_url).status == 200
    assert len(recorder.paths) == 1
