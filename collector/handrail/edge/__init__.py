"""Every socket, task, clock and client. The edge obeys the Decision and writes down what happened.

- `proxy`: the data path: bytes first, then a copy for the inspector.
- `record`: Decisions to metrics and sinks.
- `clickhouse`, `metrics`, `admin`: where events, findings and figures go.
- `sidecar`: puts it all together, reloads it, ends it.
"""
