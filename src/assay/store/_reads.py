"""What a scrape reads: sums only, never a record or an evaluation, so its cost does not grow with them."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from assay.records import Usage
from assay.store._rollups import BUCKETS, SUMS, TOTALS, USAGE
from assay.store._rows import Counts, Exemplar, Rollup, Total
from assay.store._tables import counters, dead_letters, exemplars, instruments, outcome_counts, rollups, series, totals
from assay.windows import cover

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Key(NamedTuple):
    """The labels that a row is published with, and what measured."""

    app: str
    cohort: tuple[str, ...]
    rubric: str
    rubric_version: str
    judge: str
    #: no labels: judges of one name may differ
    rubric_hash: str
    judge_fingerprint: str


class Names:
    """From ids to labels. Rows made under other declared labels are shown with the declared ones, missing ones as "".

    So two ids may have the same labels; their rows are then added up.
    """

    def __init__(self, cohort_labels: Iterable[str]) -> None:
        self._labels = tuple(cohort_labels)
        self._lock = threading.Lock()
        self._series: dict[int, tuple[str, tuple[str, ...]]] = {}
        self._instruments: dict[int, tuple[str, str, str, str, str]] = {}

    def cohort(self, key: Key) -> Mapping[str, str]:
        """The cohort labels of a key, by name."""
        return dict(zip(self._labels, key.cohort, strict=True))

    def keys(self, connection: sa.Connection, ids: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Key]:
        """The labels of pairs of a series and an instrument."""
        pairs = set(ids)
        with self._lock:
            unknown = any(a not in self._series or b not in self._instruments for a, b in pairs)
            if unknown:
                self._load(connection)
            return {pair: Key(*self._series[pair[0]], *self._instruments[pair[1]]) for pair in pairs}

    def series(self, connection: sa.Connection, ids: Iterable[int]) -> dict[int, tuple[str, tuple[str, ...]]]:
        """App and values of the declared labels of each of these label sets."""
        wanted = set(ids)
        with self._lock:
            if not wanted <= self._series.keys():
                self._load(connection)
            return {number: self._series[number] for number in wanted}

    def labels(self, values: Iterable[str]) -> dict[str, str]:
        """Values of the declared labels, by name."""
        return dict(zip(self._labels, values, strict=True))

    def _load(self, connection: sa.Connection) -> None:
        for row in connection.execute(sa.select(series.c.series_id, series.c.app, series.c.cohort)):
            self._series[row.series_id] = (row.app, tuple(row.cohort.get(name, "") for name in self._labels))
        columns = (instruments.c[name] for name in ("instrument_id", *Key._fields[2:]))
        for number, *names in connection.execute(sa.select(*columns)):
            self._instruments[number] = tuple(names)


def read_rollups(connection: sa.Connection, names: Names, start: int, end: int) -> list[Rollup]:
    """Sums of [start, end), epoch seconds on the minute, one for each label set and instrument that has any."""
    spans = cover(start, end)
    if not spans:
        return []
    ids = (rollups.c.series_id, rollups.c.instrument_id)
    # One range of the primary key for each span.
    parts = sa.union_all(
        *(
            sa.select(*ids, *(rollups.c[name] for name in SUMS)).where(
                rollups.c.resolution_seconds == span.resolution_seconds,
                rollups.c.start >= span.start,
                rollups.c.start < span.end,
            )
            for span in spans
        )
    ).subquery()
    # PostgreSQL adds up integers as numeric: cast back.
    added = (sa.cast(sa.func.sum(parts.c[name]), rollups.c[name].type).label(name) for name in SUMS)
    rows = connection.execute(
        sa.select(parts.c.series_id, parts.c.instrument_id, *added).group_by(parts.c.series_id, parts.c.instrument_id)
    ).all()
    keys = names.keys(connection, ((row[0], row[1]) for row in rows))
    merged: dict[Key, list[float]] = {}
    for row in rows:
        known = merged.setdefault(keys[row[0], row[1]], [0] * len(SUMS))
        for index, value in enumerate(row[2:]):
            known[index] += value
    return [
        Rollup(
            **_labels(names, key),
            rubric_hash=key.rubric_hash,
            judge_fingerprint=key.judge_fingerprint,
            **dict(zip(SUMS, sums, strict=True)),  # type: ignore[arg-type]
        )
        for key, sums in sorted(merged.items())
    ]


def read_totals(connection: sa.Connection, names: Names) -> list[Total]:
    """Everything ever counted, one for each label set."""
    rows = connection.execute(sa.select(totals)).all()
    found = names.keys(connection, ((row.series_id, row.instrument_id) for row in rows))
    keys = {pair: key._replace(rubric_hash="", judge_fingerprint="") for pair, key in found.items()}
    sums: dict[Key, dict[str, Any]] = {}
    for row in rows:
        known = sums.setdefault(keys[row.series_id, row.instrument_id], dict.fromkeys((*TOTALS, *USAGE), None))
        for name in (*TOTALS, *USAGE):
            known[name] = _plus(known[name], getattr(row, name))
        known["last_scored_at"] = _latest(known.get("last_scored_at"), row.last_scored_at)
    reasons: dict[tuple[Key, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for *pair, outcome, reason, n in connection.execute(sa.select(outcome_counts)):
        if (key := keys.get(tuple(pair))) is not None:
            reasons[key, outcome][reason] += n
    shown: dict[Key, dict[int, Exemplar]] = {key: {} for key in sums}
    # The longest of these reads: a row for each bucket.
    for *pair, bucket, trace_id, value, moment in connection.execute(
        sa.select(exemplars).order_by(exemplars.c.timestamp)
    ):
        if (key := keys.get(tuple(pair))) is not None:
            shown[key][bucket] = Exemplar(trace_id=trace_id, value=value, timestamp=moment)
    return [
        Total(
            **_labels(names, key),
            **{name: known[name] for name in TOTALS if name not in BUCKETS},
            buckets=tuple(known[name] for name in BUCKETS),
            failures=dict(reasons[key, "failed"]),
            reasons=dict(reasons[key, "not_applicable"]),
            exemplars=shown[key],
            usage=Usage(**{name: known[name] for name in USAGE}),
            last_scored_at=known["last_scored_at"],
        )
        for key, known in sorted(sums.items())
    ]


def read_counts(connection: sa.Connection, *, confined: bool = False) -> Counts:
    """The plain counters; of some apps only (`confined`), dead letters that wait are counted one by one."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for name, label, n in connection.execute(sa.select(counters)):
        found[name][label] = n
    if confined:
        # Nobody keeps a counter for each app of these.
        waiting = sa.select(dead_letters.c.reason, sa.func.count()).where(dead_letters.c.replayed_at.is_(None))
        rows = connection.execute(waiting.group_by(dead_letters.c.reason))
        found["dead_kept"] = {str(reason): int(n) for reason, n in rows}
    return Counts(
        received=found["received"],
        duplicates=found["duplicates"].get("", 0),
        series=connection.execute(sa.select(sa.func.count()).select_from(series)).scalar_one(),
        series_overflow=found["series_overflow"].get("", 0),
        dead_kept=found["dead_kept"],
        dead_total=found["dead_total"],
    )


def _labels(names: Names, key: Key) -> dict[str, Any]:
    return {
        "app": key.app,
        "cohort": names.cohort(key),
        "rubric": key.rubric,
        "rubric_version": key.rubric_version,
        "judge": key.judge,
    }


def _plus(a: Any, b: Any) -> Any:
    if a is None:
        return b
    return a if b is None else a + b


def _latest(a: float | None, b: float | None) -> float | None:
    return max((moment for moment in (a, b) if moment is not None), default=None)
