"""What `assay.compare` reads: evaluations of a span of time, each with the group that it falls into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from assay.store._tables import evaluations, instruments, records, text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

#: Rows in memory at a time.
_PART = 10_000

_OF_RECORD = ("prompt_version", "model", "route")
_OF_INSTRUMENT = ("rubric_version", "judge")


class ComparedScore(NamedTuple):
    """One evaluation."""

    record_id: str
    #: value of what is compared by; None where the record has none
    group: str | None
    rubric: str
    rubric_version: str
    rubric_hash: str
    judge: str
    judge_fingerprint: str
    outcome: str
    #: 1 / probability with which the record was taken and judged, at least 1
    weight: float
    #: score in [0, 1]; None unless it was scored
    value: float | None
    passed: bool | None
    #: what the interaction cost its app, in USD; None where it is not known
    cost_usd: float | None
    #: 1 / probability with which it was taken: what it cost is known whether it was judged or not
    cost_weight: float


def read_scores(
    connection: sa.Connection,
    by: str,
    since: datetime,
    until: datetime,
    *,
    rubric: str | None,
) -> Iterator[ComparedScore]:
    """See `Store.compared_scores`."""
    names = ("rubric", "rubric_version", "rubric_hash", "judge", "judge_fingerprint")
    statement = (
        sa.select(
            evaluations.c.record_id,
            _group(by).label("group"),
            *(instruments.c[name] for name in names),
            *(evaluations.c[name] for name in ("outcome", "weight", "value", "passed")),
            records.c.cost_usd,
            (1.0 / records.c.probability).label("cost_weight"),
        )
        .join(records, records.c.record_id == evaluations.c.record_id)
        .join(instruments, instruments.c.instrument_id == evaluations.c.instrument_id)
        .where(evaluations.c.timestamp >= since, evaluations.c.timestamp < until)
    )
    if rubric is not None:
        statement = statement.where(instruments.c.rubric == text(rubric))
    for row in connection.execution_options(yield_per=_PART).execute(statement):
        yield ComparedScore._make(row)


def _group(by: str) -> sa.ColumnElement[Any]:
    if by in _OF_RECORD:
        return records.c[by]
    if by in _OF_INSTRUMENT:
        return instruments.c[by]
    value: sa.ColumnElement[Any] = records.c.cohort[text(by)].as_string()
    return value
