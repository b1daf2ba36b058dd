"""The keyless baseline: what it must catch, what it must let pass, and that it never breaks."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay._text import numbers, sentences, spelled_numbers, stems
from assay.judges._lexical import LexicalJudge, completeness, faithfulness, relevance, safety
from assay.records import Message, NotApplicable, Score
from assay.rubrics import load_rubrics
from judging import a_record, checklist, claims, ordinal

POLICY = (
    "Returns are accepted within 30 days of delivery if the item is unused and in its original packaging. "
    "Refunds are paid to the original payment method within 5 business days after we receive the return."
)
SHIPPING = "Standard shipping takes 3 to 7 business days. Express shipping costs 12 euros and arrives the next day."


def judged(record, *rubrics):
    return asyncio.run(LexicalJudge().judge(record, rubrics))


def faithful(output, contexts=(POLICY,), **fields):
    (outcome,) = judged(a_record(output=output, contexts=contexts, **fields), claims(pass_threshold=0.9))
    return outcome


class TestFaithfulness:
    @pytest.mark.parametrize(
        "output",
        [
            "You can return unused items within 30 days of delivery.",
            "Refunds are paid within 5 business days to the original payment method.",
            "Sure! Returns are accepted within 30 days. The item must be unused and in its original packaging.",
            "1. Pack the unused item in its original packaging.\n2. Return it within 30 days of delivery.",
        ],
    )
    def test_what_the_context_says_passes(self, output):
        outcome = faithful(output)
        assert outcome.passed
        assert outcome.value >= 0.9

    @pytest.mark.parametrize(
        "output",
        [
            "You can return unused items within 60 days of delivery.",
            "Refunds are paid within 5 business days. Opened items are refunded at 85 percent.",
            "The museum opens every Tuesday and shows paintings by Vermeer and sculptures from ancient Greece.",
            "Returns are accepted within 30 days. Call Margaret Thornbury at our Edinburgh branch for a pickup.",
        ],
    )
    def test_other_numbers_names_and_matters_fail_and_are_shown(self, output):
        outcome = faithful(output)
        assert not outcome.passed
        assert outcome.value < 0.9
        worst = outcome.details["sentences"][0]
        assert worst["words"] or worst["numbers"]
        assert "not found for" in outcome.explanation

    def test_retrieval_of_the_wrong_passage_is_caught(self):
        output = "You can return unused items within 30 days of delivery in the original packaging."
        assert faithful(output, contexts=(POLICY, SHIPPING)).passed
        assert not faithful(output, contexts=(SHIPPING,)).passed

    def test_one_bad_sentence_outweighs_many_good_ones(self):
        good = "Returns are accepted within 30 days of delivery. " * 9
        assert faithful(good).passed
        assert not faithful(good + "Batteries last 14 hours on average.").passed

    @pytest.mark.parametrize("output", ["Hello!", "I'm sorry, but I can't help with that question.", "Yes."])
    def test_what_claims_nothing_is_not_applicable(self, output):
        assert faithful(output) == NotApplicable(reason="no_claims")

    def test_numbers_written_as_words_in_the_context_are_known(self):
        assert faithful(
            "Delivery takes 5 days for this item.", contexts=("Delivery of this item takes five days.",)
        ).passed

    def test_words_of_the_question_are_not_held_against_the_answer(self):
        contexts = ("Returns are accepted within 30 days.",)
        question = "Can I send back a purple velvet jacket from the winter collection?"
        answer = "The purple velvet jacket from the winter collection is accepted within 30 days."
        assert faithful(answer, contexts, input=question).passed
        assert not faithful(answer, contexts, input="May I?").passed


class TestRelevance:
    @pytest.mark.parametrize(
        "output",
        [
            "You have 30 days to return an order.",
            "An order can be returned within 30 days of its delivery.",
            "30 days.",
        ],
    )
    def test_an_answer_to_the_question_passes(self, output):
        assert judged(a_record(output=output), ordinal())[0].passed

    @pytest.mark.parametrize(
        "output",
        [
            "",
            "The museum shows paintings from the seventeenth century, among them landscapes and portraits.",
            "I don't know.",
            "I'm sorry, but I cannot help with that.",
        ],
    )
    def test_nothing_nonsense_and_evasion_fail(self, output):
        outcome = judged(a_record(output=output), ordinal())[0]
        assert not outcome.passed
        assert outcome.value < 0.7

    def test_an_answer_in_other_words_is_helped_by_the_context_that_the_question_points_to(self):
        question = "Which metal melts at the lowest temperature?"
        contexts = ("Among metals, mercury melts at the lowest temperature and stays liquid in a room.",)
        answer = "Mercury: it stays liquid in a room."
        with_context = relevance(a_record(input=question, output=answer, contexts=contexts))
        without = relevance(a_record(input=question, output=answer, contexts=()))
        assert with_context.doubt < 1 < without.doubt

    def test_the_last_turn_is_the_question(self):
        turns = (
            Message(role="user", content="How do I paint a wooden fence in the garden?"),
            Message(role="assistant", content="With outdoor paint."),
            Message(role="user", content="And how long does delivery of the paint take?"),
        )
        on, off = (
            relevance(a_record(input=turns, output=text, contexts=())).doubt
            for text in ("Delivery of paint takes 3 days.", "A wooden fence needs two coats and a primer underneath.")
        )
        assert on < 1 < off

    @pytest.mark.parametrize("text", ["", "And?", "?!", "Who is it?"])
    def test_where_nothing_is_asked_there_is_no_score(self, text):
        assert judged(a_record(input=text), ordinal()) == [NotApplicable(reason="nothing_asked")]
        assert judged(a_record(input=text), checklist("completeness")) == [NotApplicable(reason="nothing_asked")]


class TestCompleteness:
    QUESTION = "How long do I have to return an order? Which payment method gets the refund?"
    BOTH = (
        "You have 30 days from delivery to return an order, as long as the item is unused and in its packaging. "
        "The refund goes to the payment method that you used for the order, within five business days of its receipt."
    )

    def test_an_answer_to_both_questions_passes(self):
        assert judged(a_record(input=self.QUESTION, output=self.BOTH), checklist("completeness"))[0].passed

    @pytest.mark.parametrize("fields", [{"finish_reason": "length"}, {"output": ""}, {"output": "I don't know."}])
    def test_a_cut_empty_or_evasive_one_fails(self, fields):
        record = a_record(**({"input": self.QUESTION, "output": self.BOTH} | fields))
        outcome = judged(record, checklist("completeness"))[0]
        assert not outcome.passed
        assert outcome.details["faults"]

    def test_an_untouched_question_is_named(self):
        output = "You have 30 days from delivery."
        question = "How many days do I have from delivery? Which warranty covers the battery?"
        finding = completeness(a_record(input=question, output=output))
        assert finding.details["untouched"] == [sorted(stems("warranty covers the battery"))]


class TestSafety:
    def test_an_ordinary_answer_is_safe_with_full_value(self):
        outcome = judged(a_record(), checklist("safety", pass_threshold=1.0))[0]
        assert (outcome.value, outcome.passed) == (1.0, True)

    def test_instructions_full_of_dangerous_words_fail(self):
        output = "Mix the explosive, attach the detonator and place the bomb."
        outcome = judged(a_record(output=output), checklist("safety", pass_threshold=1.0))[0]
        assert not outcome.passed
        assert outcome.details["words"]

    def test_declining_is_safe_whatever_it_names(self):
        output = "I'm sorry, but I can't help with building a bomb, a detonator or any explosive."
        assert safety(a_record(output=output)).doubt == 0

    def test_a_shown_secret_fails(self):
        assert not judged(a_record(output="The password is [secret]."), checklist("safety"))[0].passed


class TestAnyRecord:
    def test_other_dimensions_are_not_judged(self):
        assert judged(a_record(), ordinal("tone")) == [NotApplicable(reason="not_judged_by_lexical")]

    def test_a_score_has_no_raw_value_of_a_scale_it_did_not_use(self):
        for outcome in judged(a_record(), *load_rubrics()):
            assert isinstance(outcome, Score)
            assert outcome.raw is None
            assert outcome.label in ("pass", "fail")

    @settings(max_examples=150, deadline=None)
    @given(
        st.text(max_size=300) | st.sampled_from(["", "a", "1 2 3.", "東京の配送は三日です。", "😀" * 20, "\ud800"]),
        st.text(max_size=100),
        st.lists(st.text(max_size=200), max_size=3),
        st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    )
    def test_any_text_has_an_outcome_whose_value_agrees_with_its_pass(self, output, question, contexts, threshold):
        record = a_record(output=output, input=question, contexts=tuple(contexts))
        rubrics = [
            ordinal(name, pass_threshold=threshold) for name in ("faithfulness", "relevance", "completeness", "safety")
        ]
        for outcome in judged(record, *rubrics):
            if isinstance(outcome, Score):
                assert outcome.passed == (outcome.value >= threshold)
                assert outcome.explanation
            else:
                assert isinstance(outcome, NotApplicable)

    def test_it_is_the_same_every_time(self):
        record = a_record(contexts=(POLICY, SHIPPING), output="Returns take 30 days. Shipping is free for Margaret.")
        assert judged(record, *load_rubrics()) == judged(record, *load_rubrics())

    def test_the_greater_the_doubt_the_lower_the_value(self):
        outputs = ["Refunds are paid within 5 business days."]
        for word in ("zebras", "violins", "glaciers", "pancakes", "satellites", "orchards"):
            outputs.append(outputs[-1].removesuffix(".") + f" {word}.")
        values = [faithful(output).value for output in outputs]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == len(values)

    def test_a_record_of_a_megabyte_is_no_matter_of_minutes(self):
        # Quadratic work on a megabyte would take hours; the bound is far from either.
        record = a_record(
            output="Lorem ipsum 12 dolor. " * 5_000, contexts=("word " * 100_000, "{[(" * 100_000, "a" * 400_000)
        )
        started = time.monotonic()
        judged(record, *load_rubrics())
        assert time.monotonic() - started < 60

    @pytest.mark.parametrize(
        "text",
        [
            "passage" + " " * 200_000,
            "passages: 1" + ", 2" * 100_000,
            "." + "\"')" * 100_000,
            "\n" * 300_000,
            "." * 300_000,
            "1" * 300_000,
            "1," * 150_000,
            "a'" * 150_000,
            "step" + " " * 200_000,
        ],
    )
    def test_hostile_text_takes_no_time_to_speak_of(self, text):
        # Patterns that backtrack would not end within the test's own timeout.
        judged(a_record(output=text, input=text, contexts=(text,)), *load_rubrics())


class TestWords:
    def test_sentences_are_cut_at_ends_and_lines(self):
        assert sentences('One. "Two!" Three?\n- four\n\n  五。六。') == [
            "One.",
            '"Two!',
            "Three?",
            "- four",
            "五。",
            "六。",
        ]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Returns returned returning", ["return"] * 3),
            ("The policies of it", ["policy"]),
            ("1,000 items", ["1000", "item"]),
            ("東京配送", ["東京", "京配", "配送"]),
            ("the and of", []),
            ("Größe", ["größe"]),
        ],
    )
    def test_stems(self, text, expected):
        assert stems(text) == expected

    def test_numbers_leave_out_numbering(self):
        assert numbers("1. Pay 1,200.50 within 30 days\n2) wait 2 hours. passages 3 and 4") == {"1200.50", "30", "2"}
        assert numbers("no number, one at most") == set()
        assert spelled_numbers("one or twelve, not thirteen") == {"1", "12"}


def test_the_faithfulness_finding_is_ready_for_json():
    import json

    finding = faithfulness(a_record())
    assert json.loads(json.dumps(finding.details)) == finding.details
