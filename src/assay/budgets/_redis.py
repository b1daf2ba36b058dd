"""What is spent and reserved, in Redis: `RedisPurse` for whoever asks a judge, `Ledger` for those who only look."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from assay.budgets._limits import FREE_JUDGES, thinning
from assay.budgets._purse import Reservation
from assay.connections import connect, connect_async
from assay.errors import BudgetSpentError, JudgeError, QueueError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from assay.budgets._limits import Budgets, Meter
    from assay.records import Usage

_log = logging.getLogger(__name__)

#: How long what a process knows of the budgets is good for, for thinning.
_FRESH_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Where one limit stands in its present window. Amounts are in US dollars or tokens, as `meter.unit` says."""

    meter: Meter
    limit: float
    spent: float
    #: held for requests that are under way
    reserved: float
    window_start: datetime
    resets_at: datetime

    @property
    def left(self) -> float:
        """What may still be reserved; 0 where more was used than the limit is now."""
        return max(0.0, self.limit - self.spent - self.reserved)

    @property
    def used(self) -> float:
        """Share of the limit that is spent, without what is reserved; 1 or more: all of it."""
        return self.spent / self.limit if self.limit else 1.0


class Ledger:
    """What is spent, for those who only look: thinning, the exporter, `assay budget`. Thread-safe.

    Args:
        budgets: what to look for.
        redis: a `redis.Redis`.
        queue: name of the queue that the budgets belong to.
    """

    def __init__(self, budgets: Budgets, redis: Any, queue: str) -> None:
        self.budgets = budgets
        self._redis = redis
        self._keys = _keys(queue, budgets.meters)
        self._script = redis.register_script(_SCRIPTS["balances"])
        self._lock = threading.Lock()
        self._known: tuple[float, list[Balance]] | None = None

    @classmethod
    def from_url(cls, budgets: Budgets, url: str, queue: str, *, timeout_seconds: float = 5.0) -> Ledger:
        """Over the server at `url`; connects at the first call.

        Raises:
            SettingsError: the URL cannot be one.
        """
        redis = connect(url, timeout_seconds=timeout_seconds)
        return cls(budgets, redis, queue)

    def balances(self, *, at: float | None = None) -> list[Balance]:
        """Every limit, in the order of the budgets; at the server's time unless `at` (epoch seconds) is given.

        Raises:
            QueueError: Redis is away.
        """
        from redis.exceptions import RedisError

        meters = self.budgets.meters
        periods = [meter.budget.per for meter in meters]
        try:
            rows = self._script(keys=self._keys, args=["" if at is None else at, *periods])
        except (RedisError, OSError) as error:
            raise QueueError(f"Redis: {str(error) or type(error).__name__}") from error
        return [
            Balance(
                meter=meter,
                limit=meter.plain(meter.limit),
                spent=meter.plain(int(spent)),
                reserved=meter.plain(int(reserved)),
                window_start=datetime.fromtimestamp(int(start), UTC),
                resets_at=datetime.fromtimestamp(int(end), UTC),
            )
            for meter, (start, end, spent, reserved) in zip(meters, rows, strict=True)
        ]

    def probability(self, *, app: str, rubric: str, judge: str) -> float:
        """Probability with which a record is to be judged now; what is spent may be a second old.

        Raises:
            QueueError: Redis is away.
        """
        if judge in FREE_JUDGES:
            return 1.0
        return min(
            (
                thinning(balance.used, start=self.budgets.thin_from, least=self.budgets.thin_least)
                for balance in self._fresh()
                if balance.meter.budget.covers(app=app, rubric=rubric, judge=judge)
            ),
            default=1.0,
        )

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._redis.close()

    def _fresh(self) -> list[Balance]:
        moment = time.monotonic()
        with self._lock:
            if self._known is None or moment - self._known[0] >= _FRESH_SECONDS:
                self._known = (moment, self.balances())
            return self._known[1]


class RedisPurse:
    """A `Purse` that all processes share. It belongs to the event loop of its first call.

    Args:
        budgets: the limits.
        url: of Redis.
        queue: name of the queue that the budgets belong to.
        wait_seconds: how long to wait while only what others hold stands in the way; longer than requests take.
        timeout_seconds: of each connect to Redis, and each reply.
        clock: epoch seconds, instead of the server's clock.
    """

    def __init__(
        self,
        budgets: Budgets,
        url: str,
        queue: str,
        *,
        wait_seconds: float = 90.0,
        timeout_seconds: float = 5.0,
        clock: Callable[[], float | str] = lambda: "",
    ) -> None:
        self._clock = clock
        self._budgets = budgets
        self._url = url
        self._queue = queue
        self._wait_seconds = wait_seconds
        self._timeout_seconds = timeout_seconds
        self._redis: Any = None
        self._scripts: dict[str, Any] = {}

    async def reserve(
        self,
        *,
        app: str,
        rubrics: Sequence[str],
        judge: str,
        bound: Usage,
        lease_seconds: float,
        wait_seconds: float | None = None,
    ) -> Reservation | None:
        """See `Purse.reserve`. None where no budget covers it."""
        shares = self._shares(app, rubrics, judge)
        if not shares:
            return None
        amounts = [_bounded(meter, bound, share, rubrics) for meter, share in shares]
        reservation = Reservation(id=uuid.uuid4().hex, shares=shares, bound=bound)
        args: list[Any] = [reservation.id, lease_seconds]
        for (meter, _), amount in zip(shares, amounts, strict=True):
            args += [meter.budget.per, meter.limit, amount]
        ends = time.monotonic() + (self._wait_seconds if wait_seconds is None else wait_seconds)
        pause = _FIRST_PAUSE_SECONDS
        while True:
            reply = await self._ask("reserve", [meter for meter, _ in shares], args)
            if reply[0] == 1:
                return reservation
            is_final = reply[0] < 0
            if is_final or time.monotonic() >= ends:
                index = int(reply[1]) - 1
                meter = shares[index][0]
                covered = [name for name in rubrics if meter.budget.covers(app=app, rubric=name, judge=judge)]
                told = _told(meter, amounts[index], spent=int(reply[2]), reserved=int(reply[3]), end=int(reply[4]))
                raise BudgetSpentError(told, rubrics=covered)
            # Not all at once, and the less often the longer it takes.
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311
            pause = min(_LONGEST_PAUSE_SECONDS, pause * 1.6)

    async def settle(self, reservation: Reservation | None, used: Usage | None) -> None:
        """See `Purse.settle`. Where Redis is away the reservation lapses and counts in full: never an error."""
        if reservation is None:
            return
        args: list[Any] = [reservation.id]
        for meter, share in reservation.shares:
            most = meter.amount(reservation.bound, share) or 0
            amount = None if used is None else meter.amount(used, share)
            if amount is not None and amount > most:
                _log.warning(
                    "a judge took more than was reserved",
                    extra={"budget": meter.budget.name, "reserved": most, "used": amount, "unit": meter.unit},
                )
            args += [meter.budget.per, most if amount is None else max(0, amount)]
        try:
            await self._ask("settle", [meter for meter, _ in reservation.shares], args)
        except JudgeError as error:
            _log.warning("what a judge took was not settled: it counts at its bound", extra={"error": str(error)})

    async def aclose(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None

    def _shares(self, app: str, rubrics: Sequence[str], judge: str) -> tuple[tuple[Meter, float], ...]:
        shares = []
        for budget in self._budgets.budgets:
            covered = sum(budget.covers(app=app, rubric=rubric, judge=judge) for rubric in rubrics)
            if covered:
                shares += [(meter, covered / len(rubrics)) for meter in budget.meters]
        return tuple(shares)

    async def _ask(self, script: str, meters: Sequence[Meter], args: Sequence[Any]) -> Any:
        from redis.exceptions import RedisError

        if self._redis is None:
            self._connect()
        try:
            return await self._scripts[script](keys=_keys(self._queue, meters), args=[self._clock(), *args])
        except (RedisError, OSError) as error:
            message = f"the budget cannot be asked: Redis: {str(error) or type(error).__name__}"
            raise JudgeError("unavailable", message, free=True) from error

    def _connect(self) -> None:
        # A few connections carry the short calls of hundreds of requests. Both scripts may be repeated: an id is
        # reserved once, and settling again can only count too much.
        self._redis = connect_async(self._url, timeout_seconds=self._timeout_seconds, retries=2, max_connections=8)
        self._scripts = {name: self._redis.register_script(text) for name, text in _SCRIPTS.items()}


def _bounded(meter: Meter, bound: Usage, share: float, rubrics: Sequence[str]) -> int:
    amount = meter.amount(bound, share)
    if amount is None:
        problem = f"the budget {meter.budget.name} is in dollars, and the price of the judge's model is not known"
        raise BudgetSpentError(f"{problem}: list it in a price table and point ASSAY_PRICES at it", rubrics=rubrics)
    return amount


def _told(meter: Meter, amount: int, *, spent: int, reserved: int, end: int) -> str:
    """Why a request was refused, and until when."""
    named = f"budget {meter.budget.name} ({meter.shown(meter.limit)} a {meter.budget.per})"
    if amount > meter.limit:
        most = "lower ASSAY_JUDGE_MAX_TOKENS, or raise it"
        return f"{named}: one request may take {meter.shown(amount)}, more than all of it: {most}"
    held = f" and {meter.shown(reserved)} held" if reserved else ""
    again = f"{datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M} UTC"
    return f"{named}: {meter.shown(spent)} spent{held}, one request may take {meter.shown(amount)}; anew at {again}"


def _keys(queue: str, meters: Sequence[Meter]) -> list[str]:
    prefix = f"assay:{queue}:budget:"
    return [f"{prefix}reservations", f"{prefix}leases", *(prefix + meter.key for meter in meters)]


# Lua. Keys: the reservations, their leases, then one hash for each limit. Amounts are whole, and below 2 to the 53rd.
_COMMON = """
local RESERVATIONS, LEASES = KEYS[1], KEYS[2]
-- How long a lapsed reservation may still be settled.
local KEPT_SECONDS = 86400

local function present()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local parts = redis.call('TIME')
  return tonumber(parts[1]) + tonumber(parts[2]) / 1000000
end

local function whole(number) return string.format('%.0f', number) end

-- Of nothing there is a negative, which HINCRBY does not take.
local function add(key, field, amount)
  if amount ~= 0 then redis.call('HINCRBY', key, field, whole(amount)) end
end

-- First second of the month that a second is in. Civil calendar from days: H. Hinnant, "chrono-compatible low-level
-- date algorithms", civil_from_days.
local function month_start(time)
  local days = math.floor(time / 86400)
  local z = days + 719468
  local doe = z - math.floor(z / 146097) * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  return (days - (doy - math.floor((153 * mp + 2) / 5))) * 86400
end

local function window_of(per, time)
  if per == 'month' then
    local start = month_start(time)
    return start, month_start(start + 32 * 86400)
  end
  local length = per == 'hour' and 3600 or 86400
  local start = math.floor(time / length) * length
  return start, start + length
end

-- Window, its end, what is spent and what is reserved, as of now. A clock that steps back a little stays in the window
-- that it has seen; one that was wrong by more takes what is spent with it. Neither gives anything back.
local function read(key, per, time)
  local start, ending = window_of(per, time)
  local known = redis.call('HMGET', key, 'window', 'spent', 'reserved')
  local window = tonumber(known[1])
  if not window or window < start then return start, ending, 0, 0, true end
  if window > start and window <= ending then
    start, ending = window_of(per, window)
  end
  return start, ending, tonumber(known[2] or 0), tonumber(known[3] or 0), window ~= start
end

local function open(key, per, time)
  local start, ending, spent, reserved, is_new = read(key, per, time)
  if is_new then
    redis.call('HSET', key, 'window', whole(start), 'spent', whole(spent), 'reserved', whole(reserved))
  end
  return start, ending, spent, reserved
end

-- Reservations of workers that are gone: nobody knows what they took, so they count as spent.
local function lapse(time)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', time, 'LIMIT', 0, 100)) do
    local text = redis.call('HGET', RESERVATIONS, id)
    local held = text and cjson.decode(text)
    if not held or held.lapsed then
      redis.call('HDEL', RESERVATIONS, id)
      redis.call('ZREM', LEASES, id)
    else
      for _, part in ipairs(held.parts) do
        if redis.call('HGET', part.key, 'window') == part.window then
          add(part.key, 'reserved', -part.amount)
          add(part.key, 'spent', tonumber(part.amount))
        end
      end
      held.lapsed = true
      redis.call('HSET', RESERVATIONS, id, cjson.encode(held))
      redis.call('ZADD', LEASES, time + KEPT_SECONDS, id)
    end
  end
end

-- On a server at its maxmemory only a script's first write is refused, and a deletion never is.
redis.call('HDEL', RESERVATIONS, '')
"""

_SCRIPTS: Final[Mapping[str, str]] = {
    # 1: held. 0: would fit once others have settled. -1: does not fit. Then: which limit, spent, reserved, end.
    "reserve": _COMMON
    + """
local time, id, lease_seconds = present(), ARGV[2], tonumber(ARGV[3])
lapse(time)
if redis.call('HEXISTS', RESERVATIONS, id) == 1 then return { 1 } end
local parts, refusal = {}, nil
for i = 3, #KEYS do
  local per, limit, amount = unpack(ARGV, 4 + (i - 3) * 3, 6 + (i - 3) * 3)
  local start, ending, spent, reserved = open(KEYS[i], per, time)
  if spent + reserved + tonumber(amount) > tonumber(limit) then
    local code = spent + tonumber(amount) > tonumber(limit) and -1 or 0
    if not refusal or code < refusal[1] then
      refusal = { code, i - 2, whole(spent), whole(reserved), whole(ending) }
    end
  end
  parts[#parts + 1] = { key = KEYS[i], window = whole(start), amount = amount }
end
if refusal then return refusal end
for _, part in ipairs(parts) do add(part.key, 'reserved', tonumber(part.amount)) end
redis.call('HSET', RESERVATIONS, id, cjson.encode({ parts = parts }))
redis.call('ZADD', LEASES, time + lease_seconds, id)
return { 1 }
""",
    "settle": _COMMON
    + """
local time, id = present(), ARGV[2]
local text = redis.call('HGET', RESERVATIONS, id)
local held = text and cjson.decode(text)
for i = 3, #KEYS do
  local per, used = unpack(ARGV, 3 + (i - 3) * 2, 4 + (i - 3) * 2)
  if held then
    local part = held.parts[i - 2]
    -- In another window by now: what that one spent is history.
    if redis.call('HGET', part.key, 'window') == part.window then
      add(part.key, held.lapsed and 'spent' or 'reserved', -part.amount)
      add(part.key, 'spent', tonumber(used))
    end
  else
    -- Redis has lost the reservation (or the reply of this very call): count it, rather too often than never.
    open(KEYS[i], per, time)
    add(KEYS[i], 'spent', tonumber(used))
  end
end
redis.call('HDEL', RESERVATIONS, id)
redis.call('ZREM', LEASES, id)
return 1
""",
    # Writes nothing, so that a replica can answer it; what has lapsed shows as reserved until the next request.
    "balances": _COMMON.replace("redis.call('HDEL', RESERVATIONS, '')\n", "")
    + """
local time, rows = present(), {}
for i = 3, #KEYS do
  local start, ending, spent, reserved = read(KEYS[i], ARGV[i - 1], time)
  rows[#rows + 1] = { whole(start), whole(ending), whole(spent), whole(reserved) }
end
return rows
""",
}
