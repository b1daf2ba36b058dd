"""The examples run as they stand: a real server, a local model, and the records on a real Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from assay.codec import decode_record
from assay.queue import decode_batch, is_batch
from assay.records import Record
from assay.testing import FakeJudgeServer, Reply
from deployment import end, wait_until
from servers import free_port

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "How long does delivery to Norway take?"
ANSWER = "4 to 6 working days."


def run(example: str, redis_url: str, tmp_path: Path) -> tuple[list[str], list[Record]]:
    """Ask the example once, end it, and look what is on the queue."""
    port, log = free_port(), tmp_path / "log"
    with FakeJudgeServer() as model:
        model.script(Reply(content=ANSWER))
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("ASSAY_", "OTEL_"))}
        with log.open("wb") as out:
            server = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)],
                cwd=EXAMPLES / example,
                env=clean
                | {"ASSAY_REDIS_URL": redis_url, "OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": "synthetic"},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        server.log = log  # type: ignore[attr-defined]
        try:
            wait_until(lambda: b"running on" in log.read_bytes(), server)
            url = f"http://127.0.0.1:{port}/ask?" + urllib.parse.urlencode({"question": QUESTION})
            with urllib.request.urlopen(url, timeout=30) as answer:
                said = [json.load(answer)["answer"]]
        finally:
            assert end(server, signal.SIGTERM) in (0, -signal.SIGTERM), log.read_text()
    return said, _queued(redis_url)


def _queued(redis_url: str) -> list[Record]:
    import redis

    with redis.Redis.from_url(redis_url) as plain:
        hashes = [key for key in plain.scan_iter("*") if plain.type(key) == b"hash"]
        payloads = [value for key in hashes for value in plain.hvals(key) if is_batch(value)]
    return [decode_record(raw) for payload in payloads for raw in decode_batch(payload).records]


def test_fastapi_rag_with_the_client(redis_url: str, tmp_path: Path) -> None:
    said, (record,) = run("fastapi_rag", redis_url, tmp_path)
    assert said == [ANSWER]
    assert (record.app, record.route, record.input, record.output) == ("fastapi-rag", "/ask", QUESTION, ANSWER)
    assert "Delivery to Norway takes 4 to 6 working days." in [context.text for context in record.contexts]
    assert record.finish_reason == "stop"
    assert record.latency_seconds is not None


def test_fastapi_rag_with_opentelemetry_only(redis_url: str, tmp_path: Path) -> None:
    said, (record,) = run("fastapi_rag_otel", redis_url, tmp_path)
    assert said == [ANSWER]
    assert (record.app, record.route, record.output) == ("fastapi-rag-otel", "/ask", ANSWER)
    assert not isinstance(record.input, str)
    assert record.input[-1].content == QUESTION
    assert "Delivery to Norway takes 4 to 6 working days." in [context.text for context in record.contexts]
    assert record.model == "gpt-5-mini"
    assert record.usage.prompt_tokens
    assert record.usage.completion_tokens
    assert record.trace_id
    assert record.record_id == f"otel-{record.trace_id}-{record.span_id}"
