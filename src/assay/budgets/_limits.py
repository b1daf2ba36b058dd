"""What a budget allows, and which records are left out near its cap. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, get_args

from assay.errors import SettingsError
from assay.sampling import sample_unit

if TYPE_CHECKING:
    from assay.records import Usage

Per = Literal["hour", "day", "month"]
Unit = Literal["usd", "tokens"]

#: Reason of the outcome `not applicable` of a record that was left out near a cap.
THINNED: Final = "thinned_by_budget"
#: Judges that ask no model: nothing is reserved for them, and no record is left out.
FREE_JUDGES: Final = frozenset({"lexical", "rules"})
#: Name of the budget that ASSAY_BUDGET_USD_PER_DAY stands for.
TOTAL: Final = "total"

#: Money is counted in whole nano-dollars: floats would drift apart, and Lua has whole numbers up to 2 to the 53rd.
NANO = 1_000_000_000
MOST_USD = 1_000_000.0
MOST_TOKENS = 10**15


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much may be used in each hour, day or month (UTC). What is None is not limited, or not asked for."""

    name: str
    per: Per
    #: US dollars
    usd: float | None = None
    #: prompt and completion together
    tokens: int | None = None
    #: covers the records of this app, this rubric, this judge (its name, such as `openai:gpt-5-mini`); None: all
    app: str | None = None
    rubric: str | None = None
    judge: str | None = None

    def covers(self, *, app: str, rubric: str, judge: str) -> bool:
        """Whether what judging such a record takes counts here."""
        return self.app in (None, app) and self.rubric in (None, rubric) and self.judge in (None, judge)

    @property
    def meters(self) -> tuple[Meter, ...]:
        """Its limits, one for each unit."""
        return tuple(Meter(self, unit) for unit in get_args(Unit) if getattr(self, unit) is not None)


@dataclass(frozen=True, slots=True)
class Meter:
    """One limit of a budget."""

    budget: Budget
    unit: Unit

    @property
    def key(self) -> str:
        """End of its key in Redis. Another period is another counter; another limit is not."""
        return f"{self.budget.name}:{self.budget.per}:{self.unit}"

    @property
    def limit(self) -> int:
        """In whole nano-dollars, or tokens."""
        value = getattr(self.budget, self.unit)
        return math.floor(value * NANO) if self.unit == "usd" else int(value)

    def amount(self, usage: Usage, share: float = 1.0) -> int | None:
        """What `share` of this usage is here, rounded up; None when it is not known."""
        if self.unit == "usd":
            return None if usage.cost_usd is None else math.ceil(usage.cost_usd * share * NANO)
        if usage.prompt_tokens is None or usage.completion_tokens is None:
            return None
        return math.ceil((usage.prompt_tokens + usage.completion_tokens) * share)

    def shown(self, amount: int) -> str:
        """For people."""
        if self.unit == "tokens":
            return f"{amount:,} tokens"
        usd = amount / NANO
        return f"{usd:.2f} USD" if usd >= 0.095 or not usd else f"{usd:.6f} USD"

    def plain(self, amount: int) -> float:
        """In US dollars, or tokens."""
        return amount / NANO if self.unit == "usd" else float(amount)


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """All budgets, and from where on records are left out.

    Args:
        budgets: names are distinct.
        thin_from: share of a limit, in (0, 1], from which on fewer records are judged; 1: none is left out.
        thin_least: least share of records that are judged, in (0, 1]; it bounds their weights.
    """

    budgets: tuple[Budget, ...]
    thin_from: float = 0.8
    thin_least: float = 0.1

    def __post_init__(self) -> None:
        names = [budget.name for budget in self.budgets]
        for name in names:
            if names.count(name) > 1:
                raise SettingsError(f"two budgets are called {name}: rename one")

    @cached_property
    def meters(self) -> tuple[Meter, ...]:
        """Every limit."""
        return tuple(meter for budget in self.budgets for meter in budget.meters)

    def needs_price(self, *, rubric: str, judge: str) -> Budget | None:
        """A budget in dollars that this rubric and judge can come under, whatever the app."""
        return next(
            (
                budget
                for budget in self.budgets
                if budget.usd is not None and budget.covers(app=budget.app or "", rubric=rubric, judge=judge)
            ),
            None,
        )


def thinning(used: float, *, start: float, least: float) -> float:
    """Probability, in [least, 1], with which a record is judged while `used` of a limit (0: nothing, 1: all) is spent.

    1 up to `start`, then falling in proportion to what is left, so that the rest lasts the longer the less it is.
    """
    if used <= start or start >= 1.0:
        return 1.0
    return min(1.0, max(least, (1.0 - used) / (1.0 - start)))


def is_thinned(record_id: str, probability: float) -> bool:
    """Whether this record is left out at this probability: the same in every process, and for every rubric."""
    return probability < 1.0 and sample_unit(f"budget\0{record_id}") >= probability
