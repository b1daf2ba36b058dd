"""How series are written down: the two text formats of Prometheus, and what may stand in a label."""

from __future__ import annotations

import re
from math import isfinite, isnan
from typing import TYPE_CHECKING, Any

import prometheus_client
from prometheus_client import Metric
from prometheus_client.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from prometheus_client.samples import Exemplar

#: What a collector yields; other modules need not name prometheus_client's class.
Family = Metric

# A creation time for every series would double what Prometheus stores.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header asks for OpenMetrics 1.0, which has exemplars; else it gets Prometheus text 0.0.4."""
    for choice in accept.split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        if media == "application/openmetrics-text":
            given = dict(part.split("=", 1) for part in parameters if "=" in part)
            # 2.0 differs; a client that knows only it or 0.0.1 names another choice too.
            if given.get("version", "1.0.0") == "1.0.0" and given.get("q") != "0":
                return True
    return False


class OwnFamily(Metric):
    """A family that writes its own lines, without a Sample for each; samples are made for whoever asks for them."""

    def __init__(self, family: str, documentation: str, kind: str) -> None:
        super().__init__(family, documentation, kind)
        # Until somebody asks, see below.
        del self.samples

    def __getattr__(self, name: str) -> Any:
        if name != "samples":
            raise AttributeError(name)
        self.samples = self.make_samples()
        return self.samples

    def make_samples(self) -> list[Sample]:
        """What `write` writes, as objects of prometheus_client."""
        raise NotImplementedError

    def write(self, lines: list[str], *, openmetrics: bool) -> None:
        """Add a line for each sample."""
        raise NotImplementedError


class ColumnFamily(OwnFamily):
    """A family whose samples differ in their labels and values only.

    `values` are by the values of the labels, which `label_names` names in order; `texts` writes them.
    """

    def __init__(
        self,
        family: str,
        documentation: str,
        kind: str,
        *,
        name: str,
        label_names: tuple[str, ...],
        values: Mapping[tuple[str, ...], float],
        texts: LabelTexts,
    ) -> None:
        super().__init__(family, documentation, kind)
        self._name = name
        self._label_names = label_names
        self._values = values
        self._texts = texts

    def make_samples(self) -> list[Sample]:
        """See `OwnFamily`."""
        names = self._label_names
        return [Sample(self._name, dict(zip(names, of, strict=True)), value) for of, value in self._values.items()]

    def write(self, lines: list[str], *, openmetrics: bool) -> None:  # noqa: ARG002 - both formats write it alike
        """See `OwnFamily`."""
        name, values = self._name, self._values.values()
        # If their sum is an ordinary number, so are they all, and need not be looked at one by one.
        shown = map(repr if isfinite(sum(values)) else _number, values)
        texts = self._texts.of(self._label_names, self._values)
        lines += [f"{name}{text} {value}\n" for text, value in zip(texts, shown, strict=True)]


#: by the names of the labels and their values
_Texts = dict[tuple[str, ...], dict[tuple[str, ...], str]]


class LabelTexts:
    """Labels as they are written, remembered from one scrape to the next: most label sets come again.

    What two scrapes in a row do not have is forgotten. Thread-safe: at worst a text is made twice.
    """

    def __init__(self) -> None:
        self._before: _Texts = {}
        self._now: _Texts = {}

    def turn(self) -> None:
        """Another scrape begins."""
        self._before, self._now = self._now, {}

    def of(self, names: tuple[str, ...], many: Collection[tuple[str, ...]]) -> Iterable[str]:
        """The text of each of many label sets, which have the same names."""
        known, before = self._now.setdefault(names, {}), self._before.get(names, {})
        for labels in many:
            if labels not in known:
                known[labels] = before.get(labels) or _label_text(zip(names, labels, strict=True))
        return map(known.__getitem__, many)


def encode(families: Iterable[Family], *, openmetrics: bool) -> tuple[bytes, str]:
    """The exposition and its content type.

    prometheus_client's own encoders say the same (a test compares them) and take many times as long: a label set comes
    back in dozens of metrics, and here it is written out once.
    """
    lines: list[str] = []
    # By identity: samples share their labels, and the list keeps those alive.
    written: dict[int, str] = {}
    pairs: dict[tuple[str, str], str] = {}
    kept = list(families)
    for family in kept:
        suffix, kind = ("", family.type) if openmetrics else _TEXT_TYPES.get(family.type, ("", family.type))
        lines.append(f"# HELP {family.name}{suffix} {_escape(family.documentation, quotes=openmetrics)}\n")
        lines.append(f"# TYPE {family.name}{suffix} {kind}\n")
        if isinstance(family, OwnFamily):
            family.write(lines, openmetrics=openmetrics)
            continue
        for sample in family.samples:
            labels = written.get(id(sample.labels))
            if labels is None:
                labels = written[id(sample.labels)] = _labels(sample.labels, pairs)
            shown = exemplar_text(sample.exemplar) if openmetrics and sample.exemplar else ""
            lines.append(f"{sample.name}{labels} {_number(sample.value)}{shown}\n")
    if openmetrics:
        lines.append("# EOF\n")
    return "".join(lines).encode(errors="replace"), _OPENMETRICS if openmetrics else _TEXT


_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"

#: The older format has no info, and names a counter by its sample.
_TEXT_TYPES = {"counter": ("_total", "counter"), "info": ("_info", "gauge")}


def _escape(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _labels(labels: Mapping[str, str], pairs: dict[tuple[str, str], str]) -> str:
    """The labels in braces; `pairs` holds those that were escaped already."""
    return _label_text(labels.items(), pairs)


def _label_text(labels: Iterable[tuple[str, str]], pairs: dict[tuple[str, str], str] | None = None) -> str:
    if pairs is None:
        pairs = {}
    shown = []
    for pair in labels:
        known = pairs.get(pair)
        if known is None:
            known = pairs[pair] = f'{pair[0]}="{_escape(pair[1])}"'
        shown.append(known)
    return "{" + ",".join(shown) + "}" if shown else ""


def _number(value: float) -> str:
    if isfinite(value):
        return repr(value)
    return "NaN" if isnan(value) else "+Inf" if value > 0 else "-Inf"


def exemplar_text(exemplar: Exemplar) -> str:
    """An exemplar as it stands after a value."""
    moment = "" if exemplar.timestamp is None else f" {float(exemplar.timestamp)!r}"
    # Few are alike: nothing to remember.
    return f" # {_labels(exemplar.labels, {})} {_number(exemplar.value)}{moment}"


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def label(value: str) -> str:
    """`value` as a label value: control characters and lone surrogates would spoil the whole scrape."""
    return value if value.isprintable() else _UNPRINTABLE.sub("\ufffd", value)


def exemplar_labels(trace_id: str | None) -> dict[str, str] | None:
    """Labels of an exemplar, or None. OpenMetrics allows 128 characters; a longer id is none of W3C's."""
    if not trace_id or len(trace_id) > 64:
        return None
    return {"trace_id": label(trace_id)}
