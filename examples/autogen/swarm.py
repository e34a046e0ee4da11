"""Customer support by a Swarm of three AutoGen agents. Nothing here knows of Handrail.

handrail run -- python examples/autogen/swarm.py "I was charged twice"
"""

import argparse
import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import Handoff
from autogen_agentchat.conditions import TextMessageTermination
from autogen_agentchat.teams import Swarm
from autogen_core.tools import BaseTool, FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient


class RefundHandoff(Handoff):
    """A handoff that says what it is about: AutoGen's own has no arguments."""

    @property
    def handoff_tool(self) -> BaseTool:
        def ask(customer_id: str, amount: float, reason: str) -> str:
            return self.message

        return FunctionTool(ask, name=self.name, description=self.description, strict=True)


def build(*, stream: bool) -> Swarm:
    model = OpenAIChatCompletionClient(model="gpt-4o", parallel_tool_calls=False)
    triage = AssistantAgent(
        "triage_agent",
        model_client=model,
        handoffs=[RefundHandoff(target="billing_agent")],
        system_message="You are the triage agent. Hand the customer to the right agent.",
        model_client_stream=stream,
    )
    billing = AssistantAgent(
        "billing_agent",
        model_client=model,
        handoffs=["refund_agent"],
        system_message="You are the billing agent. Answer questions about bills; hand refunds to the refund agent.",
        model_client_stream=stream,
    )
    refund = AssistantAgent(
        "refund_agent",
        model_client=model,
        handoffs=["billing_agent"],
        system_message="You are the refund agent. Refund what you are asked to.",
        model_client_stream=stream,
    )
    ends = TextMessageTermination("refund_agent") | TextMessageTermination("billing_agent")
    return Swarm([triage, billing, refund], termination_condition=ends, max_turns=12)


async def talk(question: str, *, stream: bool) -> None:
    result = await build(stream=stream).run(task=question)
    last = result.messages[-1]
    print(f"{last.source}: {last.to_text()}")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("questions", nargs="+", help="one conversation each, all at once")
    parser.add_argument("--stream", action="store_true")
    args = parser.parse_args()
    await asyncio.gather(*(talk(question, stream=args.stream) for question in args.questions))


if __name__ == "__main__":
    asyncio.run(main())
