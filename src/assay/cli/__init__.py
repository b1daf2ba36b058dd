"""The command line: parses, calls, prints. No logic lives here.

Exit codes: 0 done; 1 something outside is away (Redis, the database); 2 a mistake that a person can mend.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from assay.cli import (
    _alerts,
    _budget,
    _calibrate,
    _changes,
    _compare,
    _dead,
    _defects,
    _evaluate,
    _health,
    _intake,
    _labels,
    _outbox,
    _processes,
    _records,
    _report,
    _rubrics,
    _signals,
)
from assay.cli._screen import errors
from assay.errors import AssayError, ConfigError, RecordError
from assay.settings import unknown_variables

app = typer.Typer(
    name="assay",
    help="Score the answers of LLM applications in production: sampled records in, Prometheus series out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"assay {version('assay')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: ARG001 - its callback acts on it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Score the answers of LLM applications in production: sampled records in, Prometheus series out."""
    for line in unknown_variables():
        errors.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True)


_processes.register(app)
_records.register(app)
_intake.register(app)
_health.register(app)
_budget.register(app)
_calibrate.register(app)
_evaluate.register(app)
_compare.register(app)
_signals.register(app)
_report.register(app)
app.add_typer(_rubrics.app, name="rubrics")
app.add_typer(_labels.app, name="labels")
app.add_typer(_dead.app, name="dead")
app.add_typer(_alerts.app, name="alerts")
app.add_typer(_defects.app, name="defects")
app.add_typer(_outbox.app, name="outbox")
app.add_typer(_changes.app, name="changes")
app.add_typer(_changes.canary, name="canary")
app.add_typer(_health.db, name="db")


def run() -> int:
    """Run the command line on `sys.argv`; returns the exit code."""
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (ConfigError, RecordError) as error:
        errors.print(f"[red]error:[/] {_plain(error)}", soft_wrap=True, highlight=False)
        return 2
    except AssayError as error:
        errors.print(f"[red]error:[/] {_plain(error)}", soft_wrap=True, highlight=False)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130
    return 0


def _plain(error: AssayError) -> str:
    from rich.markup import escape

    return escape(str(error))
