"""A real Postgres for tests, from the lane of `tests.support.lanes`; each caller gets a migrated database of its own."""

from __future__ import annotations

import os
import secrets
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from infra.local.postgres_server import PostgresServer
from infra.postgres.migrate import migrate
from tests.support import lanes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@asynccontextmanager
async def postgres(directory: Path) -> AsyncGenerator[str]:
    """Yield the URL of a server's maintenance database."""
    lane = lanes.lane(lanes.POSTGRES)
    async with AsyncExitStack() as stack:
        if lane is lanes.Lane.GIVEN:
            url = os.environ["DATABASE_URL"]
        elif lane is lanes.Lane.CONTAINERS:
            from tests.support import containers  # noqa: PLC0415  (needs a Docker engine's client library)

            url = await stack.enter_async_context(containers.postgres())
        else:
            url = (await stack.enter_async_context(PostgresServer(directory))).url()
        lanes.used(lanes.POSTGRES, lane, await _version(url))
        yield url


async def _version(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.close()


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
