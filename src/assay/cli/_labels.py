"""`assay labels`: production records picked for people to label, out to them and back, and audits by fresh labels."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from assay.cli._opened import open_store
from assay.cli._options import Apps, one_rubric, pairs, settings_of
from assay.cli._screen import Json, errors, output, print_json, print_table
from assay.errors import ConfigError
from assay.files import open_file
from assay.label_imports import SOURCES, Source, import_labels
from assay.label_queue import (
    SHEET_COLUMNS,
    ExportForm,
    audit_calibrations,
    export_labels,
    mark_received,
    merge_labels,
    pick_labels,
    receive_labels,
)
from assay.labels import AnnotatorKind, LabelSet, read_labels, write_labels
from assay.records import now
from assay.rows import read_rows
from assay.windows import parse_window

if TYPE_CHECKING:
    from assay.records import Record
    from assay.rubrics import Rubric

app = typer.Typer(
    help="Labels: pick production records for people to label, hand them out, take them back, audit by them.",
    no_args_is_help=True,
)

_EXIT_FAILED, _EXIT_NOTHING = 3, 4

_RubricName = Annotated[str, typer.Option("--rubric", help="Name of a rubric, or a rubric file.")]


@app.command()
def pick(
    rubric: _RubricName,
    budget: Annotated[float, typer.Option(min=1, help="How many records to pick, on average.")] = 50,
    since: Annotated[str, typer.Option(help="How far back to look, such as `24h` or `7d`.")] = "24h",
    twice: Annotated[float, typer.Option(min=0, max=1, help="Share of the picks that two people should label.")] = 0.1,
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Pick scored records for people to label, each with a known chance: more where the judge is unsure.

    Each pick goes on where the last one of the rubric ended. What is picked waits for `assay labels export`.
    """
    settings = settings_of(apps)
    asked = one_rubric(settings, rubric)
    end = now()
    store = open_store(settings)
    picked = pick_labels(
        store,
        asked.name,
        budget=budget,
        start=end - timedelta(seconds=parse_window(since)),
        end=end,
        twice=twice,
    )
    if as_json:
        print_json(
            {
                "rubric": asked.name,
                "start": picked.start.isoformat(),
                "end": picked.end.isoformat(),
                "candidates": picked.candidates,
                "judge_fails": picked.judge_fails,
                "picked": [
                    {"record_id": r.record_id, "probability": r.probability, "twice": r.twice} for r in picked.requests
                ],
            }
        )
        return
    if picked.goes_on:
        output.print(f"Records until {picked.start:%Y-%m-%d %H:%M} UTC had their chance in an earlier pick.")
    if not picked.candidates:
        output.print(f"No record was scored by {asked.name} since then: nothing to pick.")
        return
    second = sum(request.twice for request in picked.requests)
    output.print(
        f"{len(picked.requests)} of {picked.candidates} records picked; the judge fails {picked.judge_fails} of them, "
        f"{second} are for two people.\n"
        f"Next: assay labels export FILE --rubric {rubric}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@app.command("export")
def export_(
    file: Annotated[Path, typer.Argument(help="File to write.", dir_okay=False)],
    rubric: _RubricName,
    form: Annotated[
        Literal["auto", "jsonl", "csv", "label-studio"],
        typer.Option("--format", help="`auto` goes by the file's name: .jsonl, .csv, or .json for Label Studio."),
    ] = "auto",
    again: Annotated[bool, typer.Option("--again", help="Also what was exported before and has no label yet.")] = False,
    second: Annotated[
        bool, typer.Option("--second", help="Only what two people should label, for the second of them.")
    ] = False,
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Write the picked records that wait for a label, without the judge's verdict, for people to label.

    A label file (.jsonl) is filled in under `labels`, a table (.csv) in its columns `label` and `annotator`.
    """
    settings = settings_of(apps)
    store = open_store(settings)
    exported = export_labels(store, one_rubric(settings, rubric), file, _form(file, form), again=again, second=second)
    if as_json:
        print_json({"file": str(file), "exported": exported.records, "gone": exported.gone})
        return
    if exported.records:
        output.print(escape(f"{exported.records} records written to {file}."), soft_wrap=True, highlight=False)
    else:
        mend = "" if again or second else "--again writes those that are out, "
        said = f"Nothing waits, and no file is written: {mend}assay labels pick picks more."
        output.print(said, soft_wrap=True, highlight=False)
    if exported.gone:
        output.print(f"{exported.gone} more were picked, but their texts are not stored any more.")


def _form(file: Path, form: Literal["auto", "jsonl", "csv", "label-studio"]) -> ExportForm:
    if form != "auto":
        return form
    forms: dict[str, ExportForm] = {".jsonl": "jsonl", ".csv": "csv", ".json": "label-studio"}
    found = forms.get(file.suffix.lower())
    if found is None:
        raise ConfigError(f"{file}: call it .jsonl, .csv or .json, or say --format")
    return found


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What came back.", dir_okay=False)],
    rubric: _RubricName,
    to: Annotated[Path, typer.Option("--to", help="Label file to write, or to add to.", dir_okay=False)],
    source: Annotated[
        Source, typer.Option("--from", help=f"What wrote the file: {', '.join(f'`{name}`' for name in SOURCES)}.")
    ] = "table",
    name: Annotated[str | None, typer.Option(help="Score, annotation or control that holds the label.")] = None,
    judge: Annotated[str | None, typer.Option(help="Score or annotation that holds a judge's score.")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="COLUMN=FIELD", help="A table's column and what it holds; repeatable."),
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--values", metavar="WORD=LABEL", help="Its word for `pass`, `fail` or a grade; repeatable."),
    ] = None,
    annotators: Annotated[AnnotatorKind | None, typer.Option(help="Who labelled, where the file does not say.")] = None,
    records: Annotated[
        Path | None, typer.Option(help="Records (JSON Lines) that the database does not have.", dir_okay=False)
    ] = None,
    others: Annotated[
        Literal["refuse", "drop", "curated"],
        typer.Option(
            help="Where picked records are mixed with others: refuse, leave the others out, or take all as curated."
        ),
    ] = "refuse",
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Take labels back into a label file, with their records and the chance that each was picked with.

    Rows without a label are left out. A label that an annotator gave before is replaced.
    """
    settings = settings_of(apps)
    asked = one_rubric(settings, rubric)
    labels = _came_back(file, source, asked, name, judge, pairs("--columns", columns), pairs("--values", values))
    store = open_store(settings)
    received = receive_labels(store, labels, records=_records(records), others=others)
    labels = _signed(received.labels, file, source, annotators)
    added = len(labels.items)
    if to.exists():
        labels = merge_labels(read_labels(to, asked), labels)
    try:
        write_labels(to, labels)
    except OSError as error:
        raise ConfigError(f"{to}: {error.strerror}") from None
    back = mark_received(store, labels)
    if as_json:
        print_json(
            {"file": str(to), "imported": added, "picked": received.picked, "back": back, "labels": len(labels.items)}
        )
        return
    output.print(
        escape(f"{added} labels imported, {received.picked} of them of picked records; {to} has {len(labels.items)}."),
        soft_wrap=True,
        highlight=False,
    )
    for caution in labels.cautions:
        output.print(escape(f"  {caution}"), soft_wrap=True, highlight=False)
    output.print(escape(f"Next: assay calibrate {to} --rubric {rubric}"), soft_wrap=True, highlight=False)


def _came_back(
    file: Path,
    source: Source,
    rubric: Rubric,
    name: str | None,
    judge: str | None,
    columns: dict[str, str] | None,
    values: dict[str, str] | None,
) -> LabelSet:
    if source != "table":
        return import_labels(file, source, rubric, name=name, judge=judge, columns=columns, values=values)
    if name is not None or judge is not None:
        raise ConfigError("--name and --judge are for exports of other systems: map columns with --columns")
    # The texts of a table that we wrote ourselves are for people: the records are in the store.
    known = dict(SHEET_COLUMNS) if columns is None and _is_sheet(file) else columns
    return read_labels(file, rubric, columns=known, values=values, skip_unlabelled=True)


def _is_sheet(file: Path) -> bool:
    try:
        with open_file(file) as source:
            return source.readline(1000).removeprefix(b"\xef\xbb\xbf").startswith(b"record_id,question,context,answer,")
    except OSError:
        return False


def _signed(labels: LabelSet, file: Path, source: Source, annotators: AnnotatorKind | None) -> LabelSet:
    """The set with who labelled; what people got from us as a table comes back from people."""
    from dataclasses import replace

    if annotators is None and labels.annotator_kind == "unknown" and source == "table" and _is_sheet(file):
        annotators = "human"
    return labels if annotators is None else replace(labels, annotator_kind=annotators)


def _records(path: Path | None) -> list[Record]:
    if path is None:
        return []
    found = []
    with ExitStack() as stack:
        try:
            source = stack.enter_context(open_file(path))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        for row in read_rows(source, form="csv" if path.suffix.lower() == ".csv" else "jsonl"):
            if row.record is None:
                raise ConfigError(f"{path}:{row.line}: {row.error}")
            found.append(row.record)
    return found


@app.command()
def audit(
    file: Annotated[Path, typer.Argument(help="Label file with fresh labels.", dir_okay=False)],
    rubric: _RubricName,
    margin: Annotated[
        float,
        typer.Option(min=0.001, max=1, help="How far off a correction may be, as a share: declare it beforehand."),
    ] = 0.03,
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Hold calibrations against labels that they have not seen; one that fails is stale from then on.

    Exit code 0: it holds, or there are too few labels to tell; 3: one failed; 4: there were no fresh labels.
    """
    settings = settings_of(apps)
    labels = read_labels(file, one_rubric(settings, rubric))
    store = open_store(settings)
    lacking = labels.without_record
    if lacking:
        labels = labels.with_records(store.records_called(lacking))
    found = audit_calibrations(store, labels, margin=margin)
    if as_json:
        print_json(
            [
                {
                    "calibration_id": one.stored.calibration_id,
                    "rubric_version": one.stored.rubric_version,
                    "judge": one.stored.judge,
                    "method": one.method,
                    "labels": one.labels,
                    "state": one.audit.state,
                    "shift": one.audit.shift.value,
                    "shift_lower": one.audit.shift.lower,
                    "shift_upper": one.audit.shift.upper,
                    "margin": one.audit.margin,
                    "reason": one.audit.reason,
                    "made_stale": one.made_stale,
                }
                for one in found
            ]
        )
    else:
        print_table(
            f"Audit of {labels.rubric}",
            ("calibration", "version", "judge", "corrected by", "fresh labels>", "verdict", "why"),
            (
                (
                    one.stored.calibration_id[:8],
                    one.stored.rubric_version,
                    one.stored.judge,
                    one.method,
                    one.labels,
                    one.audit.state + (", stale now" if one.made_stale else ""),
                    one.audit.reason,
                )
                for one in found
            ),
        )
    states = {one.audit.state for one in found}
    if "failed" in states:
        errors.print("Calibrate again: assay calibrate with the fresh labels.", highlight=False)
        raise typer.Exit(_EXIT_FAILED)
    if states == {"not_checked"}:
        raise typer.Exit(_EXIT_NOTHING)
