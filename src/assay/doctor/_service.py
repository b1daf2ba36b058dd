"""Checks of how the deployment does: what waits, is spent or not calibrated, and whether the exporter keeps up."""

from __future__ import annotations

import re
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from assay import wiring
from assay.doctor._finding import Finding
from assay.errors import ConfigError, QueueError, StoreDataError, StoreError
from assay.gate import Version
from assay.records import now

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from assay.rubrics import Rubric
    from assay.settings import Settings
    from assay.store import Store

#: Share of a budget from which it is told of, and how far the exporter may be behind.
_NEARLY_SPENT = 0.8
_BEHIND_SECONDS = 120.0
#: Turns of a canary that may be missed.
_STALE_TURNS = 3
_EXPORTER_SECONDS = 10.0


def stored(store: Store, settings: Settings, rubrics: Sequence[Rubric]) -> Iterator[Finding]:
    """What the database says of the deployment. Silent where it went away meanwhile: another check says so."""
    try:
        store.check_writable()
    except (StoreError, StoreDataError) as error:
        yield Finding("database", "wrong", str(error), "grant its role what it needs: deploy/postgresql/roles.sql")
    try:
        waiting = {reason: n for reason, n in store.counts().dead_kept.items() if n}
        if waiting:
            said = ", ".join(f"{n} {reason}" for reason, n in sorted(waiting.items(), key=lambda item: -item[1]))
            mend = "see why: assay dead list; then: assay dead replay --reason REASON"
            yield Finding("dead", "warning", f"{sum(waiting.values())} dead letters wait: {said}", mend)
        yield from _calibrations(store, settings, rubrics)
        yield from _canaries(store, settings)
        yield from _exporter(store, settings)
    except StoreError:
        return


def _calibrations(store: Store, settings: Settings, rubrics: Sequence[Rubric]) -> Iterator[Finding]:
    states = {(c.rubric_hash, c.judge_fingerprint): c for c in store.calibrations(bodies=False)}
    judge = wiring.judge_settings(settings)
    for rubric in rubrics:
        try:
            version = Version.of(rubric, judge)
        except ConfigError:
            return  # the check of the judge says so
        found, name = states.get(version.key), f"{rubric.name} {rubric.revision}"
        mend = f"run: assay calibrate LABELS --rubric {rubric.name}"
        if found is None:
            yield Finding("calibration", "warning", f"{name} has none for {version.judge}", mend)
        elif found.state == "stale":
            yield Finding("calibration", "warning", f"{name} is stale: {found.reason}", mend)
    for placed in store.rubric_versions(retired=False):
        if placed.state == "waiting":
            message = f"{placed.rubric} {placed.rubric_version} waits, an older one goes on: {placed.reason}"
            mend = f"run: assay calibrate LABELS --rubric {placed.rubric}"
            yield Finding("gate", "warning", message, mend)


def _canaries(store: Store, settings: Settings) -> Iterator[Finding]:
    """Canaries whose turn came and went. The alert of that sees only those that have run once."""
    if not settings.canary:
        return
    # numpy comes with it.
    from assay.canary import canary_files

    try:
        names = canary_files(wiring.canary_policy(settings)).keys()
    except ConfigError:
        return  # the check of the settings says so
    ran: dict[str, datetime] = {}
    for run in store.canaries():
        name = run.instrument.rubric
        ran[name] = max(run.finished_at, ran.get(name, run.finished_at))
    scored = {total.rubric for total in store.totals() if total.scored}
    mend = "see why: assay canary run; workers run it as their chore `canary`, and log why they cannot"
    for name in sorted(names & scored):
        if name not in ran:
            yield Finding("canary", "warning", f"that of {name} has not run yet", mend)
        elif (hours := (now() - ran[name]).total_seconds() / 3600) > _STALE_TURNS * settings.canary_hours:
            yield Finding("canary", "warning", f"that of {name} last ran {hours:.0f} h ago", mend)


def budgets(settings: Settings, rubrics: Sequence[Rubric]) -> Iterator[Finding]:
    """Budgets that are spent, or nearly."""
    try:
        found = wiring.read_budgets(settings, rubrics)
        balances = [] if found is None else wiring.open_ledger(settings, found).balances()
    except QueueError:
        return  # the check of Redis says so
    except ConfigError as error:
        yield Finding("budgets", "wrong", str(error), "mend it: docs/howto/budgets.md")
        return
    for balance in balances:
        if balance.used >= _NEARLY_SPENT:
            name, until = balance.meter.budget.name, f"{balance.resets_at:%Y-%m-%d %H:%M} UTC"
            state = "spent" if not balance.left else f"{100 * balance.used:.0f} % spent"
            mend = f"wait until {until}, raise it, or name a cheaper judge: assay budget"
            yield Finding("budgets", "warning", f"{name}: {state}", mend)


def _exporter(store: Store, settings: Settings) -> Iterator[Finding]:
    guard, _ = wiring.build_guards(settings)
    host = settings.exporter_host
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - read
    url = settings.exporter_url or f"{guard.scheme}://{host}:{settings.exporter_port}"
    request = urllib.request.Request(f"{url.rstrip('/')}/metrics")  # noqa: S310 - an http(s) URL of a setting
    if guard.tokens:
        request.add_header("Authorization", f"Bearer {guard.tokens[0]}")
    context = None
    if url.startswith("https"):
        # A certificate that signs itself is trusted where it is ours.
        context = ssl.create_default_context()
        if settings.tls_certificate is not None:
            context.load_verify_locations(settings.tls_certificate)
    try:
        with urllib.request.urlopen(request, timeout=_EXPORTER_SECONDS, context=context) as answer:  # noqa: S310
            body = answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        yield Finding(
            "exporter", "warning", f"{url}: it answers {error.code}", "is ASSAY_METRICS_TOKEN the same there?"
        )
        return
    except (OSError, ValueError):
        mend = "start it: assay exporter; if it runs elsewhere, set ASSAY_EXPORTER_URL"
        yield Finding("exporter", "warning", f"{url}: no exporter answers", mend)
        return
    away = re.findall(r'^assay_up\{component="(\w+)"\} 0', body, re.MULTILINE)
    for component in away:
        mend = "see its log, and run assay doctor on its machine"
        yield Finding("exporter", "warning", f"{url}: it cannot read {component}", mend)
    shown = [float(v) for v in re.findall(r"^assay_last_score_timestamp_seconds\{.*\} (\S+)", body, re.MULTILINE)]
    last = max((t.last_scored_at for t in store.totals() if t.last_scored_at is not None), default=None)
    behind = 0.0 if last is None else last - max(shown, default=0.0)
    if behind > _BEHIND_SECONDS and last is not None:
        since = f"{behind:.0f} s behind" if shown else "without any score"
        mend = "does it read the same database (ASSAY_DATABASE_URL), of all apps (ASSAY_APPS)?"
        yield Finding("exporter", "warning", f"{url}: {since}; the last score was at {_clock(last)}", mend)
    elif not away:
        yield Finding("exporter", "ok", url)


def _clock(seconds: float) -> str:
    from datetime import datetime

    return f"{datetime.fromtimestamp(seconds, now().tzinfo):%H:%M:%S} UTC"
