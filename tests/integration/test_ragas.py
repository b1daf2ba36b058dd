"""The tests of the judge `ragas`, in the environment that `make servers` makes for it: it would not agree with ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from servers import missing

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".servers" / "ragas" / "bin" / "python"


def test_the_judge_over_the_real_ragas():
    if not PYTHON.exists():
        missing("ragas")
    done = subprocess.run(
        [PYTHON, "-m", "pytest", "-q", "-rs", "-W", "default", "tests/ragas_engine"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1]
