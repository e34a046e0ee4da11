"""Customer support by three agents of langgraph-swarm, one of the handoffs typed. Nothing here knows of Handrail.

handrail run -- python examples/langgraph/swarm.py "I was charged twice"
"""

import argparse
import asyncio
from typing import Annotated

from langchain.agents import create_agent
from langchain_core.messages import ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langchain_openai import ChatOpenAI
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import InjectedState
from langgraph.types import Command
from langgraph_swarm import SwarmState, create_handoff_tool, create_swarm


@tool
def transfer_to_billing_agent(
    customer_id: str,
    amount: float,
    reason: str,
    state: Annotated[dict, InjectedState],
    tool_call_id: Annotated[str, InjectedToolCallId],
) -> Command:
    """Ask agent 'billing_agent' for help with a bill."""
    done = ToolMessage(
        "Successfully transferred to billing_agent", name="transfer_to_billing_agent", tool_call_id=tool_call_id
    )
    messages = [*state["messages"], done]
    return Command(
        goto="billing_agent", graph=Command.PARENT, update={"messages": messages, "active_agent": "billing_agent"}
    )


def build(*, stream: bool, responses: bool) -> CompiledStateGraph:
    model = ChatOpenAI(model="gpt-4o", streaming=stream, use_responses_api=responses)
    refund = create_agent(
        model,
        tools=[create_handoff_tool(agent_name="billing_agent")],
        system_prompt="You are the refund agent. Refund what you are asked to.",
        name="refund_agent",
    )
    billing = create_agent(
        model,
        tools=[create_handoff_tool(agent_name="refund_agent")],
        system_prompt="You are the billing agent. Answer questions about bills; hand refunds to the refund agent.",
        name="billing_agent",
    )
    triage = create_agent(
        model,
        tools=[transfer_to_billing_agent],
        system_prompt="You are the triage agent. Hand the customer to the right agent.",
        name="triage_agent",
    )
    swarm = create_swarm([triage, billing, refund], default_active_agent="triage_agent", state_schema=SwarmState)
    return swarm.compile()


async def talk(graph: CompiledStateGraph, question: str) -> None:
    state = await graph.ainvoke({"messages": [{"role": "user", "content": question}]})
    print(f"{state.get('active_agent')}: {state['messages'][-1].text}")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("questions", nargs="+", help="one conversation each, all at once")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--responses", action="store_true", help="responses in place of chat completions")
    args = parser.parse_args()
    graph = build(stream=args.stream, responses=args.responses)
    await asyncio.gather(*(talk(graph, question) for question in args.questions))


if __name__ == "__main__":
    asyncio.run(main())
