"""Real NATS servers for tests, from the lane that `tests.support.lanes` chooses."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import nats

from infra.local import key_ring, keys
from infra.local.nats_server import NatsServer, server_config
from infra.provision import provision
from tests.support import lanes

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
        url.split(","),
        nkeys_seed_str=key_ring.load_nats_seed(keys_dir, principal),
        inbox_prefix=f"_IBX.{name}".encode(),
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
async def own_nats(directory: Path, keys_dir: Path) -> AsyncGenerator[str]:
    """Yield the URL of an empty server of the test's own; a given one is neither, so there it is the embedded one."""
    lane = lanes.lane(lanes.NATS)
    async with AsyncExitStack() as stack:
        if lane is lanes.Lane.CONTAINERS:
            from tests.support import containers  # noqa: PLC0415  (needs a Docker engine's client library)

            url = await stack.enter_async_context(containers.nats(directory, keys_dir))
        else:
            lane = lanes.Lane.EMBEDDED
            url = (await stack.enter_async_context(NatsServer(server_config(keys_dir, directory), directory))).url
        lanes.used(lanes.NATS, lane, await _version(url))
        yield url


@asynccontextmanager
async def provisioned_nats(directory: Path, keys_dir: Path) -> AsyncGenerator[str]:
    """Yield the URL of a provisioned server; a given one (NATS_URL) must know the keys in REMIT_KEYS_DIR."""
    async with AsyncExitStack() as stack:
        if lanes.lane(lanes.NATS) is lanes.Lane.GIVEN:
            url = os.environ["NATS_URL"]
            lanes.used(lanes.NATS, lanes.Lane.GIVEN, await _version(url))
        else:
            url = await stack.enter_async_context(own_nats(directory, keys_dir))
        async with connected(url, keys_dir, "provisioner") as client:
            await provision(client)
        yield url


async def _version(url: str) -> str:
    """Return what the server says of itself before anybody logs in; under TLS it says nothing yet."""
    found = urlsplit(url.split(",", maxsplit=1)[0])
    if found.scheme != "nats":
        return "under TLS"
    reader, writer = await asyncio.open_connection(found.hostname, found.port)
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return str(json.loads(line.removeprefix(b"INFO "))["version"])
