"""The command line: parses, calls, prints. No logic lives here.

Exit codes: 0 done; 1 something outside is away (Redis, the database); 2 a mistake that a person can mend.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from assay.cli._opened import closing_opened
from assay.cli._screen import errors
from assay.errors import AssayError, ConfigError, RecordError
from assay.settings import unknown_variables

#: command -> the module of this package that registers it; in the order of the help
_COMMANDS = {
    "worker": "_processes",
    "exporter": "_processes",
    "dev": "_processes",
    "demo": "_processes",
    "enqueue": "_records",
    "judge": "_records",
    "collect": "_intake",
    "pull": "_intake",
    "status": "_health",
    "doctor": "_health",
    "purge": "_health",
    "budget": "_budget",
    "calibrate": "_calibrate",
    "evaluate": "_evaluate",
    "compare": "_compare",
    "signals": "_signals",
    "report": "_report",
}
#: group of commands -> its module, and what it is called there
_GROUPS = {
    "rubrics": ("_rubrics", "app"),
    "labels": ("_labels", "app"),
    "dead": ("_dead", "app"),
    "alerts": ("_alerts", "app"),
    "defects": ("_defects", "app"),
    "outbox": ("_outbox", "app"),
    "changes": ("_changes", "app"),
    "canary": ("_changes", "canary"),
    "db": ("_health", "db"),
}


class _Commands(Mapping[str, Any]):
    """All commands by name. One's module is imported when it is asked for: all of them together take a second."""

    def __getitem__(self, name: str) -> Any:
        found = typer.Typer(rich_markup_mode="markdown")
        if name in _GROUPS:
            module, own = _GROUPS[name]
            found.add_typer(getattr(import_module(f"assay.cli.{module}"), own), name=name)
        else:
            import_module(f"assay.cli.{_COMMANDS[name]}").register(found)
        return typer.main.get_group(found).commands[name]

    def __iter__(self) -> Iterator[str]:
        yield from (*_COMMANDS, *_GROUPS)

    def __len__(self) -> int:
        return len(_COMMANDS) + len(_GROUPS)


class _Group(typer.core.TyperGroup):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment] # nothing is added to it

    def invoke(self, ctx: Any) -> Any:
        with closing_opened():
            return super().invoke(ctx)


app = typer.Typer(
    name="assay",
    cls=_Group,
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


def run() -> int:
    """Run the command line on `sys.argv`; returns the exit code."""
    try:
        return app(prog_name="assay", standalone_mode=False) or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except typer.TyperException as error:
        # In a line as any other mistake, and not in typer's box of five.
        if line := _misused(error):
            errors.print(f"error: {line}", soft_wrap=True, markup=False, highlight=False)
        return 2
    except typer.Abort:
        return 130
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


def _misused(error: typer.TyperException) -> str:
    """What is wrong with the arguments; empty: there were none, and the help was shown."""
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    told = " ".join(str(error.format_message()).split()).removesuffix(".")
    if context is None:
        return told
    mark = "" if told.endswith("?") else ";"
    return f"{told}{mark} see {context.command_path} --help"


def _plain(error: AssayError) -> str:
    from rich.markup import escape

    return escape(str(error))
