-- Polls as random devices; prints how many were answered and how many refused.
-- With a TAG each only asks whether anything changed.
local devices = tonumber(os.getenv("DEVICES"))
local tag = os.getenv("TAG")
local is_again = os.getenv("AGAIN") == "1"
local count = 0
local trusted = {}

function init(args)
   math.randomseed(tonumber(os.getenv("SEED")))
end

function request()
   count = count + 1
   local number = math.random(0, devices - 1)
   local name = string.format("00000000-0000-0000-0000-%012x", number)
   if tag ~= "" then
      return wrk.format("GET", nil, {["x-bench"] = name, ["if-none-match"] = tag})
   end
   local known = ""
   if trusted[number] then
      known = string.format(',"director_version":%d', trusted[number])
   end
   local body = string.format(
      '{"v":1,"nonce":"%032x","version":"1.0","sequence_number":1,"image_digest":"","boot_id":"a",' ..
      '"attributes":{},"methods":["whole/1"],"agent_level":1%s}', count, known)
   return wrk.format("POST", nil, {["x-bench"] = name}, body)
end

function remember(status, headers, body)
   -- The timestamp comes first: its version, then the device it is for.
   local version, device = body:match('version\\":(%d+),\\"x%-device\\":\\"[0-9a-f-]+%-([0-9a-f]+)\\"')
   if version then
      trusted[tonumber(device, 16)] = tonumber(version)
   end
end

if is_again then
   response = remember
end

function done(summary, latency, requests)
   local bad = summary.errors
   print(string.format("done %d", summary.requests))
   print(string.format("refused %d", bad.status + bad.connect + bad.read + bad.write + bad.timeout))
end
