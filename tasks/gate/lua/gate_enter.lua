-- Checks whether a model takes requests now, and lets one request through to probe a model that was down.
-- include: job.lua
--
-- ARGV: the model's gate, owner, token (names this request), how long a probe may take in ms, 1 only to look.
-- Returns {0 or ms to wait, why to wait, 1 if this request is the probe}.
-- Guarantees: while a pause lasts nobody is let through; after the pause of a breaker one request at a time is, until
--   it is reported (see gate_report.lua), its worker is dead or its time is over.
--
-- A gate is a hash: `until` ends the pause and `reason` says what it is for; `open` is 1 while the breaker is open,
-- `level` the number of its pauses so far; `failures` since `since`; `limits` the refusals in a row that named no
-- time; `probe`, `prober` and `probe_until` the token, the owner and the last moment of the probe.

local PROBE_WAIT_MS = 1000

local gate, owner, token, probe_ms, only_look = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local state = redis.call('HMGET', gate, 'until', 'reason', 'open', 'prober', 'probe_until')
local now, paused_until, reason = now_ms(), tonumber(state[1] or 0), state[2] or ''

if paused_until > now then return { paused_until - now, reason, 0 } end
if state[3] ~= '1' then return { 0, '', 0 } end
local probe_left_ms = tonumber(state[5] or 0) - now
if probe_left_ms > 0 and redis.call('EXISTS', ALIVE_PREFIX .. state[4]) == 1 then
  return { math.min(probe_left_ms, PROBE_WAIT_MS), reason, 0 }
end
if only_look then return { 0, '', 0 } end
redis.call('HSET', gate, 'probe', token, 'prober', owner, 'probe_until', now + probe_ms)
return { 0, '', 1 }
