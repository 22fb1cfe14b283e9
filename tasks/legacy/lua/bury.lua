-- Moves the oldest element of the older list to the dead ones, in one step, and tells its reader where there is one.
-- The dead ones are bounded in number and in age; the caller bounds each one's size.
--
-- ARGV: the element as it was seen, what to keep of it, the reader's channel, what to say there ('' for nothing),
--   the longest number of dead ones, their life in seconds, the time before which a dead one is too old (ISO 8601).
-- Returns 'buried', or 'taken' if something else is the oldest element now: then nothing was changed.

local MAX_REMOVALS = 100

if redis.call('LINDEX', OLDER_QUEUE, -1) ~= ARGV[1] then return 'taken' end
redis.call('LPUSH', OLDER_DEAD, ARGV[2])
redis.call('LTRIM', OLDER_DEAD, 0, ARGV[5] - 1)
redis.call('EXPIRE', OLDER_DEAD, ARGV[6])
for _ = 1, MAX_REMOVALS do
  local at = string.match(redis.call('LINDEX', OLDER_DEAD, -1), '"at": ?"([^"]+)"}$')
  if not at or at >= ARGV[7] then break end
  redis.call('RPOP', OLDER_DEAD)
end
redis.call('RPOP', OLDER_QUEUE)
if ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return 'buried'
