-- Moves the oldest element of the older list to the dead ones, in one step, and tells its reader where there is one.
--
-- ARGV: the element as it was seen, what to keep of it, the reader's channel, what to say there ('' for nothing).
-- Returns 'buried', or 'taken' if something else is the oldest element now: then nothing was changed.

if redis.call('LINDEX', OLDER_QUEUE, -1) ~= ARGV[1] then return 'taken' end
redis.call('LPUSH', OLDER_DEAD, ARGV[2])
redis.call('RPOP', OLDER_QUEUE)
if ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return 'buried'
