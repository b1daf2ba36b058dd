"""`assay dev` and `assay demo`: the whole system in one command, which leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from assay.testing import FakeJudgeServer
from command import clean_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def descendants_of(marker: str) -> list[str]:
    """Command lines of running processes whose environment holds the marker."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (directory / "environ").read_bytes():
                found.append((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_demo_shows_the_fall_and_leaves_no_process(tmp_path: Path) -> None:
    marker = f"ASSAY_TEST_MARKER={tmp_path}"
    environment = clean_environment(
        ASSAY_TEST_MARKER=str(tmp_path),
        TMPDIR=str(tmp_path),
        # Somebody's production: the demo must not touch it.
        ASSAY_REDIS_URL="redis://127.0.0.1:9/0",
        ASSAY_DATABASE_URL="postgresql+psycopg://nobody@127.0.0.1:9/none",
    )
    done = subprocess.run(
        [sys.executable, "-m", "assay", "demo", "--seconds", "20"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if re.match(r"\d\d:\d\d  retrieval", line)]
    # The first line may come before the first scores.
    lines = [line for line in lines if re.search(r"faithfulness \d", line)]
    assert "retrieval works" in lines[0]
    assert "retrieval broken" in lines[-1]
    first, last = (float(re.search(r"faithfulness ([\d.]+)", line)[1]) for line in (lines[0], lines[-1]))  # type: ignore[index]
    assert last < first - 0.1
    for told in ("least faithful answer", "weighted gauge", "Judge cost", "assay_pass_ratio{", "OPENAI_API_KEY"):
        assert told in done.stdout
    assert descendants_of(marker) == []
    assert list(tmp_path.glob("assay-demo-*")) == []


def test_demo_asks_a_configured_judge_and_says_what_it_cost(tmp_path: Path) -> None:
    with FakeJudgeServer() as judge:
        environment = clean_environment(
            ASSAY_JUDGE_BASE_URL=judge.base_url,
            ASSAY_JUDGE_API_KEY="synthetic",
            ASSAY_JUDGE_MODEL="gpt-5-mini",
            TMPDIR=str(tmp_path),
        )
        done = subprocess.run(
            [sys.executable, "-m", "assay", "demo", "--seconds", "10"],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        assert judge.traffic.calls > 10
    assert re.search(r"Judge cost: [\d,]+ prompt \+ [\d,]+ completion tokens, [\d.]+ USD", done.stdout)


def test_dev_runs_everything_and_ends_on_a_signal(tmp_path: Path) -> None:
    marker = f"ASSAY_TEST_MARKER={tmp_path}"
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "assay", "dev", "--data-dir", str(tmp_path / "data"), "--port", "0"],
        env=clean_environment(ASSAY_TEST_MARKER=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert process.stdout is not None
        told = ""
        while "/metrics" not in told:
            line = process.stdout.readline()
            assert line, (tmp_path / "log").read_text()
            told += line
        exports = dict(re.findall(r"export (ASSAY_[A-Z_]+)='([^']+)'", told))
        environment = clean_environment(**exports)
        record = json.dumps(
            {"input": "What does it cost?", "output": "It costs 5 euros.", "contexts": ["It costs 5 euros."]}
        )
        assay = [sys.executable, "-m", "assay"]
        subprocess.run([*assay, "enqueue", "-"], env=environment, input=record, text=True, check=True, cwd=tmp_path)
        deadline = time.monotonic() + 30
        while True:
            status = subprocess.run([*assay, "status", "--json"], env=environment, capture_output=True, check=True)
            if json.loads(status.stdout)["rows"]:
                break
            assert time.monotonic() < deadline
            time.sleep(0.5)
        url = re.search(r"curl (http://\S+)", told)
        assert url
        time.sleep(1.1)  # the exporter's scrape cache
        with urllib.request.urlopen(url[1], timeout=10) as answer:
            assert b"assay_pass_ratio{" in answer.read()
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
        log.close()
        if process.stdout:
            process.stdout.close()
    assert code == 0
    assert descendants_of(marker) == []
    # What was scored is there again at the next start.
    assert (tmp_path / "data" / "assay.db").exists()
