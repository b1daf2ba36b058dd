"""Label files: what they mean, and a sentence for every mistake in them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay._label_rows import ROW_FIELDS
from assay.calibration import gold_labels
from assay.errors import ConfigError, LabelError, LabelErrors
from assay.labels import _HEADER, GOLDS, Labelled, LabelReader, LabelSet, read_labels, write_labels
from assay.records import Failure, Record, Score
from assay.rubrics import Rubric, load_rubrics
from assay.scales import Binary

SHIPPED = {rubric.name: rubric for rubric in load_rubrics()}
FAITHFULNESS, RELEVANCE, SAFETY = SHIPPED["faithfulness"], SHIPPED["relevance"], SHIPPED["safety"]
TONE = Rubric(
    name="tone",
    version="1",
    instructions="Is it polite?",
    scale=Binary(pass_when="polite", fail_when="rude", pass_label="Polite", fail_label="rude"),
    pass_threshold=1.0,
)


def row(record_id: str = "r1", label: object = "pass", **fields: object) -> dict[str, object]:
    return {"record_id": record_id, "label": label, **fields}


def read(
    path: Path, rows: Sequence[object], rubric: Rubric = FAITHFULNESS, name: str = "labels.jsonl", **options: Any
) -> LabelSet:
    file = path / name
    text = "\n".join(part if isinstance(part, str) else json.dumps(part) for part in rows)
    file.write_text(text + "\n", encoding="utf-8")
    return read_labels(file, rubric, **options)


def mistakes(
    path: Path, rows: Sequence[object], rubric: Rubric = FAITHFULNESS, name: str = "labels.jsonl", **options: Any
) -> list[str]:
    """Each mistake as it is told, without the directory."""
    with pytest.raises(LabelErrors) as caught:
        read(path, rows, rubric, name, **options)
    return [str(error).removeprefix(f"{path}/") for error in caught.value.errors]


# What the file says.


def test_a_label_of_one_annotator(tmp_path: Path) -> None:
    labels = read(tmp_path, [row(label="pass"), row("r2", "fail")])
    assert [item.labels for item in labels.items] == [{"annotator": (1.0,)}, {"annotator": (0.0,)}]
    assert [item.line for item in labels.items] == [1, 2]
    assert labels.y_true == (1.0, 0.0)
    assert labels.annotator_kind == "unknown"
    assert not labels.synthetic
    assert labels.selection == "curated"
    assert labels.gold == "majority"


def test_the_first_line_holds_for_all(tmp_path: Path) -> None:
    head = {
        "label_file": 1,
        "rubric": "faithfulness",
        "annotators": "human",
        "synthetic": True,
        "selection": "probability",
        "gold": "any_fail",
        "judge": "in-house",
        "description": "Autumn round.",
    }
    labels = read(tmp_path, [head, row()])
    assert (labels.rubric, labels.annotator_kind, labels.synthetic) == ("faithfulness", "human", True)
    assert (labels.selection, labels.gold, labels.judge) == ("probability", "any_fail", "in-house")
    assert labels.description == "Autumn round."


def test_arguments_stand_in_for_the_first_line(tmp_path: Path) -> None:
    head = {"label_file": 1, "annotators": "author", "gold": "mean"}
    labels = read(tmp_path, [head, row()], gold="majority", annotators="model")
    assert (labels.gold, labels.annotator_kind) == ("majority", "model")


def test_a_record_in_the_row_is_read_in_full(tmp_path: Path) -> None:
    inner = {"record_id": "r1", "input": "q", "output": "a", "contexts": ["c"], "timestamp": "2026-01-01T00:00:00Z"}
    (item,) = read(tmp_path, [{"record": inner, "label": "pass"}]).items
    assert item.record is not None
    assert (item.item_id, item.record.input, item.record.contexts[0].text) == ("r1", "q", "c")


def test_the_record_may_stand_flat_in_the_row(tmp_path: Path) -> None:
    (item,) = read(tmp_path, [{"input": "q", "output": "a", "contexts": ["c"], "label": "pass"}]).items
    assert item.record is not None
    assert item.record.output == "a"


def test_a_record_without_id_gets_the_same_one_whatever_its_labels(tmp_path: Path) -> None:
    inner = {"input": "q", "output": "a"}
    (first,) = read(tmp_path, [{"record": inner, "label": "pass"}]).items
    (second,) = read(tmp_path, [{"record": dict(reversed(inner.items())), "label": "fail", "note": "n"}]).items
    (other,) = read(tmp_path, [{"record": {**inner, "output": "b"}, "label": "pass"}]).items
    assert first.item_id == second.item_id != other.item_id
    assert first.record == second.record


def test_a_record_without_time_takes_that_of_the_label(tmp_path: Path) -> None:
    rows = [
        {"input": "q", "label": "pass", "labelled_at": "2026-05-01T10:00:00+02:00"},
        {"input": "r", "label": "pass"},
    ]
    first, second = read(tmp_path, rows).items
    assert first.record is not None
    assert first.record.timestamp == datetime(2026, 5, 1, 8, tzinfo=UTC) == first.labelled_at
    assert second.record is not None
    assert second.record.timestamp.year == 2000


@pytest.mark.parametrize(
    ("rubric", "value", "grades", "passes"),
    [
        (FAITHFULNESS, "pass", (1.0,), 1.0),
        (FAITHFULNESS, " FAIL ", (0.0,), 0.0),
        (FAITHFULNESS, True, (1.0,), 1.0),
        (FAITHFULNESS, "false", (0.0,), 0.0),
        (FAITHFULNESS, 0.9, (0.9,), 1.0),
        (FAITHFULNESS, "0.89", (0.89,), 0.0),
        (FAITHFULNESS, ["pass", "fail"], (0.0, 1.0), 0.5),
        (FAITHFULNESS, "fail|pass|pass", (0.0, 1.0), 0.5),
        (RELEVANCE, 1, (0.0,), 0.0),
        (RELEVANCE, 4, (0.75,), 1.0),
        (RELEVANCE, 5.0, (1.0,), 1.0),
        (RELEVANCE, "3", (0.5,), 0.0),
        (RELEVANCE, [3, 4, 5], (0.5, 0.75, 1.0), 2 / 3),
        (RELEVANCE, "pass", (1.0,), 1.0),
        (TONE, "polite", (1.0,), 1.0),
        (TONE, "RUDE", (0.0,), 0.0),
        (TONE, 1, (1.0,), 1.0),
    ],
)
def test_values_mean_grades_on_the_rubrics_scale(
    tmp_path: Path, rubric: Rubric, value: object, grades: tuple[float, ...], passes: float
) -> None:
    (item,) = read(tmp_path, [row(label=value)], rubric).items
    assert item.labels["annotator"] == grades
    assert item.passes["annotator"] == pytest.approx(passes)


def test_unit_grades_stand_for_themselves_on_any_scale(tmp_path: Path) -> None:
    (item,) = read(tmp_path, [{"label_file": 1, "grades": "unit"}, row(label=0.8)], RELEVANCE).items
    assert item.labels["annotator"] == (0.8,)


def test_people_may_pass_from_elsewhere_than_the_judge(tmp_path: Path) -> None:
    rows = [row("a", 3, judge_score=3), row("b", 2, judge_score=4)]
    labels = read(tmp_path, [{"label_file": 1, "passes_from": 0.5}, *rows], RELEVANCE)
    assert labels.y_true == (1.0, 0.0)
    assert [item.judged.passed for item in labels.items if isinstance(item.judged, Score)] == [False, True]
    assert labels.columns().annotation_threshold == 0.5
    assert read(tmp_path, rows, RELEVANCE, passes_from=0.25).y_true == (1.0, 1.0)
    assert read(tmp_path, rows, RELEVANCE).y_true == (0.0, 0.0)


def test_the_words_of_others_are_told(tmp_path: Path) -> None:
    values = {"Hallucinated": "fail", "faithful": "pass", "so-so": "0.5", "3": "fail"}
    rows = [row("a", "hallucinated"), row("b", "faithful"), row("c", "So-So"), row("d", 3)]
    labels = read(tmp_path, rows, values=values)
    assert [item.labels["annotator"] for item in labels.items] == [(0.0,), (1.0,), (0.5,), (0.0,)]


def test_labels_by_annotator_in_each_of_the_forms(tmp_path: Path) -> None:
    inside = read(tmp_path, [{"record_id": "r1", "labels": {"anna": "pass", "ben": "fail", "cleo": None}}])
    beside = read(tmp_path, [{"record_id": "r1", "label.anna": "pass", "label.ben": "fail", "label.cleo": ""}])
    below = read(tmp_path, [row(annotator="anna"), row(label="fail", annotator="ben")])
    assert inside.items[0].labels == beside.items[0].labels == below.items[0].labels
    assert inside.annotators == ("anna", "ben")
    assert inside.sha256 == beside.sha256 == below.sha256


def test_notes_of_several_annotators_are_kept(tmp_path: Path) -> None:
    (item,) = read(tmp_path, [row(annotator="anna", note="one"), row(annotator="ben", note="two")]).items
    assert item.note == "one\ntwo"


def test_csv(tmp_path: Path) -> None:
    text = [
        "record_id,input,output,contexts,label.anna,label.ben,probability,note",
        'r1,"What, now?",It is.,"[""one"", ""two""]",pass,,0.5,"why\nso"',
        "r2,q,a,just one,fail,pass|fail,0.25,",
    ]
    labels = read(tmp_path, text, name="labels.csv")
    first, second = labels.items
    assert first.record is not None
    assert [context.text for context in first.record.contexts] == ["one", "two"]
    assert first.labels == {"anna": (1.0,)}
    assert first.note == "why\nso"
    assert second.labels == {"anna": (0.0,), "ben": (0.0, 1.0)}
    assert second.line == 4
    assert labels.selection == "probability"
    assert [item.probability for item in labels.items] == [0.5, 0.25]


def test_columns_of_others_are_mapped_and_the_rest_left_out(tmp_path: Path) -> None:
    text = ["id,question,answer,verdict,rater,team", "r1,q,a,good,anna,red", "r1,q,a,bad,ben,red"]
    columns = {"id": "record_id", "question": "input", "answer": "output", "verdict": "label", "rater": "annotator"}
    values = {"good": "pass", "bad": "fail"}
    (item,) = read(tmp_path, text, name="t.csv", columns=columns, values=values).items
    assert item.labels == {"anna": (1.0,), "ben": (0.0,)}
    assert item.record is not None
    assert item.record.input == "q"


def test_columns_are_mapped_in_json_lines_too(tmp_path: Path) -> None:
    rows = [{"id": "r1", "human_label": 0.5, "meta": {"a": 1}}]
    (item,) = read(tmp_path, rows, columns={"id": "record_id", "human_label": "label"}).items
    assert (item.item_id, item.labels) == ("r1", {"annotator": (0.5,)})


def test_a_weight_is_one_over_the_probability(tmp_path: Path) -> None:
    labels = read(tmp_path, [row(weight=4), row("r2", weight="1")])
    assert [item.probability for item in labels.items] == [0.25, 1.0]
    assert labels.columns().sample_weight.tolist() == [4.0, 1.0]


def test_scores_of_a_judge_beside_the_labels(tmp_path: Path) -> None:
    rows = [
        row("a", 5, judge_score=4, judge_explanation="close"),
        row("b", 5, judge_score=4, judge_pass=False),
        row("c", 5, judge_pass="fail"),
        row("d", 5, judge_failure="timeout", judge_explanation="60 s"),
        row("e", 5),
    ]
    a, b, c, d, e = [item.judged for item in read(tmp_path, rows, RELEVANCE).items]
    assert a == Score(value=0.75, passed=True, explanation="close")
    assert b == Score(value=0.75, passed=False)
    assert c == Score(value=0.0, passed=False)
    assert d == Failure(kind="timeout", message="60 s")
    assert e is None


def test_the_versions_of_the_rubric_that_labels_hold_for(tmp_path: Path) -> None:
    newer = replace(FAITHFULNESS, version="2")
    for stated in ("2", ["1", "2"]):
        assert read(tmp_path, [{"label_file": 1, "rubric_version": stated}, row()], newer).items
    assert read(tmp_path, [{"label_file": 1}, row()], newer).items


# What a set comes to.


def many(labels: Sequence[dict[str, tuple[float, ...]]], gold: str = "majority", threshold: float = 0.9) -> LabelSet:
    def passes(grades: tuple[float, ...]) -> float:
        return sum(grade >= threshold for grade in grades) / len(grades)

    return LabelSet(
        path=Path("none"),
        rubric="faithfulness",
        pass_threshold=threshold,
        levels=None,
        items=tuple(
            Labelled(item_id=f"r{at}", labels=given, passes={name: passes(grades) for name, grades in given.items()})
            for at, given in enumerate(labels)
        ),
        selection="curated",
        annotator_kind="human",
        synthetic=False,
        gold=gold,
    )


@given(
    table=st.lists(
        st.lists(st.sampled_from([None, 0.0, 0.5, 0.9, 1.0]), min_size=3, max_size=3).filter(any),
        min_size=1,
        max_size=8,
    ),
    gold=st.sampled_from(GOLDS),
)
def test_gold_is_that_of_the_statistics_where_each_gives_one_grade(table: list[list[float | None]], gold: Any) -> None:
    given = [{name: (grade,) for name, grade in zip("abc", line, strict=True) if grade is not None} for line in table]
    labels = many([line for line in given if line], gold)
    sides = np.array([[item.passes.get(name, math.nan) for item in labels.items] for name in "abc"])
    assert labels.y_true == pytest.approx(gold_labels(sides, gold=gold).tolist())
    columns = labels.columns()
    rows = [columns.annotations[columns_row] for columns_row in range(len(labels.annotators))]
    for name, values in zip(labels.annotators, rows, strict=True):
        said = [item.labels.get(name, (math.nan,))[0] for item in labels.items]
        np.testing.assert_array_equal(values, said)


def test_sets_of_acceptable_grades_count_on_the_side_where_most_are() -> None:
    labels = many([{"a": (0.0, 1.0)}, {"a": (0.5, 0.9, 1.0)}, {"a": (0.2, 0.4)}, {"a": (0.0, 1.0), "b": (1.0,)}])
    assert labels.y_true == pytest.approx((0.5, 1.0, 0.0, 1.0))
    annotations = labels.columns().annotations
    np.testing.assert_allclose(annotations[0], [math.nan, 0.95, 0.3, math.nan])
    np.testing.assert_array_equal(annotations[1], [math.nan, math.nan, math.nan, 1.0])


@pytest.mark.parametrize(
    ("gold", "truth"), [("majority", 1.0), ("mean", 2 / 3), ("any_fail", 0.0), ("expert:b", 0.0), ("expert:a", 1.0)]
)
def test_each_gold_makes_one_label_of_many(gold: str, truth: float) -> None:
    labels = many([{"a": (1.0,), "b": (0.2,), "c": (1.0,)}], gold)
    assert labels.y_true == pytest.approx((truth,))
    grade = {"expert:b": 0.2, "expert:a": 1.0}.get(gold, 2.2 / 3)
    assert labels.columns().y_grade.tolist() == pytest.approx([grade])


def test_any_fail_leaves_open_what_someone_finds_both_ways() -> None:
    assert many([{"a": (1.0,), "b": (0.0, 1.0)}], "any_fail").y_true == (0.5,)


def test_columns_have_one_row_for_each_item(tmp_path: Path) -> None:
    rows = [
        {"record": {"input": "q", "output": "four", "session_id": "s"}, "label": "pass", "stratum": "x"},
        {"record": {"input": "r", "output": ""}, "label": "fail", "stratum": "y", "cluster": "text 1"},
        {"record": {"input": "s", "output": "x"}, "label": "fail", "stratum": "y"},
    ]
    labels = read(tmp_path, rows)
    columns = labels.columns()
    assert columns.item_ids == tuple(item.item_id for item in labels.items)
    assert columns.y_true.tolist() == [1.0, 0.0, 0.0]
    assert columns.annotations.shape == (1, 3)
    assert columns.annotation_threshold == FAITHFULNESS.pass_threshold
    assert columns.strata == ("x", "y", "y")
    assert columns.clusters[:2] == ("session s", "cluster text 1")
    assert len(set(columns.clusters)) == 3
    assert columns.lengths is not None
    assert columns.lengths.tolist() == [4.0, 1.0, 1.0]


def test_lengths_are_none_without_the_texts(tmp_path: Path) -> None:
    columns = read(tmp_path, [row(), {"input": "q", "output": "a", "label": "pass"}]).columns()
    assert columns.lengths is None
    assert columns.strata is None


def test_levels_are_those_of_an_ordinal_scale(tmp_path: Path) -> None:
    assert read(tmp_path, [row(label=3)], RELEVANCE).levels == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert read(tmp_path, [row()], SAFETY).levels is None


def test_when_labels_were_given(tmp_path: Path) -> None:
    rows = [
        row("a", labelled_at="2026-02-01T00:00:00Z"),
        row("b", labelled_at="2026-01-01T00:00:00Z"),
        row("c"),
    ]
    labels = read(tmp_path, rows)
    assert labels.labelled_from == datetime(2026, 1, 1, tzinfo=UTC)
    assert labels.labelled_to == datetime(2026, 2, 1, tzinfo=UTC)
    assert read(tmp_path, [row()]).labelled_from is None


# What labels cannot tell.


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row("a", 4), row("b", 4)], "every label is the same"),
        ([row("a", 4), row("b", 5)], "every label says pass: without fails nobody can say how well a judge finds them"),
        ([row("a", 1), row("b", 2)], "every label says fail: without passes"),
        ([row("a", 4), row("b", [1, 5])], "1 of 2 labels are as much pass as fail"),
        ([row("a", 4), row("b", 1)], "one annotator to a record: how far people agree among themselves is not known"),
        ([row("a", 4), row("b", 1)], "the file does not say who gave the labels"),
        ([{"label_file": 1, "annotators": "author"}, row("a", 4)], "the labels are by the authors of the records"),
        ([{"label_file": 1, "annotators": "model"}, row("a", 4)], "the labels are a model's, not people's"),
        ([{"label_file": 1, "synthetic": True}, row("a", 4)], "the records are synthetic"),
    ],
)
def test_cautions(tmp_path: Path, rows: Sequence[object], sentence: str) -> None:
    assert any(caution.startswith(sentence) for caution in read(tmp_path, rows, RELEVANCE).cautions)


def test_good_labels_need_no_caution(tmp_path: Path) -> None:
    head = {"label_file": 1, "annotators": "human"}
    rows = [head, {"record_id": "a", "labels": {"x": 4, "y": 5}}, row("b", 1)]
    assert read(tmp_path, rows, RELEVANCE).cautions == ()


# Mistakes.


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "labels.jsonl: holds no labels: write a row for each record"),
        ([{"label_file": 1}], "labels.jsonl: holds no labels"),
        (["{"], "labels.jsonl:1: not JSON"),
        (["[1]"], "labels.jsonl:1: a JSON object is wanted, not list"),
        ([row(), row(label="fail")], 'labels.jsonl:2: record_id: "r1" stands on line 1 already: keep one of the two'),
        (
            [row(annotator="anna"), row(label="fail", annotator="anna")],
            'labels.jsonl:2: annotator: "anna" has a label of this record on line 1 already: keep one of the two',
        ),
        ([row(probability=0)], "labels.jsonl:1: probability: 0 is no probability of a label: give the probability"),
        ([row(probability=1.5)], "labels.jsonl:1: probability: 1.5 is no probability"),
        ([row(probability=-0.1)], "labels.jsonl:1: probability: -0.1 is no probability"),
        ([row(probability=True)], "labels.jsonl:1: probability: true is no probability"),
        ([row(probability="often")], 'labels.jsonl:1: probability: "often" is no probability'),
        (['{"record_id": "a", "label": "pass", "probability": NaN}'], "labels.jsonl:1: probability: nan is no probab"),
        (
            [row(weight=0)],
            "labels.jsonl:1: weight: 0 is no weight of a label: a weight is 1 / probability, so at least",
        ),
        ([row(weight=0.5)], "labels.jsonl:1: weight: 0.5 is no weight"),
        ([row(weight=1e999)], "labels.jsonl:1: weight: inf is no weight"),
        ([row(weight=2, probability=0.5)], "labels.jsonl:1: weight: stands beside probability, which it is 1 over"),
        ([row(probability=0.5), row("r2")], "labels.jsonl:2: probability: is missing, and other rows have one: labels"),
        ([row(stratum="a"), row("r2")], "labels.jsonl:2: stratum: is missing, and other rows have one: estimates"),
        (
            [row(label="good")],
            'labels.jsonl:1: label: "good" is not on the scale of faithfulness: give pass, fail or a g',
        ),
        (
            [row(label=7)],
            "labels.jsonl:1: label: 7 is not on the scale of faithfulness: give pass, fail or a grade from",
        ),
        ([row(label={})], "labels.jsonl:1: label: an object is not on the scale"),
        ([row(label=[])], "labels.jsonl:1: label: no grade is acceptable"),
        ([row(label=["pass", "x"])], 'labels.jsonl:1: label: "x" is not on the scale'),
        (['{"record_id": "a", "label": NaN}'], "labels.jsonl:1: label: nan is not a number: leave the label out"),
        (['{"record_id": "a", "label": -Infinity}'], "labels.jsonl:1: label: -inf is not a number"),
        ([row(label="nan")], 'labels.jsonl:1: label: "nan" is not a number'),
        ([row(label=None)], "labels.jsonl:1: labels: nobody labelled this record: give a label, or remove the row"),
        ([{"record_id": "a"}], "labels.jsonl:1: labels: nobody labelled this record"),
        ([{"record_id": "a", "labels": {}}], "labels.jsonl:1: labels: nobody labelled this record"),
        ([{"record_id": "a", "labels": "pass"}], 'labels.jsonl:1: labels: "pass" is no JSON object of annotators and'),
        ([{"record_id": "a", "labels": {"": 1}}], "labels.jsonl:1: labels.: the name of an annotator has 1 to 200"),
        ([row(annotator=3)], "labels.jsonl:1: annotator: 3 is not text"),
        ([{"record_id": "a", "annotator": "b"}], "labels.jsonl:1: labels: nobody labelled this record"),
        (
            [{"record_id": "a", "labels": {"anna": 1}, "label.anna": 1}],
            'labels.jsonl:1: label.anna: is a second label of "anna"',
        ),
        ([{"label": "pass"}], "labels.jsonl:1: record: is missing: say which record the label is of, by `record` or"),
        ([row(3)], "labels.jsonl:1: record_id: 3 is not text"),
        ([row(" ")], 'labels.jsonl:1: record_id: " " is not text'),
        ([{"record": 3, "label": 1}], "labels.jsonl:1: record: 3 is no JSON object: write the record, or its id"),
        ([{"record": {"inputt": "q"}, "label": 1}], "labels.jsonl:1: record.inputt:"),
        ([{"record": {"input": 3}, "label": 1}], "labels.jsonl:1: record.input: must be text"),
        ([{"record": {"input": "q"}, "output": "a", "label": 1}], "labels.jsonl:1: output: stands beside `record`"),
        ([{"record": {"record_id": "a"}, "record_id": "b", "label": 1}], "labels.jsonl:1: record_id: is not the id of"),
        (
            [row(annotator="anna", input="q"), row(annotator="ben", input="p")],
            "labels.jsonl:2: record: is not the record that has this id on line 1: give it an id of its own",
        ),
        (
            [row(annotator="anna", cluster="x"), row(annotator="ben", cluster="y")],
            "labels.jsonl:2: cluster: is not what line 1 says of this record",
        ),
        ([row(labelled_at="soon")], 'labels.jsonl:1: labelled_at: "soon" is not a time like 2026-01-31T12:00:00Z'),
        ([row(labelled_at="2026-01-01T00:00:00")], "labels.jsonl:1: labelled_at: "),
        ([row(note=3)], "labels.jsonl:1: note: 3 is not text"),
        ([row(cluster="x" * 201)], "labels.jsonl:1: cluster: has 201 characters, more than 200"),
        ([row(lable="pass")], "labels.jsonl:1: lable: is no field of a label file: did you mean label?"),
        ([row(judge_score=3)], "labels.jsonl:1: judge_score: 3 is not on the scale"),
        ([row(judge_pass="half")], 'labels.jsonl:1: judge_pass: "half" is not on the scale'),
        ([row(judge_pass=0.5)], "labels.jsonl:1: judge_pass: 0.5 is neither pass nor fail"),
        ([row(judge_failure="late")], 'labels.jsonl:1: judge_failure: "late" is none of rate_limited, timeout'),
        ([row(judge_failure="timeout", judge_score=1)], "labels.jsonl:1: judge_failure: stands beside a score"),
        (
            [row(rubric="safety")],
            'labels.jsonl:1: rubric: the labels are by the rubric "safety", not by faithfulness: name that rubric, or',
        ),
        (
            [{"label_file": 1, "rubric": "safety"}, row()],
            'labels.jsonl:1: rubric: the labels are by the rubric "safety"',
        ),
        (
            [{"label_file": 1, "rubric_version": "0"}, row()],
            'labels.jsonl:1: rubric_version: the labels are by version "0" of faithfulness, which is at "2" now: label',
        ),
        (
            [{"label_file": 1, "rubric_version": 1}, row()],
            "labels.jsonl:1: rubric_version: 1 is not a version in quotes",
        ),
        (
            [{"label_file": 2}, row()],
            "labels.jsonl:1: label_file: version 2 is not known (this assay knows 1): upgrade",
        ),
        ([row(), {"label_file": 1}], "labels.jsonl:2: label_file: stands after labels: write it once"),
        (
            [{"label_file": 1, "rubrik": "x"}, row()],
            "labels.jsonl:1: rubrik: is no field of the first line: did you mean",
        ),
        ([{"label_file": 1, "annotators": "me"}, row()], 'labels.jsonl:1: annotators: "me" is none of human, author'),
        ([{"label_file": 1, "selection": []}, row()], "labels.jsonl:1: selection: a list is none of probability, cur"),
        ([{"label_file": 1, "synthetic": "no"}, row()], 'labels.jsonl:1: synthetic: "no" is neither true nor false'),
        ([{"label_file": 1, "gold": "best"}, row()], 'labels.jsonl: gold: "best" is none of majority, mean, any_fail'),
        ([{"label_file": 1, "passes_from": 0}, row()], "labels.jsonl: passes_from: 0 is not above 0 and at most 1"),
        ([{"label_file": 1, "passes_from": "a"}, row()], 'labels.jsonl: passes_from: "a" is not above 0 and at most 1'),
        ([{"label_file": 1, "gold": 1}, row()], "labels.jsonl:1: gold: 1 is not text"),
        ([{"label_file": 1, "gold": "expert:anna"}, row()], 'labels.jsonl: gold: "anna" labelled 0 of 1 records: take'),
    ],
)
def test_a_sentence_for_each_mistake(tmp_path: Path, rows: Sequence[object], told: str) -> None:
    found = mistakes(tmp_path, rows)
    assert len(found) == 1, found
    assert found[0].startswith(told)


def test_an_ordinal_scale_names_its_levels(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, [row(label=0.5)], RELEVANCE)
    assert found.endswith("give pass, fail or a level (1, 2, 3, 4, 5)")


def test_a_binary_scale_names_its_own_words(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, [row(label="kind")], TONE)
    assert "polite, rude" in found


def test_every_mistake_of_the_file_is_told_in_order(tmp_path: Path) -> None:
    rows = [row("a", 9), row("b", "good", probability=0), "{", row("c")]
    found = mistakes(tmp_path, rows)
    assert [told.split(": ")[0] for told in found] == ["labels.jsonl:1", *["labels.jsonl:2"] * 2, "labels.jsonl:3"]


def test_a_column_that_is_no_field_is_told_once(tmp_path: Path) -> None:
    found = mistakes(tmp_path, ["record_id,label,team", "a,pass,red", "b,fail,blue"], name="t.csv")
    assert found == ["t.csv:2: team: is no field of a label file"]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"verdict": "lable"}, 't.csv: columns.verdict: "lable" is no field of a label file: did you mean label?'),
        ({"verdict": "label", "grade": "note"}, "t.csv: columns.grade: no row has this column: check its name"),
        ({"verdict": "label", "id": "label"}, "t.csv:2: verdict: is a second label: map another of the two columns"),
    ],
)
def test_a_column_map_is_checked(tmp_path: Path, columns: dict[str, str], told: str) -> None:
    found = mistakes(tmp_path, ["id,record_id,verdict", "x,a,pass"], name="t.csv", columns=columns)
    assert any(line.startswith(told) for line in found), found


def test_words_for_values_are_checked(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, [row()], values={"ok": "splendid"})
    assert found.startswith('labels.jsonl: values.ok: "splendid" is not on the scale')


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LabelErrors, match="does not exist: check the path"):
        read_labels(tmp_path / "none.jsonl", FAITHFULNESS)
    with pytest.raises(LabelErrors, match="directory"):
        read_labels(tmp_path, FAITHFULNESS)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    for name in ("labels.jsonl", "labels.csv"):
        (tmp_path / name).write_bytes(b'record_id,label\n{"record_id": "\xff", "label": "pass"}\n')
        with pytest.raises(LabelErrors, match=r"labels\.\w+:2: not UTF-8"):
            read_labels(tmp_path / name, FAITHFULNESS)


def test_rows_that_nobody_has_labelled_yet_may_be_left_out(tmp_path: Path) -> None:
    rows = [{"record_id": "a", "labels": {}}, row("b"), {"record_id": "c", "annotator": "anna"}, row("d", "good")]
    labels = read(tmp_path, rows[:3], skip_unlabelled=True)
    assert [item.item_id for item in labels.items] == ["b"]
    (found,) = mistakes(tmp_path, rows, skip_unlabelled=True)
    assert found.startswith('labels.jsonl:4: label: "good"')
    (found,) = mistakes(tmp_path, rows[:1], skip_unlabelled=True)
    assert found == "labels.jsonl: holds no labels: nobody has labelled a row yet"


def test_many_mistakes_are_shown_up_to_a_hundred() -> None:
    errors = [LabelError(f"wrong {at}", path="f", line=at) for at in range(1, 1151)]
    told = str(LabelErrors(errors)).splitlines()
    assert len(told) == 101
    assert told[0] == "f:1: wrong 1"
    assert told[-1] == "and 1,050 more like these"
    assert isinstance(LabelErrors(errors), ConfigError)


# Records of labels.


def a_record(record_id: str, **fields: Any) -> Record:
    return Record(record_id=record_id, timestamp=datetime(2026, 1, 1, tzinfo=UTC), input="q", output="a", **fields)


def test_records_are_found_by_any_of_their_names(tmp_path: Path) -> None:
    labels = read(tmp_path, [row("r1"), row("span-2"), row("trace-3"), row("run-4")])
    records = [
        a_record("r1"),
        a_record("r2", span_id="span-2", trace_id="t"),
        a_record("r3", trace_id="trace-3"),
        a_record("r4", sink_refs={"langsmith_run_id": "run-4"}),
        a_record("r5", trace_id="t"),
    ]
    assert labels.without_record == ("r1", "span-2", "trace-3", "run-4")
    joined = labels.with_records(records)
    assert [item.item_id for item in joined.items] == ["r1", "r2", "r3", "r4"]
    assert [item.record for item in joined.items] == records[:4]
    assert joined.without_record == ()


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (["r1", "r9"], 'labels.jsonl:2: record_id: record "r9" is not known: its text was purged, or the id is'),
        (["t"], 'labels.jsonl:1: record_id: "t" is the trace of 2 records: label spans or record ids'),
        (["s1", "r1"], 'labels.jsonl:2: record_id: "r1" is a record that has labels already: merge the two'),
    ],
)
def test_labels_of_records_that_cannot_be_told(tmp_path: Path, ids: list[str], told: str) -> None:
    labels = read(tmp_path, [row(name) for name in ids])
    records = [a_record("r1", trace_id="t", span_id="s1"), a_record("r2", trace_id="t")]
    with pytest.raises(LabelErrors) as caught:
        labels.with_records(records)
    assert len(caught.value.errors) == 1
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(told)


def test_what_a_judge_has_scored_needs_no_record(tmp_path: Path) -> None:
    labels = read(tmp_path, [row("elsewhere", judge_score=1)])
    assert labels.without_record == ()
    assert labels.with_records([]).items == labels.items


# Writing.

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_NAME = st.text("abcxyz", min_size=1, max_size=5)
_GRADES = st.lists(st.floats(0, 1), min_size=1, max_size=3).map(lambda grades: tuple(sorted(set(grades))))


@st.composite
def label_sets(draw: st.DrawFn) -> LabelSet:
    records = draw(st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=4))
    strata = draw(st.booleans())
    labels = many([draw(st.dictionaries(_NAME, _GRADES, min_size=1, max_size=3)) for _ in records])
    judged = st.one_of(
        st.none(),
        st.builds(Score, value=st.floats(0, 1), passed=st.booleans(), explanation=_TEXT),
        st.builds(Failure, kind=st.sampled_from(["timeout", "refused"]), message=_TEXT),
    )
    items = tuple(
        replace(
            item,
            record=a_record(item.item_id, reference=text, metadata={"m": other}) if draw(st.booleans()) else None,
            probability=draw(st.floats(1e-6, 1 - 1e-6)),
            stratum=draw(_NAME) if strata else "",
            cluster=draw(_TEXT.filter(lambda text: not text or text.strip())),
            note=draw(_TEXT),
            labelled_at=draw(
                st.none() | st.integers(1_000_000_000, 4_000_000_000).map(lambda at: datetime.fromtimestamp(at, UTC))
            ),
            judged=draw(judged),
        )
        for item, (text, other) in zip(labels.items, records, strict=True)
    )
    return replace(
        labels,
        items=items,
        selection="probability",
        judge=draw(_TEXT),
        description=draw(_TEXT),
        passes_from=draw(st.sampled_from([None, 0.9])),
    )


@given(labels=label_sets())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read_again(tmp_path: Path, labels: LabelSet) -> None:
    file = tmp_path / "written.jsonl"
    write_labels(file, labels)
    again = read_labels(file, FAITHFULNESS)
    assert replace(again, path=labels.path, items=tuple(replace(item, line=0) for item in again.items)) == labels
    assert again.sha256 == labels.sha256
    assert list(tmp_path.glob(".*")) == []


def test_a_file_that_cannot_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "written.jsonl"
    labels = many([{"a": (1.0,)}])
    write_labels(file, labels)
    before = file.read_bytes()
    broken = replace(labels, items=(replace(labels.items[0], labels={"a": (math.nan,)}),))
    with pytest.raises(ValueError, match="JSON"):
        write_labels(file, broken)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["written.jsonl"]


def test_the_digest_is_of_labels_and_records_alone(tmp_path: Path) -> None:
    labels = read(tmp_path, [{"input": "q", "output": "a", "label": "pass"}])
    same = replace(labels, gold="mean", judge="x", description="y", path=Path("z"))
    judged = replace(labels, items=(replace(labels.items[0], judged=Score(value=1.0, passed=True), line=9),))
    other = replace(labels, items=(replace(labels.items[0], labels={"annotator": (0.0,)}),))
    assert labels.sha256 == same.sha256 == judged.sha256 != other.sha256
    assert labels.sha256 != replace(labels, annotator_kind="human").sha256


# Whatever comes.


def attempt(file: Path, **options: Any) -> LabelSet | LabelErrors:
    try:
        return read_labels(file, RELEVANCE, **options)
    except LabelErrors as mistakes:
        return mistakes


@given(data=st.binary(max_size=300), form=st.sampled_from(["f.jsonl", "f.csv"]), mapped=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_bytes_crash_the_reader(tmp_path: Path, data: bytes, form: str, mapped: bool) -> None:
    (tmp_path / form).write_bytes(data)
    found = attempt(tmp_path / form, columns={"a": "label"} if mapped else None)
    assert found.items if isinstance(found, LabelSet) else found.errors and str(found)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_FIELD = st.sampled_from(
    (*ROW_FIELDS, "record_id", "label.a", "input", "contexts", "metadata", "timestamp", "label_file", "gold", "grades")
)


@given(rows=st.lists(st.dictionaries(_FIELD, _JSON, max_size=5), max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_values_crash_the_reader(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in rows), encoding="utf-8")
    found = attempt(file)
    if isinstance(found, LabelErrors):
        assert found.errors
        assert all("\n" not in str(error) for error in found.errors)
        return
    columns = found.columns()
    assert len(columns.y_true) == len(found.items)
    assert ((columns.y_true >= 0) & (columns.y_true <= 1)).all()
    assert all(found.cautions)


@pytest.mark.parametrize("depth", [50, 900, 200_000])
def test_deep_nesting_is_read_or_told(tmp_path: Path, depth: int) -> None:
    file = tmp_path / "deep.jsonl"
    inner = '{"a":' * depth + "1" + "}" * depth
    file.write_text(f'{{"record": {{"input": "q", "metadata": {inner}}}, "label": 3}}\n')
    found = attempt(file)
    assert depth > 50 or isinstance(found, LabelSet)
    assert isinstance(found, LabelSet) or found.errors[0].line == 1


def test_a_reader_without_lines_names_the_place() -> None:
    reader = LabelReader(Path("export.json"), FAITHFULNESS)
    reader.add({"record_id": "a", "label": "x"}, at="[3].annotations[0].")
    with pytest.raises(LabelErrors, match=r'^export\.json: \[3\]\.annotations\[0\]\.label: "x" is not on the scale'):
        reader.finish()


# What the reference says.

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "label-files.md"


def test_the_example_of_the_reference_is_a_label_file(tmp_path: Path) -> None:
    example = REFERENCE.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0]
    labels = read(tmp_path, example.splitlines(), RELEVANCE)
    assert labels.annotator_kind == "human"
    assert labels.y_true == (1.0, 0.0)


def test_the_reference_names_every_field() -> None:
    told = REFERENCE.read_text(encoding="utf-8")
    assert [name for name in (*ROW_FIELDS, *_HEADER, "label_file") if f"`{name}`" not in told] == []


@pytest.mark.parametrize(
    "sentence",
    [
        "stands on line 3 already: keep one of the two",
        "is no probability of a label",
        "is missing, and other rows have one",
        "is not on the scale of relevance",
        "is not a number",
        "the labels are by the rubric",
        "is not known",
    ],
)
def test_the_reference_quotes_sentences_that_are_said(sentence: str) -> None:
    source = Path(__file__).parents[2] / "src" / "assay"
    code = (source / "labels.py").read_text() + (source / "_label_rows.py").read_text()
    spoken = sentence.replace("line 3", "{where}").replace("relevance", "{self._rubric.name}")
    assert sentence in REFERENCE.read_text(encoding="utf-8")
    assert spoken in code
