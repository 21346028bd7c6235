"""Three embedded nats-servers that hold every stream and consumer three times; a cluster like the real profile's, on loopback.

Nodes keep names, ports and stores over restarts, so that clients and peers find them again. Source: design, bus section 2.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import httpx
import nats

from infra.local import child, key_ring
from infra.local.nats_server import NatsServer, server_config
from infra.nats.config import Cluster
from remit.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

    from infra.nats.config import ServerConfig

NAMES = ("n1", "n2", "n3")
ACCOUNT = "REMIT"
HEALTH_TIMEOUT_S = 30.0
"""Two elections and a catch-up on a busy machine."""
HEALTH_POLL_S = 0.1
REQUEST_TIMEOUT_S = 5.0


class NatsCluster:
    """Three `NatsServer` by name in `nodes`; a single node is killed, paused and restarted there.

    `async with NatsCluster(keys_dir, directory) as cluster` starts and stops all of them.
    """

    def __init__(self, keys_dir: Path, directory: Path) -> None:
        """Give every node its own folder and its place in the cluster; nothing is started."""
        self.keys_dir, self.directory = keys_dir, directory
        ports = {name: child.free_port() for name in NAMES}
        routes = tuple(f"nats-route://{child.LOOPBACK}:{port}" for port in ports.values())
        self.nodes = {name: self._node(name, ports[name], routes) for name in NAMES}

    def _node(self, name: str, port: int, routes: tuple[str, ...]) -> NatsServer:
        folder = self.directory / name
        cluster = Cluster(server_name=name, listen=f"{child.LOOPBACK}:{port}", routes=routes)
        return NatsServer(replace(server_config(self.keys_dir, folder), cluster=cluster), folder)

    @property
    def url(self) -> str:
        """Where clients connect, comma separated; known after the first start."""
        return ",".join(node.url for node in self.nodes.values())

    @property
    def running(self) -> list[str]:
        """Names of the nodes whose process lives."""
        return [name for name, node in self.nodes.items() if node.running]

    async def start(self) -> Self:
        """Start whatever does not run, all at once, and wait until JetStream has leaders.

        Raises:
            ServerStartError: a node did not start, or is not healthy in time.

        """
        self.directory.mkdir(parents=True, exist_ok=True)
        await asyncio.gather(*(node.start() for node in self.nodes.values() if not node.running))
        await self.healthy()
        return self

    async def stop(self) -> None:
        """Stop every node in good order."""
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))

    async def kill(self, names: Iterable[str] = NAMES) -> None:
        """Kill nodes in the same instant, as a power failure of their host would."""
        await asyncio.gather(*(self.nodes[name].kill() for name in names if self.nodes[name].running))

    async def restart(self, name: str) -> None:
        """Stop one node if it runs, and start it on the same ports and store."""
        await self.nodes[name].restart()

    async def reload(self, change: ServerConfig) -> None:
        """Give every running node the users and agents of `change`; connections of known users stay."""
        for name in self.running:
            node = self.nodes[name]
            await node.reload(replace(node.config, users=change.users, agents=change.agents))

    async def __aenter__(self) -> Self:
        """Start."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.stop)  # one node that fails must not leave the others behind
            await self.start()
            stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    async def healthy(self, within_s: float = HEALTH_TIMEOUT_S) -> None:
        """Wait until every running node says that it follows the meta leader and has caught up with its streams.

        Raises:
            ServerStartError: one does not say so in time; quotes its last answer.

        """
        deadline = monotonic() + within_s
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
            for name in self.running:
                while (said := await _unhealthy(client, self.nodes[name])) is not None:
                    if monotonic() >= deadline:
                        raise child.ServerStartError(f"node {name} is not healthy after {within_s:g} s: {said}")
                    await asyncio.sleep(HEALTH_POLL_S)

    async def leader_of(self, stream: str, durable: str | None = None) -> str | None:
        """Return the node that leads a stream or one of its consumers; None during an election."""
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
            for name in self.running:
                detail = await _stream_detail(client, self.nodes[name], stream)
                if detail is not None and durable is not None:
                    consumers: list[dict[str, Any]] = detail.get("consumer_detail") or []
                    detail = next((c for c in consumers if c["name"] == durable), None)
                leader = ((detail or {}).get("cluster") or {}).get("leader")
                if leader in self.running:
                    return leader
        return None

    async def step_down(self, stream: str, preferred: str | None = None) -> None:
        """Move a stream's leader, to the preferred node when it can lead, under the operator's key.

        Raises:
            ServerStartError: the broker refuses.

        """
        seed = key_ring.load_nats_seed(self.keys_dir, "operator")
        client = await nats.connect(self.url.split(","), nkeys_seed_str=seed, inbox_prefix=b"_IBX.operator")
        try:
            wish = {"placement": {"preferred": preferred}} if preferred else {}
            subject = f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}"
            reply = await client.request(subject, json.dumps(wish).encode(), timeout=REQUEST_TIMEOUT_S)
        finally:
            await client.close()
        error = json.loads(reply.data).get("error")
        if error is not None:
            raise child.ServerStartError(f"{stream}: its leader does not step down: {error.get('description')}")


async def _unhealthy(client: httpx.AsyncClient, node: NatsServer) -> str | None:
    try:
        answer = await client.get(f"{node.monitoring_url}/healthz")
    except httpx.HTTPError as error:
        return type(error).__name__
    return None if answer.is_success else answer.text.strip()


async def _stream_detail(client: httpx.AsyncClient, node: NatsServer, stream: str) -> dict[str, Any] | None:
    try:
        answer = await client.get(
            f"{node.monitoring_url}/jsz", params={"acc": ACCOUNT, "streams": "true", "consumers": "true"}
        )
    except httpx.HTTPError:
        return None
    for account in answer.json().get("account_details") or []:
        for detail in account.get("stream_detail") or []:
            if detail["name"] == stream:
                return detail
    return None
