"""How a request reaches an endpoint: over aiohttp, with the address and headers that the OpenAI client would use.

The client itself takes several times the CPU of the same request over bare aiohttp, and a second to load, see
docs/decisions/0017-wire.md. It is asked where it may know more than is known here (`_client`).
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
import zlib
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
from pydantic_core import to_json

from assay.loopguard import HEADERS, judging

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

MAX_BODY_BYTES = 2_000_000
#: Of a compressed body, which nobody asked for and which may be a thousand times as long.
MAX_PACKED_BYTES = 100_000
#: Below the 5 s after which common servers close an idle connection, so that we seldom send into a closed one.
KEEPALIVE_SECONDS = 4.0

#: Modules that put themselves round the client, at once or when it is imported.
_TRACERS = ("openai", "wrapt", "ddtrace", "newrelic", "weave", "agentops")
#: What the environment says to the client, and is either heeded here or not of a request with a key of its own.
_KNOWN_VARIABLES = frozenset(
    {"OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"}
)


#: A local endpoint needs no key, the client wants one all the same.
NO_KEY = "none"
#: What we add to the client's headers.
OWN_HEADERS: Mapping[str, str] = {"accept-encoding": "identity", **HEADERS}


@dataclass(frozen=True, slots=True)
class Response:
    """What came back, whatever its status."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class OversizedError(Exception):
    """A body over the bound: what no server may do to our memory."""


class UnreachableError(Exception):
    """No complete answer; `never_sent`: the request cannot have reached a model, there was no connection at all."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(_root(error))
        self.never_sent = _never_sent(error)


class Wire(Protocol):
    """Carries requests to one base URL. Belongs to the event loop of its first call."""

    async def post(self, path: str, body: Mapping[str, Any]) -> Response:
        """The answer to this JSON at a path such as `/chat/completions`. Raises OversizedError, UnreachableError."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


def connect(base_url: str, api_key: str | None, *, connections: int) -> Wire:
    """The wire to this endpoint, with at most so many connections."""
    variables = {name for name in os.environ if name.startswith("OPENAI_")}
    if not variables <= _KNOWN_VARIABLES or any(name in sys.modules for name in _TRACERS):
        from assay.judges import _client

        return _client.connect(base_url, api_key, connections=connections)
    headers = {
        "authorization": f"Bearer {api_key or NO_KEY}",
        "accept": "application/json",
        "content-type": "application/json",
        "user-agent": f"AsyncOpenAI/Python {version('openai')}",
        **OWN_HEADERS,
    }
    for header, variable in (("openai-organization", "OPENAI_ORG_ID"), ("openai-project", "OPENAI_PROJECT_ID")):
        if (value := os.environ.get(variable)) is not None:
            headers[header] = value
    return Direct(base_url, headers, connections)


class Direct:
    """The request of the client, without the client's own work on it."""

    def __init__(self, base_url: str, headers: Mapping[str, str], connections: int) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = dict(headers)
        if "@" in self._base_url.partition("://")[2].partition("/")[0]:
            # A user in the URL is sent in this header, as the client does it; both at once cannot be.
            self._headers = {n: value for n, value in self._headers.items() if n.lower() != "authorization"}
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: Mapping[str, Any]) -> Response:
        session = self._session or self._open()
        sent = to_json(body)
        try:
            with judging():
                async with session.post(self._base_url + path, data=sent, allow_redirects=False) as answer:
                    return Response(answer.status, answer.headers, await _read(answer))
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(error) from None

    def _open(self) -> aiohttp.ClientSession:
        secure = self._base_url.startswith("https:")
        connector = aiohttp.TCPConnector(
            limit=self._connections,
            keepalive_timeout=KEEPALIVE_SECONDS,
            ssl=_trusted() if secure else True,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            proxy=_proxy_for(self._base_url),
        )
        return self._session

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


def _trusted() -> ssl.SSLContext:
    """The certificates that the client trusts."""
    # openai 2 is built on httpx, openai 3 on httpx2.
    library = import_module("httpx2" if find_spec("httpx2") else "httpx")
    context: ssl.SSLContext = library.create_ssl_context()
    return context


def _proxy_for(url: str) -> str | None:
    """What HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say."""
    parts = urllib.request.Request(url)  # noqa: S310 - only taken apart
    if urllib.request.proxy_bypass(parts.host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.type) or proxies.get("all")


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The body, which ends when it goes over its bound."""
    encoding = answer.headers.get("content-encoding", "identity").lower()
    limit = MAX_BODY_BYTES if encoding == "identity" else MAX_PACKED_BYTES
    parts, seen = [], 0
    async for chunk in answer.content.iter_any():
        seen += len(chunk)
        if seen > limit:
            answer.close()
            raise OversizedError
        parts.append(chunk)
    content = b"".join(parts)
    return content if encoding == "identity" else _unpacked(content, encoding)


def _unpacked(content: bytes, encoding: str) -> bytes:
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise aiohttp.ClientPayloadError(f"the body is packed as {encoding[:20]!r}, which nobody asked for")
    try:
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        unpacked = unpacker.decompress(content, MAX_BODY_BYTES)
    except zlib.error as error:
        raise aiohttp.ClientPayloadError(f"the packed body is broken: {error}") from error
    if unpacker.unconsumed_tail:
        raise OversizedError
    return unpacked


def _never_sent(error: BaseException) -> bool:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, aiohttp.ClientConnectorError | ConnectionRefusedError | socket.gaierror):
            return True
        found = found.__cause__ or found.__context__
    return False


def _root(error: BaseException) -> str:
    """The innermost reason of a chain of exceptions, which is the one that says something."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
