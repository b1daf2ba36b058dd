"""`assay`, run as a person or a script runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def clean_environment(**variables: str) -> dict[str, str]:
    """This environment without any setting of assay's, and without a width of the screen; and these variables."""
    own = ("ASSAY_", "OPENAI_", "COLUMNS")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)} | variables


def assay(
    directory: Path, *arguments: object, code: int | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """One command to its end, in this directory; with `code`, it must end with that. It never shows a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "assay", *map(str, arguments)],
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        cwd=directory,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert code in (None, done.returncode), (done.returncode, done.stdout, done.stderr)
    return done
