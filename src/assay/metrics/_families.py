"""Samples on their way to the exposition, by metric and label values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.samples import Exemplar, Sample

from assay.catalogue import DOCUMENTED
from assay.metrics._exposition import ColumnFamily, LabelTexts, exemplar_labels
from assay.store import SCORE_BOUNDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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
                family = Metric(doc.family, doc.help, doc.type)
                for labels, scores in self._scores.items():
                    scores.add_to(family, dict(zip(names, labels, strict=True)))
                if family.samples:
                    yield family
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

    def add_to(self, family: Family, labels: dict[str, str]) -> None:
        """The samples, in the order that OpenMetrics wants."""
        add, count = family.samples.append, 0
        for index, bound in enumerate(SCORE_BOUNDS):
            count += self.buckets[index]
            bucket = {**labels, "le": str(bound)}
            add(Sample("assay_score_bucket", bucket, count, None, self.exemplars.get(index)))
        add(Sample("assay_score_bucket", {**labels, "le": "+Inf"}, count))
        add(Sample("assay_score_count", labels, count))
        add(Sample("assay_score_sum", labels, self.sum))
