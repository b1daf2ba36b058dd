"""What a cascade costs and finds, against people's labels: the table of docs/explanation/cost.md.

    python benchmarks/cascade.py DIRECTORY [--first lexical|rules] [--sets TEXT,TEXT]

DIRECTORY is that of benchmarks/keyless.py. People's labels stand for the model: it is taken to be right. Every record
that the first judge does not pass is judged, and of the others a share. What is printed, for each set and share:

- judged: share of the records that the model is asked for
- failing judged: share of the failing records that it is asked for, and so many times that of a plain sample of the
  same size
- interval: length of the pass ratio's interval, in those of judging everything; sqrt(sum of (x - r)^2 / p over that of
  (x - r)^2), the large-sample variance of the Hajek mean
- cost: of the same interval, in that of plain sampling, whose interval is 1 / sqrt(judged) long
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import numpy as np
from keyless import judge_file

from assay.cascade import Cascade
from assay.judges import JudgeSettings, build_judge
from assay.records import Score
from assay.rubrics import JudgeSpec, load_rubrics

SHARES = (0.1, 0.2, 0.3, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--first", choices=["lexical", "rules"], default="lexical")
    parser.add_argument("--sets", default="ragtruth,haluquest,frank", help="files with these texts in their names")
    given = parser.parse_args()
    rubrics = {rubric.dimension: rubric for rubric in load_rubrics()}
    judge = build_judge(JudgeSpec(engine=given.first), JudgeSettings())
    print("| set | in doubt | share | judged | failing judged | interval | cost at equal interval |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for path in sorted(given.directory.glob("*.jsonl*")):
        if not any(text in path.name for text in given.sets.split(",")):
            continue
        wholes, _ = asyncio.run(judge_file(judge, {str(name): rubric for name, rubric in rubrics.items()}, path))
        for name, judged in wholes.items():
            values, fails = judged.arrays()
            threshold = next(r.pass_threshold for d, r in rubrics.items() if name.startswith(d))
            for share in SHARES:
                cascade = Cascade(first=given.first, share=share)
                scores = [Score(value=value, passed=value >= threshold) for value in values]
                chances = np.array([cascade.probability(score) for score in scores])
                print(row(name, share, chances, fails))


def row(name: str, share: float, chances: np.ndarray, fails: np.ndarray) -> str:
    """A line of the table: `chances` and `fails` are 1-D, one for each record."""
    judged, squares = chances.mean(), ((~fails) - (~fails).mean()) ** 2
    longer = (squares / chances).sum() / squares.sum()
    found = (chances * fails).sum() / fails.sum()
    return (
        f"| {name} ({fails.size:,}, {(~fails).mean():.0%} pass) | {(chances == 1).mean():.0%} | {share} | {judged:.0%} "
        f"| {found:.0%}, {found / judged:.2f} times | {longer**0.5:.2f} | {judged * longer:.2f} |"
    )


if __name__ == "__main__":
    main()
