"""Rows of files become records, or an error that says why; nothing raises."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.rows import Row, read_rows

STAMP = "2026-01-31T12:00:00Z"


def rows(text: str | bytes, form: Any = "jsonl", **options: Any) -> list[Row]:
    data = text.encode() if isinstance(text, str) else text
    return list(read_rows(io.BytesIO(data), form=form, **options))


def good(text: str | bytes, form: Any = "jsonl", **options: Any) -> Any:
    (row,) = rows(text, form, **options)
    assert row.record is not None, row.error
    return row.record


def test_contexts_may_be_plain_texts() -> None:
    record = good('{"input": "q", "contexts": ["one", {"text": "two", "id": "x"}]}')
    assert [(c.text, c.id) for c in record.contexts] == [("one", None), ("two", "x")]


def test_an_id_is_derived_from_the_text_of_the_row() -> None:
    first, second = good('{"input": "q"}'), good('{"input": "q"}')
    assert first.record_id == second.record_id
    assert good('{"input": "r"}').record_id != first.record_id


def test_lines_are_counted_from_one_and_blank_ones_too() -> None:
    assert [row.line for row in rows('{"input": "a"}\n\n{"input": "b"}\n')] == [1, 3]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not JSON"),
        ("[]", "list"),
        ("5", "int"),
        (b"\xff", "not UTF-8"),
        ('{"inptu": "x"}', "input"),
        ('{"sampling": {"probability": 0}}', "sampling.probability"),
        ('{"sampling": {"probability": 2}}', "sampling.probability"),
        ('{"schema_version": 9}', "upgrade"),
        ('{"timestamp": "2026-01-01T00:00:00"}', "time zone"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_row_is_a_row_with_an_error(text: str | bytes, told: str) -> None:
    (row,) = rows(text)
    assert row.record is None
    assert told in str(row.error)


def test_columns_are_renamed_and_unknown_ones_go_where_they_are_told() -> None:
    text = '{"question": "q", "colour": "red", "metadata": {"a": 1}}'
    assert "colour" in str(rows(text, rename={"question": "input"})[0].error)
    kept = good(text, rename={"question": "input"}, unknown="metadata")
    assert (kept.input, dict(kept.metadata)) == ("q", {"a": 1, "colour": "red"})
    assert dict(good(text, rename={"question": "input"}, unknown="drop").metadata) == {"a": 1}


def test_defaults_fill_what_is_absent_only() -> None:
    assert good('{"input": "q"}', defaults={"app": "shop"}).app == "shop"
    assert good('{"app": "bank"}', defaults={"app": "shop"}).app == "bank"


def test_csv_cells_of_structured_fields_hold_json() -> None:
    text = 'input,output,contexts,cohort,reference\n"a, b","line 1\nline 2","[""c1"",""c2""]","{""plan"":""trial""}",\n'
    record = good(text, "csv")
    assert record.input == "a, b"
    assert record.output == "line 1\nline 2"
    assert [context.text for context in record.contexts] == ["c1", "c2"]
    assert dict(record.cohort) == {"plan": "trial"}
    assert record.reference is None


def test_a_plain_text_in_csv_contexts_is_one_context() -> None:
    assert [c.text for c in good("input,contexts\nq,Lamps cost 5 euros.\n", "csv").contexts] == ["Lamps cost 5 euros."]


def test_csv_with_a_byte_order_mark() -> None:
    assert good(b"\xef\xbb\xbfinput,output\nq,a\n", "csv").input == "q"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("input,output\nq\n", "columns"),
        ("input,output\nq,a,b\n", "columns"),
        (b"input,output\nq,\xff\n", "not UTF-8"),
        ("input,cohort\nq,{\n", "cohort"),
        ('"input,output\n', "header"),
    ],
)
def test_a_bad_csv_row_is_a_row_with_an_error(text: str | bytes, told: str) -> None:
    (row,) = rows(text, "csv")
    assert row.record is None
    assert told in str(row.error)


def test_a_long_csv_cell_is_read() -> None:
    assert len(good("input,output\nq," + "x" * 300_000 + "\n", "csv").output) == 300_000


@given(st.binary(max_size=400), st.sampled_from(["jsonl", "csv"]))
def test_no_bytes_raise(data: bytes, form: str) -> None:
    for row in rows(data, form):
        assert (row.record is None) == (row.error is not None)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_no_json_raises(value: object) -> None:
    for row in rows(json.dumps(value)):
        assert (row.record is None) == (row.error is not None)


def test_two_columns_of_one_name_are_refused() -> None:
    (row,) = rows("input,output,input\nq,a,p\n", "csv")
    assert (row.line, row.error) == (1, "two columns are called 'input': rename one")


def test_a_rejected_row_that_was_mended_is_read_as_the_row_itself() -> None:
    kept = {"line": 3, "error": "not JSON: ...", "row": '{"input": "q"}'}
    assert good(json.dumps(kept)).record_id == good('{"input": "q"}').record_id
    (row,) = rows(json.dumps({**kept, "row": "{"}))
    assert "not JSON" in str(row.error)
