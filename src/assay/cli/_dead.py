"""`assay dead`: what could not be processed, to be seen, mended and replayed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from assay import wiring
from assay.cli._opened import open_store
from assay.cli._options import Apps, check_known, settings_of
from assay.cli._screen import Bar, Json, errors, output, print_json, print_table
from assay.enqueue import replay
from assay.errors import RECORD_REASONS, ConfigError
from assay.files import read_file
from assay.queue import MAX_BATCH_BYTES
from assay.records import FailureKind
from assay.store import DeadLetter

app = typer.Typer(
    help="Dead letters: what could not be processed, kept to be seen, mended and replayed.", no_args_is_help=True
)

_REASONS = (*RECORD_REASONS, *get_args(FailureKind))
_Reason = Annotated[str | None, typer.Option(help="Only those with this reason, such as `unavailable` or `invalid`.")]


@app.command("list")
def list_(
    reason: _Reason = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to print, newest first.")] = 50,
    all_: Annotated[bool, typer.Option("--all", help="Also those that were replayed.")] = False,
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first."""
    check_known("--reason", reason, _REASONS)
    store = open_store(settings_of(apps))
    letters = store.dead_letters(reason=reason, limit=limit, include_replayed=all_, payloads=False)
    if as_json:
        print_json([_as_json(letter) for letter in letters])
        return
    if not letters:
        output.print("No dead letters.")
        return
    print_table(
        f"{len(letters)} dead letters",
        ("id", "when", "reason", "attempts>", "record", "message"),
        (
            (
                letter.dead_id[:12],
                f"{letter.created_at:%Y-%m-%d %H:%M:%S}" if letter.created_at else "",
                letter.reason,
                letter.attempts,
                letter.record_id or "",
                letter.message[:120],
            )
            for letter in letters
        ),
    )
    output.print(
        "Show one: `assay dead show ID`. Try again: `assay dead replay ID` or `assay dead replay --all`.", markup=False
    )


@app.command()
def show(
    dead_id: Annotated[str, typer.Argument(help="Id of a dead letter, or its beginning.")],
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Print one dead letter: the reason on standard error, the payload on standard output.

    Into a pipe or a file the payload goes as it came; a terminal is shown no control characters.
    """
    letter = open_store(settings_of(apps)).dead_letter(dead_id)
    if as_json:
        print_json(_as_json(letter) | {"payload": letter.payload.decode(errors="backslashreplace")})
        return
    errors.print(f"{letter.reason}: {letter.message}", markup=False, highlight=False, soft_wrap=True)
    if sys.stdout.isatty():
        output.print(letter.payload.decode(errors="backslashreplace"), markup=False, highlight=False, soft_wrap=True)
    else:
        sys.stdout.buffer.write(letter.payload + b"\n")


@app.command("replay")
def replay_(
    dead_id: Annotated[str | None, typer.Argument(help="Id of a dead letter, or its beginning.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every dead letter that was not replayed yet.")] = False,
    reason: _Reason = None,
    payload: Annotated[
        Path | None,
        typer.Option(help="File with the mended record, instead of the kept one.", exists=True, dir_okay=False),
    ] = None,
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Put dead letters back on the queue. A score that comes of it takes the place of the stored failure.

    Mend one: `assay dead show ID > record.json`, edit it, `assay dead replay ID --payload record.json`.
    """
    if (dead_id is None) == (not all_ and reason is None):
        raise ConfigError("name one dead letter, or say --all or --reason REASON")
    check_known("--reason", reason, _REASONS)
    if payload is not None and dead_id is None:
        raise ConfigError("--payload mends one dead letter: name its id")
    mended = None if payload is None else _mended(payload)
    settings = settings_of(apps)
    store, queue = open_store(settings), wiring.open_queue(settings)
    # Ids first: all payloads at once might not fit into memory.
    listed = [] if dead_id else store.dead_letters(reason=reason, limit=1_000_000, payloads=False)
    ids = [dead_id] if dead_id else [letter.dead_id for letter in listed]
    letters = (store.dead_letter(letter_id) for letter_id in ids)
    most = settings.max_record_bytes
    with Bar("replaying", len(ids)) as bar:
        done = replay(letters, queue=queue, store=store, max_record_bytes=most, mended=mended, on_read=bar.advance)
    if as_json:
        print_json({"replayed": done.replayed, "refused": [{"dead_id": i, "error": e} for i, e in done.refused]})
    else:
        output.print(f"{done.replayed} of {len(ids)} back on the queue.")
        for letter_id, error in done.refused:
            output.print(f"{letter_id[:12]} stays: {error}", markup=False)
    if done.refused:
        raise typer.Exit(2)


def _as_json(letter: DeadLetter) -> dict[str, object]:
    return {
        "dead_id": letter.dead_id,
        "record_id": letter.record_id,
        "reason": letter.reason,
        "message": letter.message,
        "attempts": letter.attempts,
        "created_at": letter.created_at,
        "replayed_at": letter.replayed_at,
    }


def _mended(path: Path) -> bytes:
    try:
        return read_file(path, MAX_BATCH_BYTES, pipes=True)
    except OSError as error:
        raise ConfigError(f"--payload {path}: {error.strerror}") from None
