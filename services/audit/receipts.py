"""Receipts: each finished action gets exactly one `audited` event, whatever crashes in between.

Offered right after the batch that finished the action; found again by a query every minute when that offer was lost.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from remit.events import ActionAudited
from remit.projection.tracking import is_unresolved
from remit.runtime.ledger import Draft, Superseded
from services.audit.chain import receipt
from services.audit.together import together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from remit.fold import ActionState
    from remit.projection.tracking import Tracked

log = structlog.get_logger("audit.receipts")

CONCURRENT = 64
MAX_WAITING = 10_000
"""More are left to the next reconciliation: memory stays bounded when the stream is slow."""
MAX_RACES = 5
"""Lost to junk on the same action; the next reconciliation tries again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipts:
    """One tenure's receipts; `overdue` returns finished actions that have none, the resolution window respected."""

    append: Callable[[ActionState, Draft], Awaitable[ActionState]]
    read: Callable[[str], Awaitable[ActionState]]
    overdue: Callable[[int], Awaitable[list[Tracked]]]
    every_s: float
    offered: set[tuple[str, str | None]] = field(default_factory=set[tuple[str, str | None]])
    """Action and head of its chain: once more is resolved, another receipt is due."""
    queue: asyncio.Queue[tuple[ActionState, Draft]] = field(default_factory=lambda: asyncio.Queue(MAX_WAITING))

    def offer(self, finished: list[Tracked]) -> None:
        """Queue receipts of actions that just finished; one in doubt waits until it is resolved."""
        for tracked in finished:
            if not is_unresolved(tracked):
                self._queue(tracked)

    def _queue(self, tracked: Tracked) -> None:
        state = tracked.state
        if _key(state) in self.offered or self.queue.full():
            return
        # Both are immutable from here on: the memory may go on folding.
        self.offered.add(_key(state))
        self.queue.put_nowait((state, Draft(event=ActionAudited, data=receipt(tracked))))

    async def run(self) -> None:
        """Append queued receipts, many at once, and look for forgotten ones."""
        await together(self._reconcile(), *(self._work() for _ in range(CONCURRENT)))

    async def _work(self) -> None:
        while True:
            state, draft = await self.queue.get()
            try:
                await self._close(state, draft)
            finally:
                self.offered.discard(_key(state))

    async def _close(self, state: ActionState, draft: Draft) -> None:
        """Append a receipt unless the action's chain grew: it says where the chain ends, so it may not be stored after more.

        What came in between is projected like everything else, and the action is offered again with what it became.
        """
        current = state
        for _ in range(MAX_RACES):
            try:
                await self.append(current, draft)
            except Superseded as lost:
                if lost.state.head != state.head:
                    log.info("the action has its receipt, or moved on", action=state.action_id)
                    return
                current = lost.state
            else:
                return

    async def _reconcile(self) -> None:
        while True:
            for tracked in await self.overdue(MAX_WAITING - self.queue.qsize()):
                if not is_unresolved(tracked) or await self._is_current(tracked):
                    self._queue(tracked)
            await asyncio.sleep(self.every_s)

    async def _is_current(self, tracked: Tracked) -> bool:
        # A resolution that is not projected yet must not be shut out by a receipt for the doubt before it.
        return (await self.read(tracked.state.action_id)).head == tracked.state.head


def _key(state: ActionState) -> tuple[str, str | None]:
    return state.action_id, state.head
