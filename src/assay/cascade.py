"""A cascade: a free judge looks at each record first, and the model is asked for what that leaves in doubt.

Of the rest it is asked for a share, drawn by the record's id; each of those weighs 1/share, so that every estimate
stays unbiased however wrong the first judge is. docs/explanation/cost.md says what it saves and what it finds. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from assay.records import Score

if TYPE_CHECKING:
    from assay.records import Outcome

#: Judges that can look first: they cost nothing.
First = Literal["lexical", "rules"]

#: Reason of the outcome `not applicable` of a record that the model was not asked for.
PASSED_OVER: Final = "passed_over_by_cascade"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """When a rubric's judge is asked for a record."""

    first: First
    #: of the records outside the band, in (0, 1)
    share: float
    #: [low, high] within [0, 1]: values of the first judge that leave a record in doubt; None: those that do not pass
    band: tuple[float, float] | None = None

    def probability(self, first: Outcome) -> float:
        """Probability, in (0, 1], that the model is asked for a record of which the first judge says `first`.

        What that one gives no score is in doubt.
        """
        if not isinstance(first, Score):
            return 1.0
        in_doubt = not first.passed if self.band is None else self.band[0] <= first.value <= self.band[1]
        return 1.0 if in_doubt else self.share
