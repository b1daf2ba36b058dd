"""Limits of endpoints: requests and tokens a minute, shared by all workers; and who waits for its turn.

What an endpoint and model may be asked is kept in Redis, in a hash `assay:Q:limit:ID` (Q: name of the queue, ID: a hash
of endpoint and model, in which the key is not). A call reserves its turn there, by the server's clock, and waits for
it: the generic cell rate algorithm (ITU-T I.371), which spaces calls evenly. The limit is the least of what is
configured, what the endpoint's headers say, and, where they say nothing, what its refusals (429) teach: a share less at
each, slowly more afterwards (AIMD). Of a limit that is refused all the same less is used.
docs/decisions/0012-limits.md has the reasons.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import re
import time
from collections import defaultdict
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from assay.circuits import SCRIPT as CIRCUIT_SCRIPT
from assay.circuits import CircuitPolicy, Circuits
from assay.connections import connect_async
from assay.errors import JudgeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_log = logging.getLogger(__name__)

_turn: ContextVar[Turn | None] = ContextVar("assay_turn", default=None)

#: Where no limit is known, Redis is asked no more often than this.
_FRESH_SECONDS = 1.0
#: Pause after a 429 that does not say how long.
_PAUSE_SECONDS = 2.0
#: A limit that takes longer to be whole again is not one of a minute, but of a day.
_MINUTE_SECONDS = 65.0
_MOST = 10**12
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


class Turn:
    """Whether a record's calls wait for their turn, for whoever must tell that from a call that hangs."""

    def __init__(self) -> None:
        #: how many of the record's calls wait, as of now
        self.waiting = 0
        #: when one of them last had its turn, by `time.monotonic`; 0: none had to wait
        self.since = 0.0

    def attach(self) -> None:
        """Take note of the calls that this task, and the tasks it starts, will make."""
        _turn.set(self)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """What happens within is waiting for a turn."""
    turn = _turn.get()
    if turn is None:
        yield
        return
    turn.waiting += 1
    try:
        yield
    finally:
        turn.waiting -= 1
        turn.since = time.monotonic()


# -- what endpoints say of their limits


def read_duration(text: str, present: datetime | None = None) -> float | None:
    """Seconds, from `1.5` (seconds), `6m0s`, `20ms`, or a moment in RFC 3339; None if it is none of them."""
    text = text.strip()
    with contextlib.suppress(ValueError):
        seconds = float(text)
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    parts = _DURATION.fullmatch(text)
    if text and parts is not None:
        days, hours, minutes, seconds, millis = (float(part or 0) for part in parts.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + millis / 1000
    try:
        moment = datetime.fromisoformat(text)
        return max(0.0, (moment - (present or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def read_limits(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Requests and tokens a minute that the headers of an answer tell; None: not told, or not of a minute.

    OpenAI and those who do as it does (`x-ratelimit-limit-requests`, with `-reset-` as a duration), Cerebras
    (`x-ratelimit-limit-requests-minute`), Anthropic (`anthropic-ratelimit-requests-limit`, reset as a moment).
    """
    return _read_limit(headers, "requests"), _read_limit(headers, "tokens")


def _read_limit(headers: Mapping[str, str], unit: str) -> int | None:
    for limit, reset in (
        (f"x-ratelimit-limit-{unit}-minute", None),
        (f"x-ratelimit-limit-{unit}", f"x-ratelimit-reset-{unit}"),
        (f"anthropic-ratelimit-{unit}-limit", f"anthropic-ratelimit-{unit}-reset"),
    ):
        told = headers.get(limit)
        if told is None or not told.strip().isdecimal() or not 0 < int(told[:16]) <= _MOST:
            continue
        # Groq tells requests a day by the name by which OpenAI tells those a minute: only the reset gives it away.
        until = read_duration(headers.get(reset, "")) if reset is not None else None
        if until is None or until <= _MINUTE_SECONDS:
            return int(told[:16])
    return None


# -- waiting for a turn


@dataclass(slots=True)
class _Known:
    """What this process knows of one endpoint and model."""

    #: requests and tokens a minute, as last read from Redis; 0: none
    requests: float = 0.0
    tokens: float = 0.0
    #: what headers told, as far as Redis holds it
    told: tuple[int | None, int | None] = (None, None)
    #: until when nobody need be asked, for there is no limit, and how many calls were made meanwhile
    free_until: float = 0.0
    unasked: int = 0
    #: while Redis is away: when the next call may be made
    next_at: float = 0.0
    #: calls may take so many times as many tokens as was guessed
    ratio: float = 1.0


@dataclass(slots=True, kw_only=True)
class Limits:
    """Has every call wait for its turn, and none be made to an endpoint that is down.

    Belongs to the event loop of its first call.

    Args:
        url: of Redis.
        queue: name of the queue.
        requests_per_minute: configured, for each endpoint and model; None: none.
        tokens_per_minute: the same; prompt and completion together.
        wait_seconds: longest wait for a turn; whoever would wait longer is refused.
        circuit: when an endpoint counts as down.
    """

    url: str
    queue: str
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    wait_seconds: float = 60.0
    timeout_seconds: float = 5.0
    circuit: CircuitPolicy = field(default_factory=CircuitPolicy)
    circuits: Circuits = field(init=False)
    _redis: Any = None
    _scripts: dict[str, Any] = field(default_factory=dict)
    _known: defaultdict[str, _Known] = field(default_factory=lambda: defaultdict(_Known))
    _is_away: bool = False

    def __post_init__(self) -> None:
        self.circuits = Circuits(partial(self._ask, "circuit"), self.circuit)

    async def take(self, endpoint: str, tokens: float, *, wait_seconds: float | None = None) -> float:
        """Wait for a turn to ask `endpoint` (its id, see `endpoint_id`); the tokens that were counted.

        Args:
            tokens: a guess of prompt and completion, which is scaled by how good earlier ones were.
            wait_seconds: instead of the longest wait of the settings.

        Raises:
            JudgeError: `rate_limited`, and nothing was asked: the turn is too far off; it says how far.
        """
        known = self._known[endpoint]
        tokens = max(1.0, tokens * known.ratio)
        moment = time.monotonic()
        if moment < known.free_until:
            known.unasked += 1
            return tokens
        if known.free_until:
            # One call asks whether that still holds; those beside it do not wait for the answer.
            known.free_until = moment + _FRESH_SECONDS
        longest = self.wait_seconds if wait_seconds is None else wait_seconds
        unasked, known.unasked = known.unasked, 0
        args = [self.requests_per_minute or 0, self.tokens_per_minute or 0, tokens, longest, unasked]
        reply = await self._ask("take", endpoint, args)
        if reply is None:
            taken, delay = 1, self._alone(known, longest)
        else:
            taken, delay = int(reply[0]), float(reply[1])
            known.requests, known.tokens = float(reply[2]), float(reply[3])
            known.told = _held(known.told[0], known.requests), _held(known.told[1], known.tokens)
            is_free = taken and not delay and not known.requests and not known.tokens
            known.free_until = time.monotonic() + _FRESH_SECONDS if is_free else 0.0
        if not taken or delay > longest:
            raise JudgeError(
                "rate_limited",
                f"not asked: by its rate limit it would be this call's turn in {delay:.0f} s",
                retry_after_seconds=delay,
                free=True,
                unasked=True,
            )
        if delay > 0:
            await asyncio.sleep(delay)
        return tokens

    async def settle(self, endpoint: str, counted: float, used: float | None) -> None:
        """A call took so many tokens, where `counted` were counted; None: not known."""
        known = self._known[endpoint]
        if used is None:
            return
        known.ratio = min(20.0, max(0.05, known.ratio * (1 + 0.1 * (used / counted - 1))))
        if known.tokens:
            await self._ask("settle", endpoint, [used - counted, known.tokens])

    async def learn(self, endpoint: str, headers: Mapping[str, str]) -> None:
        """What an answer's headers tell of limits; it is told to all workers when it is news."""
        told = read_limits(headers)
        known = self._known[endpoint]
        if told == (None, None) or told == known.told:
            return
        if await self._ask("learn", endpoint, [told[0] or 0, told[1] or 0]) is not None:
            known.told, known.free_until = told, 0.0

    async def limited(self, endpoint: str, retry_after_seconds: float | None) -> None:
        """The endpoint has answered 429. Where it does so often, nobody asks it before the time that it asked for."""
        seconds = _PAUSE_SECONDS if retry_after_seconds is None else retry_after_seconds
        known = self._known[endpoint]
        known.free_until = 0.0
        known.next_at = time.monotonic() + seconds
        unasked, known.unasked = known.unasked, 0
        await self._ask("limited", endpoint, [seconds, unasked])

    async def aclose(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None

    def _alone(self, known: _Known, longest: float) -> float:
        """Seconds until this process's turn by what it knew last, while Redis is away; others are not known of."""
        moment = time.monotonic()
        delay = max(0.0, known.next_at - moment)
        if delay <= longest and known.requests:
            known.next_at = max(moment, known.next_at) + 60.0 / known.requests
        return delay

    async def _ask(self, script: str, endpoint: str, args: list[float]) -> Any:
        """The script's reply; None while Redis is away."""
        from redis.exceptions import RedisError

        try:
            if self._redis is None:
                self._redis = connect_async(self.url, timeout_seconds=self.timeout_seconds, max_connections=8)
                self._scripts = {name: self._redis.register_script(text) for name, text in _SCRIPTS.items()}
            reply = await self._scripts[script](
                keys=[f"assay:{self.queue}:{_KEYS.get(script, 'limit')}:{endpoint}"], args=args
            )
        except (RedisError, OSError) as error:
            if not self._is_away:
                _log.warning("rate limits and circuits are not shared: Redis is away", extra={"error": str(error)})
            self._is_away = True
            return None
        self._is_away = False
        return reply


def _held(told: int | None, counts: float) -> int | None:
    """What headers told of a limit, where the limit that counts in Redis shows it; else they are to tell it anew.

    Redis may have been emptied, or somebody else may have been told another limit since.
    """
    return told if told is not None and 0 < counts <= told else None


def endpoint_id(base_url: str, model: str) -> str:
    """Identifies an endpoint and model in Redis."""
    return hashlib.sha256(f"{base_url.rstrip('/')}\0{model}".encode()).hexdigest()[:32]


# Lua. One key: a hash of what is known of an endpoint and model. Rates are a minute. 3 % of a limit are left for the
# way, on which calls that leave evenly do not arrive so; more after a refusal, for some endpoints count otherwise than
# they report: a prompt by its characters, a reply by its bound.
_COMMON = """
local KEY = KEYS[1]
local parts = redis.call('TIME')
local time = tonumber(parts[1]) + tonumber(parts[2]) / 1000000
local known = {}
local flat = redis.call('HGETALL', KEY)
for i = 1, #flat, 2 do known[flat[i]] = tonumber(flat[i + 1]) end

local function text(number) return string.format('%.6f', number) end
local function set(...)
  redis.call('HSET', KEY, ...)
  redis.call('EXPIRE', KEY, 86400)
end

-- What refusals have taught: it grows by a hundredth of itself a second, and is forgotten once it is five times that.
local function taught()
  if not known.cut then return 0 end
  local grown = known.cut * (1 + math.max(0, time - known.cut_at) / 100)
  return grown < 5 * known.cut and grown or 0
end

local function share()
  return math.min(0.97, (known.share or 0.97) + math.max(0, time - (known.share_at or time)) / 1000)
end

local function least(...)
  local found = 0
  for _, limit in ipairs({ ... }) do
    if limit > 0 and (found == 0 or limit < found) then found = limit end
  end
  return found
end

-- Calls are counted in halves of a minute, and, with those that were refused, such that they fade within ten seconds.
local function count(calls, refused)
  local half, now, before = math.floor(time / 30), known.calls or 0, known.calls_before or 0
  if known.half ~= half then
    before = known.half == half - 1 and now or 0
    now = 0
  end
  local left = math.exp(-math.max(0, time - (known.lately_at or time)) / 10)
  known.half, known.calls, known.calls_before, known.began = half, now + calls, before, known.began or time
  known.lately_calls = (known.lately_calls or 0) * left + calls
  known.lately_refused = (known.lately_refused or 0) * left + refused
  set('half', half, 'calls', known.calls, 'calls_before', before, 'began', text(known.began), 'lately_at', text(time),
    'lately_calls', text(known.lately_calls), 'lately_refused', text(known.lately_refused))
end
"""

_KEYS = {"circuit": "circuit"}
_SCRIPTS: Final[dict[str, str]] = {
    "circuit": CIRCUIT_SCRIPT,
    # Whether the turn is reserved, seconds until it, and the limits that count.
    "take": _COMMON
    + """
local own_requests, own_tokens, tokens, wait, unasked = unpack(ARGV)
local requests = least(tonumber(own_requests), known.requests or 0, (known.requests or known.tokens) and 0 or taught())
local limit = least(tonumber(own_tokens), known.tokens or 0)
tokens = tonumber(tokens)
local at = math.max(time, known.pause or 0)
if requests > 0 then at = math.max(at, known.next_request or 0) end
if limit > 0 then at = math.max(at, known.next_tokens or 0) end
local reply = { 1, text(at - time), text(requests), text(limit) }
if at - time > tonumber(wait) then
  reply[1] = 0
  if tonumber(unasked) > 0 then count(tonumber(unasked), 0) end
  return reply
end
count(1 + tonumber(unasked), 0)
if requests > 0 then set('next_request', text(at + 60 / (requests * share()))) end
if limit > 0 then set('next_tokens', text(at + tokens * 60 / (limit * share()))) end
return reply
""",
    "settle": _COMMON
    + """
if known.next_tokens then
  set('next_tokens', text(known.next_tokens + tonumber(ARGV[1]) * 60 / (tonumber(ARGV[2]) * share())))
end
return 1
""",
    "learn": _COMMON
    + """
for i, name in ipairs({ 'requests', 'tokens' }) do
  if tonumber(ARGV[i]) > 0 then set(name, ARGV[i]) end
end
return 1
""",
    "limited": _COMMON
    + """
local pause = time + tonumber(ARGV[1])
count(tonumber(ARGV[2]), 1)
-- A refusal now and then is no limit, and nobody waits but who was refused: from less than a tenth one would learn to
-- ask ever less. Few calls show a tenth only with what chance may add to it, by the normal approximation.
local calls = math.max(known.lately_calls, known.lately_refused)
if known.lately_refused <= 0.1 * calls + 2.5 * math.sqrt(0.1 * 0.9 * calls) then return 0 end
-- Those that were under way at a cut are refused as well: they teach nothing new.
if known.lately_refused > 2.5 and time >= (known.cut_at or 0) + 5 then
  local seconds = math.max(1, math.min(30 + time % 30, time - known.began))
  local measured = (known.calls + known.calls_before) * 60 / seconds
  set('share', text(math.max(0.1, 0.85 * share())), 'share_at', text(pause))
  set('cut', text(math.max(1, 0.7 * least(measured, taught()))), 'cut_at', text(pause))
end
if pause > (known.pause or 0) then set('pause', text(pause)) end
return 1
""",
}
