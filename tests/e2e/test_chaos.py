"""The chaos harness at a small size: every check holds, and a check that does not is told."""

from __future__ import annotations

import pytest
from benchmarks import chaos

from servers import PostgresServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_nothing_is_lost_or_doubled(database: str, request: pytest.FixtureRequest) -> None:
    postgres: PostgresServer | None = None
    if database == "postgresql":
        postgres = request.getfixturevalue("postgres_server")
    plan = chaos.Plan(
        database=database, workers=1, records=200, stopped_seconds=2, away_seconds=1, pause_seconds=1, kill_seconds=1.5
    )
    outcome = chaos.run(plan, postgres)
    assert outcome.violations == []
    assert (outcome.lost, outcome.duplicate_scores, outcome.records) == (0, 0, 200)
    assert outcome.doorbells_doubled
    assert outcome.judge_faults
    assert outcome.judge_calls >= 200
    assert "holds" in chaos.table([outcome])


def test_a_violation_is_told() -> None:
    outcome = chaos.Outcome(database="sqlite", workers=1, records=2, violations=["1 records lost"])
    assert "VIOLATED" in chaos.table([outcome])
    assert "sqlite x 1: 1 records lost" in chaos.table([outcome])
