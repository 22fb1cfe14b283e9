-- Ends an attempt: for good, until later, or by handing the job over.
-- include: job.lua dead.lua
--
-- ARGV: id, owner, attempt, how ('done', 'retry', 'hand_over'), then
--   done:       result ('' for none), result TTL in ms (0 keeps it), dead letter (JSON object, '' for none)
--   retry:      delay in ms, 1 if the attempt is not to be counted, reason
-- Returns 1, or 0 if the lease is not this attempt's: then nothing was changed.
-- Guarantees: only the newest attempt finishes; the next turn of the session becomes ready in the same step.

local id, owner, attempt, how = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local job = read(id)
if not is_held(job, owner, attempt) then return 0 end

if how == 'hand_over' then
  take_back(id, job, owner, 1, 'handed_over')
  redis.call('PUBLISH', WAKE, id)
  return 1
end

leave_owner(id, owner)
if how == 'retry' then
  note(id, job, ARGV[7])
  redis.call('HINCRBY', record_of(id), 'spared', ARGV[6])
  redis.call('HSET', record_of(id), 'state', 'deferred')
  redis.call('ZADD', QUEUE, 'XX', now_ms() + ARGV[5], id)
  return 1
end

local result, ttl_ms, dead_letter = ARGV[5], tonumber(ARGV[6]), ARGV[7]
if result ~= '' then
  if ttl_ms > 0 then
    redis.call('SET', RESULT_PREFIX .. id, result, 'PX', ttl_ms)
  else
    redis.call('SET', RESULT_PREFIX .. id, result)
  end
end
if dead_letter ~= '' then keep_letter(dead_letter) end
redis.call('DEL', RETRY_PREFIX .. id, JOB_PREFIX .. id, record_of(id))
redis.call('ZREM', ABORT, id)
redis.call('ZREM', QUEUE, id)
release_turn(id, job.session)
return 1
