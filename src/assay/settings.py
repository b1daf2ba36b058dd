"""Every setting of the worker side, from environment variables with the prefix `ASSAY_` (or a `.env` file).

The app-side client reads its few variables itself, because it may not import pydantic.
"""

from __future__ import annotations

import contextlib
import os
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from assay import connections
from assay.errors import SettingsError
from assay.spelling import closest

_List = Annotated[tuple[str, ...], NoDecode]


def _names(text: str) -> tuple[str, ...]:
    """The parts of a list; raises ValueError where there is none, as to confine to nothing would be to open to all."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise ValueError("is blank: name one or more, separated by commas, or unset it")
    return names


class Settings(BaseSettings):
    """What `assay` reads from the environment. Every field is `ASSAY_` plus its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="ASSAY_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, allow_inf_nan=False
    )

    # -- where things are
    redis_url: SecretStr | None = Field(
        None,
        description="Redis that the apps enqueue to, such as `redis://localhost:6379/0`. "
        "It must persist and never evict. Also `rediss://` (TLS), `unix://`, and `redis+sentinel://HOST,HOST/MASTER/0`.",
    )
    broker_url: SecretStr | None = Field(
        None,
        description="RabbitMQ to carry the doorbells: `amqp://user:password@host:5672/vhost`, or `amqps://` (TLS). "
        "Default: Redis carries them. Records are in Redis in either case.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="Where scores are kept: `postgresql+psycopg://user@host/name`, or `sqlite:///path`. "
        "Default: `assay.db` in the data directory.",
    )
    payload_keys: SecretStr | None = Field(
        None,
        description="Keys that texts in the database are encrypted with, separated by commas or newlines: the first "
        "encrypts, all decrypt. Make one with `assay db new-key`. Default: texts are stored in plain.",
    )
    data_dir: Path = Field(
        Path(".assay"), description="Directory of the default SQLite database and of `assay dev`'s Redis."
    )
    queue: str = Field("assay", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Name of the queue in Redis.")
    rubrics: _List = Field(
        (),
        description="Rubric files or directories, separated by commas; `shipped` stands for the four shipped rubrics, "
        "which are the default.",
    )

    apps: _List = Field(
        (),
        description="Apps that commands and the exporter show and act on, separated by commas. Default: all. A filter, "
        "not a lock: see docs/howto/tenants.md.",
    )

    # -- the judge
    judge: Literal["openai", "lexical", "rules"] | None = Field(
        None,
        description="Default judge of rubrics that name none. "
        "Default: `openai` when a key or a base URL is set, else `lexical`.",
    )
    judge_base_url: str | None = Field(
        None, description="OpenAI-compatible endpoint, such as `http://localhost:11434/v1`. Default: the OpenAI API."
    )
    judge_model: str = Field("gpt-5-mini", min_length=1, description="Model to ask.")
    judge_api_key: SecretStr | None = Field(None, description="Key of the endpoint. Default: `OPENAI_API_KEY`.")
    judge_timeout_seconds: float = Field(
        60.0, gt=0, le=3600, description="Bound of one judge call, from first byte to last."
    )
    judge_requests_per_minute: float | None = Field(
        None,
        gt=0,
        description="Most requests a minute to one endpoint and model, by all workers together. Default: what the "
        "endpoint's headers say, or its refusals teach.",
    )
    judge_tokens_per_minute: float | None = Field(
        None, gt=0, description="The same in tokens, prompt and completion together."
    )
    judge_wait_seconds: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="Longest wait for a turn under a rate limit; a record that would wait longer goes back to the "
        "queue, and uses up no try.",
    )
    judge_circuit_share: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Share of the calls of the last 30 s, where 10 or more ended, that must have got no answer for an "
        "endpoint to count as down. No worker then asks it, and its records wait or go to the fallback judge.",
    )
    judge_probe_seconds: float = Field(
        5.0, gt=0, le=600, description="How often one call is made all the same, to see whether it is back."
    )
    fallback_judge: Literal["openai", "lexical", "rules"] | None = Field(
        None,
        description="Judge that is asked while an endpoint is down, of rubrics that name no `fallback_judge`. "
        "Default: nobody is asked, and records wait.",
    )
    fallback_judge_model: str | None = Field(None, description="Its model, for `openai`, at the same base URL.")
    judge_patience_seconds: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="How long calls that hang may hold up the thread of their batch; a tenth of it where most of the "
        "batch is judged. They then go on by themselves. Raise it for a judge whose every answer takes as long.",
    )
    judge_max_in_flight: int = Field(
        64,
        ge=1,
        le=4096,
        description="Verdicts that one judge is asked for at once in one worker process; calls that hang do not count, "
        "up to eight times as many.",
    )
    judge_temperature: float | None = Field(0.0, ge=0, le=2, description="Sampling temperature of the judge.")
    judge_max_tokens: int = Field(
        4096, ge=64, description="Bound of one judge reply in tokens, a reasoning model's thoughts included."
    )
    judge_logprobs: bool = Field(
        True, description="Ask for token probabilities; where the endpoint gives them a score is their expected value."
    )
    prices: Path | None = Field(None, description="YAML file with prices per model. Default: the shipped table.")

    bridge_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of records scored with both versions of a rubric: while a changed one waits for its "
        "calibration (its field `gate`), and for a day after it took over.",
    )

    # -- budgets
    budget_usd_per_day: float | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Most that all judging by workers may cost in a day (UTC), in USD. Default: no bound.",
    )
    budgets: Path | None = Field(
        None,
        description="YAML file with budgets: in USD or tokens; for each hour, day or month; of all, or of an app, a "
        "rubric or a judge.",
    )
    budget_thin_from: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Share of a budget from which on fewer records are judged, the fewer the less is left; what is "
        "judged counts for what is not. 1: all are judged until it is spent.",
    )
    budget_thin_least: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Least share of records that are judged then; it bounds their weights (times those of a "
        "rubric's cascade).",
    )
    budget_judge: Literal["openai", "lexical", "rules"] | None = Field(
        None,
        description="Judge that is asked instead while a budget is spent, of rubrics that name no `cheaper_judge`. "
        "Default: nobody is asked.",
    )
    budget_judge_model: str | None = Field(None, description="Its model, for `openai`: one that costs less.")
    reuse_seconds: float = Field(
        0.0,
        ge=0,
        le=2_592_000,
        description="How long a verdict is kept in Redis, to be reused for records of the same app with the same texts "
        "under the same rubric and judge (at temperature 0); never longer than texts. 0: each record is asked about.",
    )

    # -- delivery
    ragas: Literal["auto", "only", "never"] = Field(
        "auto",
        description="Which rubrics a worker judges, by their engine: `auto` all of them where the extra `ragas` is "
        "installed, else all but those of ragas; `never` all but those of ragas; `only` nothing but what the other "
        "workers leave to it.",
    )
    concurrency: int = Field(
        16, ge=1, le=256, description="Batches (of at most 25 records) that one worker process works on at once."
    )
    max_batches: int = Field(
        20_000,
        ge=1,
        description="Bound of the queue, in batches; what is over it is shed by the client, and counted. Clients read "
        "it where they run.",
    )
    lease_seconds: float = Field(
        30.0,
        ge=2,
        description="How long a worker may be silent before its batches are given to another. Renewed while it lives.",
    )
    sweep_seconds: float = Field(
        1.0, gt=0, le=60, description="How often a worker looks for batches that are due again."
    )
    max_deliveries: int = Field(
        4,
        ge=2,
        description="Times that a record may be in hand while its worker dies, before it is set aside as `crashed`.",
    )
    max_attempts: int = Field(
        6, ge=1, description="Tries of one record against transient judge failures, the first included."
    )
    retry_base_seconds: float = Field(
        2.0, gt=0, description="Delay before the second try; doubles with each further one."
    )
    retry_max_seconds: float = Field(
        300.0, gt=0, description="Longest delay between two tries, and of a Retry-After that is honoured."
    )
    shutdown_seconds: float = Field(
        25.0, ge=0, description="After SIGTERM: how long to finish what is in flight before it is handed back."
    )
    max_record_bytes: int = Field(
        1_000_000,
        ge=1_000,
        description="A larger record is set aside as `too_large`. Clients read it where they run, and drop it.",
    )

    # -- time series
    windows: _List = Field(("5m", "1h", "24h"), description="Rolling windows of the gauges, separated by commas.")
    cohort_labels: _List = Field(
        (),
        description="Record fields (`route`, `model`, `prompt_version`) or cohort keys that become metric labels, "
        "separated by commas.",
    )
    reference_week: date | None = Field(
        None,
        description="First day (UTC), such as `2026-03-02`, of the week that today's input is compared with. "
        "Default: the last seven days before today and yesterday.",
    )
    max_series: int = Field(
        200,
        ge=2,
        description="Bound of distinct label sets (app and cohort labels); what is over it is counted as `other`.",
    )
    exporter_host: str = Field("127.0.0.1", description="Address that `assay exporter` listens on.")
    exporter_port: int = Field(
        9464, ge=0, le=65535, description="Port that `assay exporter` listens on; 0 takes a free one."
    )
    exporter_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Where `assay doctor` finds the exporter. Default: its host and port on this machine.",
    )
    worker_metrics_host: str = Field("127.0.0.1", description="Address of a worker's own `/metrics`.")
    worker_metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port of a worker's own `/metrics`; unset: none, 0: a free one."
    )

    # -- every address that is listened on
    metrics_token: SecretStr | None = Field(
        None,
        description="Bearer token that whoever reads `/metrics` must show, of the exporter, of workers and of "
        "`assay collect`; two, separated by a comma, while one replaces the other. Default: none is asked for.",
    )
    tls_certificate: Path | None = Field(
        None,
        description="Certificate chain (PEM): the exporter, workers' `/metrics` and `assay collect` then speak TLS, "
        "1.2 or later. Read again when it changes.",
    )
    tls_key: Path | None = Field(None, description="Its key (PEM), not locked by a password.")
    peer_connections: int = Field(
        100, ge=1, le=1_000, description="Most connections of one address to one of these at once."
    )

    # -- changes, and the canary that tells the judge from the product
    change_against: Literal["objective", "reference"] = Field(
        "objective",
        description="What a pass ratio must keep: the rubric's objective, or the lower 99 % bound of what was usual "
        "where that was below it; `reference`: always that bound.",
    )
    change_reference_records: int = Field(
        500, ge=50, description="Effective records from which each detector learns what is usual, before it watches."
    )
    change_false_alarm_days: float = Field(
        30.0, gt=0, description="Days for each false alarm that you can live with, of all detectors together."
    )
    change_streams: int | None = Field(
        None, ge=1, description="Detectors that share those false alarms. Default: as many as there are."
    )
    change_min_records: int = Field(
        30,
        ge=1,
        description="Least effective records since a change began before it is an alarm, whatever the evidence.",
    )
    change_recovery_records: int = Field(
        200, ge=1, description="Least effective records since the mend began before an alarm is over."
    )
    change_seconds: float = Field(30.0, ge=1, description="How often the detectors look for minutes that have closed.")
    change_settle_seconds: float = Field(
        120.0, ge=0, description="How long a minute stays open for late verdicts before the detectors read it."
    )
    change_wait_seconds: float = Field(
        900.0, ge=0, description="How much longer, at most, while records of it wait in the queue."
    )
    canary: _List = Field(
        (),
        description="Label files whose records are judged again and again, separated by commas: one for each rubric, "
        "named in its first line or as `RUBRIC=FILE`. Without one no verdict can tell the judge from the product.",
    )
    canary_repeats: int = Field(3, ge=1, le=20, description="Times that each record of a canary is judged in a run.")
    canary_hours: float = Field(24.0, gt=0, description="Hours between two runs; an alarm starts one at once.")
    canary_budget_usd: float | None = Field(
        None, ge=0, description="Most that all canaries may spend in 24 hours, in USD. Default: no bound."
    )
    canary_seconds: float = Field(900.0, gt=0, le=3600, description="Most time that one run may take.")

    # -- retention
    keep_payload_days: float = Field(14, ge=0, description="Days to keep texts: of records, and of verdicts on them.")
    keep_score_days: float = Field(
        90, ge=0, description="Days to keep records and scores: at least one, and as long as dead letters."
    )
    keep_rollup_days: float = Field(
        400, ge=2, description="Days to keep the hourly sums behind the gauges (minute sums: two days)."
    )
    keep_dead_days: float = Field(30, ge=0, description="Days to keep dead letters.")

    # -- alerting rules, see `assay alerts`
    alert_runbook_url: str = Field(
        "docs/runbooks",
        min_length=1,
        description="Where the runbooks are: the URL of your copy of docs/runbooks, which every alert links into.",
    )
    alert_min_records: int = Field(
        30, ge=1, description="Least effective records in a window before its pass ratio may alert."
    )
    alert_budget_days: float = Field(
        30.0, ge=15, description="Period of the error budget that an objective leaves, for the burn rates."
    )
    alert_calibration_days: float = Field(
        90.0, gt=0, description="Age of the newest label above which a calibration is stale."
    )
    alert_pending_seconds: float = Field(
        900.0, ge=60, description="Age of the oldest waiting record above which the evaluator is blind."
    )

    # -- collect: the receiver of traces
    collect_host: str = Field("127.0.0.1", description="Address that `assay collect` listens on.")
    collect_port: int = Field(
        4318, ge=0, le=65535, description="Port that `assay collect` listens on; 0 takes a free one."
    )
    collect_token: SecretStr | None = Field(
        None,
        description="Bearer token that every sender of traces must show; two, separated by a comma, while one replaces "
        "the other. Default: none is asked for.",
    )
    collect_max_body_bytes: int = Field(
        16_000_000, ge=1_000, description="Most bytes of one request of traces, before and after decompression."
    )
    collect_max_bytes: int = Field(
        256_000_000,
        ge=1_000_000,
        description="About the most bytes of spans that wait for the rest of their trace; senders are then asked to "
        "come again.",
    )
    collect_wait_seconds: float = Field(
        30.0, ge=0, le=3600, description="How long a trace is waited for after its latest span."
    )
    collect_settle_seconds: float = Field(
        6.0, ge=0, le=3600, description="The same, once its root span has come: longer than exporters' batches take."
    )

    # -- sinks: where evaluations go besides the time series
    sinks: _List = Field(
        (),
        description="Sinks that every evaluation is written to, separated by commas, such as `phoenix,webhook`; "
        "the settings of each are in the reference of sinks.",
    )
    sink_outcomes: _List = Field(
        ("scored", "failed"),
        description="Which evaluations go out: `scored`, `failed` (where the sink can hold one), `not_applicable`.",
    )
    sink_fields: _List = Field(
        (
            "raw",
            "label",
            "explanation",
            "message",
            "judge_model",
            "defect",
            "injection",
            "calibration",
            "probability",
            "cohort",
            "session",
        ),
        description="What goes out besides ids, rubric, judge, value and verdict. `injection` are the signs of a "
        "prompt injection in the record. `input` and `output` are the texts of the interaction, and go out only when "
        "they are named here.",
    )
    sink_redact: _List = Field(
        ("secret", "email", "ip", "iban", "card", "national_id", "phone"),
        description="What is taken out of every text that goes out; `none` takes nothing out.",
    )
    sink_deadline_hours: float = Field(
        24.0, gt=0, description="How long a sink is tried before what it does not take is set aside as given up."
    )
    sink_missing_hours: float = Field(
        1.0, gt=0, description="How long a trace or span that a sink does not know (yet) is waited for."
    )
    sink_retry_max_seconds: float = Field(300.0, gt=0, description="Longest delay between two tries of one evaluation.")
    sink_lease_seconds: float = Field(
        60.0, ge=2, description="How long a worker may be silent before what it delivers is given to another."
    )
    sink_threads: int = Field(
        2, ge=1, le=32, description="Batches of one sink that one worker process delivers at once."
    )

    # -- the weekly report
    report_webhook: SecretStr | None = Field(
        None,
        description="Address of an incoming webhook (Slack's, or one that takes the same) that workers send the weekly "
        "report to. It is a secret. Unset: none is sent.",
    )
    report_weekday: Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"] = Field(
        "monday", description="Day on which it is sent."
    )
    report_hour: int = Field(7, ge=0, le=23, description="Hour (UTC) at which it is sent, and its last week ends.")
    report_weeks: int = Field(8, ge=2, le=53, description="Weeks of trend in it.")

    # -- logs
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` writes JSON unless the output is a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is written.")

    @field_validator("rubrics", "apps", "windows", "cohort_labels", "canary", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _names(value) if isinstance(value, str) else value

    @field_validator("sinks", "sink_outcomes", "sink_fields", "sink_redact", mode="before")
    @classmethod
    def _split_sinks(cls, value: object) -> object:
        return tuple(dict.fromkeys(_names(value))) if isinstance(value, str) else value

    @field_validator("sink_outcomes")
    @classmethod
    def _known_outcomes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(value) - {"scored", "failed", "not_applicable"}:
            raise ValueError(f"{min(unknown)!r} is not one of scored, failed, not_applicable")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        # An address out of a file often ends in a newline.
        value = None if value is None else SecretStr(value.get_secret_value().strip())
        if value is not None:
            try:
                connections.parse(value.get_secret_value())
            except SettingsError as error:
                raise ValueError(
                    str(error).removeprefix("Redis URL").removeprefix(" (ASSAY_REDIS_URL)").removeprefix(": ")
                ) from None
        return value

    @field_validator("broker_url")
    @classmethod
    def _broker_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        # An address out of a file often ends in a newline.
        value = None if value is None else SecretStr(value.get_secret_value().strip())
        if value is not None and not value.get_secret_value().startswith(("amqp://", "amqps://")):
            raise ValueError("must start with amqp:// or amqps://; a Redis is named by ASSAY_REDIS_URL alone")
        return value

    @field_validator("report_webhook")
    @classmethod
    def _webhook_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().strip().startswith(("http://", "https://")):
            raise ValueError("must start with https:// (or http://)")
        # An address out of a file often ends in a newline.
        return None if value is None else SecretStr(value.get_secret_value().strip())

    @field_validator("judge_base_url")
    @classmethod
    def _http_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://, such as http://localhost:11434/v1")
        return value or None

    @model_validator(mode="after")
    def _cheaper_judge_is_another(self) -> Settings:
        if self.budget_judge_model is not None and self.budget_judge != "openai":
            raise ValueError("ASSAY_BUDGET_JUDGE_MODEL needs ASSAY_BUDGET_JUDGE=openai: set both, or neither")
        if self.budget_judge == "openai" and self.budget_judge_model is None:
            raise ValueError("ASSAY_BUDGET_JUDGE=openai needs ASSAY_BUDGET_JUDGE_MODEL: name a model that costs less")
        return self

    @model_validator(mode="after")
    def _fallback_judge_is_another(self) -> Settings:
        if self.fallback_judge_model is not None and self.fallback_judge != "openai":
            raise ValueError("ASSAY_FALLBACK_JUDGE_MODEL needs ASSAY_FALLBACK_JUDGE=openai: set both, or neither")
        if self.fallback_judge == "openai" and self.fallback_judge_model is None:
            raise ValueError("ASSAY_FALLBACK_JUDGE=openai needs ASSAY_FALLBACK_JUDGE_MODEL: name another model")
        return self

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("ASSAY_TLS_CERTIFICATE and ASSAY_TLS_KEY belong together: set both, or neither")
        return self

    @model_validator(mode="after")
    def _scores_outlive_dead_letters(self) -> Settings:
        if self.keep_score_days < max(self.keep_dead_days, 1):
            raise ValueError(
                "ASSAY_KEEP_SCORE_DAYS must be at least 1 and not below ASSAY_KEEP_DEAD_DAYS: "
                "a record that is replayed after its scores are deleted would count again"
            )
        return self

    @property
    def api_key(self) -> str | None:
        """Key of the judge endpoint: `ASSAY_JUDGE_API_KEY`, else `OPENAI_API_KEY`, else None."""
        given = self.judge_api_key.get_secret_value() if self.judge_api_key is not None else None
        # A key out of a file often ends in a newline, which no header may hold.
        return (given or os.environ.get("OPENAI_API_KEY") or "").strip() or None

    @property
    def judge_engine(self) -> Literal["openai", "lexical", "rules"]:
        """The default judge, by what is configured."""
        if self.judge is not None:
            return self.judge
        return "openai" if self.api_key or self.judge_base_url else "lexical"

    @property
    def serves_ragas(self) -> bool:
        """Whether a worker on these settings judges rubrics of ragas. Does not import it."""
        return self.ragas == "only" or (self.ragas == "auto" and find_spec("ragas") is not None)

    @property
    def store_url(self) -> str:
        """Database URL, password included: keep it out of logs."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{(self.data_dir / 'assay.db').absolute()}"

    @property
    def store_keys(self) -> tuple[str, ...]:
        """The keys of `ASSAY_PAYLOAD_KEYS`: keep them out of logs.

        Raises:
            SettingsError: it is set but holds no key: nothing may be stored in plain by mistake.
        """
        if self.payload_keys is None:
            return ()
        keys = tuple(self.payload_keys.get_secret_value().replace(",", " ").split())
        if not keys:
            raise SettingsError("ASSAY_PAYLOAD_KEYS is blank: set a key, or unset it")
        return keys

    @property
    def queue_url(self) -> str:
        """Redis URL, password included: keep it out of logs.

        Raises:
            SettingsError: `ASSAY_REDIS_URL` is not set.
        """
        if self.redis_url is None:
            raise SettingsError(
                "ASSAY_REDIS_URL is not set: point it at the Redis that your apps enqueue to, "
                "or run `assay dev`, which brings a Redis of its own"
            )
        return self.redis_url.get_secret_value()

    @property
    def rubric_paths(self) -> list[Path] | None:
        """Rubric files or directories, or None for the shipped ones."""
        return [Path(path).expanduser() for path in self.rubrics] or None


def load_settings(**overrides: object) -> Settings:
    """Read the settings; `overrides` (by field name, None ignored) win over the environment.

    Raises:
        SettingsError: one line that names the first wrong variable, its value's fault and the mend.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    # A directory of secrets as Docker and Kubernetes mount them: one file a variable, named like it in lower case.
    secrets = os.environ.get("ASSAY_SECRETS_DIR")
    if secrets and not Path(secrets).is_dir():
        raise SettingsError(f"ASSAY_SECRETS_DIR: {secrets} is not a directory")
    try:
        return Settings(_secrets_dir=secrets or None, **given)  # type: ignore[call-arg, arg-type]
    except OSError as error:
        raise SettingsError(f".env cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"][:1]).upper()
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        # What is wrong with several of them together has no place, and names them itself.
        where = f"ASSAY_{name}: " if name else ""
        raise SettingsError(f"{where}{first['msg'].removeprefix('Value error, ')}{more}") from None


#: Read by the client alone, by a sink, or before the settings are.
_OTHERS = ("ASSAY_ENABLED", "ASSAY_SAMPLE_RATE", "ASSAY_SECRETS_DIR", "ASSAY_USER_ID_SALT")
_OTHERS_BEGIN = ("ASSAY_SINK_", "ASSAY_E2E_")


def unknown_variables() -> list[str]:
    """One line for each variable with assay's prefix, in the environment or `.env`, that nothing reads."""
    known = {*_OTHERS, *(f"ASSAY_{name.upper()}" for name in Settings.model_fields)}
    given = {name.upper() for name in os.environ}
    with contextlib.suppress(OSError):  # `load_settings` says so
        given |= {name.upper() for name in dotenv_values(".env")}
    given = {name for name in given if name.startswith("ASSAY_")}
    lines = []
    for name in sorted(given - known):
        if not name.startswith(_OTHERS_BEGIN):
            near = closest(name, sorted(known), likeness=0.7)
            lines.append(f"{name} is not a setting" + ("" if near is None else f": did you mean {near}?"))
    return lines


def settings_markdown() -> str:
    """The reference table of every setting, for docs/reference/settings.md."""
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = (
            ""
            if default is None or default == ()
            else f"`{','.join(default) if isinstance(default, tuple) else default}`"
        )
        rows.append(f"| `ASSAY_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"
