"""assay beside the libraries that people judge with today, in one run, on the same records and the same judge server.

Each library has a driver in `benchmarks/peers/` and an environment of its own under `.servers/` (made on first use by
make, 1.6 GB in all). 300 synthetic RAG records, four dimensions each, a judge that takes 600 ms. Settings are
interleaved; shown are medians. Every library runs in the setting that its documentation shows and in the fastest that
we know; where it counts calls and not records, four times as many calls are in flight. What is slow as documented gets
fewer records. A driver that fails, or an environment that cannot be made, is listed with the reason and has no figures.

    python benchmarks/side_by_side.py                                # 3 rounds
    python benchmarks/side_by_side.py --rounds 1 --only raw,sqlite,ragas,deepeval
    python benchmarks/side_by_side.py --json docs/performance.json   # then benchmarks/performance_page.py
    python benchmarks/side_by_side.py --faults 429=0.05,500=0.05     # a tenth of the judge's answers are errors
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from performance_page import faults as table_of_faults
from performance_page import peers as table
from throughput import conditions, floor, judge_server, measured_row, medians, rag_record, system, traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
ROOT = HERE.parent
WARM_RECORDS = 8
_OURS = ("raw", "sqlite")


class Setting(NamedTuple):
    """How a library is run."""

    library: str
    name: str
    label: str
    in_flight: int = 128
    most_records: int = 300


SETTINGS = (
    Setting("autoevals", "closed-qa", "autoevals, four ClosedQA"),
    Setting("autoevals", "ragas-port", "autoevals, its port of ragas"),
    Setting("openevals", "client", "openevals, plain client"),
    Setting("openevals", "langchain", "openevals, model by name"),
    Setting("phoenix", "concurrent", "phoenix-evals, no limit of rate"),
    Setting("phoenix", "default", "phoenix-evals, as documented", in_flight=3, most_records=30),
    Setting("pydantic", "kept", "pydantic-evals, model kept"),
    Setting("pydantic", "by-name", "pydantic-evals, model by name", most_records=100),
    Setting("mlflow", "direct", "mlflow, judges called from threads"),
    Setting("mlflow", "evaluate", "mlflow `genai.evaluate`, 16 workers", in_flight=16, most_records=100),
    Setting("mlflow", "evaluate-default", "mlflow `genai.evaluate`, as documented", in_flight=10, most_records=100),
    Setting("ragas", "collections", "ragas `metrics.collections`"),
    Setting("ragas", "evaluate", "ragas `evaluate()`, 256 workers", in_flight=64),
    Setting("ragas", "evaluate-default", "ragas `evaluate()`, as documented", in_flight=16, most_records=100),
    Setting("deepeval", "measure", "deepeval, one client, without `evaluate()`"),
    Setting("deepeval", "evaluate", "deepeval `evaluate()`", most_records=100),
    Setting("deepeval", "evaluate-default", "deepeval `evaluate()`, as documented", in_flight=20, most_records=60),
)


class NotDrivenError(Exception):
    """A setting that gave no figures, and why."""


def environment(library: str) -> Path:
    """The interpreter of a library's environment, made if it is not there; raises NotDrivenError."""
    home = ROOT / ".servers" / f"peers-{library}"
    if not (home / ".installed").exists():
        made = subprocess.run(
            ["make", f".servers/{home.name}/.installed"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise NotDrivenError(f"cannot be installed: {_last_line(made.stderr)}")
    return home / "bin" / "python"


def _last_line(text: str) -> str:
    # What make says after it tells only that it has failed.
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("make")]
    return (lines or ["no output"])[-1][:300]


def drive(setting: Setting, python: Path, url: str, records: int, timeout_seconds: float) -> dict[str, Any]:
    """What one run of a driver tells, in a process of its own and an empty directory; raises NotDrivenError."""
    count = min(records, setting.most_records)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "records.jsonl"
        path.write_text("".join(_lines(count)), encoding="utf-8")
        command = [str(python), str(HERE / "peers" / f"{setting.library}_driver.py"), str(path), url]
        command += [setting.name, str(setting.in_flight)]
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
        try:
            done = subprocess.run(
                command,
                cwd=directory,
                env={**kept, "HOME": directory},
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NotDrivenError(f"not done after {timeout_seconds:g} s") from None
    if done.returncode:
        raise NotDrivenError(f"its driver ended with {done.returncode}: {_last_line(done.stderr)}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _lines(count: int) -> list[str]:
    indexes = [*range(2_000_000, 2_000_000 + WARM_RECORDS), *range(count)]
    made = [rag_record(index) for index in indexes]
    return [
        json.dumps(
            {"question": one.input, "passages": [context.text for context in one.contexts], "answer": one.output}
        )
        + "\n"
        for one in made
    ]


def row_of(setting: Setting, found: dict[str, Any]) -> dict[str, Any]:
    """The figures of one run, by record."""
    records = found["records"]
    counts = ("calls", "prompt_tokens", "completion_tokens", "embedding_calls", "embedding_tokens")
    return {
        "name": f"{setting.library}:{setting.name}",
        "processes": 1,
        "records": records,
        "label": setting.label,
        "version": found["version"],
        "in_flight": setting.in_flight,
        "records_per_second": records / found["seconds"],
        "cpu_ms_per_record": 1000 * found["cpu_seconds"] / records,
        **{f"{name}_per_record": found[name] / records for name in counts},
        **{name: found[name] for name in ("seconds", "rss_mb", "import_seconds", "scores", "missing_scores")},
    }


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """All that is asked for in turn, `given.rounds` times: medians, and what could not be driven."""
    rows: dict[str, list[dict[str, Any]]] = {}
    not_driven: dict[str, str] = {}
    loads = [os.getloadavg()[0]]
    chosen = [one for one in SETTINGS if {one.library, f"{one.library}:{one.name}"} & set(given.only)]
    server = ["--latency", str(given.latency), "--replier", "peers.replies:reply", "--faults", given.faults]
    with judge_server(*server) as url:
        for number in range(given.rounds):
            # The floor does not try again.
            for name in (one for one in _OURS if one in given.only and not (given.faults and one == "raw")):
                before = traffic(url)
                run = floor(name, url, given) if name == "raw" else system(name, None, url, given)
                extra = min(given.records, given.in_flight) if name == "raw" else 200
                row = measured_row(name, run, given.records, 1, extra, url, before)
                _keep(rows, number, {**row, "in_flight": given.in_flight, "missing_scores": 0})
            for setting in chosen:
                key = f"{setting.library}:{setting.name}"
                if key in not_driven:
                    continue
                try:
                    found = drive(setting, environment(setting.library), url, given.records, given.timeout)
                    _keep(rows, number, row_of(setting, found))
                except NotDrivenError as reason:
                    not_driven[key] = str(reason)
                    print(f"round {number + 1}: {key}: {reason}", file=sys.stderr, flush=True)
                loads.append(os.getloadavg()[0])
    return {
        "conditions": {
            **conditions(given),
            "least_load": round(min(loads), 1),
            "most_load": round(max(loads), 1),
            **({"faults": given.faults} if given.faults else {}),
        },
        "rows": [
            # A median would hide scores that were missing once.
            {**medians(several), "missing_scores": max(row["missing_scores"] for row in several)}
            for key, several in rows.items()
            if key not in not_driven
        ],
        "not_driven": [{"name": name, "reason": reason} for name, reason in not_driven.items()],
    }


def _keep(rows: dict[str, list[dict[str, Any]]], number: int, row: dict[str, Any]) -> None:
    rows.setdefault(row["name"], []).append(row)
    print(
        f"round {number + 1}: {row['name']:28} {row['records_per_second']:8.1f} records/s "
        f"{row['cpu_ms_per_record']:7.2f} ms CPU a record, {row['missing_scores']} scores missing, "
        f"load {os.getloadavg()[0]:.1f}",
        file=sys.stderr,
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    names = [*_OURS, *dict.fromkeys(one.library for one in SETTINGS)]
    settings = [f"{one.library}:{one.name}" for one in SETTINGS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=300, help="at most; some settings get fewer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.6, help="of the judge, in seconds")
    parser.add_argument("--in-flight", type=int, default=128, help="judge calls in flight of assay and of the floor")
    several = f"of {', '.join(names)}; or a setting such as ragas:evaluate"
    parser.add_argument("--only", default=",".join(names), help=several)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one run of a driver")
    parser.add_argument("--faults", default="", help="shares of the judge's answers, such as 429=0.05,500=0.05")
    parser.add_argument("--json", type=Path, help="add the results to this file, under `peers` or `faults`")
    given = parser.parse_args(arguments)
    given.only, given.sigma = given.only.split(","), 0.0
    if unknown := sorted(set(given.only) - {*names, *settings}):
        parser.error(f"--only: {unknown[0]} is not one of {', '.join([*names, *settings])}")
    result = compare(given)
    print((table_of_faults if given.faults else table)(result["rows"]))
    for one in result["not_driven"]:
        print(f"\nnot driven: {one['name']}: {one['reason']}")
    if not result["rows"]:
        raise SystemExit("nothing could be driven")
    if given.json:
        known = json.loads(given.json.read_text()) if given.json.exists() else {}
        known["faults" if given.faults else "peers"] = result
        given.json.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
