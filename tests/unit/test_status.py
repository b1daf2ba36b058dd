"""Rollups add up to one row for each label set, rubric version and judge."""

from __future__ import annotations

from typing import Any

from assay.status import summarise
from assay.store import DefectCount, Rollup


def rollup(**fields: Any) -> Rollup:
    defaults: dict[str, Any] = {
        "app": "shop",
        "cohort": {},
        "rubric": "safety",
        "rubric_version": "1-a",
        "rubric_hash": "a" * 64,
        "judge": "lexical",
        "judge_fingerprint": "f" * 64,
        "n": 2,
        "sum_w": 4.0,
        "sum_w2": 10.0,
        "sum_wy": 3.0,
        "sum_w2y": 9.0,
        "sum_w2y2": 9.0,
        "passes": 1,
        "sum_wp": 3.0,
        "sum_w2p": 9.0,
        "failed": 0,
        "not_applicable": 0,
        "recovered": 0,
    }
    known = {name: value for name, value in {**defaults, **fields}.items() if name in Rollup.__dataclass_fields__}
    return Rollup(**known)


def test_spans_of_time_are_added_up() -> None:
    (row,) = summarise([rollup(), rollup(failed=3, recovered=1, not_applicable=2)])
    assert (row.scored, row.failed, row.not_applicable) == (4, 2, 2)
    assert row.pass_ratio is not None
    assert row.pass_ratio.value == 0.75
    assert row.pass_ratio.lower < 0.75 < row.pass_ratio.upper


def test_label_sets_versions_and_judges_stay_apart() -> None:
    rows = summarise(
        [
            rollup(),
            rollup(cohort={"route": "/a"}),
            rollup(rubric="relevance"),
            rollup(rubric_version="1-b"),
            rollup(judge="openai:x"),
            rollup(app="bank"),
        ]
    )
    assert len(rows) == 6
    assert rows[0].app == "bank"


def test_a_row_of_failures_alone_has_no_estimate() -> None:
    empty = dict.fromkeys(("n", "sum_w", "sum_w2", "sum_wy", "sum_w2y", "sum_w2y2", "passes", "sum_wp", "sum_w2p"), 0)
    (row,) = summarise([rollup(**empty, failed=5)])
    assert row.failed == 5
    assert row.pass_ratio is None
    assert row.score_mean is None


def defect(name: str, sum_w: float, **fields: Any) -> DefectCount:
    defaults: dict[str, Any] = {
        "app": "shop",
        "cohort": {},
        "rubric": "safety",
        "rubric_version": "1-a",
        "judge": "lexical",
        "n": 1,
    }
    return DefectCount(defect=name, sum_w=sum_w, **(defaults | fields))


def test_defects_stand_with_their_label_set_the_most_first() -> None:
    counts = [defect("unsafe", 2.0), defect("selection", 5.0), defect("truncated", 9.0, rubric="relevance")]
    safety, relevance = summarise([rollup(), rollup(rubric="relevance")][::-1], counts)[::-1]
    assert list(safety.defects.items()) == [("selection", 5.0), ("unsafe", 2.0)]
    assert relevance.defects == {"truncated": 9.0}
    assert summarise([rollup()])[0].defects == {}
