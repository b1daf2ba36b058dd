"""What the tests of sinks share: an annotation, a sink that does as it is told, and a real HTTP server that does."""

from __future__ import annotations

import gzip
import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from assay.sinks import Annotation, Delivered, Delivery

TRACE_ID = "5b8efff798038103d269b633813fc60c"
SPAN_ID = "eee19b7ec3c1b174"


def an_annotation(**fields: Any) -> Annotation:
    """A synthetic score, with everything that one may have."""
    defaults: dict[str, Any] = {
        "evaluation_id": uuid.UUID("0f7ea0de-8b1c-5a61-9d2e-3a4b5c6d7e8f"),
        "record_id": "r-1",
        "app": "shop",
        "trace_id": TRACE_ID,
        "span_id": SPAN_ID,
        "session_id": "session-7",
        "sink_refs": {},
        "timestamp": datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC),
        "evaluated_at": datetime(2026, 3, 1, 12, 0, 9, 123_456, tzinfo=UTC),
        "rubric": "faithfulness",
        "rubric_version": "1-0a1b2c3d",
        "rubric_hash": "0a1b2c3d" * 8,
        "judge": "openai",
        "judge_fingerprint": "f" * 64,
        "judge_model": "synthetic-1",
        "outcome": "scored",
        "value": 0.75,
        "raw": 4.0,
        "passed": True,
        "label": "mostly",
        "explanation": "All but one claim is in the passages.",
        "calibration_state": "active",
        "probability": 0.25,
        "cohort": {"tier": "gold"},
    }
    return Annotation(**{**defaults, **fields})


def a_failure(**fields: Any) -> Annotation:
    """A synthetic failure of the judge."""
    failed = {"outcome": "failed", "failure_kind": "timeout", "message": "no answer within 60 s"}
    nothing = {"value": None, "raw": None, "passed": None, "label": None, "explanation": ""}
    return an_annotation(**{**failed, **nothing, **fields})


class ScriptedSink:
    """Keeps what it is handed; `respond` says what becomes of a batch, or raises."""

    def __init__(
        self,
        name: str = "scripted",
        respond: Callable[[Sequence[Annotation]], Sequence[Delivery]] | None = None,
        *,
        max_batch: int = 10,
        takes_failures: bool = True,
    ) -> None:
        self.name, self.max_batch, self.takes_failures = name, max_batch, takes_failures
        self.respond = respond or (lambda annotations: [Delivered()] * len(annotations))
        self.calls: list[list[Annotation]] = []
        self.closed = 0
        self._lock = threading.Lock()

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        with self._lock:
            self.calls.append(list(annotations))
        return self.respond(annotations)

    def close(self) -> None:
        self.closed += 1

    @property
    def sizes(self) -> list[int]:
        return [len(call) for call in self.calls]

    @property
    def record_ids(self) -> list[str]:
        return [annotation.record_id for call in self.calls for annotation in call]


@dataclass(frozen=True)
class Request:
    """As it came, with the body decompressed."""

    method: str
    #: with the query
    path: str
    #: names in lower case
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


#: status, headers, body
Answer = tuple[int, dict[str, str], bytes]


class SinkServer:
    """A real HTTP server on loopback: keeps every request, and answers as `answer` says (200 and `{}` by default)."""

    def __init__(self, answer: Callable[[Request], Answer] | None = None, *, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.answer = answer or (lambda _: (200, {"content-type": "application/json"}, b"{}"))
        #: cleared: requests are taken and not answered
        self.answering = threading.Event()
        self.answering.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30
            disable_nagle_algorithm = True  # head and body are written apart, and each call would wait 40 ms

            def _any(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = gzip.decompress(raw) if headers.get("content-encoding") == "gzip" else raw
                request = Request(self.command, self.path, headers, body)
                outer.requests.append(request)
                outer.answering.wait(60)
                status, given, content = outer.answer(request)
                try:
                    self.send_response(status)
                    for name, value in given.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    self.close_connection = True  # the client has gone

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """Nothing: a client that was killed in the midst is no news here."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True)

    def __enter__(self) -> SinkServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Also the connections that are open end: their threads are daemons, and answer nothing more."""
        self.answering.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class FlakyReceiver:
    """Takes the webhook's batches by the id of each evaluation, and is as bad as a sink may be.

    `fail` of its calls are answered with 429, 500 or 503, half of those after it has kept the batch; `hang` of them are
    kept and answered after `hang_seconds`. Between `go_down` and `come_up` nothing listens at its port.
    """

    def __init__(self, *, fail: float = 0.2, hang: float = 0.01, hang_seconds: float = 2.0, seed: int = 7) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.repeats = 0
        self.calls = 0
        self._fail, self._hang, self._hang_seconds = fail, hang, hang_seconds
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server: SinkServer | None = SinkServer(self._answer).__enter__()
        self.port = int(self._server.url.rpartition(":")[2])
        self.url = self._server.url

    def go_down(self) -> None:
        if self._server is not None:
            self._server.__exit__()
            self._server = None

    close = go_down

    def come_up(self) -> None:
        self._server = SinkServer(self._answer, port=self.port).__enter__()

    def _answer(self, request: Request) -> Answer:
        with self._lock:
            self.calls += 1
            fate, kind, keeps = self._random.random(), self._random.choice((429, 500, 503)), self._random.random() < 0.5
            fails = fate < self._fail
            if not fails or keeps:
                for evaluation in request.json["evaluations"]:
                    self.repeats += evaluation["evaluation_id"] in self.kept
                    self.kept[evaluation["evaluation_id"]] = evaluation
        if fails:
            return kind, {}, b"synthetic trouble"
        if fate < self._fail + self._hang:
            time.sleep(self._hang_seconds)
        return a_json(200, {})


def a_json(status: int, value: Any, **headers: str) -> Answer:
    """An answer with a JSON body; underscores in names of headers stand for hyphens."""
    given = {name.replace("_", "-"): text for name, text in headers.items()}
    return status, {"content-type": "application/json", **given}, json.dumps(value).encode()
