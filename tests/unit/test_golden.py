"""A golden set: what its outcomes come to, and what a release gate makes of that."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from assay.errors import FileError
from assay.golden import read_golden, summarise
from assay.metrics import golden_text
from assay.records import Failure, NotApplicable, Sampling, Score
from assay.windows import wilson
from judging import a_record, binary

GOOD = Score(value=0.9, passed=True)
BAD = Score(value=0.2, passed=False, explanation="another subject")
FAILED = Failure(kind="timeout", message="no answer")


def summed(*outcomes, threshold=0.8, max_failed=0, **fields):
    records = [a_record(record_id=f"r-{n}", **fields) for n in range(len(outcomes))]
    found = {record.record_id: o for record, o in zip(records, outcomes, strict=True) if o is not None}
    return summarise(records, binary(), "lexical", found, threshold=threshold, max_failed=max_failed)


class TestVerdict:
    @pytest.mark.parametrize(
        ("outcomes", "verdict"),
        [
            ([GOOD] * 8 + [BAD] * 2, "pass"),
            ([GOOD] * 7 + [BAD] * 3, "fail"),
            ([GOOD] * 9 + [FAILED], "unknown"),
            ([GOOD] * 9 + [None], "unknown"),
            ([NotApplicable(reason="missing_contexts")] * 3, "unknown"),
        ],
    )
    def test_by_the_share_that_passes(self, outcomes, verdict):
        assert summed(*outcomes).verdict == verdict

    @pytest.mark.parametrize("probability", [0.03, 0.07, 0.3, 1.0])
    def test_the_very_threshold_passes_whatever_the_weights_round_to(self, probability):
        outcomes = [GOOD] * 95 + [BAD] * 5
        sampling = Sampling(probability=probability)
        assert summed(*outcomes, threshold=0.95, sampling=sampling).verdict == "pass"
        assert summed(*outcomes, threshold=0.951, sampling=sampling).verdict == "fail"

    def test_failures_that_are_put_up_with_are_no_passes(self):
        result = summed(*[GOOD] * 3, BAD, FAILED, max_failed=1)
        assert result.verdict == "fail"
        assert result.pass_ratio.value == 0.75

    def test_without_a_threshold_nothing_is_asked(self):
        assert summed(BAD, threshold=None).verdict == "no_threshold"


def test_counts_estimates_and_the_worst_first():
    result = summed(GOOD, BAD, GOOD, Score(value=0.1, passed=False), FAILED, NotApplicable(reason="no_claims"), None)
    assert result.scored == 4
    assert (result.failed, result.not_applicable, result.not_judged) == ({"timeout": 1}, {"no_claims": 1}, 1)
    # Of 4 records, whose spread is estimated by n - 1.
    lower, upper = wilson(0.5, 3)
    assert (result.pass_ratio.lower, result.pass_ratio.upper) == pytest.approx((lower, upper))
    assert result.score_mean.value == pytest.approx(0.525)
    assert [record.record_id for record, _ in result.worst] == ["r-3", "r-1", "r-4"]
    shown = result.as_json(worst=2)
    assert [entry["record_id"] for entry in shown["worst"]] == ["r-3", "r-1"]
    assert shown["worst"][1]["explanation"] == "another subject"


def test_records_weigh_what_they_stand_for():
    records = [a_record(record_id="a", sampling=Sampling(probability=0.1)), a_record(record_id="b")]
    result = summarise(records, binary(), "j", {"a": GOOD, "b": BAD}, threshold=0.9)
    assert result.pass_ratio.value == pytest.approx(10 / 11)
    assert result.verdict == "pass"


def test_its_series_have_the_names_and_labels_of_production():
    records = [a_record(record_id=f"{app}-{n}", app=app) for app in ("shop", "bank") for n in range(4)]
    outcomes = {r.record_id: GOOD if r.app == "shop" or r.record_id.endswith("0") else BAD for r in records}
    text = golden_text([summarise(records, binary(), "lexical", outcomes, threshold=0.5)]).decode()
    samples = {
        (sample.name, sample.labels["app"]): sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["assay_pass_ratio", "shop"].value == 1
    assert samples["assay_pass_ratio", "bank"].value == 0.25
    assert samples["assay_window_records", "bank"].value == 4
    lower = samples["assay_pass_ratio_ci_lower", "bank"].value
    assert lower == pytest.approx(wilson(0.25, 3)[0])
    labels = samples["assay_score_mean", "shop"].labels
    assert labels == {
        "app": "shop",
        "rubric": binary().name,
        "rubric_version": binary().revision,
        "judge": "lexical",
        "window": "golden",
    }
    assert not any(math.isnan(sample.value) for sample in samples.values())


def test_nothing_scored_makes_no_ratio():
    text = golden_text([summed(FAILED)]).decode()
    assert "assay_pass_ratio" not in text


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (b"", None, "has no record"),
        (b'{"input": "a", "output": "b"}\nnot json\n', 2, "JSON"),
        (b'{"record_id": "x", "output": "b"}\n{"record_id": "x", "output": "c"}\n', 2, "comes twice"),
    ],
)
def test_a_mistake_in_the_set_is_told_by_its_line(tmp_path, text, line, message):
    with pytest.raises(FileError, match=message) as error:
        read_golden(tmp_path / "golden.jsonl", text.splitlines(keepends=True))
    assert error.value.line == line
