"""Handrail watches the space between agents.

It sits beside each agent, reads the handoffs that leave and reach it from the bytes on the wire, checks them against
versioned JSON Schemas, finds what breaks such systems in silence, and records every handoff with its latency. Agents
need no code change.

How one handoff travels, and where to read it:

    bytes ──▶ wire ──▶ dialects ──▶ Event ──▶ pipeline ──▶ Decision ──▶ edge
              framing   meaning      fact     detectors    verdict,     ClickHouse, Prometheus
                                              rules        findings

- `event`, `records`: the records that cross every boundary: Event, Finding, Fault, Decision.
- `wire`: bytes of one connection become messages, and messages become exchanges. No socket, no clock.
- `dialects`: an exchange becomes events: who hands what to whom.
- `schema`: the registry of versioned schemas, and validation.
- `detectors`: events become findings, one module for each kind of failure.
- `rules`: YAML becomes detectors with parameters, scope, severity and action.
- `pipeline`: the order of things: one event in, one Decision out.
- `edge`: every socket, task, clock and client.

Words: a *handoff* is one transfer of a task's output and context from a *source* agent to a *target* agent over a
*channel* (`call`, `store`, `event`); a *workflow* is all the handoffs that serve one goal; an *event* is one fact that
was seen; a *finding* is something wrong in the system that is watched; a *fault* is something that Handrail itself
could not do, counted and never silent.
"""

__version__ = "0.1.0"
