-- Appends events of many answers at once and mirrors them to their older channels.
-- include: job.lua
--
-- ARGV: TTL in s, then for each answer: job id, owner, attempt, channel, number of events,
--   and for each event: seq, data, text for the channel ('' for none).
-- Returns for each answer 1; 0 where the attempt has lost its lease, -1 where its key holds no stream: then
--   nothing of it was appended.
-- Guarantees: ids {attempt}-{seq} rise; an event is appended and mirrored once, also when a call is repeated.

local ttl_s = ARGV[1]

local function append(id, owner, attempt, channel, first, count)
  local job = read(id)
  if not job or job.owner ~= owner or job.attempt ~= tonumber(attempt) or job.state ~= 'running' then return 0 end
  local stream = EVENTS_PREFIX .. id
  local newest = call_or_nil('XREVRANGE', stream, '+', '-', 'COUNT', 1)
  if not newest then return -1 end
  local last_attempt, last_seq = string.match(newest[1] and newest[1][1] or '0-0', '^(%d+)-(%d+)$')
  local appended = last_attempt == attempt and tonumber(last_seq) or 0
  for i = first, first + 3 * (count - 1), 3 do
    local seq, data, mirror = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if tonumber(seq) > appended then
      redis.call('XADD', stream, attempt .. '-' .. seq, 'data', data)
      if mirror ~= '' then redis.call('PUBLISH', channel, mirror) end
    end
  end
  redis.call('EXPIRE', stream, ttl_s)
  return 1
end

local at, replies = 2, {}
while at <= #ARGV do
  local count = tonumber(ARGV[at + 4])
  replies[#replies + 1] = append(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], at + 5, count)
  at = at + 5 + 3 * count
end
return replies
