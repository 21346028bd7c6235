"""NATS and Postgres in containers of a test's own, by testcontainers; imported only where a Docker engine answered."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from testcontainers.community.nats import NatsContainer
from testcontainers.community.postgres import PostgresContainer

from infra.local import secret_files
from infra.local.nats_server import server_config
from infra.nats.config import render
from tests.support import lanes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

CONFIG = "/etc/remit-nats"
STORE = Path("/tmp/jetstream")
CLIENT_PORT, MONITOR_PORT = 4222, 8222
MAX_CONNECTIONS = 200


def _use_engine() -> None:
    found = lanes.engine()
    if found is not None:
        os.environ.setdefault("DOCKER_HOST", found)  # testcontainers looks in one place only


@asynccontextmanager
async def nats(directory: Path, keys_dir: Path) -> AsyncGenerator[str]:
    """Yield the URL of an empty server with our own rendered file, mounted."""
    _use_engine()
    config = replace(
        server_config(keys_dir, directory),
        store_dir=STORE,
        host="0.0.0.0",  # noqa: S104  (inside the container)
        port=CLIENT_PORT,
        monitor_port=MONITOR_PORT,
    )
    secret_files.write(directory / "container" / "nats.conf", render(config))
    container = NatsContainer(lanes.NATS.image, client_port=CLIENT_PORT, management_port=MONITOR_PORT)
    container.with_volume_mapping(str((directory / "container").absolute()), CONFIG, "ro")
    container.with_command(["-c", f"{CONFIG}/nats.conf"])
    await asyncio.to_thread(container.start)
    try:
        yield container.nats_uri()
    finally:
        await asyncio.to_thread(container.stop)


@asynccontextmanager
async def postgres() -> AsyncGenerator[str]:
    """Yield the URL of the maintenance database of a server with SCRAM and data checksums, like the embedded one."""
    _use_engine()
    container = PostgresContainer(
        lanes.POSTGRES.image,
        username="postgres",
        password=secrets.token_urlsafe(24),
        dbname="postgres",
        driver=None,
    )
    container.with_env("POSTGRES_INITDB_ARGS", "--auth=scram-sha-256 --data-checksums")
    container.with_command(["postgres", "-c", f"max_connections={MAX_CONNECTIONS}"])
    await asyncio.to_thread(container.start)
    try:
        yield container.get_connection_url()
    finally:
        await asyncio.to_thread(container.stop)
