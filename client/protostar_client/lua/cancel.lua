-- Ask for the end of a job, as ARQ's Job.abort() does, unless it has ended.
-- KEYS: payload, result, abort set
-- ARGV: job id, wake-up channel, wake-up message
-- Returns 1 if the job was asked to end, 0 if there is nothing to end: an abort entry that no job
-- consumes could kill the next job of the same id.
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end

local now = redis.call('TIME')
redis.call('ZADD', KEYS[3], string.format('%d%03d', now[1], math.floor(now[2] / 1000)), ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
