"""Makes the call that was claimed: digest once more, then one request, repeated only where registry and fence allow it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from remit.canonical import digest
from remit.clock import monotonic, now
from remit.errors import TransientError
from remit.reasons import Outcome
from remit.runtime.crash import crash_point
from services.executor.decide import RETRIES, Order
from services.executor.results import Answer, Call, after_repetition

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from services.executor.connectors.protocol import Connector, Ready
    from services.executor.decide import Refuse

log = structlog.get_logger("remit.executor.calls")

PAUSES_S = (0.2, 1.0)
"""Before each repetition of a doubtful call."""
CRASH_IN_FLIGHT_S = 0.05
"""When crash point X4 strikes: the request is out, the answer is not in."""


@dataclass(frozen=True, slots=True)
class Held:
    """A claim that was granted, and until when, by two clocks: one stops with a suspended host, the other can be set back.

    Passing either is reason enough to ask again.
    """

    claim_id: str
    until_monotonic: float
    until: datetime

    @classmethod
    def now(cls, order: Order, claim_id: str) -> Held:
        """Return a claim that is asked for now; its deadline in Postgres is later than this by the time of the answer."""
        return cls(claim_id, monotonic() + order.deadline_s, now() + timedelta(seconds=order.deadline_s))

    @property
    def is_over(self) -> bool:
        """Whether others may count the claim as interrupted."""
        return monotonic() >= self.until_monotonic or now() >= self.until


@dataclass(slots=True)
class Caller:
    """All connectors, and how many calls of one tool may run at once in this replica."""

    connectors: Mapping[str, Connector]
    concurrency: int
    fence: Callable[[Order, str], Awaitable[bool]]
    """Whether a call under a claim may still begin: nothing was stopped, ended or taken over since (`ClaimStore.may_send`)."""
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

    async def perform(self, order: Order, ready: Ready, held: Held) -> tuple[Answer, Call]:
        """Call, and repeat a doubtful call of an action that is safe to repeat, with the same idempotency key.

        The claim allowed one call at its time. Whatever begins later passes the fence anew: a revocation that returned
        meanwhile must hold.
        """
        begun = monotonic()
        sent = digest(order.arguments)
        if sent != order.args_digest:
            answer = Answer(outcome=Outcome.FAILED, error="args_mismatch")
        elif held.is_over and not await self._may_send(order, held):
            answer = Answer(outcome=Outcome.FAILED, error="not_sent")
        else:
            answer = await self._repeat(order, ready, held)
        crash_point("executor", "X5")
        spent_ms = round((monotonic() - begun) * 1000)
        return answer, Call(claim_id=held.claim_id, attempt=order.attempt, executed_digest=sent, call_ms=spent_ms)

    async def _repeat(self, order: Order, ready: Ready, held: Held) -> Answer:
        answer = await self._once(order, ready)
        for number in range(RETRIES if order.is_repeatable else 0):
            if answer.outcome is not Outcome.UNKNOWN:
                break
            await asyncio.sleep(PAUSES_S[number])
            if not await self._may_send(order, held):
                break
            answer = after_repetition(answer, await self._once(order, ready), order.action.entry.idempotency)
        return answer

    async def _may_send(self, order: Order, held: Held) -> bool:
        try:
            allowed = await self.fence(order, held.claim_id)
        except TransientError as error:
            log.warning("no call without the fence", action_id=order.action_id, detail=str(error))
            return False
        if not allowed:
            log.warning("a call was stopped before it began", action_id=order.action_id, claim_id=held.claim_id)
        return allowed

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
