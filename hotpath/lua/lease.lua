-- What the control plane does to a lease, each step guarded and in one call.
--
-- KEYS  1 state hash   2 idempotency records   3 customers   4 stream
-- ARGV  1 lease id     2 what to do            then its arguments, named below
-- Reply: 1 done, 0 refused because of the state it is in, -1 no such lease; a number where it says so.
local lease, act = ARGV[1], ARGV[2]
local here = redis.call('HMGET', KEYS[1], 'lease', 'state', 'loader', 'ready')
local state = here[2]

-- begin <loader> <field> <value> …: start arming anew. A lease that was ever ready is left alone, so
-- that a loader that was frozen can't give its numbers out a second time.
if act == 'begin' then
  if here[4] == '1' or (state and state ~= 'arming') then return 0 end
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
  redis.call('HSET', KEYS[1], 'lease', lease, 'state', 'arming', 'loader', ARGV[3], unpack(ARGV, 4))
  return 1
end
if here[1] ~= lease then return -1 end

-- load <loader> <records|customers> <field> <value> …: only the loader that began, only while arming.
if act == 'load' then
  if here[3] ~= ARGV[3] or here[4] == '1' or state ~= 'arming' then return 0 end
  redis.call('HSET', ARGV[4] == 'records' and KEYS[2] or KEYS[3], unpack(ARGV, 5))
  return 1
end

-- ready <loader> <state>: everything is loaded.
if act == 'ready' then
  if here[3] ~= ARGV[3] or state ~= 'arming' then return 0 end
  redis.call('HSET', KEYS[1], 'ready', 1, 'state', ARGV[4])
  return 1
end

-- state <state>: fenced is for ever, closed ends in fenced only, and what is not loaded never opens.
if act == 'state' then
  local wanted = ARGV[3]
  if state == wanted then return 1 end
  if state == 'fenced' or (state == 'closed' and wanted ~= 'fenced') then return 0 end
  if here[4] ~= '1' and (wanted == 'open' or wanted == 'paused') then return 0 end
  if wanted == 'arming' then return 0 end
  redis.call('HSET', KEYS[1], 'state', wanted)
  return 1
end

-- start <start_ms>, end <end_ms>: 0 means at once, and without end.
if act == 'start' or act == 'end' then
  redis.call('HSET', KEYS[1], act .. '_ms', ARGV[3])
  return 1
end

-- raise <size|accounted> <value>: the larger wins; replies with what is stored then.
if act == 'raise' then
  local stored = tonumber(redis.call('HGET', KEYS[1], ARGV[3]) or '0')
  local wanted = tonumber(ARGV[4])
  if wanted <= stored then return stored end
  redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
  return wanted
end

-- release <customer> <release id>: one held unit less, once for each release id. The ids stand beside
-- the customers behind a NUL, which no customer's name can hold.
if act == 'release' then
  local mark = '\0' .. ARGV[4]
  local found = redis.call('HMGET', KEYS[3], ARGV[3], mark)
  if not found[1] or found[2] then return 0 end
  local count, reference = string.match(found[1], '^(%d+)|(.*)$')
  count = tonumber(count)
  if count < 1 then return 0 end
  redis.call('HSET', KEYS[3], mark, 1, ARGV[3], (count - 1) .. '|' .. reference)
  return 1
end

-- blocks <field> <until_ms> …: who may not claim, in place of all before; 0 is without end. They stand beside the customers
-- behind a NUL, too, with a list of what they are.
if act == 'blocks' then
  local list = '\0blocks'
  local old = redis.call('HGET', KEYS[3], list)
  local fields = old and cmsgpack.unpack(old) or {}
  for from = 1, #fields, 1000 do
    redis.call('HDEL', KEYS[3], unpack(fields, from, math.min(from + 999, #fields)))
  end
  redis.call('HDEL', KEYS[3], list)
  fields = {}
  for i = 3, #ARGV, 2 do fields[#fields + 1] = ARGV[i] end
  if #fields == 0 then
    redis.call('HDEL', KEYS[1], 'blocks')
    return 1
  end
  for from = 3, #ARGV, 1000 do
    redis.call('HSET', KEYS[3], unpack(ARGV, from, math.min(from + 999, #ARGV)))
  end
  redis.call('HSET', KEYS[3], list, cmsgpack.pack(fields))
  redis.call('HSET', KEYS[1], 'blocks', 1)
  return 1
end

-- admit <key> <record> <customer> <reference> <limit> <id>: a redemption of an earlier lease that a receipt brings back; its
-- key and customer (each may be '') count from here on, once for each id. Replies 2: the key has another record, 3: the
-- customer holds all they may.
if act == 'admit' then
  if here[4] ~= '1' or state == 'fenced' then return -1 end
  local key, customer, mark = ARGV[3], ARGV[5], '\0' .. ARGV[8]
  if redis.call('HGET', KEYS[3], mark) then return 1 end
  local held = customer ~= '' and redis.call('HGET', KEYS[3], customer)
  local count = held and tonumber(string.match(held, '^(%d+)|')) or 0
  if redis.call('HEXISTS', KEYS[2], key) == 1 then return 2 end
  if customer ~= '' and count >= tonumber(ARGV[7]) then return 3 end
  redis.call('HSET', KEYS[3], mark, 1)
  redis.call('HSET', KEYS[2], key, ARGV[4])
  if customer ~= '' then redis.call('HSET', KEYS[3], customer, (count + 1) .. '|' .. ARGV[6]) end
  return 1
end

-- withdraw <key> <customer> <id>: PostgreSQL did not write what was admitted.
if act == 'withdraw' then
  local mark = '\0' .. ARGV[5]
  if redis.call('HDEL', KEYS[3], mark) == 0 then return 0 end
  redis.call('HDEL', KEYS[2], ARGV[3])
  local held = ARGV[4] ~= '' and redis.call('HGET', KEYS[3], ARGV[4])
  if held then
    local count, reference = string.match(held, '^(%d+)|(.*)$')
    redis.call('HSET', KEYS[3], ARGV[4], math.max(0, tonumber(count) - 1) .. '|' .. reference)
  end
  return 1
end

return redis.error_reply('ERR lease.lua does not know what to do')
