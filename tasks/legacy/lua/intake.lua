-- Makes the oldest element of the older list a chat job, in one step.
--
-- ARGV: the element as it was seen, job id, payload up to the enqueue time, payload's life in ms, user's UUID.
-- Returns 'queued'; 'repeated' (the user's job has this id already: the element is the same turn, and gone);
--   'taken' (something else is the oldest element now) or 'foreign' (the id is another user's job): nothing changed.
-- Guarantees: an element is in the list or a job in the queue, never neither, never both; jobs keep the list's order.

local element, id, payload, life_ms, user = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if redis.call('LINDEX', OLDER_QUEUE, -1) ~= element then return 'taken' end

local function hex(uuid) return (string.gsub(string.gsub(string.lower(uuid), '^urn:uuid:', ''), '[^0-9a-f]', '')) end

local known = redis.call('GET', JOB_PREFIX .. id) or redis.call('GET', RESULT_PREFIX .. id)
if known then
  local readable, record = pcall(cjson.decode, known)
  local arguments = readable and type(record) == 'table' and record.k
  local owner = type(arguments) == 'table' and arguments.user_uuid
  if type(owner) ~= 'string' or hex(owner) ~= hex(user) then return 'foreign' end
  redis.call('RPOP', OLDER_QUEUE)
  return 'repeated'
end

-- Scored as the client's enqueue.lua does it, so that the turns of old and new producers are in one order.
local now = redis.call('TIME')
local milliseconds = string.format('%d%03d', now[1], math.floor(now[2] / 1000))
redis.call('SET', JOB_PREFIX .. id, payload .. milliseconds .. '}', 'PX', life_ms)
redis.call('ZADD', QUEUE, string.format('%s.%03d', milliseconds, now[2] % 1000), id)
redis.call('RPOP', OLDER_QUEUE)
redis.call('PUBLISH', WAKE, id)
return 'queued'
