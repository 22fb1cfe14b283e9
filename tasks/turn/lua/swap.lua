-- Sets a field of a hash, if it still holds what it held when the new value was worked out.
--
-- ARGV: key, field, the value it held ('' for none), the new value.
-- Returns nothing where it is set, or else what it holds: somebody else has written it.

local held = redis.call('HGET', ARGV[1], ARGV[2]) or ''
if held ~= ARGV[3] then return held end
redis.call('HSET', ARGV[1], ARGV[2], ARGV[4])
return nil
