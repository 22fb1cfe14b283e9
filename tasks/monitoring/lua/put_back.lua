-- Puts a dead job back into ARQ's queue, as if it had just been enqueued.
-- include: job.lua dead.lua
--
-- ARGV: id of the dead letter, job id, payload, its life in ms.
-- Returns 1; 0 if the letter is gone or the job is queued already.
-- Guarantees: a letter is put back once; its readers see the new attempt alone, numbered above the old ones.

local letter, id, payload, life_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local kept = redis.call('XRANGE', DEAD, letter, letter)[1]
if redis.call('EXISTS', JOB_PREFIX .. id) == 1 or not kept then return 0 end
remove_letter(kept)
redis.call('DEL', RESULT_PREFIX .. id, EVENTS_PREFIX .. id)
redis.call('SET', JOB_PREFIX .. id, payload, 'PX', life_ms)
redis.call('ZADD', QUEUE, now_ms(), id)
redis.call('PUBLISH', WAKE, id)
return 1
