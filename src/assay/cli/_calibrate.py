"""`assay calibrate`: how far a judge can be trusted, by labels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from assay import wiring
from assay.cli._options import is_file, one_rubric, pairs
from assay.cli._screen import Json, errors, print_json
from assay.codec import decode_record
from assay.errors import ConfigError, NoVerdictsError, StoreError
from assay.files import open_file
from assay.judges import ASKING
from assay.rubrics import load_rubrics
from assay.settings import load_settings

# numpy, and all that imports it, loads inside the command: no other command waits for it.
if TYPE_CHECKING:
    from collections.abc import Mapping

    from assay.calibrate import Calibrated
    from assay.calibration import Calibration, Level
    from assay.judging import Instrument, JudgingResult
    from assay.labels import LabelSet
    from assay.records import Outcome
    from assay.rubrics import Rubric
    from assay.settings import Settings

_EXIT_UNUSABLE, _EXIT_NO_DATA = 3, 4
_ENGINES = ("openai", "ragas", "lexical", "rules")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("calibrate")(calibrate_judge)


_Labels = Annotated[Path, typer.Argument(help="Label file: JSON Lines, or CSV.", dir_okay=False)]
_RubricName = Annotated[
    str | None, typer.Option(help="Name of a rubric, or a rubric file. Default: the one the label file names.")
]
_Judge = Annotated[
    str | None,
    typer.Option(metavar="ENGINE[:MODEL]", help="Judge to calibrate: `lexical`, `openai:gpt-5-mini`, `ragas:METRIC`."),
]
_Compare = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="A B", help="Compare two rubric files, judges, or `ask=together` and `ask=alone`."),
]
_Gold = Annotated[
    str | None, typer.Option(help="What annotators say together: `majority`, `mean`, `any_fail`, `expert:NAME`.")
]
_Annotators = Annotated[
    Literal["human", "author", "model", "unknown"] | None, typer.Option(help="Who labelled, if the file is wrong.")
]
_Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", metavar="COLUMN=FIELD", help="A table's column and what it holds; repeatable."),
]
_Values = Annotated[
    list[str] | None,
    typer.Option("--values", metavar="WORD=LABEL", help="A table's word for `pass`, `fail` or a grade; repeatable."),
]
_PassesFrom = Annotated[
    float | None,
    typer.Option(metavar="GRADE", help="Grade from which on a label passes. Default: the rubric's threshold."),
]
_Budget = Annotated[float | None, typer.Option(metavar="USD", help="Most to spend; it is never passed.")]
_Offline = Annotated[bool, typer.Option("--offline", help="Ask no judge: use only the outcomes that are kept.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be judged, and its cost.")]
_MinFailRecall = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Least fail recall, by its lower bound, for the level `calibrated`.")
]
_Worst = Annotated[int, typer.Option(min=0, help="Disagreements to show.")]
_Html = Annotated[Path | None, typer.Option(help="Write the report as one HTML file.", dir_okay=False)]
_Save = Annotated[Path | None, typer.Option(help="Write the calibration into this directory.", file_okay=False)]
_NoStore = Annotated[bool, typer.Option("--no-store", help="Do not keep the calibration in the database.")]


def calibrate_judge(
    labels: _Labels,
    rubric: _RubricName = None,
    judge: _Judge = None,
    model: Annotated[str | None, typer.Option(help="Model to ask.")] = None,
    compare: _Compare = None,
    gold: _Gold = None,
    annotators: _Annotators = None,
    columns: _Columns = None,
    values: _Values = None,
    passes_from: _PassesFrom = None,
    budget: _Budget = None,
    offline: _Offline = False,
    dry_run: _DryRun = False,
    min_fail_recall: _MinFailRecall = 0.5,
    worst: _Worst = 5,
    html: _Html = None,
    save: _Save = None,
    no_store: _NoStore = False,
    as_json: Json = False,
) -> None:
    """Measure a judge against labels: what it finds, how often it is right, and what it may be used for.

    Judges what is not judged yet, and keeps each outcome: after an edit of the rubric only what changed is judged
    again. Exit code 0: usable; 3: unusable; 4: not enough data, or not every record was judged; 2: a mistake in a
    file or an option.
    """
    from assay.labels import read_labels

    if compare is not None and (html is not None or save is not None):
        raise ConfigError("--html and --save go with one judge: leave --compare out")
    if judge is not None and model is not None and ":" in judge:
        raise ConfigError("--judge names a model already: leave --model out")
    settings = load_settings(judge_model=model)
    if rubric is None and compare is not None:
        rubric = next((variant for variant in compare if is_file(variant)), None)
    asked = one_rubric(settings, rubric or _named_in(labels))
    command = _Command(
        settings=settings,
        rubric=asked,
        label_set=_with_records(
            settings,
            read_labels(
                labels,
                asked,
                columns=pairs("--columns", columns),
                values=pairs("--values", values),
                gold=gold,
                annotators=annotators,
                passes_from=passes_from,
            ),
        ),
        budget=budget,
        offline=offline,
        dry_run=dry_run,
        min_fail_recall=min_fail_recall,
        worst=worst,
        as_json=as_json,
    )
    try:
        level = _two(command, judge, compare) if compare else _one(command, judge, html, save, keep=not no_store)
    except NoVerdictsError as error:
        level = "no_data"
        if as_json:
            print_json({"level": level, "reasons": [str(error)]})
        else:
            errors.print(escape(str(error)), soft_wrap=True, highlight=False)
    if level == "no_data":
        raise typer.Exit(_EXIT_NO_DATA)
    if level == "unusable":
        raise typer.Exit(_EXIT_UNUSABLE)


@dataclass(frozen=True, kw_only=True)
class _Command:
    """What the options say, the same for both judges of a comparison."""

    settings: Settings
    rubric: Rubric
    label_set: LabelSet
    budget: float | None
    offline: bool
    dry_run: bool
    min_fail_recall: float
    worst: int
    as_json: bool


# What the options mean.


def _named_in(labels: Path) -> str:
    """The rubric that the first line of a label file names."""
    try:
        with open_file(labels) as file:
            head = json.loads(file.readline(100_000))
        if isinstance(head, dict) and "label_file" in head and isinstance(head.get("rubric"), str):
            return str(head["rubric"])
    except OSError as error:
        raise ConfigError(f"{labels}: {error.strerror}") from None
    except (ValueError, RecursionError):
        pass
    raise ConfigError(f"{labels} does not name its rubric: add --rubric")


def _with_records(settings: Settings, label_set: LabelSet) -> LabelSet:
    """The label set with the records of the store, where the file holds their ids alone."""
    lacking = label_set.without_record
    if not lacking:
        return label_set
    with wiring.open_store(settings) as store:
        return label_set.with_records(decode_record(payload) for payload in store.payloads(lacking).values())


def _instrument(command: _Command, judge: str | None, variant: str | None = None) -> Instrument:
    """The rubric and judge that the options come to, or a variant of them that `--compare` names."""
    from assay.judging import Instrument

    rubric = command.rubric
    if variant is not None:
        if is_file(variant):
            rubric = load_rubrics([Path(variant)])[0]
        elif variant in ("ask=together", "ask=alone"):
            rubric = replace(rubric, ask="together" if variant == "ask=together" else "alone")
        elif variant.partition(":")[0] in _ENGINES:
            judge = variant
        else:
            raise ConfigError(
                f"--compare {variant!r}: name a rubric file (.yaml), a judge (lexical, rules, openai[:MODEL], "
                "ragas:METRIC), ask=together or ask=alone"
            )
    settings = wiring.judge_settings(command.settings)
    if judge is not None:
        engine, _, model = judge.partition(":")
        metric = None
        if engine == "ragas":
            metric, _, model = model.partition(":")
        if engine not in _ENGINES or (model and engine not in ASKING) or metric == "":
            raise ConfigError(f"--judge {judge!r}: write lexical, rules, openai[:MODEL], or ragas:METRIC[:MODEL]")
        settings = replace(settings, engine=engine, metric=metric, model=model or settings.model)  # type: ignore[arg-type]
        # What the command line names wins over what the rubric names.
        rubric = replace(rubric, judge=None)
    return Instrument(rubric=rubric, settings=settings, others=tuple(wiring.read_rubrics(command.settings)))


# What is done.


def _one(command: _Command, judge: str | None, html: Path | None, save: Path | None, *, keep: bool) -> Level | None:
    from assay.calibration_summary import as_json
    from assay.cli._calibration_screen import print_report, say

    table = judge is None and any(item.judged is not None for item in command.label_set.items)
    if table:
        calibrated, stopped = _from_table(command), None
    else:
        instrument = _instrument(command, judge)
        result, name, fingerprint = _judged(command, instrument, command.budget)
        if result is None:
            return None
        stopped = result.stopped
        calibrated = _calibrated(command, instrument.rubric, name, fingerprint, result.outcomes, stopped)
    if html is not None:
        from assay.calibration_report import render_html

        _write(html, render_html(calibrated))
    if not command.as_json:
        print_report(calibrated, command.worst)
    saved, stored = None, False
    # A table may lack scores; a judge that was not asked for all records has not been measured.
    whole = table or calibrated.is_whole
    if whole:
        saved = calibrated.calibration.save(save) if save is not None else None
        # Scores in a table are those of a judge that no worker here runs.
        stored = keep and not table and _store(command.settings, calibrated.calibration)
    elif save is not None or keep:
        errors.print("The calibration is not kept, for not every record was judged.")
    if command.as_json:
        kept = {"saved": None if saved is None else str(saved), "stored": stored, "stopped": stopped}
        print_json(as_json(calibrated, worst=command.worst) | kept)
    else:
        if saved is not None:
            say(f"Saved as {saved}.")
        if stored:
            say("Kept in the database: the exporter and the gate go by it from now on, as far as its level allows.")
    return calibrated.report.level if whole else "no_data"


def _two(command: _Command, judge: str | None, variants: tuple[str, str]) -> Level | None:
    from assay.calibrate import compare_calibrated
    from assay.calibration.level import has_enough
    from assay.calibration_summary import comparison_json
    from assay.cli._calibration_screen import print_comparison

    budget = command.budget
    both = []
    for variant in variants:
        instrument = _instrument(command, judge, variant)
        result, name, fingerprint = _judged(command, instrument, budget)
        if result is None:
            continue
        if budget is not None:
            budget = max(0.0, budget - result.spent_usd)
        both.append(_calibrated(command, instrument.rubric, name, fingerprint, result.outcomes, result.stopped))
    if len(both) < 2:
        return None
    compared = compare_calibrated(both[0], both[1])
    if command.as_json:
        print_json({"names": list(variants)} | comparison_json(compared, worst=command.worst))
    else:
        print_comparison(compared, variants, command.worst)
    return None if all(one.is_whole and has_enough(one.report.rates) for one in both) else "no_data"


def _judged(command: _Command, instrument: Instrument, budget: float | None) -> tuple[JudgingResult | None, str, str]:
    """The outcomes, and name and fingerprint of the judge; no outcomes in a dry run."""
    from assay.cli._judging import judge_plan
    from assay.judging import JudgingResult, plan_judging

    settings = command.settings
    records = [(item.item_id, item.record) for item in command.label_set.items if item.record is not None]
    plan = plan_judging(records, instrument, settings.data_dir / "judged")
    if plan.forecast.calls or command.dry_run:
        errors.print(escape(plan.forecast.sentence() + "."), soft_wrap=True, highlight=False)
    if command.dry_run:
        return None, plan.judge, plan.judge_fingerprint
    if command.offline:
        return JudgingResult(outcomes=dict(plan.known)), plan.judge, plan.judge_fingerprint
    result = judge_plan(settings, plan, budget, records=len(records))
    return result, plan.judge, plan.judge_fingerprint


def _calibrated(
    command: _Command,
    rubric: Rubric,
    judge: str,
    fingerprint: str,
    outcomes: Mapping[str, Outcome],
    stopped: str | None,
) -> Calibrated:
    from assay.calibrate import calibrate

    try:
        return calibrate(
            command.label_set,
            rubric,
            judge=judge,
            judge_fingerprint=fingerprint,
            outcomes=outcomes,
            min_fail_recall=command.min_fail_recall,
        )
    except NoVerdictsError as error:
        raise NoVerdictsError(f"{error}; {stopped}" if stopped else str(error)) from None


def _from_table(command: _Command) -> Calibrated:
    """The scores that stand beside the labels: nobody is asked."""
    label_set = command.label_set
    name = label_set.judge or "table"
    outcomes = {item.item_id: item.judged for item in label_set.items if item.judged is not None}
    fingerprint = hashlib.sha256(f"table\0{name}".encode(errors="replace")).hexdigest()
    return _calibrated(command, command.rubric, name, fingerprint, outcomes, None)


def _store(settings: Settings, calibration: Calibration) -> bool:
    """Keep a calibration in the database; returns whether it is there.

    Raises:
        StoreError: a database is configured, and it is away or not migrated.
    """
    if settings.database_url is None and not (settings.data_dir / "assay.db").exists():
        # Nobody has set assay up here: a laptop on which a rubric is being tuned.
        return False
    try:
        with wiring.open_store(settings) as store:
            store.save_calibration(calibration)
    except StoreError as error:
        raise StoreError(f"the calibration is not kept: {error}; --no-store does without") from None
    return True


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
