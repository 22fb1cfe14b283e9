-- Shared by claim.lua and abort.lua, after job.lua.

local INLINE_BYTES = 16384 -- a longer payload is read by the worker, so that no script copies it

-- Sets the lease and returns what a worker needs to run the job:
--   {id, attempt, spared, rank, length of the payload, payload if it is short, 1 if an abort was requested, history}.
local function start(id, job, owner, lease_ttl_ms)
  local attempt = call_or_nil('INCR', RETRY_PREFIX .. id)
  if not attempt then
    attempt = job.attempt + 1
    redis.call('SET', RETRY_PREFIX .. id, attempt)
  end
  -- Numbered above every attempt in the event stream, also where the counter has expired.
  local last = (call_or_nil('XREVRANGE', EVENTS_PREFIX .. id, '+', '-', 'COUNT', 1) or {})[1]
  local spared = job.spared
  if last then
    local seen = tonumber(string.match(last[1], '^%d+'))
    if seen >= attempt then
      spared = spared + seen + 1 - attempt
      attempt = seen + 1
      redis.call('SET', RETRY_PREFIX .. id, attempt)
    end
  end
  redis.call('PEXPIRE', RETRY_PREFIX .. id, STATE_TTL_MS)
  redis.call('SET', lease_of(id), owner .. ':' .. attempt, 'PX', lease_ttl_ms)
  redis.call(
    'HSET', record_of(id),
    'state', 'running', 'owner', owner, 'attempt', attempt, 'spared', spared, 'started', now_ms()
  )
  redis.call('PEXPIRE', record_of(id), STATE_TTL_MS)
  redis.call('SADD', running_of(owner), id)
  leave_ready(id, job)
  park(id, job.rank)
  local aborted = redis.call('ZREM', ABORT, id)
  local history = redis.call('HGET', record_of(id), 'history') or ''
  local length = call_or_nil('STRLEN', JOB_PREFIX .. id) or 0
  local payload = length <= INLINE_BYTES and call_or_nil('GET', JOB_PREFIX .. id) or false
  return { id, attempt, spared, job.rank, length, payload, aborted, history }
end
