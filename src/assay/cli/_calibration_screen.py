"""What `assay calibrate` prints for people. Texts of records and judges are data: never markup, never control codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from assay.calibration_summary import (
    cost_sentence,
    difference_line,
    first_screen,
    headline,
    statistics_table,
    threshold_table,
    verdict,
)
from assay.cli._screen import output, print_table

if TYPE_CHECKING:
    from assay.calibrate import Calibrated, CalibrationRow, Compared

_SHOWN_CHARACTERS = 300


def say(text: str) -> None:
    """One line on standard output."""
    output.print(escape(_plain(text)), soft_wrap=True, highlight=False)


def print_report(calibrated: Calibrated, worst: int) -> None:
    """The first screen, the table, and the `worst` disagreements."""
    say(headline(calibrated))
    lines = first_screen(calibrated)
    width = max((len(line.text) for line in lines), default=0)
    for line in lines:
        say(f"  {line.text.ljust(width)}   {line.interval}".rstrip())
    output.print(f"  [bold]verdict: {escape(verdict(calibrated))}[/]", highlight=False)
    for reason in calibrated.report.reasons:
        say(f"    {reason}")
    for need in calibrated.report.needs:
        say(f"  {need.sentence()}")
    for note in calibrated.notes:
        say(f"  note: {note}")
    say(f"  a record costs: {cost_sentence(calibrated.calibration.cost)}")
    output.print()
    print_table(
        "Agreement, in the order to read it",
        ("statistic", "value>", "95 % interval", ""),
        ((row.name, row.value, row.interval, row.note) for row in statistics_table(calibrated)),
    )
    if calibrated.calibration.thresholds:
        output.print()
        print_table(
            "Where a score becomes a pass",
            ("for", "threshold>", "fail recall", "fail precision", ""),
            threshold_table(calibrated),
        )
    rows = calibrated.disagreements(worst)
    if rows:
        output.print()
        say(f"Worst disagreements ({len(rows)} of {sum(row.disagrees for row in calibrated.rows)})")
        for row in rows:
            _print_disagreement(row)


def _print_disagreement(row: CalibrationRow) -> None:
    where = f", line {row.item.line}" if row.item.line else ""
    say(f"  {row.item_id}{where}: labelled {_side(row.label)}, judged {_judged_as(row)}")
    if row.record is not None:
        say(f"    output: {_short(row.record.output)}")
    if row.score is not None:
        say(f"    judge:  {_short(row.score.explanation) or '–'}")
    if row.note:
        say(f"    label:  {_short(row.note)}")


def print_comparison(compared: Compared, names: tuple[str, str], worst: int) -> None:
    """What differs between the two, and some of the records that changed sides."""
    found = compared.comparison
    say(f"{compared.first.rubric.name} · {found.n} labels ({found.fails} fail) that both have a verdict on")
    for letter, name, one in zip("AB", names, (compared.first, compared.second), strict=True):
        made = one.calibration
        say(f"  {letter}: {name} · judge {made.judge} · rubric {made.rubric_version} · {verdict(one)}")
        say(f"     a record costs: {cost_sentence(made.cost)}")
    lines = [difference_line(difference) for difference in found.differences]
    width = max(len(line.text) for line in lines)
    output.print("B compared with A", highlight=False)
    for line in lines:
        say(f"  {line.text.ljust(width)}   {line.interval}".rstrip())
    say(f"  {len(compared.changed)} records change sides: {compared.mended} mended, {compared.broken} broken")
    for note in compared.second.notes:
        say(f"  note: {note}")
    for before, after in compared.changed[:worst]:
        kind = "broken" if after.disagrees else "mended"
        where = f", line {after.item.line}" if after.item.line else ""
        sides = f"labelled {_side(after.label)}, A {_judged_as(before)}, B {_judged_as(after)}"
        say(f"  {kind}: {after.item_id}{where}: {sides}")
        for letter, row in (("A", before), ("B", after)):
            if row.score is not None and row.score.explanation:
                say(f"    {letter}:     {_short(row.score.explanation)}")
        if after.note:
            say(f"    label: {_short(after.note)}")


def _side(label: float) -> str:
    return "pass" if label > 0.5 else "FAIL"


def _judged_as(row: CalibrationRow) -> str:
    if row.score is None:
        return "–"
    return f"{'pass' if row.score.passed else 'FAIL'} ({row.score.value:.2f})"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"


def _plain(text: str) -> str:
    """The text without what a terminal would act on."""
    return "".join(character if character.isprintable() else "�" for character in text)
