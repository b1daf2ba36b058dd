"""`assay status`, `assay doctor`, `assay purge` and `assay db upgrade`."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.markup import escape

from assay import wiring
from assay.cli._screen import Json, ago, output, print_json, print_table, ratio
from assay.settings import load_settings
from assay.windows import Estimate

db = typer.Typer(help="The database.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(status)
    app.command()(doctor)
    app.command()(purge)


def status(
    window: Annotated[str, typer.Option(help="How far back, such as `30m`, `1h` or `7d`.")] = "1h",
    as_json: Json = False,
) -> None:
    """Show the queue, the workers, the lag, and the gauges of the last hour."""
    from assay.status import read_status

    settings = load_settings()
    report = read_status(settings, store=wiring.open_store(settings), queue=wiring.open_queue(settings), window=window)
    if as_json:
        print_json(report.as_json())
        return
    queue = report.queue
    if queue is None:
        output.print("queue     Redis is away", highlight=False)
    else:
        oldest = (
            ""
            if queue.oldest_enqueued_at is None
            else f", the oldest waits {ago(time.time() - queue.oldest_enqueued_at)}"
        )
        output.print(f"queue     {queue.records} records pending{oldest}", highlight=False)
    workers = "none answers: start one with `assay worker`" if not report.workers else ", ".join(report.workers)
    output.print(f"workers   {escape(workers)}", highlight=False)
    lag = "no score yet" if report.last_scored_at is None else f"{ago(time.time() - report.last_scored_at)} ago"
    output.print(f"scored    last {lag}; {report.dead_letters} dead letters", highlight=False)
    for reason, count in report.dropped.items():
        output.print(f"dropped   {count} by clients: {escape(reason)}", highlight=False)
    if not report.rows:
        output.print(f"No records in the last {window}.")
        return
    print_table(
        f"Last {window}",
        ("app", "cohort", "rubric", "judge", "pass ratio", "mean score", "records>", "effective>", "failed>", "n/a>"),
        (
            (
                row.app,
                " ".join(f"{k}={v}" for k, v in row.cohort.items()),
                f"{row.rubric} {row.rubric_version}",
                row.judge,
                ratio(row.pass_ratio),
                ratio(row.score_mean),
                row.scored,
                _effective(row.pass_ratio),
                row.failed,
                row.not_applicable,
            )
            for row in report.rows
        ),
    )


def _effective(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.n_effective:.0f}"


def doctor(
    judge: Annotated[bool, typer.Option(help="Also ask the judge to score one tiny record (costs one call).")] = True,
    as_json: Json = False,
) -> None:
    """Check Redis, database, judge, rubrics and clock: what is wrong, and the mend. Exit code 1 if anything is."""
    from assay.doctor import examine

    settings = load_settings()
    findings = list(examine(settings, ask_judge=judge))
    if as_json:
        print_json([{"check": f.check, "state": f.state, "message": f.message, "mend": f.mend} for f in findings])
    else:
        marks = {"ok": "[green]ok[/]  ", "warning": "[yellow]warn[/]", "wrong": "[red]bad[/] "}
        for finding in findings:
            output.print(f"{marks[finding.state]} {finding.check:9} {escape(finding.message)}", highlight=False)
            if finding.mend:
                output.print(f"     {'':9} → {escape(finding.mend)}", highlight=False, soft_wrap=True)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)


def purge(as_json: Json = False) -> None:
    """Delete what is older than the retention settings. Workers do this every hour by themselves."""
    settings = load_settings()
    deleted = wiring.purge(settings, wiring.open_store(settings))
    if as_json:
        print_json(deleted)
    else:
        print_table("Deleted", ("table", "rows>"), deleted.items())


@db.command()
def upgrade() -> None:
    """Create the tables, or bring them to the version that this assay needs. Safe to run twice, and by two at once."""
    settings = load_settings()
    wiring.open_store(settings, check=False).upgrade()
    output.print("The database is up to date.")
