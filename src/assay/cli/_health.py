"""`assay status`, `assay doctor`, `assay purge` and `assay db`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from assay import wiring
from assay.cli._opened import open_store
from assay.cli._options import Apps, settings_of
from assay.cli._screen import Json, ago, output, print_json, print_table, ratio
from assay.errors import ConfigError, QueueError, SettingsError
from assay.redaction import hash_user_id
from assay.settings import load_settings

if TYPE_CHECKING:
    from assay.settings import Settings
    from assay.status import Status, StatusRow
    from assay.store import Subject

db = typer.Typer(help="The database.", no_args_is_help=True)

_PROGRESS_SECONDS = 2.0


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(status)
    app.command()(doctor)
    app.command()(purge)


def status(
    window: Annotated[str, typer.Option(help="How far back, such as `30m`, `1h` or `7d`.")] = "1h",
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Show the queue, the workers, the lag, and the gauges of the last hour."""
    # Celery comes with it: the other commands need not wait for that.
    from assay.status import read_status

    settings = settings_of(apps)
    report = read_status(settings, store=open_store(settings), queue=wiring.open_queue(settings), window=window)
    if as_json:
        print_json(report.as_json())
    else:
        _print_status(report, window)
    if report.queue is None:
        raise typer.Exit(1)


def _waits_since(moment: float | None) -> str:
    return "" if moment is None else f", the oldest waits {ago(time.time() - moment)}"


def _print_status(report: Status, window: str) -> None:
    queue = report.queue
    if queue is None:
        output.print("queue     Redis is away: run `assay doctor`", highlight=False)
    else:
        waits = _waits_since(queue.oldest_enqueued_at)
        output.print(f"queue     {queue.records} records pending{waits}", highlight=False)
    workers = "none answers: start one with `assay worker`" if not report.workers else ", ".join(report.workers)
    output.print(f"workers   {escape(workers)}", highlight=False)
    if queue is not None and (queue.ragas_records or set(report.ragas_workers) - set(report.workers)):
        waits = _waits_since(queue.ragas_oldest_enqueued_at)
        who = ", ".join(report.ragas_workers) or (
            "no worker has it, and they wait until one does: where the extra ragas is installed, start `assay worker`"
        )
        output.print(f"ragas     {queue.ragas_records} of these{waits}: {who}", markup=False, highlight=False)
    lag = "no score yet" if report.last_scored_at is None else f"{ago(time.time() - report.last_scored_at)} ago"
    output.print(f"scored    last {lag}; {report.dead_letters} dead letters", highlight=False)
    for reason, count in report.dropped.items():
        output.print(f"dropped   {count} by clients: {escape(reason)}", highlight=False)
    for name, depth in report.sinks.items():
        since = "" if depth.oldest_at is None else f" (the oldest for {ago(time.time() - depth.oldest_at.timestamp())})"
        aside = f", {depth.rejected} set aside: see `assay outbox list`" if depth.rejected else ""
        delivered = depth.writes.get("delivered", 0)
        line = f"sinks     {name}: {depth.waiting} waiting{since}, {delivered} delivered{aside}"
        output.print(line, markup=False, highlight=False)
    if not report.rows:
        output.print(f"No records in the last {window}.")
        return
    _print_gauges(f"Last {window}", report.rows)


def _print_gauges(title: str, rows: Sequence[StatusRow]) -> None:
    """One line for each label set and rubric; labels that are the same everywhere are not repeated."""
    labels = {
        "app": [row.app for row in rows],
        "cohort": [" ".join(f"{name}={value}" for name, value in row.cohort.items()) for row in rows],
        "rubric": [row.rubric for row in rows],
        "version": [row.rubric_version for row in rows],
        "judge": [row.judge for row in rows],
    }
    varying = {name: cells for name, cells in labels.items() if name == "rubric" or len(set(cells)) > 1}
    if len({(row.rubric, row.rubric_version) for row in rows}) == len({row.rubric for row in rows}):
        varying.pop("version", None)
    same = ", ".join(f"{name} {cells[0]}" for name, cells in labels.items() if len(set(cells)) == 1 and cells[0])
    print_table(
        f"{title}: {same}" if same else title,
        (*varying, "pass ratio>", "mean>", "scored>", "effective>", "failed>", "n/a>", "defects"),
        (
            (
                *(cells[index] for cells in varying.values()),
                ratio(row.pass_ratio),
                "–" if row.score_mean is None else f"{row.score_mean.value:.2f}",
                row.scored,
                "–" if row.pass_ratio is None else f"{row.pass_ratio.n_effective:.0f}",
                row.failed,
                row.not_applicable,
                _mix(row.defects),
            )
            for index, row in enumerate(rows)
        ),
    )


def _mix(defects: Mapping[str, float]) -> str:
    """The commonest defects, with their shares of all: `retrieval_miss 62 %, incomplete 20 %`."""
    total = sum(defects.values())
    most = sorted(defects.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{name} {100 * weight / total:.0f} %" for name, weight in most)


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


def purge(
    record: Annotated[list[str] | None, typer.Option(help="Delete the texts of this record; repeatable.")] = None,
    trace: Annotated[list[str] | None, typer.Option(help="Of the records of this trace; repeatable.")] = None,
    user: Annotated[
        list[str] | None, typer.Option(help="Of the records of this user: the hash that records hold; repeatable.")
    ] = None,
    user_id: Annotated[
        list[str] | None, typer.Option(help="Of this user, hashed here with `ASSAY_USER_ID_SALT`; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be deleted of these.")] = False,
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Delete what is older than the retention settings, of all apps. Workers do this every hour by themselves.

    With --record, --trace, --user or --user-id: delete the texts of these records instead, however old. Their scores
    stay. Exit code 1 while records of them wait in Redis: run it again once they are scored.
    """
    from assay.store import Subject

    users = [*(user or ()), *_hashed(user_id or ())]
    # As the SDKs of tracers write them, and as records have them.
    traces = {form for name in trace or () for form in (name, name.replace("-", "").lower())}
    subject = Subject(frozenset(record or ()), frozenset(traces), frozenset(users))
    if subject != Subject():
        _erase(subject, settings_of(apps), dry_run=dry_run, as_json=as_json)
        return
    if dry_run or apps:
        raise ConfigError(
            "--dry-run and --app are for one subject: name it with --record, --trace, --user or --user-id"
        )
    settings = load_settings()
    deleted = wiring.purge(settings, open_store(settings, apps=()))
    if as_json:
        print_json(deleted)
    else:
        print_table("Deleted", ("table", "rows>"), deleted.items())


def _hashed(user_ids: Sequence[str]) -> list[str]:
    salt = os.environ.get("ASSAY_USER_ID_SALT")
    if user_ids and not salt:
        raise ConfigError("--user-id needs ASSAY_USER_ID_SALT as the apps have it; or give the hash: --user HASH")
    return [hash_user_id(user_id, salt or "") for user_id in user_ids]


def _erase(subject: Subject, settings: Settings, *, dry_run: bool, as_json: bool) -> None:
    store = open_store(settings)
    # Before the store: what moves from here to there meanwhile is seen in one of them.
    waiting, kept, why = 0, 0, ""
    try:
        queue = wiring.open_queue(settings)
        payloads = chain(queue.payloads(), queue.unreadable(10_000))
        waiting = sum(subject.records_in(payload, settings.apps) for payload in payloads)
        kept = wiring.forget_verdicts(settings, subject, dry_run=dry_run)
    except (QueueError, SettingsError) as error:
        why = str(error)
    deleted = store.erase(subject, dry_run=dry_run) | {"reusable_verdicts": kept}
    if as_json:
        print_json({"dry_run": dry_run, "deleted": deleted, "waiting_in_redis": None if why else waiting})
    else:
        print_table("Would delete" if dry_run else "Deleted", ("what", "how many>"), deleted.items())
        if why:
            output.print(f"Redis was not looked into: {why}", markup=False, highlight=False)
        elif waiting:
            output.print(f"{waiting} records wait in Redis: run it again once they are scored.", highlight=False)
    if why or waiting:
        raise typer.Exit(1)


@db.command()
def upgrade() -> None:
    """Create the tables, or bring them to the version that this assay needs. Safe to run twice, and by two at once."""
    settings = load_settings()
    open_store(settings, check=False, apps=()).upgrade()
    output.print("The database is up to date.")


@db.command("new-key")
def new_key() -> None:
    """Print a fresh key for `ASSAY_PAYLOAD_KEYS`."""
    from assay.store import new_key as fresh

    print(fresh())


@db.command()
def rekey() -> None:
    """Encrypt all texts with the first key of `ASSAY_PAYLOAD_KEYS`, beside running workers. Cut off, run it again."""
    settings = load_settings()
    said = time.monotonic()
    rows: dict[str, tuple[int, int]] = {}
    for table, read, changed in open_store(settings, apps=()).rekey():
        rows[table] = (read, changed)
        if time.monotonic() - said > _PROGRESS_SECONDS:
            said = time.monotonic()
            output.print(f"{table}: {read} rows read, {changed} encrypted", markup=False)
    print_table("Encrypted", ("table", "rows>", "encrypted>"), ((name, *counts) for name, counts in rows.items()))
