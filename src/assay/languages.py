"""Which language a text is in: by its script, and among those of Latin letters by their commonest words.

It takes microseconds, needs no data file, and says nothing where it cannot tell. It is for the mix of many texts, not
for one text: a line of two words often has no answer, and near relatives (Danish and Norwegian, Czech and Slovak)
count as one.
"""
# ruff: noqa: RUF001 - letters of other alphabets are what this is about

from __future__ import annotations

import re
import string
from typing import Literal, get_args

Language = Literal[
    "en",
    "de",
    "fr",
    "es",
    "it",
    "pt",
    "nl",
    "sv",
    "da",
    "pl",
    "cs",
    "tr",
    "id",
    "vi",
    "ru",
    "uk",
    "el",
    "he",
    "ar",
    "fa",
    "hi",
    "th",
    "zh",
    "ja",
    "ko",
    "other",
]
#: ISO 639-1. da: Danish or Norwegian. cs: Czech or Slovak. id: Indonesian or Malay. other: letters enough to tell, and
#: none of these. New ones go to the end: their places are stored.
LANGUAGES: tuple[Language, ...] = get_args(Language)

_SEEN_CHARACTERS = 500
#: With as many words, and no common one of a known language among them, it is another language.
_ENOUGH_WORDS = 12
#: With as few, one common word is enough.
_FEW_WORDS = 4

_COMMON: dict[Language, str] = {
    "en": "the and is are was of to in that it for you what how do does my i this with can not have be on at from "
    "when where who which why your we they an will would there has been please me",
    "de": "der die das und ist nicht ein eine zu mit auf für von dem den ich sie wie was wo wann kann wird sind auch "
    "es im am bei mein meine haben hat werden oder nach aus bitte mir warum einen einer",
    "fr": "le la les un une des et est pas pour dans que qui sur avec du au aux ce cette je vous nous il elle mon ma "
    "mes quel quelle comment où quand pourquoi sont être été a plus ne votre puis",
    "es": "el los las una es y no en que por con para su se lo al como más mi cómo qué cuándo dónde puedo está son del "
    "pero tiene hay este esta ser muy sus cuál quién un",
    "it": "il lo gli una è e di che non per con sono come mi del della dei nel alla quando dove posso ho si più "
    "questo questa cosa perché qual mio mia ha anche un",
    "pt": "o os as um uma é e não em que por com para seu sua se como mais meu minha onde quando posso está são do da "
    "dos das na no ao você qual tem foi isso este esta",
    "nl": "de het een en is niet van ik op te dat in voor met zijn je wat hoe waar wanneer kan mijn aan er maar om ook "
    "als bij naar dan heeft worden deze dit wordt",
    "sv": "och att det som en är på för med av inte jag till den har om ett kan hur vad var när min mitt vi du de från "
    "så eller men ska blir",
    "da": "og at det som en er på for med af ikke jeg til den har om et kan hvordan hvad hvor hvornår min mit vi du de "
    "fra så eller men skal bliver hva når av ikkje",
    "pl": "i w na z się nie jest do to że jak co czy gdzie kiedy mój moje moja dla od po są przez ale lub za o jego "
    "mogę został być oraz ten ta",
    "cs": "a v na se je že to s z do jak co kde kdy můj moje pro od po jsou ale nebo za by bylo být který která mohu "
    "není tak ako nie som čo kedy kde",
    "tr": "ve bir bu için ile de da ne nasıl nerede zaman mı mi var yok çok benim olarak daha gibi kadar ben sen nedir "
    "değil ama olan hangi",
    "id": "yang dan di ini itu dengan untuk tidak dari dalam pada saya anda apa bagaimana dimana kapan bisa akan ke "
    "ada adalah atau juga oleh sudah dapat karena mana",
    "vi": "và là của có không được cho tôi bạn các một những này với như thế nào ở đâu khi trong đến thì cần để",
}
_SPOKEN_IN: dict[str, list[Language]] = {}
for _language, _words in _COMMON.items():
    for _word in dict.fromkeys(_words.split()):
        _SPOKEN_IN.setdefault(_word, []).append(_language)

#: Letters that only one of these languages writes much.
_MARKS: dict[Language, str] = {
    "de": "ß",
    "es": "ñ¿¡",
    "pt": "ãõ",
    "pl": "łżźśćń",
    "cs": "řěů",
    "tr": "ğışİ",
    "da": "øæ",
    "vi": "ơưđạảấầậắặẹẻếềệỉịọỏốồộớờợụủứừựỳỹ",
}
_MARK_OF = {character: language for language, marks in _MARKS.items() for character in marks}

_WORD = re.compile(r"[^\W\d_]+")
#: Of bytes: a letter stays, all else parts words. Many times faster than the pattern, where all is ASCII.
_LETTERS = bytes(code if chr(code) in string.ascii_lowercase else ord(" ") for code in range(256))

#: Ranges of letters, and what a letter of them counts for: one that is a syllable or a word more than one of many, and
#: Latin letters least, because names of products stand in texts of all scripts.
_SCRIPTS: tuple[tuple[int, int, str, int], ...] = (
    (0x0041, 0x024F, "latin", 1),
    (0x0370, 0x03FF, "el", 2),
    (0x0400, 0x052F, "cyrillic", 2),
    (0x0590, 0x05FF, "he", 2),
    (0x0600, 0x077F, "arabic", 2),
    (0x0900, 0x097F, "hi", 2),
    (0x0E00, 0x0E7F, "th", 2),
    (0x1E00, 0x1EFF, "latin", 1),
    (0x3040, 0x30FF, "kana", 4),
    (0x3400, 0x9FFF, "han", 4),
    (0xAC00, 0xD7AF, "ko", 4),
)


def language_of(text: str) -> Language | None:
    """The language of the opening of a text; None where it has too few words to tell."""
    text = text[:_SEEN_CHARACTERS]
    if text.isascii():
        return _latin(text)
    scripts: dict[str, int] = {}
    for character in text:
        if character.isalpha():
            script, weight = _script(ord(character))
            scripts[script] = scripts.get(script, 0) + weight
    if not scripts:
        return None
    # Chinese signs are Japanese where kana stand among them.
    if scripts.get("kana", 0) * 10 >= scripts.get("han", 0) > 0:
        scripts["kana"] += scripts.pop("han")
    script = max(scripts, key=lambda name: scripts[name])
    match script:
        case "latin":
            return _latin(text)
        case "cyrillic":
            return _cyrillic(text)
        case "arabic":
            return "fa" if any(character in text for character in "پچژگ") else "ar"
        case "kana":
            return "ja"
        case "han":
            return "zh"
        case "el" | "he" | "hi" | "th" | "ko":
            return script
    return "other" if len(_WORD.findall(text)) >= _FEW_WORDS else None


def _script(code: int) -> tuple[str, int]:
    for first, last, name, weight in _SCRIPTS:
        if first <= code <= last:
            return name, weight
    return "other", 1


def _cyrillic(text: str) -> Language:
    lower = text.lower()
    ukrainian = sum(lower.count(character) for character in "іїєґ")
    russian = sum(lower.count(character) for character in "ыэё")
    if ukrainian > russian:
        return "uk"
    # Bulgarian, Serbian and others have neither letter, and few words in common with Russian.
    words = set(_WORD.findall(lower))
    return "ru" if russian or words & _RUSSIAN else "other"


_RUSSIAN_WORDS = "и в не на что как это с по где когда мой моя мне для я вы или из за от есть можно нет"
_RUSSIAN = frozenset(_RUSSIAN_WORDS.split())


def _latin(text: str) -> Language | None:
    lower = text.lower()
    words = lower.encode().translate(_LETTERS).decode().split() if text.isascii() else _WORD.findall(lower)
    if not words:
        return None
    hits: dict[Language, int] = {}
    for word in filter(_SPOKEN_IN.__contains__, words):
        for language in _SPOKEN_IN[word]:
            hits[language] = hits.get(language, 0) + 1
    if not text.isascii():
        for language in {_MARK_OF[character] for character in text if character in _MARK_OF}:
            hits[language] = hits.get(language, 0) + 2
    most = max(hits.values(), default=0)
    best = [language for language, n in hits.items() if n == most]
    if len(best) == 1 and most >= (1 if len(words) <= _FEW_WORDS else 2):
        return best[0]
    # A long text without common words; a tie between relatives is no other language, it is only not told.
    return "other" if most * _ENOUGH_WORDS < len(words) >= _ENOUGH_WORDS else None
