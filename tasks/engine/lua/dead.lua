-- Shared by scripts that keep or remove dead letters: they are bounded in bytes, in number and in age.
--
-- protostar:dead:bytes counts the bytes of the letters. A letter that something else removes stays counted until the
-- stream is empty, so that the stream never holds more than the bound.

local DEAD_MAX_BYTES = 67108864
local DEAD_MAX_LETTERS = 10000
local DEAD_LIFE_MS = 2592000000
local DEAD_MAX_REMOVALS = 200 -- by one call, so that it takes a few milliseconds

local function remove_letter(letter)
  local size = 0
  for _, text in ipairs(letter[2]) do size = size + #text end
  redis.call('XDEL', DEAD, letter[1])
  if redis.call('XLEN', DEAD) == 0 then
    redis.call('DEL', DEAD_BYTES)
  else
    redis.call('DECRBY', DEAD_BYTES, size)
  end
end

local function keep_letter(text)
  redis.call('XADD', DEAD, '*', 'data', text)
  redis.call('INCRBY', DEAD_BYTES, #text + #'data')
  for _ = 1, DEAD_MAX_REMOVALS do
    local oldest = redis.call('XRANGE', DEAD, '-', '+', 'COUNT', 1)[1]
    local is_old = oldest and tonumber(string.match(oldest[1], '^%d+')) < now_ms() - DEAD_LIFE_MS
    local is_full = tonumber(redis.call('GET', DEAD_BYTES) or 0) > DEAD_MAX_BYTES
      or redis.call('XLEN', DEAD) > DEAD_MAX_LETTERS
    if not oldest or not (is_old or is_full) then break end
    remove_letter(oldest)
  end
  redis.call('PEXPIRE', DEAD, DEAD_LIFE_MS)
  redis.call('PEXPIRE', DEAD_BYTES, DEAD_LIFE_MS)
end
