"""A judge server that is never the bottleneck: OpenAI-compatible, several thousand requests a second on one core.

`assay.testing.FakeJudgeServer` is for tests: it draws verdicts and plays every fault. This one is for measuring: bare
asyncio, replies of a realistic length from a function, kept by schema. What it answers to is a plug-in, so that one
server serves assay and other libraries alike:

    python benchmarks/judge_server.py --latency 0.6                    # prints its base URL, then serves
    python benchmarks/judge_server.py --latency 0.6 --sigma 0.5        # log-normal around a median of 0.6 s
    python benchmarks/judge_server.py --faults 429=0.05,500=0.05 --requests-per-minute 6000
    python benchmarks/judge_server.py --replier my_module:my_function
    python benchmarks/judge_server.py --measure                        # how many requests a second it can answer

Embeddings are answered too, all alike, after a sixth of the latency. GET /traffic tells calls (embeddings among them,
and apart), tokens (characters / 4, and by o200k where `--o200k` is given), faults played, and the most calls in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib
import json
import math
import random
import re
import resource
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

Body = Mapping[str, Any]
#: From a request's body to the assistant's message: a text, or a whole message where it holds tool calls.
Replier = Callable[[Body], "str | dict[str, Any]"]

#: Characters of a reply to four rubrics, about 244 tokens: what real judges write under assay's prompt.
REPLY_CHARACTERS = 976
#: Items of an array of objects, such as the claims of an answer.
_ITEMS = 3
#: What a quote is longer than its place.
_QUOTE_CHARACTERS = 42
_FILLER = "the passage says so in its second sentence and the answer keeps to it in number, unit and condition; "
#: What real endpoints take for an embedding, against a verdict.
EMBEDDING_SHARE = 1 / 6
_EMBEDDING = [0.02] * 1536
_GOOD = ("pass", "supported", "yes", "true", "relevant", "factual", "correct")
FAULTS = {
    "429": (429, {"message": "Rate limit reached", "code": "rate_limit_exceeded"}),
    "500": (500, {"message": "The server had an error", "code": None}),
    "503": (503, {"message": "The engine is overloaded", "code": None}),
    "garbage": (200, None),
    "hang": (0, None),
}


# -- what is answered


def by_schema(body: Body, characters: int = REPLY_CHARACTERS) -> str | dict[str, Any]:
    """An instance of the schema that the request asks for, by response format, tool or legacy function."""
    tools = body.get("tools") or [{"function": function} for function in body.get("functions") or ()]
    wanted = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
    quote = _quotable(body)
    if wanted is None and tools:
        function = tools[0]["function"]
        arguments = _filled(json.dumps(function.get("parameters") or {}), characters, quote)
        call = {"id": "call_0", "type": "function", "function": {"name": function["name"], "arguments": arguments}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if wanted is None:
        return "The answer is supported by the passages. " + _FILLER * max(0, characters // len(_FILLER) - 1)
    return _filled(json.dumps(wanted), characters, quote)


def _filled(schema: str, characters: int, quote: str) -> str:
    return _template(schema, characters).replace('"\\u0000"', json.dumps(quote))


@lru_cache(maxsize=4096)
def _template(text: str, characters: int) -> str:
    """JSON of an instance in which free texts are as long as it takes; a quote is left to be filled in."""
    schema = json.loads(text)
    bare = json.dumps(_instance(schema, schema, ""))
    places = json.dumps(_instance(schema, schema, "\x01")).count("\\u0001")
    quotes = bare.count('"\\u0000"') * _QUOTE_CHARACTERS
    length = max(1, (characters - len(bare) - quotes) // max(1, places))
    filler = (_FILLER * (length // len(_FILLER) + 1))[:length].strip()
    return json.dumps(_instance(schema, schema, filler))


def _instance(part: Any, root: Any, filler: str, name: str = "") -> Any:
    if "$ref" in part:
        target = root
        for step in part["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return _instance(target, root, filler, name)
    several = part.get("anyOf") or part.get("oneOf") or part.get("allOf")
    if several:
        options = [option for option in several if option.get("type") != "null"] or several
        return _instance(options[0], root, filler, name)
    if "const" in part or "enum" in part:
        return part["const"] if "const" in part else _best(part["enum"])
    kind = part.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind == "object" or "properties" in part:
        return {key: _instance(inner, root, filler, key) for key, inner in part.get("properties", {}).items()}
    if kind == "array":
        items = part.get("items") or {"type": "string"}
        flat = items.get("type") == "string"
        return [_instance(items, root, filler) for _ in range(part.get("minItems", 0) if flat else _ITEMS)]
    if kind in ("integer", "number"):
        return part.get("maximum", part.get("minimum", 1))
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    return "\x00" if name == "quote" else filler


def _best(choices: list[Any]) -> Any:
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices):
        return max(choices)
    return next((choice for choice in choices if str(choice).lower() in _GOOD), choices[0])


def _quotable(body: Body) -> str:
    """A few words that stand in the first context of assay's prompt; else no quote."""
    found = re.search(r"^=== (\w+) context 1 ===\n", text := str(body["messages"][-1].get("content")), re.MULTILINE)
    return " ".join(text[found.end() : found.end() + 200].split()[:8]) if found else "no context to quote"


# -- how it is answered


class Judge:
    """What all connections share: the settings, the counts, the rate limit."""

    def __init__(
        self,
        *,
        latency_seconds: float = 0.0,
        sigma: float = 0.0,
        faults: Mapping[str, float] | None = None,
        requests_per_minute: float = 0.0,
        replier: Replier = by_schema,
        seed: int = 0,
        o200k: bool = False,
    ) -> None:
        self.latency_seconds = latency_seconds
        self.sigma = sigma
        self.faults = dict(faults or {})
        if unknown := sorted(set(self.faults) - set(FAULTS)):
            raise ValueError(f"fault {unknown[0]!r} is not one of {', '.join(FAULTS)}")
        self.replier = replier
        self.calls = self.prompt_tokens = self.completion_tokens = self.in_flight = self.max_in_flight = 0
        self.embedding_calls = self.embedding_tokens = 0
        self.o200k_prompt_tokens = self.o200k_completion_tokens = 0
        self.played: Counter[str] = Counter()
        self._rate = requests_per_minute / 60
        self._tokens, self._filled_at = max(1.0, self._rate), time.monotonic()
        self._random = random.Random(seed)
        self._encode = _o200k() if o200k else None

    def traffic(self) -> dict[str, Any]:
        """All counts so far."""
        names: tuple[str, ...] = ("calls", "prompt_tokens", "completion_tokens", "in_flight", "max_in_flight")
        names += ("embedding_calls", "embedding_tokens")
        counts = {name: getattr(self, name) for name in names}
        if self._encode is not None:
            counts["o200k_prompt_tokens"] = self.o200k_prompt_tokens
            counts["o200k_completion_tokens"] = self.o200k_completion_tokens
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {**counts, "played": dict(self.played), "cpu_seconds": used.ru_utime + used.ru_stime}

    def delay(self) -> float:
        """Seconds until the answer; their median is `latency_seconds`."""
        if not self.sigma:
            return self.latency_seconds
        return self.latency_seconds * math.exp(self._random.gauss(0.0, self.sigma))

    def wait_for_token(self) -> float:
        """Seconds until another request would be let in; 0 when this one is."""
        if not self._rate:
            return 0.0
        moment = time.monotonic()
        self._tokens = min(max(1.0, self._rate), self._tokens + (moment - self._filled_at) * self._rate)
        self._filled_at = moment
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate

    def draw(self) -> str:
        """The fault to play, or `ok`."""
        if self.faults:
            point = self._random.random()
            for name, share in self.faults.items():
                point -= share
                if point < 0:
                    return name
        return "ok"

    def complete(self, raw: bytes) -> bytes:
        """The body of a good answer."""
        body = json.loads(raw)
        contents = [message.get("content") for message in body["messages"]]
        texts = [content if isinstance(content, str) else json.dumps(content) for content in contents]
        # What a real endpoint charges for beside the messages.
        texts += [json.dumps(body[name]) for name in ("tools", "functions") if body.get(name)]
        made = self.replier(body)
        # A prompt is paid once, and each of several answers to it.
        answers = max(1, body.get("n") or 1)
        message = made if isinstance(made, dict) else {"role": "assistant", "content": made, "refusal": None}
        written = made if isinstance(made, str) else _written(made)
        prompt, completion = sum(map(len, texts)) // 4, answers * (len(written) // 4)
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        if self._encode is not None:
            self.o200k_prompt_tokens += sum(len(self._encode(text)) for text in texts)
            self.o200k_completion_tokens += answers * len(self._encode(written))
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        return json.dumps(
            {
                "id": "chatcmpl-benchmark",
                "object": "chat.completion",
                "created": 0,
                "model": str(body.get("model")),
                "choices": [{"index": index, "message": message, "finish_reason": reason} for index in range(answers)],
                "usage": {
                    "prompt_tokens": prompt,
                    "completion_tokens": completion,
                    "total_tokens": prompt + completion,
                },
            }
        ).encode()

    def embed(self, raw: bytes) -> bytes:
        """A vector for each text, as numbers or in base64, as asked."""
        body = json.loads(raw)
        given = body["input"]
        texts = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
        tokens = sum(len(text) // 4 if isinstance(text, str) else len(text) for text in texts)
        self.embedding_calls += 1
        self.embedding_tokens += tokens
        vector: Any = _EMBEDDING
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(_EMBEDDING)}f", *_EMBEDDING)).decode()
        return json.dumps(
            {
                "object": "list",
                "model": str(body.get("model")),
                "data": [{"object": "embedding", "index": i, "embedding": vector} for i in range(len(texts))],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        ).encode()


def _written(message: Mapping[str, Any]) -> str:
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return "".join(f"{function['name']}{function['arguments']}" for function in functions) or str(message["content"])


def _o200k() -> Callable[[str], list[int]]:
    try:
        import tiktoken
    except ImportError:
        raise SystemExit("--o200k needs tiktoken: pip install tiktoken") from None
    return tiktoken.get_encoding("o200k_base").encode


class Connection(asyncio.Protocol):
    """HTTP/1.1, one request at a time on each connection, as clients do."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._buffer = bytearray()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._busy:
            self._busy = False
            self._judge.in_flight -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy:
            self._next()

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end])
        lower = head.lower()
        if b"\r\nexpect: 100" in lower:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"\r\ntransfer-encoding:" in lower:
            body, used = _chunks(self._buffer, end + 4)
            if used < 0:
                return
        else:
            found = re.search(rb"\r\ncontent-length:\s*(\d+)", lower)
            used = end + 4 + (int(found[1]) if found else 0)
            if len(self._buffer) < used:
                return
            body = bytes(self._buffer[end + 4 : used])
        del self._buffer[:used]
        self._request(head, body)

    def _request(self, head: bytes, body: bytes) -> None:
        method, path = head.split(b" ", 2)[:2]
        if method == b"GET":
            known = {"object": "list", "data": [{"id": "benchmark", "object": "model"}]}
            self._send(200, json.dumps(self._judge.traffic() if path.startswith(b"/traffic") else known).encode())
            return
        judge = self._judge
        judge.calls += 1
        judge.in_flight += 1
        judge.max_in_flight = max(judge.max_in_flight, judge.in_flight)
        self._busy = True
        wait = judge.wait_for_token()
        fault = "429" if wait else judge.draw()
        judge.played[fault] += 1
        if fault == "hang":
            return
        if fault in ("429", "500", "503"):
            status, error = FAULTS[fault]
            headers = f"retry-after-ms: {max(1, round(wait * 1000))}\r\n" if fault == "429" else ""
            self._answer(status, json.dumps({"error": error}).encode(), headers)
            return
        embeds = path.endswith(b"/embeddings")
        answer = b"\x00{]garbage" if fault == "garbage" else (judge.embed if embeds else judge.complete)(body)
        delay = judge.delay() * (EMBEDDING_SHARE if embeds else 1.0)
        if delay > 0:
            self._timer = asyncio.get_running_loop().call_later(delay, self._answer, 200, answer)
        else:
            self._answer(200, answer)

    def _answer(self, status: int, body: bytes, headers: str = "") -> None:
        self._busy = False
        self._judge.in_flight -= 1
        self._send(status, body, headers)
        if self._buffer:
            self._next()

    def _send(self, status: int, body: bytes, headers: str = "") -> None:
        head = f"HTTP/1.1 {status} Benchmark\r\ncontent-type: application/json\r\n{headers}"
        head += f"content-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def _chunks(buffer: bytearray, at: int) -> tuple[bytes, int]:
    """A chunked body and where it ends; -1 while it is not complete."""
    parts = []
    while True:
        line = buffer.find(b"\r\n", at)
        if line < 0:
            return b"", -1
        size = int(bytes(buffer[at:line]).split(b";")[0], 16)
        at = line + 2 + size + 2
        if len(buffer) < at:
            return b"", -1
        if not size:
            return b"".join(parts), at
        parts.append(bytes(buffer[line + 2 : line + 2 + size]))


async def serve(judge: Judge, host: str, port: int) -> asyncio.Server:
    """Listen; the port is that of the server's first socket."""
    return await asyncio.get_running_loop().create_server(lambda: Connection(judge), host, port, backlog=4096)


async def _run(judge: Judge, host: str, port: int) -> None:
    server = await serve(judge, host, port)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sys.stdout.write(f"http://{host}:{server.sockets[0].getsockname()[1]}/v1\n")
    sys.stdout.flush()
    await stop.wait()
    server.close()


def measure(records: int = 4000) -> dict[str, float]:
    """Requests a second of server CPU, one process that is asked by another: what it can do before it is the limit."""
    import subprocess
    import urllib.request

    from throughput import bodies, raw_floor

    server = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()

        def cpu() -> float:
            with urllib.request.urlopen(url.removesuffix("/v1") + "/traffic", timeout=10) as answer:
                return float(json.load(answer)["cpu_seconds"])

        sent = bodies(200) * (records // 200)
        before, begun = cpu(), time.perf_counter()
        asyncio.run(raw_floor(url, sent, 64))
        wall, used = time.perf_counter() - begun, cpu() - before
    finally:
        server.terminate()
        server.wait()
    return {"requests_per_second": len(sent) / wall, "requests_per_cpu_second": len(sent) / used}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds; the median where --sigma is given")
    parser.add_argument("--sigma", type=float, default=0.0, help="of the latency's logarithm; 0: all take the same")
    parser.add_argument("--faults", default="", help=f"shares by name, such as 429=0.05; of {', '.join(FAULTS)}")
    parser.add_argument("--requests-per-minute", type=float, default=0.0, help="0: no limit; what is over it gets 429")
    parser.add_argument("--replier", help="module:function from a request's body to the text of the answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--o200k", action="store_true", help="count tokens with tiktoken too (slower)")
    parser.add_argument("--measure", action="store_true", help="print how much it can do, then end")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure()))
        return
    replier: Replier = by_schema
    if given.replier:
        module, _, name = given.replier.partition(":")
        replier = getattr(importlib.import_module(module), name)
    faults = {name: float(share) for name, _, share in (p.partition("=") for p in given.faults.split(",") if p)}
    judge = Judge(
        latency_seconds=given.latency,
        sigma=given.sigma,
        faults=faults,
        requests_per_minute=given.requests_per_minute,
        replier=replier,
        seed=given.seed,
        o200k=given.o200k,
    )
    asyncio.run(_run(judge, given.host, given.port))


if __name__ == "__main__":
    main()
