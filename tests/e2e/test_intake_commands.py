"""`assay collect` as a process: a trace in over HTTP, scored by a worker; SIGTERM loses nothing."""

from __future__ import annotations

import gzip
import json
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from corpus import EXPECTED, scenarios
from deployment import Deployment, end, get_json, total, wait_until

pytestmark = pytest.mark.e2e


def test_a_trace_comes_in_and_is_scored(tmp_path: Path) -> None:
    with Deployment(tmp_path, f"sqlite:///{tmp_path}/scores.db", judge="lexical", collect_settle_seconds=0) as here:
        collector = here.start("collect", "--port", "0")
        log: Path = collector.log  # type: ignore[attr-defined]
        wait_until(lambda: b"/v1/traces" in log.read_bytes(), collector)
        url = next(word for word in log.read_text().split() if word.endswith("/v1/traces"))
        expected = json.loads(EXPECTED.read_text())
        sent = 0
        for _ in range(2):  # the same again is scored once
            for name, found in scenarios("openinference-openai").items():
                body = gzip.compress(json.dumps(found["traces"]).encode())
                headers = {"content-type": "application/json", "content-encoding": "gzip"}
                with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
                    assert answer.status == 200
                sent += len(expected["openinference-openai"][name]["interactions"])
        counts = get_json(url.replace("/v1/traces", "/healthz"))
        assert counts["requests"] == {"ok": 10}
        metrics = url.replace("/v1/traces", "/metrics")
        assert total(metrics, "assay_collect_requests_total", outcome="ok") == 10
        assert total(metrics, "assay_collect_spans_total", outcome="kept") > 0
        assert end(collector, signal.SIGTERM) == 0  # sends what it has
        worker = here.start_worker()
        here.drain(worker)
        assert here.record_rows() == sent / 2 == 5
        assert sum(here.outcomes()["relevance"].values()) == 5


def test_with_redis_away_senders_of_large_texts_are_told_to_come_again_and_nothing_is_dropped(tmp_path: Path) -> None:
    away = {"redis_url": "redis://127.0.0.1:1/0", "collect_max_bytes": 4_000_000, "collect_settle_seconds": 0}
    url = f"sqlite:///{tmp_path}/scores.db"
    with Deployment(tmp_path, url, collect_max_body_bytes=1_000_000, **away) as here:
        collector = here.start("collect", "--port", "0")
        log: Path = collector.log  # type: ignore[attr-defined]
        wait_until(lambda: b"/v1/traces" in log.read_bytes(), collector)
        url = next(word for word in log.read_text().split() if word.endswith("/v1/traces"))
        ends, number, refused = time.monotonic() + 60, 0, 0
        while refused < 3:
            assert time.monotonic() < ends
            number += 1
            spans = [
                {
                    "traceId": f"{number:032x}",
                    "spanId": f"{number:016x}",
                    "name": "chat",
                    "attributes": [
                        {"key": name, "value": {"stringValue": text}}
                        for name, text in (
                            ("gen_ai.operation.name", "chat"),
                            ("gen_ai.input.messages", message("user", "synthetic " * 9_000)),
                            ("gen_ai.output.messages", message("assistant", "ok")),
                        )
                    ],
                }
            ]
            body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode()
            status, _ = asked(url, body)
            assert status in (200, 503)
            if status == 503:
                refused += 1
                time.sleep(0.5)
        _, counts = asked(url.replace("/v1/traces", "/healthz"))
        (client,) = json.loads(counts)["clients"].values()
        assert client["buffered"] > 0
        assert not [name for name in client if name.startswith("dropped")]


def asked(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    try:
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def message(role: str, text: str) -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with Deployment(tmp_path, f"sqlite:///{tmp_path}/scores.db") as here:
        for arguments, said in (
            (("pull", "phoenix", "--since", "yesterday"), "--since: 'yesterday' is no time"),
            (("pull", "langfuse"), "ASSAY_SINK_LANGFUSE_PUBLIC_KEY"),
        ):
            done = here.run(*arguments, check=False)
            assert done.returncode == 2, done.stderr
            assert said in done.stderr.decode()
            assert len(done.stderr.decode().strip().splitlines()) == 1
