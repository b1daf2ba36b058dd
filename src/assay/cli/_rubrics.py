"""`assay rubrics`: check, show and compare rubric files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from assay.cli._options import one_rubric
from assay.cli._screen import Json, errors, output, print_json, print_table
from assay.judges import preview
from assay.rubrics import check_rubrics, diff_rubrics, load_rubrics
from assay.settings import load_settings

app = typer.Typer(help="Rubric files: check them, show what is asked, compare two.", no_args_is_help=True)

_Paths = Annotated[
    list[Path] | None, typer.Argument(help="Files or directories. Default: `ASSAY_RUBRICS`, else the shipped ones.")
]


def _paths(given: list[Path] | None) -> list[Path] | None:
    return given or load_settings().rubric_paths


@app.command()
def check(paths: _Paths = None, as_json: Json = False) -> None:
    """Report every mistake in rubric files: file, line, field and the mend. Exit code 2 if there is one."""
    found = check_rubrics(_paths(paths))
    if as_json:
        print_json([{"path": str(e.path), "line": e.line, "field": e.field, "message": e.message} for e in found])
    else:
        for error in found:
            errors.print(escape(str(error)), soft_wrap=True, highlight=False)
    if found:
        raise typer.Exit(2)
    if not as_json:
        rubrics = load_rubrics(_paths(paths))
        print_table(
            f"{len(rubrics)} rubrics, no mistakes",
            ("rubric", "version", "scale", "passes at>", "needs", "asked"),
            ((r.name, r.revision, r.scale.type, r.pass_threshold, ", ".join(r.requires), r.ask) for r in rubrics),
        )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a rubric, or a rubric file.")],
    as_json: Json = False,
) -> None:
    """Print the exact prompt and the schema that a judge is given for a rubric, around a placeholder record."""
    rubric = one_rubric(load_settings(), name)
    messages, schema = preview([rubric])
    if as_json:
        print_json({"rubric": rubric.name, "hash": rubric.hash, "messages": messages, "schema": schema})
        return
    output.print(f"{rubric.name} {rubric.revision}   sha256 {rubric.hash}", highlight=False)
    for message in messages:
        output.rule(message["role"])
        output.print(message["content"], markup=False, highlight=False)
    output.rule("schema")
    output.print(json.dumps(schema, indent=2), markup=False, highlight=False)


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
