"""Consoles, and the few ways in which commands print."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from assay.terminal import escaped, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from assay.listener import Guard
    from assay.windows import Estimate


class _Screen(Console):
    """A console on which texts of records and judges cannot move the cursor or change colours."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(plain(part) if isinstance(part, str) else part for part in objects), **options)


#: results; where there is no terminal to fit into, nothing is squeezed
output = _Screen(width=None if sys.stdout.isatty() else 160, emoji=False)
#: progress and errors, so that results can be piped
errors = _Screen(stderr=True, emoji=False)

#: Columns whose cells are typed into the next command, or compared with each other.
_WHOLE = ("id", "evaluation", "rubric", "when")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def print_json(value: Any) -> None:
    """One JSON document on standard output. What would steer a terminal is escaped, and reads back as it was."""
    print(escaped(json.dumps(value, indent=2, ensure_ascii=False, default=_as_text)))


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; what stands in its title, its headings and its cells is data, never markup."""
    table = Table(
        title=escape(plain(title)),
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for column in columns:
        heading, is_number = column.removesuffix(">"), column.endswith(">")
        # On a narrow screen texts go on in the next line, so that ids and numbers can be whole.
        is_whole = is_number or heading in _WHOLE
        table.add_column(
            escape(plain(heading)),
            justify="right" if is_number else "left",
            no_wrap=is_whole,
            overflow="ellipsis" if is_whole else "fold",
        )
    for row in rows:
        table.add_row(*(escape(plain(str(cell))) for cell in row))
    output.print(table)


class Bar:
    """How far a long command is, on standard error, while that is a terminal. A context manager.

    Args:
        what: in a word, such as `judging`.
        total: how many there are; None where nobody knows.
        unit: of what, behind the numbers; empty for what `what` says already.
    """

    def __init__(self, what: str, total: int | None, *, unit: str = "") -> None:
        self._progress = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total, note=unit)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, size: int) -> None:
        """`size` more are done."""
        self._progress.advance(self._task, size)

    def reach(self, done: int, note: str) -> None:
        """`done` are done in all; `note` stands behind the numbers."""
        self._progress.update(self._task, completed=done, note=note)


def ratio(estimate: Estimate | None) -> str:
    """`0.93 (0.90–0.95)`, or a dash where nothing is known."""
    if estimate is None:
        return "–"
    return f"{estimate.value:.2f} ({estimate.lower:.2f}–{estimate.upper:.2f})"


def ago(seconds: float | None) -> str:
    """A length of time for people: `4 s`, `3 min`, `2 h 5 min`."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    length = timedelta(seconds=int(seconds))
    return f"{length.days * 24 + length.seconds // 3600} h {length.seconds % 3600 // 60} min"


def warn_exposed(guard: Guard, host: str, setting: str) -> None:
    """One line when other machines reach an address that nothing keeps them out of."""
    if (line := guard.exposure(host, setting)) is not None:
        errors.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True)
