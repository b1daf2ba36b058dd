"""Builds the parts of the worker side from the settings: the one place that knows which part needs which setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.chores import Chore
from assay.gate import Gate
from assay.judges import JudgeSettings
from assay.pipeline import Judges
from assay.queue import Queue
from assay.rubrics import load_rubrics
from assay.store import Store
from assay.worker import DeliveryPolicy, Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.judges import JudgeObserver
    from assay.metrics import WorkerMetrics
    from assay.rubrics import Rubric
    from assay.settings import Settings


def open_store(settings: Settings, *, check: bool = True) -> Store:
    """The score store.

    Raises:
        StoreError: it cannot be reached, or (with `check`) is not migrated.
    """
    store = Store(settings.store_url, cohort_labels=settings.cohort_labels, max_series=settings.max_series)
    if check:
        store.check()
    return store


def has_store(settings: Settings) -> bool:
    """Whether there is a score store: one is configured, or the default one was made."""
    return settings.database_url is not None or (settings.data_dir / "assay.db").exists()


def open_queue(settings: Settings) -> Queue:
    """The queue in Redis.

    Raises:
        SettingsError: no Redis is configured.
    """
    return Queue.from_url(settings.broker_url, settings.queue, max_batches=settings.max_batches)


def read_rubrics(settings: Settings) -> list[Rubric]:
    """The rubrics that the settings name, or the shipped four.

    Raises:
        RubricError: the first mistake in a file.
    """
    return load_rubrics(settings.rubric_paths)


def build_judges(settings: Settings, rubrics: Sequence[Rubric], observer: JudgeObserver | None = None) -> Judges:
    """A judge for each rubric. Call it on the event loop that will use them."""
    return Judges.build(rubrics, judge_settings(settings), observer)


def judge_settings(settings: Settings) -> JudgeSettings:
    """The judge part of the settings, in the form that `assay.judges` takes."""
    return JudgeSettings(
        engine=settings.judge_engine,
        base_url=settings.judge_base_url,
        api_key=settings.api_key,
        model=settings.judge_model,
        timeout_seconds=settings.judge_timeout_seconds,
        max_in_flight=settings.judge_max_in_flight,
        temperature=settings.judge_temperature,
        max_tokens=settings.judge_max_tokens,
        logprobs=settings.judge_logprobs,
        prices_path=settings.prices,
    )


def build_worker(settings: Settings, *, queue: Queue, store: Store, metrics: WorkerMetrics | None) -> Worker:
    """A worker over these parts; `start` it before use.

    Raises:
        ConfigError: rubrics or the judge are not configured rightly.
    """
    rubrics = read_rubrics(settings)
    gate = Gate(store, rubrics, judge_settings(settings), bridge_share=settings.bridge_share)
    return Worker(
        queue=queue,
        store=store,
        rubrics=rubrics,
        judges=lambda: build_judges(settings, gate.rubrics, metrics),
        gate=gate,
        metrics=metrics,
        policy=DeliveryPolicy(
            lease_seconds=settings.lease_seconds,
            sweep_seconds=settings.sweep_seconds,
            max_deliveries=settings.max_deliveries,
            max_attempts=settings.max_attempts,
            retry_base_seconds=settings.retry_base_seconds,
            retry_max_seconds=settings.retry_max_seconds,
            shutdown_seconds=settings.shutdown_seconds,
            max_record_bytes=settings.max_record_bytes,
        ),
    )


def build_chores(settings: Settings, store: Store) -> list[Chore]:
    """What the workers do now and then."""
    return [Chore("purge", 3600.0, lambda: purge(settings, store))]


def purge(settings: Settings, store: Store) -> dict[str, int]:
    """Delete what is older than the settings keep; returns rows deleted per table."""
    return store.purge(
        payload_days=settings.keep_payload_days,
        score_days=settings.keep_score_days,
        rollup_days=settings.keep_rollup_days,
        dead_days=settings.keep_dead_days,
    )
