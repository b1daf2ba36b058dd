"""The sums of every window, and the series of signals, of what interactions cost, and of the input's shift."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

from assay.metrics._estimates import cost_columns, mean_columns, share_columns
from assay.metrics._exposition import label
from assay.shift import current_hours, reference_days, shifts
from assay.signals import ALWAYS, COST_SUMS, NUMBERS, SIGNAL_SUMS, WORDS, YES_NO
from assay.windows import DAY, HOUR, MINUTE, SUM_FIELDS, Span, Sums, cover, window_bounds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date

    from numpy.typing import NDArray

    from assay.corrections import Instrument
    from assay.metrics._estimates import Column, Estimates
    from assay.metrics._families import Families
    from assay.shift import Shift
    from assay.store import Slot, SlotReading, Store

#: app and the cohort labels; with the rubric where it is about passing
_Key = tuple[str, ...]

#: Sums of a window by app, rubric, rubric version, judge and cohort labels, and by what measured.
Scores = dict[_Key, dict["Instrument", Sums]]

#: The input is compared by whole hours and days, so nothing is lost by not doing it at each scrape.
_REMEMBERED_SECONDS = 300.0


class InputShifts:
    """The latest comparison of the input with its reference week, made anew every five minutes. Thread-safe."""

    def __init__(self, reference_week: date | None = None) -> None:
        self._first = reference_week
        self._lock = threading.Lock()
        self._known: tuple[float, Mapping[tuple[str, str], Shift]] | None = None

    def read(self, store: Store, now: float) -> Mapping[tuple[str, str], Shift]:
        """By app and feature. Raises StoreError when the database is away and nothing recent is known."""
        with self._lock:
            if self._known is None or not 0 <= now - self._known[0] < _REMEMBERED_SECONDS:
                current = store.inputs(*current_hours(now))
                reference = store.inputs(*reference_days(now, self._first), by_day=True)
                self._known = (now, shifts(current, reference))
            return self._known[1]

    def add(self, families: Families, store: Store, now: float) -> None:
        """Add its gauges. `now` is in epoch seconds. Raises StoreError like `read`."""
        for (app, feature), seen in self.read(store, now).items():
            where = (label(app), feature)
            families.most("assay_input_shift_p_value", where, seen.p_value)
            families.most("assay_input_shift_psi", where, seen.psi)
            families.most("assay_input_shift_psi_critical", where, seen.psi_critical)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one minute or hour adds: sums (a row for each, a column for each key) and the numbers of the keys."""

    keys: NDArray[np.int64]
    sums: NDArray[np.float64]


class _Sums:
    """Sums of the same kind by key; keys are numbered as they come."""

    def __init__(self, width: int) -> None:
        self._width = width
        self.numbers: dict[Any, int] = {}

    def number(self, key: Any) -> int:
        """The number of a key, a new one if need be."""
        return self.numbers.setdefault(key, len(self.numbers))

    def part(self, keys: Iterable[int], rows: Sequence[Sequence[float]]) -> _Part:
        """Of rows of sums, and the key of each."""
        sums = np.array(rows, dtype=np.float64).reshape(len(rows), self._width)
        return _Part(np.fromiter(keys, dtype=np.int64, count=len(rows)), np.ascontiguousarray(sums.T))

    def total(self, parts: Sequence[_Part]) -> list[Column]:
        """Each of the sums over the parts, an element for each key."""
        if not parts:
            return [np.zeros(len(self.numbers)) for _ in range(self._width)]
        keys = np.concatenate([part.keys for part in parts])
        sums = np.concatenate([part.sums for part in parts], axis=1)
        return [_added(keys, row, len(self.numbers)) for row in sums]


@dataclass(frozen=True, slots=True)
class _Known:
    version: int
    scores: _Part
    signals: _Part
    costs: _Part


class WindowSums:
    """The sums of scores, signals and costs of every window; a minute or hour is read again when it was added to.

    What is published comes from one read of the store: which minutes and hours are as they were is asked each time, and
    nothing is said when the store is away. Thread-safe.
    """

    def __init__(self, cohort_labels: Sequence[str]) -> None:
        self._cohort_labels = tuple(cohort_labels)
        self._lock = threading.Lock()
        self._known: dict[Slot, _Known] = {}
        self._scores = _Sums(len(SUM_FIELDS))
        self._signals = _Signals()
        self._costs = _Sums(len(COST_SUMS))

    def add(self, families: Families, store: Store, windows: Mapping[str, int], now: float) -> dict[str, Scores]:
        """Add the gauges of signals and costs of every window (seconds by name), and return its sums of scores.

        Raises:
            StoreError: the store is away.
        """
        scores: dict[str, Scores] = {}
        spans = {text: cover(*window_bounds(now, seconds)) for text, seconds in windows.items()}
        with self._lock:
            wanted = [span for some in spans.values() for span in some]
            wanted += [_ahead(window_bounds(now, seconds)[0]) for seconds in windows.values() if seconds <= DAY]
            distinct = list(dict.fromkeys(wanted))
            reading = store.signal_slots(distinct, {slot: known.version for slot, known in self._known.items()})
            kept = {slot: self._known[slot] for slot in reading.versions if slot not in reading.fresh}
            # In order, so that every exporter adds up to the same digits.
            self._known = dict(sorted((kept | self._read(reading)).items()))
            for text, some in spans.items():
                inside = [
                    known
                    for (size, start), known in self._known.items()
                    if any(span.resolution_seconds == size and span.start <= start < span.end for span in some)
                ]
                scores[text] = self._scores_of([known.scores for known in inside])
                self._signals.add(families, [known.signals for known in inside], text)
                self._add_costs(families, [known.costs for known in inside], text)
        return scores

    def _scores_of(self, parts: Sequence[_Part]) -> Scores:
        there = np.zeros(len(self._scores.numbers), dtype=bool)
        for part in parts:
            there[part.keys] = True
        found: Scores = {}
        columns = [column.tolist() for column in self._scores.total(parts)]
        for (place, instrument), has, sums in zip(self._scores.numbers, there, zip(*columns, strict=True), strict=True):
            if has:
                named = dict(zip(SUM_FIELDS, sums, strict=True))
                named |= {name: int(named[name]) for name in ("n", "passes")}
                found.setdefault(place, {})[instrument] = Sums(**named)
        return found

    def _read(self, reading: SlotReading) -> dict[Slot, _Known]:
        places = {
            series: tuple(label(value) for value in (app, *(cohort.get(name, "") for name in self._cohort_labels)))
            for series, (app, cohort) in reading.series.items()
        }
        named = {number: tuple(map(label, names[:3])) for number, names in reading.instruments.items()}
        # A label set and signal stand in many rows: what they are called is made once.
        signals: dict[tuple[Any, ...], int] = {}
        costs: dict[tuple[Any, ...], int] = {}
        scores: dict[tuple[Any, ...], int] = {}
        for slot in reading.fresh.values():
            for series, signal, word, *_ in slot.signals:
                if (series, signal, word) not in signals:
                    signals[series, signal, word] = self._signals.number((places[series], signal, word))
            for series, instrument, *_ in slot.costs:
                if (series, instrument) not in costs:
                    app, *cohort = places[series]
                    costs[series, instrument] = self._costs.number((app, named[instrument][0], *cohort))
            for series, instrument, *_ in slot.scores:
                if (series, instrument) not in scores:
                    app, *cohort = places[series]
                    measured_by = reading.instruments[instrument][3:]
                    key = ((app, *named[instrument], *cohort), measured_by)
                    scores[series, instrument] = self._scores.number(key)
        return {
            slot: _Known(
                sums.version,
                self._scores.part((scores[row[:2]] for row in sums.scores), [row[2:] for row in sums.scores]),
                self._signals.part((signals[row[:3]] for row in sums.signals), [row[3:] for row in sums.signals]),
                self._costs.part((costs[row[:2]] for row in sums.costs), [row[2:] for row in sums.costs]),
            )
            for slot, sums in reading.fresh.items()
        }

    def _add_costs(self, families: Families, parts: Sequence[_Part], window: str) -> None:
        places = [(*place, window) for place in self._costs.numbers]
        _put(families, "assay_cost_per_passed_interaction_usd", places, cost_columns(self._costs.total(parts)))


def _ahead(start: int) -> Span:
    """Minutes that a window which begins at `start` is going to begin with, once it cuts the next whole hour.

    As many of that hour as have passed of this one, so that no scrape has to read an hour's minutes at once. Windows
    of more than a day begin on an hour.
    """
    hour = -(-start // HOUR) * HOUR
    return Span(MINUTE, hour, hour + (start % HOUR or HOUR))


class _Signals(_Sums):
    """Sums of signals by place (app and cohort labels), signal and word, and which of them are what."""

    def __init__(self) -> None:
        super().__init__(len(SIGNAL_SUMS))
        # Keys that have a share, the whole that each is a part of, and those that have a mean.
        self._shares: list[int] = []
        self._wholes: list[int] = []
        self._always: list[bool] = []
        self._means: list[int] = []
        self._groups: dict[tuple[_Key, str], int] = {}
        #: labels without the window
        self._share_labels: list[_Key] = []
        self._mean_labels: list[_Key] = []
        self._is_cost: list[bool] = []

    def number(self, key: Any) -> int:
        """The number of (place, signal, word); what has a share or a mean is noted when it is new."""
        known = self.numbers.get(key)
        if known is not None:
            return known
        number = super().number(key)
        place, signal, word = key
        if signal in NUMBERS and not word:
            self._means.append(number)
            self._is_cost.append(signal == "cost_usd")
            self._mean_labels.append(place if signal == "cost_usd" else (*place, signal))
        elif (signal in YES_NO and not word) or word in WORDS.get(signal, ()):
            always = word in ALWAYS.get(signal, ())
            self._shares.append(number)
            self._wholes.append(self._groups.setdefault((place, signal), len(self._groups)))
            self._always.append(always)
            self._share_labels.append((*place, f"{signal}_{word}" if word else signal))
            for other in ALWAYS.get(signal, ()):
                self.number((place, signal, other))
        return number

    def add(self, families: Families, parts: Sequence[_Part], window: str) -> None:
        """Add the gauges of one window."""
        totals = self.total(parts)
        self._add_shares(families, totals, window)
        estimates = mean_columns([column[self._means] for column in totals])
        is_cost = np.array(self._is_cost, dtype=bool)
        effective = [(*place, "cost_usd", window) if cost else (*place, window) for place, cost in self._named()]
        _column(families, "assay_signal_effective_records", effective, estimates.n_effective)
        labels = [(*place, window) for place in self._mean_labels]
        for name, chosen in (("assay_cost_per_interaction_usd", is_cost), ("assay_signal_mean", ~is_cost)):
            _put(families, name, list(compress(labels, chosen)), estimates, chosen)

    def _named(self) -> Iterable[tuple[_Key, bool]]:
        return zip(self._mean_labels, self._is_cost, strict=True)

    def _add_shares(self, families: Families, totals: Sequence[Column], window: str) -> None:
        n, n_x, sum_w, sum_w2, sum_wx, _, sum_w2x, _ = (column[self._shares] for column in totals)
        groups = np.array(self._wholes, dtype=np.int64)
        wholes = [_added(groups, part, len(self._groups))[groups] for part in (n, sum_w, sum_w2)]
        # A word that nobody used has no share, unless its absence is news.
        wholes[0] = np.where((n > 0) | np.array(self._always, dtype=bool), wholes[0], 0.0)
        estimates = share_columns([*wholes, n_x, sum_wx, sum_w2x])
        labels = [(*place, window) for place in self._share_labels]
        _put(families, "assay_signal_share", labels, estimates)
        _column(families, "assay_signal_effective_records", labels, estimates.n_effective)


def _added(numbers: NDArray[np.int64], column: Column, n: int) -> Column:
    """Sums of the elements that have the same number, by number; there are `n` numbers."""
    return np.asarray(np.bincount(numbers, weights=column, minlength=n), dtype=np.float64)


def _put(
    families: Families,
    name: str,
    labels: Sequence[_Key],
    seen: Estimates,
    chosen: NDArray[np.bool_] | slice = slice(None),
) -> None:
    for end, column in (("", seen.value), ("_ci_lower", seen.lower), ("_ci_upper", seen.upper)):
        _column(families, f"{name}{end}", labels, column[chosen])


def _column(families: Families, name: str, labels: Sequence[_Key], column: Column) -> None:
    """Add what there is of a column: NaN says that there is none."""
    there = ~np.isnan(column)
    families.column(name, compress(labels, there), column[there].tolist())
