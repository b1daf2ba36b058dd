"""Redaction measured on the corpus that `tests/data/redaction/make.py` makes: recall and precision by kind."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from assay.redaction import Kind, Redactor

KINDS: tuple[str, ...] = get_args(Kind)
_MARK = re.compile(r"\[(" + "|".join(KINDS) + r")\]")


@dataclass
class Measured:
    """Counts by kind, and by (kind, form); what was missed or wrong, to look at."""

    spans: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    forms: Counter[tuple[str, str]] = field(default_factory=Counter)
    found_forms: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    cases: int = 0


def corpus() -> list[Any]:
    """The cases of the corpus."""
    path = Path(__file__).parent / "data" / "redaction" / "make.py"
    spec = importlib.util.spec_from_file_location("redaction_corpus_make", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    cases: list[Any] = module.corpus()
    return cases


def redacted_spans(text: str, redacted: str) -> list[tuple[int, int, str]]:
    """Where the marks of `redacted` stand in `text`."""
    kinds = [found[1] for found in _MARK.finditer(redacted)]
    kept = _MARK.split(redacted)[::2]
    pattern = "(.*?)".join(re.escape(piece) for piece in kept)
    found = re.fullmatch(pattern, text, re.DOTALL)
    assert found is not None, (text, redacted)
    return [(*found.span(index), kind) for index, kind in enumerate(kinds, 1)]


def measure() -> Measured:
    """Redact every text of the corpus with every kind at once, as the client does."""
    redact, result = Redactor().text, Measured()
    for case in corpus():
        result.cases += 1
        marks = redacted_spans(case.text, redact(case.text))
        for start, end, kind in case.spans:
            result.spans[kind] += 1
            result.forms[kind, case.form] += 1
            if any(a <= start and end <= b for a, b, _ in marks):
                result.found[kind] += 1
                result.found_forms[kind, case.form] += 1
            else:
                result.missed.append(f"{kind} {case.form}: {case.text!r} -> {redact(case.text)!r}")
        for a, b, kind in marks:
            result.marks[kind] += 1
            if any(a < end and start < b and kind == of for start, end, of in case.spans):
                result.right[kind] += 1
            else:
                result.wrong.append(f"{kind} {case.form}: {case.text!r} -> {redact(case.text)!r}")
    return result
