"""What `assay doctor` checks: everything that a deployment needs, each with what is wrong and the mend."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

from assay import tasks, wiring
from assay.doctor._finding import Finding
from assay.doctor._machine import machine
from assay.doctor._service import budgets, stored
from assay.errors import AssayError, ConfigError, QueueError, SchemaError, StoreError
from assay.pipeline import evaluate
from assay.records import Context, Failure, Record, Usage, now
from assay.sinks import open_sink
from assay.store import OutboxDepth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from assay.records import Evaluation
    from assay.rubrics import Rubric
    from assay.settings import Settings

_CLOCK_TOLERANCE_SECONDS = 2.0
#: Share of its memory from which Redis is nearly full.
_FULL = 0.9
_LONG_OWED_SECONDS = 900.0
_RAGAS_MEND = "start one: pip install 'assay[worker,ragas]', then assay worker (ASSAY_RAGAS=auto, or only)"


def examine(settings: Settings, *, ask_judge: bool = True) -> Iterator[Finding]:
    """Run every check; never raises for what it finds. `ask_judge` has one tiny record judged, for real."""
    yield from machine(settings)
    yield from _redis(settings)
    yield from _database(settings)
    rubrics: list[Rubric] = []
    try:
        rubrics = wiring.read_rubrics(settings)
    except ConfigError as error:
        yield Finding("rubrics", "wrong", str(error), "mend the file; `assay rubrics check` lists every mistake")
    else:
        yield Finding("rubrics", "ok", ", ".join(f"{r.name} {r.revision}" for r in rubrics))
        if settings.canary:
            yield from _canary(settings, rubrics)
    yield from _sinks(settings)
    yield from _stored(settings, rubrics)
    yield from budgets(settings, rubrics)
    yield from _ragas(settings, rubrics)
    yield from _judge(settings, rubrics, ask_judge=ask_judge)


def _ragas(settings: Settings, rubrics: list[Rubric]) -> Iterator[Finding]:
    """Whether anybody judges what ragas is to judge. Silent where that is nothing, or where another check speaks."""
    try:
        names = ", ".join(rubric.name for rubric in wiring.needing_ragas(settings, rubrics))
        waiting = wiring.open_queue(settings).depth().ragas_records
        if not names and not waiting:
            return
        serving = tasks.ping_workers(settings).ragas
    except (ConfigError, QueueError):
        return
    if serving:
        yield Finding("ragas", "ok", f"{', '.join(serving)}; {waiting} records wait")
    elif waiting:
        message = f"{waiting} records wait for a worker that has it, and none answers"
        yield Finding("ragas", "wrong", message, _RAGAS_MEND)
    else:
        yield Finding("ragas", "warning", f"no worker that has it answers; it is to judge {names}", _RAGAS_MEND)


def _stored(settings: Settings, rubrics: list[Rubric]) -> Iterator[Finding]:
    try:
        store = wiring.open_store(settings, apps=())
    except (ConfigError, StoreError):
        return  # the check of the database says so
    with store:
        yield from stored(store, settings, rubrics)


def _canary(settings: Settings, rubrics: list[Rubric]) -> Iterator[Finding]:
    # numpy comes with it.
    from assay.canary import canary_files, check_canary

    try:
        files = canary_files(wiring.canary_policy(settings))
        check_canary(files, rubrics)
    except ConfigError as error:
        yield Finding("canary", "wrong", str(error), "mend ASSAY_CANARY, or unset it")
    else:
        yield Finding("canary", "ok", f"a labelled set of {', '.join(files)}")


def _sinks(settings: Settings) -> Iterator[Finding]:
    """Whether each sink is configured, and takes what it is owed. Nothing is sent."""
    for name in settings.sinks:
        try:
            open_sink(name).close()
        except ConfigError as error:
            yield Finding("sinks", "wrong", str(error), "mend it: docs/reference/sinks.md has the settings")
    try:
        with wiring.open_store(settings, apps=()) as store:
            depths = store.outbox_depths()
    except (ConfigError, StoreError):
        return  # the check of the database says so
    for name in sorted({*depths, *settings.sinks}):
        depth = depths.get(name, OutboxDepth(waiting=0, rejected=0, oldest_at=None))
        if depth.waiting and name not in settings.sinks:
            mend = f"add it to ASSAY_SINKS, or wait {settings.sink_deadline_hours:g} h: then they are set aside"
            yield Finding("sinks", "warning", f"{name}: {depth.waiting} wait, but it is not in ASSAY_SINKS", mend)
        elif depth.oldest_at is not None and (now() - depth.oldest_at).total_seconds() > _LONG_OWED_SECONDS:
            message = f"{name}: {depth.waiting} wait, the first since {depth.oldest_at:%Y-%m-%d %H:%M} UTC"
            yield Finding("sinks", "warning", message, f"see why: assay outbox list --sink {name} --state waiting")
        elif name in settings.sinks:
            yield Finding("sinks", "ok", f"{name}: {depth.waiting} wait, {depth.writes.get('delivered', 0)} delivered")
        if depth.rejected:
            mend = f"see why: assay outbox list --sink {name} --state rejected; then: assay outbox retry --sink {name}"
            yield Finding("sinks", "warning", f"{name}: {depth.rejected} were set aside", mend)


def _redis(settings: Settings) -> Iterator[Finding]:
    try:
        queue = wiring.open_queue(settings)
        info = queue.info()
    except ConfigError as error:
        yield Finding("redis", "wrong", str(error), "export ASSAY_REDIS_URL=redis://HOST:6379/0")
        return
    except QueueError as error:
        yield Finding("redis", "wrong", str(error), "start Redis, or mend ASSAY_REDIS_URL")
        return
    yield Finding("redis", "ok", f"version {info.version}, {queue.depth().records} records pending")
    if tuple(int(part) for part in info.version.split(".")[:2] if part.isdigit()) < (6, 2):
        yield Finding("redis", "wrong", f"version {info.version} is too old", "use Redis 6.2 or later")
    if not info.appendonly:
        yield Finding(
            "redis",
            "wrong",
            "the append-only file is off: a restart loses the queue",
            "set `appendonly yes` in redis.conf",
        )
    if info.maxmemory_policy != "noeviction":
        yield Finding(
            "redis",
            "wrong",
            f"maxmemory-policy is {info.maxmemory_policy}: a full Redis throws records away",
            "set `maxmemory-policy noeviction` in redis.conf",
        )
    if info.maxmemory_bytes and info.used_memory_bytes > _FULL * info.maxmemory_bytes:
        share = 100 * info.used_memory_bytes / info.maxmemory_bytes
        mend = "raise maxmemory, or start more workers; clients shed what does not fit, and count it"
        yield Finding("redis", "warning", f"{share:.0f} % of maxmemory is used", mend)
    skew = abs(info.clock_offset_seconds)
    if skew > _CLOCK_TOLERANCE_SECONDS:
        yield Finding("clock", "warning", f"{skew:.0f} s apart from Redis's clock", "run NTP on both machines")
    else:
        yield Finding("clock", "ok", f"within {_CLOCK_TOLERANCE_SECONDS:.0f} s of Redis's clock")
    try:
        workers = tasks.ping_workers(settings)
    except ConfigError as error:
        yield Finding("broker", "wrong", str(error), "mend ASSAY_BROKER_URL")
        return
    except QueueError as error:
        yield Finding("broker", "wrong", str(error), "start it, or mend its URL")
        return
    if workers.ordinary:
        yield Finding("workers", "ok", ", ".join(workers.ordinary))
    else:
        depth = queue.depth()
        records = depth.records - depth.ragas_records
        message = f"none answers, and {records} records wait" if records else "none answers"
        yield Finding("workers", "wrong" if records else "warning", message, "start one: assay worker")


def _database(settings: Settings) -> Iterator[Finding]:
    try:
        store = wiring.open_store(settings, apps=())
    except SchemaError as error:
        yield Finding("database", "wrong", str(error), "run: assay db upgrade")
        return
    except (ConfigError, StoreError) as error:
        is_key = "ASSAY_PAYLOAD_KEYS" in str(error)
        mend = "mend ASSAY_PAYLOAD_KEYS" if is_key else "start the database, or mend ASSAY_DATABASE_URL"
        yield Finding("database", "wrong", str(error), mend)
        return
    yield Finding("database", "ok", f"{settings.store_url.partition(':')[0]}, up to date")
    try:
        store.check_keys()
    except StoreError as error:
        yield Finding("database", "wrong", str(error), "set ASSAY_PAYLOAD_KEYS to the keys it was written with")
    if settings.database_url is None:
        yield Finding(
            "database", "warning", "SQLite in the data directory serves one machine", "for more, set ASSAY_DATABASE_URL"
        )
    store.close()


def _judge(settings: Settings, rubrics: list[Rubric], *, ask_judge: bool) -> Iterator[Finding]:
    engine = settings.judge_engine
    if engine != "openai":
        yield Finding(
            "judge",
            "warning",
            f"{engine}: keyless, a baseline and no more",
            "set OPENAI_API_KEY, or ASSAY_JUDGE_BASE_URL and ASSAY_JUDGE_MODEL, for a real judge",
        )
    if not settings.serves_ragas:
        left = {rubric.name for rubric in wiring.needing_ragas(settings, rubrics)}
        rubrics = [rubric for rubric in rubrics if rubric.name not in left]
    if not ask_judge or not rubrics:
        return
    record = Record(
        record_id=f"doctor-{uuid.uuid4()}",
        timestamp=now(),
        app="doctor",
        input="Which day is the office closed?",
        output="The office is closed on Sunday.",
        contexts=(Context(text="The office is open from Monday to Saturday and closed on Sunday."),),
    )
    try:
        evaluations = asyncio.run(_ask(settings, rubrics, record))
    except AssayError as error:
        yield Finding("judge", "wrong", str(error), "mend the ASSAY_JUDGE settings")
        return
    failures = [e.outcome for e in evaluations if isinstance(e.outcome, Failure)]
    if failures:
        yield Finding("judge", "wrong", f"{failures[0].kind}: {failures[0].message}", _MENDS.get(failures[0].kind, ""))
        return
    usage = sum((e.outcome.usage for e in evaluations), Usage())
    cost = "" if usage.cost_usd is None else f", {usage.cost_usd:.6f} USD"
    tokens = "" if usage.prompt_tokens is None else f", {usage.prompt_tokens} + {usage.completion_tokens} tokens{cost}"
    yield Finding("judge", "ok", f"{evaluations[0].judge} scored a record{tokens}")
    if engine == "openai" and usage.prompt_tokens is not None and usage.cost_usd is None:
        yield Finding(
            "judge", "warning", f"no price for {settings.judge_model}", "add it to a file and set ASSAY_PRICES"
        )


_MENDS = {
    "unauthorized": "check ASSAY_JUDGE_API_KEY, ASSAY_JUDGE_BASE_URL (it ends in /v1, as a rule) and ASSAY_JUDGE_MODEL",
    "unavailable": "is the endpoint up? check ASSAY_JUDGE_BASE_URL",
    "timeout": "the endpoint is slow: raise ASSAY_JUDGE_TIMEOUT_SECONDS, or use a faster model",
    "rate_limited": "the endpoint refuses more calls: lower ASSAY_JUDGE_MAX_IN_FLIGHT, or raise its limits",
    "unparsable": "the model gives no verdict that can be read: try a stronger one",
    "off_scale": "the model leaves the scale: try a stronger one",
}


async def _ask(settings: Settings, rubrics: list[Rubric], record: Record) -> list[Evaluation]:
    judges = wiring.build_judges(settings, rubrics)
    try:
        return await evaluate(record, rubrics, judges)
    finally:
        await judges.aclose()
