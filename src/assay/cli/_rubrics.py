"""`assay rubrics`: check, show and compare rubric files, and say which versions production is scored with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from assay import wiring
from assay.cli._opened import open_store
from assay.cli._options import one_rubric
from assay.cli._screen import Json, ago, errors, output, print_json, print_table
from assay.records import now
from assay.rubrics import Rubric, check_rubrics, diff_rubrics, load_rubrics
from assay.settings import load_settings
from assay.spelling import many

app = typer.Typer(help="Rubric files: check them, show what is asked, compare two.", no_args_is_help=True)

_Paths = Annotated[
    list[Path] | None, typer.Argument(help="Files or directories. Default: `ASSAY_RUBRICS`, else the shipped ones.")
]


def _paths(given: list[Path] | None) -> list[Path] | None:
    return given or load_settings().rubric_paths


@app.command()
def check(
    paths: _Paths = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Also see that every rubric may be deployed: exit code 3 if one may not.")
    ] = False,
    calibrations: Annotated[
        Path | None,
        typer.Option(metavar="DIR", exists=True, help="Calibration files for --gate, besides those in the database."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Report every mistake in rubric files: file, line, field and the mend. Exit code 2 if there is one.

    With --gate: a rubric that says `gate: LEVEL`, and that production is not scored with already, needs a calibration
    of this very question and judge that reaches the level.
    """
    found = check_rubrics(_paths(paths))
    if as_json and (found or not gate):
        print_json([{"path": str(e.path), "line": e.line, "field": e.field, "message": e.message} for e in found])
    elif not as_json:
        for error in found:
            errors.print(escape(str(error)), soft_wrap=True, highlight=False)
    if found:
        raise typer.Exit(2)
    rubrics = load_rubrics(_paths(paths))
    if gate:
        _check_gates(rubrics, calibrations, as_json=as_json)
    elif not as_json:
        print_table(
            f"{many(len(rubrics), 'rubric')}, no mistakes",
            ("rubric", "version", "scale", "passes at>", "needs", "asked"),
            ((r.name, r.revision, r.scale.type, r.pass_threshold, ", ".join(r.requires), _asked(r)) for r in rubrics),
        )


def _asked(rubric: Rubric) -> str:
    """How it is asked, in a few words."""
    if rubric.cascade is None:
        return rubric.ask
    return f"{rubric.ask}, after {rubric.cascade.first}: {rubric.cascade.share:.0%} of the rest"


def _check_gates(rubrics: Sequence[Rubric], directory: Path | None, *, as_json: bool) -> None:
    from assay.gate import check_gates

    settings = load_settings()
    store = open_store(settings) if wiring.has_store(settings) else None
    found = check_gates(rubrics, wiring.judge_settings(settings), store=store, directory=directory)
    rows = [
        {
            "rubric": finding.version.rubric.name,
            "rubric_version": finding.version.rubric.revision,
            "judge": finding.version.judge,
            "judge_fingerprint": finding.version.judge_fingerprint,
            "gate": finding.version.rubric.gate,
            "opens": finding.decision.opens,
            "reason": finding.decision.reason,
        }
        for finding in found
    ]
    if as_json:
        print_json(rows)
    else:
        columns = ("rubric", "rubric_version", "judge", "gate")
        print_table(
            "Gates",
            ("rubric", "version", "judge", "asks for", "", "because"),
            ((*(row[name] for name in columns), "opens" if row["opens"] else "HOLDS", row["reason"]) for row in rows),
        )
    if not all(row["opens"] for row in rows):
        raise typer.Exit(3)


@app.command()
def status(
    retired: Annotated[bool, typer.Option("--retired", help="Also show those that others took the place of.")] = False,
    as_json: Json = False,
) -> None:
    """Show which version of each rubric production is scored with, which ones wait, since when and why."""
    from assay.gate import Version

    settings = load_settings()
    store = open_store(settings)
    versions = store.rubric_versions(retired=retired)
    known = {(v.rubric_hash, v.judge_fingerprint) for v in store.rubric_versions()}
    if as_json:
        shown = (asdict(version) for version in versions)
        print_json([{name: value for name, value in fields.items() if name != "body"} for fields in shown])
        return
    moment = now()
    rows: list[tuple[str, ...]] = []
    for v in versions:
        lasts = ago(None if v.since is None else (moment - v.since).total_seconds())
        rows.append((v.rubric, v.rubric_version, v.judge, v.state, lasts, v.reason))
    for version in (Version.of(rubric, wiring.judge_settings(settings)) for rubric in wiring.read_rubrics(settings)):
        if version.key not in known:
            rubric = version.rubric
            rows.append((rubric.name, rubric.revision, version.judge, "new", "–", "no worker has read this file yet"))
    print_table("Rubrics", ("rubric", "version", "judge", "state", "for>", "because"), sorted(rows))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a rubric, or a rubric file.")],
    as_json: Json = False,
) -> None:
    """Print the exact prompt and the schema that a judge is given for a rubric, around a placeholder record.

    An endpoint that takes no schema is told it in words, at the end of the system message.
    """
    from assay.judges import preview, schema_in_words

    rubric = one_rubric(load_settings(), name)
    messages, schema = preview([rubric])
    in_words = schema_in_words([rubric])
    if as_json:
        shown = {"rubric": rubric.name, "hash": rubric.hash, "messages": messages, "schema": schema}
        print_json({**shown, "schema_in_words": in_words})
        return
    output.print(f"{rubric.name} {rubric.revision}   sha256 {rubric.hash}", highlight=False)
    for message in messages:
        output.rule(message["role"])
        output.print(message["content"], markup=False, highlight=False)
    output.rule("schema")
    output.print(json.dumps(schema, indent=2), markup=False, highlight=False)
    output.rule("the schema in words, for an endpoint that takes none")
    output.print(in_words, markup=False, highlight=False)


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The rubric file as it was.")],
    new: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The rubric file as it is to be.")],
    as_json: Json = False,
) -> None:
    """Compare two rubric files field by field, and say whether verdicts may change (a new hash, a new series)."""
    before, after = load_rubrics([old])[0], load_rubrics([new])[0]
    changes = diff_rubrics(before, after)
    if as_json:
        print_json(
            {
                "old_hash": before.hash,
                "new_hash": after.hash,
                "changes": [
                    {"field": c.field, "old": c.old, "new": c.new, "changes_hash": c.changes_hash} for c in changes
                ],
            }
        )
        return
    for change in changes:
        output.print(f"[bold]{escape(change.field)}[/]" + (" (changes verdicts)" if change.changes_hash else ""))
        output.print(f"[red]- {escape(str(change.old))}[/]", highlight=False)
        output.print(f"[green]+ {escape(str(change.new))}[/]", highlight=False)
    if before.hash == after.hash:
        output.print("Same hash: scores go on under the same series.")
    else:
        output.print(
            f"New hash {before.hash[:8]} → {after.hash[:8]}: scores start a new series; "
            + ("calibrate again." if before.version != after.version else "raise the version, and calibrate again.")
        )
