"""Opening the asyncpg pool: wait for the server, say so, and turn lost connections into retries."""

from __future__ import annotations

import asyncio

import asyncpg
import structlog

from remit.errors import ConfigurationError

log = structlog.get_logger("remit.postgres")

DOWN = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.PostgresConnectionError,
    asyncpg.TooManyConnectionsError,
    TimeoutError,
)
"""What a server that is starting, stopping or unreachable makes asyncpg raise."""
UNWILLING = (
    *DOWN,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)
"""Down, stopping, full, read-only, a deadlock's victim, or the session was ended: nothing is known to be committed, ask again.

`InternalClientError` is how asyncpg reports a statement on a connection that the server is just ending.
"""
COMMAND_TIMEOUT_S = 10.0


class Stateless(asyncpg.Connection):  # type: ignore[type-arg]  # generic in its stubs only
    """A connection that keeps nothing between uses: no session settings, no session locks, no listeners.

    asyncpg otherwise resets every connection that goes back to the pool: one more round trip for each statement.
    """

    def get_reset_query(self) -> str:
        """Return that there is nothing to reset."""
        return ""


async def open_pool(
    url: str, *, name: str, max_size: int = 16, keeps_state: bool = False
) -> asyncpg.Pool[asyncpg.Record]:
    """Return a pool, trying until the server answers.

    `keeps_state` says that connections get session settings or session locks, which must not reach their next user.

    Raises:
        ConfigurationError: the server answers, but not for this user, password or database.

    """
    said = False
    while True:
        try:
            return await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=max_size,
                command_timeout=COMMAND_TIMEOUT_S,
                connection_class=asyncpg.Connection if keeps_state else Stateless,
                server_settings={"application_name": name, "timezone": "UTC"},
            )
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            raise ConfigurationError(f"Postgres refuses DATABASE_URL: {type(error).__name__}") from None
        except DOWN as error:
            if not said:
                log.warning("waiting for Postgres", error=type(error).__name__)
                said = True
            await asyncio.sleep(1.0)


async def answers(pool: asyncpg.Pool[asyncpg.Record]) -> bool:
    """Return whether Postgres answers within five seconds."""
    try:
        async with asyncio.timeout(5.0):
            await pool.fetchval("select 1")
    except (*UNWILLING, asyncpg.PostgresError) as error:
        log.warning("postgres does not answer", error=type(error).__name__)
        return False
    return True
