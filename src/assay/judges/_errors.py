"""What an endpoint's error means, in whichever of the servers' dialects it is told."""

from __future__ import annotations

import json
import math
import re
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING

from assay.echoes import SECRET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from assay.echoes import Credentials
    from assay.records import FailureKind

MESSAGE_CHARACTERS = 500
_MAX_TOLD_BYTES = 20_000
_TOLD_CHARACTERS = 4_000
_MAX_RETRY_AFTER_SECONDS = 86_400.0

#: Keys as endpoints repeat them, whole or with stars inside.
_KEY_LIKE = re.compile(r"\b(?:sk-|gsk_|xai-|AIza)[\w*.-]{4,}|(?<=Bearer )\S+|[\w-]*\*{3,}[\w-]*")
_OVERFLOW = re.compile(
    r"context[ _-]?(?:length|size|window)|maximum (?:prompt|model|input) length|exceed_context|max_model_len"
    r"|(?:prompt|input|request)(?: \([^)]*\))?(?: is)? too (?:long|large)|too many (?:input |prompt )?tokens"
    r"|input length[^.]{0,40}exceeds|reduce the length of the (?:messages|prompt|input)"
    r"|exceeds? the (?:maximum|max) (?:number of )?(?:input )?tokens|string_above_max_length",
    re.IGNORECASE,
)
_POLICY = re.compile(
    r"content[ _-]?(?:filter|policy|management policy)|responsible ?ai ?policy|safety (?:system|policy|filter)"
    r"|flagged (?:as|for|by)",
    re.IGNORECASE,
)
_IDENTITY = re.compile(
    r"model_not_found|invalid_api_key|api key not valid|incorrect api key|invalid model"
    r"|model [`'\"]?[\w./:@-]+[`'\"]? (?:was |is )?(?:not found|does ?n[o']t exist)",
    re.IGNORECASE,
)

_KINDS: dict[int, FailureKind] = {
    401: "unauthorized",
    402: "unauthorized",
    403: "unauthorized",
    404: "unauthorized",
    405: "unauthorized",
    408: "timeout",
    409: "unavailable",
    413: "context_overflow",
    429: "rate_limited",
}


def kind_of(status: int, told: str) -> FailureKind:
    """The failure kind of an HTTP status of 400 or above, and of what its body says."""
    if status in (400, 413, 422) or status >= 500:
        if _OVERFLOW.search(told):
            return "context_overflow"
        if _POLICY.search(told):
            return "refused"
        if _IDENTITY.search(told):
            return "unauthorized"
    return _KINDS.get(status) or ("unavailable" if status >= 500 else "rejected")


def presentable(message: str, credentials: Credentials) -> str:
    """A message fit to store and log: short, and without keys, which endpoints like to repeat."""
    shown = credentials.hidden(message)
    return _KEY_LIKE.sub(SECRET, shown[: 4 * MESSAGE_CHARACTERS])[:MESSAGE_CHARACTERS]


def told(content: bytes) -> tuple[str, str | None]:
    """What an error body says, in any of the usual forms, and the parameter that it blames."""
    text = content[:_MAX_TOLD_BYTES].decode(errors="replace")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        is_page = text.lstrip().startswith("<")
        return "" if is_page else " ".join(text.split())[:_TOLD_CHARACTERS], None
    body = body[0] if isinstance(body, list) and len(body) == 1 else body
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error)[:_TOLD_CHARACTERS], None
    message = next((error[key] for key in ("message", "detail", "msg", "error") if error.get(key)), "")
    said = (message if isinstance(message, str) else json.dumps(message))[:_TOLD_CHARACTERS]
    extras = [error[key][:100] for key in ("code", "type") if isinstance(error.get(key), str) and error[key] != message]
    parameter = error.get("param")
    return f"{said} ({', '.join(extras)})" if extras else said, parameter if isinstance(parameter, str) else None


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `Retry-After` (seconds or a date); None if absent or not readable."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        told = headers.get(name)
        if told is None:
            continue
        try:
            seconds = float(told) * scale
        except ValueError:
            seconds = _until(told, headers.get("date"))
        if math.isfinite(seconds):
            return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS)
    return None


def _until(told: str, date: str | None) -> float:
    """Seconds until an HTTP date, by the server's own clock if it tells its time; NaN if it is no date."""
    try:
        moment = parsedate_to_datetime(told).timestamp()
    except (ValueError, OverflowError, OSError):
        return math.nan
    try:
        present = parsedate_to_datetime(date).timestamp() if date is not None else time()
    except (ValueError, OverflowError, OSError):
        present = time()
    return moment - present
