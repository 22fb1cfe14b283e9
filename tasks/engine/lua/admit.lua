-- Shared by claim.lua and abort.lua, after job.lua and payload.lua: looks at a due job for the first time, or again.

local LONGEST_BYTES = 8388608 -- no longer payload is a valid request
local WHOLE_BYTES = 1048576 -- so much a call is parsed of payloads that hide the names behind the page: 3 ms

local parsed_bytes = 0

local function names_in(payload)
  local name, arguments = decode(payload)
  return name, arguments.user_uuid, arguments.session_id
end

-- The function of a job, its user and its session; false where this call has parsed enough.
local function names_of(id)
  local key = JOB_PREFIX .. id
  local length = call_or_nil('STRLEN', key) or 0
  if length <= HEAD_BYTES then return names_in(call_or_nil('GET', key)) end
  local head = redis.call('GETRANGE', key, 0, HEAD_BYTES - 1)
  local name, user, session = member(head, 'f'), member(head, 'user_uuid'), member(head, 'session_id')
  if name and user and session and string.find(head, '"f"', 1, true) < (string.find(head, '"k"', 1, true) or 0) then
    return name, user, session
  end
  if length > LONGEST_BYTES then return name end
  if parsed_bytes > 0 and parsed_bytes + length > WHOLE_BYTES then return false end
  parsed_bytes = parsed_bytes + length
  return names_in(redis.call('GET', key))
end

-- The share of a worker that a job belongs to, and its session ('' where it has none); nil as `names_of` is false.
local function classify(id, classes, turn_function)
  local name, user, session = names_of(id)
  if name == false then return nil end
  local class = classes[name or turn_function] or classes[turn_function] or DEFAULT_CLASS
  if name ~= turn_function or type(user) ~= 'string' or type(session) ~= 'string' then return class, '' end
  local hex = string.gsub(string.gsub(string.lower(user), '^urn:uuid:', ''), '[^0-9a-f]', '')
  return class, hex .. ':' .. session
end

-- Returns the job; nil where this call has parsed enough and the next one has to look.
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
    return job
  end
  if not job then
    -- A score that is not a time would leave the job where no worker looks.
    if tonumber(score) <= 0 or tonumber(score) == math.huge then score = now_ms() end
    local class, session = classify(id, classes, turn_function)
    if not class then return nil end
    job = { class = class, session = session, rank = score, attempt = 0, spared = 0, owner = '', deaths = 0 }
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
  return job
end
