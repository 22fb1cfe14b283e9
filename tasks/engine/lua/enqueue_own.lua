-- Enqueues a job of the worker's own, under an id that no producer can block.
-- include: job.lua payload.lua
--
-- ARGV: id, payload up to the enqueue time, payload's life in ms, when it is due in ms (0 is now).
-- Returns 1; 0 where this job is in the queue or has a result: then nothing was changed.
-- Guarantees: a job of a producer with this id gives way, queued, running or ended.

local OWN_BYTES = 65536 -- a job of the worker's own is shorter, with its result

local id, life_ms, due_ms = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms()
local payload = ARGV[2] .. string.format('%.0f', now) .. '}'
local name, arguments = decode(payload)

local function are_equal(ours, theirs)
  for key, value in pairs(ours) do
    if theirs[key] ~= value then return false end
  end
  return true
end

-- Whether a payload or a result is of this very job: the same function with the same arguments.
local function is_own(key)
  local length = call_or_nil('STRLEN', key) or 0
  local its_name, its_arguments = decode(length <= OWN_BYTES and call_or_nil('GET', key))
  return its_name == name and are_equal(arguments, its_arguments) and are_equal(its_arguments, arguments)
end

if is_own(JOB_PREFIX .. id) and not is_gone(id) then return 0 end
if redis.call('EXISTS', JOB_PREFIX .. id) == 0 and is_own(RESULT_PREFIX .. id) then return 0 end

local job = read(id)
if job then
  if job.state == 'running' then leave_owner(id, job.owner) end
  if job.session ~= '' then redis.call('ZREM', turns_of(job.session), id) end
  forget(id, job)
end
-- Attempts go on rising, so that what is left of the other job is fenced; its attempts are not this job's tries.
redis.call('HSET', record_of(id), 'spared', tonumber(call_or_nil('GET', RETRY_PREFIX .. id)) or 0)
redis.call('PEXPIRE', record_of(id), STATE_TTL_MS)
redis.call('DEL', RESULT_PREFIX .. id)
redis.call('SET', JOB_PREFIX .. id, payload, 'PX', life_ms)
redis.call('ZADD', QUEUE, string.format('%.0f', math.max(due_ms, now)), id)
redis.call('PUBLISH', WAKE, id)
return 1
