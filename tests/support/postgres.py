"""A real Postgres for tests: DATABASE_URL when given, else embedded; each caller gets a migrated database of its own."""

from __future__ import annotations

import os
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from infra.local.postgres_server import PostgresServer
from infra.postgres.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@asynccontextmanager
async def postgres(directory: Path) -> AsyncGenerator[str]:
    """Yield the URL of a server's maintenance database."""
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    async with PostgresServer(directory) as server:
        yield server.url()


@asynccontextmanager
async def fresh_database(server_url: str) -> AsyncGenerator[str]:
    """Yield the URL of a new, migrated database and drop it afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    maintenance = await asyncpg.connect(server_url)
    try:
        await maintenance.execute(f'CREATE DATABASE "{name}"')
        url = f"{server_url.rsplit('/', 1)[0]}/{name}"
        await migrate(url)
        yield url
        await maintenance.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await maintenance.close()
