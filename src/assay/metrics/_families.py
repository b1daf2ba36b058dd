"""Samples on their way to the exposition, by metric and label values."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.samples import Exemplar, Sample

from assay.catalogue import DOCUMENTED
from assay.metrics._exposition import ColumnFamily, LabelTexts, OwnFamily, exemplar_labels, exemplar_text
from assay.store import SCORE_BOUNDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from assay.metrics._exposition import Family
    from assay.store import Total


class Families:
    """Samples by metric and label values. Values of the same labels add up, so that no series comes twice."""

    def __init__(self, cohort_labels: Sequence[str], texts: LabelTexts | None = None) -> None:
        self._texts = texts or LabelTexts()
        self._cohort_labels = tuple(cohort_labels)
        self._samples: dict[str, dict[tuple[str, ...], float]] = {}
        self._scores: dict[tuple[str, ...], _Scores] = {}

    def add(self, name: str, labels: tuple[str, ...], value: float) -> None:
        """Add to a counter or an additive gauge."""
        samples = self._samples.setdefault(name, {})
        samples[labels] = samples.get(labels, 0) + value

    def column(self, name: str, labels: Iterable[tuple[str, ...]], values: Iterable[float]) -> None:
        """Set many samples of a metric at once; nothing else has the same labels."""
        self._samples.setdefault(name, {}).update(zip(labels, values, strict=True))

    def most(self, name: str, labels: tuple[str, ...], value: float) -> None:
        """Set a gauge, such as a timestamp, unless it is greater already."""
        samples = self._samples.setdefault(name, {})
        samples[labels] = max(samples.get(labels, value), value)

    def scores(self, labels: tuple[str, ...], total: Total) -> None:
        """Add to the histogram of scores."""
        scores = self._scores.setdefault(labels, _Scores())
        scores.buckets = [a + b for a, b in zip(scores.buckets, total.buckets, strict=True)]
        scores.sum += total.value_sum
        for index, seen in total.exemplars.items():
            trace = exemplar_labels(seen.trace_id)
            if trace is not None:
                scores.exemplars[index] = Exemplar(trace, seen.value, seen.timestamp)

    def update(self, other: Families) -> None:
        """Take over what `other` has; the two have no metric in common."""
        self._samples.update(other._samples)
        self._scores.update(other._scores)

    def families(self) -> Iterator[Family]:
        """One family for each metric that has samples, in the order of the reference."""
        for doc in DOCUMENTED:
            names = doc.label_names(self._cohort_labels)
            if doc.name == "assay_score":
                if self._scores:
                    yield _ScoreFamily(doc.family, doc.help, doc.type, names, self._scores, self._texts)
            elif values := self._samples.get(doc.name):
                yield ColumnFamily(
                    doc.family,
                    doc.help,
                    doc.type,
                    name=doc.name,
                    label_names=names,
                    values=values,
                    texts=self._texts,
                )


@dataclass(slots=True)
class _Scores:
    """The histogram of one label set. Each score is in one bucket; `exemplars` are by index of the bucket."""

    buckets: list[int] = field(default_factory=lambda: [0] * len(SCORE_BOUNDS))
    sum: float = 0.0
    exemplars: dict[int, Exemplar] = field(default_factory=dict)

    def counts(self) -> list[int]:
        """Cumulative, by bucket; the last is of all scores."""
        return list(accumulate(self.buckets))


class _ScoreFamily(OwnFamily):
    """The histograms of scores by label set, in the order that OpenMetrics wants."""

    def __init__(
        self,
        family: str,
        documentation: str,
        kind: str,
        label_names: tuple[str, ...],
        scores: Mapping[tuple[str, ...], _Scores],
        texts: LabelTexts,
    ) -> None:
        super().__init__(family, documentation, kind)
        self._label_names = label_names
        self._scores = scores
        self._texts = texts

    def make_samples(self) -> list[Sample]:
        """See `OwnFamily`."""
        made: list[Sample] = []
        for values, scores in self._scores.items():
            labels, counts = dict(zip(self._label_names, values, strict=True)), scores.counts()
            for index, bound in enumerate(_BOUNDS):
                bucket = {**labels, "le": bound}
                count = counts[min(index, len(counts) - 1)]
                made.append(Sample("assay_score_bucket", bucket, count, None, scores.exemplars.get(index)))
            made.append(Sample("assay_score_count", labels, counts[-1]))
            made.append(Sample("assay_score_sum", labels, scores.sum))
        return made

    def write(self, lines: list[str], *, openmetrics: bool) -> None:
        """See `OwnFamily`."""
        names = (*self._label_names, "le")
        for (values, scores), text in zip(
            self._scores.items(), self._texts.of(self._label_names, self._scores), strict=True
        ):
            counts = scores.counts()
            buckets = self._texts.of(names, [(*values, bound) for bound in _BOUNDS])
            for index, bucket in enumerate(buckets):
                seen = scores.exemplars.get(index) if openmetrics else None
                shown = "" if seen is None else exemplar_text(seen)
                lines.append(f"assay_score_bucket{bucket} {counts[min(index, len(counts) - 1)]}{shown}\n")
            lines.append(f"assay_score_count{text} {counts[-1]}\n")
            lines.append(f"assay_score_sum{text} {scores.sum!r}\n")


_BOUNDS = (*map(str, SCORE_BOUNDS), "+Inf")
