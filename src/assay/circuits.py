"""Circuit breakers of endpoints, shared by all workers: an endpoint that is down is not asked, but for a probe.

What came of the calls of an endpoint and model is counted in Redis, in a hash `assay:Q:circuit:ID`, in slots of a
window. When most of the calls that ended in the window found it away (`DOWN`), the circuit opens: no worker makes a
call, until a probe, one in a while over all workers, gets an answer. While Redis is away each process counts by itself.
docs/decisions/0012-limits.md has the reasons.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from assay.errors import JudgeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

#: Outcomes of a call whose endpoint is away; any other is an answer.
DOWN = frozenset({"unavailable", "timeout"})
#: Not outcomes of the endpoint.
_SAYS_NOTHING = frozenset({"cancelled", "internal"})
#: How long a process believes that a circuit is as it saw it.
_FRESH_SECONDS = 0.5
_SLOTS = 6
#: The longest that a record is sent back for: the longer it has been open, the longer.
_LONGEST_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitPolicy:
    """When a circuit opens, and how often an open one is probed."""

    #: length of the window
    seconds: float = 30.0
    #: so many calls must have ended in it
    calls: int = 10
    #: and this share of them must have found the endpoint away
    share: float = 0.8
    probe_seconds: float = 5.0


@dataclass(slots=True)
class _Tally:
    """The same as the script counts, by this process alone."""

    slots: dict[int, tuple[int, int]] = field(default_factory=dict)
    opened_at: float | None = None
    probe_at: float = 0.0

    def tell(
        self, policy: CircuitPolicy, moment: float, answered: int, away: int, *, probe_answered: bool, wants: bool
    ) -> list[float]:
        """See the script."""
        changed = 0
        if self.opened_at is not None:
            if probe_answered:
                self.slots, self.opened_at, changed = {}, None, -1
        else:
            slot = int(moment // (policy.seconds / _SLOTS))
            before = self.slots.get(slot, (0, 0))
            self.slots[slot] = (before[0] + answered, before[1] + away)
            self.slots = {number: counts for number, counts in self.slots.items() if number > slot - _SLOTS}
            ended = sum(sum(counts) for counts in self.slots.values())
            if ended >= policy.calls and sum(bad for _, bad in self.slots.values()) >= policy.share * ended:
                self.slots, self.opened_at, changed = {}, moment, 1
                self.probe_at = moment + policy.probe_seconds
        if self.opened_at is None:
            return [0, 0, 0, changed]
        if wants and moment >= self.probe_at:
            self.probe_at = moment + policy.probe_seconds
            return [2, 0, moment - self.opened_at, changed]
        return [1, max(0.0, self.probe_at - moment), moment - self.opened_at, changed]


@dataclass(slots=True)
class _Seen:
    """What this process knows of one circuit. Moments are in the event loop's time."""

    is_open: bool = False
    #: until then it is believed to be so
    fresh_until: float = 0.0
    open_seconds: float = 0.0
    #: calls that ended and were not told yet
    answered: int = 0
    away: int = 0
    #: when this process was first let probe since it opened: whatever it has asked from then on is a probe
    probing_since: float | None = None
    tally: _Tally = field(default_factory=_Tally)


class Circuits:
    """Refuses calls to endpoints that are down. Belongs to one event loop.

    `share` runs the script for an endpoint and returns its reply, or None while Redis is away.
    """

    def __init__(self, share: Callable[[str, list[float]], Awaitable[Any]], policy: CircuitPolicy) -> None:
        self._share = share
        self._policy = policy
        self._seen: defaultdict[str, _Seen] = defaultdict(_Seen)

    def is_open(self, endpoint: str) -> bool:
        """Whether the circuit was open when last looked at."""
        return endpoint in self._seen and self._seen[endpoint].is_open

    async def admit(self, endpoint: str, judge: str, *, probe: bool) -> None:
        """Returns where a call may be made; with `probe` it may be the one that shows whether the endpoint is back.

        Raises:
            JudgeError: `unavailable`, and nothing was asked: the circuit is open.
        """
        seen = self._seen[endpoint]
        moment = asyncio.get_running_loop().time()
        if moment < seen.fresh_until:
            if seen.is_open:
                raise self.refusal(endpoint, seen.fresh_until - moment)
            return
        state, wait = await self._tell(endpoint, judge, seen, wants=probe)
        if state == 1 and (probe or wait > 0):
            raise self.refusal(endpoint, wait)

    async def ended(self, endpoint: str, judge: str, began: float, outcome: str) -> None:
        """A call that began at a moment of the event loop's time ended so: `ok`, a failure kind, or `cancelled`."""
        if outcome in _SAYS_NOTHING:
            return
        seen = self._seen[endpoint]
        seen.away += outcome in DOWN
        seen.answered += outcome not in DOWN
        is_probe = seen.probing_since is not None and began >= seen.probing_since
        probe_answered = is_probe and outcome not in DOWN
        # That one was answered can wait until more is to be told.
        if outcome in DOWN or probe_answered or asyncio.get_running_loop().time() >= seen.fresh_until:
            await self._tell(endpoint, judge, seen, probe_answered=probe_answered)

    def refusal(self, endpoint: str, wait: float = 0.0) -> JudgeError:
        """What is raised for a call that is not made while the circuit is open."""
        seen = self._seen[endpoint]
        # The longer it lasts, the less often the queue is carried round.
        longer = min(_LONGEST_SECONDS, seen.open_seconds / 2)
        return JudgeError(
            "unavailable",
            f"not asked: its endpoint is down, the circuit has been open for {seen.open_seconds:.0f} s",
            retry_after_seconds=max(0.1, wait, longer),
            free=True,
            unasked=True,
        )

    async def _tell(
        self, endpoint: str, judge: str, seen: _Seen, *, probe_answered: bool = False, wants: bool = False
    ) -> tuple[int, float]:
        """Tell what ended, hear how things are: 0 closed, 1 open, 2 open and ours to probe; seconds until a probe."""
        policy, loop = self._policy, asyncio.get_running_loop()
        answered, away = seen.answered, seen.away
        seen.answered = seen.away = 0
        if seen.fresh_until and not seen.is_open:
            # Those beside this call go by what was known, and do not ask as well.
            seen.fresh_until = loop.time() + _FRESH_SECONDS
        given = [answered, away, probe_answered, wants, policy.seconds, policy.calls, policy.share]
        reply = await self._share(endpoint, [*map(float, given), policy.probe_seconds])
        if reply is None:
            reply = seen.tally.tell(policy, loop.time(), answered, away, probe_answered=probe_answered, wants=wants)
        state, wait, open_seconds, changed = int(reply[0]), float(reply[1]), float(reply[2]), int(reply[3])
        seen.is_open, seen.open_seconds = state > 0, open_seconds
        seen.fresh_until = loop.time() + (_FRESH_SECONDS if state == 0 else min(_FRESH_SECONDS, wait))
        if state == 0 or changed > 0:
            seen.probing_since = None
        elif state == 2 and seen.probing_since is None:
            # The first: those after it are let go while it is still under way, and an answer to any of them counts.
            seen.probing_since = loop.time()
        if changed > 0:
            _log.error("circuit opened: the endpoint of a judge is down", extra={"judge": judge})
        elif changed < 0:
            _log.warning("circuit closed: the endpoint of a judge answers again", extra={"judge": judge})
        return state, wait


#: Lua. One key: a hash of the slots of the window (`ok:N`, `bad:N`), `opened` and `probe`. Returns the state, seconds
#: until a probe, seconds for which it has been open, and whether this has opened (1) or closed (-1) it.
SCRIPT: Final = f"""
local KEY, SLOTS = KEYS[1], {_SLOTS}
local answered, away, probe_answered, wants = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local window, calls, share, pause = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local parts = redis.call('TIME')
local time = tonumber(parts[1]) + tonumber(parts[2]) / 1000000
local function text(number) return string.format('%.6f', number) end

local opened = tonumber(redis.call('HGET', KEY, 'opened') or nil)
local changed = 0
if opened then
  if probe_answered == 1 then
    redis.call('DEL', KEY)
    opened, changed = nil, -1
  end
elseif answered + away > 0 then
  local slot = math.floor(time / (window / SLOTS))
  redis.call('HINCRBY', KEY, 'ok:' .. slot, answered)
  redis.call('HINCRBY', KEY, 'bad:' .. slot, away)
  redis.call('EXPIRE', KEY, math.ceil(window * 2))
  local counts = {{ ok = 0, bad = 0 }}
  local flat = redis.call('HGETALL', KEY)
  for i = 1, #flat, 2 do
    local kind, number = string.match(flat[i], '^(%a+):(%d+)$')
    if kind and tonumber(number) > slot - SLOTS then
      counts[kind] = counts[kind] + tonumber(flat[i + 1])
    elseif kind then
      redis.call('HDEL', KEY, flat[i])
    end
  end
  local ended = counts.ok + counts.bad
  if ended >= calls and counts.bad >= share * ended then
    redis.call('DEL', KEY)
    redis.call('HSET', KEY, 'opened', text(time), 'probe', text(time + pause))
    opened, changed = time, 1
  end
end
if not opened then return {{ 0, '0', '0', changed }} end
redis.call('EXPIRE', KEY, 86400)
local probe = tonumber(redis.call('HGET', KEY, 'probe'))
if wants == 1 and time >= probe then
  redis.call('HSET', KEY, 'probe', text(time + pause))
  return {{ 2, '0', text(time - opened), changed }}
end
return {{ 1, text(math.max(0, probe - time)), text(time - opened), changed }}
"""
