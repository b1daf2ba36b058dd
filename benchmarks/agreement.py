"""What the cheap way of asking costs in agreement with labels: the table of docs/explanation/cost.md.

    ASSAY_JUDGE=openai ASSAY_JUDGE_MODEL=... python benchmarks/agreement.py [--every 1] [--offline] [--write]

Each shipped label set is judged twice by the judge of your settings: its rubric asked along with the other three (`ask:
together`), and by itself (`ask: alone`). Cohen's kappa with the labels, of pass and fail, and the difference of the two
on the same records, resampled by situation. A verdict is never asked for twice: outcomes are kept as those of `assay
calibrate` are, so an interrupted run goes on where it ended. Labels are by the records' authors, half of the answers
fail by design: read what asking together changes, not how good the judge is.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from assay.calibrate import Calibrated, calibrate, compare_calibrated
from assay.calibration.agreement import cohen_kappa_score, kappa_of_table
from assay.calibration.bootstrap import Bootstrap
from assay.errors import AssayError
from assay.judging import Instrument, JudgingResult, judge_items, plan_judging
from assay.labels import LabelSet, read_labels
from assay.records import Score
from assay.rubrics import Rubric, load_rubrics
from assay.settings import Settings, load_settings
from assay.spelling import suggestion
from assay.wiring import judge_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.calibration.statistic import Statistic

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "cost.md"
MARKED = re.compile(r"(<!-- agreement -->\n).*?(<!-- end of agreement -->)", re.DOTALL)
WAYS: tuple[Literal["alone", "together"], ...] = ("alone", "together")


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Of one record: its situation, its label, and what came of it alone and together; True: it passes."""

    situation: str
    label: bool
    alone: bool
    together: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """One label set, asked both ways."""

    name: str
    #: those with a verdict of both
    verdicts: list[Verdicts]
    #: records in all
    records: int
    difference: Statistic
    #: mean prompt and reply tokens of a verdict, by way; None: the endpoint does not say
    tokens: dict[str, tuple[float, float] | None]

    def kappa(self, way: str) -> float | None:
        """Agreement of one way with the labels."""
        return cohen_kappa_score([v.label for v in self.verdicts], [getattr(v, way) for v in self.verdicts])

    @property
    def alike(self) -> float:
        """Share of the records on which the two say the same."""
        return sum(v.alone == v.together for v in self.verdicts) / len(self.verdicts)


def some_of(labels: LabelSet, every: int) -> LabelSet:
    """Each `every`th situation of it, with all its answers."""
    situations = list(dict.fromkeys(item.cluster for item in labels.items))
    chosen = set(situations[::every])
    return replace(labels, items=tuple(item for item in labels.items if item.cluster in chosen))


def asked(
    settings: Settings, rubric: Rubric, labels: LabelSet, others: Sequence[Rubric], *, offline: bool
) -> Calibrated:
    """The judge's outcomes on these labels."""
    instrument = Instrument(rubric=rubric, settings=judge_settings(settings), others=tuple(others))
    records = [(item.item_id, item.record) for item in labels.items if item.record is not None]
    plan = plan_judging(records, instrument, settings.data_dir / "judged")
    result = JudgingResult(outcomes=dict(plan.known)) if offline else asyncio.run(judge_items(plan))
    if result.stopped is not None:
        sys.stderr.write(f"{rubric.name}, {rubric.ask}: stopped: {result.stopped}\n")
    return calibrate(
        labels, rubric, judge=plan.judge, judge_fingerprint=plan.judge_fingerprint, outcomes=result.outcomes
    )


def measured(settings: Settings, rubric: Rubric, others: Sequence[Rubric], *, every: int, offline: bool) -> Measured:
    """One shipped set, asked both ways."""
    labels = some_of(read_labels(ROOT / "calibration" / f"{rubric.name}.jsonl", rubric), every)
    both = [asked(settings, replace(rubric, ask=way), labels, others, offline=offline) for way in WAYS]
    found = []
    for alone, together in zip(both[0].rows, both[1].rows, strict=True):
        if isinstance(alone.outcome, Score) and isinstance(together.outcome, Score):
            situation = f"{rubric.name}/{alone.item.cluster}"
            found.append(Verdicts(situation, alone.label > 0.5, alone.outcome.passed, together.outcome.passed))
    return Measured(
        name=rubric.name,
        verdicts=found,
        records=len(labels.items),
        difference=compare_calibrated(both[0], both[1]).comparison.kappa.difference,
        tokens={way: _tokens(one) for way, one in zip(WAYS, both, strict=True)},
    )


def _tokens(calibrated: Calibrated) -> tuple[float, float] | None:
    usages = [outcome.usage for outcome in calibrated.outcomes if isinstance(outcome, Score)]
    told = [(u.prompt_tokens, u.completion_tokens) for u in usages if u.prompt_tokens and u.completion_tokens]
    return (float(np.mean([t[0] for t in told])), float(np.mean([t[1] for t in told]))) if told else None


def mean_difference(sets: Sequence[Measured]) -> Statistic:
    """Mean over the sets of kappa together less kappa alone; situations are resampled."""
    rows = [(at, verdicts) for at, one in enumerate(sets) for verdicts in one.verdicts]
    # Eight patterns in each set: label by alone by together.
    terms = np.zeros((len(rows), 8 * len(sets)))
    for row, (at, v) in enumerate(rows):
        terms[row, 8 * at + 4 * v.label + 2 * v.alone + v.together] = 1.0
    draws = Bootstrap(len(rows), clusters=[v.situation for _, v in rows], n_resamples=5000, seed=0)

    def statistic(sums: np.ndarray) -> np.ndarray:
        table = sums.reshape(*sums.shape[:-1], len(sets), 2, 2, 2)
        alone, together = kappa_of_table(table.sum(axis=-1)), kappa_of_table(table.sum(axis=-2))
        return (together - alone).mean(axis=-1)

    return draws.ci(terms, statistic)


def _interval(found: Statistic) -> str:
    if found.value is None:
        return found.reason or ""
    ends = "" if found.lower is None or found.upper is None else f" ({found.lower:+.2f} to {found.upper:+.2f})"
    return f"{found.value:+.2f}{ends}"


def _kappa(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _mean(kappas: Sequence[float | None]) -> str:
    known = [kappa for kappa in kappas if kappa is not None]
    return _kappa(sum(known) / len(known) if len(known) == len(kappas) else None)


def table(sets: Sequence[Measured]) -> str:
    """In Markdown."""
    lines = [
        "| labels | records | with both verdicts | kappa alone | together | together less alone | say the same | "
        "tokens of a verdict: alone | together |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in sets:
        counts = [one.tokens[way] for way in WAYS]
        tokens = " | ".join("unknown" if count is None else "{:,.0f} + {:,.0f}".format(*count) for count in counts)
        lines.append(
            f"| {one.name} | {one.records} | {len(one.verdicts)} | {_kappa(one.kappa('alone'))} | "
            f"{_kappa(one.kappa('together'))} | {_interval(one.difference)} | {one.alike:.0%} | {tokens} |"
        )
    records, verdicts = sum(one.records for one in sets), sum(len(one.verdicts) for one in sets)
    alike = sum(one.alike * len(one.verdicts) for one in sets) / verdicts
    means = [_mean([one.kappa(way) for one in sets]) for way in WAYS]
    difference = _interval(mean_difference(sets))
    lines.append(f"| all, mean | {records} | {verdicts} | {means[0]} | {means[1]} | {difference} | {alike:.0%} | | |")
    return "\n".join(lines)


def main() -> None:
    """Judge, print, and with `--write` put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="takes each Nth situation of a set")
    parser.add_argument("--sets", default="", help="such as relevance,safety; else all")
    parser.add_argument("--offline", action="store_true", help="ask nobody: what is kept")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    given = parser.parse_args()
    if given.every < 1:
        parser.error("--every: 1 or more")
    try:
        settings, rubrics = load_settings(), load_rubrics()
        known = [rubric.name for rubric in rubrics]
        names = given.sets.split(",") if given.sets else known
        if unknown := [name for name in names if name not in known]:
            parser.error(f"--sets: {unknown[0]!r}: {suggestion(unknown[0], known)}")
        chosen = [rubric for rubric in rubrics if rubric.name in names]
        screen = Console(stderr=True)
        sets = [
            measured(settings, rubric, rubrics, every=given.every, offline=given.offline)
            for rubric in track(chosen, "judging", console=screen)
        ]
    except AssayError as error:
        parser.exit(2, f"{error}\n")
    found = table(sets)
    sys.stdout.write(found + "\n")
    if given.write:
        PAGE.write_text(MARKED.sub(lambda marks: f"{marks[1]}\n{found}\n\n{marks[2]}", PAGE.read_text()))


if __name__ == "__main__":
    main()
