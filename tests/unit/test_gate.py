"""The gate: when a changed rubric or judge may score production, and what records owe meanwhile."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay._rubric_fields import GateLevel
from assay.calibration import LEVELS
from assay.errors import CalibrationError, SettingsError, StoreError
from assay.gate import (
    BRIDGE_AFTER,
    Gate,
    Line,
    Roster,
    Version,
    calibration_path,
    decide,
    pinned,
    read_calibrations,
)
from assay.judges import JudgeSettings, describe_judge
from assay.records import Score
from assay.rubrics import JudgeSpec, Rubric
from assay.store import RubricVersion, Store
from calibrations import FEW, GOOD, NOON, TOO_FEW, WEAK, a_calibration
from judging import checklist, ordinal
from stores import a_record as stored_record
from stores import an_evaluation, with_payloads

LEXICAL = JudgeSettings(engine="lexical")
RULES = JudgeSettings(engine="rules")
OPENAI = JudgeSettings(engine="openai", model="judge-a", base_url="http://localhost:11434/v1")


def old(**fields: object) -> Rubric:
    return ordinal(**({"version": "1", "gate": "calibrated"} | fields))  # type: ignore[arg-type]


def new(**fields: object) -> Rubric:
    return ordinal(
        **({"version": "2", "instructions": "Judge it by a better question.", "gate": "calibrated"} | fields)
    )  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path}/scores.db") as store:
        store.upgrade()
        yield store


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def started(store: Store, *rubrics: Rubric, settings: JudgeSettings = LEXICAL, **options: object) -> Gate:
    gate = Gate(store, rubrics, settings, **options)  # type: ignore[arg-type]
    gate.start()
    return gate


def calibrate(store: Store, rubric: Rubric, counts: tuple[int, ...] = GOOD, settings: JudgeSettings = LEXICAL) -> str:
    calibration = a_calibration(counts, version=Version.of(rubric, settings))
    store.save_calibration(calibration)
    return calibration.calibration_id


def active(gate: Gate) -> list[str | None]:
    return [None if line.active is None else line.active.revision for line in gate.roster.lines]


def states(store: Store) -> dict[str, str]:
    return {version.rubric_version: version.state for version in store.rubric_versions()}


def reasons(store: Store) -> dict[str, str]:
    return {version.rubric_version: version.reason for version in store.rubric_versions()}


# -- the decision


def test_the_levels_of_a_gate_are_those_of_a_calibration_in_the_same_order() -> None:
    asked = [level for level in get_args(GateLevel) if level != "none"]
    assert asked == [level for level in LEVELS if level in asked]
    assert "no_data" not in asked
    assert "unusable" not in asked


def decision(gate: str, counts: tuple[int, ...] | None, **options: object) -> tuple[bool, str]:
    version = Version.of(old(gate=gate), LEXICAL)
    calibration = None if counts is None else a_calibration(counts, version=version)
    made = decide(version, calibration, **options)  # type: ignore[arg-type]
    return made.opens, made.reason


@pytest.mark.parametrize(
    ("gate", "counts", "opens"),
    [
        ("none", None, True),
        ("none", WEAK, True),
        ("trend_only", None, False),
        ("trend_only", TOO_FEW, False),
        ("trend_only", WEAK, False),
        ("trend_only", FEW, True),
        ("trend_only", GOOD, True),
        ("calibrated", FEW, False),
        ("calibrated", GOOD, True),
        ("human_like", GOOD, False),
    ],
)
def test_a_gate_opens_for_the_level_it_asks_for_and_above(
    gate: str, counts: tuple[int, ...] | None, *, opens: bool
) -> None:
    assert decision(gate, counts)[0] is opens


def test_the_lower_bound_decides_and_not_the_point() -> None:
    # By its points it would do: Youden's J is 0.75, and 83 % of the fails are found.
    opens, reason = decision("calibrated", FEW)
    assert not opens
    assert reason == (
        "its calibration is trend_only, and its gate asks for calibrated: "
        "36 labels with 12 fails: a level takes 100 with 20"
    )


def test_a_stale_calibration_opens_nothing() -> None:
    assert decision("calibrated", GOOD, stale="+6 points, outside ±3 points") == (
        False,
        "its calibration is stale: +6 points, outside ±3 points",
    )


def test_a_gate_takes_nothing_away_that_is_in_use() -> None:
    assert decision("calibrated", WEAK, in_use=True)[0]
    assert decision("calibrated", None, in_use=True) == (
        True,
        "it was in use already; there is no calibration of this question by this judge",
    )


def test_a_calibration_of_another_question_or_judge_opens_nothing() -> None:
    version = Version.of(old(), LEXICAL)
    for other in (Version.of(new(), LEXICAL), Version.of(old(), RULES)):
        made = decide(version, a_calibration(GOOD, version=other))
        assert (made.opens, made.reason) == (False, "there is no calibration of this question by this judge")


# -- what records owe


A, B, C = old(), new(), checklist()


def nothing(_: Rubric) -> bool:
    return False


def test_without_gates_every_record_owes_every_rubric() -> None:
    assert Roster.of([A, C]).owed("r", nothing) == [A, C]
    assert Roster.of([A, C]).owed("r", lambda _: True) == [A, C]


@pytest.mark.parametrize(
    ("line", "stored", "owed"),
    [
        (Line(own=B, previous=A, is_open=False), (), [A]),
        (Line(own=B, previous=None, is_open=False), (), []),
        (Line(own=B, previous=A, is_open=True), (), [B]),
        # Scored before the switch: a second outcome would count the record twice.
        (Line(own=B, previous=A, is_open=True), (A,), [A]),
        # Both are there, from a bridge that is no more.
        (Line(own=B, previous=A, is_open=True), (A, B), [B]),
        (Line(own=B, previous=A, is_open=False), (A, B), [A]),
        # The bridge scored it by the new one only so far.
        (Line(own=B, previous=A, is_open=False), (B,), [A]),
    ],
)
def test_a_record_owes_one_version(line: Line, stored: tuple[Rubric, ...], owed: list[Rubric]) -> None:
    assert line.owed(on_bridge=False, has=lambda rubric: rubric in stored) == owed
    assert line.owed(on_bridge=True, has=lambda rubric: rubric in stored) == owed, "no bridge stands here"


@pytest.mark.parametrize("stored", [(), (A,), (B,), (A, B)])
def test_on_a_bridge_it_owes_both_the_active_one_first(stored: tuple[Rubric, ...]) -> None:
    for is_open, owed in ((False, [A, B]), (True, [B, A])):
        line = Line(own=B, previous=A, is_open=is_open, bridged=True)
        assert line.owed(on_bridge=True, has=lambda rubric: rubric in stored) == owed


def test_a_first_version_that_waits_is_scored_on_the_bridge_alone() -> None:
    line = Line(own=B, is_open=False, bridged=True)
    assert line.owed(on_bridge=True, has=nothing) == [B]
    assert line.owed(on_bridge=False, has=nothing) == []


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_bridge_carries_some_of_the_records_of_a_larger_one(a: float, b: float) -> None:
    few, many = sorted((a, b))
    line = Line(own=B, previous=A, is_open=False, bridged=True)
    for index in range(50):
        on_few, on_many = (
            len(Roster(lines=(line,), bridge_share=share).owed(f"r{index}", nothing)) == 2 for share in (few, many)
        )
        assert on_many or not on_few


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_bridge_carries_its_share(share: float) -> None:
    roster = Roster(lines=(Line(own=B, previous=A, is_open=False, bridged=True),), bridge_share=share)
    both = sum(len(roster.owed(f"record-{index}", nothing)) == 2 for index in range(5000))
    assert abs(both / 5000 - share) < 0.025
    assert share not in (0.0, 1.0) or both == 5000 * share


# -- a gate over a store


def test_a_changed_rubric_waits_and_the_old_one_goes_on(store: Store) -> None:
    calibrate(store, old())
    assert active(started(store, old())) == [old().revision]
    gate = started(store, new())
    assert active(gate) == [old().revision]
    assert states(store) == {old().revision: "active", new().revision: "waiting"}
    assert reasons(store)[new().revision] == "there is no calibration of this question by this judge"
    assert [rubric.revision for rubric in gate.rubrics] == [new().revision, old().revision]


def test_it_goes_on_as_soon_as_its_calibration_is_there(store: Store) -> None:
    calibrate(store, old())
    started(store, old())
    gate = started(store, new())
    before = gate.roster
    gate.refresh()
    assert active(gate) == [old().revision]
    calibrate(store, new(), FEW)
    gate.refresh()
    assert active(gate) == [old().revision]
    assert "its gate asks for calibrated" in reasons(store)[new().revision]
    calibrate(store, new(), GOOD)
    gate.refresh()
    assert active(gate) == [new().revision]
    assert states(store) == {old().revision: "retired", new().revision: "active"}
    assert active(started(store, new())) == [new().revision]
    assert before.lines[0].is_open is False, "a batch that was planned keeps its roster"


def test_a_changed_judge_waits_too_and_the_old_judge_goes_on(store: Store) -> None:
    calibrate(store, old(), settings=LEXICAL)
    started(store, old(), settings=LEXICAL)
    gate = started(store, old(), settings=RULES)
    (line,) = gate.roster.lines
    assert line.active is not None
    assert describe_judge(line.active.judge, RULES) == describe_judge(None, LEXICAL)
    assert line.active.hash == line.own.hash == old().hash
    calibrate(store, old(), settings=RULES)
    gate.refresh()
    assert gate.roster.lines[0].active is gate.roster.lines[0].own
    assert {(v.judge, v.state) for v in store.rubric_versions()} == {("lexical", "retired"), ("rules", "active")}


def test_the_first_version_waits_with_nothing_before_it(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        gate = started(store, old(), checklist())
    assert active(gate) == [None, checklist().revision]
    assert [record.message for record in caplog.records] == ["nothing is scored with this rubric"]
    assert gate.roster.owed("r", nothing) == [checklist()]


def test_what_was_scored_before_there_were_gates_goes_on(store: Store) -> None:
    # A rubric that production has been scored with is given a gate, and is otherwise unchanged.
    version = Version.of(old(), LEXICAL)
    record = stored_record()
    evaluation = an_evaluation(
        record, Score(value=1.0, passed=True), rubric_hash=version.key[0], judge_fingerprint=version.key[1]
    )
    store.commit(with_payloads([record]), [evaluation])
    assert active(started(store, old())) == [old().revision]
    assert reasons(store)[old().revision].startswith("it was in use already")
    # The next change is one.
    assert active(started(store, new())) == [old().revision]


def test_a_version_in_use_stays_so_when_its_calibration_gets_worse(store: Store) -> None:
    calibrate(store, old())
    started(store, old())
    store.mark_calibration_stale(calibrate(store, old(), WEAK), "an audit")
    assert active(started(store, old())) == [old().revision]
    assert states(store) == {old().revision: "active"}


def test_a_stale_calibration_does_not_open_a_gate(store: Store) -> None:
    started(store, old(gate="none"))
    store.mark_calibration_stale(calibrate(store, new()), "+6 points")
    gate = started(store, new())
    gate.refresh()
    assert active(gate) == [old().revision]
    assert reasons(store)[new().revision] == "its calibration is stale: +6 points"


def test_back_to_the_old_file_is_back_to_the_old_version(store: Store) -> None:
    calibrate(store, old())
    started(store, old())
    started(store, new())
    assert active(started(store, old())) == [old().revision]
    assert states(store) == {old().revision: "active", new().revision: "retired"}


def test_a_retired_version_passes_its_gate_again_or_waits(store: Store) -> None:
    started(store, old(gate="none"))
    calibrate(store, new())
    started(store, new())
    gate = started(store, old())
    assert active(gate) == [new().revision], "it never had a calibration, and is a change now"
    calibrate(store, old())
    gate.refresh()
    assert active(gate) == [old().revision]


def test_without_a_gate_a_change_is_active_at_once(store: Store) -> None:
    started(store, old(gate="none"))
    gate = started(store, new(gate="none"))
    assert active(gate) == [new().revision]
    assert [rubric.revision for rubric in gate.rubrics] == [new().revision], "nobody needs the old one"
    assert states(store) == {old().revision: "retired", new().revision: "active"}


def test_the_last_active_version_goes_on_and_none_that_only_waited(store: Store) -> None:
    started(store, old(gate="none"))
    third = new(version="3", instructions="Judge it by a third question.")
    started(store, new())
    assert active(started(store, third)) == [old().revision]
    assert states(store) == {old().revision: "active", new().revision: "retired", third.revision: "waiting"}


def test_while_nothing_waits_a_refresh_reads_nothing(store: Store) -> None:
    calibrate(store, old())
    gate = started(store, old(), checklist())
    store.close()
    Path(store._database.name).unlink()
    gate.refresh()
    assert active(gate) == [old().revision, checklist().revision]


def test_a_store_that_is_away_changes_nothing(store: Store, tmp_path: Path) -> None:
    started(store, old(gate="none"))
    gate = started(store, new())
    calibrate(store, new())
    store.close()
    away = tmp_path / "away.db"
    Path(store._database.name).rename(away)
    with pytest.raises(StoreError):
        gate.refresh()
    assert active(gate) == [old().revision]
    store.close()
    Path(store._database.name).unlink(missing_ok=True)
    away.rename(store._database.name)
    gate.refresh()
    assert active(gate) == [new().revision]


def test_a_calibration_that_cannot_be_read_opens_nothing(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    started(store, old(gate="none"))
    version = Version.of(new(), LEXICAL)
    whole = a_calibration(version=version)
    changed = json.loads(whole.to_json()) | {"level": "human_like"}

    class Forged:
        def __getattr__(self, name: str) -> object:
            return getattr(whole, name)

        def to_json(self) -> str:
            return json.dumps(changed)

    store.save_calibration(Forged())  # type: ignore[arg-type]
    gate = started(store, new())
    gate.refresh()
    assert active(gate) == [old().revision]
    assert [r.message for r in caplog.records if "cannot be used" in r.message] == [
        "a stored calibration cannot be used: the calibration was changed since it was made: its id does not fit it; "
        "calibrate again"
    ]


# -- the version before


def test_a_version_before_that_would_be_another_question_now_is_not_asked(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    before = started(store, old(gate="none")).roster.lines[0].own
    (stored,) = store.rubric_versions()
    # As if another version of assay had asked it, with other words around it.
    store.place_rubric(replace(stored, rubric_hash="0" * 64, rubric_version="1-00000000"))
    gate = started(store, new())
    assert active(gate) == [None]
    said = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert "the version before cannot be asked any more" in said
    assert "nothing is scored with this rubric" in said
    assert before.revision == old().revision


@pytest.mark.parametrize(
    "body", ["{}", '{"name": "relevance"}', "[]", '{"name": "relevance", "scale": {"type": "binary"}}']
)
def test_a_body_that_is_no_rubric_is_not_asked(store: Store, body: str) -> None:
    version = Version.of(old(), LEXICAL)
    store.place_rubric(
        RubricVersion(
            rubric="relevance",
            rubric_version=old().revision,
            rubric_hash=version.key[0],
            judge="lexical",
            judge_fingerprint=version.key[1],
            body=body,
            state="active",
            reason="because",
        )
    )
    assert active(started(store, new())) == [None]


def test_a_judge_without_its_key_is_not_asked(store: Store) -> None:
    with_key = JudgeSettings(engine="openai", model="judge-a", api_key="k")
    started(store, old(gate="none"), settings=with_key)
    assert active(started(store, new(), settings=LEXICAL)) == [None]
    assert active(started(store, new(), settings=with_key)) == [old().revision]


def test_an_openai_judge_is_pinned_whatever_the_settings_become(store: Store) -> None:
    started(store, old(gate="none"), settings=OPENAI)
    later = replace(OPENAI, model="judge-b", temperature=0.7, base_url="http://other:1234/v1", max_tokens=99)
    (line,) = started(store, new(), settings=later).roster.lines
    assert line.previous is not None
    assert describe_judge(line.previous.judge, later) == describe_judge(None, OPENAI)
    assert line.previous.judge == JudgeSpec(
        engine="openai", model="judge-a", base_url="http://localhost:11434/v1", temperature=0.0, max_tokens=4096
    )


def test_a_password_in_the_base_url_is_not_stored(store: Store) -> None:
    settings = replace(OPENAI, base_url="http://me:secret@localhost:11434/v1")
    started(store, old(), settings=settings)
    assert "secret" not in store.rubric_versions()[0].body
    assert pinned(old(), settings).judge is not None


def test_a_judge_that_is_not_configured_is_said_at_once(store: Store) -> None:
    with pytest.raises(SettingsError, match="ASSAY_JUDGE_MODEL"):
        Gate(store, [old()], replace(OPENAI, model=None))


# -- bridges


def test_a_bridge_stands_while_a_version_waits_and_for_a_day_after(store: Store) -> None:
    # The store notes when a version became active by the real clock.
    clock = Clock()
    clock.now = datetime.now(NOON.tzinfo)
    started(store, old(gate="none"))
    gate = started(store, new(), bridge_share=1.0, clock=clock)
    assert [r.version for r in gate.roster.owed("r", nothing)] == ["1", "2"]
    calibrate(store, new())
    gate.refresh()
    assert [r.version for r in gate.roster.owed("r", nothing)] == ["2", "1"]
    clock.now += BRIDGE_AFTER - timedelta(minutes=5)
    gate.refresh()
    assert [r.version for r in gate.roster.owed("r", nothing)] == ["2", "1"]
    assert [r.version for r in started(store, new(), bridge_share=1.0, clock=clock).roster.owed("r", nothing)] == [
        "2",
        "1",
    ]
    clock.now += timedelta(minutes=10)
    gate.refresh()
    assert [r.version for r in gate.roster.owed("r", nothing)] == ["2"]
    assert [r.version for r in started(store, new(), bridge_share=1.0, clock=clock).roster.owed("r", nothing)] == ["2"]


def test_a_change_without_a_gate_has_its_bridge_too(store: Store) -> None:
    started(store, old(gate="none"))
    gate = started(store, new(gate="none"), bridge_share=1.0)
    assert [r.version for r in gate.roster.owed("r", nothing)] == ["2", "1"]


def test_the_very_first_version_has_no_bridge(store: Store) -> None:
    assert started(store, old(gate="none"), bridge_share=1.0).roster.owed("r", nothing) == [old(gate="none")]


# -- calibration files


def test_the_file_that_comes_with_a_rubric_opens_its_gate(store: Store, tmp_path: Path) -> None:
    started(store, old(gate="none"))
    (tmp_path / "calibration").mkdir()
    rubric = new(calibration="calibration", path=tmp_path / "relevance.yaml")
    assert active(started(store, rubric)) == [old().revision]
    for counts, judge in ((GOOD, RULES), (GOOD, LEXICAL)):
        a_calibration(counts, version=Version.of(rubric, judge)).save(tmp_path / "calibration")
    assert active(started(store, rubric)) == [rubric.revision]
    assert len(store.calibrations()) == 1, "that of another judge stays where it is"


def test_a_file_that_is_in_the_store_already_does_not_become_the_latest_again(store: Store, tmp_path: Path) -> None:
    rubric = old(calibration="good.json", path=tmp_path / "relevance.yaml")
    good = a_calibration(GOOD, version=Version.of(rubric, LEXICAL))
    good.save(tmp_path).rename(tmp_path / "good.json")
    started(store, rubric)
    calibrate(store, rubric, FEW)
    started(store, rubric)
    (latest,) = store.calibrations()
    assert latest.calibration_id != good.calibration_id


def test_a_file_that_is_none_does_not_stop_a_worker(store: Store, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    assert active(started(store, old(gate="none", calibration="bad.json", path=tmp_path / "r.yaml"))) == [
        old().revision
    ]
    with pytest.raises(CalibrationError, match=r"bad\.json: is not JSON"):
        read_calibrations(tmp_path)


def test_where_a_calibration_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rubrics").mkdir()
    rubric = old(calibration="c.json", path=tmp_path / "rubrics" / "relevance.yaml")
    assert calibration_path(rubric) is None
    (tmp_path / "c.json").touch()
    assert calibration_path(rubric) == Path("c.json")
    (tmp_path / "rubrics" / "c.json").touch()
    assert calibration_path(rubric) == tmp_path / "rubrics" / "c.json"
    assert calibration_path(old()) is None
