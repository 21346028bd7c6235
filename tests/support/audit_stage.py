"""Audit between a real broker and a real Postgres; every other service's events are written with its own key and login."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from infra.postgres.roles import ROLES, apply_roles, role_url
from remit.clock import now
from remit.events import Event, Executed, Refused
from remit.ids import action_id
from remit.runtime.bus import Bus
from remit.runtime.keys import load_service_keys
from remit.runtime.ledger import Draft, Ledger
from remit.runtime.runner import Runner
from remit.runtime.telemetry import Telemetry
from tests.support import factories as f
from tests.support.ledger_stream import data_for
from tests.support.servers import connected
from tests.support.services import build_service
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    import asyncpg
    from nats.aio.client import Client
    from pydantic import BaseModel

    from remit.fold import ActionState
    from remit.runtime.service import Service

PASSWORDS = {role: f"test-{role}" for role in ROLES}


@dataclass
class AuditStage:
    """Where everything is, and who may write what."""

    nats_url: str
    database_url: str
    keys: Path
    checkpoints: Path
    database: asyncpg.Connection[asyncpg.Record]
    clients: dict[str, Client]
    ledgers: dict[str, Ledger]

    @property
    def audit_url(self) -> str:
        """The database as the role of audit reaches it."""
        return role_url(self.database_url, "remit_audit", PASSWORDS["remit_audit"])

    def build(self, **more: Any) -> Service:
        settings = {
            "nats_url": self.nats_url,
            "database_url": self.audit_url,
            "checkpoint_dir": self.checkpoints,
            "checkpoint_every_s": 0.5,
            "reconcile_every_s": 0.5,
            "heartbeat_s": 0.5,
        }
        return build_service("audit", self.keys, **(settings | more))

    @asynccontextmanager
    async def running(self, **more: Any) -> AsyncGenerator[Service]:
        """Run audit in this process."""
        service = self.build(**more)
        running = asyncio.create_task(Runner(service)._main())
        await eventually(lambda: service.probes.started)
        try:
            yield service
        finally:
            service.stopping.set()
            await running
            # The watchdog thread outlives the service; it must not end the process of the tests for it.
            service.vitals.stopping_since = float("inf")

    async def write(self, state: ActionState, kind: str, data: BaseModel, **more: Any) -> ActionState:
        """Append one event under the key of the service that owns it."""
        event: type[Event] = f.KINDS[f"action.{kind}"]
        writer = str(data.stage) if isinstance(data, Refused) else event.writers[0]
        return await self.ledgers[writer].append(state, Draft(event=event, data=data, **more))

    async def action(self, key: str, *kinds: str, **changes: Any) -> ActionState:
        """Append a run of example events; `changes` apply to the last one."""
        state = await self.ledgers["audit"].read(action_id("default", "bookkeeper", key))
        for kind in kinds:
            more = changes if kind == kinds[-1] else {}
            if kind == "tokenized":
                more = {"exp": int(now().timestamp()) + 60, **more}
            until = now() + timedelta(minutes=15) if kind == "approval_requested" else None
            state = await self.write(state, kind, data_for(kind, state.action_id, key, **more), expirytime=until)
        return state

    async def resolve(self, state: ActionState, key: str, outcome: str) -> ActionState:
        """Append the second outcome of an unknown one."""
        data = data_for("executed", state.action_id, key, outcome=f.Outcome(outcome))
        assert isinstance(data, Executed)
        return await self.write(state, "executed", data, discriminator="resolved")

    async def grant(self) -> None:
        """Append the example remit."""
        state = await self.ledgers["approval"].read_remit(f.REMIT.remit_id)
        draft = Draft(event=f.KINDS["remit.granted"], data=f.EXAMPLES["remit.granted"])
        await self.ledgers["approval"].append_remit(state, draft)

    async def value(self, query: str, *arguments: Any) -> Any:
        """Return one value as the owner of the database sees it."""
        return await self.database.fetchval(query, *arguments)

    async def projected(self, stream: str = "ACTIONS") -> int:
        return await self.value("SELECT last_seq FROM audit.progress WHERE stream = $1", stream)


@asynccontextmanager
async def audit_stage(nats_url: str, database_url: str, keys: Path, directory: Path) -> AsyncGenerator[AuditStage]:
    """Set the stage: roles, one login and ledger a service."""
    import asyncpg  # noqa: PLC0415  (only where a database is)

    await apply_roles(database_url, PASSWORDS)
    async with AsyncExitStack() as stack:
        database = await asyncpg.connect(database_url)
        stack.push_async_callback(database.close)
        clients = {name: await stack.enter_async_context(connected(nats_url, keys, name)) for name in f.SERVICES}
        ledgers = {name: _ledger(name, keys, client) for name, client in clients.items()}
        yield AuditStage(
            nats_url=nats_url,
            database_url=database_url,
            keys=keys,
            checkpoints=directory / "checkpoints",
            database=database,
            clients=clients,
            ledgers=ledgers,
        )


def _ledger(name: str, keys: Path, client: Client) -> Ledger:
    held = load_service_keys(keys, name)
    bus = Bus(client)  # type: ignore[arg-type]  # its `request` has more parameters than the protocol asks for
    return Ledger(bus=bus, signer=held.signer, trust=held.trust, tenant="default", telemetry=Telemetry(name))
