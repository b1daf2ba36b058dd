"""`assay collect` as a process: a trace in over HTTP, scored by a worker; SIGTERM loses nothing."""

from __future__ import annotations

import gzip
import json
import signal
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
