"""Where evaluations go besides the time series: trace stores, webhooks, logs. What every sink has in common.

One file of this package is one sink; its name is the file's name, and that is what `ASSAY_SINKS` lists. The file has

* `Settings`, a subclass of `SinkSettings` whose variables begin with `ASSAY_SINK_<NAME>_`, and
* `build(settings) -> Sink`, which connects to nothing.

A sink takes evaluations as they are, knows its own endpoint, and decides nothing else: `assay.outbox` chooses what goes
out, when it is tried again and when it is given up.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from assay.errors import SettingsError

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence
    from datetime import datetime

__all__ = [
    "Annotation",
    "Delivered",
    "Delivery",
    "Rejected",
    "Sink",
    "SinkSettings",
    "Skipped",
    "TryAgain",
    "open_sink",
    "provenance",
    "settings_class",
    "sink_names",
    "sinks_markdown",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One evaluation as it leaves. What the settings do not let out is None or empty; texts are redacted.

    `trace_id` and `span_id` are lower-case hex of 32 and 16 digits, or None: no other form gets here. All times are
    aware and in UTC, and they are the stored ones: the same evaluation always leaves with the same times.
    """

    #: deterministic: the same evaluation has the same id in any process
    evaluation_id: uuid.UUID
    record_id: str
    app: str
    trace_id: str | None
    span_id: str | None
    session_id: str | None
    #: ids that other systems know the interaction by, as the app gave them
    sink_refs: Mapping[str, str] = field(default_factory=dict)
    #: of the interaction
    timestamp: datetime
    #: when its outcome was stored
    evaluated_at: datetime
    rubric: str
    rubric_version: str
    rubric_hash: str
    judge: str
    judge_fingerprint: str
    judge_model: str | None = None
    outcome: Literal["scored", "failed", "not_applicable"]
    #: in [0, 1], higher is better; of a scored one only
    value: float | None = None
    #: the same verdict in the scale's own units
    raw: float | None = None
    passed: bool | None = None
    #: name of the scale's level, where it has names
    label: str | None = None
    explanation: str = ""
    #: of a failed one only
    failure_kind: str | None = None
    message: str | None = None
    #: of one that is not applicable only
    reason: str | None = None
    #: what is wrong with an answer that did not pass
    defect: str | None = None
    #: of a prompt injection in the texts (`assay.injection.Sign`); empty for none, None where nobody looked
    injection_signs: Sequence[str] | None = None
    #: whether labels by people stand behind the score: `active`, `stale` or `none`
    calibration_state: str | None = None
    #: with which the record was sampled, in (0, 1]: the score stands for 1 / probability interactions
    probability: float | None = None
    #: what to slice by: the record's cohort, and its route, model and prompt_version
    cohort: Mapping[str, str] = field(default_factory=dict)
    input: str | None = None
    output: str | None = None

    @property
    def verdict(self) -> str | None:
        """A word for sinks that want one: the level's name, else `pass` or `fail`; None without a score."""
        if self.passed is None:
            return None
        return self.label or ("pass" if self.passed else "fail")


@dataclass(frozen=True, slots=True)
class Delivered:
    """The sink has it."""


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Not now. `missing`: what it belongs to is not there (yet), which is waited for less long than for a sink."""

    reason: str
    #: what the sink asked for, if anything
    after_seconds: float | None = None
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """The sink will never take it. It is set aside with the reason, for a person to look at."""

    reason: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """There is nothing to attach it to, such as a record without a trace id. It is counted, and not kept."""

    reason: str


Delivery = Delivered | TryAgain | Rejected | Skipped


class Sink(Protocol):
    """A place that evaluations go to. Synchronous and thread-safe: several batches may be in delivery at once.

    `deliver` may be called again with what it was called with before, in this process or another: wherever the sink
    has a key for it, a repeat must leave one. It bounds its own time (every call by the setting `timeout_seconds`).
    """

    @property
    def name(self) -> str:
        """Name of its file, which is its label in the metrics."""
        ...

    @property
    def max_batch(self) -> int:
        """Most annotations in one call of `deliver`."""
        ...

    @property
    def takes_failures(self) -> bool:
        """Whether it can hold an evaluation without a score: else only `scored` ones are handed to it."""
        ...

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """Hand over 1 to `max_batch` annotations; returns what became of each, in the same order.

        Raises:
            SinkError: the sink is away, or refuses us: all of them are tried again, and the sink is left alone for a
                while. With `suspect`, one of them may be what it stumbles over: they are then tried in smaller batches.
        """
        ...

    def close(self) -> None:
        """Let go of connections and files. Nothing is delivered after it."""
        ...


class SinkSettings(BaseSettings):
    """What every sink's settings have in common. A subclass sets `env_prefix="ASSAY_SINK_<NAME>_"`."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, allow_inf_nan=False
    )
    #: one sentence for the reference: what the sink writes where
    about: ClassVar[str] = ""

    timeout_seconds: float = Field(10.0, gt=0, le=300, description="Bound of one call to the sink.")


def sink_names() -> list[str]:
    """Names of all sinks there are, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def settings_class(name: str) -> type[SinkSettings]:
    """The settings of a sink.

    Raises:
        SettingsError: there is no such sink.
    """
    found: type[SinkSettings] = _module(name).Settings
    return found


def settings_of(name: str, **overrides: object) -> SinkSettings:
    """The settings of the sink of that name in the environment; `overrides` (by field name) win over it.

    Raises:
        SettingsError: there is no such sink, or one of its settings is missing or wrong.
    """
    module = _module(name)
    try:
        found: SinkSettings = module.Settings(_secrets_dir=os.environ.get("ASSAY_SECRETS_DIR") or None, **overrides)
    except ValidationError as error:
        raise SettingsError(_first_mistake(module.Settings, error)) from None
    return found


def open_sink(name: str, **overrides: object) -> Sink:
    """The sink of that name, by its settings in the environment; `overrides` (by field name) win over it.

    Raises:
        SettingsError: there is no such sink, or one of its settings is missing or wrong.
    """
    sink: Sink = _module(name).build(settings_of(name, **overrides))
    return sink


def provenance(annotation: Annotation) -> dict[str, str | float | bool]:
    """Where a score comes from, for a sink's metadata: flat, JSON-ready, without what is not known.

    The value itself, the explanation, texts and ids of the trace are not in it: sinks have fields for those.
    """
    known: dict[str, str | float | bool | None] = {
        "evaluation_id": str(annotation.evaluation_id),
        "record_id": annotation.record_id,
        "app": annotation.app,
        "rubric": annotation.rubric,
        "rubric_version": annotation.rubric_version,
        "rubric_hash": annotation.rubric_hash,
        "judge": annotation.judge,
        "judge_fingerprint": annotation.judge_fingerprint,
        "judge_model": annotation.judge_model,
        "outcome": annotation.outcome,
        "raw": annotation.raw,
        "passed": annotation.passed,
        "label": annotation.label,
        "failure_kind": annotation.failure_kind,
        "defect": annotation.defect,
        "injection_signs": ",".join(annotation.injection_signs or ()) or None,
        "calibration_state": annotation.calibration_state,
        "probability": annotation.probability,
        **{f"cohort.{key}": value for key, value in sorted(annotation.cohort.items())},
    }
    return {key: value for key, value in known.items() if value is not None}


def _module(name: str) -> Any:
    if name not in sink_names():
        raise SettingsError(f"ASSAY_SINKS: {name!r} is not a sink: choose from {', '.join(sink_names())}")
    return importlib.import_module(f"{__name__}.{name}")


def _first_mistake(settings: type[SinkSettings], error: ValidationError) -> str:
    """One line: the variable, its fault, and how many more there are. Never the value: it may be a secret."""
    first = error.errors(include_input=False, include_url=False)[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    name = "_".join(str(part) for part in first["loc"][:1])
    where = f"{settings.model_config.get('env_prefix', '')}{name.upper()}: " if name else ""
    said = "is not set" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    return f"{where}{said}{more}"


def sinks_markdown() -> str:
    """The reference of every sink and its settings, for docs/reference/sinks.md."""
    parts = [
        "# Sinks",
        "",
        "What `ASSAY_SINKS` may list, what each sink does, and its settings. Secrets may also come from",
        "`ASSAY_SECRETS_DIR`, as files named like the variables in lower case. [How to use them](../howto/sinks.md).",
        "",
    ]
    for name in sink_names():
        settings = settings_class(name)
        parts += [f"## {name}", "", settings.about, "", "| variable | default | what it is |", "|---|---|---|"]
        prefix = settings.model_config.get("env_prefix", "")
        # Its own first; those that all have come last.
        common = SinkSettings.model_fields
        fields = sorted(settings.model_fields.items(), key=lambda item: item[0] in common)
        for field_name, info in fields:
            required = info.is_required()
            shown = "required" if required else "" if info.default is None else f"`{_shown(info.default)}`"
            parts.append(f"| `{prefix}{field_name.upper()}` | {shown} | {info.description} |")
        parts.append("")
    return "\n".join(parts)


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
