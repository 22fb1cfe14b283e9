-- Claims jobs for one worker. Looks at each due job once, whatever the number of running or waiting jobs.
-- include: job.lua payload.lua admit.lua start.lua
--
-- ARGV: owner, the most due jobs to look at, then a JSON object with
--   classes        {function: class}
--   turn_function  the function whose jobs are turns of a session
--   free           {class: number of free slots}
--   lease_ttl_ms   {class: time after which the in-progress key goes by itself}
-- Returns {claims, ms until the next job is due or -1, 1 if there may be more due jobs to look at, now in ms};
--   a claim is as in start.lua.
-- Guarantees: a job is claimed by one worker; of a session one job is claimed at a time, lowest rank first; a worker
--   has one suspect at most (see job.lua).

local owner, limit, options = ARGV[1], tonumber(ARGV[2]), cjson.decode(ARGV[3])
local now = now_ms()
local function first_after(score)
  return redis.call('ZRANGEBYSCORE', QUEUE, '(' .. score, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
end

-- A worker with nothing to do asks four times a second: then two looks have to be enough.
local next_due, has_more = redis.call('ZRANGEBYSCORE', QUEUE, 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2], 0
if next_due and tonumber(next_due) < now + 1 then
  local due = redis.call('ZRANGEBYSCORE', QUEUE, 0, now + 0.999, 'WITHSCORES', 'LIMIT', 0, limit)
  has_more = #due == 2 * limit and 1 or 0
  for i = 1, #due, 2 do
    if not admit(due[i], due[i + 1], options.classes, options.turn_function) then
      has_more = 1
      break
    end
  end
  next_due = first_after(now)
end
local wait_ms = next_due and math.min(math.ceil(tonumber(next_due) - now), 86400000) or -1

local wanted = {}
for class, free in pairs(options.free) do
  if free > 0 then
    wanted[#wanted + 1] = ready_of(class)
    wanted[#wanted + 1] = suspects_of(class)
  end
end
if #wanted == 0 or redis.call('EXISTS', unpack(wanted)) == 0 then return { {}, wait_ms, has_more, now } end

-- Whether the worker may take a suspect: it runs none, or the one it runs is cleared here.
local function quarantine_is_free()
  local id = redis.call('HGET', QUARANTINED, owner)
  if not id then return true end
  local job = read(id)
  if job and job.state == 'running' and job.owner == owner then
    if not outlives(job, now - job.started) then return false end
    redis.call('HSET', record_of(id), 'deaths', 0)
  end
  redis.call('HDEL', QUARANTINED, owner)
  return true
end

local claims = {}

-- Starts the first job of a set; false where the set is empty.
local function start_next(set, class)
  while true do
    local id = redis.call('ZPOPMIN', set)[1]
    if not id then return false end
    local job = read(id)
    if job and not is_gone(id) then
      claims[#claims + 1] = start(id, job, owner, options.lease_ttl_ms[class])
      return id
    elseif job then
      forget(id, job)
    end
  end
end

for class, free in pairs(options.free) do
  if free > 0 and redis.call('EXISTS', suspects_of(class)) == 1 and quarantine_is_free() then
    local id = start_next(suspects_of(class), class)
    if id then
      redis.call('HSET', QUARANTINED, owner, id)
      free = free - 1
    end
  end
  while free > 0 and start_next(ready_of(class), class) do free = free - 1 end
end

return { claims, wait_ms, has_more, now }
