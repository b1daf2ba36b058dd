"""`assay pull` from real Phoenix and MLflow servers: spans in by OTLP, records on a real Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from assay.queue import decode_batch, is_batch
from corpus import EXPECTED, scenarios
from trace_servers import TraceServer

pytestmark = pytest.mark.integration

#: `otel-latest` too: both servers translate what they know of it.
SENT = ("openllmetry", "openinference-openai", "openinference-langchain", "otel-latest")


def send(server: TraceServer, **headers: str) -> dict[str, dict[str, Any]]:
    """The corpus, as an exporter sends it; what is expected of it, by record id."""
    for dialect in SENT:
        for found in scenarios(dialect).values():
            body = ParseDict(found["traces"], ExportTraceServiceRequest()).SerializeToString()
            server.call("POST", "/v1/traces", body, content_type="application/x-protobuf", **headers)
    expected = json.loads(EXPECTED.read_text())
    return {
        fields["record_id"]: fields
        for dialect in SENT
        for told in expected[dialect].values()
        for fields in told["interactions"]
    }


@pytest.fixture
def assay(redis_url: str, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ASSAY_")}
    environment = clean | {"ASSAY_REDIS_URL": redis_url, "ASSAY_DATA_DIR": str(tmp_path)}

    def run(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "assay", *arguments, "--json"], env=environment, capture_output=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr.decode()
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def queued(redis_url: str) -> list[dict[str, Any]]:
    import redis

    with redis.Redis.from_url(redis_url) as plain:
        hashes = [key for key in plain.scan_iter("*") if plain.type(key) == b"hash"]
        payloads = [value for key in hashes for value in plain.hvals(key) if is_batch(value)]
    return [json.loads(raw) for payload in payloads for raw in decode_batch(payload).records]


def check(records: list[dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    ids = [record["record_id"] for record in records]
    assert sorted(ids) == sorted(expected)
    for record in records:
        fields = expected[record["record_id"]]
        assert record.get("output", "") == fields["output"]
        assert record["input"][-1]["content"] == fields["input"][-1]["content"]
        assert [context["text"] for context in record.get("contexts", [])] == [
            context["text"] for context in fields.get("contexts", [])
        ]
        assert record.get("usage", {}) == fields.get("usage", {})


def test_phoenix(phoenix: TraceServer, redis_url: str, assay: Callable[..., dict[str, Any]]) -> None:
    expected = send(phoenix)
    pulled = ("pull", "phoenix", "--url", phoenix.url, "--since", "3650d", "--until", "2100-01-01")
    ends = 100
    while (found := assay(*pulled, "--dry-run"))["enqueued"] < len(expected):  # spans are stored after a moment
        ends -= 1
        assert ends, found
    assert queued(redis_url) == []
    first = assay(*pulled, "--limit", "5")
    assert (first["enqueued"], first["finished"]) == (5, False)
    rest = assay("pull", "phoenix", "--url", phoenix.url)
    assert (rest["enqueued"], rest["finished"]) == (len(expected) - 5, True)
    records = [record for record in queued(redis_url) if record["record_id"] in expected]
    check(records, expected)
    nothing = assay(*pulled[:4], "--filter", "gen_ai.request.model:no-such-model", "--dry-run")
    assert nothing["enqueued"] == 0


def test_mlflow(mlflow: TraceServer, redis_url: str, assay: Callable[..., dict[str, Any]]) -> None:
    made = mlflow.call("POST", "/api/2.0/mlflow/experiments/create", {"name": "pulled"})
    expected = send(mlflow, x_mlflow_experiment_id=made["experiment_id"])
    pulled = ("pull", "mlflow", "--url", mlflow.url, "--project", "pulled", "--since", "3650d", "--until", "2100-01-01")
    assert assay(*pulled, "--dry-run")["enqueued"] == len(expected)
    assert assay(*pulled, "--limit", "5")["finished"] is False
    assert assay(*pulled)["enqueued"] == len(expected) - 5
    records = queued(redis_url)
    check(records, expected)
    assert all(record["sink_refs"]["mlflow_trace_id"] == f"tr-{record['trace_id']}" for record in records)
    assert all(record["app"] == "synthetic-shop" for record in records)
    nothing = assay(*pulled[:6], "--since", "3650d", "--filter", "tags.`none` = 'x'", "--dry-run")
    assert nothing["enqueued"] == 0
