"""Nothing that others wrote steers a terminal."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.cli import _screen
from assay.terminal import escaped, plain

STEERS = {chr(code) for code in (*range(9), *range(0x0B, 0x20), *range(0x7F, 0xA0))}
TURNS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def test_what_steers_is_shown_as_unknown_characters() -> None:
    assert plain("a\x1b[2Jb\x9b2J\u202ec") == "a\ufffd[2Jb\ufffd2J\ufffdc"
    assert plain("tab\tand\nline, \u00e9 and \u6f22") == "tab\tand\nline, \u00e9 and \u6f22"


@given(st.text(st.one_of(st.characters(), st.sampled_from(sorted(STEERS | TURNS)))))
def test_json_reads_back_as_it_was(text: str) -> None:
    shown = escaped(json.dumps({"text": text}, ensure_ascii=False))
    assert not set(shown) & (STEERS | TURNS)
    assert json.loads(shown) == {"text": text}


def test_on_a_narrow_screen_no_id_and_no_number_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.StringIO()
    monkeypatch.setattr(_screen, "output", _screen._Screen(file=sink, width=80, emoji=False))
    cells = ("12fb5886abcd", "2026-11-29 18:00", "completeness", "2,000,000", "0.67 (0.21–0.94)", "what it says " * 9)
    _screen.print_table("Events", ("id", "when", "rubric", "left>", "pass ratio>", "message"), [cells])
    shown = sink.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    for cell in cells[:5]:
        assert cell in shown
    assert shown.replace("\n", " ").count("says") == 9
    assert "…" not in shown
