"""Fakes for tests of what is built on assay: a judge that follows a script, and a judge server that is real HTTP.

`python -m assay.testing --latency 0.3 --fault-rate 0.05` runs the server by itself and prints its base URL.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from assay.records import Failure, NotApplicable, Outcome, Score
from assay.testing._server import FAULTS, PARAMETERS, USUAL_FAULTS, Ask, FakeJudgeServer, Reply, Traffic

if TYPE_CHECKING:
    from assay.records import Record
    from assay.rubrics import Rubric

__all__ = ["FAULTS", "PARAMETERS", "USUAL_FAULTS", "Ask", "FakeJudgeServer", "Reply", "ScriptedJudge", "Traffic"]


class ScriptedJudge:
    """A judge that answers as told and remembers what it was asked.

    `script` is an outcome for everything, outcomes by rubric name (the others get a passing score), or a function of
    record and rubric, which may raise.
    """

    def __init__(
        self,
        script: Outcome | Mapping[str, Outcome] | Callable[[Record, Rubric], Outcome] | None = None,
        *,
        name: str = "scripted",
        delay_seconds: float = 0.0,
    ) -> None:
        self.name = name
        self.fingerprint = hashlib.sha256(f"scripted/{name}".encode()).hexdigest()
        #: one (record id, rubric names) for each call
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.closed = False
        self._script = script
        self._delay_seconds = delay_seconds

    async def judge(self, record: Record, rubrics: Sequence[Rubric]) -> list[Outcome]:
        """The scripted outcome of each rubric."""
        self.calls.append((record.record_id, tuple(rubric.name for rubric in rubrics)))
        if self._delay_seconds:
            await asyncio.sleep(self._delay_seconds)
        return [self._outcome(record, rubric) for rubric in rubrics]

    async def aclose(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def _outcome(self, record: Record, rubric: Rubric) -> Outcome:
        script = self._script
        if isinstance(script, Score | Failure | NotApplicable):
            return script
        if isinstance(script, Mapping):
            return script.get(rubric.name, Score(value=1.0, passed=True))
        return Score(value=1.0, passed=True) if script is None else script(record, rubric)
