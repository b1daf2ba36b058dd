"""`python -m assay.testing`: the judge server by itself."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from typing import TYPE_CHECKING

from assay.testing._server import PARAMETERS, USUAL_FAULTS, FakeJudgeServer

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a `FakeJudgeServer` until SIGINT or SIGTERM; the first line on standard output is its base URL."""
    parser = argparse.ArgumentParser(prog="python -m assay.testing", description="A fake OpenAI-compatible judge.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--fault-rate", type=float, default=0.0, help=f"share of calls that meet {USUAL_FAULTS}")
    parser.add_argument("--faults", default="", help="shares by name instead, such as 429=0.02,hang=0.01")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bad-when", help="records that contain this text get the worst verdicts, others the best")
    parser.add_argument("--unsupported", default="", help=f"answered with 400, from {','.join(PARAMETERS)}")
    parser.add_argument("--logprobs", action="store_true", help="give token probabilities to those who ask")
    parser.add_argument("--prompt-cache", action="store_true", help="tell cached tokens, as OpenAI caches prompts")
    parser.add_argument("--requests-per-minute", type=int, help="more are answered with 429")
    parser.add_argument("--tokens-per-minute", type=int, help="the same in tokens")
    parser.add_argument("--limit-window", type=float, default=60.0, help="seconds in which both are counted")
    parser.add_argument("--api-key", help="refuse every other key")
    given = parser.parse_args(arguments)
    faults = {name: float(share) for name, _, share in (part.partition("=") for part in _split(given.faults))}
    server = FakeJudgeServer(
        host=given.host,
        port=given.port,
        latency_seconds=given.latency,
        fault_rate=given.fault_rate,
        faults=faults or None,
        seed=given.seed,
        bad_when=given.bad_when,
        unsupported=_split(given.unsupported),
        logprobs=given.logprobs,
        api_key=given.api_key,
        prompt_cache=given.prompt_cache,
        requests_per_minute=given.requests_per_minute,
        tokens_per_minute=given.tokens_per_minute,
        limit_window_seconds=given.limit_window,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with server:
        sys.stdout.write(server.base_url + "\n")
        sys.stdout.flush()
        stop.wait()
    return 0


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
