"""Makes the call that was claimed: digest once more, then one request, repeated only where the registry allows it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remit.canonical import digest
from remit.clock import monotonic
from remit.reasons import Outcome
from remit.runtime.crash import crash_point
from services.executor.decide import RETRIES, Order
from services.executor.results import Answer, Call, after_repetition

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from services.executor.connectors.protocol import Connector, Ready
    from services.executor.decide import Refuse

PAUSES_S = (0.2, 1.0)
"""Before each repetition of a doubtful call."""
CRASH_IN_FLIGHT_S = 0.05
"""When crash point X4 strikes: the request is out, the answer is not in."""


@dataclass(slots=True)
class Caller:
    """All connectors, and how many calls of one tool may run at once in this replica."""

    connectors: Mapping[str, Connector]
    concurrency: int
    _places: dict[str, asyncio.Semaphore] = field(default_factory=dict[str, asyncio.Semaphore])

    @asynccontextmanager
    async def place(self, order: Order) -> AsyncGenerator[None]:
        """Wait for a free place at the tool; taken before the claim, so that waiting does not eat its deadline."""
        places = self._places.setdefault(order.action.tool.tool, asyncio.Semaphore(self.concurrency))
        async with places:
            yield

    async def prepare(self, order: Order) -> Ready | Refuse:
        """Do everything that may fail without an effect."""
        return await self.connectors[order.action.tool.connector].prepare(order)

    async def perform(self, order: Order, ready: Ready, *, claim_id: str) -> tuple[Answer, Call]:
        """Call, and repeat a doubtful call of an action that is safe to repeat, with the same idempotency key."""
        begun = monotonic()
        sent = digest(order.arguments)
        if sent == order.args_digest:
            answer = await self._repeat(order, ready)
        else:
            answer = Answer(outcome=Outcome.FAILED, error="args_mismatch")
        crash_point("executor", "X5")
        spent_ms = round((monotonic() - begun) * 1000)
        return answer, Call(claim_id=claim_id, attempt=order.attempt, executed_digest=sent, call_ms=spent_ms)

    async def _repeat(self, order: Order, ready: Ready) -> Answer:
        answer = await self._once(order, ready)
        for number in range(RETRIES if order.is_repeatable else 0):
            if answer.outcome is not Outcome.UNKNOWN:
                break
            await asyncio.sleep(PAUSES_S[number])
            answer = after_repetition(answer, await self._once(order, ready), order.action.entry.idempotency)
        return answer

    async def _once(self, order: Order, ready: Ready) -> Answer:
        crash_point("executor", "X3")
        in_flight = asyncio.get_running_loop().call_later(CRASH_IN_FLIGHT_S, crash_point, "executor", "X4")
        try:
            return await self.connectors[order.action.tool.connector].call(order, ready)
        finally:
            in_flight.cancel()

    async def close(self) -> None:
        """Close every connector."""
        for connector in self.connectors.values():
            await connector.close()
