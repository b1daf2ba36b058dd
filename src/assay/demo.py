"""`assay demo`: a synthetic support assistant whose retrieval breaks half-way, scored by the real thing.

Real parts all through: the client samples, an embedded Redis queues, a worker process judges, SQLite keeps, an exporter
process serves. Only the assistant and its customers are made up. The traffic is dated so that one second of the demo
is one minute of the assistant's life, which ends at the present.
"""

from __future__ import annotations

import json
import random
import signal
import tempfile
import time
import urllib.request
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from assay import wiring
from assay.client import Client
from assay.codec import decode_record
from assay.defects import MEANINGS
from assay.dev import child, local_stack
from assay.errors import ProcessError
from assay.records import Score, Usage
from assay.sampling import Rule
from assay.tasks import ping_workers
from assay.windows import Estimate, Sums, pass_ratio, window_bounds

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from rich.console import Console

    from assay.settings import Settings
    from assay.store import Store

#: seconds of the assistant's life in one second of the demo
_SPEED = 60.0
_WINDOW_SECONDS = 300
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class _Customers:
    """Asks, retrieves and answers, from one seed. `broken` makes retrieval fetch the wrong article."""

    articles: list[dict[str, str]]
    random: random.Random = field(default_factory=lambda: random.Random(20))  # noqa: S311 - made-up traffic

    def interaction(self, *, broken: bool) -> dict[str, Any]:
        """Fields of one record, as an app would give them to `client.record`."""
        weights = [1 if article["route"] == "billing" else 4 for article in self.articles]
        asked = self.random.choices(self.articles, weights)[0]
        other, second = self.random.sample([article for article in self.articles if article is not asked], 2)
        # The billing index is the one that is worse hit.
        wrong = self.random.random() < ((0.95 if asked["route"] == "billing" else 0.4) if broken else 0.04)
        found, answer = asked, asked["right_answer"]
        if wrong:
            found = other
            lost = "I could not find anything about that, sorry."
            answer = self.random.choice(
                [asked["invented_answer"], asked["invented_answer"], other["right_answer"], lost]
            )
        contexts = [
            {"id": found["topic"], "text": found["article"], "score": 0.8},
            {"id": second["topic"], "text": second["article"], "score": 0.4},
        ]
        return {"input": asked["question"], "output": answer, "contexts": contexts, "route": asked["route"]}


@dataclass(slots=True)
class _View:
    """What the terminal shows while the traffic runs."""

    rubrics: list[str]
    history: dict[str, list[float | None]]
    broken_at: float
    minutes: int
    now: float = 0.0
    taken: int = 0
    seen: int = 0
    scored: int = 0
    estimates: dict[str, Estimate | None] = field(default_factory=dict)

    def table(self) -> Panel:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("gauge", "last 5 min", "95 % interval", f"the assistant's last {self.minutes} minutes"):
            table.add_column(column)
        for name in self.rubrics:
            estimate = self.estimates.get(name)
            value = Text("–") if estimate is None else Text(f"{estimate.value:.2f}", style=_colour(estimate.value))
            interval = "" if estimate is None else f"{estimate.lower:.2f} – {estimate.upper:.2f}"
            table.add_row(name, value, interval, _spark(self.history[name]))
        state = "[red]retrieval is broken[/]" if self.now >= self.broken_at else "[green]retrieval works[/]"
        clock = datetime.fromtimestamp(self.now, UTC).astimezone().strftime("%H:%M")
        title = f"{clock}  {state}  {self.seen} answers given, {self.taken} sampled, {self.scored} scored"
        return Panel(
            table, title=title, title_align="left", subtitle="pass ratio by rubric, weighted by sampling probability"
        )

    def line(self) -> str:
        values = "  ".join(
            f"{n} {'–' if (e := self.estimates.get(n)) is None else f'{e.value:.2f}'}" for n in self.rubrics
        )
        state = "retrieval broken" if self.now >= self.broken_at else "retrieval works"
        return f"{datetime.fromtimestamp(self.now, UTC).astimezone():%H:%M}  {state:16}  {values}"


def run_demo(settings: Settings, *, seconds: float, console: Console) -> None:
    """Run it and print what it showed. Starts its own Redis, database, worker and exporter, and ends them.

    Raises:
        ProcessError: a part did not start, or nothing was scored.
    """
    private = settings.model_copy(update={"queue": "assay-demo"})
    # A closed terminal ends it as Ctrl-C does, so that its processes end too.
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    console.print(
        "[bold]assay demo[/]: a made-up support assistant answers customers; in the middle its retrieval breaks.\n"
        f"One second here is one minute there. Judge: {escape(_judge_name(private))}.",
        highlight=False,
    )
    with (
        tempfile.TemporaryDirectory(prefix="assay-demo-") as directory,
        local_stack(private, data_dir=Path(directory)) as chosen,
        child(["worker"], chosen, log=Path(directory) / "worker.log") as worker,
        child(["exporter", "--port", "0"], chosen, log=Path(directory) / "exporter.log"),
    ):
        store = wiring.open_store(chosen, apps=())
        try:
            _await_worker(chosen, worker, log=Path(directory) / "worker.log")
            started = time.time()
            _traffic(chosen, store, seconds=seconds, console=console, alive=lambda: worker.poll() is None)
            if not any(total.scored for total in store.totals()):
                raise ProcessError(f"nothing was scored: {(Path(directory) / 'worker.log').read_text()[-2000:]}")
            _report(store, since=started - seconds * _SPEED, console=console, directory=Path(directory))
        finally:
            store.close()


def _await_worker(settings: Settings, worker: subprocess.Popen[bytes], *, log: Path) -> None:
    """Wait for it, so that the first minutes shown are not empty where it takes long to start."""
    deadline = time.monotonic() + 60
    while not ping_workers(settings, timeout_seconds=0.5).ordinary:
        if worker.poll() is not None or time.monotonic() > deadline:
            raise ProcessError(f"the worker did not start: {log.read_text()[-2000:]}")


def _judge_name(settings: Settings) -> str:
    if settings.judge_engine == "openai":
        # Without the user and the password that a URL may hold.
        scheme, _, place = (settings.judge_base_url or "").partition("://")
        host, slash, path = place.partition("/")
        shown = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" if place else "the OpenAI API"
        return f"{settings.judge_model} at {shown}"
    return f"{settings.judge_engine} (keyless; a baseline: set OPENAI_API_KEY or ASSAY_JUDGE_BASE_URL for a real one)"


def _client(settings: Settings) -> Client:
    return Client(
        app="support-demo",
        redis_url=settings.queue_url,
        queue=settings.queue,
        max_batches=settings.max_batches,
        sample_rate=0.1,
        # Billing is rare and dear: take all of it. Its records weigh less, so the gauges stay right.
        rules=[Rule("billing", 1.0, route="billing")],
        flush_seconds=0.25,
    )


def _traffic(settings: Settings, store: Store, *, seconds: float, console: Console, alive: Any) -> None:
    per_second = 150 if settings.judge_engine != "openai" else 12
    customers = _Customers(json.loads(files("assay").joinpath("data/demo.json").read_text("utf-8"))["articles"])
    client = _client(settings)
    rubrics = [rubric.name for rubric in wiring.read_rubrics(settings)]
    began = time.monotonic()
    first = time.time() - seconds * (_SPEED - 1)
    view = _View(rubrics, {name: [] for name in rubrics}, broken_at=first + seconds * _SPEED / 2, minutes=int(seconds))
    ticks = int(seconds)
    try:
        with (
            Live(view.table(), console=console, refresh_per_second=4, transient=False)
            if console.is_terminal
            else _Quiet() as live
        ):
            for tick in range(ticks):
                for index in range(per_second):
                    moment = first + (tick + index / per_second) * _SPEED
                    fields = customers.interaction(broken=moment >= view.broken_at)
                    trace_id = uuid.UUID(int=customers.random.getrandbits(128)).hex
                    client.record(trace_id=trace_id, timestamp=datetime.fromtimestamp(moment, UTC), **fields)
                time.sleep(max(0.0, began + tick + 1 - time.monotonic()))
                view.now = first + (tick + 1) * _SPEED
                _update(view, store, client)
                if live is not None:
                    live.update(view.table())
                elif tick % 5 == 4:
                    console.print(view.line(), highlight=False)
                if not alive():
                    raise ProcessError("the worker ended; run `assay dev` to see why")
            client.flush(5.0)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and wiring.open_queue(settings).depth().records:
                time.sleep(0.2)
            _update(view, store, client)
            if live is not None:
                live.update(view.table())
    finally:
        # Before Redis ends: there is nothing to wait for then.
        client.close(1.0)


class _Quiet:
    """Stands in for a live display where there is no terminal."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _update(view: _View, store: Store, client: Client) -> None:
    start, end = window_bounds(view.now, _WINDOW_SECONDS)
    sums: dict[str, Sums] = {}
    for rollup in store.rollups(start, end):
        sums[rollup.rubric] = sums.get(rollup.rubric, Sums()) + Sums.from_row(rollup)
    for name in view.rubrics:
        view.estimates[name] = estimate = pass_ratio(sums.get(name, Sums()))
        view.history[name].append(None if estimate is None else estimate.value)
    stats = client.stats()
    view.taken, view.seen = stats.taken, stats.taken + stats.sampled_out + stats.thinned
    view.scored = sum(store.counts().received.values())


def _report(store: Store, *, since: float, console: Console, directory: Path) -> None:
    console.print()
    worst = next(iter(store.worst(since=datetime.fromtimestamp(since, UTC), rubric="faithfulness", limit=1)), None)
    if worst is not None and worst.payload is not None and isinstance(score := worst.evaluation.outcome, Score):
        record = decode_record(worst.payload)
        body = Text()
        for name, text in (
            ("question", record.input_text),
            ("context", record.contexts[0].text if record.contexts else ""),
            ("answer", record.output),
        ):
            body.append(f"{name:10} ", style="bold").append(f"{text}\n")
        body.append(f"{worst.evaluation.rubric} {score.value:.2f}  ", style="bold red").append(score.explanation)
        if score.defect is not None:
            body.append("\ndefect     ", style="bold").append(f"{score.defect}: {MEANINGS[score.defect]}")
        console.print(Panel(body, title="The least faithful answer, and why", title_align="left"))
    start, end = window_bounds(time.time(), _WINDOW_SECONDS)
    table = Table(
        box=None, title="The last 5 minutes: billing is sampled 10 times as often, and is worse", title_justify="left"
    )
    for column in ("rubric", "weighted gauge", "95 % interval", "plain share of sampled records"):
        table.add_column(column)
    for row in _by_rubric(store, start, end):
        name, sums = row
        estimate = pass_ratio(sums)
        if estimate is not None:
            interval = f"{estimate.lower:.2f} – {estimate.upper:.2f}"
            table.add_row(name, f"{estimate.value:.2f}", interval, f"{sums.passes / sums.n:.2f}")
    console.print(table)
    console.print(f"Judge cost: {_cost(store)}.", highlight=False)
    for line in _scraped(directory):
        console.print(Text(f"  {line}", style="dim"), soft_wrap=True)
    console.print(
        "\nNext:\n"
        "  a real judge     OPENAI_API_KEY=... make demo\n"
        "                   or ASSAY_JUDGE_BASE_URL=http://localhost:11434/v1 ASSAY_JUDGE_MODEL=... make demo\n"
        "  your own app     .venv/bin/assay dev, then docs/tutorial/first-scores.md\n"
        "  your own rubric  rubrics/*.yaml, and .venv/bin/assay rubrics show faithfulness",
        highlight=False,
        markup=False,
    )


def _by_rubric(store: Store, start: int, end: int) -> Iterator[tuple[str, Sums]]:
    sums: dict[str, Sums] = {}
    for rollup in store.rollups(start, end):
        sums[rollup.rubric] = sums.get(rollup.rubric, Sums()) + Sums.from_row(rollup)
    yield from sorted(sums.items())


def _cost(store: Store) -> str:
    usage = sum((total.usage for total in store.totals()), Usage())
    if not usage.prompt_tokens:
        return "nothing, the judge made no calls"
    tokens = f"{usage.prompt_tokens:,} prompt + {usage.completion_tokens or 0:,} completion tokens"
    return f"{tokens}, " + ("of unknown price" if usage.cost_usd is None else f"{usage.cost_usd:.4f} USD")


def _scraped(directory: Path) -> list[str]:
    """A few lines of what Prometheus would scrape right now."""
    log = (directory / "exporter.log").read_text()
    url = next((word for word in log.split() if word.startswith("http://") and word.endswith("/metrics")), None)
    if url is None:
        return []
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - the exporter just started, on loopback
        text = answer.read().decode()
    wanted = ("assay_pass_ratio{", "assay_pass_ratio_ci_lower{")
    lines = [line for line in text.splitlines() if line.startswith(wanted) and 'window="5m"' in line]
    short = [f"{series} {float(value):.3f}" for series, _, value in (line.rpartition(" ") for line in lines)]
    return ["what Prometheus scraped just now:", *short[:4]]


def _spark(values: list[float | None]) -> Text:
    text = Text()
    for value in values[-60:]:
        if value is None:
            text.append(" ")
        else:
            text.append(_BARS[min(7, int(value * 8))], style=_colour(value))
    return text


def _colour(value: float) -> str:
    return "green" if value >= 0.85 else "yellow" if value >= 0.6 else "red"
