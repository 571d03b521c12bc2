-- Answer a batch of claims on a voucher that PostgreSQL has said is sold out. Reads only.
--
-- KEYS  1 facts hash   2 idempotency records   3 customers   4 freshness     (all share the hash tag {voucher})
-- ARGV  1 lineage      2 number of items n     then for each item: key ('' = none), fingerprint, customer
--
-- Reply: {at_ms, 0, item 1 .. item n}; an item is -SOLD_OUT, -MISMATCH, -ASK (ask PostgreSQL), 'R…' or
-- 'C…', as in claim.lua. Stale, incomplete or foreign facts answer nothing but ASK.
local MISMATCH, SOLD_OUT, ASK = -2, -3, -14
local CHUNK = 1000
local sub, match = string.sub, string.match

local n = tonumber(ARGV[2])
local time = redis.call('TIME')
local reply = {time[1] * 1000 + math.floor(time[2] / 1000), 0}

local function look_up(hash, fields)
  local found = {}
  for from = 1, #fields, CHUNK do
    local to = math.min(from + CHUNK - 1, #fields)
    local values = redis.call('HMGET', hash, unpack(fields, from, to))
    for i = from, to do found[fields[i]] = values[i - from + 1] end
  end
  return found
end

local facts = redis.call('HMGET', KEYS[1], 'lineage', 'version', 'state', 'customer_limit')
local fresh = redis.call('GET', KEYS[4])
if not fresh or fresh ~= facts[2] or facts[1] ~= ARGV[1] or facts[3] ~= 'sold_out' then
  for i = 1, n do reply[i + 2] = ASK end
  return reply
end
local limit = tonumber(facts[4] or '0')

local keys, names = {}, {}
for i = 3, 3 * n + 2, 3 do
  if ARGV[i] ~= '' then keys[#keys + 1] = ARGV[i] end
  if limit > 0 and ARGV[i + 2] ~= '' then names[#names + 1] = ARGV[i + 2] end
end
local records = look_up(KEYS[2], keys)
local held = look_up(KEYS[3], names)

for i = 1, n do
  local at = 3 * i
  local key, fingerprint, customer = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local record = key ~= '' and records[key]
  local answer = SOLD_OUT
  if record then
    answer = sub(record, 1, 32) == fingerprint and 'R' .. sub(record, 34) or MISMATCH
  elseif limit > 0 and customer ~= '' and held[customer] then
    local count, reference = match(held[customer], '^(%d+)|(.*)$')
    if tonumber(count) >= limit then answer = 'C' .. reference end
  end
  reply[i + 2] = answer
end
return reply
