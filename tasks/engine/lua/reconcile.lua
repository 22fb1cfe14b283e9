-- Hands back jobs that Redis gave to a worker which never heard of them (the reply to its claim was lost).
-- include: job.lua
--
-- ARGV: owner, then the ids it knows.
-- Returns the number of jobs handed back; their attempt is not counted.

local owner, known = ARGV[1], {}
for i = 2, #ARGV do known[ARGV[i]] = true end
local back = 0
for _, id in ipairs(redis.call('SMEMBERS', running_of(owner))) do
  local job = read(id)
  if not known[id] and job then
    take_back(id, job, owner, 1, 'claim_unanswered')
    back = back + 1
  end
end
if back > 0 then redis.call('PUBLISH', WAKE, 'reconciled') end
return back
