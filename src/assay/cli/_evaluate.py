"""`assay evaluate`: a golden set through the rubrics, as a release gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from assay import wiring
from assay.cli._options import chosen_rubrics, pairs
from assay.cli._screen import Json, errors, output, print_json, print_table, ratio
from assay.errors import ConfigError, FileError
from assay.golden import describe, read_golden, summarise
from assay.settings import load_settings
from assay.spelling import many

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from assay.golden import GoldenResult
    from assay.records import Record
    from assay.rubrics import Rubric
    from assay.settings import Settings

_EXIT_BELOW, _EXIT_UNKNOWN = 3, 4
_WORDS = {"pass": "pass", "fail": "below", "unknown": "not known", "no_threshold": "–"}


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("evaluate")(evaluate_golden)


def evaluate_golden(
    golden: Annotated[Path, typer.Argument(help="Golden set: records as JSON Lines.", dir_okay=False)],
    rubric: Annotated[list[str] | None, typer.Option(help="Only these rubrics (names or files); repeatable.")] = None,
    least: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="RUBRIC=RATIO", help="Least share that must pass. Default: the objective."),
    ] = None,
    max_failed: Annotated[int, typer.Option(min=0, help="Records without a verdict that are put up with.")] = 0,
    budget: Annotated[float | None, typer.Option(metavar="USD", help="Most to spend; it is never passed.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no judge: use only the outcomes kept.")] = False,
    worst: Annotated[int, typer.Option(min=0, help="Records that did not pass to show, for each rubric.")] = 3,
    metrics: Annotated[
        Path | None, typer.Option(help="Write the series here, as Prometheus text.", dir_okay=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a golden set through the rubrics as production does, and say whether enough of it passes.

    Outcomes are kept: after an edit only what changed is judged again. Exit code 0: every threshold is reached;
    3: one is not; 4: not known, for too many records have no verdict; 2: a mistake in a file or an option.
    """
    settings = load_settings()
    rubrics = chosen_rubrics(settings, rubric or ())
    thresholds = _thresholds(rubrics, pairs("--min", least) or {})
    records = _read(golden)
    results = _evaluate(settings, rubrics, records, thresholds, max_failed, budget, offline=offline)
    if metrics is not None:
        from assay.metrics import golden_text

        try:
            metrics.write_bytes(golden_text(results))
        except OSError as error:
            raise ConfigError(f"{metrics} cannot be written: {error.strerror}") from None
    if as_json:
        print_json([result.as_json(worst=worst) for result in results])
    else:
        _print(golden, records, results, worst)
    verdicts = {result.verdict for result in results}
    if "fail" in verdicts:
        raise typer.Exit(_EXIT_BELOW)
    if "unknown" in verdicts:
        raise typer.Exit(_EXIT_UNKNOWN)


def _thresholds(rubrics: Sequence[Rubric], given: Mapping[str, str]) -> dict[str, float | None]:
    found = {rubric.name: rubric.objective for rubric in rubrics}
    for name, text in given.items():
        if name not in found:
            raise ConfigError(f"--min {name}={text}: no rubric is called that: there is {', '.join(found)}")
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = -1.0
        if not 0 < (found[name] or 0) <= 1:
            raise ConfigError(f"--min {name}={text}: write a share above 0 and up to 1, such as 0.9")
    return found


def _read(path: Path) -> list[Record]:
    try:
        with path.open("rb") as source:
            return read_golden(path, source)
    except OSError as error:
        raise FileError(error.strerror or str(error), path=path) from None


def _evaluate(
    settings: Settings,
    rubrics: Sequence[Rubric],
    records: Sequence[Record],
    thresholds: Mapping[str, float | None],
    max_failed: int,
    budget: float | None,
    *,
    offline: bool,
) -> list[GoldenResult]:
    # The judges need not load for a mistake in an option.
    from assay.cli._judging import judge_plan
    from assay.judging import Instrument, JudgingResult, plan_judging

    by_id = [(record.record_id, record) for record in records]
    results = []
    for rubric in rubrics:
        instrument = Instrument(rubric=rubric, settings=wiring.judge_settings(settings), others=tuple(rubrics))
        # Rubrics that are asked together are judged with the first of them, and found by the others.
        plan = plan_judging(by_id, instrument, settings.data_dir / "judged")
        if offline or not plan.todo:
            judged = JudgingResult(outcomes=dict(plan.known))
        else:
            errors.print(escape(f"{rubric.name}: {plan.forecast.sentence()}."), soft_wrap=True, highlight=False)
            judged = judge_plan(settings, plan, budget, records=len(records))
            if budget is not None:
                budget = max(0.0, budget - judged.spent_usd)
        results.append(
            summarise(
                records,
                rubric,
                plan.judge,
                judged.outcomes,
                threshold=thresholds[rubric.name],
                max_failed=max_failed,
            )
        )
    return results


def _print(golden: Path, records: Sequence[Record], results: Sequence[GoldenResult], worst: int) -> None:
    judges = {result.judge for result in results}
    same = f", judge {judges.pop()}" if len(judges) == 1 else ""
    print_table(
        f"{golden.name}: {many(len(records), 'record')}{same}",
        (
            "rubric",
            "version",
            *(() if same else ("judge",)),
            *("pass ratio", "wanted>", "", "mean>", "scored>", "failed>", "n/a>"),
        ),
        (
            (
                result.rubric.name,
                result.rubric.revision,
                *(() if same else (result.judge,)),
                ratio(result.pass_ratio),
                "–" if result.threshold is None else f"{result.threshold:.2f}",
                _WORDS[result.verdict],
                "–" if result.score_mean is None else f"{result.score_mean.value:.2f}",
                result.scored,
                sum(result.failed.values()) + result.not_judged,
                sum(result.not_applicable.values()),
            )
            for result in results
        ),
    )
    for result in results:
        for record, outcome in result.worst[:worst]:
            said = describe(outcome)
            why = said.get("explanation") or f"{said.get('failure')}: {said.get('message')}"
            line = f"{result.rubric.name}  {record.record_id}  {_value(said)}{why}"
            output.print(line, markup=False, highlight=False, soft_wrap=True)


def _value(said: Mapping[str, object]) -> str:
    value = said.get("value")
    return f"{value:.2f}  " if isinstance(value, float) else ""
