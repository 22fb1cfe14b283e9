-- Sets a field of a hash, if it still has the value from which the new one was computed.
--
-- ARGV: key, field, the value it held ('' for none), the new value.
-- Returns nil where the field is set, or else its value, which another process has written.

local held = redis.call('HGET', ARGV[1], ARGV[2]) or ''
if held ~= ARGV[3] then return held end
redis.call('HSET', ARGV[1], ARGV[2], ARGV[4])
return nil
