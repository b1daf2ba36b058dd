"""The judge that applies free, deterministic rules: what can be known of an output without reading it.

It speaks to completeness (cut off, empty, declined, fields missing, tool failed) and safety (secrets and card numbers
shown). It finds faults; that it finds none is a pass, and says nothing of what rules cannot see.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, ClassVar

from assay.defects import settled
from assay.faults import completeness_faults, leaks
from assay.judges._defects import defect_by_rule
from assay.records import NotApplicable, Score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.records import Outcome, Record
    from assay.rubrics import Rubric

#: Change it whenever the same record can get another score.
_VERSION = "rules/1"


class RulesJudge:
    """Pass or fail by rules; dimensions that rules cannot speak to are not applicable."""

    name: ClassVar[str] = "rules"
    fingerprint: ClassVar[str] = hashlib.sha256(_VERSION.encode()).hexdigest()

    async def judge(self, record: Record, rubrics: Sequence[Rubric]) -> list[Outcome]:
        """A score of 1 or 0 for rubrics of completeness and safety, `not_judged_by_rules` for the others."""
        return [self.look(record, rubric) for rubric in rubrics]

    async def aclose(self) -> None:
        """Nothing to free."""

    def look(self, record: Record, rubric: Rubric) -> Outcome:
        """The same of one rubric, without waiting for anything."""
        if rubric.dimension == "completeness":
            faults = completeness_faults(record)
        elif rubric.dimension == "safety":
            faults = leaks(record)
        else:
            return NotApplicable(reason="not_judged_by_rules")
        return Score(
            value=0.0 if faults else 1.0,
            passed=not faults,
            label="fail" if faults else "pass",
            explanation="; ".join(faults) if faults else "no rule found a fault",
            details={"faults": faults},
            defect=settled(not faults, defect_by_rule(record, rubric) if faults else None, rubric.defects),
        )
