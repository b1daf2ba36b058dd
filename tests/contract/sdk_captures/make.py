"""Record what the vendors' own SDKs send for the evaluation in `sample.json`, one JSON file an SDK, beside this file.

Run by hand, not in CI, and look at the difference before you commit it:

    python tests/contract/sdk_captures/make.py              # all of them; installs each SDK into a directory of its own
    python tests/contract/sdk_captures/make.py langsmith    # one
    python tests/contract/sdk_captures/make.py --venvs DIR  # keep the environments there, and use those that are there

Each SDK runs in its own virtual environment and process against a server on loopback that answers as the vendor does.
A capture keeps method, path, the headers that matter and the body; ids and times that the SDK makes up are blanked.
Needs the standard library only, and network (or an index) for pip. A newer SDK: change `VERSIONS`, run, read the diff.
"""

from __future__ import annotations

import argparse
import base64
import datetime as dt
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import uuid
import venv
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VERSIONS = {
    "langfuse": "langfuse==5.0.4",
    "datadog": "ddtrace==4.16.0",
    "langsmith": "langsmith==0.14.17",
    "braintrust": "braintrust==0.47.0",
    "opik": "opik==2.2.122",
    "weave": "weave==0.54.0",
    "latitude": "latitude-sdk==9.15.0",
}
#: Headers that say who is asking, and in what form; all others are the HTTP library's own business.
KEPT_HEADERS = (
    "authorization",
    "x-api-key",
    "dd-api-key",
    "comet-workspace",
    "content-type",
    "x-datadog-evp-subdomain",
)
PROJECT = "00000000-0000-4000-8000-00000000beef"
SAMPLE = json.loads((HERE / "sample.json").read_text())
FACTS: dict[str, Any] = SAMPLE["annotation"]
PROVENANCE: dict[str, Any] = SAMPLE["provenance"]
NOW = dt.datetime.fromisoformat(FACTS["evaluated_at"])


class Capture(BaseHTTPRequestHandler):
    """Answers whatever the SDK under test wants to hear, and keeps what it said."""

    seen: list[dict[str, Any]] = []  # noqa: RUF012 - one process, one server
    answers: dict[str, tuple[int, Any]] = {}  # noqa: RUF012

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        encoding = self.headers.get("content-encoding", "")
        if "gzip" in encoding:
            body = gzip.decompress(body)
        elif "deflate" in encoding:
            body = zlib.decompress(body)
        try:
            said: Any = json.loads(body) if body else None
        except ValueError:
            said = {"not json": len(body)}
        headers = {k.lower(): v for k, v in self.headers.items() if k.lower() in KEPT_HEADERS}
        self.seen.append({"method": self.command, "path": self.path, "headers": headers, "body": said})
        status, answer = next((a for path, a in self.answers.items() if path in self.path), (200, {}))
        content = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = _take  # noqa: N815


def langfuse(url: str) -> None:
    """`create_score`, NUMERIC."""
    from langfuse import Langfuse  # type: ignore[import-not-found]

    Capture.answers = {"/api/public/scores": (202, {"message": "Accepted"})}
    client = Langfuse(public_key="pk-synthetic", secret_key="sk-synthetic", base_url=url)
    client.create_score(
        name=FACTS["rubric"],
        value=FACTS["value"],
        trace_id=FACTS["trace_id"],
        observation_id=FACTS["span_id"],
        score_id=FACTS["evaluation_id"],
        data_type="NUMERIC",
        comment=FACTS["explanation"],
        metadata=PROVENANCE,
        timestamp=NOW,
    )
    client.flush()


def datadog(url: str) -> None:
    """`LLMObs.submit_evaluation`, agentless, a score."""
    os.environ |= {"DD_LLMOBS_OVERRIDE_ORIGIN": url, "DD_API_KEY": "key-synthetic", "DD_SITE": "datadoghq.com"}
    os.environ |= {"DD_TRACE_ENABLED": "false", "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false"}
    from ddtrace.llmobs import LLMObs  # type: ignore[import-not-found]

    LLMObs.enable(agent_service=FACTS["app"], agentless_enabled=True, integrations_enabled=False)
    LLMObs.submit_evaluation(
        span={"span_id": str(int(FACTS["span_id"], 16)), "trace_id": str(int(FACTS["trace_id"], 16))},
        label=FACTS["rubric"],
        metric_type="score",
        value=FACTS["value"],
        agent_service=FACTS["app"],
        timestamp_ms=int(NOW.timestamp() * 1000),
        tags={"source": "otel", "rubric_version": FACTS["rubric_version"]},
        metadata=PROVENANCE,
        assessment="pass",
        reasoning=FACTS["explanation"],
    )
    LLMObs.flush()
    LLMObs.disable()


def langsmith(url: str) -> None:
    """`create_feedback` of a run that came by OpenTelemetry."""
    from langsmith import Client  # type: ignore[import-not-found]
    from langsmith.integrations.otel import langsmith_run_id_from_otel_span_id  # type: ignore[import-not-found]

    Client(api_url=url, api_key="key-synthetic", info={}).create_feedback(
        run_id=langsmith_run_id_from_otel_span_id(int(FACTS["span_id"], 16)),
        key=FACTS["rubric"],
        score=FACTS["value"],
        value=FACTS["label"],
        comment=FACTS["explanation"],
        feedback_source_type="model",
        source_info=PROVENANCE,
        feedback_id=FACTS["evaluation_id"],
        session_id=PROJECT,
        extend_trace_retention=False,
    )


def braintrust(url: str) -> None:
    """`log_feedback` of a project's logs."""
    os.environ |= {"BRAINTRUST_API_URL": url, "BRAINTRUST_APP_URL": url}
    import braintrust as sdk  # type: ignore[import-not-found]

    organisation = {"id": PROJECT, "name": "synthetic", "api_url": url, "proxy_url": url}
    Capture.answers = {
        "/api/apikey/login": (200, {"org_info": [organisation]}),
        "/api/project/register": (200, {"project": {"id": PROJECT, "name": "synthetic"}}),
        "/v1/project": (200, {"id": PROJECT, "name": "synthetic"}),
        "/version": (200, {"logs3_payload_max_bytes": 6_000_000}),
    }
    logger = sdk.init_logger(project="synthetic", api_key="key-synthetic", app_url=url, set_current=False)
    logger.log_feedback(
        id=FACTS["sink_refs"]["braintrust_row_id"],
        scores={FACTS["rubric"]: FACTS["value"]},
        comment=FACTS["explanation"],
        metadata=PROVENANCE,
        source="api",
    )
    logger.flush()


def opik(url: str) -> None:
    """`log_traces_feedback_scores`."""
    os.environ |= {"OPIK_SENTRY_ENABLE": "false", "OPIK_CHECK_TLS_CERTIFICATE": "false"}
    import opik as sdk  # type: ignore[import-not-found]

    Capture.answers = {"feedback-scores": (204, None)}
    client = sdk.Opik(host=url + "/api/", api_key="key-synthetic", workspace="team", project_name="helpdesk")
    client.log_traces_feedback_scores(
        scores=[
            {
                "id": FACTS["sink_refs"]["opik_trace_id"],
                "name": FACTS["rubric"],
                "value": FACTS["value"],
                "reason": FACTS["explanation"],
                "category_name": FACTS["label"],
            }
        ],
        project_name="helpdesk",
    )
    client.flush()
    client.end()


def weave(url: str) -> None:
    """The feedback calls of its trace server binding, one alone and one in a batch."""
    from weave.trace.feedback import feedback_create_params  # type: ignore[import-not-found]
    from weave.trace_server_bindings.remote_http_trace_server import (  # type: ignore[import-not-found]
        RemoteHTTPTraceServer,
    )

    row = {"id": FACTS["evaluation_id"], "created_at": FACTS["evaluated_at"], "payload": {}, "wb_user_id": "u"}
    Capture.answers = {"/feedback/batch/create": (200, {"res": [row]}), "/feedback/create": (200, row)}
    server = RemoteHTTPTraceServer(url, password="key-synthetic")
    feedback = feedback_create_params(
        project_id="team/helpdesk",
        weave_ref=f"weave:///team/helpdesk/call/{FACTS['span_id']}",
        feedback_type=f"assay.{FACTS['rubric']}",
        payload={"value": FACTS["value"], "explanation": FACTS["explanation"], **PROVENANCE},
        creator="assay",
    )
    feedback |= {
        "id": FACTS["evaluation_id"],
        "scorer_ratings": {FACTS["rubric"]: FACTS["value"]},
        "scorer_rating_reasons": {FACTS["rubric"]: FACTS["explanation"]},
        "span_trace_id": FACTS["trace_id"],
    }
    server.feedback_create(feedback)
    server.feedback_create_batch({"batch": [feedback]})


def latitude(url: str) -> None:
    """`scores.create`, a custom score."""
    from latitude_sdk import CreateCustomScoreBody, LatitudeClient, TraceRef_Id  # type: ignore[import-not-found]

    client = LatitudeClient(api_key="key-synthetic", base_url=url)
    body = CreateCustomScoreBody(
        value=FACTS["value"],
        passed=FACTS["passed"],
        feedback=FACTS["explanation"],
        trace=TraceRef_Id(id=FACTS["trace_id"]),
        source_id=f"assay/{FACTS['rubric']}/{FACTS['rubric_version']}",
        metadata=PROVENANCE,
    )
    Capture.answers = {"/scores": (201, {})}
    try:
        client.scores.create(project_slug="helpdesk", request=body)
    except Exception as error:  # noqa: BLE001 - the answer above is no whole score; what was sent is kept
        print(f"latitude: the SDK does not like the answer, which changes nothing: {type(error).__name__}")


#: The SDK's own bookkeeping: log-ins, versions, the registration of a project.
CHATTER = re.compile(
    r"^/(api/)?(apikey|project/register|v1/project$|version|info|v1/private/(projects|toggles)|server_info|geo)"
)


def capture(name: str, version: str) -> None:
    """Run one SDK in this process and write its file."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Capture)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    globals()[name](url)
    requests = [blanked(r, url) for r in Capture.seen if r["method"] != "GET" and not CHATTER.match(r["path"])]
    if not requests:
        raise SystemExit(f"{name}: nothing was sent; seen: {[r['path'] for r in Capture.seen]}")
    found = {"sdk": version, "captured": dt.datetime.now(dt.UTC).date().isoformat(), "requests": requests}
    (HERE / f"{name}.json").write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    print(f"{name}: {len(requests)} requests of {version}")
    sys.stdout.flush()
    os._exit(0)  # SDKs leave threads that wait for servers which are not there


def blanked(request: dict[str, Any], url: str) -> dict[str, Any]:
    """The request without what is different in each run: ids and times that are made up, the SDK's own version."""
    text = json.dumps(request).replace(url, "http://server")
    known = json.dumps(SAMPLE)
    for made in set(re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", text)):
        # run ids are derived from the span id; the project is ours
        if made not in known and made != PROJECT and uuid.UUID(made).int >> 64:
            text = text.replace(made, "<made up id>")
    for time in set(re.findall(r"20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*(?:[+]\d\d:\d\d|Z)?", text)):
        # A time of ours is one of the sample's, however the SDK writes it.
        at = dt.datetime.fromisoformat(time)
        if at.tzinfo is None or abs((at - NOW).total_seconds()) > 1:
            text = text.replace(time, "<time of the run>")
    text = re.sub(r"ddtrace\.version:[\w.]+", "ddtrace.version:<version>", text)
    text = re.sub(r'"content-type": "multipart[^"]*"', '"content-type": "multipart"', text)
    found: dict[str, Any] = json.loads(text)
    basic = found["headers"].get("authorization", "")
    if basic.startswith("Basic "):
        found["headers"]["authorization"] = "Basic of " + base64.b64decode(basic[6:]).decode()
    return found


def main() -> None:
    """Install what is asked for, and run each SDK in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*VERSIONS, []], help="SDKs to run; all when none is named")
    parser.add_argument("--venvs", type=Path, help="directory of the environments; a temporary one when not given")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        capture(given.names[0], VERSIONS[given.names[0]])
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.names or VERSIONS:
            home = (given.venvs or Path(scratch)) / name
            python = home / "bin" / "python"
            if not python.exists():
                venv.create(home, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "-q", VERSIONS[name]], check=True)
            # Telemetry of SDKs goes nowhere: their home is the scratch directory, and only loopback is named.
            environment = {k: v for k, v in os.environ.items() if k in {"PATH", "LANG", "LC_ALL"}}
            environment |= {"HOME": scratch, "DO_NOT_TRACK": "true", "NO_PROXY": "127.0.0.1"}
            subprocess.run([python, __file__, name, "--here"], check=True, env=environment, cwd=scratch, timeout=300)


if __name__ == "__main__":
    main()
