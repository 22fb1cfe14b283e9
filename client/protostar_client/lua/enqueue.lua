-- Enqueue one job in ARQ's wire format, once.
-- KEYS: payload, result, queue, abort set, holders, waiting turns of the session
-- ARGV: job id, payload up to the enqueue time, payload's life (ms), queue limit, wake-up channel,
--   what to do if the session is busy (enqueue, reject, interrupt), session ('' for none), function of turns,
--   what keys of payloads begin with, what a wake-up for an abort begins with
-- Returns {"queued"}, {"exists", user_uuid of the job that has this id}, {"full", jobs in the queue}, or
--   {"busy", id of an unfinished turn of the session}.
local id, on_busy, session = ARGV[1], ARGV[6], ARGV[7]

-- How many of the newest jobs that no worker has looked at are looked at here.
local UNSEEN = 500
-- Where producers put the names of a job, before its page: a long payload is not read as a whole.
local HEAD_BYTES = 1024

-- The text of a JSON member in an unfinished piece of JSON. A quoted name with a colon after it is never inside a text.
local function member(json, name)
  local _, at = string.find(json, '"' .. name .. '"%s*:%s*"')
  local from = at
  while at do
    at = string.find(json, '["\\]', at + 1)
    if at and string.sub(json, at, at) == '"' then
      local readable, text = pcall(cjson.decode, '[' .. string.sub(json, from, at) .. ']')
      return readable and text[1] or nil
    end
    at = at and at + 1
  end
end

-- The function of a job and its arguments; of a long payload those that stand at its beginning.
local function look_into(key)
  local length = redis.pcall('STRLEN', key)
  if type(length) ~= 'number' or length == 0 then return nil, {} end
  if length > HEAD_BYTES then
    local head = redis.call('GETRANGE', key, 0, HEAD_BYTES - 1)
    return member(head, 'f'), {user_uuid = member(head, 'user_uuid'), session_id = member(head, 'session_id')}
  end
  local readable, job = pcall(cjson.decode, redis.call('GET', key))
  if not readable or type(job) ~= 'table' then return nil, {} end
  return job.f, type(job.k) == 'table' and job.k or {}
end

for _, key in ipairs({KEYS[1], KEYS[2]}) do
  if redis.call('EXISTS', key) == 1 then
    local _, arguments = look_into(key)
    local owner = arguments.user_uuid
    if not owner and redis.call('STRLEN', key) > HEAD_BYTES then
      local readable, record = pcall(cjson.decode, redis.call('GET', key))
      owner = readable and type(record) == 'table' and type(record.k) == 'table' and record.k.user_uuid
    end
    return {'exists', type(owner) == 'string' and owner or ''}
  end
end

local waiting = redis.call('ZCARD', KEYS[3])
if waiting >= tonumber(ARGV[4]) then
  return {'full', waiting}
end

-- The session of a job that no worker has looked at, as the worker will name it.
local function session_of(job_id)
  local its_function, arguments = look_into(ARGV[9] .. job_id)
  if its_function ~= ARGV[8] then return nil end
  local user, name = arguments.user_uuid, arguments.session_id
  if type(user) ~= 'string' or type(name) ~= 'string' then return nil end
  return string.gsub(string.gsub(string.lower(user), '^urn:uuid:', ''), '[^0-9a-f]', '') .. ':' .. name
end

-- The running turn of the session, those that wait for it, and those that no worker has looked at.
local function unfinished()
  local turns = redis.call('ZRANGE', KEYS[6], 0, -1)
  local holder = redis.call('HGET', KEYS[5], session)
  if holder then table.insert(turns, 1, holder) end
  for _, job_id in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[3], '+inf', '(0', 'LIMIT', 0, UNSEEN)) do
    if job_id ~= holder and session_of(job_id) == session then turns[#turns + 1] = job_id end
  end
  local queued = {}
  for _, job_id in ipairs(turns) do
    local score = redis.call('ZSCORE', KEYS[3], job_id)
    if score then queued[#queued + 1] = {job_id, tonumber(score)} end
  end
  return queued
end

-- The server's clock, with microseconds in the score: turns of one millisecond keep their order.
local now = redis.call('TIME')
local milliseconds = string.format('%d%03d', now[1], math.floor(now[2] / 1000))
local score = string.format('%s.%03d', milliseconds, now[2] % 1000)

if on_busy ~= 'enqueue' and session ~= '' then
  local turns = unfinished()
  if on_busy == 'reject' and turns[1] then return {'busy', turns[1][1]} end
  for _, turn in ipairs(turns) do
    -- As in cancel.lua: a deferred job is as old as the moment it is deferred to.
    local asked = math.max(tonumber(milliseconds), turn[2])
    redis.call('ZADD', KEYS[4], string.format('%.0f', asked), turn[1])
    redis.call('PUBLISH', ARGV[5], ARGV[10] .. turn[1])
  end
end

redis.call('SET', KEYS[1], ARGV[2] .. milliseconds .. '}', 'PX', ARGV[3])
redis.call('ZADD', KEYS[3], score, id)
redis.call('PUBLISH', ARGV[5], id)
return {'queued'}
