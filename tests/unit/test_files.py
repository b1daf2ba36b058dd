"""Files that people name may be anything."""

import io
import json
import os
import stat
from pathlib import Path

import pytest

from assay.errors import LabelErrors, SettingsError
from assay.files import MOST_LINE_BYTES, bounded_lines, create_private, open_file, read_file
from assay.label_imports import import_labels
from assay.labels import read_labels
from assay.otlp import OtlpError, read_traces_json
from assay.rows import raw_rows, read_rows, row_id
from assay.rubrics import load_rubrics


@pytest.fixture
def odd(tmp_path: Path) -> list[Path]:
    """A pipe that nobody writes to, a device that never ends, a directory, a link to the device, a loop of links."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.jsonl").symlink_to("/dev/zero")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    return [tmp_path / "pipe.jsonl", Path("/dev/zero"), tmp_path, tmp_path / "link.jsonl", tmp_path / "loop.jsonl"]


def test_only_regular_files_are_opened(odd: list[Path], tmp_path: Path) -> None:
    for path in odd:
        with pytest.raises(OSError, match=r"\S") as told:
            open_file(path)
        assert told.value.strerror
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "to file").symlink_to(tmp_path / "file")
    assert read_file(tmp_path / "to file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_file(tmp_path / "file", 4)


def test_a_pipe_is_read_where_it_may_be_one(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"12345")
    os.close(writing)
    assert read_file(Path(f"/dev/fd/{reading}"), 5, pipes=True) == b"12345"
    os.close(reading)
    os.mkfifo(tmp_path / "pipe")
    assert read_file(tmp_path / "pipe", 5, pipes=True) == b""
    with pytest.raises(OSError, match="device"):
        read_file(Path("/dev/zero"), 5, pipes=True)


def test_label_files_that_are_none_are_told_of(odd: list[Path], tmp_path: Path) -> None:
    rubric = load_rubrics()[0]
    for path in odd:
        with pytest.raises(LabelErrors):
            read_labels(path, rubric)
        with pytest.raises(LabelErrors):
            import_labels(path, "phoenix", rubric)


def test_a_line_has_a_bound_and_the_next_is_read() -> None:
    exact = b"x" * (MOST_LINE_BYTES - 1) + b"\n"
    found = list(bounded_lines(io.BytesIO(exact + b"x" + exact + b"y" * 3 * MOST_LINE_BYTES + b"\nlast")))
    assert [whole for _, whole in found] == [True, False, False, True]
    assert found[0][0] == exact
    assert found[-1][0] == b"last"
    assert all(len(line) == MOST_LINE_BYTES // 1000 for line, whole in found if not whole)


def test_a_source_without_lines_ends() -> None:
    with Path("/dev/zero").open("rb") as zeros:
        rows = list(raw_rows(zeros, "jsonl"))
    assert [row.error is not None for row in rows] == [True]
    assert len(rows[0].raw) == MOST_LINE_BYTES // 1000


def test_a_row_of_csv_has_a_bound() -> None:
    lines = b'"' + b"x" * 1_000_000 + b'",\n'
    rows = list(
        raw_rows(io.BytesIO(b'a,b\n1,2\n"' + (b"y" * 999 + b"\n") * (MOST_LINE_BYTES // 1000 + 10) + lines), "csv")
    )
    assert rows[0].fields == {"a": "1", "b": "2"}
    assert rows[1].error is not None
    assert "longer than" in rows[1].error
    assert len(rows) == 2


@pytest.mark.timeout(60)  # comparing each with all before took minutes
def test_a_header_of_many_columns_is_compared_once() -> None:
    columns = ",".join(f"c{place}" for place in range(200_000))
    [row] = raw_rows(io.BytesIO(f"{columns},c7\n".encode()), "csv")
    assert row.error is not None
    assert "'c7'" in row.error


@pytest.mark.parametrize("metadata", ['"5"', "5", "[1]", "true"])
def test_metadata_that_is_none_is_a_mistake_of_its_row(metadata: str) -> None:
    line = f'{{"app":"a","input":"i","output":"o","metadata":{metadata},"further":1}}\n'.encode()
    [row] = read_rows([line], form="jsonl", unknown="metadata")
    assert row.record is None
    assert "metadata" in str(row.error)


def test_a_lone_surrogate_in_a_kept_row_is_a_mistake_of_its_row() -> None:
    kept = json.dumps({"line": 1, "error": "e", "row": '{"app":"a","input":"\ud800","output":"o"}'})
    rows = list(read_rows([kept.encode()], form="jsonl"))
    assert len(rows) == 1
    assert rows[0].record is None
    assert row_id("plain") == row_id("plain") != row_id("\ud800")


def test_json_of_more_parts_than_memory_has_room_for_is_refused_undecoded() -> None:
    for part in ("{}", "[]", '""', "0", '{"":0}'):
        with pytest.raises(OtlpError, match="send smaller batches"):
            read_traces_json(f'{{"x":[{",".join([part] * 1_600_000)}]}}'.encode())
    # A large request of ordinary small attributes is none of these.
    attribute = '{"key":"http.status_code","value":{"intValue":"200"}}'
    assert read_traces_json(f'{{"resourceSpans":[],"x":[{",".join([attribute] * 250_000)}]}}'.encode()).spans == []
    marks = json.dumps({"text": '{[,"\\' * 400_000})
    assert read_traces_json(marks.encode()).spans == []


def test_a_canary_policy_of_deep_json_is_a_mistake(tmp_path: Path) -> None:
    from assay.canary import _rubric_of

    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(SettingsError, match="does not name its rubric"):
        _rubric_of(tmp_path / "deep.jsonl")


def test_what_quotes_records_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    for text in ("a longer text", "short"):
        with create_private(path) as file:
            file.write(text)
    assert path.read_text() == "short"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
