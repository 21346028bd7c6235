"""Ends what was interrupted: a claim past its deadline becomes `unknown`, or is repeated once where that is declared harmless.

Every replica sweeps; a lease and the claim id keep two of them from doing the same thing twice.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from remit.errors import TransientError
from remit.reasons import Outcome
from services.executor import decide, results
from services.executor.calls import Held
from services.executor.decide import Order, Refuse
from services.executor.results import Answer, Call

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from remit.evaluation import CompiledBundle
    from remit.fold import ActionState
    from remit.runtime.ledger import Ledger
    from services.executor.calls import Caller
    from services.executor.claims import ClaimStore
    from services.executor.outbox import Outbox
    from services.executor.rows import Row

log = structlog.get_logger("remit.executor.sweeper")

BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeper:
    """Looks for interrupted claims."""

    clock: Callable[[], datetime]
    bundle: Callable[[], CompiledBundle]
    ledger: Ledger
    claims: ClaimStore
    caller: Caller
    outbox: Outbox
    pause_s: float

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(self.pause_s)
            try:
                await self.sweep()
            except TransientError as error:
                log.warning("sweep postponed", detail=str(error))

    async def sweep(self) -> int:
        """Take up to a batch of interrupted claims, end each, and return how many there were."""
        rows = await self.claims.lease_interrupted(BATCH)
        failures = await asyncio.gather(*(self._end(row) for row in rows), return_exceptions=True)
        for row, failure in zip(rows, failures, strict=True):
            if isinstance(failure, TransientError):
                log.warning("an interrupted claim waits", action_id=row.action_id, detail=str(failure))
            elif failure is not None:
                # One row that cannot be ended must not keep the others in doubt, and this one comes back after its lease.
                self.outbox.telemetry.alarms.labels(kind="interrupted_claim_failed").inc()
                log.error("an interrupted claim cannot be ended", action_id=row.action_id, exc_info=failure)
        return len(rows)

    async def _end(self, row: Row) -> None:
        state = await self.ledger.read(row.action_id)
        if not state.chain:
            self.outbox.telemetry.alarms.labels(kind="claim_without_events").inc()
            log.error("a claim has no events in the ledger", action_id=row.action_id)
            return
        order = decide.read_order(state, self.bundle())
        if isinstance(order, Order) and order.is_repeatable and await self._repeat(state, row, order):
            return
        log.warning(
            "an execution was interrupted, its effect is unknown", action_id=row.action_id, claim_id=row.claim_id
        )
        call = Call(
            claim_id=row.claim_id or "", attempt=row.attempt, executed_digest=row.args_digest or "", call_ms=None
        )
        action = order.action if isinstance(order, Order) else None
        answer = Answer(outcome=Outcome.UNKNOWN, error="interrupted")
        await self.outbox.record(state, results.executed(state, answer, call, action, now=self.clock()))

    async def _repeat(self, state: ActionState, row: Row, order: Order) -> bool:
        """Make the call again under a claim of our own; False leaves the doubt to a person."""
        ready = await self.caller.prepare(order)
        if isinstance(ready, Refuse):
            return False
        claim_id = decide.continued(row.claim_id or "")
        held = Held.now(order, claim_id)
        if not await self.claims.take_over(row, claim_id=claim_id, deadline_s=order.deadline_s):
            return False
        log.info("an interrupted call is repeated with its own key", action_id=row.action_id, claim_id=claim_id)
        answer, call = await self.caller.perform(order, ready, held)
        if answer.outcome is not Outcome.SUCCEEDED:
            # Whether the interrupted call had done it already is not answered by a failure of this one.
            answer = results.after_repetition(
                Answer(outcome=Outcome.UNKNOWN, error="interrupted"), answer, order.action.entry.idempotency
            )
        await self.outbox.record(state, results.executed(state, answer, call, order.action, now=self.clock()))
        return True
