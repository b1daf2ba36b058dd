"""Every setting of the worker side, from environment variables with the prefix `ASSAY_` (or a `.env` file).

The app-side client reads its few variables itself, because it may not import pydantic.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from assay.errors import SettingsError

_List = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """What `assay` reads from the environment. Every field is `ASSAY_` plus its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="ASSAY_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, allow_inf_nan=False
    )

    # -- where things are
    redis_url: SecretStr | None = Field(
        None,
        description="Redis that the apps enqueue to, such as `redis://localhost:6379/0`. "
        "It must persist and never evict.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="Where scores are kept: `postgresql+psycopg://user@host/name`, or `sqlite:///path`. "
        "Default: `assay.db` in the data directory.",
    )
    data_dir: Path = Field(
        Path(".assay"), description="Directory of the default SQLite database and of `assay dev`'s Redis."
    )
    queue: str = Field("assay", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Name of the queue in Redis.")
    rubrics: _List = Field(
        (), description="Rubric files or directories, separated by commas. Default: the four shipped rubrics."
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
    judge_max_in_flight: int = Field(64, ge=1, le=4096, description="Judge calls in flight in one worker process.")
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

    # -- delivery
    concurrency: int = Field(
        16, ge=1, le=256, description="Batches (of at most 25 records) that one worker process works on at once."
    )
    max_batches: int = Field(
        20_000, ge=1, description="Bound of the queue, in batches; what is over it is shed by the client, and counted."
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
        3,
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
    max_record_bytes: int = Field(1_000_000, ge=1_000, description="A larger record is set aside as `too_large`.")

    # -- time series
    windows: _List = Field(("5m", "1h", "24h"), description="Rolling windows of the gauges, separated by commas.")
    cohort_labels: _List = Field(
        (),
        description="Record fields (`route`, `model`, `prompt_version`) or cohort keys that become metric labels, "
        "separated by commas.",
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
    worker_metrics_host: str = Field("127.0.0.1", description="Address of a worker's own `/metrics`.")
    worker_metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port of a worker's own `/metrics`; unset: none, 0: a free one."
    )

    # -- retention
    keep_payload_days: float = Field(14, ge=0, description="Days to keep the texts of records.")
    keep_score_days: float = Field(
        90, ge=0, description="Days to keep records and scores: at least one, and as long as dead letters."
    )
    keep_rollup_days: float = Field(
        400, ge=2, description="Days to keep the hourly sums behind the gauges (minute sums: two days)."
    )
    keep_dead_days: float = Field(30, ge=0, description="Days to keep dead letters.")

    # -- logs
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` writes JSON unless the output is a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is written.")

    @field_validator("rubrics", "windows", "cohort_labels", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @field_validator("judge_base_url")
    @classmethod
    def _http_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://, such as http://localhost:11434/v1")
        return value or None

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
    def store_url(self) -> str:
        """Database URL, password included: keep it out of logs."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{(self.data_dir / 'assay.db').absolute()}"

    @property
    def broker_url(self) -> str:
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
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"][:1]).upper()
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        # What is wrong with several of them together has no place, and names them itself.
        where = f"ASSAY_{name}: " if name else ""
        raise SettingsError(f"{where}{first['msg'].removeprefix('Value error, ')}{more}") from None


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
