-- Takes down how a request to a model went, and pauses the model where that is called for.
-- include: job.lua
--
-- ARGV: the model's gate, token of the request ('' if it is no probe), outcome, why to pause, a pause that is known in
--   ms (0: none), first and longest pause in ms where it is not, failures that open the breaker.
--   Outcomes: 'nothing' (not asked, or given up), 'token' (the first one came), 'answered', 'limited', 'failed'.
-- Returns the ms that the model is paused for.
-- Guarantees: a pause is never shortened, but for the breaker's own by its probe; while the breaker is open, its probe
--   alone closes it or lengthens it.

local FAILURES_MS = 60000 -- failures further apart don't belong together
local MEMORY_MS = 600000 -- a gate that nobody has asked for so long is forgotten

local gate, token, outcome, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local known_ms, first_ms, longest_ms, threshold = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local now = now_ms()

local function number(field) return tonumber(redis.call('HGET', gate, field) or 0) end
local function drop(...) redis.call('HDEL', gate, ...) end

local function pause(ms)
  if now + ms > number('until') then redis.call('HSET', gate, 'until', now + math.floor(ms), 'reason', reason) end
end

local function pause_longer(count) pause(math.min(longest_ms, first_ms * 2 ^ math.min(count - 1, 20))) end

local function open_breaker()
  redis.call('HSET', gate, 'open', 1)
  drop('failures', 'since')
  pause_longer(redis.call('HINCRBY', gate, 'level', 1))
end

local function count_failure()
  if now - number('since') > FAILURES_MS then redis.call('HSET', gate, 'failures', 0, 'since', now) end
  if redis.call('HINCRBY', gate, 'failures', 1) >= threshold then open_breaker() end
end

local is_probe = token ~= '' and redis.call('HGET', gate, 'probe') == token
local was_paused, was_open = number('until') > now, number('open') == 1
if is_probe then drop('probe', 'prober', 'probe_until') end
if is_probe and outcome ~= 'failed' and outcome ~= 'nothing' then drop('open') end
if known_ms > 0 then pause(known_ms) end

if outcome == 'limited' and known_ms <= 0 and not was_paused then
  pause_longer(redis.call('HINCRBY', gate, 'limits', 1))
elseif outcome == 'failed' and is_probe then
  open_breaker()
elseif outcome == 'failed' and not was_open then
  count_failure()
elseif outcome == 'answered' and (is_probe or not was_open) then
  drop('failures', 'since', 'level')
  if not was_paused then drop('limits', 'until', 'reason') end
end

local left_ms = math.max(0, number('until') - now)
redis.call('PEXPIRE', gate, left_ms + MEMORY_MS)
return left_ms
