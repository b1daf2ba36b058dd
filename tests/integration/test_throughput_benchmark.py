"""The throughput benchmark at its smallest: its judge's replies are valid verdicts, its numbers add up."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.integration


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    server = subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "judge_server.py"), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def stop(server: subprocess.Popen[str]) -> None:
    server.terminate()
    server.wait()
    assert server.stdout is not None
    server.stdout.close()


def post(url: str, body: object) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_whole_system_scores_what_the_floor_only_asks(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, str(BENCHMARKS / "throughput.py"), "--records", "60", "--rounds", "1"]
    command += ["--latency", "0.02", "--only", "raw,aiohttp,openai,sqlite", "--json", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(results.read_text())["throughput"]["rows"]}
    # One call a record and no repair: every reply of the server held a valid verdict for each of four rubrics.
    assert {name: row["calls_per_record"] for name, row in rows.items()} == dict.fromkeys(rows, 1.0)
    assert rows["sqlite"]["completion_tokens_per_record"] == pytest.approx(244, abs=12)
    assert rows["sqlite"]["prompt_tokens_per_record"] == pytest.approx(
        rows["raw"]["prompt_tokens_per_record"], rel=0.02
    )
    assert rows["sqlite"]["cpu_ms_per_record"] > rows["raw"]["cpu_ms_per_record"] > 0
    assert "assay, whole system, SQLite" in done.stdout


TOOL = {
    "type": "function",
    "function": {
        "name": "grade",
        "parameters": {
            "type": "object",
            "properties": {
                "reason": {"type": "string"},
                "grade": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Grade"}]},
                "score": {"type": "number", "minimum": 0, "maximum": 1},
                "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            },
            "$defs": {"Grade": {"enum": ["FAIL", "PASS"]}},
        },
    },
}


def test_the_judge_answers_tools_and_plain_prompts() -> None:
    server, url = start()
    try:
        asked = [{"role": "user", "content": "Grade it."}]
        _, answer = post(url, {"model": "m", "messages": asked, "tools": [TOOL]})
        message = answer["choices"][0]["message"]  # type: ignore[index]
        arguments = json.loads(message["tool_calls"][0]["function"]["arguments"])
        assert (arguments["grade"], arguments["score"], len(arguments["tags"])) == ("PASS", 1, 1)
        _, answer = post(url, {"model": "m", "messages": asked})
        assert "supported" in answer["choices"][0]["message"]["content"]  # type: ignore[index]
    finally:
        stop(server)


def test_the_judge_limits_its_rate_plays_faults_and_counts_both() -> None:
    server, url = start("--requests-per-minute", "60")
    try:
        asked = {"model": "m", "messages": [{"role": "user", "content": "x" * 400}]}
        assert post(url, asked)[0] == 200
        assert post(url, asked)[0] == 429
        with urllib.request.urlopen(url.removesuffix("/v1") + "/traffic", timeout=20) as answer:
            seen = json.load(answer)
        assert (seen["calls"], seen["prompt_tokens"], seen["played"]) == (2, 100, {"ok": 1, "429": 1})
    finally:
        stop(server)
    server, url = start("--faults", "500=1")
    try:
        assert post(url, asked)[0] == 500
    finally:
        stop(server)
