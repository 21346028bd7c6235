"""Callers with real connectors that may reach loopback, and one way to run an order through them."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from services.executor.calls import Caller, Held
from services.executor.connectors.credentials import EnvironmentCredentials, FileCredentials, FirstOf
from services.executor.connectors.egress import Egress
from services.executor.connectors.http import HttpConnector
from services.executor.connectors.mcp import McpConnector
from services.executor.connectors.noop import NoopConnector
from services.executor.decide import Refuse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from services.executor.decide import Order
    from services.executor.results import Answer

SECRET = "s3cr3t-of-the-tool"


async def open_fence(_order: Order, _claim_id: str) -> bool:
    """Let every call pass."""
    return True


def caller_in(
    directory: Path,
    *,
    ca_file: Path | None = None,
    fence: Callable[[Order, str], Awaitable[bool]] = open_fence,
) -> Caller:
    """Return a caller whose credentials `from-file` and `from-env` exist; nothing is remembered between calls."""
    (directory / "from-file").write_text(SECRET + "\n")
    tls = ssl.create_default_context(cafile=ca_file)
    egress = Egress(tls, connect_timeout_s=1.0, remember_s=0.0)
    credentials = FirstOf(FileCredentials(directory), EnvironmentCredentials({"REMIT_CREDENTIAL_FROM_ENV": SECRET}))
    connectors = {
        "http": HttpConnector(egress=egress, credentials=credentials, tls=tls),
        "mcp": McpConnector(egress, credentials, tls),
        "noop": NoopConnector(),
    }
    return Caller(connectors, concurrency=4, fence=fence)


async def run(caller: Caller, order: Order) -> Answer | Refuse:
    """Prepare and perform."""
    ready = await caller.prepare(order)
    if isinstance(ready, Refuse):
        return ready
    answer, call = await caller.perform(order, ready, Held.now(order, "clm"))
    assert call.executed_digest == order.args_digest
    return answer
