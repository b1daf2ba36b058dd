"""Texts of strangers made fit to stand in a prompt as data: nothing in them is a fence, a turn or a message's end.

What is changed is little, so that quotes still are what the record says (`assay.scales` looks them up): a leading run
of equal signs is cut to two, a label that could begin another part is indented, a model's own control token is split by
a space, and characters that models read and nobody sees are left out. Linear in the text. No text is refused.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from assay._text import revealed, without_unseen

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

#: Each fence holds it, so it is short; more codes than the longest record can hold.
_CODE_CHARACTERS = 6

#: Whatever some reader takes for the end of a line.
_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
#: Equal signs, and what looks like them.
_EQUALS = "=\uff1d\u2550\u30a0\u2261\ufe66\u207c\u208c\ua78a"
#: What stands before the first word of a line, and a run of equal signs in it. Possessive: a line is read once.
_LEADING = re.compile(rf"(?:(?<=[{_BREAKS}])|^)[^\w{_BREAKS}]++(?=\w)")
_RUN = re.compile(rf"[{_EQUALS}]{{3,}}")

#: What chat templates cut messages with. Many servers that run open models read them in the text of a message, too.
_CONTROL = re.compile(
    r"<(?=[|\uff5c][\w\u2581.:/-]{1,60}[|\uff5c]>"
    r"|/?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn|think|tool_call|tool_response)>|</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|IMG)\])"
)

_SPACES = re.compile(r"\s+")


def as_data(text: str) -> str:
    """The text as it may stand between two fences."""
    text = without_unseen(text)
    # Few texts have any of it, and to see that costs a small part of the looking for each.
    if "===" in text or (not text.isascii() and _RUN.search(text)):
        text = _LEADING.sub(_cut, text)
    return _CONTROL.sub(r"\g<0> ", text) if "<" in text or "[" in text else text


def _cut(leading: re.Match[str]) -> str:
    return _RUN.sub("==", leading[0])


def label_lines(text: str, labels: Collection[str]) -> str:
    """The text with each line indented that begins like another part, `label:`. The first line is never one."""
    names = "|".join(sorted(map(re.escape, filter(None, labels))))
    return re.sub(
        rf"(?<=[{_BREAKS}])(?=[ \t]{{0,20}}(?:{names})[ \t]{{0,20}}[:\uff1a])", "  ", text, flags=re.IGNORECASE
    )


def one_line(text: str) -> str:
    """A name as one line: it can begin nothing of its own."""
    return _SPACES.sub(" ", re.sub(rf"[{_BREAKS}]", " ", text)).strip()


def code_for(record_id: str, sections: Sequence[tuple[str, str]]) -> str:
    """A code of the fences, a hash of all of the record, that stands in none of its texts, however it is spelled there.

    Who writes the record can solve for a code, offline, if he knows the record's id and the other texts; but a text
    that holds the code that he found gets another one.
    """
    digest = hashlib.sha256(record_id.encode(errors="replace"))
    for name, text in sections:
        digest.update(f"\0{name}\0{text}".encode(errors="replace"))
    texts = [revealed(text) for _, text in sections]
    while True:
        code = digest.hexdigest()[:_CODE_CHARACTERS]
        if not any(code in text for text in texts):
            return code
        digest.update(b"again")
