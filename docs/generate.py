"""Writes the generated parts of docs/reference, or with --check says which of them are out of date."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).parent / "reference"


def pages() -> dict[str, str]:
    """File name under docs/reference -> content."""
    from assay.catalogue import metrics_markdown
    from assay.codec import record_schema
    from assay.rubrics import rubric_fields_markdown, rubric_schema
    from assay.settings import settings_markdown
    from assay.sinks import sinks_markdown

    return {
        "metrics.md": metrics_markdown(),
        "settings.md": "# Settings\n\nEvery setting is an environment variable. "
        "The `assay` commands also read a `.env` file.\n"
        "The app-side client reads its own few, from the environment alone: see [the client](client.md).\n\n"
        + settings_markdown(),
        "sinks.md": sinks_markdown(),
        "commands.md": commands_markdown(),
        "client.md": client_markdown(),
        "rubric-fields.md": rubric_fields_markdown(),
        "record.schema.json": json.dumps(record_schema(), indent=2) + "\n",
        "rubric.schema.json": json.dumps(rubric_schema(), indent=2) + "\n",
    }


def commands_markdown() -> str:
    """The --help of every command, as it prints."""
    import typer.main

    from assay.cli import app

    group = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "What `--help` prints. Exit codes: 0 done, 1 something outside is away, 2 a mistake to mend; and where",
        "a command says so, 3 for no and 4 for not known.",
        "",
    ]
    names: list[list[str]] = []
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]
        children = getattr(command, "commands", None)
        names += [[name, child] for child in sorted(children)] if children else [[name]]
    for name in names:
        lines += [f"## assay {' '.join(name)}", "", "```", help_of(name), "```", ""]
    return "\n".join(lines)


def client_markdown() -> str:
    """The public names of the package, with their signatures and docstrings."""
    import assay
    from assay.interactions import InteractionFields

    lines = [
        "# The client",
        "",
        "`from assay import Client`. It needs the standard library and `redis`, and loads redis on its own thread.",
        "It reads these environment variables, each of which an argument overrides: `ASSAY_REDIS_URL`, `ASSAY_QUEUE`,",
        "`ASSAY_SAMPLE_RATE`, `ASSAY_USER_ID_SALT`, `ASSAY_MAX_BATCHES`, `ASSAY_MAX_RECORD_BYTES`, `ASSAY_ENABLED`.",
        "",
    ]
    for name in assay.__all__:
        value = getattr(assay, name)
        if not inspect.isclass(value):
            continue
        lines += [f"## {name}", "", *described(name, value)]
        for member, function in vars(value).items():
            if inspect.isfunction(function) and not member.startswith("_") and function.__doc__:
                lines += [f"### {name}.{member}", "", *described(member, function)]
    lines += ["## Fields of an interaction", "", "What `record`, `interaction` and `observe` take by name.", ""]
    lines += ["| field | type |", "|---|---|"]
    for field, kind in InteractionFields.__annotations__.items():
        text = str(getattr(kind, "__forward_arg__", kind)).replace("|", "\\|")
        lines.append(f"| `{field}` | `{text}` |")
    return "\n".join(lines) + "\n"


def described(name: str, value: Any) -> list[str]:
    """A signature where there is one, an argument a line, and the docstring."""
    lines = []
    if not (inspect.isclass(value) and issubclass(value, Exception)):
        shown = []
        for parameter in inspect.signature(value).parameters.values():
            if parameter.name == "self" or parameter.name.startswith("_"):
                continue
            text = str(parameter).replace("'", "")
            # A default that is an object is told in words below.
            shown.append(re.sub(r"(= )(\(?[A-Z]\w+\(|<).*", r"\1...", text))
        inner = ", ".join(shown)
        if len(inner) > 80:
            inner = "\n" + "".join(f"    {text},\n" for text in shown)
        lines += ["```python", f"{name}({inner})", "```", ""]
    # The docstring is text of fixed width: its lists and examples stay as they stand in the source.
    return [*lines, "```text", inspect.getdoc(value) or "", "```", ""]


def help_of(name: list[str]) -> str:
    """One command's help, in plain text of fixed width."""
    from typer.testing import CliRunner

    from assay.cli import app

    done = CliRunner().invoke(app, [*name, "--help"], prog_name="assay", color=False)
    return "\n".join(line.rstrip() for line in done.output.strip().splitlines())


def main() -> int:
    """Exit code 1 when --check finds a stale page."""
    # Read when typer is imported: the pages must not depend on who writes them, or where.
    os.environ.update(COLUMNS="100", TERM="dumb", NO_COLOR="1", TYPER_USE_RICH="0")
    stale = []
    for name, content in pages().items():
        path = REFERENCE / name
        if path.exists() and path.read_text() == content:
            continue
        if "--check" in sys.argv:
            stale.append(name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    if stale:
        sys.stderr.write(f"docs/reference is out of date ({', '.join(stale)}): run `make docs`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
