"""What crosses processes: the record an app enqueues, and the outcomes a judge gives it.

Standard library only: the app-side client imports this module. Decoding with full validation is `assay.codec`'s.
"""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from assay.errors import RecordError

if TYPE_CHECKING:
    from assay.defects import Defect

#: Version of the JSON wire format. A worker refuses (and keeps) records of a version it does not know.
SCHEMA_VERSION = 1

#: Namespace of every deterministic evaluation id.
_NAMESPACE = uuid.UUID("6f1d6c0a-8f0e-5a53-9d0c-2a7a5b1f3c11")

FailureKind = Literal[
    "rate_limited",
    "timeout",
    "unavailable",
    "unauthorized",
    "refused",
    "unparsable",
    "off_scale",
    "context_overflow",
    "truncated",
    "rejected",
    "crashed",
    "internal",
    "budget",
]
#: rate_limited: 429. timeout: no answer in time. unavailable: 5xx or no connection. unauthorized: 401, 403, or an
#: unknown URL or model. refused: the judge declined. unparsable: no verdict found in the answer, after one repair.
#: off_scale: a verdict outside the scale, NaN included. context_overflow: the record does not fit the judge's
#: context. truncated: the judge's answer was cut. rejected: another 4xx. crashed: judging it killed the worker
#: again and again. internal: a bug in the judge. budget: a budget did not allow the call; the same record, replayed,
#: may be judged once there is money again.

#: Kinds for which the same call may succeed later. A record that keeps failing so ends as a dead letter, for replay.
TRANSIENT: frozenset[FailureKind] = frozenset({"rate_limited", "timeout", "unavailable", "unauthorized"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One retrieved passage that the app gave to its model, in the order it was given."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    text: str
    id: str | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolEvent:
    """One tool call of the app's model; `error` is set when it failed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str
    arguments: str | None = None
    result: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What the app's user said of the answer."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    thumb: Literal["up", "down"] | None = None
    rating: float | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens and money. None means unknown, which is not 0."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    #: those of the prompt's that a provider took from its cache
    cached_prompt_tokens: int | None = None

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=_plus(self.prompt_tokens, other.prompt_tokens),
            completion_tokens=_plus(self.completion_tokens, other.completion_tokens),
            cost_usd=_plus(self.cost_usd, other.cost_usd),
            cached_prompt_tokens=_plus(self.cached_prompt_tokens, other.cached_prompt_tokens),
        )

    def split(self, parts: int) -> list[Usage]:
        """Shares of one call among `parts` rubrics. Tokens stay whole: the first shares carry the remainder."""
        return [
            Usage(
                prompt_tokens=_share(self.prompt_tokens, parts, index),
                completion_tokens=_share(self.completion_tokens, parts, index),
                cost_usd=None if self.cost_usd is None else self.cost_usd / parts,
                cached_prompt_tokens=_share(self.cached_prompt_tokens, parts, index),
            )
            for index in range(parts)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the record got in: its inclusion probability in (0, 1] and the name of the rule that set it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    probability: float = 1.0
    rule: str = "default"

    def __post_init__(self) -> None:
        # `not (a < p <= b)` also refuses NaN.
        if not 0.0 < self.probability <= 1.0:
            raise RecordError(
                f"{self.probability} is not in (0, 1]: give the probability with which the record was sampled",
                field="sampling.probability",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One interaction with an LLM application, as its app saw it. Wire format version 1."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    schema_version: int = SCHEMA_VERSION
    #: identity: the same id enqueued twice is scored once
    record_id: str
    #: when the interaction happened (aware); its scores belong to this minute, whenever they are made
    timestamp: datetime
    #: the application that answered
    app: str = "default"
    input: str | tuple[Message, ...] = ""
    output: str = ""
    contexts: tuple[Context, ...] = ()
    #: a known good answer, where there is one
    reference: str | None = None
    #: keys that a structured (JSON object) output must have
    required_fields: tuple[str, ...] = ()
    #: W3C ids, lower-case hex: 32 and 16 digits
    trace_id: str | None = None
    span_id: str | None = None
    session_id: str | None = None
    #: hashed by the client; never the app's own id
    user_id: str | None = None
    route: str | None = None
    model: str | None = None
    prompt_version: str | None = None
    #: labels to slice by; only those that the settings declare become metric labels
    cohort: Mapping[str, str] = field(default_factory=dict)
    sampling: Sampling = Sampling()
    usage: Usage = Usage()
    latency_seconds: float | None = None
    #: OpenTelemetry's words: stop, length, content_filter, tool_call, error
    finish_reason: str | None = None
    tool_events: tuple[ToolEvent, ...] = ()
    feedback: Feedback | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    #: ids that other systems know this interaction by, such as {"mlflow_request_id": "..."}
    sink_refs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise RecordError(
                f"version {self.schema_version} is not known (this assay knows {SCHEMA_VERSION}): upgrade the worker",
                field="schema_version",
                reason="unknown_version",
            )
        if not self.record_id or len(self.record_id) > 200:
            raise RecordError("must be 1 to 200 characters", field="record_id")
        if not self.app or len(self.app) > 100:
            raise RecordError("must be 1 to 100 characters", field="app")
        if self.timestamp.tzinfo is None:
            raise RecordError("has no time zone: write it like 2026-01-31T12:00:00Z", field="timestamp")
        if self.latency_seconds is not None and not (math.isfinite(self.latency_seconds) and self.latency_seconds >= 0):
            raise RecordError("must be finite and not negative", field="latency_seconds")

    @property
    def input_text(self) -> str:
        """The input as one text; messages become `role: content` lines."""
        if isinstance(self.input, str):
            return self.input
        return "\n".join(f"{message.role}: {message.content}" for message in self.input)

    def texts(self) -> list[str]:
        """All that a judge may be shown of it."""
        known = [self.input_text, self.output, self.reference, *(context.text for context in self.contexts)]
        known += [t for event in self.tool_events for t in (event.arguments, event.result, event.error)]
        return [text for text in known if text]

    @property
    def weight(self) -> float:
        """1 / inclusion probability: how many interactions this record stands for."""
        return 1.0 / self.sampling.probability

    def to_json(self) -> str:
        """The wire form: compact JSON without absent fields."""
        return json.dumps(_plain(self), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A judge's verdict on one record by one rubric.

    `value` is in [0, 1], higher is better; `raw` is the same verdict in the scale's own units (4 of 1..5);
    `details` is the verdict in full (claims, checklist items), JSON-ready.
    """

    value: float
    passed: bool
    raw: float | None = None
    label: str | None = None
    explanation: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = Usage()
    latency_seconds: float = 0.0
    #: the model that the endpoint says answered
    judge_model: str | None = None
    #: what is wrong with an answer that did not pass; None where it passed, or its rubric asks for no class
    defect: Defect | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:
            raise ValueError(f"score value {self.value} is not in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A judge that gave no verdict, and why. Stored and counted; never a number."""

    kind: FailureKind
    message: str
    retry_after_seconds: float | None = None
    usage: Usage = Usage()
    latency_seconds: float = 0.0
    judge_model: str | None = None
    #: a rate limit let no request be made, or the endpoint is down: it uses up no try
    unasked: bool = False

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed later."""
        return self.kind in TRANSIENT


@dataclass(frozen=True, slots=True, kw_only=True)
class NotApplicable:
    """The rubric does not apply to the record; `reason` is a short slug such as `missing_contexts` or `no_claims`."""

    reason: str
    usage: Usage = Usage()
    latency_seconds: float = 0.0
    judge_model: str | None = None


Outcome = Score | Failure | NotApplicable


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One record under one rubric by one judge, and what came of it."""

    record_id: str
    rubric: str
    rubric_version: str
    rubric_hash: str
    judge: str
    judge_fingerprint: str
    outcome: Outcome
    #: in (0, 1]: with which probability the record was judged at all, once it was sampled; below 1 behind a cascade and
    #: near a budget's cap
    probability: float = 1.0

    @property
    def evaluation_id(self) -> uuid.UUID:
        """Deterministic identity, see `evaluation_id`."""
        return evaluation_id(self.record_id, self.rubric, self.rubric_hash, self.judge_fingerprint)


@lru_cache(maxsize=8192)
def evaluation_id(record_id: str, rubric: str, rubric_hash: str, judge_fingerprint: str) -> uuid.UUID:
    """Identity of an evaluation: the same four give the same id in any process, so a repeat is known as one."""
    # As `json.dumps` writes a list of them, at a sixth of its time.
    parts = ", ".join(map(encode_basestring_ascii, (record_id, rubric, rubric_hash, judge_fingerprint)))
    return uuid.uuid5(_NAMESPACE, f"[{parts}]")


def now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(UTC)


def _plus(a: Any, b: Any) -> Any:
    if a is None:
        return b
    return a if b is None else a + b


def _share(total: int | None, parts: int, index: int) -> int | None:
    if total is None:
        return None
    whole, rest = divmod(total, parts)
    return whole + (1 if index < rest else 0)


def _plain(value: Any) -> Any:
    """JSON-ready form of a record; absent (None or empty) fields of dataclasses are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {
            name: _plain(item)
            for name, item in pairs
            if item is not None and item != () and item != {} and not (isinstance(item, Usage) and item == Usage())
        }
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
