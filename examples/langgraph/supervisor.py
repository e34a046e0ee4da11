"""Two workers and their supervisor, with langgraph-supervisor. Nothing here knows of Handrail.

handrail run -- python examples/langgraph/supervisor.py "I was charged twice"
"""

import argparse
import asyncio

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langgraph.graph.state import CompiledStateGraph
from langgraph_supervisor import create_supervisor


def build(*, stream: bool, responses: bool) -> CompiledStateGraph:
    model = ChatOpenAI(model="gpt-4o", streaming=stream, use_responses_api=responses)
    billing = create_agent(
        model, tools=[], system_prompt="You are the billing agent. Look up what is billed.", name="billing_agent"
    )
    refund = create_agent(
        model, tools=[], system_prompt="You are the refund agent. Refund what you are asked to.", name="refund_agent"
    )
    prompt = "You are the supervisor. Let the agents do the work, one after another."
    return create_supervisor([billing, refund], model=model, prompt=prompt).compile()


async def talk(graph: CompiledStateGraph, question: str) -> None:
    state = await graph.ainvoke({"messages": [{"role": "user", "content": question}]})
    print(state["messages"][-1].text)


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
