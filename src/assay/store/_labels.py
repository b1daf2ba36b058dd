"""Label sets and instruments as small numbers, the number of label sets bounded.

Ids never change once committed, so each process remembers them: a batch whose labels are known costs no statement, nor
does one that is over the cap.
"""

from __future__ import annotations

import hashlib
import json
import threading
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from assay.store._insert import insert_rows
from assay.store._purge import LOOKUP_CHUNK, chunks
from assay.store._tables import instruments, series, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from assay.records import Evaluation, Record
    from assay.store._database import Database

#: What takes the place of a label value once the cap is reached.
OTHER = "other"

#: Record fields that a declared label may name; any other label is a key of `record.cohort`.
RECORD_FIELDS = ("route", "model", "prompt_version")

_MAX_VALUE = 64
_MAX_APP = 100

#: Serialises the making of label sets across processes (PostgreSQL; SQLite has one writer anyway).
_SERIES_LOCK = 0x617373_6179_01

#: An app and one value for each declared label.
_Set = tuple[str, tuple[str, ...]]
#: rubric, rubric_version, rubric_hash, judge, judge_fingerprint
Instrument = tuple[str, str, str, str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record counts."""

    series_id: int
    #: the label of the app, bounded like the others
    app: str
    #: whether the cap sent it here
    overflow: bool


class Labels:
    """The ids of label sets and instruments. Thread-safe."""

    def __init__(self, names: Sequence[str], max_series: int) -> None:
        if max_series < 2:
            raise ValueError(f"max_series {max_series} is under 2: there must be room for one app and for the rest")
        self.names = tuple(sorted(set(names)))
        self._names_json = json.dumps(self.names)
        # The last place is for ("other", ...), some before it for (app, "other", ...): a flood of cohort values of one
        # app leaves room for the next app.
        self._room_for_apps = max_series - 1
        self._room_for_cohorts = max_series - max(2, max_series // 10)
        self._lock = threading.Lock()
        self._sets: dict[_Set, int] = {}
        self._instruments: dict[Instrument, int] = {}
        #: how many sets there are at least; sets are never removed
        self._count = 0

    def forget(self) -> None:
        """Know nothing: the database may have been made anew, with other ids."""
        with self._lock:
            self._sets.clear()
            self._instruments.clear()
            self._count = 0

    def set_of(self, record: Record) -> _Set:
        """The label set that the record has by itself, before the cap."""
        return _clean(record.app, _MAX_APP), tuple(_clean(_value(record, name), _MAX_VALUE) for name in self.names)

    def places(self, database: Database, records: Iterable[Record]) -> dict[str, Place]:
        """The place of each record, by record id. Makes label sets while there is room.

        Raises:
            StoreError: the database is away or refuses.
        """
        wanted = {record.record_id: self.set_of(record) for record in records}
        places: dict[_Set, Place] = {}
        missing = []
        with self._lock:
            for labels in sorted(set(wanted.values())):
                place = self._known(labels, self._sets, self._count)
                if place is None:
                    missing.append(labels)
                else:
                    places[labels] = place
        if missing:
            # A transaction of its own, so that whoever needs the lock next waits for this only, not for a whole commit.
            made, sets = database.write(lambda connection: self._make_all(connection, missing))
            places |= made
            with self._lock:
                self._sets |= sets
                self._count = max(self._count, len(sets))
        return {record_id: places[labels] for record_id, labels in wanted.items()}

    def _make_all(
        self, connection: sa.Connection, missing: Sequence[_Set]
    ) -> tuple[dict[_Set, Place], dict[_Set, int]]:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SERIES_LOCK)))
        sets = self._load_sets(connection)
        return {labels: self._make(connection, labels, sets) for labels in missing}, sets

    def _known(self, labels: _Set, sets: Mapping[_Set, int], count: int) -> Place | None:
        """The place of a set, as far as it can be told from the sets that are known."""
        if labels in sets:
            return Place(sets[labels], labels[0], overflow=False)
        per_app, rest = self._fallbacks(labels)
        if labels != per_app:
            # From this count on nobody makes such a set, and all that were made are known.
            if count < self._room_for_cohorts:
                return None
            if per_app in sets:
                return Place(sets[per_app], per_app[0], overflow=True)
        if count < self._room_for_apps or rest not in sets:
            return None
        return Place(sets[rest], rest[0], overflow=True)

    def _make(self, connection: sa.Connection, labels: _Set, sets: dict[_Set, int]) -> Place:
        known = self._known(labels, sets, len(sets))
        if known is not None:
            return known
        per_app, rest = self._fallbacks(labels)
        if labels != per_app and len(sets) < self._room_for_cohorts:
            chosen = labels
        elif len(sets) < self._room_for_apps:
            chosen = per_app
        else:
            chosen = rest
        sets[chosen] = self._insert_set(connection, chosen)
        return Place(sets[chosen], chosen[0], overflow=chosen != labels)

    def _fallbacks(self, labels: _Set) -> tuple[_Set, _Set]:
        others = (OTHER,) * len(self.names)
        return (labels[0], others), (OTHER, others)

    def _load_sets(self, connection: sa.Connection) -> dict[_Set, int]:
        rows = connection.execute(
            sa.select(series.c.series_id, series.c.app, series.c.cohort).where(series.c.names == self._names_json)
        )
        return {(row.app, tuple(row.cohort[name] for name in self.names)): row.series_id for row in rows}

    def _insert_set(self, connection: sa.Connection, labels: _Set) -> int:
        app, values = labels
        cohort = dict(zip(self.names, values, strict=True))
        row = {"digest": _digest([app, cohort]), "names": self._names_json, "app": app, "cohort": cohort}
        series_id: int = connection.execute(series.insert().returning(series.c.series_id), row).scalar_one()
        return series_id

    def instruments(self, database: Database, evaluations: Iterable[Evaluation]) -> dict[Instrument, int]:
        """The id of each instrument of the evaluations.

        Raises:
            StoreError: the database is away or refuses.
        """
        wanted = {instrument_of(evaluation) for evaluation in evaluations}
        with self._lock:
            found = {key: self._instruments[key] for key in wanted if key in self._instruments}
        missing = sorted(wanted - found.keys())
        if missing:
            made = database.write(lambda connection: _make_instruments(connection, missing))
            found |= made
            with self._lock:
                self._instruments |= made
        return found


def _make_instruments(connection: sa.Connection, missing: Sequence[Instrument]) -> dict[Instrument, int]:
    rows = [dict(zip(_INSTRUMENT_COLUMNS, key, strict=True), digest=_digest(key)) for key in missing]
    insert_rows(connection, instruments, rows, _do_nothing)
    columns = [instruments.c[name] for name in ("instrument_id", *_INSTRUMENT_COLUMNS)]
    found: dict[Instrument, int] = {}
    for chunk in chunks([row["digest"] for row in rows], LOOKUP_CHUNK):
        for row in connection.execute(sa.select(*columns).where(instruments.c.digest.in_(chunk))):
            found[row[1], row[2], row[3], row[4], row[5]] = row[0]
    return found


_INSTRUMENT_COLUMNS = ("rubric", "rubric_version", "rubric_hash", "judge", "judge_fingerprint")


def instrument_of(evaluation: Evaluation) -> Instrument:
    """What measured this evaluation."""
    return (
        text(evaluation.rubric),
        text(evaluation.rubric_version),
        text(evaluation.rubric_hash),
        text(evaluation.judge),
        text(evaluation.judge_fingerprint),
    )


def _value(record: Record, name: str) -> str:
    value = getattr(record, name) if name in RECORD_FIELDS else None
    return record.cohort.get(name, "") if value is None else value


def _clean(value: str, length: int) -> str:
    """A label value: cut, and control characters (of any script) made visible."""
    value = text(value[:length])
    if value.isprintable():
        return value
    return "".join("\ufffd" if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"} else char for char in value)


def _do_nothing(insert: Any) -> sa.Insert:
    ignoring: sa.Insert = insert.on_conflict_do_nothing()
    return ignoring


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
