"""What every driver of a peer library shares. Standard library only: it is imported in the environment of each.

A driver is a script that knows one library. Each of its settings takes a concurrency, builds what lives as long as the
process (clients, metrics), and gives a function from records to four scores for each. `drive` reads the command line,
runs the first few records so that what is loaded once is loaded, times the rest, and prints one line of JSON. Scores
that are none (None, NaN, an exception) are counted as missing, never as zero. Calls and tokens are the judge server's
own counts.

    python DRIVER.py RECORDS.jsonl http://127.0.0.1:PORT/v1 SETTING IN_FLIGHT
"""

from __future__ import annotations

import time

BEGUN = time.perf_counter()

import asyncio
import inspect
import json
import math
import os
import platform
import resource
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

MODEL, EMBEDDING_MODEL = "gpt-4o-mini", "text-embedding-3-small"
DIMENSIONS = ("faithfulness", "relevance", "safety", "completeness")
#: For libraries that have no metric of their own for a dimension, and ask for a criterion instead.
CRITERIA = {
    "faithfulness": "Every claim of the answer is supported by the passages.",
    "relevance": "The answer answers the question that was asked, and keeps to it.",
    "safety": "The answer holds nothing harmful, hateful, or dangerous, and no private data of people.",
    "completeness": "The answer covers all that the question asks for, as far as the passages tell it.",
}
WARM_RECORDS = 8

URL = sys.argv[2] if len(sys.argv) > 2 else ""
# Before any library is imported: where its judge is, and that it does not report its use to its makers.
os.environ |= {
    "OPENAI_API_KEY": "synthetic",
    "OPENAI_BASE_URL": URL,
    "OPENAI_API_BASE": URL,
    "DO_NOT_TRACK": "1",
    "RAGAS_DO_NOT_TRACK": "true",
    "DEEPEVAL_TELEMETRY_OPT_OUT": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "LOGFIRE_SEND_TO_LOGFIRE": "false",
    "ANONYMIZED_TELEMETRY": "false",
}


class Case(NamedTuple):
    """One record."""

    question: str
    passages: list[str]
    answer: str

    @property
    def context(self) -> str:
        return "\n\n".join(self.passages)


def gathered(
    in_flight: int, score: Callable[[Case], Awaitable[Sequence[Any]]]
) -> Callable[[list[Case]], Awaitable[list[Sequence[Any]]]]:
    """Scores all records, `in_flight` of them at a time."""

    async def run(cases: list[Case]) -> list[Sequence[Any]]:
        slots = asyncio.Semaphore(in_flight)

        async def one(case: Case) -> Sequence[Any]:
            async with slots:
                return await score(case)

        return await asyncio.gather(*(one(case) for case in cases))

    return run


async def each(*calls: Awaitable[Any], read: Callable[[Any], Any]) -> list[Any]:
    """What `read` makes of each call's result; None for one that raised, which is a score that is missing."""
    made = await asyncio.gather(*calls, return_exceptions=True)
    _errors.extend(one for one in made if isinstance(one, Exception))
    return [None if isinstance(one, Exception) else read(one) for one in made]


_errors: list[Exception] = []


def drive(distribution: str, settings: Mapping[str, Callable[[int], Callable[[list[Case]], Any]]]) -> None:
    """Run the setting of the command line over its records and print what that took."""
    import_seconds = time.perf_counter() - BEGUN
    path, url, setting, in_flight = sys.argv[1:5]
    with Path(path).open(encoding="utf-8") as lines:
        cases = [Case(**json.loads(line)) for line in lines]
    # Other records than those that are timed, as some libraries keep what they have asked before.
    first, cases = cases[:WARM_RECORDS], cases[WARM_RECORDS:]
    run = settings[setting](int(in_flight))
    with asyncio.Runner() as loop:
        _run(loop, run, first)
        asked, used = _traffic(url), _cpu_seconds()
        begun = time.perf_counter()
        scores = [list(several) for several in _run(loop, run, cases)]
        seconds = time.perf_counter() - begun
        used, after = _cpu_seconds() - used, _traffic(url)
    given = sum(_is_score(score) for several in scores for score in several)
    if not given:
        raise SystemExit(f"no score at all: {_errors[0] if _errors else 'and no error'}")
    counts = [name for name in after if name == "calls" or name.endswith(("_calls", "_tokens"))]
    found = {
        "records": len(cases),
        "seconds": seconds,
        "cpu_seconds": used,
        "scores": given,
        "missing_scores": len(DIMENSIONS) * len(cases) - given,
        "version": version(distribution),
        "python": platform.python_version(),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "import_seconds": import_seconds,
        **{name: after[name] - asked[name] for name in counts},
    }
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    sys.stdout.flush()


def _run(loop: asyncio.Runner, run: Callable[[list[Case]], Any], cases: list[Case]) -> Any:
    made = run(cases)
    return loop.run(made) if inspect.iscoroutine(made) else made


def _is_score(score: object) -> bool:
    return isinstance(score, int | float) and math.isfinite(score)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _traffic(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/traffic", timeout=30) as answer:
        return dict(json.load(answer))
