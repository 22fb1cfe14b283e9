-- Claims jobs for one worker. Looks at each due job once, whatever the number of running or waiting jobs.
-- include: job.lua admit.lua
--
-- ARGV: owner, the most due jobs to look at, then a JSON object with
--   classes        {function: class}
--   turn_function  the function whose jobs are turns of a session
--   free           {class: number of free slots}
--   lease_ttl_ms   {class: time after which the in-progress key goes by itself}
-- Returns {claims, next_due_ms or -1, 1 if there may be more due jobs to look at};
--   a claim is {id, attempt, spared, rank, payload or nil, 1 if an abort was asked for, history (see note)}.
-- Guarantees: a job is claimed by one worker; of a session one job is claimed at a time, lowest rank first.

local owner, limit, options = ARGV[1], tonumber(ARGV[2]), cjson.decode(ARGV[3])
local now = now_ms()
local function first_after(score)
  return redis.call('ZRANGEBYSCORE', QUEUE, '(' .. score, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
end

-- A worker with nothing to do asks four times a second: then two looks have to be enough.
local next_due, has_more = redis.call('ZRANGEBYSCORE', QUEUE, 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2], 0
if next_due and tonumber(next_due) < now + 1 then
  local due = redis.call('ZRANGEBYSCORE', QUEUE, 0, now + 0.999, 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #due, 2 do admit(due[i], due[i + 1], options.classes, options.turn_function) end
  next_due, has_more = first_after(now), #due == 2 * limit and 1 or 0
end

local wanted = {}
for class, free in pairs(options.free) do
  if free > 0 then wanted[#wanted + 1] = ready_of(class) end
end
if #wanted == 0 or redis.call('EXISTS', unpack(wanted)) == 0 then return { {}, next_due or '-1', has_more } end

local claims = {}
for class, free in pairs(options.free) do
  while free > 0 do
    local id = redis.call('ZPOPMIN', ready_of(class))[1]
    if not id then break end
    local job = read(id)
    if job and is_gone(id) then
      forget(id, job)
    elseif job then
      claims[#claims + 1] = start(id, job, owner, options.lease_ttl_ms[class])
      free = free - 1
    end
  end
end

return { claims, next_due or '-1', has_more }
