"""Judges: who gives a record its scores. One protocol, four engines.

`openai` asks any OpenAI-compatible endpoint; `ragas` has a metric of ragas ask it; `lexical` and `rules` are keyless,
free and deterministic, and know less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

from assay.errors import JudgeError, MissingExtraError, SettingsError
from assay.records import Context, Record, now

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from assay.budgets import Purse
    from assay.cascade import First
    from assay.limits import Limits
    from assay.records import Outcome, Usage
    from assay.rubrics import JudgeSpec, Rubric

#: Where the engine `openai` asks when no base URL is set.
OPENAI_BASE_URL = "https://api.openai.com/v1"

Engine = Literal["openai", "lexical", "rules", "ragas"]
#: Engines that ask a model; the others are free.
ASKING: frozenset[Engine] = frozenset({"openai", "ragas"})
#: The metric of ragas that asks for embeddings, too.
EMBEDDING_METRIC = "answer_relevancy"


class Judge(Protocol):
    """Gives verdicts. An instance belongs to one event loop: build it there, or before any of its calls."""

    @property
    def name(self) -> str:
        """Value of the metric label `judge`, such as `openai:gpt-5-mini` or `lexical`."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that changes its verdicts; part of the identity of every evaluation."""

    async def judge(self, record: Record, rubrics: Sequence[Rubric]) -> Sequence[Outcome]:
        """One outcome for each rubric, in their order. `record` has what each of them requires.

        Raises:
            JudgeError: none of the rubrics got a verdict; the error says why.
        """

    async def aclose(self) -> None:
        """Free what the judge holds. It is not used afterwards."""


class JudgeObserver(Protocol):
    """Hears of every request that a judge sends. Called on the event loop: it must be quick and not raise."""

    def call_started(self, judge: str) -> None:
        """`judge` (its name) has sent a request."""

    def call_ended(self, judge: str, seconds: float, outcome: str, usage: Usage, trace_id: str | None) -> None:
        """The request ended after `seconds`: `ok`, a failure kind, or `cancelled`.

        `ok` means a complete reply; whether it holds a valid verdict is seen later. `usage` is all None when the
        endpoint did not say; `trace_id` is the record's.
        """

    def repeated(self, judge: str, outcome: str) -> None:
        """One more verdict was asked for where a rubric has repeats: `ok`, `not_applicable`, or a failure kind."""

    def circuit(self, judge: str, *, is_open: bool) -> None:
        """Whether the judge's endpoint counts as down, whenever that was looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """The default judge. A rubric's own `judge` overrides the engine, model, base URL, temperature and max tokens."""

    engine: Engine = "lexical"
    #: of ragas, for its engine: one that a rubric names
    metric: str | None = None
    model: str | None = None
    #: of embeddings, which one metric of ragas needs
    embedding_model: str = "text-embedding-3-small"
    #: OpenAI-compatible endpoint, up to and without `/chat/completions`; None is OpenAI's own
    base_url: str | None = None
    #: sent to `base_url` only, never to another origin that a rubric names
    api_key: str | None = field(default=None, repr=False)
    #: bound of all requests for one verdict together, its repair included; waiting for a free slot does not count
    timeout_seconds: float = 60.0
    #: bound of verdicts asked for at once, by one judge
    max_in_flight: int = 64
    #: None leaves it to the endpoint
    temperature: float | None = 0.0
    #: bound of one reply, a reasoning model's thoughts included
    max_tokens: int = 4096
    #: ask for token probabilities, where a scale can use them
    logprobs: bool = True
    #: price table; None is the shipped one
    prices_path: Path | None = None
    #: False asks without fences and rules: to measure what they are worth, and for nothing else
    guarded: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.timeout_seconds) and self.timeout_seconds > 0):
            raise SettingsError(f"judge timeout: {self.timeout_seconds} is not a number of seconds above 0")
        if self.max_in_flight < 1:
            raise SettingsError(f"judge max_in_flight: {self.max_in_flight} is below 1")
        if self.max_tokens < 1:
            raise SettingsError(f"judge max_tokens: {self.max_tokens} is below 1")


def resolve(spec: JudgeSpec | None, settings: JudgeSettings) -> JudgeSettings:
    """`settings` with what `spec` (a rubric's own judge, or None) says otherwise.

    The key of the settings goes to the origin of the settings: a rubric that names another endpoint gets none of it.
    """
    if spec is None:
        return settings
    engine = spec.engine or settings.engine
    if engine not in ASKING:
        return replace(settings, engine=engine)
    base_url = spec.base_url or settings.base_url
    same_origin = _origin(base_url) == _origin(settings.base_url)
    return replace(
        settings,
        engine=engine,
        metric=spec.metric if engine == "ragas" else None,
        model=spec.model or settings.model,
        embedding_model=spec.embedding_model or settings.embedding_model,
        base_url=base_url,
        api_key=settings.api_key if same_origin else None,
        temperature=settings.temperature if spec.temperature is None else spec.temperature,
        max_tokens=settings.max_tokens if spec.max_tokens is None else spec.max_tokens,
    )


def build_judge(
    spec: JudgeSpec | None,
    settings: JudgeSettings,
    observer: JudgeObserver | None = None,
    purse: Purse | None = None,
    limits: Limits | None = None,
) -> Judge:
    """The judge that `spec` (a rubric's own, or None) and `settings` come to; limits and purse are heeded.

    Raises:
        SettingsError: an unknown engine, no model, a base URL that is none, a missing key or a broken price table.
        MissingExtraError: the engine `openai` without the extra `worker`, or `ragas` without the extra `ragas`.
    """
    resolved = resolve(spec, settings)
    if resolved.engine == "lexical":
        from assay.judges._lexical import LexicalJudge

        return LexicalJudge()
    if resolved.engine == "rules":
        from assay.judges._rules import RulesJudge

        return RulesJudge()
    if resolved.engine == "openai":
        try:
            from assay.judges._openai import OpenAIJudge
        except ImportError as error:
            raise MissingExtraError("worker", error.name or "openai") from None
        return OpenAIJudge(resolved, observer, purse, limits)
    if resolved.engine == "ragas":
        from assay.judges._identity import identify

        # What is missing of the settings is told before what is missing of the packages.
        identify(resolved)
        try:
            from assay.judges._ragas import RagasJudge
        except ImportError as error:
            raise MissingExtraError("ragas", error.name or "ragas") from None
        return RagasJudge(resolved, observer, purse, limits)
    raise SettingsError(f"judge engine: {resolved.engine!r} is not one of openai, ragas, lexical, rules")


def look(engine: First, record: Record, rubric: Rubric) -> Outcome:
    """What a keyless judge says of a record, at once; the record has what the rubric requires."""
    if engine == "lexical":
        from assay.judges._lexical import LexicalJudge

        return LexicalJudge().look(record, rubric)
    from assay.judges._rules import RulesJudge

    return RulesJudge().look(record, rubric)


def describe_judge(spec: JudgeSpec | None, settings: JudgeSettings) -> tuple[str, str]:
    """Name and fingerprint of the judge that `build_judge` would build, without what it takes to build and call it.

    Raises:
        SettingsError: an unknown engine, no model, or a base URL that is none.
    """
    resolved = resolve(spec, settings)
    if resolved.engine in ASKING:
        from assay.judges._identity import identify

        return identify(resolved)[:2]
    judge = build_judge(spec, settings)
    return judge.name, judge.fingerprint


def models_of(settings: JudgeSettings) -> tuple[str, ...]:
    """The models that this judge pays for; none where it asks none."""
    if settings.engine not in ASKING or settings.model is None:
        return ()
    embeds = settings.engine == "ragas" and settings.metric == EMBEDDING_METRIC
    return (settings.model, settings.embedding_model) if embeds else (settings.model,)


class Elsewhere:
    """Stands for a judge that this process does not load, because others ask it. It knows who that is, no more."""

    def __init__(self, name: str, fingerprint: str) -> None:
        self.name = name
        self.fingerprint = fingerprint

    async def judge(self, record: Record, rubrics: Sequence[Rubric]) -> Sequence[Outcome]:  # noqa: ARG002
        """Raises JudgeError: whoever plans the work leaves these rubrics to others."""
        raise JudgeError("internal", f"{self.name} is asked by other workers than this one")

    async def aclose(self) -> None:
        """Nothing is held."""


def lacks_key(settings: JudgeSettings) -> bool:
    """Whether the engine `openai` cannot be asked for want of a key: only OpenAI's own endpoint always takes one."""
    return _origin(settings.base_url) == _origin(None) and not settings.api_key


def preview(
    rubrics: Sequence[Rubric], record: Record | None = None, *, guarded: bool = True
) -> tuple[list[dict[str, str]], dict[str, object]]:
    """What the engine `openai` sends for `rubrics` asked together: the messages, and the JSON Schema of the reply.

    Without a record, placeholders stand in its place. For `guarded` see `JudgeSettings`.
    """
    from assay.judges._prompt import render, schema

    if record is None:
        record = Record(
            record_id="preview",
            timestamp=now(),
            input="<input>",
            output="<output>",
            contexts=(Context(text="<context 1>"), Context(text="<context 2>")),
        )
    return render(record, rubrics, guarded=guarded), schema(rubrics)


def schema_in_words(rubrics: Sequence[Rubric]) -> str:
    """What the engine `openai` adds to the first message for an endpoint that takes no schema."""
    from assay.judges._prompt import spelled_out

    return spelled_out(rubrics)


def _origin(base_url: str | None) -> tuple[str, str]:
    parts = urlsplit(base_url or OPENAI_BASE_URL)
    return parts.scheme, parts.netloc
