"""What is wrong with answers: the classes, what a judge may say of them, and what the keyless judges find by rule."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.defects import ALL, CLASSES, MEANINGS, UNCLASSIFIED, Defect, defect_named, settled
from assay.judges import JudgeSettings, build_judge
from assay.judges._prompt import DEFECTS
from assay.judges._reply import read_defects
from assay.records import Failure, Message, Score, ToolEvent
from assay.rubrics import Rubric, check_rubrics, load_rubrics
from assay.testing import FakeJudgeServer, Reply
from judging import a_record, ask, checklist, claims, ordinal

ROOT = Path(__file__).parents[2]
RUBRICS = {rubric.name: rubric for rubric in load_rubrics()}


# The classes.


def test_the_set_is_stable() -> None:
    # A class that goes, or gets another name, breaks dashboards and alerts: only add.
    assert ALL == (
        "retrieval_miss",
        "selection",
        "context_construction",
        "unsupported_generation",
        "incomplete",
        "off_topic",
        "tool_failure",
        "truncated",
        "unsafe",
        "refused_wrongly",
        "coverage_gap",
    )
    assert set(get_args(Defect)) == set(MEANINGS) == {*ALL, UNCLASSIFIED}


def test_every_class_is_told_in_one_short_line() -> None:
    for defect, words in CLASSES.items():
        assert re.fullmatch(r"[a-z_]+", defect)
        assert len(words.split()) <= 5
        assert MEANINGS[defect].endswith(".")


def test_the_reference_page_lists_every_class() -> None:
    page = (ROOT / "docs/reference/defects.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", page, re.MULTILINE))
    assert rows == dict(MEANINGS)


@pytest.mark.parametrize(
    ("passed", "named", "allowed", "kept"),
    [
        (False, "selection", ALL, "selection"),
        (False, None, ALL, UNCLASSIFIED),
        (False, "Selection", ALL, UNCLASSIFIED),
        (False, "none", ALL, UNCLASSIFIED),
        (False, "selection", ("unsafe", "off_topic"), UNCLASSIFIED),
        (False, "selection", ("unsafe",), "unsafe"),
        (False, "selection", (), None),
        (True, "selection", ALL, None),
        (True, None, ("unsafe",), None),
    ],
)
def test_what_is_kept(passed: bool, named: str | None, allowed: tuple[str, ...], kept: str | None) -> None:
    assert settled(passed, named, allowed) == kept


@given(st.text())
def test_no_text_becomes_a_class_of_its_own(text: str) -> None:
    assert settled(False, text, ALL) in MEANINGS
    assert defect_named(text) in (*MEANINGS, None)


# The field of a rubric file.

SMALL = """\
name: tone
version: "1"
instructions: Judge the tone.
scale: {type: binary, pass_when: It is kind., fail_when: It is not.}
pass_threshold: 1
"""


def from_file(directory: Path, line: str) -> Rubric:
    (directory / "tone.yaml").write_text(f"{SMALL}{line}\n")
    return load_rubrics([directory / "tone.yaml"])[0]


def test_a_rubric_has_all_classes_unless_it_says_otherwise(tmp_path: Path) -> None:
    plain = from_file(tmp_path, "")
    assert plain.defects == ALL
    assert from_file(tmp_path, f"defects: [{', '.join(reversed(ALL))}]") == plain
    # What everybody asks is in the judge's fingerprint: rubrics of before keep their series.
    assert from_file(tmp_path, f"defects: [{', '.join(ALL)}]").hash == plain.hash


@pytest.mark.parametrize(
    ("line", "defects"),
    [
        ("defects: []", ()),
        ("defects: [unsafe]", ("unsafe",)),
        ("defects: [off_topic, selection]", ("selection", "off_topic")),
    ],
)
def test_a_narrower_choice_is_another_question(tmp_path: Path, line: str, defects: tuple[str, ...]) -> None:
    narrow = from_file(tmp_path, line)
    assert narrow.defects == defects
    assert narrow.hash != from_file(tmp_path, "").hash
    assert Rubric.from_dict(json.loads(json.dumps(narrow.to_dict()))) == replace(narrow, path=None)


def test_a_rubric_that_was_stored_before_there_were_defects_comes_back(tmp_path: Path) -> None:
    plain = from_file(tmp_path, "")
    stored = plain.to_dict()
    del stored["defects"]
    assert Rubric.from_dict(stored) == replace(plain, path=None)
    assert Rubric.from_dict(stored).hash == plain.hash


@pytest.mark.parametrize(
    "line", ["defects: [made_up]", "defects: [unclassified]", "defects: unsafe", "defects: [unsafe, unsafe]"]
)
def test_a_mistake_in_it_is_told_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "tone.yaml").write_text(f"{SMALL}{line}\n")
    (error,) = check_rubrics([tmp_path / "tone.yaml"])
    assert error.line == 6
    assert "defects" in str(error)


def test_the_reference_of_fields_has_it() -> None:
    page = (ROOT / "docs/reference/rubric-fields.md").read_text()
    assert re.search(r"^\| `defects` \| ● \| ", page, re.MULTILINE)
    assert "[Classes](defects.md)" in page


# What a model writes of them.


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        (["relevance:off_topic"], {"relevance": "off_topic"}),
        ([" relevance : off_topic "], {"relevance": "off_topic"}),
        (["relevance:off_topic", "relevance:off_topic"], {"relevance": "off_topic"}),
        (["relevance:off_topic", "relevance:selection", "relevance:off_topic"], {}),
        (["relevance:off_topic", "safety:unsafe"], {"relevance": "off_topic", "safety": "unsafe"}),
        (["relevance"], {}),
        ([["relevance", "off_topic"], None, 7, {"relevance": "off_topic"}], {}),
        ({"relevance": "off_topic"}, {}),
        ("relevance:off_topic", {}),
        (None, {}),
        ([], {}),
    ],
)
def test_entries_are_read_strictly(entries: object, found: dict[str, str]) -> None:
    assert read_defects(entries) == found


def test_a_flood_of_entries_is_cut() -> None:
    assert len(read_defects([f"r{n}:off_topic" for n in range(5000)])) == 1000


@pytest.fixture
def server():
    with FakeJudgeServer() as running:
        yield running


def reply(**verdicts: object) -> Reply:
    return Reply(content=json.dumps(verdicts))


LOW, HIGH = {"explanation": "no", "level": 1}, {"explanation": "yes", "level": 5}
GOOD = {"explanation": "fine", "items": {"polite": "yes", "short": "yes"}}


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ({DEFECTS: ["relevance:off_topic"]}, "off_topic"),
        ({DEFECTS: ["safety:unsafe", "relevance:selection"]}, "selection"),
        ({DEFECTS: ["relevance:something"]}, UNCLASSIFIED),
        ({DEFECTS: ["relevance:unclassified"]}, UNCLASSIFIED),
        ({DEFECTS: []}, UNCLASSIFIED),
        ({DEFECTS: "relevance:off_topic"}, UNCLASSIFIED),
        ({DEFECTS: {"relevance": "off_topic"}}, UNCLASSIFIED),
        ({DEFECTS: None}, UNCLASSIFIED),
        ({}, UNCLASSIFIED),
    ],
)
def test_a_good_verdict_stands_whatever_is_written_of_the_defect(server, written, kept) -> None:
    server.script(reply(relevance=LOW, safety=GOOD, **written))
    relevance, safety = ask(server.base_url, [ordinal(), checklist()])
    assert (relevance.value, relevance.passed, relevance.defect) == (0.0, False, kept)
    assert (safety.passed, safety.defect) == (True, None)
    assert server.traffic.calls == 1, "no repair is paid for a defect"


def test_what_passes_has_none_though_the_judge_names_one(server) -> None:
    server.script(reply(relevance=HIGH, **{DEFECTS: ["relevance:off_topic"]}))
    (outcome,) = ask(server.base_url, [ordinal()])
    assert (outcome.passed, outcome.defect) == (True, None)


def test_a_verdict_without_its_name_keeps_its_defect(server) -> None:
    # Asked for one verdict, models without structured output often leave its name out.
    server.script(reply(**LOW, **{DEFECTS: ["relevance:incomplete"]}))
    (outcome,) = ask(server.base_url, [ordinal()])
    assert outcome.defect == "incomplete"


def test_a_repair_brings_the_defect_of_what_was_repaired(server) -> None:
    server.script(
        reply(relevance={"level": 9}, safety=GOOD, **{DEFECTS: ["relevance:off_topic"]}),
        reply(relevance=LOW, **{DEFECTS: ["relevance:selection"]}),
    )
    relevance, _ = ask(server.base_url, [ordinal(), checklist()])
    assert relevance.defect == "selection"


def test_a_failure_has_none(server) -> None:
    server.script(reply(relevance={"level": 9}), reply(relevance={"level": 9}))
    (outcome,) = ask(server.base_url, [ordinal()])
    assert isinstance(outcome, Failure)
    assert not hasattr(outcome, "defect")


def test_a_rubric_narrows_what_its_judge_may_name(server) -> None:
    rubrics = [ordinal(defects=("selection", "off_topic")), checklist(defects=("unsafe",)), claims(defects=())]
    bad = {"explanation": "no", "items": {"polite": "no", "short": "no"}}
    claim = {"claims": [{"claim": "x", "quote": "", "context": 0, "verdict": "unsupported"}]}
    written = [f"{rubric.name}:truncated" for rubric in rubrics]
    server.script(reply(relevance=LOW, safety=bad, faithfulness=claim, **{DEFECTS: written}))
    outcomes = ask(server.base_url, rubrics)
    assert [outcome.passed for outcome in outcomes] == [False, False, False]
    assert [outcome.defect for outcome in outcomes] == [UNCLASSIFIED, "unsafe", None]


@pytest.mark.parametrize("unsupported", [(), ("json_schema",), ("json_schema", "json_object")])
def test_the_fake_server_names_defects_in_every_format(unsupported) -> None:
    with FakeJudgeServer(bad_when="broken", unsupported=unsupported) as running:
        for text, passes in (("all is well", True), ("broken", False)):
            outcomes = ask(running.base_url, [ordinal(), checklist()], a_record(output=text))
            for outcome in outcomes:
                assert isinstance(outcome, Score)
                assert outcome.passed is passes
                assert (outcome.defect in ALL) is not passes


# By rule.


def by_rule(engine: str, name: str, **fields: object) -> Score:
    judge = build_judge(None, JudgeSettings(engine=engine))
    (outcome,) = asyncio.run(judge.judge(a_record(**fields), [RUBRICS[name]]))
    assert isinstance(outcome, Score), outcome
    return outcome


ASKED = "How long do I have to return an order and get a refund?"
RIGHT = "Orders can be returned within 30 days; the refund takes five business days."
WRONG = "The Plus plan costs 14 euros a month and includes phone support on weekdays."
INVENTED = "You have 90 weeks, and gold coins arrive instantly by drone from Atlantis."


@pytest.mark.parametrize(
    ("name", "fields", "defect"),
    [
        ("faithfulness", {"contexts": (WRONG,), "output": INVENTED}, "retrieval_miss"),
        ("faithfulness", {"contexts": (RIGHT, WRONG), "output": INVENTED}, "unsupported_generation"),
        (
            "faithfulness",
            {"contexts": (RIGHT,), "output": INVENTED, "tool_events": (ToolEvent(name="look_up", error="timeout"),)},
            "tool_failure",
        ),
        # What breaks off is not invented for that.
        (
            "faithfulness",
            {"contexts": (RIGHT,), "output": INVENTED, "finish_reason": "length"},
            "unsupported_generation",
        ),
        ("relevance", {"contexts": (WRONG,), "output": "Bananas are yellow and grow in bunches."}, "retrieval_miss"),
        ("relevance", {"contexts": (RIGHT,), "output": "Bananas are yellow and grow in bunches."}, "off_topic"),
        ("relevance", {"contexts": (), "output": "Bananas are yellow and grow in bunches."}, "off_topic"),
        ("relevance", {"contexts": (RIGHT, WRONG), "output": WRONG}, "selection"),
        ("relevance", {"contexts": (RIGHT,), "output": "I'm sorry, but I can't help with that."}, "refused_wrongly"),
        ("relevance", {"contexts": (RIGHT,), "output": "I don't know."}, "coverage_gap"),
        ("relevance", {"contexts": (WRONG,), "output": "I don't know."}, "retrieval_miss"),
        ("relevance", {"contexts": (RIGHT,), "output": " "}, "incomplete"),
        ("completeness", {"contexts": (RIGHT,), "output": "Within", "finish_reason": "length"}, "truncated"),
        ("completeness", {"contexts": (RIGHT,), "output": "Bananas."}, "incomplete"),
        (
            "completeness",
            {"output": "Let me see.", "tool_events": (ToolEvent(name="look_up", error="timeout"),)},
            "tool_failure",
        ),
        ("safety", {"output": "Detonate the bomb, then poison and strangle them."}, "unsafe"),
    ],
)
def test_the_lexical_judge_finds_the_first_cause_that_shows(name, fields, defect) -> None:
    outcome = by_rule("lexical", name, **({"input": ASKED} | fields))
    assert (outcome.passed, outcome.defect) == (False, defect)


def test_a_conversation_is_judged_by_what_was_asked_last() -> None:
    turns = (Message(role="user", content="Hello!"), Message(role="user", content=ASKED))
    assert (
        by_rule("lexical", "faithfulness", input=turns, contexts=(WRONG,), output=INVENTED).defect == "retrieval_miss"
    )


def test_a_question_of_hardly_any_words_points_to_no_context() -> None:
    outcome = by_rule("lexical", "faithfulness", input="And then?", contexts=(WRONG,), output=INVENTED)
    assert outcome.defect == "unsupported_generation"


@pytest.mark.parametrize(
    ("name", "fields", "defect"),
    [
        ("completeness", {"output": "It is", "finish_reason": "length"}, "truncated"),
        ("completeness", {"output": ""}, "incomplete"),
        ("completeness", {"output": "{}", "required_fields": ("price",)}, "incomplete"),
        ("completeness", {"output": "I'm sorry, but I can't help with that."}, "refused_wrongly"),
        (
            "completeness",
            {"output": "Done.", "tool_events": (ToolEvent(name="pay", error="declined"),)},
            "tool_failure",
        ),
        ("safety", {"output": "Your card number is 4111 1111 1111 1111."}, "unsafe"),
    ],
)
def test_the_rules_judge_names_what_it_found(name, fields, defect) -> None:
    outcome = by_rule("rules", name, **fields)
    assert (outcome.passed, outcome.defect) == (False, defect)


@pytest.mark.parametrize("engine", ["lexical", "rules"])
def test_what_passes_by_rule_has_none(engine) -> None:
    answer = "You can return the order within 30 days. The refund takes five business days to arrive."
    outcome = by_rule(engine, "completeness", input=ASKED, contexts=(RIGHT,), output=answer)
    assert (outcome.passed, outcome.defect) == (True, None)
