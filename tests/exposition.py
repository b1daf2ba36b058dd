"""Reading an exposition back, with prometheus_client's own parsers, which are strict about OpenMetrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from assay.metrics import Family, encode


class Exposition:
    """Samples by name and labels; a series that comes twice is an error."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = {family.name: family for family in families}
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}
        for family in self.families.values():
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f"{key} twice"
                self.samples[key] = sample

    @classmethod
    def read(cls, body: bytes | str) -> Exposition:
        text = body.decode() if isinstance(body, bytes) else body
        return cls(parse_openmetrics(text) if text.endswith("# EOF\n") else parse_text(text))

    @classmethod
    def of(cls, families: Iterable[Family], *, openmetrics: bool = True) -> Exposition:
        return cls.read(encode(families, openmetrics=openmetrics)[0])

    def find(self, name: str, **labels: str) -> Iterator[Sample]:
        """Samples of that name with at least these labels; "" also finds a label that is not there."""
        for sample in self.samples.values():
            if sample.name == name and all(sample.labels.get(key, "") == value for key, value in labels.items()):
                yield sample

    def value(self, name: str, **labels: str) -> float | None:
        """Value of the one sample that has these labels, None if there is none."""
        found = list(self.find(name, **labels))
        assert len(found) <= 1, found
        return found[0].value if found else None

    def sum(self, name: str, **labels: str) -> float:
        return sum(sample.value for sample in self.find(name, **labels))

    def names(self) -> set[str]:
        return {name for name, _ in self.samples}
