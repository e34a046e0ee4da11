"""Customer support by three agents of the OpenAI Agents SDK. Nothing here knows of Handrail.

handrail run -- python examples/openai_agents/support.py "I was charged twice"
"""

import argparse
import asyncio

from agents import Agent, RunContextWrapper, Runner, handoff, set_default_openai_api
from pydantic import BaseModel


class RefundRequest(BaseModel):
    """What billing must be told: the type of the handoff."""

    customer_id: str
    amount: float
    reason: str


async def noted(context: RunContextWrapper[None], request: RefundRequest) -> None:
    print(f"billing is asked for {request.amount}")


refund = Agent(name="Refund Agent", instructions="You are the refund agent. Refund what you are asked to.")
billing = Agent(
    name="Billing Agent",
    instructions="You are the billing agent. Answer questions about bills; hand refunds to the refund agent.",
    handoffs=[refund],
)
triage = Agent(
    name="Triage Agent",
    instructions="You are the triage agent. Hand the customer to the right agent.",
    handoffs=[handoff(billing, on_handoff=noted, input_type=RefundRequest)],
)


async def talk(question: str, *, stream: bool) -> None:
    if stream:
        result = Runner.run_streamed(triage, question)
        async for _ in result.stream_events():
            pass
    else:
        result = await Runner.run(triage, question)
    print(f"{result.last_agent.name}: {result.final_output}")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("questions", nargs="+", help="one conversation each, all at once")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--chat", action="store_true", help="chat completions in place of responses")
    args = parser.parse_args()
    if args.chat:
        set_default_openai_api("chat_completions")
    await asyncio.gather(*(talk(question, stream=args.stream) for question in args.questions))


if __name__ == "__main__":
    asyncio.run(main())
