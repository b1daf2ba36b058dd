"""What the OpenAI client says of a request; and where somebody instruments it, so as to trace it, it carries the calls.

Loaded only where it may know more than `_wire` does: it takes a second, and 20 MB.
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING, Any

import aiohttp
import openai

from assay.judges._wire import (
    KEEPALIVE_SECONDS,
    MAX_BODY_BYTES,
    MAX_PACKED_BYTES,
    NO_KEY,
    OWN_HEADERS,
    Direct,
    OversizedError,
    Response,
    UnreachableError,
)
from assay.loopguard import judging

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from assay.judges._wire import Wire

# openai 2 is built on httpx, openai 3 on httpx2: take the one it uses.
_httpx: Any = importlib.import_module(type(openai.DEFAULT_CONNECTION_LIMITS).__module__.partition(".")[0])


def connect(base_url: str, api_key: str | None, *, connections: int) -> Wire:
    """The wire to this endpoint, with at most so many connections."""
    if _is_instrumented():
        kind = type(openai.DEFAULT_CONNECTION_LIMITS)
        limits = kind(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEPALIVE_SECONDS
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
    client = _client(base_url, api_key, nothing)
    given = {"authorization": f"Bearer {client.api_key}", **client.default_headers}
    # What the client would leave out is not text.
    headers = {name: value for name, value in given.items() if isinstance(value, str)}
    return Direct(str(client.base_url), headers, connections)


def _client(base_url: str, api_key: str | None, http: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key=api_key or NO_KEY,
        base_url=base_url,
        default_headers=OWN_HEADERS,
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
    response.stream = _BoundedStream(response.stream, MAX_PACKED_BYTES if packed else MAX_BODY_BYTES)
