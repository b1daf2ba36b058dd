"""Texts of others on a terminal: they are data, and steer nothing."""

from __future__ import annotations

import re

#: Control characters other than tab and newline, and those that turn the direction of writing.
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")


def plain(text: str) -> str:
    """`text` with U+FFFD in place of what would steer a terminal."""
    return _CONTROL.sub("\ufffd", text)


def escaped(text: str) -> str:
    """JSON text with what would steer a terminal written as `\\u009b`: it reads back as it was."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
