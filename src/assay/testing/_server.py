"""A judge server over real HTTP, and what it can be told to do."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os.path
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from time import monotonic, time
from typing import Any, Self

from aiohttp import web

from assay.defects import ALL
from assay.judges._prompt import DEFECTS
from assay.testing._answers import logprobs, off_scale, quotable, resolved, seeded, shape_in, vector, walk

#: Every fault that the server can play. `429` names its delay in seconds, the others of its family in the other forms.
FAULTS = (
    "400",
    "401",
    "403",
    "404",
    "429",
    "429_ms",
    "429_date",
    "500",
    "503",
    "hang",
    "trickle",
    "disconnect",
    "garbage",
    "not_utf8",
    "oversized",
    "no_choices",
    "prose",
    "cut",
    "nan",
    "off_scale",
    "refusal",
    "content_filter",
    "overflow",
    "no_usage",
)
#: What `fault_rate` is made of, in equal parts.
USUAL_FAULTS = ("429", "500", "hang", "garbage")

#: Request parameters that the server can be told not to know; `json_schema` and `json_object` are response formats.
PARAMETERS = ("json_schema", "json_object", "temperature", "logprobs", "max_tokens", "max_completion_tokens", "seed")

#: OpenAI's cache takes beginnings of so many tokens on, in such steps; so many prompts are remembered.
_LEAST_CACHED, _CACHED_STEP, _REMEMBERED = 1024, 128, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One rubric's part of one request: what a verdict function sees."""

    #: name of the rubric
    rubric: str
    #: JSON Schema of its verdict; where the request brings none, one made from the shape that the prompt shows
    schema: Mapping[str, Any]
    #: text of all messages
    text: str
    #: the request's body
    request: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One scripted answer of the server; the defaults are a well-formed completion with valid verdicts."""

    #: text of the assistant's message; None lets the server make verdicts
    content: str | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    #: what is sent in place of a completion: bytes as they are, anything else as JSON
    body: Any = None
    finish_reason: str = "stop"
    refusal: str | None = None
    #: the completion's `logprobs`; None is none, unless the server makes them
    logprobs: Mapping[str, Any] | None = None
    #: False leaves `usage` out
    usage: bool | Mapping[str, Any] = True
    delay_seconds: float = 0.0


@dataclass(slots=True)
class Traffic:
    """What a server has seen and sent. Tokens are characters / 4."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: of the prompt tokens, from the cache that is played
    cached_tokens: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    #: how often each fault was played; `ok` for none
    played: Counter[str] = field(default_factory=Counter)


class FakeJudgeServer:
    """A local OpenAI-compatible server on a thread of its own; use it as a context manager.

    It answers any schema with verdicts that are valid by it, and is deterministic: the same seed and messages give
    the same verdict, and the n-th time the same messages come, the same fault or none. Time is in seconds.

    Args:
        latency_seconds: before each answer.
        fault_rate: share of calls in [0, 1] that meet one of `USUAL_FAULTS`.
        faults: share by name of `FAULTS`, instead of `fault_rate`.
        verdict: makes the verdict object of one rubric, or returns None to leave it to the server.
        bad_when: records whose text contains this get the worst verdicts, all others the best ones.
        unsupported: names of `PARAMETERS` that are answered with 400.
        logprobs: give token probabilities to those who ask; otherwise the wish is ignored, as many servers do.
        api_key: refuse every other key with 401.
        prompt_cache: tell how many of a prompt's tokens were cached, by OpenAI's rule, from the latest 32 prompts.
        retry_after_seconds: what 429 asks for.
        requests_per_minute: more are answered with 429; told in the headers of every answer, as OpenAI does.
        tokens_per_minute: the same in tokens.
        limit_window_seconds: length of the sliding windows in which both are counted, in proportion.
    """

    def __init__(
        self,
        *,
        latency_seconds: float = 0.0,
        fault_rate: float = 0.0,
        faults: Mapping[str, float] | None = None,
        seed: int = 0,
        verdict: Callable[[Ask], Any] | None = None,
        bad_when: str | None = None,
        unsupported: Collection[str] = (),
        logprobs: bool = False,
        api_key: str | None = None,
        prompt_cache: bool = False,
        retry_after_seconds: float = 1.0,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        limit_window_seconds: float = 60.0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._faults = dict(faults) if faults is not None else dict.fromkeys(USUAL_FAULTS, fault_rate / 4)
        _check_names("fault", self._faults, FAULTS)
        _check_names("parameter", unsupported, PARAMETERS)
        self.latency_seconds = latency_seconds
        self.traffic = Traffic()
        #: the latest request bodies, oldest first
        self.requests: deque[dict[str, Any]] = deque(maxlen=1000)
        self._seed = seed
        self._verdict = verdict
        self._bad_when = bad_when
        self._unsupported = frozenset(unsupported)
        self._logprobs = logprobs
        self._api_key = api_key
        self._retry_after_seconds = retry_after_seconds
        self._limits = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._limit_window_seconds = limit_window_seconds
        #: for each unit: when so much was admitted
        self._admitted: dict[str, deque[list[float]]] = {"requests": deque(), "tokens": deque()}
        self._host = host
        self._port = port
        #: the latest prompts, where a cache is played
        self._prompts: deque[str] | None = deque(maxlen=_REMEMBERED) if prompt_cache else None
        self._script: deque[Reply | str] = deque()
        self._seen: Counter[bytes] = Counter()

    # -- life

    def __enter__(self) -> Self:
        """Listen; raises OSError when the port is taken."""
        ready = threading.Event()
        failure: list[BaseException] = []
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            try:
                self._loop.run_until_complete(self._serve(ready))
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                failure.append(error)
            finally:
                self._loop.close()
                ready.set()

        self._thread = threading.Thread(target=run, name="fake-judge", daemon=True)
        self._thread.start()
        ready.wait()
        if failure:
            raise failure[0]
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)

    async def _serve(self, ready: threading.Event) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/embeddings", self._complete)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/traffic", self._show_traffic)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port, backlog=2048)
            await site.start()
            self.port = int(runner.addresses[0][1])
            ready.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()

    # -- use

    @property
    def base_url(self) -> str:
        """What to give a client as its base URL."""
        return f"http://{self._host}:{self.port}/v1"

    def script(self, *replies: Reply | str) -> None:
        """Answer the next calls with these, in this order: a `Reply`, a name of `FAULTS`, or `ok`."""
        _check_names("fault", [reply for reply in replies if isinstance(reply, str)], (*FAULTS, "ok"))
        self._script.extend(replies)

    # -- answers

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refuse_key(request)
        return refusal or web.json_response({"object": "list", "data": [{"id": "fake-judge", "object": "model"}]})

    async def _show_traffic(self, _: web.Request) -> web.StreamResponse:
        traffic = self.traffic
        return web.json_response(
            {
                "calls": traffic.calls,
                "prompt_tokens": traffic.prompt_tokens,
                "completion_tokens": traffic.completion_tokens,
                "cached_tokens": traffic.cached_tokens,
                "max_in_flight": traffic.max_in_flight,
                "played": dict(traffic.played),
            }
        )

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        """A completion, or embeddings: the body says which."""
        traffic = self.traffic
        traffic.calls += 1
        traffic.in_flight += 1
        traffic.max_in_flight = max(traffic.max_in_flight, traffic.in_flight)
        try:
            refusal = self._refuse_key(request)
            if refusal is not None:
                return refusal
            body = await request.json()
            self.requests.append(body)
            refusal = self._refuse_rate(body)
            if refusal is not None:
                return refusal
            admitted = self._admitted["tokens"][-1]
            if self.latency_seconds:
                await asyncio.sleep(self.latency_seconds)
            unknown = self._unknown_parameter(body)
            if unknown is not None:
                traffic.played["400"] += 1
                return unknown
            return await self._answer(request, body, admitted)
        finally:
            traffic.in_flight -= 1

    async def _answer(self, request: web.Request, body: Mapping[str, Any], admitted: list[float]) -> web.StreamResponse:
        text = _asked_of(body)
        chosen = self._script.popleft() if self._script else self._draw(text)
        self.traffic.played[chosen if isinstance(chosen, str) else "scripted"] += 1
        if chosen == "hang":
            await asyncio.sleep(3600)
        if chosen == "trickle":
            return await _trickle(request)
        if chosen == "disconnect":
            assert request.transport is not None  # noqa: S101 - a request that is being answered has one
            request.transport.close()
        reply = chosen if isinstance(chosen, Reply) else self._reply(chosen, body, text)
        if reply.delay_seconds:
            await asyncio.sleep(reply.delay_seconds)
        payload = reply.body
        if payload is None:
            payload = self._embeddings(body, text) if "input" in body else self._completion(reply, body, text)
        if isinstance(payload, bytes):
            return web.Response(status=reply.status, headers=reply.headers, body=payload)
        if isinstance(payload, Mapping) and isinstance(payload.get("usage"), Mapping):
            admitted[1] = payload["usage"].get("total_tokens", admitted[1])
        raw = json.dumps(payload).encode()
        return web.Response(
            status=reply.status,
            headers={"content-type": "application/json", **self._limit_headers(), **reply.headers},
            body=raw,
        )

    def _draw(self, text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        self._seen[digest] += 1
        draw = seeded(self._seed, digest, self._seen[digest]).random()
        for name, share in self._faults.items():
            draw -= share
            if draw < 0:
                return name
        return "ok"

    def _reply(self, name: str, body: Mapping[str, Any], text: str) -> Reply:
        """The well-formed or malformed reply that a fault stands for."""
        simple = _SIMPLE_FAULTS.get(name)
        if simple is not None:
            return simple
        if name.startswith("429"):
            seconds = self._retry_after_seconds
            form = {
                "429": {"retry-after": f"{seconds:g}"},
                "429_ms": {"retry-after-ms": f"{seconds * 1000:g}"},
                "429_date": {"retry-after": formatdate(time() + seconds, usegmt=True)},
            }[name]
            return Reply(status=429, headers=form, body=_error("Rate limit reached", code="rate_limit_exceeded"))
        if "input" in body:
            return Reply()  # what else can be wrong with a verdict can't with embeddings
        verdicts = self._verdicts(body, text)
        if name == "cut":
            return Reply(content=json.dumps(verdicts)[:-10], finish_reason="length")
        if name in ("nan", "off_scale"):
            broken = float("nan") if name == "nan" else 99
            return Reply(content=json.dumps(off_scale(verdicts, broken)))
        return Reply(content=json.dumps(verdicts), usage=name != "no_usage")

    def _embeddings(self, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        self.traffic.prompt_tokens += len(text) // 4
        data = [
            {"object": "embedding", "index": index, "embedding": vector(item)}
            for index, item in enumerate(_inputs(body))
        ]
        usage = {"prompt_tokens": len(text) // 4, "total_tokens": len(text) // 4}
        return {"object": "list", "data": data, "model": str(body.get("model")), "usage": usage}

    def _completion(self, reply: Reply, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        content = reply.content
        if content is None and reply.refusal is None:
            content = json.dumps(self._verdicts(body, text))
        prompt_tokens, completion_tokens = len(text) // 4, len(content or "") // 4
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": content, "refusal": reply.refusal},
            "finish_reason": reply.finish_reason,
        }
        if reply.logprobs is not None:
            choice["logprobs"] = reply.logprobs
        elif self._logprobs and body.get("logprobs"):
            choice["logprobs"] = logprobs(content or "")
        completion: dict[str, Any] = {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 0,
            "model": str(body.get("model")),
            "choices": [choice],
        }
        if reply.usage is True:
            self.traffic.prompt_tokens += prompt_tokens
            self.traffic.completion_tokens += completion_tokens
            completion["usage"] = {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            }
            if self._prompts is not None:
                cached = self._from_cache(text)
                self.traffic.cached_tokens += cached
                completion["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}
        elif reply.usage is not False:
            completion["usage"] = reply.usage
        return completion

    def _from_cache(self, text: str) -> int:
        """Tokens of the longest beginning that a latest prompt shares, by OpenAI's rule; the prompt is remembered."""
        assert self._prompts is not None  # noqa: S101 - asked of a server with a cache
        shared = max((len(os.path.commonprefix([text, other])) for other in self._prompts), default=0) // 4  # noqa: RUF071 - no paths
        self._prompts.append(text)
        return shared // _CACHED_STEP * _CACHED_STEP if shared >= _LEAST_CACHED else 0

    def _verdicts(self, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema") or shape_in(body)
        schema = resolved(schema, schema.get("$defs", {}))
        verdicts = {}
        for rubric, part in schema["properties"].items():
            if rubric == DEFECTS:
                continue
            made = None
            if self._verdict is not None:
                made = self._verdict(Ask(rubric=rubric, schema=part, text=text, request=body))
            verdicts[rubric] = self._instance(part, text, rubric) if made is None else made
        if DEFECTS in schema["properties"]:
            verdicts[DEFECTS] = self._causes(verdicts, text)
        return verdicts

    def _causes(self, rubrics: Iterable[str], text: str) -> list[str]:
        """A drawn cause for each rubric, as a judge names them; none where `bad_when` says that all is well."""
        if self._bad_when is not None and self._bad_when not in text:
            return []
        return [f"{rubric}:{seeded(self._seed, text.encode(), rubric, DEFECTS).choice(ALL)}" for rubric in rubrics]

    def _instance(self, schema: Mapping[str, Any], text: str, rubric: str) -> Any:
        """A value that is valid by this schema; grades are drawn, or the best or worst if `bad_when` says so."""
        draw = seeded(self._seed, text.encode(), rubric)
        good = None if self._bad_when is None else self._bad_when not in text
        return walk(schema, draw, good, quotable(text))

    def _refuse_rate(self, body: Mapping[str, Any]) -> web.StreamResponse | None:
        moment = monotonic()
        wanted = {"requests": 1.0, "tokens": len(_asked_of(body)) // 4}
        over = None
        for unit, limit in self._limits.items():
            admitted = self._admitted[unit]
            while admitted and admitted[0][0] <= moment - self._limit_window_seconds:
                admitted.popleft()
            most = (limit or 0) * self._limit_window_seconds / 60
            if limit is not None and sum(amount for _, amount in admitted) + wanted[unit] > most:
                over = unit
        if over is None:
            for unit, amount in wanted.items():
                self._admitted[unit].append([moment, amount])
            return None
        self.traffic.played["rate_limited"] += 1
        headers = {**self._limit_headers(), "retry-after": f"{self._retry_after_seconds:g}"}
        error = _error(f"Rate limit reached: {over} a minute", code="rate_limit_exceeded")
        return web.json_response(error, status=429, headers=headers)

    def _limit_headers(self) -> dict[str, str]:
        """As OpenAI tells them."""
        headers = {}
        for unit, limit in self._limits.items():
            if limit is not None:
                most = limit * self._limit_window_seconds / 60
                left = max(0.0, most - sum(amount for _, amount in self._admitted[unit]))
                headers[f"x-ratelimit-limit-{unit}"] = str(limit)
                headers[f"x-ratelimit-remaining-{unit}"] = str(int(left))
                headers[f"x-ratelimit-reset-{unit}"] = f"{(most - left) * 60 / limit:.3f}s"
        return headers

    def _refuse_key(self, request: web.Request) -> web.StreamResponse | None:
        if self._api_key is None or request.headers.get("authorization") == f"Bearer {self._api_key}":
            return None
        self.traffic.played["401"] += 1
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        # As real servers do, it repeats the key.
        return web.json_response(_error(f"Incorrect API key provided: {given}", code="invalid_api_key"), status=401)

    def _unknown_parameter(self, body: Mapping[str, Any]) -> web.StreamResponse | None:
        wanted = (body.get("response_format") or {}).get("type")
        for name in sorted(self._unsupported):
            if name == wanted:
                message = f"Invalid parameter: 'response_format' of type '{name}' is not supported with this model."
                return web.json_response(_error(message, param="response_format"), status=400)
            if name in body:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                code = "unsupported_parameter"
                return web.json_response(_error(message, param=name, code=code), status=400)
        return None


def _error(message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


_SIMPLE_FAULTS: dict[str, Reply] = {
    "400": Reply(status=400, body=_error("Bad request")),
    "401": Reply(status=401, body=_error("Unauthorized")),
    "403": Reply(status=403, body=_error("Forbidden")),
    "404": Reply(status=404, body=_error("The model does not exist", code="model_not_found")),
    "500": Reply(status=500, body=_error("The server had an error")),
    "503": Reply(status=503, body=b"<html>Service Unavailable</html>", headers={"content-type": "text/html"}),
    "disconnect": Reply(),
    "garbage": Reply(body=b"\x00{]garbage", headers={"content-type": "application/json"}),
    "not_utf8": Reply(body=b'{"choices":[{"message":{"content":"\xff\xfe\xfa"}}]}'),
    "oversized": Reply(content="x" * 4_000_000),
    "no_choices": Reply(body={"id": "chatcmpl-fake", "choices": []}),
    "prose": Reply(content="I would say that this answer is rather good."),
    "refusal": Reply(refusal="I'm sorry, I cannot assist with that request."),
    "content_filter": Reply(content="", finish_reason="content_filter"),
    "overflow": Reply(
        status=400,
        body=_error(
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
            param="messages",
            code="context_length_exceeded",
        ),
    ),
}


async def _trickle(request: web.Request) -> web.StreamResponse:
    """Headers at once, then a byte now and then, for ever: every single read succeeds."""
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.02)


def _inputs(body: Mapping[str, Any]) -> list[str]:
    given = body["input"]
    return [given] if isinstance(given, str) else [str(item) for item in given]


def _asked_of(body: Mapping[str, Any]) -> str:
    if "input" in body:
        return "\n".join(_inputs(body))
    return "\n".join(str(message["content"]) for message in body["messages"])


def _check_names(what: str, given: Collection[str], known: Collection[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{what} {unknown[0]!r} is not one of {', '.join(known)}")
