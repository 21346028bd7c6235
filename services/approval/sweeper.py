"""What the clock decides: expired approvals, spent budgets, remits whose time is over.

Runs on every replica, safe by compare-and-set. If it never ran, tokens and executor would still refuse.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from remit.errors import TransientError
from remit.events import ActionApprovalRequested, ActionEvaluated, RemitExhausted, RemitExhaustedEvent
from remit.runtime.bus import NotUnderstoodError
from remit.runtime.ledger import Draft, Ledger, Superseded, SupersededRemit
from services.approval.decide import decide_expiry
from services.approval.store import SWEEP_ROWS

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from datetime import datetime

    from services.approval.remit_store import RemitStore, Spent
    from services.approval.store import ActionStore

log = structlog.get_logger("approval.sweeper")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeper:
    """Ends what is overdue."""

    ledger: Ledger
    store: ActionStore
    remits: RemitStore
    pause_s: float

    async def run(self) -> None:
        """Sweep for ever; while a dependency is away the next sweep finds the same rows."""
        while True:
            try:
                await self.sweep()
            except TransientError as error:
                log.warning("sweep broken off", detail=str(error))
            await asyncio.sleep(self.pause_s)

    async def sweep(self) -> None:
        """End everything overdue once."""
        overdue = await self.store.overdue()
        for action_id in overdue.action_ids:
            await self._unless_unclear(action_id, self._expire(action_id, overdue.now))
        for spent in await self.remits.spent(SWEEP_ROWS):
            await self._unless_unclear(spent.remit_id, self._exhaust(spent))
        await self.remits.note_expired()

    @staticmethod
    async def _unless_unclear(subject_id: str, end: Awaitable[None]) -> None:
        """End one; what holds an event that nobody here can read yet waits alone and holds up none of the others."""
        try:
            await end
        except NotUnderstoodError as error:
            log.warning("overdue, and holds what cannot be read yet", subject=subject_id, detail=str(error))

    async def _expire(self, action_id: str, now: datetime) -> None:
        state = await self.ledger.read(action_id)
        draft = decide_expiry(state, now)
        if draft is not None:
            try:
                state = await self.ledger.append(state, draft)
            except Superseded as lost:
                state = lost.state
        # Rows of decided actions go, whoever decided; one still open waits for the deadline in its event.
        if not isinstance(state.last, ActionApprovalRequested | ActionEvaluated):
            await self.store.close(action_id)

    async def _exhaust(self, spent: Spent) -> None:
        state = await self.ledger.read_remit(spent.remit_id)
        if state.status == "active":
            data = RemitExhausted(remit_digest=spent.digest, used=spent.used)
            try:
                await self.ledger.append_remit(state, Draft(event=RemitExhaustedEvent, data=data))
            except SupersededRemit:
                return  # The next sweep looks at what was written instead.
        await self.remits.note_exhausted(spent.remit_id)
