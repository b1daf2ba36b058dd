"""Pulling: ranges, places, limits; Langfuse against a local server that answers as its API does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from assay.cli._intake import _moment, _open
from assay.errors import SettingsError, SourceError
from assay.pull import OVERLAP, SETTLE, Page, Place, Pulled, Taking, next_range, pull
from assay.pull.langfuse import Langfuse
from assay.pull.mlflow import MLflow
from assay.pull.phoenix import Phoenix
from assay.queue import Queue, decode_batch, is_batch
from assay.redaction import Redactor
from assay.sampling import Sampler
from assay.spans import Span, record_id_of

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)


def taking(**fields: Any) -> Taking:
    return Taking(**{"sampler": Sampler(1.0), "redact": Redactor(), "user_id_salt": None, **fields})


def a_call(number: int, **attributes: Any) -> Span:
    known = {
        "openinference.span.kind": "LLM",
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": f"Question {number}? Write to ann@example.com.",
        "llm.output_messages.0.message.content": f"Answer {number}.",
    }
    return Span(
        trace_id=f"{number:032x}",
        span_id=f"{number:016x}",
        start_seconds=BEGIN.timestamp() + number,
        end_seconds=BEGIN.timestamp() + number + 1,
        attributes=known | attributes,
        resource={"service.name": "shop"},
    )


class ListSource:
    """A store with so many traces, three to a page."""

    name = "phoenix"
    identity = "list"

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = list(spans)
        self.asked: list[str | None] = []
        self.fails_at: str | None = "never"

    def page(self, since: datetime, until: datetime, cursor: str | None) -> Page:
        self.asked.append(cursor)
        if cursor == self.fails_at:
            raise SourceError("away")
        at = int(cursor or 0)
        spans = self.spans[at : at + 3]
        return Page(
            traces=[([span], frozenset({span.span_id})) for span in spans],
            cursor=str(at + 3) if at + 3 < len(self.spans) else None,
        )

    def close(self) -> None:
        pass


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    it = Queue.from_url(redis_url)
    yield it
    it.close()


def queued(redis_url: str) -> list[dict[str, Any]]:
    import redis

    with redis.Redis.from_url(redis_url) as plain:
        hashes = [key for key in plain.scan_iter("*") if plain.type(key) == b"hash"]
        payloads = [value for key in hashes for value in plain.hvals(key) if is_batch(value)]
    return [json.loads(raw) for payload in payloads for raw in decode_batch(payload).records]


def test_all_pages_are_enqueued_and_the_place_is_noted(queue: Queue, redis_url: str, tmp_path: Path) -> None:
    source = ListSource([a_call(number) for number in range(1, 8)])
    pages: list[int] = []
    done = pull(
        source,
        taking=taking(),
        place=Place.read(tmp_path, source),
        now=NOW,
        queue=queue,
        on_page=lambda so_far: pages.append(so_far.enqueued),
    )
    assert (done.enqueued, done.traces, done.finished, pages) == (7, 7, True, [3, 6, 7])
    records = queued(redis_url)
    assert {record["record_id"] for record in records} == {
        record_id_of(f"{number:032x}", f"{number:016x}") for number in range(1, 8)
    }
    assert all(record["app"] == "shop" and "ann@example.com" not in json.dumps(record) for record in records)
    assert not Place.read(tmp_path, source).unfinished
    # The next one takes what came since, and looks a while further back.
    begin, end, resumed = next_range(Place.read(tmp_path, source), None, None, NOW + timedelta(hours=1))
    assert (begin, end, resumed) == (NOW - SETTLE - OVERLAP, NOW + timedelta(hours=1) - SETTLE, False)


def test_a_pull_that_failed_goes_on_where_it_was(queue: Queue, redis_url: str, tmp_path: Path) -> None:
    source = ListSource([a_call(number) for number in range(1, 8)])
    source.fails_at = "3"
    with pytest.raises(SourceError):
        pull(source, taking=taking(), place=Place.read(tmp_path, source), now=NOW, queue=queue)
    assert len(queued(redis_url)) == 3
    source.fails_at = "never"
    done = pull(source, taking=taking(), place=Place.read(tmp_path, source), now=NOW + timedelta(days=3), queue=queue)
    assert source.asked == [None, "3", "3", "6"]
    assert (done.enqueued, done.until) == (4, NOW - SETTLE)  # the range that it began with
    assert len({record["record_id"] for record in queued(redis_url)}) == 7


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 8])
def test_limited_pulls_get_through_and_take_nothing_twice(
    limit: int, queue: Queue, redis_url: str, tmp_path: Path
) -> None:
    source = ListSource([a_call(number) for number in range(1, 8)])
    done, rounds = Pulled(NOW, NOW), 0
    while not done.finished:
        done = pull(source, taking=taking(), place=Place.read(tmp_path, source), now=NOW, queue=queue, limit=limit)
        assert done.enqueued <= limit
        rounds += 1
        assert rounds < 10
    ids = [record["record_id"] for record in queued(redis_url)]
    assert len(ids) == len(set(ids)) == 7


def test_a_dry_run_enqueues_and_notes_nothing(tmp_path: Path) -> None:
    source = ListSource([a_call(number) for number in range(1, 8)])
    done = pull(source, taking=taking(), place=Place.read(tmp_path, source), now=NOW, queue=None)
    assert (done.enqueued, done.finished) == (7, True)
    assert list(tmp_path.rglob("*")) == []


def test_sampling_skipping_and_users(queue: Queue, redis_url: str, tmp_path: Path) -> None:
    spans = [a_call(number, **{"user.id": "ann"}) for number in range(1, 101)]
    spans += [a_call(200, **{"llm.input_messages.0.message.content": ""})]
    source = ListSource(spans)
    options = taking(sampler=Sampler(0.5), user_id_salt="salt", app="other")
    done = pull(source, taking=options, place=Place.read(tmp_path, source), now=NOW, queue=queue)
    assert done.enqueued + done.sampled_out == 100
    assert 25 < done.enqueued < 75
    assert done.skipped == {"no_content": 1}
    for record in queued(redis_url):
        assert record["sampling"]["probability"] == 0.5
        assert record["app"] == "other"
        assert record["user_id"] != "ann"


def test_ranges(tmp_path: Path) -> None:
    source = ListSource([])
    place = Place.read(tmp_path, source)
    assert next_range(place, None, None, NOW) == (NOW - SETTLE - timedelta(hours=24), NOW - SETTLE, False)
    assert next_range(place, BEGIN, NOW, NOW) == (BEGIN, NOW, False)
    with pytest.raises(SettingsError, match="before"):
        next_range(place, NOW, BEGIN, NOW)
    place.note(BEGIN, NOW, "c", unfinished=True)
    again = Place.read(tmp_path, source)
    assert (again.since, again.until, again.cursor, again.unfinished) == (BEGIN, NOW, "c", True)
    assert next_range(again, None, None, NOW + timedelta(days=1)) == (BEGIN, NOW, True)
    assert next_range(again, BEGIN + OVERLAP, None, NOW, "1h..")[2] is False
    again.note(BEGIN, NOW, "c", unfinished=True, asked="7d..")
    assert next_range(Place.read(tmp_path, source), BEGIN + OVERLAP, None, NOW, "7d..") == (BEGIN, NOW, True)
    place.path.write_text("{torn")
    assert Place.read(tmp_path, source).since is None


def test_a_directory_that_cannot_be_written_is_a_mistake_to_mend(tmp_path: Path) -> None:
    (tmp_path / "pull").write_text("a file")
    with pytest.raises(SettingsError, match="ASSAY_DATA_DIR"):
        Place.read(tmp_path, ListSource([])).note(BEGIN, NOW, None, unfinished=False)


# -- Langfuse


class LangfuseServer:
    """Answers as Langfuse's public API does: observations v2 with a cursor, or only the older API."""

    def __init__(self, *, older: bool) -> None:
        self.older = older
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.observations: list[dict[str, Any]] = []
        self.failures: list[int] = []

    def add(self, number: int) -> None:
        """A trace: a chain with a retriever and a generation in it."""
        trace_id, at = f"{number:032x}", BEGIN + timedelta(seconds=number)

        def observation(place: int, kind: str, **fields: Any) -> None:
            self.observations.append(
                {
                    "id": f"{number * 10 + place:016x}",
                    "traceId": trace_id,
                    "type": kind,
                    "startTime": (at + timedelta(milliseconds=place * 100)).isoformat(),
                    "endTime": (at + timedelta(milliseconds=place * 100 + 50)).isoformat(),
                    "parentObservationId": f"{number * 10:016x}" if place else None,
                    "level": "DEFAULT",
                    "sessionId": None if self.older else "session-1",
                    "userId": None if self.older else "user-1",
                    **fields,
                }
            )

        documents = [{"page_content": "Delivery takes 4 days.", "id": "d"}]
        messages = [{"role": "user", "content": f"Question {number}?"}]
        said = {"role": "assistant", "content": f"Answer {number}."}
        # The newer API gives texts, the older one what they stand for.
        form: Any = (lambda value: value) if self.older else json.dumps
        model = {"model": "synthetic-1"} if self.older else {"providedModelName": "synthetic-1"}
        observation(0, "CHAIN", input=form("in"), output=form("out"))
        observation(1, "RETRIEVER", input=form("q"), output=form(documents))
        observation(
            2, "GENERATION", input=form(messages), output=form(said), usageDetails={"input": 5, "output": 2}, **model
        )

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        if self.failures:
            return self.failures.pop(), {"message": "synthetic"}
        rows = self.observations
        if path.startswith("/api/public/traces/"):
            trace_id = path.rpartition("/")[2]
            inner = [row for row in rows if row["traceId"] == trace_id]
            return 200, {"id": trace_id, "sessionId": "session-1", "userId": "user-1", "observations": inner}
        if "traceId" in query:
            rows = [row for row in rows if row["traceId"] == query["traceId"]]
        if "type" in query:
            rows = [row for row in rows if row["type"] == query["type"]]
        if "fromStartTime" in query:
            begin, end = (datetime.fromisoformat(query[name]) for name in ("fromStartTime", "toStartTime"))
            rows = [row for row in rows if begin <= datetime.fromisoformat(row["startTime"]) < end]
        if path == "/api/public/v2/observations" and not self.older:
            at = int(base64.b64decode(query["cursor"])) if "cursor" in query else 0
            last = at + 2 if "traceId" not in query else len(rows)
            meta = {"cursor": base64.b64encode(str(last).encode()).decode()} if last < len(rows) else {}
            return 200, {"data": rows[at:last], "meta": meta}
        if path == "/api/public/observations" and self.older:
            page = int(query["page"])
            return 200, {
                "data": rows[page * 2 - 2 : page * 2],
                "meta": {"page": page, "totalPages": -(-len(rows) // 2)},
            }
        return 404, {"message": "not found"}


@contextmanager
def langfuse(*, older: bool = False) -> Iterator[tuple[LangfuseServer, str]]:
    state = LangfuseServer(older=older)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            state.requests.append((parts.path, query))
            status, body = state.answer(parts.path, query)
            if self.headers.get("authorization") != "Basic " + base64.b64encode(b"pk:sk").decode():
                status, body = 401, {"message": "wrong key"}
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("older", [False, True])
def test_langfuse_generations_become_records(older: bool, queue: Queue, redis_url: str, tmp_path: Path) -> None:
    with langfuse(older=older) as (server, url):
        for number in range(1, 6):
            server.add(number)
        source = Langfuse(url, public_key="pk", secret_key="sk")
        place = Place.read(tmp_path, source)
        done = pull(source, taking=taking(user_id_salt="s"), place=place, since=BEGIN, now=NOW, queue=queue)
        source.close()
    assert (done.enqueued, done.finished) == (5, True)
    for record in queued(redis_url):
        number = int(record["trace_id"], 16)
        assert record["span_id"] == f"{number * 10 + 2:016x}"
        assert record["record_id"] == record_id_of(record["trace_id"], record["span_id"])
        assert record["input"] == [{"role": "user", "content": f"Question {number}?"}]
        assert record["output"] == f"Answer {number}."
        assert record["contexts"] == [{"text": "Delivery takes 4 days.", "id": "d"}]
        assert record["usage"] == {"prompt_tokens": 5, "completion_tokens": 2}
        assert (record["model"], record["session_id"]) == ("synthetic-1", "session-1")
        assert "user-1" not in json.dumps(record)
    paths = {path for path, _ in server.requests}
    assert ("/api/public/observations" in paths) == older


def test_langfuse_takes_the_range_into_a_filter(tmp_path: Path) -> None:
    with langfuse() as (server, url):
        condition = {"type": "string", "column": "traceName", "operator": "=", "value": "support"}
        source = Langfuse(url, public_key="pk", secret_key="sk", condition=json.dumps([condition]))
        source.page(BEGIN, NOW, None)
        source.close()
        (_, query) = server.requests[0]
        assert [row["column"] for row in json.loads(query["filter"])] == ["type", "startTime", "startTime", "traceName"]
    with pytest.raises(SettingsError, match="JSON list"):
        Langfuse(url, public_key="pk", secret_key="sk", condition="{}")


def test_a_store_that_stumbles_is_asked_again_and_one_that_refuses_is_not() -> None:
    with langfuse() as (server, url):
        server.add(1)
        server.failures = [503, 429]
        source = Langfuse(url, public_key="pk", secret_key="sk")
        assert len(source.page(BEGIN, NOW, None).traces) == 1
        source.close()
        before = len(server.requests)
        wrong = Langfuse(url, public_key="pk", secret_key="no")
        with pytest.raises(SourceError, match="401: check its credentials"):
            wrong.page(BEGIN, NOW, None)
        wrong.close()
        assert len(server.requests) == before + 1


def test_times_on_the_command_line() -> None:
    assert _moment("--since", None, NOW) is None
    assert _moment("--since", "90m", NOW) == NOW - timedelta(minutes=90)
    assert _moment("--since", "7d", NOW) == NOW - timedelta(days=7)
    assert _moment("--since", "2026-03-01", NOW) == BEGIN
    assert _moment("--since", "2026-03-01T01:00:00+01:00", NOW) == BEGIN
    for text in ("yesterday", "7w", "-1h", "", "2026-13-01"):
        with pytest.raises(SettingsError, match=r"--until: .* is no time"):
            _moment("--until", text, NOW)


def test_sources_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_SINK_PHOENIX_URL", "http://phoenix.example:6006")
    source = _open("phoenix", None, "shop", ["a:b"])
    assert source.identity == "phoenix\0http://phoenix.example:6006\0shop\0a:b"
    source.close()
    with pytest.raises(SettingsError, match="mlflow takes one"):
        _open("mlflow", None, None, ["a", "b"])


def test_what_is_no_url_is_a_mistake_to_mend() -> None:
    with pytest.raises(SettingsError, match="http"):
        Phoenix("localhost:6006")


class AStore(BaseHTTPRequestHandler):
    """Answers with 200 and whatever it is told to."""

    said: ClassVar[bytes] = b"[]"
    of_traces: ClassVar[bytes | None] = None

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        of_traces = "trace_id=" in self.path or "traceId=" in self.path or "batchGet" in self.path
        data = self.of_traces if of_traces and self.of_traces is not None else self.said
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET  # noqa: N815 - as the server wants it

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def a_store() -> Iterator[tuple[type[AStore], str]]:
    handler = type("Handler", (AStore,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def sources(url: str) -> list[Any]:
    return [Phoenix(url), MLflow(url), Langfuse(url, public_key="pk", secret_key="sk")]


@pytest.mark.parametrize("said", [b"[]", b"null", b'"x"', b'{"data": 5, "traces": 5}', b"<html>"])
def test_an_answer_of_something_else_is_no_empty_page(said: bytes, a_store: tuple[type[AStore], str]) -> None:
    """Taken for one, it would end the range, and the next pull would begin behind it."""
    handler, url = a_store
    handler.said = said
    for source in sources(url):
        with pytest.raises(SourceError, match="is the URL right"):
            source.page(BEGIN, NOW, None)
        source.close()


def test_a_look_up_that_answers_with_something_else(a_store: tuple[type[AStore], str]) -> None:
    handler, url = a_store
    ids = {"trace_id": "ab" * 16, "span_id": "cd" * 8}
    rows = {"data": [{"context": ids, "traceId": "t", "id": "i"}], "traces": [{"trace_id": "tr-1"}]}
    handler.said, handler.of_traces = json.dumps(rows).encode(), b"[]"
    for source in sources(url):
        with pytest.raises(SourceError, match="is the URL right"):
            source.page(BEGIN, NOW, None)
        source.close()


def test_pages_that_lead_to_themselves_end_the_pull(a_store: tuple[type[AStore], str], tmp_path: Path) -> None:
    handler, url = a_store
    row = {"context": {"trace_id": "ab" * 16, "span_id": "cd" * 8}, "span_kind": "LLM"}
    handler.said = json.dumps({"data": [row], "next_cursor": "same"}).encode()
    handler.of_traces = json.dumps({"data": [row]}).encode()
    source = Phoenix(url)
    with pytest.raises(SourceError, match="leads to itself"):
        pull(source, taking=taking(), place=Place.read(tmp_path, source), since=BEGIN, until=NOW, now=NOW, queue=None)
    source.close()
