-- Enqueue one job in ARQ's wire format, once.
-- KEYS: payload, result, queue
-- ARGV: job id, payload up to the enqueue time, payload's life (ms), queue limit, wake-up channel
-- Returns {"queued"}, {"exists", user_uuid of the job that has this id}, or {"full", jobs in the queue}.
local known = redis.call('GET', KEYS[1]) or redis.call('GET', KEYS[2])
if known then
  local readable, record = pcall(cjson.decode, known)
  local arguments = readable and type(record) == 'table' and record.k
  local owner = type(arguments) == 'table' and arguments.user_uuid
  return {'exists', type(owner) == 'string' and owner or ''}
end

local waiting = redis.call('ZCARD', KEYS[3])
if waiting >= tonumber(ARGV[4]) then
  return {'full', waiting}
end

-- The server's clock, with microseconds in the score: turns of one millisecond keep their order.
local now = redis.call('TIME')
local milliseconds = string.format('%d%03d', now[1], math.floor(now[2] / 1000))
local score = string.format('%s.%03d', milliseconds, now[2] % 1000)
redis.call('SET', KEYS[1], ARGV[2] .. milliseconds .. '}', 'PX', ARGV[3])
redis.call('ZADD', KEYS[3], score, ARGV[1])
redis.call('PUBLISH', ARGV[5], ARGV[1])
return {'queued'}
