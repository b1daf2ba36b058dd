"""`assay changes` and `assay canary`: what has changed, whose fault it is, and the set that tells."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from assay import wiring
from assay.cli._opened import open_store
from assay.cli._options import Apps, settings_of
from assay.cli._screen import Json, output, print_json, print_table
from assay.errors import ConfigError
from assay.settings import load_settings
from assay.spelling import many
from assay.store import CanaryRun, ChangeEvent

app = typer.Typer(
    help="Changes: drops of the pass ratio, changed judges and rubrics, and whose fault they are.", no_args_is_help=True
)
canary = typer.Typer(help="The canary: a fixed labelled set that tells a changed judge.", no_args_is_help=True)

_Rubric = Annotated[str | None, typer.Option(help="Only of the rubric of this name.")]


@app.command("list")
def list_(
    rubric: _Rubric = None,
    open_: Annotated[bool, typer.Option("--open", help="Only drops that are not over.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most events to print, newest first.")] = 50,
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """List verdicts, then events, newest first."""
    store = open_store(settings_of(apps))
    verdicts = [v for v in store.drift_verdicts() if v.verdict != "none" and rubric in (None, v.instrument.rubric)]
    events = store.change_events(open_only=open_, rubric=rubric, limit=limit)
    if as_json:
        print_json(
            {
                "verdicts": [
                    {**v.instrument._asdict(), "verdict": v.verdict, "reason": v.reason, "since": v.since}
                    for v in verdicts
                ],
                "events": [_as_json(event) for event in events],
            }
        )
        return
    for v in verdicts:
        name = f"{v.instrument.rubric} {v.instrument.rubric_version} by {v.instrument.judge}"
        since = f" (since {v.since:%Y-%m-%d %H:%M})" if v.since else ""
        output.print(f"{name}: {v.verdict}: {v.reason}{since}", markup=False, highlight=False, soft_wrap=True)
    if not events:
        output.print("No changes.")
        return
    print_table(
        many(len(events), "event"),
        ("id", "when", "what", "of", "verdict", "state", "message"),
        (
            (
                event.event_id[:12],
                f"{event.happened_at:%Y-%m-%d %H:%M}",
                event.kind,
                _of(event),
                event.verdict or "",
                _state(event),
                event.message,
            )
            for event in events
        ),
    )
    output.print("Show one: `assay changes show ID`. Mark it: `assay changes acknowledge ID`.", markup=False)


@app.command()
def show(
    event_id: Annotated[str, typer.Argument(help="Id of an event, or its beginning.")],
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Print one event with its details."""
    event = open_store(settings_of(apps)).change_event(event_id)
    if as_json:
        print_json(_as_json(event))
        return
    lines: dict[str, Any] = {
        "event": event.event_id,
        "what": event.kind,
        "when": f"{event.happened_at:%Y-%m-%d %H:%M:%S} UTC",
        "noted": "" if event.noted_at is None else f"{event.noted_at:%Y-%m-%d %H:%M:%S} UTC",
        "of": _of(event),
        "rubric": f"{event.instrument.rubric} {event.instrument.rubric_version}",
        "judge": event.instrument.judge,
        "message": event.message,
        "verdict": event.verdict or "",
        "state": _state(event),
        "note": event.note or "",
        **event.details,
    }
    for name, value in lines.items():
        if value != "":
            output.print(f"{name:18} {value}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def acknowledge(
    event_id: Annotated[str, typer.Argument(help="Id of an event, or its beginning.")],
    note: Annotated[str, typer.Option(help="What you found, for those who come after you.")] = "",
    accept: Annotated[
        bool,
        typer.Option(
            "--accept",
            help="The present is right: a drop's detector learns anew, a judge's canary is compared with now.",
        ),
    ] = False,
    apps: Apps = None,
) -> None:
    """Note that you have seen an event. A changed judge, once acknowledged, holds no pages back any more."""
    store = open_store(settings_of(apps))
    event = store.change_event(event_id)
    if accept and event.kind not in ("drop", "verdict"):
        raise ConfigError(f"a {event.kind} event has no level to accept: leave --accept out")
    if not store.acknowledge_change(event, note=note, accept=accept):
        raise ConfigError(
            f"event {event.event_id[:12]} is of the whole deployment: acknowledge it with all apps in sight"
        )
    # numpy comes with it.
    from assay.verdicts import settle_verdicts

    # Whose fault a change is takes the evidence of all apps.
    settle_verdicts(store.of_all_apps())
    output.print("Accepted: this is the reference from now on." if accept else "Acknowledged.")


@canary.command("run")
def run_(rubric: _Rubric = None, as_json: Json = False) -> None:
    """Judge the labelled sets of ASSAY_CANARY now, and say whether the judge reads them as before.

    It costs as many calls as there are records and repeats; ASSAY_CANARY_BUDGET_USD bounds it. Exit code 3 if a judge
    has changed.
    """
    from assay.canary import active_versions, canary_files, check_canary, instrument_of, run_canary
    from assay.verdicts import settle_verdicts

    settings = load_settings()
    store, judge = open_store(settings, apps=()), wiring.judge_settings(settings)
    policy = wiring.canary_policy(settings)
    files = canary_files(policy)
    if not files:
        raise ConfigError("there is no canary: point ASSAY_CANARY at label files, such as calibration/relevance.jsonl")
    if rubric is not None and rubric not in files:
        raise ConfigError(f"no file of ASSAY_CANARY is of {rubric!r}: there are {', '.join(files)}")
    rubrics = wiring.read_rubrics(settings)
    check_canary(files, rubrics)
    versions = active_versions(store, rubrics, judge)
    runs = []
    for version in versions:
        if version.rubric.name not in files or rubric not in (None, version.rubric.name):
            continue
        instrument = instrument_of(version)
        # Two at once would each spend the whole budget.
        if not store.claim_canary(instrument, policy.max_seconds + 60):
            raise ConfigError(f"the canary of {instrument.rubric} is being run: see `assay changes list` in a while")
        try:
            runs.append(
                run_canary(store, version, versions, judge, policy, files[version.rubric.name], trigger="command")
            )
        finally:
            store.free_canary(instrument)
    settle_verdicts(store)
    if as_json:
        print_json([_run_as_json(run) for run in runs])
    else:
        print_table(
            "Canaries",
            ("rubric", "judge", "records>", "compared>", "labels met>", "USD>", "verdict", "why"),
            (
                (
                    run.instrument.rubric,
                    run.instrument.judge,
                    f"{len(run.scores)} of {run.items}",
                    run.compared,
                    "–" if run.agreement is None else f"{run.agreement:.0%}",
                    f"{run.spent_usd:.2f}",
                    run.cause,
                    run.reason,
                )
                for run in runs
            ),
        )
    if any(run.cause == "judge" for run in runs):
        raise typer.Exit(3)


def _of(event: ChangeEvent) -> str:
    cohort = " ".join(f"{name}={value}" for name, value in event.cohort.items() if value)
    return " ".join(part for part in (event.app, cohort, event.instrument.rubric) if part)


def _state(event: ChangeEvent) -> str:
    if event.resolution is not None:
        return event.resolution
    if event.acknowledged_at is not None:
        return "acknowledged"
    return "open" if event.kind == "drop" else ""


def _as_json(event: ChangeEvent) -> dict[str, object]:
    fields = asdict(event)
    del fields["key"]
    return fields | {"instrument": event.instrument._asdict()}


def _run_as_json(run: CanaryRun) -> dict[str, object]:
    fields = asdict(run)
    del fields["scores"], fields["passes"]
    return fields | {"instrument": run.instrument._asdict(), "scored": len(run.scores)}
