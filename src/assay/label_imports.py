"""Label sets out of other systems' exports: Langfuse scores, Phoenix annotations, Label Studio tasks.

Each names a record in its own way, by trace, span or task: `LabelSet.with_records` finds the records. A table of one's
own, with judge scores beside the labels or without, needs no importer: `read_labels` takes a map of its columns.
docs/howto/label-records.md shows each.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from assay._label_rows import shown
from assay.errors import LabelError, LabelErrors
from assay.files import open_file, read_file
from assay.labels import LABEL_FILE, LabelReader, read_labels
from assay.rows import RECORD_FIELDS, raw_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from assay.labels import LabelSet
    from assay.rubrics import Rubric

#: What `import_labels` reads. `table` is a label file, or any CSV or JSON Lines with a map of its columns.
Source = Literal["table", "langfuse", "phoenix", "label-studio"]
SOURCES: Final[tuple[Source, ...]] = get_args(Source)


def import_labels(
    path: Path | str,
    source: Source,
    rubric: Rubric,
    *,
    name: str | None = None,
    judge: str | None = None,
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, str] | None = None,
    gold: str | None = None,
) -> LabelSet:
    """The labels of a file of one of the `SOURCES`; the arguments are those of its reader.

    Raises:
        LabelErrors: every mistake of the file, or an argument that its reader does not take.
    """
    taken: dict[str, Any] = {"name": name, "judge": judge, "columns": columns}
    accepted = {
        "table": ("columns",),
        "langfuse": ("name", "judge"),
        "phoenix": ("name", "judge"),
        "label-studio": ("name", "columns"),
    }[source]
    refused = [word for word, value in taken.items() if value is not None and word not in accepted]
    if refused:
        raise LabelErrors([LabelError(f"{source} takes no {' and no '.join(refused)}: leave it out", path=path)])
    given = {word: value for word, value in taken.items() if word in accepted}
    read: Any = {
        "table": read_labels,
        "langfuse": read_langfuse,
        "phoenix": read_phoenix,
        "label-studio": read_label_studio,
    }[source]
    labels: LabelSet = read(path, rubric, values=values, gold=gold, **given)
    return labels


def read_langfuse(
    path: Path | str,
    rubric: Rubric,
    *,
    name: str | None = None,
    judge: str | None = None,
    values: Mapping[str, str] | None = None,
    gold: str | None = None,
) -> LabelSet:
    """Scores that people gave in Langfuse, from an export of its scores table (CSV, JSON, JSONL) or its scores API.

    Labels are the scores of source ANNOTATION; items are named by observation, else by trace.

    Args:
        path: the file.
        rubric: that people scored by.
        name: of the scores; the rubric's name by default.
        judge: name of scores of the sources EVAL and API to put beside the labels as a judge's.
        values: the categories -> `pass`, `fail` or a number of the rubric's scale.
        gold: what many annotators say together.

    Raises:
        LabelErrors: every mistake of the file.
    """
    wanted = name or rubric.name
    rows = _Export(Path(path), rubric, values, judge)
    for entry in map(_unquoted, rows.entries(inside="data")):
        title, source = entry.get("name"), entry.get("source")
        is_judge = judge is not None and title == judge and source in ("EVAL", "API")
        rows.saw(title, labels=title == wanted and source == "ANNOTATION")
        if not is_judge and not (title == wanted and source == "ANNOTATION"):
            continue
        target = entry.get("observationId", "observation_id") or entry.get("traceId", "trace_id")
        if not target:
            rows.note(entry, "traceId", "is missing: scores of sessions and dataset runs speak of no single record")
            continue
        rows.take(
            entry,
            str(target),
            _langfuse_value(entry, rows),
            is_judge=is_judge,
            by=entry.get("authorUserName", "authorUserId", "author_user_id"),
            when=entry.get("timestamp"),
            comment=entry.get("comment"),
        )
    return rows.finish(gold, f"scores called {shown(wanted)} with the source ANNOTATION")


def _unquoted(entry: _Entry) -> _Entry:
    """Langfuse writes the texts of its CSV in quotes of their own, as JSON."""
    if entry.line is None:
        return entry
    return entry._replace(fields={key: _as_text(value) for key, value in entry.fields.items()})


def _as_text(value: Any) -> Any:
    if not (isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"'):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _langfuse_value(entry: _Entry, rows: _Export) -> object:
    kind = entry.get("dataType", "data_type")
    if kind in ("TEXT", "CORRECTION"):
        rows.note(entry, "dataType", f"{kind} is no grade: take scores that are numeric, boolean or categorical")
        return None
    if kind == "CATEGORICAL":
        # The number beside it only says which category it is.
        return entry.get("stringValue", "string_value")
    value = entry.get("value")
    if kind == "BOOLEAN" and str(value).lower() in ("0", "0.0", "1", "1.0"):
        return float(str(value)) == 1.0
    return value


def read_phoenix(
    path: Path | str,
    rubric: Rubric,
    *,
    name: str | None = None,
    judge: str | None = None,
    values: Mapping[str, str] | None = None,
    gold: str | None = None,
) -> LabelSet:
    """Annotations that people made in Phoenix: the JSON of its REST API, or a CSV of the client's annotation dataframe.

    Labels are the annotations of kind HUMAN; items are named by span, else by trace. An annotation's label is taken
    where the rubric or `values` know its word, else its score.

    Args:
        path: the file.
        rubric: that people annotated by.
        name: of the annotations; the rubric's name by default.
        judge: name of annotations of the kinds LLM and CODE to put beside the labels as a judge's.
        values: words of annotations -> `pass`, `fail` or a number of the rubric's scale.
        gold: what many annotators say together.

    Raises:
        LabelErrors: every mistake of the file.
    """
    wanted = name or rubric.name
    rows = _Export(Path(path), rubric, values, judge)
    for entry in rows.entries(inside="data"):
        title, kind = entry.get("name", "annotation_name"), entry.get("annotator_kind")
        is_judge = judge is not None and title == judge and kind in ("LLM", "CODE")
        rows.saw(title, labels=title == wanted and kind == "HUMAN")
        if not is_judge and not (title == wanted and kind == "HUMAN"):
            continue
        target = entry.get("span_id", "context.span_id") or entry.get("trace_id")
        if not target:
            rows.note(entry, "span_id", "is missing: annotations of sessions and documents speak of no single record")
            continue
        result = entry.get("result")
        result = result if isinstance(result, Mapping) else {}
        word = result.get("label", entry.get("result.label", "label"))
        score = result.get("score", entry.get("result.score", "score"))
        rows.take(
            entry,
            str(target),
            word if score is None or (isinstance(word, str) and rows.reader.knows(word)) else score,
            is_judge=is_judge,
            by=entry.get("user_id", "identifier"),
            when=entry.get("updated_at", "created_at"),
            comment=result.get("explanation", entry.get("result.explanation", "explanation")),
        )
    return rows.finish(gold, f"annotations called {shown(wanted)} of the kind HUMAN")


def read_label_studio(
    path: Path | str,
    rubric: Rubric,
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, str] | None = None,
    gold: str | None = None,
) -> LabelSet:
    """Annotations of Label Studio tasks: choices, ratings and numbers in the export format JSON.

    Each annotator of a task gives a label; several choices are all acceptable; skipped annotations are left out. The
    task's data is the record, as `assay labels export` writes it; texts beside the choices become the note.

    Args:
        path: the file.
        rubric: that people labelled by.
        name: of the control that holds the label; by default the rubric's name, or the only control there is.
        columns: keys of the task's data -> fields of a record, where they have other names.
        values: choices and ratings -> `pass`, `fail` or a number of the rubric's scale.
        gold: what many annotators say together.

    Raises:
        LabelErrors: every mistake of the file.
    """
    rows = _Export(Path(path), rubric, values, None)
    tasks = list(rows.entries(inside=None))
    control = name or _only_control(tasks, rubric.name)
    for task in tasks:
        data, annotations = task.get("data"), task.get("annotations")
        if "annotation_id" in task.fields:
            rows.note(task, "", "is of the export format JSON-MIN: export the project as JSON")
            continue
        if not isinstance(data, Mapping) or not isinstance(annotations, list):
            rows.note(task, "data", "is no task with data and annotations: export the project as JSON")
            continue
        record = {(columns or {}).get(key, key): value for key, value in data.items()}
        record = {key: value for key, value in record.items() if key in RECORD_FIELDS and value is not None}
        record.setdefault("record_id", f"task-{task.get('id')}")
        for place, annotation in enumerate(annotations):
            at = f"{task.at}.annotations[{place}]"
            if not isinstance(annotation, Mapping):
                rows.note(task, f"annotations[{place}]", "is no JSON object")
            elif not annotation.get("was_cancelled"):
                _take_annotation(rows, record, annotation, control, at)
    return rows.finish(gold, f"choices, ratings or numbers called {shown(control)}")


def _take_annotation(
    rows: _Export, record: Mapping[str, Any], annotation: Mapping[str, Any], control: str, at: str
) -> None:
    found, notes = [], []
    for result in _results(annotation):
        value = result.get("value")
        value = value if isinstance(value, Mapping) else {}
        rows.saw(result.get("from_name"), labels=result.get("from_name") == control)
        if result.get("type") == "textarea":
            text = value.get("text")
            notes += [str(part) for part in (text if isinstance(text, list) else [text]) if part]
        elif result.get("from_name") == control:
            picked = value.get("choices", value.get("rating", value.get("number")))
            found += picked if isinstance(picked, list) else [picked]
    if found:
        by = annotation.get("completed_by")
        by = by.get("email") or by.get("id") if isinstance(by, Mapping) else by
        row = dict(record) | {"label": found, "annotator": "annotator" if by is None else str(by)}
        row |= _present(labelled_at=_moment(annotation.get("updated_at") or annotation.get("created_at")))
        rows.reader.add(row | _present(note="\n".join(notes)), at=f"{at}.")


def _only_control(tasks: Sequence[_Entry], preferred: str) -> str:
    names = Counter(
        result.get("from_name")
        for task in tasks
        for annotation in _listed(task.get("annotations"))
        for result in _results(annotation)
        if result.get("type") in ("choices", "rating", "number") and isinstance(result.get("from_name"), str)
    )
    return str(next(iter(names))) if len(names) == 1 and preferred not in names else preferred


def _results(annotation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _listed(annotation.get("result"))


def _listed(value: object) -> list[Mapping[str, Any]]:
    return [part for part in value if isinstance(part, Mapping)] if isinstance(value, list) else []


#: Of an export that is read whole.
_MOST_BYTES = 200_000_000


class _Entry(NamedTuple):
    """One entry of an export and where it stands: a line, or a path such as `[3]`."""

    fields: Mapping[str, Any]
    line: int | None
    at: str

    def get(self, *names: str) -> Any:
        """The first of these fields that is there and says something."""
        return next((self.fields[name] for name in names if self.fields.get(name) not in (None, "")), None)


class _Export:
    """An export while it is read: its entries, their mistakes, and the labels out of them."""

    def __init__(self, path: Path, rubric: Rubric, values: Mapping[str, str] | None, judge: str | None) -> None:
        self._path = path
        self.reader = LabelReader(path, rubric, values=values)
        # People's, for no other entries are taken as labels.
        self.reader.head({"label_file": LABEL_FILE, "annotators": "human", "judge": judge or ""})
        #: a judge's scores by item, as fields of a row
        self._judged: dict[str, dict[str, Any]] = {}
        self._waiting: list[tuple[dict[str, Any], _Entry]] = []
        self._names: Counter[str] = Counter()
        self._labels = 0

    def entries(self, *, inside: str | None) -> Iterator[_Entry]:
        """The entries of the file: rows of CSV or JSON Lines, or of an array, which may stand in an object.

        Raises:
            LabelErrors: the file cannot be read.
        """
        suffix = self._path.suffix.lower()
        try:
            if suffix in (".csv", ".jsonl", ".ndjson"):
                with open_file(self._path) as file:
                    yield from self._rows(raw_rows(file, "csv" if suffix == ".csv" else "jsonl"))
            else:
                yield from self._array(read_file(self._path, _MOST_BYTES), inside)
        except OSError as error:
            problem = "does not exist: check the path" if isinstance(error, FileNotFoundError) else error.strerror
            raise LabelErrors([LabelError(f"{problem}", path=self._path)]) from None

    def _rows(self, rows: Iterator[Any]) -> Iterator[_Entry]:
        for row in rows:
            if row.fields is None:
                self.reader.note(row.error or "cannot be read", line=row.line)
            else:
                yield _Entry(row.fields, row.line, "")

    def _array(self, raw: bytes, inside: str | None) -> Iterator[_Entry]:
        data: Any = None
        try:
            data = json.loads(raw)
        except json.JSONDecodeError as error:
            if error.msg == "Extra data":
                yield from self._rows(raw_rows(io.BytesIO(raw), "jsonl"))
                return
            self.reader.note(f"not JSON: {error.msg}: export it again", line=error.lineno)
            return
        except (ValueError, RecursionError) as error:
            self.reader.note(f"not JSON: {error}")
            return
        at = ""
        if inside is not None and isinstance(data, Mapping) and isinstance(data.get(inside), list):
            data, at = data[inside], inside
        if not isinstance(data, list):
            self.reader.note(f"holds {shown(data)} where an array of entries is wanted: export it again as it is")
            return
        for place, entry in enumerate(data):
            if isinstance(entry, Mapping):
                yield _Entry(entry, None, f"{at}[{place}]")
            else:
                self.reader.note(f"{shown(entry)} is no JSON object", field=f"{at}[{place}]")

    def saw(self, name: object, *, labels: bool) -> None:
        """Count an entry, to say what there is where nothing is found."""
        self._names[str(name)[:60]] += 1
        self._labels += labels

    def note(self, entry: _Entry, name: str, message: str) -> None:
        """Note a mistake of an entry."""
        self.reader.note(message, line=entry.line, field=".".join(part for part in (entry.at, name) if part))

    def take(
        self,
        entry: _Entry,
        item_id: str,
        value: object,
        *,
        is_judge: bool,
        by: object,
        when: object,
        comment: object,
    ) -> None:
        """Take an entry as a label, or as a judge's score of the same item; a mere comment is neither."""
        if value is None:
            return
        said = str(comment) if comment is not None else ""
        if is_judge:
            if item_id in self._judged:
                self.note(entry, "name", f"{shown(item_id)} has a score of this judge already: export one run of it")
            self._judged[item_id] = {"judge_score": value} | _present(judge_explanation=said)
            return
        row = {"record_id": item_id, "label": value, "annotator": str(by or "annotator")}
        self._waiting.append((row | _present(labelled_at=_moment(when), note=said), entry))

    def finish(self, gold: str | None, wanted: str) -> LabelSet:
        """The set, with the judge's scores where there are any.

        Raises:
            LabelErrors: every mistake of the file.
        """
        for row, entry in self._waiting:
            at = f"{entry.at}." if entry.at else ""
            self.reader.add(row | self._judged.get(row["record_id"], {}), line=entry.line, at=at)
        if not self._labels and not self.reader.errors:
            there = ", ".join(f"{name} ({count})" for name, count in self._names.most_common(10)) or "nothing"
            self.reader.note(f"holds no {wanted}: it holds {there}")
            raise LabelErrors(self.reader.errors)
        return self.reader.finish(gold=gold)


def _present(**texts: str) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text}


def _moment(value: object) -> str:
    """An export's time with its time zone: these systems write UTC, some without saying so."""
    if not isinstance(value, str):
        return ""
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        return value
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).isoformat()
