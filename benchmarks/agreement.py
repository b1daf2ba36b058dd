"""What the cheap way of asking costs in agreement with labels: tables of docs/explanation/cost.md.

    ASSAY_JUDGE=openai ASSAY_JUDGE_MODEL=... python benchmarks/agreement.py [--every 1] [--offline] [--save NAME]
    python benchmarks/agreement.py --people DIRECTORY [--each 120]        # public sets that people have labelled
    python benchmarks/agreement.py --write                                # the page anew, from what was saved

Each label set is judged twice by the judge of your settings: its rubric asked along with the other three (`ask:
together`), and by itself (`ask: alone`). Cohen's kappa with the labels, of pass and fail, and the difference of the two
on the same records, resampled by situation. A verdict is never asked for twice: outcomes are kept as those of `assay
calibrate` are, so an interrupted run goes on where it ended.

The shipped sets are labelled by the records' authors, and half of the answers fail by design: read what asking together
changes, not how good the judge is. DIRECTORY holds sets as `benchmarks/keyless.py` reads them, none of which is part of
this repository; as many that fail as pass are drawn of each, by their ids.

`--save NAME` keeps the run in docs/agreement.json under that name, without a text of any record, and writes the page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).parent))

from keyless import read

from assay.calibrate import Calibrated, calibrate
from assay.calibration.agreement import cohen_kappa_score, kappa_of_table
from assay.calibration.bootstrap import Bootstrap
from assay.errors import AssayError
from assay.judging import Instrument, JudgingResult, judge_items, plan_judging
from assay.labels import LabelSet, read_labels
from assay.records import Score
from assay.rubrics import Rubric, load_rubrics
from assay.sampling import sample_unit
from assay.settings import Settings, load_settings
from assay.spelling import suggestion
from assay.wiring import judge_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.calibration.statistic import Statistic

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "cost.md"
SAVED = ROOT / "docs" / "agreement.json"
MARKED = re.compile(r"(<!-- agreement -->\n).*?(<!-- end of agreement -->)", re.DOTALL)
WAYS: tuple[Literal["alone", "together"], ...] = ("alone", "together")
#: Of the sets that people have labelled: file, what a table calls it, its rubric.
PEOPLE = (
    ("ragtruth_test_qa.faithfulness", "RAGTruth, questions: faithfulness", "faithfulness"),
    ("llmbar.relevance", "LLMBar: relevance", "relevance"),
    ("haluquestqa.completeness", "HaluQuestQA: completeness", "completeness"),
    ("dices350.safety", "DICES-350: safety", "safety"),
)
#: Verdicts that differ between the two ways before an interval of their difference is shown.
LEAST_DIFFERENT = 5
#: Where people's labels pass from, on the scale from 0 to 1 that the sets are brought to.
PASSES_FROM = 0.5


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
    #: mean prompt and reply tokens of a verdict, by way; None: the endpoint does not say
    tokens: dict[str, tuple[float, float] | None]

    def kappa(self, way: str) -> float | None:
        """Agreement of one way with the labels."""
        return cohen_kappa_score([v.label for v in self.verdicts], [getattr(v, way) for v in self.verdicts])

    @property
    def alike(self) -> float:
        """Share of the records on which the two say the same."""
        return sum(v.alone == v.together for v in self.verdicts) / len(self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """What is saved of it: of each situation the label, the verdict alone and the one together, 1 for a pass."""
        said: dict[str, list[str]] = {}
        for v in self.verdicts:
            said.setdefault(v.situation, []).append(f"{v.label:d}{v.alone:d}{v.together:d}")
        tokens = {way: None if count is None else [round(n, 1) for n in count] for way, count in self.tokens.items()}
        told = {situation: " ".join(marks) for situation, marks in said.items()}
        return {"name": self.name, "records": self.records, "tokens": tokens, "said": told}

    @classmethod
    def of_json(cls, saved: dict[str, Any]) -> Measured:
        """The set that `as_json` was taken of."""
        verdicts = [
            Verdicts(situation, *(mark == "1" for mark in marks))
            for situation, all_marks in saved["said"].items()
            for marks in all_marks.split()
        ]
        tokens = {way: None if count is None else (count[0], count[1]) for way, count in saved["tokens"].items()}
        return cls(saved["name"], verdicts, saved["records"], tokens)


def some_of(labels: LabelSet, every: int) -> LabelSet:
    """Each `every`th situation of it, with all its answers."""
    situations = list(dict.fromkeys(item.cluster for item in labels.items))
    chosen = set(situations[::every])
    return replace(labels, items=tuple(item for item in labels.items if item.cluster in chosen))


def by_people(path: Path, rubric: Rubric, each: int) -> LabelSet:
    """`each` records of a public set, half of which fail by people's labels, drawn by their ids.

    Raises:
        ValueError: it has fewer of either side.
    """
    rows = sorted(read(path), key=lambda row: sample_unit(f"agreement\0{row['id']}"))
    passes, fails = ([row for row in rows if (row["human_label"] >= PASSES_FROM) is side] for side in (True, False))
    if min(len(passes), len(fails)) < each // 2:
        raise ValueError(f"--each: {path.name} has {len(passes)} that pass and {len(fails)} that fail")
    drawn = sorted((*passes[: each // 2], *fails[: each // 2]), key=lambda row: str(row["id"]))
    inputs = {row["id"]: json.dumps(row["input"]) for row in drawn}
    numbers = {asked: number for number, asked in enumerate(sorted(set(inputs.values())))}
    header = {"label_file": 1, "rubric": rubric.name, "annotators": "human", "selection": "curated", "grades": "unit"}
    lines: list[dict[str, Any]] = [header | {"passes_from": PASSES_FROM}]
    for row in drawn:
        record = {"record_id": str(row["id"]), "input": row["input"], "output": row["output"]}
        if row["contexts"]:
            record["contexts"] = row["contexts"]
        situation = f"{rubric.name}-{numbers[inputs[row['id']]]}"
        lines.append({"record": record, "labels": {"people": row["human_label"]}, "cluster": situation})
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory) / "labels.jsonl"
        made.write_text("\n".join(map(json.dumps, lines)))
        return read_labels(made, rubric)


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


def measured(
    settings: Settings, name: str, rubric: Rubric, labels: LabelSet, others: Sequence[Rubric], *, offline: bool
) -> Measured:
    """One label set, asked both ways."""
    both = [asked(settings, replace(rubric, ask=way), labels, others, offline=offline) for way in WAYS]
    found = []
    for alone, together in zip(both[0].rows, both[1].rows, strict=True):
        if isinstance(alone.outcome, Score) and isinstance(together.outcome, Score):
            label = alone.label > 0.5
            found.append(Verdicts(alone.item.cluster, label, alone.outcome.passed, together.outcome.passed))
    tokens = {way: _tokens(one) for way, one in zip(WAYS, both, strict=True)}
    return Measured(name, found, len(labels.items), tokens)


def _tokens(calibrated: Calibrated) -> tuple[float, float] | None:
    usages = [outcome.usage for outcome in calibrated.outcomes if isinstance(outcome, Score)]
    told = [(u.prompt_tokens, u.completion_tokens) for u in usages if u.prompt_tokens and u.completion_tokens]
    return (float(np.mean([t[0] for t in told])), float(np.mean([t[1] for t in told]))) if told else None


def difference(sets: Sequence[Measured]) -> Statistic:
    """Mean over the sets of kappa together less kappa alone; situations are resampled."""
    rows = [(at, verdicts) for at, one in enumerate(sets) for verdicts in one.verdicts]
    # Eight patterns in each set: label by alone by together.
    terms = np.zeros((len(rows), 8 * len(sets)))
    for row, (at, v) in enumerate(rows):
        terms[row, 8 * at + 4 * v.label + 2 * v.alone + v.together] = 1.0
    situations = [f"{at}/{v.situation}" for at, v in rows]
    draws = Bootstrap(len(rows), clusters=situations, n_resamples=5000, seed=0)

    def statistic(sums: np.ndarray) -> np.ndarray:
        table = sums.reshape(*sums.shape[:-1], len(sets), 2, 2, 2)
        alone, together = kappa_of_table(table.sum(axis=-1)), kappa_of_table(table.sum(axis=-2))
        return (together - alone).mean(axis=-1)

    return draws.ci(terms, statistic)


def _difference(sets: Sequence[Measured]) -> str:
    differ = sum(v.alone != v.together for one in sets for v in one.verdicts)
    found = difference(sets)
    if found.value is None:
        return found.reason or ""
    if differ < LEAST_DIFFERENT:
        # Resampled, so few would claim more than they know: none at all an interval from 0 to 0.
        return f"{found.value:+.3f} ({differ} differ{'s' * (differ == 1)})"
    ends = "" if found.lower is None or found.upper is None else f" ({found.lower:+.2f} to {found.upper:+.2f})"
    return f"{found.value:+.3f}{ends}"


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
            f"{_kappa(one.kappa('together'))} | {_difference([one])} | {one.alike:.0%} | {tokens} |"
        )
    records, verdicts = sum(one.records for one in sets), sum(len(one.verdicts) for one in sets)
    alike = sum(one.alike * len(one.verdicts) for one in sets) / verdicts
    means = [_mean([one.kappa(way) for one in sets]) for way in WAYS]
    both = _difference(sets)
    lines.append(f"| all, mean | {records} | {verdicts} | {means[0]} | {means[1]} | {both} | {alike:.0%} | | |")
    return "\n".join(lines)


def written(page: str, runs: Sequence[dict[str, Any]]) -> str:
    """The page with a table of each run between its marks."""
    tables = [
        f"*{run['name']}* ({run['date']}):\n\n{table([Measured.of_json(one) for one in run['sets']])}\n" for run in runs
    ]
    return MARKED.sub(lambda marks: f"{marks[1]}\n" + "\n".join(tables) + f"\n{marks[2]}", page)


def saved() -> list[dict[str, Any]]:
    """The runs that the page shows, in its order."""
    found: list[dict[str, Any]] = json.loads(SAVED.read_text()) if SAVED.exists() else []
    return found


def save(name: str, sets: Sequence[Measured]) -> None:
    """Keep a run; one of the same name gives up its place."""
    run = {"name": name, "date": datetime.now(UTC).date().isoformat(), "sets": [one.as_json() for one in sets]}
    # Names keep the places in which they came.
    runs = {known["name"]: known for known in saved()} | {name: run}
    SAVED.write_text(json.dumps(list(runs.values()), indent=1) + "\n")


def _chosen(given: argparse.Namespace, rubrics: Sequence[Rubric]) -> list[tuple[str, Rubric, LabelSet]]:
    """Name, rubric and labels of each set that was asked for."""
    by_name = {rubric.name: rubric for rubric in rubrics}
    wanted = given.sets.split(",") if given.sets else list(by_name)
    if unknown := [name for name in wanted if name not in by_name]:
        raise ValueError(f"--sets: {unknown[0]!r}: {suggestion(unknown[0], list(by_name))}")
    if given.people is None:
        shipped = [(name, by_name[name]) for name in by_name if name in wanted]
        return [
            (name, rubric, some_of(read_labels(ROOT / "calibration" / f"{name}.jsonl", rubric), given.every))
            for name, rubric in shipped
        ]
    found = []
    for file, name, rubric_name in PEOPLE:
        path = next((at for end in (".jsonl.gz", ".jsonl") if (at := given.people / f"{file}{end}").exists()), None)
        if rubric_name in wanted and path is not None:
            rubric = by_name[rubric_name]
            found.append((name, rubric, by_people(path, rubric, given.each)))
    if not found:
        files = ", ".join(f"{file}.jsonl.gz" for file, *_ in PEOPLE)
        raise ValueError(f"--people: {given.people} has none of {files}")
    return found


def main() -> None:
    """Judge and print; with `--save` keep it, and with either flag write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="takes each Nth situation of a shipped set")
    parser.add_argument("--people", type=Path, metavar="DIRECTORY", help="of the sets that people have labelled")
    parser.add_argument("--each", type=int, default=120, metavar="N", help="records of a set that people have labelled")
    parser.add_argument("--sets", default="", help="such as relevance,safety: those of these rubrics; else all")
    parser.add_argument("--offline", action="store_true", help="ask nobody: what is kept")
    parser.add_argument("--save", metavar="NAME", help=f"keep the run in {SAVED.name}, and write {PAGE.name}")
    parser.add_argument("--write", action="store_true", help=f"{PAGE.name} from {SAVED.name}, and nothing else")
    given = parser.parse_args()
    for option, least in (("every", 1), ("each", 2)):
        if getattr(given, option) < least:
            parser.error(f"--{option}: {least} or more")
    if given.write and given.save:
        parser.error("--write: --save writes the page as well: leave one out")
    if given.people is not None and given.every != 1:
        parser.error("--every: is of the shipped sets: --each says how many of one that people have labelled")
    if not given.write:
        try:
            settings, rubrics = load_settings(), load_rubrics()
            try:
                chosen = _chosen(given, rubrics)
            except ValueError as error:
                parser.error(str(error))
            sets = [
                measured(settings, *one, rubrics, offline=given.offline)
                for one in track(chosen, "judging", console=Console(stderr=True))
            ]
        except AssayError as error:
            parser.exit(2, f"{error}\n")
        if empty := [one.name for one in sets if not one.verdicts]:
            parser.exit(1, f"no record has a verdict of both ways: {', '.join(empty)}\n")
        sys.stdout.write(table(sets) + "\n")
        if given.save:
            save(given.save, sets)
    if given.save or given.write:
        PAGE.write_text(written(PAGE.read_text(), saved()))


if __name__ == "__main__":
    main()
