"""HTML and SVG out of elements: what comes in as text can only come out as text."""

from __future__ import annotations

import unicodedata
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay._markup import Markup, clipped, element, join, number, visible

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></svg><svg onload=alert(1)>",
    "<!-- --> <![CDATA[ ]]> &lt; &amp;lt;",
]


class Reader(HTMLParser):
    """What a browser would read: tags with their attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text(text):
    read = Reader(element("p", text, title=text))
    assert read.tags == [("p", {"title": text})]
    assert read.text == text


@given(st.text())
def test_any_text_is_read_back_as_it_is_shown(text):
    read = Reader(element("p", text, title=text))
    assert [tag for tag, _ in read.tags] == ["p"]
    assert read.text == visible(text)
    assert read.tags[0][1]["title"] == visible(text)


@given(st.text(st.characters()))
def test_any_text_is_well_formed_xml_and_utf8(text):
    page = element("text", text, name=text)
    page.encode("utf-8")
    # XML reads tabs and line feeds in attributes as spaces.
    assert ElementTree.fromstring(page).text in (visible(text), None)


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\u202e", "⟨U+202E⟩"),
        ("\u2066", "⟨U+2066⟩"),
        ("\u200f", "⟨U+200F⟩"),
        ("\u200b", "⟨U+200B⟩"),
        ("\ufeff", "⟨U+FEFF⟩"),
        ("\x00", "⟨U+0000⟩"),
        ("\x1b", "⟨U+001B⟩"),
        ("\x7f", "⟨U+007F⟩"),
        ("\u2028", "⟨U+2028⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("\uffff", "⟨U+FFFF⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("\U000e0100", "⟨U+E0100⟩"),
    ],
)
def test_what_cannot_be_seen_is_written_out(character, shown):
    assert visible(f"a{character}b") == f"a{shown}b"


def test_no_character_that_steers_the_reading_direction_gets_through():
    for code in range(0x11_0000):
        if unicodedata.bidirectional(chr(code)) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}:
            assert visible(chr(code)) == f"⟨U+{code:04X}⟩"


@pytest.mark.parametrize("text", ["a\tb\nc", "مرحبا", "क्‍ष", "👩‍💻", "नमस्ते", "“quoted” – ok"])
def test_scripts_joiners_and_lines_stay(text):
    assert visible(text) == text


def test_line_ends_of_windows_are_line_ends():
    assert visible("a\r\nb\rc") == "a\nb⟨U+000D⟩c"


def test_markup_is_not_escaped_again():
    inner = element("b", "1 < 2")
    assert element("p", inner, " & ", inner) == "<p><b>1 &lt; 2</b> &amp; <b>1 &lt; 2</b></p>"


def test_children_may_be_lists_numbers_and_nothing():
    assert join([element("i", 1), None], (part for part in ("a", "b")), None) == "<i>1</i>ab"


def test_attributes():
    found = element("line", x1=1.0, x2=2.345678, class_="grid", aria_hidden="true", hidden=None, on=False, open=True)
    assert found == '<line x1="1" x2="2.35" class="grid" aria-hidden="true" open=""></line>'


def test_void_elements_have_no_end():
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'


def test_an_element_is_markup():
    assert isinstance(element("p"), Markup)
    assert isinstance(join("a"), Markup)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (1.005, "1"), (0.125, "0.12"), (-0.001, "0"), (10.0, "10"), (1e-9, "0"), (360, "360")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_clipped_is_never_longer():
    assert clipped("abc", 3) == "abc"
    assert clipped("abcd", 3) == "ab…"
    assert clipped("a cd", 3) == "a…"
