-- Give out numbers of one lease to one batch of claims.
--
-- KEYS  1 state hash   2 idempotency records   3 customers   4 stream      (all share the hash tag {lease})
-- ARGV  1 lease id     2 number of items n     then for each item: key ('' = none), fingerprint (32 hex),
--       customer ('' = none), payload
--
-- Reply: {at_ms, size, item 1 .. item n}; an item is
--   a positive integer    a win, the number itself; what remains is size - number
--   a negative integer    a refusal: -MISMATCH -SOLD_OUT -NOT_STARTED -ENDED -PAUSED -BUSY -FENCED -BLOCKED
--   'R<number>|<at_ms>|<remaining>|<payload>'   the key was answered before with the same fingerprint
--   'C<reference>'                              the customer holds all they may; the last one is named
--
-- All reads come before the first write, a batch of refusals writes nothing, and the first write is
-- the only one a server can refuse (memory, read-only, disk), so a batch happens whole or not at all.
-- The number of redis.calls does not grow with the batch.
local MISMATCH, SOLD_OUT, NOT_STARTED, ENDED, PAUSED, BUSY, FENCED = -2, -3, -5, -6, -7, -8, -9
local BLOCKED = -15
local CHUNK = 1000 -- values in one call, even; Lua's stack ends near 8,000
local sub, match, format = string.sub, string.match, string.format

local lease, n = ARGV[1], tonumber(ARGV[2])
local reply = {0, 0}

local function look_up(hash, fields)
  local found = {}
  for from = 1, #fields, CHUNK do
    local to = math.min(from + CHUNK - 1, #fields)
    local values = redis.call('HMGET', hash, unpack(fields, from, to))
    for i = from, to do found[fields[i]] = values[i - from + 1] end
  end
  return found
end

local function store(hash, pairs_flat)
  for from = 1, #pairs_flat, CHUNK do
    redis.call('HSET', hash, unpack(pairs_flat, from, math.min(from + CHUNK - 1, #pairs_flat)))
  end
end

local s = redis.call('HMGET', KEYS[1], 'lease', 'state', 'issued', 'size', 'accounted', 'backlog_max',
  'start_ms', 'end_ms', 'customer_limit', 'blocks')
local state = s[2]
local known = state == 'open' or state == 'arming' or state == 'paused' or state == 'closed'
if s[1] ~= lease or not known then
  for i = 1, n do reply[i + 2] = FENCED end
  return reply
end

local issued, size, accounted = tonumber(s[3]), tonumber(s[4]), tonumber(s[5])
local backlog_max, start_ms, end_ms = tonumber(s[6]), tonumber(s[7]), tonumber(s[8])
local limit = tonumber(s[9])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = tostring(now)
reply[1], reply[2] = now, size

local shut -- the refusal the state and the window give to everybody
if state == 'arming' or now < start_ms then shut = NOT_STARTED
elseif state == 'paused' then shut = PAUSED
elseif state == 'closed' or (end_ms > 0 and now >= end_ms) then shut = ENDED
end

local keys, names = {}, {}
for i = 3, 4 * n + 2, 4 do
  if ARGV[i] ~= '' then keys[#keys + 1] = ARGV[i] end
  if limit > 0 and ARGV[i + 2] ~= '' then names[#names + 1] = ARGV[i + 2] end
end
local records = look_up(KEYS[2], keys)
local held = look_up(KEYS[3], names)

-- Who is blocked stands beside the customers (see lease.lua), and is looked for where anybody is. Addresses and devices are
-- hashes in the payload's metadata, a JSON text inside JSON and the last of it: a name that follows a bracket or comma, the
-- last one found, is no part of an order's id or of another name.
local blocks = {}
local function marks_of(customer, payload)
  return '\0b customer ' .. customer, '\0b address ' .. (match(payload, '^.*[{,]\\"_address\\":\\"(%x+)') or ''),
    '\0b device ' .. (match(payload, '^.*[{,]\\"_device\\":\\"(%x+)') or '')
end
if s[10] then
  local marks = {'\0b code'}
  for i = 3, 4 * n + 2, 4 do
    local at = #marks
    marks[at + 1], marks[at + 2], marks[at + 3] = marks_of(ARGV[i + 2], ARGV[i + 3])
  end
  blocks = look_up(KEYS[3], marks)
end
local function is_blocked(...)
  for _, mark in ipairs({'\0b code', ...}) do
    local till = blocks[mark]
    if till and (till == '0' or tonumber(till) > now) then return true end
  end
  return false
end

local first = issued + 1
local wins, new_records, holders = {}, {}, {}
for i = 1, n do
  local at = 4 * i - 1
  local key, fingerprint, customer = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local record = key ~= '' and records[key]
  local count, reference = 0, ''
  if limit > 0 and customer ~= '' and held[customer] then
    count, reference = match(held[customer], '^(%d+)|(.*)$')
    count = tonumber(count)
  end
  local answer
  if record then
    answer = sub(record, 1, 32) == fingerprint and 'R' .. sub(record, 34) or MISMATCH
  elseif shut then answer = shut
  elseif s[10] and is_blocked(marks_of(customer, ARGV[at + 3])) then answer = BLOCKED
  elseif issued >= size then answer = SOLD_OUT
  elseif limit > 0 and customer ~= '' and count >= limit then answer = 'C' .. reference
  elseif issued - accounted >= backlog_max then answer = BUSY
  else
    issued = issued + 1
    answer = issued
    local payload = ARGV[at + 3]
    wins[#wins + 1] = {key, fingerprint, customer, payload}
    if key ~= '' then
      record = format('%s|%d|%s|%d|%s', fingerprint, issued, now_text, size - issued, payload)
      records[key] = record
      new_records[#new_records + 1] = key
      new_records[#new_records + 1] = record
    end
    if limit > 0 and customer ~= '' then
      held[customer] = format('%d|%d', count + 1, issued)
      holders[customer] = true
    end
  end
  reply[i + 2] = answer
end
if #wins == 0 then return reply end

redis.call('XADD', KEYS[4], '*', 'f', first, 't', now, 'r', size - first, 'd', cmsgpack.pack(wins))
store(KEYS[2], new_records)
local counts = {}
for customer in pairs(holders) do
  counts[#counts + 1] = customer
  counts[#counts + 1] = held[customer]
end
store(KEYS[3], counts)
redis.call('HSET', KEYS[1], 'issued', issued)
return reply
