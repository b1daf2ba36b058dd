"""Rubrics: loading, identity, comparing, and the mistakes of rubric files, each with its line, field and mend."""

import copy
import io
import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from assay.cascade import Cascade
from assay.errors import ConfigError, RubricError
from assay.records import Context, Message, Record, ToolEvent
from assay.repeats import Repeats
from assay.rubrics import (
    JudgeSpec,
    Rubric,
    check_rubrics,
    diff_rubrics,
    load_rubrics,
    rubric_fields_markdown,
    rubric_schema,
)
from assay.scales import Binary, Checklist, Claims, Item, Level, Ordinal

ROOT = Path(__file__).parents[2]

#: The smallest rubric. Line 5 is `scale:`.
SMALL = """\
name: short
version: "1"
instructions: Judge whether it is short.
pass_threshold: 0.5
scale:
  type: binary
  pass_when: It is short.
  fail_when: It is long.
"""

ORDINAL = """\
name: tone
version: "1"
instructions: Judge the tone.
pass_threshold: 0.5
scale:
  type: ordinal
  levels:
    - level: 1
      anchor: Rude.
    - level: 2
      anchor: Kind.
"""

CHECKLIST = """\
name: manners
version: "1"
instructions: Judge the manners.
pass_threshold: 0.5
scale:
  type: checklist
  items:
    - id: greets
      question: Does it greet?
    - id: signs
      question: Does it sign?
      weight: 2
"""

CLAIMS = """\
name: grounded
version: "1"
instructions: Judge the grounding.
pass_threshold: 0.5
requires: [contexts]
scale:
  type: claims
"""

FULL = """\
name: relevance
version: "1.10"
title: Answer relevance
description: What it is for.
dimension: other
requires: [input, output]
instructions: |
  Judge the aim.
  Nothing else.
scale:
  type: checklist
  allow_na: false
  items:
    - {id: "yes", question: "Is it so?", weight: 2.5}
pass_threshold: 0.75
objective: 0.99
ask: alone
judge:
  engine: openai
  model: gpt-5-mini
  base_url: http://localhost:11434/v1
  temperature: 0.2
  max_tokens: 500
calibration: calibration/relevance.json
gate: calibrated
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes, name: str = "rubric.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def load(write):
    return lambda text: load_rubrics([write(text)])[0]


@pytest.fixture
def mistakes(write):
    """(line, field, message) of every mistake in a file of this text."""
    return lambda text: [(e.line, e.field, e.message) for e in check_rubrics([write(text)])]


# Loading.


def test_every_field_is_read(load, tmp_path):
    assert load(FULL) == Rubric(
        name="relevance",
        version="1.10",
        title="Answer relevance",
        description="What it is for.",
        dimension="other",
        requires=("input", "output"),
        instructions="Judge the aim.\nNothing else.",
        scale=Checklist(allow_na=False, items=(Item(id="yes", question="Is it so?", weight=2.5),)),
        pass_threshold=0.75,
        objective=0.99,
        ask="alone",
        judge=JudgeSpec(
            engine="openai",
            model="gpt-5-mini",
            base_url="http://localhost:11434/v1",
            temperature=0.2,
            max_tokens=500,
        ),
        calibration="calibration/relevance.json",
        gate="calibrated",
        path=tmp_path / "rubric.yaml",
    )


def test_what_may_be_left_out_has_defaults(load):
    rubric = load(SMALL)
    assert (rubric.title, rubric.description, rubric.requires) == ("", "", ())
    assert (rubric.objective, rubric.ask, rubric.judge, rubric.calibration) == (None, "together", None, None)
    assert (rubric.dimension, rubric.gate) == ("other", "none")
    assert rubric.scale == Binary(pass_when="It is short.", fail_when="It is long.")


def test_every_scale_is_read(load):
    assert load(ORDINAL).scale == Ordinal(levels=(Level(level=1, anchor="Rude."), Level(level=2, anchor="Kind.")))
    assert load(CLAIMS).scale == Claims(max_claims=20)
    assert load(CLAIMS + "  max_claims: 5\n").scale == Claims(max_claims=5)
    assert load(SMALL + "  pass_label: short\n  fail_label: 'no'\n").scale == Binary(
        pass_when="It is short.", fail_when="It is long.", pass_label="short", fail_label="no"
    )


@pytest.mark.parametrize("name", ["faithfulness", "relevance", "safety", "completeness"])
def test_the_dimension_is_the_name_when_that_is_one(load, name):
    assert load(SMALL.replace("short\n", f"{name}\n", 1)).dimension == name


def test_texts_that_prompts_list_are_on_one_line(load):
    rubric = load(SMALL.replace("It is short.", ">\n    It is\n\n    short.  "))
    assert rubric.scale.pass_when == "It is short."
    assert "pass: It is short.\n" in rubric.scale.prompt()


def test_a_byte_order_mark_and_windows_lines_are_read(load):
    text = "\ufeff" + SMALL.replace("\n", "\r\n")
    assert load(text).hash == load(SMALL).hash


def test_directories_give_their_yaml_files_by_name(write, tmp_path):
    write(SMALL, "b.yml")
    write(ORDINAL, "a.yaml")
    write("not a rubric", "notes.txt")
    (tmp_path / "below.yaml").mkdir()
    (tmp_path / "below.yaml" / "c.yaml").write_text(CHECKLIST)
    assert [r.name for r in load_rubrics([tmp_path])] == ["tone", "short"]


def test_a_file_named_twice_is_read_once(write, tmp_path):
    path = write(SMALL)
    assert [r.name for r in load_rubrics([path, tmp_path, path])] == ["short"]


def test_none_means_the_shipped():
    assert sorted(r.name for r in load_rubrics()) == ["completeness", "faithfulness", "relevance", "safety"]
    assert check_rubrics() == []


def test_a_word_stands_for_the_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path("rubrics/examples/checklist_support_tone.yaml").resolve()
    names = {rubric.name for rubric in load_rubrics([Path("shipped"), own])}
    assert names == {rubric.name for rubric in load_rubrics()} | {"support_tone"}
    # A directory of that name is still to be had.
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "own.yaml").write_bytes(own.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert [rubric.name for rubric in load_rubrics([tmp_path / "shipped"])] == ["support_tone"]


def test_load_raises_the_first_mistake_as_a_config_error(write):
    path = write(SMALL.replace("version", "vversion"))
    with pytest.raises(RubricError) as caught:
        load_rubrics([path])
    assert isinstance(caught.value, ConfigError)
    assert str(caught.value) == f"{path}:2: vversion: is not a field: did you mean version?"


def test_good_files_do_not_hide_bad_ones(write, tmp_path):
    write(SMALL, "a.yaml")
    write("name: [", "b.yaml")
    write(SMALL.replace("0.5", "2"), "c.yaml")
    assert [Path(e.path).name for e in check_rubrics([tmp_path])] == ["b.yaml", "c.yaml", "c.yaml"]


def test_two_files_of_one_name_are_a_mistake(write, tmp_path):
    first, second = write(SMALL, "a.yaml"), write("# copy\n" + SMALL, "b.yaml")
    (error,) = check_rubrics([tmp_path])
    assert (error.path, error.line, error.field) == (second, 2, "name")
    assert str(first) in error.message
    assert "rename" in error.message
    with pytest.raises(RubricError):
        load_rubrics([first, second])


# Identity.


def test_the_hash_is_stable(load):
    rubric = load(SMALL)
    assert re.fullmatch(r"[0-9a-f]{64}", rubric.hash)
    assert rubric.revision == f"1-{rubric.hash[:8]}"
    assert rubric.hash == load(SMALL).hash == replace(rubric).hash
    # A new value here gives every rubric's scores a new series: raise VERDICT_VERSION only where verdicts change.
    assert rubric.hash == "b43833378b1ccdbeeed7086a328d65a8e44112fefebe4595e361802ba5493a41"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: relevance", "name: relevance2"),
        ("dimension: other", "dimension: safety"),
        ("[input, output]", "[input]"),
        ("Judge the aim.", "Judge the Aim."),
        ("Is it so?", "Is it not so?"),
        ('"yes"', "so"),
        ("2.5", "2.6"),
        ("allow_na: false", "allow_na: true"),
        ("pass_threshold: 0.75", "pass_threshold: 0.76"),
        ("ask: alone", "ask: together"),
    ],
)
def test_what_changes_the_question_or_the_verdict_changes_the_hash(load, old, new):
    assert old in FULL
    assert load(FULL.replace(old, new)).hash != load(FULL).hash


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"1.10"', '"2"'),
        ("Answer relevance", "Another title"),
        ("What it is for.", "Something else."),
        ("[input, output]", "[output, input]"),
        ("  Nothing else.\n", "  Nothing else.\n\n\n"),
        ("pass_threshold: 0.75", "pass_threshold: 0.750"),
        ("weight: 2.5", "weight: 25e-1"),
        ("objective: 0.99\n", ""),
        ("model: gpt-5-mini", "model: gpt-5"),
        ("calibration: calibration/relevance.json\n", ""),
        ("gate: calibrated\n", ""),
        ("ask: alone", "ask: alone # a comment"),
        ('question: "Is it so?"', "question: 'Is  it so? '"),
    ],
)
def test_what_changes_neither_keeps_the_hash(load, old, new):
    assert old in FULL
    assert load(FULL.replace(old, new)).hash == load(FULL).hash


@pytest.mark.parametrize("text", [SMALL, ORDINAL, CHECKLIST, CLAIMS, FULL])
def test_a_rubric_comes_back_from_its_dict(load, text):
    rubric = load(text)
    again = Rubric.from_dict(json.loads(json.dumps(rubric.to_dict())))
    assert again == replace(rubric, path=None)
    assert (again.hash, again.to_dict()) == (rubric.hash, rubric.to_dict())


def test_a_dict_of_before_a_field_came_gets_its_default(load):
    older = {key: value for key, value in load(FULL).to_dict().items() if key != "gate"}
    assert Rubric.from_dict(older) == replace(load(FULL), path=None, gate="none")


LEAST = {"name": "n", "version": "1", "instructions": "i", "pass_threshold": 0.5, "scale": {"type": "claims"}}


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        None,
        {"name": "short"},
        LEAST | {"instructions": 2},
        LEAST | {"pass_threshold": "half"},
        LEAST | {"scale": {"type": "binary"}},
        LEAST | {"scale": "claims"},
        LEAST | {"a_field_to_come": 1},
    ],
)
def test_what_is_no_dict_of_a_rubric_is_refused(data):
    with pytest.raises(ValueError, match=r"not a rubric|could not convert"):
        Rubric.from_dict(data)


def test_written_defaults_keep_the_hash(load):
    assert load(CHECKLIST).hash == load(CHECKLIST.replace("Does it greet?", "Does it greet?\n      weight: 1")).hash
    assert load(SMALL).hash == load(SMALL + "  pass_label: pass\nask: together\nrequires: []\n").hash
    assert load(CLAIMS).hash == load(CLAIMS + "  max_claims: 20\n").hash


def test_a_rubric_built_in_code_has_the_hash_of_its_file(load):
    built = Rubric(
        name="short",
        version="1",
        instructions="Judge whether it is short.",
        scale=Binary(pass_when="It is short.", fail_when="It is long."),
        pass_threshold=0.5,
    )
    assert built.hash == load(SMALL).hash


@pytest.mark.parametrize("text", [SMALL, ORDINAL, CHECKLIST, CLAIMS, FULL])
def test_a_rubric_written_out_reads_back_the_same(load, text):
    rubric = load(text)
    data = {key: value for key, value in rubric.to_dict().items() if value not in (None, "")}
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.version = "1.1"  # quotes what YAML 1.1 would misread, such as yes
    yaml.dump(data, stream)
    again = load(stream.getvalue().split("---\n", 1)[1])
    assert again == rubric
    assert again.hash == rubric.hash


def test_a_judge_of_an_earlier_version_is_read():
    """It wrote the fields that it knew, None or not."""
    rubric = load_rubrics()[0]
    old = rubric.to_dict() | {
        "judge": {"engine": "openai", "model": "gpt-5-mini", "base_url": None, "temperature": None, "max_tokens": None}
    }
    assert Rubric.from_dict(old).judge == JudgeSpec(engine="openai", model="gpt-5-mini")
    with pytest.raises(ValueError, match="not a rubric"):
        Rubric.from_dict(rubric.to_dict() | {"judge": {"engine": "openai", "of_the_future": 1}})


class TestJudgeFields:
    @pytest.mark.parametrize(
        ("judge", "message"),
        [
            ("{engine: ragas}", "ragas needs a metric"),
            ("{metric: faithfulness}", "only ragas has metrics"),
            ("{engine: lexical, metric: faithfulness}", "lexical has none"),
            ("{engine: openai, embedding_model: e}", "openai has none"),
            ("{engine: ragas, metric: no_such}", "faithfulness"),
        ],
    )
    def test_a_metric_goes_with_ragas_and_with_nothing_else(self, load, judge, message):
        with pytest.raises(RubricError, match=message) as error:
            load(f"{SMALL}judge: {judge}\n")
        assert error.value.line == SMALL.count("\n") + 1

    def test_a_metric_of_ragas(self, load):
        rubric = load(f"{SMALL}judge: {{engine: ragas, metric: context_recall, model: m}}\n")
        assert rubric.judge == JudgeSpec(engine="ragas", metric="context_recall", model="m")
        assert rubric.to_dict()["judge"] == {"engine": "ragas", "metric": "context_recall", "model": "m"}


REPEATED = SMALL + "repeats: {most: 5, band: [0.3, 0.7]}\n"


class TestRepeats:
    def test_they_are_read_written_and_part_of_the_hash(self, load):
        rubric = load(REPEATED)
        assert rubric.repeats == Repeats(most=5, band=(0.3, 0.7))
        assert rubric.to_dict()["repeats"] == {"most": 5, "band": [0.3, 0.7]}
        assert Rubric.from_dict(json.loads(json.dumps(rubric.to_dict()))) == replace(rubric, path=None)
        fixed = load(SMALL + "repeats: {most: 5}\n")
        assert fixed.repeats == Repeats(most=5)
        assert Rubric.from_dict(fixed.to_dict()) == replace(fixed, path=None)
        texts = [SMALL, REPEATED, REPEATED.replace("5,", "3,"), REPEATED.replace("0.3", "0.4")]
        assert len({load(text).hash for text in texts} | {fixed.hash}) == 5
        changed = [change for change in diff_rubrics(load(SMALL), rubric) if change.field.startswith("repeats")]
        assert [(change.field, change.changes_hash) for change in changed] == [
            ("repeats.most", True),
            ("repeats.band", True),
        ]

    def test_a_rubric_without_them_is_written_as_workers_of_the_release_before_read_it(self, load):
        assert "repeats" not in load(SMALL).to_dict()

    @pytest.mark.parametrize(
        ("repeats", "message"),
        [
            ("{most: 1}", "2"),
            ("{most: 10}", "9"),
            ("{most: 2.5}", "whole number"),
            ("{band: [0.3, 0.7]}", "most"),
            ("5", "most"),
            ("{most: 5, band: 0.3}", "list"),
            ("{most: 5, band: [0.3]}", "2"),
            ("{most: 5, band: [0.3, 0.5, 0.7]}", "2"),
            ("{most: 5, band: [0.3, 1.7]}", "1"),
            ("{most: 5, band: [a, b]}", "number"),
            ("{most: 5, band: [0.7, 0.3]}", "not below"),
            ("{most: 5, band: [0.5, 0.5]}", "not below"),
            ("{most: 5, band: [0.6, 0.7]}", "0.5, the pass_threshold, lies outside"),
            ("{most: 5, least: 2}", "least"),
        ],
    )
    def test_a_mistake_in_them_is_said(self, load, repeats, message):
        with pytest.raises(RubricError, match=message) as error:
            load(f"{SMALL}repeats: {repeats}\n")
        assert error.value.line == SMALL.count("\n") + 1

    @pytest.mark.parametrize(
        ("judge", "message", "line"),
        [
            ("{engine: lexical}", "lexical is asked once", 9),
            ("{engine: ragas, metric: faithfulness}", "ragas is asked once", 9),
            ("{engine: openai, temperature: 0}", "says the same again", 10),
            ("{temperature: 0.0}", "says the same again", 10),
        ],
    )
    def test_a_judge_that_would_say_the_same_again_is_a_mistake(self, load, judge, message, line):
        with pytest.raises(RubricError, match=message) as error:
            load(f"{REPEATED}judge: {judge}\n")
        assert error.value.line == line
        assert load(REPEATED + "judge: {temperature: 0.7}\n").repeats is not None


CASCADED = SMALL + "dimension: relevance\ncascade: {first: lexical, share: 0.3, band: [0, 0.9]}\n"


class TestCascade:
    def test_it_is_read_and_written_and_not_part_of_the_hash(self, load):
        rubric = load(CASCADED)
        assert rubric.cascade == Cascade(first="lexical", share=0.3, band=(0.0, 0.9))
        assert rubric.to_dict()["cascade"] == {"first": "lexical", "share": 0.3, "band": [0.0, 0.9]}
        assert Rubric.from_dict(json.loads(json.dumps(rubric.to_dict()))) == replace(rubric, path=None)
        short = load(SMALL + "dimension: relevance\ncascade: {first: lexical, share: 0.3}\n")
        assert short.cascade == Cascade(first="lexical", share=0.3)
        assert Rubric.from_dict(short.to_dict()) == replace(short, path=None)
        without = load(SMALL + "dimension: relevance\n")
        assert without.hash == short.hash == rubric.hash, "it changes who is asked for, and no verdict"
        changed = [(change.field, change.changes_hash) for change in diff_rubrics(without, rubric)]
        assert changed == [("cascade.first", False), ("cascade.share", False), ("cascade.band", False)]

    def test_a_rubric_without_it_is_written_as_workers_of_the_release_before_read_it(self, load):
        assert "cascade" not in load(SMALL).to_dict()

    @pytest.mark.parametrize(
        ("cascade", "message"),
        [
            ("{first: lexical}", "share"),
            ("{share: 0.3}", "first"),
            ("{first: openai, share: 0.3}", "lexical"),
            ("{first: lexical, share: 0}", "0.01"),
            ("{first: lexical, share: 1}", "1"),
            ("{first: lexical, share: 0.3, band: [0.9]}", "2"),
            ("{first: lexical, share: 0.3, band: [0, 1.1]}", "1"),
            ("{first: lexical, share: 0.3, band: [0.9, 0.2]}", "0.9 is not below 0.2"),
            ("{first: lexical, share: 0.3, band: [a, b]}", "number"),
            ("{first: lexical, share: 0.3, below: 1}", "below"),
            ("{first: rules, share: 0.3}", "rules knows nothing of this rubric: write `dimension:`"),
            ("lexical", "first"),
            ("{first: [lexical], share: 0.3}", "first"),
            ("{first: {a: 1}, share: 0.3}", "first"),
        ],
    )
    def test_a_mistake_in_it_is_said(self, load, cascade, message):
        with pytest.raises(RubricError, match=message) as error:
            load(f"{SMALL}dimension: relevance\ncascade: {cascade}\n")
        assert error.value.line == SMALL.count("\n") + 2

    def test_a_rubric_that_no_keyless_judge_knows_can_have_none(self, load):
        cascade = "cascade: {first: rules, share: 0.3}\n"
        with pytest.raises(RubricError, match="one of safety, completeness"):
            load(SMALL + cascade)
        assert load(f"{SMALL}dimension: safety\n{cascade}").cascade == Cascade(first="rules", share=0.3)
        with pytest.raises(RubricError, match="lexical knows nothing of this rubric"):
            load(f"{SMALL}dimension: other\n{cascade.replace('rules', 'lexical')}")

    def test_a_judge_that_is_free_is_asked_for_every_record(self, load):
        with pytest.raises(RubricError, match="lexical is free") as error:
            load(CASCADED + "judge: {engine: lexical}\n")
        assert error.value.field == "cascade"


# What a record must have.


def record(**fields):
    return Record(record_id="r", timestamp=datetime(2026, 1, 31, tzinfo=UTC), **fields)


@pytest.mark.parametrize(
    ("name", "absent", "present"),
    [
        ("input", {"input": " \n"}, {"input": "Hi"}),
        ("input", {"input": (Message(role="user", content=""),)}, {"input": (Message(role="user", content="Hi"),)}),
        ("output", {"output": ""}, {"output": "Hello"}),
        ("contexts", {}, {"contexts": (Context(text=" "), Context(text="Refunds take 30 days."))}),
        ("contexts", {"contexts": (Context(text="\n"),)}, {"contexts": (Context(text="x"),)}),
        ("reference", {}, {"reference": "30 days"}),
        ("reference", {"reference": ""}, {"reference": "30 days"}),
        ("tool_events", {}, {"tool_events": (ToolEvent(name="search"),)}),
    ],
)
def test_missing_says_what_a_record_lacks(load, name, absent, present):
    rubric = load(SMALL + f"requires: [{name}]\n")
    assert rubric.missing(record(**absent)) == f"missing_{name}"
    assert rubric.missing(record(**present)) is None


def test_missing_names_the_first_and_nothing_when_nothing_is_required(load):
    assert load(SMALL).missing(record()) is None
    assert load(SMALL + "requires: [output, contexts]\n").missing(record()) == "missing_output"


# Comparing.


def test_a_rubric_does_not_differ_from_itself(load):
    assert diff_rubrics(load(FULL), load(FULL)) == []


def test_differences_are_told_by_field_and_whether_they_change_the_hash(load):
    new = FULL.replace("Is it so?", "Is it?").replace("0.99", "0.9").replace("gpt-5-mini", "gpt-5")
    assert [tuple(change) for change in diff_rubrics(load(FULL), load(new))] == [
        ("scale.items[yes].question", "Is it so?", "Is it?", True),
        ("objective", 0.99, 0.9, False),
        ("judge.model", "gpt-5-mini", "gpt-5", False),
    ]


def test_items_are_compared_by_id(load):
    new = CHECKLIST.replace("    - id: greets", "    - id: thanks\n      question: Thanks?\n    - id: greets")
    assert [tuple(change) for change in diff_rubrics(load(CHECKLIST), load(new))] == [
        ("scale.items.order", ["greets", "signs"], ["thanks", "greets", "signs"], True),
        ("scale.items[thanks].question", None, "Thanks?", True),
        ("scale.items[thanks].weight", None, 1.0, True),
    ]


def test_levels_are_compared_by_number(load):
    changes = diff_rubrics(load(ORDINAL), load(ORDINAL.replace("Kind.", "Warm.")))
    assert [tuple(change) for change in changes] == [("scale.levels[2].anchor", "Kind.", "Warm.", True)]


def test_another_scale_is_told_in_full(load):
    changes = {change.field: change for change in diff_rubrics(load(SMALL), load(ORDINAL))}
    assert changes["scale.type"][1:] == ("binary", "ordinal", True)
    assert changes["scale.pass_when"].new is None
    assert changes["scale.levels[1].anchor"].old is None


@pytest.mark.parametrize("old", [SMALL, ORDINAL, CHECKLIST, CLAIMS, FULL])
@pytest.mark.parametrize("new", [SMALL, ORDINAL, CHECKLIST, CLAIMS, FULL])
def test_the_hash_differs_exactly_when_a_difference_says_so(load, old, new):
    before, after = load(old), load(new)
    assert (before.hash != after.hash) == any(change.changes_hash for change in diff_rubrics(before, after))


# Mistakes. Each: the file, and of its one mistake the line, the field and what the message must say.


def changed(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


MISTAKES = {
    # Traps of YAML
    "unquoted version": (changed(SMALL, '"1"', "1.10"), 2, "version", 'write "1.10"'),
    "whole version": (changed(SMALL, '"1"', "1"), 2, "version", 'write "1"'),
    "date as version": (changed(SMALL, '"1"', "2026-01-31"), 2, "version", 'write "2026-01-31"'),
    "octal version": (changed(SMALL, '"1"', "010"), 2, "version", 'write "010"'),
    "sexagesimal version": (changed(SMALL, '"1"', "1:30"), 2, "version", 'write "1:30"'),
    "yes as label": (SMALL + "  pass_label: yes\n", 9, "scale.pass_label", 'write "yes"'),
    "no as label": (SMALL + "  fail_label: No\n", 9, "scale.fail_label", 'write "No"'),
    "true as label": (SMALL + "  pass_label: true\n", 9, "scale.pass_label", 'write "true"'),
    "on as item": (changed(CHECKLIST, "greets", "on"), 8, "scale.items[0].id", 'write "on"'),
    "off as item": (changed(CHECKLIST, "signs", "off"), 10, "scale.items[1].id", 'write "off"'),
    "y as item": (changed(CHECKLIST, "signs", "y"), 10, "scale.items[1].id", 'write "y"'),
    "null as item": (changed(CHECKLIST, "signs", "null"), 10, "scale.items[1].id", "is empty"),
    "number as anchor": (changed(ORDINAL, "Rude.", "7"), 9, "scale.levels[0].anchor", 'write "7"'),
    "yes as boolean": (CHECKLIST + "  allow_na: yes\n", 13, "scale.allow_na", "write true"),
    "off as boolean": (CHECKLIST + "  allow_na: off\n", 13, "scale.allow_na", "write false"),
    "text as boolean": (CHECKLIST + "  allow_na: 'true'\n", 13, "scale.allow_na", "true or false"),
    "octal level": (changed(ORDINAL, "level: 1", "level: 01"), 8, "scale.levels[0].level", "01 is not a plain"),
    "0o level": (changed(ORDINAL, "level: 1", "level: 0o1"), 8, "scale.levels[0].level", "0o1 is not a plain"),
    "hex level": (changed(ORDINAL, "level: 1", "level: 0x1"), 8, "scale.levels[0].level", "0x1 is not a plain"),
    "NaN threshold": (changed(SMALL, "0.5", ".nan"), 4, "pass_threshold", "0.7"),
    "plain NaN threshold": (changed(SMALL, "0.5", "NaN"), 4, "pass_threshold", "0.7"),
    "infinite threshold": (changed(SMALL, "0.5", ".inf"), 4, "pass_threshold", "0.7"),
    "overflowing threshold": (changed(SMALL, "0.5", "1e999"), 4, "pass_threshold", "0.7"),
    "grouped number": (SMALL + "judge: {max_tokens: 1_000}\n", 9, "judge.max_tokens", "plain decimal"),
    "boolean threshold": (changed(SMALL, "0.5", "true"), 4, "pass_threshold", "must be a number, not true"),
    "boolean weight": (changed(CHECKLIST, "weight: 2", "weight: yes"), 12, "scale.items[1].weight", "not yes"),
    "quoted threshold": (changed(SMALL, "0.5", '"0.5"'), 4, "pass_threshold", "must be a number"),
    "duplicate key": (SMALL + "name: other\n", 9, "name", "line 1 already"),
    "duplicate inner key": (SMALL + "  type: binary\n", 9, "scale.type", "line 6 already"),
    "duplicate in a list": (CHECKLIST + "      weight: 3\n", 13, "scale.items[1].weight", "line 12 already"),
    "alias": (changed(SMALL, "name: short", "name: &n short") + "title: *n\n", 9, "title", "write the value out"),
    "merge key": (SMALL + "<<: {ask: alone}\n", 9, None, "merge keys"),
    "tag": (changed(SMALL, '"1"', "!!str 1"), 2, "version", "quotes make a text"),
    "python tag": (changed(SMALL, '"1"', "!!python/object:os.system x"), 2, "version", "tags"),
    "second document": (SMALL + "---\nnonsense: 1\n", 9, None, "one rubric a file"),
    "list as key": (SMALL + "? [a, b]\n: c\n", 9, None, "a key is a word"),
    "surrogate": (changed(SMALL, "It is long.", r'"\ud800"'), 8, "scale.fail_when", "surrogate"),
    # Fields
    "unknown field": (SMALL + "titlex: x\n", 9, "titlex", "did you mean title?"),
    "unknown field far off": (SMALL + "zzz: x\n", 9, "zzz", "known are name, version"),
    "unknown inner field": (SMALL + "  levels: []\n", 9, "scale.levels", "known are type, pass_when"),
    "unknown field in a list": (CHECKLIST + "      weigh_t: 2\n", 13, "scale.items[1].weigh_t", "did you mean weight?"),
    "unknown judge field": (SMALL + "judge: {api_key: x}\n", 9, "judge.api_key", "is not a field"),
    "misspelt required field": (changed(SMALL, "instructions:", "instruction:"), 3, "instruction", "instructions?"),
    "no name": (changed(SMALL, "name: short\n", ""), 1, "name", "is missing"),
    "no anchor": (changed(ORDINAL, "      anchor: Kind.\n", ""), 10, "scale.levels[1].anchor", "is missing"),
    "no scale": (SMALL.split("scale:")[0], 1, "scale", "type: binary, ordinal, checklist or claims"),
    "no scale type": (changed(SMALL, "  type: binary\n", ""), 5, "scale.type", "binary, ordinal, checklist or claims"),
    "unknown scale type": (changed(SMALL, "binary", "binray"), 6, "scale.type", "did you mean binary?"),
    "scale type of no kind": (changed(SMALL, "binary", "5"), 6, "scale.type", "known are binary"),
    "empty scale type": (changed(SMALL, "binary", ""), 6, "scale.type", "known are binary"),
    "empty scale": (SMALL.split("scale:")[0] + "scale:\n", 5, "scale", "give it a type"),
    "scale that is a text": (SMALL.split("scale:")[0] + "scale: binary\n", 5, "scale", "not the text binary"),
    "no levels": (ORDINAL.split("  levels:")[0], 5, "scale.levels", "is missing"),
    "empty levels": (ORDINAL.split("  levels:")[0] + "  levels: []\n", 7, "scale.levels", "at least 2"),
    "one level": (ORDINAL.split("    - level: 2")[0], 7, "scale.levels", "at least 2"),
    "empty items": (CHECKLIST.split("  items:")[0] + "  items: []\n", 7, "scale.items", "at least 1"),
    "items that are fields": (CHECKLIST.split("  items:")[0] + "  items: {a: b}\n", 7, "scale.items", "a list"),
    "empty text": (changed(SMALL, "It is long.", ""), 8, "scale.fail_when", "is empty"),
    "blank text": (changed(SMALL, "It is long.", '" "'), 8, "scale.fail_when", "is empty"),
    "text that is a list": (changed(SMALL, "It is long.", "[a]"), 8, "scale.fail_when", "must be a text, not a list"),
    "text that is fields": (changed(SMALL, "It is long.", "{a: b}"), 8, "scale.fail_when", "not fields"),
    "long title": (SMALL + f"title: {'x' * 101}\n", 9, "title", "101 characters, more than 100"),
    "bad name": (changed(SMALL, "name: short", "name: Too Short"), 1, "name", "lower-case letters"),
    "name with a line break": (changed(SMALL, "name: short", 'name: "short\\n"'), 1, "name", "lower-case letters"),
    "name that starts with a digit": (changed(SMALL, "name: short", "name: 2short"), 1, "name", "a letter first"),
    "bad item id": (changed(CHECKLIST, "greets", "says hi"), 8, "scale.items[0].id", "lower-case letters"),
    "empty label": (SMALL + '  pass_label: ""\n', 9, "scale.pass_label", "1 to 40 characters"),
    "label with a quote": (SMALL + "  pass_label: 'a\"b'\n", 9, "scale.pass_label", "without quotes"),
    "unknown requirement": (SMALL + "requires: [context]\n", 9, "requires[0]", "did you mean contexts?"),
    "twice required": (SMALL + "requires: [input, input]\n", 9, "requires[1]", "keep one"),
    "requirement without a list": (SMALL + "requires: input\n", 9, "requires", 'for example, ["contexts"]'),
    "unknown dimension": (SMALL + "dimension: safetyy\n", 9, "dimension", "did you mean safety?"),
    "unknown ask": (SMALL + "ask: both\n", 9, "ask", "known are together, alone"),
    "threshold 0": (changed(SMALL, "0.5", "0"), 4, "pass_threshold", "above 0 and at most 1"),
    "threshold in percent": (changed(SMALL, "0.5", "80"), 4, "pass_threshold", "80 is out of range"),
    "negative threshold": (changed(SMALL, "0.5", "-0.5"), 4, "pass_threshold", "out of range"),
    "objective 1": (SMALL + "objective: 1\n", 9, "objective", "above 0 and below 1"),
    "fractional level": (changed(ORDINAL, "level: 1", "level: 1.5"), 8, "scale.levels[0].level", "whole number"),
    "level out of range": (changed(ORDINAL, "level: 2", "level: 100"), 10, "scale.levels[1].level", "at most 10"),
    "weight 0": (changed(CHECKLIST, "weight: 2", "weight: 0"), 12, "scale.items[1].weight", "above 0"),
    "max_claims 0": (CLAIMS + "  max_claims: 0\n", 8, "scale.max_claims", "at least 1"),
    "unknown engine": (SMALL + "judge: {engine: opnai}\n", 9, "judge.engine", "did you mean openai?"),
    "bad base URL": (SMALL + "judge: {base_url: localhost}\n", 9, "judge.base_url", "http(s)://host/path"),
    "judge without fields": (SMALL + "judge: openai\n", 9, "judge", '{"engine": "openai"'),
    "empty judge": (SMALL + "judge:\n", 9, "judge", "is empty"),
    # Meaning
    "twice a level": (changed(ORDINAL, "level: 2", "level: 1"), 10, "scale.levels[1].level", "1 comes after 1"),
    "levels downwards": (changed(ORDINAL, "level: 2", "level: 0"), 10, "scale.levels[1].level", "from the lowest"),
    "twice an anchor": (changed(ORDINAL, "Kind.", '"Rude. "'), 11, "scale.levels[1].anchor", "line 9"),
    "twice an item": (changed(CHECKLIST, "signs", "greets"), 10, "scale.items[1].id", "line 8"),
    "twice a question": (changed(CHECKLIST, "sign?", "greet?"), 11, "scale.items[1].question", "line 9"),
    "the same labels": (SMALL + "  pass_label: FAIL\n", 9, "scale.fail_label", "rename one"),
    "claims without contexts": (changed(CLAIMS, "[contexts]", "[output]"), 5, "requires", "[contexts, output]"),
    "claims that require nothing": (changed(CLAIMS, "requires: [contexts]\n", ""), 5, "requires", "quotes"),
    "placeholder": (changed(SMALL, "it is short", "{{ output }} is short"), 3, "instructions", "is not filled in"),
    "format placeholder": (changed(SMALL, "it is short", "{question} is met"), 3, "instructions", "name its parts"),
    "placeholder in an item": (changed(CHECKLIST, "it sign", "{{x}} sign"), 11, "scale.items[1].question", "filled in"),
    "placeholder in a condition": (changed(SMALL, "It is long", "The {answer} is"), 8, "scale.fail_when", "filled in"),
    "model of a free judge": (SMALL + "judge: {engine: rules, model: x}\n", 9, "judge.model", "remove"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_with_line_field_and_mend(mistakes, case):
    text, line, field, says = MISTAKES[case]
    found = mistakes(text)
    assert [(at, what) for at, what, _ in found] == [(line, field)], found
    assert says in found[0][2]


SYNTAX = {
    "tab": ("name: x\n\tversion: y\n", 2, "indent with spaces"),
    "open bracket": ("name: [a, b\n", 1, "open quote or bracket"),
    "open quote": ('name: "a\nversion: x\n', 1, "open quote or bracket"),
    "colon in a text": ("name: a: b\n", 1, "quote the text"),
    "no colon": ("name: a\nversion\ntitle: b\n", 2, "is its `:` missing"),
    "unknown escape": ('name: "\\q"\n', 1, "escape"),
    "escape beyond Unicode": ('name: "\\UFFFFFFFF"\n', None, "is not YAML"),
    "version of YAML": ("%YAML 1.9\n---\nname: x\n", None, "is not YAML"),
    "empty": ("", None, "is empty"),
    "blank": (" \n\n", None, "is empty"),
    "comments": ("# nothing\n# here\n", None, "is empty"),
    "null": ("---\nnull\n", None, "is empty"),
    "list": ("- name: x\n", 1, "must be fields"),
    "text": ("just words\n", 1, "must be fields"),
    "number": ("42\n", 1, "must be fields"),
    "markdown": ("# Rubric\n\n* good\n* bad\n", 3, "is not YAML"),
    "json": ('{"name": "x"', 1, "open quote or bracket"),
    "nested lists": ("a: " + "[" * 50_000, 1, "deeper than 20"),
    "nested fields": ("{a: " * 20_000, 1, "deeper than 20"),
    "nested blocks": ("".join(" " * n + "a:\n" for n in range(100)), 21, "deeper than 20"),
    "NUL": ("name: a\n\x00", 2, "control character"),
    "escape character": ("name: a\ntitle: \x1b[31mred\n", 2, "control character"),
    "latin-1": ("name: a\ntitle: Gr\xfc\xdfe\n".encode("latin-1"), 2, "save it as UTF-8"),
    "utf-16": (SMALL.encode("utf-16"), 1, "save it as UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(range(256)), 1, "save it as UTF-8"),
    "10 MB": (b"a: " + b"x" * 10_000_000, None, "larger than 100,000 bytes"),
}


@pytest.mark.parametrize("case", SYNTAX)
def test_what_is_no_yaml_of_fields_is_told_in_one_mistake(mistakes, case):
    text, line, says = SYNTAX[case]
    (found,) = mistakes(text)
    assert found[:2] == (line, None)
    assert says in found[2]
    assert len(found[2]) < 400


@pytest.mark.timeout(20)  # takes minutes where time is not linear
@pytest.mark.parametrize(
    "value", ["1" * 95_000 + "x", "1:" * 45_000 + "x", "-" * 95_000, "2026-01-01 " + "0 " * 45_000]
)
def test_a_long_value_that_is_almost_a_number_is_read_at_once(mistakes, value):
    assert [field for _, field, _ in mistakes(SMALL + f"title: {value}\n")] == ["title"]


def test_a_bomb_of_aliases_is_refused_at_once(mistakes):
    bomb = 'a: &a ["lol","lol"]\n' + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(12)
    )
    assert any("aliases" in message for _, _, message in mistakes(bomb))
    assert any("aliases" in message for _, _, message in mistakes("&a [*a]\n"))
    assert any("aliases" in message for _, _, message in mistakes("name: &a {b: *a}\n"))


def test_every_mistake_of_a_file_is_told_in_the_order_of_lines(mistakes):
    found = mistakes("""\
name: Refund Tone
version: 1.10
titlex: oops
requires: [context, contexts, contexts]
instructions: Judge {{output}} well
name: twice
scale:
  type: ordinal
  levels:
    - level: 010
      anchor: a
    - level: 3
      anchor: yes
    - level: 2
      anchor: a
      note: x
    - just text
pass_threshold: .nan
objective: 95
ask: togetherr
judge: {engine: lexical, model: 5}
description:
""")
    assert [(line, field) for line, field, _ in found] == [
        (1, "name"),
        (2, "version"),
        (3, "titlex"),
        (4, "requires[0]"),
        (4, "requires[2]"),
        (5, "instructions"),
        (6, "name"),
        (10, "scale.levels[0].level"),
        (13, "scale.levels[1].anchor"),
        (14, "scale.levels[2].level"),
        (15, "scale.levels[2].anchor"),
        (16, "scale.levels[2].note"),
        (17, "scale.levels[3]"),
        (18, "pass_threshold"),
        (19, "objective"),
        (20, "ask"),
        (21, "judge.model"),
        (21, "judge.model"),
        (22, "description"),
    ]


def test_thousands_of_mistakes_are_cut(mistakes):
    found = mistakes("".join(f"field{n}: 1\n" for n in range(5000)))
    assert len(found) == 101
    assert found[-1][2] == "has 4905 more mistakes: mend those above first"


def test_a_password_in_a_url_is_not_repeated(mistakes):
    ((_, _, message),) = mistakes(SMALL + "judge: {base_url: 'https://me:hunter2@host/v1'}\n")
    assert "hunter2" not in message
    assert "keys belong in settings" in message


# Paths.


def test_a_path_that_is_no_file_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for name, says in {
        "absent.yaml": "does not exist",
        "nul\0byte": "does not exist",
        "x" * 5000: "cannot be read",
        "empty": "holds no .yaml file",
        "pipe": "is not a file",
        "loop.yaml": "does not exist",
    }.items():
        (error,) = check_rubrics([tmp_path / name])
        assert says in str(error)
        assert error.line is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(write, tmp_path):
    path = write(SMALL)
    path.chmod(0)
    (error,) = check_rubrics([path])
    assert "cannot be read: Permission denied" in str(error)


# Whatever a file holds.

YAML_BITS = [
    "- ", "? ", ": ", "&a ", "*a", "!!map ", "|", ">-", "{", "}", "[", "]", '"', "'", "#", "---", "...", "\t", "%YAML",
    "\\U", "\ufeff", "\u2028", "<<:", "~", ".nan", "0x", "1e9", "2026-01-01",
]  # fmt: skip
FRAGMENTS = st.sampled_from([*SMALL.splitlines(), *ORDINAL.splitlines(), *FULL.splitlines(), *YAML_BITS])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_rubric_or_mistakes(write, data):
    assert check_rubrics([write(data)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(parts=st.lists(FRAGMENTS | st.text(max_size=5), max_size=12), joint=st.sampled_from(["\n", "", " ", "\n  "]))
def test_any_text_is_a_rubric_or_mistakes(write, parts, joint):
    path = write(joint.join(parts).encode("utf-8", "surrogatepass"))
    errors = check_rubrics([path])
    assert errors
    for error in errors:
        assert str(error).startswith(f"{path}:" if error.line else f"{path}: ")
        assert "\n" not in str(error)
        assert error.line is None or error.line >= 1


# The published schema and reference.


def dumped(data) -> str:
    stream = io.StringIO()
    YAML(typ="safe", pure=True).dump(data, stream)
    return stream.getvalue()


def plain(text):
    return YAML(typ="safe", pure=True).load(text)


def test_the_published_schema_is_the_one_files_are_checked_against():
    published = (ROOT / "docs/reference/rubric.schema.json").read_text()
    assert published == json.dumps(rubric_schema(), indent=2) + "\n", "run `make docs`"


def test_the_reference_of_fields_is_current():
    published = (ROOT / "docs/reference/rubric-fields.md").read_text()
    assert published == rubric_fields_markdown(), "run `make docs`"


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(rubric_schema())
    rubric_schema()["properties"].clear()
    assert rubric_schema()["properties"], "a caller changed the schema of everybody"


@pytest.mark.parametrize("text", [SMALL, ORDINAL, CHECKLIST, CLAIMS, FULL])
def test_editors_accept_what_is_accepted(text, mistakes):
    jsonschema.validate(plain(text), rubric_schema())
    assert mistakes(text) == []


def examples(schema, path="rubric"):
    if "examples" in schema:
        yield path, schema, schema["examples"][0]
    for name, inner in schema.get("properties", {}).items():
        yield from examples(inner, f"{path}.{name}")
    for inner in [*schema.get("oneOf", []), *([schema["items"]] if "items" in schema else [])]:
        yield from examples(inner, f"{path}.{inner.get('title', '[]')}")


def test_every_example_and_default_follows_its_own_schema():
    seen = list(examples(rubric_schema()))
    assert len(seen) > 20
    for path, schema, example in seen:
        jsonschema.validate(example, schema)
        if "default" in schema:
            jsonschema.validate(schema["default"], schema)
        assert schema.get("description") or "[]" in path


def test_every_field_is_in_the_reference():
    page = rubric_fields_markdown()

    def names(schema):
        for inner in [schema, *schema.get("oneOf", []), *([schema["items"]] if "items" in schema else [])]:
            yield from inner.get("properties", {})
            for member in inner.get("properties", {}).values():
                yield from names(member)

    assert all(f"| `{name}` |" in page for name in names(rubric_schema()))


values = st.sampled_from(
    [None, True, 0, 1, 0.5, 2, -1, 11, "", "x", "yes", "ordinal", [], ["contexts"], {}, {"type": "claims"}]
)
keys = st.sampled_from(
    ["name", "version", "scale", "pass_threshold", "requires", "ask", "judge", "objective", "nonsense"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.sampled_from([SMALL, ORDINAL, CHECKLIST, CLAIMS, FULL]), key=keys, value=values, inner=st.booleans())
def test_what_an_editor_refuses_is_refused(write, text, key, value, inner):
    data = copy.deepcopy(plain(text))
    (data["scale"] if inner else data)[key] = value
    accepted = jsonschema.Draft202012Validator(rubric_schema()).is_valid(data)
    errors = check_rubrics([write(dumped(data))])
    # What the schema cannot say (meaning, quoting) may be refused beyond it.
    assert accepted or errors
    if accepted and errors:
        assert any(
            word in str(error)
            for error in errors
            for word in ("without quotes", "quotes up", "comes after", "rename one", "too: each")
        )
