"""A real model behind llama.cpp's own server: it writes what it likes, cuts off, counts and caches by itself.

The model is a small one (SmolLM2-135M-Instruct) and no good judge, so no test looks at what it thinks of a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from assay.judges import JudgeSettings, build_judge
from assay.records import Context, Failure, Outcome, Record, Score
from assay.rubrics import Rubric, load_rubrics
from deployment import Deployment, record, total, wait_until
from judging import binary, ordinal
from servers import free_port, missing
from trace_servers import SERVERS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = "smollm2-135m-instruct"
SLOT_TOKENS = 4096
RUBRIC = """
name: priced
version: "1"
requires: [input, output]
instructions: Does the answer name a price?
scale: {type: binary, pass_when: it does, fail_when: it does not}
pass_threshold: 0.5
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = SERVERS / "llama" / "bin" / "python"
    if not python.exists():
        missing("llama.cpp's server (make servers)")
    port, log = free_port(), tmp_path_factory.mktemp("llama") / "server.log"
    script = Path(__file__).parents[1] / "llama_server.py"
    with log.open("wb") as sink:
        server = subprocess.Popen([python, script, str(port), "2", str(SLOT_TOKENS)], stdout=sink, stderr=sink)
    server.log = log  # type: ignore[attr-defined]
    try:
        wait_until(lambda: _is_up(port), server, seconds=120)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()
        server.wait()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def asked(url: str, records: Sequence[Record], rubrics: Sequence[Rubric], **settings: object) -> list[list[Outcome]]:
    """What it makes of these, one after the other."""

    async def work() -> list[list[Outcome]]:
        given = {"base_url": url, "model": MODEL, "timeout_seconds": 300.0, "max_in_flight": 2} | settings
        judge = build_judge(None, JudgeSettings(engine="openai", **given))  # type: ignore[arg-type]
        try:
            return [list(await judge.judge(record, rubrics)) for record in records]
        finally:
            await judge.aclose()

    return asyncio.run(work())


def test_a_worker_scores_what_it_answers_and_fails_what_it_cuts_off(url: str, tmp_path: Path) -> None:
    (tmp_path / "priced.yaml").write_text(RUBRIC)
    settings = {"judge": "openai", "judge_base_url": url, "judge_model": MODEL, "rubrics": tmp_path / "priced.yaml"}
    # At temperature 0 it goes round in circles.
    settings |= {"judge_temperature": 0.7, "judge_max_tokens": 200, "judge_timeout_seconds": 300}
    with Deployment(tmp_path, f"sqlite:///{tmp_path}/assay.db", **settings) as deployment:
        metrics = deployment.start_exporter()
        worker = deployment.start_worker()
        # How many it brings to an end is up to it.
        for count in range(4, 25, 4):
            deployment.enqueue(4, start=count - 4)
            deployment.drain(worker, seconds=500)
            outcomes = deployment.outcomes()["priced"]
            assert sum(outcomes.values()) == count
            if outcomes["scored"]:
                break
        assert outcomes["scored"]
        (counted,) = deployment.store.totals()
        assert set(counted.failures) <= {"truncated"}, counted.failures
        assert (counted.usage.prompt_tokens or 0) > count * 150
        assert count < (counted.usage.completion_tokens or 0) <= count * 200
        wait_until(lambda: total(metrics, "assay_score_count", app="shop") == outcomes["scored"], worker)
        assert total(metrics, "assay_failures_total", kind="truncated") == outcomes["failed"]
        for found in deployment.store.worst(record(0).timestamp.replace(year=2020), limit=count):
            assert isinstance(found.evaluation.outcome, Score)
            # Its explanation may be empty: so small a model leaves it out at times.
            assert found.evaluation.outcome.judge_model


def test_its_prompt_cache_takes_the_criteria_from_the_second_record_on(url: str) -> None:
    rubrics = load_rubrics()
    # What it would write is of no interest here.
    first, *others = asked(url, [record(index) for index in range(3)], rubrics, max_tokens=4)
    for outcomes in (first, *others):
        assert [outcome.kind for outcome in outcomes if isinstance(outcome, Failure)] == ["truncated"] * 4
    for outcomes in others:
        prompt = sum(outcome.usage.prompt_tokens or 0 for outcome in outcomes)
        cached = sum(outcome.usage.cached_prompt_tokens or 0 for outcome in outcomes)
        assert 0.8 < cached / prompt < 1.0, f"{cached} of {prompt} prompt tokens were cached"


def test_it_says_how_sure_it_is_of_a_grade(url: str) -> None:
    for index in range(16):
        ((outcome,),) = asked(url, [record(index)], [ordinal()], max_tokens=220, temperature=0.7)
        if isinstance(outcome, Score):
            break
    assert isinstance(outcome, Score), outcome
    distribution = outcome.details["distribution"]
    assert set(distribution) <= {"1", "2", "3", "4", "5"}
    assert sum(distribution.values()) == pytest.approx(1.0, abs=1e-5)
    mean = sum((int(level) - 1) / 4 * chance for level, chance in distribution.items())
    assert outcome.value == pytest.approx(mean, abs=1e-5)


def test_a_record_beyond_its_context_is_a_failure_that_says_so(url: str) -> None:
    long = record(0, contexts=(Context(text="Item 0 costs 0 euros. " * SLOT_TOKENS),))
    ((outcome,),) = asked(url, [long], [binary()])
    assert isinstance(outcome, Failure)
    assert outcome.kind == "context_overflow"
    assert not outcome.transient
