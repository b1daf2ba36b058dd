"""`assay worker`, `assay exporter`, `assay dev` and `assay demo`: the long-running processes."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from assay import wiring
from assay.cli._opened import open_store
from assay.cli._options import Apps, settings_of
from assay.cli._screen import errors, output, warn_exposed
from assay.errors import SchemaError, StoreError
from assay.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(worker)
    app.command()(exporter)
    app.command()(dev)
    app.command()(demo)


def worker(
    concurrency: Annotated[int | None, typer.Option(min=1, help="Batches worked on at once.")] = None,
    metrics_port: Annotated[int | None, typer.Option(min=0, help="Port of this process's own `/metrics`.")] = None,
) -> None:
    """Score what is on the queue, until SIGTERM. Run as many as you like.

    SIGTERM finishes what is in flight for `ASSAY_SHUTDOWN_SECONDS`, then hands it back; `kill -9` loses nothing either.
    """
    # What a process needs takes a second to import: the other commands need none of it.
    from assay import logs, tasks
    from assay.exporter import serve_worker
    from assay.metrics import WorkerMetrics

    settings = load_settings(concurrency=concurrency, worker_metrics_port=metrics_port)
    logs.configure(settings)
    guard, _ = wiring.build_guards(settings)
    sinks = wiring.open_sinks(settings)
    store, queue = open_store(settings, sinks=sinks, apps=()), wiring.open_queue(settings)
    metrics = WorkerMetrics()
    outbox = wiring.build_outbox(settings, store, sinks)
    scorer = wiring.build_worker(settings, queue=queue, store=store, metrics=metrics, outbox=outbox)
    server = None
    if settings.worker_metrics_port is not None:
        host = settings.worker_metrics_host
        warn_exposed(guard, host, "ASSAY_METRICS_TOKEN")
        server = serve_worker(metrics, host=host, port=settings.worker_metrics_port, guard=guard)
    app = tasks.build_app(settings, scorer, queue, wiring.build_chores(settings, store, outbox=outbox))
    # Thousands of objects live while a batch is judged, and hardly any is part of a cycle: at Python's own threshold,
    # 700, looking for cycles takes a fifth of a worker's CPU.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    # Threads take the interpreter from each other every 20 ms and not every 5, which saves a twentieth of the CPU.
    # Beside the time that a judge takes, the longer wait for a turn is nothing.
    sys.setswitchinterval(0.02)
    try:
        code = tasks.run(app, settings, scorer, queue)
    finally:
        if server is not None:
            server.close()
    raise typer.Exit(code)


def exporter(
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback unless told otherwise.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = None,
    apps: Apps = None,
) -> None:
    """Serve the time series at `/metrics`, and `/healthz`. It reads the database: run any number of them."""
    from assay import logs
    from assay.exporter import serve
    from assay.metrics import ScoreCollector

    settings = settings_of(apps, exporter_host=host, exporter_port=port)
    logs.configure(settings)
    guard, _ = wiring.build_guards(settings)
    warn_exposed(guard, settings.exporter_host, "ASSAY_METRICS_TOKEN")
    store = open_store(settings, check=False)
    try:
        store.check()
    except SchemaError:
        raise
    except StoreError as error:
        # It is away, and may come back: until then `assay_up` says so, and there are no gauges.
        errors.print(f"warning: {error}", markup=False)
    rubrics = wiring.read_rubrics(settings)
    budgets = wiring.read_budgets(settings, rubrics)
    collector = ScoreCollector(
        store,
        wiring.open_queue(settings),
        windows=settings.windows,
        cohort_labels=settings.cohort_labels,
        rubrics=rubrics,
        reference_week=settings.reference_week,
        ledger=None if budgets is None else wiring.open_ledger(settings, budgets),
    )
    # What is loaded by now stays: collecting garbage in the midst of a scrape need not look at it.
    gc.freeze()
    server = serve(collector, host=settings.exporter_host, port=settings.exporter_port, guard=guard)
    errors.print(f"metrics at {server.url}/metrics", markup=False)
    _until_signalled()
    server.close()


def dev(
    data_dir: Annotated[Path | None, typer.Option(help="Where Redis and SQLite keep their files.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the exporter.")] = None,
) -> None:
    """Run all of it in one terminal, on an embedded Redis and SQLite: for trying out, not for production."""
    from assay.dev import run_dev

    settings = load_settings(data_dir=data_dir, exporter_port=port)
    run_dev(settings, say=lambda text: output.print(text, markup=False, highlight=False, soft_wrap=True))


def demo(
    seconds: Annotated[float, typer.Option(min=10, max=600, help="How long the synthetic traffic runs.")] = 40,
) -> None:
    """Watch it work: a synthetic support assistant whose retrieval breaks half-way. Needs no key, server or Docker.

    Uses a real judge when `OPENAI_API_KEY` or `ASSAY_JUDGE_BASE_URL` is set.
    """
    from assay.demo import run_demo

    run_demo(load_settings(), seconds=seconds, console=output)


def _until_signalled() -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
