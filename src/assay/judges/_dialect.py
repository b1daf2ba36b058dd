"""What of the OpenAI API an endpoint understands, and what to try after it refused a request."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

#: Words of a refusal that is about the format of the reply.
FORMAT = re.compile(
    r"response_format|json_?schema|json_?object|structured output|\bguided|\bgrammar|\bschema\b|\bstrict\b",
    re.IGNORECASE,
)
_PARAMETERS = {
    "temperature": re.compile(r"\btemperature\b", re.IGNORECASE),
    "logprobs": re.compile(r"\b(?:top_)?logprobs\b", re.IGNORECASE),
    "seed": re.compile(r"\bseed\b", re.IGNORECASE),
}

Format = Literal["json_schema", "json_object", "text"]
_LOWER: dict[Format, Format] = {"json_schema": "json_object", "json_object": "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What of the API an endpoint understands: how to ask for JSON, and which parameters it refuses."""

    format: Format = "json_schema"
    #: name of the parameter that bounds the reply; None: it knows neither
    limit: Literal["max_tokens", "max_completion_tokens"] | None = "max_tokens"
    without: frozenset[str] = frozenset()

    def after(self, refusal: str, parameter: str | None, *, guess: bool) -> Dialect | None:
        """What to try after a refusal: its message, and the parameter it names (or None).

        `guess` allows a lower format when the message names nothing that we sent. None: nothing is left to try.
        """
        for text in filter(None, (parameter, refusal)):
            named = self._without_named(text)
            if named is not None:
                return named
        return self._lower() if guess else None

    def _without_named(self, text: str) -> Dialect | None:
        for name, pattern in _PARAMETERS.items():
            if name not in self.without and pattern.search(text):
                return replace(self, without=self.without | {name})
        if self.limit is not None and self.limit in text:
            return replace(self, limit="max_completion_tokens" if self.limit == "max_tokens" else None)
        return self._lower() if FORMAT.search(text) else None

    def _lower(self) -> Dialect | None:
        return replace(self, format=_LOWER[self.format]) if self.format in _LOWER else None
