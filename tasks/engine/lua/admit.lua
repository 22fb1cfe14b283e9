-- Shared by claim.lua and abort.lua, after job.lua: looks at a due job for the first time, or again.

-- The share of a worker that a job belongs to, and its session ('' where it has none).
local function classify(id, classes, turn_function)
  local payload = call_or_nil('GET', JOB_PREFIX .. id)
  local readable, job = pcall(cjson.decode, payload or '')
  local class = classes[turn_function] or DEFAULT_CLASS
  if not readable or type(job) ~= 'table' then return class, '' end
  class = classes[job.f] or class
  local arguments = job.k
  if job.f ~= turn_function or type(arguments) ~= 'table' then return class, '' end
  local user, session = arguments.user_uuid, arguments.session_id
  if type(user) ~= 'string' or type(session) ~= 'string' then return class, '' end
  local hex = string.gsub(string.gsub(string.lower(user), '^urn:uuid:', ''), '[^0-9a-f]', '')
  return class, hex .. ':' .. session
end

local function admit(id, score, classes, turn_function)
  local job = read(id)
  if job and (job.state == 'waiting' or job.state == 'ready') then
    park(id, job.rank)
    return job
  end
  if job and job.state == 'running' then
    if redis.call('EXISTS', lease_of(id)) == 1 then
      park(id, job.rank)
    else
      take_back(id, job, job.owner, 0, 'lease_expired')
    end
    return read(id)
  end
  if not job then
    -- A score that is no time would leave the job where nobody looks.
    if tonumber(score) <= 0 or tonumber(score) == math.huge then score = now_ms() end
    local class, session = classify(id, classes, turn_function)
    job = { class = class, session = session, rank = score, attempt = 0, spared = 0 }
    redis.call('HSET', record_of(id), 'class', class, 'session', session, 'rank', score)
    redis.call('PEXPIRE', record_of(id), STATE_TTL_MS)
    -- An abort that is older than the job was meant for an earlier job with this id.
    local asked = redis.call('ZSCORE', ABORT, id)
    if asked and tonumber(asked) + 1000 < tonumber(score) then redis.call('ZREM', ABORT, id) end
  end
  local holder = job.session ~= '' and redis.call('HGET', HOLDERS, job.session)
  if holder and holder ~= id and not is_gone(holder) then
    redis.call('HSET', record_of(id), 'state', 'waiting')
    redis.call('ZADD', turns_of(job.session), job.rank, id)
    park(id, job.rank)
  else
    if job.session ~= '' then redis.call('HSET', HOLDERS, job.session, id) end
    make_ready(id, job)
  end
  return read(id)
end
