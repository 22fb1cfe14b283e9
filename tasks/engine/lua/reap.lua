-- Takes back the jobs of a worker: of one that has died, or of this one as it leaves.
-- include: job.lua
--
-- ARGV: owner; when to do so: 'expired' (if its lease has expired), 'gone' (its connection is gone: if its beats are,
--   too), 'leaving'; the most jobs to take back.
-- Returns {number of jobs taken back, 1 if more are left}.
-- Guarantees: the jobs have lost their lease, so that what is left of their owner can't finish them. If the owner has
--   died while it ran a suspect (see job.lua), the attempt counts for the suspect alone.

local GONE_AFTER_MS = 1200 -- a worker that has beaten since is not gone
local BEAT_MS = 1000 -- a worker that died is considered to have lived so long after its last beat

local owner, when, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local beat, now = last_beat_of(owner), now_ms()
if when == 'expired' and beat or when == 'gone' and beat and now - beat < GONE_AFTER_MS then return { 0, 0 } end
local died = math.min(now, beat and beat > 0 and beat + BEAT_MS or math.huge)

local function lived(job) return job.started > 0 and math.max(0, died - job.started) or 0 end

-- The suspect that has to answer for the death; one that has outlived its earlier attempts is cleared.
local suspect = when ~= 'leaving' and redis.call('HGET', QUARANTINED, owner)
local accused = suspect and read(suspect)
if accused and outlives(accused, lived(accused)) then suspect = false end

local taken = 0
for _, id in ipairs(redis.call('SRANDMEMBER', running_of(owner), limit)) do
  local job = read(id)
  local is_running = job and job.state == 'running' and job.owner == owner
  if not is_running then
    redis.call('SREM', running_of(owner), id)
  elseif id ~= suspect or redis.call('SCARD', running_of(owner)) == 1 then -- the suspect last: every call needs it
    if when ~= 'leaving' then
      job.deaths = redis.call('HINCRBY', record_of(id), 'deaths', 1)
      redis.call('HSET', record_of(id), 'lived', lived(job))
    end
    take_back(id, job, owner, suspect and id ~= suspect and 1 or 0, 'worker_lost')
    taken = taken + 1
  end
end
if taken > 0 then redis.call('PUBLISH', WAKE, 'reaped') end
if redis.call('EXISTS', running_of(owner)) == 1 then return { taken, 1 } end
redis.call('DEL', ALIVE_PREFIX .. owner)
redis.call('SREM', OWNERS, owner)
redis.call('HDEL', QUARANTINED, owner)
return { taken, 0 }
