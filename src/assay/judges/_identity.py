"""Name and fingerprint of the judges `openai` and `ragas`, told without loading what it needs to make calls."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from assay.errors import SettingsError
from assay.judges import EMBEDDING_METRIC, OPENAI_BASE_URL
from assay.judges._prompt import PROTOCOL
from assay.judges._reply import PARSER

if TYPE_CHECKING:
    from assay.judges import JudgeSettings


#: Series of releases of ragas whose metrics ask and count alike, as far as their fingerprint goes.
RAGAS = "0.4"


class Identity(NamedTuple):
    """Who a judge is."""

    name: str
    fingerprint: str
    model: str


def identify(settings: JudgeSettings) -> Identity:
    """Who the judge `openai` or `ragas` of these settings is. The key is not part of it, so none is needed to tell.

    Raises:
        SettingsError: no model, no metric, or a base URL that is none.
    """
    if settings.engine == "ragas" and not settings.metric:
        raise SettingsError("the judge `ragas` needs a metric: write `judge: {engine: ragas, metric: faithfulness}`")
    if not settings.model:
        raise SettingsError(f"the judge `{settings.engine}` needs a model: set ASSAY_JUDGE_MODEL, such as gpt-5-mini")
    if settings.engine == "ragas":
        parts = {
            "engine": "ragas",
            "ragas": RAGAS,
            "metric": settings.metric,
            "host": _host(settings.base_url or OPENAI_BASE_URL),
            "model": settings.model,
            "embedding_model": settings.embedding_model if settings.metric == EMBEDDING_METRIC else None,
            "temperature": settings.temperature,
        }
        return Identity(f"ragas:{settings.metric}:{settings.model}", _digest(parts), settings.model)
    parts = {
        "engine": "openai",
        # One model name means different models elsewhere.
        "host": _host(settings.base_url or OPENAI_BASE_URL),
        "model": settings.model,
        "temperature": settings.temperature,
        "logprobs": settings.logprobs,
        "prompt": PROTOCOL if settings.guarded else f"{PROTOCOL}, not guarded",
        "parser": PARSER,
    }
    return Identity(f"openai:{settings.model}", _digest(parts), settings.model)


def _digest(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _host(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        host = parts.hostname if parts.scheme in ("http", "https") else None
        _ = parts.port
    except ValueError:
        host = None
    if not host:
        raise SettingsError("the judge's base URL is none: write it like http://localhost:11434/v1")
    return host
