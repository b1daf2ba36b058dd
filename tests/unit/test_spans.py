"""Spans of every dialect become interactions; hostile ones break nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.codec import decode_record
from assay.interactions import as_record
from assay.judges._prompt import render
from assay.loopguard import JUDGE_OPENING, MARK
from assay.records import Message, Sampling
from assay.spans import DISCRIMINATORS, Span, SpanEvent, app_of, interactions, kind_of, record_id_of
from corpus import DIALECTS, EXPECTED, scenarios, told, trace
from judging import a_record, ordinal

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "synthetic-1"}
ASKED = [{"role": "user", "parts": [{"type": "text", "content": "What is the price?"}]}]
ANSWERED = [{"role": "assistant", "parts": [{"type": "text", "content": "4 euros."}], "finish_reason": "stop"}]


def a_span(number: int = 1, parent: int | None = None, start: float = 10.0, seconds: float = 1.0, **more: Any) -> Span:
    return Span(
        trace_id="0" * 31 + "7",
        span_id=f"{number:016x}",
        parent_id=None if parent is None else f"{parent:016x}",
        start_seconds=start,
        end_seconds=start + seconds,
        **more,
    )


def a_call(number: int = 1, parent: int | None = None, start: float = 10.0, **attributes: Any) -> Span:
    given = {**CHAT, "gen_ai.input.messages": json.dumps(ASKED), "gen_ai.output.messages": json.dumps(ANSWERED)}
    return a_span(number, parent, start, attributes={**given, **attributes})


def a_retrieval(number: int, text: str, parent: int | None = None, start: float = 1.0, kind: str = "RETRIEVER") -> Span:
    prefix = "reranker.output_documents" if kind == "RERANKER" else "retrieval.documents"
    attributes = {"openinference.span.kind": kind, f"{prefix}.0.document.content": text}
    return a_span(number, parent, start, attributes=attributes)


def only(*spans: Span) -> dict[str, Any]:
    found = interactions(spans)
    assert not found.skipped
    ((_, fields),) = found.interactions
    return fields


def skipped(*spans: Span) -> dict[str, int]:
    found = interactions(spans)
    assert not found.interactions
    return dict(found.skipped)


# -- the corpus


@pytest.mark.parametrize(
    ("dialect", "scenario"), [(dialect, name) for dialect in DIALECTS for name in scenarios(dialect)]
)
def test_the_corpus_becomes_the_expected_interactions(dialect: str, scenario: str) -> None:
    expected = json.loads(EXPECTED.read_text())[dialect][scenario]
    assert json.loads(json.dumps(told(dialect, scenario))) == expected


@pytest.mark.parametrize("dialect", [dialect for dialect in DIALECTS if dialect != "otel-without-content"])
def test_every_dialect_tells_of_the_same_question_answer_and_passages(dialect: str) -> None:
    (interaction,) = told(dialect, "rag")["interactions"]
    assert interaction["input"][-1]["content"].endswith("How long does delivery to Norway take?")
    assert interaction["input"][0] == {"role": "system", "content": "Answer from the passages. Synthetic shop."}
    assert interaction["output"] == "Delivery to Norway takes 4 to 6 working days."
    assert [context["text"] for context in interaction["contexts"]] == [
        "Delivery to Norway takes 4 to 6 working days.",
        "Orders over 100 euros ship free.",
    ]
    assert interaction["usage"] == {"prompt_tokens": 42, "completion_tokens": 9}
    assert interaction["model"] == "gpt-5-mini-2026-01-01"
    assert interaction["finish_reason"] == "stop"
    span = next(s for s in trace(dialect, "rag") if s.span_id == interaction["span_id"])
    assert interaction["record_id"] == record_id_of(span.trace_id, span.span_id)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_spans_without_content_are_counted_as_such(dialect: str) -> None:
    for name in scenarios(dialect):
        found = told(dialect, name)
        expected = dialect == "otel-without-content"
        assert bool(found["skipped"].get("no_content")) == expected, name
        assert bool(found["interactions"]) != expected


@pytest.mark.parametrize("dialect", ["otel-latest", "otel-older-events", "openllmetry", "openinference-openai"])
def test_of_a_tool_loop_the_answer_is_taken_with_its_tools(dialect: str) -> None:
    found = told(dialect, "tool")
    assert found["skipped"] == {"no_answer": 1}
    (interaction,) = found["interactions"]
    (event,) = interaction["tool_events"]
    assert event["name"] == "delivery_days"
    assert json.loads(event["arguments"]) == {"country": "NO"}
    assert event["result"] == "4 to 6"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_interactions_are_records(dialect: str) -> None:
    for name in scenarios(dialect):
        for span, fields in interactions(trace(dialect, name)).interactions:
            record = as_record("shop", {**fields, "sampling": Sampling()}, None)
            assert record.trace_id == span.trace_id
            assert isinstance(record.input, tuple)
            assert all(isinstance(message, Message) for message in record.input)
            assert record.latency_seconds is not None
            assert app_of(span) == "synthetic-shop"


def test_every_span_of_a_model_call_has_a_discriminator() -> None:
    for dialect in DIALECTS:
        for name in scenarios(dialect):
            for span in trace(dialect, name):
                if kind_of(span) != "other":
                    assert not DISCRIMINATORS.isdisjoint(span.attributes), (dialect, span.name)


# -- dialects that no library of today writes


def test_flattened_prompts_and_completions_of_older_openllmetry() -> None:
    attributes = {
        "gen_ai.system": "OpenAI",
        "llm.request.type": "chat",
        "gen_ai.request.model": "synthetic-1",
        "gen_ai.prompt.0.role": "system",
        "gen_ai.prompt.0.content": "Be brief.",
        "gen_ai.prompt.10.role": "user",
        "gen_ai.prompt.10.content": "And now?",
        "gen_ai.prompt.2.role": "assistant",
        "gen_ai.prompt.2.tool_calls.0.name": "look",
        "gen_ai.prompt.2.tool_calls.0.arguments": '{"at": 1}',
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": "4 euros.",
        "gen_ai.completion.0.finish_reason": "stop",
        "gen_ai.usage.prompt_tokens": 7,
        "gen_ai.usage.completion_tokens": 3,
        "traceloop.association.properties.session_id": "s-1",
        "traceloop.association.properties.user_id": "u-1",
    }
    fields = only(a_span(attributes=attributes))
    assert [m["role"] for m in fields["input"]] == ["system", "assistant", "user"]
    assert fields["input"][1]["content"] == '[calls look({"at": 1})]'
    assert (fields["output"], fields["finish_reason"]) == ("4 euros.", "stop")
    assert fields["usage"] == {"prompt_tokens": 7, "completion_tokens": 3}
    assert (fields["session_id"], fields["user_id"]) == ("s-1", "u-1")


def test_events_on_the_span_of_older_conventions() -> None:
    events = [
        SpanEvent(name="gen_ai.content.prompt", attributes={"gen_ai.prompt": '[{"role":"user","content":"Why?"}]'}),
        SpanEvent(
            name="gen_ai.content.completion",
            attributes={"gen_ai.completion": '[{"role":"assistant","content":"Because."}]'},
        ),
    ]
    fields = only(a_span(attributes={"gen_ai.system": "x", "gen_ai.request.model": "m"}, events=events))
    assert fields["input"] == [{"role": "user", "content": "Why?"}]
    assert fields["output"] == "Because."


def test_mlflow_keeps_its_own_attributes_as_json() -> None:
    fields = only(
        a_span(
            attributes={
                "mlflow.spanType": '"CHAT_MODEL"',
                "mlflow.spanInputs": '{"messages": [{"role": "user", "content": "Why?"}]}',
                "mlflow.spanOutputs": '{"choices": [{"message": {"role": "assistant", "content": "Because."}}]}',
                "mlflow.chat.tokenUsage": '{"input_tokens": 5, "output_tokens": 2}',
                "mlflow.traceRequestId": '"tr-7"',
            }
        )
    )
    assert (fields["input"][0]["content"], fields["output"]) == ("Why?", "Because.")
    assert fields["usage"] == {"prompt_tokens": 5, "completion_tokens": 2}
    assert fields["sink_refs"] == {"mlflow_trace_id": "tr-7"}


def test_langfuse_observations() -> None:
    attributes = {
        "langfuse.observation.type": "generation",
        "langfuse.observation.input": '[{"role": "user", "content": "Why?"}]',
        "langfuse.observation.output": '{"role": "assistant", "content": "Because."}',
        "langfuse.observation.model.name": "synthetic-1",
        "langfuse.observation.usage_details": '{"input": 5, "output": 2}',
        "langfuse.observation.cost_details": {"total": 0.5},
    }
    fields = only(a_span(attributes=attributes))
    assert (fields["input"][0]["content"], fields["output"], fields["model"]) == ("Why?", "Because.", "synthetic-1")
    assert fields["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "cost_usd": 0.5}


@pytest.mark.parametrize("form", [tuple, json.dumps, lambda v: json.dumps(v).encode(), MappingProxyType])
def test_messages_as_json_bytes_tuples_or_mappings(form: Any) -> None:
    value = form({"messages": ASKED}) if form is MappingProxyType else form(ASKED)
    assert only(a_call(**{"gen_ai.input.messages": value}))["input"][0]["content"] == "What is the price?"


@pytest.mark.parametrize("key", ["response", "result"])
def test_tool_responses_by_the_schema_and_by_the_examples(key: str) -> None:
    history = [
        *ASKED,
        {"role": "assistant", "parts": [{"type": "tool_call", "name": "look", "id": "c", "arguments": {"a": 1}}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", key: {"found": 4}}]},
    ]
    fields = only(a_call(**{"gen_ai.input.messages": history}))
    assert fields["tool_events"] == [{"name": "look", "arguments": '{"a": 1}', "result": '{"found": 4}'}]


def test_reasoning_is_said_to_nobody_and_images_are_named() -> None:
    said = [{"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"}, {"type": "text", "content": "4."}]}]
    asked = [{"role": "user", "parts": [{"type": "blob", "content": "AAAA"}, {"type": "text", "content": "this?"}]}]
    fields = only(a_call(**{"gen_ai.input.messages": asked, "gen_ai.output.messages": said}))
    assert fields["output"] == "4."
    assert fields["input"][0]["content"] == "[blob]\nthis?"


# -- the trace around the call


def test_passages_come_from_the_nearest_retrieval_before_the_call() -> None:
    """Two questions of one trace, each with a retrieval of its own."""
    root = a_span(100, attributes={})
    first, second = a_span(10, 100, attributes={}), a_span(20, 100, attributes={})
    spans = [
        a_retrieval(11, "of the first", 10, start=1),
        a_call(12, 10, start=3),
        a_retrieval(21, "of the second", 20, start=5),
        a_call(22, 20, start=7),
        a_retrieval(23, "too late", 20, start=9),
        first,
        second,
        root,
    ]
    found = interactions(spans)
    assert [fields["contexts"] for _, fields in found.interactions] == [
        [{"text": "of the first"}],
        [{"text": "of the second"}],
    ]


def test_of_reranked_passages_those_that_were_chosen() -> None:
    spans = [a_retrieval(2, "all", start=1), a_retrieval(3, "chosen", start=3, kind="RERANKER"), a_call(4)]
    assert only(*spans)["contexts"] == [{"text": "chosen"}]


def test_passages_that_two_spans_tell_of_come_once() -> None:
    outer = a_retrieval(2, "same", start=1)
    inner = a_span(
        3, 2, 1, attributes={"db.system": "x"}, events=[SpanEvent(name="db.query.result", attributes={
            "db.query.result.id": "d", "db.query.result.document": "same"})]
    )  # fmt: skip
    assert only(outer, inner, a_call(4))["contexts"] == [{"text": "same"}]


def test_one_call_seen_by_two_libraries_is_one_record() -> None:
    found = interactions([a_call(1), a_call(2, 1)])
    assert [span.span_id for span, _ in found.interactions] == [f"{1:016x}"]
    assert found.skipped == {"nested": 1}


def test_of_two_nested_the_one_with_content() -> None:
    found = interactions([a_span(1, attributes=CHAT), a_call(2, 1)])
    assert [span.span_id for span, _ in found.interactions] == [f"{2:016x}"]
    assert found.skipped == {"no_content": 1}


def test_session_route_user_and_cohort_come_from_the_spans_around() -> None:
    root = a_span(
        9,
        attributes={"http.route": "/ask", "session.id": "s", "user.id": "u", "assay.cohort.plan": "trial"},
        resource={"assay.cohort.region": "eu"},
    )
    fields = only(root, a_call(1, 9))
    assert (fields["route"], fields["session_id"], fields["user_id"]) == ("/ask", "s", "u")
    assert fields["cohort"] == {"plan": "trial", "region": "eu"}


def test_a_failed_call_is_an_interaction_that_ended_in_an_error() -> None:
    span = a_span(attributes={**CHAT, "gen_ai.input.messages": ASKED, "error.type": "Timeout"}, failed=True)
    fields = only(span)
    assert (fields["output"], fields["finish_reason"], fields["metadata"]["error"]) == ("", "error", "Timeout")


def test_a_span_sent_twice_tells_once_and_a_cycle_of_parents_ends() -> None:
    assert only(a_call(1), a_call(1))
    assert len(interactions([a_call(1, 2), a_span(2, 1, attributes={}), a_retrieval(3, "x", 3)]).interactions) == 1


# -- loop guard


@pytest.mark.parametrize("value", [True, "true", "1"])
def test_a_marked_span_and_all_within_it_are_passed_over(value: object) -> None:
    assert skipped(a_call(1, **{MARK: value})) == {"judge": 1}
    assert skipped(a_span(9, attributes={MARK: value}), a_call(1, 9)) == {"judge": 1}


def test_spans_of_assays_processes_and_of_evaluators_are_passed_over() -> None:
    assert skipped(a_span(1, attributes=dict(a_call().attributes), resource={"service.name": "assay-worker"}))
    assert skipped(a_span(9, attributes={"openinference.span.kind": "EVALUATOR"}), a_call(1, 9)) == {"judge": 1}
    assert skipped(a_call(1, **{"gen_ai.evaluation.name": "faithfulness"})) == {"judge": 1}


def test_the_judges_prompt_is_known_wherever_it_was_traced() -> None:
    messages = render(a_record(), [ordinal()])
    assert messages[0]["content"].startswith(JUDGE_OPENING)
    assert skipped(a_call(1, **{"gen_ai.input.messages": json.dumps(messages)})) == {"judge": 1}


def test_a_user_who_writes_as_the_judge_does_is_judged_all_the_same() -> None:
    asked = [{"role": "user", "content": JUDGE_OPENING}]
    assert only(a_call(1, **{"gen_ai.input.messages": asked}))["input"][0]["content"] == JUDGE_OPENING


# -- hostile values


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def cyclic() -> Any:
    inner: list[Any] = []
    inner.append({"role": "user", "content": inner, "parts": inner})
    return inner


def bomb() -> Any:
    value: Any = ("x",)
    for _ in range(60):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        deep(100_000),
        '{"role":' * 50_000,
        "x" * 3_000_000,
        cyclic(),
        bomb(),
        [{"role": bomb(), "parts": {"type": cyclic()}}],
        float("nan"),
        b"\xff\xfe",
        {"messages": {"messages": {"messages": 7}}},
        [[[[[]]]]],
        [None, 7, {"role": None}],
        "\ud800",
        10**5000,
    ],
    ids=lambda value: str(type(value)),
)
@pytest.mark.parametrize(
    "name", ["gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "input.value",
             "gen_ai.response.finish_reasons", "gen_ai.usage.input_tokens", "session.id", "gen_ai.retrieval.documents",
             "openinference.span.kind", "gen_ai.response.model", "llm.input_messages.0.message.content"]
)  # fmt: skip
def test_a_hostile_value_spares_the_rest_of_the_trace(name: str, value: Any) -> None:
    found = interactions([a_call(1, **{name: value}), a_call(2, start=20)])
    assert f"{2:016x}" in [span.span_id for span, _ in found.interactions]
    assert len(found.interactions) + sum(found.skipped.values()) >= 1
    for _, fields in found.interactions:
        as_record("shop", {**fields, "sampling": Sampling()}, None).to_json()


@pytest.mark.parametrize("index", ["9" * 5000, "-1", "1e3", "", "٣", "999999"])
def test_indexes_of_messages_may_be_anything(index: str) -> None:
    attributes = {"openinference.span.kind": "LLM", f"llm.input_messages.{index}.message.content": "x"}
    interactions([a_span(attributes=attributes)])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "parts", "type", "text", "messages", "choices", "message", "id", "name",
                         "tool_calls", "function", "arguments", "response", "documents", "lc", "kwargs", "data"]),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
NAMES = st.sampled_from(
    [
        *sorted(DISCRIMINATORS),
        *("gen_ai.input.messages", "gen_ai.output.messages", "input.value", "output.value", "gen_ai.prompt.0.content"),
        *("llm.input_messages.0.message.contents.0.message_content.text", "llm.output_messages.0.message.tool_calls"),
        *("retrieval.documents.0.document", "retrieval.documents.0.document.content", "gen_ai.tool.call.result"),
        *("langfuse.observation.usage_details", "mlflow.spanOutputs", MARK, "session.id", "llm.cost.total"),
    ]
)
MAYBE_JSON = VALUES | VALUES.map(lambda value: json.dumps(value, default=str))


@st.composite
def hostile_span(draw: st.DrawFn) -> Span:
    kind = draw(st.sampled_from([{}, CHAT, {"openinference.span.kind": draw(st.sampled_from(["LLM", "RETRIEVER"]))}]))
    attributes: Mapping[str, Any] = {**draw(st.dictionaries(NAMES, MAYBE_JSON, max_size=6)), **kind}
    names = st.sampled_from(["gen_ai.user.message", "gen_ai.choice", "db.query.result", "exception"])
    events = st.builds(SpanEvent, name=names, attributes=st.dictionaries(NAMES, MAYBE_JSON, max_size=2), body=VALUES)
    number = draw(st.integers(1, 4))
    return a_span(
        number, draw(st.none() | st.integers(1, 4)), attributes=attributes, events=draw(st.lists(events, max_size=3))
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(hostile_span(), max_size=5))
def test_no_attributes_raise_or_are_unreadable(spans: list[Span]) -> None:
    found = interactions(spans)
    calls = {span.span_id for span in spans if kind_of(span) == "llm"}
    assert len(found.interactions) + sum(found.skipped.values()) == len(_last(spans, calls))
    assert not found.skipped["unreadable"]
    for _, fields in found.interactions:
        json.loads(as_record("shop", {**fields, "sampling": Sampling()}, None).to_json())


def _last(spans: list[Span], calls: set[str]) -> set[str]:
    """The ids whose last span is a model call: a span sent again takes the place of the first."""
    last = {span.span_id: kind_of(span) for span in spans}
    return {span_id for span_id in calls if last[span_id] == "llm"}


def test_a_trace_of_thousands_of_calls_is_read_in_time_that_grows_with_it() -> None:
    """Counted, not timed: how often a retrieval span is looked at."""
    looked = 0

    class Counting(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            nonlocal looked
            looked += 1
            return super().get(key, default)

    passages = json.dumps([{"content": "Four euros.", "id": "d"}])
    found = [
        a_span(
            n, 9_999, start=1.0, attributes=Counting({"openinference.span.kind": "RETRIEVER", "output.value": passages})
        )
        for n in range(1, 401)
    ]
    outer = a_span(9_999, start=0.0, seconds=100.0)
    calls = [a_call(n, 9_999, start=10.0) for n in range(1_001, 1_401)]
    read = interactions([outer, *found, *calls])
    assert len(read.interactions) == 400
    assert all(fields["contexts"] == [{"text": "Four euros.", "id": "d"}] for _, fields in read.interactions)
    assert looked < 400 * 20


def test_of_many_spans_before_a_call_the_latest_count() -> None:
    found = [
        a_span(n, start=float(n), attributes={"openinference.span.kind": "RETRIEVER", "output.value": f'["p{n}"]'})
        for n in range(1, 301)
    ]
    read = interactions([*found, a_call(1_000, start=1_000.0)])
    (_, fields) = read.interactions[0]
    assert [row["text"] for row in fields["contexts"]] == [f"p{n}" for n in range(101, 301)]


@pytest.mark.parametrize(
    "name",
    [
        "session.id",
        "user.id",
        "http.route",
        "gen_ai.response.model",
        "assay.prompt_version",
        "assay.cohort.plan",
        "gen_ai.response.id",
        "gen_ai.response.finish_reasons",
    ],
)
@pytest.mark.parametrize("value", ["a\0b" + "x" * 100_000, "\0"])
def test_a_name_that_no_record_may_have_does_not_cost_the_record(name: str, value: str) -> None:
    call = a_call(**{name: value})
    if name.endswith("finish_reasons"):
        call = a_span(attributes={**CHAT, "input.value": "Why?", "output.value": "So.", name: [value]})
    (_, fields) = interactions([call]).interactions[0]
    later = {**fields, "sampling": Sampling(), "timestamp": 1_770_000_000.0}
    record = as_record("shop", later, None)
    assert decode_record(record.to_json()).output
