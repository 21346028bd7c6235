"""Real servers for tests: given by URL, else embedded. Nothing is skipped because a server is missing."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import nats

from infra.local import key_ring, keys
from infra.local.nats_server import NatsServer, server_config
from infra.provision import provision

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from nats.aio.client import Client

AGENTS = ("bookkeeper", "a1", "a2")


@asynccontextmanager
async def connected(url: str, keys_dir: Path, principal: str, *, inbox: str | None = None) -> AsyncGenerator[Client]:
    """Connect as one principal (`policy`, `agents/a1`, ...) with its own inbox prefix."""
    name = inbox or principal.removeprefix("agents/")
    client = await nats.connect(
        url, nkeys_seed_str=key_ring.load_nats_seed(keys_dir, principal), inbox_prefix=f"_IBX.{name}".encode()
    )
    try:
        yield client
    finally:
        await client.close()


def make_keys(directory: Path) -> Path:
    """Generate the keys of a test environment."""
    keys.generate(directory, "test", AGENTS)
    return directory


@asynccontextmanager
async def provisioned_nats(directory: Path, keys_dir: Path) -> AsyncGenerator[str]:
    """Yield the URL of a provisioned server: NATS_URL when given (with its keys in REMIT_KEYS_DIR), else embedded."""
    given = os.environ.get("NATS_URL")
    if given:
        async with connected(given, keys_dir, "provisioner") as client:
            await provision(client)
        yield given
        return
    async with NatsServer(server_config(keys_dir, directory), directory) as server:
        async with connected(server.url, keys_dir, "provisioner") as client:
            await provision(client)
        yield server.url
