-- The arithmetic of accounts.py, in one step of the server.
-- KEYS: timeline, index of sessions' accounts, index of others, days, totals of the day (or the timeline once
-- more), then an account and an estimate for each ask.
-- ARGV: one JSON object, see redis_server.py.

local wanted = cjson.decode(ARGV[1])
local SLOTS, ROUNDING, FORGET = 60, 1e-9, 0.01
local KEEP_ESTIMATE_S = 30 * 86400
-- An account's key outlives it by a day: the server's own expiry follows the wall clock, which can jump.
local SPARE_S = 86400
local SWEEP = 20

local function exact(number) return string.format('%.17g', number) end

-- Time. It never goes back, and a jump of the server's clock is taken out where the caller can tell.
local function read_time()
  local wall = wanted.wall
  if not wall then
    local time = redis.call('TIME')
    wall = tonumber(time[1]) + tonumber(time[2]) / 1e6
  end
  local kept = redis.call('HMGET', KEYS[1], 'offset', 'last')
  local now = wall + tonumber(kept[1] or 0)
  if wanted.most then now = math.max(math.min(now, wanted.most), wanted.least) end
  if kept[2] then now = math.max(now, tonumber(kept[2])) end
  redis.call('HSET', KEYS[1], 'offset', exact(now - wall), 'last', exact(now))
  return now
end

local now = read_time()

local function slot_of(ask) return math.floor(now / (ask.window_s / SLOTS)) end

local function add(account, ask, amount)
  if amount == 0 then return end
  local slot, last = slot_of(ask), account.slots[#account.slots]
  if last and last[1] == slot then
    last[2] = last[2] + amount
  else
    table.insert(account.slots, {slot, amount})
  end
end

local function read(key, ask)
  local found = redis.call('GET', key)
  if ask.kind == 'bucket' then
    return {full_at = math.max(tonumber(found or 0), now)}
  end
  local account = found and cjson.decode(found) or {slots = {}, held = {}}
  local oldest, kept = slot_of(ask) - SLOTS, {}
  for _, slot in ipairs(account.slots) do
    if slot[1] >= oldest then table.insert(kept, slot) end
  end
  account.slots = kept
  local over = {}
  for call, hold in pairs(account.held) do
    if hold[3] <= now then table.insert(over, call) end
  end
  for _, call in ipairs(over) do
    add(account, ask, account.held[call][2])
    account.held[call] = nil
  end
  return account
end

local function forget(index, most)
  local over = redis.call('ZRANGEBYSCORE', index, '-inf', exact(now), 'LIMIT', 0, SWEEP)
  local surplus = redis.call('ZCARD', index) - #over - most
  if #over == 0 and surplus > 0 then
    over = redis.call('ZRANGE', index, 0, math.min(surplus, SWEEP) - 1)
  end
  if #over > 0 then
    redis.call('DEL', unpack(over))
    redis.call('ZREM', index, unpack(over))
  end
end

local function write(key, account, ask)
  local value, till
  if ask.kind == 'bucket' then
    value, till = exact(account.full_at), account.full_at
  else
    value, till = cjson.encode(account), now + ask.window_s * (1 + 1 / SLOTS)
    for _, hold in pairs(account.held) do till = math.max(till, hold[3] + ask.window_s) end
  end
  redis.call('SET', key, value, 'EX', math.ceil(till - now) + SPARE_S)
  local index = ask.is_of_session and KEYS[2] or KEYS[3]
  if redis.call('ZADD', index, exact(till), key) == 1 then forget(index, wanted.max_accounts) end
end

local function wait_s(account, ask, too_much)
  for _, slot in ipairs(account.slots) do
    too_much = too_much - slot[2]
    if too_much <= 0 then
      return math.max(0, (slot[1] + SLOTS + 1) * (ask.window_s / SLOTS) - now)
    end
  end
  return ask.window_s
end

local function judge(account, ask, estimate_key)
  if ask.kind == 'bucket' then
    local each_s = ask.window_s / ask.capacity
    local lacking_s = account.full_at - now
    local over_s = lacking_s + ask.take * each_s - ask.window_s
    return {
      fits = over_s <= ROUNDING * ask.window_s,
      wait_s = math.max(0, over_s),
      left = (ask.window_s - lacking_s) / each_s,
      hold = 0,
    }
  end
  local used = 0
  for _, slot in ipairs(account.slots) do used = used + slot[2] end
  local most = ask.capacity * (1 + ROUNDING)
  if ask.kind == 'window' then
    local fits = used + ask.take <= most
    local wait = fits and 0 or wait_s(account, ask, used + ask.take - most)
    return {fits = fits, wait_s = wait, left = ask.capacity - used, hold = 0}
  end
  local held, is_alone = 0, true
  for _, hold in pairs(account.held) do
    held, is_alone = held + hold[1], false
  end
  local left = ask.capacity - used - held
  if used + ask.take > most or used >= ask.capacity * (1 - ROUNDING) then
    local too_much = math.max(used + ask.take - most, used - ask.capacity * (1 - 2 * ROUNDING))
    return {fits = false, wait_s = wait_s(account, ask, too_much), left = left, hold = 0}
  end
  local estimate = tonumber(redis.call('GET', estimate_key) or nil)
  local first = ask.take > 0 and ask.take or ask.capacity - used
  local likely = math.max(ask.take, estimate or first)
  local known = math.max(ask.take, estimate or 0)
  if likely == 0 or is_alone or used + held + likely <= most then
    local hold = math.max(ask.take, math.min(likely, ask.capacity - used))
    return {fits = true, wait_s = 0, left = left, hold = hold, known = known}
  end
  return {fits = false, wait_s = 0, left = left, hold = 0}
end

local function take()
  local accounts, verdicts, refused = {}, {}, nil
  for i, ask in ipairs(wanted.asks) do
    local key, estimate_key = KEYS[4 + 2 * i], KEYS[5 + 2 * i]
    accounts[i] = read(key, ask)
    verdicts[i] = judge(accounts[i], ask, estimate_key)
    if not verdicts[i].fits and (not refused or verdicts[i].wait_s > verdicts[refused].wait_s) then
      refused = i
    end
  end
  local answer = {exact(now), refused or 0, exact(refused and verdicts[refused].wait_s or 0)}
  for i, ask in ipairs(wanted.asks) do
    local verdict, account, left = verdicts[i], accounts[i], verdicts[i].left
    if not refused then
      if ask.kind == 'bucket' then
        account.full_at = account.full_at + ask.take * ask.window_s / ask.capacity
        left = left - ask.take
      elseif ask.kind == 'window' then
        add(account, ask, ask.take)
        left = left - ask.take
      else
        if verdict.hold > 0 then
          account.held[wanted.call] = {verdict.hold, verdict.known, now + wanted.lasts_s}
        end
        left = left - verdict.hold
      end
      if ask.take > 0 or verdict.hold > 0 then write(KEYS[4 + 2 * i], account, ask) end
    end
    table.insert(answer, exact(math.max(0, left)))
    table.insert(answer, exact(verdict.hold))
  end
  return answer
end

local function learn(key, used)
  local before = tonumber(redis.call('GET', key) or nil)
  local value = used
  if before and used <= before then value = before - (before - used) * FORGET end
  redis.call('SET', key, exact(value), 'EX', KEEP_ESTIMATE_S)
end

local function add_total(total)
  local pair = total.pair
  if redis.call('HEXISTS', KEYS[5], pair .. ' calls') == 0
    and redis.call('HLEN', KEYS[5]) >= wanted.max_totals * 5 then
    pair = total.others
  end
  for unit, amount in pairs(total.usage) do
    redis.call('HINCRBYFLOAT', KEYS[5], pair .. ' ' .. unit, exact(amount))
  end
  redis.call('EXPIRE', KEYS[5], (total.keep_days + 1) * 86400)
  redis.call('ZADD', KEYS[4], 0, total.day)  -- one score: the order is that of the text
  for _, day in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1 - total.keep_days)) do
    redis.call('ZREM', KEYS[4], day)
  end
end

local function settle()
  for i, ask in ipairs(wanted.asks) do
    local key, estimate_key = KEYS[4 + 2 * i], KEYS[5 + 2 * i]
    local account = read(key, ask)
    local was_held = account.held[wanted.call] ~= nil
    account.held[wanted.call] = nil
    local used = wanted.used and math.max(0, wanted.used[i]) or 0
    if was_held or used > 0 then
      add(account, ask, used)
      write(key, account, ask)
    end
    if wanted.used then learn(estimate_key, used) end
  end
  if wanted.total then add_total(wanted.total) end
  return {exact(now)}
end

if wanted.op == 'take' then return take() end
return settle()
