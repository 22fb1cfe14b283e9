/**
 * Enqueues a job once.
 * KEYS: payload, result, queue. ARGV: job id, payload up to the enqueue time, queue limit.
 * Returns ["queued"], ["exists", record of the job that has this id] or ["full", jobs in the queue].
 */
export const ENQUEUE = `
local known = redis.call('GET', KEYS[1]) or redis.call('GET', KEYS[2])
if known then return {'exists', known} end
local waiting = redis.call('ZCARD', KEYS[3])
if waiting >= tonumber(ARGV[3]) then return {'full', waiting} end

local now = redis.call('TIME')
local milliseconds = string.format('%d%03d', now[1], math.floor(now[2] / 1000))
redis.call('SET', KEYS[1], ARGV[2] .. ',"et":' .. milliseconds .. '}', 'PX', 86400000)
redis.call('ZADD', KEYS[3], string.format('%s.%03d', milliseconds, now[2] % 1000), ARGV[1])
redis.call('PUBLISH', 'protostar:wake', ARGV[1])
return {'queued'}
`;

/**
 * Asks for the end of a job that has not ended. A request older than its job is taken for one that was meant for an
 * earlier job of the same id, and a deferred job is as old as the moment it is deferred to.
 * KEYS: payload, result, abort set, queue. ARGV: job id.
 */
export const CANCEL = `
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local now = redis.call('TIME')
local asked = now[1] * 1000 + math.floor(now[2] / 1000)
asked = math.max(asked, tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1]) or 0))
redis.call('ZADD', KEYS[3], string.format('%.0f', asked), ARGV[1])
redis.call('PUBLISH', 'protostar:wake', 'abort:' .. ARGV[1])
return 1
`;
