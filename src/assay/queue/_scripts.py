"""The scripts that are all that ever changes a queue in Redis."""

from __future__ import annotations

from typing import Final

#: Under `assay:Q:`; what each holds is said in `assay.queue`.
KEYS: Final = ("batches", "pending", "due", "sizes", "deliveries", "leases", "rings", "state", "counters")

# Lua. Every script gets the same keys, then one `report:` key if it is one of those that apps run and has one, else the
# two of ragas. Bells are built from a template, so that the message has one author, `_bells.bell_template`.
_COMMON = """
local BELLS, BATCHES, PENDING, DUE, SIZES, DELIVERIES, LEASES, RINGS, STATE, COUNTERS = unpack(KEYS)
local REPORT, RAGAS, RAGAS_BELLS
if #KEYS == 12 then RAGAS, RAGAS_BELLS = KEYS[11], KEYS[12] else REPORT = KEYS[11] end

local function server_time()
  local parts = redis.call('TIME')
  return tonumber(parts[1]) + tonumber(parts[2]) / 1000000
end

-- On a server at its maxmemory only a script's first write is refused, and a deletion never is. Whatever empties
-- the queue begins with one, or a full Redis could not be drained.
local function begin_draining()
  redis.call('HDEL', LEASES, '')
end

-- The list that a batch's doorbells are rung on; the numbers of each list's doorbells are its own.
local function list_of(id)
  if RAGAS and redis.call('ZSCORE', RAGAS, id) then return RAGAS_BELLS, '.ragas' end
  return BELLS, ''
end

local function ring(template, id)
  -- An id that would break the message is left alone; it stays visible as pending.
  if not string.find(id, '^[%w%._:-]+$') then return 0 end
  local list, suffix = list_of(id)
  local number = redis.call('HINCRBY', STATE, 'rang' .. suffix, 1)
  redis.call('HSET', RINGS, id, number)
  local marks = { BATCH = id, RING = id .. '.' .. string.format('%d', number), LIST = list }
  redis.call('LPUSH', list, (string.gsub(template, '@(%u+)@', marks)))
  return 1
end

local function add(id, payload, records, enqueued_at)
  redis.call('HSET', BATCHES, id, payload)
  redis.call('HSET', SIZES, id, records)
  redis.call('HINCRBY', STATE, 'records', records)
  redis.call('ZADD', PENDING, enqueued_at, id)
end

local function remove(id)
  local there = redis.call('HDEL', BATCHES, id)
  local records = redis.call('HGET', SIZES, id)
  if records then redis.call('HINCRBY', STATE, 'records', -records) end
  for _, key in ipairs({ PENDING, DUE, RAGAS }) do redis.call('ZREM', key, id) end
  for _, key in ipairs({ SIZES, DELIVERIES, LEASES, RINGS }) do redis.call('HDEL', key, id) end
  return there
end

-- Free to claim now, or from a later time on; then the sweep rings.
local function schedule(template, id, delay, ring_seconds)
  if delay > 0 then
    redis.call('HSET', LEASES, id, '')
    redis.call('HDEL', RINGS, id)
    redis.call('ZADD', DUE, server_time() + delay, id)
  else
    redis.call('HDEL', LEASES, id)
    redis.call('ZADD', DUE, server_time() + ring_seconds, id)
    ring(template, id)
  end
end

local function count_report(first)
  if ARGV[first] == '' then return end
  local number, last = tonumber(ARGV[first + 1]), redis.call('HGET', REPORT, 'number')
  if last and tonumber(last) >= number then return end
  for i = first + 2, #ARGV, 2 do redis.call('HINCRBY', COUNTERS, ARGV[i], ARGV[i + 1]) end
  redis.call('HSET', REPORT, 'number', ARGV[first + 1])
  redis.call('EXPIRE', REPORT, 86400)
end
"""

#: Scripts that apps run, whose access rules (docs/howto/redis.md) know of no keys but these and their report.
OF_CLIENTS: Final = frozenset({"push", "add_counters"})

SCRIPTS: Final[dict[str, str]] = {
    "push": _COMMON
    + """
local template, id, payload, records, enqueued_at, ring_seconds, max_batches = unpack(ARGV, 1, 7)
local known = ARGV[8] ~= '' and redis.call('HGET', REPORT, 'batch') == id
count_report(8)
-- Known: stored before, perhaps even finished since; only the reply was lost.
local batches = redis.call('HLEN', BATCHES)
if known or redis.call('HEXISTS', BATCHES, id) == 1 then return { 1, batches } end
if batches >= tonumber(max_batches) then return { 0, batches } end
add(id, payload, records, enqueued_at)
schedule(template, id, 0, tonumber(ring_seconds))
redis.call('HINCRBY', COUNTERS, 'accepted', records)
if ARGV[8] ~= '' then
  redis.call('HSET', REPORT, 'batch', id)
  redis.call('EXPIRE', REPORT, 86400)
end
return { 1, batches + 1 }
""",
    "add_counters": _COMMON
    + """
count_report(1)
return redis.call('HLEN', BATCHES)
""",
    "claim": _COMMON
    + """
local id, token, lease_seconds, alone_from = unpack(ARGV)
begin_draining()
local payload = redis.call('HGET', BATCHES, id)
if not payload then
  remove(id)
  return false
end
local holder, time = redis.call('HGET', LEASES, id), server_time()
if holder ~= token then
  if holder and tonumber(redis.call('ZSCORE', DUE, id) or 0) > time then return false end
  local deliveries = tonumber(redis.call('HGET', DELIVERIES, id) or 0)
  local from = tonumber(alone_from)
  if from > 0 and deliveries + 1 >= from and redis.call('HGET', SIZES, id) == '1' then return {} end
  redis.call('HINCRBY', DELIVERIES, id, 1)
  redis.call('HSET', LEASES, id, token)
end
redis.call('ZADD', DUE, time + tonumber(lease_seconds), id)
local number, _, suffix = tonumber(redis.call('HGET', RINGS, id) or 0), list_of(id)
local heard = 'heard' .. suffix
if number > tonumber(redis.call('HGET', STATE, heard) or 0) then redis.call('HSET', STATE, heard, number) end
return { payload, redis.call('HGET', DELIVERIES, id), tostring(time - (redis.call('ZSCORE', PENDING, id) or time)) }
""",
    "extend": _COMMON
    + """
begin_draining()
local due, lost = server_time() + tonumber(ARGV[1]), {}
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] ~= '' and redis.call('HGET', LEASES, ARGV[i]) == ARGV[i + 1] then
    redis.call('ZADD', DUE, due, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
""",
    "finish": _COMMON
    + """
local template, id, ring_seconds = unpack(ARGV, 1, 3)
if remove(id) == 0 then return 0 end
for i = 4, #ARGV, 7 do
  -- There already: its batch came and was finished twice.
  if redis.call('HEXISTS', BATCHES, ARGV[i]) == 0 then
    add(ARGV[i], ARGV[i + 1], ARGV[i + 5], ARGV[i + 2])
    if ARGV[i + 6] == '1' then redis.call('ZADD', RAGAS, ARGV[i + 2], ARGV[i]) end
    if ARGV[i + 4] ~= '' then
      redis.call('HSET', LEASES, ARGV[i], ARGV[i + 4])
      redis.call('HINCRBY', DELIVERIES, ARGV[i], 1)
      redis.call('ZADD', DUE, server_time() + tonumber(ARGV[i + 3]), ARGV[i])
    else
      schedule(template, ARGV[i], tonumber(ARGV[i + 3]), tonumber(ring_seconds))
    end
  end
end
return 1
""",
    "release": _COMMON
    + """
local template, id, ring_seconds, token, delay, count_delivery = unpack(ARGV)
begin_draining()
if token == '' or redis.call('HGET', LEASES, id) ~= token then return 0 end
if count_delivery == '0' then redis.call('HINCRBY', DELIVERIES, id, -1) end
schedule(template, id, tonumber(delay), tonumber(ring_seconds))
return 1
""",
    "sweep": _COMMON
    + """
local template, ring_seconds, time, limit = unpack(ARGV)
begin_draining()
time = tonumber(time) or server_time()
local silent, heard = {}, {}
for list, suffix in pairs({ [BELLS] = '', [RAGAS_BELLS] = '.ragas' }) do
  silent[list] = redis.call('LLEN', list) == 0
  heard[list] = tonumber(redis.call('HGET', STATE, 'heard' .. suffix) or 0)
end
local ids, rang = redis.call('ZRANGEBYSCORE', DUE, '-inf', time, 'LIMIT', 0, limit), 0
for _, id in ipairs(ids) do
  if redis.call('HEXISTS', BATCHES, id) == 0 then
    remove(id)
  else
    redis.call('HDEL', LEASES, id)
    redis.call('ZADD', DUE, time + tonumber(ring_seconds), id)
    local number, list = redis.call('HGET', RINGS, id), list_of(id)
    -- A list is first in, first out: a later bell was answered, so this one is no longer in it.
    if silent[list] or not number or tonumber(number) <= heard[list] then rang = rang + ring(template, id) end
  end
end
return { #ids, rang }
""",
    "depth": _COMMON
    + """
local oldest = redis.call('ZRANGE', PENDING, 0, 0, 'WITHSCORES')[2]
local records, since = 0, ''
for start = 0, redis.call('ZCARD', RAGAS) - 1, 1000 do
  local ids = redis.call('ZRANGE', RAGAS, start, start + 999)
  for i, size in ipairs(redis.call('HMGET', SIZES, unpack(ids))) do
    -- Without a size: a worker of a release that knew of one list alone has finished it.
    if size then
      records = records + tonumber(size)
      if since == '' then since = redis.call('ZSCORE', RAGAS, ids[i]) end
    end
  end
end
return { redis.call('ZCARD', PENDING), redis.call('HGET', STATE, 'records') or 0, oldest or '', records, since }
""",
    "pending_records": _COMMON
    + """
local total = tonumber(redis.call('HGET', STATE, 'records') or 0)
local before = redis.call('ZCOUNT', PENDING, '-inf', '(' .. ARGV[1])
if before == 0 then return total end
-- Add up the smaller side.
local after = redis.call('ZCARD', PENDING) - before
local first, last = 0, before - 1
if after < before then first, last = before, before + after - 1 end
local sum = 0
for start = first, last, 1000 do
  local ids = redis.call('ZRANGE', PENDING, start, math.min(start + 999, last))
  for _, records in ipairs(redis.call('HMGET', SIZES, unpack(ids))) do sum = sum + (tonumber(records) or 0) end
end
if after < before then return sum end
return total - sum
""",
}
