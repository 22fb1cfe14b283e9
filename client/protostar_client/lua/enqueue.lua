-- Enqueue one job in ARQ's wire format, once.
-- KEYS: payload, result, queue, abort set, holders, waiting turns of the session
-- ARGV: job id, payload up to the enqueue time, payload's life (ms), queue limit, wake-up channel,
--   what to do if the session is busy (enqueue, reject, interrupt), session ('' for none), function of turns,
--   what keys of payloads begin with, what a wake-up for an abort begins with
-- Returns {"queued"}, {"exists", user_uuid of the job that has this id}, {"full", jobs in the queue}, or
--   {"busy", id of an unfinished turn of the session}.
local id, on_busy, session = ARGV[1], ARGV[6], ARGV[7]

-- How many of the newest jobs that no worker has looked at are looked at here.
local UNSEEN = 1000

local known = redis.call('GET', KEYS[1]) or redis.call('GET', KEYS[2])
if known then
  local readable, record = pcall(cjson.decode, known)
  local arguments = readable and type(record) == 'table' and record.k
  local owner = type(arguments) == 'table' and arguments.user_uuid
  return {'exists', type(owner) == 'string' and owner or ''}
end

local waiting = redis.call('ZCARD', KEYS[3])
if waiting >= tonumber(ARGV[4]) then
  return {'full', waiting}
end

-- The session of a job that no worker has looked at, as the worker will name it.
local function session_of(job_id)
  local payload = redis.pcall('GET', ARGV[9] .. job_id)
  local readable, job = pcall(cjson.decode, type(payload) == 'string' and payload or '')
  local arguments = readable and type(job) == 'table' and job.f == ARGV[8] and job.k
  if type(arguments) ~= 'table' then return nil end
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
