-- Claims by unique customers, prebuilt but for the number. Arguments after `--`: token, path, seed, the most requests
-- each thread may send (0: as many as the time allows), whether each has an Idempotency-Key (1 or 0), and over how many
-- paths they are spread: `{n}` in the path is a number below that. A thread that has sent its last says `ended`; wrk
-- itself would wait for its time to pass, so it is interrupted when all have, and time is taken here.
local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } vf_time;
  int clock_gettime(int clock, vf_time *time);
]]
local time = ffi.new("vf_time")
local thread_count = 0
local threads = {}

local function now_us()
  ffi.C.clock_gettime(1, time)
  return tonumber(time.seconds) * 1e6 + tonumber(time.nanoseconds) / 1e3
end

function setup(thread)
  thread:set("number", thread_count)
  thread_count = thread_count + 1
  table.insert(threads, thread)
end

function init(args)
  local path
  token, path, seed = args[1], args[2], args[3]
  sent, limit, started_us, ended_us = 0, tonumber(args[4]), 0, 0
  is_keyed, spread = args[5] == "1", tonumber(args[6])
  before, after = path:match("^(.-){n}(.*)$")
  before, after = "POST " .. (before or path), after or ""
  head = " HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " .. token .. "\r\nContent-Type: application/json\r\n"
  fixed = before .. after .. head
end

function request()
  -- wrk builds one request before the start, to look at it.
  if sent == 1 then started_us = now_us() end
  sent = sent + 1
  if limit > 0 and sent > limit and ended_us == 0 then
    ended_us = now_us()
    io.write("ended\n")
    io.flush()
    wrk.thread:stop()
  end
  local name = seed .. "-" .. number .. "-" .. sent
  local body = '{"customer_id":"cus_' .. name .. '","order_value":89.99}'
  local start = fixed
  -- Threads begin half the paths apart, so that they do not walk in step.
  if spread > 0 then start = before .. ((sent + number * 5003) % spread) .. after .. head end
  local key = is_keyed and ("Idempotency-Key: " .. name .. "\r\n") or ""
  return start .. key .. "Content-Length: " .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency, requests)
  local errors, duration_us = summary.errors, summary.duration
  local first_us, last_us = math.huge, 0
  for _, thread in ipairs(threads) do
    first_us = math.min(first_us, thread:get("started_us"))
    last_us = math.max(last_us, thread:get("ended_us"))
  end
  if last_us > 0 then duration_us = last_us - first_us end
  io.write(string.format(
    '{"requests":%d,"duration_us":%d,"refused":%d,"broken":%d,"p50_us":%d,"p99_us":%d,"max_us":%d}\n',
    summary.requests, duration_us, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
