"""Exports of other systems become label sets; their forms are those that the systems write (synthetic contents)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.errors import LabelErrors
from assay.label_imports import SOURCES, import_labels, read_label_studio, read_langfuse, read_phoenix
from assay.labels import LabelSet, read_labels, write_labels
from assay.records import Record, Score
from assay.rubrics import load_rubrics

SHIPPED = {rubric.name: rubric for rubric in load_rubrics()}
FAITHFULNESS, RELEVANCE = SHIPPED["faithfulness"], SHIPPED["relevance"]

Reader = Callable[..., LabelSet]


def as_json(path: Path, value: object, name: str = "export.json") -> Path:
    file = path / name
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def as_lines(path: Path, rows: Sequence[object], name: str = "export.jsonl") -> Path:
    file = path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def as_csv(path: Path, rows: Sequence[Mapping[str, object]], name: str = "export.csv") -> Path:
    file = path / name
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, rows[0].keys(), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows([{key: "" if value is None else value for key, value in row.items()} for row in rows])
    return file


def mistakes(read: Reader, file: Path, rubric: Any = FAITHFULNESS, **options: Any) -> list[str]:
    with pytest.raises(LabelErrors) as caught:
        read(file, rubric, **options)
    return [str(error).removeprefix(f"{file.parent}/") for error in caught.value.errors]


def said(labels: LabelSet) -> dict[str, dict[str, tuple[float, ...]]]:
    return {item.item_id: dict(item.labels) for item in labels.items}


# Langfuse.


def score(trace: str | None, value: object, **fields: object) -> dict[str, object]:
    """A row of the scores table as its export writes it."""
    return {
        "id": f"score-{trace}-{fields.get('authorUserName', '')}-{fields.get('name', '')}",
        "traceId": trace,
        "sessionId": None,
        "datasetRunId": None,
        "timestamp": "2026-05-29T13:46:19.963Z",
        "source": "ANNOTATION",
        "name": "faithfulness",
        "dataType": "NUMERIC",
        "value": value,
        "stringValue": None,
        "comment": None,
        "metadata": {},
        "observationId": None,
        "traceName": "chat",
        "userId": "u1",
        "traceTags": [],
        "environment": "default",
        "authorUserName": "Anna",
    } | fields


def test_langfuse_annotations(tmp_path: Path) -> None:
    rows = [
        score("t1", 1.0, comment="all there"),
        score("t1", 0.5, authorUserName="Ben"),
        score("t2", 0, dataType="BOOLEAN", stringValue="False"),
        score("t3", 2, dataType="CATEGORICAL", stringValue="hallucinated", observationId="o3"),
        score("t4", 1.0, source="EVAL"),
        score("t5", 1.0, name="tone"),
    ]
    labels = read_langfuse(as_json(tmp_path, rows), FAITHFULNESS, values={"Hallucinated": "fail"})
    assert said(labels) == {"t1": {"Anna": (1.0,), "Ben": (0.5,)}, "t2": {"Anna": (0.0,)}, "o3": {"Anna": (0.0,)}}
    assert labels.annotator_kind == "human"
    assert labels.items[0].note == "all there"
    assert labels.items[0].labelled_at == datetime(2026, 5, 29, 13, 46, 19, 963000, tzinfo=UTC)
    assert all(item.judged is None for item in labels.items)


@pytest.mark.parametrize("quoted", [True, False])
def test_langfuse_csv_with_texts_as_json_or_plain(tmp_path: Path, quoted: bool) -> None:
    rows = [
        score("t1", 1, dataType="BOOLEAN", stringValue="True", comment='says "yes", rightly'),
        score("t2", 0.0, dataType="CATEGORICAL", stringValue="fail"),
    ]
    written = [
        {
            key: json.dumps(value)
            if quoted and value is not None
            else json.dumps(value)
            if key == "metadata"
            else value
            for key, value in row.items()
        }
        for row in rows
    ]
    labels = read_langfuse(as_csv(tmp_path, written), FAITHFULNESS)
    assert said(labels) == {"t1": {"Anna": (1.0,)}, "t2": {"Anna": (0.0,)}}
    assert labels.items[0].note == 'says "yes", rightly'
    assert [item.line for item in labels.items] == [2, 3]


@pytest.mark.parametrize("form", ["export.jsonl", "export.json"])
def test_langfuse_api_answers_and_exports_to_storage(tmp_path: Path, form: str) -> None:
    stored = {
        "id": "s",
        "trace_id": "t1",
        "observation_id": None,
        "name": "faithfulness",
        "source": "ANNOTATION",
        "data_type": "CATEGORICAL",
        "value": 0,
        "string_value": "pass",
        "author_user_id": "user-7",
        "timestamp": "2026-05-29 13:46:19.963000",
        "comment": "",
    }
    labels = read_langfuse(as_lines(tmp_path, [stored, stored | {"trace_id": "t2"}], form), FAITHFULNESS)
    assert said(labels) == {"t1": {"user-7": (1.0,)}, "t2": {"user-7": (1.0,)}}
    assert labels.items[0].labelled_at == datetime(2026, 5, 29, 13, 46, 19, 963000, tzinfo=UTC)
    answered = {"data": [score("t1", 1.0)], "meta": {"page": 1, "totalPages": 1}}
    assert said(read_langfuse(as_json(tmp_path, answered, "api.json"), FAITHFULNESS)) == {"t1": {"Anna": (1.0,)}}


def test_langfuse_judge_scores_beside_the_labels(tmp_path: Path) -> None:
    rows = [
        score("t1", 1.0),
        score("t1", 0.95, name="faithfulness-judge", source="EVAL", comment="close"),
        score("t2", 0.0),
        score("t2", 1, name="faithfulness-judge", source="API", dataType="BOOLEAN"),
        score("t3", 0.0),
    ]
    labels = read_langfuse(as_json(tmp_path, rows), FAITHFULNESS, judge="faithfulness-judge")
    assert [item.judged for item in labels.items] == [
        Score(value=0.95, passed=True, explanation="close"),
        Score(value=1.0, passed=True),
        None,
    ]
    assert labels.judge == "faithfulness-judge"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [score("t1", 1, name="tone"), score("t2", 1, source="EVAL")],
            'export.json: holds no scores called "faithfulness" with the source ANNOTATION: it holds tone (1), faith',
        ),
        ([], 'export.json: holds no scores called "faithfulness" with the source ANNOTATION: it holds nothing'),
        ([score("t1", 7)], "export.json: [0].label: 7 is not on the scale of faithfulness"),
        (
            [score("t1", 0, dataType="CATEGORICAL", stringValue="meh")],
            'export.json: [0].label: "meh" is not on the scale of faithfulness: give pass, fail',
        ),
        ([score("t1", 0, dataType="TEXT")], "export.json: [0].dataType: TEXT is no grade: take scores that are"),
        ([score(None, 1, sessionId="s")], "export.json: [0].traceId: is missing: scores of sessions and dataset runs"),
        (
            [score("t1", 1), score("t1", 0)],
            'export.json: [1].annotator: "Anna" has a label of this record on an earlier row already',
        ),
        ([3], "export.json: [0]: 3 is no JSON object"),
    ],
)
def test_langfuse_mistakes(tmp_path: Path, rows: list[Any], told: str) -> None:
    (found,) = mistakes(read_langfuse, as_json(tmp_path, rows))
    assert found.startswith(told)


def test_a_judge_that_scored_twice_cannot_be_told(tmp_path: Path) -> None:
    rows = [score("t1", 1.0), *[score("t1", value, name="j", source="EVAL") for value in (0.1, 0.9)]]
    (found,) = mistakes(read_langfuse, as_json(tmp_path, rows), judge="j")
    assert found == 'export.json: [2].name: "t1" has a score of this judge already: export one run of it'


def test_scores_without_a_name_are_nobodys(tmp_path: Path) -> None:
    rows = [score("t1", 1.0), score("t1", 0.2, name=None, source="EVAL")]
    (item,) = read_langfuse(as_json(tmp_path, rows), FAITHFULNESS).items
    assert item.judged is None


def test_csv_mistakes_have_their_line(tmp_path: Path) -> None:
    file = as_csv(tmp_path, [score("t1", 1.0), score("t2", 12)])
    (found,) = mistakes(read_langfuse, file)
    assert found.startswith('export.csv:3: label: "12" is not on the scale')


# Phoenix.


def annotation(span: str | None, **fields: object) -> dict[str, object]:
    """An annotation as the REST API gives it back."""
    return {
        "span_id": span,
        "name": "faithfulness",
        "annotator_kind": "HUMAN",
        "result": {"label": None, "score": None, "explanation": None} | dict(fields.pop("result", {})),  # type: ignore[call-overload]
        "metadata": {},
        "identifier": "",
        "id": f"U3Bh{span}",
        "created_at": "2026-05-29T13:46:19.963000+00:00",
        "updated_at": "2026-05-30T13:46:19.963000+00:00",
        "source": "APP",
        "user_id": "VXNlcjox",
    } | fields


def test_phoenix_rest(tmp_path: Path) -> None:
    data = [
        annotation("s1", result={"score": 1.0, "explanation": "quoted"}),
        annotation("s1", result={"label": "fail"}, user_id="VXNlcjoy"),
        annotation("s2", result={"label": "factual", "score": 1.0}),
        annotation("s3", result={"label": "made up", "score": 1.0}),
        annotation("s4", result={"explanation": "a note alone"}),
        annotation("s5", result={"score": 0.5}, annotator_kind="LLM"),
        annotation(None, result={"score": 0.0}, trace_id="t6", user_id=None, identifier="cleo"),
    ]
    labels = read_phoenix(
        as_json(tmp_path, {"data": data, "next_cursor": None}), FAITHFULNESS, values={"made up": "fail"}
    )
    assert said(labels) == {
        "s1": {"VXNlcjox": (1.0,), "VXNlcjoy": (0.0,)},
        "s2": {"VXNlcjox": (1.0,)},
        "s3": {"VXNlcjox": (0.0,)},
        "t6": {"cleo": (0.0,)},
    }
    assert labels.items[0].note == "quoted"
    assert labels.items[0].labelled_at == datetime(2026, 5, 30, 13, 46, 19, 963000, tzinfo=UTC)
    assert labels.annotator_kind == "human"


def test_phoenix_dataframe_as_csv(tmp_path: Path) -> None:
    rows = [
        {
            "span_id": span,
            "id": "U3Bh",
            "created_at": "2026-05-29T13:46:19.963000+00:00",
            "updated_at": "",
            "source": "API",
            "user_id": "",
            "annotation_name": "relevance",
            "annotator_kind": kind,
            "metadata": "{}",
            "identifier": who,
            "result.label": label,
            "result.score": number,
            "result.explanation": "why",
        }
        for span, kind, who, label, number in [
            ("s1", "HUMAN", "anna", "", "4.0"),
            ("s1", "LLM", "eval-7", "", "3.0"),
            ("s2", "HUMAN", "anna", "pass", ""),
        ]
    ]
    labels = read_phoenix(as_csv(tmp_path, rows), RELEVANCE, judge="relevance")
    assert said(labels) == {"s1": {"anna": (0.75,)}, "s2": {"anna": (1.0,)}}
    assert labels.items[0].judged == Score(value=0.5, passed=False, explanation="why")
    assert labels.items[1].line == 4


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            [annotation("s1", name="tone")],
            'export.json: holds no annotations called "faithfulness" of the kind HUMAN: it holds tone (1)',
        ),
        ([annotation("s1", result={"label": "meh"})], 'export.json: data[0].label: "meh" is not on the scale'),
        ([annotation("s1", result={"score": 11})], "export.json: data[0].label: 11 is not on the scale"),
        ([annotation(None, result={"score": 1})], "export.json: data[0].span_id: is missing: annotations of sessions"),
        (
            [annotation("s1", result={"score": 1}, updated_at="x")],
            'export.json: data[0].labelled_at: "x" is not a time',
        ),
        (["x"], 'export.json: data[0]: "x" is no JSON object'),
    ],
)
def test_phoenix_mistakes(tmp_path: Path, data: list[Any], told: str) -> None:
    (found,) = mistakes(read_phoenix, as_json(tmp_path, {"data": data}))
    assert found.startswith(told)


# Label Studio.


def choice(*picked: str, control: str = "faithfulness") -> dict[str, object]:
    return {
        "id": "x",
        "type": "choices",
        "value": {"choices": list(picked)},
        "origin": "manual",
        "to_name": "output",
        "from_name": control,
    }


def rating(stars: int, control: str = "relevance") -> dict[str, object]:
    return {"id": "x", "type": "rating", "value": {"rating": stars}, "to_name": "output", "from_name": control}


def words(text: str) -> dict[str, object]:
    return {"id": "x", "type": "textarea", "value": {"text": [text]}, "to_name": "output", "from_name": "why"}


def task(number: int, *annotations: Mapping[str, object], **data: object) -> dict[str, object]:
    """A task as the export format JSON writes it."""
    return {
        "id": number,
        "annotations": [
            {
                "id": 1000 + place,
                "completed_by": {"id": place, "email": f"{name}@example.org"},
                "was_cancelled": False,
                "ground_truth": False,
                "created_at": "2026-03-09T22:16:08.728353Z",
                "updated_at": "2026-03-09T22:17:08.728378Z",
                "lead_time": 4.3,
            }
            | dict(given)
            for place, (name, given) in enumerate(zip("abc", annotations, strict=False))
        ],
        "drafts": [],
        "predictions": [],
        "data": {"input": "q", "output": "a", "contexts": ["c"]} | data,
        "meta": {},
        "project": 83,
    }


def test_label_studio_choices_of_several_annotators(tmp_path: Path) -> None:
    tasks = [
        task(
            1,
            {"result": [choice("pass"), words("quoted in context 1")]},
            {"result": [choice("pass", "fail")], "completed_by": 7},
            record_id="r1",
            team="red",
        ),
        task(2, {"result": [choice("fail")]}, {"result": [], "was_cancelled": True}),
        task(3),
    ]
    labels = read_label_studio(as_json(tmp_path, tasks), FAITHFULNESS)
    assert said(labels) == {"r1": {"a@example.org": (1.0,), "7": (0.0, 1.0)}, "task-2": {"a@example.org": (0.0,)}}
    first = labels.items[0]
    assert first.record is not None
    assert (first.record.input, first.record.contexts[0].text) == ("q", "c")
    assert first.note == "quoted in context 1"
    assert first.labelled_at == datetime(2026, 3, 9, 22, 17, 8, 728378, tzinfo=UTC)
    assert labels.annotator_kind == "human"


def test_label_studio_ratings(tmp_path: Path) -> None:
    tasks = [task(1, {"result": [rating(4, "stars")]}), task(2, {"result": [rating(1, "stars")]})]
    file = as_json(tmp_path, tasks)
    assert read_label_studio(file, RELEVANCE).y_true == (1.0, 0.0)
    values = {str(stars): "pass" if stars > 3 else "fail" for stars in range(1, 6)}
    assert read_label_studio(file, FAITHFULNESS, values=values).y_true == (1.0, 0.0)
    number = {"type": "number", "value": {"number": 3}, "from_name": "relevance", "to_name": "output"}
    labels = read_label_studio(as_json(tmp_path, [task(1, {"result": [number]})]), RELEVANCE)
    assert labels.items[0].labels == {"a@example.org": (0.5,)}


def test_label_studio_takes_the_named_control_and_mapped_data(tmp_path: Path) -> None:
    tasks = [task(1, {"result": [choice("fail", control="other"), choice("pass", control="grounded")]}, answer="b")]
    tasks[0]["data"].pop("output")  # type: ignore[attr-defined]
    labels = read_label_studio(
        as_json(tmp_path, tasks), FAITHFULNESS, name="grounded", columns={"answer": "output", "input": "input"}
    )
    assert labels.y_true == (1.0,)
    assert labels.items[0].record is not None
    assert labels.items[0].record.output == "b"


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        (
            [task(1, {"result": [choice("pass", control="a"), choice("pass", control="b")]})],
            'export.json: holds no choices, ratings or numbers called "faithfulness": it holds a (1), b (1)',
        ),
        (
            [task(1, {"result": [choice("good")]})],
            'export.json: [0].annotations[0].label: "good" is not on the scale of faithfulness: give pass, fail',
        ),
        (
            [task(1, {"result": [choice("pass")]}, {"result": [rating(9, "faithfulness")]})],
            "export.json: [0].annotations[1].label: 9 is not on the scale",
        ),
        (
            [
                task(
                    1,
                    {"result": [choice("pass")]},
                    {"result": [choice("pass")], "completed_by": {"email": "a@example.org"}},
                )
            ],
            'export.json: [0].annotations[1].annotator: "a@example.org" has a label of this record on an earlier row',
        ),
        ([task(1, {"result": [choice("pass")]}, input=3)], "export.json: [0].annotations[0].input: must be text"),
        (
            [{"id": 1, "faithfulness": "pass", "annotator": "a", "annotation_id": 3, "input": "q"}],
            "export.json: [0]: is of the export format JSON-MIN: export the project as JSON",
        ),
        ([{"id": 1, "data": {"input": "q"}}], "export.json: [0].data: is no task with data and annotations"),
        ({"tasks": []}, "export.json: holds an object where an array of entries is wanted"),
    ],
)
def test_label_studio_mistakes(tmp_path: Path, tasks: Any, told: str) -> None:
    (found,) = mistakes(read_label_studio, as_json(tmp_path, tasks))
    assert found.startswith(told)


# All of them.


def test_labels_of_traces_find_their_records(tmp_path: Path) -> None:
    labels = read_langfuse(as_json(tmp_path, [score("a" * 32, 1.0)]), FAITHFULNESS)
    record = Record(record_id="r1", timestamp=datetime(2026, 1, 1, tzinfo=UTC), output="a", trace_id="a" * 32)
    joined = labels.with_records([record])
    assert [(item.item_id, item.record) for item in joined.items] == [("r1", record)]


def test_an_import_is_a_label_file_like_any_other(tmp_path: Path) -> None:
    rows = [score("t1", 1.0), score("t2", 0.25, comment="no"), score("t1", 0.9, name="j", source="EVAL")]
    labels = read_langfuse(as_json(tmp_path, rows), FAITHFULNESS, judge="j")
    write_labels(tmp_path / "labels.jsonl", labels)
    again = read_labels(tmp_path / "labels.jsonl", FAITHFULNESS)
    assert again.sha256 == labels.sha256
    assert (again.judge, again.annotator_kind) == ("j", "human")
    assert again.items[0].judged == labels.items[0].judged


def test_each_source_is_read_by_its_name(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,said,machine\nr1,ok,0.4\nr2,bad,0.95\n")
    labels = import_labels(
        table,
        "table",
        FAITHFULNESS,
        columns={"id": "record_id", "said": "label", "machine": "judge_score"},
        values={"ok": "pass", "bad": "fail"},
    )
    assert labels.y_true == (1.0, 0.0)
    assert [item.judged.passed for item in labels.items if isinstance(item.judged, Score)] == [False, True]
    file = as_json(tmp_path, [score("t1", 1.0, name="grounded")])
    assert import_labels(file, "langfuse", FAITHFULNESS, name="grounded", gold="mean").gold == "mean"
    file = as_json(tmp_path, {"data": [annotation("s1", result={"score": 1})]})
    assert import_labels(file, "phoenix", FAITHFULNESS).y_true == (1.0,)
    file = as_json(tmp_path, [task(1, {"result": [choice("fail")]})])
    assert import_labels(file, "label-studio", FAITHFULNESS).y_true == (0.0,)


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        ("table", {"name": "x"}, "table takes no name: leave it out"),
        ("langfuse", {"columns": {}}, "langfuse takes no columns"),
        ("label-studio", {"judge": "x"}, "label-studio takes no judge"),
    ],
)
def test_what_a_source_does_not_take_is_refused(tmp_path: Path, source: Any, options: Any, told: str) -> None:
    with pytest.raises(LabelErrors, match=told):
        import_labels(tmp_path / "x.json", source, FAITHFULNESS, **options)


@pytest.mark.parametrize("read", [read_langfuse, read_phoenix, read_label_studio])
@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "export.json:1: not JSON: Expecting value: export it again"),
        (b'[\n{"a": }]', "export.json:2: not JSON: Expecting value"),
        (b"\xff\xfe\xff", "export.json: not JSON: "),
        (b"3", "export.json: holds 3 where an array of entries is wanted"),
        (b"[" * 200_000, "export.json: not JSON: "),
        (b'{"a": 1}\n{', "export.json:2: not JSON"),
    ],
)
def test_files_that_are_no_export(tmp_path: Path, read: Reader, raw: bytes, told: str) -> None:
    file = tmp_path / "export.json"
    file.write_bytes(raw)
    found = mistakes(read, file)
    assert any(line.startswith(told) for line in found), found


@pytest.mark.parametrize("read", [read_langfuse, read_phoenix, read_label_studio])
def test_files_that_are_not_there(tmp_path: Path, read: Reader) -> None:
    assert mistakes(read, tmp_path / "none.json") == ["none.json: does not exist: check the path"]


_KEYS = [*score("t", 1), *annotation("s"), *task(1), "label", "score", "result", "choices", "text", "type", "from_name"]
_WORDS = ["faithfulness", "HUMAN", "ANNOTATION", "pass", "t1", "BOOLEAN", "choices", '"pass"', "2026-01-01"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=6),
    max_leaves=20,
)


@given(value=_JSON, source=st.sampled_from(SOURCES[1:]), suffix=st.sampled_from([".json", ".jsonl", ".csv"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_values_crash_an_importer(tmp_path: Path, value: Any, source: Any, suffix: str) -> None:
    file = as_json(tmp_path, value, f"export{suffix}")
    assert attempt(file, source)


@given(source=st.sampled_from(SOURCES[1:]), changes=st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_change_of_a_good_export_crashes_an_importer(tmp_path: Path, source: Any, changes: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "langfuse": score("t1", 1.0),
        "phoenix": annotation("s1", result={"score": 1.0}),
        "label-studio": task(1, {"result": [choice("pass") | changes]}),
    }[source]
    assert attempt(as_json(tmp_path, [good]), source)
    assert attempt(as_json(tmp_path, [good | changes]), source)


@pytest.mark.parametrize("name", [None, [], {}, 7])
def test_a_result_of_label_studio_whose_control_has_no_name_is_of_no_control(tmp_path: Path, name: object) -> None:
    file = as_json(tmp_path, [task(1, {"result": [choice("pass") | {"from_name": name}]})])
    assert 'called "faithfulness": it holds' in str(attempt(file, "label-studio"))


@given(
    raw=st.binary(max_size=200), source=st.sampled_from(SOURCES), suffix=st.sampled_from([".json", ".jsonl", ".csv"])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_bytes_crash_an_importer(tmp_path: Path, raw: bytes, source: Any, suffix: str) -> None:
    file = tmp_path / f"export{suffix}"
    file.write_bytes(raw)
    assert attempt(file, source)


def attempt(file: Path, source: Any) -> object:
    try:
        return import_labels(file, source, FAITHFULNESS).items
    except LabelErrors as found:
        return str(found)
