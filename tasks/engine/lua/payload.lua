-- Shared by scripts that look into payloads: they parse short ones, and of long ones the beginning.

local HEAD_BYTES = 4096 -- where producers put the names, before the page

-- The text of a JSON member in an unfinished piece of JSON. A quoted name with a colon after it is never inside a text.
local function member(json, name)
  local _, at = string.find(json, '"' .. name .. '"%s*:%s*"')
  local from = at
  while at do
    at = string.find(json, '["\\]', at + 1)
    if at and string.sub(json, at, at) == '"' then
      local readable, text = pcall(cjson.decode, '[' .. string.sub(json, from, at) .. ']')
      return readable and text[1] or nil
    end
    at = at and at + 1
  end
end

-- The function and the arguments of a job; the latter are a table, whatever the payload holds.
local function decode(payload)
  local readable, job = pcall(cjson.decode, payload or '')
  if not readable or type(job) ~= 'table' then return nil, {} end
  return type(job.f) == 'string' and job.f or nil, type(job.k) == 'table' and job.k or {}
end
