"""HTTP for sources: bounded in time and size, with a few tries, and errors that say what to mend."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import httpx2

import assay
from assay.echoes import Credentials
from assay.errors import SettingsError, SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MOST_BYTES: Final = 200_000_000
_TRIES: Final = 4
_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE: Final = 60.0


class Http:
    """Calls one base URL, one call at a time.

    Raises:
        SettingsError: `base_url` is no http or https URL.
    """

    def __init__(
        self,
        source: str,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        basic_auth: tuple[str, str] | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        self._source = source
        self._base = base_url.rstrip("/")
        self._credentials = Credentials(*(headers or {}).values(), url=base_url, login=basic_auth)
        if not self._base.startswith(("http://", "https://")):
            raise SettingsError(f"{source}: the URL must begin with http:// or https://")
        try:
            self._client = httpx2.Client(
                headers={"user-agent": f"assay/{assay.__version__}", **(headers or {})},
                auth=basic_auth,
                timeout=timeout_seconds,
                follow_redirects=False,  # it would carry the credentials elsewhere
            )
        except (httpx2.InvalidURL, UnicodeEncodeError) as error:
            raise SettingsError(f"{source}: {type(error).__name__} in its URL or key") from None

    def get(self, path: str, params: Mapping[str, str | int | Sequence[str]] | None = None) -> Any:
        """The JSON at a path.

        Raises:
            SourceError: there is none.
        """
        return self.call("GET", path, params=params)

    def call(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: object = None, known: int = 0
    ) -> Any:
        """The JSON that a call answers with; None when the status is `known`.

        Raises:
            SourceError: the store is away, refuses us, or answers with something else.
        """
        pause = 1.0
        for left in range(_TRIES - 1, -1, -1):
            try:
                status, headers, content = self._once(method, path, params, body)
            except (httpx2.HTTPError, OSError) as error:
                if not left:
                    raise SourceError(
                        f"{self._source}: {type(error).__name__}: {self._hidden(str(error))[:200]}"
                    ) from None
                status, headers, content = 503, {}, b""
            if 200 <= status < 300:
                return self._json(content)
            if status == known:
                return None
            if status not in _AGAIN or not left:
                said = self._hidden(" ".join(content[:4000].decode("utf-8", "replace").split()))[:300]
                hint = ": check its credentials" if status in (401, 403) else ""
                hint = ": it redirects: set the URL that it redirects to" if 300 <= status < 400 else hint
                raise SourceError(f"{self._source}: HTTP {status}{hint}: {said}")
            asked = headers.get("retry-after", "")
            time.sleep(min(_LONGEST_PAUSE, float(asked)) if asked.isascii() and asked.isdigit() else pause)
            pause *= 2
        raise AssertionError("unreachable")

    def _hidden(self, said: str) -> str:
        """Without what authenticates us, which some servers quote."""
        return self._credentials.hidden(said)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _once(
        self, method: str, path: str, params: Mapping[str, Any] | None, body: object
    ) -> tuple[int, Mapping[str, str], bytes]:
        content = None if body is None else json.dumps(body).encode()
        sent = {} if content is None else {"content-type": "application/json"}
        with self._client.stream(
            method, self._base + path, params=dict(params) if params else None, content=content, headers=sent
        ) as answer:
            read = bytearray()
            for chunk in answer.iter_bytes():
                read += chunk
                if len(read) > _MOST_BYTES:
                    raise SourceError(f"{self._source}: an answer of more than {_MOST_BYTES:,} bytes")
            return answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, bytes(read)

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise SourceError(f"{self._source}: its answer is not JSON: is the URL right?") from None


def listed(source: str, value: object, name: str, *, may_lack: bool = False) -> list[Any]:
    """`rows` of the answer that a range depends on: without the list (which `may_lack` when it is empty) it is none.

    Raises:
        SourceError: something else answers at the URL. Taken for an empty page it would end the range.
    """
    if not isinstance(value, dict) or not isinstance(value.get(name, [] if may_lack else None), list):
        raise SourceError(f"{source}: its answer has no list of {name}: is the URL right?")
    return rows(value, name)


def rows(value: object, name: str) -> list[Any]:
    """A list in an answer, of its objects."""
    inner = value.get(name) if isinstance(value, dict) else None
    return [row for row in inner if isinstance(row, dict)] if isinstance(inner, list) else []
