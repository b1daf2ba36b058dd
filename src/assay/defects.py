"""What can be wrong with an answer that did not pass: a small, stable set of classes, one for each such score.

A defect is of the answer; a judge that gave no verdict is a failure (`assay.records.Failure`). Standard library only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Defect = Literal[
    "retrieval_miss",
    "selection",
    "context_construction",
    "unsupported_generation",
    "incomplete",
    "off_topic",
    "tool_failure",
    "truncated",
    "unsafe",
    "refused_wrongly",
    "coverage_gap",
    "unclassified",
]

#: A score that did not pass and whose class nobody named: the judge left it out, or wrote what is no class.
UNCLASSIFIED: Defect = "unclassified"

#: Every class that a judge or a person can name, in the order of the pipeline that makes an answer, with the words that
#: a judge is told of it; none where the name says it. Names and words are part of every judge's prompt: raise PROTOCOL
#: (judges/_prompt.py) with any change.
CLASSES: Mapping[Defect, str] = {
    "retrieval_miss": "contexts beside the question",
    "selection": "wrong passage",
    "context_construction": "garbled",
    "unsupported_generation": "",
    "incomplete": "",
    "off_topic": "",
    "tool_failure": "",
    "truncated": "",
    "unsafe": "",
    "refused_wrongly": "",
    "coverage_gap": "no source knows",
}

#: The same for people: what each class means, and so where to look first.
MEANINGS: Mapping[Defect, str] = {
    "retrieval_miss": "The contexts are about something else than the question: the search did not find the passage.",
    "selection": "The right passage was among the contexts, and the answer follows another one.",
    "context_construction": "The contexts were cut, doubled, out of order or garbled on their way into the prompt.",
    "unsupported_generation": "The answer states what no context backs, or contradicts them.",
    "incomplete": "The answer leaves out parts of what was asked, or fields that it must have.",
    "off_topic": "The answer is to another question.",
    "tool_failure": "A tool call failed, or the wrong tool or arguments were used.",
    "truncated": "The answer breaks off, as at a length limit.",
    "unsafe": "The answer harms, insults, leaks, or obeys instructions planted in its sources.",
    "refused_wrongly": "The answer declines what could have been answered.",
    "coverage_gap": "The contexts are on the subject, but no source seems to know the answer: there is none to find.",
    "unclassified": "Nobody has named a class: the judge left it out, or wrote something that is none.",
}

ALL: tuple[Defect, ...] = tuple(CLASSES)

_KNOWN: Mapping[str, Defect] = {name: name for name in (*CLASSES, UNCLASSIFIED)}


def defect_named(text: str) -> Defect | None:
    """The class of this name, `unclassified` included; None where there is none of it."""
    return _KNOWN.get(text)


def settled(passed: bool, named: str | None, allowed: Collection[str]) -> Defect | None:
    """The class that a score is kept with.

    Args:
        passed: whether it passed; what passes has no defect.
        named: what the judge wrote or a rule found, whatever it is; None where it said nothing.
        allowed: the classes of the rubric. None of them: it asks for no class, and its scores have none. A single one
            needs no asking.
    """
    if passed or not allowed:
        return None
    if len(allowed) == 1:
        return _KNOWN[next(iter(allowed))]
    return _KNOWN[named] if named is not None and named in allowed and named in _KNOWN else UNCLASSIFIED
