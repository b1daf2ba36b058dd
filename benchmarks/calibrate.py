"""How long `assay calibrate` takes on labels whose outcomes are all kept: the loop of tuning a rubric.

    python benchmarks/calibrate.py [--records 1000] [--runs 5] [--annotators 3] [--older 100000]

Writes synthetic labels (ordinal levels, several annotators, clusters and strata), keeps an outcome of a model for each
of them beside `--older` outcomes of other versions, and runs the command as a process of its own. No judge is asked.
Shown: the fastest run on the clock from start to exit, its CPU time, and what parts of it take, inside one process.
Exits with 1 when the fastest of the runs takes more than twice the CPU of a calibration by 100 labels with no older
outcome, most of which is its start. It should take under 2 s, which is told and not asserted: machines differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from assay.judged import JudgedOutcomes
from assay.judges import describe_judge
from assay.labels import read_labels
from assay.records import Score, Usage
from assay.rubrics import Rubric, load_rubrics
from assay.settings import load_settings
from assay.wiring import judge_settings

BOUND_RATIO = 2.0
FEW_RECORDS = 100
MODEL = "gpt-5-mini"


def write_labels(path: Path, records: int, annotators: int) -> None:
    draw = random.Random(7)
    head = {
        "label_file": 1,
        "rubric": "relevance",
        "annotators": "model",
        "synthetic": True,
        "selection": "probability",
    }
    rows = [json.dumps(head)]
    for n in range(records):
        level = draw.choice([1, 2, 3, 4, 4, 5, 5, 5])
        near = [min(5, max(1, level + draw.choice([-1, 0, 0, 0, 1]))) for _ in range(annotators)]
        record = {
            "record_id": f"record-{n}",
            "timestamp": "2026-01-31T12:00:00Z",
            "input": f"What does item {n} cost, and when does it come?",
            "output": " ".join(
                draw.choice(("it", "costs", "comes", "five", "euros", "in", "days")) for _ in range(120)
            ),
            "contexts": [{"text": "Synthetic passage. " * 40} for _ in range(4)],
        }
        row = {
            "record": record,
            "labels": {f"annotator-{a}": grade for a, grade in enumerate(near)},
            "probability": draw.choice([1.0, 0.25]),
            "stratum": draw.choice(["web", "api"]),
            "cluster": f"session-{n // 2}",
        }
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n")


def keep_outcomes(directory: Path, labels: Path, rubric: Rubric, fingerprint: str, older: int) -> None:
    draw = random.Random(8)
    items = read_labels(labels, rubric).items
    with JudgedOutcomes(directory, rubric, fingerprint) as kept:
        for item in items:
            assert item.record is not None
            value = min(1.0, max(0.0, sum(grades[0] for grades in item.labels.values()) / len(item.labels)))
            value = round(min(1.0, max(0.0, value + draw.uniform(-0.3, 0.3))) * 4) / 4
            outcome = Score(
                value=value,
                passed=value >= rubric.pass_threshold,
                raw=1 + 4 * value,
                explanation="synthetic explanation " * 8,
                usage=Usage(prompt_tokens=900, completion_tokens=60, cost_usd=0.0003),
                latency_seconds=1.0,
            )
            kept.add(kept.key(item.record), outcome)
        line = kept.path.read_bytes().splitlines(keepends=True)[0]
    with kept.path.open("ab") as file:
        for n in range(older):
            file.write(f"{n:064x} {n:064x} ".encode() + line[130:])


def run(directory: Path, labels: Path) -> tuple[float, float]:
    """Seconds on the clock and of CPU, from the start of the process to its exit."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ASSAY_", "OPENAI_"))}
    own = {"ASSAY_DATA_DIR": str(directory), "ASSAY_JUDGE": "openai", "ASSAY_JUDGE_MODEL": MODEL}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "assay", "calibrate", str(labels), "--offline", "--no-store"],
        env=clean | own,
        cwd=directory,
        capture_output=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (0, 3), done.stderr.decode()
    assert b"not judged" not in done.stdout
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def parts(directory: Path, labels: Path, rubric: Rubric, fingerprint: str) -> list[tuple[str, float]]:
    """Seconds of the parts, in this process, imports done."""
    from assay.calibrate import calibrate

    taken: list[tuple[str, float]] = []

    def measure(name: str, since: float) -> float:
        now = time.perf_counter()
        taken.append((name, now - since))
        return now

    clock = time.perf_counter()
    label_set = read_labels(labels, rubric)
    clock = measure("reading the labels", clock)
    with JudgedOutcomes(directory, rubric, fingerprint) as kept:
        keys = {kept.key(item.record): item.item_id for item in label_set.items if item.record is not None}
        found = kept.find(list(keys))
    clock = measure("finding the outcomes", clock)
    calibrated = calibrate(
        label_set,
        rubric,
        judge=f"openai:{MODEL}",
        judge_fingerprint=fingerprint,
        outcomes={keys[key]: outcome for key, outcome in found.items()},
    )
    clock = measure("the statistics", clock)
    calibrated.calibration.to_json()
    measure("the artefact", clock)
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--annotators", type=int, default=3)
    parser.add_argument("--older", type=int, default=100_000)
    given = parser.parse_args()
    (rubric,) = [found for found in load_rubrics() if found.name == "relevance"]
    _, fingerprint = describe_judge(None, judge_settings(load_settings(judge="openai", judge_model=MODEL)))
    with tempfile.TemporaryDirectory() as temporary:
        directory, few = Path(temporary) / "all", Path(temporary) / "few"
        for where, records, older in ((directory, given.records, given.older), (few, FEW_RECORDS, 0)):
            where.mkdir()
            write_labels(where / "labels.jsonl", records, given.annotators)
            keep_outcomes(where / "judged", where / "labels.jsonl", rubric, fingerprint, older)
        labels = directory / "labels.jsonl"
        size = sum(file.stat().st_size for file in (directory / "judged").iterdir()) / 1e6
        print(f"{given.records} labels by {given.annotators}, {given.older} older outcomes ({size:.0f} MB)")
        runs = [run(directory, labels) for _ in range(given.runs)]
        fastest, cpu = min(runs)
        _, least = min(run(few, few / "labels.jsonl") for _ in range(given.runs))
        print(f"assay calibrate   fastest {fastest:.2f} s, {cpu:.2f} s of CPU; all {[round(r[0], 2) for r in runs]}")
        for name, seconds in parts(directory / "judged", labels, rubric, fingerprint):
            print(f"  {name:<22} {seconds:.3f} s")
    print(f"{cpu / least:.2f} times the CPU of {FEW_RECORDS} labels and no older outcome")
    if cpu >= BOUND_RATIO * least:
        print(f"BOUND NOT HELD: ratio {BOUND_RATIO:g}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
