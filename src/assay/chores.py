"""Periodic work of the workers, apart from scoring: what it is called, how often it is due, and what it does.

Every worker's clock rings for every chore; a lock in Redis lets one worker at a time do it. The lock only spares work:
a worker that was stopped in the midst may come back, so a chore must be harmless when it runs twice at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to do every `every_seconds`; `run` must end in about that time, and raises an AssayError to be retried
    at its next turn. One that is for `ragas` is rung for on workers that have it.
    """

    name: str
    every_seconds: float
    run: Callable[[], object]
    ragas: bool = False

    def __post_init__(self) -> None:
        if self.every_seconds < 1:
            raise ValueError(f"chore {self.name}: every {self.every_seconds} s is more often than the clock can ring")
