"""A broker with a registry, a real intake, real agents, and the keys to write what the other services would decide."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.local import key_ring
from remit import Agent, Identity
from remit.bundle import BundleContent
from remit.bundle_store import encode_bundle
from remit.clock import now
from remit.events import ActionApproved, ActionEvaluated, ActionExecuted, ActionProposed, ActionStarted, ActionTokenized
from remit.reasons import Verdict
from remit.runtime.bus import Bus
from remit.runtime.keys import load_service_keys
from remit.runtime.ledger import Draft, Ledger
from remit.runtime.runner import Runner
from remit.runtime.telemetry import Telemetry
from tests.support import factories
from tests.support.servers import connected
from tests.support.services import build_service
from tests.support.waiting import eventually
from tests.unit.intake.door import TOOL
from tests.unit.intake.door import agent as agent_entry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from pydantic import BaseModel

    from infra.local.nats_server import NatsServer
    from remit.fold import ActionState
    from remit.runtime.service import Service

IDENTITY = Identity(runtime="python-3.11", model_family="claude", model_version="5", config_digest="sha-256:config")
EXECUTED_PATH: tuple[tuple[str, type[Any], BaseModel], ...] = (
    ("policy", ActionEvaluated, factories.EVALUATED.model_copy(update={"decision": factories.decision(Verdict.ALLOW)})),
    ("approval", ActionApproved, factories.APPROVED.model_copy(update={"by": "policy", "votes": []})),
    ("tokens", ActionTokenized, factories.TOKENIZED),
    ("executor", ActionStarted, factories.STARTED),
    ("executor", ActionExecuted, factories.EXECUTED),
)


@dataclass
class World:
    """One broker with a registry, and the keys of everybody who writes to it."""

    server: NatsServer
    keys: Path

    def agent(self, name: str = "bookkeeper", *, seed_of: str | None = None) -> Agent:
        seed = key_ring.load_nats_seed(self.keys, f"agents/{seed_of or name}")
        return Agent(name=name, nkey_seed=seed, identity=IDENTITY, servers=self.server.url)

    @asynccontextmanager
    async def intake(self) -> AsyncGenerator[Service]:
        service = build_service("intake", self.keys, nats_url=self.server.url, bundle_poll_s=0.5)
        run = asyncio.create_task(Runner(service)._main())
        await eventually(lambda: service.probes.started)
        yield service
        service.stopping.set()
        await run

    @asynccontextmanager
    async def ledger(self, service: str) -> AsyncGenerator[Ledger]:
        async with connected(self.server.url, self.keys, service) as client:
            mine = load_service_keys(self.keys, service)
            bus = Bus(client)  # type: ignore[arg-type]  # a nats-py client, whose own annotations are wider
            yield Ledger(bus=bus, signer=mine.signer, trust=mine.trust, tenant="default", telemetry=Telemetry("t"))

    async def state(self, action_id: str) -> ActionState:
        async with self.ledger("policy") as ledger:
            return await ledger.read(action_id)

    async def write(self, service: str, event: type[Any], data: Any, action_id: str) -> None:
        """Append what a service would decide about an action, on its own proposal."""
        async with self.ledger(service) as ledger:
            state = await ledger.read(action_id)
            proposed = state.must(ActionProposed).data
            common = {name: getattr(proposed, name) for name in ("txn", "remit_id", "principal", "action")}
            await ledger.append(state, Draft(event=event, data=data.model_copy(update=common)))

    async def execute(self, action_id: str) -> None:
        for service, event, data in EXECUTED_PATH:
            await self.write(service, event, data, action_id)

    async def publish_registry(self, **agents: dict[str, Any]) -> None:
        public = key_ring.load_nats_users(self.keys).agents
        entries = {
            name: {**agent_entry(name), "public_key": public[name], **agents.get(name, {})}
            for name in ("bookkeeper", "a1")
        }
        content = BundleContent.model_validate({"tools": {"bank": TOOL}, "agents": entries, "policies": {}})
        signer = load_service_keys(self.keys, "approval").signer
        encoded = encode_bundle(content, version=1, issued_at=now(), applied_by="test", signer=signer)
        async with connected(self.server.url, self.keys, "approval") as client:
            bus = Bus(client)  # type: ignore[arg-type]  # as above
            for key, part in encoded.parts.items():
                await bus.append(f"$KV.REGISTRY.{key}", part, {})
            await bus.append("$KV.REGISTRY.bundle", encoded.value, {})
