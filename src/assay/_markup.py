"""HTML and SVG out of elements: every text and attribute is escaped here, in one place.

Records are hostile: an answer may hold tags, quotes, or characters that are invisible or turn the reading direction.
Text stays text, and what would not be seen is written out as its code point.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable


class Markup(str):
    """Text that is markup already. Only this module and literal style sheets make some."""

    __slots__ = ()


#: What an element may hold; a plain text is escaped, None is nothing.
Child: TypeAlias = "str | int | Iterable[Child] | None"

#: A number is written with at most two decimals; None and False leave the attribute out.
Attribute: TypeAlias = "str | float | bool | None"

_VOID = frozenset({"br", "col", "hr", "meta"})

#: Invisible or steering: controls but for tab and line feed, bidirectional marks, zero-width spaces, soft hyphen, blank
#: letters, line separators, lone surrogates, noncharacters, tags and the variation selectors that smuggle text.
#: Joiners stay, because scripts need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufdd0-\ufdef\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U000e0000-\U000e0fff\U0001fffe\U0001ffff]"
)


def visible(text: str) -> str:
    """`text` with characters that cannot be seen, or that turn the reading direction, written as `⟨U+202E⟩`."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text.replace("\r\n", "\n"))


def clipped(text: str, most: int) -> str:
    """The beginning of `text`, at most `most` characters, with an ellipsis where something was cut."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def element(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """`<tag ...>children</tag>`; `class_` is `class`, `_` in names of attributes is `-`, `True` an empty attribute."""
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{_text(children)}</{tag}>")


def join(*children: Child) -> Markup:
    """Children one after the other, without an element around them."""
    return Markup(_text(children))


def number(value: float) -> str:
    """At most two decimals, no exponent, no negative zero: coordinates take no more."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _text(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int):
        return html.escape(visible(str(child)))
    return "".join(_text(part) for part in child)


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    text = "" if value is True else visible(value) if isinstance(value, str) else number(value)
    return f' {name.rstrip("_").replace("_", "-")}="{html.escape(text)}"'
