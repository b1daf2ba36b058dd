"""Kept outcomes: found by what they depend on, and by nothing else; whole lines or none."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import random
import resource
import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import SettingsError
from assay.judged import FINISHED_FAILURES, JUDGED_FIELDS, JudgedOutcomes, judged_content
from assay.records import (
    TRANSIENT,
    Context,
    Failure,
    FailureKind,
    Feedback,
    Message,
    NotApplicable,
    Outcome,
    Record,
    Sampling,
    Score,
    ToolEvent,
    Usage,
)
from assay.repeats import Repeats
from assay.rubrics import diff_rubrics, load_rubrics
from judging import NOON, a_record, binary, ordinal

JUDGE = "f" * 64
PASS = Score(value=1.0, passed=True)
USAGE = Usage(prompt_tokens=700, completion_tokens=60, cost_usd=0.0003)
MODEL_SCORE = Score(
    value=0.75,
    passed=True,
    raw=4.0,
    label="4",
    explanation='Says "so" – ü\n\u2028 \x1b[31m \ud800',
    details={"distribution": {"4": 0.9, "5": 0.1}, "claims": [{"quote": "x", "quote_found": False}]},
    usage=USAGE,
    latency_seconds=1.25,
    judge_model="gpt-5-mini-2025-08-07",
)


def kept(directory: Path, rubric: Any = None, judge: str = JUDGE) -> JudgedOutcomes:
    return JudgedOutcomes(directory, rubric or ordinal(), judge)


def find(directory: Path, record: Record, rubric: Any = None, judge: str = JUDGE) -> Outcome | None:
    with kept(directory, rubric, judge) as outcomes:
        key = outcomes.key(record)
        return outcomes.find([key]).get(key)


def add(directory: Path, record: Record, outcome: Outcome, rubric: Any = None, judge: str = JUDGE) -> bool:
    with kept(directory, rubric, judge) as outcomes:
        return outcomes.add(outcomes.key(record), outcome)


# Identity.

#: What changes the answer, one change a field.
CONTENT: dict[str, Any] = {
    "input": "Another question?",
    "output": "Another answer.",
    "contexts": (Context(text="Another passage."),),
    "reference": "A good answer.",
    "required_fields": ("price",),
    "finish_reason": "length",
    "tool_events": (ToolEvent(name="search", arguments="x"),),
}
#: Who, when and how: not what is judged.
AROUND: dict[str, Any] = {
    "record_id": "another",
    "timestamp": NOON + timedelta(days=1),
    "app": "another",
    "trace_id": "a" * 32,
    "span_id": "b" * 16,
    "session_id": "s",
    "user_id": "u",
    "route": "/r",
    "model": "m",
    "prompt_version": "7",
    "cohort": {"tier": "gold"},
    "sampling": Sampling(probability=0.1, rule="r"),
    "usage": Usage(prompt_tokens=1),
    "latency_seconds": 2.0,
    "feedback": Feedback(thumb="down"),
    "metadata": {"k": 1},
    "sink_refs": {"mlflow_request_id": "1"},
}


def test_every_field_of_a_record_is_judged_or_around_it() -> None:
    fields = {field.name for field in dataclasses.fields(Record)} - {"schema_version"}
    assert set(CONTENT) | set(AROUND) == fields
    assert set(CONTENT) == set(JUDGED_FIELDS)


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_another_content_is_not_judged_yet(tmp_path: Path, name: str) -> None:
    record = a_record()
    add(tmp_path, record, PASS)
    assert find(tmp_path, record) == PASS
    assert find(tmp_path, replace(record, **{name: CONTENT[name]})) is None


@pytest.mark.parametrize("name", sorted(AROUND))
def test_the_same_content_under_another_name_is_judged_already(tmp_path: Path, name: str) -> None:
    record = a_record()
    add(tmp_path, record, PASS)
    assert find(tmp_path, replace(record, **{name: AROUND[name]})) == PASS


CONTENTS = [
    a_record(),
    a_record(contexts=()),
    a_record(contexts=("",)),
    a_record(contexts=("a", "b")),
    a_record(contexts=("b", "a")),
    a_record(contexts=("ab",)),
    a_record(input="user: hi"),
    a_record(input=(Message(role="user", content="hi"),)),
    a_record(input=(Message(role="user", content="hi"), Message(role="assistant", content=""))),
    a_record(input=(Message(role="system", content="hi"),)),
    a_record(reference=""),
    a_record(reference=None),
    a_record(output="x", reference="y"),
    a_record(output="xy", reference=None),
    a_record(tool_events=(ToolEvent(name="a", result="b"),)),
    a_record(tool_events=(ToolEvent(name="a", error="b"),)),
    a_record(tool_events=(ToolEvent(name="ab"),)),
    a_record(output="\ud800"),
    a_record(output="?"),
]


def test_contents_that_a_judge_sees_differently_have_different_hashes() -> None:
    distinct = {judged_content(record) for record in CONTENTS}
    # An absent reference and one of None are the same.
    assert len(distinct) == len(CONTENTS) - 1
    assert judged_content(a_record()) == judged_content(a_record())


def test_ids_and_scores_of_passages_are_not_judged() -> None:
    plain = a_record(contexts=("a",))
    scored = replace(plain, contexts=(Context(text="a", id="doc-1", score=0.9),))
    assert judged_content(plain) == judged_content(scored)


@pytest.mark.parametrize(
    "changes", [{"instructions": "Judge something else."}, {"ask": "alone"}, {"requires": ("input",)}]
)
def test_another_rubric_is_another_question(tmp_path: Path, changes: dict[str, Any]) -> None:
    record = a_record()
    add(tmp_path, record, MODEL_SCORE)
    assert find(tmp_path, record, ordinal()) == MODEL_SCORE
    assert find(tmp_path, record, ordinal(**changes)) is None


def test_another_judge_is_another_answer(tmp_path: Path) -> None:
    record = a_record()
    add(tmp_path, record, PASS)
    assert find(tmp_path, record, judge="e" * 64) is None
    # The same first characters, hence the same file, and still another judge.
    assert find(tmp_path, record, judge="f" * 63 + "0") is None


def test_words_for_people_do_not_change_the_question(tmp_path: Path) -> None:
    record = a_record()
    add(tmp_path, record, PASS)
    assert find(tmp_path, record, ordinal(title="Other", description="Other", version="9", objective=0.5)) == PASS


def test_a_models_answer_holds_under_another_threshold(tmp_path: Path) -> None:
    record = a_record()
    add(tmp_path, record, MODEL_SCORE, ordinal(pass_threshold=0.7))
    assert find(tmp_path, record, ordinal(pass_threshold=0.75)) == MODEL_SCORE
    assert find(tmp_path, record, ordinal(pass_threshold=0.8)) == replace(
        MODEL_SCORE, passed=False, defect="unclassified"
    )
    assert find(tmp_path, record, ordinal(pass_threshold=0.1)) == MODEL_SCORE


def test_under_another_threshold_a_defect_goes_with_what_passes_and_stays_with_what_does_not(tmp_path: Path) -> None:
    record, failing = a_record(), replace(MODEL_SCORE, passed=False, defect="selection")
    add(tmp_path, record, failing, ordinal(pass_threshold=0.8))
    assert find(tmp_path, record, ordinal(pass_threshold=0.1)) == replace(failing, passed=True, defect=None)
    assert find(tmp_path, record, ordinal(pass_threshold=0.9)) == failing


def test_a_kept_outcome_of_before_there_were_defects_is_read(tmp_path: Path) -> None:
    record = a_record()
    add(tmp_path, record, MODEL_SCORE)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace(',"defect":null', ""))
    assert "defect" not in path.read_text()
    assert find(tmp_path, record) == MODEL_SCORE


def test_verdicts_that_were_asked_for_because_of_the_threshold_hold_under_it_only(tmp_path: Path) -> None:
    record = a_record()
    for repeats, holds in ((Repeats(most=5, band=(0.6, 0.8)), False), (Repeats(most=5), True)):
        add(tmp_path, record, MODEL_SCORE, ordinal(pass_threshold=0.7, repeats=repeats))
        assert find(tmp_path, record, ordinal(pass_threshold=0.7, repeats=repeats)) == MODEL_SCORE
        assert (find(tmp_path, record, ordinal(pass_threshold=0.75, repeats=repeats)) == MODEL_SCORE) is holds
    assert find(tmp_path, record, ordinal(pass_threshold=0.7)) is None


def test_a_keyless_answer_holds_under_its_own_threshold_only(tmp_path: Path) -> None:
    record = a_record()
    add(tmp_path, record, PASS, ordinal(pass_threshold=0.7))
    assert find(tmp_path, record, ordinal(pass_threshold=0.8)) is None


def test_an_answer_under_the_very_threshold_comes_first(tmp_path: Path) -> None:
    record = a_record()
    add(tmp_path, record, MODEL_SCORE, ordinal(pass_threshold=0.7))
    own = replace(MODEL_SCORE, value=0.5, passed=False)
    add(tmp_path, record, own, ordinal(pass_threshold=0.8))
    assert find(tmp_path, record, ordinal(pass_threshold=0.8)) == own
    assert find(tmp_path, record, ordinal(pass_threshold=0.7)) == MODEL_SCORE


def test_what_diff_calls_a_change_of_verdicts_is_one_here() -> None:
    """The two must not drift apart: a field in the hash that is not part of the key would bring wrong outcomes."""
    before = load_rubrics()[0]
    record = a_record()
    for changes in ({"instructions": "x"}, {"ask": "alone"}, {"requires": ()}, {"title": "x"}, {"objective": 0.5}):
        after = replace(before, **changes)
        keys = {JudgedOutcomes(Path(), rubric, JUDGE).key(record).exact for rubric in (before, after)}
        assert (len(keys) == 2) == any(change.changes_hash for change in diff_rubrics(before, after))


# Outcomes.


@pytest.mark.parametrize(
    "outcome",
    [
        PASS,
        MODEL_SCORE,
        NotApplicable(reason="no_claims", usage=USAGE, judge_model="m"),
        Failure(kind="refused", message="I cannot", usage=USAGE),
        Failure(kind="unparsable", message="?"),
        Failure(kind="off_scale", message="NaN"),
        Failure(kind="context_overflow", message="too long"),
    ],
)
def test_finished_outcomes_come_back_as_they_were(tmp_path: Path, outcome: Outcome) -> None:
    record = a_record()
    assert add(tmp_path, record, outcome)
    assert find(tmp_path, record) == outcome


@pytest.mark.parametrize("kind", sorted(set(get_args(FailureKind)) - FINISHED_FAILURES))
def test_failures_that_another_try_may_mend_are_not_kept(tmp_path: Path, kind: FailureKind) -> None:
    record = a_record()
    assert not add(tmp_path, record, Failure(kind=kind, message="no"))
    assert find(tmp_path, record) is None
    assert list(tmp_path.iterdir()) == []


def test_no_transient_failure_is_a_finished_one() -> None:
    assert not TRANSIENT & FINISHED_FAILURES
    assert set(get_args(FailureKind)) > FINISHED_FAILURES


def test_details_that_are_no_json_are_not_kept(tmp_path: Path) -> None:
    record = a_record()
    for odd in (object(), float("nan"), {1, 2}):
        assert not add(tmp_path, record, replace(PASS, details={"odd": odd}))
    assert find(tmp_path, record) is None


def test_the_first_outcome_of_a_key_stays(tmp_path: Path) -> None:
    record = a_record()
    add(tmp_path, record, PASS)
    add(tmp_path, record, Score(value=0.0, passed=False))
    assert find(tmp_path, record) == PASS


def test_many_records_are_found_at_once_and_others_left_alone(tmp_path: Path) -> None:
    records = [a_record(output=f"Answer {n}.") for n in range(50)]
    with kept(tmp_path) as outcomes:
        keys = [outcomes.key(record) for record in records]
        for n, key in enumerate(keys[:40]):
            outcomes.add(key, Score(value=n / 40, passed=False))
        found = outcomes.find(keys[20:])
    assert found == {key: Score(value=n / 40, passed=False) for n, key in enumerate(keys) if 20 <= n < 40}


def test_nothing_is_there_before_anything_is_added(tmp_path: Path) -> None:
    assert find(tmp_path / "not" / "yet", a_record()) is None
    assert list(tmp_path.iterdir()) == []


# Crashes.


def test_whatever_a_crash_leaves_of_the_last_line_the_others_stay(tmp_path: Path) -> None:
    records = [a_record(output=f"Answer {n}.") for n in range(3)]
    for record in records:
        add(tmp_path, record, MODEL_SCORE)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        assert find(tmp_path, records[0]) == MODEL_SCORE
        assert find(tmp_path, records[1]) == MODEL_SCORE
        # Without its end of line it may be whole already.
        assert find(tmp_path, records[2]) == (MODEL_SCORE if cut == len(whole) - 1 else None)


@pytest.mark.parametrize("left", [1, 10, 64, 65, 130, 140, 300])
def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path, left: int) -> None:
    first, second = a_record(output="First."), a_record(output="Second.")
    add(tmp_path, first, MODEL_SCORE)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:left])
    assert find(tmp_path, first) is None
    add(tmp_path, second, PASS)
    assert find(tmp_path, second) == PASS
    add(tmp_path, first, MODEL_SCORE)
    assert find(tmp_path, first) == MODEL_SCORE


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 3))
def test_no_garbage_in_the_file_is_an_outcome_or_an_error(tmp_path_factory: Any, garbage: bytes, place: int) -> None:
    directory = tmp_path_factory.mktemp("judged")
    records = [a_record(output=f"Answer {n}.") for n in range(3)]
    for record in records:
        add(directory, record, PASS)
    (path,) = directory.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(place, garbage + b"\n")
    path.write_bytes(b"".join(lines))
    assert [find(directory, record) for record in records] == [PASS] * 3
    assert find(directory, a_record(output="Never judged.")) is None


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"outcome":"scored"}',
        b'{"outcome":"won","usage":{}}',
        b'{"outcome":"scored","usage":{},"value":2,"passed":true}',
        b'{"outcome":"scored","usage":{},"value":NaN,"passed":true}',
        b'{"outcome":"scored","usage":[],"value":1,"passed":true}',
        b'{"outcome":"scored","usage":{},"value":"x","passed":true}',
        b'{"outcome":"scored","usage":{},"value":1,"passed":true,"more":1}',
        b"[" * 50_000,
        b"\xff\xfe",
    ],
)
def test_a_line_of_this_key_that_is_no_outcome_counts_as_not_there(tmp_path: Path, body: bytes) -> None:
    record = a_record()
    add(tmp_path, record, PASS)
    (path,) = tmp_path.iterdir()
    keys = path.read_bytes()[:130]
    path.write_bytes(keys + body + b"\n")
    assert find(tmp_path, record) is None
    add(tmp_path, record, MODEL_SCORE)
    assert find(tmp_path, record) == MODEL_SCORE


def _append(directory: str, worker: int, count: int) -> None:
    outcomes = JudgedOutcomes(Path(directory), ordinal(), JUDGE)
    for n in random.Random(worker).sample(range(count), count):
        record = a_record(output=f"Answer {n}.")
        long = "x" * (20_000 if n % 10 == 0 else 20)
        outcomes.add(outcomes.key(record), Score(value=n / count, passed=False, explanation=long))
    outcomes.close()


def test_many_processes_may_add_at_once(tmp_path: Path) -> None:
    count = 60
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(str(tmp_path), worker, count)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    with kept(tmp_path) as outcomes:
        keys = {outcomes.key(a_record(output=f"Answer {n}.")): n for n in range(count)}
        found = outcomes.find(list(keys))
        assert {key: outcome.value for key, outcome in found.items() if isinstance(outcome, Score)} == {
            key: n / count for key, n in keys.items()
        }
        lines = outcomes.path.read_bytes().splitlines()
    assert len(lines) == 4 * count
    assert all(json.loads(line[130:])["outcome"] == "scored" for line in lines)


def test_one_may_add_while_another_reads(tmp_path: Path) -> None:
    with kept(tmp_path) as writer, kept(tmp_path) as reader:
        for n in range(20):
            record = a_record(output=f"Answer {n}.")
            writer.add(writer.key(record), PASS)
            assert reader.find([reader.key(record)]) == {reader.key(record): PASS}


# Files.


def test_files_are_for_the_owner_only_and_named_by_rubric_and_judge(tmp_path: Path) -> None:
    directory = tmp_path / "data" / "judged"
    add(directory, a_record(), PASS)
    add(directory, a_record(), PASS, binary())
    add(directory, a_record(), PASS, judge="e" * 64)
    assert sorted(file.name for file in directory.iterdir()) == [
        f"relevance.{'e' * 16}.jsonl",
        f"relevance.{'f' * 16}.jsonl",
        f"verdicts.{'f' * 16}.jsonl",
    ]
    for file in directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_place_that_cannot_be_used_is_named_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"cannot be written.*ASSAY_DATA_DIR"):
        add(tmp_path / "file", a_record(), PASS)
    with pytest.raises(SettingsError, match=r"cannot be read.*ASSAY_DATA_DIR"):
        find(tmp_path / "file", a_record())


def test_a_full_disk_is_an_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    """A bound on file size stands for a full disk: the kernel writes what fits, and no more."""
    record = a_record()
    add(tmp_path, record, PASS)
    (path,) = tmp_path.iterdir()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_add_on_a_full_disk, args=(str(tmp_path), path.stat().st_size + 40))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert path.stat().st_size > 40
    assert find(tmp_path, record) == PASS
    later = a_record(output="Later.")
    add(tmp_path, later, PASS)
    assert find(tmp_path, later) == PASS


def _add_on_a_full_disk(directory: str, limit: int) -> None:
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(SettingsError, match="cannot be written"):
        add(Path(directory), a_record(output="Too much."), PASS)


def test_the_memory_held_is_that_of_what_was_asked_for(tmp_path: Path) -> None:
    """A file of a hundred megabytes is read through without being held."""
    import tracemalloc

    record = a_record()
    add(tmp_path, record, PASS)
    (path,) = tmp_path.iterdir()
    line = b"0" * 64 + b" " + b"1" * 64 + b" " + b'{"x":"' + b"y" * 2000 + b'"}\n'
    with path.open("ab") as file:
        for _ in range(100):
            file.write(line * 480)
    assert path.stat().st_size > 100_000_000
    tracemalloc.start()
    assert find(tmp_path, record) == PASS
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
