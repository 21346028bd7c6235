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
COMMAND_TIMEOUT_S = 10.0


async def open_pool(url: str, *, name: str, max_size: int = 16) -> asyncpg.Pool[asyncpg.Record]:
    """Return a pool, trying until the server answers.

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
    except (*DOWN, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        log.warning("postgres does not answer", error=type(error).__name__)
        return False
    return True
