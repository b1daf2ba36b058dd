"""Other ways to write a character, brought to plain ASCII with the way back: what hides data from a pattern.

Digits of other scripts, full-width letters, invisible characters, and the escapes of URLs, HTML and JSON. Linear in the
text. Standard library only.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Not seen when printed: soft hyphen, zero-width and directional marks, byte order mark.
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_SPACES = "\u00a0\u2000-\u200a\u202f\u3000"
_DASHES = "\u2010-\u2015\u2212"
_NAMES = {
    "commat": "@", "period": ".", "plus": "+", "lpar": "(", "rpar": ")", "colon": ":", "sol": "/", "lowbar": "_",
    "hyphen": "-", "dash": "-", "num": "#", "equals": "=", "quot": '"', "apos": "'", "amp": "&", "nbsp": " ",
    "shy": "", "ZeroWidthSpace": "",
}  # fmt: skip
_ESCAPES = (
    r"%[2-7][0-9A-Fa-f]|&#0{0,4}[0-9]{1,4};|&#[xX]0{0,4}[0-9A-Fa-f]{1,4};|&(?:" + "|".join(_NAMES) + r");"
    r"|\\u[0-9A-Fa-f]{4}|=[234567][0-9A-F](?![0-9A-Za-z])"
)
#: One character of the folded text: an escape, or a character that is written in plain another way.
_FOLDS = re.compile(rf"{_ESCAPES}|\\\\[\"/'n]|[{_INVISIBLE}{_SPACES}{_DASHES}\uff01-\uff5e]|(?![0-9])\d")
#: Those that are reason enough: dashes, spaces and quotes between words are in many texts, and hide nothing.
_ESCAPED = re.compile(rf"(?=[%&=\\])(?:{_ESCAPES})")
_UNUSUAL = re.compile(
    rf"[^\x00-\x7f](?:(?<=[{_INVISIBLE}\uff10-\uff19\uff20-\uff3a\uff41-\uff5a])|(?<=\d)"
    rf"|(?<=[0-9][{_SPACES}{_DASHES}])(?=[0-9(]))"
)
_INVISIBLES = re.compile(f"[{_INVISIBLE}]")


def needed(text: str) -> bool:
    """Whether anything in the text is written another way."""
    if any(sign in text for sign in "%&=\\") and _ESCAPED.search(text):
        return True
    return not text.isascii() and _UNUSUAL.search(text) is not None


class Folded:
    """A text in plain writing (`text`), in which spans can be replaced as they stand in what it was made from."""

    def __init__(self, text: str) -> None:
        plain: list[str] = []
        #: what was written for each character of the plain text, and for none before its first
        written: list[str] = []
        before, at = "", 0
        for found in _FOLDS.finditer(text):
            plain += text[at : found.start()]
            written += text[at : found.start()]
            at = found.end()
            one = _plain(found[0])
            if one:
                plain.append(one)
                written.append(found[0])
            elif written:
                written[-1] += found[0]
            else:
                before += found[0]
        plain += text[at:]
        written += text[at:]
        self.text = "".join(plain)
        self._before = before
        self._written = written

    def replace(self, spans: Iterable[tuple[int, int]], by: str) -> None:
        """Put `by` in the place of each of these spans, which are in order and apart."""
        plain: list[str] = []
        written: list[str] = []
        at = 0
        for start, end in spans:
            plain += [self.text[at:start], by]
            written += [*self._written[at:start], *by]
            at = end
        plain.append(self.text[at:])
        written += self._written[at:]
        self.text, self._written = "".join(plain), written

    def source(self) -> str:
        """The text it was made from, with what was replaced."""
        return self._before + "".join(self._written)


def _plain(written: str) -> str:
    """One character, or none for what is not seen."""
    if written[0] == "%" or (written[0] == "=" and len(written) == 3):
        one = chr(int(written[1:], 16))
    elif written.startswith("&#"):
        code = written[2:-1]
        one = chr(int(code[1:], 16) if code[0] in "xX" else int(code))
    elif written[0] == "&":
        return _NAMES[written[1:-1]]
    elif written[:2] == "\\u":
        one = chr(int(written[-4:], 16))
    elif written[0] == "\\":
        return "\n" if written[1] == "n" else written[1]
    else:
        one = written
    if _INVISIBLES.match(one):
        return ""
    if "\uff01" <= one <= "\uff5e":
        return chr(ord(one) - 0xFEE0)
    category = unicodedata.category(one)
    if category == "Nd":
        return str(unicodedata.decimal(one))
    return " " if category == "Zs" else "-" if category == "Pd" or one == "\u2212" else one
