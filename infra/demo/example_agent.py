"""An agent that asks for one call and hears what became of it."""

import asyncio
import os

from remit import Agent, Pending, Refusal, Result


async def main() -> None:
    """Read the bill, under the remit that a person granted for this task."""
    async with Agent.from_env() as agent:  # REMIT_AGENT, its key, NATS_URL: see `python -m pydoc remit.client.settings`
        bill = {"file_path": "bill-december-2023.txt"}
        answer = await agent.propose("bank.read_file", bill, remit=os.environ["REMIT_ID"])
    match answer:
        case Result(outcome=outcome, value=value):
            print(outcome, value)
        case Refusal(reason=reason, detail=detail):
            print("refused:", reason, detail)
        case Pending(handle=handle):
            print("a person is asked; ask again later with", handle)


asyncio.run(main())
