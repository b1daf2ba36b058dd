"""`assay outbox`: what is owed to sinks, to be seen and tried again."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import typer

from assay.cli._opened import open_store
from assay.cli._options import Apps, check_known, settings_of
from assay.cli._screen import Json, ago, output, print_json, print_table
from assay.errors import ConfigError
from assay.records import now
from assay.sinks import sink_names
from assay.store import OutboxRow

app = typer.Typer(help="The outbox: evaluations that are owed to sinks, or that a sink refused.", no_args_is_help=True)

_Sink = Annotated[str | None, typer.Option(help="Only what is owed to this sink, such as `phoenix`.")]
_Reason = Annotated[str | None, typer.Option(help="Only those with this in their reason, such as `404`.")]


@app.command("list")
def list_(
    sink: _Sink = None,
    state: Annotated[
        Literal["waiting", "rejected"] | None,
        typer.Option(help="`waiting`: to be tried (again); `rejected`: set aside, refused or given up."),
    ] = None,
    reason: _Reason = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to print, newest first.")] = 50,
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Show how much is owed to each sink, and what, newest first."""
    check_known("--sink", sink, sink_names())
    store = open_store(settings_of(apps))
    depths = store.outbox_depths()
    rows = store.outbox(sink=sink, state=state, reason=reason, limit=limit)
    if as_json:
        print_json(
            {
                "sinks": {name: dataclasses.asdict(depth) for name, depth in depths.items()},
                "rows": [dataclasses.asdict(row) for row in rows],
            }
        )
        return
    if not depths:
        output.print("Nothing was ever owed to a sink: name some in ASSAY_SINKS.")
        return
    moment = now()
    print_table(
        "Sinks",
        ("sink", "waiting>", "oldest>", "rejected>", "delivered>"),
        (
            (
                name,
                depth.waiting,
                "" if depth.oldest_at is None else ago((moment - depth.oldest_at).total_seconds()),
                depth.rejected,
                depth.writes.get("delivered", 0),
            )
            for name, depth in depths.items()
        ),
    )
    if not rows:
        return
    output.print()
    print_table(
        f"{len(rows)} owed",
        ("evaluation", "sink", "state", "owed>", "tries>", "rubric", "outcome", "reason"),
        (
            (
                str(row.evaluation_id)[:13],
                row.sink,
                row.state,
                ago((moment - row.created_at).total_seconds()),
                row.attempts,
                row.rubric,
                row.outcome,
                (row.reason or "")[:120],
            )
            for row in rows
        ),
    )
    if any(row.state == "rejected" for row in rows):
        output.print(
            "Show one: `assay outbox show ID`. Try again: `assay outbox retry ID` or `assay outbox retry --all`.",
            markup=False,
        )


@app.command()
def show(
    evaluation_id: Annotated[str, typer.Argument(help="Id of an evaluation, or its beginning (4 characters or more).")],
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Print what is owed of one evaluation, sink by sink."""
    rows = open_store(settings_of(apps)).outbox_rows(evaluation_id)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    first = rows[0]
    output.print(f"evaluation {first.evaluation_id} of record {first.record_id}", markup=False, highlight=False)
    value = "" if first.value is None else f", {first.value:.2f}"
    where = f"trace {first.trace_id or '–'}, span {first.span_id or '–'}"
    output.print(
        f"{first.app}: {first.rubric} by {first.judge}: {first.outcome}{value}; {where}", markup=False, highlight=False
    )
    for row in rows:
        output.print(_line(row), markup=False, highlight=False, soft_wrap=True)


@app.command()
def retry(
    evaluation_id: Annotated[str | None, typer.Argument(help="Id of an evaluation, or its beginning.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything that was set aside.")] = False,
    sink: _Sink = None,
    reason: _Reason = None,
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Let what was set aside wait again, with a new deadline. Workers deliver it within seconds."""
    if evaluation_id is None and not (all_ or sink or reason):
        raise ConfigError("name one evaluation, or say --sink SINK, --reason TEXT or --all")
    check_known("--sink", sink, sink_names())
    store = open_store(settings_of(apps))
    whole = None if evaluation_id is None else store.outbox_rows(evaluation_id)[0].evaluation_id
    n = store.retry_outbox(sink=sink, reason=reason, evaluation_id=whole)
    if as_json:
        print_json({"retried": n})
    else:
        output.print(f"{n} wait again.", highlight=False)


def _line(row: OutboxRow) -> str:
    said = f": {row.reason}" if row.reason else ""
    when = f"{row.due_at:%Y-%m-%d %H:%M:%S} UTC"
    state = f"tried again at {when}" if row.state == "waiting" else f"set aside at {when}"
    return f"{row.sink}: {state}, after {row.attempts} tries{said}"
