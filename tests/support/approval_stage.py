"""A real approval service to talk to: broker, Postgres, OpenID provider, two replicas as processes of their own."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
from pydantic import SecretStr

from infra.demo.identity import id_token
from infra.local import key_ring
from infra.local.environment import Environment
from infra.local.supervisor import Supervisor
from remit.clock import now
from remit.commands import ApplyCommand, ApproveCommand, Command, GrantCommand, Reply, parse_reply
from remit.events import ActionApprovalRequested, ActionEvaluated, ActionProposed, ActionRef, Principal
from remit.fold import ActionState
from remit.ids import action_id, fresh_key
from remit.registry_files import load_registry
from remit.remits import Grant, Human, RemitTerms
from remit.runtime.bus import Bus
from remit.runtime.keys import load_service_keys
from remit.runtime.ledger import Draft, Ledger
from remit.runtime.telemetry import Telemetry
from tests.support import factories as f
from tests.support.servers import connected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from nats.aio.client import Client

    from remit.reasons import Verdict

REGISTRY = Path(__file__).resolve().parents[2] / "infra" / "demo" / "registry"
CLIENT = "remit-cli"
LEDGERS = ("intake", "policy", "approval", "tokens", "executor")
"""Whose events tests write."""


@contextmanager
def provider() -> Generator[str]:
    """Run the OpenID provider of the demonstration and yield its issuer."""
    process = subprocess.Popen([sys.executable, "-m", "infra.demo.identity"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        process.stdout.close()


@dataclass(slots=True)
class Stage:
    """What approval tests act with: commands as a person, events as the other services, eyes on Postgres."""

    environment: Environment
    supervisor: Supervisor
    issuer: str
    pool: asyncpg.Pool[asyncpg.Record]
    client: Client
    ledgers: dict[str, Ledger]
    tokens: dict[str, str] = field(default_factory=dict[str, str])

    async def token(self, person: str) -> str:
        if person not in self.tokens:
            self.tokens[person] = await id_token(self.issuer, person, CLIENT, "http://localhost:1/callback")
        return self.tokens[person]

    async def ask(self, person: str, command: type[Command], *, key: str | None = None, **fields: Any) -> Reply:
        token = SecretStr(await self.token(person))
        built = command(id_token=token, idempotency_key=key or fresh_key(), **fields)
        reply = await self.send(built.subject(), built.to_wire())
        for _ in range(20):
            if reply.status != "unavailable":
                break
            await asyncio.sleep(0.25)  # a replica reads a new registry within half a second
            reply = await self.send(built.subject(), built.to_wire())
        return reply

    async def send(self, subject: str, body: bytes) -> Reply:
        return parse_reply((await self.client.request(subject, body, timeout=10)).data)

    def human(self, person: str) -> Human:
        return Human(iss=self.issuer, sub=person)

    async def apply(self, *, base: int = 0, person: str = "otto", **changes: Any) -> Reply:
        content = load_registry(REGISTRY, self.placeholders()).model_copy(update=changes)
        return await self.ask(person, ApplyCommand, content=content, base_version=base)

    def placeholders(self) -> dict[str, str]:
        public = key_ring.load_agent_public_key(self.environment.keys_dir, "bookkeeper")
        return {"BOOKKEEPER_PUBLIC_KEY": public, "BANK_URL": "http://127.0.0.1:9", "BANK_HOST": "127.0.0.1:9"}

    def terms(self, **more: Any) -> RemitTerms:
        fields: dict[str, Any] = {
            "agent_id": f.AGENT.id,
            "task": "Pay the bill",
            "grants": [Grant(type="tool_call", tool="bank", action="send_money", max_calls=2)],
            "environment": "demo",
            "not_before": now() - timedelta(minutes=1),
            "expires_at": now() + timedelta(hours=1),
            "max_calls": 5,
        }
        return RemitTerms(**{**fields, **more})

    async def grant(self, **more: Any) -> str:
        reply = await self.ask("emma", GrantCommand, terms=self.terms(**more))
        assert reply.status == "ok", reply
        assert reply.remit_id is not None
        return reply.remit_id

    async def card(self, action: str) -> dict[str, Any]:
        """Return what an approval must name of the request that waits."""
        request = (await self.read(action)).find(ActionApprovalRequested)
        card: dict[str, Any] = {"action_id": action, "args_digest": f.COMMON["action"].args_digest}
        return card | ({"shown_digest": request.data.shown_digest, "version": request.data.round} if request else {})

    async def approve(self, person: str, action: str, **more: Any) -> Reply:
        """Let a person say yes to the card that waits."""
        return await self.ask(person, ApproveCommand, **{**await self.card(action), **more})

    async def evaluate(self, remit_id: str, verdict: Verdict, *, session: str = "s", **more: Any) -> str:
        """Write proposed and evaluated as intake and policy do; return the action."""
        action = action_id("default", "bookkeeper", fresh_key())
        agent = f.AGENT.model_copy(update={"session": session})
        about: dict[str, Any] = {
            "txn": action,
            "remit_id": remit_id,
            "principal": Principal(human=self.human("emma"), agent=agent, tool=f.TOOL),
            "action": ActionRef(**{**dict(f.COMMON["action"]), **more.pop("action", {})}),
        }
        proposed = f.PROPOSED.model_copy(update=about)
        judged = f.EVALUATED.model_copy(update={**about, "decision": f.decision(verdict), **more})
        state = ActionState(action_id=action)
        state = await self.ledgers["intake"].append(state, Draft(event=ActionProposed, data=proposed))
        await self.ledgers["policy"].append(state, Draft(event=ActionEvaluated, data=judged))
        return action

    async def read(self, action: str) -> ActionState:
        return await self.ledgers["policy"].read(action)

    async def last(self, action: str) -> str | None:
        state = await self.read(action)
        return state.last.short if state.last else None

    async def value(self, query: str, *arguments: Any) -> Any:
        return await self.pool.fetchval(query, *arguments)


@asynccontextmanager
async def stage(directory: Path, **settings: str) -> AsyncGenerator[Stage]:
    """Start everything; `settings` are further environment variables of approval."""
    async with AsyncExitStack() as stack:
        issuer = stack.enter_context(provider())
        environment = await stack.enter_async_context(Environment(directory))
        trusted = f'[{{"issuer": "{issuer}", "client_ids": ["{CLIENT}"]}}]'
        spec = environment.service("approval", {"REMIT_OIDC_ISSUERS": trusted, **settings})
        supervisor = await stack.enter_async_context(Supervisor([spec], scale={"approval": 2}))
        pool = await stack.enter_async_context(asyncpg.create_pool(environment.admin_url, min_size=1, max_size=10))
        ledgers = {name: await _ledger(stack, environment, name) for name in LEDGERS}
        client = await stack.enter_async_context(connected(environment.nats_url, environment.keys_dir, "cli"))
        await asyncio.wait_for(supervisor.ready(), 60)
        yield Stage(environment, supervisor, issuer, pool, client, ledgers)


async def _ledger(stack: AsyncExitStack, environment: Environment, name: str) -> Ledger:
    client = await stack.enter_async_context(connected(environment.nats_url, environment.keys_dir, name))
    mine = load_service_keys(environment.keys_dir, name)
    bus = Bus(client)  # type: ignore[arg-type]  # a nats-py client, whose own annotations are wider
    return Ledger(bus=bus, signer=mine.signer, trust=mine.trust, tenant="default", telemetry=Telemetry(name))
