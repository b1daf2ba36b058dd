"""What the keyless judges find, against people's labels: each set, a threshold's origin, a record's cost.

    python benchmarks/keyless.py DIRECTORY [--judge lexical|rules] [--thresholds TEXT] [--json]

DIRECTORY holds `*.jsonl.gz` (or `*.jsonl`) files, one object a line: `id`, `input`, `contexts`, `output`, `dimension`,
and `human_label` in [0, 1], 1 being good; `meta.task` splits a file into its tasks; in files of pairs `output_a` and
`output_b` stand for `output`, and 1 means that A is better. None of it is part of this repository.

Of a file with whole outputs: AUC, and F1, recall and precision of the class that fails, at the shipped threshold. F1
depends on where a judge cuts, so it is also computed at the threshold that is best (by balanced accuracy) on each other
set of the dimension, without the records whose input the set itself has: `--thresholds ragtruth` shows those of the
sets with that text in their names.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from assay.judges import JudgeSettings, build_judge
from assay.records import Context, Record, Score, now
from assay.rubrics import JudgeSpec, load_rubrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from assay.judges import Judge
    from assay.rubrics import Rubric

#: Fewer than this in either class, and a threshold chosen there says nothing.
LEAST_IN_CLASS = 20


@dataclass(slots=True)
class Judged:
    """The values that a judge gave to the records of one set, and which of them fail by their labels."""

    values: list[float] = field(default_factory=list)
    fails: list[bool] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    without_score: int = 0

    def arrays(self, without: set[str] = frozenset()) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:  # type: ignore[assignment]
        """Values and fails, both 1-D, of the records whose input is not among these."""
        kept = [i for i, text in enumerate(self.inputs) if text not in without]
        return np.array([self.values[i] for i in kept], float), np.array([self.fails[i] for i in kept], bool)


def read(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            yield json.loads(line)


def record_of(row: dict[str, Any], output: str) -> Record:
    asked = row["input"] if isinstance(row["input"], str) else json.dumps(row["input"])
    contexts = tuple(Context(text=text) for text in row["contexts"])
    return Record(record_id=str(row["id"]), timestamp=now(), input=asked, output=output, contexts=contexts)


async def value_of(judge: Judge, rubric: Rubric, record: Record, judged: Judged) -> float | None:
    started = time.perf_counter()
    (outcome,) = await judge.judge(record, [rubric])
    judged.seconds.append(time.perf_counter() - started)
    if isinstance(outcome, Score):
        return outcome.value
    judged.without_score += 1
    return None


async def judge_file(
    judge: Judge, rubrics: dict[str, Rubric], path: Path
) -> tuple[dict[str, Judged], dict[str, Judged]]:
    """Sets of whole outputs, and of pairs (value: of A less that of B; fails: B is better), by name."""
    wholes: dict[str, Judged] = defaultdict(Judged)
    pairs: dict[str, Judged] = defaultdict(Judged)
    for row in read(path):
        rubric = rubrics[row["dimension"]]
        name = path.name.split(".")[0]
        task = row["meta"].get("task")
        name = f"{row['dimension']}: {name}" + (f" ({task})" if task else "")
        if "output" in row:
            value = await value_of(judge, rubric, record_of(row, row["output"]), wholes[name])
            if value is not None:
                keep(wholes[name], row, value)
        else:
            both = [
                await value_of(judge, rubric, record_of(row, row[k]), pairs[name]) for k in ("output_a", "output_b")
            ]
            if None not in both:
                keep(pairs[name], row, float(both[0]) - float(both[1]))  # type: ignore[arg-type]
    return wholes, pairs


def keep(judged: Judged, row: dict[str, Any], value: float) -> None:
    judged.values.append(value)
    judged.fails.append(row["human_label"] < 0.5)
    judged.inputs.append(str(row["input"]))


def auc(values: npt.NDArray[Any], fails: npt.NDArray[Any]) -> float | None:
    """Probability that a failing record has the lower value, ties half (Mann and Whitney's U over its most)."""
    bad, good = int(fails.sum()), int((~fails).sum())
    if not bad or not good:
        return None
    ranks = rankdata(-values)
    return float((ranks[fails].sum() - bad * (bad + 1) / 2) / (bad * good))


def fail_rates(values: npt.NDArray[Any], fails: npt.NDArray[Any], threshold: float) -> tuple[float, float, float]:
    """F1, recall and precision of the failing class where a value below the threshold fails."""
    flagged = values < threshold
    hits = int((flagged & fails).sum())
    recall = hits / max(1, int(fails.sum()))
    precision = hits / max(1, int(flagged.sum()))
    return 2 * hits / max(1, int(fails.sum() + flagged.sum())), recall, precision


def best_threshold(values: npt.NDArray[Any], fails: npt.NDArray[Any]) -> float | None:
    """The threshold of the best balanced accuracy; None where a class has too few records to choose by."""
    if min(int(fails.sum()), int((~fails).sum())) < LEAST_IN_CLASS:
        return None
    candidates = np.unique(values)
    between = np.concatenate([candidates[:1], (candidates[1:] + candidates[:-1]) / 2])
    scores = [(values[fails] < t).mean() + (values[~fails] >= t).mean() for t in between]
    return float(between[int(np.argmax(scores))])


def measure(directory: Path, engine: str, console: Console) -> dict[str, Any]:
    judge = build_judge(JudgeSpec(engine=engine), JudgeSettings(engine=engine))  # type: ignore[arg-type]
    rubrics = {rubric.dimension: rubric for rubric in load_rubrics()}
    wholes: dict[str, Judged] = {}
    pairs: dict[str, Judged] = {}
    for path in sorted([*directory.glob("*.jsonl.gz"), *directory.glob("*.jsonl")]):
        console.print(f"judging {path.name}", style="dim")
        found = asyncio.run(judge_file(judge, rubrics, path))
        wholes |= found[0]
        pairs |= found[1]
    rows, transfers = [], []
    for name, judged in sorted(wholes.items()):
        values, fails = judged.arrays()
        threshold = rubrics[name.partition(":")[0]].pass_threshold
        f1, recall, precision = fail_rates(values, fails, threshold) if len(values) else (0.0, 0.0, 0.0)
        rows.append(
            {
                "set": name,
                "records": len(values),
                "without_score": judged.without_score,
                "fails": int(fails.sum()),
                "auc": auc(values, fails) if len(values) else None,
                "f1": f1,
                "recall": recall,
                "precision": precision,
                "f1_if_all_fail": 2 * fails.mean() / (1 + fails.mean()) if len(values) else None,
                "milliseconds": 1000 * float(np.median(judged.seconds)),
            }
        )
        for other, others in sorted(wholes.items()):
            if other == name or other.partition(":")[0] != name.partition(":")[0] or not len(values):
                continue
            chosen = best_threshold(*others.arrays(set(judged.inputs)))
            if chosen is not None:
                moved = fail_rates(values, fails, chosen)
                transfers.append({"set": name, "chosen_on": other, "threshold": chosen, "f1": moved[0]})
    preferred = [
        {
            "set": name,
            "pairs": len(judged.values),
            "right": float(
                np.mean([0.5 if v == 0 else (v < 0) == f for v, f in zip(judged.values, judged.fails, strict=True)])
            ),
            "milliseconds": 1000 * float(np.median(judged.seconds)),
        }
        for name, judged in sorted(pairs.items())
        if judged.values
    ]
    return {"judge": engine, "sets": rows, "thresholds": transfers, "pairs": preferred}


def show(found: dict[str, Any], thresholds: str | None, console: Console) -> None:
    moved = [row for row in found["thresholds"] if thresholds is not None and thresholds in row["set"]]
    for title, rows in (
        ("Whole outputs", found["sets"]),
        ("Thresholds chosen elsewhere", moved),
        ("Pairs", found["pairs"]),
    ):
        if not rows:
            continue
        table = Table(title=f"{title}: judge {found['judge']}")
        for name in rows[0]:
            table.add_column(name.replace("_", " "), justify="left" if isinstance(rows[0][name], str) else "right")
        for row in rows:
            table.add_row(*(f"{v:.2f}" if isinstance(v, float) else "–" if v is None else str(v) for v in row.values()))
        console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--judge", default="lexical", choices=("lexical", "rules"))
    parser.add_argument("--thresholds", metavar="TEXT", help="show the F1 of these sets at thresholds chosen elsewhere")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not given.directory.is_dir():
        sys.stderr.write(f"{given.directory}: not a directory of label files\n")
        return 2
    found = measure(given.directory, given.judge, Console(stderr=True, quiet=given.json))
    if given.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        show(found, given.thresholds, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
