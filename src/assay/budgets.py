"""Budgets: how much judging may take in an hour, a day or a month, in US dollars and in tokens.

Before each request to a judge the most that it can take is reserved in Redis, in one script for all budgets that cover
it; afterwards what it took is settled. What is spent and what is reserved are never more than the limit together, in
however many processes. docs/decisions/0010-budgets.md has the reasons.

Under `assay:Q:budget:`, Q being the name of the queue:

    NAME:PER:UNIT   hash        window (its start, epoch seconds), spent, reserved: whole nano-dollars, or tokens
    reservations    hash        id -> what is held of which budgets, as JSON
    leases          sorted set  id -> when a reservation lapses: it then counts as spent in full, until it is settled

The clock is the server's. Windows are hours, days and months in UTC; a request counts in the one that it began in.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from assay import _yaml
from assay.connections import connect, connect_async
from assay.errors import BudgetSpentError, FileError, JudgeError, QueueError, SettingsError
from assay.sampling import sample_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from assay.records import Usage

_log = logging.getLogger(__name__)

Per = Literal["hour", "day", "month"]
Unit = Literal["usd", "tokens"]

#: Reason of the outcome `not applicable` of a record that was left out near a cap.
THINNED: Final = "thinned_by_budget"
#: Judges that ask no model: nothing is reserved for them, and no record is left out.
FREE_JUDGES: Final = frozenset({"lexical", "rules"})
#: Name of the budget that ASSAY_BUDGET_USD_PER_DAY stands for.
TOTAL: Final = "total"

#: Money is counted in whole nano-dollars: floats would drift apart, and Lua has whole numbers up to 2 to the 53rd.
_NANO = 1_000_000_000
_MOST_USD = 1_000_000.0
_MOST_TOKENS = 10**15
#: How long what a process knows of the budgets is good for, for thinning.
_FRESH_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


# -- what people write


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much may be used in each hour, day or month (UTC). What is None is not limited, or not asked for."""

    name: str
    per: Per
    #: US dollars
    usd: float | None = None
    #: prompt and completion together
    tokens: int | None = None
    #: covers the records of this app, this rubric, this judge (its name, such as `openai:gpt-5-mini`); None: all
    app: str | None = None
    rubric: str | None = None
    judge: str | None = None

    def covers(self, *, app: str, rubric: str, judge: str) -> bool:
        """Whether what judging such a record takes counts here."""
        return self.app in (None, app) and self.rubric in (None, rubric) and self.judge in (None, judge)

    @property
    def meters(self) -> tuple[Meter, ...]:
        """Its limits, one for each unit."""
        return tuple(Meter(self, unit) for unit in get_args(Unit) if getattr(self, unit) is not None)


@dataclass(frozen=True, slots=True)
class Meter:
    """One limit of a budget."""

    budget: Budget
    unit: Unit

    @property
    def key(self) -> str:
        """End of its key in Redis. Another period is another counter; another limit is not."""
        return f"{self.budget.name}:{self.budget.per}:{self.unit}"

    @property
    def limit(self) -> int:
        """In whole nano-dollars, or tokens."""
        value = getattr(self.budget, self.unit)
        return math.floor(value * _NANO) if self.unit == "usd" else int(value)

    def amount(self, usage: Usage, share: float = 1.0) -> int | None:
        """What `share` of this usage is here, rounded up; None when it is not known."""
        if self.unit == "usd":
            return None if usage.cost_usd is None else math.ceil(usage.cost_usd * share * _NANO)
        if usage.prompt_tokens is None or usage.completion_tokens is None:
            return None
        return math.ceil((usage.prompt_tokens + usage.completion_tokens) * share)

    def shown(self, amount: int) -> str:
        """For people."""
        if self.unit == "tokens":
            return f"{amount:,} tokens"
        usd = amount / _NANO
        return f"{usd:.2f} USD" if usd >= 0.095 or not usd else f"{usd:.6f} USD"

    def plain(self, amount: int) -> float:
        """In US dollars, or tokens."""
        return amount / _NANO if self.unit == "usd" else float(amount)


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """All budgets, and from where on records are left out.

    Args:
        budgets: names are distinct.
        thin_from: share of a limit, in (0, 1], from which on fewer records are judged; 1: none is left out.
        thin_least: least share of records that are judged, in (0, 1]; it bounds their weights.
    """

    budgets: tuple[Budget, ...]
    thin_from: float = 0.8
    thin_least: float = 0.1

    def __post_init__(self) -> None:
        names = [budget.name for budget in self.budgets]
        for name in names:
            if names.count(name) > 1:
                raise SettingsError(f"two budgets are called {name}: rename one")

    @cached_property
    def meters(self) -> tuple[Meter, ...]:
        """Every limit."""
        return tuple(meter for budget in self.budgets for meter in budget.meters)

    def needs_price(self, *, rubric: str, judge: str) -> Budget | None:
        """A budget in dollars that this rubric and judge can come under, whatever the app."""
        return next(
            (
                budget
                for budget in self.budgets
                if budget.usd is not None and budget.covers(app=budget.app or "", rubric=rubric, judge=judge)
            ),
            None,
        )


_NAME = "^[a-z][a-z0-9_]{0,62}$"
_ENTRY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {
            "type": "string",
            "pattern": _NAME,
            "patternErrorMessage": "use lower-case letters, digits and _, a letter first, at most 63",
            "examples": ["total"],
        },
        "per": {"type": "string", "enum": list(get_args(Per)), "examples": ["day"]},
        "usd": {"type": "number", "minimum": 0, "maximum": _MOST_USD, "examples": [20]},
        "tokens": {"type": "integer", "minimum": 0, "maximum": _MOST_TOKENS, "examples": [2_000_000]},
        "app": {"type": "string", "minLength": 1, "maxLength": 100, "examples": ["shop"]},
        "rubric": {"type": "string", "minLength": 1, "maxLength": 63, "examples": ["faithfulness"]},
        "judge": {"type": "string", "minLength": 1, "maxLength": 250, "examples": ["openai:gpt-5-mini"]},
    },
    "required": ["name", "per"],
    "additionalProperties": False,
}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "budgets": {
            "type": "array",
            "minItems": 1,
            "maxItems": 100,
            "items": _ENTRY,
            "examples": [[{"name": "total", "usd": 20, "per": "day"}]],
        }
    },
    "required": ["budgets"],
    "additionalProperties": False,
}


def load_budgets(
    path: Path, *, rubrics: Iterable[str] | None = None, judges: Iterable[str] | None = None
) -> tuple[Budget, ...]:
    """The budgets of a file.

    Args:
        path: a YAML file.
        rubrics: names that `rubric` may have; None: any.
        judges: names that `judge` may have; None: any.

    Raises:
        FileError: the first mistake, as `path:line: field: message`; `check_budgets_file` lists them all.
    """
    budgets, mistakes = _load(path, rubrics, judges)
    if mistakes:
        raise _error(path, mistakes[0])
    return budgets


def check_budgets_file(path: Path) -> list[FileError]:
    """Every mistake in a file, by line."""
    return [_error(path, mistake) for mistake in _load(path, None, None)[1]]


def _load(
    path: Path, rubrics: Iterable[str] | None, judges: Iterable[str] | None
) -> tuple[tuple[Budget, ...], list[_yaml.Mistake]]:
    node, mistakes = _yaml.read(path, what="list of budgets")
    if node is None:
        return (), mistakes
    mistakes += _yaml.check(node, _SCHEMA)
    listed = node.get("budgets")
    entries = listed.value if listed is not None and listed.kind == "array" else []
    mistakes += _check_entries([entry for entry in entries if entry.kind == "object"], rubrics, judges)
    mistakes.sort(key=lambda mistake: mistake.line or 0)
    if mistakes:
        return (), mistakes
    return tuple(Budget(**entry) for entry in node.plain()["budgets"]), []


def _check_entries(
    entries: Sequence[_yaml.Node], rubrics: Iterable[str] | None, judges: Iterable[str] | None
) -> Iterable[_yaml.Mistake]:
    seen: dict[object, int] = {}
    for entry in entries:
        name = entry.get("name")
        if name is not None and name.kind == "string":
            if name.value in seen:
                problem = f"{_yaml.shown(name.value)} is the name of the budget on line {seen[name.value]} too"
                yield _yaml.Mistake(name.line, name.field, f"{problem}: rename one")
            seen.setdefault(name.value, name.line)
        if entry.get("usd") is None and entry.get("tokens") is None:
            yield _yaml.Mistake(entry.line, entry.field or None, "has no limit: write `usd: 20`, or `tokens: 2000000`")
        for key, known in (("rubric", rubrics), ("judge", judges)):
            given = entry.get(key)
            # A name that is misspelled would limit nothing, and nobody would see it.
            if given is not None and known is not None and given.kind == "string" and given.value not in set(known):
                there = ", ".join(sorted(known)) or "none"
                problem = f"no {key} is called {_yaml.shown(given.value)}: there is {there}"
                yield _yaml.Mistake(given.line, given.field, problem)


def _error(path: Path, mistake: _yaml.Mistake) -> FileError:
    return FileError(mistake.message, path=path, line=mistake.line, field=mistake.field)


# -- the decisions


def thinning(used: float, *, start: float, least: float) -> float:
    """Probability, in [least, 1], with which a record is judged while `used` of a limit (0: nothing, 1: all) is spent.

    1 up to `start`, then falling in proportion to what is left, so that the rest lasts the longer the less it is.
    """
    if used <= start or start >= 1.0:
        return 1.0
    return min(1.0, max(least, (1.0 - used) / (1.0 - start)))


def is_thinned(record_id: str, probability: float) -> bool:
    """Whether this record is left out at this probability: the same in every process, and for every rubric."""
    return probability < 1.0 and sample_unit(f"budget\0{record_id}") >= probability


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


# -- Redis


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What is held for one request: to be settled once."""

    id: str
    #: each limit that covers it, and which share of the request it covers
    shares: tuple[tuple[Meter, float], ...]
    bound: Usage


class Purse:
    """Reserves before a request and settles after it. It belongs to the event loop of its first call.

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
        """Hold the most that one request for these rubrics can take; None where no budget covers it.

        While only requests under way stand in the way, it waits for them.

        Args:
            app: of the record.
            rubrics: names; each has an equal share of the request.
            judge: its name.
            bound: the most tokens, and dollars.
            lease_seconds: after which it counts as spent unless it was settled: longer than the request can take.
            wait_seconds: instead of the purse's own.

        Raises:
            BudgetSpentError: a budget does not allow it; the error names the rubrics that it is about.
            JudgeError: Redis is away (kind `unavailable`): nothing is judged without asking.
        """
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
        """The request ended and took this much; None, or a part that is None: not known, and counted at its bound.

        Where Redis is away the reservation lapses, and counts as spent in full: never an error.
        """
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
