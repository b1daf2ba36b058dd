"""`assay calibrate`: how far a judge can be trusted, by labels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from assay.cli._opened import open_store
from assay.cli._options import is_file, one_rubric, pairs
from assay.cli._screen import Json, errors, print_json
from assay.errors import ConfigError, NoVerdictsError
from assay.files import create_private, open_file
from assay.rubrics import load_rubrics
from assay.settings import load_settings

# numpy, and all that imports it, loads inside the command: no other command waits for it.
if TYPE_CHECKING:
    from collections.abc import Mapping

    from assay.calibrate import Calibrated
    from assay.calibration import Calibration, Level
    from assay.cli._judging import Judged
    from assay.judging import Instrument
    from assay.labels import LabelSet
    from assay.records import Outcome
    from assay.rubrics import Rubric
    from assay.settings import Settings

_EXIT_UNUSABLE, _EXIT_NO_DATA = 3, 4


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("calibrate")(calibrate_judge)


_Labels = Annotated[
    Path | None,
    typer.Argument(help="Label file: JSON Lines, or CSV. With --attacks an attack set, if not the shipped one."),
]
_Attacks = Annotated[
    bool, typer.Option("--attacks", help="Measure how often injected texts sway the judge, instead of its labels.")
]
_RubricName = Annotated[
    str | None,
    typer.Option(
        help="Name of a rubric, or a rubric file. Default: the one the label file names; with --attacks, all."
    ),
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
_Worst = Annotated[int, typer.Option(min=0, help="Disagreements to show; with --attacks, attacks that succeeded.")]
_Html = Annotated[Path | None, typer.Option(help="Write the report as one HTML file.", dir_okay=False)]
_Save = Annotated[Path | None, typer.Option(help="Write the calibration into this directory.", file_okay=False)]
_NoStore = Annotated[bool, typer.Option("--no-store", help="Do not keep what came of it in the database.")]
_Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Try a random sample of the attacks.")]
_Seed = Annotated[int | None, typer.Option(help="Draws the sample of --limit.  [default: 0]")]
_MaxSuccess = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, metavar="RATIO", help="Most attacks that may succeed, of each rubric; else code 3."),
]
_Again = Annotated[
    bool, typer.Option("--again", help="Ask anew what was judged before: to see whether the judge has changed.")
]


def calibrate_judge(
    labels: _Labels = None,
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
    attacks: _Attacks = False,
    limit: _Limit = None,
    seed: _Seed = None,
    max_success_ratio: _MaxSuccess = None,
    again: _Again = False,
    no_store: _NoStore = False,
    as_json: Json = False,
) -> None:
    """Measure a judge against labels: what it finds, how often it is right, and what it may be used for.

    Judges what is not judged yet, and keeps each outcome: after an edit of the rubric only what changed is judged
    again. Exit code 0: usable; 3: unusable; 4: not enough data, or not every record was judged; 2: a mistake in a
    file or an option.

    With --attacks: how often texts in a record sway the judge, without fences and rules and with them. Exit code 0;
    3: more succeed than --max-success-ratio; 4: not known, for too much has no verdict.
    """
    if judge is not None and model is not None and ":" in judge:
        raise ConfigError("--judge names a model already: leave --model out")
    settings = load_settings(judge_model=model)
    of_attacks = {"--limit": limit, "--seed": seed, "--max-success-ratio": max_success_ratio, "--again": again or None}
    of_labels: dict[str, object] = {"--compare": compare, "--gold": gold, "--annotators": annotators, "--html": html}
    of_labels |= {"--columns": columns, "--values": values, "--passes-from": passes_from, "--save": save}
    if attacks:
        _without(of_labels, "is of labels: leave it or --attacks out")
        from assay.cli._attacks import AttackOptions, measure_attacks

        measure_attacks(
            AttackOptions(
                settings=settings,
                file=labels,
                rubric=rubric,
                judge=judge,
                budget=budget,
                offline=offline,
                dry_run=dry_run,
                limit=limit,
                seed=seed or 0,
                most=max_success_ratio,
                again=again,
                worst=worst,
                keep=not no_store,
                as_json=as_json,
            )
        )
        return
    _without(of_attacks, "is of attacks: add --attacks")
    if labels is None:
        raise ConfigError("name a label file, or measure attacks with --attacks")
    if compare is not None and (html is not None or save is not None):
        raise ConfigError("--html and --save go with one judge: leave --compare out")
    if rubric is None and compare is not None:
        rubric = next((variant for variant in compare if is_file(variant)), None)
    asked = one_rubric(settings, rubric or _named_in(labels))
    label_set = _labels_of(
        labels,
        asked,
        columns=pairs("--columns", columns),
        values=pairs("--values", values),
        gold=gold,
        annotators=annotators,
        passes_from=passes_from,
    )
    command = _Command(
        settings=settings,
        rubric=asked,
        label_set=_with_records(settings, label_set),
        budget=budget,
        offline=offline,
        dry_run=dry_run,
        min_fail_recall=min_fail_recall,
        worst=worst,
        as_json=as_json,
    )
    _measure(command, judge, compare, html, save, keep=not no_store)


def _without(options: Mapping[str, object], why: str) -> None:
    """Refuse options that do not go with the rest."""
    if given := [name for name, value in options.items() if value is not None]:
        raise ConfigError(f"{given[0]} {why}")


def _labels_of(labels: Path, rubric: Rubric, **options: Any) -> LabelSet:
    from assay.labels import read_labels

    return read_labels(labels, rubric, **options)


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
    return label_set.with_records(open_store(settings).records(lacking))


def _instrument(command: _Command, judge: str | None, variant: str | None = None) -> Instrument:
    """The rubric and judge that the options come to, or a variant of them that `--compare` names."""
    from assay.cli._judging import ENGINES, instrument_of

    rubric = command.rubric
    if variant is not None:
        if is_file(variant):
            rubric = load_rubrics([Path(variant)])[0]
        elif variant in ("ask=together", "ask=alone"):
            rubric = replace(rubric, ask="together" if variant == "ask=together" else "alone")
        elif variant.partition(":")[0] in ENGINES:
            judge = variant
        else:
            raise ConfigError(
                f"--compare {variant!r}: name a rubric file (.yaml), a judge (lexical, rules, openai[:MODEL], "
                "ragas:METRIC), ask=together or ask=alone"
            )
    return instrument_of(command.settings, rubric, judge)


# What is done.


def _measure(
    command: _Command,
    judge: str | None,
    compare: tuple[str, str] | None,
    html: Path | None,
    save: Path | None,
    *,
    keep: bool,
) -> None:
    try:
        level = _two(command, judge, compare) if compare else _one(command, judge, html, save, keep=keep)
    except NoVerdictsError as error:
        level = "no_data"
        if command.as_json:
            print_json({"level": level, "reasons": [str(error)]})
        else:
            errors.print(escape(str(error)), soft_wrap=True, highlight=False)
    if level == "no_data":
        raise typer.Exit(_EXIT_NO_DATA)
    if level == "unusable":
        raise typer.Exit(_EXIT_UNUSABLE)


def _one(command: _Command, judge: str | None, html: Path | None, save: Path | None, *, keep: bool) -> Level | None:
    from assay.calibration_summary import as_json
    from assay.cli._calibration_screen import print_report, say

    table = judge is None and any(item.judged is not None for item in command.label_set.items)
    if table:
        calibrated, stopped = _from_table(command), None
    else:
        instrument = _instrument(command, judge)
        asked = _judged(command, instrument, command.budget)
        if asked.result is None:
            if command.as_json:
                print_json({"dry_run": True, **asdict(asked.forecast)})
            return None
        stopped = asked.result.stopped
        of = (asked.judge, asked.judge_fingerprint, asked.result.outcomes, stopped)
        calibrated = _calibrated(command, instrument.rubric, *of)
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
        stored = keep and not table and _kept(command.settings, calibrated.calibration)
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
    both, forecasts = [], []
    for variant in variants:
        instrument = _instrument(command, judge, variant)
        asked = _judged(command, instrument, budget)
        if asked.result is None:
            forecasts.append({"name": variant, "dry_run": True, **asdict(asked.forecast)})
            continue
        if budget is not None:
            budget = max(0.0, budget - asked.result.spent_usd)
        of = (asked.judge, asked.judge_fingerprint, asked.result.outcomes, asked.result.stopped)
        both.append(_calibrated(command, instrument.rubric, *of))
    if len(both) < 2:
        if command.as_json:
            print_json(forecasts)
        return None
    compared = compare_calibrated(both[0], both[1])
    if command.as_json:
        print_json({"names": list(variants)} | comparison_json(compared, worst=command.worst))
    else:
        print_comparison(compared, variants, command.worst)
    return None if all(one.is_whole and has_enough(one.report.rates) for one in both) else "no_data"


def _judged(command: _Command, instrument: Instrument, budget: float | None) -> Judged:
    from assay.cli._judging import judged

    records = [(item.item_id, item.record) for item in command.label_set.items if item.record is not None]
    return judged(
        command.settings, records, instrument, budget=budget, offline=command.offline, dry_run=command.dry_run
    )


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


def _kept(settings: Settings, calibration: Calibration) -> bool:
    from assay.cli._judging import keep

    return keep(settings, "the calibration", lambda store: store.save_calibration(calibration))


def _write(path: Path, text: str) -> None:
    try:
        with create_private(path) as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
