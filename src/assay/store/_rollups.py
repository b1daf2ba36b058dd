"""What stored outcomes add to the rollups, the totals and the counters, and how it is added."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from assay.records import Failure, Outcome, Score
from assay.store._defects import DefectAdditions
from assay.store._insert import insert_rows
from assay.store._rows import SCORE_BOUNDS
from assay.store._signals import SignalAdditions
from assay.store._tables import counters, exemplars, integer, number, outcome_counts, rollups, text, totals
from assay.windows import HOUR, MINUTE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

SUMS = (
    "n",
    "sum_w",
    "sum_w2",
    "sum_wy",
    "sum_w2y",
    "sum_w2y2",
    "passes",
    "sum_wp",
    "sum_w2p",
    "failed",
    "not_applicable",
    "recovered",
)
BUCKETS = tuple(f"bucket_{index}" for index in range(len(SCORE_BOUNDS)))
TOTALS = ("scored", "failed", "not_applicable", "recovered", "value_sum", *BUCKETS)
USAGE = ("prompt_tokens", "completion_tokens", "cost_usd")
#: Of one evaluation. Whatever claims more would, added up, overflow what a database can hold.
_MOST = {"prompt_tokens": 2**40, "completion_tokens": 2**40, "cost_usd": 1e9}
#: Where a total of tokens stops growing, far below its overflow.
_FULL = 2**62
_NO_SUMS: dict[str, float] = {name: 0.0 if name.startswith("sum_") else 0 for name in SUMS}
_NO_TOTALS: dict[str, Any] = {**dict.fromkeys(TOTALS, 0), "value_sum": 0.0, **dict.fromkeys(USAGE)}


class Additions:
    """Sums of one transaction, to be added to the stored ones. `moment` is when it commits, epoch seconds."""

    def __init__(self, moment: float) -> None:
        self._moment = moment
        self.signals = SignalAdditions()
        self.defects = DefectAdditions()
        self._minutes: dict[tuple[int, int, int], dict[str, float]] = defaultdict(_NO_SUMS.copy)
        self._totals: dict[tuple[int, int], dict[str, Any]] = {}
        self._reasons: dict[tuple[int, int, str, str], int] = defaultdict(int)
        self._exemplars: dict[tuple[int, int, int], dict[str, Any]] = {}
        self._counters: dict[tuple[str, str], int] = defaultdict(int)

    def count(self, name: str, label: str = "", n: int = 1) -> None:
        """Add to a plain counter."""
        if n:
            self._counters[name, label] += n

    def evaluation(
        self,
        outcome: Outcome,
        *,
        series_id: int,
        instrument_id: int,
        timestamp: datetime,
        weight: float,
        recovered: bool,
        trace_id: str | None,
    ) -> None:
        """Count one outcome that was really stored; `recovered` when it took the place of a stored failure."""
        epoch = timestamp.timestamp()
        minute = self._minutes[int(epoch // MINUTE) * MINUTE, series_id, instrument_id]
        total = self._total(series_id, instrument_id)
        minute["recovered"] += recovered
        total["recovered"] += recovered
        if isinstance(outcome, Score):
            self._score(outcome, minute, total, weight)
            if trace_id is not None:
                key = (series_id, instrument_id, bisect_left(SCORE_BOUNDS, outcome.value))
                if key not in self._exemplars or self._exemplars[key]["timestamp"] <= epoch:
                    shown = {"trace_id": trace_id, "value": float(outcome.value), "timestamp": epoch}
                    self._exemplars[key] = shown
        elif isinstance(outcome, Failure):
            minute["failed"] += 1
            total["failed"] += 1
            self._reasons[series_id, instrument_id, "failed", outcome.kind] += 1
        else:
            minute["not_applicable"] += 1
            total["not_applicable"] += 1
            self._reasons[series_id, instrument_id, "not_applicable", text(outcome.reason)] += 1
        for name in USAGE:
            used = usage_value(outcome, name)
            if used is not None:
                total[name] = used if total[name] is None else total[name] + used

    def _total(self, series_id: int, instrument_id: int) -> dict[str, Any]:
        key = (series_id, instrument_id)
        if key not in self._totals:
            self._totals[key] = {
                **_NO_TOTALS,
                "last_scored_at": None,
                "updated_at": self._moment,
            }
        return self._totals[key]

    def _score(self, score: Score, minute: dict[str, float], total: dict[str, Any], weight: float) -> None:
        value, square = score.value, weight * weight
        minute["n"] += 1
        minute["sum_w"] += weight
        minute["sum_w2"] += square
        minute["sum_wy"] += weight * value
        minute["sum_w2y"] += square * value
        minute["sum_w2y2"] += square * value * value
        if score.passed:
            minute["passes"] += 1
            minute["sum_wp"] += weight
            minute["sum_w2p"] += square
        total["scored"] += 1
        total["value_sum"] += value
        total[BUCKETS[bisect_left(SCORE_BOUNDS, value)]] += 1
        total["last_scored_at"] = self._moment

    def write(self, connection: sa.Connection) -> None:
        """Add everything, in an order that is the same in every process, so that none waits for another in a circle."""
        insert_rows(connection, rollups, self._rollup_rows(), _add)
        others: list[tuple[sa.Table, Mapping[Any, dict[str, Any]]]] = [
            (totals, self._totals),
            (outcome_counts, {key: {"n": n} for key, n in self._reasons.items()}),
            (exemplars, self._exemplars),
            (counters, {key: {"n": n} for key, n in self._counters.items()}),
        ]
        for table, rows in others:
            insert_rows(connection, table, [_row(table, key, rows[key]) for key in sorted(rows)], _add)
        self.signals.write(connection, minutes={start for start, *_ in self._minutes})
        self.defects.write(connection)

    def _rollup_rows(self) -> list[dict[str, Any]]:
        hours: dict[tuple[int, int, int], dict[str, float]] = defaultdict(_NO_SUMS.copy)
        for (start, series_id, instrument_id), sums in self._minutes.items():
            hour = hours[start // HOUR * HOUR, series_id, instrument_id]
            for name, value in sums.items():
                hour[name] += value
        return [
            _row(rollups, (resolution, *key), sums)
            for resolution, spans in ((MINUTE, self._minutes), (HOUR, hours))
            for key, sums in sorted(spans.items())
        ]


def usage_value(outcome: Outcome, name: str) -> Any:
    """A number of the outcome's usage that can be added up for ever, or None: what is beyond reason is unknown."""
    value = getattr(outcome.usage, name)
    known = number(value) if name == "cost_usd" else integer(value)
    return known if known is not None and 0 <= known <= _MOST[name] else None


def _row(table: sa.Table, key: Sequence[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip((column.name for column in table.primary_key), key, strict=True)), **values}


def _add(insert: Any) -> sa.Insert:
    """Add to what is there. Moments take the new value, and so do exemplars, unless it is older."""
    table, new = insert.table, insert.excluded
    changes: dict[str, Any] = {}
    for column in table.c:
        if column.primary_key:
            continue
        if table is exemplars or column.name in {"updated_at", "last_scored_at"}:
            changes[column.name] = sa.func.coalesce(new[column.name], column)
        elif column.nullable:
            total = column + new[column.name]
            if isinstance(column.type, sa.BigInteger):
                total = sa.case((column > _FULL, column), else_=total)
            changes[column.name] = sa.func.coalesce(total, new[column.name], column)
        else:
            changes[column.name] = column + new[column.name]
    only = new.timestamp >= exemplars.c.timestamp if table is exemplars else None
    added: sa.Insert = insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes, where=only)
    return added
