# ruff: noqa: PT017 - the error and the outcome are looked at alike
"""Servers that answer with anything: a judge gives outcomes or its error, a pull ends with its error."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings

from assay.errors import JudgeError, SourceError
from assay.pull.langfuse import Langfuse
from assay.pull.mlflow import MLflow
from assay.pull.phoenix import Phoenix
from assay.records import Failure, FailureKind, NotApplicable, Score
from fuzz.hostile import WHOLE, mutated
from fuzz.hostile_server import HostileServer, answer
from fuzz.test_readers import EXAMPLES
from judging import a_record, claims, openai_judge, ordinal

_CONTENT = json.dumps({"relevance": {"explanation": "so", "level": 4}, "faithfulness": {"claims": []}})
_COMPLETION = json.dumps(
    {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5-mini",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": _CONTENT, "refusal": None},
                "logprobs": {"content": [{"token": "pass", "logprob": -0.1, "bytes": [112], "top_logprobs": []}]},
            }
        ],
        "usage": {"prompt_tokens": 900, "completion_tokens": 2, "total_tokens": 902},
    }
).encode()
_CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
_ANSWERS = {
    "nothing": b"",
    "noise": b"\0\xff\xfe\r\n\r\n" * 100,
    "no HTTP": b"SSH-2.0-synthetic\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-type: appl",
    "wrong length": b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n{}",
    "no length": b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n{}",
    "negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}",
    "huge header": b"HTTP/1.1 200 OK\r\nx: " + b"x" * 1_000_000 + b"\r\n\r\n{}",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000 + b"\r\n{}",
    "chunked noise": _CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
    "endless chunk": _CHUNKED + b"ffffffffffffffffff\r\n{}",
    "torn chunk": _CHUNKED + b"5\r\n{",
    "page": answer(b"<html>\xff</html>", kind="text/html"),
    "text": answer(_COMPLETION, kind="text/plain; charset=utf-77"),
    "no gzip": answer(b"{}", more=b"content-encoding: gzip\r\n"),
    "unknown encoding": answer(_COMPLETION, more=b"content-encoding: rot13\r\n"),
    "bomb": answer(gzip.compress(b" " * 50_000_000, 1), more=b"content-encoding: gzip\r\n"),
    "status": b"HTTP/1.1 999999 Odd\r\n\r\n",
    "teapot": answer(b"\xff", status="418 \xff".encode().decode()),
    "moved": answer(b"", status="302 Found", more=b"location: file:///etc/passwd\r\n"),
    "later": answer(b"", status="400 Bad", more=b"retry-after: 9" + b"9" * 400 + b"\r\n"),
    "early hints": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50 + answer(b"{}"),
    **{f"body: {name}": answer(data) for name, data in WHOLE.items() if not name.startswith("laughs")},
}


async def _outcomes(base_url: str) -> list[Any]:
    try:
        async with openai_judge(f"{base_url}/v1", api_key="sk-synthetic-key", timeout_seconds=20.0) as judge:
            return list(await judge.judge(a_record(), [ordinal(), claims()]))
    except JudgeError as error:
        assert error.kind in get_args(FailureKind)
        return []


def _judged(server: HostileServer) -> list[Any]:
    found = asyncio.run(_outcomes(server.url))
    for outcome in found:
        assert isinstance(outcome, Score | Failure | NotApplicable)
        assert not isinstance(outcome, Failure) or outcome.kind in get_args(FailureKind)
        assert not isinstance(outcome, Score) or 0 <= outcome.value <= 1
    return found


@pytest.mark.parametrize("name", _ANSWERS)
def test_a_judge_makes_failures_of_what_is_no_answer(name: str) -> None:
    with HostileServer([_ANSWERS[name]]) as server:
        found = _judged(server)
        assert server.asked
    assert not any(isinstance(outcome, Score) for outcome in found) or name in ("text", "unknown encoding")


def test_a_judge_reads_whatever_a_completion_is_mutated_to() -> None:
    with HostileServer() as server:

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(mutated((_COMPLETION,)))
        def run(body: bytes) -> None:
            server.answers = [answer(body)]
            _judged(server)

        server.answers = [answer(_COMPLETION)]
        assert any(isinstance(outcome, Score) for outcome in _judged(server))
        run()


_TRACE = {
    "info": {"trace_id": "tr-1", "request_time": "2026-01-31T12:00:00Z", "state": "OK"},
    "spans": [{"trace_id": "a", "span_id": "b", "name": "n", "start_time_unix_nano": "1", "attributes": []}],
}
_SOURCES: dict[str, tuple[Callable[[str], Any], bytes]] = {
    "langfuse": (
        lambda url: Langfuse(url, public_key="p", secret_key="s"),
        json.dumps(
            {
                "data": [{"id": "o1", "traceId": "t1", "type": "GENERATION", "startTime": "2026-01-31T12:00:00Z"}],
                "meta": {"page": 1, "totalPages": 1, "cursor": None},
            }
        ).encode(),
    ),
    "phoenix": (
        Phoenix,
        json.dumps(
            {
                "data": [
                    {
                        "id": "s1",
                        "name": "llm",
                        "context": {"trace_id": "a" * 32, "span_id": "b" * 16},
                        "span_kind": "LLM",
                        "start_time": "2026-01-31T12:00:00Z",
                        "end_time": "2026-01-31T12:00:01Z",
                        "attributes": {"openinference.span.kind": "LLM"},
                        "events": [],
                    }
                ],
                "next_cursor": None,
            }
        ).encode(),
    ),
    "mlflow": (MLflow, json.dumps({"traces": [_TRACE], "next_page_token": None}).encode()),
}


@pytest.mark.parametrize("name", _SOURCES)
def test_a_pull_of_pages_that_are_none_ends_with_its_error(name: str) -> None:
    make, page = _SOURCES[name]
    day = datetime(2026, 1, 31, tzinfo=UTC)
    with HostileServer() as server:
        source = make(server.url)

        def read(body: bytes) -> bool:
            server.answers = [answer(body)]
            try:
                found = source.page(day, day.replace(hour=12), None)
            except SourceError as error:
                assert "\n" not in str(error)
                return False
            assert found.cursor is None or isinstance(found.cursor, str)
            return True

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(mutated((page,)))
        def run(body: bytes) -> None:
            read(body)

        assert read(page)
        run()
        for data in WHOLE.values():
            read(data)
        source.close()
