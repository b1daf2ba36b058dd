from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.codec import MAX_AHEAD, MAX_NAME, decode_record, record_schema
from assay.errors import RecordError
from assay.records import Context, Feedback, Message, Record, Sampling, ToolEvent, Usage

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "reference" / "record.schema.json"
BASE: dict[str, Any] = {"record_id": "r1", "timestamp": "2026-01-31T12:00:00Z"}
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def refused(raw: Any, **kwargs: Any) -> RecordError:
    with pytest.raises(RecordError) as raised:
        decode_record(raw, **kwargs)
    return raised.value


def wrong(**fields: Any) -> RecordError:
    """The error for a record that is right but for these fields."""
    return refused(json.dumps({**BASE, **fields}))


def test_least_record() -> None:
    record = decode_record(json.dumps(BASE))
    assert record == Record(record_id="r1", timestamp=datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert record.sampling == Sampling(probability=1.0, rule="default")


def test_whole_record() -> None:
    record = Record(
        record_id="r1",
        timestamp=datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC),
        app="support",
        input=(Message(role="user", content="Hi"), Message(role="assistant", content="Hello")),
        output="answer \u2014 \U0001f600",
        contexts=(Context(text="a", id="1", score=0.5), Context(text="b")),
        reference="right",
        required_fields=("total",),
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331",
        session_id="s",
        user_id="u",
        route="/ask",
        model="m",
        prompt_version="7",
        cohort={"tenant": "blue"},
        sampling=Sampling(probability=0.05, rule="canary"),
        usage=Usage(prompt_tokens=10, completion_tokens=0, cost_usd=0.001, cached_prompt_tokens=4),
        latency_seconds=1.5,
        finish_reason="stop",
        tool_events=(ToolEvent(name="search", arguments="{}", result="[]"), ToolEvent(name="mail", error="refused")),
        feedback=Feedback(thumb="down", rating=2, comment="no"),
        metadata={"nested": {"list": [1, 2.5, None, True, "x"]}},
        sink_refs={"mlflow_request_id": "7"},
    )
    assert decode_record(record.to_json()) == record
    assert decode_record(record.to_json().encode()) == record


def test_takes_a_mapping_and_datetimes_in_it() -> None:
    moment = datetime(2026, 1, 31, 13, tzinfo=timezone(timedelta(hours=1)))
    record = decode_record({"record_id": "r1", "timestamp": moment, "contexts": [{"text": "c"}]})
    assert record.timestamp == moment
    assert record.contexts == (Context(text="c"),)


texts = st.text(max_size=60)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
optional_names = st.none() | names
finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.none() | st.integers(min_value=0, max_value=2**53 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
messages = st.builds(Message, role=names, content=texts)
records = st.builds(
    Record,
    record_id=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40),
    timestamp=st.datetimes(
        min_value=datetime.combine(date(2000, 1, 2), time()),
        max_value=datetime.combine(date(2026, 1, 1), time()),
        timezones=st.just(UTC),
    ),
    app=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40),
    input=texts | st.lists(messages, max_size=3).map(tuple),
    output=texts,
    contexts=st.lists(st.builds(Context, text=texts, id=optional_names, score=st.none() | finite), max_size=3).map(
        tuple
    ),
    reference=st.none() | texts,
    required_fields=st.lists(texts, max_size=3).map(tuple),
    trace_id=optional_names,
    user_id=optional_names,
    route=optional_names,
    cohort=st.dictionaries(names, names, max_size=3),
    sampling=st.builds(
        Sampling, probability=st.floats(min_value=0, max_value=1, exclude_min=True), rule=names.filter(bool)
    ),
    usage=st.builds(
        Usage,
        prompt_tokens=counts,
        completion_tokens=counts,
        cost_usd=st.none() | st.floats(0, 1e6),
        cached_prompt_tokens=counts,
    ),
    latency_seconds=st.none() | st.floats(0, 1e9),
    tool_events=st.lists(st.builds(ToolEvent, name=texts, arguments=st.none() | texts), max_size=2).map(tuple),
    feedback=st.none() | st.builds(Feedback, thumb=st.sampled_from([None, "up", "down"]), rating=st.none() | finite),
    metadata=st.dictionaries(texts, json_values, max_size=3),
    sink_refs=st.dictionaries(names, names, max_size=2),
)


@given(records)
def test_round_trip(record: Record) -> None:
    expected = record
    if record.input == ():
        # No messages and no text are the same: nothing on the wire.
        expected = Record(**{**{name: getattr(record, name) for name in record.__slots__}, "input": ""})
    if record.feedback == Feedback():
        assert decode_record(record.to_json()).feedback in (None, Feedback())
    else:
        assert decode_record(record.to_json()) == expected


@given(records)
@settings(max_examples=50, deadline=None)
def test_what_is_decoded_fits_the_published_schema(record: Record) -> None:
    jsonschema.validate(json.loads(record.to_json()), record_schema())


@given(st.binary(max_size=200))
def test_any_bytes_give_a_record_or_a_record_error(raw: bytes) -> None:
    with pytest.raises(RecordError):  # no 200 random bytes are a record
        decode_record(raw)


@given(json_values)
def test_any_json_gives_a_record_or_a_record_error(value: Any) -> None:
    assert refused(json.dumps(value)).reason in {"undecodable", "invalid", "unknown_version"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b'{"record_id": "\xe9"}', "not UTF-8"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"record_id":"r1","timestamp":"2026-01-31T12:00:00Z","output":"\\ud800"}', "not JSON"),
        ("\ud800", "UTF-8"),
        ({"metadata": {"x": object()}}, "object is not a JSON type"),
        ({"metadata": {1.5j: 1}}, "not a JSON value"),
    ],
)
def test_undecodable(raw: Any, words: str) -> None:
    error = refused(raw)
    assert error.reason == "undecodable"
    assert words in str(error)
    assert error.field is None


@pytest.mark.parametrize("version", [2, 0, -1, "1", None, 1.5, True, [1]])
def test_unknown_version_is_said_before_anything_else(version: Any) -> None:
    error = refused(json.dumps({"schema_version": version, "of_the_future": 1}))
    assert (error.reason, error.field) == ("unknown_version", "schema_version")
    assert "upgrade the worker" in str(error)


def test_unknown_version_of_an_otherwise_right_record() -> None:
    assert wrong(schema_version=2).reason == "unknown_version"


def test_too_large_by_bytes_not_characters() -> None:
    raw = json.dumps({**BASE, "output": "\u00e9" * 100}, ensure_ascii=False)
    assert decode_record(raw, max_bytes=len(raw.encode())).output == "\u00e9" * 100
    error = refused(raw, max_bytes=len(raw.encode()) - 1)
    assert error.reason == "too_large"
    assert "bytes" in str(error)


def test_ten_megabytes_are_refused_by_default() -> None:
    assert wrong(output="x" * 10_000_000).reason == "too_large"


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"contxts": []}, "contxts", "did you mean contexts?"),
        ({"contexts": [{"text": "a"}, {"txt": "b"}]}, "contexts[1].text", "is missing (and 1 more)"),
        ({"contexts": [{"text": "a", "scor": 1}]}, "contexts[0].scor", "did you mean score?"),
        ({"zzz": 1}, "zzz", "is not a field of a record"),
        ({"contexts": "abc"}, "contexts", "must be an array"),
        ({"contexts": None}, "contexts", "must be an array"),
        ({"input": 5}, "input", "must be text, or an array of messages"),
        ({"input": [{"role": "user"}]}, "input[0].content", "is missing"),
        ({"input": [{"role": "user", "content": None}]}, "input[0].content", "must be text"),
        ({"input": [{"role": "user", "content": "x", "contents": "y"}]}, "input[0].contents", "did you mean content?"),
        ({"output": 7}, "output", "must be text"),
        ({"output": None}, "output", "must be text"),
        ({"record_id": ""}, "record_id", "1 to 200"),
        ({"record_id": "x" * 201}, "record_id", "1 to 200"),
        ({"record_id": 5}, "record_id", "must be text"),
        ({"app": "x" * 101}, "app", "1 to 100"),
        ({"timestamp": "2026-01-31T12:00:00"}, "timestamp", "has no time zone"),
        ({"timestamp": "yesterday"}, "timestamp", "2026-01-31T12:00:00Z"),
        ({"timestamp": 1_700_000_000}, "timestamp", "2026-01-31T12:00:00Z"),
        ({"timestamp": "1970-01-20T12:00:00Z"}, "timestamp", "before the year 2000"),
        ({"sampling": {"probability": 0}}, "sampling.probability", "not in (0, 1]"),
        ({"sampling": {"probability": 1.01}}, "sampling.probability", "not in (0, 1]"),
        ({"sampling": {"probability": -0.5}}, "sampling.probability", "not in (0, 1]"),
        ({"sampling": {"probability": float("nan")}}, "sampling.probability", "not in (0, 1]"),
        ({"sampling": {"probability": "0.5"}}, "sampling.probability", "must be a number"),
        ({"latency_seconds": -1}, "latency_seconds", "not negative"),
        ({"latency_seconds": float("nan")}, "latency_seconds", "finite"),
        ({"usage": {"prompt_tokens": -1}}, "usage.prompt_tokens", "0 or more"),
        ({"usage": {"completion_tokens": 2**53}}, "usage.completion_tokens", "2 to the 53rd"),
        ({"usage": {"cached_prompt_tokens": -1}}, "usage.cached_prompt_tokens", "0 or more"),
        ({"usage": {"prompt_tokens": 1.5}}, "usage.prompt_tokens", "whole number"),
        ({"usage": {"cost_usd": -0.01}}, "usage.cost_usd", "negative"),
        ({"usage": {"cost_usd": float("inf")}}, "usage.cost_usd", "JSON"),
        ({"contexts": [{"text": "a", "score": float("nan")}]}, "contexts[0].score", "JSON"),
        ({"feedback": {"rating": float("-inf")}}, "feedback.rating", "JSON"),
        ({"feedback": {"thumb": "sideways"}}, "feedback.thumb", "'up' or 'down'"),
        ({"metadata": {"a": [1, {"b": float("inf")}]}}, "metadata.a[1].b", "JSON"),
        ({"metadata": [1]}, "metadata", "must be an object"),
        ({"cohort": {"a": 1}}, "cohort.a", "must be text"),
        ({"cohort": {"a": "x\0"}}, "cohort.a", "NUL"),
        ({"route": "x" * (MAX_NAME + 1)}, "route", f"more than {MAX_NAME}"),
        ({"trace_id": "a\0b"}, "trace_id", "NUL"),
        ({"sampling": {"rule": "a\0b"}}, "sampling.rule", "NUL"),
        ({"sink_refs": {"a": "x" * (MAX_NAME + 1)}}, "sink_refs.a", "more than"),
    ],
)
def test_invalid_field(fields: dict[str, Any], field: str, words: str) -> None:
    error = wrong(**fields)
    assert (error.reason, error.field) == ("invalid", field)
    assert words in str(error)
    assert str(error).startswith(f"{field}: ")


@pytest.mark.parametrize("name", ["record_id", "timestamp"])
def test_required_fields(name: str) -> None:
    error = refused({key: value for key, value in BASE.items() if key != name})
    assert (error.field, error.message) == (name, "is missing")


def test_numbers_too_large_for_a_float_are_refused() -> None:
    raw = json.dumps(BASE)[:-1] + ',"metadata":{"a":1e999}}'
    assert refused(raw).field == "metadata.a"


def test_numbers_of_thousands_of_digits_are_refused() -> None:
    raw = json.dumps(BASE)[:-1] + ',"metadata":{"a":' + "9" * 5000 + "}}"
    assert refused(raw).reason == "undecodable"


@pytest.mark.parametrize("hard", ["9" * 4300, "9" * 4301, "-" + "9" * 4300, "9" * 5000, "[" * 3000 + "]" * 3000])
@pytest.mark.parametrize("place", ['"x":%s', '"schema_version":%s', '"usage":{"prompt_tokens":%s}', '"input":[%s]'])
@pytest.mark.parametrize("rest", ["", "," + json.dumps(BASE)[1:-1]])
def test_what_can_hardly_be_read_gives_a_record_error_in_short(hard: str, place: str, rest: str) -> None:
    error = refused("{" + place % hard + rest + "}")
    assert error.reason in {"undecodable", "invalid", "unknown_version"}
    assert len(str(error)) < 500


def test_what_pydantic_reads_and_python_does_not_is_undecodable(monkeypatch: pytest.MonkeyPatch) -> None:
    for unread in (ValueError("4300 digits"), RecursionError("too deep")):

        def loads(_: bytes, unread: Exception = unread) -> None:
            raise unread

        with monkeypatch.context() as patch:
            patch.setattr("assay.codec.json.loads", loads)
            assert refused("{}").reason == "undecodable"


def test_future_timestamps_are_refused_beyond_ten_minutes() -> None:
    raw = {**BASE, "timestamp": NOW + MAX_AHEAD}
    assert decode_record(raw, at=NOW).timestamp == NOW + MAX_AHEAD
    error = refused({**BASE, "timestamp": NOW + MAX_AHEAD + timedelta(seconds=1)}, at=NOW)
    assert error.field == "timestamp"
    assert "in the future" in str(error)


def test_future_is_measured_from_now_by_default() -> None:
    assert refused({**BASE, "timestamp": datetime.now(UTC) + timedelta(hours=1)}).field == "timestamp"
    decode_record({**BASE, "timestamp": datetime.now(UTC)})


def test_texts_may_hold_nul_characters() -> None:
    assert decode_record(json.dumps({**BASE, "output": "a\0b"})).output == "a\0b"


def test_the_committed_schema_is_the_one_the_code_gives() -> None:
    committed = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert committed == record_schema(), "run `make docs`"


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(record_schema())


def test_every_field_is_described() -> None:
    schema = record_schema()
    for owner in (schema, *schema["$defs"].values()):
        assert owner["description"]
        for name, item in owner["properties"].items():
            assert item["description"], name


def test_the_schema_names_what_is_required_and_bounded() -> None:
    schema = record_schema()
    assert schema["required"] == ["record_id", "timestamp"]
    assert schema["additionalProperties"] is False
    probability = schema["$defs"]["Sampling"]["properties"]["probability"]
    assert (probability["exclusiveMinimum"], probability["maximum"]) == (0, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"contxts": []},
        {"contexts": [{"txt": "b"}]},
        {"input": 5},
        {"sampling": {"probability": 0}},
        {"sampling": {"probability": 1.5}},
        {"latency_seconds": -1},
        {"usage": {"prompt_tokens": -1}},
        {"usage": {"cost_usd": -1}},
        {"usage": {"prompt_tokens": 1.5}},
        {"feedback": {"thumb": "sideways"}},
        {"record_id": ""},
        {"record_id": "x" * 201},
        {"app": ""},
        {"route": "x" * 501},
        {"cohort": {"a": 1}},
        {"schema_version": 2},
    ],
)
def test_schema_and_decoder_refuse_alike(fields: dict[str, Any]) -> None:
    assert not jsonschema.Draft202012Validator(record_schema()).is_valid({**BASE, **fields})
    refused({**BASE, **fields})
