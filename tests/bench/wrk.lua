-- POSTs a canonical envelope with its own task_id in every request, and prints the result as one JSON line.
-- Arguments after `--`: a file with a body of one workflow in each line, all of one length, in which @TASK@ stands for
-- the task_id, and a run number. The head is the same but for the traceparent: eight handoffs make one workflow.

local format = string.format

function init(args)
  run, count, befores, afters = tonumber(args[2]), 0, {}, {}
  for body in io.lines(args[1]) do
    local from, to = body:find("@TASK@", 1, true)
    befores[#befores + 1] = "\r\n\r\n" .. body:sub(1, from - 1)
    afters[#afters + 1] = body:sub(to + 1)
  end
  head = "POST /handoff HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port ..
    "\r\nContent-Type: application/json\r\nAccept: */*\r\nUser-Agent: bench\r\nContent-Length: " ..
    (#befores[1] - 4 + 24 + #afters[1]) .. "\r\ntraceparent: 00-"
end

function request()
  count = count + 1
  local workflow = math.floor(count / 8) + 1
  local said = workflow % #befores + 1
  return head .. format("%016x%016x-%016x-01", run, workflow, count) .. befores[said] ..
    format("task-%06d-%012d", run, count) .. afters[said]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(format('\n{"requests":%d,"seconds":%.6f,"p50_us":%.1f,"p99_us":%.1f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
