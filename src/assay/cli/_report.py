"""`assay report`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.cli._opened import open_store
from assay.cli._options import Apps, settings_of
from assay.cli._screen import Json, errors, print_json
from assay.errors import ConfigError, SettingsError

if TYPE_CHECKING:
    from assay.report import Report
    from assay.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(report)


def report(
    weeks: Annotated[int, typer.Option(min=2, max=53, help="How many weeks of trend.")] = 8,
    until: Annotated[
        datetime | None, typer.Option(help="End of the last week, in UTC. Default: now.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write it as one HTML page to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown to this file.")] = None,
    apps: Apps = None,
    as_json: Json = False,
    send: Annotated[bool, typer.Option("--send", help="Send it to the webhook of ASSAY_REPORT_WEBHOOK, now.")] = False,
) -> None:
    """Report on the last weeks: trends, what fell, worst clusters, cost, labels wanted, what changed.

    Prints Markdown, unless it is written or sent somewhere. Workers send it once a week by themselves where
    ASSAY_REPORT_WEBHOOK is set.
    """
    from assay.report import read_report
    from assay.report_text import as_json as plain
    from assay.report_text import render_markdown

    settings = settings_of(apps)
    if send and settings.report_webhook is None:
        raise SettingsError("--send: set ASSAY_REPORT_WEBHOOK to the address of an incoming webhook")
    end = datetime.now(UTC) if until is None else until.replace(tzinfo=until.tzinfo or UTC)
    made = read_report(open_store(settings), until=end, weeks=weeks, fields=settings.cohort_labels)
    if as_json:
        print_json(plain(made))
    elif out is None and markdown is None and not send:
        print(render_markdown(made), end="")
    _write(made, out, markdown)
    if send:
        _send(made, settings)


def _write(made: Report, out: Path | None, markdown: Path | None) -> None:
    from assay.report_page import render_html
    from assay.report_text import render_markdown

    for path, render in ((out, render_html), (markdown, render_markdown)):
        if path is None:
            continue
        try:
            path.write_text(render(made), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        errors.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _send(made: Report, settings: Settings) -> None:
    from assay.report_delivery import post
    from assay.report_text import slack_message

    if settings.report_webhook is not None:
        post(settings.report_webhook.get_secret_value(), slack_message(made))
        errors.print("sent", highlight=False)
