"""A projector without a broker: messages go from a test's stream straight into a real Postgres."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from services.audit.database import try_fence
from services.audit.evidence import EvidenceStore
from services.audit.handlers import AuditHandlers
from services.audit.store import Store
from tests.support import factories as f

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from remit.projection.tracking import Tracked
    from tests.support.ledger_stream import StreamWriter


class Projection:
    """One tenure; `project` takes a whole stream from its cursor on."""

    def __init__(self, handlers: AuditHandlers, counted: dict[str, int]) -> None:
        """Remember the handlers, and what they counted."""
        self.handlers, self.counted = handlers, counted

    async def project(self, writer: StreamWriter, *, batch: int = 500) -> list[Tracked]:
        """Project what is new, and return the finished actions of the last batch."""
        finished: list[Tracked] = []
        start = await self.handlers.resume(writer.stream) - 1
        for at in range(start, writer.last_seq, batch):
            admitted = self.handlers.admit(writer.stream, writer.messages[at : at + batch])
            if writer.stream == "ACTIONS":
                finished = await self.handlers.on_actions(admitted)
            else:
                await self.handlers.on_remits(admitted)
        return finished


@asynccontextmanager
async def projection(url: str, *, memory_actions: int = 2_048) -> AsyncGenerator[Projection]:
    """Yield the active projector of a database.

    Raises:
        AssertionError: another one holds the lock.

    """
    counted: dict[str, int] = {}

    def count(status: str, number: int) -> None:
        counted[status] = counted.get(status, 0) + number

    def nothing_marked(_: str) -> Collection[str]:
        return ()

    def alarm(kind: str) -> None:
        count(f"alarm {kind}", 1)

    pool: Any = await asyncpg.create_pool(url, min_size=1, max_size=2)
    try:
        async with try_fence(pool) as fence:
            assert fence is not None, "another projector holds the lock"
            handlers = AuditHandlers(
                trust=f.TRUST,
                store=Store(fence),
                evidence=EvidenceStore(fence, alarm=alarm),
                sensitive=nothing_marked,
                count=count,
                alarm=alarm,
                memory_actions=memory_actions,
            )
            yield Projection(handlers, counted)
    finally:
        await pool.close()
