"""How a request reaches an endpoint: over aiohttp, with the address and headers that the OpenAI client would use.

The client itself takes several times the CPU of the same request over bare aiohttp, see docs/decisions/0017-wire.md.
Where somebody instruments the client, so as to trace it, it carries the calls all the same.
"""

from __future__ import annotations

import importlib
import socket
import types
import urllib.request
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
import openai
from pydantic_core import to_json

from assay.loopguard import HEADERS, judging

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

# openai 2 is built on httpx, openai 3 on httpx2: take the one it uses.
_httpx: Any = importlib.import_module(type(openai.DEFAULT_CONNECTION_LIMITS).__module__.partition(".")[0])

MAX_BODY_BYTES = 2_000_000
#: Of a compressed body, which nobody asked for and which may be a thousand times as long.
_MAX_PACKED_BYTES = 100_000
#: Below the 5 s after which common servers close an idle connection, so that we seldom send into a closed one.
_KEEPALIVE_SECONDS = 4.0


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
    if _is_instrumented():
        kind = type(openai.DEFAULT_CONNECTION_LIMITS)
        limits = kind(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEEPALIVE_SECONDS
        )
        http = openai.DefaultAioHttpClient(
            # A redirect is a wrong base URL; following it could hand the key to another host.
            limits=limits,
            timeout=None,
            follow_redirects=False,
            event_hooks={"response": [_bound]},
        )
        return _Traced(_client(base_url, api_key, http))
    # Asked for its address and headers alone: a transport that carries nothing spares loading the certificates twice.
    nothing = _httpx.AsyncClient(transport=_httpx.AsyncBaseTransport(), trust_env=False)
    return _Direct(_client(base_url, api_key, nothing), connections)


def _client(base_url: str, api_key: str | None, http: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        # A local endpoint needs no key, the client wants one all the same.
        api_key=api_key or "none",
        base_url=base_url,
        default_headers={"accept-encoding": "identity", **HEADERS},
        max_retries=0,
        timeout=None,
        http_client=http,
    )


def _is_instrumented() -> bool:
    """Whether a library has put itself around the client's requests, as those do that trace it."""
    return type(openai.AsyncOpenAI.request) is not types.FunctionType


class _Traced:
    """The OpenAI client, for those who watch it."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client

    async def post(self, path: str, body: Mapping[str, Any]) -> Response:
        try:
            with judging():
                response = await self._client.post(path, cast_to=_httpx.Response, body=body)
        except openai.APIStatusError as error:
            response = error.response
        except (openai.APIConnectionError, aiohttp.ClientError, _httpx.HTTPError, OSError) as error:
            raise UnreachableError(error) from None
        return Response(response.status_code, response.headers, response.content)

    async def aclose(self) -> None:
        await self._client.close()


class _Direct:
    """The same request, without the client's own work on it."""

    def __init__(self, client: openai.AsyncOpenAI, connections: int) -> None:
        self._client = client
        self._base_url = str(client.base_url).rstrip("/")
        given = {"authorization": f"Bearer {client.api_key}", **client.default_headers}
        # What the client would leave out is not text.
        self._headers = {name: value for name, value in given.items() if isinstance(value, str)}
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
            keepalive_timeout=_KEEPALIVE_SECONDS,
            # The certificates that the client trusts.
            ssl=_httpx.create_ssl_context() if secure else True,
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
        await self._client.close()


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
    limit = MAX_BODY_BYTES if encoding == "identity" else _MAX_PACKED_BYTES
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


class _BoundedStream(_httpx.AsyncByteStream):  # type: ignore[misc]  # either of two modules
    """Ends a body that goes over its bound."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream = stream
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = 0
        async for chunk in self._stream:
            seen += len(chunk)
            if seen > self._limit:
                raise OversizedError
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _bound(response: Any) -> None:
    packed = response.headers.get("content-encoding", "identity").lower() != "identity"
    response.stream = _BoundedStream(response.stream, _MAX_PACKED_BYTES if packed else MAX_BODY_BYTES)


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
