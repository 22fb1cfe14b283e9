-- Claims the queued jobs that somebody asked to abort, past slots and turns, so that a worker can end them.
-- include: job.lua admit.lua
--
-- ARGV: owner, then the JSON object of claim.lua.
-- Returns {ids asked for that run somewhere, claims as in claim.lua}.
-- Guarantees: an abort of a job that is not queued is dropped, and so can't hit a later job with its id.

local owner, options = ARGV[1], cjson.decode(ARGV[2])
local running, claims = {}, {}
for _, id in ipairs(redis.call('ZRANGE', ABORT, 0, 999)) do
  local score = redis.call('ZSCORE', QUEUE, id)
  if not score then
    redis.call('ZREM', ABORT, id)
  elseif redis.call('EXISTS', lease_of(id)) == 1 then
    running[#running + 1] = id
  else
    local job = read(id)
    if not job then job = admit(id, score, options.classes, options.turn_function) end
    if redis.call('ZSCORE', ABORT, id) then
      if job.session ~= '' then redis.call('ZREM', turns_of(job.session), id) end
      claims[#claims + 1] = start(id, job, owner, options.lease_ttl_ms[job.class])
    end
  end
end
return { running, claims }
