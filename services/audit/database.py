"""Postgres as the projector holds it: one connection that owns the advisory lock and makes every write.

Whoever loses the connection loses the lock with it, so a projector that was thought dead can never write again.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from remit.errors import TransientError
from remit.runtime.postgres import UNWILLING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    import asyncpg

LOCK_KEY = 0x52454D41
"""Advisory lock of the active projector ("REMA" in ASCII); nothing else in the database uses this number."""
IDLE_LIMIT = "30s"
"""A holder that is stopped (SIGSTOP) sends no heartbeat; Postgres then ends its session, and a standby takes over."""

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


@contextmanager
def answering() -> Generator[None]:
    """Turn what a lost or unwilling server makes asyncpg raise into `TransientError`.

    Raises:
        TransientError: the statement may or may not have been committed.

    """
    try:
        yield
    except UNWILLING as error:
        raise TransientError(f"Postgres does not answer ({type(error).__name__})") from None


class Fence:
    """The connection that holds the lock; statements of several loops take turns on it."""

    def __init__(self, connection: Connection) -> None:
        """Wrap a connection that holds the lock."""
        self._connection, self._turn = connection, asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """Yield the connection inside one transaction, committed when the block ends well.

        Raises:
            TransientError: Postgres is down or unwilling; the transaction may or may not be committed.

        """
        with answering():
            async with self._turn, self._connection.transaction():
                yield self._connection

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:  # noqa: ANN401  (SQL values)
        """Return the rows of one statement.

        Raises:
            TransientError: Postgres is down or unwilling.

        """
        with answering():
            async with self._turn:
                return await self._connection.fetch(query, *arguments)


@asynccontextmanager
async def try_fence(pool: Pool) -> AsyncGenerator[Fence | None]:
    """Yield the fence when the lock is free, else None; the lock goes when the block ends.

    Raises:
        TransientError: Postgres is down or unwilling.

    """
    with answering():
        async with pool.acquire() as connection:
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
                yield None
                return
            await connection.execute(f"SET idle_session_timeout = '{IDLE_LIMIT}'")
            await connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_LIMIT}'")
            # The pool's reset statement on release drops the lock and both settings.
            yield Fence(connection)
