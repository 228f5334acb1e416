"""What Redis itself runs for the store: a write or an end of one response, whole.

A script is atomic, and each of these is harmless to repeat, so a writer that does not
know whether its last attempt arrived may try again.
"""

from __future__ import annotations

from typing import Final

LAST: Final = """
local function length(log)
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
  return last[1] and tonumber(string.match(last[1][1], '^%d+')) or 0
end
local function close(keys, id, seconds)
  redis.call('SREM', keys[3], id)
  redis.call('EXPIRE', keys[1], seconds)
  redis.call('EXPIRE', keys[2], seconds)
end
"""

WRITE: Final = (
    LAST
    + """
local id, known, fixed, state, ended, created, retention, first = unpack(ARGV, 1, 8)
local before = redis.call('HGET', KEYS[1], 'ended')
if not before then
  if known == '1' then return 0 end
  redis.call('ZADD', KEYS[4], created, id)
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', created - 2 * retention)
  redis.call('EXPIRE', KEYS[4], 2 * retention)
  redis.call('HSET', KEYS[1], 'fixed', fixed)
elseif before ~= '' and before ~= ended then
  return 0
end
redis.call('HSET', KEYS[1], 'state', state, 'ended', ended)
local there = length(KEYS[2])
for i = 9, #ARGV do
  local number = first + i - 9
  if number >= there then
    redis.call('XADD', KEYS[2], (number + 1) .. '-0', 'event', ARGV[i])
  end
end
if ended == '' then redis.call('SADD', KEYS[3], id) else close(KEYS, id, retention) end
return 1
"""
)
"""Keys: record, log, running, owner. Returns 0 if somebody has ended or deleted it."""

END: Final = (
    LAST
    + """
local id, state, ended, retention, payload = unpack(ARGV)
if redis.call('HGET', KEYS[1], 'ended') ~= '' then
  redis.call('SREM', KEYS[3], id)
  return 0
end
redis.call('XADD', KEYS[2], (length(KEYS[2]) + 1) .. '-0', 'event', payload)
redis.call('HSET', KEYS[1], 'state', state, 'ended', ended)
close(KEYS, id, retention)
return 1
"""
)
"""Keys: record, log, running. Returns 1 if it ran until now."""
