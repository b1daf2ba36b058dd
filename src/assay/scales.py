"""Scales: how a judge is told to answer, the schema of its answer, and what a verdict is worth.

A scale owns all three, so that they cannot drift apart. A verdict is what a model wrote: every `parse` takes any JSON
value and gives a `Score`, a `NotApplicable` or a `VerdictError`, in time linear in the length of the verdict.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol

from assay.errors import VerdictError
from assay.records import NotApplicable, Record, Score

#: Raised whenever a change of this module can give another score for the same verdict. Part of every rubric's hash.
VERDICT_VERSION = 1

#: Characters kept of what a judge wrote; more is cut, for it is stored with every score.
MAX_EXPLANATION = 2_000
MAX_QUOTE = 1_000

#: A verdict of more claims than this is not one: no answer has so many, and each is searched for and stored.
MAX_CLAIMS = 200
#: Bounds of what a rubric may write.
MAX_LEVEL = 10
MAX_WEIGHT = 1000

#: A share that is held against a threshold is forgiven this much of binary rounding in weighted sums.
ROUNDING = 1e-9

_EXPLAIN = "`explanation`,"


class Scale(Protocol):
    """What a judge may answer under one rubric."""

    @property
    def type(self) -> str:
        """`binary`, `ordinal`, `checklist` or `claims`."""

    @property
    def grade_field(self) -> str | None:
        """Property of the verdict whose token carries the grade, for logprobs; None where no single token does."""

    def prompt(self) -> str:
        """How to answer, with every anchor or item: plain text for the judge's system prompt."""

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the verdict, within what strict structured output allows."""

    def to_dict(self) -> dict[str, Any]:
        """The scale as a rubric file writes it, defaults included."""

    def parse(
        self,
        verdict: object,
        record: Record,
        *,
        pass_threshold: float,
        distribution: Mapping[str, float] | None = None,
    ) -> Score | NotApplicable:
        """What the verdict is worth.

        `distribution` is the judge's probability of each grade (from logprobs, any positive mass): `value` is then the
        expected value, while `raw` and `label` stay those of the verdict. Raises VerdictError `unparsable` (not a
        verdict at all) or `off_scale` (a verdict outside the scale, NaN and missing items included).
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """Pass or fail: value 1 or 0. The words a judge answers with are configurable, what counts as each is stated."""

    pass_when: str
    fail_when: str
    pass_label: str = "pass"  # noqa: S105 - a word, no password
    fail_label: str = "fail"
    type: ClassVar[str] = "binary"
    grade_field: ClassVar[str | None] = "verdict"

    def __post_init__(self) -> None:
        if self.pass_label.casefold() == self.fail_label.casefold():
            raise ValueError("pass_label and fail_label must differ")

    def prompt(self) -> str:
        """See `Scale.prompt`."""
        return f"{_EXPLAIN} `verdict`:\n{self.pass_label}: {self.pass_when}\n{self.fail_label}: {self.fail_when}"

    def schema(self) -> dict[str, Any]:
        """See `Scale.schema`."""
        grade = {"type": "string", "enum": [self.pass_label, self.fail_label]}
        return _object({"explanation": {"type": "string"}, "verdict": grade})

    def to_dict(self) -> dict[str, Any]:
        """See `Scale.to_dict`."""
        return {"type": self.type} | asdict(self)

    def parse(
        self,
        verdict: object,
        record: Record,  # noqa: ARG002 - the protocol's
        *,
        pass_threshold: float,
        distribution: Mapping[str, float] | None = None,
    ) -> Score | NotApplicable:
        """See `Scale.parse`."""
        answer = _mapping(verdict)
        grades = {self.fail_label: 0.0, self.pass_label: 1.0}
        written = _required(answer, "verdict", str)
        # As written first: a label may itself end in what `_word` strips.
        words = (written[:200].strip().casefold(), _word(written))
        label = next((grade for word in words for grade in grades if grade.casefold() == word), None)
        if label is None:
            raise VerdictError("off_scale", f"verdict {_short(written)} is not one of {', '.join(grades)}")
        value, details = _expected(grades, distribution, grades[label])
        return _score(answer, value, pass_threshold, raw=grades[label], label=label, details=details)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of an ordinal scale and what an answer on it looks like."""

    level: int
    anchor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordinal:
    """Anchored integer levels, ascending: value = (level - lowest) / (highest - lowest)."""

    levels: tuple[Level, ...]
    type: ClassVar[str] = "ordinal"
    grade_field: ClassVar[str | None] = "level"

    def __post_init__(self) -> None:
        numbers = [level.level for level in self.levels]
        if len(numbers) < 2 or any(a >= b for a, b in pairwise(numbers)):
            raise ValueError("an ordinal scale needs two levels or more, in ascending order")
        if numbers[0] < 0 or numbers[-1] > MAX_LEVEL:
            raise ValueError(f"levels are whole numbers from 0 to {MAX_LEVEL}")

    def prompt(self) -> str:
        """See `Scale.prompt`."""
        anchors = "\n".join(f"{level.level}: {level.anchor}" for level in self.levels)
        return f"{_EXPLAIN} `level`:\n{anchors}"

    def schema(self) -> dict[str, Any]:
        """See `Scale.schema`."""
        grade = {"type": "integer", "enum": [level.level for level in self.levels]}
        return _object({"explanation": {"type": "string"}, "level": grade})

    def to_dict(self) -> dict[str, Any]:
        """See `Scale.to_dict`."""
        return {"type": self.type, "levels": [asdict(level) for level in self.levels]}

    def parse(
        self,
        verdict: object,
        record: Record,  # noqa: ARG002 - the protocol's
        *,
        pass_threshold: float,
        distribution: Mapping[str, float] | None = None,
    ) -> Score | NotApplicable:
        """See `Scale.parse`."""
        answer = _mapping(verdict)
        low, high = self.levels[0].level, self.levels[-1].level
        grades = {str(level.level): (level.level - low) / (high - low) for level in self.levels}
        written = _required(answer, "level", (int, float, str))
        # Judges without structured output write "4" or 4.0; comparing texts never parses a number of a million digits.
        whole = int(written) if isinstance(written, float) and written.is_integer() else written
        label = whole.strip() if isinstance(whole, str) else next((g for g in grades if int(g) == whole), "")
        if label not in grades:
            raise VerdictError("off_scale", f"level {_short(written)} is not one of {', '.join(grades)}")
        value, details = _expected(grades, distribution, grades[label])
        return _score(answer, value, pass_threshold, raw=float(label), label=label, details=details)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a checklist, put so that yes is good."""

    id: str
    question: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checklist:
    """Yes/no questions: value = weight of the yes / weight of the yes and no. All `na` is not applicable."""

    items: tuple[Item, ...]
    allow_na: bool = True
    type: ClassVar[str] = "checklist"
    grade_field: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        ids = [item.id for item in self.items]
        if not ids or len(set(ids)) < len(ids):
            raise ValueError("a checklist needs one item or more, each with an id of its own")
        if not all(0 < item.weight <= MAX_WEIGHT for item in self.items):
            raise ValueError(f"the weight of a checklist item is above 0 and at most {MAX_WEIGHT}")

    @property
    def _answers(self) -> list[str]:
        return ["yes", "no", "na"] if self.allow_na else ["yes", "no"]

    def prompt(self) -> str:
        """See `Scale.prompt`."""
        how = "yes (good), no or na" if self.allow_na else "yes (good) or no"
        questions = "\n".join(f"{item.id}: {item.question}" for item in self.items)
        return f"{_EXPLAIN} `items`, each {how}:\n{questions}"

    def schema(self) -> dict[str, Any]:
        """See `Scale.schema`."""
        answer = {"type": "string", "enum": self._answers}
        items = _object({item.id: dict(answer) for item in self.items})
        return _object({"explanation": {"type": "string"}, "items": items})

    def to_dict(self) -> dict[str, Any]:
        """See `Scale.to_dict`."""
        items = [asdict(item) | {"weight": float(item.weight)} for item in self.items]
        return {"type": self.type, "items": items, "allow_na": self.allow_na}

    def parse(
        self,
        verdict: object,
        record: Record,  # noqa: ARG002 - the protocol's
        *,
        pass_threshold: float,
        distribution: Mapping[str, float] | None = None,  # noqa: ARG002 - no single token carries the grade
    ) -> Score | NotApplicable:
        """See `Scale.parse`."""
        answer = _mapping(verdict)
        written = _required(answer, "items", (dict, Mapping))
        answers = self._answers
        given = {item.id: self._answer(item.id, written, answers) for item in self.items}
        asked = math.fsum(item.weight for item in self.items if given[item.id] != "na")
        if not asked:
            return NotApplicable(reason="no_items")
        good = math.fsum(item.weight for item in self.items if given[item.id] == "yes")
        answered = sum(1 for reply in given.values() if reply != "na")
        label = f"{sum(1 for reply in given.values() if reply == 'yes')}/{answered}"
        return _score(answer, good / asked, pass_threshold, raw=good, label=label, details={"items": given})

    def _answer(self, item: str, written: Mapping[str, Any], answers: Sequence[str]) -> str:
        if item not in written:
            raise VerdictError("off_scale", f"items.{item} is missing")
        reply = written[item]
        if reply in answers:
            return str(reply)
        # true and false are what judges without structured output write for yes and no.
        word = {True: "yes", False: "no"}[reply] if isinstance(reply, bool) else reply
        word = _word(word).replace("/", "") if isinstance(word, str) else ""
        if word not in answers:
            raise VerdictError("off_scale", f"items.{item} is {_short(reply)}, not one of {', '.join(answers)}")
        return word


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The claims of an answer, each with a quote of its evidence: value = supported / claims.

    The judge's word is not taken for it: a supported claim whose quote does not occur in the contexts is unsupported.
    """

    max_claims: int = 20
    type: ClassVar[str] = "claims"
    grade_field: ClassVar[str | None] = None
    verdicts: ClassVar[tuple[str, ...]] = ("supported", "unsupported", "contradicted")

    def __post_init__(self) -> None:
        if not 1 <= self.max_claims <= MAX_CLAIMS:
            raise ValueError(f"max_claims must be 1 to {MAX_CLAIMS}")

    def prompt(self) -> str:
        """See `Scale.prompt`."""
        return (
            f"`claims` (the {self.max_claims} weightiest at most, [] if none), each:\n"
            "claim: under 15 words\n"
            'quote: shortest deciding passage, copied exactly from one context, else ""\n'
            "context: its number, else 0\n"
            "verdict: supported or contradicted by the quote, else unsupported"
        )

    def schema(self) -> dict[str, Any]:
        """See `Scale.schema`."""
        claim = _object(
            {
                "claim": {"type": "string"},
                "quote": {"type": "string"},
                "context": {"type": "integer"},
                "verdict": {"type": "string", "enum": list(self.verdicts)},
            }
        )
        return _object({"claims": {"type": "array", "items": claim}})

    def to_dict(self) -> dict[str, Any]:
        """See `Scale.to_dict`."""
        return {"type": self.type} | asdict(self)

    def parse(
        self,
        verdict: object,
        record: Record,
        *,
        pass_threshold: float,
        distribution: Mapping[str, float] | None = None,  # noqa: ARG002 - no single token carries the grade
    ) -> Score | NotApplicable:
        """See `Scale.parse`."""
        answer = _mapping(verdict)
        written = _required(answer, "claims", list)
        if len(written) > MAX_CLAIMS:
            raise VerdictError("off_scale", f"{len(written):,} claims, more than {MAX_CLAIMS}")
        if not written:
            return NotApplicable(reason="no_claims")
        sources = _Sources([context.text for context in record.contexts])
        if not sources.any:
            return NotApplicable(reason="missing_contexts")
        claims = [self._claim(index, claim, sources) for index, claim in enumerate(written)]
        counts = {kind: sum(1 for claim in claims if _kind(claim) == kind) for kind in self.verdicts}
        return _score(
            {"explanation": _unfounded(claims)},
            counts["supported"] / len(claims),
            pass_threshold,
            raw=float(counts["supported"]),
            label=f"{counts['supported']}/{len(claims)}",
            details={"claims": claims} | counts,
        )

    def _claim(self, index: int, written: object, sources: _Sources) -> dict[str, Any]:
        where = f"claims[{index}]"
        claim = _mapping(written, where)
        word = _word(_required(claim, "verdict", str, where))
        if word not in self.verdicts:
            raise VerdictError("off_scale", f"{where}.verdict {_short(claim['verdict'])} is not on the scale")
        text = _text(_required(claim, "claim", str, where), MAX_QUOTE)
        quote = claim.get("quote")
        found = sources.find(quote, claim.get("context")) if isinstance(quote, str) else None
        return {
            "claim": text,
            "quote": _text(quote, MAX_QUOTE),
            "context": found,
            "verdict": word,
            "quote_found": found is not None,
        }


def _kind(claim: Mapping[str, Any]) -> str:
    """The verdict of a claim after its quote was looked up."""
    return "unsupported" if claim["verdict"] == "supported" and not claim["quote_found"] else str(claim["verdict"])


def _unfounded(claims: Sequence[Mapping[str, Any]]) -> str:
    """The explanation that the claims themselves give: which are not supported, and why."""
    parts = []
    for claim in claims:
        kind = _kind(claim)
        if kind == "supported":
            continue
        why = ""
        if claim["verdict"] == "supported":
            why = " (its quote is not in the contexts)"
        elif claim["quote_found"]:
            why = f' (context {claim["context"]}: "{claim["quote"]}")'
        parts.append(f'{kind}: "{claim["claim"]}"{why}')
    return "; ".join(parts) or "every claim is supported by a quote"


# Reading what a model wrote.


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """Schema of an object as strict structured output wants it: everything required, nothing else allowed."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _mapping(value: object, where: str = "the verdict") -> Mapping[str, Any]:
    # First for what it mostly is: the other takes longer to tell.
    if not isinstance(value, dict | Mapping):
        raise VerdictError("unparsable", f"{where} is {_short(value)}, not an object")
    return value


def _required(answer: Mapping[str, Any], name: str, kind: Any, where: str = "the verdict") -> Any:
    if name not in answer:
        raise VerdictError("unparsable", f"{where} has no `{name}`")
    value = answer[name]
    # bool is an int to Python, and never a level.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise VerdictError("unparsable", f"{where}: `{name}` is {_short(value)}")
    return value


def _word(text: str) -> str:
    # No word of a scale is longer; folding megabytes to learn that is wasted.
    return text[:200].strip(" \t\n.!*\"'").casefold()


def _short(value: object) -> str:
    """A value as an error message shows it: safe to print and never long."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a huge number"
    return ascii(value[:40] if isinstance(value, str) else value)[:60]


def _text(value: object, limit: int) -> str:
    """What a model wrote, fit to store: cut, without NUL (PostgreSQL) and lone surrogates (UTF-8)."""
    if not isinstance(value, str):
        return ""
    cut = value if len(value) <= limit else value[: limit - 1] + "…"
    return cut if cut.isascii() and "\0" not in cut else _UNSTORABLE.sub("\ufffd", cut)


def _score(
    answer: Mapping[str, Any],
    value: float,
    pass_threshold: float,
    *,
    raw: float,
    label: str,
    details: Mapping[str, Any],
) -> Score:
    return Score(
        value=value,
        passed=value + ROUNDING >= pass_threshold,
        raw=raw,
        label=label,
        explanation=_text(answer.get("explanation"), MAX_EXPLANATION),
        details=details,
    )


def _expected(
    grades: Mapping[str, float], distribution: Mapping[str, float] | None, value: float
) -> tuple[float, dict[str, Any]]:
    """Expected value under the distribution over the grades, and its details; the value itself without one."""
    if not distribution:
        return value, {}
    given = {grade: distribution.get(grade, 0.0) for grade in grades}
    mass = {grade: p for grade, p in given.items() if 0 < p <= 1e6}
    total = math.fsum(mass.values())
    if not total > 0:
        return value, {}
    shares = {grade: p / total for grade, p in mass.items()}
    expected = math.fsum(p * grades[grade] for grade, p in shares.items())
    entropy = math.fsum(-p * math.log2(p) for p in shares.values() if p > 0)
    details = {"distribution": {g: round(p, 6) for g, p in shares.items()}, "entropy_bits": round(abs(entropy), 6)}
    return min(1.0, max(0.0, expected)), details


# Looking up quotes.

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
#: what copyists put in, leave out or swap: quotation marks, asterisks and backticks of Markdown, invisible characters
_PLAIN_MARKS = "\"'`*"
_MARKS = re.compile(
    f"[{_PLAIN_MARKS}\u00b4\u2018-\u201f\u2039\u203a\u00ab\u00bb\u300c-\u300f\u301d-\u301f\u00ad\u200b-\u200f\u2060\ufeff\U000e0000-\U000e01ef]"
)
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_ELLIPSIS = re.compile(r"[\[(]?\.(?: ?\.){2,}[\])]?")
_EDGES = " .,;:!?-\u3001\u3002"
#: Long runs of what may be combining marks; ideographs, kana and hangul are spared the closer look.
_STACKS = re.compile(
    "[\u0300-\u2fff\u302a-\u302f\u3099\u309a\ua000-\uabff\ufb1e\ufe20-\ufe2f\uff9e\uff9f\U00010000-\U0001ffff]{31,}"
)
#: Not marks themselves, but they decompose into marks.
_HIDDEN_MARKS = frozenset("\u0f73\u0f75\u0f81\uff9e\uff9f")


def _fold(text: str) -> str:
    """The text without what a copyist changes: case, compatibility forms, white space, quotation marks, dashes."""
    if text.isascii():
        # Most texts are, and this is several times faster.
        text = text.lower()
        for mark in _PLAIN_MARKS:
            text = text.replace(mark, "")
    else:
        # NFKC sorts each run of combining marks in quadratic time, so long ones are cut first.
        text = unicodedata.normalize("NFKC", _STACKS.sub(_unstack, text))
        text = _DASHES.sub("-", _MARKS.sub("", text.casefold()))
    return " ".join(text.split())


def _unstack(match: re.Match[str]) -> str:
    """At most 30 combining marks in a row, as in Unicode's stream-safe format; the rest are dropped."""
    run = 0
    kept = []
    for char in match[0]:
        run = run + 1 if unicodedata.combining(char) or char in _HIDDEN_MARKS else 0
        if run <= 30:
            kept.append(char)
    return "".join(kept)


class _Sources:
    """The contexts of a record, each folded once for all its quotes."""

    #: occurrences of a quote looked at, and pieces of an elided one: bounds that keep the search linear
    _TRIES = 100
    _PIECES = 20

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        #: folded so far: a judge mostly says in which one a quote is
        self._folded: dict[int, str] = {}
        self.any = any(map(self._text, range(1, len(texts) + 1)))

    def _text(self, number: int) -> str:
        if number not in self._folded:
            self._folded[number] = _fold(self._texts[number - 1])
        return self._folded[number]

    def find(self, quote: str, stated: object = None) -> int | None:
        """Number (from 1) of the context in which the quote occurs, the stated one if it does there; None if nowhere.

        A quote never spans two contexts. "..." stands for anything within one.
        """
        folded = _fold(quote)
        ways = [([folded.strip(_EDGES)], (False, False))]
        if ".." in folded or ". ." in folded:
            pieces = [piece.strip(_EDGES) for piece in _ELLIPSIS.split(folded, self._PIECES)]
            cut = (not pieces[0], not pieces[-1])
            pieces = [piece for piece in pieces if piece]
            # Each piece must say something, or "a ... b ... c" would be found in any text.
            if len(pieces) <= self._PIECES and all(
                len(piece.encode("utf-8", "replace")) >= 10 or any(char.isdigit() for char in piece) for piece in pieces
            ):
                ways.append((pieces, cut))
        ways = [(pieces, cut) for pieces, cut in ways if any(char.isalnum() for piece in pieces for char in piece)]
        if not ways:
            return None
        numbers = range(1, len(self._texts) + 1)
        for number in sorted(numbers, key=lambda number: number != stated):
            if any(self._occurs(pieces, self._text(number), cut) for pieces, cut in ways):
                return number
        return None

    def _occurs(self, pieces: Sequence[str], text: str, cut: tuple[bool, bool]) -> bool:
        """Whether the pieces occur in this order; an edge at a cut may lie within a word, no other may."""
        end = 0
        for index, piece in enumerate(pieces):
            is_open = (index > 0 or cut[0], index < len(pieces) - 1 or cut[1])
            at = next((at for at in self._places(piece, text, end) if _stands_free(text, at, piece, is_open)), -1)
            if at < 0:
                return False
            end = at + len(piece)
        return True

    def _places(self, piece: str, text: str, start: int) -> Iterator[int]:
        for _ in range(self._TRIES):
            at = text.find(piece, start)
            if at < 0:
                return
            yield at
            start = at + 1


def _stands_free(text: str, at: int, piece: str, is_open: tuple[bool, bool]) -> bool:
    """Whether the piece found at `at` is no part of something else: "30" of "1300" or "30.5", "art" of "party"."""
    end = at + len(piece)
    before, after = text[max(0, at - 2) : at][::-1], text[end : end + 2]
    return not (_runs_on(piece[0], before, is_open[0]) or _runs_on(piece[-1], after, is_open[1]))


def _runs_on(edge: str, outside: str, is_open: bool) -> bool:
    if not outside:
        return False
    if edge.isdigit():
        return outside[0].isdigit() or (len(outside) == 2 and outside[0] in ".," and outside[1].isdigit())
    # Other scripts write no spaces between words, or put prefixes on them: there is no half word to tell.
    return not is_open and all(char.isalpha() and ord(char) < 0x530 for char in (outside[0], edge))
