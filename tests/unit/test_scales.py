"""Scales: prompts, schemas, and verdicts of every kind, hostile ones included."""

import json
import math
from datetime import UTC, datetime

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import VerdictError
from assay.records import Context, NotApplicable, Record, Score
from assay.scales import MAX_CLAIMS, MAX_EXPLANATION, Binary, Checklist, Claims, Item, Level, Ordinal, _fold

REFUNDS = "Refunds are paid within 30 days of the return. Items over 1,300 EUR need a receipt."
WARRANTY = "The warranty lasts 2.5 years and “covers” parts — not labour."

BINARY = Binary(pass_when="It is so.", fail_when="It is not.")
ORDINAL = Ordinal(levels=tuple(Level(level=n, anchor=f"anchor {n}") for n in range(1, 6)))
CHECKLIST = Checklist(
    items=(
        Item(id="greets", question="Does it greet?"),
        Item(id="solves", question="Does it solve it?", weight=3),
        Item(id="signs", question="Does it sign?"),
    )
)
CLAIMS = Claims()
SCALES = [BINARY, ORDINAL, CHECKLIST, CLAIMS]


def record(*contexts: str) -> Record:
    return Record(
        record_id="r1",
        timestamp=datetime(2026, 1, 31, tzinfo=UTC),
        input="When is my refund paid?",
        output="Within 30 days.",
        contexts=tuple(Context(text=text) for text in contexts),
    )


def parse(scale, verdict, *contexts, pass_threshold=0.7, distribution=None):
    return scale.parse(
        verdict, record(*(contexts or (REFUNDS, WARRANTY))), pass_threshold=pass_threshold, distribution=distribution
    )


def claim(verdict="supported", quote="within 30 days", context=1, text="Refunds take 30 days."):
    return {"claim": text, "quote": quote, "context": context, "verdict": verdict}


def found(quote: str, *contexts: str) -> int | None:
    """The number of the context in which a claim's quote was found."""
    score = parse(CLAIMS, {"claims": [claim(quote=quote)]}, *contexts)
    assert isinstance(score, Score)
    detail = score.details["claims"][0]
    assert detail["quote_found"] == (score.value == 1.0) == (detail["context"] is not None)
    return detail["context"]


# What every scale is.


def keywords(schema):
    yield from schema
    for inner in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        yield from keywords(inner)


def objects(schema):
    if schema["type"] == "object":
        yield schema
    for inner in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        yield from objects(inner)


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.type)
def test_schema_is_within_strict_structured_output(scale):
    schema = scale.schema()
    assert set(keywords(schema)) <= {"type", "properties", "required", "additionalProperties", "enum", "items"}
    for part in objects(schema):
        assert part["required"] == list(part["properties"])
        assert part["additionalProperties"] is False
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("scale", [BINARY, ORDINAL, CHECKLIST], ids=lambda scale: scale.type)
def test_reasons_come_before_the_grade(scale):
    assert next(iter(scale.schema()["properties"])) == "explanation"
    assert scale.prompt().index("explanation") < scale.prompt().index(list(scale.schema()["properties"])[1])


def test_evidence_comes_before_the_verdict_of_a_claim():
    assert list(CLAIMS.schema()["properties"]["claims"]["items"]["properties"]) == [
        "claim",
        "quote",
        "context",
        "verdict",
    ]


@pytest.mark.parametrize(
    ("scale", "field"), [(BINARY, "verdict"), (ORDINAL, "level"), (CHECKLIST, None), (CLAIMS, None)]
)
def test_grade_field_names_the_property_with_the_grade(scale, field):
    assert scale.grade_field == field
    if field is not None:
        assert "enum" in scale.schema()["properties"][field]


def test_prompts_say_every_anchor_item_and_word():
    assert "pass: It is so." in BINARY.prompt()
    assert "fail: It is not." in BINARY.prompt()
    assert "3: anchor 3" in ORDINAL.prompt()
    assert "solves: Does it solve it?" in CHECKLIST.prompt()
    assert "yes (good), no or na:" in CHECKLIST.prompt()
    assert "na (does" not in Checklist(items=CHECKLIST.items, allow_na=False).prompt()
    for word in (*Claims.verdicts, "copied exactly", "20"):
        assert word in CLAIMS.prompt()


@pytest.mark.parametrize(
    "build",
    [
        lambda: Binary(pass_when="a", fail_when="b", pass_label="Same", fail_label="same"),
        lambda: Ordinal(levels=()),
        lambda: Ordinal(levels=(Level(level=1, anchor="a"),)),
        lambda: Ordinal(levels=(Level(level=2, anchor="a"), Level(level=1, anchor="b"))),
        lambda: Ordinal(levels=(Level(level=1, anchor="a"), Level(level=1, anchor="b"))),
        lambda: Ordinal(levels=(Level(level=-1, anchor="a"), Level(level=1, anchor="b"))),
        lambda: Ordinal(levels=(Level(level=0, anchor="a"), Level(level=100, anchor="b"))),
        lambda: Checklist(items=()),
        lambda: Checklist(items=(Item(id="a", question="?"), Item(id="a", question="!"))),
        lambda: Checklist(items=(Item(id="a", question="?", weight=0),)),
        lambda: Checklist(items=(Item(id="a", question="?", weight=math.nan),)),
        lambda: Checklist(items=(Item(id="a", question="?", weight=math.inf),)),
        lambda: Claims(max_claims=0),
        lambda: Claims(max_claims=MAX_CLAIMS + 1),
    ],
)
def test_a_scale_that_makes_no_sense_cannot_be_built(build):
    with pytest.raises(ValueError, match=r"must|needs|weight|levels"):
        build()


# Binary.


@pytest.mark.parametrize(
    ("written", "value"), [("pass", 1.0), ("fail", 0.0), (" PASS ", 1.0), ("**fail**", 0.0), ("Fail.", 0.0)]
)
def test_binary_value(written, value):
    score = parse(BINARY, {"explanation": "because", "verdict": written})
    assert score == Score(
        value=value, passed=value == 1.0, raw=value, label="pass" if value else "fail", explanation="because"
    )


def test_binary_answers_with_its_own_words():
    scale = Binary(pass_when="a", fail_when="b", pass_label="yes", fail_label="Nein")
    assert scale.schema()["properties"]["verdict"]["enum"] == ["yes", "Nein"]
    assert parse(scale, {"verdict": "yes"}).label == "yes"
    assert parse(scale, {"verdict": "nein"}).label == "Nein"
    with pytest.raises(VerdictError) as caught:
        parse(scale, {"verdict": "pass"})
    assert caught.value.kind == "off_scale"


def test_binary_labels_may_be_signs():
    scale = Binary(pass_when="a", fail_when="b", pass_label="ok", fail_label="ok!")
    assert parse(scale, {"verdict": "OK"}).label == "ok"
    assert parse(scale, {"verdict": "ok!"}).label == "ok!"
    scale = Binary(pass_when="a", fail_when="b", pass_label="\U0001f44d", fail_label="!")
    assert parse(scale, {"verdict": " \U0001f44d "}).value == 1.0
    assert parse(scale, {"verdict": "!"}).value == 0.0


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        ({"verdict": "maybe"}, "off_scale"),
        ({"verdict": ""}, "off_scale"),
        ({"verdict": "passfail"}, "off_scale"),
        ({"verdict": True}, "unparsable"),
        ({"verdict": 1}, "unparsable"),
        ({"verdict": None}, "unparsable"),
        ({"explanation": "pass"}, "unparsable"),
        ("pass", "unparsable"),
        (["pass"], "unparsable"),
        (None, "unparsable"),
    ],
)
def test_binary_refuses(verdict, kind):
    with pytest.raises(VerdictError) as caught:
        parse(BINARY, verdict)
    assert caught.value.kind == kind


# Ordinal.


@pytest.mark.parametrize(
    ("written", "value", "passed"),
    [(1, 0.0, False), (3, 0.5, False), (4, 0.75, True), (5, 1.0, True), (4.0, 0.75, True), ("4", 0.75, True)],
)
def test_ordinal_value(written, value, passed):
    score = parse(ORDINAL, {"explanation": "e", "level": written})
    assert (score.value, score.passed, score.raw, score.label) == (value, passed, float(written), str(int(written)))


def test_ordinal_levels_may_start_anywhere_and_have_gaps():
    scale = Ordinal(
        levels=(Level(level=0, anchor="a"), Level(level=3, anchor="b"), Level(level=10, anchor="c")),
    )
    assert parse(scale, {"level": 3}).value == 0.3
    assert parse(scale, {"level": 10}).value == 1.0
    with pytest.raises(VerdictError):
        parse(scale, {"level": 5})


@pytest.mark.parametrize(
    ("level", "kind"),
    [
        (0, "off_scale"),
        (6, "off_scale"),
        (-1, "off_scale"),
        (3.5, "off_scale"),
        (math.nan, "off_scale"),
        (math.inf, "off_scale"),
        (-math.inf, "off_scale"),
        (10**5000, "off_scale"),
        ("4/5", "off_scale"),
        ("four", "off_scale"),
        ("٤", "off_scale"),
        ("", "off_scale"),
        (True, "unparsable"),
        (None, "unparsable"),
        ([4], "unparsable"),
        ({"level": 4}, "unparsable"),
    ],
    ids=range(16),
)
def test_ordinal_refuses(level, kind):
    with pytest.raises(VerdictError) as caught:
        parse(ORDINAL, {"explanation": "e", "level": level})
    assert caught.value.kind == kind
    assert len(str(caught.value)) < 300


# Token probabilities.


def test_distribution_gives_the_expected_value_and_keeps_the_verdict():
    score = parse(ORDINAL, {"level": 4}, pass_threshold=0.75, distribution={"4": 0.6, "3": 0.3, "5": 0.1})
    assert score.value == pytest.approx((0.6 * 3 + 0.3 * 2 + 0.1 * 4) / 4)
    assert (score.raw, score.label) == (4.0, "4")
    assert not score.passed
    assert score.details["distribution"] == {"3": 0.3, "4": 0.6, "5": 0.1}
    assert score.details["entropy_bits"] == pytest.approx(
        -sum(p * math.log2(p) for p in (0.6, 0.3, 0.1)),
        abs=1e-6,
    )


def test_distribution_is_renormalised_over_the_grades():
    score = parse(BINARY, {"verdict": "fail"}, distribution={"fail": 0.3, "pass": 0.1, "Sure": 0.6})
    assert score.value == pytest.approx(0.25)
    assert score.label == "fail"
    assert score.details["distribution"] == {"fail": 0.75, "pass": 0.25}


def test_a_certain_distribution_has_no_entropy():
    score = parse(BINARY, {"verdict": "pass"}, distribution={"pass": 1.0})
    assert score.value == 1.0
    assert score.details["entropy_bits"] == 0.0


@pytest.mark.parametrize("distribution", [None, {}, {"pass": 0.0}, {"yes": 1.0}, {"pass": math.nan}, {"pass": -1.0}])
def test_a_useless_distribution_changes_nothing(distribution):
    score = parse(BINARY, {"verdict": "pass"}, distribution=distribution)
    assert score.value == 1.0
    assert score.details == {}


@settings(deadline=None)
@given(
    distribution=st.dictionaries(
        st.sampled_from(["1", "2", "3", "4", "5", "6", "x"]), st.floats(allow_nan=True, allow_infinity=True)
    ),
    level=st.integers(1, 5),
)
def test_whatever_the_distribution_the_value_is_in_range(distribution, level):
    score = parse(ORDINAL, {"level": level}, distribution=distribution)
    assert 0.0 <= score.value <= 1.0
    assert score.raw == level
    json.dumps(score.details, allow_nan=False)


# Checklist.


def items(**answers):
    return {"explanation": "e", "items": answers}


@pytest.mark.parametrize(
    ("answers", "value", "label"),
    [
        ({"greets": "yes", "solves": "yes", "signs": "yes"}, 1.0, "3/3"),
        ({"greets": "no", "solves": "no", "signs": "no"}, 0.0, "0/3"),
        ({"greets": "no", "solves": "yes", "signs": "no"}, 0.6, "1/3"),
        ({"greets": "na", "solves": "yes", "signs": "no"}, 0.75, "1/2"),
        ({"greets": "N/A", "solves": "Yes", "signs": "na"}, 1.0, "1/1"),
        ({"greets": True, "solves": False, "signs": "na"}, 0.25, "1/2"),
    ],
)
def test_checklist_value(answers, value, label):
    score = parse(CHECKLIST, items(**answers))
    assert (score.value, score.label) == (value, label)
    assert set(score.details["items"]) == {"greets", "solves", "signs"}
    assert set(score.details["items"].values()) <= {"yes", "no", "na"}


def test_checklist_of_na_is_not_applicable():
    assert parse(CHECKLIST, items(greets="na", solves="na", signs="na")) == NotApplicable(reason="no_items")


def test_checklist_without_na_refuses_it():
    strict = Checklist(items=CHECKLIST.items, allow_na=False)
    assert strict.schema()["properties"]["items"]["properties"]["greets"]["enum"] == ["yes", "no"]
    with pytest.raises(VerdictError) as caught:
        parse(strict, items(greets="na", solves="yes", signs="yes"))
    assert caught.value.kind == "off_scale"


def test_checklist_ignores_items_it_did_not_ask():
    score = parse(CHECKLIST, items(greets="yes", solves="yes", signs="yes", bonus="no"))
    assert score.value == 1.0
    assert "bonus" not in score.details["items"]


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        (items(greets="yes", solves="yes"), "off_scale"),
        (items(greets="yes", solves="yes", signs="perhaps"), "off_scale"),
        (items(greets="yes", solves="yes", signs=1), "off_scale"),
        (items(greets="yes", solves="yes", signs=None), "off_scale"),
        (items(greets="yes", solves="yes", signs=["yes"]), "off_scale"),
        ({"items": ["yes", "yes", "yes"]}, "unparsable"),
        ({"items": None}, "unparsable"),
        ({"greets": "yes", "solves": "yes", "signs": "yes"}, "unparsable"),
    ],
)
def test_checklist_refuses(verdict, kind):
    with pytest.raises(VerdictError) as caught:
        parse(CHECKLIST, verdict)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("weights", "share"), [((0.1, 0.7, 0.2), 0.8), ((0.1, 0.5, 0.2), 0.75), ((1 / 3, 1 / 3, 1 / 3), 2 / 3)]
)
def test_rounding_of_weights_does_not_fail_a_threshold_that_is_met(weights, share):
    scale = Checklist(items=tuple(Item(id=f"i{n}", question=f"q{n}", weight=w) for n, w in enumerate(weights)))
    score = parse(scale, items(i0="yes", i1="yes", i2="no"), pass_threshold=share)
    assert score.passed


# Claims.


def test_claims_value_is_the_supported_share():
    verdict = {
        "claims": [
            claim(),
            claim("unsupported", "", 0, "It is free."),
            claim("contradicted", "within 30 days", 1, "It takes 60 days."),
            claim("supported", "The warranty lasts 2.5 years", 2, "The warranty is 2.5 years."),
        ]
    }
    score = parse(CLAIMS, verdict)
    assert (score.value, score.raw, score.label, score.passed) == (0.5, 2.0, "2/4", False)
    assert {key: score.details[key] for key in Claims.verdicts} == {
        "supported": 2,
        "unsupported": 1,
        "contradicted": 1,
    }
    assert [c["context"] for c in score.details["claims"]] == [1, None, 1, 2]
    assert score.explanation == (
        'unsupported: "It is free."; contradicted: "It takes 60 days." (context 1: "within 30 days")'
    )
    json.dumps(score.details, allow_nan=False)


def test_a_supported_claim_without_its_quote_in_the_contexts_is_unsupported():
    score = parse(CLAIMS, {"claims": [claim(quote="within 60 days"), claim()]})
    assert score.value == 0.5
    first, second = score.details["claims"]
    assert (first["verdict"], first["quote_found"], first["context"]) == ("supported", False, None)
    assert (second["verdict"], second["quote_found"], second["context"]) == ("supported", True, 1)
    assert score.details["unsupported"] == 1
    assert "its quote is not in the contexts" in score.explanation


def test_all_supported_says_so():
    assert parse(CLAIMS, {"claims": [claim()]}).explanation == "every claim is supported by a quote"


def test_no_claims_is_not_applicable():
    assert parse(CLAIMS, {"claims": []}) == NotApplicable(reason="no_claims")


@pytest.mark.parametrize("contexts", [("",), (" \n\t", "\u200b"), ('"', "")])
def test_claims_without_a_context_are_not_applicable(contexts):
    assert parse(CLAIMS, {"claims": [claim()]}, *contexts) == NotApplicable(reason="missing_contexts")


def test_claims_of_a_record_without_contexts_are_not_applicable():
    outcome = CLAIMS.parse({"claims": [claim()]}, record(), pass_threshold=0.9)
    assert outcome == NotApplicable(reason="missing_contexts")


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        ({"claims": None}, "unparsable"),
        ({"claims": {}}, "unparsable"),
        ({"claims": "none"}, "unparsable"),
        ({}, "unparsable"),
        ({"claims": ["It is free."]}, "unparsable"),
        ({"claims": [claim() | {"claim": 3}]}, "unparsable"),
        ({"claims": [{"claim": "a", "quote": "b"}]}, "unparsable"),
        ({"claims": [claim("partly")]}, "off_scale"),
        ({"claims": [claim()] * (MAX_CLAIMS + 1)}, "off_scale"),
    ],
)
def test_claims_refuses(verdict, kind):
    with pytest.raises(VerdictError) as caught:
        parse(CLAIMS, verdict)
    assert caught.value.kind == kind


@pytest.mark.parametrize("quote", [None, 3, [], {}, True])
def test_a_quote_that_is_no_text_supports_nothing(quote):
    score = parse(CLAIMS, {"claims": [claim(quote=quote)]})
    assert score.value == 0.0
    assert score.details["claims"][0]["quote"] == ""


@pytest.mark.parametrize("context", [None, "1", -1, 99, 10**400, 1.5, math.nan, [], {}], ids=range(9))
def test_the_stated_context_need_not_be_right(context):
    assert parse(CLAIMS, {"claims": [claim(context=context)]}).details["claims"][0]["context"] == 1


def test_the_stated_context_is_looked_in_first():
    score = parse(CLAIMS, {"claims": [claim(context=3)]}, REFUNDS, WARRANTY, REFUNDS)
    assert score.details["claims"][0]["context"] == 3


# Quotes: what copying changes is forgiven ...


@pytest.mark.parametrize(
    "quote",
    [
        "Refunds are paid within 30 days of the return.",
        "REFUNDS ARE PAID",
        "refunds   are\npaid\u00a0within\t30 days",
        '"Refunds are paid within 30 days of the return"',
        "“Refunds are paid within 30 days”",
        "«Refunds are paid»",
        "- Refunds are paid within 30 days",
        "Refunds are paid within **30 days**",
        "Refunds are paid within `30` days...",
        "...paid within 30 days...",
        "… paid within 30 days …",
        "Refunds are paid ... days of the return",
        "Refunds are paid [...] days of the return",
        "Refunds are paid (…) days of the return",
        "Refunds are paid . . . days of the return",
        "Refunds are paid ... of the return ... need a receipt",
        "Refunds are pa... ys of the return",
        "items over 1,300 EUR",
        "\uff32efunds are paid",
        "Re\u00adfunds are\u200b paid",
        "30",
        "1,300",
    ],
)
def test_quote_is_found_as_copied(quote):
    assert found(quote, REFUNDS) == 1


@pytest.mark.parametrize(
    ("quote", "context"),
    [
        ('The warranty "covers" parts - not labour', "The warranty “covers” parts — not labour"),
        ("don't open", "Don\u2019t open the case"),
        ("10-20 mg", "take 10–20 mg"),
        ("minus -5", "MINUS \u22125 °C"),
        ("café", "Le cafe\u0301 est ouvert"),
        ("STRASSE", "in der Straße 5"),
        ("返金は30日以内", "返金は３０日以内に行われます。"),
        ("返金は30日以内に行われます", "「返金は30日以内に行われます。」"),
        ("استرداد المبلغ", "يتم استرداد المبلغ خلال 30 يومًا"),
        ("كتاب", "قرأت الكتاب أمس"),
        ("환불", "환불은 30일 이내"),
        ("धनवापसी 30 दिनों", "धनवापसी 30 दिनों में"),
        ("คืนเงินภายใน 30 วัน", "เราคืนเงินภายใน 30 วัน"),
        ("возврат в течение", "Возврат в течение 30 дней"),
        ("👍 ok", "all 👍 OK then"),
    ],
)
def test_quote_is_found_in_any_script(quote, context):
    assert found(quote, context) == 1


# ... and what changes the meaning is not.


@pytest.mark.parametrize(
    "quote",
    [
        "",
        " ",
        "...",
        '""',
        "-",
        ". . .",
        "\u200b",
        "?!",
        "Refunds are paid within 60 days",
        "Refunds are not paid",
        "Refunds paid within 30 days",
        "days of the return ... Refunds are paid",
        "a ... b ... c",
        "re ... pa ... in",
        "3",
        "300",
        "0 days",
        "1",
        "fund",
        "Refunds are paid within 30 days of the return. The warranty lasts 2.5 years",
        "days of the return ... warranty lasts",
        "5 years",
        "2 years",
        "2.5 year",
    ],
)
def test_quote_is_not_found(quote):
    assert found(quote, REFUNDS, WARRANTY) is None


def test_a_number_is_not_found_within_another():
    assert found("30", "It costs 1300 EUR, or 30.5 EUR, or 2,305 EUR") is None
    assert found("30", "It costs 1300 EUR, or 30 EUR") == 1
    assert found("costs 30", "It costs 30.5 EUR") is None
    assert found("costs 30", "It costs 30. Then more.") == 1


def test_a_quote_joins_no_two_contexts():
    assert found("paid within 30 days", "Refunds are paid within", "30 days") is None
    assert found("Refunds are paid ... need a receipt", "Refunds are paid soon.", "Items need a receipt.") is None
    assert found("paid within 30 days", "other", "Refunds are paid within 30 days") == 2


VOCABULARY = (
    "refund",
    "paid",
    "days",
    "return",
    "item",
    "receipt",
    "30",
    "12.5",
    "EUR",
    "Größe",
    "naïve",
    "返金",
    "дней",
)
words = st.lists(st.sampled_from(VOCABULARY), min_size=1)


@settings(deadline=None)
@given(words=words, data=st.data())
def test_any_run_of_words_of_a_context_is_found(words, data):
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    space = data.draw(st.sampled_from([" ", "  ", "\n", "\u00a0"]))
    change = data.draw(st.sampled_from([str, str.upper, str.lower]))
    assert found(change(space.join(words[start:end])), "\n".join(words)) == 1


@settings(deadline=None)
@given(words=words, number=st.integers(31, 99))
def test_a_number_that_no_context_has_is_never_found(words, number):
    assert found(f"{number}", " ".join(words)) is None


# Any JSON value is a Score, a NotApplicable or a VerdictError.

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["pass", "fail", "yes", "no", "na", "supported", "unsupported", "contradicted", "4", "", "..."])
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
near_verdicts = st.fixed_dictionaries(
    {},
    optional={
        "explanation": json_values,
        "verdict": scalars,
        "level": scalars | st.integers(0, 6),
        "items": json_values
        | st.fixed_dictionaries({}, optional={"greets": scalars, "solves": scalars, "signs": scalars}),
        "claims": json_values
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "claim": st.text() | scalars,
                    "quote": st.text(st.characters())
                    | st.sampled_from(["30 days", "paid ... return", "\u2019"])
                    | scalars,
                    "context": scalars,
                    "verdict": st.sampled_from(Claims.verdicts) | scalars,
                },
            ),
            max_size=3,
        ),
    },
)


def attempt(scale, verdict, contexts, threshold):
    try:
        return scale.parse(verdict, record(*contexts), pass_threshold=threshold)
    except VerdictError as error:
        return error


@settings(deadline=None)
@given(
    verdict=json_values | near_verdicts,
    scale=st.sampled_from(SCALES),
    contexts=st.lists(st.text(st.characters()) | st.just(REFUNDS), max_size=3),
    threshold=st.floats(0.001, 1),
)
def test_any_json_value_has_one_of_three_outcomes(verdict, scale, contexts, threshold):
    outcome = attempt(scale, verdict, contexts, threshold)
    if isinstance(outcome, VerdictError):
        assert outcome.kind in ("unparsable", "off_scale")
        assert len(str(outcome)) < 500
        assert str(outcome).isascii()
        return
    if isinstance(outcome, NotApplicable):
        assert outcome.reason in ("no_items", "no_claims", "missing_contexts")
        return
    assert isinstance(outcome, Score)
    assert math.isfinite(outcome.value)
    assert 0.0 <= outcome.value <= 1.0
    assert outcome.passed == (outcome.value + 1e-9 >= threshold)
    stored = outcome.explanation + json.dumps(outcome.details, allow_nan=False, ensure_ascii=False)
    stored.encode()
    assert "\x00" not in outcome.explanation


def valid(schema):
    """Verdicts that the schema allows."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "object":
        return st.fixed_dictionaries({name: valid(inner) for name, inner in schema["properties"].items()})
    if schema["type"] == "array":
        return st.lists(valid(schema["items"]), max_size=4)
    return st.integers() if schema["type"] == "integer" else st.text(st.characters(codec="utf-8"), max_size=30)


@settings(deadline=None)
@given(data=st.data(), scale=st.sampled_from(SCALES))
def test_a_verdict_that_follows_the_schema_is_never_refused(data, scale):
    verdict = data.draw(valid(scale.schema()))
    jsonschema.validate(verdict, scale.schema())
    assert isinstance(parse(scale, verdict), Score | NotApplicable)


# What is stored, and what it costs to parse.


def test_long_texts_are_cut():
    score = parse(BINARY, {"verdict": "pass", "explanation": "x" * 1_000_000})
    assert len(score.explanation) == MAX_EXPLANATION
    assert score.explanation.endswith("…")
    score = parse(CLAIMS, {"claims": [claim("unsupported", "q" * 1_000_000, 1, "c" * 1_000_000)] * 5})
    assert len(json.dumps(score.details)) < 20_000
    assert len(score.explanation) == MAX_EXPLANATION


def test_what_no_database_stores_is_replaced():
    score = parse(BINARY, {"verdict": "pass", "explanation": "a\x00b\ud800c"})
    assert score.explanation == "a\ufffdb\ufffdc"


@pytest.mark.parametrize("explanation", [None, 3, ["why"], {"why": "so"}])
def test_an_explanation_that_is_no_text_costs_no_verdict(explanation):
    assert parse(BINARY, {"verdict": "pass", "explanation": explanation}).explanation == ""


MEGABYTE = 1_000_000


@pytest.mark.timeout(60)  # any of these takes minutes to hours where time is not linear
@pytest.mark.parametrize(
    ("quote", "context"),
    [
        ("a" * (MEGABYTE // 2), "a" * MEGABYTE),
        ("a" * (MEGABYTE // 2) + "b", "a" * MEGABYTE),
        ("a" + "\u0301\u0327" * (MEGABYTE // 2), "b" + "\u0301\u0327" * (MEGABYTE // 2)),
        ("\u0f73\u0f81" * (MEGABYTE // 2), "\uff9e\u0301" * (MEGABYTE // 2)),
        ("... " * (MEGABYTE // 4), "a ... " * (MEGABYTE // 6)),
        ("ab..." * (MEGABYTE // 5), "ab " * (MEGABYTE // 3)),
        ("1 ... " * (MEGABYTE // 6), "1 " * (MEGABYTE // 2)),
        (". " * (MEGABYTE // 2), ". " * (MEGABYTE // 2)),
        ("[" * MEGABYTE, "(" * MEGABYTE),
        ("\u201c" * MEGABYTE, "- " * (MEGABYTE // 2)),
        ("\ufdfa" * (MEGABYTE // 4), "\ufdfa" * (MEGABYTE // 4)),
        (" " * MEGABYTE, "\u00a0" * MEGABYTE),
        ("๒" * MEGABYTE, "क\u094d" * (MEGABYTE // 2)),
    ],
    ids=range(13),
)
def test_megabytes_take_linear_time(quote, context):
    outcome = parse(CLAIMS, {"claims": [claim(quote=quote)]}, context)
    assert isinstance(outcome, Score | NotApplicable)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.type)
def test_megabytes_in_every_place_of_a_verdict(scale):
    huge = "9" * MEGABYTE
    for verdict in (
        huge,
        {"verdict": huge, "level": huge, "items": dict.fromkeys(("greets", "solves", "signs"), huge), "claims": huge},
        {"claims": [claim(huge, huge, huge, huge)]},
        {"items": {huge: "yes"}},
    ):
        with pytest.raises(VerdictError) as caught:
            parse(scale, verdict)
        assert len(str(caught.value)) < 300


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_a_text_of_ascii_is_folded_as_any_other(text: str) -> None:
    assert _fold(f"{text} \u00e9") == f"{_fold(text)} \u00e9".strip()
