"""Words, sentences and set phrases: what the keyless judges and the signals look at. Linear in the text."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from assay.records import Record

#: Words that say nothing of the subject, in English and where short in other common languages.
_SAY_NOTHING = """
a about above after again against all also am an and any are as at be because been before being below between both
but by can could did do does doing down during each either else ever every few for from further get gets got had
has have having he her here hers him his how however i if in into is it its itself just let like may me might more
most much must my neither no nor not now of off often on once one only or other our out over own per rather same
she should since so some still such than that the their them then there these they this those through thus to too
under until up upon us use used uses using very was we well were what when where which while who whom whose why
will with within without would yet you your yours please following based given passage passages provided
information context contexts answer according mention mentioned include including includes overall summary
der die das und ist nicht ein eine zu mit auf für von dem den des sich auch wie es im am wir sie ich
le la les un une et est pas pour dans que qui sur avec des du au aux ce cette vous nous je il elle
el los las una y es no en de que por con para su se lo al como más
"""
_STOP_WORDS = frozenset(_SAY_NOTHING.split())

_WORD = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
#: Scripts that put no spaces between words.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
#: Bounded everywhere, so that no text makes it search twice.
_NUMBERING = re.compile(
    r"^\s{0,9}(?:[-*\u2022]\s{0,3})?(?:step\s{0,3})?\d{1,2}[.):]\s"
    r"|passages?[\s:]{0,3}\d{1,2}(?:[\s,]{1,3}(?:and\s{1,3})?\d{1,2}){0,20}",
    re.IGNORECASE,
)
_UP_TO_TWELVE = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_UP_TO_TWELVE.split())}

_SUFFIXES = ("ingly", "edly", "ies", "ing", "ed", "es", "ly", "s")

#: How a model declines, in the words that models use.
_DECLINES = re.compile(
    r"\b(?:i\s*['\u2019]?\s*(?:m|am)\s+(?:(?:so|very|really)\s+)?sorry,?\s*(?:but\s+)?i\s+(?:can|am|won|will|do)"
    r"|i\s*(?:['\u2019]m|\s+am)\s+(?:not\s+able|unable|not\s+allowed|not\s+comfortable)\s+to"
    r"|i\s+(?:can(?:no|['\u2019])?t|can\s+not|won['\u2019]t|will\s+not|must\s+decline|have\s+to\s+decline)\b"
    r"(?:\s+\w+)?\s*(?:help|assist|provide|comply|do\s+that|fulfil|support|engage|answer|share|give|create|write|generate|discuss)"
    r"|as\s+an\s+ai(?:\s+language\s+model)?,?\s+i\s+(?:can|am|do|must|will)"
    r"|i\s+(?:must|have\s+to)\s+(?:decline|refuse)"
    r"|ich\s+kann\s+(?:dir|ihnen)?\s*(?:dabei|damit|hierbei)?\s*(?:leider\s+)?nicht|tut\s+mir\s+leid,?\s+(?:aber\s+)?ich\s+kann"
    r"|je\s+ne\s+peux\s+pas|je\s+suis\s+d\u00e9sol\u00e9e?,?\s+(?:mais\s+)?je|lo\s+siento,?\s+(?:pero\s+)?no\s+puedo|no\s+puedo\s+ayudar)",
    re.IGNORECASE,
)
#: How a model says that it does not know.
_KNOWS_NOTHING = re.compile(
    r"\b(?:i\s+(?:do\s+not|don['\u2019]t|really\s+don['\u2019]t)\s+(?:know|have\s+(?:\w+\s+){0,3}information)"
    r"|unable\s+to\s+(?:answer|find|provide)|could\s*(?:n['\u2019]t|\s+not)\s+find\s+(?:\w+\s+){0,3}(?:information|answer)"
    r"|no\s+(?:relevant\s+|such\s+)?information\s+(?:about|on|regarding|is|was|in)"
    r"|(?:is|are)\s+not\s+(?:mentioned|specified|stated|available|given|provided|addressed|included)\s+in\s+the"
    r"|(?:does|do)\s+not\s+(?:mention|contain|specify|provide|include|address)\s+(?:\w+\s+){0,4}(?:information|answer|question|how|what|when|whether)"
    r"|ich\s+wei(?:\u00df|ss)\s+(?:es\s+)?(?:leider\s+)?nicht|je\s+ne\s+sais\s+pas|no\s+(?:lo\s+)?s\u00e9\b)",
    re.IGNORECASE,
)

_OPENING_CHARACTERS = 300
#: One of them is in whatever the patterns match, if that is ASCII.
_HINTS_OF_DECLINING = (
    "cant",  # codespell:ignore cant
    *("sorry", "able to", "allowed to", "cannot", "can't", "can not", "won't", "will not", "decline", "refuse"),
    *("as an ai", "ich kann", "tut mir leid", "je ne peux", "lo siento", "no puedo"),
)
_HINTS_OF_NOTHING = (
    *("do not", "n't", "unable to", "could not", "information", "is not", "are not", "does not"),
    *("ich weiss", "je ne sais"),
)

#: A turn with fewer words that say something is read with those before it.
_LEAST_WORDS = 3


#: Characters that models read and nobody sees: tags (those that spell a flag are spared), and the variation selectors
#: past the first sixteen, by which bytes are smuggled.
_UNSEEN = re.compile(
    "(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f)"
    "|[\U000e0000-\U000e007f]+|[\U000e0100-\U000e01ef]+"
)
#: Beside them, what may stand within a word and does not show: soft hyphen, zero-width and joining characters, marks of
#: direction, invisible operators, fillers, the first variation selectors.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e01ef"
)
HIDDEN = re.compile(f"[{INVISIBLE}]")
#: Letters of other scripts and turned ones that pass for Latin ones; digits and forms that NFKC knows are left to it.
_LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d\u043a\u043c\u0442\u0432\u043d\u03b1\u03b5\u03bf\u03c1\u03c5\u03bd\u03b9\u03ba\u03c4\u03c7\u0131\u0261\u0251\u0585\u0578\u057d\u04cf\u1d04\u1d05\u1d07\u1d00\u0299\ua730",
    "aeopcyxijshdqwkmtbhaeopuviktxigaonslcdeabf",
)


def without_unseen(text: str) -> str:
    """The text without what a model reads and nobody sees."""
    return text if text.isascii() else _UNSEEN.sub(r"\1", text)


def in_latin(text: str) -> str:
    """The text with look-alike letters of other scripts as Latin ones."""
    return text.translate(_LOOKALIKES)


def beyond_ascii(text: str) -> str:
    """The characters of the text that are not of ASCII."""
    if text.isascii():
        return ""
    # Of bytes, because to delete by a table is many times faster than a pattern.
    return text.encode(errors="surrogatepass").translate(None, _ASCII).decode(errors="surrogatepass")


_ASCII = bytes(range(128))


def revealed(text: str) -> str:
    """The text as it looks: without what does not show, in compatibility forms, lower case, look-alikes as Latin."""
    if text.isascii():
        return text.lower()
    # Few characters of most texts are beyond ASCII: to look through those alone for what is to be changed is faster.
    rare = beyond_ascii(text)
    if HIDDEN.search(rare):
        text = HIDDEN.sub("", text)
    if _STACKED.search(rare):
        text = _STACKED.sub("", text)
    text = unicodedata.normalize("NFKC", text).casefold()
    return in_latin(text) if _LOOKALIKE.search(beyond_ascii(text)) else text


_LOOKALIKE = re.compile(f"[{''.join(map(chr, _LOOKALIKES))}]")
#: NFKC sorts each run of combining marks in quadratic time: long ones are left out.
_STACKED = re.compile("[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")


def asked(record: Record) -> str:
    """What was asked last; a turn of hardly any words is read with those before it."""
    if isinstance(record.input, str):
        return record.input
    turns = [message.content for message in record.input if message.role == "user"]
    last = turns[-1] if turns else ""
    return last if len(stems(last)) >= _LEAST_WORDS else "\n".join(turns[-3:])


def declines(text: str) -> bool:
    """Whether the text opens by declining to do what was asked."""
    return _opens_with(_DECLINES, _HINTS_OF_DECLINING, text)


def knows_nothing(text: str) -> bool:
    """Whether the text opens by saying that it has no answer."""
    return _opens_with(_KNOWS_NOTHING, _HINTS_OF_NOTHING, text)


def _opens_with(pattern: re.Pattern[str], hints: tuple[str, ...], text: str) -> bool:
    opening = text[:_OPENING_CHARACTERS]
    if opening.isascii():
        # To look for each of them takes a fifth of the time of the pattern, which most texts do not have.
        plain = " ".join(opening.lower().split())
        if not any(hint in plain for hint in hints):
            return False
    return pattern.search(opening) is not None


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text."""
    return [part for piece in _SENTENCE_END.split(text) if (part := piece.strip())]


def words(text: str) -> Iterator[tuple[str, str]]:
    """(stem, word as written) of each word that says something; numbers are words without their separators."""
    for match in _WORD.finditer(text):
        written = match[0]
        if written[0].isdigit():
            yield written.replace(",", ""), written
        elif _UNSPACED.match(written):
            # Pairs of characters stand for the words that nothing separates.
            for index in range(max(1, len(written) - 1)):
                pair = written[index : index + 2]
                yield pair, pair
        else:
            stem = _stem(written.lower())
            if stem is not None:
                yield stem, written


def stems(text: str) -> list[str]:
    """The stems of `words`."""
    return [stem for stem, _ in words(text)]


def numbers(text: str) -> set[str]:
    """The numbers that a text states in digits, the numbering of lists left out."""
    return {match.replace(",", "") for match in _NUMBER.findall(_NUMBERING.sub(" ", text))}


def spelled_numbers(text: str) -> set[str]:
    """The numbers that a text writes as English words, up to twelve, in digits."""
    return {_NUMBER_WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _NUMBER_WORDS}


@lru_cache(maxsize=50_000)
def _stem(word: str) -> str | None:
    """A word without its ending, which is crude and the same on both sides; None for a stop word."""
    if len(word) > 40:
        return word[:40]
    base = word.replace("\u2019", "'").removesuffix("'s")
    if base in _STOP_WORDS or len(base) < 2:
        return None
    if len(base) > 4:
        for suffix in _SUFFIXES:
            if base.endswith(suffix) and len(base) - len(suffix) >= 3:
                return base[: -len(suffix)] + ("y" if suffix == "ies" else "")
    return base
