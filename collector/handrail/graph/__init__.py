"""Graphs of agents: the one that is declared before a run, and the one of who waits for whom while it runs.

- `order`: strongly connected components, cycles, paths and an incremental topological order of numbered nodes.
- `declared`: YAML, JSON, LangGraph's JSON and Mermaid become a Plan.
- `report`: a Plan becomes what is wrong with it as a directed acyclic graph.
- `overhead`: handoffs become what coordination cost, and the critical path of each workflow.
- `waits`: waits and their ends become the deadlocks among them.
"""
