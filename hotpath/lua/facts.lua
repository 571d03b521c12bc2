-- Put, renew and clear the facts that crowd.lua answers from.
--
-- KEYS  1 facts hash   2 idempotency records   3 customers   4 freshness
-- ARGV  1 what to do   2 version               then its arguments, named below
-- Reply: 1 done, 0 refused because the stored facts are another writer's or not older.
local act, version = ARGV[1], tonumber(ARGV[2])
local here = redis.call('HMGET', KEYS[1], 'version', 'state', 'writer')
local stored = here[1] and tonumber(here[1])

-- put <loading_ttl_ms> <writer> <lineage> <customer_limit>: start a newer set. What is being loaded
-- lives only loading_ttl_ms after its last chunk, so a dead writer blocks nobody for long.
if act == 'put' then
  if stored and stored >= version then return 0 end
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
  redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', 'loading', 'writer', ARGV[4],
    'lineage', ARGV[5], 'customer_limit', ARGV[6])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 1
end

-- load <loading_ttl_ms> <writer> <records|customers> <field> <value> …
if act == 'load' then
  if stored ~= version or here[2] ~= 'loading' or here[3] ~= ARGV[4] then return 0 end
  local hash = ARGV[5] == 'records' and KEYS[2] or KEYS[3]
  redis.call('HSET', hash, unpack(ARGV, 6))
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
  return 1
end

-- ready <ttl_ms> <writer> <fresh_ms>: everything is loaded; facts and hashes end together. Where
-- loading took longer than facts stay fresh (fresh_ms 0), they count only once renewed.
if act == 'ready' then
  if stored ~= version or here[2] ~= 'loading' or here[3] ~= ARGV[4] then return 0 end
  redis.call('HSET', KEYS[1], 'state', 'sold_out')
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
  if tonumber(ARGV[5]) > 0 then redis.call('SET', KEYS[4], ARGV[2], 'PX', ARGV[5]) end
  return 1
end

-- renew <ttl_ms> <fresh_ms>: PostgreSQL has just said that this very version still holds.
if act == 'renew' then
  if stored ~= version or here[2] ~= 'sold_out' then return 0 end
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
  redis.call('SET', KEYS[4], ARGV[2], 'PX', ARGV[4])
  return 1
end

-- clear <ttl_ms>: a tombstone of a newer version, which no older put can undo.
if act == 'clear' then
  if stored and stored > version then return 0 end
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
  redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', 'open')
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 1
end

return redis.error_reply('ERR facts.lua does not know what to do')
