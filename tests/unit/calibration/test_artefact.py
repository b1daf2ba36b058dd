"""The frozen calibration: the same content is the same id, and what was changed is refused."""

from __future__ import annotations

import dataclasses
import json
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.calibration import (
    CALIBRATION_VERSION,
    Calibration,
    JudgingCost,
    agreement,
    choose_threshold,
    correct,
    fit_score_map,
)
from assay.calibration.statistic import Statistic
from assay.errors import CalibrationError, ConfigError
from assay.windows import Sums

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def a_calibration(*, n: int = 120, seed: int = 0, weighted: bool = False, **fields: Any) -> Calibration:
    """Of synthetic labels: a judge that finds most of the fails."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.7).astype(float)
    y[:2] = 0.0, 1.0
    score = np.clip(0.2 + 0.5 * y + rng.normal(0, 0.2, n), 0, 1)
    weight = rng.uniform(1, 5, n) if weighted else None
    strata = [("web", "api")[i % 2] for i in range(n)]
    report = agreement(y, score >= 0.5, y_score=score, sample_weight=weight, strata=strata, n_resamples=200)
    purposes: tuple[Any, ...] = ("gauge", "triage", "block")
    known: dict[str, Any] = {
        "rubric": "faithfulness",
        "rubric_version": "1-aaaaaaaa",
        "rubric_hash": "a" * 64,
        "judge": "lexical",
        "judge_fingerprint": "b" * 64,
        "created_at": NOON,
        "labelled_from": NOON - timedelta(days=3),
        "labelled_to": None,
        "labels_sha256": "c" * 64,
        "annotator_kind": "author",
        "annotators": 1,
        "synthetic": True,
        "selection": "probability",
        "gold": "majority",
        "n": n,
        "left_out": {"failed:timeout": 2},
        "rates": report.rates,
        "score_map": fit_score_map(y, score, sample_weight=weight),
        "thresholds": {purpose: choose_threshold(y, score, purpose=purpose) for purpose in purposes},
        "level": report.level,
        "reasons": report.reasons,
        "min_fail_recall": 0.5,
        "kappa": report.kappa,
        "fail_recall": report.fail_recall,
        "fail_precision": report.fail_precision,
        "auc": report.auc,
        "level_half_width": report.level_half_width,
        "cost": JudgingCost(n=n, prompt_tokens=812.5, cost_usd=0.0003),
    }
    return Calibration(**(known | fields))


MADE = a_calibration()


def resaved(**changes: Any) -> str:
    """The file with some of its fields changed by hand, its id left as it was."""
    return json.dumps(json.loads(MADE.to_json()) | changes)


# Identity.


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_json_gives_back_the_same_calibration(seed: int, weighted: bool) -> None:
    made = a_calibration(seed=seed, weighted=weighted)
    again = Calibration.from_json(made.to_json())
    assert again == made
    assert again.calibration_id == made.calibration_id
    assert again.to_json() == made.to_json()
    assert Calibration.from_json(made.to_json().encode()) == made


def test_what_is_read_back_corrects_a_window_as_before() -> None:
    window = sum((Sums.of(weight=1.0, value=0.8, passed=i % 10 != 0) for i in range(500)), Sums())
    again = Calibration.from_json(MADE.to_json())
    for fresh in (True, False):
        assert correct(window, again.rates, fresh=fresh) == correct(window, MADE.rates, fresh=fresh)
    assert again.score_map is not None
    assert MADE.score_map is not None
    scores = np.linspace(0, 1, 11)
    assert again.score_map.predict(scores).tolist() == MADE.score_map.predict(scores).tolist()


def test_the_same_content_is_one_calibration_whenever_it_was_made() -> None:
    later = dataclasses.replace(MADE, created_at=NOON + timedelta(days=40))
    assert later.calibration_id == MADE.calibration_id
    assert later.to_json() != MADE.to_json()


def test_the_id_does_not_hang_on_the_order_of_mappings_or_the_time_zone() -> None:
    other = dataclasses.replace(
        MADE,
        thresholds=dict(reversed(list(MADE.thresholds.items()))),
        labelled_from=MADE.labelled_from.astimezone(timezone(timedelta(hours=9))) if MADE.labelled_from else None,
    )
    assert other.calibration_id == MADE.calibration_id


CHANGES: dict[str, Any] = {
    "rubric": "relevance",
    "rubric_version": "2-aaaaaaaa",
    "rubric_hash": "d" * 64,
    "judge": "rules",
    "judge_fingerprint": "e" * 64,
    "labelled_from": NOON,
    "labelled_to": NOON,
    "recorded_from": NOON,
    "recorded_to": NOON,
    "apps": ("shop", "web"),
    "labels_sha256": "f" * 64,
    "annotator_kind": "human",
    "annotators": 2,
    "synthetic": False,
    "selection": "curated",
    "gold": "mean",
    "left_out": {},
    "level": "unusable",
    "reasons": ("because",),
    "min_fail_recall": 0.6,
    "score_map": None,
    "thresholds": {},
    "kappa": Statistic.undefined("nobody knows"),
    "fail_recall": Statistic.undefined("nobody knows"),
    "fail_precision": Statistic.undefined("nobody knows"),
    "auc": Statistic.undefined("nobody knows"),
    "level_half_width": None,
    "cost": JudgingCost(n=1),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_field_but_the_time_is_part_of_the_id(name: str) -> None:
    changed = dataclasses.replace(MADE, **{name: CHANGES[name]})
    assert changed.calibration_id != MADE.calibration_id
    assert Calibration.from_json(changed.to_json()) == changed


def test_no_field_is_left_out_of_the_test_above() -> None:
    named = {field.name for field in dataclasses.fields(Calibration)}
    assert named - set(CHANGES) == {"created_at", "n", "rates"}
    more = a_calibration(n=121)
    assert more.calibration_id != MADE.calibration_id


# What is refused.


def changed_somewhere(value: Any) -> Any:
    """Every way of changing one number or text somewhere in a JSON value."""
    if isinstance(value, dict):
        for key, member in value.items():
            for changed in changed_somewhere(member):
                yield {**value, key: changed}
    elif isinstance(value, list):
        for at, member in enumerate(value):
            for changed in changed_somewhere(member):
                yield [*value[:at], changed, *value[at + 1 :]]
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield value + 1
    elif isinstance(value, str):
        yield value + "x"


def test_a_body_that_was_changed_anywhere_is_refused() -> None:
    written = json.loads(MADE.to_json())
    refused = 0
    for changed in changed_somewhere(written):
        if changed["created_at"] != written["created_at"]:
            continue
        with pytest.raises(CalibrationError):
            Calibration.from_json(json.dumps(changed))
        refused += 1
    assert refused > 100


def test_a_changed_body_says_that_it_was_changed() -> None:
    with pytest.raises(CalibrationError, match=r"was changed since it was made.*calibrate again"):
        Calibration.from_json(resaved(level="human_like"))
    with pytest.raises(CalibrationError, match="was changed since"):
        Calibration.from_json(resaved(calibration_id=None))
    added = resaved(extra=1)
    with pytest.raises(CalibrationError, match="was changed since"):
        Calibration.from_json(added)


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.5])
def test_another_version_is_refused_by_its_number(version: object) -> None:
    with pytest.raises(CalibrationError, match=f"version {version!r}.*knows {CALIBRATION_VERSION}"):
        Calibration.from_json(resaved(calibration_version=version))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "no `calibration_version`"),
        ("{}", "no `calibration_version`"),
        ('"calibration"', "no `calibration_version`"),
        ('{"calibration_version": 1, "n": NaN}', "NaN is no number"),
        ("[" * 100_000, "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
    ],
)
def test_what_is_no_calibration_is_refused_in_a_sentence(text: str | bytes, said: str) -> None:
    with pytest.raises(CalibrationError, match=said) as caught:
        Calibration.from_json(text)
    assert isinstance(caught.value, ConfigError)
    assert "\n" not in str(caught.value)


def forged(**changes: Any) -> str:
    """A body that its id fits, as somebody would make who knows how ids are made."""
    from assay.calibration import artefact

    body = {
        name: value for name, value in json.loads(MADE.to_json()).items() if name != "calibration_version"
    } | changes
    for name in [name for name, value in changes.items() if value is ...]:
        del body[name]
    return json.dumps({"calibration_version": 1} | body | {"calibration_id": artefact._identity(body)})


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 7},
        {"n": 0},
        {"level": "perfect"},
        {"rubric_hash": "short"},
        {"created_at": "2026-01-31T12:00:00"},
        {"created_at": "yesterday"},
        {"created_at": 5},
        {"kappa": {"value": None, "reason": None}},
        {"kappa": 0.5},
        {"rates": {}},
        {"rates": None},
        {"thresholds": []},
        {"cost": None},
        {"unknown_field": 1},
        {"rubric": ...},
    ],
)
def test_a_body_whose_id_fits_but_that_cannot_be_a_calibration_is_refused(changes: dict[str, Any]) -> None:
    assert Calibration.from_json(forged()) == MADE
    with pytest.raises(CalibrationError, match=r"is no calibration: .+"):
        Calibration.from_json(forged(**changes))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=50, deadline=None)
@given(JSON)
def test_any_json_value_is_a_calibration_or_a_calibration_error(value: object) -> None:
    for text in (json.dumps(value), json.dumps({"calibration_version": 1, "calibration_id": "x", "rates": value})):
        with pytest.raises(CalibrationError):
            Calibration.from_json(text)


@pytest.mark.parametrize(
    "wrong",
    [{"n": 7}, {"level": "perfect"}, {"rubric_hash": "A" * 64}, {"created_at": NOON.replace(tzinfo=None)}],
)
def test_impossible_calibrations_cannot_be_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(MADE, **wrong)


def test_texts_that_utf_8_cannot_carry_are_kept_all_the_same(tmp_path: Path) -> None:
    odd = dataclasses.replace(MADE, judge="a table's \ud800", reasons=("± 3 points",))
    assert Calibration.read(odd.save(tmp_path)) == odd
    assert "± 3 points" in dataclasses.replace(MADE, reasons=("± 3 points",)).to_json()


# Files.


def test_a_file_is_named_by_rubric_version_and_judge_and_read_back(tmp_path: Path) -> None:
    path = MADE.save(tmp_path / "deep" / "down")
    assert path.name == "faithfulness.aaaaaaaa.bbbbbbbb.json"
    assert Calibration.read(path) == MADE
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_says_the_same_is_not_written_again(tmp_path: Path) -> None:
    path = MADE.save(tmp_path)
    before = path.read_bytes()
    assert dataclasses.replace(MADE, created_at=NOON + timedelta(days=1)).save(tmp_path) == path
    assert path.read_bytes() == before
    changed = dataclasses.replace(MADE, gold="mean")
    changed.save(tmp_path)
    assert Calibration.read(path) == changed


def test_a_broken_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / MADE.file_name).write_text(resaved(level="calibrated"))
    assert Calibration.read(MADE.save(tmp_path)) == MADE


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"nowhere\.json: cannot be read: No such file"):
        Calibration.read(tmp_path / "nowhere.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(CalibrationError, match=r"broken\.json: is not JSON"):
        Calibration.read(broken)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CalibrationError, match="cannot be written"):
        MADE.save(file)


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    versions = [a_calibration(seed=seed, n=60) for seed in range(4)]
    threads = [threading.Thread(target=lambda v=version: [v.save(tmp_path) for _ in range(10)]) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = tmp_path.iterdir()
    assert Calibration.read(path) in versions


def test_the_file_holds_no_nan_and_reads_well(tmp_path: Path) -> None:
    text = MADE.to_json()
    body = json.loads(text, parse_constant=pytest.fail)
    assert list(body)[:3] == ["calibration_version", "calibration_id", "rubric"]
    assert text.startswith("{\n  ")
    assert text.endswith("}\n")
    assert body["created_at"] == "2026-01-31T12:00:00Z"
    assert body["level"] == MADE.level
