-- Appends events of many answers at once and mirrors them to their older channels.
-- include: job.lua
--
-- ARGV: TTL in s, then for each answer: job id, owner, attempt, channel, number of events,
--   and for each event: seq, data, text for the channel ('' for none).
-- Returns for each answer 1, or 0 where the attempt has lost its lease: then nothing of it was appended.
-- Guarantees: ids {attempt}-{seq} rise; an event is appended and mirrored once, also when a call is repeated.

local ttl_s, at, replies = ARGV[1], 2, {}
while at <= #ARGV do
  local id, owner, attempt, channel, count = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4])
  at = at + 5
  local stream = EVENTS_PREFIX .. id
  local job = read(id)
  local fenced = not job or job.owner ~= owner or job.attempt ~= tonumber(attempt) or job.state ~= 'running'
  replies[#replies + 1] = fenced and 0 or 1
  if not fenced then
    local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    local last_attempt, last_seq = string.match(last and last[1] or '0-0', '^(%d+)-(%d+)$')
    local done = last_attempt == attempt and tonumber(last_seq) or 0
    for i = at, at + 3 * (count - 1), 3 do
      if tonumber(ARGV[i]) > done then
        redis.call('XADD', stream, attempt .. '-' .. ARGV[i], 'data', ARGV[i + 1])
        if ARGV[i + 2] ~= '' then redis.call('PUBLISH', channel, ARGV[i + 2]) end
      end
    end
    redis.call('EXPIRE', stream, ttl_s)
  end
  at = at + 3 * count
end
return replies
