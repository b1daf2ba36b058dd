"""Commands given files that are none, and settings that are none: one line and exit code 2, never a traceback."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from assay.cli import run
from assay.errors import SettingsError
from assay.rubrics import load_rubrics
from assay.settings import Settings, load_settings
from fuzz.test_readers import EXAMPLES

#: Commands whose one file is `{}`; what is told of it must be an error.
COMMANDS = {
    "enqueue": ["enqueue", "{}", "--dry-run"],
    "enqueue CSV": ["enqueue", "{}", "--dry-run", "--format", "csv"],
    "judge": ["judge", "{}", "--judge", "rules"],
    "rubrics check": ["rubrics", "check", "{}"],
    "rubrics diff": ["rubrics", "diff", "{}", str(next(r.path for r in load_rubrics()))],
    "calibrate": ["calibrate", "{}", "--rubric", "faithfulness", "--judge", "lexical"],
    "calibrate unnamed": ["calibrate", "{}", "--judge", "lexical"],
    "labels import": ["labels", "import", "{}", "--to", "out.jsonl", "--rubric", "faithfulness"],
    "dead replay": ["dead", "replay", "d1", "--payload", "{}"],
    "budget check": ["budget", "check", "{}"],
}
#: Not files of the kind, each made in a directory; None cannot be made here.
KINDS = {
    "missing": lambda path: path,
    "directory": lambda path: path.mkdir() or path,
    "empty": lambda path: path.write_bytes(b"") or path,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 50) and path,
    "UTF-16": lambda path: path.write_bytes('{"record_id": "r"}\n'.encode("utf-16")) and path,
    "BOM alone": lambda path: path.write_bytes(b"\xef\xbb\xbf") and path,
    "deep": lambda path: path.write_bytes(b"[" * 50_000) and path,
    "unreadable": lambda path: path.touch(0o000) or path,
    "loop": lambda path: path.symlink_to(path) or path,
    "pipe": lambda path: os.mkfifo(path) or path,
    "zeros": lambda path: path.symlink_to("/dev/zero") or path,
}
#: An empty file of records has none, which is no mistake; brackets are a header of CSV; JSON in UTF-16 is JSON;
#: a pipe is waited for, as the help of the command says. What is in a payload is read only where there is a store.
LEFT_OUT = {
    *((command, kind) for command in ("enqueue", "enqueue CSV") for kind in ("empty", "BOM alone", "pipe", "zeros")),
    *(("dead replay", kind) for kind in ("empty", "binary", "UTF-16", "BOM alone", "deep", "pipe")),
    ("enqueue CSV", "deep"),
    ("judge", "UTF-16"),
    ("judge", "pipe"),
}


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in, and no server that could be reached."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ASSAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ASSAY_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("ASSAY_DATABASE_URL", f"sqlite:///{tmp_path}/assay.db")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "kind"),
    [(command, kind) for command in COMMANDS for kind in KINDS if (command, kind) not in LEFT_OUT],
)
@pytest.mark.timeout(120)  # one that waits, waits for ever
def test_a_file_that_is_none_is_told_of(
    command: str,
    kind: str,
    apart: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    path = KINDS[kind](apart / f"given{'.yaml' if 'rubrics' in command or 'budget' in command else '.jsonl'}")
    monkeypatch.setattr(sys, "argv", ["assay", *(part.replace("{}", str(path)) for part in COMMANDS[command])])
    code = run()
    out = capsys.readouterr()
    assert code == 2, (code, out)
    told = (out.err + out.out).strip()
    assert told
    assert "Traceback" not in told
    assert len(told) < 10_000


HOSTILE = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(
        ["", " ", ",", "=", "a=b=c", "null", "nan", "-inf", "1e999", "9" * 5_000, "[" * 5_000, "{}", "[]", '{"a":1}',
         "://", "redis://", "redis://[::1", "http://\udc80", "postgresql://u:p@:x/", "\n", "\x1b[31m", "%", "%(a)s",
         "${HOME}",
         "/dev/zero", "/", "true", "-1", "0", "999999999999999999999"]
    ),
)  # fmt: skip


def test_settings_that_are_none_are_one_line(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @settings(
        max_examples=2 * EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @example("sinks", "[" * 5_000)
    @example("rubrics", "9" * 5_000)
    @given(st.sampled_from(sorted(Settings.model_fields)), HOSTILE)
    def given_value(name: str, value: str) -> None:
        with monkeypatch.context() as patched:
            patched.setenv(f"ASSAY_{name.upper()}", value)
            try:
                load_settings()
            except SettingsError as error:
                told = str(error)
                assert "ASSAY_" in told
                assert len(told.splitlines()) == 1
                assert len(told) < 2 * len(value) + 2_000

    given_value()
