"""Reads a judge model's reply: finds the verdicts in its text, and how sure the model was of a grade.

Nothing here guesses. What is not one clear JSON object with the verdicts is a `VerdictError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from assay.errors import VerdictError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

#: Part of every fingerprint: change it when the same reply is read differently.
PARSER = "4"

_MAX_CHARACTERS = 100_000
_MAX_FALSE_STARTS = 100
#: More entries than any call has criteria.
_MAX_DEFECTS = 1_000
#: Of anything less likely the probability is 0.
_LEAST_LOGPROB = -10_000.0
#: A grade whose alternatives add up to less was not where we looked.
_LEAST_MASS = 0.5
_GRADE = re.compile(r"[^\"\s,}\]]*")
_SPACE = re.compile(r"[ \t\n\r]*")


class _DuplicateKeyError(ValueError):
    """One JSON object says two things under one name."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = next(first for first, second in pairwise(sorted(key for key, _ in pairs)) if first == second)
        raise _DuplicateKeyError(twice)
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The JSON object of a reply, and where in the text it starts."""

    text: str
    start: int
    members: Mapping[str, Any]

    def span(self, *path: str) -> tuple[int, int] | None:
        """Where in the text the value at this path of keys stands: [start, end); a string without its quotes."""
        at = self.start
        end = at
        for name in path:
            if self.text[at] != "{":
                return None
            found = [(start, stop) for key, start, stop in _members(self.text, at) if key == name]
            if not found:
                return None
            at, end = found[0]
        return (at + 1, end - 1) if self.text[at] == '"' else (at, end)


def find_verdicts(text: str, names: Collection[str], fields: Collection[str] = ()) -> Verdicts:
    """The JSON object in `text` that holds verdicts, else the last object of all.

    Text around it is passed over: code fences, a model's thoughts. An object that a model copied out of the record
    looks like a verdict, too: where two differ, or one is broken, none of them counts.

    Args:
        text: of a reply.
        names: an object that holds any of them holds verdicts.
        fields: so does one with all of these, where a verdict may stand without its name: of one rubric alone.

    Raises:
        VerdictError: `unparsable`: there is none, there are two, or it names something twice.
    """
    if len(text) > _MAX_CHARACTERS:
        raise VerdictError("unparsable", f"the reply has {len(text)} characters")
    best: Verdicts | None = None
    found: Mapping[str, Any] | None = None
    at, false_starts = _after_thoughts(text), 0
    try:
        while (at := text.find("{", at)) != -1 and false_starts < _MAX_FALSE_STARTS:
            try:
                members, end = _DECODER.raw_decode(text, at)
            except _DuplicateKeyError as error:
                raise VerdictError("unparsable", f"the reply has {str(error)!r} twice in one object") from None
            except ValueError:
                if _begins(text, at, (*names, *fields)):
                    raise VerdictError("unparsable", "the reply has no JSON object that is whole") from None
                false_starts += 1
                at += 1
                continue
            verdicts = _named(members, names, fields)
            if verdicts is not None and found is not None and verdicts != found:
                raise VerdictError("unparsable", "the reply has two verdicts that differ")
            if verdicts is not None or found is None:
                best, found = Verdicts(text, at, members), verdicts
            at = end
    except RecursionError:
        raise VerdictError("unparsable", "the reply is nested too deeply") from None
    if best is None:
        raise VerdictError("unparsable", "the reply has no JSON object" if text.strip() else "the reply is empty")
    return best


def _after_thoughts(text: str) -> int:
    """Where what a reasoning model thinks aloud before its reply ends; 0 where it does not."""
    opened = _SPACE.match(text)
    if not text.startswith("<think>", opened.end() if opened else 0):
        return 0
    # The first end: a later one may be a quote.
    end = text.find("</think>")
    return 0 if end < 0 else end + len("</think>")


def _named(members: Mapping[str, Any], names: Collection[str], fields: Collection[str]) -> Mapping[str, Any] | None:
    """The verdicts of an object, by name; None: it holds none."""
    if any(name in members for name in names):
        return members
    if fields and all(name in members for name in fields):
        return dict.fromkeys(names, members)
    return None


def _begins(text: str, at: int, names: Collection[str]) -> bool:
    """Whether the object at `at`, which is broken, begins as a verdict would."""
    start = _skip(text, at + 1)
    return any(text.startswith(json.dumps(name), start) for name in names)


def read_defects(entries: object) -> dict[str, str]:
    """What a model wrote into the member for defects, `criterion:cause` each, by criterion.

    A criterion with two different causes is left out, and so is all that is no such entry: it is no reason to doubt
    the verdicts beside it. Whether a cause is one is for the caller to say.
    """
    found: dict[str, str] = {}
    doubtful: set[str] = set()
    for entry in entries[:_MAX_DEFECTS] if isinstance(entries, list) else []:
        criterion, colon, cause = entry.partition(":") if isinstance(entry, str) else ("", "", "")
        name, cause = criterion.strip(), cause.strip()
        if colon and found.setdefault(name, cause) != cause:
            doubtful.add(name)
    return {name: cause for name, cause in found.items() if name not in doubtful}


def grade_distribution(
    tokens: object, text: str, span: tuple[int, int], grades: Sequence[str]
) -> dict[str, float] | None:
    """Probability of each grade at the token where `span` of `text` starts, renormalised over the grades.

    `tokens` is `choices[0].logprobs.content` as the endpoint sent it. None wherever the place or the grades are not
    beyond doubt: the tokens do not spell the text, one grade begins another, or little of the mass is on grades.
    """
    located = _token_at(tokens, text, span[0])
    if located is None:
        return None
    token, before = located
    mass: dict[str, float] = {}
    for alternative, logprob in _alternatives(token):
        grade = _grade(alternative, before, grades)
        if grade is None:
            continue
        if not grade:
            return None
        mass[grade] = mass.get(grade, 0.0) + math.exp(logprob)
    total = sum(mass.values())
    if text[span[0] : span[1]] not in mass or not _LEAST_MASS <= total <= 1.01:
        return None
    return {grade: share / total for grade, share in mass.items() if share > 0}


def _members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Key, start and end of value for each member of the valid JSON object that starts at `at`."""
    at = _skip(text, at + 1)
    while text[at] == '"':
        key, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, start)
        yield key, start, end
        at = _skip(text, end)
        if text[at] != ",":
            return
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _token_at(tokens: object, text: str, position: int) -> tuple[Mapping[str, Any], str] | None:
    """The token that covers this position of the text, and what of the token comes before it."""
    if not isinstance(tokens, list):
        return None
    pieces = [_bytes(token) for token in tokens]
    spelled = b"".join(piece or b"" for piece in pieces)
    wanted = text.encode(errors="replace")
    # Endpoints differ in what they strip: thoughts before, an end-of-text token after.
    start = spelled.find(wanted)
    if start < 0 or spelled.rfind(wanted) != start or None in pieces:
        return None
    seen, target = 0, start + len(text[:position].encode(errors="replace"))
    for token, piece in zip(tokens, pieces, strict=True):
        length = len(piece or b"")
        if seen <= target < seen + length:
            return token, (piece or b"")[: target - seen].decode(errors="replace")
        seen += length
    return None


def _bytes(token: object) -> bytes | None:
    """What a token spells. Its `bytes` are right where its text is not: inside a character of several bytes."""
    if not isinstance(token, Mapping) or not isinstance(token.get("token"), str):
        return None
    given = token.get("bytes")
    if isinstance(given, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in given):
        return bytes(given)
    return str(token["token"]).encode(errors="replace")


def _alternatives(token: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    listed = token.get("top_logprobs")
    entries = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    if all(entry.get("token") != token["token"] for entry in entries):
        entries.append(token)
    for entry in entries:
        text, logprob = entry.get("token"), entry.get("logprob")
        if not isinstance(text, str) or not isinstance(logprob, int | float) or isinstance(logprob, bool):
            continue
        if logprob <= 0.01:  # False for NaN
            # A whole number may be too large to be made a float.
            yield text, max(logprob, _LEAST_LOGPROB)


def _grade(alternative: str, before: str, grades: Sequence[str]) -> str | None:
    """The one grade that this token begins or spells; None: no grade; empty: it could be several."""
    rest = alternative[len(before) :] if alternative.startswith(before) else alternative.lstrip(' \t\r\n"')
    match = _GRADE.match(rest)
    written = match[0] if match else ""
    ended = len(written) < len(rest)
    fitting = [grade for grade in grades if (grade == written if ended else grade.startswith(written))]
    if not written or not fitting:
        return None
    return fitting[0] if len(fitting) == 1 else ""
