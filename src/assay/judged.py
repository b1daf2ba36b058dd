"""Outcomes that a judge gave already, kept in files, so that only what changed is judged again.

An outcome is found by what it depends on: the record's judged content, the rubric's hash (`ask` is part of it) and the
fingerprint of the judge. Files are appended to, one line an outcome; a line that a crash tore counts as not there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from assay.defects import settled
from assay.errors import SettingsError
from assay.records import Failure, NotApplicable, Score, Usage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from assay.records import FailureKind, Outcome, Record
    from assay.rubrics import Rubric

#: Failures that the same call would meet again. Others may pass (timeout), or end with another setting (truncated).
FINISHED_FAILURES: frozenset[FailureKind] = frozenset({"refused", "unparsable", "off_scale", "context_overflow"})

#: What a judge may look at. All else of a record says who, when and how it came in, and changes no verdict.
JUDGED_FIELDS = ("input", "output", "contexts", "reference", "required_fields", "finish_reason", "tool_events")

_KEY_CHARACTERS = 64
#: `value >= pass_threshold` forgives this much of binary rounding, as the scales do.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class OutcomeKey:
    """What an outcome depends on, as two hashes."""

    #: of content, rubric hash and fingerprint
    exact: str
    #: the same, whatever the pass threshold: a model is not told it
    question: str


def judged_content(record: Record) -> str:
    """SHA-256 (hex) of all that a judge may look at; two records that differ in nothing else get one verdict."""
    contents: dict[str, Any] = {name: getattr(record, name) for name in JUDGED_FIELDS}
    contents["contexts"] = [context.text for context in record.contexts]
    contents["tool_events"] = [asdict(event) for event in record.tool_events]
    if not isinstance(record.input, str):
        contents["input"] = [[message.role, message.content] for message in record.input]
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


class JudgedOutcomes:
    """The outcomes of one rubric name by one judge fingerprint: a file in `directory`, made with its first outcome.

    Any number of processes may use it at once. Nothing is held in memory: `find` reads the file through.
    """

    def __init__(self, directory: Path, rubric: Rubric, judge_fingerprint: str) -> None:
        self._rubric, self._fingerprint = rubric, judge_fingerprint
        # What is asked once more is asked because of the threshold: under another one the verdicts would be others.
        free_of_it = rubric.repeats is None or rubric.repeats.band is None
        self._question = replace(rubric, pass_threshold=1.0).hash if free_of_it else rubric.hash
        self.path = directory / f"{rubric.name}.{judge_fingerprint[:16]}.jsonl"
        self._file: BinaryIO | None = None

    def __enter__(self) -> JudgedOutcomes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def key(self, record: Record) -> OutcomeKey:
        """The key of a record under this rubric by this judge."""
        content = judged_content(record)
        return OutcomeKey(
            exact=_digest("exact", content, self._rubric.hash, self._fingerprint),
            question=_digest("question", content, self._question, self._fingerprint),
        )

    def find(self, keys: Collection[OutcomeKey]) -> dict[OutcomeKey, Outcome]:
        """The outcomes that are there, of these keys. Of two for one key the first counts, so that reports stay.

        An outcome that cost tokens is that of a model, which is not told the pass threshold: it holds under another
        one too, with `passed` made anew.

        Raises:
            SettingsError: the file cannot be read.
        """
        wanted = {key.exact.encode(): key for key in keys}
        asked = {key.question.encode(): key for key in keys}
        found: dict[OutcomeKey, Outcome] = {}
        other: dict[OutcomeKey, Outcome] = {}
        for line in self._lines():
            # Most lines of a long-lived file are of other contents or versions: told by their first characters alone.
            exact, question = line[:_KEY_CHARACTERS], line[_KEY_CHARACTERS + 1 : 2 * _KEY_CHARACTERS + 1]
            key = wanted.get(exact)
            if key is not None and key not in found:
                outcome = _decoded(line)
                if outcome is not None:
                    found[key] = outcome
            elif key is None and (similar := asked.get(question)) is not None and similar not in other:
                outcome = _decoded(line)
                if outcome is not None and outcome.usage.prompt_tokens is not None:
                    other[similar] = self._under_this_threshold(outcome)
        return other | found

    def add(self, key: OutcomeKey, outcome: Outcome) -> bool:
        """Keep an outcome, if it is a finished one; returns whether it is kept.

        Raises:
            SettingsError: the file cannot be written.
        """
        if isinstance(outcome, Failure) and outcome.kind not in FINISHED_FAILURES:
            return False
        try:
            line = f"{key.exact} {key.question} {_encoded(outcome)}\n".encode()
        except (TypeError, ValueError):
            # A judge of somebody else's may put into `details` what is no JSON: it is used, and made anew next time.
            return False
        try:
            file = self._file or self._open()
            with _locked(file):
                # A crash may have left half a line: it must not swallow this one.
                end = file.seek(0, os.SEEK_END)
                if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                    line = b"\n" + line
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise SettingsError(f"{self.path} cannot be written: {error.strerror}: set ASSAY_DATA_DIR") from None
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        # Explanations quote records: for the owner only.
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._file = os.fdopen(handle, "rb+", buffering=0)
        return self._file

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                yield from file
        except FileNotFoundError:
            return
        except OSError as error:
            raise SettingsError(f"{self.path} cannot be read: {error.strerror}: set ASSAY_DATA_DIR") from None

    def _under_this_threshold(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Score):
            passed = outcome.value >= self._rubric.pass_threshold - _ROUNDING
            return replace(outcome, passed=passed, defect=settled(passed, outcome.defect, self._rubric.defects))
        return outcome


_KINDS: dict[str, type[Score | Failure | NotApplicable]] = {
    "scored": Score,
    "failed": Failure,
    "not_applicable": NotApplicable,
}


def _encoded(outcome: Outcome) -> str:
    kind = next(name for name, cls in _KINDS.items() if isinstance(outcome, cls))
    # As ASCII: what a judge wrote may hold what UTF-8 cannot carry.
    return json.dumps({"outcome": kind, **asdict(outcome)}, separators=(",", ":"), allow_nan=False)


def _decoded(line: bytes) -> Outcome | None:
    """The outcome of a line; None for a line that is torn or none of ours."""
    try:
        data = json.loads(line[2 * (_KEY_CHARACTERS + 1) :])
        return _KINDS[data.pop("outcome")](**{**data, "usage": Usage(**data["usage"])})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@contextlib.contextmanager
def _locked(file: BinaryIO) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
