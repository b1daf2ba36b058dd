"""What redaction finds, and what it takes for something that it is not: recall and precision by kind.

`python benchmarks/redaction.py [--text FILE ...] [--show]` measures on the synthetic corpus of tests/data/redaction.
Whoever wrote the corpus knew the patterns: read its recall as "of these forms", not "of what your users write". With
`--text` it also counts what is redacted in files of harmless text (JSON lines, gzip or not), by 1,000 characters.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from assay.calibration.proportions import wilson_interval
from assay.redaction import Redactor
from redaction_corpus import KINDS, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--text", nargs="*", type=Path, default=[], help="JSON lines of harmless text")
    parser.add_argument("--show", action="store_true", help="print what was missed and what was wrong")
    arguments = parser.parse_args()
    result = measure()
    print(f"{result.cases} synthetic texts, {sum(result.spans.values())} spans\n")
    print("| kind | spans | found | recall (95 %) | redacted | right | precision (95 %) |")
    print("|---|--:|--:|---|--:|--:|---|")
    for kind in KINDS:
        print(
            f"| {kind} | {result.spans[kind]} | {result.found[kind]} | {ratio(result.found[kind], result.spans[kind])} "
            f"| {result.marks[kind]} | {result.right[kind]} | {ratio(result.right[kind], result.marks[kind])} |"
        )
    print("\n| kind | form | spans | found |\n|---|---|--:|--:|")
    for (kind, form), n in sorted(result.forms.items()):
        print(f"| {kind} | {form} | {n} | {result.found_forms[kind, form]} |")
    if arguments.show:
        print("\nmissed:", *result.missed, "\nwrong:", *result.wrong, sep="\n")
    for path in arguments.text:
        harmless(path)


def ratio(of: int, n: int) -> str:
    low, high = wilson_interval(of, n)
    return f"{of / n:.3f} [{low:.3f}, {high:.3f}]"


def harmless(path: Path) -> None:
    redact, characters = Redactor().text, 0
    marks: Counter[str] = Counter()
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for line in file:
            for text in strings(json.loads(line)):
                characters += len(text)
                redacted = redact(text)
                if redacted != text:
                    marks.update({kind: redacted.count(f"[{kind}]") - text.count(f"[{kind}]") for kind in KINDS})
    found = ", ".join(f"{kind} {n}" for kind, n in marks.items() if n) or "nothing"
    print(f"\n{path.name}: {characters} characters; {found}; {1000 * marks.total() / max(characters, 1):.4f} a 1,000")


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    return [text for item in value for text in strings(item)] if isinstance(value, list) else []


if __name__ == "__main__":
    main()
