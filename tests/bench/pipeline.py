"""The measured side: the real services, an auto-allowed action on the no-op connector, durable audit with receipts."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import asyncpg
import nats

from infra.demo.people import CLIENT_ID, People
from infra.local import key_ring
from infra.local.child import free_port
from infra.local.environment import Environment
from infra.local.process import ProcessSpec
from infra.local.supervisor import Supervisor
from remit import Agent, Identity, Result
from remit.bundle import BundleContent
from remit.clock import monotonic, now
from remit.commands import ApplyCommand
from remit.ids import fresh_key
from remit.pipeline import PIPELINE
from tests.bench import cpu

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

AGENTS = ("bench-1", "bench-2", "bench-3", "bench-4")
IDENTITY = {"runtime": "bench", "model_family": "none", "model_version": "1", "config_digest": "sha-256:bench"}
CONCURRENCY = 16
"""Open proposals of each agent."""
RULES = 10
RECEIPTS = "select count(*) from audit.actions_all where receipt_seq is not null"


def bundle(keys_dir: Path) -> BundleContent:
    """Return the registry: one no-op tool, and ten rules of which one permits."""
    arguments = {
        "type": "object",
        "additionalProperties": False,
        "required": ["text"],
        "properties": {"text": {"type": "string"}, "amount": {"type": "number"}},
    }
    action = {
        "description": "Does nothing.",
        "arguments": arguments,
        "risk": "T1",
        "effect": "read",
        "reversibility": "reversible",
        "idempotency": "natural",
    }
    rules = [
        f'@id("rule-{n}") permit(principal, action == Action::"noop.ping", resource) '
        f'when {{ context.args.amount == decimal("{n}.5") }};'
        for n in range(RULES - 1)
    ]
    rules.append('@id("reads") permit(principal, action in Action::"effect:read", resource);')
    agents = {name: _agent(name, keys_dir) for name in AGENTS}
    tool = {
        "tool": "noop",
        "resource": "https://remit.example/tools/noop",
        "connector": "noop",
        "environment": "bench",
        "owner": "bench",
        "actions": {"ping": action},
    }
    content = {"tools": {"noop": tool}, "agents": agents, "policies": {"bench.cedar": "\n".join(rules)}}
    return BundleContent.model_validate_json(json.dumps(content))


def _agent(name: str, keys_dir: Path) -> dict[str, Any]:
    public_key = key_ring.load_agent_public_key(keys_dir, name)
    limits = {"proposals_per_minute": 1_000_000, "max_open_actions": 1_000_000}
    own = {"name": name, "id": f"spiffe://bench.example/agent/{name}", "client_id": name, "owner": "bench"}
    return {**own, **IDENTITY, **limits, "public_key": public_key}


class Pipeline:
    """`async with Pipeline(directory)` starts everything and grants each agent a remit."""

    def __init__(self, directory: Path, scale: Mapping[str, int]) -> None:
        self.environment = Environment(directory, agents=AGENTS)
        self.directory, self._scale, self._stack = directory, dict(scale), AsyncExitStack()
        self.agents: list[tuple[Agent, str]] = []
        self.supervisor: Supervisor
        self.database: asyncpg.Pool[asyncpg.Record]
        self._serial = 0

    async def __aenter__(self) -> Self:
        """Start."""
        async with AsyncExitStack() as stack:  # whatever stops the start also stops what was started
            self._stack = stack
            await self._start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self._stack.aclose()

    async def _start(self) -> None:
        await self._stack.enter_async_context(self.environment)
        port = free_port()
        issuer = f"http://localhost:{port}"
        identity = ProcessSpec(
            name="identity",
            argv=(sys.executable, "-m", "infra.demo.identity", "--port", str(port)),
            log_path=self.directory / "logs" / "identity.log",
            ready_url=f"{issuer}/.well-known/openid-configuration",
        )
        settings = {
            "approval": {"REMIT_OIDC_ISSUERS": json.dumps([{"issuer": issuer, "client_ids": [CLIENT_ID]}])},
            "executor": {"REMIT_JWKS_URL": "http://127.0.0.1:{port:tokens}/.well-known/jwks.json"},
            "audit": {"REMIT_CHECKPOINT_DIR": str(self.directory / "checkpoints")},
        }
        quiet = {"REMIT_LOG_LEVEL": "WARNING", "REMIT_BUNDLE_POLL_S": "2", "REMIT_WORKERS": "16"}
        extra = {row.name: {**quiet, **settings.get(row.name, {})} for row in PIPELINE}
        specs = [identity, *self.environment.services(extra)]
        self.supervisor = await self._stack.enter_async_context(Supervisor(specs, scale=self._scale))
        await self.supervisor.ready(120)
        await self._delegate(issuer)
        self.database = await self._stack.enter_async_context(
            asyncpg.create_pool(self.environment.admin_url, min_size=1, max_size=2)
        )
        await self.latencies(5)

    async def _delegate(self, issuer: str) -> None:
        seed = key_ring.load_nats_seed(self.environment.keys_dir, "cli")
        client = await nats.connect(self.environment.nats_url, nkeys_seed_str=seed, inbox_prefix=b"_IBX.cli")
        self._stack.push_async_callback(client.close)
        people = People(client, issuer)
        reply = await people.command("otto", ApplyCommand, content=bundle(self.environment.keys_dir), base_version=0)
        if reply.status != "ok":
            raise RuntimeError(f"bundle not applied: {reply.status}: {reply.detail}")
        for name in AGENTS:
            remit = await people.grant(_terms(name))
            agent = Agent(
                name=name,
                nkey_seed=key_ring.load_agent_seed(self.environment.keys_dir, name),
                servers=self.environment.nats_url,
                identity=Identity(**IDENTITY, session="bench"),
            )
            self.agents.append((await self._stack.enter_async_context(agent), remit))

    async def _propose(self, agent: Agent, remit: str) -> None:
        self._serial += 1
        arguments = {"text": f"call {self._serial}", "amount": 100.25}
        answer = await agent.propose("noop.ping", arguments, remit=remit, idempotency_key=fresh_key(), wait=60)
        if not isinstance(answer, Result) or not answer.succeeded:
            raise RuntimeError(f"a by-rule call did not succeed: {answer}")

    async def throughput(self, count: int) -> float:
        """Send `count` proposals and return actions a second, first proposal to last durable receipt."""
        before, share = await self.database.fetchval(RECEIPTS), count // len(self.agents)
        began = monotonic()

        async def one(agent: Agent, remit: str) -> None:
            gate = asyncio.Semaphore(CONCURRENCY)

            async def gated() -> None:
                async with gate:
                    await self._propose(agent, remit)

            await asyncio.gather(*(gated() for _ in range(share)))

        await asyncio.gather(*(one(agent, remit) for agent, remit in self.agents))
        while await self.database.fetchval(RECEIPTS) < before + share * len(self.agents):
            await asyncio.sleep(0.02)
        return share * len(self.agents) / (monotonic() - began)

    async def latencies(self, count: int) -> list[float]:
        """Propose one call at a time and return the seconds each took to its result."""
        found: list[float] = []
        for _ in range(count):
            began = monotonic()
            await self._propose(*self.agents[0])
            found.append(monotonic() - began)
        return found

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds of every part so far."""
        used = {row.name: cpu.seconds(self.supervisor.pids(row.name)) for row in PIPELINE}
        if self.environment.nats is not None:
            used["nats"] = cpu.seconds([self.environment.nats.pid])
        if self.environment.postgres is not None:
            used["postgres"] = cpu.seconds(cpu.children(self.environment.postgres.pid))
        return used


def _terms(agent: str) -> dict[str, Any]:
    begin = now()
    return {
        "agent_id": f"spiffe://bench.example/agent/{agent}",
        "task": "Measure how long nothing takes",
        "grants": [{"type": "tool_call", "tool": "noop", "action": "ping", "max_calls": 1_000_000}],
        "environment": "bench",
        "not_before": begin.isoformat(),
        "expires_at": (begin + timedelta(hours=6)).isoformat(),
        "max_calls": 1_000_000,
    }
