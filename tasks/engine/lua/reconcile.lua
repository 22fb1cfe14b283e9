-- Hands back the jobs of a worker that the reply to a claim did not reach.
-- include: job.lua
--
-- ARGV: owner, then the ids of the jobs that it runs.
-- Returns the number of jobs handed back; their attempt is not counted.

local owner, running = ARGV[1], {}
for i = 2, #ARGV do running[ARGV[i]] = true end
local back = 0
for _, id in ipairs(redis.call('SMEMBERS', running_of(owner))) do
  local job = read(id)
  if not running[id] and job then
    take_back(id, job, owner, 1, 'claim_unanswered')
    back = back + 1
  end
end
if back > 0 then redis.call('PUBLISH', WAKE, 'reconciled') end
return back
