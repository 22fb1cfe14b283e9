-- Keeps a worker's leases: all of them at the price of one key.
-- include: job.lua
--
-- ARGV: owner, lease in ms, ARQ's health key, health text (empty: the key is not renewed), the worker's beat (a JSON
--   object with a field or more, see tasks/monitoring/worker_report.py; the time is added).
-- Returns the ids this worker has a lease for.
-- Guarantees: after a reply, no reaper takes these jobs over for the length of the lease while the worker's
--   connection stands.

local owner, lease_ms = ARGV[1], ARGV[2]
local beat = string.format('%s,"at_ms":%d}', string.sub(ARGV[5], 1, -2), now_ms())
redis.call('SET', ALIVE_PREFIX .. owner, beat, 'PX', lease_ms)
redis.call('SADD', OWNERS, owner)
if ARGV[4] ~= '' then
  redis.call('SET', ARGV[3], ARGV[4] .. ' queued=' .. redis.call('ZCARD', QUEUE), 'PX', 5000)
end
return redis.call('SMEMBERS', running_of(owner))
