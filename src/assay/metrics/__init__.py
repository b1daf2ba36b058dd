"""Every Prometheus series of assay, and where its value comes from.

`ScoreCollector` reads the store and the queue at each scrape (the exporter), `WorkerMetrics` counts what one worker
process does; `assay.catalogue` says what each is called and means. The only package that knows prometheus_client.

A score gauge exists only while there is a number to show: nothing is published for an empty window, and nothing from
the store while the store is away.
"""

from assay.metrics._collect import collector_families
from assay.metrics._collector import ScoreCollector, check_cohort_labels
from assay.metrics._exposition import Family, encode, wants_openmetrics
from assay.metrics._golden import golden_text
from assay.metrics._worker import WorkerMetrics

__all__ = [
    "Family",
    "ScoreCollector",
    "WorkerMetrics",
    "check_cohort_labels",
    "collector_families",
    "encode",
    "golden_text",
    "wants_openmetrics",
]
