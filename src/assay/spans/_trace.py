"""The spans of one trace, by what is asked of them."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final

from assay.spans._documents import documents_of
from assay.spans._messages import answer_of, input_turns
from assay.spans._span import Kind, Span, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MOST_ANCESTORS: Final = 200
#: Spans before a call that are looked at for its passages and tools: the latest.
_MOST_BEFORE: Final = 200


class Trace:
    """The spans of one trace, by what is asked of them."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.by_id: dict[str, Span] = {}
        self.kinds: dict[str, Kind] = {}
        for span in spans:
            self.by_id[span.span_id] = span  # the same span sent again takes the place of the first
        for span_id, span in self.by_id.items():
            try:
                self.kinds[span_id] = kind_of(span)
            except Exception:  # noqa: BLE001 - as in `interactions`
                self.kinds[span_id] = "other"
        # Made when asked for: a trace of thousands of calls must not be gone through for each of them.
        self._ended: dict[tuple[Kind, ...], tuple[_Ended, dict[str, _Ended]]] = {}
        self._documents: dict[str, list[dict[str, Any]]] = {}
        self._whole: dict[str, bool] = {}

    def llm_spans(self) -> list[Span]:
        found = [span for span_id, span in self.by_id.items() if self.kinds[span_id] == "llm"]
        return sorted(found, key=lambda span: (span.start_seconds, span.span_id))

    def ancestors(self, span: Span) -> Iterator[Span]:
        """Parents from the nearest on; ends at a cycle."""
        seen = {span.span_id}
        while span.parent_id is not None and span.parent_id not in seen and len(seen) < _MOST_ANCESTORS:
            seen.add(span.parent_id)
            parent = self.by_id.get(span.parent_id)
            if parent is None:
                return
            span = parent
            yield span

    def before(self, span: Span, kinds: tuple[Kind, ...]) -> list[Span]:
        """Spans of these kinds that ended before this one began, beneath the nearest ancestor that has any.

        By their start; of more than 200 the latest to end.
        """
        if kinds not in self._ended:
            self._ended[kinds] = self._by_end(kinds)
        everything, beneath = self._ended[kinds]
        for ancestor in self.ancestors(span):
            if ancestor.span_id in beneath and (found := beneath[ancestor.span_id].until(span.start_seconds)):
                return found
        # Their parents did not come with them: all that the trace has.
        return everything.until(span.start_seconds)

    def documents(self, span: Span) -> list[dict[str, Any]]:
        """The documents of a retrieval span that have a text."""
        if span.span_id not in self._documents:
            self._documents[span.span_id] = documents_of(span)
        return self._documents[span.span_id]

    def is_whole(self, span: Span) -> bool:
        """Whether the span of a model call has both input and answer."""
        if span.span_id not in self._whole:
            self._whole[span.span_id] = bool(input_turns(span) and answer_of(span).text)
        return self._whole[span.span_id]

    def _by_end(self, kinds: tuple[Kind, ...]) -> tuple[_Ended, dict[str, _Ended]]:
        """The spans of these kinds, and those beneath each span that has any (and it itself)."""
        everything, beneath = _Ended(), dict[str, _Ended]()
        chosen = [span for span_id, span in self.by_id.items() if self.kinds[span_id] in kinds]
        for span in sorted(chosen, key=lambda each: each.end_seconds):
            everything.add(span)
            for above in (span, *self.ancestors(span)):
                beneath.setdefault(above.span_id, _Ended()).add(span)
        return everything, beneath


class _Ended:
    """Spans in the order of their ends."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._spans: list[Span] = []

    def add(self, span: Span) -> None:
        """Add one that ended last."""
        self._ends.append(span.end_seconds)
        self._spans.append(span)

    def until(self, seconds: float) -> list[Span]:
        """The latest that had ended by then, by their start."""
        place = bisect_right(self._ends, seconds)
        found = self._spans[max(0, place - _MOST_BEFORE) : place]
        return sorted(found, key=lambda span: (span.start_seconds, span.span_id))
