-- Claims the queued jobs whose abort was requested, past slots and turns, so that a worker can end them.
-- include: job.lua payload.lua admit.lua start.lua
--
-- ARGV: owner, then the JSON object of claim.lua.
-- Returns {ids of running jobs to abort, claims as in claim.lua, now in ms}.
-- Guarantees: an abort of a job that is not queued is dropped, and so can't hit a later job with its id.

local MOST_CLAIMS = 100

local owner, options = ARGV[1], cjson.decode(ARGV[2])
local running, claims = {}, {}
for _, id in ipairs(redis.call('ZRANGE', ABORT, 0, 999)) do
  local score = redis.call('ZSCORE', QUEUE, id)
  if not score then
    redis.call('ZREM', ABORT, id)
  elseif redis.call('EXISTS', lease_of(id)) == 1 then
    running[#running + 1] = id
  elseif #claims < MOST_CLAIMS then
    local job = read(id)
    if not job then job = admit(id, score, options.classes, options.turn_function) end
    if job and redis.call('ZSCORE', ABORT, id) then
      if job.session ~= '' then redis.call('ZREM', turns_of(job.session), id) end
      claims[#claims + 1] = start(id, job, owner, options.lease_ttl_ms[job.class])
    end
  end
end
return { running, claims, now_ms() }
