"""Real trace stores for tests, from PyPI, each in an environment of its own under `.servers/` (`make servers`).

Fixtures `phoenix`, `mlflow` and `test_agent`: one server of each for the whole session, with helpers that speak to its
own API and to nothing of assay's. Where one is not installed its tests are skipped, or fail when CI is set.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from servers import free_port, missing

SERVERS = Path(os.environ.get("ASSAY_E2E_SERVERS") or Path(__file__).parents[1] / ".servers")


class TraceServer:
    """A server process; `url` is where it answers."""

    def __init__(
        self, program: str, arguments: Sequence[str], environment: dict[str, str], *, port: int, ready: str
    ) -> None:
        name = program.partition("/")[0]
        binary = SERVERS / name / "bin" / program.partition("/")[2]
        if not binary.exists():
            missing(f"{name} (make servers)")
        self.url = f"http://127.0.0.1:{port}"
        self.log = Path(environment["HOME"]) / f"{name}.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("ASSAY_", "OTEL_", "OPENAI_"))}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(binary), *arguments],
                env=clean | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=environment["HOME"],
                start_new_session=True,  # it has children, which are ended with it
            )
        self._wait(ready)

    def _wait(self, path: str) -> None:
        ends = time.monotonic() + 180
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                break
            try:
                self.call("GET", path)
            except (OSError, urllib.error.URLError):
                time.sleep(0.2)
            else:
                return
        said = self.log.read_text(errors="replace")[-3000:]
        self.close()
        raise AssertionError(f"the server did not come up:\n{said}")

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """One request to its API; a JSON answer, decoded, else the text."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {
            "content-type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=given)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
        try:
            return json.loads(text)
        except ValueError:
            return text

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(5)


def a_span(trace_id: str, span_id: str, *, name: str = "chat synthetic-1", **attributes: str) -> dict[str, Any]:
    """A finished span of a synthetic call of a model, as OTLP's JSON has it."""
    begun = time.time_ns() - 2_000_000_000
    known = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "synthetic-1", **attributes}
    return {
        "traceId": trace_id,
        "spanId": span_id,
        "name": name,
        "kind": 3,
        "startTimeUnixNano": str(begun),
        "endTimeUnixNano": str(begun + 1_000_000_000),
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in known.items()],
    }


def otlp_json(*spans: dict[str, Any]) -> dict[str, Any]:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "synthetic-shop"}}]}
    return {
        "resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "test"}, "spans": list(spans)}]}]
    }


def start_phoenix(home: Path) -> TraceServer:
    """Arize Phoenix on SQLite, with its files under `home`."""
    port = free_port()
    environment = {
        "HOME": str(home),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_WORKING_DIR": str(home),
        "PHOENIX_SQL_DATABASE_URL": f"sqlite:///{home}/phoenix.db",
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        # It comes with an assistant that may run commands.
        "PHOENIX_AGENTS_DISABLE_BASH": "true",
        "PHOENIX_AGENTS_DISABLE_WEB_ACCESS": "true",
    }
    return TraceServer("phoenix/phoenix", ["serve"], environment, port=port, ready="/healthz")


def start_mlflow(home: Path) -> TraceServer:
    """MLflow's tracking server on SQLite, with its files under `home`."""
    port = free_port()
    environment = {
        "HOME": str(home),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # Or it starts nine processes.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    arguments = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--default-artifact-root", f"{home}/artifacts"]
    return TraceServer("mlflow/mlflow", arguments, environment, port=port, ready="/health")


@pytest.fixture(scope="session")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TraceServer]:
    server = start_phoenix(tmp_path_factory.mktemp("phoenix"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TraceServer]:
    server = start_mlflow(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.close()


class TestAgent(TraceServer):
    """Datadog's test agent: takes OTLP at `url`, and gives it back; `agent_url` takes what Datadog's intake takes."""

    __test__ = False
    agent_url: str


@pytest.fixture(scope="session")
def test_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAgent]:
    """ddapm-test-agent, as a receiver of OTLP that is nobody's of ours."""
    home, port, otlp = tmp_path_factory.mktemp("ddapm"), free_port(), free_port()
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--otlp-http-port", str(otlp)]
    arguments += ["--otlp-grpc-port", str(free_port()), "--disable-llmobs-data-forwarding"]
    environment = {"HOME": str(home)}
    server = TestAgent("ddapm/ddapm-test-agent", arguments, environment, port=otlp, ready="/test/session/logs")
    server.agent_url = f"http://127.0.0.1:{port}"
    yield server
    server.close()
