"""The series of a golden set: the gauges of a window, whose window is the set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.golden import WINDOW
from assay.metrics._exposition import encode
from assay.metrics._families import Families
from assay.windows import pass_ratio, score_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.golden import GoldenResult


def golden_text(results: Sequence[GoldenResult]) -> bytes:
    """Prometheus text, such as node_exporter's textfile collector or a push gateway takes."""
    families = Families(())
    for result in results:
        for app, sums in result.sums.items():
            labels = (app, result.rubric.name, result.rubric.revision, result.judge, WINDOW)
            families.add("assay_window_records", labels, sums.n)
            for name, estimate in (("pass_ratio", pass_ratio(sums)), ("score_mean", score_mean(sums))):
                if estimate is not None:
                    families.add(f"assay_{name}", labels, estimate.value)
                    families.add(f"assay_{name}_ci_lower", labels, estimate.lower)
                    families.add(f"assay_{name}_ci_upper", labels, estimate.upper)
    return encode(families.families(), openmetrics=False)[0]
