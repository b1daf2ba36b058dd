"""Takes the pictures of docs/howto/sinks.md: real Phoenix and MLflow pages with scores on a synthetic span.

make servers && python benchmarks/screenshots.py      # needs chromium
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from assay.sinks import Annotation, Delivered, open_sink
from assay.sinks._otlp import protobuf
from sink_server import an_annotation
from trace_servers import TraceServer, a_span, otlp_json, start_mlflow, start_phoenix

IMAGES = Path(__file__).parents[1] / "docs/images"
QUESTION = "How long do I have to return an order?"
ANSWER = "You can return an order within 90 days, and shipping is free."
TEXTS = {
    "input.value": QUESTION,
    "output.value": ANSWER,
    "gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": QUESTION}]}]),
    "gen_ai.output.messages": json.dumps(
        [{"role": "assistant", "parts": [{"type": "text", "content": ANSWER}], "finish_reason": "stop"}]
    ),
}


def scores(trace_id: str, span_id: str) -> list[Annotation]:
    """Two synthetic ones of one answer."""
    place = {"trace_id": trace_id, "span_id": span_id, "evaluated_at": datetime.now(UTC), "session_id": None}
    why = "The passages say 30 days, and nothing of free shipping: 1 of 3 claims is supported."
    return [
        an_annotation(
            **place, evaluation_id=uuid.uuid4(), value=1 / 3, raw=1 / 3, passed=False, label=None, explanation=why
        ),
        an_annotation(
            **place,
            evaluation_id=uuid.uuid4(),
            rubric="relevance",
            value=1.0,
            raw=5.0,
            label=None,
            explanation="It answers what was asked.",
        ),
    ]


def annotate(name: str, server: TraceServer, trace_id: str, span_id: str) -> None:
    """Write them, or end with what the sink says."""
    sink = open_sink(name, url=server.url)
    results = sink.deliver(scores(trace_id, span_id))
    sink.close()
    if results != [Delivered()] * 2:
        sys.exit(f"{name}: {results}")


def take(url: str, path: Path, *, click: str = "", width: int = 1440) -> None:
    """A picture of a page once it has come to rest, after a click on what has that text; cut to `width` pixels."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or sys.exit("chromium is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        arguments = [f"--user-data-dir={profile}", "--window-size=1440,900", "--remote-debugging-port=0", url]
        process = subprocess.Popen(
            [browser, "--headless=new", "--no-sandbox", "--hide-scrollbars", *arguments], stderr=subprocess.DEVNULL
        )
        try:
            written = Path(profile) / "DevToolsActivePort"
            while not written.exists() or not written.read_text().strip():
                time.sleep(0.2)
            path.write_bytes(asyncio.run(_picture(written.read_text().split()[0], click, width)))
        finally:
            process.terminate()
            process.wait(10)


#: These pages load in several steps, and say nowhere that they are done.
_REST_SECONDS = 15.0

#: The middle of the smallest element whose text begins so.
_FIND = """
(() => {
  const found = [...document.querySelectorAll("button, a, span, div")].filter(
    (e) => e.textContent.trim().startsWith(%s) && e.getBoundingClientRect().width > 0);
  found.sort((a, b) => a.textContent.length - b.textContent.length);
  const box = found[0].getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
})()
"""


async def _picture(port: str, click: str, width: int) -> bytes:
    """Over the DevTools protocol."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            page = next(one for one in await answer.json() if one["type"] == "page")
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as devtools:
            await asyncio.sleep(_REST_SECONDS)
            if click:
                found = await _ask(
                    devtools, "Runtime.evaluate", expression=_FIND % json.dumps(click), returnByValue=True
                )
                x, y = found["result"]["value"]
                for kind in ("mousePressed", "mouseReleased"):
                    place = {"x": x, "y": y, "button": "left", "clickCount": 1}
                    await _ask(devtools, "Input.dispatchMouseEvent", type=kind, **place)
                await asyncio.sleep(4)
            clip = {"x": 0, "y": 0, "width": width, "height": 740, "scale": 1}
            shown = await _ask(devtools, "Page.captureScreenshot", format="png", clip=clip)
            return base64.b64decode(shown["data"])


async def _ask(devtools: aiohttp.ClientWebSocketResponse, method: str, **parameters: Any) -> dict[str, Any]:
    await devtools.send_json({"id": 1, "method": method, "params": parameters})
    while True:
        answer = await devtools.receive_json(timeout=30)
        if answer.get("id") == 1:
            return answer["result"]


def main() -> None:
    """Take both."""
    trace_id, span_id = uuid.uuid4().hex, uuid.uuid4().hex[:16]
    span = a_span(trace_id, span_id, name="answer (synthetic)", **TEXTS)
    with tempfile.TemporaryDirectory() as home:
        server = start_phoenix(Path(home))
        try:
            server.call("POST", "/v1/traces", protobuf(otlp_json(span)), content_type="application/x-protobuf")
            annotate("phoenix", server, trace_id, span_id)
            address = f"{server.url}/redirects/traces/{trace_id}"
            take(address, IMAGES / "phoenix.png")
        finally:
            server.close()
    with tempfile.TemporaryDirectory() as home:
        server = start_mlflow(Path(home))
        try:
            server.call("POST", "/v1/traces", otlp_json(span), x_mlflow_experiment_id="0")
            annotate("mlflow", server, trace_id, span_id)
            page = f"{server.url}/#/experiments/0/traces?selectedEvaluationId=tr-{trace_id}"
            take(page, IMAGES / "mlflow.png", click="Assess", width=1008)
        finally:
            server.close()


if __name__ == "__main__":
    main()
