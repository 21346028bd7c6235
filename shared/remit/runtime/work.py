"""What one delivery asks of a service: verify, decide, append; refold when the action moved; end what cannot be processed.

The engine turns what comes out, return or exception, into the answer to the broker. Source: design, bus sections 3 and 6.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from remit.envelope import CHAIN_HEADER, Recorded, signed_from, verify
from remit.errors import PermanentError, TransientError
from remit.runtime.inbound import Inbound
from remit.runtime.ledger import Draft, Ledger, Superseded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.envelope import TrustedKey
    from remit.fold import ActionState
    from remit.runtime.telemetry import Telemetry

log = structlog.get_logger("remit.work")

MAX_DELIVERIES = 20
"""After so many deliveries the code gives up; a server-side limit would strand silently."""
MAX_REDECISIONS = 5

ActionHandler = Callable[["ActionState"], Awaitable[Draft | None]]
EventHandler = Callable[[Recorded], Awaitable[None]]
RawHandler = Callable[[Inbound], Awaitable[None]]
Unprocessable = Callable[["ActionState"], Draft | None]


class RejectedError(PermanentError):
    """Dead letter and TERM, with a closed code."""

    def __init__(self, code: str, message: str) -> None:
        """Keep the closed code."""
        super().__init__(message)
        self.code = code


def _exhausted(inbound: Inbound) -> RejectedError:
    return RejectedError(
        "unprocessable", f"{inbound.subject} at {inbound.seq} was given up after {MAX_DELIVERIES} deliveries"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionWork:
    """The work of an action consumer.

    Junk ends nothing; what is well signed and can never be processed gets the service's own terminal event from
    `unprocessable`, so that no action is left hanging (design, bus section 3, result table).
    """

    service: str
    ledger: Ledger
    telemetry: Telemetry
    handler: ActionHandler
    unprocessable: Unprocessable
    verify_chain: bool

    async def __call__(self, inbound: Inbound) -> None:
        """Work on one delivery.

        Raises:
            RejectedError: there is nothing more to do with this message than to keep it as evidence.

        """
        signed = signed_from(inbound.subject, inbound.body, inbound.headers)
        state = await self.ledger.state_at(
            signed,
            seq=inbound.seq or 0,
            chain_header=inbound.headers.get(CHAIN_HEADER),
            verify_chain=self.verify_chain,
            stored_at=inbound.time,
        )
        if state is None:
            raise RejectedError("chain", f"event {inbound.subject} at {inbound.seq} is not in its action's chain")
        if inbound.delivered >= MAX_DELIVERIES:
            if await self._end(state, signed.body):
                raise _exhausted(inbound)
            return
        try:
            await self._decide(state, signed.body)
        except PermanentError as error:
            await self._end(state, signed.body)
            raise RejectedError("permanent", str(error)) from error

    async def _decide(self, state: ActionState, consumed: bytes) -> None:
        for _ in range(MAX_REDECISIONS):
            if state.chain[-1].signed.body != consumed:
                return  # Already past this step.
            draft = await self.handler(state)
            if draft is None:
                return
            try:
                await self.ledger.append(state, draft)
            except Superseded as lost:
                self.telemetry.superseded.inc()
                state = lost.state
            else:
                return
        raise TransientError(f"action {state.action_id} kept moving; decided {MAX_REDECISIONS} times")

    async def _end(self, state: ActionState, consumed: bytes) -> bool:
        """Append the terminal event if one may follow; return False when the action is past this step anyway."""
        for _ in range(MAX_REDECISIONS):
            if state.chain[-1].signed.body != consumed:
                return False
            draft = self.unprocessable(state)
            if draft is None:
                break
            try:
                await self.ledger.append(state, draft)
            except Superseded as lost:
                if lost.state.last_seq == state.last_seq:
                    break  # Nobody wrote: this event may not follow here.
                state = lost.state
            except PermanentError as error:
                log.error("no terminal event", action=state.action_id, detail=str(error))  # noqa: TRY400  (no stack needed)
                break
            else:
                break
        return True


def event_work(handler: EventHandler, trust: Mapping[str, TrustedKey]) -> RawHandler:
    """Return the work of a consumer that needs each event alone, verified."""

    async def work(inbound: Inbound) -> None:
        signed = signed_from(inbound.subject, inbound.body, inbound.headers)
        recorded = verify(signed, trust, seq=inbound.seq, stored_at=inbound.time)
        if inbound.delivered >= MAX_DELIVERIES:
            raise _exhausted(inbound)
        await handler(recorded)

    return work


def raw_work(handler: RawHandler, give_up: RawHandler | None = None) -> RawHandler:
    """Return the work of a consumer whose messages are no events; `give_up` takes the last delivery in place of a dead letter."""

    async def work(inbound: Inbound) -> None:
        if inbound.delivered < MAX_DELIVERIES:
            await handler(inbound)
        elif give_up is not None:
            await give_up(inbound)
        else:
            raise _exhausted(inbound)

    return work
