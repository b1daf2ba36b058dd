"""HTTP for sinks: one client with its time and its answers bounded, and what an answer means for delivery."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from json import dumps, loads
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2

import assay
from assay.echoes import Credentials
from assay.errors import SettingsError, SinkError
from assay.sinks import Delivered, Delivery, Rejected, TryAgain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Of an answer; what is beyond it is not read.
_MOST_BYTES = 1_000_000
#: Answers by which a sink is away as a whole, whatever was sent.
_AWAY = frozenset({408, 425, 429, 502, 503, 504})
#: Answers by which it refuses us, whatever was sent: credentials, or a wrong URL that redirects.
_UNAUTHORIZED = frozenset({401, 403, 407})


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, read to its end (or to a megabyte)."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    #: what the request was authenticated by
    credentials: Credentials = field(default_factory=Credentials, repr=False)

    @property
    def ok(self) -> bool:
        """Whether it is a 2xx."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The body as JSON, None when it is none."""
        try:
            return loads(self.body)
        except (ValueError, RecursionError):
            return None

    def said(self) -> str:
        """Status and the beginning of the body, on one line, for a reason: without what authenticates us."""
        text = re.sub(r"\s+", " ", self.body[:4000].decode("utf-8", "replace")).strip()
        shown = self.credentials.hidden(text)[:300]
        return f"{self.status}: {shown}" if shown else f"{self.status}"

    @property
    def retry_after_seconds(self) -> float | None:
        """What `Retry-After` (seconds or a date) asks for, not negative; None without one that can be read."""
        given = self.headers.get("retry-after")
        if given is None:
            return None
        try:
            seconds = float(given)
        except ValueError:
            try:
                date = parsedate_to_datetime(given)
            except (ValueError, IndexError):
                return None
            seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        return max(0.0, seconds) if seconds < float("inf") else None


class Http:
    """Calls one base URL. Thread-safe; keeps connections open; follows no redirect, because headers hold secrets.

    Args:
        sink: name for messages.
        base_url: with or without a path or a slash at its end; paths of calls are put behind it.
        headers: of every call.
        basic_auth: user and password.
        timeout_seconds: bound of one call, from first byte to last.

    Raises:
        SettingsError: `base_url` is not one of http or https.
    """

    def __init__(
        self,
        sink: str,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        basic_auth: tuple[str, str] | None = None,
        timeout_seconds: float = 10.0,
    ) -> None:
        self._sink = sink
        self._base = base_url.rstrip("/")
        self._timeout = timeout_seconds
        # Short values of headers are no credentials.
        long = [value for value in (headers or {}).values() if len(value) >= 8]
        self._credentials = Credentials(*long, url=self._base, login=basic_auth)
        _check_url(sink, self._base)
        given = {"user-agent": f"assay/{assay.__version__}", **(headers or {})}
        for name, value in given.items():
            # A key out of a file often ends in a newline. Never with the value, which is one.
            if not (value.isascii() and value.isprintable()):
                raise SettingsError(
                    f"ASSAY_SINK_{sink.upper()}_…: what goes into the header {name} must be printable ASCII"
                )
        self._client = httpx2.Client(
            headers=given,
            auth=basic_auth,
            timeout=httpx2.Timeout(timeout_seconds, connect=min(timeout_seconds, 5.0)),
            # As many as deliver at once, and some more; the default of a hundred would be held open for nothing.
            limits=httpx2.Limits(max_connections=32, max_keepalive_connections=32, keepalive_expiry=30),
            follow_redirects=False,
        )

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        params: Mapping[str, str | int | Sequence[str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request, whatever its status. `json` is sent as compact UTF-8 JSON, `content` as it is.

        Raises:
            SinkError: no answer in time, or no connection.
        """
        sent = dict(headers or {})
        if json is not None:
            content = json_bytes(json)
            sent.setdefault("content-type", "application/json")
        ends = time.monotonic() + self._timeout
        try:
            with self._client.stream(
                method, self._base + path, content=content, params=dict(params) if params else None, headers=sent
            ) as response:
                body = bytearray()
                # The client bounds each read alone: a body that drips in must end too.
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _MOST_BYTES:
                        break
                    if time.monotonic() > ends:
                        raise SinkError(f"{self._sink}: no full answer within {self._timeout:g} s")
                given = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status_code, given, bytes(body), self._credentials)
        except httpx2.TimeoutException:
            raise SinkError(f"{self._sink}: no answer within {self._timeout:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            # What it says of a request that it cannot send would quote it.
            unsent = isinstance(error, (httpx2.LocalProtocolError, httpx2.InvalidURL))
            said = "the request cannot be sent" if unsent else self._credentials.hidden(str(error))[:200]
            raise SinkError(f"{self._sink}: {type(error).__name__}: {said}", suspect=unsent) from None

    def post(
        self,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        params: Mapping[str, str | int | Sequence[str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """`call` with POST, for a whole batch; what the sink says to all of it is raised, see `check`.

        Raises:
            SinkError: as `call` and `check`.
        """
        return self.check(self.call("POST", path, json=json, content=content, params=params, headers=headers))

    def check(self, reply: Reply) -> Reply:
        """The reply itself if it is a 2xx, or a 4xx that speaks of what was sent.

        Raises:
            SinkError: the sink is away, overloaded or broken (with `suspect` after a 500), refuses our credentials,
                or redirects.
        """
        status = reply.status
        if status in _UNAUTHORIZED:
            raise SinkError(f"{self._sink}: {reply.said()}: check its credentials", unauthorized=True)
        if status in _AWAY:
            raise SinkError(f"{self._sink}: {reply.said()}", after_seconds=reply.retry_after_seconds)
        if status >= 500:
            raise SinkError(
                f"{self._sink}: {reply.said()}", after_seconds=reply.retry_after_seconds, suspect=status == 500
            )
        if not reply.ok and status < 400:
            raise SinkError(f"{self._sink}: {status}: it redirects: set the URL that it redirects to")
        return reply

    def close(self) -> None:
        """Close its connections."""
        self._client.close()


def _check_url(sink: str, url: str) -> None:
    """Raises SettingsError unless it is one, with a host; never with the URL, which may hold a password."""
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = urlsplit(""), False
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_fine or re.search(r"\s", url):
        raise SettingsError(f"ASSAY_SINK_{sink.upper()}_URL: must begin with http:// or https:// and name a host")


def json_bytes(value: Any) -> bytes:
    """Compact UTF-8 JSON. Half characters (lone surrogates), which UTF-8 cannot carry, become `?`.

    Raises:
        ValueError: NaN or infinity, which no sink could read.
    """
    return dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


def refused(reply: Reply, n: int) -> SinkError:
    """To raise when a batch of `n` was answered with a 4xx as a whole: one of them may be to blame.

    With `n` of one, return `Rejected(reply.said())` instead.
    """
    return SinkError(f"refuses a batch of {n}: {reply.said()}", suspect=True)


def settled(reply: Reply, n: int, *, missing: frozenset[int] = frozenset()) -> list[Delivery]:
    """What a checked reply to a batch of `n` means for each of them; statuses in `missing` say not there (yet).

    Raises:
        SinkError: a 4xx to more than one, with `suspect`: they are tried in smaller batches.
    """
    if reply.ok:
        return [Delivered()] * n
    if n > 1:
        raise refused(reply, n)
    if reply.status in missing:
        return [TryAgain(reply.said(), missing=True)]
    return [Rejected(reply.said())]
