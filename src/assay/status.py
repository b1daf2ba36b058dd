"""What `assay status` shows: the queue, the workers, and the gauges of one window, read from the stores."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from assay import tasks
from assay.errors import QueueError
from assay.windows import Estimate, Sums, parse_window, pass_ratio, score_mean, window_bounds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from assay.queue import Queue, QueueDepth
    from assay.settings import Settings
    from assay.store import DefectCount, OutboxDepth, Rollup, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRow:
    """One label set and rubric over the window; estimates are None where nothing was scored."""

    app: str
    cohort: Mapping[str, str]
    rubric: str
    rubric_version: str
    judge: str
    scored: int
    failed: int
    not_applicable: int
    pass_ratio: Estimate | None
    score_mean: Estimate | None
    #: what was wrong with those that did not pass: interactions that they stand for, by class, the most first
    defects: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of a deployment. `queue` is None when Redis is away; times are epoch seconds."""

    queue: QueueDepth | None
    workers: list[str]
    last_scored_at: float | None
    dead_letters: int
    dropped: Mapping[str, int]
    rows: list[StatusRow]
    #: those that judge what ragas is to; one that does nothing else is not among `workers`
    ragas_workers: list[str] = field(default_factory=list)
    #: what is owed to each sink, by its name
    sinks: Mapping[str, OutboxDepth] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)


def read_status(settings: Settings, *, store: Store, queue: Queue, window: str = "1h") -> Status:
    """Read it all.

    Raises:
        SettingsError: `window` is no window. StoreError: the database is away.
    """
    start, end = window_bounds(time.time(), parse_window(window))
    try:
        depth, counters = queue.depth(), queue.client_counters()
        workers = tasks.ping_workers(settings)
    except QueueError:
        depth, counters, workers = None, {}, tasks.Workers([], [])
    dropped: dict[str, int] = {}
    for (app, outcome), count in counters.items():
        if store.shows(app) and outcome.startswith("dropped:"):
            reason = outcome.removeprefix("dropped:")
            dropped[reason] = dropped.get(reason, 0) + count
    last = [total.last_scored_at for total in store.totals() if total.last_scored_at is not None]
    return Status(
        queue=depth,
        workers=workers.ordinary,
        ragas_workers=workers.ragas,
        last_scored_at=max(last, default=None),
        dead_letters=sum(store.counts().dead_kept.values()),
        dropped=dropped,
        sinks=store.outbox_depths(),
        rows=summarise(
            store.rollups(start, end),
            store.defect_mix(datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC)),
        ),
    )


def summarise(rollups: Iterable[Rollup], defects: Iterable[DefectCount] = ()) -> list[StatusRow]:
    """Add rollups up over time: one row for each label set, rubric version and judge, in that order."""
    sums: dict[tuple[Any, ...], Sums] = {}
    counts: dict[tuple[Any, ...], list[int]] = {}
    for rollup in rollups:
        cohort = tuple(sorted(rollup.cohort.items()))
        key = (rollup.app, cohort, rollup.rubric, rollup.rubric_version, rollup.judge)
        sums[key] = sums.get(key, Sums()) + Sums.from_row(rollup)
        count = counts.setdefault(key, [0, 0])
        count[0] += rollup.failed - rollup.recovered
        count[1] += rollup.not_applicable
    mixes: dict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)
    for defect in sorted(defects, key=lambda defect: (-defect.sum_w, defect.defect)):
        cohort = tuple(sorted(defect.cohort.items()))
        mix = mixes[defect.app, cohort, defect.rubric, defect.rubric_version, defect.judge]
        mix[defect.defect] = mix.get(defect.defect, 0.0) + defect.sum_w
    return [
        StatusRow(
            app=key[0],
            cohort=dict(key[1]),
            rubric=key[2],
            rubric_version=key[3],
            judge=key[4],
            scored=total.n,
            failed=counts[key][0],
            not_applicable=counts[key][1],
            pass_ratio=pass_ratio(total),
            score_mean=score_mean(total),
            defects=mixes[key],
        )
        for key, total in sorted(sums.items())
    ]
