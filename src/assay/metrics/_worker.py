"""What one worker process does, counted by itself."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from math import isfinite
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from assay.catalogue import DOCUMENTED
from assay.metrics._exposition import exemplar_labels, label

if TYPE_CHECKING:
    from collections.abc import Iterable

    from assay.metrics._exposition import Family
    from assay.records import Usage

_BY_NAME = {doc.name: doc for doc in DOCUMENTED}

_REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
_COMMIT_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
#: Up to a day: a backlog, or a backfill of old records.
_LAG_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900, 3600, 14_400, 86_400)


class WorkerMetrics:
    """What one worker process does; nothing of it survives the process. Thread-safe.

    It is also the `JudgeObserver` of the judges.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Histogram(
            *_declare("assay_judge_request_seconds"), buckets=_REQUEST_SECONDS, registry=registry
        )
        self._in_flight = Gauge(*_declare("assay_judge_in_flight"), registry=registry)
        self._tokens = Counter(*_declare("assay_judge_tokens_total"), registry=registry)
        self._cached = Counter(*_declare("assay_judge_cached_tokens_total"), registry=registry)
        self._cost = Counter(*_declare("assay_judge_cost_usd_total"), registry=registry)
        self._unpriced = Counter(*_declare("assay_judge_unpriced_calls_total"), registry=registry)
        self._repeats = Counter(*_declare("assay_judge_repeats_total"), registry=registry)
        self._reused = Counter(*_declare("assay_judge_reused_total"), registry=registry)
        self._circuits = Gauge(*_declare("assay_judge_circuit_open"), registry=registry)
        self._judges = Info(*_declare("assay_judge_info"), registry=registry)
        self._batches = Counter(*_declare("assay_batches_total"), registry=registry)
        self._retries = Counter(*_declare("assay_retries_total"), registry=registry)
        self._lag = Histogram(*_declare("assay_score_lag_seconds"), buckets=_LAG_SECONDS, registry=registry)
        self._commit = Histogram(*_declare("assay_commit_seconds"), buckets=_COMMIT_SECONDS, registry=registry)
        Info(*_declare("assay_build_info"), registry=registry).labels(version("assay"))
        ProcessCollector(registry=self._registry)
        #: to look a child up by its labels takes several times as long
        self._child = lru_cache(maxsize=4096)(_child)

    # -- the JudgeObserver

    def call_started(self, judge: str) -> None:
        """`judge` (its name) has sent a request."""
        self._child(self._in_flight, label(judge)).inc()

    def call_ended(self, judge: str, seconds: float, outcome: str, usage: Usage, trace_id: str | None) -> None:
        """The request ended after `seconds`: `ok`, a failure kind, or `cancelled`."""
        judge = label(judge)
        self._child(self._in_flight, judge).dec()
        self._child(self._requests, judge, outcome).observe(max(0.0, seconds), exemplar_labels(trace_id))
        # What an endpoint says of itself may be anything; a counter only grows.
        used = 0
        for direction, tokens in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
            if tokens is not None and tokens > 0:
                used += tokens
                self._child(self._tokens, judge, direction).inc(tokens)
        if usage.cached_prompt_tokens is not None and usage.cached_prompt_tokens >= 0:
            # From 0 on: an endpoint that tells of its cache and never uses it is worth seeing.
            self._child(self._cached, judge).inc(usage.cached_prompt_tokens)
        if usage.cost_usd is not None and isfinite(usage.cost_usd) and usage.cost_usd > 0:
            self._child(self._cost, judge).inc(usage.cost_usd)
        elif usage.cost_usd is None and used:
            self._child(self._unpriced, judge).inc()

    def repeated(self, judge: str, outcome: str) -> None:
        """One more verdict was asked for where a rubric has repeats, and this came of it."""
        self._repeats.labels(label(judge), outcome).inc()

    def circuit(self, judge: str, *, is_open: bool) -> None:
        """Whether the judge's endpoint counts as down."""
        self._child(self._circuits, label(judge)).set(is_open)

    # -- the worker

    def judge(self, name: str, fingerprint: str) -> None:
        """A judge of this worker."""
        self._judges.labels(label(name), fingerprint).info({})

    def reused(self, judge: str) -> None:
        """A verdict of `judge` (its name) was taken from an equal record."""
        self._reused.labels(label(judge)).inc()

    def batch(self, outcome: str) -> None:
        """A batch was worked on, and ended so."""
        self._batches.labels(outcome).inc()

    def retry(self, kind: str) -> None:
        """A record goes back to be judged again, because of a failure of this kind."""
        self._retries.labels(kind).inc()

    def lag(self, seconds: float, trace_id: str | None = None) -> None:
        """The evaluations of a record were stored `seconds` after its interaction."""
        # The app's clock may be ahead of ours.
        self._lag.observe(max(0.0, seconds), exemplar_labels(trace_id))

    def commit(self, seconds: float) -> None:
        """A transaction of the store took this long."""
        self._commit.observe(max(0.0, seconds))

    # -- a Source of the exporter's server

    def collect(self) -> Iterable[Family]:
        """All families as of now."""
        return [family for family in self._registry.collect() if family.samples]

    def health(self) -> dict[str, bool]:
        """These metrics depend on nothing that can be away."""
        return {}


def _declare(name: str) -> tuple[str, str, tuple[str, ...]]:
    doc = _BY_NAME[name]
    return doc.family, doc.help, doc.labels


def _child(metric: Any, *labels: str) -> Any:
    return metric.labels(*labels)
