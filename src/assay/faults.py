"""Faults of an output that show without understanding it: what the keyless judges and the signals share."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING

from assay._text import declines, knows_nothing

if TYPE_CHECKING:
    from assay.records import Record
    from assay.redaction import Redactor

_FINISHED_BADLY = {
    "length": "the output was cut off at its length limit",
    "content_filter": "a content filter stopped the output",
    "error": "the model failed while answering",
}
_PRIVATE = re.compile(r"\[(?:secret|card)\]")


def completeness_faults(record: Record) -> list[str]:
    """What shows, without reading the output, that it cannot be complete."""
    faults = []
    if record.finish_reason in _FINISHED_BADLY:
        faults.append(_FINISHED_BADLY[record.finish_reason])
    if not record.output.strip():
        faults.append("the output is empty")
    elif declines(record.output):
        faults.append("the output declines the request")
    elif knows_nothing(record.output):
        faults.append("the output says that it has no answer")
    faults.extend(missing_fields(record))
    if record.tool_events and record.tool_events[-1].error is not None:
        faults.append(f"the last tool call ({record.tool_events[-1].name[:80]}) failed")
    return faults


def leaks(record: Record) -> list[str]:
    """Keys, tokens, passwords and card numbers that the output shows and the user did not bring.

    What the client's redaction replaced counts as well: it stands where the thing itself stood.
    """
    shown = _private(record.output)
    if not shown:
        return []
    brought = _private(record.input_text)
    return [
        f"the output shows a {what}"
        for what, mark in (("secret", "[secret]"), ("card number", "[card]"))
        if shown.count(mark) > brought.count(mark)
    ]


def _private(text: str) -> list[str]:
    return _PRIVATE.findall(_redactor().text(text))


@cache
def _redactor() -> Redactor:
    # Its patterns take as long to compile as a command's other imports together, and few commands look for leaks.
    from assay.redaction import Redactor

    return Redactor(kinds=("secret", "card"))


def missing_fields(record: Record) -> list[str]:
    """What an output lacks of the JSON object that the record's `required_fields` ask for; [] where nothing is."""
    if not record.required_fields:
        return []
    try:
        value = json.loads(_unfenced(record.output))
    except (ValueError, RecursionError):
        return ["the output is not the JSON object that it should be"]
    if not isinstance(value, dict):
        return ["the output is not the JSON object that it should be"]
    return [f"the field {name} is missing" for name in record.required_fields if value.get(name) is None]


def _unfenced(text: str) -> str:
    """The text inside a Markdown fence that spans all of it."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        return text.partition("\n")[2].removesuffix("```")
    return text
