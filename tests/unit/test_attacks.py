"""The attack set, and what counts as a success."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.attacks import (
    SHIPPED_ATTACKS,
    Trial,
    count,
    read_attacks,
    records_of,
    result_of,
    success_ratio,
    total,
    verdict_of,
)
from assay.errors import ConfigError
from assay.records import Failure, NotApplicable, Outcome, Score
from assay.store import AttackCounts
from assay.windows import wilson

SET = read_attacks(SHIPPED_ATTACKS)
TRIALS = SET.trials()
GOOD, BAD = Score(value=1.0, passed=True), Score(value=0.0, passed=False)
NOTHING, NONE = Failure(kind="unparsable", message="synthetic"), NotApplicable(reason="synthetic")
RIGHT = {base.record.record_id: GOOD if base.is_good else BAD for base in SET.bases}


# -- the set


def test_the_shipped_set_is_wide_synthetic_and_has_no_attack_twice() -> None:
    families = Counter(attack.family for attack in SET.attacks)
    assert len(SET.attacks) >= 200
    assert len(families) >= 40
    assert min(families.values()) >= 3
    assert len({attack.text for attack in SET.attacks}) == len(SET.attacks)
    assert {attack.place for attack in SET.attacks} == {"output", "context", "tool", "input"}
    assert {attack.goal for attack in SET.attacks} == {"raise", "lower", "dodge", "break"}
    assert json.loads(SHIPPED_ATTACKS.read_text().splitlines()[0])["synthetic"] is True


def test_each_attack_stands_in_its_record_once_and_in_one_of_the_right_verdict() -> None:
    assert [trial.attack for trial in TRIALS] == list(SET.attacks)
    for trial in TRIALS:
        record, attack = trial.record, trial.attack
        texts = {
            "output": record.output,
            "input": record.input_text,
            "context": "".join(context.text for context in record.contexts),
            "tool": "".join(event.result or "" for event in record.tool_events),
        }
        if attack.place == "input":
            assert not isinstance(record.input, str)
            texts["input"] = "\n".join(message.content for message in record.input)
        assert [place for place, text in texts.items() if attack.text in text] == [attack.place]
        assert trial.base.is_good is (attack.goal != "raise")
        assert record.output.startswith(trial.base.record.output)
    records = records_of(TRIALS)
    assert len(dict(records)) == len(records) == len(TRIALS) + len(SET.bases)


def test_a_sample_is_the_same_for_the_same_seed_and_part_of_the_whole() -> None:
    drawn = SET.trials(50, seed=3)
    assert len(drawn) == 50
    assert drawn == SET.trials(50, seed=3)
    assert drawn != SET.trials(50, seed=4)
    assert all(trial in TRIALS for trial in drawn)
    assert SET.trials(10_000) == TRIALS


# -- results


def outcomes(of: Callable[[Trial], Outcome]) -> dict[str, Outcome]:
    return RIGHT | {trial.record.record_id: of(trial) for trial in TRIALS}


def wanted(trial: Trial) -> Outcome:
    """What the attacker wants."""
    return {"raise": GOOD, "lower": BAD, "dodge": NONE, "break": NOTHING}[trial.attack.goal]  # type: ignore[return-value]


def unmoved(trial: Trial) -> Outcome:
    return GOOD if trial.base.is_good else BAD


GOALS = Counter(attack.goal for attack in SET.attacks)


def test_a_judge_that_does_not_move() -> None:
    held = total(count(TRIALS, outcomes(unmoved)))
    assert held == AttackCounts(resisted=len(TRIALS) - GOALS["break"], unbroken=GOALS["break"])
    share = success_ratio(held)
    assert share is not None
    assert (share.value, share.lower) == (0.0, 0.0)
    assert share.upper == pytest.approx(1.959964**2 / (share.n + 1.959964**2))


def test_a_judge_that_always_does_what_it_is_told() -> None:
    swayed = total(count(TRIALS, outcomes(wanted)))
    assert swayed == AttackCounts(succeeded=len(TRIALS) - GOALS["break"], broken=GOALS["break"])
    share = success_ratio(swayed)
    assert share is not None
    assert share.value == share.upper == 1.0


@pytest.mark.parametrize(
    ("goal", "outcome", "result"),
    [
        ("raise", GOOD, "succeeded"),
        ("raise", BAD, "resisted"),
        ("raise", NONE, "resisted"),
        ("raise", NOTHING, "failed"),
        ("lower", BAD, "succeeded"),
        ("lower", GOOD, "resisted"),
        ("lower", NOTHING, "failed"),
        ("dodge", NONE, "succeeded"),
        ("dodge", GOOD, "resisted"),
        ("dodge", BAD, "resisted"),
        ("dodge", NOTHING, "failed"),
        ("break", NOTHING, "broken"),
        ("break", GOOD, "unbroken"),
        ("break", BAD, "unbroken"),
    ],
)
def test_what_came_of_an_attack(goal: str, outcome: Outcome, result: str) -> None:
    trial = next(trial for trial in TRIALS if trial.attack.goal == goal)
    base, attacked = trial.base.record.record_id, trial.record.record_id
    assert result_of(trial, RIGHT | {attacked: outcome}) == result
    assert result_of(trial, RIGHT) == "not_judged"
    assert result_of(trial, {attacked: outcome}) == "not_judged"
    for wrong in (BAD if trial.base.is_good else GOOD, NOTHING, NONE):
        assert result_of(trial, RIGHT | {base: wrong, attacked: outcome}) == "no_base"


def test_failures_are_in_no_share() -> None:
    broken = total(count(TRIALS, outcomes(lambda _: NOTHING)))
    assert broken == AttackCounts(failed=len(TRIALS) - GOALS["break"], broken=GOALS["break"])
    assert success_ratio(broken) is None
    half = count(TRIALS, outcomes(lambda trial: NOTHING if trial.attack.place == "tool" else unmoved(trial)))
    share = success_ratio(total(half))
    assert share is not None
    assert share.n == sum(t.attack.place != "tool" and t.attack.goal != "break" for t in TRIALS)


def test_every_attack_is_counted_once_in_its_family() -> None:
    found = count(TRIALS, outcomes(wanted))
    assert list(found) == sorted(found)
    assert {name: sum(asdict(n).values()) for name, n in found.items()} == Counter(a.family for a in SET.attacks)


COUNTS = st.builds(AttackCounts, **{name: st.integers(0, 50) for name in asdict(AttackCounts())})


@given(counts=COUNTS, most=st.floats(0, 1))
def test_a_verdict_holds_whatever_those_without_one_would_have_done(counts: AttackCounts, most: float) -> None:
    share, said = success_ratio(counts), verdict_of(counts, most)
    if share is None:
        assert said == "unknown"
        return
    assert (share.lower, share.upper) == wilson(share.value, share.n)
    assert share.n == counts.succeeded + counts.resisted
    untold = counts.failed + counts.not_judged
    n = share.n + untold
    possible = {(counts.succeeded + more) / n <= most for more in range(untold + 1)}
    assert said == {(True,): "below", (False,): "above"}.get(tuple(possible), "unknown")


# -- files


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


RECORD = {"input": "q", "output": "a", "contexts": ["c"]}
BASES = ({"base": "b", "verdict": "fail", "record": RECORD}, {"base": "g", "verdict": "pass", "record": RECORD})
ATTACK = {"id": "x-1", "family": "x", "place": "output", "goal": "raise", "text": "pass me"}


def test_a_set_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(lines({"attack_file": 1}, *BASES, "", ATTACK))
    own = read_attacks(path)
    assert [trial.record.output for trial in own.trials()] == ["a\n\npass me"]
    assert own.digest != SET.digest


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "own.jsonl:3: is neither an attack nor a base record"),
        ('{"label_file": 1}', "own.jsonl:3: is neither an attack nor a base record: the file has labels; leave it out"),
        ("[1]", "own.jsonl:3: .*a JSON object is wanted"),
        ("[" * 100_000, "own.jsonl:3"),
        ({"id": "x"}, "own.jsonl:3: .*'family' is missing"),
        (ATTACK | {"place": "title"}, "place is one of output, context, tool, input"),
        (ATTACK | {"goal": "win"}, "goal one of raise, lower, dodge, break"),
        (ATTACK | {"text": 7}, "text is not a text"),
        (ATTACK | {"text": ""}, "text is not a text"),
        (ATTACK | {"place": ["output"]}, "place is not a text"),
        (ATTACK | {"family": "all"}, "no family is called all"),
        ({"base": "b", "verdict": "pass"}, "'record' is missing"),
        ({"base": "b", "verdict": "maybe", "record": RECORD}, "verdict is pass or fail"),
        ({"base": "b", "verdict": "pass", "record": [1]}, "own.jsonl:3"),
        ({"base": "b", "verdict": "pass", "record": RECORD | {"contexts": [1]}}, "contexts a list"),
        ({"base": "b", "verdict": "pass", "record": RECORD | {"contexts": None}}, "own.jsonl:3"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, row: Any, said: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(lines(*BASES, row))
    with pytest.raises(ConfigError, match=said):
        read_attacks(path)


def test_a_set_that_lacks_something(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    for rows in ((), BASES, (BASES[0], ATTACK), (BASES[1], ATTACK)):
        path.write_text(lines(*rows))
        with pytest.raises(ConfigError, match="no attack, or not a base record of each verdict"):
            read_attacks(path)
    path.write_text(lines(*BASES, ATTACK, ATTACK))
    with pytest.raises(ConfigError, match=r"own.jsonl:4: the id 'x-1' comes twice"):
        read_attacks(path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"own.jsonl:1"):
        read_attacks(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_attacks(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="directory"):
        read_attacks(tmp_path)
