-- Polls as random devices; prints how many were answered and how many refused.
local devices = tonumber(os.getenv("DEVICES"))
local count = 0

function init(args)
   math.randomseed(tonumber(os.getenv("SEED")))
end

function request()
   count = count + 1
   local body = string.format(
      '{"v":1,"nonce":"%032x","version":"1.0","sequence_number":1,"image_digest":"","boot_id":"a",' ..
      '"attributes":{},"methods":["whole/1"],"agent_level":1}', count)
   return wrk.format("POST", nil, {["x-bench"] = math.random(0, devices - 1)}, body)
end

function done(summary, latency, requests)
   local bad = summary.errors
   print(string.format("done %d", summary.requests))
   print(string.format("refused %d", bad.status + bad.connect + bad.read + bad.write + bad.timeout))
end
