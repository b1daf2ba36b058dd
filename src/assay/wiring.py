"""Builds the parts of the worker side from the settings: the one place that knows which part needs which setting.

A part is imported when it is built, so that a command starts as fast as what it uses lets it.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from assay.errors import AssayError, FileError, MissingExtraError, SettingsError
from assay.records import now

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from assay.alerts import AlertPolicy
    from assay.budgets import Budget, Budgets, Ledger, Purse
    from assay.canary import CanaryPolicy
    from assay.changes import ChangePolicy, Watched
    from assay.chores import Chore
    from assay.judges import Engine, JudgeObserver, JudgeSettings
    from assay.limits import Limits
    from assay.listener import Guard
    from assay.metrics import WorkerMetrics
    from assay.outbox import Outbox
    from assay.pipeline import Judges
    from assay.queue import Queue
    from assay.reuse import Reuse
    from assay.rubrics import JudgeSpec, Rubric
    from assay.settings import Settings
    from assay.sinks import Sink
    from assay.store import CanaryRun, Store, Subject
    from assay.worker import Worker


_log = logging.getLogger(__name__)


def open_store(
    settings: Settings, *, check: bool = True, sinks: Sequence[Sink] = (), apps: Sequence[str] | None = None
) -> Store:
    """The score store; what is committed to it is owed to `sinks`.

    It is confined to the apps of the settings, unless others are given: a worker has to see all (none given: `()`).

    Raises:
        StoreError: it cannot be reached, or (with `check`) is not migrated.
    """
    from assay.store import Store

    owed = {}
    if sinks:
        # It compiles what redacts; few commands owe anything.
        from assay.outbox import owed_outcomes

        owed = {sink.name: owed_outcomes(sink, settings.sink_outcomes) for sink in sinks}
    store = Store(
        settings.store_url,
        cohort_labels=settings.cohort_labels,
        max_series=settings.max_series,
        sinks=owed,
        apps=settings.apps if apps is None else apps,
        payload_keys=settings.store_keys,
    )
    if check:
        try:
            store.check()
        except AssayError:
            store.close()
            raise
    return store


def has_store(settings: Settings) -> bool:
    """Whether there is a score store: one is configured, or the default one was made."""
    return settings.database_url is not None or (settings.data_dir / "assay.db").exists()


def open_queue(settings: Settings) -> Queue:
    """The queue in Redis.

    Raises:
        SettingsError: no Redis is configured.
    """
    from assay.queue import Queue

    return Queue.from_url(settings.queue_url, settings.queue, max_batches=settings.max_batches)


def build_guards(settings: Settings) -> tuple[Guard, Guard]:
    """What is asked of those who read `/metrics`, and of those who send traces.

    Raises:
        SettingsError: the certificate cannot be used, or a token is set but empty.
    """
    from assay.listener import Certificate, Guard, split_tokens

    certificate = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        certificate = Certificate(settings.tls_certificate, settings.tls_key)
    guards = []
    for name, secret in (("METRICS", settings.metrics_token), ("COLLECT", settings.collect_token)):
        tokens = () if secret is None else split_tokens(secret.get_secret_value())
        if secret is not None and not tokens:
            raise SettingsError(f"ASSAY_{name}_TOKEN is blank: set a token, or unset it")
        guards.append(Guard(tokens, certificate, settings.peer_connections))
    return guards[0], guards[1]


def exposures(settings: Settings) -> list[str]:
    """One line for each address that other machines reach and no token, or no TLS, keeps them out of.

    Raises:
        SettingsError: see `build_guards`.
    """
    scrapes, traces = build_guards(settings)
    lines = [scrapes.exposure(settings.exporter_host, "ASSAY_METRICS_TOKEN")]
    if settings.worker_metrics_port is not None:
        lines.append(scrapes.exposure(settings.worker_metrics_host, "ASSAY_METRICS_TOKEN"))
    lines.append(traces.exposure(settings.collect_host, "ASSAY_COLLECT_TOKEN"))
    return [line for line in lines if line is not None]


def read_rubrics(settings: Settings) -> list[Rubric]:
    """The rubrics that the settings name, or the shipped four.

    Raises:
        RubricError: the first mistake in a file.
    """
    from assay.rubrics import load_rubrics

    return load_rubrics(settings.rubric_paths)


def build_judges(
    settings: Settings,
    rubrics: Sequence[Rubric],
    observer: JudgeObserver | None = None,
    purse: Purse | None = None,
    limits: Limits | None = None,
    reuse: Reuse | None = None,
    elsewhere: Collection[Engine] = (),
) -> Judges:
    """A judge for each rubric; they own purse, limits and reuse. Call it on the event loop that will use them.

    Of the engines `elsewhere` nothing is loaded: see `Judges.build`.
    """
    from assay.pipeline import Judges

    return Judges.build(
        rubrics,
        judge_settings(settings),
        observer,
        purse=purse,
        limits=limits,
        cheaper=None if purse is None else cheaper_judge(settings),
        fallback=None if limits is None else fallback_judge(settings),
        reuse=reuse,
        elsewhere=elsewhere,
    )


def needing_ragas(settings: Settings, rubrics: Sequence[Rubric]) -> list[Rubric]:
    """Those that only a worker with ragas judges: it is their judge, or stands in for it."""
    from assay.judges import resolve

    default = judge_settings(settings)
    found = []
    for rubric in rubrics:
        stand_ins = (rubric.cheaper_judge, rubric.fallback_judge)
        specs = (rubric.judge, *(spec for spec in stand_ins if spec is not None))
        if any(resolve(spec, default).engine == "ragas" for spec in specs):
            found.append(rubric)
    return found


def cheaper_judge(settings: Settings) -> JudgeSpec | None:
    """Who is asked while a budget is spent, where a rubric does not say; None: nobody."""
    from assay.rubrics import JudgeSpec

    if settings.budget_judge is None:
        return None
    return JudgeSpec(engine=settings.budget_judge, model=settings.budget_judge_model)


def fallback_judge(settings: Settings) -> JudgeSpec | None:
    """Who is asked while an endpoint is down, where a rubric does not say; None: nobody."""
    from assay.rubrics import JudgeSpec

    if settings.fallback_judge is None:
        return None
    return JudgeSpec(engine=settings.fallback_judge, model=settings.fallback_judge_model)


def read_budgets(settings: Settings, rubrics: Sequence[Rubric]) -> Budgets | None:
    """The budgets that the settings name; None when there are none.

    Raises:
        FileError: the first mistake in ASSAY_BUDGETS, a rubric or judge that there is not among them.
        SettingsError: a budget in dollars covers a judge whose price is not known; or the price table is broken.
    """
    from assay.budgets import TOTAL, Budget, Budgets, load_budgets
    from assay.judges._prices import load_prices

    judges = _judges_by_rubric(settings, rubrics)
    budgets: tuple[Budget, ...] = ()
    if settings.budgets is not None:
        names = {name for found in judges.values() for name in found}
        budgets = load_budgets(settings.budgets, rubrics=judges, judges=names)
    if settings.budget_usd_per_day is not None:
        if any(budget.name == TOTAL for budget in budgets):
            raise FileError(
                f"{TOTAL} is what ASSAY_BUDGET_USD_PER_DAY is called: rename it, or unset the variable",
                path=settings.budgets or "",
            )
        budgets = (Budget(name=TOTAL, per="day", usd=settings.budget_usd_per_day), *budgets)
    if not budgets:
        return None
    found = Budgets(budgets=budgets, thin_from=settings.budget_thin_from, thin_least=settings.budget_thin_least)
    prices = load_prices(settings.prices)
    for rubric, asked in judges.items():
        for judge, models in asked.items():
            budget = found.needs_price(rubric=rubric, judge=judge)
            unknown = next((model for model in models if prices.of(model) is None), None)
            if budget is not None and unknown is not None:
                raise SettingsError(
                    f"budget {budget.name}: it is in USD, and the price of {unknown} is not known: list it in a price "
                    "table (0 if it costs nothing) and point ASSAY_PRICES at it"
                )
    return found


def _judges_by_rubric(settings: Settings, rubrics: Sequence[Rubric]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Rubric -> the judges that may be asked under it, by name -> the models that they pay for."""
    from assay.judges import describe_judge, models_of, resolve

    default = judge_settings(settings)
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for rubric in rubrics:
        stand_ins = (
            rubric.cheaper_judge or cheaper_judge(settings),
            rubric.fallback_judge or fallback_judge(settings),
        )
        for spec in (rubric.judge, *(spec for spec in stand_ins if spec is not None)):
            judge = describe_judge(spec, default)[0]
            known = found.setdefault(rubric.name, {}).get(judge, ())
            # Two judges of one name may differ in their embeddings.
            found[rubric.name][judge] = (*known, *models_of(resolve(spec, default)))
    return found


def open_ledger(settings: Settings, budgets: Budgets) -> Ledger:
    """What is spent of the budgets.

    Raises:
        SettingsError: no Redis is configured.
    """
    from assay.budgets import Ledger

    return Ledger.from_url(budgets, settings.queue_url, settings.queue)


def open_limits(settings: Settings) -> Limits:
    """The rate limits and circuits of endpoints, as all workers of the queue share them; connects at the first call.

    Raises:
        SettingsError: no Redis is configured.
    """
    from assay.circuits import CircuitPolicy
    from assay.limits import Limits

    return Limits(
        url=settings.queue_url,
        queue=settings.queue,
        requests_per_minute=settings.judge_requests_per_minute,
        tokens_per_minute=settings.judge_tokens_per_minute,
        wait_seconds=settings.judge_wait_seconds,
        circuit=CircuitPolicy(share=settings.judge_circuit_share, probe_seconds=settings.judge_probe_seconds),
    )


def judge_settings(settings: Settings) -> JudgeSettings:
    """The judge part of the settings, in the form that `assay.judges` takes."""
    from assay.judges import JudgeSettings

    return JudgeSettings(
        engine=settings.judge_engine,
        base_url=settings.judge_base_url,
        api_key=settings.api_key,
        model=settings.judge_model,
        timeout_seconds=settings.judge_timeout_seconds,
        max_in_flight=settings.judge_max_in_flight,
        temperature=settings.judge_temperature,
        max_tokens=settings.judge_max_tokens,
        logprobs=settings.judge_logprobs,
        prices_path=settings.prices,
    )


def open_sinks(settings: Settings) -> list[Sink]:
    """The sinks that the settings name; none of them has been called yet.

    Raises:
        SettingsError: there is no such sink, or a setting of it is missing or wrong.
    """
    from assay.sinks import open_sink

    return [open_sink(name) for name in settings.sinks]


def build_outbox(settings: Settings, store: Store, sinks: Sequence[Sink]) -> Outbox:
    """What delivers to these sinks; `start` it before use.

    Raises:
        SettingsError: a setting of what goes out is wrong.
    """
    from assay.outbox import Outbox, Selection, SinkPolicy

    return Outbox(
        store,
        sinks,
        select=Selection(store, settings.sink_fields, settings.sink_redact),
        policy=SinkPolicy(
            lease_seconds=settings.sink_lease_seconds,
            retry_max_seconds=settings.sink_retry_max_seconds,
            deadline_seconds=settings.sink_deadline_hours * 3600,
            missing_seconds=settings.sink_missing_hours * 3600,
            threads=settings.sink_threads,
        ),
    )


def build_worker(
    settings: Settings,
    *,
    queue: Queue,
    store: Store,
    metrics: WorkerMetrics | None,
    outbox: Outbox | None = None,
) -> Worker:
    """A worker over these parts; `start` it before use.

    Raises:
        ConfigError: rubrics or the judge are not configured rightly.
    """
    from assay.budgets import RedisPurse
    from assay.deliveries import DeliveryPolicy
    from assay.gate import Gate
    from assay.queue import MAX_BATCH_RECORDS
    from assay.reuse import Reuse
    from assay.worker import Worker

    rubrics = read_rubrics(settings)
    gate = Gate(store, rubrics, judge_settings(settings), bridge_share=settings.bridge_share)
    budgets = read_budgets(settings, rubrics)
    purse = None
    if budgets is not None:
        # What others hold is settled, or has lapsed, by the time that a request and its lease may take.
        waits = settings.judge_timeout_seconds + 10.0
        purse = RedisPurse(budgets, settings.queue_url, settings.queue, wait_seconds=waits)
    reuse = None
    # They quote texts, and go when texts go.
    reuse_seconds = min(settings.reuse_seconds, settings.keep_payload_days * 86_400)
    if reuse_seconds:
        reuse = Reuse(
            settings.queue_url,
            settings.queue,
            seconds=reuse_seconds,
            on_reused=(lambda _: None) if metrics is None else metrics.reused,
        )
    if settings.ragas == "only" and find_spec("ragas") is None:
        raise MissingExtraError("ragas", "ragas")
    elsewhere: tuple[Engine, ...] = () if settings.serves_ragas else ("ragas",)
    left = needing_ragas(settings, rubrics)
    if left and not settings.serves_ragas:
        names = ", ".join(rubric.name for rubric in left)
        _log.warning("left to workers that have the extra ragas", extra={"rubrics": names, "setting": settings.ragas})
    return Worker(
        queue=queue,
        store=store,
        rubrics=rubrics,
        judges=lambda: build_judges(settings, gate.rubrics, metrics, purse, open_limits(settings), reuse, elsewhere),
        budgets=None if budgets is None else open_ledger(settings, budgets),
        gate=gate,
        metrics=metrics,
        outbox=outbox,
        policy=DeliveryPolicy(
            lease_seconds=settings.lease_seconds,
            sweep_seconds=settings.sweep_seconds,
            max_deliveries=settings.max_deliveries,
            max_attempts=settings.max_attempts,
            retry_base_seconds=settings.retry_base_seconds,
            retry_max_seconds=settings.retry_max_seconds,
            shutdown_seconds=settings.shutdown_seconds,
            max_record_bytes=settings.max_record_bytes,
            patience_seconds=settings.judge_patience_seconds,
            # As many as its threads could have.
            in_hand_records=settings.concurrency * MAX_BATCH_RECORDS,
        ),
    )


def build_chores(settings: Settings, store: Store, *, outbox: Outbox | None = None) -> list[Chore]:
    """What the workers do now and then."""
    from assay.chores import Chore

    chores = [
        Chore("purge", 3600.0, lambda: purge(settings, store)),
        # Also what is owed to a sink that is configured no more: nobody else would look at it.
        Chore("expire_outbox", 60.0, lambda: expire_outbox(settings, store)),
        Chore("watch", settings.change_seconds, lambda: watch_changes(settings, store)),
    ]
    if settings.canary:
        for ragas in (False, True) if settings.serves_ragas else (False,):
            name = "canary_ragas" if ragas else "canary"
            run = partial(run_canaries, settings, store, ragas=ragas)
            chores.append(Chore(name, settings.change_seconds, run, ragas=ragas))
    if outbox is not None and settings.sinks:
        # It returns at once: the sinks have threads of their own.
        chores.append(Chore("deliver", 2.0, outbox.ring))
    if settings.report_webhook is not None:
        # Mostly one small read that says that it was sent.
        chores.append(Chore("report", 15.0, lambda: send_report(settings, store)))
    return chores


def send_report(settings: Settings, store: Store) -> bool:
    """Send the weekly report where it is due and was not sent yet; True when this call has sent it.

    Raises:
        StoreError: the store is away. ReportError: the webhook did not take it.
    """
    # numpy may come with it.
    from assay.report_delivery import send_due

    if settings.report_webhook is None:
        return False
    return send_due(
        store,
        settings.report_webhook.get_secret_value(),
        weekday=settings.report_weekday,
        hour=settings.report_hour,
        weeks=settings.report_weeks,
        fields=settings.cohort_labels,
    )


def change_policy(settings: Settings) -> ChangePolicy:
    """The part of the settings that detectors decide by."""
    from assay.changes import ChangePolicy

    return ChangePolicy(
        reference_records=settings.change_reference_records,
        against=settings.change_against,
        false_alarm_days=settings.change_false_alarm_days,
        streams=settings.change_streams,
        min_records=settings.change_min_records,
        recovery_records=settings.change_recovery_records,
        settle_seconds=settings.change_settle_seconds,
        wait_seconds=settings.change_wait_seconds,
    )


def alert_policy(settings: Settings) -> AlertPolicy:
    """The part of the settings that alerting rules are made of."""
    from assay.alerts import AlertPolicy

    return AlertPolicy(
        runbook_url=settings.alert_runbook_url,
        min_records=settings.alert_min_records,
        budget_days=settings.alert_budget_days,
        calibration_days=settings.alert_calibration_days,
        pending_seconds=settings.alert_pending_seconds,
        canary_hours=settings.canary_hours,
    )


def canary_policy(settings: Settings) -> CanaryPolicy:
    """The part of the settings that canaries run by."""
    from assay.canary import CanaryPolicy

    return CanaryPolicy(
        files=settings.canary,
        repeats=settings.canary_repeats,
        hours=settings.canary_hours,
        budget_usd=settings.canary_budget_usd,
        max_seconds=settings.canary_seconds,
    )


def watch_changes(settings: Settings, store: Store) -> Watched:
    """Move the detectors over the minutes that have closed.

    Raises:
        StoreError, QueueError: the store or Redis is away. RubricError: a mistake in a rubric file.
    """
    # numpy comes with it.
    from assay.changes import watch

    queue = open_queue(settings)
    try:
        oldest = queue.depth().oldest_enqueued_at
    finally:
        queue.close()
    return watch(store, read_rubrics(settings), change_policy(settings), oldest_pending=oldest)


def run_canaries(settings: Settings, store: Store, *, ragas: bool = False) -> list[CanaryRun]:
    """Run the canaries that are due, and say anew whose fault a change is.

    Those of rubrics that ragas judges are run apart, for they need a worker that has it.

    Raises:
        StoreError: the store is away. ConfigError: rubrics, judge or ASSAY_CANARY are not configured rightly.
    """
    from assay.canary import run_due
    from assay.judges import resolve
    from assay.verdicts import settle_verdicts

    judge = judge_settings(settings)

    def is_ours(rubric: Rubric) -> bool:
        return (resolve(rubric.judge, judge).engine == "ragas") == ragas

    runs = run_due(store, read_rubrics(settings), judge, canary_policy(settings), only=is_ours)
    if runs:
        settle_verdicts(store)
    return runs


def expire_outbox(settings: Settings, store: Store) -> int:
    """Set aside what has been owed to a sink for longer than the settings allow; returns how many."""
    from assay.outbox import gave_up

    deadline = timedelta(hours=settings.sink_deadline_hours)
    return store.expire_outbox(now() - deadline, gave_up(deadline.total_seconds()))


def forget_verdicts(settings: Settings, subject: Subject, *, dry_run: bool) -> int:
    """Delete what Redis keeps for reuse of the subject's records; returns how many, with `dry_run` would.

    Raises:
        QueueError: Redis is away.
    """
    from assay.reuse import forget

    def is_theirs(kept: bytes) -> bool:
        return bool(subject.records_in(kept, settings.apps))

    return forget(settings.queue_url, settings.queue, is_theirs, dry_run=dry_run)


def purge(settings: Settings, store: Store) -> dict[str, int]:
    """Delete what is older than the settings keep; returns rows deleted per table."""
    return store.purge(
        payload_days=settings.keep_payload_days,
        score_days=settings.keep_score_days,
        rollup_days=settings.keep_rollup_days,
        dead_days=settings.keep_dead_days,
    )
