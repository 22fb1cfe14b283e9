-- Ask for the end of a job, as ARQ's Job.abort() does, unless it has ended.
-- KEYS: payload, result, abort set, queue
-- ARGV: job id, wake-up channel, what the wake-up begins with
-- Returns 1 if the job was asked to end, 0 if there is nothing to end: an abort entry that no job
-- consumes could kill the next job of the same id.
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end

-- A request that is older than its job is taken for one that was meant for an earlier job: a deferred job is as
-- old as the moment it is deferred to.
local now = redis.call('TIME')
local asked = now[1] * 1000 + math.floor(now[2] / 1000)
asked = math.max(asked, tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1]) or 0))
redis.call('ZADD', KEYS[3], string.format('%.0f', asked), ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[3] .. ARGV[1])
return 1
