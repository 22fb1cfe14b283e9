-- Takes a request and its tokens from what a model may be asked in a minute, by Redis' clock.
-- include: job.lua
--
-- ARGV: model, requests a minute, tokens a minute (0: no limit), tokens of the request; '' only looks.
-- Returns {0 or ms to wait, requests left, tokens left}; a number that has no limit is -1.
-- Guarantees: a request takes both or nothing.
--
-- Requests are counted one by one. Tokens are counted by the minute of the clock; of the last minute that share counts
-- which still is less than a minute ago.

local MINUTE_MS = 60000

local model, most_requests, most_tokens, cost = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms()
local requests, tokens = LIMITS .. ':requests:' .. model, LIMITS .. ':tokens:' .. model

-- Times of the newest requests, the oldest first; as many as the limit.
local function requests_left()
  local left = most_requests
  for _, time in ipairs(redis.call('LRANGE', requests, -most_requests, -1)) do
    if tonumber(time) > now - MINUTE_MS then left = left - 1 end
  end
  return left
end

local function ms_for_request()
  local oldest = redis.call('LINDEX', requests, -most_requests)
  return oldest and math.max(0, tonumber(oldest) + MINUTE_MS - now) or 0
end

local minute = math.floor(now / MINUTE_MS)
local function tokens_used()
  local counted = redis.call('HMGET', tokens, 'minute', 'used', 'before')
  local used, before = tonumber(counted[2] or 0), tonumber(counted[3] or 0)
  local passed = minute - tonumber(counted[1] or 0)
  if passed == 1 then return 0, used end
  if passed ~= 0 then return 0, 0 end
  return used, before
end

local used, before, left = 0, 0, -1
if most_tokens > 0 then
  used, before = tokens_used()
  left = math.max(0, math.floor(most_tokens - used - before * (1 - (now % MINUTE_MS) / MINUTE_MS)))
end
if not cost then return { 0, most_requests > 0 and requests_left() or -1, left } end

cost = math.min(cost, most_tokens) -- a request that is larger than the whole minute has to pass at some time
local wait = most_requests > 0 and ms_for_request() or 0
if cost > left and most_tokens > 0 then wait = math.max(wait, math.ceil((cost - left) * MINUTE_MS / most_tokens)) end
if wait > 0 then return { wait, -1, left } end

if most_requests > 0 then
  redis.call('RPUSH', requests, now)
  redis.call('LTRIM', requests, -most_requests, -1)
  redis.call('PEXPIRE', requests, MINUTE_MS)
end
if most_tokens > 0 then
  redis.call('HSET', tokens, 'minute', minute, 'used', used + cost, 'before', before)
  redis.call('PEXPIRE', tokens, 2 * MINUTE_MS)
end
return { 0, -1, left - cost }
