from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.codec import decode_record
from assay.errors import RecordError, SettingsError
from assay.queue import TASK, Batch, Queue, decode_batch, doorbell, encode_batch, is_batch, is_doorbell

HEAD: dict[str, Any] = {"schema_version": 1, "batch_id": "b1", "enqueued_at": 1.5}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def refused(payload: bytes) -> RecordError:
    with pytest.raises(RecordError) as raised:
        decode_batch(payload)
    return raised.value


def payload(records: str = '[{"a":1}]', **fields: Any) -> bytes:
    return (json.dumps({**HEAD, **fields})[:-1] + f',"records":{records}}}').encode()


def test_round_trip() -> None:
    encoded = encode_batch(['{"a":1}', '{"b":"\u00e9"}'], batch_id="b1", enqueued_at=12.25, attempt=2, replay=True)
    assert decode_batch(encoded) == Batch("b1", 12.25, 2, True, (b'{"a":1}', '{"b":"\u00e9"}'.encode()))
    assert json.loads(encoded)["schema_version"] == 1


def test_records_pass_as_bytes_unchanged() -> None:
    raw = b'{ "a" : "\xff\xfe" }'
    batch = decode_batch(encode_batch([raw, '{"b":2}'], batch_id="b1", enqueued_at=1.0))
    assert batch.records == (raw, b'{"b":2}')


@given(st.lists(json_values, min_size=1, max_size=5), st.sampled_from([None, 2]), st.booleans())
def test_records_come_out_as_they_went_in(values: list[Any], indent: int | None, escaped: bool) -> None:
    texts = [json.dumps(value, indent=indent, ensure_ascii=escaped) for value in values]
    encoded = encode_batch(texts, batch_id="b1", enqueued_at=1.0)
    assert [raw.decode() for raw in decode_batch(encoded).records] == texts


@given(json_values, st.integers(0, 5))
def test_any_layout_of_the_same_json(value: Any, indent: int) -> None:
    text = json.dumps({"records": [{"x": value}], "of_another": value, **HEAD}, indent=indent)
    batch = decode_batch(text.encode())
    assert [json.loads(raw) for raw in batch.records] == [{"x": value}]
    assert (batch.attempt, batch.replay) == (0, False)


def test_a_record_in_bad_utf8_spoils_itself_only() -> None:
    batch = decode_batch(payload().replace(b'{"a":1}', b'{"a":"\xff"},{"b":2}'))
    assert batch.records == (b'{"a":"\xff"}', b'{"b":2}')


def test_strings_that_look_like_the_end_of_a_record() -> None:
    text = json.dumps({"a": '"},{"b":1}],"batch_id":"x"'})
    assert decode_batch(payload(f"[{text}]")).records == (text.encode(),)


#: What Python's json cannot read, and what is no JSON at all.
HARD = ["9" * 5000, "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "[nonsense]", '"\t"', "-", "[1,]", "{]"]


@pytest.mark.parametrize("hard", HARD)
def test_a_record_that_cannot_be_read_spoils_itself_only(hard: str) -> None:
    batch = decode_batch(payload(f'[{{"a":1}}, {{"n":{hard}}} ,{hard},{{"b":2}}]'))
    assert batch.records == (b'{"a":1}', f'{{"n":{hard}}}'.encode(), hard.encode(), b'{"b":2}')
    for raw in batch.records[1:3]:
        with pytest.raises(RecordError) as raised:
            decode_record(raw)
        assert raised.value.reason in {"undecodable", "invalid"}


@pytest.mark.parametrize("hard", HARD)
def test_an_unknown_field_that_cannot_be_read_spoils_nothing(hard: str) -> None:
    text = '{"new":' + hard + "," + payload().decode()[1:]
    assert decode_batch(text.encode()).records == (b'{"a":1}',)


@pytest.mark.parametrize("version", ["[" * 900 + "]" * 900, "9" * 4000, '"' + "x" * 10_000 + '"'])
def test_an_odd_version_is_told_in_short(version: str) -> None:
    error = refused(payload().replace(b'"schema_version": 1', b'"schema_version": ' + version.encode()))
    assert error.reason == "unknown_version"
    assert len(str(error)) < 200


@pytest.mark.parametrize("filling", ["[", "]", "[]", "[],", '"",', "\\n", '\\"', '"', "x", "1,", "{", '"a":{'])
def test_batches_are_split_in_linear_time(filling: str) -> None:
    for wrapped in ("[%s]", '["%s"]', '[["%s"]]', '["%s'):
        started = time.process_time()
        with contextlib.suppress(RecordError):
            decode_batch(payload(wrapped % (filling * (1_000_000 // len(filling)))))
        assert time.process_time() - started < 5


def test_a_batch_carries_the_rubrics_that_it_is_confined_to() -> None:
    confined = encode_batch(["{}"], batch_id="b", enqueued_at=1.0, rubrics={"hash": "polite"})
    assert decode_batch(confined).rubrics == {"hash": "polite"}
    plain = encode_batch(["{}"], batch_id="b", enqueued_at=1.0)
    assert decode_batch(plain).rubrics == {}
    assert b"rubrics" not in plain, "what clients write is as it was"


@pytest.mark.parametrize("wrong", ["5", "null", "[]", '"polite"', '{"hash":5}', '{"hash":null}'])
def test_rubrics_that_are_none_are_refused(wrong: str) -> None:
    error = refused(payload().replace(b'"schema_version"', f'"rubrics":{wrong},"schema_version"'.encode()))
    assert (error.reason, error.field) == ("invalid", "rubrics")


def test_a_batch_and_a_record_are_told_apart() -> None:
    assert is_batch(payload())
    assert is_batch(payload('[{"n":' + "9" * 5000 + "}]"))
    assert is_batch(b'{"records":null}')
    assert not is_batch(b'{"record_id":"r","records":[]}')
    assert not is_batch(b'{"record_id":"r"}')
    assert not is_batch(b"[" * 3000)
    assert not is_batch(b"\xff")
    assert not is_batch(b"")


def test_lone_surrogates_become_question_marks() -> None:
    (raw,) = decode_batch(encode_batch(['{"a":"\ud800"}'], batch_id="b1", enqueued_at=1.0)).records
    assert raw == b'{"a":"?"}'


def test_nan_is_no_time() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_batch(["{}"], batch_id="b1", enqueued_at=float("nan"))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense",
        b"{",
        b"[]",
        b'"text"',
        b'{"a" 1}',
        b'{"a":1,}',
        b"{1:2}",
        b"{[]:2}",
        payload()[:-1],
        payload()[:-2],
        payload() + b"x",
        payload("[{]"),
        payload("[1 2]"),
        payload("[1,]"),
        b"\xff" + payload(),
        b"\xef\xbb\xbf" + payload(),
        b'{"records":' + b"[" * 200_000,
        payload("[,1]"),
        payload("[1:2]"),
        payload('["a]'),
        payload('[{"a":"b\\\\\\"}]'),
        payload().replace(b"1.5", b"9" * 5000),
    ],
)
def test_undecodable(raw: bytes) -> None:
    error = refused(raw)
    assert error.reason == "undecodable"
    assert "batch" in str(error)


@given(st.binary(max_size=100))
def test_any_bytes_give_a_record_error(raw: bytes) -> None:
    assert refused(raw).reason in {"undecodable", "unknown_version"}


@pytest.mark.parametrize("version", [2, 0, "1", None, True, 1.5])
def test_unknown_version(version: Any) -> None:
    error = refused(payload(schema_version=version))
    assert (error.reason, error.field) == ("unknown_version", "schema_version")


def test_missing_version() -> None:
    assert refused(b'{"records":[1]}').reason == "unknown_version"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"batch_id": None}, "batch_id"),
        ({"batch_id": ""}, "batch_id"),
        ({"batch_id": "x" * 201}, "batch_id"),
        ({"batch_id": 'a"b'}, "batch_id"),
        ({"batch_id": "a b"}, "batch_id"),
        ({"batch_id": "a\n"}, "batch_id"),
        ({"batch_id": "\u00e9"}, "batch_id"),
        ({"enqueued_at": None}, "enqueued_at"),
        ({"enqueued_at": True}, "enqueued_at"),
        ({"enqueued_at": "1"}, "enqueued_at"),
        ({"enqueued_at": float("nan")}, "enqueued_at"),
        ({"enqueued_at": 10**400}, "enqueued_at"),
        ({"attempt": -1}, "attempt"),
        ({"attempt": 1.0}, "attempt"),
        ({"attempt": True}, "attempt"),
        ({"replay": 1}, "replay"),
    ],
)
def test_invalid_fields(fields: dict[str, Any], field: str) -> None:
    error = refused(payload(**fields))
    assert (error.reason, error.field) == ("invalid", field)


@pytest.mark.parametrize("records", ["[]", "{}", "null", '"x"', " [ ] "])
def test_no_records(records: str) -> None:
    error = refused(payload(records))
    assert (error.reason, error.field) == ("invalid", "records")


def test_doorbells_differ_and_name_task_and_batch() -> None:
    first, second = json.loads(doorbell("assay", "b1")), json.loads(doorbell("assay", "b1"))
    assert first["headers"]["task"] == TASK
    assert json.loads(first["body"])[0] == ["b1"]
    assert first["properties"]["delivery_tag"] != second["properties"]["delivery_tag"]
    assert first["properties"]["delivery_info"]["routing_key"] == "assay"


class NoServer:
    """Enough of a redis client to construct a queue."""

    def register_script(self, script: str) -> None:
        """Nothing is run."""


@pytest.mark.parametrize("name", ["", "a:b", "a b", "a{b}", "x" * 101, "\u00e9", "a\n"])
def test_queue_names(name: str) -> None:
    with pytest.raises(ValueError, match="queue name"):
        Queue(NoServer(), name)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_id", ["", "a b", 'a"', "@RING@", "x" * 201, "a\n"])
def test_push_refuses_ids_that_would_break_a_doorbell(batch_id: str) -> None:
    queue = Queue(NoServer())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch id"):
        queue.push(b"{}", batch_id=batch_id, records=1, enqueued_at=1.0)


def test_a_url_that_is_none() -> None:
    with pytest.raises(SettingsError, match="Redis URL"):
        Queue.from_url("http://localhost")


@given(st.binary(max_size=200) | st.from_regex(r"\{.{0,80}\}").map(str.encode))
def test_nothing_on_the_list_raises(item: bytes) -> None:
    assert is_doorbell(item) is False


@given(st.data())
def test_a_doorbell_with_a_part_missing_or_changed_is_none(data: st.DataObject) -> None:
    message = json.loads(doorbell("assay", "b"))
    assert is_doorbell(json.dumps(message).encode())
    where = data.draw(st.sampled_from([message, message["headers"], message["properties"]]))
    wanted = {"body", "headers", "properties", "content-type", "task", "id", "delivery_tag", "delivery_info"}
    name = data.draw(st.sampled_from(sorted(wanted & where.keys())))
    if data.draw(st.booleans()):
        del where[name]
    else:
        where[name] = data.draw(st.none() | st.integers() | st.lists(st.text()))
    assert not is_doorbell(json.dumps(message).encode())
