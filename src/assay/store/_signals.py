"""Sums of signals, of what passing interactions cost, and of the input's distribution. Never a record, never a text."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from assay.records import Score
from assay.signals import (
    COST_SUMS,
    SIGNAL_SUMS,
    CostSums,
    SignalSums,
    cost_of,
    cost_terms,
    shown_by,
    signal_terms,
)
from assay.store._insert import insert_rows, insert_values
from assay.store._tables import LEAST_PROBABILITY, _count, _key, _sum, metadata, rollups, utc
from assay.windows import DAY, HOUR, MINUTE, SUM_FIELDS, cover

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence
    from datetime import datetime

    from assay.records import Outcome, Record
    from assay.signals import Signals
    from assay.store._reads import Names
    from assay.windows import Span

#: Sums of one minute or hour (as in `rollups`) for each label set, signal and word ("" where the signal has no words).
signal_rollups = sa.Table(
    "signal_rollups",
    metadata,
    _key("resolution_seconds"),
    _key("start", kind=sa.BigInteger),
    _key("series_id", "series.series_id"),
    _key("signal", kind=sa.Text),
    _key("word", kind=sa.Text),
    *(_count(name) if name in {"n", "n_x"} else _sum(name) for name in SIGNAL_SUMS),
)

#: What the scored records cost, and whether they passed.
cost_rollups = sa.Table(
    "cost_rollups",
    metadata,
    _key("resolution_seconds"),
    _key("start", kind=sa.BigInteger),
    _key("series_id", "series.series_id"),
    _key("instrument_id", "instruments.instrument_id"),
    *(_count(name) if name in {"n", "passes"} else _sum(name) for name in COST_SUMS),
)

#: Another number with every commit that adds to a minute or an hour of `rollups` or the two above: who has read one
#: need not read it again while its version stands. Drawn by lot, so that no restored database has one twice.
signal_versions = sa.Table(
    "signal_versions",
    metadata,
    _key("resolution_seconds"),
    _key("start", kind=sa.BigInteger),
    _count("version"),
)

#: How many records fell into each bin of each feature of the input, by the hour and the day (UTC), of a whole app.
input_bins = sa.Table(
    "input_bins",
    metadata,
    _key("resolution_seconds"),
    _key("start", kind=sa.BigInteger),
    _key("app", kind=sa.Text),
    _key("feature", kind=sa.Text),
    _key("bin"),
    _count("n"),
    _sum("sum_w"),
    _sum("sum_w2"),
)

_Sums = TypeVar("_Sums", SignalSums, CostSums)
#: The rest of a row's key: the start first, without the resolution.
_Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRollup:
    """Sums of one label set and signal over a window; see `assay.signals`."""

    app: str
    #: exactly the declared cohort labels, as in `Rollup`
    cohort: Mapping[str, str]
    signal: str
    #: "" where the signal has no words
    word: str
    sums: SignalSums


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRollup:
    """What interactions cost and whether a rubric passed them, over a window, of one label set."""

    app: str
    cohort: Mapping[str, str]
    rubric: str
    sums: CostSums


#: A minute or an hour: its resolution and its start, in seconds.
Slot = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSums:
    """The sums of one minute or hour, as they are stored. Two label sets may have the same labels, see `Names`."""

    #: another one whenever the sums are
    version: int
    #: series, instrument and `windows.SUM_FIELDS` of each row
    scores: Sequence[tuple[Any, ...]]
    #: series, signal, word and `SIGNAL_SUMS` of each row
    signals: Sequence[tuple[Any, ...]]
    #: series, instrument and `COST_SUMS` of each row
    costs: Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotReading:
    """Minutes and hours as of one moment."""

    #: version of each slot asked for that has sums
    versions: Mapping[Slot, int]
    #: those whose version was not known
    fresh: Mapping[Slot, SlotSums]
    #: app and cohort of each series in `fresh`, the declared labels in their order
    series: Mapping[int, tuple[str, Mapping[str, str]]]
    #: rubric, its version, judge, rubric hash and judge fingerprint of each instrument in `fresh`
    instruments: Mapping[int, tuple[str, str, str, str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBin:
    """Records of an app whose input fell into one bin of one feature, in [start, start + a day) or in a window."""

    app: str
    feature: str
    bin: int
    #: epoch seconds
    start: int
    n: int
    sum_w: float
    sum_w2: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What one record adds once it turns out to be new. Made before the transaction, which others wait for."""

    timestamp: datetime
    weight: float
    signals: Signals
    inputs: Mapping[str, int]
    injection_signs: frozenset[str]


def read(record: Record) -> Reading:
    """What the record shows, where and with which weight."""
    weight = 1.0 / max(record.sampling.probability, LEAST_PROBABILITY)
    return Reading(utc(record.timestamp), weight, *shown_by(record))


class SignalAdditions:
    """What one transaction adds. Like `Additions`: only what was really inserted, in one order for all processes."""

    def __init__(self) -> None:
        # Lists, by the minute and by the hour: an object for each term would cost more than all the rest.
        self._signals: dict[_Key, list[float]] = {}
        self._costs: dict[_Key, list[float]] = {}
        self._bins: dict[_Key, list[float]] = {}

    def record(self, reading: Reading, *, series_id: int, app: str) -> None:
        """Add a record that was not stored before; `app` as the label set has it."""
        epoch, weight = reading.timestamp.timestamp(), reading.weight
        minute, hour = (int(epoch // size) * size for size in (MINUTE, HOUR))
        for signal, shown in reading.signals.items():
            word, x = (shown, 1.0) if isinstance(shown, str) else ("", float(shown))
            _add_terms(self._signals, (minute, series_id, signal, word), signal_terms(weight, x))
        for feature, number in reading.inputs.items():
            _add_terms(self._bins, (hour, app, feature, number), (1, weight, weight * weight))

    def outcome(
        self,
        outcome: Outcome,
        record: Record,
        *,
        series_id: int,
        instrument_id: int,
        timestamp: datetime,
        weight: float,
    ) -> None:
        """Add an evaluation that was really stored, if it is a score and the interaction's cost is known."""
        cost = cost_of(record)
        if cost is not None and isinstance(outcome, Score):
            minute = int(timestamp.timestamp() // MINUTE) * MINUTE
            terms = cost_terms(weight, cost, passed=outcome.passed)
            _add_terms(self._costs, (minute, series_id, instrument_id), terms)

    def write(self, connection: sa.Connection, minutes: Collection[int]) -> None:
        """Add all of it to what is stored; `minutes` are those whose sums of scores were added to."""
        for table, sums, sizes in (
            (signal_rollups, self._signals, (MINUTE, HOUR)),
            (cost_rollups, self._costs, (MINUTE, HOUR)),
            (input_bins, self._bins, (HOUR, DAY)),
        ):
            finest, coarse = sizes
            spans: dict[_Key, list[float]] = {}
            for (start, *rest), terms in sums.items():
                _add_terms(spans, (start // coarse * coarse, *rest), terms)
            rows = [(finest, *key, *sums[key]) for key in sorted(sums)]
            rows += [(coarse, *key, *spans[key]) for key in sorted(spans)]
            insert_values(connection, table, tuple(table.c.keys()), rows, _add)
        added = {*minutes, *(start for start, *_ in self._signals)}
        version = secrets.randbits(63)
        versions = [
            {"resolution_seconds": size, "start": start, "version": version}
            for size in (MINUTE, HOUR)
            for start in sorted({minute // size * size for minute in added})
        ]
        insert_rows(connection, signal_versions, versions, _replace)


def read_signals(connection: sa.Connection, names: Names, start: int, end: int) -> list[SignalRollup]:
    """See `Store.signals`."""
    keys = ("series_id", "signal", "word")
    merged: dict[tuple[Any, ...], SignalSums] = {}
    rows = _window(connection, signal_rollups, keys, SIGNAL_SUMS, start, end)
    series = names.series(connection, {row.series_id for row in rows})
    for row in rows:
        sums = SignalSums(**{name: getattr(row, name) for name in SIGNAL_SUMS})
        _add_to(merged, (*series[row.series_id], row.signal, row.word), sums)
    return [
        SignalRollup(app=app, cohort=names.labels(cohort), signal=signal, word=word, sums=sums)
        for (app, cohort, signal, word), sums in sorted(merged.items())
    ]


def read_costs(connection: sa.Connection, names: Names, start: int, end: int) -> list[CostRollup]:
    """See `Store.costs`."""
    merged: dict[tuple[Any, ...], CostSums] = {}
    rows = _window(connection, cost_rollups, ("series_id", "instrument_id"), COST_SUMS, start, end)
    keys = names.keys(connection, {(row.series_id, row.instrument_id) for row in rows})
    for row in rows:
        key = keys[row.series_id, row.instrument_id]
        sums = CostSums(**{name: getattr(row, name) for name in COST_SUMS})
        _add_to(merged, (key.app, key.cohort, key.rubric), sums)
    return [
        CostRollup(app=app, cohort=names.labels(cohort), rubric=rubric, sums=sums)
        for (app, cohort, rubric), sums in sorted(merged.items())
    ]


def read_slots(
    connection: sa.Connection, names: Names, spans: Sequence[Span], known: Mapping[Slot, int]
) -> SlotReading:
    """See `Store.signal_slots`."""
    versions: dict[Slot, int] = {}
    for span in spans:
        table = signal_versions.c
        found = sa.select(table.start, table.version).where(
            table.resolution_seconds == span.resolution_seconds, table.start >= span.start, table.start < span.end
        )
        versions.update(((span.resolution_seconds, start), version) for start, version in connection.execute(found))
    wanted = [slot for slot, version in versions.items() if known.get(slot) != version]
    rows = {table: _slot_rows(connection, table, wanted) for table in (rollups, signal_rollups, cost_rollups)}
    fresh = {
        slot: SlotSums(
            version=versions[slot],
            scores=rows[rollups].get(slot, ()),
            signals=rows[signal_rollups].get(slot, ()),
            costs=rows[cost_rollups].get(slot, ()),
        )
        for slot in wanted
    }
    series = names.series(connection, {row[0] for found in rows.values() for some in found.values() for row in some})
    pairs = {(row[0], row[1]) for table in (rollups, cost_rollups) for some in rows[table].values() for row in some}
    return SlotReading(
        versions=versions,
        fresh=fresh,
        series={number: (app, names.labels(cohort)) for number, (app, cohort) in series.items()},
        instruments={instrument: key[2:] for (_, instrument), key in names.keys(connection, pairs).items()},
    )


def _slot_rows(connection: sa.Connection, table: sa.Table, slots: Sequence[Slot]) -> dict[Slot, list[tuple[Any, ...]]]:
    """The rows of each of these minutes and hours that has some, without its own two columns."""
    found: dict[Slot, list[tuple[Any, ...]]] = {}
    names = [*(column.name for column in table.primary_key)][1:]
    names += SUM_FIELDS if table is rollups else [column.name for column in table.c if not column.primary_key]
    for size in (MINUTE, HOUR):
        starts = [start for resolution, start in slots if resolution == size]
        for first in range(0, len(starts), _MOST_STARTS):
            rows = connection.execute(
                sa.select(*(table.c[name] for name in names)).where(
                    table.c.resolution_seconds == size, table.c.start.in_(starts[first : first + _MOST_STARTS])
                )
            )
            for start, *row in rows:
                found.setdefault((size, start), []).append(tuple(row))
    return found


#: Parameters of one statement, far below what a database takes.
_MOST_STARTS = 1_000


def read_inputs(connection: sa.Connection, start: int, end: int, *, by_day: bool) -> list[InputBin]:
    """See `Store.inputs`."""
    table, sums = input_bins, ("n", "sum_w", "sum_w2")
    keys = [table.c.app, table.c.feature, table.c.bin]
    first = table.c.start if by_day else sa.cast(sa.literal(start), sa.BigInteger)
    statement = (
        sa.select(*keys, first.label("start"), *_added(table, sums))
        .where(table.c.resolution_seconds == (DAY if by_day else HOUR), table.c.start >= start, table.c.start < end)
        .group_by(*keys, *([table.c.start] if by_day else []))
        .order_by(*keys, *([table.c.start] if by_day else []))
    )
    return [InputBin(**row) for row in connection.execute(statement).mappings()]


def _window(
    connection: sa.Connection, table: sa.Table, keys: Sequence[str], sums: Sequence[str], start: int, end: int
) -> Sequence[sa.Row[Any]]:
    """The sums of [start, end) by `keys`: one range of the primary key for each span."""
    spans = cover(start, end)
    if not spans:
        return []
    parts = sa.union_all(
        *(
            sa.select(*(table.c[name] for name in (*keys, *sums))).where(
                table.c.resolution_seconds == span.resolution_seconds,
                table.c.start >= span.start,
                table.c.start < span.end,
            )
            for span in spans
        )
    ).subquery()
    by = [parts.c[name] for name in keys]
    added = (sa.cast(sa.func.sum(parts.c[name]), table.c[name].type).label(name) for name in sums)
    return connection.execute(sa.select(*by, *added).group_by(*by)).all()


def _added(table: sa.Table, names: Sequence[str]) -> list[sa.Label[Any]]:
    # PostgreSQL adds up integers as numeric: cast back.
    return [sa.cast(sa.func.sum(table.c[name]), table.c[name].type).label(name) for name in names]


def _add_terms(known: dict[_Key, list[float]], key: _Key, terms: Sequence[float]) -> None:
    sums = known.get(key)
    if sums is None:
        known[key] = list(terms)
    else:
        for index, term in enumerate(terms):
            sums[index] += term


def _add_to(known: dict[Any, _Sums], key: Hashable, sums: _Sums) -> None:
    before = known.get(key)
    known[key] = sums if before is None else before + sums


def _replace(insert: Any) -> sa.Insert:
    replaced: sa.Insert = insert.on_conflict_do_update(
        index_elements=list(signal_versions.primary_key), set_={"version": insert.excluded.version}
    )
    return replaced


def _add(insert: Any) -> sa.Insert:
    table = insert.table
    changes = {column.name: column + insert.excluded[column.name] for column in table.c if not column.primary_key}
    added: sa.Insert = insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes)
    return added
