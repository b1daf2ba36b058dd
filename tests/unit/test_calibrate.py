"""A calibration from labels and outcomes: what counts, what is left out, and how it is told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.calibrate import Calibrated, calibrate, compare_calibrated
from assay.calibration import Calibration, agreement, correct, error_rates
from assay.calibration_summary import (
    VERDICTS,
    as_json,
    comparison_json,
    cost_sentence,
    difference_line,
    first_screen,
    headline,
    statistics_table,
    threshold_table,
    verdict,
)
from assay.errors import NoVerdictsError
from assay.labels import LabelSet, read_labels
from assay.records import Failure, NotApplicable, Outcome, Score, Usage
from assay.rubrics import Rubric
from assay.windows import Sums
from judging import binary, ordinal

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
JUDGE: dict[str, Any] = {"judge": "openai:m", "judge_fingerprint": "f" * 64, "created_at": NOON}


def labels(directory: Path, rows: Sequence[Mapping[str, Any]], rubric: Rubric | None = None, **header: Any) -> LabelSet:
    """A label set of these rows; each gets an id and a record of its own."""
    asked = rubric or binary()
    head = {"label_file": 1, "rubric": asked.name, "annotators": "human", "selection": "probability"} | header
    lines = [json.dumps(head)]
    for n, row in enumerate(rows):
        record = {
            "record_id": f"r{n}",
            "timestamp": "2026-01-31T12:00:00Z",
            "output": f"Answer {n}: " + "x" * (1 + n % 50),
        }
        lines.append(json.dumps({"record": record, "probability": 1.0, **row}))
    path = directory / "labels.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return read_labels(path, asked)


def verdicts(values: Sequence[float | None], threshold: float = 0.5, **fields: Any) -> dict[str, Outcome]:
    """Outcomes of r0, r1, ...; None leaves one out."""
    return {
        f"r{n}": Score(value=value, passed=value >= threshold, explanation=f"because {n}", **fields)
        for n, value in enumerate(values)
        if value is not None
    }


def table(both_pass: int, false_fail: int, false_pass: int, both_fail: int) -> tuple[list[str], list[float]]:
    """Labels and scores of a two by two table."""
    said = ["pass"] * (both_pass + false_fail) + ["fail"] * (false_pass + both_fail)
    judged = [1.0] * both_pass + [0.0] * false_fail + [1.0] * false_pass + [0.0] * both_fail
    return said, judged


def measured(directory: Path, *counts: int, rubric: Rubric | None = None, **options: Any) -> Calibrated:
    said, judged = table(*counts)
    header = {name: options.pop(name) for name in ("annotators", "selection", "synthetic") if name in options}
    made = labels(directory, [{"label": label} for label in said], rubric, **header)
    return calibrate(made, rubric or binary(), outcomes=verdicts(judged), **(JUDGE | options))


# Numbers.


def test_the_report_is_that_of_the_statistics_on_the_same_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    n = 300
    passed = rng.random(n) < 0.8
    score = np.round(np.clip(0.3 + 0.4 * passed + rng.normal(0, 0.2, n), 0, 1), 2)
    weight = rng.choice([1.0, 4.0], n)
    stratum = ["web" if flag else "api" for flag in rng.random(n) < 0.5]
    cluster = [f"c{number}" for number in rng.integers(0, 120, n)]
    rows = [
        {
            "label": "pass" if passed[i] else "fail",
            "probability": 1 / weight[i],
            "stratum": stratum[i],
            "cluster": cluster[i],
        }
        for i in range(n)
    ]
    found = calibrate(labels(tmp_path, rows), binary(), outcomes=verdicts(score.tolist()), **JUDGE)
    expected = agreement(
        passed,
        score >= 0.5,
        y_score=score,
        y_prob=found.columns.y_prob,
        sample_weight=weight,
        clusters=cluster,
        strata=stratum,
        lengths=[len(row.record.output) for row in found.rows if row.record is not None],
    )
    assert found.report == expected
    assert found.calibration.rates == expected.rates
    assert found.calibration.auc == expected.auc
    assert set(found.strata) == {"web", "api"}
    web = np.array([name == "web" for name in stratum])
    assert found.strata["web"] == error_rates(
        passed[web],
        score[web] >= 0.5,
        sample_weight=weight[web],
        clusters=[name for name, inside in zip(cluster, web, strict=True) if inside],
    )


def test_records_that_stand_alone_are_tested_exactly(tmp_path: Path) -> None:
    found = measured(tmp_path, 150, 6, 16, 30)
    assert found.columns.clusters is None
    assert found.report.rates.bias_p == pytest.approx(0.05248, abs=5e-6)


def test_the_same_input_gives_the_same_digits(tmp_path: Path) -> None:
    first, second = (measured(tmp_path, 90, 10, 8, 32) for _ in range(2))
    assert first.calibration == second.calibration
    assert first.calibration.calibration_id == second.calibration.calibration_id
    assert json.dumps(as_json(first)) == json.dumps(as_json(second))


def test_the_calibration_names_all_it_is_bound_to(tmp_path: Path) -> None:
    rubric = binary(version="7")
    rows = [
        {"label": "pass", "labelled_at": "2026-01-02T00:00:00Z"},
        {"label": "fail", "labelled_at": "2026-01-09T00:00:00+02:00"},
    ]
    label_set = labels(tmp_path, rows, rubric, annotators="author", synthetic=True, selection="curated", gold="mean")
    made = calibrate(label_set, rubric, outcomes=verdicts([1.0, 0.0]), **JUDGE).calibration
    assert (made.rubric, made.rubric_version, made.rubric_hash) == ("verdicts", rubric.revision, rubric.hash)
    assert (made.judge, made.judge_fingerprint, made.created_at) == ("openai:m", "f" * 64, NOON)
    assert made.labels_sha256 == label_set.sha256
    assert made.labelled_from == datetime(2026, 1, 2, tzinfo=UTC)
    assert made.labelled_to == datetime(2026, 1, 8, 22, tzinfo=UTC)
    assert (made.annotator_kind, made.annotators, made.synthetic) == ("author", 1, True)
    assert (made.selection, made.gold, made.n) == ("curated", "mean", 2)
    assert Calibration.from_json(made.to_json()) == made


def test_a_calibration_corrects_a_window(tmp_path: Path) -> None:
    made = measured(tmp_path, 160, 40, 5, 45).calibration
    window = sum((Sums.of(weight=1.0, value=1.0, passed=i % 4 != 0) for i in range(1000)), Sums())
    stale, fresh = correct(window, made.rates), correct(window, made.rates, fresh=True)
    assert (stale.method, fresh.method) == ("rogan_gladen", "post_stratified")
    assert stale.estimate is not None
    assert stale.estimate.value == pytest.approx(0.65 / 0.7)


def test_labels_of_many_annotators_and_sets_of_grades(tmp_path: Path) -> None:
    rubric = ordinal(pass_threshold=0.7)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(80):
        level = int(rng.integers(1, 6))
        near = int(np.clip(level + rng.integers(-1, 2), 1, 5))
        rows.append({"labels": {"anna": level, "ben": [level, near], "carl": near}})
    label_set = labels(tmp_path, rows, rubric)
    score = label_set.columns().y_grade.tolist()
    found = calibrate(label_set, rubric, outcomes=verdicts(score, threshold=0.7), **JUDGE)
    report = found.report
    assert found.columns.annotations is not None
    assert found.columns.annotations.shape == (3, 80)
    assert report.weighted_kappa is not None
    assert report.weighted_kappa.value is not None
    assert report.weighted_kappa.value > 0.8
    assert report.ceiling is not None
    assert report.alt_test is not None
    assert report.alpha is not None
    assert "kappa of annotators" in {row.name for row in statistics_table(found)}
    assert any("among themselves" in line.text for line in first_screen(found))


def test_pass_and_fail_alone_are_no_levels(tmp_path: Path) -> None:
    found = measured(tmp_path, 50, 5, 5, 20, rubric=ordinal())
    assert found.label_set.levels is not None
    assert found.report.weighted_kappa is None
    assert found.report.ceiling is None


def test_few_labels_have_no_map(tmp_path: Path) -> None:
    few = measured(tmp_path, 15, 2, 2, 10)
    assert few.calibration.score_map is None
    assert few.columns.y_prob is None
    assert few.report.brier is None
    many = measured(tmp_path, 40, 5, 5, 20)
    assert many.calibration.score_map is not None
    assert many.report.brier is not None


def test_thresholds_are_for_judges_that_do_not_know_them(tmp_path: Path) -> None:
    by_model = measured(tmp_path, 40, 5, 5, 20)
    assert set(by_model.calibration.thresholds) == {"gauge", "triage", "block"}
    assert [row[0] for row in threshold_table(by_model)] == ["as it is", "gauge", "triage", "block"]
    keyless = measured(tmp_path, 40, 5, 5, 20, judge="lexical")
    assert keyless.calibration.thresholds == {}


# What is left out.


def test_failures_are_counted_excluded_and_told(tmp_path: Path) -> None:
    said, judged = table(60, 5, 5, 30)
    made = labels(tmp_path, [{"label": label} for label in said])
    outcomes = verdicts(judged)
    for name in ("r0", "r1", "r99"):
        outcomes[name] = Failure(kind="timeout", message="no answer")
    outcomes["r2"] = Failure(kind="refused", message="no")
    outcomes["r3"] = NotApplicable(reason="no_claims")
    del outcomes["r4"]
    found = calibrate(made, binary(), outcomes=outcomes, **JUDGE)
    counts = found.report.rates.counts
    assert (counts.both_pass, counts.false_fail, counts.false_pass, counts.both_fail) == (55, 5, 5, 29)
    assert found.calibration.n == 94
    assert dict(found.calibration.left_out) == {
        "failed:refused": 1,
        "failed:timeout": 3,
        "not_applicable:no_claims": 1,
        "not_judged": 1,
    }
    assert not found.is_whole
    told = " / ".join(found.notes)
    assert "no verdict on 4 of 100 records (timeout 3, refused 1)" in told
    assert "did not apply to 1 of 100 records (no_claims 1)" in told
    assert "1 of 100 records were not judged" in told
    assert found.columns.item_ids == tuple(row.item_id for row in found.rows if row.score is not None)
    assert [outcome is None for outcome in found.outcomes].count(True) == 1


def test_a_failure_never_becomes_a_number(tmp_path: Path) -> None:
    said, judged = table(60, 5, 5, 30)
    made = labels(tmp_path, [{"label": label} for label in said])
    whole = calibrate(made, binary(), outcomes=verdicts(judged), **JUDGE)
    outcomes = verdicts(judged) | {f"r{n}": Failure(kind="timeout", message="no") for n in range(30)}
    part = calibrate(made, binary(), outcomes=outcomes, **JUDGE)
    assert part.report.rates.counts.both_pass == whole.report.rates.counts.both_pass - 30
    assert part.report.fail_recall == whole.report.fail_recall


@pytest.mark.parametrize(
    "outcomes",
    [
        {},
        {"r0": Failure(kind="unauthorized", message="no"), "r1": NotApplicable(reason="missing_contexts")},
    ],
)
def test_no_verdict_at_all_is_an_error_that_says_what_became_of_them(
    tmp_path: Path, outcomes: dict[str, Outcome]
) -> None:
    made = labels(tmp_path, [{"label": "pass"}, {"label": "fail"}])
    with pytest.raises(NoVerdictsError, match=r"nothing can be measured: .* of 2 records"):
        calibrate(made, binary(), outcomes=outcomes, **JUDGE)


def test_labels_as_much_pass_as_fail_are_on_no_side(tmp_path: Path) -> None:
    rows = [{"label": ["pass", "fail"]}] * 10 + [{"label": "pass"}] * 40 + [{"label": "fail"}] * 20
    found = calibrate(
        labels(tmp_path, rows), binary(), outcomes=verdicts([0.0] * 10 + [1.0] * 40 + [0.0] * 20), **JUDGE
    )
    assert found.report.rates.counts.n == 60
    assert found.report.undecided == pytest.approx(1 / 7)
    assert found.disagreements() == ()
    assert not found.rows[0].is_decided


# Levels and words.


@pytest.mark.parametrize(
    ("counts", "level"),
    [
        ((20, 2, 2, 5), "no_data"),
        ((90, 0, 10, 0), "unusable"),
        ((150, 10, 20, 20), "trend_only"),
        ((1600, 100, 30, 170), "calibrated"),
    ],
)
def test_the_level_is_told_with_its_reasons(tmp_path: Path, counts: tuple[int, ...], level: Any) -> None:
    found = measured(tmp_path, *counts)
    assert found.calibration.level == found.report.level == level
    assert verdict(found) == VERDICTS[level]
    assert found.calibration.reasons
    assert as_json(found)["reasons"] == list(found.calibration.reasons)


def test_a_judge_that_passes_all_has_accuracy_and_is_unusable(tmp_path: Path) -> None:
    """Acceptance test A13."""
    found = measured(tmp_path, 90, 0, 10, 0)
    assert found.report.accuracy.value == pytest.approx(0.9)
    assert found.report.kappa.value == pytest.approx(0.0)
    assert found.report.fail_recall.value == 0.0
    assert found.report.level == "unusable"
    said = [line.text for line in first_screen(found)]
    assert said[0] == "flags 0% of the answers that people reject"
    assert said[1] == "it flags nothing, so people can agree with no flag of it"
    assert not any("accuracy" in line for line in said)


@pytest.mark.parametrize("label", ["pass", "fail"])
def test_constant_labels_have_no_kappa_and_no_nan(tmp_path: Path, label: str) -> None:
    """Acceptance test A14."""
    made = labels(tmp_path, [{"label": label}] * 60)
    found = calibrate(made, binary(), outcomes=verdicts([1.0, 0.0] * 30), **JUDGE)
    assert found.report.level == "no_data"
    assert found.report.kappa.value is None
    assert found.report.auc.value is None
    assert first_screen(found) == ()
    json.dumps(as_json(found), allow_nan=False)


def test_the_bar_for_calibrated_is_the_teams(tmp_path: Path) -> None:
    counts = (1600, 100, 30, 170)
    assert measured(tmp_path, *counts, min_fail_recall=0.75).report.level == "calibrated"
    strict = measured(tmp_path, *counts, min_fail_recall=0.9)
    assert strict.report.level == "trend_only"
    assert strict.calibration.min_fail_recall == 0.9
    assert strict.calibration.calibration_id != measured(tmp_path, *counts).calibration.calibration_id


def test_the_first_screen_says_what_the_numbers_are(tmp_path: Path) -> None:
    found = measured(tmp_path, 170, 8, 10, 24)
    assert (
        headline(found)
        == f"verdicts · judge openai:m · rubric {found.rubric.revision} · 212 labels (34 fail) · 1 annotator"
    )
    said = {line.text: line.interval for line in first_screen(found)}
    # 24 of 34 and 24 of 32, Wilson.
    assert said["flags 71% of the answers that people reject"] == "54–83%"
    assert said["people agree with 75% of its flags"] == "58–87%"
    assert "its pass ratio may be right: judge 0.85, people 0.84" in said
    biased = measured(tmp_path, 150, 30, 3, 29)
    texts = [line.text for line in first_screen(biased)]
    assert "reads 13 points too low: judge 0.72, people 0.85" in texts
    assert not any(note.startswith(("it reads", "its bias")) for note in biased.notes)


def test_only_people_make_a_judge_human_like(tmp_path: Path) -> None:
    rows = [
        {"labels": dict.fromkeys("abc", side) | ({"a": other} if n % 8 == 0 else {})}
        for side, other, count in (("pass", "fail", 120), ("fail", "pass", 60))
        for n in range(count)
    ]
    score = [1.0] * 118 + [0.0] * 2 + [0.0] * 58 + [1.0] * 2
    levels = {}
    for kind in ("human", "model"):
        found = calibrate(labels(tmp_path, rows, annotators=kind), binary(), outcomes=verdicts(score), **JUDGE)
        levels[kind] = found.report.level
        assert found.calibration.level == found.report.level
        assert found.calibration.reasons == found.report.reasons
    assert levels == {"human": "human_like", "model": "calibrated"}


@pytest.mark.parametrize("kind", ["author", "model", "unknown"])
def test_labels_that_no_person_gave_are_never_called_peoples(tmp_path: Path, kind: str) -> None:
    found = measured(tmp_path, 60, 20, 20, 40, annotators=kind, synthetic=True)
    assert found.labellers == "the labels"
    told = [
        headline(found),
        *(str(line) for line in first_screen(found)),
        *found.report.reasons,
        *found.calibration.reasons,
        *(f"{row.name} {row.note}" for row in statistics_table(found)),
        *(need.sentence() for need in found.report.needs),
    ]
    assert not [sentence for sentence in told if "people" in sentence or "human" in sentence.casefold()]
    assert "synthetic records" in told[0]
    constant = calibrate(
        labels(tmp_path, [{"label": "pass"}] * 40, annotators=kind), binary(), outcomes=verdicts([1.0] * 40), **JUDGE
    )
    assert "people" not in json.dumps(as_json(constant)["statistics"])


def test_people_are_called_people(tmp_path: Path) -> None:
    found = measured(tmp_path, 60, 20, 20, 40)
    assert found.labellers == "people"
    assert "people" in found.report.reasons[0] or "people" in str(first_screen(found)[0])


# Cost.


def test_the_cost_of_a_record_is_the_mean_over_those_that_say(tmp_path: Path) -> None:
    made = labels(tmp_path, [{"label": "pass"}, {"label": "fail"}, {"label": "pass"}])
    outcomes: dict[str, Outcome] = {
        "r0": Score(
            value=1.0,
            passed=True,
            usage=Usage(prompt_tokens=500, completion_tokens=40, cost_usd=0.0002),
            latency_seconds=1.0,
        ),
        "r1": Score(
            value=0.0,
            passed=False,
            usage=Usage(prompt_tokens=700, completion_tokens=60, cost_usd=0.0004),
            latency_seconds=3.0,
        ),
        "r2": Score(value=1.0, passed=True),
    }
    cost = calibrate(made, binary(), outcomes=outcomes, **JUDGE).calibration.cost
    assert (cost.prompt_tokens, cost.completion_tokens, cost.latency_seconds) == (600.0, 50.0, 2.0)
    assert cost.cost_usd == pytest.approx(0.0003)
    assert cost_sentence(cost) == "600 prompt and 50 reply tokens, 0.3 USD per 1,000 records, 2.0 s"
    assert cost_sentence(replace(cost, cost_usd=None)) == "600 prompt and 50 reply tokens, at an unknown price, 2.0 s"
    keyless = calibrate(made, binary(), outcomes=verdicts([1.0, 0.0, 1.0]), **JUDGE).calibration.cost
    assert cost_sentence(keyless) == "no tokens"


# Disagreements.


def test_the_worst_disagreements_come_first_with_both_explanations(tmp_path: Path) -> None:
    rows = [{"label": "pass", "note": f"note {n}"} for n in range(40)] + [{"label": "fail"}] * 20
    score = [0.9] * 60
    score[3], score[7], score[45], score[50] = 0.4, 0.1, 0.95, 0.6
    found = calibrate(labels(tmp_path, rows), binary(), outcomes=verdicts(score), **JUDGE)
    apart = found.disagreements()
    assert len(apart) == 22
    assert [row.item_id for row in apart[:2]] == ["r45", "r7"]
    assert [row.distance for row in apart] == sorted((row.distance for row in apart), reverse=True)
    assert (apart[1].note, apart[1].score and apart[1].score.explanation) == ("note 7", "because 7")
    assert [row.item_id for row in found.disagreements(3)] == ["r45", "r7", "r40"]
    told = as_json(found, worst=2)["disagreements"]
    assert [entry["item_id"] for entry in told] == ["r45", "r7"]
    assert told[1]["judge_explanation"] == "because 7"
    assert told[1]["note"] == "note 7"


# Comparing.


def compared(
    directory: Path, before: Sequence[float | None], after: Sequence[float | None], said: Sequence[str]
) -> Any:
    made = labels(directory, [{"label": label} for label in said])
    return compare_calibrated(
        calibrate(made, binary(), outcomes=verdicts(before), **JUDGE),
        calibrate(made, binary(instructions="Better."), outcomes=verdicts(after), **JUDGE),
    )


def test_two_variants_are_compared_on_the_same_records(tmp_path: Path) -> None:
    said = ["pass"] * 200 + ["fail"] * 100
    before = [1.0] * 190 + [0.0] * 10 + [0.0] * 60 + [1.0] * 40
    after = [1.0] * 190 + [0.0] * 10 + [0.0] * 69 + [1.0] * 31
    found = compared(tmp_path, before, after, said)
    recall = found.comparison.fail_recall
    assert (recall.first, recall.second) == (0.6, 0.69)
    assert recall.difference.value == pytest.approx(0.09)
    line = difference_line(recall)
    assert line.text.startswith("fail recall +9 points (")
    assert line.interval == "0.60 → 0.69"
    assert recall.is_clear
    assert (found.comparison.changed, found.mended, found.broken) == (9, 9, 0)
    assert difference_line(found.comparison.bias).text.startswith("bias -3 points")
    told = comparison_json(found)
    assert told["differences"]["fail_recall"]["sentence"] == line.text
    json.dumps(told, allow_nan=False)


def test_a_pair_is_sharper_than_two_intervals(tmp_path: Path) -> None:
    said = ["pass"] * 200 + ["fail"] * 100
    before = [1.0] * 190 + [0.0] * 10 + [0.0] * 60 + [1.0] * 40
    after = [1.0] * 190 + [0.0] * 10 + [0.0] * 69 + [1.0] * 31
    found = compared(tmp_path, before, after, said)
    first, second = found.first.report.fail_recall, found.second.report.fail_recall
    assert second.lower < first.upper
    assert found.comparison.fail_recall.difference.lower > 0


def test_the_same_variant_twice_differs_by_nothing(tmp_path: Path) -> None:
    said = ["pass"] * 60 + ["fail"] * 30
    score = [1.0] * 50 + [0.0] * 10 + [0.0] * 20 + [1.0] * 10
    found = compared(tmp_path, score, score, said)
    for difference in found.comparison.differences:
        assert difference.difference.value == 0.0
        assert not difference.is_clear
        assert difference_line(difference).text.endswith("may be none")
    assert found.changed == ()


def test_only_records_that_both_have_a_verdict_on_and_labels_a_side_count(tmp_path: Path) -> None:
    said = ["pass"] * 60 + ["fail"] * 40
    before: list[float | None] = [1.0] * 60 + [0.0] * 40
    after = list(before)
    before[0], after[1], after[99] = None, None, None
    found = compared(tmp_path, before, after, said)
    assert (found.comparison.n, found.comparison.fails) == (97, 39)


def test_what_changed_sides_is_mended_or_broken(tmp_path: Path) -> None:
    said = ["pass"] * 20 + ["fail"] * 20
    before = [1.0] * 20 + [1.0] * 20
    after = [1.0] * 18 + [0.0] * 2 + [0.0] * 5 + [1.0] * 15
    found = compared(tmp_path, before, after, said)
    assert (found.mended, found.broken) == (5, 2)
    assert [pair[1].disagrees for pair in found.changed] == [True] * 2 + [False] * 5


def test_nothing_in_common_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(NoVerdictsError, match="nothing can be compared"):
        compared(tmp_path, [1.0, None], [None, 0.0], ["pass", "fail"])
    first = measured(tmp_path, 10, 2, 2, 10)
    with pytest.raises(ValueError, match="same labels"):
        compare_calibrated(first, measured(tmp_path, 10, 2, 2, 11))


def test_clusters_are_drawn_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    rows, before, after = [], [], []
    for c in range(30):
        better = rng.random() < 0.5
        for _ in range(10):
            rows.append({"label": "fail", "cluster": f"c{c}"})
            before.append(1.0)
            after.append(0.0 if better else 1.0)
    rows += [{"label": "pass", "cluster": f"p{n}"} for n in range(20)]
    made = labels(tmp_path, rows)
    alone = labels(tmp_path, [{"label": row["label"]} for row in rows])

    def width(label_set: LabelSet) -> float:
        both = (
            calibrate(label_set, binary(), outcomes=verdicts([*score, *[1.0] * 20]), **JUDGE)
            for score in (before, after)
        )
        found = compare_calibrated(*both).comparison.fail_recall.difference
        assert found.lower is not None
        assert found.upper is not None
        return found.upper - found.lower

    assert width(made) > 2 * width(alone)


# As JSON.


def odd_cases() -> list[tuple[list[dict[str, Any]], list[float | None]]]:
    one: list[dict[str, Any]] = [{"label": "pass"}]
    return [
        (one, [1.0]),
        (one * 2, [1.0, 0.0]),
        ([{"label": "fail"}] * 40, [0.5] * 40),
        ([{"label": "pass"}, {"label": "fail"}], [0.0, 0.0]),
        ([{"label": "pass"}, {"label": "fail"}] * 30, [1.0] * 60),
        ([{"label": "pass"}, {"label": "fail"}] * 30, [1.0, 0.0] * 30),
        ([{"label": "pass"}, {"label": "fail"}] * 30, [0.0, 1.0] * 30),
        ([{"label": ["pass", "fail"]}] * 40, [1.0, 0.0] * 20),
        ([{"label": "pass", "probability": 1e-9}] + [{"label": "fail", "probability": 1.0}] * 59, [1.0, 0.0] * 30),
        ([{"labels": {"a": "pass", "b": "fail"}}] * 60, [1.0, 0.0] * 30),
        ([{"label": "pass", "cluster": "one"}, {"label": "fail", "cluster": "one"}] * 30, [1.0, 0.2] * 30),
        ([{"label": "pass", "stratum": "a"}] * 30 + [{"label": "fail", "stratum": "b"}] * 30, [1.0, 0.2] * 30),
    ]


@pytest.mark.parametrize(("rows", "score"), odd_cases())
@pytest.mark.parametrize("selection", ["probability", "curated"])
def test_no_odd_labels_make_nan_or_a_traceback(
    tmp_path: Path, rows: list[dict[str, Any]], score: list[float | None], selection: str
) -> None:
    given = (
        rows if selection == "probability" else [{k: v for k, v in row.items() if k != "probability"} for row in rows]
    )
    if selection == "curated":
        given = [row | {"probability": 1.0} for row in given]
    found = calibrate(labels(tmp_path, given, selection=selection), binary(), outcomes=verdicts(score), **JUDGE)
    told = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert told["level"] in VERDICTS
    assert Calibration.from_json(found.calibration.to_json()) == found.calibration
    for row in statistics_table(found):
        assert "nan" not in f"{row.value} {row.interval}".casefold()
    for line in first_screen(found):
        assert "nan" not in str(line).casefold()
    both = compare_calibrated(found, found) if any(row.is_decided for row in found.rows) else None
    if both is not None:
        json.dumps(comparison_json(both), allow_nan=False)


def test_undefined_statistics_say_why(tmp_path: Path) -> None:
    found = measured(tmp_path, 10, 2, 2, 5)
    told = as_json(found)["statistics"]
    assert told["kappa"]["value"] is None
    assert "it takes 30, and 10 of each" in told["kappa"]["reason"]
    shown = {row.name: row for row in statistics_table(found)}
    assert shown["kappa"].value == "–"
    assert shown["kappa"].note == told["kappa"]["reason"]


def test_the_table_is_in_the_order_to_read_it(tmp_path: Path) -> None:
    names = [row.name for row in statistics_table(measured(tmp_path, 160, 10, 10, 40))]
    order = [
        "fail recall",
        "fail precision",
        "kappa",
        "bias of pass ratio",
        "AUC",
        "Spearman",
        "Brier score",
        "accuracy",
    ]
    assert [name for name in names if name in order] == order


@pytest.mark.parametrize("make", [binary, ordinal])
def test_values_of_every_number_lie_in_their_intervals(tmp_path: Path, make: Callable[..., Rubric]) -> None:
    found = measured(tmp_path, 160, 10, 10, 40, rubric=make())
    for name, statistic in as_json(found)["statistics"].items():
        if isinstance(statistic, dict) and statistic.get("lower") is not None:
            assert statistic["lower"] <= statistic["value"] <= statistic["upper"], name
            assert math.isfinite(statistic["value"])
