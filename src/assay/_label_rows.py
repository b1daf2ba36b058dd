"""Rows of label files: what each says, by the scale of its rubric, and every mistake in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from assay.codec import decode_record
from assay.errors import RecordError
from assay.records import Failure, FailureKind, Score
from assay.rows import RECORD_FIELDS, record_values, row_id
from assay.scales import Binary, Ordinal
from assay.spelling import closest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from assay.records import Record
    from assay.rubrics import Rubric

#: Fields of a row, besides those of a record and `label.NAME`.
ROW_FIELDS: Final = (
    "record",
    "rubric",
    "rubric_version",
    "label",
    "labels",
    "annotator",
    "probability",
    "weight",
    "stratum",
    "cluster",
    "labelled_at",
    "note",
    "judge_score",
    "judge_pass",
    "judge_explanation",
    "judge_failure",
)
#: Before the name of an annotator: `label.anna` is a column of anna's labels.
_LABEL_OF: Final = "label."
_WORDS: Final = {"pass": 1.0, "true": 1.0, "fail": 0.0, "false": 0.0}
#: An annotator of whom the file says no name.
_SOMEONE: Final = "annotator"
#: Of records whose row does not say when they happened; nothing reads it.
_SOME_TIME: Final = datetime(2000, 1, 1, tzinfo=UTC)
_ROUNDING: Final = 1e-9
_MAX_NAME: Final = 200


@dataclass(slots=True)
class Item:
    """An item while its rows come in."""

    line: int
    record: Record | None
    labels: dict[str, tuple[float, ...]]
    given: dict[str, Any]


class Grading:
    """What the file's words and numbers mean by the rubric's scale."""

    def __init__(self, rubric: Rubric) -> None:
        self._rubric = rubric
        #: numbers are grades from 0 to 1 whatever the scale
        self.unit = not isinstance(rubric.scale, Ordinal)
        self._words = _words(rubric)

    def learn(self, word: str, meaning: object) -> None:
        """Take another word for a grade.

        Raises:
            ValueError: the meaning is not on the scale.
        """
        self._words[word.strip().casefold()] = self.one(meaning)

    def several(self, value: object) -> tuple[float, ...]:
        """Acceptable grades in [0, 1], ascending, each once.

        Raises:
            ValueError: one is not on the scale; the message says what is.
        """
        if isinstance(value, str) and "|" in value and not self.knows(value):
            value = value.split("|")
        parts = value if isinstance(value, list | tuple) else [value]
        if not parts:
            raise ValueError("no grade is acceptable: leave the label out where nobody gave one")
        return tuple(sorted({self.one(part) for part in parts}))

    def one(self, value: object) -> float:
        """A grade in [0, 1].

        Raises:
            ValueError: it is not on the scale; the message says what is.
        """
        if isinstance(value, bool):
            return float(value)
        number = _number(value)
        word = value if isinstance(value, str) or number is None else format(number, "g")
        if isinstance(word, str) and self.knows(word):
            return self._words[word.strip().casefold()]
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{shown(value)} is not a number: leave the label out where nobody gave one")
        levels = [] if self.unit else cast("Ordinal", self._rubric.scale).levels
        numbers = [level.level for level in levels]
        if number is not None and (number in numbers if numbers else 0.0 <= number <= 1.0):
            return (number - numbers[0]) / (numbers[-1] - numbers[0]) if numbers else number
        words = ", ".join(word for word in self._words if word not in ("true", "false"))
        on = f"a level ({', '.join(map(str, numbers))})" if numbers else "a grade from 0 to 1"
        raise ValueError(f"{shown(value)} is not on the scale of {self._rubric.name}: give {words} or {on}")

    def knows(self, word: str) -> bool:
        """Whether this word means a grade."""
        return len(word) <= _MAX_NAME and word.strip().casefold() in self._words


class Row:
    """What one row says, and its mistakes as (field, message)."""

    def __init__(
        self, fields: Mapping[str, Any], grading: Grading, threshold: float, mistakes: list[tuple[str, str]]
    ) -> None:
        self._fields, self._grading, self._threshold = fields, grading, threshold
        self.mistakes = mistakes
        #: there are labels, and none is one
        self.refused_labels = False

    def read(self, line: int) -> tuple[str | None, Item]:
        """The id of the record, None if it cannot be told, and the rest."""
        given: dict[str, Any] = {name: text for name in ("stratum", "cluster", "note") if (text := self._text(name))}
        probability, when, judged = self._probability(), self._time(), self._judged()
        given |= {} if probability is None else {"probability": probability}
        given |= {} if when is None else {"labelled_at": when}
        given |= {} if judged is None else {"judged": judged}
        item_id, record = self._record(when or _SOME_TIME)
        return item_id, Item(line, record, self._labels(), given)

    def _note(self, name: str, message: str) -> None:
        self.mistakes.append((name, message))

    def _record(self, when: datetime) -> tuple[str | None, Record | None]:
        flat = {name: value for name, value in self._fields.items() if name in RECORD_FIELDS}
        inner = self._fields.get("record")
        if inner is None:
            if set(flat) == {"record_id"}:
                return self._text("record_id"), None
            if flat:
                return self._decoded(flat, when, "")
            self._note("record", "is missing: say which record the label is of, by `record` or `record_id`")
            return None, None
        if not isinstance(inner, Mapping):
            self._note("record", f"{shown(inner)} is no JSON object: write the record, or its id as `record_id`")
            return None, None
        if beside := sorted(set(flat) - {"record_id"}):
            self._note(beside[0], "stands beside `record`: put it into it")
        if inner.get("record_id", flat.get("record_id")) != flat.get("record_id", inner.get("record_id")):
            self._note("record_id", "is not the id of the record beside it: keep one of the two")
        return self._decoded({**flat, **inner}, when, "record.")

    def _decoded(self, known: Mapping[str, Any], when: datetime, at: str) -> tuple[str | None, Record | None]:
        try:
            values = record_values(known)
            if "record_id" not in values:
                values["record_id"] = row_id(json.dumps(values, sort_keys=True))
            values.setdefault("timestamp", when.isoformat())
            record = decode_record(values)
        except RecordError as error:
            self._note(f"{at}{error.field}" if error.field else at.rstrip(".") or "record", error.message)
            return None, None
        except RecursionError:
            self._note(at.rstrip(".") or "record", "is nested too deeply")
            return None, None
        return record.record_id, record

    def _labels(self) -> dict[str, tuple[float, ...]]:
        labels: dict[str, tuple[float, ...]] = {}
        before = len(self.mistakes)
        for annotator, place, value in self._stated():
            # null and "" mean that this annotator gave no label.
            if value is None or value == "":
                continue
            if not 0 < len(annotator.strip()) <= _MAX_NAME:
                self._note(place, f"the name of an annotator has 1 to {_MAX_NAME} characters")
            elif annotator in labels:
                self._note(place, f"is a second label of {shown(annotator)}: keep one of the two")
            else:
                try:
                    labels[annotator] = self._grading.several(value)
                except ValueError as problem:
                    self._note(place, str(problem))
        self.refused_labels = len(self.mistakes) > before
        return labels

    def _stated(self) -> Iterator[tuple[str, str, Any]]:
        """Annotator, field and label, as they stand in the row."""
        fields = self._fields
        several = fields.get("labels")
        if isinstance(several, Mapping):
            yield from ((str(name), f"labels.{short(name)}", value) for name, value in several.items())
        elif several is not None:
            self._note("labels", f"{shown(several)} is no JSON object of annotators and their labels")
        for name, value in fields.items():
            if name.startswith(_LABEL_OF):
                yield name.removeprefix(_LABEL_OF), short(name), value
        if "label" in fields:
            yield self._text("annotator") or _SOMEONE, "label", fields["label"]

    def _probability(self) -> float | None:
        fields = self._fields
        if "probability" in fields and "weight" in fields:
            self._note("weight", "stands beside probability, which it is 1 over: keep one of the two")
        elif "probability" in fields:
            number = _number(fields["probability"])
            if number is not None and 0.0 < number <= 1.0:
                return number
            mend = "give the probability with which the record was picked, above 0 and at most 1"
            self._note("probability", f"{shown(fields['probability'])} is no probability of a label: {mend}")
        elif "weight" in fields:
            number = _number(fields["weight"])
            if number is not None and 1.0 - _ROUNDING <= number < math.inf:
                return min(1.0, 1.0 / number)
            mend = "a weight is 1 / probability, so at least 1; leave out rows that stand for nothing"
            self._note("weight", f"{shown(fields['weight'])} is no weight of a label: {mend}")
        return None

    def _time(self) -> datetime | None:
        text = self._text("labelled_at")
        if not text:
            return None
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            self._note("labelled_at", f"{shown(text)} is not a time like 2026-01-31T12:00:00Z")
            return None
        if when.tzinfo is None or not 2000 <= when.year < 9999:
            self._note("labelled_at", f"{shown(text)} has no time zone, or no likely year: write 2026-01-31T12:00:00Z")
            return None
        return when

    def _judged(self) -> Score | Failure | None:
        said = self._text("judge_explanation") or ""
        kind, score, passed = (self._fields.get(f"judge_{name}") for name in ("failure", "score", "pass"))
        if kind is not None:
            if kind not in get_args(FailureKind):
                self._note("judge_failure", f"{shown(kind)} is none of {', '.join(get_args(FailureKind))}")
            elif score is not None or passed is not None:
                self._note("judge_failure", "stands beside a score of the judge: keep one of the two")
            return Failure(kind=cast("FailureKind", kind), message=said)
        value, side = self._one("judge_score", score), self._one("judge_pass", passed)
        if side not in (None, 0.0, 1.0):
            self._note("judge_pass", f"{shown(passed)} is neither pass nor fail")
        if value is None and side is None:
            return None
        graded = value if value is not None else side or 0.0
        return Score(
            value=graded,
            passed=passes(graded, self._threshold) if side is None else side == 1.0,
            explanation=said,
        )

    def _one(self, name: str, value: object) -> float | None:
        if value is None or value == "":
            return None
        try:
            return self._grading.one(value)
        except ValueError as problem:
            self._note(name, str(problem))
            return None

    def _text(self, name: str) -> str | None:
        value = self._fields.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or (name in ("record_id", "annotator") and not value.strip()):
            self._note(name, f"{shown(value)} is not text")
            return None
        if name not in ("note", "judge_explanation") and len(value) > _MAX_NAME:
            self._note(name, f"has {len(value)} characters, more than {_MAX_NAME}")
            return None
        return value


def _words(rubric: Rubric) -> dict[str, float]:
    scale = rubric.scale
    own = {scale.pass_label.casefold(): 1.0, scale.fail_label.casefold(): 0.0} if isinstance(scale, Binary) else {}
    return _WORDS | own


def passes(grade: float, threshold: float) -> bool:
    """Whether a grade passes; thresholds written in decimal may miss the grade they mean by a hair."""
    return grade + _ROUNDING >= threshold


def is_field(name: str) -> bool:
    """Whether a row may have a field of this name."""
    return name in RECORD_FIELDS or name in ROW_FIELDS or (name.startswith(_LABEL_OF) and len(name) > len(_LABEL_OF))


def _number(value: object) -> float | None:
    """A number, or a text that is one; None otherwise."""
    if isinstance(value, str):
        try:
            return float(value) if len(value) <= 40 else None
        except ValueError:
            return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 else math.inf
    return None


def near(name: object, known: Sequence[str] = (*ROW_FIELDS, *sorted(RECORD_FIELDS))) -> str:
    """`: did you mean label?` where a known name is near, else nothing."""
    found = closest(str(name), known, likeness=0.7)
    return "" if found is None else f": did you mean {found}?"


def short(name: object) -> str:
    """A name as an error message shows it."""
    text = str(name)[:60]
    return text if text.isprintable() else ascii(text)


def shown(value: object) -> str:
    """A value as an error message shows it: safe to print and never long."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        text = value if len(value) <= 40 else value[:39] + "…"
        return f'"{text}"' if text.isprintable() else ascii(text)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "a huge number" if isinstance(value, int) and value.bit_length() > 128 else str(value)[:40]
