-- Claims by unique customers, prebuilt but for the number. Arguments after `--`: token, path, seed, and the most
-- requests all threads together may send (0: as many as the time allows).
local thread_count = 0
local threads = {}

function setup(thread)
  thread:set("number", thread_count)
  thread_count = thread_count + 1
  table.insert(threads, thread)
end

function init(args)
  token, path, seed = args[1], args[2], args[3]
  sent, limit = 0, math.floor(tonumber(args[4]) / 2)
  head = "POST " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " .. token ..
    "\r\nContent-Type: application/json\r\nIdempotency-Key: "
end

function request()
  sent = sent + 1
  if limit > 0 and sent > limit then wrk.thread:stop() end
  local name = seed .. "-" .. number .. "-" .. sent
  local body = '{"customer_id":"cus_' .. name .. '","order_value":89.99}'
  return head .. name .. "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"duration_us":%d,"refused":%d,"broken":%d,"p50_us":%d,"p99_us":%d,"max_us":%d}\n',
    summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
