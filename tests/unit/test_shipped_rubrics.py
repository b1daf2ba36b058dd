"""The rubric files that assay ships: what they ask (golden files), cost, decide and promise."""

import itertools
import json
import os
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from assay.records import Context, NotApplicable, Record, Score
from assay.rubrics import SHIPPED, check_rubrics, load_rubrics, rubric_schema
from assay.scales import Checklist, Claims, Ordinal

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"

SHIPPED_RUBRICS = {rubric.name: rubric for rubric in load_rubrics()}
EXAMPLES = {rubric.name: rubric for rubric in load_rubrics([ROOT / "rubrics/examples"])}
EVERY = SHIPPED_RUBRICS | EXAMPLES

CONTEXT = "Refunds are paid within 30 days of the return, to the card that was charged."


def record(**fields):
    fields = {"input": "When is my refund paid?", "output": "Within 30 days."} | fields
    return Record(record_id="r", timestamp=datetime(2026, 1, 31, tzinfo=UTC), **fields)


GROUNDED = record(contexts=(Context(text=CONTEXT),))


def parse(name, verdict, on=GROUNDED):
    rubric = EVERY[name]
    return rubric.scale.parse(verdict, on, pass_threshold=rubric.pass_threshold)


# What is asked.


def asked(rubric) -> str:
    """All that a judge is given of a rubric, and what identifies it."""
    return (
        f"{rubric.name} {rubric.revision}\n\n"
        f"--- instructions\n{rubric.instructions}\n\n"
        f"--- scale\n{rubric.scale.prompt()}\n\n"
        f"--- defects\n{', '.join(rubric.defects)}\n\n"
        f"--- schema\n{json.dumps(rubric.scale.schema(), indent=1)}\n"
    )


@pytest.mark.parametrize("name", EVERY)
def test_what_is_asked_changes_only_on_purpose(name):
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(asked(EVERY[name]))
    assert asked(EVERY[name]) == golden.read_text(), (
        "The question, and so the series of its scores, changed. If that is meant: raise the version in the YAML file, "
        "run with UPDATE_GOLDEN=1 in the environment, and let the difference be reviewed."
    )


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(EVERY)


def test_the_four_are_cheap_to_ask():
    """Characters / 4 is a fair upper bound of the tokens of English prose."""
    cost = {
        rubric.name: (len(rubric.instructions) + len(rubric.scale.prompt())) / 4 for rubric in SHIPPED_RUBRICS.values()
    }
    assert sum(cost.values()) < 600, cost
    assert max(cost.values()) < 190, cost


# The files.


def test_there_are_four_and_two_examples():
    assert set(SHIPPED_RUBRICS) == {"faithfulness", "relevance", "safety", "completeness"}
    assert {rubric.scale.type for rubric in EVERY.values()} == {"claims", "ordinal", "checklist", "binary"}
    assert any(isinstance(rubric.scale, Checklist) for rubric in EXAMPLES.values())
    assert all(rubric.dimension == name for name, rubric in SHIPPED_RUBRICS.items())
    assert all(rubric.dimension == "other" for rubric in EXAMPLES.values())


def test_they_are_free_of_mistakes_also_when_loaded_together():
    assert check_rubrics([SHIPPED, ROOT / "rubrics/examples"]) == []


def test_shipped_is_the_directory_of_the_repository_in_a_checkout():
    assert SHIPPED.samefile(ROOT / "rubrics")


@pytest.mark.parametrize("rubric", EVERY.values(), ids=lambda rubric: rubric.name)
def test_a_file_is_named_documented_and_known_to_editors(rubric):
    text = rubric.path.read_text()
    assert rubric.path.stem.endswith(rubric.name)
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (rubric.path.parent / first.split("=")[1]).resolve() == ROOT / "docs/reference/rubric.schema.json"
    assert rubric.title
    assert "Passes:" in rubric.description
    assert rubric.objective is not None
    jsonschema.validate(YAML(typ="safe", pure=True).load(text), rubric_schema())


@pytest.mark.parametrize("rubric", SHIPPED_RUBRICS.values(), ids=lambda rubric: rubric.name)
def test_the_judge_and_the_calibration_are_left_to_the_settings(rubric):
    assert rubric.judge is None
    assert rubric.calibration is None


# What needs what. An empty output of a model is a bad answer, not a record to skip.


@pytest.mark.parametrize(
    ("name", "fields", "missing"),
    [
        ("faithfulness", {}, "missing_contexts"),
        ("faithfulness", {"contexts": (Context(text=CONTEXT),), "output": ""}, "missing_output"),
        ("faithfulness", {"contexts": (Context(text=CONTEXT),)}, None),
        ("relevance", {"input": ""}, "missing_input"),
        ("relevance", {"output": ""}, None),
        ("completeness", {"input": ""}, "missing_input"),
        ("completeness", {"output": ""}, None),
        ("safety", {"output": ""}, "missing_output"),
        ("safety", {"input": ""}, None),
    ],
)
def test_a_record_that_lacks_something_is_not_applicable(name, fields, missing):
    assert SHIPPED_RUBRICS[name].missing(record(**fields)) == missing


# What passes.


def claims(supported, unsupported=0, contradicted=0):
    def make(verdict, quote, count):
        return [{"claim": "A claim.", "quote": quote, "context": 1, "verdict": verdict}] * count

    return {
        "claims": make("supported", "paid within 30 days", supported)
        + make("unsupported", "", unsupported)
        + make("contradicted", "within 30 days", contradicted)
    }


@pytest.mark.parametrize(
    ("verdict", "passed"),
    [
        (claims(1), True),
        (claims(0, 1), False),
        (claims(8, 1), False),
        (claims(8, 0, 1), False),
        (claims(9, 1), True),
        (claims(18, 2), True),
        (claims(17, 3), False),
    ],
)
def test_faithfulness_passes_with_nine_claims_in_ten(verdict, passed):
    assert parse("faithfulness", verdict).passed is passed


def test_faithfulness_of_an_output_that_claims_nothing_is_not_applicable():
    assert parse("faithfulness", {"claims": []}) == NotApplicable(reason="no_claims")


def test_faithfulness_is_decided_by_quotes():
    assert isinstance(SHIPPED_RUBRICS["faithfulness"].scale, Claims)
    verdict = claims(1)
    verdict["claims"][0]["quote"] = "paid within 14 days"
    assert parse("faithfulness", verdict).value == 0.0


@pytest.mark.parametrize(("level", "passed"), [(1, False), (2, False), (3, False), (4, True), (5, True)])
def test_relevance_passes_from_level_4(level, passed):
    rubric = SHIPPED_RUBRICS["relevance"]
    assert isinstance(rubric.scale, Ordinal)
    assert parse("relevance", {"explanation": "", "level": level}).passed is passed


@pytest.mark.parametrize("spread", [{"4": 0.9, "3": 0.1}, {"4": 0.9, "5": 0.1}, {"4": 0.97, "1": 0.03}])
def test_a_judge_almost_sure_of_level_4_passes(spread):
    rubric = SHIPPED_RUBRICS["relevance"]
    score = rubric.scale.parse({"level": 4}, GROUNDED, pass_threshold=rubric.pass_threshold, distribution=spread)
    assert score.passed


@pytest.mark.parametrize("spread", [{"3": 0.9, "4": 0.1}, {"3": 0.9, "5": 0.1}, {"3": 1.0}])
def test_a_judge_almost_sure_of_level_3_fails(spread):
    rubric = SHIPPED_RUBRICS["relevance"]
    score = rubric.scale.parse({"level": 3}, GROUNDED, pass_threshold=rubric.pass_threshold, distribution=spread)
    assert not score.passed


def answers(name):
    """Every verdict that the checklist allows."""
    scale = EVERY[name].scale
    choices = ("yes", "no", "na") if scale.allow_na else ("yes", "no")
    for given in itertools.product(choices, repeat=len(scale.items)):
        yield dict(zip((item.id for item in scale.items), given, strict=True))


def test_safety_passes_only_with_yes_on_every_item():
    assert all(
        parse("safety", {"items": given}).passed == (set(given.values()) == {"yes"}) for given in answers("safety")
    )


def test_safety_is_never_not_applicable_for_what_a_judge_says():
    assert SHIPPED_RUBRICS["safety"].scale.allow_na is False


def test_completeness_passes_as_its_description_says():
    needed, forgiven = ("parts", "substance", "finished"), ("limits", "exceptions")
    passes = 0
    for given in answers("completeness"):
        # na is for small talk and rightful refusals (everything), and for limits and exceptions that are not there.
        if any(given[item] == "na" for item in needed):
            continue
        outcome = parse("completeness", {"items": given})
        slips = sum(given[item] == "no" for item in forgiven)
        assert outcome.passed == (all(given[item] == "yes" for item in needed) and slips <= 1), given
        passes += outcome.passed
    assert passes == 8


def test_completeness_where_nothing_is_asked_is_not_applicable():
    nothing = dict.fromkeys(("parts", "substance", "finished", "limits", "exceptions"), "na")
    assert parse("completeness", {"items": nothing}) == NotApplicable(reason="no_items")


def test_the_tone_example_forgives_a_missing_next_step_and_not_disrespect():
    good = dict.fromkeys(("acknowledges", "respectful", "apologizes", "plain", "next_step"), "yes")
    assert parse("support_tone", {"items": good | {"next_step": "no"}}).passed
    assert not parse("support_tone", {"items": good | {"respectful": "no"}}).passed
    assert parse("support_tone", {"items": good | {"apologizes": "na"}}).value == 1.0


@pytest.mark.parametrize(("label", "passed"), [("cautious", True), ("risky", False)])
def test_the_domain_example_has_words_of_its_own(label, passed):
    score = parse("dosage_caution", {"explanation": "", "verdict": label})
    assert isinstance(score, Score)
    assert (score.label, score.passed) == (label, passed)
    assert EXAMPLES["dosage_caution"].ask == "alone"


# Cases that every production assistant meets must have a rule in the texts.


@pytest.mark.parametrize(
    ("name", "case", "says"),
    [
        ("faithfulness", "refusals", "refusals"),
        ("faithfulness", "honest not knowing", "not in the documents"),
        ("faithfulness", "small talk", "small talk"),
        ("faithfulness", "translation", "translation"),
        ("faithfulness", "numbers and units", "unit"),
        ("faithfulness", "quotes are copied", "copied exactly"),
        ("faithfulness", "true but not in the context", "True but not in the context"),
        ("relevance", "needless refusals", "needlessly"),
        ("relevance", "rightful refusals", "rightly declines"),
        ("relevance", "small talk", "small talk"),
        ("relevance", "language", "user's language"),
        ("relevance", "empty output", "Empty"),
        ("relevance", "conversations", "last user turn"),
        ("safety", "language and encoding", "any language or encoding"),
        ("safety", "refusals", "declining"),
        ("safety", "quoted harm", "Quoting"),
        ("safety", "secrets", "keys"),
        ("safety", "injection", "instructions planted"),
        ("completeness", "not knowing", "I don't know"),
        ("completeness", "small talk", "small talk"),
        ("completeness", "rightful refusals", "rightly declined"),
        ("completeness", "cut outputs", "cut off"),
        ("completeness", "units", "units"),
        ("completeness", "reference", "reference"),
        ("completeness", "conversations", "last user turn"),
    ],
)
def test_the_texts_rule_on(name, case, says):
    assert says in asked(SHIPPED_RUBRICS[name]), case


def test_the_rubric_of_the_how_to_is_one(tmp_path):
    page = (ROOT / "docs/howto/write-a-rubric.md").read_text()
    path = tmp_path / "refund_promise.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0])
    (rubric,) = load_rubrics([path])
    passed = {
        level.level: rubric.scale.parse({"level": level.level}, GROUNDED, pass_threshold=rubric.pass_threshold).passed
        for level in rubric.scale.levels
    }
    assert passed == {1: False, 2: True, 3: True}


def test_the_wheel_puts_them_where_the_package_looks_first():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["rubrics"] == "assay/data/rubrics"
