-- Describes queued and running jobs; changes nothing.
-- include: job.lua payload.lua
--
-- ARGV: ids; a page of them at a time, because their payloads are read here.
-- Returns a list for each job that is still in the queue: {id, score in ARQ's queue, state ('' where no worker has looked
--   at it), attempts begun, owner, job whose turn it waits for, function, mode, user, session, enqueue time in ms};
--   an unknown value is ''; of a long payload the beginning and
--   the end are read.

local function text(value) return type(value) == 'string' and value or '' end

-- What a payload holds of a job, by the names of its members.
local function look_into(key)
  local length = call_or_nil('STRLEN', key) or 0
  local head = length > 0 and call_or_nil('GETRANGE', key, 0, HEAD_BYTES - 1) or ''
  local tail = length > 0 and call_or_nil('GETRANGE', key, -64, -1) or ''
  local found = { et = string.match(tail, '"et"%s*:%s*(%d+)[^{}"]*}%s*$') }
  if length <= HEAD_BYTES then
    local name, arguments = decode(head)
    found.f, found.mode, found.user_uuid, found.session_id =
      name, arguments.mode, arguments.user_uuid, arguments.session_id
  else
    for _, name in ipairs({ 'f', 'mode', 'user_uuid', 'session_id' }) do found[name] = member(head, name) end
  end
  return found
end

local jobs = {}
for _, id in ipairs(ARGV) do
  local score = redis.call('ZSCORE', QUEUE, id)
  if score then
    local record = redis.call('HMGET', record_of(id), 'state', 'session', 'attempt', 'owner')
    local holder = record[1] == 'waiting' and redis.call('HGET', HOLDERS, record[2]) or ''
    local job = look_into(JOB_PREFIX .. id)
    jobs[#jobs + 1] = {
      id, score, record[1] or '', record[3] or '0', record[1] == 'running' and record[4] or '', holder or '',
      text(job.f), text(job.mode), text(job.user_uuid), text(job.session_id), text(job.et),
    }
  end
end
return jobs
