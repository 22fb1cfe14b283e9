-- Makes the jobs of a lost worker ready again, and gives back turns whose holder has left the queue.
-- include: job.lua
--
-- ARGV: owner to reap ('' for none), 1 if that owner has only to be reaped when its lease has expired.
-- Returns the number of jobs taken back.
-- Guarantees: the taken jobs have lost their lease, so that what is left of their owner can't finish them.

local owner, only_expired = ARGV[1], ARGV[2]
local alive = ALIVE_PREFIX .. owner
if owner == '' or (only_expired == '1' and redis.call('EXISTS', alive) == 1) then return 0 end
local taken = 0
for _, id in ipairs(redis.call('SMEMBERS', running_of(owner))) do
  local job = read(id)
  if job and job.state == 'running' and job.owner == owner then
    take_back(id, job, owner, 0, 'worker_lost')
    taken = taken + 1
  end
end
redis.call('DEL', running_of(owner), alive)
redis.call('SREM', OWNERS, owner)
if taken > 0 then redis.call('PUBLISH', WAKE, 'reaped') end
return taken
