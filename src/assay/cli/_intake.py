"""`assay collect` and `assay pull`: records from traces."""

from __future__ import annotations

import os
import re
import signal
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal, assert_never

import typer

from assay import wiring
from assay.cli._screen import Json, errors, output, print_json, warn_exposed
from assay.errors import SettingsError
from assay.records import now
from assay.settings import load_settings

if TYPE_CHECKING:
    from assay.pull import Pulled, Source


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(collect)
    app.command()(pull)


def collect(
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback unless told otherwise.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = None,
    app_name: Annotated[
        str | None, typer.Option("--app", help="The app of all records. Default: service.name.")
    ] = None,
    sample_rate: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the interactions to take.")] = None,
) -> None:
    """Receive OpenTelemetry traces (OTLP over HTTP, `/v1/traces`) and enqueue the interactions in them.

    Point an exporter or a collector's `otlphttp` exporter at it. SIGTERM sends what is kept, then ends.
    """
    from assay import logs
    from assay.client import Client
    from assay.collect import Collector, CollectorLimits
    from assay.metrics import collector_families, encode, wants_openmetrics
    from assay.queue import MAX_RECORD_BYTES

    settings = load_settings(collect_host=host, collect_port=port)
    logs.configure(settings)
    scrapes, traces = wiring.build_guards(settings)
    broker, queue = settings.queue_url, settings.queue
    buffered = settings.collect_max_bytes // 4
    collector = Collector(
        lambda name: Client(
            name,
            redis_url=broker,
            queue=queue,
            sample_rate=sample_rate,
            max_batches=settings.max_batches,
            # The collector bounds them together; a record may be twice as large in memory as it may be when sent.
            buffer_bytes=buffered + 2 * MAX_RECORD_BYTES,
            close_seconds=10.0,
        ),
        app=app_name,
        guard=traces,
        scrape_guard=scrapes,
        host=settings.collect_host,
        port=settings.collect_port,
        limits=CollectorLimits(
            body_bytes=settings.collect_max_body_bytes,
            waiting_bytes=settings.collect_max_bytes,
            buffered_bytes=buffered,
            wait_seconds=settings.collect_wait_seconds,
            settle_seconds=settings.collect_settle_seconds,
        ),
        metrics=lambda counts, accept: encode(collector_families(counts), openmetrics=wants_openmetrics(accept)),
    )
    warn_exposed(traces, settings.collect_host, "ASSAY_COLLECT_TOKEN")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    collector.start()
    errors.print(f"traces at {collector.url}/v1/traces", markup=False)
    stop.wait()
    collector.close()


def pull(
    source: Annotated[Literal["phoenix", "mlflow", "langfuse"], typer.Argument(help="The trace store.")],
    since: Annotated[
        str | None,
        typer.Option(help="Begin of the range: a time (ISO 8601) or how long ago, such as `24h` or `7d`."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="End of the range, likewise. Default: a minute ago.")] = None,
    url: Annotated[str | None, typer.Option(help="Where it is. Default: that of the sink of this name.")] = None,
    project: Annotated[str | None, typer.Option(help="Phoenix project, or MLflow experiment (id or name).")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--filter", help="As the store has it. Phoenix: `key:value`, repeatable; others: one."),
    ] = None,
    app_name: Annotated[str | None, typer.Option("--app", help="The app of all records. Default: as traced.")] = None,
    sample_rate: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the interactions to take.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Enqueue at most so many; the next pull goes on.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Only count.")] = False,
    as_json: Json = False,
) -> None:
    """Enqueue what a trace store has already. What was enqueued before is not scored again.

    Without `--since` it goes on where the last pull of this store, project and filter ended; the first one takes the
    last 24 hours. Credentials are those of the sink of the same name (`ASSAY_SINK_PHOENIX_API_KEY`).
    """
    settings = load_settings()
    from assay import pull as pulling
    from assay.redaction import Redactor
    from assay.sampling import ALWAYS_TAKE, Sampler

    moment = now()
    store = _open(source, url, project, where or [])
    rate = sample_rate if sample_rate is not None else _sample_rate()
    try:
        with errors.status("pulling") as status:
            done = pulling.pull(
                store,
                taking=pulling.Taking(
                    sampler=Sampler(rate, ALWAYS_TAKE),
                    redact=Redactor(),
                    user_id_salt=os.environ.get("ASSAY_USER_ID_SALT"),
                    app=app_name,
                ),
                place=pulling.Place.read(settings.data_dir, store),
                since=_moment("--since", since, moment),
                until=_moment("--until", until, moment),
                asked=f"{since or ''}..{until or ''}",
                now=moment,
                queue=None if dry_run else wiring.open_queue(settings),
                limit=limit,
                on_page=lambda done: status.update(f"{done.traces} traces, {done.enqueued} records"),
            )
    finally:
        store.close()
    _print(done, dry_run=dry_run, as_json=as_json)


def _print(done: Pulled, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "since": done.since.isoformat(),
                "until": done.until.isoformat(),
                "traces": done.traces,
                "enqueued": done.enqueued,
                "sampled_out": done.sampled_out,
                "invalid": done.invalid,
                "skipped": dict(done.skipped),
                "finished": done.finished,
            }
        )
        return
    said = "would be enqueued" if dry_run else "enqueued"
    output.print(
        f"{done.enqueued} records {said} of {done.traces} traces "
        f"from {done.since:%Y-%m-%d %H:%M} to {done.until:%Y-%m-%d %H:%M} UTC."
    )
    left = {"sampled out": done.sampled_out, "invalid": done.invalid, **done.skipped}
    if any(left.values()):
        output.print(", ".join(f"{count} {reason}" for reason, count in left.items() if count))
    if not done.finished:
        output.print("There is more: run it again.")


def _open(
    name: Literal["phoenix", "mlflow", "langfuse"], url: str | None, project: str | None, where: list[str]
) -> Source:
    """The source of that name, with the settings of its sink.

    Raises:
        SettingsError: one of them is missing or wrong.
    """
    from assay.sinks import settings_of

    known = settings_of(name, **({"url": url} if url else {}))
    given = known.model_dump()

    def secret(field: str) -> str | None:
        value = given.get(field)
        return value.get_secret_value().strip() if value is not None else None

    if name != "phoenix" and len(where) > 1:
        raise SettingsError(f"--filter: {name} takes one")
    if name == "phoenix":
        from assay.pull.phoenix import Phoenix

        return Phoenix(given["url"], api_key=secret("api_key"), project=project or "default", filters=where)
    if name == "mlflow":
        from assay.pull.mlflow import MLflow

        user, password = given["username"], secret("password")
        return MLflow(
            given["url"],
            token=secret("token"),
            basic_auth=(user, password or "") if user else None,
            experiment=project or "0",
            condition=where[0] if where else None,
        )
    if name == "langfuse":
        from assay.pull.langfuse import Langfuse

        return Langfuse(
            given["url"],
            public_key=given["public_key"],
            secret_key=secret("secret_key") or "",
            condition=where[0] if where else None,
        )
    assert_never(name)


def _sample_rate() -> float:
    text = os.environ.get("ASSAY_SAMPLE_RATE") or "1"
    try:
        return float(text)
    except ValueError:
        raise SettingsError("ASSAY_SAMPLE_RATE: must be a number from 0 to 1") from None


def _moment(option: str, text: str | None, present: datetime) -> datetime | None:
    """A time, or so long ago; without a time zone it is UTC.

    Raises:
        SettingsError: it is neither.
    """
    if text is None:
        return None
    if match := re.fullmatch(r"(\d{1,6})([mhd])", text):
        unit = {"m": "minutes", "h": "hours", "d": "days"}[match[2]]
        return present - timedelta(**{unit: int(match[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{option}: {text!r} is no time: write it like 2026-01-31T12:00:00Z, 24h or 7d") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
