-- Mends what no worker is about to: admitted jobs without a place, sessions held by jobs that are gone.
-- include: job.lua
--
-- ARGV: cursor of the queue, cursor of the holders ('0' starts), number of entries to look at.
-- Returns {next queue cursor, next holders cursor, number mended}.

local mended = 0
local queued = redis.call('ZSCAN', QUEUE, ARGV[1], 'COUNT', ARGV[3])
for i = 1, #queued[2], 2 do
  local id, score = queued[2][i], tonumber(queued[2][i + 1])
  if score < 0 and redis.call('EXISTS', record_of(id)) == 0 then
    redis.call('ZADD', QUEUE, 'XX', -score, id)
    mended = mended + 1
  end
end
local held = redis.call('HSCAN', HOLDERS, ARGV[2], 'COUNT', ARGV[3])
for i = 1, #held[2], 2 do
  if is_gone(held[2][i + 1]) then
    release_turn(held[2][i + 1], held[2][i])
    mended = mended + 1
  end
end
if mended > 0 then redis.call('PUBLISH', WAKE, 'swept') end
return { queued[1], held[1], mended }
