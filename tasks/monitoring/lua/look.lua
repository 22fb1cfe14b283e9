-- Says how queued and running jobs stand; changes nothing.
-- include: job.lua
--
-- ARGV: ids; a page of them at a time, because their payloads are read here.
-- Returns a list for each job that is still in the queue: {id, score in ARQ's queue, state ('' where no worker has looked
--   at it), attempts begun, owner, job whose turn it waits for, function, mode, user, session, enqueue time in ms};
--   what is not known is ''.

local function text(value) return type(value) == 'string' and value or '' end

local jobs = {}
for _, id in ipairs(ARGV) do
  local score = redis.call('ZSCORE', QUEUE, id)
  if score then
    local record = redis.call('HMGET', record_of(id), 'state', 'session', 'attempt', 'owner')
    local holder = record[1] == 'waiting' and redis.call('HGET', HOLDERS, record[2]) or ''
    local readable, job = pcall(cjson.decode, call_or_nil('GET', JOB_PREFIX .. id) or '')
    if not readable or type(job) ~= 'table' then job = {} end
    local arguments = type(job.k) == 'table' and job.k or {}
    jobs[#jobs + 1] = {
      id, score, record[1] or '', record[3] or '0', record[1] == 'running' and record[4] or '', holder or '',
      text(job.f), text(arguments.mode), text(arguments.user_uuid), text(arguments.session_id),
      type(job.et) == 'number' and string.format('%.0f', job.et) or '',
    }
  end
end
return jobs
