-- Repairs what no other script does: admitted jobs without a place, sessions held by jobs that are gone.
-- include: job.lua
--
-- ARGV: cursor of the queue, cursor of the holders ('0' starts), number of entries to look at.
-- Returns {next queue cursor, next holders cursor, number repaired}.

local repaired = 0
local queued = redis.call('ZSCAN', QUEUE, ARGV[1], 'COUNT', ARGV[3])
local admitted, records = {}, {}
for i = 1, #queued[2], 2 do
  local id, score = queued[2][i], tonumber(queued[2][i + 1])
  if score < 0 or score == math.huge then
    admitted[#admitted + 1] = { id, math.abs(score) == math.huge and now_ms() or -score }
    records[#records + 1] = record_of(id)
  end
end
-- As a rule nothing has to be repaired, and one call for all of them shows it.
if #records > 0 and redis.call('EXISTS', unpack(records)) < #records then
  for i, job in ipairs(admitted) do
    if redis.call('EXISTS', records[i]) == 0 then
      redis.call('ZADD', QUEUE, 'XX', job[2], job[1])
      repaired = repaired + 1
    end
  end
end
local held = redis.call('HSCAN', HOLDERS, ARGV[2], 'COUNT', ARGV[3])
local sessions, holders = {}, {}
for i = 1, #held[2], 2 do
  sessions[#sessions + 1] = held[2][i]
  holders[#holders + 1] = held[2][i + 1]
end
local scores = #holders > 0 and redis.call('ZMSCORE', QUEUE, unpack(holders)) or {}
for i, holder in ipairs(holders) do
  if not scores[i] then
    release_turn(holder, sessions[i])
    repaired = repaired + 1
  end
end
if repaired > 0 then redis.call('PUBLISH', WAKE, 'swept') end
return { queued[1], held[1], repaired }
