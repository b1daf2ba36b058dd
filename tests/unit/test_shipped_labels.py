"""The shipped label sets are what calibration/README.md says of them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from assay.labels import LabelSet, read_labels
from assay.records import Record
from assay.rubrics import load_rubrics

DIRECTORY = Path(__file__).parents[2] / "calibration"
RUBRICS = {rubric.name: rubric for rubric in load_rubrics()}


@pytest.fixture(params=sorted(RUBRICS))
def labels(request: pytest.FixtureRequest) -> LabelSet:
    return read_labels(DIRECTORY / f"{request.param}.jsonl", RUBRICS[request.param])


def records(labels: LabelSet) -> list[Record]:
    return [item.record for item in labels.items if item.record is not None]


def test_there_is_one_for_each_shipped_rubric_and_nothing_else() -> None:
    found = {path.name for path in DIRECTORY.iterdir()}
    assert {f"{name}.jsonl" for name in RUBRICS} | {"README.md"} <= found


def test_they_say_that_they_are_synthetic_and_by_their_authors(labels: LabelSet) -> None:
    assert labels.synthetic
    assert labels.annotator_kind == "author"
    assert labels.annotators == ("author",)
    assert labels.selection == "curated"
    assert "human" not in labels.path.read_text(encoding="utf-8").splitlines()[0]
    assert any("synthetic" in caution for caution in labels.cautions)
    assert any("authors" in caution for caution in labels.cautions)


def test_there_are_enough_of_both_classes_to_calibrate_by(labels: LabelSet) -> None:
    assert len(labels.items) >= 120
    fails = labels.y_true.count(0.0)
    assert fails >= 35
    assert labels.y_true.count(1.0) >= 35
    assert fails + labels.y_true.count(1.0) == len(labels.items)


def test_about_a_third_of_the_fails_or_more_are_hard(labels: LabelSet) -> None:
    strata = Counter(item.stratum for item, y in zip(labels.items, labels.y_true, strict=True) if y == 0.0)
    assert set(strata) == {"easy", "hard"}
    assert min(strata.values()) >= labels.y_true.count(0.0) / 3


def test_situations_hold_both_classes_and_are_no_larger_than_a_handful(labels: LabelSet) -> None:
    clusters: dict[str, list[float]] = {}
    for item, y in zip(labels.items, labels.y_true, strict=True):
        clusters.setdefault(item.cluster, []).append(y)
    assert "" not in clusters
    assert len(clusters) >= 30
    assert all(2 <= len(members) <= 6 and len(set(members)) == 2 for members in clusters.values())


def test_every_label_says_why(labels: LabelSet) -> None:
    assert all(len(item.note) >= 3 for item in labels.items)


def test_no_record_is_there_twice(labels: LabelSet) -> None:
    contents = Counter((record.input_text, record.output, record.contexts) for record in records(labels))
    assert len(contents) == len(labels.items)
    assert [record.record_id for record in records(labels)] == [
        f"{labels.rubric}-{number:03d}" for number in range(1, len(labels.items) + 1)
    ]


def test_members_of_a_situation_share_their_question_and_source(labels: LabelSet) -> None:
    questions = {
        (item.cluster, record.input_text, record.contexts)
        for item, record in zip(labels.items, records(labels), strict=True)
    }
    assert len(questions) == len({item.cluster for item in labels.items})


def test_the_rubric_applies_to_every_record(labels: LabelSet) -> None:
    rubric = RUBRICS[labels.rubric]
    assert len(records(labels)) == len(labels.items)
    # An empty answer is a case of relevance: there, only the question is required.
    assert [record.record_id for record in records(labels) if rubric.missing(record)] == []


def test_they_are_varied(labels: LabelSet) -> None:
    cohorts = [record.cohort for record in records(labels)]
    languages = Counter(cohort["language"] for cohort in cohorts)
    assert len(languages) >= 5
    assert languages["en"] <= 0.75 * len(cohorts)
    assert len({cohort["domain"] for cohort in cohorts}) >= 12
    assert any(not isinstance(record.input, str) for record in records(labels))
    if labels.rubric != "relevance":
        assert any(record.tool_events for record in records(labels))


def test_length_does_not_give_the_label_away(labels: LabelSet) -> None:
    lengths = sorted((len(record.output), y) for record, y in zip(records(labels), labels.y_true, strict=True))
    shorter = [y for _, y in lengths[: len(lengths) // 2]]
    assert 0.2 <= sum(shorter) / len(shorter) <= 0.8


def test_the_readme_counts_right() -> None:
    told = (DIRECTORY / "README.md").read_text(encoding="utf-8")
    for name, rubric in RUBRICS.items():
        labels = read_labels(DIRECTORY / f"{name}.jsonl", rubric)
        hard = sum(item.stratum == "hard" for item, y in zip(labels.items, labels.y_true, strict=True) if y == 0.0)
        counts = (len(labels.items), labels.y_true.count(0.0), hard, len({item.cluster for item in labels.items}))
        row = re.search(rf"\[{name}\.jsonl\]\(.*?\) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", told)
        assert row is not None
        assert tuple(map(int, row.groups())) == counts, name


def test_nothing_in_them_looks_like_a_real_secret(labels: LabelSet) -> None:
    text = labels.path.read_text(encoding="utf-8")
    assert not re.search(r"sk-[A-Za-z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20}|AKIA[0-9A-Z]{16}|-----BEGIN", text)
    assert set(re.findall(r"https?://([^/\"\s]+)", text)) <= {"invoices.example"}
    assert all(host.endswith("example") for host in re.findall(r"[\w.]+@([\w.]+\w)", text))
