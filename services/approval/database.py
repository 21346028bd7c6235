"""One way to reach Postgres: what a lost or unwilling server makes asyncpg raise becomes `TransientError`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from remit.errors import TransientError
from remit.runtime.postgres import UNWILLING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import asyncpg


class Database:
    """The pool, known only after the service has started."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    def attach(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        """Use this pool from now on."""
        self._pool = pool

    async def close(self) -> None:
        """Close the pool if there is one."""
        if self._pool is not None:
            await self._pool.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]:
        """Yield a connection inside one READ COMMITTED transaction, committed when the block ends well.

        Raises:
            TransientError: Postgres is down or unwilling; the transaction may or may not be committed.

        """
        if self._pool is None:
            raise TransientError("not connected to Postgres yet")
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                yield connection
        except UNWILLING as error:
            raise TransientError(f"Postgres does not answer ({type(error).__name__})") from None

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:  # noqa: ANN401  (SQL values)
        """Return the rows of one statement.

        Raises:
            TransientError: Postgres is down or unwilling.

        """
        if self._pool is None:
            raise TransientError("not connected to Postgres yet")
        try:
            return await self._pool.fetch(query, *arguments)
        except UNWILLING as error:
            raise TransientError(f"Postgres does not answer ({type(error).__name__})") from None

    async def execute(self, query: str, *arguments: Any) -> int:  # noqa: ANN401  (SQL values)
        """Run one statement and return how many rows it touched.

        Raises:
            TransientError: Postgres is down or unwilling.

        """
        if self._pool is None:
            raise TransientError("not connected to Postgres yet")
        try:
            status = await self._pool.execute(query, *arguments)
        except UNWILLING as error:
            raise TransientError(f"Postgres does not answer ({type(error).__name__})") from None
        return int(status.rpartition(" ")[2])
