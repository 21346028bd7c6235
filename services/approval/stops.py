"""An advisory copy of the engaged stop rows, one second old: it spares people and tokens pointless work.

The claim reads the rows themselves, under a lock; this copy may be late and must never be the fence.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from remit.errors import TransientError
from services.approval.authority import human_target

if TYPE_CHECKING:
    from remit.events import Common
    from services.approval.stop_store import Stop, StopStore

log = structlog.get_logger("approval.stops")


class StopSnapshot:
    """Refreshes itself until the service stops."""

    def __init__(self, store: StopStore, *, poll_s: float) -> None:
        """Know nothing to be engaged yet."""
        self._store, self._poll_s = store, poll_s
        self._engaged: frozenset[Stop] = frozenset()

    def engaged_for(self, said: Common) -> str | None:
        """Return the kind of the first switch that stops this action, or None."""
        if not self._engaged:
            return None
        human = said.principal.human
        rows: tuple[Stop, ...] = (
            ("global", "*"),
            ("human", human_target(human) if human else ""),
            ("agent", said.principal.agent.id),
            ("tool", said.action.name),
            ("remit", said.remit_id),
        )
        return next((row[0] for row in rows if row in self._engaged), None)

    async def refresh(self) -> None:
        """Read the engaged rows once."""
        self._engaged = await self._store.engaged()

    async def poll(self) -> None:
        """Refresh for ever; while Postgres is away the last copy stays."""
        while True:
            try:
                await self.refresh()
            except TransientError as error:
                log.warning("stop rows not read", detail=str(error))
            await asyncio.sleep(self._poll_s)
