"""What is wrong with answers that did not pass: how often, of which records, and what people say of it.

An evaluation has the class that its judge named (`defect`) and maybe the one that a person set (`person_defect`), which
wins. The counts only grow: a class that a person puts in the place of another is counted, and the other as moved.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from assay.defects import CLASSES, Defect, defect_named
from assay.errors import ConfigError
from assay.store._insert import insert_rows
from assay.store._suspects import signs_in
from assay.store._tables import _count, _key, _sum, evaluations, instruments, metadata, records, text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, MutableMapping
    from datetime import datetime
    from uuid import UUID

    from assay.store._database import Database
    from assay.store._reads import Key, Names

#: Scores that did not pass, by the class in force when they were counted.
defect_counts = sa.Table(
    "defect_counts",
    metadata,
    _key("series_id", "series.series_id"),
    _key("instrument_id", "instruments.instrument_id"),
    _key("defect", kind=sa.Text),
    _count("n"),
    _sum("sum_w"),
    _count("moved"),
    _sum("moved_sum_w"),
)

#: Keys in one question: a database takes only so many parameters.
_LOOKUP = 5_000

#: What a database takes for a limit.
_MOST_ROWS = 2**31 - 1

_COUNTS = ("n", "sum_w", "moved", "moved_sum_w")

#: The class that counts: a person's, else the judge's.
_in_force = sa.func.coalesce(evaluations.c.person_defect, evaluations.c.defect)

#: record id and evaluation id, as stored
_Key = tuple[str, "UUID"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DefectCount:
    """Scores of one label set and instrument that did not pass for one reason."""

    app: str
    cohort: Mapping[str, str]
    rubric: str
    rubric_version: str
    judge: str
    defect: str
    n: int
    #: interactions that they stand for: sum of 1 / sampling probability
    sum_w: float
    #: of `n`, those that a person put into another class since, where they are counted again
    moved: int = 0
    moved_sum_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DefectFinding:
    """A score that did not pass, and why."""

    record_id: str
    app: str
    timestamp: datetime
    trace_id: str | None
    rubric: str
    rubric_version: str
    judge: str
    #: score in [0, 1]
    value: float
    explanation: str
    #: the class in force
    defect: str
    #: what the judge named; None where it was not asked
    judge_defect: str | None
    #: whether a person set it
    by_person: bool
    #: of a prompt injection in the record's texts; empty for none, None where nobody looked
    injection_signs: tuple[str, ...] | None


class DefectAdditions:
    """What one transaction adds to the counts."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int, str], list[float]] = defaultdict(lambda: [0, 0.0, 0, 0.0])

    def score(self, row: Mapping[str, Any]) -> None:
        """Count an evaluation that was really stored; nothing unless it has a class."""
        defect = row["person_defect"] or row["defect"]
        if defect is not None:
            counts = self._counts[row["series_id"], row["instrument_id"], defect]
            counts[0] += 1
            counts[1] += row["weight"]

    def move(self, row: Mapping[str, Any], old: str | None, new: str) -> None:
        """A stored evaluation got another class."""
        self.score({**row, "person_defect": new})
        if old is not None:
            counts = self._counts[row["series_id"], row["instrument_id"], old]
            counts[2] += 1
            counts[3] += row["weight"]

    def write(self, connection: sa.Connection) -> None:
        """Add everything, in an order that is the same in every process."""
        rows = [
            {
                **dict(zip(("series_id", "instrument_id", "defect"), key, strict=True)),
                **dict(zip(_COUNTS, self._counts[key], strict=True)),
            }
            for key in sorted(self._counts)
        ]
        insert_rows(connection, defect_counts, rows, _add)


def _add(insert: Any) -> sa.Insert:
    added: sa.Insert = insert.on_conflict_do_update(
        index_elements=list(defect_counts.primary_key),
        set_={name: defect_counts.c[name] + insert.excluded[name] for name in _COUNTS},
    )
    return added


def stored_defect(defect: str | None, *, passed: bool) -> Defect | None:
    """The class as it is stored: of a closed set, and only where something did not pass."""
    return None if passed or defect is None else defect_named(defect)


def inherit(
    connection: sa.Connection, rows: Mapping[_Key, MutableMapping[str, Any]], new_records: Collection[str]
) -> None:
    """Give evaluations that are about to be stored the class that a person has set for their record and rubric."""
    failing = {key: row for key, row in rows.items() if row["passed"] is False and key[0] not in new_records}
    if not failing:
        return
    said: dict[tuple[str, str], str] = {}
    columns = (evaluations.c.record_id, instruments.c.rubric, evaluations.c.person_defect)
    ids = sorted({record_id for record_id, _ in failing})
    for first in range(0, len(ids), _LOOKUP):
        statement = (
            sa.select(*columns)
            .join(instruments, instruments.c.instrument_id == evaluations.c.instrument_id)
            .where(evaluations.c.record_id.in_(ids[first : first + _LOOKUP]), evaluations.c.person_defect.is_not(None))
        )
        said.update(((record_id, rubric), defect) for record_id, rubric, defect in connection.execute(statement))
    if not said:
        return
    numbers = {row["instrument_id"] for row in failing.values()}
    named = sa.select(instruments.c.instrument_id, instruments.c.rubric).where(instruments.c.instrument_id.in_(numbers))
    rubrics: dict[int, str] = {row.instrument_id: row.rubric for row in connection.execute(named)}
    for (record_id, _), row in failing.items():
        row["person_defect"] = said.get((record_id, rubrics[row["instrument_id"]]))


def set_defect(database: Database, name: str, rubric: str, defect: str) -> int:
    """See `Store.set_defect`."""
    if defect not in CLASSES:
        raise ConfigError(f"no defect is called {defect!r}: there are {', '.join(CLASSES)}")

    def work(connection: sa.Connection) -> int:
        record_id = _record_called(connection, name)
        rows = _failing(connection, record_id, rubric)
        additions = DefectAdditions()
        changed = 0
        for row in rows:
            if row["person_defect"] == defect:
                continue
            changed += 1
            in_force = row["person_defect"] or row["defect"]
            if in_force != defect:
                additions.move(row, in_force, defect)
        connection.execute(
            sa.update(evaluations)
            .where(
                evaluations.c.record_id == record_id,
                evaluations.c.evaluation_id.in_([row["evaluation_id"] for row in rows]),
            )
            .values(person_defect=defect)
        )
        additions.write(connection)
        return changed

    return database.write(work)


def _record_called(connection: sa.Connection, name: str) -> str:
    called = [column == text(name) for column in (records.c.record_id, records.c.trace_id, records.c.span_id)]
    # By its own id first: the others have no index.
    for condition in (called[0], sa.or_(*called[1:])):
        found = connection.execute(sa.select(records.c.record_id).where(condition).limit(2)).scalars().all()
        if len(found) > 1:
            raise ConfigError(f"more than one record has the id {name!r}: name a record id")
        if found:
            return str(found[0])
    raise ConfigError(f"no record is called {name!r}: give a record, trace or span id, as `assay defects list` shows")


def _failing(connection: sa.Connection, record_id: str, rubric: str) -> list[Mapping[str, Any]]:
    """The scores of the record under the rubric that did not pass, locked."""
    names = ("evaluation_id", "series_id", "instrument_id", "weight", "outcome", "passed", "defect", "person_defect")
    found = (
        connection.execute(
            sa.select(*(evaluations.c[name] for name in names))
            .join(instruments, instruments.c.instrument_id == evaluations.c.instrument_id)
            .where(evaluations.c.record_id == record_id, instruments.c.rubric == text(rubric))
            .order_by(evaluations.c.evaluation_id)
            .with_for_update(of=evaluations)
        )
        .mappings()
        .all()
    )
    failing: list[Mapping[str, Any]] = [dict(row) for row in found if row["passed"] is False]
    if failing:
        return failing
    if any(row["passed"] for row in found):
        raise ConfigError(
            f"{record_id!r} passed {rubric}, so it has no defect: if it should not have, label it (`assay labels`)"
        )
    raise ConfigError(f"{record_id!r} has no score under {rubric!r}: see `assay rubrics list` for the names")


def read_totals(connection: sa.Connection, names: Names) -> list[DefectCount]:
    """Everything ever counted; see `Store.defect_totals`."""
    rows = connection.execute(sa.select(defect_counts)).all()
    return _merged(connection, names, [(row.series_id, row.instrument_id, row.defect, *row[3:]) for row in rows])


def read_mix(connection: sa.Connection, names: Names, since: datetime, until: datetime) -> list[DefectCount]:
    """Of the interactions of [since, until), by the classes in force now; see `Store.defect_mix`."""
    columns = (evaluations.c.series_id, evaluations.c.instrument_id, _in_force.label("in_force"))
    rows = connection.execute(
        sa.select(*columns, sa.func.count(), sa.func.sum(evaluations.c.weight))
        .where(evaluations.c.timestamp >= since, evaluations.c.timestamp < until, _in_force.is_not(None))
        .group_by(*columns)
    ).all()
    return _merged(connection, names, [(*row[:3], int(row[3]), float(row[4]), 0, 0.0) for row in rows])


def _merged(connection: sa.Connection, names: Names, rows: Collection[tuple[Any, ...]]) -> list[DefectCount]:
    """Rows of label sets and instruments that have the same names, added up."""
    keys = names.keys(connection, ((row[0], row[1]) for row in rows))
    sums: dict[tuple[Key, str], list[Any]] = {}
    for series_id, instrument_id, defect, *counts in rows:
        key = keys[series_id, instrument_id]._replace(rubric_hash="", judge_fingerprint="")
        known = sums.setdefault((key, defect), [0, 0.0, 0, 0.0])
        for index, value in enumerate(counts):
            known[index] += value
    return [
        DefectCount(
            app=key.app,
            cohort=names.cohort(key),
            rubric=key.rubric,
            rubric_version=key.rubric_version,
            judge=key.judge,
            defect=defect,
            **dict(zip(_COUNTS, counts, strict=True)),
        )
        for (key, defect), counts in sorted(sums.items(), key=lambda item: item[0])
    ]


_OF_RECORD = ("app", "trace_id", "injection_signs")


def read_findings(
    connection: sa.Connection,
    *,
    since: datetime,
    rubric: str | None,
    defect: str | None,
    limit: int,
) -> list[DefectFinding]:
    """See `Store.defects`."""
    statement = (
        sa.select(evaluations, _in_force.label("in_force"), *(records.c[name] for name in _OF_RECORD), instruments)
        .join(records, records.c.record_id == evaluations.c.record_id)
        .join(instruments, instruments.c.instrument_id == evaluations.c.instrument_id)
        .where(evaluations.c.timestamp >= since, _in_force.is_not(None))
        .order_by(evaluations.c.timestamp.desc(), evaluations.c.record_id, evaluations.c.evaluation_id)
        .limit(min(limit, _MOST_ROWS))
    )
    for column, wanted in ((instruments.c.rubric, rubric), (_in_force, defect)):
        if wanted is not None:
            statement = statement.where(column == text(wanted))
    return [
        DefectFinding(
            record_id=row.record_id,
            app=row.app,
            timestamp=row.timestamp,
            trace_id=row.trace_id,
            rubric=row.rubric,
            rubric_version=row.rubric_version,
            judge=row.judge,
            value=row.value,
            explanation=row.explanation or "",
            defect=row.in_force,
            judge_defect=row.defect,
            by_person=row.person_defect is not None,
            injection_signs=signs_in(row.injection_signs),
        )
        for row in connection.execute(statement)
    ]
