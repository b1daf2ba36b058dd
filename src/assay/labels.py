"""Label files: what people said of records by one rubric, read strictly, and as columns for the statistics.

`read_labels` reads JSON Lines and CSV, `write_labels` writes JSON Lines; docs/reference/label-files.md has the format.
A label is one annotator's; it may name several acceptable grades. Grades are in [0, 1], higher is better, whatever
numbers the file is written in.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from assay._label_rows import Grading, Item, Row, is_field, near, passes, short, shown
from assay.errors import LabelError, LabelErrors
from assay.files import open_file
from assay.records import Failure, Score
from assay.rows import raw_rows
from assay.scales import Ordinal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from assay.records import Record
    from assay.rubrics import Rubric

#: How the records were chosen: by known probabilities out of production, or by hand (a golden set).
Selection = Literal["probability", "curated"]

#: Who gave the labels. `author`: whoever wrote the records. `unknown`: the file does not say.
AnnotatorKind = Literal["human", "author", "model", "unknown"]

#: What many annotators say together, see `calibration.gold_labels`; or `expert:NAME`, one annotator's word.
GOLDS: Final = ("majority", "mean", "any_fail")

#: Version of the file format.
LABEL_FILE = 1

_HEADER = (
    "rubric",
    "rubric_version",
    "annotators",
    "synthetic",
    "selection",
    "gold",
    "grades",
    "passes_from",
    "judge",
    "description",
)
_NOT_HUMAN: Final = {
    "author": "the labels are by the authors of the records, not by people who read them afresh",
    "model": "the labels are a model's, not people's: they tell how far two models agree",
    "unknown": "the file does not say who gave the labels",
}
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One record, and what people said of it."""

    item_id: str
    #: 1-based line of the file; 0 where the file has none (exports in JSON)
    line: int = 0
    #: None where the row has only the id of a record in the store, or judge scores of its own
    record: Record | None = None
    #: annotator -> acceptable grades in [0, 1], at least one, ascending
    labels: Mapping[str, tuple[float, ...]]
    #: annotator -> 1 pass, 0 fail; in between where grades on both sides are acceptable
    passes: Mapping[str, float]
    #: with which the record was judged and picked for a label, in (0, 1]; 1 in curated files
    probability: float = 1.0
    #: name of what the mix of records may shift by; "" where the file has no strata
    stratum: str = ""
    #: records that came together (a source text, a session) share one; "" stands alone
    cluster: str = ""
    labelled_at: datetime | None = None
    #: why the label is what it is, in the annotator's words
    note: str = ""
    #: what a judge said of the record, where the file holds it
    judged: Score | Failure | None = None


@dataclass(frozen=True, kw_only=True)
class LabelColumns:
    """Labels as the functions of `assay.calibration` take them; row i of each is item i of the set, n items."""

    item_ids: tuple[str, ...]
    #: 1 pass, 0 fail, between them where people or acceptable grades are split; shape (n,)
    y_true: npt.NDArray[np.float64]
    #: mean grade in [0, 1]; shape (n,)
    y_grade: npt.NDArray[np.float64]
    #: grades in [0, 1], NaN where an annotator gave none or found pass and fail alike; shape (annotators, n)
    annotations: npt.NDArray[np.float64]
    #: an annotation passes from here on
    annotation_threshold: float
    #: 1 / probability; shape (n,)
    sample_weight: npt.NDArray[np.float64]
    #: what the record came together with, else its own id
    clusters: tuple[str, ...]
    #: None where the file has no strata
    strata: tuple[str, ...] | None
    #: characters of the judged output, at least 1, shape (n,); None where a record's text is not there
    lengths: npt.NDArray[np.float64] | None


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """The labels of one file, by one rubric; at least one item."""

    path: Path
    rubric: str
    #: a label's grade at or above it passes: the rubric's, or `passes_from`
    pass_threshold: float
    #: grades of the levels of an ordinal scale of three or more, ascending in [0, 1]; else None
    levels: tuple[float, ...] | None
    items: tuple[Labelled, ...]
    selection: Selection
    annotator_kind: AnnotatorKind
    synthetic: bool
    #: majority, mean, any_fail or expert:NAME
    gold: str
    #: who gave the scores that stand beside the labels, as the file names it; "" if nobody
    judge: str = ""
    description: str = ""
    #: where people's grades pass from elsewhere than the judge's do
    passes_from: float | None = None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of labels and records: the same in another file or format, whatever `gold` and judge scores."""
        digest = hashlib.sha256()
        for line in _lines(replace(self, gold="majority", judge="", description=""), with_judge=False):
            digest.update(line.encode())
        return digest.hexdigest()

    @cached_property
    def annotators(self) -> tuple[str, ...]:
        """Their names, in alphabetical order."""
        return tuple(sorted({name for item in self.items for name in item.labels}))

    @property
    def labelled_from(self) -> datetime | None:
        """When the first label was given; None where the file does not say."""
        return min((item.labelled_at for item in self.items if item.labelled_at), default=None)

    @property
    def labelled_to(self) -> datetime | None:
        """When the last label was given; None where the file does not say."""
        return max((item.labelled_at for item in self.items if item.labelled_at), default=None)

    @property
    def without_record(self) -> tuple[str, ...]:
        """Ids of the items that have neither a record nor a judge's score: `with_records` fills them."""
        return tuple(item.item_id for item in self.items if item.record is None and item.judged is None)

    @cached_property
    def y_true(self) -> tuple[float, ...]:
        """One label for each item, as `gold` says: 1 pass, 0 fail, in between where people are split."""
        return tuple(_gold(item, self.gold) for item in self.items)

    def with_records(self, records: Iterable[Record]) -> LabelSet:
        """The same labels with the records that they lack, found by record id, span id, trace id or sink reference.

        Labels of other systems name spans and traces; here they come to name records.

        Raises:
            LabelErrors: labels of records that are not among them, or of more than one.
        """
        found = _RecordIndex(records)
        items: list[Labelled] = []
        errors: list[LabelError] = []
        taken = {item.item_id: item for item in self.items if item.record is not None}
        for item in self.items:
            if item.record is not None:
                items.append(item)
                continue
            record, problem = found.of(item.item_id)
            if record is not None and taken.setdefault(record.record_id, item) is not item:
                record, problem = None, f"{shown(item.item_id)} is a record that has labels already: merge the two"
            if record is not None:
                items.append(replace(item, item_id=record.record_id, record=record))
            elif item.judged is not None and item.item_id not in found:
                items.append(item)
            else:
                errors.append(LabelError(problem, path=self.path, line=item.line or None, field="record_id"))
        if errors:
            raise LabelErrors(errors)
        return replace(self, items=tuple(items))

    def columns(self) -> LabelColumns:
        """The labels as arrays. Loads numpy."""
        import numpy as np

        annotations = np.full((len(self.annotators), len(self.items)), np.nan)
        for row, name in enumerate(self.annotators):
            for at, item in enumerate(self.items):
                grade = _side(item, name, self.pass_threshold)
                if grade is not None:
                    annotations[row, at] = grade
        outputs = [item.record.output if item.record is not None else None for item in self.items]
        lengths = [max(1, len(output)) for output in outputs if output is not None]
        return LabelColumns(
            item_ids=tuple(item.item_id for item in self.items),
            y_true=np.array(self.y_true, dtype=np.float64),
            y_grade=np.array([_grade(item, self.gold) for item in self.items], dtype=np.float64),
            annotations=annotations,
            annotation_threshold=self.pass_threshold,
            sample_weight=np.array([1 / item.probability for item in self.items], dtype=np.float64),
            clusters=tuple(_cluster(item) for item in self.items),
            strata=tuple(item.stratum for item in self.items) if self.items[0].stratum else None,
            lengths=np.array(lengths, dtype=np.float64) if len(lengths) == len(outputs) else None,
        )

    @property
    def cautions(self) -> tuple[str, ...]:
        """What such labels cannot tell, a sentence each, without full stop; nothing here makes them unreadable."""
        good = sum(1 for y in self.y_true if y > 0.5 + _ROUNDING)
        bad = sum(1 for y in self.y_true if y < 0.5 - _ROUNDING)
        split = len(self.items) - good - bad
        found = []
        if len({_grade(item, self.gold) for item in self.items}) == 1:
            found.append("every label is the same: there is nothing to tell a good judge from a bad one by")
        elif not good or not bad:
            said, lacking = ("pass", "fails") if good else ("fail", "passes")
            found.append(f"every label says {said}: without {lacking} nobody can say how well a judge finds them")
        if split:
            found.append(f"{split} of {len(self.items)} labels are as much pass as fail: they count for no side")
        if not any(len(item.labels) > 1 for item in self.items):
            found.append("one annotator to a record: how far people agree among themselves is not known")
        if self.annotator_kind in _NOT_HUMAN:
            found.append(_NOT_HUMAN[self.annotator_kind])
        if self.synthetic:
            found.append("the records are synthetic: they show how a judge errs on such cases, not on yours")
        return tuple(found)


def read_labels(
    path: Path | str,
    rubric: Rubric,
    *,
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, str] | None = None,
    gold: str | None = None,
    annotators: AnnotatorKind | None = None,
    passes_from: float | None = None,
    skip_unlabelled: bool = False,
) -> LabelSet:
    """The labels of a file: CSV by its name, else JSON Lines.

    Args:
        path: the file.
        rubric: that the labels are by; says what the numbers in the file mean and from where on they pass.
        columns: the file's columns -> fields of a label file, for tables of others; columns that are neither here nor
            such a field are then left out, instead of being mistakes.
        values: the file's words for labels -> `pass`, `fail` or a number of the rubric's scale.
        gold: in place of what the file says: majority, mean, any_fail or expert:NAME.
        annotators: in place of what the file says of who they are.
        passes_from: grade in (0, 1] from which on a label passes, in place of what the file says and of the rubric's.
        skip_unlabelled: leave out rows that nobody has labelled yet, instead of refusing them.

    Raises:
        LabelErrors: every mistake of the file.
    """
    path = Path(path)
    reader = LabelReader(path, rubric, columns=columns, values=values, skip_unlabelled=skip_unlabelled)
    form: Literal["jsonl", "csv"] = "csv" if path.suffix.lower() == ".csv" else "jsonl"
    try:
        with open_file(path) as source:
            for row in raw_rows(source, form):
                if row.fields is None:
                    reader.note(row.error or "cannot be read", line=row.line)
                elif "label_file" in row.fields and form == "jsonl":
                    reader.head(row.fields, line=row.line)
                else:
                    reader.add(row.fields, line=row.line)
    except OSError as error:
        problem = "does not exist: check the path" if isinstance(error, FileNotFoundError) else error.strerror
        raise LabelErrors([LabelError(f"{problem}", path=path)]) from None
    return reader.finish(gold=gold, annotators=annotators, passes_from=passes_from)


def write_labels(path: Path | str, labels: LabelSet) -> None:
    """Write a label file in JSON Lines: a first line for all, then one for each record. Whole or not at all.

    `read_labels` gives back the same set, but for `path` and `line`.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(_lines(labels, with_judge=True))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# What a set comes to.


def _gold(item: Labelled, gold: str) -> float:
    if gold.startswith("expert:"):
        return item.passes[gold.removeprefix("expert:")]
    given = item.passes.values()
    share = math.fsum(given) / len(item.passes)
    if gold == "mean":
        return share
    if gold == "any_fail":
        return 0.0 if 0.0 in given else 1.0 if share == 1.0 else 0.5
    return 0.5 if abs(share - 0.5) <= _ROUNDING else float(share > 0.5)


def _grade(item: Labelled, gold: str) -> float:
    chosen = [item.labels[gold.removeprefix("expert:")]] if gold.startswith("expert:") else item.labels.values()
    means = [math.fsum(grades) / len(grades) for grades in chosen]
    return min(1.0, math.fsum(means) / len(means))


def _side(item: Labelled, annotator: str, threshold: float) -> float | None:
    """One grade for an annotator's acceptable ones: the mean of those on the side where most are, None where split."""
    if annotator not in item.labels or abs(item.passes[annotator] - 0.5) <= _ROUNDING:
        return None
    said = item.passes[annotator] > 0.5
    chosen = [grade for grade in item.labels[annotator] if passes(grade, threshold) == said]
    return min(1.0, math.fsum(chosen) / len(chosen))


class _RecordIndex:
    """Records by all the names that labels may call them by."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._by_id: dict[str, Record] = {}
        self._by_name: dict[str, dict[str, Record]] = {}
        for record in records:
            self._by_id[record.record_id] = record
            for name in {record.span_id, record.trace_id, *record.sink_refs.values()} - {None}:
                self._by_name.setdefault(cast("str", name), {})[record.record_id] = record

    def __contains__(self, name: str) -> bool:
        return name in self._by_id or name in self._by_name

    def of(self, name: str) -> tuple[Record | None, str]:
        """The one record of that name, or None and why there is none."""
        if name in self._by_id:
            return self._by_id[name], ""
        candidates = list(self._by_name.get(name, {}).values())
        if len(candidates) == 1:
            return candidates[0], ""
        if candidates:
            return (
                None,
                f"{shown(name)} is the trace of {len(candidates)} records: label spans or record ids",
            )
        return None, (
            f"record {shown(name)} is not known: its text was purged, or the id is another system's; put the record "
            "itself into the row"
        )


def _cluster(item: Labelled) -> str:
    session = item.record.session_id if item.record is not None else None
    if item.cluster:
        return f"cluster {item.cluster}"
    return f"session {session}" if session else f"item {item.item_id}"


def _lines(labels: LabelSet, *, with_judge: bool) -> Iterable[str]:
    head: dict[str, Any] = {
        "label_file": LABEL_FILE,
        "rubric": labels.rubric,
        "annotators": labels.annotator_kind,
        "synthetic": labels.synthetic,
        "selection": labels.selection,
        "gold": labels.gold,
        "grades": "unit",
    }
    head |= {} if labels.passes_from is None else {"passes_from": labels.passes_from}
    yield _line(head | _given(judge=labels.judge, description=labels.description))
    for item in labels.items:
        row: dict[str, Any] = {"record_id": item.item_id}
        if item.record is not None:
            row = {"record": json.loads(item.record.to_json())}
        row["labels"] = {name: _written(item.labels[name]) for name in sorted(item.labels)}
        if item.probability != 1.0:
            row["probability"] = item.probability
        when = item.labelled_at.astimezone(UTC).isoformat() if item.labelled_at else ""
        row |= _given(stratum=item.stratum, cluster=item.cluster, labelled_at=when, note=item.note)
        if with_judge and isinstance(item.judged, Score):
            row |= {"judge_score": item.judged.value, "judge_pass": item.judged.passed}
            row |= _given(judge_explanation=item.judged.explanation)
        elif with_judge and isinstance(item.judged, Failure):
            row |= {"judge_failure": item.judged.kind} | _given(judge_explanation=item.judged.message)
        yield _line(row)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(", ", ": "), allow_nan=False) + "\n"


def _given(**texts: str) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text}


def _written(grades: Sequence[float]) -> object:
    words = [{1.0: "pass", 0.0: "fail"}.get(grade, grade) for grade in grades]
    return words[0] if len(words) == 1 else words


# Reading rows.


class LabelReader:
    """Makes a label set of rows, whatever they came from, and notes every mistake in them.

    A row holds the fields that docs/reference/label-files.md lists. The importers of other systems' exports feed it.
    """

    def __init__(
        self,
        path: Path,
        rubric: Rubric,
        *,
        columns: Mapping[str, str] | None = None,
        values: Mapping[str, str] | None = None,
        skip_unlabelled: bool = False,
    ) -> None:
        self._path, self._rubric, self._grading = path, rubric, Grading(rubric)
        self._skip_unlabelled = skip_unlabelled
        self._columns, self._unseen = columns, set(columns or ())
        self._header: dict[str, Any] = {}
        self._items: dict[str, Item] = {}
        self._rows = 0
        self._unknown: set[str] = set()
        self.errors: list[LabelError] = []
        for word, meaning in (values or {}).items():
            try:
                self._grading.learn(word, meaning)
            except ValueError as problem:
                self.note(str(problem), field=f"values.{word}")
        for column, name in (columns or {}).items():
            if not is_field(name):
                self.note(f"{shown(name)} is no field of a label file{near(name)}", field=f"columns.{column}")

    def knows(self, word: str) -> bool:
        """Whether this word of the file means a grade."""
        return self._grading.knows(word)

    def note(self, message: str, *, line: int | None = None, field: str | None = None) -> None:
        """Note a mistake; `line` is 1-based, `field` a dotted path."""
        self.errors.append(LabelError(message, path=self._path, line=line or None, field=field))

    def head(self, fields: Mapping[str, Any], *, line: int | None = None) -> None:
        """Take what holds for the whole file."""
        if self._header or self._rows:
            self.note("stands after labels: write it once, as the first line", line=line, field="label_file")
            return
        version = fields.get("label_file")
        if version != LABEL_FILE or isinstance(version, bool):
            known = f"version {shown(version)} is not known (this assay knows {LABEL_FILE}): upgrade assay"
            self.note(known, line=line, field="label_file")
        for name, value in fields.items():
            if name not in (*_HEADER, "label_file"):
                self.note(f"is no field of the first line{near(name, _HEADER)}", line=line, field=short(name))
            elif name in _CHOICES and value not in _CHOICES[name]:
                self.note(f"{shown(value)} is none of {', '.join(_CHOICES[name])}", line=line, field=name)
            elif name == "synthetic" and not isinstance(value, bool):
                self.note(f"{shown(value)} is neither true nor false", line=line, field=name)
            elif name in ("gold", "judge", "description") and not isinstance(value, str):
                self.note(f"{shown(value)} is not text", line=line, field=name)
            else:
                self._header[name] = value
        self._grading.unit |= self._header.get("grades") == "unit"
        self._check_rubric(fields, line, "")

    def add(self, fields: Mapping[str, Any], *, line: int | None = None, at: str = "") -> None:
        """Take one row. `at` is where in the file it stands (a path that ends in `.`), for files without lines."""
        self._rows += 1
        self._unseen.difference_update(fields)
        renamed, mistakes = self._renamed(fields)
        row = Row(renamed, self._grading, self._rubric.pass_threshold, mistakes)
        item_id, item = row.read(line or 0)
        unlabelled = not item.labels and not row.refused_labels
        if unlabelled and not self._skip_unlabelled:
            row.mistakes.append(("labels", "nobody labelled this record: give a label, or remove the row"))
        for name, message in row.mistakes:
            self.note(message, line=line, field=at + name)
        self._check_rubric(renamed, line, at)
        if item_id is not None and not unlabelled and not row.mistakes:
            self._take(item_id, item, by_annotator="annotator" in renamed, at=at)

    def finish(
        self,
        *,
        gold: str | None = None,
        annotators: AnnotatorKind | None = None,
        passes_from: float | None = None,
    ) -> LabelSet:
        """The set of all rows; the arguments stand in for what the file says.

        Raises:
            LabelErrors: if anything was wrong.
        """
        for column in sorted(self._unseen if self._rows else ()):
            self.note("no row has this column: check its name", field=f"columns.{column}")
        if not self._items and not self.errors:
            self.note(
                "holds no labels: " + ("nobody has labelled a row yet" if self._rows else "write a row for each record")
            )
        chosen = gold or self._header.get("gold", "majority")
        own = passes_from if passes_from is not None else self._header.get("passes_from")
        if own is not None and not (_is_number(own) and 0.0 < own <= 1.0):
            self.note(
                f"{shown(own)} is not above 0 and at most 1: a grade from which on labels pass", field="passes_from"
            )
        self._check_whole(chosen)
        if self.errors:
            self.errors.sort(key=lambda error: error.line or 0)
            raise LabelErrors(self.errors)
        threshold = self._rubric.pass_threshold if own is None else float(own)
        by_chance = any("probability" in item.given for item in self._items.values())
        return LabelSet(
            path=self._path,
            rubric=self._rubric.name,
            pass_threshold=threshold,
            levels=_levels(self._rubric),
            items=tuple(_labelled(item_id, item, threshold) for item_id, item in self._items.items()),
            selection=self._header.get("selection", "probability" if by_chance else "curated"),
            annotator_kind=annotators or self._header.get("annotators", "unknown"),
            synthetic=self._header.get("synthetic", False),
            gold=chosen,
            judge=self._header.get("judge", ""),
            description=self._header.get("description", ""),
            passes_from=None if own is None else float(own),
        )

    def _renamed(self, fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """The row by the names of our fields; unknown ones are mistakes, or left out where columns are mapped."""
        row: dict[str, Any] = {}
        mistakes = []
        for key, value in fields.items():
            name = (self._columns or {}).get(key, key)
            if not is_field(name):
                # Once for all rows: in CSV each has them all.
                if self._columns is None and name not in self._unknown:
                    self._unknown.add(name)
                    mistakes.append((short(name), f"is no field of a label file{near(name)}"))
            elif name in row:
                mistakes.append((short(key), f"is a second {name}: map another of the two columns to it, or none"))
            else:
                row[name] = value
        return row, mistakes

    def _take(self, item_id: str, item: Item, *, by_annotator: bool, at: str) -> None:
        known = self._items.setdefault(item_id, item)
        if known is item:
            return
        where = f"line {known.line}" if known.line else "an earlier row"

        def note(name: str, message: str) -> None:
            self.note(message, line=item.line, field=at + name)

        if not by_annotator:
            note("record_id", f"{shown(item_id)} stands on {where} already: keep one of the two")
            return
        for name, grades in item.labels.items():
            if name in known.labels:
                note("annotator", f"{shown(name)} has a label of this record on {where} already: keep one of the two")
            known.labels.setdefault(name, grades)
        if item.record is not None and known.record is not None and item.record != known.record:
            note("record", f"is not the record that has this id on {where}: give it an id of its own")
        known.record = known.record or item.record
        for name in ("probability", "stratum", "cluster"):
            if item.given.get(name) != known.given.get(name):
                note(name, f"is not what {where} says of this record: write the same in both")
        notes = dict.fromkeys(part["note"] for part in (known.given, item.given) if "note" in part)
        known.given = item.given | known.given | ({"note": "\n".join(notes)} if notes else {})

    def _check_rubric(self, fields: Mapping[str, Any], line: int | None, at: str) -> None:
        name, rubric = fields.get("rubric", self._rubric.name), self._rubric
        if name != rubric.name:
            message = f"the labels are by the rubric {shown(name)}, not by {rubric.name}: name that rubric, or its file"
            self.note(message, line=line, field=f"{at}rubric")
        stated = fields.get("rubric_version", rubric.version)
        versions = [stated] if isinstance(stated, str) else stated
        if not isinstance(versions, list) or not all(isinstance(version, str) for version in versions):
            self.note(f"{shown(stated)} is not a version in quotes", line=line, field=f"{at}rubric_version")
        elif rubric.version not in versions:
            old = " and ".join(map(shown, versions))
            self.note(
                f"the labels are by version {old} of {rubric.name}, which is at {shown(rubric.version)} now: label "
                f"again, or add {shown(rubric.version)} here if people were asked the same",
                line=line,
                field=f"{at}rubric_version",
            )

    def _check_whole(self, gold: str) -> None:
        items = self._items.values()
        for name, why in (("stratum", "estimates go by it"), ("probability", "labels are weighted by it")):
            lacking = [item for item in items if name not in item.given]
            if lacking and len(lacking) < len(items):
                self.note(f"is missing, and other rows have one: {why}", line=lacking[0].line, field=name)
        if gold in GOLDS:
            return
        expert = gold.removeprefix("expert:")
        if expert == gold or not expert:
            self.note(f"{shown(gold)} is none of {', '.join(GOLDS)} and expert:NAME", field="gold")
            return
        labelled = sum(1 for item in items if expert in item.labels)
        if labelled < len(items):
            message = f"{shown(expert)} labelled {labelled} of {len(items)} records: take another gold"
            self.note(f"{message}, or only the records of that annotator", field="gold")


def _labelled(item_id: str, item: Item, threshold: float) -> Labelled:
    said = {
        name: sum(passes(grade, threshold) for grade in grades) / len(grades) for name, grades in item.labels.items()
    }
    return Labelled(item_id=item_id, line=item.line, record=item.record, labels=item.labels, passes=said, **item.given)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _levels(rubric: Rubric) -> tuple[float, ...] | None:
    if not isinstance(rubric.scale, Ordinal) or len(rubric.scale.levels) < 3:
        return None
    numbers = [level.level for level in rubric.scale.levels]
    return tuple((number - numbers[0]) / (numbers[-1] - numbers[0]) for number in numbers)


#: Fields of the first line that take one of some words.
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "annotators": get_args(AnnotatorKind),
    "selection": get_args(Selection),
    "grades": ("scale", "unit"),
}
