"""Which interactions are taken, and with what probability.

The decision hangs on nothing but the trace id, so every process and service that sees a trace decides alike, and what
a lower rate takes is a subset of what a higher one takes. Standard library only.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from assay.errors import SettingsError
from assay.records import Feedback, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Conditions that a rule may name: the user's thumb is down; `finish_reason` is error; `finish_reason` is length.
Condition = Literal["thumbs_down", "error", "length"]

_SALT: Final = b"assay:v1\0"
#: What is still taken when the queue is full.
_LEAST_SHARE: Final = 0.01


def sample_unit(key: str) -> float:
    """A number in [0, 1) that hangs on `key` alone and is uniform over keys; below the rate, a record is taken.

    It is the first 53 bits of SHA-256 of `assay:v1`, a NUL and the key in UTF-8, over 2 to the 53rd.
    """
    digest = hashlib.sha256(_SALT + key.encode(errors="replace"), usedforsecurity=False).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


@dataclass(frozen=True, slots=True)
class Rule:
    """Takes the interactions that it matches at a rate of its own. The first rule that matches decides.

    Args:
        name: kept with every record that it takes.
        rate: 0 (take none) to 1 (take all).
        route: matches this route; `*`, `?` and `[...]` as in shell patterns. None: any, or none.
        cohort: matches interactions that have at least these cohort labels.
        when: one of the named conditions, or a function of the interaction's fields (the arguments of
            `Client.record`) that says whether it matches. It runs in the caller's thread: keep it quick.

    Raises:
        SettingsError: the rate is out of [0, 1], or the condition is not known.
    """

    name: str
    rate: float
    route: str | None = None
    cohort: Mapping[str, str] | None = None
    when: Condition | Callable[[Mapping[str, Any]], bool] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise SettingsError("sampling rule: give it a name")
        check_rate(self.rate, f"sampling rule {self.name}")
        if self.when is not None and not callable(self.when) and self.when not in _CONDITIONS:
            known = ", ".join(_CONDITIONS)
            raise SettingsError(f"sampling rule {self.name}: when={self.when!r} is not one of {known}, nor a function")


class Sampler:
    """The rules in order, then `rate` for what no rule matches."""

    def __init__(self, rate: float, rules: Sequence[Rule] = ()) -> None:
        check_rate(rate, "sample_rate")
        self._default = _decision(rate, "default")
        self._rules = [(_needed(rule), _matcher(rule), _decision(rule.rate, rule.name)) for rule in rules]
        #: how often a rule's own function raised; such a rule is passed over
        self.errors = 0

    def decide(self, key: str, interaction: Mapping[str, Any]) -> Sampling | None:
        """How the interaction gets in, or None when it does not. `key` is its trace id, else its record id."""
        decision = self._decision(interaction)
        if decision is None or decision.probability == 1.0 or sample_unit(key) < decision.probability:
            return decision
        return None

    def thin(self, key: str, decision: Sampling, share: float) -> Sampling | None:
        """Take only this share, in (0, 1], of what `decide` took; None when this one is left out.

        The probability of what is left is the product, and what it takes is a subset of what `decide` takes. What a
        rule takes always, at rate 1, is taken still.
        """
        if decision.probability == 1.0 and decision is not self._default:
            return decision
        probability = decision.probability * share
        return Sampling(probability=probability, rule=decision.rule) if sample_unit(key) < probability else None

    def _decision(self, interaction: Mapping[str, Any]) -> Sampling | None:
        for needed, matches, decision in self._rules:
            # This runs in the app's thread: most interactions lack what most rules ask for.
            if needed is not None and interaction.get(needed) is None:
                continue
            try:
                if matches(interaction):
                    return decision
            except Exception:  # noqa: BLE001 - a rule's function is the app's code
                self.errors += 1
        return self._default


def share_at(fill: float, thin_above: float) -> float:
    """Share of records to take while the queue is so full: 1 up to `thin_above`, then evenly on a log scale to 0.01.

    It hangs on the fill alone. So all clients of a queue thin alike, and where more comes in than is judged the queue
    settles at the fill at which the two are equal, if a hundredth of the load can be judged.
    """
    if fill <= thin_above or thin_above >= 1.0:
        return 1.0
    return float(_LEAST_SHARE ** min(1.0, (fill - thin_above) / (1.0 - thin_above)))


def check_rate(rate: float, what: str) -> None:
    """Raise SettingsError unless the rate is in [0, 1]."""
    if not 0.0 <= rate <= 1.0:
        raise SettingsError(f"{what}: rate {rate} is not in [0, 1]")


def _decision(rate: float, name: str) -> Sampling | None:
    return Sampling(probability=float(rate), rule=name) if rate > 0 else None


def _needed(rule: Rule) -> str | None:
    """A field without which the rule cannot match."""
    if isinstance(rule.when, str):
        return "feedback" if rule.when == "thumbs_down" else "finish_reason"
    return None if rule.route is None else "route"


def _matcher(rule: Rule) -> Callable[[Mapping[str, Any]], bool]:
    """One function for all that the rule asks, cheap for what it does not ask."""
    when = _CONDITIONS[rule.when] if isinstance(rule.when, str) else rule.when
    if rule.route is None and not rule.cohort:
        return when or _always
    route = re.compile(fnmatch.translate(rule.route or "*")).match
    cohort = dict(rule.cohort or {})

    def matches(interaction: Mapping[str, Any]) -> bool:
        if not route(interaction.get("route") or ""):
            return False
        if cohort:
            labels = interaction.get("cohort") or {}
            if any(labels.get(label) != value for label, value in cohort.items()):
                return False
        return when is None or bool(when(interaction))

    return matches


def _always(_: Mapping[str, Any]) -> bool:
    return True


def _thumbs_down(interaction: Mapping[str, Any]) -> bool:
    feedback = interaction["feedback"]
    thumb = feedback.thumb if isinstance(feedback, Feedback) else feedback.get("thumb")
    return bool(thumb == "down")


def _finished(reason: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda interaction: interaction.get("finish_reason") == reason


_CONDITIONS: Final[dict[str, Callable[[Mapping[str, Any]], bool]]] = {
    "thumbs_down": _thumbs_down,
    "error": _finished("error"),
    "length": _finished("length"),
}

#: Take every interaction that a user disliked, that failed, or whose answer was cut.
ALWAYS_TAKE: Final = (
    Rule("thumbs_down", 1.0, when="thumbs_down"),
    Rule("error", 1.0, when="error"),
    Rule("length", 1.0, when="length"),
)
