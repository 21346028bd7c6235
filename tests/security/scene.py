"""A provisioned broker with somebody's actions on it, raw attackers, and a witness who reads what really is in the streams."""

from __future__ import annotations

import base64
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.local import key_ring, keys
from infra.local.nats_server import NatsServer, server_config
from infra.provision import provision
from remit.events import ActionApprovalRequested, ActionEvaluated, ActionProposed
from remit.ids import action_id
from remit.runtime.bus import Stored, parse_headers
from remit.runtime.keys import load_service_keys
from remit.runtime.ledger import Draft
from tests.integration.agent_world import World
from tests.security.raw_client import RawClient, raw_client
from tests.support import factories
from tests.support.servers import connected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from remit.envelope import Signer, TrustedKey
    from remit.fold import ActionState

STREAMS = ("INTAKE", "ACTIONS", "REMITS", "DLQ", "ADVISORIES", "KV_REGISTRY")
AGENTS = ("a1", "a2", "bookkeeper")
ASKED_PATH: tuple[tuple[str, type[Any], Any], ...] = (
    ("intake", ActionProposed, factories.PROPOSED),
    ("policy", ActionEvaluated, factories.EVALUATED),
    ("approval", ActionApprovalRequested, factories.REQUESTED),
)


class Mark(NamedTuple):
    """What a stream says of itself."""

    last_seq: int
    messages: int
    deleted: int


@dataclass(slots=True)
class Scene(World):
    """One broker; `witness` may read every event, `provisioner` every stream's own figures."""

    witness: RawClient
    provisioner: RawClient

    def attacker(self, principal: str) -> Any:
        """Return a context with a raw connection under a principal's own key."""
        seed = key_ring.load_nats_seed(self.keys, principal)
        return raw_client(self.server.url, seed, principal.removeprefix("agents/"))

    async def marks(self) -> dict[str, Mark]:
        """Return the figures of every stream."""
        found: dict[str, Mark] = {}
        for stream in STREAMS:
            state = (await self.provisioner.ask(f"$JS.API.STREAM.INFO.{stream}"))["state"]
            found[stream] = Mark(state["last_seq"], state["messages"], state.get("num_deleted", 0))
        return found

    async def stored(self, stream: str, seq: int) -> Stored:
        """Return one stored message as it is."""
        answer = await self.witness.ask(f"$JS.API.STREAM.MSG.GET.{stream}", json.dumps({"seq": seq}).encode())
        message = answer["message"]
        return Stored(
            subject=message["subject"],
            seq=message["seq"],
            body=base64.b64decode(message.get("data", "")),
            headers=parse_headers(base64.b64decode(message.get("hdrs", ""))),
        )

    async def stored_since(self, stream: str, mark: Mark) -> list[Stored]:
        """Return everything that a stream took after a mark."""
        last = (await self.marks())[stream].last_seq
        return [await self.stored(stream, seq) for seq in range(mark.last_seq + 1, last + 1)]

    async def asked(self, key: str) -> ActionState:
        """Return a real action that waits for people: proposed, evaluated and asked, by the services' own keys."""
        identity = action_id("default", "bookkeeper", key)
        state = await self.state(identity)  # junk may stand there already
        for service, event, data in ASKED_PATH:
            async with self.ledger(service) as ledger:
                state = await ledger.append(state, Draft(event=event, data=data.model_copy(update={"txn": identity})))
        return await self.state(identity)

    async def approve(self, action: str) -> ActionState:
        """Let the real approval go on with an action; returns what everybody folds afterwards."""
        await self.write("approval", factories.KINDS["action.approved"], factories.APPROVED, action)
        return await self.state(action)

    def signer(self, service: str) -> Signer:
        """Return a service's own signing key."""
        return load_service_keys(self.keys, service).signer

    def trust(self) -> Mapping[str, TrustedKey]:
        """Return whom the environment believes."""
        return load_service_keys(self.keys, "audit").environment.keys


@asynccontextmanager
async def running_scene(base: Path) -> AsyncGenerator[Scene]:
    """Start the broker of one module."""
    keys.generate(base / "keys", "test", AGENTS)
    async with AsyncExitStack() as stack:
        config = server_config(base / "keys", base / "nats")
        server = await stack.enter_async_context(NatsServer(config, base / "nats"))
        async with connected(server.url, base / "keys", "provisioner") as client:
            await provision(client)
        witness, provisioner = [
            await stack.enter_async_context(
                raw_client(server.url, key_ring.load_nats_seed(base / "keys", principal), principal)
            )
            for principal in ("audit", "provisioner")
        ]
        yield Scene(server, base / "keys", witness, provisioner)
