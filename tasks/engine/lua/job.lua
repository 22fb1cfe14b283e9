-- Shared by the other scripts (see tasks/engine/scripts.py): where a job is, and whose turn it is in its session.
--
-- A job stays a member of ARQ's queue from enqueue to finish, so that ARQ's own clients see it. Its score shows
-- its place: above now: deferred; from 0 to now: due, not yet looked at; below 0: admitted (minus its rank).
-- An admitted job is in one of three places, named by `state` in the hash protostar:job:{id}:
--   ready    in protostar:ready:{class}, may start now; or, as a suspect, in protostar:suspects:{class};
--   waiting  in protostar:turns:{session}, another turn of its session comes first;
--   running  in protostar:running:{owner}, with arq:in-progress:{id} = {owner}:{attempt} as its lease.
-- A session is held (protostar:holders) by a job from its admission to its finish, through every retry.
-- `rank` is the score the producer gave: the order of jobs and of turns.
--
-- Quarantine: `deaths` counts the workers that died while they ran the job. From two on the job is a suspect, and a
-- worker runs one suspect at a time (protostar:quarantined names it). A death then costs the suspect an attempt, and
-- its neighbours none. A suspect that runs for longer than it did on the last worker that died (`lived`) is cleared.

local STATE_TTL_MS = 172800000
local DEATHS_OF_SUSPECT = 2

local function record_of(id) return RECORD_PREFIX .. id end
local function lease_of(id) return LEASE_PREFIX .. id end
local function ready_of(class) return READY_PREFIX .. class end
local function suspects_of(class) return SUSPECTS_PREFIX .. class end
local function turns_of(session) return TURNS_PREFIX .. session end
local function running_of(owner) return RUNNING_PREFIX .. owner end

-- What others may write can hold anything: a value of a wrong type must not stop the jobs beside it.
local function call_or_nil(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then return nil end
  return reply or nil
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function read(id)
  local fields = redis.call(
    'HMGET', record_of(id), 'state', 'class', 'session', 'rank', 'attempt', 'spared', 'owner', 'deaths', 'started', 'lived'
  )
  if not fields[1] then return nil end
  return {
    state = fields[1], class = fields[2], session = fields[3], rank = fields[4],
    attempt = tonumber(fields[5] or 0), spared = tonumber(fields[6] or 0), owner = fields[7] or '',
    deaths = tonumber(fields[8] or 0), started = tonumber(fields[9] or 0), lived = tonumber(fields[10] or 0),
  }
end

local function is_held(job, owner, attempt)
  return job and job.owner == owner and job.attempt == tonumber(attempt) and job.state == 'running'
end

-- Whether so many ms are longer than the job ran on the last worker that died, with a margin for a busy machine.
local function outlives(job, ms) return ms > 1.5 * job.lived + 2000 end

local function is_suspect(job) return job.deaths >= DEATHS_OF_SUSPECT end

-- Time of a worker's last beat; nil where its lease has expired, 0 where the beat holds no time.
local function last_beat_of(owner)
  local beat = call_or_nil('GET', ALIVE_PREFIX .. owner)
  return beat and tonumber(string.match(beat, '"at_ms":(%d+)}$') or 0)
end

-- Writes down why an attempt ended without finishing the job: a JSON object a line.
local function note(id, job, reason)
  local line = cjson.encode({ attempt = job.attempt, reason = reason, at_ms = now_ms() })
  redis.call('HSET', record_of(id), 'history', (redis.call('HGET', record_of(id), 'history') or '') .. line .. '\n')
end

local function park(id, rank) redis.call('ZADD', QUEUE, 'XX', '-' .. rank, id) end

-- Suspects with fewer deaths come first, then those with the lower rank.
local function make_ready(id, job)
  redis.call('HSET', record_of(id), 'state', 'ready')
  if is_suspect(job) then
    redis.call('ZADD', suspects_of(job.class), job.deaths * 1e13 + tonumber(job.rank), id)
  else
    redis.call('ZADD', ready_of(job.class), job.rank, id)
  end
  park(id, job.rank)
end

local function leave_ready(id, job)
  redis.call('ZREM', ready_of(job.class), id)
  if is_suspect(job) then redis.call('ZREM', suspects_of(job.class), id) end
end

local function is_gone(id) return not redis.call('ZSCORE', QUEUE, id) end

-- Gives the session to its next waiting turn, if `id` holds it.
local function release_turn(id, session)
  if session == '' or redis.call('HGET', HOLDERS, session) ~= id then return end
  while true do
    local popped = redis.call('ZPOPMIN', turns_of(session))
    local next_id = popped[1]
    if not next_id then
      redis.call('HDEL', HOLDERS, session)
      return
    end
    local job = read(next_id)
    if job and not is_gone(next_id) then
      redis.call('HSET', HOLDERS, session, next_id)
      make_ready(next_id, job)
      redis.call('PUBLISH', WAKE, next_id)
      return
    end
    redis.call('DEL', record_of(next_id))
  end
end

-- Forgets an admitted job that was removed from ARQ's queue.
local function forget(id, job)
  leave_ready(id, job)
  redis.call('DEL', record_of(id))
  release_turn(id, job.session)
end

-- Ends the worker's hold of a job.
local function leave_owner(id, owner)
  redis.call('DEL', lease_of(id))
  redis.call('SREM', running_of(owner), id)
  if redis.call('HGET', QUARANTINED, owner) == id then redis.call('HDEL', QUARANTINED, owner) end
end

-- Takes a running job back from its owner and makes it ready.
local function take_back(id, job, owner, spare, reason)
  note(id, job, reason)
  leave_owner(id, owner)
  if spare > 0 then redis.call('HINCRBY', record_of(id), 'spared', spare) end
  if is_gone(id) then
    forget(id, job)
  else
    make_ready(id, job)
  end
end
