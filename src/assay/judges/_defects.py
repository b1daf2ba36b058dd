"""What is wrong with an answer, as far as words and facts of the record tell: what the keyless judges share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay._text import asked, declines, knows_nothing, stems

if TYPE_CHECKING:
    from assay.defects import Defect
    from assay.records import Record
    from assay.rubrics import Rubric

#: Share of the words of a question that a context on its subject has. Of the synthetic questions of `assay demo` every
#: right article has more, and 55 of 56 wrong ones have no more.
_FITS = 0.2
#: A question of fewer words points to nothing.
_LEAST_WORDS = 3
#: Share of the words of an answer that it has from a context it leans on.
_LEANS = 0.6


def defect_by_rule(record: Record, rubric: Rubric) -> Defect:
    """The class of a record that did not pass, by the first cause in the pipeline that shows.

    Words do not show `context_construction`. The class need not be one of the rubric's: see `assay.defects.settled`.
    """
    dimension = rubric.dimension
    if dimension == "safety":
        return "unsafe"
    if record.tool_events and record.tool_events[-1].error is not None:
        return "tool_failure"
    if dimension != "faithfulness":
        if record.finish_reason == "length":
            return "truncated"
        if not record.output.strip():
            return "incomplete"
        if declines(record.output):
            return "refused_wrongly"
    fitting, others = _contexts(record)
    if others and not fitting:
        return "retrieval_miss"
    if dimension == "faithfulness":
        return "unsupported_generation"
    if knows_nothing(record.output):
        return "coverage_gap"
    if dimension == "completeness":
        return "incomplete"
    answer = set(stems(record.output))
    leans = any(len(answer & context) >= _LEANS * len(answer) for context in others) if answer else False
    return "selection" if leans else "off_topic"


def _contexts(record: Record) -> tuple[list[set[str]], list[set[str]]]:
    """The words of each context: of those on the subject of the question, and of the others."""
    question = set(stems(asked(record)))
    words = [found for context in record.contexts if (found := set(stems(context.text)))]
    if len(question) < _LEAST_WORDS:
        return words, []
    fits = [len(question & found) > _FITS * len(question) for found in words]
    return [w for w, fit in zip(words, fits, strict=True) if fit], [
        w for w, fit in zip(words, fits, strict=True) if not fit
    ]
