"""Records what an assay writes to its database, statement by statement, for assays to come to be held to.

    PYTHONPATH=src:tests python tests/data/schema/record.py REVISION URL > tests/data/schema/REVISION-BACKEND.json

Run it before a migration is added, with the newest revision that there is, on an empty database. The records are
synthetic. `tests/unit/test_rolling_schema.py` plays the statements back on the tables of today.
"""

from __future__ import annotations

import base64
import json
import sys
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import command
from sqlalchemy import event

from assay.records import Evaluation, Record, Score, Usage
from assay.store import DeadLetter, Store, _migrate
from stores import A_FAILURE, NOT_APPLICABLE, a_record, an_evaluation, with_payloads


def batches() -> list[tuple[list[Record], list[Evaluation], list[DeadLetter], bool]]:
    """What is committed: verdicts, a failure that a replay mends, a duplicate, a dead letter; the same every time."""
    records = [
        a_record(
            f"old-{index}",
            seconds=40.0 * index,
            probability=0.5 if index % 2 else 1.0,
            app="shop" if index < 6 else "bank",
            cohort={"route": "chat"},
            trace_id=f"{index:032x}",
        )
        for index in range(8)
    ]
    score = Score(value=0.25, passed=False, usage=Usage(prompt_tokens=100, completion_tokens=20, cost_usd=0.001))
    outcomes = [score, 1.0, 0.75, A_FAILURE, NOT_APPLICABLE, 0.5, 0.0, 1.0]
    judged = [
        an_evaluation(record, outcome, rubric)
        for record, outcome in zip(records, outcomes, strict=True)
        for rubric in ("relevance", "safety")
    ]
    letter = DeadLetter(dead_id="d" * 32, reason="invalid", message="synthetic", payload=b'{"a": 1}')
    replayed = [an_evaluation(records[3], 1.0, "relevance")]
    return [
        (records[:5], judged[:10], [letter], False),
        (records[5:], judged[10:], [], False),
        (records[:2], judged[:4], [], False),
        (records[3:4], replayed, [], True),
    ]


def commit_all(store: Store) -> list[int]:
    """Commit them; how many evaluations each of them inserted."""
    return [
        store.commit(with_payloads(records), judged, letters, replay=replay).inserted
        for records, judged, letters, replay in batches()
    ]


def summary(store: Store) -> dict[str, Any]:
    """What an exporter says of it, in numbers that JSON keeps."""
    totals = {}
    for total in store.totals():
        key = f"{total.app}/{total.rubric}"
        totals[key] = [total.scored, dict(total.failures), dict(total.reasons), total.recovered, total.value_sum]
    counts = store.counts()
    return {"totals": totals, "received": dict(counts.received), "duplicates": counts.duplicates}


def encoded(value: Any) -> Any:
    """Parameters as JSON."""
    if isinstance(value, Mapping):
        return {"{}": {name: encoded(item) for name, item in value.items()}}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if isinstance(value, datetime):
        return {"datetime": value.isoformat()}
    if isinstance(value, uuid.UUID):
        return {"uuid": str(value)}
    if isinstance(value, bytes | memoryview):
        return {"bytes": base64.b64encode(value).decode()}
    if value is None or isinstance(value, str | int | float):
        return value
    return {"json": value.obj}  # psycopg's wrapper


def decoded(value: Any) -> Any:
    """The inverse of `encoded`."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "{}":
        return {name: decoded(item) for name, item in inner.items()}
    if kind == "json":
        from psycopg.types.json import Jsonb

        return Jsonb(inner)
    return {"datetime": datetime.fromisoformat, "uuid": uuid.UUID, "bytes": base64.b64decode}[kind](inner)


def main(revision: str, url: str) -> None:
    """Write the recording to the standard output."""
    statements: list[list[Any]] = []
    with Store(url, cohort_labels=["route"], sinks={"jsonl": ["scored"]}) as store:
        store._database.create()

        def migrate(connection: sa.Connection) -> None:
            config = _migrate.alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)

        store._database.write(migrate)

        @event.listens_for(store._database.engine, "before_cursor_execute")
        def keep(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
            if not statement.startswith(("SELECT pg_catalog", "PRAGMA", "BEGIN")):
                statements.append([statement, many, encoded(parameters)])

        commit_all(store)
        event.remove(store._database.engine, "before_cursor_execute", keep)
        print(json.dumps({"summary": summary(store), "statements": statements}, sort_keys=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
