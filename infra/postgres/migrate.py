"""Brings a database to the newest schema: `python -m infra.postgres.migrate`, with DATABASE_URL in the environment.

Any number of processes may run it at once: an advisory lock lets one work, the others find nothing to do.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from remit.clock import monotonic

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_KEY = 0x52454D4954
"""Advisory lock of the migration ("REMIT" in ASCII); nothing else in the database uses this number."""
RETRY_S = 0.5
NOT_READY = frozenset({"57P03", "08000", "08001", "08003", "08006"})
"""SQLSTATEs of a server that is starting or not reachable yet (PostgreSQL manual, appendix A)."""


class MigrateSettings(BaseSettings):
    """Where to migrate, and how long to wait for the server."""

    database_url: str = Field(validation_alias=AliasChoices("DATABASE_URL", "REMIT_DATABASE_URL"))
    wait_s: float = Field(default=60.0, validation_alias="REMIT_MIGRATE_WAIT_S")


def asyncpg_url(database_url: str) -> URL:
    """Return the SQLAlchemy form of a plain `postgresql://` URL."""
    return make_url(database_url).set(drivername="postgresql+asyncpg")


async def migrate(database_url: str, *, wait_s: float = 60.0) -> None:
    """Wait for Postgres, then apply every pending revision in one transaction.

    Raises:
        TimeoutError: the server was not ready within `wait_s` seconds.

    """
    engine = create_async_engine(asyncpg_url(database_url), poolclass=NullPool)
    try:
        connection = await _connected(engine, wait_s=wait_s)
        try:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
            await connection.run_sync(_upgrade)
            await connection.commit()
        finally:
            await connection.close()
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def _connected(engine: AsyncEngine, *, wait_s: float) -> AsyncConnection:
    where = f"{engine.url.host or 'socket'}:{engine.url.port or 5432}/{engine.url.database}"
    deadline = monotonic() + wait_s
    said = False
    while True:
        try:
            return await engine.connect()
        except (OSError, DBAPIError) as error:
            if isinstance(error, DBAPIError) and not _is_not_ready(error):
                raise
            if monotonic() >= deadline:
                raise TimeoutError(f"Postgres at {where} was not ready within {wait_s:g} s; is it started?") from None
        if not said:
            sys.stderr.write(f"waiting for Postgres at {where}\n")
            said = True
        await asyncio.sleep(RETRY_S)


def _is_not_ready(error: DBAPIError) -> bool:
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in NOT_READY


def main() -> None:
    """Migrate the database named by the environment."""
    try:
        settings = MigrateSettings.model_validate({})
    except ValidationError:
        raise SystemExit("set DATABASE_URL to postgresql://user:password@host:port/database") from None
    asyncio.run(migrate(settings.database_url, wait_s=settings.wait_s))
    sys.stderr.write("database schema is up to date\n")


if __name__ == "__main__":
    main()
