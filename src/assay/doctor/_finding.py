"""What a check comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `mend` says what to do, or is empty where nothing needs doing."""

    check: str
    state: Literal["ok", "warning", "wrong"]
    message: str
    mend: str = ""
