-- Lists the workers that have missed a beat.
-- include: job.lua
--
-- ARGV: the ms without a beat from which a worker is listed.
-- Returns {owner, ms since its last beat or -1 if its lease has expired, owner, ...}.

local silent, now = {}, now_ms()
for _, owner in ipairs(redis.call('SMEMBERS', OWNERS)) do
  local beat = last_beat_of(owner)
  if not beat or now - beat >= tonumber(ARGV[1]) then
    silent[#silent + 1] = owner
    silent[#silent + 1] = beat and now - beat or -1
  end
end
return silent
