-- Draws from buckets of one account, the same number from each: the generic cell rate algorithm.
-- KEYS: a bucket each: the instant, in us of this server's clock, at which it is full again.
-- ARGV: how many are wanted, or with a minus given back; then each bucket's interval in us and its burst.
-- Answers how many were granted, then for each bucket how many are left and after how many us there is one more.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local granted = tonumber(ARGV[1])
local is_back = granted < 0
local intervals, rooms, full_at = {}, {}, {}
for i = 1, #KEYS do
    local interval, burst = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
    intervals[i], rooms[i] = interval, interval * burst
    full_at[i] = math.max(now, tonumber(redis.call('GET', KEYS[i]) or '0'))
    if not is_back then
        -- Less than none where the burst was more when this was drawn.
        granted = math.max(0, math.min(granted, math.floor((now + rooms[i] - full_at[i]) / interval)))
    end
end
local answer = {granted}
for i = 1, #KEYS do
    local interval = intervals[i]
    local at = full_at[i] + granted * interval
    if granted ~= 0 then
        if at > now then
            redis.call('SET', KEYS[i], string.format('%.0f', at), 'PX', math.ceil((at - now) / 1000))
        else
            redis.call('DEL', KEYS[i])
        end
    end
    local room = now + rooms[i] - math.max(at, now)
    local left = math.max(0, math.floor(room / interval))
    answer[2 * i] = left
    answer[2 * i + 1] = at <= now and 0 or (left + 1) * interval - room
end
return answer
