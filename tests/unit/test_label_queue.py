"""Records picked for people, handed out, taken back, and calibrations audited by them; on a real SQLite store."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.calibrate import calibrate
from assay.errors import ConfigError, LabelErrors
from assay.label_imports import read_label_studio
from assay.label_queue import (
    SHEET_COLUMNS,
    Picked,
    audit_calibrations,
    export_labels,
    mark_received,
    merge_labels,
    pick_labels,
    receive_labels,
)
from assay.labels import Labelled, LabelSet, read_labels, write_labels
from assay.records import Context, Evaluation, Record, Sampling, Score
from assay.rubrics import load_rubrics
from assay.store import LabelRequest, Store

RUBRIC = {rubric.name: rubric for rubric in load_rubrics()}["relevance"]
FINGERPRINT = "f" * 64
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path}/assay.db") as made:
        made.upgrade()
        yield made


def a_record(number: int, *, at: datetime = NOON, probability: float = 0.5, **fields: Any) -> Record:
    known = {"input": f"question {number}", "output": f"answer {number}", "contexts": (Context(text="one"),)}
    return Record(
        record_id=f"r{number:04d}",
        timestamp=at + timedelta(seconds=number % 3600),
        sampling=Sampling(probability=probability),
        **known | fields,
    )


def score(
    store: Store,
    records: Sequence[Record],
    values: Sequence[float],
    *,
    fingerprint: str = FINGERPRINT,
    probability: float = 1.0,
) -> None:
    """Commit the records with the judge's scores."""
    store.commit(
        [(record, record.to_json()) for record in records],
        [
            Evaluation(
                record_id=record.record_id,
                rubric=RUBRIC.name,
                rubric_version=RUBRIC.revision,
                rubric_hash=RUBRIC.hash,
                judge="scripted",
                judge_fingerprint=fingerprint,
                outcome=Score(value=value, passed=value >= RUBRIC.pass_threshold, explanation="the judge says"),
                probability=probability,
            )
            for record, value in zip(records, values, strict=True)
        ],
    )


def many(count: int, *, first: int = 0, **fields: Any) -> list[Record]:
    return [a_record(number, **fields) for number in range(first, first + count)]


def picked(store: Store, budget: float = 1000, **options: Any) -> Picked:
    window = {"start": NOON - DAY, "end": NOON + DAY} | options
    return pick_labels(store, RUBRIC.name, budget=budget, **window)


def labelled(records: Sequence[Record], grades: Sequence[float], **fields: Any) -> LabelSet:
    """What people said of the records, one annotator each."""
    common = {"labelled_at": NOON + 2 * DAY} | fields
    return LabelSet(
        path=Path("labels.jsonl"),
        rubric=RUBRIC.name,
        pass_threshold=RUBRIC.pass_threshold,
        levels=None,
        items=tuple(
            Labelled(
                item_id=record.record_id,
                record=record,
                labels={"anna": (grade,)},
                passes={"anna": float(grade >= RUBRIC.pass_threshold)},
                **common,
            )
            for record, grade in zip(records, grades, strict=True)
        ),
        selection="probability",
        annotator_kind="human",
        synthetic=False,
        gold="majority",
    )


# Picking.


def test_picks_are_kept_with_their_chance(store: Store) -> None:
    records = many(400)
    score(store, records, [0.5 if number % 4 == 0 else 1.0 for number in range(400)])
    found = picked(store, 100)
    assert found.candidates == 400
    assert 75 <= len(found.requests) <= 125
    kept = store.label_requests(RUBRIC.name)
    assert {(r.record_id, r.probability, r.twice) for r in kept} == {
        (r.record_id, r.probability, r.twice) for r in found.requests
    }
    assert all(0 < request.probability <= 1 for request in kept)
    assert found.judge_fails == sum(int(request.record_id[1:]) % 4 == 0 for request in found.requests)
    # Where the judge is unsure there are more.
    assert found.judge_fails > len(found.requests) / 2
    assert 0 < sum(request.twice for request in kept) < len(kept) / 3


def test_what_picks_stand_for_adds_up_to_all_records(store: Store) -> None:
    score(store, many(2000), [(number % 5) / 4 for number in range(2000)])
    found = picked(store, 400)
    assert sum(1 / request.probability for request in found.requests) == pytest.approx(2000, rel=0.15)


def test_labels_weigh_as_the_scores_do_where_a_budget_has_thinned(store: Store, tmp_path: Path) -> None:
    # All of the good records of the morning are judged, and one in ten of the bad ones near the budget's cap.
    morning, evening = many(90), many(100, first=90)
    score(store, morning, [1.0] * 90)
    score(store, evening, [0.0] * 100, probability=0.1)
    rollups = store.rollups(int((NOON - DAY).timestamp()), int((NOON + DAY).timestamp()))
    gauge = sum(row.sum_wp for row in rollups) / sum(row.sum_w for row in rollups)
    picked(store)
    export_labels(store, RUBRIC, tmp_path / "out.jsonl", "jsonl")
    exported = [json.loads(line).get("probability") for line in (tmp_path / "out.jsonl").read_text().splitlines()[1:]]
    assert exported == pytest.approx([0.5] * 90 + [0.05] * 100)
    columns = receive_labels(store, labelled([*morning, *evening], [1.0] * 90 + [0.0] * 100)).labels.columns()
    assert np.average(columns.y_true, weights=columns.sample_weight) == pytest.approx(gauge)
    assert columns.sample_weight.sum() == pytest.approx(2 * (90 + 1000))


def test_each_pick_goes_on_where_the_last_one_ended(store: Store) -> None:
    score(store, many(50), [0.5] * 50)
    first = picked(store, 10)
    assert not first.goes_on
    again = picked(store, 10)
    assert (again.candidates, again.requests, again.goes_on) == (0, (), True)
    later = datetime.now(UTC) + timedelta(hours=1)
    fresh = [replace(record, timestamp=later) for record in many(20, first=100)]
    score(store, fresh, [0.5] * 20)
    third = picked(store, start=NOON - DAY, end=later + DAY)
    assert third.goes_on
    assert {request.record_id for request in third.requests} == {record.record_id for record in fresh}
    assert len(store.label_requests(RUBRIC.name)) == len(first.requests) + 20


def test_another_rubric_picks_for_itself(store: Store) -> None:
    score(store, many(5), [0.5] * 5)
    picked(store)
    assert pick_labels(store, "safety", budget=5, start=NOON - DAY, end=NOON + DAY).candidates == 0


def test_doubt_is_told_by_the_calibrated_score(store: Store) -> None:
    # The judge says 0.75 of what people pass half of, and 0.5 of what they always pass.
    records = many(200)
    values = [0.75 if number % 2 else 0.5 for number in range(200)]
    grades = [float(number % 4 == 1) if number % 2 else 1.0 for number in range(200)]
    score(store, records, values)
    by_score = {r.record_id: r.probability for r in _picks_without_storing(store, records, values)}
    calibrated = calibrate(
        labelled(records, grades),
        RUBRIC,
        judge="scripted",
        judge_fingerprint=FINGERPRINT,
        outcomes={
            record.record_id: Score(value=value, passed=value >= 0.7)
            for record, value in zip(records, values, strict=True)
        },
    )
    assert calibrated.calibration.score_map is not None
    store.save_calibration(calibrated.calibration)
    chances = {r.record_id: r.probability for r in picked(store, 100).requests}
    unsure = [chance for record_id, chance in chances.items() if int(record_id[1:]) % 2]
    sure = [chance for record_id, chance in chances.items() if not int(record_id[1:]) % 2]
    assert min(unsure) > max(sure)
    assert max(by_score[name] for name in by_score if int(name[1:]) % 2) < min(unsure)


def _picks_without_storing(store: Store, records: Sequence[Record], values: Sequence[float]) -> list[Any]:
    from assay.calibration import pick_for_humans

    return pick_for_humans([record.record_id for record in records], values, 100, salt=RUBRIC.name)


# Handing out.


@pytest.fixture
def waiting(store: Store) -> Store:
    """Twelve picked records."""
    score(store, many(12), [0.25] * 12)
    picked(store, twice=0.5)
    return store


def test_a_label_file_to_fill_in(waiting: Store, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    exported = export_labels(waiting, RUBRIC, file, "jsonl")
    assert (exported.records, exported.gone) == (12, 0)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["rubric"] == "relevance"
    assert lines[1]["record"]["input"] == "question 0"
    assert lines[1]["labels"] == {}
    assert lines[1]["probability"] == pytest.approx(0.5)
    assert all(request.exported_at for request in waiting.label_requests(RUBRIC.name))


@pytest.mark.parametrize("form", ["jsonl", "csv", "label-studio"])
def test_nobody_is_told_what_the_judge_said(waiting: Store, tmp_path: Path, form: Any) -> None:
    export_labels(waiting, RUBRIC, tmp_path / "out", form)
    text = (tmp_path / "out").read_text()
    assert "question 3" in text
    assert "the judge says" not in text
    assert "0.25" not in text


def test_what_is_out_is_not_handed_out_again_but_on_request(waiting: Store, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    export_labels(waiting, RUBRIC, file, "jsonl")
    other = tmp_path / "other.jsonl"
    assert export_labels(waiting, RUBRIC, other, "jsonl").records == 0
    assert not other.exists(), "an empty sheet would take the place of one that is filled in"
    waiting.mark_labels(RUBRIC.name, ["r0000"], "labelled")
    assert export_labels(waiting, RUBRIC, other, "jsonl", again=True).records == 11


def test_a_sheet_that_somebody_may_have_filled_in_is_never_written_over(waiting: Store, tmp_path: Path) -> None:
    file = tmp_path / "sheet.csv"
    file.write_text("filled in\n")
    with pytest.raises(ConfigError, match=r"sheet\.csv: exists: name another file"):
        export_labels(waiting, RUBRIC, file, "csv")
    assert file.read_text() == "filled in\n"
    assert export_labels(waiting, RUBRIC, tmp_path / "next.csv", "csv").records == 12, "they still wait"


def test_the_second_of_two_gets_what_two_should_label(waiting: Store, tmp_path: Path) -> None:
    twice = {request.record_id for request in waiting.label_requests(RUBRIC.name) if request.twice}
    assert 0 < len(twice) < 12
    export_labels(waiting, RUBRIC, tmp_path / "first.jsonl", "jsonl")
    export_labels(waiting, RUBRIC, tmp_path / "second.csv", "csv", second=True)
    with (tmp_path / "second.csv").open(newline="") as file:
        assert {row["record_id"] for row in csv.DictReader(file)} == twice


def test_picked_records_whose_text_is_gone_are_counted(waiting: Store, tmp_path: Path) -> None:
    waiting.purge(payload_days=0, score_days=90, rollup_days=90, dead_days=90)
    exported = export_labels(waiting, RUBRIC, tmp_path / "out.jsonl", "jsonl")
    assert (exported.records, exported.gone) == (0, 12)


def test_no_cell_of_a_table_is_a_formula(store: Store, tmp_path: Path) -> None:
    records = [a_record(1, input='=HYPERLINK("x")', output="-1+2", contexts=(Context(text="@a"), Context(text="b")))]
    score(store, records, [0.5])
    picked(store)
    export_labels(store, RUBRIC, tmp_path / "out.csv", "csv")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text()))
    assert row["question"] == ' =HYPERLINK("x")'
    assert row["answer"] == " -1+2"
    assert row["context"] == " @a\n\nb"


def test_a_place_that_cannot_be_written(waiting: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        export_labels(waiting, RUBRIC, tmp_path / "no" / "out.jsonl", "jsonl")
    assert not any(request.exported_at for request in waiting.label_requests(RUBRIC.name))


# Taking back.


def filled_in_label_file(store: Store, path: Path) -> LabelSet:
    export_labels(store, RUBRIC, path / "out.jsonl", "jsonl")
    lines = [json.loads(line) for line in (path / "out.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines[1:]):
        line["labels"] = {"anna": 1 + number % 5} if number < 10 else {}
    (path / "back.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return read_labels(path / "back.jsonl", RUBRIC, skip_unlabelled=True)


def filled_in_table(store: Store, path: Path) -> LabelSet:
    export_labels(store, RUBRIC, path / "out.csv", "csv")
    with (path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row |= {"label": str(1 + number % 5) if number < 10 else "", "annotator": "anna"}
    with (path / "back.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return read_labels(path / "back.csv", RUBRIC, columns=SHEET_COLUMNS, skip_unlabelled=True)


def annotated_tasks(store: Store, path: Path) -> LabelSet:
    export_labels(store, RUBRIC, path / "out.json", "label-studio")
    tasks = json.loads((path / "out.json").read_text())
    for number, task in enumerate(tasks):
        result = {"type": "rating", "value": {"rating": 1 + number % 5}, "from_name": "relevance", "to_name": "answer"}
        task["id"] = number
        task["annotations"] = [{"completed_by": {"email": "anna"}, "result": [result] if number < 10 else []}]
    (path / "back.json").write_text(json.dumps(tasks))
    return read_label_studio(path / "back.json", RUBRIC)


@pytest.mark.parametrize("fill_in", [filled_in_label_file, filled_in_table, annotated_tasks])
def test_labels_come_back_with_record_and_chance(waiting: Store, tmp_path: Path, fill_in: Any) -> None:
    received = receive_labels(waiting, fill_in(waiting, tmp_path), at=NOON)
    assert (received.picked, received.others) == (10, 0)
    labels = received.labels
    assert labels.selection == "probability"
    for item in labels.items:
        assert item.record == a_record(int(item.item_id[1:]))
        assert item.labels == {"anna": (int(item.item_id[1:]) % 5 / 4,)}
        # Sampled with 0.5, picked with 1.
        assert item.probability == pytest.approx(0.5)
        assert item.labelled_at == NOON
    assert mark_received(waiting, labels) == 10
    assert mark_received(waiting, labels) == 0


def test_labels_of_spans_and_traces_find_their_records(store: Store) -> None:
    records = [a_record(1, span_id="a" * 16, trace_id="1" * 32), a_record(2, trace_id="2" * 32)]
    score(store, records, [0.5, 0.5])
    named = [
        replace(item, item_id=name, record=None)
        for item, name in zip(labelled(records, [1.0, 0.0]).items, ["a" * 16, "2" * 32], strict=True)
    ]
    labels = replace(labelled(records, [1.0, 0.0]), items=tuple(named))
    assert [item.record for item in receive_labels(store, labels).labels.items] == records


def test_labels_of_unknown_records_are_refused_unless_the_records_are_given(store: Store) -> None:
    record = a_record(1)
    labels = labelled([record], [1.0])
    labels = replace(labels, items=(replace(labels.items[0], record=None),))
    with pytest.raises(LabelErrors, match='record "r0001" is not known'):
        receive_labels(store, labels)
    assert receive_labels(store, labels, records=[record]).labels.items[0].record == record


def test_labels_of_others_are_no_part_of_a_sample(waiting: Store) -> None:
    labels = labelled(many(14), [1.0] * 14, probability=0.9)
    with pytest.raises(ConfigError, match="2 of 14 labels are of records that were not picked here"):
        receive_labels(waiting, labels)
    dropped = receive_labels(waiting, labels, others="drop").labels
    assert len(dropped.items) == 12
    assert {item.probability for item in dropped.items} == {0.5}
    curated = receive_labels(waiting, labels, others="curated").labels
    assert curated.selection == "curated"
    assert {item.probability for item in curated.items} == {1.0}


def test_labels_of_others_alone_stay_as_they_are(store: Store) -> None:
    labels = labelled(many(3), [1.0] * 3, probability=0.9)
    received = receive_labels(store, labels)
    assert (received.picked, received.others) == (0, 3)
    assert received.labels == labels


def test_new_labels_are_merged_into_those_that_are_there() -> None:
    records = many(3)
    before = labelled(records[:2], [1.0, 0.0], note="first")
    after = labelled(records[1:], [1.0, 1.0], labelled_at=NOON + 9 * DAY, note="second")
    by_ben = tuple(replace(item, labels={"ben": (1.0,)}, passes={"ben": 1.0}) for item in after.items)
    merged = merge_labels(before, replace(after, items=by_ben))
    assert [item.item_id for item in merged.items] == ["r0000", "r0001", "r0002"]
    both = merged.items[1]
    assert both.labels == {"anna": (0.0,), "ben": (1.0,)}
    assert both.passes == {"anna": 0.0, "ben": 1.0}
    assert both.note == "first\nsecond"
    assert both.labelled_at == before.items[1].labelled_at
    replaced = merge_labels(before, after)
    assert replaced.items[1].labels == {"anna": (1.0,)}


@pytest.mark.parametrize(
    ("field", "value"),
    [("selection", "curated"), ("annotator_kind", "author"), ("synthetic", True), ("rubric", "safety")],
)
def test_labels_of_another_kind_are_not_merged(field: str, value: object) -> None:
    labels = labelled(many(1), [1.0])
    with pytest.raises(ConfigError, match=f"labels.jsonl has {field} .*: write them to a file of their own"):
        merge_labels(labels, replace(labels, **{field: value}))


# Audits.


def calibrated(store: Store, *, flip: int, count: int = 200) -> None:
    """A calibration by labels that agree with the judge on all but one in `flip` records."""
    records = many(count, first=5000)
    verdicts = [number % 4 != 0 for number in range(count)]
    score(store, records, [0.9 if passed else 0.1 for passed in verdicts])
    people = [passed != (number % flip == 1) for number, passed in enumerate(verdicts)]
    label_set = labelled(records, [float(passed) for passed in people], labelled_at=NOON)
    outcomes = {
        record.record_id: Score(value=0.9 if passed else 0.1, passed=passed)
        for record, passed in zip(records, verdicts, strict=True)
    }
    made = calibrate(label_set, RUBRIC, judge="scripted", judge_fingerprint=FINGERPRINT, outcomes=outcomes)
    store.save_calibration(made.calibration)


def fresh_labels(store: Store, *, flip: int, count: int = 400, **fields: Any) -> LabelSet:
    """Labels of later records, on which people agree with the judge on all but one in `flip`."""
    records = many(count)
    verdicts = [number % 4 != 0 for number in range(count)]
    score(store, records, [0.9 if passed else 0.1 for passed in verdicts])
    people = [passed != (number % flip == 1) for number, passed in enumerate(verdicts)]
    return labelled(records, [float(passed) for passed in people], **fields)


def test_a_calibration_that_holds_passes(store: Store) -> None:
    calibrated(store, flip=20)
    (found,) = audit_calibrations(store, fresh_labels(store, flip=20, count=1200))
    assert found.audit.state == "passed"
    assert found.method == "rogan_gladen"
    assert found.labels == 1200
    assert not found.made_stale
    assert [stored.state for stored in store.calibrations()] == ["active"]


def test_a_calibration_that_holds_no_more_is_stale(store: Store) -> None:
    calibrated(store, flip=20)
    labels = fresh_labels(store, flip=4)
    (found,) = audit_calibrations(store, labels)
    assert found.audit.state == "failed"
    assert found.made_stale
    (stored,) = store.calibrations()
    assert stored.state == "stale"
    assert stored.reason is not None
    assert stored.reason.startswith("audit: labels less predictions: -")
    (again,) = audit_calibrations(store, labels)
    assert again.audit.state == "failed"
    assert not again.made_stale


def test_what_corrects_nothing_cannot_fail(store: Store) -> None:
    calibrated(store, flip=20, count=24)
    (found,) = audit_calibrations(store, fresh_labels(store, flip=2))
    assert found.method == "none"
    assert (found.audit.state, found.made_stale) == ("not_graded", False)
    assert "allows no correction" in found.audit.reason


def test_few_labels_decide_nothing(store: Store) -> None:
    calibrated(store, flip=20)
    (found,) = audit_calibrations(store, fresh_labels(store, flip=20, count=30))
    assert found.audit.state == "inconclusive"
    assert [stored.state for stored in store.calibrations()] == ["active"]


@pytest.mark.parametrize("labelled_at", [NOON, NOON - DAY, None])
def test_labels_that_a_calibration_may_have_seen_are_not_fresh(store: Store, labelled_at: datetime | None) -> None:
    calibrated(store, flip=20)
    (found,) = audit_calibrations(store, fresh_labels(store, flip=4, labelled_at=labelled_at))
    assert (found.audit.state, found.labels) == ("not_checked", 0)


def test_labels_that_this_judge_has_not_scored_tell_nothing(store: Store) -> None:
    calibrated(store, flip=20)
    records = many(40)
    score(store, records, [0.9] * 40, fingerprint="e" * 64)
    (found,) = audit_calibrations(store, labelled(records, [0.0] * 40))
    assert found.audit.state == "not_checked"


@pytest.mark.parametrize("share", [0.3, 0.1])
def test_labels_of_ones_own_sample_are_weighed_by_the_chance_of_judging(store: Store, share: float) -> None:
    """Of what a cascade left out there is no verdict, and the rest is not like it. The calibration holds."""
    calibrated(store, flip=20)
    draw = random.Random(3)
    records = many(2000, probability=1.0)
    verdicts = [number % 4 != 0 for number in range(2000)]
    people = [passed != (number % 20 == 1) for number, passed in enumerate(verdicts)]
    for record, passed, truth in zip(records, verdicts, people, strict=True):
        doubted = draw.random() < (0.24 if truth else 0.0 if passed else 0.85)
        if doubted or draw.random() < share:
            score(store, [record], [0.9 if passed else 0.1], probability=1.0 if doubted else share)
    (found,) = audit_calibrations(store, labelled(records, [float(truth) for truth in people]))
    assert found.labels < 1500
    assert abs(found.audit.shift.value) < 0.025
    assert not found.made_stale


def test_audits_take_labels_picked_by_chance(store: Store) -> None:
    calibrated(store, flip=20)
    with pytest.raises(ConfigError, match="were picked by hand"):
        audit_calibrations(store, replace(fresh_labels(store, flip=20), selection="curated"))


def test_audits_take_a_calibration(store: Store) -> None:
    with pytest.raises(ConfigError, match="nothing is calibrated of relevance"):
        audit_calibrations(store, labelled(many(1), [1.0]))


def test_a_margin_need_not_be_declared(store: Store) -> None:
    calibrated(store, flip=20)
    (found,) = audit_calibrations(store, fresh_labels(store, flip=4), margin=None)
    assert found.audit.state == "not_graded"
    assert not found.made_stale


def test_requests_survive_a_round_through_a_label_file(waiting: Store, tmp_path: Path) -> None:
    received = receive_labels(waiting, filled_in_label_file(waiting, tmp_path), at=NOON)
    write_labels(tmp_path / "labels.jsonl", received.labels)
    again = read_labels(tmp_path / "labels.jsonl", RUBRIC)
    assert again.sha256 == received.labels.sha256
    assert again.columns().sample_weight.tolist() == [2.0] * 10


def test_a_request_of_a_record_without_text_keeps_its_own_chance(store: Store) -> None:
    labels = labelled(many(1), [1.0])
    score(store, many(1), [0.5])
    store.request_labels([LabelRequest(record_id="r0000", rubric=RUBRIC.name, probability=0.25)])
    judged = replace(labels.items[0], record=None, judged=Score(value=1.0, passed=True))
    received = receive_labels(store, replace(labels, items=(judged,)))
    assert received.labels.items[0].probability == 0.25
