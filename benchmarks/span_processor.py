"""What `RecordingSpanProcessor` costs the app's thread for each span, beside json.dumps of the same content.

Each pair of spans (a retrieval with four passages, a chat with its messages, about 4 kB together) is ended at a steady
rate, once with the processor and once without, and the difference of whole traces is shown beside `on_end` alone. The
bound: p99 of on_end under 100 microseconds, with Redis up, down and stopped (SIGSTOP).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from client_cost import ANSWER, PASSAGES, QUESTION, quantiles
from opentelemetry.sdk.trace import TracerProvider

from assay.embedded import RedisServer
from assay.otel import RecordingSpanProcessor

RATE = 250
P99_SECONDS = 100e-6
MESSAGES = json.dumps([{"role": "user", "parts": [{"type": "text", "content": QUESTION}]}])
SAID = json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": ANSWER}], "finish_reason": "stop"}])
CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "gpt-5-mini",
    "gen_ai.usage.input_tokens": 900,
    "gen_ai.usage.output_tokens": 120,
    "gen_ai.input.messages": MESSAGES,
    "gen_ai.output.messages": SAID,
}
RETRIEVAL = {"openinference.span.kind": "RETRIEVER"} | {
    f"retrieval.documents.{place}.document.content": text for place, text in enumerate(PASSAGES)
}


class Timed(RecordingSpanProcessor):
    """Notes how long `on_start` and `on_end` take together."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._begun = (0.0, 0.0)

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        begun, used = time.perf_counter(), time.thread_time_ns()
        super().on_start(span, parent_context)
        self._begun = (time.perf_counter() - begun, (time.thread_time_ns() - used) / 1e9)

    def on_end(self, span: Any) -> None:
        begun, used = time.perf_counter(), time.thread_time_ns()
        super().on_end(span)
        self.wall.append(time.perf_counter() - begun + self._begun[0])
        self.cpu.append((time.thread_time_ns() - used) / 1e9 + self._begun[1])


def run(provider: TracerProvider, seconds: float) -> None:
    tracer = provider.get_tracer("bench")
    start = time.perf_counter()
    for number in range(int(seconds * RATE)):
        while (left := start + number / RATE - time.perf_counter()) > 0:
            time.sleep(left)
        with tracer.start_as_current_span("GET /ask", attributes={"http.route": "/ask"}):
            with tracer.start_as_current_span("retrieval", attributes=RETRIEVAL):
                pass
            with tracer.start_as_current_span("chat", attributes=CHAT):
                pass


def dumps(seconds: float) -> tuple[list[float], list[float]]:
    wall, cpu = [], []
    content = {**CHAT, **RETRIEVAL}
    start = time.perf_counter()
    for number in range(int(seconds * RATE)):
        while (left := start + number / RATE - time.perf_counter()) > 0:
            time.sleep(left)
        begun, used = time.perf_counter(), time.thread_time_ns()
        json.dumps(content)
        wall.append(time.perf_counter() - begun)
        cpu.append((time.thread_time_ns() - used) / 1e9)
    return wall, cpu


def line(name: str, wall: list[float], cpu: list[float], more: str) -> tuple[float, float]:
    skip = min(len(wall) // 10, 200)  # not the first ones: the threads start, and redis is imported
    (p50, p99), (cpu50, cpu99) = quantiles(wall[skip:]), quantiles(cpu[skip:])
    print("| " + " | ".join([name, *(f"{t * 1e6:.1f}" for t in (p50, p99, cpu50, cpu99)), more]) + " |")
    return p99, cpu99


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each case runs")
    seconds = parser.parse_args().seconds
    logging.disable()  # the client says that Redis is away: so it should be
    print("| microseconds in the app's thread, a span | wall p50 | p99 | thread p50 | p99 | recorded | dropped |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    json_p99, _ = line("json.dumps of the content", *dumps(seconds), "| ")
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        for case in ("up", "down", "stopped (SIGSTOP)"):
            server = RedisServer(Path(directory) / case.split()[0])
            server.start()
            processor = Timed(app="bench", redis_url=server.url, buffer_records=1_000)
            provider = TracerProvider()
            provider.add_span_processor(processor)
            if case == "down":
                server.stop()
            elif case != "up":
                run(provider, 0.1)
                provider.force_flush()
                server.pause()
                processor.wall.clear()
                processor.cpu.clear()
            run(provider, seconds)
            stats = processor.stats()
            p99, cpu99 = line(
                f"processor, Redis {case}", processor.wall, processor.cpu, f"{stats.recorded} | {stats.dropped}"
            )
            # Where the machine is so busy that json.dumps alone takes longer, the thread's own time decides.
            failed |= cpu99 >= P99_SECONDS or p99 >= max(P99_SECONDS, json_p99)
            if case.startswith("stopped"):
                server.resume()
            provider.shutdown()
            server.stop()
    print("\nA bound is not met." if failed else "\nEvery bound is met.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
