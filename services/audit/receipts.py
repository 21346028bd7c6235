"""Receipts: each finished action gets exactly one `audited` event, whatever crashes in between.

Offered right after the batch that finished the action; found again by a query every minute when that offer was lost.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from remit.events import ActionAudited
from remit.runtime.ledger import Draft, Superseded
from services.audit.chain import receipt
from services.audit.tracking import is_unresolved

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from remit.fold import ActionState
    from services.audit.tracking import Tracked

log = structlog.get_logger("audit.receipts")

CONCURRENT = 64
MAX_WAITING = 10_000
"""More are left to the next reconciliation: memory stays bounded when the stream is slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipts:
    """One tenure's receipts; `overdue` returns finished actions that have none, the resolution window respected."""

    append: Callable[[ActionState, Draft], Awaitable[ActionState]]
    read: Callable[[str], Awaitable[ActionState]]
    overdue: Callable[[int], Awaitable[list[Tracked]]]
    every_s: float
    offered: set[str] = field(default_factory=set[str])
    queue: asyncio.Queue[tuple[ActionState, Draft]] = field(default_factory=lambda: asyncio.Queue(MAX_WAITING))

    def offer(self, finished: list[Tracked]) -> None:
        """Queue receipts of actions that just finished; one in doubt waits until it is resolved."""
        for tracked in finished:
            if not is_unresolved(tracked):
                self._queue(tracked)

    def _queue(self, tracked: Tracked) -> None:
        state = tracked.state
        if state.action_id in self.offered or self.queue.full():
            return
        # Both are immutable from here on: the memory may go on folding.
        self.offered.add(state.action_id)
        self.queue.put_nowait((state, Draft(event=ActionAudited, data=receipt(tracked))))

    async def run(self) -> None:
        """Append queued receipts, many at once, and look for forgotten ones."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reconcile())
            for _ in range(CONCURRENT):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            state, draft = await self.queue.get()
            try:
                await self.append(state, draft)
            except Superseded:
                log.info("receipt already there", action=state.action_id)
            finally:
                self.offered.discard(state.action_id)

    async def _reconcile(self) -> None:
        while True:
            for tracked in await self.overdue(MAX_WAITING - self.queue.qsize()):
                if not is_unresolved(tracked) or await self._is_current(tracked):
                    self._queue(tracked)
            await asyncio.sleep(self.every_s)

    async def _is_current(self, tracked: Tracked) -> bool:
        # A resolution that is not projected yet must not be shut out by a receipt for the doubt before it.
        return (await self.read(tracked.state.action_id)).head == tracked.state.head
