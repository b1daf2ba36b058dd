"""How series are written down: the two text formats of Prometheus, and what may stand in a label."""

from __future__ import annotations

import re
from math import isfinite, isnan
from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client import Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
        for sample in family.samples:
            labels = written.get(id(sample.labels))
            if labels is None:
                labels = written[id(sample.labels)] = _labels(sample.labels, pairs)
            shown = _exemplar(sample.exemplar) if openmetrics and sample.exemplar else ""
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
    if not labels:
        return ""
    shown = []
    for pair in labels.items():
        known = pairs.get(pair)
        if known is None:
            known = pairs[pair] = f'{pair[0]}="{_escape(pair[1])}"'
        shown.append(known)
    return "{" + ",".join(shown) + "}"


def _number(value: float) -> str:
    if isfinite(value):
        return repr(value)
    return "NaN" if isnan(value) else "+Inf" if value > 0 else "-Inf"


def _exemplar(exemplar: Exemplar) -> str:
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
