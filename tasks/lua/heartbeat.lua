-- Keeps a worker's leases: all of them at the price of one key.
-- include: job.lua
--
-- ARGV: owner, lease in ms, ARQ's health key, health text.
-- Returns the ids this worker has a lease for.
-- Guarantees: after a reply, no reaper takes these jobs over for the length of the lease while the worker's
--   connection stands.

local owner, lease_ms = ARGV[1], ARGV[2]
redis.call('SET', ALIVE_PREFIX .. owner, '1', 'PX', lease_ms)
redis.call('SADD', OWNERS, owner)
redis.call('SET', ARGV[3], ARGV[4] .. ' queued=' .. redis.call('ZCARD', QUEUE), 'PX', 5000)
return redis.call('SMEMBERS', running_of(owner))
