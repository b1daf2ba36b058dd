"""The canary: when it runs, what it asks, and what it makes of what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.canary import (
    LEAST_ITEMS,
    CanaryPolicy,
    active_versions,
    canary_files,
    check_canary,
    due,
    instrument_of,
    run_canary,
    run_due,
)
from assay.errors import SettingsError
from assay.gate import Version
from assay.judges import JudgeSettings
from assay.judging import Tries
from assay.store import CanaryRun, ChangeEvent, ChangeKind, InstrumentName, RubricVersion, Store
from assay.testing import Ask, FakeJudgeServer
from judging import binary, ordinal

RUBRIC = binary("relevance", ask="alone")
OWN = InstrumentName("relevance", "1-aaaaaaaa", "a" * 64, "openai:fake", "1" * 64)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path}/scores.db") as store:
        store.upgrade()
        yield store


def label_file(path: Path, n: int = 40, *, rubric: str = "relevance", head: bool = True) -> Path:
    """Synthetic records, every fourth of which its author calls a fail."""
    lines: list[dict[str, Any]] = []
    if head:
        lines.append({"label_file": 1, "rubric": rubric, "annotators": "author", "synthetic": True})
    for index in range(n):
        record = {"record_id": f"c{index}", "timestamp": "2026-01-15T12:00:00Z", "input": "What is it?"}
        record["output"] = f"Answer {index}."
        lines.append({"record": record, "label": "fail" if index % 4 == 0 else "pass"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Judge:
    """A verdict function of a judge server: fails every fourth answer, and a share of the others."""

    def __init__(self, harsher: float = 0.0, flips: float = 0.0, seed: int = 0) -> None:
        self.harsher, self.flips = harsher, flips
        self._rng = np.random.default_rng(seed)
        self._dice: dict[int, float] = {}

    def __call__(self, ask: Ask) -> dict[str, str]:
        number = int(ask.text.split("Answer ")[1].split(".")[0])
        dice = self._dice.setdefault(number, float(np.random.default_rng(number).random()))
        good = number % 4 != 0 and dice >= self.harsher
        if self._rng.random() < self.flips:
            good = not good
        return {"explanation": "synthetic", "verdict": "pass" if good else "fail"}


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def server(judge: Judge) -> Iterator[FakeJudgeServer]:
    with FakeJudgeServer(verdict=judge) as running:
        yield running


def openai(server: FakeJudgeServer, **fields: Any) -> JudgeSettings:
    known: dict[str, Any] = {
        "engine": "openai",
        "model": "gpt-5-mini",
        "base_url": server.base_url,
        "max_in_flight": 16,
    }
    return JudgeSettings(**(known | fields))


def policy(*files: Path | str, **fields: Any) -> CanaryPolicy:
    return CanaryPolicy(
        files=tuple(map(str, files)), tries=Tries(attempts=2, base_seconds=0.01), **({"repeats": 2} | fields)
    )


def run(store: Store, server: FakeJudgeServer, path: Path, rubric: Any = RUBRIC, **fields: Any) -> CanaryRun:
    settings = openai(server)
    version = Version.of(rubric, settings)
    return run_canary(
        store, version, [version], settings, policy(path, **fields), path, trigger=fields.pop("trigger", "command")
    )


# -- files


def test_a_file_names_its_rubric_or_is_named_with_it(tmp_path: Path) -> None:
    named, bare = label_file(tmp_path / "a.jsonl"), label_file(tmp_path / "b.jsonl", head=False)
    assert canary_files(policy(named, f"safety={bare}")) == {"relevance": named, "safety": bare}
    assert canary_files(policy()) == {}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("bare.jsonl",), "does not name its rubric in its first line: write RUBRIC="),
        (("a.jsonl", "relevance=bare.jsonl"), "are both of relevance: name one"),
        (("gone.jsonl",), "No such file or directory: check the path"),
        (("table.csv",), "write RUBRIC="),
    ],
)
def test_what_is_wrong_with_the_setting_is_said(tmp_path: Path, entries: tuple[str, ...], message: str) -> None:
    label_file(tmp_path / "a.jsonl")
    label_file(tmp_path / "bare.jsonl", head=False)
    (tmp_path / "table.csv").write_text("input,output,label\n")
    files = [entry.replace("=", f"={tmp_path}/") if "=" in entry else f"{tmp_path}/{entry}" for entry in entries]
    with pytest.raises(SettingsError, match=message):
        canary_files(policy(*files))


# -- when


def a_run(minutes: float = 0, **fields: Any) -> CanaryRun:
    moment = NOON + timedelta(minutes=minutes)
    known: dict[str, Any] = {
        "run_id": "c",
        "instrument": OWN,
        "trigger": "schedule",
        "started_at": moment,
        "finished_at": moment + timedelta(minutes=1),
        "cause": "product",
        "reason": "as before",
        "baseline": False,
        "repeats": 3,
        "scores": {},
        "passes": {},
        "items": 100,
        "compared": 100,
    }
    return CanaryRun(**(known | fields))


def an_event(kind: ChangeKind, minutes: float) -> ChangeEvent:
    moment = NOON + timedelta(minutes=minutes)
    return ChangeEvent(event_id="e", kind=kind, instrument=OWN, happened_at=moment, noted_at=moment, message="m")


@pytest.mark.parametrize(
    ("latest", "has_baseline", "events", "minutes", "trigger"),
    [
        (None, False, [], 0, "baseline"),
        (None, False, [an_event("judge_changed", -1)], 0, "change"),
        (a_run(), True, [], 60, None),
        (a_run(), True, [], 24 * 60, None),
        (a_run(), True, [], 24 * 60 + 1, "schedule"),
        (a_run(), True, [an_event("drop", 5)], 6, "alarm"),
        (a_run(), True, [an_event("drop", -5)], 6, None),
        (a_run(), True, [an_event("model_changed", 5)], 6, "change"),
        # It came to nothing: not again and again, but soon enough.
        (a_run(compared=0, repeats=0), True, [an_event("drop", -5)], 10, None),
        (a_run(compared=0, repeats=0), True, [an_event("drop", -5)], 17, "alarm"),
        (a_run(compared=0, repeats=0), False, [], 10, None),
        (a_run(compared=0, repeats=0), False, [], 17, "baseline"),
        (a_run(compared=20, failures=30), False, [], 17, "baseline"),
        # All was judged, and the file is too short: every quarter of an hour it would cost the same for nothing.
        (a_run(compared=0), False, [], 17, None),
        (a_run(compared=20), True, [an_event("drop", -5)], 17, None),
        # The clock was wrong when it ran.
        (a_run(60 * 24 * 365), True, [], 0, "schedule"),
        (a_run(10), True, [], 0, None),
        # The first run has nothing to compare with, and running it again would not help.
        (a_run(compared=0, baseline=True), True, [an_event("drop", -5)], 60, None),
    ],
)
def test_when_it_runs(
    latest: CanaryRun | None, has_baseline: bool, events: list[ChangeEvent], minutes: float, trigger: str | None
) -> None:
    present = NOON + timedelta(minutes=minutes)
    assert due(latest=latest, has_baseline=has_baseline, events=events, present=present, hours=24) == trigger


# -- what comes of it


def test_the_first_run_is_the_baseline_and_the_same_judge_reads_the_same(
    store: Store, server: FakeJudgeServer, tmp_path: Path
) -> None:
    path = label_file(tmp_path / "a.jsonl", 180)
    first = run(store, server, path)
    assert (first.cause, first.baseline, first.repeats, first.items, len(first.scores)) == ("none", True, 2, 180, 180)
    assert (first.agreement, first.calls, first.failures) == (1.0, 360, 0)
    assert first.spent_usd > 0
    again = run(store, server, path)
    assert (again.cause, again.baseline, again.compared, again.difference) == ("product", False, 180, 0.0)
    assert again.baseline_at == first.started_at
    assert again.calls == 360, "it is asked anew each time: outcomes that are kept would say nothing"
    assert "as before" in again.reason


def test_a_harsher_judge_is_found_and_looked_at_twice(
    store: Store, server: FakeJudgeServer, judge: Judge, tmp_path: Path
) -> None:
    path = label_file(tmp_path / "a.jsonl", 100)
    run(store, server, path)
    judge.harsher = 0.3
    changed = run(store, server, path)
    assert changed.cause == "judge"
    assert changed.difference is not None
    assert changed.difference < -0.1
    assert changed.upper is not None
    assert changed.upper < 0
    assert changed.calls == 400, "confirmed by as many repeats again"
    assert "reads fixed records otherwise" in changed.reason
    assert changed.agreement is not None
    assert changed.agreement < 0.9


def test_a_judge_that_moves_grades_but_no_verdicts_has_changed(store: Store, tmp_path: Path) -> None:
    rubric = ordinal("relevance", ask="alone", pass_threshold=0.5)
    grade = 5
    with FakeJudgeServer(verdict=lambda ask: {"explanation": "synthetic", "level": grade}) as server:
        path = label_file(tmp_path / "a.jsonl")
        first = run(store, server, path, rubric)
        assert set(map(tuple, first.scores.values())) == {(1.0, 1.0)}
        grade = 4
        changed = run(store, server, path, rubric)
    assert (changed.cause, changed.difference, changed.score_difference) == ("judge", 0.0, -0.25)


def test_a_noisy_judge_cannot_be_told_with_few_records(
    store: Store, server: FakeJudgeServer, judge: Judge, tmp_path: Path
) -> None:
    judge.flips = 0.2
    path = label_file(tmp_path / "a.jsonl", LEAST_ITEMS)
    run(store, server, path)
    unsure = run(store, server, path)
    assert unsure.cause == "unknown"
    assert "cannot tell" in unsure.reason


def test_a_judge_that_repeats_itself_cannot_be_told_closely_with_few_records(
    store: Store, server: FakeJudgeServer, tmp_path: Path
) -> None:
    path = label_file(tmp_path / "a.jsonl", LEAST_ITEMS)
    run(store, server, path)
    unsure = run(store, server, path)
    assert (unsure.cause, unsure.difference) == ("unknown", 0.0)
    assert unsure.lower == pytest.approx(0.005 ** (1 / LEAST_ITEMS) - 1)


def test_too_few_records_say_nothing(store: Store, server: FakeJudgeServer, judge: Judge, tmp_path: Path) -> None:
    path = label_file(tmp_path / "a.jsonl", LEAST_ITEMS - 1)
    first = run(store, server, path)
    assert (first.cause, first.baseline) == ("unknown", False)
    assert first.reason == f"only 29 records of the canary could be scored, and it takes {LEAST_ITEMS}"


def test_another_set_begins_anew(store: Store, server: FakeJudgeServer, judge: Judge, tmp_path: Path) -> None:
    path = label_file(tmp_path / "a.jsonl")
    run(store, server, path)
    path.write_text(path.read_text().replace("What is it?", "What is that?"))
    fresh = run(store, server, path)
    assert (fresh.cause, fresh.baseline, fresh.compared) == ("unknown", True, 0)
    assert run(store, server, path).difference == 0.0


def test_the_budget_is_kept(store: Store, server: FakeJudgeServer, tmp_path: Path) -> None:
    path = label_file(tmp_path / "a.jsonl")
    stopped = run(store, server, path, budget_usd=0.0)
    assert (stopped.cause, stopped.calls, stopped.baseline) == ("unknown", 0, False)
    assert "budget" in stopped.reason
    full = run(store, server, path)
    # What the day has cost already counts.
    rest = run(store, server, path, budget_usd=full.spent_usd * 1.01)
    assert rest.cause == "unknown"
    assert rest.spent_usd <= full.spent_usd * 0.011


def test_a_budget_without_prices_is_said(store: Store, server: FakeJudgeServer, tmp_path: Path) -> None:
    settings = openai(server, model="nobody-knows")
    version = Version.of(RUBRIC, settings)
    path = label_file(tmp_path / "a.jsonl")
    made = run_canary(store, version, [version], settings, policy(path, budget_usd=1.0), path, trigger="command")
    assert (made.cause, made.calls) == ("unknown", 0)
    assert "a budget needs prices" in made.reason


def test_a_broken_label_file_is_the_reason(store: Store, server: FakeJudgeServer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"label_file": 1, "rubric": "relevance"}\n{"record_id": "x", "label": "perhaps"}\n')
    made = run(store, server, path)
    assert made.cause == "unknown"
    assert "the canary cannot run" in made.reason
    assert "a.jsonl:2" in made.reason


def test_a_judge_that_is_away_is_the_reason(store: Store, tmp_path: Path) -> None:
    with FakeJudgeServer(faults={"503": 1.0}) as server:
        away = run(store, server, label_file(tmp_path / "a.jsonl"))
    assert (away.cause, away.baseline, away.scores) == ("unknown", False, {})
    assert "does not answer" in away.reason


def test_a_judge_that_hangs_is_waited_for_so_long(store: Store, tmp_path: Path) -> None:
    with FakeJudgeServer(faults={"hang": 1.0}) as server:
        slow = run(store, server, label_file(tmp_path / "a.jsonl"), max_seconds=2.0)
    assert slow.cause == "unknown"
    assert "took longer than" in slow.reason


def test_what_was_cut_off_has_been_spent(store: Store, tmp_path: Path) -> None:
    """Else a judge that hangs is asked again every quarter of an hour, whatever the budget."""
    path = label_file(tmp_path / "a.jsonl")
    with FakeJudgeServer(faults={"hang": 0.3}) as server:
        slow = run(store, server, path, max_seconds=8.0, budget_usd=1.0)
        asked = len(server.requests)
    assert "took longer than" in slow.reason
    assert asked > 0
    assert slow.spent_usd > 0.0
    assert store.canary_spent(slow.started_at) == slow.spent_usd
    with FakeJudgeServer() as server:
        again = run(store, server, path, budget_usd=slow.spent_usd)
        assert (again.calls, len(server.requests)) == (0, 0)


def test_what_shares_a_call_in_production_shares_it_here(store: Store, server: FakeJudgeServer, tmp_path: Path) -> None:
    settings = openai(server)
    together = [Version.of(binary(name, ask="together"), settings) for name in ("relevance", "safety")]
    path = label_file(tmp_path / "a.jsonl")
    run_canary(store, together[0], together, settings, policy(path), path, trigger="command")
    assert "safety" in json.dumps(server.requests[-1])


def test_records_of_labels_are_looked_for_in_the_store(store: Store, server: FakeJudgeServer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"label_file": 1, "rubric": "relevance"}\n{"record_id": "x", "label": "pass"}\n')
    made = run(store, server, path)
    assert made.cause == "unknown"
    assert "is not known" in made.reason


# -- which versions


def test_the_active_version_is_judged_while_a_new_one_waits(store: Store, server: FakeJudgeServer) -> None:
    settings = openai(server)
    old, new = (Version.of(binary("relevance", instructions=text), settings) for text in ("old", "new"))
    for version, state in ((old, "active"), (new, "waiting")):
        store.place_rubric(
            RubricVersion(
                rubric="relevance",
                rubric_version=version.rubric.revision,
                rubric_hash=version.rubric.hash,
                judge=version.judge,
                judge_fingerprint=version.judge_fingerprint,
                body=json.dumps(version.rubric.to_dict()),
                state=state,  # type: ignore[arg-type]
                reason="why",
            )
        )
    assert [v.rubric.instructions for v in active_versions(store, [new.rubric], settings)] == ["old"]
    # Under other settings that one could not be asked as it was.
    assert active_versions(store, [new.rubric], replace(settings, model="another")) == []


def test_without_a_gate_the_file_is_what_is_active(store: Store, server: FakeJudgeServer) -> None:
    (version,) = active_versions(store, [RUBRIC], openai(server))
    assert version.rubric == RUBRIC


# -- the chore


def test_what_is_due_runs_once(store: Store, server: FakeJudgeServer, tmp_path: Path) -> None:
    wanted = policy(label_file(tmp_path / "a.jsonl"))
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)  # noqa: E731
    (first,) = run_due(store, [RUBRIC], openai(server), wanted, clock=clock)
    assert first.trigger == "baseline"
    assert run_due(store, [RUBRIC], openai(server), wanted, clock=clock) == []
    tomorrow = lambda: datetime.now(UTC) + timedelta(hours=25)  # noqa: E731
    (second,) = run_due(store, [RUBRIC], openai(server), wanted, clock=tomorrow)
    assert (second.trigger, second.difference) == ("schedule", 0.0)


def test_what_others_are_to_run_is_left_to_them(store: Store, server: FakeJudgeServer, tmp_path: Path) -> None:
    wanted = policy(label_file(tmp_path / "a.jsonl"))
    assert run_due(store, [RUBRIC], openai(server), wanted, only=lambda rubric: rubric.name != RUBRIC.name) == []
    assert server.traffic.calls == 0
    (run,) = run_due(store, [RUBRIC], openai(server), wanted, only=lambda rubric: rubric.name == RUBRIC.name)
    assert run.trigger == "baseline"


def test_what_somebody_runs_is_left_to_them(store: Store, server: FakeJudgeServer, tmp_path: Path) -> None:
    wanted = policy(label_file(tmp_path / "a.jsonl"))
    instrument = instrument_of(Version.of(RUBRIC, openai(server)))
    assert store.claim_canary(instrument, 60)
    assert run_due(store, [RUBRIC], openai(server), wanted) == []
    store.free_canary(instrument)
    assert len(run_due(store, [RUBRIC], openai(server), wanted)) == 1


def test_what_somebody_has_run_meanwhile_is_not_run_again(
    store: Store, server: FakeJudgeServer, tmp_path: Path
) -> None:
    wanted = policy(label_file(tmp_path / "a.jsonl"))
    by_another: list[CanaryRun] = []

    def clock() -> datetime:
        # Between the look at the runs and the claim, which is when it asks for the time.
        if not by_another:
            by_another.append(run(store, server, tmp_path / "a.jsonl"))
        return datetime.now(UTC)

    assert run_due(store, [RUBRIC], openai(server), wanted, clock=clock) == []
    assert len(by_another) == 1
    assert store.claim_canary(by_another[0].instrument, 60), "and it is given back"


def test_rubrics_without_a_file_have_no_canary(store: Store, server: FakeJudgeServer, tmp_path: Path) -> None:
    assert run_due(store, [RUBRIC], openai(server), policy()) == []
    wanted = policy(label_file(tmp_path / "a.jsonl", rubric="safety"))
    assert run_due(store, [RUBRIC], openai(server), wanted) == []


def test_a_file_of_no_rubric_is_a_mistake_for_it_would_never_run() -> None:
    check_canary({RUBRIC.name: Path("a.jsonl")}, [RUBRIC])
    with pytest.raises(SettingsError, match=r"ASSAY_CANARY: b\.jsonl is of 'relevence'.*: did you mean relevance\?"):
        check_canary({"relevence": Path("b.jsonl")}, [ordinal("relevance")])
    with pytest.raises(SettingsError, match="known are relevance, safety"):
        check_canary({"zzz": Path("b.jsonl")}, [ordinal("safety"), ordinal("relevance")])


# -- how often it is right: statistics.md 3.8 and D6


def test_false_alarms_and_power() -> None:
    """100 records, 3 repeats, 5 % of the verdicts flip; the rule of `run_canary`, without the calls."""
    from assay.canary import _ALPHA, _ALPHA_CONFIRMED, _compare, _Measured

    rng = np.random.default_rng(11)

    def judged(propensity: Any, repeats: int) -> dict[str, list[float]]:
        return {str(n): (rng.random(repeats) < p).astype(float).tolist() for n, p in enumerate(propensity)}

    def verdict(harsher: float) -> str:
        good = rng.random(100) < 0.75
        propensity = np.where(good, 0.975, 0.025)
        first = judged(propensity, 3)
        base = a_run(scores=first, passes=first, baseline=True)
        now = judged(propensity * harsher, 3)
        found = _compare(base, _Measured(scores=dict(now), passes=dict(now)), _ALPHA)
        if found.cause == "judge":
            more = judged(propensity * harsher, 3)
            both = {key: now[key] + more[key] for key in now}
            found = _compare(base, _Measured(scores=both, passes=both), _ALPHA_CONFIRMED)
        return found.cause

    unchanged = [verdict(1.0) for _ in range(500)]
    harsher = [verdict(0.85) for _ in range(100)]
    print(f"unchanged: judge {unchanged.count('judge') / 5:.1f} %, product {unchanged.count('product') / 5:.1f} %")
    print(f"15 % harsher: judge {harsher.count('judge')} %, product {harsher.count('product')} %")
    assert unchanged.count("judge") <= 5
    assert harsher.count("judge") >= 85
    assert harsher.count("product") == 0
