-- Raises the number of a running attempt, where PostgreSQL holds a later one than Redis.
-- include: job.lua
--
-- ARGV: id, owner, attempt, least new attempt.
-- Returns 1, or 0 if the lease is not this attempt's.
-- Guarantees: attempts of a job rise, also across the expiry of its keys; the raise does not count as a try.

local id, owner, attempt, raised = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local job = read(id)
if not is_held(job, owner, attempt) then return 0 end
redis.call('SET', RETRY_PREFIX .. id, raised, 'KEEPTTL')
redis.call('SET', lease_of(id), owner .. ':' .. raised, 'KEEPTTL')
redis.call('HSET', record_of(id), 'attempt', raised, 'spared', job.spared + raised - attempt)
return 1
