from __future__ import annotations

import enum
import math
import uuid
from collections import UserDict
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.codec import decode_record
from assay.errors import RecordError
from assay.interactions import FIELDS, as_record, as_text, copy_and_size, trace_id_text
from assay.records import Context, Feedback, Message, Record, Sampling, ToolEvent, Usage

MOMENT = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    """As markup libraries have it."""


class Model(str, enum.Enum):  # noqa: UP042 - the older way, whose str() is not its value
    SMALL = "small"


def record(user_id: str | None = None, **fields: Any) -> Record:
    """The record of an interaction with these fields, after a journey over the wire."""
    given = {"record_id": "r1", "timestamp": MOMENT, "sampling": Sampling(), **fields}
    made = as_record("shop", given, user_id)
    assert decode_record(made.to_json(), at=MOMENT + timedelta(days=1)) == made
    return made


def test_fields_are_those_of_a_record() -> None:
    assert set(Record.__slots__) - {"schema_version", "app", "sampling"} == FIELDS


def test_nothing_given() -> None:
    assert record() == Record(record_id="r1", timestamp=MOMENT, app="shop")
    assert record(**dict.fromkeys(FIELDS - {"record_id", "timestamp"})) == record()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        (None, ""),
        (7, "7"),
        (Model.SMALL, "small"),
        ({"a": ["\u00e9", 1]}, '{"a": ["\u00e9", 1]}'),
        ([1, None], "[1, null]"),
        ((), "[]"),
        ({"d": MOMENT}, '{"d": "2026-01-31T12:00:00+00:00"}'),
        (Decimal("1.50"), "1.50"),
    ],
)
def test_output_in_many_forms(value: object, expected: str) -> None:
    assert record(output=value).output == as_text(value) == expected


def test_input_text_and_messages() -> None:
    assert record(input="hi").input == "hi"
    assert record(input=[]).input == "[]"
    assert record(input=[{"role": "user", "content": "hi"}, Message(role="assistant", content="yes")]).input == (
        Message(role="user", content="hi"),
        Message(role="assistant", content="yes"),
    )


def test_chat_messages_as_model_apis_have_them() -> None:
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": [{"type": "text", "text": "what is"}, {"type": "image_url"}, "this"]},
        {"content": "no role"},
    ]
    assert record(input=messages).input == (
        Message(role="assistant", content=""),
        Message(role="user", content="what is\n[image_url]\nthis"),
        Message(role="user", content="no role"),
    )


def test_input_that_is_neither() -> None:
    assert record(input={"question": "hi"}).input == '{"question": "hi"}'
    assert record(input=["a", "b"]).input == '["a", "b"]'


def test_contexts_in_many_forms() -> None:
    contexts = ["a", Context(text="b", id="1"), {"text": "c", "id": 2, "score": 1}, {"text": None}]
    assert record(contexts=contexts).contexts == (
        Context(text="a"),
        Context(text="b", id="1"),
        Context(text="c", id="2", score=1.0),
        Context(text=""),
    )


@pytest.mark.parametrize(
    "one", ["one passage", Context(text="one passage"), {"text": "one passage"}, UserDict({"text": "one passage"})]
)
def test_one_context_is_a_list_of_it(one: Any) -> None:
    given = {"contexts": one}
    copy_and_size(given)
    assert record(contexts=one).contexts == record(**given).contexts == (Context(text="one passage"),)


@pytest.mark.parametrize("one", [ToolEvent(name="search", result="x"), {"name": "search", "result": "x"}])
def test_one_tool_event_is_a_list_of_it(one: Any) -> None:
    given = {"tool_events": one}
    copy_and_size(given)
    assert record(**given).tool_events == (ToolEvent(name="search", result="x"),)


@pytest.mark.parametrize("one", [Message(role="user", content="hi"), {"role": "user", "content": "hi", "name": "ada"}])
def test_one_message_is_a_list_of_it(one: Any) -> None:
    given = {"input": one}
    copy_and_size(given)
    assert record(input=one).input == record(**given).input == (Message(role="user", content="hi"),)


def test_one_required_field_is_a_list_of_it() -> None:
    assert record(required_fields="order_id").required_fields == ("order_id",)
    assert record(required_fields={"order_id": 1, "total": 2}).required_fields == ("order_id", "total")


def test_an_empty_text_or_mapping_is_an_empty_list() -> None:
    assert record(contexts="", required_fields="", tool_events={}) == record()


def test_usage_tools_and_feedback() -> None:
    made = record(
        usage={"prompt_tokens": 10, "cost_usd": Decimal("0.5")},
        tool_events=[{"name": "search", "arguments": {"q": "x"}, "result": [1]}, ToolEvent(name="mail", error="no")],
        feedback={"thumb": "down", "rating": 3, "comment": "bad"},
    )
    assert made.usage == Usage(prompt_tokens=10, cost_usd=0.5)
    assert made.tool_events == (
        ToolEvent(name="search", arguments='{"q": "x"}', result="[1]"),
        ToolEvent(name="mail", error="no"),
    )
    assert made.feedback == Feedback(thumb="down", rating=3.0, comment="bad")
    assert record(usage=Usage(prompt_tokens=1)).usage == Usage(prompt_tokens=1)


def test_names_and_labels_become_text() -> None:
    made = record(
        route=Model.SMALL, model=5, session_id=uuid.UUID(int=1), cohort={"tier": 3, "none": None}, sink_refs={"a": 1}
    )
    assert (made.route, made.model, made.session_id) == ("small", "5", "00000000-0000-0000-0000-000000000001")
    assert made.cohort == {"tier": "3"}
    assert made.sink_refs == {"a": "1"}


def test_metadata_of_any_kind() -> None:
    metadata = {
        "when": MOMENT,
        "day": date(2026, 1, 31),
        "set": {1},
        "nan": math.nan,
        "inf": -math.inf,
        "enum": Colour.RED,
        "model": Model.SMALL,
        5: (1, True, None, 2.5),
        "nested": {"id": uuid.UUID(int=1)},
    }
    assert record(metadata=metadata).metadata == {
        "when": "2026-01-31T12:00:00+00:00",
        "day": "2026-01-31",
        "set": [1],
        "nan": None,
        "inf": None,
        "enum": "Colour.RED",
        "model": "small",
        "5": [1, True, None, 2.5],
        "nested": {"id": "00000000-0000-0000-0000-000000000001"},
    }


def test_timestamps() -> None:
    there = datetime(2026, 1, 31, 13, tzinfo=timezone(timedelta(hours=1)))
    assert record(timestamp=there).timestamp == MOMENT
    assert record(timestamp=MOMENT.timestamp()).timestamp == MOMENT


def test_the_users_own_id_is_left_aside() -> None:
    assert record(user_id=None).user_id is None
    given = {"record_id": "r1", "timestamp": MOMENT, "sampling": Sampling(), "user_id": "ada"}
    assert as_record("shop", given, "hashed").user_id == "hashed"
    assert as_record("shop", given, None).user_id is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"inputt": 1}, "inputt"),
        ({"timestamp": datetime(2026, 1, 31, 12)}, "timestamp"),  # noqa: DTZ001 - without a zone on purpose
        ({"latency_seconds": -1}, "latency_seconds"),
        ({"latency_seconds": math.nan}, "latency_seconds"),
        ({"feedback": {"thumb": "sideways"}}, "feedback.thumb"),
        ({"feedback": {"thumbs": "up"}}, "feedback.thumbs"),
        ({"contexts": [{"text": "a", "txt": 1}]}, "contexts.txt"),
        ({"usage": {"tokens": 1}}, "usage.tokens"),
        ({"tool_events": [{"name": "a", "args": 1}]}, "tool_events.args"),
        ({"record_id": ""}, "record_id"),
    ],
)
def test_what_no_record_can_hold(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RecordError) as raised:
        record(**fields)
    assert raised.value.field == field


@pytest.mark.parametrize(
    "fields",
    [
        {"contexts": 5},
        {"contexts": [{"id": 1}]},
        {"cohort": "x"},
        {"usage": {"prompt_tokens": "many"}},
        {"metadata": [1]},
        {"latency_seconds": "fast"},
        {"timestamp": "now"},
        {"tool_events": [{"arguments": 1}]},
    ],
)
def test_what_is_of_another_kind_raises(fields: dict[str, Any]) -> None:
    """Whatever it is: the buffer counts it as invalid."""
    with pytest.raises((TypeError, ValueError, KeyError, AttributeError)):
        record(**fields)


W3C = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (W3C, W3C),
        (W3C.upper(), W3C),
        (int(W3C, 16), W3C),
        (5, "0" * 31 + "5"),
        (uuid.UUID(W3C), W3C),
        (str(uuid.UUID(W3C)), W3C),
        (str(uuid.UUID(W3C)).upper(), W3C),
        ("req-123-ABC", "req-123-ABC"),
        ("x" * 32, "x" * 32),
        ("X" * 32, "X" * 32),
        ("-" * 36, "-" * 36),
        ("", None),
        (0, None),
        ("0" * 32, None),
        (None, None),
        (uuid.UUID(int=0), None),
    ],
)
def test_trace_ids(value: object, expected: str | None) -> None:
    assert trace_id_text(value) == expected


@given(st.text())
def test_trace_ids_that_are_normal_stay(text: str) -> None:
    assert trace_id_text(trace_id_text(text)) == trace_id_text(text)


def test_span_ids() -> None:
    assert record(span_id=255).span_id == "00000000000000ff"
    assert record(span_id="b7ad6b7169203331").span_id == "b7ad6b7169203331"
    assert record(span_id=0).span_id is None


def test_lists_and_dicts_are_copied() -> None:
    contexts, metadata, messages = ["a"], {"k": "v"}, [{"role": "user", "content": "x"}]
    interaction: dict[str, Any] = {"contexts": contexts, "metadata": metadata, "input": messages, "output": "o"}
    copy_and_size(interaction)
    contexts.append("b")
    metadata["k"] = "w"
    messages.clear()
    assert interaction["contexts"] == ("a",)
    assert interaction["metadata"] == {"k": "v"}
    assert interaction["input"] == ({"role": "user", "content": "x"},)


@pytest.mark.parametrize(
    "fields",
    [
        {"output": "x" * 10_000},
        {"input": [{"role": "user", "content": "x" * 10_000}]},
        {"input": (Message(role="user", content="x" * 10_000),)},
        {"contexts": ["x" * 5000, "y" * 5000]},
        {"contexts": [{"text": "x" * 10_000}]},
        {"contexts": [Context(text="x" * 10_000)]},
        {"tool_events": [ToolEvent(name="t", arguments="x" * 4000, result="x" * 3000, error="x" * 3000)]},
        {"metadata": {"a": {"b": "x" * 10_000}}},
        {"metadata": {"a": ["x" * 10_000]}},
        {"reference": "x" * 10_000},
        {"reference": Text("x" * 10_000)},
        {"contexts": [Text("x" * 10_000)]},
        {"output": b"x" * 10_000},
        {"metadata": {"a": {"b": [{"c": {"d": "x" * 10_000}}]}}},
        {"metadata": {"x" * 5000: 1, "a": {"y" * 5000: 1}}},
        {"metadata": UserDict({"a": UserDict({"b": "x" * 10_000})})},
        {"output": {"x" * 10_000}},
        {"feedback": Feedback(comment="x" * 10_000)},
        {"usage": {"cost_usd": Text("x" * 10_000)}},
        {"input": [{"role": "user", "content": [{"type": "text", "text": "x" * 10_000}]}]},
        {"input": [{"question": "x" * 5000, "content": ["y" * 5000]}, "no message"]},
        {"input": {"content": "x" * 5000, "other": "y" * 5000}},
    ],
)
def test_size_follows_the_texts(fields: dict[str, Any]) -> None:
    assert 10_000 <= copy_and_size(dict(fields)) < 12_000


@pytest.mark.parametrize("image", [{"url": "x" * 1_000_000}, b"x" * 1_000_000])
@pytest.mark.parametrize("one", [True, False])
def test_what_is_not_sent_of_a_message_is_not_kept(image: object, one: bool) -> None:
    parts = [{"type": "text", "text": "what is"}, {"type": "image_url", "image_url": image}, "this"]
    message = {"role": "user", "content": parts, "raw": image}
    given: dict[str, Any] = {"input": message if one else [message]}
    assert copy_and_size(given) < 2_000
    assert len(repr(given)) < 1_000
    assert record(**given).input == (Message(role="user", content="what is\n[image_url]\nthis"),)
    assert "raw" in message
    assert "image_url" in parts[1]


def test_size_of_very_many_values_is_estimated() -> None:
    size = copy_and_size({"metadata": {"rows": [["x" * 100] for _ in range(50_000)]}})
    assert 5_000_000 < size < 15_000_000


def test_size_of_any_object_is_counted() -> None:
    assert copy_and_size({"output": object()}) == 1_500
    assert copy_and_size({"metadata": {"a": [object()] * 10}}) > 10_000


def test_size_of_what_another_thread_changes() -> None:
    class Changing(UserDict[str, str]):
        def __iter__(self) -> Any:
            raise RuntimeError("changed size during iteration")

    assert copy_and_size({"metadata": {"a": Changing()}}) > 1_500


def test_size_of_what_contains_itself() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert copy_and_size({"metadata": {"c": circle}}) < 10_000


def test_size_is_at_least_that_of_the_json_of_plain_text() -> None:
    fields = {"input": "q" * 300, "output": "a" * 700, "contexts": ["c" * 500] * 4, "metadata": {"k": "v"}}
    assert copy_and_size(dict(fields)) >= len(record(**fields).to_json())
