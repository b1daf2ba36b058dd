"""Logs: JSON for machines, and nothing of what talkative libraries say."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from assay import logs
from assay.settings import load_settings


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def test_a_line_is_one_json_object_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(load_settings(log_format="json"))
    logging.getLogger("assay.worker").warning("batch waits", extra={"batch_id": "b"})
    line = json.loads(capsys.readouterr().err)
    assert {
        "event": "batch waits",
        "batch_id": "b",
        "level": "warning",
        "logger": "assay.worker",
    }.items() <= line.items()


def test_an_exception_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(load_settings(log_format="json"))
    try:
        raise ValueError("line 1\nline 2")
    except ValueError:
        logging.getLogger("assay").exception("failed")
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "line 1" in json.loads(line)["exception"][0]["exc_value"]


def test_requests_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(load_settings(log_format="json", log_level="debug"))
    for name in ("openai", "httpx2", "kombu", "celery.worker", "alembic.runtime.migration"):
        logging.getLogger(name).info("GET https://key@host/")
    assert capsys.readouterr().err == ""


def test_console_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(load_settings(log_format="console"))
    logging.getLogger("assay").info("worker ready", extra={"queue": "assay"})
    told = capsys.readouterr().err
    assert "worker ready" in told
    assert "queue=assay" in told


@pytest.mark.parametrize("form", ["json", "console"])
def test_nothing_in_a_line_steers_the_terminal(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(load_settings(log_format=form))
    hostile = "\x1b]0;title\x07\x9b2J\u202e"
    logging.getLogger("assay").warning("batch waits", extra={"error": hostile})
    try:
        raise ValueError(hostile)
    except ValueError:
        logging.getLogger("assay").exception("failed")
    told = capsys.readouterr().err
    assert "title" in told
    assert not set(told) & set(hostile) - set("]0;title2J")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_values(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Local variables hold requests, records and keys."""
    logs.configure(load_settings(log_format=form))

    def fails(body: bytes) -> None:
        raise ValueError(f"{len(body)} bytes")

    try:
        fails(bytes.fromhex("4265617265722073796e7468657469632d6b6579"))  # a header, not as the source shows it
    except ValueError:
        logging.getLogger("assay").exception("failed")
    told = capsys.readouterr().err
    assert "in fails" in told or '"fails"' in told
    assert "Bearer" not in told
